//! What became of a slot that many policies share: how late each start was, whether any was lost or ran twice.

use std::collections::{BTreeMap, BTreeSet};

use crate::population::BIG;
use crate::target::Created;

/// How late the starts of one instant were, and whether each happened once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Herd {
    /// Seconds after the instant, sorted.
    pub delays: Vec<f64>,
    /// The same, of the policies that do not live in the big namespace.
    pub small: Vec<f64>,
    /// Policies without a start for the slot.
    pub lost: usize,
    /// Starts beyond one per policy.
    pub doubled: usize,
}

impl Herd {
    /// Judges the starts of the slot at `instant` (seconds since 1970) against the policies that were due, by namespace and name.
    pub fn of(created: &[Created], due: &BTreeSet<(String, String)>, instant: i64) -> Self {
        let mut herd = Self::default();
        let mut starts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for one in created {
            let Some((policy, minute)) = read(&one.name) else { continue };
            if minute != instant / 60 || !due.contains(&(one.namespace.clone(), policy.to_owned())) {
                continue;
            }
            let late = (one.at - instant * 1_000_000) as f64 / 1e6;
            herd.delays.push(late);
            if one.namespace != BIG {
                herd.small.push(late);
            }
            *starts.entry((&one.namespace, policy)).or_default() += 1;
        }
        herd.lost = due.len() - starts.len();
        herd.doubled = starts.values().map(|count| count - 1).sum();
        herd.delays.sort_by(f64::total_cmp);
        herd.small.sort_by(f64::total_cmp);
        herd
    }

    /// Starts a second, from the instant to the last start.
    pub fn rate(&self) -> f64 {
        self.delays.last().map_or(0.0, |last| self.delays.len() as f64 / last.max(1e-3))
    }
}

/// What became of slots that passed while no controller was there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaughtUp {
    /// Policies that started one.
    pub policies: usize,
    /// Starts of the first missed slot or an older one, which the newest stands for.
    pub older: usize,
    /// Starts beyond one of the same slot.
    pub doubled: usize,
    /// When the last policy started its first, microseconds since 1970.
    pub last: i64,
}

impl CaughtUp {
    /// Judges what was started since the controller came back. At least two slots of each policy passed before: `first` is the
    /// minute of the oldest. Which one is the newest depends on when the policy is looked at.
    pub fn of(created: &[Created], first: i64) -> Self {
        let mut found = Self::default();
        let mut starts: BTreeMap<(&str, &str), BTreeMap<i64, i64>> = BTreeMap::new();
        for one in created {
            let Some((policy, minute)) = read(&one.name) else { continue };
            found.older += usize::from(minute <= first);
            let of_policy = starts.entry((&one.namespace, policy)).or_default();
            found.doubled += usize::from(of_policy.insert(minute, one.at).is_some());
        }
        found.policies = starts.len();
        let firsts = starts.values().filter_map(|of_policy| of_policy.values().next());
        found.last = firsts.copied().max().unwrap_or_default();
        found
    }
}

/// Policy and minute of the slot that the name of a Backup says: `<policy>-<8 hex>-<minute in base 36>`, and `-b` when the name
/// was taken.
pub fn read(name: &str) -> Option<(&str, i64)> {
    let name = name.strip_suffix("-b").unwrap_or(name);
    let (rest, minute) = name.rsplit_once('-')?;
    let (policy, _) = rest.rsplit_once('-')?;
    Some((policy, i64::from_str_radix(minute, 36).ok()?))
}

/// The value below which `part` of the sorted `values` are.
pub fn quantile(values: &[f64], part: f64) -> f64 {
    let index = ((values.len() as f64 - 1.0).max(0.0) * part).round();
    // Never negative, never beyond the last: `part` is in [0, 1].
    values.get(index as usize).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn created(namespace: &str, name: &str, at: i64) -> Created {
        Created { at, namespace: namespace.into(), name: name.into() }
    }

    #[test]
    fn lost_doubled_and_late_starts_are_counted() {
        // Minute 10 of 1970 is "a" in base 36.
        let due = [("big", "p1"), ("big", "p2"), ("team", "p3"), ("team", "p4")];
        let due: BTreeSet<_> = due.map(|(namespace, name)| (namespace.to_owned(), name.to_owned())).into();
        let starts = [
            created("big", "p1-0badcafe-a", 600_100_000),
            created("big", "p1-0badcafe-a-b", 600_200_000),
            created("team", "p3-0badcafe-a", 601_000_000),
            created("team", "p4-0badcafe-9", 601_000_000),
            created("team", "other-0badcafe-a", 601_000_000),
        ];
        let herd = Herd::of(&starts, &due, 600);
        assert_eq!((herd.lost, herd.doubled), (2, 1));
        assert_eq!(herd.delays, [0.1, 0.2, 1.0]);
        assert_eq!(herd.small, [1.0]);
        assert_eq!(herd.rate(), 3.0);
    }

    #[test]
    fn the_newest_missed_slot_is_caught_up_once_and_no_older_one() {
        // Minutes 20, 21 and 22.
        let good = [
            created("big", "p1-0badcafe-l", 7),
            created("big", "p2-0badcafe-m", 9),
            created("big", "p1-0badcafe-m", 11),
        ];
        assert_eq!(CaughtUp::of(&good, 20), CaughtUp { policies: 2, older: 0, doubled: 0, last: 9 });
        let bad = [
            created("big", "p1-0badcafe-k", 7),
            created("big", "p1-0badcafe-l", 7),
            created("big", "p1-0badcafe-l-b", 8),
        ];
        assert_eq!(CaughtUp::of(&bad, 20), CaughtUp { policies: 1, older: 1, doubled: 1, last: 7 });
    }

    #[test]
    fn the_name_of_a_backup_says_policy_and_slot() {
        let slot: jiff::Timestamp = "2026-11-21T20:31:00Z".parse().unwrap();
        let name = stillpoint_scheduler::slots::backup_name("a-b", "uid", slot);
        assert_eq!(read(&name), Some(("a-b", slot.as_second() / 60)));
        assert_eq!(read("nothing"), None);
    }
}
