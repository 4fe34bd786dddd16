//! Label values of what the API's types do not name one for.
//!
//! Guarantees: a value is never renamed or reused (docs/metrics.md §1).

use stillpoint_api::evidence::Consistency;

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
