//! Runs pods as local processes: one task per pod, one process per container. Scheduling, volumes, init containers,
//! restarts with back-off, exec readiness probes, status, and an end that leaves no process behind.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::SimError;
use crate::events;
use crate::podspec::{self, ContainerPlan, PodPlan, Probe, Restart, VolumeSource};
use crate::processes::{LaunchError, Owner, Processes, Surroundings};
use crate::store::{Deletion, Half, Store};

mod status;

use status::condition;

/// The one node.
pub const NODE: &str = "sim-node";

/// The longest pause between restarts; a real kubelet goes up to five minutes, tests cannot wait that long.
const MAX_BACK_OFF: Duration = Duration::from_secs(30);

/// How long a pod waits before it looks again for a volume that is not there yet, if nothing tells it earlier.
const MOUNT_RETRY: Duration = Duration::from_secs(2);

/// The kubelet.
pub(crate) struct Kubelet {
    pub store: Arc<Store>,
    pub processes: Arc<Processes>,
    pub root: PathBuf,
    pub back_off: Duration,
    pods: Mutex<HashMap<String, Arc<PodState>>>,
}

/// What is known of a running pod.
struct PodState {
    uid: String,
    namespace: String,
    name: String,
    containers: Mutex<BTreeMap<String, ContainerState>>,
}

#[derive(Clone, Debug)]
struct ContainerState {
    plan: ContainerPlan,
    init: bool,
    run: Run,
    last: Option<Termination>,
    restarts: u32,
    ready: bool,
}

#[derive(Clone, Debug)]
enum Run {
    Waiting { reason: &'static str, message: String },
    Running { since: String },
    Terminated(Termination),
}

#[derive(Clone, Debug)]
struct Termination {
    code: i32,
    at: String,
}

impl Kubelet {
    pub(crate) fn new(
        store: Arc<Store>,
        processes: Arc<Processes>,
        root: PathBuf,
        back_off: Duration,
    ) -> Arc<Self> {
        Arc::new(Self { store, processes, root, back_off, pods: Mutex::default() })
    }

