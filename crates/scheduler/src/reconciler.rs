//! Decides everything about one policy: the Backup to create or to cancel, the status to write, the points to delete.
//!
//! Pure. `lastSlot` only advances, except when it was written by a clock a year ahead; a policy that is refused,
//! suspended or edited starts nothing of before; deletes are proposed only for an accepted policy on a sane clock
//! (docs/design/schedule.md §2, §5, §6).

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use stillpoint_api::backup::{READY as POINT_READY, SNAPSHOT_DELETED, Trigger};
use stillpoint_api::policy::{
    BackupPolicy, BackupPolicyStatus, Concurrency, DELETIONS_AGREED_ANNOTATION, KeptPoint,
    RecoveryPointCounts, RetentionStatus, RpoStatus, SlotCounts,
};

use crate::accept::{Accepted, DEFAULT_ZONE, Refusal, created};
use crate::blackouts::just_before;
use crate::cron::rfc3339;
use crate::objectives::{self, Standing as Objective};
use crate::projection::{BackupView, Failure};
use crate::retention::{self, Guard, HeldBack, Kept, Point, Standing};
use crate::slots::{Busy, Decision, Missed, MissedReason, SKEW_TOLERANCE, SlotState, decide};

/// Condition: the spec can be scheduled.
pub const ACCEPTED: &str = "Accepted";
/// Condition: the last run protected what it should.
pub const READY: &str = "Ready";
/// Condition: the wall clock is behind the newest slot; nothing is deleted.
pub const CLOCK_SKEW: &str = "ClockSkew";
/// Condition: the schedule can meet the recovery point objective when every run succeeds.
pub const RPO_ATTAINABLE: &str = "RPOAttainable";

/// Condition: more points would go at once than an edit that was meant; none goes.
pub const RETENTION_PAUSED: &str = "RetentionPaused";

/// `scheduleSeen` of a policy that is refused.
const SEEN_REFUSED: &str = "refused";
/// `scheduleSeen` of a policy that is suspended.
const SEEN_SUSPENDED: &str = "suspended";
/// End of `scheduleSeen` while the run of `runOnCreate` is to be decided upon: set later, `runOnCreate` runs nothing.
const SEEN_INITIAL: &str = " initial";

/// Slots shown in status.
const NEXT_SLOTS: usize = 5;

/// Kept points shown in status, newest first: a status of some kilobytes.
const KEPT_SHOWN: usize = 64;

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

/// An event on the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Slots did not run.
    Missed(Missed),
    /// Slots did not run because of a rule's blackout.
    RuleBlackout {
        /// How many.
        count: u32,
        /// Whose blackouts.
        whose: String,
    },
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
    /// The wall clock differs from the API server's.
    ClockDiffers {
        /// The API server's time less ours.
        ahead: SignedDuration,
    },
    /// More points would go at once than an edit that was meant.
    RetentionPaused {
        /// How many.
        held_back: HeldBack,
        /// What has to be written to agree.
        generation: i64,
    },
    /// A run is cancelled for a slot.
    Replaced {
        /// The Backup that is cancelled.
        backup: String,
        /// The slot that waits for its end.
        slot: Timestamp,
    },
}

impl Note {
    /// The bounded reason of the event.
    pub fn reason(&self) -> &str {
        match self {
            Self::Missed(_) | Self::RuleBlackout { .. } => "MissedSlots",
            Self::LastSlotReset { .. } => "LastSlotReset",
            Self::Refused(refusal) => &refusal.reason,
            Self::ClockSkewed { .. } | Self::ClockDiffers { .. } => CLOCK_SKEW,
            Self::RetentionPaused { .. } => RETENTION_PAUSED,
            Self::Replaced { .. } => "BackupReplaced",
        }
    }

