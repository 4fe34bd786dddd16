//! What a `ProtectionRule` must be before it is in force: one that everybody can obey, and that decides something.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt as _;

use super::Finding;
use super::policy::MAX_HOLD;
use crate::policy::{Application, BackupPolicy, Blackout, Retention};
use crate::rule::{
    Allowed, DefaultPolicy, Limits, Orphans, ProtectionRule, ProtectionRuleSpec, Required, judge,
};

/// Shortest time that orphans are kept: a policy that was deleted by mistake on one day is missed on the next.
const MIN_ORPHAN_AGE: Duration = Duration::from_secs(24 * 3600);

/// Everything that keeps a rule from being in force. Cron expressions are judged by the scheduler.
pub fn rule(rule: &ProtectionRule) -> Vec<Finding> {
    let ProtectionRuleSpec { namespace_selector, require, allow, blackouts, limits, default, orphans } =
        &rule.spec;
    let mut found = selector(namespace_selector);
    let nothing = require.is_none()
        && allow.is_none()
        && blackouts.is_empty()
        && limits.is_none()
        && default.is_none()
        && orphans.is_none();
    if nothing {
        found.push(Finding::new(
            "spec",
            "RuleDecidesNothing",
            "write require, allow, blackouts, limits, default or orphans",
        ));
    }
    found.extend(require.iter().flat_map(required));
    found.extend(allow.iter().flat_map(allowed));
    found.extend(together(require.as_ref(), allow.as_ref()));
    found.extend(windows(blackouts));
    found.extend(limits.iter().flat_map(limited));
    found.extend(orphans.iter().flat_map(orphaned));
    if let Some(default) = default {
        found.extend(stamped(rule, default));
    }
    found
}

fn selector(selector: &LabelSelector) -> Vec<Finding> {
    let path = "spec.namespaceSelector";
    // The empty selector is meant: all namespaces.
    super::application::expressions(selector, path)
}

fn required(required: &Required) -> Vec<Finding> {
    let mut found = Vec::new();
    if required.rpo.is_some_and(|rpo| rpo.get().is_zero()) {
        found.push(Finding::new(
            "spec.require.rpo",
            "ObjectiveTooShort",
            "no policy can promise an objective of no time: write for example 26h",
        ));
    }
    if required.retention == Some(Retention::default()) {
        found.push(Finding::new(
            "spec.require.retention",
            "RuleDecidesNothing",
            "no number is asked for: write for example daily: 7, or remove it",
        ));
    }
    if required.verification.is_some() {
        found.push(Finding::not_yet("spec.require.verification", "a drill", "remove it"));
    }
    found
}

fn allowed(allowed: &Allowed) -> Vec<Finding> {
    let mut found = Vec::new();
    let nothing = |path: &str, what: &str| {
        let message =
            format!("no {what} is allowed, so that nothing could run: name at least one, or remove it");
        Finding::new(path, "AllowsNothing", message)
    };
    if let Some(templates) = &allowed.templates {
        if templates.is_empty() {
            found.push(nothing("spec.allow.templates", "template"));
        }
        let names = templates.iter().map(|template| format!("{:?} {}", template.kind, template.name));
        found.extend(twice(names, "spec.allow.templates"));
    }
    if let Some(classes) = &allowed.snapshot_classes {
        if classes.is_empty() {
            found.push(nothing("spec.allow.snapshotClasses", "class"));
        }
        found.extend(twice(classes.iter().cloned(), "spec.allow.snapshotClasses"));
    }
    if let Some(targets) = &allowed.restore_targets {
        if targets.is_empty() {
            found.push(nothing("spec.allow.restoreTargets", "target"));
        }
        found.extend(twice(targets.iter().map(|target| format!("{target:?}")), "spec.allow.restoreTargets"));
    }
    if let Some(most) = allowed.max_hold
        && !MAX_HOLD.contains(&most.get())
    {
        found.push(Finding::new(
            "spec.allow.maxHold",
            "MaxHoldOutOfRange",
            format!("a freeze is promised to take 5s to 5m, and {most} is not between them"),
        ));
    }
    if allowed.min_interval.is_some_and(|interval| interval.get().is_zero()) {
        found.push(Finding::new(
            "spec.allow.minInterval",
            "RuleDecidesNothing",
            "every schedule has at least no time between two slots: write for example 1h, or remove it",
        ));
    }
    found
}

