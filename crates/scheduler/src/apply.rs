//! Reads one policy, has it decided, and acts: create or cancel, then note, then delete.
//!
//! With `prune` and `controller/out_of_band`, the only file of the scheduler that writes to the API server. Safe to be killed at every line and to be run
//! again: the Backup's name is the lock of its slot, and the status is a compare-and-swap.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use stillpoint_api::backup::{Backup, BackupSpec, POLICY_LABEL, PolicyRef, RunSpec, Trigger};
use stillpoint_api::clock::SharedClock;
use stillpoint_api::policy::BackupPolicy;

use crate::accept::{Schedules, accept_under};
use crate::controller::{DeletionObserver, SchedulerContext};
use crate::dispatch::Plan;
use crate::election::Leadership;
use crate::meter::WorkObserver;
use crate::projection::{BackupView, PolicyKey};
use crate::prune::{self, Pruned, prune};
use crate::reconciler::{Cancel, Note, Observed, Outcome, Start, reconcile};
use crate::rules::RuleBook;
use crate::slots::backup_name;
use crate::templates;

/// How often a status write that met another writer is decided again before the policy waits for its retry.
const CONFLICTS: usize = 5;

/// Longest note of an event, in characters; the limit is 1 kB and texts are mostly ASCII.
const MAX_NOTE: usize = 900;

/// Suffix of a Backup whose name somebody else holds.
const FOREIGN_SUFFIX: &str = "-b";

/// What is needed to act.
pub(crate) struct Apply {
    pub client: Client,
    pub clock: SharedClock,
    pub cluster_uid: String,
    pub schedules: Schedules,
    pub leadership: Leadership,
    /// The ProtectionRules, and the labels of namespaces.
    pub rules: Arc<RuleBook>,
    /// Who counts the deletes of retention.
    pub deletions: Arc<dyn DeletionObserver>,
    /// Who hears of the scheduler's own work.
    pub work: Arc<dyn WorkObserver>,
    /// Longest time that deletes may take of a pass.
    pub deletes_bound: Duration,
    /// Whether any Backup of the cluster is in its freeze.
    frozen: AtomicBool,
    recorder: Recorder,
}

/// What a pass over a policy came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Look again at this time.
    pub wake_at: Option<Timestamp>,
    /// Failures that are in the status now.
    pub failures_noted: u32,
    /// Points must go and a freeze is open.
    pub deletes_wait: bool,
    /// The next start, if nothing changes before it.
    pub plan: Option<Plan>,
}

/// What became of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Started {
    /// The Backup was created.
    Created,
    /// Its name is taken, by ourselves or by somebody else: the policy has to be looked at.
    Exists,
}

/// Why a pass did not come to its end; it is retried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("{action}: {source}")]
    Api { action: &'static str, source: Box<kube::Error> },
    #[error("the status of the policy was changed by somebody else {CONFLICTS} times in a row")]
    Conflict,
    #[error("this replica does not lead any more; the one that does takes the policy up")]
    Deposed,
    #[error(
        "the names {name} and {name}{FOREIGN_SUFFIX} are held by Backups that the scheduler did not create; delete them"
    )]
    NamesTaken { name: String },
}

impl Apply {
    pub fn new(context: &SchedulerContext) -> Self {
        let reporter = Reporter { controller: "stillpoint-scheduler".to_owned(), instance: None };
        Self {
            client: context.client.clone(),
            clock: context.clock.clone(),
            cluster_uid: context.cluster_uid.clone(),
            schedules: Schedules::default(),
            leadership: context.leadership.clone(),
            rules: context.rules.clone(),
            deletions: context.deletions.clone(),
            work: context.work.clone(),
            deletes_bound: prune::BOUND,
            frozen: AtomicBool::new(false),
            recorder: Recorder::new(context.client.clone(), reporter),
        }
    }

    /// The fence: asked immediately before every write, so that nothing is sent after the lead may have passed on.
    pub fn fence(&self) -> Result<(), ApplyError> {
        if self.leadership.leads() { Ok(()) } else { Err(ApplyError::Deposed) }
    }

    /// Notes whether any Backup of the cluster is in its freeze; work that goes on asks before every delete.
    pub fn set_frozen(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::SeqCst);
    }

    /// Whether any Backup of the cluster is in its freeze.
    pub fn frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst)
    }

    /// The Backup of a slot that was due at `due` has just been created.
    pub fn tell_start(&self, due: Option<Timestamp>) {
        if let Some(due) = due {
            self.work.started(Duration::try_from(self.clock.wall().duration_since(due)).unwrap_or_default());
        }
    }

    /// An event is for people: when it cannot be written, the status still says the same.
    pub async fn tell(&self, policy: &BackupPolicy, reason: &str, note: String) {
        self.tell_about(&policy.object_ref(&()), reason, note).await;
    }

    /// The same about any object.
    pub async fn tell_about(&self, about: &ObjectReference, reason: &str, note: String) {
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            // At most 1 kB is accepted.
            note: Some(note.chars().take(MAX_NOTE).collect()),
            action: "Schedule".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, about).await {
            tracing::debug!(%error, reason, "an event could not be written");
        }
    }
}

