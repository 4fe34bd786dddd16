//! The snapshot controller, its sidecar and the driver in one. The cut is a copy of the directory while every process
//! of every pod that mounts the claim is stopped; it is atomic for that reason, and its duration is no figure.
//!
//! Guarantees: a handle appears on a content only after its cut, unless a knob asks for a broken driver; the processes continue after every cut, failed ones
//! included; each cut is in the ledger before its handle is visible.

use std::collections::HashSet;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::admission::{add_finalizer, remove_finalizer};
use crate::error::ApiError;
use crate::events;
use crate::groups::{GROUP_CONTENTS, GROUPS, IN_GROUP, MEMBER_OF};
use crate::kubelet::Kubelet;
use crate::resources::Resource;
use crate::store::{Deletion, Half, Store, has_finalizers};
use crate::volumes::{DRIVER, copy, parse_quantity};

pub(crate) const SNAPSHOTS: &str = "volumesnapshots.snapshot.storage.k8s.io";
pub(crate) const CONTENTS: &str = "volumesnapshotcontents.snapshot.storage.k8s.io";
const CLASSES: &str = "volumesnapshotclasses.snapshot.storage.k8s.io";
pub(crate) const CLASSES_OF_GROUPS: &str = "volumegroupsnapshotclasses.groupsnapshot.storage.k8s.io";

const AS_SOURCE: &str = "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection";
const BOUND: &str = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection";
/// Says on a content that its snapshot goes, or is gone.
const BEING_DELETED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted";
pub(crate) const CONTENT_BOUND: &str =
    "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";

/// How often a failed cut is tried again, as the sidecar's first retry.
pub(crate) const RETRY: Duration = Duration::from_secs(1);

/// How often a sidecar that is down is looked at.
pub(crate) const SIDECAR_POLL: Duration = Duration::from_millis(20);

/// How the simulated driver behaves; change it at any time.
#[derive(Clone, Debug, Default)]
pub struct Knobs {
    /// Time between the request and the cut.
    pub pre_cut_delay: Duration,
    /// Time between the cut and `readyToUse`.
    pub ready_delay: Duration,
    /// So many next cuts fail with this message.
    pub fail_next: u32,
    /// The message of failed cuts.
    pub failure: String,
    /// So many next calls end with a code that is not final, at once: the sidecar must go on, also for a content that
    /// is being deleted, and a later call cuts.
    pub unavailable_next: u32,
    /// Time inside the call after the cut.
    pub post_cut_delay: Duration,
    /// The driver answers at once, not ready, and cuts only after this: a broken driver.
    pub ok_before_cut: Duration,
    /// How long the sidecar waits for a call. The driver goes on; the retry gets its answer.
    pub sidecar_timeout: Option<Duration>,
    /// What the driver says about the time of its cuts.
    pub cut_time: CutTime,
    /// Every call is answered with the volume's oldest snapshot, as when names are truncated until they collide.
    pub repeats_handle: bool,
    /// Calls wait for each other.
    pub one_at_a_time: bool,
    /// The sidecar is down: contents are made, nothing is cut until this is false again.
    pub sidecar_down: bool,
    /// The volumes of a group are cut one after the other, not at one instant.
    pub group_sequential: bool,
    /// Claims that a group takes as well, as if they carried its label.
    pub group_also: Vec<String>,
    /// Claims that the driver leaves out of a group.
    pub group_omits: Vec<String>,
}

/// What a driver says about the time of a cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CutTime {
    /// The truth.
    #[default]
    True,
    /// Nothing: the sidecar stores 1970.
    Missing,
    /// So much before the truth.
    Early(Duration),
}

/// One line of the ledger, in the shape of the real test driver's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LedgerEntry {
    /// When the event was complete.
    pub at: Timestamp,
    /// `cut` or `delete`.
    pub event: String,
    /// The volume's handle.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub volume: String,
    /// The snapshot's handle.
    pub snapshot: String,
    /// `snapshot-<uid of the VolumeSnapshot>`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Handle of the group; members with equal `cutStart` were cut at one instant.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// All processes were stopped before this; the content belongs to `[cutStart, at]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_start: Option<Timestamp>,
}

/// The snapshot stack.
pub(crate) struct Snapshots {
    pub store: Arc<Store>,
    pub kubelet: Option<Arc<Kubelet>>,
    pub root: PathBuf,
    pub knobs: Arc<Mutex<Knobs>>,
    pub ledger: Mutex<()>,
    pub cutting: Mutex<HashSet<String>>,
    pub turn: tokio::sync::Mutex<()>,
    /// Held while a copy is removed.
    pub removing: tokio::sync::Mutex<()>,
}

