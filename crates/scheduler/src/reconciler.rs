//! Decides everything about one policy: the Backup to create, the status to write, the points to delete.
//!
//! Pure. `lastSlot` only advances, except when it was written by a clock a year ahead; a policy that is refused,
//! suspended or edited starts nothing of before; deletes are proposed only for an accepted policy on a sane clock
//! (docs/design/schedule.md §2, §5, §6).

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use stillpoint_api::backup::Trigger;
use stillpoint_api::policy::{BackupPolicy, BackupPolicyStatus, RecoveryPointCounts, RpoStatus};

use crate::accept::{Accepted, DEFAULT_ZONE, Refusal, created};
use crate::cron::rfc3339;
use crate::objectives::{self, Standing as Objective};
use crate::projection::{BackupView, Failure};
use crate::retention::{self, Point, Standing};
use crate::slots::{Decision, Missed, MissedReason, SlotState, decide};

/// Condition: the spec can be scheduled.
pub const ACCEPTED: &str = "Accepted";
/// Condition: the last run protected what it should.
pub const READY: &str = "Ready";
/// Condition: the wall clock is behind the newest slot; nothing is deleted.
pub const CLOCK_SKEW: &str = "ClockSkew";

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
}

/// What is to be done about a policy.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// First: create this Backup.
    pub start: Option<Start>,
    /// Then: write this status, when it differs.
    pub status: BackupPolicyStatus,
    /// Then: delete these Backups, oldest first.
    pub delete: Vec<String>,
    /// Tell this.
    pub notes: Vec<Note>,
    /// Look again at this time although nothing happened.
    pub wake_at: Option<Timestamp>,
}

/// A Backup to create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The slot.
    pub slot: Timestamp,
    /// `Schedule` or `CatchUp`.
    pub trigger: Trigger,
}

/// An event on the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Slots did not run.
    Missed(Missed),
    /// `lastSlot` was far in the future and was reset.
    LastSlotReset {
        /// What it said.
        was: Timestamp,
    },
    /// The policy was refused.
    Refused(Refusal),
    /// The wall clock is behind the newest slot.
    ClockSkewed {
        /// The newest slot.
        last_slot: Timestamp,
    },
}

impl Note {
    /// The bounded reason of the event.
    pub fn reason(&self) -> &str {
        match self {
            Self::Missed(_) => "MissedSlots",
            Self::LastSlotReset { .. } => "LastSlotReset",
            Self::Refused(refusal) => &refusal.reason,
            Self::ClockSkewed { .. } => CLOCK_SKEW,
        }
    }

    /// The message of the event.
    pub fn message(&self) -> String {
        match self {
            Self::Missed(missed) => {
                format!("{} slot(s) did not run: {}", missed.count, missed.reason.label())
            }
            Self::LastSlotReset { was } => format!(
                "lastSlot was {was}, far in the future: written by a wrong clock; the schedule resumes from now"
            ),
            Self::Refused(refusal) => refusal.message.clone(),
            Self::ClockSkewed { last_slot } => format!(
                "the controller's clock is behind the newest slot {last_slot}; nothing starts or is deleted until it \
                 catches up; check time synchronisation"
            ),
        }
    }
}

/// What the slots of a policy come to, before it is put into a status.
struct SlotOutcome {
    start: Option<Start>,
    last_slot: Option<Timestamp>,
    missed: Vec<Missed>,
    /// The next slot and when it is due.
    next: Option<(Timestamp, Timestamp)>,
    clock: ClockView,
    exhausted: bool,
}

/// Whether the clock can be trusted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ClockView {
    Sane,
    Behind(Timestamp),
    WasAhead(Timestamp),
}

