//! Reads what a run is about: policy, pods, claims, volumes, classes, templates. Decides nothing.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod, ServiceAccount};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use stillpoint_api::backup::{Backup, POLICY_LABEL};
use stillpoint_api::group_snapshot::{VolumeGroupSnapshot, VolumeGroupSnapshotClass};
use stillpoint_api::policy::{Application, BackupPolicy, TemplateKind, TemplateRef};
use stillpoint_api::rule::ProtectionRule;
use stillpoint_api::snapshot::{VolumeSnapshot, VolumeSnapshotClass};
use stillpoint_api::template::{ClusterHookTemplate, HookTemplate, Recipe};

use super::Refusal;
use super::choose::Roles;
use super::pods::{list_all, list_pods};
use super::stages::VolumePaths;
use super::window::{Measured, measured};
use crate::context::{Context, HOOKS_ACCOUNT, RequestError, bounded};
use crate::rules;

/// Annotation of a pod that names its ClusterHookTemplate.
pub const TEMPLATE_ANNOTATION: &str = "stillpoint.dev/template";

/// What was read.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The policy, where the Backup names one that exists.
    pub policy: Option<BackupPolicy>,
    /// UID of the namespace.
    pub namespace_uid: String,
    /// The rules that hold for the namespace, in the order of their names.
    pub rules: Vec<ProtectionRule>,
    /// The applications.
    pub applications: Vec<ObservedApplication>,
    /// Whether the namespace has the hooks account.
    pub opted_in: bool,
    /// All snapshot classes; `None`: the snapshot API is not installed.
    pub classes: Option<Vec<VolumeSnapshotClass>>,
    /// What finished runs of the namespace measured of their storage path, newest first.
    pub measured: Vec<Measured>,
    /// All pods of the namespace: whoever may write to a member has to be held.
    pub pods: Vec<Pod>,
    /// All classes of group snapshots; `None`: nobody serves them.
    pub group_classes: Option<Vec<VolumeGroupSnapshotClass>>,
    /// Claims of the namespace with a snapshot that is being made or deleted, and the snapshot's name.
    pub in_flight: BTreeMap<String, String>,
}

/// One application as read.
#[derive(Clone, Debug)]
pub struct ObservedApplication {
    /// As the policy or the Backup says.
    pub spec: Application,
    /// Pods that its selector gives.
    pub pods: Vec<Pod>,
    /// What their role commands printed; filled by [`super::ask`].
    pub roles: Roles,
    /// Where their volumes' data lies; filled by [`super::ask`].
    pub volume_paths: VolumePaths,
    /// The template that was chosen, and why not.
    pub template: Result<(TemplateRef, Recipe), Refusal>,
    /// Claims that the pods mount, by name.
    pub claims: BTreeMap<String, (PersistentVolumeClaim, Option<PersistentVolume>)>,
}

/// Backups of a namespace that are read for what they measured, when the policy itself has none.
const MEASURED_PAGE: u32 = 100;

/// Reads everything that a run needs.
///
/// # Errors
/// A request failed, or the Backup's policy is not there.
pub async fn observe(context: &Context, backup: &Backup) -> Result<Observed, Refusal> {
    let namespace = backup.namespace().unwrap_or_default();
    let mut observed = Observed::default();
    let applications = match &backup.spec.run.policy_ref {
        None => backup.spec.run.applications.clone().unwrap_or_default(),
        Some(policy) => {
            let api: Api<BackupPolicy> = Api::namespaced(context.client.clone(), &namespace);
            let found = optional(&api, "BackupPolicy", &policy.name).await?;
            let applications =
                found.as_ref().map(|policy| policy.spec.applications.clone()).unwrap_or_default();
            observed.policy = found;
            applications
        }
    };
    let spaces: Api<Namespace> = Api::all(context.client.clone());
    let space = optional(&spaces, "Namespace", &namespace).await?;
    let space = space.map(|space| space.metadata).unwrap_or_default();
    observed.namespace_uid = space.uid.unwrap_or_default();
    let rules = rules::holding(context, &space.labels.unwrap_or_default()).await;
    observed.rules = rules.map_err(|error| Refusal::request(&error))?;
    let accounts: Api<ServiceAccount> = Api::namespaced(context.client.clone(), &namespace);
    observed.opted_in = optional(&accounts, "ServiceAccount", HOOKS_ACCOUNT).await?.is_some();
    (observed.classes, observed.in_flight) = snapshots(context, &namespace).await?;

    let mut catalog: Option<Vec<ClusterHookTemplate>> = None;
    for spec in applications {
        let pods =
            list_pods(context, &namespace, &spec.selector).await.map_err(|error| Refusal::request(&error))?;
        let template = template(context, &namespace, &spec, &pods, &mut catalog).await?;
        let claims = claims(context, &namespace, &pods).await?;
        observed.applications.push(ObservedApplication {
            spec,
            pods,
            roles: Roles::new(),
            volume_paths: VolumePaths::new(),
            template,
            claims,
        });
    }
    observed.pods = list_all(context, &namespace).await.map_err(|error| Refusal::request(&error))?;
    group_snapshots(context, &namespace, &mut observed).await?;
    // A run that finds no pods is refused whatever was measured, and the server looks through the whole namespace for the answer.
    if observed.applications.iter().any(|application| !application.pods.is_empty()) {
        let finished = finished(context, &namespace, backup.policy_name()).await;
        observed.measured =
            measured(&finished.map_err(|error| Refusal::request(&error))?, context.clock.wall());
    }
    Ok(observed)
}

