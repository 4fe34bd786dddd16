//! What a hook template must be: it ends what it begins, says what it prints, and waits for nothing without a bound.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Finding;
use crate::policy::PodChoice;
use crate::template::placeholder::{self, Part, RUN_TIME};
use crate::template::{self, Freeze, ParameterType, Recipe, Session};

/// Beats come every 2 s (docs/design/freeze.md §2.3): a shorter lease ends between two of them.
const LEASE: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(10);
/// What a prepare step may take.
const PREPARE: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// Session variables that bound a lock wait in the servers we know.
const LOCK_BOUNDS: [&str; 3] = ["lock_wait_timeout", "lock_timeout", "innodb_lock_wait_timeout"];
/// Counters that READY, FROZEN and HELD may carry; the protocol's set is closed (docs/design/freeze.md §2.1).
const POSITION_KEYS: &[&str] = &["gtid", "lsn", "oplog", "changes", "position"];
/// What they may say about who answers.
const IDENTITY_KEYS: &[&str] =
    &["pid", "start", "sysid", "conn", "uid", "host", "local", "runid", "port", "datadir", "version"];
/// Statements that end a replica's protection or promote it, without white space and in lower case.
const MAKES_WRITABLE: [&str; 7] = [
    "read_only=0",
    "read_only=off",
    "read_only=false",
    "read_only:=0",
    "pg_promote",
    "resetreplicaall",
    "resetslaveall",
];

/// Everything that keeps a template from being used. `kind` and `name` appear in the messages.
pub fn recipe(recipe: &Recipe, kind: &str, name: &str) -> Vec<Finding> {
    let mut found = how_it_is_held(recipe);
    if let Some(Freeze::Session(held)) = &recipe.freeze {
        found.extend(session(held));
        found.extend(printed(recipe, held));
    }
    found.extend(parameters(recipe));
    found.extend(placeholders(recipe));
    found.extend(not_supported_yet(recipe));
    if recipe
        .prepare
        .as_ref()
        .and_then(|prepare| prepare.timeout)
        .is_some_and(|timeout| !PREPARE.contains(&timeout.get()))
    {
        found.push(Finding::new(
            "spec.prepare.timeout",
            "UnboundedWait",
            "prepare may take 1s to 1h: it is over before anything is frozen",
        ));
    }
    for finding in &mut found {
        finding.message = format!("{kind} {name}: {}", finding.message);
    }
    found
}

/// What a template's author should know and may leave as it is; `lint` shows it as a warning.
pub fn advice(recipe: &Recipe) -> Vec<Finding> {
    let mut found = Vec::new();
    match &recipe.freeze {
        Some(Freeze::Session(held)) => {
            if held.locks && held.position.is_none() && held.thaw_proves_lock.is_none() {
                found.push(Finding::new(
                    "spec.freeze.session",
                    "ContinuityDeclared",
                    "nothing shows that the lock was held without a break: name a position key or say why the thaw text proves it, else the grade is Declared",
                ));
            }
            if held.canary.is_none() {
                found.push(Finding::new(
                    "spec.freeze.session.canary",
                    "NoCanary",
                    "nothing shows that this client stops at its first error: add a failing statement followed by one that prints CANARY {{n}}",
                ));
            }
        }
        Some(Freeze::Commands(commands)) if commands.probe.is_empty() => found.push(Finding::new(
            "spec.freeze.commands.probe",
            "ContinuityDeclared",
            "without a probe the frozen state is never seen: the grade is Declared",
        )),
        Some(Freeze::Commands(_) | Freeze::None {}) | None => {}
    }
    let locks = match &recipe.freeze {
        Some(Freeze::Session(held)) => held.locks,
        Some(Freeze::Commands(_)) => true,
        Some(Freeze::None {}) => false,
        None => recipe.pre_hook.is_some(),
    };
    if !locks && recipe.crash_safe.is_none() {
        found.push(Finding::new(
            "spec.crashSafe",
            "NothingProven",
            "nothing is locked and no documented recovery is claimed: a backup with this template is never Application",
        ));
    }
    for parameter in &recipe.parameters {
        let used = used_names(recipe);
        if !used.contains(parameter.name.as_str()) {
            found.push(Finding::new(
                format!("spec.parameters[{}]", parameter.name),
                "UnusedParameter",
                "no argument and no text uses it: remove it",
            ));
        }
    }
    found
}