    /// The message of the event.
    pub fn message(&self) -> String {
        match self {
            Self::Missed(missed) => {
                format!("{} slot(s) did not run: {}", missed.count, missed.reason.label())
            }
            Self::RuleBlackout { count, whose } => format!("{count} slot(s) did not run: {whose}"),
            Self::LastSlotReset { was } => format!(
                "lastSlot was {was}, far in the future: written by a wrong clock; the schedule resumes from now"
            ),
            Self::Refused(refusal) => refusal.message.clone(),
            Self::ClockSkewed { last_slot } => format!(
                "the controller's clock is behind the newest slot {last_slot}; nothing starts or is deleted until it \
                 catches up; check time synchronisation"
            ),
            Self::ClockDiffers { ahead } => format!(
                "the API server's clock is {} s {} the controller's; nothing is deleted until they agree; check time \
                 synchronisation",
                ahead.unsigned_abs().as_secs(),
                if ahead.is_negative() { "behind" } else { "ahead of" }
            ),
            Self::RetentionPaused { held_back: HeldBack { expiring, of }, generation } => format!(
                "retention would let {expiring} of {of} points go at once, which looks like a mistake; none is deleted. \
                 Correct spec.retention, or agree with the annotation {DELETIONS_AGREED_ANNOTATION}={generation} on the \
                 policy"
            ),
            Self::Replaced { backup, slot } => {
                format!("{backup} is cancelled: the slot {slot} is due and concurrency is Replace")
            }
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
    /// When to decide again.
    look_again: Option<Timestamp>,
    /// The slot that is due and waits for a run to end.
    queued: Option<Timestamp>,
    clock: ClockView,
    exhausted: bool,
}

impl SlotOutcome {
    /// Nothing happens.
    const fn still(last_slot: Option<Timestamp>) -> Self {
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
enum ClockView {
    Sane,
    /// Behind this newest slot.
    Behind(Timestamp),
    /// It noted this newest slot.
    WasAhead(Timestamp),
    /// The API server's is this much ahead.
    Differs(SignedDuration),
}

/// Which schedule is in force since when.
struct InForce {
    since: Timestamp,
    seen: String,
    /// The slot of `runOnCreate`, while it is to be decided upon.
    initial: Option<Timestamp>,
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

/// What retention comes to.
struct Expired {
    delete: Vec<String>,
    status: Option<RetentionStatus>,
    held_back: Option<HeldBack>,
}

/// Failed runs first, then points, oldest first; no points while the breaker is open, and then what was on its way
/// before stays noted, so that the next pass sees the same jump.
fn expire(observed: &Observed<'_>, before: &BackupPolicyStatus, clock: ClockView, now: Timestamp) -> Expired {
    let Ok(accepted) = observed.accepted else {
        return Expired { delete: Vec::new(), status: None, held_back: None };
    };
    let points = points(observed.backups);
    let skewed = clock != ClockView::Sane;
    let plan = retention::plan(&points, &accepted.retention, skewed, now);
    let usable = points.iter().filter(|point| match point.standing {
        Standing::Proven | Standing::Unproven | Standing::Lost => true,
        Standing::Failed | Standing::Unfinished => false,
    });
    let known = before.retention.as_ref().map_or(0, |noted| noted.expiring as usize);
    let agreed = observed.policy.deletions_agreed();
    let agreed = agreed.is_some() && agreed == observed.policy.metadata.generation;
    let held_back = retention::hold_back(plan.delete.len(), usable.count(), known).filter(|_| !agreed);
    let expiring = match held_back {
        Some(_) => known.min(plan.delete.len()),
        // Nothing is decided about points while the clock is in doubt.
        None if skewed => known,
        None => plan.delete.len(),
    };
    let unfinished =
        |name: &str| points.iter().any(|point| point.name == name && point.standing == Standing::Unfinished);
    let kept =
        plan.keep.iter().filter(|kept| !unfinished(&kept.name)).take(KEPT_SHOWN).map(|kept| KeptPoint {
            backup: kept.name.clone(),
            reasons: kept.reasons.iter().map(ToString::to_string).collect(),
        });
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let mut blocked: BTreeMap<String, u32> = BTreeMap::new();
    for guard in plan.keep.iter().filter_map(Kept::guard) {
        *blocked.entry(guard.label().to_owned()).or_default() += 1;
    }
    if held_back.is_some() {
        blocked.insert(Guard::Breaker.label().to_owned(), number(plan.delete.len()));
    }
    let status = RetentionStatus { kept: kept.collect(), expiring: number(expiring), blocked };
    let mut delete = plan.delete_failed;
    if held_back.is_none() {
        delete.extend(plan.delete);
    }
    let empty = status == RetentionStatus::default();
    Expired { delete, status: (!empty).then_some(status), held_back }
}

/// The scheduler's own runs that are in the way of a slot. A run that a person started is waited for.
fn cancel(observed: &Observed<'_>, slots: &SlotOutcome) -> Vec<Cancel> {
    match observed.policy.spec.schedule.concurrency {
        Concurrency::Forbid | Concurrency::Queue => return Vec::new(),
        Concurrency::Replace if slots.queued.is_none() => return Vec::new(),
        Concurrency::Replace => {}
    }
    let running = observed.backups.iter().filter(|backup| backup.standing == Standing::Unfinished);
    let ours = running.filter(|backup| backup.slot.is_some() && !backup.cancelled && !backup.deleting);
    ours.map(|backup| Cancel { name: backup.name.clone(), uid: backup.uid.clone() }).collect()
}

/// A slot runs only when it is after the schedule in force was first seen. Creation is the first sight; refusal and
/// suspension end a schedule's force.
fn in_force(observed: &Observed<'_>, before: &BackupPolicyStatus, now: Timestamp) -> InForce {
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
        Standing::Unfinished | Standing::Proven | Standing::Lost => false,
        Standing::Unproven | Standing::Failed => !backup.deleting,
    });
    let lost = backups.iter().filter(|backup| backup.standing == Standing::Lost && !backup.deleting);
    RecoveryPointCounts {
        ready: number(proven().count()),
        failed: number(failed.count()),
        held: number(backups.iter().filter(|backup| backup.held && !backup.deleting).count()),
        snapshot_deleted: number(lost.count()),
        oldest: proven().min().map(seconds),
        newest: proven().max().map(seconds),
    }
}

/// Failures since the last success. Only the newest failures are kept as objects, so from there on the number is
/// carried forward in status.
fn consecutive_failures(observed: &Observed<'_>, before: &BackupPolicyStatus) -> u32 {
    let finished = observed.backups.iter().filter(|backup| backup.standing != Standing::Unfinished);
    let newest_success = finished.filter(|backup| backup.failure.is_none()).map(BackupView::ended).max();
    let failures = observed.backups.iter().filter(|backup| backup.failure.is_some());
    let live =
        failures.filter(|failed| newest_success.is_none_or(|success| failed.ended() > success)).count();
    let counted = u32::try_from(live).unwrap_or(u32::MAX);
    if live < retention::FAILED_KEPT {
        return counted;
    }
    counted.max(before.consecutive_failures.saturating_add(observed.fresh_failures))
}

/// Counts the slots whose run has ended since the last pass. A policy's slots run one after the other: what comes after one
/// that has not ended waits.
fn count_slots(observed: &Observed<'_>, known: Option<SlotCounts>) -> Option<SlotCounts> {
    let uid = observed.policy.metadata.uid.as_deref();
    let counted_to = known.as_ref().and_then(|known| known.counted_to.as_ref()).map(|to| to.0);
    let own = observed.backups.iter().filter(|backup| uid.is_some() && backup.policy_uid.as_deref() == uid);
    let mut ended: Vec<(Timestamp, &BackupView)> =
        own.filter_map(|backup| Some((backup.slot?, backup))).collect();
    ended.retain(|(slot, _)| counted_to.is_none_or(|to| *slot > to));
    ended.sort_by_key(|(slot, _)| *slot);
    let mut counts = known;
    for (slot, backup) in ended {
        if backup.standing == Standing::Unfinished {
            break;
        }
        let counts = counts.get_or_insert_default();
        if backup.failure.is_none() {
            counts.met += 1;
        } else {
            counts.failed += 1;
        }
        counts.counted_to = Some(seconds(slot));
    }
    counts
}

fn add_missed(mut known: BTreeMap<String, u64>, missed: &[Missed]) -> BTreeMap<String, u64> {
    for missed in missed {
        *known.entry(missed.reason.label().to_owned()).or_default() += u64::from(missed.count);
    }
    known
}

/// What is on its way out takes no place among the newest.
pub(crate) fn points(backups: &[BackupView]) -> Vec<Point> {
    let staying = backups.iter().filter(|backup| !backup.deleting);
    staying
        .map(|backup| Point {
            name: backup.name.clone(),
            cut: cut(backup),
            standing: backup.standing,
            held: backup.held,
            applications: backup.applications.clone(),
        })
        .collect()
}

/// The age of a Backup: its cut, else its creation.
fn cut(backup: &BackupView) -> Timestamp {
    backup.cut.unwrap_or(backup.created)
}

fn notes(
    observed: &Observed<'_>,
    before: &BackupPolicyStatus,
    slots: &SlotOutcome,
    held_back: Option<HeldBack>,
    cancel: &[Cancel],
) -> Vec<Note> {
    // What is skipped as was asked for is in status and metrics; an event for each would drown the others.
    let worth_an_event = |missed: &&Missed| match missed.reason {
        MissedReason::ControllerDown | MissedReason::Deadline => true,
        MissedReason::Concurrency | MissedReason::Blackout | MissedReason::RuleBlackout => false,
    };
    let mut notes: Vec<Note> =
        slots.missed.iter().filter(worth_an_event).copied().map(Note::Missed).collect();
    notes.extend(rule_blackout(observed, slots));
    let had = |kind: &str, status: &str| {
        before.conditions.iter().any(|condition| condition.type_ == kind && condition.status == status)
    };
    match slots.clock {
        ClockView::Sane => {}
        ClockView::Behind(_) if had(CLOCK_SKEW, "True") => {}
        ClockView::Behind(last_slot) => notes.push(Note::ClockSkewed { last_slot }),
        ClockView::WasAhead(was) => notes.push(Note::LastSlotReset { was }),
        ClockView::Differs(_) if had(CLOCK_SKEW, "True") => {}
        ClockView::Differs(ahead) => notes.push(Note::ClockDiffers { ahead }),
    }
    if let Some(held_back) = held_back.filter(|_| !had(RETENTION_PAUSED, "True")) {
        notes.push(paused(observed, held_back));
    }
    if let Some(slot) = slots.queued {
        notes.extend(cancel.iter().map(|cancel| Note::Replaced { backup: cancel.name.clone(), slot }));
    }
    if let Err(refusal) = observed.accepted
        && !before.conditions.iter().any(|known| {
            // Of rules the words count: another one may have been broken.
            let same = refusal.rules.is_empty() || known.message == refusal.message;
            known.type_ == ACCEPTED && known.reason == refusal.reason && same
        })
    {
        notes.push(Note::Refused(refusal.clone()));
    }
    notes
}

/// What a rule drops is not as the policy asks for, so its owner is told whose doing it is.
fn rule_blackout(observed: &Observed<'_>, slots: &SlotOutcome) -> Option<Note> {
    let missed = slots.missed.iter().find(|missed| missed.reason == MissedReason::RuleBlackout)?;
    let spec = &observed.accepted.ok()?.slots;
    let whose = spec.blackouts.whose(spec.due(slots.last_slot?));
    Some(Note::RuleBlackout { count: missed.count, whose })
}

fn paused(observed: &Observed<'_>, held_back: HeldBack) -> Note {
    Note::RetentionPaused { held_back, generation: observed.policy.metadata.generation.unwrap_or_default() }
}

fn set_conditions(
    status: &mut BackupPolicyStatus,
    observed: &Observed<'_>,
    slots: &SlotOutcome,
    held_back: Option<HeldBack>,
    now: Timestamp,
) {
    let generation = observed.policy.metadata.generation;
    let set = |conditions: &mut Vec<Condition>, kind: &str, value: &str, reason: &str, message: String| {
        set_condition(conditions, kind, value, reason, message, generation, now);
    };
    let conditions = &mut status.conditions;
    match observed.accepted {
        Ok(_) => set(conditions, ACCEPTED, "True", "Accepted", "the policy is scheduled".to_owned()),
        Err(refusal) => set(conditions, ACCEPTED, "False", &refusal.reason, refusal.message.clone()),
    }
    let (value, reason, message) = ready(observed, slots);
    set(conditions, READY, value, &reason, message);
    let attainable = observed.accepted.ok().and(status.rpo.as_ref()).and_then(|rpo| rpo.attainable);
    match (attainable, status.max_interval_seconds) {
        (Some(true), _) => {
            let message = "the schedule meets the objective when every run succeeds".to_owned();
            set(conditions, RPO_ATTAINABLE, "True", "Attainable", message);
        }
        (Some(false), longest) => {
            let message = format!(
                "the longest interval of the schedule is {} s, and with the time until a point is ready the objective \
                 is missed although every run succeeds: run more often or relax objectives.rpo",
                longest.unwrap_or_default()
            );
            set(conditions, RPO_ATTAINABLE, "False", "IntervalTooLong", message);
        }
        (None, _) => conditions.retain(|condition| condition.type_ != RPO_ATTAINABLE),
    }
    match held_back {
        Some(held_back) => {
            let message = paused(observed, held_back).message();
            set(conditions, RETENTION_PAUSED, "True", "TooManyDeletions", message);
        }
        None => conditions.retain(|condition| condition.type_ != RETENTION_PAUSED),
    }
    match slots.clock {
        ClockView::Behind(last_slot) => {
            let note = Note::ClockSkewed { last_slot };
            set(conditions, CLOCK_SKEW, "True", "ClockBehind", note.message());
        }
        ClockView::Differs(ahead) => {
            let note = Note::ClockDiffers { ahead };
            set(conditions, CLOCK_SKEW, "True", "ClockDiffers", note.message());
        }
        ClockView::Sane | ClockView::WasAhead(_) => {
            conditions.retain(|condition| condition.type_ != CLOCK_SKEW);
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
    if last.standing == Standing::Lost {
        let message = format!(
            "a snapshot of {} was deleted by somebody else; see its condition {POINT_READY}",
            last.name
        );
        return ("False", SNAPSHOT_DELETED.to_owned(), message);
    }
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
