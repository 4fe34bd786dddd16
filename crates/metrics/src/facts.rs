//! What is known about policies, their recovery points and the claims of their namespaces, as a compact projection of the
//! watched objects.
//!
//! Guarantees: nothing is remembered that the objects do not say; a recovery point deleted by anybody moves the
//! reference back at once; a policy of the same name adopts the points of its predecessor (docs/api.md).
//! A Backup costs about fifty bytes here whatever evidence it carries.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use stillpoint_api::backup::{
    BackupStatus, JournalKind, LEFT_QUIESCED, NEEDS_NO_BACKUP_ANNOTATION, PACED, Phase,
};
use stillpoint_api::evidence::Consistency;
use stillpoint_api::policy::Blackout;
use stillpoint_api::template::DataTime;
use stillpoint_api::{Backup, BackupPolicy};

use crate::collector::PER_PAGE;
use crate::points::{BackupProjection, Ids, Points, Shared};
use crate::registry::Metrics;

/// Annotation that the binder sets on a claim it has bound.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";

/// What a scrape asks.
pub trait Facts: Send + Sync {
    /// Shows policies, and runs without one, sorted by namespace and name, from the one after `after` on, at most
    /// [`PER_PAGE`](crate::collector::PER_PAGE). The last one of them, when there may be more.
    fn page(&self, after: Option<&Key>, visit: &mut dyn FnMut(&Found<'_>)) -> Option<Key>;
    /// Shows every namespace with claims or Backups once, sorted by name.
    fn namespaces(&self, visit: &mut dyn FnMut(&NamespaceFacts<'_>));
}

/// Knows the times in which nothing starts; asked at every scrape, so it answers from memory.
pub trait Calendar: Send + Sync {
    /// Whether a blackout of the policy, or of a rule for its namespace, holds now.
    fn in_blackout(&self, namespace: &str, policy: &PolicyProjection) -> bool;
}

/// No blackouts are known.
impl Calendar for () {
    fn in_blackout(&self, _namespace: &str, _policy: &PolicyProjection) -> bool {
        false
    }
}

/// What a page shows.
#[derive(Debug)]
pub enum Found<'a> {
    /// A policy.
    Policy(PolicyFacts<'a>),
    /// Runs without a policy (its name is empty), or of one that is gone and of which something may be frozen.
    Runs {
        /// Their namespace.
        namespace: &'a str,
        /// Name of the policy that they name.
        policy: &'a str,
        /// What they say.
        points: PointFacts,
    },
}

/// Facts about one namespace at one moment.
#[derive(Debug)]
pub struct NamespaceFacts<'a> {
    /// Its name.
    pub namespace: &'a str,
    /// Bound claims that are in no usable point; `None`: it has no bound claims, or claims were not listed yet.
    pub unprotected: Option<u32>,
    /// Backups whose policy is gone; `None`: it has no Backups, or policies were not listed yet.
    pub orphans: Option<u32>,
    /// Runs that wait because a rule limits freezes; `None`: it has no Backups.
    pub waiting: Option<u32>,
}

/// Facts about one policy at one moment.
pub struct PolicyFacts<'a> {
    /// Namespace of the policy and its applications.
    pub namespace: &'a str,
    /// Its name.
    pub policy: &'a str,
    /// What its object says.
    pub spec: &'a PolicyProjection,
    /// What its Backups say, computed when a family asks: most do not.
    pub points: LazyPoints<'a>,
    calendar: &'a dyn Calendar,
}

impl PolicyFacts<'_> {
    /// Whether nothing starts now because of a blackout.
    pub fn in_blackout(&self) -> bool {
        self.calendar.in_blackout(self.namespace, self.spec)
    }
}

impl std::fmt::Debug for PolicyFacts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { namespace, policy, spec, points, calendar: _ } = self;
        let mut shown = f.debug_struct("PolicyFacts");
        shown.field("namespace", namespace).field("policy", policy);
        shown.field("spec", spec).field("points", &**points).finish_non_exhaustive()
    }
}

impl Found<'_> {
    /// The runs: namespace, policy, and what they say.
    pub fn runs(&self) -> (&str, &str, &PointFacts) {
        match self {
            Self::Policy(found) => (found.namespace, found.policy, &found.points),
            Self::Runs { namespace, policy, points } => (namespace, policy, points),
        }
    }
}

/// Facts that are computed when they are first read.
pub type LazyPoints<'a> = LazyCell<PointFacts, Box<dyn FnOnce() -> PointFacts + 'a>>;

