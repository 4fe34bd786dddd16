//! The times of ownership and recovery. Configuration, so that tests wait moments instead of minutes; the product uses
//! the defaults.

use std::time::Duration;

use crate::run::MAX_LEASE;

/// How long things count, and how often they are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long a replica's Lease counts after it was renewed. Default 15 s, as the cluster's own controllers have it.
    pub lease: Duration,
    /// Pause between renewals. Default 3 s: two may fail before the fence (half the lease) is reached.
    pub renew: Duration,
    /// Longest lease of a session that is READY: so long an earlier owner's sessions may still be open. Default 30 s,
    /// which is also how long a holder waits for its FREEZE (docs/design/freeze.md §2.2).
    pub ready_lease: Duration,
    /// Past the promise: a hold ends by then whatever happened to whoever held it. Default 5 s (§3).
    pub past_promise: Duration,
    /// Longest lease of a frozen session: it is over so long after its last beat. Default 10 s (§3).
    pub session_lease: Duration,
    /// How long a run waits for a workload that another run holds before it gives its attempt up. Default 60 s: the
    /// longest that the default `maxHold` and a thaw can take, twice.
    pub busy: Duration,
    /// First pause after a recovery that failed; doubles up to [`Timing::recover_at_most`]. Default 2 s.
    pub recover_first: Duration,
    /// Longest pause between recoveries. Default 60 s.
    pub recover_at_most: Duration,
    /// Pause between two sweeps. Default 5 min (§5).
    pub sweep: Duration,
    /// How long a workload lock whose Backup does not exist must have been seen before it is removed: its run may still be
    /// inside its window. Default 335 s: the longest `maxHold`, and what [`crate::recovery`] adds to it.
    pub orphan: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            renew: Duration::from_secs(3),
            ready_lease: Duration::from_secs(30),
            past_promise: Duration::from_secs(5),
            session_lease: MAX_LEASE,
            busy: Duration::from_secs(60),
            recover_first: Duration::from_secs(2),
            recover_at_most: Duration::from_secs(60),
            sweep: Duration::from_secs(300),
            orphan: Duration::from_secs(335),
        }
    }
}
