//! The processes at the ends of streams, whatever they are: [`super::clients`] or [`super::holders`].
//!
//! A process executes what it reads in order. What it does when its input ends, its lease runs out or it is killed is
//! docs/design/freeze.md §2.

use stillpoint_api::evidence::HoldKind;

use super::exec::{Input, StreamId};
use super::mutations::Mutation;
use super::pod::FlagBy;
use super::world::{Happening, World};
use super::{MS, Micros};
use crate::run::{Reason, Word};

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

impl World {
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
    pub(super) fn exit(&mut self, id: StreamId, reason: Reason, why: &'static str) {
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
}
