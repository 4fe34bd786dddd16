//! What may have happened to a run, a hook or a delete, and the label value of each.
//!
//! Guarantees: a value is never renamed or reused (docs/metrics.md §1), and every way to end is one of a closed set.

use stillpoint_api::evidence::Consistency;

/// The parts of a hook that are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPhase {
    /// Heavy work before the freeze.
    Prepare,
    /// From the lock being asked for to FROZEN.
    Acquire,
    /// From FROZEN to the thaw being sent.
    Hold,
    /// From the thaw being sent to THAWED.
    Thaw,
}

impl HookPhase {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Prepare, Self::Acquire, Self::Hold, Self::Thaw];

    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Acquire => "acquire",
            Self::Hold => "hold",
            Self::Thaw => "thaw",
        }
    }
}

/// How a part of a hook went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookResult {
    /// As it should.
    Succeeded,
    /// It ended, or was lost, before it was done.
    Failed,
    /// It was not done in its time.
    Timeout,
    /// Its command could not be run, or was not there.
    ExecError,
}

impl HookResult {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Succeeded, Self::Failed, Self::Timeout, Self::ExecError];

    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::ExecError => "exec_error",
        }
    }
}

/// What must not happen in a run that ended as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A snapshot was not cut between freeze and thaw.
    CutOutsideFreeze,
    /// A hold did not prove at its end that it was there all the time.
    HoldNotClosed,
    /// Two facts of the evidence exclude each other.
    Contradiction,
}

impl Violation {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::CutOutsideFreeze, Self::HoldNotClosed, Self::Contradiction];

    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::CutOutsideFreeze => "cut_outside_freeze",
            Self::HoldNotClosed => "hold_not_closed",
            Self::Contradiction => "contradiction",
        }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunResult {
    /// A recovery point exists.
    Succeeded,
    /// None does.
    Failed,
}

impl RunResult {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Succeeded, Self::Failed];

    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

/// What became of a delete of retention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeletionResult {
    /// The API server took it.
    Deleted,
    /// It failed, or was not answered.
    Failed,
}

impl DeletionResult {
    pub(crate) const ALL: [Self; 2] = [Self::Deleted, Self::Failed];

    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Failed => "failed",
        }
    }
}

/// The label value of a consistency.
pub const fn consistency_label(consistency: Consistency) -> &'static str {
    match consistency {
        Consistency::Application => "application",
        Consistency::Crash => "crash",
        Consistency::None => "none",
    }
}
