//! What is known about policies and their recovery points, as a compact projection of the watched objects.
//!
//! Guarantees: nothing is remembered that the objects do not say; a recovery point deleted by anybody moves the
//! reference back at once; a policy of the same name adopts the points of its predecessor (docs/api.md).
//! A Backup costs about a hundred bytes here whatever evidence it carries.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use jiff::Timestamp;
use kube::ResourceExt as _;
use stillpoint_api::backup::{BackupStatus, JournalKind, LEFT_QUIESCED, Phase};
use stillpoint_api::evidence::Consistency;
use stillpoint_api::template::DataTime;
use stillpoint_api::{Backup, BackupPolicy};

use crate::collector::PER_PAGE;
use crate::registry::Metrics;

/// What a scrape asks.
pub trait Facts: Send + Sync {
    /// Shows policies sorted by namespace and name, from the one after `after` on, at most
    /// [`PER_PAGE`](crate::collector::PER_PAGE). The last one of them, when there may be more.
    fn page(&self, after: Option<&Key>, visit: &mut dyn FnMut(&PolicyFacts<'_>)) -> Option<Key>;
}

/// Facts about one policy at one moment.
#[derive(Debug)]
pub struct PolicyFacts<'a> {
    /// Namespace of the policy and its applications.
    pub namespace: &'a str,
    /// Its name.
    pub policy: &'a str,
    /// What its object says.
    pub spec: &'a PolicyProjection,
    /// What its Backups say.
    pub points: PointFacts,
}

/// What a policy's object says.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyProjection {
    /// When it was created: the start of protection.
    pub created: Timestamp,
    /// The expression.
    pub schedule: String,
    /// The zone.
    pub time_zone: String,
    /// `Forbid`, `Queue` or `Replace`.
    pub concurrency: &'static str,
    /// `Latest` or `None`.
    pub catch_up: &'static str,
    /// It starts nothing.
    pub suspended: bool,
    /// Objective, seconds.
    pub rpo_seconds: Option<f64>,
    /// Next slot.
    pub next_slot: Option<Timestamp>,
    /// Newest slot that was decided upon.
    pub last_slot: Option<Timestamp>,
    /// Longest interval between slots, seconds.
    pub max_interval_seconds: Option<i64>,
    /// Shortest interval between slots, seconds.
    pub min_interval_seconds: Option<i64>,
    /// Finished runs since the last success that were none.
    pub consecutive_failures: u32,
    /// Slots that did not run, by reason.
    pub missed: BTreeMap<String, u64>,
    /// Conditions: type and status.
    pub conditions: Vec<(String, String)>,
}

/// What the Backups of a policy say together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PointFacts {
    /// Cut of the newest proven point.
    pub newest: Option<Timestamp>,
    /// Cut of the oldest proven point.
    pub oldest: Option<Timestamp>,
    /// Counts by state, in the order of [`PointState::ALL`].
    pub counts: [u32; 7],
    /// Since when an application is, or must be taken to be, frozen.
    pub frozen_since: Option<Timestamp>,
    /// Runs with an application that may still be frozen and is not getting better by itself.
    pub left_quiesced: u32,
    /// Start of the run that is not finished.
    pub active_since: Option<Timestamp>,
    /// Length of the newest freeze window, seconds.
    pub last_freeze_seconds: Option<f64>,
}

/// States of recovery points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointState {
    /// Proven and usable.
    Ready,
    /// Not finished.
    Pending,
    /// The run failed.
    Failed,
    /// Kept without proof of application consistency.
    Inconsistent,
    /// Its snapshots are being deleted.
    Deleting,
    /// Somebody else deleted a snapshot of it.
    SnapshotDeleted,
    /// Under a legal hold: counted besides, whatever else it is.
    Held,
}

