//! The projection of everything that was watched, fed by the watches and read by scrapes.
//!
//! Guarantees: nothing is remembered that the objects do not say; a recovery point deleted by anybody moves the
//! reference back at once; a policy of the same name adopts the points of its predecessor (docs/api.md).
//! A Backup costs about fifty bytes here whatever evidence it carries.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use stillpoint_api::{Backup, BackupPolicy};

use super::projection::{backup_key, project_backup, project_policy, summarise, wants_protection};
use super::{Calendar, Facts, Found, Key, LazyPoints, NamespaceFacts, PolicyFacts, PolicyProjection};
use crate::collector::PER_PAGE;
use crate::points::{Ids, Points, Shared};
use crate::registry::Metrics;

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
