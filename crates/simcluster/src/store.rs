//! The object store: one global resourceVersion, compare-and-swap, generations, finalizers, owner garbage, and a
//! bounded history for watches. No IO and no tasks; time comes in through the clock.
//!
//! Guarantees: every stored change has its own resourceVersion and appears in the history exactly once; a write that
//! changes nothing is not a change; an object with finalizers never disappears.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use stillpoint_api::clock::SharedClock;
use tokio::sync::{Notify, watch};

use crate::error::ApiError;
use crate::resources::{Registry, Resource};
use crate::selectors::Selectors;

mod garbage;
mod held;
mod load;

pub(crate) use held::Held;
pub use load::Creation;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

/// One entry of the history.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub version: u64,
    pub kind: ChangeKind,
    pub object: Arc<Value>,
    pub previous: Option<Arc<Value>>,
}

/// Which half of an object a write may touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    /// Everything but status (where status is a subresource).
    Main,
    /// Status alone.
    Status,
    /// Both: the cluster's own bookkeeping.
    Both,
}

/// Which objects of a resource.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    pub namespace: Option<String>,
    pub selectors: Selectors,
}

impl Scope {
    pub(crate) fn holds(&self, object: &Value) -> bool {
        self.namespace.as_deref().is_none_or(|namespace| object["metadata"]["namespace"] == namespace)
            && self.selectors.matches(object)
    }
}

/// A page of a list.
pub(crate) struct Page {
    pub version: u64,
    pub items: Vec<Held>,
    pub next: Option<String>,
    pub remaining: usize,
}

/// How to delete.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deletion {
    pub grace: Option<i64>,
    pub orphan: bool,
    pub uid: Option<String>,
    pub version: Option<String>,
    pub dry_run: bool,
}

/// The outcome of a delete: the object as it is now, or as it last was.
pub(crate) enum Deleted {
    Gone(Arc<Value>),
    Waiting(Arc<Value>),
}

/// An object's place: table, namespace, name.
pub(crate) type Place = (String, String, String);

struct Table {
    objects: BTreeMap<(String, String), Held>,
    history: VecDeque<Change>,
    forgotten: u64,
    changed: watch::Sender<u64>,
}

struct Inner {
    version: u64,
    minted: u64,
    tables: HashMap<String, Table>,
    uids: HashSet<String>,
    dependents: HashMap<String, BTreeSet<Place>>,
    garbage: Vec<Place>,
}

/// The store.
pub(crate) struct Store {
    inner: Mutex<Inner>,
    pub(crate) registry: Registry,
    pub(crate) clock: SharedClock,
    /// Rings when there may be garbage.
    pub(crate) collect: Notify,
    any: watch::Sender<u64>,
    history: usize,
    /// Creations of this resource (plural), when somebody wants to know their instants.
    creations: Option<(String, Mutex<Vec<Creation>>)>,
    /// Whether a kubelet ends pods; without one they are deleted at once.
    graceful_pods: bool,
    seed: String,
}

