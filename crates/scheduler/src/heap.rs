//! Which policy is due next: one timer for all of them.
//!
//! Setting, removing and taking cost O(log n). A changed entry leaves its old one behind, which is recognised as
//! stale when it comes up; stale entries never outnumber the live ones by more than a constant.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;

use jiff::Timestamp;

/// Stale entries that are tolerated whatever the number of live ones, so that small heaps are not rebuilt.
const STALE_FLOOR: usize = 64;

/// Keys by the time at which they are due.
#[derive(Debug)]
pub struct DueHeap<K> {
    heap: BinaryHeap<Reverse<(Timestamp, K)>>,
    live: HashMap<K, Timestamp>,
}

impl<K> Default for DueHeap<K> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), live: HashMap::new() }
    }
}

impl<K: Clone + Eq + Hash + Ord> DueHeap<K> {
    /// `key` is due at `due`, and at no other time.
    pub fn set(&mut self, key: K, due: Timestamp) {
        if self.live.insert(key.clone(), due) == Some(due) {
            return;
        }
        self.heap.push(Reverse((due, key)));
        if self.heap.len() > 2 * self.live.len() + STALE_FLOOR {
            self.heap = self.live.iter().map(|(key, due)| Reverse((*due, key.clone()))).collect();
        }
    }

    /// `key` is not due any more.
    pub fn remove(&mut self, key: &K) {
        self.live.remove(key);
    }

    /// When the first key is due.
    pub fn next_due(&mut self) -> Option<Timestamp> {
        self.first().map(|(_, due)| due)
    }

    /// The first key, and when it is due.
    pub fn first(&mut self) -> Option<(&K, Timestamp)> {
        while let Some(Reverse((due, key))) = self.heap.peek() {
            if self.live.get(key) == Some(due) {
                break;
            }
            self.heap.pop();
        }
        self.heap.peek().map(|Reverse((due, key))| (key, *due))
    }

    /// Takes the first key that is due at `now`.
    pub fn pop_due(&mut self, now: Timestamp) -> Option<K> {
        if self.next_due()? > now {
            return None;
        }
        let Reverse((_, key)) = self.heap.pop()?;
        self.live.remove(&key);
        Some(key)
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn keys_come_out_when_they_are_due_and_in_order() {
        let mut heap = DueHeap::default();
        heap.set("b", at(20));
        heap.set("a", at(10));
        heap.set("c", at(30));
        assert_eq!(heap.pop_due(at(9)), None);
        assert_eq!(heap.pop_due(at(20)), Some("a"));
        assert_eq!(heap.pop_due(at(20)), Some("b"));
        assert_eq!(heap.pop_due(at(20)), None);
        assert_eq!(heap.next_due(), Some(at(30)));
    }

    #[test]
    fn a_moved_or_removed_key_does_not_come_out_at_its_old_time() {
        let mut heap = DueHeap::default();
        heap.set("moved", at(10));
        heap.set("moved", at(50));
        heap.set("gone", at(20));
        heap.remove(&"gone");
        assert_eq!(heap.pop_due(at(40)), None);
        assert_eq!(heap.pop_due(at(50)), Some("moved"));
        assert!(heap.is_empty());
    }

    #[test]
    fn a_key_set_back_to_an_earlier_time_comes_out_once() {
        let mut heap = DueHeap::default();
        heap.set("a", at(10));
        heap.set("a", at(50));
        heap.set("a", at(10));
        assert_eq!(heap.pop_due(at(99)), Some("a"));
        assert_eq!(heap.pop_due(at(99)), None);
    }

    #[test]
    fn moving_one_key_for_ever_does_not_grow_the_heap() {
        let mut heap = DueHeap::default();
        for second in 0..10_000 {
            heap.set("a", at(second));
        }
        assert!(heap.heap.len() <= 2 + STALE_FLOOR, "{}", heap.heap.len());
        assert_eq!(heap.next_due(), Some(at(9_999)));
    }
}
