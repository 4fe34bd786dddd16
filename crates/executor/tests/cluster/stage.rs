//! A namespace with one database, and the questions that the tests ask about it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use stillpoint_api::Backup;
use stillpoint_api::backup::{JournalKind, SUCCEEDED};
use stillpoint_api::snapshot::{VolumeSnapshot, VolumeSnapshotContent};
use stillpoint_api::template::Recipe;
use stillpoint_simcluster::{CLASS, DRIVER, Knobs, SimCluster, SimOptions};

use crate::controller::Controller;

pub const NAMESPACE: &str = "shop";
pub const POD: &str = "db-0";
/// For what takes moments; a busy machine may take its time.
pub const SOON: Duration = Duration::from_secs(30);
const DATABASE: &str = include_str!("database.sh");

/// What is different from a faithful database in a namespace that opted in.
pub struct Wish {
    /// How the database behaves.
    pub how: &'static str,
    /// Whether its session locks, or only observes.
    pub locks: bool,
    /// The client; by default the script.
    pub command: Option<Vec<String>>,
    /// Whether the namespace has the hooks account.
    pub account: bool,
    /// Whether that account is bound to the role.
    pub binding: bool,
    /// Whether snapshots are served.
    pub snapshot_api: bool,
    /// Whether the template knows how to recover: stuck while the volume has a file `stuck`, and recovered, which removes
    /// it, only while there is one `allow`.
    pub recover: bool,
    /// Whether the freeze changes a setting, the volume's file `setting`, to 0. The thaw puts it back, and the recovery does by what
    /// the session told before.
    pub setting: bool,
    /// StorageClass of the claim `data`.
    pub class: &'static str,
    /// Claims besides `data`, with their StorageClass.
    pub more: &'static [(&'static str, &'static str)],
    /// On how many volumes the template is proven.
    pub layout: &'static str,
    /// What the template has instead of the session, or besides it; `DATA` stands for the volume's directory.
    pub recipe: Option<Value>,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            how: "faithful",
            locks: true,
            command: None,
            account: true,
            binding: true,
            snapshot_api: true,
            recover: false,
            setting: false,
            class: CLASS,
            more: &[],
            layout: "OneVolume",
            recipe: None,
        }
    }
}

pub struct Stage {
    pub cluster: SimCluster,
    /// The database's volume.
    pub volume: PathBuf,
    pub controller: Option<Controller>,
}

