//! One Backup from claim to `Finished`: attempts, clean-up between them, and the end.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt;
use stillpoint_api::backup::{Backup, BackupStatus, JournalEntry, JournalKind, Phase};
use stillpoint_api::conditions;
use stillpoint_api::evidence::Consistency;
use stillpoint_api::policy::{BackupPolicy, RunBounds};
use tokio::sync::{Mutex, watch};
use tracing::{info, warn};

use crate::attempt;
use crate::cleanup::{self, Scope};
use crate::context::{Context, bounded};
use crate::happenings::Happenings;
use crate::hold::Nonce;
use crate::journal::{Journal, JournalError};
use crate::observer::{RunLabels, RunResult};
use crate::recovery::{Row, row};
use crate::resolve::{MAX_HOLDS, Refusal, Resolution, SNAPSHOT_IN_FLIGHT, ask, decide, observe, preflight};
use crate::run::{Abort, End, Reason};
use crate::settle::{self, Owner};

/// Pause before another attempt: long enough for a pod to restart or a lock to clear.
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(5);
/// How long snapshots of a given-up attempt are waited for before the next one looks.
const CLEANUP_PATIENCE: Duration = Duration::from_secs(60);
/// How long a snapshot in flight is waited for before the attempt is given up.
const IN_FLIGHT_PATIENCE: Duration = Duration::from_secs(20);
/// Pause between two looks at it.
const IN_FLIGHT_LOOK: Duration = Duration::from_millis(500);
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
}

impl BackupRun {
    /// Work on a Backup as it was read.
    pub fn new(
        context: Context,
        happenings: Happenings,
        backup: Backup,
        stop: watch::Receiver<Option<Abort>>,
    ) -> Self {
        let labels = RunLabels {
            namespace: backup.namespace().unwrap_or_default(),
            policy: backup.policy_name().unwrap_or_default().to_owned(),
        };
        let journal = Arc::new(Mutex::new(Journal::new(&context, backup)));
        Self { context, happenings, journal, labels, stop }
    }

    /// Goes on from wherever the Backup stands, to its end.
    ///
    /// # Errors
    /// The run was lost to another process, or its status cannot be written.
    pub async fn go(mut self) -> Result<Left, JournalError> {
        let status = self.journal.lock().await.status();
        let mut last: Option<Failure> = None;
        match row(&status) {
            Row::Begin => {}
            Row::WaitForSessions { wait } => {
                info!(namespace = self.labels.namespace, ?wait, "found a run that was being prepared");
                if self.pause(wait).await {
                    return Ok(Left::Unfinished);
                }
                last =
                    Some(interrupted("the controller ended while it prepared the run; nothing was frozen"));
            }
            Row::WaitForHolds { wait, nonce } => {
                info!(
                    namespace = self.labels.namespace,
                    ?wait,
                    "found a run that was frozen; its holds end by themselves"
                );
                if self.pause(wait).await {
                    return Ok(Left::Unfinished);
                }
                let failure = interrupted(
                    "the controller ended during the freeze; the application was released by the end of its session, \
                     and the snapshots of that attempt are removed",
                );
                self.abort_entry(&status, &nonce, &failure).await?;
                self.clean(&nonce).await;
                last = Some(failure);
            }
            Row::CleanUp { nonce, reason, message } => {
                self.clean(&nonce).await;
                // Whatever it was, the process that saw it is gone; another attempt looks for itself.
                last = Some(Failure { reason, message, may_pass: true });
            }
            Row::Settle { nonce } => return self.settle(&nonce).await,
        }
        self.attempts(last).await
    }

