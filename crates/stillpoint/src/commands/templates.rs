//! `stillpoint templates`: what the library has, how each template was proven and with which versions.

use std::fmt::Write as _;

use serde::Serialize;
use stillpoint_api::template::restored::{DrillSafe, Expect};
use stillpoint_api::template::{DataTime, Freeze, Layout, Proof, Recipe};
use stillpoint_api::{ClusterHookTemplate, HookTemplate};

use super::lint::{self, LIBRARY, documents};
use crate::cli::TemplatesArgs;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format};

/// One template; the JSON form is a contract with scripts.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    name: String,
    description: String,
    proof: Proof,
    versions: Vec<String>,
    /// `commits stop`, `nobody waits`…
    hold: &'static str,
    images: Vec<String>,
    #[serde(skip)]
    recipe: Recipe,
}

/// Lists templates.
///
/// # Errors
/// A file cannot be read.
pub fn run(args: &TemplatesArgs) -> Result<Exit, Failure> {
    let mut texts: Vec<String> = args.file.iter().map(|file| lint::read(file)).collect::<Result<_, _>>()?;
    if texts.is_empty() {
        texts = LIBRARY.iter().map(|(_, text)| (*text).to_owned()).collect();
    }
    let mut all: Vec<Listed> = texts.iter().flat_map(|text| templates(text)).collect();
    all.sort_by(|one, other| one.name.cmp(&other.name));
    if let Some(name) = &args.name {
        let known: Vec<String> = all.iter().map(|one| one.name.clone()).collect();
        all.retain(|one| one.name == *name);
        if all.is_empty() {
            return Err(Failure::new(
                format!("there is no template {name}"),
                format!("known are {}", known.join(", ")),
                "correct the name, or name its file with --file",
            ));
        }
    }
    match (args.output, &args.name) {
        (Format::Json, _) => output::print_json(&all)?,
        (Format::Text, Some(_)) => output::print(&all.iter().map(in_full).collect::<String>())?,
        (Format::Text, None) => output::print(&list(&all))?,
    }
    Ok(Exit::Success)
}

fn templates(text: &str) -> Vec<Listed> {
    let read = documents::parse(text);
    let of = |value: &serde_json::Value| {
        let cluster = lint::typed::<ClusterHookTemplate>(value, "ClusterHookTemplate");
        let cluster = cluster.map(|template| (template.metadata.name, template.spec.0));
        let own = lint::typed::<HookTemplate>(value, "HookTemplate");
        let (name, recipe) = cluster.or(own.map(|template| (template.metadata.name, template.spec.0)))?;
        Some(Listed {
            name: name.unwrap_or_default(),
            description: recipe.description.clone().unwrap_or_default(),
            proof: recipe.proof.unwrap_or_default(),
            versions: recipe.versions.clone(),
            hold: held(&recipe),
            images: recipe.detect.clone().unwrap_or_default().images,
            recipe,
        })
    };
    read.values.iter().filter_map(of).collect()
}

/// What who writes feels.
fn held(recipe: &Recipe) -> &'static str {
    match &recipe.freeze {
        Some(Freeze::Session(session)) if session.locks => "session; writers wait",
        Some(Freeze::Session(_)) => "observer; nobody waits",
        Some(Freeze::Commands(_)) => "commands; writers wait",
        Some(Freeze::None {}) => "none; nobody waits",
        // The short form of two commands.
        None => "commands; writers wait",
    }
}

const fn proof(proof: Proof) -> &'static str {
    match proof {
        Proof::Real => "real",
        Proof::Engine => "engine",
        Proof::Emulated => "emulated",
        Proof::None => "none",
    }
}

fn list(all: &[Listed]) -> String {
    let mut rows = vec![["NAME", "PROOF", "VERSIONS", "HOLD", "DESCRIPTION"].map(str::to_owned).to_vec()];
    rows.extend(all.iter().map(|one| {
        let versions = if one.versions.is_empty() { "-".to_owned() } else { one.versions.join(", ") };
        vec![
            one.name.clone(),
            proof(one.proof).to_owned(),
            versions,
            one.hold.to_owned(),
            one.description.clone(),
        ]
    }));
    output::table(&rows)
}

