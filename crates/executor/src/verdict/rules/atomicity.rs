//! Rule 8: the cut was atomic for this application.

use stillpoint_api::evidence::{CutKind, GroupKind, MemberEvidence};
use stillpoint_api::template::Layout;

use super::{Checked, count};
use crate::verdict::Case;

pub(in crate::verdict) fn all_cuts_atomic(case: &Case<'_>) -> bool {
    case.members.iter().all(|member| member.storage.cut == CutKind::Atomic)
}

/// Whether all members were cut at one instant, in the order of writes: one volume, or one write-ordered group.
pub(in crate::verdict) fn cut_at_one_instant(case: &Case<'_>) -> bool {
    case.members.len() == 1 || are_one_cut(&case.members)
}

/// Whether these members are one write-ordered group.
pub(in crate::verdict) fn are_one_cut(members: &[&MemberEvidence]) -> bool {
    let group =
        |member: &MemberEvidence| member.group.as_ref().map(|group| group.volume_group_snapshot.clone());
    members.first().is_some_and(|first| {
        first.group.is_some()
            && members
                .iter()
                .all(|member| group(member) == group(first) && member.storage.group == GroupKind::WriteOrder)
    })
}

/// The members of one pod that were not cut at one instant, if any pod has such. Pods of one application that share no
/// volume are servers of their own.
pub(crate) fn torn_pod<'m>(members: &[&'m MemberEvidence]) -> Option<(&'m str, Vec<&'m MemberEvidence>)> {
    let pods = members.iter().flat_map(|member| {
        let others = member.also_mounted.iter().map(|mount| (&mount.pod_uid, &mount.pod_name));
        std::iter::once((&member.pod_uid, &member.pod_name)).chain(others)
    });
    pods.map(|(uid, name)| {
        let mounts = |member: &&&MemberEvidence| {
            member.pod_uid == *uid || member.also_mounted.iter().any(|mount| mount.pod_uid == *uid)
        };
        (name.as_str(), members.iter().filter(mounts).copied().collect::<Vec<_>>())
    })
    .find(|(_, of_pod)| of_pod.len() > 1 && !are_one_cut(of_pod))
}

pub(in crate::verdict) fn all_cut(case: &Case<'_>) -> bool {
    case.members.iter().all(|member| member.signal.is_some())
}

/// 8: the cut was atomic for this application.
pub(super) fn atomic_for_this_application(case: &Case<'_>) -> Checked {
    let application = case.application;
    if let Some(member) = case.members.iter().find(|member| member.storage.cut == CutKind::Copy) {
        let unlisted =
            if member.storage.reason.is_empty() { ", which is not in the storage table" } else { "" };
        if application.copy_safe.is_empty() || !case.locks() {
            return Checked::missing(format!(
                "claim {}: driver {}{unlisted} counts as a file by file copy, and the template is not proven for that; \
                 an operator who knows better says so with --storage-trust",
                member.claim_name, member.driver
            ));
        }
    }
    let proven_for_several = case.staged() || (case.locks() && application.layout == Layout::AnyUnderLock);
    if let Some((pod, torn)) = torn_pod(&case.members)
        && !proven_for_several
    {
        return Checked::missing(format!(
            "{} volumes of pod {pod} were cut one by one, and the template is proven for one volume or one write-ordered \
             group",
            torn.len()
        ));
    }
    if !case.locks() && application.crash_safe.is_empty() {
        return Checked::missing(
            "nothing was locked, and the template does not say that the engine recovers",
        );
    }
    let why = case.members.iter().map(|member| member.storage.reason.as_str()).next().unwrap_or("");
    Checked::proved(format!("{} cut atomically ({why})", count(case.members.len(), "volume")))
}
