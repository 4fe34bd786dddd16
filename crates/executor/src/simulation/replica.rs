//! A replica of the controller: its process with its clocks, its end and its return.
//!
//! What the process does is in [`super::tasks`], what it sees of contents in [`super::watches`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use stillpoint_api::clock::Mono;

use super::faults::Rng;
use super::ownership::{OwnLease, Peers, Timing};
use super::watches::Subscription;
use super::world::{Happening, TaskId, World};
use super::{Micros, S};
use crate::run::{Abort, Event, Reason};

/// Wall clock at the beginning of the world, microseconds since 1970.
pub const WALL_ORIGIN: Micros = 1_790_000_000_000_000;

/// Index of a mailbox.
pub type MailboxId = usize;

/// Whether a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It runs.
    Up,
    /// Its machine hangs; its streams' own tasks go on.
    Hung,
    /// It is stopped.
    Stopped,
    /// It does not exist.
    Down,
}

/// What arrives for one attempt.
#[derive(Clone, Debug)]
pub struct Mailbox {
    /// Its replica.
    pub replica: usize,
    /// Its Backup.
    pub backup: usize,
    /// Whether the attempt listens.
    pub open: bool,
    /// Events of sessions, pods and requests.
    pub inbox: VecDeque<Event>,
    /// Events of the watch on contents.
    pub contents: VecDeque<Event>,
    /// Why the run is to stop.
    pub stop: Option<Abort>,
    /// Who waits for it.
    pub task: Option<TaskId>,
}

/// A replica and its process.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Whether its process runs.
    pub life: Life,
    /// Which process it is.
    pub incarnation: u32,
    /// Identity in claims and journals.
    pub identity: String,
    mono_offset: Micros,
    /// Its wall clock is wrong by so much, in microseconds.
    pub wall_offset: i64,
    /// The machine has run without a break since.
    pub running_since: Micros,
    /// The streams' tasks have.
    pub streams_since: Micros,
    /// Tasks that could go on.
    pub parked: Vec<TaskId>,
    /// Events that came while it was stopped.
    pub kept: Vec<Happening>,
    /// Its renewals are lost until then.
    pub starved_until: Micros,
    /// The watch on contents is broken until then.
    pub watch_broken_until: Micros,
    /// When the request of the last confirmed renewal was sent: true time.
    pub renewed: Option<Micros>,
    /// Told to stop.
    pub stopping: bool,
    pub(super) handles: BTreeMap<String, String>,
    pub(super) subscriptions: Vec<Subscription>,
    pub(super) peers: Peers,
    pub(super) own: OwnLease,
    pub(super) working: BTreeSet<usize>,
    pub(super) windows: usize,
}

impl Replica {
    /// A replica that does not run yet.
    pub fn new(index: usize, rng: &mut Rng) -> Self {
        Self {
            life: Life::Down,
            incarnation: 0,
            identity: format!("r{index}_0"),
            mono_offset: rng.between(S, 100_000 * S),
            wall_offset: i64::try_from(rng.below(800_000)).unwrap_or(0) - 400_000,
            running_since: 0,
            streams_since: 0,
            parked: Vec::new(),
            kept: Vec::new(),
            starved_until: 0,
            watch_broken_until: 0,
            renewed: None,
            stopping: false,
            handles: BTreeMap::new(),
            subscriptions: Vec::new(),
            peers: Peers::default(),
            own: OwnLease::default(),
            working: BTreeSet::new(),
            windows: 0,
        }
    }

    /// Its monotonic clock.
    pub fn mono(&self, now: Micros) -> Mono {
        Mono::from_origin(Duration::from_micros(now + self.mono_offset))
    }

    /// True time of an instant of its clock.
    pub fn true_time(&self, at: Mono) -> Micros {
        u64::try_from(at.since_origin().as_micros()).unwrap_or(u64::MAX).saturating_sub(self.mono_offset)
    }

    /// Until when FREEZE and POST may be written.
    pub fn fence(&self, timing: &Timing) -> Option<Mono> {
        self.own.fence(timing.lease)
    }
}

impl World {
    /// A process starts.
    pub fn start(&mut self, replica: usize) {
        let now = self.now;
        let one = &mut self.replicas[replica];
        if one.life != Life::Down {
            return;
        }
        one.incarnation += 1;
        one.identity = format!("r{replica}_{}", one.incarnation);
        one.life = Life::Up;
        one.running_since = now;
        one.streams_since = now;
        one.stopping = false;
        one.renewed = None;
        one.own = OwnLease::default();
        one.peers = Peers::default();
        one.working.clear();
        one.windows = 0;
        one.subscriptions.clear();
        one.handles.clear();
        one.parked.clear();
        one.kept.clear();
        // The first list shows what there was before, and what is there now.
        for volume in 0..self.volumes.len() {
            let handle = format!("old-handle-{volume}");
            self.replicas[replica].handles.insert(format!("old-content-{volume}"), handle);
        }
        self.relist(replica);
        self.starting.push(replica);
        self.note(|| format!("replica {replica} starts"));
    }

