//! A parsed schedule: the next and the previous slot, and what can be said about its intervals beforehand.
//!
//! `next(t) > t` always; slots are strictly increasing; `prev(t) <= t`. No next slot is `None`, never a zero time.

use std::fmt;
use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::calendar::Calendar;
use super::dialect::{Expression, Field, Sets};
use super::zone;

/// Seconds of a civil day.
const DAY: i64 = 86_400;

/// Years looked at for intervals: two leap days are inside.
const ANALYSIS_DAYS: i64 = 8 * 366;

/// Sub-hourly schedules repeat every day, so one year shows both clock changes.
const ANALYSIS_DAYS_DENSE: i64 = 366;

/// More slots a day than this is sub-hourly.
const DENSE_SLOTS_PER_DAY: u32 = 24;

/// A schedule that was refused: which part, what it said and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} `{value}`: {reason}")]
pub struct ScheduleError {
    /// The part that is wrong.
    pub field: Field,
    /// What was written there.
    pub value: String,
    /// Why it is refused and what to write instead.
    pub reason: String,
}

/// Intervals between consecutive slots, computed from the calendar and the zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Analysis {
    /// The shortest interval.
    pub min_interval: Duration,
    /// The longest interval; an RPO below it cannot be met (docs/design/schedule.md §4).
    pub max_interval: Duration,
}

/// A schedule in a zone.
#[derive(Clone)]
pub struct Schedule {
    kind: Kind,
    zone: TimeZone,
}

#[derive(Clone)]
enum Kind {
    Calendar { sets: Sets, calendar: Calendar },
    Every { anchor: Timestamp, every: Duration },
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Schedule");
        match &self.kind {
            Kind::Calendar { sets, .. } => shown.field("sets", sets),
            Kind::Every { anchor, every } => shown.field("anchor", anchor).field("every", every),
        };
        shown.field("zone", &self.zone_name()).finish()
    }
}

impl Schedule {
    /// Parses `expression` in the zone `zone_name`. `anchor` is the policy's creation and the origin of an
    /// `@every` grid; it means nothing to other expressions.
    ///
    /// # Errors
    /// The field, its value and the reason.
    pub fn parse(expression: &str, zone_name: &str, anchor: Timestamp) -> Result<Self, ScheduleError> {
        let kind = match Expression::parse(expression)? {
            Expression::Calendar(sets) => Kind::Calendar { calendar: Calendar::new(&sets)?, sets },
            Expression::Every(every) => Kind::Every { anchor: whole_second(anchor), every },
        };
        Ok(Self { kind, zone: zone::find(zone_name)? })
    }

    /// The zone.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The zone's canonical name.
    pub fn zone_name(&self) -> &str {
        self.zone.iana_name().unwrap_or("Etc/UTC")
    }