/// Which schedule is in force since when.
struct InForce {
    since: Timestamp,
    seen: String,
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
        Err(_) => SlotOutcome {
            start: None,
            last_slot: before.last_slot.as_ref().map(|at| at.0),
            missed: Vec::new(),
            next: None,
            clock: ClockView::Sane,
            exhausted: false,
        },
    };
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
        active,
        consecutive_failures: consecutive_failures(observed, &before),
        missed: add_missed(before.missed.clone(), &slots.missed),
    };
    if let Ok(accepted) = observed.accepted {
        if let Some((first, _)) = slots.next {
            let zone = accepted.slots.schedule.zone();
            let after = accepted.slots.schedule.slots(first).take(NEXT_SLOTS - 1);
            status.next_slots = std::iter::once(first)
                .chain(after)
                .map(|slot| rfc3339(&slot.to_zoned(zone.clone())))
                .collect();
        }
        let whole = |interval: Duration| i64::try_from(interval.as_secs()).ok();
        status.max_interval_seconds = accepted.analysis.and_then(|found| whole(found.max_interval));
        status.min_interval_seconds = accepted.analysis.and_then(|found| whole(found.min_interval));
    }
    set_conditions(&mut status, observed, &slots, now);

    let skewed = slots.clock != ClockView::Sane;
    let delete = match observed.accepted {
        Ok(accepted) => retention::plan(&points(observed.backups), accepted.keep_last, skewed, now).delete,
        Err(_) => Vec::new(),
    };
    let wake_at = [slots.next.map(|(_, due)| due), rpo_changes].into_iter().flatten().min();
    Outcome { start: slots.start, notes: notes(observed, &before, &slots), status, delete, wake_at }
}

/// A slot runs only when it is after the schedule in force was first seen. Creation is the first sight; refusal and
/// suspension end a schedule's force.
fn in_force(observed: &Observed<'_>, before: &BackupPolicyStatus, now: Timestamp) -> InForce {
    let schedule = &observed.policy.spec.schedule;
    let seen = match observed.accepted {
        Err(_) => "refused".to_owned(),
        Ok(_) if observed.policy.spec.suspend => "suspended".to_owned(),
        Ok(_) => {
            let zone = schedule.time_zone.as_deref().unwrap_or(DEFAULT_ZONE);
            let jitter = schedule.jitter.map(|jitter| jitter.to_string()).unwrap_or_default();
            format!("{} {zone} {jitter}", schedule.cron).trim_end().to_owned()
        }
    };
    let since = match (&before.schedule_seen, &before.schedule_since) {
        (None, _) => created(observed.policy),
        (Some(known), Some(since)) if *known == seen => since.0,
        (Some(_), _) => now,
    };
    InForce { since, seen }
}

fn decide_slots(
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
        newest_backup: observed
            .backups
            .iter()
            .filter(own)
            .filter_map(|own| own.slot)
            .filter(|at| *at <= now)
            .max(),
        active: observed.backups.iter().any(|backup| backup.standing == Standing::Unfinished),
    };
    // What comes after a slot that is decided upon now.
    let after = |slot: Timestamp| if spec.suspended { None } else { spec.next(slot.max(in_force.since)) };
    let mut outcome = SlotOutcome {
        start: None,
        last_slot,
        missed: Vec::new(),
        next: None,
        clock: ClockView::Sane,
        exhausted: false,
    };
    match decide(spec, &state, now) {
        Decision::Suspended => {}
        Decision::Exhausted => outcome.exhausted = true,
        Decision::Wait { slot, due } => outcome.next = Some((slot, due)),
        Decision::Run { slot, catch_up, missed } => {
            let trigger = if catch_up { Trigger::CatchUp } else { Trigger::Schedule };
            outcome.start = Some(Start { slot, trigger });
            outcome.last_slot = Some(slot);
            outcome.missed.extend(missed);
            outcome.next = after(slot);
        }
        Decision::Adopt { slot, missed } => {
            outcome.last_slot = Some(slot);
            outcome.missed.extend(missed);
            outcome.next = after(slot);
        }
        Decision::PassOver { slot, missed, reason } => {
            outcome.last_slot = Some(slot);
            outcome.missed.extend(missed);
            outcome.missed.push(Missed { count: 1, reason });
            outcome.next = after(slot);
        }
        Decision::Skewed { last_slot } => {
            outcome.clock = ClockView::Behind(last_slot);
            outcome.next = after(last_slot);
        }
        Decision::Corrupt { reset_to } => {
            outcome.clock = ClockView::WasAhead(last_slot.unwrap_or(now));
            outcome.last_slot = Some(reset_to);
            outcome.next = after(now);
        }
    }
    outcome
}

