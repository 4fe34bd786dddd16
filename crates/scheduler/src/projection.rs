//! What the scheduler remembers of the objects it watches: no whole object, only what decisions read.
//!
//! A policy costs its key, its UID and a heap entry; parsed schedules are shared between policies that write the
//! same one. A Backup costs one [`BackupView`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use kube::ResourceExt as _;
use stillpoint_api::backup::{Backup, BackupStatus, Phase, SUCCEEDED, Trigger};
use stillpoint_api::evidence::Consistency;
use stillpoint_api::policy::BackupPolicy;

use crate::retention::Standing;

/// Longest failure message that is remembered and copied to the policy.
const MAX_MESSAGE: usize = 512;

/// Namespace and name of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyKey {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// A Backup as the scheduler sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupView {
    /// Its name.
    pub name: String,
    /// Its UID: a delete names it, so that a successor of the same name is safe.
    pub uid: String,
    /// UID of the policy that the scheduler created it for.
    pub policy_uid: Option<String>,
    /// The slot, when the scheduler created it.
    pub slot: Option<Timestamp>,
    /// When it was created.
    pub created: Timestamp,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// Where it stands, for retention and the RPO.
    pub standing: Standing,
    /// Frozen or about to be: nothing is deleted meanwhile.
    pub freezing: bool,
    /// On its way out.
    pub deleting: bool,
    /// Told to end.
    pub cancelled: bool,
    /// Under a legal hold.
    pub held: bool,
    /// When its data was cut.
    pub cut: Option<Timestamp>,
    /// The applications whose data it has; shared between the Backups of a policy that have the same.
    pub applications: Arc<[String]>,
    /// Why it is no proven point.
    pub failure: Option<Failure>,
    /// VolumeSnapshots that exist unless somebody deleted them; 0 for what is no point.
    pub snapshots: u16,
}

/// Why a run produced no proven point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The bounded word.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// What is known of the watched objects.
#[derive(Debug, Default)]
pub struct Projection {
    policies: HashMap<PolicyKey, PolicyMark>,
    backups: HashMap<PolicyKey, BTreeMap<String, BackupView>>,
    /// Namespace and name of every Backup in its freeze, with or without a policy.
    freezing: HashSet<(Arc<str>, String)>,
    /// Runs that were seen to fail and are not in the policy's status yet.
    fresh_failures: HashMap<PolicyKey, u32>,
}

/// What tells that a policy was changed by somebody else than us.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PolicyMark {
    uid: Option<String>,
    generation: Option<i64>,
    /// The generation whose deletions somebody agreed to.
    agreed: Option<i64>,
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl PolicyKey {
    /// The key of `name` in `namespace`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of a policy object.
    pub fn of(policy: &BackupPolicy) -> Self {
        Self::new(policy.metadata.namespace.as_deref().unwrap_or_default(), &policy.name_any())
    }

    /// The key of the policy that a Backup belongs to, if it belongs to one.
    pub fn of_backup(backup: &Backup) -> Option<Self> {
        let namespace = backup.metadata.namespace.as_deref().unwrap_or_default();
        backup.policy_name().map(|name| Self::new(namespace, name))
    }
}

impl BackupView {
    /// The view of a Backup object.
    pub fn of(backup: &Backup) -> Self {
        let status = backup.status.as_ref();
        let phase = status.map_or(Phase::Pending, |status| status.phase);
        let deleting = backup.metadata.deletion_timestamp.is_some();
        let application = status.and_then(|status| status.consistency) == Some(Consistency::Application);
        let standing = match phase {
            Phase::Pending | Phase::Preparing | Phase::Freezing | Phase::Settling => Standing::Unfinished,
            Phase::Succeeded if status.is_some_and(BackupStatus::snapshot_deleted) => Standing::Lost,
            Phase::Succeeded if backup.proven() => Standing::Proven,
            Phase::Succeeded => Standing::Unproven,
            // Its past is not its failure.
            Phase::Deleting if application => Standing::Proven,
            Phase::Failed | Phase::Deleting => Standing::Failed,
        };
        Self {
            name: backup.name_any(),
            uid: backup.uid().unwrap_or_default(),
            policy_uid: backup.spec.run.policy_ref.as_ref().and_then(|policy| policy.uid.clone()),
            slot: match backup.spec.trigger {
                Trigger::Manual => None,
                Trigger::Schedule | Trigger::CatchUp | Trigger::Initial => {
                    backup.spec.run.slot.as_ref().map(|slot| slot.0)
                }
            },
            created: backup.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            finished: status.and_then(|status| status.finished_at.as_ref()).map(|time| time.0),
            standing,
            freezing: phase == Phase::Freezing,
            deleting: deleting || phase == Phase::Deleting,
            cancelled: backup.spec.cancel,
            held: backup.spec.hold.is_some(),
            cut: status.and_then(|status| status.cut.as_ref()).map(|time| time.0),
            applications: status
                .and_then(|status| status.resolved.as_ref())
                .map(|resolved| resolved.applications.iter().map(|known| known.name.clone()).collect())
                .unwrap_or_default(),
            failure: Failure::of(backup, standing, application),
            snapshots: match (phase, status) {
                (Phase::Succeeded, Some(status)) => {
                    u16::try_from(status.kept_members().count()).unwrap_or(u16::MAX)
                }
                _ => 0,
            },
        }
    }

