//! Which Backups of policies that are gone may go, and when.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::{Value, json};
use stillpoint_api::backup::Backup;

use super::*;

const NOW: &str = "2026-11-20T00:00:00Z";
const LONG_AGO: Option<&str> = Some("2026-01-02T00:00:00Z");

fn rule(name: &str, orphans: Value) -> ProtectionRule {
    let rule = json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "ProtectionRule",
        "metadata": {"name": name, "generation": 3}, "spec": {"namespaceSelector": {}, "orphans": orphans}});
    serde_json::from_value(rule).unwrap()
}

fn orphans(newest: &str) -> Asked {
    Asked::of(&[rule("old", json!({"keep": "14d", "newest": newest}))]).unwrap()
}

/// A proven point of the policy `gone`, known to be orphaned `since`.
fn point(name: &str, cut: &str, since: Option<&str>) -> Value {
    let annotations = since.map_or(json!({}), |since| json!({"stillpoint.dev/orphaned-since": since}));
    json!({
        "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Backup",
        "metadata": {"name": name, "uid": name, "creationTimestamp": cut, "annotations": annotations},
        "spec": {"run": {"policyRef": {"name": "gone"}}},
        "status": {"phase": "Succeeded", "consistency": "Application", "cut": cut.replace('Z', ".000000Z")},
    })
}

fn look(asked: Option<&Asked>, exists: bool, backups: &[Value]) -> Fate {
    let view = |backup: &Value| BackupView::of(&serde_json::from_value::<Backup>(backup.clone()).unwrap());
    let backups: Vec<BackupView> = backups.iter().map(view).collect();
    decide(asked, exists, &backups, NOW.parse().unwrap())
}

#[test]
fn the_time_counts_from_when_the_policy_was_missed_and_not_from_the_cut() {
    let asked = orphans("Delete");
    let old = |since: Option<&str>| look(Some(&asked), false, &[point("old", "2020-01-01T00:00:00Z", since)]);
    assert_eq!(old(None).mark, ["old"]);
    assert_eq!(old(None).orphaned, Orphaned { backups: 1, expiring: 0, next: None });
    let second_before = old(Some("2026-11-06T00:00:01Z"));
    assert!(second_before.is_idle());
    assert_eq!(second_before.wake_at, Some("2026-11-20T00:00:01Z".parse().unwrap()));
    assert_eq!(
        second_before.orphaned,
        Orphaned { backups: 1, expiring: 1, next: Some("2026-11-20T00:00:01Z".parse().unwrap()) }
    );
    let due = old(Some("2026-11-06T00:00:00Z"));
    assert_eq!((due.delete, due.wake_at), (vec!["old".to_owned()], None));
    for odd in ["yesterday", "2027-01-01T00:00:00Z"] {
        let odd = old(Some(odd));
        assert_eq!((odd.mark, odd.delete), (vec!["old".to_owned()], vec![]));
    }
}

#[test]
fn the_note_goes_when_a_policy_of_the_name_is_back_and_when_no_rule_asks_any_more() {
    let asked = orphans("Delete");
    let backups = [point("a", "2026-01-01T00:00:00Z", LONG_AGO), point("b", "2026-01-01T00:00:00Z", None)];
    for (asked, exists) in [(Some(&asked), true), (None, false), (None, true)] {
        let fate = look(asked, exists, &backups);
        assert_eq!(fate, Fate { unmark: vec!["a".to_owned()], ..Fate::default() }, "{exists}");
    }
}

#[test]
fn the_newest_point_stays_unless_the_rule_lets_it_go_and_the_rest_goes_oldest_first() {
    let mut failed = point("failed", "2026-01-04T00:00:00Z", LONG_AGO);
    failed["status"] = json!({"phase": "Failed", "cut": "2026-01-04T00:00:00.000000Z"});
    let mut unproven = point("unproven", "2026-01-05T00:00:00Z", LONG_AGO);
    unproven["status"]["consistency"] = json!("Crash");
    let backups = [
        point("newest", "2026-01-03T00:00:00Z", LONG_AGO),
        point("older", "2026-01-02T00:00:00Z", LONG_AGO),
        point("oldest", "2026-01-01T00:00:00Z", LONG_AGO),
        failed.clone(),
        unproven.clone(),
    ];
    let gone = |newest: &str, backups: &[Value]| look(Some(&orphans(newest)), false, backups).delete;
    assert_eq!(gone("Keep", &backups), ["oldest", "older", "failed", "unproven"]);
    assert_eq!(gone("Delete", &backups), ["oldest", "older", "newest", "failed", "unproven"]);
    // Nothing better is left.
    assert_eq!(gone("Keep", &[failed, unproven]), ["failed"]);
}

