//! A watch on what shows that something is cut, shared by all runs: contents of snapshots, or of groups.
//!
//! A cut signal is reported once, the moment the watch shows it, to the run that asked for it; a handle that the watch
//! had shown before, on this content or on another, is never one (docs/design/freeze.md §1). The watch keeps a handle per
//! content, and the names of those contents that were made for a request of ours and carry no label of ours yet.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher::Event;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use stillpoint_api::evidence::CutSignal;
use stillpoint_api::snapshot::SnapshotRef;
use tokio::sync::{mpsc, watch};
use tracing::debug;

use crate::run::CutSeen;
use crate::steady_watch::steady_watch;

/// Pause after the watch broke: long enough not to hammer a starting API server, short against every budget.
const OPEN_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// What the watch says about one cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContentNews {
    /// The sidecar was seen to work on it.
    Seen,
    /// It is cut.
    Cut(CutSeen),
    /// It shows an error and no handle.
    Failed(String),
}

/// What a content's status says of its cut.
#[derive(Clone, Copy, Debug)]
pub struct CutStatus<'c> {
    /// The driver's name for what it cut.
    pub handle: Option<&'c str>,
    /// Whether it may be used.
    pub ready: bool,
    /// The newest trouble.
    pub error: Option<&'c str>,
}

/// A cluster-scoped object in which a sidecar reports a cut.
pub trait CutContent: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static {
    /// Annotation that the sidecar sets while it works: it is alive.
    const BEING_CREATED: &'static str;

    /// The request that it answers.
    fn asked_as(&self) -> &SnapshotRef;

    /// The driver.
    fn driver(&self) -> &str;

    /// What its status says, if it has one.
    fn cut_status(&self) -> Option<CutStatus<'_>>;

    /// What the run is told of the cut.
    fn cut_seen(&self, handle: &str) -> CutSeen;

    /// The request, where that is one of ours by its name and this object carries no label of ours.
    fn unnamed(&self) -> Option<&SnapshotRef> {
        None
    }

    /// Why a handle that content `other` showed before proves that the driver did not cut, and what to do.
    fn not_new(&self, other: &str) -> String;
}

/// A content that was made for a request of ours and does not say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unnamed {
    /// The content.
    pub content: String,
    /// Namespace of the request.
    pub namespace: String,
    /// Name of the request.
    pub snapshot: String,
    /// UID of the request.
    pub snapshot_uid: String,
}

/// The shared watch.
pub struct CutWatch<K> {
    shared: Arc<Shared>,
    kind: PhantomData<fn() -> K>,
}

struct Shared {
    table: Mutex<Table>,
    wanted: watch::Sender<bool>,
    listed: watch::Sender<bool>,
}

#[derive(Default)]
struct Table {
    /// Driver and handle that were shown, by content name.
    handles: BTreeMap<String, (String, String)>,
    /// Contents of ours without our labels, by name: those of unfinished runs, and what such runs left behind.
    unnamed: BTreeMap<String, Unnamed>,
    /// Who waits for which request (namespace, name).
    waiting: HashMap<(String, String), Waiting>,
}

struct Waiting {
    signal: CutSignal,
    seen: bool,
    news: mpsc::UnboundedSender<(usize, ContentNews)>,
    token: usize,
}

/// A subscription; dropping it ends it.
pub struct Subscription {
    shared: Arc<Shared>,
    key: (String, String),
}

impl Drop for Subscription {
    fn drop(&mut self) {
        lock(&self.shared.table).waiting.remove(&self.key);
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K> Clone for CutWatch<K> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), kind: PhantomData }
    }
}

impl<K: CutContent> CutWatch<K> {
    /// A watch that [`CutWatch::run`] opens at once, or, if it is not `wanted` yet, when somebody first waits for it.
    pub fn new(wanted: bool) -> Self {
        Self {
            shared: Arc::new(Shared {
                table: Mutex::default(),
                wanted: watch::Sender::new(wanted),
                listed: watch::Sender::new(false),
            }),
            kind: PhantomData,
        }
    }

    /// Whether the watch shows the present state: false at start and while it is broken.
    pub fn is_listed(&self) -> bool {
        *self.shared.listed.borrow()
    }

    /// Opens the watch, if nobody did, and waits until it shows the present state, at most `patience`.
    pub async fn listed(&self, patience: Duration) -> bool {
        self.shared.wanted.send_replace(true);
        let mut listed = self.shared.listed.subscribe();
        let answer = tokio::time::timeout(patience, listed.wait_for(|listed| *listed)).await;
        answer.is_ok_and(|waited| waited.is_ok())
    }

    /// Follows one request, by namespace and name, before it is made.
    pub fn subscribe(
        &self,
        namespace: &str,
        name: &str,
        signal: CutSignal,
        token: usize,
        news: mpsc::UnboundedSender<(usize, ContentNews)>,
    ) -> Subscription {
        let key = (namespace.to_owned(), name.to_owned());
        lock(&self.shared.table).waiting.insert(key.clone(), Waiting { signal, seen: false, news, token });
        Subscription { shared: Arc::clone(&self.shared), key }
    }

    /// Another content that shows the same handle of the same driver: deleting either's data deletes both's. Only meaningful
    /// while the watch [is listed](Self::is_listed).
    pub fn shares_handle(&self, content: &K) -> Option<String> {
        owner_of_handle(&lock(&self.shared.table).handles, content).map(ToOwned::to_owned)
    }

