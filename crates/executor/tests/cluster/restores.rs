//! Points brought back as new claims.

use std::fs;

use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use stillpoint_api::Restore;
use stillpoint_api::restore::RestorePhase;
use stillpoint_api::template::HookTemplate;
use stillpoint_executor::restore::copy::{Copy, Kind, Wish as Asked};
use stillpoint_simcluster::{CLASS, Fault, FaultAction};

use crate::controller::{Controller, by_hand};
use crate::stage::{NAMESPACE, POD, SOON, Stage, Wish, application, claims, create, eventually};

async fn restored(stage: &Stage, name: &str, source: Value, clone: Value) -> Restore {
    restore(stage, name, source, clone).await;
    ended(stage, name).await
}

async fn restore(stage: &Stage, name: &str, source: Value, clone: Value) {
    create(
        &stage.cluster,
        json!({
            "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Restore",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"source": source, "target": {"clone": clone}},
        }),
    )
    .await;
}

async fn ended(stage: &Stage, name: &str) -> Restore {
    let api: Api<Restore> = Api::namespaced(stage.cluster.client(), NAMESPACE);
    eventually(&format!("Restore {name} ends"), SOON, async || {
        let restore = api.get(name).await.unwrap();
        let phase = restore.status.as_ref()?.phase;
        matches!(phase, RestorePhase::Succeeded | RestorePhase::Failed).then_some(restore)
    })
    .await
}

fn outcome(restore: &Restore) -> (RestorePhase, String) {
    let status = restore.status.as_ref().unwrap();
    let succeeded = status.conditions.iter().find(|one| one.type_ == "Succeeded").unwrap();
    (status.phase, succeeded.reason.clone())
}

/// What the volume of a claim says.
async fn content(stage: &Stage, claim: &str, file: &str) -> String {
    let volume = claims(stage).get(claim).await.unwrap().spec.unwrap().volume_name.unwrap();
    let volumes: Api<PersistentVolume> = Api::all(stage.cluster.client());
    let handle = volumes.get(&volume).await.unwrap().spec.unwrap().csi.unwrap().volume_handle;
    fs::read_to_string(stage.cluster.root().join("volumes").join(handle).join(file)).unwrap()
}

#[tokio::test]
async fn a_point_comes_back_as_a_claim_with_its_data() {
    let stage = Stage::faithful("clone").await;
    fs::write(stage.volume.join("orders"), "before").unwrap();
    stage.back_up("b").await;
    stage.finished("b").await;
    fs::write(stage.volume.join("orders"), "after").unwrap();

    let source = json!({"backupRef": {"name": "b"}});
    let restore = restored(&stage, "r", source.clone(), json!({})).await;
    assert_eq!(outcome(&restore), (RestorePhase::Succeeded, "Completed".into()));
    let status = restore.status.unwrap();
    assert_eq!(status.backup.as_deref(), Some("b"));
    assert_eq!((status.claims[0].claim_name.as_str(), status.claims[0].bound), ("r-data", true));
    assert!(status.rto_seconds.is_some_and(|seconds| seconds > 0.0) && status.data_time.is_some());
    assert_eq!(content(&stage, "r-data", "orders").await, "before");
    assert_eq!(content(&stage, "r-data", "state").await, "frozen\n");

    // Somebody's claim of that name is left as it is.
    create(
        &stage.cluster,
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "mine-data", "namespace": NAMESPACE},
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": CLASS,
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }),
    )
    .await;
    let before = claims(&stage).get("mine-data").await.unwrap().metadata.uid;
    let restore = restored(&stage, "taken", source, json!({"prefix": "mine-"})).await;
    assert_eq!(outcome(&restore), (RestorePhase::Failed, "ClaimExists".into()));
    assert_eq!(claims(&stage).get("mine-data").await.unwrap().metadata.uid, before);

    crate::rules::rule(&stage, "gold", json!({"allow": {"restoreTargets": ["Drill"]}})).await;
    let source = json!({"backupRef": {"name": "b"}});
    let restore = restored(&stage, "outside", source, json!({})).await;
    assert_eq!(outcome(&restore), (RestorePhase::Failed, "RuleViolation".into()));
    assert!(claims(&stage).get_opt("outside-data").await.unwrap().is_none());
    stage.end().await;
}

#[tokio::test]
async fn an_unknown_backup_is_named() {
    let stage = Stage::faithful("unknown").await;
    let restore = restored(&stage, "r", json!({"backupRef": {"name": "nowhere"}}), json!({})).await;
    assert_eq!(outcome(&restore), (RestorePhase::Failed, "BackupNotFound".into()));
    stage.end().await;
}

