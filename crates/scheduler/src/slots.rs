//! Decides what is to be done about the slots of one policy: run one, pass over some, or wait.
//!
//! Guarantees: a slot is its unjittered instant and is decided upon once; after downtime only the newest missed
//! slot runs and every other one is counted, exactly up to [`MISSED_CAP`]; creation (without `runOnCreate`), an edit
//! and a resume never run a slot of before; nothing starts late inside a blackout (docs/design/schedule.md §2).

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use stillpoint_api::backup::Trigger;
use stillpoint_api::policy::Concurrency;

use crate::blackouts::{Blackouts, Fate, just_before};
use crate::cron::Schedule;

/// Missed slots counted per decision: a minutely policy reaches it after a week without a controller.
pub const MISSED_CAP: u32 = 10_000;

/// A live scheduler looks at the wall clock at least this often, so a slot later than this was missed.
pub const ON_TIME: SignedDuration = SignedDuration::from_secs(60);

/// A wall clock this far behind the newest slot has been set back; less is ordinary disagreement of clocks.
pub const SKEW_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// A newest slot this far beyond the longest interval in the future was written by a wrong clock.
const CORRUPT_BEYOND: SignedDuration = SignedDuration::from_hours(24);

/// Blackouts looked through for the next slot that starts: three years of one window a day.
const WINDOWS_AHEAD: usize = 1_100;

/// Longest part of the policy's name in the names of its Backups, which are also label values (63).
const NAME_PREFIX: usize = 40;

/// The schedule of one policy, ready to be asked.
#[derive(Clone, Debug)]
pub struct SlotSpec {
    /// The slots.
    pub schedule: Arc<Schedule>,
    /// Stable offset of every start after its slot; see [`jitter_offset`].
    pub offset: Duration,
    /// How late a start may be; `None`: until the next slot is due.
    pub deadline: Option<Duration>,
    /// Whether the newest missed slot runs after downtime.
    pub catch_up: bool,
    /// What happens to a slot that meets a run.
    pub concurrency: Concurrency,
    /// When nothing starts.
    pub blackouts: Arc<Blackouts>,
    /// Starts nothing.
    pub suspended: bool,
    /// The longest interval of the schedule, zero when unknown.
    pub max_interval: Duration,
}

/// What is known about the slots of one policy.
#[derive(Clone, Copy, Debug)]
pub struct SlotState {
    /// No slot at or before this runs: creation, or when the schedule in force was first seen.
    pub since: Timestamp,
    /// Newest slot that was decided upon.
    pub last_slot: Option<Timestamp>,
    /// The slot of `runOnCreate`, the policy's creation, while it is to be decided upon.
    pub initial: Option<Timestamp>,
    /// Newest slot, not in the future, that has a Backup of this policy: created, and perhaps not noted yet.
    pub newest_backup: Option<Timestamp>,
    /// A Backup of this policy is not finished.
    pub active: bool,
    /// When the newest finished runs of this policy were running, without a break.
    pub busy: Option<Busy>,
}

/// A time in which runs went on; a slot in it waited for their end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    /// When the first of them was created.
    pub from: Timestamp,
    /// When the last of them ended.
    pub to: Timestamp,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Suspended: nothing, until the policy changes.
    Suspended,
    /// No slot is left until 2100: nothing, until the policy changes.
    Exhausted,
    /// Nothing starts before `due`.
    Wait {
        /// The next slot.
        slot: Timestamp,
        /// When it is due, or when the blackout that it met ends.
        due: Timestamp,
    },
    /// `slot` is due and waits for the end of the run that goes on (`Queue`, `Replace`).
    Queued {
        /// The slot.
        slot: Timestamp,
        /// When to decide again although the run goes on.
        look_again: Option<Timestamp>,
    },
    /// Create the Backup of `slot`, then note it as decided.
    Run {
        /// The slot.
        slot: Timestamp,
        /// `Schedule`; `CatchUp` when it was missed by a controller that was not there; `Initial`.
        trigger: Trigger,
        /// Slots passed over.
        missed: Vec<Missed>,
    },
    /// The Backup of `slot` exists already: note the slot as decided.
    Adopt {
        /// The slot.
        slot: Timestamp,
        /// Slots passed over.
        missed: Vec<Missed>,
    },
    /// Note `slot` as decided without a run.
    PassOver {
        /// The newest slot passed over.
        slot: Timestamp,
        /// Older slots passed over.
        missed: Vec<Missed>,
        /// Why `slot` itself does not run.
        reason: MissedReason,
    },
    /// The wall clock is behind the newest slot: wait, and delete nothing.
    Skewed {
        /// The newest slot decided upon.
        last_slot: Timestamp,
    },
    /// The newest slot was noted by a clock that was far ahead: start again from now, with an event.
    Corrupt {
        /// What to note as the newest slot instead.
        reset_to: Timestamp,
    },
}

