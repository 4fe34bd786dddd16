//! Whole policies: what is written, started and deleted in the situations of docs/design/schedule.md.

#[path = "expiry_tests.rs"]
mod expiry;
#[path = "situation_tests.rs"]
mod situations;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::{Value, json};
use stillpoint_api::backup::Backup;

use super::*;
use crate::accept::{Schedules, accept};
use crate::slots::{Missed, MissedReason};

const UID: &str = "policy-uid";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Created 2026-11-13T09:00Z, daily at 02:00 UTC, RPO 26 h, keeps 2.
fn policy(spec: Value) -> BackupPolicy {
    let mut base = json!({
        "schedule": {"cron": "0 2 * * *"},
        "objectives": {"rpo": "26h"},
        "retention": {"last": 2},
        "applications": [{"name": "db", "selector": {"matchLabels": {"app": "db"}}}],
    });
    for (field, value) in spec.as_object().unwrap() {
        base[field] = value.clone();
    }
    serde_json::from_value(json!({
        "apiVersion": "stillpoint.dev/v1alpha1",
        "kind": "BackupPolicy",
        "metadata": {
            "name": "nightly", "namespace": "shop", "uid": UID, "generation": 1,
            "creationTimestamp": "2026-11-13T09:00:00Z",
        },
        "spec": base,
    }))
    .unwrap()
}

/// A Backup of that policy for `slot`, in `phase`, finished five minutes after it.
fn backup(slot: &str, phase: &str) -> BackupView {
    let slot = at(slot);
    let finished = slot + SignedDuration::from_mins(5);
    let succeeded = if phase == "Succeeded" { "True" } else { "False" };
    let mut status = json!({
        "phase": phase,
        "conditions": [{
            "type": "Succeeded", "status": succeeded, "reason": "NoPods", "message": "the selector matches no pod",
            "lastTransitionTime": finished,
        }],
    });
    if ["Succeeded", "Deleting"].contains(&phase) {
        status["consistency"] = json!("Application");
        status["cut"] =
            json!(format!("{}", (slot + SignedDuration::from_secs(30)).strftime("%Y-%m-%dT%H:%M:%S.5Z")));
    }
    if ["Succeeded", "Failed"].contains(&phase) {
        status["finishedAt"] = json!(format!("{}", finished.strftime("%Y-%m-%dT%H:%M:%S.000000Z")));
    }
    let object: Backup = serde_json::from_value(json!({
        "apiVersion": "stillpoint.dev/v1alpha1",
        "kind": "Backup",
        "metadata": {"name": format!("nightly-{}", slot.as_second()), "namespace": "shop", "creationTimestamp": slot},
        "spec": {"run": {"policyRef": {"name": "nightly", "uid": UID}, "slot": slot}, "trigger": "Schedule"},
        "status": status,
    }))
    .unwrap();
    BackupView::of(&object)
}

/// Decides, and gives the policy with its new status.
#[track_caller]
fn decided(policy: &BackupPolicy, backups: &[BackupView], now: &str) -> (Outcome, BackupPolicy) {
    decided_beside(policy, backups, now, None)
}

/// The same with an API server whose clock is ahead by so many seconds.
#[track_caller]
fn decided_beside(
    policy: &BackupPolicy,
    backups: &[BackupView],
    now: &str,
    ahead: Option<i64>,
) -> (Outcome, BackupPolicy) {
    let now = at(now);
    let accepted = accept(policy, &Schedules::default(), "cluster", now);
    let server_ahead = ahead.map(SignedDuration::from_secs);
    let observed = Observed { policy, accepted: accepted.as_ref(), backups, fresh_failures: 0, server_ahead };
    let outcome = reconcile(&observed, now);
    // As it comes back from the API server.
    let status = serde_json::from_value(serde_json::to_value(&outcome.status).unwrap()).unwrap();
    assert_eq!(Some(&outcome.status), Some(&status), "the status survives the API server");
    let policy = BackupPolicy { status: Some(status), ..policy.clone() };
    (outcome, policy)
}

