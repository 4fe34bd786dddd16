//! Rules that nobody can obey, that say a thing twice, or that decide nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::{Value, json};

use super::*;

fn found(spec: Value) -> Vec<(String, &'static str)> {
    let mut object = json!({
        "apiVersion": "stillpoint.dev/v1alpha1", "kind": "ProtectionRule",
        "metadata": {"name": "gold"}, "spec": {"namespaceSelector": {}}
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    let found = rule(&serde_json::from_value(object).unwrap()).into_iter();
    found.map(|finding| (finding.path, finding.rule)).collect()
}

#[test]
fn a_rule_that_decides_nothing_is_refused() {
    assert_eq!(found(json!({}))[0].1, "RuleDecidesNothing");
    assert_eq!(found(json!({"require": {"retention": {}}}))[0].1, "RuleDecidesNothing");
    assert_eq!(found(json!({"allow": {"minInterval": "0m"}}))[0].1, "RuleDecidesNothing");
    assert_eq!(found(json!({"limits": {}})), [("spec.limits".to_owned(), "RuleDecidesNothing")]);
}

#[test]
fn a_rule_that_nobody_can_obey_is_refused() {
    for (spec, path, rule) in [
        (
            json!({"require": {"rpo": "1h"}, "allow": {"minInterval": "2h"}}),
            "spec.require.rpo",
            "Unsatisfiable",
        ),
        (json!({"require": {"rpo": "0m"}}), "spec.require.rpo", "ObjectiveTooShort"),
        (json!({"allow": {"templates": []}}), "spec.allow.templates", "AllowsNothing"),
        (json!({"allow": {"snapshotClasses": []}}), "spec.allow.snapshotClasses", "AllowsNothing"),
        (json!({"allow": {"restoreTargets": []}}), "spec.allow.restoreTargets", "AllowsNothing"),
        (json!({"allow": {"maxHold": "4s"}}), "spec.allow.maxHold", "MaxHoldOutOfRange"),
        (json!({"limits": {"cluster": 0}}), "spec.limits.cluster", "AllowsNothing"),
        (
            json!({"blackouts": [{"start": "0 8 * * *", "duration": "0m"}]}),
            "spec.blackouts[0].duration",
            "BlackoutTooShort",
        ),
    ] {
        assert_eq!(found(spec.clone()), [(path.to_owned(), rule)], "{spec}");
    }
    assert_eq!(found(json!({"require": {"rpo": "2h"}, "allow": {"minInterval": "2h"}})), []);
}

#[test]
fn what_is_said_twice_is_refused() {
    for (spec, path) in [
        (json!({"allow": {"snapshotClasses": ["a", "b", "a"]}}), "spec.allow.snapshotClasses"),
        (
            json!({"allow": {"templates": [{"name": "a"}, {"name": "a", "kind": "ClusterHookTemplate"}]}}),
            "spec.allow.templates",
        ),
        (json!({"allow": {"restoreTargets": ["Clone", "Clone"]}}), "spec.allow.restoreTargets"),
        (
            json!({"limits": {"drivers": [{"name": "d", "freezes": 1}, {"name": "d", "freezes": 2}]}}),
            "spec.limits.drivers",
        ),
    ] {
        assert_eq!(found(spec.clone()), [(path.to_owned(), "DuplicateName")], "{spec}");
    }
    assert_eq!(
        found(json!({"allow": {"templates": [{"name": "a"}, {"name": "a", "kind": "HookTemplate"}]}})),
        []
    );
}

#[test]
fn a_limit_that_can_never_be_reached_is_refused() {
    let limits = json!({"limits": {"cluster": 2, "namespace": 3, "drivers": [{"name": "d", "freezes": 2}]}});
    assert_eq!(found(limits), [("spec.limits.namespace".to_owned(), "LimitWithoutEffect")]);
}

#[test]
fn a_selector_is_one_that_an_api_server_takes_and_the_empty_one_is_everything() {
    let expression = |operator: &str| json!({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": operator}]}, "allow": {"maxHold": "10s"}});
    assert_eq!(found(expression("Exists")), []);
    assert_eq!(found(expression("In"))[0].1, "InvalidSelector");
}

#[test]
fn a_default_is_a_policy_that_its_own_rule_accepts() {
    let default = |more: Value| {
        let mut spec = json!({"schedule": {"cron": "0 2 * * *", "jitter": "1h"}});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        spec
    };
    assert_eq!(found(json!({"default": default(json!({}))})), []);
    assert_eq!(
        found(json!({"default": default(json!({"freeze": {"maxHold": "301s"}}))})),
        [("spec.default.freeze.maxHold".to_owned(), "MaxHoldOutOfRange")]
    );
    assert_eq!(
        found(json!({"require": {"rpo": "26h"}, "default": default(json!({}))})),
        [("spec.default.objectives.rpo".to_owned(), "DefaultViolatesRule")]
    );
    assert_eq!(
        found(json!({"require": {"rpo": "26h"}, "default": default(json!({"objectives": {"rpo": "26h"}}))})),
        []
    );
}

#[test]
fn orphans_are_kept_for_a_day_at_least() {
    assert_eq!(
        found(json!({"orphans": {"keep": "23h"}})),
        [("spec.orphans.keep".to_owned(), "KeepTooShort")]
    );
    assert_eq!(found(json!({"orphans": {"keep": "1d"}})), []);
}

#[test]
fn what_is_not_supported_yet_is_refused_and_never_ignored() {
    let verification = json!({"require": {"verification": {"maxAge": "8d"}}});
    assert_eq!(found(verification), [("spec.require.verification".to_owned(), "NotSupportedYet")]);
}
