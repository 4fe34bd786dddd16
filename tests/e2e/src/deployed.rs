//! The controller as the Deployment of deploy/base: its replicas as the API server sees them, watched all the time, so that a
//! container that ended by itself never goes unseen; their metrics; and signals to their processes, which are processes of
//! this machine.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::cluster::Cluster;
use crate::controller::{NAMESPACE, metrics_at};
use crate::process::{processes_in, send_signal};
use crate::wait::{Look, until};
use crate::{Outcome, Present as _, ensure};

pub(crate) const DEPLOYMENT: &str = "deployment/stillpoint-controller";
/// The pods of the Deployment.
pub const PODS: &str = "app.kubernetes.io/name=stillpoint-controller";
/// As deploy/base has it.
const REPLICAS: usize = 2;
/// Where deploy/base has them serve.
const PORT: u16 = 8080;
/// Scheduled, started, listed, and seen by a probe that looks every 5 s.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// A stopping controller waits 20 s for its runs at most; the kubelet and the API server take their time as well.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// A pod of the Deployment.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Name of the pod, with which the controller's identity begins.
    pub name: String,
    /// UID of the pod.
    pub uid: String,
    address: Option<IpAddr>,
    ready: bool,
    leaving: bool,
    restarts: i32,
    exit: Option<i32>,
}

/// The running Deployment.
#[derive(Debug)]
pub struct Deployed {
    cluster: Cluster,
    seen: Arc<Mutex<Seen>>,
    watching: JoinHandle<()>,
}

/// What the watch saw, by UID.
#[derive(Debug, Default)]
struct Seen {
    there: BTreeMap<String, Replica>,
    gone: BTreeMap<String, Replica>,
    /// Restarts that a case caused itself.
    expected: BTreeMap<String, i32>,
}

