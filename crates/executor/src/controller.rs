//! Watches Backups and gives each the work it needs: a run, or the removal of its snapshots.
//!
//! One task per Backup at most, and only for Backups that are unclaimed, ours, or of a replica that fell silent. What the
//! watch shows is remembered as a key and its claim only; a task reads its Backup itself. A run that nobody began waits for its
//! permit before it has a task: of a herd of a hundred thousand, as many are read as are run. What was begun waits for nobody.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use kube::api::{Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::watcher::Event;
use kube::{Api, Client, ResourceExt};
use stillpoint_api::backup::{Backup, SNAPSHOTS_FINALIZER};
use stillpoint_api::backup_events::{BackupEvent, shared};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tracing::{debug, info, warn};

use crate::backup_run::{BackupRun, Left, Turns, cancelled};
use crate::cleanup::ending::{self, Ending, Wait};
use crate::cleanup::{self, Scope};
use crate::context::{Context, RequestError, bounded};
use crate::happenings::Happenings;
use crate::journal::JournalError;
use crate::ownership::sweeper::Sweeper;
use crate::run::{Abort, Reason};
use crate::steady_watch::{OPEN_AGAIN_AFTER, steady_watch};

/// Pause before a Backup that is still unfinished is taken up again.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// After this long a deletion that does not end is called blocked (docs/api.md).
const BLOCKED_AFTER: Duration = Duration::from_secs(600);
/// Pause before a deleted Backup under a legal hold is looked at again although nothing about it changed.
const HELD_AGAIN: Duration = Duration::from_secs(60);
/// How long a stopping controller waits for its runs: the longest freeze that any policy may ask for is cut short by
/// the stop itself, so this only bounds the thaw and the last journal entry.
const STOP_WITHIN: Duration = Duration::from_secs(20);

type Key = (String, String);

/// What a watch of Backups shows, which lists again after every error; one that cannot be read is shown as such.
pub type BackupEvents = BoxStream<'static, BackupEvent>;

/// A watch of all Backups, for [`run_with`] and for whoever else reads the same one: it ends never, and lists again after every
/// error, so that `InitDone` says that it shows the present state.
pub fn backup_events(client: &Client) -> BackupEvents {
    let events = steady_watch(Api::<DeserializeGuard<Backup>>::all(client.clone()), OPEN_AGAIN_AFTER);
    events.map(shared).boxed()
}

/// Why the controller ended.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The watch ended, which a watch never does.
    #[error("the watch on Backups ended")]
    WatchEnded,
}

struct Shared {
    context: Context,
    happenings: Happenings,
    turns: Arc<Turns>,
    /// Backups that the watch shows as needing work, and who has the claim.
    needy: Mutex<HashMap<Key, Option<String>>>,
    /// Those of them that nobody began, in order, until there is a permit for them.
    fresh: Mutex<Fresh>,
    /// Runs in progress, and the way to stop them.
    running: Mutex<HashMap<Key, watch::Sender<Option<Abort>>>>,
    /// Deleted Backups that stay for now: the reason that was told, and when they are looked at again.
    waiting: Mutex<HashMap<Key, (&'static str, Duration)>>,
}

/// Keys in order, each once.
#[derive(Default)]
struct Fresh {
    order: VecDeque<Key>,
    all: HashSet<Key>,
}

impl Fresh {
    fn push(&mut self, key: Key) {
        if self.all.insert(key.clone()) {
            self.order.push_back(key);
        }
    }

