//! `BackupPolicy`: which applications of a namespace, when, how, how long kept, which objectives.
//!
//! Ten lines are enough: a schedule and one application with a selector; every other field has the default a
//! careful operator would choose. A field whose behaviour is still to come is in the schema and refused by
//! [`crate::validate`] when set, never ignored.

mod status;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::status::{
    BackupPolicyStatus, KeptPoint, RecoveryPointCounts, RetentionStatus, RpoStatus, SlotCounts,
};
use crate::duration::{LongDuration, ShortDuration};

/// The longest freeze that is promised unless the policy says otherwise (docs/design/freeze.md §3).
pub const DEFAULT_MAX_HOLD: ShortDuration = ShortDuration::from_secs(30);
/// How long a lock may take to be acquired unless the policy says otherwise.
pub const DEFAULT_ACQUIRE_TIMEOUT: ShortDuration = ShortDuration::from_secs(15);
/// Attempts of one slot unless the policy says otherwise (docs/design/freeze.md §5).
pub const DEFAULT_MAX_ATTEMPTS: u32 = 2;
/// Time from the slot after which no new attempt starts.
pub const DEFAULT_RUN_DEADLINE: LongDuration = LongDuration::from_secs(15 * 60);
/// Recovery points kept when a policy has no retention.
pub const DEFAULT_RETENTION_LAST: u32 = 7;

/// Annotation of a policy: the `metadata.generation` whose deletions somebody agreed to while `RetentionPaused` is true.
pub const DELETIONS_AGREED_ANNOTATION: &str = "stillpoint.dev/deletions-agreed";

/// Protects applications of one namespace on a schedule.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "stillpoint.dev",
    version = "v1alpha1",
    kind = "BackupPolicy",
    plural = "backuppolicies",
    namespaced,
    status = "BackupPolicyStatus",
    shortname = "spp",
    category = "stillpoint",
    printcolumn(name = "Schedule", type_ = "string", json_path = ".spec.schedule.cron"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "RPO", type_ = "string", json_path = ".status.rpo.state"),
    printcolumn(name = "Reference", type_ = "date", json_path = ".status.rpo.reference"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextSlots[0]"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackupPolicySpec {
    /// When backups are taken.
    pub schedule: Schedule,
    /// Starts no new runs while true; a running one ends. The RPO clock keeps ticking.
    #[serde(default)]
    #[schemars(default)]
    pub suspend: bool,
    /// What the backups must achieve; attainment is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objectives: Option<Objectives>,
    /// What is protected. All applications of a policy are frozen together.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub applications: Vec<Application>,
    /// Bounds of the freeze.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<FreezeBounds>,
    /// Bounds of one slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunBounds>,
    /// What happens to a backup without proof of application consistency.
    #[serde(default)]
    #[schemars(default)]
    pub consistency: Requirement,
    /// The least continuity grade that counts as proof.
    #[serde(default)]
    #[schemars(default)]
    pub min_continuity: Continuity,
    /// How snapshots are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotOptions>,
    /// Which proven points are kept. Default: the last 7. Given without any rule: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// Scheduled restore drills. Not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
    /// The ProtectionRule that stamped this policy, and owns it. Leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule_ref: Option<NameRef>,
}

/// When slots are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Schedule {
    /// Five fields as in cron (minute hour day-of-month month day-of-week), `@daily`-style macros or `@every 15m`.
    #[schemars(length(min = 1, max = 256))]
    pub cron: String,
    /// IANA time zone of the schedule. Default: Etc/UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: Option<String>,
    /// Spreads policies: a stable offset of at most this much after each slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<ShortDuration>,
    /// How late a slot may still start. At least 1m. Default: until the next slot is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starting_deadline: Option<LongDuration>,
    /// What happens to slots that were missed while the controller was down.
    #[serde(default)]
    #[schemars(default)]
    pub catch_up: CatchUp,
    /// What happens when a slot is due while the last run is not finished.
    #[serde(default)]
    #[schemars(default)]
    pub concurrency: Concurrency,
    /// One run right after the policy is created, or first accepted. Set later, it runs nothing.
    #[serde(default)]
    #[schemars(default)]
    pub run_on_create: bool,
    /// Times at which nothing starts. Where two overlap the stricter one wins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub blackouts: Vec<Blackout>,
}

/// What happens to slots that were missed while the controller was down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CatchUp {
    /// The newest missed slot runs, if its deadline allows.
    #[default]
    Latest,
    /// None of them runs.
    None,
}

/// What happens when a slot is due while the last run is not finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Concurrency {
    /// The slot is skipped and counted as missed.
    #[default]
    Forbid,
    /// The newest waiting slot starts when the run ends, within its deadline.
    Queue,
    /// The run is cancelled and unwound, then the slot starts. A run that a person started is waited for.
    Replace,
}

