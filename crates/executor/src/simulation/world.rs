//! Time and events of one world. Everything that happens is in one queue, in one order.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::future::Future;
use std::pin::Pin;

use super::api::{Answer, ApiServer, Request};
use super::coverage::Coverage;
use super::exec::{Input, Stream, StreamId, StreamTask};
use super::faults::{Fault, Faults, Milestone, Rng, Strike};
use super::invariants::Violation;
use super::mutations::Mutation;
use super::pod::{Pod, Volume};
use super::processes::Step;
use super::replica::{Life, Mailbox, MailboxId, Replica};
use super::scenario::Scenario;
use super::storage::{Content, Snapshot, SnapshotId, SnapshotStep, Storage};
use super::{MS, Micros, Options, S};
use crate::run::{Abort, Reason, Word};

/// A task of a replica.
pub type TaskId = usize;
/// What a task runs.
pub type Work = Pin<Box<dyn Future<Output = ()>>>;

/// Something that happens.
#[derive(Clone, Debug)]
pub enum Happening {
    /// A text arrives at a process.
    Arrives(StreamId, Input),
    /// Something inside a process.
    Process(StreamId, Step),
    /// A line arrives at the replica.
    Line(StreamId, Word),
    /// The replica sees a stream end.
    StreamEnds(StreamId, Reason, &'static str),
    /// The stream's own task acts.
    Task(StreamId, StreamTask),
    /// Something in the storage system.
    Storage(SnapshotId, SnapshotStep),
    /// A request arrives at the API server.
    Request(u64, Box<Request>),
    /// An answer arrives at a replica.
    Answer(u64, Box<Answer>),
    /// The watch on contents shows one, to one incarnation of a replica.
    Watch(usize, u32, Box<Content>),
    /// A broken watch on contents is opened again.
    Relist(usize, u32),
    /// The watch on pods shows a change to one mailbox.
    PodNews(MailboxId, String),
    /// A task may go on.
    Wake(TaskId),
    /// A strike.
    Strike(Box<Strike>, usize, Option<usize>),
    /// A stopped or hung replica goes on.
    Resume(usize, u32),
    /// A killed replica starts again.
    Start(usize),
    /// A pod's statement that was in the way ends.
    StatementEnds(usize),
    /// A rival Backup is created, or one is cancelled.
    Backup(usize, BackupNews),
}

/// What somebody does to a Backup.
#[derive(Clone, Copy, Debug)]
pub enum BackupNews {
    /// It is created.
    Created,
    /// It is deleted.
    Deleted,
    /// Its annotations are changed.
    Touched,
}

struct Scheduled {
    at: Micros,
    order: u64,
    what: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    // The heap gives its greatest first: the earliest is the greatest here.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// One world.
pub struct World {
    /// True time.
    pub now: Micros,
    queue: BinaryHeap<Scheduled>,
    order: u64,
    /// How many events there were.
    pub events: u64,
    /// For what is no fault.
    pub rng: Rng,
    /// What may go wrong.
    pub faults: Faults,
    strikes: Vec<Strike>,
    /// What was asked for.
    pub options: Options,
    /// What it was made of.
    pub scenario: Scenario,
    /// The pods.
    pub pods: Vec<Pod>,
    /// The volumes.
    pub volumes: Vec<Volume>,
    /// Every stream that ever was.
    pub streams: Vec<Stream>,
    /// The storage system.
    pub storage: Storage,
    /// Every snapshot that ever was.
    pub snapshots: Vec<Snapshot>,
    /// The API server.
    pub api: ApiServer,
    /// The replicas.
    pub replicas: Vec<Replica>,
    /// Mailboxes of attempts.
    pub mailboxes: Vec<Mailbox>,
    /// Tasks that can go on.
    pub ready: VecDeque<TaskId>,
    /// Tasks that were just spawned: replica, incarnation, work.
    pub spawned: Vec<(usize, u32, Work)>,
    /// Replicas whose process begins now.
    pub starting: Vec<usize>,
    /// The task that runs now.
    pub current: TaskId,
    /// What happened how often.
    pub coverage: Coverage,
    /// The first invariant that was broken.
    pub violation: Option<Violation>,
    /// Effects that the first attempt had carried out.
    pub effects: usize,
    /// What happened.
    pub log: Vec<String>,
}

impl World {
    /// The world of a seed before anything happened.
    pub fn new(seed: u64, options: &Options) -> Self {
        let mut faults = Faults::of(seed, options.mask);
        let scenario =
            options.scenario.clone().unwrap_or_else(|| Scenario::of(seed, options.size, &mut faults));
        let strikes = faults.strikes();
        let mut rng = Rng::new(seed, 13);
        let (pods, volumes) = super::pod::build(&scenario);
        let replicas = (0..scenario.replicas).map(|index| Replica::new(index, &mut rng)).collect();
        let mut world = Self {
            now: 0,
            queue: BinaryHeap::new(),
            order: 0,
            events: 0,
            rng,
            faults,
            strikes,
            options: options.clone(),
            api: ApiServer::new(scenario.backups),
            scenario,
            pods,
            volumes,
            streams: Vec::new(),
            storage: Storage::default(),
            snapshots: Vec::new(),
            replicas,
            mailboxes: Vec::new(),
            ready: VecDeque::new(),
            spawned: Vec::new(),
            starting: Vec::new(),
            current: 0,
            coverage: Coverage::default(),
            violation: None,
            effects: 0,
            log: Vec::new(),
        };
        if !world.scenario.driver.listed {
            world.struck(Fault::Unlisted);
        }
        if world.scenario.backups > 1 {
            world.struck(Fault::RivalRun);
        }
        for backup in 0..world.scenario.backups {
            let at = if backup == 0 { MS } else { world.rng.below(15 * S) };
            world.after(at, Happening::Backup(backup, BackupNews::Created));
        }
        for replica in 0..world.scenario.replicas {
            let at = world.rng.below(500 * MS);
            world.after(at, Happening::Start(replica));
        }
        world
    }

