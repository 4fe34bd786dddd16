//! One Backup from claim to `Finished`: its attempts, one after the other. Whose it is, is in `claim`; how it ends, in
//! `finish`; how many go on at once, in `turns`.

mod claim;
mod finish;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use stillpoint_api::backup::{Backup, BackupStatus};
use stillpoint_api::policy::{BackupPolicy, RunBounds};
use tokio::sync::{Mutex, OwnedSemaphorePermit, watch};
use tracing::{info, warn};

use crate::attempt::{self, Outcomes};
use crate::context::{Context, bounded};
use crate::happenings::Happenings;
use crate::hold::Nonce;
use crate::journal::{Journal, JournalError};
use crate::observer::RunLabels;
use crate::ownership::templates_kept;
use crate::ownership::workload::{self, Locks, WORKLOAD_BUSY};
use crate::pace::{self, FREEZE_LIMIT};
use crate::recovery::{Row, blocked_twice, row};
use crate::resolve::{Nonces, Refusal, Resolution, SNAPSHOT_IN_FLIGHT, ask, decide, observe, preflight};
use crate::run::{Abort, End, Reason, Record};

use turns::Turn;
pub use turns::Turns;

/// Pause before another attempt: long enough for a pod to restart or a lock to clear.
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(5);
/// How long a snapshot in flight is waited for before the attempt is given up.
const IN_FLIGHT_PATIENCE: Duration = Duration::from_secs(20);
/// Pause between two looks at it.
const IN_FLIGHT_LOOK: Duration = Duration::from_millis(500);
/// Longest pause between two looks for a place among the freezes that rules allow; in this process the end of a freeze is
/// noticed at once.
const PLACE_LOOK: Duration = Duration::from_secs(1);
/// Longest pause between two looks at a workload that another run holds.
const BUSY_LOOK: Duration = Duration::from_secs(2);
/// How long a write outside the window is tried.
const WRITE_WITHIN: Duration = Duration::from_secs(600);

/// Why a run ended without a point, for conditions and events.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    reason: String,
    message: String,
    may_pass: bool,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self { reason: refusal.reason.to_owned(), message: refusal.message, may_pass: refusal.may_pass }
    }
}

impl From<Abort> for Failure {
    fn from(abort: Abort) -> Self {
        Self {
            reason: abort.reason.as_str().to_owned(),
            may_pass: abort.reason.may_pass(),
            message: abort.message,
        }
    }
}

/// How the work on a Backup ended for this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// It is finished.
    Finished,
    /// It is not, and another process or a later start goes on.
    Unfinished,
}

/// The work on one Backup.
pub struct BackupRun {
    context: Context,
    happenings: Happenings,
    journal: Arc<Mutex<Journal>>,
    labels: RunLabels,
    stop: watch::Receiver<Option<Abort>>,
    turns: Arc<Turns>,
    /// A permit that the run has before its first attempt.
    first: Option<OwnedSemaphorePermit>,
}

impl BackupRun {
    /// Work on a Backup as it was read. Attempts take a permit each; recovery takes none: it waits for nobody.
    pub fn new(
        context: Context,
        happenings: Happenings,
        backup: Backup,
        stop: watch::Receiver<Option<Abort>>,
        turns: Arc<Turns>,
    ) -> Self {
        let labels = RunLabels {
            namespace: backup.namespace().unwrap_or_default(),
            policy: backup.policy_name().unwrap_or_default().to_owned(),
        };
        let journal = Arc::new(Mutex::new(Journal::new(&context, backup)));
        Self { context, happenings, journal, labels, stop, turns, first: None }
    }

    /// The same with a permit for its first attempt.
    #[must_use]
    pub fn with(self, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { first: permit, ..self }
    }

    /// Goes on from wherever the Backup stands, to its end.
    ///
    /// # Errors
    /// The run was lost to another process, or its status cannot be written.
    pub async fn go(mut self) -> Result<Left, JournalError> {
        let left = self.work().await?;
        if left == Left::Unfinished && self.shutting_down() {
            self.hand_over().await;
        }
        Ok(left)
    }

