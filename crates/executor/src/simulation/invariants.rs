//! What must hold after every event, whatever happened (docs/design/freeze.md §3 to §5).

use stillpoint_api::backup::{BackupStatus, JournalKind, Phase};
use stillpoint_api::evidence::HoldKind;

use super::exec::StreamId;
use super::ownership::Timing;
use super::pod::FlagBy;
use super::replica::Life;
use super::runtime::micros;
use super::world::World;
use super::{MS, Micros, S};
use crate::run::THAW_RESERVE;

/// What a text takes on its way when nothing is slow, there and into effect.
const USUAL: Micros = 60 * MS;
/// A killed controller's sockets are closed, and the sessions end, within this time (docs/design/freeze.md §9).
const AFTER_KILL: Micros = S;
/// Past the promise every end has had its time (§3).
const PAST_PROMISE: Micros = 5 * S;
/// Longest time from a run's end of faults to its own end, sweeps included.
const CALM: Micros = 40 * 60 * S;

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which one.
    pub invariant: &'static str,
    /// When.
    pub at: Micros,
    /// What was seen.
    pub detail: String,
}

impl World {
    /// Keeps the first broken invariant.
    pub fn broken(&mut self, invariant: &'static str, detail: String) {
        self.note(|| format!("BROKEN {invariant}: {detail}"));
        self.violation.get_or_insert(Violation { invariant, at: self.now, detail });
    }

    /// After every event: nobody is frozen past what was promised.
    pub fn check(&mut self) {
        for pod in 0..self.pods.len() {
            if self.pods[pod].frozen_since.is_none() {
                continue;
            }
            let mut held: Vec<StreamId> = self.pods[pod].locks.clone();
            if let Some(FlagBy::Ours(stream)) = self.pods[pod].flag {
                held.push(stream);
            }
            for stream in held {
                let (until, end) = self.free_by(stream);
                if self.now > until {
                    let detail = format!("pod {pod}, stream {stream}: {end} is {} µs over", self.now - until);
                    self.broken("no application is frozen past the promise", detail);
                    return;
                }
            }
        }
    }

    /// When a frozen application must be free, and which end of §3 says so: the earliest of those that still work.
    fn free_by(&self, id: StreamId) -> (Micros, &'static str) {
        let stream = &self.streams[id];
        let sent = stream.freeze_sent.unwrap_or(self.now);
        let max_hold = micros(self.scenario.max_hold);
        // What the path delayed and what failing thaws took was not ours; both were measured.
        let slack = stream.delay + stream.thaw_extra + USUAL;
        let mut ends = vec![(sent + max_hold + PAST_PROMISE + slack, "the promise")];
        let frozen = stream.frozen_at.unwrap_or(self.now);
        if stream.leased() {
            ends.push((stream.last_statement.max(frozen) + stream.granted() + MS, "the server's lease"));
        }
        if let Some(killed) = stream.killed_at {
            ends.push((killed + S + slack, "the watcher of a killed holder"));
        }
        // A hung freeze command is ended by its deadline alone.
        if !stream.cut && !stream.hung {
            if let Some(orphaned) = stream.orphaned_at {
                ends.push((orphaned.max(frozen) + AFTER_KILL + slack, "the end of input"));
            }
            if self.streams_ran_since_freeze(id) {
                ends.push((sent.max(self.t0_of(id)) + max_hold + slack, "the stream's own timer"));
            }
            if self.machine_ran_since_freeze(id) && self.one_order() {
                let budget = max_hold - micros(THAW_RESERVE);
                ends.push((sent + budget + slack, "the machine's timer"));
            }
        }
        // What a killed holder was doing is its watcher's business from then on.
        let watched = stream.killed_at.map_or(0, |killed| killed + S + slack);
        let (until, end) = ends.into_iter().min().unwrap_or((u64::MAX, ""));
        (until.max(watched), end)
    }

    fn t0_of(&self, id: StreamId) -> Micros {
        self.streams[id].freeze_sent.unwrap_or(self.now)
    }

    /// Holds of several orders are let go one after the other; the machine's own bound is then that of the streams.
    fn one_order(&self) -> bool {
        self.scenario.apps.iter().all(|app| app.order == self.scenario.apps[0].order)
    }

    /// A freeze of ours begins: no other one of ours is there.
    pub fn check_sole_holder(&mut self, id: StreamId) {
        let pod = self.streams[id].pod;
        let backup = self.streams[id].backup;
        let others = self.streams.iter().enumerate().any(|(other, stream)| {
            other != id
                && stream.pod == pod
                && stream.frozen_at.is_some()
                && stream.freed_at.is_none()
                && (stream.backup != backup || stream.attempt != self.streams[id].attempt)
        });
        if others {
            self.broken("one run at a time holds an application", format!("pod {pod}, stream {id}"));
        }
    }

    /// A FREEZE is written: it is journalled, and the claim was renewed lately enough.
    pub fn check_freeze_sent(&mut self, id: StreamId) {
        let (backup, replica) = (self.streams[id].backup, self.streams[id].replica);
        let attempt = self.streams[id].attempt.clone();
        let journal = &self.api.backups[backup].status.journal;
        let covered =
            journal.iter().any(|entry| entry.entry == JournalKind::Freezing && entry.nonce == attempt);
        if !covered {
            self.broken("nothing is frozen before Freezing is stored", format!("attempt {attempt}"));
        }
        self.check_fence(replica, "FREEZE");
    }

