//! From what was read to a plan, or to the first reason why not. Pure.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt;
use stillpoint_api::backup::{Backup, Trigger};
use stillpoint_api::clock::Mono;
use stillpoint_api::evidence::{HoldKind, MemberEvidence, Resolved, ResolvedApplication};
use stillpoint_api::policy::{
    BackupPolicySpec, Continuity, FreezeBounds, PodChoice, Requirement, RunBounds, SnapshotOptions,
};
use stillpoint_api::snapshot::VolumeSnapshotClass;
use stillpoint_api::template::{Freeze, Recipe, Session, digest, substitute};

use super::observe::{Observed, ObservedApplication};
use super::pods::{container_runs, container_state, identities, is_live};
use super::{Refusal, Resolution, RunHold, RunPrepare};
use crate::context::HOOKS_ACCOUNT;
use crate::exec::ExecTarget;
use crate::hold::Nonce;
use crate::run::{ApplicationId, CutPlan, HoldPlan, MAX_LEASE, MemberId, Plan};
use crate::session::SessionTexts;
use crate::storage::StorageTable;

/// Default time for prepare (docs/api.md).
const PREPARE_TIMEOUT: Duration = Duration::from_secs(60);
/// The snapshot stack counts as down after this, and a second more per member: at the default client throttle each
/// member beyond the first few costs about a second (measured).
const STACK_PATIENCE: Duration = Duration::from_secs(5);

/// What the decision needs besides what was read.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// The Backup.
    pub backup: &'a Backup,
    /// The attempt, from 1.
    pub attempt: u32,
    /// Nonce of the attempt.
    pub nonce: &'a Nonce,
    /// A nonce for each application's hold.
    pub hold_nonces: &'a [Nonce],
    /// What is known about drivers.
    pub storage: &'a StorageTable,
    /// Whether hooks run as the namespace's account.
    pub impersonate: bool,
}

/// The run's options, from its policy or from the Backup itself.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) freeze: FreezeBounds,
    pub(super) bounds: RunBounds,
    pub(super) snapshot: SnapshotOptions,
    pub(super) requirement: Requirement,
    pub(super) min_continuity: Continuity,
}

impl Options {
    fn of_policy(spec: &BackupPolicySpec) -> Self {
        Self {
            freeze: spec.freeze.unwrap_or_default(),
            bounds: spec.run.unwrap_or_default(),
            snapshot: spec.snapshot.clone().unwrap_or_default(),
            requirement: spec.consistency,
            min_continuity: spec.min_continuity,
        }
    }

    fn of_backup(backup: &Backup) -> Self {
        let run = &backup.spec.run;
        Self {
            freeze: run.freeze.unwrap_or_default(),
            bounds: run.run.unwrap_or_default(),
            snapshot: run.snapshot.clone().unwrap_or_default(),
            requirement: run.consistency.unwrap_or_default(),
            min_continuity: run.min_continuity.unwrap_or_default(),
        }
    }
}

fn options(backup: &Backup, observed: &Observed) -> Options {
    match &observed.policy {
        Some(policy) => Options::of_policy(&policy.spec),
        None => Options::of_backup(backup),
    }
}