    async fn work(&mut self) -> Result<Left, JournalError> {
        self.take_over().await?;
        let status = self.journal.lock().await.status();
        let last = match row(&status, &self.context.ownership.timing()) {
            Row::Begin => None,
            Row::WaitForSessions { wait } => {
                info!(namespace = self.labels.namespace, ?wait, "found a run that was being prepared");
                if self.rest(wait).await {
                    return Ok(Left::Unfinished);
                }
                self.release().await?;
                Some(interrupted("the controller ended while it prepared the run; nothing was frozen"))
            }
            Row::WaitForHolds { wait, nonce } => {
                info!(
                    namespace = self.labels.namespace,
                    ?wait,
                    "found a run that was frozen; its holds end by themselves"
                );
                if self.rest(wait).await {
                    return Ok(Left::Unfinished);
                }
                let failure = interrupted(
                    "the controller ended during the freeze; the application was released by the end of its session, \
                     and the snapshots of that attempt are removed",
                );
                self.abort_entry(&status, &nonce, &failure).await?;
                if self.unwind(&nonce, true).await? {
                    return Ok(Left::Unfinished);
                }
                Some(failure)
            }
            Row::CleanUp { nonce, reason, message } => {
                if self.unwind(&nonce, false).await? {
                    return Ok(Left::Unfinished);
                }
                // Whatever it was, the process that saw it is gone; another attempt looks for itself.
                Some(Failure { reason, message, may_pass: true })
            }
            Row::Settle { nonce } => {
                // Every hold of a run that was journalled as Thawed answered its thaw.
                self.release().await?;
                return self.settle(&nonce).await;
            }
        };
        self.attempts(last).await
    }

    async fn attempts(&mut self, mut last: Option<Failure>) -> Result<Left, JournalError> {
        let mut bounds = self.bounds().await;
        loop {
            if let Some(why) = self.ending().await {
                return self.end(why).await;
            }
            let (backup, status) = {
                let journal = self.journal.lock().await;
                (journal.backup().clone(), journal.status())
            };
            if let Some(failure) = &last
                && (!failure.may_pass || blocked_twice(&status) || self.spent(&backup, &status, &bounds))
            {
                return self.fail(failure.clone()).await;
            }
            if last.is_some() && self.pause(BETWEEN_ATTEMPTS).await {
                continue;
            }
            let Some(permit) = self.permit().await else { continue };
            let attempt = self.claim().await?;
            let mut turn = Turn::to_run(permit);
            let started = self.resolve_patiently(attempt, &mut turn, &bounds).await?;
            let (resolution, nonce) = match started {
                Ok(ready) => ready,
                Err(refusal) => {
                    drop(turn);
                    self.warn(refusal.reason, &refusal.message).await;
                    self.release().await?;
                    last = Some(refusal.into());
                    continue;
                }
            };
            bounds = resolution.bounds;
            let window = self.context.ownership.open_window();
            let carried = attempt::carry_out(
                &self.context,
                Arc::clone(&self.journal),
                Arc::new(resolution),
                nonce.to_string(),
                self.labels.clone(),
                self.stop.clone(),
            );
            let Outcomes { end, record } = carried.await;
            drop((window, turn));
            self.tell_ended_blockers(&record).await;
            match end {
                End::Thawed => {
                    self.release().await?;
                    return self.settle(nonce.as_str()).await;
                }
                End::Disowned(why) => return Err(JournalError::Disowned(why)),
                End::Aborted(why) => {
                    warn!(
                        namespace = self.labels.namespace,
                        backup = backup.name_any(),
                        attempt,
                        reason = %why.reason,
                        message = why.message,
                        "the attempt was given up"
                    );
                    if why.reason != Reason::Shutdown {
                        self.warn(why.reason.as_str(), &why.message).await;
                    }
                    if self.unwind(nonce.as_str(), false).await? {
                        // The next owner cleans up and tries the slot again.
                        return Ok(Left::Unfinished);
                    }
                    last = Some(why.into());
                }
            }
        }
    }

