//! Databases that misbehave: whatever they do, nothing stays frozen, nothing unproven is kept, and the reason is named.

use stillpoint_api::backup::JournalKind;
use stillpoint_api::evidence::Consistency;

use crate::stage::{Stage, Wish, journal, why};

/// One run against a database that misbehaves.
async fn refused(how: &'static str, reason: &str) -> (Stage, Vec<String>) {
    let stage = Stage::misbehaving(how).await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, reason).await;
    let went_through = stage.went_through();
    (stage, went_through)
}

#[tokio::test]
async fn a_wrong_password_is_named_and_nothing_is_frozen() {
    let (stage, went_through) = refused("wrong-password", "AuthenticationFailed").await;
    assert_eq!(went_through, ["opened"]);
    stage.end().await;
}

#[tokio::test]
async fn a_client_that_the_container_lacks_is_named_and_nothing_is_frozen() {
    let command = Some(vec!["no-such-client".into()]);
    let stage = Stage::with("no-client", Wish { command, ..Wish::default() }).await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "ClientMissing").await;
    stage.end().await;
}

#[tokio::test]
async fn a_lock_that_is_never_confirmed_is_given_up_and_released() {
    let (stage, went_through) = refused("never-frozen", "LockNotAcquired").await;
    assert_eq!(went_through, ["opened", "frozen", "thawed", "closed"], "it was told to let go");
    stage.end().await;
}

#[tokio::test]
async fn a_lease_longer_than_asked_for_is_refused_before_the_freeze() {
    let (stage, went_through) = refused("wrong-lease", "LeaseNotSet").await;
    assert_eq!(went_through, ["opened", "closed"]);
    stage.end().await;
}

#[tokio::test]
async fn a_lease_that_is_lost_at_the_freeze_ends_it_at_once() {
    let (stage, went_through) = refused("lost-lease", "LeaseNotSet").await;
    assert_eq!(went_through, ["opened", "frozen", "thawed", "closed"]);
    assert_eq!(stage.cluster.ledger(), [], "nothing was cut");
    stage.end().await;
}

#[tokio::test]
async fn a_session_that_dies_after_frozen_is_a_lost_hold_and_its_snapshot_is_removed() {
    let (stage, _) = refused("dying", "HoldLost").await;
    stage.end().await;
}

#[tokio::test]
async fn an_answer_of_another_server_ends_the_freeze_before_anything_is_cut() {
    let (stage, went_through) = refused("another-server", "HoldLost").await;
    assert_eq!(went_through, ["opened", "frozen", "thawed", "closed"]);
    assert_eq!(stage.cluster.ledger(), []);
    stage.end().await;
}

#[tokio::test]
async fn a_server_that_changed_by_the_closing_beat_proves_nothing() {
    let stage = Stage::misbehaving("another-server-at-the-end").await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "NotProven").await;
    let status = backup.status.unwrap();
    assert!(status.verdict.unwrap().missing.iter().any(|finding| finding.rule == 3));
    assert_ne!(status.consistency, Some(Consistency::Application));
    stage.end().await;
}

#[tokio::test]
async fn a_thaw_without_an_answer_ends_by_the_end_of_the_session_and_proves_nothing() {
    let stage = Stage::misbehaving("never-thawed").await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "HoldLost").await;
    assert_eq!(stage.went_through(), ["opened", "frozen", "eof"], "it let go at the end of its input");
    let last = backup.status.as_ref().unwrap().journal.last().unwrap().clone();
    assert_eq!(last.entry, JournalKind::Aborted);
    assert_eq!(last.not_proven_thawed, [backup.status.unwrap().holds[0].nonce.clone()]);
    stage.end().await;
}

#[tokio::test]
async fn megabytes_of_foreign_lines_change_nothing() {
    let stage = Stage::misbehaving("babbling").await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    assert_eq!(why(&backup), "Completed", "{:#?}", backup.status);
    assert_eq!(backup.status.as_ref().unwrap().consistency, Some(Consistency::Application));
    assert_eq!(
        journal(&backup).into_iter().map(|(kind, _)| kind).collect::<Vec<_>>(),
        [JournalKind::Freezing, JournalKind::Thawed]
    );
    stage.end().await;
}

#[tokio::test]
async fn what_a_client_echoes_of_a_failed_statement_is_in_no_object() {
    let (stage, _) = refused("failing-statement", "HoldLost").await;
    let status = serde_json::to_string(&stage.backups().get("b").await.unwrap().status).unwrap();
    let events = format!("{:?}", stage.events().await);
    for said in [&status, &events] {
        assert!(!said.contains("hunter2"), "{said}");
        assert!(said.contains("1064"), "the error's number helps: {said}");
    }
    stage.end().await;
}
