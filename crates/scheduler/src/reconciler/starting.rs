//! What starts: which schedule is in force since when, what its slots come to, and which runs are in the way.

use jiff::{SignedDuration, Timestamp};
use stillpoint_api::policy::{BackupPolicyStatus, Concurrency};

use super::{Cancel, Observed, Start};
use crate::accept::{Accepted, DEFAULT_ZONE, created};
use crate::projection::BackupView;
use crate::retention::Standing;
use crate::slots::{Busy, Decision, Missed, SKEW_TOLERANCE, SlotState, decide};

/// `scheduleSeen` of a policy that is refused.
const SEEN_REFUSED: &str = "refused";
/// `scheduleSeen` of a policy that is suspended.
const SEEN_SUSPENDED: &str = "suspended";
/// End of `scheduleSeen` while the run of `runOnCreate` is to be decided upon: set later, `runOnCreate` runs nothing.
const SEEN_INITIAL: &str = " initial";

/// What the slots of a policy come to, before it is put into a status.
pub(super) struct SlotOutcome {
    pub(super) start: Option<Start>,
    pub(super) last_slot: Option<Timestamp>,
    pub(super) missed: Vec<Missed>,
    /// The next slot and when it is due.
    pub(super) next: Option<(Timestamp, Timestamp)>,
    /// When to decide again.
    pub(super) look_again: Option<Timestamp>,
    /// The slot that is due and waits for a run to end.
    pub(super) queued: Option<Timestamp>,
    pub(super) clock: ClockView,
    pub(super) exhausted: bool,
}

impl SlotOutcome {
    /// Nothing happens.
    pub(super) const fn still(last_slot: Option<Timestamp>) -> Self {
        Self {
            start: None,
            last_slot,
            missed: Vec::new(),
            next: None,
            look_again: None,
            queued: None,
            clock: ClockView::Sane,
            exhausted: false,
        }
    }
}

/// Whether the clock can be trusted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ClockView {
    Sane,
    /// Behind this newest slot.
    Behind(Timestamp),
    /// It noted this newest slot.
    WasAhead(Timestamp),
    /// The API server's is this much ahead.
    Differs(SignedDuration),
}

/// Which schedule is in force since when.
pub(super) struct InForce {
    pub(super) since: Timestamp,
    pub(super) seen: String,
    /// The slot of `runOnCreate`, while it is to be decided upon.
    pub(super) initial: Option<Timestamp>,
}

/// A slot runs only when it is after the schedule in force was first seen. Creation is the first sight; refusal and
/// suspension end a schedule's force.
pub(super) fn in_force(observed: &Observed<'_>, before: &BackupPolicyStatus, now: Timestamp) -> InForce {
    let schedule = &observed.policy.spec.schedule;
    let known = before.schedule_seen.as_deref();
    let seen = match observed.accepted {
        Err(_) => SEEN_REFUSED.to_owned(),
        Ok(_) if observed.policy.spec.suspend => SEEN_SUSPENDED.to_owned(),
        Ok(_) => {
            let zone = schedule.time_zone.as_deref().unwrap_or(DEFAULT_ZONE);
            let jitter = schedule.jitter.map(|jitter| jitter.to_string()).unwrap_or_default();
            format!("{} {zone} {jitter}", schedule.cron).trim_end().to_owned()
        }
    };
    let same = |known: &str| known.strip_suffix(SEEN_INITIAL).unwrap_or(known) == seen;
    // No schedule came into force in the future: that was a clock that ran ahead.
    let trusted = now.saturating_add(SKEW_TOLERANCE).unwrap_or(Timestamp::MAX);
    let since = match (known, &before.schedule_since) {
        (None, _) => created(observed.policy),
        (Some(known), Some(since)) if same(known) && since.0 <= trusted => since.0,
        (Some(_), _) => now,
    };
    // New, or not accepted before: a policy that came before its template is created when it is accepted.
    let pending = known.is_none_or(|known| known == SEEN_REFUSED || known.ends_with(SEEN_INITIAL));
    let in_force = observed.accepted.is_ok() && !observed.policy.spec.suspend;
    if schedule.run_on_create && before.last_slot.is_none() && pending && in_force {
        let initial = Some(created(observed.policy));
        return InForce { since, seen: seen + SEEN_INITIAL, initial };
    }
    InForce { since, seen, initial: None }
}

