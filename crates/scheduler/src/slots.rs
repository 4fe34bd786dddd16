//! Decides what is to be done about the slots of one policy: run one, pass over some, or wait.
//!
//! Guarantees: a slot is its unjittered instant and is decided upon once; after downtime only the newest missed
//! slot runs and every other one is counted, exactly up to [`MISSED_CAP`]; creation, an edit and a resume never
//! run a slot of before (docs/design/schedule.md §2).

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use crate::cron::Schedule;

/// Missed slots counted per decision: a minutely policy reaches it after a week without a controller.
pub const MISSED_CAP: u32 = 10_000;

/// A live scheduler looks at the wall clock at least this often, so a slot later than this was missed.
pub const ON_TIME: SignedDuration = SignedDuration::from_secs(60);

/// A wall clock this far behind the newest slot has been set back; less is ordinary disagreement of clocks.
pub const SKEW_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// A newest slot this far beyond the longest interval in the future was written by a wrong clock.
const CORRUPT_BEYOND: SignedDuration = SignedDuration::from_hours(24);

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
    /// Newest slot, not in the future, that has a Backup of this policy: created, and perhaps not noted yet.
    pub newest_backup: Option<Timestamp>,
    /// A Backup of this policy is not finished.
    pub active: bool,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Suspended: nothing, until the policy changes.
    Suspended,
    /// No slot is left until 2100: nothing, until the policy changes.
    Exhausted,
    /// Nothing is due before `due`.
    Wait {
        /// The next slot.
        slot: Timestamp,
        /// When it is due.
        due: Timestamp,
    },
    /// Create the Backup of `slot`, then note it as decided.
    Run {
        /// The slot.
        slot: Timestamp,
        /// Whether it was missed by a controller that was not there.
        catch_up: bool,
        /// Slots passed over.
        missed: Option<Missed>,
    },
    /// The Backup of `slot` exists already: note the slot as decided.
    Adopt {
        /// The slot.
        slot: Timestamp,
        /// Slots passed over.
        missed: Option<Missed>,
    },
    /// Note `slot` as decided without a run.
    PassOver {
        /// The newest slot passed over.
        slot: Timestamp,
        /// Slots passed over because nobody was there.
        missed: Option<Missed>,
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
    /// The run before was not finished.
    Concurrency,
}

impl MissedReason {
    /// The bounded word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::ControllerDown => "controller_down",
            Self::Deadline => "deadline",
            Self::Concurrency => "concurrency",
        }
    }
}

impl SlotSpec {
    /// When `slot` is due.
    pub fn due(&self, slot: Timestamp) -> Timestamp {
        slot.saturating_add(self.offset).unwrap_or(Timestamp::MAX)
    }

    /// The slots after `after`, and when each is due.
    pub fn next(&self, after: Timestamp) -> Option<(Timestamp, Timestamp)> {
        self.schedule.next(after).map(|slot| (slot, self.due(slot)))
    }

    /// Slots strictly between `after` and `before`, counted up to [`MISSED_CAP`].
    fn count_between(&self, after: Timestamp, before: Timestamp) -> u32 {
        let slots = self.schedule.slots(after).take_while(|slot| *slot < before);
        u32::try_from(slots.take(MISSED_CAP as usize).count()).unwrap_or(MISSED_CAP)
    }

    fn missed_between(&self, after: Timestamp, before: Timestamp) -> Option<Missed> {
        let count = self.count_between(after, before);
        (count > 0).then_some(Missed { count, reason: MissedReason::ControllerDown })
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
    let base = state.last_slot.map_or(state.since, |last| last.max(state.since));
    // Created before a crash and not noted: the name is the lock, so there is nothing to start.
    if let Some(slot) = state.newest_backup.filter(|slot| *slot > base && *slot <= after(now, SKEW_TOLERANCE))
    {
        return Decision::Adopt { slot, missed: spec.missed_between(base, slot) };
    }
    if spec.suspended {
        return Decision::Suspended;
    }
    let newest_due = now.saturating_sub(spec.offset).ok().and_then(|latest| spec.schedule.prev(latest));
    let Some(slot) = newest_due.filter(|slot| *slot > base) else {
        return match spec.next(base) {
            Some((slot, due)) => Decision::Wait { slot, due },
            None => Decision::Exhausted,
        };
    };
    let missed = spec.missed_between(base, slot);
    match refusal(spec, state, slot, now) {
        Some(reason) => Decision::PassOver { slot, missed, reason },
        None => Decision::Run { slot, catch_up: now.duration_since(spec.due(slot)) > ON_TIME, missed },
    }
}

/// Why the newest due slot may not start.
fn refusal(spec: &SlotSpec, state: &SlotState, slot: Timestamp, now: Timestamp) -> Option<MissedReason> {
    let late = now.duration_since(spec.due(slot));
    // Exactly at the deadline still starts, as a CronJob does.
    if spec.deadline.is_some_and(|deadline| late > signed(deadline)) {
        return Some(MissedReason::Deadline);
    }
    if state.active {
        return Some(MissedReason::Concurrency);
    }
    if late <= ON_TIME {
        return None;
    }
    if !spec.catch_up {
        return Some(MissedReason::ControllerDown);
    }
    // A catch-up just before the next slot would freeze the application twice in a row.
    let (next, next_due) = spec.next(slot)?;
    let margin = (next.duration_since(slot) / 20).min(ON_TIME);
    (next_due.duration_since(now) <= margin).then_some(MissedReason::ControllerDown)
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

fn base36(mut number: u64) -> String {
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
