//! Resolves a template for one application: its parameters become arguments and literals, and the result has a
//! digest by which it is known from then on.
//!
//! A value never becomes a statement: in arguments it is text of one argument of an argv (there is no shell), or with
//! `{{name|language}}` a literal; in session texts it is a quoted literal of the session's language, a bare number or a bare
//! boolean. What cannot be said so is refused, and so is a template that has a placeholder where no literal is safe.

use std::collections::BTreeMap;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::language::{Language, literal};
use super::placeholder::{self, Part};
use super::placement::misplaced;
use super::types::type_mismatch;
use super::{Commands, Freeze, Parameter, ParameterType, Recipe, Session};
use crate::validate::Finding;

/// The recipe with every parameter replaced by its value (`parameters`, else its default).
///
/// The result has no parameters left, and `preHook` and `postHook` have become `freeze.commands`; its session texts still hold `{{n}}`, `{{i}}`, `{{lease}}` and
/// `{{acquireSeconds}}`, which are filled when the hold runs.
///
/// # Errors
/// All findings at once, with paths relative to the application (`parameters.user`): `UnknownParameter`,
/// `MissingParameter`, `ParameterType`, `ParameterText`; and with the path `templateRef` what is wrong with the template itself:
/// `QuotedParameter`, `UnquotedParameter`, `UnknownLanguage`.
pub fn substitute(recipe: &Recipe, parameters: &BTreeMap<String, String>) -> Result<Recipe, Vec<Finding>> {
    let mut findings = Vec::new();
    let mut values: BTreeMap<&str, (&Parameter, &str)> = BTreeMap::new();
    for name in parameters.keys().filter(|name| recipe.parameters.iter().all(|known| known.name != **name)) {
        let known: Vec<&str> = recipe.parameters.iter().map(|parameter| parameter.name.as_str()).collect();
        findings.push(Finding::new(
            format!("parameters.{name}"),
            "UnknownParameter",
            format!("the template has no parameter {name:?}; it has {}", listed(&known)),
        ));
    }
    for parameter in &recipe.parameters {
        let path = format!("parameters.{}", parameter.name);
        let Some(value) = parameters.get(&parameter.name).or(parameter.default.as_ref()) else {
            findings.push(Finding::new(
                path,
                "MissingParameter",
                format!(
                    "the template needs parameter {:?} and has no default for it: set it",
                    parameter.name
                ),
            ));
            continue;
        };
        match refused_value(parameter, value, recipe) {
            Some((rule, message)) => findings.push(Finding::new(path, rule, message)),
            None => {
                values.insert(&parameter.name, (parameter, value));
            }
        }
    }
    findings.extend(
        misplaced(recipe).into_iter().map(|wrong| Finding::new("templateRef", wrong.rule, wrong.why)),
    );
    if !findings.is_empty() {
        return Err(findings);
    }
    // Whatever cannot be said was refused above.
    let said = |language: Language, name: &str| {
        values.get(name).and_then(|(parameter, value)| literal(language, parameter, value).ok())
    };
    let argument = |text: &mut String| {
        *text = placeholder::replace(text, |raw| match placeholder::split(raw) {
            (name, None) => values.get(name).map(|(_, value)| (*value).to_owned()),
            (name, Some(language)) => said(Language::named(language)?, name),
        });
    };
    let mut resolved = recipe.clone();
    for argv in arguments_mut(&mut resolved) {
        argv.iter_mut().for_each(argument);
    }
    if let Some(Freeze::Session(session)) = resolved.freeze.as_mut() {
        let language = session.language;
        for text in texts_mut(session) {
            *text = placeholder::replace(text, |name| said(language, name));
        }
    }
    resolved.parameters.clear();
    normalise(&mut resolved);
    Ok(resolved)
}

/// The short form is `freeze.commands`: what does the same has the same digest.
fn normalise(recipe: &mut Recipe) {
    if recipe.freeze.is_none()
        && let (Some(pre), Some(post)) = (recipe.pre_hook.take(), recipe.post_hook.take())
    {
        recipe.freeze = Some(Freeze::Commands(Commands {
            freeze: pre.command,
            thaw: post.command,
            ..Commands::default()
        }));
    }
}

