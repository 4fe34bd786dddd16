//! Drivers that do not do what the specification says, or do it slowly: how each ends, and with which words.
//!
//! The instants of the cuts are the driver's own (its ledger), never ours.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stillpoint_api::Backup;
use stillpoint_api::backup::JournalKind;
use stillpoint_api::evidence::{Consistency, CutKind, CutSignal, Offset, RuleFinding};
use stillpoint_executor::storage_path::{PathRun, Queue};
use stillpoint_simcluster::{CLASS, CutTime, Knobs};

use crate::controller::Controller;
use crate::stage::{Stage, Wish, application, eventually, journal, why};

fn run_as(consistency: &str, snapshot: &Value) -> Value {
    json!({
        "applications": [application()],
        "freeze": {"maxHold": "12s", "acquireTimeout": "2s"},
        "run": {"maxAttempts": 1},
        "snapshot": snapshot,
        "consistency": consistency,
    })
}

/// When something of the window was, on the wall.
fn at(backup: &Backup, offset: Option<Offset>) -> Timestamp {
    let window = backup.status.as_ref().unwrap().window.as_ref().unwrap();
    let start = window.started_at.as_ref().unwrap().0;
    start.checked_add(SignedDuration::from_micros(offset.unwrap().0)).unwrap()
}

fn thawed_at(backup: &Backup) -> Timestamp {
    at(backup, backup.status.as_ref().unwrap().holds[0].thawed)
}

/// The driver's word on the only cut.
fn true_cut(stage: &Stage) -> (Timestamp, Timestamp) {
    let cuts: Vec<_> = stage.cluster.ledger().into_iter().filter(|entry| entry.event == "cut").collect();
    assert_eq!(cuts.len(), 1, "{cuts:?}");
    (cuts[0].cut_start.unwrap(), cuts[0].at)
}

fn seconds_between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

fn missing(backup: &Backup, rule: u8) -> Option<RuleFinding> {
    let verdict = backup.status.as_ref()?.verdict.clone()?;
    verdict.missing.into_iter().find(|found| found.rule == rule)
}

fn worth(backup: &Backup) -> Option<Consistency> {
    backup.status.as_ref().unwrap().consistency
}

/// What the run says about its end.
async fn told(stage: &Stage, reason: &str) -> String {
    let events = stage.events().await;
    let said: Vec<_> =
        events.iter().filter(|(said, _)| said == reason).map(|(_, note)| note.clone()).collect();
    assert!(!said.is_empty(), "no event says {reason}: {events:?}");
    said.join("; ")
}

async fn trusting(stage: &mut Stage, cut: CutKind, signal: CutSignal) {
    if let Some(first) = stage.controller.take() {
        first.stop().await;
    }
    stage.controller = Some(Controller::start_trusting(&stage.cluster, "second", cut, signal));
}

#[tokio::test]
async fn a_driver_that_is_ready_late_is_thawed_at_its_cut() {
    let stage = Stage::faithful("ready-late").await;
    stage.cluster.set_knobs(Knobs { ready_delay: Duration::from_secs(4), ..Knobs::default() });
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    assert_eq!((why(&backup).as_str(), worth(&backup)), ("Completed", Some(Consistency::Application)));
    let (_, cut) = true_cut(&stage);
    let ready =
        backup.status.as_ref().unwrap().members[0].settled.as_ref().unwrap().ready_at.clone().unwrap().0;
    assert!(seconds_between(cut, ready) >= 3.9, "it was settled before it was ready");
    assert!(
        thawed_at(&backup) < ready.checked_sub(SignedDuration::from_secs(2)).unwrap(),
        "it was held for the upload"
    );
    stage.end().await;
}

#[tokio::test]
async fn a_driver_that_answers_before_it_cuts_is_held_until_it_is_ready() {
    let mut stage = Stage::faithful("ok-early").await;
    trusting(&mut stage, CutKind::Atomic, CutSignal::Ready).await;
    stage.cluster.set_knobs(Knobs { ok_before_cut: Duration::from_secs(2), ..Knobs::default() });
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    assert_eq!((why(&backup).as_str(), worth(&backup)), ("Completed", Some(Consistency::Application)));
    let (begun, cut) = true_cut(&stage);
    let status = backup.status.as_ref().unwrap();
    assert!(at(&backup, status.holds[0].frozen.as_ref().map(|answer| answer.at)) <= begun);
    assert!(cut <= thawed_at(&backup), "it was thawed before it was cut");
    assert_eq!(status.members[0].storage.signal, CutSignal::Ready, "the entry used is evidence");
    stage.end().await;
}