    /// A process is killed; the kernel closes its sockets. Another one is started later.
    pub fn crash(&mut self, replica: usize, lasts: Micros) -> bool {
        if self.replicas[replica].life == Life::Down {
            return false;
        }
        self.note(|| format!("replica {replica} is killed"));
        self.replicas[replica].life = Life::Down;
        self.orphan_streams(replica);
        for mailbox in &mut self.mailboxes {
            if mailbox.replica == replica {
                mailbox.open = false;
            }
        }
        self.after(lasts.max(S), Happening::Start(replica));
        true
    }

    /// A process is stopped, or its machine hangs.
    pub fn stop(&mut self, replica: usize, life: Life, lasts: Micros) -> bool {
        if self.replicas[replica].life != Life::Up {
            return false;
        }
        self.note(|| format!("replica {replica} is {life:?} for {} s", lasts / S));
        self.replicas[replica].life = life;
        let incarnation = self.replicas[replica].incarnation;
        self.after(lasts, Happening::Resume(replica, incarnation));
        true
    }

    /// It goes on: what came meanwhile is there at once, in any order of its tasks.
    pub fn resume(&mut self, replica: usize, incarnation: u32) {
        let now = self.now;
        let one = &mut self.replicas[replica];
        if one.incarnation != incarnation || !matches!(one.life, Life::Stopped | Life::Hung) {
            return;
        }
        if one.life == Life::Stopped {
            one.streams_since = now;
        }
        one.running_since = now;
        one.life = Life::Up;
        let kept = std::mem::take(&mut one.kept);
        let parked = std::mem::take(&mut one.parked);
        self.note(|| format!("replica {replica} goes on"));
        let streams_first = self.rng.chance(500);
        let (tasks, others): (Vec<_>, Vec<_>) =
            kept.into_iter().partition(|what| matches!(what, Happening::Task(..)));
        let (first, then) = if streams_first { (tasks, others) } else { (others, tasks) };
        for what in first.into_iter().chain(then) {
            self.take(what);
        }
        self.ready.extend(parked);
    }

    /// The process is asked to end; it thaws first.
    pub fn shutdown(&mut self, replica: usize) -> bool {
        if self.replicas[replica].life == Life::Down || self.replicas[replica].stopping {
            return false;
        }
        self.replicas[replica].stopping = true;
        for mailbox in 0..self.mailboxes.len() {
            if self.mailboxes[mailbox].replica == replica && self.mailboxes[mailbox].open {
                let why = Abort::new(Reason::Shutdown, "the controller was stopped");
                self.stop_mailbox(mailbox, why);
            }
        }
        // Whatever is not done by then ends with the process.
        self.after(25 * S, Happening::Wake(usize::MAX));
        true
    }

    /// Tells an attempt that its run is to end.
    pub fn stop_mailbox(&mut self, mailbox: MailboxId, why: Abort) {
        let one = &mut self.mailboxes[mailbox];
        if one.open && one.stop.is_none() {
            one.stop = Some(why);
            self.ready.extend(one.task);
        }
    }

    /// An event for an attempt.
    pub fn tell(&mut self, mailbox: MailboxId, event: Event) {
        let one = &mut self.mailboxes[mailbox];
        if one.open {
            one.inbox.push_back(event);
            self.ready.extend(one.task);
        }
    }

    /// Ends what an attempt subscribed to.
    pub fn unsubscribe(&mut self, mailbox: MailboxId) {
        let replica = self.mailboxes[mailbox].replica;
        self.replicas[replica].subscriptions.retain(|of| of.mailbox != mailbox);
        self.mailboxes[mailbox].open = false;
        self.replicas[replica].windows = self.replicas[replica].windows.saturating_sub(1);
    }

    /// A mailbox for an attempt.
    pub fn open_mailbox(&mut self, replica: usize, backup: usize) -> MailboxId {
        let stop = if self.replicas[replica].stopping {
            Some(Abort::new(Reason::Shutdown, "the controller was stopped"))
        } else if self.api.backups[backup].deleting {
            Some(Abort::new(Reason::Cancelled, "the Backup was deleted"))
        } else {
            None
        };
        self.replicas[replica].windows += 1;
        self.mailboxes.push(Mailbox {
            replica,
            backup,
            open: true,
            inbox: VecDeque::new(),
            contents: VecDeque::new(),
            stop,
            task: None,
        });
        self.mailboxes.len() - 1
    }
}
