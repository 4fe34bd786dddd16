//! What a `BackupPolicy` must be before anything is scheduled.

use std::time::Duration;

use super::Finding;
use super::application::applications;
use crate::policy::{
    BackupPolicy, FreezeBounds, Objectives, OnNamespaceDelete, Retention, RunBounds, Schedule,
    SnapshotOptions,
};

/// Shortest and longest promise of a freeze (docs/design/freeze.md §3).
pub(super) const MAX_HOLD: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(5)..=Duration::from_secs(300);
/// What must be left of `maxHold` when all locks are acquired: the cut, and the thaw's own reserve of 2 s plus one
/// round trip (docs/design/freeze.md §3).
const AFTER_ACQUIRE: Duration = Duration::from_secs(3);
/// The scheduler's clock is read once per minute at worst: a shorter deadline could miss every slot.
const MIN_STARTING_DEADLINE: Duration = Duration::from_secs(60);

/// Everything that keeps a policy from being accepted.
pub fn policy(policy: &BackupPolicy) -> Vec<Finding> {
    let spec = &policy.spec;
    let mut found = schedule(&spec.schedule);
    found.extend(spec.objectives.iter().flat_map(objectives));
    found.extend(applications(&spec.applications, "spec"));
    found.extend(spec.freeze.iter().flat_map(|bounds| freeze(bounds, "spec.freeze")));
    found.extend(spec.run.iter().flat_map(|bounds| run(bounds, "spec.run")));
    found.extend(spec.snapshot.iter().flat_map(|options| snapshot(options, "spec.snapshot")));
    found.extend(spec.retention.iter().flat_map(retention));
    if spec.verification.is_some() {
        found.push(Finding::not_yet(
            "spec.verification",
            "a scheduled drill",
            "remove it and restore by hand",
        ));
    }
    if spec.rule_ref.is_some() {
        found.extend(rule_ref(policy));
    }
    found
}

/// A stamped policy is owned by its rule; only the scheduler writes both.
fn rule_ref(policy: &BackupPolicy) -> Option<Finding> {
    let rule = policy.spec.rule_ref.as_ref()?;
    let owners = policy.metadata.owner_references.as_deref().unwrap_or_default();
    let owned = owners.iter().any(|owner| owner.kind == "ProtectionRule" && owner.name == rule.name);
    (!owned).then(|| {
        Finding::new(
            "spec.ruleRef",
            "RuleRefOfRule",
            format!("only a policy that ProtectionRule {} stamped, and owns, names it: remove it", rule.name),
        )
    })
}

fn schedule(schedule: &Schedule) -> Vec<Finding> {
    let mut found = Vec::new();
    if schedule.starting_deadline.is_some_and(|deadline| deadline.get() < MIN_STARTING_DEADLINE) {
        found.push(Finding::new(
            "spec.schedule.startingDeadline",
            "StartingDeadlineTooShort",
            "a slot may start late by less than a minute, so that a short outage would lose it: write at least 1m",
        ));
    }
    for (index, blackout) in schedule.blackouts.iter().enumerate() {
        if blackout.duration.get().is_zero() {
            found.push(Finding::new(
                format!("spec.schedule.blackouts[{index}].duration"),
                "BlackoutTooShort",
                "the window has no length: write at least 1m, or remove it",
            ));
        }
    }
    found
}

fn objectives(objectives: &Objectives) -> Vec<Finding> {
    let mut found = Vec::new();
    if objectives.rpo.is_some_and(|rpo| rpo.get().is_zero()) {
        found.push(Finding::new(
            "spec.objectives.rpo",
            "ObjectiveTooShort",
            "an objective of no time cannot be met: write for example 26h",
        ));
    }
    if objectives.rto.is_some() {
        found.push(Finding::not_yet("spec.objectives.rto", "a recovery time objective", "remove it"));
    }
    found
}

