//! Asks inside the pods what only they know: their role, and where their volumes' data lies.
//!
//! Each question is one bounded exec as the namespace's own account, while nothing is frozen. Nothing is asked of a run
//! that is not admitted. What is answered is data; [`super::decide`] judges it.

use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use stillpoint_api::backup::Backup;
use stillpoint_api::template::{ClientMessage, Recipe};

use super::Refusal;
use super::choose::{PodRule, Roles};
use super::decide::{admit, recipe_of};
use super::observe::Observed;
use super::pods::is_live;
use super::stages::VolumePaths;
use crate::client_words::{Said, explain};
use crate::context::Context;
use crate::exec::{ExecTarget, Outcome, run_once};
use crate::session;

/// Longest time a question may take: a query on a local socket, with room for a busy server.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Longest role that is kept, as the template format allows.
const MAX_ROLE: usize = 63;

/// Asks everything that the templates of a run want to know.
///
/// # Errors
/// The run is not admitted. A question without an answer is kept with its reason.
pub async fn ask(context: &Context, backup: &Backup, observed: &mut Observed) -> Result<(), Refusal> {
    admit(backup, observed)?;
    let namespace = backup.namespace().unwrap_or_default();
    for application in &mut observed.applications {
        // Whatever is wrong with it, the decision says so.
        let Ok((_, recipe)) = recipe_of(application) else { continue };
        let rule = PodRule::of(&application.spec, &recipe);
        let name = &application.spec.name;
        application.roles = roles(context, &namespace, name, &rule, &application.pods).await;
        let chosen = rule.choose(&application.spec, &application.pods, &application.roles);
        let chosen: Vec<Pod> = chosen.unwrap_or_default().into_iter().map(|one| one.pod.clone()).collect();
        application.volume_paths = volume_paths(context, &namespace, name, &rule, &recipe, &chosen).await;
    }
    Ok(())
}

/// Asks every pod that may be meant for its role; nothing where the template has no role rule.
pub async fn roles(
    context: &Context,
    namespace: &str,
    application: &str,
    rule: &PodRule,
    pods: &[Pod],
) -> Roles {
    let Some(role) = &rule.role else { return Roles::new() };
    let questions = pods.iter().filter(|pod| is_live(pod)).map(|pod| async {
        let answer = match rule.container.running(application, pod) {
            Ok(container) => {
                let target = target(context, namespace, pod, &container.name, role.command.clone());
                printed(context, application, &target, "its role", &rule.messages)
                    .await
                    .and_then(|said| one_word(&target, &said))
            }
            Err(refusal) => Err(refusal),
        };
        (pod.uid().unwrap_or_default(), answer)
    });
    join_all(questions).await.into_iter().collect()
}

/// Asks every held pod where the data of each role lies; nothing where the template has no such roles.
async fn volume_paths(
    context: &Context,
    namespace: &str,
    application: &str,
    rule: &PodRule,
    recipe: &Recipe,
    pods: &[Pod],
) -> VolumePaths {
    let of_pod = |pod: &Pod| {
        let roles: Vec<(String, Vec<String>)> =
            recipe.volume_roles.iter().map(|(role, asked)| (role.clone(), asked.command.clone())).collect();
        let container = rule.container.running(application, pod).map(|container| container.name.clone());
        let pod = pod.clone();
        roles.into_iter().map(move |(role, argv)| (pod.clone(), container.clone(), role, argv))
    };
    let questions = pods.iter().flat_map(of_pod).map(|(pod, container, role, argv)| async move {
        let answer = match container {
            Ok(container) => {
                let target = target(context, namespace, &pod, &container, argv);
                let what = format!("where its {role} lies");
                printed(context, application, &target, &what, &rule.messages)
                    .await
                    .and_then(|said| absolute_paths(&target, &role, &said))
            }
            Err(refusal) => Err(refusal),
        };
        ((pod.uid().unwrap_or_default(), role), answer)
    });
    join_all(questions).await.into_iter().collect()
}

fn absolute_paths(target: &ExecTarget, role: &str, said: &str) -> Result<Vec<String>, Refusal> {
    let paths: Vec<String> =
        said.lines().map(str::trim).filter(|line| !line.is_empty()).map(ToOwned::to_owned).collect();
    if !paths.is_empty() && paths.iter().all(|path| path.starts_with('/')) {
        return Ok(paths);
    }
    Err(Refusal::stands(
        "VolumeRoleUnknown",
        format!(
            "{}/{}: the template's command for the volume role {role} must print absolute paths, one a line; it printed {} \
             lines that are none",
            target.pod,
            target.container,
            said.lines().filter(|line| !line.trim().starts_with('/')).count()
        ),
    ))
}

/// A command in a container of `pod`, as the account of its namespace's hooks.
pub fn target(
    context: &Context,
    namespace: &str,
    pod: &Pod,
    container: &str,
    argv: Vec<String>,
) -> ExecTarget {
    ExecTarget {
        impersonate: context.impersonate.then(|| ExecTarget::hooks_user(namespace)),
        namespace: namespace.to_owned(),
        pod: pod.name_any(),
        pod_uid: pod.uid().unwrap_or_default(),
        container: container.to_owned(),
        argv,
        stdin: false,
    }
}

/// What a command printed, without surrounding white space.
async fn printed(
    context: &Context,
    application: &str,
    target: &ExecTarget,
    what: &str,
    messages: &[ClientMessage],
) -> Result<String, Refusal> {
    let place = format!("application {application}: {}/{}", target.pod, target.container);
    let refused = |why: crate::run::Abort| Refusal {
        reason: why.reason.as_str(),
        may_pass: why.reason.may_pass(),
        message: format!("application {application}: {}", why.message),
    };
    let done = run_once(&*context.exec, target, None, ANSWER_WITHIN)
        .await
        .map_err(|error| refused(session::refused(target, &error)))?;
    match (&done.outcome, done.refusal()) {
        (Outcome::Exited(0), _) if !done.stdout_truncated => Ok(done.stdout.trim().to_owned()),
        (_, Some(error)) => Err(refused(session::refused(target, &error))),
        (outcome, None) => {
            let how = format!("the command that tells {what} failed ({outcome:?})");
            let mut why = explain(&place, &how, Said::by(&done, messages));
            why.message.push_str("; try it by hand in the container");
            Err(Refusal { reason: why.reason.as_str(), may_pass: true, message: why.message })
        }
    }
}

fn one_word(target: &ExecTarget, said: &str) -> Result<String, Refusal> {
    if !said.is_empty() && said.chars().count() <= MAX_ROLE && !said.chars().any(char::is_control) {
        return Ok(said.to_owned());
    }
    Err(Refusal::stands(
        "RoleUnknown",
        format!(
            "{}/{}: the template's role command must print one role of at most {MAX_ROLE} characters and nothing else; \
             it printed {} lines",
            target.pod,
            target.container,
            said.lines().count()
        ),
    ))
}