/// SHA-256 over the canonical JSON (sorted keys, no white space) of a resolved recipe, in hex.
///
/// Two templates that do the same have the same digest, wherever and under whatever name they are kept.
pub fn digest(recipe: &Recipe) -> String {
    let mut canonical = String::new();
    // Only a map with keys that are no strings cannot be a JSON value; a recipe has none.
    write_canonical(&serde_json::to_value(recipe).unwrap_or_default(), &mut canonical);
    Sha256::digest(canonical.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where the one argv is that knows `{{blocker}}`.
pub(crate) const END_BLOCKER: &str = "spec.stallProbe.endBlocker";

/// Every argv of a recipe.
pub(crate) fn arguments(recipe: &Recipe) -> Vec<(String, &Vec<String>)> {
    let mut all = Vec::new();
    if let Some(role) = recipe.target.as_ref().and_then(|target| target.role.as_ref()) {
        all.push(("spec.target.role.command".to_owned(), &role.command));
    }
    if let Some(prepare) = &recipe.prepare {
        all.push(("spec.prepare.command".to_owned(), &prepare.command));
    }
    for (name, role) in &recipe.volume_roles {
        all.push((format!("spec.volumeRoles[{name}].command"), &role.command));
    }
    match &recipe.freeze {
        Some(Freeze::Session(session)) => {
            all.push(("spec.freeze.session.command".to_owned(), &session.command))
        }
        Some(Freeze::Commands(commands)) => {
            all.push(("spec.freeze.commands.freeze".to_owned(), &commands.freeze));
            all.push(("spec.freeze.commands.thaw".to_owned(), &commands.thaw));
            all.push(("spec.freeze.commands.probe".to_owned(), &commands.probe));
            all.push(("spec.freeze.commands.barrier".to_owned(), &commands.barrier));
            if let Some(renew) = &commands.renew {
                all.push(("spec.freeze.commands.renew.command".to_owned(), &renew.command));
            }
        }
        Some(Freeze::None {}) | None => {}
    }
    if let Some(hook) = &recipe.pre_hook {
        all.push(("spec.preHook.command".to_owned(), &hook.command));
    }
    if let Some(hook) = &recipe.post_hook {
        all.push(("spec.postHook.command".to_owned(), &hook.command));
    }
    if let Some(probe) = &recipe.stall_probe {
        all.push(("spec.stallProbe.command".to_owned(), &probe.command));
        all.push((END_BLOCKER.to_owned(), &probe.end_blocker));
    }
    if let Some(recover) = &recipe.recover {
        all.push(("spec.recover.command".to_owned(), &recover.command));
        all.push(("spec.recover.probe".to_owned(), &recover.probe));
    }
    for check in &recipe.checks {
        all.push((format!("spec.checks[{}].command", check.name), &check.command));
    }
    for step in &recipe.after_restore {
        all.push((format!("spec.afterRestore[{}].command", step.name), &step.command));
    }
    all
}

fn arguments_mut(recipe: &mut Recipe) -> Vec<&mut Vec<String>> {
    let mut all = Vec::new();
    let role = recipe.target.as_mut().and_then(|target| target.role.as_mut());
    all.extend(role.map(|role| &mut role.command));
    all.extend(recipe.prepare.as_mut().map(|prepare| &mut prepare.command));
    all.extend(recipe.volume_roles.values_mut().map(|role| &mut role.command));
    match recipe.freeze.as_mut() {
        Some(Freeze::Session(session)) => all.push(&mut session.command),
        Some(Freeze::Commands(commands)) => {
            let both = [&mut commands.freeze, &mut commands.thaw];
            all.extend(both.into_iter().chain([&mut commands.probe, &mut commands.barrier]));
            all.extend(commands.renew.as_mut().map(|renew| &mut renew.command));
        }
        Some(Freeze::None {}) | None => {}
    }
    all.extend(recipe.pre_hook.as_mut().map(|hook| &mut hook.command));
    all.extend(recipe.post_hook.as_mut().map(|hook| &mut hook.command));
    all.extend(recipe.stall_probe.iter_mut().flat_map(|probe| [&mut probe.command, &mut probe.end_blocker]));
    all.extend(recipe.recover.iter_mut().flat_map(|recover| [&mut recover.command, &mut recover.probe]));
    all.extend(recipe.checks.iter_mut().map(|check| &mut check.command));
    all.extend(recipe.after_restore.iter_mut().map(|step| &mut step.command));
    all
}

/// The texts of a session, by field name.
pub(crate) fn texts(session: &Session) -> Vec<(&'static str, &str)> {
    let mut all = vec![
        ("open", session.open.as_str()),
        ("freeze", session.freeze.as_str()),
        ("beat", session.beat.as_str()),
        ("thaw", session.thaw.as_str()),
    ];
    all.extend(session.canary.as_deref().map(|canary| ("canary", canary)));
    all.extend(
        session.stages.iter().filter_map(|stage| stage.then.as_deref()).map(|then| ("stages.then", then)),
    );
    all
}

fn texts_mut(session: &mut Session) -> Vec<&mut String> {
    let mut all = vec![&mut session.open, &mut session.freeze, &mut session.beat, &mut session.thaw];
    all.extend(session.canary.as_mut());
    all.extend(session.stages.iter_mut().filter_map(|stage| stage.then.as_mut()));
    all
}

fn refused_value(parameter: &Parameter, value: &str, recipe: &Recipe) -> Option<(&'static str, String)> {
    if let Some(message) = type_mismatch(parameter, value) {
        return Some(("ParameterType", message));
    }
    let name = &parameter.name;
    if value.chars().any(char::is_control) {
        return Some(("ParameterText", format!("parameter {name:?} has a control character: remove it")));
    }
    if value.contains("{{") {
        return Some((
            "ParameterText",
            format!("parameter {name:?} contains {{{{, which begins a placeholder"),
        ));
    }
    if let Some(why) =
        languages(recipe, name).into_iter().find_map(|language| literal(language, parameter, value).err())
    {
        return Some(("ParameterText", format!("parameter {name:?} {why}")));
    }
    let begins_an_argument = arguments(recipe).iter().flat_map(|(_, argv)| argv.iter()).any(|argument| {
        matches!(placeholder::parts(argument).first(), Some(Part::Placeholder(first)) if placeholder::split(first).0 == name)
    });
    if begins_an_argument
        && value.starts_with('-')
        && !matches!(parameter.type_, ParameterType::Integer | ParameterType::Script)
    {
        return Some((
            "ParameterText",
            format!(
                "parameter {name:?} begins with \"-\" and stands at the start of an argument, where it would be an option"
            ),
        ));
    }
    None
}

/// The languages in which a parameter becomes a literal.
fn languages(recipe: &Recipe, name: &str) -> Vec<Language> {
    let mut all = Vec::new();
    for word in arguments(recipe).into_iter().flat_map(|(_, argv)| argv) {
        let parts = placeholder::parts(word);
        all.extend(parts.iter().filter_map(|part| match part {
            Part::Placeholder(raw) => match placeholder::split(raw) {
                (used, Some(language)) if used == name => Language::named(language),
                _ => None,
            },
            Part::Literal(_) => None,
        }));
    }
    if let Some(Freeze::Session(session)) = &recipe.freeze
        && texts(session).iter().any(|(_, text)| placeholder::names(text).any(|used| used == name))
    {
        all.push(session.language);
    }
    all
}

pub(super) fn listed(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            // Sorted here: whether the map is depends on a feature of serde_json that any dependency may switch on.
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            out.push('{');
            for (index, (key, value)) in sorted.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                write_canonical(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            out.push_str(&value.to_string())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::template::Lease;

    fn recipe() -> Recipe {
        let parameter = |name: &str, type_, default: Option<&str>| Parameter {
            name: name.into(),
            type_,
            default: default.map(Into::into),
            ..Parameter::default()
        };
        Recipe {
            parameters: vec![
                parameter("user", ParameterType::String, Some("postgres")),
                parameter("label", ParameterType::String, None),
                parameter("limit", ParameterType::Integer, Some("5")),
            ],
            freeze: Some(Freeze::Session(Box::new(Session {
                command: vec!["client".into(), "-U".into(), "{{user}}".into(), "--opt=x{{user}}".into()],
                open: "SET t = {{lease}}, l = {{limit}}; SELECT {{label}}, 'READY {{n}}';\n".into(),
                freeze: "SELECT {{label}};\n".into(),
                beat: "SELECT '{{i}}';\n".into(),
                thaw: "SELECT 1;\n".into(),
                lease: Lease::default(),
                ..Session::default()
            }))),
            ..Recipe::default()
        }
    }

    fn set(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn session(recipe: &Recipe) -> &Session {
        match recipe.freeze.as_ref().unwrap() {
            Freeze::Session(session) => session,
            Freeze::Commands(_) | Freeze::None {} => panic!("a session went in"),
        }
    }

    #[test]
    fn arguments_take_the_value_and_texts_a_quoted_literal() {
        let resolved = substitute(&recipe(), &set(&[("label", "it's"), ("user", "app user")])).unwrap();
        let session = session(&resolved);
        assert_eq!(session.command, ["client", "-U", "app user", "--opt=xapp user"]);
        assert_eq!(session.open, "SET t = {{lease}}, l = 5; SELECT 'it''s', 'READY {{n}}';\n");
        assert!(resolved.parameters.is_empty());
    }

    #[test]
    fn every_fault_is_found_at_once() {
        let findings = substitute(&recipe(), &set(&[("limit", "many"), ("nobody", "x")])).unwrap_err();
        let rules: Vec<_> = findings.iter().map(|finding| (finding.path.as_str(), finding.rule)).collect();
        assert_eq!(
            rules,
            [
                ("parameters.nobody", "UnknownParameter"),
                ("parameters.label", "MissingParameter"),
                ("parameters.limit", "ParameterType"),
            ]
        );
    }

    #[test]
    fn a_value_never_becomes_a_statement_a_placeholder_or_an_option() {
        for (name, value) in [
            ("label", "a\nb"),
            ("label", "a\0"),
            ("label", "\\'; DROP TABLE x; --"),
            ("label", "{{user}}"),
            ("user", "-c"),
            ("user", "a\u{1b}b"),
        ] {
            let mut parameters = set(&[("label", "x")]);
            parameters.insert(name.into(), value.into());
            let findings = substitute(&recipe(), &parameters).unwrap_err();
            assert_eq!(findings[0].rule, "ParameterText", "{name}={value:?}");
        }
        let quoted = substitute(&recipe(), &set(&[("label", "'; DROP TABLE x; --")])).unwrap();
        assert_eq!(session(&quoted).freeze, "SELECT '''; DROP TABLE x; --';\n");
    }

    #[test]
    fn the_digest_follows_the_values_and_nothing_else() {
        let one = substitute(&recipe(), &set(&[("label", "a")])).unwrap();
        let again =
            substitute(&recipe(), &set(&[("label", "a"), ("user", "postgres"), ("limit", "5")])).unwrap();
        let other = substitute(&recipe(), &set(&[("label", "b")])).unwrap();
        assert_eq!(digest(&one), digest(&again));
        assert_ne!(digest(&one), digest(&other));
        assert_eq!(digest(&one).len(), 64);
    }

    #[test]
    fn the_short_form_of_two_commands_has_the_digest_of_the_long_one() {
        let short: Recipe = serde_json::from_value(serde_json::json!({
            "parameters": [{"name": "path"}],
            "preHook": {"command": ["lock", "{{path}}"]}, "postHook": {"command": ["unlock"]}
        }))
        .unwrap();
        let long: Recipe = serde_json::from_value(serde_json::json!({
            "freeze": {"commands": {"freeze": ["lock", "/data"], "thaw": ["unlock"]}}
        }))
        .unwrap();
        let short = substitute(&short, &set(&[("path", "/data")])).unwrap();
        assert_eq!(short.freeze, long.freeze);
        assert_eq!(digest(&short), digest(&substitute(&long, &set(&[])).unwrap()));
    }

    #[test]
    fn canonical_json_is_sorted_and_tight() {
        let mut out = String::new();
        write_canonical(&serde_json::json!({"b": [1, "x\""], "a": {"d": null, "c": true}}), &mut out);
        assert_eq!(out, r#"{"a":{"c":true,"d":null},"b":[1,"x\""]}"#);
    }
}
