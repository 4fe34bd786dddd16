//! The way forward: one function per event, up to the last cut. A `match` on the state has no catch-all.
//! The release is in `release`, how an attempt ends otherwise in `unwind`, what time does in `timers`.

use std::time::Duration;

use stillpoint_api::clock::Mono;
use stillpoint_api::evidence::HoldAnswer;
use stillpoint_api::template::recovery;

use super::hold::{BARRIER, BEAT_EVERY, FOREIGN_FREEZE, FREEZE_FAILED, HeldStage, HoldPhase, LATE};
use super::release::{release, release_next};
use super::stall::{blocker_ended, probed};
use super::timers::{asked, fired};
use super::unwind::{
    close_all, cut_failed, give_up, hold_ended, lose, pod_changed, record, refused, snapshot_failed,
};
use super::{
    Abort, CutId, CutSeen, Effect, End, Entry, Event, HoldId, MemberId, Now, OPEN_WITHIN, Reason, Run, State,
    Timer, Word,
};

/// What a hold may last beyond the promise in the pod: the controller's own end comes first (docs/design/freeze.md §3).
const PAST_PROMISE: Duration = Duration::from_secs(4);

pub(super) fn take(run: &mut Run, event: Event, now: Now, out: &mut Vec<Effect>) {
    match event {
        Event::Start => start(run, now, out),
        Event::Prepared { result, .. } | Event::CanaryChecked { result, .. } => {
            prepared(run, result, now, out);
        }
        Event::HoldSaid { hold, word } => said(run, hold, word, now, out),
        Event::ClosingWritten { hold } => {
            if let Some(hold) = run.holds.get_mut(hold.0) {
                hold.closing_written.get_or_insert(now.mono);
            }
        }
        Event::HoldEnded { hold, why } => hold_ended(run, hold, why, now, out),
        Event::Posted { cut, uid } => posted(run, cut, uid, now, out),
        Event::PostFailed { cut, why } => cut_failed(run, cut, why, now, out),
        Event::ContentSeen { cut } => {
            if let Some(cut) = run.cuts.get_mut(cut.0) {
                cut.stack_seen = true;
            }
        }
        Event::CutSeen { cut, seen } => cut_seen(run, cut, seen, now, out),
        Event::SnapshotFailed { cut, message } => {
            let why = snapshot_failed(run, cut, &message);
            cut_failed(run, cut, why, now, out);
        }
        Event::PodChanged { what } => pod_changed(run, &what, now, out),
        Event::ClaimRenewed { fence } => run.fence = run.fence.max(fence),
        Event::ClaimLost { why } => give_up(run, Abort::new(Reason::ClaimLost, why), now, out),
        Event::StallProbed { hold, result } => probed(run, hold, result, now, out),
        Event::BlockerEnded { hold, result } => blocker_ended(run, hold, result, now, out),
        Event::Written => written(run, now, out),
        Event::WriteRefused { why } => refused(run, why, out),
        Event::Stop { why } => give_up(run, why, now, out),
        Event::Timer(timer) => fired(run, timer, now, out),
    }
}

fn start(run: &mut Run, now: Now, out: &mut Vec<Effect>) {
    if run.state != State::New {
        return;
    }
    let before = out.len();
    run.prepare_began = Some(now.wall);
    out.extend(run.plan.prepares.iter().copied().map(Effect::RunPrepare));
    let tried = run.plan.holds.iter().enumerate().filter(|(_, hold)| hold.canary);
    out.extend(tried.map(|(index, _)| Effect::CheckCanary(HoldId(index))));
    let left = out.len() - before;
    run.state = State::Preparing { left };
    if left == 0 {
        open(run, now, out);
    }
}

fn prepared(run: &mut Run, result: Result<(), Abort>, now: Now, out: &mut Vec<Effect>) {
    let State::Preparing { left } = &mut run.state else { return };
    match result {
        Err(why) => give_up(run, why, now, out),
        Ok(()) => {
            *left = left.saturating_sub(1);
            if *left == 0 {
                open(run, now, out);
            }
        }
    }
}

fn open(run: &mut Run, now: Now, out: &mut Vec<Effect>) {
    run.state = State::Opening;
    for (index, hold) in run.holds.iter_mut().enumerate() {
        hold.phase = HoldPhase::Opening;
        out.push(Effect::OpenHold { hold: HoldId(index), lease: hold.plan.lease });
    }
    out.push(Effect::Schedule { timer: Timer::Open, at: now.mono + OPEN_WITHIN });
    journal_when_ready(run, out);
}

