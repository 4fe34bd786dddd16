//! Every way a run can be refused before anything is frozen, with its reason and its cure; [`several`] has what several
//! pods, claims and applications add.

mod several;
mod stages;
mod window;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use serde_json::{Value, json};
use stillpoint_api::backup::Backup;
use stillpoint_api::evidence::{CutKind, CutSignal, GroupKind, HoldKind};
use stillpoint_api::policy::{Application, BackupPolicy, TemplateKind, TemplateRef};
use stillpoint_api::rule::ProtectionRule;
use stillpoint_api::snapshot::VolumeSnapshotClass;
use stillpoint_api::template::Recipe;

use super::choose::Roles;
use super::decide::{Given, decide};
use super::observe::{Observed, ObservedApplication};
use super::pods::claim_names;
use super::window::measured;
use super::{MAX_HOLDS, Refusal, Resolution};
use crate::hold::Nonce;
use crate::storage::{StorageTable, TrustEntry, TrustFile};

/// A cluster in which a run can begin, to be bent by a test.
pub(crate) struct World {
    pub(crate) backup: Value,
    pub(crate) policy: Value,
    pub(crate) recipe: Value,
    pub(crate) pods: Vec<Value>,
    /// Backups of the namespace.
    pub(crate) backups: Vec<Value>,
    /// Other pods of the namespace.
    pub(crate) others: Vec<Value>,
    /// What the role command printed in each pod, by name.
    pub(crate) roles: BTreeMap<&'static str, &'static str>,
    /// What the commands of volume roles printed, by pod and role.
    pub(crate) paths: BTreeMap<(&'static str, &'static str), Vec<&'static str>>,
    pub(crate) claim: Value,
    pub(crate) volume: Value,
    pub(crate) classes: Vec<Value>,
    pub(crate) opted_in: bool,
    pub(crate) snapshot_api: bool,
    pub(crate) trusted: bool,
    pub(crate) in_flight: bool,
    /// Rules that hold for the namespace.
    pub(crate) rules: Vec<ProtectionRule>,
}

