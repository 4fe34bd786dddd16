//! Brings a recovery point back as new claims in the same namespace (target `clone`).
//!
//! [`plan`] is pure; this file reads, creates and waits; [`desk`] says which Restores are this replica's. A Restore runs
//! once, by one replica at a time: one that lost it writes no status any more. Its claims carry its name, and a claim of
//! that name that is somebody else's is never touched. Which Backup is restored is written before anything is made, so that
//! whoever takes over makes the rest of the same point, and so does the same replica after a request that was not answered.

pub mod copy;
mod desk;
pub mod plan;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, TypedLocalObjectReference, VolumeResourceRequirements,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::{Api, Resource, ResourceExt};
use stillpoint_api::backup::Backup;
use stillpoint_api::clock::Mono;
use stillpoint_api::conditions;
use stillpoint_api::outcome::RunResult;
use stillpoint_api::restore::{
    RESTORE_LABEL, Restore, RestorePhase, RestoreSource, RestoreStatus, RestoreStep, RestoredClaim,
};
use stillpoint_api::rule::{TargetKind, judge};
use stillpoint_api::snapshot::{VolumeSnapshot, VolumeSnapshotContent};
use tracing::{info, warn};

use crate::context::{Context, RequestError, bounded};
use crate::happenings::Happenings;
use crate::observer::RunLabels;
use crate::resolve::Refusal;
use crate::rules;
use crate::snapshot_request::label;
use plan::{NewClaim, RestorePlan};

pub use desk::run;

/// How long claims may take to be bound: a driver may copy the data first.
const BOUND_WITHIN: Duration = Duration::from_secs(3600);
/// What may pass by itself, as a request that was not answered, ends a Restore only when it is as old as this.
const TRIED_FOR: Duration = Duration::from_secs(600);
const LOOK_FIRST: Duration = Duration::from_millis(200);
const LOOK_AT_MOST: Duration = Duration::from_secs(5);

/// Why a Restore is not carried out here to its end.
enum End {
    /// It cannot be done: so it fails.
    Refused(Refusal),
    /// It is not ours any more, or nothing can be asked or written now: somebody else, or we later, carry it out.
    Lost(String),
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The parts of one Restore in progress.
struct Work<'a> {
    context: &'a Context,
    api: Api<Restore>,
    restore: Restore,
    /// Policy of what is restored, once that is found; empty without one.
    policy: String,
    began: Mono,
    /// What replicas before this one spent on it.
    earlier: Duration,
    status: RestoreStatus,
}

async fn carry_out(context: &Context, happenings: &Happenings, restore: Restore) {
    let namespace = restore.namespace().unwrap_or_default();
    let name = restore.name_any();
    let mut work = Work {
        context,
        api: Api::namespaced(context.client.clone(), &namespace),
        status: restore.status.clone().unwrap_or_default(),
        began: context.clock.mono(),
        earlier: Duration::ZERO,
        restore,
        policy: String::new(),
    };
    let ended = match work.go(&namespace).await {
        Ok(message) => {
            work.finish(RestorePhase::Succeeded, "Completed", &message).await.map(|()| Ok(message))
        }
        Err(End::Refused(refusal)) if refusal.may_pass && work.spent() < TRIED_FOR => {
            happenings.warning(&work.restore, refusal.reason, &refusal.message).await;
            Err(End::Lost(format!("{}; trying again", refusal.message)))
        }
        Err(End::Refused(refusal)) => {
            let finished = work.finish(RestorePhase::Failed, refusal.reason, &refusal.message).await;
            finished.map(|()| Err(refusal))
        }
        Err(lost @ End::Lost(_)) => Err(lost),
    };
    match ended {
        Ok(Ok(message)) => {
            info!(namespace, restore = name, message, "restored");
            happenings.normal(&work.restore, "Completed", &message).await;
        }
        Ok(Err(refusal)) | Err(End::Refused(refusal)) => {
            warn!(
                namespace,
                restore = name,
                reason = refusal.reason,
                message = refusal.message,
                "not restored"
            );
            happenings.warning(&work.restore, refusal.reason, &refusal.message).await;
        }
        Err(End::Lost(why)) => info!(namespace, restore = name, why, "a Restore is left where it is"),
    }
}

