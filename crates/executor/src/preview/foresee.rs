//! From what was read to what a run would do, and to all that stands in its way. Pure.
//!
//! A run stops at the first refusal. Here what was refused is noted and overlooked, so that one look tells everything:
//! what is overlooked changes nothing about what would be held and cut.

use kube::ResourceExt;
use stillpoint_api::evidence::HoldKind;
use stillpoint_api::policy::Requirement;
use stillpoint_api::rule::RULE_VIOLATION;

use super::{Found, Origin};
use crate::context::HOOKS_ACCOUNT;
use crate::resolve::choose::PodRule;
use crate::resolve::decide::{Given, decide, recipe_of};
use crate::resolve::observe::{Observed, ObservedApplication, TEMPLATE_ANNOTATION};
use crate::resolve::pods::{is_live, volume_claims};
use crate::resolve::{Refusal, Resolution, SNAPSHOT_IN_FLIGHT};

/// What would be done, and what stands in the way.
#[derive(Debug, Default)]
pub(super) struct Foreseen {
    /// One for the whole run, or one for each application that could be resolved alone.
    pub(super) resolutions: Vec<Resolution>,
    /// Whether it is the whole run.
    pub(super) whole: bool,
    /// What stands in the way, each once.
    pub(super) missing: Vec<Refusal>,
    /// What was not asked.
    pub(super) unknown: Vec<String>,
}

impl Foreseen {
    fn note(&mut self, refusal: Refusal, asked: bool) {
        // Not a fault of the run: nobody asked.
        if !asked && matches!(refusal.reason, "RoleUnknown" | "VolumeRoleUnknown") {
            if !self.unknown.contains(&refusal.message) {
                self.unknown.push(refusal.message);
            }
        } else if !self.missing.contains(&refusal) {
            self.missing.push(refusal);
        }
    }
}

/// Decides as a run does, past everything that can be overlooked. `asked`: the containers were asked what only they know.
pub(super) fn foresee(given: &Given<'_>, observed: &Observed, asked: bool) -> Foreseen {
    let mut foreseen = Foreseen::default();
    if let Some(resolution) = past_refusals(given, observed.clone(), asked, &mut foreseen) {
        foreseen.resolutions.push(resolution);
        foreseen.whole = true;
        return foreseen;
    }
    if observed.applications.len() < 2 {
        return foreseen;
    }
    // What stands in the way of one hides what stands in the way of another.
    for application in &observed.applications {
        let alone = Observed { applications: vec![application.clone()], ..observed.clone() };
        let mut of_one = Foreseen::default();
        let resolution = past_refusals(given, alone, asked, &mut of_one);
        foreseen.resolutions.extend(resolution);
        foreseen.unknown.extend(of_one.unknown);
        for refusal in of_one.missing {
            // A claim that two applications share looks like a stranger's when one of them is away.
            if refusal.reason != "PodNotHeld" {
                foreseen.note(refusal, asked);
            }
        }
    }
    foreseen
}

fn past_refusals(
    given: &Given<'_>,
    mut observed: Observed,
    asked: bool,
    foreseen: &mut Foreseen,
) -> Option<Resolution> {
    loop {
        let refusal = match decide(given, &observed) {
            Ok(resolution) => return Some(resolution),
            Err(refusal) => refusal,
        };
        let overlooked = overlook(&refusal, &mut observed);
        foreseen.note(refusal, asked);
        if !overlooked {
            return None;
        }
    }
}

/// Takes away what was refused; whether there is any sense in deciding again. Every refusal is overlooked once at most.
fn overlook(refusal: &Refusal, observed: &mut Observed) -> bool {
    match refusal.reason {
        "NamespaceNotOptedIn" => !std::mem::replace(&mut observed.opted_in, true),
        RULE_VIOLATION => !std::mem::take(&mut observed.rules).is_empty(),
        SNAPSHOT_IN_FLIGHT => !std::mem::take(&mut observed.in_flight).is_empty(),
        "WindowTooLong" => !std::mem::take(&mut observed.measured).is_empty(),
        // What cannot be proven is refused for those who demand proof; what it would be worth is still worth telling.
        "StorageNotTrusted" | "SeveralVolumes" => match &mut observed.policy {
            Some(policy) if policy.spec.consistency == Requirement::Required => {
                policy.spec.consistency = Requirement::BestEffort;
                true
            }
            Some(_) | None => false,
        },
        _ => false,
    }
}

