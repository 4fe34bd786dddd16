//! What the simulation must notice when it is missing: every rule, every end, every fence, lock and entry.
//!
//! Each is a switch that only the simulation has. A mutation that no seed finds is a hole in the simulation, and a test
//! fails.

use super::{Options, run};

/// Something that is left out on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// One of the verdict's ten rules.
    NoRule(u8),
    /// The machine's timers never fire.
    NoMachineTimers,
    /// The stream's own task does not close it at `t0 + maxHold`.
    NoStreamDeadline,
    /// The end of input does not end a process.
    NoEof,
    /// The server does not end an idle session.
    NoServerLease,
    /// The holder has no deadline.
    NoHolderDeadline,
    /// Nobody watches the holder.
    NoWatcher,
    /// The holder thaws whatever is frozen.
    ThawsForeignFreeze,
    /// FREEZE and snapshot requests are written whenever their turn comes.
    NoFence,
    /// Runs of one workload do not exclude each other.
    NoWorkloadLock,
    /// `Freezing` is not written.
    NoFreezingEntry,
    /// `Thawed` is not written.
    NoThawedEntry,
    /// `Aborted` is not written.
    NoAbortedEntry,
    /// Who takes a run over does not wait for its holds.
    NoRecoveryWait,
    /// Nobody removes the snapshots of an attempt that was given up, and nobody sweeps.
    NoCleanUp,
}

/// All of them.
pub const ALL: &[Mutation] = &[
    Mutation::NoRule(1),
    Mutation::NoRule(2),
    Mutation::NoRule(3),
    Mutation::NoRule(4),
    Mutation::NoRule(5),
    Mutation::NoRule(6),
    Mutation::NoRule(7),
    Mutation::NoRule(8),
    Mutation::NoRule(9),
    Mutation::NoRule(10),
    Mutation::NoMachineTimers,
    Mutation::NoStreamDeadline,
    Mutation::NoEof,
    Mutation::NoServerLease,
    Mutation::NoHolderDeadline,
    Mutation::NoWatcher,
    Mutation::ThawsForeignFreeze,
    Mutation::NoFence,
    Mutation::NoWorkloadLock,
    Mutation::NoFreezingEntry,
    Mutation::NoThawedEntry,
    Mutation::NoAbortedEntry,
    Mutation::NoRecoveryWait,
    Mutation::NoCleanUp,
];

impl Mutation {
    /// What is missing, for people.
    pub fn describe(self) -> String {
        match self {
            Self::NoRule(rule) => format!("rule {rule} of the verdict"),
            Self::NoMachineTimers => "the machine's timers".into(),
            Self::NoStreamDeadline => "the stream's own deadline".into(),
            Self::NoEof => "end of input".into(),
            Self::NoServerLease => "the server's lease".into(),
            Self::NoHolderDeadline => "the holder's deadline".into(),
            Self::NoWatcher => "the holder's watcher".into(),
            Self::ThawsForeignFreeze => "care for a foreign freeze".into(),
            Self::NoFence => "the fence".into(),
            Self::NoWorkloadLock => "the workload lock".into(),
            Self::NoFreezingEntry => "the entry Freezing".into(),
            Self::NoThawedEntry => "the entry Thawed".into(),
            Self::NoAbortedEntry => "the entry Aborted".into(),
            Self::NoRecoveryWait => "the wait before a takeover".into(),
            Self::NoCleanUp => "clean-up and sweeper".into(),
        }
    }
}

/// How a mutation was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The seed.
    pub seed: u64,
    /// The invariant that it broke.
    pub invariant: &'static str,
}

/// Looks for a seed whose world notices, from `first` on, in at most `most`.
pub fn find(mutation: Mutation, first: u64, most: u64) -> Option<Found> {
    let options = Options { mutation: Some(mutation), ..Options::default() };
    (first..first + most).find_map(|seed| {
        let violation = run(seed, &options).violation?;
        Some(Found { seed, invariant: violation.invariant })
    })
}
