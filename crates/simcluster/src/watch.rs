//! Watches: the current objects when asked for, then every change in order, bookmarks in between. A change that takes
//! an object into or out of the selection arrives as ADDED or DELETED. A start the history no longer reaches ends
//! with an ERROR event carrying a 410.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::error::ApiError;
use crate::resources::Resource;
use crate::store::{Change, ChangeKind, Scope, Store};

/// What a client asked to watch, and how.
pub(crate) struct Watch {
    pub resource: Arc<Resource>,
    pub scope: Scope,
    /// `None`: begin with the current objects.
    pub from: Option<u64>,
    /// Mark the end of the initial objects (streaming lists).
    pub announce_initial: bool,
    pub bookmarks: Option<Duration>,
    pub timeout: Duration,
    /// How an object leaves: conversions and metadata-only answers.
    pub present: Box<dyn Fn(&Value) -> Value + Send + Sync>,
}

impl Watch {
    /// Runs until the client leaves, the timeout passes or the history is lost.
    pub(crate) async fn run(self, store: Arc<Store>, lines: mpsc::Sender<Bytes>) {
        let finished = tokio::time::timeout(self.timeout, self.follow(&store, &lines)).await;
        if finished.is_err() && self.bookmarks.is_some() {
            let _ = lines.send(self.bookmark(store.version(), false)).await;
        }
    }

    /// `None` when the client has gone or the watch has ended with an error event.
    async fn follow(&self, store: &Store, lines: &mpsc::Sender<Bytes>) -> Option<()> {
        let table = self.resource.table();
        let mut changed = store.subscribe(&table);
        let mut cursor = match self.from {
            Some(version) => version,
            None => {
                let page = store.list(&table, &self.scope, 0, "").ok()?;
                for object in &page.items {
                    lines.send(self.line("ADDED", &object.value())).await.ok()?;
                }
                if self.announce_initial {
                    lines.send(self.bookmark(page.version, true)).await.ok()?;
                }
                page.version
            }
        };
        let period = self.bookmarks.unwrap_or(Duration::from_secs(3600));
        let mut bookmark = tokio::time::interval(period);
        bookmark.reset();
        loop {
            changed.borrow_and_update();
            match store.since(&table, cursor) {
                Ok((changes, complete_to)) => {
                    for change in &changes {
                        if let Some(line) = self.event(change) {
                            lines.send(line).await.ok()?;
                        }
                    }
                    cursor = complete_to;
                }
                Err(expired) => {
                    lines.send(error_line(&expired)).await.ok()?;
                    return None;
                }
            }
            tokio::select! {
                alive = changed.changed() => alive.ok()?,
                () = lines.closed() => return None,
                _ = bookmark.tick() => {
                    if self.bookmarks.is_some() {
                        // Everything up to here was sent: take in what came before the mark first.
                        if store.since(&table, cursor).is_ok_and(|(changes, _)| changes.is_empty()) {
                            lines.send(self.bookmark(cursor, false)).await.ok()?;
                        }
                    }
                }
            }
        }
    }

    fn event(&self, change: &Change) -> Option<Bytes> {
        let before = change.previous.as_deref().is_some_and(|object| self.scope.holds(object));
        let after = change.kind != ChangeKind::Deleted && self.scope.holds(&change.object);
        match (before, after) {
            (false, true) => Some(self.line("ADDED", &change.object)),
            (true, true) => Some(self.line("MODIFIED", &change.object)),
            (true, false) => Some(self.line("DELETED", &change.object)),
            (false, false) => None,
        }
    }

    fn line(&self, kind: &str, object: &Value) -> Bytes {
        to_line(&json!({"type": kind, "object": (self.present)(object)}))
    }

    fn bookmark(&self, version: u64, initial_end: bool) -> Bytes {
        let mut meta = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
        if initial_end {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = json!({
            "apiVersion": self.resource.api_version(), "kind": self.resource.kind, "metadata": meta,
        });
        to_line(&json!({"type": "BOOKMARK", "object": object}))
    }
}

fn error_line(error: &ApiError) -> Bytes {
    to_line(&json!({"type": "ERROR", "object": error.to_status()}))
}

fn to_line(event: &Value) -> Bytes {
    let mut line = event.to_string();
    line.push('\n');
    Bytes::from(line)
}
