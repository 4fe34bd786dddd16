//! Finds the parts of the snapshot stack among the cluster's pods, and reads their arguments. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt as _;

/// A part of the snapshot stack, or of Stillpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// One per cluster: makes contents for snapshots.
    SnapshotController,
    /// One per driver: calls it.
    Sidecar,
    /// `stillpoint controller`.
    Stillpoint,
}

/// Containers with the same arguments of the same workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Component {
    pub role: Role,
    /// `namespace/workload/container`.
    pub place: String,
    pub image: String,
    /// Flags by name; one without a value is `true`.
    pub flags: BTreeMap<String, String>,
    /// Pods of it.
    pub replicas: usize,
    /// Of these, ready ones.
    pub ready: usize,
}

impl Component {
    /// A number that a flag sets, or its default.
    pub(super) fn number(&self, flag: &str, default: f64) -> f64 {
        self.flags.get(flag).and_then(|value| value.parse().ok()).unwrap_or(default)
    }

    /// Whether a flag is set to true.
    pub(super) fn is_set(&self, flag: &str) -> bool {
        self.flags.get(flag).is_some_and(|value| value == "true")
    }

    /// A feature gate, where it is set.
    pub(super) fn gate(&self, name: &str) -> Option<bool> {
        let gates = self.flags.get("feature-gates")?;
        let mut set = gates.split(',').filter_map(|gate| gate.split_once('='));
        set.rfind(|(gate, _)| gate.trim() == name).map(|(_, value)| value.trim() == "true")
    }

    /// The tag of its image.
    pub(super) fn tag(&self) -> Option<&str> {
        let image = self.image.split('@').next().unwrap_or_default();
        image.rsplit('/').next()?.split_once(':').map(|(_, tag)| tag)
    }
}

/// The components that run in these pods, each workload once.
pub(super) fn find(pods: &[Pod]) -> Vec<Component> {
    let mut found: BTreeMap<(Role, String, Vec<String>), Component> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| lives(pod)) {
        for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
            let Some(role) = role(container) else { continue };
            let words: Vec<String> =
                container.command.iter().flatten().chain(container.args.iter().flatten()).cloned().collect();
            let place =
                format!("{}/{}/{}", pod.namespace().unwrap_or_default(), workload(pod), container.name);
            let component = found.entry((role, place.clone(), words.clone())).or_insert_with(|| Component {
                role,
                place,
                image: container.image.clone().unwrap_or_default(),
                flags: flags(&words),
                replicas: 0,
                ready: 0,
            });
            component.replicas += 1;
            component.ready += usize::from(is_ready(pod));
        }
    }
    found.into_values().collect()
}

fn lives(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    pod.metadata.deletion_timestamp.is_none() && phase != "Succeeded" && phase != "Failed"
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True")
}

/// What owns the pod, without the hash of a ReplicaSet.
fn workload(pod: &Pod) -> String {
    match pod.owner_references().first() {
        Some(owner) if owner.kind == "ReplicaSet" => {
            owner.name.rsplit_once('-').map_or(owner.name.clone(), |(name, _)| name.to_owned())
        }
        Some(owner) => owner.name.clone(),
        None => pod.name_any(),
    }
}

fn role(container: &Container) -> Option<Role> {
    let words = container.command.iter().flatten().chain(container.args.iter().flatten());
    let programs: Vec<&str> = words.take(2).map(|word| word.rsplit('/').next().unwrap_or_default()).collect();
    let image = container.image.as_deref().unwrap_or_default().split('@').next().unwrap_or_default();
    let image = image.rsplit('/').next().unwrap_or_default().split(':').next().unwrap_or_default();
    let is = |names: &[&str]| names.iter().any(|name| image == *name || programs.first() == Some(name));
    if is(&["snapshot-controller", "csi-snapshot-controller"]) {
        Some(Role::SnapshotController)
    } else if is(&["csi-snapshotter"]) {
        Some(Role::Sidecar)
    } else if is(&["stillpoint"]) && programs.contains(&"controller") {
        Some(Role::Stillpoint)
    } else {
        None
    }
}

/// Go's flags: `-name value`, `--name=value`, `--name`.
fn flags(words: &[String]) -> BTreeMap<String, String> {
    let mut flags = BTreeMap::new();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        let Some(name) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else { continue };
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            // `--flag` alone is a boolean; else its value follows, which is no flag itself (or a negative number).
            None => {
                let is_value = |next: &&String| !next.starts_with('-') || next.parse::<f64>().is_ok();
                (name, words.next_if(is_value).cloned().unwrap_or_else(|| "true".to_owned()))
            }
        };
        flags.insert(name.to_owned(), value.trim_matches('"').to_owned());
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, container: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "kube-system",
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "ebs-7d9f", "uid": "u"}]},
            "spec": {"containers": [container]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        }))
        .unwrap()
    }

    #[test]
    fn replicas_of_one_workload_are_one_component() {
        let container = json!({"name": "snap", "image": "registry.example/sig/csi-snapshotter:v8.6.0@sha256:ab",
            "args": ["--csi-address=/csi/csi.sock", "--kube-api-qps", "20", "--leader-election", "-v=5"]});
        let found = find(&[pod("a", container.clone()), pod("b", container)]);
        let [component] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((component.role, component.replicas, component.ready), (Role::Sidecar, 2, 2));
        assert_eq!(component.place, "kube-system/ebs/snap");
        assert_eq!(component.tag(), Some("v8.6.0"));
        assert!((component.number("kube-api-qps", 5.0) - 20.0).abs() < f64::EPSILON);
        assert!(component.is_set("leader-election"));
        assert!((component.number("timeout", 60.0) - 60.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_program_is_known_by_its_command_where_the_image_has_another_name() {
        let found = find(&[
            pod(
                "a",
                json!({"name": "c", "image": "vendor/bundle:1", "command": ["/usr/bin/snapshot-controller"]}),
            ),
            pod("b", json!({"name": "c", "image": "stillpoint:0.1.0", "args": ["controller"]})),
            pod("c", json!({"name": "c", "image": "sig/snapshot-validation-webhook:v8"})),
            pod("d", json!({"name": "c", "image": "stillpoint:0.1.0", "args": ["demo"]})),
        ]);
        let roles: Vec<Role> = found.iter().map(|component| component.role).collect();
        assert_eq!(roles, [Role::SnapshotController, Role::Stillpoint]);
    }

    #[test]
    fn flags_are_read_as_go_reads_them() {
        let words = ["--a=1", "-b", "2", "--c", "--d=\"x\"", "word", "--uuid-length", "-1"];
        let flags = flags(&words.map(str::to_owned));
        let expected = [("a", "1"), ("b", "2"), ("c", "true"), ("d", "x"), ("uuid-length", "-1")];
        assert_eq!(flags, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn the_last_setting_of_a_gate_counts() {
        let with = |gates: &str| Component {
            role: Role::Sidecar,
            place: String::new(),
            image: String::new(),
            flags: [("feature-gates".to_owned(), gates.to_owned())].into(),
            replicas: 1,
            ready: 1,
        };
        assert_eq!(with("A=true,CSIVolumeGroupSnapshot=true").gate("CSIVolumeGroupSnapshot"), Some(true));
        assert_eq!(with("CSIVolumeGroupSnapshot=false").gate("CSIVolumeGroupSnapshot"), Some(false));
        assert_eq!(with("A=true").gate("CSIVolumeGroupSnapshot"), None);
    }
}