    /// What was made for requests of ours and carries no label of ours: of runs that go on, and left behind. Complete while the
    /// watch [is listed](Self::is_listed).
    pub fn unnamed(&self) -> Vec<Unnamed> {
        lock(&self.shared.table).unnamed.values().cloned().collect()
    }

    /// Waits until the watch is wanted, and keeps it open until the future is dropped.
    pub async fn run(self, client: Client) {
        let mut wanted = self.shared.wanted.subscribe();
        if wanted.wait_for(|wanted| *wanted).await.is_err() {
            return;
        }
        let api: Api<K> = Api::all(client);
        let mut events = steady_watch(api, OPEN_AGAIN_AFTER);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.take(event),
                Err(error) => {
                    self.shared.listed.send_replace(false);
                    // Without the snapshot CRDs this is the normal state; preflight says so to whoever needs them.
                    debug!(%error, kind = %K::kind(&()), "the watch on contents broke; it is opened again");
                }
            }
        }
    }

    /// Takes what the watch shows.
    pub(crate) fn take(&self, event: Event<K>) {
        match event {
            // What is listed now says which are left.
            Event::Init => lock(&self.shared.table).unnamed.clear(),
            Event::Apply(content) | Event::InitApply(content) => self.shown(&content),
            Event::InitDone => {
                self.shared.listed.send_replace(true);
            }
            Event::Delete(content) => {
                if let Some(name) = &content.meta().name {
                    let mut table = lock(&self.shared.table);
                    table.handles.remove(name);
                    table.unnamed.remove(name);
                }
            }
        }
    }

    fn shown(&self, content: &K) {
        let Some(name) = content.meta().name.clone() else { return };
        let mut table = lock(&self.shared.table);
        let Table { handles, unnamed, waiting } = &mut *table;
        match unnamed_of(content) {
            Some(one) => unnamed.insert(name.clone(), one),
            None => unnamed.remove(&name),
        };
        let of = content.asked_as();
        let key = (of.namespace.clone().unwrap_or_default(), of.name.clone().unwrap_or_default());
        let status = content.cut_status();
        let mut too_early = false;
        if let Some(waiting) = waiting.get_mut(&key) {
            too_early = waiting.signal == CutSignal::Ready && status.is_none_or(|status| !status.ready);
            let known = handles.get(&name).map(|(_, handle)| handle.as_str());
            let told = match owner_of_handle(handles, content) {
                Some(owner) => vec![ContentNews::Failed(content.not_new(owner))],
                None => news_of(content, waiting.signal, known, waiting.seen),
            };
            for news in told {
                waiting.seen |= news == ContentNews::Seen;
                // A receiver that is gone belongs to a run that ended.
                let _ = waiting.news.send((waiting.token, news));
            }
        }
        if let Some(handle) = status.and_then(|status| status.handle)
            && !too_early
        {
            handles.insert(name, (content.driver().to_owned(), handle.to_owned()));
        }
    }

    /// How many wait for a cut.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.shared.table).waiting.len()
    }

    /// Whether somebody needs the watch.
    #[cfg(test)]
    pub(crate) fn is_wanted(&self) -> bool {
        *self.shared.wanted.borrow()
    }
}

fn unnamed_of<K: CutContent>(content: &K) -> Option<Unnamed> {
    let of = content.unnamed()?;
    Some(Unnamed {
        content: content.meta().name.clone()?,
        namespace: of.namespace.clone()?,
        snapshot: of.name.clone()?,
        snapshot_uid: of.uid.clone()?,
    })
}

/// The other content that showed this content's handle, for the same driver.
fn owner_of_handle<'h, K: CutContent>(
    handles: &'h BTreeMap<String, (String, String)>,
    content: &K,
) -> Option<&'h str> {
    let handle = content.cut_status()?.handle?;
    let name = content.meta().name.as_ref();
    // One look per state of a content that somebody waits for: a few thousand comparisons at most.
    let mut others = handles.iter().filter(|(other, _)| Some(*other) != name);
    others
        .find(|(_, (driver, shown))| shown == handle && driver == content.driver())
        .map(|(other, _)| other.as_str())
}

/// What one state of a content says, given the handle that was known of it before.
pub(crate) fn news_of<K: CutContent>(
    content: &K,
    signal: CutSignal,
    known: Option<&str>,
    seen: bool,
) -> Vec<ContentNews> {
    let mut news = Vec::new();
    let status = content.cut_status();
    let working = content.meta().annotations.as_ref().is_some_and(|all| all.contains_key(K::BEING_CREATED));
    if !seen && (working || status.is_some()) {
        news.push(ContentNews::Seen);
    }
    let Some(status) = status else { return news };
    match status.handle {
        Some(handle) if known != Some(handle) => {
            let signalled = match signal {
                CutSignal::Handle => true,
                CutSignal::Ready => status.ready,
            };
            if signalled {
                news.push(ContentNews::Cut(content.cut_seen(handle)));
            }
        }
        Some(_) => {}
        // An error beside a handle is trouble with the upload; the cut stands.
        None => news.extend(status.error.map(|message| ContentNews::Failed(message.to_owned()))),
    }
    news
}
