//! What a rule's status says. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use stillpoint_api::conditions::{self, condition};
use stillpoint_api::rule::{ACCEPTED, ORPHANS_PAUSED, OrphansStatus, ProtectionRuleStatus};

use super::book::View;
use crate::accept::Refusal;

/// Condition of a rule with a default: every workload that it is for has its policy.
pub const STAMPED: &str = "Stamped";

/// Problems that the condition tells.
const PROBLEMS_SHOWN: usize = 5;

/// Names of policies outside a rule that its status shows.
const VIOLATING_SHOWN: usize = 16;

/// The status of a rule, on top of what it says already.
///
/// `problems` are what keeps its default from being stamped somewhere, as `namespace: why`.
pub fn status(view: &View, problems: &[String], now: Timestamp) -> ProtectionRuleStatus {
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
    match (view.known.in_force() && view.known.spec().default.is_some(), problems) {
        (false, _) => all.retain(|known| known.type_ != STAMPED),
        (true, []) => {
            let message = "every workload that the default is for has its policy";
            conditions::set(&mut all, condition(STAMPED, true, STAMPED, message, generation, seconds(now)));
        }
        (true, problems) => {
            let first = problems.iter().take(PROBLEMS_SHOWN).cloned().collect::<Vec<_>>().join("; ");
            let message = format!("not stamped in {} namespace(s): {first}", problems.len());
            conditions::set(
                &mut all,
                condition(STAMPED, false, "NotStamped", &message, generation, seconds(now)),
            );
        }
    }
    let asks = view.known.in_force() && view.known.spec().orphans.is_some();
    let paused = view.paused.filter(|_| asks && !rule.deletions_agreed());
    match paused {
        Some(pause) => {
            let message = pause.message(generation.unwrap_or_default());
            let paused =
                condition(ORPHANS_PAUSED, true, "TooManyPoliciesGone", &message, generation, seconds(now));
            conditions::set(&mut all, paused);
        }
        None => all.retain(|known| known.type_ != ORPHANS_PAUSED),
    }
    let orphans = asks.then(|| OrphansStatus {
        backups: number(view.orphans.backups),
        expiring: number(view.orphans.expiring),
        next_deletion: view.orphans.next.filter(|_| paused.is_none()).map(|next| Time(seconds(next))),
    });
    ProtectionRuleStatus {
        conditions: all,
        observed_generation: generation,
        namespaces: number(view.namespaces),
        policies: number(view.policies),
        violations: number(view.violating.len()),
        violating: view.violating.iter().take(VIOLATING_SHOWN).map(ToString::to_string).collect(),
        stamped: number(view.stamped),
        orphans,
    }
}

/// Objects keep whole seconds: what is written must be equal to what is read back.
fn seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}
