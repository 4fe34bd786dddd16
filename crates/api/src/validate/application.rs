//! What an application must be, in a policy or inline in a Backup, alone and together with its template.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{Finding, is_dns_label};
use crate::policy::{Application, WhenNoPods};
use crate::template::{Recipe, substitute};

/// What keeps an application's parameters from fitting its template: `UnknownParameter`, `MissingParameter`,
/// `ParameterType`, `ParameterText`. Paths begin with `applications[NAME]`.
pub fn application_against_template(application: &Application, recipe: &Recipe) -> Vec<Finding> {
    match substitute(recipe, &application.parameters) {
        Ok(_) => Vec::new(),
        Err(found) => found
            .into_iter()
            .map(|finding| Finding {
                path: format!("applications[{}].{}", application.name, finding.path),
                ..finding
            })
            .collect(),
    }
}

pub(super) fn applications(applications: &[Application], path: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    if applications.is_empty() {
        found.push(Finding::new(
            format!("{path}.applications"),
            "NoApplication",
            "nothing is protected: name at least one application with a selector",
        ));
    }
    let mut names = BTreeSet::new();
    for application in applications {
        let path = format!("{path}.applications[{}]", application.name);
        if !names.insert(&application.name) {
            found.push(Finding::new(
                format!("{path}.name"),
                "DuplicateName",
                "two applications have this name, which labels their snapshots: rename one",
            ));
        }
        found.extend(one(application, &path));
    }
    found
}

fn one(application: &Application, path: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    if !is_dns_label(&application.name) {
        found.push(Finding::new(
            format!("{path}.name"),
            "InvalidName",
            "the name labels snapshots: use at most 63 of a-z, 0-9 and -, beginning and ending with a letter or digit",
        ));
    }
    found.extend(selector(&application.selector, &format!("{path}.selector")));
    match application.when_no_pods {
        WhenNoPods::Fail => {}
        WhenNoPods::Skip | WhenNoPods::Snapshot => found.push(Finding::not_yet(
            format!("{path}.whenNoPods"),
            &format!("{:?}", application.when_no_pods),
            "leave it out; a run without pods fails with NoPods",
        )),
    }
    found
}

fn selector(selector: &LabelSelector, path: &str) -> Vec<Finding> {
    let expressions = selector.match_expressions.as_deref().unwrap_or_default();
    if expressions.is_empty() && selector.match_labels.as_ref().is_none_or(|labels| labels.is_empty()) {
        return vec![Finding::new(
            path,
            "EmptySelector",
            "an empty selector means every pod of the namespace: name the application's labels under matchLabels",
        )];
    }
    self::expressions(selector, path)
}

/// Expressions of a selector that no API server would take.
pub(super) fn expressions(selector: &LabelSelector, path: &str) -> Vec<Finding> {
    let expressions = selector.match_expressions.as_deref().unwrap_or_default();
    expressions
        .iter()
        .enumerate()
        .filter_map(|(index, expression)| {
            let values = expression.values.as_deref().unwrap_or_default();
            let fault = match (expression.operator.as_str(), values.is_empty()) {
                ("In" | "NotIn", false) | ("Exists" | "DoesNotExist", true) => return None,
                ("In" | "NotIn", true) => "needs values",
                ("Exists" | "DoesNotExist", false) => "takes no values",
                _ => "is unknown: use In, NotIn, Exists or DoesNotExist",
            };
            Some(Finding::new(
                format!("{path}.matchExpressions[{index}]"),
                "InvalidSelector",
                format!("operator {:?} {fault}", expression.operator),
            ))
        })
        .collect()
}