/// What a policy's object says.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyProjection {
    /// When it was created: the start of protection.
    pub created: Timestamp,
    /// The expression.
    pub schedule: Arc<str>,
    /// The zone.
    pub time_zone: Arc<str>,
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
    /// Slots whose run ended with a proven point, and without one.
    pub slots: (u64, u64),
    /// Points that only a guard keeps, by guard.
    pub retention_blocked: BTreeMap<String, u32>,
    /// Points that may go and are not gone yet.
    pub retention_overdue: u32,
    /// Conditions: type and status.
    pub conditions: Arc<[(String, String)]>,
    /// Its own blackouts.
    pub blackouts: Box<[Blackout]>,
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
    /// From the earliest to the latest cut of the newest proven point, seconds.
    pub cut_spread_seconds: Option<f64>,
    /// What proven points need to be restored, together, in bytes, as far as drivers say.
    pub restore_bytes: u64,
    /// Length of the run that ended last, seconds.
    pub last_run_seconds: Option<f64>,
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

/// Namespace and name.
pub type Key = (String, String);

#[derive(Debug, Default)]
struct Entry {
    /// Boxed: half of the room in the nodes of a tree is empty.
    policy: Option<Box<PolicyProjection>>,
    /// The list of policies that is under way showed it.
    seen: bool,
    backups: Points,
}

#[derive(Debug, Default)]
struct Objects {
    entries: BTreeMap<Key, Entry>,
    /// Bound claims that want protection, by namespace.
    claims: BTreeMap<String, BTreeSet<String>>,
    /// Whether every policy was listed once: before that a Backup seems to have none.
    policies_known: bool,
    /// Whether every claim was listed once.
    claims_known: bool,
    listing_claims: Option<BTreeMap<String, BTreeSet<String>>>,
    texts: Shared<str>,
    conditions: Shared<[(String, String)]>,
    listing_policies: bool,
    listing_backups: bool,
}

/// The projection, fed by the watches and read by scrapes.
///
/// Runs without a policy are kept under the policy name `""`: they have event series while a Backup of them exists.
pub struct FactsStore {
    metrics: Arc<Metrics>,
    calendar: Arc<dyn Calendar>,
    ids: Ids,
    objects: RwLock<Objects>,
}

