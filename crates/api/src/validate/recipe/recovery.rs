//! What a recovery needs to know is told before anything is frozen, and used where it stays a value.

use crate::template::placeholder;
use crate::template::{self, Freeze, Recipe};
use crate::validate::Finding;

const NEEDS: &str = "spec.recover.needs";
const RULE: &str = "RecoveryNotTold";

/// Whether a placeholder of an argv is a value that the recovery gets from the journal.
pub(super) fn is_needed(recipe: &Recipe, path: &str, name: &str) -> bool {
    path.starts_with("spec.recover.")
        && recipe.recover.as_ref().is_some_and(|recover| recover.needs.iter().any(|needed| needed == name))
}

pub(super) fn recovery(recipe: &Recipe) -> Vec<Finding> {
    let Some(recover) = &recipe.recover else { return Vec::new() };
    let mut found = Vec::new();
    for name in &recover.needs {
        let line = format!("EVIDENCE {{{{n}}}} {name}=");
        let told = match &recipe.freeze {
            Some(Freeze::Session(held)) => {
                let texts = template::texts(held);
                let prints = |(_, text): &&(&str, &str)| text.contains(&line);
                texts.iter().filter(prints).map(|(field, _)| *field).collect::<Vec<_>>()
            }
            Some(Freeze::Commands(_) | Freeze::None {}) | None => Vec::new(),
        };
        if told != ["open"] || !recipe.evidence.contains(name) {
            found.push(Finding::new(
                NEEDS,
                RULE,
                format!(
                    "the recovery needs {name}: print {line} in the session's open text and in no other, and name it in \
                     evidence; only what open prints is in the journal before the freeze"
                ),
            ));
        }
        if recipe.parameters.iter().any(|parameter| parameter.name == *name) {
            found.push(Finding::new(NEEDS, RULE, format!("{name} is a parameter too: rename one of them")));
        }
        let uses =
            |argv: &[String]| argv.iter().flat_map(|word| placeholder::names(word)).any(|used| used == name);
        if !uses(&recover.command) {
            found.push(Finding::new(
                NEEDS,
                RULE,
                format!("recover.command does not use {{{{{name}}}}}: use it, or remove it from needs"),
            ));
        }
        for argv in [&recover.command, &recover.probe] {
            let program = argv.first().is_some_and(|word| placeholder::names(word).any(|used| used == name));
            if program {
                found.push(Finding::new(
                    NEEDS,
                    RULE,
                    format!("{{{{{name}}}}} stands where the program is named: what a server prints must not choose one"),
                ));
            }
            let filtered = argv.iter().any(|word| word.contains(&format!("{{{{{name}|")));
            if filtered {
                found.push(Finding::new(
                    NEEDS,
                    RULE,
                    format!(
                        "{{{{{name}}}}} is a plain word (letters, digits and _.:-) and takes no language"
                    ),
                ));
            }
        }
    }
    found
}
