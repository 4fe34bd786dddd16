//! The snapshot stack and a driver, with every behaviour that drivers were seen to have, and the ledger of its cuts.

use super::faults::{Fault, Milestone};
use super::replica::WALL_ORIGIN;
use super::world::{Happening, World};
use super::{MS, Micros, S};

/// Index of a snapshot.
pub type SnapshotId = usize;

/// How many commits lie between two flushes of an application whose commits are not durable.
const FLUSH_EVERY: u64 = 1000;
/// How old an older snapshot is that a driver gives for ours, in commits and in time.
const OLD_COMMITS: u64 = 30_000;
const OLD: Micros = 60 * S;

/// What the driver cut of one volume: the ground truth.
#[derive(Clone, Debug)]
pub struct Copied {
    /// The volume that was asked for.
    pub asked: usize,
    /// The volume that was cut.
    pub volume: usize,
    /// When the cut began.
    pub from: Micros,
    /// When it was over.
    pub to: Micros,
    /// The last commit when it began.
    pub first: u64,
    /// The last commit when it was over.
    pub last: u64,
    /// The last commit that is in the copy.
    pub durable: u64,
    /// UID of the pod that had the volume.
    pub pod_uid: String,
}

/// A VolumeSnapshotContent or VolumeGroupSnapshotContent.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// Its name.
    pub name: String,
    /// The snapshot that it names.
    pub snapshot: String,
    /// UID of that.
    pub snapshot_uid: String,
    /// The sidecar works on it.
    pub working: bool,
    /// Its handle.
    pub handle: Option<String>,
    /// The driver's cut time, nanoseconds.
    pub creation_time: Option<i64>,
    /// Whether it is ready.
    pub ready: bool,
    /// Its last error.
    pub error: Option<String>,
    /// Source volumes.
    pub volume_handles: Vec<String>,
}

/// A snapshot and its content.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Name of the object.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The Backup whose label it has.
    pub backup: usize,
    /// The attempt whose label it has.
    pub attempt: String,
    /// The volumes that were asked for.
    pub volumes: Vec<usize>,
    /// Whether it is a group.
    pub group: bool,
    /// Whether object or content are still there.
    pub exists: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether the driver works on it.
    pub in_progress: bool,
    /// The content, once there is one.
    pub content: Option<Content>,
    /// What was cut.
    pub copies: Vec<Copied>,
    /// When it was asked for.
    pub created_at: Micros,
    /// Whether it can be restored.
    pub usable: bool,
    old: bool,
}

/// Something in the storage system.
#[derive(Clone, Copy, Debug)]
pub enum SnapshotStep {
    /// The snapshot controller made the content.
    ContentMade,
    /// The driver is asked.
    Begins,
    /// The driver cuts.
    Cuts,
    /// A copy is complete.
    Copied,
    /// The driver answered.
    Answered,
    /// The driver failed, and may cut later.
    Fails {
        /// Whether it does.
        cuts_later: bool,
    },
    /// It is usable.
    Ready,
    /// Its handle changes.
    HandleChanges,
    /// A deletion goes on.
    Deletes,
}

/// The storage system.
#[derive(Clone, Debug, Default)]
pub struct Storage {
    busy_until: Micros,
}

/// What a request for a snapshot says.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its name.
    pub name: String,
    /// The Backup.
    pub backup: usize,
    /// The attempt.
    pub attempt: String,
    /// The volumes.
    pub volumes: Vec<usize>,
    /// Whether it is a group.
    pub group: bool,
}

impl World {
    /// An object is created. Answers its UID.
    pub fn create_snapshot(&mut self, asked: Asked, replica: usize) -> String {
        let id = self.snapshots.len();
        let uid = format!("snap-uid-{id}");
        self.note(|| format!("snapshot {id} {} is created for volumes {:?}", asked.name, asked.volumes));
        let pod = self.volumes[asked.volumes[0]].pod;
        self.snapshots.push(Snapshot {
            name: asked.name,
            uid: uid.clone(),
            backup: asked.backup,
            attempt: asked.attempt,
            volumes: asked.volumes,
            group: asked.group,
            exists: true,
            deleting: false,
            in_progress: false,
            content: None,
            copies: Vec::new(),
            created_at: self.now,
            usable: false,
            old: false,
        });
        self.milestone(Milestone::Posted, replica, Some(pod));
        if !self.happens(Fault::StackSilent, 300) {
            let takes = self.rng.between(5 * MS, 40 * MS);
            self.after(takes, Happening::Storage(id, SnapshotStep::ContentMade));
        }
        uid
    }