impl Drop for Deployed {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Deployed {
    /// Starts the replicas and waits until they are ready.
    ///
    /// # Errors
    /// They do not become ready.
    pub async fn start(cluster: &Cluster, log: &Path) -> Outcome<Self> {
        File::create(log)?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), NAMESPACE);
        let watching = tokio::spawn(watch(pods, Arc::clone(&seen), cluster.clone(), log.to_path_buf()));
        let deployed = Self { cluster: cluster.clone(), seen, watching };
        deployed.scale(REPLICAS).await?;
        deployed.ready().await?;
        Ok(deployed)
    }

    /// Waits until all replicas are ready.
    ///
    /// # Errors
    /// They are not in time.
    pub async fn ready(&self) -> Outcome {
        until("the Deployment's replicas to be ready", READY_WITHIN, async || {
            let replicas = self.replicas();
            let ready = replicas.iter().filter(|one| one.ready).count();
            Ok(Look::at(
                (ready == REPLICAS && replicas.len() == REPLICAS).then_some(()),
                format!("{replicas:?}"),
            ))
        })
        .await
    }

    /// The replicas that are meant to stay.
    pub fn replicas(&self) -> Vec<Replica> {
        self.seen().there.values().filter(|one| !one.leaving).cloned().collect()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The replica that schedules.
    ///
    /// # Errors
    /// None does, or two.
    pub async fn leader(&self) -> Outcome<Replica> {
        let mut leading = Vec::new();
        for replica in self.replicas() {
            // One that is being started anew does not answer.
            let text = replica.metrics().await.unwrap_or_default();
            if text.lines().any(|line| line == "stillpoint_leader 1") {
                leading.push(replica);
            }
        }
        ensure!(leading.len() < 2, "two lead: {leading:?}");
        leading.pop().present("a replica that leads")
    }

    /// What the replicas serve at `/metrics`, put together.
    ///
    /// # Errors
    /// A ready one does not answer, or none is ready.
    pub async fn metrics(&self) -> Outcome<String> {
        let mut texts = Vec::new();
        for replica in self.replicas().iter().filter(|one| one.ready) {
            texts.push(replica.metrics().await?);
        }
        ensure!(!texts.is_empty(), "no replica is ready");
        Ok(together(&texts))
    }

    /// The replica whose container ended by itself.
    pub fn restarted(&self) -> Option<String> {
        let seen = self.seen();
        let unexpected =
            |one: &&Replica| one.restarts > seen.expected.get(&one.uid).copied().unwrap_or_default();
        let mut all = seen.there.values().chain(seen.gone.values());
        all.find(unexpected).map(|one| format!("{} restarted {} times", one.name, one.restarts))
    }

    /// Ends the container of a replica by SIGKILL; the kubelet starts another one.
    ///
    /// # Errors
    /// It has no process.
    pub async fn kill(&self, replica: &Replica) -> Outcome {
        *self.seen().expected.entry(replica.uid.clone()).or_default() += 1;
        self.signal(replica, "KILL").await
    }

    /// Sends a signal to the process of a replica.
    ///
    /// # Errors
    /// It has no process.
    pub async fn signal(&self, replica: &Replica, signal: &str) -> Outcome {
        let processes = processes_in(&replica.uid, &["stillpoint", "controller"])?;
        ensure!(!processes.is_empty(), "{} has no process", replica.name);
        for pid in processes {
            send_signal(pid, signal).await?;
        }
        Ok(())
    }

    /// Kills all containers, and the Deployment starts no others. Returns when all pods are gone.
    ///
    /// # Errors
    /// There is nothing to kill, or it does not go.
    pub async fn crash(self) -> Outcome {
        for replica in self.replicas() {
            self.signal(&replica, "KILL").await?;
        }
        self.terminate().await?;
        self.gone().await
    }

    /// Tells the Deployment to end all replicas, and does not wait.
    ///
    /// # Errors
    /// It was refused.
    pub async fn terminate(&self) -> Outcome {
        self.scale(0).await
    }

    /// Waits until all pods are gone: success if every container ended with 0.
    ///
    /// # Errors
    /// They are not gone in time, or the watch did not see how they ended.
    pub async fn ended(self) -> Outcome<ExitStatus> {
        self.gone().await?;
        let seen = self.seen();
        let mut worst = 0;
        for replica in seen.gone.values().filter(|one| one.leaving) {
            worst = worst.max(replica.exit.present(&format!("the exit code of {}", replica.name))?);
        }
        // The high byte of a wait status is the exit code.
        Ok(ExitStatus::from_raw(worst << 8))
    }

    async fn gone(&self) -> Outcome {
        until("the Deployment's pods to be gone", GONE_WITHIN, async || {
            let there: Vec<String> = self.seen().there.values().map(|one| one.name.clone()).collect();
            Ok(Look::at(there.is_empty().then_some(()), there.join(", ")))
        })
        .await
    }

    async fn scale(&self, replicas: usize) -> Outcome {
        let count = format!("--replicas={replicas}");
        let scale = ["-n", NAMESPACE, "scale", DEPLOYMENT, &count];
        self.cluster.kubectl(&scale, None).await?.good("scale the controller")?;
        Ok(())
    }
}

impl Replica {
    /// What it serves at `/metrics`.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn metrics(&self) -> Outcome<String> {
        let address = self.address.present(&format!("the address of {}", self.name))?;
        metrics_at(SocketAddr::new(address, PORT)).await
    }

    fn of(pod: &Pod) -> Option<Self> {
        let status = pod.status.as_ref();
        let container = status.and_then(|status| status.container_statuses.as_ref()?.first());
        let ended = container.and_then(|one| one.state.as_ref()?.terminated.as_ref());
        Some(Self {
            name: pod.name_any(),
            uid: pod.uid()?,
            address: status.and_then(|status| status.pod_ip.as_ref()?.parse().ok()),
            ready: container.is_some_and(|one| one.ready),
            leaving: pod.metadata.deletion_timestamp.is_some(),
            restarts: container.map_or(0, |one| one.restart_count),
            exit: ended.map(|ended| ended.exit_code),
        })
    }
}

/// Removes the Deployment of an earlier run of the suite: a controller that nobody expects would do the work of the next one.
///
/// # Errors
/// It does not go.
pub async fn remove(cluster: &Cluster) -> Outcome {
    let pods = [
        "-n",
        NAMESPACE,
        "delete",
        DEPLOYMENT,
        "--ignore-not-found",
        "--cascade=foreground",
        "--timeout=60s",
    ];
    cluster.kubectl(&pods, None).await?.good("delete an earlier Deployment")?;
    Ok(())
}

