//! One hold inside the machine: what was sent, what was answered, and when a silence means loss.

use std::collections::BTreeMap;
use std::time::Duration;

use stillpoint_api::clock::Mono;
use stillpoint_api::evidence::{BarrierEvidence, EndedBlocker, HoldAnswer, Offset, StageEvidence};
use stillpoint_api::template::LeaseUnit;

use super::plan::HoldPlan;
use super::{BlockerId, Stall};

/// One beat every two seconds (docs/design/freeze.md §2.3).
pub(super) const BEAT_EVERY: Duration = Duration::from_secs(2);
/// A beat unanswered for the lease less this much means that the hold is lost.
pub(super) const LOST_BEFORE_LEASE: Duration = Duration::from_secs(3);
/// A beat answered later than this is recorded as late (§2.3).
pub(super) const LATE: Duration = Duration::from_secs(2);
/// The fact by which a hold says that somebody else froze the application before us (§2.6).
pub(super) const FOREIGN_FREEZE: &str = "foreign_freeze";
/// The fact by which a holder says that the freeze command failed; it has been thawed, or is being.
pub(super) const FREEZE_FAILED: &str = "freeze_failed";
/// The fact by which a hold says that everything acknowledged before is durable now (§4.9).
pub(super) const BARRIER: &str = "barrier";
/// Barriers that are kept: one is enough, and a hold that tells them without end must not fill the record.
const MAX_BARRIERS: usize = 4;
/// Longest name of a barrier that is kept.
const MAX_BARRIER: usize = 64;
/// Statements that one attempt ends for one hold: what is blocked again and again is not cured by ending more.
const MAX_ENDED: usize = 3;
/// Longest text that is kept about an ended statement.
const MAX_ENDED_TEXT: usize = 200;
/// Facts beyond these bounds are dropped (docs/api.md, limits).
const MAX_FACTS: usize = 32;
const MAX_FACT: usize = 1024;

/// Where a hold stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HoldPhase {
    /// Not opened yet.
    Planned,
    /// Opened, not READY.
    Opening,
    /// READY; nothing is frozen.
    Ready,
    /// FREEZE was sent.
    Freezing,
    /// FROZEN was answered.
    Frozen,
    /// The text that leads to a later stage was sent.
    Staging {
        /// The stage.
        stage: u32,
    },
    /// The closing beat and the thaw were sent.
    Closing,
    /// A thaw alone was sent: the attempt is given up.
    Thawing,
    /// THAWED was answered.
    Thawed,
    /// The stream ended without THAWED.
    Gone {
        /// Why.
        why: String,
    },
}

/// One stage after the first.
#[derive(Clone, Debug)]
pub(super) struct HeldStage {
    pub(super) number: u32,
    pub(super) sent: Mono,
    pub(super) frozen: Option<(Mono, HoldAnswer)>,
}

/// A statement of somebody else that was ended.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) id: BlockerId,
    /// The line of the probe that named it.
    pub(super) by: String,
    pub(super) sent: Mono,
    /// When and how the command ended; `None`: it still runs.
    pub(super) answered: Option<(Mono, Result<(), String>)>,
}

