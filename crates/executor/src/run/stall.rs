//! A failed acquisition is not over: a lock that timed out behind a long statement leaves writers waiting until that
//! statement ends (docs/design/freeze.md §3, measured on MariaDB). Until the template's stall probe answers "nobody", the
//! attempt counts as frozen; at the end of the promise it is called left quiesced.
//!
//! Under `KillBlocker` the statement that the probe names is ended: never before this hold's own lock was not acquired, one
//! per answer of the probe, each once. What the probe says afterwards decides as ever.

use std::time::Duration;

use super::hold::{Ended, Hold};
use super::{Abort, Effect, End, HoldId, Now, Reason, Run, Stall, State, Timer};
use crate::run::unwind::record;

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// One look is always given its time, also when the promise has ended already.
const AT_LEAST: Duration = Duration::from_secs(2);

/// Every stream is closed: looks whether anybody is stuck where a lock was not acquired, or records.
pub(super) fn unquiesce(run: &mut Run, why: Abort, now: Now, out: &mut Vec<Effect>) {
    let Some(t0) = run.t0.filter(|_| run.holds.iter().any(Hold::needs_stall_probe)) else {
        record(run, End::Aborted(why), out);
        return;
    };
    let until = (t0.mono + run.plan.max_hold).max(now.mono + AT_LEAST);
    run.state = State::Unquiescing { why, until };
    out.push(Effect::Schedule { timer: Timer::Stall, at: until });
    look(run, out);
}

fn look(run: &mut Run, out: &mut Vec<Effect>) {
    for (index, hold) in run.holds.iter_mut().enumerate() {
        let open = hold.needs_stall_probe() && hold.stall != Some(Stall::Clear);
        if open && !hold.stall_asked && !hold.ending() {
            hold.stall_asked = true;
            out.push(Effect::ProbeStall(HoldId(index)));
        }
    }
}

/// A probe answered.
pub(super) fn probed(run: &mut Run, id: HoldId, result: Stall, now: Now, out: &mut Vec<Effect>) {
    let State::Unquiescing { why, until } = &run.state else { return };
    let (why, until) = (why.clone(), *until);
    if let Some(hold) = run.holds.get_mut(id.0) {
        hold.stall_asked = false;
        if let Some((blocker, by)) = hold.blocker_to_end(&result).filter(|_| now.mono < until) {
            hold.ended.push(Ended { id: blocker.clone(), by, sent: now.mono, answered: None });
            out.push(Effect::EndBlocker { hold: id, id: blocker });
        }
        if let Stall::Blocked { by, .. } = &result {
            hold.first_stall.get_or_insert_with(|| by.clone());
        }
        hold.stall = Some(result);
    }
    let stuck = run.holds.iter().any(|hold| hold.needs_stall_probe() && hold.stall != Some(Stall::Clear));
    if !stuck {
        let why = with_ended(run, with_first_stall(run, why));
        record(run, End::Aborted(why), out);
    } else if now.mono >= until {
        left_quiesced(run, &why, out);
    } else {
        out.push(Effect::Schedule { timer: Timer::Stall, at: until.min(now.mono + LOOK_EVERY) });
    }
}

/// The command that ends a statement has ended: the next look shows what that changed.
pub(super) fn blocker_ended(
    run: &mut Run,
    id: HoldId,
    result: Result<(), String>,
    now: Now,
    out: &mut Vec<Effect>,
) {
    let Some(hold) = run.holds.get_mut(id.0) else { return };
    if let Some(ended) = hold.ended.iter_mut().find(|ended| ended.answered.is_none()) {
        ended.answered = Some((now.mono, result));
    }
    if let State::Unquiescing { until, .. } = &run.state
        && now.mono < *until
    {
        look(run, out);
    }
}

/// Why the lock was not acquired, and who was in its way: when the run ends nobody is any more, and a probe that is asked by hand then
/// prints nothing.
fn with_first_stall(run: &Run, why: Abort) -> Abort {
    if why.reason != Reason::LockNotAcquired {
        return why;
    }
    let refused = run.holds.iter().filter(|hold| hold.acquisition_failed);
    let all: Vec<String> = refused
        .filter_map(|hold| {
            Some(format!("the stall probe of {} said: {}", hold.place(), hold.first_stall.as_ref()?))
        })
        .collect();
    if all.is_empty() { why } else { Abort::new(why.reason, format!("{}; {}", why.message, all.join(", "))) }
}

/// Why the attempt was given up, and which statements were ended then: the journal keeps it when the evidence of the
/// attempt makes room for that of the next one.
fn with_ended(run: &Run, why: Abort) -> Abort {
    let all: Vec<String> = run.holds.iter().flat_map(ended_words).collect();
    if all.is_empty() {
        return why;
    }
    Abort::new(why.reason, format!("{}; under freeze.onBlocked KillBlocker {}", why.message, all.join(", ")))
}

fn ended_words(hold: &Hold) -> Vec<String> {
    let place = hold.place();
    let words = hold.ended.iter().map(|ended| {
        let id = ended.id.as_str();
        match &ended.answered {
            Some((_, Ok(()))) => format!("statement {id} on {place} was ended"),
            Some((_, Err(why))) => format!("statement {id} on {place} could not be ended ({why})"),
            None => format!("statement {id} on {place} was being ended"),
        }
    });
    words.collect()
}

/// It is time to look again, or the promise has ended.
pub(super) fn look_again(run: &mut Run, now: Now, out: &mut Vec<Effect>) {
    let State::Unquiescing { why, until } = &run.state else { return };
    let (why, until) = (why.clone(), *until);
    if now.mono >= until {
        left_quiesced(run, &why, out);
    } else {
        look(run, out);
    }
}

fn left_quiesced(run: &mut Run, why: &Abort, out: &mut Vec<Effect>) {
    let stuck: Vec<String> = run
        .holds
        .iter()
        .filter(|hold| hold.needs_stall_probe())
        .filter_map(|hold| {
            let said = match hold.stall.as_ref() {
                Some(Stall::Clear) => return None,
                Some(Stall::Blocked { by, .. }) => {
                    match hold.first_stall.as_ref().filter(|first| *first != by) {
                        Some(first) => format!("blocked by {by}; at first: {first}"),
                        None => format!("blocked by {by}"),
                    }
                }
                Some(Stall::Unknown { why }) => format!("not known: {why}"),
                None => "the stall probe gave no answer".to_owned(),
            };
            Some(format!("{} ({said})", hold.place()))
        })
        .collect();
    let what = format!(
        "writers are still stuck behind the lock that was given up: {}; end that statement on the server; the attempt \
         failed because: {why}",
        stuck.join(", ")
    );
    let why = with_ended(run, Abort::new(Reason::ApplicationLeftQuiesced, what));
    record(run, End::Aborted(why), out);
}
