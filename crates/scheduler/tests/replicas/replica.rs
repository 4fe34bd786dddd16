//! One replica as a process has it: a runtime of its own, so that it can be killed or stopped with everything it started,
//! and a line of its own to the API server, so that it can be cut off.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use stillpoint_api::clock::SystemClock;
use stillpoint_scheduler::election::{self, Candidate, Leadership, Terms};
use stillpoint_scheduler::{Progress, SchedulerContext};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::world::{World, eventually};

pub struct Replica {
    pub identity: String,
    pub leadership: Leadership,
    pub ready: watch::Receiver<bool>,
    pub progress: watch::Receiver<Progress>,
    runtime: Option<Runtime>,
    line: watch::Sender<bool>,
    stop: Option<(watch::Sender<bool>, oneshot::Sender<()>)>,
    scheduler: Option<JoinHandle<()>>,
    election: Option<JoinHandle<()>>,
}

impl Replica {
    pub async fn start(world: &World, identity: &str, terms: Terms) -> Self {
        let line = watch::Sender::new(false);
        let mut config = world.cluster.kube_config();
        let address = config.cluster_url.authority().unwrap().to_string();
        // On the test's own runtime: a line outlives the process that speaks over it.
        let proxy = line_to(address, line.subscribe()).await;
        config.cluster_url = format!("http://{proxy}").parse().unwrap();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let inside = runtime.enter();
        let client = Client::try_from(config).unwrap();
        let clock = SystemClock::shared();
        let leadership = Leadership::none(Arc::clone(&clock));
        let (stop, mut stopping) = watch::channel(false);
        let (leave, leaving) = oneshot::channel::<()>();
        let candidate = Candidate {
            client: client.clone(),
            namespace: "default".to_owned(),
            identity: identity.to_owned(),
            clock,
            terms,
            leadership: leadership.clone(),
        };
        let election = tokio::spawn(election::run(candidate, async {
            let _ = leaving.await;
        }));
        let (ready, progress) = (watch::Sender::new(false), watch::Sender::default());
        let (is_ready, shown) = (ready.subscribe(), progress.subscribe());
        let context = SchedulerContext {
            client,
            clock: world.clock.clone(),
            cluster_uid: "cluster".to_owned(),
            ready,
            leadership: leadership.clone(),
            progress,
            deletions: Arc::new(()),
            work: Arc::new(()),
            rules: Arc::default(),
        };
        let scheduler = tokio::spawn(async move {
            let stopped = async move {
                let _ = stopping.wait_for(|stop| *stop).await;
            };
            stillpoint_scheduler::run(context, stopped).await.unwrap();
        });
        drop(inside);
        Self {
            identity: identity.to_owned(),
            leadership,
            ready: is_ready,
            progress: shown,
            runtime: Some(runtime),
            line,
            stop: Some((stop, leave)),
            scheduler: Some(scheduler),
            election: Some(election),
        }
    }

    pub async fn until_it_leads(&self) {
        eventually("it leads", async || self.leadership.leads().then_some(())).await;
    }

    /// What is left to look at of one that ends.
    pub fn seen_from_outside(&self) -> Self {
        Self {
            identity: self.identity.clone(),
            leadership: self.leadership.clone(),
            ready: self.ready.clone(),
            progress: self.progress.clone(),
            runtime: None,
            line: self.line.clone(),
            stop: None,
            scheduler: None,
            election: None,
        }
    }

    /// SIGKILL: its tasks and its sockets are gone, and nothing of it runs again.
    pub fn kill(self) -> Self {
        self.seen_from_outside()
    }

    /// SIGTERM: the scheduler ends, then the Lease is let go.
    pub async fn stop(mut self) {
        let (stop, leave) = self.stop.take().unwrap();
        stop.send_replace(true);
        self.scheduler.take().unwrap().await.unwrap();
        let _ = leave.send(());
        self.election.take().unwrap().await.unwrap();
    }

    /// While it is cut off no byte goes either way; all of them arrive afterwards.
    pub fn cut_off(&self, cut: bool) {
        self.line.send_replace(cut);
    }

    /// SIGSTOP and SIGCONT: its only thread does nothing for so long. Resolves when it goes on.
    pub fn stop_for(&self, pause: Duration) -> JoinHandle<()> {
        self.runtime.as_ref().unwrap().spawn(async move { std::thread::sleep(pause) })
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Senders that are dropped would ask it to stop, and a runtime that ends still polls some tasks.
            std::mem::forget(self.stop.take());
            runtime.shutdown_background();
        }
    }
}

/// A line to the server that can be cut; where it begins.
async fn line_to(server: String, cut: watch::Receiver<bool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let (server, cut) = (server.clone(), cut.clone());
            tokio::spawn(async move {
                let Ok(far) = TcpStream::connect(server).await else { return };
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                let there = carry(near_read, far_write, cut.clone());
                let back = carry(far_read, near_write, cut);
                // What was sent before the sender died still arrives.
                tokio::join!(there, back);
            });
        }
    });
    address
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut cut: watch::Receiver<bool>,
) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        let _ = cut.wait_for(|cut| !*cut).await;
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
