//! The one watch on VolumeGroupSnapshotContents, shared by all runs; opened at the first run that needs it.
//!
//! The same promise as for single snapshots: a cut signal is reported once, to the run that asked for that group, and a
//! handle that the watch had shown before is never one (docs/design/freeze.md §1). The signal is the group's own; members
//! are made afterwards and are never waited for.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use stillpoint_api::evidence::CutSignal;
use stillpoint_api::group_snapshot::VolumeGroupSnapshotContent;
use tokio::sync::{mpsc, watch};
use tracing::debug;

use crate::contents::ContentNews;
use crate::run::{CutPart, CutSeen};

/// Set by the sidecar while it works on a group: the sidecar is alive.
const BEING_CREATED: &str = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-created";
/// Pause after the watch broke: long enough not to hammer a starting API server, short against every budget.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// The shared watch.
#[derive(Clone)]
pub struct GroupContentWatch {
    shared: Arc<Shared>,
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
    /// Who waits for which group (namespace, name).
    waiting: HashMap<(String, String), Waiting>,
}

struct Waiting {
    signal: CutSignal,
    seen: bool,
    news: mpsc::UnboundedSender<(usize, ContentNews)>,
    token: usize,
}

/// A subscription; dropping it ends it.
pub struct GroupSubscription {
    shared: Arc<Shared>,
    key: (String, String),
}

impl Drop for GroupSubscription {
    fn drop(&mut self) {
        lock(&self.shared.table).waiting.remove(&self.key);
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for GroupContentWatch {
    fn default() -> Self {
        Self {
            shared: Arc::new(Shared {
                table: Mutex::default(),
                wanted: watch::Sender::new(false),
                listed: watch::Sender::new(false),
            }),
        }
    }
}

impl GroupContentWatch {
    /// Opens the watch, if nobody did, and waits until it shows the present state, at most `patience`.
    pub async fn listed(&self, patience: Duration) -> bool {
        self.shared.wanted.send_replace(true);
        let mut listed = self.shared.listed.subscribe();
        let answer = tokio::time::timeout(patience, listed.wait_for(|listed| *listed)).await;
        answer.is_ok_and(|waited| waited.is_ok())
    }

    /// Follows one group, by namespace and name, before it is created.
    pub fn subscribe(
        &self,
        namespace: &str,
        name: &str,
        signal: CutSignal,
        token: usize,
        news: mpsc::UnboundedSender<(usize, ContentNews)>,
    ) -> GroupSubscription {
        let key = (namespace.to_owned(), name.to_owned());
        lock(&self.shared.table).waiting.insert(key.clone(), Waiting { signal, seen: false, news, token });
        GroupSubscription { shared: Arc::clone(&self.shared), key }
    }

    /// Waits until the watch is wanted, and keeps it open until the future is dropped.
    pub async fn run(self, client: Client) {
        let mut wanted = self.shared.wanted.subscribe();
        if wanted.wait_for(|wanted| *wanted).await.is_err() {
            return;
        }
        let api: Api<VolumeGroupSnapshotContent> = Api::all(client);
        let open = || watcher(api.clone(), watcher::Config::default()).boxed();
        let mut events = open();
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.take(event),
                Err(error) => {
                    self.shared.listed.send_replace(false);
                    debug!(%error, "the watch on group snapshot contents broke; it is opened again");
                    tokio::time::sleep(RETRY_AFTER).await;
                    // A new one lists again: a watch that could not be opened does not say when it is open at last.
                    events = open();
                }
            }
        }
    }