/// Slots that did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed {
    /// How many, at most [`MISSED_CAP`].
    pub count: u32,
    /// Why.
    pub reason: MissedReason,
}

/// Why a slot did not run. The words are metric labels and keys in the policy's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MissedReason {
    /// No controller was there when it was due.
    ControllerDown,
    /// It could not start before its deadline.
    Deadline,
    /// Another run of the policy was not finished.
    Concurrency,
    /// It was due, or would have started, inside a blackout of the policy.
    Blackout,
    /// The same, and the blackout that dropped it is, or is also, one of a ProtectionRule.
    RuleBlackout,
}

impl MissedReason {
    /// Of what a blackout dropped.
    const fn of_blackout(ruled: bool) -> Self {
        if ruled { Self::RuleBlackout } else { Self::Blackout }
    }

    /// The bounded word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::ControllerDown => "controller_down",
            Self::Deadline => "deadline",
            Self::Concurrency => "concurrency",
            Self::Blackout => "blackout",
            Self::RuleBlackout => "rule_blackout",
        }
    }
}

impl SlotSpec {
    /// When `slot` is due.
    pub fn due(&self, slot: Timestamp) -> Timestamp {
        slot.saturating_add(self.offset).unwrap_or(Timestamp::MAX)
    }

    /// When `slot` starts, if nothing else is in its way: when it is due, or after the blackouts that defer it.
    pub fn starts_at(&self, slot: Timestamp) -> Option<Timestamp> {
        match self.fate(self.due(slot)) {
            Fate::Starts(at) => Some(at),
            Fate::Dropped { .. } => None,
        }
    }

    /// What blackouts make of a start at `due`.
    fn fate(&self, due: Timestamp) -> Fate {
        if self.blackouts.is_empty() { Fate::Starts(due) } else { self.blackouts.fate(due, self.offset) }
    }

    /// The first slot after `after` that no blackout drops, and when it starts.
    pub fn next(&self, after: Timestamp) -> Option<(Timestamp, Timestamp)> {
        let mut after = after;
        for _ in 0..WINDOWS_AHEAD {
            let slot = self.schedule.next(after)?;
            match self.fate(self.due(slot)) {
                Fate::Starts(at) => return Some((slot, at)),
                Fate::Dropped { to, .. } => {
                    let skipped = to.saturating_sub(self.offset).ok().and_then(just_before);
                    after = skipped.unwrap_or(slot).max(slot);
                }
            }
        }
        None
    }

    /// When a decision is due after the slot `decided`: the next slot's time, whether it will run or be dropped.
    pub fn wake_after(&self, decided: Timestamp) -> Option<Timestamp> {
        let due = self.schedule.next(decided).map(|slot| self.due(slot))?;
        if self.blackouts.is_empty() { Some(due) } else { self.next(decided).map(|(_, at)| at.min(due)) }
    }

    /// The times at which runs start after the slot `after`, without the offset: the slots, or the end of the blackout
    /// that defers one; what a blackout drops is left out. For people, and for what the schedule can promise.
    pub fn starts(&self, after: Timestamp) -> impl Iterator<Item = Timestamp> + '_ {
        let unspread = |at: Timestamp| at.saturating_sub(self.offset).unwrap_or(at);
        let first = self.next(after).map(|(slot, at)| (slot, unspread(at)));
        let later = move |(slot, start): &(Timestamp, Timestamp)| {
            // Slots that the same window defers start together.
            let inside = start.saturating_sub(self.offset).ok().and_then(just_before);
            let mut after = inside.unwrap_or(*slot).max(*slot);
            loop {
                let (slot, at) = self.next(after)?;
                if unspread(at) > *start {
                    return Some((slot, unspread(at)));
                }
                after = slot;
            }
        };
        std::iter::successors(first, later).map(|(_, start)| start)
    }
}

/// The slots of one policy that are not decided upon yet.
struct Line<'a> {
    spec: &'a SlotSpec,
    state: &'a SlotState,
    /// Everything at or before this is decided upon.
    base: Timestamp,
}

impl<'a> Line<'a> {
    fn new(spec: &'a SlotSpec, state: &'a SlotState) -> Self {
        Self { spec, state, base: state.last_slot.map_or(state.since, |last| last.max(state.since)) }
    }

    /// The slot of `runOnCreate` is due when its policy was first accepted and is not spread.
    fn due(&self, slot: Timestamp) -> Timestamp {
        if self.is_initial(slot) { self.state.since.max(slot) } else { self.spec.due(slot) }
    }

