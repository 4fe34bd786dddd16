//! Carries one attempt out, as the product's `attempt` does: takes what happens to the machine, does what it says, in
//! order and once.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use stillpoint_api::backup::{JournalEntry, JournalKind, Phase};
use stillpoint_api::clock::Mono;
use stillpoint_api::evidence::Offset;

use super::api::{Answer, Request};
use super::exec::{Input, Opening, StreamId};
use super::faults::{Fault, Milestone};
use super::journal::{Journal, JournalFailure};
use super::mutations::Mutation;
use super::replica::MailboxId;
use super::resolve::{self, Resolution};
use super::runtime::{Handle, micros};
use super::saga::Happens;
use super::storage::Asked;
use crate::run::{
    Abort, CutId, Effect, End, Entry, Event, HoldId, Now, Reason, Record, Run, Stall, Timer, Word,
};

/// How long the entry before a freeze may take.
const FREEZING_WITHIN: Duration = Duration::from_secs(5);
/// How long the entry after a freeze is tried.
const RECORD_WITHIN: Duration = Duration::from_secs(600);

struct Attempt<'h> {
    handle: &'h Handle,
    backup: usize,
    resolution: Rc<Resolution>,
    run: Run,
    journal: Rc<RefCell<Journal>>,
    mailbox: MailboxId,
    timers: BinaryHeap<Reverse<(Mono, Timer)>>,
    streams: BTreeMap<HoldId, StreamId>,
    slip: Slip,
}

/// What a machine with a defect did before its time; recorded as it was.
#[derive(Clone, Debug, Default)]
struct Slip {
    posts: bool,
    posted_early: Option<Mono>,
    thaws: bool,
    thawed_early: Option<Mono>,
}

/// Carries out one attempt to its last journal entry.
pub async fn carry_out(
    handle: &Handle,
    backup: usize,
    journal: Rc<RefCell<Journal>>,
    resolution: Rc<Resolution>,
) -> End {
    let (mailbox, slip) = handle.with(|world| {
        let mailbox = world.open_mailbox(handle.replica, backup);
        let slip = Slip {
            posts: world.happens(Fault::SlipPostsEarly, 700),
            thaws: world.happens(Fault::SlipThawsEarly, 700),
            ..Slip::default()
        };
        for (index, cut) in resolution.plan.cuts.iter().enumerate() {
            let signal = resolution.plan.members[cut.members[0].0].storage.signal;
            let name = &resolution.cut_names[index];
            world.subscribe(handle.replica, name, signal, mailbox, CutId(index));
        }
        (mailbox, slip)
    });
    let mut attempt = Attempt {
        handle,
        backup,
        run: Run::new(resolution.plan.clone()),
        resolution,
        journal,
        mailbox,
        timers: BinaryHeap::new(),
        streams: BTreeMap::new(),
        slip,
    };
    let mut next = Some(Event::Start);
    let mut stopped = false;
    let end = 'run: loop {
        let event = match next.take() {
            Some(event) => event,
            None => attempt.next(&mut stopped).await,
        };
        let now = Now { mono: handle.mono(), wall: handle.wall() };
        handle.with(|world| world.note(|| format!("run {backup}: {event:?}")));
        if let Event::HoldSaid { hold, word: Word::Thawed } = &event
            && let Some(id) = attempt.streams.get(hold)
        {
            handle.with(|world| world.streams[*id].thawed_heard = Some(world.now));
        }
        for effect in attempt.run.step(event, now) {
            if let Some(end) = attempt.carry(effect, now) {
                break 'run end;
            }
            if !attempt.still_lives() {
                // Killed at this very effect: nothing after it happens.
                std::future::pending::<()>().await;
            }
        }
    };
    handle.with(|world| {
        world.note(|| format!("run {backup} ends: {end:?}"));
        world.unsubscribe(mailbox);
    });
    end
}

