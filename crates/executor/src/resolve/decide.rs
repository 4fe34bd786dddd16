//! From what was read to a plan, or to the first reason why not. Pure.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt;
use stillpoint_api::backup::{Backup, Trigger};
use stillpoint_api::clock::Mono;
use stillpoint_api::evidence::{HoldKind, Resolved, ResolvedApplication};
use stillpoint_api::policy::{
    BackupPolicySpec, Continuity, FreezeBounds, OnBlocked, Requirement, RunBounds, SnapshotOptions,
    TemplateRef,
};
use stillpoint_api::rule::judge;
use stillpoint_api::snapshot::VolumeSnapshotClass;
use stillpoint_api::template::{Freeze, Recipe, StallProbe, digest, substitute};

use super::choose::PodRule;
use super::groups::{self, GroupOptions};
use super::members::{Planned, foreign_mounts};
use super::observe::{Observed, ObservedApplication};
use super::pods::{container_state, evidence, identities, volume_claims};
use super::shared::{self, Owners};
use super::{LookAgain, Refusal, Resolution, RunHold, RunPrepare, limits, window};
use crate::context::HOOKS_ACCOUNT;
use crate::exec::ExecTarget;
use crate::hold::{HoldRecipe, Nonce};
use crate::rules;
use crate::run::{ApplicationId, CutPlan, HoldPlan, MemberId, Plan};
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
    /// Nonces for the holds, one each: at least as many as there may be holds.
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
    admit(backup, observed)?;
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
            api_clock: None,
        },
        prepares: Vec::new(),
        holds: Vec::new(),
        classes: Vec::new(),
        groups: Vec::new(),
        resolved: Resolved {
            policy_uid: observed.policy.as_ref().and_then(ResourceExt::uid),
            policy_generation: observed.policy.as_ref().and_then(|policy| policy.metadata.generation),
            max_hold_millis: u64::try_from(options.freeze.max_hold().get().as_millis()).unwrap_or(u64::MAX),
            min_continuity: options.min_continuity,
            requirement: options.requirement,
            applications: Vec::new(),
        },
        again: Vec::new(),
        recipes: Vec::new(),
    };
    let mut picked = Vec::new();
    for application in &observed.applications {
        picked.push(One { given, observed, options: &options, classes, application }.pick()?);
    }
    let owners = shared::owners(&picked);
    shared::writers_are_held(&observed.pods, &picked, &owners)?;
    let mut nonces = given.hold_nonces.iter();
    for (index, application) in picked.iter().enumerate() {
        application.resolve(index, &owners, &mut nonces, &mut resolution)?;
    }
    if resolution.plan.members.is_empty() {
        return Err(Refusal::stands(
            "NoVolumes",
            "the selected pods mount no claim that is not excluded: there is nothing to snapshot",
        ));
    }
    let members = resolution.plan.members.iter().enumerate();
    resolution.plan.cuts = members
        .map(|(index, member)| CutPlan { stage: member.stage, ..CutPlan::single(MemberId(index)) })
        .collect();
    let grouping = GroupOptions {
        choice: options.snapshot.group,
        classes: observed.group_classes.as_deref(),
        backup: &resolution.backup,
        backup_uid: &resolution.backup_uid,
        attempt: given.attempt,
        nonce: given.nonce.as_str(),
    };
    let applications = &resolution.resolved.applications;
    resolution.groups = groups::join(&grouping, applications, &mut resolution.plan)?;
    for application in &picked {
        application.fits(&resolution.plan)?;
    }
    let classes = resolution.classes.iter().map(String::as_str);
    let groups = resolution.groups.iter().map(|group| group.class.as_str());
    let using = judge::Using { classes: unique(classes.chain(groups)), ..judge::Using::default() };
    rules::inside(&judge::run(&using, &observed.rules))?;
    limits::check(&resolution)?;
    window::check(&resolution.plan, &observed.measured)?;
    let members = u32::try_from(resolution.plan.members.len()).unwrap_or(u32::MAX);
    resolution.plan.stack_patience += Duration::from_secs(1) * members;
    Ok(resolution)
}