/// The same driver under an entry that lies about it. The product cannot know; the ledger does.
#[tokio::test]
async fn the_ledger_shows_the_late_cut_of_a_driver_that_the_operator_wrongly_vouches_for() {
    let stage = Stage::faithful("lying-trust").await;
    stage.cluster.set_knobs(Knobs { ok_before_cut: Duration::from_secs(2), ..Knobs::default() });
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    let (begun, _) = true_cut(&stage);
    assert!(
        thawed_at(&backup) < begun,
        "the cut lies inside the hold after all: the tests above prove nothing"
    );
    stage.end().await;
}

#[tokio::test]
async fn a_policy_may_ask_for_more_care_than_the_table() {
    let stage = Stage::faithful("more-care").await;
    stage.cluster.set_knobs(Knobs { ok_before_cut: Duration::from_secs(1), ..Knobs::default() });
    stage.back_up_as("b", run_as("Required", &json!({"cutSignal": "Ready"}))).await;
    let backup = stage.finished("b").await;
    assert_eq!(worth(&backup), Some(Consistency::Application));
    assert!(true_cut(&stage).1 <= thawed_at(&backup));
    stage.end().await;
}

#[tokio::test]
async fn a_missing_cut_time_contradicts_nothing_and_the_point_stands_for_the_request() {
    let stage = Stage::faithful("no-cut-time").await;
    stage.cluster.set_knobs(Knobs {
        cut_time: CutTime::Missing,
        pre_cut_delay: Duration::from_secs(1),
        ..Knobs::default()
    });
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    assert_eq!((why(&backup).as_str(), worth(&backup)), ("Completed", Some(Consistency::Application)));
    let status = backup.status.as_ref().unwrap();
    let member = &status.members[0];
    assert_eq!(member.creation_time, Some(0), "stored as it came: 1970");
    // The earliest possible instant: an objective is never flattered.
    assert_eq!(status.cut.as_ref().unwrap().0, at(&backup, member.post_sent));
    assert!(status.cut.as_ref().unwrap().0 < true_cut(&stage).0);
    stage.end().await;
}

#[tokio::test]
async fn a_cut_that_the_driver_dates_before_our_request_is_a_contradiction_and_is_removed() {
    let stage = Stage::faithful("old-cut").await;
    stage.cluster.set_knobs(Knobs { cut_time: CutTime::Early(Duration::from_secs(60)), ..Knobs::default() });
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    let finding = missing(&backup, 6).unwrap().finding;
    assert!(
        finding.contains("claim data") && finding.contains("before the snapshot was asked for"),
        "{finding}"
    );
    assert_eq!(worth(&backup), Some(Consistency::None));
    assert_ne!(why(&backup), "Completed");
    assert!(!stage.frozen());
    stage.nothing_is_left().await;
    stage.end().await;
}

#[tokio::test]
async fn under_best_effort_a_contradicting_cut_is_kept_and_called_nothing() {
    let stage = Stage::faithful("old-cut-kept").await;
    stage.cluster.set_knobs(Knobs { cut_time: CutTime::Early(Duration::from_secs(60)), ..Knobs::default() });
    stage.back_up_as("b", run_as("BestEffort", &json!({}))).await;
    let backup = stage.finished("b").await;
    assert_eq!(worth(&backup), Some(Consistency::None));
    stage.one_point_is_left().await;
    stage.end().await;
}

#[tokio::test]
async fn a_final_error_ends_the_freeze_at_once_and_is_quoted() {
    let stage = Stage::faithful("final").await;
    stage.cluster.set_knobs(Knobs { fail_next: 50, failure: "pool is full".into(), ..Knobs::default() });
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "SnapshotFailed").await;
    let note = told(&stage, "SnapshotFailed").await;
    assert!(note.contains("claim data") && note.contains("pool is full"), "{note}");
    assert_eq!(journal(&backup).last().unwrap().0, JournalKind::Aborted);
    assert!(stage.cluster.ledger().is_empty(), "nothing was cut");
    stage.end().await;
}

