//! Exec streams, what travels on them, and the processes at their ends: database clients and the holder.
//!
//! A stream delays and loses, and it splits a write; it never reorders what goes one way. A process executes what it
//! reads in order. What it does when its input ends, its lease runs out or it is killed is docs/design/freeze.md §2.

use std::collections::{BTreeMap, VecDeque};

use stillpoint_api::clock::Mono;
use stillpoint_api::evidence::{HoldAnswer, HoldKind, Offset};

use super::faults::{Fault, Milestone};
use super::mutations::Mutation;
use super::pod::FlagBy;
use super::replica::{Life, MailboxId};
use super::world::{Happening, World};
use super::{MS, Micros, S};
use crate::run::{Abort, Event, HoldId, Reason, Word};

/// Index of a stream.
pub type StreamId = usize;

/// A text that a process reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The opening text.
    Open {
        /// Lease asked for.
        lease: Micros,
    },
    /// The freeze text.
    Freeze {
        /// Lease asked for.
        lease: Micros,
        /// Longest acquisition.
        acquire: Micros,
        /// Deadline of the holder from here.
        within: Micros,
    },
    /// The text that leads to a stage.
    Stage {
        /// The stage.
        stage: u32,
        /// Lease asked for.
        lease: Micros,
    },
    /// A beat.
    Beat {
        /// Its index.
        index: u32,
        /// Lease asked for.
        lease: Micros,
    },
    /// The thaw.
    Thaw,
    /// End of input.
    End,
}

/// Something inside a process.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// The server ends an idle session, unless something was executed since.
    LeaseEnds(u64),
    /// The lock is there, or the freeze command ended well.
    Acquired {
        /// Lease asked for.
        lease: Micros,
    },
    /// The lock was not to be had.
    NotAcquired,
    /// The holder's deadline.
    Deadline,
    /// The holder was READY for as long as it waits.
    Unused,
    /// The thaw command is run.
    Thaws {
        /// Whether THAWED is said: only in answer to a thaw.
        asked: bool,
    },
    /// The watcher finds its holder dead.
    Watcher,
}

/// What the task of a stream does by itself.
#[derive(Clone, Debug)]
pub enum StreamTask {
    /// Writes, unless it is too late.
    Write {
        /// The texts of one write.
        inputs: Vec<Input>,
        /// Not after this instant of the replica.
        not_after: Option<Mono>,
        /// Whether it is the closing text.
        closing: bool,
    },
    /// Closes: the machine said so.
    Close,
    /// Closes by its own timer, if that is still the time.
    CloseAt(Micros),
}

/// One stream and its process.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The replica that opened it.
    pub replica: usize,
    /// Its incarnation.
    pub incarnation: u32,
    /// Where its words go.
    pub mailbox: MailboxId,
    /// The hold in the plan.
    pub hold: HoldId,
    /// The Backup.
    pub backup: usize,
    /// The attempt's nonce.
    pub attempt: String,
    /// Its pod.
    pub pod: usize,
    /// The kind of hold.
    pub kind: HoldKind,
    /// Whether the replica still has it open.
    pub open: bool,
    /// Nothing passes any more.
    pub cut: bool,
    /// When the replica's process died, if it did.
    pub orphaned_at: Option<Micros>,
    arrives_last: Micros,
    returns_last: Micros,
    /// Longest time that a text was on its way beyond the usual.
    pub delay: Micros,
    close_at: Option<Micros>,
    /// Whether the process lives.
    pub alive: bool,
    started: bool,
    server: bool,
    reconnects: bool,
    connection: u64,
    lease_ignored: bool,
    granted: Micros,
    lease_turn: u64,
    /// When something was executed last.
    pub last_statement: Micros,
    busy: bool,
    stdin: VecDeque<Input>,
    /// When FREEZE was written.
    pub freeze_sent: Option<Micros>,
    /// When its THAWED was taken by the replica that held it.
    pub thawed_heard: Option<Micros>,
    /// When it froze.
    pub frozen_at: Option<Micros>,
    /// The commit at which it froze.
    pub frozen_position: Option<u64>,
    /// When it let go.
    pub freed_at: Option<Micros>,
    /// Stages that it answered, and when.
    pub stages: BTreeMap<u32, Micros>,
    /// When the process ended.
    pub ended_at: Option<Micros>,
    /// When its server ended the session before.
    pub server_ended_at: Option<Micros>,
    /// Thaws of it that let something go.
    pub thaws: u64,
    /// When the holder was killed.
    pub killed_at: Option<Micros>,
    /// The freeze command hangs.
    pub hung: bool,
    /// Time that failing thaws took.
    pub thaw_extra: Micros,
    thaw_failures: u64,
    thawing: bool,
    path_later: bool,
    elsewhere: bool,
}

