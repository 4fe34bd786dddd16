//! What deletes data, and what does not (docs/api.md).

use std::time::Duration;

use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use stillpoint_api::Backup;
use stillpoint_api::backup::ABANDON_ANNOTATION;
use stillpoint_e2e::load::Engine;
use stillpoint_e2e::wait::{Look, until};
use stillpoint_e2e::world::{MARIADB, World};
use stillpoint_e2e::{Outcome, Present as _, ensure, point};

use crate::mariadb::by_hand;

const DELETED_WITHIN: Duration = Duration::from_secs(60);

/// Runs `policy` and returns the Backup's name and the handle of its data.
async fn taken(world: &mut World, policy: &str) -> Outcome<(String, String)> {
    let backup = world.run(MARIADB, policy).await?;
    point::verify(&world.cluster, &backup).await?;
    let members = &backup.status.as_ref().present("status")?.members;
    let handle = members.first().and_then(|member| member.handle.clone()).present("the handle")?;
    Ok((backup.name_any(), handle))
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

/// A VolumeSnapshot that somebody deleted leaves its data, and the Backup still takes it with it.
pub async fn deletion_after_its_snapshot(world: &mut World) -> Outcome {
    let backups = set_up(world, "orphaned").await?;
    let (name, handle) = taken(world, "orphaned").await?;
    let delete = ["-n", MARIADB, "delete", "volumesnapshots", "-l", &format!("stillpoint.dev/backup={name}")];
    world.cluster.kubectl(&delete, None).await?.good("delete the snapshot behind our back")?;
    ensure!(!world.cluster.ledger.deleted(&handle)?, "the data of {name} went with its VolumeSnapshot");
    ensure!(
        !world.contents_of(MARIADB, &name).await?.is_empty(),
        "the content of {name} went with its VolumeSnapshot"
    );
    backups.delete(&name, &DeleteParams::default()).await?;
    gone(world, &backups, &name).await?;
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