    /// A snapshot is asked for.
    pub fn check_post(&mut self, replica: usize, streams: &[StreamId]) {
        self.check_fence(replica, "a snapshot request");
        let budget = micros(self.scenario.max_hold - THAW_RESERVE);
        let t0 = streams.iter().filter_map(|id| self.streams[*id].freeze_sent).min();
        if t0.is_some_and(|t0| self.now > t0 + budget + MS) {
            self.broken("nothing is cut after the cut deadline", format!("replica {replica}"));
        }
    }

    fn check_fence(&mut self, replica: usize, what: &str) {
        let half = micros(Timing::default().lease) / 2;
        let behind = self.replicas[replica].renewed.is_none_or(|renewed| self.now > renewed + half);
        if behind {
            self.broken("nothing is written behind the fence", format!("replica {replica}: {what}"));
        }
    }

    /// A status is about to be stored: the journal only advances.
    pub fn check_journal(&mut self, backup: usize, new: &BackupStatus) {
        let old = self.api.backups[backup].status.clone();
        let grows =
            new.journal.len() >= old.journal.len() && new.journal[..old.journal.len()] == old.journal[..];
        if !grows || new.attempt < old.attempt {
            self.broken("the journal only advances", format!("Backup {backup}"));
        }
        let over = |phase| matches!(phase, Phase::Succeeded | Phase::Failed);
        if over(old.phase) && (new.phase != old.phase || new.journal != old.journal) {
            self.broken("a run that is over stays as it ended", format!("Backup {backup}"));
        }
        let last = |attempt: u32| {
            let entries = new.journal.iter().rev();
            entries.into_iter().find(|entry| entry.attempt == attempt).map(|entry| entry.entry)
        };
        if new.attempt > old.attempt && old.attempt > 0 && last(old.attempt) == Some(JournalKind::Freezing) {
            self.broken(
                "an attempt begins only after the one before was journalled",
                format!("Backup {backup}"),
            );
        }
        if new.phase == Phase::Failed && last(new.attempt) == Some(JournalKind::Freezing) {
            self.broken(
                "a run fails only after its freeze was journalled as over",
                format!("Backup {backup}"),
            );
        }
        if new.phase == Phase::Succeeded && last(new.attempt) != Some(JournalKind::Thawed) {
            self.broken("a point is kept only of a journalled thaw", format!("Backup {backup}"));
        }
        for entry in &new.journal[old.journal.len().min(new.journal.len())..] {
            let earlier = old.journal.iter().filter(|one| one.attempt == entry.attempt);
            let kinds: Vec<JournalKind> = earlier.map(|one| one.entry).collect();
            let right = match entry.entry {
                JournalKind::Freezing => kinds.is_empty(),
                JournalKind::Thawed => kinds == [JournalKind::Freezing],
                JournalKind::Aborted => kinds.is_empty() || kinds == [JournalKind::Freezing],
            };
            if !right {
                self.broken(
                    "an attempt is journalled once: Freezing, then Thawed or Aborted",
                    format!("{kinds:?} then {:?}", entry.entry),
                );
            }
        }
    }

    /// Whether nothing more can happen that matters.
    pub fn over(&self) -> bool {
        if self.now < self.faults.calm_at && self.api.backups.iter().any(|one| !one.created) {
            return false;
        }
        if !self.api.backups.iter().all(super::api::Stored::finished) {
            return false;
        }
        let clean = self.leftovers().is_none();
        clean || self.now > self.quiet_since() + CALM
    }

    fn quiet_since(&self) -> Micros {
        self.faults.calm_at
    }

    /// What is left that must not be.
    fn leftovers(&self) -> Option<(&'static str, String)> {
        for (pod, one) in self.pods.iter().enumerate() {
            let ours = matches!(one.flag, Some(FlagBy::Ours(_))) || !one.locks.is_empty();
            if ours {
                return Some(("nothing stays frozen", format!("pod {pod}")));
            }
        }
        for (id, snapshot) in self.snapshots.iter().enumerate().filter(|(_, one)| one.exists) {
            let stored = &self.api.backups[snapshot.backup];
            let members = &stored.status.members;
            let member = members.iter().any(|member| {
                member.volume_snapshot_uid.as_ref() == Some(&snapshot.uid)
                    || member.group.as_ref().and_then(|group| group.uid.as_ref()) == Some(&snapshot.uid)
            });
            if stored.gone || stored.status.phase != Phase::Succeeded || !member {
                return Some(("no snapshot of an abandoned attempt is left", format!("snapshot {id}")));
            }
        }
        if self.replicas.iter().any(|replica| replica.life == Life::Up) && !self.api.locks.is_empty() {
            return Some(("no workload lock is left", format!("{:?}", self.api.locks)));
        }
        None
    }

    /// When everything is over.
    pub fn check_end(&mut self) {
        if let Some((invariant, detail)) = self.leftovers() {
            self.broken(invariant, detail);
        }
        for id in 0..self.streams.len() {
            let stream = &self.streams[id];
            if stream.kind == HoldKind::Commands && stream.thaws > 1 {
                self.broken("a thaw is effective exactly once", format!("stream {id}"));
            }
        }
    }
}