    fn is_initial(&self, slot: Timestamp) -> bool {
        self.state.initial == Some(slot)
    }

    /// The newest slot that is due at or before `at`.
    fn newest(&self, at: Timestamp) -> Option<Timestamp> {
        let scheduled = at.saturating_sub(self.spec.offset).ok().and_then(|at| self.spec.schedule.prev(at));
        let initial = self.state.initial.filter(|slot| self.due(*slot) <= at);
        scheduled.filter(|slot| *slot > self.base).or(initial)
    }

    /// Slots before `before`, counted by reason up to [`MISSED_CAP`] in all.
    fn missed(&self, before: Timestamp) -> Vec<Missed> {
        let initial = self.state.initial.filter(|slot| *slot < before);
        let scheduled = self.spec.schedule.slots(self.base).take_while(|slot| *slot < before);
        let mut counts = [
            Missed { count: 0, reason: MissedReason::ControllerDown },
            Missed { count: 0, reason: MissedReason::Concurrency },
            Missed { count: 0, reason: MissedReason::Blackout },
            Missed { count: 0, reason: MissedReason::RuleBlackout },
        ];
        // Which blackout covers what is due before the second value.
        let mut covered = (None, Timestamp::MIN);
        for slot in initial.into_iter().chain(scheduled).take(MISSED_CAP as usize) {
            let due = self.due(slot);
            if due >= covered.1 {
                covered = match self.spec.blackouts.at(due) {
                    Some(hold) => (Some(MissedReason::of_blackout(hold.ruled)), hold.to),
                    None => (None, self.spec.blackouts.next_start(due)),
                };
            }
            let reason = if let Some(blackout) = covered.0 {
                blackout
            } else if self.waited_until(due).is_some() {
                MissedReason::Concurrency
            } else {
                MissedReason::ControllerDown
            };
            counts.iter_mut().filter(|missed| missed.reason == reason).for_each(|missed| missed.count += 1);
        }
        counts.into_iter().filter(|missed| missed.count > 0).collect()
    }

    /// When there was room again for a start at `at` that had to wait for a run.
    fn waited_until(&self, at: Timestamp) -> Option<Timestamp> {
        match self.spec.concurrency {
            Concurrency::Forbid => None,
            Concurrency::Queue | Concurrency::Replace => {
                self.state.busy.filter(|busy| busy.from <= at && at <= busy.to).map(|busy| busy.to)
            }
        }
    }

    /// The newest slot up to `newest` that no blackout drops, and when it starts.
    fn candidate(&self, newest: Timestamp) -> Option<(Timestamp, Timestamp)> {
        let mut slot = newest;
        loop {
            match self.spec.fate(self.due(slot)) {
                Fate::Starts(at) => return Some((slot, at)),
                Fate::Dropped { from, .. } => slot = self.newest(just_before(from)?)?,
            }
        }
    }
}

/// Decides about the slots of one policy at `now`.
pub fn decide(spec: &SlotSpec, state: &SlotState, now: Timestamp) -> Decision {
    if let Some(last_slot) = state.last_slot.filter(|last| *last > after(now, SKEW_TOLERANCE)) {
        let longest = SignedDuration::try_from(spec.max_interval).unwrap_or(SignedDuration::MAX);
        if last_slot > after(after(now, CORRUPT_BEYOND), longest) {
            return Decision::Corrupt { reset_to: spec.schedule.prev(now).unwrap_or(now) };
        }
        return Decision::Skewed { last_slot };
    }
    let line = Line::new(spec, state);
    // Created before a crash and not noted: the name is the lock, so there is nothing to start.
    let created = state.newest_backup.filter(|slot| *slot > line.base && *slot <= after(now, SKEW_TOLERANCE));
    if let Some(slot) = created {
        return Decision::Adopt { slot, missed: line.missed(slot) };
    }
    if spec.suspended {
        return Decision::Suspended;
    }
    let Some(newest) = line.newest(now) else {
        return match spec.next(line.base) {
            Some((slot, due)) => Decision::Wait { slot, due },
            None => Decision::Exhausted,
        };
    };
    let Some((slot, start)) = line.candidate(newest) else {
        let reason = match spec.fate(line.due(newest)) {
            Fate::Dropped { ruled, .. } => MissedReason::of_blackout(ruled),
            Fate::Starts(_) => MissedReason::Blackout,
        };
        return Decision::PassOver { slot: newest, missed: line.missed(newest), reason };
    };
    match start_of(&line, slot, start, now) {
        StartOf::Now(trigger) => Decision::Run { slot, trigger, missed: line.missed(slot) },
        StartOf::At(due) => {
            // A later slot may start before the one that is deferred, and stands for it.
            let sooner = spec.next(newest).map_or(due, |(_, other)| other.min(due));
            Decision::Wait { slot, due: sooner }
        }
        StartOf::AfterRun => {
            let deadline = spec.deadline.map(|deadline| after(start, signed(deadline)));
            let too_late = deadline.map(|deadline| after(deadline, SignedDuration::from_secs(1)));
            let look_again = [too_late, spec.wake_after(newest)].into_iter().flatten().min();
            Decision::Queued { slot, look_again }
        }
        StartOf::Never(reason) => Decision::PassOver { slot, missed: line.missed(slot), reason },
    }
}

