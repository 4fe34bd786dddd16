//! After the thaw: waits for the snapshots and judges the evidence with the product's verdict.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use stillpoint_api::backup::BackupStatus;
use stillpoint_api::evidence::{Consistency, MemberEvidence, SettledMember};
use stillpoint_api::policy::Requirement;

use super::api::{Answer, Request, Seen};
use super::mutations::Mutation;
use super::runtime::Handle;
use super::world::World;
use crate::verdict::{Evidence, Judgement, RuleMask, judge};

/// How long a snapshot may take to become usable.
const READY_WITHIN: Duration = Duration::from_secs(6 * 360);
const LOOK_FIRST: Duration = Duration::from_millis(50);

/// What settling found.
#[derive(Debug)]
pub struct Settled {
    /// The members, completed.
    pub members: Vec<MemberEvidence>,
    /// The verdict.
    pub judgement: Judgement,
    /// Whether the point is kept.
    pub keep: bool,
}

/// Waits for the members and judges; none when `stop` has something first.
pub async fn settle(
    handle: &Handle,
    status: &BackupStatus,
    mut stop: impl FnMut(&mut World) -> bool,
) -> Option<Settled> {
    let window = status.window.clone().unwrap_or_default();
    let mut members = status.members.clone();
    let until = handle.mono() + READY_WITHIN;
    for member in &mut members {
        let (uid, content) = match &member.group {
            Some(group) => (group.uid.clone(), group.content.clone()),
            None => (member.volume_snapshot_uid.clone(), member.content.clone()),
        };
        let (Some(uid), Some(_)) = (uid, content) else { continue };
        let mut pause = LOOK_FIRST;
        loop {
            match handle.request(Request::Look(uid.clone())).await {
                Some(Answer::Snapshots(found)) => {
                    let ready = look(handle, member, &found[0]);
                    if ready || handle.mono() >= until {
                        break;
                    }
                }
                Some(Answer::NotFound) => {
                    member.settled = None;
                    break;
                }
                _ => {}
            }
            if handle.pause(pause, &mut stop).await {
                return None;
            }
            pause = (pause * 2).min(Duration::from_secs(300));
        }
    }
    let resolved = status.resolved.clone().unwrap_or_default();
    let rules = handle.with(|world| match world.options.mutation {
        Some(Mutation::NoRule(rule)) => RuleMask::without(rule),
        _ => RuleMask::ALL,
    });
    let evidence = Evidence { only: rules, ..Evidence::new(&resolved, &status.holds, &members, &window) };
    let judgement = judge(&evidence);
    let usable =
        members.iter().any(|member| member.settled.as_ref().is_some_and(|found| found.ready_at.is_some()));
    let keep = match resolved.requirement {
        Requirement::Required => judgement.consistency == Consistency::Application,
        Requirement::BestEffort => usable,
    };
    Some(Settled { members, judgement, keep })
}

/// One look at a member; true when it is ready.
fn look(handle: &Handle, member: &mut MemberEvidence, seen: &Seen) -> bool {
    let Some(content) = &seen.content else { return false };
    if let Some(group) = &mut member.group {
        // Each member's own snapshot is made after the group was cut.
        let ours = handle.with(|world| {
            seen.volumes.iter().any(|volume| world.volumes[*volume].handle == member.volume_handle)
        });
        let all = handle.with(|world| world.snapshots[seen.id].volumes.len());
        group.exact = Some(ours && seen.volumes.len() == all);
        member.volume_snapshot = format!("{}-{}", group.volume_group_snapshot, member.claim_name);
        member.handle.clone_from(&content.handle);
    }
    let bound = match &member.group {
        Some(group) => group.uid.as_ref() == Some(&content.snapshot_uid),
        None => member.volume_snapshot_uid.as_ref() == Some(&content.snapshot_uid),
    };
    member.settled = Some(SettledMember {
        ready_at: content.ready.then(|| MicroTime(handle.wall())),
        handle: content.handle.clone(),
        creation_time: content.creation_time,
        bound,
        restore_size: Some(1 << 30),
    });
    content.ready
}