impl Work<'_> {
    async fn go(&mut self, namespace: &str) -> Result<String, End> {
        self.take().await?;
        if let Some(first) = stillpoint_api::validate::restore(&self.restore).first() {
            let why = format!("{}: {}", first.path, first.message);
            return Err(Refusal::stands("RestoreNotAccepted", why).into());
        }
        let rules = rules::of_namespace(self.context, namespace).await;
        let rules = rules.map_err(|error| Refusal::request(&error))?;
        rules::inside(&judge::restore(TargetKind::of(&self.restore.spec.target), &rules))?;
        let backup = self.source(namespace).await?;
        self.policy = backup.policy_name().unwrap_or_default().to_owned();
        let plan = plan::plan(&self.restore, &backup)?;
        self.status.backup = Some(backup.name_any());
        let of_backup = backup.status.clone().unwrap_or_default();
        (self.status.data_time, self.status.consistency) = (of_backup.cut, of_backup.consistency);
        self.step("plan");
        self.check_sources(namespace, &plan).await?;
        self.step("check the snapshots");
        // Before anything is made: whoever takes over must make the rest of the same point.
        self.write().await?;
        self.create(namespace, &plan).await?;
        self.step("create the claims");
        self.write().await?;
        self.wait_until_bound(namespace, &plan).await?;
        self.step("bind the claims");
        let names = plan.claims.iter().map(|claim| claim.name.as_str()).collect::<Vec<_>>().join(", ");
        Ok(format!("claims {names} hold the data of Backup {}", backup.name_any()))
    }

    /// Claims it over the version that was read: of several replicas that try, one succeeds.
    async fn take(&mut self) -> Result<(), End> {
        let now = self.context.clock.wall();
        let started = self.status.started_at.get_or_insert(MicroTime(now)).0;
        self.earlier = Duration::try_from(now.duration_since(started)).unwrap_or_default();
        self.status.phase = RestorePhase::Restoring;
        self.status.executor = Some(self.context.ownership.identity().to_owned());
        self.status.steps.clear();
        let mut wanted = self.restore.clone();
        wanted.status = Some(self.status.clone());
        let name = wanted.name_any();
        let params = PostParams::default();
        let put = self.api.replace_status(&name, &params, &wanted);
        let claimed = bounded(format!("claim Restore {name}"), put).await;
        self.restore = claimed.map_err(|error| End::Lost(error.to_string()))?;
        Ok(())
    }

    /// Since it was claimed for the first time.
    fn spent(&self) -> Duration {
        self.earlier + self.context.clock.mono().since(self.began)
    }

    fn step(&mut self, name: &str) {
        let before: f64 = self.status.steps.iter().map(|step| step.seconds).sum();
        let total = self.context.clock.mono().since(self.began).as_secs_f64();
        self.status.steps.push(RestoreStep { name: name.to_owned(), seconds: (total - before).max(0.0) });
    }

    async fn source(&self, namespace: &str) -> Result<Backup, Refusal> {
        let backups: Api<Backup> = Api::namespaced(self.context.client.clone(), namespace);
        let named = async |name: &str| {
            let read = bounded(format!("read Backup {name}"), backups.get_opt(name)).await;
            read.map_err(|error| Refusal::request(&error))?.ok_or_else(|| {
                Refusal::stands("BackupNotFound", format!("there is no Backup {name} in {namespace}"))
            })
        };
        match &self.restore.spec.source {
            RestoreSource::BackupRef(source) => named(&source.name).await,
            // Chosen before, perhaps by another replica.
            RestoreSource::Latest(_) if let Some(chosen) = &self.status.backup => named(chosen).await,
            RestoreSource::Latest(latest) => {
                let listed = bounded("list Backups", backups.list(&ListParams::default())).await;
                let all = listed.map_err(|error| Refusal::request(&error))?.items;
                let before = latest.before.as_ref().map(|before| before.0);
                plan::newest_proven(all, &latest.policy_ref.name, before).ok_or_else(|| {
                    Refusal::stands(
                        "NoProvenPoint",
                        format!(
                            "policy {} has no application-consistent recovery point{}; `stillpoint backup list` shows \
                             what there is, and source.backupRef takes any of them",
                            latest.policy_ref.name,
                            before.map(|before| format!(" before {before}")).unwrap_or_default()
                        ),
                    )
                })
            }
            RestoreSource::Handles(_) => {
                Err(Refusal::stands("RestoreNotAccepted", "spec.source.handles is not supported yet"))
            }
        }
    }

    /// Snapshot and content must still name each other: a snapshot of that name may be somebody else's by now.
    async fn check_sources(&self, namespace: &str, plan: &RestorePlan) -> Result<(), Refusal> {
        let snapshots: Api<VolumeSnapshot> = Api::namespaced(self.context.client.clone(), namespace);
        let contents: Api<VolumeSnapshotContent> = Api::all(self.context.client.clone());
        for claim in &plan.claims {
            let lost = |why: &str| {
                Refusal::stands(
                    "SnapshotLost",
                    format!("snapshot {} of claim {}: {why}", claim.snapshot, claim.source),
                )
            };
            let read = bounded("read a snapshot", snapshots.get_opt(&claim.snapshot)).await;
            let snapshot =
                read.map_err(|error| Refusal::request(&error))?.ok_or_else(|| lost("it was deleted"))?;
            let read = bounded("read a snapshot content", contents.get_opt(&claim.content)).await;
            let content = read
                .map_err(|error| Refusal::request(&error))?
                .ok_or_else(|| lost("its content was deleted"))?;
            let handle = content.status.as_ref().and_then(|status| status.snapshot_handle.as_deref());
            if snapshot.uid() != Some(claim.snapshot_uid.clone())
                || content.spec.volume_snapshot_ref.uid != snapshot.uid()
                || handle != Some(claim.handle.as_str())
            {
                return Err(lost("it is not the one that the Backup made"));
            }
        }
        Ok(())
    }

    async fn create(&mut self, namespace: &str, plan: &RestorePlan) -> Result<(), Refusal> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.context.client.clone(), namespace);
        for claim in &plan.claims {
            let wanted = self.claim(namespace, claim);
            match bounded(
                format!("create claim {}", claim.name),
                claims.create(&PostParams::default(), &wanted),
            )
            .await
            {
                Ok(_) => {}
                Err(error) if error.is_conflict() => self.adopt(&claims, claim).await?,
                Err(error) if error.code().is_some_and(|code| (400..500).contains(&code)) => {
                    return Err(Refusal::stands("ClaimRefused", error.to_string()));
                }
                Err(error) => return Err(Refusal::request(&error)),
            }
            let known = self.status.claims.iter().any(|one| one.claim_name == claim.name);
            if !known {
                self.status.claims.push(RestoredClaim {
                    source_claim: claim.source.clone(),
                    claim_name: claim.name.clone(),
                    bound: false,
                });
            }
        }
        Ok(())
    }

    /// A claim of that name exists: ours from before a restart, or somebody's.
    async fn adopt(&self, claims: &Api<PersistentVolumeClaim>, claim: &NewClaim) -> Result<(), Refusal> {
        let read = bounded(format!("read claim {}", claim.name), claims.get(&claim.name)).await;
        let found = read.map_err(|error| Refusal::request(&error))?;
        let ours = found.annotations().get(RESTORE_LABEL) == self.restore.metadata.uid.as_ref();
        if ours {
            return Ok(());
        }
        Err(Refusal::stands(
            "ClaimExists",
            format!(
                "there is a claim {} already and it is not of this Restore: choose another target.clone.prefix, or \
                 delete it",
                claim.name
            ),
        ))
    }

    fn claim(&self, namespace: &str, claim: &NewClaim) -> PersistentVolumeClaim {
        let uid = self.restore.uid().unwrap_or_default();
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(claim.name.clone()),
                namespace: Some(namespace.to_owned()),
                labels: Some(BTreeMap::from([(RESTORE_LABEL.to_owned(), label(&self.restore.name_any()))])),
                // No ownerReference: deleting the Restore must not delete the data that somebody now works with.
                annotations: Some(BTreeMap::from([(RESTORE_LABEL.to_owned(), uid)])),
                ..ObjectMeta::default()
            },
            spec: Some(PersistentVolumeClaimSpec {
                access_modes: Some(claim.access_modes.clone()),
                storage_class_name: Some(claim.storage_class.clone()),
                resources: Some(VolumeResourceRequirements {
                    requests: Some(BTreeMap::from([("storage".to_owned(), Quantity(claim.size.clone()))])),
                    ..VolumeResourceRequirements::default()
                }),
                data_source: Some(TypedLocalObjectReference {
                    api_group: Some(VolumeSnapshot::group(&()).into_owned()),
                    kind: VolumeSnapshot::kind(&()).into_owned(),
                    name: claim.snapshot.clone(),
                }),
                ..PersistentVolumeClaimSpec::default()
            }),
            ..PersistentVolumeClaim::default()
        }
    }

    async fn wait_until_bound(&mut self, namespace: &str, plan: &RestorePlan) -> Result<(), Refusal> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.context.client.clone(), namespace);
        let mut waited = Duration::ZERO;
        let mut pause = LOOK_FIRST;
        let mut open: Vec<&NewClaim> = plan.claims.iter().collect();
        loop {
            let mut left = Vec::new();
            for claim in open {
                let read = bounded(format!("read claim {}", claim.name), claims.get(&claim.name)).await;
                let found = read.map_err(|error| Refusal::request(&error))?;
                let phase = found.status.as_ref().and_then(|status| status.phase.as_deref());
                let bound = phase == Some("Bound");
                if bound || self.waits_for_consumer(&claim.storage_class).await.unwrap_or(false) {
                    for one in self.status.claims.iter_mut().filter(|one| one.claim_name == claim.name) {
                        one.bound = bound;
                    }
                } else {
                    left.push(claim);
                }
            }
            open = left;
            if open.is_empty() {
                return Ok(());
            }
            if waited >= BOUND_WITHIN {
                let names = open.iter().map(|claim| claim.name.as_str()).collect::<Vec<_>>().join(", ");
                let what = format!("claims {names} were not bound within {BOUND_WITHIN:?}: see their events");
                return Err(Refusal::stands("ClaimNotBound", what));
            }
            tokio::time::sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(LOOK_AT_MOST);
        }
    }

    /// A class that binds at first use leaves the claim unbound until a pod mounts it: nothing to wait for.
    async fn waits_for_consumer(&self, class: &str) -> Result<bool, RequestError> {
        let classes: Api<StorageClass> = Api::all(self.context.client.clone());
        let class = bounded(format!("read StorageClass {class}"), classes.get_opt(class)).await?;
        Ok(class.and_then(|class| class.volume_binding_mode).as_deref() == Some("WaitForFirstConsumer"))
    }

    /// Writes the status, by compare-and-swap on what was read. After a conflict it is read again, and written only if the
    /// Restore is still ours.
    async fn write(&mut self) -> Result<(), End> {
        let us = self.context.ownership.identity();
        let mut last = String::new();
        for _ in 0..8 {
            let mut wanted = self.restore.clone();
            wanted.status = Some(self.status.clone());
            let name = wanted.name_any();
            let params = PostParams::default();
            let put = self.api.replace_status(&name, &params, &wanted);
            match bounded(format!("write the status of Restore {name}"), put).await {
                Ok(written) => {
                    self.restore = written;
                    return Ok(());
                }
                Err(error) if error.is_conflict() => {
                    last = error.to_string();
                    if let Ok(fresh) = bounded("read the Restore", self.api.get(&name)).await {
                        let same = fresh.uid() == self.restore.uid();
                        match desk::executor(&fresh) {
                            Some(executor) if same && executor == us => self.restore = fresh,
                            other => {
                                return Err(End::Lost(format!("{} has it now", other.unwrap_or("nobody"))));
                            }
                        }
                    }
                }
                Err(error) if error.is_not_found() => return Err(End::Lost("it was deleted".to_owned())),
                Err(error) => {
                    warn!(restore = name, %error, "the status was not written; trying again");
                    last = error.to_string();
                    tokio::time::sleep(LOOK_AT_MOST).await;
                }
            }
        }
        Err(End::Lost(last))
    }

    async fn finish(&mut self, phase: RestorePhase, reason: &str, message: &str) -> Result<(), End> {
        let at = self.context.clock.wall();
        let good = phase == RestorePhase::Succeeded;
        self.status.phase = phase;
        self.status.restored_at = Some(MicroTime(at));
        let spent = self.spent();
        self.status.rto_seconds = Some(spent.as_secs_f64());
        let generation = self.restore.metadata.generation;
        self.status.conditions = conditions::finished(good, reason, message, generation, at);
        self.write().await?;
        let namespace = self.restore.namespace().unwrap_or_default();
        let labels = RunLabels { namespace, policy: self.policy.clone() };
        let result = if good { RunResult::Succeeded } else { RunResult::Failed };
        self.context.observer.restored(&labels, result, spent.as_secs_f64());
        Ok(())
    }
}
