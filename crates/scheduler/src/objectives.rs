//! Where a policy stands against its recovery point objective.
//!
//! The age is that of the newest proven cut, or of the protection itself when there is none: a policy that never
//! made a backup is not silent. The clock keeps ticking while suspended (docs/design/schedule.md §6).

use std::fmt;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// What the state follows from.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// The objective.
    pub rpo: Duration,
    /// Cut of the newest proven point that is ready.
    pub newest_proven: Option<Timestamp>,
    /// When protection started: creation of the policy.
    pub protected_since: Timestamp,
    /// The earliest time at which a new point can be cut: now while a run is active, else the next start.
    pub next_chance: Option<Timestamp>,
    /// Whether the schedule can meet the objective; see [`attainable`]. `None`: unknown.
    pub attainable: Option<bool>,
    /// The policy starts nothing.
    pub suspended: bool,
}

/// Where a policy stands, best first within each row of the design.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RpoState {
    /// No proven point yet, and the objective's time is not over.
    Pending,
    /// The newest proven point is young enough.
    Compliant,
    /// Still compliant, and certain to be breached: no chance comes in time.
    AtRisk,
    /// Older than the objective.
    Breached,
    /// Older than twice the objective.
    Severe,
    /// Still compliant, and starts nothing.
    Suspended,
    /// Still compliant, and the schedule cannot keep it so.
    Unattainable,
}

/// The state, what it is measured from, and when time alone changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assessment {
    /// The state.
    pub state: RpoState,
    /// The cut, or the start of protection, that the age is measured from.
    pub reference: Timestamp,
    /// When to look again although nothing happened.
    pub changes_at: Option<Timestamp>,
}

impl RpoState {
    /// The word in status and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Compliant => "Compliant",
            Self::AtRisk => "AtRisk",
            Self::Breached => "Breached",
            Self::Severe => "Severe",
            Self::Suspended => "Suspended",
            Self::Unattainable => "Unattainable",
        }
    }
}

impl fmt::Display for RpoState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Assesses a policy at `now`.
pub fn assess(standing: &Standing, now: Timestamp) -> Assessment {
    let reference = standing.newest_proven.unwrap_or(standing.protected_since);
    let breach = later(reference, standing.rpo);
    let severe = later(breach, standing.rpo);
    // What already happened comes before what is planned: a suspended policy that is too old is too old.
    let (state, changes_at) = if now > severe {
        (RpoState::Severe, None)
    } else if now > breach {
        (RpoState::Breached, Some(severe))
    } else if standing.suspended {
        (RpoState::Suspended, Some(breach))
    } else if standing.newest_proven.is_none() {
        (RpoState::Pending, Some(breach))
    } else if standing.attainable == Some(false) {
        (RpoState::Unattainable, Some(breach))
    } else if standing.next_chance.is_none_or(|chance| chance > breach) {
        (RpoState::AtRisk, Some(breach))
    } else {
        (RpoState::Compliant, Some(breach))
    };
    // Strictly after the bound: at the bound itself the objective is still met.
    let next_second = |at: Timestamp| later(at, Duration::from_secs(1));
    Assessment { state, reference, changes_at: changes_at.map(next_second) }
}

/// Whether a schedule whose longest interval is `max_interval` can meet `rpo` when a point counts `expected` after
/// its cut. A constant offset of the starts adds nothing.
pub fn attainable(max_interval: Duration, expected: Duration, rpo: Duration) -> bool {
    max_interval.saturating_add(expected) <= rpo
}

