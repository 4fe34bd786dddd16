//! Exec streams and what travels on them; the processes at their ends are [`super::processes`].
//!
//! A stream delays and loses, and it splits a write; it never reorders what goes one way.

use std::collections::{BTreeMap, VecDeque};

use stillpoint_api::clock::Mono;
use stillpoint_api::evidence::HoldKind;

use super::faults::{Fault, Milestone};
use super::mutations::Mutation;
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
    pub(super) arrives_last: Micros,
    pub(super) returns_last: Micros,
    /// Longest time that a text was on its way beyond the usual.
    pub delay: Micros,
    pub(super) close_at: Option<Micros>,
    /// Whether the process lives.
    pub alive: bool,
    pub(super) started: bool,
    pub(super) server: bool,
    pub(super) reconnects: bool,
    pub(super) connection: u64,
    pub(super) lease_ignored: bool,
    pub(super) granted: Micros,
    pub(super) lease_turn: u64,
    /// When something was executed last.
    pub last_statement: Micros,
    pub(super) busy: bool,
    pub(super) stdin: VecDeque<Input>,
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
    pub(super) thaw_failures: u64,
    pub(super) thawing: bool,
    pub(super) path_later: bool,
    pub(super) elsewhere: bool,
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

    pub(super) fn say(&mut self, id: StreamId, word: Word) {
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
