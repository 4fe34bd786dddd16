//! Volumes as directories: claims are provisioned and bound at once, copies come from snapshots, and a volume goes
//! with its claim unless its class retains it. A claim that a pod uses stays until the pod has gone.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::admission::remove_finalizer;
use crate::error::ApiError;
use crate::events;
use crate::store::{Deletion, Half, Store};

/// The CSI driver every volume of the embedded cluster belongs to.
pub const DRIVER: &str = "sim.stillpoint.dev";

const CLAIMS: &str = "persistentvolumeclaims";
const VOLUMES: &str = "persistentvolumes";

/// Provisions, binds and releases volumes.
pub(crate) struct Volumes {
    pub store: Arc<Store>,
    pub root: PathBuf,
}

impl Volumes {
    /// Reconciles all claims after every change. Runs until it is dropped.
    pub(crate) async fn run(self) {
        let mut changed = self.store.subscribe_all();
        loop {
            changed.borrow_and_update();
            for claim in self.store.all(CLAIMS) {
                if let Err(why) = self.reconcile(&claim).await {
                    let about = events::reference(&claim);
                    // Said once: repeating it would wake this loop again.
                    let said = self.store.all("events").iter().any(|event| {
                        event["involvedObject"]["uid"] == about["uid"] && event["message"] == why
                    });
                    if !said {
                        events::emit(&self.store, DRIVER, &about, "Warning", "ProvisioningFailed", &why);
                    }
                }
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    async fn reconcile(&self, claim: &Value) -> Result<(), String> {
        if !claim["metadata"]["deletionTimestamp"].is_null() {
            return self.release(claim).await;
        }
        if claim["status"]["phase"] == "Pending" {
            return self.provision(claim).await;
        }
        Ok(())
    }

    async fn provision(&self, claim: &Value) -> Result<(), String> {
        let meta = &claim["metadata"];
        if let Some(volume) = claim["spec"]["volumeName"].as_str().filter(|name| !name.is_empty()) {
            let found = self.store.find(VOLUMES, "", volume);
            let found = found.ok_or_else(|| format!("persistentvolume \"{volume}\" not found"))?;
            let taken = &found["spec"]["claimRef"]["uid"];
            if !taken.is_null() && *taken != meta["uid"] {
                return Err(format!("persistentvolume \"{volume}\" belongs to another claim"));
            }
            self.claim_volume(claim, volume).map_err(|error| error.message)?;
            return self
                .bind(claim, volume, &found["spec"]["storageClassName"])
                .map_err(|error| error.message);
        }
        let Some(class) = self.class_of(claim)? else { return Ok(()) };
        let uid = meta["uid"].as_str().unwrap_or_default();
        let (handle, volume) = (format!("vol-{uid}"), format!("pvc-{uid}"));
        let directory = self.root.join("volumes").join(&handle);
        let capacity = &claim["spec"]["resources"]["requests"]["storage"];
        if capacity.as_str().and_then(parse_quantity).is_none() {
            return Err("spec.resources.requests.storage is needed".to_owned());
        }
        match self.source(claim)? {
            Some(snapshot) => copy(&snapshot, &directory).await?,
            None => make_directory(&directory).await?,
        }
        let volumes = self.store.registry.by_table(VOLUMES).ok_or("no persistentvolumes")?;
        let object = json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": volume, "annotations": {"pv.kubernetes.io/provisioned-by": DRIVER}},
            "spec": {
                "accessModes": claim["spec"]["accessModes"], "capacity": {"storage": capacity},
                "claimRef": {
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": meta["namespace"],
                    "name": meta["name"], "uid": meta["uid"],
                },
                "csi": {"driver": DRIVER, "volumeHandle": handle},
                "persistentVolumeReclaimPolicy": class["reclaimPolicy"],
                "storageClassName": class["metadata"]["name"], "volumeMode": "Filesystem",
            },
            "status": {"phase": "Bound"},
        });
        match self.store.create(&volumes, "", object, false) {
            Ok(_) => {}
            Err(error) if error.reason == "AlreadyExists" => {}
            Err(error) => return Err(error.message),
        }
        self.bind(claim, &volume, &class["metadata"]["name"]).map_err(|error| error.message)
    }

    /// The class of a claim: none when somebody else provisions it.
    fn class_of(&self, claim: &Value) -> Result<Option<Arc<Value>>, String> {
        const CLASSES: &str = "storageclasses.storage.k8s.io";
        let class = match claim["spec"]["storageClassName"].as_str() {
            Some("") => return Ok(None),
            Some(name) => {
                let found = self.store.find(CLASSES, "", name);
                found.ok_or_else(|| format!("storageclass.storage.k8s.io \"{name}\" not found"))?
            }
            None => {
                let default = |class: &Arc<Value>| {
                    class["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true"
                };
                let found = self.store.all(CLASSES).into_iter().find(default);
                found.ok_or("no storage class is set and there is no default one")?
            }
        };
        Ok(Some(class).filter(|class| class["provisioner"] == DRIVER))
    }

    /// The directory of the snapshot a claim is made from (reference: external-provisioner's checks).
    fn source(&self, claim: &Value) -> Result<Option<PathBuf>, String> {
        let spec = &claim["spec"];
        let source = if spec["dataSource"].is_null() { &spec["dataSourceRef"] } else { &spec["dataSource"] };
        if source.is_null() {
            return Ok(None);
        }
        let name = source["name"].as_str().unwrap_or_default();
        if source["kind"] != "VolumeSnapshot" {
            return Err(format!("dataSource {}: only VolumeSnapshot is implemented", source["kind"]));
        }
        let namespace = claim["metadata"]["namespace"].as_str().unwrap_or_default();
        let snapshot = self.store.find("volumesnapshots.snapshot.storage.k8s.io", namespace, name);
        let snapshot = snapshot.ok_or_else(|| format!("volumesnapshot \"{name}\" not found"))?;
        if snapshot["status"]["readyToUse"] != true || !snapshot["metadata"]["deletionTimestamp"].is_null() {
            return Err(format!("snapshot {name} is not Ready"));
        }
        let content = snapshot["status"]["boundVolumeSnapshotContentName"].as_str().unwrap_or_default();
        let content = self.store.find("volumesnapshotcontents.snapshot.storage.k8s.io", "", content);
        let content = content.ok_or_else(|| format!("snapshot {name} is not bound"))?;
        if content["spec"]["volumeSnapshotRef"]["uid"] != snapshot["metadata"]["uid"] {
            return Err(format!("snapshot {name} is bound to a content of another snapshot"));
        }
        let wanted = spec["resources"]["requests"]["storage"].as_str().and_then(parse_quantity).unwrap_or(0);
        let needed = content["status"]["restoreSize"].as_u64().unwrap_or(0);
        if wanted < needed {
            return Err(format!(
                "requested volume size {wanted} is less than the size {needed} for the source snapshot {name}"
            ));
        }
        let handle = content["status"]["snapshotHandle"].as_str().unwrap_or_default();
        Ok(Some(self.root.join("snapshots").join(handle)))
    }

    fn claim_volume(&self, claim: &Value, volume: &str) -> Result<(), ApiError> {
        let Some(volumes) = self.store.registry.by_table(VOLUMES) else { return Ok(()) };
        let meta = &claim["metadata"];
        self.store.update(&volumes, ("", volume), Half::Both, false, |volume| {
            volume["spec"]["claimRef"] = json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": meta["namespace"],
                "name": meta["name"], "uid": meta["uid"],
            });
            volume["status"]["phase"] = json!("Bound");
            Ok(())
        })?;
        Ok(())
    }