/// A recurring window in which nothing starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Blackout {
    /// Start of the window, a cron expression.
    #[schemars(length(min = 1, max = 256))]
    pub start: String,
    /// Length of the window on the wall clock of its zone; its end is not part of it. At least 1m.
    pub duration: LongDuration,
    /// IANA time zone. Default: the schedule's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: Option<String>,
    /// Whether slots inside are dropped or moved to the window's end.
    #[serde(default)]
    #[schemars(default)]
    pub action: BlackoutAction,
}

/// What a blackout does with a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BlackoutAction {
    /// The slot is dropped and counted as missed.
    #[default]
    Skip,
    /// One run at the window's end stands for all slots inside.
    Defer,
}

/// Targets. Attainment is measured, never assumed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Objectives {
    /// Recovery point objective: how old the newest proven copy may become.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo: Option<LongDuration>,
    /// Recovery time objective: how long a restore may take. Not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto: Option<LongDuration>,
}

/// One application: pods that are frozen together and the volumes they write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Application {
    /// Name of the application within the policy; label of its snapshots.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Its pods.
    pub selector: LabelSelector,
    /// The recipe. Default: annotation `stillpoint.dev/template` of the pod, else by image name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_ref: Option<TemplateRef>,
    /// Values for the template's parameters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32), inner(length(max = 1024)))]
    pub parameters: BTreeMap<String, String>,
    /// Container that hooks run in. Default: the template's, else the pod's only or first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub container: Option<String>,
    /// Which of the selected pods are held.
    #[serde(default)]
    #[schemars(default)]
    pub pods: PodChoice,
    /// Which volumes are left out. Default: every claim mounted by the selected pods is a member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<VolumeChoice>,
    /// Lower orders freeze first and thaw last; equal orders go together.
    #[serde(default)]
    #[schemars(default)]
    pub order: i32,
    /// What a selector without pods means.
    #[serde(default)]
    #[schemars(default)]
    pub when_no_pods: WhenNoPods,
}

/// Which of the selected pods are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PodChoice {
    /// The template's rule; one pod where it has none.
    #[default]
    Auto,
    /// Every selected pod, each with a hold of its own.
    All,
    /// Exactly one: by the template's role rule; without such a rule several selected pods are an error.
    One,
}

/// Which volumes are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeChoice {
    /// Names of pod volumes or claims that are no members. A path the server writes cannot be excluded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 253)))]
    pub exclude: Vec<String>,
}

/// What a selector without pods means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WhenNoPods {
    /// The run fails with `NoPods`.
    #[default]
    Fail,
    /// The application is left out of the run. Not supported yet.
    Skip,
    /// Claims are snapshotted without a hold. Not supported yet.
    Snapshot,
}

/// Reference to a hook template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TemplateRef {
    /// Kind of the template.
    #[serde(default)]
    #[schemars(default)]
    pub kind: TemplateKind,
    /// Its name; a HookTemplate is looked up in the policy's namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Kinds of hook templates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TemplateKind {
    /// Shared by all namespaces.
    #[default]
    ClusterHookTemplate,
    /// Of the policy's own namespace.
    HookTemplate,
}

/// Reference to an object of the same namespace, or a cluster-scoped one, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NameRef {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Bounds of the freeze: a hard promise, enforced in the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.maxHold) || (duration(self.maxHold) >= duration('5s') && duration(self.maxHold) <= duration('5m'))").message("maxHold is 5s to 5m"))]
#[x_kube(validation = Rule::new("!has(self.acquireTimeout) || (duration(self.acquireTimeout) >= duration('1s') && duration(self.acquireTimeout) < duration(has(self.maxHold) ? self.maxHold : '30s') - duration('3s'))").message("acquireTimeout is at least 1s and less than maxHold - 3s: what is left is for the cut and the thaw"))]
pub struct FreezeBounds {
    /// Longest time from the first lock being sent to the last thaw. Default 30s, 5s to 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_hold: Option<ShortDuration>,
    /// Longest time for all locks to be acquired; at least 1s, less than maxHold - 3s. Default 15s, or half of maxHold where that is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acquire_timeout: Option<ShortDuration>,
    /// What is done about a statement that blocks the lock.
    #[serde(default)]
    #[schemars(default)]
    pub on_blocked: OnBlocked,
}

impl FreezeBounds {
    /// `maxHold` or its default.
    pub fn max_hold(&self) -> ShortDuration {
        self.max_hold.unwrap_or(DEFAULT_MAX_HOLD)
    }

