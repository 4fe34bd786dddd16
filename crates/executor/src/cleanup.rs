//! Removes snapshots of ours, data included, and waits until they are gone.
//!
//! A snapshot is ours by its labels: the UID of its Backup and the nonce of its attempt. A POST without an answer is
//! found the same way (docs/design/freeze.md §1, §5). What a driver cuts after that is found by the sweeper.

pub mod ending;
mod groups;

use std::collections::BTreeMap;
use std::time::Duration;

use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use stillpoint_api::backup::{ATTEMPT_LABEL, BACKUP_UID_LABEL};
use stillpoint_api::snapshot::{VolumeSnapshot, VolumeSnapshotContent};
use tracing::{debug, warn};

use crate::context::{Context, RequestError, bounded};

/// First pause between looks; doubles up to [`LOOK_AT_MOST`].
const LOOK_FIRST: Duration = Duration::from_millis(100);
/// Longest pause between looks.
pub const LOOK_AT_MOST: Duration = Duration::from_secs(5);
/// A deletion takes a second or two; one that takes longer may have been forgotten.
const NUDGE_AFTER: Duration = Duration::from_secs(3);
/// Annotation that changes only so that a content changes.
const NUDGE_ANNOTATION: &str = "stillpoint.dev/deletion-asked-again";

/// Which snapshots are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of one attempt, by its nonce.
    Attempt(String),
    /// Those of one Backup, by its UID.
    Backup(String),
}

impl Scope {
    fn selector(&self) -> String {
        match self {
            Self::Attempt(nonce) => format!("{ATTEMPT_LABEL}={nonce}"),
            Self::Backup(uid) => format!("{BACKUP_UID_LABEL}={uid}"),
        }
    }
}

/// Deletes the snapshots of a scope and their data; true when all are gone within `patience`.
///
/// # Errors
/// A request failed; nothing is lost by calling it again.
pub async fn remove(
    context: &Context,
    namespace: &str,
    scope: &Scope,
    patience: Duration,
) -> Result<bool, RequestError> {
    let snapshots: Api<VolumeSnapshot> = Api::namespaced(context.client.clone(), namespace);
    let contents: Api<VolumeSnapshotContent> = Api::all(context.client.clone());
    let selector = scope.selector();
    let ours = ListParams::default().labels(&selector);
    // Contents of a given-up attempt carry no label of ours: known by their snapshots alone, and these may go first.
    let mut bound = BTreeMap::new();
    let mut groups = groups::Groups::new(context, namespace);
    let mut waited = Duration::ZERO;
    let mut pause = LOOK_FIRST;
    loop {
        // Groups first: their members cannot go alone, and carry no label of ours before they are kept.
        let groups_left = groups.remove(&ours).await?;
        let mut found = bounded("list our snapshots", snapshots.list(&ours)).await?.items;
        if groups.any() {
            let all =
                bounded("list the members of our groups", snapshots.list(&ListParams::default())).await?;
            let known = |one: &VolumeSnapshot| found.iter().any(|ours| ours.metadata.uid == one.metadata.uid);
            let members: Vec<VolumeSnapshot> =
                groups.members(all.items).into_iter().filter(|one| !known(one)).collect();
            found.extend(members);
        }
        // Contents outlive their snapshots where the policy is Retain; the label was set when the point was kept.
        let kept = bounded("list our snapshot contents", contents.list(&ours)).await?.items;
        for snapshot in &found {
            if let Some(uid) = snapshot.metadata.uid.clone() {
                // The snapshot controller names a content after its snapshot's UID, and tells so in the snapshot's status
                // only later. A snapshot that is deleted in between would leave a content that nobody knows.
                let content = bound_content(snapshot).unwrap_or_else(|| format!("snapcontent-{uid}"));
                bound.insert(content, uid);
            }
        }
        let mut left = kept;
        for (name, snapshot_uid) in &bound {
            if left.iter().any(|content| content.name_any() == *name) {
                continue;
            }
            let content = bounded(format!("read snapshot content {name}"), contents.get_opt(name)).await?;
            left.extend(
                content.filter(|one| one.spec.volume_snapshot_ref.uid.as_ref() == Some(snapshot_uid)),
            );
        }
        if found.is_empty() && left.is_empty() && groups_left == 0 {
            return Ok(true);
        }
        for snapshot in &found {
            groups.let_go(&snapshots, snapshot, waited).await?;
            if groups.holds(snapshot) {
                let_data_go(context, &contents, snapshot).await?;
            } else {
                remove_snapshot(context, &snapshots, &contents, snapshot).await?;
            }
        }
        for content in &left {
            if content.metadata.deletion_timestamp.is_some() && waited >= NUDGE_AFTER {
                nudge(&contents, content, waited).await?;
            } else if !found.iter().any(|snapshot| refers_to(content, snapshot)) {
                remove_orphan(context, &contents, content).await?;
            }
        }
        if waited >= patience {
            debug!(namespace, selector, left = found.len() + left.len(), "snapshots are still being deleted");
            return Ok(false);
        }
        tokio::time::sleep(pause).await;
        waited += pause;
        pause = (pause * 2).min(LOOK_AT_MOST);
    }
}

fn bound_content(snapshot: &VolumeSnapshot) -> Option<String> {
    snapshot.status.as_ref()?.bound_volume_snapshot_content_name.clone()
}

