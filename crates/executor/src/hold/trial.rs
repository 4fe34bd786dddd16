//! What is done beside a hold: whether its client stops at its first error is tried, whether anybody is stuck behind a lock
//! that was not acquired is asked, and a statement that the answer names is ended. None of it touches the hold's own
//! session.

use std::time::Duration;

use super::{HoldLine, HoldTexts, Nonce, Parsed};
use crate::client_words::{Said, explain};
use crate::exec::{Exec, ExecTarget, Outcome, Unknown, run_once};
use crate::resolve::RunHold;
use crate::run::{Abort, BlockerId, Reason, Stall};
use crate::session;
use stillpoint_api::template::placeholder::{self, BLOCKER};

/// A client that was told to fail ends at once; logging in takes its time.
const CANARY_WITHIN: Duration = Duration::from_secs(10);
/// A stall probe is asked every second and must not pile up.
const STALL_WITHIN: Duration = Duration::from_secs(2);
/// Ending a statement is one request to the server; a statement that takes longer to give up is seen by the next look.
const END_WITHIN: Duration = Duration::from_secs(2);
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
            Stall::Unknown { why: explain(&held.place(), &how, Said::by(&done, &held.messages)).message }
        }
        Err(error) => Stall::Unknown { why: session::refused(&target, &error).message },
    }
}

/// The line of a stall probe that says who is stuck; `None`: nobody is, for it printed nothing, or `none`.
pub fn stuck(stdout: &str) -> Option<&str> {
    let first = stdout.lines().map(str::trim).find(|line| !line.is_empty());
    first.filter(|line| !line.eq_ignore_ascii_case("none"))
}

/// What the output of a stall probe means.
fn said(stdout: &str) -> Stall {
    let Some(line) = stuck(stdout) else { return Stall::Clear };
    let by = line.chars().filter(|character| !character.is_control()).take(MAX_BLOCKER).collect();
    Stall::Blocked { by, id: named(line) }
}

/// The statement that a line names as `blocker=ID`. Two of them name none: exactly one may be ended.
fn named(line: &str) -> Option<BlockerId> {
    let mut ids = line.split_whitespace().filter_map(|word| word.strip_prefix("blocker="));
    let id = BlockerId::parse(ids.next()?)?;
    ids.next().is_none().then_some(id)
}

/// Ends one statement by the template's `stallProbe.endBlocker` (docs/design/freeze.md §3): `{{blocker}}` becomes its ID,
/// and nothing else does.
///
/// # Errors
/// Why the statement may go on.
pub async fn end_blocker(exec: &dyn Exec, held: &RunHold, id: &BlockerId) -> Result<(), String> {
    let argv = held.end_blocker.iter().map(|argument| {
        placeholder::replace(argument, |name| (name == BLOCKER).then(|| id.as_str().to_owned()))
    });
    let target = ExecTarget { argv: argv.collect(), stdin: false, ..held.target.clone() };
    match run_once(exec, &target, None, END_WITHIN).await {
        Ok(done) if done.outcome == Outcome::Exited(0) => Ok(()),
        Ok(done) => {
            let how = match &done.outcome {
                Outcome::Exited(code) => format!("it ended with code {code}"),
                Outcome::Failed(_) => "it could not be run".to_owned(),
                Outcome::Unknown(_) => format!("it did not answer within {END_WITHIN:?}"),
            };
            Err(explain(&held.place(), &how, Said::by(&done, &held.messages)).message)
        }
        Err(error) => Err(session::refused(&target, &error).message),
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
        assert_eq!(said("\n41 root\tSELECT\n42\n"), Stall::Blocked { by: "41 rootSELECT".into(), id: None });
        let Stall::Blocked { by, .. } = said(&"x".repeat(5000)) else { unreachable!() };
        assert_eq!(by.len(), MAX_BLOCKER);
    }

    #[test]
    fn a_statement_is_named_by_one_word_that_can_be_nothing_else() {
        let id = |line: &str| match said(line) {
            Stall::Blocked { id, .. } => id.map(|id| id.as_str().to_owned()),
            Stall::Clear | Stall::Unknown { .. } => panic!("{line}"),
        };
        assert_eq!(id("2 wait, blocker=236 is the statement of session 92\n"), Some("236".to_owned()));
        assert_eq!(id("blocker=a_B.7:c-9"), Some("a_B.7:c-9".to_owned()));
        let longest = "x".repeat(64);
        assert_eq!(id(&format!("blocker={longest}")), Some(longest.clone()));
        for none in [
            "session 92 is in the way",
            "blocker=",
            "blocker=41;",
            "blocker=41'--",
            "blocker=-41",
            "blocker={{n}}",
            "blocker=$(reboot)",
            "blocker=é",
            "Blocker=41",
            "the_blocker=41",
            "blocker=41 blocker=42",
            "blocker=41 blocker=41",
            &format!("blocker={longest}x"),
            "somebody waits\nblocker=41",
        ] {
            assert_eq!(id(none), None, "{none}");
        }
    }
}
