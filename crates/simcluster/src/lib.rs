//! The embedded cluster: a Kubernetes API in this process, pods as local processes, volumes as directories, and a
//! simulated snapshot stack. For the demo, tests and scale runs; never part of the controller.
//!
//! It implements what Stillpoint's controllers and command line use and refuses the rest by name; `README.md` lists
//! both, and where it differs from a real cluster. After [`SimCluster::shutdown`], and when the owning process dies
//! in whatever way, no process it started is left.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use stillpoint_api::clock::{SharedClock, SystemClock};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

mod admission;
mod api;
mod cuts;
mod error;
mod events;
mod exec;
mod faults;
mod groups;
mod http;
mod kubelet;
mod patch;
mod podspec;
mod processes;
mod resources;
mod schema;
mod selectors;
mod snapshots;
mod statefulset;
mod store;
mod volumes;
mod watch;

pub use api::{AuditEntry, HOOKS_ACCOUNT};
pub use error::{ApiError, SimError};
pub use faults::{Fault, FaultAction, FaultPlan};
pub use kubelet::NODE;
pub use snapshots::{CutTime, Knobs, LedgerEntry};
pub use store::Creation;
pub use volumes::DRIVER;

use crate::api::Api;
use crate::kubelet::Kubelet;
use crate::processes::Processes;
use crate::resources::Registry;
use crate::snapshots::Snapshots;
use crate::store::{Half, Store};
use crate::volumes::Volumes;

/// Name of the StorageClass and the VolumeSnapshotClass every cluster with storage has; both are the default.
pub const CLASS: &str = "sim";

/// What a controller has to be told about [`DRIVER`] (`--storage-trust`): why its cuts can be believed.
pub const STORAGE_TRUST: &str = include_str!("../storage-trust.yaml");

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// Its directory: volumes, snapshots, logs, the ledger, and the only place where pods can mount. Made when
    /// missing. Processes that run as another user must be able to reach it.
    pub root: PathBuf,
    /// Runs pods and StatefulSets.
    pub kubelet: bool,
    /// Provisions volumes and cuts snapshots.
    pub storage: bool,
    /// Serves snapshot.storage.k8s.io; without it the cluster looks like one without the snapshot controller's CRDs.
    pub snapshot_api: bool,
    /// Serves groupsnapshot.storage.k8s.io as well. There is no class of groups until somebody makes one, as on a real
    /// cluster.
    pub group_api: bool,
    /// Plural of a resource whose creations are recorded with their instants ([`SimCluster::take_creations`]); for scale runs.
    pub record: Option<String>,
    /// How often a quiet watch gets a bookmark; kube-apiserver takes about a minute.
    pub bookmarks: Duration,
    /// Changes kept per resource for watches that start in the past.
    pub history: usize,
    /// The first pause before a container is started again; it doubles up to 30 s.
    pub back_off: Duration,
    /// How long pods get between SIGTERM and SIGKILL when the cluster is shut down.
    pub shutdown_grace: Duration,
}

impl SimOptions {
    /// Pods and storage, below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            kubelet: true,
            storage: true,
            snapshot_api: true,
            group_api: true,
            record: None,
            bookmarks: Duration::from_secs(10),
            history: 4096,
            back_off: Duration::from_secs(1),
            shutdown_grace: Duration::from_secs(5),
        }
    }

    /// Objects and watches only, for scale runs and controller tests.
    pub fn api_only(root: impl Into<PathBuf>) -> Self {
        Self { kubelet: false, storage: false, ..Self::new(root) }
    }
}

/// A running cluster.
pub struct SimCluster {
    root: PathBuf,
    url: String,
    token: String,
    client: kube::Client,
    api: Arc<Api>,
    knobs: Arc<Mutex<Knobs>>,
    processes: Option<Arc<Processes>>,
    stop: tokio::sync::watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    shutdown_grace: Duration,
}

impl std::fmt::Debug for SimCluster {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SimCluster").field("root", &self.root).field("url", &self.url).finish()
    }
}

