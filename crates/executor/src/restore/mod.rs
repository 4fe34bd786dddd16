//! Brings a recovery point back as new claims in the same namespace (target `clone`).
//!
//! [`plan`] is pure; this file reads, creates and waits. A Restore runs once; its claims carry its name, and a claim
//! of that name that is somebody else's is never touched.

pub mod plan;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, TypedLocalObjectReference, VolumeResourceRequirements,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource, ResourceExt};
use stillpoint_api::backup::Backup;
use stillpoint_api::clock::Mono;
use stillpoint_api::conditions;
use stillpoint_api::restore::{
    RESTORE_LABEL, Restore, RestorePhase, RestoreSource, RestoreStatus, RestoreStep, RestoredClaim,
};
use stillpoint_api::snapshot::{VolumeSnapshot, VolumeSnapshotContent};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::context::{Context, RequestError, bounded};
use crate::controller::ControllerError;
use crate::happenings::Happenings;
use crate::resolve::Refusal;
use crate::snapshot_request::label;
use plan::{NewClaim, RestorePlan};

/// How long claims may take to be bound: a driver may copy the data first.
const BOUND_WITHIN: Duration = Duration::from_secs(3600);
const LOOK_FIRST: Duration = Duration::from_millis(200);
const LOOK_AT_MOST: Duration = Duration::from_secs(5);

/// Runs until `shutdown`. `listed` turns true when the watch shows the present state.
///
/// # Errors
/// The watch ended.
pub async fn run(
    context: Context,
    listed: watch::Sender<bool>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ControllerError> {
    let happenings = Happenings::new(context.client.clone(), context.ownership.identity());
    let api: Api<Restore> = Api::all(context.client.clone());
    let open = || watcher(api.clone(), watcher::Config::default()).boxed();
    let mut events = open();
    let active: Arc<Mutex<HashSet<(String, String)>>> = Arc::default();
    let mut tasks = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            event = events.next() => match event {
                None => return Err(ControllerError::WatchEnded),
                Some(Err(error)) => {
                    listed.send_replace(false);
                    debug!(%error, "the watch on Restores broke; it is opened again");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    // A new one lists again: a watch that could not be opened does not say when it is open at last.
                    events = open();
                }
                Some(Ok(Event::Init | Event::Delete(_))) => {}
                Some(Ok(Event::InitDone)) => {
                    listed.send_replace(true);
                }
                Some(Ok(Event::Apply(restore) | Event::InitApply(restore))) => {
                    let key = (restore.namespace().unwrap_or_default(), restore.name_any());
                    let over = matches!(
                        restore.status.as_ref().map(|status| status.phase),
                        Some(RestorePhase::Succeeded | RestorePhase::Failed)
                    );
                    let free = !over && active.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
                    if free {
                        let (context, happenings) = (context.clone(), happenings.clone());
                        let active = Arc::clone(&active);
                        tasks.spawn(async move {
                            carry_out(&context, &happenings, restore).await;
                            active.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                        });
                    }
                }
            },
            Some(_) = tasks.join_next() => {}
        }
    }
}

/// The parts of one Restore in progress.
struct Work<'a> {
    context: &'a Context,
    api: Api<Restore>,
    restore: Restore,
    began: Mono,
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
        restore,
    };
    let outcome = work.go(&namespace).await;
    match outcome {
        Ok(message) => {
            work.finish(RestorePhase::Succeeded, "Completed", &message).await;
            info!(namespace, restore = name, message, "restored");
            happenings.normal(&work.restore, "Completed", &message).await;
        }
        Err(refusal) => {
            work.finish(RestorePhase::Failed, refusal.reason, &refusal.message).await;
            warn!(
                namespace,
                restore = name,
                reason = refusal.reason,
                message = refusal.message,
                "not restored"
            );
            happenings.warning(&work.restore, refusal.reason, &refusal.message).await;
        }
    }
}

impl Work<'_> {
    async fn go(&mut self, namespace: &str) -> Result<String, Refusal> {
        if let Some(first) = stillpoint_api::validate::restore(&self.restore).first() {
            return Err(Refusal::stands("RestoreNotAccepted", format!("{}: {}", first.path, first.message)));
        }
        let now = MicroTime(self.context.clock.wall());
        self.status.phase = RestorePhase::Restoring;
        self.status.started_at.get_or_insert(now);
        self.status.executor = Some(self.context.ownership.identity().to_owned());
        self.write().await;

        let backup = self.source(namespace).await?;
        let plan = plan::plan(&self.restore, &backup)?;
        self.status.backup = Some(backup.name_any());
        let of_backup = backup.status.clone().unwrap_or_default();
        (self.status.data_time, self.status.consistency) = (of_backup.cut, of_backup.consistency);
        self.step("plan");
        self.check_sources(namespace, &plan).await?;
        self.step("check the snapshots");
        self.create(namespace, &plan).await?;
        self.step("create the claims");
        self.write().await;
        self.wait_until_bound(namespace, &plan).await?;
        self.step("bind the claims");
        let names = plan.claims.iter().map(|claim| claim.name.as_str()).collect::<Vec<_>>().join(", ");
        Ok(format!("claims {names} hold the data of Backup {}", backup.name_any()))
    }

    fn step(&mut self, name: &str) {
        let before: f64 = self.status.steps.iter().map(|step| step.seconds).sum();
        let total = self.context.clock.mono().since(self.began).as_secs_f64();
        self.status.steps.push(RestoreStep { name: name.to_owned(), seconds: (total - before).max(0.0) });
    }

    async fn source(&self, namespace: &str) -> Result<Backup, Refusal> {
        let backups: Api<Backup> = Api::namespaced(self.context.client.clone(), namespace);
        match &self.restore.spec.source {
            RestoreSource::BackupRef(source) => {
                let read =
                    bounded(format!("read Backup {}", source.name), backups.get_opt(&source.name)).await;
                read.map_err(|error| Refusal::request(&error))?.ok_or_else(|| {
                    Refusal::stands(
                        "BackupNotFound",
                        format!("there is no Backup {} in {namespace}", source.name),
                    )
                })
            }
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

    /// Writes the status, by compare-and-swap on what was read; a conflict is read again once per try.
    async fn write(&mut self) {
        for _ in 0..8 {
            let mut wanted = self.restore.clone();
            wanted.status = Some(self.status.clone());
            let name = wanted.name_any();
            let params = PostParams::default();
            let put = self.api.replace_status(&name, &params, &wanted);
            match bounded(format!("write the status of Restore {name}"), put).await {
                Ok(written) => {
                    self.restore = written;
                    return;
                }
                Err(error) if error.is_conflict() => {
                    if let Ok(fresh) = bounded("read the Restore", self.api.get(&name)).await {
                        self.restore = fresh;
                    }
                }
                Err(error) if error.is_not_found() => return,
                Err(error) => {
                    warn!(restore = name, %error, "the status was not written; trying again");
                    tokio::time::sleep(LOOK_AT_MOST).await;
                }
            }
        }
    }

    async fn finish(&mut self, phase: RestorePhase, reason: &str, message: &str) {
        let at = self.context.clock.wall();
        let good = phase == RestorePhase::Succeeded;
        self.status.phase = phase;
        self.status.restored_at = Some(MicroTime(at));
        self.status.rto_seconds = Some(self.context.clock.mono().since(self.began).as_secs_f64());
        let generation = self.restore.metadata.generation;
        self.status.conditions = conditions::finished(good, reason, message, generation, at);
        self.write().await;
    }
}
