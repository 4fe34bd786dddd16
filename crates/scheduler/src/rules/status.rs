//! What a rule's status says. Pure.

use jiff::Timestamp;
use stillpoint_api::conditions::{self, condition};
use stillpoint_api::rule::{ACCEPTED, ProtectionRuleStatus};

use super::book::View;
use crate::accept::Refusal;

/// Names of policies outside a rule that its status shows.
const VIOLATING_SHOWN: usize = 16;

/// The status of a rule, on top of what it says already.
pub fn status(view: &View, now: Timestamp) -> ProtectionRuleStatus {
    let rule = view.known.rule();
    let before = rule.status.clone().unwrap_or_default();
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let generation = rule.metadata.generation;
    let mut all = before.conditions;
    let accepted = match view.known.findings() {
        [] => condition(ACCEPTED, true, "Accepted", "the rule is in force", generation, seconds(now)),
        findings => {
            let refusal = Refusal::from(findings);
            let message = format!("the rule is not in force: {}", refusal.message);
            condition(ACCEPTED, false, &refusal.reason, &message, generation, seconds(now))
        }
    };
    conditions::set(&mut all, accepted);
    ProtectionRuleStatus {
        conditions: all,
        observed_generation: generation,
        namespaces: number(view.namespaces),
        policies: number(view.policies),
        violations: number(view.violating.len()),
        violating: view.violating.iter().take(VIOLATING_SHOWN).map(ToString::to_string).collect(),
        stamped: number(view.stamped),
    }
}

/// Objects keep whole seconds: what is written must be equal to what is read back.
fn seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}
