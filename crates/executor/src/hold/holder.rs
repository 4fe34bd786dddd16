//! The holder: two commands of a template as one held process, under a small POSIX shell script on argv.
//!
//! Guarantees, in dash, busybox ash and bash, with a read-only root and nothing to write to (`holder.sh`; the tests in
//! `tests/holder` run it): what its freeze did is undone whatever happens, `THAWED` answers our thaw only, and nothing
//! that the commands print can become a line of the protocol (docs/design/freeze.md §2.2).

use stillpoint_api::template::Commands;

use super::Nonce;

const SCRIPT: &str = include_str!("holder.sh");

/// The argv of the holder for the template's commands.
///
/// The commands are passed as counted words: nothing is quoted, and no word can be taken for another's.
pub fn argv(nonce: &Nonce, commands: &Commands) -> Vec<String> {
    let mut lists = vec![&commands.freeze, &commands.thaw, &commands.probe, &commands.barrier];
    lists.extend(commands.renew.iter().map(|renew| &renew.command));
    let mut argv = vec![
        "sh".to_owned(),
        "-c".to_owned(),
        script(commands.renew.is_some()),
        "holder".to_owned(),
        nonce.to_string(),
    ];
    argv.extend(lists.iter().map(|list| list.len().to_string()));
    // In the unit of /proc/uptime.
    argv.extend(commands.renew.iter().map(|renew| (renew.lease.get().as_millis() / 10).to_string()));
    argv.extend(lists.into_iter().flatten().cloned());
    argv
}

/// The script without its comments, and without what renews where nothing does: argv travels in the address of the exec
/// request, which proxies bound.
fn script(renews: bool) -> String {
    let mut script = String::new();
    let mut of_renewal = false;
    for line in SCRIPT.lines().map(str::trim_start) {
        match line {
            "# renew: begin" => of_renewal = true,
            "# renew: end" => of_renewal = false,
            line if line.is_empty() || line.starts_with('#') || (of_renewal && !renews) => {}
            line => {
                script += line;
                script.push('\n');
            }
        }
    }
    script
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use stillpoint_api::template::Renew;

    use super::*;

    #[test]
    fn the_commands_are_counted_words() {
        let nonce = Nonce::try_from("k3v9k3v9k3v9k3v9".to_owned()).unwrap();
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let commands =
            Commands { freeze: words(&["a", "-x", ""]), thaw: words(&["b c"]), ..Commands::default() };
        let argv = argv(&nonce, &commands);
        assert_eq!(argv[3..], ["holder", "k3v9k3v9k3v9k3v9", "3", "1", "0", "0", "a", "-x", "", "b c"]);
    }

    #[test]
    fn the_admission_policy_admits_the_longest_holder_that_a_template_can_make() {
        // The limit of the kind for each command (`stillpoint_api::template::Commands`).
        let longest = vec!["word".to_owned(); 64];
        let renew = Renew { command: longest.clone(), lease: "10s".parse().unwrap() };
        let commands = Commands {
            freeze: longest.clone(),
            thaw: longest.clone(),
            probe: longest.clone(),
            barrier: longest,
            renew: Some(renew),
            ..Commands::default()
        };
        let nonce = Nonce::try_from("k3v9k3v9k3v9k3v9".to_owned()).unwrap();
        let policy = include_str!("../../../../deploy/base/admission-hooks-exec.yaml");
        let (_, rest) = policy.split_once("object.command.size() <= ").unwrap();
        let admitted: usize = rest.split(' ').next().unwrap().parse().unwrap();
        assert_eq!(argv(&nonce, &commands).len(), admitted);
    }

    #[test]
    fn the_request_stays_short_enough_for_a_proxy() {
        // The shortest bound on a request line in common proxies is 8 KiB; the commands of a template need room too.
        let script = script(false);
        let escaped: usize =
            script.bytes().map(|byte| if byte.is_ascii_alphanumeric() { 1 } else { 3 }).sum();
        assert!(escaped < 8 * 1024, "{escaped}");
        assert!(!script.contains("docs/design"), "comments stay here");
        assert!(!script.contains("renewed") && !script.contains("uptime"), "{script}");
    }
}
