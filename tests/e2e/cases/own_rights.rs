//! The controller has no right of its own to Secrets and execs, in what it is told about itself and in what is decided.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectRulesReview, SelfSubjectRulesReviewSpec, SubjectAccessReview,
    SubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;
use stillpoint_e2e::ask::Asker;
use stillpoint_e2e::world::{MARIADB, World};
use stillpoint_e2e::{Outcome, Present as _, ensure};

use crate::permissions::CONTROLLER;

/// What the controller's account may never do, wherever it is.
const NEVER: [(&str, &str, &str, &str); 15] = [
    ("get", "", "secrets", ""),
    ("list", "", "secrets", ""),
    ("watch", "", "secrets", ""),
    ("create", "", "secrets", ""),
    ("create", "", "pods", "exec"),
    ("get", "", "pods", "exec"),
    ("create", "", "pods", "attach"),
    ("create", "", "pods", "portforward"),
    ("update", "", "pods", "ephemeralcontainers"),
    ("create", "", "pods", ""),
    ("create", "", "serviceaccounts", "token"),
    ("impersonate", "", "serviceaccounts", ""),
    ("impersonate", "", "users", ""),
    ("create", "rbac.authorization.k8s.io", "rolebindings", ""),
    ("create", "snapshot.storage.k8s.io", "volumesnapshotcontents", ""),
];

/// The controller has no right of its own to Secrets and execs, in what it is told and in what is decided.
pub async fn controller(world: &mut World) -> Outcome {
    let reviews: Api<SubjectAccessReview> = Api::all(world.cluster.client.clone());
    for namespace in [MARIADB, "stillpoint-system", "kube-system"] {
        for (verb, group, resource, subresource) in NEVER {
            let asked = ResourceAttributes {
                group: Some(group.to_owned()),
                namespace: Some(namespace.to_owned()),
                resource: Some(resource.to_owned()),
                subresource: Some(subresource.to_owned()),
                verb: Some(verb.to_owned()),
                ..ResourceAttributes::default()
            };
            let spec = SubjectAccessReviewSpec {
                groups: Some(vec!["system:serviceaccounts".into(), "system:authenticated".into()]),
                user: Some(CONTROLLER.to_owned()),
                resource_attributes: Some(asked),
                ..SubjectAccessReviewSpec::default()
            };
            let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
            let answer = reviews.create(&PostParams::default(), &review).await?;
            let allowed = answer.status.present("the answer")?.allowed;
            ensure!(!allowed, "the controller may {verb} {resource}/{subresource} in {namespace}");
        }
    }
    let own = Asker::user(&world.cluster, CONTROLLER).await?;
    let spec = SelfSubjectRulesReviewSpec { namespace: Some(MARIADB.to_owned()) };
    let review = SelfSubjectRulesReview { spec, ..SelfSubjectRulesReview::default() };
    let told = own.rules(review).await?;
    ensure!(told.len() > 10, "only {} rules: it was not read", told.len());
    for rule in &told {
        let resources = rule.resources.clone().unwrap_or_default();
        ensure!(!resources.iter().any(|one| one == "secrets" || one == "*"), "a rule on {resources:?}");
        if resources.iter().any(|one| one.starts_with("pods/")) {
            ensure!(rule.verbs == ["impersonate-on:serviceaccount:get"], "{:?} on {resources:?}", rule.verbs);
        }
    }
    println!(
        "        {} questions refused; {} rules, none on Secrets or of its own on exec",
        NEVER.len() * 3,
        told.len()
    );
    Ok(())
}