fn rpo(
    observed: &Observed<'_>,
    running: bool,
    next_due: Option<Timestamp>,
    now: Timestamp,
) -> (RpoStatus, Option<Timestamp>) {
    let newest = observed.backups.iter().filter(|backup| backup.is_point()).max_by_key(|backup| cut(backup));
    let protected_since = created(observed.policy);
    let reference = newest.map(cut);
    let Some(target) = observed.policy.spec.objectives.and_then(|objectives| objectives.rpo) else {
        let reference = Some(seconds(reference.unwrap_or(protected_since)));
        return (RpoStatus { reference, state: None, attainable: None }, None);
    };
    // A point counts only once it is ready; the newest one tells how long that takes here.
    let expected = newest.and_then(|point| Duration::try_from(point.ended().duration_since(cut(point))).ok());
    let analysis = observed.accepted.ok().and_then(|accepted| accepted.analysis);
    let attainable = analysis
        .map(|found| objectives::attainable(found.max_interval, expected.unwrap_or_default(), target.get()));
    let assessment = objectives::assess(
        &Objective {
            rpo: target.get(),
            newest_proven: reference,
            protected_since,
            next_chance: if running { Some(now) } else { next_due },
            attainable,
            suspended: observed.policy.spec.suspend,
        },
        now,
    );
    let status = RpoStatus {
        reference: Some(seconds(assessment.reference)),
        state: Some(assessment.state.as_str().to_owned()),
        attainable,
    };
    (status, assessment.changes_at)
}

fn count_points(backups: &[BackupView]) -> RecoveryPointCounts {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let proven = || backups.iter().filter(|backup| backup.is_point()).map(cut);
    let failed = backups.iter().filter(|backup| match backup.standing {
        Standing::Unfinished | Standing::Proven => false,
        Standing::Unproven | Standing::Failed => !backup.deleting,
    });
    RecoveryPointCounts {
        ready: number(proven().count()),
        failed: number(failed.count()),
        oldest: proven().min().map(seconds),
        newest: proven().max().map(seconds),
    }
}

/// Failures since the last success. Only the newest failures are kept as objects, so from there on the number is
/// carried forward in status.
fn consecutive_failures(observed: &Observed<'_>, before: &BackupPolicyStatus) -> u32 {
    let successes = observed.backups.iter().filter(|backup| backup.standing == Standing::Proven);
    let newest_success = successes.map(BackupView::ended).max();
    let failures = observed.backups.iter().filter(|backup| backup.failure.is_some());
    let live =
        failures.filter(|failed| newest_success.is_none_or(|success| failed.ended() > success)).count();
    let counted = u32::try_from(live).unwrap_or(u32::MAX);
    if live < retention::FAILED_KEPT {
        return counted;
    }
    counted.max(before.consecutive_failures.saturating_add(observed.fresh_failures))
}

fn add_missed(mut known: BTreeMap<String, u64>, missed: &[Missed]) -> BTreeMap<String, u64> {
    for missed in missed {
        *known.entry(missed.reason.label().to_owned()).or_default() += u64::from(missed.count);
    }
    known
}

/// What is on its way out takes no place among the newest.
fn points(backups: &[BackupView]) -> Vec<Point> {
    let staying = backups.iter().filter(|backup| !backup.deleting);
    staying
        .map(|backup| Point { name: backup.name.clone(), cut: cut(backup), standing: backup.standing })
        .collect()
}

/// The age of a Backup: its cut, else its creation.
fn cut(backup: &BackupView) -> Timestamp {
    backup.cut.unwrap_or(backup.created)
}

