//! Pods as the run sees them: which are meant, what they mount, and whether they are still the same.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use stillpoint_api::evidence::{ContainerState, Resolved};

use super::choose::{Chosen, PodRule, Roles};
use super::{Resolution, ask};
use crate::context::{Context, RequestError, bounded};
use crate::run::Record;

/// How long a role is asked for that could not be heard: a restarted kubelet serves again in a few seconds.
const ROLE_PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two such questions.
const ROLE_LOOK: Duration = Duration::from_secs(1);

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

/// Whether a pod may write to a claim: it mounts it, and neither its volume nor every mount of it is read-only.
pub fn writes(pod: &Pod, claim: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let volumes = spec.volumes.iter().flatten().filter(|volume| {
        volume
            .persistent_volume_claim
            .as_ref()
            .is_some_and(|source| source.claim_name == claim && source.read_only != Some(true))
    });
    let names: Vec<&str> = volumes.map(|volume| volume.name.as_str()).collect();
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let mounts = containers
        .map(|one| (&one.volume_mounts, &one.volume_devices))
        .chain(ephemeral.map(|one| (&one.volume_mounts, &one.volume_devices)));
    mounts.into_iter().any(|(mounts, devices)| {
        let mounted = mounts
            .iter()
            .flatten()
            .any(|mount| mount.read_only != Some(true) && names.contains(&mount.name.as_str()));
        mounted || devices.iter().flatten().any(|device| names.contains(&device.name.as_str()))
    })
}

/// `name/uid` of pods that are meant to run, sorted.
pub fn identities<'p>(pods: impl IntoIterator<Item = &'p Pod>) -> Vec<String> {
    let mut all: Vec<String> = pods
        .into_iter()
        .filter(|pod| is_live(pod))
        .map(|pod| format!("{}/{}", pod.name_any(), pod.uid().unwrap_or_default()))
        .collect();
    all.sort();
    all.dedup();
    all
}

/// Neither being deleted nor ended.
pub fn is_live(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && !has_ended(pod)
}

/// All its containers ended and none comes back.
pub fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
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

/// All pods of a namespace.
///
/// # Errors
/// The request failed.
pub async fn list_all(context: &Context, namespace: &str) -> Result<Vec<Pod>, RequestError> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let params = ListParams::default();
    Ok(bounded("list the pods of the namespace", api.list(&params)).await?.items)
}

/// What was found after the thaw.
#[derive(Clone, Debug, Default)]
pub struct After {
    found: BTreeMap<String, Found>,
}

/// One application after the thaw.
#[derive(Clone, Debug, Default)]
struct Found {
    pods: Vec<Pod>,
    /// Every other pod that may write to a member of the application.
    writers: Vec<Pod>,
    /// What the role rule chooses now.
    chosen: Vec<String>,
}

/// Reads the pods of every application again and asks for their roles, outside the window.
///
/// # Errors
/// A request failed.
pub async fn read_again(context: &Context, resolution: &Resolution) -> Result<After, RequestError> {
    let all = list_all(context, &resolution.namespace).await?;
    let mut found = BTreeMap::new();
    for again in &resolution.again {
        let pods = list_pods(context, &resolution.namespace, &again.application.selector).await?;
        let uids: Vec<Option<String>> = pods.iter().map(ResourceExt::uid).collect();
        let writers = all.iter().filter(|pod| !has_ended(pod) && !uids.contains(&pod.uid()));
        let writers =
            writers.filter(|pod| again.claims.iter().any(|claim| writes(pod, claim))).cloned().collect();
        let name = &again.application.name;
        let roles = roles_patiently(context, &resolution.namespace, name, &again.rule, &pods).await;
        let chosen = again.rule.choose(&again.application, &pods, &roles).unwrap_or_default();
        let chosen = evidence(&chosen);
        found.insert(name.clone(), Found { pods, writers, chosen });
    }
    Ok(After { found })
}

/// The roles, asked again while one of them could not be heard: the window is over, and a node agent that restarts must not
/// cost the point.
async fn roles_patiently(
    context: &Context,
    namespace: &str,
    application: &str,
    rule: &PodRule,
    pods: &[Pod],
) -> Roles {
    let until = context.clock.mono() + ROLE_PATIENCE;
    loop {
        let roles = ask::roles(context, namespace, application, rule, pods).await;
        let unheard = roles.values().any(|answer| answer.as_ref().is_err_and(|why| why.may_pass));
        if !unheard || context.clock.mono() >= until {
            return roles;
        }
        tokio::time::sleep(ROLE_LOOK).await;
    }
}

/// What a role rule chose, for the record.
pub fn evidence(chosen: &[Chosen<'_>]) -> Vec<String> {
    let mut all: Vec<String> = chosen.iter().filter_map(Chosen::evidence).collect();
    all.sort();
    all
}

impl After {
    /// Adds it to the record.
    pub fn complete(&self, resolved: &mut Resolved, record: &mut Record) {
        for application in &mut resolved.applications {
            let Some(found) = self.found.get(&application.name) else { continue };
            application.pods_at_thawed = identities(found.pods.iter().chain(&found.writers));
            application.chosen_at_thawed.clone_from(&found.chosen);
        }
        for hold in &mut record.holds {
            let pods =
                self.found.get(&hold.application).map(|found| found.pods.as_slice()).unwrap_or_default();
            hold.container_at_thawed = pods
                .iter()
                .find(|pod| pod.uid().as_deref() == Some(hold.pod_uid.as_str()))
                .and_then(|pod| container_state(pod, &hold.container));
        }
    }
}
