//! The conditions of a policy.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use stillpoint_api::backup::{READY as POINT_READY, SNAPSHOT_DELETED};
use stillpoint_api::policy::BackupPolicyStatus;

use super::notes::{Note, paused};
use super::starting::{ClockView, SlotOutcome};
use super::{Observed, seconds};
use crate::projection::Failure;
use crate::retention::{HeldBack, Standing};

/// Condition: the spec can be scheduled.
pub const ACCEPTED: &str = "Accepted";
/// Condition: the last run protected what it should.
pub const READY: &str = "Ready";
/// Condition: the wall clock is behind the newest slot; nothing is deleted.
pub const CLOCK_SKEW: &str = "ClockSkew";
/// Condition: the schedule can meet the recovery point objective when every run succeeds.
pub const RPO_ATTAINABLE: &str = "RPOAttainable";
/// Condition: more points would go at once than an edit that was meant; none goes.
pub const RETENTION_PAUSED: &str = "RetentionPaused";

pub(super) fn set_conditions(
    status: &mut BackupPolicyStatus,
    observed: &Observed<'_>,
    slots: &SlotOutcome,
    held_back: Option<HeldBack>,
    now: Timestamp,
) {
    let generation = observed.policy.metadata.generation;
    let set = |conditions: &mut Vec<Condition>, kind: &str, value: &str, reason: &str, message: String| {
        set_condition(conditions, kind, value, reason, message, generation, now);
    };
    let conditions = &mut status.conditions;
    match observed.accepted {
        Ok(_) => set(conditions, ACCEPTED, "True", "Accepted", "the policy is scheduled".to_owned()),
        Err(refusal) => set(conditions, ACCEPTED, "False", &refusal.reason, refusal.message.clone()),
    }
    let (value, reason, message) = ready(observed, slots);
    set(conditions, READY, value, &reason, message);
    let attainable = observed.accepted.ok().and(status.rpo.as_ref()).and_then(|rpo| rpo.attainable);
    match (attainable, status.max_interval_seconds) {
        (Some(true), _) => {
            let message = "the schedule meets the objective when every run succeeds".to_owned();
            set(conditions, RPO_ATTAINABLE, "True", "Attainable", message);
        }
        (Some(false), longest) => {
            let message = format!(
                "the longest interval of the schedule is {} s, and with the time until a point is ready the objective \
                 is missed although every run succeeds: run more often or relax objectives.rpo",
                longest.unwrap_or_default()
            );
            set(conditions, RPO_ATTAINABLE, "False", "IntervalTooLong", message);
        }
        (None, _) => conditions.retain(|condition| condition.type_ != RPO_ATTAINABLE),
    }
    match held_back {
        Some(held_back) => {
            let message = paused(observed, held_back).message();
            set(conditions, RETENTION_PAUSED, "True", "TooManyDeletions", message);
        }
        None => conditions.retain(|condition| condition.type_ != RETENTION_PAUSED),
    }
    match slots.clock {
        ClockView::Behind(last_slot) => {
            let note = Note::ClockSkewed { last_slot };
            set(conditions, CLOCK_SKEW, "True", "ClockBehind", note.message());
        }
        ClockView::Differs(ahead) => {
            let note = Note::ClockDiffers { ahead };
            set(conditions, CLOCK_SKEW, "True", "ClockDiffers", note.message());
        }
        ClockView::Sane | ClockView::WasAhead(_) => {
            conditions.retain(|condition| condition.type_ != CLOCK_SKEW);
        }
    }
}

/// The last run's result, unless the policy cannot or may not run at all.
fn ready(observed: &Observed<'_>, slots: &SlotOutcome) -> (&'static str, String, String) {
    if let Err(refusal) = observed.accepted {
        return ("False", refusal.reason.clone(), refusal.message.clone());
    }
    if observed.policy.spec.suspend {
        return ("False", "Suspended".to_owned(), "spec.suspend is true: nothing is started".to_owned());
    }
    if slots.exhausted {
        let message = "the schedule has no slot left up to the year 2100".to_owned();
        return ("False", "ScheduleExhausted".to_owned(), message);
    }
    let finished =
        observed.backups.iter().filter(|backup| backup.standing != Standing::Unfinished && !backup.deleting);
    let Some(last) = finished.max_by_key(|backup| backup.ended()) else {
        return ("Unknown", "Pending".to_owned(), "no run has finished yet".to_owned());
    };
    if last.standing == Standing::Lost {
        let message = format!(
            "a snapshot of {} was deleted by somebody else; see its condition {POINT_READY}",
            last.name
        );
        return ("False", SNAPSHOT_DELETED.to_owned(), message);
    }
    match &last.failure {
        None => ("True", "Protected".to_owned(), format!("{} is proven application-consistent", last.name)),
        Some(Failure { reason, message }) => ("False", reason.clone(), format!("{}: {message}", last.name)),
    }
}

fn set_condition(
    conditions: &mut Vec<Condition>,
    kind: &str,
    value: &str,
    reason: &str,
    message: String,
    generation: Option<i64>,
    now: Timestamp,
) {
    let known = conditions.iter().find(|condition| condition.type_ == kind && condition.status == value);
    let condition = Condition {
        last_transition_time: known.map_or(seconds(now), |known| known.last_transition_time.clone()),
        message,
        observed_generation: generation,
        reason: reason.to_owned(),
        status: value.to_owned(),
        type_: kind.to_owned(),
    };
    match conditions.iter_mut().find(|known| known.type_ == kind) {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
}
