//! A plan for people: one block per policy or workload, one thing per line.

use std::fmt::Write as _;
use std::time::Duration;

use stillpoint_api::evidence::{CutKind, CutSignal, HoldKind};
use stillpoint_api::policy::TemplateKind;
use stillpoint_api::template::Proof;

use super::report::{Cut, Detected, Held, Planned, Report, Resolved, Subject};
use crate::output::length;

/// The whole report.
pub(super) fn text(report: &Report, namespace: &str) -> String {
    let mut text = String::new();
    for plan in &report.plans {
        block(&mut text, plan);
        text.push('\n');
    }
    for pod in &report.unlabelled {
        line(
            &mut text,
            "pod",
            &format!("{pod} has claims, no policy selects it, and it has no label that stays: give it one"),
        );
    }
    if report.plans.is_empty() && report.unlabelled.is_empty() {
        let _ = writeln!(text, "namespace {namespace} has no policy, and no pod with a claim");
    }
    text
}

fn line(text: &mut String, label: &str, what: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "  {label:<10} {what}");
}

fn block(text: &mut String, plan: &Planned) {
    let (who, could) = match &plan.subject {
        Subject::Policy { name } => (format!("policy {name}"), "a run could begin"),
        Subject::Workload { name, selector } => {
            (format!("NO POLICY for {name} ({selector})"), "a run of a policy with this selector could begin")
        }
    };
    let verdict = if plan.could_run { could } else { "a run would NOT give a point" };
    let _ = writeln!(text, "{who}: {verdict}");
    for one in &plan.detected {
        line(text, "detected", &detected(one));
    }
    for part in &plan.parts {
        resolved(text, part);
    }
    for missing in &plan.missing {
        let passes = if missing.may_pass { " (may pass by itself)" } else { "" };
        line(text, "missing", &format!("{}{passes}: {}", missing.reason, missing.message));
    }
    for unknown in &plan.unknown {
        line(text, "not known", unknown);
    }
}

fn detected(one: &Detected) -> String {
    let pods = if one.pods == 1 { "1 pod".to_owned() } else { format!("{} pods", one.pods) };
    let roles: Vec<String> = one.roles.iter().map(|(pod, role)| format!("{pod} is {role}")).collect();
    let roles = if roles.is_empty() { String::new() } else { format!("; {}", roles.join(", ")) };
    let (Some(template), Some(by)) = (&one.template, &one.by) else {
        return format!("{}: no template; {pods}{roles}", one.application);
    };
    let own = match template.kind {
        TemplateKind::ClusterHookTemplate => "",
        TemplateKind::HookTemplate => " of this namespace",
    };
    format!("{}: template {}{own} ({by}); {pods}{roles}", one.application, template.name)
}

fn resolved(text: &mut String, part: &Resolved) {
    for held in &part.applications {
        for most in &held.prepares {
            line(
                text,
                "prepare",
                &format!("{}: at most {}, before anything is held", held.application, seconds(*most)),
            );
        }
        freeze(text, held);
    }
    if part.applications.iter().any(|held| held.hold != HoldKind::None) {
        let (most, acquire, cut) =
            (seconds(part.max_hold_seconds), seconds(part.acquire_seconds), seconds(part.cut_seconds));
        line(
            text,
            "promise",
            &format!(
                "at most {most} from the first lock to the last thaw: the locks within {acquire}, the cuts within {cut}"
            ),
        );
    }
    for cut in &part.cuts {
        line(text, "cut", &how_cut(cut, part.cuts.len()));
    }
    let continuity = part.best.continuity.map(|grade| format!(", continuity {grade:?}")).unwrap_or_default();
    let cross =
        if part.best.cross_consistent && part.applications.len() > 1 { ", all at one instant" } else { "" };
    line(text, "at best", &format!("{:?}{continuity}{cross}", part.best.consistency));
    for why in &part.best.missing {
        line(text, "", &format!("✗ {why}"));
    }
    for why in &part.best.because {
        line(text, "", &format!("✓ {why}"));
    }
}

fn freeze(text: &mut String, held: &Held) {
    let versions =
        if held.versions.is_empty() { String::new() } else { format!(" ({})", held.versions.join(", ")) };
    let proof = match held.proof {
        Proof::Real => "proof real",
        Proof::Engine => "proof engine",
        Proof::Emulated => "proof emulated",
        Proof::None => "not proven",
    };
    let name = &held.application;
    if held.sessions.is_empty() {
        line(text, "freeze", &format!("{name}: nothing is held; {proof}{versions}"));
    }
    let feels = if held.locks { "commits stop" } else { "nobody waits" };
    let stages = if held.stages > 1 { format!("; {} stages", held.stages) } else { String::new() };
    for session in &held.sessions {
        let who = if session.server_keeps_lease { "the server ends it" } else { "it ends by itself" };
        line(
            text,
            "freeze",
            &format!(
                "{name}: {:?} in {}/{}: {feels}; when we fall silent {who} after {}{stages}; {proof}{versions}",
                held.hold,
                session.pod,
                session.container,
                seconds(session.lease_seconds)
            ),
        );
    }
}

fn how_cut(cut: &Cut, cuts: usize) -> String {
    let how = match (cut.group, cut.one_instant, cuts) {
        (true, true, _) => "one group, one instant".to_owned(),
        (true, false, _) => "one group, one after the other".to_owned(),
        (false, _, 1) => "alone".to_owned(),
        (false, _, number) => format!("one by one, 1 of {number}"),
    };
    let stage = if cut.stage > 0 { format!(", stage {}", cut.stage) } else { String::new() };
    let trust = match (cut.storage.cut, cut.storage.reason.as_str()) {
        (CutKind::Atomic, reason) => format!("each cut is one instant ({reason})"),
        (CutKind::Copy, "") => {
            "NOT TRUSTED: the driver is in no storage table, so its cut counts as a file by file copy"
                .to_owned()
        }
        (CutKind::Copy, reason) => format!("a file by file copy ({reason})"),
    };
    let signal = match cut.storage.signal {
        CutSignal::Handle => "known by its handle",
        CutSignal::Ready => "known when it is ready",
    };
    format!(
        "{}: {how}{stage}; driver {}, class {}; {trust}; {signal}",
        cut.claims.join(", "),
        cut.driver,
        cut.class
    )
}

fn seconds(seconds: f64) -> String {
    length(Duration::from_secs_f64(seconds.max(0.0)))
}