/// One hold.
#[derive(Clone, Debug)]
pub(super) struct Hold {
    pub(super) plan: HoldPlan,
    pub(super) phase: HoldPhase,
    pub(super) next_beat: u32,
    pub(super) outstanding: Option<(u32, Mono)>,
    /// When the next beat is due; a timer that fires earlier belongs to a phase that is over.
    pub(super) beat_due: Option<Mono>,
    pub(super) beats_while_frozen: u32,
    pub(super) late_beats: u32,
    pub(super) stages: Vec<HeldStage>,
    /// By when its thaw must be answered.
    pub(super) thaw_by: Option<Mono>,
    /// Somebody else had frozen it: nothing of ours may be undone there.
    pub(super) foreign: bool,
    /// What the stall probe said last; `None`: not asked, or not answered.
    pub(super) stall: Option<Stall>,
    /// Whom it named first: later answers are of what is left of that, or of somebody else.
    pub(super) first_stall: Option<String>,
    pub(super) stall_asked: bool,
    /// Its own lock was asked for and not acquired; an attempt that ends while it still waits is another matter.
    pub(super) acquisition_failed: bool,
    pub(super) ended: Vec<Ended>,
    pub(super) barriers: Vec<(Mono, String)>,
    pub(super) ready: Option<(Mono, HoldAnswer)>,
    pub(super) freeze_sent: Option<Mono>,
    pub(super) frozen: Option<(Mono, HoldAnswer)>,
    pub(super) closing: Option<(u32, Mono)>,
    pub(super) closing_written: Option<Mono>,
    pub(super) held: Option<(Mono, HoldAnswer)>,
    pub(super) thaw_sent: Option<Mono>,
    pub(super) thawed: Option<Mono>,
    pub(super) facts: BTreeMap<String, String>,
    pub(super) lost: Option<String>,
}

impl Hold {
    pub(super) fn new(plan: HoldPlan) -> Self {
        Self {
            plan,
            phase: HoldPhase::Planned,
            next_beat: 1,
            outstanding: None,
            beat_due: None,
            beats_while_frozen: 0,
            late_beats: 0,
            stages: Vec::new(),
            thaw_by: None,
            foreign: false,
            stall: None,
            first_stall: None,
            stall_asked: false,
            acquisition_failed: false,
            ended: Vec::new(),
            barriers: Vec::new(),
            ready: None,
            freeze_sent: None,
            frozen: None,
            closing: None,
            closing_written: None,
            held: None,
            thaw_sent: None,
            thawed: None,
            facts: BTreeMap::new(),
            lost: None,
        }
    }

    /// For messages.
    pub(super) fn place(&self) -> String {
        format!("{}/{}", self.plan.pod_name, self.plan.container)
    }

    /// Keeps a fact, within the limits.
    pub(super) fn keep_fact(&mut self, key: String, value: String) {
        if self.facts.contains_key(&key) || self.facts.len() < MAX_FACTS {
            self.facts.insert(key, value.chars().take(MAX_FACT).collect());
        }
    }

    /// Keeps a barrier with its time: whether it counts is for the verdict (rule 9).
    pub(super) fn keep_barrier(&mut self, at: Mono, name: &str) {
        if self.barriers.len() < MAX_BARRIERS {
            self.barriers.push((at, name.chars().take(MAX_BARRIER).collect()));
        }
    }

    /// The statement that may be ended now, of what the stall probe said: the policy asks for it, this hold's own lock was
    /// not acquired, and it was not tried before (§3).
    pub(super) fn blocker_to_end(&self, stall: &Stall) -> Option<(BlockerId, String)> {
        let Stall::Blocked { by, id: Some(id) } = stall else { return None };
        let allowed = self.plan.end_blocker && self.acquisition_failed && self.ended.len() < MAX_ENDED;
        (allowed && self.ended.iter().all(|ended| ended.id != *id)).then(|| (id.clone(), by.clone()))
    }

    /// Whether a statement is being ended: what the probe says meanwhile is stale.
    pub(super) fn ending(&self) -> bool {
        self.ended.iter().any(|ended| ended.answered.is_none())
    }

    /// The record of the statements that were ended.
    pub(super) fn ended_evidence(&self, offset: impl Fn(Mono) -> Offset) -> Vec<EndedBlocker> {
        let bounded = |text: &str| text.chars().take(MAX_ENDED_TEXT).collect();
        self.ended
            .iter()
            .map(|ended| EndedBlocker {
                id: ended.id.as_str().to_owned(),
                named_by: bounded(&ended.by),
                sent: offset(ended.sent),
                answered: ended.answered.as_ref().map(|(at, _)| offset(*at)),
                failed: ended
                    .answered
                    .as_ref()
                    .and_then(|(_, result)| result.as_ref().err())
                    .map(|why| bounded(why)),
            })
            .collect()
    }