    async fn attempts(&mut self, mut last: Option<Failure>) -> Result<Left, JournalError> {
        let mut bounds = self.bounds().await;
        loop {
            if self.stop.borrow().is_some() {
                return Ok(Left::Unfinished);
            }
            let (backup, status) = {
                let journal = self.journal.lock().await;
                (journal.backup().clone(), journal.status())
            };
            if let Some(failure) = &last
                && (!failure.may_pass || self.spent(&backup, &status, &bounds))
            {
                return self.fail(failure.clone()).await;
            }
            if last.is_some() && self.pause(BETWEEN_ATTEMPTS).await {
                return Ok(Left::Unfinished);
            }
            let attempt = self.claim().await?;
            let started = self.resolve_patiently(attempt).await;
            let (resolution, nonce) = match started {
                Ok(ready) => ready,
                Err(refusal) => {
                    self.warn(refusal.reason, &refusal.message).await;
                    last = Some(refusal.into());
                    continue;
                }
            };
            bounds = resolution.bounds;
            let carried = attempt::carry_out(
                &self.context,
                Arc::clone(&self.journal),
                Arc::new(resolution),
                nonce.to_string(),
                self.labels.clone(),
                self.stop.clone(),
            );
            match carried.await.end {
                End::Thawed => return self.settle(nonce.as_str()).await,
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
                    if why.reason == Reason::Shutdown {
                        // The next start cleans up and tries the slot again.
                        return Ok(Left::Unfinished);
                    }
                    self.warn(why.reason.as_str(), &why.message).await;
                    self.clean(nonce.as_str()).await;
                    last = Some(why.into());
                }
            }
        }
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
        let begun = status.started_at.as_ref().map(|at| at.0);
        let slot = backup.spec.run.slot.as_ref().map(|slot| slot.0);
        let deadline = bounds.deadline();
        let late = slot.max(begun).is_some_and(|from| {
            self.context.clock.wall().duration_since(from).as_secs()
                > i64::try_from(deadline.as_secs()).unwrap_or(i64::MAX)
        });
        status.attempt >= bounds.max_attempts() || late
    }

    /// Takes the run and counts the attempt.
    async fn claim(&self) -> Result<u32, JournalError> {
        let now = MicroTime(self.context.clock.wall());
        let replica = self.context.replica.clone();
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

    /// A snapshot that is being made or deleted is gone in a second or two, most often one that retention removes: waiting
    /// costs less than an attempt.
    async fn resolve_patiently(&self, attempt: u32) -> Result<(Resolution, Nonce), Refusal> {
        let mut waited = Duration::ZERO;
        loop {
            let outcome = self.resolve(attempt).await;
            let in_flight = outcome.as_ref().is_err_and(|refusal| refusal.reason == SNAPSHOT_IN_FLIGHT);
            if !in_flight || waited >= IN_FLIGHT_PATIENCE || self.pause(IN_FLIGHT_LOOK).await {
                return outcome;
            }
            waited += IN_FLIGHT_LOOK;
        }
    }

    async fn resolve(&self, attempt: u32) -> Result<(Resolution, Nonce), Refusal> {
        let backup = self.journal.lock().await.backup().clone();
        if let Some(first) = stillpoint_api::validate::backup(&backup).first() {
            return Err(Refusal::stands("BackupNotAccepted", format!("{}: {}", first.path, first.message)));
        }
        let mut observed = observe::observe(&self.context, &backup).await?;
        ask::ask(&self.context, &backup, &mut observed).await?;
        let entropy = &*self.context.entropy;
        let fresh = || {
            Nonce::generate(entropy).map_err(|error| {
                Refusal::may_pass("NoRandomness", format!("the system gave no random bytes: {error}"))
            })
        };
        let nonce = fresh()?;
        let pods: usize = observed.applications.iter().map(|application| application.pods.len()).sum();
        let hold_nonces = (0..pods.min(MAX_HOLDS)).map(|_| fresh()).collect::<Result<Vec<_>, _>>()?;
        let given = decide::Given {
            backup: &backup,
            attempt,
            nonce: &nonce,
            hold_nonces: &hold_nonces,
            storage: &self.context.storage,
            impersonate: self.context.impersonate,
        };
        let resolution = decide::decide(&given, &observed)?;
        preflight::check(&self.context, &resolution, nonce.as_str()).await?;
        Ok((resolution, nonce))
    }

    async fn abort_entry(
        &self,
        status: &BackupStatus,
        nonce: &str,
        failure: &Failure,
    ) -> Result<(), JournalError> {
        let entry = JournalEntry {
            entry: JournalKind::Aborted,
            attempt: status.attempt,
            nonce: nonce.to_owned(),
            executor: self.context.replica.clone(),
            at: MicroTime(self.context.clock.wall()),
            max_hold_millis: None,
            reason: Some(failure.reason.clone()),
            message: Some(failure.message.clone()),
            // Sessions end with their connection and, at the latest, with the server's own lease (§2.2); both times
            // have passed.
            not_proven_thawed: Vec::new(),
        };
        let replica = self.context.replica.clone();
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

    /// Removes what an attempt asked for; also what a POST without an answer may have made.
    async fn clean(&self, nonce: &str) {
        let scope = Scope::Attempt(nonce.to_owned());
        match cleanup::remove(&self.context, &self.labels.namespace, &scope, CLEANUP_PATIENCE).await {
            Ok(true) => {}
            Ok(false) => warn!(
                namespace = self.labels.namespace,
                "snapshots of a given-up attempt are still being deleted: check the snapshot controller and sidecar"
            ),
            Err(error) => {
                warn!(namespace = self.labels.namespace, %error, "cleaning up failed; it is tried again later")
            }
        }
        cleanup::look_again_later(self.context.clone(), self.labels.namespace.clone(), scope);
    }

    async fn settle(&self, nonce: &str) -> Result<Left, JournalError> {
        let (backup, status) = {
            let journal = self.journal.lock().await;
            (journal.backup().clone(), journal.status())
        };
        let mut stop = self.stop.clone();
        // The window is over: a controller that stops leaves the waiting to the next one.
        let settled = tokio::select! {
            settled = settle::settle(&self.context, &self.labels.namespace, &status) => settled,
            _ = stop.wait_for(Option::is_some) => return Ok(Left::Unfinished),
        };
        let judgement = settled.judgement.clone();
        let missing = missing(&judgement.verdict.missing);
        if settled.keep {
            let spaces: kube::Api<k8s_openapi::api::core::v1::Namespace> =
                kube::Api::all(self.context.client.clone());
            let uid = match bounded("read the namespace", spaces.get(&self.labels.namespace)).await {
                Ok(space) => space.metadata.uid.unwrap_or_default(),
                Err(_) => String::new(),
            };
            let owner = Owner::of(&backup, uid, nonce.to_owned());
            if let Err(error) = settle::keep(&self.context, &owner, &status, &settled).await {
                warn!(namespace = self.labels.namespace, %error, "the point could not be labelled; trying again");
                tokio::time::sleep(BETWEEN_ATTEMPTS).await;
                if let Err(error) = settle::keep(&self.context, &owner, &status, &settled).await {
                    let reason = "KeepFailed";
                    self.warn(reason, &error.to_string()).await;
                }
            }
        } else {
            self.clean(nonce).await;
        }
        let (phase, reason, message, result) = if settled.keep {
            let what = format!("{:?}-consistent recovery point", judgement.consistency);
            let message = if missing.is_empty() { what } else { format!("{what}; not proven: {missing}") };
            (Phase::Succeeded, "Completed", message, RunResult::Succeeded)
        } else {
            let reason = if settled.members.iter().any(|member| member.settled.is_none()) {
                "SnapshotLost"
            } else {
                "NotProven"
            };
            let message =
                format!("not proven: {missing}; its snapshots were removed (consistency: Required)");
            (Phase::Failed, reason, message, RunResult::Failed)
        };
        let finished = MicroTime(self.context.clock.wall());
        let at = self.context.clock.wall();
        let generation = backup.metadata.generation;
        self.journal
            .lock()
            .await
            .write(WRITE_WITHIN, |status| {
                status.phase = phase;
                status.members.clone_from(&settled.members);
                status.consistency = Some(judgement.consistency);
                status.continuity = judgement.continuity;
                status.cross_consistent = judgement.cross_consistent;
                status.verdict = Some(judgement.verdict.clone());
                status.cut = settled.cut.map(MicroTime);
                status.finished_at = Some(finished.clone());
                status.conditions =
                    conditions::finished(phase == Phase::Succeeded, reason, &message, generation, at);
            })
            .await?;
        self.tell_end(&backup, phase, Some(judgement.consistency), reason, &message, result).await;
        Ok(Left::Finished)
    }

    async fn fail(&self, failure: Failure) -> Result<Left, JournalError> {
        let at = self.context.clock.wall();
        let backup = {
            let mut journal = self.journal.lock().await;
            let generation = journal.backup().metadata.generation;
            let replica = self.context.replica.clone();
            journal
                .write(WRITE_WITHIN, |status| {
                    status.phase = Phase::Failed;
                    status.executor = Some(replica.clone());
                    status.finished_at = Some(MicroTime(at));
                    status.consistency = Some(Consistency::None);
                    status.conditions =
                        conditions::finished(false, &failure.reason, &failure.message, generation, at);
                })
                .await?;
            journal.backup().clone()
        };
        self.tell_end(&backup, Phase::Failed, None, &failure.reason, &failure.message, RunResult::Failed)
            .await;
        Ok(Left::Finished)
    }

    async fn tell_end(
        &self,
        backup: &Backup,
        phase: Phase,
        consistency: Option<Consistency>,
        reason: &str,
        message: &str,
        result: RunResult,
    ) {
        self.context.observer.finished(&self.labels, backup.spec.trigger, consistency, result);
        info!(
            namespace = self.labels.namespace,
            policy = self.labels.policy,
            backup = backup.name_any(),
            ?phase,
            ?consistency,
            reason,
            message,
            "finished"
        );
        match result {
            RunResult::Succeeded => self.happenings.normal(backup, reason, message).await,
            RunResult::Failed => self.happenings.warning(backup, reason, message).await,
        }
    }

    async fn warn(&self, reason: &str, message: &str) {
        let backup = self.journal.lock().await.backup().clone();
        self.happenings.warning(&backup, reason, message).await;
    }

    /// Waits; true when the controller stops meanwhile.
    async fn pause(&self, time: Duration) -> bool {
        let mut stop = self.stop.clone();
        tokio::select! {
            () = tokio::time::sleep(time) => false,
            _ = stop.wait_for(Option::is_some) => true,
        }
    }
}

fn interrupted(message: &str) -> Failure {
    Failure { reason: Reason::Interrupted.as_str().to_owned(), message: message.to_owned(), may_pass: true }
}

fn missing(findings: &[stillpoint_api::evidence::RuleFinding]) -> String {
    let all: Vec<String> = findings
        .iter()
        .map(|one| format!("rule {} ({}): {}", one.rule, one.application, one.finding))
        .collect();
    all.join("; ")
}
