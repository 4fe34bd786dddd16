//! A replica of the controller: its process, its claims, and the work on one Backup from claim to its end.
//!
//! The work is written as the product's own is (`backup_run`), with the same decisions: [`crate::recovery::row`], claims,
//! workload locks. Its attempts are in [`super::attempt`].

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use stillpoint_api::backup::{BackupStatus, JournalEntry, JournalKind, Phase};
use stillpoint_api::clock::Mono;
use stillpoint_api::evidence::{Consistency, HoldKind};

use super::api::{Answer, Request};
use super::attempt;
use super::faults::{Milestone, Rng};
use super::journal::{Journal, JournalFailure};
use super::mutations::Mutation;
use super::ownership::{
    Claim, Decision, OwnLease, Peers, Sighting, Timing, decide, decide_lock, holder_ends, stray,
};
use super::resolve;
use super::runtime::Handle;
use super::settle;
use super::storage::Content;
use super::world::{Happening, TaskId, Work, World};
use super::{Micros, S};
use crate::recovery::{Row, row};
use crate::run::{Abort, CutId, CutSeen, End, Event, Reason};
use stillpoint_api::evidence::CutSignal;

/// Wall clock at the beginning of the world, microseconds since 1970.
pub const WALL_ORIGIN: Micros = 1_790_000_000_000_000;

/// Pause before another attempt.
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(5);
/// How long snapshots of a given-up attempt are waited for.
const CLEANUP_PATIENCE: Duration = Duration::from_secs(60);
/// How often a slot is tried.
const MAX_ATTEMPTS: u32 = 2;
/// No attempt starts later than this after the first.
const RUN_DEADLINE: Duration = Duration::from_secs(15 * 60);