pub(super) fn freeze(bounds: &FreezeBounds, path: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    let max_hold = bounds.max_hold();
    if !MAX_HOLD.contains(&max_hold.get()) {
        found.push(Finding::new(
            format!("{path}.maxHold"),
            "MaxHoldOutOfRange",
            format!("the application may be held for {max_hold}, which is not between 5s and 5m: choose what its users can bear"),
        ));
    }
    let acquire = bounds.acquire_timeout();
    if acquire + AFTER_ACQUIRE >= max_hold.get() && bounds.acquire_timeout.is_some() {
        found.push(Finding::new(
            format!("{path}.acquireTimeout"),
            "AcquireTooLong",
            format!(
                "locks may take {} of {max_hold}; 3s must be left for the cut and the thaw: shorten it or raise maxHold",
                seconds(acquire)
            ),
        ));
    }
    if acquire < Duration::from_secs(1) {
        found.push(Finding::new(
            format!("{path}.acquireTimeout"),
            "AcquireTooShort",
            "a lock may take less than 1s, and servers count lock timeouts in whole seconds: write at least 1s",
        ));
    }
    found
}

pub(super) fn run(bounds: &RunBounds, path: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    if !(1..=5).contains(&bounds.max_attempts()) {
        found.push(Finding::new(
            format!("{path}.maxAttempts"),
            "MaxAttemptsOutOfRange",
            "a slot is tried 1 to 5 times",
        ));
    }
    if bounds.deadline().is_zero() {
        found.push(Finding::new(
            format!("{path}.deadline"),
            "RunDeadlineTooShort",
            "no attempt could start: write at least 1m",
        ));
    }
    found
}

pub(super) fn snapshot(options: &SnapshotOptions, path: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    match options.on_namespace_delete {
        OnNamespaceDelete::Retain => {}
        OnNamespaceDelete::Delete => found.push(Finding::not_yet(
            format!("{path}.onNamespaceDelete"),
            "deleting data with its namespace",
            "leave it out; delete the Backups before the namespace",
        )),
    }
    found
}

fn retention(retention: &Retention) -> Vec<Finding> {
    let mut found = Vec::new();
    if retention.last == Some(0) {
        found.push(Finding::new(
            "spec.retention.last",
            "RetentionTooShort",
            "no recovery point would be kept: write at least 1",
        ));
    }
    found
}

fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn base() -> Value {
        json!({
            "apiVersion": "stillpoint.dev/v1alpha1", "kind": "BackupPolicy",
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {
                "schedule": {"cron": "0 2 * * *"},
                "applications": [{"name": "db", "selector": {"matchLabels": {"app": "db"}}}]
            }
        })
    }

    fn rules(pointer: &str, value: Value) -> Vec<(String, &'static str)> {
        let mut object = base();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = parent.split('/').filter(|part| !part.is_empty()).fold(
            &mut object["spec"],
            |at, part| match part.parse::<usize>() {
                Ok(index) => &mut at[index],
                Err(_) => &mut at[part],
            },
        );
        parent[key] = value;
        let typed: BackupPolicy = serde_json::from_value(object).unwrap();
        policy(&typed).into_iter().map(|finding| (finding.path, finding.rule)).collect()
    }

    #[test]
    fn the_ten_line_policy_is_accepted() {
        assert_eq!(policy(&serde_json::from_value(base()).unwrap()), []);
    }

    #[test]
    fn what_is_not_supported_yet_is_refused_and_never_ignored() {
        for (pointer, value, path) in [
            ("/verification", json!({"schedule": {"cron": "0 5 * * 0"}}), "spec.verification"),
            ("/objectives", json!({"rto": "15m"}), "spec.objectives.rto"),
            ("/applications/0/whenNoPods", json!("Skip"), "spec.applications[db].whenNoPods"),
            ("/applications/0/whenNoPods", json!("Snapshot"), "spec.applications[db].whenNoPods"),
            ("/snapshot", json!({"onNamespaceDelete": "Delete"}), "spec.snapshot.onNamespaceDelete"),
        ] {
            assert_eq!(rules(pointer, value), [(path.to_owned(), "NotSupportedYet")], "{pointer}");
        }
    }

    #[test]
    fn only_a_policy_that_its_rule_owns_names_the_rule() {
        assert_eq!(rules("/ruleRef", json!({"name": "r"})), [("spec.ruleRef".to_owned(), "RuleRefOfRule")]);
        let mut stamped = base();
        stamped["spec"]["ruleRef"] = json!({"name": "r"});
        let owner = |name: &str| json!([{"apiVersion": "stillpoint.dev/v1alpha1", "kind": "ProtectionRule", "name": name, "uid": "u"}]);
        for (name, found) in [("r", 0), ("other", 1)] {
            stamped["metadata"]["ownerReferences"] = owner(name);
            assert_eq!(policy(&serde_json::from_value(stamped.clone()).unwrap()).len(), found, "{name}");
        }
    }

    #[test]
    fn the_freeze_is_bounded() {
        for (value, rule) in [
            (json!({"maxHold": "4s"}), "MaxHoldOutOfRange"),
            (json!({"maxHold": "4999ms"}), "MaxHoldOutOfRange"),
            (json!({"maxHold": "301s"}), "MaxHoldOutOfRange"),
            (json!({"maxHold": "10s", "acquireTimeout": "7s"}), "AcquireTooLong"),
            (json!({"acquireTimeout": "27s"}), "AcquireTooLong"),
            (json!({"acquireTimeout": "999ms"}), "AcquireTooShort"),
        ] {
            let found = rules("/freeze", value.clone());
            assert_eq!(found.iter().map(|(_, rule)| *rule).collect::<Vec<_>>(), [rule], "{value}");
        }
        for value in [
            json!({"maxHold": "5s"}),
            json!({"maxHold": "5m", "acquireTimeout": "4m"}),
            json!({"maxHold": "10s", "acquireTimeout": "6999ms"}),
            json!({"onBlocked": "KillBlocker"}),
            json!({}),
        ] {
            assert_eq!(rules("/freeze", value.clone()), [], "{value}");
        }
    }

    #[test]
    fn a_policy_keeps_at_least_one_point_and_lets_a_slot_be_a_minute_late() {
        assert_eq!(rules("/retention", json!({"last": 0}))[0].1, "RetentionTooShort");
        assert_eq!(rules("/retention", json!({"last": 1})), []);
        let all = json!({"last": 1, "hourly": 2, "daily": 3, "weekly": 4, "monthly": 5, "yearly": 6, "within": "1d"});
        assert_eq!(rules("/retention", all), []);
        assert_eq!(rules("/schedule/startingDeadline", json!("0m"))[0].1, "StartingDeadlineTooShort");
        assert_eq!(rules("/schedule/startingDeadline", json!("1m")), []);
    }

    #[test]
    fn every_field_of_a_schedule_is_supported() {
        for (field, value) in [
            ("runOnCreate", json!(true)),
            ("concurrency", json!("Queue")),
            ("concurrency", json!("Replace")),
            ("blackouts", json!([{"start": "0 8 * * *", "duration": "1h", "action": "Defer"}])),
        ] {
            assert_eq!(rules(&format!("/schedule/{field}"), value), [], "{field}");
        }
        let empty =
            json!([{"start": "0 8 * * *", "duration": "1h"}, {"start": "0 8 * * *", "duration": "0m"}]);
        let found = rules("/schedule/blackouts", empty);
        assert_eq!(found, [("spec.schedule.blackouts[1].duration".to_owned(), "BlackoutTooShort")]);
    }

    #[test]
    fn a_selector_says_which_pods() {
        assert_eq!(rules("/applications/0/selector", json!({}))[0].1, "EmptySelector");
        let expression = |operator: &str, values: Value| json!({"matchExpressions": [{"key": "a", "operator": operator, "values": values}]});
        assert_eq!(rules("/applications/0/selector", expression("In", json!([])))[0].1, "InvalidSelector");
        assert_eq!(
            rules("/applications/0/selector", expression("Like", json!(["x"])))[0].1,
            "InvalidSelector"
        );
        assert_eq!(
            rules("/applications/0/selector", expression("Exists", json!(["x"])))[0].1,
            "InvalidSelector"
        );
        assert_eq!(rules("/applications/0/selector", expression("NotIn", json!(["x"]))), []);
    }

    #[test]
    fn names_of_applications_are_unique_labels() {
        let application = |name: &str| json!({"name": name, "selector": {"matchLabels": {"a": "b"}}});
        assert_eq!(rules("/applications", json!([application("a"), application("a")]))[0].1, "DuplicateName");
        assert_eq!(rules("/applications", json!([application("A")]))[0].1, "InvalidName");
        assert_eq!(rules("/applications", json!([]))[0].1, "NoApplication");
    }
}
