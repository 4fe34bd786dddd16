//! What a process does with a run that it finds, by the run's last journal entry. Pure (docs/design/freeze.md §5).

use std::time::Duration;

use stillpoint_api::backup::{BackupStatus, JournalEntry, JournalKind};

use crate::ownership::Timing;

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