    fn pods(&self) -> MutexGuard<'_, HashMap<String, Arc<PodState>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a task for every pod that has none. Runs until it is dropped.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut changed = self.store.subscribe("pods");
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            changed.borrow_and_update();
            for pod in self.store.all("pods") {
                let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
                let node = pod["spec"]["nodeName"].as_str().unwrap_or(NODE);
                let state = PodState {
                    uid: text("uid"),
                    namespace: text("namespace"),
                    name: text("name"),
                    containers: Mutex::default(),
                };
                if node == NODE && !self.pods().contains_key(&state.uid) {
                    let state = Arc::new(state);
                    self.pods().insert(state.uid.clone(), Arc::clone(&state));
                    tasks.spawn(Arc::clone(&self).run_pod(pod, state));
                }
            }
            tokio::select! {
                alive = changed.changed() => if alive.is_err() { return },
                Some(_) = tasks.join_next() => {}
            }
        }
    }

    /// Where a container's processes run, if it is running.
    pub(crate) fn surroundings(&self, pod: &Value, container: &str) -> Option<Surroundings> {
        let uid = pod["metadata"]["uid"].as_str()?;
        let state = self.pods().get(uid).cloned()?;
        let containers = state.containers();
        let found = containers.get(container).filter(|found| matches!(found.run, Run::Running { .. }))?;
        Some(self.surroundings_of(&state, &found.plan))
    }

    /// Standard output and error of a container so far.
    pub(crate) fn log(&self, pod: &Value, container: &str) -> Vec<u8> {
        let meta = &pod["metadata"];
        let first = pod["spec"]["containers"][0]["name"].as_str().unwrap_or_default();
        let container = if container.is_empty() { first } else { container };
        let (namespace, name) = (meta["namespace"].as_str(), meta["name"].as_str());
        std::fs::read(self.log_path(namespace.unwrap_or_default(), name.unwrap_or_default(), container))
            .unwrap_or_default()
    }

    /// The uids of the pods that mount a claim.
    pub(crate) fn pods_mounting(&self, namespace: &str, claim: &str) -> Vec<String> {
        let mounts = |pod: &&Arc<Value>| {
            pod["metadata"]["namespace"] == namespace
                && pod["spec"]["volumes"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .any(|volume| volume["persistentVolumeClaim"]["claimName"] == claim)
        };
        let pods = self.store.all("pods");
        pods.iter()
            .filter(mounts)
            .filter_map(|pod| pod["metadata"]["uid"].as_str().map(str::to_owned))
            .collect()
    }

    async fn run_pod(self: Arc<Self>, pod: Arc<Value>, state: Arc<PodState>) {
        let grace = tokio::select! {
            () = self.live(&pod, &state) => Duration::ZERO,
            grace = self.deletion(&state) => grace,
        };
        if let Err(error) = self.processes.end(&state.uid, None, grace).await {
            self.event(&state, "Warning", "FailedKillPod", &error.to_string());
        }
        let _ = std::fs::remove_dir_all(self.pod_directory(&state));
        if let Some(pods) = self.store.registry.by_table("pods") {
            let how = Deletion { grace: Some(0), uid: Some(state.uid.clone()), ..Deletion::default() };
            let _ = self.store.delete(&pods, &state.namespace, &state.name, &how);
        }
        self.pods().remove(&state.uid);
    }

    /// Waits for the pod's deletion; the answer is the grace it was given.
    async fn deletion(&self, state: &PodState) -> Duration {
        let mut changed = self.store.subscribe("pods");
        loop {
            changed.borrow_and_update();
            let pod = self.store.find("pods", &state.namespace, &state.name);
            match pod.filter(|pod| pod["metadata"]["uid"] == state.uid) {
                None => return Duration::ZERO,
                Some(pod) if !pod["metadata"]["deletionTimestamp"].is_null() => {
                    let grace = pod["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or(0);
                    return Duration::from_secs(grace);
                }
                Some(_) => {}
            }
            if changed.changed().await.is_err() {
                return Duration::ZERO;
            }
        }
    }

    /// The life of a pod; returns never: a pod that has finished waits for its deletion.
    async fn live(&self, pod: &Value, state: &Arc<PodState>) {
        self.schedule(state);
        match podspec::plan(pod, &self.root) {
            Err(why) => {
                self.event(state, "Warning", "FailedCreatePodContainer", &why);
                self.write_status(state, |status| {
                    status["phase"] = json!("Pending");
                    status["conditions"] = json!([
                        condition("PodScheduled", true, "", ""),
                        condition("Ready", false, "NotImplemented", &why),
                    ]);
                });
            }
            Ok(plan) => {
                self.mount_all(pod, state, &plan).await;
                self.run_containers(state, &plan).await;
            }
        }
        futures::future::pending::<()>().await;
    }

    fn schedule(&self, state: &PodState) {
        if let Some(pods) = self.store.registry.by_table("pods") {
            let place = (state.namespace.as_str(), state.name.as_str());
            let _ = self.store.update(&pods, place, Half::Both, false, |pod| {
                pod["spec"]["nodeName"] = json!(NODE);
                pod["status"]["hostIP"] = json!("127.0.0.1");
                pod["status"]["startTime"] = json!(self.store.now());
                pod["status"]["conditions"] = json!([condition("PodScheduled", true, "", "")]);
                Ok(())
            });
        }
    }

    async fn mount_all(&self, pod: &Value, state: &PodState, plan: &PodPlan) {
        let mut changed = self.store.subscribe("persistentvolumeclaims");
        let mut said = String::new();
        loop {
            changed.borrow_and_update();
            match self.mount_once(pod, state, plan) {
                Ok(()) => return,
                Err(why) => {
                    if why != said {
                        self.event(state, "Warning", "FailedMount", &why);
                        said = why;
                    }
                }
            }
            let _ = tokio::time::timeout(MOUNT_RETRY, changed.changed()).await;
        }
    }

    /// Makes every mountPath a link to its volume's directory.
    fn mount_once(&self, pod: &Value, state: &PodState, plan: &PodPlan) -> Result<(), String> {
        let said = |what: &str, path: &Path| {
            let text = format!("cannot {what} {}", path.display());
            move |error: std::io::Error| format!("{text}: {error}")
        };
        let mut places = BTreeMap::new();
        for (name, source) in &plan.volumes {
            let place = match source {
                VolumeSource::Empty => self.pod_directory(state).join("volumes").join(name),
                VolumeSource::Claim(claim) => self.claim_directory(&state.namespace, claim)?,
            };
            std::fs::create_dir_all(&place).map_err(said("create", &place))?;
            places.insert(name, place);
        }
        let directory = self.pod_directory(state);
        std::fs::create_dir_all(&directory).map_err(said("create", &directory))?;
        for container in plan.init.iter().chain(&plan.main) {
            for mount in &container.mounts {
                let Some(volume) = places.get(&mount.volume) else { continue };
                let target =
                    if mount.sub_path.is_empty() { volume.clone() } else { volume.join(&mount.sub_path) };
                std::fs::create_dir_all(&target).map_err(said("create", &target))?;
                let user = container.user.map(|(uid, _)| uid);
                let group = plan.group.or(container.user.map(|(_, gid)| gid));
                std::os::unix::fs::chown(&target, user, group)
                    .map_err(said("change the owner of", &target))?;
                if let Some(parent) = mount.path.parent() {
                    std::fs::create_dir_all(parent).map_err(said("create", parent))?;
                }
                match std::fs::read_link(&mount.path) {
                    Ok(link) if link == target => continue,
                    Ok(link) => {
                        if let Some(other) = self.link_user(pod, &mount.path) {
                            return Err(format!(
                                "mountPath {} is in use by pod {other} for {}: without mount namespaces it can belong to one pod",
                                mount.path.display(),
                                link.display()
                            ));
                        }
                        std::fs::remove_file(&mount.path).map_err(said("unlink", &mount.path))?;
                    }
                    Err(_) => {}
                }
                std::os::unix::fs::symlink(&target, &mount.path).map_err(said("link", &mount.path))?;
            }
        }
        Ok(())
    }

    /// Another living pod that mounts something at this path.
    fn link_user(&self, pod: &Value, path: &Path) -> Option<String> {
        let own = pod["metadata"]["uid"].as_str().unwrap_or_default();
        let pods = self.pods();
        let other = pods.values().filter(|state| state.uid != own).find(|state| {
            let containers = state.containers();
            containers.values().any(|container| container.plan.mounts.iter().any(|mount| mount.path == path))
        });
        other.map(|state| format!("{}/{}", state.namespace, state.name))
    }

    fn claim_directory(&self, namespace: &str, claim: &str) -> Result<PathBuf, String> {
        let found = self.store.find("persistentvolumeclaims", namespace, claim);
        let found = found.ok_or_else(|| format!("persistentvolumeclaim \"{claim}\" not found"))?;
        let volume = found["spec"]["volumeName"].as_str().unwrap_or_default();
        let bound = found["status"]["phase"] == "Bound";
        let volume = self.store.find("persistentvolumes", "", volume).filter(|_| bound);
        let volume = volume.ok_or_else(|| format!("pod has unbound PersistentVolumeClaim \"{claim}\""))?;
        let handle = volume["spec"]["csi"]["volumeHandle"].as_str();
        let handle =
            handle.ok_or_else(|| format!("the volume of {claim} is not one of the embedded cluster"))?;
        Ok(self.root.join("volumes").join(handle))
    }

    async fn run_containers(&self, state: &Arc<PodState>, plan: &PodPlan) {
        let init = plan.init.iter().map(|plan| (plan, true));
        for (plan, init) in init.chain(plan.main.iter().map(|plan| (plan, false))) {
            let run = Run::Waiting { reason: "PodInitializing", message: String::new() };
            let container =
                ContainerState { plan: plan.clone(), init, run, last: None, restarts: 0, ready: false };
            state.containers().insert(plan.name.clone(), container);
        }
        self.publish(state, plan);
        for container in &plan.init {
            let restart = if plan.restart == Restart::Never { Restart::Never } else { Restart::OnFailure };
            if self.run_container(state, plan, container, restart).await != 0 {
                return;
            }
        }
        let main = plan.main.iter().map(|container| self.run_container(state, plan, container, plan.restart));
        futures::future::join_all(main).await;
    }

    /// Runs one container until its restart policy is satisfied; the answer is its last exit code.
    async fn run_container(
        &self,
        state: &Arc<PodState>,
        pod: &PodPlan,
        plan: &ContainerPlan,
        restart: Restart,
    ) -> i32 {
        let mut pause = self.back_off;
        loop {
            let started = self.store.clock.mono();
            let code = match self.run_once(state, pod, plan).await {
                Ok(code) => code,
                Err(LaunchError::Closed) => return -1,
                Err(error) => {
                    self.event(state, "Warning", "Failed", &format!("Error: {error}"));
                    self.set(state, pod, &plan.name, |container| {
                        container.run =
                            Run::Waiting { reason: "RunContainerError", message: error.to_string() };
                    });
                    -1
                }
            };
            let done = match restart {
                Restart::Never => true,
                Restart::OnFailure => code == 0,
                Restart::Always => false,
            };
            if done {
                return code;
            }
            if self.store.clock.mono().since(started) > 10 * MAX_BACK_OFF {
                pause = self.back_off;
            }
            self.event(
                state,
                "Warning",
                "BackOff",
                &format!("Back-off restarting failed container {}", plan.name),
            );
            self.set(state, pod, &plan.name, |container| {
                if let Run::Terminated(last) = &container.run {
                    container.last = Some(last.clone());
                    let message = format!("back-off {}s restarting failed container", pause.as_secs_f64());
                    container.run = Run::Waiting { reason: "CrashLoopBackOff", message };
                }
            });
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_BACK_OFF);
            self.set(state, pod, &plan.name, |container| container.restarts += 1);
        }
    }

    async fn run_once(
        &self,
        state: &Arc<PodState>,
        pod: &PodPlan,
        plan: &ContainerPlan,
    ) -> Result<i32, LaunchError> {
        let at = self.surroundings_of(state, plan);
        let path = self.log_path(&state.namespace, &state.name, &plan.name);
        let unwritable = |error| LaunchError::Start(path.display().to_string(), error);
        let log = std::fs::File::options().create(true).append(true).open(&path).map_err(unwritable)?;
        let errors = log.try_clone().map_err(unwritable)?;
        let launched = self.processes.launch(&at, &plan.argv, |command| {
            command.stdin(Stdio::null()).stdout(Stdio::from(log)).stderr(Stdio::from(errors));
        });
        let mut child = launched.await?;
        let pid = child.id();
        self.set(state, pod, &plan.name, |container| {
            container.run = Run::Running { since: self.store.now() };
            container.ready = plan.probe.is_none();
        });
        let status = tokio::select! {
            status = child.wait() => status,
            () = self.probe_forever(state, pod, plan, &at) => child.wait().await,
        };
        self.processes.ended(pid);
        // The first process of a container takes the others with it, exec sessions included.
        let _ = self.processes.end(&state.uid, Some(&plan.name), Duration::ZERO).await;
        let code = status.map_or(-1, |status| {
            use std::os::unix::process::ExitStatusExt as _;
            status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
        });
        self.set(state, pod, &plan.name, |container| {
            container.run = Run::Terminated(Termination { code, at: self.store.now() });
            container.ready = false;
        });
        Ok(code)
    }

    async fn probe_forever(
        &self,
        state: &Arc<PodState>,
        pod: &PodPlan,
        plan: &ContainerPlan,
        at: &Surroundings,
    ) {
        let Some(probe) = &plan.probe else { return futures::future::pending().await };
        tokio::time::sleep(probe.delay).await;
        let (mut good, mut bad) = (0, 0);
        loop {
            if self.probe_once(probe, at).await {
                (good, bad) = (good + 1, 0);
            } else {
                (good, bad) = (0, bad + 1);
            }
            let ready = state.containers().get(&plan.name).is_some_and(|container| container.ready);
            if (!ready && good >= probe.successes) || (ready && bad >= probe.failures) {
                self.set(state, pod, &plan.name, |container| container.ready = !ready);
            }
            // Until it is ready a pod is looked at more often: demos and tests wait for this.
            tokio::time::sleep(if ready { probe.period } else { Duration::from_millis(200) }).await;
        }
    }

    async fn probe_once(&self, probe: &Probe, at: &Surroundings) -> bool {
        let launched = self.processes.launch(at, &probe.argv, |command| {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        });
        let Ok(mut child) = launched.await else { return false };
        let pid = child.id();
        let ended = tokio::time::timeout(probe.timeout, child.wait()).await;
        if ended.is_err() {
            let _ = child.kill().await;
        }
        self.processes.ended(pid);
        ended.is_ok_and(|status| status.is_ok_and(|status| status.success()))
    }

    fn surroundings_of(&self, state: &PodState, plan: &ContainerPlan) -> Surroundings {
        Surroundings {
            owner: Owner { pod: state.uid.clone(), container: plan.name.clone() },
            env: plan.env.clone(),
            directory: plan.directory.clone().unwrap_or_else(|| self.pod_directory(state)),
            user: plan.user,
        }
    }

    fn pod_directory(&self, state: &PodState) -> PathBuf {
        self.root.join("pods").join(&state.uid)
    }

    fn log_path(&self, namespace: &str, pod: &str, container: &str) -> PathBuf {
        self.root.join("logs").join(format!("{namespace}_{pod}_{container}.log"))
    }

    fn event(&self, state: &PodState, kind: &str, reason: &str, message: &str) {
        let about = json!({
            "apiVersion": "v1", "kind": "Pod", "namespace": state.namespace, "name": state.name, "uid": state.uid,
        });
        events::emit(&self.store, "kubelet", &about, kind, reason, message);
    }

    fn set(&self, state: &PodState, pod: &PodPlan, name: &str, change: impl FnOnce(&mut ContainerState)) {
        if let Some(container) = state.containers().get_mut(name) {
            change(container);
        }
        self.publish(state, pod);
    }

    /// Ends every pod with a short grace; the cluster is going away.
    pub(crate) async fn shutdown(&self, grace: Duration) -> Result<(), SimError> {
        let pods: Vec<String> = self.pods().keys().cloned().collect();
        let ends = pods.iter().map(|uid| self.processes.end(uid, None, grace));
        futures::future::join_all(ends).await.into_iter().collect()
    }
}

impl PodState {
    fn containers(&self) -> MutexGuard<'_, BTreeMap<String, ContainerState>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
