//! Which members are cut together by one VolumeGroupSnapshot. Pure.
//!
//! One group per driver, kind of group and stage over the whole run: a write-ordered one is a single instant for all
//! applications in it (docs/design/freeze.md §4, rule 8 and `crossConsistent`). Members of different kinds are never in
//! one group, because the whole would be worth no more than its worst part.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use stillpoint_api::evidence::{
    CutSignal, GroupEvidence, GroupKind, MemberEvidence, ResolvedApplication, StorageFact,
};
use stillpoint_api::group_snapshot::{
    DEFAULT_GROUP_CLASS_ANNOTATION, VolumeGroupSnapshot, VolumeGroupSnapshotClass,
};
use stillpoint_api::policy::GroupChoice;

use super::Refusal;
use crate::run::{CutId, CutPlan, MemberId, Plan};
use crate::snapshot_name;

/// A sequential group is no better than its volumes one by one, but it is one request. With upstream's client rate two
/// snapshots fit into the burst and every further one waits for more than a second (docs/design/freeze.md §9), so from
/// three volumes on one request shortens the window.
const SHORTENS_FROM: usize = 3;

/// One group of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunGroup {
    /// The cut it is.
    pub cut: CutId,
    /// Name of the VolumeGroupSnapshot; carries the attempt's nonce, never reused.
    pub name: String,
    /// Its class.
    pub class: String,
    /// Value of the label that its claims carry meanwhile; this run's and this group's alone.
    pub label: String,
    /// Its claims: exactly these may carry the label.
    pub claims: BTreeSet<String>,
    /// What tells that it is cut: the latest that any member needs.
    pub signal: CutSignal,
}

/// What is asked for, and what the cluster has for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupOptions<'a> {
    /// As the policy says.
    pub(super) choice: GroupChoice,
    /// All classes of groups; `None`: nobody serves them.
    pub(super) classes: Option<&'a [VolumeGroupSnapshotClass]>,
    /// Name of the Backup, its UID, number and nonce of the attempt: what names and labels are made of.
    pub(super) backup: &'a str,
    pub(super) backup_uid: &'a str,
    pub(super) attempt: u32,
    pub(super) nonce: &'a str,
}

/// Members that could be one group.
type Buckets = BTreeMap<(String, u8, u32), Vec<MemberId>>;

/// Joins single cuts into groups where that is asked for, or helps.
///
/// # Errors
/// A group is required and there cannot be one.
pub(super) fn join(
    options: &GroupOptions<'_>,
    applications: &[ResolvedApplication],
    plan: &mut Plan,
) -> Result<Vec<RunGroup>, Refusal> {
    let mut chosen: Vec<(Vec<MemberId>, String)> = Vec::new();
    let buckets = match options.choice {
        GroupChoice::Never => return Ok(Vec::new()),
        GroupChoice::Auto => buckets(plan),
        GroupChoice::Required => {
            let buckets = buckets(plan);
            one_bucket_each(plan, applications, &buckets)?;
            buckets
        }
    };
    for ((driver, _, _), members) in buckets {
        if volumes(plan, &members).len() < 2 {
            continue;
        }
        let class = class(options.classes, &driver);
        match (options.choice, class) {
            (GroupChoice::Required, Err(why)) => return Err(impossible(plan, &members, &why)),
            (GroupChoice::Required, Ok(class)) => chosen.push((members, class)),
            (GroupChoice::Auto, Ok(class)) if helps(plan, applications, &members) => {
                chosen.push((members, class));
            }
            (GroupChoice::Auto | GroupChoice::Never, Ok(_) | Err(_)) => {}
        }
    }
    Ok(replace(options, plan, chosen))
}

/// Cuts of one driver, kind and stage, in the order of the plan. Only cuts of one member are joined.
fn buckets(plan: &Plan) -> Buckets {
    let mut buckets = Buckets::new();
    for cut in plan.cuts.iter().filter(|cut| !cut.group) {
        for id in &cut.members {
            let Some(member) = plan.members.get(id.0) else { continue };
            let kind = match member.storage.group {
                GroupKind::WriteOrder => 0,
                GroupKind::Sequential => 1,
            };
            buckets.entry((member.driver.clone(), kind, cut.stage)).or_default().push(*id);
        }
    }
    buckets
}

fn member(plan: &Plan, id: MemberId) -> Option<&MemberEvidence> {
    plan.members.get(id.0)
}

fn volumes(plan: &Plan, members: &[MemberId]) -> BTreeSet<String> {
    members.iter().filter_map(|id| member(plan, *id)).map(|one| one.volume_handle.clone()).collect()
}