    fn bind(&self, claim: &Value, volume: &str, class: &Value) -> Result<(), ApiError> {
        let Some(claims) = self.store.registry.by_table(CLAIMS) else { return Ok(()) };
        self.store.update(&claims, place(claim), Half::Both, false, |claim| {
            claim["spec"]["volumeName"] = json!(volume);
            claim["spec"]["storageClassName"] = class.clone();
            claim["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = json!("yes");
            claim["metadata"]["annotations"]["volume.kubernetes.io/storage-provisioner"] = json!(DRIVER);
            claim["status"] = json!({
                "phase": "Bound", "accessModes": claim["spec"]["accessModes"],
                "capacity": claim["spec"]["resources"]["requests"],
            });
            Ok(())
        })?;
        Ok(())
    }

    /// Lets a deleted claim go when no pod uses it, and its volume with it.
    async fn release(&self, claim: &Value) -> Result<(), String> {
        let (namespace, name) = place(claim);
        let used = self.store.all("pods").iter().any(|pod| {
            let mut volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
            pod["metadata"]["namespace"] == namespace
                && volumes.any(|volume| volume["persistentVolumeClaim"]["claimName"] == name)
        });
        if used {
            return Ok(());
        }
        let (Some(claims), Some(volumes)) =
            (self.store.registry.by_table(CLAIMS), self.store.registry.by_table(VOLUMES))
        else {
            return Ok(());
        };
        let released = self.store.update(&claims, (namespace, name), Half::Both, false, |claim| {
            remove_finalizer(claim, "kubernetes.io/pvc-protection");
            Ok(())
        });
        let kept = self.store.find(CLAIMS, namespace, name).is_some();
        if released.is_err() || kept {
            return Ok(());
        }
        let volume = claim["spec"]["volumeName"].as_str().unwrap_or_default();
        let Some(object) = self.store.find(VOLUMES, "", volume) else { return Ok(()) };
        if object["spec"]["persistentVolumeReclaimPolicy"] == "Delete" {
            let handle = object["spec"]["csi"]["volumeHandle"].as_str().filter(|handle| !handle.is_empty());
            if let Some(handle) = handle {
                let _ = tokio::fs::remove_dir_all(self.root.join("volumes").join(handle)).await;
            }
            let _ = self.store.delete(&volumes, "", volume, &Deletion::default());
        } else {
            let _ = self.store.update(&volumes, ("", volume), Half::Both, false, |volume| {
                volume["status"]["phase"] = json!("Released");
                Ok(())
            });
        }
        Ok(())
    }
}

fn place(object: &Value) -> (&str, &str) {
    let meta = &object["metadata"];
    (meta["namespace"].as_str().unwrap_or_default(), meta["name"].as_str().unwrap_or_default())
}

async fn make_directory(path: &std::path::Path) -> Result<(), String> {
    tokio::fs::create_dir_all(path)
        .await
        .map_err(|error| format!("cannot create {}: {error}", path.display()))
}

/// Copies a directory with owners, modes, links and times; shares blocks where the filesystem can.
pub(crate) async fn copy(from: &std::path::Path, to: &std::path::Path) -> Result<(), String> {
    make_directory(to).await?;
    let copied = Command::new("cp")
        .args(["-a", "--reflink=auto"])
        .arg(from.join("."))
        .arg(to)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| format!("cannot run cp: {error}"))?;
    if copied.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&copied.stderr).into_owned();
    let _ = tokio::fs::remove_dir_all(to).await;
    Err(format!("cp from {} failed: {}", from.display(), why.trim()))
}

/// A Kubernetes quantity in bytes.
pub(crate) fn parse_quantity(text: &str) -> Option<u64> {
    let split = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor = match unit {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1_u64 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}
