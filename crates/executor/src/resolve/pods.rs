//! Pods as the run sees them: which are meant, what they mount, and whether they are still the same.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use stillpoint_api::evidence::{ContainerState, Resolved};

use super::Resolution;
use crate::context::{Context, RequestError, bounded};
use crate::run::Record;

/// A selector in the form of the API's query parameter.
pub fn selector_text(selector: &LabelSelector) -> String {
    let mut parts: Vec<String> =
        selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
    for rule in selector.match_expressions.iter().flatten() {
        let values = rule.values.iter().flatten().cloned().collect::<Vec<_>>().join(",");
        parts.push(match rule.operator.as_str() {
            "In" => format!("{} in ({values})", rule.key),
            "NotIn" => format!("{} notin ({values})", rule.key),
            "Exists" => rule.key.clone(),
            "DoesNotExist" => format!("!{}", rule.key),
            // An operator that nobody knows selects nothing, rather than everything.
            other => format!("{} in (unknown-operator-{})", rule.key, other.to_lowercase()),
        });
    }
    parts.join(",")
}

/// Claims that a pod mounts.
pub fn claim_names(pod: &Pod) -> Vec<String> {
    volume_claims(pod).into_values().collect()
}

/// Pod volume → claim.
pub fn volume_claims(pod: &Pod) -> BTreeMap<String, String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| {
            let claim = volume.persistent_volume_claim.as_ref()?;
            Some((volume.name.clone(), claim.claim_name.clone()))
        })
        .collect()
}

/// `name/uid` of pods that are meant to run, sorted.
pub fn identities(pods: &[Pod]) -> Vec<String> {
    let mut all: Vec<String> = pods
        .iter()
        .filter(|pod| is_live(pod))
        .map(|pod| format!("{}/{}", pod.name_any(), pod.uid().unwrap_or_default()))
        .collect();
    all.sort();
    all
}

/// Neither being deleted nor ended.
pub fn is_live(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
}

/// Id and restarts of a container.
pub fn container_state(pod: &Pod, container: &str) -> Option<ContainerState> {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let status = statuses.into_iter().find(|status| status.name == container)?;
    Some(ContainerState {
        container_id: status.container_id.clone().unwrap_or_default(),
        restart_count: status.restart_count,
    })
}

/// Whether a container runs.
pub fn container_runs(pod: &Pod, container: &str) -> bool {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses.into_iter().any(|status| {
        status.name == container && status.state.as_ref().is_some_and(|state| state.running.is_some())
    })
}

/// Pods of a selector.
///
/// # Errors
/// The request failed.
pub async fn list_pods(
    context: &Context,
    namespace: &str,
    selector: &LabelSelector,
) -> Result<Vec<Pod>, RequestError> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let text = selector_text(selector);
    let params = ListParams::default().labels(&text);
    let pods = bounded(format!("list the pods of {text}"), api.list(&params)).await?;
    Ok(pods.items)
}

/// What was found after the thaw.
#[derive(Clone, Debug, Default)]
pub struct After {
    pods: BTreeMap<String, Vec<Pod>>,
}

/// Reads the pods of every application again, outside the window.
///
/// # Errors
/// A request failed.
pub async fn read_again(context: &Context, resolution: &Resolution) -> Result<After, RequestError> {
    let mut pods = BTreeMap::new();
    for (application, selector) in &resolution.selectors {
        pods.insert(application.clone(), list_pods(context, &resolution.namespace, selector).await?);
    }
    Ok(After { pods })
}

impl After {
    /// Adds it to the record.
    pub fn complete(&self, resolved: &mut Resolved, record: &mut Record) {
        for application in &mut resolved.applications {
            application.pods_at_thawed =
                self.pods.get(&application.name).map(|pods| identities(pods)).unwrap_or_default();
        }
        for hold in &mut record.holds {
            let pods = self.pods.get(&hold.application).map(Vec::as_slice).unwrap_or_default();
            hold.container_at_thawed = pods
                .iter()
                .find(|pod| pod.uid().as_deref() == Some(hold.pod_uid.as_str()))
                .and_then(|pod| container_state(pod, &hold.container));
        }
    }
}
