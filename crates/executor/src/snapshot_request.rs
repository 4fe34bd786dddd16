//! The VolumeSnapshot that a member asks for.

use std::collections::BTreeMap;

use kube::api::ObjectMeta;
use stillpoint_api::backup::{
    APPLICATION_LABEL, ATTEMPT_LABEL, BACKUP_LABEL, BACKUP_UID_LABEL, POLICY_LABEL,
};
use stillpoint_api::evidence::MemberEvidence;
use stillpoint_api::snapshot::{VolumeSnapshot, VolumeSnapshotSource, VolumeSnapshotSpec};

use crate::resolve::Resolution;

/// Longest value of a label.
const MAX_LABEL: usize = 63;

/// A value that fits a label: names may be longer.
pub fn label(value: &str) -> String {
    let cut: String = value.chars().take(MAX_LABEL).collect();
    cut.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

/// The request. It always names its class: without one the controller needs another request.
pub fn build(resolution: &Resolution, member: &MemberEvidence, class: &str, nonce: &str) -> VolumeSnapshot {
    let mut labels = BTreeMap::from([
        (BACKUP_LABEL.to_owned(), label(&resolution.backup)),
        (BACKUP_UID_LABEL.to_owned(), label(&resolution.backup_uid)),
        (ATTEMPT_LABEL.to_owned(), label(nonce)),
        (APPLICATION_LABEL.to_owned(), label(&member.application)),
    ]);
    if let Some(policy) = &resolution.policy {
        labels.insert(POLICY_LABEL.to_owned(), label(policy));
    }
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
