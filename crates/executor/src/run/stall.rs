//! A failed acquisition is not over: a lock that timed out behind a long statement leaves writers waiting until that
//! statement ends (docs/design/freeze.md §3, measured on MariaDB). Until the template's stall probe answers "nobody", the
//! attempt counts as frozen; at the end of the promise it is called left quiesced.

use std::time::Duration;

use super::{Abort, Effect, End, HoldId, Now, Reason, Run, Stall, State, Timer};
use crate::run::unwind::record;

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// One look is always given its time, also when the promise has ended already.
const AT_LEAST: Duration = Duration::from_secs(2);

/// Every stream is closed: looks whether anybody is stuck where a lock was not acquired, or records.
pub(super) fn unquiesce(run: &mut Run, why: Abort, now: Now, out: &mut Vec<Effect>) {
    let Some(t0) = run.t0.filter(|_| run.holds.iter().any(super::hold::Hold::needs_stall_probe)) else {
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
        if hold.needs_stall_probe() && hold.stall != Some(Stall::Clear) && !hold.stall_asked {
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
        hold.stall = Some(result);
    }
    let stuck = run.holds.iter().any(|hold| hold.needs_stall_probe() && hold.stall != Some(Stall::Clear));
    if !stuck {
        record(run, End::Aborted(why), out);
    } else if now.mono >= until {
        left_quiesced(run, &why, out);
    } else {
        out.push(Effect::Schedule { timer: Timer::Stall, at: until.min(now.mono + LOOK_EVERY) });
    }
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
                Some(Stall::Blocked { by }) => format!("blocked by {by}"),
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
    record(run, End::Aborted(Abort::new(Reason::ApplicationLeftQuiesced, what)), out);
}