fn condition<'a>(policy: &'a BackupPolicy, kind: &str) -> &'a Condition {
    let status = policy.status.as_ref().unwrap();
    status.conditions.iter().find(|condition| condition.type_ == kind).unwrap()
}

fn rpo_state(policy: &BackupPolicy) -> String {
    policy.status.as_ref().unwrap().rpo.as_ref().unwrap().state.clone().unwrap()
}

#[test]
fn a_new_policy_is_accepted_pending_and_waits_for_its_first_slot() {
    let (outcome, policy) = decided(&policy(json!({})), &[], "2026-11-13T09:00:00.7Z");
    assert_eq!(outcome.start, None);
    assert_eq!(outcome.wake_at, Some(at("2026-11-14T02:00:00Z")));
    assert_eq!(condition(&policy, ACCEPTED).status, "True");
    assert_eq!(condition(&policy, READY).reason, "Pending");
    assert_eq!(rpo_state(&policy), "Pending");
    let status = policy.status.unwrap();
    assert_eq!(status.next_slots[0], "2026-11-14T02:00:00+00:00");
    assert_eq!(status.next_slots.len(), 5);
    assert_eq!(status.max_interval_seconds, Some(86_400));
    assert_eq!(status.observed_generation, Some(1));
}

#[test]
fn a_second_look_at_an_unchanged_policy_writes_nothing() {
    let points = [backup("2026-11-14T02:00:00Z", "Succeeded")];
    let (_, first) = decided(&policy(json!({})), &points, "2026-11-14T03:00:00.3Z");
    let (second, _) = decided(&first, &points, "2026-11-14T03:00:09.9Z");
    assert_eq!(Some(second.status), first.status);
    assert_eq!(second.notes, []);
}

#[test]
fn a_due_slot_starts_once_and_is_noted() {
    let (_, seen) = decided(&policy(json!({})), &[], "2026-11-13T09:00:00Z");
    let (outcome, noted) = decided(&seen, &[], "2026-11-14T02:00:00Z");
    let slot = at("2026-11-14T02:00:00Z");
    assert_eq!(outcome.start, Some(Start { slot, trigger: Trigger::Schedule }));
    assert_eq!(noted.status.as_ref().unwrap().last_slot, Some(Time(slot)));
    assert_eq!(noted.status.as_ref().unwrap().next_slots[0], "2026-11-15T02:00:00+00:00");
    let (again, _) = decided(&noted, &[], "2026-11-14T02:00:01Z");
    assert_eq!(again.start, None);
}

#[test]
fn a_backup_that_was_created_before_a_crash_is_noted_and_not_started_again() {
    let running = [backup("2026-11-14T02:00:00Z", "Preparing")];
    let (outcome, noted) = decided(&policy(json!({})), &running, "2026-11-14T02:00:20Z");
    assert_eq!(outcome.start, None);
    let status = noted.status.unwrap();
    assert_eq!(status.last_slot, Some(Time(at("2026-11-14T02:00:00Z"))));
    assert_eq!(status.active.as_deref(), Some(running[0].name.as_str()));
    assert_eq!(status.missed, BTreeMap::new(), "an adopted slot is not missed");
}

#[test]
fn nothing_starts_while_a_backup_is_not_finished_and_the_slot_is_counted() {
    for phase in ["Pending", "Preparing", "Freezing", "Settling"] {
        let running = [backup("2026-11-14T02:00:00Z", phase)];
        let (_, noted) = decided(&policy(json!({})), &running, "2026-11-14T02:00:20Z");
        let (outcome, noted) = decided(&noted, &running, "2026-11-15T02:00:00Z");
        assert_eq!(outcome.start, None, "{phase}");
        assert_eq!(noted.status.unwrap().missed.get("concurrency"), Some(&1), "{phase}");
    }
}

#[test]
fn after_downtime_the_newest_slot_is_caught_up_and_the_others_are_counted() {
    let (_, seen) = decided(&policy(json!({})), &[], "2026-11-13T09:00:00Z");
    let (outcome, noted) = decided(&seen, &[], "2026-11-17T10:00:00Z");
    let slot = at("2026-11-17T02:00:00Z");
    assert_eq!(outcome.start, Some(Start { slot, trigger: Trigger::CatchUp }));
    assert_eq!(noted.status.unwrap().missed.get("controller_down"), Some(&3));
    assert_eq!(outcome.notes, [Note::Missed(Missed { count: 3, reason: MissedReason::ControllerDown })]);
}

