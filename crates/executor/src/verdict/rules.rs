//! The ten rules (docs/design/freeze.md §4), each a pure check of one application's evidence.
//!
//! Rules 1, 2, 3, 5 and 10 speak of a lock. An application without one (an observer, or nothing held) is
//! `Application` by rules 4 and 6 to 9 and its template's `crashSafe`; for it they hold as *not needed*.
//!
//! What one step of the machine receives and what it then sends carry the same instant: the reception came first.
//! So "before" means "not later" wherever a reception is compared with a send.

mod atomicity;
mod continuity;
mod coverage;
mod durability;
mod order;
mod points;

use stillpoint_api::evidence::{HoldEvidence, Offset};

pub(crate) use self::atomicity::torn_pod;
pub(super) use self::atomicity::{all_cut, all_cuts_atomic, are_one_cut, cut_at_one_instant};
pub(super) use self::continuity::continuity;
pub(super) use self::coverage::cut_volume_is_the_mounted_one;
pub(crate) use self::coverage::{lies_on, local_gap, path_gap};
pub(crate) use self::points::driver_cut_time;
use super::Case;

/// One rule.
pub(super) struct Rule {
    pub(super) number: u8,
    pub(super) check: fn(&Case<'_>) -> Checked,
}

/// The rules in order.
pub(super) const RULES: [Rule; 10] = [
    Rule { number: 1, check: order::frozen_before_the_first_post },
    Rule { number: 2, check: order::cut_before_the_first_thaw },
    Rule { number: 3, check: order::closing_proof },
    Rule { number: 4, check: coverage::the_hold_covers_the_cut },
    Rule { number: 5, check: order::within_the_budget },
    Rule { number: 6, check: points::cut_times_agree },
    Rule { number: 7, check: points::ready_and_bound },
    Rule { number: 8, check: atomicity::atomic_for_this_application },
    Rule { number: 9, check: durability::durable },
    Rule { number: 10, check: continuity::continuous },
];

/// What a rule found.
pub(super) struct Checked {
    pub(super) holds: bool,
    pub(super) finding: String,
    /// A contradiction: the point is worth nothing, whatever else holds.
    pub(super) void: bool,
    pub(super) warnings: Vec<String>,
}

impl Checked {
    fn proved(finding: impl Into<String>) -> Self {
        Self { holds: true, finding: finding.into(), void: false, warnings: Vec::new() }
    }

    fn missing(finding: impl Into<String>) -> Self {
        Self { holds: false, finding: finding.into(), void: false, warnings: Vec::new() }
    }

    fn contradiction(finding: impl Into<String>) -> Self {
        Self { holds: false, finding: finding.into(), void: true, warnings: Vec::new() }
    }

    fn warn(mut self, warnings: Vec<String>) -> Self {
        self.warnings = warnings;
        self
    }
}

const NOT_NEEDED: &str = "not needed: nothing is locked";

fn pod(hold: &HoldEvidence) -> String {
    format!("{}/{}", hold.pod_name, hold.container)
}

fn millis(offset: Offset) -> String {
    format!("{:.1} ms", offset.0 as f64 / 1e3)
}

fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}
