//! What the API server fills in when an object is created, for the kinds the cluster's own controllers act on.

use serde_json::{Value, json};

use crate::resources::Resource;

/// Fills in defaults and the first status of a new object; a client never sets the status of one.
pub(crate) fn complete(resource: &Resource, object: &mut Value) {
    if resource.status
        && let Some(object) = object.as_object_mut()
    {
        object.remove("status");
    }
    match resource.table().as_str() {
        "namespaces" => {
            let name = object["metadata"]["name"].clone();
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
            add_finalizer(object, "kubernetes"); // stands for spec.finalizers: content goes first
            object["spec"] = json!({"finalizers": ["kubernetes"]});
            object["status"] = json!({"phase": "Active"});
        }
        "pods" => {
            let spec = &mut object["spec"];
            default(spec, "restartPolicy", json!("Always"));
            default(spec, "terminationGracePeriodSeconds", json!(30));
            object["status"] = json!({"phase": "Pending", "qosClass": "BestEffort"});
        }
        "persistentvolumeclaims" => {
            default(&mut object["spec"], "volumeMode", json!("Filesystem"));
            default(&mut object["spec"], "accessModes", json!(["ReadWriteOnce"]));
            add_finalizer(object, "kubernetes.io/pvc-protection");
            object["status"] = json!({"phase": "Pending"});
        }
        "statefulsets.apps" => {
            default(&mut object["spec"], "replicas", json!(1));
            default(&mut object["spec"], "podManagementPolicy", json!("OrderedReady"));
            object["status"] = json!({"replicas": 0});
        }
        "storageclasses.storage.k8s.io" => {
            default(object, "reclaimPolicy", json!("Delete"));
            default(object, "volumeBindingMode", json!("Immediate"));
        }
        _ => {}
    }
}

fn default(object: &mut Value, field: &str, value: Value) {
    if object[field].is_null() {
        object[field] = value;
    }
}

/// Adds a finalizer once.
pub(crate) fn add_finalizer(object: &mut Value, finalizer: &str) {
    let finalizers = &mut object["metadata"]["finalizers"];
    match finalizers.as_array_mut() {
        Some(list) if list.iter().any(|one| one == finalizer) => {}
        Some(list) => list.push(json!(finalizer)),
        None => *finalizers = json!([finalizer]),
    }
}

/// Removes a finalizer.
pub(crate) fn remove_finalizer(object: &mut Value, finalizer: &str) {
    if let Some(list) = object["metadata"]["finalizers"].as_array_mut() {
        list.retain(|one| one != finalizer);
    }
}

/// Renames the fields in which events.k8s.io/v1 differs from the core form, which is what is stored.
pub(crate) fn event_to_core(object: &mut Value) {
    rename(object, |(new, old)| (new, old));
    if let Some(object) = object.as_object_mut()
        && object.contains_key("apiVersion")
    {
        object.insert("apiVersion".into(), json!("v1"));
    }
}

/// The other way round.
pub(crate) fn event_from_core(object: &mut Value) {
    rename(object, |(new, old)| (old, new));
    object["apiVersion"] = json!("events.k8s.io/v1");
}

/// events.k8s.io/v1 name, core v1 name.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedCount", "count"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
];

fn rename(
    object: &mut Value,
    direction: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) {
    if let Some(object) = object.as_object_mut() {
        for pair in EVENT_FIELDS {
            let (from, to) = direction(pair);
            if let Some(value) = object.remove(from) {
                object.insert(to.to_owned(), value);
            }
        }
    }
}