/// Each name once, sorted.
fn unique<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    names.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

/// Whose run it is: the trigger, the policy and the namespace's opt-in (docs/authority.md §4); and whether every
/// ProtectionRule lets it use its templates and hold as long as it may. Nothing of a template that is not allowed runs.
///
/// # Errors
/// The first reason why nothing may run for it.
pub fn admit(backup: &Backup, observed: &Observed) -> Result<(), Refusal> {
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
    let chosen = observed.applications.iter().filter_map(|application| {
        let (template, _) = application.template.as_ref().ok()?;
        Some((application.spec.name.as_str(), template))
    });
    let using = judge::Using {
        templates: chosen.collect(),
        classes: Vec::new(),
        max_hold: options(backup, observed).freeze.max_hold().get(),
    };
    rules::inside(&judge::run(&using, &observed.rules))
}

/// The template of an application with its parameters, as it will run.
///
/// # Errors
/// There is none, or it cannot be used.
pub fn recipe_of(application: &ObservedApplication) -> Result<(TemplateRef, Recipe), Refusal> {
    let name = &application.spec.name;
    let (reference, recipe) = application.template.clone()?;
    // Before, because placeholders are judged where they stand; and after, because a parameter may be a command.
    let sound = |recipe: &Recipe| match stillpoint_api::validate::recipe(recipe, "template", &reference.name)
        .first()
    {
        Some(first) => Err(Refusal::stands(
            "TemplateInvalid",
            format!("template {}: {}: {}", reference.name, first.path, first.message),
        )),
        None => Ok(()),
    };
    sound(&recipe)?;
    let recipe = substitute(&recipe, &application.spec.parameters).map_err(|found| {
        let first = found.first().map(|finding| finding.message.clone()).unwrap_or_default();
        Refusal::stands(
            "ParameterInvalid",
            format!("application {name}: template {}: {first}", reference.name),
        )
    })?;
    sound(&recipe)?;
    Ok((reference, recipe))
}

/// One application being resolved.
#[derive(Clone, Copy)]
pub(super) struct One<'a> {
    pub(super) given: &'a Given<'a>,
    pub(super) observed: &'a Observed,
    pub(super) options: &'a Options,
    pub(super) classes: &'a [VolumeSnapshotClass],
    pub(super) application: &'a ObservedApplication,
}

/// An application with its template and its pods.
pub(super) struct Picked<'a> {
    pub(super) one: One<'a>,
    pub(super) reference: TemplateRef,
    pub(super) recipe: Recipe,
    pub(super) rule: PodRule,
    pub(super) held: Vec<HeldPod<'a>>,
    chosen: Vec<String>,
}

/// A pod that is held, and in which container.
#[derive(Clone, Copy)]
pub(super) struct HeldPod<'a> {
    pub(super) pod: &'a Pod,
    pub(super) container: &'a Container,
}

impl<'a> One<'a> {
    pub(super) fn name(&self) -> &'a str {
        &self.application.spec.name
    }

    fn pick(self) -> Result<Picked<'a>, Refusal> {
        let (reference, recipe) = recipe_of(self.application)?;
        let rule = PodRule::of(&self.application.spec, &recipe);
        let chosen = rule.choose(&self.application.spec, &self.application.pods, &self.application.roles)?;
        let mut held = Vec::new();
        for one in &chosen {
            held.push(HeldPod { pod: one.pod, container: rule.container.running(self.name(), one.pod)? });
        }
        let chosen = evidence(&chosen);
        Ok(Picked { one: self, reference, recipe, rule, held, chosen })
    }
}

