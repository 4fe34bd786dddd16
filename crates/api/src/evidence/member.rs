//! What became of the volumes: each member of the cut, and the groups they were cut in.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Offset, is_zero};

/// One member: one claim, its snapshot, and when it was cut.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberEvidence {
    /// Application the claim belongs to.
    #[schemars(length(max = 63))]
    pub application: String,
    /// Pod that mounts it.
    #[schemars(length(max = 253))]
    pub pod_name: String,
    /// UID of that pod.
    #[serde(rename = "podUID")]
    #[schemars(length(max = 64))]
    pub pod_uid: String,
    /// The claim.
    #[schemars(length(max = 253))]
    pub claim_name: String,
    /// Where the held container mounts it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 1024)))]
    pub mount_paths: Vec<String>,
    /// Other held pods of the application that mount the same claim.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub also_mounted: Vec<MemberMount>,
    /// Handle of the volume, from the bound PV.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub volume_handle: String,
    /// CSI driver.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub driver: String,
    /// StorageClass of the claim, for restores and the storage table.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub storage_class: String,
    /// Size of the claim, a quantity, for restores.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub capacity: String,
    /// Access modes of the claim, for restores.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), inner(length(max = 32)))]
    pub access_modes: Vec<String>,
    /// The storage table's entry for this volume.
    #[serde(default)]
    pub storage: StorageFact,
    /// The stage in which it was cut.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stage: u32,
    /// The group it was cut in, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupEvidence>,
    /// Name of the VolumeSnapshot; carries the attempt's nonce, never reused. In a group: the member's own snapshot, which
    /// is made after the cut and known from settle on.
    #[schemars(length(max = 253))]
    pub volume_snapshot: String,
    /// UID from our own 201.
    #[serde(default, rename = "volumeSnapshotUID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub volume_snapshot_uid: Option<String>,
    /// When the POST was handed to the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_sent: Option<Offset>,
    /// When its 201 was received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub posted: Option<Offset>,
    /// The VolumeSnapshotContent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub content: Option<String>,
    /// When the cut signal was received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<Offset>,
    /// Snapshot handle at the signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub handle: Option<String>,
    /// The driver's own cut time at the signal, nanoseconds since 1970; absent or 0: the driver gave none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<i64>,
    /// Source volume handle of the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub content_volume_handle: Option<String>,
    /// The instant this copy stands for: the driver's cut time where it is plausible, else the POST; never later
    /// than the signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<MicroTime>,
    /// What was found when the snapshot was settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<SettledMember>,
    /// The last error of the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub error: Option<String>,
}

/// A group of volumes that were cut by one request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupEvidence {
    /// Name of the VolumeGroupSnapshot; carries the attempt's nonce, never reused.
    #[schemars(length(max = 253))]
    pub volume_group_snapshot: String,
    /// UID from our own 201.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub uid: Option<String>,
    /// The VolumeGroupSnapshotContent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub content: Option<String>,
    /// The group's handle at the signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub handle: Option<String>,
    /// Whether the group's members were found to be exactly the resolved volumes; absent: not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<bool>,
}

impl MemberEvidence {
    /// Where the held container of a pod mounts this member; nothing where it does not.
    pub fn mounted_in(&self, pod_uid: &str) -> &[String] {
        if self.pod_uid == pod_uid {
            return &self.mount_paths;
        }
        let other = self.also_mounted.iter().find(|mount| mount.pod_uid == pod_uid);
        other.map(|mount| mount.mount_paths.as_slice()).unwrap_or_default()
    }
}

/// A held pod that mounts a claim which is a member by another pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberMount {
    /// The pod.
    #[schemars(length(max = 253))]
    pub pod_name: String,
    /// Its UID.
    #[serde(rename = "podUID")]
    #[schemars(length(max = 64))]
    pub pod_uid: String,
    /// Where its held container mounts the claim.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 1024)))]
    pub mount_paths: Vec<String>,
}

/// What was found when a snapshot was settled.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SettledMember {
    /// Wall clock when readiness was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<MicroTime>,
    /// Handle then; must equal the one at the signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub handle: Option<String>,
    /// The driver's cut time then; must equal the one at the signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<i64>,
    /// Snapshot and content name each other, with UIDs.
    #[serde(default)]
    pub bound: bool,
    /// Smallest size of a volume that can hold it, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_size: Option<i64>,
}

/// What is known about how a driver cuts (rule 8). Built in for known drivers, extended only by the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageFact {
    /// Whether a cut is one instant.
    #[serde(default)]
    pub cut: CutKind,
    /// What a group of volumes is.
    #[serde(default)]
    pub group: GroupKind,
    /// What tells that the cut is done.
    #[serde(default)]
    pub signal: CutSignal,
    /// Why this is believed: `built in`, or the reason of the operator's entry; empty: the driver is not listed.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub reason: String,
}

/// Whether a cut is one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CutKind {
    /// All of the volume at one instant.
    Atomic,
    /// Files one after the other, or not known.
    #[default]
    Copy,
}

/// What a group of volumes is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GroupKind {
    /// All members at one instant, in the order of writes.
    WriteOrder,
    /// Members one after the other, or not known.
    #[default]
    Sequential,
}

/// What tells that a snapshot is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CutSignal {
    /// The handle in the content's status.
    Handle,
    /// `readyToUse` of the content: for drivers that answer before they cut, and for unknown ones.
    #[default]
    Ready,
}