/// Runs that may have measured the storage path: those of the policy, by label; where it has none, a page of the namespace's.
/// A namespace may hold a hundred thousand Backups with their evidence, and every run asks.
async fn finished(
    context: &Context,
    namespace: &str,
    policy: Option<&str>,
) -> Result<Vec<Backup>, RequestError> {
    let api: Api<Backup> = Api::namespaced(context.client.clone(), namespace);
    // A longer name is no label value.
    if let Some(policy) = policy.filter(|name| name.len() <= 63) {
        let own = ListParams::default().labels(&format!("{POLICY_LABEL}={policy}"));
        let own = bounded("list the backups of the policy", api.list(&own)).await?.items;
        // The Backup that asks is one of them.
        if own.len() > 1 {
            return Ok(own);
        }
    }
    let page = ListParams::default().limit(MEASURED_PAGE);
    Ok(bounded("list backups of the namespace", api.list(&page)).await?.items)
}

async fn optional<K>(api: &Api<K>, kind: &str, name: &str) -> Result<Option<K>, Refusal>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    bounded(format!("read {kind} {name}"), api.get_opt(name)).await.map_err(|error| Refusal::request(&error))
}

/// Classes of groups, and groups in flight. A cluster without the API has neither.
async fn group_snapshots(context: &Context, namespace: &str, observed: &mut Observed) -> Result<(), Refusal> {
    let classes: Api<VolumeGroupSnapshotClass> = Api::all(context.client.clone());
    match bounded("list group snapshot classes", classes.list(&ListParams::default())).await {
        Ok(classes) => observed.group_classes = Some(classes.items),
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(Refusal::request(&error)),
    }
    let api: Api<VolumeGroupSnapshot> = Api::namespaced(context.client.clone(), namespace);
    let all = bounded("list group snapshots", api.list(&ListParams::default())).await;
    let all = all.map_err(|error| Refusal::request(&error))?.items;
    let claims: Vec<&PersistentVolumeClaim> = observed
        .applications
        .iter()
        .flat_map(|application| application.claims.values().map(|(claim, _)| claim))
        .collect();
    let found = super::groups::in_flight(&all, &claims);
    observed.in_flight.extend(found);
    Ok(())
}

type Snapshots = (Option<Vec<VolumeSnapshotClass>>, BTreeMap<String, String>);

async fn snapshots(context: &Context, namespace: &str) -> Result<Snapshots, Refusal> {
    let classes: Api<VolumeSnapshotClass> = Api::all(context.client.clone());
    let listed = bounded("list snapshot classes", classes.list(&ListParams::default())).await;
    let classes = match listed {
        Ok(classes) => classes.items,
        // 404 on a list: nobody serves the resource.
        Err(error) if error.is_not_found() => return Ok((None, BTreeMap::new())),
        Err(error) => return Err(Refusal::request(&error)),
    };
    let api: Api<VolumeSnapshot> = Api::namespaced(context.client.clone(), namespace);
    let all = bounded("list snapshots", api.list(&ListParams::default())).await;
    let mut in_flight = BTreeMap::new();
    for snapshot in all.map_err(|error| Refusal::request(&error))?.items {
        let cut = snapshot
            .status
            .as_ref()
            .is_some_and(|status| status.creation_time.is_some() || status.ready_to_use == Some(true));
        let moving = !cut || snapshot.metadata.deletion_timestamp.is_some();
        if let (true, Some(claim)) = (moving, &snapshot.spec.source.persistent_volume_claim_name) {
            in_flight.insert(claim.clone(), snapshot.name_any());
        }
    }
    Ok((Some(classes), in_flight))
}

