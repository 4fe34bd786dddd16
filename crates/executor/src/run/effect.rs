//! What the machine asks for. Adapters carry effects out in order, at once, and never try one again.

use std::time::Duration;

use stillpoint_api::clock::Mono;

use super::abort::Abort;
use super::event::{BlockerId, Timer};
use super::plan::{ApplicationId, CutId, HoldId};

/// One effect.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Run an application's prepare.
    RunPrepare(ApplicationId),
    /// Try whether a hold's client stops at its first error, in a session of its own.
    CheckCanary(HoldId),
    /// Open a hold's session and write its opening text.
    OpenHold {
        /// The hold.
        hold: HoldId,
        /// Lease to ask for.
        lease: Duration,
    },
    /// Bound a hold's stream: its own timer closes the socket then, whatever the machine says.
    CloseAt {
        /// The hold.
        hold: HoldId,
        /// When.
        at: Mono,
    },
    /// Write the freeze text.
    SendFreeze {
        /// The hold.
        hold: HoldId,
        /// Lease to ask for.
        lease: Duration,
        /// Longest time the lock may take.
        acquire: Duration,
        /// How long the hold may last from now, enforced in the pod (docs/design/freeze.md §3).
        within: Duration,
        /// Not written after this instant: the stream is closed instead.
        not_after: Mono,
    },
    /// Write the text between two stages.
    SendStage {
        /// The hold.
        hold: HoldId,
        /// The stage it leads to: 1 or later.
        stage: u32,
        /// Lease to ask for.
        lease: Duration,
        /// Longest time it may take.
        acquire: Duration,
    },
    /// Write one beat.
    SendBeat {
        /// The hold.
        hold: HoldId,
        /// Its index.
        index: u32,
        /// Lease to ask for.
        lease: Duration,
    },
    /// Write the closing beat and the thaw text in one write.
    SendClosing {
        /// The hold.
        hold: HoldId,
        /// Index of the closing beat.
        index: u32,
        /// Lease to ask for.
        lease: Duration,
    },
    /// Write the thaw text alone: the attempt was given up.
    SendThaw(HoldId),
    /// Close a hold's stdin and then its stream.
    CloseHold(HoldId),
    /// POST a cut's VolumeSnapshot or VolumeGroupSnapshot, once.
    PostSnapshot {
        /// The cut.
        cut: CutId,
        /// Not sent after this instant.
        not_after: Mono,
    },
    /// Ask whether somebody is stuck behind a lock that was not acquired.
    ProbeStall(HoldId),
    /// End one statement that keeps writers stuck behind a lock that was not acquired, and nothing else.
    EndBlocker {
        /// The hold whose lock was not acquired.
        hold: HoldId,
        /// The statement.
        id: BlockerId,
    },
    /// Write a journal entry, by compare-and-swap.
    WriteJournal(Entry),
    /// Call back.
    Schedule {
        /// What for.
        timer: Timer,
        /// When.
        at: Mono,
    },
    /// The attempt is over and recorded.
    End(End),
}

/// A journal entry that the machine asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// About to freeze.
    Freezing,
    /// Every hold is thawed and the evidence is complete.
    Thawed,
    /// Given up.
    Aborted {
        /// Why.
        why: Abort,
        /// Holds that were not proven thawed.
        not_proven_thawed: Vec<HoldId>,
    },
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// Thawed with complete evidence; settle comes next.
    Thawed,
    /// Given up; nothing of it is kept.
    Aborted(Abort),
    /// Somebody else owns the run now; nothing may be written.
    Disowned(String),
}
