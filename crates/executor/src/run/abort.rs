//! Why an attempt was given up: a bounded reason for conditions, events and metrics, and words for people.

use std::fmt;

/// The bounded reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// A prepare command failed.
    PrepareFailed,
    /// A hold was not READY in time, or its client ended before.
    HoldNotReady,
    /// The server did not take the lease.
    LeaseNotSet,
    /// The server is not this container's.
    HoldNotLocal,
    /// A path the server writes is on no member.
    PathNotCovered,
    /// The server refused the client's credentials.
    AuthenticationFailed,
    /// The server accepted the user, which lacks a right that the template needs.
    PrivilegeMissing,
    /// The server is not one that the template is for.
    NotSupported,
    /// The server has no room for us now, or something else holds what is needed.
    ServerBusy,
    /// The client's program is not in the container.
    ClientMissing,
    /// The hooks account may not exec.
    ExecForbidden,
    /// The client goes on after an error: its answers prove nothing.
    CanaryPrinted,
    /// The application was frozen by somebody else already.
    ForeignFreeze,
    /// A lock was not acquired in time.
    LockNotAcquired,
    /// A statement between two stages failed or was not answered.
    StageFailed,
    /// Writers are still stuck behind a lock that was given up.
    ApplicationLeftQuiesced,
    /// A hold was lost while it mattered.
    HoldLost,
    /// A snapshot could not be requested.
    SnapshotPostFailed,
    /// The storage system refused a snapshot.
    SnapshotFailed,
    /// The snapshot controller or the driver's sidecar did not react.
    SnapshotStackSilent,
    /// A cut was not seen in time.
    CutTimeout,
    /// A pod or container changed.
    PodChanged,
    /// The claim on the run was lost.
    ClaimLost,
    /// The controller was stopped.
    Shutdown,
    /// The controller ended without a word; found by the next one.
    Interrupted,
    /// The run was cancelled.
    Cancelled,
    /// An internal rule was broken.
    Internal,
}

impl Reason {
    /// CamelCase, for conditions and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PrepareFailed => "PrepareFailed",
            Self::HoldNotReady => "HoldNotReady",
            Self::LeaseNotSet => "LeaseNotSet",
            Self::HoldNotLocal => "HoldNotLocal",
            Self::PathNotCovered => "PathNotCovered",
            Self::AuthenticationFailed => "AuthenticationFailed",
            Self::PrivilegeMissing => "PrivilegeMissing",
            Self::NotSupported => "NotSupported",
            Self::ServerBusy => "ServerBusy",
            Self::ClientMissing => "ClientMissing",
            Self::ExecForbidden => "ExecForbidden",
            Self::CanaryPrinted => "CanaryPrinted",
            Self::ForeignFreeze => "ForeignFreeze",
            Self::LockNotAcquired => "LockNotAcquired",
            Self::StageFailed => "StageFailed",
            Self::ApplicationLeftQuiesced => "ApplicationLeftQuiesced",
            Self::HoldLost => "HoldLost",
            Self::SnapshotPostFailed => "SnapshotPostFailed",
            Self::SnapshotFailed => "SnapshotFailed",
            Self::SnapshotStackSilent => "SnapshotStackSilent",
            Self::CutTimeout => "CutTimeout",
            Self::PodChanged => "PodChanged",
            Self::ClaimLost => "ClaimLost",
            Self::Shutdown => "Shutdown",
            Self::Interrupted => "Interrupted",
            Self::Cancelled => "Cancelled",
            Self::Internal => "Internal",
        }
    }

    /// Whether trying the slot again can help without anybody doing something first.
    pub const fn may_pass(self) -> bool {
        match self {
            Self::PrepareFailed
            | Self::HoldNotReady
            | Self::ServerBusy
            | Self::ForeignFreeze
            | Self::LockNotAcquired
            | Self::StageFailed
            | Self::ApplicationLeftQuiesced
            | Self::ClaimLost
            | Self::HoldLost
            | Self::SnapshotPostFailed
            | Self::SnapshotFailed
            | Self::SnapshotStackSilent
            | Self::CutTimeout
            | Self::PodChanged
            | Self::Shutdown
            | Self::Interrupted => true,
            Self::LeaseNotSet
            | Self::HoldNotLocal
            | Self::PathNotCovered
            | Self::AuthenticationFailed
            | Self::PrivilegeMissing
            | Self::NotSupported
            | Self::ClientMissing
            | Self::ExecForbidden
            | Self::CanaryPrinted
            | Self::Cancelled
            | Self::Internal => false,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why an attempt was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abort {
    /// The bounded reason.
    pub reason: Reason,
    /// What failed, why, and what to do.
    pub message: String,
}

impl Abort {
    /// An abort with its words.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl fmt::Display for Abort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}