    /// The record of its barriers.
    pub(super) fn barrier_evidence(&self, offset: impl Fn(Mono) -> Offset) -> Vec<BarrierEvidence> {
        self.barriers
            .iter()
            .map(|(at, name)| BarrierEvidence { name: name.clone(), at: offset(*at) })
            .collect()
    }

    /// How long an unanswered beat may take before the hold counts as lost.
    pub(super) fn patience(&self) -> Duration {
        self.plan.lease.saturating_sub(LOST_BEFORE_LEASE).max(Duration::from_secs(1))
    }

    /// Whether the stream still may be written to.
    pub(super) fn alive(&self) -> bool {
        match self.phase {
            HoldPhase::Opening
            | HoldPhase::Ready
            | HoldPhase::Freezing
            | HoldPhase::Frozen
            | HoldPhase::Staging { .. }
            | HoldPhase::Closing
            | HoldPhase::Thawing => true,
            HoldPhase::Planned | HoldPhase::Thawed | HoldPhase::Gone { .. } => false,
        }
    }

    /// Whether it may hold the application now.
    pub(super) fn may_hold(&self) -> bool {
        match self.phase {
            HoldPhase::Freezing
            | HoldPhase::Frozen
            | HoldPhase::Staging { .. }
            | HoldPhase::Closing
            | HoldPhase::Thawing => true,
            HoldPhase::Planned
            | HoldPhase::Opening
            | HoldPhase::Ready
            | HoldPhase::Thawed
            | HoldPhase::Gone { .. } => false,
        }
    }

    /// Whether it was told to freeze and is not known to have let go.
    pub(super) fn not_proven_thawed(&self) -> bool {
        let stuck = self.needs_stall_probe() && self.stall != Some(Stall::Clear);
        self.plan.locks && !self.foreign && self.freeze_sent.is_some() && (self.thawed.is_none() || stuck)
    }

    /// Whether its lock was asked for and not acquired, and the template can tell whether somebody is stuck behind it.
    pub(super) fn needs_stall_probe(&self) -> bool {
        self.plan.stall_probe && !self.foreign && self.freeze_sent.is_some() && self.frozen.is_none()
    }

    /// The record of its later stages.
    pub(super) fn stage_evidence(
        &self,
        offset: impl Fn(Mono) -> stillpoint_api::evidence::Offset,
    ) -> Vec<StageEvidence> {
        self.stages
            .iter()
            .map(|held| StageEvidence {
                stage: held.number,
                sent: Some(offset(held.sent)),
                frozen: held
                    .frozen
                    .as_ref()
                    .map(|(at, answer)| HoldAnswer { at: offset(*at), ..answer.clone() }),
            })
            .collect()
    }

    /// Why the lease that the server told is not the one that was asked for, if so.
    pub(super) fn lease_gap(&self, answer: &HoldAnswer) -> Option<String> {
        // Under the POSIX holder no server ends the hold: its own deadline does.
        let asked = in_unit(self.plan.lease, self.plan.lease_unit?);
        let said = answer.lease.as_deref().unwrap_or("");
        match said.parse::<u128>() {
            Ok(lease) if lease > 0 && lease <= asked => None,
            _ => Some(format!(
                "{}: the server answered lease={said:?} where at most {asked} was asked for; without a lease a lost \
                 connection could leave it frozen",
                self.place()
            )),
        }
    }
}

/// A lease in the unit of its variable: rounded down, at least 1 (seconds are whole: databases facts).
pub fn in_unit(lease: Duration, unit: LeaseUnit) -> u128 {
    match unit {
        LeaseUnit::Milliseconds => lease.as_millis(),
        LeaseUnit::Seconds => u128::from(lease.as_secs()),
    }
    .max(1)
}