    /// Somebody else's statement was ended: its owner must be able to find out by whom.
    async fn tell_ended_blockers(&self, record: &Record) {
        for hold in &record.holds {
            for ended in &hold.ended_blockers {
                let place = format!("{}/{}", hold.pod_name, hold.container);
                let (reason, how) = match (&ended.failed, ended.answered) {
                    (None, Some(_)) => ("BlockerEnded", "was ended".to_owned()),
                    (Some(why), _) => ("BlockerNotEnded", format!("could not be ended ({why})")),
                    (None, None) => {
                        ("BlockerNotEnded", "was being ended; how that went is not known".to_owned())
                    }
                };
                let note = format!(
                    "freeze.onBlocked is KillBlocker: statement {} on {place}, which kept writers waiting behind a lock \
                     that was not acquired, {how}; the stall probe said: {}",
                    ended.id, ended.named_by
                );
                self.warn(reason, &note).await;
            }
        }
    }

    /// Why the run is to end: it was told to, or its Backup says so.
    async fn ending(&self) -> Option<Abort> {
        if let Some(why) = self.stop.borrow().clone() {
            return Some(why);
        }
        cancelled(self.journal.lock().await.backup())
    }

    /// Ends a run that is to go no further; nothing of it is frozen.
    async fn end(&self, why: Abort) -> Result<Left, JournalError> {
        match why.reason {
            Reason::Shutdown => Ok(Left::Unfinished),
            _ => self.fail(why.into()).await,
        }
    }

    fn shutting_down(&self) -> bool {
        self.stop.borrow().as_ref().is_some_and(|why| why.reason == Reason::Shutdown)
    }

    /// Bounds of the slot as they are now; the defaults where the policy is gone, for which a run fails anyway.
    async fn bounds(&self) -> RunBounds {
        let backup = self.journal.lock().await.backup().clone();
        let Some(policy) = backup.policy_name() else { return backup.spec.run.run.unwrap_or_default() };
        let api: kube::Api<BackupPolicy> =
            kube::Api::namespaced(self.context.client.clone(), &self.labels.namespace);
        match bounded(format!("read BackupPolicy {policy}"), api.get_opt(policy)).await {
            Ok(Some(policy)) => policy.spec.run.unwrap_or_default(),
            Ok(None) | Err(_) => RunBounds::default(),
        }
    }

    /// Whether the slot allows no further attempt.
    fn spent(&self, backup: &Backup, status: &BackupStatus, bounds: &RunBounds) -> bool {
        status.attempt >= bounds.max_attempts() || self.late(backup, status, bounds)
    }

    /// Whether the deadline of the slot has passed.
    fn late(&self, backup: &Backup, status: &BackupStatus, bounds: &RunBounds) -> bool {
        let begun = status.started_at.as_ref().map(|at| at.0);
        let slot = backup.spec.run.slot.as_ref().map(|slot| slot.0);
        let deadline = bounds.deadline();
        slot.max(begun).is_some_and(|from| {
            self.context.clock.wall().duration_since(from).as_secs()
                > i64::try_from(deadline.as_secs()).unwrap_or(i64::MAX)
        })
    }

    /// A snapshot that is being made or deleted is gone in a second or two, most often one that retention removes, and
    /// another run of the workload ends soon: waiting costs less than an attempt. Everything is read again after it.
    ///
    /// Where rules limit freezes, it waits for its place until its deadline, and its turn in this process is another's
    /// meanwhile.
    async fn resolve_patiently(
        &mut self,
        attempt: u32,
        turn: &mut Turn,
        bounds: &RunBounds,
    ) -> Result<Result<(Resolution, Nonce), Refusal>, JournalError> {
        let mut waited = Duration::ZERO;
        loop {
            let freed = self.turns.freed();
            let outcome = self.resolve(attempt).await;
            match &outcome {
                Err(refusal) if refusal.reason == FREEZE_LIMIT => {
                    self.tell_waiting(&refusal.message).await?;
                    if self.deadline_passed(bounds).await {
                        self.tell_waited("Deadline", "its deadline passed while it waited").await?;
                        return Ok(outcome);
                    }
                    if !self.wait_for_place(turn, freed).await {
                        return Ok(outcome);
                    }
                    continue;
                }
                Ok(_) => self.tell_waited("Admitted", "it had its turn").await?,
                Err(_) => {}
            }
            let (patience, look) = match outcome.as_ref().map_err(|refusal| refusal.reason) {
                Err(SNAPSHOT_IN_FLIGHT) => (IN_FLIGHT_PATIENCE, IN_FLIGHT_LOOK),
                Err(WORKLOAD_BUSY) => {
                    let busy = self.context.ownership.timing().busy;
                    (busy, (busy / 60).clamp(IN_FLIGHT_LOOK / 5, BUSY_LOOK))
                }
                Ok(_) | Err(_) => return Ok(outcome),
            };
            if waited >= patience || self.pause(look).await {
                return Ok(outcome);
            }
            waited += look;
        }
    }

