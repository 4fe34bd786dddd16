//! Watches policies and Backups, keeps one timer, and carries out what [`reconciler`](crate::reconciler) decides.
//!
//! Guarantees: nothing is decided before both watches have listed everything, and nothing by a replica that does not
//! lead; a policy is worked on by one task at a time; the Backup is created before the status says so; every status write is a PUT with the version that was
//! read, and a conflict is read and decided again; nothing is deleted while any Backup is frozen.

mod orphans;
mod out_of_band;
mod watched;
mod work;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use jiff::{SignedDuration, Timestamp};
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use stillpoint_api::backup::Backup;
use stillpoint_api::backup_events::{BackupEvent, shared};
use stillpoint_api::clock::SharedClock;
use stillpoint_api::policy::BackupPolicy;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::orphans::Orphanage;
use self::out_of_band::OutOfBand;
use self::work::Done;
pub use self::work::WORKERS;
use crate::apply::Apply;
use crate::dispatch::FairQueue;
use crate::election::Leadership;
use crate::heap::DueHeap;
use crate::meter::WorkObserver;
use crate::projection::{PolicyKey, Projection};
use crate::rules::{self, RuleBook};
use crate::server_clock;

/// Longest sleep before the wall clock is read again: it may have been set, and the monotonic clock stops while a
/// virtual machine is suspended (docs/design/schedule.md §2.5).
const MAX_SLEEP: SignedDuration = SignedDuration::from_secs(60);

/// Objects per page of a list: Backups with their evidence take tens of KiB each in memory, and a page is there whole.
const PAGE: u32 = 100;

/// What the scheduler needs.
#[derive(Clone)]
pub struct SchedulerContext {
    /// Client of the controller's own account.
    pub client: Client,
    /// Time.
    pub clock: SharedClock,
    /// UID of the namespace `kube-system`: the seed of jitter. Any constant of the cluster will do.
    pub cluster_uid: String,
    /// Becomes `true` when both watches have listed everything, whoever leads: a replica that waits is ready to lead.
    pub ready: watch::Sender<bool>,
    /// Whether this replica is the one that schedules.
    pub leadership: Leadership,
    /// Where the loop shows what it is at.
    pub progress: watch::Sender<Progress>,
    /// Who counts the deletes of retention.
    pub deletions: Arc<dyn DeletionObserver>,
    /// Who hears of the scheduler's own work.
    pub work: Arc<dyn WorkObserver>,
    /// Where rules and namespaces are noted: empty, and the scheduler's from now on. Others may read it.
    pub rules: Arc<RuleBook>,
}

/// Hears of every delete that the scheduler asks for.
pub trait DeletionObserver: Send + Sync {
    /// One was taken by the API server, or it failed.
    fn asked(&self, policy: &PolicyKey, deleted: bool);

    /// The same of a delete that a rule's `orphans` asks for; the policy is gone.
    fn orphan(&self, policy: &PolicyKey, deleted: bool);
}

/// Nobody counts.
impl DeletionObserver for () {
    fn asked(&self, _policy: &PolicyKey, _deleted: bool) {}

    fn orphan(&self, _policy: &PolicyKey, _deleted: bool) {}
}

/// What the loop is at, for people (`/debug/state`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// When the loop last went round with everything listed and the lead in hand; at least once a minute.
    pub ticked_at: Option<Timestamp>,
    /// Policies with a time at which they are looked at again; none while this replica does not lead.
    pub waiting: usize,
    /// Policies that are due and wait for a free task.
    pub queued: usize,
    /// Policies that are worked on.
    pub busy: usize,
    /// Which policy is due first, and when.
    pub next: Option<(PolicyKey, Timestamp)>,
    /// Namespace and name of every Backup that is frozen or about to be, whoever runs it.
    pub frozen: Vec<(Arc<str>, String)>,
}

