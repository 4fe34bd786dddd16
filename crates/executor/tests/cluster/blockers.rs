//! What keeps writers stuck behind a lock that was not acquired: reported, or ended where the policy asks for it; and
//! barriers, which make up for settings.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use stillpoint_api::Backup;
use stillpoint_api::evidence::Consistency;

use crate::stage::{SOON, Stage, Wish, application, eventually, journal, why};

fn shell(text: &str) -> Value {
    json!(["sh", "-c", text])
}

/// A database that never answers FROZEN, and whose writers are stuck while the volume has a file `blocker`.
async fn stuck(name: &str) -> Stage {
    let recipe = json!({"stallProbe": {
        "command": shell("echo asked >>DATA/log; cat DATA/blocker 2>/dev/null || :"),
        "endBlocker": shell("echo ended {{blocker}} >>DATA/log; rm DATA/blocker"),
    }});
    let stage =
        Stage::with(name, Wish { how: "never-frozen", recipe: Some(recipe), ..Wish::default() }).await;
    fs::write(stage.volume.join("blocker"), "2 sessions wait, blocker=41 is in the way\n").unwrap();
    stage
}

async fn back_up(stage: &Stage, on_blocked: &str, attempts: u32) {
    let run = json!({
        "applications": [application()], "run": {"maxAttempts": attempts},
        "freeze": {"maxHold": "8s", "acquireTimeout": "2s", "onBlocked": on_blocked},
    });
    stage.back_up_as("b", run).await;
}

#[tokio::test]
async fn the_statement_in_the_way_is_ended_where_the_policy_asks_for_it_and_two_refusals_end_the_slot() {
    let stage = stuck("kill-blocker").await;
    back_up(&stage, "KillBlocker", 5).await;
    let backup = stage.finished_within("b", Duration::from_secs(60)).await;
    stage.failed_cleanly(&backup, "LockNotAcquired").await;
    let went = stage.went_through();
    let place =
        |what: &str| went.iter().position(|one| one == what).unwrap_or_else(|| panic!("{what}: {went:?}"));
    assert!(place("thawed") < place("asked") && place("asked") < place("ended 41"), "{went:?}");
    assert_eq!(went.iter().filter(|one| one.starts_with("ended")).count(), 1, "{went:?}");
    // The client's own end comes before or after the question.
    let last = went.iter().rfind(|one| *one != "closed");
    assert_eq!(last.map(String::as_str), Some("asked"), "{went:?}");
    let status = backup.status.as_ref().unwrap();
    assert_eq!(
        status.attempt,
        2,
        "a third try would only stop the writers once more: {:?}",
        journal(&backup)
    );
    let first = status.journal.iter().find_map(|entry| entry.message.clone()).unwrap();
    assert!(first.contains("statement 41 on db-0/db was ended"), "{first}");
    assert!(first.contains("the stall probe of db-0/db said: 2 sessions wait"), "{first}");
    eventually("an event says whose statement it was", SOON, async || {
        let events = stage.events().await;
        let told = |(reason, note): &(String, String)| {
            reason == "BlockerEnded"
                && note.contains("statement 41 on db-0/db")
                && note.contains("blocker=41 is in")
        };
        events.iter().any(told).then_some(())
    })
    .await;
    stage.end().await;
}

#[tokio::test]
async fn the_statement_in_the_way_is_reported_and_lives_on_by_default() {
    let stage = stuck("report-blocker").await;
    back_up(&stage, "Report", 1).await;
    let left = eventually("the promise has ended", Duration::from_secs(60), async || {
        let backup = stage.backups().get("b").await.unwrap();
        let (_, reason) = journal(&backup).pop()?;
        (reason == "ApplicationLeftQuiesced").then_some(backup)
    })
    .await;
    let message = left.status.unwrap().journal.pop().unwrap().message.unwrap();
    assert!(message.contains("blocker=41 is in the way"), "{message}");
    assert!(stage.volume.join("blocker").exists());
    fs::remove_file(stage.volume.join("blocker")).unwrap();
    let backup = stage.finished_within("b", Duration::from_secs(90)).await;
    stage.failed_cleanly(&backup, "ApplicationLeftQuiesced").await;
    assert!(!stage.went_through().iter().any(|one| one.starts_with("ended")), "{:?}", stage.went_through());
    stage.end().await;
}

fn with_barrier(barrier: &str) -> Value {
    json!({
        "freeze": {"commands": {
            "freeze": shell("echo frozen >DATA/state; echo frozen >>DATA/log"),
            "thaw": shell("echo open >DATA/state; echo thawed >>DATA/log"),
            "probe": shell("grep -q frozen DATA/state"),
            "barrier": shell(barrier),
        }},
        "crashSafe": {"source": "its only file", "settings": [{"name": "sync", "allowed": ["always"], "orBarrier": true}]},
    })
}

fn rule_9(backup: &Backup) -> String {
    let verdict = backup.status.as_ref().unwrap().verdict.as_ref().unwrap();
    let mut all = verdict.proved.iter().chain(&verdict.missing);
    all.find(|finding| finding.rule == 9).unwrap().finding.clone()
}

#[tokio::test]
async fn a_barrier_under_the_lock_makes_up_for_a_setting_and_one_that_fails_does_not() {
    let wish = |barrier: &str| Wish { recipe: Some(with_barrier(barrier)), ..Wish::default() };
    let stage = Stage::with("barrier", wish("echo barrier >>DATA/log; sync -f DATA/state")).await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    let status = backup.status.as_ref().unwrap();
    assert_eq!(why(&backup), "Completed", "{status:#?}");
    assert_eq!(status.consistency, Some(Consistency::Application));
    assert!(rule_9(&backup).contains("barrier command of db-0/db made up for sync"), "{}", rule_9(&backup));
    assert_eq!(stage.went_through(), ["frozen", "barrier", "thawed"]);
    let clock = status.window.as_ref().unwrap().api_clock.unwrap();
    assert!(
        clock.least_ahead_micros <= 0 && clock.most_ahead_micros >= 0,
        "both are of one machine: {clock:?}"
    );
    stage.end().await;

    let stage = Stage::with("barrier-failed", wish("exit 1")).await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "NotProven").await;
    assert!(rule_9(&backup).contains("no barrier was told"), "{}", rule_9(&backup));
    stage.end().await;
}