impl Stream {
    /// What the lease that it was granted last is.
    pub const fn granted(&self) -> Micros {
        self.granted
    }

    /// Whether its server ends it by itself.
    pub const fn leased(&self) -> bool {
        matches!(self.kind, HoldKind::Session | HoldKind::Observer)
    }
}

/// What opening a stream needs.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The replica.
    pub replica: usize,
    /// Where its words go.
    pub mailbox: MailboxId,
    /// The hold in the plan.
    pub hold: HoldId,
    /// The Backup.
    pub backup: usize,
    /// The attempt's nonce.
    pub attempt: String,
    /// The pod.
    pub pod: usize,
    /// The lease asked for.
    pub lease: Micros,
}

impl World {
    /// Opens a stream: the process starts, and the opening text is written.
    pub fn open_stream(&mut self, opening: Opening) -> StreamId {
        let id = self.streams.len();
        let kind = self.scenario.apps[self.pods[opening.pod].app].kind;
        self.streams.push(Stream {
            replica: opening.replica,
            incarnation: self.replicas[opening.replica].incarnation,
            mailbox: opening.mailbox,
            hold: opening.hold,
            backup: opening.backup,
            attempt: opening.attempt,
            pod: opening.pod,
            kind,
            open: true,
            cut: false,
            orphaned_at: None,
            arrives_last: 0,
            returns_last: 0,
            delay: 0,
            close_at: None,
            alive: true,
            started: false,
            server: false,
            reconnects: false,
            connection: 0,
            lease_ignored: false,
            granted: opening.lease,
            lease_turn: 0,
            last_statement: self.now,
            busy: false,
            stdin: VecDeque::new(),
            freeze_sent: None,
            frozen_at: None,
            frozen_position: None,
            freed_at: None,
            thawed_heard: None,
            stages: BTreeMap::new(),
            ended_at: None,
            server_ended_at: None,
            thaws: 0,
            killed_at: None,
            hung: false,
            thaw_extra: 0,
            thaw_failures: 0,
            thawing: false,
            path_later: false,
            elsewhere: false,
        });
        self.milestone(Milestone::Opening, opening.replica, Some(opening.pod));
        if self.happens(Fault::ExecRefused, 300) {
            self.streams[id].alive = false;
            let end = Happening::StreamEnds(id, Reason::HoldNotReady, "the exec was refused");
            self.after(20 * MS, end);
            return id;
        }
        if self.happens(Fault::OpenHangs, 300) {
            self.streams[id].alive = false;
            let end = Happening::StreamEnds(id, Reason::HoldNotReady, "the exec did not open in 10 s");
            self.after(10 * S, end);
            return id;
        }
        let dial = self.rng.between(40 * MS, 250 * MS);
        self.streams[id].arrives_last = self.now + dial;
        self.deliver(id, Input::Open { lease: opening.lease });
        id
    }

    /// Hands a write to the stream's task.
    pub fn write_stream(&mut self, id: StreamId, inputs: Vec<Input>, not_after: Option<Mono>, closing: bool) {
        let write = StreamTask::Write { inputs, not_after, closing };
        self.after(30, Happening::Task(id, write));
    }

