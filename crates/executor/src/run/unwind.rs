//! How an attempt ends: given up, released, disowned. Whatever may be frozen is thawed or its stream is closed first.

use super::hold::{Hold, HoldPhase};
use super::steps::release_when_cut;
use super::{Abort, Effect, End, Entry, HoldId, MemberId, Now, Reason, Run, State, THAW_WITHIN, Timer};
use stillpoint_api::clock::Mono;

pub(super) fn hold_ended(run: &mut Run, id: HoldId, why: Abort, now: Now, out: &mut Vec<Effect>) {
    let Some(hold) = run.holds.get(id.0) else { return };
    if hold.alive() {
        lose(run, id, why, now, out);
    }
}

/// A hold is gone, or must be taken for gone. The others are thawed at once (§7).
pub(super) fn lose(run: &mut Run, id: HoldId, why: Abort, now: Now, out: &mut Vec<Effect>) {
    let Some(hold) = run.holds.get_mut(id.0) else { return };
    let before = std::mem::replace(&mut hold.phase, HoldPhase::Gone { why: why.message.clone() });
    hold.lost.get_or_insert_with(|| why.message.clone());
    let observes = !hold.plan.locks && hold.frozen.is_some();
    // Whoever saw the stream end does not know that it mattered: after a FREEZE it was more than not READY.
    let after_freeze = matches!(before, HoldPhase::Freezing | HoldPhase::Frozen);
    let why = match why.reason {
        Reason::HoldNotReady if after_freeze => Abort::new(Reason::HoldLost, why.message),
        _ => why,
    };
    out.push(Effect::CloseHold(id));
    match before {
        // Losing an observer costs evidence, not the verdict (§4): it stopped nobody.
        HoldPhase::Frozen if observes => record_when_thawed(run, out),
        HoldPhase::Planned
        | HoldPhase::Opening
        | HoldPhase::Ready
        | HoldPhase::Freezing
        | HoldPhase::Frozen => {
            give_up(run, why, now, out);
        }
        HoldPhase::Closing | HoldPhase::Thawing => record_when_thawed(run, out),
        HoldPhase::Thawed | HoldPhase::Gone { .. } => {}
    }
}

pub(super) fn snapshot_failed(run: &Run, id: MemberId, message: &str) -> Abort {
    let claim = run.members.get(id.0).map_or("?", |member| member.evidence.claim_name.as_str());
    Abort::new(
        Reason::SnapshotFailed,
        format!("the storage system refused the snapshot of claim {claim}: {message}"),
    )
}

/// A member cannot be cut. `Required` gives up at once: the freeze ends and the slot may be tried again.
pub(super) fn member_failed(run: &mut Run, id: MemberId, why: Abort, now: Now, out: &mut Vec<Effect>) {
    let required = run.plan.required;
    let Some(member) = run.members.get_mut(id.0) else { return };
    if member.cut.is_some() || member.failed.is_some() {
        return;
    }
    member.evidence.error = Some(why.message.chars().take(1024).collect());
    member.failed = Some(why.clone());
    if run.state != State::Cutting {
        return;
    }
    if required || run.members.iter().all(|member| member.failed.is_some()) {
        give_up(run, why, now, out);
    } else {
        release_when_cut(run, now, out);
    }
}

pub(super) fn pod_changed(run: &mut Run, what: &str, now: Now, out: &mut Vec<Effect>) {
    match run.state {
        State::New
        | State::Preparing { .. }
        | State::Opening
        | State::Journalling { .. }
        | State::Acquiring
        | State::Cutting => {
            give_up(
                run,
                Abort::new(Reason::PodChanged, format!("{what} while it was being backed up")),
                now,
                out,
            );
        }
        // After the release it is the verdict's business (rule 4).
        State::Releasing | State::Unwinding { .. } | State::Recording { .. } | State::Ended => {}
    }
}