fn in_full(one: &Listed) -> String {
    let mut text = format!("{}: {}\n\n", one.name, one.description);
    let recipe = &one.recipe;
    let versions =
        if one.versions.is_empty() { String::new() } else { format!(" ({})", one.versions.join(", ")) };
    let layout = match recipe.layout {
        Layout::OneVolume => "one volume, or one write-ordered group",
        Layout::AnyUnderLock => "any number of volumes under its lock",
    };
    let time = match recipe.data_time {
        DataTime::Cut => "the cut",
        DataTime::Prepare => "the beginning of prepare",
    };
    let found = if one.images.is_empty() { "by its name only".to_owned() } else { one.images.join(", ") };
    let mut rows: Vec<(&str, String)> = vec![
        ("proof", format!("{}{versions}", proof(one.proof))),
        ("hold", one.hold.to_owned()),
        ("layout", layout.to_owned()),
        ("point of", time.to_owned()),
        ("images", found),
    ];
    if let Some(safe) = &recipe.crash_safe {
        rows.push(("claim", safe.source.clone()));
        let settings = safe.settings.iter().map(|setting| {
            let barrier = if setting.or_barrier { " or a barrier" } else { "" };
            format!("{}={}{barrier}", setting.name, setting.allowed.join("|"))
        });
        let settings = settings.collect::<Vec<_>>().join(", ");
        rows.push(("needs", if settings.is_empty() { "no setting".to_owned() } else { settings }));
    } else {
        rows.push(("claim", "none: at most Crash".to_owned()));
    }
    rows.push((
        "drill",
        match recipe.drill_safe.unwrap_or_default() {
            DrillSafe::Standalone => "a restored copy may run beside the original",
            DrillSafe::Never => "a restored copy must not reach the original or its peers",
        }
        .to_owned(),
    ));
    for (name, value) in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<9} {value}");
    }
    if !recipe.parameters.is_empty() {
        text.push_str("\nPARAMETERS\n");
    }
    for parameter in &recipe.parameters {
        let default =
            parameter.default.as_ref().map_or_else(|| "must be set".to_owned(), |value| format!("{value:?}"));
        let about = parameter.description.as_deref().unwrap_or_default();
        let _ = writeln!(text, "  {:<17} {default}  {about}", parameter.name);
    }
    let steps = recipe.after_restore.iter().map(|step| ("step", &step.name, step.within(), None));
    let checks =
        recipe.checks.iter().map(|check| ("check", &check.name, check.within(), check.expect.as_ref()));
    let all: Vec<_> = steps.chain(checks).collect();
    if !all.is_empty() {
        text.push_str("\nIN A RESTORED COPY (stillpoint restore check POD)\n");
    }
    for (kind, name, within, expect) in all {
        let expected = expect.map_or_else(|| "ends with 0".to_owned(), expected);
        let _ = writeln!(text, "  {kind:<5} {name:<17} {expected}, within {}", output::length(within));
    }
    text
}

fn expected(expect: &Expect) -> String {
    match (&expect.equals, expect.at_least) {
        (Some(text), _) if text.is_empty() => "prints nothing".to_owned(),
        (Some(text), _) => format!("prints {text:?}"),
        (None, Some(least)) => format!("prints at least {least}"),
        (None, None) => "ends with 0".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_library_is_listed_with_its_proof() {
        let all: Vec<Listed> = LIBRARY.iter().flat_map(|(_, text)| templates(text)).collect();
        assert_eq!(all.len(), LIBRARY.len());
        for one in &all {
            assert!(!one.description.is_empty(), "{}", one.name);
            assert_eq!(
                one.versions.is_empty(),
                matches!(one.proof, Proof::None | Proof::Emulated),
                "{}",
                one.name
            );
        }
    }

    #[test]
    fn every_file_of_the_library_says_what_is_done_with_a_restored_copy() {
        for one in LIBRARY.iter().flat_map(|(_, text)| templates(text)) {
            assert!(one.recipe.drill_safe.is_some(), "{}", one.name);
            // What would show that a copy is whole is not known of an application that nobody knows.
            assert_eq!(one.recipe.checks.is_empty(), one.name == "generic", "{}", one.name);
            if !one.recipe.checks.is_empty() {
                assert!(in_full(&one).contains("IN A RESTORED COPY"), "{}", one.name);
            }
        }
    }
}