fn notes(observed: &Observed<'_>, before: &BackupPolicyStatus, slots: &SlotOutcome) -> Vec<Note> {
    // A skipped slot is in status and metrics; an event for each would drown the others.
    let worth_an_event = |missed: &&Missed| missed.reason != MissedReason::Concurrency;
    let mut notes: Vec<Note> =
        slots.missed.iter().filter(worth_an_event).copied().map(Note::Missed).collect();
    let had = |kind: &str, status: &str| {
        before.conditions.iter().any(|condition| condition.type_ == kind && condition.status == status)
    };
    match slots.clock {
        ClockView::Sane => {}
        ClockView::Behind(_) if had(CLOCK_SKEW, "True") => {}
        ClockView::Behind(last_slot) => notes.push(Note::ClockSkewed { last_slot }),
        ClockView::WasAhead(was) => notes.push(Note::LastSlotReset { was }),
    }
    if let Err(refusal) = observed.accepted
        && !before.conditions.iter().any(|known| known.type_ == ACCEPTED && known.reason == refusal.reason)
    {
        notes.push(Note::Refused(refusal.clone()));
    }
    notes
}

fn set_conditions(
    status: &mut BackupPolicyStatus,
    observed: &Observed<'_>,
    slots: &SlotOutcome,
    now: Timestamp,
) {
    let mut set = |kind: &str, value: &str, reason: &str, message: String| {
        set_condition(
            &mut status.conditions,
            kind,
            value,
            reason,
            message,
            observed.policy.metadata.generation,
            now,
        );
    };
    match observed.accepted {
        Ok(_) => set(ACCEPTED, "True", "Accepted", "the policy is scheduled".to_owned()),
        Err(refusal) => set(ACCEPTED, "False", &refusal.reason, refusal.message.clone()),
    }
    let (value, reason, message) = ready(observed, slots);
    set(READY, value, &reason, message);
    match slots.clock {
        ClockView::Behind(last_slot) => {
            let note = Note::ClockSkewed { last_slot };
            set(CLOCK_SKEW, "True", "ClockBehind", note.message());
        }
        ClockView::Sane | ClockView::WasAhead(_) => {
            status.conditions.retain(|condition| condition.type_ != CLOCK_SKEW);
        }
    }
}

/// The last run's result, unless the policy cannot or may not run at all.
fn ready(observed: &Observed<'_>, slots: &SlotOutcome) -> (&'static str, String, String) {
    if let Err(refusal) = observed.accepted {
        return ("False", refusal.reason.clone(), refusal.message.clone());
    }
    if observed.policy.spec.suspend {
        return ("False", "Suspended".to_owned(), "spec.suspend is true: nothing is started".to_owned());
    }
    if slots.exhausted {
        let message = "the schedule has no slot left up to the year 2100".to_owned();
        return ("False", "ScheduleExhausted".to_owned(), message);
    }
    let finished =
        observed.backups.iter().filter(|backup| backup.standing != Standing::Unfinished && !backup.deleting);
    let Some(last) = finished.max_by_key(|backup| backup.ended()) else {
        return ("Unknown", "Pending".to_owned(), "no run has finished yet".to_owned());
    };
    match &last.failure {
        None => ("True", "Protected".to_owned(), format!("{} is proven application-consistent", last.name)),
        Some(Failure { reason, message }) => ("False", reason.clone(), format!("{}: {message}", last.name)),
    }
}

fn set_condition(
    conditions: &mut Vec<Condition>,
    kind: &str,
    value: &str,
    reason: &str,
    message: String,
    generation: Option<i64>,
    now: Timestamp,
) {
    let known = conditions.iter().find(|condition| condition.type_ == kind && condition.status == value);
    let condition = Condition {
        last_transition_time: known.map_or(seconds(now), |known| known.last_transition_time.clone()),
        message,
        observed_generation: generation,
        reason: reason.to_owned(),
        status: value.to_owned(),
        type_: kind.to_owned(),
    };
    match conditions.iter_mut().find(|known| known.type_ == kind) {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
}

/// Objects keep whole seconds: what is written must be equal to what is read back.
fn seconds(at: Timestamp) -> Time {
    Time(at.checked_sub(SignedDuration::from_nanos(i64::from(at.subsec_nanosecond()))).unwrap_or(at))
}

#[cfg(test)]
#[path = "reconciler_tests.rs"]
mod tests;