/// The plan of an attempt.
///
/// # Errors
/// The first reason why it cannot begin.
pub fn decide(given: &Given<'_>, observed: &Observed) -> Result<Resolution, Refusal> {
    let backup = given.backup;
    authority(backup, observed)?;
    let options = options(backup, observed);
    let classes = observed.classes.as_ref().ok_or_else(|| {
        Refusal::stands(
            "SnapshotApiMissing",
            "the cluster does not serve snapshot.storage.k8s.io/v1: install the snapshot CRDs and controller",
        )
    })?;
    let mut resolution = Resolution {
        namespace: backup.namespace().unwrap_or_default(),
        namespace_uid: observed.namespace_uid.clone(),
        backup: backup.name_any(),
        backup_uid: backup.uid().unwrap_or_default(),
        policy: backup.policy_name().map(ToOwned::to_owned),
        attempt: given.attempt,
        bounds: options.bounds,
        plan: Plan {
            required: options.requirement == Requirement::Required,
            max_hold: options.freeze.max_hold().get(),
            acquire_timeout: options.freeze.acquire_timeout(),
            stack_patience: STACK_PATIENCE,
            prepares: Vec::new(),
            holds: Vec::new(),
            members: Vec::new(),
            cuts: Vec::new(),
            fence: Mono::from_origin(Duration::MAX),
        },
        prepares: Vec::new(),
        holds: Vec::new(),
        classes: Vec::new(),
        resolved: Resolved {
            policy_uid: observed.policy.as_ref().and_then(ResourceExt::uid),
            policy_generation: observed.policy.as_ref().and_then(|policy| policy.metadata.generation),
            max_hold_millis: u64::try_from(options.freeze.max_hold().get().as_millis()).unwrap_or(u64::MAX),
            min_continuity: options.min_continuity,
            requirement: options.requirement,
            applications: Vec::new(),
        },
        selectors: Vec::new(),
    };
    for (index, application) in observed.applications.iter().enumerate() {
        let one = One { given, observed, options: &options, classes, application };
        one.resolve(given.hold_nonces.get(index), &mut resolution)?;
    }
    if resolution.plan.members.is_empty() {
        return Err(Refusal::stands(
            "NoVolumes",
            "the selected pods mount no claim that is not excluded: there is nothing to snapshot",
        ));
    }
    let members = 0..resolution.plan.members.len();
    resolution.plan.cuts = members.map(|index| CutPlan::single(MemberId(index))).collect();
    let members = u32::try_from(resolution.plan.members.len()).unwrap_or(u32::MAX);
    resolution.plan.stack_patience += Duration::from_secs(1) * members;
    Ok(resolution)
}

/// Whose run it is: the trigger, the policy and the namespace's opt-in (docs/authority.md §4).
fn authority(backup: &Backup, observed: &Observed) -> Result<(), Refusal> {
    let namespace = backup.namespace().unwrap_or_default();
    if let Some(reference) = &backup.spec.run.policy_ref {
        let Some(policy) = &observed.policy else {
            return Err(Refusal::stands(
                "PolicyNotFound",
                format!("there is no BackupPolicy {} in namespace {namespace}", reference.name),
            ));
        };
        if reference.uid.is_some() && reference.uid != policy.uid() {
            return Err(Refusal::stands(
                "NotOurs",
                format!("BackupPolicy {} was replaced since this run was created", reference.name),
            ));
        }
        let found = stillpoint_api::validate::policy(policy);
        if let Some(first) = found.first() {
            return Err(Refusal::stands(
                "PolicyNotAccepted",
                format!("BackupPolicy {}: {}: {}", reference.name, first.path, first.message),
            ));
        }
    }
    if backup.spec.trigger != Trigger::Manual
        && (backup.spec.run.policy_ref.is_none() || backup.spec.run.slot.is_none())
    {
        return Err(Refusal::stands("NotOurs", "a scheduled run names its policy and its slot"));
    }
    if !observed.opted_in {
        return Err(Refusal::stands(
            "NamespaceNotOptedIn",
            format!(
                "namespace {namespace} has no ServiceAccount {HOOKS_ACCOUNT}: create it and bind ClusterRole \
                 {HOOKS_ACCOUNT} to it, so that hooks may run here (config/samples/namespace-optin.yaml)"
            ),
        ));
    }
    Ok(())
}

/// One application being resolved.
pub(super) struct One<'a> {
    pub(super) given: &'a Given<'a>,
    pub(super) observed: &'a Observed,
    pub(super) options: &'a Options,
    pub(super) classes: &'a [VolumeSnapshotClass],
    pub(super) application: &'a ObservedApplication,
}

