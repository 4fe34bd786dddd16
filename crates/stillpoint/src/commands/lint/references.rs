//! What files say about each other: names that are there twice, and policies against their templates.
//!
//! A template is looked up in the files, then in the shipped library. One that is in neither may be in the cluster,
//! so its absence is a warning.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use stillpoint_api::policy::{TemplateKind, TemplateRef};
use stillpoint_api::template::Recipe;
use stillpoint_api::validate::{self, Finding};
use stillpoint_api::{BackupPolicy, ClusterHookTemplate, HookTemplate};

use super::documents;
use super::typed;
use crate::failure::near;

/// Names and templates of the files.
#[derive(Debug, Default)]
pub struct References {
    seen: BTreeSet<(String, String, String)>,
    cluster: BTreeMap<String, Recipe>,
    /// By namespace (empty: the file leaves it open) and name.
    namespaced: BTreeMap<(String, String), Recipe>,
}

impl References {
    /// Knows the shipped templates.
    pub fn with_library(library: &[(&str, &str)]) -> Self {
        let mut references = Self::default();
        for value in library.iter().flat_map(|(_, text)| documents::parse(text).values) {
            references.learn_template(&value);
        }
        references
    }

    /// Notes an object; says when its name is taken by another one of the files.
    pub fn learn(&mut self, value: &Value) -> Option<Finding> {
        let text =
            |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        if !text("/apiVersion").starts_with("stillpoint.dev/") {
            return None;
        }
        self.learn_template(value);
        let (kind, name) = (text("/kind"), text("/metadata/name"));
        if name.is_empty() || self.seen.insert((kind.clone(), text("/metadata/namespace"), name.clone())) {
            return None;
        }
        let message = format!("there is another {kind} {name} in these files; only one of them would exist");
        Some(Finding::new("metadata.name", "DuplicateObject", message))
    }

    fn learn_template(&mut self, value: &Value) {
        if let Some(template) = typed::<ClusterHookTemplate>(value, "ClusterHookTemplate") {
            self.cluster.insert(template.metadata.name.unwrap_or_default(), template.spec.0);
        } else if let Some(template) = typed::<HookTemplate>(value, "HookTemplate") {
            let namespace = template.metadata.namespace.unwrap_or_default();
            self.namespaced.insert((namespace, template.metadata.name.unwrap_or_default()), template.spec.0);
        }
    }

    /// Compares a policy with its templates: findings, and warnings about templates that are not known.
    pub fn check(&self, policy: &BackupPolicy) -> (Vec<Finding>, Vec<String>) {
        let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
        let (mut found, mut unknown) = (Vec::new(), Vec::new());
        for application in &policy.spec.applications {
            let Some(reference) = &application.template_ref else { continue };
            match self.recipe(reference, namespace) {
                Some(recipe) => {
                    let against = validate::application_against_template(application, recipe);
                    found.extend(against.into_iter().map(|finding| Finding {
                        path: format!("spec.{}", finding.path.trim_start_matches("spec.")),
                        ..finding
                    }));
                }
                None => {
                    let names = self.cluster.keys().chain(self.namespaced.keys().map(|(_, name)| name));
                    let meant = near(&reference.name, names.map(String::as_str));
                    let hint = match meant.first() {
                        Some(name) => format!("did you mean {name}?"),
                        None => "is it in the cluster?".to_owned(),
                    };
                    unknown.push(format!(
                        "spec.applications[{}].templateRef: {} is neither in these files nor in the library, its parameters are not checked; {hint}",
                        application.name, reference.name
                    ));
                }
            }
        }
        (found, unknown)
    }

    fn recipe(&self, reference: &TemplateRef, namespace: &str) -> Option<&Recipe> {
        match reference.kind {
            TemplateKind::ClusterHookTemplate => self.cluster.get(&reference.name),
            TemplateKind::HookTemplate => self
                .namespaced
                .get(&(namespace.to_owned(), reference.name.clone()))
                .or_else(|| self.namespaced.get(&(String::new(), reference.name.clone()))),
        }
    }
}
