//! What a run records about its freeze, so that the verdict follows from the record alone.
//!
//! Everything [`BackupStatus`](crate::backup::BackupStatus) holds in `resolved`, `holds`, `members` and `window` is
//! the evidence (docs/design/freeze.md §4). Times inside one attempt are [`Offset`]s from t0, the instant before the
//! first FREEZE was written, on the controller's monotonic clock; wall clock is kept beside it for humans.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::{Continuity, Requirement, TemplateRef};
use crate::template::{Layout, Setting};

/// Microseconds after t0 (negative: before it), on the controller's monotonic clock.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Offset(pub i64);

impl Offset {
    /// As seconds, for people and metrics.
    pub fn seconds(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_no_order(order: &i32) -> bool {
    *order == 0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// What was resolved before anything was frozen: the inputs of rules 4, 8, 9 and 10 that are no measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resolved {
    /// UID of the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub policy_uid: Option<String>,
    /// Generation of the policy's spec that this run follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_generation: Option<i64>,
    /// Longest freeze that was promised, in milliseconds.
    #[serde(default)]
    pub max_hold_millis: u64,
    /// Least continuity that counts as proof in this run.
    #[serde(default)]
    pub min_continuity: Continuity,
    /// What happens to the point without proof.
    #[serde(default)]
    pub requirement: Requirement,
    /// The applications and what their templates claim.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub applications: Vec<ResolvedApplication>,
}

/// One application as resolved: its template by content and what that claims.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedApplication {
    /// Name of the application.
    #[schemars(length(max = 63))]
    pub name: String,
    /// The template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<TemplateRef>,
    /// SHA-256 of the template with its parameters substituted, hex.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub digest: String,
    /// How it is held.
    #[serde(default)]
    pub hold: HoldKind,
    /// Source of the claim that the engine recovers from an atomic cut; empty: no such claim.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub crash_safe: String,
    /// Proof that a held file copy is usable; empty: no such claim.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub copy_safe: String,
    /// On how many volumes the template is proven.
    #[serde(default)]
    pub layout: Layout,
    /// Stages of its cut; 0 and 1: none (docs/design/freeze.md §2.5).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stages: u32,
    /// Whether HELD is printed only after a probe saw the frozen state (grade State).
    #[serde(default, skip_serializing_if = "is_false")]
    pub probed: bool,
    /// Settings that make an acknowledged commit durable (rule 9).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub settings: Vec<Setting>,
    /// Key of the hold's lines whose equality in FROZEN and the closing HELD proves that nothing was committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub position: Option<String>,
    /// Source of the claim that THAWED itself proves the lock; empty: no such claim.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub thaw_proves_lock: String,
    /// The key and value that say "this server is this container's".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<crate::template::LocalRule>,
    /// Facts whose values are paths that the server writes; each must lie on a member.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 64)))]
    pub data_paths: Vec<String>,
    /// For which instant the point stands.
    #[serde(default)]
    pub data_time: crate::template::DataTime,
    /// End of prepare; the point's time where `dataTime` is `Prepare`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepared_at: Option<MicroTime>,
    /// Names (`namespace-less pod name/uid`) of the pods that the selector gave when the hold was READY, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(max = 320)))]
    pub pods_at_ready: Vec<String>,
    /// The same after the last THAWED, and with it every other pod that then mounted a member claim writable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(max = 320)))]
    pub pods_at_thawed: Vec<String>,
    /// What the template's role rule chose when the hold was READY (`pod name/uid=role`), sorted; empty: it has no such
    /// rule (docs/design/freeze.md §4.4).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(max = 384)))]
    pub chosen_at_ready: Vec<String>,
    /// The same after the last THAWED.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(max = 384)))]
    pub chosen_at_thawed: Vec<String>,
}

/// How an application is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HoldKind {
    /// A session whose lock stops commits.
    Session,
    /// A session that stops nobody: FROZEN marks what must be in the copy.
    Observer,
    /// Two commands under the holder.
    Commands,
    /// Two commands as separate execs, without a process that holds.
    Direct,
    /// Nothing is held.
    #[default]
    None,
}

impl HoldKind {
    /// Whether this kind claims to stop commits.
    pub const fn locks(self) -> bool {
        match self {
            Self::Session | Self::Commands | Self::Direct => true,
            Self::Observer | Self::None => false,
        }
    }
}

