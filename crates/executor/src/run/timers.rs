//! What happens when time runs out: of opening, of acquiring, of the snapshot stack, of the cut, of a beat, of a thaw.

use std::time::Duration;

use stillpoint_api::clock::Mono;

use super::hold::{BEAT_EVERY, Hold, HoldPhase};
use super::stall::look_again;
use super::steps::arm_beat;
use super::unwind::{give_up, lose};
use super::{Abort, Effect, HoldId, MAX_LEASE, Now, OPEN_WITHIN, Reason, Run, State, Timer};

/// A beat may renew the lease up to this long past the promise, never further (docs/design/freeze.md §3).
const LEASE_PAST_PROMISE: Duration = Duration::from_secs(5);
/// No beat later than this after the cut deadline.
const BEATS_PAST_CUT: Duration = Duration::from_secs(1);

pub(super) fn fired(run: &mut Run, timer: Timer, now: Now, out: &mut Vec<Effect>) {
    match timer {
        Timer::Open => {
            if run.state == State::Opening {
                let late: Vec<String> = run
                    .holds
                    .iter()
                    .filter(|hold| hold.phase == HoldPhase::Opening)
                    .map(Hold::place)
                    .collect();
                let what = format!("{} was not READY within {OPEN_WITHIN:?}", late.join(", "));
                give_up(run, Abort::new(Reason::HoldNotReady, what), now, out);
            }
        }
        Timer::Acquire => {
            if run.state == State::Acquiring {
                let mut late = Vec::new();
                for hold in run.holds.iter_mut().filter(|hold| hold.phase == HoldPhase::Freezing) {
                    hold.acquisition_failed = true;
                    late.push(hold.place());
                }
                let what = format!(
                    "{} did not get its lock within {:?}: a long statement is in the way; see who holds it in the \
                     server's process list, or raise freeze.acquireTimeout",
                    late.join(", "),
                    run.plan.acquire_timeout
                );
                give_up(run, Abort::new(Reason::LockNotAcquired, what), now, out);
            }
        }
        Timer::Stack => {
            let State::Cutting { stage } = run.state else { return };
            let patience = run.plan.stack_patience;
            let mut of_stage = run.cuts.iter().filter(|cut| cut.plan.stage == stage);
            // A timer of an earlier stage that fires in this one says nothing about it.
            if of_stage
                .all(|cut| !cut.stack_seen && cut.post_sent.is_some_and(|sent| now.mono >= sent + patience))
            {
                let what = format!(
                    "the snapshot controller and the driver's sidecar did not react within {:?}: check that both run",
                    run.plan.stack_patience
                );
                give_up(run, Abort::new(Reason::SnapshotStackSilent, what), now, out);
            }
        }
        Timer::Stage => {
            let State::Staging { stage } = run.state else { return };
            let acquire = run.plan.acquire_timeout;
            let late: Vec<String> = run
                .holds
                .iter()
                .filter(|hold| {
                    hold.phase == HoldPhase::Staging { stage }
                        && hold.stages.last().is_some_and(|held| now.mono >= held.sent + acquire)
                })
                .map(Hold::place)
                .collect();
            if !late.is_empty() {
                let what = format!("{} did not answer stage {stage} within {acquire:?}", late.join(", "));
                give_up(run, Abort::new(Reason::StageFailed, what), now, out);
            }
        }
        Timer::Cut => cut_deadline(run, now, out),
        Timer::Beat(id) => beat(run, id, now, out),
        Timer::Thaw => {
            let late: Vec<HoldId> = run
                .holds
                .iter()
                .enumerate()
                .filter(|(_, hold)| hold.alive() && hold.thaw_by.is_some_and(|by| now.mono >= by))
                .map(|(index, _)| HoldId(index))
                .collect();
            if matches!(run.state, State::Releasing | State::Unwinding { .. }) {
                for id in late {
                    let why = Abort::new(Reason::HoldLost, "it did not answer the thaw in time".to_owned());
                    lose(run, id, why, now, out);
                }
            }
        }
        Timer::Stall => look_again(run, now, out),
    }
}

