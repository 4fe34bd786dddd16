//! What is outside a rule, and why: the one answer for policies, runs and restores.
//!
//! Pure. A policy is judged by `require` and `allow`, a run by `allow` with the templates and classes that it really uses,
//! a Restore by its target. So a run without a policy, and one whose template was found by detection, do not slip past.

use std::fmt;
use std::time::Duration;

use kube::ResourceExt as _;

use super::{Allowed, ProtectionRule, Required, TargetKind};
use crate::duration::LongDuration;
use crate::policy::{BackupPolicySpec, Requirement, Retention, TemplateKind, TemplateRef};

/// Violations that are told in one message; the first of them tells what to do, and a message is at most 1000 characters.
const TOLD: usize = 5;

/// Something outside a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Name of the rule.
    pub rule: String,
    /// Field of the rule, as `require.rpo`.
    pub asks: &'static str,
    /// Field of the object that was judged, as `spec.objectives.rpo`.
    pub field: String,
    /// What it is.
    pub found: String,
    /// What is asked for.
    pub required: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, asks, field, found, required } = self;
        write!(f, "{field} is {found}; ProtectionRule {rule} asks for {required} ({asks})")
    }
}

/// What a run is about to use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Using<'a> {
    /// Each application and its template.
    pub templates: Vec<(&'a str, &'a TemplateRef)>,
    /// Each class, of snapshots and of groups.
    pub classes: Vec<&'a str>,
    /// Its longest hold.
    pub max_hold: Duration,
}

/// One rule while something is judged by it.
struct Bench<'a> {
    rule: String,
    found: &'a mut Vec<Violation>,
}

impl Bench<'_> {
    fn outside(&mut self, asks: &'static str, field: impl Into<String>, found: String, required: String) {
        self.found.push(Violation { rule: self.rule.clone(), asks, field: field.into(), found, required });
    }

    fn require(&mut self, required: &Required, policy: &BackupPolicySpec) {
        // Drills do not exist yet: a rule that asks for them is not accepted, and never comes here.
        let Required { rpo, retention, verification: _, consistency, continuity } = required;
        if let Some(most) = rpo {
            let promised = policy.objectives.and_then(|objectives| objectives.rpo);
            if promised.is_none_or(|promised| promised > *most) {
                let found = promised.map_or("not set".to_owned(), |promised| promised.to_string());
                self.outside("require.rpo", "spec.objectives.rpo", found, format!("at most {most}"));
            }
        }
        if let Some(least) = retention {
            self.retention(least, policy.retention.as_ref());
        }
        if *consistency == Some(Requirement::Required) && policy.consistency != Requirement::Required {
            let found = format!("{:?}", policy.consistency);
            self.outside("require.consistency", "spec.consistency", found, "Required".to_owned());
        }
        if let Some(least) = continuity
            && policy.min_continuity < *least
        {
            let found = format!("{:?}", policy.min_continuity);
            self.outside("require.continuity", "spec.minContinuity", found, format!("at least {least:?}"));
        }
    }

    fn retention(&mut self, least: &Retention, policy: Option<&Retention>) {
        // Left out: the last 7. Given without any rule: everything is kept, which is enough.
        let kept = policy.copied().unwrap_or(Retention {
            last: Some(crate::policy::DEFAULT_RETENTION_LAST),
            ..Retention::default()
        });
        if keeps_everything(&kept) {
            return;
        }
        for (asks, field, found, wanted) in [
            ("require.retention.last", "last", kept.last, least.last),
            ("require.retention.hourly", "hourly", kept.hourly, least.hourly),
            ("require.retention.daily", "daily", kept.daily, least.daily),
            ("require.retention.weekly", "weekly", kept.weekly, least.weekly),
            ("require.retention.monthly", "monthly", kept.monthly, least.monthly),
            ("require.retention.yearly", "yearly", kept.yearly, least.yearly),
        ] {
            let Some(wanted) = wanted else { continue };
            if found.unwrap_or(0) < wanted {
                let found = found.map_or("not set".to_owned(), |found| found.to_string());
                self.outside(asks, format!("spec.retention.{field}"), found, format!("at least {wanted}"));
            }
        }
        if let Some(wanted) = least.within
            && kept.within.is_none_or(|within| within < wanted)
        {
            let found = kept.within.map_or("not set".to_owned(), |within| within.to_string());
            let required = format!("at least {wanted}");
            self.outside("require.retention.within", "spec.retention.within", found, required);
        }
    }

    fn template(&mut self, allowed: &Allowed, field: String, template: &TemplateRef) {
        let Some(templates) = &allowed.templates else { return };
        if !templates.contains(template) {
            let all = templates.iter().map(named).collect::<Vec<_>>().join(", ");
            self.outside("allow.templates", field, named(template), format!("one of {all}"));
        }
    }

    fn class(&mut self, allowed: &Allowed, class: &str) {
        let Some(classes) = &allowed.snapshot_classes else { return };
        if !classes.iter().any(|known| known == class) {
            let field = "spec.snapshot.volumeSnapshotClassName";
            let required = format!("one of {}", classes.join(", "));
            self.outside("allow.snapshotClasses", field, class.to_owned(), required);
        }
    }

    fn max_hold(&mut self, allowed: &Allowed, field: &str, hold: Duration) {
        let Some(most) = allowed.max_hold else { return };
        if hold > most.get() {
            self.outside("allow.maxHold", field, in_seconds(hold), format!("at most {most}"));
        }
    }
}

