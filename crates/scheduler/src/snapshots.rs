//! Which snapshots of ours exist: how many of each Backup, in some tens of bytes each.
//!
//! Pure. Says that a Backup *seems* to have fewer than it should; whoever asks reads the objects before believing it, so a
//! watch that lags costs a look and nothing more (docs/retention.md).

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;

/// The two objects that a snapshot consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The VolumeSnapshot, in the namespace.
    Snapshot,
    /// The VolumeSnapshotContent.
    Content,
}

/// What the two watches showed.
#[derive(Debug, Default)]
pub struct SnapshotIndex {
    /// UIDs are kept as hashes: two that are equal by chance hide a deletion until the next list at worst.
    hasher: RandomState,
    snapshots: Watched,
    contents: Watched,
}

/// What one watch showed.
#[derive(Debug, Default)]
struct Watched {
    shown: Shelf,
    /// A list is under way: until it ends, what was known before counts.
    listing: Option<Shelf>,
    listed: bool,
}

/// Objects of one kind.
#[derive(Debug, Default)]
struct Shelf {
    /// Backup of each object.
    owners: HashMap<u64, u64>,
    /// Objects of each Backup.
    counts: HashMap<u64, u16>,
}

impl Shelf {
    fn insert(&mut self, object: u64, owner: u64) {
        if let Some(before) = self.owners.insert(object, owner) {
            self.uncount(before);
        }
        let count = self.counts.entry(owner).or_default();
        *count = count.saturating_add(1);
    }

    fn remove(&mut self, object: u64) -> bool {
        let Some(owner) = self.owners.remove(&object) else { return false };
        self.uncount(owner);
        true
    }

    fn uncount(&mut self, owner: u64) {
        if let Some(count) = self.counts.get_mut(&owner) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.counts.remove(&owner);
            }
        }
    }
}

impl SnapshotIndex {
    /// A list of all objects of a kind begins.
    pub fn listing(&mut self, kind: Kind) {
        self.of(kind).listing = Some(Shelf::default());
    }

    /// The list is complete: what it did not show is gone.
    pub fn listed(&mut self, kind: Kind) {
        let watched = self.of(kind);
        if let Some(shelf) = watched.listing.take() {
            watched.shown = shelf;
            watched.listed = true;
        }
    }

    /// An object exists, and is of the Backup with the UID `owner`.
    pub fn present(&mut self, kind: Kind, uid: &str, owner: &str) {
        let (uid, owner) = (self.hasher.hash_one(uid), self.hasher.hash_one(owner));
        let watched = self.of(kind);
        watched.listing.as_mut().unwrap_or(&mut watched.shown).insert(uid, owner);
    }

    /// An object is gone, or on its way out. `true` when that is news.
    pub fn gone(&mut self, kind: Kind, uid: &str) -> bool {
        let uid = self.hasher.hash_one(uid);
        let watched = self.of(kind);
        let listed_now = watched.listing.as_mut().is_some_and(|shelf| shelf.remove(uid));
        watched.shown.remove(uid) || listed_now
    }

    /// Whether the Backup with this UID seems to have fewer than `expected` snapshots or contents. A kind that was never
    /// listed says nothing.
    pub fn is_short(&self, owner: &str, expected: u16) -> bool {
        let owner = self.hasher.hash_one(owner);
        [&self.snapshots, &self.contents].into_iter().any(|watched| {
            watched.listed && watched.shown.counts.get(&owner).copied().unwrap_or(0) < expected
        })
    }

    const fn of(&mut self, kind: Kind) -> &mut Watched {
        match kind {
            Kind::Snapshot => &mut self.snapshots,
            Kind::Content => &mut self.contents,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(objects: &[(&str, &str)]) -> SnapshotIndex {
        let mut index = SnapshotIndex::default();
        for kind in [Kind::Snapshot, Kind::Content] {
            index.listing(kind);
            for (uid, owner) in objects {
                index.present(kind, uid, owner);
            }
            index.listed(kind);
        }
        index
    }

    #[test]
    fn a_watch_that_has_not_listed_yet_says_nothing() {
        let mut index = SnapshotIndex::default();
        assert!(!index.is_short("a", 1));
        index.listing(Kind::Snapshot);
        assert!(!index.is_short("a", 1));
        index.listed(Kind::Snapshot);
        assert!(index.is_short("a", 1) && !index.is_short("a", 0));
    }

    #[test]
    fn each_object_counts_once_however_often_it_is_shown() {
        let mut index = listed(&[("1", "a"), ("2", "a"), ("3", "b")]);
        index.present(Kind::Snapshot, "1", "a");
        assert!(!index.is_short("a", 2) && index.is_short("a", 3) && !index.is_short("b", 1));
        assert!(index.gone(Kind::Snapshot, "1") && !index.gone(Kind::Snapshot, "1"));
        assert!(index.is_short("a", 2) && !index.is_short("a", 1));
    }

    #[test]
    fn a_content_that_is_gone_counts_like_a_snapshot() {
        let mut index = listed(&[("1", "a")]);
        assert!(index.gone(Kind::Content, "1"));
        assert!(index.is_short("a", 1));
    }

    #[test]
    fn what_a_new_list_does_not_show_is_gone_when_it_ends_and_not_before() {
        let mut index = listed(&[("1", "a"), ("2", "b")]);
        index.listing(Kind::Snapshot);
        index.present(Kind::Snapshot, "2", "b");
        assert!(!index.is_short("a", 1));
        index.listed(Kind::Snapshot);
        assert!(index.is_short("a", 1) && !index.is_short("b", 1));
    }

    #[test]
    fn an_object_that_goes_to_another_backup_leaves_its_first_one() {
        let mut index = listed(&[("1", "a")]);
        index.present(Kind::Snapshot, "1", "b");
        assert!(index.is_short("a", 1));
        index.present(Kind::Content, "1", "b");
        assert!(!index.is_short("b", 1));
    }
}
