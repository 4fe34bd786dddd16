//! How many runs go on at once: in this process by permits, and in the cluster by what rules allow.
//!
//! A run that waits for its place among the freezes of the cluster gives its permit back, so that runs which are under no
//! limit, or another one, go on. It waits before anything is frozen, and its deadline goes on.

use std::sync::Arc;

use stillpoint_api::backup::{BackupStatus, PACED};
use stillpoint_api::conditions;
use stillpoint_api::policy::RunBounds;
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{AcquireError, Notify, OwnedSemaphorePermit, Semaphore};

use super::{BackupRun, PLACE_LOOK, WRITE_WITHIN};
use crate::journal::JournalError;
use crate::pace::FREEZE_LIMIT;

/// Runs at once in this process.
const MAX_RUNS: usize = 16;
/// Runs of this process that wait for a place at once: each looks once a second. Beyond, they wait for one another.
const MAX_WAITING: usize = 32;

/// The turns of a process.
#[derive(Debug)]
pub struct Turns {
    runs: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// A run of this process released what it had.
    freed: Arc<Notify>,
}

/// What a run holds while an attempt of it is under way.
pub(super) struct Turn {
    /// Whether it is kept for a wait, and not for running.
    waits: bool,
    /// Given back when the turn ends.
    _permit: OwnedSemaphorePermit,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            runs: Arc::new(Semaphore::new(MAX_RUNS)),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            freed: Arc::default(),
        }
    }
}

impl Turn {
    /// A turn to run.
    pub(super) const fn to_run(permit: OwnedSemaphorePermit) -> Self {
        Self { waits: false, _permit: permit }
    }
}

impl Turns {
    /// A permit to run.
    ///
    /// # Errors
    /// Never: the permits are not closed.
    pub async fn run(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        Arc::clone(&self.runs).acquire_owned().await
    }

    /// Completes when a run of this process releases what it has after this was called.
    pub(super) fn freed(&self) -> OwnedNotified {
        Arc::clone(&self.freed).notified_owned()
    }

    /// A run released what it had.
    pub(super) fn free(&self) {
        self.freed.notify_waiters();
    }
}

impl BackupRun {
    /// Waits for a permit and for a Lease that lets a freeze begin; none when the run is to end meanwhile.
    pub(super) async fn permit(&mut self) -> Option<OwnedSemaphorePermit> {
        let mut stop = self.stop.clone();
        let (first, turns) = (self.first.take(), Arc::clone(&self.turns));
        let ready = async {
            let permit = match first {
                Some(permit) => permit,
                None => turns.run().await.ok()?,
            };
            self.context.ownership.held(&self.context.clock).await;
            Some(permit)
        };
        tokio::select! {
            permit = ready => permit,
            _ = stop.wait_for(Option::is_some) => None,
        }
    }

    /// Waits until it is worth looking for a place again, without its permit; false when the run is to end meanwhile.
    pub(super) async fn wait_for_place(&mut self, turn: &mut Turn, freed: OwnedNotified) -> bool {
        if !turn.waits
            && let Ok(permit) = Arc::clone(&self.turns.waiting).try_acquire_owned()
        {
            *turn = Turn { waits: true, _permit: permit };
        }
        let mut stop = self.stop.clone();
        tokio::select! {
            () = freed => {}
            () = tokio::time::sleep(PLACE_LOOK) => {}
            _ = stop.wait_for(Option::is_some) => return false,
        }
        if turn.waits {
            let Some(permit) = self.permit().await else { return false };
            *turn = Turn::to_run(permit);
        }
        true
    }

    /// Whether no attempt may start any more.
    pub(super) async fn deadline_passed(&self, bounds: &RunBounds) -> bool {
        let (backup, status) = {
            let journal = self.journal.lock().await;
            (journal.backup().clone(), journal.status())
        };
        self.late(&backup, &status, bounds)
    }

    /// Says in the status why the run waits; once, unless the reason changes.
    pub(super) async fn tell_waiting(&self, why: &str) -> Result<(), JournalError> {
        // Who is frozen at the moment changes all the time: what limits it does not.
        let limit = why.split(';').next().unwrap_or(why);
        let known = paced(&self.journal.lock().await.status()).unwrap_or_default();
        if known.starts_with(limit) {
            return Ok(());
        }
        self.set_paced(true, FREEZE_LIMIT, &format!("{limit}; it waits for its turn, by age")).await
    }

    /// Says that the wait is over, if there was one.
    pub(super) async fn tell_waited(&self, reason: &str, message: &str) -> Result<(), JournalError> {
        if paced(&self.journal.lock().await.status()).is_none() {
            return Ok(());
        }
        self.set_paced(false, reason, message).await
    }

    async fn set_paced(&self, waits: bool, reason: &str, message: &str) -> Result<(), JournalError> {
        let mut journal = self.journal.lock().await;
        let generation = journal.backup().metadata.generation;
        let at = self.context.clock.wall();
        let condition = conditions::condition(PACED, waits, reason, message, generation, at);
        journal.write(WRITE_WITHIN, |status| conditions::set(&mut status.conditions, condition.clone())).await
    }
}

/// What a run that waits says of it.
fn paced(status: &BackupStatus) -> Option<String> {
    let condition = status.conditions.iter().find(|one| one.type_ == PACED && one.status == "True")?;
    Some(condition.message.clone())
}
