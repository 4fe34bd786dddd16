//! What a point could be worth at best: the verdict on the best evidence that a resolved run can leave.
//!
//! There is no second judge: evidence is made up in which everything goes as it should, from what was resolved alone, and
//! [`crate::verdict::judge`] judges it. What is missing then will be missing in every run (docs/design/freeze.md §4). Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use stillpoint_api::evidence::{
    Consistency, HoldAnswer, HoldEvidence, MemberEvidence, Offset, ResolvedApplication, SettledMember,
    StageEvidence, Window,
};
use stillpoint_api::policy::Requirement;
use stillpoint_api::template::LocalValue;

use crate::resolve::{Refusal, Resolution, RunHold};
use crate::verdict::{Evidence, Judgement, judge};

/// One step of the made-up run: later is later, and how much does not matter as long as all of it fits into the shortest
/// `maxHold` that a policy may ask for (5s; a run of 8 stages has 33 steps).
const STEP: i64 = 1_000;

/// What the best evidence of this run proves.
pub(super) fn at_best(resolution: &Resolution) -> Judgement {
    let mut resolved = resolution.resolved.clone();
    // Any instant: the rules compare times of the run with each other.
    let begin = Timestamp::UNIX_EPOCH;
    resolution.prepared(&mut resolved, Some(begin));
    for application in &mut resolved.applications {
        application.pods_at_thawed = application.pods_at_ready.clone();
        application.chosen_at_thawed = application.chosen_at_ready.clone();
    }
    let steps = Steps { stages: resolution.plan.stages() };
    let application = |name: &str| resolved.applications.iter().find(|one| one.name == name);
    let holds: Vec<HoldEvidence> = resolution
        .holds
        .iter()
        .filter_map(|hold| Some(steps.hold(hold, application(&hold.plan.application)?)))
        .collect();
    let members: Vec<MemberEvidence> =
        resolution.plan.members.iter().map(|member| steps.member(member)).collect();
    let window = Window {
        started_at: Some(MicroTime(begin)),
        cut_start: Some(steps.posted(0)),
        cut_end: Some(steps.cut(steps.stages - 1)),
        ..Window::default()
    };
    judge(&Evidence::new(&resolved, &holds, &members, &window))
}

/// What a run under `consistency: Required` would fail with, however well it goes.
pub(super) fn not_proven(resolution: &Resolution, best: &Judgement) -> Option<Refusal> {
    if resolution.resolved.requirement != Requirement::Required
        || best.consistency == Consistency::Application
    {
        return None;
    }
    let findings: Vec<String> = best
        .verdict
        .missing
        .iter()
        .map(|found| format!("application {}, rule {}: {}", found.application, found.rule, found.finding))
        .collect();
    Some(Refusal::stands(
        "NotProven",
        format!(
            "a run would freeze, cut and then fail, because its point can be {:?} at best: {}; or use consistency: \
             BestEffort, which keeps it as what it is",
            best.consistency,
            findings.join("; ")
        ),
    ))
}

/// When each thing happens in a run in which everything goes as it should.
struct Steps {
    stages: u32,
}

impl Steps {
    /// FROZEN of a stage; its text was sent one step before.
    fn frozen(&self, stage: u32) -> Offset {
        Offset((i64::from(stage) * 4 + 1) * STEP)
    }

    fn posted(&self, stage: u32) -> Offset {
        Offset(self.frozen(stage).0 + STEP)
    }

    fn cut(&self, stage: u32) -> Offset {
        Offset(self.frozen(stage).0 + 2 * STEP)
    }

    /// The closing beat and the thaw are sent.
    fn closing(&self) -> Offset {
        Offset(self.cut(self.stages - 1).0 + STEP)
    }

    fn hold(&self, hold: &RunHold, application: &ResolvedApplication) -> HoldEvidence {
        let plan = &hold.plan;
        let answer = |at: Offset| HoldAnswer {
            at,
            identity: identity(plan.pod_name.as_str(), application),
            position: application.position.iter().map(|key| (key.clone(), "1".to_owned())).collect(),
            ..HoldAnswer::default()
        };
        let held = Offset(self.closing().0 + STEP);
        let stages = (1..application.stages).map(|stage| StageEvidence {
            stage,
            sent: Some(Offset(self.frozen(stage).0 - STEP)),
            frozen: Some(answer(self.frozen(stage))),
        });
        HoldEvidence {
            application: plan.application.clone(),
            pod_name: plan.pod_name.clone(),
            pod_uid: plan.pod_uid.clone(),
            container: plan.container.clone(),
            nonce: plan.nonce.clone(),
            container_at_ready: Some(plan.container_state.clone()),
            container_at_thawed: Some(plan.container_state.clone()),
            ready: Some(answer(Offset(-STEP))),
            freeze_sent: Some(Offset(0)),
            frozen: Some(answer(self.frozen(0))),
            stages: stages.collect(),
            closing_index: Some(1),
            closing_sent: Some(self.closing()),
            closing_written: Some(self.closing()),
            held: Some(answer(held)),
            thaw_sent: Some(self.closing()),
            thawed: Some(held),
            mount_paths: plan.mount_paths.clone(),
            foreign_mounts: plan.foreign_mounts.clone(),
            facts: facts(&plan.mount_paths, application),
            ..HoldEvidence::default()
        }
    }

    fn member(&self, member: &MemberEvidence) -> MemberEvidence {
        let handle = Some("handle".to_owned());
        let mut group = member.group.clone();
        if let Some(group) = &mut group {
            group.exact = Some(true);
        }
        MemberEvidence {
            group,
            post_sent: Some(self.posted(member.stage)),
            posted: Some(self.posted(member.stage)),
            content: Some("content".to_owned()),
            signal: Some(self.cut(member.stage)),
            handle: handle.clone(),
            content_volume_handle: Some(member.volume_handle.clone()),
            settled: Some(SettledMember {
                ready_at: Some(MicroTime(Timestamp::UNIX_EPOCH)),
                handle,
                bound: true,
                ..SettledMember::default()
            }),
            ..member.clone()
        }
    }
}

/// A server that is this container's, as far as the template lets it say so.
fn identity(pod: &str, application: &ResolvedApplication) -> BTreeMap<String, String> {
    match &application.local {
        Some(local) => {
            let value = match local.equals {
                LocalValue::True => "true".to_owned(),
                LocalValue::PodHostname => pod.to_owned(),
            };
            BTreeMap::from([(local.key.clone(), value)])
        }
        // Commands run in the container itself; the holder says who it is.
        None => BTreeMap::from([("conn".to_owned(), "1".to_owned())]),
    }
}

/// Durable settings, and data where a member is mounted.
fn facts(mount_paths: &[String], application: &ResolvedApplication) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    for setting in &application.settings {
        if let Some(condition) = &setting.when {
            let value = condition.values.first().cloned().unwrap_or_default();
            facts.entry(condition.name.clone()).or_insert(value);
        }
    }
    for setting in &application.settings {
        facts.insert(setting.name.clone(), setting.allowed.first().cloned().unwrap_or_default());
    }
    for name in &application.data_paths {
        if let Some(path) = mount_paths.first() {
            facts.insert(name.clone(), path.clone());
        }
    }
    facts
}
