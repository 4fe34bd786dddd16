//! `Backup`: one run, and afterwards the recovery point it produced, with its evidence.
//!
//! `spec.run` never changes; `status` is written by compare-and-swap, by one writer at a time: the claim holder until
//! `Finished`, then the scheduler's leader. `journal` only grows (docs/design/freeze.md §5).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::evidence::{Consistency, HoldEvidence, MemberEvidence, Resolved, Verdict, Window};
use crate::policy::{
    Application, Continuity, FreezeBounds, NameRef, Requirement, RunBounds, SnapshotOptions,
};

/// Finalizer that keeps a Backup until its snapshots are gone.
pub const SNAPSHOTS_FINALIZER: &str = "stillpoint.dev/snapshots";
/// Annotation `"true"`: the finalizer lets go and the data stays.
pub const ABANDON_ANNOTATION: &str = "stillpoint.dev/abandon";
/// Annotation of a Backup: since when it is known that its policy is gone. The scheduler writes it where a rule says what
/// becomes of such Backups, and removes it when the policy is back or no rule asks any more (docs/rules.md).
pub const ORPHANED_SINCE_ANNOTATION: &str = "stillpoint.dev/orphaned-since";
/// Annotation of a claim, `"true"`: it is meant to be without a backup and does not count as unprotected.
pub const NEEDS_NO_BACKUP_ANNOTATION: &str = "stillpoint.dev/needs-no-backup";
/// Label of Backups and snapshots: name of the policy.
pub const POLICY_LABEL: &str = "stillpoint.dev/policy";
/// Label of snapshots: name of the Backup.
pub const BACKUP_LABEL: &str = "stillpoint.dev/backup";
/// Label of snapshots: UID of the Backup.
pub const BACKUP_UID_LABEL: &str = "stillpoint.dev/backup-uid";
/// Label of snapshots: nonce of the attempt.
pub const ATTEMPT_LABEL: &str = "stillpoint.dev/attempt";
/// Label of snapshots: name of the application.
pub const APPLICATION_LABEL: &str = "stillpoint.dev/application";
/// Label of claims while they are cut as a group, and only then: `<UID of the Backup>-<attempt>-<number of the group>`.
pub const GROUP_LABEL: &str = "stillpoint.dev/group";
/// Label of snapshot contents, which are cluster-scoped: namespace of the Backup.
pub const NAMESPACE_LABEL: &str = "stillpoint.dev/namespace";
/// Label of snapshot contents: UID of that namespace.
pub const NAMESPACE_UID_LABEL: &str = "stillpoint.dev/namespace-uid";
/// Annotation of snapshots and contents: the verdict.
pub const CONSISTENCY_ANNOTATION: &str = "stillpoint.dev/consistency";
/// Annotation of snapshots and contents: digest of the template.
pub const TEMPLATE_DIGEST_ANNOTATION: &str = "stillpoint.dev/template-digest";
/// Annotation of snapshots and contents: the freeze window, `<RFC 3339 start>/<seconds>s`.
pub const WINDOW_ANNOTATION: &str = "stillpoint.dev/window";
/// Annotation of contents: claim the data came from.
pub const CLAIM_ANNOTATION: &str = "stillpoint.dev/claim";
/// Annotation of contents: instant of the cut.
pub const CUT_ANNOTATION: &str = "stillpoint.dev/cut";