impl Picked<'_> {
    pub(super) fn name(&self) -> &str {
        self.one.name()
    }

    /// Whether a pod volume or its claim is left out by the policy.
    fn excludes(&self, volume: &String, claim: &String) -> bool {
        let volumes = self.one.application.spec.volumes.as_ref();
        volumes.is_some_and(|volumes| volumes.exclude.contains(volume) || volumes.exclude.contains(claim))
    }

    /// Pod volume and claim of everything that the pod brings into the run.
    pub(super) fn claims_of(&self, pod: &Pod) -> Vec<(String, String)> {
        let all = volume_claims(pod).into_iter();
        all.filter(|(volume, claim)| !self.excludes(volume, claim)).collect()
    }

    fn resolve<'n>(
        &self,
        index: usize,
        owners: &Owners,
        nonces: &mut impl Iterator<Item = &'n Nonce>,
        into: &mut Resolution,
    ) -> Result<(), Refusal> {
        let hold = hold_kind(&self.recipe);
        self.blockers_can_be_ended(hold)?;
        let mut members = self.members(index, owners)?;
        let stages = self.stage(&mut members)?;
        into.resolved.applications.push(self.resolved(hold, stages));
        into.recipes.push(self.recipe.clone());
        into.again.push(LookAgain {
            application: self.one.application.spec.clone(),
            rule: self.rule.clone(),
            claims: members.iter().map(|planned| planned.member.claim_name.clone()).collect(),
        });
        for held in &self.held {
            self.probes_tolerate(held.container, hold)?;
            if let Some(prepare) = &self.recipe.prepare {
                into.plan.prepares.push(ApplicationId(into.prepares.len()));
                into.prepares.push(RunPrepare {
                    application: self.name().to_owned(),
                    target: self.target(held, prepare.command.clone(), false),
                    timeout: prepare.timeout.map_or(PREPARE_TIMEOUT, |timeout| timeout.get()),
                    messages: self.recipe.messages.clone(),
                });
            }
            if hold != HoldKind::None {
                let nonce = nonces.next().ok_or_else(limits::too_many_holds)?;
                let how = HoldRecipe::of(&self.recipe, nonce).map_err(|error| {
                    Refusal::stands("TemplateInvalid", format!("application {}: {error}", self.name()))
                })?;
                let Some(how) = how else { continue };
                let mut held = self.hold(held, how, &members, nonce);
                held.plan.stages = stages;
                into.plan.holds.push(held.plan.clone());
                into.holds.push(held);
            }
        }
        for planned in members {
            into.plan.members.push(planned.member);
            into.classes.push(planned.class);
        }
        Ok(())
    }

    /// What the template claims about the application, for the record.
    fn resolved(&self, hold: HoldKind, stages: u32) -> ResolvedApplication {
        let recipe = &self.recipe;
        let crash_safe = recipe.crash_safe.clone().unwrap_or_default();
        let session = match &recipe.freeze {
            Some(Freeze::Session(session)) => Some(session.as_ref()),
            Some(Freeze::Commands(_) | Freeze::None {}) | None => None,
        };
        ResolvedApplication {
            name: self.name().to_owned(),
            template: Some(self.reference.clone()),
            digest: digest(recipe),
            hold,
            crash_safe: crash_safe.source,
            copy_safe: recipe.copy_safe.clone().map(|safe| safe.proof).unwrap_or_default(),
            layout: recipe.layout,
            stages: if stages > 1 { stages } else { 0 },
            probed: matches!(&recipe.freeze, Some(Freeze::Commands(commands)) if !commands.probe.is_empty()),
            settings: crash_safe.settings,
            position: session.and_then(|session| session.position.clone()),
            thaw_proves_lock: session
                .and_then(|session| session.thaw_proves_lock.clone())
                .unwrap_or_default(),
            local: session.and_then(|session| session.local.clone()),
            data_paths: recipe.data_paths.clone(),
            data_time: recipe.data_time,
            prepared_at: None,
            pods_at_ready: identities(&self.one.application.pods),
            pods_at_thawed: Vec::new(),
            chosen_at_ready: self.chosen.clone(),
            chosen_at_thawed: Vec::new(),
        }
    }

    /// What the policy asks to be ended, the template must know how to end. Who locks nothing is never blocked.
    fn blockers_can_be_ended(&self, hold: HoldKind) -> Result<(), Refusal> {
        match self.one.options.freeze.on_blocked {
            OnBlocked::Report => return Ok(()),
            OnBlocked::KillBlocker => {}
        }
        let can = self.recipe.stall_probe.as_ref().is_some_and(|probe| !probe.end_blocker.is_empty());
        if can || !hold.locks() {
            return Ok(());
        }
        Err(Refusal::stands(
            "CannotEndBlocker",
            format!(
                "application {}: freeze.onBlocked is KillBlocker, and template {} does not say how to end a statement: \
                 write its stallProbe.endBlocker, or remove onBlocked",
                self.name(),
                self.reference.name
            ),
        ))
    }

    /// A freeze that outlasts the liveness probe would end in a restart.
    fn probes_tolerate(&self, container: &Container, hold: HoldKind) -> Result<(), Refusal> {
        let (true, Some(probe)) = (hold.locks(), container.liveness_probe.as_ref()) else { return Ok(()) };
        let period = u64::try_from(probe.period_seconds.unwrap_or(10)).unwrap_or(10);
        let failures = u64::try_from(probe.failure_threshold.unwrap_or(3)).unwrap_or(3);
        let tolerated = Duration::from_secs(period * failures);
        let most = self.one.options.freeze.max_hold().get();
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

    fn target(&self, held: &HeldPod<'_>, argv: Vec<String>, stdin: bool) -> ExecTarget {
        let namespace = self.one.given.backup.namespace().unwrap_or_default();
        ExecTarget {
            impersonate: self.one.given.impersonate.then(|| ExecTarget::hooks_user(&namespace)),
            namespace,
            pod: held.pod.name_any(),
            pod_uid: held.pod.uid().unwrap_or_default(),
            container: held.container.name.clone(),
            argv,
            stdin,
        }
    }

    fn hold(&self, held: &HeldPod<'_>, how: HoldRecipe, members: &[Planned], nonce: &Nonce) -> RunHold {
        let StallProbe { command: stall_probe, end_blocker } =
            self.recipe.stall_probe.clone().unwrap_or_default();
        let may_end = self.one.options.freeze.on_blocked == OnBlocked::KillBlocker;
        let uid = held.pod.uid().unwrap_or_default();
        let mount_paths: Vec<String> =
            members.iter().flat_map(|planned| planned.member.mounted_in(&uid).to_vec()).collect();
        RunHold {
            plan: HoldPlan {
                application: self.name().to_owned(),
                pod_name: held.pod.name_any(),
                pod_uid: uid,
                container: held.container.name.clone(),
                container_state: container_state(held.pod, &held.container.name).unwrap_or_default(),
                nonce: nonce.to_string(),
                locks: how.locks,
                lease: how.lease,
                lease_unit: how.lease_unit,
                order: self.one.application.spec.order,
                stages: 1,
                canary: how.canary,
                stall_probe: !stall_probe.is_empty(),
                end_blocker: may_end && !end_blocker.is_empty(),
                local: how.local,
                data_paths: self.recipe.data_paths.clone(),
                recovery_needs: self
                    .recipe
                    .recover
                    .as_ref()
                    .map_or_else(Vec::new, |recover| recover.needs.clone()),
                foreign_mounts: foreign_mounts(held.container, &mount_paths),
                mount_paths,
            },
            target: self.target(held, how.argv, true),
            texts: how.texts,
            stall_probe,
            messages: self.recipe.messages.clone(),
            end_blocker,
            nonce: nonce.clone(),
            facts: self.recipe.evidence.len(),
        }
    }
}

/// How a template holds.
pub(super) fn hold_kind(recipe: &Recipe) -> HoldKind {
    match &recipe.freeze {
        Some(Freeze::Session(session)) if session.locks => HoldKind::Session,
        Some(Freeze::Session(_)) => HoldKind::Observer,
        Some(Freeze::Commands(commands)) if commands.allow_without_deadline => HoldKind::Direct,
        Some(Freeze::Commands(_)) => HoldKind::Commands,
        // The short form is `freeze.commands` once its parameters are filled in.
        Some(Freeze::None {}) | None => HoldKind::None,
    }
}
