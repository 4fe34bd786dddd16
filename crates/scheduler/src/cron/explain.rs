//! A schedule told to a human: its slots, its intervals, whether an RPO can be met, and the clock changes ahead.

use std::time::Duration;

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
    pub clock_changes: Vec<Zoned>,
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
    let year = from.saturating_add(SignedDuration::from_hours(366 * 24)).unwrap_or(Timestamp::MAX);
    Ok(Explanation {
        slots: schedule.slots(from).take(count).map(zoned).collect(),
        min_interval: analysis.map(|found| found.min_interval),
        max_interval: analysis.map(|found| found.max_interval),
        // Without a second slot there is no interval that could meet it.
        rpo_attainable: rpo.map(|rpo| analysis.is_some_and(|found| found.max_interval <= rpo)),
        clock_changes: zone::changes(schedule.zone(), from, year).map(zoned).collect(),
    })
}

/// With the offset and without the zone's name: `2026-03-29T03:30:00+02:00`.
pub(crate) fn rfc3339(at: &Zoned) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}