    /// Something in the storage system.
    pub fn storage_step(&mut self, id: SnapshotId, step: SnapshotStep) {
        match step {
            SnapshotStep::Deletes => return self.deletes(id),
            _ if !self.snapshots[id].exists => return,
            SnapshotStep::ContentMade => {
                if self.snapshots[id].deleting {
                    return;
                }
                self.content_made(id);
            }
            SnapshotStep::Begins => self.begins(id),
            SnapshotStep::Cuts => self.cuts(id),
            SnapshotStep::Copied => self.copied(id),
            SnapshotStep::Answered => self.answered_by_driver(id),
            SnapshotStep::Fails { cuts_later } => {
                self.content(id, |content| content.error = Some("the driver refused".to_owned()));
                if cuts_later {
                    let takes = self.faults.rng(Fault::LateCut).between(S, 40 * S);
                    self.after(takes, Happening::Storage(id, SnapshotStep::Cuts));
                } else {
                    self.snapshots[id].in_progress = false;
                }
            }
            SnapshotStep::Ready => {
                self.snapshots[id].usable = true;
                self.content(id, |content| content.ready = true);
            }
            SnapshotStep::HandleChanges => {
                self.content(id, |content| content.handle = Some(format!("{}-later", content.name)));
            }
        }
        if self.snapshots[id].deleting && !self.snapshots[id].in_progress {
            self.deletes(id);
        }
    }

    fn content_made(&mut self, id: SnapshotId) {
        let snapshot = &self.snapshots[id];
        let mut handles: Vec<String> =
            snapshot.volumes.iter().map(|volume| self.volumes[*volume].handle.clone()).collect();
        if self.happens(Fault::WrongVolume, 300) {
            handles[0] = "vol-of-somebody-else".to_owned();
        }
        let snapshot = &mut self.snapshots[id];
        snapshot.content = Some(Content {
            name: format!("content-{id}"),
            snapshot: snapshot.name.clone(),
            snapshot_uid: snapshot.uid.clone(),
            volume_handles: handles,
            ..Content::default()
        });
        self.show(id);
        let takes = self.rng.between(2 * MS, 15 * MS);
        self.after(takes, Happening::Storage(id, SnapshotStep::Begins));
    }

    fn begins(&mut self, id: SnapshotId) {
        self.snapshots[id].in_progress = true;
        self.content(id, |content| content.working = true);
        if self.happens(Fault::FinalError, 250) {
            let takes = self.rng.between(5 * MS, 2 * S);
            self.after(takes, Happening::Storage(id, SnapshotStep::Fails { cuts_later: false }));
            return;
        }
        if self.happens(Fault::LateCut, 250) {
            let takes = self.rng.between(5 * MS, 2 * S);
            self.after(takes, Happening::Storage(id, SnapshotStep::Fails { cuts_later: true }));
            return;
        }
        self.snapshots[id].old = self.happens(Fault::OldCut, 300);
        let mut takes = self.rng.between(5 * MS, 40 * MS);
        if self.happens(Fault::SlowCut, 300) {
            takes += self.faults.rng(Fault::SlowCut).below(40 * S);
        }
        if self.scenario.driver.serialised {
            self.coverage.fault(Fault::Serialised);
            takes += self.storage.busy_until.saturating_sub(self.now);
            self.storage.busy_until = self.now + takes + 2 * S;
        }
        if self.scenario.driver.ok_before_cut {
            self.coverage.fault(Fault::OkBeforeCut);
            self.after(5 * MS, Happening::Storage(id, SnapshotStep::Answered));
            takes += self.rng.between(50 * MS, 4 * S);
        }
        self.after(takes, Happening::Storage(id, SnapshotStep::Cuts));
    }

    fn cuts(&mut self, id: SnapshotId) {
        let asked = self.snapshots[id].volumes.clone();
        let named = self.snapshots[id].content.as_ref().map(|content| content.volume_handles.clone());
        let wrong = named.is_some_and(|handles| handles[0] == "vol-of-somebody-else");
        let sequential = asked.len() > 1 && !self.scenario.driver.write_order;
        if sequential {
            self.coverage.fault(Fault::SequentialGroup);
        }
        let mut at = self.now;
        let copies = !self.scenario.driver.atomic;
        if copies {
            self.coverage.fault(Fault::CopyMode);
        }
        for (index, volume) in asked.iter().enumerate() {
            let actual = if wrong && index == 0 { usize::MAX } else { *volume };
            let takes = if copies { self.rng.between(100 * MS, 3 * S) } else { 0 };
            self.snapshots[id].copies.push(Copied {
                asked: *volume,
                volume: actual,
                from: at,
                to: at + takes,
                first: 0,
                last: 0,
                durable: 0,
                pod_uid: String::new(),
            });
            at += takes + if sequential { self.rng.between(5 * MS, 200 * MS) } else { 0 };
        }
        // Each copy's ends are read when they come.
        let mut ends: Vec<Micros> =
            self.snapshots[id].copies.iter().flat_map(|copy| [copy.from, copy.to]).collect();
        ends.sort_unstable();
        ends.dedup();
        for end in ends {
            self.after(end - self.now, Happening::Storage(id, SnapshotStep::Copied));
        }
    }

