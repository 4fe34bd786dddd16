//! How far the API server's clock is from ours, from the `Date` of its answers.
//!
//! Ages are computed from times that others wrote: while the two disagree by more than [`SKEW_TOLERANCE`] nothing is
//! deleted (docs/design/schedule.md §2.5). An answer that does not come changes nothing.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use kube::client::Body;
use stillpoint_api::clock::SharedClock;
use tokio::sync::watch;

use crate::meter::WorkObserver;
use crate::slots::SKEW_TOLERANCE;

/// Time between two looks: as often as the wall clock itself is read again.
const EVERY: Duration = Duration::from_secs(60);

/// Longest wait for an answer; an older one says little about now.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks for ever, and tells when the clocks begin or cease to differ.
pub(crate) async fn watch(
    client: Client,
    clock: SharedClock,
    ahead: watch::Sender<Option<SignedDuration>>,
    work: Arc<dyn WorkObserver>,
) {
    loop {
        match tokio::time::timeout(PATIENCE, ask(&client, &clock)).await {
            Ok(Ok(certain)) => {
                work.clocks_read(-certain);
                let found = beyond_tolerance(certain);
                ahead.send_if_modified(|known| {
                    let changed = known.is_some() != found.is_some();
                    if changed {
                        *known = found;
                    }
                    changed
                });
            }
            Ok(Err(error)) => tracing::debug!(error, "the API server's time is not known"),
            Err(_) => tracing::debug!("the API server did not tell its time"),
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn ask(client: &Client, clock: &SharedClock) -> Result<SignedDuration, String> {
    let request = Request::get("/version").body(Body::empty()).map_err(|error| error.to_string())?;
    let before = clock.wall();
    let answer = client.send(request).await.map_err(|error| error.to_string())?;
    let after = clock.wall();
    let date = answer.headers().get(http::header::DATE).and_then(|date| date.to_str().ok());
    let date = date.ok_or("it does not tell its time")?;
    let server = jiff::fmt::rfc2822::parse(date).map_err(|error| error.to_string())?.timestamp();
    Ok(certain(server, before, after))
}

/// How far `server`, in whole seconds, which was read between `before` and `after`, is ahead for certain; zero when the
/// clocks may agree.
fn certain(server: Timestamp, before: Timestamp, after: Timestamp) -> SignedDuration {
    let least = server.duration_since(after);
    // The fraction of its second was cut off.
    let most = server.duration_since(before) + SignedDuration::from_secs(1);
    least.max(SignedDuration::ZERO) + most.min(SignedDuration::ZERO)
}

/// The difference, when it is more than clocks ordinarily have.
fn beyond_tolerance(certain: SignedDuration) -> Option<SignedDuration> {
    (certain.abs() > SKEW_TOLERANCE).then_some(certain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn clocks_differ_only_when_it_is_certain() {
        let (before, after) = (at("2026-11-13T02:00:00Z"), at("2026-11-13T02:00:08Z"));
        for (server, expected) in [
            ("2026-11-13T02:00:04Z", None),
            ("2026-11-13T02:05:08Z", None),
            ("2026-11-13T02:05:09Z", Some(301)),
            ("2026-11-13T01:54:59Z", None),
            ("2026-11-13T01:54:58Z", Some(-301)),
            ("2025-11-13T02:00:00Z", Some(-31_535_999)),
        ] {
            let expected = expected.map(SignedDuration::from_secs);
            assert_eq!(beyond_tolerance(certain(at(server), before, after)), expected, "{server}");
        }
    }

    #[test]
    fn a_difference_that_the_answer_s_second_and_way_explain_is_none() {
        let (before, after) = (at("2026-11-13T02:00:00.5Z"), at("2026-11-13T02:00:01.5Z"));
        for (server, millis) in [
            ("2026-11-13T01:59:58Z", -1_500),
            ("2026-11-13T01:59:59Z", -500),
            ("2026-11-13T02:00:00Z", 0),
            ("2026-11-13T02:00:01Z", 0),
            ("2026-11-13T02:00:02Z", 500),
        ] {
            assert_eq!(certain(at(server), before, after), SignedDuration::from_millis(millis), "{server}");
        }
    }
}
