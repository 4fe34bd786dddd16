//! Removes snapshots of ours, data included, and waits until they are gone.
//!
//! A snapshot is ours by its labels: the UID of its Backup and the nonce of its attempt. A POST without an answer is
//! found the same way (docs/design/freeze.md §1, §5). What a driver cuts after that is found by the sweeper.

pub mod ending;
mod groups;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use stillpoint_api::backup::{ATTEMPT_LABEL, BACKUP_UID_LABEL, Backup};
use stillpoint_api::snapshot::{VolumeSnapshot, VolumeSnapshotContent};
use tracing::{debug, warn};

use crate::context::{Context, RequestError, bounded};
use crate::cut_watch::{CutContent as _, Unnamed};
use crate::snapshot_name;

/// First pause between looks; doubles up to [`LOOK_AT_MOST`].
const LOOK_FIRST: Duration = Duration::from_millis(100);
/// Longest pause between looks.
pub const LOOK_AT_MOST: Duration = Duration::from_secs(5);
/// A deletion takes a second or two; one that takes longer may have been forgotten.
const NUDGE_AFTER: Duration = Duration::from_secs(3);
/// The watch is open, or is opened again a moment after the API server answers.
const SHOWN_WITHIN: Duration = Duration::from_secs(2);
/// Says on a content that its snapshot goes, or is gone: the sidecar deletes none without it.
const BEING_DELETED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted";
/// On a content: it is not gone before its data is.
const CONTENT_FINALIZER: &str = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";
/// Annotation that changes only so that a content changes.
const NUDGE_ANNOTATION: &str = "stillpoint.dev/deletion-asked-again";

/// Which snapshots are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of one attempt, by its nonce.
    Attempt(String),
    /// Those of one Backup, by its UID and the nonces of its attempts.
    Backup {
        /// Its UID.
        uid: String,
        /// Of the attempts in its journal.
        nonces: BTreeSet<String>,
    },
}

impl Scope {
    /// Everything of a Backup.
    pub fn of_backup(backup: &Backup) -> Self {
        let journal = backup.status.iter().flat_map(|status| &status.journal);
        let nonces = journal.map(|entry| entry.nonce.clone()).collect();
        Self::Backup { uid: backup.uid().unwrap_or_default(), nonces }
    }

    fn selector(&self) -> String {
        match self {
            Self::Attempt(nonce) => format!("{ATTEMPT_LABEL}={nonce}"),
            Self::Backup { uid, .. } => format!("{BACKUP_UID_LABEL}={uid}"),
        }
    }

    /// Whether a snapshot of this name is meant.
    fn names(&self, snapshot: &str) -> bool {
        let Some(part) = snapshot_name::nonce_part(snapshot) else { return false };
        match self {
            Self::Attempt(nonce) => snapshot_name::is_part_of(part, nonce),
            Self::Backup { nonces, .. } => nonces.iter().any(|nonce| snapshot_name::is_part_of(part, nonce)),
        }
    }
}

/// Deletes the snapshots of a scope and their data; true when all are gone within `patience`. While the API server does not
/// answer it goes on asking: what was seen before it fell silent is known to nobody else.
///
/// # Errors
/// A request was refused, or not answered until the end. What is left is found by calling it again, or by the sweeper.
pub async fn remove(
    context: &Context,
    namespace: &str,
    scope: &Scope,
    patience: Duration,
) -> Result<bool, RequestError> {
    let mut removal = Removal::new(context, namespace, scope);
    let began = context.clock.mono();
    let mut pause = LOOK_FIRST;
    loop {
        let waited = context.clock.mono().since(began);
        let left = removal.pass(waited).await;
        match left {
            Ok(0) => return Ok(true),
            Ok(left) if waited >= patience => {
                debug!(namespace, ?scope, left, "snapshots are still being deleted");
                return Ok(false);
            }
            Err(error) if waited >= patience || !error.may_pass() => return Err(error),
            Ok(_) => {}
            Err(error) => debug!(namespace, %error, "removing snapshots waits for the API server"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK_AT_MOST);
    }
}

/// A removal under way.
struct Removal<'c> {
    context: &'c Context,
    namespace: &'c str,
    scope: &'c Scope,
    ours: ListParams,
    snapshots: Api<VolumeSnapshot>,
    contents: Api<VolumeSnapshotContent>,
    groups: groups::Groups,
    /// Contents that may be left when their snapshot has gone, by name, with the snapshot's UID: those of a given-up attempt
    /// carry no label of ours.
    bound: BTreeMap<String, String>,
}

impl<'c> Removal<'c> {
    fn new(context: &'c Context, namespace: &'c str, scope: &'c Scope) -> Self {
        Self {
            context,
            namespace,
            scope,
            ours: ListParams::default().labels(&scope.selector()),
            snapshots: Api::namespaced(context.client.clone(), namespace),
            contents: Api::all(context.client.clone()),
            groups: groups::Groups::new(context, namespace),
            bound: BTreeMap::new(),
        }
    }