pub(crate) fn pod(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": {"app": "db"}},
        "spec": {
            "containers": [{
                "name": "mariadb", "image": "mariadb:11",
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
            "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": "data-0"}},
                {"name": "run", "emptyDir": {}},
            ],
        },
        "status": {
            "phase": "Running",
            "containerStatuses": [{
                "name": "mariadb", "containerID": "containerd://c1", "restartCount": 0, "ready": true,
                "image": "mariadb:11", "imageID": "i", "state": {"running": {}},
            }],
        },
    })
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            backup: json!({
                "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Backup",
                "metadata": {"name": "nightly-1", "namespace": "shop", "uid": "b1"},
                "spec": {"run": {"policyRef": {"name": "nightly"}}},
            }),
            policy: json!({
                "apiVersion": "stillpoint.dev/v1alpha1", "kind": "BackupPolicy",
                "metadata": {"name": "nightly", "namespace": "shop", "uid": "p1", "generation": 3},
                "spec": {
                    "schedule": {"cron": "0 2 * * *"},
                    "applications": [{"name": "db", "selector": {"matchLabels": {"app": "db"}}}],
                },
            }),
            recipe: json!({
                "crashSafe": {"source": "documented"},
                "dataPaths": ["datadir"],
                "evidence": ["datadir"],
                "freeze": {"session": {
                    "command": ["mariadb", "-N", "-B", "-n", "--skip-reconnect"],
                    "open": "SET SESSION wait_timeout={{lease}}, lock_wait_timeout={{acquireSeconds}};\nSELECT CONCAT('EVIDENCE {{n}} datadir=', @@datadir);\nSELECT CONCAT('READY {{n}} host=', @@hostname, ' lease=', @@wait_timeout);\n",
                    "freeze": "BACKUP STAGE START;\nBACKUP STAGE BLOCK_COMMIT;\nSELECT CONCAT('FROZEN {{n}} 0 host=', @@hostname, ' lease=', @@wait_timeout);\n",
                    "beat": "SET SESSION wait_timeout={{lease}};\nSELECT CONCAT('HELD {{n}} {{i}} host=', @@hostname, ' lease=', @@wait_timeout);\n",
                    "thaw": "BACKUP STAGE END;\nSELECT 'THAWED {{n}}';\n",
                    "thawProvesLock": "error 4146",
                    "lease": {"variable": "wait_timeout", "unit": "s"},
                    "local": {"key": "host", "equals": "PodHostname"},
                }},
            }),
            pods: vec![pod("db-0")],
            backups: Vec::new(),
            others: Vec::new(),
            roles: BTreeMap::new(),
            paths: BTreeMap::new(),
            claim: json!({
                "metadata": {"name": "data-0", "namespace": "shop"},
                "spec": {"volumeName": "pv-1", "storageClassName": "fast", "accessModes": ["ReadWriteOnce"]},
                "status": {"phase": "Bound", "capacity": {"storage": "2Gi"}},
            }),
            volume: json!({
                "metadata": {"name": "pv-1"},
                "spec": {"csi": {"driver": "d.example", "volumeHandle": "vol-1"}},
            }),
            classes: vec![json!({
                "metadata": {"name": "snap"}, "driver": "d.example", "deletionPolicy": "Delete",
            })],
            opted_in: true,
            snapshot_api: true,
            trusted: true,
            in_flight: false,
            rules: Vec::new(),
        }
    }

    fn decide(&self) -> Result<Resolution, Refusal> {
        self.with(decide)
    }

    /// What was read, and what else a decision needs.
    pub(crate) fn with<T>(&self, decide: impl FnOnce(&Given<'_>, &Observed) -> T) -> T {
        let backup: Backup = serde_json::from_value(self.backup.clone()).unwrap();
        let policy: Option<BackupPolicy> = serde_json::from_value(self.policy.clone()).unwrap();
        let recipe: Recipe = serde_json::from_value(self.recipe.clone()).unwrap();
        let claim: PersistentVolumeClaim = serde_json::from_value(self.claim.clone()).unwrap();
        let volume: Option<PersistentVolume> = serde_json::from_value(self.volume.clone()).unwrap();
        let typed = |pods: &[Value]| -> Vec<Pod> {
            pods.iter().map(|pod| serde_json::from_value(pod.clone()).unwrap()).collect()
        };
        let pods = typed(&self.pods);
        let all = pods.iter().cloned().chain(typed(&self.others)).collect();
        let backups: Vec<Backup> =
            self.backups.iter().map(|backup| serde_json::from_value(backup.clone()).unwrap()).collect();
        let claims: BTreeMap<_, _> = pods
            .iter()
            .flat_map(claim_names)
            .map(|name| {
                let (mut claim, mut volume) = (claim.clone(), volume.clone());
                claim.metadata.name = Some(name.clone());
                if let Some(csi) = volume.as_mut().and_then(|one| one.spec.as_mut()?.csi.as_mut()) {
                    csi.volume_handle = format!("handle-of-{name}");
                }
                (name, (claim, volume))
            })
            .collect();
        let selected = |spec: &Application| -> Vec<Pod> {
            let labels = spec.selector.match_labels.clone().unwrap_or_default();
            let fits = |pod: &&Pod| labels.iter().all(|(key, value)| pod.labels().get(key) == Some(value));
            pods.iter().filter(fits).cloned().collect()
        };
        let roles: Roles =
            self.roles.iter().map(|(pod, role)| (format!("uid-{pod}"), Ok((*role).to_owned()))).collect();
        let classes: Vec<VolumeSnapshotClass> =
            self.classes.iter().map(|class| serde_json::from_value(class.clone()).unwrap()).collect();
        let applications = policy.as_ref().map(|policy| policy.spec.applications.clone()).unwrap_or_default();
        let observed = Observed {
            group_classes: None,
            policy,
            namespace_uid: "n1".into(),
            rules: self.rules.clone(),
            applications: applications
                .into_iter()
                .map(|spec| ObservedApplication {
                    pods: selected(&spec),
                    spec,
                    roles: roles.clone(),
                    volume_paths: self
                        .paths
                        .iter()
                        .map(|((pod, role), paths)| {
                            let paths = paths.iter().map(|path| (*path).to_owned()).collect();
                            ((format!("uid-{pod}"), (*role).to_owned()), Ok(paths))
                        })
                        .collect(),
                    template: Ok((
                        TemplateRef { kind: TemplateKind::ClusterHookTemplate, name: "mariadb".into() },
                        recipe.clone(),
                    )),
                    claims: claims.clone(),
                })
                .collect(),
            opted_in: self.opted_in,
            classes: self.snapshot_api.then_some(classes),
            pods: all,
            measured: measured(&backups, "2026-01-01T12:00:00Z".parse().unwrap()),
            in_flight: if self.in_flight {
                BTreeMap::from([("data-0".to_owned(), "other".to_owned())])
            } else {
                BTreeMap::new()
            },
        };
        let entries = if self.trusted {
            vec![TrustEntry {
                driver: "d.example".into(),
                storage_class: None,
                cut: CutKind::Atomic,
                group: GroupKind::Sequential,
                cut_signal: CutSignal::Handle,
                reason: "tested".into(),
            }]
        } else {
            Vec::new()
        };
        let storage = StorageTable::with_trust(&TrustFile { entries }).unwrap();
        let nonce = Nonce::try_from("abcdefghijklmnop".to_owned()).unwrap();
        let hold_nonces: Vec<Nonce> = (0..MAX_HOLDS)
            .map(|index| {
                let letter = |at: usize| char::from(b"abcdefghijklmnop"[(index >> at) & 15]);
                Nonce::try_from(format!("ponmlkjihgfedc{}{}", letter(4), letter(0))).unwrap()
            })
            .collect();
        let given = Given {
            backup: &backup,
            attempt: 1,
            nonce: &nonce,
            hold_nonces: &hold_nonces,
            storage: &storage,
            impersonate: true,
        };
        decide(&given, &observed)
    }

    /// Asserts the reason, and that the message says what to do.
    fn refused(&self, reason: &str, cure: &str) {
        let refusal = self.decide().unwrap_err();
        assert_eq!(refusal.reason, reason, "{}", refusal.message);
        assert!(refusal.message.contains(cure), "{reason}: {:?} does not say {cure:?}", refusal.message);
    }
}