    fn copied(&mut self, id: SnapshotId) {
        let now = self.now;
        for index in 0..self.snapshots[id].copies.len() {
            let copy = &self.snapshots[id].copies[index];
            let (asked, from, to) = (copy.asked, copy.from, copy.to);
            let pod = &self.pods[self.volumes[asked].pod];
            let position = pod.position(now);
            let durable = if self.scenario.apps[pod.app].durable {
                position
            } else {
                self.coverage.fault(Fault::Undurable);
                position / FLUSH_EVERY * FLUSH_EVERY
            };
            let uid = pod.uid.clone();
            let copy = &mut self.snapshots[id].copies[index];
            if from == now {
                copy.first = position;
                copy.durable = durable;
                copy.pod_uid = uid;
            }
            if to == now {
                copy.last = position;
            }
        }
        let over = self.snapshots[id].copies.iter().map(|copy| copy.to).max().unwrap_or(0);
        if over > now {
            return;
        }
        if self.snapshots[id].old {
            for copy in &mut self.snapshots[id].copies {
                copy.first = copy.first.saturating_sub(OLD_COMMITS);
                copy.last = copy.first;
                copy.durable = copy.first;
                copy.from = copy.from.saturating_sub(OLD);
                copy.to = copy.from;
            }
        }
        let positions: Vec<u64> = self.snapshots[id].copies.iter().map(|copy| copy.first).collect();
        self.note(|| format!("snapshot {id} is cut at commits {positions:?}"));
        let pod = self.volumes[self.snapshots[id].volumes[0]].pod;
        let replica = self.api.backups[self.snapshots[id].backup].last_replica;
        self.milestone(Milestone::Cut, replica, Some(pod));
        if self.scenario.driver.ok_before_cut {
            self.finish(id);
        } else {
            let takes = self.rng.between(3 * MS, 30 * MS);
            self.after(takes, Happening::Storage(id, SnapshotStep::Answered));
        }
    }

    fn answered_by_driver(&mut self, id: SnapshotId) {
        let cut = self.snapshots[id].copies.first().map_or(self.now, |copy| copy.from);
        let cut = if self.snapshots[id].old { WALL_ORIGIN + self.now - OLD } else { WALL_ORIGIN + cut };
        let nanos = i64::try_from(cut * 1000).unwrap_or(0);
        let truncated = if self.rng.chance(500) { nanos / 1_000_000_000 * 1_000_000_000 } else { nanos };
        let mut creation_time = Some(truncated);
        let mut handle = format!("handle-{id}");
        if self.snapshots[id].old {
            if self.rng.chance(400) {
                // Its old handle is one that every watch has shown, and it tells no time.
                handle = format!("old-handle-{}", self.snapshots[id].volumes[0]);
                creation_time = None;
            }
        } else if self.happens(Fault::NoCutTime, 500) {
            creation_time = if self.faults.rng(Fault::NoCutTime).chance(500) { None } else { Some(0) };
        }
        let early = self.scenario.driver.ok_before_cut;
        self.content(id, |content| {
            content.handle = Some(handle);
            content.creation_time = creation_time;
            content.error = None;
        });
        // An older snapshot that tells no time is told by its handle alone (docs/testing.md, what the simulation does not cover).
        let told_by_its_handle = self.snapshots[id].old && creation_time.is_none();
        if self.happens(Fault::StaleHandle, 250) && !told_by_its_handle {
            let takes = self.faults.rng(Fault::StaleHandle).between(MS, 400 * MS);
            self.after(takes, Happening::Storage(id, SnapshotStep::HandleChanges));
        }
        if !early {
            self.finish(id);
        }
    }

    fn finish(&mut self, id: SnapshotId) {
        self.snapshots[id].in_progress = false;
        if self.happens(Fault::NeverReady, 250) {
            return;
        }
        let mut takes = self.rng.below(20 * MS);
        if self.happens(Fault::ReadyLate, 300) {
            takes += self.faults.rng(Fault::ReadyLate).between(S, 600 * S);
        }
        if self.snapshots[id].group && self.happens(Fault::GroupNotExact, 400) {
            self.snapshots[id].copies.pop();
        }
        self.after(takes, Happening::Storage(id, SnapshotStep::Ready));
    }

    fn content(&mut self, id: SnapshotId, change: impl FnOnce(&mut Content)) {
        if let Some(content) = &mut self.snapshots[id].content {
            change(content);
            self.show(id);
        }
    }

    /// Every watch shows a content as it is now.
    fn show(&mut self, id: SnapshotId) {
        let Some(content) = self.snapshots[id].content.clone() else { return };
        for replica in 0..self.replicas.len() {
            if self.replicas[replica].watch_broken_until > self.now {
                continue;
            }
            let incarnation = self.replicas[replica].incarnation;
            let takes = self.rng.between(MS, 8 * MS);
            self.after(takes, Happening::Watch(replica, incarnation, Box::new(content.clone())));
        }
    }

    /// A deletion is asked for.
    pub fn delete_snapshot(&mut self, id: SnapshotId) {
        if self.snapshots[id].exists && !self.snapshots[id].deleting {
            self.snapshots[id].deleting = true;
            let takes = self.rng.between(20 * MS, S);
            self.after(takes, Happening::Storage(id, SnapshotStep::Deletes));
        }
    }

    fn deletes(&mut self, id: SnapshotId) {
        // A content on which the driver works is not let go: what it cuts later would be nobody's.
        if !self.snapshots[id].in_progress {
            self.note(|| format!("snapshot {id} is gone"));
            self.snapshots[id].exists = false;
        }
    }
}