    /// Asks once for the deletion of everything that is there; how much is left.
    async fn pass(&mut self, waited: Duration) -> Result<usize, RequestError> {
        // Groups first: their members cannot go alone, and carry no label of ours before they are kept.
        let groups_left = self.groups.remove(&self.ours).await?;
        let found = self.found().await?;
        self.learn(&found).await?;
        let left = self.contents_left().await?;
        for snapshot in &found {
            self.groups.let_go(&self.snapshots, snapshot, waited).await?;
            if self.groups.holds(snapshot) {
                let_data_go(self.context, &self.contents, snapshot).await?;
            } else {
                remove_snapshot(self.context, &self.snapshots, &self.contents, snapshot).await?;
            }
        }
        for content in &left {
            if !found.iter().any(|snapshot| refers_to(content, snapshot)) {
                remove_orphan(self.context, &self.contents, content).await?;
            }
            if content.metadata.deletion_timestamp.is_some() && waited >= NUDGE_AFTER {
                nudge(&self.contents, content, waited).await?;
            }
        }
        Ok(groups_left + found.len() + left.len())
    }

    /// Snapshots with our labels, and the members of our groups.
    async fn found(&self) -> Result<Vec<VolumeSnapshot>, RequestError> {
        let mut found = bounded("list our snapshots", self.snapshots.list(&self.ours)).await?.items;
        if self.groups.any() {
            let every = ListParams::default();
            let all = bounded("list the members of our groups", self.snapshots.list(&every)).await?;
            let known = |one: &VolumeSnapshot| found.iter().any(|ours| ours.metadata.uid == one.metadata.uid);
            let members: Vec<VolumeSnapshot> =
                self.groups.members(all.items).into_iter().filter(|one| !known(one)).collect();
            found.extend(members);
        }
        Ok(found)
    }

    /// Notes which contents may be left.
    async fn learn(&mut self, found: &[VolumeSnapshot]) -> Result<(), RequestError> {
        for snapshot in found {
            if let Some(uid) = snapshot.metadata.uid.clone() {
                self.bound.insert(content_name(snapshot), uid);
            }
        }
        // A snapshot that went before this removal began, or while the API server fell silent, is known by its content alone.
        let contents = self.context.contents.singles();
        if !contents.is_listed() && !contents.listed(SHOWN_WITHIN).await {
            debug!("the watch on snapshot contents is not open: what it would show is left to the sweeper");
        }
        for one in contents.unnamed() {
            let ours = one.namespace == self.namespace && self.scope.names(&one.snapshot);
            if ours && !self.bound.contains_key(&one.content) && snapshot_gone(&self.snapshots, &one).await? {
                self.bound.insert(one.content, one.snapshot_uid);
            }
        }
        Ok(())
    }

    /// Contents that are there: labelled, or known by their snapshots.
    async fn contents_left(&self) -> Result<Vec<VolumeSnapshotContent>, RequestError> {
        // Contents outlive their snapshots where the policy is Retain; the label was set when the point was kept.
        let mut left = bounded("list our snapshot contents", self.contents.list(&self.ours)).await?.items;
        for (name, snapshot_uid) in &self.bound {
            if left.iter().any(|content| content.name_any() == *name) {
                continue;
            }
            left.extend(content_of(&self.contents, name, snapshot_uid).await?);
        }
        Ok(left)
    }
}

/// Removes a content whose snapshot is gone and which carries no label of ours, with its data; false when it is there no more, or
/// is not that. Does not wait for the end.
///
/// # Errors
/// A request failed.
pub async fn remove_unnamed(context: &Context, one: &Unnamed) -> Result<bool, RequestError> {
    let snapshots: Api<VolumeSnapshot> = Api::namespaced(context.client.clone(), &one.namespace);
    let contents: Api<VolumeSnapshotContent> = Api::all(context.client.clone());
    if !snapshot_gone(&snapshots, one).await? {
        return Ok(false);
    }
    let content = content_of(&contents, &one.content, &one.snapshot_uid).await?;
    let Some(content) = content.filter(|content| content.unnamed().is_some()) else { return Ok(false) };
    remove_orphan(context, &contents, &content).await?;
    Ok(true)
}

/// Whether the very snapshot that a content was made for exists no more.
async fn snapshot_gone(snapshots: &Api<VolumeSnapshot>, one: &Unnamed) -> Result<bool, RequestError> {
    let what = format!("read snapshot {}", one.snapshot);
    let now = bounded(what, snapshots.get_metadata_opt(&one.snapshot)).await?;
    Ok(now.and_then(|now| now.metadata.uid) != Some(one.snapshot_uid.clone()))
}

