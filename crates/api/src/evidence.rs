//! What a run records about its freeze, so that the verdict follows from the record alone.
//!
//! Everything [`BackupStatus`](crate::backup::BackupStatus) holds in `resolved`, `holds`, `members` and `window` is
//! the evidence (docs/design/freeze.md §4). Times inside one attempt are [`Offset`]s from t0, the instant before the
//! first FREEZE was written, on the controller's monotonic clock; wall clock is kept beside it for humans.

mod hold;
mod member;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::hold::{
    BarrierEvidence, ContainerState, EndedBlocker, HoldAnswer, HoldEvidence, HoldKind, StageEvidence,
};
pub use self::member::{
    CutKind, CutSignal, GroupEvidence, GroupKind, MemberEvidence, MemberMount, SettledMember, StorageFact,
};
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
    /// When prepare began, once it succeeded: everything that was acknowledged before is in the copy. The point's time where
    /// `dataTime` is `Prepare`.
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
