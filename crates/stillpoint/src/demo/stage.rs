//! Where the demo takes place: a directory, an embedded cluster in it, and the controller as one of its pods.
//!
//! Guarantees: everything lies in one directory that only its owner can list; [`Stage::close`] ends every process and
//! removes it. When this process is killed, the cluster's watchdog ends the processes, the controller included.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use stillpoint_api::clock::SharedClock;
use stillpoint_api::{Backup, BackupPolicy, Restore};
use stillpoint_simcluster::{SimCluster, SimOptions};

use super::scrape;
use super::voice::Voice;
use crate::commands::describe::describe;
use crate::failure::Failure;

/// Namespace of the controller.
pub const SYSTEM: &str = "stillpoint-system";
/// Name of the controller's pod.
const CONTROLLER: &str = "stillpoint";
/// How often something that is waited for is looked at. The API is in this process: a look costs little.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Time between SIGTERM and SIGKILL at the end: nothing is worth waiting for then, the data is thrown away.
const GRACE: Duration = Duration::from_secs(3);
/// Lines of each log that a failure shows.
const LOG_TAIL: usize = 15;

/// The stage.
pub struct Stage {
    directory: PathBuf,
    keep: bool,
    clock: SharedClock,
    cluster: Option<SimCluster>,
    metrics: Option<SocketAddr>,
}

impl Stage {
    /// Makes the directory.
    ///
    /// # Errors
    /// There is no place for it.
    pub fn open(keep: bool, clock: &SharedClock) -> Result<Self, Failure> {
        let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
        // Not $TMPDIR: the server runs as another user and must be able to pass; and socket paths must be short.
        let directory = Path::new("/tmp").join(format!("stillpoint-demo-{}", random.get(..8).unwrap_or("0")));
        std::fs::DirBuilder::new().mode(0o711).create(&directory).map_err(|error| {
            Failure::new(
                format!("cannot create {}", directory.display()),
                error.to_string(),
                "make room in /tmp",
            )
        })?;
        Ok(Self { directory, keep, clock: SharedClock::clone(clock), cluster: None, metrics: None })
    }

    /// Starts the embedded cluster.
    ///
    /// # Errors
    /// No port, or no `/bin/sh` for the watchdog.
    pub async fn start_cluster(&mut self) -> Result<(), Failure> {
        let options = SimOptions { shutdown_grace: GRACE, ..SimOptions::new(&self.directory) };
        let cluster = SimCluster::start(options).await.map_err(|error| {
            Failure::new(
                "the embedded cluster does not start",
                error.to_string(),
                "it needs 127.0.0.1 and /bin/sh",
            )
        })?;
        self.cluster = Some(cluster);
        Ok(())
    }

    /// The cluster.
    ///
    /// # Errors
    /// It was not started.
    pub fn cluster(&self) -> Result<&SimCluster, Failure> {
        self.cluster.as_ref().ok_or_else(|| Failure::new("the embedded cluster is not running", "", ""))
    }

    /// A client of it.
    ///
    /// # Errors
    /// It was not started.
    pub fn client(&self) -> Result<Client, Failure> {
        self.cluster().map(SimCluster::client)
    }

    /// The cluster's directory.
    ///
    /// # Errors
    /// It was not started.
    pub fn root(&self) -> Result<&Path, Failure> {
        self.cluster().map(SimCluster::root)
    }

    /// Where the controller serves metrics.
    ///
    /// # Errors
    /// It was not started.
    pub fn metrics(&self) -> Result<SocketAddr, Failure> {
        self.metrics.ok_or_else(|| Failure::new("the controller is not running", "", ""))
    }

    /// Creates every object of a YAML text.
    ///
    /// # Errors
    /// It was refused.
    pub async fn create_all(&self, yaml: &str) -> Result<(), Failure> {
        for document in yaml.split("\n---") {
            let value: Value = serde_yaml::from_str(document).map_err(|error| {
                Failure::new("a manifest of the demo does not parse", error.to_string(), "")
            })?;
            if !value.is_null() {
                self.create(value).await?;
            }
        }
        Ok(())
    }

