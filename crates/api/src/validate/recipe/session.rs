//! What a held session must be: a client that stays, texts that say their word and end, a lease, a bounded lock.

use std::time::Duration;

use crate::template::{self, Recipe, Session};
use crate::validate::Finding;
use crate::validate::recipe::traps::MAKES_WRITABLE;

/// Beats come every 2 s (docs/design/freeze.md §2.3): a shorter lease ends between two of them.
const LEASE: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(10);
/// Session variables that bound a lock wait in the servers we know.
const LOCK_BOUNDS: [&str; 3] = ["lock_wait_timeout", "lock_timeout", "innodb_lock_wait_timeout"];
/// Counters that READY, FROZEN and HELD may carry; the protocol's set is closed (docs/design/freeze.md §2.1).
const POSITION_KEYS: &[&str] = &["gtid", "lsn", "oplog", "changes", "position"];
/// What they may say about who answers.
const IDENTITY_KEYS: &[&str] =
    &["pid", "start", "sysid", "conn", "uid", "host", "local", "runid", "port", "datadir", "version"];

pub(super) fn session(held: &Session) -> Vec<Finding> {
    let path = |field: &str| format!("spec.freeze.session.{field}");
    let mut found = client(&held.command);
    for (field, text, word) in [
        ("open", &held.open, "READY {{n}}"),
        ("freeze", &held.freeze, "FROZEN {{n}}"),
        ("beat", &held.beat, "HELD {{n}} {{i}}"),
        ("thaw", &held.thaw, "THAWED {{n}}"),
    ] {
        if !text.contains(word) {
            found.push(Finding::new(
                path(field),
                "WordMissing",
                format!("the text never prints {word}, which the controller waits for: add it as its last statement"),
            ));
        }
    }
    if held.canary.as_ref().is_some_and(|canary| !canary.contains("CANARY {{n}}")) {
        found.push(Finding::new(
            path("canary"),
            "WordMissing",
            "the canary text must print CANARY {{n}} after a statement that fails",
        ));
    }
    for (field, text) in template::texts(held) {
        if !text.ends_with('\n') || !text.trim_end().ends_with(';') {
            found.push(Finding::new(
                path(field),
                "UnterminatedText",
                "the last statement must end with ; and a line break: clients run an unterminated one only at end of input, after the hold is over",
            ));
        }
    }
    if held.lease.variable.trim().is_empty()
        || !held.open.contains(&held.lease.variable)
        || !held.open.contains("{{lease}}")
    {
        found.push(Finding::new(
            path("lease.variable"),
            "SessionWithoutLease",
            "the server must end a session that falls silent: the open text sets the lease variable to {{lease}} before it prints READY",
        ));
    }
    if held.lease.duration.is_some_and(|lease| !LEASE.contains(&lease.get())) {
        found.push(Finding::new(
            path("lease.duration"),
            "LeaseOutOfRange",
            "a lease is 2s to 10s: beats come every 2s, and a silent controller must not hold longer",
        ));
    }
    let before_lock = format!("{}{}", held.open, held.freeze).to_lowercase();
    if held.locks
        && !before_lock.contains("{{acquireseconds}}")
        && !LOCK_BOUNDS.iter().any(|variable| before_lock.contains(variable))
    {
        found.push(Finding::new(
            path("freeze"),
            "UnboundedWait",
            "a lock may wait for ever behind a long statement, with every writer behind it: set the server's lock timeout to {{acquireSeconds}} in open",
        ));
    }
    let thaw = held.thaw.to_lowercase().replace(char::is_whitespace, "");
    if let Some(statement) = MAKES_WRITABLE.iter().find(|statement| thaw.contains(**statement)) {
        found.push(Finding::new(
            path("thaw"),
            "ThawMakesWritable",
            format!("{statement} can make a replica writable: thaw only what this session froze"),
        ));
    }
    found
}

/// The client behind a shell that prepares its environment and becomes it, or stays around it:
/// `sh -c '… "$@"' NAME {{parameter}}… CLIENT…`.
fn behind_shell(argv: &[String]) -> &[String] {
    match argv {
        [shell, option, script, _name, client @ ..]
            if ["sh", "bash", "ash"].contains(&shell.rsplit('/').next().unwrap_or_default())
                && option == "-c"
                && script.contains("\"$@\"")
                && !client.is_empty() =>
        {
            behind_shell(client.get(taken(script)..).unwrap_or_default())
        }
        whole => whole,
    }
}

/// How many words a script takes for itself before it hands on the others: what its first `shift` says. Their text tells nothing: in a
/// template they are placeholders, and what is run has values.
fn taken(script: &str) -> usize {
    let mut words = script.split(|letter: char| letter == ';' || letter.is_whitespace());
    words
        .find(|word| *word == "shift")
        .map_or(0, |_| words.next().and_then(|count| count.parse().ok()).unwrap_or(1))
}

