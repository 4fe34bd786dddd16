//! What is told about a policy: the events of a decision.

use jiff::{SignedDuration, Timestamp};
use stillpoint_api::policy::{BackupPolicyStatus, DELETIONS_AGREED_ANNOTATION};

use super::conditions::{ACCEPTED, CLOCK_SKEW, RETENTION_PAUSED};
use super::starting::{ClockView, SlotOutcome};
use super::{Cancel, Observed};
use crate::accept::Refusal;
use crate::retention::HeldBack;
use crate::slots::{Missed, MissedReason};

/// An event on the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Slots did not run.
    Missed(Missed),
    /// Slots did not run because of a rule's blackout.
    RuleBlackout {
        /// How many.
        count: u32,
        /// Whose blackouts.
        whose: String,
    },
    /// `lastSlot` was far in the future and was reset.
    LastSlotReset {
        /// What it said.
        was: Timestamp,
    },
    /// The policy was refused.
    Refused(Refusal),
    /// The wall clock is behind the newest slot.
    ClockSkewed {
        /// The newest slot.
        last_slot: Timestamp,
    },
    /// The wall clock differs from the API server's.
    ClockDiffers {
        /// The API server's time less ours.
        ahead: SignedDuration,
    },
    /// More points would go at once than an edit that was meant.
    RetentionPaused {
        /// How many.
        held_back: HeldBack,
        /// What has to be written to agree.
        generation: i64,
    },
    /// A run is cancelled for a slot.
    Replaced {
        /// The Backup that is cancelled.
        backup: String,
        /// The slot that waits for its end.
        slot: Timestamp,
    },
}

impl Note {
    /// The bounded reason of the event.
    pub fn reason(&self) -> &str {
        match self {
            Self::Missed(_) | Self::RuleBlackout { .. } => "MissedSlots",
            Self::LastSlotReset { .. } => "LastSlotReset",
            Self::Refused(refusal) => &refusal.reason,
            Self::ClockSkewed { .. } | Self::ClockDiffers { .. } => CLOCK_SKEW,
            Self::RetentionPaused { .. } => RETENTION_PAUSED,
            Self::Replaced { .. } => "BackupReplaced",
        }
    }

    /// The message of the event.
    pub fn message(&self) -> String {
        match self {
            Self::Missed(missed) => {
                format!("{} slot(s) did not run: {}", missed.count, missed.reason.label())
            }
            Self::RuleBlackout { count, whose } => format!("{count} slot(s) did not run: {whose}"),
            Self::LastSlotReset { was } => format!(
                "lastSlot was {was}, far in the future: written by a wrong clock; the schedule resumes from now"
            ),
            Self::Refused(refusal) => refusal.message.clone(),
            Self::ClockSkewed { last_slot } => format!(
                "the controller's clock is behind the newest slot {last_slot}; nothing starts or is deleted until it \
                 catches up; check time synchronisation"
            ),
            Self::ClockDiffers { ahead } => format!(
                "the API server's clock is {} s {} the controller's; nothing is deleted until they agree; check time \
                 synchronisation",
                ahead.unsigned_abs().as_secs(),
                if ahead.is_negative() { "behind" } else { "ahead of" }
            ),
            Self::RetentionPaused { held_back: HeldBack { expiring, of }, generation } => format!(
                "retention would let {expiring} of {of} points go at once, which looks like a mistake; none is deleted. \
                 Correct spec.retention, or agree with the annotation {DELETIONS_AGREED_ANNOTATION}={generation} on the \
                 policy"
            ),
            Self::Replaced { backup, slot } => {
                format!("{backup} is cancelled: the slot {slot} is due and concurrency is Replace")
            }
        }
    }
}

pub(super) fn notes(
    observed: &Observed<'_>,
    before: &BackupPolicyStatus,
    slots: &SlotOutcome,
    held_back: Option<HeldBack>,
    cancel: &[Cancel],
) -> Vec<Note> {
    // What is skipped as was asked for is in status and metrics; an event for each would drown the others.
    let worth_an_event = |missed: &&Missed| match missed.reason {
        MissedReason::ControllerDown | MissedReason::Deadline => true,
        MissedReason::Concurrency | MissedReason::Blackout | MissedReason::RuleBlackout => false,
    };
    let mut notes: Vec<Note> =
        slots.missed.iter().filter(worth_an_event).copied().map(Note::Missed).collect();
    notes.extend(rule_blackout(observed, slots));
    let had = |kind: &str, status: &str| {
        before.conditions.iter().any(|condition| condition.type_ == kind && condition.status == status)
    };
    match slots.clock {
        ClockView::Sane => {}
        ClockView::Behind(_) if had(CLOCK_SKEW, "True") => {}
        ClockView::Behind(last_slot) => notes.push(Note::ClockSkewed { last_slot }),
        ClockView::WasAhead(was) => notes.push(Note::LastSlotReset { was }),
        ClockView::Differs(_) if had(CLOCK_SKEW, "True") => {}
        ClockView::Differs(ahead) => notes.push(Note::ClockDiffers { ahead }),
    }
    if let Some(held_back) = held_back.filter(|_| !had(RETENTION_PAUSED, "True")) {
        notes.push(paused(observed, held_back));
    }
    if let Some(slot) = slots.queued {
        notes.extend(cancel.iter().map(|cancel| Note::Replaced { backup: cancel.name.clone(), slot }));
    }
    if let Err(refusal) = observed.accepted
        && !before.conditions.iter().any(|known| {
            // Of rules the words count: another one may have been broken.
            let same = refusal.rules.is_empty() || known.message == refusal.message;
            known.type_ == ACCEPTED && known.reason == refusal.reason && same
        })
    {
        notes.push(Note::Refused(refusal.clone()));
    }
    notes
}

/// What a rule drops is not as the policy asks for, so its owner is told whose doing it is.
fn rule_blackout(observed: &Observed<'_>, slots: &SlotOutcome) -> Option<Note> {
    let missed = slots.missed.iter().find(|missed| missed.reason == MissedReason::RuleBlackout)?;
    let spec = &observed.accepted.ok()?.slots;
    let whose = spec.blackouts.whose(spec.due(slots.last_slot?));
    Some(Note::RuleBlackout { count: missed.count, whose })
}

pub(super) fn paused(observed: &Observed<'_>, held_back: HeldBack) -> Note {
    Note::RetentionPaused { held_back, generation: observed.policy.metadata.generation.unwrap_or_default() }
}
