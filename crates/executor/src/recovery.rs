//! What a process does with a run that it finds, by the run's last journal entry. Pure (docs/design/freeze.md §5).

use std::time::Duration;

use stillpoint_api::backup::{BackupStatus, JournalEntry, JournalKind};

use crate::ownership::Timing;
use crate::run::Reason;

/// The row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// Nobody began it.
    Begin,
    /// It was being prepared: nothing was frozen; sessions may be open until their lease ends.
    WaitForSessions {
        /// How long, on our own clock.
        wait: Duration,
    },
    /// It was about to freeze, or frozen: it counts as frozen until every end has had its time.
    WaitForHolds {
        /// How long, on our own clock. Stored times are not used: clocks differ, and a stopped peer is not dead.
        wait: Duration,
        /// Nonce of the attempt.
        nonce: String,
    },
    /// The attempt was given up: clean up, and try again if the slot allows.
    CleanUp {
        /// Nonce of the attempt.
        nonce: String,
        /// Why it was given up.
        reason: String,
        /// The same for people.
        message: String,
    },
    /// It was thawed with complete evidence.
    Settle {
        /// Nonce of the attempt.
        nonce: String,
    },
}

/// Which row applies, for whoever takes the run now.
pub fn row(status: &BackupStatus, timing: &Timing) -> Row {
    if status.attempt == 0 {
        return Row::Begin;
    }
    let of_attempt = |entry: &&JournalEntry| entry.attempt == status.attempt;
    let Some(last) = status.journal.iter().rev().find(of_attempt) else {
        return Row::WaitForSessions { wait: timing.ready_lease };
    };
    match last.entry {
        JournalKind::Freezing => {
            // Without the bound in the entry the longest that any policy may ask for.
            let most = Duration::from_millis(last.max_hold_millis.unwrap_or(300_000));
            Row::WaitForHolds {
                wait: most + timing.past_promise + timing.ready_lease,
                nonce: last.nonce.clone(),
            }
        }
        JournalKind::Aborted => Row::CleanUp {
            nonce: last.nonce.clone(),
            reason: last.reason.clone().unwrap_or_else(|| "Interrupted".to_owned()),
            message: last.message.clone().unwrap_or_default(),
        },
        JournalKind::Thawed => Row::Settle { nonce: last.nonce.clone() },
    }
}

/// Whether the last two attempts, one after the other, ended because a lock was not acquired: what is in the way of it stays
/// there, and another try would only stop writers once more (docs/design/freeze.md §3).
pub fn blocked_twice(status: &BackupStatus) -> bool {
    let blocked = |entry: &JournalEntry| {
        let named = |reason: Reason| entry.reason.as_deref() == Some(reason.as_str());
        named(Reason::LockNotAcquired) || named(Reason::ApplicationLeftQuiesced)
    };
    let mut aborted = status.journal.iter().rev().filter(|entry| entry.entry == JournalKind::Aborted);
    match (aborted.next(), aborted.next()) {
        (Some(last), Some(before)) => {
            blocked(last)
                && blocked(before)
                && last.attempt == status.attempt
                && before.attempt + 1 == last.attempt
        }
        (Some(_) | None, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    const READY_LEASE: Duration = Duration::from_secs(30);

    fn row(status: &BackupStatus) -> Row {
        super::row(status, &Timing::default())
    }

    fn status(attempt: u32, entries: &[(JournalKind, u32)]) -> BackupStatus {
        let journal = entries
            .iter()
            .map(|(entry, attempt)| JournalEntry {
                entry: *entry,
                attempt: *attempt,
                nonce: format!("n{attempt}"),
                executor: "a".into(),
                at: MicroTime(jiff::Timestamp::UNIX_EPOCH),
                max_hold_millis: Some(10_000),
                reason: Some("CutTimeout".into()),
                message: None,
                not_proven_thawed: Vec::new(),
            })
            .collect();
        BackupStatus { attempt, journal, ..BackupStatus::default() }
    }

    fn gave_up(attempts: &[(u32, Reason)]) -> BackupStatus {
        let entries: Vec<_> = attempts.iter().map(|(attempt, _)| (JournalKind::Aborted, *attempt)).collect();
        let mut status = status(attempts.last().unwrap().0, &entries);
        for (entry, (_, reason)) in status.journal.iter_mut().zip(attempts) {
            entry.reason = Some(reason.as_str().to_owned());
        }
        status
    }

    #[test]
    fn two_locks_in_a_row_that_were_not_acquired_end_the_slot() {
        use Reason::{ApplicationLeftQuiesced, CutTimeout, LockNotAcquired};
        for (attempts, ends) in [
            (&[(1, LockNotAcquired)][..], false),
            (&[(1, LockNotAcquired), (2, LockNotAcquired)], true),
            (&[(1, LockNotAcquired), (2, ApplicationLeftQuiesced)], true),
            (&[(1, LockNotAcquired), (2, CutTimeout)], false),
            (&[(1, LockNotAcquired), (2, CutTimeout), (3, LockNotAcquired)], false),
            (&[(1, CutTimeout), (2, LockNotAcquired), (3, LockNotAcquired)], true),
            // Attempt 2 was refused before anything was frozen: not in a row.
            (&[(1, LockNotAcquired), (3, LockNotAcquired)], false),
            (&[(1, CutTimeout), (2, CutTimeout)], false),
        ] {
            assert_eq!(blocked_twice(&gave_up(attempts)), ends, "{attempts:?}");
        }
        let mut next = gave_up(&[(1, LockNotAcquired), (2, LockNotAcquired)]);
        next.attempt = 3;
        assert!(!blocked_twice(&next), "what failed last was refused");
    }

    #[test]
    fn a_run_that_nobody_began_begins() {
        assert_eq!(row(&BackupStatus::default()), Row::Begin);
    }

    #[test]
    fn a_run_that_was_being_prepared_waits_for_its_sessions_to_end() {
        assert_eq!(row(&status(1, &[])), Row::WaitForSessions { wait: READY_LEASE });
        let second = status(2, &[(JournalKind::Freezing, 1), (JournalKind::Aborted, 1)]);
        assert_eq!(row(&second), Row::WaitForSessions { wait: READY_LEASE });
    }

    #[test]
    fn a_run_that_was_frozen_counts_as_frozen_until_every_end_had_its_time() {
        let wait = Duration::from_secs(10 + 5 + 30);
        assert_eq!(
            row(&status(1, &[(JournalKind::Freezing, 1)])),
            Row::WaitForHolds { wait, nonce: "n1".into() }
        );
    }

    #[test]
    fn a_thawed_run_is_settled_from_its_evidence() {
        let thawed = status(1, &[(JournalKind::Freezing, 1), (JournalKind::Thawed, 1)]);
        assert_eq!(row(&thawed), Row::Settle { nonce: "n1".into() });
    }

    #[test]
    fn an_aborted_run_is_cleaned_up() {
        let aborted = status(1, &[(JournalKind::Freezing, 1), (JournalKind::Aborted, 1)]);
        assert!(matches!(row(&aborted), Row::CleanUp { reason, .. } if reason == "CutTimeout"));
    }
}