    /// The first slot strictly after `after`; `None` when there is none up to the year 2100.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let (sets, calendar) = match &self.kind {
            Kind::Every { anchor, every } => return next_on_grid(*anchor, *every, after),
            Kind::Calendar { sets, calendar } => (sets, calendar),
        };
        let start = zone::civil(&self.zone, after) - zone::disorder(&self.zone, after);
        let mut best: Option<(Timestamp, i64)> = None;
        // One second earlier, so that a match on the start itself is seen: it is later in time in a fold.
        for civil in calendar.after(start - 1) {
            if best.is_some_and(|(_, horizon)| civil > horizon) {
                break;
            }
            let found = zone::instants(&self.zone, civil, sets.interval_hours).iter().find(|at| *at > after);
            if let Some(at) = found.filter(|at| best.is_none_or(|(known, _)| *at < known)) {
                best = Some((at, zone::civil(&self.zone, at) + zone::disorder(&self.zone, at)));
            }
        }
        best.map(|(at, _)| at)
    }

    /// The newest slot at or before `at`; `None` when there is none since 1970 (or since the anchor).
    pub fn prev(&self, at: Timestamp) -> Option<Timestamp> {
        let (sets, calendar) = match &self.kind {
            Kind::Every { anchor, every } => return prev_on_grid(*anchor, *every, at),
            Kind::Calendar { sets, calendar } => (sets, calendar),
        };
        let start = zone::civil(&self.zone, at) + zone::disorder(&self.zone, at);
        let mut best: Option<(Timestamp, i64)> = None;
        for civil in calendar.until(start) {
            if best.is_some_and(|(_, horizon)| civil < horizon) {
                break;
            }
            let found =
                zone::instants(&self.zone, civil, sets.interval_hours).iter().rfind(|slot| *slot <= at);
            if let Some(slot) = found.filter(|slot| best.is_none_or(|(known, _)| *slot > known)) {
                best = Some((slot, zone::civil(&self.zone, slot) - zone::disorder(&self.zone, slot)));
            }
        }
        best.map(|(slot, _)| slot)
    }

    /// Slots after `after`, in order.
    pub fn slots(&self, after: Timestamp) -> impl Iterator<Item = Timestamp> + '_ {
        std::iter::successors(self.next(after), |slot| self.next(*slot))
    }

    /// The matches on the wall calendar in `[from, to)`, in civil seconds; none for `@every`, which knows no wall clock.
    pub(super) fn civil_slots(&self, from: i64, to: i64) -> Vec<i64> {
        match &self.kind {
            Kind::Every { .. } => Vec::new(),
            Kind::Calendar { calendar, .. } => {
                calendar.after(from - 1).take_while(|civil| *civil < to).collect()
            }
        }
    }

    /// When the match at `civil` runs: once, or twice where the clock shows it twice and the hours mean an interval.
    pub(super) fn instants_of(&self, civil: i64) -> impl Iterator<Item = Timestamp> {
        let both_passes = match &self.kind {
            Kind::Every { .. } => false,
            Kind::Calendar { sets, .. } => sets.interval_hours,
        };
        zone::instants(&self.zone, civil, both_passes).iter()
    }

    /// The first instant after `start` at which the zone's wall clock shows the time that is `length` later than what
    /// it shows at `start`. A time that is skipped is moved forward by the gap, as a slot is.
    pub fn wall_clock_after(&self, start: Timestamp, length: Duration) -> Timestamp {
        let length = i64::try_from(length.as_secs()).unwrap_or(i64::MAX);
        let civil = zone::civil(&self.zone, start).saturating_add(length);
        let found = zone::instants(&self.zone, civil, true).iter().find(|at| *at > start);
        found.unwrap_or(Timestamp::MAX)
    }

    /// By how much a stretch of `length` on the wall clock that ends about `at` can last longer than that: nothing
    /// unless the clock changes nearby.
    pub(crate) fn stretch(&self, at: Timestamp, length: Duration) -> SignedDuration {
        let near =
            SignedDuration::try_from(length).unwrap_or(SignedDuration::MAX).saturating_add(zone::REACH);
        let from = at.saturating_sub(near).unwrap_or(Timestamp::MIN);
        let to = at.saturating_add(zone::REACH).unwrap_or(Timestamp::MAX);
        if zone::changes(&self.zone, from, to).next().is_some() { zone::REACH } else { SignedDuration::ZERO }
    }

    /// The shortest and the longest interval in the years after `from`: eight, or one when slots are less than
    /// an hour apart. `None` when fewer than two slots are in them.
    pub fn analysis(&self, from: Timestamp) -> Option<Analysis> {
        let sets = match &self.kind {
            Kind::Every { every, .. } => {
                return Some(Analysis { min_interval: *every, max_interval: *every });
            }
            Kind::Calendar { sets, .. } => sets,
        };
        let per_day = sets.minutes.count_ones() * sets.hours.count_ones();
        let length = if per_day > DENSE_SLOTS_PER_DAY { ANALYSIS_DAYS_DENSE } else { ANALYSIS_DAYS };
        let first = zone::civil(&self.zone, from).div_euclid(DAY);
        let days: Vec<i64> = (first..first + length).filter(|day| matches(sets, *day)).collect();
        let times = times_of_day(sets);
        let changed: Vec<i64> = zone::changes(&self.zone, from, at_civil((first + length) * DAY))
            .map(|at| at.as_second() / DAY)
            .collect();
        // A clock change reaches two days at most: 26 h.
        let touched = |from: i64, to: i64| changed.iter().any(|day| from - 2 <= *day && *day <= to + 2);

        let mut span = Span::default();
        let (first_time, last_time) = (times.first()?, times.last()?);
        if days.iter().any(|day| !touched(*day, *day)) {
            times.windows(2).for_each(|pair| span.add(pair[1] - pair[0]));
        }
        let mut near_change: Vec<i64> = Vec::new();
        for pair in days.windows(2) {
            if touched(pair[0], pair[1]) {
                near_change.extend(pair);
            } else {
                span.add((pair[1] - pair[0]) * DAY + first_time - last_time);
            }
        }
        near_change.dedup();
        // Only runs of neighbouring matching days belong together.
        for run in near_change.chunk_by(|a, b| next_match(&days, *a) == Some(*b)) {
            let mut instants: Vec<i64> = run
                .iter()
                .flat_map(|day| times.iter().map(move |time| day * DAY + time))
                .flat_map(|civil| zone::instants(&self.zone, civil, sets.interval_hours).iter())
                .map(Timestamp::as_second)
                .collect();
            instants.sort_unstable();
            instants.dedup();
            instants.windows(2).for_each(|pair| span.add(pair[1] - pair[0]));
        }
        span.analysis()
    }
}

