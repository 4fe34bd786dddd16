//! After the thaw: waits for the snapshots, checks that they are ours, judges, and keeps or removes them.
//!
//! Works from the stored status alone, so that another process can settle what this one thawed (docs/design/freeze.md
//! §5, row *Thawed*).

mod groups;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use stillpoint_api::backup::{
    APPLICATION_LABEL, ATTEMPT_LABEL, BACKUP_LABEL, BACKUP_UID_LABEL, BackupStatus, CLAIM_ANNOTATION,
    CONSISTENCY_ANNOTATION, CUT_ANNOTATION, NAMESPACE_LABEL, NAMESPACE_UID_LABEL, POLICY_LABEL,
    TEMPLATE_DIGEST_ANNOTATION, WINDOW_ANNOTATION,
};
use stillpoint_api::clock::Mono;
use stillpoint_api::evidence::{Consistency, MemberEvidence, SettledMember, Window};
use stillpoint_api::policy::Requirement;
use stillpoint_api::snapshot::{VolumeSnapshot, VolumeSnapshotContent};
use stillpoint_api::template::DataTime;
use tracing::warn;

use crate::context::{Context, RequestError, bounded};
use crate::snapshot_request::label;
use crate::verdict::{Evidence, Judgement, driver_cut_time, judge};

/// How long all snapshots of a run together may take to become usable: large volumes upload for hours after the cut, at the
/// same time. Each is looked at once at least.
const READY_WITHIN: Duration = Duration::from_secs(6 * 3600);
const LOOK_FIRST: Duration = Duration::from_millis(50);
const LOOK_AT_MOST: Duration = Duration::from_secs(10);

/// What settling found.
#[derive(Debug)]
pub struct Settled {
    /// The members, completed.
    pub members: Vec<MemberEvidence>,
    /// The verdict.
    pub judgement: Judgement,
    /// The instant that the point stands for: the earliest cut, or when prepare began (docs/design/freeze.md §4.9).
    pub cut: Option<Timestamp>,
    /// Whether the point is kept.
    pub keep: bool,
}

/// Waits for the members and judges the evidence.
pub async fn settle(context: &Context, namespace: &str, status: &BackupStatus) -> Settled {
    let window = status.window.clone().unwrap_or_default();
    let mut members = status.members.clone();
    let until = context.clock.mono() + READY_WITHIN;
    groups::settle(context, namespace, until, &mut members).await;
    for member in &mut members {
        let cut_wall = member.signal.and_then(|signal| wall(&window, signal.0));
        if member.group.is_none() {
            member.settled = wait_until_ready(context, namespace, until, member).await;
        }
        member.cut = member_cut(&window, member).map(MicroTime);
        let ready = member.settled.as_ref().and_then(|settled| settled.ready_at.as_ref());
        if let (Some(ready), Some(cut)) = (ready, cut_wall) {
            let took = ready.0.duration_since(cut).as_secs_f64().max(0.0);
            context.observer.ready(&member.driver, took);
        }
    }
    let resolved = status.resolved.clone().unwrap_or_default();
    let judgement = judge(&Evidence::new(&resolved, &status.holds, &members, &window));
    // Where the server acknowledges before it is durable, the point is as old as what prepare made durable.
    let prepared = resolved.applications.iter().filter(|one| one.data_time == DataTime::Prepare);
    let prepared = prepared.filter_map(|application| application.prepared_at.as_ref().map(|at| at.0));
    let cut = members.iter().filter_map(|member| member.cut.as_ref().map(|cut| cut.0)).min();
    let cut = cut.map(|cut| prepared.fold(cut, Timestamp::min));
    let usable =
        members.iter().any(|member| member.settled.as_ref().is_some_and(|found| found.ready_at.is_some()));
    let keep = match resolved.requirement {
        Requirement::Required => judgement.consistency == Consistency::Application,
        Requirement::BestEffort => usable,
    };
    Settled { members, judgement, cut, keep }
}

fn wall(window: &Window, micros: i64) -> Option<Timestamp> {
    window.started_at.as_ref()?.0.checked_add(jiff::SignedDuration::from_micros(micros)).ok()
}

/// The instant a copy stands for: the driver's cut time where it is plausible, else the POST; never after the signal.
fn member_cut(window: &Window, member: &MemberEvidence) -> Option<Timestamp> {
    let signal = wall(window, member.signal?.0)?;
    let posted = wall(window, member.post_sent?.0)?;
    // Without a cut time of the driver's the earliest possible instant counts: an objective is never flattered.
    Some(driver_cut_time(member).unwrap_or(posted).min(signal))
}