    /// Whether something is broken on purpose.
    pub fn mutated(&self, mutation: Mutation) -> bool {
        self.options.mutation == Some(mutation)
    }

    /// Lets something happen later.
    pub fn after(&mut self, delay: Micros, what: Happening) {
        self.order += 1;
        self.queue.push(Scheduled { at: self.now + delay, order: self.order, what });
    }

    /// Keeps a line.
    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if self.options.log {
            let line = format!("{:>12.6} {}", self.now as f64 / 1e6, what());
            self.log.push(line);
        }
    }

    /// Whether a fault happens here; counted when it does.
    pub fn happens(&mut self, fault: Fault, per_mille: u64) -> bool {
        let happens = self.faults.happens(fault, per_mille, self.now);
        if happens {
            self.struck(fault);
        }
        happens
    }

    /// Counts a fault.
    pub fn struck(&mut self, fault: Fault) {
        self.coverage.fault(fault);
        self.note(|| format!("FAULT {fault:?}"));
    }

    /// Takes the next event; false when there is none.
    pub fn advance(&mut self) -> bool {
        let Some(Scheduled { at, what, .. }) = self.queue.pop() else { return false };
        self.now = at;
        self.events += 1;
        self.take(what);
        true
    }

    /// Handles one event, or keeps it for a replica that does not run.
    pub fn take(&mut self, what: Happening) {
        if let Some(replica) = self.addressee(&what)
            && self.replicas[replica].life == Life::Stopped
        {
            self.replicas[replica].kept.push(what);
            return;
        }
        match what {
            Happening::Arrives(stream, input) => self.arrives(stream, input),
            Happening::Process(stream, step) => self.process(stream, step),
            Happening::Line(stream, word) => self.line(stream, word),
            Happening::StreamEnds(stream, reason, why) => self.stream_ends(stream, reason, why),
            Happening::Task(stream, task) => self.stream_task(stream, task),
            Happening::Storage(snapshot, step) => self.storage_step(snapshot, step),
            Happening::Request(id, request) => self.serve(id, *request),
            Happening::Answer(id, answer) => self.answered(id, *answer),
            Happening::Watch(replica, incarnation, content) => self.watch(replica, incarnation, &content),
            Happening::Relist(replica, incarnation) => self.listed_again(replica, incarnation),
            Happening::PodNews(mailbox, what) => self.tell(mailbox, crate::run::Event::PodChanged { what }),
            Happening::Wake(task) => self.ready.push_back(task),
            Happening::Strike(strike, replica, pod) => self.strike(&strike, replica, pod),
            Happening::Resume(replica, incarnation) => self.resume(replica, incarnation),
            Happening::Start(replica) => self.start(replica),
            Happening::StatementEnds(pod) => self.statement_ends(pod),
            Happening::Backup(backup, news) => self.backup_news(backup, news),
        }
    }