/// The content of that name, if it is of that snapshot.
async fn content_of(
    contents: &Api<VolumeSnapshotContent>,
    name: &str,
    snapshot_uid: &str,
) -> Result<Option<VolumeSnapshotContent>, RequestError> {
    let found = bounded(format!("read snapshot content {name}"), contents.get_opt(name)).await?;
    Ok(found.filter(|one| is_of(one, snapshot_uid)))
}

/// Name of a snapshot's content. The snapshot controller names it after the snapshot's UID, and tells so in the snapshot's status
/// only later. A snapshot that is deleted in between would leave a content that nobody knows.
fn content_name(snapshot: &VolumeSnapshot) -> String {
    let told = snapshot.status.as_ref().and_then(|status| status.bound_volume_snapshot_content_name.clone());
    told.unwrap_or_else(|| format!("snapcontent-{}", snapshot.metadata.uid.as_deref().unwrap_or_default()))
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
    absent_is_fine(bounded(what, contents.patch(&name, &PatchParams::default(), &patch)).await)
}

fn refers_to(content: &VolumeSnapshotContent, snapshot: &VolumeSnapshot) -> bool {
    snapshot.metadata.uid.as_deref().is_some_and(|uid| is_of(content, uid))
}

/// Whether a content was made for the snapshot with this UID.
fn is_of(content: &VolumeSnapshotContent, snapshot_uid: &str) -> bool {
    content.spec.volume_snapshot_ref.uid.as_deref() == Some(snapshot_uid)
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

/// From now on a snapshot's data goes with it; false when its content changed meanwhile, and is to be asked again.
async fn let_data_go(
    context: &Context,
    contents: &Api<VolumeSnapshotContent>,
    snapshot: &VolumeSnapshot,
) -> Result<bool, RequestError> {
    let (name, uid) = (content_name(snapshot), snapshot.metadata.uid.clone().unwrap_or_default());
    match content_of(contents, &name, &uid).await? {
        Some(content) => let_go(context, contents, &content, Snapshot::Exists).await,
        None => Ok(true),
    }
}

/// Whether the snapshot of a content is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Snapshot {
    /// It is, and the snapshot controller says on the content when it goes.
    Exists,
    /// Nobody else will say so.
    Gone,
}

/// Prepares a content so that its data goes with it; false when it changed meanwhile.
///
/// A content without its finalizer goes from the API at once, and leaves what was cut for it: the snapshot controller makes it
/// without, and sets the finalizer when it sees it (external-snapshotter 8.6, `syncContent`). Until then nothing of it may be
/// deleted, by nobody. A content that is deleted without a word of its snapshot's end stays for good (the sidecar's `shouldDelete`).
async fn let_go(
    context: &Context,
    contents: &Api<VolumeSnapshotContent>,
    content: &VolumeSnapshotContent,
    snapshot: Snapshot,
) -> Result<bool, RequestError> {
    let policy = policy_of(context, contents, content).await?;
    let unprotected = content.metadata.deletion_timestamp.is_none()
        && !content.finalizers().iter().any(|one| one == CONTENT_FINALIZER);
    let untold = snapshot == Snapshot::Gone && !content.annotations().contains_key(BEING_DELETED);
    if content.spec.deletion_policy == policy && !unprotected && !untold {
        return Ok(true);
    }
    let mut metadata = serde_json::json!({});
    if unprotected {
        let mut finalizers = content.finalizers().to_vec();
        finalizers.push(CONTENT_FINALIZER.to_owned());
        metadata["finalizers"] = serde_json::json!(finalizers);
        // A list is replaced as a whole: never with one that somebody has changed meanwhile.
        metadata["resourceVersion"] = serde_json::json!(content.metadata.resource_version);
    }
    if untold {
        metadata["annotations"] = serde_json::json!({BEING_DELETED: "yes"});
    }
    let name = content.name_any();
    let change = Patch::Merge(serde_json::json!({"metadata": metadata, "spec": {"deletionPolicy": policy}}));
    let what = format!("set content {name} to {policy}");
    match bounded(what, contents.patch(&name, &PatchParams::default(), &change)).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(true),
        Err(error) if error.is_conflict() => Ok(false),
        Err(error) => Err(error),
    }
}

async fn remove_snapshot(
    context: &Context,
    snapshots: &Api<VolumeSnapshot>,
    contents: &Api<VolumeSnapshotContent>,
    snapshot: &VolumeSnapshot,
) -> Result<(), RequestError> {
    let prepared = let_data_go(context, contents, snapshot).await?;
    if !prepared || snapshot.metadata.deletion_timestamp.is_some() {
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
    let prepared = let_go(context, contents, content, Snapshot::Gone).await?;
    if !prepared || content.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let name = content.name_any();
    let what = format!("delete snapshot content {name}");
    absent_is_fine(bounded(what, contents.delete(&name, &DeleteParams::default())).await)
}

fn absent_is_fine<T>(answer: Result<T, RequestError>) -> Result<(), RequestError> {
    match answer {
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
