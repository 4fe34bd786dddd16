//! What is done about the default policies of one namespace. Pure.
//!
//! One policy per application, so that one that cannot be frozen keeps no other from being backed up. A stamped policy is
//! known by its owner, the rule, and by nothing else: an object of somebody else's under its name is a policy of the
//! namespace's own, and then nothing is stamped there. A stamped policy does not go because its pods are gone: a workload
//! scaled to zero looks the same. Backups never go with a policy (docs/rules.md).

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};
use kube::api::ObjectMeta;
use kube::{Resource as _, ResourceExt as _};
use sha2::{Digest as _, Sha256};
use stillpoint_api::policy::{
    Application, BackupPolicy, BackupPolicySpec, PodChoice, TemplateKind, TemplateRef, WhenNoPods,
};
use stillpoint_api::rule::{DefaultPolicy, ProtectionRule};

use super::book::stamped_by;
use super::detect::{Detected, Found};

/// Annotation of a stamped policy: digest of the spec as it was stamped. Another digest is somebody's edit.
const DIGEST_ANNOTATION: &str = "stillpoint.dev/stamped";
/// Label of a stamped policy: name of its rule.
const RULE_LABEL: &str = "stillpoint.dev/rule";
/// Longest name of a stamped policy: it is a label value of its Backups.
const MAX_NAME: usize = 63;

/// Who asks for default policies in a namespace.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The rule.
    pub rule: &'a ProtectionRule,
    /// Its default.
    pub default: &'a DefaultPolicy,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Action {
    /// Stamp this policy.
    Create(Box<BackupPolicy>),
    /// Write this over what is there.
    Update {
        /// The policy as it is to be, with the version that was read.
        policy: Box<BackupPolicy>,
        /// Whether somebody edited it; otherwise the rule or the workload changed.
        edited: bool,
    },
    /// Delete this stamped policy.
    Delete {
        /// As it was read.
        policy: Box<BackupPolicy>,
        /// Why, for people.
        why: String,
    },
}

/// What is to be done about the policies of a namespace. `wants_none`: why it has no default policies, if so. Policies of
/// rules that are not `in_force` are left as they are: a typo in a rule deletes nothing.
pub fn decide(
    namespace: &str,
    asked: Result<Asked<'_>, &str>,
    policies: &[BackupPolicy],
    detected: &Detected,
    in_force: impl Fn(&str) -> bool,
) -> Vec<Action> {
    let living = || policies.iter().filter(|policy| policy.metadata.deletion_timestamp.is_none());
    let stamped = living().filter(|policy| stamped_by(policy).is_some_and(&in_force));
    let own = living().find(|policy| stamped_by(policy).is_none());
    let asked = match (asked, own) {
        (Err(why), _) => Err(why.to_owned()),
        (Ok(_), Some(own)) => Err(format!("{namespace} has a policy of its own, {}", own.name_any())),
        (Ok(asked), None) => Ok(asked),
    };
    let asked = match asked {
        Ok(asked) => asked,
        Err(why) => {
            let delete =
                |policy: &BackupPolicy| Action::Delete { policy: policy.clone().into(), why: why.clone() };
            return stamped.map(delete).collect();
        }
    };
    let uid = asked.rule.metadata.uid.as_deref();
    let mut actions = Vec::new();
    for policy in stamped {
        if stamped_by(policy) != uid {
            let why = format!("ProtectionRule {} stamps policies in {namespace} now", asked.rule.name_any());
            actions.push(Action::Delete { policy: policy.clone().into(), why });
            continue;
        }
        let found = detected.found.iter().find(|found| name(asked.rule, &found.name) == policy.name_any());
        let applications = match found {
            Some(found) => vec![application(found)],
            None => policy.spec.applications.clone(),
        };
        actions.extend(follow(asked, policy, applications));
    }
    let taken = |name: &str| policies.iter().any(|policy| policy.name_any() == name);
    let missing = detected.found.iter().filter(|found| !taken(&name(asked.rule, &found.name)));
    actions.extend(missing.map(|found| {
        let wanted = wanted(asked, namespace, &name(asked.rule, &found.name), vec![application(found)]);
        Action::Create(Box::new(wanted))
    }));
    actions
}

/// The name of the policy that `rule` stamps for an application: the same in every process.
pub fn name(rule: &ProtectionRule, application: &str) -> String {
    let full = format!("{}-{application}", rule.name_any());
    if full.len() <= MAX_NAME {
        return full;
    }
    let digest: String =
        Sha256::digest(full.as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let mut end = MAX_NAME - digest.len() - 1;
    while !full.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}-{digest}", full[..end].trim_end_matches(['-', '.']))
}

/// The change that makes a stamped policy what it is to be, if it is not.
fn follow(asked: Asked<'_>, policy: &BackupPolicy, applications: Vec<Application>) -> Option<Action> {
    let namespace = policy.metadata.namespace.clone().unwrap_or_default();
    let wanted = wanted(asked, &namespace, &policy.name_any(), applications);
    let digest = |policy: &BackupPolicy| policy.annotations().get(DIGEST_ANNOTATION).cloned();
    let edited = digest(policy).as_ref() != Some(&digest_of(&policy.spec));
    if policy.spec == wanted.spec && digest(policy) == digest(&wanted) {
        return None;
    }
    let mut next = policy.clone();
    next.spec = wanted.spec;
    next.metadata.annotations.get_or_insert_default().extend(wanted.metadata.annotations.unwrap_or_default());
    next.metadata.labels.get_or_insert_default().extend(wanted.metadata.labels.unwrap_or_default());
    Some(Action::Update { policy: Box::new(next), edited })
}

fn wanted(asked: Asked<'_>, namespace: &str, name: &str, applications: Vec<Application>) -> BackupPolicy {
    let rule = asked.rule.name_any();
    let spec = asked.default.policy(Some(&rule), applications);
    let mut labels = BTreeMap::from([("app.kubernetes.io/managed-by".to_owned(), "stillpoint".to_owned())]);
    if rule.len() <= MAX_NAME {
        labels.insert(RULE_LABEL.to_owned(), rule.clone());
    }
    BackupPolicy {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels),
            annotations: Some(BTreeMap::from([(DIGEST_ANNOTATION.to_owned(), digest_of(&spec))])),
            owner_references: Some(vec![OwnerReference {
                api_version: ProtectionRule::api_version(&()).into_owned(),
                kind: ProtectionRule::kind(&()).into_owned(),
                name: rule,
                uid: asked.rule.metadata.uid.clone().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}

fn application(found: &Found) -> Application {
    Application {
        name: found.name.clone(),
        selector: LabelSelector { match_labels: Some(found.labels.clone()), match_expressions: None },
        template_ref: Some(TemplateRef {
            kind: TemplateKind::ClusterHookTemplate,
            name: found.template.clone(),
        }),
        parameters: BTreeMap::new(),
        container: found.container.clone(),
        pods: PodChoice::default(),
        volumes: None,
        order: 0,
        when_no_pods: WhenNoPods::default(),
    }
}

/// Of what the types say, so that defaults that the API server fills in make no difference.
fn digest_of(spec: &BackupPolicySpec) -> String {
    let text = serde_json::to_vec(spec).unwrap_or_default();
    Sha256::digest(text).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[path = "stamp_tests.rs"]
mod tests;