/// The running minimum and maximum of intervals in seconds.
#[derive(Default)]
struct Span(Option<(i64, i64)>);

impl Span {
    fn add(&mut self, seconds: i64) {
        let (low, high) = self.0.unwrap_or((seconds, seconds));
        self.0 = Some((low.min(seconds), high.max(seconds)));
    }

    fn analysis(&self) -> Option<Analysis> {
        let (low, high) = self.0?;
        let duration = |seconds: i64| u64::try_from(seconds).map(Duration::from_secs).ok();
        Some(Analysis { min_interval: duration(low)?, max_interval: duration(high)? })
    }
}

fn times_of_day(sets: &Sets) -> Vec<i64> {
    let hours = (0..24_i64).filter(|hour| sets.hours >> hour & 1 == 1);
    let minutes = |hour: i64| {
        (0..60_i64)
            .filter(|minute| sets.minutes >> minute & 1 == 1)
            .map(move |minute| hour * 3600 + minute * 60)
    };
    hours.flat_map(minutes).collect()
}

/// Whether the civil day, counted from 1970-01-01, matches.
fn matches(sets: &Sets, day: i64) -> bool {
    let Ok(naive) = Timestamp::from_second(day.saturating_mul(DAY)) else { return false };
    let date: Date = jiff::tz::Offset::UTC.to_datetime(naive).date();
    let unsigned = |number: i8| u32::from(number.unsigned_abs());
    // The calendar ends with 2100.
    date.year() <= 2100
        && sets.matches_day(
            unsigned(date.month()),
            unsigned(date.day()),
            unsigned(date.weekday().to_sunday_zero_offset()),
        )
}

fn next_match(days: &[i64], day: i64) -> Option<i64> {
    days.get(days.binary_search(&day).ok()? + 1).copied()
}

fn at_civil(civil: i64) -> Timestamp {
    Timestamp::from_second(civil).unwrap_or(Timestamp::MAX)
}

fn whole_second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// The first `anchor + k * every` (k >= 1) after `after`.
fn next_on_grid(anchor: Timestamp, every: Duration, after: Timestamp) -> Option<Timestamp> {
    grid(anchor, every, steps(anchor, every, after).max(0) + 1)
}

/// The newest `anchor + k * every` (k >= 1) at or before `at`.
fn prev_on_grid(anchor: Timestamp, every: Duration, at: Timestamp) -> Option<Timestamp> {
    let steps = steps(anchor, every, at);
    if steps < 1 { None } else { grid(anchor, every, steps) }
}

/// Whole steps from the anchor to `at`; negative before it.
fn steps(anchor: Timestamp, every: Duration, at: Timestamp) -> i128 {
    let elapsed = at.as_nanosecond() - anchor.as_nanosecond();
    elapsed.div_euclid(i128::try_from(every.as_nanos()).unwrap_or(i128::MAX))
}

fn grid(anchor: Timestamp, every: Duration, steps: i128) -> Option<Timestamp> {
    let seconds = i64::try_from(steps.checked_mul(i128::from(every.as_secs()))?).ok()?;
    anchor.checked_add(SignedDuration::from_secs(seconds)).ok()
}