pub(super) fn decide_slots(
    accepted: &Accepted,
    observed: &Observed<'_>,
    in_force: &InForce,
    last_slot: Option<Timestamp>,
    now: Timestamp,
) -> SlotOutcome {
    let spec = &accepted.slots;
    let uid = observed.policy.metadata.uid.as_deref();
    let own = |backup: &&BackupView| backup.policy_uid.is_some() && backup.policy_uid.as_deref() == uid;
    let state = SlotState {
        since: in_force.since,
        last_slot,
        initial: in_force.initial,
        newest_backup: observed
            .backups
            .iter()
            .filter(own)
            .filter_map(|own| own.slot)
            .filter(|at| *at <= now)
            .max(),
        active: observed.backups.iter().any(|backup| backup.standing == Standing::Unfinished),
        busy: busy(observed.backups),
    };
    let mut outcome = SlotOutcome::still(last_slot);
    // What comes after a slot that is decided upon now.
    let follow = |outcome: &mut SlotOutcome, slot: Timestamp| {
        let decided = slot.max(in_force.since);
        if !spec.suspended {
            (outcome.next, outcome.look_again) = (spec.next(decided), spec.wake_after(decided));
        }
    };
    match decide(spec, &state, now) {
        Decision::Suspended => {}
        Decision::Exhausted => outcome.exhausted = true,
        Decision::Wait { slot, due } => {
            outcome.next = Some((slot, due));
            // A slot that a blackout drops meanwhile is counted when it is due.
            let decided = last_slot.map_or(in_force.since, |last| last.max(in_force.since));
            let passed = now.saturating_sub(spec.offset).unwrap_or(now);
            outcome.look_again =
                [Some(due), spec.wake_after(decided.max(passed))].into_iter().flatten().min();
        }
        Decision::Queued { slot, look_again } => {
            outcome.queued = Some(slot);
            outcome.next = spec.next(now);
            outcome.look_again = look_again;
        }
        Decision::Run { slot, trigger, missed } => {
            outcome.start = Some(Start { slot, trigger });
            outcome.last_slot = Some(slot);
            outcome.missed.extend(missed);
            follow(&mut outcome, slot);
        }
        Decision::Adopt { slot, missed } => {
            outcome.last_slot = Some(slot);
            outcome.missed.extend(missed);
            follow(&mut outcome, slot);
        }
        Decision::PassOver { slot, missed, reason } => {
            outcome.last_slot = Some(slot);
            outcome.missed.extend(missed);
            match outcome.missed.iter_mut().find(|known| known.reason == reason) {
                Some(known) => known.count += 1,
                None => outcome.missed.push(Missed { count: 1, reason }),
            }
            follow(&mut outcome, slot);
        }
        Decision::Skewed { last_slot } => {
            outcome.clock = ClockView::Behind(last_slot);
            follow(&mut outcome, last_slot);
        }
        Decision::Corrupt { reset_to } => {
            outcome.clock = ClockView::WasAhead(last_slot.unwrap_or(now));
            outcome.last_slot = Some(reset_to);
            follow(&mut outcome, now);
        }
    }
    if let (ClockView::Sane, Some(ahead)) = (outcome.clock, observed.server_ahead) {
        outcome.clock = ClockView::Differs(ahead);
    }
    outcome
}

/// When the newest finished runs went on: back from the end of the last one, as long as one overlaps the next.
fn busy(backups: &[BackupView]) -> Option<Busy> {
    let finished = backups.iter().filter(|backup| backup.standing != Standing::Unfinished);
    let mut finished: Vec<&BackupView> = finished.collect();
    finished.sort_by_key(|backup| std::cmp::Reverse(backup.ended()));
    let (last, older) = finished.split_first()?;
    let mut busy = Busy { from: last.created, to: last.ended() };
    for backup in older {
        if backup.ended() >= busy.from {
            busy.from = busy.from.min(backup.created);
        }
    }
    Some(busy)
}

/// The scheduler's own runs that are in the way of a slot. A run that a person started is waited for.
pub(super) fn cancel(observed: &Observed<'_>, slots: &SlotOutcome) -> Vec<Cancel> {
    match observed.policy.spec.schedule.concurrency {
        Concurrency::Forbid | Concurrency::Queue => return Vec::new(),
        Concurrency::Replace if slots.queued.is_none() => return Vec::new(),
        Concurrency::Replace => {}
    }
    let running = observed.backups.iter().filter(|backup| backup.standing == Standing::Unfinished);
    let ours = running.filter(|backup| backup.slot.is_some() && !backup.cancelled && !backup.deleting);
    ours.map(|backup| Cancel { name: backup.name.clone(), uid: backup.uid.clone() }).collect()
}