    /// `acquireTimeout`, or 15 s, or half of `maxHold` where that is less.
    pub fn acquire_timeout(&self) -> std::time::Duration {
        match self.acquire_timeout {
            Some(set) => set.get(),
            None => DEFAULT_ACQUIRE_TIMEOUT.get().min(self.max_hold().get() / 2),
        }
    }
}

/// What is done about a statement that blocks the lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnBlocked {
    /// It is named in the failure.
    #[default]
    Report,
    /// That statement alone is ended, once the lock was not acquired, by the template's `stallProbe.endBlocker`.
    KillBlocker,
}

/// Bounds of one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunBounds {
    /// How often a slot is tried. Default 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 5))]
    pub max_attempts: Option<u32>,
    /// No attempt starts later than this after the slot. Default 15m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<LongDuration>,
}

impl RunBounds {
    /// `maxAttempts` or its default.
    pub fn max_attempts(&self) -> u32 {
        self.max_attempts.unwrap_or(DEFAULT_MAX_ATTEMPTS)
    }

    /// `deadline` or its default.
    pub fn deadline(&self) -> std::time::Duration {
        self.deadline.unwrap_or(DEFAULT_RUN_DEADLINE).get()
    }
}

/// What happens to a backup without proof of application consistency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Requirement {
    /// It fails and its snapshots are deleted.
    #[default]
    Required,
    /// It is kept and labelled with what was proven; it does not count for the RPO.
    BestEffort,
}

/// How continuously the lock is proven to have been held, weakest first (docs/design/freeze.md §4 rule 10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Continuity {
    /// The template's author vouches for it.
    #[default]
    Declared,
    /// A probe saw the frozen state at the end.
    State,
    /// The closing statement works only while our session owns the lock.
    Lock,
    /// A counter that only a commit moves was the same at both ends.
    Position,
}

/// How snapshots are taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SnapshotOptions {
    /// Class of the VolumeSnapshots. Default: the driver's default class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub volume_snapshot_class_name: Option<String>,
    /// Whether one VolumeGroupSnapshot is used for the volumes of one driver.
    #[serde(default)]
    #[schemars(default)]
    pub group: GroupChoice,
    /// What tells that a snapshot was cut.
    #[serde(default)]
    #[schemars(default)]
    pub cut_signal: CutSignalChoice,
    /// What happens to the data when the namespace is deleted.
    #[serde(default)]
    #[schemars(default)]
    pub on_namespace_delete: OnNamespaceDelete,
}

/// Whether one VolumeGroupSnapshot is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GroupChoice {
    /// Where it helps: a driver whose groups are write-ordered, or three volumes and more under a lock.
    #[default]
    Auto,
    /// All volumes of an application, or the run fails.
    Required,
    /// Single snapshots only.
    Never,
}

/// What tells that a snapshot was cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CutSignalChoice {
    /// As the storage table says for the driver.
    #[default]
    Auto,
    /// The handle in the content's status. Only for drivers the storage table trusts with it.
    Handle,
    /// `readyToUse` of the content.
    Ready,
}

/// What happens to the data when the namespace is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnNamespaceDelete {
    /// Snapshot contents and data stay and can be imported.
    #[default]
    Retain,
    /// They go with the namespace. Not supported yet.
    Delete,
}

/// Which proven points are kept: those that any rule asks for, in the time zone of the schedule. Points that exist are
/// counted, never days that passed. The newest proven point is always kept. While a rule has fewer points than it asks
/// for, the oldest one is kept as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retention {
    /// The newest n points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub last: Option<u32>,
    /// The newest point of each of the newest n hours that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1000))]
    pub hourly: Option<u32>,
    /// The newest point of each of the newest n days that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1000))]
    pub daily: Option<u32>,
    /// The newest point of each of the newest n ISO weeks that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1000))]
    pub weekly: Option<u32>,
    /// The newest point of each of the newest n months that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1000))]
    pub monthly: Option<u32>,
    /// The newest point of each of the newest n years that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1000))]
    pub yearly: Option<u32>,
    /// Every point at most this much older than the newest one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<LongDuration>,
}

/// Scheduled restore drills. Not supported yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Verification {
    /// When drills run.
    pub schedule: Schedule,
    /// How the drill restores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<VerificationRestore>,
}

/// How a drill restores. Not supported yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VerificationRestore {
    /// How long a drill may stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<LongDuration>,
}
impl BackupPolicy {
    /// The generation whose deletions somebody agreed to ([`DELETIONS_AGREED_ANNOTATION`]).
    pub fn deletions_agreed(&self) -> Option<i64> {
        self.metadata.annotations.as_ref()?.get(DELETIONS_AGREED_ANNOTATION)?.parse().ok()
    }
}