/// Everything that can fail has been done: the last thing before t0 is the journal entry that covers the cut.
fn journal_when_ready(run: &mut Run, out: &mut Vec<Effect>) {
    if run.state == State::Opening && run.holds.iter().all(|hold| hold.phase == HoldPhase::Ready) {
        run.state = State::Journalling { stop: None };
        out.push(Effect::WriteJournal(Entry::Freezing));
    }
}

fn said(run: &mut Run, id: HoldId, word: Word, now: Now, out: &mut Vec<Effect>) {
    let Some(hold) = run.holds.get_mut(id.0) else { return };
    match word {
        Word::Evidence { key, value } if key == BARRIER => hold.keep_barrier(now.mono, &value),
        Word::Evidence { key, value } => {
            let foreign = key == FOREIGN_FREEZE && value != "0" && hold.frozen.is_none();
            let failed = (key == FREEZE_FAILED && hold.phase == HoldPhase::Freezing).then(|| {
                let what = "the freeze command failed with code";
                // POSIX, "Exit Status for Commands": there is no such program, or it cannot be run.
                let (reason, cure) = match value.as_str() {
                    "126" | "127" => (
                        Reason::ClientMissing,
                        ": the container has no such program, or cannot run it; correct freeze.commands.freeze, or choose the container",
                    ),
                    _ => (Reason::LockNotAcquired, ""),
                };
                Abort::new(reason, format!("{}: {what} {value}{cure}; it is thawed", hold.place()))
            });
            hold.acquisition_failed |= failed.is_some();
            hold.keep_fact(key, value);
            if let Some(why) = failed {
                give_up(run, why, now, out);
                return;
            }
            if foreign && hold.alive() {
                hold.foreign = true;
                let why = Abort::new(
                    Reason::ForeignFreeze,
                    format!(
                        "{}: it is frozen already, by somebody else; nothing was run and nothing is thawed: see who froze \
                         it, and thaw it there",
                        hold.place()
                    ),
                );
                lose(run, id, why, now, out);
            }
        }
        Word::Ready(answer) => ready(run, id, answer, now, out),
        Word::Frozen { stage, answer } => frozen(run, id, stage, answer, now, out),
        Word::Held { index, answer } => held(run, id, index, answer, now, out),
        Word::Thawed => thawed(run, id, now, out),
        // The holder tries again by itself until its own bound; its stream's end decides.
        Word::ThawFailed => {}
        Word::Expired => {
            let why = Abort::new(
                Reason::HoldLost,
                format!("{}: the hold let go by its own deadline before it was released", hold.place()),
            );
            lose(run, id, why, now, out);
        }
    }
}

fn ready(run: &mut Run, id: HoldId, answer: HoldAnswer, now: Now, out: &mut Vec<Effect>) {
    let Some(hold) = run.holds.get_mut(id.0) else { return };
    if hold.phase != HoldPhase::Opening {
        return;
    }
    let gap = hold
        .lease_gap(&answer)
        .map(|why| Abort::new(Reason::LeaseNotSet, why))
        .or_else(|| {
            // Commands run in the container itself; a session's server must say that it is this container's.
            hold.plan.lease_unit?;
            crate::verdict::local_gap(hold.plan.local.as_ref(), &hold.plan.pod_name, &answer).map(|why| {
                let what = format!(
                    "{}: {why}; the hook must reach the server by its unix socket or loopback, a Service address or \
                     a proxy hides reconnects",
                    hold.place()
                );
                Abort::new(Reason::HoldNotLocal, what)
            })
        })
        // What the opening text already told is checked before anything is frozen; the rest is the verdict's.
        .or_else(|| {
            let told: Vec<String> =
                hold.plan.data_paths.iter().filter(|name| hold.facts.contains_key(*name)).cloned().collect();
            crate::verdict::path_gap(&told, &hold.facts, &hold.plan.foreign_mounts, hold.plan.mount_paths.iter()).map(|why| {
                let what = format!("{}: {why}; add the claim to the pod, or stop excluding it", hold.place());
                Abort::new(Reason::PathNotCovered, what)
            })
        });
    // The journal entry that comes next is the last chance to keep it.
    let gap = gap.or_else(|| {
        recovery::gap(&hold.plan.recovery_needs, &hold.facts).map(|why| {
            let what = format!(
                "{}: {why}; nothing was frozen: correct the open text of the template (recover.needs), or the account's rights \
                 to read it",
                hold.place()
            );
            Abort::new(Reason::HoldNotReady, what)
        })
    });
    hold.ready = Some((now.mono, answer));
    hold.phase = HoldPhase::Ready;
    if let Some(why) = gap {
        give_up(run, why, now, out);
        return;
    }
    arm_beat(run, id, now.mono, out);
    journal_when_ready(run, out);
}

