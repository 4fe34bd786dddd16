//! The groups of a run: finds the members that the snapshot controller made after the cut, and compares them with the
//! volumes that were resolved.
//!
//! A member is found by its owner, the very group snapshot that our own 201 named, and told by the volume of its content.
//! A group with a volume too many or too few is worth nothing (docs/design/freeze.md §4, rule 7): nobody knows which
//! volume it has instead.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use stillpoint_api::backup::{BackupStatus, CONSISTENCY_ANNOTATION};
use stillpoint_api::clock::Mono;
use stillpoint_api::evidence::{GroupEvidence, MemberEvidence, SettledMember};
use stillpoint_api::group_snapshot::{VolumeGroupSnapshot, VolumeGroupSnapshotContent};
use stillpoint_api::snapshot::{VolumeSnapshot, VolumeSnapshotContent};
use tracing::warn;

use super::{LOOK_AT_MOST, LOOK_FIRST, Owner, Settled, annotations};
use crate::context::{Context, RequestError, bounded};

/// The members of one group, as they were found.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    /// Whether the group is exactly what was resolved; `None`: not all of it has been made yet.
    exact: Option<bool>,
    /// Whether the group and all its members are usable.
    ready: bool,
    /// Its members by volume.
    members: BTreeMap<String, Found>,
}

/// The snapshot of one member.
#[derive(Clone, Debug, Default, PartialEq)]
struct Found {
    snapshot: String,
    snapshot_uid: Option<String>,
    content: String,
    settled: SettledMember,
}

/// Everything of one group that was read in one look.
struct Look {
    group: VolumeGroupSnapshot,
    content: VolumeGroupSnapshotContent,
    members: Vec<(VolumeSnapshot, VolumeSnapshotContent)>,
    at: MicroTime,
}

/// Waits until the groups of these members are ready, and completes the members.
pub(super) async fn settle(context: &Context, namespace: &str, until: Mono, members: &mut [MemberEvidence]) {
    let mut groups: BTreeMap<String, GroupEvidence> = BTreeMap::new();
    for group in members.iter().filter_map(|member| member.group.as_ref()) {
        groups.entry(group.volume_group_snapshot.clone()).or_insert_with(|| group.clone());
    }
    for (name, group) in groups {
        let of = |member: &&mut MemberEvidence| {
            member.group.as_ref().is_some_and(|one| one.volume_group_snapshot == name)
        };
        let wanted: BTreeSet<String> =
            members.iter_mut().filter(of).map(|member| member.volume_handle.clone()).collect();
        let Some(seen) = wait(context, namespace, until, &group, &wanted).await else { continue };
        for member in members.iter_mut().filter(of) {
            if let Some(group) = &mut member.group {
                group.exact = seen.exact;
            }
            if let Some(found) = seen.members.get(&member.volume_handle) {
                member.volume_snapshot.clone_from(&found.snapshot);
                member.volume_snapshot_uid.clone_from(&found.snapshot_uid);
                member.content = Some(found.content.clone());
                member.settled = Some(found.settled.clone());
            }
        }
    }
}

