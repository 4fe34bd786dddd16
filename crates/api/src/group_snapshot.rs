//! The objects of `groupsnapshot.storage.k8s.io/v1` that we use, typed by hand from the CRDs of external-snapshotter 8.6
//! (a drift test compares the fields). Only what is read or written here is typed; unknown fields are left alone.
//!
//! A group is chosen by labels, and the snapshot controller reads `matchLabels` alone: an empty set is every claim of
//! the namespace (docs/design/freeze.md §1). Whoever builds a request gives exactly one label.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::CustomResource;
use serde::{Deserialize, Serialize};

use crate::snapshot::{SnapshotError, SnapshotRef};

/// A request for one snapshot of several claims.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "groupsnapshot.storage.k8s.io",
    version = "v1",
    kind = "VolumeGroupSnapshot",
    namespaced,
    status = "VolumeGroupSnapshotStatus",
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotSpec {
    /// What is cut.
    pub source: VolumeGroupSnapshotSource,
    /// The class; always set by us: without it the controller needs more requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_group_snapshot_class_name: Option<String>,
}

/// What a VolumeGroupSnapshot is made from: exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotSource {
    /// Claims of the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<GroupSelector>,
    /// An existing content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_group_snapshot_content_name: Option<String>,
}

/// The part of a selector that the snapshot controller reads; it ignores `matchExpressions`, so they are not typed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupSelector {
    /// All of these; never empty in our requests.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
}

/// What the snapshot controller reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotStatus {
    /// Set when the content object was made, not when it was cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_volume_group_snapshot_content_name: Option<String>,
    /// Cut time in whole seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<Time>,
    /// Usable for a restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_to_use: Option<bool>,
    /// The last error; cleared when it becomes ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<SnapshotError>,
}

/// The group as the storage system has it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "groupsnapshot.storage.k8s.io",
    version = "v1",
    kind = "VolumeGroupSnapshotContent",
    status = "VolumeGroupSnapshotContentStatus",
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotContentSpec {
    /// `Delete` or `Retain`.
    #[serde(default)]
    pub deletion_policy: String,
    /// CSI driver.
    #[serde(default)]
    pub driver: String,
    /// Volumes it is made from.
    #[serde(default)]
    pub source: VolumeGroupSnapshotContentSource,
    /// Class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_group_snapshot_class_name: Option<String>,
    /// The group snapshot it belongs to; counts only with the UID of our own 201.
    #[serde(default)]
    pub volume_group_snapshot_ref: SnapshotRef,
}

/// What a group content is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotContentSource {
    /// Volumes to cut, as the snapshot controller found them by the labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volume_handles: Vec<String>,
}

/// What the sidecar reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotContentStatus {
    /// The cut is done, for drivers that block until then (docs/design/freeze.md §1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_group_snapshot_handle: Option<String>,
    /// Cut time in whole seconds; that of a member is finer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<Time>,
    /// Usable for a restore; missing means unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_to_use: Option<bool>,
    /// What was cut, volume by volume; written together with the handle.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volume_snapshot_info_list: Vec<VolumeSnapshotInfo>,
    /// The last error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<SnapshotError>,
}

/// One volume of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotInfo {
    /// The volume.
    #[serde(default)]
    pub volume_handle: String,
    /// Its snapshot.
    #[serde(default)]
    pub snapshot_handle: String,
    /// Cut time, nanoseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<i64>,
    /// Usable for a restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_to_use: Option<bool>,
    /// Least size of a volume that can hold it, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_size: Option<i64>,
}

/// A class of group snapshots. Its fields are at the top level, so it is typed without a spec.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotClass {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// CSI driver.
    pub driver: String,
    /// `Delete` or `Retain`.
    pub deletion_policy: String,
}

impl k8s_openapi::Resource for VolumeGroupSnapshotClass {
    const API_VERSION: &'static str = "groupsnapshot.storage.k8s.io/v1";
    const GROUP: &'static str = "groupsnapshot.storage.k8s.io";
    const KIND: &'static str = "VolumeGroupSnapshotClass";
    const VERSION: &'static str = "v1";
    const URL_PATH_SEGMENT: &'static str = "volumegroupsnapshotclasses";
    type Scope = k8s_openapi::ClusterResourceScope;
}

impl k8s_openapi::Metadata for VolumeGroupSnapshotClass {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &Self::Ty {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut Self::Ty {
        &mut self.metadata
    }
}

/// Annotation that marks the class used when none is named.
pub const DEFAULT_GROUP_CLASS_ANNOTATION: &str = "groupsnapshot.storage.kubernetes.io/is-default-class";

/// Name of the content that the snapshot controller makes for a group snapshot.
pub fn content_name(group_uid: &str) -> String {
    format!("groupsnapcontent-{group_uid}")
}
