//! The way that everything goes well, and what becomes of a point when its Backup is deleted.

use std::fs;
use std::time::Duration;

use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use stillpoint_api::backup::{
    ABANDON_ANNOTATION, APPLICATION_LABEL, ATTEMPT_LABEL, BACKUP_LABEL, BACKUP_UID_LABEL, CLAIM_ANNOTATION,
    CONSISTENCY_ANNOTATION, FINISHED, JournalKind, NAMESPACE_LABEL, Phase, SNAPSHOTS_FINALIZER, SUCCEEDED,
};
use stillpoint_api::evidence::{Consistency, HoldKind};
use stillpoint_api::policy::Continuity;
use stillpoint_api::restore::RestorePhase;
use stillpoint_api::{Backup, Restore};
use stillpoint_simcluster::{Fault, FaultAction};

use crate::stage::{NAMESPACE, SOON, Stage, Wish, create, eventually, journal, why};

fn proven(backup: &Backup) {
    let status = backup.status.as_ref().unwrap();
    assert_eq!(status.phase, Phase::Succeeded, "{:#?}", status.conditions);
    assert_eq!(status.consistency, Some(Consistency::Application), "{:#?}", status.verdict);
    assert_eq!(
        journal(backup),
        [(JournalKind::Freezing, String::new()), (JournalKind::Thawed, String::new())]
    );
    assert_eq!(why(backup), "Completed");
    for type_ in [SUCCEEDED, FINISHED] {
        assert!(status.conditions.iter().any(|one| one.type_ == type_ && one.status == "True"), "{type_}");
    }
    assert!(backup.finalizers().iter().any(|one| one == SNAPSHOTS_FINALIZER));
    assert_eq!(status.attempt, 1);
    assert!(status.executor.as_deref().unwrap().starts_with("first_"), "{:?}", status.executor);
}

#[tokio::test]
async fn a_locked_database_gives_an_application_point_that_was_cut_while_it_was_locked() {
    let stage = Stage::faithful("locked").await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    proven(&backup);
    assert!(!stage.frozen());
    assert_eq!(stage.went_through(), ["opened", "frozen", "thawed", "closed"]);

    let content = stage.one_point_is_left().await;
    let copy = stage.copies().remove(0);
    assert_eq!(fs::read_to_string(copy.join("state")).unwrap(), "frozen\n", "the cut lies inside the hold");
    let status = backup.status.clone().unwrap();
    assert_eq!(status.continuity, Some(Continuity::Position));
    assert_eq!(content.spec.deletion_policy, "Retain");
    let nonce = status.journal[0].nonce.clone();
    let uid = backup.uid().unwrap();
    let labels = content.labels();
    for (label, value) in
        [(BACKUP_LABEL, "b"), (BACKUP_UID_LABEL, &uid), (NAMESPACE_LABEL, NAMESPACE), (ATTEMPT_LABEL, &nonce)]
    {
        assert_eq!(labels.get(label).map(String::as_str), Some(value), "{label}");
    }
    assert_eq!(content.annotations()[CONSISTENCY_ANNOTATION], "Application");
    assert_eq!(content.annotations()[CLAIM_ANNOTATION], "data");
    let snapshot = stage.snapshots().get(&status.members[0].volume_snapshot).await.unwrap();
    assert_eq!(snapshot.labels()[APPLICATION_LABEL], "db");
    assert_eq!(snapshot.labels()[ATTEMPT_LABEL], nonce);

    // The ledger knows when the copy was made; the evidence has to contain it.
    let cut = stage.cluster.ledger().into_iter().find(|entry| entry.event == "cut").unwrap();
    let start = status.window.as_ref().unwrap().started_at.as_ref().unwrap().0;
    let hold = &status.holds[0];
    let at = |offset: stillpoint_api::evidence::Offset| {
        start.checked_add(jiff::SignedDuration::from_micros(offset.0)).unwrap()
    };
    assert!(at(hold.frozen.as_ref().unwrap().at) <= cut.cut_start.unwrap());
    assert!(cut.at <= at(hold.thawed.unwrap()));
    assert_eq!(hold.facts["durable"], "on");
    stage.end().await;
}

#[tokio::test]
async fn inside_the_window_nothing_is_asked_of_the_api_but_the_snapshots() {
    let stage = Stage::faithful("window").await;
    stage.back_up("b").await;
    proven(&stage.finished("b").await);
    let asked: Vec<(String, String)> = stage
        .cluster
        .audit()
        .into_iter()
        // The tests' own looks, and the replica's Lease, which is renewed whatever else happens.
        .filter(|entry| !(entry.verb == "get" && entry.resource == "backups") && entry.resource != "leases")
        .map(|entry| (entry.verb, entry.resource))
        .collect();
    let write = |entry: &&(String, String)| entry.0 == "update" && entry.1 == "backups/status";
    let writes: Vec<usize> =
        asked.iter().enumerate().filter(|(_, entry)| write(entry)).map(|(at, _)| at).collect();
    // Between the entries Freezing and Thawed; after the thaw the pods are looked at once more: those selected, and
    // whoever else mounts a member.
    let window = &asked[writes[1] + 1..writes[2]];
    let expected = [("create", "volumesnapshots"), ("list", "pods"), ("list", "pods")];
    assert_eq!(window, expected.map(|(verb, resource)| (verb.to_owned(), resource.to_owned())));
    stage.end().await;
}

