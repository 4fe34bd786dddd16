//! Who may do what: the opt-in of namespaces, the role of hooks, and rights that come by a group (docs/authority.md).

use k8s_openapi::api::rbac::v1::PolicyRule;

use super::super::finding::Finding;
use super::super::observed::{Grant, Observed};
use super::{look, names};

/// From this minor version on an exec needs `create` beside `get`.
const CREATE_SINCE: (u32, u32) = (1, 35);
/// Bound to all service accounts by Kubernetes itself; lets them read public keys.
const HARMLESS: &str = "ClusterRole/system:service-account-issuer-discovery";

/// Namespaces with policies, and whether hooks may run there.
pub(super) fn opted_in(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "opt-in";
    let accounts = look!(CHECK, "the namespaces that opted in", &observed.opted_in);
    let policies = look!(CHECK, "the policies", &observed.with_policies);
    let Some(policies) = policies else {
        return Vec::new(); // Our kinds are not there: said already.
    };
    let mut findings = Vec::new();
    let closed: Vec<&String> = policies.difference(accounts).collect();
    if !closed.is_empty() {
        findings.push(Finding::error(
            CHECK,
            format!("namespaces with policies that did not opt in: {}", names(closed)),
            "their runs fail before anything is frozen (NamespaceNotOptedIn)",
            "create the ServiceAccount stillpoint-hooks there and bind the ClusterRole stillpoint-hooks to it \
             (config/samples/namespace-optin.yaml)",
        ));
    }
    if let Ok(authority) = &observed.authority {
        let unbound: Vec<&String> = accounts.difference(&authority.bound).collect();
        if !unbound.is_empty() {
            findings.push(Finding::error(
                CHECK,
                format!("the account stillpoint-hooks is not bound to its role in: {}", names(unbound)),
                "hooks may not run there (ExecForbidden), unless another role gives them exec",
                "create the RoleBinding of config/samples/namespace-optin.yaml, or delete the account",
            ));
        }
    }
    if findings.is_empty() {
        findings.push(match accounts.len() {
            0 => Finding::ok(CHECK, "no namespace opted in, and none has a policy"),
            number => Finding::ok(CHECK, format!("{number} namespaces opted in: {}", names(accounts))),
        });
    }
    findings
}

fn any(values: Option<&Vec<String>>, wanted: &str) -> bool {
    values.into_iter().flatten().any(|value| value == wanted || value == "*")
}

fn has_verb(rule: &PolicyRule, verb: &str) -> bool {
    rule.verbs.iter().any(|one| one == verb || one == "*")
}

/// The role that namespaces bind to their hooks account: exec, and nothing else.
pub(super) fn hooks_role(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "hooks-role";
    let authority = look!(CHECK, "the roles", &observed.authority);
    let Some(rules) = &authority.hooks else {
        return vec![Finding::error(
            CHECK,
            "the ClusterRole stillpoint-hooks is not there",
            "no namespace can opt in",
            "kubectl apply --server-side -k deploy/base",
        )];
    };
    let exec = |verb: &str| {
        rules.iter().any(|rule| any(rule.resources.as_ref(), "pods/exec") && has_verb(rule, verb))
    };
    let version = observed.version.as_ref().ok();
    let needs_create = version.is_none_or(|version| *version >= CREATE_SINCE);
    let missing: Vec<&str> = [("get", true), ("create", needs_create)]
        .into_iter()
        .filter(|(verb, needed)| *needed && !exec(verb))
        .map(|(verb, _)| verb)
        .collect();
    if !missing.is_empty() {
        let server =
            version.map_or(String::new(), |(major, minor)| format!(" (this server is {major}.{minor})"));
        return vec![Finding::error(
            CHECK,
            format!("the ClusterRole stillpoint-hooks lacks {} on pods/exec", missing.join(" and ")),
            format!("from 1.35 on a server asks for get and create{server}: hooks fail (ExecForbidden)"),
            "kubectl apply --server-side -k deploy/base",
        )];
    }
    let others: Vec<String> = rules
        .iter()
        .flat_map(|rule| rule.resources.iter().flatten())
        .filter(|resource| *resource != "pods/exec")
        .cloned()
        .collect();
    vec![if others.is_empty() {
        Finding::ok(CHECK, "the ClusterRole stillpoint-hooks allows exec and nothing else")
    } else {
        Finding::warning(
            CHECK,
            format!("the ClusterRole stillpoint-hooks allows more than exec: {}", names(&others)),
            "every namespace that opted in gave these away as well",
            "kubectl apply --server-side -k deploy/base",
        )
    }]
}

fn impersonates(grant: &Grant) -> bool {
    grant.rules.iter().flatten().any(|rule| {
        // A wildcard of verbs counts only on what can be impersonated at all.
        let subjects = ["users", "groups", "serviceaccounts", "userextras"];
        rule.verbs.iter().any(|verb| verb == "impersonate")
            || (rule.verbs.iter().any(|verb| verb == "*")
                && subjects.iter().any(|subject| any(rule.resources.as_ref(), subject)))
    })
}

/// Rights of everybody that are rights of every hook, and impersonation beyond the constrained one.
pub(super) fn wide_grants(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "wide-grants";
    let authority = look!(CHECK, "the role bindings", &observed.authority);
    let mut findings = Vec::new();
    for grant in authority.to_controller.iter().filter(|grant| impersonates(grant)) {
        findings.push(Finding::error(
            CHECK,
            format!("{} gives the controller the classic verb impersonate ({})", grant.binding, grant.role),
            "it voids the constraint that the controller acts for hooks accounts only, and only for exec",
            "delete that binding; deploy/base has all that the controller needs",
        ));
    }
    for grant in authority.to_all_accounts.iter().filter(|grant| grant.role != HARMLESS) {
        let what = format!("{} gives {} to the group {}", grant.binding, grant.role, grant.to);
        let cure = "bind it to the accounts that need it, not to the group";
        findings.push(if impersonates(grant) {
            Finding::error(
                CHECK,
                format!("{what}, with impersonate"),
                "every hooks account is in that group: a hook may act as anybody",
                cure,
            )
        } else {
            Finding::warning(
                CHECK,
                what,
                "every hooks account is in that group: hooks have these rights as well, not exec alone",
                cure,
            )
        });
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "hooks accounts have no rights by a group of all service accounts"));
    }
    findings
}
