//! What is tried beside a hold: whether its client stops at its first error, and whether anybody is stuck behind a lock
//! that was not acquired. Neither touches the hold's own session.

use std::time::Duration;

use super::{HoldLine, HoldTexts, Nonce, Parsed};
use crate::exec::{Exec, ExecTarget, Outcome, Unknown, run_once};
use crate::resolve::RunHold;
use crate::run::{Abort, Reason, Stall};
use crate::session;

/// A client that was told to fail ends at once; logging in takes its time.
const CANARY_WITHIN: Duration = Duration::from_secs(10);
/// A stall probe is asked every second and must not pile up.
const STALL_WITHIN: Duration = Duration::from_secs(2);
/// How much of a blocker's name is kept.
const MAX_BLOCKER: usize = 200;

/// Runs the template's canary in a session of its own: a failing statement, then one that prints CANARY. A client that
/// prints it does not stop at its first error, and would say FROZEN without a lock (docs/design/freeze.md §2.2).
///
/// # Errors
/// Why the hold must not be opened.
pub async fn canary(exec: &dyn Exec, held: &RunHold, nonce: &Nonce) -> Result<(), Abort> {
    let HoldTexts::Session(texts) = &held.texts else { return Ok(()) };
    let internal = |why: String| Abort::new(Reason::Internal, format!("{}: {why}", held.place()));
    let Some(text) = texts.canary(nonce).map_err(|error| internal(error.to_string()))? else {
        return Ok(());
    };
    let done = run_once(exec, &held.target, Some(text), CANARY_WITHIN).await;
    let done = done.map_err(|error| session::refused(&held.target, &error))?;
    if done.stdout.lines().any(|line| HoldLine::parse(line, nonce) == Parsed::Line(HoldLine::Canary)) {
        return Err(Abort::new(
            Reason::CanaryPrinted,
            format!(
                "{}: the client goes on after a failed statement, so that FROZEN would prove nothing: give it the option \
                 that stops it at its first error (psql: -v ON_ERROR_STOP=1; mariadb and mysql: no --force)",
                held.place()
            ),
        ));
    }
    match (&done.outcome, done.refusal()) {
        (_, Some(error)) => Err(session::refused(&held.target, &error)),
        (Outcome::Unknown(Unknown::Deadline), None) => Err(Abort::new(
            Reason::HoldNotReady,
            format!(
                "{}: the client did not end within {CANARY_WITHIN:?} of a failed statement",
                held.place()
            ),
        )),
        // It ended. Why it could not even log in is what its session says next.
        (Outcome::Exited(_) | Outcome::Failed(_) | Outcome::Unknown(_), None) => Ok(()),
    }
}

/// Asks the template's stall probe (docs/design/freeze.md §3): nothing or `none` on its output means nobody.
pub async fn stall(exec: &dyn Exec, held: &RunHold) -> Stall {
    let target = ExecTarget { argv: held.stall_probe.clone(), stdin: false, ..held.target.clone() };
    match run_once(exec, &target, None, STALL_WITHIN).await {
        Ok(done) if done.outcome == Outcome::Exited(0) => said(&done.stdout),
        Ok(done) => {
            let how = match &done.outcome {
                Outcome::Exited(code) => format!("the stall probe ended with code {code}"),
                Outcome::Failed(_) => "the stall probe could not be run".to_owned(),
                Outcome::Unknown(_) => format!("the stall probe did not answer within {STALL_WITHIN:?}"),
            };
            Stall::Unknown { why: session::explain(&held.place(), &how, &done.stderr).message }
        }
        Err(error) => Stall::Unknown { why: session::refused(&target, &error).message },
    }
}

/// What the output of a stall probe means.
fn said(stdout: &str) -> Stall {
    let first = stdout.lines().map(str::trim).find(|line| !line.is_empty());
    match first {
        None => Stall::Clear,
        Some(word) if word.eq_ignore_ascii_case("none") => Stall::Clear,
        Some(by) => {
            let by = by.chars().filter(|character| !character.is_control()).take(MAX_BLOCKER).collect();
            Stall::Blocked { by }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_and_none_mean_nobody_and_a_line_names_who() {
        for clear in ["", "\n \n", "none\n", "None"] {
            assert_eq!(said(clear), Stall::Clear, "{clear:?}");
        }
        assert_eq!(said("\n41 root\tSELECT\n42\n"), Stall::Blocked { by: "41 rootSELECT".into() });
        let Stall::Blocked { by } = said(&"x".repeat(5000)) else { unreachable!() };
        assert_eq!(by.len(), MAX_BLOCKER);
    }
}