impl One<'_> {
    pub(super) fn name(&self) -> &str {
        &self.application.spec.name
    }

    fn resolve(&self, nonce: Option<&Nonce>, into: &mut Resolution) -> Result<(), Refusal> {
        let (reference, recipe) = self.application.template.clone()?;
        let recipe = substitute(&recipe, &self.application.spec.parameters).map_err(|found| {
            let first = found.first().map(|finding| finding.message.clone()).unwrap_or_default();
            Refusal::stands(
                "ParameterInvalid",
                format!("application {}: template {}: {first}", self.name(), reference.name),
            )
        })?;
        if let Some(first) = stillpoint_api::validate::recipe(&recipe, "template", &reference.name).first() {
            return Err(Refusal::stands(
                "TemplateInvalid",
                format!("template {}: {}: {}", reference.name, first.path, first.message),
            ));
        }
        let pod = self.pod(&recipe)?;
        let container = self.container(pod, &recipe)?;
        let members = self.members(pod, container)?;
        let hold = hold_kind(&recipe);
        self.storage_fits(&recipe, hold, &members)?;
        self.probes_tolerate(container, hold)?;

        let crash_safe = recipe.crash_safe.clone().unwrap_or_default();
        let session = match &recipe.freeze {
            Some(Freeze::Session(session)) => Some(session.as_ref()),
            Some(Freeze::Commands(_) | Freeze::None {}) | None => None,
        };
        into.resolved.applications.push(ResolvedApplication {
            name: self.name().to_owned(),
            template: Some(reference.clone()),
            digest: digest(&recipe),
            hold,
            crash_safe: crash_safe.source,
            copy_safe: recipe.copy_safe.clone().map(|safe| safe.proof).unwrap_or_default(),
            layout: recipe.layout,
            stages: 0,
            probed: false,
            settings: crash_safe.settings,
            position: session.and_then(|session| session.position.clone()),
            thaw_proves_lock: session
                .and_then(|session| session.thaw_proves_lock.clone())
                .unwrap_or_default(),
            local: session.and_then(|session| session.local.clone()),
            data_paths: recipe.data_paths.clone(),
            data_time: recipe.data_time,
            prepared_at: None,
            pods_at_ready: identities(&self.application.pods),
            pods_at_thawed: Vec::new(),
        });
        into.selectors.push((self.name().to_owned(), self.application.spec.selector.clone()));
        if let Some(prepare) = &recipe.prepare {
            into.plan.prepares.push(ApplicationId(into.prepares.len()));
            into.prepares.push(RunPrepare {
                application: self.name().to_owned(),
                target: self.target(pod, container, prepare.command.clone(), false),
                timeout: prepare.timeout.map_or(PREPARE_TIMEOUT, |timeout| timeout.get()),
            });
        }
        if let (Some(session), Some(nonce)) = (session, nonce) {
            let held = self.hold(pod, container, session, &recipe, &members, nonce)?;
            into.plan.holds.push(held.plan.clone());
            into.holds.push(held);
        }
        for (member, class) in members {
            into.plan.members.push(member);
            into.classes.push(class);
        }
        Ok(())
    }

    /// The one pod that is held. Several pods of one application come with the roles.
    fn pod(&self, recipe: &Recipe) -> Result<&Pod, Refusal> {
        let live: Vec<&Pod> = self.application.pods.iter().filter(|pod| is_live(pod)).collect();
        match live.as_slice() {
            [] => Err(Refusal::may_pass(
                "NoPods",
                format!(
                    "application {}: no pod matches {:?}; correct applications[].selector, or start the workload",
                    self.name(),
                    super::pods::selector_text(&self.application.spec.selector)
                ),
            )),
            [pod] => Ok(pod),
            several => {
                let names = several.iter().map(|pod| pod.name_any()).collect::<Vec<_>>().join(", ");
                let rule =
                    match (self.application.spec.pods, recipe.target.as_ref().map(|target| target.pods)) {
                        (PodChoice::One, _) | (PodChoice::Auto, Some(PodChoice::One)) => {
                            "exactly one is meant"
                        }
                        (PodChoice::Auto | PodChoice::All, _) => "holding several pods is not supported yet",
                    };
                Err(Refusal::stands(
                    "SeveralPods",
                    format!(
                        "application {}: {} pods match ({names}), and {rule}: narrow the selector",
                        self.name(),
                        several.len()
                    ),
                ))
            }
        }
    }

    fn container<'p>(&self, pod: &'p Pod, recipe: &Recipe) -> Result<&'p Container, Refusal> {
        let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
        let asked = self.application.spec.container.as_deref();
        // The template's name is a default for images that use it, not a demand.
        let of_template = recipe.target.as_ref().and_then(|target| target.container.as_deref());
        let by_name = |name: &str| containers.iter().find(|container| container.name == name);
        let chosen = match asked {
            Some(name) => by_name(name),
            None => of_template.and_then(by_name).or_else(|| containers.first()),
        };
        let Some(container) = chosen else {
            let names =
                containers.iter().map(|container| container.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Refusal::stands(
                "ContainerNotFound",
                format!(
                    "application {}: pod {} has no container {}; it has {names}",
                    self.name(),
                    pod.name_any(),
                    asked.unwrap_or("")
                ),
            ));
        };
        if !container_runs(pod, &container.name) {
            return Err(Refusal::may_pass(
                "PodNotReady",
                format!(
                    "application {}: container {} of pod {} does not run",
                    self.name(),
                    container.name,
                    pod.name_any()
                ),
            ));
        }
        Ok(container)
    }

    /// A freeze that outlasts the liveness probe would end in a restart.
    fn probes_tolerate(&self, container: &Container, hold: HoldKind) -> Result<(), Refusal> {
        let (true, Some(probe)) = (hold.locks(), container.liveness_probe.as_ref()) else { return Ok(()) };
        let period = u64::try_from(probe.period_seconds.unwrap_or(10)).unwrap_or(10);
        let failures = u64::try_from(probe.failure_threshold.unwrap_or(3)).unwrap_or(3);
        let tolerated = Duration::from_secs(period * failures);
        let most = self.options.freeze.max_hold().get();
        if tolerated < most {
            return Err(Refusal::stands(
                "ProbeTooStrict",
                format!(
                    "application {}: the liveness probe of container {} restarts it after {tolerated:?}, and a freeze \
                     may take {most:?}: set freeze.maxHold to at most {}s, or relax the probe",
                    self.name(),
                    container.name,
                    tolerated.as_secs()
                ),
            ));
        }
        Ok(())
    }

    fn target(&self, pod: &Pod, container: &Container, argv: Vec<String>, stdin: bool) -> ExecTarget {
        let namespace = self.given.backup.namespace().unwrap_or_default();
        ExecTarget {
            impersonate: self.given.impersonate.then(|| ExecTarget::hooks_user(&namespace)),
            namespace,
            pod: pod.name_any(),
            pod_uid: pod.uid().unwrap_or_default(),
            container: container.name.clone(),
            argv,
            stdin,
        }
    }

    fn hold(
        &self,
        pod: &Pod,
        container: &Container,
        session: &Session,
        recipe: &Recipe,
        members: &[(MemberEvidence, String)],
        nonce: &Nonce,
    ) -> Result<RunHold, Refusal> {
        let texts = SessionTexts::parse(session).map_err(|error| {
            Refusal::stands("TemplateInvalid", format!("application {}: {error}", self.name()))
        })?;
        let lease = session.lease.duration.map_or(MAX_LEASE, |lease| lease.get()).min(MAX_LEASE);
        Ok(RunHold {
            plan: HoldPlan {
                application: self.name().to_owned(),
                pod_name: pod.name_any(),
                pod_uid: pod.uid().unwrap_or_default(),
                container: container.name.clone(),
                container_state: container_state(pod, &container.name).unwrap_or_default(),
                nonce: nonce.to_string(),
                locks: session.locks,
                lease,
                lease_unit: Some(session.lease.unit),
                order: 0,
                stages: 1,
                canary: false,
                stall_probe: false,
                local: session.local.clone(),
                data_paths: recipe.data_paths.clone(),
                mount_paths: members.iter().flat_map(|(member, _)| member.mount_paths.clone()).collect(),
            },
            target: self.target(pod, container, session.command.clone(), true),
            texts,
            nonce: nonce.clone(),
        })
    }
}

fn hold_kind(recipe: &Recipe) -> HoldKind {
    match &recipe.freeze {
        Some(Freeze::Session(session)) if session.locks => HoldKind::Session,
        Some(Freeze::Session(_)) => HoldKind::Observer,
        Some(Freeze::Commands(_)) => HoldKind::Commands,
        Some(Freeze::None {}) => HoldKind::None,
        None => HoldKind::Commands,
    }
}
