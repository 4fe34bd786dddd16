//! What may have happened to a run and to the parts of its hooks, and the label value of each.
//!
//! The executor tells it, the metrics count it. Guarantees: a value is never renamed or reused (docs/metrics.md §1), and every way to
//! end is one of a closed set.

/// A part of a hook, each timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPhase {
    /// The heavy work before the freeze.
    Prepare,
    /// FREEZE sent to FROZEN received.
    Acquire,
    /// FROZEN received to the thaw sent.
    Hold,
    /// The thaw sent to THAWED received.
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
    /// It was not done in its time; of a lock also: it was refused.
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

/// What must not happen in a run that ended as it should: either somebody else had a hand in it, or there is a defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Violation {
    /// A snapshot was asked for before the freeze, or an application was let go before its cut was seen (rules 1, 2).
    CutOutsideFreeze,
    /// A hold did not prove at its end that it was there all the time (rule 3).
    HoldNotClosed,
    /// Two facts exclude each other: another volume, a cut before it was asked for, a commit under the lock.
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
