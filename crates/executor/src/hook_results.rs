//! How the parts of hooks went, read off the evidence of an attempt.
//!
//! Pure. A part that was given up because something else failed has no result: who failed has one.

use stillpoint_api::evidence::HoldEvidence;
use stillpoint_api::outcome::{HookPhase, HookResult};

use crate::exec::{ExecError, OneShot, Outcome, Unknown};
use crate::run::{Abort, End, Reason};

/// How the parts of a hold went that were begun.
pub fn of_hold(hold: &HoldEvidence, end: &End) -> Vec<(HookPhase, HookResult)> {
    let mut results = Vec::new();
    let lost = hold.lost.is_some();
    if hold.ready.is_none() && lost {
        // Its stream never got as far as a session that answers.
        results.push((HookPhase::Acquire, HookResult::ExecError));
    } else if hold.frozen.is_some() {
        results.push((HookPhase::Acquire, HookResult::Succeeded));
    } else if hold.freeze_sent.is_some() {
        // The server's refusal of a lock is no other reason than its silence.
        let result = match end {
            End::Aborted(_) | End::Thawed | End::Disowned(_) if lost => Some(HookResult::Failed),
            End::Aborted(Abort { reason: Reason::LockNotAcquired, .. }) => Some(HookResult::Timeout),
            End::Thawed | End::Aborted(_) | End::Disowned(_) => None,
        };
        results.extend(result.map(|result| (HookPhase::Acquire, result)));
    }
    if hold.frozen.is_some() {
        // What answers at the end was held until then.
        let held = hold.held.is_some() || hold.thawed.is_some();
        results.push((HookPhase::Hold, if held { HookResult::Succeeded } else { HookResult::Failed }));
    }
    if hold.frozen.is_some() && hold.thaw_sent.is_some() {
        let result = match (hold.thawed, lost) {
            (Some(_), _) => HookResult::Succeeded,
            (None, true) => HookResult::Failed,
            (None, false) => HookResult::Timeout,
        };
        results.push((HookPhase::Thaw, result));
    }
    results
}

/// How a command went that has nothing to answer but its exit code.
pub fn of_command(ran: &Result<OneShot, ExecError>) -> HookResult {
    match ran {
        Err(ExecError::Timeout { .. }) => HookResult::Timeout,
        Err(_) => HookResult::ExecError,
        Ok(done) => match &done.outcome {
            Outcome::Exited(0) => HookResult::Succeeded,
            Outcome::Unknown(Unknown::Deadline) => HookResult::Timeout,
            Outcome::Failed(_) => HookResult::ExecError,
            Outcome::Exited(_) | Outcome::Unknown(_) => HookResult::Failed,
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use stillpoint_api::evidence::{HoldAnswer, Offset};

    use super::*;

    fn hold() -> HoldEvidence {
        HoldEvidence {
            ready: Some(HoldAnswer::default()),
            freeze_sent: Some(Offset(0)),
            frozen: Some(HoldAnswer::default()),
            held: Some(HoldAnswer::default()),
            thaw_sent: Some(Offset(2)),
            thawed: Some(Offset(3)),
            ..HoldEvidence::default()
        }
    }

    fn aborted(reason: Reason) -> End {
        End::Aborted(Abort::new(reason, "why"))
    }

    #[test]
    fn each_part_of_a_hold_has_the_result_of_its_own() {
        use HookPhase::{Acquire, Hold, Thaw};
        use HookResult::{ExecError, Failed, Succeeded, Timeout};
        let lost = Some("gone".to_owned());
        let before_ready = HoldEvidence { lost: lost.clone(), ..HoldEvidence::default() };
        let unfrozen = HoldEvidence { frozen: None, held: None, thawed: None, ..hold() };
        let unthawed = HoldEvidence { held: None, thawed: None, ..hold() };
        let cases = [
            (
                "all went well",
                hold(),
                End::Thawed,
                vec![(Acquire, Succeeded), (Hold, Succeeded), (Thaw, Succeeded)],
            ),
            ("no session", before_ready, aborted(Reason::ClientMissing), vec![(Acquire, ExecError)]),
            ("no lock in time", unfrozen.clone(), aborted(Reason::LockNotAcquired), vec![(Acquire, Timeout)]),
            (
                "lost before the lock",
                HoldEvidence { lost: lost.clone(), ..unfrozen.clone() },
                aborted(Reason::HoldLost),
                vec![(Acquire, Failed)],
            ),
            ("another one failed", unfrozen, aborted(Reason::HoldLost), vec![]),
            ("never begun", HoldEvidence::default(), aborted(Reason::PrepareFailed), vec![]),
            (
                "lost while it mattered",
                HoldEvidence { lost, ..unthawed.clone() },
                aborted(Reason::HoldLost),
                vec![(Acquire, Succeeded), (Hold, Failed), (Thaw, Failed)],
            ),
            (
                "thawed without its proof",
                HoldEvidence { held: None, ..hold() },
                aborted(Reason::CutTimeout),
                vec![(Acquire, Succeeded), (Hold, Succeeded), (Thaw, Succeeded)],
            ),
            (
                "it stopped answering",
                unthawed,
                aborted(Reason::HoldLost),
                vec![(Acquire, Succeeded), (Hold, Failed), (Thaw, Timeout)],
            ),
        ];
        for (name, hold, end, expected) in cases {
            assert_eq!(of_hold(&hold, &end), expected, "{name}");
        }
    }

    #[test]
    fn a_command_that_was_not_run_is_no_command_that_failed() {
        let ended = |outcome| {
            Ok(OneShot {
                outcome,
                stdout: String::new(),
                stdout_truncated: false,
                stderr: String::new(),
                elapsed: Duration::ZERO,
            })
        };
        for (ran, expected) in [
            (ended(Outcome::Exited(0)), HookResult::Succeeded),
            (ended(Outcome::Exited(1)), HookResult::Failed),
            (ended(Outcome::Unknown(Unknown::Reset)), HookResult::Failed),
            (ended(Outcome::Unknown(Unknown::Deadline)), HookResult::Timeout),
            (Err(ExecError::Timeout { detail: String::new() }), HookResult::Timeout),
            (Err(ExecError::Other { detail: String::new() }), HookResult::ExecError),
        ] {
            assert_eq!(of_command(&ran), expected, "{ran:?}");
        }
    }
}