async fn wait_until_ready(
    context: &Context,
    namespace: &str,
    until: Mono,
    member: &MemberEvidence,
) -> Option<SettledMember> {
    let content = member.content.clone()?;
    let snapshots: Api<VolumeSnapshot> = Api::namespaced(context.client.clone(), namespace);
    let contents: Api<VolumeSnapshotContent> = Api::all(context.client.clone());
    let mut pause = LOOK_FIRST;
    loop {
        match look(context, &snapshots, &contents, member, &content).await {
            Ok(Look::Ready(found)) => return Some(found),
            Ok(Look::NotYet(found)) if context.clock.mono() >= until => return Some(found),
            Ok(Look::NotYet(_)) => {}
            Ok(Look::Gone) => return None,
            Err(error) => {
                warn!(namespace, snapshot = member.volume_snapshot, %error, "settling: a look failed")
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK_AT_MOST);
    }
}

enum Look {
    Ready(SettledMember),
    NotYet(SettledMember),
    Gone,
}

async fn look(
    context: &Context,
    snapshots: &Api<VolumeSnapshot>,
    contents: &Api<VolumeSnapshotContent>,
    member: &MemberEvidence,
    name: &str,
) -> Result<Look, RequestError> {
    let snapshot = bounded("read a snapshot", snapshots.get_opt(&member.volume_snapshot)).await?;
    let content = bounded("read a snapshot content", contents.get_opt(name)).await?;
    let (Some(snapshot), Some(content)) = (snapshot, content) else { return Ok(Look::Gone) };
    let of_content = content.status.clone().unwrap_or_default();
    let of_snapshot = snapshot.status.clone().unwrap_or_default();
    let reference = &content.spec.volume_snapshot_ref;
    let bound = of_snapshot.bound_volume_snapshot_content_name.as_deref() == Some(name)
        && reference.uid.is_some()
        && reference.uid == member.volume_snapshot_uid
        && reference.uid == snapshot.metadata.uid
        && reference.name.as_deref() == Some(member.volume_snapshot.as_str());
    let ready = of_content.ready_to_use == Some(true) && of_snapshot.ready_to_use == Some(true);
    let found = SettledMember {
        ready_at: ready.then(|| MicroTime(context.clock.wall())),
        handle: of_content.snapshot_handle,
        creation_time: of_content.creation_time,
        bound,
        restore_size: of_content.restore_size,
    };
    Ok(if ready { Look::Ready(found) } else { Look::NotYet(found) })
}

/// Who a kept point belongs to.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Namespace.
    pub namespace: String,
    /// Its UID.
    pub namespace_uid: String,
    /// Name of the Backup.
    pub backup: String,
    /// Its UID.
    pub backup_uid: String,
    /// The policy, where there is one.
    pub policy: Option<String>,
    /// Nonce of the attempt.
    pub nonce: String,
}

/// Makes a point keep: contents become `Retain` and say what they are, snapshots carry the verdict.
///
/// Never inside the window: the sidecar would have to process it before the cut.
///
/// # Errors
/// A request failed; calling it again finishes it.
pub async fn keep(
    context: &Context,
    owner: &Owner,
    status: &BackupStatus,
    settled: &Settled,
) -> Result<(), RequestError> {
    let snapshots: Api<VolumeSnapshot> = Api::namespaced(context.client.clone(), &owner.namespace);
    let contents: Api<VolumeSnapshotContent> = Api::all(context.client.clone());
    for member in &settled.members {
        let Some(content) = &member.content else { continue };
        let annotations = annotations(status, settled, member);
        let retain = Patch::Merge(serde_json::json!({
            "metadata": {"labels": owner.content_labels(), "annotations": annotations},
            "spec": {"deletionPolicy": "Retain"},
        }));
        let params = PatchParams::default();
        let request = contents.patch(content, &params, &retain);
        bounded(format!("keep snapshot content {content}"), request).await?;
        let mut metadata = serde_json::json!({"annotations": annotations});
        if member.group.is_some() {
            // The snapshot controller made it, without labels of ours.
            let mut labels = owner.labels();
            labels.insert(APPLICATION_LABEL, label(&member.application));
            metadata["labels"] = serde_json::json!(labels);
        }
        let tell = Patch::Merge(serde_json::json!({"metadata": metadata}));
        let request = snapshots.patch(&member.volume_snapshot, &params, &tell);
        bounded(format!("annotate snapshot {}", member.volume_snapshot), request).await?;
    }
    groups::keep(context, owner, status, settled).await
}

fn annotations(
    status: &BackupStatus,
    settled: &Settled,
    member: &MemberEvidence,
) -> BTreeMap<&'static str, String> {
    let mut annotations = BTreeMap::from([
        (CONSISTENCY_ANNOTATION, format!("{:?}", settled.judgement.consistency)),
        (CLAIM_ANNOTATION, member.claim_name.clone()),
    ]);
    let applications = status.resolved.iter().flat_map(|resolved| &resolved.applications);
    if let Some(application) = applications.into_iter().find(|one| one.name == member.application) {
        annotations.insert(TEMPLATE_DIGEST_ANNOTATION, application.digest.clone());
    }
    if let Some(window) = &status.window
        && let (Some(start), Some(seconds)) = (&window.started_at, window.frozen_seconds)
    {
        annotations.insert(WINDOW_ANNOTATION, format!("{}/{seconds:.6}s", start.0));
    }
    if let Some(cut) = &member.cut {
        annotations.insert(CUT_ANNOTATION, cut.0.to_string());
    }
    annotations
}

impl Owner {
    /// Labels of a snapshot of this point.
    fn labels(&self) -> BTreeMap<&'static str, String> {
        let mut labels = BTreeMap::from([
            (BACKUP_LABEL, label(&self.backup)),
            (BACKUP_UID_LABEL, label(&self.backup_uid)),
            (ATTEMPT_LABEL, label(&self.nonce)),
        ]);
        if let Some(policy) = &self.policy {
            labels.insert(POLICY_LABEL, label(policy));
        }
        labels
    }

    /// Labels of a content, which is cluster-scoped.
    fn content_labels(&self) -> BTreeMap<&'static str, String> {
        let mut labels = self.labels();
        labels.insert(NAMESPACE_LABEL, label(&self.namespace));
        labels.insert(NAMESPACE_UID_LABEL, label(&self.namespace_uid));
        labels
    }

    /// The owner of a Backup's point.
    pub fn of(backup: &stillpoint_api::Backup, namespace_uid: String, nonce: String) -> Self {
        Self {
            namespace: backup.namespace().unwrap_or_default(),
            namespace_uid,
            backup: backup.name_any(),
            backup_uid: backup.uid().unwrap_or_default(),
            policy: backup.policy_name().map(ToOwned::to_owned),
            nonce,
        }
    }
}