    /// Tells the stream's task when to close by itself.
    pub fn bound_stream(&mut self, id: StreamId, at: Micros) {
        self.streams[id].close_at = Some(at);
        self.after(at.saturating_sub(self.now), Happening::Task(id, StreamTask::CloseAt(at)));
    }

    /// The stream's own task acts.
    pub fn stream_task(&mut self, id: StreamId, task: StreamTask) {
        let stream = &self.streams[id];
        if !stream.open || self.replicas[stream.replica].incarnation != stream.incarnation {
            return;
        }
        match task {
            StreamTask::Write { inputs, not_after, closing } => {
                let late =
                    not_after.is_some_and(|by| self.replicas[self.streams[id].replica].mono(self.now) > by);
                if late && !self.mutated(Mutation::NoFence) {
                    self.coverage.outcome("freeze refused behind its fence");
                    self.close_stream(id);
                    self.tell_end(id, Reason::ClaimLost, "its time to freeze had passed");
                    return;
                }
                self.write(id, &inputs, closing);
            }
            StreamTask::Close => self.close_stream(id),
            StreamTask::CloseAt(at) => {
                if stream.close_at == Some(at) && !self.mutated(Mutation::NoStreamDeadline) {
                    self.coverage.outcome("stream closed by its own timer");
                    self.close_stream(id);
                    self.tell_end(id, Reason::HoldLost, "its stream reached its deadline");
                }
            }
        }
    }

    fn write(&mut self, id: StreamId, inputs: &[Input], closing: bool) {
        let (replica, pod) = (self.streams[id].replica, self.streams[id].pod);
        if inputs.iter().any(|input| matches!(input, Input::Freeze { .. })) {
            self.streams[id].freeze_sent = Some(self.now);
            self.check_freeze_sent(id);
            self.milestone(Milestone::FreezeSent, replica, Some(pod));
        }
        if inputs.contains(&Input::Thaw) {
            self.milestone(Milestone::ThawSent, replica, Some(pod));
        }
        for (index, input) in inputs.iter().enumerate() {
            if index > 0 && self.happens(Fault::SplitWrite, 500) {
                // The rest of the write comes later, or the stream breaks before it does.
                let most = self.faults.rng(Fault::SplitWrite).pick(&[S, 3 * S, 12 * S]);
                let wait = self.faults.rng(Fault::SplitWrite).below(most);
                let stream = &mut self.streams[id];
                stream.arrives_last = stream.arrives_last.max(self.now + wait);
                if self.faults.rng(Fault::SplitWrite).chance(300) {
                    self.break_path(id, false);
                }
            }
            self.deliver(id, *input);
        }
        if closing && !self.streams[id].cut {
            let (mailbox, hold) = (self.streams[id].mailbox, self.streams[id].hold);
            self.tell(mailbox, Event::ClosingWritten { hold });
        }
    }

    fn deliver(&mut self, id: StreamId, input: Input) {
        let mut takes = self.rng.between(300, 2 * MS);
        if self.happens(Fault::SlowLine, 120) {
            takes += self.faults.rng(Fault::SlowLine).below(8 * S);
        }
        let stream = &mut self.streams[id];
        let at = (self.now + takes).max(stream.arrives_last + 1);
        stream.arrives_last = at;
        if stream.frozen_at.is_some() || stream.freeze_sent.is_some() {
            stream.delay = stream.delay.max((at - self.now).saturating_sub(2 * MS));
        }
        self.after(at - self.now, Happening::Arrives(id, input));
    }

    /// The machine closes a stream: end of input first, then the socket.
    pub fn close_soon(&mut self, id: StreamId) {
        self.after(30, Happening::Task(id, StreamTask::Close));
    }

    fn close_stream(&mut self, id: StreamId) {
        if self.streams[id].open {
            self.streams[id].open = false;
            self.end_input(id);
        }
    }

