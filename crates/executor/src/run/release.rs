//! The release: every cut was seen. Holds let go in the reverse of the order in which they froze, equal orders together.
//!
//! One write per hold carries the closing beat and the thaw (docs/design/freeze.md §2.4). What is waiting for its turn goes
//! on beating.

use stillpoint_api::clock::Mono;

use super::hold::{Hold, HoldPhase};
use super::stall::unquiesce;
use super::timers::lease_left;
use super::unwind::record;
use super::{Abort, Effect, End, HoldId, Now, Reason, Run, State, THAW_WITHIN, Timer};

/// t2: the last cut signal was processed.
pub(super) fn release(run: &mut Run, now: Now, out: &mut Vec<Effect>) {
    run.state = State::Releasing;
    release_next(run, now, out);
}

/// Lets the highest order go that is still held, when nobody is on the way; records when nobody is left.
pub(super) fn release_next(run: &mut Run, now: Now, out: &mut Vec<Effect>) {
    if run.state == State::Releasing && !run.holds.iter().any(|hold| hold.phase == HoldPhase::Closing) {
        let held = run.holds.iter().filter(|hold| hold.phase == HoldPhase::Frozen);
        if let Some(order) = held.map(|hold| hold.plan.order).max() {
            close(run, order, now, out);
            return;
        }
    }
    record_when_thawed(run, now, out);
}

fn close(run: &mut Run, order: i32, now: Now, out: &mut Vec<Effect>) {
    let lease = lease_left(run, now.mono);
    let by = thaw_deadline(run, now.mono);
    for (index, hold) in run.holds.iter_mut().enumerate() {
        if hold.phase != HoldPhase::Frozen || hold.plan.order != order {
            continue;
        }
        let beat = hold.next_beat;
        hold.next_beat += 1;
        hold.phase = HoldPhase::Closing;
        hold.closing = Some((beat, now.mono));
        hold.thaw_sent = Some(now.mono);
        hold.thaw_by = Some(by);
        let lease = lease.min(hold.plan.lease);
        out.push(Effect::SendClosing { hold: HoldId(index), index: beat, lease });
    }
    out.push(Effect::Schedule { timer: Timer::Thaw, at: by });
}

/// When a thaw stops being waited for: its bound, and never past the promise.
pub(super) fn thaw_deadline(run: &Run, now: Mono) -> Mono {
    let bound = now + THAW_WITHIN;
    run.t0.map_or(bound, |t0| bound.min(t0.mono + run.plan.max_hold))
}

/// Ends the attempt when no stream is left.
pub(super) fn record_when_thawed(run: &mut Run, now: Now, out: &mut Vec<Effect>) {
    if run.holds.iter().any(Hold::alive) {
        return;
    }
    match &run.state {
        State::Releasing => {
            let lost = run.holds.iter().find(|hold| hold.plan.essential() && hold.thawed.is_none());
            let end = match lost {
                Some(hold) => End::Aborted(unproven(hold)),
                None => End::Thawed,
            };
            record(run, end, out);
        }
        State::Unwinding { why } => {
            let why = why.clone();
            unquiesce(run, why, now, out);
        }
        State::New
        | State::Preparing { .. }
        | State::Opening
        | State::Journalling { .. }
        | State::Acquiring
        | State::Cutting { .. }
        | State::Staging { .. }
        | State::Unquiescing { .. }
        | State::Recording { .. }
        | State::Ended => {}
    }
}

/// Why a release without THAWED proves nothing.
pub(super) fn unproven(hold: &Hold) -> Abort {
    Abort::new(
        Reason::HoldLost,
        format!(
            "{}: it did not answer the thaw ({}); the cut is not proven to lie inside the hold",
            hold.place(),
            hold.lost.as_deref().unwrap_or("no answer")
        ),
    )
}
