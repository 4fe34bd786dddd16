//! What is known about policies, their recovery points and the claims of their namespaces, as scrapes ask for it.
//!
//! Guarantees: a fact is about one moment, and carries no label that a family does not have. Who answers is
//! [`FactsStore`] (`facts/store.rs`), from what the watches showed; what an object says is read in `facts/projection.rs`.

mod projection;
mod store;

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use stillpoint_api::policy::Blackout;

pub use self::store::FactsStore;

/// What a scrape asks.
pub trait Facts: Send + Sync {
    /// Shows policies, and runs without one, sorted by namespace and name, from the one after `after` on, at most
    /// [`PER_PAGE`](crate::collector::PER_PAGE). The last one of them, when there may be more.
    fn page(&self, after: Option<&Key>, visit: &mut dyn FnMut(&Found<'_>)) -> Option<Key>;
    /// Shows every namespace with claims or Backups once, sorted by name.
    fn namespaces(&self, visit: &mut dyn FnMut(&NamespaceFacts<'_>));
}

/// Knows the times in which nothing starts; asked at every scrape, so it answers from memory.
pub trait Calendar: Send + Sync {
    /// Whether a blackout of the policy, or of a rule for its namespace, holds now.
    fn in_blackout(&self, namespace: &str, policy: &PolicyProjection) -> bool;
}

/// No blackouts are known.
impl Calendar for () {
    fn in_blackout(&self, _namespace: &str, _policy: &PolicyProjection) -> bool {
        false
    }
}

/// What a page shows.
#[derive(Debug)]
pub enum Found<'a> {
    /// A policy.
    Policy(PolicyFacts<'a>),
    /// Runs without a policy (its name is empty), or of one that is gone and of which something may be frozen.
    Runs {
        /// Their namespace.
        namespace: &'a str,
        /// Name of the policy that they name.
        policy: &'a str,
        /// What they say.
        points: PointFacts,
    },
}

/// Facts about one namespace at one moment.
#[derive(Debug)]
pub struct NamespaceFacts<'a> {
    /// Its name.
    pub namespace: &'a str,
    /// Bound claims that are in no usable point; `None`: it has no bound claims, or claims were not listed yet.
    pub unprotected: Option<u32>,
    /// Backups whose policy is gone; `None`: it has no Backups, or policies were not listed yet.
    pub orphans: Option<u32>,
    /// Runs that wait because a rule limits freezes; `None`: it has no Backups.
    pub waiting: Option<u32>,
}

/// Facts about one policy at one moment.
pub struct PolicyFacts<'a> {
    /// Namespace of the policy and its applications.
    pub namespace: &'a str,
    /// Its name.
    pub policy: &'a str,
    /// What its object says.
    pub spec: &'a PolicyProjection,
    /// What its Backups say, computed when a family asks: most do not.
    pub points: LazyPoints<'a>,
    calendar: &'a dyn Calendar,
}

impl PolicyFacts<'_> {
    /// Whether nothing starts now because of a blackout.
    pub fn in_blackout(&self) -> bool {
        self.calendar.in_blackout(self.namespace, self.spec)
    }
}

impl std::fmt::Debug for PolicyFacts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { namespace, policy, spec, points, calendar: _ } = self;
        let mut shown = f.debug_struct("PolicyFacts");
        shown.field("namespace", namespace).field("policy", policy);
        shown.field("spec", spec).field("points", &**points).finish_non_exhaustive()
    }
}

impl Found<'_> {
    /// The runs: namespace, policy, and what they say.
    pub fn runs(&self) -> (&str, &str, &PointFacts) {
        match self {
            Self::Policy(found) => (found.namespace, found.policy, &found.points),
            Self::Runs { namespace, policy, points } => (namespace, policy, points),
        }
    }
}

/// Facts that are computed when they are first read.
pub type LazyPoints<'a> = LazyCell<PointFacts, Box<dyn FnOnce() -> PointFacts + 'a>>;

