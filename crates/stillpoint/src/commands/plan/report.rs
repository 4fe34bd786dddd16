//! What a plan says, as data; its JSON form is a contract with scripts (docs/cli.md).

use serde::Serialize;
use stillpoint_api::evidence::{Consistency, CutKind, GroupKind, HoldKind, MemberEvidence, StorageFact};
use stillpoint_api::policy::{Continuity, Requirement, TemplateRef};
use stillpoint_api::template::Proof;
use stillpoint_executor::preview::{Found, Origin, Part, Preview};
use stillpoint_executor::run::CutPlan;

use crate::failure::Exit;

/// All plans of a namespace.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) plans: Vec<Planned>,
    /// Pods with claims that no policy selects and no selector could find: they have no label that stays.
    pub(super) unlabelled: Vec<String>,
}

impl Report {
    /// Whether every policy could run. A workload without a policy is told, and fails nothing.
    pub(super) fn exit(&self) -> Exit {
        let stuck = |plan: &Planned| matches!(plan.subject, Subject::Policy { .. }) && !plan.could_run;
        if self.plans.iter().any(stuck) { Exit::Failed } else { Exit::Success }
    }
}

/// What is planned.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub(super) enum Subject {
    /// A policy.
    Policy { name: String },
    /// A workload that no policy selects: what a policy with this selector would do.
    Workload { name: String, selector: String },
}

/// What one run would do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Planned {
    pub(super) subject: Subject,
    /// Whether a run could begin and its point would be kept, as far as is known.
    pub(super) could_run: bool,
    pub(super) consistency: Requirement,
    pub(super) detected: Vec<Detected>,
    /// One for the whole run; where that cannot be resolved, one for each application that could be alone.
    pub(super) parts: Vec<Resolved>,
    pub(super) missing: Vec<Missing>,
    pub(super) unknown: Vec<String>,
}

/// What was detected of an application.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Detected {
    pub(super) application: String,
    pub(super) template: Option<TemplateRef>,
    /// `named`, `annotation of POD` or `image IMAGE`.
    pub(super) by: Option<String>,
    pub(super) pods: usize,
    /// Pod and role, where a role was told.
    pub(super) roles: Vec<(String, String)>,
}

/// What would be held and cut together.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Resolved {
    pub(super) applications: Vec<Held>,
    /// Longest time from the first lock to the last thaw, in seconds.
    pub(super) max_hold_seconds: f64,
    /// Longest time for all locks, in seconds.
    pub(super) acquire_seconds: f64,
    /// Time from the first lock by which the last cut must have been seen, in seconds.
    pub(super) cut_seconds: f64,
    pub(super) cuts: Vec<Cut>,
    pub(super) best: Best,
}

/// How one application is held.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Held {
    pub(super) application: String,
    pub(super) proof: Proof,
    pub(super) versions: Vec<String>,
    pub(super) hold: HoldKind,
    /// Whether commits stop.
    pub(super) locks: bool,
    pub(super) sessions: Vec<Session>,
    /// Longest time of each prepare, in seconds; empty: it has none.
    pub(super) prepares: Vec<f64>,
    pub(super) stages: u32,
}

/// A session or process that would be held.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Session {
    pub(super) pod: String,
    pub(super) container: String,
    pub(super) lease_seconds: f64,
    /// Whether the server itself ends a silent session; else the process in the container does.
    pub(super) server_keeps_lease: bool,
}

/// One request to the snapshot stack.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cut {
    pub(super) claims: Vec<String>,
    pub(super) driver: String,
    pub(super) class: String,
    pub(super) stage: u32,
    /// A VolumeGroupSnapshot.
    pub(super) group: bool,
    /// Whether all of its volumes are cut at one instant, in the order of writes.
    pub(super) one_instant: bool,
    /// What is known of the driver; an empty reason: nothing.
    pub(super) storage: StorageFact,
}

/// What the point could be worth.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Best {
    pub(super) consistency: Consistency,
    pub(super) continuity: Option<Continuity>,
    /// Whether all applications would be held together over all cuts.
    pub(super) cross_consistent: bool,
    /// Rules that cannot be proven however well it goes.
    pub(super) missing: Vec<String>,
    /// Why those that can be proven can: the rules about the cut, durability and continuity.
    pub(super) because: Vec<String>,
}

/// What stands in the way.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Missing {
    pub(super) reason: &'static str,
    pub(super) message: String,
    /// Whether it may pass by itself.
    pub(super) may_pass: bool,
}

