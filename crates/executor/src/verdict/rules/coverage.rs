//! Rule 4: what was held is what was cut.

use stillpoint_api::evidence::{HoldAnswer, HoldEvidence, HoldKind};
use stillpoint_api::template::LocalValue;

use super::{Checked, pod};
use crate::verdict::Case;

/// 4: the hold covers the cut: local server, written paths on members, the cut volume is the mounted one, and pods
/// and containers are the same at READY and THAWED.
pub(super) fn the_hold_covers_the_cut(case: &Case<'_>) -> Checked {
    let mut warnings = Vec::new();
    if !cut_volume_is_the_mounted_one(case) {
        return Checked::contradiction("a snapshot was cut from another volume than the one the pod mounts");
    }
    if case.members.is_empty() {
        return Checked::missing("the application has no members");
    }
    let application = case.application;
    if application.pods_at_ready.is_empty() || application.pods_at_ready != application.pods_at_thawed {
        return Checked::missing(format!(
            "the selected pods changed from {:?} to {:?}",
            application.pods_at_ready, application.pods_at_thawed
        ));
    }
    if application.chosen_at_ready != application.chosen_at_thawed {
        return Checked::missing(format!(
            "the role rule chose {:?} and then {:?}",
            application.chosen_at_ready, application.chosen_at_thawed
        ));
    }
    if application.hold == HoldKind::None {
        return Checked::proved("the cut volumes are the mounted ones, and the pods stayed the same");
    }
    if case.holds.is_empty() {
        return Checked::missing("there is no record of a hold");
    }
    for hold in &case.holds {
        if hold.container_at_ready.is_none() || hold.container_at_ready != hold.container_at_thawed {
            return Checked::missing(format!("{} is not the container it was at READY", pod(hold)));
        }
        if let Some(why) = not_local(case, hold) {
            return Checked::missing(format!("{}: {why}", pod(hold)));
        }
        if let Some(why) = uncovered_path(case, hold) {
            return Checked::missing(format!("{}: {why}", pod(hold)));
        }
    }
    if !application.data_paths.is_empty() {
        warnings.push(format!(
            "{}: only {} was checked to lie on a member; other paths the server writes are not checked",
            application.name,
            application.data_paths.join(", ")
        ));
    }
    Checked::proved("local server, its data directory on a member, the same pods and containers throughout")
        .warn(warnings)
}

/// Whether every content was made from the volume that the pod mounts.
pub(in crate::verdict) fn cut_volume_is_the_mounted_one(case: &Case<'_>) -> bool {
    case.members.iter().all(|member| {
        !member.volume_handle.is_empty()
            && member.content_volume_handle.as_deref().is_none_or(|handle| handle == member.volume_handle)
            && (member.signal.is_none() || member.content_volume_handle.is_some())
    })
}

/// Whether the server says that it is this container's.
pub(crate) fn local_gap(
    rule: Option<&stillpoint_api::template::LocalRule>,
    pod_name: &str,
    answer: &HoldAnswer,
) -> Option<String> {
    let Some(rule) = rule else {
        return Some("the template does not say how the server tells that it is local".into());
    };
    let said = answer.identity.get(&rule.key).map_or("", String::as_str);
    let local = match rule.equals {
        LocalValue::True => ["true", "t", "1"].contains(&said),
        LocalValue::PodHostname => said == pod_name,
    };
    (!local).then(|| format!("the server is not this container's: it says {}={said:?}", rule.key))
}

fn not_local(case: &Case<'_>, hold: &HoldEvidence) -> Option<String> {
    match case.application.hold {
        HoldKind::Session | HoldKind::Observer => {}
        // They run in the container itself.
        HoldKind::Commands | HoldKind::Direct | HoldKind::None => return None,
    }
    let answer = hold.frozen.as_ref().or(hold.ready.as_ref())?;
    local_gap(case.application.local.as_ref(), &hold.pod_name, answer)
}

fn uncovered_path(case: &Case<'_>, hold: &HoldEvidence) -> Option<String> {
    path_gap(
        &case.application.data_paths,
        &hold.facts,
        &hold.foreign_mounts,
        case.members.iter().flat_map(|member| member.mounted_in(&hold.pod_uid)).chain(&hold.mount_paths),
    )
}

/// Whether `path` is `mount` or lies below it.
pub(crate) fn lies_on(path: &str, mount: &str) -> bool {
    let mount = mount.trim_end_matches('/');
    // What leaves a directory again may lie anywhere.
    if path.split('/').any(|part| part == "..") {
        return false;
    }
    path == mount || path.strip_prefix(mount).is_some_and(|rest| rest.starts_with('/'))
}

/// Which path the server writes is on no member, if any. A mount that is no member hides the member it lies on.
pub(crate) fn path_gap<'m>(
    names: &[String],
    facts: &std::collections::BTreeMap<String, String>,
    foreign: &[String],
    members: impl Iterator<Item = &'m String> + Clone,
) -> Option<String> {
    for name in names {
        let Some(path) = facts.get(name) else {
            return Some(format!("it did not tell its {name}"));
        };
        let longest = |mount: &String| mount.trim_end_matches('/').len();
        let member = members.clone().filter(|mount| lies_on(path, mount)).map(longest).max();
        let hidden = foreign.iter().filter(|mount| lies_on(path, mount)).map(longest).max();
        if member.is_none() || hidden > member {
            return Some(format!("its {name} {path} is on no snapshotted volume"));
        }
    }
    None
}
