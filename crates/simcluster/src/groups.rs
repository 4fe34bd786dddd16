//! Group snapshots: the snapshot controller's, the sidecar's and the driver's part in one, as external-snapshotter 8.6
//! plays them.
//!
//! What is kept of its character: claims are found by `matchLabels` alone (`matchExpressions` are ignored, and an empty
//! set is every claim of the namespace); members are made after the handle is visible, with names that are hashes, and
//! carry no label; a member cannot be deleted while its group exists, and its data goes with the group alone; a group
//! that is deleted before its status names a content leaves that content behind.

use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::admission::{add_finalizer, remove_finalizer};
use crate::snapshots::{
    CLASSES_OF_GROUPS, CONTENTS, LedgerEntry, RETRY, SIDECAR_POLL, SNAPSHOTS, Snapshots, quantity_of, text,
};
use crate::store::Deletion;
use crate::volumes::{DRIVER, copy};

pub(crate) const GROUPS: &str = "volumegroupsnapshots.groupsnapshot.storage.k8s.io";
pub(crate) const GROUP_CONTENTS: &str = "volumegroupsnapshotcontents.groupsnapshot.storage.k8s.io";

const GROUP_BOUND: &str = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-bound-protection";
const GROUP_CONTENT_BOUND: &str =
    "groupsnapshot.storage.kubernetes.io/volumegroupsnapshotcontent-bound-protection";
const GROUP_BEING_CREATED: &str = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-created";
const GROUP_BEING_DELETED: &str = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-deleted";
/// On the snapshots of members.
pub(crate) const IN_GROUP: &str = "snapshot.storage.kubernetes.io/volumesnapshot-in-group-protection";
/// On the contents of members: the sidecar must not cut for them.
pub(crate) const MEMBER_OF: &str = "groupsnapshot.storage.k8s.io/volumeGroupSnapshotHandle";

impl Snapshots {
    /// The snapshot controller's part, for every group.
    pub(crate) fn reconcile_groups(&self) {
        for group in self.store.all(GROUPS) {
            let done = if group["metadata"]["deletionTimestamp"].is_null() {
                self.reconcile_group(&group)
            } else {
                self.release_group(&group)
            };
            if let Err(why) = done {
                self.blame(GROUPS, &group, &why);
            }
        }
    }

    fn reconcile_group(&self, group: &Value) -> Result<(), String> {
        self.change(GROUPS, group, |group| add_finalizer(group, GROUP_BOUND));
        let name = format!("groupsnapcontent-{}", text(&group["metadata"]["uid"]));
        let content = match self.store.find(GROUP_CONTENTS, "", &name) {
            Some(content) => content,
            None => self.make_group_content(group, &name)?,
        };
        let seen = &content["status"];
        if seen["volumeGroupSnapshotHandle"].is_string() {
            for one in seen["volumeSnapshotInfoList"].as_array().into_iter().flatten() {
                self.make_member(group, &content, one)?;
            }
        }
        self.change(GROUPS, group, |group| {
            let mut status = json!({
                "boundVolumeGroupSnapshotContentName": name, "readyToUse": seen["readyToUse"] == true,
            });
            for field in ["creationTime", "error"] {
                if !seen[field].is_null() {
                    status[field] = seen[field].clone();
                }
            }
            group["status"] = status;
        });
        Ok(())
    }

    /// The claims of a group: by `matchLabels` alone, as the snapshot controller asks for them.
    fn claims_of(&self, group: &Value) -> Vec<Arc<Value>> {
        let labels = group["spec"]["source"]["selector"]["matchLabels"].as_object();
        let also = self.knobs().group_also;
        let mut claims = self.store.all("persistentvolumeclaims");
        claims.retain(|claim| {
            let meta = &claim["metadata"];
            meta["namespace"] == group["metadata"]["namespace"]
                && (also.iter().any(|name| meta["name"] == **name)
                    || labels.into_iter().flatten().all(|(key, value)| meta["labels"][key] == *value))
        });
        claims
    }

