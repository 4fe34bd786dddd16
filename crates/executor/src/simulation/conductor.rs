//! The work of one process on one Backup, from claim to its end.
//!
//! It is written as the product's own is (`backup_run`), with the same decisions: [`crate::recovery::row`], claims,
//! workload locks. Its attempts are in [`super::attempt`].

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use stillpoint_api::backup::{BackupStatus, JournalEntry, JournalKind, Phase};
use stillpoint_api::evidence::{Consistency, HoldKind};

use super::api::{Answer, Request};
use super::attempt;
use super::faults::Milestone;
use super::journal::{Journal, JournalFailure};
use super::mutations::Mutation;
use super::ownership::{Claim, Decision, Holder, Timing, decide, decide_lock, holder_ends, run_of};
use super::resolve;
use super::runtime::Handle;
use super::settle;
use super::world::World;
use crate::recovery::{Row, row};
use crate::run::{End, Reason};

/// Pause before another attempt.
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(5);
/// How long snapshots of a given-up attempt are waited for.
const CLEANUP_PATIENCE: Duration = Duration::from_secs(60);
/// How often a slot is tried.
const MAX_ATTEMPTS: u32 = 2;
/// No attempt starts later than this after the first.
const RUN_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// How long a write outside the window is tried.
const WRITE_WITHIN: Duration = Duration::from_secs(600);

/// Why a try failed, and whether another one may pass.
type Failure = (&'static str, bool);

/// How the work on a Backup ended for this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Finished,
    Unfinished,
}

/// The work on one Backup by one process.
struct Conductor<'h> {
    handle: &'h Handle,
    backup: usize,
    journal: Rc<RefCell<Journal>>,
    timing: Timing,
}

/// Works on a Backup until it is over, or somebody else's.
pub async fn work(handle: &Handle, backup: usize) {
    let Some(Answer::Backup(version, status, deleting)) = handle.request(Request::GetBackup(backup)).await
    else {
        return;
    };
    if !deleting && matches!(status.phase, Phase::Succeeded | Phase::Failed) {
        return;
    }
    let journal = Rc::new(RefCell::new(Journal::new(handle, backup, version, *status)));
    let conductor = Conductor { handle, backup, journal, timing: Timing::default() };
    if let Ok(Left::Finished) = conductor.go().await
        && handle.with(|world| world.api.backups[backup].deleting)
    {
        conductor.delete().await;
    }
}