impl Stage {
    /// A running database and a running controller.
    pub async fn with(name: &str, wish: Wish) -> Self {
        let root =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("itest-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let options = SimOptions {
            snapshot_api: wish.snapshot_api,
            back_off: Duration::from_millis(50),
            shutdown_grace: Duration::from_millis(500),
            ..SimOptions::new(root)
        };
        let cluster = SimCluster::start(options).await.unwrap();
        fs::write(cluster.root().join("database.sh"), DATABASE).unwrap();
        for crd in stillpoint_api::crd::all() {
            create(&cluster, serde_json::to_value(crd).unwrap()).await;
        }
        create(&cluster, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}))
            .await;
        opt_in(&cluster, wish.account, wish.binding).await;
        create(&cluster, template(&cluster, &wish)).await;
        create(&cluster, storage_class(ORDERED)).await;
        create(&cluster, claim("data", wish.class)).await;
        for (name, class) in wish.more {
            create(&cluster, claim(name, class)).await;
        }
        create(&cluster, pod(&cluster, wish.more)).await;
        let mount = mount(&cluster);
        let pods: Api<Pod> = Api::namespaced(cluster.client(), NAMESPACE);
        eventually("the database runs", SOON, async || {
            let status = pods.get(POD).await.ok()?.status?;
            let ready = status.conditions?.iter().any(|one| one.type_ == "Ready" && one.status == "True");
            ready.then_some(())
        })
        .await;
        let volume = mount.canonicalize().unwrap();
        let controller = Some(Controller::start(&cluster, "first"));
        Self { cluster, volume, controller }
    }

    pub async fn faithful(name: &str) -> Self {
        Self::with(name, Wish::default()).await
    }

    pub async fn misbehaving(how: &'static str) -> Self {
        Self::with(how, Wish { how, ..Wish::default() }).await
    }

    pub async fn end(mut self) {
        if let Some(controller) = self.controller.take() {
            controller.kill();
        }
        let root = self.cluster.root().to_owned();
        self.cluster.shutdown().await.unwrap();
        // A task that was told to end may create one more file meanwhile.
        let _ = fs::remove_dir_all(&root).or_else(|_| fs::remove_dir_all(&root));
    }

    pub fn slow_cuts(&self, delay: Duration) {
        self.cluster.set_knobs(Knobs { pre_cut_delay: delay, ..Knobs::default() });
    }

    /// A run with one attempt and short bounds.
    pub async fn back_up(&self, name: &str) {
        self.back_up_trying(name, 1).await;
    }

    pub async fn back_up_trying(&self, name: &str, attempts: u32) {
        let run = json!({
            "applications": [application()],
            "freeze": {"maxHold": "12s", "acquireTimeout": "2s"},
            "run": {"maxAttempts": attempts},
        });
        self.back_up_as(name, run).await;
    }

    pub async fn back_up_as(&self, name: &str, run: Value) {
        create(
            &self.cluster,
            json!({
                "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Backup",
                "metadata": {"name": name, "namespace": NAMESPACE}, "spec": {"run": run},
            }),
        )
        .await;
    }

    pub fn backups(&self) -> Api<Backup> {
        Api::namespaced(self.cluster.client(), NAMESPACE)
    }

    pub fn snapshots(&self) -> Api<VolumeSnapshot> {
        Api::namespaced(self.cluster.client(), NAMESPACE)
    }

    pub fn contents(&self) -> Api<VolumeSnapshotContent> {
        Api::all(self.cluster.client())
    }

    /// Waits for the end of a run; what it left in its status.
    pub async fn finished(&self, name: &str) -> Backup {
        self.finished_within(name, SOON).await
    }

    pub async fn finished_within(&self, name: &str, limit: Duration) -> Backup {
        let api = self.backups();
        let end = tokio::time::timeout(limit, async {
            loop {
                if let Ok(backup) = api.get(name).await
                    && backup.finished()
                {
                    return backup;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        match end.await {
            Ok(backup) => backup,
            Err(_) => {
                let backup = api.get(name).await.unwrap();
                let status = serde_json::to_string_pretty(&backup.status).unwrap();
                panic!(
                    "Backup {name} did not end in {limit:?}: {status}\nevents: {:#?}\ndatabase: {:?}",
                    self.events().await,
                    self.went_through()
                );
            }
        }
    }

    /// Whether the database is locked, as the kernel sees it.
    pub fn frozen(&self) -> bool {
        let Ok(file) = File::open(self.volume.join("lock")) else { return false };
        match file.try_lock_shared() {
            Ok(()) => false,
            Err(TryLockError::WouldBlock) => true,
            Err(TryLockError::Error(error)) => panic!("{error}"),
        }
    }

    pub async fn until_frozen(&self) {
        eventually("the database is frozen", SOON, async || self.frozen().then_some(())).await;
    }

    pub async fn until_thawed(&self, limit: Duration) {
        eventually("the database is thawed", limit, async || (!self.frozen()).then_some(())).await;
    }

    /// What the database says happened to it: opened, frozen, thawed (told to), eof (let go by itself), closed.
    pub fn went_through(&self) -> Vec<String> {
        let log = fs::read_to_string(self.volume.join("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Copies that the storage system keeps.
    pub fn copies(&self) -> Vec<PathBuf> {
        let all = fs::read_dir(self.cluster.root().join("snapshots")).unwrap();
        all.map(|entry| entry.unwrap().path()).collect()
    }

    /// Waits until no snapshot, no content and no copy is left.
    pub async fn nothing_is_left(&self) {
        let all = ListParams::default();
        eventually("no snapshot, content or copy is left", SOON, async || {
            let empty = self.snapshots().list(&all).await.unwrap().items.is_empty()
                && self.contents().list(&all).await.unwrap().items.is_empty()
                && self.copies().is_empty();
            empty.then_some(())
        })
        .await;
    }

    /// Makes a content for a snapshot that is gone, as a snapshot controller does that had not seen the deletion yet: it sets
    /// the finalizer only later.
    pub async fn orphan(&self, content: &str, snapshot: &str) {
        let like = self.contents().list(&ListParams::default()).await.unwrap().items.remove(0);
        let object = json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
            "metadata": {"name": content},
            "spec": {
                "deletionPolicy": "Delete", "driver": like.spec.driver, "source": like.spec.source,
                "volumeSnapshotClassName": like.spec.volume_snapshot_class_name,
                "volumeSnapshotRef": {"namespace": NAMESPACE, "name": snapshot, "uid": format!("uid-of-{content}")},
            },
        });
        create(&self.cluster, object).await;
    }

    /// Waits until exactly one point is left: one snapshot, one content, one copy.
    pub async fn one_point_is_left(&self) -> VolumeSnapshotContent {
        let all = ListParams::default();
        eventually("exactly one point is left", SOON, async || {
            let contents = self.contents().list(&all).await.unwrap().items;
            let one = self.snapshots().list(&all).await.unwrap().items.len() == 1
                && contents.len() == 1
                && self.copies().len() == 1;
            one.then(|| contents[0].clone())
        })
        .await
    }

    /// Reasons and notes of the namespace's events.
    pub async fn events(&self) -> Vec<(String, String)> {
        let api: Api<Event> = Api::namespaced(self.cluster.client(), NAMESPACE);
        let all = api.list(&ListParams::default()).await.unwrap().items;
        all.into_iter().map(|one| (one.reason.unwrap_or_default(), one.message.unwrap_or_default())).collect()
    }

    /// The run failed for this reason, left nothing, and the database is as it was.
    pub async fn failed_cleanly(&self, backup: &Backup, reason: &str) {
        let status = serde_json::to_string_pretty(&backup.status).unwrap();
        assert_eq!(why(backup), reason, "{status}");
        assert!(!self.frozen(), "the database is still frozen: {:?}", self.went_through());
        eventually("an event says why", SOON, async || {
            self.events().await.iter().any(|(said, _)| said == reason).then_some(())
        })
        .await;
        self.nothing_is_left().await;
    }
}

/// The reason of condition Succeeded.
pub fn why(backup: &Backup) -> String {
    let conditions = backup.status.iter().flat_map(|status| &status.conditions);
    let found = conditions.into_iter().find(|one| one.type_ == SUCCEEDED);
    found.map(|one| one.reason.clone()).unwrap_or_default()
}

/// The journal, as kinds and reasons.
pub fn journal(backup: &Backup) -> Vec<(JournalKind, String)> {
    let entries = backup.status.iter().flat_map(|status| &status.journal);
    entries.map(|entry| (entry.entry, entry.reason.clone().unwrap_or_default())).collect()
}

pub async fn eventually<T>(what: &str, limit: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let answer = tokio::time::timeout(limit, async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    answer.await.unwrap_or_else(|_| panic!("not within {limit:?}: {what}"))
}

pub async fn create(cluster: &SimCluster, object: Value) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, version) = match object["apiVersion"].as_str().unwrap().split_once('/') {
        Some((group, version)) => (group.to_owned(), version.to_owned()),
        None => (String::new(), text(&object["apiVersion"])),
    };
    let kind = text(&object["kind"]);
    let resource = ApiResource::from_gvk(&GroupVersionKind { group, version, kind: kind.clone() });
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(cluster.client(), namespace, &resource),
        None => Api::all_with(cluster.client(), &resource),
    };
    let object: DynamicObject = serde_json::from_value(object).unwrap();
    let created = api.create(&PostParams::default(), &object).await;
    created.unwrap_or_else(|error| panic!("{kind}: {error}"));
}

pub fn application() -> Value {
    json!({
        "name": "db", "selector": {"matchLabels": {"app": "db"}},
        "templateRef": {"kind": "HookTemplate", "name": "database"},
    })
}

async fn opt_in(cluster: &SimCluster, account: bool, binding: bool) {
    let meta = json!({"name": "stillpoint-hooks", "namespace": NAMESPACE});
    let group = "rbac.authorization.k8s.io";
    if account {
        create(cluster, json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})).await;
    }
    if binding {
        create(
            cluster,
            json!({
                "apiVersion": format!("{group}/v1"), "kind": "RoleBinding", "metadata": meta,
                "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "stillpoint-hooks"},
                "subjects": [{"kind": "ServiceAccount", "name": "stillpoint-hooks", "namespace": NAMESPACE}],
            }),
        )
        .await;
    }
}