/// The group when it is ready or can never be right; what there is of it after the longest wait; `None`: it is gone.
async fn wait(
    context: &Context,
    namespace: &str,
    until: Mono,
    group: &GroupEvidence,
    wanted: &BTreeSet<String>,
) -> Option<Seen> {
    let mut pause = LOOK_FIRST;
    loop {
        match look(context, namespace, group).await {
            Ok(None) => return None,
            Ok(Some(look)) => {
                let seen = judge(group, wanted, &look);
                if seen.ready || seen.exact == Some(false) || context.clock.mono() >= until {
                    return Some(seen);
                }
            }
            Err(error) => {
                warn!(namespace, group = group.volume_group_snapshot, %error, "settling: a look failed");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK_AT_MOST);
    }
}

/// Reads a group; `None` where it or its content is gone, or is another one of that name.
async fn look(
    context: &Context,
    namespace: &str,
    evidence: &GroupEvidence,
) -> Result<Option<Look>, RequestError> {
    let (Some(uid), Some(content)) = (&evidence.uid, &evidence.content) else { return Ok(None) };
    let groups: Api<VolumeGroupSnapshot> = Api::namespaced(context.client.clone(), namespace);
    let group_contents: Api<VolumeGroupSnapshotContent> = Api::all(context.client.clone());
    let snapshots: Api<VolumeSnapshot> = Api::namespaced(context.client.clone(), namespace);
    let contents: Api<VolumeSnapshotContent> = Api::all(context.client.clone());
    let name = &evidence.volume_group_snapshot;
    let group = bounded("read a group snapshot", groups.get_opt(name)).await?;
    let content = bounded("read a group snapshot content", group_contents.get_opt(content)).await?;
    let (Some(group), Some(content)) = (group, content) else { return Ok(None) };
    if group.metadata.uid.as_ref() != Some(uid) {
        return Ok(None);
    }
    let mut members = Vec::new();
    let all = bounded("list the members of a group", snapshots.list(&ListParams::default())).await?.items;
    for snapshot in all.into_iter().filter(|snapshot| is_member(snapshot, uid)) {
        let bound =
            snapshot.status.as_ref().and_then(|status| status.bound_volume_snapshot_content_name.clone());
        // One that is not bound yet is found by the next look.
        let Some(bound) = bound else { continue };
        if let Some(content) = bounded("read a member's content", contents.get_opt(&bound)).await? {
            members.push((snapshot, content));
        }
    }
    Ok(Some(Look { group, content, members, at: MicroTime(context.clock.wall()) }))
}

/// Whether a snapshot was made for a member of this group.
pub(crate) fn is_member(snapshot: &VolumeSnapshot, group_uid: &str) -> bool {
    let mut owners = snapshot.metadata.owner_references.iter().flatten();
    owners.any(|owner| owner.kind == "VolumeGroupSnapshot" && owner.uid == group_uid)
}

/// What one look says about a group.
fn judge(evidence: &GroupEvidence, wanted: &BTreeSet<String>, look: &Look) -> Seen {
    let status = look.content.status.clone().unwrap_or_default();
    let of_group = look.group.status.clone().unwrap_or_default();
    let reference = &look.content.spec.volume_group_snapshot_ref;
    let bound = of_group.bound_volume_group_snapshot_content_name == look.content.metadata.name
        && reference.uid.is_some()
        && reference.uid == look.group.metadata.uid
        && status.volume_group_snapshot_handle.is_some()
        && status.volume_group_snapshot_handle == evidence.handle;
    let mut members = BTreeMap::new();
    let mut all_ready = true;
    for (snapshot, content) in &look.members {
        let Some(volume) = content.spec.source.volume_handle.clone() else { continue };
        let of_content = content.status.clone().unwrap_or_default();
        let of_snapshot = snapshot.status.clone().unwrap_or_default();
        let reference = &content.spec.volume_snapshot_ref;
        let ready = of_content.ready_to_use == Some(true) && of_snapshot.ready_to_use == Some(true);
        all_ready &= ready;
        let found = Found {
            snapshot: snapshot.name_any(),
            snapshot_uid: snapshot.metadata.uid.clone(),
            content: content.name_any(),
            settled: SettledMember {
                ready_at: ready.then(|| look.at.clone()),
                handle: of_content.snapshot_handle,
                creation_time: of_content.creation_time,
                bound: bound
                    && reference.uid.is_some()
                    && reference.uid == snapshot.metadata.uid
                    && reference.name == snapshot.metadata.name
                    && of_content.volume_group_snapshot_handle == evidence.handle,
                restore_size: of_content.restore_size,
            },
        };
        members.insert(volume, found);
    }
    // Asked for, cut, and made: each must be the resolved volumes and nothing else.
    let asked: BTreeSet<&String> = look.content.spec.source.volume_handles.iter().collect();
    let cut: BTreeSet<&String> =
        status.volume_snapshot_info_list.iter().map(|one| &one.volume_handle).collect();
    let resolved: BTreeSet<&String> = wanted.iter().collect();
    let made: BTreeSet<&String> = members.keys().collect();
    let wrong = asked != resolved || (!cut.is_empty() && cut != resolved) || !made.is_subset(&resolved);
    let exact = if wrong { Some(false) } else { (made == resolved).then_some(true) };
    let ready = exact == Some(true)
        && all_ready
        && status.ready_to_use == Some(true)
        && of_group.ready_to_use == Some(true);
    Seen { exact, ready, members }
}

/// Makes the groups of a point keep: their contents become `Retain` and say what they are.
///
/// # Errors
/// A request failed; calling it again finishes it.
pub(super) async fn keep(
    context: &Context,
    owner: &Owner,
    status: &BackupStatus,
    settled: &Settled,
) -> Result<(), RequestError> {
    let groups: Api<VolumeGroupSnapshot> = Api::namespaced(context.client.clone(), &owner.namespace);
    let contents: Api<VolumeGroupSnapshotContent> = Api::all(context.client.clone());
    let params = PatchParams::default();
    let mut kept = BTreeSet::new();
    for member in &settled.members {
        let Some(group) = &member.group else { continue };
        let Some(content) = &group.content else { continue };
        if !kept.insert(group.volume_group_snapshot.clone()) {
            continue;
        }
        let mut annotations = annotations(status, settled, member);
        // Those of one claim and one application are on the members.
        annotations.retain(|key, _| *key == CONSISTENCY_ANNOTATION || *key == super::WINDOW_ANNOTATION);
        let retain = Patch::Merge(serde_json::json!({
            "metadata": {"labels": owner.content_labels(), "annotations": annotations},
            "spec": {"deletionPolicy": "Retain"},
        }));
        let request = contents.patch(content, &params, &retain);
        bounded(format!("keep group snapshot content {content}"), request).await?;
        let tell = Patch::Merge(serde_json::json!({"metadata": {"annotations": annotations}}));
        let name = &group.volume_group_snapshot;
        bounded(format!("annotate group snapshot {name}"), groups.patch(name, &params, &tell)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
    use stillpoint_api::group_snapshot::{
        VolumeGroupSnapshotContentSpec, VolumeGroupSnapshotContentStatus, VolumeGroupSnapshotSpec,
        VolumeGroupSnapshotStatus, VolumeSnapshotInfo,
    };
    use stillpoint_api::snapshot::{
        SnapshotRef, VolumeSnapshotContentSpec, VolumeSnapshotContentStatus, VolumeSnapshotSpec,
        VolumeSnapshotStatus,
    };

    fn evidence() -> GroupEvidence {
        GroupEvidence {
            volume_group_snapshot: "g".into(),
            uid: Some("group-uid".into()),
            content: Some("gc".into()),
            handle: Some("gh".into()),
            exact: None,
        }
    }

    fn member(volume: &str) -> (VolumeSnapshot, VolumeSnapshotContent) {
        let (name, uid) = (format!("s-{volume}"), format!("u-{volume}"));
        let mut snapshot = VolumeSnapshot::new(&name, VolumeSnapshotSpec::default());
        snapshot.metadata.uid = Some(uid.clone());
        snapshot.metadata.owner_references = Some(vec![OwnerReference {
            kind: "VolumeGroupSnapshot".into(),
            uid: "group-uid".into(),
            ..OwnerReference::default()
        }]);
        snapshot.status =
            Some(VolumeSnapshotStatus { ready_to_use: Some(true), ..VolumeSnapshotStatus::default() });
        let mut content =
            VolumeSnapshotContent::new(&format!("c-{volume}"), VolumeSnapshotContentSpec::default());
        content.spec.source.volume_handle = Some(volume.into());
        content.spec.volume_snapshot_ref =
            SnapshotRef { namespace: Some("ns".into()), name: Some(name), uid: Some(uid) };
        content.status = Some(VolumeSnapshotContentStatus {
            snapshot_handle: Some(format!("h-{volume}")),
            ready_to_use: Some(true),
            volume_group_snapshot_handle: Some("gh".into()),
            ..VolumeSnapshotContentStatus::default()
        });
        (snapshot, content)
    }

    /// A group over these volumes: asked for, cut, and made.
    fn group(asked: &[&str], cut: &[&str], made: &[&str]) -> Look {
        let mut group = VolumeGroupSnapshot::new("g", VolumeGroupSnapshotSpec::default());
        group.metadata.uid = Some("group-uid".into());
        group.status = Some(VolumeGroupSnapshotStatus {
            bound_volume_group_snapshot_content_name: Some("gc".into()),
            ready_to_use: Some(true),
            ..VolumeGroupSnapshotStatus::default()
        });
        let mut content = VolumeGroupSnapshotContent::new("gc", VolumeGroupSnapshotContentSpec::default());
        content.spec.source.volume_handles = asked.iter().map(|one| (*one).to_owned()).collect();
        content.spec.volume_group_snapshot_ref.uid = Some("group-uid".into());
        let info = |volume: &&str| VolumeSnapshotInfo {
            volume_handle: (*volume).to_owned(),
            ..VolumeSnapshotInfo::default()
        };
        content.status = Some(VolumeGroupSnapshotContentStatus {
            volume_group_snapshot_handle: Some("gh".into()),
            ready_to_use: Some(true),
            volume_snapshot_info_list: cut.iter().map(info).collect(),
            ..VolumeGroupSnapshotContentStatus::default()
        });
        let members = made.iter().map(|volume| member(volume)).collect();
        Look { group, content, members, at: MicroTime(jiff::Timestamp::UNIX_EPOCH) }
    }

    fn seen(look: &Look) -> Seen {
        judge(&evidence(), &["a", "b"].map(str::to_owned).into(), look)
    }

    const AB: &[&str] = &["a", "b"];

    #[test]
    fn a_group_of_exactly_the_resolved_volumes_is_ready_with_its_members() {
        let seen = seen(&group(AB, AB, AB));
        assert_eq!((seen.exact, seen.ready), (Some(true), true));
        let found = &seen.members["b"];
        assert_eq!((found.snapshot.as_str(), found.content.as_str()), ("s-b", "c-b"));
        assert!(found.settled.bound && found.settled.ready_at.is_some());
        assert_eq!(found.settled.handle.as_deref(), Some("h-b"));
    }

    #[test]
    fn a_volume_too_many_or_too_few_is_seen_wherever_it_appears() {
        for look in [
            group(&["a", "b", "x"], AB, AB),
            group(&["a"], &["a"], &["a"]),
            group(AB, &["a"], &["a"]),
            group(AB, &["a", "x"], &["a"]),
            group(AB, &[], &["a", "x"]),
            group(AB, AB, &["a", "b", "x"]),
        ] {
            assert_eq!(seen(&look).exact, Some(false));
        }
    }

    #[test]
    fn members_that_are_not_made_yet_are_waited_for() {
        let seen = seen(&group(AB, AB, &["a"]));
        assert_eq!((seen.exact, seen.ready), (None, false));
    }

    #[test]
    fn only_a_content_of_our_own_group_and_handle_binds_its_members() {
        let bends: [fn(&mut Look); 5] = [
            |look| look.content.spec.volume_group_snapshot_ref.uid = Some("other".into()),
            |look| look.content.status.as_mut().unwrap().volume_group_snapshot_handle = Some("other".into()),
            |look| look.group.status.as_mut().unwrap().bound_volume_group_snapshot_content_name = None,
            |look| look.members[0].1.spec.volume_snapshot_ref.uid = Some("other".into()),
            |look| look.members[0].1.status.as_mut().unwrap().volume_group_snapshot_handle = None,
        ];
        for (index, bend) in bends.iter().enumerate() {
            let mut look = group(AB, AB, AB);
            bend(&mut look);
            assert!(!seen(&look).members["a"].settled.bound, "bend {index}");
        }
    }

    #[test]
    fn a_snapshot_of_another_group_is_no_member() {
        let (snapshot, _) = member("a");
        assert!(is_member(&snapshot, "group-uid"));
        assert!(!is_member(&snapshot, "other"));
    }
}