impl FactsStore {
    /// An empty store that keeps the series of `metrics` in step with the policies.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self::with_calendar(metrics, Arc::new(()))
    }

    /// The same with somebody who knows when nothing starts.
    pub fn with_calendar(metrics: Arc<Metrics>, calendar: Arc<dyn Calendar>) -> Self {
        Self { metrics, calendar, ids: Ids::default(), objects: RwLock::default() }
    }

    /// A policy was created or changed.
    pub fn policy_applied(&self, policy: &BackupPolicy) {
        let key = (policy.namespace().unwrap_or_default(), policy.name_any());
        let names: Vec<&str> = policy.spec.applications.iter().map(|app| app.name.as_str()).collect();
        let mut objects = self.write();
        // Series of a policy that is not accepted are true as well: a run on demand would count in them.
        self.metrics.policy_accepted(&key.0, &key.1, &names);
        let Objects { entries, texts, conditions, .. } = &mut *objects;
        let projection = project_policy(policy, texts, conditions);
        let entry = entries.entry(key).or_default();
        entry.policy = Some(Box::new(projection));
        entry.seen = true;
    }

    /// A policy was deleted.
    pub fn policy_deleted(&self, policy: &BackupPolicy) {
        let key = (policy.namespace().unwrap_or_default(), policy.name_any());
        self.forget_policy(&mut self.write(), &key);
    }

    /// A list of all policies begins.
    pub fn policies_listing(&self) {
        let mut objects = self.write();
        objects.listing_policies = true;
        objects.entries.values_mut().for_each(|entry| entry.seen = false);
    }

    /// All policies of the list were reported: those that were not are gone.
    pub fn policies_listed(&self) {
        let mut objects = self.write();
        if !std::mem::take(&mut objects.listing_policies) {
            return;
        }
        objects.policies_known = true;
        let unseen = objects.entries.iter().filter(|(_, entry)| entry.policy.is_some() && !entry.seen);
        let gone: Vec<Key> = unseen.map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.forget_policy(&mut objects, &key);
        }
        let existing = |key: &Key| {
            objects.entries.get(key).is_some_and(|entry| key.1.is_empty() || entry.policy.is_some())
        };
        self.metrics.policies_listed(existing);
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
        let entry = objects.entries.entry(key).or_default();
        entry.backups.insert(self.ids.of(&name), project_backup(backup));
    }

    /// A Backup was deleted.
    pub fn backup_deleted(&self, backup: &Backup) {
        self.forget_backup(&mut self.write(), &backup_key(backup), &backup.name_any());
    }

    /// A list of all Backups begins.
    pub fn backups_listing(&self) {
        let mut objects = self.write();
        objects.listing_backups = true;
        objects.entries.values_mut().for_each(|entry| entry.backups.forget_seen());
    }

    /// All Backups of the list were reported: those that were not are gone.
    pub fn backups_listed(&self) {
        let mut objects = self.write();
        if !std::mem::take(&mut objects.listing_backups) {
            return;
        }
        objects.entries.retain(|key, entry| {
            entry.backups.keep_seen();
            let stays = entry.policy.is_some() || !entry.backups.is_empty();
            if !stays && key.1.is_empty() {
                self.metrics.policy_removed(&key.0, "");
            }
            stays
        });
    }

    /// A claim was created or changed: its metadata says whether it is bound and whether it wants protection.
    pub fn claim_applied(&self, claim: &ObjectMeta) {
        let mut objects = self.write();
        let objects = &mut *objects;
        let shelf = objects.listing_claims.as_mut().unwrap_or(&mut objects.claims);
        let (Some(namespace), Some(name)) = (&claim.namespace, &claim.name) else { return };
        if wants_protection(claim) {
            shelf.entry(namespace.clone()).or_default().insert(name.clone());
        } else {
            forget_claim(shelf, namespace, name);
        }
    }

    /// A claim was deleted.
    pub fn claim_deleted(&self, claim: &ObjectMeta) {
        let mut objects = self.write();
        if let (Some(namespace), Some(name)) = (&claim.namespace, &claim.name) {
            forget_claim(&mut objects.claims, namespace, name);
        }
    }

    /// A list of all claims begins.
    pub fn claims_listing(&self) {
        self.write().listing_claims = Some(BTreeMap::new());
    }

    /// All claims of the list were reported: those that were not are gone.
    pub fn claims_listed(&self) {
        let mut objects = self.write();
        if let Some(listed) = objects.listing_claims.take() {
            objects.claims = listed;
            objects.claims_known = true;
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
        entry.backups.remove(self.ids.of(name));
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

impl std::fmt::Debug for FactsStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FactsStore").field("objects", &self.objects).finish_non_exhaustive()
    }
}

impl Facts for FactsStore {
    fn page(&self, after: Option<&Key>, visit: &mut dyn FnMut(&Found<'_>)) -> Option<Key> {
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
                let points: LazyPoints<'_> = LazyCell::new(Box::new(|| summarise(entry.backups.iter())));
                let calendar = &*self.calendar;
                visit(&Found::Policy(PolicyFacts { namespace, policy, spec, points, calendar }));
            } else if policy.is_empty() || entry.backups.any_frozen() {
                visit(&Found::Runs { namespace, policy, points: summarise(entry.backups.iter()) });
            }
        }
        None
    }

    fn namespaces(&self, visit: &mut dyn FnMut(&NamespaceFacts<'_>)) {
        let objects = self.read();
        let mut names: Vec<&str> = objects.entries.keys().map(|(namespace, _)| namespace.as_str()).collect();
        names.dedup();
        names.extend(objects.claims.keys().map(String::as_str));
        names.sort_unstable();
        names.dedup();
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        for namespace in names {
            let from = (namespace.to_owned(), String::new());
            let entries =
                || objects.entries.range(from.clone()..).take_while(|((found, _), _)| found == namespace);
            let claims = objects.claims.get(namespace).filter(|_| objects.claims_known);
            let unprotected = claims.map(|claims| {
                let protected = protected(entries().map(|(_, entry)| entry));
                number(claims.iter().filter(|name| !protected.contains(name.as_str())).count())
            });
            let backups = entries().map(|(_, entry)| entry.backups.len()).sum::<usize>();
            let orphans = (objects.policies_known && backups > 0).then(|| {
                let of_none =
                    entries().filter(|((_, policy), entry)| !policy.is_empty() && entry.policy.is_none());
                number(of_none.map(|(_, entry)| entry.backups.len()).sum())
            });
            let waiting =
                (backups > 0).then(|| number(entries().map(|(_, entry)| entry.backups.waiting()).sum()));
            if unprotected.is_some() || waiting.is_some() {
                visit(&NamespaceFacts { namespace, unprotected, orphans, waiting });
            }
        }
    }
}