/// Why a try failed, and whether another one may pass.
type Failure = (&'static str, bool);

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

/// Who follows a snapshot.
#[derive(Clone, Debug)]
struct Subscription {
    snapshot: String,
    signal: CutSignal,
    seen: bool,
    mailbox: MailboxId,
    cut: CutId,
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
    handles: BTreeMap<String, String>,
    subscriptions: Vec<Subscription>,
    peers: Peers,
    own: OwnLease,
    working: BTreeSet<usize>,
    windows: usize,
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

    /// The watch on contents breaks, and shows the present state again later.
    pub fn break_watch(&mut self, replica: usize, lasts: Micros) -> bool {
        self.replicas[replica].watch_broken_until = self.now + lasts;
        let incarnation = self.replicas[replica].incarnation;
        self.after(lasts, Happening::Relist(replica, incarnation));
        true
    }

    /// A broken watch is open again: it lists what there is.
    pub fn listed_again(&mut self, replica: usize, incarnation: u32) {
        for id in 0..self.snapshots.len() {
            if self.snapshots[id].exists
                && let Some(content) = self.snapshots[id].content.clone()
            {
                self.watch(replica, incarnation, &content);
            }
        }
    }

    fn relist(&mut self, replica: usize) {
        let shown: Vec<(String, String)> = self
            .snapshots
            .iter()
            .filter(|one| one.exists)
            .filter_map(|one| one.content.as_ref())
            .filter_map(|content| Some((content.name.clone(), content.handle.clone()?)))
            .collect();
        self.replicas[replica].handles.extend(shown);
    }

    /// Follows a snapshot before it is asked for.
    pub fn subscribe(
        &mut self,
        replica: usize,
        snapshot: &str,
        signal: CutSignal,
        mailbox: MailboxId,
        cut: CutId,
    ) {
        let subscription = Subscription { snapshot: snapshot.to_owned(), signal, seen: false, mailbox, cut };
        self.replicas[replica].subscriptions.push(subscription);
    }

    /// The watch shows a content: what the product's `contents` makes of it.
    pub fn watch(&mut self, replica: usize, incarnation: u32, content: &Content) {
        if self.replicas[replica].incarnation != incarnation || self.replicas[replica].life == Life::Down {
            return;
        }
        let one = &mut self.replicas[replica];
        let known = one.handles.get(&content.name).cloned();
        let shown_elsewhere = content.handle.as_ref().is_some_and(|handle| {
            one.handles.iter().any(|(name, other)| *name != content.name && other == handle)
        });
        let mut news = Vec::new();
        let mut waits = false;
        for of in one.subscriptions.iter_mut().filter(|of| of.snapshot == content.snapshot) {
            let status = content.handle.is_some() || content.error.is_some();
            if !of.seen && (content.working || status) {
                of.seen = true;
                news.push((of.mailbox, Event::ContentSeen { cut: of.cut }));
            }
            waits |= of.signal == CutSignal::Ready && !content.ready;
            match &content.handle {
                Some(handle) if known.as_ref() != Some(handle) && !shown_elsewhere => {
                    if of.signal == CutSignal::Handle || content.ready {
                        let seen = CutSeen {
                            snapshot_uid: content.snapshot_uid.clone(),
                            content: content.name.clone(),
                            handle: handle.clone(),
                            creation_time: content.creation_time,
                            volume_handles: content.volume_handles.clone(),
                            ..CutSeen::default()
                        };
                        news.push((of.mailbox, Event::CutSeen { cut: of.cut, seen }));
                    }
                }
                Some(_) => {}
                None => {
                    if let Some(message) = content.error.clone() {
                        news.push((of.mailbox, Event::SnapshotFailed { cut: of.cut, message }));
                    }
                }
            }
        }
        if shown_elsewhere {
            self.coverage.outcome("handle that was shown before");
        }
        if let Some(handle) = content.handle.clone()
            && !waits
            && !shown_elsewhere
        {
            self.replicas[replica].handles.insert(content.name.clone(), handle);
        }
        for (mailbox, event) in news {
            let one = &mut self.mailboxes[mailbox];
            if one.open {
                one.contents.push_back(event);
                self.ready.extend(one.task);
            }
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

/// What a process does from its start.
pub fn tasks(handle: &Handle) -> Vec<Work> {
    vec![
        Box::pin(renew(handle.clone())),
        Box::pin(controller(handle.clone())),
        Box::pin(sweeper(handle.clone())),
    ]
}

/// Keeps the replica's Lease, and watches the others'.
async fn renew(handle: Handle) {
    let timing = Timing::default();
    let mut lost = false;
    loop {
        let identity = handle.with(|world| world.replicas[handle.replica].identity.clone());
        let (asked, sent) = (handle.mono(), handle.with(|world| world.now));
        let answer = handle.request(Request::Renew(identity)).await;
        let now = handle.mono();
        handle.with(|world| {
            let replica = &mut world.replicas[handle.replica];
            if let Some(Answer::Leases(leases)) = answer {
                let sightings: Vec<Sighting> = leases
                    .iter()
                    .map(|(holder, renewals)| Sighting {
                        holder: holder.clone(),
                        version: renewals.to_string(),
                        lease: timing.lease,
                    })
                    .collect();
                replica.peers.observe(&sightings, asked, now);
                replica.own = OwnLease::renewed_at(asked);
                replica.renewed = Some(sent);
                lost = false;
                if let Some(fence) = replica.own.fence(timing.lease) {
                    tell_all(world, handle.replica, &Event::ClaimRenewed { fence });
                }
            } else if !lost && replica.own.ends(timing.lease).is_some_and(|ends| now > ends) {
                lost = true;
                world.coverage.outcome("claim lost");
                let why = "this replica could not renew its Lease".to_owned();
                tell_all(world, handle.replica, &Event::ClaimLost { why });
            }
        });
        // Nothing depends on a claim while no run is under way.
        let idle = handle.with(|world| world.api.backups.iter().all(super::api::Stored::finished));
        handle.sleep(if idle { Duration::from_secs(120) } else { timing.renew }).await;
    }
}

fn tell_all(world: &mut World, replica: usize, event: &Event) {
    for mailbox in 0..world.mailboxes.len() {
        if world.mailboxes[mailbox].replica == replica {
            world.tell(mailbox, event.clone());
        }
    }
}

/// Finds Backups that need work.
async fn controller(handle: Handle) {
    loop {
        if handle.with(|world| world.replicas[handle.replica].stopping) {
            return shut_down(handle).await;
        }
        for backup in 0..handle.with(|world| world.api.backups.len()) {
            let free = handle.with(|world| {
                let stored = &world.api.backups[backup];
                let needs = stored.created && !stored.finished();
                needs && world.replicas[handle.replica].working.insert(backup)
            });
            if free {
                let worker = handle.clone();
                handle.spawn(async move {
                    work(&worker, backup).await;
                    worker.with(|world| world.replicas[worker.replica].working.remove(&backup));
                });
            }
        }
        let idle = handle.with(|world| world.api.backups.iter().all(super::api::Stored::finished));
        handle.sleep(Duration::from_millis(if idle { 30_000 } else { 1_500 })).await;
    }
}

/// Waits for the runs to thaw and record, and ends the process.
async fn shut_down(handle: Handle) {
    handle.pause(Duration::from_secs(25), |world| world.replicas[handle.replica].working.is_empty()).await;
    handle.with(|world| {
        world.coverage.outcome("replica shut down");
        let lasts = world.rng.between(S, 20 * S);
        world.crash(handle.replica, lasts);
    });
}

/// Removes what is left of runs that are gone.
async fn sweeper(handle: Handle) {
    let timing = Timing::default();
    loop {
        let resting = handle
            .with(|world| world.replicas[handle.replica].windows > 0 || world.mutated(Mutation::NoCleanUp));
        if !resting && handle.replica == 0 {
            for backup in 0..handle.with(|world| world.api.backups.len()) {
                sweep(&handle, backup).await;
            }
        }
        handle.sleep(timing.sweep).await;
    }
}

async fn sweep(handle: &Handle, backup: usize) {
    let Some(Answer::Snapshots(found)) = handle.request(Request::List { backup, attempt: None }).await else {
        return;
    };
    let status = match handle.request(Request::GetBackup(backup)).await {
        Some(Answer::Backup(_, status, _)) => Some(status),
        Some(Answer::NotFound) => None,
        _ => return,
    };
    if status.as_ref().is_none_or(|status| matches!(status.phase, Phase::Succeeded | Phase::Failed)) {
        // What a run that is over left behind: it ended only after its holds were thawed or proven gone.
        let owner = format!("backup-{backup}");
        let left: Vec<String> = handle.with(|world| {
            let locks = world.api.locks.iter();
            locks.filter(|(_, by)| **by == owner).map(|(key, _)| key.clone()).collect()
        });
        for key in left {
            handle.with(|world| world.coverage.outcome("left-over workload lock swept"));
            handle.request(Request::Unlock { key, owner: owner.clone() }).await;
        }
    }
    for snapshot in found {
        let name = handle.with(|world| world.snapshots[snapshot.id].name.clone());
        if stray(&snapshot.attempt, &name, status.as_deref()) {
            handle.with(|world| world.coverage.outcome("stray snapshot swept"));
            handle.request(Request::Delete(snapshot.id)).await;
        }
    }
}

/// How the work on a Backup ended for this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Finished,
    Unfinished,
}

/// The work on one Backup by one process.
struct Conductor<'h> {
    handle: &'h Handle,
    backup: usize,
    journal: Rc<RefCell<Journal>>,
    timing: Timing,
}

async fn work(handle: &Handle, backup: usize) {
    let Some(Answer::Backup(version, status, deleting)) = handle.request(Request::GetBackup(backup)).await
    else {
        return;
    };
    if !deleting && matches!(status.phase, Phase::Succeeded | Phase::Failed) {
        return;
    }
    let journal = Rc::new(RefCell::new(Journal::new(handle, backup, version, *status)));
    let conductor = Conductor { handle, backup, journal, timing: Timing::default() };
    if let Ok(Left::Finished) = conductor.go().await
        && handle.with(|world| world.api.backups[backup].deleting)
    {
        conductor.delete().await;
    }
}

impl Conductor<'_> {
    fn status(&self) -> BackupStatus {
        self.journal.borrow().status.clone()
    }

    fn identity(&self) -> String {
        self.handle.with(|world| world.replicas[self.handle.replica].identity.clone())
    }

    fn stopping(world: &World, replica: usize) -> bool {
        world.replicas[replica].stopping
    }

    fn shutting_down(&self) -> bool {
        self.handle.with(|world| Self::stopping(world, self.handle.replica))
    }

    /// Why the run is to end.
    fn ending(&self) -> Option<Reason> {
        self.handle.with(|world| {
            if Self::stopping(world, self.handle.replica) {
                Some(Reason::Shutdown)
            } else if world.api.backups[self.backup].deleting {
                Some(Reason::Cancelled)
            } else {
                None
            }
        })
    }

    /// Waits; true when the run is to end meanwhile.
    async fn pause(&self, time: Duration) -> bool {
        let (replica, backup) = (self.handle.replica, self.backup);
        self.handle
            .pause(time, move |world| Self::stopping(world, replica) || world.api.backups[backup].deleting)
            .await
    }

    /// Waits for what must have its time; true when the controller stops meanwhile.
    async fn rest(&self, time: Duration) -> bool {
        let replica = self.handle.replica;
        self.handle.pause(time, move |world| Self::stopping(world, replica)).await
    }

    async fn write(
        &self,
        within: Duration,
        change: impl FnMut(&mut BackupStatus),
    ) -> Result<(), JournalFailure> {
        Journal::write(&self.journal, self.handle, within, change).await
    }

    async fn go(&self) -> Result<Left, JournalFailure> {
        let left = self.work().await?;
        if left == Left::Unfinished && self.shutting_down() && self.status().attempt > 0 {
            let _ = self.write(Duration::from_secs(2), |status| status.executor = None).await;
        }
        Ok(left)
    }

    async fn work(&self) -> Result<Left, JournalFailure> {
        self.take_over().await?;
        let status = self.status();
        if matches!(status.phase, Phase::Succeeded | Phase::Failed) {
            return Ok(Left::Finished);
        }
        let count = |name| self.handle.with(|world| world.coverage.outcome(name));
        let last = match row(&status, &self.timing) {
            Row::Begin => None,
            Row::WaitForSessions { wait } => {
                count("found while it was prepared");
                if self.rest(self.wait(wait)).await {
                    return Ok(Left::Unfinished);
                }
                self.release_locks().await;
                Some(("Interrupted", true))
            }
            Row::WaitForHolds { wait, nonce } => {
                count("found while it was frozen");
                if self.rest(self.wait(wait)).await {
                    return Ok(Left::Unfinished);
                }
                self.abort_entry(&status, &nonce).await?;
                if self.unwind(&nonce, true).await? {
                    return Ok(Left::Unfinished);
                }
                Some(("Interrupted", true))
            }
            Row::CleanUp { nonce, .. } => {
                count("found aborted");
                if self.unwind(&nonce, false).await? {
                    return Ok(Left::Unfinished);
                }
                Some(("Interrupted", true))
            }
            Row::Settle { nonce } => {
                count("found thawed");
                self.release_locks().await;
                return self.settle(&nonce).await;
            }
        };
        self.attempts(last).await
    }

    fn wait(&self, wait: Duration) -> Duration {
        if self.handle.with(|world| world.mutated(Mutation::NoRecoveryWait)) { Duration::ZERO } else { wait }
    }

    async fn attempts(&self, mut last: Option<Failure>) -> Result<Left, JournalFailure> {
        loop {
            match self.ending() {
                Some(Reason::Shutdown) => return Ok(Left::Unfinished),
                Some(why) => return self.fail(why.as_str()).await,
                None => {}
            }
            let status = self.status();
            if let Some((why, may_pass)) = last {
                let late = status.started_at.as_ref().is_some_and(|begun| {
                    self.handle.wall().duration_since(begun.0).as_secs()
                        > i64::try_from(RUN_DEADLINE.as_secs()).unwrap_or(i64::MAX)
                });
                if !may_pass || status.attempt >= MAX_ATTEMPTS || late {
                    return self.fail(why).await;
                }
                if self.pause(BETWEEN_ATTEMPTS).await {
                    continue;
                }
            }
            if !self.claim_is_confirmed().await {
                continue;
            }
            let attempt = self.claim().await?;
            let resolution = match self.resolve_patiently(attempt).await {
                Ok(resolution) => resolution,
                Err((reason, may_pass)) => {
                    self.release_locks().await;
                    last = Some((reason, may_pass));
                    continue;
                }
            };
            let nonce = resolution.nonce.clone();
            let journal = Rc::clone(&self.journal);
            match attempt::carry_out(self.handle, self.backup, journal, Rc::new(resolution)).await {
                End::Thawed => {
                    self.release_locks().await;
                    return self.settle(&nonce).await;
                }
                End::Disowned(_) => {
                    self.handle.with(|world| world.coverage.outcome("disowned"));
                    return Err(JournalFailure::Disowned);
                }
                End::Aborted(why) => {
                    self.handle.with(|world| world.coverage.outcome(why.reason.as_str()));
                    if self.unwind(&nonce, false).await? {
                        return Ok(Left::Unfinished);
                    }
                    last = Some((why.reason.as_str(), why.reason.may_pass()));
                }
            }
        }
    }

    /// Waits for a Lease that lets a freeze begin; false when the run is to end meanwhile.
    async fn claim_is_confirmed(&self) -> bool {
        loop {
            let fence = self.handle.with(|world| world.replicas[self.handle.replica].fence(&self.timing));
            if fence.is_some_and(|fence| fence > self.handle.mono()) {
                return true;
            }
            if self.pause(Duration::from_millis(500)).await {
                return false;
            }
        }
    }

    /// Makes a run that somebody else began this replica's: the claim first, then its workload locks.
    async fn take_over(&self) -> Result<(), JournalFailure> {
        let status = self.status();
        let us = self.identity();
        let now = self.handle.mono();
        let claim = self.handle.with(|world| {
            let replica = &mut world.replicas[self.handle.replica];
            let timing = self.timing;
            decide(status.executor.as_deref(), &us, |holder| {
                replica.peers.standing(holder, timing.lease, now)
            })
        });
        match claim {
            Claim::Ours => Ok(()),
            Claim::Take if status.attempt == 0 => Ok(()),
            Claim::Theirs { .. } => Err(JournalFailure::Disowned),
            Claim::Take | Claim::TakeOver { .. } => {
                self.handle.with(|world| world.coverage.outcome("run taken over"));
                self.write(WRITE_WITHIN, |status| status.executor = Some(us.clone())).await
            }
        }
    }

    async fn claim(&self) -> Result<u32, JournalFailure> {
        let now = MicroTime(self.handle.wall());
        let us = self.identity();
        let attempt = self.status().attempt + 1;
        self.write(WRITE_WITHIN, |status| {
            status.phase = Phase::Preparing;
            status.executor = Some(us.clone());
            status.attempt = attempt;
            status.started_at.get_or_insert_with(|| now.clone());
            (status.holds, status.members, status.window) = (Vec::new(), Vec::new(), None);
        })
        .await?;
        self.handle.with(|world| world.milestone(Milestone::Claimed, self.handle.replica, None));
        Ok(attempt)
    }

    async fn resolve_patiently(&self, attempt: u32) -> Result<resolve::Resolution, Failure> {
        let mut waited = Duration::ZERO;
        let look = Duration::from_secs(2);
        loop {
            let outcome = self.resolve(attempt).await;
            let busy = matches!(outcome, Err(("WorkloadBusy", _)));
            if !busy || waited >= self.timing.busy || self.pause(look).await {
                return outcome;
            }
            waited += look;
        }
    }

    async fn resolve(&self, attempt: u32) -> Result<resolve::Resolution, Failure> {
        let Some(Answer::Pods(pods)) = self.handle.request(Request::Pods).await else {
            return Err(("Interrupted", true));
        };
        let mut resolution = self.handle.with(|world| resolve::resolve(world, self.backup, attempt, &pods));
        if !self.handle.with(|world| world.mutated(Mutation::NoWorkloadLock)) {
            for key in &resolution.workloads {
                self.lock(key).await?;
            }
        }
        // The dry runs of preflight take a moment.
        self.handle.sleep(Duration::from_millis(60)).await;
        resolution.plan.fence = self
            .handle
            .with(|world| world.replicas[self.handle.replica].fence(&self.timing))
            .ok_or(("ClaimNotConfirmed", true))?;
        Ok(resolution)
    }

    async fn lock(&self, key: &str) -> Result<(), Failure> {
        let owner = format!("backup-{}", self.backup);
        let request = Request::Lock { key: key.to_owned(), owner: owner.clone() };
        let existing = match self.handle.request(request).await {
            Some(Answer::Done) => return Ok(()),
            Some(Answer::Conflict(other)) => other,
            _ => return Err(("Interrupted", true)),
        };
        match decide_lock(&existing, &owner) {
            Decision::Take | Decision::Ours | Decision::TakeOver => Ok(()),
            Decision::Busy { .. } => {
                self.handle.with(|world| world.coverage.outcome("workload busy"));
                Err(("WorkloadBusy", true))
            }
        }
    }

    /// Releases the workload: nothing is frozen there any more.
    async fn release_locks(&self) {
        let owner = format!("backup-{}", self.backup);
        let ours: Vec<String> = self.handle.with(|world| {
            let locks = world.api.locks.iter();
            locks.filter(|(_, by)| **by == owner).map(|(key, _)| key.clone()).collect()
        });
        for key in ours {
            let mut tries = 0;
            while self
                .handle
                .request(Request::Unlock { key: key.clone(), owner: owner.clone() })
                .await
                .is_none()
                && tries < 20
            {
                tries += 1;
                self.handle.sleep(Duration::from_secs(1)).await;
            }
        }
    }

    async fn abort_entry(&self, status: &BackupStatus, nonce: &str) -> Result<(), JournalFailure> {
        let us = self.identity();
        let suspects: Vec<String> = status.holds.iter().map(|hold| hold.nonce.clone()).collect();
        let entry = JournalEntry {
            entry: JournalKind::Aborted,
            attempt: status.attempt,
            nonce: nonce.to_owned(),
            executor: us.clone(),
            at: MicroTime(self.handle.wall()),
            max_hold_millis: None,
            reason: Some(Reason::Interrupted.as_str().to_owned()),
            message: None,
            not_proven_thawed: suspects,
        };
        self.write(WRITE_WITHIN, |status| {
            status.executor = Some(us.clone());
            status.phase = Phase::Preparing;
            status.journal.push(entry.clone());
        })
        .await
    }

    /// After an attempt that was given up: waits until its holds are proven thawed, releases the workload, and removes
    /// its snapshots. True when the controller stops meanwhile.
    async fn unwind(&self, nonce: &str, waited: bool) -> Result<bool, JournalFailure> {
        let status = self.status();
        let last = status.journal.iter().rev().find(|entry| entry.attempt == status.attempt);
        let unproven: Vec<String> = last.map(|entry| entry.not_proven_thawed.clone()).unwrap_or_default();
        if self.shutting_down() {
            if unproven.is_empty() {
                self.release_locks().await;
            }
            return Ok(true);
        }
        if !unproven.is_empty() && !waited {
            self.handle.with(|world| world.coverage.outcome("hold not proven thawed"));
            let kinds = status.holds.iter().filter(|hold| unproven.contains(&hold.nonce)).map(|hold| {
                let apps = status.resolved.iter().flat_map(|resolved| &resolved.applications);
                apps.into_iter()
                    .find(|app| app.name == hold.application)
                    .map_or(HoldKind::None, |app| app.hold)
            });
            let max_hold = self.handle.with(|world| world.scenario.max_hold);
            let wait = kinds
                .map(|kind| match kind {
                    HoldKind::Session | HoldKind::Observer => self.timing.session_lease,
                    HoldKind::Commands | HoldKind::Direct | HoldKind::None => {
                        holder_ends(&self.timing, max_hold)
                    }
                })
                .max()
                .unwrap_or_default();
            if self.rest(self.wait(wait)).await {
                return Ok(true);
            }
        }
        self.release_locks().await;
        self.clean(nonce).await;
        Ok(self.shutting_down())
    }

    /// Removes what an attempt asked for.
    async fn clean(&self, nonce: &str) {
        if self.handle.with(|world| world.mutated(Mutation::NoCleanUp)) {
            return;
        }
        self.remove(Some(nonce.to_owned()), CLEANUP_PATIENCE).await;
    }

    /// Deletes snapshots until none is left; true when there is none.
    async fn remove(&self, attempt: Option<String>, patience: Duration) -> bool {
        let mut waited = Duration::ZERO;
        let mut pause = Duration::from_millis(100);
        loop {
            let list = Request::List { backup: self.backup, attempt: attempt.clone() };
            let Some(Answer::Snapshots(found)) = self.handle.request(list).await else { return false };
            if found.is_empty() {
                return true;
            }
            for snapshot in found {
                self.handle.request(Request::Delete(snapshot.id)).await;
            }
            if waited >= patience {
                return false;
            }
            self.handle.sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    async fn settle(&self, nonce: &str) -> Result<Left, JournalFailure> {
        let status = self.status();
        let (replica, backup) = (self.handle.replica, self.backup);
        let stop =
            move |world: &mut World| Self::stopping(world, replica) || world.api.backups[backup].deleting;
        let Some(settled) = settle::settle(self.handle, &status, stop).await else {
            return match self.ending() {
                Some(Reason::Shutdown) | None => Ok(Left::Unfinished),
                Some(why) => {
                    self.write(WRITE_WITHIN, |_| {}).await?;
                    self.clean(nonce).await;
                    self.fail(why.as_str()).await
                }
            };
        };
        self.handle.with(|world| world.check_verdict(&status, &settled.members, &settled.judgement));
        if !settled.keep {
            // An owner that was only stopped must not remove what another one keeps.
            self.write(WRITE_WITHIN, |_| {}).await?;
            self.clean(nonce).await;
        }
        let phase = if settled.keep { Phase::Succeeded } else { Phase::Failed };
        let at = MicroTime(self.handle.wall());
        self.write(WRITE_WITHIN, |status| {
            status.phase = phase;
            status.members.clone_from(&settled.members);
            status.consistency = Some(settled.judgement.consistency);
            status.continuity = settled.judgement.continuity;
            status.finished_at = Some(at.clone());
        })
        .await?;
        self.handle.with(|world| {
            world.coverage.outcome(match (phase, settled.judgement.consistency) {
                (Phase::Succeeded, Consistency::Application) => "succeeded: Application",
                (Phase::Succeeded, Consistency::Crash) => "succeeded: Crash",
                (Phase::Succeeded, Consistency::None) => "succeeded: None",
                _ => "failed: not proven",
            });
        });
        Ok(Left::Finished)
    }

    async fn fail(&self, why: &'static str) -> Result<Left, JournalFailure> {
        let us = self.identity();
        let at = MicroTime(self.handle.wall());
        self.write(WRITE_WITHIN, |status| {
            status.phase = Phase::Failed;
            status.executor = Some(us.clone());
            status.finished_at = Some(at.clone());
            status.consistency = Some(Consistency::None);
        })
        .await?;
        self.handle.with(|world| {
            world.note(|| format!("the run failed: {why}"));
            world.coverage.outcome("failed");
        });
        Ok(Left::Finished)
    }

    /// The Backup is being deleted: its snapshots go, then its finalizer.
    async fn delete(&self) {
        if self.remove(None, Duration::from_secs(120)).await {
            self.handle.request(Request::LetGo(self.backup)).await;
        }
    }
}

/// How long a write outside the window is tried.
const WRITE_WITHIN: Duration = Duration::from_secs(600);
