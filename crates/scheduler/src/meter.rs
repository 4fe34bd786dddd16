//! What the scheduler tells of its own work while it happens: true events only, for histograms and counters.
//!
//! The scheduler does not know the metrics; the binary adapts this to them.

use std::time::Duration;

use jiff::SignedDuration;

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A pass over a policy.
    Policy,
    /// A start that was planned beforehand.
    Start,
}

/// How a piece of work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkEnd {
    /// It was done, or there was nothing to do.
    Succeeded,
    /// It was not, and is tried again.
    Failed,
    /// The lead passed on meanwhile.
    Deposed,
}

/// Hears of the work.
pub trait WorkObserver: Send + Sync {
    /// The Backup of a slot was created so long after it was due. Not told of what runs on creation or catches up: their
    /// delay is not the scheduler's.
    fn started(&self, delay: Duration);
    /// A piece of work ended.
    fn worked(&self, work: Work, end: WorkEnd, took: Duration);
    /// How far our clock is ahead of the API server's for certain; zero while they may agree.
    fn clocks_read(&self, ahead: SignedDuration);
}

/// Nobody hears.
impl WorkObserver for () {
    fn started(&self, _delay: Duration) {}
    fn worked(&self, _work: Work, _end: WorkEnd, _took: Duration) {}
    fn clocks_read(&self, _ahead: SignedDuration) {}
}