#[test]
fn a_run_that_can_begin_is_resolved_to_its_holds_and_members() {
    let resolution = World::new().decide().unwrap();
    assert_eq!(resolution.holds.len(), 1);
    assert_eq!(resolution.plan.members.len(), 1);
    let member = &resolution.plan.members[0];
    assert_eq!((member.volume_handle.as_str(), member.capacity.as_str()), ("handle-of-data-0", "2Gi"));
    assert_eq!(member.mount_paths, ["/data"]);
    assert!(member.volume_snapshot.starts_with("nightly-1-abcdefghij-"), "{}", member.volume_snapshot);
    assert_eq!(resolution.classes, ["snap"]);
    assert_eq!(resolution.resolved.applications[0].hold, HoldKind::Session);
    let target = &resolution.holds[0].target;
    assert_eq!(target.impersonate.as_deref(), Some("system:serviceaccount:shop:stillpoint-hooks"));
    assert_eq!((target.pod.as_str(), target.container.as_str()), ("db-0", "mariadb"));
}

#[test]
fn a_namespace_that_did_not_opt_in_is_not_entered() {
    let mut world = World::new();
    world.opted_in = false;
    world.refused("NamespaceNotOptedIn", "bind ClusterRole stillpoint-hooks");
}

/// A run is judged by what it really uses: the template that was chosen and the class that is the driver's default.
#[test]
fn a_run_outside_a_rule_is_refused_with_rule_and_field() {
    let under = |spec: Value| {
        let mut rule = json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "ProtectionRule",
            "metadata": {"name": "gold"}, "spec": spec});
        rule["spec"]["namespaceSelector"] = json!({});
        World { rules: vec![serde_json::from_value(rule).unwrap()], ..World::new() }
    };
    for (allow, words) in [
        (json!({"templates": [{"name": "postgresql"}]}), "template of application db is mariadb"),
        (json!({"snapshotClasses": ["fast"]}), "is snap; ProtectionRule gold asks for one of fast"),
        (json!({"maxHold": "10s"}), "freeze.maxHold is 30s; ProtectionRule gold asks for at most 10s"),
    ] {
        let world = under(json!({"allow": allow}));
        world.refused("RuleViolation", words);
        assert!(!world.decide().unwrap_err().may_pass);
    }
    let all = json!({"templates": [{"name": "mariadb"}], "snapshotClasses": ["snap"], "maxHold": "30s"});
    let world = under(json!({"require": {"rpo": "1h"}, "allow": all}));
    assert!(world.decide().is_ok(), "what policies must promise is not asked of a run");
}