impl Snapshots {
    /// Reconciles snapshots and contents after every change. Runs until it is dropped; cuts under way are then
    /// dropped too, and the pods continue.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut changed = self.store.subscribe_all();
        let mut cuts = tokio::task::JoinSet::new();
        loop {
            changed.borrow_and_update();
            self.reconcile_groups();
            for content in self.store.all(GROUP_CONTENTS) {
                if !content["metadata"]["deletionTimestamp"].is_null() {
                    self.release_group_content(&content).await;
                } else if self.wants_group_cut(&content) && self.begin_cut(&content) {
                    cuts.spawn(Arc::clone(&self).cut_group_until_done(content));
                }
            }
            for snapshot in self.store.all(SNAPSHOTS) {
                if let Err(error) = self.reconcile_snapshot(&snapshot) {
                    self.report(&snapshot, &error);
                }
            }
            for content in self.store.all(CONTENTS) {
                if !content["metadata"]["deletionTimestamp"].is_null() {
                    self.release_content(&content).await;
                } else if self.wants_cut(&content) && self.begin_cut(&content) {
                    cuts.spawn(Arc::clone(&self).cut_until_done(content));
                }
            }
            tokio::select! {
                alive = changed.changed() => if alive.is_err() { return },
                Some(_) = cuts.join_next() => {}
            }
        }
    }

    /// Whether nobody cuts for this content yet; from now on somebody does.
    fn begin_cut(&self, content: &Value) -> bool {
        let uid = text(&content["metadata"]["uid"]);
        self.cutting.lock().unwrap_or_else(PoisonError::into_inner).insert(uid)
    }

    fn wants_cut(&self, content: &Value) -> bool {
        content["spec"]["driver"] == DRIVER
            && content["metadata"]["annotations"][MEMBER_OF].is_null()
            && content["spec"]["source"]["volumeHandle"].is_string()
            && content["status"]["readyToUse"] != true
            && content["spec"]["volumeSnapshotRef"]["uid"].is_string()
    }

    /// One snapshot: finalizers, its content, its status, its end.
    fn reconcile_snapshot(&self, snapshot: &Value) -> Result<(), String> {
        if !snapshot["metadata"]["deletionTimestamp"].is_null() {
            return self.release_snapshot(snapshot);
        }
        let uid = text(&snapshot["metadata"]["uid"]);
        let source = &snapshot["spec"]["source"];
        let member = is_member(snapshot);
        let content_name = match source["volumeSnapshotContentName"].as_str() {
            Some(name) => name.to_owned(),
            None if member => text(&snapshot["status"]["boundVolumeSnapshotContentName"]),
            None => format!("snapcontent-{uid}"),
        };
        if member && content_name.is_empty() {
            return Ok(());
        }
        let content = self.store.find(CONTENTS, "", &content_name);
        let content = match (content, source["persistentVolumeClaimName"].as_str()) {
            (Some(content), None) => self.adopt(snapshot, &content)?,
            (None, None) => return Err(format!("snapshot content {content_name} not found")),
            (Some(content), Some(_)) => content,
            (None, Some(claim)) => self.make_content(snapshot, claim, &content_name)?,
        };
        self.change(SNAPSHOTS, snapshot, |snapshot| {
            add_finalizer(snapshot, AS_SOURCE);
            add_finalizer(snapshot, BOUND);
        });
        let seen = &content["status"];
        let group = self.group_of(&content);
        self.change(SNAPSHOTS, snapshot, |snapshot| {
            let mut status = json!({
                "boundVolumeSnapshotContentName": content_name, "readyToUse": seen["readyToUse"] == true,
            });
            if let Some(cut) = seen["creationTime"].as_i64() {
                let cut = Timestamp::from_nanosecond(i128::from(cut)).unwrap_or(Timestamp::UNIX_EPOCH);
                status["creationTime"] = json!(cut.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            }
            if let Some(size) = seen["restoreSize"].as_u64() {
                status["restoreSize"] = json!(quantity(size));
            }
            if !seen["error"].is_null() {
                status["error"] = seen["error"].clone();
            }
            if let Some(group) = &group {
                status["volumeGroupSnapshotName"] = json!(group);
            }
            snapshot["status"] = status;
        });
        Ok(())
    }

    fn make_content(&self, snapshot: &Value, claim: &str, name: &str) -> Result<Arc<Value>, String> {
        let meta = &snapshot["metadata"];
        let namespace = text(&meta["namespace"]);
        let class = self.class_of(snapshot)?;
        let claim_object = self.store.find("persistentvolumeclaims", &namespace, claim);
        let claim_object = claim_object.ok_or_else(|| {
            format!("failed to get input parameters to create snapshot: persistentvolumeclaim \"{claim}\" not found")
        })?;
        let volume = text(&claim_object["spec"]["volumeName"]);
        let volume = self.store.find("persistentvolumes", "", &volume);
        let volume = volume.ok_or_else(|| format!("the PVC {claim} is not yet bound to a PV"))?;
        if volume["spec"]["csi"]["driver"] != class["driver"] {
            return Err(format!("the driver of PVC {claim} is not that of the VolumeSnapshotClass"));
        }
        let contents = self.resource(CONTENTS)?;
        let content = json!({
            "apiVersion": contents.api_version(), "kind": contents.kind,
            "metadata": {"name": name, "finalizers": [CONTENT_BOUND]},
            "spec": {
                "deletionPolicy": class["deletionPolicy"], "driver": class["driver"],
                "source": {"volumeHandle": volume["spec"]["csi"]["volumeHandle"]},
                "sourceVolumeMode": "Filesystem", "volumeSnapshotClassName": class["metadata"]["name"],
                "volumeSnapshotRef": {
                    "apiVersion": snapshot["apiVersion"], "kind": "VolumeSnapshot", "namespace": namespace,
                    "name": meta["name"], "uid": meta["uid"], "resourceVersion": meta["resourceVersion"],
                },
            },
        });
        self.store.create(&contents, "", content, false).map_err(|error| error.message)
    }

    fn class_of(&self, snapshot: &Value) -> Result<Arc<Value>, String> {
        match snapshot["spec"]["volumeSnapshotClassName"].as_str() {
            Some(name) => self.store.find(CLASSES, "", name).ok_or_else(|| {
                format!("failed to get input parameters to create snapshot: volumesnapshotclass \"{name}\" not found")
            }),
            None => {
                let default = |class: &Arc<Value>| {
                    class["metadata"]["annotations"]["snapshot.storage.kubernetes.io/is-default-class"] == "true"
                };
                let found = self.store.all(CLASSES).into_iter().find(default);
                found.ok_or_else(|| "cannot find default snapshot class".to_owned())
            }
        }
    }

    /// Binds a content that exists already to the snapshot that names it.
    fn adopt(&self, snapshot: &Value, content: &Value) -> Result<Arc<Value>, String> {
        let (meta, reference) = (&snapshot["metadata"], &content["spec"]["volumeSnapshotRef"]);
        if reference["name"] != meta["name"] || reference["namespace"] != meta["namespace"] {
            return Err("VolumeSnapshotContent is bound to a different VolumeSnapshot".to_owned());
        }
        if reference["uid"].as_str().is_some_and(|uid| !uid.is_empty() && meta["uid"] != uid) {
            return Err("VolumeSnapshotContent is bound to a VolumeSnapshot of another uid".to_owned());
        }
        let handle = text(&content["spec"]["source"]["snapshotHandle"]);
        if !self.root.join("snapshots").join(&handle).is_dir() {
            return Err(format!("snapshot handle {handle:?} does not exist"));
        }
        let now = self.nanos();
        self.change(CONTENTS, content, |content| {
            add_finalizer(content, CONTENT_BOUND);
            content["spec"]["volumeSnapshotRef"]["uid"] = meta["uid"].clone();
            if content["status"].is_null() {
                content["status"] =
                    json!({"snapshotHandle": handle, "creationTime": now, "readyToUse": true});
            }
        });
        let name = text(&content["metadata"]["name"]);
        self.store.find(CONTENTS, "", &name).ok_or_else(|| format!("content {name} went away"))
    }

    /// One of the failures that were asked for, if any is left.
    pub(crate) fn fail_if_told(&self) -> Result<(), String> {
        let mut knobs = self.knobs.lock().unwrap_or_else(PoisonError::into_inner);
        if knobs.fail_next == 0 {
            return Ok(());
        }
        knobs.fail_next -= 1;
        Err(format!("rpc error: code = Internal desc = {}", knobs.failure))
    }

    /// Whether a content still exists and is not being deleted.
    pub(crate) fn is_wanted(&self, content: &Value) -> bool {
        self.is_wanted_in(CONTENTS, content)
    }

    pub(crate) fn is_wanted_in(&self, table: &str, content: &Value) -> bool {
        self.as_it_is(table, content).is_some_and(|now| now["metadata"]["deletionTimestamp"].is_null())
    }

    /// A content as it is now, if it is there still.
    pub(crate) fn as_it_is(&self, table: &str, content: &Value) -> Option<Arc<Value>> {
        let now = self.store.find(table, "", &text(&content["metadata"]["name"]))?;
        (now["metadata"]["uid"] == content["metadata"]["uid"]).then_some(now)
    }

    /// The cut itself: stop, copy, write the ledger, continue. The answer is the volume and the time of the cut.
    pub(crate) async fn copy_stopped(
        &self,
        volume: &str,
        handle: &str,
        name: &str,
        target: PathBuf,
    ) -> Result<(Arc<Value>, i64), String> {
        let of_volume = |object: &Arc<Value>| object["spec"]["csi"]["volumeHandle"] == volume;
        let object = self.store.all("persistentvolumes").into_iter().find(of_volume);
        let object = object.ok_or_else(|| format!("volume {volume} does not exist"))?;
        let claim = &object["spec"]["claimRef"];
        let stopped = match &self.kubelet {
            Some(kubelet) => {
                let pods = kubelet.pods_mounting(&text(&claim["namespace"]), &text(&claim["name"]));
                Some(kubelet.processes.stop(&pods).await?)
            }
            None => None,
        };
        let start = self.store.clock.wall();
        let copied = copy(&self.root.join("volumes").join(volume), &target).await;
        let at = self.store.clock.wall();
        drop(stopped);
        copied?;
        let entry = LedgerEntry {
            at,
            event: "cut".into(),
            volume: volume.to_owned(),
            snapshot: handle.to_owned(),
            name: name.to_owned(),
            group: String::new(),
            cut_start: Some(start),
        };
        self.write_ledger(&entry)?;
        Ok((object, i64::try_from(start.as_nanosecond()).unwrap_or(0)))
    }

    /// A deleted snapshot goes when its content has gone, or at once when that is retained.
    fn release_snapshot(&self, snapshot: &Value) -> Result<(), String> {
        if !has_finalizers(snapshot) {
            return Ok(());
        }
        let (namespace, name) =
            (text(&snapshot["metadata"]["namespace"]), text(&snapshot["metadata"]["name"]));
        let waits = self.store.all("persistentvolumeclaims").iter().any(|claim| {
            claim["metadata"]["namespace"] == namespace
                && claim["status"]["phase"] == "Pending"
                && claim["spec"]["dataSource"]["kind"] == "VolumeSnapshot"
                && claim["spec"]["dataSource"]["name"] == name
        });
        // A member goes with its group, never alone.
        let group = text(&snapshot["status"]["volumeGroupSnapshotName"]);
        if waits || (!group.is_empty() && self.store.find(GROUPS, &namespace, &group).is_some()) {
            return Ok(());
        }
        let uid = &snapshot["metadata"]["uid"];
        let own = |content: &Arc<Value>| content["spec"]["volumeSnapshotRef"]["uid"] == *uid;
        if let Some(content) = self.store.all(CONTENTS).into_iter().find(own) {
            self.change(CONTENTS, &content, |content| {
                content["metadata"]["annotations"][BEING_DELETED] = json!("yes");
            });
            if content["spec"]["deletionPolicy"] == "Delete" {
                let contents = self.resource(CONTENTS)?;
                let content_name = text(&content["metadata"]["name"]);
                let _ = self.store.delete(&contents, "", &content_name, &Deletion::default());
                return Ok(());
            }
        }
        self.change(SNAPSHOTS, snapshot, |snapshot| {
            remove_finalizer(snapshot, AS_SOURCE);
            remove_finalizer(snapshot, BOUND);
            remove_finalizer(snapshot, IN_GROUP);
        });
        Ok(())
    }

    /// A deleted content goes when somebody has said that its snapshot goes, or when it never had one, and no cut of it is under
    /// way (external-snapshotter 8.6, `shouldDelete` of the sidecar: a missing snapshot alone deletes nothing).
    pub(crate) async fn release_content(&self, content: &Value) {
        let meta = &content["metadata"];
        let spec = &content["spec"];
        let never_bound =
            spec["source"]["snapshotHandle"].is_string() && spec["volumeSnapshotRef"]["uid"].is_null();
        let held = !never_bound && meta["annotations"][BEING_DELETED].is_null();
        let cutting =
            self.cutting.lock().unwrap_or_else(PoisonError::into_inner).contains(&text(&meta["uid"]));
        // A sidecar that is down never began: nothing can be lost.
        if held || (cutting && !self.knobs().sidecar_down) {
            return;
        }
        // Its cut may have ended since this content was read.
        let Some(content) = self.as_it_is(CONTENTS, content) else { return };
        let handle = text(&content["status"]["snapshotHandle"]);
        // The data of a group's member goes with the group alone.
        let member = content["status"]["volumeGroupSnapshotHandle"].is_string();
        if content["spec"]["deletionPolicy"] == "Delete" && !handle.is_empty() && !member {
            self.remove_copy(&handle).await;
        }
        self.change(CONTENTS, &content, |content| remove_finalizer(content, CONTENT_BOUND));
    }

    /// Removes a copy, and says so in the ledger; whoever asks for the same one meanwhile waits, and finds nothing.
    pub(crate) async fn remove_copy(&self, handle: &str) {
        // `remove_dir_all` answers both of two that run at once with success.
        let _one_at_a_time = self.removing.lock().await;
        let gone = tokio::fs::remove_dir_all(self.root.join("snapshots").join(handle)).await;
        if gone.is_ok() {
            let _ = self.write_ledger(&LedgerEntry {
                at: self.store.clock.wall(),
                event: "delete".into(),
                volume: String::new(),
                snapshot: handle.to_owned(),
                name: String::new(),
                group: String::new(),
                cut_start: None,
            });
        }
    }

    /// Puts an error on a snapshot that has no content to show it.
    fn report(&self, snapshot: &Value, why: &str) {
        if !self.blame(SNAPSHOTS, snapshot, why) {
            return;
        }
        let about = events::reference(snapshot);
        events::emit(
            &self.store,
            "snapshot-controller",
            &about,
            "Warning",
            "SnapshotContentCreationFailed",
            why,
        );
    }

    /// Puts an error on an object; whether it is news.
    pub(crate) fn blame(&self, table: &str, object: &Value, why: &str) -> bool {
        if object["status"]["error"]["message"] == why {
            return false;
        }
        let now = self.store.now();
        self.change(table, object, |object| {
            object["status"]["error"] = json!({"message": why, "time": now});
            object["status"]["readyToUse"] = json!(false);
        });
        true
    }

    pub(crate) fn change(&self, table: &str, object: &Value, change: impl FnOnce(&mut Value)) {
        let Ok(resource) = self.resource(table) else { return };
        let (namespace, name) = (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
        let changed = self.store.update(&resource, (&namespace, &name), Half::Both, false, |current| {
            if current["metadata"]["uid"] != object["metadata"]["uid"] {
                return Err(ApiError::conflict(&resource, &name));
            }
            change(current);
            Ok(())
        });
        if let Err(error) = changed {
            tracing::debug!(name, %error, "snapshot object not changed");
        }
    }

    pub(crate) fn resource(&self, table: &str) -> Result<Arc<Resource>, String> {
        self.store.registry.by_table(table).ok_or_else(|| format!("{table} is not served"))
    }

    pub(crate) fn knobs(&self) -> Knobs {
        self.knobs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn nanos(&self) -> i64 {
        i64::try_from(self.store.clock.wall().as_nanosecond()).unwrap_or(0)
    }

    pub(crate) fn write_ledger(&self, entry: &LedgerEntry) -> Result<(), String> {
        let _one_at_a_time = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let line = serde_json::to_string(entry).map_err(|error| error.to_string())?;
        let path = self.root.join("cuts.jsonl");
        let file = std::fs::File::options().create(true).append(true).open(path);
        file.and_then(|mut file| writeln!(file, "{line}")).map_err(|error| format!("ledger: {error}"))
    }
}

/// Whether a snapshot was made for a member of a group.
fn is_member(snapshot: &Value) -> bool {
    let finalizers = snapshot["metadata"]["finalizers"].as_array();
    finalizers.into_iter().flatten().any(|finalizer| finalizer == IN_GROUP)
}

/// Size of a volume in bytes.
pub(crate) fn quantity_of(volume: &Value) -> u64 {
    volume["spec"]["capacity"]["storage"].as_str().and_then(parse_quantity).unwrap_or(0)
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn quantity(bytes: u64) -> String {
    for (unit, size) in [("Gi", 1_u64 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)] {
        if bytes >= size && bytes.is_multiple_of(size) {
            return format!("{}{unit}", bytes / size);
        }
    }
    bytes.to_string()
}
