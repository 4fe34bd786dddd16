//! Who is next: policies that wait for a free task, fairly by namespace, and starts that were decided upon beforehand.
//!
//! Pure. Namespaces take turns, so that one with ninety thousand policies keeps nobody waiting longer than one of one. A start
//! that was planned needs one request when its slot is due; everything else about the policy comes after it, so that a herd is
//! started at the API server's speed (docs/design/schedule.md §3).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::projection::PolicyKey;
use crate::slots::{ON_TIME, SlotSpec};

/// A start that holds good unless something about the policy changes before it: then it is decided anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The slot.
    pub slot: Timestamp,
    /// When it is due.
    pub due: Timestamp,
    /// Last moment at which it may start like this: later it was missed, or too late, or another slot is due.
    pub until: Timestamp,
}

impl Plan {
    /// The plan for `slot`, which starts at `due`, as [`SlotSpec::next`] says.
    pub(crate) fn of(spec: &SlotSpec, slot: Timestamp, due: Timestamp) -> Option<Self> {
        // What a blackout defers may start together with others: that is decided when it is due.
        if spec.suspended || spec.due(slot) != due {
            return None;
        }
        let late = spec
            .deadline
            .map_or(ON_TIME, |deadline| SignedDuration::try_from(deadline).unwrap_or(ON_TIME).min(ON_TIME));
        let mut until = due.checked_add(late).ok()?;
        if let Some(next) = spec.schedule.next(slot) {
            until = until.min(spec.due(next).checked_sub(Duration::from_millis(1)).ok()?);
        }
        Some(Self { slot, due, until })
    }

    /// Whether it may be carried out at `now`.
    pub(crate) fn holds(&self, now: Timestamp) -> bool {
        self.due <= now && now <= self.until
    }
}

/// Policies in turn by namespace, each once.
#[derive(Debug, Default)]
pub(crate) struct FairQueue {
    /// Namespaces that have somebody waiting, whose turn it is first.
    turns: VecDeque<Arc<str>>,
    waiting: HashMap<Arc<str>, VecDeque<PolicyKey>>,
    all: HashSet<PolicyKey>,
}

impl FairQueue {
    /// At the end of its namespace's line, unless it waits already.
    pub(crate) fn push(&mut self, key: PolicyKey) {
        if !self.all.insert(key.clone()) {
            return;
        }
        let line = self.waiting.entry(key.namespace.clone()).or_default();
        if line.is_empty() {
            self.turns.push_back(key.namespace.clone());
        }
        line.push_back(key);
    }

    /// The first of the namespace whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<PolicyKey> {
        let namespace = self.turns.pop_front()?;
        let line = self.waiting.get_mut(&namespace)?;
        let key = line.pop_front();
        if line.is_empty() {
            self.waiting.remove(&namespace);
        } else {
            self.turns.push_back(namespace);
        }
        let key = key?;
        self.all.remove(&key);
        if self.all.is_empty() {
            // The room of a herd is not kept until the next one.
            *self = Self::default();
        }
        Some(key)
    }

    /// Whether it waits.
    pub(crate) fn contains(&self, key: &PolicyKey) -> bool {
        self.all.contains(key)
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }
}

#[cfg(test)]
mod tests {
    use stillpoint_api::policy::Concurrency;

    use super::*;
    use crate::blackouts::Blackouts;
    use crate::cron::Schedule;

    #[test]
    fn namespaces_take_turns_and_each_policy_waits_once() {
        let mut queue = FairQueue::default();
        for name in ["1", "2", "3", "1"] {
            queue.push(PolicyKey::new("big", name));
        }
        queue.push(PolicyKey::new("small", "1"));
        queue.push(PolicyKey::new("other", "1"));
        assert_eq!(queue.len(), 5);
        let order: Vec<String> = std::iter::from_fn(|| queue.pop()).map(|key| key.to_string()).collect();
        assert_eq!(order, ["big/1", "small/1", "other/1", "big/2", "big/3"]);
        assert!(queue.len() == 0 && queue.turns.is_empty() && queue.waiting.is_empty());
        queue.push(PolicyKey::new("big", "1"));
        assert!(queue.contains(&PolicyKey::new("big", "1")));
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn spec(cron: &str, deadline: Option<u64>) -> SlotSpec {
        SlotSpec {
            schedule: Arc::new(Schedule::parse(cron, "Etc/UTC", at("2026-11-01T00:00:00Z")).unwrap()),
            offset: Duration::ZERO,
            deadline: deadline.map(Duration::from_secs),
            catch_up: true,
            concurrency: Concurrency::Forbid,
            blackouts: Arc::new(Blackouts::default()),
            suspended: false,
            max_interval: Duration::from_secs(86_400),
        }
    }

    #[test]
    fn a_plan_holds_while_a_start_would_be_on_time() {
        let slot = at("2026-11-21T00:00:00Z");
        let plan = Plan::of(&spec("0 0 * * *", None), slot, slot).unwrap();
        assert!(!plan.holds(at("2026-11-20T23:59:59.9Z")));
        assert!(plan.holds(slot) && plan.holds(at("2026-11-21T00:01:00Z")));
        assert!(!plan.holds(at("2026-11-21T00:01:00.1Z")));
        let hasty = Plan::of(&spec("0 0 * * *", Some(5)), slot, slot).unwrap();
        assert!(hasty.holds(at("2026-11-21T00:00:05Z")) && !hasty.holds(at("2026-11-21T00:00:06Z")));
        let minutely = Plan::of(&spec("* * * * *", None), slot, slot).unwrap();
        assert!(!minutely.holds(at("2026-11-21T00:01:00Z")));
    }

    #[test]
    fn nothing_is_planned_for_a_suspended_policy_or_a_deferred_start() {
        let slot = at("2026-11-21T00:00:00Z");
        assert_eq!(Plan::of(&SlotSpec { suspended: true, ..spec("0 0 * * *", None) }, slot, slot), None);
        assert_eq!(Plan::of(&spec("0 0 * * *", None), slot, at("2026-11-21T06:00:00Z")), None);
    }
}