/// What is wrong with the client of a session.
fn client(argv: &[String]) -> Vec<Finding> {
    const PATH: &str = "spec.freeze.session.command";
    let Some((program, arguments)) = behind_shell(argv).split_first() else {
        return vec![Finding::new(PATH, "NoCommand", "the session has no client: write its argv")];
    };
    let program = program.rsplit('/').next().unwrap_or(program);
    let short = |letter: char| {
        arguments.iter().any(|argument| {
            argument.strip_prefix('-').is_some_and(|rest| {
                !rest.starts_with('-')
                    && rest.chars().take_while(char::is_ascii_alphabetic).any(|flag| flag == letter)
            })
        })
    };
    let long = |names: &[&str]| {
        arguments.iter().any(|argument| {
            names.iter().any(|name| argument == name || argument.starts_with(&format!("{name}=")))
        })
    };
    let mut found = Vec::new();
    let one_shot = match program {
        "psql" => {
            arguments.iter().any(|argument| argument.starts_with("-c") || argument.starts_with("-f"))
                || long(&["--command", "--file"])
        }
        "mysql" | "mariadb" => {
            arguments.iter().any(|argument| argument.starts_with("-e")) || long(&["--execute"])
        }
        _ => {
            arguments.iter().any(|argument| argument == "-e" || argument == "-c")
                || long(&["--eval", "--execute", "--command"])
        }
    };
    if one_shot {
        found.push(Finding::new(
            PATH,
            "OneShotClient",
            "the client runs one statement and ends, and its lock with it: let it read statements from its input",
        ));
    }
    if matches!(program, "mysql" | "mariadb") && !short('n') && !long(&["--unbuffered"]) {
        found.push(Finding::new(
            PATH,
            "BufferedClient",
            format!("{program} prints nothing before end of input without -n, so READY would never be seen: add -n"),
        ));
    }
    if program == "psql"
        && !arguments.iter().any(|argument| argument.replace(' ', "").ends_with("ON_ERROR_STOP=1"))
    {
        found.push(Finding::new(
            PATH,
            "GoesOnAfterError",
            "psql goes on after an error and would print FROZEN without a lock: add -v ON_ERROR_STOP=1",
        ));
    }
    found
}

/// Claims about printed lines that the texts do not keep.
pub(super) fn printed(recipe: &Recipe, held: &Session) -> Vec<Finding> {
    let mut found = Vec::new();
    let between: Vec<&String> = held.stages.iter().filter_map(|stage| stage.then.as_ref()).collect();
    let mut printing = format!("{}{}", held.open, held.freeze);
    printing.extend(between.iter().map(|then| then.as_str()));
    for name in recipe.evidence.iter().filter(|name| !printing.contains(name.as_str())) {
        found.push(Finding::new(
            "spec.evidence",
            "EvidenceNotPrinted",
            format!("neither open, freeze nor a stage prints EVIDENCE {name}=: print it or remove the name"),
        ));
    }
    let settings = recipe.crash_safe.iter().flat_map(|claim| &claim.settings);
    let needed = settings
        .flat_map(|setting| {
            std::iter::once(&setting.name).chain(setting.when.iter().map(|condition| &condition.name))
        })
        .map(|name| ("spec.crashSafe.settings", name))
        .chain(recipe.data_paths.iter().map(|name| ("spec.dataPaths", name)));
    for (path, name) in needed.filter(|(_, name)| !recipe.evidence.contains(name)) {
        found.push(Finding::new(
            path,
            "EvidenceNotPrinted",
            format!(
                "{name:?} is judged and is not in spec.evidence, so it would always be missing: add it there"
            ),
        ));
    }
    let keys = held
        .position
        .iter()
        .map(|key| ("position", key, POSITION_KEYS))
        .chain(held.local.iter().map(|rule| ("local.key", &rule.key, IDENTITY_KEYS)));
    for (field, key, known) in keys {
        if !known.contains(&key.as_str()) {
            found.push(Finding::new(
                format!("spec.freeze.session.{field}"),
                "UnknownKey",
                format!(
                    "{key:?} is no key of the protocol, whose lines with it would not count: use one of {}",
                    known.join(", ")
                ),
            ));
        }
        let printed = format!(" {key}=");
        if [&held.open, &held.freeze, &held.beat]
            .into_iter()
            .chain(between.iter().copied())
            .any(|text| !text.contains(&printed))
        {
            found.push(Finding::new(
                format!("spec.freeze.session.{field}"),
                "KeyNotPrinted",
                format!("READY, FROZEN and HELD must all carry {key}=: print it in open, freeze and beat"),
            ));
        }
    }
    found
}