/// What was found for an application.
pub(super) fn found(application: &ObservedApplication) -> Found {
    let template = application.template.as_ref().ok().map(|(reference, recipe)| {
        let annotated =
            application.pods.iter().find(|pod| pod.annotations().contains_key(TEMPLATE_ANNOTATION));
        let origin = match (&application.spec.template_ref, annotated) {
            (Some(_), _) => Origin::Named,
            (None, Some(pod)) => Origin::Annotation(pod.name_any()),
            (None, None) => {
                let images: Vec<&str> = application
                    .pods
                    .iter()
                    .flat_map(|pod| pod.spec.iter().flat_map(|spec| &spec.containers))
                    .filter_map(|container| container.image.as_deref())
                    .collect();
                let detected = stillpoint_api::template::detect(&images, [(reference.name.as_str(), recipe)]);
                let image = detected.and_then(|detected| images.get(detected.image).copied());
                Origin::Image(image.unwrap_or_default().to_owned())
            }
        };
        (reference.clone(), origin)
    });
    let told = |pod: &k8s_openapi::api::core::v1::Pod| {
        let role = application.roles.get(&pod.uid().unwrap_or_default())?.as_ref().ok()?;
        Some((pod.name_any(), role.clone()))
    };
    Found {
        application: application.spec.name.clone(),
        template,
        pod_uids: application.pods.iter().filter_map(ResourceExt::uid).collect(),
        roles: application.pods.iter().filter_map(told).collect(),
    }
}

/// Fills in what nobody asked for where there is only one answer that lets a run begin; what was taken for granted.
pub(super) fn suppose(application: &mut ObservedApplication) -> Vec<String> {
    let mut supposed = Vec::new();
    // Whatever is wrong with it, the decision says so.
    let Ok((_, recipe)) = recipe_of(application) else { return supposed };
    let name = application.spec.name.clone();
    let rule = PodRule::of(&application.spec, &recipe);
    let live: Vec<_> = application.pods.iter().filter(|pod| is_live(pod)).cloned().collect();
    if let (Some(role), [pod]) = (&rule.role, live.as_slice())
        && let Some(accepted) = role.accept.first()
    {
        application.roles.insert(pod.uid().unwrap_or_default(), Ok(accepted.clone()));
        supposed.push(format!(
            "application {name}: the role of pod {} was not asked; it is taken to be {accepted}, and must be {}",
            pod.name_any(),
            role.accept.join(" or ")
        ));
    }
    let chosen: Vec<_> = rule
        .choose(&application.spec, &application.pods, &application.roles)
        .unwrap_or_default()
        .into_iter()
        .map(|one| one.pod.clone())
        .collect();
    for pod in chosen {
        let Ok(container) = rule.container.running(&name, &pod) else { continue };
        let claims = volume_claims(&pod);
        let mounts: Vec<_> = container
            .volume_mounts
            .iter()
            .flatten()
            .filter(|mount| claims.contains_key(&mount.name))
            .collect();
        let [only] = mounts.as_slice() else { continue };
        for role in recipe.volume_roles.keys() {
            let key = (pod.uid().unwrap_or_default(), role.clone());
            application.volume_paths.insert(key, Ok(vec![only.mount_path.clone()]));
            supposed.push(format!(
                "application {name}: where pod {} has its {role} was not asked; it is taken to be {}, its only claim",
                pod.name_any(),
                only.mount_path
            ));
        }
    }
    supposed
}

/// What cannot be known before a session, prepare or command runs.
pub(super) fn only_a_session_tells(resolution: &Resolution, asked: bool) -> Vec<String> {
    let mut unknown = Vec::new();
    for (application, recipe) in resolution.resolved.applications.iter().zip(&resolution.recipes) {
        let name = &application.name;
        let answered = asked && recipe.target.as_ref().is_some_and(|target| target.role.is_some());
        match application.hold {
            HoldKind::Session | HoldKind::Observer if answered => unknown.push(format!(
                "application {name}: whether its session may do what the template says (privileges): \
                 `stillpoint hooks test` tells"
            )),
            HoldKind::Session | HoldKind::Observer => unknown.push(format!(
                "application {name}: whether the client is in the container and may log in: `stillpoint hooks test` tells"
            )),
            HoldKind::Commands | HoldKind::Direct => unknown.push(format!(
                "application {name}: whether the commands are in the container and succeed: `stillpoint hooks test` tells"
            )),
            HoldKind::None if recipe.prepare.is_some() => unknown.push(format!(
                "application {name}: whether prepare succeeds: `stillpoint hooks test` tells"
            )),
            HoldKind::None => {}
        }
        if !application.settings.is_empty() {
            let settings: Vec<String> = application
                .settings
                .iter()
                .map(|setting| format!("{}={}", setting.name, setting.allowed.join("|")))
                .collect();
            unknown.push(format!(
                "application {name}: whether the server is set to be durable, as is read in the run: {}",
                settings.join(", ")
            ));
        }
        if application.position.is_some() && application.hold.locks() {
            unknown.push(format!(
                "application {name}: whether its commit counter runs; without it continuity is {}",
                if application.thaw_proves_lock.is_empty() { "Declared" } else { "Lock" }
            ));
        }
    }
    let hooks = !resolution.holds.is_empty() || !resolution.prepares.is_empty();
    if hooks && !asked {
        unknown.push(format!(
            "whether hooks may run as ServiceAccount {HOOKS_ACCOUNT}: nothing was run in a container"
        ));
    }
    unknown
}
