//! The only writer of a Backup's status while it runs.
//!
//! Every write is a PUT of the status with the resourceVersion that was read (compare-and-swap): a replica that lost
//! the run cannot go on writing. On a conflict the object is read again; if the run is still ours and its journal is
//! what we wrote, the change is applied anew, else the run is disowned (docs/design/freeze.md §5).

use std::time::Duration;

use kube::api::PostParams;
use kube::{Api, ResourceExt};
use stillpoint_api::backup::{Backup, BackupStatus};
use tracing::{debug, warn};

use crate::context::{Context, RequestError, bounded};

/// Pause between tries of a write that got no answer; the API server may be restarting.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Conflicts in a row after which the run counts as contested.
const MAX_CONFLICTS: u32 = 16;

/// Why a status write did not happen.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another replica owns the run, or the object is gone or another one.
    #[error("the run is no longer this replica's: {0}")]
    Disowned(String),
    /// The API server did not take it in time.
    #[error("the status could not be written within {within:?}: {source}")]
    Unwritten {
        /// How long it was tried.
        within: Duration,
        /// The last failure.
        source: RequestError,
    },
}

/// The Backup as last written, and the way to write it.
#[derive(Debug)]
pub struct Journal {
    /// `None`: nobody reads it, as of a rehearsal.
    api: Option<Api<Backup>>,
    backup: Backup,
}

impl Journal {
    /// A journal of a Backup as it was read.
    pub fn new(context: &Context, backup: Backup) -> Self {
        let namespace = backup.namespace().unwrap_or_default();
        Self { api: Some(Api::namespaced(context.client.clone(), &namespace)), backup }
    }

    /// A journal that is kept in memory only: of a Backup that does not exist.
    pub const fn unwritten(backup: Backup) -> Self {
        Self { api: None, backup }
    }

    /// The Backup as last read or written.
    pub const fn backup(&self) -> &Backup {
        &self.backup
    }

    /// Its status; the default where it has none yet.
    pub fn status(&self) -> BackupStatus {
        self.backup.status.clone().unwrap_or_default()
    }

    /// Applies a change to the status and writes it, trying for at most `within`.
    ///
    /// # Errors
    /// The run was lost, or the API server did not take the write in time.
    pub async fn write(
        &mut self,
        within: Duration,
        mut change: impl FnMut(&mut BackupStatus) + Send,
    ) -> Result<(), JournalError> {
        let mut conflicts = 0;
        let mut tried = Duration::ZERO;
        loop {
            let mut wanted = self.backup.clone();
            let mut status = wanted.status.take().unwrap_or_default();
            change(&mut status);
            wanted.status = Some(status);
            let name = wanted.name_any();
            let Some(api) = self.api.clone() else {
                self.backup = wanted;
                return Ok(());
            };
            // Server-side apply is not used: a deposed writer would roll the status back (docs/api.md).
            let params = PostParams::default();
            let put = api.replace_status(&name, &params, &wanted);
            match bounded(format!("write the status of Backup {name}"), put).await {
                Ok(written) => {
                    self.backup = written;
                    return Ok(());
                }
                Err(error) if error.is_conflict() && conflicts < MAX_CONFLICTS => {
                    conflicts += 1;
                    if self.read_again(&api, &name, &wanted.status.unwrap_or_default()).await? {
                        return Ok(());
                    }
                }
                Err(error) if error.is_not_found() || error.is_conflict() => {
                    return Err(JournalError::Disowned(error.to_string()));
                }
                Err(source) => {
                    if tried >= within {
                        return Err(JournalError::Unwritten { within, source });
                    }
                    debug!(backup = name, error = %source, "the status was not written; trying again");
                    tokio::time::sleep(RETRY_AFTER).await;
                    tried += RETRY_AFTER;
                }
            }
        }
    }

    /// Reads the Backup after a conflict, and checks that the run is still ours. Answers whether the write had
    /// happened after all: its answer was lost, and writing it again would journal it twice.
    async fn read_again(
        &mut self,
        api: &Api<Backup>,
        name: &str,
        wanted: &BackupStatus,
    ) -> Result<bool, JournalError> {
        let fresh = match bounded(format!("read Backup {name}"), api.get(name)).await {
            Ok(fresh) => fresh,
            Err(error) if error.is_not_found() => {
                return Err(JournalError::Disowned("it was deleted".into()));
            }
            // Read failed: the next write decides.
            Err(error) => {
                warn!(backup = name, %error, "reading again after a conflict failed");
                return Ok(false);
            }
        };
        let (ours, theirs) = (self.status(), fresh.status.clone().unwrap_or_default());
        if fresh.uid() != self.backup.uid() {
            return Err(JournalError::Disowned("another Backup has its name".into()));
        }
        if progress(&theirs) == progress(wanted) && progress(wanted) != progress(&ours) {
            self.backup = fresh;
            return Ok(true);
        }
        if theirs.executor != ours.executor
            || theirs.attempt != ours.attempt
            || theirs.journal != ours.journal
        {
            return Err(JournalError::Disowned(format!(
                "executor {:?} works on attempt {}",
                theirs.executor.unwrap_or_default(),
                theirs.attempt
            )));
        }
        self.backup = fresh;
        Ok(false)
    }
}

/// What every write moves: two statuses that agree in it are the same write. As JSON, because a time that was read back
/// has lost what lies below the microsecond.
fn progress(status: &BackupStatus) -> serde_json::Value {
    serde_json::json!({
        "executor": status.executor, "attempt": status.attempt, "phase": status.phase, "journal": status.journal,
    })
}
