//! What follows from what was read. Pure: one module per subject, each a function from facts to findings.

mod authority;
mod path;
mod product;
mod stack;
mod storage;

use stillpoint_executor::storage::StorageTable;

use super::finding::Finding;
use super::observed::{Observed, Seen};

/// Every check, in the order in which a new installation needs them.
pub(super) fn diagnose(observed: &Observed, table: &StorageTable) -> Vec<Finding> {
    let mut findings = stack::server(observed);
    findings.extend(stack::snapshot_api(observed));
    findings.extend(stack::components(observed));
    findings.extend(storage::drivers(observed, table));
    findings.extend(path::measured(observed));
    findings.extend(path::number_of_snapshots(observed));
    findings.extend(product::kinds_and_templates(observed));
    findings.extend(product::controller(observed));
    findings.extend(authority::opted_in(observed));
    findings.extend(authority::hooks_role(observed));
    findings.extend(authority::wide_grants(observed));
    findings
}

/// What was read; else one finding that says why it was not.
fn seen<'s, T>(check: &'static str, what: &str, seen: &'s Seen<T>) -> Result<&'s T, Vec<Finding>> {
    seen.as_ref().map_err(|why| vec![Finding::unseen(check, what, why)])
}

/// Unpacks what was read, or ends the check with the reason.
macro_rules! look {
    ($check:expr, $what:expr, $seen:expr) => {
        match super::seen($check, $what, $seen) {
            Ok(value) => value,
            Err(findings) => return findings,
        }
    };
}
use look;

