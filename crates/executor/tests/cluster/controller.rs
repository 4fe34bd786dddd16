//! A controller as a process has it: a runtime of its own, so that it can be killed with everything it started.

use std::sync::Arc;

use kube::Client;
use stillpoint_api::clock::SystemClock;
use stillpoint_api::evidence::{CutKind, CutSignal, GroupKind};
use stillpoint_executor::contents::ContentWatch;
use stillpoint_executor::context::Context;
use stillpoint_executor::exec::{KubeExec, exec_client_config};
use stillpoint_executor::hold::SystemEntropy;
use stillpoint_executor::observer::Unobserved;
use stillpoint_executor::storage::{StorageTable, TrustEntry, TrustFile};
use stillpoint_executor::{controller, restore};
use stillpoint_simcluster::{DRIVER, SimCluster};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub struct Controller {
    runtime: Option<Runtime>,
    stop: watch::Sender<bool>,
    backups: Option<JoinHandle<()>>,
}

impl Controller {
    pub fn start(cluster: &SimCluster, replica: &str) -> Self {
        Self::start_trusting(cluster, replica, CutKind::Atomic, CutSignal::Handle)
    }

    /// One whose operator says this about the driver.
    pub fn start_trusting(cluster: &SimCluster, replica: &str, cut: CutKind, signal: CutSignal) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let inside = runtime.enter();
        let config = exec_client_config(cluster.kube_config());
        let clock = SystemClock::shared();
        let client = Client::try_from(config.clone()).unwrap();
        let contents = ContentWatch::new();
        let context = Context {
            client: client.clone(),
            exec: Arc::new(KubeExec::from_config(config, Arc::clone(&clock)).unwrap()),
            clock,
            entropy: Arc::new(SystemEntropy),
            storage: Arc::new(trusted(cut, signal)),
            observer: Arc::new(Unobserved),
            contents: contents.clone(),
            replica: replica.to_owned(),
            impersonate: true,
        };
        let (stop, stopping) = watch::channel(false);
        let until_stopped = || {
            let mut stopping = stopping.clone();
            async move {
                let _ = stopping.wait_for(|stop| *stop).await;
            }
        };
        tokio::spawn(contents.run(client));
        tokio::spawn(restore::run(context.clone(), watch::Sender::new(false), until_stopped()));
        let run = controller::run(context, watch::Sender::new(false), until_stopped());
        let backups = tokio::spawn(async move { run.await.unwrap() });
        drop(inside);
        Self { runtime: Some(runtime), stop, backups: Some(backups) }
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

fn trusted(cut: CutKind, cut_signal: CutSignal) -> StorageTable {
    StorageTable::with_trust(&TrustFile {
        entries: vec![TrustEntry {
            driver: DRIVER.into(),
            storage_class: None,
            cut,
            group: GroupKind::Sequential,
            cut_signal,
            reason: "every process of the pod is stopped while its directory is copied".into(),
        }],
    })
    .unwrap()
}