fn how_it_is_held(recipe: &Recipe) -> Vec<Finding> {
    let hooks = (recipe.pre_hook.is_some(), recipe.post_hook.is_some());
    match (&recipe.freeze, hooks) {
        (Some(Freeze::Commands(commands)), (false, false)) if commands.thaw.is_empty() => vec![Finding::new(
            "spec.freeze.commands.thaw",
            "FreezeWithoutThaw",
            "what is frozen must be thawed: write the command that does",
        )],
        (Some(_), (false, false)) | (None, (true, true)) => Vec::new(),
        (None, (true, false)) => vec![Finding::new(
            "spec.postHook",
            "FreezeWithoutThaw",
            "preHook freezes and nothing thaws: write postHook",
        )],
        (None, (false, true)) => {
            vec![Finding::new(
                "spec.preHook",
                "ThawWithoutFreeze",
                "postHook thaws and nothing freezes: write preHook",
            )]
        }
        (None, (false, false)) => vec![Finding::new(
            "spec.freeze",
            "NoFreeze",
            "the template does not say how the application is held: write freeze (session, commands or none: {})",
        )],
        (Some(_), _) => vec![Finding::new(
            "spec.freeze",
            "FreezeAndHooks",
            "freeze and preHook/postHook say the same thing twice: keep one of them",
        )],
    }
}