/// After such a code the sidecar has to go on until it knows what became of the cut, also for a deleted content.
#[tokio::test]
async fn a_cut_that_comes_after_an_unfinal_error_is_never_adopted_and_is_deleted() {
    let stage = Stage::faithful("unfinal").await;
    stage.cluster.set_knobs(Knobs { unavailable_next: 1, failure: "busy".into(), ..Knobs::default() });
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "SnapshotFailed").await;
    assert!(told(&stage, "SnapshotFailed").await.contains("code = Unavailable"));
    let (begun, _) = true_cut(&stage);
    assert!(thawed_at(&backup) < begun, "the cut was to come after the thaw");
    assert_eq!(named(&stage, "delete"), named(&stage, "cut"), "the late copy is gone");
    assert_eq!(backup.status.unwrap().members[0].handle, None, "and nobody took it for a point");
    stage.end().await;
}

#[tokio::test]
async fn a_call_that_outlives_the_sidecars_patience_is_given_up_and_its_cut_deleted() {
    let stage = Stage::faithful("rpc-timeout").await;
    stage.cluster.set_knobs(Knobs {
        pre_cut_delay: Duration::from_millis(1500),
        sidecar_timeout: Some(Duration::from_millis(500)),
        ..Knobs::default()
    });
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "SnapshotFailed").await;
    assert!(told(&stage, "SnapshotFailed").await.contains("DeadlineExceeded"));
    assert!(thawed_at(&backup) < true_cut(&stage).0);
    assert_eq!(named(&stage, "delete"), named(&stage, "cut"), "the late copy is gone");
    stage.end().await;
}

#[tokio::test]
async fn a_slow_answer_within_the_sidecars_patience_only_lengthens_the_freeze() {
    let stage = Stage::faithful("slow-answer").await;
    stage.cluster.set_knobs(Knobs {
        post_cut_delay: Duration::from_secs(2),
        sidecar_timeout: Some(Duration::from_secs(60)),
        ..Knobs::default()
    });
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    assert_eq!(worth(&backup), Some(Consistency::Application));
    assert!(true_cut(&stage).1 < thawed_at(&backup));
    stage.end().await;
}

/// Names that are truncated until they collide: the driver takes the second snapshot for the first.
#[tokio::test]
async fn a_snapshot_that_another_content_has_is_no_cut_and_the_older_point_keeps_its_data() {
    let stage = Stage::faithful("collision").await;
    stage.back_up("first").await;
    let first = stage.finished("first").await;
    assert_eq!(worth(&first), Some(Consistency::Application));
    let kept = stage.one_point_is_left().await;
    stage.cluster.set_knobs(Knobs { repeats_handle: true, ..Knobs::default() });
    stage.back_up("second").await;
    let second = stage.finished("second").await;
    assert_eq!(why(&second), "SnapshotFailed");
    let note = told(&stage, "SnapshotFailed").await;
    assert!(note.contains("did not cut") && note.contains("--snapshot-name-uuid-length"), "{note}");
    assert!(!stage.frozen());
    // The failed attempt is removed, and the data it shares with the first point is not.
    assert_eq!(stage.one_point_is_left().await.metadata.uid, kept.metadata.uid);
    assert!(stage.cluster.ledger().iter().all(|entry| entry.event != "delete"));
    stage.end().await;
}

#[tokio::test]
async fn a_snapshot_that_is_deleted_while_it_is_made_ends_the_run_and_leaves_nothing() {
    let stage = Stage::faithful("deleted-midway").await;
    stage.slow_cuts(Duration::from_secs(3));
    stage.back_up("b").await;
    stage.until_frozen().await;
    let name = eventually("the snapshot is there", crate::stage::SOON, async || {
        let all = stage.snapshots().list(&kube::api::ListParams::default()).await.unwrap().items;
        // Once its content is there the driver is at work.
        let found = all.into_iter().find(|one| {
            one.status.as_ref().is_some_and(|status| status.bound_volume_snapshot_content_name.is_some())
        })?;
        found.metadata.name
    })
    .await;
    stage.snapshots().delete(&name, &kube::api::DeleteParams::default()).await.unwrap();
    let backup = stage.finished("b").await;
    assert_ne!(worth(&backup), Some(Consistency::Application));
    assert_ne!(why(&backup), "Completed");
    assert!(!stage.frozen());
    stage.nothing_is_left().await;
    let cuts = |event: &str| stage.cluster.ledger().iter().filter(|entry| entry.event == event).count();
    assert_eq!(cuts("cut"), cuts("delete"), "what was cut is gone");
    stage.end().await;
}

