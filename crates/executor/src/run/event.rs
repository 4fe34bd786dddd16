//! What can happen to an attempt.

use stillpoint_api::clock::Mono;
use stillpoint_api::evidence::HoldAnswer;
use stillpoint_api::template::recovery::is_plain;

use super::abort::Abort;
use super::plan::{ApplicationId, CutId, HoldId};

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
    /// A client was tried: it stops at its first error, or why it cannot be trusted (docs/design/freeze.md §2.2).
    CanaryChecked {
        /// The hold whose client was tried.
        hold: HoldId,
        /// Why it is refused, if it is.
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
        /// The cut.
        cut: CutId,
        /// UID of the new object.
        uid: String,
    },
    /// A snapshot's POST failed, or was not answered: never adopted.
    PostFailed {
        /// The cut.
        cut: CutId,
        /// Why.
        why: Abort,
    },
    /// The snapshot stack was seen to work on a cut.
    ContentSeen {
        /// The cut.
        cut: CutId,
    },
    /// The signal of a cut.
    CutSeen {
        /// The cut.
        cut: CutId,
        /// What the content said.
        seen: CutSeen,
    },
    /// The content or snapshot of a cut shows an error and no handle.
    SnapshotFailed {
        /// The cut.
        cut: CutId,
        /// The message.
        message: String,
    },
    /// A pod or container of the plan is not what it was.
    PodChanged {
        /// What changed.
        what: String,
    },
    /// The claim was renewed: FREEZE and snapshot requests may be written until then.
    ClaimRenewed {
        /// The new fence.
        fence: Mono,
    },
    /// The claim on the run was lost, or could not be renewed in time.
    ClaimLost {
        /// Why.
        why: String,
    },
    /// Whether somebody is still stuck behind a lock that was not acquired.
    StallProbed {
        /// The hold.
        hold: HoldId,
        /// What the probe said.
        result: Stall,
    },
    /// The command that ends a statement has ended.
    BlockerEnded {
        /// The hold for which it was run.
        hold: HoldId,
        /// Why it may not have ended the statement.
        result: Result<(), String>,
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
    Frozen {
        /// The stage that begins: 0 for the freeze itself.
        stage: u32,
        /// What the server said.
        answer: HoldAnswer,
    },
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
    /// UID of the snapshot or group snapshot that the content names.
    pub snapshot_uid: String,
    /// Name of the content.
    pub content: String,
    /// Handle of the snapshot or of the group.
    pub handle: String,
    /// The driver's cut time, nanoseconds since 1970.
    pub creation_time: Option<i64>,
    /// Volumes that it was cut from.
    pub volume_handles: Vec<String>,
    /// What each volume of a group was cut into, where the group says so; empty for a single snapshot.
    pub parts: Vec<CutPart>,
}

/// One volume of a group that was cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CutPart {
    /// The volume.
    pub volume_handle: String,
    /// Handle of its snapshot.
    pub handle: String,
    /// The driver's cut time, nanoseconds since 1970.
    pub creation_time: Option<i64>,
}

/// Whether somebody is stuck behind a lock that was not acquired (docs/design/freeze.md §3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stall {
    /// Nobody.
    Clear,
    /// Somebody, and who is in the way.
    Blocked {
        /// The blocker, as the server names it.
        by: String,
        /// The statement that may be ended, where the probe names exactly one.
        id: Option<BlockerId>,
    },
    /// The probe gave no answer.
    Unknown {
        /// Why.
        why: String,
    },
}

/// The ID of a statement, as a stall probe printed it: fit to become part of an argument of a command.
///
/// Letters, digits and `_.:-`, at most 64, and it begins with a letter or digit: it can be no option, no second word and no
/// second statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockerId(String);

impl BlockerId {
    /// An ID; `None` where the text is none.
    pub fn parse(text: &str) -> Option<Self> {
        is_plain(text).then(|| Self(text.to_owned()))
    }

    /// As printed.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The machine's timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// Every hold must be READY.
    Open,
    /// Every hold must be FROZEN.
    Acquire,
    /// Every hold of a stage must have answered it.
    Stage,
    /// The snapshot stack must have been seen to work.
    Stack,
    /// Every cut must have been seen.
    Cut,
    /// A hold's next beat, or the time at which an unanswered one means loss.
    Beat(HoldId),
    /// Every hold that was told to thaw must be THAWED.
    Thaw,
    /// Ask again whether somebody is stuck.
    Stall,
}
