//! What the watch on contents shows a replica, as the product's `contents` makes events of it.

use stillpoint_api::evidence::CutSignal;

use super::Micros;
use super::replica::{Life, MailboxId};
use super::storage::Content;
use super::world::{Happening, World};
use crate::run::{CutId, CutSeen, Event};

/// Who follows a snapshot.
#[derive(Clone, Debug)]
pub struct Subscription {
    snapshot: String,
    signal: CutSignal,
    seen: bool,
    pub(super) mailbox: MailboxId,
    cut: CutId,
}

impl World {
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

    pub(super) fn relist(&mut self, replica: usize) {
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
                Some(_) if shown_elsewhere => {
                    let message = "the driver answered with a snapshot that it had".to_owned();
                    news.push((of.mailbox, Event::SnapshotFailed { cut: of.cut, message }));
                }
                Some(handle) if known.as_ref() != Some(handle) => {
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
}
