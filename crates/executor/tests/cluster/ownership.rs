//! Several replicas, workloads that two runs want, runs that are cancelled, and what is left of runs that are gone.

use std::time::Duration;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use stillpoint_api::Backup;
use stillpoint_api::backup::{JournalKind, LEFT_QUIESCED, Phase};
use stillpoint_api::evidence::Consistency;
use stillpoint_executor::ownership::Timing;
use stillpoint_simcluster::{Fault, FaultAction, Knobs};

use crate::controller::{Controller, brief};
use crate::stage::{NAMESPACE, SOON, Stage, Wish, application, create, eventually, journal, why};

/// Long enough for the database to be found frozen, and well inside the budget.
const SLOW_CUT: Duration = Duration::from_secs(4);

fn leases(client: Client) -> Api<Lease> {
    Api::namespaced(client, "default")
}

/// Names of the Leases that are there, of replicas or of workloads.
async fn leases_of(stage: &Stage, what: &str) -> Vec<String> {
    let params = ListParams::default().labels(&format!("stillpoint.dev/lease={what}"));
    let all = leases(stage.cluster.client()).list(&params).await.unwrap().items;
    all.iter().map(ResourceExt::name_any).collect()
}

async fn workloads_are_free(stage: &Stage) {
    eventually("every workload lock is released", SOON, async || {
        leases_of(stage, "workload").await.is_empty().then_some(())
    })
    .await;
}

fn run(attempts: u32) -> Value {
    json!({
        "applications": [application()],
        "freeze": {"maxHold": "5s"},
        "run": {"maxAttempts": attempts},
    })
}

/// A run that waits for FROZEN for as long as a test needs.
fn never_frozen() -> Value {
    json!({
        "applications": [application()],
        "freeze": {"maxHold": "30s", "acquireTimeout": "20s"},
        "run": {"maxAttempts": 1},
    })
}

async fn cancel(stage: &Stage, name: &str) {
    let patch = Patch::Merge(json!({"spec": {"cancel": true}}));
    stage.backups().patch(name, &PatchParams::default(), &patch).await.unwrap();
}

fn executor(backup: &Backup) -> String {
    backup.status.as_ref().and_then(|status| status.executor.clone()).unwrap_or_default()
}

/// Starts a second replica; the two, the one that has the run first.
async fn owner_and_other(stage: &mut Stage, name: &str) -> (Controller, Controller) {
    let first = stage.controller.take().unwrap();
    let second = Controller::start(&stage.cluster, "second");
    stage.back_up_as(name, run(2)).await;
    stage.until_frozen().await;
    let owner = executor(&stage.backups().get(name).await.unwrap());
    if owner.starts_with("first_") { (first, second) } else { (second, first) }
}

#[tokio::test]
async fn two_replicas_never_both_run_one_backup_and_never_freeze_one_workload_twice() {
    let mut stage = Stage::faithful("two-replicas").await;
    let second = Controller::start(&stage.cluster, "second");
    stage.slow_cuts(Duration::from_millis(300));
    let names = ["b0", "b1", "b2", "b3"];
    for name in names {
        stage.back_up_as(name, run(2)).await;
    }
    for name in names {
        let backup = stage.finished_within(name, Duration::from_secs(60)).await;
        assert_eq!(why(&backup), "Completed", "{:#?}", backup.status);
        let status = backup.status.unwrap();
        assert_eq!((status.attempt, status.consistency), (1, Some(Consistency::Application)), "{name}");
        let executors: Vec<&str> = status.journal.iter().map(|entry| entry.executor.as_str()).collect();
        assert_eq!(executors, [status.executor.as_deref().unwrap(); 2], "{name}");
    }
    let log = stage.went_through();
    let freezes: Vec<&str> =
        log.iter().map(String::as_str).filter(|line| ["frozen", "thawed", "eof"].contains(line)).collect();
    assert_eq!(freezes, ["frozen", "thawed"].repeat(4), "one after the other: {log:?}");
    workloads_are_free(&stage).await;
    assert_eq!(leases_of(&stage, "replica").await.len(), 2);
    second.stop().await;
    stage.controller.take().unwrap().stop().await;
    assert!(leases_of(&stage, "replica").await.is_empty(), "a replica that ends takes its Lease with it");
    stage.end().await;
}

#[tokio::test]
async fn a_replica_that_is_killed_while_frozen_is_replaced_by_another_after_its_lease() {
    let mut stage = Stage::faithful("replaced").await;
    stage.slow_cuts(SLOW_CUT);
    let (owner, other) = owner_and_other(&mut stage, "b").await;
    let before = executor(&stage.backups().get("b").await.unwrap());
    owner.kill();
    stage.until_thawed(Duration::from_secs(2)).await;
    stage.slow_cuts(Duration::ZERO);
    let backup = stage.finished_within("b", Duration::from_secs(60)).await;
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
    assert_ne!(executor(&backup), before);
    stage.one_point_is_left().await;
    workloads_are_free(&stage).await;
    stage.controller = Some(other);
    stage.end().await;
}

