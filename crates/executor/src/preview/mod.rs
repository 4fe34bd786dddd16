//! A preview: what a run would detect, freeze and cut, what its point could be worth at best, and what stands in its way.
//!
//! Guarantees: nothing is changed and nothing is held. It is read and decided by the resolver of a run ([`crate::resolve`]),
//! the snapshot requests are sent with `dryRun=All`, and what a point could be worth is said by the verdict itself
//! ([`best`]). In the containers only what tells roles and volume roles is run, as a run does before its freeze, and not
//! even that where the run is not admitted or where nothing shall be asked; what is then taken for granted is listed in
//! [`Preview::unknown`].

mod best;
mod foresee;
#[cfg(test)]
mod tests;
mod unprotected;

use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use stillpoint_api::backup::Backup;
use stillpoint_api::policy::TemplateRef;

pub use self::unprotected::unprotected;
use crate::context::{Context, HOOKS_ACCOUNT, bounded};
use crate::resolve::{Nonces, Refusal, Resolution, ask, decide, observe, preflight};
use crate::verdict::Judgement;

/// What a run would do, as far as that can be told without beginning one.
#[derive(Debug)]
pub struct Preview {
    /// What was found for each application, in the policy's order.
    pub found: Vec<Found>,
    /// How it would be carried out.
    pub parts: Vec<Part>,
    /// Why a run cannot begin, or why its point would not be kept, in the order in which a run would notice.
    pub missing: Vec<Refusal>,
    /// What only a run or a rehearsal can tell, and what was taken for granted instead.
    pub unknown: Vec<String>,
}

/// What was found for one application.
#[derive(Debug)]
pub struct Found {
    /// The application.
    pub application: String,
    /// Its template, and by what it was found.
    pub template: Option<(TemplateRef, Origin)>,
    /// UIDs of the pods that its selector finds.
    pub pod_uids: Vec<String>,
    /// Role of each pod that told one, by the pod's name.
    pub roles: Vec<(String, String)>,
}

/// By what a template was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The policy names it.
    Named,
    /// The annotation `stillpoint.dev/template` of this pod.
    Annotation(String),
    /// The image of a container.
    Image(String),
}

/// What would be held and cut together: all of a run where it can be resolved, else each application that can be alone.
#[derive(Debug)]
pub struct Part {
    /// As a run resolves it.
    pub resolution: Resolution,
    /// What the best evidence that this can leave proves.
    pub best: Judgement,
}

/// Whether containers are asked for what only they know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asking {
    /// Roles and volume roles, as a run asks for them.
    AsARun,
    /// Nothing is run in any container.
    Nothing,
}

/// Foresees the run of `backup`, which need not exist.
///
/// # Errors
/// It could not be read, or no Backup may look like this.
pub async fn preview(context: &Context, backup: &Backup, asking: Asking) -> Result<Preview, Refusal> {
    if let Some(first) = stillpoint_api::validate::backup(backup).first() {
        return Err(Refusal::stands("NotAccepted", format!("{}: {}", first.path, first.message)));
    }
    let mut observed = observe::observe(context, backup).await?;
    // A run that is not admitted asks nothing, and neither do we; the decision below says why.
    let asked = asking == Asking::AsARun && ask::ask(context, backup, &mut observed).await.is_ok();
    let mut unknown = Vec::new();
    if !asked {
        for application in &mut observed.applications {
            unknown.extend(foresee::suppose(application));
        }
    }
    let Nonces { attempt: nonce, holds: hold_nonces } = Nonces::draw(&*context.entropy, &observed)?;
    let given = decide::Given {
        backup,
        attempt: 1,
        nonce: &nonce,
        hold_nonces: &hold_nonces,
        storage: &context.storage,
        impersonate: context.impersonate,
    };
    let foreseen = foresee::foresee(&given, &observed, asked);
    let mut preview = Preview {
        found: observed.applications.iter().map(foresee::found).collect(),
        parts: Vec::new(),
        missing: foreseen.missing,
        unknown,
    };
    preview.unknown.extend(foreseen.unknown);
    for resolution in foreseen.resolutions {
        let best = best::at_best(&resolution);
        preview.missing.extend(best::not_proven(&resolution, &best));
        preview.parts.push(Part { resolution, best });
    }
    if observed.opted_in && !(asked && preview.told_roles()) {
        preview.bound(context, &backup.namespace().unwrap_or_default()).await;
    }
    if foreseen.whole {
        preview.cuts(context, nonce.as_str()).await;
    }
    for part in &preview.parts {
        preview.unknown.extend(foresee::only_a_session_tells(&part.resolution, asked));
    }
    Ok(preview)
}

impl Preview {
    /// Whether something was run in a container, and so could be.
    fn told_roles(&self) -> bool {
        self.found.iter().any(|found| !found.roles.is_empty())
    }

    /// Whether the account is bound to anything that lets hooks run; only an exec tells for sure.
    async fn bound(&mut self, context: &Context, namespace: &str) {
        let runs = |part: &Part| !part.resolution.holds.is_empty() || !part.resolution.prepares.is_empty();
        if !self.parts.iter().any(runs) {
            return;
        }
        let api: Api<RoleBinding> = Api::namespaced(context.client.clone(), namespace);
        let bindings = match bounded("list RoleBindings", api.list(&ListParams::default())).await {
            Ok(listed) => listed.items,
            Err(error) => {
                self.unknown.push(format!("whether ServiceAccount {HOOKS_ACCOUNT} may run hooks: {error}"));
                return;
            }
        };
        let ours = |binding: &RoleBinding| {
            binding.subjects.iter().flatten().any(|subject| {
                subject.kind == "ServiceAccount"
                    && subject.name == HOOKS_ACCOUNT
                    && subject.namespace.as_deref().unwrap_or(namespace) == namespace
            })
        };
        if !bindings.iter().any(ours) {
            self.missing.push(Refusal::stands(
                "ExecForbidden",
                format!(
                    "no RoleBinding of namespace {namespace} names ServiceAccount {HOOKS_ACCOUNT}: bind ClusterRole \
                     {HOOKS_ACCOUNT} to it, so that hooks may run here (config/samples/namespace-optin.yaml)"
                ),
            ));
        }
    }

    /// Rehearses the snapshot requests, as the preflight of a run does, with the rights of who asks.
    async fn cuts(&mut self, context: &Context, nonce: &str) {
        for part in &self.parts {
            for error in preflight::rehearse_all(context, &part.resolution, nonce).await {
                // Quota is told by the same code; the authorizer alone says it like this.
                let not_allowed =
                    error.is_forbidden() && error.to_string().contains("cannot create resource");
                if not_allowed {
                    self.unknown.push(format!(
                        "whether the snapshot requests would be admitted (quota, admission): they are rehearsed with your \
                         rights, and {error}"
                    ));
                    break;
                }
                self.missing.push(preflight::refusal_of(&error));
            }
        }
    }

    /// Whether a run could begin and its point would be kept, as far as is known.
    pub fn could_run(&self) -> bool {
        self.missing.is_empty()
    }
}

impl Part {
    /// The rules that could not be proven for an application however well the run goes, with what would be found.
    pub fn missing_of(&self, application: &str) -> Vec<String> {
        let of = self.best.verdict.missing.iter().filter(|finding| finding.application == application);
        of.map(|finding| format!("rule {}: {}", finding.rule, finding.finding)).collect()
    }
}
