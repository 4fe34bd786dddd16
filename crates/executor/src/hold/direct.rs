//! Two separate execs behind the interface of a held process: for containers without a shell.
//!
//! Nothing in the pod ends such a freeze when the controller is gone; a template asks for it by name
//! (`allowWithoutDeadline`). Guarantees while the controller lives: nothing is run where the probe says frozen already;
//! once the freeze command was started the thaw command is run until it succeeds, whatever becomes of the stream;
//! HELD is said only after the probe succeeded (docs/design/freeze.md §2.2, direct).

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use stillpoint_api::clock::Mono;
use stillpoint_api::template::Commands;
use tracing::warn;

use super::Nonce;
use crate::exec::stream::{Command, StreamSide, pair};
use crate::exec::{
    Exec, ExecCategory, ExecError, ExecHandle, ExecLimits, ExecTarget, OneShot, Outcome, Unknown, run_once,
};

/// A probe or a thaw takes no longer, as under the holder.
const BOUND: Duration = Duration::from_secs(5);
/// Pause between two tries of a thaw.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a thaw is tried after its stream has ended; then it is for `recover`.
const TRIED_FOR: Duration = Duration::from_secs(600);

/// Opens the stream of a hold that runs `commands` in `target`, one exec each.
pub fn open(exec: Arc<dyn Exec>, target: ExecTarget, commands: Commands, nonce: Nonce) -> ExecHandle {
    let (handle, side) = pair(ExecLimits::default(), exec.clock(), true);
    let direct = Direct { exec, target: ExecTarget { stdin: false, ..target }, commands, nonce };
    tokio::spawn(direct.hold(side));
    handle
}

struct Direct {
    exec: Arc<dyn Exec>,
    target: ExecTarget,
    commands: Commands,
    nonce: Nonce,
}

/// What the probe says.
enum Probed {
    Frozen,
    Open,
    Unknown(String),
}

type Running = BoxFuture<'static, Result<OneShot, ExecError>>;

/// How the freeze command ended, and the barrier after it where there is one and the freeze succeeded.
struct Froze {
    freeze: Result<OneShot, ExecError>,
    barrier: Option<Result<OneShot, ExecError>>,
}

type Freezing = BoxFuture<'static, Froze>;

impl Direct {
    async fn hold(self, mut side: StreamSide) {
        match self.probe().await {
            Probed::Open => self.say(&mut side, "READY", &self.identity()),
            Probed::Frozen => return self.foreign(&mut side),
            Probed::Unknown(why) => {
                side.stderr(format!("ERROR: {why}\n").as_bytes());
                return side.end(Outcome::Exited(3), None);
            }
        }
        let mut control = side.control.clone();
        let mut started = false;
        let mut freezing: Option<Freezing> = None;
        let end = loop {
            let wanted = *control.borrow_and_update();
            if wanted.close {
                break Outcome::Unknown(Unknown::ClosedHere);
            }
            let close_at = wanted.close_at;
            tokio::select! {
                biased;
                // A close or another deadline: looked at above.
                Ok(()) = control.changed() => {}
                () = self.at(close_at) => break Outcome::Unknown(Unknown::Deadline),
                done = ended(&mut freezing) => {
                    freezing = None;
                    self.froze(&mut side, done);
                }
                command = side.commands.recv() => match command {
                    None | Some(Command::CloseStdin) => break Outcome::Exited(0),
                    Some(Command::Write { seq, bytes, not_after }) => {
                        if not_after.is_some_and(|limit| side.now() > limit) {
                            break Outcome::Unknown(Unknown::Fenced);
                        }
                        side.written(seq);
                        let text = String::from_utf8_lossy(&bytes).into_owned();
                        match self.obey(&text, &mut side, &mut started, &mut freezing).await {
                            Obeyed::Goes => {}
                            Obeyed::Over => return side.end(Outcome::Exited(0), None),
                        }
                    }
                },
            }
        };
        drop(freezing);
        side.end(end, None);
        drop(side);
        if started {
            self.thaw_silently().await;
        }
    }

