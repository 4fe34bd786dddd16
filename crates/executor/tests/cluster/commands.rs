//! Holds by two commands, end to end: under the holder, as separate execs, and what is tried beside a hold.
//!
//! The application is a file that says `frozen` or `open`; what the commands did is in its log.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use stillpoint_api::Backup;
use stillpoint_api::backup::JournalEntry;
use stillpoint_api::clock::SystemClock;
use stillpoint_api::evidence::{Consistency, HoldKind};
use stillpoint_api::policy::Continuity;
use stillpoint_executor::api_client::api_client;
use stillpoint_executor::contents::ContentWatch;
use stillpoint_executor::context::Context;
use stillpoint_executor::exec::{KubeExec, exec_client_config};
use stillpoint_executor::hold::SystemEntropy;
use stillpoint_executor::observer::Unobserved;
use stillpoint_executor::ownership::Ownership;
use stillpoint_executor::rehearsal::{FENCE, Rehearsal, rehearse};
use stillpoint_executor::run::Reason;
use stillpoint_executor::storage::StorageTable;
use tokio::sync::watch;

use crate::stage::{NAMESPACE, SOON, Stage, Wish, application, eventually, why};

const FREEZE: &str = "echo frozen >DATA/state; echo frozen >>DATA/log";
const THAW: &str = "echo open >DATA/state; echo thawed >>DATA/log";
const PROBE: &str = "grep -q frozen DATA/state";

fn shell(text: &str) -> Value {
    json!(["sh", "-c", text])
}

fn commands(freeze: &str, probe: Option<&str>, direct: bool) -> Value {
    let mut commands = json!({"freeze": shell(freeze), "thaw": shell(THAW), "allowWithoutDeadline": direct});
    if let Some(probe) = probe {
        commands["probe"] = shell(probe);
    }
    json!({"freeze": {"commands": commands}, "crashSafe": {"source": "its only file"}})
}

async fn stage(name: &str, recipe: Value) -> Stage {
    Stage::with(name, Wish { recipe: Some(recipe), ..Wish::default() }).await
}

fn state(stage: &Stage) -> String {
    fs::read_to_string(stage.volume.join("state")).unwrap().trim().to_owned()
}

async fn until_state(stage: &Stage, wanted: &str, limit: Duration) {
    eventually(wanted, limit, async || (state(stage) == wanted).then_some(())).await;
}

/// A run that is proven, with its copy made inside the hold.
async fn application_point(stage: &Stage, kind: HoldKind, grade: Continuity) -> Backup {
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    let status = backup.status.as_ref().unwrap();
    assert_eq!(why(&backup), "Completed", "{status:#?}");
    assert_eq!(status.consistency, Some(Consistency::Application), "{:#?}", status.verdict);
    assert_eq!(status.continuity, Some(grade));
    assert_eq!(status.resolved.as_ref().unwrap().applications[0].hold, kind);
    assert_eq!(stage.went_through(), ["frozen", "thawed"]);
    assert_eq!(state(stage), "open");
    stage.one_point_is_left().await;
    let copy = stage.copies().remove(0);
    assert_eq!(fs::read_to_string(copy.join("state")).unwrap(), "frozen\n", "the cut lies inside the hold");
    backup
}

#[tokio::test]
async fn a_pre_hook_and_a_post_hook_are_held_by_one_process_and_their_author_vouches() {
    let recipe = json!({
        "preHook": {"command": shell(FREEZE)}, "postHook": {"command": shell(THAW)},
        "crashSafe": {"source": "its only file"},
    });
    let stage = stage("hooks", recipe).await;
    application_point(&stage, HoldKind::Commands, Continuity::Declared).await;
    stage.end().await;
}

#[tokio::test]
async fn commands_with_a_probe_prove_the_state_and_satisfy_who_asks_for_it() {
    let stage = stage("probed", commands(FREEZE, Some(PROBE), false)).await;
    application_point(&stage, HoldKind::Commands, Continuity::State).await;
    let run =
        json!({"applications": [application()], "minContinuity": "State", "freeze": {"maxHold": "12s"}});
    stage.back_up_as("c", run).await;
    let backup = stage.finished("c").await;
    assert_eq!(why(&backup), "Completed", "{:#?}", backup.status);
    stage.end().await;
}

#[tokio::test]
async fn who_asks_for_more_continuity_than_declared_gets_no_point() {
    let stage = stage("declared", commands(FREEZE, None, false)).await;
    let run = json!({
        "applications": [application()], "minContinuity": "State", "freeze": {"maxHold": "12s"},
        "run": {"maxAttempts": 1},
    });
    stage.back_up_as("b", run).await;
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "NotProven").await;
    let missing = backup.status.unwrap().verdict.unwrap().missing;
    assert!(missing.iter().any(|finding| finding.rule == 10), "{missing:?}");
    assert_eq!(state(&stage), "open");
    stage.end().await;
}

