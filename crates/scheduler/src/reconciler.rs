//! Decides everything about one policy: the Backup to create or to cancel, the status to write, the points to delete.
//!
//! Pure. `lastSlot` only advances, except when it was written by a clock a year ahead; a policy that is refused,
//! suspended or edited starts nothing of before; deletes are proposed only for an accepted policy on a sane clock
//! (docs/design/schedule.md §2, §5, §6).

mod conditions;
mod expiry;
mod notes;
mod standing;
mod starting;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use stillpoint_api::backup::Trigger;
use stillpoint_api::policy::{BackupPolicy, BackupPolicyStatus};

use crate::accept::{Accepted, Refusal};
use crate::blackouts::just_before;
use crate::cron::rfc3339;
use crate::projection::BackupView;
use crate::retention::Standing;

use self::conditions::set_conditions;
pub use self::conditions::{ACCEPTED, CLOCK_SKEW, READY, RETENTION_PAUSED, RPO_ATTAINABLE};
use self::expiry::expire;
pub(crate) use self::expiry::points;
pub use self::notes::Note;
use self::notes::notes;
use self::standing::{add_missed, consecutive_failures, count_points, count_slots, rpo};
use self::starting::{ClockView, SlotOutcome, cancel, decide_slots, in_force};

/// Slots shown in status.
const NEXT_SLOTS: usize = 5;

/// What a decision about a policy reads.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// The policy as just read.
    pub policy: &'a BackupPolicy,
    /// What it says, or why it is refused.
    pub accepted: Result<&'a Accepted, &'a Refusal>,
    /// Its Backups as watched.
    pub backups: &'a [BackupView],
    /// Failures that are not counted in its status yet.
    pub fresh_failures: u32,
    /// How far the API server's clock is ahead of ours, when that is more than clocks ordinarily differ.
    pub server_ahead: Option<SignedDuration>,
}

/// What is to be done about a policy.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// First: create this Backup.
    pub start: Option<Start>,
    /// Or: cancel these runs, which are in the way of a slot (`Replace`).
    pub cancel: Vec<Cancel>,
    /// Then: write this status, when it differs.
    pub status: BackupPolicyStatus,
    /// Then: delete these Backups, oldest first.
    pub delete: Vec<String>,
    /// Tell this.
    pub notes: Vec<Note>,
    /// Look again at this time although nothing happened.
    pub wake_at: Option<Timestamp>,
    /// The next slot and when it is due, while nothing stands in the way of deciding it like any other.
    pub next: Option<(Timestamp, Timestamp)>,
}

/// A Backup to create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The slot.
    pub slot: Timestamp,
    /// `Schedule` or `CatchUp`.
    pub trigger: Trigger,
}

/// A run to cancel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancel {
    /// The Backup.
    pub name: String,
    /// Its UID: a successor of the same name is safe.
    pub uid: String,
}

/// Decides about a policy at `now`.
pub fn reconcile(observed: &Observed<'_>, now: Timestamp) -> Outcome {
    let policy = observed.policy;
    let before = policy.status.clone().unwrap_or_default();
    let in_force = in_force(observed, &before, now);
    let slots = match observed.accepted {
        Ok(accepted) => {
            decide_slots(accepted, observed, &in_force, before.last_slot.as_ref().map(|at| at.0), now)
        }
        Err(_) => SlotOutcome::still(before.last_slot.as_ref().map(|at| at.0)),
    };
    let cancel = cancel(observed, &slots);
    let active = observed.backups.iter().filter(|backup| backup.standing == Standing::Unfinished);
    let active = active.max_by_key(|backup| backup.created).map(|backup| backup.name.clone());
    let running = active.is_some() || slots.start.is_some();
    let (rpo, rpo_changes) = rpo(observed, running, slots.next.map(|(_, due)| due), now);

    let mut status = BackupPolicyStatus {
        conditions: before.conditions.clone(),
        observed_generation: policy.metadata.generation,
        last_slot: slots.last_slot.map(seconds),
        schedule_since: Some(seconds(in_force.since)),
        schedule_seen: Some(in_force.seen),
        next_slots: Vec::new(),
        max_interval_seconds: None,
        min_interval_seconds: None,
        rpo: Some(rpo),
        recovery_points: Some(count_points(observed.backups)),
        retention: None,
        active,
        consecutive_failures: consecutive_failures(observed, &before),
        missed: add_missed(before.missed.clone(), &slots.missed),
        slots: count_slots(observed, before.slots.clone()),
    };
    if let Ok(accepted) = observed.accepted {
        if let Some((first, _)) = slots.next {
            let zone = accepted.slots.schedule.zone();
            // From the slot itself on, which is among them.
            let before = just_before(first).unwrap_or(first);
            status.next_slots = accepted
                .slots
                .starts(before)
                .take(NEXT_SLOTS)
                .map(|slot| rfc3339(&slot.to_zoned(zone.clone())))
                .collect();
        }
        let whole = |interval: Duration| i64::try_from(interval.as_secs()).ok();
        status.max_interval_seconds = accepted.analysis.and_then(|found| whole(found.max_interval));
        status.min_interval_seconds = accepted.analysis.and_then(|found| whole(found.min_interval));
    }
    let expired = expire(observed, &before, slots.clock, now);
    status.retention = expired.status;
    set_conditions(&mut status, observed, &slots, expired.held_back, now);

    let wake_at = [slots.look_again, rpo_changes].into_iter().flatten().min();
    let ordinary = slots.queued.is_none() && in_force.initial.is_none() && slots.clock == ClockView::Sane;
    let notes = notes(observed, &before, &slots, expired.held_back, &cancel);
    Outcome {
        start: slots.start,
        cancel,
        notes,
        status,
        delete: expired.delete,
        wake_at,
        next: slots.next.filter(|_| ordinary),
    }
}

/// Objects keep whole seconds: what is written must be equal to what is read back.
fn seconds(at: Timestamp) -> Time {
    Time(at.checked_sub(SignedDuration::from_nanos(i64::from(at.subsec_nanosecond()))).unwrap_or(at))
}

#[cfg(test)]
#[path = "reconciler_tests.rs"]
mod tests;
