//! What is done with a restored copy: whether it may run beside its original, the steps that make it usable, and the checks.

use std::time::Duration;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::ShortDuration;

/// How long a step after a restore may take where the template says nothing.
const STEP_WITHIN: Duration = Duration::from_secs(60);
/// The same for a check, which may read everything.
const CHECK_WITHIN: Duration = Duration::from_secs(300);

/// Whether a restored copy may be started beside the original.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DrillSafe {
    /// It may, alone and without its peers.
    Standalone,
    /// It may not: it would join its original, or act in its name.
    #[default]
    Never,
}

/// A named command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamedCommand {
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Argv, no shell. It succeeds with exit code 0.
    #[schemars(length(min = 1, max = 64), inner(length(max = 32768)))]
    pub command: Vec<String>,
    /// Longest time it may take. Default 60s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<ShortDuration>,
}

/// A check of a restored copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Check {
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Argv, no shell. It passes with exit code 0 and what `expect` says.
    #[schemars(length(min = 1, max = 64), inner(length(max = 32768)))]
    pub command: Vec<String>,
    /// Longest time it may take. Default 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<ShortDuration>,
    /// What its output must be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
}

/// What the output of a check must be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.equals) != has(self.atLeast)").message("exactly one of equals and atLeast"))]
pub struct Expect {
    /// Exactly this text, without surrounding white space; empty: nothing is printed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub equals: Option<String>,
    /// A whole number at least this large.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<i64>,
}

impl NamedCommand {
    /// Longest time it may take.
    pub fn within(&self) -> Duration {
        self.timeout.map_or(STEP_WITHIN, ShortDuration::get)
    }
}

impl Check {
    /// Longest time it may take.
    pub fn within(&self) -> Duration {
        self.timeout.map_or(CHECK_WITHIN, ShortDuration::get)
    }
}

impl Expect {
    /// Why `printed` is not what was expected.
    pub fn unmet(&self, printed: &str) -> Option<String> {
        let said = printed.trim();
        if let Some(wanted) = &self.equals
            && said != wanted.trim()
        {
            let wanted = if wanted.trim().is_empty() { "nothing".to_owned() } else { format!("{wanted:?}") };
            return Some(format!("expected {wanted}, got {:?}", shortened(said)));
        }
        let least = self.at_least?;
        match said.parse::<i64>() {
            Ok(number) if number >= least => None,
            Ok(number) => Some(format!("expected at least {least}, got {number}")),
            Err(_) => Some(format!("expected a whole number, got {:?}", shortened(said))),
        }
    }
}

/// The beginning of what a check printed: what is wrong stands first.
fn shortened(said: &str) -> String {
    const KEPT: usize = 300;
    let mut kept: String = said.chars().take(KEPT).collect();
    if said.chars().count() > KEPT {
        kept.push('…');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_is_compared_without_surrounding_white_space() {
        let equals = |wanted: &str| Expect { equals: Some(wanted.to_owned()), ..Expect::default() };
        assert_eq!(equals("ok").unmet(" ok\n"), None);
        assert_eq!(equals("").unmet("\n"), None);
        assert_eq!(equals("").unmet("t: corrupt").unwrap(), "expected nothing, got \"t: corrupt\"");
        assert_eq!(equals("ok").unmet("").unwrap(), "expected \"ok\", got \"\"");
        let at_least = |least| Expect { at_least: Some(least), ..Expect::default() };
        assert_eq!(at_least(3).unmet("3\n"), None);
        assert_eq!(at_least(3).unmet("2").unwrap(), "expected at least 3, got 2");
        assert_eq!(at_least(3).unmet("three").unwrap(), "expected a whole number, got \"three\"");
    }

    #[test]
    fn a_long_answer_is_cut_between_letters() {
        let long = "ä".repeat(400);
        let why = Expect { equals: Some("ok".to_owned()), ..Expect::default() }.unmet(&long).unwrap();
        assert!(why.ends_with("…\"") && why.chars().filter(|letter| *letter == 'ä').count() == 300, "{why}");
    }
}