    /// When it ended, or what comes closest.
    pub fn ended(&self) -> Timestamp {
        self.finished.unwrap_or(self.created)
    }

    /// Whether a snapshot of it that is missing is news: a point that stays, and was not seen to lack one before.
    pub fn may_lose_snapshots(&self) -> bool {
        match self.standing {
            Standing::Proven | Standing::Unproven => !self.deleting && self.snapshots > 0,
            Standing::Unfinished | Standing::Lost | Standing::Failed => false,
        }
    }

    /// Whether it is a proven point that will stay.
    pub fn is_point(&self) -> bool {
        self.standing == Standing::Proven && !self.deleting
    }
}

impl Failure {
    fn of(backup: &Backup, standing: Standing, application: bool) -> Option<Self> {
        let fallback = match standing {
            Standing::Unfinished | Standing::Proven => return None,
            // The run did what it should: what became of its snapshots later is not its failure.
            Standing::Lost if application => return None,
            Standing::Lost => "NotProven",
            Standing::Unproven => "NotProven",
            Standing::Failed => "Failed",
        };
        let conditions =
            backup.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let condition =
            conditions.iter().find(|condition| condition.type_ == SUCCEEDED && condition.status != "True");
        Some(Self {
            reason: condition.map_or(fallback, |condition| condition.reason.as_str()).to_owned(),
            message: condition
                .map_or("the backup is not proven application-consistent", |condition| &condition.message)
                .chars()
                .take(MAX_MESSAGE)
                .collect(),
        })
    }
}

impl Projection {
    /// Notes a policy. `true` when somebody changed its spec, agreed to its deletions, or it is new.
    pub fn policy_applied(&mut self, policy: &BackupPolicy) -> bool {
        let generation = policy.metadata.generation;
        let mark = PolicyMark { uid: policy.uid(), generation, agreed: policy.deletions_agreed() };
        self.policies.insert(PolicyKey::of(policy), mark.clone()) != Some(mark)
    }

    /// Forgets a policy.
    pub fn policy_gone(&mut self, key: &PolicyKey) {
        self.policies.remove(key);
        self.fresh_failures.remove(key);
    }

    /// Keeps only the policies of `listed`; returns the keys of the others.
    pub fn keep_policies(&mut self, listed: &HashSet<PolicyKey>) -> Vec<PolicyKey> {
        let gone: Vec<PolicyKey> =
            self.policies.keys().filter(|key| !listed.contains(key)).cloned().collect();
        gone.iter().for_each(|key| self.policy_gone(key));
        gone
    }

    /// Every policy.
    pub fn policies(&self) -> impl Iterator<Item = &PolicyKey> {
        self.policies.keys()
    }

    /// Whether the policy exists.
    pub fn has_policy(&self, key: &PolicyKey) -> bool {
        self.policies.contains_key(key)
    }

    /// Notes a Backup. Its policy when a decision may depend on what changed.
    pub fn backup_applied(&mut self, backup: &Backup) -> Option<PolicyKey> {
        let mut view = BackupView::of(backup);
        let namespace: Arc<str> = backup.metadata.namespace.as_deref().unwrap_or_default().into();
        // A run without a policy freezes as well.
        let place = (namespace, view.name.clone());
        if view.freezing {
            self.freezing.insert(place)
        } else {
            self.freezing.remove(&place)
        };
        let key = Self::key_of(backup);
        let known = self.backups.entry(key.clone()).or_default();
        if let Some(same) = known.values().find(|known| known.applications == view.applications) {
            view.applications = same.applications.clone();
        }
        let before = known.insert(view.name.clone(), view.clone());
        let was_running = before.as_ref().is_some_and(|before| before.standing == Standing::Unfinished);
        if was_running && view.failure.is_some() && !key.name.is_empty() {
            *self.fresh_failures.entry(key.clone()).or_default() += 1;
        }
        (before.as_ref() != Some(&view)).then_some(key)
    }

