//! `Restore`: brings a recovery point back. Immutable, runs once, `Finished` is final; not for Git.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::LongDuration;
use crate::policy::NameRef;

/// Label of everything a Restore makes: its name.
pub const RESTORE_LABEL: &str = "stillpoint.dev/restore";

/// Restores a recovery point once.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "stillpoint.dev",
    version = "v1alpha1",
    kind = "Restore",
    plural = "restores",
    namespaced,
    status = "RestoreStatus",
    shortname = "spr",
    category = "stillpoint",
    validation = Rule::new("self.spec == oldSelf.spec").message("a Restore never changes: create another one"),
    validation = Rule::new("self.spec.trigger == 'Manual' || (has(self.spec.policyRef) && has(self.spec.target.drill))").message("only a policy's drills have a trigger; leave spec.trigger out"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Backup", type_ = "string", json_path = ".status.backup"),
    printcolumn(name = "Data", type_ = "date", json_path = ".status.dataTime"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Succeeded\")].reason")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestoreSpec {
    /// What is restored.
    pub source: RestoreSource,
    /// Where to.
    pub target: RestoreTarget,
    /// Who started it; set by the scheduler alone. Only Manual is supported yet.
    #[serde(default)]
    #[schemars(default)]
    pub trigger: RestoreTrigger,
    /// Policy of a scheduled drill. Not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_ref: Option<NameRef>,
}

/// Who started a Restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RestoreTrigger {
    /// A person or a pipeline.
    #[default]
    Manual,
    /// A drill schedule.
    Schedule,
}

/// What is restored: exactly one of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RestoreSource {
    /// A Backup by name, whatever it is worth.
    BackupRef(SourceBackup),
    /// The newest proven point of a policy.
    Latest(SourceLatest),
    /// Handles of the storage system. Not supported yet.
    Handles(SourceHandles),
}

/// A Backup by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceBackup {
    /// Name of the Backup.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its namespace. Default: the Restore's; others are not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
}

/// The newest proven point of a policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceLatest {
    /// The policy.
    pub policy_ref: NameRef,
    /// Only points cut before this instant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<MicroTime>,
    /// Namespace of the policy. Default: the Restore's; others are not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
}

/// Handles of the storage system. Not supported yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceHandles {
    /// CSI driver.
    #[schemars(length(min = 1, max = 253))]
    pub driver: String,
    /// Claim name → snapshot handle.
    #[schemars(extend("maxProperties" = 256), inner(length(min = 1, max = 1024)))]
    pub handles: std::collections::BTreeMap<String, String>,
    /// Namespace the data came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
}

/// Where a point is restored to: exactly one of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RestoreTarget {
    /// New claims in the Restore's namespace.
    Clone(CloneTarget),
    /// The claims of a running workload are replaced. Not supported yet.
    InPlace(InPlaceTarget),
    /// A scratch copy that is checked and removed. Not supported yet.
    Drill(DrillTarget),
}

/// New claims.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CloneTarget {
    /// The new claims are `<prefix><claim>`. Default: `<restore>-`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9][-a-z0-9.]*$"))]
    pub prefix: Option<String>,
    /// Claim → name of the new claim; others follow the prefix.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 256), inner(length(max = 253)))]
    pub names: std::collections::BTreeMap<String, String>,
    /// Only these applications. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 63)))]
    pub applications: Vec<String>,
}

/// The claims of a running workload are replaced. Not supported yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.confirm == self.workload.name").message("confirm repeats the workload's name: its volumes will be replaced"))]
pub struct InPlaceTarget {
    /// The StatefulSet.
    pub workload: NameRef,
    /// Its name once more.
    #[schemars(length(max = 253))]
    pub confirm: String,
}

/// A scratch copy that is checked and removed. Not supported yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DrillTarget {
    /// How long it may stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<LongDuration>,
}

/// Where a Restore stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RestorePhase {
    /// Not begun.
    #[default]
    Pending,
    /// Claims are being made.
    Restoring,
    /// All claims exist and are bound, or wait for their first consumer.
    Succeeded,
    /// It cannot be done.
    Failed,
}

/// What is known about a Restore.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreStatus {
    /// `Succeeded` and `Finished`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// Where it stands.
    #[serde(default)]
    pub phase: RestorePhase,
    /// The Backup that is restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub backup: Option<String>,
    /// Replica that carries it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub executor: Option<String>,
    /// When it was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_at: Option<MicroTime>,
    /// Instant the data stands for: the earliest cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_time: Option<MicroTime>,
    /// What the restored point is worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<crate::evidence::Consistency>,
    /// Begin to end, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto_seconds: Option<f64>,
    /// The new claims.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub claims: Vec<RestoredClaim>,
    /// What was done and how long it took.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub steps: Vec<RestoreStep>,
}

/// One new claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoredClaim {
    /// Claim the data came from.
    #[schemars(length(max = 253))]
    pub source_claim: String,
    /// The new claim.
    #[schemars(length(max = 253))]
    pub claim_name: String,
    /// Whether it is bound; a class that binds at first use stays unbound until a pod mounts it.
    #[serde(default)]
    pub bound: bool,
}

/// One step of a Restore.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreStep {
    /// What was done.
    #[schemars(length(max = 253))]
    pub name: String,
    /// How long it took, seconds.
    pub seconds: f64,
}
