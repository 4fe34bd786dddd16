//! A schedule told to a human: its slots, its intervals, whether an RPO can be met, and what the changes of the clock
//! in the coming year do to it.

use std::time::Duration;

use jiff::civil::DateTime;
use jiff::{SignedDuration, Timestamp, Zoned};

use super::schedule::{Schedule, ScheduleError};
use super::zone;

/// What a schedule will do.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The next slots, in the schedule's zone.
    pub slots: Vec<Zoned>,
    /// The shortest interval; `None` when the schedule fires at most once more.
    pub min_interval: Option<Duration>,
    /// The longest interval.
    pub max_interval: Option<Duration>,
    /// Whether every run succeeding would meet the RPO; `None` without an RPO.
    pub rpo_attainable: Option<bool>,
    /// The changes of the zone's clock in the coming year.
    pub clock_changes: Vec<ClockChange>,
}

/// A change of the zone's clock, and what it does to the schedule.
#[derive(Clone, Debug)]
pub struct ClockChange {
    /// The first instant of the new time.
    pub at: Zoned,
    /// How far the clock goes forward; negative when it goes back.
    pub forward: SignedDuration,
    /// What happens to the slots in the hour that is skipped or comes twice.
    pub effect: Effect,
    /// The shortest and the longest of the intervals about the change: two slots before it to two after it.
    pub intervals: Option<(Duration, Duration)>,
}

/// What a change of the clock does to the slots in the hour that is skipped or comes twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// There is none.
    Untouched,
    /// They are moved forward by as much as the clock.
    Moved {
        /// How many.
        slots: usize,
        /// What the wall clock would have shown at the first.
        written: DateTime,
        /// When that one runs.
        runs: Zoned,
    },
    /// They run the first time that the wall clock shows them.
    Once {
        /// How many.
        slots: usize,
        /// The first.
        first: Zoned,
    },
    /// They run both times, because the hours mean an interval.
    Twice {
        /// How many, each time.
        slots: usize,
        /// The first.
        first: Zoned,
    },
}

/// Explains `expression` in `zone_name`: `count` slots after `from`, and `rpo` against the longest interval.
/// `from` also anchors `@every`.
///
/// # Errors
/// The field that is wrong, as [`Schedule::parse`].
pub fn explain(
    expression: &str,
    zone_name: &str,
    from: Timestamp,
    count: usize,
    rpo: Option<Duration>,
) -> Result<Explanation, ScheduleError> {
    let schedule = Schedule::parse(expression, zone_name, from)?;
    let zoned = |at: Timestamp| at.to_zoned(schedule.zone().clone());
    let analysis = schedule.analysis(from);
    let year = from.saturating_add(SignedDuration::from_hours(365 * 24)).unwrap_or(Timestamp::MAX);
    let changes = zone::changes(schedule.zone(), from, year);
    Ok(Explanation {
        slots: schedule.slots(from).take(count).map(zoned).collect(),
        min_interval: analysis.map(|found| found.min_interval),
        max_interval: analysis.map(|found| found.max_interval),
        // Without a second slot there is no interval that could meet it.
        rpo_attainable: rpo.map(|rpo| analysis.is_some_and(|found| found.max_interval <= rpo)),
        clock_changes: changes.map(|at| clock_change(&schedule, at)).collect(),
    })
}

fn clock_change(schedule: &Schedule, at: Timestamp) -> ClockChange {
    let zone = schedule.zone();
    let before = at.checked_sub(SignedDuration::from_nanos(1)).unwrap_or(at);
    let seconds = |at: Timestamp| i64::from(zone.to_offset(at).seconds());
    let (old, new) = (seconds(before), seconds(at));
    // The civil times that are skipped, or that come twice.
    let (first, end) = (at.as_second() + old.min(new), at.as_second() + old.max(new));
    let touched = schedule.civil_slots(first, end);
    let runs = |civil: i64| schedule.instants_of(civil).map(|at| at.to_zoned(zone.clone())).next();
    let effect = match touched.first().and_then(|civil| Some((*civil, runs(*civil)?))) {
        None => Effect::Untouched,
        Some((civil, runs)) if new > old => {
            let naive = Timestamp::from_second(civil).unwrap_or(at);
            let written = jiff::tz::Offset::UTC.to_datetime(naive);
            Effect::Moved { slots: touched.len(), written, runs }
        }
        Some((civil, first)) if schedule.instants_of(civil).count() == 2 => {
            Effect::Twice { slots: touched.len(), first }
        }
        Some((_, first)) => Effect::Once { slots: touched.len(), first },
    };
    ClockChange {
        at: at.to_zoned(zone.clone()),
        forward: SignedDuration::from_secs(new - old),
        effect,
        intervals: intervals_about(schedule, before),
    }
}

/// The shortest and the longest interval from two slots before `at` to two after it.
fn intervals_about(schedule: &Schedule, at: Timestamp) -> Option<(Duration, Duration)> {
    let last = schedule.prev(at)?;
    let earlier = last.checked_sub(SignedDuration::from_nanos(1)).ok().and_then(|at| schedule.prev(at));
    let slots: Vec<Timestamp> =
        earlier.into_iter().chain([last]).chain(schedule.slots(last).take(2)).collect();
    let gaps = || slots.windows(2).map(|pair| pair[1].duration_since(pair[0]).unsigned_abs());
    Some((gaps().min()?, gaps().max()?))
}

/// With the offset and without the zone's name: `2026-03-29T03:30:00+02:00`.
pub(crate) fn rfc3339(at: &Zoned) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}