#[test]
fn an_edit_and_a_resume_start_nothing_of_before() {
    let (_, seen) = decided(&policy(json!({})), &[], "2026-11-13T09:00:00Z");
    let edited =
        BackupPolicy { spec: policy(json!({"schedule": {"cron": "0 8 * * *"}})).spec, ..seen.clone() };
    let (outcome, edited) = decided(&edited, &[], "2026-11-14T08:30:00Z");
    assert_eq!((outcome.start, outcome.wake_at), (None, Some(at("2026-11-14T11:00:01Z"))));
    assert_eq!(edited.status.unwrap().next_slots[0], "2026-11-15T08:00:00+00:00");

    let suspended = BackupPolicy { spec: policy(json!({"suspend": true})).spec, ..seen.clone() };
    let (outcome, suspended) = decided(&suspended, &[], "2026-11-13T10:00:00Z");
    assert_eq!(outcome.start, None);
    assert_eq!(condition(&suspended, READY).reason, "Suspended");
    let (outcome, suspended) = decided(&suspended, &[], "2026-11-16T09:00:00Z");
    assert_eq!(outcome.start, None);
    assert_eq!(rpo_state(&suspended), "Severe", "the clock ticks while suspended");
    let resumed = BackupPolicy { spec: seen.spec, ..suspended };
    let (outcome, resumed) = decided(&resumed, &[], "2026-11-16T09:00:00Z");
    assert_eq!(outcome.start, None);
    assert_eq!(resumed.status.unwrap().missed, BTreeMap::new());
}

#[test]
fn a_bad_schedule_is_refused_with_the_field_named_and_nothing_is_deleted() {
    let points: Vec<BackupView> =
        ["11", "12", "13"].map(|day| backup(&format!("2026-11-{day}T02:00:00Z"), "Succeeded")).to_vec();
    let cases = [
        (json!({"cron": "0 25 * * *"}), "InvalidSchedule", "hour"),
        (json!({"cron": "0 2 * * *", "timeZone": "Mars/Olympus"}), "InvalidTimeZone", "timeZone"),
        (json!({"cron": "* * * * *", "jitter": "60s"}), "InvalidJitter", "jitter"),
        (
            json!({"cron": "0 2 * * *", "blackouts": [{"start": "0 25 * * *", "duration": "1h"}]}),
            "InvalidBlackout",
            "hour",
        ),
        (
            json!({"cron": "0 2 * * *", "blackouts": [{"start": "@daily", "duration": "1h", "timeZone": "Local"}]}),
            "InvalidTimeZone",
            "timeZone",
        ),
        (
            json!({"cron": "0 2 * * *", "blackouts": [{"start": "* 0-12 * * *", "duration": "2h"}]}),
            "InvalidBlackout",
            "starts again",
        ),
        (
            json!({"cron": "0 2 * * *", "blackouts": [{"start": "@daily", "duration": "1d"}]}),
            "BlackoutNeverEnds",
            "duration",
        ),
        (
            json!({"cron": "0 2 * * *", "blackouts": [{"start": "0 22 * * *", "duration": "8h"}]}),
            "NothingStarts",
            "blackouts",
        ),
        (
            json!({"cron": "* * * * *", "startingDeadline": "0m"}),
            "StartingDeadlineTooShort",
            "startingDeadline",
        ),
    ];
    for (schedule, reason, field) in cases {
        let (outcome, refused) =
            decided(&policy(json!({"schedule": schedule})), &points, "2026-11-14T02:00:00Z");
        assert_eq!(condition(&refused, ACCEPTED).status, "False");
        assert_eq!(condition(&refused, ACCEPTED).reason, reason);
        assert!(condition(&refused, ACCEPTED).message.contains(field), "{reason}");
        assert_eq!(condition(&refused, READY).reason, reason);
        assert_eq!((outcome.start, outcome.delete.len()), (None, 0));
        assert_eq!(outcome.notes.len(), 1);
        let (again, _) = decided(&refused, &points, "2026-11-14T02:00:00Z");
        assert_eq!(again.notes, [], "told once");
    }
}

