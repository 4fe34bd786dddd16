//! What an attempt is given: the plan of a scenario as its pods are now.

use std::time::Duration;

use stillpoint_api::clock::Mono;
use stillpoint_api::evidence::{GroupEvidence, HoldKind, MemberEvidence, Resolved, ResolvedApplication};
use stillpoint_api::policy::Requirement;
use stillpoint_api::template::{Layout, LeaseUnit, LocalRule, LocalValue, Setting};

use super::api::PodSeen;
use super::ownership::{Workload, workloads};
use super::scenario::App;
use super::world::World;
use crate::run::{CutPlan, HoldPlan, MemberId, Plan};

/// How long the snapshot stack may stay silent.
const STACK_PATIENCE: Duration = Duration::from_secs(6);

/// A resolved attempt.
#[derive(Clone, Debug)]
pub struct Resolution {
    /// The machine's plan.
    pub plan: Plan,
    /// What is recorded of it.
    pub resolved: Resolved,
    /// Number of the attempt.
    pub attempt: u32,
    /// Its nonce.
    pub nonce: String,
    /// The pod of every hold.
    pub hold_pods: Vec<usize>,
    /// The volume of every member.
    pub member_volumes: Vec<usize>,
    /// The name of every cut's snapshot.
    pub cut_names: Vec<String>,
    /// Names of the workload locks, in order.
    pub workloads: Vec<String>,
}

/// Resolves an attempt.
pub fn resolve(world: &mut World, backup: usize, attempt: u32, pods: &[PodSeen]) -> Resolution {
    let nonce = format!("b{backup}a{attempt}n{:08x}", world.rng.bits() & 0xffff_ffff);
    let (mut holds, mut hold_pods) = (Vec::new(), Vec::new());
    let (mut members, mut member_volumes) = (Vec::<MemberEvidence>::new(), Vec::new());
    let (mut cuts, mut cut_names) = (Vec::new(), Vec::new());
    let storage = world.scenario.driver.fact();
    for (index, pod) in world.pods.iter().enumerate() {
        let app = &world.scenario.apps[pod.app];
        let seen = &pods[index];
        if app.kind != HoldKind::None {
            holds.push(hold(app, pod, seen, format!("{nonce}h{index}")));
            hold_pods.push(index);
        }
        let group = app.group && pod.volumes.len() > 1;
        let group_name = format!("group-{index}-{nonce}");
        let mut of_group = Vec::new();
        for volume in &pod.volumes {
            let one = &world.volumes[*volume];
            let name = format!("{}-{nonce}", one.claim);
            let id = MemberId(members.len());
            members.push(MemberEvidence {
                application: app.name.clone(),
                pod_name: pod.name.clone(),
                pod_uid: seen.uid.clone(),
                claim_name: one.claim.clone(),
                mount_paths: vec![format!("/data{}", if one.index == 0 { "" } else { "-log" })],
                volume_handle: one.handle.clone(),
                driver: "driver".to_owned(),
                storage: storage.clone(),
                volume_snapshot: if group { String::new() } else { name.clone() },
                group: group.then(|| GroupEvidence {
                    volume_group_snapshot: group_name.clone(),
                    ..GroupEvidence::default()
                }),
                ..MemberEvidence::default()
            });
            member_volumes.push(*volume);
            if group {
                of_group.push(id);
            } else {
                let stage = if app.engine.staged && one.index > 0 { 1 } else { 0 };
                cuts.push(CutPlan { stage, ..CutPlan::single(id) });
                cut_names.push(name);
            }
        }
        if group {
            cuts.push(CutPlan { members: of_group, group: true, stage: 0 });
            cut_names.push(group_name);
        }
    }
    let keys = workloads(
        hold_pods.iter().map(|pod| pods[*pod].uid.as_str()),
        member_volumes.iter().map(|volume| world.volumes[*volume].claim_uid.as_str()),
    );
    let scenario = &world.scenario;
    Resolution {
        plan: Plan {
            required: scenario.requirement == Requirement::Required,
            max_hold: scenario.max_hold,
            acquire_timeout: scenario.acquire_timeout,
            stack_patience: STACK_PATIENCE,
            prepares: Vec::new(),
            holds,
            members,
            cuts,
            fence: Mono::default(),
            api_clock: None,
        },
        resolved: resolved(world, pods),
        attempt,
        nonce,
        hold_pods,
        member_volumes,
        cut_names,
        workloads: keys.iter().map(Workload::lock_name).collect(),
    }
}

fn local() -> LocalRule {
    LocalRule { key: "host".to_owned(), equals: LocalValue::PodHostname }
}

fn hold(app: &App, pod: &super::pod::Pod, seen: &PodSeen, nonce: String) -> HoldPlan {
    let session = matches!(app.kind, HoldKind::Session | HoldKind::Observer);
    HoldPlan {
        application: app.name.clone(),
        pod_name: pod.name.clone(),
        pod_uid: seen.uid.clone(),
        container: "db".to_owned(),
        container_state: seen.container.clone(),
        nonce,
        locks: app.kind.locks(),
        lease: Duration::from_secs(app.lease),
        lease_unit: session.then_some(LeaseUnit::Seconds),
        order: app.order,
        stages: if app.engine.staged { 2 } else { 1 },
        canary: false,
        stall_probe: app.engine.stall_probe,
        end_blocker: false,
        recovery_needs: Vec::new(),
        local: Some(local()),
        data_paths: vec!["datadir".to_owned()],
        mount_paths: vec!["/data".to_owned()],
        foreign_mounts: Vec::new(),
    }
}

fn resolved(world: &World, pods: &[PodSeen]) -> Resolved {
    let applications = world.scenario.apps.iter().enumerate().map(|(index, app)| {
        // What is never held can tell no settings: its template may claim durability only where it is by design.
        let settings = if app.kind == HoldKind::None && app.durable {
            Vec::new()
        } else {
            vec![Setting { name: "fsync".to_owned(), allowed: vec!["on".to_owned()], ..Setting::default() }]
        };
        ResolvedApplication {
            name: app.name.clone(),
            hold: app.kind,
            crash_safe: "the engine recovers from an atomic cut".to_owned(),
            copy_safe: if app.engine.copy_safe { "measured".to_owned() } else { String::new() },
            layout: if app.engine.any_under_lock { Layout::AnyUnderLock } else { Layout::OneVolume },
            stages: if app.engine.staged { 2 } else { 0 },
            probed: app.engine.probed,
            settings,
            position: app.engine.position.then(|| "gtid".to_owned()),
            thaw_proves_lock: if app.engine.thaw_proves_lock {
                "the thaw fails without it".to_owned()
            } else {
                String::new()
            },
            local: Some(local()),
            data_paths: vec!["datadir".to_owned()],
            pods_at_ready: identities(world, index, pods),
            ..ResolvedApplication::default()
        }
    });
    Resolved {
        max_hold_millis: u64::try_from(world.scenario.max_hold.as_millis()).unwrap_or(0),
        min_continuity: world.scenario.min_continuity,
        requirement: world.scenario.requirement,
        applications: applications.collect(),
        ..Resolved::default()
    }
}

/// Names and UIDs of an application's pods, as they were read.
pub fn identities(world: &World, app: usize, pods: &[PodSeen]) -> Vec<String> {
    let of_app = world.pods.iter().zip(pods).filter(|(pod, _)| pod.app == app);
    of_app.map(|(pod, seen)| format!("{}/{}", pod.name, seen.uid)).collect()
}
