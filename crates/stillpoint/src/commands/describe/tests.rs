//! What people see, for the runs they ask about.

use serde_json::{Value, json};

use super::*;

fn backup(status: Value) -> Backup {
    serde_json::from_value(json!({
        "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Backup",
        "metadata": {"name": "nightly-1f2e3d4c-h9sd1", "namespace": "shop"},
        "spec": {"run": {"policyRef": {"name": "nightly"}, "slot": "2026-11-21T02:00:00Z"}, "trigger": "Schedule"},
        "status": status,
    }))
    .unwrap()
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": kind, "status": status, "reason": reason, "message": message,
           "lastTransitionTime": "2026-11-21T02:00:05Z"})
}

fn member(claim: &str, post: i64, signal: i64) -> Value {
    json!({
        "application": "db", "podName": "db-0", "podUID": "u", "claimName": claim,
        "driver": "disk.csi.example", "volumeSnapshot": format!("sp-{claim}-8f1c"), "postSent": post,
        "signal": signal, "cut": "2026-11-21T02:00:01.160000Z",
        "settled": {"readyAt": "2026-11-21T02:00:02.500000Z", "bound": true},
    })
}

fn hold() -> Value {
    json!({
        "application": "db", "podName": "db-0", "podUID": "u", "container": "mariadb", "nonce": "n",
        "freezeSent": 20, "frozen": {"at": 3100}, "beats": 1, "closingSent": 66000, "thawSent": 66000,
        "thawed": 71200, "facts": {"datadir": "/var/lib/mysql", "sync_binlog": "1"},
    })
}

fn resolved() -> Value {
    json!({
        "maxHoldMillis": 30000,
        "applications": [{"name": "db", "template": {"name": "mariadb"},
                          "digest": "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b",
                          "hold": "Session"}],
    })
}

fn window() -> Value {
    json!({"startedAt": "2026-11-21T02:00:01.120000Z", "locked": 3100, "cutStart": 3400, "cutEnd": 65800,
           "thawSent": 66000, "thawed": 71200, "frozenSeconds": 0.0712})
}

fn proven() -> Value {
    json!({
        "phase": "Succeeded", "attempt": 1, "executor": "stillpoint-0", "consistency": "Application",
        "continuity": "Lock", "crossConsistent": true, "cut": "2026-11-21T02:00:01.160000Z",
        "startedAt": "2026-11-21T02:00:00.500000Z", "finishedAt": "2026-11-21T02:00:03.000000Z",
        "conditions": [condition("Succeeded", "True", "Proven", "application-consistent"),
                       condition("Finished", "True", "Proven", "")],
        "resolved": resolved(), "holds": [hold()],
        "members": [member("data-db-0", 3400, 61000), member("log-db-0", 3500, 65800)], "window": window(),
        "verdict": {
            "proved": [
                {"rule": 2, "application": "db", "finding": "the last cut was seen 0.2 ms before the thaw"},
                {"rule": 1, "application": "db", "finding": "FROZEN 0.3 ms before the first snapshot"},
                {"rule": 10, "application": "db", "finding": "grade Lock"},
            ],
            "warnings": ["other paths of the container are not checked"],
        },
    })
}

#[test]
fn a_proven_point_is_told_from_freeze_to_restore() {
    insta::assert_snapshot!(describe(&backup(proven())));
}

#[test]
fn a_crash_consistent_point_says_what_is_missing() {
    let mut status = proven();
    status["consistency"] = json!("Crash");
    status["verdict"]["missing"] =
        json!([{"rule": 9, "application": "db", "finding": "sync_binlog is 0; set it to 1"}]);
    insta::assert_snapshot!(describe(&backup(status)));
}

#[test]
fn a_run_that_failed_before_the_freeze_has_no_window_and_a_reason() {
    let message = "no pod in namespace shop has the labels app=db; check spec.applications[db].selector";
    let status = json!({
        "phase": "Failed", "attempt": 2, "executor": "stillpoint-0",
        "startedAt": "2026-11-21T02:00:00.500000Z", "finishedAt": "2026-11-21T02:00:31.000000Z",
        "conditions": [condition("Succeeded", "False", "NoPods", message),
                       condition("Finished", "True", "NoPods", "")],
        "journal": [{"entry": "Aborted", "attempt": 1, "nonce": "n", "executor": "stillpoint-0",
                     "at": "2026-11-21T02:00:01.000000Z", "reason": "NoPods", "message": message}],
    });
    insta::assert_snapshot!(describe(&backup(status)));
}