/// Why the scheduler ended although nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// A watch ended; it should go on for ever. The process must restart.
    #[error("the watch of {0} ended; restart the controller")]
    WatchEnded(&'static str),
    /// A task of the scheduler panicked.
    #[error("a scheduler task ended abnormally: {0}; restart the controller")]
    Task(#[from] tokio::task::JoinError),
}

type Guarded<K> = Result<Event<DeserializeGuard<K>>, watcher::Error>;

/// What a watch of all Backups shows; one that cannot be read is shown as such.
pub type BackupEvents = BoxStream<'static, BackupEvent>;

/// The state of the loop. Owned by one task, so that nothing is locked.
struct Scheduler {
    context: Arc<Apply>,
    ready: watch::Sender<bool>,
    progress: watch::Sender<Progress>,
    /// The term of lead that we work in.
    term: Option<u64>,
    projection: Projection,
    due: DueHeap<PolicyKey>,
    /// Waiting for a free task.
    queue: FairQueue,
    /// Waiting for their planned start.
    starts: FairQueue,
    /// Worked on; `true` when it changed meanwhile.
    busy: HashMap<PolicyKey, bool>,
    /// Those of them that are being started.
    starting: usize,
    tasks: JoinSet<(PolicyKey, Done)>,
    failures: HashMap<PolicyKey, u32>,
    /// Policies whose deletes wait for a freeze to end.
    deletes_wait: HashSet<PolicyKey>,
    policies_listed: Listing,
    backups_listed: Listing,
    /// How far the API server's clock is ahead, when that is more than clocks ordinarily differ.
    server_ahead: watch::Receiver<Option<SignedDuration>>,
    /// Snapshots that somebody else deletes.
    out_of_band: OutOfBand,
    /// Backups of policies that are gone.
    orphans: Orphanage,
}

/// Where a watch stands with its list.
#[derive(Debug, Default)]
struct Listing {
    done_once: bool,
}

/// Runs until `shutdown` completes. Work that was begun is finished first.
///
/// # Errors
/// When a watch ends or a task panics: the caller restarts the process.
pub async fn run(
    context: SchedulerContext,
    shutdown: impl Future<Output = ()>,
) -> Result<(), SchedulerError> {
    let backups = watcher(
        Api::<DeserializeGuard<Backup>>::all(context.client.clone()),
        watcher::Config::default().page_size(PAGE),
    );
    run_with(context, backups.default_backoff().map(shared).boxed(), shutdown).await
}

/// The same with Backups as `backups` shows them: others may read the same watch.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    context: SchedulerContext,
    backups: BackupEvents,
    shutdown: impl Future<Output = ()>,
) -> Result<(), SchedulerError> {
    let policies = watcher(
        Api::<DeserializeGuard<BackupPolicy>>::all(context.client.clone()),
        watcher::Config::default().page_size(PAGE),
    );
    let (ahead, server_ahead) = watch::channel(None);
    let server_clock = tokio::spawn(server_clock::watch(
        context.client.clone(),
        context.clock.clone(),
        ahead,
        context.work.clone(),
    ));
    let out_of_band = OutOfBand::watching(&context.client);
    let (client, clock, leadership) =
        (context.client.clone(), context.clock.clone(), context.leadership.clone());
    let mut scheduler = Scheduler::new(context, server_ahead);
    scheduler.out_of_band = out_of_band;
    let book = scheduler.context.rules.clone();
    book.expect_lists();
    let ruling = tokio::spawn(rules::run(client, clock, leadership, book));
    let ended = scheduler.run(policies.default_backoff(), backups, shutdown).await;
    server_clock.abort();
    ruling.abort();
    ended?;
    // What was begun is a created Backup without its noted slot, or half a retention pass: let it end.
    while let Some(done) = scheduler.tasks.join_next().await {
        if let (key, Done::Looked(Err(error)) | Done::Started(Err(error))) = done? {
            tracing::warn!(policy = %key, %error, "a policy was left unfinished; the next process takes it up");
        }
    }
    Ok(())
}

impl Scheduler {
    fn new(context: SchedulerContext, server_ahead: watch::Receiver<Option<SignedDuration>>) -> Self {
        let apply = Apply::new(&context);
        Self {
            ready: context.ready,
            progress: context.progress,
            term: None,
            context: Arc::new(apply),
            projection: Projection::default(),
            due: DueHeap::default(),
            queue: FairQueue::default(),
            starts: FairQueue::default(),
            busy: HashMap::new(),
            starting: 0,
            tasks: JoinSet::new(),
            failures: HashMap::new(),
            deletes_wait: HashSet::new(),
            policies_listed: Listing::default(),
            backups_listed: Listing::default(),
            server_ahead,
            out_of_band: OutOfBand::default(),
            orphans: Orphanage::default(),
        }
    }

