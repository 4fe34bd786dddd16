//! A controller as a process has it: a runtime of its own, so that it can be killed with everything it started.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::Client;
use stillpoint_api::backup::Trigger;
use stillpoint_api::clock::{Clock as _, SystemClock};
use stillpoint_api::evidence::{Consistency, CutKind, CutSignal, GroupKind};
use stillpoint_api::outcome::{HookPhase, HookResult, RunResult, Violation};
use stillpoint_executor::contents::ContentWatch;
use stillpoint_executor::context::Context;
use stillpoint_executor::exec::{KubeExec, exec_client_config};
use stillpoint_executor::hold::SystemEntropy;
use stillpoint_executor::observer::{RunLabels, RunObserver};
use stillpoint_executor::ownership::replica::identity;
use stillpoint_executor::ownership::{Ownership, Timing};
use stillpoint_executor::rehearsal::FENCE;
use stillpoint_executor::storage::{StorageTable, TrustEntry, TrustFile};
use stillpoint_executor::{controller, restore};
use stillpoint_simcluster::{DRIVER, SimCluster};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::stage::ORDERED;

pub struct Controller {
    runtime: Option<Runtime>,
    stop: watch::Sender<bool>,
    backups: Option<JoinHandle<()>>,
    pub heard: Arc<Heard>,
}

/// What a controller told of hooks, violations and Restores, in words.
#[derive(Default)]
pub struct Heard(Mutex<Vec<String>>);

impl Heard {
    /// What was told that begins like this, in order.
    pub fn of(&self, beginning: &str) -> Vec<String> {
        let all = self.0.lock().unwrap();
        all.iter().filter(|one| one.starts_with(beginning)).cloned().collect()
    }

    /// Waits until so many of these were told.
    pub async fn until(&self, beginning: &str, count: usize) -> Vec<String> {
        let told = async {
            while self.of(beginning).len() < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), told).await.expect("it was told");
        self.of(beginning)
    }

    fn note(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }
}

impl RunObserver for Heard {
    fn freeze(&self, _: &RunLabels, _: f64) {}
    fn overhead(&self, _: &RunLabels, _: f64) {}
    fn hook(&self, _: &RunLabels, _: &str, _: HookPhase, _: f64) {}
    fn hook_ended(&self, run: &RunLabels, application: &str, phase: HookPhase, result: HookResult) {
        self.note(format!("hook {:?} {application} {phase:?} {result:?}", run.policy));
    }
    fn violation(&self, run: &RunLabels, violation: Violation) {
        self.note(format!("violation {:?} {violation:?}", run.policy));
    }
    fn restored(&self, run: &RunLabels, result: RunResult, seconds: f64) {
        assert!(seconds >= 0.0);
        self.note(format!("restored {:?} {result:?}", run.policy));
    }
    fn cut(&self, _: &str, _: f64) {}
    fn ready(&self, _: &str, _: f64) {}
    fn finished(&self, _: &RunLabels, _: Trigger, _: Option<Consistency>, _: RunResult) {}
}

impl Controller {
    pub fn start(cluster: &SimCluster, replica: &str) -> Self {
        Self::start_with(cluster, replica, brief())
    }

    /// One with other times of ownership.
    pub fn start_with(cluster: &SimCluster, replica: &str, timing: Timing) -> Self {
        Self::start_as(cluster, replica, timing, trusted(CutKind::Atomic, CutSignal::Handle))
    }

    /// One whose operator says this about the driver.
    pub fn start_trusting(cluster: &SimCluster, replica: &str, cut: CutKind, signal: CutSignal) -> Self {
        Self::start_as(cluster, replica, brief(), trusted(cut, signal))
    }

    fn start_as(cluster: &SimCluster, replica: &str, timing: Timing, storage: StorageTable) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let inside = runtime.enter();
        let heard = Arc::new(Heard::default());
        let ownership = Ownership::new(identity(replica, &SystemEntropy).unwrap(), "default", timing);
        let context = context(cluster, storage, heard.clone(), ownership);
        let (client, contents) = (context.client.clone(), context.contents.clone());
        let (stop, stopping) = watch::channel(false);
        // Each keeps a sender: a channel that closes would be a request to stop, and a killed runtime still polls some tasks.
        let until_stopped = || {
            let (open, mut stopping) = (stop.clone(), stopping.clone());
            async move {
                let _ = stopping.wait_for(|stop| *stop).await;
                drop(open);
            }
        };
        tokio::spawn(contents.run(client));
        tokio::spawn(restore::run(context.clone(), watch::Sender::new(false), until_stopped()));
        let run = controller::run(context, watch::Sender::new(false), until_stopped());
        let backups = tokio::spawn(async move { run.await.unwrap() });
        drop(inside);
        Self { runtime: Some(runtime), stop, backups: Some(backups), heard }
    }

    /// SIGTERM: it ends by itself.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        self.backups.take().unwrap().await.unwrap();
    }

    /// SIGKILL: its tasks and its sockets are gone, and nothing of it runs again.
    pub fn kill(self) {
        drop(self);
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What the adapters work with, on this cluster.
fn context(
    cluster: &SimCluster,
    storage: StorageTable,
    observer: Arc<dyn RunObserver>,
    ownership: Ownership,
) -> Context {
    let config = exec_client_config(cluster.kube_config());
    let clock = SystemClock::shared();
    Context {
        client: Client::try_from(config.clone()).unwrap(),
        exec: Arc::new(KubeExec::from_config(config, Arc::clone(&clock)).unwrap()),
        clock,
        entropy: Arc::new(SystemEntropy),
        storage: Arc::new(storage),
        observer,
        contents: ContentWatch::new(),
        ownership,
        impersonate: true,
    }
}

/// The same for somebody at the command line, who claims no run.
pub fn by_hand(cluster: &SimCluster) -> Context {
    let ownership = Ownership::unclaimed("somebody", SystemClock::new().mono(), FENCE);
    context(cluster, StorageTable::default(), Arc::new(Heard::default()), ownership)
}

/// Times of ownership that a test can wait for.
pub fn brief() -> Timing {
    Timing {
        lease: Duration::from_secs(2),
        renew: Duration::from_millis(200),
        ready_lease: Duration::from_secs(1),
        past_promise: Duration::from_millis(500),
        session_lease: Duration::from_millis(500),
        recover_first: Duration::from_millis(100),
        recover_at_most: Duration::from_millis(500),
        ..Timing::default()
    }
}

fn trusted(cut: CutKind, cut_signal: CutSignal) -> StorageTable {
    let entry = |storage_class: Option<&str>, group| TrustEntry {
        driver: DRIVER.into(),
        storage_class: storage_class.map(Into::into),
        cut,
        group,
        cut_signal,
        reason: "every process of the pod is stopped while its directory is copied".into(),
    };
    StorageTable::with_trust(&TrustFile {
        entries: vec![entry(None, GroupKind::Sequential), entry(Some(ORDERED), GroupKind::WriteOrder)],
    })
    .unwrap()
}