    /// Carries out the lines of one write.
    async fn obey(
        &self,
        text: &str,
        side: &mut StreamSide,
        started: &mut bool,
        freezing: &mut Option<Freezing>,
    ) -> Obeyed {
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["freeze", _, seconds] if !*started => {
                    if !matches!(self.probe().await, Probed::Open) {
                        self.foreign(side);
                        return Obeyed::Over;
                    }
                    *started = true;
                    let within = Duration::from_secs(seconds.parse().unwrap_or(1));
                    *freezing = Some(self.freeze(within));
                }
                ["beat", _, index] => {
                    let stands = freezing.is_none()
                        && (!*started
                            || self.commands.probe.is_empty()
                            || matches!(self.probe().await, Probed::Frozen));
                    if stands {
                        self.say(side, "HELD", &format!("{index} {}", self.identity()));
                    }
                }
                ["thaw", ..] => {
                    // A freeze that still runs is let go of: it cannot be ended from here.
                    *freezing = None;
                    if *started {
                        self.thaw(side).await;
                    }
                    self.say(side, "THAWED", "");
                    return Obeyed::Over;
                }
                _ => {}
            }
        }
        Obeyed::Goes
    }

    /// Runs the freeze command, and the barrier when it succeeded, both within one bound.
    fn freeze(&self, within: Duration) -> Freezing {
        let clock = self.exec.clock();
        let by = clock.mono() + within;
        let freeze = self.run(&self.commands.freeze, within);
        let (exec, barrier) = (Arc::clone(&self.exec), self.commands.barrier.clone());
        let target = ExecTarget { argv: barrier, ..self.target.clone() };
        Box::pin(async move {
            let freeze = freeze.await;
            let froze = matches!(&freeze, Ok(done) if done.outcome == Outcome::Exited(0));
            let barrier = if froze && !target.argv.is_empty() {
                Some(run_once(&*exec, &target, None, by.since(clock.mono())).await)
            } else {
                None
            };
            Froze { freeze, barrier }
        })
    }

    fn froze(&self, side: &mut StreamSide, done: Froze) {
        match done.barrier {
            None => {}
            Some(Ok(OneShot { outcome: Outcome::Exited(0), .. })) => {
                self.say(side, "EVIDENCE", "barrier=command")
            }
            Some(Ok(OneShot { outcome: Outcome::Exited(code), .. })) => {
                self.say(side, "EVIDENCE", &format!("barrier_failed={code}"));
            }
            Some(Ok(OneShot { outcome: Outcome::Failed(_) | Outcome::Unknown(_), .. }) | Err(_)) => {
                self.say(side, "EVIDENCE", "barrier_failed=unknown");
            }
        }
        match done.freeze {
            Ok(OneShot { outcome: Outcome::Exited(0), .. }) => {
                self.say(side, "FROZEN", &format!("0 {}", self.identity()));
            }
            Ok(OneShot { outcome: Outcome::Exited(code), stderr, .. }) => {
                side.stderr(stderr.as_bytes());
                self.say(side, "EVIDENCE", &format!("freeze_failed={code}"));
            }
            Ok(OneShot { outcome: Outcome::Failed(_) | Outcome::Unknown(_), .. }) | Err(_) => {
                self.say(side, "EVIDENCE", "freeze_failed=unknown");
            }
        }
    }

    /// Tries until it succeeds, saying so in between.
    async fn thaw(&self, side: &mut StreamSide) {
        while !self.thawed_once().await {
            self.say(side, "THAWFAILED", "");
            let closing = side.control.borrow().close;
            if closing {
                return self.thaw_silently().await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn thaw_silently(&self) {
        let clock = self.exec.clock();
        let until = clock.mono() + TRIED_FOR;
        while !self.thawed_once().await {
            if clock.mono() > until {
                warn!(
                    pod = self.target.pod,
                    container = self.target.container,
                    "the thaw command did not succeed for {TRIED_FOR:?}; run it by hand"
                );
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn thawed_once(&self) -> bool {
        match self.run(&self.commands.thaw, BOUND).await {
            Ok(done) => done.outcome == Outcome::Exited(0),
            // The container is gone, and what was frozen in it.
            Err(error) => error.category() == ExecCategory::NotFound,
        }
    }

    async fn probe(&self) -> Probed {
        if self.commands.probe.is_empty() {
            return Probed::Open;
        }
        match self.run(&self.commands.probe, BOUND).await {
            Ok(OneShot { outcome: Outcome::Exited(0), .. }) => Probed::Frozen,
            Ok(OneShot { outcome: Outcome::Exited(126 | 127), .. }) => {
                Probed::Unknown("the probe cannot be run".into())
            }
            Ok(OneShot { outcome: Outcome::Exited(_), .. }) => Probed::Open,
            Ok(OneShot { outcome: Outcome::Failed(_) | Outcome::Unknown(_), .. }) => {
                Probed::Unknown(format!("the probe cannot be run, or did not answer within {BOUND:?}"))
            }
            Err(error) => Probed::Unknown(format!("the probe could not be started: {error}")),
        }
    }

    fn run(&self, argv: &[String], within: Duration) -> Running {
        let (exec, target) =
            (Arc::clone(&self.exec), ExecTarget { argv: argv.to_vec(), ..self.target.clone() });
        Box::pin(async move { run_once(&*exec, &target, None, within).await })
    }

    fn foreign(&self, side: &mut StreamSide) {
        self.say(side, "EVIDENCE", "foreign_freeze=1");
        side.end(Outcome::Exited(0), None);
    }

    fn identity(&self) -> String {
        format!("host={} local=exec", self.target.pod)
    }

    fn say(&self, side: &mut StreamSide, word: &str, rest: &str) {
        let space = if rest.is_empty() { "" } else { " " };
        side.stdout(format!("{word} {}{space}{rest}\n", self.nonce).as_bytes());
    }

    async fn at(&self, instant: Option<Mono>) {
        match instant {
            Some(instant) => tokio::time::sleep(instant.since(self.exec.clock().mono())).await,
            None => std::future::pending().await,
        }
    }
}

enum Obeyed {
    Goes,
    Over,
}

async fn ended(freezing: &mut Option<Freezing>) -> Froze {
    match freezing {
        Some(running) => running.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "direct_tests.rs"]
mod tests;