#[test]
fn a_policy_that_is_corrected_starts_nothing_of_before() {
    let broken = policy(json!({"schedule": {"cron": "bad"}}));
    let (_, broken) = decided(&broken, &[], "2026-11-13T09:00:00Z");
    let corrected = BackupPolicy { spec: policy(json!({})).spec, ..broken };
    let (outcome, _) = decided(&corrected, &[], "2026-11-14T10:00:00Z");
    assert_eq!(outcome.start, None);
}

#[test]
fn the_last_failure_is_copied_to_ready_and_failures_are_counted() {
    let backups = [
        backup("2026-11-14T02:00:00Z", "Succeeded"),
        backup("2026-11-15T02:00:00Z", "Failed"),
        backup("2026-11-16T02:00:00Z", "Failed"),
    ];
    let (_, failed) = decided(&policy(json!({})), &backups, "2026-11-16T02:10:00Z");
    assert_eq!(condition(&failed, READY).status, "False");
    assert_eq!(condition(&failed, READY).reason, "NoPods");
    assert!(condition(&failed, READY).message.contains("the selector matches no pod"));
    assert_eq!(rpo_state(&failed), "Breached");
    let status = failed.status.as_ref().unwrap();
    assert_eq!(status.consecutive_failures, 2);
    let counts = status.recovery_points.as_ref().unwrap();
    assert_eq!((counts.ready, counts.failed), (1, 2));
    assert_eq!(status.rpo.as_ref().unwrap().reference, Some(Time(at("2026-11-14T02:00:30Z"))));

    let mut backups = backups.to_vec();
    backups.push(backup("2026-11-17T02:00:00Z", "Succeeded"));
    let (_, recovered) = decided(&failed, &backups, "2026-11-17T02:10:00Z");
    assert_eq!(condition(&recovered, READY).status, "True");
    assert_eq!(rpo_state(&recovered), "Compliant");
    assert_eq!(recovered.status.unwrap().consecutive_failures, 0);
}

#[test]
fn failures_are_still_counted_when_their_backups_are_gone() {
    let days = ["15", "16", "17"];
    let failed: Vec<BackupView> =
        days.map(|day| backup(&format!("2026-11-{day}T02:00:00Z"), "Failed")).to_vec();
    let mut known = policy(json!({}));
    known.status = Some(BackupPolicyStatus { consecutive_failures: 9, ..BackupPolicyStatus::default() });
    let (_, known) = decided(&known, &failed, "2026-11-17T02:10:00Z");
    assert_eq!(known.status.unwrap().consecutive_failures, 9);
}

#[test]
fn a_clock_that_was_set_back_starts_and_deletes_nothing() {
    let days = ["14", "15", "16"];
    let points: Vec<BackupView> =
        days.map(|day| backup(&format!("2026-11-{day}T02:00:00Z"), "Succeeded")).to_vec();
    let mut noted = policy(json!({}));
    let last_slot = Some(Time(at("2026-11-17T02:00:00Z")));
    noted.status = Some(BackupPolicyStatus { last_slot: last_slot.clone(), ..BackupPolicyStatus::default() });
    let (outcome, skewed) = decided(&noted, &points, "2026-11-17T00:00:05Z");
    assert_eq!((outcome.start, outcome.delete.len()), (None, 0));
    assert_eq!(condition(&skewed, CLOCK_SKEW).status, "True");
    assert_eq!(skewed.status.as_ref().unwrap().last_slot, last_slot);
    let (_, sane) = decided(&skewed, &points, "2026-11-17T02:01:00Z");
    assert!(sane.status.unwrap().conditions.iter().all(|condition| condition.type_ != CLOCK_SKEW));
}