/// What is outside `rules` in a policy; `min_interval` is the shortest interval of its schedule, where it has one. Only
/// rules that hold for its namespace are given ([`ProtectionRule::holding`]).
pub fn policy<'a>(
    spec: &BackupPolicySpec,
    min_interval: Option<Duration>,
    rules: impl IntoIterator<Item = &'a ProtectionRule>,
) -> Vec<Violation> {
    let mut found = Vec::new();
    for rule in rules {
        let mut bench = Bench { rule: rule.name_any(), found: &mut found };
        if let Some(required) = &rule.spec.require {
            bench.require(required, spec);
        }
        let Some(allowed) = &rule.spec.allow else { continue };
        for application in &spec.applications {
            if let Some(template) = &application.template_ref {
                let field = format!("spec.applications[{}].templateRef", application.name);
                bench.template(allowed, field, template);
            }
        }
        let class = spec.snapshot.as_ref().and_then(|options| options.volume_snapshot_class_name.as_deref());
        if let Some(class) = class {
            bench.class(allowed, class);
        }
        if let (Some(least), Some(interval)) = (allowed.min_interval, min_interval)
            && interval < least.get()
        {
            let found = format!("a schedule with slots {} apart", rounded(interval));
            bench.outside(
                "allow.minInterval",
                "spec.schedule.cron",
                found,
                format!("at least {least} between two"),
            );
        }
        bench.max_hold(allowed, "spec.freeze.maxHold", spec.freeze.unwrap_or_default().max_hold().get());
    }
    found
}

/// What is outside `rules` in a run, with or without a policy.
pub fn run<'a>(using: &Using<'_>, rules: impl IntoIterator<Item = &'a ProtectionRule>) -> Vec<Violation> {
    let mut found = Vec::new();
    for rule in rules {
        let mut bench = Bench { rule: rule.name_any(), found: &mut found };
        let Some(allowed) = &rule.spec.allow else { continue };
        for (application, template) in &using.templates {
            bench.template(allowed, format!("the template of application {application}"), template);
        }
        for class in &using.classes {
            bench.class(allowed, class);
        }
        bench.max_hold(allowed, "freeze.maxHold", using.max_hold);
    }
    found
}

/// What is outside `rules` in the target of a Restore.
pub fn restore<'a>(
    target: TargetKind,
    rules: impl IntoIterator<Item = &'a ProtectionRule>,
) -> Vec<Violation> {
    let mut found = Vec::new();
    for rule in rules {
        let Some(targets) = rule.spec.allow.as_ref().and_then(|allowed| allowed.restore_targets.as_ref())
        else {
            continue;
        };
        if !targets.contains(&target) {
            let all = targets.iter().map(|target| format!("{target:?}")).collect::<Vec<_>>().join(", ");
            let mut bench = Bench { rule: rule.name_any(), found: &mut found };
            bench.outside(
                "allow.restoreTargets",
                "spec.target",
                format!("{target:?}"),
                format!("one of {all}"),
            );
        }
    }
    found
}

/// Violations as one message for conditions and events.
pub fn told(violations: &[Violation]) -> String {
    let mut words: Vec<String> = violations.iter().take(TOLD).map(ToString::to_string).collect();
    if let Some(more) = violations.len().checked_sub(TOLD).filter(|more| *more > 0) {
        words.push(format!("and {more} more"));
    }
    words.join("; ")
}

/// Whether no rule of a retention asks for anything: then nothing is deleted.
fn keeps_everything(retention: &Retention) -> bool {
    let Retention { last, hourly, daily, weekly, monthly, yearly, within } = retention;
    let counts = [last, hourly, daily, weekly, monthly, yearly];
    counts.into_iter().all(|count| count.unwrap_or(0) == 0)
        && within.is_none_or(|within| within.get().is_zero())
}

fn named(template: &TemplateRef) -> String {
    match template.kind {
        TemplateKind::ClusterHookTemplate => template.name.clone(),
        TemplateKind::HookTemplate => format!("HookTemplate {}", template.name),
    }
}

fn in_seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}

/// To whole minutes where it is minutes, as people write intervals.
fn rounded(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds >= 60 && seconds.is_multiple_of(60) {
        LongDuration::from_secs(seconds).to_string()
    } else {
        in_seconds(duration)
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
