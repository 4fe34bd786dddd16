//! Time as the product sees it. The only module that reads a clock.
//!
//! Decisions take `now` as an argument; adapters and loops take a [`Clock`], so that tests and the fault
//! simulation own time. Wall clock is for humans, slots and objects; the monotonic clock is for every budget,
//! because a freeze must not get longer when an operator sets the time (docs/design/freeze.md §3).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// A monotonic instant: time since an origin that is fixed for the life of the process.
///
/// Comparable only within one process. It is never stored: a stored instant of another process means nothing
/// (docs/design/freeze.md §5, row *Freezing*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(Duration);

impl Mono {
    /// The instant `since_origin` after the clock's origin.
    pub const fn from_origin(since_origin: Duration) -> Self {
        Self(since_origin)
    }

    /// Time since the clock's origin.
    pub const fn since_origin(self) -> Duration {
        self.0
    }

    /// Time from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Mono {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later))
    }
}

impl std::ops::Sub<Duration> for Mono {
    type Output = Self;

    fn sub(self, earlier: Duration) -> Self {
        Self(self.0.saturating_sub(earlier))
    }
}

/// Where time comes from.
pub trait Clock: Send + Sync + 'static {
    /// Monotonic time; never goes back.
    fn mono(&self) -> Mono;
    /// Wall clock time; may jump.
    fn wall(&self) -> Timestamp;
}

/// A shared clock.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clocks.
#[derive(Clone, Debug)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock whose monotonic origin is now.
    #[allow(clippy::disallowed_methods, reason = "this module is where clocks are read")]
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }

    /// The same, shared.
    pub fn shared() -> SharedClock {
        Arc::new(Self::new())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn mono(&self) -> Mono {
        Mono(self.origin.elapsed())
    }

    #[allow(clippy::disallowed_methods, reason = "this module is where clocks are read")]
    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A clock that moves only when told, for tests and the simulation.
#[derive(Debug)]
pub struct ManualClock {
    mono_nanos: AtomicU64,
    wall_nanos: AtomicI64,
}

impl ManualClock {
    /// A clock at `wall`, monotonic time zero.
    pub fn at(wall: Timestamp) -> Self {
        Self {
            mono_nanos: AtomicU64::new(0),
            wall_nanos: AtomicI64::new(i64::try_from(wall.as_nanosecond()).unwrap_or(i64::MAX)),
        }
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.mono_nanos.fetch_add(nanos, Ordering::SeqCst);
        self.wall_nanos.fetch_add(i64::try_from(nanos).unwrap_or(i64::MAX), Ordering::SeqCst);
    }

    /// Sets the wall clock alone: somebody changed the time.
    pub fn set_wall(&self, wall: Timestamp) {
        self.wall_nanos.store(i64::try_from(wall.as_nanosecond()).unwrap_or(i64::MAX), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn mono(&self) -> Mono {
        Mono(Duration::from_nanos(self.mono_nanos.load(Ordering::SeqCst)))
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_nanosecond(i128::from(self.wall_nanos.load(Ordering::SeqCst)))
            .unwrap_or(Timestamp::MAX)
    }
}
