//! Which Restores this replica carries out: those that nobody has, its own, and those of replicas that fell silent.
//!
//! A Restore is claimed as a Backup is: by compare-and-swap of `status.executor`, by a replica that keeps a Lease
//! (docs/design/freeze.md §5). What the watch shows is remembered as a key and its claim; a task reads its Restore itself.

use std::collections::{HashMap, HashSet};

use futures::StreamExt;
use kube::runtime::watcher::Event;
use kube::{Api, ResourceExt};
use stillpoint_api::restore::{Restore, RestorePhase};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tracing::{debug, warn};

use super::carry_out;
use crate::context::{Context, bounded};
use crate::controller::ControllerError;
use crate::happenings::Happenings;
use crate::steady_watch::{OPEN_AGAIN_AFTER, steady_watch};

type Key = (String, String);

struct Desk {
    context: Context,
    happenings: Happenings,
    /// Restores that are not over, and who has the claim.
    open: HashMap<Key, Option<String>>,
    /// Restores that a task of this process works on.
    active: HashSet<Key>,
    tasks: JoinSet<Key>,
}

/// Runs until `shutdown`; what is under way then is taken up by another replica or the next start. `listed` turns true
/// when the watch shows the present state.
///
/// # Errors
/// The watch ended.
pub async fn run(
    context: Context,
    listed: watch::Sender<bool>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ControllerError> {
    let happenings = Happenings::new(context.client.clone(), context.ownership.identity());
    let api: Api<Restore> = Api::all(context.client.clone());
    let mut events = steady_watch(api, OPEN_AGAIN_AFTER);
    let mut shutdown = std::pin::pin!(shutdown);
    // Nothing is claimed by a replica that the others cannot see.
    tokio::select! {
        () = context.ownership.held(&context.clock) => {}
        () = &mut shutdown => return Ok(()),
    }
    let mut look = tokio::time::interval(context.ownership.timing().renew);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut desk =
        Desk { context, happenings, open: HashMap::new(), active: HashSet::new(), tasks: JoinSet::new() };
    loop {
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            // A replica that fell silent is no event of any Restore, and neither is a status that could not be written.
            _ = look.tick() => desk.look_again(),
            event = events.next() => match event {
                None => return Err(ControllerError::WatchEnded),
                Some(Err(error)) => {
                    listed.send_replace(false);
                    debug!(%error, "the watch on Restores broke; it is opened again");
                }
                Some(Ok(Event::Init)) => desk.open.clear(),
                Some(Ok(Event::InitDone)) => {
                    listed.send_replace(true);
                }
                Some(Ok(Event::Delete(restore))) => {
                    desk.open.remove(&key(&restore));
                }
                Some(Ok(Event::Apply(restore) | Event::InitApply(restore))) => desk.shown(&restore),
            },
            Some(done) = desk.tasks.join_next() => match done {
                Ok(key) => {
                    desk.active.remove(&key);
                }
                Err(error) => warn!(%error, "work on a Restore ended in a panic"),
            },
        }
    }
}

fn key(restore: &Restore) -> Key {
    (restore.namespace().unwrap_or_default(), restore.name_any())
}

fn over(restore: &Restore) -> bool {
    match restore.status.as_ref().map(|status| status.phase).unwrap_or_default() {
        RestorePhase::Succeeded | RestorePhase::Failed => true,
        RestorePhase::Pending | RestorePhase::Restoring => false,
    }
}

/// Who has the claim.
pub(super) fn executor(restore: &Restore) -> Option<&str> {
    restore.status.as_ref().and_then(|status| status.executor.as_deref())
}

fn allowed(context: &Context, executor: Option<&str>) -> bool {
    context.ownership.claim(executor, context.clock.mono()).allowed()
}

impl Desk {
    fn shown(&mut self, restore: &Restore) {
        let key = key(restore);
        if over(restore) {
            self.open.remove(&key);
            return;
        }
        self.open.insert(key.clone(), executor(restore).map(str::to_owned));
        self.begin(key);
    }

    fn look_again(&mut self) {
        let open: Vec<Key> = self.open.keys().cloned().collect();
        open.into_iter().for_each(|key| self.begin(key));
    }

    /// Begins what nobody else has.
    fn begin(&mut self, key: Key) {
        let executor = self.open.get(&key).and_then(Option::as_deref);
        if !allowed(&self.context, executor) || !self.active.insert(key.clone()) {
            return;
        }
        let (context, happenings) = (self.context.clone(), self.happenings.clone());
        self.tasks.spawn(async move {
            work(&context, &happenings, &key).await;
            key
        });
    }
}

async fn work(context: &Context, happenings: &Happenings, (namespace, name): &Key) {
    let api: Api<Restore> = Api::namespaced(context.client.clone(), namespace);
    match bounded(format!("read Restore {name}"), api.get_opt(name)).await {
        Ok(Some(restore)) if !over(&restore) && allowed(context, executor(&restore)) => {
            let _work = context.ownership.works_on("restores", namespace, name);
            carry_out(context, happenings, restore).await;
        }
        Ok(_) => {}
        Err(error) => warn!(namespace, restore = name, %error, "a Restore could not be read; trying again"),
    }
}
