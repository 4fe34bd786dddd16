//! A controller that ends while the database is frozen: killed, or asked to.

use std::time::Duration;

use stillpoint_api::backup::JournalKind;
use stillpoint_api::evidence::Consistency;

use crate::controller::{Controller, brief};
use crate::stage::{Stage, Wish, application, eventually, journal, why};

/// Long enough for the database to be found frozen, and well inside the budget.
const SLOW_CUT: Duration = Duration::from_secs(4);

#[tokio::test]
async fn after_a_kill_the_lock_is_gone_at_once_and_the_next_controller_tries_the_slot_again() {
    let mut stage = Stage::faithful("killed").await;
    stage.slow_cuts(SLOW_CUT);
    // The shortest hold that a policy may ask for: the next controller waits it out, and what comes after it.
    let run = serde_json::json!({
        "applications": [application()], "freeze": {"maxHold": "5s"}, "run": {"maxAttempts": 2},
    });
    stage.back_up_as("b", run).await;
    stage.until_frozen().await;
    stage.controller.take().unwrap().kill();
    stage.until_thawed(Duration::from_secs(2)).await;
    assert_eq!(stage.went_through()[..3], ["opened", "frozen", "eof"], "nobody told it to let go");

    stage.slow_cuts(Duration::ZERO);
    stage.controller = Some(Controller::start(&stage.cluster, "second"));
    let backup = stage.finished_within("b", Duration::from_secs(75)).await;
    assert_eq!(why(&backup), "Completed", "{:#?}", backup.status);
    assert_eq!(
        journal(&backup),
        [
            (JournalKind::Freezing, String::new()),
            (JournalKind::Aborted, "Interrupted".into()),
            (JournalKind::Freezing, String::new()),
            (JournalKind::Thawed, String::new()),
        ]
    );
    let status = backup.status.unwrap();
    let waited = status.journal[1].at.0.duration_since(status.journal[0].at.0);
    let timing = brief();
    let least = Duration::from_secs(5) + timing.past_promise + timing.ready_lease;
    assert!(waited.unsigned_abs() >= least, "a hold may last its bound and all that: waited {waited}");
    assert_eq!(status.attempt, 2);
    assert!(status.executor.unwrap().starts_with("second_"));
    assert_eq!(status.consistency, Some(Consistency::Application));
    stage.one_point_is_left().await;
    stage.end().await;
}

#[tokio::test]
async fn after_a_kill_the_next_controller_puts_back_a_setting_by_the_value_in_the_journal() {
    let mut stage = Stage::with("setting", Wish { setting: true, ..Wish::default() }).await;
    let setting = stage.volume.join("setting");
    let now = || std::fs::read_to_string(&setting).unwrap().trim().to_owned();
    // No value that a template or the code could know.
    std::fs::write(&setting, "87.25\n").unwrap();
    stage.slow_cuts(SLOW_CUT);
    let run = serde_json::json!({
        "applications": [application()], "freeze": {"maxHold": "5s"}, "run": {"maxAttempts": 1},
    });
    stage.back_up_as("b", run).await;
    stage.until_frozen().await;
    let status = stage.backups().get("b").await.unwrap().status.unwrap();
    assert_eq!(status.journal.last().map(|last| last.entry), Some(JournalKind::Freezing));
    assert_eq!(
        status.holds[0].facts.get("old_setting").map(String::as_str),
        Some("87.25"),
        "it is stored before anything is frozen"
    );
    stage.controller.take().unwrap().kill();
    stage.until_thawed(Duration::from_secs(2)).await;
    assert_eq!(now(), "0", "the session is gone, and what it changed is not");

    stage.controller = Some(Controller::start(&stage.cluster, "second"));
    let backup = stage.finished_within("b", Duration::from_secs(75)).await;
    assert_eq!(why(&backup), "Interrupted", "{:#?}", backup.status);
    assert_eq!(now(), "87.25", "a run ends only when its application is as before");
    stage.nothing_is_left().await;
    stage.end().await;
}

#[tokio::test]
async fn a_controller_that_is_stopped_thaws_first_and_the_next_one_goes_on() {
    let mut stage = Stage::faithful("stopped").await;
    stage.slow_cuts(SLOW_CUT);
    stage.back_up_trying("b", 2).await;
    stage.until_frozen().await;
    stage.controller.take().unwrap().stop().await;
    assert!(!stage.frozen());
    assert_eq!(stage.went_through()[..3], ["opened", "frozen", "thawed"], "it was told to let go");
    let backup = stage.backups().get("b").await.unwrap();
    let last = backup.status.as_ref().unwrap().journal.last().unwrap().clone();
    assert_eq!((last.entry, last.reason.as_deref()), (JournalKind::Aborted, Some("Shutdown")));
    assert!(last.not_proven_thawed.is_empty());
    assert!(!backup.finished());

    stage.slow_cuts(Duration::ZERO);
    stage.controller = Some(Controller::start(&stage.cluster, "second"));
    let backup = stage.finished("b").await;
    assert_eq!(why(&backup), "Completed", "{:#?}", backup.status);
    assert_eq!(backup.status.unwrap().attempt, 2);
    stage.one_point_is_left().await;
    stage.end().await;
}

#[tokio::test]
async fn a_backup_deleted_while_it_is_frozen_is_thawed_and_leaves_nothing() {
    let stage = Stage::faithful("cancelled").await;
    stage.slow_cuts(SLOW_CUT);
    stage.back_up("b").await;
    stage.until_frozen().await;
    stage.backups().delete("b", &kube::api::DeleteParams::default()).await.unwrap();
    stage.until_thawed(Duration::from_secs(2)).await;
    assert_eq!(stage.went_through()[..3], ["opened", "frozen", "thawed"]);
    eventually("the Backup is gone", Duration::from_secs(30), async || {
        stage.backups().get_opt("b").await.unwrap().is_none().then_some(())
    })
    .await;
    stage.nothing_is_left().await;
    stage.end().await;
}