    fn pop(&mut self) -> Option<Key> {
        let key = self.order.pop_front()?;
        self.all.remove(&key);
        Some(key)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs until `shutdown`; then thaws whatever is frozen, journals, and ends. `listed` turns true when the watch shows
/// the present state.
///
/// # Errors
/// The watch ended.
pub async fn run(
    context: Context,
    listed: watch::Sender<bool>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ControllerError> {
    let events = backup_events(&context.client);
    run_with(context, events, listed, shutdown).await
}

/// The same with Backups as `events` shows them. Nothing is taken from it before this replica's own Lease is held, and nothing
/// any more while its runs are stopped.
///
/// # Errors
/// The watch ended.
pub async fn run_with(
    context: Context,
    mut events: BackupEvents,
    listed: watch::Sender<bool>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ControllerError> {
    let shared = Arc::new(Shared {
        happenings: Happenings::new(context.client.clone(), context.ownership.identity()),
        turns: Arc::new(Turns::default()),
        needy: Mutex::default(),
        fresh: Mutex::default(),
        running: Mutex::default(),
        waiting: Mutex::default(),
        context,
    });
    let mut tasks: JoinSet<Key> = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    let ownership = shared.context.ownership.clone();
    // Dropping it ends what is in it.
    let mut background: JoinSet<()> = JoinSet::new();
    let (client, clock) = (shared.context.client.clone(), Arc::clone(&shared.context.clock));
    let keeper = ownership.clone();
    background.spawn(async move { keeper.keep(client, clock).await });
    // Nothing is claimed by a replica that the others cannot see.
    tokio::select! {
        () = ownership.held(&shared.context.clock) => {}
        () = &mut shutdown => return Ok(()),
    }
    background.spawn(Sweeper::new(shared.context.clone()).run());
    let mut look = tokio::time::interval(ownership.timing().renew);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let outcome = loop {
        tokio::select! {
            () = &mut shutdown => break Ok(()),
            _ = look.tick() => shared.look_again(&mut tasks),
            // The semaphore is never closed.
            Ok(permit) = shared.turns.run(), if shared.has_fresh() => {
                shared.begin_fresh(permit, &mut tasks);
            }
            event = events.next() => match event {
                None => break Err(ControllerError::WatchEnded),
                Some(Err(error)) => {
                    listed.send_replace(false);
                    debug!(%error, "the watch on Backups broke; it is opened again");
                }
                Some(Ok(Event::Init)) => {}
                Some(Ok(Event::InitDone)) => {
                    listed.send_replace(true);
                }
                Some(Ok(Event::Apply(backup) | Event::InitApply(backup))) => match &backup.0 {
                    Ok(backup) => shared.shown(backup, &mut tasks),
                    Err(invalid) => warn!(
                        namespace = invalid.metadata.namespace,
                        backup = invalid.metadata.name,
                        error = invalid.error,
                        "a Backup cannot be read and is not worked on; reinstall the CRDs of this version"
                    ),
                },
                Some(Ok(Event::Delete(backup))) => {
                    let metadata = backup.0.as_ref().map_or_else(|invalid| &invalid.metadata, |read| &read.metadata);
                    let key = (
                        metadata.namespace.clone().unwrap_or_default(),
                        metadata.name.clone().unwrap_or_default(),
                    );
                    lock(&shared.needy).remove(&key);
                    lock(&shared.waiting).remove(&key);
                }
            },
            Some(done) = tasks.join_next() => match done {
                Ok(key) => shared.done(key, &mut tasks),
                Err(error) => warn!(%error, "work on a Backup ended in a panic"),
            },
        }
    };
    // Others may read the same watch, and go on.
    drop(events);
    // Our Lease is renewed until the last run has ended: a thaw that others took for lost would be recovered twice.
    shared.stop(&mut tasks).await;
    background.shutdown().await;
    if tasks.is_empty() {
        ownership.release(&shared.context.client).await;
    }
    outcome
}

fn key(backup: &Backup) -> Key {
    (backup.namespace().unwrap_or_default(), backup.name_any())
}

/// Who has the claim.
fn executor(backup: &Backup) -> Option<String> {
    backup.status.as_ref().and_then(|status| status.executor.clone())
}

/// Whether nobody began the run: there is nothing to recover and nothing to remove.
fn is_fresh(backup: &Backup) -> bool {
    let begun = backup.status.as_ref().is_some_and(|status| status.attempt > 0 || status.executor.is_some());
    !begun && backup.metadata.deletion_timestamp.is_none() && cancelled(backup).is_none()
}

fn needs_work(backup: &Backup) -> bool {
    let deleting = backup.metadata.deletion_timestamp.is_some();
    if deleting {
        backup.finalizers().iter().any(|one| one == SNAPSHOTS_FINALIZER)
    } else {
        !backup.finished()
    }
}

impl Shared {
    fn shown(self: &Arc<Self>, backup: &Backup, tasks: &mut JoinSet<Key>) {
        let key = key(backup);
        if !needs_work(backup) {
            lock(&self.needy).remove(&key);
            return;
        }
        let executor = executor(backup);
        let running = lock(&self.running);
        if let Some(stop) = running.get(&key) {
            if let Some(why) = cancelled(backup)
                && stop.borrow().is_none()
            {
                stop.send_replace(Some(why));
            }
            drop(running);
            // After the stop: a task that ends meanwhile sees one or the other (`finished_work`).
            lock(&self.needy).insert(key, executor);
            return;
        }
        drop(running);
        let allowed = self.allowed(executor.as_deref());
        lock(&self.needy).insert(key.clone(), executor);
        if is_fresh(backup) {
            lock(&self.fresh).push(key);
        } else if allowed {
            self.begin(key, Duration::ZERO, None, tasks);
        }
    }

    fn has_fresh(&self) -> bool {
        !lock(&self.fresh).order.is_empty()
    }

    /// Gives a permit to the first run that nobody began and that still needs it.
    fn begin_fresh(self: &Arc<Self>, permit: OwnedSemaphorePermit, tasks: &mut JoinSet<Key>) {
        loop {
            let Some(key) = lock(&self.fresh).pop() else { return };
            let executor = lock(&self.needy).get(&key).cloned();
            let wanted = executor.is_some_and(|executor| self.allowed(executor.as_deref()));
            if wanted && !lock(&self.running).contains_key(&key) {
                return self.begin(key, Duration::ZERO, Some(permit), tasks);
            }
        }
    }

    fn allowed(&self, executor: Option<&str>) -> bool {
        self.context.ownership.claim(executor, self.context.clock.mono()).allowed()
    }

    /// Takes up what nobody works on: a replica that fell silent is no event of any Backup.
    fn look_again(self: &Arc<Self>, tasks: &mut JoinSet<Key>) {
        let waiting: Vec<Key> = {
            let (needy, running) = (lock(&self.needy), lock(&self.running));
            let fresh = lock(&self.fresh);
            let free =
                needy.iter().filter(|(key, _)| !running.contains_key(*key) && !fresh.all.contains(*key));
            free.filter(|(_, executor)| self.allowed(executor.as_deref()))
                .map(|(key, _)| key.clone())
                .collect()
        };
        for key in waiting {
            self.begin(key, Duration::ZERO, None, tasks);
        }
    }

    /// `permit`: for the first attempt of a run that nobody began.
    fn begin(
        self: &Arc<Self>,
        key: Key,
        after: Duration,
        permit: Option<OwnedSemaphorePermit>,
        tasks: &mut JoinSet<Key>,
    ) {
        let (sender, stop) = watch::channel(None);
        lock(&self.running).insert(key.clone(), sender);
        let shared = Arc::clone(self);
        tasks.spawn(async move {
            if !after.is_zero() {
                let mut stopped = stop.clone();
                tokio::select! {
                    () = tokio::time::sleep(after) => {}
                    _ = stopped.wait_for(Option::is_some) => {}
                }
            }
            shared.work(&key, stop, permit).await;
            lock(&shared.running).remove(&key);
            key
        });
    }

    /// A task ended: what the watch showed meanwhile is taken up again.
    fn done(self: &Arc<Self>, key: Key, tasks: &mut JoinSet<Key>) {
        let allowed = lock(&self.needy).get(&key).is_some_and(|executor| self.allowed(executor.as_deref()));
        if allowed && !lock(&self.running).contains_key(&key) {
            let again = lock(&self.waiting).get(&key).map_or(AGAIN_AFTER, |(_, again)| *again);
            self.begin(key, again, None, tasks);
        }
    }

    async fn work(
        &self,
        (namespace, name): &Key,
        stop: watch::Receiver<Option<Abort>>,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let api: Api<Backup> = Api::namespaced(self.context.client.clone(), namespace);
        let read = bounded(format!("read Backup {name}"), api.get_opt(name)).await;
        let backup = match read {
            Ok(Some(backup)) => backup,
            Ok(None) => {
                lock(&self.needy).remove(&(namespace.clone(), name.clone()));
                return;
            }
            Err(error) => {
                warn!(namespace, backup = name, %error, "a Backup could not be read; trying again");
                return;
            }
        };
        if !needs_work(&backup) {
            lock(&self.needy).remove(&(namespace.clone(), name.clone()));
            return;
        }
        let of_backup = executor(&backup);
        let allowed = self.allowed(of_backup.as_deref());
        lock(&self.needy).insert((namespace.clone(), name.clone()), of_backup);
        if !allowed {
            return;
        }
        let _work = self.context.ownership.works_on("backups", namespace, name);
        let deleting = backup.metadata.deletion_timestamp.is_some();
        let begun = backup.status.as_ref().is_some_and(|status| status.attempt > 0);
        if deleting && (backup.finished() || !begun) {
            self.delete(&api, &backup, stop).await;
            return;
        }
        // A finalizer cannot be added to what is being deleted; a run that was begun has it.
        let guarded = if deleting { Ok(backup) } else { self.guard(&api, backup).await };
        let backup = match guarded {
            Ok(backup) => backup,
            Err(error) => {
                warn!(namespace, backup = name, %error, "the finalizer was not set; trying again");
                return;
            }
        };
        let (context, happenings) = (self.context.clone(), self.happenings.clone());
        let run =
            BackupRun::new(context, happenings, backup, stop.clone(), Arc::clone(&self.turns)).with(permit);
        match run.go().await {
            Ok(Left::Finished) if deleting => self.delete_finished(&api, name, stop).await,
            Ok(Left::Finished) => self.finished_work((namespace.clone(), name.clone()), &stop),
            Ok(Left::Unfinished) => {}
            Err(error @ JournalError::Disowned(_)) => {
                info!(namespace, backup = name, %error, "another replica has the run");
            }
            Err(error) => warn!(namespace, backup = name, %error, "the run stopped here"),
        }
    }

    /// A run that was deleted has been unwound: now its snapshots go, and it.
    async fn delete_finished(&self, api: &Api<Backup>, name: &str, stop: watch::Receiver<Option<Abort>>) {
        match bounded(format!("read Backup {name}"), api.get_opt(name)).await {
            Ok(Some(backup)) => self.delete(api, &backup, stop).await,
            Ok(None) => {}
            Err(error) => debug!(backup = name, %error, "a Backup could not be read; trying again"),
        }
    }

    /// A run ended. A Backup that was deleted before its task ended still needs the removal of its snapshots.
    fn finished_work(&self, key: Key, stop: &watch::Receiver<Option<Abort>>) {
        lock(&self.needy).remove(&key);
        if stop.borrow().is_some() {
            lock(&self.needy).insert(key, Some(self.context.ownership.identity().to_owned()));
        }
    }

    /// Before anything is made, the Backup gets the finalizer that keeps it until that is gone.
    async fn guard(&self, api: &Api<Backup>, backup: Backup) -> Result<Backup, RequestError> {
        if backup.finalizers().iter().any(|one| one == SNAPSHOTS_FINALIZER) {
            return Ok(backup);
        }
        let mut finalizers = backup.finalizers().to_vec();
        finalizers.push(SNAPSHOTS_FINALIZER.to_owned());
        self.set_finalizers(api, &backup, &finalizers).await
    }

    async fn set_finalizers(
        &self,
        api: &Api<Backup>,
        backup: &Backup,
        finalizers: &[String],
    ) -> Result<Backup, RequestError> {
        let patch = Patch::Merge(serde_json::json!({
            "metadata": {"resourceVersion": backup.resource_version(), "finalizers": finalizers},
        }));
        let name = backup.name_any();
        bounded(
            format!("set the finalizer of Backup {name}"),
            api.patch(&name, &PatchParams::default(), &patch),
        )
        .await
    }

    /// Removes the snapshots of a deleted Backup with their data, then lets it go (docs/api.md, what deletes data).
    async fn delete(&self, api: &Api<Backup>, backup: &Backup, mut stop: watch::Receiver<Option<Abort>>) {
        let (namespace, name) = key(backup);
        let circumstances = match ending::look(&self.context, &namespace, backup).await {
            Ok(found) => found,
            Err(error) => {
                let note = format!("nothing is deleted before it is known whether its data may go: {error}");
                warn!(namespace, backup = name, note, "a deletion waits; it is tried again");
                self.wait(backup, Wait { reason: "DeletionBlocked", note }, AGAIN_AFTER).await;
                return;
            }
        };
        let kept = match ending::decide(&circumstances) {
            Ending::Delete => None,
            Ending::Leave(why) => Some(why),
            Ending::Wait(wait) => {
                // The end of a hold is seen by the watch; that of a Restore, or of the namespace, is looked for.
                let again = if circumstances.held.is_some() { HELD_AGAIN } else { AGAIN_AFTER };
                self.wait(backup, wait, again).await;
                return;
            }
        };
        lock(&self.waiting).remove(&(namespace.clone(), name.clone()));
        if let Some(why) = kept {
            info!(namespace, backup = name, why, "the Backup goes, its snapshots' data stays");
        } else {
            let scope = Scope::of_backup(backup);
            let removal = cleanup::remove(&self.context, &namespace, &scope, BLOCKED_AFTER);
            let removed = tokio::select! {
                removed = removal => removed,
                _ = stop.wait_for(|why| why.as_ref().is_some_and(|why| why.reason == Reason::Shutdown)) => return,
            };
            match removed {
                Ok(true) => {}
                Ok(false) => {
                    let note = "its snapshots are still there: check the snapshot controller and the driver's sidecar, \
                                or annotate the Backup with stillpoint.dev/abandon=true to let it go and keep the data";
                    self.happenings.warning(backup, "DeletionBlocked", note).await;
                    return;
                }
                Err(error) => {
                    warn!(namespace, backup = name, %error, "deleting its snapshots failed; trying again");
                    return;
                }
            }
        }
        // Read again: the object may have changed while its snapshots went.
        let fresh = match bounded(format!("read Backup {name}"), api.get_opt(&name)).await {
            Ok(Some(fresh)) => fresh,
            Ok(None) => return,
            Err(error) => {
                warn!(namespace, backup = name, %error, "a Backup could not be read; trying again");
                return;
            }
        };
        let rest: Vec<String> =
            fresh.finalizers().iter().filter(|one| *one != SNAPSHOTS_FINALIZER).cloned().collect();
        match self.set_finalizers(api, &fresh, &rest).await {
            Ok(_) => {
                lock(&self.needy).remove(&(namespace, name));
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                warn!(namespace, backup = name, %error, "the finalizer was not removed; trying again")
            }
        }
    }

    /// A deleted Backup stays for now: that is told once for each reason.
    async fn wait(&self, backup: &Backup, wait: Wait, again: Duration) {
        let news = lock(&self.waiting).insert(key(backup), (wait.reason, again));
        if news.is_none_or(|(before, _)| before != wait.reason) {
            self.happenings.warning(backup, wait.reason, &wait.note).await;
        }
    }

    /// Stops every run: thaw first, then the journal, then the end.
    async fn stop(self: &Arc<Self>, tasks: &mut JoinSet<Key>) {
        for stop in lock(&self.running).values() {
            let why = Abort::new(
                Reason::Shutdown,
                "the controller was stopped; the slot is tried again at its next start",
            );
            stop.send_replace(Some(why));
        }
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_WITHIN, all).await.is_err() {
            warn!(left = tasks.len(), "runs did not end in time; their sessions end with this process");
        }
    }
}