    /// Creates one object.
    ///
    /// # Errors
    /// It was refused.
    pub async fn create(&self, object: Value) -> Result<(), Failure> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, name) = (text(&object["kind"]), text(&object["metadata"]["name"]));
        let refused = |why: String| Failure::new(format!("cannot create {kind} {name}"), why, "");
        let (group, version) = match object["apiVersion"].as_str().and_then(|both| both.split_once('/')) {
            Some((group, version)) => (group.to_owned(), version.to_owned()),
            None => (String::new(), text(&object["apiVersion"])),
        };
        let resource = ApiResource::from_gvk(&GroupVersionKind { group, version, kind: kind.clone() });
        let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(self.client()?, namespace, &resource),
            None => Api::all_with(self.client()?, &resource),
        };
        let object = serde_json::from_value(object).map_err(|error| refused(error.to_string()))?;
        api.create(&PostParams::default(), &object).await.map_err(|error| refused(error.to_string()))?;
        Ok(())
    }

    /// Starts this program's own `controller` command as a pod, and waits until it is ready.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn start_controller(&mut self) -> Result<(), Failure> {
        let failed = |why: String| Failure::new("the controller cannot be started", why, "");
        let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
        let kubeconfig = self.write("kubeconfig", &self.cluster()?.kubeconfig_yaml())?;
        let trust = self.write("storage-trust.yaml", stillpoint_simcluster::STORAGE_TRUST)?;
        // A port that is free now; between here and the controller's start somebody would have to take this very one.
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let metrics = free.map_err(|error| failed(error.to_string()))?;
        self.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})).await?;
        self.create(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": CONTROLLER, "namespace": SYSTEM},
            "spec": {
                // What ends by itself stays ended and is shown.
                "restartPolicy": "Never",
                "containers": [{
                    "name": "controller",
                    "command": [program, "controller", "--kubeconfig", kubeconfig, "--storage-trust", trust,
                                "--metrics-address", metrics.to_string(), "--replica", "demo"],
                }],
            },
        }))
        .await?;
        self.metrics = Some(metrics);
        self.until("the controller is ready", Duration::from_secs(30), async || {
            let ready = scrape::get(metrics, "/readyz").await;
            Ok(ready.is_ok_and(|(code, _)| code == 200).then_some(()))
        })
        .await
    }

    /// Waits for a pod to be ready.
    ///
    /// # Errors
    /// It is not within `limit`.
    pub async fn pod_ready(&self, namespace: &str, name: &str, limit: Duration) -> Result<(), Failure> {
        let api: Api<Pod> = Api::namespaced(self.client()?, namespace);
        self.until(&format!("pod {name} is ready"), limit, async || {
            let pod = api.get_opt(name).await.map_err(|error| asked(&error))?;
            Ok(pod.as_ref().is_some_and(is_ready).then_some(()))
        })
        .await
    }

    /// Looks until there is an answer; gives up when the time is over or the controller has died.
    ///
    /// # Errors
    /// Both, and what a look fails with.
    pub async fn until<T>(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl AsyncFnMut() -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        let begun = self.clock.mono();
        loop {
            if let Some(answer) = look().await? {
                return Ok(answer);
            }
            self.controller_lives().await?;
            if self.clock.mono().since(begun) > limit {
                return Err(Failure::new(
                    format!("waited in vain until {what}"),
                    format!("{} s were not enough", limit.as_secs()),
                    "see above what the cluster says; on a busy machine try again",
                ));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn controller_lives(&self) -> Result<(), Failure> {
        if self.metrics.is_none() {
            return Ok(());
        }
        let api: Api<Pod> = Api::namespaced(self.client()?, SYSTEM);
        let pod = api.get_opt(CONTROLLER).await.map_err(|error| asked(&error))?;
        let phase = pod.and_then(|pod| pod.status).and_then(|status| status.phase).unwrap_or_default();
        if phase == "Failed" || phase == "Succeeded" {
            return Err(Failure::new("the controller ended", "its log above says why", ""));
        }
        Ok(())
    }

    /// What the objects and the logs say; for a failure.
    pub async fn evidence(&self) -> String {
        let mut text = String::new();
        if let Ok(client) = self.client() {
            // Writing to a String cannot fail.
            let _ = objects(client, &mut text).await;
        }
        let logs = std::fs::read_dir(self.directory.join("logs")).into_iter().flatten().flatten();
        for log in logs {
            let said = std::fs::read(log.path()).unwrap_or_default();
            let said = String::from_utf8_lossy(&said);
            let lines: Vec<&str> = said.lines().collect();
            let _ = writeln!(text, "last lines of {}:", log.file_name().to_string_lossy());
            for line in &lines[lines.len().saturating_sub(LOG_TAIL)..] {
                let _ = writeln!(text, "  {line}");
            }
        }
        text
    }

    /// Ends everything and removes the directory.
    ///
    /// # Errors
    /// Something survived.
    pub async fn close(self, voice: &Voice) -> Result<(), Failure> {
        let directory = self.directory.display();
        let ended = match self.cluster {
            Some(cluster) => cluster.shutdown().await,
            None => Ok(()),
        };
        if self.keep {
            voice.heading(&format!("Kept: {directory} (nothing runs in it any more)"));
        } else {
            remove(&self.directory).map_err(|error| {
                Failure::new(
                    format!("cannot remove {directory}"),
                    error.to_string(),
                    format!("rm -rf {directory}"),
                )
            })?;
            voice.heading(&format!("Cleaned up: no process is left, {directory} is removed"));
        }
        ended.map_err(|error| {
            Failure::new("not every process of the demo ended", error.to_string(), "end them by hand")
        })
    }

    fn write(&self, name: &str, content: &str) -> Result<PathBuf, Failure> {
        use std::io::Write as _;
        let path = self.directory.join(name);
        let written = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(content.as_bytes()));
        written
            .map(|()| path.clone())
            .map_err(|error| Failure::new(format!("cannot write {}", path.display()), error.to_string(), ""))
    }
}

/// A task of the cluster that was told to end may create one more file while the directory is removed.
fn remove(directory: &Path) -> std::io::Result<()> {
    let mut outcome = Ok(());
    for _ in 0..3 {
        outcome = std::fs::remove_dir_all(directory);
        match &outcome {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(_) => {}
        }
    }
    outcome
}

/// A look failed.
pub fn asked(error: &kube::Error) -> Failure {
    Failure::new("the embedded cluster did not answer", error.to_string(), "")
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn objects(client: Client, text: &mut String) -> Result<(), kube::Error> {
    let all = ListParams::default();
    for policy in Api::<BackupPolicy>::all(client.clone()).list(&all).await?.items {
        let _ = writeln!(text, "policy {}:", policy.name_any());
        for condition in policy.status.iter().flat_map(|status| &status.conditions) {
            let _ = writeln!(
                text,
                "  {}={} {}: {}",
                condition.type_, condition.status, condition.reason, condition.message
            );
        }
    }
    for backup in
        Api::<Backup>::all(client.clone()).list(&all).await?.items.iter().filter(|backup| !backup.proven())
    {
        let _ = writeln!(text, "{}", describe(backup));
    }
    for restore in Api::<Restore>::all(client.clone()).list(&all).await?.items {
        let _ = writeln!(text, "restore {}:", restore.name_any());
        for condition in restore.status.iter().flat_map(|status| &status.conditions) {
            let _ = writeln!(
                text,
                "  {}={} {}: {}",
                condition.type_, condition.status, condition.reason, condition.message
            );
        }
    }
    for pod in Api::<Pod>::all(client.clone()).list(&all).await?.items {
        let status = pod.status.clone().unwrap_or_default();
        let phase = status.phase.unwrap_or_default();
        let _ = writeln!(
            text,
            "pod {}: {phase}, ready: {} {}",
            pod.name_any(),
            is_ready(&pod),
            status.message.unwrap_or_default()
        );
    }
    for event in Api::<Event>::all(client).list(&all).await?.items {
        if event.type_.as_deref() == Some("Warning") {
            let about = event.involved_object.name.unwrap_or_default();
            let _ = writeln!(
                text,
                "event {about}: {}: {}",
                event.reason.unwrap_or_default(),
                event.message.unwrap_or_default()
            );
        }
    }
    Ok(())
}
