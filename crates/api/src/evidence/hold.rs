//! What a hold said, from READY to THAWED.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Offset, is_no_order, is_zero};

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