    /// The process sees the end of its input, if that gets through.
    fn end_input(&mut self, id: StreamId) {
        if !self.streams[id].cut && !self.mutated(Mutation::NoEof) {
            self.deliver(id, Input::End);
        }
    }

    /// The replica's process is gone: the kernel closes its sockets.
    pub fn orphan_streams(&mut self, replica: usize) {
        for id in 0..self.streams.len() {
            if self.streams[id].replica == replica && self.streams[id].open {
                self.streams[id].open = false;
                self.streams[id].orphaned_at = Some(self.now);
                self.end_input(id);
            }
        }
    }

    /// Breaks a live stream of a pod. Answers whether there was one.
    pub fn break_stream(&mut self, fault: Fault, replica: usize, pod: usize) -> bool {
        let found = (0..self.streams.len()).rev().find(|id| {
            let stream = &self.streams[*id];
            stream.open && stream.alive && stream.replica == replica && stream.pod == pod
        });
        let Some(id) = found else { return false };
        match fault {
            Fault::StreamReset => {
                self.end_input(id);
                self.after(
                    MS,
                    Happening::StreamEnds(id, Reason::HoldLost, "its stream ended (reset or closed)"),
                );
            }
            Fault::RuntimeCrash => self.break_path(id, true),
            _ => self.break_path(id, false),
        }
        true
    }

    /// Nobody hears of a stream any more.
    pub fn silence(&mut self, id: StreamId) {
        self.break_path(id, false);
    }

    /// Nothing passes any more; the replica is told at once, or finds out by its pings.
    fn break_path(&mut self, id: StreamId, told: bool) {
        self.streams[id].cut = true;
        let after = if told { MS } else { self.rng.between(30 * S, 45 * S) };
        self.after(after, Happening::StreamEnds(id, Reason::HoldLost, "its stream is dead"));
    }

    /// The replica sees a stream end.
    pub fn stream_ends(&mut self, id: StreamId, reason: Reason, why: &'static str) {
        if self.streams[id].open {
            self.streams[id].open = false;
            self.tell_end(id, reason, why);
        }
    }

    fn tell_end(&mut self, id: StreamId, reason: Reason, why: &str) {
        let (mailbox, hold) = (self.streams[id].mailbox, self.streams[id].hold);
        self.tell(mailbox, Event::HoldEnded { hold, why: Abort::new(reason, why) });
    }

    /// A line arrives at the replica.
    pub fn line(&mut self, id: StreamId, word: Word) {
        let stream = &self.streams[id];
        if !stream.open || stream.cut || self.replicas[stream.replica].incarnation != stream.incarnation {
            return;
        }
        let (mailbox, hold) = (stream.mailbox, stream.hold);
        self.tell(mailbox, Event::HoldSaid { hold, word });
    }

    fn say(&mut self, id: StreamId, word: Word) {
        let mut takes = self.rng.between(300, 2 * MS);
        if self.happens(Fault::SlowLine, 80) {
            takes += self.faults.rng(Fault::SlowLine).below(8 * S);
        }
        self.note(|| format!("stream {id} says {word:?}"));
        let stream = &mut self.streams[id];
        if stream.cut {
            return;
        }
        let at = (self.now + takes).max(stream.returns_last + 1);
        stream.returns_last = at;
        self.after(at - self.now, Happening::Line(id, word));
    }

    /// A text arrives.
    pub fn arrives(&mut self, id: StreamId, input: Input) {
        if self.streams[id].cut || !self.streams[id].alive {
            return;
        }
        self.note(|| format!("stream {id} reads {input:?}"));
        self.streams[id].stdin.push_back(input);
        self.pump(id);
    }

    fn pump(&mut self, id: StreamId) {
        while self.streams[id].alive && !self.streams[id].busy {
            let Some(input) = self.streams[id].stdin.pop_front() else { return };
            match self.streams[id].kind {
                HoldKind::Commands | HoldKind::Direct => self.holder_reads(id, input),
                HoldKind::Session | HoldKind::Observer | HoldKind::None => self.session_reads(id, input),
            }
        }
    }