impl Attempt<'_> {
    /// The next event, in the order in which the product looks: sessions, contents, stop, timers.
    async fn next(&mut self, stopped: &mut bool) -> Event {
        let due = self.timers.peek().map(|Reverse((at, _))| *at);
        let (replica, mailbox) = (self.handle.replica, self.mailbox);
        if let Some(at) = due {
            let at = self.handle.with(|world| world.replicas[replica].true_time(at));
            self.handle.wake_at(at);
        }
        let asked = *stopped;
        let event = self
            .handle
            .until(|world| {
                let task = world.current;
                let now = world.replicas[replica].mono(world.now);
                let one = &mut world.mailboxes[mailbox];
                one.task = Some(task);
                if let Some(event) = one.inbox.pop_front().or_else(|| one.contents.pop_front()) {
                    return Some(Some(event));
                }
                if !asked && let Some(why) = one.stop.clone() {
                    return Some(Some(Event::Stop { why }));
                }
                due.is_some_and(|at| at <= now).then_some(None)
            })
            .await;
        if matches!(event, Some(Event::Stop { .. })) {
            *stopped = true;
        }
        event.unwrap_or_else(|| {
            let timer = self.timers.pop().map_or(Timer::Stack, |Reverse((_, timer))| timer);
            Event::Timer(timer)
        })
    }

    fn still_lives(&self) -> bool {
        self.handle.with(|world| {
            let replica = &world.replicas[self.handle.replica];
            replica.incarnation == self.handle.incarnation && replica.life != super::replica::Life::Down
        })
    }

    /// Carries out one effect, or what is injected in its place.
    fn carry(&mut self, effect: Effect, now: Now) -> Option<End> {
        if let Effect::Schedule { timer, at } = effect {
            let machine = matches!(timer, Timer::Cut | Timer::Thaw | Timer::Acquire | Timer::Beat(_));
            if !(machine && self.handle.with(|world| world.mutated(Mutation::NoMachineTimers))) {
                self.timers.push(Reverse((at, timer)));
            }
            return None;
        }
        if let Effect::End(end) = effect {
            return Some(end);
        }
        self.handle.with(|world| world.note(|| format!("run {}: → {effect:?}", self.backup)));
        match self.handle.with(|world| world.injected()) {
            None => self.execute(&effect, now, true),
            Some(Happens::FailsBefore) => self.fail(&effect),
            Some(Happens::FailsAfter) => {
                self.execute(&effect, now, false);
                self.fail(&effect);
            }
            Some(Happens::CrashAfter) => {
                self.execute(&effect, now, true);
                self.handle.with(|world| world.crash(self.handle.replica, 2 * super::S));
            }
            Some(Happens::Twice) => {
                self.execute(&effect, now, true);
                // A status write that is sent twice is refused the second time: it names the version that it replaces.
                if !matches!(effect, Effect::WriteJournal(_)) {
                    self.execute(&effect, now, true);
                }
            }
            Some(Happens::TimesOut) => self.lose(&effect),
            Some(Happens::Unknown) => {
                self.execute(&effect, now, false);
                self.lose(&effect);
            }
        }
        None
    }

    fn execute(&mut self, effect: &Effect, now: Now, answers: bool) {
        match effect {
            Effect::RunPrepare(application) => {
                let event = Event::Prepared { application: *application, result: Ok(()) };
                self.handle.with(|world| world.tell(self.mailbox, event));
            }
            Effect::CheckCanary(hold) => {
                let event = Event::CanaryChecked { hold: *hold, result: Ok(()) };
                self.handle.with(|world| world.tell(self.mailbox, event));
            }
            Effect::OpenHold { hold, lease } => self.open(*hold, *lease),
            Effect::CloseAt { hold, at } => {
                if let Some(stream) = self.streams.get(hold).copied() {
                    self.handle.with(|world| {
                        let at = world.replicas[self.handle.replica].true_time(*at);
                        world.bound_stream(stream, at);
                    });
                }
            }
            Effect::SendFreeze { hold, lease, acquire, within, not_after } => {
                let freeze = Input::Freeze {
                    lease: micros(*lease),
                    acquire: micros(*acquire),
                    within: micros(*within),
                };
                self.send(*hold, vec![freeze], Some(*not_after), false);
                if self.slip.posts && self.slip.posted_early.is_none() {
                    self.slip.posted_early = Some(now.mono);
                    for index in 0..self.resolution.plan.cuts.len() {
                        if self.resolution.plan.cuts[index].stage == 0 {
                            self.post(CutId(index), *not_after, true);
                        }
                    }
                }
            }
            Effect::SendStage { hold, stage, lease, .. } => {
                let text = Input::Stage { stage: *stage, lease: micros(*lease) };
                self.send(*hold, vec![text], None, false);
            }
            Effect::SendBeat { hold, index, lease } => {
                let beat = Input::Beat { index: *index, lease: micros(*lease) };
                self.send(*hold, vec![beat], None, false);
            }
            Effect::SendClosing { hold, index, lease } => {
                let beat = Input::Beat { index: *index, lease: micros(*lease) };
                self.send(*hold, vec![beat, Input::Thaw], None, answers);
            }
            Effect::SendThaw(hold) => self.send(*hold, vec![Input::Thaw], None, false),
            Effect::CloseHold(hold) => {
                if let Some(stream) = self.streams.get(hold).copied() {
                    self.handle.with(|world| world.close_soon(stream));
                }
            }
            Effect::PostSnapshot { cut, not_after } => {
                if self.slip.posted_early.is_none() || self.resolution.plan.cuts[cut.0].stage > 0 {
                    self.post(*cut, *not_after, answers);
                }
                if self.slip.thaws && self.slip.thawed_early.is_none() {
                    self.slip.thawed_early = Some(now.mono);
                    for hold in self.streams.keys().copied().collect::<Vec<_>>() {
                        self.send(hold, vec![Input::Thaw], None, false);
                    }
                }
            }
            Effect::ProbeStall(hold) => self.probe(*hold),
            Effect::WriteJournal(entry) => self.write(entry.clone(), answers),
            // No scenario asks for it.
            Effect::EndBlocker { .. } | Effect::Schedule { .. } | Effect::End(_) => {}
        }
    }

    /// The effect did not happen, and the machine is told so.
    fn fail(&mut self, effect: &Effect) {
        let why = || Abort::new(Reason::HoldLost, "injected: it failed");
        let event = match effect {
            Effect::RunPrepare(application) => {
                Event::Prepared { application: *application, result: Err(why()) }
            }
            Effect::CheckCanary(hold) => Event::CanaryChecked { hold: *hold, result: Err(why()) },
            Effect::PostSnapshot { cut, .. } => {
                Event::PostFailed { cut: *cut, why: Abort::new(Reason::SnapshotPostFailed, "injected") }
            }
            Effect::WriteJournal(_) => Event::WriteRefused { why: "injected".to_owned() },
            Effect::ProbeStall(hold) => {
                Event::StallProbed { hold: *hold, result: Stall::Unknown { why: "injected".to_owned() } }
            }
            Effect::OpenHold { hold, .. }
            | Effect::CloseAt { hold, .. }
            | Effect::SendFreeze { hold, .. }
            | Effect::SendStage { hold, .. }
            | Effect::SendBeat { hold, .. }
            | Effect::SendClosing { hold, .. }
            | Effect::SendThaw(hold)
            | Effect::CloseHold(hold) => {
                // A stream that cannot be written to is closed.
                if let Some(stream) = self.streams.get(hold).copied() {
                    self.handle.with(|world| world.close_soon(stream));
                }
                Event::HoldEnded { hold: *hold, why: why() }
            }
            Effect::EndBlocker { hold, .. } => {
                Event::BlockerEnded { hold: *hold, result: Err("injected".to_owned()) }
            }
            Effect::Schedule { .. } | Effect::End(_) => return,
        };
        self.handle.with(|world| world.tell(self.mailbox, event));
    }

    /// Nobody hears of the effect any more.
    fn lose(&mut self, effect: &Effect) {
        match effect {
            Effect::WriteJournal(_) => {
                // The adapter tries until its time is up, and then says so.
                let (handle, mailbox) = (self.handle.clone(), self.mailbox);
                self.handle.spawn(async move {
                    handle.sleep(FREEZING_WITHIN).await;
                    let why = "no answer".to_owned();
                    handle.with(|world| world.tell(mailbox, Event::WriteRefused { why }));
                });
            }
            Effect::PostSnapshot { cut, .. } => {
                let (handle, mailbox, cut) = (self.handle.clone(), self.mailbox, *cut);
                self.handle.spawn(async move {
                    handle.sleep(crate::context::REQUEST_TIMEOUT).await;
                    let why = Abort::new(Reason::SnapshotPostFailed, "no answer");
                    handle.with(|world| world.tell(mailbox, Event::PostFailed { cut, why }));
                });
            }
            Effect::RunPrepare(_)
            | Effect::CheckCanary(_)
            | Effect::ProbeStall(_)
            | Effect::EndBlocker { .. } => self.fail(effect),
            Effect::OpenHold { hold, .. }
            | Effect::CloseAt { hold, .. }
            | Effect::SendFreeze { hold, .. }
            | Effect::SendStage { hold, .. }
            | Effect::SendBeat { hold, .. }
            | Effect::SendClosing { hold, .. }
            | Effect::SendThaw(hold)
            | Effect::CloseHold(hold) => {
                if let Some(stream) = self.streams.get(hold).copied() {
                    self.handle.with(|world| world.silence(stream));
                }
            }
            Effect::Schedule { .. } | Effect::End(_) => {}
        }
    }

    fn open(&mut self, hold: HoldId, lease: Duration) {
        let opening = Opening {
            replica: self.handle.replica,
            mailbox: self.mailbox,
            hold,
            backup: self.backup,
            attempt: self.resolution.nonce.clone(),
            pod: self.resolution.hold_pods[hold.0],
            lease: micros(lease),
        };
        let stream = self.handle.with(|world| world.open_stream(opening));
        if let Some(earlier) = self.streams.insert(hold, stream) {
            // Opened twice: only the last one can be written to, and dropping a stream closes it.
            self.handle.with(|world| world.close_soon(earlier));
        }
    }

    fn send(&mut self, hold: HoldId, inputs: Vec<Input>, not_after: Option<Mono>, closing: bool) {
        if let Some(stream) = self.streams.get(&hold).copied() {
            self.handle.with(|world| world.write_stream(stream, inputs, not_after, closing));
        }
    }

    fn probe(&self, hold: HoldId) {
        let pod = self.resolution.hold_pods[hold.0];
        let (handle, mailbox) = (self.handle.clone(), self.mailbox);
        self.handle.spawn(async move {
            handle.sleep(Duration::from_millis(40)).await;
            handle.with(|world| {
                let result = if world.pods[pod].stalled {
                    Stall::Blocked { by: "statement 7".to_owned(), id: None }
                } else {
                    Stall::Clear
                };
                world.tell(mailbox, Event::StallProbed { hold, result });
            });
        });
    }

    fn post(&self, cut: CutId, not_after: Mono, answers: bool) {
        let plan = &self.resolution.plan.cuts[cut.0];
        let asked = Asked {
            name: self.resolution.cut_names[cut.0].clone(),
            backup: self.backup,
            attempt: self.resolution.nonce.clone(),
            volumes: plan.members.iter().map(|member| self.resolution.member_volumes[member.0]).collect(),
            group: plan.group,
        };
        let (handle, mailbox) = (self.handle.clone(), self.mailbox);
        let streams: Vec<StreamId> = self.streams.values().copied().collect();
        self.handle.spawn(async move {
            // A task of its own: a process that is stopped here goes on here.
            handle.sleep(Duration::from_micros(50)).await;
            let fenced = !handle.with(|world| world.mutated(Mutation::NoFence));
            if fenced && handle.mono() > not_after {
                let why = Abort::new(Reason::ClaimLost, "its time had passed");
                handle.with(|world| {
                    world.coverage.outcome("snapshot refused behind its fence");
                    world.tell(mailbox, Event::PostFailed { cut, why });
                });
                return;
            }
            handle.with(|world| world.check_post(handle.replica, &streams));
            let event = match handle.request(Request::Post(asked)).await {
                Some(Answer::Created(uid)) => Event::Posted { cut, uid },
                _ => Event::PostFailed { cut, why: Abort::new(Reason::SnapshotPostFailed, "no 201") },
            };
            if answers {
                handle.with(|world| world.tell(mailbox, event));
            }
        });
    }

    fn write(&self, entry: Entry, answers: bool) {
        let milestone = if entry == Entry::Freezing { Milestone::Journalling } else { Milestone::Recording };
        let skip = self.handle.with(|world| {
            world.milestone(milestone, self.handle.replica, None);
            matches!(
                (&entry, &world.options.mutation),
                (Entry::Freezing, Some(Mutation::NoFreezingEntry))
                    | (Entry::Thawed, Some(Mutation::NoThawedEntry))
                    | (Entry::Aborted { .. }, Some(Mutation::NoAbortedEntry))
            )
        });
        let (handle, mailbox) = (self.handle.clone(), self.mailbox);
        let (journal, resolution) = (Rc::clone(&self.journal), Rc::clone(&self.resolution));
        let (record, slip) = (self.run.evidence(), self.slip.clone());
        self.handle.spawn(async move {
            let result = if skip {
                Ok(())
            } else {
                write_entry(&handle, &journal, &resolution, record, &slip, entry).await
            };
            let event = match result {
                Ok(()) => Event::Written,
                Err(why) => Event::WriteRefused { why: format!("{why:?}") },
            };
            if answers {
                handle.with(|world| world.tell(mailbox, event));
            }
        });
    }
}

