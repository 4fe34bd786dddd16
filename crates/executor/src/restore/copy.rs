//! Runs a template's `afterRestore` and `checks` in a container that was started on restored claims.
//!
//! Steps may write, so they run in copies only: every claim of the pod that the Backup knows by name is the original's, and
//! such a pod is refused. The template is the kept copy of what the run used; a later edit changes nothing.

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde::Serialize;
use stillpoint_api::backup::{Backup, BackupStatus};
use stillpoint_api::evidence::ResolvedApplication;
use stillpoint_api::restore::{RESTORE_LABEL, Restore};
use stillpoint_api::template::Recipe;
use stillpoint_api::template::restored::Expect;

use crate::client_words::{Said, explain};
use crate::context::{Context, RequestError, bounded};
use crate::exec::{ExecTarget, Outcome, run_once};
use crate::ownership::templates_kept;
use crate::resolve::pods::volume_claims;
use crate::resolve::{Refusal, ask};
use crate::session;

/// What is asked for besides the pod.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// The application, where a Backup has several.
    pub application: Option<String>,
    /// The container, where the pod has several and none is called as the original's.
    pub container: Option<String>,
}

/// A running copy, and what its template says about it.
#[derive(Clone, Debug)]
pub struct Copy {
    /// The Backup whose data it has.
    pub backup: String,
    /// The application of that Backup.
    pub application: String,
    /// Name of the template that the run used.
    pub template: String,
    /// The template, parameters substituted.
    pub recipe: Recipe,
    target: ExecTarget,
}

/// What was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// A step that makes the copy usable.
    AfterRestore,
    /// A check.
    Check,
}

/// What came of one step or check.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Done {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// How long it took, seconds.
    pub seconds: f64,
    /// Why it failed; nothing when it passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// One step or check.
struct Task<'a> {
    kind: Kind,
    name: &'a str,
    argv: &'a [String],
    within: Duration,
    expect: Option<&'a Expect>,
}

impl Copy {
    /// `pod/container`.
    pub fn place(&self) -> String {
        format!("{}/{}", self.target.pod, self.target.container)
    }

    /// Finds what a pod is a copy of.
    ///
    /// # Errors
    /// It does not run, is no copy, or what it is a copy of is not known any more.
    pub async fn find(context: &Context, namespace: &str, pod: &str, wish: &Wish) -> Result<Self, Refusal> {
        let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
        let found = asked("read the pod", pods.get_opt(pod)).await?;
        let pod = found
            .ok_or_else(|| Refusal::stands("PodNotFound", format!("there is no pod {pod} in {namespace}")))?;
        let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
        let mut claims = Vec::new();
        for name in volume_claims(&pod).values() {
            claims.extend(asked("read a claim of the pod", api.get_opt(name)).await?);
        }
        let uid = restore_of(&pod, &claims)?;
        let restores: Api<Restore> = Api::namespaced(context.client.clone(), namespace);
        let all = asked("list the Restores", restores.list(&ListParams::default())).await?.items;
        let name = all
            .into_iter()
            .find(|restore| restore.uid().as_ref() == Some(&uid))
            .and_then(|restore| restore.status?.backup)
            .ok_or_else(|| {
                Refusal::stands(
                    "RestoreUnknown",
                    format!(
                        "the Restore of pod {}'s claims is gone or names no Backup, so that nobody knows which template fits them",
                        pod.name_any()
                    ),
                )
            })?;
        let backups: Api<Backup> = Api::namespaced(context.client.clone(), namespace);
        let backup = asked("read the Backup", backups.get_opt(&name)).await?;
        let status = backup.and_then(|backup| backup.status).ok_or_else(|| {
            Refusal::stands(
                "BackupGone",
                format!("Backup {name}, whose data these are, is gone, and its template with it"),
            )
        })?;
        not_the_original(&pod, &status)?;
        let application = application(&status, wish.application.as_deref())?;
        let container = container(&pod, &status, &application.name, wish.container.as_deref())?;
        let recipe = templates_kept::read(context, namespace, &application.digest)
            .await
            .map_err(|error| Refusal::stands("TemplateNotKept", error.to_string()))?;
        let target = ask::target(context, namespace, &pod, &container, Vec::new());
        Ok(Self {
            backup: name,
            application: application.name.clone(),
            template: application.template.as_ref().map(|template| template.name.clone()).unwrap_or_default(),
            recipe,
            target,
        })
    }

    /// Runs the steps, and unless one of them failed every check; `tell` hears of each when it is over.
    pub async fn check(&self, context: &Context, mut tell: impl FnMut(&Done)) -> Vec<Done> {
        let steps = self.recipe.after_restore.iter().map(|step| Task {
            kind: Kind::AfterRestore,
            name: &step.name,
            argv: &step.command,
            within: step.within(),
            expect: None,
        });
        let checks = self.recipe.checks.iter().map(|check| Task {
            kind: Kind::Check,
            name: &check.name,
            argv: &check.command,
            within: check.within(),
            expect: check.expect.as_ref(),
        });
        let mut all = Vec::new();
        for task in steps.chain(checks) {
            let done = self.run(context, &task).await;
            tell(&done);
            let unusable = task.kind == Kind::AfterRestore && done.failure.is_some();
            all.push(done);
            if unusable {
                break;
            }
        }
        all
    }

