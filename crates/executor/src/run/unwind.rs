//! How an attempt ends otherwise: given up, disowned. Whatever may be frozen is thawed or its stream is closed first.

use super::hold::{Hold, HoldPhase};
use super::release::{record_when_thawed, release_next, thaw_deadline, unproven};
use super::steps::go_on_when_cut;
use super::{Abort, CutId, Effect, End, Entry, HoldId, MemberId, Now, Reason, Run, State, Timer};

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
    // Losing an observer costs evidence, not the verdict (§4): it stopped nobody.
    let observes = !hold.plan.essential() && hold.frozen.is_some();
    // Whoever saw the stream end does not know that it mattered: after a FREEZE it was more than not READY.
    let why = match (&before, why.reason) {
        (HoldPhase::Staging { .. }, Reason::HoldNotReady) => Abort::new(Reason::StageFailed, why.message),
        (HoldPhase::Freezing | HoldPhase::Frozen, Reason::HoldNotReady) => {
            Abort::new(Reason::HoldLost, why.message)
        }
        _ => why,
    };
    hold.acquisition_failed |= before == HoldPhase::Freezing && why.reason == Reason::LockNotAcquired;
    let unproven = unproven(hold);
    out.push(Effect::CloseHold(id));
    match before {
        HoldPhase::Frozen | HoldPhase::Closing if observes => release_next(run, now, out),
        HoldPhase::Planned
        | HoldPhase::Opening
        | HoldPhase::Ready
        | HoldPhase::Freezing
        | HoldPhase::Frozen
        | HoldPhase::Staging { .. } => thaw_all(run, why, now, out),
        HoldPhase::Closing if run.holds.iter().any(|hold| hold.phase == HoldPhase::Frozen) => {
            thaw_all(run, unproven, now, out);
        }
        HoldPhase::Closing | HoldPhase::Thawing => record_when_thawed(run, now, out),
        HoldPhase::Thawed | HoldPhase::Gone { .. } => {}
    }
}

pub(super) fn snapshot_failed(run: &Run, id: CutId, message: &str) -> Abort {
    Abort::new(
        Reason::SnapshotFailed,
        format!("the storage system refused the snapshot of claim {}: {message}", claims(run, id)),
    )
}

fn claims(run: &Run, id: CutId) -> String {
    let members = run.cuts.get(id.0).map(|cut| cut.plan.members.as_slice()).unwrap_or_default();
    let names = members.iter().filter_map(|MemberId(index)| run.members.get(*index));
    names.map(|member| member.claim_name.as_str()).collect::<Vec<_>>().join(", ")
}

/// A cut cannot be had. `Required` gives up at once: the freeze ends and the slot may be tried again.
pub(super) fn cut_failed(run: &mut Run, id: CutId, why: Abort, now: Now, out: &mut Vec<Effect>) {
    let required = run.plan.required;
    let Some(cut) = run.cuts.get_mut(id.0) else { return };
    if !cut.open() {
        return;
    }
    cut.failed = Some(why.clone());
    for MemberId(index) in cut.plan.members.clone() {
        if let Some(member) = run.members.get_mut(index) {
            member.error = Some(why.message.chars().take(1024).collect());
        }
    }
    let State::Cutting { .. } = run.state else { return };
    if required || run.cuts.iter().all(|cut| cut.failed.is_some()) {
        give_up(run, why, now, out);
    } else {
        go_on_when_cut(run, now, out);
    }
}

pub(super) fn pod_changed(run: &mut Run, what: &str, now: Now, out: &mut Vec<Effect>) {
    match run.state {
        State::New
        | State::Preparing { .. }
        | State::Opening
        | State::Journalling { .. }
        | State::Acquiring
        | State::Cutting { .. }
        | State::Staging { .. } => {
            give_up(
                run,
                Abort::new(Reason::PodChanged, format!("{what} while it was being backed up")),
                now,
                out,
            );
        }
        // After the release it is the verdict's business (rule 4).
        State::Releasing
        | State::Unwinding { .. }
        | State::Unquiescing { .. }
        | State::Recording { .. }
        | State::Ended => {}
    }
}

/// Ends the attempt, unless it is over already: a release under way goes on, it thaws anyway.
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
        State::Acquiring | State::Cutting { .. } | State::Staging { .. } => thaw_all(run, why, now, out),
        State::Releasing
        | State::Unwinding { .. }
        | State::Unquiescing { .. }
        | State::Recording { .. }
        | State::Ended => {}
    }
}

/// Thaws whatever may be frozen and closes what is not, all at once, and then records.
fn thaw_all(run: &mut Run, why: Abort, now: Now, out: &mut Vec<Effect>) {
    match run.state {
        State::Acquiring | State::Cutting { .. } | State::Staging { .. } | State::Releasing => {}
        State::New
        | State::Preparing { .. }
        | State::Opening
        | State::Journalling { .. }
        | State::Unwinding { .. }
        | State::Unquiescing { .. }
        | State::Recording { .. }
        | State::Ended => return give_up(run, why, now, out),
    }
    let by = thaw_deadline(run, now.mono);
    for (index, hold) in run.holds.iter_mut().enumerate() {
        match hold.phase {
            HoldPhase::Freezing | HoldPhase::Frozen | HoldPhase::Staging { .. } => {
                hold.phase = HoldPhase::Thawing;
                hold.thaw_sent.get_or_insert(now.mono);
                hold.thaw_by = Some(by);
                out.push(Effect::SendThaw(HoldId(index)));
            }
            // Never told to freeze: there is nothing to thaw.
            HoldPhase::Opening | HoldPhase::Ready => {
                hold.phase = HoldPhase::Gone { why: "closed before it was frozen".to_owned() };
                out.push(Effect::CloseHold(HoldId(index)));
            }
            HoldPhase::Planned
            | HoldPhase::Closing
            | HoldPhase::Thawing
            | HoldPhase::Thawed
            | HoldPhase::Gone { .. } => {}
        }
    }
    run.state = State::Unwinding { why };
    out.push(Effect::Schedule { timer: Timer::Thaw, at: by });
    record_when_thawed(run, now, out);
}

pub(super) fn close_all(run: &mut Run, out: &mut Vec<Effect>) {
    for (index, hold) in run.holds.iter_mut().enumerate() {
        if hold.alive() {
            hold.phase = HoldPhase::Gone { why: "closed before anything was frozen".to_owned() };
            out.push(Effect::CloseHold(HoldId(index)));
        }
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
                .filter(|(_, hold)| Hold::not_proven_thawed(hold))
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
        | State::Cutting { .. }
        | State::Staging { .. }
        | State::Releasing
        | State::Unwinding { .. }
        | State::Unquiescing { .. }
        | State::Ended => {}
    }
}