/// When a slot that is due starts.
enum StartOf {
    Now(Trigger),
    At(Timestamp),
    AfterRun,
    Never(MissedReason),
}

/// Whether `slot`, which was to start at `start`, starts at `now`.
fn start_of(line: &Line<'_>, slot: Timestamp, start: Timestamp, now: Timestamp) -> StartOf {
    let (spec, state) = (line.spec, line.state);
    if start > now {
        return StartOf::At(start);
    }
    // Exactly at the deadline still starts, as a CronJob does.
    if spec.deadline.is_some_and(|deadline| now.duration_since(start) > signed(deadline)) {
        return StartOf::Never(MissedReason::Deadline);
    }
    if state.active {
        return match spec.concurrency {
            Concurrency::Forbid => StartOf::Never(MissedReason::Concurrency),
            Concurrency::Queue | Concurrency::Replace => StartOf::AfterRun,
        };
    }
    // A slot that waited for a run is as late as its room is old, and that room may be inside a blackout.
    let room = match line.waited_until(start).map_or(Fate::Starts(start), |room| spec.fate(room)) {
        Fate::Starts(room) if room > now => return StartOf::At(room),
        Fate::Starts(room) => room,
        Fate::Dropped { ruled, .. } => return StartOf::Never(MissedReason::of_blackout(ruled)),
    };
    let trigger = if line.is_initial(slot) { Trigger::Initial } else { Trigger::Schedule };
    if now.duration_since(room) <= ON_TIME {
        return StartOf::Now(trigger);
    }
    if !spec.catch_up {
        return StartOf::Never(MissedReason::ControllerDown);
    }
    match spec.fate(now) {
        Fate::Starts(at) if at > now => return StartOf::At(at),
        Fate::Starts(_) => {}
        Fate::Dropped { ruled, .. } => return StartOf::Never(MissedReason::of_blackout(ruled)),
    }
    // A catch-up just before the next slot would freeze the application twice in a row.
    let next = spec.next(slot).filter(|(next, due)| {
        let margin = (next.duration_since(slot) / 20).min(ON_TIME);
        due.duration_since(now) <= margin
    });
    match (next, trigger) {
        (Some(_), _) => StartOf::Never(MissedReason::ControllerDown),
        (None, Trigger::Initial) => StartOf::Now(Trigger::Initial),
        (None, Trigger::Manual | Trigger::Schedule | Trigger::CatchUp) => StartOf::Now(Trigger::CatchUp),
    }
}

/// The offset of a policy's starts: the same in every process and after the policy was created anew, different
/// for policies of the same schedule. At most `jitter`, in whole seconds.
pub fn jitter_offset(cluster_uid: &str, namespace: &str, name: &str, jitter: Duration) -> Duration {
    if jitter.as_secs() == 0 {
        return Duration::ZERO;
    }
    let mut hash = Sha256::new();
    for part in [cluster_uid, namespace, name, "jitter"] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let digest = hash.finalize();
    let number = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    Duration::from_secs(number % (jitter.as_secs() + 1))
}

/// The name of the Backup of `slot`: creating it twice is refused by the API server, so a slot cannot run twice.
/// `<policy, at most 40>-<8 hex of SHA-256 of the policy's UID>-<minute of the slot, base 36>`.
pub fn backup_name(policy: &str, policy_uid: &str, slot: Timestamp) -> String {
    let mut end = policy.len().min(NAME_PREFIX);
    while !policy.is_char_boundary(end) {
        end -= 1;
    }
    // What is cut must not leave `.` or `-` beside the next `-`.
    let prefix = policy[..end].trim_end_matches(['-', '.']);
    let digest = Sha256::digest(policy_uid.as_bytes());
    let uid: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("{prefix}-{uid}-{}", base36(slot.as_second().max(0).unsigned_abs() / 60))
}

pub(crate) fn base36(mut number: u64) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit(u32::try_from(number % 36).unwrap_or(0), 36).unwrap_or('0'));
        number /= 36;
        if number == 0 {
            return digits.into_iter().rev().collect();
        }
    }
}

fn after(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.saturating_add(by).unwrap_or(Timestamp::MAX)
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