#[test]
fn a_policy_that_is_gone_or_another_one_is_not_run() {
    let mut world = World::new();
    world.policy = Value::Null;
    world.refused("PolicyNotFound", "no BackupPolicy nightly");
    let mut world = World::new();
    world.backup["spec"]["run"]["policyRef"]["uid"] = json!("older");
    world.refused("NotOurs", "replaced");
}

#[test]
fn only_a_scheduled_run_has_a_trigger() {
    let mut world = World::new();
    world.backup["spec"]["trigger"] = json!("Schedule");
    world.refused("NotOurs", "slot");
}

#[test]
fn a_selector_without_pods_may_pass() {
    let mut world = World::new();
    world.pods.clear();
    world.refused("NoPods", "selector");
    assert!(world.decide().unwrap_err().may_pass);
}

#[test]
fn pods_that_end_do_not_count() {
    let mut world = World::new();
    let mut old = pod("db-1");
    old["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    old["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = json!("data-1");
    world.pods.push(old);
    assert!(world.decide().is_ok());
}

#[test]
fn several_pods_are_refused_rather_than_one_chosen() {
    let mut world = World::new();
    world.pods.push(pod("db-1"));
    world.refused("SeveralPods", "narrow the selector");
}

#[test]
fn a_container_that_is_not_there_or_does_not_run_is_named() {
    let mut world = World::new();
    world.policy["spec"]["applications"][0]["container"] = json!("db");
    world.refused("ContainerNotFound", "it has mariadb");
    let mut world = World::new();
    world.pods[0]["status"]["containerStatuses"][0]["state"] =
        json!({"waiting": {"reason": "CrashLoopBackOff"}});
    world.refused("PodNotReady", "does not run");
}

#[test]
fn a_claim_that_cannot_be_snapshotted_is_named_with_its_cure() {
    let mut world = World::new();
    world.volume["spec"] = json!({"hostPath": {"path": "/mnt"}});
    world.refused("NotCsi", "volumes.exclude");
    let mut world = World::new();
    world.claim["status"]["phase"] = json!("Pending");
    world.refused("ClaimNotBound", "Pending");
    let mut world = World::new();
    world.in_flight = true;
    world.refused("SnapshotInFlight", "snapshot controller");
}

#[test]
fn a_pod_without_claims_has_nothing_to_snapshot() {
    let mut world = World::new();
    world.policy["spec"]["applications"][0]["volumes"] = json!({"exclude": ["data"]});
    world.refused("NoVolumes", "nothing to snapshot");
}

#[test]
fn the_snapshot_class_is_named_or_the_drivers_default() {
    let mut world = World::new();
    world.classes.clear();
    world.refused("SnapshotClassMissing", "volumeSnapshotClassName");
    let mut world = World::new();
    world.policy["spec"]["snapshot"] = json!({"volumeSnapshotClassName": "gone"});
    world.refused("SnapshotClassMissing", "there is snap");
    let mut world = World::new();
    world
        .classes
        .push(json!({"metadata": {"name": "other"}, "driver": "e.example", "deletionPolicy": "Delete"}));
    world.policy["spec"]["snapshot"] = json!({"volumeSnapshotClassName": "other"});
    world.refused("SnapshotClassMismatch", "e.example");
    let mut world = World::new();
    world
        .classes
        .push(json!({"metadata": {"name": "second"}, "driver": "d.example", "deletionPolicy": "Delete"}));
    world.refused("SnapshotClassMissing", "snap, second");
    world.classes[1]["metadata"]["annotations"] =
        json!({"snapshot.storage.kubernetes.io/is-default-class": "true"});
    assert_eq!(world.decide().unwrap().classes, ["second"]);
}

#[test]
fn a_cluster_without_the_snapshot_api_is_told_what_to_install() {
    let mut world = World::new();
    world.snapshot_api = false;
    world.refused("SnapshotApiMissing", "install the snapshot CRDs");
}

#[test]
fn storage_that_nobody_vouches_for_freezes_nothing_when_proof_is_required() {
    let mut world = World::new();
    world.trusted = false;
    world.refused("StorageNotTrusted", "--storage-trust");
    world.policy["spec"]["consistency"] = json!("BestEffort");
    let resolution = world.decide().unwrap();
    assert_eq!(resolution.plan.members[0].storage.signal, CutSignal::Ready, "the worse is assumed");
}

#[test]
fn a_handle_is_believed_only_where_the_table_says_so() {
    let mut world = World::new();
    world.trusted = false;
    world.policy["spec"]["consistency"] = json!("BestEffort");
    world.policy["spec"]["snapshot"] = json!({"cutSignal": "Handle"});
    world.refused("StorageNotTrusted", "cutSignal Handle");
}

#[test]
fn several_volumes_need_a_template_that_is_proven_for_them() {
    let mut world = World::new();
    world.pods[0]["spec"]["volumes"][1] =
        json!({"name": "redo", "persistentVolumeClaim": {"claimName": "redo-0"}});
    world.refused("SeveralVolumes", "volumes.exclude");
}

#[test]
fn a_liveness_probe_that_would_end_the_freeze_is_refused() {
    let mut world = World::new();
    world.pods[0]["spec"]["containers"][0]["livenessProbe"] =
        json!({"exec": {"command": ["ping"]}, "periodSeconds": 5, "failureThreshold": 2});
    world.refused("ProbeTooStrict", "at most 10s");
    world.policy["spec"]["freeze"] = json!({"maxHold": "10s"});
    assert!(world.decide().is_ok());
}

#[test]
fn a_parameter_that_does_not_fit_is_named() {
    let mut world = World::new();
    world.policy["spec"]["applications"][0]["parameters"] = json!({"sokcet": "/run/s"});
    world.refused("ParameterInvalid", "sokcet");
}

#[test]
fn a_policy_that_is_not_accepted_is_not_run_by_hand_either() {
    let mut world = World::new();
    world.policy["spec"]["applications"][0]["whenNoPods"] = json!("Skip");
    world.refused("PolicyNotAccepted", "not supported yet");
}

#[test]
fn ending_what_blocks_is_refused_where_the_template_cannot() {
    let mut world = World::new();
    world.policy["spec"]["freeze"] = json!({"onBlocked": "KillBlocker"});
    world.refused("CannotEndBlocker", "stallProbe.endBlocker");
    world.recipe["stallProbe"] = json!({"command": ["who"]});
    world.refused("CannotEndBlocker", "application db");
    world.recipe["stallProbe"]["endBlocker"] = json!(["client", "KILL {{blocker}}"]);
    let resolution = world.decide().unwrap();
    assert!(resolution.plan.holds[0].end_blocker);
    assert_eq!(resolution.holds[0].end_blocker, ["client", "KILL {{blocker}}"]);
    world.policy["spec"]["freeze"] = json!({});
    assert!(!world.decide().unwrap().plan.holds[0].end_blocker, "the default is to report");
    // Who locks nothing is never blocked.
    world.recipe = json!({"freeze": {"none": {}}, "crashSafe": {"source": "documented"}});
    world.policy["spec"]["freeze"] = json!({"onBlocked": "KillBlocker"});
    assert!(world.decide().is_ok());
}
