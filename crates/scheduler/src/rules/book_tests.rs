//! Which namespaces a change touches, and what a rule comes to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::{Value, json};

use super::*;

fn known(name: &str, spec: Value) -> Known {
    let rule = json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "ProtectionRule", "metadata": {"name": name, "uid": name}, "spec": spec});
    Known::new(serde_json::from_value(rule).unwrap(), "2026-11-14T02:00:00Z".parse().unwrap())
}

fn gold(hold: &str) -> Known {
    known("gold", json!({"namespaceSelector": {"matchLabels": {"tier": "gold"}}, "allow": {"maxHold": hold}}))
}

fn tier(name: &str) -> Space {
    Space { labels: [("tier".to_owned(), name.to_owned())].into(), ..Space::default() }
}

fn book() -> RuleBook {
    let book = RuleBook::default();
    book.space_applied("shop", tier("gold"));
    book.space_applied("lab", tier("lead"));
    book
}

fn touched(book: &RuleBook) -> Vec<String> {
    book.take_touched().iter().map(ToString::to_string).collect()
}

fn names(book: &RuleBook, namespace: &str) -> Vec<String> {
    book.holding(namespace).iter().map(|known| known.name().to_owned()).collect()
}

#[test]
fn a_rule_touches_the_namespaces_it_selects_and_only_when_it_decides_otherwise() {
    let book = book();
    assert_eq!(touched(&book), [""; 0]);
    book.rule_applied(gold("10s"));
    assert_eq!(
        (touched(&book), names(&book, "shop"), names(&book, "lab")),
        (vec!["shop".to_owned()], vec!["gold".to_owned()], vec![])
    );
    // Its own status comes back and decides nothing.
    let mut status = gold("10s");
    status.rule.status =
        Some(stillpoint_api::rule::ProtectionRuleStatus { namespaces: 1, ..Default::default() });
    book.rule_applied(status);
    assert_eq!(touched(&book), [""; 0]);
    book.rule_applied(gold("20s"));
    assert_eq!(touched(&book), ["shop"]);
    book.rule_gone("gold");
    assert_eq!((touched(&book), names(&book, "shop")), (vec!["shop".to_owned()], vec![]));
}

#[test]
fn a_namespace_whose_labels_change_is_touched() {
    let book = book();
    book.rule_applied(gold("10s"));
    touched(&book);
    book.space_applied("lab", tier("lead"));
    assert_eq!(touched(&book), [""; 0], "nothing changed");
    book.space_applied("lab", tier("gold"));
    assert_eq!((touched(&book), names(&book, "lab")), (vec!["lab".to_owned()], vec!["gold".to_owned()]));
}

#[test]
fn a_rule_that_is_refused_holds_nowhere() {
    let book = book();
    book.rule_applied(gold("10s"));
    touched(&book);
    // A window that never ends: nobody could obey it.
    book.rule_applied(known(
        "gold",
        json!({"namespaceSelector": {}, "blackouts": [{"start": "0 8 * * *", "duration": "24h"}]}),
    ));
    assert_eq!(names(&book, "shop"), [""; 0]);
    assert_eq!(touched(&book), ["shop"], "what it selected before is free again");
    assert_eq!(book.views()[0].known.findings()[0].rule, "BlackoutNeverEnds");
}

#[test]
fn a_rule_counts_its_namespaces_its_policies_and_those_outside_it() {
    let book = book();
    book.rule_applied(gold("10s"));
    for (namespace, name, owner) in [("shop", "a", None), ("shop", "b", Some("gold")), ("lab", "c", None)] {
        let mut policy = json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "BackupPolicy", "metadata": {"name": name, "namespace": namespace},
            "spec": {"schedule": {"cron": "@daily"}, "applications": []}});
        if let Some(uid) = owner {
            policy["metadata"]["ownerReferences"] = json!([{"apiVersion": "stillpoint.dev/v1alpha1", "kind": "ProtectionRule", "name": "gold", "uid": uid, "controller": true}]);
        }
        book.policy_applied(&serde_json::from_value(policy).unwrap());
    }
    let outside = PolicyKey::new("shop", "a");
    book.judged(&outside, Some(&["gold".to_owned()]));
    let counts = |book: &RuleBook| {
        let view = book.views().remove(0);
        (view.namespaces, view.policies, view.violating.len(), view.stamped)
    };
    assert_eq!(counts(&book), (1, 2, 1, 1));
    book.judged(&outside, None);
    assert_eq!(counts(&book), (1, 2, 0, 1));
    book.judged(&outside, Some(&["gold".to_owned()]));
    book.policy_gone(&outside);
    assert_eq!(counts(&book), (1, 1, 0, 1));
}

#[test]
fn nothing_is_complete_before_both_lists() {
    let book = RuleBook::default();
    assert!(book.listed(), "nobody watches");
    book.expect_lists();
    book.rules_listed(&BTreeSet::new());
    assert!(!book.listed());
    book.spaces_listed(&BTreeSet::new());
    assert!(book.listed());
}