    /// Forgets a Backup. Its policy.
    pub fn backup_gone(&mut self, backup: &Backup) -> Option<PolicyKey> {
        let namespace: Arc<str> = backup.metadata.namespace.as_deref().unwrap_or_default().into();
        let name = backup.name_any();
        self.freezing.remove(&(namespace, name.clone()));
        let key = Self::key_of(backup);
        self.forget(&key, &name);
        Some(key)
    }

    /// Where a Backup is kept: with its policy; one without a policy under the name `""`, which no policy has.
    pub fn key_of(backup: &Backup) -> PolicyKey {
        PolicyKey::of_backup(backup)
            .unwrap_or_else(|| PolicyKey::new(backup.metadata.namespace.as_deref().unwrap_or_default(), ""))
    }

    /// One Backup.
    pub fn backup(&self, key: &PolicyKey, name: &str) -> Option<&BackupView> {
        self.backups.get(key)?.get(name)
    }

    /// Every Backup.
    pub fn every_backup(&self) -> impl Iterator<Item = (&PolicyKey, &BackupView)> {
        self.backups.iter().flat_map(|(key, known)| known.values().map(move |view| (key, view)))
    }

    /// The Backup of this UID. `policy` is where it most likely is: labels are short, names may be longer.
    pub fn find(&self, namespace: &str, policy: &str, uid: &str) -> Option<(PolicyKey, String)> {
        let of = |key: &PolicyKey, known: &BTreeMap<String, BackupView>| {
            known.values().find(|view| view.uid == uid).map(|view| (key.clone(), view.name.clone()))
        };
        let likely = PolicyKey::new(namespace, policy);
        let found = self.backups.get(&likely).and_then(|known| of(&likely, known));
        let elsewhere = || self.backups.iter().filter(|(key, _)| &*key.namespace == namespace);
        found.or_else(|| elsewhere().find_map(|(key, known)| of(key, known)))
    }

    /// Keeps only the Backups of `listed`; returns the policies of the others.
    pub fn keep_backups(&mut self, listed: &HashSet<(Arc<str>, String)>) -> Vec<PolicyKey> {
        self.freezing.retain(|place| listed.contains(place));
        let mut touched = Vec::new();
        self.backups.retain(|key, known| {
            let before = known.len();
            known.retain(|name, _| listed.contains(&(key.namespace.clone(), name.clone())));
            if known.len() != before {
                touched.push(key.clone());
            }
            !known.is_empty()
        });
        touched
    }

    /// The Backups of a policy.
    pub fn backups(&self, key: &PolicyKey) -> Vec<BackupView> {
        self.backups.get(key).map(|known| known.values().cloned().collect()).unwrap_or_default()
    }

    /// Whether any Backup of the cluster is in its freeze.
    pub fn anything_frozen(&self) -> bool {
        !self.freezing.is_empty()
    }

    /// Namespace and name of every Backup that is in its freeze, sorted.
    pub fn frozen(&self) -> Vec<(Arc<str>, String)> {
        let mut frozen: Vec<_> = self.freezing.iter().cloned().collect();
        frozen.sort();
        frozen
    }

    /// Forgets which failures are not in the statuses yet: another leader noted them.
    pub fn forget_fresh_failures(&mut self) {
        self.fresh_failures.clear();
    }

    /// Failures that were seen and are not in the policy's status yet.
    pub fn fresh_failures(&self, key: &PolicyKey) -> u32 {
        self.fresh_failures.get(key).copied().unwrap_or(0)
    }

    /// `count` failures are in the policy's status now.
    pub fn failures_noted(&mut self, key: &PolicyKey, count: u32) {
        if let Some(fresh) = self.fresh_failures.get_mut(key) {
            *fresh = fresh.saturating_sub(count);
            if *fresh == 0 {
                self.fresh_failures.remove(key);
            }
        }
    }

    fn forget(&mut self, key: &PolicyKey, name: &str) {
        if let Some(known) = self.backups.get_mut(key) {
            known.remove(name);
            if known.is_empty() {
                self.backups.remove(key);
            }
        }
    }
}