fn claims(plan: &Plan, members: &[MemberId]) -> BTreeSet<String> {
    members.iter().filter_map(|id| member(plan, *id)).map(|one| one.claim_name.clone()).collect()
}

/// Whether a group is better than its volumes one by one.
fn helps(plan: &Plan, applications: &[ResolvedApplication], members: &[MemberId]) -> bool {
    let all: Vec<&MemberEvidence> = members.iter().filter_map(|id| member(plan, *id)).collect();
    let listed = |storage: &StorageFact| !storage.reason.is_empty();
    if !all.iter().all(|member| listed(&member.storage)) {
        return false;
    }
    if all.iter().all(|member| member.storage.group == GroupKind::WriteOrder) {
        return true;
    }
    // One after the other anyway; only somebody who is stopped meanwhile gains anything.
    let locked = |member: &&MemberEvidence| {
        applications.iter().any(|one| one.name == member.application && one.hold.locks())
    };
    volumes(plan, members).len() >= SHORTENS_FROM && all.iter().all(locked)
}

/// A required group has all volumes that an application is cut on in one stage.
fn one_bucket_each(
    plan: &Plan,
    applications: &[ResolvedApplication],
    buckets: &Buckets,
) -> Result<(), Refusal> {
    for application in applications {
        let mut stages: BTreeMap<u32, Vec<(&str, Vec<MemberId>)>> = BTreeMap::new();
        for ((driver, _, stage), members) in buckets {
            let of: Vec<MemberId> = members
                .iter()
                .copied()
                .filter(|id| member(plan, *id).is_some_and(|one| one.application == application.name))
                .collect();
            if !of.is_empty() {
                stages.entry(*stage).or_default().push((driver, of));
            }
        }
        if let Some(parts) = stages.values().find(|parts| parts.len() > 1) {
            let parts: Vec<String> = parts
                .iter()
                .map(|(driver, members)| {
                    let claims = claims(plan, members).into_iter().collect::<Vec<_>>().join(", ");
                    format!("{claims} on {driver}")
                })
                .collect();
            return Err(Refusal::stands(
                "GroupImpossible",
                format!(
                    "application {}: snapshot.group is Required and its volumes cannot be one group ({}): a group has one \
                     driver, and classes of it that are cut alike; move the claims to one StorageClass, or use group: Auto",
                    application.name,
                    parts.join("; ")
                ),
            ));
        }
    }
    Ok(())
}

/// The class for groups of a driver, or why there is none.
fn class(classes: Option<&[VolumeGroupSnapshotClass]>, driver: &str) -> Result<String, String> {
    let Some(classes) = classes else {
        return Err(
            "the cluster does not serve groupsnapshot.storage.k8s.io/v1 (external-snapshotter 8.6 with the \
                    feature gate CSIVolumeGroupSnapshot does)"
                .to_owned(),
        );
    };
    let of_driver: Vec<&VolumeGroupSnapshotClass> =
        classes.iter().filter(|class| class.driver == driver).collect();
    let default = |class: &&&VolumeGroupSnapshotClass| {
        let annotations = class.metadata.annotations.as_ref();
        annotations
            .and_then(|all| all.get(DEFAULT_GROUP_CLASS_ANNOTATION))
            .is_some_and(|value| value == "true")
    };
    let chosen = match of_driver.as_slice() {
        [only] => Some(*only),
        several => several.iter().find(default).copied(),
    };
    chosen.and_then(|class| class.metadata.name.clone()).ok_or_else(|| {
        if of_driver.is_empty() {
            format!("there is no VolumeGroupSnapshotClass for driver {driver}; create one")
        } else {
            format!(
                "driver {driver} has several VolumeGroupSnapshotClasses and none is marked as the default \
                 ({DEFAULT_GROUP_CLASS_ANNOTATION}: \"true\")"
            )
        }
    })
}

fn impossible(plan: &Plan, members: &[MemberId], why: &str) -> Refusal {
    let claims = claims(plan, members).into_iter().collect::<Vec<_>>().join(", ");
    Refusal::stands(
        "GroupImpossible",
        format!(
            "snapshot.group is Required and claims {claims} cannot be cut as a group: {why}; or use group: Auto"
        ),
    )
}

