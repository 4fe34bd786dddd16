//! What deletes data, and what does not (docs/api.md).

use std::time::Duration;

use jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use stillpoint_api::Backup;
use stillpoint_api::backup::{ABANDON_ANNOTATION, BACKUP_LABEL, NAMESPACE_LABEL, READY, SNAPSHOT_DELETED};
use stillpoint_api::snapshot::{VolumeSnapshot, VolumeSnapshotContent};
use stillpoint_e2e::install::product_again;
use stillpoint_e2e::load::Engine;
use stillpoint_e2e::wait::{Look, now_micros, until};
use stillpoint_e2e::world::{MARIADB, MARIADB_LOG, World};
use stillpoint_e2e::{Outcome, Present as _, Problem, ensure, point};

use crate::mariadb::by_hand;
use crate::postgres::sample;

const DELETED_WITHIN: Duration = Duration::from_secs(60);
/// What is told by watches alone, on a machine that does other things besides.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Runs `policy` and returns the Backup's name and the handle of its data.
async fn taken(world: &mut World, policy: &str) -> Outcome<(String, String)> {
    let backup = world.run(MARIADB, policy).await?;
    point::verify(&world.cluster, &backup).await?;
    Ok((backup.name_any(), handle_of(&backup)?))
}

fn handle_of(backup: &Backup) -> Outcome<String> {
    let members = &backup.status.as_ref().present("status")?.members;
    members.first().and_then(|member| member.handle.clone()).present("the handle")
}

async fn set_up(world: &mut World, policy: &str) -> Outcome<Api<Backup>> {
    world.database(MARIADB, Engine::Mariadb, None).await?;
    world.controller().await?;
    world.policy(MARIADB, policy, by_hand(&json!({}))).await?;
    world.accepted(MARIADB, policy).await?;
    Ok(Api::namespaced(world.cluster.client.clone(), MARIADB))
}

async fn gone(world: &World, backups: &Api<Backup>, name: &str) -> Outcome {
    until(&format!("Backup {name} to be gone"), DELETED_WITHIN, async || {
        let there = backups.get_opt(name).await?;
        Ok(Look::at(there.is_none().then_some(()), "it is there"))
    })
    .await?;
    // Waiting inside would be too late: the Backup goes only after its snapshots.
    let left = world.snapshots_of(MARIADB, name).await?;
    ensure!(left.is_empty(), "Backup {name} is gone, its snapshots are not: {left:?}");
    Ok(())
}

async fn data_gone(world: &World, handle: &str) -> Outcome {
    until("the driver to have deleted the data", DELETED_WITHIN, async || {
        Ok(Look::at(world.cluster.ledger.deleted(handle)?.then_some(()), handle))
    })
    .await
}

/// A content that the snapshot controller made after its snapshot had gone, as it does when it had not seen the deletion: the
/// sweep at the controller's start removes it with its data, and leaves the point and a content of somebody else alone.
pub async fn orphaned_content(world: &mut World) -> Outcome {
    set_up(world, "orphaned").await?;
    let (name, handle) = taken(world, "orphaned").await?;
    world.stop_controller().await?;
    let contents: Api<VolumeSnapshotContent> = Api::all(world.cluster.client.clone());
    let point = world.contents_of(MARIADB, &name).await?.into_iter().next().present("the point's content")?;
    let snapshot = point.spec.volume_snapshot_ref.name.clone().present("its snapshot")?;
    let of_same_attempt = format!("{}00000000", snapshot.get(..snapshot.len() - 8).present("its stem")?);
    let mut orphans = Vec::new();
    for (content, snapshot) in
        [("orphan-of-ours", of_same_attempt), ("orphan-of-another", "nightly".to_owned())]
    {
        // Never used before: the driver names its snapshot after it, and its ledger keeps what was deleted.
        let uid = format!("00000000-0000-0000-{:04}-{:012}", orphans.len(), now_micros() % 1_000_000_000_000);
        let object = json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent", "metadata": {"name": content},
            "spec": {
                "deletionPolicy": "Delete", "driver": point.spec.driver, "source": point.spec.source,
                "volumeSnapshotClassName": point.spec.volume_snapshot_class_name,
                "volumeSnapshotRef": {
                    "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "namespace": MARIADB,
                    "name": snapshot, "uid": uid,
                },
            },
        });
        contents.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        let what = format!("{content} to be cut");
        let cut = until(&what, DELETED_WITHIN, async || {
            let handle = contents.get(content).await?.status.and_then(|status| status.snapshot_handle);
            Ok(Look::at(handle, "no handle yet"))
        });
        orphans.push(cut.await?);
    }
    let [ours, another] = orphans.as_slice() else { return Err(Problem("two were made".into())) };
    world.controller().await?;
    until("the orphan to be gone", DELETED_WITHIN, async || {
        let there = contents.get_opt("orphan-of-ours").await?;
        Ok(Look::at(there.is_none().then_some(()), "it is there"))
    })
    .await?;
    data_gone(world, ours).await?;
    for (whose, handle) in [("the point", &handle), ("somebody else", another)] {
        ensure!(!world.cluster.ledger.deleted(handle)?, "the data of {whose} is gone");
    }
    world.delete_content("orphan-of-another").await
}