impl SimCluster {
    /// Starts a cluster on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// The root is not usable, no port is free, or there is no `/bin/sh` for the watchdog.
    pub async fn start(options: SimOptions) -> Result<Self, SimError> {
        let root = make_root(&options.root)?;
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(SimError::Listen)?;
        let url = format!("http://{}", listener.local_addr().map_err(SimError::Listen)?);
        let seed =
            std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default().trim().to_owned();
        let clock: SharedClock = SystemClock::shared();
        let registry = Registry::new(options.snapshot_api, options.group_api);
        let record = options.record.clone();
        let store =
            Arc::new(Store::new(registry, clock, seed.clone(), options.history, options.kubelet, record));
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut tasks = Vec::new();
        let (mut processes, mut kubelet) = (None, None);
        if options.kubelet {
            let started = Arc::new(Processes::start(&seed)?);
            processes = Some(Arc::clone(&started));
            let made = Kubelet::new(Arc::clone(&store), started, root.clone(), options.back_off);
            kubelet = Some(Arc::clone(&made));
            tasks.push(tokio::spawn(made.run()));
            tasks.push(tokio::spawn(statefulset::run(Arc::clone(&store))));
        }
        first_objects(&store, &options)?;
        let knobs = Arc::new(Mutex::new(Knobs::default()));
        if options.storage {
            tasks.push(tokio::spawn(Volumes { store: Arc::clone(&store), root: root.clone() }.run()));
            let snapshots = Arc::new(Snapshots {
                store: Arc::clone(&store),
                kubelet: kubelet.clone(),
                root: root.clone(),
                knobs: Arc::clone(&knobs),
                ledger: Mutex::default(),
                cutting: Mutex::default(),
                turn: tokio::sync::Mutex::default(),
                removing: tokio::sync::Mutex::default(),
            });
            tasks.push(tokio::spawn(snapshots.run()));
        }
        tasks.push(tokio::spawn(collect(Arc::clone(&store))));
        let api = Arc::new(Api {
            store,
            kubelet,
            faults: Arc::default(),
            token: seed.clone(),
            bookmarks: options.bookmarks,
            audit: Mutex::default(),
        });
        tasks.push(tokio::spawn(http::serve(listener, Arc::clone(&api), stopped)));
        let client = kube::Client::try_from(config(&url, &seed))?;
        let shutdown_grace = options.shutdown_grace;
        Ok(Self { root, url, token: seed, client, api, knobs, processes, stop, tasks, shutdown_grace })
    }

    /// A client with the default configuration; for other settings start from [`Self::kube_config`].
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// The configuration of a client: address, token, no TLS, no retries (a test wants to see what happened).
    pub fn kube_config(&self) -> kube::Config {
        config(&self.url, &self.token)
    }