/// One backup run of a policy or of inline applications.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "stillpoint.dev",
    version = "v1alpha1",
    kind = "Backup",
    plural = "backups",
    namespaced,
    status = "BackupStatus",
    shortname = "spb",
    category = "stillpoint",
    validation = Rule::new("self.spec.trigger == 'Manual' || has(self.spec.run.policyRef)").message("only a policy's runs have a trigger; leave spec.trigger out"),
    validation = Rule::new("self.spec.trigger != 'Manual' || !has(self.spec.run.slot)").message("spec.run.slot belongs to the scheduler; leave it out"),
    printcolumn(name = "Policy", type_ = "string", json_path = ".spec.run.policyRef.name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Consistency", type_ = "string", json_path = ".status.consistency"),
    printcolumn(name = "Continuity", type_ = "string", json_path = ".status.continuity"),
    printcolumn(name = "Frozen", type_ = "number", json_path = ".status.window.frozenSeconds"),
    printcolumn(name = "Cut", type_ = "date", json_path = ".status.cut"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Succeeded\")].reason")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackupSpec {
    /// What is backed up. Never changes.
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.run never changes: create another Backup"))]
    pub run: RunSpec,
    /// Who started it; set by the scheduler alone.
    #[serde(default)]
    #[schemars(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.trigger never changes"))]
    pub trigger: Trigger,
    /// Set to true to cancel a run: it is thawed, its snapshots are removed, and it fails. Cannot be taken back.
    #[serde(default)]
    #[schemars(default)]
    #[x_kube(validation = Rule::new("self || !oldSelf").message("a cancellation cannot be taken back"))]
    pub cancel: bool,
    /// A legal hold: retention never deletes this point, and it takes no place among those that the policy keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<LegalHold>,
}

/// What is backed up: a policy of the namespace, or applications inline.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.policyRef) != has(self.applications)").message("exactly one of policyRef and applications"))]
#[x_kube(validation = Rule::new("!has(self.policyRef) || (!has(self.freeze) && !has(self.run) && !has(self.snapshot) && !has(self.consistency) && !has(self.minContinuity))").message("with policyRef the policy decides about freeze, run, snapshot, consistency and minContinuity"))]
pub struct RunSpec {
    /// The policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_ref: Option<PolicyRef>,
    /// Applications without a policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub applications: Option<Vec<Application>>,
    /// Bounds of the freeze, with inline applications.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<FreezeBounds>,
    /// Bounds of the run, with inline applications.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunBounds>,
    /// Snapshot options, with inline applications.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotOptions>,
    /// Requirement, with inline applications. Default: Required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Requirement>,
    /// Least continuity, with inline applications. Default: Declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_continuity: Option<Continuity>,
    /// The slot this run is for; set by the scheduler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<Time>,
}

/// The policy of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyRef {
    /// Name of the policy.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// UID of the policy; set by the scheduler, checked by the executor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub uid: Option<String>,
}

/// Who started a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Trigger {
    /// A person or a pipeline.
    #[default]
    Manual,
    /// A slot.
    Schedule,
    /// A slot that was missed.
    CatchUp,
    /// `runOnCreate`.
    Initial,
}

impl Trigger {
    /// The word for metric labels.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Schedule => "schedule",
            Self::CatchUp => "catchup",
            Self::Initial => "initial",
        }
    }
}

/// Keeps a point whatever retention says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LegalHold {
    /// Why.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
}

/// Where a run stands. Nothing is written inside the freeze window; finer states are in log and timeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Not claimed yet.
    #[default]
    Pending,
    /// Resolved, checked and prepared; nothing is frozen.
    Preparing,
    /// Journalled as about to freeze, frozen, or just thawed.
    Freezing,
    /// Thawed; waits for the snapshots to be ready and for the verdict.
    Settling,
    /// A recovery point.
    Succeeded,
    /// None.
    Failed,
    /// Its snapshots are being deleted.
    Deleting,
}

/// What is known about a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupStatus {
    /// `Succeeded` and `Finished`, so that waiting for `Finished` returns on failure too. `Ready=False` with reason
    /// `SnapshotDeleted`: a snapshot of the point was deleted by somebody else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// Where the run stands.
    #[serde(default)]
    pub phase: Phase,
    /// Replica that holds the claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub executor: Option<String>,
    /// Attempts so far.
    #[serde(default)]
    pub attempt: u32,
    /// When the first attempt was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// When the run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<MicroTime>,
    /// What must survive a crash; only grows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub journal: Vec<JournalEntry>,
    /// What was resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<Resolved>,
    /// The snapshots.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub members: Vec<MemberEvidence>,
    /// The holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub holds: Vec<HoldEvidence>,
    /// The freeze window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// The instant that the point stands for: the earliest cut of its members, or when prepare began where a template says
    /// `dataTime: Prepare`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<MicroTime>,
    /// What the point is worth: the weakest application's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// Weakest continuity grade of the holds; absent where nothing is locked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continuity: Option<Continuity>,
    /// All applications were held together over all cuts.
    #[serde(default)]
    pub cross_consistent: bool,
    /// Rule by rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
}