#[tokio::test]
async fn an_application_that_somebody_else_froze_is_neither_frozen_nor_thawed() {
    for direct in [false, true] {
        let stage = stage(&format!("foreign-{direct}"), commands(FREEZE, Some(PROBE), direct)).await;
        fs::write(stage.volume.join("state"), "frozen\n").unwrap();
        stage.back_up("b").await;
        let backup = stage.finished("b").await;
        assert_eq!(why(&backup), "ForeignFreeze", "{:#?}", backup.status);
        assert_eq!(stage.went_through(), [] as [&str; 0], "nothing was run");
        assert_eq!(state(&stage), "frozen", "and no thaw either");
        stage.nothing_is_left().await;
        stage.end().await;
    }
}

#[tokio::test]
async fn a_freeze_that_hangs_is_ended_and_thawed() {
    let freeze = format!("{FREEZE}; trap '' TERM; sleep 1000");
    let stage = stage("hanging", commands(&freeze, None, false)).await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "LockNotAcquired").await;
    assert_eq!(stage.went_through(), ["frozen", "thawed"]);
    assert_eq!(state(&stage), "open");
    assert_eq!(backup.status.unwrap().journal.last().unwrap().not_proven_thawed, [] as [&str; 0]);
    assert_eq!(stage.controller.as_ref().unwrap().heard.of("hook")[0], r#"hook "" db Acquire Timeout"#);
    stage.end().await;
}

#[tokio::test]
async fn a_freeze_that_fails_half_way_is_thawed_and_named() {
    let stage = stage("half", commands(&format!("{FREEZE}; exit 3"), Some(PROBE), false)).await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "LockNotAcquired").await;
    assert_eq!(stage.went_through(), ["frozen", "thawed"]);
    let last = backup.status.unwrap().journal.last().unwrap().clone();
    assert!(last.message.unwrap().contains("failed with code 3"));
    assert_eq!(last.not_proven_thawed, [] as [&str; 0], "its thaw is proven");
    stage.end().await;
}

#[tokio::test]
async fn after_a_kill_of_the_controller_the_holder_thaws_by_itself() {
    let mut stage = stage("orphan", commands(FREEZE, Some(PROBE), false)).await;
    stage.slow_cuts(Duration::from_secs(4));
    stage.back_up("b").await;
    until_state(&stage, "frozen", SOON).await;
    stage.controller.take().unwrap().kill();
    // The end of its input, within a second.
    until_state(&stage, "open", Duration::from_secs(2)).await;
    assert_eq!(stage.went_through(), ["frozen", "thawed"]);
    stage.end().await;
}

#[tokio::test]
async fn two_separate_execs_are_trusted_with_a_probe_only() {
    let probed = stage("direct-probed", commands(FREEZE, Some(PROBE), true)).await;
    application_point(&probed, HoldKind::Direct, Continuity::State).await;
    probed.end().await;

    let declared = stage("direct", commands(FREEZE, None, true)).await;
    declared.back_up("b").await;
    let backup = declared.finished("b").await;
    declared.failed_cleanly(&backup, "NotProven").await;
    assert_eq!(declared.went_through(), ["frozen", "thawed"]);
    declared.end().await;
}

#[tokio::test]
async fn a_client_that_goes_on_after_an_error_is_refused_before_anything_is_frozen() {
    let canary = json!({"canary": "unlock;\nsay CANARY {{n}};\n"});
    let wish = |how| Wish { how, recipe: Some(canary.clone()), ..Wish::default() };
    let stage = Stage::with("going-on", wish("going-on")).await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "CanaryPrinted").await;
    assert!(!stage.went_through().contains(&"frozen".to_owned()), "{:?}", stage.went_through());
    stage.end().await;

    let stage = Stage::with("stopping", wish("faithful")).await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    assert_eq!(why(&backup), "Completed", "{:#?}", backup.status);
    stage.end().await;
}

