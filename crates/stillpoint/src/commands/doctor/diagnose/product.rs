//! Stillpoint itself: its kinds, its templates, its controller.

use super::super::component::{Component, Role};
use super::super::finding::Finding;
use super::super::observed::Observed;
use super::{look, names};
use crate::commands::lint;

/// Names of the shipped templates.
pub(super) fn library() -> impl Iterator<Item = &'static str> {
    lint::LIBRARY.iter().map(|(file, _)| file.trim_end_matches(".yaml"))
}

/// Whether the kinds are served and the library is there.
pub(super) fn kinds_and_templates(observed: &Observed) -> Vec<Finding> {
    let groups = look!("kinds", "the served APIs", &observed.groups);
    match groups.get("stillpoint.dev") {
        Some(versions) if versions.iter().any(|version| version == "v1alpha1") => {}
        Some(_) | None => {
            return vec![Finding::error(
                "kinds",
                "the kinds of stillpoint.dev/v1alpha1 are not installed",
                "there is nothing to create a policy of",
                "stillpoint crd | kubectl apply --server-side -f -",
            )];
        }
    }
    let mut findings = vec![Finding::ok("kinds", "the kinds of stillpoint.dev/v1alpha1 are installed")];
    let templates = match &observed.templates {
        Err(why) => {
            findings.push(Finding::unseen("templates", "the cluster's templates", why));
            return findings;
        }
        Ok(templates) => templates.clone().unwrap_or_default(),
    };
    let missing: Vec<String> =
        library().filter(|name| !templates.contains(*name)).map(str::to_owned).collect();
    findings.push(if missing.is_empty() {
        Finding::ok(
            "templates",
            format!("{} cluster templates, all shipped ones among them", templates.len()),
        )
    } else {
        Finding::warning(
            "templates",
            format!("shipped templates are not installed: {}", names(&missing)),
            "policies that name them fail (TemplateNotFound), and images are not recognised by them",
            "kubectl apply --server-side -k config/templates",
        )
    });
    findings
}

/// Whether a controller runs, and which.
pub(super) fn controller(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "controller";
    let components = look!(CHECK, "the controller's pods", &observed.components);
    let ours: Vec<&Component> =
        components.iter().filter(|component| component.role == Role::Stillpoint).collect();
    if ours.is_empty() {
        return vec![Finding::warning(
            CHECK,
            "no pod runs `stillpoint controller`",
            "without one nothing is backed up; one that runs outside of the cluster cannot be seen",
            "kubectl apply --server-side -k deploy/base",
        )];
    }
    ours.into_iter().map(of_component).collect()
}

fn of_component(component: &Component) -> Finding {
    const CHECK: &str = "controller";
    let version = env!("CARGO_PKG_VERSION");
    let place = &component.place;
    if component.ready == 0 {
        return Finding::error(
            CHECK,
            format!("{place} is not ready"),
            "nothing is backed up meanwhile",
            format!(
                "kubectl -n {} logs deployment/stillpoint-controller",
                place.split('/').next().unwrap_or_default()
            ),
        );
    }
    match component.tag() {
        Some(tag) if tag.trim_start_matches('v') != version => Finding::warning(
            CHECK,
            format!("{place} is version {tag}, and this command is {version}"),
            "they may judge differently: verify-evidence and lint speak for their own version",
            "use the command line of the controller's version",
        ),
        Some(_) | None => Finding::ok(CHECK, format!("{place} runs ({})", component.image)),
    }
}