    /// Which replica's process an event needs.
    fn addressee(&self, what: &Happening) -> Option<usize> {
        match what {
            Happening::Line(stream, _) | Happening::StreamEnds(stream, ..) | Happening::Task(stream, _) => {
                Some(self.streams[*stream].replica)
            }
            Happening::Answer(id, _) => self.api.asker(*id),
            Happening::Watch(replica, ..) | Happening::Relist(replica, _) => Some(*replica),
            Happening::PodNews(mailbox, _) => Some(self.mailboxes[*mailbox].replica),
            _ => None,
        }
    }

    /// An instant near which strikes wait.
    pub fn milestone(&mut self, milestone: Milestone, replica: usize, pod: Option<usize>) {
        if self.now >= self.faults.calm_at {
            return;
        }
        let mut due = Vec::new();
        self.strikes.retain_mut(|strike| {
            if strike.near != milestone {
                return true;
            }
            if strike.skip > 0 {
                strike.skip -= 1;
                return true;
            }
            due.push(strike.clone());
            false
        });
        for strike in due {
            self.after(strike.after, Happening::Strike(Box::new(strike), replica, pod));
        }
    }

    fn strike(&mut self, strike: &Strike, replica: usize, pod: Option<usize>) {
        if self.now >= self.faults.calm_at {
            return;
        }
        let pod = pod.unwrap_or_else(|| {
            let pods = self.pods.len() as u64;
            usize::try_from(self.faults.rng(strike.fault).below(pods)).unwrap_or(0)
        });
        let happened = match strike.fault {
            Fault::Partition | Fault::StreamReset | Fault::RuntimeCrash => {
                self.break_stream(strike.fault, replica, pod)
            }
            Fault::ContainerRestart => self.restart_container(pod),
            Fault::PodReplaced => self.replace_pod(pod),
            Fault::Reconnect => self.restart_server(pod),
            Fault::ForeignUnlock => self.unlock(pod),
            Fault::HolderKilled => self.kill_holder(pod),
            Fault::RoleChange => self.change_role(pod),
            Fault::ApiDown => {
                let lasts = strike.lasts.min(20 * S);
                self.api.down_until = self.api.down_until.max(self.now + lasts);
                true
            }
            Fault::Conflict => {
                self.backup_news(0, BackupNews::Touched);
                true
            }
            Fault::WatchGap => {
                let lasts = strike.lasts.min(10 * S);
                self.break_watch(replica, lasts)
            }
            Fault::Crash => self.crash(replica, strike.lasts),
            Fault::Stop => self.stop(replica, Life::Stopped, strike.lasts),
            Fault::Hang => self.stop(replica, Life::Hung, strike.lasts),
            Fault::ClaimStarved => {
                self.replicas[replica].starved_until = self.now + strike.lasts;
                true
            }
            Fault::ClockJump => {
                let rng = self.faults.rng(Fault::ClockJump);
                let jump = i64::try_from(rng.below(7200 * S)).unwrap_or(0);
                // Rule 6 compares the driver's clock with ours: a controller whose clock is behind by more than an older
                // snapshot is old cannot see that it is (docs/testing.md, what the simulation does not cover).
                let forward = rng.chance(500) || self.faults.has(Fault::OldCut);
                self.replicas[replica].wall_offset += if forward { jump } else { -jump };
                true
            }
            Fault::Cancel => {
                self.backup_news(0, BackupNews::Deleted);
                true
            }
            Fault::Shutdown => self.shutdown(replica),
            _ => false,
        };
        if happened {
            self.struck(strike.fault);
        }
    }

    fn backup_news(&mut self, backup: usize, news: BackupNews) {
        match news {
            BackupNews::Created => self.api.backups[backup].created = true,
            BackupNews::Deleted => {
                if self.api.backups[backup].finished() {
                    return;
                }
                self.api.backups[backup].deleting = true;
                for mailbox in 0..self.mailboxes.len() {
                    if self.mailboxes[mailbox].backup == backup {
                        let why = Abort::new(Reason::Cancelled, "the Backup was deleted while it ran");
                        self.stop_mailbox(mailbox, why);
                    }
                }
            }
            BackupNews::Touched => self.api.backups[backup].version += 1,
        }
    }
}
