//! Which of the selected pods are held: all, the only one, or the one whose role the template prefers. Pure.
//!
//! Never a guess: several pods without a rule that tells them apart are refused, and so is a pod whose role could not be
//! asked where that leaves none.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt;
use stillpoint_api::policy::{Application, PodChoice};
use stillpoint_api::template::{ClientMessage, Recipe, RoleRule, Target};

use super::Refusal;
use super::pods::{container_runs, is_live, selector_text};

/// What the role command of each pod printed, or why it did not; by UID of the pod.
pub type Roles = BTreeMap<String, Result<String, Refusal>>;

/// A pod that is held.
#[derive(Clone, Debug)]
pub struct Chosen<'p> {
    /// The pod.
    pub pod: &'p Pod,
    /// Its role, where the template asks for one.
    pub role: Option<String>,
}

impl Chosen<'_> {
    /// For the record (docs/design/freeze.md §4.4); nothing where the template has no role rule.
    pub fn evidence(&self) -> Option<String> {
        let role = self.role.as_ref()?;
        Some(format!("{}/{}={role}", self.pod.name_any(), self.pod.uid().unwrap_or_default()))
    }
}

/// How the pods of an application are told apart, as the policy and its template say together.
#[derive(Clone, Debug)]
pub struct PodRule {
    /// Whether every selected pod is held, or one.
    pub all: bool,
    /// How roles are asked and which count.
    pub role: Option<RoleRule>,
    /// Container that is asked and held.
    pub container: ContainerRule,
    /// What the words of a client that could not answer mean.
    pub messages: Vec<ClientMessage>,
}

/// Which container of a pod is meant.
#[derive(Clone, Debug, Default)]
pub struct ContainerRule {
    /// The policy's: a demand.
    asked: Option<String>,
    /// The template's: a default for images that use this name.
    of_template: Option<String>,
}

impl PodRule {
    /// The rule of an application with its template.
    pub fn of(application: &Application, recipe: &Recipe) -> Self {
        let target: Option<&Target> = recipe.target.as_ref();
        let all = match (application.pods, target.map(|target| target.pods)) {
            (PodChoice::All, _) | (PodChoice::Auto, Some(PodChoice::All)) => true,
            (PodChoice::One, _) | (PodChoice::Auto, Some(PodChoice::Auto | PodChoice::One) | None) => false,
        };
        Self {
            all,
            role: target.and_then(|target| target.role.clone()),
            container: ContainerRule {
                asked: application.container.clone(),
                of_template: target.and_then(|target| target.container.clone()),
            },
            messages: recipe.messages.clone(),
        }
    }

    /// The pods that are held, by name.
    ///
    /// # Errors
    /// There is none, or nothing tells which.
    pub fn choose<'p>(
        &self,
        application: &Application,
        pods: &'p [Pod],
        roles: &Roles,
    ) -> Result<Vec<Chosen<'p>>, Refusal> {
        let name = &application.name;
        let mut live: Vec<&Pod> = pods.iter().filter(|pod| is_live(pod)).collect();
        live.sort_by_key(|pod| pod.name_any());
        if live.is_empty() {
            return Err(Refusal::may_pass(
                "NoPods",
                format!(
                    "application {name}: no pod matches {:?}; correct applications[].selector, or start the workload",
                    selector_text(&application.selector)
                ),
            ));
        }
        match (&self.role, self.all) {
            (None, true) => Ok(live.into_iter().map(|pod| Chosen { pod, role: None }).collect()),
            (None, false) => match live.as_slice() {
                [pod] => Ok(vec![Chosen { pod, role: None }]),
                several => {
                    let names = several.iter().map(|pod| pod.name_any()).collect::<Vec<_>>().join(", ");
                    Err(Refusal::stands(
                        "SeveralPods",
                        format!(
                            "application {name}: {} pods match ({names}), exactly one is meant, and the template has no \
                             role rule that tells which: narrow the selector, or write pods: All to hold every one",
                            several.len()
                        ),
                    ))
                }
            },
            (Some(rule), true) => live
                .into_iter()
                .map(|pod| {
                    let role = role_of(pod, roles)?;
                    if rule.accept.contains(&role) {
                        return Ok(Chosen { pod, role: Some(role) });
                    }
                    Err(refused_roles(name, rule, &[(pod, Ok(role))], "and pods: All holds every one"))
                })
                .collect(),
            (Some(rule), false) => preferred(name, rule, &live, roles).map(|chosen| vec![chosen]),
        }
    }
}