/// The next beat of a hold is due one interval from now; timers of earlier phases are forgotten.
pub(super) fn arm_beat(run: &mut Run, id: HoldId, now: Mono, out: &mut Vec<Effect>) {
    if let Some(hold) = run.holds.get_mut(id.0) {
        let at = now + BEAT_EVERY;
        hold.beat_due = Some(at);
        out.push(Effect::Schedule { timer: Timer::Beat(id), at });
    }
}

/// t0: the journal covers the cut, every session is READY. FREEZE goes to the holds of the lowest order.
fn freeze(run: &mut Run, now: Now, out: &mut Vec<Effect>) {
    run.t0 = Some(now);
    run.state = State::Acquiring;
    for index in 0..run.holds.len() {
        let at = now.mono + run.plan.max_hold;
        out.push(Effect::CloseAt { hold: HoldId(index), at });
    }
    out.push(Effect::Schedule { timer: Timer::Acquire, at: now.mono + run.plan.acquire_timeout });
    out.push(Effect::Schedule { timer: Timer::Cut, at: now.mono + run.plan.cut_budget() });
    freeze_next(run, now, out);
}

/// Freezes the next order, or begins to cut when every hold is FROZEN.
fn freeze_next(run: &mut Run, now: Now, out: &mut Vec<Effect>) {
    let Some(t0) = run.t0.map(|t0| t0.mono) else { return };
    if run.state != State::Acquiring || run.holds.iter().any(|hold| hold.phase == HoldPhase::Freezing) {
        return;
    }
    let waiting = run.holds.iter().filter(|hold| hold.phase == HoldPhase::Ready);
    let Some(order) = waiting.map(|hold| hold.plan.order).min() else {
        run.acquired = Some(now.mono);
        cut_stage(run, 0, now, out);
        return;
    };
    if behind_fence(run, now, out) {
        return;
    }
    let acquire_by = t0 + run.plan.acquire_timeout;
    let not_after = run.fence.min(acquire_by);
    let asked = asked(run, now.mono, acquire_by);
    let within = (t0 + run.plan.max_hold + PAST_PROMISE).since(now.mono);
    for (index, hold) in run.holds.iter_mut().enumerate() {
        if hold.phase != HoldPhase::Ready || hold.plan.order != order {
            continue;
        }
        hold.phase = HoldPhase::Freezing;
        hold.freeze_sent = Some(now.mono);
        // A beat that is still unanswered is answered before FROZEN: the session executes in order.
        let id = HoldId(index);
        let (lease, acquire) = (hold.plan.lease.min(asked.lease), asked.acquire);
        out.push(Effect::SendFreeze { hold: id, lease, acquire, within, not_after });
    }
}

/// Whether the claim may have passed to somebody else; then the attempt is given up.
fn behind_fence(run: &mut Run, now: Now, out: &mut Vec<Effect>) -> bool {
    if now.mono <= run.fence {
        return false;
    }
    let why = "the claim on the run was not renewed in time, and somebody else may own it by now";
    give_up(run, Abort::new(Reason::ClaimLost, why), now, out);
    true
}

