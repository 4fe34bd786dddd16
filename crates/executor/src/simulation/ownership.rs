//! Claims, workload locks and the sweeper as replicas of the simulation use them: the product's own pure decisions.

use std::time::Duration;

use stillpoint_api::backup::BackupStatus;

pub use crate::ownership::claim::{Claim, decide};
pub use crate::ownership::peers::{Peers, Sighting};
use crate::ownership::sweeper::{self, Ours};
pub use crate::ownership::workload::{Decision, Holder, Workload, decide as decide_lock, workloads};
pub use crate::ownership::{OwnLease, Timing};

/// How long a holder's deadline is waited for when nothing can be asked.
pub fn holder_ends(timing: &Timing, max_hold: Duration) -> Duration {
    max_hold + timing.past_promise
}

/// The run of a Backup, as its workload locks name it.
pub fn run_of(backup: usize) -> String {
    format!("backup-{backup}")
}

/// Whether a snapshot is left over.
pub fn stray(attempt: &str, name: &str, status: Option<&BackupStatus>) -> bool {
    let ours = Ours { name: name.to_owned(), attempt: attempt.to_owned(), ..Ours::default() };
    sweeper::stray(&ours, status.map(sweeper::facts_of).as_ref()).is_some()
}