/// The pod with the first accepted role; among equals the first by name, so that the choice can be made again.
fn preferred<'p>(
    application: &str,
    rule: &RoleRule,
    live: &[&'p Pod],
    roles: &Roles,
) -> Result<Chosen<'p>, Refusal> {
    let said: Vec<(&Pod, Result<String, Refusal>)> =
        live.iter().map(|pod| (*pod, role_of(pod, roles))).collect();
    let rank = |role: &String| rule.accept.iter().position(|accepted| accepted == role);
    let best = said
        .iter()
        .filter_map(|(pod, role)| Some((rank(role.as_ref().ok()?)?, *pod, role.as_ref().ok()?)))
        .min_by_key(|(rank, pod, _)| (*rank, pod.name_any()));
    if let Some((_, pod, role)) = best {
        return Ok(Chosen { pod, role: Some(role.clone()) });
    }
    // A pod that could not be asked may be the one that is meant.
    if let Some(why) = said.iter().find_map(|(_, role)| role.as_ref().err()) {
        return Err(why.clone());
    }
    Err(refused_roles(application, rule, &said, "and one is needed"))
}

fn role_of(pod: &Pod, roles: &Roles) -> Result<String, Refusal> {
    roles.get(&pod.uid().unwrap_or_default()).cloned().unwrap_or_else(|| {
        Err(Refusal::may_pass("RoleUnknown", format!("the role of pod {} was not asked", pod.name_any())))
    })
}

fn refused_roles(
    application: &str,
    rule: &RoleRule,
    said: &[(&Pod, Result<String, Refusal>)],
    demand: &str,
) -> Refusal {
    let roles: Vec<String> = said
        .iter()
        .map(|(pod, role)| format!("{} is {}", pod.name_any(), role.as_deref().unwrap_or("unknown")))
        .collect();
    Refusal::may_pass(
        "RoleNotAccepted",
        format!(
            "application {application}: {}; the template holds {}, {demand}: wait for a failover to end, or select pods \
             that have such a role",
            roles.join(", "),
            rule.accept.join(" or ")
        ),
    )
}

impl ContainerRule {
    /// The container of a pod that is meant.
    pub fn find<'p>(&self, pod: &'p Pod) -> Option<&'p Container> {
        let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
        let by_name = |name: &str| containers.iter().find(|container| container.name == name);
        match self.asked.as_deref() {
            Some(name) => by_name(name),
            None => self.of_template.as_deref().and_then(by_name).or_else(|| containers.first()),
        }
    }

    /// The same, where it runs.
    ///
    /// # Errors
    /// It is not there, or does not run.
    pub fn running<'p>(&self, application: &str, pod: &'p Pod) -> Result<&'p Container, Refusal> {
        let Some(container) = self.find(pod) else {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let names = containers.map(|container| container.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Refusal::stands(
                "ContainerNotFound",
                format!(
                    "application {application}: pod {} has no container {}; it has {names}",
                    pod.name_any(),
                    self.asked.as_deref().unwrap_or("")
                ),
            ));
        };
        if !container_runs(pod, &container.name) {
            return Err(Refusal::may_pass(
                "PodNotReady",
                format!(
                    "application {application}: container {} of pod {} does not run",
                    container.name,
                    pod.name_any()
                ),
            ));
        }
        Ok(container)
    }
}