#[test]
fn the_newest_point_of_an_application_that_newer_ones_do_not_have_stays_as_well() {
    let of = |name: &str, cut: &str, application: &str| {
        let mut point = point(name, cut, LONG_AGO);
        point["status"]["resolved"] = json!({"applications": [{"name": application, "pods": []}]});
        point
    };
    let backups = [
        of("orders", "2026-01-03T00:00:00Z", "orders"),
        of("stock-2", "2026-01-02T00:00:00Z", "stock"),
        of("stock-1", "2026-01-01T00:00:00Z", "stock"),
    ];
    assert_eq!(look(Some(&orphans("Keep")), false, &backups).delete, ["stock-1"]);
    assert_eq!(look(Some(&orphans("Delete")), false, &backups).delete, ["stock-1", "stock-2", "orders"]);
}

#[test]
fn what_is_held_runs_or_was_cut_ahead_of_time_stays_and_what_goes_already_counts_nowhere() {
    let cut = "2026-01-01T00:00:00Z";
    let (mut held, mut running, mut going) =
        (point("a", cut, LONG_AGO), point("b", cut, LONG_AGO), point("c", cut, LONG_AGO));
    held["spec"]["hold"] = json!({"reason": "case 4711"});
    running["status"]["phase"] = json!("Freezing");
    going["metadata"]["deletionTimestamp"] = json!(cut);
    let ahead = point("d", "2027-01-01T00:00:00Z", LONG_AGO);
    for newest in ["Keep", "Delete"] {
        let fate = look(
            Some(&orphans(newest)),
            false,
            &[held.clone(), running.clone(), going.clone(), ahead.clone()],
        );
        assert!(fate.is_idle(), "{fate:?}");
        assert_eq!(fate.orphaned, Orphaned { backups: 3, expiring: 0, next: None });
    }
    // A held point takes no place of the newest: the one behind it stays too.
    let backups = [held, point("newest", cut, LONG_AGO), point("older", "2025-01-01T00:00:00Z", LONG_AGO)];
    assert_eq!(look(Some(&orphans("Keep")), false, &backups).delete, ["older"]);
}

#[test]
fn of_several_rules_the_one_that_keeps_more_counts() {
    let short = rule("short", json!({"keep": "2d", "newest": "Delete"}));
    let long = rule("long", json!({"keep": "30d", "newest": "Delete"}));
    let keeps = rule("keeps", json!({"keep": "1d"}));
    let silent: ProtectionRule = {
        let mut rule = short.clone();
        rule.spec.orphans = None;
        rule
    };
    assert_eq!(Asked::of([&silent]), None);
    let both = Asked::of([&long, &short, &silent]).unwrap();
    assert_eq!((both.keep.as_hours(), both.newest), (30 * 24, Newest::Delete));
    assert_eq!(both.whose(), "ProtectionRules long, short");
    let all = Asked::of([&keeps, &long, &short]).unwrap();
    assert_eq!((all.keep.as_hours(), all.newest), (30 * 24, Newest::Keep));
}

#[test]
fn when_more_policies_are_gone_than_are_left_somebody_is_asked() {
    assert_eq!(Pause::of(10, 0), None, "so few are people's work");
    assert_eq!(Pause::of(11, 11), None);
    assert_eq!(Pause::of(11, 10), Some(Pause { gone: 11, left: 10 }));
    let agreed = |number: &str| {
        let mut rule = rule("old", json!({"keep": "2d"}));
        rule.metadata.annotations =
            Some([(DELETIONS_AGREED_ANNOTATION.to_owned(), number.to_owned())].into());
        rule
    };
    let is_agreed = |rules: &[ProtectionRule]| Asked::of(rules).unwrap().agreed;
    assert!(is_agreed(&[agreed("3")]));
    assert!(!is_agreed(&[agreed("2")]) && !is_agreed(&[agreed("yes")]));
    assert!(!is_agreed(&[agreed("3"), rule("other", json!({"keep": "2d"}))]), "each of them is asked");
}