impl Planned {
    pub(super) fn of(subject: Subject, consistency: Requirement, seen: &Preview) -> Self {
        let missing = seen.missing.iter().map(|refusal| Missing {
            reason: refusal.reason,
            message: refusal.message.clone(),
            may_pass: refusal.may_pass,
        });
        Self {
            subject,
            could_run: seen.could_run(),
            consistency,
            detected: seen.found.iter().map(detected).collect(),
            parts: seen.parts.iter().map(resolved).collect(),
            missing: missing.collect(),
            unknown: seen.unknown.clone(),
        }
    }
}

fn detected(found: &Found) -> Detected {
    Detected {
        application: found.application.clone(),
        template: found.template.as_ref().map(|(reference, _)| reference.clone()),
        by: found.template.as_ref().map(|(_, origin)| match origin {
            Origin::Named => "named".to_owned(),
            Origin::Annotation(pod) => format!("annotation of {pod}"),
            Origin::Image(image) => format!("image {image}"),
        }),
        pods: found.pod_uids.len(),
        roles: found.roles.clone(),
    }
}

fn resolved(part: &Part) -> Resolved {
    let resolution = &part.resolution;
    let plan = &resolution.plan;
    let applications = resolution.resolved.applications.iter().zip(&resolution.recipes);
    let held = applications.map(|(application, recipe)| {
        let holds = resolution.holds.iter().filter(|hold| hold.plan.application == application.name);
        let prepares = resolution.prepares.iter().filter(|prepare| prepare.application == application.name);
        Held {
            application: application.name.clone(),
            proof: recipe.proof.unwrap_or_default(),
            versions: recipe.versions.clone(),
            hold: application.hold,
            locks: application.hold.locks(),
            sessions: holds
                .map(|hold| Session {
                    pod: hold.plan.pod_name.clone(),
                    container: hold.plan.container.clone(),
                    lease_seconds: hold.plan.lease.as_secs_f64(),
                    server_keeps_lease: hold.plan.lease_unit.is_some(),
                })
                .collect(),
            prepares: prepares.map(|prepare| prepare.timeout.as_secs_f64()).collect(),
            stages: application.stages.max(1),
        }
    });
    Resolved {
        applications: held.collect(),
        max_hold_seconds: plan.max_hold.as_secs_f64(),
        acquire_seconds: plan.acquire_timeout.as_secs_f64(),
        cut_seconds: plan.cut_budget().as_secs_f64(),
        cuts: plan.cuts.iter().enumerate().filter_map(|(index, one)| cut(part, index, one)).collect(),
        best: best(part),
    }
}

fn cut(part: &Part, index: usize, cut: &CutPlan) -> Option<Cut> {
    let resolution = &part.resolution;
    let members: Vec<&MemberEvidence> =
        cut.members.iter().filter_map(|id| resolution.plan.members.get(id.0)).collect();
    let first = *members.first()?;
    let of_group = resolution.groups.iter().find(|group| group.cut.0 == index);
    let class = match of_group {
        Some(group) => group.class.clone(),
        None => resolution.classes.get(cut.members.first()?.0)?.clone(),
    };
    // A group is worth what its weakest member is.
    let storage = members.iter().map(|member| &member.storage).find(|storage| storage.cut == CutKind::Copy);
    let storage = storage.unwrap_or(&first.storage).clone();
    let ordered = members.iter().all(|member| member.storage.group == GroupKind::WriteOrder);
    Some(Cut {
        claims: members.iter().map(|member| member.claim_name.clone()).collect(),
        driver: first.driver.clone(),
        class,
        stage: cut.stage,
        group: cut.group,
        one_instant: storage.cut == CutKind::Atomic && (members.len() == 1 || (cut.group && ordered)),
        storage,
    })
}

/// Rules that say why: atomicity, durability, continuity (docs/design/freeze.md §4).
const TELLING: [u8; 3] = [8, 9, 10];

fn best(part: &Part) -> Best {
    let names = part.resolution.resolved.applications.iter().map(|application| &application.name);
    let missing =
        names.flat_map(|name| part.missing_of(name).into_iter().map(move |why| format!("{name}: {why}")));
    let proved = part.best.verdict.proved.iter().filter(|finding| TELLING.contains(&finding.rule));
    Best {
        consistency: part.best.consistency,
        continuity: part.best.continuity,
        cross_consistent: part.best.cross_consistent,
        missing: missing.collect(),
        because: proved
            .map(|finding| format!("{}: rule {}: {}", finding.application, finding.rule, finding.finding))
            .collect(),
    }
}