/// What a policy's object says.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyProjection {
    /// When it was created: the start of protection.
    pub created: Timestamp,
    /// The expression.
    pub schedule: Arc<str>,
    /// The zone.
    pub time_zone: Arc<str>,
    /// `Forbid`, `Queue` or `Replace`.
    pub concurrency: &'static str,
    /// `Latest` or `None`.
    pub catch_up: &'static str,
    /// It starts nothing.
    pub suspended: bool,
    /// Objective, seconds.
    pub rpo_seconds: Option<f64>,
    /// Next slot.
    pub next_slot: Option<Timestamp>,
    /// Newest slot that was decided upon.
    pub last_slot: Option<Timestamp>,
    /// Longest interval between slots, seconds.
    pub max_interval_seconds: Option<i64>,
    /// Shortest interval between slots, seconds.
    pub min_interval_seconds: Option<i64>,
    /// Finished runs since the last success that were none.
    pub consecutive_failures: u32,
    /// Slots that did not run, by reason.
    pub missed: BTreeMap<String, u64>,
    /// Slots whose run ended with a proven point, and without one.
    pub slots: (u64, u64),
    /// Points that only a guard keeps, by guard.
    pub retention_blocked: BTreeMap<String, u32>,
    /// Points that may go and are not gone yet.
    pub retention_overdue: u32,
    /// Conditions: type and status.
    pub conditions: Arc<[(String, String)]>,
    /// Its own blackouts.
    pub blackouts: Box<[Blackout]>,
}

/// What the Backups of a policy say together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PointFacts {
    /// Cut of the newest proven point.
    pub newest: Option<Timestamp>,
    /// Cut of the oldest proven point.
    pub oldest: Option<Timestamp>,
    /// Counts by state, in the order of [`PointState::ALL`].
    pub counts: [u32; 7],
    /// Since when an application is, or must be taken to be, frozen.
    pub frozen_since: Option<Timestamp>,
    /// Runs with an application that may still be frozen and is not getting better by itself.
    pub left_quiesced: u32,
    /// Start of the run that is not finished.
    pub active_since: Option<Timestamp>,
    /// Length of the newest freeze window, seconds.
    pub last_freeze_seconds: Option<f64>,
    /// From the earliest to the latest cut of the newest proven point, seconds.
    pub cut_spread_seconds: Option<f64>,
    /// What proven points need to be restored, together, in bytes, as far as drivers say.
    pub restore_bytes: u64,
    /// Length of the run that ended last, seconds.
    pub last_run_seconds: Option<f64>,
}

/// States of recovery points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointState {
    /// Proven and usable.
    Ready,
    /// Not finished.
    Pending,
    /// The run failed.
    Failed,
    /// Kept without proof of application consistency.
    Inconsistent,
    /// Its snapshots are being deleted.
    Deleting,
    /// Somebody else deleted a snapshot of it.
    SnapshotDeleted,
    /// Under a legal hold: counted besides, whatever else it is.
    Held,
}

impl PointState {
    /// All of them, in the order of [`PointFacts::counts`].
    pub const ALL: [Self; 7] = [
        Self::Ready,
        Self::Pending,
        Self::Failed,
        Self::Inconsistent,
        Self::Deleting,
        Self::SnapshotDeleted,
        Self::Held,
    ];

    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Pending => "pending",
            Self::Failed => "failed",
            Self::Inconsistent => "inconsistent",
            Self::Deleting => "deleting",
            Self::SnapshotDeleted => "snapshot_deleted",
            Self::Held => "held",
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Ready => 0,
            Self::Pending => 1,
            Self::Failed => 2,
            Self::Inconsistent => 3,
            Self::Deleting => 4,
            Self::SnapshotDeleted => 5,
            Self::Held => 6,
        }
    }
}

/// Namespace and name.
pub type Key = (String, String);