#[test]
fn a_last_slot_of_next_year_is_reset_and_the_schedule_resumes() {
    let mut noted = policy(json!({}));
    let was = at("2027-11-17T02:00:00Z");
    noted.status = Some(BackupPolicyStatus { last_slot: Some(Time(was)), ..BackupPolicyStatus::default() });
    let (outcome, reset) = decided(&noted, &[], "2026-11-17T10:00:00Z");
    assert_eq!(outcome.notes, [Note::LastSlotReset { was }]);
    assert_eq!(outcome.delete, Vec::<String>::new());
    assert_eq!(reset.status.unwrap().last_slot, Some(Time(at("2026-11-17T02:00:00Z"))));
    assert_eq!(outcome.wake_at, Some(at("2026-11-18T02:00:00Z")));
}

#[test]
fn a_run_in_the_way_of_a_replacing_slot_is_cancelled_once_and_the_slot_starts_after_it() {
    let replacing = policy(json!({"schedule": {"cron": "0 2 * * *", "concurrency": "Replace"}}));
    let mut running = vec![backup("2026-11-14T02:00:00Z", "Freezing")];
    running[0].uid = "run-uid".to_owned();
    let (_, noted) = decided(&replacing, &running, "2026-11-14T02:00:20Z");
    let (outcome, queued) = decided(&noted, &running, "2026-11-15T02:00:00Z");
    let name = running[0].name.clone();
    assert_eq!(outcome.cancel, [Cancel { name: name.clone(), uid: "run-uid".to_owned() }]);
    assert_eq!(outcome.start, None, "what is frozen is thawed first");
    assert_eq!(outcome.notes, [Note::Replaced { backup: name, slot: at("2026-11-15T02:00:00Z") }]);
    assert_eq!(queued.status.as_ref().unwrap().last_slot, Some(Time(at("2026-11-14T02:00:00Z"))));

    running[0].cancelled = true;
    let (outcome, queued) = decided(&queued, &running, "2026-11-15T02:00:05Z");
    assert_eq!((outcome.cancel.len(), outcome.start, outcome.notes.len()), (0, None, 0));

    let mut ended = backup("2026-11-14T02:00:00Z", "Failed");
    ended.finished = Some(at("2026-11-15T02:00:09Z"));
    let (outcome, after) = decided(&queued, &[ended], "2026-11-15T02:00:10Z");
    let slot = at("2026-11-15T02:00:00Z");
    assert_eq!(outcome.start, Some(Start { slot, trigger: Trigger::Schedule }));
    assert_eq!(after.status.unwrap().missed, BTreeMap::new());
}

#[test]
fn a_run_that_a_person_started_is_never_cancelled_for_a_slot() {
    let replacing = policy(json!({"schedule": {"cron": "0 2 * * *", "concurrency": "Replace"}}));
    let mut manual = backup("2026-11-14T02:00:00Z", "Preparing");
    manual.slot = None;
    let (_, seen) = decided(&replacing, &[], "2026-11-13T09:00:00Z");
    let (outcome, seen) = decided(&seen, &[manual.clone()], "2026-11-14T02:00:00Z");
    assert_eq!((outcome.cancel.len(), outcome.start), (0, None));
    manual.standing = Standing::Proven;
    manual.finished = Some(at("2026-11-14T02:10:00Z"));
    let (outcome, _) = decided(&seen, &[manual], "2026-11-14T02:10:01Z");
    assert_eq!(outcome.start.map(|start| start.slot), Some(at("2026-11-14T02:00:00Z")));
}

#[test]
fn neither_forbid_nor_queue_cancels_a_run() {
    for concurrency in ["Forbid", "Queue"] {
        let policy = policy(json!({"schedule": {"cron": "0 2 * * *", "concurrency": concurrency}}));
        let running = [backup("2026-11-14T02:00:00Z", "Freezing")];
        let (_, noted) = decided(&policy, &running, "2026-11-14T02:00:20Z");
        let (outcome, noted) = decided(&noted, &running, "2026-11-15T02:00:00Z");
        assert_eq!((outcome.cancel.len(), outcome.start), (0, None), "{concurrency}");
        let missed = noted.status.unwrap().missed.get("concurrency").copied();
        assert_eq!(missed, (concurrency == "Forbid").then_some(1), "{concurrency}");
    }
}