/// A few names, and how many more.
fn names<'n>(all: impl IntoIterator<Item = &'n String>) -> String {
    let all: Vec<&str> = all.into_iter().map(String::as_str).collect();
    match all.get(5..).filter(|rest| !rest.is_empty()) {
        Some(rest) => {
            format!("{} and {} more", all.iter().take(5).copied().collect::<Vec<_>>().join(", "), rest.len())
        }
        None => all.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use jiff::SignedDuration;
    use k8s_openapi::api::rbac::v1::PolicyRule;
    use stillpoint_api::snapshot::VolumeSnapshotClass;
    use stillpoint_executor::storage::StorageTable;
    use stillpoint_executor::storage_path::PathRun;

    use super::super::component::{Component, Role};
    use super::super::finding::{Finding, Severity};
    use super::super::observed::{Authority, ClockOffset, Grant, Observed};
    use super::diagnose;

    fn strings<const N: usize>(all: [&str; N]) -> BTreeSet<String> {
        all.into_iter().map(str::to_owned).collect()
    }

    fn rule(resources: &[&str], verbs: &[&str]) -> PolicyRule {
        let owned = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        PolicyRule {
            api_groups: Some(vec![String::new()]),
            resources: Some(owned(resources)),
            verbs: owned(verbs),
            ..PolicyRule::default()
        }
    }

    fn component(role: Role, place: &str, flags: &[(&str, &str)]) -> Component {
        let flags = flags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let image = match role {
            Role::Stillpoint => concat!("stillpoint:", env!("CARGO_PKG_VERSION")),
            Role::SnapshotController | Role::Sidecar => "sig/csi:v8.6.0",
        };
        Component { role, place: place.into(), image: image.into(), flags, replicas: 1, ready: 1 }
    }

    const RAISED: [(&str, &str); 3] = [
        ("kube-api-qps", "100"),
        ("kube-api-burst", "200"),
        ("feature-gates", "CSIVolumeGroupSnapshot=true"),
    ];

    fn class(name: &str, driver: &str) -> VolumeSnapshotClass {
        let mut class = VolumeSnapshotClass {
            driver: driver.into(),
            deletion_policy: "Delete".into(),
            ..VolumeSnapshotClass::default()
        };
        class.metadata.name = Some(name.into());
        class
    }

    fn run(seconds: &[f64]) -> PathRun {
        PathRun { waits: seconds.iter().map(|wait| Duration::from_secs_f64(*wait)).collect() }
    }

    /// A cluster in which nothing is wrong.
    fn healthy() -> Observed {
        let groups = [
            ("snapshot.storage.k8s.io", vec!["v1"]),
            ("groupsnapshot.storage.k8s.io", vec!["v1", "v1beta2"]),
            ("stillpoint.dev", vec!["v1alpha1"]),
        ];
        let groups = groups.map(|(group, versions)| {
            (group.to_owned(), versions.into_iter().map(str::to_owned).collect::<Vec<_>>())
        });
        Observed {
            version: Ok((1, 36)),
            clock: Ok(ClockOffset {
                least: SignedDuration::from_millis(-300),
                most: SignedDuration::from_millis(700),
            }),
            groups: Ok(groups.into()),
            components: Ok(vec![
                component(Role::SnapshotController, "kube-system/snapshot-controller/c", &RAISED),
                component(Role::Sidecar, "kube-system/ebs-csi-controller/csi-snapshotter", &RAISED),
                component(Role::Stillpoint, "stillpoint-system/stillpoint-controller/controller", &[]),
            ]),
            classes: Ok(Some(vec![class("ebs", "ebs.csi.aws.com")])),
            drivers: Ok(BTreeMap::from([("ebs.csi.aws.com".to_owned(), strings(["gp3"]))])),
            snapshots: Ok(Some(12)),
            authority: Ok(Authority {
                hooks: Some(vec![rule(&["pods/exec"], &["get", "create"])]),
                bound: strings(["shop"]),
                ..Authority::default()
            }),
            opted_in: Ok(strings(["shop"])),
            with_policies: Ok(Some(strings(["shop"]))),
            templates: Ok(Some(super::product::library().map(str::to_owned).collect())),
            runs: Ok(BTreeMap::from([(
                "ebs.csi.aws.com".to_owned(),
                vec![run(&[0.06, 0.1, 0.1, 0.2, 0.2])],
            )])),
        }
    }

    fn findings(change: impl FnOnce(&mut Observed)) -> Vec<Finding> {
        let mut observed = healthy();
        change(&mut observed);
        diagnose(&observed, &StorageTable::built_in())
    }

    /// The findings that are not ok.
    fn wrong(change: impl FnOnce(&mut Observed)) -> Vec<Finding> {
        findings(change).into_iter().filter(|finding| finding.severity != Severity::Ok).collect()
    }

    /// Exactly one thing is wrong: its severity and all its words.
    fn one(check: &str, severity: Severity, words: &[&str], change: impl FnOnce(&mut Observed)) {
        let found = wrong(change);
        let [finding] = found.as_slice() else { panic!("not one finding: {found:#?}") };
        assert_eq!((finding.check, finding.severity), (check, severity), "{finding}");
        let line = finding.to_string();
        for word in words {
            assert!(line.contains(word), "it does not say {word:?}: {line}");
        }
        assert!(!finding.why.is_empty() && !finding.cure.is_empty(), "why or what to do is missing: {line}");
    }

    fn flags_of(role: Role, flags: &'static [(&str, &str)]) -> impl FnOnce(&mut Observed) {
        move |observed: &mut Observed| {
            let components = observed.components.as_mut().unwrap();
            let of = components.iter_mut().find(|component| component.role == role).unwrap();
            of.flags.extend(flags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        }
    }

    #[test]
    fn a_healthy_cluster_has_no_finding_and_every_check_speaks() {
        let all = findings(|_| {});
        assert_eq!(wrong(|_| {}), [], "{all:#?}");
        assert!(all.len() >= 11, "{all:#?}");
    }

    #[test]
    fn what_cannot_be_read_is_said_and_is_no_health() {
        let all = wrong(|observed| {
            let no = || "forbidden".to_owned();
            observed.components = Err(no());
            observed.authority = Err(no());
            observed.drivers = Err(no());
            observed.runs = Err(no());
        });
        assert!(
            all.len() >= 4 && all.iter().all(|finding| finding.to_string().contains("forbidden")),
            "{all:#?}"
        );
    }

    #[test]
    fn servers_that_are_too_old_are_errors() {
        one("server-version", Severity::Error, &["1.35", "constrained impersonation"], |observed| {
            observed.version = Ok((1, 35));
        });
    }

    #[test]
    fn a_clock_that_is_off_by_more_than_rule_6_tolerates_is_a_warning() {
        one("clock", Severity::Warning, &["5.0 s", "rule 6", "NTP"], |observed| {
            observed.clock =
                Ok(ClockOffset { least: SignedDuration::from_secs(5), most: SignedDuration::from_secs(6) });
        });
        one("clock", Severity::Warning, &["ahead of"], |observed| {
            observed.clock =
                Ok(ClockOffset { least: SignedDuration::from_secs(-9), most: SignedDuration::from_secs(-8) });
        });
    }

    #[test]
    fn without_the_snapshot_api_nothing_works() {
        let all = wrong(|observed| {
            observed.groups.as_mut().unwrap().remove("snapshot.storage.k8s.io");
            observed.classes = Ok(None);
            observed.snapshots = Ok(None);
        });
        let named =
            |finding: &Finding| finding.check == "snapshot-api" && finding.severity == Severity::Error;
        assert!(all.iter().any(named), "{all:#?}");
        one("snapshot-api", Severity::Error, &["v1beta1"], |observed| {
            let groups = observed.groups.as_mut().unwrap();
            groups.insert("snapshot.storage.k8s.io".into(), vec!["v1beta1".into()]);
        });
    }

    #[test]
    fn the_default_throttle_is_named_with_what_it_costs_and_the_flags() {
        let words = [
            "kube-system/snapshot-controller/c",
            "5 requests",
            "10 volumes",
            "6.3 s",
            "--kube-api-qps=100 --kube-api-burst=200",
        ];
        one("client-throttle", Severity::Warning, &words, |observed| {
            let components = observed.components.as_mut().unwrap();
            components[0].flags.remove("kube-api-qps");
            components[0].flags.remove("kube-api-burst");
        });
        one("client-throttle", Severity::Warning, &["ebs-csi-controller", "20 requests"], |observed| {
            flags_of(Role::Sidecar, &[("kube-api-qps", "20"), ("kube-api-burst", "20")])(observed);
        });
    }

    #[test]
    fn a_throttle_is_recognised_from_finished_runs_where_no_argument_can_be_seen() {
        let words = ["ebs.csi.aws.com", "10 snapshots", "5.9 s", "--kube-api-qps", "--kube-api-burst"];
        one("storage-path", Severity::Warning, &words, |observed| {
            let slow = run(&[0.11, 0.12, 1.43, 2.03, 2.23, 2.68, 3.48, 4.28, 5.08, 5.88]);
            observed.runs.as_mut().unwrap().insert("ebs.csi.aws.com".into(), vec![slow]);
        });
        one("storage-path", Severity::Warning, &["one after the other", "one group"], |observed| {
            let serial = run(&[2.0, 4.0, 6.0, 8.0, 10.0]);
            observed.runs.as_mut().unwrap().insert("ebs.csi.aws.com".into(), vec![serial]);
        });
        let either = ["one after the other", "client throttle", "--kube-api-qps", "one group"];
        one("storage-path", Severity::Warning, &either, |observed| {
            let busy = run(&[0.5, 0.9, 1.5, 2.1, 2.8, 3.4, 4.0, 4.7, 5.3, 6.1]);
            observed.runs.as_mut().unwrap().insert("ebs.csi.aws.com".into(), vec![busy]);
        });
    }

    #[test]
    fn names_that_are_cut_short_are_an_error() {
        one("snapshot-names", Severity::Error, &["--snapshot-name-uuid-length=8", "16"], |observed| {
            flags_of(Role::Sidecar, &[("snapshot-name-uuid-length", "8")])(observed);
        });
        assert_eq!(wrong(flags_of(Role::Sidecar, &[("snapshot-name-uuid-length", "-1")])), []);
        assert_eq!(wrong(flags_of(Role::Sidecar, &[("snapshot-name-uuid-length", "36")])), []);
    }

    #[test]
    fn a_short_sidecar_timeout_and_few_workers_are_warnings() {
        one("sidecar-timeout", Severity::Warning, &["15s", "--timeout"], |observed| {
            flags_of(Role::Sidecar, &[("timeout", "15s")])(observed);
        });
        assert_eq!(wrong(flags_of(Role::Sidecar, &[("timeout", "5m0s")])), []);
        one("worker-threads", Severity::Warning, &["2", "--worker-threads"], |observed| {
            flags_of(Role::SnapshotController, &[("worker-threads", "2")])(observed);
        });
    }

    #[test]
    fn several_replicas_without_leader_election_are_an_error() {
        one("leader-election", Severity::Error, &["2 replicas", "--leader-election"], |observed| {
            let component = &mut observed.components.as_mut().unwrap()[0];
            (component.replicas, component.ready) = (2, 2);
        });
        assert_eq!(
            wrong(|observed| {
                let component = &mut observed.components.as_mut().unwrap()[0];
                (component.replicas, component.ready) = (2, 2);
                component.flags.insert("leader-election".into(), "true".into());
            }),
            []
        );
    }

    #[test]
    fn a_group_gate_that_only_one_side_has_is_a_warning() {
        one(
            "group-snapshots",
            Severity::Warning,
            &["CSIVolumeGroupSnapshot", "ebs-csi-controller"],
            |observed| {
                observed.components.as_mut().unwrap()[1].flags.remove("feature-gates");
            },
        );
        one("group-snapshots", Severity::Warning, &["not installed"], |observed| {
            observed.groups.as_mut().unwrap().remove("groupsnapshot.storage.k8s.io");
        });
    }

    #[test]
    fn a_stack_that_no_pod_shows_is_said() {
        let found = wrong(|observed| {
            observed.components = Ok(vec![component(Role::Stillpoint, "s/s/controller", &[])]);
        });
        let checks: Vec<&str> = found.iter().map(|finding| finding.check).collect();
        assert_eq!(checks, ["snapshot-controller", "csi-snapshotter"], "{found:#?}");
    }

    #[test]
    fn drivers_are_compared_with_their_classes_and_the_table() {
        let driver = |name: &'static str, classes: Vec<VolumeSnapshotClass>| {
            move |observed: &mut Observed| {
                observed.drivers = Ok(BTreeMap::from([(name.to_owned(), strings(["c"]))]));
                observed.classes = Ok(Some(classes));
            }
        };
        one(
            "snapshot-classes",
            Severity::Warning,
            &["ebs.csi.aws.com", "no VolumeSnapshotClass"],
            driver("ebs.csi.aws.com", vec![]),
        );
        one(
            "snapshot-classes",
            Severity::Warning,
            &["a, b", "is-default-class"],
            driver("ebs.csi.aws.com", vec![class("a", "ebs.csi.aws.com"), class("b", "ebs.csi.aws.com")]),
        );
        one(
            "storage-trust",
            Severity::Warning,
            &["csi.vendor.example", "--storage-trust"],
            driver("csi.vendor.example", vec![class("v", "csi.vendor.example")]),
        );
        one(
            "storage-trust",
            Severity::Warning,
            &["hostpath.csi.k8s.io", "copies"],
            driver("hostpath.csi.k8s.io", vec![class("h", "hostpath.csi.k8s.io")]),
        );
        one(
            "storage-trust",
            Severity::Warning,
            &["zfs.csi.openebs.io", "wait", "frozen"],
            driver("zfs.csi.openebs.io", vec![class("z", "zfs.csi.openebs.io")]),
        );
        let mut waits = class("z", "zfs.csi.openebs.io");
        waits.parameters.insert("wait".into(), "yes".into());
        assert_eq!(wrong(driver("zfs.csi.openebs.io", vec![waits])), []);
    }

    #[test]
    fn one_of_several_classes_is_enough_when_it_is_the_default() {
        let mut chosen = class("b", "ebs.csi.aws.com");
        let default = ("snapshot.storage.kubernetes.io/is-default-class".to_owned(), "true".to_owned());
        chosen.metadata.annotations = Some([default].into());
        assert_eq!(
            wrong(|observed| {
                observed.classes = Ok(Some(vec![class("a", "ebs.csi.aws.com"), chosen.clone()]));
            }),
            []
        );
        one("snapshot-classes", Severity::Warning, &["several defaults"], |observed| {
            let mut other = chosen.clone();
            other.metadata.name = Some("c".into());
            observed.classes = Ok(Some(vec![chosen, other]));
        });
    }

    #[test]
    fn thousands_of_snapshots_delay_every_new_one() {
        one("number-of-snapshots", Severity::Warning, &["6000", "retention"], |observed| {
            observed.snapshots = Ok(Some(6000));
        });
    }

    #[test]
    fn kinds_templates_and_the_controller_must_be_there() {
        one("templates", Severity::Warning, &["kubectl apply", "config/templates"], |observed| {
            observed.templates = Ok(Some(BTreeSet::new()));
        });
        one("controller", Severity::Warning, &["no pod", "deploy/base"], |observed| {
            observed.components.as_mut().unwrap().pop();
        });
        one("controller", Severity::Warning, &["0.0.9", env!("CARGO_PKG_VERSION")], |observed| {
            observed.components.as_mut().unwrap()[2].image = "stillpoint:0.0.9".into();
        });
        one("controller", Severity::Error, &["not ready"], |observed| {
            observed.components.as_mut().unwrap()[2].ready = 0;
        });
        let none = wrong(|observed| {
            observed.groups.as_mut().unwrap().remove("stillpoint.dev");
            observed.with_policies = Ok(None);
            observed.templates = Ok(None);
        });
        let named = |finding: &Finding| finding.check == "kinds" && finding.cure.contains("stillpoint crd");
        assert!(none.iter().any(named), "{none:#?}");
    }

    #[test]
    fn policies_in_namespaces_that_did_not_opt_in_are_errors() {
        one("opt-in", Severity::Error, &["closed", "NamespaceNotOptedIn", "stillpoint-hooks"], |observed| {
            observed.with_policies = Ok(Some(strings(["shop", "closed"])));
        });
        one("opt-in", Severity::Error, &["shop", "ExecForbidden"], |observed| {
            observed.authority.as_mut().unwrap().bound.clear();
        });
    }

    #[test]
    fn a_hooks_role_without_create_is_an_error_on_servers_that_ask_for_it() {
        one("hooks-role", Severity::Error, &["create", "pods/exec", "1.36"], |observed| {
            observed.authority.as_mut().unwrap().hooks = Some(vec![rule(&["pods/exec"], &["get"])]);
        });
        one("hooks-role", Severity::Error, &["not there"], |observed| {
            observed.authority.as_mut().unwrap().hooks = None;
        });
        one("hooks-role", Severity::Warning, &["secrets"], |observed| {
            let rules = vec![rule(&["pods/exec"], &["get", "create"]), rule(&["secrets"], &["get"])];
            observed.authority.as_mut().unwrap().hooks = Some(rules);
        });
    }

    #[test]
    fn what_all_service_accounts_have_the_hooks_account_has_too() {
        let grant = |to: &str, role: &str, rules| Grant {
            binding: "ClusterRoleBinding/b".into(),
            to: to.into(),
            role: format!("ClusterRole/{role}"),
            rules: Some(rules),
        };
        one("wide-grants", Severity::Error, &["impersonate", "system:serviceaccounts"], |observed| {
            let rules = vec![rule(&["users"], &["impersonate"])];
            observed.authority.as_mut().unwrap().to_all_accounts =
                vec![grant("system:serviceaccounts", "r", rules)];
        });
        one("wide-grants", Severity::Warning, &["system:serviceaccounts:shop", "view"], |observed| {
            let rules = vec![rule(&["pods"], &["get"])];
            observed.authority.as_mut().unwrap().to_all_accounts =
                vec![grant("system:serviceaccounts:shop", "view", rules)];
        });
        one("wide-grants", Severity::Error, &["controller", "impersonate"], |observed| {
            let rules = vec![rule(&["users"], &["*"])];
            observed.authority.as_mut().unwrap().to_controller =
                vec![grant("stillpoint-controller", "admin", rules)];
        });
        assert_eq!(
            wrong(|observed| {
                let rules = vec![rule(&["x"], &["get"])];
                let default =
                    grant("system:serviceaccounts", "system:service-account-issuer-discovery", rules);
                observed.authority.as_mut().unwrap().to_all_accounts = vec![default];
            }),
            []
        );
    }
}
