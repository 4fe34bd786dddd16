//! Why a run cannot begin: a bounded reason, words, and whether waiting can help.

use crate::context::RequestError;

/// Reason of a refusal that passes by itself, soon: another snapshot of a member is being made or deleted.
pub const SNAPSHOT_IN_FLIGHT: &str = "SnapshotInFlight";

/// A run that was refused before anything was frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// CamelCase, bounded.
    pub reason: &'static str,
    /// What, why, and what to do.
    pub message: String,
    /// Whether another attempt can help without anybody doing something first.
    pub may_pass: bool,
}

impl Refusal {
    /// Somebody must do something first.
    pub fn stands(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), may_pass: false }
    }

    /// It may pass by itself: a pod that starts, an API server that comes back.
    pub fn may_pass(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), may_pass: true }
    }

    /// A request of the preflight that failed.
    pub fn request(error: &RequestError) -> Self {
        if error.is_forbidden() {
            return Self::stands(
                "ControllerForbidden",
                format!(
                    "{error}; the controller's ClusterRole lacks a right: apply deploy/base of this version"
                ),
            );
        }
        Self::may_pass("ApiUnavailable", error.to_string())
    }
}