fn mount(cluster: &SimCluster) -> PathBuf {
    cluster.root().join("mnt")
}

/// A class whose groups are cut at one instant, as the tests' controllers are told.
pub const ORDERED: &str = "ordered";

fn storage_class(name: &str) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name}, "provisioner": DRIVER,
    })
}

pub fn claim(name: &str, class: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    })
}

/// The pod only keeps the volume: the database is what a session runs. It does not heed SIGTERM, so that a pod that is
/// being deleted can be told from one that is gone.
fn pod(cluster: &SimCluster, more: &[(&str, &str)]) -> Value {
    let mount = mount(cluster);
    let mut mounts = vec![json!({"name": "data", "mountPath": mount})];
    let mut volumes = vec![json!({"name": "data", "persistentVolumeClaim": {"claimName": "data"}})];
    for (name, _) in more {
        mounts.push(json!({"name": name, "mountPath": cluster.root().join(format!("mnt-{name}"))}));
        volumes.push(json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
    }
    let script = "trap '' TERM; echo open >state; : >ready; sleep 100000 & wait; sleep 100000";
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": POD, "namespace": NAMESPACE, "labels": {"app": "db"}},
        "spec": {
            "terminationGracePeriodSeconds": 20,
            "containers": [{
                "name": "db", "image": "database", "command": ["sh", "-c", script], "workingDir": mount,
                "readinessProbe": {"exec": {"command": ["test", "-f", "ready"]}, "periodSeconds": 1},
                "volumeMounts": mounts,
            }],
            "volumes": volumes,
        },
    })
}

