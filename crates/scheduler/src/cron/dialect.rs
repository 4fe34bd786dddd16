//! The 5-field dialect: text in, sets of numbers out.
//!
//! Accepts what a Kubernetes CronJob accepts, plus `7` for Sunday; refuses everything else with the field named,
//! and refuses expressions that can never fire. The day rule is the CronJob's: when either day field is starred
//! both must match, otherwise one of them is enough (docs/design/schedule.md §1.1).

use std::fmt;
use std::time::Duration;

use super::schedule::ScheduleError;

/// Longest accepted expression in bytes: every number of every field spelled out takes about 360.
const MAX_EXPRESSION: usize = 512;

/// Shortest accepted `@every`: slots are named by their minute, so two of them may not share one.
const MIN_EVERY: Duration = Duration::from_secs(60);

/// Longest accepted `@every`: ten years; longer is a typing error.
const MAX_EVERY: Duration = Duration::from_secs(10 * 366 * 86_400);

/// The part of a schedule that an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// The expression as a whole.
    Expression,
    /// First field, 0-59.
    Minute,
    /// Second field, 0-23.
    Hour,
    /// Third field, 1-31.
    DayOfMonth,
    /// Fourth field, 1-12 or JAN-DEC.
    Month,
    /// Fifth field, 0-7 or SUN-SAT.
    DayOfWeek,
    /// The interval of `@every`.
    Interval,
    /// The time zone beside the expression.
    TimeZone,
}

/// What an expression says, before any zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    /// Matches on the wall calendar.
    Calendar(Sets),
    /// A fixed grid of instants.
    Every(Duration),
}

/// The matching numbers of each field as bit sets, and the two facts that are lost in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sets {
    /// Bits 0-59.
    pub minutes: u64,
    /// Bits 0-23.
    pub hours: u64,
    /// Bits 1-31.
    pub days: u64,
    /// Bits 1-12.
    pub months: u64,
    /// Bits 0-6, 0 is Sunday.
    pub weekdays: u64,
    /// How the two day fields combine.
    pub day_rule: DayRule,
    /// The hour field means "at intervals", so a repeated hour is run through twice.
    pub interval_hours: bool,
}

/// How day of month and day of week combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DayRule {
    /// At least one is starred: both must match.
    Both,
    /// Neither is starred: one match is enough.
    Either,
}

/// One field's set and whether one of its items was a star.
struct FieldSet {
    bits: u64,
    starred: bool,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expression => "expression",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::DayOfMonth => "day of month",
            Self::Month => "month",
            Self::DayOfWeek => "day of week",
            Self::Interval => "interval",
            Self::TimeZone => "timeZone",
        })
    }
}

impl Field {
    /// Smallest and largest number that may be written.
    const fn range(self) -> (u32, u32) {
        match self {
            Self::Minute => (0, 59),
            Self::Hour => (0, 23),
            Self::DayOfMonth => (1, 31),
            Self::Month => (1, 12),
            Self::DayOfWeek => (0, 7),
            Self::Expression | Self::Interval | Self::TimeZone => (0, 0),
        }
    }

    /// The last number of `*` and of `a/s`. 7 may be written for Sunday but is not counted to.
    const fn last(self) -> u32 {
        match self {
            Self::DayOfWeek => 6,
            other => other.range().1,
        }
    }

    /// Three-letter names and the number of the first.
    const fn names(self) -> (&'static [&'static str], u32) {
        match self {
            Self::Month => {
                (&["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1)
            }
            Self::DayOfWeek => (&["sun", "mon", "tue", "wed", "thu", "fri", "sat"], 0),
            Self::Expression
            | Self::Minute
            | Self::Hour
            | Self::DayOfMonth
            | Self::Interval
            | Self::TimeZone => (&[], 0),
        }
    }

    fn error(self, value: &str, reason: impl Into<String>) -> ScheduleError {
        ScheduleError { field: self, value: value.to_owned(), reason: reason.into() }
    }
}

impl Expression {
    /// Parses an expression.
    ///
    /// # Errors
    /// Names the field, what was written and why it is refused.
    pub fn parse(text: &str) -> Result<Self, ScheduleError> {
        let whole = |reason: &str| Field::Expression.error(text, reason);
        if text.len() > MAX_EXPRESSION {
            let shown: String = text.chars().take(40).collect();
            return Err(Field::Expression.error(&shown, "is longer than 512 bytes"));
        }
        let trimmed = text.trim_ascii();
        if trimmed.is_empty() {
            return Err(whole("is empty; write five fields, such as `0 2 * * *`"));
        }
        if trimmed.starts_with("TZ=") || trimmed.starts_with("CRON_TZ=") {
            return Err(whole("may not carry a zone; set `timeZone` beside it"));
        }
        if trimmed.starts_with('@') {
            return Self::parse_macro(trimmed);
        }
        let fields: Vec<&str> = trimmed.split_ascii_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields.as_slice() else {
            return Err(whole(&format!(
                "has {} fields; exactly five are needed: minute, hour, day of month, month, day of week",
                fields.len()
            )));
        };
        let minutes = parse_field(Field::Minute, minute)?;
        let hours = parse_field(Field::Hour, hour)?;
        let days = parse_field(Field::DayOfMonth, day)?;
        let months = parse_field(Field::Month, month)?;
        let weekdays = parse_field(Field::DayOfWeek, weekday)?;
        let all_hours = (1 << 24) - 1;
        let sets = Sets {
            minutes: minutes.bits,
            hours: hours.bits,
            days: days.bits,
            months: months.bits,
            weekdays: weekdays.bits,
            day_rule: if days.starred || weekdays.starred { DayRule::Both } else { DayRule::Either },
            interval_hours: hour.starts_with(['*', '?']) || hours.bits == all_hours,
        };
        if !sets.ever_fires() {
            return Err(Field::DayOfMonth
                .error(&format!("{day} {month}"), "never fires: none of these months has such a day"));
        }
        Ok(Self::Calendar(sets))
    }

    fn parse_macro(text: &str) -> Result<Self, ScheduleError> {
        if let Some(interval) = text.strip_prefix("@every") {
            return parse_every(interval.trim_ascii()).map(Self::Every);
        }
        Self::parse(match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => {
                return Err(Field::Expression.error(
                    other,
                    "is not a known macro; use @yearly, @monthly, @weekly, @daily, @hourly (lower case) or \
                     @every <duration>",
                ));
            }
        })
    }
}

