//! The label by which the snapshot controller finds the claims of a group: set before the freeze, read back, and taken
//! away as soon as the group has its content.
//!
//! The controller reads `matchLabels` alone, so the label is this run's, this attempt's and this group's own, and the set
//! of claims that carry it is compared before anything is frozen (docs/design/freeze.md §1). Whatever joins later is
//! found by its volume when the point is settled (rule 7).

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use stillpoint_api::backup::GROUP_LABEL;

use crate::context::{Context, RequestError, bounded};
use crate::resolve::groups::RunGroup;

/// What reading the label back found that should not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Claims that carry the label and are no members.
    pub foreign: Vec<String>,
    /// Members that do not carry it.
    pub missing: Vec<String>,
}

/// Sets the label on a group's claims and reads back who carries it.
///
/// # Errors
/// A request failed.
pub async fn set(
    context: &Context,
    namespace: &str,
    group: &RunGroup,
) -> Result<Result<(), Mismatch>, RequestError> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
    let patch = Patch::Merge(serde_json::json!({"metadata": {"labels": {GROUP_LABEL: group.label}}}));
    let params = PatchParams::default();
    let requests = group.claims.iter().map(|claim| {
        bounded(format!("label claim {claim} for its group snapshot"), claims.patch(claim, &params, &patch))
    });
    for answer in futures::future::join_all(requests).await {
        answer?;
    }
    let carriers = ListParams::default().labels(&format!("{GROUP_LABEL}={}", group.label));
    let found = bounded("read the group's label back", claims.list(&carriers)).await?.items;
    Ok(compare(&group.claims, &found.iter().map(|claim| claim.name_any()).collect()))
}

fn compare(wanted: &BTreeSet<String>, found: &BTreeSet<String>) -> Result<(), Mismatch> {
    if wanted == found {
        return Ok(());
    }
    Err(Mismatch {
        foreign: found.difference(wanted).cloned().collect(),
        missing: wanted.difference(found).cloned().collect(),
    })
}

/// Takes the labels of all groups of a Backup away, whichever attempt set them. A label that another run has set
/// meanwhile is left alone.
///
/// # Errors
/// A request failed; nothing is lost by calling it again.
pub async fn remove(context: &Context, namespace: &str, backup_uid: &str) -> Result<(), RequestError> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
    let carriers = ListParams::default().labels(GROUP_LABEL);
    let found = bounded("list claims of groups", claims.list(&carriers)).await?.items;
    for claim in found.iter().filter(|claim| is_of(claim, backup_uid)) {
        let name = claim.name_any();
        // With the version that was read: a label set since then is somebody else's.
        let patch = Patch::Merge(serde_json::json!({
            "metadata": {"resourceVersion": claim.resource_version(), "labels": {GROUP_LABEL: null}},
        }));
        let params = PatchParams::default();
        let request = claims.patch(&name, &params, &patch);
        match bounded(format!("take the group's label from claim {name}"), request).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_of(claim: &PersistentVolumeClaim, backup_uid: &str) -> bool {
    let value = claim.labels().get(GROUP_LABEL);
    value.and_then(|value| value.strip_prefix(backup_uid)).is_some_and(|rest| rest.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::groups::label_value;
    use std::collections::BTreeMap;

    #[test]
    fn a_claim_that_should_not_carry_the_label_is_named_and_so_is_one_that_should() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(compare(&set(&["a", "b"]), &set(&["b", "a"])), Ok(()));
        let mismatch = compare(&set(&["a", "b"]), &set(&["b", "c"])).unwrap_err();
        assert_eq!(mismatch, Mismatch { foreign: vec!["c".into()], missing: vec!["a".into()] });
    }

    #[test]
    fn only_labels_of_this_backup_are_taken_away() {
        let mut claim = PersistentVolumeClaim::default();
        for (value, mine) in
            [(label_value("uid", 2, 0), true), (label_value("uid2", 1, 0), false), ("uid".into(), false)]
        {
            claim.metadata.labels = Some(BTreeMap::from([(GROUP_LABEL.to_owned(), value.clone())]));
            assert_eq!(is_of(&claim, "uid"), mine, "{value}");
        }
    }
}