/// `retention.last: 2`: of four points the older two go, with their data; the newer two stay.
pub async fn retention_deletes_data(world: &mut World) -> Outcome {
    let backups = set_up(world, "kept").await?;
    let mut taken_points = Vec::new();
    for _ in 0..4 {
        taken_points.push(taken(world, "kept").await?);
    }
    for (name, handle) in taken_points.iter().take(2) {
        gone(world, &backups, name).await?;
        data_gone(world, handle).await?;
    }
    for (name, handle) in taken_points.iter().skip(2) {
        ensure!(backups.get_opt(name).await?.is_some(), "the point {name} is one of the last 2, and gone");
        ensure!(!world.cluster.ledger.deleted(handle)?, "the data of {name} is gone");
    }
    let mine = backups.list(&ListParams::default()).await?.items;
    let left = mine.iter().filter(|one| one.policy_name() == Some("kept")).count();
    ensure!(left == 2, "{left} Backups of the policy are left");
    Ok(())
}

/// A person deletes a point: its snapshot and data go first, then the object.
pub async fn deletion(world: &mut World) -> Outcome {
    let backups = set_up(world, "deleted").await?;
    let (name, handle) = taken(world, "deleted").await?;
    backups.delete(&name, &DeleteParams::default()).await?;
    gone(world, &backups, &name).await?;
    data_gone(world, &handle).await
}

/// A VolumeSnapshot that somebody deletes: its point counts no more, the objective is measured from the one before at once,
/// the data stays, and the Backup still takes it with it.
pub async fn deletion_of_a_snapshot(world: &mut World) -> Outcome {
    let backups = set_up(world, "orphaned").await?;
    let (older, _) = taken(world, "orphaned").await?;
    let (name, handle) = taken(world, "orphaned").await?;
    let cut = async |name: &str| -> Outcome<Timestamp> {
        Ok(backups.get(name).await?.status.and_then(|status| status.cut).present("the cut")?.0)
    };
    measured_from(world, "orphaned", cut(&name).await?).await?;
    let delete = ["-n", MARIADB, "delete", "volumesnapshots", "-l", &format!("stillpoint.dev/backup={name}")];
    world.cluster.kubectl(&delete, None).await?.good("delete the snapshot behind our back")?;
    measured_from(world, "orphaned", cut(&older).await?).await?;
    let conditions = backups.get(&name).await?.status.map(|status| status.conditions).unwrap_or_default();
    let ready = conditions.iter().find(|one| one.type_ == READY).present("the condition Ready")?;
    ensure!(ready.status == "False" && ready.reason == SNAPSHOT_DELETED, "Ready is {ready:?}");
    world.event(MARIADB, &name, SNAPSHOT_DELETED).await?;
    ensure!(!world.cluster.ledger.deleted(&handle)?, "the data of {name} went with its VolumeSnapshot");
    ensure!(
        !world.contents_of(MARIADB, &name).await?.is_empty(),
        "the content of {name} went with its VolumeSnapshot"
    );
    backups.delete(&name, &DeleteParams::default()).await?;
    gone(world, &backups, &name).await?;
    data_gone(world, &handle).await
}

/// Waits until the status of a policy and `/metrics` measure its objective from this cut. No slot is due meanwhile.
async fn measured_from(world: &mut World, policy: &str, cut: Timestamp) -> Outcome {
    let labels = format!("{{namespace=\"{MARIADB}\",policy=\"{policy}\"");
    until(&format!("the objective of {policy} to be measured from {cut}"), AT_ONCE, async || {
        let status = world.policy_now(MARIADB, policy).await?.status;
        let told = status.and_then(|status| status.rpo?.reference).map(|reference| reference.0.as_second());
        let text = world.controller().await?.metrics().await?;
        let shown = sample(&text, "stillpoint_policy_rpo_reference_timestamp_seconds", &labels);
        let good = told == Some(cut.as_second())
            && shown.is_some_and(|shown| (shown - cut.as_microsecond() as f64 / 1e6).abs() < 1e-5);
        Ok(Look::at(good.then_some(()), format!("status {told:?}, /metrics {shown:?}")))
    })
    .await
}