    async fn resolve(&self, attempt: u32) -> Result<(Resolution, Nonce), Refusal> {
        let backup = self.journal.lock().await.backup().clone();
        if let Some(first) = stillpoint_api::validate::backup(&backup).first() {
            return Err(Refusal::stands("BackupNotAccepted", format!("{}: {}", first.path, first.message)));
        }
        let mut observed = observe::observe(&self.context, &backup).await?;
        ask::ask(&self.context, &backup, &mut observed).await?;
        let Nonces { attempt: nonce, holds: hold_nonces } = Nonces::draw(&*self.context.entropy, &observed)?;
        let given = decide::Given {
            backup: &backup,
            attempt,
            nonce: &nonce,
            hold_nonces: &hold_nonces,
            storage: &self.context.storage,
            impersonate: self.context.impersonate,
        };
        let mut resolution = decide::decide(&given, &observed)?;
        let workloads = workload::of(&resolution, &observed);
        let (locks, now) = (Locks::new(&self.context), self.context.clock.wall());
        locks.take(&backup, &workloads, now).await?;
        // After the workload: whoever has a place waits for nobody any more.
        let drivers = resolution.plan.members.iter().map(|member| member.driver.as_str());
        let limits = pace::bounds(&observed.rules, &self.labels.namespace, drivers);
        locks.take_places(&backup, &limits, now).await?;
        let uid = backup.uid().unwrap_or_default();
        for recipe in &resolution.recipes {
            templates_kept::keep(&self.context, &self.labels.namespace, recipe, &uid).await?;
        }
        resolution.plan.api_clock = preflight::check(&self.context, &resolution, nonce.as_str()).await?;
        resolution.plan.fence = self.context.ownership.fence().ok_or_else(|| {
            Refusal::may_pass(
                "ClaimNotConfirmed",
                "this replica's Lease was never confirmed; no freeze begins without it",
            )
        })?;
        Ok((resolution, nonce))
    }

    async fn warn(&self, reason: &str, message: &str) {
        let backup = self.journal.lock().await.backup().clone();
        self.happenings.warning(&backup, reason, message).await;
    }

    /// Waits; true when the run is to end meanwhile.
    async fn pause(&self, time: Duration) -> bool {
        let mut stop = self.stop.clone();
        tokio::select! {
            () = tokio::time::sleep(time) => false,
            _ = stop.wait_for(Option::is_some) => true,
        }
    }

    /// Waits for what must have its time, also when the run is cancelled; true when the controller stops meanwhile.
    async fn rest(&self, time: Duration) -> bool {
        let mut stop = self.stop.clone();
        tokio::select! {
            () = tokio::time::sleep(time) => false,
            _ = stop.wait_for(|why| why.as_ref().is_some_and(|why| why.reason == Reason::Shutdown)) => true,
        }
    }
}

/// Whether a Backup says that its run is to end.
pub fn cancelled(backup: &Backup) -> Option<Abort> {
    if backup.metadata.deletion_timestamp.is_some() {
        return Some(Abort::new(Reason::Cancelled, "the Backup was deleted while it ran"));
    }
    backup.spec.cancel.then(|| Abort::new(Reason::Cancelled, "spec.cancel was set"))
}

fn interrupted(message: &str) -> Failure {
    Failure { reason: Reason::Interrupted.as_str().to_owned(), message: message.to_owned(), may_pass: true }
}