/// One journal entry; written before the effect that needs it (docs/design/freeze.md §5).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JournalEntry {
    /// Which entry.
    pub entry: JournalKind,
    /// The attempt.
    pub attempt: u32,
    /// Nonce of the attempt; label of its snapshots.
    #[schemars(length(max = 64))]
    pub nonce: String,
    /// Replica that wrote it.
    #[schemars(length(max = 253))]
    pub executor: String,
    /// Wall clock of the writer.
    pub at: MicroTime,
    /// Longest hold from here, in milliseconds (Freezing).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_hold_millis: Option<u64>,
    /// Why (Aborted).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reason: Option<String>,
    /// The same for people (Aborted).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub message: Option<String>,
    /// Nonces of holds that were not proven thawed (Aborted).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(max = 64)))]
    pub not_proven_thawed: Vec<String>,
}

/// Kinds of journal entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum JournalKind {
    /// About to freeze: from here on a new owner must assume that it is frozen.
    Freezing,
    /// Every hold answered THAWED; the evidence is complete.
    Thawed,
    /// The attempt ended without a proven cut.
    Aborted,
}

/// Condition: the run produced a recovery point.
pub const SUCCEEDED: &str = "Succeeded";
/// Condition: the run ended, well or not.
pub const FINISHED: &str = "Finished";

/// Condition, on finished Backups only: `False` when the point cannot be used any more; absent, it can.
pub const READY: &str = "Ready";
/// Reason of `Ready=False`: a VolumeSnapshot of the point, or its content, was deleted behind our back (docs/retention.md).
pub const SNAPSHOT_DELETED: &str = "SnapshotDeleted";

/// Condition: an application of the run may still be frozen, and is not getting better by itself.
pub const LEFT_QUIESCED: &str = "ApplicationLeftQuiesced";

/// Condition: a rule limits how many freezes go on at once, and the run waits for its turn.
pub const PACED: &str = "Paced";

impl BackupStatus {
    /// Whether a snapshot of the point was seen to be deleted by somebody else ([`SNAPSHOT_DELETED`]).
    pub fn snapshot_deleted(&self) -> bool {
        self.conditions
            .iter()
            .any(|one| one.type_ == READY && one.status == "False" && one.reason == SNAPSHOT_DELETED)
    }

    /// Members whose snapshot was ready when the run was settled: VolumeSnapshot and content of each exist, unless somebody
    /// deletes them.
    pub fn kept_members(&self) -> impl Iterator<Item = &MemberEvidence> {
        self.members.iter().filter(|member| {
            let ready = member.settled.as_ref().and_then(|settled| settled.ready_at.as_ref());
            ready.is_some() && member.volume_snapshot_uid.is_some() && member.content.is_some()
        })
    }
}

impl Backup {
    /// Whether the run ended, well or not.
    pub fn finished(&self) -> bool {
        self.status.as_ref().is_some_and(|status| match status.phase {
            Phase::Succeeded | Phase::Failed | Phase::Deleting => true,
            Phase::Pending | Phase::Preparing | Phase::Freezing | Phase::Settling => false,
        })
    }

    /// Whether this is a proven point: ready, `Application` in the verdict, and its snapshots were not deleted since.
    pub fn proven(&self) -> bool {
        self.status.as_ref().is_some_and(|status| {
            status.phase == Phase::Succeeded
                && status.consistency == Some(Consistency::Application)
                && !status.snapshot_deleted()
        })
    }

    /// Name of the policy, if it has one.
    pub fn policy_name(&self) -> Option<&str> {
        self.spec.run.policy_ref.as_ref().map(|policy| policy.name.as_str())
    }
}

/// A reference to a Backup of the same namespace.
pub type BackupRef = NameRef;