impl Store {
    pub(crate) fn new(
        registry: Registry,
        clock: SharedClock,
        seed: String,
        history: usize,
        graceful_pods: bool,
        record: Option<String>,
    ) -> Self {
        let inner = Inner {
            version: 1,
            minted: 0,
            tables: HashMap::new(),
            uids: HashSet::new(),
            dependents: HashMap::new(),
            garbage: Vec::new(),
        };
        let (any, _) = watch::channel(1);
        let (inner, collect) = (Mutex::new(inner), Notify::new());
        let creations = record.map(|plural| (plural, Mutex::default()));
        Self { inner, registry, clock, collect, any, history, creations, graceful_pods, seed }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Now, in whole seconds, as object metadata has it.
    pub(crate) fn now(&self) -> String {
        self.clock.wall().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    /// Changes of one table: the receiver sees the version of the newest one.
    pub(crate) fn subscribe(&self, table: &str) -> watch::Receiver<u64> {
        self.lock().table(table).changed.subscribe()
    }

    /// Changes of anything.
    pub(crate) fn subscribe_all(&self) -> watch::Receiver<u64> {
        self.any.subscribe()
    }

    pub(crate) fn version(&self) -> u64 {
        self.lock().version
    }

    pub(crate) fn get(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Value>, ApiError> {
        self.find(&resource.table(), namespace, name).ok_or_else(|| ApiError::not_found(resource, name))
    }

    pub(crate) fn find(&self, table: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let inner = self.lock();
        let held = inner.tables.get(table)?.objects.get(&(namespace.to_owned(), name.to_owned())).cloned();
        drop(inner);
        held.map(|held| held.value())
    }

    /// Everything in a table.
    pub(crate) fn all(&self, table: &str) -> Vec<Arc<Value>> {
        self.lock()
            .tables
            .get(table)
            .map(|table| table.objects.values().map(Held::value).collect())
            .unwrap_or_default()
    }

    /// A page of a list; `after` is the continue token of the page before.
    pub(crate) fn list(
        &self,
        table: &str,
        scope: &Scope,
        limit: usize,
        after: &str,
    ) -> Result<Page, ApiError> {
        let mut inner = self.lock();
        let current = inner.version;
        let table = inner.table(table);
        let mut token = after.splitn(3, '~');
        let (version, seen, place) = (token.next(), token.next(), token.next());
        let seen: usize = seen.and_then(|seen| seen.parse().ok()).unwrap_or(0);
        let start = match (version, place) {
            (Some(version), Some(place)) => {
                let version: u64 = version.parse().unwrap_or(0);
                if version < table.forgotten {
                    return Err(ApiError::expired(version, table.forgotten));
                }
                let (namespace, name) = place.split_once('/').unwrap_or(("", place));
                Bound::Excluded((namespace.to_owned(), name.to_owned()))
            }
            (Some(_) | None, _) => scope
                .namespace
                .as_ref()
                .map_or(Bound::Unbounded, |namespace| Bound::Included((namespace.clone(), String::new()))),
        };
        let outside = |namespace: &str| scope.namespace.as_deref().is_some_and(|wanted| wanted != namespace);
        // Of a whole table the rest is known without looking at it: pages of a million objects stay linear.
        let everything = scope.namespace.is_none() && scope.selectors.is_empty();
        let mut items = Vec::new();
        let (mut next, mut remaining) = (None, 0);
        let mut last: Option<&(String, String)> = None;
        for (place, object) in table.objects.range((start, Bound::Unbounded)) {
            if outside(&place.0) {
                break;
            }
            if !scope.selectors.is_empty() && !object.is_selected(&scope.selectors) {
                continue;
            }
            if limit > 0 && items.len() == limit {
                let last = last.map(|(namespace, name)| format!("{namespace}/{name}")).unwrap_or_default();
                next.get_or_insert_with(|| format!("{current}~{}~{last}", seen + limit));
                remaining += 1;
                if everything {
                    remaining = table.objects.len().saturating_sub(seen + limit);
                    break;
                }
                continue;
            }
            last = Some(place);
            items.push(object.clone());
        }
        Ok(Page { version: current, items, next, remaining })
    }

    /// Changes after `cursor`, and the version up to which this answer is complete.
    pub(crate) fn since(&self, table: &str, cursor: u64) -> Result<(Vec<Change>, u64), ApiError> {
        let mut inner = self.lock();
        let current = inner.version;
        let table = inner.table(table);
        if cursor < table.forgotten {
            return Err(ApiError::expired(cursor, table.forgotten));
        }
        let first = table.history.partition_point(|change| change.version <= cursor);
        Ok((table.history.range(first..).cloned().collect(), current.max(cursor)))
    }

    /// Forgets the history: watches that start in the past get 410.
    pub(crate) fn forget_history(&self) {
        let mut inner = self.lock();
        let current = inner.version;
        for table in inner.tables.values_mut() {
            table.history.clear();
            table.forgotten = current;
        }
    }

    pub(crate) fn create(
        &self,
        resource: &Resource,
        namespace: &str,
        mut object: Value,
        dry_run: bool,
    ) -> Result<Arc<Value>, ApiError> {
        let now = self.now();
        let mut inner = self.lock();
        let uid = self.mint(&mut inner);
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        let meta = &mut object["metadata"];
        if meta["name"].as_str().unwrap_or_default().is_empty() {
            let prefix = meta["generateName"].as_str().unwrap_or_default();
            if prefix.is_empty() {
                return Err(ApiError::invalid(
                    resource,
                    "",
                    &[("metadata.name".into(), "Required value: name or generateName is required".into())],
                ));
            }
            meta["name"] = json!(format!("{prefix}{}", &uid[..5]));
        }
        let name = meta["name"].as_str().unwrap_or_default().to_owned();
        let legal =
            |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-.:".contains(letter);
        if name.len() > 253 || !name.chars().all(legal) || name.starts_with('-') || name.ends_with('-') {
            let why = format!("Invalid value: {name:?}: a lowercase RFC 1123 subdomain is needed");
            return Err(ApiError::invalid(resource, &name, &[("metadata.name".into(), why)]));
        }
        if meta["resourceVersion"].as_str().is_some_and(|version| !version.is_empty()) {
            return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
        }
        if resource.namespaced {
            let space = inner.table("namespaces").objects.get(&(String::new(), namespace.to_owned()));
            let space = space.map(Held::value).ok_or_else(|| {
                ApiError::new(404, "NotFound", format!("namespaces \"{namespace}\" not found"))
            })?;
            if !space["metadata"]["deletionTimestamp"].is_null() {
                return Err(ApiError::forbidden(format!(
                    "{} \"{name}\" is forbidden: unable to create new content in namespace {namespace} because it is being terminated",
                    resource.qualified()
                )));
            }
            meta["namespace"] = json!(namespace);
        }
        let key = (namespace.to_owned(), name.clone());
        if inner.table(&resource.table()).objects.contains_key(&key) {
            return Err(ApiError::already_exists(resource, &name));
        }
        meta["uid"] = json!(uid);
        meta["creationTimestamp"] = json!(now);
        meta["generation"] = json!(1);
        if let Some(meta) = meta.as_object_mut() {
            for given_by_the_server in [
                "resourceVersion",
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
                "managedFields",
                "selfLink",
            ] {
                meta.remove(given_by_the_server);
            }
        }
        if dry_run {
            return Ok(Arc::new(object));
        }
        let place = key.clone();
        let created = self.commit(&mut inner, resource, key, Some(object));
        drop(inner);
        self.note_creation(&resource.plural, place);
        Ok(created)
    }

    /// Reads, changes and writes one object. `change` gets the current object; the resourceVersion it leaves in the
    /// metadata, if any, must still be the current one.
    pub(crate) fn update(
        &self,
        resource: &Resource,
        (namespace, name): (&str, &str),
        half: Half,
        dry_run: bool,
        change: impl FnOnce(&mut Value) -> Result<(), ApiError>,
    ) -> Result<Arc<Value>, ApiError> {
        let mut inner = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        let current = inner.table(&resource.table()).objects.get(&key).map(Held::value);
        let current = current.ok_or_else(|| ApiError::not_found(resource, name))?;
        let mut object = Value::clone(&current);
        change(&mut object)?;
        if !object["metadata"].is_object() {
            return Err(ApiError::bad_request("metadata must be an object"));
        }
        let asked = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        if !asked.is_empty() && current["metadata"]["resourceVersion"] != asked {
            return Err(ApiError::conflict(resource, name));
        }
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        if !uid.is_empty() && current["metadata"]["uid"] != uid {
            let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta differs");
            return Err(ApiError::new(409, "Conflict", why));
        }
        match half {
            Half::Main if resource.status => restore(&mut object, &current, "status"),
            Half::Status => {
                let status = object["status"].take();
                object = Value::clone(&current);
                object["status"] = status;
                if object["status"].is_null() {
                    restore(&mut object, &json!({}), "status");
                }
            }
            Half::Main | Half::Both => {}
        }
        for owned_by_the_server in [
            "name",
            "namespace",
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        ] {
            restore(&mut object["metadata"], &current["metadata"], owned_by_the_server);
        }
        if let Some(meta) = object["metadata"].as_object_mut() {
            meta.remove("managedFields");
            meta.retain(|_, value| !value.is_null());
        }
        restore(&mut object["metadata"], &current["metadata"], "resourceVersion");
        restore(&mut object["metadata"], &current["metadata"], "generation");
        let deleting = !current["metadata"]["deletionTimestamp"].is_null();
        if deleting && adds_finalizers(&current, &object) {
            let why = "Forbidden: no new finalizers can be added if the object is being deleted".to_owned();
            return Err(ApiError::invalid(resource, name, &[("metadata.finalizers".into(), why)]));
        }
        if object == *current {
            return Ok(current);
        }
        if spec_differs(resource, &current, &object) {
            let generation = current["metadata"]["generation"].as_i64().unwrap_or(0);
            object["metadata"]["generation"] = json!(generation + 1);
        }
        if dry_run {
            return Ok(Arc::new(object));
        }
        let waits = object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) > 0;
        if deleting && !waits && !has_finalizers(&object) {
            return Ok(self.commit(&mut inner, resource, key, None));
        }
        Ok(self.commit(&mut inner, resource, key, Some(object)))
    }

    pub(crate) fn delete(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        how: &Deletion,
    ) -> Result<Deleted, ApiError> {
        let now = self.now();
        let mut inner = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        let current = inner.table(&resource.table()).objects.get(&key).map(Held::value);
        let current = current.ok_or_else(|| ApiError::not_found(resource, name))?;
        let meta = &current["metadata"];
        if how.uid.as_deref().is_some_and(|uid| meta["uid"] != uid)
            || how.version.as_deref().is_some_and(|version| meta["resourceVersion"] != version)
        {
            let why = "Precondition failed: the object is not the one the precondition names";
            return Err(ApiError::new(409, "Conflict", why));
        }
        if how.dry_run {
            return Ok(Deleted::Waiting(current));
        }
        if how.orphan {
            let uid = meta["uid"].as_str().unwrap_or_default().to_owned();
            self.orphan(&mut inner, &uid);
        }
        let table = resource.table();
        let grace = match table.as_str() {
            "pods" if self.graceful_pods => {
                let own = current["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
                how.grace.unwrap_or(own).max(0)
            }
            _ => 0,
        };
        let was = meta["deletionGracePeriodSeconds"].as_i64();
        if grace == 0 && !has_finalizers(&current) {
            return Ok(Deleted::Gone(self.commit(&mut inner, resource, key, None)));
        }
        if was.is_some_and(|was| was <= grace) {
            return Ok(Deleted::Waiting(current));
        }
        let mut object = Value::clone(&current);
        if meta["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = json!(now);
            let generation = meta["generation"].as_i64().unwrap_or(0);
            object["metadata"]["generation"] = json!(generation + 1);
        }
        object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        if table == "namespaces" {
            object["status"]["phase"] = json!("Terminating");
        }
        let object = self.commit(&mut inner, resource, key, Some(object));
        self.collect.notify_one();
        Ok(Deleted::Waiting(object))
    }

    /// Stores (or, with `None`, removes) an object under the next version and tells every watcher.
    fn commit(
        &self,
        inner: &mut Inner,
        resource: &Resource,
        key: (String, String),
        object: Option<Value>,
    ) -> Arc<Value> {
        inner.version += 1;
        let version = inner.version;
        let name = resource.table();
        let previous = inner.table(&name).objects.get(&key).map(Held::value);
        let kind = match (&object, &previous) {
            (Some(_), None) => ChangeKind::Added,
            (Some(_), Some(_)) => ChangeKind::Modified,
            (None, _) => ChangeKind::Deleted,
        };
        let mut stored = object.unwrap_or_else(|| previous.as_deref().cloned().unwrap_or_default());
        stored["metadata"]["resourceVersion"] = json!(version.to_string());
        let stored = Arc::new(stored);
        let place = (name.clone(), key.0.clone(), key.1.clone());
        inner.index(&place, &stored, kind);
        if kind == ChangeKind::Deleted || !inner.garbage.is_empty() {
            self.collect.notify_one();
        }
        let capacity = self.history;
        let table = inner.table(&name);
        if kind == ChangeKind::Deleted {
            table.objects.remove(&key);
        } else {
            table.objects.insert(key, Held::Parsed(Arc::clone(&stored)));
        }
        table.history.push_back(Change { version, kind, object: Arc::clone(&stored), previous });
        while table.history.len() > capacity {
            table.forgotten = table.history.pop_front().map_or(table.forgotten, |change| change.version);
        }
        table.changed.send_replace(version);
        self.any.send_replace(version);
        stored
    }

    /// A random-looking identity: unique in this cluster and different in the next.
    fn mint(&self, inner: &mut Inner) -> String {
        inner.minted += 1;
        let digest = Sha256::digest(format!("{} {}", self.seed, inner.minted).as_bytes());
        let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{}-4{}-a{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
    }
}

impl Inner {
    fn table(&mut self, name: &str) -> &mut Table {
        let version = self.version;
        self.tables.entry(name.to_owned()).or_insert_with(|| Table {
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            forgotten: 0,
            changed: watch::channel(version).0,
        })
    }

    /// Keeps the owner index: an owner that goes makes its dependents candidates for collection, and so does an
    /// object that names an owner which is not there.
    fn index(&mut self, place: &Place, object: &Value, kind: ChangeKind) {
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        match kind {
            ChangeKind::Added | ChangeKind::Modified => {
                self.uids.insert(uid);
                for owner in owner_uids(object) {
                    if !self.uids.contains(&owner) {
                        self.garbage.push(place.clone());
                    }
                    self.dependents.entry(owner).or_default().insert(place.clone());
                }
            }
            ChangeKind::Deleted => {
                self.uids.remove(&uid);
                self.garbage.extend(self.dependents.remove(&uid).unwrap_or_default());
                for owner in owner_uids(object) {
                    if let Some(dependents) = self.dependents.get_mut(&owner) {
                        dependents.remove(place);
                    }
                }
            }
        }
    }
}

fn owner_uids(object: &Value) -> Vec<String> {
    let owners = object["metadata"]["ownerReferences"].as_array();
    owners.into_iter().flatten().filter_map(|owner| owner["uid"].as_str().map(str::to_owned)).collect()
}

/// Makes `field` of `object` what it is in `original`, absence included.
fn restore(object: &mut Value, original: &Value, field: &str) {
    if let Some(object) = object.as_object_mut() {
        match original.get(field) {
            Some(value) => object.insert(field.to_owned(), value.clone()),
            None => object.remove(field),
        };
    }
}

fn finalizers(object: &Value) -> BTreeSet<&str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

pub(crate) fn has_finalizers(object: &Value) -> bool {
    !finalizers(object).is_empty()
}

fn adds_finalizers(before: &Value, after: &Value) -> bool {
    !finalizers(after).is_subset(&finalizers(before))
}

fn spec_differs(resource: &Resource, before: &Value, after: &Value) -> bool {
    let differs = |(field, value): (&String, &Value)| {
        field != "metadata" && !(resource.status && field == "status") && before.get(field) != Some(value)
    };
    let (Some(old), Some(new)) = (before.as_object(), after.as_object()) else { return true };
    let missing = old.keys().any(|field| field != "status" && !new.contains_key(field));
    missing || new.iter().any(differs)
}