#[test]
fn run_on_create_runs_once_when_the_policy_is_first_accepted() {
    let eager = policy(json!({"schedule": {"cron": "0 2 * * *", "runOnCreate": true}}));
    let created = at("2026-11-13T09:00:00Z");
    let (outcome, noted) = decided(&eager, &[], "2026-11-13T09:00:01Z");
    assert_eq!(outcome.start, Some(Start { slot: created, trigger: Trigger::Initial }));
    assert_eq!(noted.status.as_ref().unwrap().last_slot, Some(Time(created)));
    let (outcome, again) = decided(&noted, &[], "2026-11-13T09:00:02Z");
    assert_eq!(outcome.start, None);
    assert_eq!(outcome.wake_at, Some(at("2026-11-14T02:00:00Z")));
    assert_eq!(again.status.as_ref().unwrap().schedule_since, Some(Time(created)), "no edit");

    // The policy came before what it needs: the run is due when it is accepted.
    let broken = policy(json!({"schedule": {"cron": "bad", "runOnCreate": true}}));
    let (outcome, broken) = decided(&broken, &[], "2026-11-13T09:00:01Z");
    assert_eq!(outcome.start, None);
    let corrected = BackupPolicy { spec: eager.spec.clone(), ..broken };
    let (outcome, _) = decided(&corrected, &[], "2026-11-13T15:00:00Z");
    assert_eq!(outcome.start, Some(Start { slot: created, trigger: Trigger::Initial }));
}

#[test]
fn run_on_create_that_is_set_later_or_on_a_suspended_policy_runs_nothing() {
    let (_, seen) = decided(&policy(json!({})), &[], "2026-11-13T09:00:00Z");
    let eager = policy(json!({"schedule": {"cron": "0 2 * * *", "runOnCreate": true}})).spec;
    let edited = BackupPolicy { spec: eager.clone(), ..seen };
    let (outcome, edited) = decided(&edited, &[], "2026-11-13T10:00:00Z");
    assert_eq!(outcome.start, None);
    let (outcome, _) = decided(&edited, &[], "2026-11-13T10:01:00Z");
    assert_eq!(outcome.start, None);

    let mut suspended = policy(json!({}));
    suspended.spec = BackupPolicy { spec: eager.clone(), ..suspended.clone() }.spec;
    suspended.spec.suspend = true;
    let (outcome, suspended) = decided(&suspended, &[], "2026-11-13T09:00:01Z");
    assert_eq!(outcome.start, None);
    let resumed = BackupPolicy { spec: eager, ..suspended };
    assert_eq!(decided(&resumed, &[], "2026-11-13T10:00:00Z").0.start, None);
}

#[test]
fn the_first_run_waits_for_a_run_that_a_person_started_meanwhile() {
    let schedule = json!({"cron": "0 2 * * *", "runOnCreate": true, "concurrency": "Queue"});
    let eager = policy(json!({"schedule": schedule}));
    let mut manual = backup("2026-11-13T09:00:00Z", "Preparing");
    manual.slot = None;
    let (outcome, seen) = decided(&eager, &[manual.clone()], "2026-11-13T09:00:01Z");
    assert_eq!(outcome.start, None);
    manual.standing = Standing::Failed;
    manual.finished = Some(at("2026-11-13T09:10:00Z"));
    let (outcome, _) = decided(&seen, &[manual], "2026-11-13T09:10:01Z");
    let expected = Start { slot: at("2026-11-13T09:00:00Z"), trigger: Trigger::Initial };
    assert_eq!(outcome.start, Some(expected));
}

