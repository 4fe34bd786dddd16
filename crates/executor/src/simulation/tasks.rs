//! What a process of the controller does all the time: renew its Lease, find Backups that need work, sweep.

use std::time::Duration;

use stillpoint_api::backup::Phase;

use super::S;
use super::api::{Answer, Request};
use super::conductor::work;
use super::mutations::Mutation;
use super::ownership::{OwnLease, Sighting, Timing, run_of, stray};
use super::runtime::Handle;
use super::world::{Work, World};
use crate::run::Event;

/// What a process does from its start.
pub fn tasks(handle: &Handle) -> Vec<Work> {
    vec![
        Box::pin(renew(handle.clone())),
        Box::pin(controller(handle.clone())),
        Box::pin(sweeper(handle.clone())),
    ]
}

/// Keeps the replica's Lease, and watches the others'.
async fn renew(handle: Handle) {
    let timing = Timing::default();
    let mut lost = false;
    loop {
        let identity = handle.with(|world| world.replicas[handle.replica].identity.clone());
        let (asked, sent) = (handle.mono(), handle.with(|world| world.now));
        let answer = handle.request(Request::Renew(identity)).await;
        let now = handle.mono();
        handle.with(|world| {
            let replica = &mut world.replicas[handle.replica];
            if let Some(Answer::Leases(leases)) = answer {
                let sightings: Vec<Sighting> = leases
                    .iter()
                    .map(|(holder, renewals)| Sighting {
                        holder: holder.clone(),
                        version: renewals.to_string(),
                        lease: timing.lease,
                    })
                    .collect();
                replica.peers.observe(&sightings, asked, now);
                replica.own = OwnLease::renewed_at(asked);
                replica.renewed = Some(sent);
                lost = false;
                if let Some(fence) = replica.own.fence(timing.lease) {
                    tell_all(world, handle.replica, &Event::ClaimRenewed { fence });
                }
            } else if !lost && replica.own.ends(timing.lease).is_some_and(|ends| now > ends) {
                lost = true;
                world.coverage.outcome("claim lost");
                let why = "this replica could not renew its Lease".to_owned();
                tell_all(world, handle.replica, &Event::ClaimLost { why });
            }
        });
        // Nothing depends on a claim while no run is under way.
        let idle = handle.with(|world| world.api.backups.iter().all(super::api::Stored::finished));
        handle.sleep(if idle { Duration::from_secs(120) } else { timing.renew }).await;
    }
}

fn tell_all(world: &mut World, replica: usize, event: &Event) {
    for mailbox in 0..world.mailboxes.len() {
        if world.mailboxes[mailbox].replica == replica {
            world.tell(mailbox, event.clone());
        }
    }
}

/// Finds Backups that need work.
async fn controller(handle: Handle) {
    loop {
        if handle.with(|world| world.replicas[handle.replica].stopping) {
            return shut_down(handle).await;
        }
        for backup in 0..handle.with(|world| world.api.backups.len()) {
            let free = handle.with(|world| {
                let stored = &world.api.backups[backup];
                let needs = stored.created && !stored.finished();
                needs && world.replicas[handle.replica].working.insert(backup)
            });
            if free {
                let worker = handle.clone();
                handle.spawn(async move {
                    work(&worker, backup).await;
                    worker.with(|world| world.replicas[worker.replica].working.remove(&backup));
                });
            }
        }
        let idle = handle.with(|world| world.api.backups.iter().all(super::api::Stored::finished));
        handle.sleep(Duration::from_millis(if idle { 30_000 } else { 1_500 })).await;
    }
}

/// Waits for the runs to thaw and record, and ends the process.
async fn shut_down(handle: Handle) {
    handle.pause(Duration::from_secs(25), |world| world.replicas[handle.replica].working.is_empty()).await;
    handle.with(|world| {
        world.coverage.outcome("replica shut down");
        let lasts = world.rng.between(S, 20 * S);
        world.crash(handle.replica, lasts);
    });
}

/// Removes what is left of runs that are gone.
async fn sweeper(handle: Handle) {
    let timing = Timing::default();
    loop {
        let resting = handle
            .with(|world| world.replicas[handle.replica].windows > 0 || world.mutated(Mutation::NoCleanUp));
        if !resting && handle.replica == 0 {
            for backup in 0..handle.with(|world| world.api.backups.len()) {
                sweep(&handle, backup).await;
            }
        }
        handle.sleep(timing.sweep).await;
    }
}

async fn sweep(handle: &Handle, backup: usize) {
    // What is ours first and the Backup after it, as the product does: a run that begins meanwhile has nothing in these lists.
    let locks = handle.with(|world| world.api.locks_of(&run_of(backup)));
    let Some(Answer::Snapshots(found)) = handle.request(Request::List { backup, attempt: None }).await else {
        return;
    };
    let status = match handle.request(Request::GetBackup(backup)).await {
        Some(Answer::Backup(_, status, _)) => Some(status),
        Some(Answer::NotFound) => None,
        _ => return,
    };
    if status.as_ref().is_none_or(|status| matches!(status.phase, Phase::Succeeded | Phase::Failed)) {
        // What a run that is over left behind: it ended only after its holds were thawed or proven gone.
        for (key, lock) in locks {
            handle.with(|world| world.coverage.outcome("left-over workload lock swept"));
            handle.request(Request::Unlock { key, version: lock.version }).await;
        }
    }
    for snapshot in found {
        let name = handle.with(|world| world.snapshots[snapshot.id].name.clone());
        if stray(&snapshot.attempt, &name, status.as_deref()) {
            handle.with(|world| world.coverage.outcome("stray snapshot swept"));
            handle.request(Request::Delete(snapshot.id)).await;
        }
    }
}