/// What a pass over a policy is given besides the policy itself, which it reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    /// Its Backups as watched.
    pub backups: &'a [BackupView],
    /// Failures that are not counted in its status yet.
    pub fresh_failures: u32,
    /// How far the API server's clock is ahead, when that is more than clocks ordinarily differ.
    pub server_ahead: Option<SignedDuration>,
}

/// One pass over the policy `key`.
pub(crate) async fn apply(context: &Apply, key: &PolicyKey, seen: &Seen<'_>) -> Result<Applied, ApplyError> {
    let policies: Api<BackupPolicy> = Api::namespaced(context.client.clone(), &key.namespace);
    for _ in 0..CONFLICTS {
        let found = policies.get_opt(&key.name).await.map_err(api("read the policy"))?;
        let Some(policy) = found.filter(|policy| policy.metadata.deletion_timestamp.is_none()) else {
            return Ok(Applied::default());
        };
        let now = context.clock.wall();
        let rules = context.rules.holding(&key.namespace);
        let mut accepted = accept_under(&rules, &policy, &context.schedules, &context.cluster_uid, now);
        context.rules.judged(key, accepted.as_ref().err().map(|refusal| refusal.rules.as_slice()));
        let mut look_again = None;
        if accepted.is_ok() && templates::is_due(&policy) {
            let found = templates::refusal(&context.client, &policy).await;
            if let Some(refusal) = found.map_err(api("read the templates of the policy"))? {
                look_again = now.checked_add(templates::LOOK_AGAIN).ok();
                accepted = Err(refusal);
            }
        }
        let observed = Observed {
            policy: &policy,
            accepted: accepted.as_ref(),
            backups: seen.backups,
            fresh_failures: seen.fresh_failures,
            server_ahead: seen.server_ahead,
        };
        let outcome = reconcile(&observed, now);
        if let Some(start) = outcome.start {
            match create(context, &policy, start).await {
                Ok(Started::Created) => {
                    if let (Trigger::Schedule, Ok(accepted)) = (start.trigger, &accepted) {
                        context.tell_start(accepted.slots.starts_at(start.slot));
                    }
                }
                Ok(Started::Exists) => {}
                Err(error) => {
                    context.fence()?;
                    let note = format!("the slot {} waits: {error}", start.slot);
                    context.tell(&policy, "BackupNotStarted", note).await;
                    return Err(error);
                }
            }
        }
        for run in &outcome.cancel {
            cancel(context, key, run).await?;
        }
        if !write_status(context, &policies, &policy, &outcome).await? {
            continue;
        }
        for note in &outcome.notes {
            log(key, note);
            context.tell(&policy, note.reason(), note.message()).await;
        }
        let pruned = prune(context, &policy, key, seen.backups, &outcome.delete).await;
        let again = match pruned {
            Pruned::Again => now.checked_add(prune::AGAIN).ok(),
            Pruned::Done | Pruned::Frozen => None,
        };
        let wake_at = [outcome.wake_at, look_again, again].into_iter().flatten().min();
        let deletes_wait = pruned == Pruned::Frozen;
        let plan = match (&accepted, outcome.next) {
            (Ok(accepted), Some((slot, due))) => Plan::of(&accepted.slots, slot, due),
            (Ok(_) | Err(_), _) => None,
        };
        return Ok(Applied { wake_at, failures_noted: seen.fresh_failures, deletes_wait, plan });
    }
    Err(ApplyError::Conflict)
}

/// Carries out a start that was planned: one request. What follows from it is decided when the watch shows the Backup.
pub(crate) async fn start(
    context: &Apply,
    key: &PolicyKey,
    uid: &str,
    slot: Timestamp,
) -> Result<Started, ApplyError> {
    let backups: Api<Backup> = Api::namespaced(context.client.clone(), &key.namespace);
    let name = backup_name(&key.name, uid, slot);
    let backup =
        new_backup((&key.namespace, &key.name, uid), &name, Start { slot, trigger: Trigger::Schedule });
    context.fence()?;
    match backups.create(&PostParams::default(), &backup).await {
        Ok(_) => {
            tracing::info!(
                namespace = &*key.namespace, policy = &*key.name, backup = name, %slot,
                trigger = Trigger::Schedule.label(), "a backup was started"
            );
            Ok(Started::Created)
        }
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Started::Exists),
        Err(error) => Err(api("create the Backup")(error)),
    }
}