#[test]
fn what_a_blackout_drops_is_counted_when_it_is_due_and_told_by_no_event() {
    let blackouts = json!([{"start": "0 22 * * *", "duration": "8h"}]);
    let dark = policy(json!({"schedule": {"cron": "0 2,12 * * *", "blackouts": blackouts}}));
    let (outcome, seen) = decided(&dark, &[], "2026-11-13T09:00:00Z");
    assert_eq!(outcome.wake_at, Some(at("2026-11-13T12:00:00Z")));
    let (outcome, noted) = decided(&seen, &[], "2026-11-13T12:00:00Z");
    assert!(outcome.start.is_some());
    assert_eq!(outcome.wake_at, Some(at("2026-11-14T02:00:00Z")), "to count it");
    let status = noted.status.as_ref().unwrap();
    assert_eq!(status.next_slots[0], "2026-11-14T12:00:00+00:00");
    assert_eq!(status.max_interval_seconds, Some(86_400), "not the ten hours of the expression");
    let (outcome, passed) = decided(&noted, &[], "2026-11-14T02:00:00Z");
    assert_eq!((outcome.start, outcome.notes.len()), (None, 0));
    let status = passed.status.unwrap();
    assert_eq!(status.missed, BTreeMap::from([("blackout".to_owned(), 1)]));
    assert_eq!(status.last_slot, Some(Time(at("2026-11-14T02:00:00Z"))));
    assert_eq!(
        outcome.wake_at,
        Some(at("2026-11-14T11:00:01Z")),
        "the objective of 26h, before the next slot"
    );
}

#[test]
fn a_deferred_slot_is_shown_at_the_end_of_its_window() {
    let blackouts = json!([{"start": "0 22 * * *", "duration": "8h", "action": "Defer"}]);
    let dark = policy(json!({"schedule": {"cron": "0 2 * * *", "blackouts": blackouts}}));
    let (_, seen) = decided(&dark, &[], "2026-11-13T09:00:00Z");
    assert_eq!(seen.status.as_ref().unwrap().next_slots[0], "2026-11-14T06:00:00+00:00");
    let (outcome, seen) = decided(&seen, &[], "2026-11-14T02:00:00Z");
    assert_eq!((outcome.start, outcome.wake_at), (None, Some(at("2026-11-14T06:00:00Z"))));
    let (outcome, _) = decided(&seen, &[], "2026-11-14T06:00:00Z");
    let expected = Start { slot: at("2026-11-14T02:00:00Z"), trigger: Trigger::Schedule };
    assert_eq!(outcome.start, Some(expected));
}

#[test]
fn while_the_clocks_differ_backups_go_on_and_nothing_is_deleted() {
    let days = ["14", "15", "16"];
    let points: Vec<BackupView> =
        days.map(|day| backup(&format!("2026-11-{day}T02:00:00Z"), "Succeeded")).to_vec();
    let (_, noted) = decided(&policy(json!({})), &points, "2026-11-16T02:10:00Z");
    let (outcome, skewed) = decided_beside(&noted, &points, "2026-11-17T02:00:00Z", Some(-400));
    assert!(outcome.start.is_some());
    assert_eq!(outcome.delete, Vec::<String>::new());
    assert_eq!(condition(&skewed, CLOCK_SKEW).reason, "ClockDiffers");
    assert!(condition(&skewed, CLOCK_SKEW).message.contains("400 s behind"), "{skewed:?}");
    assert_eq!(outcome.notes.len(), 1);
    let (again, skewed) = decided_beside(&skewed, &points, "2026-11-17T02:00:30Z", Some(-400));
    assert_eq!(again.notes, [], "told once");
    let (outcome, sane) = decided(&skewed, &points, "2026-11-17T02:01:00Z");
    assert_eq!(outcome.delete, [points[0].name.clone()]);
    assert!(sane.status.unwrap().conditions.iter().all(|condition| condition.type_ != CLOCK_SKEW));
}

#[test]
fn a_schedule_that_came_into_force_in_the_future_is_in_force_now() {
    let (_, mut seen) = decided(&policy(json!({})), &[], "2026-11-13T09:00:00Z");
    // Edited while the clock ran a year ahead.
    let status = seen.status.as_mut().unwrap();
    status.schedule_since = Some(Time(at("2027-11-13T09:00:00Z")));
    let (outcome, resumed) = decided(&seen, &[], "2026-11-13T10:00:00Z");
    assert_eq!(outcome.wake_at, Some(at("2026-11-14T02:00:00Z")));
    assert_eq!(resumed.status.unwrap().schedule_since, Some(Time(at("2026-11-13T10:00:00Z"))));
}