impl Conductor<'_> {
    fn status(&self) -> BackupStatus {
        self.journal.borrow().status.clone()
    }

    fn identity(&self) -> String {
        self.handle.with(|world| world.replicas[self.handle.replica].identity.clone())
    }

    fn stopping(world: &World, replica: usize) -> bool {
        world.replicas[replica].stopping
    }

    fn shutting_down(&self) -> bool {
        self.handle.with(|world| Self::stopping(world, self.handle.replica))
    }

    /// Why the run is to end.
    fn ending(&self) -> Option<Reason> {
        self.handle.with(|world| {
            if Self::stopping(world, self.handle.replica) {
                Some(Reason::Shutdown)
            } else if world.api.backups[self.backup].deleting {
                Some(Reason::Cancelled)
            } else {
                None
            }
        })
    }

    /// Waits; true when the run is to end meanwhile.
    async fn pause(&self, time: Duration) -> bool {
        let (replica, backup) = (self.handle.replica, self.backup);
        self.handle
            .pause(time, move |world| Self::stopping(world, replica) || world.api.backups[backup].deleting)
            .await
    }

    /// Waits for what must have its time; true when the controller stops meanwhile.
    async fn rest(&self, time: Duration) -> bool {
        let replica = self.handle.replica;
        self.handle.pause(time, move |world| Self::stopping(world, replica)).await
    }

    async fn write(
        &self,
        within: Duration,
        change: impl FnMut(&mut BackupStatus),
    ) -> Result<(), JournalFailure> {
        Journal::write(&self.journal, self.handle, within, change).await
    }

    async fn go(&self) -> Result<Left, JournalFailure> {
        let left = self.work().await?;
        if left == Left::Unfinished && self.shutting_down() && self.status().attempt > 0 {
            let _ = self.write(Duration::from_secs(2), |status| status.executor = None).await;
        }
        Ok(left)
    }

    async fn work(&self) -> Result<Left, JournalFailure> {
        self.take_over().await?;
        let status = self.status();
        if matches!(status.phase, Phase::Succeeded | Phase::Failed) {
            return Ok(Left::Finished);
        }
        let count = |name| self.handle.with(|world| world.coverage.outcome(name));
        let last = match row(&status, &self.timing) {
            Row::Begin => None,
            Row::WaitForSessions { wait } => {
                count("found while it was prepared");
                if self.rest(self.wait(wait)).await {
                    return Ok(Left::Unfinished);
                }
                self.release_locks().await;
                Some(("Interrupted", true))
            }
            Row::WaitForHolds { wait, nonce } => {
                count("found while it was frozen");
                if self.rest(self.wait(wait)).await {
                    return Ok(Left::Unfinished);
                }
                self.abort_entry(&status, &nonce).await?;
                if self.unwind(&nonce, true).await? {
                    return Ok(Left::Unfinished);
                }
                Some(("Interrupted", true))
            }
            Row::CleanUp { nonce, .. } => {
                count("found aborted");
                if self.unwind(&nonce, false).await? {
                    return Ok(Left::Unfinished);
                }
                Some(("Interrupted", true))
            }
            Row::Settle { nonce } => {
                count("found thawed");
                self.release_locks().await;
                return self.settle(&nonce).await;
            }
        };
        self.attempts(last).await
    }

    fn wait(&self, wait: Duration) -> Duration {
        if self.handle.with(|world| world.mutated(Mutation::NoRecoveryWait)) { Duration::ZERO } else { wait }
    }

    async fn attempts(&self, mut last: Option<Failure>) -> Result<Left, JournalFailure> {
        loop {
            match self.ending() {
                Some(Reason::Shutdown) => return Ok(Left::Unfinished),
                Some(why) => return self.fail(why.as_str()).await,
                None => {}
            }
            let status = self.status();
            if let Some((why, may_pass)) = last {
                let late = status.started_at.as_ref().is_some_and(|begun| {
                    self.handle.wall().duration_since(begun.0).as_secs()
                        > i64::try_from(RUN_DEADLINE.as_secs()).unwrap_or(i64::MAX)
                });
                if !may_pass || status.attempt >= MAX_ATTEMPTS || late {
                    return self.fail(why).await;
                }
                if self.pause(BETWEEN_ATTEMPTS).await {
                    continue;
                }
            }
            if !self.claim_is_confirmed().await {
                continue;
            }
            let attempt = self.claim().await?;
            let resolution = match self.resolve_patiently(attempt).await {
                Ok(resolution) => resolution,
                Err((reason, may_pass)) => {
                    self.release_locks().await;
                    last = Some((reason, may_pass));
                    continue;
                }
            };
            let nonce = resolution.nonce.clone();
            let journal = Rc::clone(&self.journal);
            match attempt::carry_out(self.handle, self.backup, journal, Rc::new(resolution)).await {
                End::Thawed => {
                    self.release_locks().await;
                    return self.settle(&nonce).await;
                }
                End::Disowned(_) => {
                    self.handle.with(|world| world.coverage.outcome("disowned"));
                    return Err(JournalFailure::Disowned);
                }
                End::Aborted(why) => {
                    self.handle.with(|world| world.coverage.outcome(why.reason.as_str()));
                    if self.unwind(&nonce, false).await? {
                        return Ok(Left::Unfinished);
                    }
                    last = Some((why.reason.as_str(), why.reason.may_pass()));
                }
            }
        }
    }

    /// Waits for a Lease that lets a freeze begin; false when the run is to end meanwhile.
    async fn claim_is_confirmed(&self) -> bool {
        loop {
            let fence = self.handle.with(|world| world.replicas[self.handle.replica].fence(&self.timing));
            if fence.is_some_and(|fence| fence > self.handle.mono()) {
                return true;
            }
            if self.pause(Duration::from_millis(500)).await {
                return false;
            }
        }
    }

    /// Makes a run that somebody else began this replica's: the claim first, then its workload locks.
    async fn take_over(&self) -> Result<(), JournalFailure> {
        let status = self.status();
        let us = self.identity();
        let now = self.handle.mono();
        let claim = self.handle.with(|world| {
            let replica = &mut world.replicas[self.handle.replica];
            let timing = self.timing;
            decide(status.executor.as_deref(), &us, |holder| {
                replica.peers.standing(holder, timing.lease, now)
            })
        });
        match claim {
            Claim::Ours => Ok(()),
            Claim::Take if status.attempt == 0 => Ok(()),
            Claim::Theirs { .. } => Err(JournalFailure::Disowned),
            Claim::Take | Claim::TakeOver { .. } => {
                self.handle.with(|world| world.coverage.outcome("run taken over"));
                self.write(WRITE_WITHIN, |status| status.executor = Some(us.clone())).await?;
                self.take_locks_over().await;
                Ok(())
            }
        }
    }

    async fn claim(&self) -> Result<u32, JournalFailure> {
        let now = MicroTime(self.handle.wall());
        let us = self.identity();
        let attempt = self.status().attempt + 1;
        self.write(WRITE_WITHIN, |status| {
            status.phase = Phase::Preparing;
            status.executor = Some(us.clone());
            status.attempt = attempt;
            status.started_at.get_or_insert_with(|| now.clone());
            (status.holds, status.members, status.window) = (Vec::new(), Vec::new(), None);
        })
        .await?;
        self.handle.with(|world| world.milestone(Milestone::Claimed, self.handle.replica, None));
        Ok(attempt)
    }

    async fn resolve_patiently(&self, attempt: u32) -> Result<resolve::Resolution, Failure> {
        let mut waited = Duration::ZERO;
        let look = Duration::from_secs(2);
        loop {
            let outcome = self.resolve(attempt).await;
            let busy = matches!(outcome, Err(("WorkloadBusy", _)));
            if !busy || waited >= self.timing.busy || self.pause(look).await {
                return outcome;
            }
            waited += look;
        }
    }

    async fn resolve(&self, attempt: u32) -> Result<resolve::Resolution, Failure> {
        let Some(Answer::Pods(pods)) = self.handle.request(Request::Pods).await else {
            return Err(("Interrupted", true));
        };
        let mut resolution = self.handle.with(|world| resolve::resolve(world, self.backup, attempt, &pods));
        if !self.handle.with(|world| world.mutated(Mutation::NoWorkloadLock)) {
            for key in &resolution.workloads {
                self.lock(key).await?;
            }
        }
        // The dry runs of preflight take a moment.
        self.handle.sleep(Duration::from_millis(60)).await;
        resolution.plan.fence = self
            .handle
            .with(|world| world.replicas[self.handle.replica].fence(&self.timing))
            .ok_or(("ClaimNotConfirmed", true))?;
        Ok(resolution)
    }

    async fn lock(&self, key: &str) -> Result<(), Failure> {
        let (run, replica) = (run_of(self.backup), self.identity());
        let holder = Holder { backup_uid: run.clone(), replica: replica.clone(), backup: run.clone() };
        let existing = match self.handle.request(Request::Lock { key: key.to_owned(), holder }).await {
            Some(Answer::Done) => return Ok(()),
            Some(Answer::Locked(existing)) => existing,
            _ => return Err(("Interrupted", true)),
        };
        match decide_lock(Some(&existing.holder), &run, &replica) {
            Decision::Take | Decision::Ours => Ok(()),
            Decision::TakeOver => {
                let version = existing.version;
                let take = Request::TakeLock { key: key.to_owned(), version, replica };
                match self.handle.request(take).await {
                    Some(Answer::Done) => Ok(()),
                    _ => Err(("Interrupted", true)),
                }
            }
            Decision::Busy { .. } => {
                self.handle.with(|world| world.coverage.outcome("workload busy"));
                Err(("WorkloadBusy", true))
            }
        }
    }

    /// Makes every workload lock of the run this replica's. An owner that was only stopped can release none of them then.
    async fn take_locks_over(&self) {
        let replica = self.identity();
        for (key, lock) in self.handle.with(|world| world.api.locks_of(&run_of(self.backup))) {
            let take = Request::TakeLock { key, version: lock.version, replica: replica.clone() };
            while lock.holder.replica != replica && self.handle.request(take.clone()).await.is_none() {
                if self.rest(BETWEEN_ATTEMPTS).await {
                    return;
                }
            }
        }
    }

    /// Releases the workload: nothing is frozen there any more.
    async fn release_locks(&self) {
        let replica = self.identity();
        for (key, lock) in self.handle.with(|world| world.api.locks_of(&run_of(self.backup))) {
            if lock.holder.replica != replica {
                continue;
            }
            let mut tries = 0;
            while tries < 20
                && self
                    .handle
                    .request(Request::Unlock { key: key.clone(), version: lock.version })
                    .await
                    .is_none()
            {
                tries += 1;
                self.handle.sleep(Duration::from_secs(1)).await;
            }
        }
    }

    async fn abort_entry(&self, status: &BackupStatus, nonce: &str) -> Result<(), JournalFailure> {
        let us = self.identity();
        let suspects: Vec<String> = status.holds.iter().map(|hold| hold.nonce.clone()).collect();
        let entry = JournalEntry {
            entry: JournalKind::Aborted,
            attempt: status.attempt,
            nonce: nonce.to_owned(),
            executor: us.clone(),
            at: MicroTime(self.handle.wall()),
            max_hold_millis: None,
            reason: Some(Reason::Interrupted.as_str().to_owned()),
            message: None,
            not_proven_thawed: suspects,
        };
        self.write(WRITE_WITHIN, |status| {
            status.executor = Some(us.clone());
            status.phase = Phase::Preparing;
            status.journal.push(entry.clone());
        })
        .await
    }

    /// After an attempt that was given up: waits until its holds are proven thawed, releases the workload, and removes
    /// its snapshots. True when the controller stops meanwhile.
    async fn unwind(&self, nonce: &str, waited: bool) -> Result<bool, JournalFailure> {
        let status = self.status();
        let last = status.journal.iter().rev().find(|entry| entry.attempt == status.attempt);
        let unproven: Vec<String> = last.map(|entry| entry.not_proven_thawed.clone()).unwrap_or_default();
        if self.shutting_down() {
            if unproven.is_empty() {
                self.release_locks().await;
            }
            return Ok(true);
        }
        if !unproven.is_empty() && !waited {
            self.handle.with(|world| world.coverage.outcome("hold not proven thawed"));
            let kinds = status.holds.iter().filter(|hold| unproven.contains(&hold.nonce)).map(|hold| {
                let apps = status.resolved.iter().flat_map(|resolved| &resolved.applications);
                apps.into_iter()
                    .find(|app| app.name == hold.application)
                    .map_or(HoldKind::None, |app| app.hold)
            });
            let max_hold = self.handle.with(|world| world.scenario.max_hold);
            let wait = kinds
                .map(|kind| match kind {
                    HoldKind::Session | HoldKind::Observer => self.timing.session_lease,
                    HoldKind::Commands | HoldKind::Direct | HoldKind::None => {
                        holder_ends(&self.timing, max_hold)
                    }
                })
                .max()
                .unwrap_or_default();
            if self.rest(self.wait(wait)).await {
                return Ok(true);
            }
        }
        self.release_locks().await;
        self.clean(nonce).await;
        Ok(self.shutting_down())
    }

    /// Removes what an attempt asked for.
    async fn clean(&self, nonce: &str) {
        if self.handle.with(|world| world.mutated(Mutation::NoCleanUp)) {
            return;
        }
        self.remove(Some(nonce.to_owned()), CLEANUP_PATIENCE).await;
    }

    /// Deletes snapshots until none is left; true when there is none.
    async fn remove(&self, attempt: Option<String>, patience: Duration) -> bool {
        let mut waited = Duration::ZERO;
        let mut pause = Duration::from_millis(100);
        loop {
            let list = Request::List { backup: self.backup, attempt: attempt.clone() };
            let Some(Answer::Snapshots(found)) = self.handle.request(list).await else { return false };
            if found.is_empty() {
                return true;
            }
            for snapshot in found {
                self.handle.request(Request::Delete(snapshot.id)).await;
            }
            if waited >= patience {
                return false;
            }
            self.handle.sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    async fn settle(&self, nonce: &str) -> Result<Left, JournalFailure> {
        let status = self.status();
        let (replica, backup) = (self.handle.replica, self.backup);
        let stop =
            move |world: &mut World| Self::stopping(world, replica) || world.api.backups[backup].deleting;
        let Some(settled) = settle::settle(self.handle, &status, stop).await else {
            return match self.ending() {
                Some(Reason::Shutdown) | None => Ok(Left::Unfinished),
                Some(why) => {
                    self.write(WRITE_WITHIN, |_| {}).await?;
                    self.clean(nonce).await;
                    self.fail(why.as_str()).await
                }
            };
        };
        let us = self.identity();
        self.handle.with(|world| {
            // What a process judges that is no longer the owner is never written, and so is no verdict. What is not kept may be
            // called a crash copy while it is being removed: an owner before this one began that.
            let ours = world.api.backups[self.backup].status.executor.as_deref() == Some(us.as_str());
            let removed = !settled.keep && settled.judgement.consistency == Consistency::Crash;
            if ours && !removed {
                world.check_verdict(&status, &settled.members, &settled.judgement);
            }
        });
        if !settled.keep {
            // An owner that was only stopped must not remove what another one keeps.
            self.write(WRITE_WITHIN, |_| {}).await?;
            self.clean(nonce).await;
        }
        let phase = if settled.keep { Phase::Succeeded } else { Phase::Failed };
        let at = MicroTime(self.handle.wall());
        self.write(WRITE_WITHIN, |status| {
            status.phase = phase;
            status.members.clone_from(&settled.members);
            status.consistency = Some(settled.judgement.consistency);
            status.continuity = settled.judgement.continuity;
            status.finished_at = Some(at.clone());
        })
        .await?;
        self.handle.with(|world| {
            world.coverage.outcome(match (phase, settled.judgement.consistency) {
                (Phase::Succeeded, Consistency::Application) => "succeeded: Application",
                (Phase::Succeeded, Consistency::Crash) => "succeeded: Crash",
                (Phase::Succeeded, Consistency::None) => "succeeded: None",
                _ => "failed: not proven",
            });
        });
        Ok(Left::Finished)
    }

    async fn fail(&self, why: &'static str) -> Result<Left, JournalFailure> {
        let us = self.identity();
        let at = MicroTime(self.handle.wall());
        self.write(WRITE_WITHIN, |status| {
            status.phase = Phase::Failed;
            status.executor = Some(us.clone());
            status.finished_at = Some(at.clone());
            status.consistency = Some(Consistency::None);
        })
        .await?;
        self.handle.with(|world| {
            world.note(|| format!("the run failed: {why}"));
            world.coverage.outcome("failed");
        });
        Ok(Left::Finished)
    }

    /// The Backup is being deleted: its snapshots go, then its finalizer.
    async fn delete(&self) {
        if self.remove(None, Duration::from_secs(120)).await {
            self.handle.request(Request::LetGo(self.backup)).await;
        }
    }
}