/// The Backups of a deleted policy stay, and a policy of the same name takes them over and prunes.
pub async fn deletion_of_a_policy(world: &mut World) -> Outcome {
    let backups = set_up(world, "removed").await?;
    let older = taken(world, "removed").await?;
    let newer = taken(world, "removed").await?;
    world
        .cluster
        .kubectl(&["-n", MARIADB, "delete", "backuppolicy", "removed"], None)
        .await?
        .good("delete")?;
    let labels = format!("{{namespace=\"{MARIADB}\"");
    until("the Backups of the deleted policy to be counted as orphans", AT_ONCE, async || {
        let text = world.controller().await?.metrics().await?;
        let shown = sample(&text, "stillpoint_orphaned_backups", &labels);
        Ok(Look::at(shown.filter(|shown| *shown >= 2.0).map(drop), format!("{shown:?}")))
    })
    .await?;
    for (name, handle) in [&older, &newer] {
        ensure!(backups.get_opt(name).await?.is_some(), "{name} went with its policy");
        ensure!(!world.cluster.ledger.deleted(handle)?, "the data of {name} went with its policy");
    }
    world.policy(MARIADB, "removed", by_hand(&json!({"retention": {"last": 1}}))).await?;
    gone(world, &backups, &older.0).await?;
    data_gone(world, &older.1).await?;
    until("the new policy to have the newer point", AT_ONCE, async || {
        let points = world.policy_now(MARIADB, "removed").await?.status.and_then(|now| now.recovery_points);
        let ready = points.map(|points| points.ready);
        Ok(Look::at((ready == Some(1)).then_some(()), format!("{ready:?}")))
    })
    .await?;
    ensure!(!world.cluster.ledger.deleted(&newer.1)?, "the data of the newest point is gone");
    Ok(())
}

/// Nobody deletes a held Backup where the admission policy is installed; where it is not, it stays with its data until the
/// hold is taken away.
pub async fn deletion_of_a_held_backup(world: &mut World) -> Outcome {
    const BINDING: &str = "stillpoint-holds";
    let backups = set_up(world, "held").await?;
    let (name, handle) = taken(world, "held").await?;
    let hold = async |hold: serde_json::Value| -> Outcome {
        let patch = Patch::Merge(json!({"spec": {"hold": hold}}));
        backups.patch(&name, &PatchParams::default(), &patch).await?;
        Ok(())
    };
    hold(json!({"reason": "case 4711"})).await?;
    let refused = backups.delete(&name, &DeleteParams::default()).await.is_err();
    ensure!(refused, "the admission policy let a held Backup be deleted");

    world
        .cluster
        .kubectl(&["delete", "validatingadmissionpolicybinding", BINDING], None)
        .await?
        .good("take the admission policy away")?;
    until("the admission policy to be gone", AT_ONCE, async || {
        let deleted = backups.delete(&name, &DeleteParams::default()).await;
        Ok(Look::at(deleted.is_ok().then_some(()), "it refuses the deletion"))
    })
    .await?;
    world.event(MARIADB, &name, "DeletionHeld").await?;
    ensure!(!world.cluster.ledger.deleted(&handle)?, "the data of the held Backup is gone");
    ensure!(world.snapshots_of(MARIADB, &name).await?.len() == 1, "the snapshot of the held Backup is gone");
    hold(serde_json::Value::Null).await?;
    gone(world, &backups, &name).await?;
    data_gone(world, &handle).await?;
    product_again(&world.cluster, world.place).await
}

