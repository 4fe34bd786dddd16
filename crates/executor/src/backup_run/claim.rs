//! Whose a run is: its claim, its workload locks, and what an attempt that was given up leaves frozen.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt;
use stillpoint_api::backup::{BackupStatus, JournalEntry, JournalKind, Phase};
use tracing::{info, warn};

use super::{BETWEEN_ATTEMPTS, BackupRun, Failure, WRITE_WITHIN};
use crate::journal::JournalError;
use crate::ownership::Claim;
use crate::ownership::quiesce::{self, Quiesce};
use crate::ownership::workload::Locks;
use crate::run::Reason;

/// How often a release is tried: an API server that was away for a moment must not leave a workload locked until the next
/// sweep, which is minutes away.
const RELEASE_TRIES: u32 = 20;
/// Pause between two tries.
const RELEASE_AGAIN: Duration = Duration::from_secs(1);
/// How long a stopping controller tries to give a claim up.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(2);

impl BackupRun {
    /// Makes a run that somebody else began this replica's: the claim first, then its workload locks.
    pub(super) async fn take_over(&self) -> Result<(), JournalError> {
        let ownership = &self.context.ownership;
        let (uid, status) = {
            let journal = self.journal.lock().await;
            (journal.backup().uid().unwrap_or_default(), journal.status())
        };
        match ownership.claim(status.executor.as_deref(), self.context.clock.mono()) {
            Claim::Ours => Ok(()),
            // A run that nobody began is claimed with its first attempt.
            Claim::Take if status.attempt == 0 => Ok(()),
            Claim::Theirs { executor } => Err(JournalError::Disowned(format!("executor {executor} has it"))),
            claim @ (Claim::Take | Claim::TakeOver { .. }) => {
                let us = ownership.identity().to_owned();
                self.journal
                    .lock()
                    .await
                    .write(WRITE_WITHIN, |status| status.executor = Some(us.clone()))
                    .await?;
                if let Claim::TakeOver { from } = &claim {
                    let note = format!("replica {from} fell silent; {us} goes on with the run");
                    self.warn("TakenOver", &note).await;
                }
                let locks = Locks::new(&self.context);
                while let Err(error) = locks.take_over(&uid).await {
                    warn!(namespace = self.labels.namespace, %error, "the workload locks were not taken over; trying again");
                    if self.rest(BETWEEN_ATTEMPTS).await {
                        break;
                    }
                }
                Ok(())
            }
        }
    }

    /// Gives the claim up, so that another replica need not wait for our Lease to pass. Best effort.
    pub(super) async fn hand_over(&self) {
        let mut journal = self.journal.lock().await;
        if journal.status().attempt == 0 {
            return;
        }
        if let Err(error) = journal.write(HAND_OVER_WITHIN, |status| status.executor = None).await {
            info!(namespace = self.labels.namespace, %error, "the claim was not handed over; it passes with our Lease");
        }
    }

    /// A write that changes nothing: it fails when the run is somebody else's by now.
    pub(super) async fn confirm(&self) -> Result<(), JournalError> {
        self.journal.lock().await.write(WRITE_WITHIN, |_| {}).await
    }

    /// Releases the workload: nothing is frozen there any more. Only locks that name this replica are touched; what cannot
    /// be released now is swept.
    pub(super) async fn release(&self) -> Result<(), JournalError> {
        let uid = self.journal.lock().await.backup().uid().unwrap_or_default();
        let locks = Locks::new(&self.context);
        let mut tries = 0;
        while let Err(error) = locks.release(&uid).await {
            tries += 1;
            if tries == RELEASE_TRIES || self.rest(RELEASE_AGAIN).await {
                warn!(namespace = self.labels.namespace, %error, "a workload lock was not released; it is swept later");
                break;
            }
        }
        self.turns.free();
        Ok(())
    }

    /// After an attempt that was given up: makes sure that it is thawed, then releases the workload; its snapshots go at
    /// the same time. True when the controller stops meanwhile.
    pub(super) async fn unwind(&self, nonce: &str, waited: bool) -> Result<bool, JournalError> {
        if self.shutting_down() {
            let status = self.journal.lock().await.status();
            if quiesce::not_proven(&status).is_empty() {
                self.release().await?;
            }
            return Ok(true);
        }
        let quiesce = Quiesce {
            context: &self.context,
            happenings: &self.happenings,
            journal: &self.journal,
            labels: &self.labels,
            waited,
        };
        let mut stop = self.stop.clone();
        let thaw = async {
            quiesce.until_proven().await?;
            self.release().await
        };
        let both = async { tokio::join!(thaw, self.clean(nonce)).0 };
        tokio::select! {
            thawed = both => thawed.map(|()| self.shutting_down()),
            _ = stop.wait_for(|why| why.as_ref().is_some_and(|why| why.reason == Reason::Shutdown)) => Ok(true),
        }
    }

    /// Takes the run and counts the attempt.
    pub(super) async fn claim(&self) -> Result<u32, JournalError> {
        let now = MicroTime(self.context.clock.wall());
        let replica = self.context.ownership.identity().to_owned();
        let mut journal = self.journal.lock().await;
        let attempt = journal.status().attempt + 1;
        journal
            .write(WRITE_WITHIN, |status| {
                status.phase = Phase::Preparing;
                status.executor = Some(replica.clone());
                status.attempt = attempt;
                status.started_at.get_or_insert_with(|| now.clone());
                (status.holds, status.members, status.window) = (Vec::new(), Vec::new(), None);
            })
            .await?;
        Ok(attempt)
    }

    pub(super) async fn abort_entry(
        &self,
        status: &BackupStatus,
        nonce: &str,
        failure: &Failure,
    ) -> Result<(), JournalError> {
        let entry = JournalEntry {
            entry: JournalKind::Aborted,
            attempt: status.attempt,
            nonce: nonce.to_owned(),
            executor: self.context.ownership.identity().to_owned(),
            at: MicroTime(self.context.clock.wall()),
            max_hold_millis: None,
            reason: Some(failure.reason.clone()),
            message: Some(failure.message.clone()),
            // What that process did is not known: every hold that locks counts as frozen until it is made sure of.
            not_proven_thawed: quiesce::suspects(status),
        };
        let replica = self.context.ownership.identity().to_owned();
        self.journal
            .lock()
            .await
            .write(WRITE_WITHIN, |status| {
                status.executor = Some(replica.clone());
                status.phase = Phase::Preparing;
                status.journal.push(entry.clone());
            })
            .await
    }
}