#[tokio::test]
async fn an_observed_database_gives_an_application_point_and_is_never_locked() {
    let stage = Stage::with("observed", Wish { locks: false, ..Wish::default() }).await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    proven(&backup);
    assert_eq!(stage.went_through(), ["opened", "closed"]);
    let status = backup.status.unwrap();
    assert_eq!(status.continuity, None, "nothing is locked");
    assert_eq!(status.resolved.unwrap().applications[0].hold, HoldKind::Observer);
    stage.end().await;
}

#[tokio::test]
async fn a_deleted_backup_takes_its_snapshots_and_their_data_with_it() {
    let stage = Stage::faithful("deleted").await;
    stage.back_up("b").await;
    proven(&stage.finished("b").await);
    stage.one_point_is_left().await;
    gone(&stage.backups(), "b").await;
    stage.nothing_is_left().await;
    stage.end().await;
}

#[tokio::test]
async fn a_deleted_backup_takes_along_a_content_whose_snapshot_went_before_while_the_api_did_not_answer() {
    let stage = Stage::faithful("orphaned").await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    let member = backup.status.unwrap().members[0].volume_snapshot.clone();
    let of_same_attempt = format!("{}00000000", &member[..member.len() - 8]);
    stage.orphan("left", &of_same_attempt).await;
    let outage = Fault::new("list", "volumesnapshots", FaultAction::Status(503)).times(3);
    stage.cluster.faults().inject(outage);
    gone(&stage.backups(), "b").await;
    stage.nothing_is_left().await;
    stage.end().await;
}

#[tokio::test]
async fn an_abandoned_backup_goes_and_its_data_stays() {
    let stage = Stage::faithful("abandoned").await;
    stage.back_up("b").await;
    proven(&stage.finished("b").await);
    let abandon = json!({"metadata": {"annotations": {ABANDON_ANNOTATION: "true"}}});
    stage.backups().patch("b", &PatchParams::default(), &Patch::Merge(&abandon)).await.unwrap();
    gone(&stage.backups(), "b").await;
    stage.one_point_is_left().await;
    stage.end().await;
}

#[tokio::test]
async fn a_held_backup_that_somebody_deletes_stays_with_its_data_until_it_is_released() {
    let stage = Stage::faithful("held").await;
    stage.back_up("b").await;
    proven(&stage.finished("b").await);
    let hold = async |hold: serde_json::Value| {
        let patch = Patch::Merge(json!({"spec": {"hold": hold}}));
        stage.backups().patch("b", &PatchParams::default(), &patch).await.unwrap();
    };
    hold(json!({"reason": "case 4711"})).await;
    stage.backups().delete("b", &DeleteParams::default()).await.unwrap();
    let told = async || {
        let notes: Vec<String> =
            stage.events().await.into_iter().filter(|one| one.0 == "DeletionHeld").map(|one| one.1).collect();
        notes.first().map(|note| assert!(note.contains("case 4711"), "{note}"))
    };
    eventually("the hold is told", SOON, told).await;
    stage.one_point_is_left().await;
    assert!(stage.backups().get("b").await.unwrap().metadata.deletion_timestamp.is_some());
    hold(serde_json::Value::Null).await;
    is_gone(&stage.backups(), "b").await;
    stage.nothing_is_left().await;
    stage.end().await;
}

#[tokio::test]
async fn a_backup_that_a_restore_reads_goes_when_that_has_finished() {
    let stage = Stage::faithful("read").await;
    stage.back_up("b").await;
    proven(&stage.finished("b").await);
    let slow = FaultAction::Delay(Duration::from_secs(3));
    stage.cluster.faults().inject(Fault::new("create", "persistentvolumeclaims", slow));
    create(
        &stage.cluster,
        json!({
            "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Restore",
            "metadata": {"name": "r", "namespace": NAMESPACE},
            "spec": {"source": {"backupRef": {"name": "b"}}, "target": {"clone": {}}},
        }),
    )
    .await;
    let restores: Api<Restore> = Api::namespaced(stage.cluster.client(), NAMESPACE);
    eventually("the Restore has its point", SOON, async || restores.get("r").await.unwrap().status?.backup)
        .await;
    stage.backups().delete("b", &DeleteParams::default()).await.unwrap();
    eventually("the wait is told", SOON, async || {
        stage.events().await.iter().any(|(reason, _)| reason == "DeletionWaits").then_some(())
    })
    .await;
    stage.one_point_is_left().await;
    is_gone(&stage.backups(), "b").await;
    let phase = restores.get("r").await.unwrap().status.unwrap().phase;
    assert_eq!(phase, RestorePhase::Succeeded, "it had its data to the end");
    stage.end().await;
}

async fn gone(api: &Api<Backup>, name: &str) {
    api.delete(name, &DeleteParams::default()).await.unwrap();
    is_gone(api, name).await;
}

async fn is_gone(api: &Api<Backup>, name: &str) {
    eventually("the Backup is gone", SOON, async || api.get_opt(name).await.unwrap().is_none().then_some(()))
        .await;
}
