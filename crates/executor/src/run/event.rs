//! What can happen to an attempt.

use stillpoint_api::evidence::HoldAnswer;

use super::abort::Abort;
use super::plan::{ApplicationId, HoldId, MemberId};

/// One event. Times are those of the step that takes it, unless it carries its own.
#[derive(Clone, Debug)]
pub enum Event {
    /// The attempt begins.
    Start,
    /// An application's prepare ended.
    Prepared {
        /// The application.
        application: ApplicationId,
        /// Why it failed, if it did.
        result: Result<(), Abort>,
    },
    /// A complete line of a hold with its own nonce.
    HoldSaid {
        /// The hold.
        hold: HoldId,
        /// What it said.
        word: Word,
    },
    /// The closing text of a hold was written completely.
    ClosingWritten {
        /// The hold.
        hold: HoldId,
    },
    /// A hold's stream ended, however.
    HoldEnded {
        /// The hold.
        hold: HoldId,
        /// Why, with the reason the client gave where it did.
        why: Abort,
    },
    /// A snapshot's POST was answered by 201.
    Posted {
        /// The member.
        member: MemberId,
        /// UID of the new object.
        uid: String,
    },
    /// A snapshot's POST failed, or was not answered: never adopted.
    PostFailed {
        /// The member.
        member: MemberId,
        /// Why.
        why: Abort,
    },
    /// The snapshot stack was seen to work on a member.
    ContentSeen {
        /// The member.
        member: MemberId,
    },
    /// The cut signal of a member.
    CutSeen {
        /// The member.
        member: MemberId,
        /// What the content said.
        cut: CutSeen,
    },
    /// The content or snapshot of a member shows an error and no handle.
    SnapshotFailed {
        /// The member.
        member: MemberId,
        /// The message.
        message: String,
    },
    /// A pod or container of the plan is not what it was.
    PodChanged {
        /// What changed.
        what: String,
    },
    /// A status write was confirmed.
    Written,
    /// A status write was refused: the run belongs to somebody else, or the object is gone.
    WriteRefused {
        /// Why.
        why: String,
    },
    /// The controller shuts down, or the run was cancelled.
    Stop {
        /// Why.
        why: Abort,
    },
    /// A timer fired.
    Timer(Timer),
}

/// A word of the line protocol (docs/design/freeze.md §2.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// The session is open, its lease is set; nothing is frozen.
    Ready(HoldAnswer),
    /// Commits stop; for an observer: what was acknowledged before must be in the copy.
    Frozen(HoldAnswer),
    /// Still so, at beat `index`.
    Held {
        /// The beat it answers.
        index: u32,
        /// What the server said.
        answer: HoldAnswer,
    },
    /// A fact.
    Evidence {
        /// Its name.
        key: String,
        /// Its value.
        value: String,
    },
    /// Thawed, in answer to the thaw text.
    Thawed,
    /// The thaw failed and is tried again.
    ThawFailed,
    /// The hold let go by its own deadline.
    Expired,
}

/// What a content said when it showed its cut signal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CutSeen {
    /// UID of the snapshot that the content names.
    pub snapshot_uid: String,
    /// Name of the content.
    pub content: String,
    /// Snapshot handle.
    pub handle: String,
    /// The driver's cut time, nanoseconds since 1970.
    pub creation_time: Option<i64>,
    /// Volume that it was cut from.
    pub volume_handle: Option<String>,
}

/// The machine's timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// Every hold must be READY.
    Open,
    /// Every hold must be FROZEN.
    Acquire,
    /// The snapshot stack must have been seen to work.
    Stack,
    /// Every cut must have been seen.
    Cut,
    /// A hold's next beat, or the time at which an unanswered one means loss.
    Beat(HoldId),
    /// Every hold must be THAWED.
    Thaw,
}
