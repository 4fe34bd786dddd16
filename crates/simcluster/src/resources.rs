//! Which resources the embedded API serves: a static table, plus what CustomResourceDefinitions add. Anything else is
//! 404, as on a cluster without it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::{Value, json};

use crate::error::ApiError;

/// One served resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: String,
    /// Served version.
    pub version: String,
    /// Plural name, as in paths.
    pub plural: String,
    /// Singular name.
    pub singular: String,
    /// Kind.
    pub kind: String,
    /// Short names.
    pub short: Vec<String>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Whether `/status` is served, and status therefore ignored elsewhere.
    pub status: bool,
    /// Whether a CustomResourceDefinition made it.
    pub custom: bool,
    /// The structural schema of a custom resource.
    pub schema: Option<Value>,
}

impl Resource {
    /// `plural.group`, or the plural alone in the core group: the name in messages.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The key of its table; both event APIs share one, as on a real server.
    pub fn table(&self) -> String {
        if self.is_event_alias() { "events".to_owned() } else { self.qualified() }
    }

    /// Whether objects must be converted to and from the core form of events.
    pub fn is_event_alias(&self) -> bool {
        self.group == "events.k8s.io"
    }

    fn discovery(&self) -> Vec<Value> {
        let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
        let mut entries = vec![json!({
            "name": self.plural, "singularName": self.singular, "namespaced": self.namespaced,
            "kind": self.kind, "verbs": verbs, "shortNames": self.short,
        })];
        if self.status {
            entries.push(json!({
                "name": format!("{}/status", self.plural), "singularName": "", "namespaced": self.namespaced,
                "kind": self.kind, "verbs": ["get", "patch", "update"],
            }));
        }
        entries
    }
}

/// Every resource served at the moment.
#[derive(Debug)]
pub(crate) struct Registry {
    resources: RwLock<BTreeMap<(String, String), Arc<Resource>>>,
}

impl Registry {
    pub(crate) fn new(snapshot_api: bool, group_api: bool) -> Self {
        let mut resources = BTreeMap::new();
        for row in TABLE.lines().map(str::trim).filter(|row| !row.is_empty()) {
            let columns: Vec<&str> = row.split_whitespace().collect();
            let [api, plural, kind, scope, status, short] = columns[..] else { continue };
            let (group, version) = api.split_once('/').unwrap_or(("", api));
            let snapshots = group == SNAPSHOT_GROUP || group == GROUP_SNAPSHOT_GROUP;
            if snapshots && !snapshot_api {
                continue;
            }
            if group == GROUP_SNAPSHOT_GROUP && !group_api {
                continue;
            }
            let resource = Resource {
                group: group.to_owned(),
                version: version.to_owned(),
                plural: plural.to_owned(),
                singular: kind.to_lowercase(),
                kind: kind.to_owned(),
                short: short.split(',').filter(|name| *name != "-").map(str::to_owned).collect(),
                namespaced: scope == "namespaced",
                status: status == "status",
                custom: snapshots,
                schema: None,
            };
            resources.insert((group.to_owned(), plural.to_owned()), Arc::new(resource));
        }
        Self { resources: RwLock::new(resources) }
    }

    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        let resources = self.resources.read().unwrap_or_else(PoisonError::into_inner);
        resources
            .get(&(group.to_owned(), plural.to_owned()))
            .filter(|found| found.version == version)
            .cloned()
    }

    /// The resource behind a table key, for the cluster's own controllers.
    pub(crate) fn by_table(&self, table: &str) -> Option<Arc<Resource>> {
        let (plural, group) = table.split_once('.').unwrap_or((table, ""));
        let resources = self.resources.read().unwrap_or_else(PoisonError::into_inner);
        resources.get(&(group.to_owned(), plural.to_owned())).cloned()
    }

    /// Serves what a CustomResourceDefinition describes.
    pub(crate) fn register(&self, crd: &Value) -> Result<(), ApiError> {
        let spec = &crd["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let version = spec["versions"]
            .as_array()
            .and_then(|versions| versions.iter().find(|version| version["storage"] == Value::Bool(true)))
            .ok_or_else(|| ApiError::bad_request("spec.versions: one version must have storage: true"))?;
        let names = &spec["names"];
        let resource = Resource {
            group: text(&spec["group"]),
            version: text(&version["name"]),
            plural: text(&names["plural"]),
            singular: names["singular"]
                .as_str()
                .map_or_else(|| text(&names["kind"]).to_lowercase(), str::to_owned),
            kind: text(&names["kind"]),
            short: names["shortNames"].as_array().into_iter().flatten().map(text).collect(),
            namespaced: spec["scope"] == "Namespaced",
            status: version["subresources"]["status"].is_object(),
            custom: true,
            schema: version["schema"].get("openAPIV3Schema").cloned(),
        };
        let key = (resource.group.clone(), resource.plural.clone());
        if crd["metadata"]["name"] != Value::String(format!("{}.{}", key.1, key.0)) {
            return Err(ApiError::bad_request("metadata.name must be spec.names.plural+\".\"+spec.group"));
        }
        self.resources.write().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::new(resource));
        Ok(())
    }

    /// Stops serving a resource whose CustomResourceDefinition went.
    pub(crate) fn unregister(&self, crd_name: &str) {
        if let Some((plural, group)) = crd_name.split_once('.') {
            let mut resources = self.resources.write().unwrap_or_else(PoisonError::into_inner);
            resources.remove(&(group.to_owned(), plural.to_owned()));
        }
    }

    /// `APIGroupList` of everything outside the core group.
    pub(crate) fn groups(&self) -> Value {
        let resources = self.resources.read().unwrap_or_else(PoisonError::into_inner);
        let mut groups: BTreeMap<&str, &str> = BTreeMap::new();
        for resource in resources.values().filter(|resource| !resource.group.is_empty()) {
            groups.insert(&resource.group, &resource.version);
        }
        let groups: Vec<Value> = groups
            .into_iter()
            .map(|(group, version)| {
                let version = json!({"groupVersion": format!("{group}/{version}"), "version": version});
                json!({"name": group, "versions": [version], "preferredVersion": version})
            })
            .collect();
        json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
    }

    /// `APIResourceList` of one group and version, or none when nothing is served there.
    pub(crate) fn resource_list(&self, group: &str, version: &str) -> Option<Value> {
        let resources = self.resources.read().unwrap_or_else(PoisonError::into_inner);
        let mut entries: Vec<Value> = resources
            .values()
            .filter(|resource| resource.group == group && resource.version == version)
            .flat_map(|resource| resource.discovery())
            .collect();
        if entries.is_empty() {
            return None;
        }
        if group.is_empty() {
            for (name, kind, verbs) in
                [("pods/exec", "PodExecOptions", ["create", "get"]), ("pods/log", "Pod", ["get", "get"])]
            {
                entries.push(json!({
                    "name": name, "singularName": "", "namespaced": true, "kind": kind, "verbs": verbs,
                }));
            }
        }
        let api = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        Some(
            json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api, "resources": entries}),
        )
    }
}