async fn template(
    context: &Context,
    namespace: &str,
    spec: &Application,
    pods: &[Pod],
    catalog: &mut Option<Vec<ClusterHookTemplate>>,
) -> Result<Result<(TemplateRef, Recipe), Refusal>, Refusal> {
    let cluster: Api<ClusterHookTemplate> = Api::all(context.client.clone());
    let annotated = pods.iter().find_map(|pod| pod.annotations().get(TEMPLATE_ANNOTATION));
    let reference = match (&spec.template_ref, annotated) {
        (Some(reference), _) => Some(reference.clone()),
        // Always a cluster template: whoever may annotate a pod must not choose what runs in it.
        (None, Some(name)) => {
            Some(TemplateRef { kind: TemplateKind::ClusterHookTemplate, name: name.clone() })
        }
        (None, None) => None,
    };
    if let Some(reference) = reference {
        let found = match reference.kind {
            TemplateKind::ClusterHookTemplate => {
                optional(&cluster, "ClusterHookTemplate", &reference.name).await?.map(|found| found.spec.0)
            }
            TemplateKind::HookTemplate => {
                let local: Api<HookTemplate> = Api::namespaced(context.client.clone(), namespace);
                optional(&local, "HookTemplate", &reference.name).await?.map(|found| found.spec.0)
            }
        };
        return Ok(match found {
            Some(recipe) => Ok((reference, recipe)),
            None => Err(Refusal::stands(
                "TemplateNotFound",
                format!(
                    "application {}: there is no {:?} {}; `kubectl get spct` lists the cluster's, config/templates has \
                     the shipped ones",
                    spec.name, reference.kind, reference.name
                ),
            )),
        });
    }
    if catalog.is_none() {
        let listed = bounded("list cluster templates", cluster.list(&ListParams::default())).await;
        *catalog = Some(listed.map_err(|error| Refusal::request(&error))?.items);
    }
    let images: Vec<&str> = pods
        .iter()
        .flat_map(|pod| pod.spec.iter().flat_map(|spec| &spec.containers))
        .filter_map(|container| container.image.as_deref())
        .collect();
    let templates = catalog.iter().flatten();
    let named: Vec<(String, &Recipe)> =
        templates.map(|template| (template.name_any(), &template.spec.0)).collect();
    let detected = stillpoint_api::template::detect(
        &images,
        named.iter().map(|(name, recipe)| (name.as_str(), *recipe)),
    );
    Ok(match detected.and_then(|found| named.into_iter().find(|(name, _)| *name == found.template)) {
        Some((name, recipe)) => {
            Ok((TemplateRef { kind: TemplateKind::ClusterHookTemplate, name }, recipe.clone()))
        }
        None => Err(Refusal::stands(
            "NoTemplate",
            format!(
                "application {}: no template fits the images {}; set applications[].templateRef, or annotate the pod \
                 with {TEMPLATE_ANNOTATION}",
                spec.name,
                images.join(", ")
            ),
        )),
    })
}

async fn claims(
    context: &Context,
    namespace: &str,
    pods: &[Pod],
) -> Result<BTreeMap<String, (PersistentVolumeClaim, Option<PersistentVolume>)>, Refusal> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    let mut found = BTreeMap::new();
    for name in pods.iter().flat_map(super::pods::claim_names) {
        if found.contains_key(&name) {
            continue;
        }
        let Some(claim) = optional(&claims, "PersistentVolumeClaim", &name).await? else { continue };
        let volume = match claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()) {
            Some(volume) => optional(&volumes, "PersistentVolume", &volume).await?,
            None => None,
        };
        found.insert(name, (claim, volume));
    }
    Ok(found)
}