#[tokio::test]
async fn the_latest_point_of_a_policy_is_its_newest() {
    let stage = Stage::faithful("latest").await;
    create(
        &stage.cluster,
        json!({
            "apiVersion": "stillpoint.dev/v1alpha1", "kind": "BackupPolicy",
            "metadata": {"name": "nightly", "namespace": NAMESPACE},
            "spec": {"schedule": {"cron": "0 3 * * *"}, "applications": [application()]},
        }),
    )
    .await;
    let latest = json!({"latest": {"policyRef": {"name": "nightly"}}});
    let restore = restored(&stage, "early", latest.clone(), json!({})).await;
    assert_eq!(outcome(&restore), (RestorePhase::Failed, "NoProvenPoint".into()));
    for (backup, orders) in [("b1", "one"), ("b2", "two")] {
        fs::write(stage.volume.join("orders"), orders).unwrap();
        stage.back_up_as(backup, json!({"policyRef": {"name": "nightly"}})).await;
        assert!(stage.finished(backup).await.proven());
    }
    let restore = restored(&stage, "r", latest, json!({})).await;
    assert_eq!(outcome(&restore), (RestorePhase::Succeeded, "Completed".into()));
    assert_eq!(restore.status.unwrap().backup.as_deref(), Some("b2"));
    assert_eq!(content(&stage, "r-data", "orders").await, "two");
    let heard = stage.controller.as_ref().unwrap().heard.clone();
    let told = heard.until("restored", 2).await;
    assert_eq!(
        told,
        [r#"restored "" Failed"#, r#"restored "nightly" Succeeded"#],
        "nothing was found to restore at first"
    );
    let hooks = heard.of("hook");
    for part in ["Acquire", "Hold", "Thaw"] {
        let went = format!(r#"hook "nightly" db {part} Succeeded"#);
        assert_eq!(hooks.iter().filter(|told| **told == went).count(), 2, "{hooks:?}");
    }
    assert!(hooks.iter().all(|told| told.ends_with("Succeeded")), "{hooks:?}");
    assert!(heard.of("violation").is_empty());
    stage.end().await;
}

/// How often a claim was asked for.
fn claims_asked_for(stage: &Stage) -> usize {
    let audit = stage.cluster.audit();
    audit.iter().filter(|one| one.verb == "create" && one.resource == "persistentvolumeclaims").count()
}

#[tokio::test]
async fn of_two_replicas_one_carries_a_restore_out() {
    let mut stage = Stage::faithful("restores-claimed").await;
    let second = Controller::start(&stage.cluster, "second");
    stage.back_up("b").await;
    stage.finished("b").await;
    let before = claims_asked_for(&stage);
    let names = ["r0", "r1", "r2", "r3"];
    for name in names {
        restore(&stage, name, json!({"backupRef": {"name": "b"}}), json!({})).await;
    }
    for name in names {
        let restore = ended(&stage, name).await;
        assert_eq!(outcome(&restore), (RestorePhase::Succeeded, "Completed".into()), "{restore:#?}");
    }
    assert_eq!(claims_asked_for(&stage) - before, names.len(), "nobody asked for a claim twice");
    second.kill();
    stage.controller.take().unwrap().stop().await;
    stage.end().await;
}

#[tokio::test]
async fn a_restore_whose_replica_was_killed_is_finished_by_another_from_the_same_point() {
    let mut stage = Stage::faithful("restores-replaced").await;
    let policy = json!({"policyRef": {"name": "nightly"}});
    create(
        &stage.cluster,
        json!({
            "apiVersion": "stillpoint.dev/v1alpha1", "kind": "BackupPolicy",
            "metadata": {"name": "nightly", "namespace": NAMESPACE},
            "spec": {"schedule": {"cron": "0 3 * * *"}, "applications": [application()]},
        }),
    )
    .await;
    stage.back_up_as("b1", policy.clone()).await;
    let point = stage.finished("b1").await;
    assert!(point.proven());

    // Its replica is killed before the claim is there.
    let slow = FaultAction::Delay(Duration::from_secs(60));
    stage.cluster.faults().inject(Fault::new("create", "persistentvolumeclaims", slow));
    restore(&stage, "r", json!({"latest": policy}), json!({})).await;
    let api: Api<Restore> = Api::namespaced(stage.cluster.client(), NAMESPACE);
    let first = eventually("the point is chosen", SOON, async || {
        let status = api.get("r").await.unwrap().status?;
        status.backup.is_some().then_some(status.executor)
    })
    .await;
    // Killed sooner, the other replica's request would be the slow one.
    let asked = async || (stage.cluster.faults().hits() == 1).then_some(());
    eventually("its claim is asked for", SOON, asked).await;
    stage.controller.take().unwrap().kill();
    // Meanwhile there is a newer point.
    stage.back_up_as("b2", json!({"policyRef": {"name": "nightly"}})).await;
    let mut newer = point.status.clone().unwrap();
    newer.cut.as_mut().unwrap().0 += SignedDuration::from_hours(1);
    let patch = Patch::Merge(json!({"status": newer}));
    stage.backups().patch_status("b2", &PatchParams::default(), &patch).await.unwrap();

    stage.controller = Some(Controller::start(&stage.cluster, "second"));
    let restore = ended(&stage, "r").await;
    assert_eq!(outcome(&restore), (RestorePhase::Succeeded, "Completed".into()));
    let status = restore.status.unwrap();
    assert_ne!(status.executor, first);
    assert_eq!(status.backup.as_deref(), Some("b1"), "what was chosen stays chosen");
    // It counts from the first start, and the first replica's Lease had to run out.
    assert!(status.rto_seconds.is_some_and(|seconds| seconds > 1.0), "{:?}", status.rto_seconds);
    assert_eq!(content(&stage, "r-data", "state").await, "frozen\n");
    stage.end().await;
}

#[tokio::test]
async fn a_restore_outlives_requests_that_are_not_answered() {
    let stage = Stage::faithful("restores-unanswered").await;
    stage.back_up("b").await;
    stage.finished("b").await;
    let faults = stage.cluster.faults();
    // One at each step: what is there of the try before is taken up by the next.
    faults.inject(Fault::new("get", "volumesnapshots", FaultAction::Status(500)));
    faults.inject(Fault::new("get", "volumesnapshotcontents", FaultAction::Close));
    faults.inject(Fault::new("create", "persistentvolumeclaims", FaultAction::LoseResponse));
    faults.inject(Fault::new("get", "persistentvolumeclaims", FaultAction::Status(504)));
    let restore = restored(&stage, "r", json!({"backupRef": {"name": "b"}}), json!({})).await;
    assert_eq!(outcome(&restore), (RestorePhase::Succeeded, "Completed".into()));
    assert_eq!(faults.hits(), 4);
    assert_eq!(restore.status.unwrap().claims.len(), 1);
    assert_eq!(content(&stage, "r-data", "state").await, "frozen\n");
    stage.end().await;
}

/// A pod on restored claims, which keeps them as the database's pod does.
async fn copy_on(stage: &Stage, name: &str, claim: &str) {
    let mount = stage.cluster.root().join(format!("mnt-{name}"));
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "db", "image": "database", "command": ["sh", "-c", ": >ready; sleep 100000"], "workingDir": mount,
                "readinessProbe": {"exec": {"command": ["test", "-f", "ready"]}, "periodSeconds": 1},
                "volumeMounts": [{"name": "data", "mountPath": mount}],
            }],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
        },
    });
    create(&stage.cluster, pod).await;
    let pods: Api<Pod> = Api::namespaced(stage.cluster.client(), NAMESPACE);
    eventually("the copy runs", SOON, async || {
        let status = pods.get(name).await.ok()?.status?;
        let ready = status.conditions?.iter().any(|one| one.type_ == "Ready" && one.status == "True");
        ready.then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_copy_is_checked_by_the_template_that_the_run_used_and_an_original_never() {
    let recipe = json!({
        "afterRestore": [{"name": "resume", "command": ["sh", "-c", "test ! -f broken && echo open >state"]}],
        "checks": [
            {"name": "orders", "command": ["cat", "orders"], "expect": {"equals": "before"}},
            {"name": "resumed", "command": ["cat", "state"], "expect": {"equals": "open"}},
            {"name": "program", "command": ["no-such-program-of-the-copy"]},
        ],
    });
    let stage = Stage::with("copy", Wish { recipe: Some(recipe), ..Wish::default() }).await;
    fs::write(stage.volume.join("orders"), "before").unwrap();
    stage.back_up("b").await;
    stage.finished("b").await;
    fs::write(stage.volume.join("orders"), "after").unwrap();
    // What was run is kept, whatever becomes of the template.
    let templates: Api<HookTemplate> = Api::namespaced(stage.cluster.client(), NAMESPACE);
    templates.delete("database", &Default::default()).await.unwrap();
    restored(&stage, "r", json!({"backupRef": {"name": "b"}}), json!({})).await;
    copy_on(&stage, "copy", "r-data").await;

    let (context, wish) = (by_hand(&stage.cluster), Asked::default());
    let copy = Copy::find(&context, NAMESPACE, "copy", &wish).await.unwrap();
    assert_eq!(
        (copy.backup.as_str(), copy.template.as_str(), copy.place().as_str()),
        ("b", "database", "copy/db")
    );
    let mut told = Vec::new();
    let done = copy.check(&context, |done| told.push(done.name.clone())).await;
    assert_eq!(told, ["resume", "orders", "resumed", "program"]);
    assert!(done[..3].iter().all(|done| done.failure.is_none()), "{done:?}");
    let why = done[3].failure.clone().unwrap();
    assert!(why.contains("copy/db") && why.contains("no-such-program-of-the-copy"), "{why}");

    // A copy that is not what it should be, and one that cannot even be made usable.
    let volume = stage.cluster.root().join("mnt-copy").canonicalize().unwrap();
    fs::write(volume.join("orders"), "something else").unwrap();
    let done = copy.check(&context, |_| {}).await;
    assert_eq!(done[1].failure.as_deref(), Some("expected \"before\", got \"something else\""));
    fs::write(volume.join("broken"), "").unwrap();
    let done = copy.check(&context, |_| {}).await;
    assert!(done.len() == 1 && done[0].kind == Kind::AfterRestore && done[0].failure.is_some(), "{done:?}");

    // The original: not a step was run in it.
    let refused = Copy::find(&context, NAMESPACE, POD, &wish).await.unwrap_err();
    assert_eq!(refused.reason, "NotACopy");
    let unknown = Copy::find(&context, NAMESPACE, "nowhere", &wish).await.unwrap_err();
    assert_eq!(unknown.reason, "PodNotFound");
    stage.end().await;
}
