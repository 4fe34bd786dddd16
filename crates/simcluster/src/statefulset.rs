//! The StatefulSet controller: ordinals, claims from templates, ordered start, scale down from the top, status. A
//! changed template takes effect when a pod is made anew; there is no rolling update.

use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::store::{Deletion, Half, Store};

/// Keeps every StatefulSet at its replicas. Runs until it is dropped.
pub(crate) async fn run(store: Arc<Store>) {
    let mut changed = store.subscribe_all();
    loop {
        changed.borrow_and_update();
        for set in store.all("statefulsets.apps") {
            if set["metadata"]["deletionTimestamp"].is_null() {
                reconcile(&store, &set);
            }
        }
        if changed.changed().await.is_err() {
            return;
        }
    }
}

fn reconcile(store: &Store, set: &Value) {
    let (Some(sets), Some(pods)) =
        (store.registry.by_table("statefulsets.apps"), store.registry.by_table("pods"))
    else {
        return;
    };
    let meta = &set["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (name, namespace) = (text(&meta["name"]), text(&meta["namespace"]));
    let replicas = set["spec"]["replicas"].as_u64().unwrap_or(1);
    let parallel = set["spec"]["podManagementPolicy"] == "Parallel";
    let revision = revision(set);
    let owned = |pod: &Value| {
        let mut owners = pod["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        owners.any(|owner| owner["uid"] == meta["uid"])
    };
    let is_ready = |pod: &Value| {
        let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    for ordinal in 0..replicas {
        let pod_name = format!("{name}-{ordinal}");
        match store.find("pods", &namespace, &pod_name) {
            None => {
                make_claims(store, set, &namespace, &pod_name);
                let _ = store.create(&pods, &namespace, pod_of(set, &pod_name, ordinal, &revision), false);
                if !parallel {
                    break;
                }
            }
            Some(pod)
                if !parallel && (!is_ready(&pod) || !pod["metadata"]["deletionTimestamp"].is_null()) =>
            {
                break;
            }
            Some(_) => {}
        }
    }
    let mut living: Vec<(u64, Arc<Value>)> = store
        .all("pods")
        .into_iter()
        .filter(|pod| pod["metadata"]["namespace"] == namespace && owned(pod))
        .filter_map(|pod| {
            let (_, ordinal) = pod["metadata"]["name"].as_str()?.rsplit_once('-')?;
            Some((ordinal.parse().ok()?, pod))
        })
        .collect();
    living.sort_by_key(|(ordinal, _)| *ordinal);
    for (_, pod) in living.iter().rev().filter(|(ordinal, _)| *ordinal >= replicas) {
        if pod["metadata"]["deletionTimestamp"].is_null() {
            let pod_name = text(&pod["metadata"]["name"]);
            let _ = store.delete(&pods, &namespace, &pod_name, &Deletion::default());
        }
        if !parallel {
            break;
        }
    }
    let count = living.len();
    let ready = living.iter().filter(|(_, pod)| is_ready(pod)).count();
    let _ = store.update(&sets, (&namespace, &name), Half::Status, false, |set| {
        set["status"] = json!({
            "observedGeneration": set["metadata"]["generation"], "replicas": count, "readyReplicas": ready,
            "availableReplicas": ready, "currentReplicas": count, "updatedReplicas": count,
            "currentRevision": revision, "updateRevision": revision, "collisionCount": 0,
        });
        Ok(())
    });
}

fn revision(set: &Value) -> String {
    let digest = Sha256::digest(set["spec"]["template"].to_string().as_bytes());
    let hash: String = digest.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{hash}", set["metadata"]["name"].as_str().unwrap_or_default())
}

fn pod_of(set: &Value, pod_name: &str, ordinal: u64, revision: &str) -> Value {
    let template = &set["spec"]["template"];
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": pod_name,
            "labels": template["metadata"]["labels"],
            "annotations": template["metadata"]["annotations"],
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "StatefulSet", "name": set["metadata"]["name"],
                "uid": set["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": template["spec"],
        "status": {"phase": "Pending"},
    });
    let labels = &mut pod["metadata"]["labels"];
    labels["statefulset.kubernetes.io/pod-name"] = json!(pod_name);
    labels["apps.kubernetes.io/pod-index"] = json!(ordinal.to_string());
    labels["controller-revision-hash"] = json!(revision);
    if pod["metadata"]["annotations"].is_null()
        && let Some(meta) = pod["metadata"].as_object_mut()
    {
        meta.remove("annotations");
    }
    if pod["spec"]["terminationGracePeriodSeconds"].is_null() {
        pod["spec"]["terminationGracePeriodSeconds"] = json!(30);
    }
    for claim in set["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten() {
        let name = claim["metadata"]["name"].as_str().unwrap_or_default();
        let volume =
            json!({"name": name, "persistentVolumeClaim": {"claimName": format!("{name}-{pod_name}")}});
        match pod["spec"]["volumes"].as_array_mut() {
            Some(volumes) => volumes.push(volume),
            None => pod["spec"]["volumes"] = json!([volume]),
        }
    }
    pod
}

fn make_claims(store: &Store, set: &Value, namespace: &str, pod_name: &str) {
    let Some(claims) = store.registry.by_table("persistentvolumeclaims") else { return };
    for template in set["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten() {
        let name = template["metadata"]["name"].as_str().unwrap_or_default();
        let mut labels = template["metadata"]["labels"].clone();
        for (key, value) in set["spec"]["selector"]["matchLabels"].as_object().into_iter().flatten() {
            labels[key.as_str()] = value.clone();
        }
        let mut claim = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": format!("{name}-{pod_name}"), "labels": labels}, "spec": template["spec"],
        });
        crate::admission::complete(&claims, &mut claim);
        // An existing claim is kept: that is what makes a StatefulSet stateful.
        let _ = store.create(&claims, namespace, claim, false);
    }
}