/// A namespace takes its Backups along and not their data, which is found by the label of the contents.
pub async fn deletion_of_a_namespace(world: &mut World) -> Outcome {
    world.database(MARIADB_LOG, Engine::Mariadb, Some("--log-bin=binlog --sync-binlog=1")).await?;
    world.controller().await?;
    world.policy(MARIADB_LOG, "ended", by_hand(&json!({}))).await?;
    world.accepted(MARIADB_LOG, "ended").await?;
    let backup = world.run(MARIADB_LOG, "ended").await?;
    point::verify(&world.cluster, &backup).await?;
    let handle = handle_of(&backup)?;
    let delete = ["delete", "namespace", MARIADB_LOG, "--timeout=60s"];
    world.cluster.kubectl(&delete, None).await?.good("delete the namespace")?;
    let label = format!("{NAMESPACE_LABEL}={MARIADB_LOG}");
    let contents: Api<VolumeSnapshotContent> = Api::all(world.cluster.client.clone());
    let left = contents.list(&ListParams::default().labels(&label)).await?.items;
    let found = left.iter().any(|one| {
        let of_backup = one.labels().get(BACKUP_LABEL) == Some(&backup.name_any());
        let kept = one.spec.deletion_policy == "Retain" && one.metadata.deletion_timestamp.is_none();
        of_backup && kept && one.status.as_ref().and_then(|now| now.snapshot_handle.as_ref()) == Some(&handle)
    });
    ensure!(found, "no content of the deleted namespace has the handle {handle}");
    ensure!(!world.cluster.ledger.deleted(&handle)?, "the data of {} is gone", backup.name_any());
    // Ours to clear away: nobody else will.
    for content in left {
        world.delete_content(&content.name_any()).await?;
    }
    data_gone(world, &handle).await
}

/// The definition of Backups takes every Backup along, and no data. Installed again, the product goes on.
pub async fn deletion_of_the_definition(world: &mut World) -> Outcome {
    set_up(world, "undefined").await?;
    let (name, handle) = taken(world, "undefined").await?;
    let delete = ["delete", "crd", "backups.stillpoint.dev", "--timeout=60s"];
    world.cluster.kubectl(&delete, None).await?.good("delete the definition of Backups")?;
    let kept = world.contents_of(MARIADB, &name).await?;
    ensure!(kept.iter().all(|one| one.metadata.deletion_timestamp.is_none()), "a content is being deleted");
    ensure!(kept.len() == 1 && world.snapshots_of(MARIADB, &name).await?.len() == 1, "not all is left");
    ensure!(!world.cluster.ledger.deleted(&handle)?, "the data of {name} went with the definition");
    product_again(&world.cluster, world.place).await?;
    let (after, _) = taken(world, "undefined").await?;
    ensure!(after != name, "no new Backup");
    ensure!(!world.cluster.ledger.deleted(&handle)?, "the data of {name} went after all");
    // Of every Backup of the suite, snapshots and data are left: ours to clear away, but for what is new.
    let snapshots: Api<VolumeSnapshot> = Api::all(world.cluster.client.clone());
    for snapshot in snapshots.list(&ListParams::default().labels(BACKUP_LABEL)).await?.items {
        if snapshot.labels().get(BACKUP_LABEL) == Some(&after) {
            continue;
        }
        let namespace = snapshot.namespace().present("the snapshot's namespace")?;
        let content = snapshot.status.as_ref().and_then(|now| now.bound_volume_snapshot_content_name.clone());
        let in_namespace: Api<VolumeSnapshot> = Api::namespaced(world.cluster.client.clone(), &namespace);
        in_namespace.delete(&snapshot.name_any(), &DeleteParams::default()).await?;
        if let Some(content) = content {
            world.delete_content(&content).await?;
        }
    }
    data_gone(world, &handle).await
}

/// With the annotation the object goes at once and the data stays, findable by its labels.
pub async fn abandon(world: &mut World) -> Outcome {
    let backups = set_up(world, "abandoned").await?;
    let (name, handle) = taken(world, "abandoned").await?;
    let content = world
        .contents_of(MARIADB, &name)
        .await?
        .first()
        .map(|content| content.name_any())
        .present("the content")?;
    let annotation = Patch::Merge(json!({"metadata": {"annotations": {ABANDON_ANNOTATION: "true"}}}));
    backups.patch(&name, &PatchParams::default(), &annotation).await?;
    backups.delete(&name, &DeleteParams::default()).await?;
    until(&format!("Backup {name} to be gone"), DELETED_WITHIN, async || {
        Ok(Look::at(backups.get_opt(&name).await?.is_none().then_some(()), "it is there"))
    })
    .await?;
    let left = world.contents_of(MARIADB, &name).await?;
    let kept = left.iter().any(|one| one.name_any() == content && one.spec.deletion_policy == "Retain");
    ensure!(kept, "the content {content} did not stay");
    ensure!(!world.cluster.ledger.deleted(&handle)?, "the data of {name} is gone");
    // Ours to clear away: nobody else will.
    let delete = ["-n", MARIADB, "delete", "volumesnapshots", "-l", &format!("stillpoint.dev/backup={name}")];
    world.cluster.kubectl(&delete, None).await?.good("delete the abandoned snapshot")?;
    world.delete_content(&content).await?;
    data_gone(world, &handle).await
}