impl PointState {
    /// All of them, in the order of [`PointFacts::counts`].
    pub const ALL: [Self; 7] = [
        Self::Ready,
        Self::Pending,
        Self::Failed,
        Self::Inconsistent,
        Self::Deleting,
        Self::SnapshotDeleted,
        Self::Held,
    ];

    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Pending => "pending",
            Self::Failed => "failed",
            Self::Inconsistent => "inconsistent",
            Self::Deleting => "deleting",
            Self::SnapshotDeleted => "snapshot_deleted",
            Self::Held => "held",
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Ready => 0,
            Self::Pending => 1,
            Self::Failed => 2,
            Self::Inconsistent => 3,
            Self::Deleting => 4,
            Self::SnapshotDeleted => 5,
            Self::Held => 6,
        }
    }
}

/// What one Backup says.
#[derive(Clone, Copy, Debug, PartialEq)]
struct BackupProjection {
    /// What it is; never `Held`, which it may be besides.
    state: PointState,
    held: bool,
    point: Option<Timestamp>,
    started: Option<Timestamp>,
    frozen_since: Option<Timestamp>,
    left_quiesced: bool,
    freeze: Option<(Timestamp, f64)>,
}

/// Namespace and name.
pub type Key = (String, String);

#[derive(Debug, Default)]
struct Entry {
    policy: Option<PolicyProjection>,
    backups: BTreeMap<String, BackupProjection>,
}

#[derive(Debug, Default)]
struct Objects {
    entries: BTreeMap<Key, Entry>,
    /// Names seen since a listing began; `None`: no listing is under way.
    listing_policies: Option<BTreeSet<Key>>,
    listing_backups: Option<BTreeSet<(Key, String)>>,
}

/// The projection, fed by the watches and read by scrapes.
///
/// Runs without a policy are kept under the policy name `""`: they have event series while a Backup of them exists.
#[derive(Debug)]
pub struct FactsStore {
    metrics: Arc<Metrics>,
    objects: RwLock<Objects>,
}

