//! Which applications of a namespace a default policy is for: workloads whose pods keep data in claims and fit a template.
//!
//! Pure, and careful: what cannot be told from other pods by its labels, or fits two templates, is named and left alone.
//! Pods of Jobs are never taken: a dump that runs in a database's image is not the database.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt as _;
use stillpoint_api::template::{Recipe, detect as by_image};

/// Annotation of a pod that names its ClusterHookTemplate.
const TEMPLATE_ANNOTATION: &str = "stillpoint.dev/template";

/// Label of pods that a drill made.
const DRILL_LABEL: &str = "stillpoint.dev/drill";

/// Labels that Kubernetes gives each pod, or each revision, another value of.
const VOLATILE: [&str; 8] = [
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
    "controller-revision-hash",
    "controller-uid",
    "pod-template-generation",
    "pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
];

/// An application that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name: the workload's.
    pub name: String,
    /// What its pods have in common, and no other pod of the namespace has.
    pub labels: BTreeMap<String, String>,
    /// Its ClusterHookTemplate.
    pub template: String,
    /// The container whose image fits, where there are several.
    pub container: Option<String>,
}

/// What a look at a namespace found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detected {
    /// Applications, in the order of their names.
    pub found: Vec<Found>,
    /// What looks like one and is left alone, with the reason.
    pub ambiguous: Vec<String>,
}

type Labels = BTreeMap<String, String>;

/// What makes pods one workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Workload {
    /// Kind and name of their controller.
    Owned(String, String),
    /// Their labels, where the controller changes with every revision or there is none.
    Alike(Labels),
}

/// Finds the applications among the pods of one namespace, with the cluster's templates by name.
pub fn detect(pods: &[Pod], catalog: &[(String, Recipe)]) -> Detected {
    let live: Vec<&Pod> = pods.iter().filter(|pod| is_live(pod)).collect();
    let mut workloads: BTreeMap<Workload, Vec<&Pod>> = BTreeMap::new();
    for pod in live.iter().filter(|pod| keeps_data(pod)) {
        workloads.entry(workload(pod)).or_default().push(pod);
    }
    let mut detected = Detected::default();
    for (workload, pods) in &workloads {
        let templates: BTreeSet<Option<(String, Option<String>)>> =
            pods.iter().map(|pod| template(pod, catalog)).collect();
        if templates.iter().all(Option::is_none) {
            continue;
        }
        let labels = in_common(pods);
        let of_others = live.iter().filter(|pod| !pods.iter().any(|ours| ours.name_any() == pod.name_any()));
        let shared = of_others.filter(|pod| has_all(pod, &labels)).map(|pod| pod.name_any()).next();
        let first = templates.into_iter().next().flatten();
        let same = pods.iter().all(|pod| template(pod, catalog) == first);
        let Some((template, container)) = first.filter(|_| same) else {
            let names = pods.iter().map(|pod| pod.name_any()).collect::<Vec<_>>().join(", ");
            detected.ambiguous.push(format!("pods {names} of one workload do not fit one template"));
            continue;
        };
        let name = name_of(workload, pods, &template);
        match shared {
            _ if labels.is_empty() => {
                detected.ambiguous.push(format!("{name}: its pods have no label in common that lasts"));
            }
            Some(other) => {
                detected.ambiguous.push(format!("{name}: pod {other} has all labels of its pods as well"));
            }
            None => detected.found.push(Found { name, labels, template, container }),
        }
    }
    detected.found.sort_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<String> = detected.found.iter().map(|found| found.name.clone()).collect();
    let twice: BTreeSet<&String> =
        names.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| &pair[0]).collect();
    detected.ambiguous.extend(twice.iter().map(|name| format!("{name}: two workloads have this name")));
    detected.found.retain(|found| !twice.contains(&found.name));
    detected
}

fn is_live(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none()
        && phase.is_none_or(|phase| phase != "Succeeded" && phase != "Failed")
}

fn keeps_data(pod: &Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mut claims =
        volumes.filter(|volume| volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some());
    let of_job = controller(pod).is_some_and(|owner| owner.kind == "Job");
    !of_job && !pod.labels().contains_key(DRILL_LABEL) && claims.next().is_some()
}

fn controller(pod: &Pod) -> Option<&OwnerReference> {
    pod.owner_references().iter().find(|owner| owner.controller == Some(true))
}

fn workload(pod: &Pod) -> Workload {
    match controller(pod) {
        Some(owner) if owner.kind != "ReplicaSet" => Workload::Owned(owner.kind.clone(), owner.name.clone()),
        Some(_) | None => Workload::Alike(lasting(pod)),
    }
}

fn lasting(pod: &Pod) -> Labels {
    let labels = pod.labels().iter().filter(|(key, _)| !VOLATILE.contains(&key.as_str()));
    labels.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn in_common(pods: &[&Pod]) -> Labels {
    let mut common = pods.first().map(|pod| lasting(pod)).unwrap_or_default();
    common.retain(|key, value| pods.iter().all(|pod| pod.labels().get(key) == Some(value)));
    common
}

fn has_all(pod: &Pod, labels: &Labels) -> bool {
    labels.iter().all(|(key, value)| pod.labels().get(key) == Some(value))
}

/// As a run chooses it: the pod's annotation, else the image. The container only where there is a choice.
fn template(pod: &Pod, catalog: &[(String, Recipe)]) -> Option<(String, Option<String>)> {
    if let Some(named) = pod.annotations().get(TEMPLATE_ANNOTATION) {
        return catalog.iter().any(|(name, _)| name == named).then(|| (named.clone(), None));
    }
    let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let images: Vec<&str> =
        containers.iter().map(|container| container.image.as_deref().unwrap_or_default()).collect();
    let found = by_image(&images, catalog.iter().map(|(name, recipe)| (name.as_str(), recipe)))?;
    let container = containers.get(found.image).filter(|_| containers.len() > 1);
    Some((found.template, container.map(|container| container.name.clone())))
}

fn name_of(workload: &Workload, pods: &[&Pod], template: &str) -> String {
    let labelled = |key: &str| pods.first().and_then(|pod| pod.labels().get(key).cloned());
    let deployment = || {
        let pod = pods.first()?;
        let suffix = format!("-{}", pod.labels().get("pod-template-hash")?);
        controller(pod)?.name.strip_suffix(&suffix).map(str::to_owned)
    };
    let named = match workload {
        Workload::Owned(_, name) => Some(name.clone()),
        Workload::Alike(_) => deployment()
            .or_else(|| labelled("app.kubernetes.io/instance"))
            .or_else(|| labelled("app"))
            .or_else(|| labelled("app.kubernetes.io/name")),
    };
    named.filter(|name| is_label(name)).unwrap_or_else(|| template.to_owned())
}

/// Whether it can be the name of an application (RFC 1123).
fn is_label(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
#[path = "detect_tests.rs"]
mod tests;