/// A database on four volumes whose lock covers them all.
fn four() -> Wish {
    let more = &[("redo", CLASS), ("undo", CLASS), ("binlog", CLASS)];
    Wish { more, layout: "AnyUnderLock", ..Wish::default() }
}

#[tokio::test]
async fn volumes_that_the_driver_makes_one_after_the_other_are_held_for_their_sum() {
    let stage = Stage::with("serialised", four()).await;
    stage.cluster.set_knobs(Knobs {
        one_at_a_time: true,
        pre_cut_delay: Duration::from_millis(700),
        ..Knobs::default()
    });
    stage.back_up_as("b", run_as("Required", &json!({"group": "Never"}))).await;
    let backup = stage.finished("b").await;
    assert_eq!((why(&backup).as_str(), worth(&backup)), ("Completed", Some(Consistency::Application)));
    let cuts: Vec<_> = stage.cluster.ledger().into_iter().filter(|entry| entry.event == "cut").collect();
    assert_eq!(cuts.len(), 4);
    assert!(cuts.iter().all(|cut| cut.at <= thawed_at(&backup)), "one was cut after the thaw");
    // And the next preflight knows why: not a throttle.
    let path = PathRun::of(backup.status.as_ref().unwrap()).unwrap();
    let Some(Queue::Serialised { step }) = path.queue() else { panic!("{path:?}") };
    assert!(step >= Duration::from_millis(650), "{step:?}");
    stage.end().await;
}

#[tokio::test]
async fn volumes_whose_sum_is_longer_than_the_promise_are_thawed_at_the_deadline_and_all_removed() {
    let stage = Stage::with("serialised-long", four()).await;
    stage.cluster.set_knobs(Knobs {
        one_at_a_time: true,
        pre_cut_delay: Duration::from_secs(3),
        ..Knobs::default()
    });
    stage.back_up_as("b", run_as("Required", &json!({"group": "Never"}))).await;
    let backup = stage.finished("b").await;
    assert_eq!(why(&backup), "CutTimeout");
    let held = backup.status.as_ref().unwrap().window.as_ref().unwrap().frozen_seconds.unwrap();
    assert!(held <= 12.0, "held for {held} s of 12");
    stage.failed_cleanly(&backup, "CutTimeout").await;
    assert_eq!(named(&stage, "cut"), named(&stage, "delete"), "what was cut, in time or late, is gone");
    stage.end().await;
}

#[tokio::test]
async fn a_driver_that_copies_is_refused_before_the_freeze_when_proof_is_required() {
    let mut stage = Stage::faithful("copy-required").await;
    trusting(&mut stage, CutKind::Copy, CutSignal::Handle).await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "StorageNotTrusted").await;
    assert!(stage.went_through().is_empty(), "it was frozen for nothing");
    stage.end().await;
}

#[tokio::test]
async fn a_driver_that_copies_gives_no_application_point() {
    let mut stage = Stage::faithful("copy-best-effort").await;
    trusting(&mut stage, CutKind::Copy, CutSignal::Handle).await;
    stage.back_up_as("b", run_as("BestEffort", &json!({}))).await;
    let backup = stage.finished("b").await;
    assert_eq!(worth(&backup), Some(Consistency::None), "{:?}", backup.status.as_ref().unwrap().verdict);
    assert!(missing(&backup, 8).is_some());
    stage.one_point_is_left().await;
    stage.end().await;
}

/// Snapshots of which the driver's ledger has such an event: a deletion may be asked for twice.
fn named(stage: &Stage, event: &str) -> BTreeSet<String> {
    let ledger = stage.cluster.ledger();
    ledger.iter().filter(|entry| entry.event == event).map(|entry| entry.snapshot.clone()).collect()
}
