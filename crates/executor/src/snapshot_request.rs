//! What is asked of the snapshot stack for one cut: a VolumeSnapshot of one claim, or a VolumeGroupSnapshot of several.

use std::collections::BTreeMap;

use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use stillpoint_api::backup::{
    APPLICATION_LABEL, ATTEMPT_LABEL, BACKUP_LABEL, BACKUP_UID_LABEL, GROUP_LABEL, POLICY_LABEL,
};
use stillpoint_api::evidence::MemberEvidence;
use stillpoint_api::group_snapshot::{
    GroupSelector, VolumeGroupSnapshot, VolumeGroupSnapshotSource, VolumeGroupSnapshotSpec,
};
use stillpoint_api::snapshot::{VolumeSnapshot, VolumeSnapshotSource, VolumeSnapshotSpec};

use crate::context::{RequestError, bounded};
use crate::resolve::Resolution;
use crate::resolve::groups::RunGroup;
use crate::run::CutId;

/// Longest value of a label.
const MAX_LABEL: usize = 63;

/// A value that fits a label: names may be longer.
pub fn label(value: &str) -> String {
    let cut: String = value.chars().take(MAX_LABEL).collect();
    cut.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

/// One request.
#[derive(Clone, Debug)]
pub enum SnapshotRequest {
    /// One claim.
    Single(Box<VolumeSnapshot>),
    /// Several claims, by their label.
    Group(Box<VolumeGroupSnapshot>),
}

impl SnapshotRequest {
    /// The request of a cut; `None` where the plan has no such cut.
    pub fn of(resolution: &Resolution, cut: CutId, nonce: &str) -> Option<Self> {
        if let Some(group) = resolution.groups.iter().find(|group| group.cut == cut) {
            return Some(Self::Group(Box::new(build_group(resolution, group, nonce))));
        }
        let first = resolution.plan.cuts.get(cut.0)?.members.first()?;
        let member = resolution.plan.members.get(first.0)?;
        let class = resolution.classes.get(first.0)?;
        Some(Self::Single(Box::new(build(resolution, member, class, nonce))))
    }

    /// For messages.
    pub fn what(&self) -> String {
        match self {
            Self::Single(snapshot) => {
                let claim = snapshot.spec.source.persistent_volume_claim_name.as_deref().unwrap_or_default();
                format!("the snapshot of claim {claim}")
            }
            Self::Group(group) => {
                format!("group snapshot {}", group.metadata.name.as_deref().unwrap_or_default())
            }
        }
    }

    /// Sends it once; the answer is the UID of the new object. `verb` is for messages.
    ///
    /// # Errors
    /// It was refused, or not answered.
    pub async fn post(
        &self,
        client: &Client,
        namespace: &str,
        verb: &str,
        params: &PostParams,
    ) -> Result<String, RequestError> {
        let what = format!("{verb} {}", self.what());
        let metadata = match self {
            Self::Single(snapshot) => {
                let api: Api<VolumeSnapshot> = Api::namespaced(client.clone(), namespace);
                bounded(what, api.create(params, snapshot)).await?.metadata
            }
            Self::Group(group) => {
                let api: Api<VolumeGroupSnapshot> = Api::namespaced(client.clone(), namespace);
                bounded(what, api.create(params, group)).await?.metadata
            }
        };
        Ok(metadata.uid.unwrap_or_default())
    }
}

/// The labels by which what was asked for is found again.
fn labels(resolution: &Resolution, nonce: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        (BACKUP_LABEL.to_owned(), label(&resolution.backup)),
        (BACKUP_UID_LABEL.to_owned(), label(&resolution.backup_uid)),
        (ATTEMPT_LABEL.to_owned(), label(nonce)),
    ]);
    if let Some(policy) = &resolution.policy {
        labels.insert(POLICY_LABEL.to_owned(), label(policy));
    }
    labels
}

/// A single snapshot. It always names its class: without one the controller needs another request.
fn build(resolution: &Resolution, member: &MemberEvidence, class: &str, nonce: &str) -> VolumeSnapshot {
    let mut labels = labels(resolution, nonce);
    labels.insert(APPLICATION_LABEL.to_owned(), label(&member.application));
    VolumeSnapshot {
        metadata: ObjectMeta {
            name: Some(member.volume_snapshot.clone()),
            namespace: Some(resolution.namespace.clone()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: VolumeSnapshotSpec {
            source: VolumeSnapshotSource {
                persistent_volume_claim_name: Some(member.claim_name.clone()),
                volume_snapshot_content_name: None,
            },
            volume_snapshot_class_name: Some(class.to_owned()),
        },
        status: None,
    }
}

/// A group. Exactly one label and never an expression: the controller ignores expressions, and no label is every claim.
fn build_group(resolution: &Resolution, group: &RunGroup, nonce: &str) -> VolumeGroupSnapshot {
    let match_labels = BTreeMap::from([(GROUP_LABEL.to_owned(), group.label.clone())]);
    VolumeGroupSnapshot {
        metadata: ObjectMeta {
            name: Some(group.name.clone()),
            namespace: Some(resolution.namespace.clone()),
            labels: Some(labels(resolution, nonce)),
            ..ObjectMeta::default()
        },
        spec: VolumeGroupSnapshotSpec {
            source: VolumeGroupSnapshotSource {
                selector: Some(GroupSelector { match_labels }),
                volume_group_snapshot_content_name: None,
            },
            volume_group_snapshot_class_name: Some(group.class.clone()),
        },
        status: None,
    }
}