    fn take(&self, event: Event<VolumeGroupSnapshotContent>) {
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

    fn shown(&self, content: &VolumeGroupSnapshotContent) {
        let Some(name) = content.metadata.name.clone() else { return };
        let mut table = lock(&self.shared.table);
        let Table { handles, waiting } = &mut *table;
        let of = &content.spec.volume_group_snapshot_ref;
        let key = (of.namespace.clone().unwrap_or_default(), of.name.clone().unwrap_or_default());
        let mut too_early = false;
        if let Some(waiting) = waiting.get_mut(&key) {
            too_early = waiting.signal == CutSignal::Ready && !ready(content);
            let known = handles.get(&name).map(|(_, handle)| handle.as_str());
            let told = match other_with_handle(handles, content) {
                Some(other) => vec![ContentNews::Failed(not_new(content, other))],
                None => news_of(content, waiting.signal, known, waiting.seen),
            };
            for news in told {
                waiting.seen |= news == ContentNews::Seen;
                // A receiver that is gone belongs to a run that ended.
                let _ = waiting.news.send((waiting.token, news));
            }
        }
        if let Some(handle) = handle(content)
            && !too_early
        {
            handles.insert(name, (content.spec.driver.clone(), handle.to_owned()));
        }
    }
}

fn handle(content: &VolumeGroupSnapshotContent) -> Option<&str> {
    content.status.as_ref()?.volume_group_snapshot_handle.as_deref()
}

fn ready(content: &VolumeGroupSnapshotContent) -> bool {
    content.status.as_ref().and_then(|status| status.ready_to_use) == Some(true)
}

/// Another content that showed this content's handle, for the same driver.
fn other_with_handle<'h>(
    handles: &'h BTreeMap<String, (String, String)>,
    content: &VolumeGroupSnapshotContent,
) -> Option<&'h str> {
    let handle = handle(content)?;
    let name = content.metadata.name.as_ref();
    let mut others = handles.iter().filter(|(other, _)| Some(*other) != name);
    others
        .find(|(_, (driver, shown))| shown == handle && *driver == content.spec.driver)
        .map(|(other, _)| other.as_str())
}

/// A driver answers with a group that it had when it takes two names for one.
fn not_new(content: &VolumeGroupSnapshotContent, other: &str) -> String {
    format!(
        "driver {} answered with a group that VolumeGroupSnapshotContent {other} has already, so it did not cut: group \
         names collide",
        content.spec.driver
    )
}

/// What one state of a content says, given the handle that was known of it before.
fn news_of(
    content: &VolumeGroupSnapshotContent,
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
    match &status.volume_group_snapshot_handle {
        Some(handle) if known != Some(handle.as_str()) => {
            let signalled = match signal {
                CutSignal::Handle => true,
                CutSignal::Ready => ready(content),
            };
            if signalled {
                news.push(ContentNews::Cut(cut_seen(content, handle)));
            }
        }
        Some(_) => {}
        // An error beside a handle is trouble with the upload; the cut stands.
        None => {
            if let Some(message) = status.error.as_ref().and_then(|error| error.message.clone()) {
                news.push(ContentNews::Failed(message));
            }
        }
    }
    news
}