    /// A kubeconfig file's content, for processes of their own.
    pub fn kubeconfig_yaml(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: sim\nclusters:\n- name: sim\n  cluster: {{server: \"{}\"}}\nusers:\n- name: sim\n  user: {{token: \"{}\"}}\ncontexts:\n- name: sim\n  context: {{cluster: sim, user: sim, namespace: default}}\n",
            self.url, self.token
        )
    }

    /// The address of the API.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The cluster's directory, without symbolic links: mountPaths lie below it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Every cut and deletion so far, in order: the ground truth of what was cut when.
    pub fn ledger(&self) -> Vec<LedgerEntry> {
        let lines = std::fs::read_to_string(self.root.join("cuts.jsonl")).unwrap_or_default();
        lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Faults between clients and the store.
    pub fn faults(&self) -> &FaultPlan {
        &self.api.faults
    }

    /// The simulated driver's behaviour from now on.
    pub fn set_knobs(&self, knobs: Knobs) {
        *self.knobs.lock().unwrap_or_else(PoisonError::into_inner) = knobs;
    }

    /// The newest requests, oldest first.
    pub fn audit(&self) -> Vec<AuditEntry> {
        self.api.audit.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Forgets the watch history, as a compaction does: watches that start in the past get 410.
    pub fn forget_history(&self) {
        self.api.store.forget_history();
    }

    /// Stores objects as they are, status included, without schema and admission: for scale runs, where a million of them come
    /// through no API. `uid`, `creationTimestamp` and `generation` are given when they are missing. Watches that began before
    /// must list again. `table` is `plural.group`. How many were stored.
    ///
    /// # Errors
    /// There is no such resource, or an object exists.
    pub fn load(&self, table: &str, objects: impl Iterator<Item = Value>) -> Result<usize, ApiError> {
        let resource = self.api.store.registry.by_table(table).ok_or_else(ApiError::no_such_path)?;
        let mut stored = 0;
        for object in objects {
            self.api.store.load(&resource, object)?;
            stored += 1;
        }
        Ok(stored)
    }

    /// Changes the spec of an object as a user's PUT would; watchers see it. For scale runs.
    ///
    /// # Errors
    /// There is no such object.
    pub fn edit(
        &self,
        table: &str,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<(), ApiError> {
        let resource = self.api.store.registry.by_table(table).ok_or_else(ApiError::no_such_path)?;
        self.api.store.update(&resource, (namespace, name), Half::Main, false, |object| {
            change(object);
            Ok(())
        })?;
        Ok(())
    }

    /// Removes every object of a namespace from a table, finalizers or not. It is no entry of the history: watches that began
    /// before must list again. How many went. For scale runs.
    ///
    /// # Errors
    /// There is no such resource.
    pub fn unload(&self, table: &str, namespace: &str) -> Result<usize, ApiError> {
        let resource = self.api.store.registry.by_table(table).ok_or_else(ApiError::no_such_path)?;
        Ok(self.api.store.unload(&resource, namespace))
    }

    /// Takes the creations of [`SimOptions::record`] since the last call, oldest first.
    pub fn take_creations(&self) -> Vec<Creation> {
        self.api.store.take_creations()
    }

    /// How many creations there were since they were taken last.
    pub fn creations(&self) -> usize {
        self.api.store.creations()
    }

    /// Ends every pod and the API. Nothing it started runs afterwards.
    ///
    /// # Errors
    /// Processes that survive SIGKILL.
    pub async fn shutdown(mut self) -> Result<(), SimError> {
        let mut outcome = Ok(());
        if let Some(processes) = &self.processes {
            processes.close().await;
        }
        for task in std::mem::take(&mut self.tasks) {
            task.abort();
            let _ = task.await;
        }
        if let Some(kubelet) = &self.api.kubelet {
            outcome = kubelet.shutdown(self.shutdown_grace).await;
        }
        self.stop.send_replace(true);
        if let Some(processes) = &self.processes {
            outcome = processes.shutdown().await.and(outcome);
        }
        outcome
    }
}

impl Drop for SimCluster {
    /// Without [`Self::shutdown`] the tasks end here and the watchdog ends the pods when the last handle goes.
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn make_root(path: &Path) -> Result<PathBuf, SimError> {
    let failed = |what: &'static str| {
        let path = path.to_owned();
        move |source| SimError::Io { what, path, source }
    };
    for part in ["volumes", "snapshots", "pods", "logs"] {
        std::fs::create_dir_all(path.join(part)).map_err(failed("create"))?;
    }
    path.canonicalize().map_err(failed("resolve"))
}

fn config(url: &str, token: &str) -> kube::Config {
    let mut config = kube::Config::new(url.parse().unwrap_or_default());
    config.auth_info.token = Some(token.to_owned().into());
    config.default_retry = false;
    config
}

async fn collect(store: Arc<Store>) {
    loop {
        store.collect.notified().await;
        store.collect_garbage();
    }
}

/// What every cluster has from the start.
fn first_objects(store: &Store, options: &SimOptions) -> Result<(), ApiError> {
    let create = |table: &str, mut object: Value| -> Result<(), ApiError> {
        if let Some(resource) = store.registry.by_table(table) {
            object["apiVersion"] = json!(resource.api_version());
            object["kind"] = json!(resource.kind);
            admission::complete(&resource, &mut object);
            store.create(&resource, "", object, false)?;
        }
        Ok(())
    };
    for name in ["default", "kube-system"] {
        create("namespaces", json!({"metadata": {"name": name}}))?;
    }
    if options.kubelet {
        create("nodes", json!({"metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE}}}))?;
    }
    if options.storage {
        let default = |key: &str| json!({key: "true"});
        create("csidrivers.storage.k8s.io", json!({"metadata": {"name": DRIVER}, "spec": {}}))?;
        create(
            "storageclasses.storage.k8s.io",
            json!({
                "metadata": {"name": CLASS, "annotations": default("storageclass.kubernetes.io/is-default-class")},
                "provisioner": DRIVER,
            }),
        )?;
        create(
            "volumesnapshotclasses.snapshot.storage.k8s.io",
            json!({
                "metadata": {
                    "name": CLASS, "annotations": default("snapshot.storage.kubernetes.io/is-default-class"),
                },
                "driver": DRIVER, "deletionPolicy": "Delete",
            }),
        )?;
    }
    Ok(())
}
