//! What is run in a restored copy: bounded, told apart by name, and with something to fail on.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::template::Recipe;
use crate::validate::Finding;

/// What one command in a restored copy may take. A check that reads a large database takes hours.
const WITHIN: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

pub(super) fn restored(recipe: &Recipe) -> Vec<Finding> {
    let steps = recipe.after_restore.iter().map(|step| ("afterRestore", &step.name, step.within()));
    let checks = recipe.checks.iter().map(|check| ("checks", &check.name, check.within()));
    let mut found = Vec::new();
    let mut names = BTreeSet::new();
    for (field, name, within) in steps.chain(checks) {
        if !WITHIN.contains(&within) {
            found.push(Finding::new(
                format!("spec.{field}[{name}].timeout"),
                "UnboundedWait",
                "what is run in a restored copy may take 1s to 24h",
            ));
        }
        if !names.insert(name) {
            found.push(Finding::new(
                format!("spec.{field}[{name}].name"),
                "DuplicateName",
                format!("two steps or checks are called {name}: their results could not be told apart"),
            ));
        }
    }
    for check in &recipe.checks {
        let Some(expect) = &check.expect else { continue };
        if expect.equals.is_some() == expect.at_least.is_some() {
            found.push(Finding::new(
                format!("spec.checks[{}].expect", check.name),
                "ExpectOne",
                "say either equals or atLeast: with none the exit code alone decides, so leave expect out",
            ));
        }
    }
    found
}
