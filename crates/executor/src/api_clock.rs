//! How the API server's clock stands to ours (docs/design/freeze.md §4.6): its `Date`, read once before the freeze.

use std::time::Duration;

use http::Request;
use http::header::DATE;
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use kube::client::Body;
use stillpoint_api::clock::Clock;
use tracing::debug;

use crate::run::ApiClockReading;

/// Longest time the look may take: what it takes is how little it says.
const WITHIN: Duration = Duration::from_secs(2);
/// `Date` has whole seconds: it was up to this much more.
const RESOLUTION: SignedDuration = SignedDuration::from_secs(1);

/// Reads it. Every answer has a `Date`, also one that refuses; without one the clocks are taken to agree.
pub async fn read(client: &Client, clock: &dyn Clock) -> Option<ApiClockReading> {
    let request = Request::get("/version").body(Body::empty()).ok()?;
    let before = clock.mono();
    let answer = match tokio::time::timeout(WITHIN, client.send(request)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            debug!(%error, "the API server's clock was not read");
            return None;
        }
        Err(_) => return None,
    };
    let took = clock.mono().since(before);
    let date = jiff::fmt::rfc2822::parse(answer.headers().get(DATE)?.to_str().ok()?).ok()?.timestamp();
    reading(date, took).map(|(least, most)| ApiClockReading { at: before, least, most })
}

/// What the server's clock said when the question left: it answered `date` at some instant of `took`.
fn reading(date: Timestamp, took: Duration) -> Option<(Timestamp, Timestamp)> {
    let took = SignedDuration::try_from(took).ok()?;
    Some((date.checked_sub(took).ok()?, date.checked_add(RESOLUTION).ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use stillpoint_api::clock::Mono;
    use stillpoint_api::evidence::ApiClock;

    #[test]
    fn an_answer_bounds_the_clock_from_both_sides_and_setting_ours_meanwhile_changes_nothing() {
        let second = |seconds: i64| Timestamp::from_second(seconds).unwrap();
        let (least, most) = reading(second(1_000), Duration::from_millis(200)).unwrap();
        let at = Mono::from_origin(Duration::from_secs(50));
        let read = ApiClockReading { at, least, most };
        // Four seconds later our clock says 990: the server is at 1003.8 to 1005, and ahead by 13.8 s to 15 s.
        let now = at + Duration::from_secs(4);
        let ahead = ApiClock { least_ahead_micros: 13_800_000, most_ahead_micros: 15_000_000 };
        assert_eq!(read.against(now, second(990)), ahead);
        // Set forward by an hour in between: what is told is against the clock that t0 is written down by.
        let behind = read.against(now, second(990 + 3_600));
        assert_eq!(behind.least_ahead_micros, ahead.least_ahead_micros - 3_600_000_000);
    }
}
