//! When a policy is due: the cron dialect, its calendar, and its mapping to instants in a time zone.
//!
//! Guarantees: [`Schedule::next`] is strictly after its argument in every zone, also inside a repeated hour; no
//! civil slot is lost in a skipped hour; what can never fire is refused when it is parsed
//! (docs/design/schedule.md §1).

mod calendar;
mod dialect;
mod explain;
mod schedule;
mod zone;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod vectors;

pub use self::dialect::Field;
pub(crate) use self::explain::rfc3339;
pub use self::explain::{ClockChange, Effect, Explanation, explain};
pub use self::schedule::{Analysis, Schedule, ScheduleError};