impl FactsStore {
    /// An empty store that keeps the series of `metrics` in step with the policies.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, objects: RwLock::default() }
    }

    /// A policy was created or changed.
    pub fn policy_applied(&self, policy: &BackupPolicy) {
        let key = (policy.namespace().unwrap_or_default(), policy.name_any());
        let names: Vec<&str> = policy.spec.applications.iter().map(|app| app.name.as_str()).collect();
        let mut objects = self.write();
        // Series of a policy that is not accepted are true as well: a run on demand would count in them.
        self.metrics.policy_accepted(&key.0, &key.1, &names);
        if let Some(seen) = &mut objects.listing_policies {
            seen.insert(key.clone());
        }
        objects.entries.entry(key).or_default().policy = Some(project_policy(policy));
    }

    /// A policy was deleted.
    pub fn policy_deleted(&self, policy: &BackupPolicy) {
        let key = (policy.namespace().unwrap_or_default(), policy.name_any());
        self.forget_policy(&mut self.write(), &key);
    }

    /// A list of all policies begins.
    pub fn policies_listing(&self) {
        self.write().listing_policies = Some(BTreeSet::new());
    }

    /// All policies of the list were reported: those that were not are gone.
    pub fn policies_listed(&self) {
        let mut objects = self.write();
        let Some(seen) = objects.listing_policies.take() else { return };
        let gone: Vec<Key> = objects
            .entries
            .iter()
            .filter(|(key, entry)| entry.policy.is_some() && !seen.contains(*key))
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            self.forget_policy(&mut objects, &key);
        }
        let mut existing = seen;
        existing.extend(objects.entries.keys().filter(|key| key.1.is_empty()).cloned());
        self.metrics.policies_listed(&existing);
    }

    /// A Backup was created or changed.
    pub fn backup_applied(&self, backup: &Backup) {
        let key = backup_key(backup);
        let name = backup.name_any();
        if key.1.is_empty() {
            let applications = backup.spec.run.applications.iter().flatten();
            let names: Vec<&str> = applications.map(|app| app.name.as_str()).collect();
            self.metrics.policy_accepted(&key.0, "", &names);
        }
        let mut objects = self.write();
        if let Some(seen) = &mut objects.listing_backups {
            seen.insert((key.clone(), name.clone()));
        }
        objects.entries.entry(key).or_default().backups.insert(name, project_backup(backup));
    }

    /// A Backup was deleted.
    pub fn backup_deleted(&self, backup: &Backup) {
        self.forget_backup(&mut self.write(), &backup_key(backup), &backup.name_any());
    }

    /// A list of all Backups begins.
    pub fn backups_listing(&self) {
        self.write().listing_backups = Some(BTreeSet::new());
    }

    /// All Backups of the list were reported: those that were not are gone.
    pub fn backups_listed(&self) {
        let mut objects = self.write();
        let Some(seen) = objects.listing_backups.take() else { return };
        let known = objects.entries.iter().flat_map(|(key, entry)| {
            entry.backups.keys().map(|name| (key.clone(), name.clone())).collect::<Vec<_>>()
        });
        let gone: Vec<(Key, String)> = known.filter(|backup| !seen.contains(backup)).collect();
        for (key, name) in gone {
            self.forget_backup(&mut objects, &key, &name);
        }
    }

    fn forget_policy(&self, objects: &mut Objects, key: &Key) {
        self.metrics.policy_removed(&key.0, &key.1);
        if let Some(entry) = objects.entries.get_mut(key) {
            entry.policy = None;
            if entry.backups.is_empty() {
                objects.entries.remove(key);
            }
        }
    }

    fn forget_backup(&self, objects: &mut Objects, key: &Key, name: &str) {
        let Some(entry) = objects.entries.get_mut(key) else { return };
        entry.backups.remove(name);
        if entry.backups.is_empty() && entry.policy.is_none() {
            objects.entries.remove(key);
            if key.1.is_empty() {
                self.metrics.policy_removed(&key.0, "");
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Objects> {
        // A panic elsewhere cannot leave half a projection: each is inserted whole.
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Objects> {
        self.objects.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Facts for FactsStore {
    fn page(&self, after: Option<&Key>, visit: &mut dyn FnMut(&PolicyFacts<'_>)) -> Option<Key> {
        let objects = self.read();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut last: Option<&Key> = None;
        for (count, (key, entry)) in objects.entries.range::<Key, _>((from, Bound::Unbounded)).enumerate() {
            if count == PER_PAGE {
                return last.cloned();
            }
            last = Some(key);
            let (namespace, policy) = key;
            if let Some(spec) = &entry.policy {
                visit(&PolicyFacts { namespace, policy, spec, points: summarise(entry.backups.values()) });
            }
        }
        None
    }
}

fn summarise<'a>(backups: impl Iterator<Item = &'a BackupProjection>) -> PointFacts {
    let mut facts = PointFacts::default();
    let mut newest_freeze = None;
    for backup in backups {
        facts.counts[backup.state.index()] += 1;
        facts.counts[PointState::Held.index()] += u32::from(backup.held);
        match backup.state {
            PointState::Ready => {
                facts.newest = facts.newest.max(backup.point);
                facts.oldest = [facts.oldest, backup.point].into_iter().flatten().min();
            }
            PointState::Pending => {
                facts.active_since = [facts.active_since, backup.started].into_iter().flatten().min();
            }
            PointState::Failed
            | PointState::Inconsistent
            | PointState::Deleting
            | PointState::SnapshotDeleted
            | PointState::Held => {}
        }
        // Of several, the one that is frozen longest.
        facts.frozen_since = [facts.frozen_since, backup.frozen_since].into_iter().flatten().min();
        facts.left_quiesced += u32::from(backup.left_quiesced);
        if let Some((at, seconds)) = backup.freeze
            && newest_freeze.is_none_or(|newest| at > newest)
        {
            newest_freeze = Some(at);
            facts.last_freeze_seconds = Some(seconds);
        }
    }
    facts
}

fn backup_key(backup: &Backup) -> Key {
    (backup.namespace().unwrap_or_default(), backup.policy_name().unwrap_or_default().to_owned())
}

fn project_policy(policy: &BackupPolicy) -> PolicyProjection {
    use stillpoint_api::policy::{CatchUp, Concurrency};
    let schedule = &policy.spec.schedule;
    let status = policy.status.clone().unwrap_or_default();
    PolicyProjection {
        created: policy.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        schedule: schedule.cron.clone(),
        time_zone: schedule.time_zone.clone().unwrap_or_else(|| "Etc/UTC".to_owned()),
        concurrency: match schedule.concurrency {
            Concurrency::Forbid => "Forbid",
            Concurrency::Queue => "Queue",
            Concurrency::Replace => "Replace",
        },
        catch_up: match schedule.catch_up {
            CatchUp::Latest => "Latest",
            CatchUp::None => "None",
        },
        suspended: policy.spec.suspend,
        rpo_seconds: policy.spec.objectives.and_then(|set| set.rpo).map(|rpo| rpo.get().as_secs_f64()),
        next_slot: status.next_slots.first().and_then(|slot| slot.parse().ok()),
        last_slot: status.last_slot.map(|time| time.0),
        max_interval_seconds: status.max_interval_seconds,
        min_interval_seconds: status.min_interval_seconds,
        consecutive_failures: status.consecutive_failures,
        missed: status.missed,
        conditions: status.conditions.into_iter().map(|found| (found.type_, found.status)).collect(),
    }
}

fn project_backup(backup: &Backup) -> BackupProjection {
    let empty = BackupStatus::default();
    let status = backup.status.as_ref().unwrap_or(&empty);
    let state = match status.phase {
        Phase::Deleting => PointState::Deleting,
        Phase::Pending | Phase::Preparing | Phase::Freezing | Phase::Settling
            if backup.metadata.deletion_timestamp.is_none() =>
        {
            PointState::Pending
        }
        Phase::Failed if backup.metadata.deletion_timestamp.is_none() => PointState::Failed,
        Phase::Succeeded if backup.metadata.deletion_timestamp.is_none() && status.snapshot_deleted() => {
            PointState::SnapshotDeleted
        }
        Phase::Succeeded if backup.metadata.deletion_timestamp.is_none() => match status.consistency {
            Some(Consistency::Application) => PointState::Ready,
            Some(Consistency::Crash | Consistency::None) | None => PointState::Inconsistent,
        },
        Phase::Pending
        | Phase::Preparing
        | Phase::Freezing
        | Phase::Settling
        | Phase::Succeeded
        | Phase::Failed => PointState::Deleting,
    };
    let window = status.window.as_ref();
    BackupProjection {
        state,
        held: backup.spec.hold.is_some() && state != PointState::Deleting,
        point: point_time(status),
        started: status.started_at.as_ref().map(|time| time.0).or(backup
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0)),
        frozen_since: frozen_since(status),
        left_quiesced: stillpoint_api::conditions::is_true(&status.conditions, LEFT_QUIESCED),
        freeze: window.and_then(|window| Some((window.started_at.as_ref()?.0, window.frozen_seconds?))),
    }
}

/// The instant a point stands for: its earliest cut, or the end of prepare where the server acknowledges before it
/// is durable (docs/design/freeze.md §4 rule 9).
fn point_time(status: &BackupStatus) -> Option<Timestamp> {
    let applications = status.resolved.iter().flat_map(|resolved| &resolved.applications);
    let prepared = applications.filter_map(|application| match application.data_time {
        DataTime::Prepare => application.prepared_at.as_ref().map(|time| time.0),
        DataTime::Cut => None,
    });
    let cut = status.cut.as_ref()?.0;
    Some(prepared.fold(cut, Timestamp::min))
}

/// From the journal: after `Freezing` an application must be taken to be frozen until the journal says otherwise
/// (docs/design/freeze.md §5).
fn frozen_since(status: &BackupStatus) -> Option<Timestamp> {
    match (status.phase, status.journal.last()) {
        (Phase::Freezing, Some(entry)) if entry.entry == JournalKind::Freezing => Some(entry.at.0),
        (
            Phase::Pending
            | Phase::Preparing
            | Phase::Freezing
            | Phase::Settling
            | Phase::Succeeded
            | Phase::Failed
            | Phase::Deleting,
            _,
        ) => None,
    }
}