fn cut_seen(content: &VolumeGroupSnapshotContent, handle: &str) -> CutSeen {
    let status = content.status.clone().unwrap_or_default();
    let parts: Vec<CutPart> = status
        .volume_snapshot_info_list
        .iter()
        .map(|one| CutPart {
            volume_handle: one.volume_handle.clone(),
            handle: one.snapshot_handle.clone(),
            creation_time: one.creation_time,
        })
        .collect();
    CutSeen {
        snapshot_uid: content.spec.volume_group_snapshot_ref.uid.clone().unwrap_or_default(),
        content: content.metadata.name.clone().unwrap_or_default(),
        handle: handle.to_owned(),
        creation_time: status.creation_time.and_then(|time| i64::try_from(time.0.as_nanosecond()).ok()),
        // What was cut, where the sidecar lists it; else what was asked for.
        volume_handles: if parts.is_empty() {
            content.spec.source.volume_handles.clone()
        } else {
            parts.iter().map(|part| part.volume_handle.clone()).collect()
        },
        parts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_api::group_snapshot::{
        VolumeGroupSnapshotContentSource, VolumeGroupSnapshotContentSpec, VolumeGroupSnapshotContentStatus,
        VolumeSnapshotInfo,
    };
    use stillpoint_api::snapshot::{SnapshotError, SnapshotRef};

    fn content(name: &str, handle: Option<&str>, ready: bool) -> VolumeGroupSnapshotContent {
        let mut content = VolumeGroupSnapshotContent::new(
            name,
            VolumeGroupSnapshotContentSpec {
                driver: "d".into(),
                source: VolumeGroupSnapshotContentSource { volume_handles: vec!["v".into(), "w".into()] },
                volume_group_snapshot_ref: SnapshotRef {
                    namespace: Some("ns".into()),
                    name: Some("g".into()),
                    uid: Some("u".into()),
                },
                ..VolumeGroupSnapshotContentSpec::default()
            },
        );
        content.status = Some(VolumeGroupSnapshotContentStatus {
            volume_group_snapshot_handle: handle.map(Into::into),
            ready_to_use: Some(ready),
            volume_snapshot_info_list: vec![VolumeSnapshotInfo {
                volume_handle: "v".into(),
                snapshot_handle: "sv".into(),
                creation_time: Some(7),
                ..VolumeSnapshotInfo::default()
            }],
            ..VolumeGroupSnapshotContentStatus::default()
        });
        content
    }

    /// What a run that waits for `g` is told when the watch shows these states.
    fn told(signal: CutSignal, states: Vec<VolumeGroupSnapshotContent>) -> Vec<ContentNews> {
        let watch = GroupContentWatch::default();
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let _subscription = watch.subscribe("ns", "g", signal, 3, sender);
        states.into_iter().for_each(|state| watch.take(Event::Apply(state)));
        let mut news = Vec::new();
        while let Ok((3, one)) = receiver.try_recv() {
            news.push(one);
        }
        news
    }

    fn cuts(news: &[ContentNews]) -> usize {
        news.iter().filter(|one| matches!(one, ContentNews::Cut(_))).count()
    }

    #[test]
    fn the_groups_handle_is_the_signal_and_says_which_volumes_were_cut() {
        let news = told(CutSignal::Handle, vec![content("c", None, false), content("c", Some("h"), false)]);
        let [ContentNews::Seen, ContentNews::Cut(seen)] = &news[..] else { panic!("{news:?}") };
        assert_eq!((seen.handle.as_str(), seen.snapshot_uid.as_str()), ("h", "u"));
        assert_eq!(seen.volume_handles, ["v"], "what was cut, not what was asked for");
        assert_eq!((seen.parts[0].handle.as_str(), seen.parts[0].creation_time), ("sv", Some(7)));
    }

    #[test]
    fn a_driver_that_answers_early_is_waited_for_until_the_group_is_ready() {
        let early = vec![content("c", Some("h"), false)];
        assert_eq!(cuts(&told(CutSignal::Ready, early.clone())), 0);
        assert_eq!(cuts(&told(CutSignal::Ready, [early, vec![content("c", Some("h"), true)]].concat())), 1);
    }

    #[test]
    fn a_signal_is_told_once_and_a_handle_from_before_never() {
        let twice = vec![content("c", Some("h"), false), content("c", Some("h"), true)];
        assert_eq!(cuts(&told(CutSignal::Handle, twice)), 1);
        let watch = GroupContentWatch::default();
        watch.take(Event::InitApply(content("c", Some("h"), true)));
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let _subscription = watch.subscribe("ns", "g", CutSignal::Handle, 0, sender);
        watch.take(Event::Apply(content("c", Some("h"), true)));
        while let Ok((_, news)) = receiver.try_recv() {
            assert_eq!(cuts(&[news]), 0);
        }
        // The same handle on another content: the driver did not cut.
        watch.take(Event::Apply(content("c2", Some("h"), true)));
        assert!(matches!(receiver.try_recv(), Ok((_, ContentNews::Failed(why))) if why.contains("c has")));
    }

    #[test]
    fn an_error_without_a_handle_is_a_failure() {
        let mut failed = content("c", None, false);
        failed.status.as_mut().unwrap().error =
            Some(SnapshotError { message: Some("quota".into()), time: None });
        let news = told(CutSignal::Handle, vec![failed]);
        assert_eq!(news, [ContentNews::Seen, ContentNews::Failed("quota".into())]);
    }

    #[tokio::test]
    async fn nothing_is_watched_until_somebody_needs_a_group() {
        let watch = GroupContentWatch::default();
        assert!(!*watch.shared.wanted.borrow());
        assert!(!watch.listed(Duration::ZERO).await);
        assert!(*watch.shared.wanted.borrow());
    }
}