#[test]
fn a_run_under_way_says_how_to_wait_for_it() {
    let status = json!({"phase": "Freezing", "attempt": 1, "executor": "stillpoint-0",
                        "startedAt": "2026-11-21T02:00:00.500000Z", "resolved": resolved()});
    insta::assert_snapshot!(describe(&backup(status)));
}

#[test]
fn many_members_become_the_first_and_the_last() {
    let mut status = proven();
    let members: Vec<Value> = (0..40).map(|n| member(&format!("data-{n}"), 3400 + n, 50000 + n)).collect();
    status["members"] = json!(members);
    let text = describe(&backup(status));
    assert!(
        text.contains("first of 40 snapshots posted") && text.contains("last of 40 cut signals"),
        "{text}"
    );
    assert_eq!(text.lines().filter(|line| line.contains("cut signal")).count(), 2);
}

#[test]
fn a_backup_without_a_status_can_be_described() {
    let mut fresh = backup(proven());
    fresh.status = None;
    let text = describe(&fresh);
    assert!(text.contains("Pending") && !text.contains("Freeze window"), "{text}");
}

#[test]
fn a_cut_without_a_hold_has_no_length_and_no_promise() {
    let mut status = proven();
    status["resolved"]["applications"][0]["hold"] = json!("None");
    status["holds"] = json!([]);
    status["window"] = json!({"startedAt": "2026-11-21T02:00:01.120000Z", "cutStart": 3400, "cutEnd": 65800});
    let text = describe(&backup(status));
    assert!(text.contains("\nCut (nothing was held): from 2026-11-21T02:00:01.120Z\n"), "{text}");
    assert!(!text.contains("promised") && !text.contains("FREEZE"), "{text}");
}

#[test]
fn no_evidence_whatever_makes_the_drawing_fail() {
    let mut status = proven();
    status["window"] = json!({"startedAt": "2026-11-21T02:00:01.120000Z", "frozenSeconds": -1.0,
                              "locked": i64::MIN, "thawed": i64::MAX, "cutStart": 5, "cutEnd": 3});
    status["holds"][0]["frozen"]["at"] = json!(i64::MAX);
    status["holds"][0]["lost"] = json!("the stream\nended");
    status["verdict"]["proved"][0]["rule"] = json!(200);
    let text = describe(&backup(status));
    assert!(text.contains("lost: the stream; ended"), "{text}");
}

#[test]
fn orders_stages_and_groups_are_drawn() {
    let mut status = proven();
    let mut second = hold();
    second["podName"] = json!("db-1");
    second["freezeSent"] = json!(3200);
    second["frozen"]["at"] = json!(5000);
    second["stages"] = json!([{"stage": 1, "sent": 30000, "frozen": {"at": 33000}}]);
    status["holds"] = json!([hold(), second]);
    for member in status["members"].as_array_mut().unwrap() {
        member["group"] = json!({"volumeGroupSnapshot": "nightly-8f1c"});
    }
    let text = describe(&backup(status));
    for line in ["FREEZE sent  db (db-1)", "stage 1 begins  db (db-1)", "stage 1 answered  db (db-1)"] {
        assert_eq!(text.matches(line).count(), 1, "{line}: {text}");
    }
    assert_eq!(text.matches("group snapshot posted  data-db-0, log-db-0").count(), 1, "{text}");
    assert_eq!(text.matches("group cut signal").count(), 1);
}

#[test]
fn barriers_and_ended_statements_are_drawn_and_named() {
    let mut status = proven();
    status["holds"][0]["barriers"] = json!([{"name": "flush", "at": 3000}]);
    status["holds"][0]["endedBlockers"] = json!([
        {"id": "41", "namedBy": "blocker=41 is a report", "sent": 90000, "answered": 95000},
        {"id": "42", "namedBy": "blocker=42 is another", "sent": 96000, "answered": 97000, "failed": "not the owner"},
    ]);
    let text = describe(&backup(status));
    for line in [
        "barrier flush  db",
        "statement 41 in the way ended  db",
        "in the way of db: statement 41 was ended; the stall probe said: blocker=41 is a report",
        "statement 42 could not be ended (not the owner)",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}
