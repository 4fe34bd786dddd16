//! Recurring windows in which nothing starts.
//!
//! A window is half-open: its end is outside. It ends when the wall clock of its zone first shows the end, so a night
//! of 22:00 to 06:00 is over at 06:00 also when the clocks change in it. Where windows overlap the stricter one wins
//! (docs/design/schedule.md §2.4), whether it is the policy's or one of a ProtectionRule; a window knows whose it is, so
//! that what is dropped can be told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use stillpoint_api::policy::BlackoutAction;

use crate::cron::Schedule;

/// Windows that may follow one on another before what they defer is given up: far more than anybody writes.
const CHAIN: usize = 64;

/// The windows that a policy is under.
#[derive(Clone, Debug, Default)]
pub struct Blackouts {
    windows: Vec<Window>,
}

/// One recurring window.
#[derive(Clone, Debug)]
pub struct Window {
    /// When it starts.
    pub starts: Arc<Schedule>,
    /// Its length on the wall clock.
    pub length: Duration,
    /// What it does with a slot.
    pub action: BlackoutAction,
    /// Name of the ProtectionRule whose window it is; `None`: the policy's own.
    pub rule: Option<Arc<str>>,
}

/// The windows that hold at an instant, as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The strictest action of them.
    pub action: BlackoutAction,
    /// From when that action holds without a break.
    pub from: Timestamp,
    /// Until when, exclusive.
    pub to: Timestamp,
    /// Whether a rule's window is among those with that action.
    pub ruled: bool,
}

/// What becomes of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It happens at this time: when it is due, or deferred.
    Starts(Timestamp),
    /// It is dropped, and so is everything due between these.
    Dropped {
        /// From when.
        from: Timestamp,
        /// Until when, exclusive.
        to: Timestamp,
        /// Whether a rule's window had a part in it.
        ruled: bool,
    },
}

impl Window {
    /// The end of the occurrence that starts at `start`.
    fn end(&self, start: Timestamp) -> Timestamp {
        self.starts.wall_clock_after(start, self.length)
    }

    /// From when until when the window holds at `at`, if it does. Its own occurrences may overlap.
    fn holding(&self, at: Timestamp) -> Option<(Timestamp, Timestamp)> {
        let reach = SignedDuration::try_from(self.length).ok()? + self.starts.stretch(at, self.length);
        let earliest = at.saturating_sub(reach).unwrap_or(Timestamp::MIN);
        let mut held: Option<(Timestamp, Timestamp)> = None;
        let mut start = self.starts.prev(at);
        while let Some(from) = start.filter(|start| *start >= earliest) {
            let to = self.end(from);
            if to > at {
                held = Some((from, held.map_or(to, |(_, known)| known.max(to))));
            }
            start = just_before(from).and_then(|before| self.starts.prev(before));
        }
        held
    }
}

impl Blackouts {
    /// These windows.
    pub fn new(windows: Vec<Window>) -> Self {
        Self { windows }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// What holds at `at`.
    pub fn at(&self, at: Timestamp) -> Option<Hold> {
        let mut held: Option<Hold> = None;
        for window in &self.windows {
            let Some((from, to)) = window.holding(at) else { continue };
            let ruled = window.rule.is_some();
            held = Some(match held {
                Some(known) if strictness(known.action) > strictness(window.action) => known,
                Some(known) if known.action == window.action => Hold {
                    action: known.action,
                    from: known.from.min(from),
                    to: known.to.max(to),
                    ruled: known.ruled || ruled,
                },
                Some(_) | None => Hold { action: window.action, from, to, ruled },
            });
        }
        held
    }

    /// Names of the rules that have a window here, each once.
    pub fn rules(&self) -> BTreeSet<&str> {
        self.windows.iter().filter_map(|window| window.rule.as_deref()).collect()
    }

    /// Whose windows hold at `at`, for people: the policy's, and those of which rules. When none holds there any more: of
    /// which rules there are windows.
    pub fn whose(&self, at: Timestamp) -> String {
        let holding: Vec<&Window> =
            self.windows.iter().filter(|window| window.holding(at).is_some()).collect();
        let own = holding.iter().any(|window| window.rule.is_none());
        let mut rules: BTreeSet<&str> = holding.iter().filter_map(|window| window.rule.as_deref()).collect();
        if rules.is_empty() {
            rules = self.rules();
        }
        let rules = rules.into_iter().collect::<Vec<_>>().join(", ");
        if own {
            format!("inside blackouts of the policy and of ProtectionRule {rules}")
        } else {
            format!("inside a blackout of ProtectionRule {rules}")
        }
    }

    /// When the next window starts after `at`; [`Timestamp::MAX`] when none does.
    pub fn next_start(&self, at: Timestamp) -> Timestamp {
        self.windows.iter().filter_map(|window| window.starts.next(at)).min().unwrap_or(Timestamp::MAX)
    }

    /// What becomes of a start that is due at `due`. One that is deferred starts `offset` after the end of the window,
    /// so that what the window held back is spread as it was before.
    pub fn fate(&self, due: Timestamp, offset: Duration) -> Fate {
        let offset = SignedDuration::try_from(offset).unwrap_or(SignedDuration::ZERO);
        let (mut start, mut first) = (due, None);
        let mut ruled = false;
        for _ in 0..CHAIN {
            let Some(hold) = self.at(start) else { return Fate::Starts(start) };
            let first = *first.get_or_insert(hold);
            ruled |= hold.ruled;
            match hold.action {
                BlackoutAction::Defer => start = hold.to.saturating_add(offset).unwrap_or(Timestamp::MAX),
                BlackoutAction::Skip => return Fate::Dropped { from: first.from, to: first.to, ruled },
            }
        }
        first.map_or(Fate::Starts(start), |hold| Fate::Dropped { from: hold.from, to: hold.to, ruled })
    }

    /// The starts of windows after `from`, in order.
    pub fn starts(&self, from: Timestamp) -> impl Iterator<Item = Timestamp> + '_ {
        let first = self.next_start(from);
        std::iter::successors((first < Timestamp::MAX).then_some(first), |start| {
            let next = self.next_start(*start);
            (next < Timestamp::MAX).then_some(next)
        })
    }
}

/// Skipping is stricter than deferring.
const fn strictness(action: BlackoutAction) -> u8 {
    match action {
        BlackoutAction::Defer => 0,
        BlackoutAction::Skip => 1,
    }
}

/// The last instant before `at`.
pub(crate) fn just_before(at: Timestamp) -> Option<Timestamp> {
    at.checked_sub(SignedDuration::from_nanos(1)).ok()
}
