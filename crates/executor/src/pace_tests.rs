//! Who begins first, and that no limit is ever passed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::{Value, json};

use super::*;

fn ticket(second: i64, needs: &[(&str, u32)]) -> Ticket {
    Ticket {
        age: Timestamp::from_second(second).unwrap(),
        backup_uid: format!("b{second}"),
        needs: needs.iter().map(|(key, limit)| ((*key).to_owned(), *limit)).collect(),
    }
}

fn taken(all: &[(&str, u32)]) -> Taken {
    all.iter().map(|(key, count)| ((*key).to_owned(), *count)).collect()
}

#[test]
fn the_oldest_run_goes_first() {
    let (first, second) = (ticket(1, &[("all", 1)]), ticket(2, &[("all", 1)]));
    let both = [second.clone(), first.clone()];
    assert_eq!(admit(&first, &both, &taken(&[])), Verdict::Go);
    assert_eq!(admit(&second, &both, &taken(&[])), Verdict::Wait { key: "all".into(), ahead: 1 });
    assert_eq!(admit(&first, &both, &taken(&[("all", 1)])), Verdict::Wait { key: "all".into(), ahead: 0 });
}

#[test]
fn who_waits_for_something_else_keeps_nobody_from_beginning() {
    let stuck = ticket(1, &[("all", 2), ("shop", 1)]);
    let other = ticket(2, &[("all", 2), ("lab", 1)]);
    let at = taken(&[("all", 1), ("shop", 1)]);
    assert!(
        matches!(admit(&stuck, std::slice::from_ref(&other), &at), Verdict::Wait { key, .. } if key == "shop")
    );
    assert_eq!(admit(&other, &[stuck.clone(), other.clone()], &at), Verdict::Go);
    // And it keeps its turn: when shop has room, what is left of the cluster is the older one's.
    let at = taken(&[("all", 1)]);
    assert_eq!(admit(&stuck, &[stuck.clone(), other.clone()], &at), Verdict::Go);
    assert!(matches!(admit(&other, &[stuck, other.clone()], &at), Verdict::Wait { ahead: 1, .. }));
}

#[test]
fn a_limit_that_was_lowered_drains() {
    let us = ticket(1, &[("all", 2)]);
    for (busy, goes) in [(5, false), (2, false), (1, true)] {
        assert_eq!(admit(&us, &[], &taken(&[("all", busy)])) == Verdict::Go, goes, "{busy}");
    }
}

/// Every run of a herd asks in turn, in an order that does not matter: those that go are exactly as many as may, nobody
/// overtakes an older one that could go, and in the end everybody went.
#[test]
fn a_herd_is_let_through_within_every_limit_and_by_age() {
    for seed in 0..200_u64 {
        let mut bits = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut dice = |sides: u64| {
            bits ^= bits << 13;
            bits ^= bits >> 7;
            bits ^= bits << 17;
            bits % sides
        };
        let limits = [("all", 1 + dice(4)), ("shop", 1 + dice(3)), ("lab", 1), ("disk", 1 + dice(2))];
        let limit =
            |key: &str| u32::try_from(limits.iter().find(|(name, _)| *name == key).unwrap().1).unwrap();
        let mut waiting: Vec<Ticket> = (0..12)
            .map(|second| {
                let mut keys = vec!["all", if dice(2) == 0 { "shop" } else { "lab" }];
                if dice(2) == 0 {
                    keys.push("disk");
                }
                let needs: Vec<(&str, u32)> = keys.into_iter().map(|key| (key, limit(key))).collect();
                ticket(second, &needs)
            })
            .collect();
        let mut running: Vec<Ticket> = Vec::new();
        let mut rounds = 0;
        while !waiting.is_empty() {
            rounds += 1;
            assert!(rounds < 100, "seed {seed}: somebody waits for ever");
            let mut at = Taken::new();
            running
                .iter()
                .flat_map(|run| run.needs.keys())
                .for_each(|key| *at.entry(key.clone()).or_default() += 1);
            let goes = |us: &Ticket| admit(us, &waiting, &at) == Verdict::Go;
            let (go, stay): (Vec<Ticket>, Vec<Ticket>) = waiting.iter().cloned().partition(goes);
            // All that may go at one time may go together.
            running.extend(go);
            for (key, _) in limits {
                let used = running.iter().filter(|run| run.needs.contains_key(key)).count();
                assert!(used <= limit(key) as usize, "seed {seed}: {key}");
            }
            waiting = stay;
            assert!(!running.is_empty(), "seed {seed}: there was room and nobody went");
            let ends = usize::try_from(dice(running.len() as u64)).unwrap();
            running.remove(ends);
        }
    }
}

fn rule(name: &str, limits: Value) -> ProtectionRule {
    serde_json::from_value(
        json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "ProtectionRule", "metadata": {"name": name},
        "spec": {"namespaceSelector": {}, "limits": limits}}),
    )
    .unwrap()
}

#[test]
fn a_run_is_under_each_limit_that_it_counts_for() {
    let rules = [
        rule("a", json!({"cluster": 8, "driver": 2, "drivers": [{"name": "fast", "freezes": 4}]})),
        rule("b", json!({"namespace": 1})),
    ];
    let all: Vec<(String, Scope, u32)> = bounds(&rules, "shop", ["fast", "slow", "fast"])
        .into_iter()
        .map(|one| (one.rule, one.scope, one.limit))
        .collect();
    let expected = [
        ("a", Scope::Cluster, 8),
        ("a", Scope::Driver("fast".into()), 4),
        ("a", Scope::Driver("slow".into()), 2),
        ("b", Scope::Namespace("shop".into()), 1),
    ];
    assert_eq!(all, expected.map(|(rule, scope, limit)| (rule.to_owned(), scope, limit)));
    let only = bounds(&[rule("c", json!({"drivers": [{"name": "fast", "freezes": 1}]}))], "shop", ["slow"]);
    assert_eq!(only, []);
}

#[test]
fn places_of_different_limits_have_different_names() {
    let bound = |rule: &str, scope| Bound { rule: rule.to_owned(), scope, limit: 1 };
    let keys: BTreeSet<String> = [
        bound("a", Scope::Cluster),
        bound("b", Scope::Cluster),
        bound("a", Scope::Namespace("x".into())),
        bound("a", Scope::Driver("x".into())),
    ]
    .iter()
    .map(Bound::key)
    .collect();
    assert_eq!(keys.len(), 4);
    let lower = Bound { limit: 5, ..bound("a", Scope::Cluster) };
    assert!(keys.contains(&lower.key()), "an edit of the number names no other places");
}