    /// The process ends; what its session holds goes with it.
    fn exit(&mut self, id: StreamId, reason: Reason, why: &'static str) {
        if !self.streams[id].alive {
            return;
        }
        self.streams[id].alive = false;
        self.streams[id].ended_at = Some(self.now);
        self.release(id);
        if !self.streams[id].cut {
            let after = self.streams[id].returns_last.saturating_sub(self.now) + MS;
            self.after(after, Happening::StreamEnds(id, reason, why));
        }
    }

    /// Every process of a pod dies.
    pub fn kill_processes(&mut self, pod: usize, why: &'static str) {
        for id in 0..self.streams.len() {
            if self.streams[id].pod == pod && self.streams[id].alive && self.streams[id].started {
                self.streams[id].server = false;
                self.exit(id, Reason::HoldLost, why);
                if self.streams[id].frozen_at.is_some() && self.streams[id].freed_at.is_none() {
                    self.streams[id].freed_at = Some(self.now);
                }
            }
        }
    }

    /// The server restarts; clients reconnect by themselves, without their locks.
    pub fn restart_server(&mut self, pod: usize) -> bool {
        let mut any = false;
        for id in 0..self.streams.len() {
            let stream = &mut self.streams[id];
            if stream.pod == pod && stream.alive && stream.server && stream.leased() {
                stream.server = false;
                stream.server_ended_at.get_or_insert(self.now);
                stream.reconnects = true;
                any = true;
                self.release(id);
            }
        }
        any
    }

    // Sessions.

    fn session_reads(&mut self, id: StreamId, input: Input) {
        let stream = &self.streams[id];
        match input {
            Input::End => return self.exit(id, Reason::HoldLost, "its client ended"),
            Input::Open { .. } => {}
            Input::Freeze { .. } | Input::Stage { .. } | Input::Beat { .. } | Input::Thaw
                if stream.server => {}
            _ if stream.reconnects => self.connect(id),
            _ => return self.exit(id, Reason::HoldLost, "its server had ended the session"),
        }
        self.streams[id].last_statement = self.now;
        let pod = self.streams[id].pod;
        let engine = self.scenario.apps[self.pods[pod].app].engine.clone();
        match input {
            Input::Open { lease } => {
                self.streams[id].started = true;
                self.connect(id);
                self.streams[id].elsewhere = self.happens(Fault::NotLocal, 400);
                self.streams[id].lease_ignored = self.happens(Fault::LeaseIgnored, 500);
                self.tell_facts(id);
                self.grant(id, lease);
                let answer = self.answer(id);
                self.say(id, Word::Ready(answer));
            }
            Input::Freeze { lease, acquire, .. } => self.acquire(id, lease, acquire, engine.stall_probe),
            Input::Stage { stage, lease } => {
                self.grant(id, lease);
                self.streams[id].stages.insert(stage, self.now);
                let answer = self.answer(id);
                self.say(id, Word::Frozen { stage, answer });
            }
            Input::Beat { index, lease } => {
                self.grant(id, lease);
                let answer = self.answer(id);
                self.say(id, Word::Held { index, answer });
            }
            Input::Thaw => {
                let owns = self.pods[pod].locks.contains(&id);
                if engine.thaw_proves_lock && !owns {
                    self.coverage.outcome("thaw statement failed without its lock");
                    return self.exit(id, Reason::HoldLost, "its thaw statement failed");
                }
                self.release(id);
                let lease = self.streams[id].granted;
                self.grant(id, lease);
                self.say(id, Word::Thawed);
            }
            Input::End => {}
        }
    }

    fn connect(&mut self, id: StreamId) {
        let pod = self.streams[id].pod;
        self.pods[pod].connections += 1;
        self.streams[id].connection = self.pods[pod].connections;
        self.streams[id].server = true;
    }

