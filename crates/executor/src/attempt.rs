//! Carries one attempt out: takes what happens to the machine, and does what the machine says, in order and once.
//!
//! Nothing is decided here. Effects inside the window are handed on without waiting: a POST and a session write are
//! each their own task, and the only thing waited for is the next event.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use kube::api::PostParams;
use stillpoint_api::backup::{JournalEntry, JournalKind, Phase};
use stillpoint_api::clock::Mono;
use stillpoint_api::outcome::HookPhase;
use tokio::sync::{Mutex, mpsc, watch};
use tracing::{debug, info, warn};

use crate::client_words::{Said, explain};
use crate::context::Context;
use crate::cut_watch::{ContentNews, Subscription};
use crate::exec::{ExecSender, Outcome, run_once};
use crate::hold::{Nonce, SystemEntropy, trial};
use crate::hook_results;
use crate::journal::{Journal, JournalError};
use crate::observer::RunLabels;
use crate::ownership::ClaimNews;
use crate::pod_watch::PodWatch;
use crate::resolve::{Resolution, RunHold, pods};
use crate::run::{
    Abort, BlockerId, CutId, Effect, End, Entry, Event, HoldId, Now, Reason, Record, Run, Timer,
};
use crate::session;
use crate::snapshot_request::SnapshotRequest;

/// How long the entry before a freeze may take: nothing is frozen yet, and another try costs nobody anything.
const FREEZING_WITHIN: Duration = Duration::from_secs(5);
/// How long the entry after a freeze is tried: the evidence is nowhere else.
const RECORD_WITHIN: Duration = Duration::from_secs(600);

/// How an attempt ended, and what it recorded.
#[derive(Debug)]
pub struct Outcomes {
    /// How.
    pub end: End,
    /// What was seen.
    pub record: Record,
}

/// One attempt being carried out.
struct Attempt<'a> {
    context: &'a Context,
    resolution: Arc<Resolution>,
    labels: RunLabels,
    nonce: String,
    run: Run,
    journal: Arc<Mutex<Journal>>,
    events: mpsc::UnboundedSender<Event>,
    timers: BinaryHeap<Reverse<(Mono, Timer)>>,
    sessions: BTreeMap<HoldId, SessionSlot>,
    opened: mpsc::UnboundedSender<(HoldId, ExecSender, watch::Sender<Option<u64>>)>,
    subscriptions: Vec<Subscription>,
}

/// A session from the machine's OpenHold to its CloseHold.
#[derive(Default)]
struct SessionSlot {
    sender: Option<ExecSender>,
    closing: Option<watch::Sender<Option<u64>>>,
    close_at: Option<Mono>,
    closed: bool,
}

/// Carries out one attempt to its last journal entry.
pub async fn carry_out(
    context: &Context,
    journal: Arc<Mutex<Journal>>,
    resolution: Arc<Resolution>,
    nonce: String,
    labels: RunLabels,
    mut stop: watch::Receiver<Option<Abort>>,
) -> Outcomes {
    let (events, mut inbox) = mpsc::unbounded_channel();
    let (opened, mut openings) = mpsc::unbounded_channel();
    let (news, mut contents) = mpsc::unbounded_channel();
    let mut attempt = Attempt {
        context,
        labels,
        nonce,
        run: Run::new(resolution.plan.clone()),
        resolution,
        journal,
        events,
        timers: BinaryHeap::new(),
        sessions: BTreeMap::new(),
        opened,
        subscriptions: Vec::new(),
    };
    attempt.subscribe(&news);
    let mut pods = PodWatch::open(&context.client, &attempt.resolution, &attempt.events);
    // From before the first event: a renewal that the plan does not know yet moves its fence.
    let mut claim = context.ownership.follow(Arc::clone(&context.clock));
    pods.listed().await;
    let mut stopped = false;
    let mut next = Some(Event::Start);
    loop {
        let event = match next.take() {
            Some(event) => event,
            None => {
                let due = attempt.timers.peek().map(|Reverse((at, _))| at.since(context.clock.mono()));
                tokio::select! {
                    biased;
                    Some((id, sender, closing)) = openings.recv() => {
                        attempt.opened(id, sender, closing);
                        continue;
                    }
                    Some(event) = inbox.recv() => event,
                    Some((token, what)) = contents.recv() => match content_event(token, what) {
                        Some(event) => event,
                        None => continue,
                    },
                    news = claim.news() => match news {
                        ClaimNews::Renewed { fence } => Event::ClaimRenewed { fence },
                        ClaimNews::Lost { why } => Event::ClaimLost { why },
                    },
                    changed = stop.changed(), if !stopped => {
                        stopped = true;
                        let why = stop.borrow().clone().filter(|_| changed.is_ok());
                        Event::Stop { why: why.unwrap_or_else(|| Abort::new(Reason::Shutdown, "the controller stops")) }
                    }
                    () = sleep(due) => match attempt.timers.pop() {
                        Some(Reverse((_, timer))) => Event::Timer(timer),
                        None => continue,
                    },
                }
            }
        };
        let now = Now { mono: context.clock.mono(), wall: context.clock.wall() };
        let effects = attempt.run.step(event, now);
        for effect in effects {
            if let Some(end) = attempt.carry(effect) {
                attempt.observe(&end);
                return Outcomes { end, record: attempt.run.evidence() };
            }
        }
    }
}

