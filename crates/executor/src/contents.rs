//! The one watch on VolumeSnapshotContents, shared by all runs.
//!
//! A cut signal is reported once, the moment the watch shows it, to the run that asked for that snapshot; a handle
//! that the watch had shown before the run subscribed is never reported (docs/design/freeze.md §1). The watch keeps
//! a handle per content and nothing else.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use stillpoint_api::evidence::CutSignal;
use stillpoint_api::snapshot::VolumeSnapshotContent;
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use crate::group_contents::GroupContentWatch;
use crate::run::CutSeen;

/// Set by the sidecar while it works on a snapshot: the sidecar is alive.
const BEING_CREATED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-created";
/// Pause after the watch broke: long enough not to hammer a starting API server, short against every budget.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// What the watch says about one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContentNews {
    /// The sidecar was seen to work on it.
    Seen,
    /// It is cut.
    Cut(CutSeen),
    /// It shows an error and no handle.
    Failed(String),
}

/// The shared watch.
#[derive(Clone)]
pub struct ContentWatch {
    shared: Arc<Shared>,
    groups: GroupContentWatch,
}

struct Shared {
    table: Mutex<Table>,
    listed: watch::Sender<bool>,
}

#[derive(Default)]
struct Table {
    /// Driver and handle that were shown, by content name.
    handles: BTreeMap<String, (String, String)>,
    /// Who waits for which snapshot (namespace, name).
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

impl Default for ContentWatch {
    fn default() -> Self {
        Self::new()
    }
}

impl ContentWatch {
    /// A watch that is not running yet; [`ContentWatch::run`] feeds it.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared { table: Mutex::default(), listed: watch::Sender::new(false) }),
            groups: GroupContentWatch::default(),
        }
    }

    /// The watch on the contents of groups, which nobody opens before a run needs it.
    pub const fn groups(&self) -> &GroupContentWatch {
        &self.groups
    }

    /// Whether the watch shows the present state: false at start and while it is broken.
    pub fn is_listed(&self) -> bool {
        *self.shared.listed.borrow()
    }

    /// Waits until the watch shows the present state, at most `patience`.
    pub async fn listed(&self, patience: Duration) -> bool {
        let mut listed = self.shared.listed.subscribe();
        let answer = tokio::time::timeout(patience, listed.wait_for(|listed| *listed)).await;
        answer.is_ok_and(|waited| waited.is_ok())
    }

    /// Follows one snapshot, by namespace and name, before it is created.
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
    pub fn shares_handle(&self, content: &VolumeSnapshotContent) -> Option<String> {
        owner_of_handle(&lock(&self.shared.table).handles, content).map(ToOwned::to_owned)
    }

    /// Keeps the watches open until the future is dropped.
    pub async fn run(self, client: Client) {
        // The watch on groups ends alone only if it was never wanted.
        let groups = self.groups.clone().run(client.clone());
        let (_, ()) = tokio::join!(groups, self.run_singles(client));
    }

    async fn run_singles(self, client: Client) {
        let api: Api<VolumeSnapshotContent> = Api::all(client);
        let open = || watcher(api.clone(), watcher::Config::default()).boxed();
        let mut events = open();
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.take(event),
                Err(error) => {
                    self.shared.listed.send_replace(false);
                    // Without the snapshot CRDs this is the normal state; preflight says so to whoever needs them.
                    debug!(%error, "the watch on snapshot contents broke; it is opened again");
                    tokio::time::sleep(RETRY_AFTER).await;
                    // A new one lists again: a watch that could not be opened does not say when it is open at last.
                    events = open();
                }
            }
        }
        warn!("the watch on snapshot contents ended");
    }

    fn take(&self, event: Event<VolumeSnapshotContent>) {
        match event {
            Event::Init => {}
            Event::Apply(content) | Event::InitApply(content) => self.shown(&content),
            Event::InitDone => {
                self.shared.listed.send_replace(true);
            }
            Event::Delete(content) => {
                if let Some(name) = &content.metadata.name {
                    lock(&self.shared.table).handles.remove(name);
                }
            }
        }
    }

    fn shown(&self, content: &VolumeSnapshotContent) {
        let Some(name) = content.metadata.name.clone() else { return };
        let mut table = lock(&self.shared.table);
        let known = table.handles.get(&name).map(|(_, handle)| handle.clone());
        let of = &content.spec.volume_snapshot_ref;
        let key = (of.namespace.clone().unwrap_or_default(), of.name.clone().unwrap_or_default());
        let Table { handles, waiting } = &mut *table;
        if let Some(waiting) = waiting.get_mut(&key) {
            let news = match owner_of_handle(handles, content) {
                Some(owner) => vec![ContentNews::Failed(not_new(content, owner))],
                None => news_of(content, waiting.signal, known.as_deref(), waiting.seen),
            };
            for news in news {
                waiting.seen |= news == ContentNews::Seen;
                // A receiver that is gone belongs to a run that ended.
                let _ = waiting.news.send((waiting.token, news));
            }
        }
        let handle = content.status.as_ref().and_then(|status| status.snapshot_handle.clone());
        let waits_for_ready = table
            .waiting
            .get(&key)
            .is_some_and(|waiting| waiting.signal == CutSignal::Ready && !ready(content));
        if let Some(handle) = handle
            && !waits_for_ready
        {
            table.handles.insert(name, (content.spec.driver.clone(), handle));
        }
    }
}