    fn make_group_content(&self, group: &Value, name: &str) -> Result<Arc<Value>, String> {
        let failed = |why: String| format!("failed to create group snapshot content with error {why}");
        let meta = &group["metadata"];
        let class = text(&group["spec"]["volumeGroupSnapshotClassName"]);
        let class = self
            .store
            .find(CLASSES_OF_GROUPS, "", &class)
            .ok_or_else(|| failed(format!("volumegroupsnapshotclass \"{class}\" not found")))?;
        let claims = self.claims_of(group);
        if claims.is_empty() {
            return Err(failed("label selector for group snapshot not applied to any PVC".to_owned()));
        }
        let mut handles = Vec::new();
        for claim in &claims {
            let claim_name = text(&claim["metadata"]["name"]);
            let volume = self.store.find("persistentvolumes", "", &text(&claim["spec"]["volumeName"]));
            let volume =
                volume.ok_or_else(|| failed(format!("the PVC {claim_name} is not yet bound to a PV")))?;
            if volume["spec"]["csi"]["driver"] != class["driver"] {
                return Err(failed(format!("Volume CSI driver mismatch with the class: {claim_name}")));
            }
            handles.push(volume["spec"]["csi"]["volumeHandle"].clone());
        }
        let contents = self.resource(GROUP_CONTENTS)?;
        let content = json!({
            "apiVersion": contents.api_version(), "kind": contents.kind,
            "metadata": {"name": name, "finalizers": [GROUP_CONTENT_BOUND]},
            "spec": {
                "deletionPolicy": class["deletionPolicy"], "driver": class["driver"],
                "source": {"volumeHandles": handles}, "volumeGroupSnapshotClassName": class["metadata"]["name"],
                "volumeGroupSnapshotRef": {
                    "apiVersion": group["apiVersion"], "kind": "VolumeGroupSnapshot",
                    "namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"],
                },
            },
        });
        self.store.create(&contents, "", content, false).map_err(|error| error.message)
    }

    /// Snapshot and content of one member, once; afterwards its readiness.
    fn make_member(&self, group: &Value, content: &Value, one: &Value) -> Result<(), String> {
        let meta = &group["metadata"];
        let (namespace, handle) = (text(&meta["namespace"]), text(&one["volumeHandle"]));
        let hash = hex(&Sha256::digest(format!("{}{handle}", text(&meta["uid"]))));
        let (snapshot_name, content_name) = (format!("snapshot-{hash}"), format!("snapcontent-{hash}"));
        if let Some(made) = self.store.find(CONTENTS, "", &content_name) {
            if made["status"]["readyToUse"] != one["readyToUse"] {
                self.change(CONTENTS, &made, |made| {
                    made["status"]["readyToUse"] = one["readyToUse"].clone();
                });
            }
            return Ok(());
        }
        let claim = self
            .store
            .all("persistentvolumes")
            .into_iter()
            .find(|volume| volume["spec"]["csi"]["volumeHandle"] == *handle)
            .map(|volume| volume["spec"]["claimRef"]["name"].clone());
        let (snapshots, contents) = (self.resource(SNAPSHOTS)?, self.resource(CONTENTS)?);
        let snapshot = json!({
            "apiVersion": snapshots.api_version(), "kind": snapshots.kind,
            "metadata": {
                "name": snapshot_name, "namespace": namespace, "finalizers": [IN_GROUP],
                "ownerReferences": [{
                    "apiVersion": group["apiVersion"], "kind": "VolumeGroupSnapshot",
                    "name": meta["name"], "uid": meta["uid"],
                }],
            },
            "spec": {"source": {"persistentVolumeClaimName": claim}},
        });
        let snapshot = match self.store.find(SNAPSHOTS, &namespace, &snapshot_name) {
            Some(snapshot) => snapshot,
            None => {
                self.store.create(&snapshots, &namespace, snapshot, false).map_err(|error| error.message)?
            }
        };
        let member = json!({
            "apiVersion": contents.api_version(), "kind": contents.kind,
            "metadata": {
                "name": content_name, "finalizers": [crate::snapshots::CONTENT_BOUND],
                "annotations": {MEMBER_OF: content["status"]["volumeGroupSnapshotHandle"]},
            },
            "spec": {
                "deletionPolicy": content["spec"]["deletionPolicy"], "driver": content["spec"]["driver"],
                "source": {"volumeHandle": handle}, "sourceVolumeMode": "Filesystem",
                "volumeSnapshotRef": {
                    "kind": "VolumeSnapshot", "namespace": namespace, "name": snapshot_name,
                    "uid": snapshot["metadata"]["uid"],
                },
            },
        });
        let made = self.store.create(&contents, "", member, false).map_err(|error| error.message)?;
        self.change(SNAPSHOTS, &snapshot, |snapshot| {
            snapshot["status"]["boundVolumeSnapshotContentName"] = json!(content_name);
        });
        self.change(CONTENTS, &made, |made| {
            made["status"] = json!({
                "snapshotHandle": one["snapshotHandle"], "creationTime": one["creationTime"],
                "restoreSize": one["restoreSize"], "readyToUse": one["readyToUse"],
                "volumeGroupSnapshotHandle": content["status"]["volumeGroupSnapshotHandle"],
            });
        });
        Ok(())
    }

    /// Name of the group that a member's content was cut in.
    pub(crate) fn group_of(&self, content: &Value) -> Option<String> {
        let handle = content["status"]["volumeGroupSnapshotHandle"].as_str()?;
        let of = |group: &Arc<Value>| group["status"]["volumeGroupSnapshotHandle"] == handle;
        let group = self.store.all(GROUP_CONTENTS).into_iter().find(of)?;
        Some(text(&group["spec"]["volumeGroupSnapshotRef"]["name"]))
    }

    /// A deleted group takes its content and its members with it.
    fn release_group(&self, group: &Value) -> Result<(), String> {
        let meta = &group["metadata"];
        // Only what its status names: a content that was made and not yet named is left behind, as upstream leaves it.
        let bound = text(&group["status"]["boundVolumeGroupSnapshotContentName"]);
        let content = self
            .store
            .find(GROUP_CONTENTS, "", &bound)
            .filter(|content| content["spec"]["volumeGroupSnapshotRef"]["uid"] == meta["uid"]);
        let deleted = content.as_ref().is_some_and(|content| content["spec"]["deletionPolicy"] == "Delete");
        if let Some(content) = &content {
            self.change(GROUP_CONTENTS, content, |content| {
                content["metadata"]["annotations"][GROUP_BEING_DELETED] = json!("yes");
            });
            if deleted {
                let contents = self.resource(GROUP_CONTENTS)?;
                let _ = self.store.delete(&contents, "", &bound, &Deletion::default());
            }
        }
        let snapshots = self.resource(SNAPSHOTS)?;
        let mine = |snapshot: &Arc<Value>| {
            let owners = snapshot["metadata"]["ownerReferences"].as_array();
            owners.into_iter().flatten().any(|owner| owner["uid"] == meta["uid"])
        };
        for snapshot in self.store.all(SNAPSHOTS).iter().filter(|snapshot| mine(snapshot)) {
            let (namespace, name) =
                (text(&snapshot["metadata"]["namespace"]), text(&snapshot["metadata"]["name"]));
            let _ = self.store.delete(&snapshots, &namespace, &name, &Deletion::default());
        }
        if !deleted {
            self.change(GROUPS, group, |group| remove_finalizer(group, GROUP_BOUND));
        }
        Ok(())
    }

    /// Whether the sidecar has to cut a group.
    pub(crate) fn wants_group_cut(&self, content: &Value) -> bool {
        content["spec"]["driver"] == DRIVER
            && content["spec"]["source"]["volumeHandles"].is_array()
            && content["status"]["readyToUse"] != true
            && content["spec"]["volumeGroupSnapshotRef"]["uid"].is_string()
            && !content["status"]["volumeGroupSnapshotHandle"].is_string()
    }

    /// The sidecar's part: asks for the cut until it is done or no longer wanted.
    pub(crate) async fn cut_group_until_done(self: Arc<Self>, content: Arc<Value>) {
        while let Err(why) = self.cut_group(&content).await {
            self.blame(GROUP_CONTENTS, &content, &format!("Failed to create group snapshot: {why}"));
            if !self.is_wanted_in(GROUP_CONTENTS, &content) {
                break;
            }
            tokio::time::sleep(RETRY).await;
        }
        self.change(GROUP_CONTENTS, &content, |content| {
            if let Some(annotations) = content["metadata"]["annotations"].as_object_mut() {
                annotations.remove(GROUP_BEING_CREATED);
            }
        });
        let uid = text(&content["metadata"]["uid"]);
        self.cutting.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid);
        let name = text(&content["metadata"]["name"]);
        if let Some(now) = self.store.find(GROUP_CONTENTS, "", &name)
            && !now["metadata"]["deletionTimestamp"].is_null()
        {
            self.release_group_content(&now).await;
        }
    }

    async fn cut_group(&self, content: &Value) -> Result<(), String> {
        while self.knobs().sidecar_down {
            tokio::time::sleep(SIDECAR_POLL).await;
        }
        let knobs = self.knobs();
        self.change(GROUP_CONTENTS, content, |content| {
            content["metadata"]["annotations"][GROUP_BEING_CREATED] = json!("yes");
        });
        tokio::time::sleep(knobs.pre_cut_delay).await;
        self.fail_if_told()?;
        if !self.is_wanted_in(GROUP_CONTENTS, content) {
            return Ok(());
        }
        let uid = text(&content["spec"]["volumeGroupSnapshotRef"]["uid"]);
        let handle = format!("group-{uid}");
        let handles = content["spec"]["source"]["volumeHandles"].as_array().cloned().unwrap_or_default();
        let mut volumes = Vec::new();
        for volume in handles.iter().map(text) {
            let of_volume = |object: &Arc<Value>| object["spec"]["csi"]["volumeHandle"] == volume;
            let object = self.store.all("persistentvolumes").into_iter().find(of_volume);
            volumes.push(object.ok_or_else(|| format!("volume {volume} does not exist"))?);
        }
        let omitted = |volume: &Arc<Value>| {
            knobs.group_omits.iter().any(|name| volume["spec"]["claimRef"]["name"] == **name)
        };
        volumes.retain(|volume| !omitted(volume));
        let infos = if knobs.group_sequential {
            let mut infos = Vec::new();
            for volume in &volumes {
                infos.append(&mut self.copy_group(std::slice::from_ref(volume), &uid).await?);
            }
            infos
        } else {
            self.copy_group(&volumes, &uid).await?
        };
        let cut = infos.iter().filter_map(|info| info["creationTime"].as_i64()).min().unwrap_or(0);
        let cut = Timestamp::from_nanosecond(i128::from(cut)).unwrap_or(Timestamp::UNIX_EPOCH);
        let cut = cut.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let write = |ready: bool| {
            let mut infos = infos.clone();
            infos.iter_mut().for_each(|info| info["readyToUse"] = json!(ready));
            self.change(GROUP_CONTENTS, content, |content| {
                content["status"] = json!({
                    "volumeGroupSnapshotHandle": handle, "creationTime": cut, "readyToUse": ready,
                    "volumeSnapshotInfoList": infos,
                });
            });
        };
        if !knobs.ready_delay.is_zero() {
            write(false);
            tokio::time::sleep(knobs.ready_delay).await;
        }
        write(true);
        Ok(())
    }

    /// One instant over these volumes: every process that writes to any of them is stopped, all are copied, and the
    /// processes continue.
    async fn copy_group(&self, volumes: &[Arc<Value>], uid: &str) -> Result<Vec<Value>, String> {
        let stopped = match &self.kubelet {
            Some(kubelet) => {
                let mut pods = Vec::new();
                for volume in volumes {
                    let claim = &volume["spec"]["claimRef"];
                    pods.append(
                        &mut kubelet.pods_mounting(&text(&claim["namespace"]), &text(&claim["name"])),
                    );
                }
                pods.sort_unstable();
                pods.dedup();
                Some(kubelet.processes.stop(&pods).await?)
            }
            None => None,
        };
        let start = self.store.clock.wall();
        let mut copied = Vec::new();
        for volume in volumes {
            let volume_handle = text(&volume["spec"]["csi"]["volumeHandle"]);
            let snapshot = format!("snap-{uid}-{volume_handle}");
            let target = self.root.join("snapshots").join(&snapshot);
            copy(&self.root.join("volumes").join(&volume_handle), &target).await?;
            copied.push((volume_handle, snapshot, quantity_of(volume)));
        }
        let at = self.store.clock.wall();
        drop(stopped);
        let mut infos = Vec::new();
        for (volume, snapshot, size) in copied {
            self.write_ledger(&LedgerEntry {
                at,
                event: "cut".into(),
                volume: volume.clone(),
                snapshot: snapshot.clone(),
                name: format!("groupsnapshot-{uid}/{volume}"),
                group: format!("group-{uid}"),
                cut_start: Some(start),
            })?;
            infos.push(json!({
                "volumeHandle": volume, "snapshotHandle": snapshot, "restoreSize": size,
                "creationTime": i64::try_from(start.as_nanosecond()).unwrap_or(0),
            }));
        }
        Ok(infos)
    }

    /// The end of a group's content, and of all its data where the policy says so. Only one that the snapshot controller
    /// marked: the sidecar leaves any other alone.
    pub(crate) async fn release_group_content(&self, content: &Value) {
        let meta = &content["metadata"];
        let cutting =
            self.cutting.lock().unwrap_or_else(PoisonError::into_inner).contains(&text(&meta["uid"]));
        let marked = meta["annotations"][GROUP_BEING_DELETED].is_string();
        if !marked || (cutting && !self.knobs().sidecar_down) {
            return;
        }
        let Some(content) = self.as_it_is(GROUP_CONTENTS, content) else { return };
        if content["spec"]["deletionPolicy"] == "Delete" {
            for one in content["status"]["volumeSnapshotInfoList"].as_array().into_iter().flatten() {
                self.remove_copy(&text(&one["snapshotHandle"])).await;
            }
        }
        self.change(GROUP_CONTENTS, &content, |content| remove_finalizer(content, GROUP_CONTENT_BOUND));
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