    /// A statement was executed: the idle time begins anew.
    fn grant(&mut self, id: StreamId, lease: Micros) {
        let stream = &mut self.streams[id];
        stream.granted = lease;
        stream.lease_turn += 1;
        let turn = stream.lease_turn;
        if stream.leased() && !stream.lease_ignored {
            self.after(lease, Happening::Process(id, Step::LeaseEnds(turn)));
        }
    }

    fn acquire(&mut self, id: StreamId, lease: Micros, acquire: Micros, stalls: bool) {
        let pod = self.streams[id].pod;
        self.streams[id].busy = true;
        self.streams[id].lease_turn += 1;
        let in_the_way = if self.streams[id].kind.locks() { self.statement_in_the_way(pod) } else { None };
        match in_the_way {
            None => {
                let takes = self.rng.between(MS, 20 * MS);
                self.after(takes, Happening::Process(id, Step::Acquired { lease }));
            }
            Some(until) => {
                if stalls {
                    self.coverage.outcome("writers stuck behind a waiting lock");
                    self.change_pod(pod, |pod| pod.stalled = true);
                }
                let wait = until - self.now;
                if wait <= acquire {
                    self.after(wait, Happening::Process(id, Step::Acquired { lease }));
                } else {
                    self.after(acquire, Happening::Process(id, Step::NotAcquired));
                }
            }
        }
    }

    fn tell_facts(&mut self, id: StreamId) {
        let pod = self.streams[id].pod;
        let app = self.pods[pod].app;
        let durable = if self.scenario.apps[app].durable { "on" } else { "off" };
        let word = Word::Evidence { key: "fsync".to_owned(), value: durable.to_owned() };
        self.say(id, word);
        // Some templates tell their paths when they open, some when they froze.
        if self.rng.chance(500) {
            self.tell_path(id);
        } else {
            self.streams[id].path_later = true;
        }
    }

    fn tell_path(&mut self, id: StreamId) {
        let pod = self.streams[id].pod;
        let path =
            if self.happens(Fault::PathElsewhere, 500) { "/elsewhere" } else { self.pods[pod].data_path };
        self.say(id, Word::Evidence { key: "datadir".to_owned(), value: path.to_owned() });
    }

    fn answer(&mut self, id: StreamId) -> HoldAnswer {
        let stream = &self.streams[id];
        let pod = &self.pods[stream.pod];
        let engine = &self.scenario.apps[pod.app].engine;
        let host = if stream.elsewhere { "elsewhere".to_owned() } else { pod.host.clone() };
        let lease = if !stream.leased() {
            None
        } else if stream.lease_ignored {
            Some(if stream.connection.is_multiple_of(2) { "0" } else { "28800" }.to_owned())
        } else {
            Some(((stream.granted / S).max(1)).to_string())
        };
        let connection = if stream.leased() { stream.connection.to_string() } else { pod.container.clone() };
        let position = if engine.position {
            BTreeMap::from([("gtid".to_owned(), format!("0-1-{}", pod.position(self.now)))])
        } else {
            BTreeMap::new()
        };
        HoldAnswer {
            at: Offset::default(),
            identity: BTreeMap::from([("host".to_owned(), host), ("conn".to_owned(), connection)]),
            role: Some(pod.role.to_owned()),
            clock: i64::try_from(self.now + super::replica::WALL_ORIGIN).ok(),
            lease,
            position,
        }
    }

    // The holder.