/// Puts the chosen groups in the place of the single cuts of their members.
fn replace(
    options: &GroupOptions<'_>,
    plan: &mut Plan,
    chosen: Vec<(Vec<MemberId>, String)>,
) -> Vec<RunGroup> {
    let mut groups = Vec::new();
    let grouped: BTreeSet<MemberId> =
        chosen.iter().flat_map(|(members, _)| members.iter().copied()).collect();
    let stage_of = |plan: &Plan, id: MemberId| {
        plan.cuts.iter().find(|cut| cut.members.contains(&id)).map_or(0, |cut| cut.stage)
    };
    let mut cuts: Vec<CutPlan> = Vec::new();
    for (index, (members, class)) in chosen.into_iter().enumerate() {
        let Some(first) = members.first() else { continue };
        let stage = stage_of(plan, *first);
        let name = snapshot_name::of_group(options.backup, options.nonce, index);
        let late =
            |id: &MemberId| member(plan, *id).is_some_and(|one| one.storage.signal == CutSignal::Ready);
        let signal = if members.iter().any(late) { CutSignal::Ready } else { CutSignal::Handle };
        groups.push(RunGroup {
            cut: CutId(cuts.len()),
            name: name.clone(),
            class,
            label: label_value(options.backup_uid, options.attempt, index),
            claims: claims(plan, &members),
            signal,
        });
        for id in &members {
            if let Some(member) = plan.members.get_mut(id.0) {
                // Its own snapshot is made afterwards, under a name that is a hash; settling finds it.
                member.volume_snapshot.clear();
                member.group =
                    Some(GroupEvidence { volume_group_snapshot: name.clone(), ..GroupEvidence::default() });
            }
        }
        cuts.push(CutPlan { members, group: true, stage });
    }
    cuts.extend(plan.cuts.drain(..).filter(|cut| !cut.members.iter().any(|id| grouped.contains(id))));
    plan.cuts = cuts;
    groups
}

/// Value of [`stillpoint_api::backup::GROUP_LABEL`] for one group of one attempt: never used again, since attempts are
/// counted.
pub fn label_value(backup_uid: &str, attempt: u32, group: usize) -> String {
    format!("{backup_uid}-{attempt}-{group}")
}

