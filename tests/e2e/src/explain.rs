//! What a failed case leaves for the reader: objects, events, logs.

use std::fmt::Write as _;

use crate::world::World;

/// Kinds that explain a failure.
const KINDS: &str = "backuppolicies.stillpoint.dev,backups.stillpoint.dev,restores.stillpoint.dev,\
                     volumesnapshots.snapshot.storage.k8s.io,pods,persistentvolumeclaims";
/// Lines of a log that go to the output; all of it is in the file.
const TAIL: usize = 25;

/// Writes everything about the suite's namespaces into a file under the output folder and returns a summary.
pub async fn explain(world: &World, case: &str) -> String {
    let mut summary = String::new();
    let mut all = String::new();
    let cluster = &world.cluster;
    let ask = async |arguments: &[&str]| match cluster.kubectl(arguments, None).await {
        Ok(printed) => format!("{}{}", printed.stdout, printed.stderr),
        Err(problem) => problem.0,
    };
    for namespace in world.namespaces() {
        let objects = ask(&["-n", namespace, "get", KINDS]).await;
        let events = ask(&["-n", namespace, "get", "events", "--sort-by=.lastTimestamp"]).await;
        let yaml = ask(&["-n", namespace, "get", KINDS, "-o", "yaml"]).await;
        // Writing to a String cannot fail.
        let _ = writeln!(all, "=== {namespace}\n{objects}\n--- events\n{events}\n--- objects\n{yaml}");
        let _ = writeln!(summary, "--- {namespace}\n{objects}");
        let warnings = events
            .lines()
            .filter(|line| line.contains("Warning") && !line.contains("Unhealthy"))
            .collect::<Vec<_>>();
        let _ = writeln!(summary, "{}", last(&warnings, TAIL));
    }
    let contents = ask(&["get", "volumesnapshotcontents", "-o", "yaml"]).await;
    let log = world.controller_log();
    let lines: Vec<&str> = log.lines().collect();
    let ledger =
        cluster.ledger.lines().map(|lines| format!("{:#?}", lines.iter().rev().take(12).collect::<Vec<_>>()));
    let _ = writeln!(
        all,
        "=== contents\n{contents}\n=== controller\n{log}\n=== ledger, newest first\n{}",
        ledger.unwrap_or_else(|problem| problem.0)
    );
    let mut info = lines.iter().filter(|line| !line.contains("\"DEBUG\"")).copied().collect::<Vec<_>>();
    // The same line again and again says nothing more than once.
    let words =
        |line: &str| line.split_once("\"level\"").map_or(line.to_owned(), |(_, words)| words.to_owned());
    info.dedup_by_key(|line| words(line));
    let _ = writeln!(summary, "--- controller\n{}", last(&info, TAIL));
    let file = world.out.join(format!("failed-{case}.txt"));
    match std::fs::write(&file, all) {
        Ok(()) => {
            let _ = writeln!(summary, "(everything: {})", file.display());
        }
        Err(error) => {
            let _ = writeln!(summary, "(could not write {}: {error})", file.display());
        }
    }
    summary
}

fn last(lines: &[&str], count: usize) -> String {
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}