fn template(cluster: &SimCluster, wish: &Wish) -> Value {
    let path = |path: PathBuf| path.to_string_lossy().into_owned();
    let script = path(cluster.root().join("database.sh"));
    let command = wish
        .command
        .clone()
        .unwrap_or_else(|| vec!["sh".into(), script, wish.how.into(), path(mount(cluster)), POD.into()]);
    let server = "host= conn= role=primary lease= gtid=";
    let lease = "set wait {{lease}} {{acquireSeconds}};\n";
    let (lock, unlock) = if wish.locks { ("lock;\n", "unlock;\n") } else { ("", "") };
    let mut spec = json!({
        "description": "a database for tests",
        "freeze": {"session": {
            "command": command,
            "locks": wish.locks,
            "open": format!("{lease}say EVIDENCE {{{{n}}}} datadir=;\nsay READY {{{{n}}}} {server};\n"),
            "freeze":
                format!("{lease}{lock}say EVIDENCE {{{{n}}}} durable=on;\nsay FROZEN {{{{n}}}} 0 {server};\n"),
            "beat": format!("set wait {{{{lease}}}} 0;\nsay HELD {{{{n}}}} {{{{i}}}} {server};\n"),
            "thaw": format!("{unlock}say THAWED {{{{n}}}};\n"),
            "lease": {"variable": "wait", "unit": "s", "duration": "10s"},
            "position": "gtid",
            "local": {"key": "host", "equals": "PodHostname"},
        }},
        "evidence": ["durable", "datadir"],
        "dataPaths": ["datadir"],
        "layout": wish.layout,
        "crashSafe": {"source": "its only file", "settings": [{"name": "durable", "allowed": ["on"]}]},
    });
    if wish.recover {
        let volume = path(mount(cluster));
        let undo = format!("test -f {volume}/allow && rm -f {volume}/stuck");
        spec["recover"] = json!({
            "command": ["sh", "-c", undo], "probe": ["test", "-f", format!("{volume}/stuck")],
        });
    }
    if wish.setting {
        let session = &mut spec["freeze"]["session"];
        let before = |text: &Value, line: &str| json!(format!("{line}\n{}", text.as_str().unwrap()));
        session["open"] = before(&session["open"], "say EVIDENCE {{n}} old_setting=;");
        session["freeze"] = before(&session["freeze"], "change;");
        session["thaw"] = before(&session["thaw"], "restore;");
        spec["evidence"].as_array_mut().unwrap().push(json!("old_setting"));
        let setting = path(mount(cluster).join("setting"));
        spec["recover"] = json!({
            "command": ["sh", "-c", "echo \"$1\" >\"$2\"", "sh", "{{old_setting}}", setting],
            "probe": ["grep", "-qx", "0", setting],
            "needs": ["old_setting"],
        });
    }
    let spec = match &wish.recipe {
        None => spec,
        Some(other) => {
            let other = other.to_string().replace("DATA", &path(mount(cluster)));
            let other: Value = serde_json::from_str(&other).unwrap();
            let mut spec = if other.get("freeze").is_some() || other.get("preHook").is_some() {
                json!({})
            } else {
                spec
            };
            for (key, value) in other.as_object().unwrap() {
                match key.as_str() {
                    "canary" => spec["freeze"]["session"]["canary"] = value.clone(),
                    _ => spec[key] = value.clone(),
                }
            }
            spec
        }
    };
    let recipe: Recipe = serde_json::from_value(spec.clone()).unwrap();
    assert_eq!(stillpoint_api::validate::recipe(&recipe, "HookTemplate", "database"), []);
    json!({
        "apiVersion": "stillpoint.dev/v1alpha1", "kind": "HookTemplate",
        "metadata": {"name": "database", "namespace": NAMESPACE}, "spec": spec,
    })
}

pub fn claims(stage: &Stage) -> Api<PersistentVolumeClaim> {
    Api::namespaced(stage.cluster.client(), NAMESPACE)
}
