//! Workloads that no policy selects: what a policy for them would have as applications. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt;
use stillpoint_api::policy::{Application, PodChoice, WhenNoPods};

use crate::resolve::pods::{claim_names, is_live};

/// Labels that controllers give to one pod or one revision: a selector with them finds nothing after the next rollout.
const VOLATILE: &[&str] = &[
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
    "controller-uid",
    "job-name",
];

/// Longest name of an application.
const MAX_NAME: usize = 63;

/// An application for every workload with claims of which no pod is among `protected` (UIDs). Pods of one owner are one
/// workload; its selector is what their labels have in common. Pods without a label that stays are told by name.
pub fn unprotected(pods: &[Pod], protected: &BTreeSet<String>) -> (Vec<Application>, Vec<String>) {
    let mut workloads: BTreeMap<(String, String), Vec<&Pod>> = BTreeMap::new();
    let mut covered: BTreeSet<(String, String)> = BTreeSet::new();
    for pod in pods.iter().filter(|pod| is_live(pod) && !claim_names(pod).is_empty()) {
        let workload = workload(pod);
        if protected.contains(&pod.uid().unwrap_or_default()) {
            covered.insert(workload);
        } else {
            workloads.entry(workload).or_default().push(pod);
        }
    }
    let (mut applications, mut unlabelled) = (Vec::new(), Vec::new());
    for ((kind, name), pods) in workloads {
        if covered.contains(&(kind, name.clone())) {
            continue;
        }
        match common(&pods) {
            labels if labels.is_empty() => unlabelled.extend(pods.iter().map(|pod| pod.name_any())),
            labels => applications.push(application(&name, labels)),
        }
    }
    (applications, unlabelled)
}

/// Kind and name of what made a pod; the pod itself where nothing did.
fn workload(pod: &Pod) -> (String, String) {
    let owner = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
    let Some(owner) = owner else { return ("Pod".to_owned(), pod.name_any()) };
    // The name of a ReplicaSet is its Deployment's and a hash.
    let hash = pod.labels().get("pod-template-hash").map(|hash| format!("-{hash}"));
    let name = match (owner.kind.as_str(), hash) {
        ("ReplicaSet", Some(hash)) => owner.name.strip_suffix(&hash).unwrap_or(&owner.name),
        _ => &owner.name,
    };
    (owner.kind.clone(), name.to_owned())
}

fn common(pods: &[&Pod]) -> BTreeMap<String, String> {
    let mut labels = pods.first().map(|pod| pod.labels().clone()).unwrap_or_default();
    labels.retain(|key, value| {
        !VOLATILE.contains(&key.as_str()) && pods.iter().all(|pod| pod.labels().get(key) == Some(value))
    });
    labels
}

fn application(name: &str, labels: BTreeMap<String, String>) -> Application {
    let fit: String = name.chars().map(|one| if one == '.' { '-' } else { one }).take(MAX_NAME).collect();
    Application {
        name: fit.trim_matches('-').to_owned(),
        selector: LabelSelector { match_labels: Some(labels), ..LabelSelector::default() },
        template_ref: None,
        parameters: BTreeMap::new(),
        container: None,
        pods: PodChoice::default(),
        volumes: None,
        order: 0,
        when_no_pods: WhenNoPods::default(),
    }
}
