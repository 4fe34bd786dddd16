//! What is known about a policy: the status of a `BackupPolicy`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is known about a policy. Written by the scheduler's leader alone, by compare-and-swap.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupPolicyStatus {
    /// `Accepted`: the spec can be scheduled. `Ready`: the last run protected what it should. `RPOAttainable`: the schedule
    /// can meet the objective. `ClockSkew`: clocks disagree, nothing is deleted. `RetentionPaused`: more points would go at
    /// once than an edit that was meant, and none goes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Newest slot that was decided upon; only advances.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient_time")]
    pub last_slot: Option<Time>,
    /// When the schedule that is in force was first seen: slots before it never run.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient_time")]
    pub schedule_since: Option<Time>,
    /// What `scheduleSince` was taken for: schedule and zone, with `initial` while the run of `runOnCreate` is to be
    /// decided upon; `suspended`; `refused`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 400))]
    pub schedule_seen: Option<String>,
    /// When runs start next, without jitter, at most five, in the policy's zone (RFC 3339): the slots, less those that a
    /// blackout drops; for those that it defers, its end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5), inner(length(max = 64)))]
    pub next_slots: Vec<String>,
    /// Longest interval between two slots, in seconds, with the gaps that blackouts make.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_interval_seconds: Option<i64>,
    /// Shortest interval between two slots, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_interval_seconds: Option<i64>,
    /// Recovery point objective and where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo: Option<RpoStatus>,
    /// Recovery points of this policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_points: Option<RecoveryPointCounts>,
    /// What retention decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<RetentionStatus>,
    /// Name of the Backup that is not finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub active: Option<String>,
    /// Finished runs since the last success that were none.
    #[serde(default)]
    pub consecutive_failures: u32,
    /// Slots that did not run, by reason, since the policy exists.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub missed: BTreeMap<String, u64>,
    /// Slots that did run, by how they ended, since the policy exists. With `missed`: all slots that were decided upon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<SlotCounts>,
}

/// Slots whose run has ended. Counted when they end, never anew: an edit does not change what was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlotCounts {
    /// With a proven point.
    #[serde(default)]
    pub met: u64,
    /// Without one.
    #[serde(default)]
    pub failed: u64,
    /// Newest slot that is counted; only advances.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient_time")]
    pub counted_to: Option<Time>,
}

/// A time that cannot be read, such as one after the year 9999, is the end of time: as far from now as it was meant to
/// be, and one policy with it does not stand in the way of reading it, telling so and putting it right.
fn lenient_time<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Time>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    Ok(Some(Time(text.parse().unwrap_or(jiff::Timestamp::MAX))))
}

/// What retention decided about the points of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetentionStatus {
    /// Finished Backups that stay, and why, newest first, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub kept: Vec<KeptPoint>,
    /// Points that may go and are not gone yet: they wait for a freeze to end, for a Restore, or for others to be gone.
    #[serde(default)]
    pub expiring: u32,
    /// Points that no rule keeps and that stay all the same, by what keeps them: `last_good` (nothing newer is proven),
    /// `legal_hold`, `breaker` (`RetentionPaused`), `clock_skew`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub blocked: BTreeMap<String, u32>,
}

/// A Backup that stays, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeptPoint {
    /// Its name.
    #[schemars(length(max = 253))]
    pub backup: String,
    /// Every reason: `daily-3` is the third day's, counted from the newest; `newest`, `held`, `within`, `oldest-monthly`, …
    #[schemars(length(max = 16), inner(length(max = 32)))]
    pub reasons: Vec<String>,
}

/// Where the recovery point objective stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RpoStatus {
    /// Cut of the newest proven point; when there is none, the start of protection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Time>,
    /// Pending, Compliant, AtRisk, Breached, Severe, Suspended or Unattainable; empty without an objective.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub state: Option<String>,
    /// Whether the schedule can meet the objective if every run succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attainable: Option<bool>,
}

/// Recovery points of a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryPointCounts {
    /// Proven and ready.
    #[serde(default)]
    pub ready: u32,
    /// Finished and not usable as proven points.
    #[serde(default)]
    pub failed: u32,
    /// Under a legal hold.
    #[serde(default)]
    pub held: u32,
    /// Of which somebody else deleted a snapshot: not usable without an import, and not counted above.
    #[serde(default)]
    pub snapshot_deleted: u32,
    /// Cut of the oldest proven point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<Time>,
    /// Cut of the newest proven point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<Time>,
}