/// Claims that a group snapshot of somebody is about to cut, or whose group is being deleted, with its name.
pub(super) fn in_flight(
    groups: &[VolumeGroupSnapshot],
    claims: &[&PersistentVolumeClaim],
) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for group in groups {
        let status = group.status.clone().unwrap_or_default();
        let cut = status.creation_time.is_some() || status.ready_to_use == Some(true);
        let Some(selector) = &group.spec.source.selector else { continue };
        if cut && group.metadata.deletion_timestamp.is_none() {
            continue;
        }
        for claim in claims {
            let labels = claim.labels();
            if selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value)) {
                found.insert(claim.name_any(), group.name_any());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use stillpoint_api::clock::Mono;
    use stillpoint_api::evidence::{CutKind, HoldKind};
    use stillpoint_api::group_snapshot::{GroupSelector, VolumeGroupSnapshotSource, VolumeGroupSnapshotSpec};

    fn one(application: &str, claim: &str, driver: &str, group: GroupKind) -> MemberEvidence {
        MemberEvidence {
            application: application.into(),
            claim_name: claim.into(),
            volume_handle: format!("v-{claim}"),
            driver: driver.into(),
            volume_snapshot: format!("s-{claim}"),
            storage: StorageFact {
                cut: CutKind::Atomic,
                group,
                signal: CutSignal::Handle,
                reason: "ours".into(),
            },
            ..MemberEvidence::default()
        }
    }

    fn plan(members: Vec<MemberEvidence>) -> Plan {
        Plan {
            required: true,
            max_hold: Duration::from_secs(10),
            acquire_timeout: Duration::from_secs(2),
            stack_patience: Duration::from_secs(5),
            prepares: Vec::new(),
            holds: Vec::new(),
            cuts: (0..members.len()).map(|index| CutPlan::single(MemberId(index))).collect(),
            members,
            fence: Mono::default(),
            api_clock: None,
        }
    }

    fn applications(plan: &Plan, hold: HoldKind) -> Vec<ResolvedApplication> {
        let names: BTreeSet<String> = plan.members.iter().map(|member| member.application.clone()).collect();
        let made = |name| ResolvedApplication { name, hold, ..ResolvedApplication::default() };
        names.into_iter().map(made).collect()
    }

    fn classes() -> Vec<VolumeGroupSnapshotClass> {
        let class = |name: &str, driver: &str| VolumeGroupSnapshotClass {
            metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
            driver: driver.into(),
            deletion_policy: "Delete".into(),
        };
        vec![class("vgs", "d"), class("a", "two"), class("b", "two")]
    }

    fn options(choice: GroupChoice, classes: Option<&[VolumeGroupSnapshotClass]>) -> GroupOptions<'_> {
        GroupOptions { choice, classes, backup: "b", backup_uid: "uid", attempt: 2, nonce: "nnnnnnnnnnnn" }
    }

    /// The claims of each cut; a group is in brackets.
    fn cuts(plan: &Plan) -> Vec<String> {
        plan.cuts
            .iter()
            .map(|cut| {
                let names = claims(plan, &cut.members).into_iter().collect::<Vec<_>>().join(" ");
                if cut.group { format!("[{names}]") } else { names }
            })
            .collect()
    }

    fn joined(
        choice: GroupChoice,
        members: Vec<MemberEvidence>,
        hold: HoldKind,
    ) -> Result<Vec<String>, Refusal> {
        let mut plan = plan(members);
        let (classes, applications) = (classes(), applications(&plan, hold));
        let groups = join(&options(choice, Some(&classes)), &applications, &mut plan)?;
        // Every member is in exactly one cut, and the groups are those of the plan.
        let mut all: Vec<usize> =
            plan.cuts.iter().flat_map(|cut| cut.members.iter().map(|id| id.0)).collect();
        all.sort_unstable();
        assert_eq!(all, (0..plan.members.len()).collect::<Vec<_>>());
        for group in &groups {
            let cut = &plan.cuts[group.cut.0];
            assert!(cut.group && claims(&plan, &cut.members) == group.claims);
        }
        assert_eq!(groups.len(), plan.cuts.iter().filter(|cut| cut.group).count());
        Ok(cuts(&plan))
    }

    const ORDERED: GroupKind = GroupKind::WriteOrder;
    const SEQUENTIAL: GroupKind = GroupKind::Sequential;

    #[test]
    fn write_ordered_volumes_of_all_applications_are_one_group() {
        let members = || {
            vec![
                one("db", "data", "d", ORDERED),
                one("db", "log", "d", ORDERED),
                one("files", "files", "d", ORDERED),
            ]
        };
        assert_eq!(joined(GroupChoice::Auto, members(), HoldKind::Session).unwrap(), ["[data files log]"]);
        assert_eq!(joined(GroupChoice::Auto, members(), HoldKind::None).unwrap(), ["[data files log]"]);
        assert_eq!(
            joined(GroupChoice::Never, members(), HoldKind::Session).unwrap(),
            ["data", "log", "files"]
        );
    }

    #[test]
    fn what_is_cut_differently_is_never_in_one_group() {
        let members = vec![
            one("db", "a", "d", ORDERED),
            one("db", "b", "d", ORDERED),
            one("db", "c", "d", SEQUENTIAL),
            one("db", "e", "other", ORDERED),
        ];
        assert_eq!(joined(GroupChoice::Auto, members, HoldKind::Session).unwrap(), ["[a b]", "c", "e"]);
    }

    #[test]
    fn a_sequential_group_is_used_only_where_it_shortens_a_lock() {
        let members = |count: usize| {
            ["a", "b", "c"][..count].iter().map(|claim| one("db", claim, "d", SEQUENTIAL)).collect::<Vec<_>>()
        };
        assert_eq!(joined(GroupChoice::Auto, members(3), HoldKind::Session).unwrap(), ["[a b c]"]);
        assert_eq!(joined(GroupChoice::Auto, members(2), HoldKind::Session).unwrap(), ["a", "b"]);
        assert_eq!(joined(GroupChoice::Auto, members(3), HoldKind::Observer).unwrap(), ["a", "b", "c"]);
        assert_eq!(joined(GroupChoice::Required, members(2), HoldKind::Observer).unwrap(), ["[a b]"]);
    }

    #[test]
    fn an_unlisted_driver_is_grouped_only_on_demand() {
        let unlisted = || {
            ["a", "b"].map(|claim| {
                let mut member = one("db", claim, "d", SEQUENTIAL);
                member.storage = StorageFact::default();
                member
            })
        };
        assert_eq!(joined(GroupChoice::Auto, unlisted().into(), HoldKind::Session).unwrap(), ["a", "b"]);
        assert_eq!(joined(GroupChoice::Required, unlisted().into(), HoldKind::Session).unwrap(), ["[a b]"]);
    }

    #[test]
    fn members_of_two_stages_are_two_groups() {
        let mut members: Vec<MemberEvidence> =
            ["a", "b", "c", "e"].iter().map(|claim| one("db", claim, "d", ORDERED)).collect();
        members.reverse();
        let mut plan = plan(members);
        for cut in &mut plan.cuts[2..] {
            cut.stage = 1;
        }
        let (classes, applications) = (classes(), applications(&plan, HoldKind::Session));
        let groups = join(&options(GroupChoice::Auto, Some(&classes)), &applications, &mut plan).unwrap();
        assert_eq!(cuts(&plan), ["[c e]", "[a b]"]);
        assert_eq!(plan.cuts.iter().map(|cut| cut.stage).collect::<Vec<_>>(), [0, 1]);
        let labels: Vec<&str> = groups.iter().map(|group| group.label.as_str()).collect();
        assert_eq!(labels, ["uid-2-0", "uid-2-1"]);
    }

    #[test]
    fn one_volume_needs_no_group() {
        let one = || vec![one("db", "a", "d", ORDERED)];
        assert_eq!(joined(GroupChoice::Auto, one(), HoldKind::Session).unwrap(), ["a"]);
        assert_eq!(joined(GroupChoice::Required, one(), HoldKind::Session).unwrap(), ["a"]);
    }

    #[test]
    fn a_required_group_that_cannot_be_is_refused_with_the_reason() {
        for (members, why) in [
            (vec![one("db", "a", "d", ORDERED), one("db", "b", "other", ORDERED)], "b on other"),
            (vec![one("db", "a", "d", ORDERED), one("db", "b", "d", SEQUENTIAL)], "cut alike"),
            (
                vec![one("db", "a", "none", ORDERED), one("db", "b", "none", ORDERED)],
                "no VolumeGroupSnapshotClass",
            ),
            (vec![one("db", "a", "two", ORDERED), one("db", "b", "two", ORDERED)], "none is marked"),
        ] {
            let refusal = joined(GroupChoice::Required, members, HoldKind::Session).unwrap_err();
            assert_eq!((refusal.reason, refusal.may_pass), ("GroupImpossible", false));
            assert!(refusal.message.contains(why), "{}", refusal.message);
        }
        let mut unserved = plan(vec![one("db", "a", "d", ORDERED), one("db", "b", "d", ORDERED)]);
        let applications = applications(&unserved, HoldKind::Session);
        let refusal = join(&options(GroupChoice::Required, None), &applications, &mut unserved).unwrap_err();
        assert!(refusal.message.contains("does not serve groupsnapshot"), "{}", refusal.message);
        assert!(join(&options(GroupChoice::Auto, None), &applications, &mut unserved).unwrap().is_empty());
        assert_eq!(cuts(&unserved), ["a", "b"]);
    }

    #[test]
    fn the_latest_signal_of_its_members_is_the_groups() {
        let mut members = vec![one("db", "a", "d", ORDERED), one("db", "b", "d", ORDERED)];
        members[1].storage.signal = CutSignal::Ready;
        let mut plan = plan(members);
        let (classes, applications) = (classes(), applications(&plan, HoldKind::Session));
        let groups = join(&options(GroupChoice::Auto, Some(&classes)), &applications, &mut plan).unwrap();
        assert_eq!(groups[0].signal, CutSignal::Ready);
        let [a, b] = &plan.members[..] else { panic!("two members") };
        assert!(a.group.is_some() && a.group == b.group && a.volume_snapshot.is_empty());
    }

    #[test]
    fn a_group_that_somebody_is_making_is_in_flight_for_the_claims_it_selects() {
        let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let claim = |name: &str, pairs: &[(&str, &str)]| PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(name.into()),
                labels: Some(labels(pairs)),
                ..ObjectMeta::default()
            },
            ..PersistentVolumeClaim::default()
        };
        let group = |pairs: &[(&str, &str)]| {
            VolumeGroupSnapshot::new(
                "theirs",
                VolumeGroupSnapshotSpec {
                    source: VolumeGroupSnapshotSource {
                        selector: Some(GroupSelector { match_labels: labels(pairs) }),
                        volume_group_snapshot_content_name: None,
                    },
                    volume_group_snapshot_class_name: None,
                },
            )
        };
        let (a, b) = (claim("a", &[("x", "1")]), claim("b", &[]));
        let found = |group: VolumeGroupSnapshot| {
            in_flight(&[group], &[&a, &b]).into_keys().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(found(group(&[("x", "1")])), "a");
        assert_eq!(found(group(&[])), "a b", "no label selects every claim");
        let mut cut = group(&[]);
        cut.status = Some(stillpoint_api::group_snapshot::VolumeGroupSnapshotStatus {
            ready_to_use: Some(true),
            ..Default::default()
        });
        assert_eq!(found(cut), "");
    }
}