fn ready(content: &VolumeSnapshotContent) -> bool {
    content.status.as_ref().and_then(|status| status.ready_to_use) == Some(true)
}

/// The other content that showed this content's handle, for the same driver.
fn owner_of_handle<'h>(
    handles: &'h BTreeMap<String, (String, String)>,
    content: &VolumeSnapshotContent,
) -> Option<&'h str> {
    let handle = content.status.as_ref()?.snapshot_handle.as_ref()?;
    let name = content.metadata.name.as_ref();
    // One look per state of a content that somebody waits for: a few thousand comparisons at most.
    let mut others = handles.iter().filter(|(other, _)| Some(*other) != name);
    others
        .find(|(_, (driver, shown))| shown == handle && *driver == content.spec.driver)
        .map(|(other, _)| other.as_str())
}

/// A driver answers with a snapshot that it had when it takes two names for one.
fn not_new(content: &VolumeSnapshotContent, owner: &str) -> String {
    format!(
        "driver {} answered with a snapshot that VolumeSnapshotContent {owner} has already, so it did not cut: snapshot \
         names collide; check --snapshot-name-uuid-length of its csi-snapshotter and whether the driver truncates names",
        content.spec.driver
    )
}

/// What one state of a content says, given the handle that was known of it before.
fn news_of(
    content: &VolumeSnapshotContent,
    signal: CutSignal,
    known: Option<&str>,
    seen: bool,
) -> Vec<ContentNews> {
    let mut news = Vec::new();
    let status = content.status.as_ref();
    let working = content.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(BEING_CREATED));
    if !seen && (working || status.is_some()) {
        news.push(ContentNews::Seen);
    }
    let Some(status) = status else { return news };
    match &status.snapshot_handle {
        Some(handle) if known != Some(handle.as_str()) => {
            let signalled = match signal {
                CutSignal::Handle => true,
                CutSignal::Ready => ready(content),
            };
            if signalled {
                news.push(ContentNews::Cut(CutSeen {
                    snapshot_uid: content.spec.volume_snapshot_ref.uid.clone().unwrap_or_default(),
                    content: content.metadata.name.clone().unwrap_or_default(),
                    handle: handle.clone(),
                    creation_time: status.creation_time,
                    volume_handles: content.spec.source.volume_handle.iter().cloned().collect(),
                    parts: Vec::new(),
                }));
            }
        }
        Some(_) => {}
        // An error beside a handle is trouble with the upload; the cut stands (csi facts §1.3).
        None => {
            if let Some(message) = status.error.as_ref().and_then(|error| error.message.clone()) {
                news.push(ContentNews::Failed(message));
            }
        }
    }
    news
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_api::snapshot::{
        SnapshotError, SnapshotRef, VolumeSnapshotContentSource, VolumeSnapshotContentSpec,
        VolumeSnapshotContentStatus,
    };

    fn content(status: Option<VolumeSnapshotContentStatus>) -> VolumeSnapshotContent {
        let mut content = VolumeSnapshotContent::new(
            "c",
            VolumeSnapshotContentSpec {
                source: VolumeSnapshotContentSource {
                    volume_handle: Some("v".into()),
                    snapshot_handle: None,
                },
                volume_snapshot_ref: SnapshotRef {
                    namespace: Some("ns".into()),
                    name: Some("s".into()),
                    uid: Some("u".into()),
                },
                ..VolumeSnapshotContentSpec::default()
            },
        );
        content.status = status;
        content
    }

    fn with_handle(ready: bool) -> VolumeSnapshotContent {
        content(Some(VolumeSnapshotContentStatus {
            snapshot_handle: Some("h".into()),
            ready_to_use: Some(ready),
            ..VolumeSnapshotContentStatus::default()
        }))
    }

    fn is_cut(news: &[ContentNews]) -> bool {
        news.iter().any(|one| matches!(one, ContentNews::Cut(_)))
    }

    #[test]
    fn the_handle_is_the_cut_signal_and_an_upload_is_not_waited_for() {
        assert!(is_cut(&news_of(&with_handle(false), CutSignal::Handle, None, false)));
    }

    #[test]
    fn a_driver_that_answers_before_it_cuts_is_waited_for_until_ready() {
        assert!(!is_cut(&news_of(&with_handle(false), CutSignal::Ready, None, false)));
        assert!(is_cut(&news_of(&with_handle(true), CutSignal::Ready, None, false)));
    }

    #[test]
    fn a_handle_that_was_shown_before_is_no_signal() {
        assert!(!is_cut(&news_of(&with_handle(true), CutSignal::Handle, Some("h"), false)));
        assert!(is_cut(&news_of(&with_handle(true), CutSignal::Handle, Some("older"), false)));
    }

    #[test]
    fn a_content_without_status_does_not_show_that_the_sidecar_lives() {
        assert!(news_of(&content(None), CutSignal::Handle, None, false).is_empty());
    }

    #[test]
    fn an_error_without_a_handle_is_a_failure() {
        let failed = content(Some(VolumeSnapshotContentStatus {
            error: Some(SnapshotError { message: Some("quota".into()), time: None }),
            ..VolumeSnapshotContentStatus::default()
        }));
        let news = news_of(&failed, CutSignal::Handle, None, true);
        assert_eq!(news, vec![ContentNews::Failed("quota".into())]);
    }

    #[test]
    fn news_reaches_only_who_asked_and_once() {
        let watch = ContentWatch::new();
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let subscription = watch.subscribe("ns", "s", CutSignal::Handle, 4, sender);
        watch.take(Event::Apply(with_handle(false)));
        watch.take(Event::Apply(with_handle(true)));
        let mut got = Vec::new();
        while let Ok((token, news)) = receiver.try_recv() {
            got.push((token, is_cut(&[news])));
        }
        assert_eq!(got, vec![(4, false), (4, true)]);
        drop(subscription);
        assert!(lock(&watch.shared.table).waiting.is_empty());
    }

    #[test]
    fn a_handle_that_another_content_has_is_a_failure_and_never_a_cut() {
        let watch = ContentWatch::new();
        let mut older = with_handle(true);
        older.metadata.name = Some("older".into());
        older.spec.volume_snapshot_ref.name = Some("older".into());
        watch.take(Event::InitApply(older.clone()));
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let _subscription = watch.subscribe("ns", "s", CutSignal::Handle, 0, sender);
        watch.take(Event::Apply(with_handle(true)));
        let Ok((0, ContentNews::Failed(why))) = receiver.try_recv() else { panic!("no failure was told") };
        assert!(why.contains("older") && why.contains("--snapshot-name-uuid-length"), "{why}");
        assert_eq!(watch.shares_handle(&with_handle(true)).as_deref(), Some("older"));
        // Another driver may well have the same handle.
        let mut foreign = with_handle(true);
        foreign.spec.driver = "other".into();
        assert_eq!(watch.shares_handle(&foreign), None);
        watch.take(Event::Delete(older));
        assert_eq!(watch.shares_handle(&with_handle(true)), None);
    }

    #[test]
    fn a_handle_listed_before_the_snapshot_was_asked_for_is_never_reported() {
        let watch = ContentWatch::new();
        watch.take(Event::InitApply(with_handle(true)));
        watch.take(Event::InitDone);
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let _subscription = watch.subscribe("ns", "s", CutSignal::Handle, 0, sender);
        watch.take(Event::Apply(with_handle(true)));
        while let Ok((_, news)) = receiver.try_recv() {
            assert!(!is_cut(&[news]));
        }
    }
}
