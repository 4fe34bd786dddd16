//! The status of a Backup as a replica writes it: compare-and-swap, as the product's journal does.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use stillpoint_api::backup::BackupStatus;

use super::api::{Answer, Request};
use super::runtime::Handle;

/// Pause between tries of a write that got no answer.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Conflicts in a row after which the run counts as contested.
const MAX_CONFLICTS: u32 = 16;

/// Why a write did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalFailure {
    /// Another replica owns the run, or the object is gone.
    Disowned,
    /// The API server did not take it in time.
    Unwritten,
}

/// A Backup as last written.
#[derive(Debug)]
pub struct Journal {
    backup: usize,
    version: u64,
    /// Its status.
    pub status: BackupStatus,
}

impl Journal {
    /// A journal of a Backup as it was read.
    pub const fn new(_: &Handle, backup: usize, version: u64, status: BackupStatus) -> Self {
        Self { backup, version, status }
    }

    /// Applies a change to the status and writes it, trying for at most `within`.
    ///
    /// # Errors
    /// The run was lost, or the API server did not take the write in time.
    pub async fn write(
        journal: &Rc<RefCell<Self>>,
        handle: &Handle,
        within: Duration,
        mut change: impl FnMut(&mut BackupStatus),
    ) -> Result<(), JournalFailure> {
        let (mut conflicts, mut tried) = (0, Duration::ZERO);
        loop {
            let (backup, version, mut wanted) = {
                let ours = journal.borrow();
                (ours.backup, ours.version, ours.status.clone())
            };
            change(&mut wanted);
            let put = Request::PutStatus { backup, version, status: Box::new(wanted.clone()) };
            match handle.request(put).await {
                Some(Answer::Written(version)) => {
                    let mut ours = journal.borrow_mut();
                    (ours.version, ours.status) = (version, wanted);
                    return Ok(());
                }
                Some(Answer::Conflict) if conflicts < MAX_CONFLICTS => {
                    conflicts += 1;
                    if Self::read_again(journal, handle, &wanted).await? {
                        handle.with(|world| world.coverage.outcome("write whose answer was lost"));
                        return Ok(());
                    }
                }
                Some(_) => return Err(JournalFailure::Disowned),
                None => {
                    if tried >= within {
                        return Err(JournalFailure::Unwritten);
                    }
                    handle.sleep(RETRY_AFTER).await;
                    tried += RETRY_AFTER;
                }
            }
        }
    }

    /// Reads the Backup after a conflict. Answers whether the write had happened after all.
    async fn read_again(
        journal: &Rc<RefCell<Self>>,
        handle: &Handle,
        wanted: &BackupStatus,
    ) -> Result<bool, JournalFailure> {
        let backup = journal.borrow().backup;
        let (version, theirs) = match handle.request(Request::GetBackup(backup)).await {
            Some(Answer::Backup(version, status, _)) => (version, *status),
            Some(_) => return Err(JournalFailure::Disowned),
            // Read failed: the next write decides.
            None => return Ok(false),
        };
        let mut ours = journal.borrow_mut();
        if same_progress(&theirs, wanted) && !same_progress(wanted, &ours.status) {
            (ours.version, ours.status) = (version, theirs);
            return Ok(true);
        }
        let mine = &ours.status;
        if theirs.executor != mine.executor
            || theirs.attempt != mine.attempt
            || theirs.journal != mine.journal
        {
            return Err(JournalFailure::Disowned);
        }
        (ours.version, ours.status) = (version, theirs);
        Ok(false)
    }
}

/// Whether two statuses agree in what every write moves.
fn same_progress(one: &BackupStatus, other: &BackupStatus) -> bool {
    one.executor == other.executor
        && one.attempt == other.attempt
        && one.phase == other.phase
        && one.journal == other.journal
}