/// Ends the attempt: thaws whatever may be frozen, closes whatever is open, and then records.
pub(super) fn give_up(run: &mut Run, why: Abort, now: Now, out: &mut Vec<Effect>) {
    match &mut run.state {
        State::New | State::Preparing { .. } | State::Opening => {
            close_all(run, out);
            record(run, End::Aborted(why), out);
        }
        // The write is under way; its answer comes, and nothing is frozen until then.
        State::Journalling { stop } => {
            stop.get_or_insert(why);
        }
        State::Acquiring | State::Cutting => {
            for (index, hold) in run.holds.iter_mut().enumerate() {
                if hold.alive() {
                    hold.phase = HoldPhase::Thawing;
                    hold.thaw_sent.get_or_insert(now.mono);
                    out.push(Effect::SendThaw(HoldId(index)));
                }
            }
            run.state = State::Unwinding { why };
            out.push(Effect::Schedule { timer: Timer::Thaw, at: thaw_deadline(run, now.mono) });
            record_when_thawed(run, out);
        }
        State::Releasing | State::Unwinding { .. } | State::Recording { .. } | State::Ended => {}
    }
}

pub(super) fn close_all(run: &mut Run, out: &mut Vec<Effect>) {
    for (index, hold) in run.holds.iter_mut().enumerate() {
        if hold.alive() {
            hold.phase = HoldPhase::Gone { why: "closed before anything was frozen".to_owned() };
            out.push(Effect::CloseHold(HoldId(index)));
        }
    }
}

/// When a thaw stops being waited for: its bound, and never past the promise.
pub(super) fn thaw_deadline(run: &Run, now: Mono) -> Mono {
    let bound = now + THAW_WITHIN;
    run.t0.map_or(bound, |t0| bound.min(t0.mono + run.plan.max_hold))
}

pub(super) fn record_when_thawed(run: &mut Run, out: &mut Vec<Effect>) {
    if run.holds.iter().any(Hold::alive) {
        return;
    }
    match &run.state {
        State::Releasing => {
            let lost = run.holds.iter().find(|hold| hold.plan.locks && hold.thawed.is_none());
            let end = match lost {
                Some(hold) => End::Aborted(Abort::new(
                    Reason::HoldLost,
                    format!(
                        "{}: it did not answer the thaw ({}); the cut is not proven to lie inside the hold",
                        hold.place(),
                        hold.lost.as_deref().unwrap_or("no answer")
                    ),
                )),
                None => End::Thawed,
            };
            record(run, end, out);
        }
        State::Unwinding { why } => {
            let end = End::Aborted(why.clone());
            record(run, end, out);
        }
        State::New
        | State::Preparing { .. }
        | State::Opening
        | State::Journalling { .. }
        | State::Acquiring
        | State::Cutting
        | State::Recording { .. }
        | State::Ended => {}
    }
}

pub(super) fn record(run: &mut Run, end: End, out: &mut Vec<Effect>) {
    let entry = match &end {
        End::Thawed => Entry::Thawed,
        End::Aborted(why) => Entry::Aborted {
            why: why.clone(),
            not_proven_thawed: run
                .holds
                .iter()
                .enumerate()
                .filter(|(_, hold)| hold.plan.locks && hold.freeze_sent.is_some() && hold.thawed.is_none())
                .map(|(index, _)| HoldId(index))
                .collect(),
        },
        End::Disowned(_) => {
            run.state = State::Ended;
            out.push(Effect::End(end));
            return;
        }
    };
    run.state = State::Recording { end };
    out.push(Effect::WriteJournal(entry));
}

/// The run is somebody else's, or the object is gone: nothing is frozen at either write, so there is nothing to undo.
pub(super) fn refused(run: &mut Run, why: String, out: &mut Vec<Effect>) {
    match run.state {
        State::Journalling { .. } | State::Recording { .. } => {
            close_all(run, out);
            record(run, End::Disowned(why), out);
        }
        State::New
        | State::Preparing { .. }
        | State::Opening
        | State::Acquiring
        | State::Cutting
        | State::Releasing
        | State::Unwinding { .. }
        | State::Ended => {}
    }
}
