//! Default policies: whose they are, when they come, follow and go.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use kube::ResourceExt;
use serde_json::{Value, json};

use super::*;

fn rule(name: &str, cron: &str) -> ProtectionRule {
    serde_json::from_value(json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "ProtectionRule", "metadata": {"name": name, "uid": format!("uid-{name}")},
        "spec": {"namespaceSelector": {}, "default": {"schedule": {"cron": cron}, "retention": {"daily": 7}}}})).unwrap()
}

fn found(name: &str) -> Found {
    Found {
        name: name.to_owned(),
        labels: [("app".to_owned(), name.to_owned())].into(),
        template: "postgresql".to_owned(),
        container: None,
    }
}

fn detected(names: &[&str]) -> Detected {
    Detected { found: names.iter().map(|name| found(name)).collect(), ambiguous: Vec::new() }
}

fn look(rule: &ProtectionRule, policies: &[BackupPolicy], detected: &Detected) -> Vec<Action> {
    let asked = Asked { rule, default: rule.spec.default.as_ref().unwrap() };
    decide("shop", Ok(asked), policies, detected, |_| true)
}

/// What one look stamps, as the API server would keep it.
fn stamped(rule: &ProtectionRule, names: &[&str]) -> Vec<BackupPolicy> {
    let actions = look(rule, &[], &detected(names));
    let created = actions.into_iter().map(|action| match action {
        Action::Create(policy) => {
            let mut object = serde_json::to_value(*policy).unwrap();
            object["metadata"]["resourceVersion"] = json!("1");
            serde_json::from_value(object).unwrap()
        }
        other => panic!("{other:?}"),
    });
    created.collect()
}

fn own(name: &str) -> BackupPolicy {
    serde_json::from_value(json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "BackupPolicy", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"schedule": {"cron": "@daily"}, "applications": []}})).unwrap()
}

fn edited(policy: &BackupPolicy, pointer: &str, value: Value) -> BackupPolicy {
    let mut object = serde_json::to_value(policy).unwrap();
    *object.pointer_mut(pointer).unwrap() = value;
    serde_json::from_value(object).unwrap()
}

#[test]
fn each_application_gets_a_policy_that_its_rule_owns() {
    let gold = rule("gold", "0 2 * * *");
    let policies = stamped(&gold, &["db", "queue"]);
    let names: Vec<String> = policies.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["gold-db", "gold-queue"]);
    let policy = &policies[0];
    assert_eq!(stamped_by(policy), Some("uid-gold"));
    assert_eq!(stillpoint_api::validate::policy(policy), []);
    assert_eq!(policy.spec.rule_ref.as_ref().unwrap().name, "gold");
    assert_eq!(policy.spec.applications[0].template_ref.as_ref().unwrap().name, "postgresql");
    // And then there is nothing left to do.
    assert!(look(&gold, &policies, &detected(&["db", "queue"])).is_empty());
}

#[test]
fn a_stamped_policy_follows_its_rule_and_that_is_no_edit_of_anybody() {
    let policies = stamped(&rule("gold", "0 2 * * *"), &["db"]);
    let later = rule("gold", "0 3 * * *");
    let [Action::Update { policy, edited: false }] = &look(&later, &policies, &detected(&["db"]))[..] else {
        panic!()
    };
    assert_eq!(
        (policy.spec.schedule.cron.as_str(), policy.metadata.resource_version.as_deref()),
        ("0 3 * * *", Some("1"))
    );
    assert!(look(&later, &[(**policy).clone()], &detected(&["db"])).is_empty());
}

#[test]
fn an_edit_of_a_stamped_policy_is_put_back_as_such() {
    let gold = rule("gold", "0 2 * * *");
    let policies = stamped(&gold, &["db"]);
    for (pointer, value) in [
        ("/spec/schedule/cron", json!("@hourly")),
        ("/spec/suspend", json!(true)),
        ("/spec/ruleRef", Value::Null),
        ("/spec/applications/0/templateRef/name", json!("mariadb")),
    ] {
        let changed = edited(&policies[0], pointer, value);
        let [Action::Update { policy, edited: true }] = &look(&gold, &[changed], &detected(&["db"]))[..]
        else {
            panic!("{pointer}")
        };
        assert_eq!(policy.spec, policies[0].spec, "{pointer}");
    }
}

#[test]
fn a_policy_of_the_namespace_s_own_is_never_touched_and_the_stamped_ones_step_back() {
    let gold = rule("gold", "0 2 * * *");
    let mut all = stamped(&gold, &["db", "queue"]);
    all.push(own("nightly"));
    let actions = look(&gold, &all, &detected(&["db", "queue", "new"]));
    let names: Vec<String> = actions
        .iter()
        .map(|action| match action {
            Action::Delete { policy, why } => {
                assert!(why.contains("nightly"), "{why}");
                policy.name_any()
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(names, ["gold-db", "gold-queue"]);
    // Also when it has the name that would be stamped, and even when it is being deleted: then its name is not free.
    assert!(look(&gold, &[own("gold-db")], &detected(&["db"])).is_empty());
    let mut leaving = own("gold-db");
    leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    assert!(look(&gold, &[leaving], &detected(&["db"])).is_empty());
}

#[test]
fn pods_that_are_gone_take_no_policy_with_them() {
    let gold = rule("gold", "0 2 * * *");
    let policies = stamped(&gold, &["db"]);
    assert!(look(&gold, &policies, &detected(&[])).is_empty());
    let later = rule("gold", "0 3 * * *");
    let [Action::Update { policy, .. }] = &look(&later, &policies, &detected(&[]))[..] else { panic!() };
    assert_eq!(policy.spec.applications, policies[0].spec.applications, "it still follows the rule");
}

#[test]
fn stamped_policies_go_with_the_reason_for_them_and_not_with_a_typo_in_the_rule() {
    let policies = stamped(&rule("gold", "0 2 * * *"), &["db"]);
    let without = |in_force: bool| {
        decide("shop", Err("the namespace opted out"), &policies, &detected(&[]), |_| in_force)
    };
    assert!(matches!(&without(true)[..], [Action::Delete { why, .. }] if why == "the namespace opted out"));
    assert!(without(false).is_empty());
    // Of two rules one stamps.
    let actions = look(&rule("first", "0 2 * * *"), &policies, &detected(&["db"]));
    assert!(
        matches!(&actions[..], [Action::Delete { .. }, Action::Create(policy)] if policy.name_any() == "first-db")
    );
}

#[test]
fn a_name_is_the_same_in_every_process_and_short_enough_for_a_label() {
    let long = rule(&"r".repeat(80), "0 2 * * *");
    assert_eq!(name(&rule("gold", "@daily"), "db"), "gold-db");
    assert_eq!(name(&long, "db"), name(&long, "db"));
    assert_ne!(name(&long, "db"), name(&long, "queue"));
    assert!(name(&long, "db").len() <= 63);
}
