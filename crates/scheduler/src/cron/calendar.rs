//! Civil matches in order: the sets of an expression as a calendar without any zone.
//!
//! The `cron` crate is used here and nowhere else, and only in UTC: its own zone arithmetic goes backwards
//! inside a repeated hour, and its day rule and weekday numbers are not those of a CronJob
//! (docs/design/schedule.md §1.2). So it is given canonical number lists, and two calendars where either day
//! field may match. Times are civil seconds: seconds since 1970-01-01T00:00:00 on the wall.

use std::iter::Peekable;
use std::str::FromStr as _;

use chrono::{DateTime, Utc};

use super::dialect::{DayRule, Field, Sets};
use super::schedule::ScheduleError;

/// The matches of one expression on the wall calendar, 1970 to 2100.
#[derive(Clone, Debug)]
pub(super) struct Calendar {
    /// Matches are the union; two when either day field may match.
    parts: Vec<cron::Schedule>,
}

/// The union of ordered sequences, each value once.
struct Merged<I: Iterator<Item = i64>> {
    parts: Vec<Peekable<I>>,
    /// Ascending or descending.
    ascending: bool,
}

impl Calendar {
    /// Compiles `sets`.
    ///
    /// # Errors
    /// When the calendar library refuses what the dialect accepted; a defect, reported instead of a panic.
    pub fn new(sets: &Sets) -> Result<Self, ScheduleError> {
        let minutes = list(sets.minutes, 0, 59);
        let hours = list(sets.hours, 0, 23);
        let months = list(sets.months, 1, 12);
        let days = list(sets.days, 1, 31);
        // Sunday is 1 there and 0 here.
        let weekdays = list(sets.weekdays << 1, 1, 7);
        let compile = |days: &str, weekdays: &str| {
            let text = format!("0 {minutes} {hours} {days} {months} {weekdays}");
            cron::Schedule::from_str(&text).map_err(|error| ScheduleError {
                field: Field::Expression,
                value: text.clone(),
                reason: format!("was refused by the calendar: {error}"),
            })
        };
        let parts = match sets.day_rule {
            DayRule::Both => vec![compile(&days, &weekdays)?],
            DayRule::Either => vec![compile(&days, "*")?, compile("*", &weekdays)?],
        };
        Ok(Self { parts })
    }

    /// Matches strictly after `civil`, ascending.
    pub fn after(&self, civil: i64) -> impl Iterator<Item = i64> + '_ {
        let from = utc(civil);
        let parts = self.parts.iter().map(|part| part.after(&from).map(|at| at.timestamp()).peekable());
        Merged { parts: parts.collect(), ascending: true }
    }

    /// Matches at or before `civil`, descending.
    pub fn until(&self, civil: i64) -> impl Iterator<Item = i64> + '_ {
        // The library's bound is exclusive.
        let to = utc(civil.saturating_add(1));
        let parts = self.parts.iter().map(|part| part.after(&to).rev().map(|at| at.timestamp()).peekable());
        Merged { parts: parts.collect(), ascending: false }
    }
}

impl<I: Iterator<Item = i64>> Iterator for Merged<I> {
    type Item = i64;

    fn next(&mut self) -> Option<i64> {
        let heads = self.parts.iter_mut().filter_map(|part| part.peek().copied());
        let next = if self.ascending { heads.min()? } else { heads.max()? };
        for part in &mut self.parts {
            if part.peek() == Some(&next) {
                part.next();
            }
        }
        Some(next)
    }
}

/// `*` when the set is full, which the library walks faster, else the numbers.
fn list(bits: u64, first: u32, last: u32) -> String {
    let numbers: Vec<String> =
        (first..=last).filter(|number| bits >> number & 1 == 1).map(|number| number.to_string()).collect();
    if numbers.len() == (last - first + 1) as usize { "*".to_owned() } else { numbers.join(",") }
}

/// Out of the library's range means its very end.
fn utc(civil: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(civil, 0).unwrap_or(DateTime::<Utc>::MAX_UTC)
}