fn cut_deadline(run: &mut Run, now: Now, out: &mut Vec<Effect>) {
    if !matches!(run.state, State::Acquiring | State::Cutting { .. } | State::Staging { .. }) {
        return;
    }
    let late: Vec<&str> = run
        .cuts
        .iter()
        .filter(|cut| cut.open())
        .flat_map(|cut| &cut.plan.members)
        .filter_map(|member| run.members.get(member.0))
        .map(|member| member.claim_name.as_str())
        .collect();
    let what = format!(
        "the cut of {} was not seen within {:?} of the freeze: the snapshot path is too slow or throttled, or a \
         driver that is not in the storage table is waited for until it is ready",
        late.join(", "),
        run.plan.cut_budget()
    );
    give_up(run, Abort::new(Reason::CutTimeout, what), now, out);
}

/// What a text that may wait for a lock is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// Longest time it may wait.
    pub(super) acquire: Duration,
    /// Longest lease it may set.
    pub(super) lease: Duration,
}

/// What FREEZE or the text of a stage may ask for, written now and to be answered until `by`.
///
/// The server counts its lease from the end of the statement, so that a lock which is granted at the very end of the wait
/// still ends within the promise: `acquire + lease` is at most what is left of it (docs/design/freeze.md §3). Neither is
/// less than a second: no server counts in less.
pub(super) fn asked(run: &Run, now: Mono, by: Mono) -> Asked {
    const LEAST: Duration = Duration::from_secs(1);
    let acquire = by.since(now).min(run.plan.acquire_timeout).max(LEAST);
    let lease = lease_left(run, now).saturating_sub(acquire).max(LEAST);
    Asked { acquire, lease }
}

pub(super) fn lease_left(run: &Run, now: Mono) -> Duration {
    let Some(t0) = run.t0 else { return MAX_LEASE };
    (t0.mono + run.plan.max_hold + LEASE_PAST_PROMISE).since(now)
}

fn beat(run: &mut Run, id: HoldId, now: Now, out: &mut Vec<Effect>) {
    let last_beat = run.t0.map(|t0| t0.mono + run.plan.cut_budget() + BEATS_PAST_CUT);
    let left = lease_left(run, now.mono);
    let Some(hold) = run.holds.get_mut(id.0) else { return };
    match hold.phase {
        HoldPhase::Ready | HoldPhase::Frozen => {}
        HoldPhase::Planned
        | HoldPhase::Opening
        | HoldPhase::Freezing
        | HoldPhase::Staging { .. }
        | HoldPhase::Closing
        | HoldPhase::Thawing
        | HoldPhase::Thawed
        | HoldPhase::Gone { .. } => return,
    }
    // A timer of an earlier phase: the one armed since then follows.
    if hold.beat_due.is_some_and(|due| now.mono < due) {
        return;
    }
    if let Some((_, sent)) = hold.outstanding {
        let lost_at = sent + hold.patience();
        if now.mono >= lost_at {
            let what = format!("{}: it did not answer a beat for {:?}", hold.place(), hold.patience());
            lose(run, id, Abort::new(Reason::HoldLost, what), now, out);
        } else {
            let at = lost_at.min(now.mono + BEAT_EVERY);
            hold.beat_due = Some(at);
            out.push(Effect::Schedule { timer: Timer::Beat(id), at });
        }
        return;
    }
    if last_beat.is_some_and(|last| now.mono > last) {
        return;
    }
    let index = hold.next_beat;
    hold.next_beat += 1;
    hold.outstanding = Some((index, now.mono));
    if hold.phase == HoldPhase::Frozen {
        hold.beats_while_frozen += 1;
    }
    let lease = hold.plan.lease.min(left);
    out.push(Effect::SendBeat { hold: id, index, lease });
    arm_beat(run, id, now.mono, out);
}