/// Makes the driver's sidecar look at a content again.
///
/// A content that is deleted while its CreateSnapshot runs is sometimes forgotten by csi-snapshotter (seen with 8.6, about
/// one in six): the cut is there, the content waits for a deletion that only the next full resync would begin. Any
/// change of the object begins it at once.
async fn nudge(
    contents: &Api<VolumeSnapshotContent>,
    content: &VolumeSnapshotContent,
    waited: Duration,
) -> Result<(), RequestError> {
    let name = content.name_any();
    let looked = waited.as_millis().to_string();
    let patch = Patch::Merge(serde_json::json!({"metadata": {"annotations": {NUDGE_ANNOTATION: looked}}}));
    let what = format!("ask for the deletion of content {name} again");
    match bounded(what, contents.patch(&name, &PatchParams::default(), &patch)).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

fn refers_to(content: &VolumeSnapshotContent, snapshot: &VolumeSnapshot) -> bool {
    let uid = content.spec.volume_snapshot_ref.uid.as_deref();
    uid.is_some() && uid == snapshot.metadata.uid.as_deref()
}

/// What becomes of a content's data with it: `Delete`, unless another content has the same snapshot. Then a driver took
/// two names for one, and deleting it here would delete the data of a point that somebody relies on.
async fn policy_of(
    context: &Context,
    contents: &Api<VolumeSnapshotContent>,
    content: &VolumeSnapshotContent,
) -> Result<&'static str, RequestError> {
    if content.status.as_ref().is_none_or(|status| status.snapshot_handle.is_none()) {
        return Ok("Delete");
    }
    let other = if context.contents.singles().is_listed() {
        context.contents.singles().shares_handle(content)
    } else {
        let all = bounded("list snapshot contents", contents.list(&ListParams::default())).await?.items;
        let handle = |one: &VolumeSnapshotContent| {
            one.status.as_ref().and_then(|status| status.snapshot_handle.clone())
        };
        let same = |one: &&VolumeSnapshotContent| {
            one.metadata.uid != content.metadata.uid
                && one.spec.driver == content.spec.driver
                && handle(one) == handle(content)
        };
        all.iter().find(same).map(ResourceExt::name_any)
    };
    let Some(other) = other else { return Ok("Delete") };
    warn!(content = content.name_any(), other, "both have one snapshot: its data stays with the other");
    Ok("Retain")
}

/// From now on a snapshot's data goes with it.
async fn let_data_go(
    context: &Context,
    contents: &Api<VolumeSnapshotContent>,
    snapshot: &VolumeSnapshot,
) -> Result<(), RequestError> {
    if let Some(name) = bound_content(snapshot)
        && let Some(content) =
            bounded(format!("read snapshot content {name}"), contents.get_opt(&name)).await?
    {
        let policy = policy_of(context, contents, &content).await?;
        set_deletion_policy(contents, &name, policy).await?;
    }
    Ok(())
}

async fn remove_snapshot(
    context: &Context,
    snapshots: &Api<VolumeSnapshot>,
    contents: &Api<VolumeSnapshotContent>,
    snapshot: &VolumeSnapshot,
) -> Result<(), RequestError> {
    let_data_go(context, contents, snapshot).await?;
    if snapshot.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let name = snapshot.name_any();
    // Only this very object: another one of that name is somebody else's.
    let exactly = DeleteParams {
        preconditions: Some(Preconditions { uid: snapshot.metadata.uid.clone(), resource_version: None }),
        ..DeleteParams::default()
    };
    match bounded(format!("delete snapshot {name}"), snapshots.delete(&name, &exactly)).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}

/// A content whose snapshot is gone: nothing else will delete its data.
async fn remove_orphan(
    context: &Context,
    contents: &Api<VolumeSnapshotContent>,
    content: &VolumeSnapshotContent,
) -> Result<(), RequestError> {
    let name = content.name_any();
    if content.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let policy = policy_of(context, contents, content).await?;
    set_deletion_policy(contents, &name, policy).await?;
    match bounded(format!("delete snapshot content {name}"), contents.delete(&name, &DeleteParams::default()))
        .await
    {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Says what becomes of the data when the content is deleted.
///
/// # Errors
/// The request failed. A content that is gone is no error.
pub async fn set_deletion_policy(
    contents: &Api<VolumeSnapshotContent>,
    name: &str,
    policy: &str,
) -> Result<(), RequestError> {
    let patch = Patch::Merge(serde_json::json!({"spec": {"deletionPolicy": policy}}));
    let params = PatchParams::default();
    match bounded(format!("set content {name} to {policy}"), contents.patch(name, &params, &patch)).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes one snapshot of ours with its data, without waiting for the end. One of that name from another attempt is left
/// alone.
///
/// # Errors
/// A request failed.
pub async fn remove_one(
    context: &Context,
    namespace: &str,
    name: &str,
    attempt: &str,
) -> Result<(), RequestError> {
    let snapshots: Api<VolumeSnapshot> = Api::namespaced(context.client.clone(), namespace);
    let contents: Api<VolumeSnapshotContent> = Api::all(context.client.clone());
    let found = bounded(format!("read snapshot {name}"), snapshots.get_opt(name)).await?;
    let ours = found.filter(|one| one.labels().get(ATTEMPT_LABEL).map(String::as_str) == Some(attempt));
    match ours {
        Some(snapshot) => remove_snapshot(context, &snapshots, &contents, &snapshot).await,
        None => Ok(()),
    }
}
