//! `stillpoint demo`: a real PostgreSQL is protected, lost and brought back, in front of one's eyes.
//!
//! Guarantees: whatever happens, Ctrl-C at any moment included, no process stays and the directory is removed (kept
//! only with `--keep`); nothing outside that directory is written, unless PostgreSQL has to be installed, which is
//! said before it is done. Compiled only with the feature `demo`; the release image does not have it.

mod postgres;
mod proof;
mod scrape;
mod stage;
mod story;
mod voice;
mod writers;

use std::sync::Arc;

use clap::Args;
use stillpoint_api::clock::SystemClock;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::voice::Voice;
use crate::failure::{Exit, Failure};

/// Shown below `--help`.
pub const HELP: &str = "\
It starts a Kubernetes API of its own, a PostgreSQL whose every commit is noted, and this very controller; takes a
backup at once and one by schedule; restores, starts a second PostgreSQL on the copy, and counts. Nobody's cluster is
touched, and nothing is left behind. PostgreSQL is installed from Debian's packages when it is missing.

Exit codes: 0 every commit was there, 1 it was not, or something failed (it says what).";

/// Arguments of `demo`.
#[derive(Args, Clone, Copy, Debug)]
pub struct DemoArgs {
    /// Keep the directory with volumes, snapshots and logs
    #[arg(long)]
    pub keep: bool,
    /// Do not wait for the slot at the next full minute
    #[arg(long)]
    pub no_wait_slot: bool,
}

/// Tells the story.
///
/// # Errors
/// A step failed; or somebody stopped it.
pub fn command(args: DemoArgs) -> Result<Exit, Failure> {
    let clock = SystemClock::shared();
    let voice = Voice::new(Arc::clone(&clock));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new("cannot start the asynchronous runtime", error.to_string(), ""))?;
    let outcome = runtime.block_on(async {
        let mut stopped = Stopped::listen()?;
        let mut stage = None;
        let told = tokio::select! {
            biased;
            name = stopped.wait() => Err(interrupted(name)),
            told = story::tell(&voice, &clock, args, &mut stage) => told,
        };
        let Some(stage) = stage else { return told };
        match &told {
            Err(failure) if failure.what != INTERRUPTED => {
                let evidence = tokio::time::timeout(EVIDENCE_WITHIN, stage.evidence()).await;
                voice.heading("What the cluster says about it");
                voice.block(&evidence.unwrap_or_else(|_| "it does not answer any more".into()));
            }
            Ok(_) | Err(_) => {}
        }
        // Further signals find their handlers installed and nobody waiting: the cleaning is not cut short.
        let cleaned = stage.close(&voice).await;
        told.and_then(|exit| cleaned.map(|()| exit))
    });
    // Tasks of the cluster that still hold a file are not waited for.
    runtime.shutdown_background();
    if outcome.is_ok() {
        voice.total();
    }
    outcome
}

/// How long a failed demo may take to say what happened.
const EVIDENCE_WITHIN: std::time::Duration = std::time::Duration::from_secs(10);

const INTERRUPTED: &str = "the demo was stopped";

fn interrupted(signal: &str) -> Failure {
    Failure::new(INTERRUPTED, format!("{signal} was received"), "")
}

/// The signals by which people and machines stop a program.
struct Stopped {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Stopped {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| Failure::new("cannot listen for signals", error.to_string(), ""))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT (Ctrl-C)",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hang_up.recv() => "SIGHUP",
        }
    }
}