fn session(held: &Session) -> Vec<Finding> {
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

/// What is wrong with the client of a session.
fn client(argv: &[String]) -> Vec<Finding> {
    const PATH: &str = "spec.freeze.session.command";
    let Some((program, arguments)) = argv.split_first() else {
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
fn printed(recipe: &Recipe, held: &Session) -> Vec<Finding> {
    let mut found = Vec::new();
    let printing = format!("{}{}", held.open, held.freeze);
    for name in recipe.evidence.iter().filter(|name| !printing.contains(name.as_str())) {
        found.push(Finding::new(
            "spec.evidence",
            "EvidenceNotPrinted",
            format!("neither open nor freeze prints EVIDENCE {name}=: print it or remove the name"),
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
        if [&held.open, &held.freeze, &held.beat].iter().any(|text| !text.contains(&printed)) {
            found.push(Finding::new(
                format!("spec.freeze.session.{field}"),
                "KeyNotPrinted",
                format!("READY, FROZEN and HELD must all carry {key}=: print it in open, freeze and beat"),
            ));
        }
    }
    found
}

fn parameters(recipe: &Recipe) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut names = BTreeSet::new();
    for parameter in &recipe.parameters {
        let path = format!("spec.parameters[{}]", parameter.name);
        if !names.insert(&parameter.name) {
            found.push(Finding::new(&path, "DuplicateName", "two parameters have this name: rename one"));
        }
        let plain = parameter.name.starts_with(|c: char| c.is_ascii_lowercase())
            && parameter.name.chars().all(|c| c.is_ascii_alphanumeric());
        if !plain {
            found.push(Finding::new(
                &path,
                "InvalidName",
                "a parameter's name is letters and digits and begins with a small letter",
            ));
        }
        if RUN_TIME.contains(&parameter.name.as_str()) {
            found.push(Finding::new(
                &path,
                "ReservedParameter",
                "n, i, lease and acquireSeconds are filled when the hold runs: choose another name",
            ));
        }
        if (parameter.type_ == ParameterType::Enum) == parameter.enum_.is_empty() {
            found.push(Finding::new(
                format!("{path}.enum"),
                "EnumValues",
                "a parameter of type enum lists its values under enum, others do not",
            ));
        }
        if let Some(message) =
            parameter.default.as_ref().and_then(|value| template::type_mismatch(parameter, value))
        {
            found.push(Finding::new(format!("{path}.default"), "ParameterType", message));
        }
        for (field, set) in
            [("fromEnv", parameter.from_env.is_some()), ("fromFile", parameter.from_file.is_some())]
        {
            if set {
                found.push(Finding::not_yet(
                    format!("{path}.{field}"),
                    "a value read inside the container",
                    "use a socket that needs no password, and a literal default",
                ));
            }
        }
    }
    found
}

fn placeholders(recipe: &Recipe) -> Vec<Finding> {
    let mut found = Vec::new();
    let parameter = |name: &str| recipe.parameters.iter().find(|parameter| parameter.name == name);
    for (path, argv) in template::arguments(recipe) {
        for name in argv.iter().flat_map(|argument| placeholder::names(argument)) {
            if parameter(name).is_none() {
                found.push(Finding::new(
                    &path,
                    "UnknownParameter",
                    format!(
                        "{{{{{name}}}}} is no parameter of this template; arguments know parameters only"
                    ),
                ));
            }
        }
    }
    let Some(Freeze::Session(held)) = &recipe.freeze else { return found };
    for (field, text) in template::texts(held) {
        let path = format!("spec.freeze.session.{field}");
        let parts = placeholder::parts(text);
        for (at, part) in parts.iter().enumerate() {
            let Part::Placeholder(name) = part else { continue };
            if RUN_TIME.contains(name) {
                if *name == "i" && field != "beat" {
                    found.push(Finding::new(
                        &path,
                        "UnknownParameter",
                        "{{i}} is the number of a beat and known in the beat text only",
                    ));
                }
                continue;
            }
            let Some(parameter) = parameter(name) else {
                found.push(Finding::new(
                    &path,
                    "UnknownParameter",
                    format!("{{{{{name}}}}} is neither a parameter of this template nor one of n, i, lease, acquireSeconds"),
                ));
                continue;
            };
            let quoted = |part: Option<&Part<'_>>, ends: fn(&str) -> bool| matches!(part, Some(Part::Literal(text)) if ends(text));
            let before = at.checked_sub(1).and_then(|before| parts.get(before));
            let is_literal = matches!(parameter.type_, ParameterType::String | ParameterType::Enum);
            if is_literal
                && (quoted(before, |text| text.ends_with(['\'', '"', '`']))
                    || quoted(parts.get(at + 1), |text| text.starts_with(['\'', '"', '`'])))
            {
                found.push(Finding::new(
                    &path,
                    "QuotedParameter",
                    format!("{{{{{name}}}}} becomes a quoted literal by itself: remove the quotes around it"),
                ));
            }
        }
    }
    found
}

fn used_names(recipe: &Recipe) -> BTreeSet<&str> {
    let mut used: BTreeSet<&str> = template::arguments(recipe)
        .into_iter()
        .flat_map(|(_, argv)| argv)
        .flat_map(|argument| placeholder::names(argument))
        .collect();
    if let Some(Freeze::Session(held)) = &recipe.freeze {
        used.extend(template::texts(held).into_iter().flat_map(|(_, text)| placeholder::names(text)));
    }
    used
}

fn not_supported_yet(recipe: &Recipe) -> Vec<Finding> {
    let session = match &recipe.freeze {
        Some(Freeze::Session(session)) => Some(session),
        Some(Freeze::Commands(_) | Freeze::None {}) | None => None,
    };
    let commands = matches!(recipe.freeze, Some(Freeze::Commands(_)));
    let target = recipe.target.as_ref();
    [
        (
            commands,
            "spec.freeze.commands",
            "holding by two commands",
            "use a session, or none with crashSafe",
        ),
        (
            recipe.pre_hook.is_some(),
            "spec.preHook",
            "holding by two commands",
            "use freeze.session, or freeze.none with crashSafe",
        ),
        (
            recipe.post_hook.is_some(),
            "spec.postHook",
            "holding by two commands",
            "use freeze.session, or freeze.none with crashSafe",
        ),
        (
            session.is_some_and(|held| !held.stages.is_empty()),
            "spec.freeze.session.stages",
            "an ordered cut",
            "keep the application on one volume",
        ),
        (
            !recipe.volume_roles.is_empty(),
            "spec.volumeRoles",
            "telling volumes apart",
            "keep the application on one volume",
        ),
        (recipe.stall_probe.is_some(), "spec.stallProbe", "a stall probe", "remove it"),
        (
            recipe.recover.is_some(),
            "spec.recover",
            "a recovery command",
            "use a session: its lock ends with it",
        ),
        (
            target.is_some_and(|target| target.role.is_some()),
            "spec.target.role",
            "choosing pods by role",
            "select one pod by its labels",
        ),
        (
            target.is_some_and(|target| target.pods == PodChoice::All),
            "spec.target.pods",
            "holding every selected pod",
            "write One, and select one pod",
        ),
        (
            !recipe.after_restore.is_empty(),
            "spec.afterRestore",
            "a step after a restore",
            "remove it and describe it in the documentation",
        ),
        (
            !recipe.checks.is_empty(),
            "spec.checks",
            "a check of a restored copy",
            "remove it and describe it in the documentation",
        ),
        (recipe.drill_safe.is_some(), "spec.drillSafe", "a drill", "remove it"),
    ]
    .into_iter()
    .filter(|(set, ..)| *set)
    .map(|(_, path, what, instead)| Finding::not_yet(path, what, instead))
    .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn base() -> Value {
        json!({
            "parameters": [{"name": "user", "default": "root"}, {"name": "label", "default": "x"}],
            "evidence": ["durable"],
            "dataPaths": [],
            "crashSafe": {"source": "manual", "settings": [{"name": "durable", "allowed": ["1"]}]},
            "freeze": {"session": {
                "command": ["/usr/bin/mariadb", "-u", "{{user}}", "-NBrn"],
                "open": "SET wait_timeout={{lease}}, lock_wait_timeout={{acquireSeconds}};\nSELECT 'READY {{n}} gtid=0';\n",
                "freeze": "LOCK;\nSELECT 'EVIDENCE {{n}} durable=1', {{label}};\nSELECT 'FROZEN {{n}} 0 gtid=0';\n",
                "beat": "SELECT 'HELD {{n}} {{i}} gtid=0';\n",
                "thaw": "UNLOCK;\nSELECT 'THAWED {{n}}';\n",
                "canary": "SELECT nothing;\nSELECT 'CANARY {{n}}';\n",
                "lease": {"variable": "wait_timeout", "unit": "s", "duration": "10s"},
                "position": "gtid"
            }}
        })
    }

    fn rules(pointer: &str, value: Value) -> Vec<&'static str> {
        let mut object = base();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[key] = value;
        let typed: Recipe = serde_json::from_value(object).unwrap();
        recipe(&typed, "HookTemplate", "t").into_iter().map(|finding| finding.rule).collect()
    }

    const SESSION: &str = "/freeze/session";

    #[test]
    fn a_sound_session_has_no_findings() {
        let typed: Recipe = serde_json::from_value(base()).unwrap();
        assert_eq!(recipe(&typed, "HookTemplate", "t"), []);
        assert_eq!(advice(&typed), []);
    }

    #[test]
    fn a_client_that_cannot_hold_is_refused() {
        for (argv, rule) in [
            (json!(["mysql", "-n", "-e", "x"]), "OneShotClient"),
            (json!(["mariadb", "-n", "--execute=x"]), "OneShotClient"),
            (json!(["psql", "-v", "ON_ERROR_STOP=1", "-c", "x"]), "OneShotClient"),
            (json!(["psql", "-v", "ON_ERROR_STOP=1", "-f", "x"]), "OneShotClient"),
            (json!(["sh", "-c", "x"]), "OneShotClient"),
            (json!(["mongosh", "--eval", "x"]), "OneShotClient"),
            (json!(["mariadb", "-u", "root"]), "BufferedClient"),
            (json!(["psql", "-X"]), "GoesOnAfterError"),
        ] {
            assert_eq!(rules("/freeze/session/command", argv.clone()), [rule], "{argv}");
        }
        for argv in [json!(["mariadb", "--unbuffered"]), json!(["psql", "-X", "-v", "ON_ERROR_STOP=1"])] {
            assert_eq!(rules("/freeze/session/command", argv.clone()), Vec::<&str>::new(), "{argv}");
        }
    }

    #[test]
    fn texts_say_their_word_and_are_complete() {
        for field in ["open", "freeze", "beat", "thaw", "canary"] {
            let text = base().pointer(&format!("{SESSION}/{field}")).unwrap().as_str().unwrap().to_owned();
            let pointer = format!("{SESSION}/{field}");
            assert_eq!(rules(&pointer, json!(text.replace(" {{n}}", " 7"))), ["WordMissing"], "{field}");
            assert_eq!(rules(&pointer, json!(text.trim_end())), ["UnterminatedText"], "{field}");
            assert_eq!(
                rules(&pointer, json!(text.trim_end().trim_end_matches(';').to_owned() + "\n")),
                ["UnterminatedText"],
                "{field}"
            );
        }
    }

    #[test]
    fn nothing_waits_without_a_bound_and_silence_ends_the_hold() {
        let open = "/freeze/session/open";
        assert_eq!(
            rules(open, json!("SET wait_timeout={{lease}};\nSELECT 'READY {{n}} gtid=0';\n")),
            ["UnboundedWait"]
        );
        assert_eq!(
            rules(open, json!("SET lock_wait_timeout={{acquireSeconds}};\nSELECT 'READY {{n}} gtid=0';\n")),
            ["SessionWithoutLease"]
        );
        assert_eq!(rules("/freeze/session/lease/duration", json!("11s")), ["LeaseOutOfRange"]);
        assert_eq!(rules("/freeze/session/lease/duration", json!("1s")), ["LeaseOutOfRange"]);
        assert_eq!(
            rules("/freeze/session/thaw", json!("SET GLOBAL read_only = 0;\nSELECT 'THAWED {{n}}';\n")),
            ["ThawMakesWritable"]
        );
        assert_eq!(rules("/freeze/session/locks", json!(false)), Vec::<&str>::new());
    }

    #[test]
    fn what_is_claimed_is_printed() {
        assert_eq!(rules("/evidence", json!(["durable", "lsn"])), ["EvidenceNotPrinted"]);
        assert_eq!(rules("/evidence", json!([])), ["EvidenceNotPrinted"]);
        assert_eq!(rules("/dataPaths", json!(["datadir"])), ["EvidenceNotPrinted"]);
        assert_eq!(rules("/freeze/session/position", json!("lsn")), ["KeyNotPrinted"]);
        assert_eq!(rules("/freeze/session/position", json!("commits")), ["UnknownKey", "KeyNotPrinted"]);
        assert_eq!(
            rules("/freeze/session/local", json!({"key": "host", "equals": "PodHostname"})),
            ["KeyNotPrinted"]
        );
    }

    #[test]
    fn placeholders_and_parameters_fit_each_other() {
        let beat = "/freeze/session/beat";
        assert_eq!(rules(beat, json!("SELECT 'HELD {{n}} {{i}} gtid=0', {{who}};\n")), ["UnknownParameter"]);
        assert_eq!(
            rules(beat, json!("SELECT 'HELD {{n}} {{i}} gtid=0', '{{label}}';\n")),
            ["QuotedParameter"]
        );
        assert_eq!(
            rules("/freeze/session/thaw", json!("SELECT 'THAWED {{n}} {{i}}';\n")),
            ["UnknownParameter"]
        );
        assert_eq!(rules("/freeze/session/command", json!(["mariadb", "-n", "{{n}}"])), ["UnknownParameter"]);
        let parameter = |extra: Value| {
            let mut all = base()["parameters"].clone();
            all.as_array_mut().unwrap().push(extra);
            rules("/parameters", all)
        };
        assert_eq!(parameter(json!({"name": "user"})), ["DuplicateName"]);
        assert_eq!(parameter(json!({"name": "lease"})), ["ReservedParameter"]);
        assert_eq!(parameter(json!({"name": "A b"})), ["InvalidName"]);
        assert_eq!(parameter(json!({"name": "e", "type": "enum"})), ["EnumValues"]);
        assert_eq!(parameter(json!({"name": "e", "enum": ["a"]})), ["EnumValues"]);
        assert_eq!(parameter(json!({"name": "k", "type": "integer", "default": "x"})), ["ParameterType"]);
        assert_eq!(parameter(json!({"name": "k", "fromEnv": "X"})), ["NotSupportedYet"]);
        assert_eq!(parameter(json!({"name": "k", "fromFile": "/x"})), ["NotSupportedYet"]);
    }

    #[test]
    fn a_freeze_has_a_thaw() {
        let held = |value: Value| {
            let typed: Recipe = serde_json::from_value(value).unwrap();
            recipe(&typed, "HookTemplate", "t").into_iter().map(|finding| finding.rule).collect::<Vec<_>>()
        };
        assert!(held(json!({"preHook": {"command": ["a"]}})).contains(&"FreezeWithoutThaw"));
        assert!(held(json!({"postHook": {"command": ["a"]}})).contains(&"ThawWithoutFreeze"));
        assert!(
            held(json!({"freeze": {"commands": {"freeze": ["a"], "thaw": []}}}))
                .contains(&"FreezeWithoutThaw")
        );
        assert_eq!(held(json!({})), ["NoFreeze"]);
        assert_eq!(
            held(json!({"freeze": {"none": {}}, "preHook": {"command": ["a"]}})),
            ["FreezeAndHooks", "NotSupportedYet"]
        );
        assert_eq!(held(json!({"freeze": {"none": {}}})), Vec::<&str>::new());
    }

    #[test]
    fn what_is_not_supported_yet_is_refused_and_never_ignored() {
        let command = json!({"command": ["x"]});
        for (pointer, value) in [
            ("/volumeRoles", json!({"wal": command})),
            ("/stallProbe", command.clone()),
            ("/recover", command.clone()),
            ("/target", json!({"role": {"command": ["x"], "accept": ["primary"]}})),
            ("/target", json!({"pods": "All"})),
            ("/afterRestore", json!([{"name": "a", "command": ["x"]}])),
            ("/checks", json!([{"name": "a", "command": ["x"]}])),
            ("/drillSafe", json!("Standalone")),
            ("/freeze/session/stages", json!([{"volumes": {"roles": ["data"]}}])),
        ] {
            assert_eq!(rules(pointer, value), ["NotSupportedYet"], "{pointer}");
        }
    }

    #[test]
    fn advice_names_what_weakens_the_proof() {
        let typed: Recipe =
            serde_json::from_value(json!({"freeze": {"commands": {"freeze": ["a"], "thaw": ["b"]}}}))
                .unwrap();
        assert_eq!(advice(&typed)[0].rule, "ContinuityDeclared");
        let typed: Recipe =
            serde_json::from_value(json!({"freeze": {"none": {}}, "parameters": [{"name": "a"}]})).unwrap();
        assert_eq!(
            advice(&typed).iter().map(|found| found.rule).collect::<Vec<_>>(),
            ["NothingProven", "UnusedParameter"]
        );
    }
}
