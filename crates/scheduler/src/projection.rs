//! What the scheduler remembers of the objects it watches: no whole object, only what decisions read.
//!
//! A policy costs its key, its UID, its next start and a heap entry; parsed schedules are shared between policies that write the
//! same one. A Backup costs less than a hundred bytes ([`packed`](crate::packed)) and is a [`BackupView`] while somebody looks.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use kube::ResourceExt as _;
use stillpoint_api::backup::{Backup, BackupStatus, ORPHANED_SINCE_ANNOTATION, Phase, SUCCEEDED, Trigger};
use stillpoint_api::evidence::Consistency;
use stillpoint_api::policy::BackupPolicy;

use crate::dispatch::Plan;
use crate::packed::{Names, Packed, Uid};
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
    /// Since when it is noted that its policy is gone. What cannot be read is no note.
    pub orphaned: Option<Timestamp>,
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
    policies: HashMap<PolicyKey, Known>,
    backups: HashMap<PolicyKey, Packed>,
    /// One of each list of applications.
    names: Names<[String]>,
    /// One of each namespace.
    namespaces: Names<str>,
    /// Namespace and name of every Backup in its freeze, with or without a policy.
    freezing: HashSet<(Arc<str>, String)>,
    /// Runs that were seen to fail and are not in the policy's status yet.
    fresh_failures: HashMap<PolicyKey, u32>,
}

/// What is known of a policy.
#[derive(Clone, Debug)]
struct Known {
    mark: PolicyMark,
    /// Its next start, as it was decided.
    plan: Option<Plan>,
    /// The list that is under way showed it.
    seen: bool,
}

/// What tells that a policy was changed by somebody else than us.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PolicyMark {
    uid: Option<Uid>,
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
            orphaned: backup
                .annotations()
                .get(ORPHANED_SINCE_ANNOTATION)
                .and_then(|since| since.parse::<Timestamp>().ok()),
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
        let uid = policy.metadata.uid.as_deref().map(Uid::of);
        let mark = PolicyMark { uid, generation, agreed: policy.deletions_agreed() };
        let key = self.own_key(&PolicyKey::of(policy));
        match self.policies.get_mut(&key) {
            Some(known) if known.mark == mark => {
                known.seen = true;
                false
            }
            Some(_) | None => {
                self.policies.insert(key, Known { mark, plan: None, seen: true });
                true
            }
        }
    }

    /// The key equal to `key` that is kept: what holds it holds no names of its own.
    pub fn own_key(&mut self, key: &PolicyKey) -> PolicyKey {
        if let Some((own, _)) = self.policies.get_key_value(key) {
            return own.clone();
        }
        if let Some((own, _)) = self.backups.get_key_value(key) {
            return own.clone();
        }
        PolicyKey { namespace: self.namespaces.intern(&key.namespace), name: key.name.clone() }
    }

    /// Notes the next start of a policy, as it was decided.
    pub(crate) fn plan(&mut self, key: &PolicyKey, plan: Option<Plan>) {
        if let Some(known) = self.policies.get_mut(key) {
            known.plan = plan;
        }
    }

    /// The start that was planned for a policy, with its UID: none while a run of it is not finished.
    pub(crate) fn planned(&self, key: &PolicyKey) -> Option<(Plan, String)> {
        let known = self.policies.get(key)?;
        if self.backups.get(key).is_some_and(Packed::runs) {
            return None;
        }
        Some((known.plan?, known.mark.uid.as_ref()?.text()))
    }

    /// Forgets a policy.
    pub fn policy_gone(&mut self, key: &PolicyKey) {
        self.policies.remove(key);
        self.fresh_failures.remove(key);
    }

    /// A list of policies begins.
    pub fn policies_listing(&mut self) {
        self.policies.values_mut().for_each(|known| known.seen = false);
    }

    /// The list has ended: what it did not show is gone. Their keys.
    pub fn policies_listed(&mut self) -> Vec<PolicyKey> {
        let unseen = self.policies.iter().filter(|(_, known)| !known.seen);
        let gone: Vec<PolicyKey> = unseen.map(|(key, _)| key.clone()).collect();
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
        let view = BackupView::of(backup);
        let namespace: Arc<str> = backup.metadata.namespace.as_deref().unwrap_or_default().into();
        // A run without a policy freezes as well.
        let place = (namespace, view.name.clone());
        if view.freezing {
            self.freezing.insert(place)
        } else {
            self.freezing.remove(&place)
        };
        let key = self.own_key(&Self::key_of(backup));
        let before = self.backups.entry(key.clone()).or_default().insert(view.clone(), &mut self.names);
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

    /// Every policy that Backups are of, whether it exists or not.
    pub fn policies_of_backups(&self) -> impl Iterator<Item = &PolicyKey> {
        self.backups.keys().filter(|key| !key.name.is_empty())
    }

    /// Whether it is noted on a Backup of the policy that the policy is gone.
    pub fn noted_as_orphan(&self, key: &PolicyKey) -> bool {
        self.backups.get(key).is_some_and(Packed::orphaned)
    }

    /// One Backup.
    pub fn backup(&self, key: &PolicyKey, name: &str) -> Option<BackupView> {
        self.backups.get(key)?.get(name)
    }

    /// Every Backup.
    pub fn every_backup(&self) -> impl Iterator<Item = (&PolicyKey, BackupView)> {
        self.backups.iter().flat_map(|(key, known)| known.views().map(move |view| (key, view)))
    }

    /// The Backup of this UID. `policy` is where it most likely is: labels are short, names may be longer.
    pub fn find(&self, namespace: &str, policy: &str, uid: &str) -> Option<(PolicyKey, String)> {
        let of = |key: &PolicyKey, known: &Packed| {
            known.views().find(|view| view.uid == uid).map(|view| (key.clone(), view.name))
        };
        let likely = PolicyKey::new(namespace, policy);
        let found = self.backups.get_key_value(&likely).and_then(|(key, known)| of(key, known));
        let elsewhere = || self.backups.iter().filter(|(key, _)| &*key.namespace == namespace);
        found.or_else(|| elsewhere().find_map(|(key, known)| of(key, known)))
    }

    /// A list of Backups begins.
    pub fn backups_listing(&mut self) {
        self.backups.values_mut().for_each(Packed::forget_seen);
    }

    /// The list has ended: what it did not show is gone. The policies of those.
    pub fn backups_listed(&mut self) -> Vec<PolicyKey> {
        let mut touched = Vec::new();
        self.backups.retain(|key, known| {
            if known.keep_seen() {
                touched.push(key.clone());
            }
            !known.is_empty()
        });
        let freezing = self.every_backup().filter(|(_, view)| view.freezing);
        self.freezing = freezing.map(|(key, view)| (key.namespace.clone(), view.name)).collect();
        touched
    }

    /// The Backups of a policy, by name.
    pub fn backups(&self, key: &PolicyKey) -> Vec<BackupView> {
        let mut views: Vec<BackupView> =
            self.backups.get(key).map(|known| known.views().collect()).unwrap_or_default();
        views.sort_by(|one, other| one.name.cmp(&other.name));
        views
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