impl Sets {
    /// Whether a calendar day matches. `weekday` counts from Sunday = 0.
    pub const fn matches_day(&self, month: u32, day: u32, weekday: u32) -> bool {
        let month = self.months >> month & 1 == 1;
        let day = self.days >> day & 1 == 1;
        let weekday = self.weekdays >> weekday & 1 == 1;
        month
            && match self.day_rule {
                DayRule::Both => day && weekday,
                DayRule::Either => day || weekday,
            }
    }

    /// A starred field holds every value, so only day of month against month can leave nothing.
    fn ever_fires(&self) -> bool {
        const LONGEST: [u32; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        match self.day_rule {
            DayRule::Either => true,
            DayRule::Both => (1_u32..).zip(LONGEST).any(|(month, longest)| {
                self.months >> month & 1 == 1 && self.days & ((1 << (longest + 1)) - 2) != 0
            }),
        }
    }
}

/// A list of items, none of them empty.
fn parse_field(field: Field, text: &str) -> Result<FieldSet, ScheduleError> {
    let mut set = FieldSet { bits: 0, starred: false };
    for item in text.split(',') {
        if item.is_empty() {
            return Err(field.error(text, "has an empty list item"));
        }
        let part = parse_item(field, item)?;
        set.bits |= part.bits;
        set.starred |= part.starred;
    }
    Ok(set)
}

/// `*`, `?`, `a`, `a-b`, each with an optional step.
fn parse_item(field: Field, item: &str) -> Result<FieldSet, ScheduleError> {
    let (range, step) = match item.split_once('/') {
        None => (item, None),
        Some((range, step)) => {
            let number = digits(step).ok_or_else(|| field.error(item, "has a step that is not a number"))?;
            if number == 0 {
                return Err(field.error(item, "has a step of 0"));
            }
            (range, Some(number))
        }
    };
    let (first, last, star) = if range == "*" || range == "?" {
        (field.range().0, field.last(), true)
    } else if let Some((first, last)) = range.split_once('-') {
        let (first, last) = (parse_number(field, item, first)?, parse_number(field, item, last)?);
        if first > last {
            return Err(field.error(item, "is a reversed range"));
        }
        (first, last, false)
    } else {
        let only = parse_number(field, item, range)?;
        (only, if step.is_some() { field.last().max(only) } else { only }, false)
    };
    let mut bits = 0_u64;
    let mut number = first;
    while number <= last {
        // 7 is Sunday too.
        bits |= 1 << if matches!(field, Field::DayOfWeek) { number % 7 } else { number };
        number = number.saturating_add(step.unwrap_or(1));
    }
    Ok(FieldSet { bits, starred: star && step.unwrap_or(1) == 1 })
}

fn parse_number(field: Field, item: &str, text: &str) -> Result<u32, ScheduleError> {
    let (names, base) = field.names();
    if let Some(index) = names.iter().position(|name| name.eq_ignore_ascii_case(text)) {
        return Ok(base + u32::try_from(index).unwrap_or(0));
    }
    let (low, high) = field.range();
    let number = digits(text).ok_or_else(|| {
        let allowed = if names.is_empty() {
            format!("`{text}` is not a number from {low} to {high}")
        } else {
            format!("`{text}` is neither a number from {low} to {high} nor a three-letter name")
        };
        field.error(item, allowed)
    })?;
    if number < low || number > high {
        return Err(field.error(item, format!("{text} is outside {low} to {high}")));
    }
    Ok(number)
}

/// Digits only: no sign, no space. Too large a number is as large as can be.
fn digits(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u32::MAX))
}

/// `1h30m`: whole numbers with h, m or s.
fn parse_every(text: &str) -> Result<Duration, ScheduleError> {
    let bad = |reason: &str| Field::Interval.error(text, reason);
    let mut seconds = 0_u64;
    let mut rest = text;
    if rest.is_empty() {
        return Err(bad("is missing; write `@every 90m`"));
    }
    while !rest.is_empty() {
        let length = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(length);
        let number = digits(number).ok_or_else(|| bad("is not a duration such as 1h30m"))?;
        let unit = match tail.as_bytes().first() {
            Some(b'h') => 3600,
            Some(b'm') => 60,
            Some(b's') => 1,
            _ => return Err(bad("needs whole numbers with the units h, m or s")),
        };
        seconds = seconds.saturating_add(u64::from(number).saturating_mul(unit));
        rest = &tail[1..];
    }
    let every = Duration::from_secs(seconds);
    if every < MIN_EVERY {
        return Err(bad("is shorter than 60s"));
    }
    if every > MAX_EVERY {
        return Err(bad("is longer than ten years"));
    }
    Ok(every)
}