async fn sleep(due: Option<Duration>) {
    match due {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

fn content_event(token: usize, news: ContentNews) -> Option<Event> {
    let cut = CutId(token);
    Some(match news {
        ContentNews::Seen => Event::ContentSeen { cut },
        ContentNews::Cut(seen) => Event::CutSeen { cut, seen },
        ContentNews::Failed(message) => Event::SnapshotFailed { cut, message },
    })
}

impl Attempt<'_> {
    /// Listens for every cut before anything is asked for, so that no signal can be missed.
    fn subscribe(&mut self, news: &mpsc::UnboundedSender<(usize, ContentNews)>) {
        let plan = &self.resolution.plan;
        for group in &self.resolution.groups {
            self.subscriptions.push(self.context.contents.groups().subscribe(
                &self.resolution.namespace,
                &group.name,
                group.signal,
                group.cut.0,
                news.clone(),
            ));
        }
        for (index, cut) in plan.cuts.iter().enumerate().filter(|(_, cut)| !cut.group) {
            let Some(member) = cut.members.first().and_then(|first| plan.members.get(first.0)) else {
                continue;
            };
            self.subscriptions.push(self.context.contents.singles().subscribe(
                &self.resolution.namespace,
                &member.volume_snapshot,
                member.storage.signal,
                index,
                news.clone(),
            ));
        }
    }

    /// Carries out one effect; answers how the attempt ended, when it did.
    fn carry(&mut self, effect: Effect) -> Option<End> {
        match effect {
            Effect::RunPrepare(application) => self.prepare(application.0),
            Effect::OpenHold { hold, lease } => self.open(hold, lease),
            Effect::CloseAt { hold, at } => {
                let slot = self.sessions.entry(hold).or_default();
                slot.close_at = Some(at);
                if let Some(sender) = &slot.sender {
                    sender.set_close_at(at);
                }
            }
            Effect::CheckCanary(hold) => self.check_canary(hold),
            Effect::ProbeStall(hold) => self.probe_stall(hold),
            Effect::EndBlocker { hold, id } => self.end_blocker(hold, id),
            Effect::SendFreeze { hold, lease, acquire, within, not_after } => {
                let text = |held: &RunHold, nonce: &Nonce| {
                    held.texts.freeze(&held.plan, nonce, lease, acquire, within)
                };
                self.send(hold, Some(not_after), text);
            }
            Effect::SendStage { hold, stage, lease, acquire } => {
                let text = |held: &RunHold, nonce: &Nonce| {
                    held.texts.stage(&held.plan, nonce, stage, lease, acquire)
                };
                self.send(hold, None, text);
            }
            Effect::SendBeat { hold, index, lease } => {
                self.send(hold, None, |held, nonce| held.texts.beat(&held.plan, nonce, lease, index));
            }
            Effect::SendClosing { hold, index, lease } => {
                let seq =
                    self.send(hold, None, |held, nonce| held.texts.closing(&held.plan, nonce, lease, index));
                if let (Some(seq), Some(slot)) = (seq, self.sessions.get(&hold))
                    && let Some(closing) = &slot.closing
                {
                    closing.send_replace(Some(seq));
                }
            }
            Effect::SendThaw(hold) => {
                self.send(hold, None, |held, nonce| held.texts.thaw(&held.plan, nonce));
            }
            Effect::CloseHold(hold) => {
                let slot = self.sessions.entry(hold).or_default();
                slot.closed = true;
                if let Some(sender) = slot.sender.take() {
                    // End of input first: it ends the client and with it whatever lock it still has.
                    let _ = sender.close_stdin();
                    sender.close();
                }
            }
            Effect::PostSnapshot { cut, not_after } => self.post(cut, not_after),
            Effect::WriteJournal(entry) => self.write(entry),
            Effect::Schedule { timer, at } => self.timers.push(Reverse((at, timer))),
            Effect::End(end) => return Some(end),
        }
        None
    }

    fn held(&self, hold: HoldId) -> Option<&RunHold> {
        self.resolution.holds.get(hold.0)
    }

    /// Writes a text, if `not_after` has not passed when its turn comes.
    fn send(
        &mut self,
        id: HoldId,
        not_after: Option<Mono>,
        text: impl FnOnce(&RunHold, &Nonce) -> Result<bytes::Bytes, crate::hold::TextError>,
    ) -> Option<u64> {
        let held = self.resolution.holds.get(id.0)?;
        let rendered = text(held, &held.nonce);
        let sender = self.sessions.get(&id)?.sender.as_ref()?;
        let sent = rendered.map_err(|error| error.to_string()).and_then(|bytes| {
            let sent = match not_after {
                Some(not_after) => sender.send_before(bytes, not_after),
                None => sender.send(bytes),
            };
            sent.map_err(|error| error.to_string())
        });
        match sent {
            Ok(seq) => Some(seq),
            Err(error) => {
                // A stream that cannot be written to is ending, and says so itself; a text that cannot be rendered
                // was checked at preflight. Either way the hold is not to be relied on.
                let why = Abort::new(Reason::HoldLost, format!("{}: {error}", held.place()));
                let _ = self.events.send(Event::HoldEnded { hold: id, why });
                None
            }
        }
    }

    fn prepare(&self, index: usize) {
        let Some(prepare) = self.resolution.prepares.get(index).cloned() else { return };
        let (context, events, labels) = (self.context.clone(), self.events.clone(), self.labels.clone());
        tokio::spawn(async move {
            let ran = run_once(&*context.exec, &prepare.target, None, prepare.timeout).await;
            let went = hook_results::of_command(&ran);
            context.observer.hook_ended(&labels, &prepare.application, HookPhase::Prepare, went);
            let result = match ran {
                Err(error) => Err(session::refused(&prepare.target, &error)),
                Ok(done) => {
                    let seconds = done.elapsed.as_secs_f64();
                    context.observer.hook(&labels, &prepare.application, HookPhase::Prepare, seconds);
                    let place = format!("{}/{}", prepare.target.pod, prepare.target.container);
                    match (&done.outcome, done.refusal()) {
                        (Outcome::Exited(0), _) => Ok(()),
                        (_, Some(error)) => Err(session::refused(&prepare.target, &error)),
                        (outcome, None) => {
                            let how = format!("prepare failed ({outcome:?} after {seconds:.1} s)");
                            let mut why = explain(&place, &how, Said::by(&done, &prepare.messages));
                            if why.reason == Reason::HoldNotReady {
                                why.reason = Reason::PrepareFailed;
                            }
                            Err(why)
                        }
                    }
                }
            };
            let application = crate::run::ApplicationId(index);
            let _ = events.send(Event::Prepared { application, result });
        });
    }

    fn check_canary(&self, id: HoldId) {
        let Some(held) = self.held(id).cloned() else { return };
        let (context, events) = (self.context.clone(), self.events.clone());
        tokio::spawn(async move {
            let result = match Nonce::generate(&SystemEntropy) {
                Ok(nonce) => trial::canary(&*context.exec, &held, &nonce).await,
                Err(error) => {
                    let what = format!("the random source of this machine failed: {error}");
                    Err(Abort::new(Reason::Internal, what))
                }
            };
            let _ = events.send(Event::CanaryChecked { hold: id, result });
        });
    }

    fn probe_stall(&self, id: HoldId) {
        let Some(held) = self.held(id).cloned() else { return };
        let (context, events) = (self.context.clone(), self.events.clone());
        tokio::spawn(async move {
            let result = trial::stall(&*context.exec, &held).await;
            let _ = events.send(Event::StallProbed { hold: id, result });
        });
    }

    fn end_blocker(&self, hold: HoldId, id: BlockerId) {
        let Some(held) = self.held(hold).cloned() else { return };
        let (context, events) = (self.context.clone(), self.events.clone());
        tokio::spawn(async move {
            warn!(
                place = held.place(),
                statement = id.as_str(),
                "ending the statement in the way of the lock"
            );
            let result = trial::end_blocker(&*context.exec, &held, &id).await;
            let _ = events.send(Event::BlockerEnded { hold, result });
        });
    }

    fn open(&mut self, id: HoldId, lease: Duration) {
        self.sessions.insert(id, SessionSlot::default());
        let Some(held) = self.held(id).cloned() else { return };
        let acquire = self.resolution.plan.acquire_timeout;
        let (context, events, opened) = (self.context.clone(), self.events.clone(), self.opened.clone());
        tokio::spawn(async move {
            match session::open(&context.exec, &held, lease, acquire).await {
                Ok(handle) => {
                    let (closing, closing_seen) = watch::channel(None);
                    if opened.send((id, handle.sender.clone(), closing)).is_err() {
                        return;
                    }
                    // The last sender this task holds must go, or the stream would outlive the attempt.
                    let crate::exec::ExecHandle { sender, events: stream } = handle;
                    drop(sender);
                    session::follow(stream, id, &held, closing_seen, events).await;
                }
                Err(why) => {
                    let _ = events.send(Event::HoldEnded { hold: id, why });
                }
            }
        });
    }

    fn opened(&mut self, id: HoldId, sender: ExecSender, closing: watch::Sender<Option<u64>>) {
        let slot = self.sessions.entry(id).or_default();
        if slot.closed {
            let _ = sender.close_stdin();
            sender.close();
            return;
        }
        if let Some(at) = slot.close_at {
            sender.set_close_at(at);
        }
        slot.sender = Some(sender);
        slot.closing = Some(closing);
    }

    fn post(&self, id: CutId, not_after: Mono) {
        let Some(request) = SnapshotRequest::of(&self.resolution, id, &self.nonce) else { return };
        let (client, namespace) = (self.context.client.clone(), self.resolution.namespace.clone());
        let events = self.events.clone();
        let clock = self.context.clock.clone();
        tokio::spawn(async move {
            // The last look before the write: a process that was stopped meanwhile must not cut (docs/design/freeze.md §5).
            if clock.mono() > not_after {
                let what = format!("{} was not asked for: its time had passed", request.what());
                let why = Abort::new(Reason::ClaimLost, what);
                let _ = events.send(Event::PostFailed { cut: id, why });
                return;
            }
            let params = PostParams::default();
            let created = request.post(&client, &namespace, "create", &params);
            let event = match created.await {
                Ok(uid) => Event::Posted { cut: id, uid },
                // A 409 or no answer is a failed POST and is never adopted: names are never reused.
                Err(error) => Event::PostFailed {
                    cut: id,
                    why: Abort::new(Reason::SnapshotPostFailed, error.to_string()),
                },
            };
            let _ = events.send(event);
        });
    }

    fn write(&self, entry: Entry) {
        let (context, events) = (self.context.clone(), self.events.clone());
        let (journal, resolution) = (Arc::clone(&self.journal), Arc::clone(&self.resolution));
        let (record, nonce) = (self.run.evidence(), self.nonce.clone());
        tokio::spawn(async move {
            let event = match write_entry(&context, &journal, &resolution, record, nonce, entry).await {
                Ok(()) => Event::Written,
                Err(error) => Event::WriteRefused { why: error.to_string() },
            };
            let _ = events.send(event);
        });
    }

    /// Tells what was measured, once the attempt is over.
    fn observe(&self, end: &End) {
        let record = self.run.evidence();
        let observer = &self.context.observer;
        for hold in &record.holds {
            for (phase, result) in hook_results::of_hold(hold, end) {
                observer.hook_ended(&self.labels, &hold.application, phase, result);
            }
            let phase = |phase,
                         from: Option<stillpoint_api::evidence::Offset>,
                         to: Option<stillpoint_api::evidence::Offset>| {
                if let (Some(from), Some(to)) = (from, to) {
                    observer.hook(
                        &self.labels,
                        &hold.application,
                        phase,
                        (to.seconds() - from.seconds()).max(0.0),
                    );
                }
            };
            let frozen = hold.frozen.as_ref().map(|answer| answer.at);
            phase(HookPhase::Acquire, hold.freeze_sent, frozen);
            phase(HookPhase::Hold, frozen, hold.thaw_sent);
            phase(HookPhase::Thaw, hold.thaw_sent, hold.thawed);
        }
        let mut storage = 0.0f64;
        for member in &record.members {
            if let (Some(posted), Some(signal)) = (member.post_sent, member.signal) {
                let took = (signal.seconds() - posted.seconds()).max(0.0);
                observer.cut(&member.driver, took);
                storage = storage.max(took);
            }
        }
        // The window of observers alone is no freeze: nobody was stopped.
        let stopped = self.resolution.plan.holds.iter().any(|hold| hold.locks);
        if let Some(seconds) = record.window.as_ref().and_then(|window| window.frozen_seconds) {
            if stopped {
                observer.freeze(&self.labels, seconds);
                observer.overhead(&self.labels, (seconds - storage).max(0.0));
            }
            info!(
                namespace = self.resolution.namespace,
                backup = self.resolution.backup,
                frozen_ms = format!("{:.1}", seconds * 1e3),
                storage_ms = format!("{:.1}", storage * 1e3),
                commits_stopped = stopped,
                "released"
            );
        }
    }
}

/// Writes one journal entry with the evidence that belongs to it.
async fn write_entry(
    context: &Context,
    journal: &Mutex<Journal>,
    resolution: &Resolution,
    mut record: Record,
    nonce: String,
    entry: Entry,
) -> Result<(), JournalError> {
    let mut journal = journal.lock().await;
    let within = match &entry {
        Entry::Freezing => FREEZING_WITHIN,
        Entry::Thawed | Entry::Aborted { .. } => RECORD_WITHIN,
    };
    let mut resolved = resolution.resolved.clone();
    if entry == Entry::Thawed {
        resolution.prepared(&mut resolved, record.prepare_began);
        // Rule 4 compares pods and containers; asked outside the window, nothing is frozen any more.
        match pods::read_again(context, resolution).await {
            Ok(after) => after.complete(&mut resolved, &mut record),
            Err(error) => warn!(%error, "pods could not be read after the thaw; rule 4 stays unproven"),
        }
    }
    let at = context.clock.wall();
    let stamp = |kind: JournalKind| JournalEntry {
        entry: kind,
        attempt: resolution.attempt,
        nonce: nonce.clone(),
        executor: context.ownership.identity().to_owned(),
        at: k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(at),
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
                message: Some(why.message.chars().take(2048).collect()),
                not_proven_thawed: nonces.map(|hold| hold.nonce.clone()).collect(),
                ..stamp(JournalKind::Aborted)
            };
            (line, Phase::Preparing)
        }
    };
    debug!(backup = resolution.backup, entry = ?line.entry, attempt = line.attempt, "journal");
    journal
        .write(within, |status| {
            status.phase = phase;
            status.resolved = Some(resolved.clone());
            status.holds.clone_from(&record.holds);
            status.members.clone_from(&record.members);
            status.window.clone_from(&record.window);
            status.journal.push(line.clone());
        })
        .await
}
