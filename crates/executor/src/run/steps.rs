//! The way forward: one function per event, up to the release. A `match` on the state has no catch-all.
//! How an attempt ends otherwise is in `unwind`, what time does in `timers`.

use stillpoint_api::clock::Mono;
use stillpoint_api::evidence::HoldAnswer;

use super::hold::{BEAT_EVERY, HoldPhase};
use super::timers::{fired, lease_left};
use super::unwind::{
    close_all, give_up, hold_ended, lose, member_failed, pod_changed, record, record_when_thawed, refused,
    snapshot_failed, thaw_deadline,
};
use super::{
    Abort, CutSeen, Effect, End, Entry, Event, HoldId, MemberId, Now, OPEN_WITHIN, Reason, Run, State, Timer,
    Word,
};

pub(super) fn take(run: &mut Run, event: Event, now: Now, out: &mut Vec<Effect>) {
    match event {
        Event::Start => start(run, now, out),
        Event::Prepared { result, .. } => prepared(run, result, now, out),
        Event::HoldSaid { hold, word } => said(run, hold, word, now, out),
        Event::ClosingWritten { hold } => {
            if let Some(hold) = run.holds.get_mut(hold.0) {
                hold.closing_written.get_or_insert(now.mono);
            }
        }
        Event::HoldEnded { hold, why } => hold_ended(run, hold, why, now, out),
        Event::Posted { member, uid } => posted(run, member, uid, now, out),
        Event::PostFailed { member, why } => member_failed(run, member, why, now, out),
        Event::ContentSeen { member } => {
            if let Some(member) = run.members.get_mut(member.0) {
                member.stack_seen = true;
            }
        }
        Event::CutSeen { member, cut } => cut_seen(run, member, cut, now, out),
        Event::SnapshotFailed { member, message } => {
            let why = snapshot_failed(run, member, &message);
            member_failed(run, member, why, now, out);
        }
        Event::PodChanged { what } => pod_changed(run, &what, now, out),
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
    let left = run.plan.prepares.len();
    run.state = State::Preparing { left };
    out.extend(run.plan.prepares.iter().copied().map(Effect::RunPrepare));
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
        Word::Evidence { key, value } => hold.keep_fact(key, value),
        Word::Ready(answer) => ready(run, id, answer, now, out),
        Word::Frozen(answer) => frozen(run, id, answer, now, out),
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
            crate::verdict::path_gap(&told, &hold.facts, hold.plan.mount_paths.iter()).map(|why| {
                let what = format!("{}: {why}; add the claim to the pod, or stop excluding it", hold.place());
                Abort::new(Reason::PathNotCovered, what)
            })
        });
    hold.ready = Some((now.mono, answer));
    hold.phase = HoldPhase::Ready;
    if let Some(why) = gap {
        give_up(run, why, now, out);
        return;
    }
    out.push(Effect::Schedule { timer: Timer::Beat(id), at: now.mono + BEAT_EVERY });
    journal_when_ready(run, out);
}

/// t0: the journal covers the cut, every session is READY. FREEZE goes to every hold.
fn freeze(run: &mut Run, now: Now, out: &mut Vec<Effect>) {
    run.t0 = Some(now);
    run.state = State::Acquiring;
    let acquire = run.plan.acquire_timeout;
    for (index, hold) in run.holds.iter_mut().enumerate() {
        hold.phase = HoldPhase::Freezing;
        hold.freeze_sent = Some(now.mono);
        // A beat that is still unanswered is answered before FROZEN: the session executes in order.
        let id = HoldId(index);
        out.push(Effect::SendFreeze { hold: id, lease: hold.plan.lease, acquire });
        out.push(Effect::CloseAt { hold: id, at: now.mono + run.plan.max_hold });
    }
    out.push(Effect::Schedule { timer: Timer::Acquire, at: now.mono + acquire });
    out.push(Effect::Schedule { timer: Timer::Cut, at: now.mono + run.plan.cut_budget() });
    cut_when_frozen(run, now, out);
}