#[test]
fn a_last_slot_that_cannot_be_read_is_reset_with_an_event() {
    for text in ["9999-12-30T00:00:00Z", "9999-12-31T23:59:59Z", "once upon a time"] {
        let mut object = serde_json::to_value(policy(json!({}))).unwrap();
        object["status"] =
            json!({"lastSlot": text, "scheduleSince": text, "scheduleSeen": "0 2 * * * Etc/UTC"});
        let noted: BackupPolicy = serde_json::from_value(object).unwrap();
        let (outcome, reset) = decided(&noted, &[], "2026-11-17T10:00:00Z");
        assert!(matches!(outcome.notes[..], [Note::LastSlotReset { .. }]), "{text}: {:?}", outcome.notes);
        assert_eq!(outcome.notes[0].reason(), "LastSlotReset");
        let status = reset.status.as_ref().unwrap();
        assert_eq!(status.last_slot, Some(Time(at("2026-11-17T02:00:00Z"))), "{text}");
        assert_eq!(outcome.wake_at, Some(at("2026-11-18T02:00:00Z")), "{text}");
    }
}

#[test]
fn every_refusal_to_run_counts_under_its_own_reason() {
    let (_, seen) = decided(
        &policy(json!({"schedule": {"cron": "0 2 * * *", "startingDeadline": "1h"}})),
        &[],
        "2026-11-13T09:00:00Z",
    );
    let (outcome, late) = decided(&seen, &[], "2026-11-15T04:00:00Z");
    let missed = [("controller_down".to_owned(), 1), ("deadline".to_owned(), 1)];
    assert_eq!(late.status.unwrap().missed, BTreeMap::from(missed));
    let told: Vec<String> = outcome.notes.iter().map(Note::message).collect();
    assert_eq!(told, ["1 slot(s) did not run: controller_down", "1 slot(s) did not run: deadline"]);
    assert!(outcome.notes.iter().all(|note| note.reason() == "MissedSlots"));
}

#[test]
fn a_schedule_that_cannot_meet_the_objective_says_so() {
    let sparse = policy(json!({"schedule": {"cron": "0 2 * * 1"}}));
    let (_, sparse) =
        decided(&sparse, &[backup("2026-11-16T02:00:00Z", "Succeeded")], "2026-11-16T03:00:00Z");
    assert_eq!(sparse.status.as_ref().unwrap().rpo.as_ref().unwrap().attainable, Some(false));
    assert_eq!(condition(&sparse, RPO_ATTAINABLE).status, "False");
    assert!(condition(&sparse, RPO_ATTAINABLE).message.contains("604800 s"), "{sparse:?}");
    assert_eq!(rpo_state(&sparse), "Unattainable");
}

fn slots(policy: &BackupPolicy) -> Option<(u64, u64)> {
    policy.status.as_ref().unwrap().slots.as_ref().map(|counts| (counts.met, counts.failed))
}

#[test]
fn each_slot_is_counted_once_when_its_run_ends_and_stays_counted_when_its_backup_is_gone() {
    let policy = policy(json!({}));
    let running = [backup("2026-11-14T02:00:00Z", "Freezing")];
    let (_, policy) = decided(&policy, &running, "2026-11-14T02:01:00Z");
    assert_eq!(slots(&policy), None);
    let met = [backup("2026-11-14T02:00:00Z", "Succeeded")];
    let (_, policy) = decided(&policy, &met, "2026-11-14T02:06:00Z");
    let (_, policy) = decided(&policy, &met, "2026-11-14T02:07:00Z");
    assert_eq!(slots(&policy), Some((1, 0)));
    let failed = [backup("2026-11-15T02:00:00Z", "Failed")];
    let (_, policy) = decided(&policy, &failed, "2026-11-15T02:06:00Z");
    assert_eq!(slots(&policy), Some((1, 1)));
    // Only those of this very policy that a slot started.
    let mut other = backup("2026-11-16T02:00:00Z", "Succeeded");
    other.policy_uid = Some("predecessor".into());
    let mut by_hand = backup("2026-11-16T03:00:00Z", "Succeeded");
    by_hand.slot = None;
    let (_, policy) = decided(&policy, &[other, by_hand], "2026-11-16T04:00:00Z");
    assert_eq!(slots(&policy), Some((1, 1)));
}