/// Claims of usable points of a namespace. Backups of a policy share the list of their claims: each list is read once.
fn protected<'a>(entries: impl Iterator<Item = &'a Entry>) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    for entry in entries {
        let mut read: Option<&Arc<[String]>> = None;
        for claims in entry.backups.claims_of_ready() {
            if !read.is_some_and(|read| Arc::ptr_eq(read, claims)) {
                found.extend(claims.iter().map(String::as_str));
                read = Some(claims);
            }
        }
    }
    found
}

fn forget_claim(shelf: &mut BTreeMap<String, BTreeSet<String>>, namespace: &str, name: &str) {
    if let Some(claims) = shelf.get_mut(namespace) {
        claims.remove(name);
        if claims.is_empty() {
            shelf.remove(namespace);
        }
    }
}

/// Bound, staying, and not said to need none. The binder writes the annotation when it has bound a claim.
fn wants_protection(claim: &ObjectMeta) -> bool {
    let says = |name: &str, value: &str| {
        claim.annotations.as_ref().and_then(|all| all.get(name)).is_some_and(|found| found == value)
    };
    says(BIND_COMPLETED, "yes")
        && !says(NEEDS_NO_BACKUP_ANNOTATION, "true")
        && claim.deletion_timestamp.is_none()
}

fn summarise(backups: impl Iterator<Item = BackupProjection>) -> PointFacts {
    let mut facts = PointFacts::default();
    let (mut newest_freeze, mut newest_run) = (None, None);
    for backup in backups {
        facts.counts[backup.state.index()] += 1;
        facts.counts[PointState::Held.index()] += u32::from(backup.held);
        match backup.state {
            PointState::Ready => {
                if facts.newest.is_none() || backup.point > facts.newest {
                    facts.cut_spread_seconds = backup.cut_spread.map(f64::from);
                }
                facts.restore_bytes = facts.restore_bytes.saturating_add(backup.restore_bytes);
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
        if let (Some(started), Some(finished)) = (backup.started, backup.finished)
            && newest_run.is_none_or(|newest| finished > newest)
        {
            newest_run = Some(finished);
            facts.last_run_seconds = Some(finished.duration_since(started).as_secs_f64().max(0.0));
        }
        if let Some((at, length)) = backup.freeze
            && newest_freeze.is_none_or(|newest| at > newest)
        {
            newest_freeze = Some(at);
            facts.last_freeze_seconds = Some(length.as_secs_f64());
        }
    }
    facts
}

fn backup_key(backup: &Backup) -> Key {
    (backup.namespace().unwrap_or_default(), backup.policy_name().unwrap_or_default().to_owned())
}

fn project_policy(
    policy: &BackupPolicy,
    texts: &mut Shared<str>,
    conditions: &mut Shared<[(String, String)]>,
) -> PolicyProjection {
    use stillpoint_api::policy::{CatchUp, Concurrency};
    let schedule = &policy.spec.schedule;
    let status = policy.status.clone().unwrap_or_default();
    PolicyProjection {
        created: policy.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        schedule: texts.one(schedule.cron.as_str().into()),
        time_zone: texts.one(schedule.time_zone.as_deref().unwrap_or("Etc/UTC").into()),
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
        slots: status.slots.map_or((0, 0), |counts| (counts.met, counts.failed)),
        retention_overdue: status.retention.as_ref().map_or(0, |retention| retention.expiring),
        retention_blocked: status.retention.map(|retention| retention.blocked).unwrap_or_default(),
        conditions: conditions
            .one(status.conditions.into_iter().map(|found| (found.type_, found.status)).collect()),
        blackouts: schedule.blackouts.clone().into_boxed_slice(),
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
    let cuts = || status.members.iter().filter_map(|member| member.cut.as_ref()).map(|cut| cut.0);
    let spread = cuts().min().zip(cuts().max()).map(|(first, last)| last.duration_since(first));
    let sizes = status.kept_members().filter_map(|member| member.settled.as_ref()?.restore_size);
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
        waits: status.finished_at.is_none() && stillpoint_api::conditions::is_true(&status.conditions, PACED),
        finished: status.finished_at.as_ref().map(|time| time.0),
        cut_spread: spread.map(|spread| spread.as_secs_f32()),
        restore_bytes: sizes.filter_map(|size| u64::try_from(size).ok()).sum(),
        claims: status.kept_members().map(|member| member.claim_name.clone()).collect(),
        freeze: window.and_then(|window| {
            let length = Duration::try_from_secs_f64(window.frozen_seconds?).ok()?;
            Some((window.started_at.as_ref()?.0, length))
        }),
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
