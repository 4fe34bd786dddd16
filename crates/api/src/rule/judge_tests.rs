//! What is outside a rule, field by field.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::policy::BackupPolicy;

fn rule(name: &str, spec: Value) -> ProtectionRule {
    let mut object = json!({
        "apiVersion": "stillpoint.dev/v1alpha1", "kind": "ProtectionRule",
        "metadata": {"name": name}, "spec": {"namespaceSelector": {}}
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

fn spec(changes: Value) -> BackupPolicySpec {
    let mut object = json!({
        "apiVersion": "stillpoint.dev/v1alpha1", "kind": "BackupPolicy", "metadata": {"name": "p"},
        "spec": {"schedule": {"cron": "0 2 * * *"}, "applications": [{"name": "db", "selector": {"matchLabels": {"a": "b"}}}]}
    });
    for (key, value) in changes.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    let policy: BackupPolicy = serde_json::from_value(object).unwrap();
    policy.spec
}

fn asks(rule_spec: Value, policy_spec: Value) -> Vec<&'static str> {
    let found = policy(&spec(policy_spec), Some(Duration::from_secs(3600)), [&rule("gold", rule_spec)]);
    found.into_iter().map(|violation| violation.asks).collect()
}

#[test]
fn a_policy_keeps_each_promise_that_is_asked_for() {
    let none: [&str; 0] = [];
    let template = |name: &str| json!({"applications": [{"name": "db", "selector": {"matchLabels": {"a": "b"}}, "templateRef": {"name": name}}]});
    let own = json!({"applications": [{"name": "db", "selector": {"matchLabels": {"a": "b"}},
        "templateRef": {"kind": "HookTemplate", "name": "postgresql"}}]});
    for (rule, inside, outside, field) in [
        (
            json!({"require": {"rpo": "26h"}}),
            json!({"objectives": {"rpo": "1d2h"}}),
            json!({"objectives": {"rpo": "27h"}}),
            "require.rpo",
        ),
        // Who promises nothing does not promise this.
        (json!({"require": {"rpo": "26h"}}), json!({"objectives": {"rpo": "1h"}}), json!({}), "require.rpo"),
        (
            json!({"require": {"retention": {"daily": 7}}}),
            json!({"retention": {"daily": 7}}),
            json!({"retention": {"daily": 6, "last": 99}}),
            "require.retention.daily",
        ),
        // The default keeps the last 7.
        (
            json!({"require": {"retention": {"last": 7}}}),
            json!({}),
            json!({"retention": {"last": 6}}),
            "require.retention.last",
        ),
        (
            json!({"require": {"retention": {"last": 8}}}),
            json!({"retention": {}}),
            json!({}),
            "require.retention.last",
        ),
        (
            json!({"require": {"retention": {"within": "2d"}}}),
            json!({"retention": {"within": "3d"}}),
            json!({"retention": {"within": "1d"}}),
            "require.retention.within",
        ),
        (
            json!({"require": {"consistency": "Required"}}),
            json!({}),
            json!({"consistency": "BestEffort"}),
            "require.consistency",
        ),
        (
            json!({"require": {"continuity": "Lock"}}),
            json!({"minContinuity": "Position"}),
            json!({"minContinuity": "State"}),
            "require.continuity",
        ),
        (
            json!({"allow": {"templates": [{"name": "postgresql"}]}}),
            template("postgresql"),
            template("mariadb"),
            "allow.templates",
        ),
        // An own template of the same name is another template. One that detection will choose is judged at the run.
        (json!({"allow": {"templates": [{"name": "postgresql"}]}}), json!({}), own, "allow.templates"),
        (
            json!({"allow": {"snapshotClasses": ["fast"]}}),
            json!({"snapshot": {"volumeSnapshotClassName": "fast"}}),
            json!({"snapshot": {"volumeSnapshotClassName": "slow"}}),
            "allow.snapshotClasses",
        ),
        (
            json!({"allow": {"maxHold": "10s"}}),
            json!({"freeze": {"maxHold": "10s"}}),
            json!({}),
            "allow.maxHold",
        ),
    ] {
        assert_eq!(asks(rule.clone(), inside.clone()), none, "{inside} under {rule}");
        assert_eq!(asks(rule.clone(), outside.clone()), [field], "{outside} under {rule}");
    }
    // The schedule of these tests has slots an hour apart.
    assert_eq!(asks(json!({"allow": {"minInterval": "1h"}}), json!({})), none);
    assert_eq!(asks(json!({"allow": {"minInterval": "61m"}}), json!({})), ["allow.minInterval"]);
    let once = policy(&spec(json!({})), None, [&rule("gold", json!({"allow": {"minInterval": "1h"}}))]);
    assert_eq!(once, [], "a schedule with one slot has no interval");
}

#[test]
fn a_violation_names_rule_and_field_and_what_was_found_and_asked_for() {
    let found = policy(
        &spec(json!({"objectives": {"rpo": "2d"}})),
        None,
        [&rule("gold", json!({"require": {"rpo": "26h"}}))],
    );
    assert_eq!(
        told(&found),
        "spec.objectives.rpo is 2d; ProtectionRule gold asks for at most 26h (require.rpo)"
    );
}

#[test]
fn every_rule_must_be_obeyed_and_a_rule_more_never_heals_anything() {
    let rules = [
        rule("a", json!({"require": {"rpo": "26h"}})),
        rule("b", json!({"allow": {"maxHold": "10s"}})),
        rule("c", json!({"require": {"continuity": "State"}})),
    ];
    let policies = [
        json!({}),
        json!({"objectives": {"rpo": "1h"}}),
        json!({"objectives": {"rpo": "1h"}, "freeze": {"maxHold": "5s"}, "minContinuity": "Lock"}),
    ];
    for one in policies.map(spec) {
        // All subsets of the rules: what a subset finds, the whole finds too, and nothing else.
        let alone: Vec<Vec<Violation>> = rules.iter().map(|rule| policy(&one, None, [rule])).collect();
        for chosen in 0..8_usize {
            let subset = || (0..3).filter(move |index| chosen & (1 << index) != 0);
            let together = policy(&one, None, subset().map(|index| &rules[index]));
            let expected: Vec<Violation> = subset().flat_map(|index| alone[index].clone()).collect();
            assert_eq!(together, expected);
        }
    }
}

#[test]
fn a_run_is_judged_by_what_it_uses_and_not_by_what_policies_promise() {
    let reference = TemplateRef { kind: TemplateKind::default(), name: "mariadb".to_owned() };
    let using = Using {
        templates: vec![("db", &reference)],
        classes: vec!["slow"],
        max_hold: Duration::from_secs(30),
    };
    let asked = |spec: Value| -> Vec<&str> {
        run(&using, [&rule("gold", spec)]).into_iter().map(|violation| violation.asks).collect()
    };
    assert_eq!(asked(json!({"require": {"rpo": "1h", "continuity": "Lock"}})), [""; 0]);
    assert_eq!(asked(json!({"allow": {"templates": [{"name": "postgresql"}]}})), ["allow.templates"]);
    assert_eq!(
        asked(json!({"allow": {"snapshotClasses": ["fast"], "maxHold": "29s"}})),
        ["allow.snapshotClasses", "allow.maxHold"]
    );
    assert_eq!(asked(json!({"allow": {"snapshotClasses": ["slow"], "maxHold": "30s"}})), [""; 0]);
}

#[test]
fn a_restore_goes_only_where_every_rule_lets_it() {
    let clones = rule("clones", json!({"allow": {"restoreTargets": ["Clone"]}}));
    let silent = rule("silent", json!({"allow": {"maxHold": "10s"}}));
    assert_eq!(restore(TargetKind::Clone, [&clones, &silent]), []);
    let found = restore(TargetKind::InPlace, [&clones, &silent]);
    assert_eq!(
        told(&found),
        "spec.target is InPlace; ProtectionRule clones asks for one of Clone (allow.restoreTargets)"
    );
}

#[test]
fn a_rule_holds_where_its_selector_says_and_only_while_it_is_in_force() {
    let labels = |tier: &str| [("tier".to_owned(), tier.to_owned())].into();
    let mut gold = rule(
        "gold",
        json!({"namespaceSelector": {"matchLabels": {"tier": "gold"}}, "allow": {"maxHold": "10s"}}),
    );
    let all = rule("all", json!({"require": {"rpo": "26h"}}));
    let names = |rules: &[&ProtectionRule], tier: &str| -> Vec<String> {
        ProtectionRule::holding(rules.iter().copied(), &labels(tier))
            .iter()
            .map(|rule| rule.name_any())
            .collect()
    };
    assert_eq!(names(&[&gold, &all], "gold"), ["all", "gold"]);
    assert_eq!(names(&[&gold, &all], "lead"), ["all"]);
    gold.metadata.generation = Some(2);
    let mut status = json!({"observedGeneration": 2, "conditions": [{"type": "Accepted", "status": "False", "reason": "InvalidBlackout",
        "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    gold.status = serde_json::from_value(status.clone()).unwrap();
    assert_eq!(names(&[&gold, &all], "gold"), ["all"], "refused by the scheduler");
    status["observedGeneration"] = json!(1);
    gold.status = serde_json::from_value(status).unwrap();
    assert_eq!(names(&[&gold, &all], "gold"), ["all", "gold"], "that was said of an earlier edit");
}
