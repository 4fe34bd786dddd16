//! The end of a run: its snapshots settle and are judged, or it failed; what nobody keeps is removed.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt;
use stillpoint_api::backup::{Backup, Phase};
use stillpoint_api::conditions;
use stillpoint_api::evidence::Consistency;
use stillpoint_api::outcome::RunResult;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{BETWEEN_ATTEMPTS, BackupRun, Failure, Left, WRITE_WITHIN, cancelled};
use crate::cleanup::{self, Scope};
use crate::context::bounded;
use crate::group_labels;
use crate::journal::JournalError;
use crate::run::{Abort, Reason};
use crate::settle::{self, Owner};

/// How long snapshots of a given-up attempt are waited for before the next one looks.
const CLEANUP_PATIENCE: Duration = Duration::from_secs(60);

impl BackupRun {
    /// Waits for the snapshots of a run that is thawed, and judges it.
    pub(super) async fn settle(&self, nonce: &str) -> Result<Left, JournalError> {
        let (backup, status) = {
            let journal = self.journal.lock().await;
            (journal.backup().clone(), journal.status())
        };
        if status.members.iter().any(|member| member.group.is_some()) {
            self.unlabel(&backup).await;
        }
        let mut stop = self.stop.clone();
        // The window is over: a controller that stops leaves the waiting to the next one.
        let settled = tokio::select! {
            settled = settle::settle(&self.context, &self.labels.namespace, &status) => settled,
            why = ended(&mut stop, &backup) => {
                if why.reason != Reason::Shutdown {
                    self.confirm().await?;
                    self.clean(nonce).await;
                }
                return self.end(why).await;
            }
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
            // An owner that was only stopped must not remove what another one keeps.
            self.confirm().await?;
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
                for one in conditions::finished(phase == Phase::Succeeded, reason, &message, generation, at) {
                    conditions::set(&mut status.conditions, one);
                }
            })
            .await?;
        for violation in &judgement.violations {
            self.context.observer.violation(&self.labels, *violation);
        }
        self.tell_end(&backup, phase, Some(judgement.consistency), reason, &message, result).await;
        Ok(Left::Finished)
    }

    /// Ends a run without a point.
    pub(super) async fn fail(&self, failure: Failure) -> Result<Left, JournalError> {
        let at = self.context.clock.wall();
        let backup = {
            let mut journal = self.journal.lock().await;
            let generation = journal.backup().metadata.generation;
            let replica = self.context.ownership.identity().to_owned();
            journal
                .write(WRITE_WITHIN, |status| {
                    status.phase = Phase::Failed;
                    status.executor = Some(replica.clone());
                    status.finished_at = Some(MicroTime(at));
                    status.consistency = Some(Consistency::None);
                    let ends = conditions::finished(false, &failure.reason, &failure.message, generation, at);
                    for one in ends {
                        conditions::set(&mut status.conditions, one);
                    }
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

    /// Removes what an attempt asked for; also what a POST without an answer may have made.
    pub(super) async fn clean(&self, nonce: &str) {
        let backup = self.journal.lock().await.backup().clone();
        self.unlabel(&backup).await;
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
    }

    /// Takes the labels of groups from their claims: a group has found them by now, or never will.
    async fn unlabel(&self, backup: &Backup) {
        let uid = backup.uid().unwrap_or_default();
        if let Err(error) = group_labels::remove(&self.context, &self.labels.namespace, &uid).await {
            warn!(namespace = self.labels.namespace, %error, "the label of a group stays on its claims");
        }
    }
}

/// Waits until a run is to end.
async fn ended(stop: &mut watch::Receiver<Option<Abort>>, backup: &Backup) -> Abort {
    if let Some(why) = cancelled(backup) {
        return why;
    }
    let why = stop.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
    why.unwrap_or_else(|| Abort::new(Reason::Shutdown, "the controller stops"))
}

fn missing(findings: &[stillpoint_api::evidence::RuleFinding]) -> String {
    let all: Vec<String> = findings
        .iter()
        .map(|one| format!("rule {} ({}): {}", one.rule, one.application, one.finding))
        .collect();
    all.join("; ")
}
