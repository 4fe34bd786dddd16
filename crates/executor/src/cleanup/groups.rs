//! Removes group snapshots of ours: the group goes first, since members cannot go alone and their data goes with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use stillpoint_api::group_snapshot::{VolumeGroupSnapshot, VolumeGroupSnapshotContent, content_name};
use stillpoint_api::snapshot::VolumeSnapshot;

use super::NUDGE_AFTER;
use crate::context::{Context, RequestError, bounded};

/// Set by the snapshot controller on the content of a deleted group; the sidecar deletes none without it.
const BEING_DELETED: &str = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-deleted";
/// On members: it goes when the group has gone.
const IN_GROUP: &str = "snapshot.storage.kubernetes.io/volumesnapshot-in-group-protection";

/// The groups of a scope while they are removed.
pub(super) struct Groups {
    groups: Api<VolumeGroupSnapshot>,
    contents: Api<VolumeGroupSnapshotContent>,
    /// Contents that may be left when their group has gone, by name, with the group's UID.
    known: BTreeMap<String, String>,
    /// Groups that are still there.
    alive: BTreeSet<String>,
}

impl Groups {
    pub(super) fn new(context: &Context, namespace: &str) -> Self {
        Self {
            groups: Api::namespaced(context.client.clone(), namespace),
            contents: Api::all(context.client.clone()),
            known: BTreeMap::new(),
            alive: BTreeSet::new(),
        }
    }

    /// Deletes what is there; how many groups and contents are left.
    pub(super) async fn remove(&mut self, ours: &ListParams) -> Result<usize, RequestError> {
        let found = match bounded("list our group snapshots", self.groups.list(ours)).await {
            Ok(found) => found.items,
            // Nobody serves them: there are none.
            Err(error) if error.is_not_found() => return Ok(0),
            Err(error) => return Err(error),
        };
        let mut left = bounded("list our group snapshot contents", self.contents.list(ours)).await?.items;
        self.alive = found.iter().filter_map(ResourceExt::uid).collect();
        for group in &found {
            let Some(uid) = group.uid() else { continue };
            // By the name it will have too: a group that is deleted early leaves a content that its status never named.
            self.known.insert(content_name(&uid), uid.clone());
            if let Some(bound) = group
                .status
                .as_ref()
                .and_then(|status| status.bound_volume_group_snapshot_content_name.clone())
            {
                self.known.insert(bound, uid);
            }
        }
        for (name, uid) in &self.known {
            if left.iter().any(|content| content.name_any() == *name) {
                continue;
            }
            let read = bounded(format!("read group content {name}"), self.contents.get_opt(name)).await?;
            left.extend(read.filter(|one| one.spec.volume_group_snapshot_ref.uid.as_ref() == Some(uid)));
        }
        for content in &left {
            self.remove_content(content).await?;
        }
        for group in &found {
            self.remove_group(group).await?;
        }
        Ok(found.len() + left.len())
    }

    /// Members of the groups that were ever seen here, among these.
    pub(super) fn members(&self, snapshots: Vec<VolumeSnapshot>) -> Vec<VolumeSnapshot> {
        snapshots.into_iter().filter(|snapshot| self.owner(snapshot).is_some()).collect()
    }

    /// Whether any group was seen: only then there can be members without a label of ours.
    pub(super) fn any(&self) -> bool {
        !self.known.is_empty()
    }

    /// Whether the group of a snapshot is still there, so that it cannot be deleted alone.
    pub(super) fn holds(&self, snapshot: &VolumeSnapshot) -> bool {
        self.owner(snapshot).is_some_and(|uid| self.alive.contains(uid))
    }

    fn owner(&self, snapshot: &VolumeSnapshot) -> Option<&String> {
        let mut owners = snapshot.metadata.owner_references.iter().flatten();
        owners.find_map(|owner| self.known.values().find(|uid| **uid == owner.uid))
    }

    async fn remove_group(&self, group: &VolumeGroupSnapshot) -> Result<(), RequestError> {
        if group.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let name = group.name_any();
        // Only this very object: another one of that name is somebody else's.
        let exactly = DeleteParams {
            preconditions: Some(Preconditions { uid: group.metadata.uid.clone(), resource_version: None }),
            ..DeleteParams::default()
        };
        match bounded(format!("delete group snapshot {name}"), self.groups.delete(&name, &exactly)).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The data goes with the content. While its group is there the snapshot controller deletes it; one whose group has
    /// gone is deleted here, marked as the controller would have marked it: it forgets a content that the group's status
    /// never named.
    async fn remove_content(&self, content: &VolumeGroupSnapshotContent) -> Result<(), RequestError> {
        let name = content.name_any();
        let uid = content.spec.volume_group_snapshot_ref.uid.as_ref();
        let orphan = uid.is_none_or(|uid| !self.alive.contains(uid));
        let marked = content.annotations().contains_key(BEING_DELETED);
        let mut patch = serde_json::json!({"spec": {"deletionPolicy": "Delete"}});
        if orphan && !marked {
            patch["metadata"]["annotations"][BEING_DELETED] = "yes".into();
        }
        if content.spec.deletion_policy != "Delete" || (orphan && !marked) {
            let what = format!("set group content {name} to Delete");
            let (patch, params) = (Patch::Merge(patch), PatchParams::default());
            let request = self.contents.patch(&name, &params, &patch);
            match bounded(what, request).await {
                Ok(_) => {}
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if !orphan || content.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let params = DeleteParams::default();
        let request = self.contents.delete(&name, &params);
        match bounded(format!("delete group content {name}"), request).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A member that was made in the moment its group was deleted keeps a finalizer that nobody takes away: the snapshot
    /// controller does so only for one whose status names the group.
    pub(super) async fn let_go(
        &self,
        snapshots: &Api<VolumeSnapshot>,
        snapshot: &VolumeSnapshot,
        waited: Duration,
    ) -> Result<(), RequestError> {
        let named =
            snapshot.status.as_ref().is_some_and(|status| status.volume_group_snapshot_name.is_some());
        let stuck = snapshot.metadata.deletion_timestamp.is_some() && waited >= NUDGE_AFTER && !named;
        if !stuck || self.owner(snapshot).is_none() || self.holds(snapshot) {
            return Ok(());
        }
        let rest: Vec<&String> = snapshot.finalizers().iter().filter(|one| *one != IN_GROUP).collect();
        let patch = Patch::Merge(serde_json::json!({
            "metadata": {"resourceVersion": snapshot.resource_version(), "finalizers": rest},
        }));
        let name = snapshot.name_any();
        let params = PatchParams::default();
        let request = snapshots.patch(&name, &params, &patch);
        match bounded(format!("let member {name} of a deleted group go"), request).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => Err(error),
        }
    }
}