#[tokio::test]
async fn writers_left_stuck_behind_a_refused_lock_are_reported_with_who_blocks_them() {
    let probe = json!({"stallProbe": {"command": shell("cat DATA/blocker 2>/dev/null || :")}});
    let wish = || Wish { how: "never-frozen", recipe: Some(probe.clone()), ..Wish::default() };
    let stage = Stage::with("stuck", wish()).await;
    fs::write(stage.volume.join("blocker"), "session 41\nsession 42\n").unwrap();
    stage.back_up("b").await;
    let told = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            let status = stage.backups().get("b").await.unwrap().status.unwrap_or_default();
            let left = |entry: &&JournalEntry| entry.reason.as_deref() == Some("ApplicationLeftQuiesced");
            if let Some(entry) = status.journal.iter().find(left) {
                return entry.message.clone().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let message = told.await.unwrap();
    assert!(message.contains("blocked by session 41"), "{message}");
    assert!(!stage.backups().get("b").await.unwrap().finished(), "nothing goes on while writers are stuck");
    fs::remove_file(stage.volume.join("blocker")).unwrap();
    let backup = stage.finished_within("b", Duration::from_secs(90)).await;
    stage.failed_cleanly(&backup, "ApplicationLeftQuiesced").await;
    stage.end().await;

    let stage = Stage::with("unstuck", wish()).await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "LockNotAcquired").await;
    stage.end().await;
}

/// As `stillpoint hooks test` does it: without a controller's claim, and without trust in the driver.
async fn rehearsed(stage: &Stage) -> Rehearsal {
    let config = exec_client_config(stage.cluster.kube_config());
    let clock = SystemClock::shared();
    let context = Context {
        client: api_client(config.clone()).unwrap(),
        exec: Arc::new(KubeExec::from_config(config, Arc::clone(&clock)).unwrap()),
        ownership: Ownership::unclaimed("rehearsal", clock.mono(), FENCE),
        clock,
        entropy: Arc::new(SystemEntropy),
        storage: Arc::new(StorageTable::default()),
        observer: Arc::new(Unobserved),
        contents: ContentWatch::new(),
        impersonate: true,
    };
    let run = json!({"applications": [application()], "consistency": "BestEffort",
        "freeze": {"maxHold": "12s", "acquireTimeout": "2s"}});
    let backup: Backup = serde_json::from_value(json!({
        "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Backup",
        "metadata": {"name": "rehearsal", "namespace": NAMESPACE}, "spec": {"run": run},
    }))
    .unwrap();
    let (_stop, stopping) = watch::channel(None);
    rehearse(&context, backup, stopping).await.unwrap()
}

#[tokio::test]
async fn a_rehearsal_freezes_and_thaws_and_leaves_no_object() {
    let commands_stage = stage("rehearsed", commands(FREEZE, Some(PROBE), false)).await;
    let session_stage = Stage::faithful("rehearsed-session").await;
    for (stage, log) in [
        (commands_stage, vec!["frozen", "thawed"]),
        (session_stage, vec!["opened", "frozen", "thawed", "closed"]),
    ] {
        let shown = rehearsed(&stage).await;
        assert_eq!(shown.end, Ok(()));
        let hold = &shown.record.holds[0];
        assert!(hold.frozen.is_some() && hold.held.is_some() && hold.thawed.is_some(), "{hold:?}");
        eventually("it did all of it", SOON, async || (stage.went_through() == log).then_some(())).await;
        assert_eq!(stage.cluster.ledger(), [], "nothing was cut");
        assert!(stage.backups().list(&Default::default()).await.unwrap().items.is_empty());
        stage.end().await;
    }
}

#[tokio::test]
async fn a_rehearsal_of_a_freeze_that_fails_says_so_and_is_thawed() {
    let stage = stage("rehearsed-half", commands(&format!("{FREEZE}; exit 3"), None, false)).await;
    let shown = rehearsed(&stage).await;
    assert_eq!(shown.end.unwrap_err().reason, Reason::LockNotAcquired);
    assert!(shown.record.holds[0].thawed.is_some());
    assert_eq!(stage.went_through(), ["frozen", "thawed"]);
    stage.end().await;
}

#[tokio::test]
async fn a_point_of_a_server_that_acknowledges_early_is_as_old_as_the_beginning_of_prepare() {
    let recipe = json!({
        "freeze": {"none": {}}, "prepare": {"command": shell("echo prepared >>DATA/log")}, "dataTime": "Prepare",
        "crashSafe": {"source": "its log"},
    });
    let stage = stage("prepared", recipe).await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    let status = backup.status.as_ref().unwrap();
    assert_eq!(why(&backup), "Completed", "{status:#?}");
    assert_eq!(status.consistency, Some(Consistency::Application), "{:#?}", status.verdict);
    assert_eq!(stage.went_through(), ["prepared"]);
    let began = status.resolved.as_ref().unwrap().applications[0].prepared_at.clone().unwrap();
    assert!(began.0 < status.members[0].cut.as_ref().unwrap().0);
    assert_eq!(status.cut, Some(began));
    stage.end().await;
}