    async fn run(&self, context: &Context, task: &Task<'_>) -> Done {
        let target = ExecTarget { argv: task.argv.to_vec(), ..self.target.clone() };
        let began = context.clock.mono();
        let result = run_once(&*context.exec, &target, None, task.within).await;
        let seconds = context.clock.mono().since(began).as_secs_f64();
        let failure = match result {
            Err(error) => Some(session::refused(&target, &error).message),
            Ok(done) => match (&done.outcome, done.refusal()) {
                (_, Some(error)) => Some(session::refused(&target, &error).message),
                (Outcome::Exited(0), None) if done.stdout_truncated => {
                    Some("it printed more than is kept, so that nothing can be expected of it".to_owned())
                }
                (Outcome::Exited(0), None) => task.expect.and_then(|expect| expect.unmet(&done.stdout)),
                (Outcome::Exited(code), None) => {
                    let how = format!("it ended with {code}");
                    Some(explain(&self.place(), &how, Said::by(&done, &self.recipe.messages)).message)
                }
                (outcome, None) => Some(format!(
                    "how it ended is not known after {seconds:.0} s ({outcome:?}); it may still run, its timeout is {:?}",
                    task.within
                )),
            },
        };
        Done { name: task.name.to_owned(), kind: task.kind, seconds, failure }
    }
}

async fn asked<T>(what: &str, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Refusal> {
    bounded(what, request).await.map_err(|error: RequestError| {
        let reason = if error.is_forbidden() { "Forbidden" } else { "ApiUnavailable" };
        Refusal { reason, may_pass: !error.is_forbidden(), message: error.to_string() }
    })
}

/// UID of the Restore that made the pod's claims.
fn restore_of(pod: &Pod, claims: &[PersistentVolumeClaim]) -> Result<String, Refusal> {
    // The label of that name is shortened where the Restore's is long.
    let mut restores: Vec<&String> =
        claims.iter().filter_map(|claim| claim.annotations().get(RESTORE_LABEL)).collect();
    restores.sort();
    restores.dedup();
    match restores.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(Refusal::stands(
            "NotACopy",
            format!(
                "pod {} has no claim that a Restore made: start it on claims of `stillpoint restore run`; \
                 steps after a restore never run in an original",
                pod.name_any()
            ),
        )),
        _ => Err(Refusal::stands(
            "SeveralRestores",
            format!("pod {} has claims of several Restores, which are of different instants", pod.name_any()),
        )),
    }
}

/// A pod that has a claim of the Backup's members has the original's data.
fn not_the_original(pod: &Pod, status: &BackupStatus) -> Result<(), Refusal> {
    let claims = volume_claims(pod);
    let original =
        claims.values().find(|name| status.members.iter().any(|member| member.claim_name == **name));
    match original {
        None => Ok(()),
        Some(claim) => Err(Refusal::stands(
            "NotACopy",
            format!(
                "pod {} has the original's claim {claim} beside a restored one: nothing is run in it",
                pod.name_any()
            ),
        )),
    }
}

fn application<'a>(
    status: &'a BackupStatus,
    wished: Option<&str>,
) -> Result<&'a ResolvedApplication, Refusal> {
    let all: &[ResolvedApplication] = status.resolved.as_ref().map_or(&[], |resolved| &resolved.applications);
    let names = || all.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ");
    match (all, wished) {
        ([one], None) => Ok(one),
        (_, None) => Err(Refusal::stands(
            "ApplicationNotSaid",
            format!("the Backup has several applications, say which (--application): {}", names()),
        )),
        (_, Some(name)) => all.iter().find(|one| one.name == name).ok_or_else(|| {
            Refusal::stands(
                "ApplicationUnknown",
                format!("the Backup has no application {name}; it has {}", names()),
            )
        }),
    }
}

/// The one that is asked for, the only one, or the one that is called as the original's.
fn container(
    pod: &Pod,
    status: &BackupStatus,
    application: &str,
    wished: Option<&str>,
) -> Result<String, Refusal> {
    let all: Vec<&str> =
        pod.spec.iter().flat_map(|spec| &spec.containers).map(|container| container.name.as_str()).collect();
    let held =
        status.holds.iter().find(|hold| hold.application == application).map(|hold| hold.container.as_str());
    let chosen = match (wished, all.as_slice()) {
        (Some(name), _) => all.iter().find(|one| **one == name).copied(),
        (None, [one]) => Some(*one),
        (None, _) => held.filter(|name| all.contains(name)),
    };
    chosen.map(str::to_owned).ok_or_else(|| {
        Refusal::stands(
            "ContainerNotSaid",
            format!(
                "pod {} has the containers {}: say in which the server runs (--container)",
                pod.name_any(),
                all.join(", ")
            ),
        )
    })
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