fn frozen(run: &mut Run, id: HoldId, answer: HoldAnswer, now: Now, out: &mut Vec<Effect>) {
    let Some(hold) = run.holds.get_mut(id.0) else { return };
    if hold.phase != HoldPhase::Freezing {
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
    hold.frozen = Some((now.mono, answer));
    if let Some(why) = gap {
        give_up(run, why, now, out);
        return;
    }
    if run.state == State::Acquiring {
        out.push(Effect::Schedule { timer: Timer::Beat(id), at: now.mono + BEAT_EVERY });
        cut_when_frozen(run, now, out);
    }
}

/// t1: all snapshots are asked for at once.
fn cut_when_frozen(run: &mut Run, now: Now, out: &mut Vec<Effect>) {
    if run.state != State::Acquiring || !run.holds.iter().all(|hold| hold.phase == HoldPhase::Frozen) {
        return;
    }
    run.state = State::Cutting;
    run.acquired = Some(now.mono);
    for (index, member) in run.members.iter_mut().enumerate() {
        member.post_sent = Some(now.mono);
        out.push(Effect::PostSnapshot(MemberId(index)));
    }
    out.push(Effect::Schedule { timer: Timer::Stack, at: now.mono + run.plan.stack_patience });
    release_when_cut(run, now, out);
}

fn posted(run: &mut Run, id: MemberId, uid: String, now: Now, out: &mut Vec<Effect>) {
    let Some(member) = run.members.get_mut(id.0) else { return };
    member.evidence.volume_snapshot_uid = Some(uid.clone());
    member.posted = Some((now.mono, uid));
    if let Some((at, cut)) = member.early.take() {
        // The signal's time is when it was received, even though our own 201 came later.
        accept_cut(run, id, cut, at, now, out);
    }
}

fn cut_seen(run: &mut Run, id: MemberId, cut: CutSeen, now: Now, out: &mut Vec<Effect>) {
    let Some(member) = run.members.get_mut(id.0) else { return };
    member.stack_seen = true;
    if member.posted.is_none() {
        member.early = Some((now.mono, cut));
        return;
    }
    accept_cut(run, id, cut, now.mono, now, out);
}

fn accept_cut(run: &mut Run, id: MemberId, cut: CutSeen, at: Mono, now: Now, out: &mut Vec<Effect>) {
    let Some(member) = run.members.get_mut(id.0) else { return };
    let ours = member.posted.as_ref().is_some_and(|(_, uid)| *uid == cut.snapshot_uid);
    // A handle counts only on the content of the very object that our own 201 named.
    if !ours || member.cut.is_some() || member.failed.is_some() {
        return;
    }
    member.evidence.content = Some(cut.content.clone());
    member.evidence.handle = Some(cut.handle.clone());
    member.evidence.creation_time = cut.creation_time;
    member.evidence.content_volume_handle.clone_from(&cut.volume_handle);
    member.cut = Some((at, cut));
    release_when_cut(run, now, out);
}

/// t2: when the last cut signal has been processed, one write per hold carries the closing beat and the thaw.
pub(super) fn release_when_cut(run: &mut Run, now: Now, out: &mut Vec<Effect>) {
    if run.state != State::Cutting
        || !run.members.iter().all(|member| member.cut.is_some() || member.failed.is_some())
    {
        return;
    }
    run.state = State::Releasing;
    let lease = lease_left(run, now.mono);
    for (index, hold) in run.holds.iter_mut().enumerate() {
        if hold.phase != HoldPhase::Frozen {
            continue;
        }
        let beat = hold.next_beat;
        hold.next_beat += 1;
        hold.phase = HoldPhase::Closing;
        hold.closing = Some((beat, now.mono));
        hold.thaw_sent = Some(now.mono);
        let lease = lease.min(hold.plan.lease);
        out.push(Effect::SendClosing { hold: HoldId(index), index: beat, lease });
    }
    out.push(Effect::Schedule { timer: Timer::Thaw, at: thaw_deadline(run, now.mono) });
    record_when_thawed(run, out);
}

fn held(run: &mut Run, id: HoldId, index: u32, answer: HoldAnswer, now: Now, out: &mut Vec<Effect>) {
    let Some(hold) = run.holds.get_mut(id.0) else { return };
    if let Some((closing, _)) = hold.closing
        && closing == index
    {
        hold.held.get_or_insert((now.mono, answer));
        return;
    }
    if hold.outstanding.is_none_or(|(sent, _)| sent != index) {
        return;
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
            record_when_thawed(run, out);
        }
        HoldPhase::Planned
        | HoldPhase::Opening
        | HoldPhase::Ready
        | HoldPhase::Freezing
        | HoldPhase::Frozen
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
        | State::Cutting
        | State::Releasing
        | State::Unwinding { .. }
        | State::Ended => {}
    }
}