    async fn run(
        &mut self,
        policies: impl Stream<Item = Guarded<BackupPolicy>>,
        backups: impl Stream<Item = BackupEvent>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), SchedulerError> {
        let (mut policies, mut backups, mut shutdown) = (pin!(policies), pin!(backups), pin!(shutdown));
        let mut lead = self.context.leadership.follow();
        let rules = self.context.rules.clone();
        loop {
            self.follow();
            self.dispatch();
            self.look_at_doubtful();
            self.look_after_orphans();
            self.show();
            let sleep = self.sleep();
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                () = lead.changed() => {}
                () = rules.changed() => self.rules_changed(),
                event = policies.next() => match event {
                    None => return Err(SchedulerError::WatchEnded("backuppolicies")),
                    Some(Ok(event)) => self.policy_event(event),
                    Some(Err(error)) => tracing::warn!(%error, "the watch of backuppolicies failed and is retried"),
                },
                event = backups.next() => match event {
                    None => return Err(SchedulerError::WatchEnded("backups")),
                    Some(Ok(event)) => self.backup_event(event),
                    Some(Err(error)) => tracing::warn!(%error, "the watch of backups failed and is retried"),
                },
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    let (key, result) = done?;
                    self.done(key, result);
                }
                Some(news) = self.out_of_band.news.next() => self.snapshot_news(news),
                Some(done) = self.out_of_band.looks.join_next(), if !self.out_of_band.looks.is_empty() => {
                    self.looked(done?);
                }
                Some(done) = self.orphans.looks.join_next(), if !self.orphans.looks.is_empty() => {
                    let (key, result) = done?;
                    self.orphans_looked(key, result);
                }
                // The sender is gone only when the scheduler ends.
                Ok(()) = self.server_ahead.changed() => self.begin(),
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    fn now(&self) -> Timestamp {
        self.context.clock.wall()
    }

    fn listed(&self) -> bool {
        self.policies_listed.done_once && self.backups_listed.done_once && self.context.rules.listed()
    }

    /// Until something is due, at most [`MAX_SLEEP`]. What is due already waits in a queue.
    fn sleep(&mut self) -> Duration {
        let now = self.now();
        let due = if self.listed() { self.due.next_due() } else { None };
        let due = [due, self.out_of_band.next_due(), self.orphans.next_due()].into_iter().flatten().min();
        let sleep = due.map_or(MAX_SLEEP, |due| due.duration_since(now).min(MAX_SLEEP));
        // A negative sleep is due now.
        Duration::try_from(sleep).unwrap_or(Duration::ZERO)
    }

    /// Begins or ends a term of lead. What is remembered of the objects is kept in step without the lead as well, so that
    /// a new leader begins at once.
    fn follow(&mut self) {
        let term = self.context.leadership.term();
        if term == self.term {
            return;
        }
        self.term = term;
        self.due = DueHeap::default();
        self.queue = FairQueue::default();
        self.starts = FairQueue::default();
        self.failures.clear();
        self.deletes_wait.clear();
        self.orphans.forget();
        self.context.rules.forget_orphans();
        if term.is_some() {
            // The earlier leader noted them in the status; what it did not note is counted from the Backups.
            self.projection.forget_fresh_failures();
            self.begin();
        }
    }

    /// Everything is looked at anew: whatever another leader left undone is found in the objects.
    fn begin(&mut self) {
        if self.listed() {
            let keys: Vec<PolicyKey> = self.projection.policies().cloned().collect();
            keys.into_iter().for_each(|key| self.enqueue(key));
            self.doubt_all();
            self.touch_all_orphans();
        }
    }

    fn show(&mut self) {
        let next = self.due.first().map(|(key, due)| (key.clone(), due));
        let ticks = self.term.is_some() && self.listed();
        let now = Progress {
            ticked_at: ticks.then(|| self.now()),
            waiting: self.due.len(),
            queued: self.queue.len() + self.starts.len(),
            busy: self.busy.len(),
            next,
            frozen: self.projection.frozen(),
        };
        self.progress.send_if_modified(|shown| {
            let changed = *shown != now;
            *shown = now;
            changed
        });
    }
}

#[cfg(test)]
#[path = "controller_tests.rs"]
mod tests;