fn frozen(run: &mut Run, id: HoldId, stage: u32, answer: HoldAnswer, now: Now, out: &mut Vec<Effect>) {
    let Some(hold) = run.holds.get_mut(id.0) else { return };
    let expected = match hold.phase {
        HoldPhase::Freezing => 0,
        HoldPhase::Staging { stage } => stage,
        HoldPhase::Planned
        | HoldPhase::Opening
        | HoldPhase::Ready
        | HoldPhase::Frozen
        | HoldPhase::Closing
        | HoldPhase::Thawing
        | HoldPhase::Thawed
        | HoldPhase::Gone { .. } => return,
    };
    if stage != expected {
        return;
    }
    hold.phase = HoldPhase::Frozen;
    hold.outstanding = None;
    let gap = hold.lease_gap(&answer).map(|why| Abort::new(Reason::LeaseNotSet, why)).or_else(|| {
        let changed = hold.ready.as_ref().is_none_or(|(_, ready)| ready.identity != answer.identity);
        changed.then(|| {
            Abort::new(
                Reason::HoldLost,
                format!("{}: another server answered FROZEN than READY", hold.place()),
            )
        })
    });
    if stage == 0 {
        hold.frozen = Some((now.mono, answer));
    } else if let Some(held) = hold.stages.iter_mut().find(|held| held.number == stage) {
        held.frozen = Some((now.mono, answer));
    }
    if let Some(why) = gap {
        give_up(run, why, now, out);
        return;
    }
    match run.state {
        State::Acquiring => {
            arm_beat(run, id, now.mono, out);
            freeze_next(run, now, out);
        }
        State::Staging { stage } => {
            arm_beat(run, id, now.mono, out);
            cut_when_staged(run, stage, now, out);
        }
        State::New
        | State::Preparing { .. }
        | State::Opening
        | State::Journalling { .. }
        | State::Cutting { .. }
        | State::Releasing
        | State::Unwinding { .. }
        | State::Unquiescing { .. }
        | State::Recording { .. }
        | State::Ended => {}
    }
}

fn cut_when_staged(run: &mut Run, stage: u32, now: Now, out: &mut Vec<Effect>) {
    if !run.holds.iter().any(|hold| matches!(hold.phase, HoldPhase::Staging { .. })) {
        cut_stage(run, stage, now, out);
    }
}

/// All snapshots of a stage are asked for at once.
fn cut_stage(run: &mut Run, stage: u32, now: Now, out: &mut Vec<Effect>) {
    let Some(t0) = run.t0.map(|t0| t0.mono) else { return };
    if run.cuts.iter().any(|cut| cut.plan.stage == stage) && behind_fence(run, now, out) {
        return;
    }
    run.state = State::Cutting { stage };
    let not_after = run.fence.min(t0 + run.plan.cut_budget());
    let mut posted = false;
    for (index, cut) in run.cuts.iter_mut().enumerate() {
        if cut.plan.stage == stage {
            posted = true;
            cut.post_sent = Some(now.mono);
            out.push(Effect::PostSnapshot { cut: CutId(index), not_after });
        }
    }
    if posted {
        out.push(Effect::Schedule { timer: Timer::Stack, at: now.mono + run.plan.stack_patience });
    }
    go_on_when_cut(run, now, out);
}

fn posted(run: &mut Run, id: CutId, uid: String, now: Now, out: &mut Vec<Effect>) {
    let Some(cut) = run.cuts.get_mut(id.0) else { return };
    for MemberId(index) in &cut.plan.members {
        let Some(member) = run.members.get_mut(*index) else { continue };
        match &mut member.group {
            Some(group) => group.uid = Some(uid.clone()),
            None => member.volume_snapshot_uid = Some(uid.clone()),
        }
    }
    cut.posted = Some((now.mono, uid));
    if let Some((at, seen)) = cut.early.take() {
        // The signal's time is when it was received, even though our own 201 came later.
        accept_cut(run, id, seen, at, now, out);
    }
}

fn cut_seen(run: &mut Run, id: CutId, seen: CutSeen, now: Now, out: &mut Vec<Effect>) {
    let Some(cut) = run.cuts.get_mut(id.0) else { return };
    cut.stack_seen = true;
    if cut.posted.is_none() {
        cut.early = Some((now.mono, seen));
        return;
    }
    accept_cut(run, id, seen, now.mono, now, out);
}

