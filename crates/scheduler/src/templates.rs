//! Whether the parameters of a policy fit the templates that it names: the part of `Accepted` that needs a look at other
//! objects.
//!
//! Looked at when the spec is new, and again every [`LOOK_AGAIN`] while the policy is refused. A template that changes
//! later does not unaccept a policy; the run that it no longer fits says so.

use jiff::SignedDuration;
use kube::{Api, Client, ResourceExt as _};
use stillpoint_api::policy::{BackupPolicy, TemplateKind, TemplateRef};
use stillpoint_api::template::{ClusterHookTemplate, HookTemplate, Recipe};
use stillpoint_api::validate::{Finding, application_against_template};

use crate::accept::Refusal;

/// How soon a refused policy is looked at again: its template may be applied after it.
pub(crate) const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(60);

/// Whether a look is due: the spec is new, or the policy is refused as it stands.
pub(crate) fn is_due(policy: &BackupPolicy) -> bool {
    let status = policy.status.as_ref();
    let seen = status.and_then(|status| status.observed_generation);
    let accepted = status
        .and_then(|status| status.conditions.iter().find(|condition| condition.type_ == "Accepted"))
        .is_some_and(|condition| condition.status == "True");
    seen != policy.metadata.generation || !accepted
}

/// What keeps the policy from its templates, if anything.
///
/// # Errors
/// A template could not be read.
pub(crate) async fn refusal(client: &Client, policy: &BackupPolicy) -> Result<Option<Refusal>, kube::Error> {
    let mut findings = Vec::new();
    for (index, application) in policy.spec.applications.iter().enumerate() {
        // Without a reference the template follows from the pods, which only a run looks at.
        let Some(reference) = &application.template_ref else { continue };
        match read(client, policy, reference).await? {
            None => findings.push(Finding::new(
                format!("spec.applications[{index}].templateRef"),
                "TemplateNotFound",
                format!(
                    "there is no {:?} {}: apply it (config/templates has the shipped ones), or correct the name",
                    reference.kind, reference.name
                ),
            )),
            Some(recipe) => findings.extend(application_against_template(application, &recipe).into_iter().map(
                |finding| Finding::new(format!("spec.{}", finding.path), finding.rule, finding.message),
            )),
        }
    }
    Ok((!findings.is_empty()).then(|| Refusal::from(findings.as_slice())))
}

async fn read(
    client: &Client,
    policy: &BackupPolicy,
    reference: &TemplateRef,
) -> Result<Option<Recipe>, kube::Error> {
    match reference.kind {
        TemplateKind::ClusterHookTemplate => {
            let all: Api<ClusterHookTemplate> = Api::all(client.clone());
            Ok(all.get_opt(&reference.name).await?.map(|found| found.spec.0))
        }
        TemplateKind::HookTemplate => {
            let own: Api<HookTemplate> =
                Api::namespaced(client.clone(), &policy.namespace().unwrap_or_default());
            Ok(own.get_opt(&reference.name).await?.map(|found| found.spec.0))
        }
    }
}
