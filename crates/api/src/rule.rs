//! `ProtectionRule`: what operations decide for the policies, runs and restores of the namespaces that it selects.
//!
//! A rule narrows, it never grants: what a policy may do in a namespace, it may do under a rule only if every rule that
//! selects the namespace lets it. [`judge`] says what is outside, for the scheduler and for the executor alike. A rule that
//! is not accepted is not in force, and says so (docs/rules.md).

pub mod judge;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::core::{Selector, SelectorExt as _};
use kube::{CustomResource, KubeSchema, ResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::{LongDuration, ShortDuration};
use crate::policy::{
    Application, BackupPolicySpec, Blackout, Continuity, DELETIONS_AGREED_ANNOTATION, FreezeBounds, NameRef,
    Objectives, Requirement, Retention, RunBounds, Schedule, SnapshotOptions, TemplateRef,
};
use crate::restore::RestoreTarget;

/// Annotation of a namespace: with the value [`OPT_OUT`] no default policy is stamped into it.
pub const DEFAULT_POLICY_ANNOTATION: &str = "stillpoint.dev/default-policy";
/// Value of [`DEFAULT_POLICY_ANNOTATION`] with which a namespace opts out.
pub const OPT_OUT: &str = "none";
/// Reason of whatever is refused because it is outside a rule.
pub const RULE_VIOLATION: &str = "RuleViolation";
/// Condition of a rule: it is in force.
pub const ACCEPTED: &str = "Accepted";

/// Condition of a rule: so many policies are gone that it looks like a mistake, and none of their Backups is deleted.
pub const ORPHANS_PAUSED: &str = "OrphansPaused";

/// What operations decide for the namespaces that it selects.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "stillpoint.dev",
    version = "v1alpha1",
    kind = "ProtectionRule",
    plural = "protectionrules",
    status = "ProtectionRuleStatus",
    shortname = "sprule",
    category = "stillpoint",
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(name = "Namespaces", type_ = "integer", json_path = ".status.namespaces"),
    printcolumn(name = "Policies", type_ = "integer", json_path = ".status.policies"),
    printcolumn(name = "Violations", type_ = "integer", json_path = ".status.violations"),
    printcolumn(name = "Stamped", type_ = "integer", json_path = ".status.stamped"),
    printcolumn(name = "Expiring", type_ = "integer", json_path = ".status.orphans.expiring", priority = 1),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].reason",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.require) || has(self.allow) || has(self.blackouts) || has(self.limits) || has(self.default) || has(self.orphans)").message("the rule decides nothing: write require, allow, blackouts, limits, default or orphans"))]
pub struct ProtectionRuleSpec {
    /// The namespaces that the rule is for, by their labels. Empty: all of them.
    pub namespace_selector: LabelSelector,
    /// What every policy must promise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require: Option<Required>,
    /// What policies, runs and restores may use. What is left out is not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Allowed>,
    /// Times at which nothing starts, beside those of the policies. Where two overlap the stricter one wins. Default time
    /// zone: Etc/UTC.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub blackouts: Vec<Blackout>,
    /// How many freezes may go on at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// A policy for namespaces that have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<DefaultPolicy>,
    /// What becomes of the Backups of policies that are gone. Default: they are kept. Of several rules that say it the
    /// longest time counts, and `newest: Keep`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orphans: Option<Orphans>,
}

/// What every policy must promise. A policy that says nothing about a field that is asked for does not promise it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct Required {
    /// Its `objectives.rpo` is at most this. A policy without an objective does not promise one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo: Option<LongDuration>,
    /// Each of these is kept at least as often, or as long, as here. A policy that keeps everything keeps enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// How old the last drill may be. Not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<RequiredVerification>,
    /// `Required`: no policy may keep points without proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Requirement>,
    /// Its `minContinuity` is at least this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continuity: Option<Continuity>,
}

/// How old the last drill may be. Not supported yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequiredVerification {
    /// Longest time since the last drill that passed.
    pub max_age: LongDuration,
}

/// What policies, runs and restores may use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
#[x_kube(validation = Rule::new("!has(self.maxHold) || (duration(self.maxHold) >= duration('5s') && duration(self.maxHold) <= duration('5m'))").message("maxHold is 5s to 5m"))]
pub struct Allowed {
    /// Only these templates. A template that detection chooses is judged when the run begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["kind".into(), "name".into()]))]
    pub templates: Option<Vec<TemplateRef>>,
    /// Only these classes, of snapshots and of groups. A driver's default class is judged when the run begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 253)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub snapshot_classes: Option<Vec<String>>,
    /// No two slots of a schedule are closer than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_interval: Option<LongDuration>,
    /// `freeze.maxHold` is at most this; left out it is 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_hold: Option<ShortDuration>,
    /// Only these targets of restores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 3))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub restore_targets: Option<Vec<TargetKind>>,
}

/// Where a point is restored to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum TargetKind {
    /// New claims.
    Clone,
    /// The claims of a running workload are replaced.
    InPlace,
    /// A scratch copy that is checked and removed.
    Drill,
}