#[tokio::test]
async fn a_run_that_was_deleted_after_its_replica_was_killed_is_unwound_before_it_goes() {
    let mut stage = Stage::faithful("deleted-orphan").await;
    stage.slow_cuts(SLOW_CUT);
    let (owner, other) = owner_and_other(&mut stage, "b").await;
    owner.kill();
    stage.backups().delete("b", &DeleteParams::default()).await.unwrap();
    eventually("the Backup is gone", Duration::from_secs(60), async || {
        stage.backups().get_opt("b").await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(!stage.frozen());
    stage.nothing_is_left().await;
    workloads_are_free(&stage).await;
    stage.controller = Some(other);
    stage.end().await;
}

#[tokio::test]
async fn a_replica_that_cannot_renew_its_lease_thaws_and_never_cuts() {
    // FROZEN never comes, so that the window stays open before any snapshot is asked for.
    let stage = Stage::misbehaving("never-frozen").await;
    stage.back_up_as("b", never_frozen()).await;
    stage.until_frozen().await;
    stage.cluster.faults().inject(Fault::new("*", "leases", FaultAction::Close).times(100_000));
    // The Lease counts for 2 s; the thaw waits for nobody.
    stage.until_thawed(Duration::from_secs(6)).await;
    stage.cluster.faults().clear();
    let backup = stage.finished("b").await;
    assert_eq!(why(&backup), "ClaimLost", "{:#?}", backup.status);
    let status = backup.status.unwrap();
    assert!(status.members.iter().all(|member| member.post_sent.is_none()));
    assert!(stage.went_through().contains(&"thawed".to_owned()), "it was told to let go");
    stage.nothing_is_left().await;
    workloads_are_free(&stage).await;
    stage.end().await;
}

#[tokio::test]
async fn a_workload_that_another_run_holds_is_waited_for_and_then_left_alone() {
    // FROZEN never comes: the window stays open, and no snapshot in flight is what the other run waits for.
    let mut stage = Stage::with("busy", Wish { how: "never-frozen", ..Wish::default() }).await;
    stage.controller.take().unwrap().stop().await;
    let impatient = Timing { busy: Duration::from_millis(500), ..brief() };
    stage.controller = Some(Controller::start_with(&stage.cluster, "impatient", impatient));
    stage.back_up_as("held", never_frozen()).await;
    stage.until_frozen().await;
    stage.back_up("late").await;
    let late = stage.finished("late").await;
    assert_eq!(why(&late), "WorkloadBusy", "{:#?}", late.status);
    let told = stage.events().await;
    assert!(
        told.iter().any(|(reason, note)| reason == "WorkloadBusy" && note.contains("shop/held")),
        "{told:?}"
    );
    cancel(&stage, "held").await;
    assert_eq!(why(&stage.finished("held").await), "Cancelled");
    workloads_are_free(&stage).await;
    stage.end().await;
}

#[tokio::test]
async fn a_run_is_cancelled_wherever_it_stands() {
    // Before anybody took it.
    let mut stage = Stage::faithful("cancelled-anywhere").await;
    stage.controller.take().unwrap().stop().await;
    stage.back_up("pending").await;
    cancel(&stage, "pending").await;
    stage.controller = Some(Controller::start(&stage.cluster, "again"));
    stage.failed_cleanly(&stage.finished("pending").await, "Cancelled").await;
    assert!(stage.went_through().is_empty(), "nothing was opened: {:?}", stage.went_through());

    // While it is frozen.
    stage.slow_cuts(SLOW_CUT);
    stage.back_up("frozen").await;
    stage.until_frozen().await;
    cancel(&stage, "frozen").await;
    stage.until_thawed(Duration::from_secs(2)).await;
    let backup = stage.finished("frozen").await;
    stage.failed_cleanly(&backup, "Cancelled").await;
    assert_eq!(stage.went_through()[..3], ["opened", "frozen", "thawed"], "it was told to let go");
    workloads_are_free(&stage).await;
    stage.end().await;
}

#[tokio::test]
async fn a_run_that_settles_is_cancelled_and_its_snapshots_go_although_the_api_server_fails_at_first() {
    let stage = Stage::faithful("cancelled-settling").await;
    stage.cluster.set_knobs(Knobs { ready_delay: Duration::from_secs(8), ..Knobs::default() });
    stage.back_up("b").await;
    eventually("it settles", SOON, async || {
        let backup = stage.backups().get("b").await.unwrap();
        (backup.status?.phase == Phase::Settling).then_some(())
    })
    .await;
    let outage = Fault::new("list", "volumesnapshots", FaultAction::Status(503)).times(2);
    stage.cluster.faults().inject(outage);
    cancel(&stage, "b").await;
    // The simulated driver deletes what it is still making only when it is made.
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "Cancelled").await;
    workloads_are_free(&stage).await;
    stage.end().await;
}

#[tokio::test]
async fn a_cancelled_run_whose_replica_was_killed_is_made_sure_of_and_not_tried_again() {
    let mut stage = Stage::faithful("cancelled-orphan").await;
    stage.slow_cuts(SLOW_CUT);
    let (owner, other) = owner_and_other(&mut stage, "b").await;
    owner.kill();
    cancel(&stage, "b").await;
    let backup = stage.finished_within("b", Duration::from_secs(60)).await;
    let entries = &backup.status.as_ref().unwrap().journal;
    let waited = entries[1].at.0.duration_since(entries[0].at.0).unsigned_abs();
    let least = Duration::from_secs(5) + brief().past_promise + brief().ready_lease;
    assert!(waited >= least, "the wait for the hold was cut short: {waited:?}");
    stage.failed_cleanly(&backup, "Cancelled").await;
    assert_eq!(backup.status.unwrap().attempt, 1);
    workloads_are_free(&stage).await;
    stage.controller = Some(other);
    stage.end().await;
}

#[tokio::test]
async fn a_run_that_waits_for_its_session_is_cancelled_without_waiting_on() {
    let mute = Wish { command: Some(vec!["sleep".into(), "1000".into()]), ..Wish::default() };
    let stage = Stage::with("cancelled-preparing", mute).await;
    stage.back_up("b").await;
    eventually("the workload is locked", SOON, async || {
        (!leases_of(&stage, "workload").await.is_empty()).then_some(())
    })
    .await;
    cancel(&stage, "b").await;
    stage.failed_cleanly(&stage.finished_within("b", Duration::from_secs(10)).await, "Cancelled").await;
    workloads_are_free(&stage).await;
    stage.end().await;
}

#[tokio::test]
async fn an_application_that_is_not_proven_thawed_is_recovered_until_it_is() {
    let wish = Wish { how: "never-thawed", recover: true, ..Wish::default() };
    let stage = Stage::with("left-quiesced", wish).await;
    std::fs::write(stage.volume.join("stuck"), "").unwrap();
    stage.back_up("b").await;
    let left = eventually("the condition is set", SOON, async || {
        let backup = stage.backups().get("b").await.unwrap();
        let status = backup.status.clone()?;
        let found = status.conditions.iter().any(|one| one.type_ == LEFT_QUIESCED && one.status == "True");
        found.then_some(backup)
    })
    .await;
    assert!(!left.finished(), "a run ends only when its application is proven thawed");
    assert_eq!(leases_of(&stage, "workload").await.len(), 2, "the pod and its claim stay locked");
    let told = stage.events().await;
    assert!(told.iter().any(|(reason, _)| reason == LEFT_QUIESCED), "{told:?}");

    std::fs::write(stage.volume.join("allow"), "").unwrap();
    let backup = stage.finished("b").await;
    assert_eq!(why(&backup), "HoldLost", "{:#?}", backup.status);
    assert!(!stage.volume.join("stuck").exists());
    let conditions = backup.status.unwrap().conditions;
    let quiesced = conditions.iter().find(|one| one.type_ == LEFT_QUIESCED).unwrap();
    assert_eq!((quiesced.status.as_str(), quiesced.reason.as_str()), ("False", "Released"));
    stage.nothing_is_left().await;
    workloads_are_free(&stage).await;
    stage.end().await;
}

#[tokio::test]
async fn the_template_of_a_run_is_kept_by_content_and_a_deleted_original_changes_nothing() {
    let wish = Wish { how: "never-thawed", recover: true, ..Wish::default() };
    let stage = Stage::with("kept-template", wish).await;
    std::fs::write(stage.volume.join("stuck"), "").unwrap();
    std::fs::write(stage.volume.join("allow"), "").unwrap();
    stage.slow_cuts(Duration::from_secs(1));
    stage.back_up("b").await;
    stage.until_frozen().await;
    let templates: Api<stillpoint_api::template::HookTemplate> =
        Api::namespaced(stage.cluster.client(), NAMESPACE);
    templates.delete("database", &DeleteParams::default()).await.unwrap();
    assert_eq!(why(&stage.finished("b").await), "HoldLost");
    assert!(!stage.volume.join("stuck").exists(), "it was recovered by the copy");
    stage.end().await;
}

#[tokio::test]
async fn the_sweeper_removes_what_is_left_of_runs_that_are_gone_and_nothing_else() {
    let mut stage = Stage::faithful("swept").await;
    stage.back_up("kept").await;
    let kept = stage.finished("kept").await;
    assert_eq!(why(&kept), "Completed");
    stage.controller.take().unwrap().stop().await;

    // Two points: one with its Backup, one whose Backup was removed past its finalizer. Both are data.
    let labels = |uid: &str, attempt: &str| json!({"stillpoint.dev/backup": "x", "stillpoint.dev/backup-uid": uid, "stillpoint.dev/attempt": attempt});
    let uid = kept.uid().unwrap();
    for (name, uid, attempt, annotations) in [
        ("of-no-backup", "gone", "n1", json!({})),
        ("of-no-backup-but-proven", "gone", "n1", json!({"stillpoint.dev/consistency": "Application"})),
        ("of-an-earlier-attempt", uid.as_str(), "n0", json!({})),
    ] {
        create(
            &stage.cluster,
            json!({
                "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
                "metadata": {
                    "name": name, "namespace": NAMESPACE, "labels": labels(uid, attempt), "annotations": annotations,
                },
                "spec": {"source": {"persistentVolumeClaimName": "data"}},
            }),
        )
        .await;
    }
    for (name, uid, holder) in
        [("stillpoint-pod-1", uid.as_str(), "x_1"), ("stillpoint-pod-2", "gone", "x_1")]
    {
        create(
            &stage.cluster,
            json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {
                    "name": name, "namespace": "default",
                    "labels": {"stillpoint.dev/lease": "workload", "stillpoint.dev/backup-uid": uid},
                },
                "spec": {"holderIdentity": holder},
            }),
        )
        .await;
    }
    let revisions: Api<ControllerRevision> = Api::namespaced(stage.cluster.client(), NAMESPACE);
    let digest = kept.status.unwrap().resolved.unwrap().applications[0].digest.clone();
    create(
        &stage.cluster,
        json!({
            "apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": 1, "data": {},
            "metadata": {
                "name": "stillpoint-template-0000", "namespace": NAMESPACE, "labels": {"stillpoint.dev/kept": "template"},
            },
        }),
    )
    .await;

    // Contents whose snapshots are gone: one of the attempt but no member, the others of nobody that we know.
    let point = kept_snapshot(&stage).await;
    let of_same_attempt = format!("{}00000000", &point[..point.len() - 8]);
    for (content, snapshot) in [
        ("of-the-attempt", of_same_attempt.as_str()),
        ("of-an-unknown-attempt", "kept-abcdefghij-00000000"),
        ("of-somebody", "nightly-data"),
    ] {
        stage.orphan(content, snapshot).await;
    }

    let often = Timing { sweep: Duration::from_millis(200), orphan: Duration::from_secs(1), ..brief() };
    stage.controller = Some(Controller::start_with(&stage.cluster, "sweeping", often));
    let names = async || -> Vec<String> {
        let all = stage.snapshots().list(&ListParams::default()).await.unwrap().items;
        let mut names: Vec<String> = all.iter().map(ResourceExt::name_any).collect();
        names.sort();
        names
    };
    let mut wanted = vec!["of-no-backup-but-proven".to_owned(), point];
    wanted.sort();
    eventually("strays are gone", SOON, async || (names().await == wanted).then_some(())).await;
    workloads_are_free(&stage).await;
    let contents = async || stage.contents().get_opt("of-the-attempt").await.unwrap();
    eventually("the orphaned content is gone", SOON, async || contents().await.is_none().then_some(())).await;
    eventually("the unused template is gone", SOON, async || {
        let all = revisions.list(&ListParams::default()).await.unwrap().items;
        (all.len() == 1 && all[0].name_any() == format!("stillpoint-template-{digest}")).then_some(())
    })
    .await;
    // Some sweeps later they are still there.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(names().await, wanted);
    for foreign in ["of-an-unknown-attempt", "of-somebody"] {
        let content = stage.contents().get(foreign).await.unwrap();
        assert_eq!(content.metadata.deletion_timestamp, None, "{foreign}");
        stage.contents().delete(foreign, &DeleteParams::default()).await.unwrap();
    }

    // The last Backup that refers to the template takes it along.
    stage.backups().delete("kept", &DeleteParams::default()).await.unwrap();
    eventually("the template is collected", SOON, async || {
        revisions.list(&ListParams::default()).await.unwrap().items.is_empty().then_some(())
    })
    .await;
    stage.end().await;
}

async fn kept_snapshot(stage: &Stage) -> String {
    let backup = stage.backups().get("kept").await.unwrap();
    backup.status.unwrap().members[0].volume_snapshot.clone()
}
