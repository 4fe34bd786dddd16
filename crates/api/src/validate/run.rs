//! What a `Backup` and a `Restore` must be before anything is touched.

use super::Finding;
use super::application::applications;
use super::policy::{freeze, run, snapshot};
use crate::backup::{Backup, Trigger};
use crate::restore::{CloneTarget, Restore, RestoreSource, RestoreTarget, RestoreTrigger};

/// Everything that keeps a Backup from being run.
pub fn backup(backup: &Backup) -> Vec<Finding> {
    let spec = &backup.spec;
    let mut found = Vec::new();
    match (&spec.run.policy_ref, &spec.run.applications) {
        (Some(_), None) => {
            let decided = [
                ("freeze", spec.run.freeze.is_some()),
                ("run", spec.run.run.is_some()),
                ("snapshot", spec.run.snapshot.is_some()),
                ("consistency", spec.run.consistency.is_some()),
                ("minContinuity", spec.run.min_continuity.is_some()),
            ];
            found.extend(decided.into_iter().filter(|(_, set)| *set).map(|(name, _)| {
                Finding::new(
                    format!("spec.run.{name}"),
                    "PolicyDecides",
                    format!("with policyRef the policy decides about {name}: remove it, or run applications inline"),
                )
            }));
        }
        (None, Some(inline)) => {
            found.extend(applications(inline, "spec.run"));
            found.extend(spec.run.freeze.iter().flat_map(|bounds| freeze(bounds, "spec.run.freeze")));
            found.extend(spec.run.run.iter().flat_map(|bounds| run(bounds, "spec.run.run")));
            found.extend(spec.run.snapshot.iter().flat_map(|options| snapshot(options, "spec.run.snapshot")));
        }
        (Some(_), Some(_)) | (None, None) => found.push(Finding::new(
            "spec.run",
            "PolicyOrApplications",
            "a run takes either policyRef or applications: write exactly one of them",
        )),
    }
    match spec.trigger {
        Trigger::Manual => {
            if spec.run.slot.is_some() {
                found.push(Finding::new(
                    "spec.run.slot",
                    "SlotOfScheduler",
                    "slots belong to the scheduler: leave it out",
                ));
            }
        }
        Trigger::Schedule | Trigger::CatchUp | Trigger::Initial => {
            if spec.run.policy_ref.is_none() {
                found.push(Finding::new(
                    "spec.trigger",
                    "TriggerWithoutPolicy",
                    "only a policy's runs have a trigger: leave it out",
                ));
            }
        }
    }
    found
}

/// Everything that keeps a Restore from being carried out.
pub fn restore(restore: &Restore) -> Vec<Finding> {
    let spec = &restore.spec;
    let mut found = Vec::new();
    let (path, namespace) = match &spec.source {
        RestoreSource::BackupRef(source) => ("spec.source.backupRef", source.namespace.as_deref()),
        RestoreSource::Latest(source) => ("spec.source.latest", source.namespace.as_deref()),
        RestoreSource::Handles(_) => {
            found.push(Finding::not_yet(
                "spec.source.handles",
                "importing raw handles",
                "name a Backup under backupRef",
            ));
            ("spec.source.handles", None)
        }
    };
    if namespace.is_some() && namespace != restore.metadata.namespace.as_deref() {
        found.push(Finding::not_yet(
            format!("{path}.namespace"),
            "a point of another namespace",
            "create the Restore in the namespace of the Backup",
        ));
    }
    match &spec.target {
        RestoreTarget::Clone(target) => found.extend(clone_target(target)),
        RestoreTarget::InPlace(target) => {
            found.push(Finding::not_yet(
                "spec.target.inPlace",
                "replacing the claims of a workload",
                "restore to a clone and mount its claims",
            ));
            if target.confirm != target.workload.name {
                found.push(Finding::new(
                    "spec.target.inPlace.confirm",
                    "NotConfirmed",
                    "confirm repeats the workload's name: its volumes will be replaced",
                ));
            }
        }
        RestoreTarget::Drill(_) => {
            found.push(Finding::not_yet(
                "spec.target.drill",
                "a drill",
                "restore to a clone and check it by hand",
            ));
        }
    }
    match spec.trigger {
        RestoreTrigger::Manual => {}
        RestoreTrigger::Schedule => {
            found.push(Finding::not_yet("spec.trigger", "a scheduled drill", "leave it out"));
        }
    }
    if spec.policy_ref.is_some() {
        found.push(Finding::not_yet(
            "spec.policyRef",
            "a policy's drill",
            "remove it; name a policy under source.latest",
        ));
    }
    found
}

