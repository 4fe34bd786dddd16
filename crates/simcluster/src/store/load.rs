//! What scale runs need and no API has: many objects at once, as they are, and the instants of creations.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::held::Loaded;
use super::{ChangeKind, Held, Store};
use crate::error::ApiError;
use crate::resources::Resource;

/// An object that was created through the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Creation {
    /// When it was stored.
    pub at: Timestamp,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Store {
    /// Stores `object` with its status, without schema, admission or quota; `uid`, `creationTimestamp` and `generation` are given
    /// when they are missing. It is no entry of the history: watches that began before must list again.
    pub(crate) fn load(&self, resource: &Resource, mut object: Value) -> Result<(), ApiError> {
        let now = self.now();
        let mut inner = self.lock();
        inner.version += 1;
        let version = inner.version;
        let uid = self.mint(&mut inner);
        object["apiVersion"] = json!(resource.api_version());
        object["kind"] = json!(resource.kind);
        let meta = &mut object["metadata"];
        meta["resourceVersion"] = json!(version.to_string());
        for (field, given) in
            [("uid", json!(uid)), ("creationTimestamp", json!(now)), ("generation", json!(1))]
        {
            if meta[field].is_null() {
                meta[field] = given;
            }
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let key = (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
        let name = resource.table();
        if inner.table(&name).objects.contains_key(&key) {
            return Err(ApiError::already_exists(resource, &key.1));
        }
        inner.index(&(name.clone(), key.0.clone(), key.1.clone()), &object, ChangeKind::Added);
        let table = inner.table(&name);
        table.objects.insert(key, Held::Text(Arc::new(Loaded::of(&object))));
        table.history.clear();
        table.forgotten = version;
        Ok(())
    }

    /// Removes what a namespace has in a table. No entry of the history either.
    pub(crate) fn unload(&self, resource: &Resource, namespace: &str) -> usize {
        let mut inner = self.lock();
        inner.version += 1;
        let version = inner.version;
        let name = resource.table();
        let table = inner.table(&name);
        let before = table.objects.len();
        table.objects.retain(|(space, _), _| space != namespace);
        let gone = before - table.objects.len();
        table.history.clear();
        table.forgotten = version;
        gone
    }

    pub(super) fn note_creation(&self, plural: &str, (namespace, name): (String, String)) {
        if let Some((recorded, creations)) = &self.creations
            && recorded == plural
        {
            let creation = Creation { at: self.clock.wall(), namespace, name };
            lock(creations).push(creation);
        }
    }

    /// Takes the creations that were recorded since the last call.
    pub(crate) fn take_creations(&self) -> Vec<Creation> {
        self.creations
            .as_ref()
            .map(|(_, creations)| std::mem::take(&mut *lock(creations)))
            .unwrap_or_default()
    }

    /// How many creations wait to be taken.
    pub(crate) fn creations(&self) -> usize {
        self.creations.as_ref().map_or(0, |(_, creations)| lock(creations).len())
    }
}

fn lock(creations: &Mutex<Vec<Creation>>) -> std::sync::MutexGuard<'_, Vec<Creation>> {
    creations.lock().unwrap_or_else(PoisonError::into_inner)
}