    fn holder_reads(&mut self, id: StreamId, input: Input) {
        let pod = self.streams[id].pod;
        let probed = self.scenario.apps[self.pods[pod].app].engine.probed;
        self.streams[id].last_statement = self.now;
        match input {
            Input::Open { .. } => {
                self.streams[id].started = true;
                if self.happens(Fault::ForeignFreeze, 400) && self.pods[pod].flag.is_none() {
                    self.change_pod(pod, |pod| pod.flag = Some(FlagBy::Foreign));
                }
                self.tell_facts(id);
                self.tell_foreign(id);
                self.after(30 * S, Happening::Process(id, Step::Unused));
                let answer = self.answer(id);
                self.say(id, Word::Ready(answer));
            }
            Input::Freeze { lease, within, .. } => {
                if self.pods[pod].flag.is_some() {
                    // Nothing is run, and so there is nothing to thaw.
                    return self.tell_foreign(id);
                }
                self.streams[id].busy = true;
                self.after(within, Happening::Process(id, Step::Deadline));
                if self.happens(Fault::FreezeHangs, 500) {
                    // Half of it was done.
                    self.streams[id].hung = true;
                    self.change_pod(pod, |pod| pod.flag = Some(FlagBy::Ours(id)));
                    self.froze(id);
                    return;
                }
                let takes = self.rng.between(4 * MS, 50 * MS);
                self.after(takes, Happening::Process(id, Step::Acquired { lease }));
            }
            Input::Beat { index, .. } => {
                let ours = self.pods[pod].flag == Some(FlagBy::Ours(id));
                if ours || !probed || self.streams[id].frozen_at.is_none() {
                    let answer = self.answer(id);
                    self.say(id, Word::Held { index, answer });
                }
            }
            Input::Stage { stage, .. } => {
                let answer = self.answer(id);
                self.say(id, Word::Frozen { stage, answer });
            }
            Input::Thaw => self.begin_thaw(id, true),
            Input::End => self.begin_thaw(id, false),
        }
    }

    fn tell_foreign(&mut self, id: StreamId) {
        let foreign = self.pods[self.streams[id].pod].flag == Some(FlagBy::Foreign);
        let value = if foreign { "1" } else { "0" };
        self.say(id, Word::Evidence { key: "foreign_freeze".to_owned(), value: value.to_owned() });
    }

    fn begin_thaw(&mut self, id: StreamId, asked: bool) {
        if self.streams[id].thawing {
            return;
        }
        self.streams[id].thawing = true;
        self.streams[id].busy = true;
        let frozen = self.streams[id].frozen_at.is_some() && self.streams[id].freed_at.is_none();
        if frozen && self.happens(Fault::ThawFails, 600) {
            self.streams[id].thaw_failures = 1 + self.faults.rng(Fault::ThawFails).below(12);
        }
        let takes = if frozen { self.rng.between(2 * MS, 10 * MS) } else { 0 };
        self.after(takes, Happening::Process(id, Step::Thaws { asked }));
    }

    fn thaws(&mut self, id: StreamId, asked: bool) {
        if self.streams[id].thaw_failures > 0 {
            self.streams[id].thaw_failures -= 1;
            self.streams[id].thaw_extra += S;
            if asked {
                self.say(id, Word::ThawFailed);
            }
            self.after(S, Happening::Process(id, Step::Thaws { asked }));
            return;
        }
        let had = self.streams[id].frozen_at.is_some();
        if had || self.mutated(Mutation::ThawsForeignFreeze) {
            self.clear_flag_if_ours(id);
        }
        if asked && had {
            self.say(id, Word::Thawed);
        }
        self.exit(id, Reason::HoldLost, "its holder ended");
    }

    /// The holder undoes only what it did itself.
    fn clear_flag_if_ours(&mut self, id: StreamId) {
        let pod = self.streams[id].pod;
        let ours = self.pods[pod].flag == Some(FlagBy::Ours(id));
        let blind = self.mutated(Mutation::ThawsForeignFreeze) && self.pods[pod].flag.is_some();
        if ours || blind {
            self.clear_flag(id);
        }
    }

    /// The holder is killed in the pod.
    pub fn kill_holder(&mut self, pod: usize) -> bool {
        let found = (0..self.streams.len()).rev().find(|id| {
            let stream = &self.streams[*id];
            stream.pod == pod && stream.alive && stream.started && stream.kind == HoldKind::Commands
        });
        let Some(id) = found else { return false };
        self.streams[id].killed_at = Some(self.now);
        self.exit(id, Reason::HoldLost, "its holder was killed");
        if !self.mutated(Mutation::NoWatcher) {
            let within = self.rng.between(10 * MS, S);
            self.after(within, Happening::Process(id, Step::Watcher));
        }
        true
    }

