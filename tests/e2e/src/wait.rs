//! Waiting: on a condition, with a deadline, and with the last reason why it was not met.

use std::time::Duration;

use stillpoint_api::clock::{Clock as _, SystemClock};

use crate::{Outcome, Problem};

/// Pause between two looks. It decides how soon a change is noticed, never whether.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// What a look found.
#[derive(Debug)]
pub enum Look<T> {
    /// The condition holds.
    Done(T),
    /// It does not, and this is what was seen instead.
    NotYet(String),
}

impl<T> Look<T> {
    /// `Done` when there is a value.
    pub fn at(found: Option<T>, otherwise: impl Into<String>) -> Self {
        found.map_or_else(|| Self::NotYet(otherwise.into()), Self::Done)
    }
}

/// Looks until the condition holds.
///
/// # Errors
/// It did not hold within `limit`, or a look failed.
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Outcome<Look<T>>,
) -> Outcome<T> {
    let clock = SystemClock::new();
    let begun = clock.mono();
    loop {
        match look().await? {
            Look::Done(value) => return Ok(value),
            Look::NotYet(seen) if clock.mono().since(begun) > limit => {
                return Err(Problem(format!("after {limit:?} still waiting for {what}; last seen: {seen}")));
            }
            Look::NotYet(_) => tokio::time::sleep(BETWEEN_LOOKS).await,
        }
    }
}

/// Microseconds since 1970 on this machine's clock, which pods of the test cluster share.
pub fn now_micros() -> i64 {
    SystemClock::new().wall().as_microsecond()
}