async fn write_entry(
    handle: &Handle,
    journal: &Rc<RefCell<Journal>>,
    resolution: &Resolution,
    mut record: Record,
    slip: &Slip,
    entry: Entry,
) -> Result<(), JournalFailure> {
    let within = match &entry {
        Entry::Freezing => FREEZING_WITHIN,
        Entry::Thawed | Entry::Aborted { .. } => RECORD_WITHIN,
    };
    let mut resolved = resolution.resolved.clone();
    if entry == Entry::Thawed {
        // Rule 4 compares pods and containers, read again after the thaw.
        if let Some(Answer::Pods(pods)) = handle.request(Request::Pods).await {
            handle.with(|world| {
                for (index, application) in resolved.applications.iter_mut().enumerate() {
                    application.pods_at_thawed = resolve::identities(world, index, &pods);
                }
            });
            for (hold, pod) in record.holds.iter_mut().zip(&resolution.hold_pods) {
                let same = pods[*pod].uid == hold.pod_uid;
                hold.container_at_thawed = same.then(|| pods[*pod].container.clone());
            }
        }
    }
    tell_slips(&mut record, slip);
    let identity = handle.with(|world| world.replicas[handle.replica].identity.clone());
    let stamp = |kind: JournalKind| JournalEntry {
        entry: kind,
        attempt: resolution.attempt,
        nonce: resolution.nonce.clone(),
        executor: identity.clone(),
        at: MicroTime(handle.wall()),
        max_hold_millis: None,
        reason: None,
        message: None,
        not_proven_thawed: Vec::new(),
    };
    let (line, phase) = match &entry {
        Entry::Freezing => {
            let most = u64::try_from(resolution.plan.max_hold.as_millis()).unwrap_or(u64::MAX);
            (JournalEntry { max_hold_millis: Some(most), ..stamp(JournalKind::Freezing) }, Phase::Freezing)
        }
        Entry::Thawed => (stamp(JournalKind::Thawed), Phase::Settling),
        Entry::Aborted { why, not_proven_thawed } => {
            let nonces = not_proven_thawed.iter().filter_map(|hold| record.holds.get(hold.0));
            let line = JournalEntry {
                reason: Some(why.reason.as_str().to_owned()),
                not_proven_thawed: nonces.map(|hold| hold.nonce.clone()).collect(),
                ..stamp(JournalKind::Aborted)
            };
            (line, Phase::Preparing)
        }
    };
    Journal::write(journal, handle, within, |status| {
        status.phase = phase;
        status.resolved = Some(resolved.clone());
        status.holds.clone_from(&record.holds);
        status.members.clone_from(&record.members);
        status.window.clone_from(&record.window);
        status.journal.push(line.clone());
    })
    .await
}

/// A machine with a defect still records truly when it did what.
fn tell_slips(record: &mut Record, slip: &Slip) {
    if slip.posted_early.is_some() {
        // FREEZE of the first order and the early request are one step: t0.
        for member in record.members.iter_mut().filter(|member| member.stage == 0) {
            member.post_sent = member.post_sent.map(|_| Offset(0));
        }
        if let Some(window) = &mut record.window {
            window.cut_start = window.cut_start.map(|_| Offset(0));
        }
    }
    if slip.thawed_early.is_some() {
        let posted = record.members.iter().filter_map(|member| member.post_sent).min();
        for hold in &mut record.holds {
            if let (Some(sent), Some(posted)) = (hold.thaw_sent, posted) {
                hold.thaw_sent = Some(sent.min(posted));
            }
        }
    }
}