    /// Something inside a process.
    pub fn process(&mut self, id: StreamId, step: Step) {
        match step {
            Step::Watcher => self.clear_flag_if_ours(id),
            Step::LeaseEnds(turn) => {
                let stream = &self.streams[id];
                if stream.alive && stream.server && stream.lease_turn == turn {
                    if self.mutated(Mutation::NoServerLease) {
                        return;
                    }
                    self.streams[id].server = false;
                    self.streams[id].server_ended_at.get_or_insert(self.now);
                    if self.streams[id].frozen_at.is_some() && self.streams[id].freed_at.is_none() {
                        self.coverage.outcome("server ended a silent session");
                    }
                    self.release(id);
                }
            }
            _ if !self.streams[id].alive => {}
            Step::Acquired { lease } => {
                if self.streams[id].leased() && !self.streams[id].server {
                    return self.exit(id, Reason::HoldLost, "its server ended the session");
                }
                self.streams[id].busy = false;
                self.streams[id].last_statement = self.now;
                let pod = self.streams[id].pod;
                match self.streams[id].kind {
                    HoldKind::Session => {
                        self.change_pod(pod, |pod| pod.stalled = false);
                        self.lock(id);
                    }
                    HoldKind::Commands | HoldKind::Direct => {
                        self.change_pod(pod, |pod| pod.flag = Some(FlagBy::Ours(id)));
                        self.froze(id);
                    }
                    HoldKind::Observer | HoldKind::None => {
                        self.streams[id].frozen_position = Some(self.pods[pod].position(self.now));
                    }
                }
                self.grant(id, lease);
                if self.streams[id].path_later {
                    self.tell_path(id);
                }
                let answer = self.answer(id);
                self.say(id, Word::Frozen { stage: 0, answer });
                self.pump(id);
            }
            Step::NotAcquired => {
                self.coverage.outcome("lock not acquired by the server");
                self.exit(id, Reason::LockNotAcquired, "the server gave up waiting for the lock");
            }
            Step::Deadline => {
                if !self.streams[id].thawing && !self.mutated(Mutation::NoHolderDeadline) {
                    self.coverage.outcome("holder let go at its deadline");
                    self.clear_flag_if_ours(id);
                    self.say(id, Word::Expired);
                    self.exit(id, Reason::HoldLost, "its holder reached its deadline");
                }
            }
            Step::Unused => {
                let stream = &self.streams[id];
                if stream.freeze_sent.is_none() || (stream.frozen_at.is_none() && !stream.busy) {
                    self.exit(id, Reason::HoldNotReady, "its holder waited too long for FREEZE");
                }
            }
            Step::Thaws { asked } => self.thaws(id, asked),
        }
    }

    /// Whether the replica that owns a stream has run without a break since its FREEZE.
    pub fn machine_ran_since_freeze(&self, id: StreamId) -> bool {
        let stream = &self.streams[id];
        let replica = &self.replicas[stream.replica];
        let sent = stream.freeze_sent.unwrap_or(self.now);
        replica.life == Life::Up
            && replica.incarnation == stream.incarnation
            && replica.running_since <= sent.saturating_sub(MS)
    }

    /// Whether its stream tasks have.
    pub fn streams_ran_since_freeze(&self, id: StreamId) -> bool {
        let stream = &self.streams[id];
        let replica = &self.replicas[stream.replica];
        let sent = stream.freeze_sent.unwrap_or(self.now);
        matches!(replica.life, Life::Up | Life::Hung)
            && replica.incarnation == stream.incarnation
            && replica.streams_since <= sent.saturating_sub(MS)
    }
}
