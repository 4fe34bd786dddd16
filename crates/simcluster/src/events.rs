//! Events of the cluster's own controllers: one object per subject, reason and message, counted when repeated.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::store::{Half, Store};

/// Writes or counts an event about an object.
pub(crate) fn emit(store: &Store, component: &str, about: &Value, kind: &str, reason: &str, message: &str) {
    let Some(events) = store.registry.by_table("events") else { return };
    let now = store.now();
    let namespace = about["namespace"].as_str().filter(|space| !space.is_empty()).unwrap_or("default");
    let digest = Sha256::digest(format!("{} {reason} {message}", about["uid"]).as_bytes());
    let suffix: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let name = format!("{}.{suffix}", about["name"].as_str().unwrap_or_default());
    let counted = store.update(&events, (namespace, &name), Half::Both, false, |event| {
        event["count"] = json!(event["count"].as_u64().unwrap_or(1) + 1);
        event["lastTimestamp"] = json!(now);
        Ok(())
    });
    if counted.is_err() {
        let event = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": namespace},
            "involvedObject": about, "type": kind, "reason": reason, "message": message, "count": 1,
            "source": {"component": component}, "reportingComponent": component, "reportingInstance": "simcluster",
            "firstTimestamp": now, "lastTimestamp": now,
        });
        let _ = store.create(&events, namespace, event, false);
    }
}

/// The reference of an object in its events.
pub(crate) fn reference(object: &Value) -> Value {
    let meta = &object["metadata"];
    json!({
        "apiVersion": object["apiVersion"], "kind": object["kind"], "namespace": meta["namespace"],
        "name": meta["name"], "uid": meta["uid"],
    })
}