/// What is asked for must be possible with what is allowed.
fn together(required: Option<&Required>, allowed: Option<&Allowed>) -> Option<Finding> {
    let (rpo, interval) = (required?.rpo?, allowed?.min_interval?);
    (rpo < interval).then(|| {
        Finding::new(
            "spec.require.rpo",
            "Unsatisfiable",
            format!(
                "no schedule with at least {interval} between two slots can meet an objective of {rpo}: relax one of them"
            ),
        )
    })
}

fn windows(blackouts: &[Blackout]) -> Vec<Finding> {
    let empty = blackouts.iter().enumerate().filter(|(_, blackout)| blackout.duration.get().is_zero());
    empty
        .map(|(index, _)| {
            Finding::new(
                format!("spec.blackouts[{index}].duration"),
                "BlackoutTooShort",
                "the window has no length: write at least 1m, or remove it",
            )
        })
        .collect()
}

fn limited(limits: &Limits) -> Vec<Finding> {
    let Limits { cluster, namespace, driver, drivers } = limits;
    let mut found = twice(drivers.iter().map(|limit| limit.name.clone()), "spec.limits.drivers");
    let mut numbers = vec![
        ("spec.limits.cluster".to_owned(), *cluster),
        ("spec.limits.namespace".to_owned(), *namespace),
        ("spec.limits.driver".to_owned(), *driver),
    ];
    numbers.extend(
        drivers
            .iter()
            .map(|limit| (format!("spec.limits.drivers[{}].freezes", limit.name), Some(limit.freezes))),
    );
    for (path, number) in &numbers {
        if *number == Some(0) {
            found.push(Finding::new(path, "AllowsNothing", "no run could ever freeze: write at least 1"));
        }
        let above = cluster.zip(*number).filter(|(all, one)| one > all);
        if let Some((all, one)) = above {
            let message =
                format!("{one} is more than limits.cluster, {all}, and would never be reached: lower it");
            found.push(Finding::new(path, "LimitWithoutEffect", message));
        }
    }
    if numbers.iter().all(|(_, number)| number.is_none()) {
        found.push(Finding::new(
            "spec.limits",
            "RuleDecidesNothing",
            "no limit is given: write one, or remove it",
        ));
    }
    found
}

fn orphaned(orphans: &Orphans) -> Option<Finding> {
    (orphans.keep.get() < MIN_ORPHAN_AGE).then(|| {
        Finding::new(
            "spec.orphans.keep",
            "KeepTooShort",
            "a policy that was deleted by mistake is not missed at once, and this deletes its data: write at least 1d",
        )
    })
}

/// The default must be a policy that its own rule accepts.
fn stamped(rule: &ProtectionRule, default: &DefaultPolicy) -> Vec<Finding> {
    let any: Application = Application {
        name: "any".to_owned(),
        selector: LabelSelector {
            match_labels: Some([("any".to_owned(), "any".to_owned())].into()),
            match_expressions: None,
        },
        template_ref: None,
        parameters: std::collections::BTreeMap::new(),
        container: None,
        pods: crate::policy::PodChoice::default(),
        volumes: None,
        order: 0,
        when_no_pods: crate::policy::WhenNoPods::default(),
    };
    let policy = BackupPolicy::new(&rule.name_any(), default.policy(None, vec![any]));
    let mut found: Vec<Finding> = super::policy(&policy)
        .into_iter()
        .map(|finding| Finding { path: finding.path.replacen("spec.", "spec.default.", 1), ..finding })
        .collect();
    found.extend(judge::policy(&policy.spec, None, [rule]).into_iter().map(|outside| {
        Finding::new(
            outside.field.replacen("spec.", "spec.default.", 1),
            "DefaultViolatesRule",
            format!(
                "it is {}, and {} of the same rule asks for {}",
                outside.found, outside.asks, outside.required
            ),
        )
    }));
    found
}

fn twice(names: impl Iterator<Item = String>, path: &str) -> Vec<Finding> {
    let mut seen = BTreeSet::new();
    let repeated: BTreeSet<String> = names.filter(|name| !seen.insert(name.clone())).collect();
    let finding =
        |name: String| Finding::new(path, "DuplicateName", format!("{name} is there twice: remove one"));
    repeated.into_iter().map(finding).collect()
}

#[cfg(test)]
#[path = "rule_tests.rs"]
mod tests;
