//! What an ordered cut must be: roles that a command tells, each in one stage, and a text that leads to every next stage.

use std::collections::BTreeSet;

use crate::template::{Recipe, Session};
use crate::validate::{Finding, is_dns_label};

/// Roles of volumes: each has a name and a command.
pub(super) fn volume_roles(recipe: &Recipe) -> Vec<Finding> {
    let mut found = Vec::new();
    for (name, role) in &recipe.volume_roles {
        let path = format!("spec.volumeRoles[{name}]");
        if !is_dns_label(name) {
            found.push(Finding::new(
                &path,
                "InvalidName",
                "a role's name is at most 63 of a-z, 0-9 and -, beginning and ending with a letter or digit",
            ));
        }
        if role.command.first().is_none_or(String::is_empty) {
            found.push(Finding::new(
                format!("{path}.command"),
                "NoCommand",
                "nothing tells where this role's data lies: write the argv of a command that prints its paths",
            ));
        }
    }
    found
}

/// Stages of a session.
pub(super) fn stages(recipe: &Recipe, held: &Session) -> Vec<Finding> {
    const PATH: &str = "spec.freeze.session.stages";
    let mut found = Vec::new();
    let stages = &held.stages;
    if stages.is_empty() {
        return found;
    }
    if stages.len() == 1 {
        found.push(Finding::new(
            PATH,
            "OneStage",
            "one stage is no order: add the volumes that are cut after it, or remove stages",
        ));
    }
    let mut placed = BTreeSet::new();
    for role in stages.iter().flat_map(|stage| &stage.volumes.roles) {
        if !recipe.volume_roles.contains_key(role) {
            found.push(Finding::new(
                PATH,
                "UnknownRole",
                format!("role {role:?} is not in spec.volumeRoles, so nothing tells its volumes"),
            ));
        }
        if !placed.insert(role) {
            found.push(Finding::new(
                PATH,
                "DuplicateName",
                format!("role {role:?} is named twice, and a volume is cut once: keep one"),
            ));
        }
    }
    for role in recipe.volume_roles.keys().filter(|role| !placed.contains(role)) {
        found.push(Finding::new(
            PATH,
            "RoleWithoutStage",
            format!("role {role:?} is in no stage: say when its volumes are cut"),
        ));
    }
    for (index, stage) in stages.iter().enumerate() {
        let path = format!("{PATH}[{index}].then");
        let last = index + 1 == stages.len();
        match (&stage.then, last) {
            (None, true) => {}
            (Some(_), true) => found.push(Finding::new(
                path,
                "ThenAfterLastStage",
                "nothing is cut after the last stage: what ends the hold belongs into thaw",
            )),
            (then, false) => {
                let word = format!("FROZEN {{{{n}}}} {}", index + 1);
                if !then.as_deref().unwrap_or_default().contains(&word) {
                    found.push(Finding::new(
                        path,
                        "WordMissing",
                        format!("the text that leads to the next stage prints {word}: add it as its last statement"),
                    ));
                }
            }
        }
    }
    found
}