/// The group of VolumeSnapshots.
pub(crate) const SNAPSHOT_GROUP: &str = "snapshot.storage.k8s.io";

/// The group of VolumeGroupSnapshots.
pub(crate) const GROUP_SNAPSHOT_GROUP: &str = "groupsnapshot.storage.k8s.io";

/// api, plural, kind, scope, status subresource, short names.
const TABLE: &str = "
v1 namespaces Namespace cluster status ns
v1 pods Pod namespaced status po
v1 persistentvolumeclaims PersistentVolumeClaim namespaced status pvc
v1 persistentvolumes PersistentVolume cluster status pv
v1 events Event namespaced - ev
v1 serviceaccounts ServiceAccount namespaced - sa
v1 configmaps ConfigMap namespaced - cm
v1 nodes Node cluster status no
apps/v1 statefulsets StatefulSet namespaced status sts
apps/v1 controllerrevisions ControllerRevision namespaced - -
storage.k8s.io/v1 storageclasses StorageClass cluster - sc
storage.k8s.io/v1 csidrivers CSIDriver cluster - -
coordination.k8s.io/v1 leases Lease namespaced - -
events.k8s.io/v1 events Event namespaced - ev
rbac.authorization.k8s.io/v1 clusterroles ClusterRole cluster - -
rbac.authorization.k8s.io/v1 rolebindings RoleBinding namespaced - -
apiextensions.k8s.io/v1 customresourcedefinitions CustomResourceDefinition cluster status crd,crds
snapshot.storage.k8s.io/v1 volumesnapshots VolumeSnapshot namespaced status vs
snapshot.storage.k8s.io/v1 volumesnapshotcontents VolumeSnapshotContent cluster status vsc,vscs
snapshot.storage.k8s.io/v1 volumesnapshotclasses VolumeSnapshotClass cluster - vsclass,vsclasses
groupsnapshot.storage.k8s.io/v1 volumegroupsnapshots VolumeGroupSnapshot namespaced status vgs
groupsnapshot.storage.k8s.io/v1 volumegroupsnapshotcontents VolumeGroupSnapshotContent cluster status vgsc,vgscs
groupsnapshot.storage.k8s.io/v1 volumegroupsnapshotclasses VolumeGroupSnapshotClass cluster - vgsclass,vgsclasses
";
