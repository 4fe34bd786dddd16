//! The holder at the end of a stream, and the flag in the pod that it sets and clears.

use stillpoint_api::evidence::HoldKind;

use super::exec::{Input, StreamId};
use super::faults::Fault;
use super::mutations::Mutation;
use super::pod::FlagBy;
use super::processes::Step;
use super::world::{Happening, World};
use super::{MS, S};
use crate::run::{Reason, Word};

impl World {
    pub(super) fn holder_reads(&mut self, id: StreamId, input: Input) {
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

    pub(super) fn thaws(&mut self, id: StreamId, asked: bool) {
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
    pub(super) fn clear_flag_if_ours(&mut self, id: StreamId) {
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
}
