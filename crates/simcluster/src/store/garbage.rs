//! What goes when something else has gone: dependents without a living owner, and the content of namespaces that end.
//! Runs beside the requests, as a real cluster's collector does, never inside them.

use serde_json::{Value, json};

use super::{Deletion, Half, Inner, Place, Store, Table, owner_uids};

impl Store {
    /// One round of garbage collection: dependents whose owners are all gone, and content of namespaces that end.
    pub(crate) fn collect_garbage(&self) {
        let garbage = std::mem::take(&mut self.lock().garbage);
        for (table, namespace, name) in garbage {
            let Some(resource) = self.registry.by_table(&table) else { continue };
            let Some(object) = self.find(&table, &namespace, &name) else { continue };
            let owners = owner_uids(&object);
            let living: Vec<&String> = {
                let inner = self.lock();
                owners.iter().filter(|uid| inner.uids.contains(*uid)).collect()
            };
            if !owners.is_empty() && living.is_empty() {
                let uid = object["metadata"]["uid"].as_str().map(str::to_owned);
                let _ = self.delete(&resource, &namespace, &name, &Deletion { uid, ..Deletion::default() });
            } else if living.len() < owners.len() {
                // Some owner is left: the references to those that went are taken away, as kube's collector does.
                let _ = self.update(&resource, (&namespace, &name), Half::Both, false, |object| {
                    if let Some(list) = object["metadata"]["ownerReferences"].as_array_mut() {
                        list.retain(|owner| living.iter().any(|uid| owner["uid"] == **uid));
                    }
                    Ok(())
                });
            }
        }
        for space in self.all("namespaces") {
            if !space["metadata"]["deletionTimestamp"].is_null() {
                self.empty_namespace(space["metadata"]["name"].as_str().unwrap_or_default());
            }
        }
    }

    fn empty_namespace(&self, namespace: &str) {
        let content: Vec<Place> = {
            let inner = self.lock();
            let of = |(table, content): (&String, &Table)| {
                let table = table.clone();
                let keys = content.objects.keys().filter(|(space, _)| space == namespace);
                keys.map(move |(space, name)| (table.clone(), space.clone(), name.clone()))
                    .collect::<Vec<_>>()
            };
            inner.tables.iter().flat_map(of).collect()
        };
        for (table, namespace, name) in &content {
            if let Some(resource) = self.registry.by_table(table) {
                let _ = self.delete(&resource, namespace, name, &Deletion::default());
            }
        }
        if content.is_empty()
            && let Some(resource) = self.registry.by_table("namespaces")
        {
            let _ = self.update(&resource, ("", namespace), Half::Both, false, |space| {
                space["metadata"]["finalizers"] = json!([]);
                Ok(())
            });
        }
    }

    pub(super) fn orphan(&self, inner: &mut Inner, uid: &str) {
        for (table, namespace, name) in inner.dependents.remove(uid).unwrap_or_default() {
            let key = (namespace, name);
            let Some(resource) = self.registry.by_table(&table) else { continue };
            let Some(object) = inner.table(&table).objects.get(&key) else { continue };
            let mut object = Value::clone(&object.value());
            if let Some(owners) = object["metadata"]["ownerReferences"].as_array_mut() {
                owners.retain(|owner| owner["uid"] != uid);
            }
            self.commit(inner, &resource, key, Some(object));
        }
    }
}