/// One hold: a process in one container, and what it said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HoldEvidence {
    /// Application that is held.
    #[schemars(length(max = 63))]
    pub application: String,
    /// Pod of the hold.
    #[schemars(length(max = 253))]
    pub pod_name: String,
    /// Its UID when the hold was READY.
    #[serde(rename = "podUID")]
    #[schemars(length(max = 64))]
    pub pod_uid: String,
    /// Container of the hold.
    #[schemars(length(max = 63))]
    pub container: String,
    /// Nonce of this attempt and hold; only lines that carry it count.
    #[schemars(length(max = 64))]
    pub nonce: String,
    /// Container id and restart count when the hold was READY.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_at_ready: Option<ContainerState>,
    /// The same after THAWED.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_at_thawed: Option<ContainerState>,
    /// READY, as received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<HoldAnswer>,
    /// When FREEZE was handed to the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze_sent: Option<Offset>,
    /// FROZEN, as received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<HoldAnswer>,
    /// Where its container mounts members, also those that it shares with other pods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 1024)))]
    pub mount_paths: Vec<String>,
    /// Lower freezes first and thaws last.
    #[serde(default, skip_serializing_if = "is_no_order")]
    pub order: i32,
    /// The stages after the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub stages: Vec<StageEvidence>,
    /// Beats sent from FROZEN to the closing one.
    #[serde(default)]
    pub beats: u32,
    /// Beats that were answered later than 2 s.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub late_beats: u32,
    /// Index of the closing beat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closing_index: Option<u32>,
    /// When the closing beat and the thaw text were handed to the stream, in one write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closing_sent: Option<Offset>,
    /// When that write was complete on the stream, before stdin was closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closing_written: Option<Offset>,
    /// The closing HELD, as received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<HoldAnswer>,
    /// When the first thaw of any kind was handed to the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thaw_sent: Option<Offset>,
    /// When THAWED to our nonce was received on the same stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thawed: Option<Offset>,
    /// Where the container mounts something that is no member below a member's mount path: what lies there is not cut
    /// with the member.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 1024)))]
    pub foreign_mounts: Vec<String>,
    /// Barriers that the hold said it ran, as received: what makes up for a setting that is not durable (rule 9).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub barriers: Vec<BarrierEvidence>,
    /// Statements that were ended because they kept writers stuck behind the lock that this hold did not get.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub ended_blockers: Vec<EndedBlocker>,
    /// EVIDENCE lines of the hold: settings, positions, paths. At most 32 values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32), inner(length(max = 1024)))]
    pub facts: BTreeMap<String, String>,
    /// How the stream ended when it was not by our release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub lost: Option<String>,
}

/// One barrier: what was acknowledged before it is durable since.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BarrierEvidence {
    /// Its name, as the hold said it.
    #[schemars(length(max = 64))]
    pub name: String,
    /// When the line was received. It counts only after FREEZE was sent and before FROZEN (docs/design/freeze.md §4.9).
    pub at: Offset,
}

/// A statement of somebody else that was ended under `freeze.onBlocked: KillBlocker`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndedBlocker {
    /// Its ID, as the stall probe printed it.
    #[schemars(length(max = 64))]
    pub id: String,
    /// The line of the probe that named it.
    #[schemars(length(max = 256))]
    pub named_by: String,
    /// When the command that ends it was started.
    pub sent: Offset,
    /// When that command was known to have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered: Option<Offset>,
    /// Why the statement may go on: the command failed. Absent with `answered`: it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub failed: Option<String>,
}

/// One stage after the first: what was said between two groups of cuts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StageEvidence {
    /// Its number, from 1.
    pub stage: u32,
    /// When its text was handed to the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<Offset>,
    /// FROZEN of this stage, as received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<HoldAnswer>,
}

/// Identity of a running container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContainerState {
    /// The runtime's id.
    #[serde(rename = "containerID")]
    #[schemars(length(max = 256))]
    pub container_id: String,
    /// Restarts so far.
    pub restart_count: i32,
}

/// One READY, FROZEN or HELD as the server printed it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HoldAnswer {
    /// When the complete line was received.
    pub at: Offset,
    /// The keys that must be equal in READY, FROZEN and HELD.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16), inner(length(max = 256)))]
    pub identity: BTreeMap<String, String>,
    /// Role of the server: primary, standby, replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub role: Option<String>,
    /// The server's clock, microseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<i64>,
    /// The lease the server says is in force, in the variable's own unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub lease: Option<String>,
    /// Counters that only a commit moves, by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 4), inner(length(max = 1024)))]
    pub position: BTreeMap<String, String>,
}

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

/// The freeze window of the last attempt that reached it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// Wall clock at t0, the instant before the first FREEZE was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// How far the API server's clock was ahead of ours at t0; absent: not measured (rule 6).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_clock: Option<ApiClock>,
    /// When every hold had answered FROZEN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked: Option<Offset>,
    /// When the first snapshot was POSTed (t1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_start: Option<Offset>,
    /// When the last cut signal was received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_end: Option<Offset>,
    /// When the first thaw was sent (t2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thaw_sent: Option<Offset>,
    /// When the last THAWED was received (t3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thawed: Option<Offset>,
    /// t3 − t0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_seconds: Option<f64>,
}

/// The API server's clock against ours: what it was ahead by at t0 lies between these. Negative: it was behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiClock {
    /// At least this much ahead, in microseconds.
    pub least_ahead_micros: i64,
    /// At most this much ahead, in microseconds.
    pub most_ahead_micros: i64,
}

/// What a recovery point is worth, weakest first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Consistency {
    /// Nothing is proven.
    #[default]
    None,
    /// What a power failure would have left.
    Crash,
    /// The application was held, or documented to recover, over every cut; every rule is proven.
    Application,
}

/// The verdict: which rules are proven, which are not and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// One entry per rule and application that holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub proved: Vec<RuleFinding>,
    /// One entry per rule and application that does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub missing: Vec<RuleFinding>,
    /// What was seen and does not decide: other paths that are not checked, a cut time after the signal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 1024)))]
    pub warnings: Vec<String>,
}

/// One rule of docs/design/freeze.md §4 for one application.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RuleFinding {
    /// Number of the rule, 1 to 10.
    #[schemars(range(min = 1, max = 10))]
    pub rule: u8,
    /// The application.
    #[schemars(length(max = 63))]
    pub application: String,
    /// What was found.
    #[schemars(length(max = 1024))]
    pub finding: String,
}