/// Keeps what is seen of the pods; writes the log of every container that starts.
async fn watch(pods: Api<Pod>, seen: Arc<Mutex<Seen>>, cluster: Cluster, log: std::path::PathBuf) {
    let mut changes = watcher(pods, watcher::Config::default().labels(PODS)).default_backoff().boxed();
    let mut followed = BTreeMap::new();
    let mut listed = BTreeMap::new();
    while let Some(change) = changes.next().await {
        let lock = || seen.lock().unwrap_or_else(PoisonError::into_inner);
        match change {
            // The stream begins anew by itself.
            Err(_) => {}
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(pod)) => {
                listed.extend(Replica::of(&pod).map(|one| (one.uid.clone(), one)));
            }
            Ok(watcher::Event::InitDone) => {
                let mut seen = lock();
                let before = std::mem::replace(&mut seen.there, std::mem::take(&mut listed));
                for (uid, replica) in before {
                    if !seen.there.contains_key(&uid) {
                        seen.gone.insert(uid, replica);
                    }
                }
            }
            Ok(watcher::Event::Apply(pod)) => {
                if let Some(replica) = Replica::of(&pod) {
                    let running = (replica.uid.clone(), replica.restarts);
                    let up = replica.ready || replica.exit.is_some();
                    if up && !followed.contains_key(&running) {
                        followed.insert(running, follow(&cluster, &replica.name, &log));
                    }
                    lock().there.insert(replica.uid.clone(), replica);
                }
            }
            Ok(watcher::Event::Delete(pod)) => {
                if let Some(replica) = Replica::of(&pod) {
                    let mut seen = lock();
                    seen.there.remove(&replica.uid);
                    seen.gone.insert(replica.uid.clone(), Replica { leaving: true, ..replica });
                }
            }
        }
    }
}

/// Appends the log of a pod's container to the file until the container ends. Whoever drops it ends that.
fn follow(cluster: &Cluster, pod: &str, log: &Path) -> Option<tokio::process::Child> {
    let file = OpenOptions::new().append(true).open(log).ok()?;
    let mut command = Command::new("kubectl");
    command.args(["-n", NAMESPACE, "logs", "--follow", "--prefix", pod]);
    command.env("KUBECONFIG", &cluster.kubeconfig).env("PATH", cluster.path());
    command.stdin(Stdio::null()).stdout(file).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn().ok()
}

/// One text of several replicas': what was counted (its family's type is counter or histogram) is added up, of gauges the
/// largest counts.
fn together(texts: &[String]) -> String {
    let mut counted = false;
    let mut order = Vec::new();
    let mut values: BTreeMap<&str, f64> = BTreeMap::new();
    for line in texts.iter().flat_map(|text| text.lines()) {
        if let Some(comment) = line.strip_prefix('#') {
            if let Some(type_) = comment.strip_prefix(" TYPE ") {
                counted = type_.ends_with(" counter") || type_.ends_with(" histogram");
            }
            continue;
        }
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        match values.get_mut(series) {
            Some(sum) if counted => *sum += value,
            Some(most) => *most = most.max(value),
            None => {
                order.push(series);
                values.insert(series, value);
            }
        }
    }
    let line = |series: &&str| format!("{series} {}\n", values.get(series).copied().unwrap_or_default());
    order.iter().map(line).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::together;

    #[test]
    fn counters_of_replicas_add_up_and_of_facts_the_largest_counts() {
        let one = "# TYPE a_total counter\na_total{x=\"1\"} 2\n# TYPE b gauge\nb 7\n# TYPE c histogram\nc_count 1\n";
        let other = "# TYPE a_total counter\na_total{x=\"1\"} 3\na_total{x=\"2\"} 1\n# TYPE b gauge\nb 4\n# TYPE c histogram\nc_count 1\n";
        let text = together(&[one.to_owned(), other.to_owned()]);
        assert_eq!(text, "a_total{x=\"1\"} 5\nb 7\nc_count 2\na_total{x=\"2\"} 1\n");
    }
}