impl TargetKind {
    /// The kind of a target.
    pub const fn of(target: &RestoreTarget) -> Self {
        match target {
            RestoreTarget::Clone(_) => Self::Clone,
            RestoreTarget::InPlace(_) => Self::InPlace,
            RestoreTarget::Drill(_) => Self::Drill,
        }
    }
}

/// How many freezes may go on at once. A run waits before its freeze, never in it, and its deadline goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct Limits {
    /// In all namespaces of the rule together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub cluster: Option<u32>,
    /// In each namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub namespace: Option<u32>,
    /// On each CSI driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub driver: Option<u32>,
    /// On these CSI drivers, instead of `driver`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub drivers: Vec<DriverLimit>,
}

/// How many freezes may go on at once on one CSI driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DriverLimit {
    /// The driver, as its CSIDriver object is called.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// How many.
    #[schemars(range(min = 1, max = 1000))]
    pub freezes: u32,
}

/// A policy for namespaces that have none: one for each application that detection finds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DefaultPolicy {
    /// When backups are taken. Give it a jitter: the policies of all namespaces have the same slots.
    pub schedule: Schedule,
    /// What the backups must achieve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objectives: Option<Objectives>,
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
    /// Which proven points are kept. Default: the last 7.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// What becomes of the Backups of policies that are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Orphans {
    /// How long they are kept after it was seen that their policy is gone. At least 1d.
    pub keep: LongDuration,
    /// What becomes of the newest proven point of such a policy.
    #[serde(default)]
    #[schemars(default)]
    pub newest: Newest,
}

/// What becomes of the newest proven point of a policy that is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Newest {
    /// It stays until somebody deletes it.
    #[default]
    Keep,
    /// It goes like the others.
    Delete,
}

/// What is known about a rule. Written by the scheduler's leader alone, by compare-and-swap.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProtectionRuleStatus {
    /// `Accepted`: the rule is in force. `Stamped`: every default policy that is asked for exists. `OrphansPaused`: so many
    /// policies are gone that none of their Backups is deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Namespaces that the rule selects.
    #[serde(default)]
    pub namespaces: u32,
    /// Policies in these namespaces.
    #[serde(default)]
    pub policies: u32,
    /// Policies that are refused because of this rule.
    #[serde(default)]
    pub violations: u32,
    /// The first of them in the order of their names, as `namespace/name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 317)))]
    pub violating: Vec<String>,
    /// Policies that this rule stamped.
    #[serde(default)]
    pub stamped: u32,
    /// Backups of policies that are gone, of a rule with `orphans`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orphans: Option<OrphansStatus>,
}

/// Backups of policies that are gone, in the namespaces that a rule selects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrphansStatus {
    /// All of them.
    #[serde(default)]
    pub backups: u32,
    /// Those that will be deleted with their data unless something changes.
    #[serde(default)]
    pub expiring: u32,
    /// When the first of these goes, at the earliest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_deletion: Option<Time>,
}

impl DefaultPolicy {
    /// The policy that is stamped for `applications`, in the name of `rule`.
    pub fn policy(&self, rule: Option<&str>, applications: Vec<Application>) -> BackupPolicySpec {
        let Self { schedule, objectives, freeze, run, consistency, min_continuity, snapshot, retention } =
            self;
        BackupPolicySpec {
            schedule: schedule.clone(),
            suspend: false,
            objectives: *objectives,
            applications,
            freeze: *freeze,
            run: *run,
            consistency: *consistency,
            min_continuity: *min_continuity,
            snapshot: snapshot.clone(),
            retention: *retention,
            verification: None,
            rule_ref: rule.map(|name| NameRef { name: name.to_owned() }),
        }
    }
}

impl ProtectionRule {
    /// Whether the rule selects a namespace with these labels. A selector that cannot be read selects nothing; such a rule
    /// is not accepted.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        Selector::try_from(self.spec.namespace_selector.clone())
            .is_ok_and(|selector| selector.matches(labels))
    }

    /// Whether somebody agreed to what this generation of the rule deletes ([`DELETIONS_AGREED_ANNOTATION`]).
    pub fn deletions_agreed(&self) -> bool {
        let agreed = self.annotations().get(DELETIONS_AGREED_ANNOTATION);
        let agreed = agreed.and_then(|generation| generation.parse::<i64>().ok());
        agreed.is_some() && agreed == self.metadata.generation
    }

    /// Whether the rule is in force: nothing is wrong with it, and the scheduler, which also reads its schedules, has not
    /// refused this generation.
    pub fn in_force(&self) -> bool {
        let status = self.status.as_ref();
        let refused = status.is_some_and(|status| {
            status.observed_generation == self.metadata.generation
                && status.conditions.iter().any(|known| known.type_ == ACCEPTED && known.status == "False")
        });
        !refused && self.metadata.deletion_timestamp.is_none() && crate::validate::rule(self).is_empty()
    }

    /// The rules that hold for a namespace with these labels, in the order of their names.
    pub fn holding<'a>(
        rules: impl IntoIterator<Item = &'a Self>,
        labels: &BTreeMap<String, String>,
    ) -> Vec<&'a Self> {
        let mut holding: Vec<&Self> =
            rules.into_iter().filter(|rule| rule.in_force() && rule.selects(labels)).collect();
        holding.sort_by_key(|rule| rule.name_any());
        holding
    }
}
