//! A snapshot stack that is missing, refuses, falls silent, answers late, or whose answer is lost.

use std::time::Duration;

use stillpoint_api::Backup;
use stillpoint_api::backup::{JournalKind, Phase};
use stillpoint_api::evidence::Consistency;
use stillpoint_simcluster::{Fault, FaultAction, Knobs};

use crate::stage::{Stage, Wish, journal, why};

/// How long the database was locked, by the record.
fn locked_seconds(backup: &Backup) -> f64 {
    let hold = &backup.status.as_ref().unwrap().holds[0];
    hold.thawed.unwrap().seconds() - hold.freeze_sent.unwrap().seconds()
}

#[tokio::test]
async fn a_sidecar_that_is_down_ends_the_freeze_within_its_patience() {
    let stage = Stage::faithful("silent").await;
    stage.cluster.set_knobs(Knobs { sidecar_down: true, ..Knobs::default() });
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    assert_eq!(why(&backup), "SnapshotStackSilent");
    let locked = locked_seconds(&backup);
    assert!(locked < 8.0, "locked for {locked} s");
    assert_eq!(stage.went_through(), ["opened", "frozen", "thawed", "closed"]);
    stage.cluster.set_knobs(Knobs::default());
    stage.failed_cleanly(&backup, "SnapshotStackSilent").await;
    stage.end().await;
}

#[tokio::test]
async fn a_refused_snapshot_ends_the_freeze_and_the_slot_is_tried_again() {
    let stage = Stage::faithful("refused").await;
    stage.cluster.set_knobs(Knobs { fail_next: 1, failure: "disk on fire".into(), ..Knobs::default() });
    stage.back_up_trying("b", 2).await;
    let backup = stage.finished("b").await;
    assert_eq!(why(&backup), "Completed");
    let status = backup.status.as_ref().unwrap();
    assert_eq!((status.attempt, status.consistency), (2, Some(Consistency::Application)));
    let told = stage.events().await;
    let named =
        |(reason, note): &(String, String)| reason == "SnapshotFailed" && note.contains("disk on fire");
    assert!(told.iter().any(named), "{told:?}");
    assert_eq!(
        journal(&backup),
        [
            (JournalKind::Freezing, String::new()),
            (JournalKind::Aborted, "SnapshotFailed".into()),
            (JournalKind::Freezing, String::new()),
            (JournalKind::Thawed, String::new()),
        ]
    );
    stage.one_point_is_left().await;
    stage.end().await;
}

#[tokio::test]
async fn a_slow_upload_is_waited_for_after_the_thaw() {
    let stage = Stage::faithful("upload").await;
    stage.cluster.set_knobs(Knobs { ready_delay: Duration::from_secs(3), ..Knobs::default() });
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    assert_eq!(why(&backup), "Completed");
    let locked = locked_seconds(&backup);
    assert!(locked < 2.5, "locked for {locked} s although the upload took 3 s");
    let status = backup.status.unwrap();
    let settled = status.members[0].settled.as_ref().unwrap().ready_at.as_ref().unwrap().0;
    assert!(settled.duration_since(status.cut.unwrap().0).as_secs_f64() > 2.5);
    stage.end().await;
}

#[tokio::test]
async fn without_the_snapshot_api_nothing_is_opened() {
    let stage = Stage::with("no-api", Wish { snapshot_api: false, ..Wish::default() }).await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    assert_eq!((why(&backup).as_str(), stage.went_through().len()), ("SnapshotApiMissing", 0));
    assert!(journal(&backup).is_empty());
    stage.end().await;
}

#[tokio::test]
async fn a_post_without_an_answer_is_a_failed_post_and_what_it_made_is_removed() {
    let stage = Stage::faithful("lost-post").await;
    // The rehearsal comes first and passes.
    stage
        .cluster
        .faults()
        .inject(Fault::new("create", "volumesnapshots", FaultAction::LoseResponse).after(1));
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "SnapshotPostFailed").await;
    assert_eq!(stage.cluster.faults().hits(), 1);
    let creates = stage.cluster.audit();
    let creates =
        creates.iter().filter(|entry| entry.verb == "create" && entry.resource == "volumesnapshots");
    assert_eq!(creates.map(|entry| entry.dry_run).collect::<Vec<_>>(), [true, false], "posted once");
    assert_eq!(backup.status.unwrap().members[0].volume_snapshot_uid, None, "it was not adopted");
    stage.end().await;
}

#[tokio::test]
async fn a_post_that_is_refused_inside_the_window_ends_the_freeze() {
    let stage = Stage::faithful("refused-post").await;
    stage.cluster.faults().inject(Fault::new("create", "volumesnapshots", FaultAction::Status(403)).after(1));
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "SnapshotPostFailed").await;
    assert_eq!(stage.went_through(), ["opened", "frozen", "thawed", "closed"]);
    stage.end().await;
}

#[tokio::test]
async fn a_refused_rehearsal_ends_the_attempt_before_the_freeze() {
    let stage = Stage::faithful("quota").await;
    stage.cluster.faults().inject(Fault::new("create", "volumesnapshots", FaultAction::Status(403)));
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "SnapshotRefused").await;
    assert_eq!(backup.status.unwrap().phase, Phase::Failed);
    assert!(stage.went_through().is_empty(), "no session was opened");
    stage.end().await;
}
