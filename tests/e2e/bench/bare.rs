//! The bare storage path: VolumeSnapshots of the same claims, POSTed at once by nobody's product.

use std::time::Duration;

use futures::future::join_all;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, ResourceExt as _};
use stillpoint_api::snapshot::{
    VolumeSnapshot, VolumeSnapshotContent, VolumeSnapshotSource, VolumeSnapshotSpec,
};
use stillpoint_e2e::wait::{Look, until};
use stillpoint_e2e::world::World;
use stillpoint_e2e::{Outcome, Present as _};

use crate::measure::{Path, storage_path};
use crate::scenario::Bench;

/// Ten deletions under the default throttle take half a minute.
const GONE_WITHIN: Duration = Duration::from_secs(180);

/// Cuts every claim once and measures from the first POST received to the last handle written, by the audit log.
///
/// # Errors
/// A snapshot was not taken.
pub async fn cut(world: &World, bench: &Bench, number: usize) -> Outcome<Path> {
    let namespace = bench.scenario.name;
    let place = world.cluster.audit().length();
    let snapshots: Api<VolumeSnapshot> = Api::namespaced(world.cluster.client.clone(), namespace);
    let made = join_all(bench.claims.iter().map(async |claim| {
        let mut snapshot = VolumeSnapshot::new(
            "",
            VolumeSnapshotSpec {
                source: VolumeSnapshotSource {
                    persistent_volume_claim_name: Some(claim.clone()),
                    ..VolumeSnapshotSource::default()
                },
                volume_snapshot_class_name: Some("btrfs".into()),
            },
        );
        snapshot.metadata =
            ObjectMeta { name: Some(format!("bare-{number}-{claim}")), ..ObjectMeta::default() };
        snapshots.create(&PostParams::default(), &snapshot).await
    }))
    .await;
    let mut names = Vec::new();
    for one in made {
        let one = one?;
        names.push((one.name_any(), one.uid().present("the snapshot's UID")?));
    }
    let path = storage_path(world, place, namespace, &names).await?;
    for (name, _) in &names {
        snapshots.delete(name, &DeleteParams::default()).await?;
    }
    gone(world, namespace).await?;
    Ok(path)
}

/// Waits until no snapshot of the namespace is left, data included.
///
/// # Errors
/// Some are.
pub async fn gone(world: &World, namespace: &str) -> Outcome {
    let contents: Api<VolumeSnapshotContent> = Api::all(world.cluster.client.clone());
    until("the snapshots to be gone", GONE_WITHIN, async || {
        let mut left = contents.list(&ListParams::default()).await?.items;
        left.retain(|one| one.spec.volume_snapshot_ref.namespace.as_deref() == Some(namespace));
        Ok(Look::at(left.is_empty().then_some(()), format!("{} contents", left.len())))
    })
    .await
}
