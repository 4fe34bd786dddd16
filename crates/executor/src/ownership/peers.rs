//! Which replicas are alive, from changes of their Leases that we saw ourselves. Pure.
//!
//! A stored time is never compared with a clock: clocks differ, and a stopped peer is not dead. A Lease counts as
//! unchanged only over a span that two of our own observations bound; while we cannot look, nobody falls silent.

use std::collections::BTreeMap;
use std::time::Duration;

use stillpoint_api::clock::Mono;

use super::claim::Standing;

/// A Lease that is there no more is forgotten after so many of its durations; who asks again starts anew.
const FORGET_AFTER: u32 = 100;

/// One replica's Lease as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Identity of the replica.
    pub holder: String,
    /// Changes with every renewal; only equality counts.
    pub version: String,
    /// How long the Lease counts, as its holder says.
    pub lease: Duration,
}

#[derive(Clone, Debug)]
struct Seen {
    /// `None`: there is no Lease of this holder.
    version: Option<String>,
    /// When the answer that first showed this version came: the renewal was before.
    since: Mono,
    lease: Duration,
}

/// What we saw of other replicas.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    seen: BTreeMap<String, Seen>,
    /// When the last successful look was asked for: its answer shows a state of then or later.
    looked: Option<Mono>,
}

impl Peers {
    /// Takes one complete list of replica Leases: when it was asked for, and when the answer came.
    pub fn observe(&mut self, sightings: &[Sighting], asked: Mono, answered: Mono) {
        for sighting in sightings {
            let same = self
                .seen
                .get(&sighting.holder)
                .is_some_and(|seen| seen.version.as_ref() == Some(&sighting.version));
            if !same {
                let version = Some(sighting.version.clone());
                let seen = Seen { version, since: answered, lease: sighting.lease };
                self.seen.insert(sighting.holder.clone(), seen);
            }
        }
        for (holder, seen) in &mut self.seen {
            if seen.version.is_some() && !sightings.iter().any(|one| one.holder == *holder) {
                (seen.version, seen.since) = (None, answered);
            }
        }
        self.seen.retain(|_, seen| {
            seen.version.is_some() || answered.since(seen.since) < seen.lease * FORGET_AFTER
        });
        self.looked = Some(asked);
    }

    /// How a replica stands. One that has no Lease must have been without it for `lease`, from the first question on.
    pub fn standing(&mut self, holder: &str, lease: Duration, now: Mono) -> Standing {
        let seen =
            self.seen.entry(holder.to_owned()).or_insert_with(|| Seen { version: None, since: now, lease });
        match self.looked {
            Some(looked) if looked >= seen.since + seen.lease => Standing::Silent,
            Some(_) | None => Standing::Fresh,
        }
    }

    /// Holders whose Lease is there and did not change for so many of its durations: their Leases may be removed.
    pub fn long_silent(&self, durations: u32) -> Vec<String> {
        let Some(looked) = self.looked else { return Vec::new() };
        let long = |seen: &Seen| seen.version.is_some() && looked >= seen.since + seen.lease * durations;
        self.seen.iter().filter(|(_, seen)| long(seen)).map(|(holder, _)| holder.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    fn at(seconds: u64) -> Mono {
        Mono::from_origin(Duration::from_secs(seconds))
    }

    fn lease(version: &str) -> Vec<Sighting> {
        vec![Sighting { holder: "a".into(), version: version.into(), lease: LEASE }]
    }

    #[test]
    fn a_replica_that_renews_is_fresh_and_one_that_stops_falls_silent_after_its_lease() {
        let mut peers = Peers::default();
        for (second, version) in [(0, "1"), (10, "2"), (20, "3")] {
            peers.observe(&lease(version), at(second), at(second + 1));
            assert_eq!(peers.standing("a", LEASE, at(second + 1)), Standing::Fresh);
        }
        peers.observe(&lease("3"), at(35), at(36));
        assert_eq!(peers.standing("a", LEASE, at(36)), Standing::Fresh, "seen at 21, asked at 35");
        peers.observe(&lease("3"), at(36), at(37));
        assert_eq!(peers.standing("a", LEASE, at(37)), Standing::Silent);
        peers.observe(&lease("4"), at(40), at(41));
        assert_eq!(peers.standing("a", LEASE, at(41)), Standing::Fresh, "a stopped peer is not dead");
    }

    #[test]
    fn while_we_cannot_look_nobody_falls_silent() {
        let mut peers = Peers::default();
        peers.observe(&lease("1"), at(0), at(1));
        assert_eq!(peers.standing("a", LEASE, at(1000)), Standing::Fresh);
    }

    #[test]
    fn a_replica_without_a_lease_must_be_without_it_for_a_whole_duration() {
        let mut peers = Peers::default();
        peers.observe(&[], at(0), at(1));
        assert_eq!(peers.standing("gone", LEASE, at(5)), Standing::Fresh);
        peers.observe(&[], at(19), at(20));
        assert_eq!(peers.standing("gone", LEASE, at(20)), Standing::Fresh);
        peers.observe(&[], at(20), at(21));
        assert_eq!(peers.standing("gone", LEASE, at(21)), Standing::Silent);
        // One that was seen counts from its disappearance.
        peers.observe(&lease("1"), at(30), at(31));
        peers.observe(&[], at(40), at(41));
        assert_eq!(peers.standing("a", LEASE, at(41)), Standing::Fresh);
        peers.observe(&[], at(56), at(57));
        assert_eq!(peers.standing("a", LEASE, at(57)), Standing::Silent);
    }

    #[test]
    fn the_lease_of_a_replica_is_left_over_only_after_many_durations() {
        let mut peers = Peers::default();
        peers.observe(&lease("1"), at(0), at(0));
        peers.observe(&lease("1"), at(149), at(149));
        assert!(peers.long_silent(10).is_empty());
        peers.observe(&lease("1"), at(150), at(150));
        assert_eq!(peers.long_silent(10), ["a"]);
    }
}
