//! Rules 1, 2, 3 and 5: every hold was frozen before its first snapshot was asked for, until all were cut, proved it at the end,
//! and in time.

use std::time::Duration;

use stillpoint_api::evidence::{HoldEvidence, Offset};

use super::{Checked, NOT_NEEDED, millis, pod};
use crate::verdict::Case;

/// 1: every hold's FROZEN was received before the first snapshot POST of its stage was sent.
pub(super) fn frozen_before_the_first_post(case: &Case<'_>) -> Checked {
    if !case.depends_on_holds() {
        return Checked::proved(NOT_NEEDED);
    }
    if let Some(why) = stage_gap(case) {
        return Checked::missing(why);
    }
    let Some(first_post) = case.members.iter().filter_map(|member| member.post_sent).min() else {
        return Checked::missing("no snapshot was posted");
    };
    if case.holds.is_empty() {
        return Checked::missing("there is no record of a hold");
    }
    let mut last = Offset(i64::MIN);
    for hold in &case.holds {
        match &hold.frozen {
            None => return Checked::missing(format!("{} never answered FROZEN", pod(hold))),
            Some(frozen) if frozen.at > first_post => {
                return Checked::missing(format!(
                    "{} answered FROZEN at {}, after the first snapshot was posted at {}",
                    pod(hold),
                    millis(frozen.at),
                    millis(first_post)
                ));
            }
            Some(frozen) => last = last.max(frozen.at),
        }
    }
    Checked::proved(format!("FROZEN at {}, first snapshot posted at {}", millis(last), millis(first_post)))
}

/// Why the stages did not follow each other: each begins after the last cut of the one before was seen, and is answered
/// before its own first POST.
fn stage_gap(case: &Case<'_>) -> Option<String> {
    for stage in 1..case.application.stages {
        let of = |stage: u32| case.members.iter().filter(move |member| member.stage == stage);
        let first_post = of(stage).filter_map(|member| member.post_sent).min();
        let before = stage - 1;
        if of(before).any(|member| member.signal.is_none()) {
            return Some(format!("a volume of stage {before} was never seen cut"));
        }
        let last_cut = of(before).filter_map(|member| member.signal).max();
        for hold in &case.holds {
            let Some(held) = hold.stages.iter().find(|held| held.stage == stage) else {
                return Some(format!("{} has no record of stage {stage}", pod(hold)));
            };
            let (Some(sent), Some(frozen)) = (held.sent, &held.frozen) else {
                return Some(format!("{} never answered stage {stage}", pod(hold)));
            };
            if last_cut.is_some_and(|cut| sent < cut) {
                return Some(format!("{} began stage {stage} before stage {before} was cut", pod(hold)));
            }
            if first_post.is_some_and(|post| frozen.at > post) {
                return Some(format!(
                    "{} answered stage {stage} after its first snapshot was posted",
                    pod(hold)
                ));
            }
            if hold.frozen.as_ref().is_none_or(|first| first.identity != frozen.identity) {
                return Some(format!("{}: another server answered stage {stage}", pod(hold)));
            }
        }
    }
    None
}

/// 2: every member's cut signal was received before the first THAW was sent.
pub(super) fn cut_before_the_first_thaw(case: &Case<'_>) -> Checked {
    if !case.depends_on_holds() {
        return Checked::proved(NOT_NEEDED);
    }
    let Some(first_thaw) = case.holds.iter().filter_map(|hold| hold.thaw_sent).min() else {
        return Checked::missing("there is no record of a thaw");
    };
    let mut last = Offset(i64::MIN);
    for member in &case.members {
        match member.signal {
            None => return Checked::missing(format!("claim {} was never seen cut", member.claim_name)),
            Some(signal) if signal > first_thaw => {
                return Checked::missing(format!(
                    "the cut of claim {} was seen at {}, after the first thaw at {}",
                    member.claim_name,
                    millis(signal),
                    millis(first_thaw)
                ));
            }
            Some(signal) => last = last.max(signal),
        }
    }
    if case.members.is_empty() {
        return Checked::missing("nothing was cut");
    }
    Checked::proved(format!("last cut seen at {}, first thaw sent at {}", millis(last), millis(first_thaw)))
}

/// 3: every hold answered its closing beat, sent after the last cut signal was processed, then THAWED to its own
/// nonce, on the same stream, with the identity and role of FROZEN.
pub(super) fn closing_proof(case: &Case<'_>) -> Checked {
    if !case.depends_on_holds() {
        return Checked::proved(NOT_NEEDED);
    }
    let Some(last_signal) = case.evidence.members.iter().filter_map(|member| member.signal).max() else {
        return Checked::missing("nothing was cut");
    };
    for hold in &case.holds {
        if let Some(why) = closing_gap(hold, last_signal) {
            return Checked::missing(format!("{}: {why}", pod(hold)));
        }
    }
    if case.holds.is_empty() {
        return Checked::missing("there is no record of a hold");
    }
    Checked::proved("every hold answered its closing beat and then THAWED, with the identity of FROZEN")
}

fn closing_gap(hold: &HoldEvidence, last_signal: Offset) -> Option<String> {
    let (Some(frozen), Some(sent)) = (&hold.frozen, hold.closing_sent) else {
        return Some("no closing beat was sent".into());
    };
    if sent < last_signal {
        return Some("the closing beat was sent before the last cut was seen".into());
    }
    if hold.closing_written.is_none() {
        return Some("the closing text was not written completely".into());
    }
    let Some(held) = &hold.held else {
        return Some("the closing beat was never answered".into());
    };
    if held.identity != frozen.identity || held.identity.is_empty() {
        return Some(format!(
            "the server changed: FROZEN said {:?}, HELD said {:?}",
            frozen.identity, held.identity
        ));
    }
    if held.role != frozen.role {
        return Some(format!("the role changed from {:?} to {:?}", frozen.role, held.role));
    }
    let Some(thawed) = hold.thawed else {
        return Some("it never answered THAWED".into());
    };
    (held.at < sent || thawed < held.at).then(|| "its answers came in the wrong order".into())
}

/// 5: t3 − t0 ≤ maxHold, on our clock and on the server's where it gives one.
pub(super) fn within_the_budget(case: &Case<'_>) -> Checked {
    if !case.locks() {
        return Checked::proved(NOT_NEEDED);
    }
    let most = Duration::from_millis(case.evidence.resolved.max_hold_millis);
    let Some(end) = case
        .holds
        .iter()
        .map(|hold| hold.thawed)
        .collect::<Option<Vec<_>>>()
        .and_then(|all| all.into_iter().max())
    else {
        return Checked::missing("a hold never answered THAWED: its length is not known");
    };
    let took = Duration::from_micros(u64::try_from(end.0).unwrap_or(0));
    if took > most {
        return Checked::missing(format!("the hold took {took:?}, more than maxHold {most:?}"));
    }
    for hold in &case.holds {
        let clocks = (
            hold.frozen.as_ref().and_then(|answer| answer.clock),
            hold.held.as_ref().and_then(|answer| answer.clock),
        );
        if let (Some(begin), Some(end)) = clocks {
            let server = Duration::from_micros(u64::try_from(end - begin).unwrap_or(0));
            if server > most {
                return Checked::missing(format!(
                    "{} counted {server:?} on its own clock, more than maxHold {most:?}",
                    pod(hold)
                ));
            }
        }
    }
    Checked::proved(format!("held for {:.1} ms of {} ms", took.as_secs_f64() * 1e3, most.as_millis()))
}
