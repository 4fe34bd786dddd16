//! What a hook template must be: it ends what it begins, says what it prints, and waits for nothing without a bound.

mod barrier;
mod recovery;
mod restored;
mod session;
mod stages;
#[cfg(test)]
mod tests;
mod traps;

use std::collections::BTreeSet;
use std::time::Duration;

use super::Finding;
use crate::template::placeholder::{self, BLOCKER, RUN_TIME};
use crate::template::{self, DataTime, Freeze, ParameterType, Recipe};
use barrier::barrier;
use recovery::{is_needed, recovery};
use restored::restored;
use session::{printed, session};
use stages::{stages, volume_roles};
use traps::traps;

/// What a prepare step may take.
const PREPARE: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// How long a state that ends by itself may last: at least two beats (docs/design/freeze.md §2.3) and the commands between
/// them, at most the longest lease (§3).
const RENEWED: std::ops::RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(10);

/// Everything that keeps a template from being used. `kind` and `name` appear in the messages.
pub fn recipe(recipe: &Recipe, kind: &str, name: &str) -> Vec<Finding> {
    let mut found = how_it_is_held(recipe);
    if let Some(Freeze::Session(held)) = &recipe.freeze {
        found.extend(session(held));
        found.extend(printed(recipe, held));
        found.extend(stages(recipe, held));
    }
    found.extend(volume_roles(recipe));
    found.extend(commands_print_nothing(recipe));
    found.extend(barrier(recipe));
    found.extend(traps(recipe));
    found.extend(data_time(recipe));
    found.extend(renewal(recipe));
    found.extend(end_blocker(recipe));
    found.extend(recovery(recipe));
    found.extend(parameters(recipe));
    found.extend(placeholders(recipe));
    found.extend(placement(recipe));
    found.extend(messages(recipe));
    found.extend(role(recipe));
    found.extend(restored(recipe));
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
        Some(Freeze::Commands(commands)) => {
            if commands.probe.is_empty() {
                found.push(Finding::new(
                    "spec.freeze.commands.probe",
                    "ContinuityDeclared",
                    if commands.allow_without_deadline {
                        "without a probe nothing shows that it was frozen: a backup with this template is at most Crash"
                    } else {
                        "without a probe the frozen state is never seen: the grade is Declared"
                    },
                ));
            }
            if commands.allow_without_deadline && recipe.recover.is_none() {
                found.push(Finding::new(
                    "spec.recover",
                    "FreezeWithoutDeadline",
                    "nothing in the pod ends this freeze when the controller is gone: write recover, or remove allowWithoutDeadline where the container has a shell",
                ));
            }
        }
        None if recipe.pre_hook.is_some() => found.push(Finding::new(
            "spec.preHook",
            "ContinuityDeclared",
            "two commands without a probe: the frozen state is never seen, and the grade is Declared; freeze.commands takes a probe",
        )),
        Some(Freeze::None {}) | None => {}
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

fn role(recipe: &Recipe) -> Vec<Finding> {
    let Some(rule) = recipe.target.as_ref().and_then(|target| target.role.as_ref()) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    if rule.command.first().is_none_or(String::is_empty) {
        found.push(Finding::new(
            "spec.target.role.command",
            "NoCommand",
            "nothing prints the role: write the argv of a command that does",
        ));
    }
    let words = |role: &String| !role.is_empty() && role.trim() == role && !role.contains('\n');
    if rule.accept.is_empty() || !rule.accept.iter().all(words) {
        found.push(Finding::new(
            "spec.target.role.accept",
            "NoRole",
            "name the roles that may be held as the command prints them, the preferred one first",
        ));
    }
    let mut seen = BTreeSet::new();
    if rule.accept.iter().any(|role| !seen.insert(role)) {
        found.push(Finding::new(
            "spec.target.role.accept",
            "DuplicateName",
            "a role is named twice: the first place is its preference, remove the other",
        ));
    }
    found
}

/// Two commands: what they print is dropped, so that nothing they print can be asked for.
fn commands_print_nothing(recipe: &Recipe) -> Vec<Finding> {
    if !matches!(recipe.freeze, Some(Freeze::Commands(_))) && recipe.pre_hook.is_none() {
        return Vec::new();
    }
    // What a barrier makes up for need not be known.
    let settings = recipe.crash_safe.as_ref().is_some_and(|safe| {
        safe.settings.iter().any(|setting| !setting.or_barrier || setting.when.is_some())
    });
    [
        (!recipe.evidence.is_empty(), "spec.evidence"),
        (!recipe.data_paths.is_empty(), "spec.dataPaths"),
        (settings, "spec.crashSafe.settings"),
    ]
    .into_iter()
    .filter(|(asked, _)| *asked)
    .map(|(_, path)| {
        Finding::new(
            path,
            "EvidenceNotPrinted",
            "two commands print no EVIDENCE lines, so that this is never known: use a session, or remove it",
        )
    })
    .collect()
}

/// A point that stands for prepare has one.
fn data_time(recipe: &Recipe) -> Vec<Finding> {
    if recipe.data_time == DataTime::Cut || recipe.prepare.is_some() {
        return Vec::new();
    }
    vec![Finding::new(
        "spec.dataTime",
        "NothingPrepared",
        "the point stands for what prepare made durable, and there is no prepare: write it, or remove dataTime",
    )]
}

/// A state that ends by itself is renewed by the process that holds.
fn renewal(recipe: &Recipe) -> Vec<Finding> {
    const PATH: &str = "spec.freeze.commands.renew";
    let Some(Freeze::Commands(commands)) = &recipe.freeze else { return Vec::new() };
    let Some(renew) = &commands.renew else { return Vec::new() };
    let mut found = Vec::new();
    if !RENEWED.contains(&renew.lease.get()) {
        found.push(Finding::new(
            format!("{PATH}.lease"),
            "LeaseOutOfRange",
            "a state that ends by itself lasts 5s to 10s: it is renewed every 2s, and must not outlast a silent controller by more",
        ));
    }
    if commands.allow_without_deadline {
        found.push(Finding::new(
            PATH,
            "RenewWithoutHolder",
            "two separate execs keep no time between them: remove allowWithoutDeadline, or renew",
        ));
    }
    found
}

/// The command that ends a statement names it, and is one that does something.
fn end_blocker(recipe: &Recipe) -> Vec<Finding> {
    let Some(probe) = recipe.stall_probe.as_ref().filter(|probe| !probe.end_blocker.is_empty()) else {
        return Vec::new();
    };
    let named = probe.end_blocker.iter().flat_map(|argument| placeholder::names(argument));
    if probe
        .end_blocker
        .first()
        .is_some_and(|program| placeholder::names(program).any(|name| name == BLOCKER))
    {
        return vec![Finding::new(
            template::END_BLOCKER,
            "BlockerIsNoProgram",
            "{{blocker}} stands where the program is named: what a server prints must not choose a program",
        )];
    }
    if named.filter(|name| *name == BLOCKER).count() == 0 {
        return vec![Finding::new(
            template::END_BLOCKER,
            "BlockerNotNamed",
            "the command does not say which statement it ends: use {{blocker}}, the ID that the stall probe prints",
        )];
    }
    Vec::new()
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
        if RUN_TIME.contains(&parameter.name.as_str()) || parameter.name == BLOCKER {
            found.push(Finding::new(
                &path,
                "ReservedParameter",
                "n, i, lease, acquireSeconds and blocker are filled when the hold runs: choose another name",
            ));
        }
        if (parameter.type_ == ParameterType::Enum) == parameter.enum_.is_empty() {
            found.push(Finding::new(
                format!("{path}.enum"),
                "EnumValues",
                "a parameter of type enum lists its values under enum, others do not",
            ));
        }
        let bounded = parameter.min.is_some() || parameter.max.is_some();
        let empty = matches!((parameter.min, parameter.max), (Some(least), Some(most)) if least > most);
        if bounded && parameter.type_ != ParameterType::Integer || empty {
            found.push(Finding::new(
                &path,
                "IntegerRange",
                "min and max are for a parameter of type integer, and min is not above max",
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
            let blocker = name == BLOCKER && path == template::END_BLOCKER;
            if parameter(name).is_none() && !blocker && !is_needed(recipe, &path, name) {
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
        for name in placeholder::names(text) {
            if RUN_TIME.contains(&name) {
                if name == "i" && field != "beat" {
                    found.push(Finding::new(
                        &path,
                        "UnknownParameter",
                        "{{i}} is the number of a beat and known in the beat text only",
                    ));
                }
                continue;
            }
            if parameter(name).is_none() {
                found.push(Finding::new(
                    &path,
                    "UnknownParameter",
                    format!("{{{{{name}}}}} is neither a parameter of this template nor one of n, i, lease, acquireSeconds"),
                ));
            }
        }
    }
    found
}

/// Values that would not stay values, where they are put.
fn placement(recipe: &Recipe) -> Vec<Finding> {
    let all = template::misplaced(recipe).into_iter();
    all.map(|wrong| Finding::new(wrong.path, wrong.rule, wrong.why)).collect()
}

/// What a client says is known by words of its own.
fn messages(recipe: &Recipe) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, message) in recipe.messages.iter().enumerate() {
        let path = format!("spec.messages[{index}]");
        if message.contains.trim().len() < 4 {
            found.push(Finding::new(
                format!("{path}.contains"),
                "MessageTooShort",
                "three letters stand in any text: give at least four characters of what the client says, its error's number is best",
            ));
        }
        if message.says.trim().is_empty() || message.says.contains("{{") {
            found.push(Finding::new(
                format!("{path}.says"),
                "MessageWithoutWords",
                "it is shown as it is: write cause and cure in words, without parameters",
            ));
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