fn accept_cut(run: &mut Run, id: CutId, seen: CutSeen, at: Mono, now: Now, out: &mut Vec<Effect>) {
    let Some(cut) = run.cuts.get_mut(id.0) else { return };
    let ours = cut.posted.as_ref().is_some_and(|(_, uid)| *uid == seen.snapshot_uid);
    // A handle counts only on the content of the very object that our own 201 named.
    if !ours || !cut.open() {
        return;
    }
    for MemberId(index) in &cut.plan.members {
        let Some(member) = run.members.get_mut(*index) else { continue };
        member.creation_time = seen.creation_time;
        match &mut member.group {
            Some(group) => {
                group.content = Some(seen.content.clone());
                group.handle = Some(seen.handle.clone());
                // Its own handle and cut time, so that what is found when it is settled can be compared (rule 6).
                if let Some(part) = seen.parts.iter().find(|part| part.volume_handle == member.volume_handle)
                {
                    member.handle = Some(part.handle.clone());
                    member.creation_time = part.creation_time;
                }
                // Its own volume, if the group has it; a group without it did not cut this member.
                member.content_volume_handle =
                    seen.volume_handles.iter().find(|handle| **handle == member.volume_handle).cloned();
            }
            None => {
                member.content = Some(seen.content.clone());
                member.handle = Some(seen.handle.clone());
                member.content_volume_handle = seen.volume_handles.first().cloned();
            }
        }
    }
    cut.seen = Some((at, seen));
    go_on_when_cut(run, now, out);
}

/// When every cut of the stage was seen: the next stage, or the release.
pub(super) fn go_on_when_cut(run: &mut Run, now: Now, out: &mut Vec<Effect>) {
    let State::Cutting { stage } = run.state else { return };
    if run.cuts.iter().any(|cut| cut.plan.stage == stage && cut.open()) {
        return;
    }
    let next = stage + 1;
    if next >= run.plan.stages() {
        release(run, now, out);
        return;
    }
    run.state = State::Staging { stage: next };
    let cut_by = run.t0.map_or(now.mono, |t0| t0.mono + run.plan.cut_budget());
    let asked = asked(run, now.mono, cut_by);
    for (index, hold) in run.holds.iter_mut().enumerate() {
        if hold.phase == HoldPhase::Frozen && hold.plan.stages > next {
            hold.phase = HoldPhase::Staging { stage: next };
            hold.stages.push(HeldStage { number: next, sent: now.mono, frozen: None });
            let (lease, acquire) = (hold.plan.lease.min(asked.lease), asked.acquire);
            out.push(Effect::SendStage { hold: HoldId(index), stage: next, lease, acquire });
        }
    }
    out.push(Effect::Schedule { timer: Timer::Stage, at: now.mono + run.plan.acquire_timeout });
    cut_when_staged(run, next, now, out);
}

fn held(run: &mut Run, id: HoldId, index: u32, answer: HoldAnswer, now: Now, out: &mut Vec<Effect>) {
    let Some(hold) = run.holds.get_mut(id.0) else { return };
    if let Some((closing, _)) = hold.closing
        && closing == index
    {
        hold.held.get_or_insert((now.mono, answer));
        return;
    }
    let Some((_, sent)) = hold.outstanding.filter(|(sent, _)| *sent == index) else { return };
    if now.mono.since(sent) > LATE {
        hold.late_beats += 1;
    }
    hold.outstanding = None;
    let before = hold.frozen.as_ref().or(hold.ready.as_ref()).map(|(_, answer)| answer);
    let changed =
        before.is_none_or(|before| before.identity != answer.identity || before.role != answer.role);
    if changed {
        let why = Abort::new(
            Reason::HoldLost,
            format!("{}: the server changed its identity or role while it was held", hold.place()),
        );
        lose(run, id, why, now, out);
    }
}

fn thawed(run: &mut Run, id: HoldId, now: Now, out: &mut Vec<Effect>) {
    let Some(hold) = run.holds.get_mut(id.0) else { return };
    match hold.phase {
        // Only an answer to a thaw of ours counts.
        HoldPhase::Closing | HoldPhase::Thawing => {
            hold.thawed = Some(now.mono);
            hold.phase = HoldPhase::Thawed;
            out.push(Effect::CloseHold(id));
            release_next(run, now, out);
        }
        HoldPhase::Planned
        | HoldPhase::Opening
        | HoldPhase::Ready
        | HoldPhase::Freezing
        | HoldPhase::Frozen
        | HoldPhase::Staging { .. }
        | HoldPhase::Thawed
        | HoldPhase::Gone { .. } => {}
    }
}

fn written(run: &mut Run, now: Now, out: &mut Vec<Effect>) {
    match &run.state {
        State::Journalling { stop: None } => freeze(run, now, out),
        State::Journalling { stop: Some(why) } => {
            let end = End::Aborted(why.clone());
            close_all(run, out);
            record(run, end, out);
        }
        State::Recording { end } => {
            out.push(Effect::End(end.clone()));
            run.state = State::Ended;
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