fn clone_target(target: &CloneTarget) -> Vec<Finding> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let begins = |name: &str| name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let mut found = Vec::new();
    if target.prefix.as_deref().is_some_and(|prefix| !begins(prefix) || !prefix.chars().all(allowed)) {
        found.push(Finding::new(
            "spec.target.clone.prefix",
            "InvalidName",
            "names of claims begin with a-z or 0-9 and go on with these, - and .: choose another prefix",
        ));
    }
    for (claim, name) in &target.names {
        let ends = name.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        if !begins(name) || !ends || !name.chars().all(allowed) {
            found.push(Finding::new(
                format!("spec.target.clone.names[{claim}]"),
                "InvalidName",
                format!("{name:?} cannot be the name of a claim: use a-z, 0-9, - and ."),
            ));
        }
    }
    let mut names: Vec<&String> = target.names.values().collect();
    names.sort();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        found.push(Finding::new(
            "spec.target.clone.names",
            "DuplicateName",
            "two claims would be restored under one name: rename one",
        ));
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of_backup(spec: Value) -> Vec<(String, &'static str)> {
        let object = json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "Backup", "metadata": {"name": "b"}, "spec": spec});
        backup(&serde_json::from_value(object).unwrap()).into_iter().map(|f| (f.path, f.rule)).collect()
    }

    fn of_restore(spec: Value) -> Vec<(String, &'static str)> {
        let object = json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "Restore", "metadata": {"name": "r", "namespace": "shop"}, "spec": spec});
        restore(&serde_json::from_value(object).unwrap()).into_iter().map(|f| (f.path, f.rule)).collect()
    }

    #[test]
    fn a_run_is_of_a_policy_or_inline_and_only_the_policy_decides_for_its_runs() {
        let inline = json!([{"name": "db", "selector": {"matchLabels": {"app": "db"}}}]);
        assert_eq!(of_backup(json!({"run": {"policyRef": {"name": "p"}}})), []);
        assert_eq!(of_backup(json!({"run": {"applications": inline, "freeze": {"maxHold": "10s"}}})), []);
        assert_eq!(of_backup(json!({"run": {}}))[0].1, "PolicyOrApplications");
        let both = json!({"run": {"policyRef": {"name": "p"}, "applications": inline}});
        assert_eq!(of_backup(both)[0].1, "PolicyOrApplications");
        let decided = json!({"run": {"policyRef": {"name": "p"}, "freeze": {}}});
        assert_eq!(of_backup(decided), [("spec.run.freeze".into(), "PolicyDecides")]);
        let long = json!({"run": {"applications": inline, "freeze": {"maxHold": "10m"}}});
        assert_eq!(of_backup(long), [("spec.run.freeze.maxHold".into(), "MaxHoldOutOfRange")]);
    }

    #[test]
    fn a_backup_may_be_under_a_legal_hold_from_the_start() {
        assert_eq!(of_backup(json!({"run": {"policyRef": {"name": "p"}}, "hold": {"reason": "audit"}})), []);
    }

    #[test]
    fn triggers_and_slots_are_the_schedulers() {
        let inline = json!([{"name": "db", "selector": {"matchLabels": {"app": "db"}}}]);
        assert_eq!(
            of_backup(json!({"run": {"applications": inline}, "trigger": "Schedule"}))[0].1,
            "TriggerWithoutPolicy"
        );
        let slot = json!({"run": {"policyRef": {"name": "p"}, "slot": "2026-01-01T00:00:00Z"}});
        assert_eq!(of_backup(slot)[0].1, "SlotOfScheduler");
    }

    #[test]
    fn what_is_not_supported_yet_is_refused_and_never_ignored() {
        let source = json!({"backupRef": {"name": "b"}});
        let target = json!({"clone": {}});
        for (spec, path) in [
            (
                json!({"source": {"handles": {"driver": "d", "handles": {"c": "h"}}}, "target": target}),
                "spec.source.handles",
            ),
            (
                json!({"source": {"backupRef": {"name": "b", "namespace": "x"}}, "target": target}),
                "spec.source.backupRef.namespace",
            ),
            (
                json!({"source": {"latest": {"policyRef": {"name": "p"}, "namespace": "x"}}, "target": target}),
                "spec.source.latest.namespace",
            ),
            (
                json!({"source": source, "target": {"inPlace": {"workload": {"name": "w"}, "confirm": "w"}}}),
                "spec.target.inPlace",
            ),
            (json!({"source": source, "target": {"drill": {}}}), "spec.target.drill"),
            (json!({"source": source, "target": target, "trigger": "Schedule"}), "spec.trigger"),
            (json!({"source": source, "target": target, "policyRef": {"name": "p"}}), "spec.policyRef"),
        ] {
            assert_eq!(of_restore(spec), [(path.to_owned(), "NotSupportedYet")]);
        }
    }

    #[test]
    fn a_clone_has_names_that_claims_can_have() {
        let clone = |target: Value| {
            of_restore(
                json!({"source": {"backupRef": {"name": "b", "namespace": "shop"}}, "target": {"clone": target}}),
            )
        };
        assert_eq!(clone(json!({"prefix": "restored-"})), []);
        assert_eq!(clone(json!({"prefix": "-x"}))[0].1, "InvalidName");
        assert_eq!(clone(json!({"names": {"a": "B"}}))[0].1, "InvalidName");
        assert_eq!(clone(json!({"names": {"a": "x", "b": "x"}}))[0].1, "DuplicateName");
    }
}