/// Creates the Backup of a slot, or finds that it exists.
async fn create(context: &Apply, policy: &BackupPolicy, start: Start) -> Result<Started, ApplyError> {
    let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
    let uid = policy.uid().unwrap_or_default();
    let backups: Api<Backup> = Api::namespaced(context.client.clone(), namespace);
    let policy_name = policy.name_any();
    let name = backup_name(&policy_name, &uid, start.slot);
    for (suffix, foreign) in [("", false), (FOREIGN_SUFFIX, true)] {
        let backup = new_backup((namespace, &policy_name, &uid), &format!("{name}{suffix}"), start);
        if foreign {
            let note = format!(
                "{name} exists and was not created by the scheduler; the slot runs as {name}{suffix}"
            );
            context.tell(policy, "BackupNameTaken", note).await;
        }
        context.fence()?;
        match backups.create(&PostParams::default(), &backup).await {
            Ok(created) => {
                tracing::info!(
                    namespace, policy = policy.name_any(), backup = created.name_any(), slot = %start.slot,
                    trigger = start.trigger.label(), "a backup was started"
                );
                return Ok(Started::Created);
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let known =
                    backups.get_opt(&backup.name_any()).await.map_err(api("read the existing Backup"))?;
                if known.is_some_and(|known| is_ours(&known, &uid, start.slot)) {
                    return Ok(Started::Exists);
                }
            }
            Err(error) => return Err(api("create the Backup")(error)),
        }
    }
    Err(ApplyError::NamesTaken { name })
}

/// Tells a run to end; its executor thaws and removes what it made.
async fn cancel(context: &Apply, key: &PolicyKey, run: &Cancel) -> Result<(), ApplyError> {
    let backups: Api<Backup> = Api::namespaced(context.client.clone(), &key.namespace);
    // With the UID a successor of the same name is refused as a conflict.
    let patch = Patch::Merge(serde_json::json!({"metadata": {"uid": run.uid}, "spec": {"cancel": true}}));
    context.fence()?;
    match backups.patch(&run.name, &PatchParams::default(), &patch).await {
        Ok(_) => tracing::info!(policy = %key, backup = run.name, "a backup was cancelled for a newer slot"),
        // Gone already, or another object by now.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
        Err(error) => return Err(api("cancel the Backup in the way")(error)),
    }
    Ok(())
}

/// Ours is what only the scheduler writes; labels can be written by everybody.
fn is_ours(backup: &Backup, policy_uid: &str, slot: Timestamp) -> bool {
    let run = &backup.spec.run;
    backup.spec.trigger != Trigger::Manual
        && run.policy_ref.as_ref().and_then(|policy| policy.uid.as_deref()) == Some(policy_uid)
        && run.slot.as_ref().is_some_and(|at| at.0 == slot)
}

/// The Backup of a slot of the policy with this namespace, name and UID.
fn new_backup((namespace, policy, uid): (&str, &str, &str), name: &str, start: Start) -> Backup {
    let policy_name = policy.to_owned();
    // A label value is at most 63 bytes, a policy's name may be longer: then only the spec says it.
    let label = (policy_name.len() <= 63).then(|| (POLICY_LABEL.to_owned(), policy_name.clone()));
    Backup {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: label.map(|label| BTreeMap::from([label])),
            ..ObjectMeta::default()
        },
        spec: BackupSpec {
            run: RunSpec {
                policy_ref: Some(PolicyRef { name: policy_name, uid: Some(uid.to_owned()) }),
                slot: Some(Time(start.slot)),
                ..RunSpec::default()
            },
            trigger: start.trigger,
            cancel: false,
            hold: None,
        },
        status: None,
    }
}

/// `false` when somebody else wrote first: read and decide again.
async fn write_status(
    context: &Apply,
    policies: &Api<BackupPolicy>,
    policy: &BackupPolicy,
    outcome: &Outcome,
) -> Result<bool, ApplyError> {
    if policy.status.as_ref() == Some(&outcome.status) {
        return Ok(true);
    }
    context.fence()?;
    let written = BackupPolicy { status: Some(outcome.status.clone()), ..policy.clone() };
    match policies.replace_status(&policy.name_any(), &PostParams::default(), &written).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(api("write the policy's status")(error)),
    }
}

fn log(key: &PolicyKey, note: &Note) {
    tracing::warn!(policy = %key, reason = note.reason(), message = note.message(), "the policy needs attention");
}

pub(crate) fn api(action: &'static str) -> impl FnOnce(kube::Error) -> ApplyError {
    move |source| ApplyError::Api { action, source: Box::new(source) }
}