fn later(at: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| at.saturating_add(by).ok()).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + hour * HOUR).unwrap()
    }

    /// Protected since hour 0, RPO 24 h, next chance at hour 30, attainable.
    fn standing(newest_proven: Option<i64>) -> Standing {
        Standing {
            rpo: Duration::from_secs(24 * 3600),
            newest_proven: newest_proven.map(at),
            protected_since: at(0),
            next_chance: Some(at(30)),
            attainable: Some(true),
            suspended: false,
        }
    }

    fn state(standing: &Standing, hour: i64) -> RpoState {
        assess(standing, at(hour)).state
    }

    #[test]
    fn without_a_point_the_age_is_that_of_the_protection() {
        let none = standing(None);
        assert_eq!(state(&none, 1), RpoState::Pending);
        assert_eq!(state(&none, 25), RpoState::Breached);
        assert_eq!(state(&none, 49), RpoState::Severe);
        assert_eq!(assess(&none, at(1)).reference, at(0));
    }

    #[test]
    fn a_young_point_complies_up_to_and_including_the_objective() {
        let ten = standing(Some(10));
        assert_eq!(state(&ten, 34), RpoState::Compliant);
        assert_eq!(assess(&ten, at(12)).changes_at, Some(later(at(34), Duration::from_secs(1))));
        assert_eq!(state(&ten, 35), RpoState::Breached);
        assert_eq!(state(&ten, 58), RpoState::Breached);
        assert_eq!(state(&ten, 59), RpoState::Severe);
    }

    #[test]
    fn a_breach_that_no_chance_can_avert_is_announced() {
        assert_eq!(state(&standing(Some(5)), 6), RpoState::AtRisk);
        assert_eq!(state(&Standing { next_chance: None, ..standing(Some(10)) }, 12), RpoState::AtRisk);
    }

    #[test]
    fn a_suspended_policy_still_breaches() {
        let suspended = Standing { suspended: true, next_chance: None, ..standing(Some(10)) };
        assert_eq!(state(&suspended, 12), RpoState::Suspended);
        assert_eq!(state(&suspended, 40), RpoState::Breached);
    }

    #[test]
    fn a_schedule_that_is_too_sparse_says_so_while_it_complies() {
        let sparse = Standing { attainable: Some(false), ..standing(Some(10)) };
        assert_eq!(state(&sparse, 12), RpoState::Unattainable);
        assert!(!attainable(Duration::from_secs(25 * 3600), Duration::ZERO, Duration::from_secs(24 * 3600)));
        assert!(attainable(Duration::from_secs(24 * 3600), Duration::ZERO, Duration::from_secs(24 * 3600)));
    }

    #[test]
    fn a_point_that_is_deleted_behind_our_back_moves_the_reference_back() {
        assert_eq!(assess(&standing(Some(10)), at(20)).reference, at(10));
        assert_eq!(assess(&standing(None), at(20)).reference, at(0));
    }

    /// Every state at both sides of every bound. Ages are hours since the reference; RPO 24 h, looked at every hour.
    #[test]
    fn the_states_by_age() {
        use RpoState::{AtRisk, Breached, Compliant, Pending, Severe, Suspended, Unattainable};
        let base = |point: bool| Standing { next_chance: Some(at(24)), ..standing(point.then_some(0)) };
        let cases: [(&str, Standing, [RpoState; 4]); 7] = [
            ("no point yet", base(false), [Pending, Pending, Breached, Severe]),
            ("a chance in time", base(true), [Compliant, Compliant, Breached, Severe]),
            (
                "a chance one second too late",
                Standing { next_chance: Some(later(at(24), Duration::from_secs(1))), ..base(true) },
                [AtRisk, AtRisk, Breached, Severe],
            ),
            (
                "no chance at all",
                Standing { next_chance: None, ..base(true) },
                [AtRisk, AtRisk, Breached, Severe],
            ),
            (
                "too sparse a schedule",
                Standing { attainable: Some(false), ..base(true) },
                [Unattainable, Unattainable, Breached, Severe],
            ),
            (
                "suspended",
                Standing { suspended: true, next_chance: None, attainable: Some(false), ..base(true) },
                [Suspended, Suspended, Breached, Severe],
            ),
            (
                "suspended without a point",
                Standing { suspended: true, next_chance: None, ..base(false) },
                [Suspended, Suspended, Breached, Severe],
            ),
        ];
        for (name, standing, expected) in cases {
            let bound = Duration::from_secs(1);
            let looks = [at(1), at(24), later(at(24), bound), later(at(48), bound)];
            assert_eq!(looks.map(|now| assess(&standing, now).state), expected, "{name}");
            // Whoever looks when told so misses no change, and a state that never changes by time is never looked at.
            let mut now = at(1);
            let mut seen = vec![assess(&standing, now).state];
            while let Some(next) = assess(&standing, now).changes_at {
                assert!(next > now, "{name}");
                now = next;
                seen.push(assess(&standing, now).state);
            }
            assert_eq!(seen, [expected[0], Breached, Severe], "{name}");
        }
    }
}
