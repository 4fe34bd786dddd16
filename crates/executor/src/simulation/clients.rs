//! Database clients at the ends of streams: what they read, what their server grants them.

use std::collections::BTreeMap;

use stillpoint_api::evidence::{HoldAnswer, Offset};

use super::exec::{Input, StreamId};
use super::faults::Fault;
use super::processes::Step;
use super::world::{Happening, World};
use super::{MS, Micros, S};
use crate::run::{Reason, Word};

impl World {
    pub(super) fn session_reads(&mut self, id: StreamId, input: Input) {
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
    pub(super) fn grant(&mut self, id: StreamId, lease: Micros) {
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

    pub(super) fn tell_facts(&mut self, id: StreamId) {
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

    pub(super) fn tell_path(&mut self, id: StreamId) {
        let pod = self.streams[id].pod;
        let path =
            if self.happens(Fault::PathElsewhere, 500) { "/elsewhere" } else { self.pods[pod].data_path };
        self.say(id, Word::Evidence { key: "datadir".to_owned(), value: path.to_owned() });
    }

    pub(super) fn answer(&mut self, id: StreamId) -> HoldAnswer {
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
}
