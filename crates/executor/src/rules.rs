//! The ProtectionRules that hold for a namespace, read anew for every attempt and every Restore: what a run uses is
//! judged by what holds when it begins, whoever created it and whatever its policy was accepted with.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::ListParams;
use stillpoint_api::rule::{ProtectionRule, RULE_VIOLATION, judge};

use crate::context::{Context, RequestError, bounded};
use crate::resolve::Refusal;

/// The rules that hold for a namespace with these labels. A cluster that does not serve rules has none.
///
/// # Errors
/// They could not be listed.
pub(crate) async fn holding(
    context: &Context,
    labels: &BTreeMap<String, String>,
) -> Result<Vec<ProtectionRule>, RequestError> {
    let api: Api<ProtectionRule> = Api::all(context.client.clone());
    match bounded("list ProtectionRules", api.list(&ListParams::default())).await {
        Ok(all) => Ok(ProtectionRule::holding(&all.items, labels).into_iter().cloned().collect()),
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The rules that hold for `namespace`.
///
/// # Errors
/// They, or the namespace, could not be read.
pub(crate) async fn of_namespace(
    context: &Context,
    namespace: &str,
) -> Result<Vec<ProtectionRule>, RequestError> {
    let spaces: Api<Namespace> = Api::all(context.client.clone());
    let space = bounded(format!("read Namespace {namespace}"), spaces.get_opt(namespace)).await?;
    let labels = space.and_then(|space| space.metadata.labels).unwrap_or_default();
    holding(context, &labels).await
}

/// The refusal of what is outside, if anything is.
///
/// # Errors
/// `RuleViolation`, naming every rule and field.
pub(crate) fn inside(violations: &[judge::Violation]) -> Result<(), Refusal> {
    if violations.is_empty() {
        return Ok(());
    }
    Err(Refusal::stands(RULE_VIOLATION, judge::told(violations)))
}
