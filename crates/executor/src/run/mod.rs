//! The run machine: one attempt, from its first prepare to its last journal entry.
//!
//! [`Run::step`] is pure, total and synchronous: (state, event, now) → effects. It guarantees that
//! * no snapshot is asked for before every hold answered FROZEN, and no thaw is sent before every cut was seen,
//!   unless the attempt is being given up (docs/design/freeze.md §4 rules 1 and 2);
//! * a stage's snapshots are asked for when every hold answered that stage, and a stage begins when every cut of the one
//!   before was seen (§2.5);
//! * holds freeze in their order and are released in the reverse order; when the attempt is given up, all at once;
//! * once a FREEZE was sent, every hold gets a thaw or a closed stream, whatever happens (§3, §7);
//! * neither FREEZE nor a snapshot request is asked for behind the fence of the claim (§5);
//! * nothing is tried twice inside the window;
//! * `Freezing` is journalled before the first FREEZE, and `Thawed` or `Aborted` after the last (§5).
//!
//! Adapters carry the effects out in order. What survives them is the evidence ([`Run::evidence`]), and what that
//! proves is decided elsewhere ([`crate::verdict`]).

pub mod abort;
pub mod effect;
pub mod event;
mod hold;
pub mod plan;
mod record;
mod release;
mod stall;
mod steps;
#[cfg(test)]
mod tests;
mod timers;
mod unwind;

use std::time::Duration;

use jiff::Timestamp;
use stillpoint_api::clock::Mono;
use stillpoint_api::evidence::MemberEvidence;

pub use abort::{Abort, Reason};
pub use effect::{Effect, End, Entry};
pub use event::{BlockerId, CutPart, CutSeen, Event, Stall, Timer, Word};
use hold::Hold;
pub use hold::in_unit;
pub use plan::{
    ApiClockReading, ApplicationId, CutId, CutPlan, HoldId, HoldPlan, MAX_LEASE, MemberId, Plan, THAW_RESERVE,
};
pub use record::Record;

/// Time for every session to become READY: dialling, starting the client and logging in, nothing frozen yet.
pub const OPEN_WITHIN: Duration = Duration::from_secs(20);
/// Time for a thaw to be answered before its stream is closed instead.
pub const THAW_WITHIN: Duration = Duration::from_secs(5);

/// The instant of one step, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Monotonic, for every budget.
    pub mono: Mono,
    /// Wall clock, for the record.
    pub wall: Timestamp,
}

/// Where an attempt stands.
#[derive(Clone, Debug, PartialEq)]
enum State {
    /// Not started.
    New,
    /// Prepares run; nothing is open.
    Preparing { left: usize },
    /// Sessions open; nothing is frozen.
    Opening,
    /// `Freezing` is being journalled; nothing is frozen.
    Journalling { stop: Option<Abort> },
    /// FREEZE goes to the holds, by their order.
    Acquiring,
    /// Every hold answered the stage, its snapshots were POSTed.
    Cutting { stage: u32 },
    /// Every cut of the stage before was seen, the texts that lead to this one were sent.
    Staging { stage: u32 },
    /// Every cut was seen, closing texts go out in reverse order.
    Releasing,
    /// Given up: thaws were sent.
    Unwinding { why: Abort },
    /// Given up and thawed, but writers may still be stuck behind a lock that was not acquired (§3).
    Unquiescing { why: Abort, until: Mono },
    /// The last journal entry is being written.
    Recording { end: End },
    /// Over.
    Ended,
}

/// One cut inside the machine.
#[derive(Clone, Debug)]
struct Cut {
    plan: CutPlan,
    post_sent: Option<Mono>,
    posted: Option<(Mono, String)>,
    stack_seen: bool,
    /// A signal that was seen before our own 201 came back.
    early: Option<(Mono, CutSeen)>,
    seen: Option<(Mono, CutSeen)>,
    failed: Option<Abort>,
}

impl Cut {
    fn new(plan: CutPlan) -> Self {
        Self { plan, post_sent: None, posted: None, stack_seen: false, early: None, seen: None, failed: None }
    }

    fn open(&self) -> bool {
        self.seen.is_none() && self.failed.is_none()
    }
}

/// One attempt in progress.
#[derive(Clone, Debug)]
pub struct Run {
    plan: Plan,
    state: State,
    holds: Vec<Hold>,
    members: Vec<MemberEvidence>,
    cuts: Vec<Cut>,
    fence: Mono,
    t0: Option<Now>,
    acquired: Option<Mono>,
    /// When every prepare was begun.
    prepare_began: Option<Timestamp>,
}

impl Run {
    /// An attempt that has not started.
    pub fn new(plan: Plan) -> Self {
        Self {
            holds: plan.holds.iter().cloned().map(Hold::new).collect(),
            members: plan.members.clone(),
            cuts: plan.cuts.iter().cloned().map(Cut::new).collect(),
            fence: plan.fence,
            plan,
            state: State::New,
            t0: None,
            acquired: None,
            prepare_began: None,
        }
    }

    /// What the attempt was given.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether the attempt is over and nothing more may be done for it.
    pub fn ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Whether the application may be frozen now.
    pub fn frozen(&self) -> bool {
        matches!(self.state, State::Unquiescing { .. }) || self.holds.iter().any(Hold::may_hold)
    }

    /// Takes one event; answers what is to be done, in order.
    pub fn step(&mut self, event: Event, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        steps::take(self, event, now, &mut effects);
        effects
    }
}
