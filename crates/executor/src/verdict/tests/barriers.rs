//! Rule 9: a barrier between the lock and FROZEN makes up for a setting, and no other barrier does.

use stillpoint_api::evidence::BarrierEvidence;

use super::*;

/// A setting that loses commits, of a template that says that a barrier would do.
fn lossy(barriers: &[(&str, i64)]) -> Case {
    let mut case = locked();
    case.resolved.applications[0].settings[0].or_barrier = true;
    case.holds[0].facts.insert("innodb_flush_log_at_trx_commit".into(), "2".into());
    let told = barriers.iter().map(|(name, at)| BarrierEvidence { name: (*name).into(), at: Offset(*at) });
    case.holds[0].barriers = told.collect();
    case
}

fn finding(case: &Case) -> String {
    let verdict = judge(&case.evidence()).verdict;
    let all = verdict.proved.into_iter().chain(verdict.missing);
    all.into_iter().find(|finding| finding.rule == 9).unwrap().finding
}

#[test]
fn rule_9_a_barrier_between_the_lock_and_frozen_makes_up_for_a_setting() {
    // FREEZE was sent at 0, FROZEN came at 5000.
    for at in [1, 4_000, 5_000] {
        let case = lossy(&[("flush", at)]);
        assert_eq!(case.consistency(), Consistency::Application, "{at}");
        assert!(
            finding(&case).contains("barrier flush of mariadb-0/mariadb made up for innodb_flush"),
            "{at}"
        );
    }
    let mut unread = lossy(&[("flush", 4_000)]);
    unread.holds[0].facts.remove("innodb_flush_log_at_trx_commit");
    assert_eq!(unread.consistency(), Consistency::Application, "what it makes up for need not be known");
    let twice = lossy(&[("early", -100_000), ("flush", 4_000)]);
    assert_eq!(twice.consistency(), Consistency::Application, "one of them counts");
}

#[test]
fn rule_9_a_barrier_before_freeze_or_after_frozen_does_not_count() {
    for at in [-100_000, -1, 0, 5_001, 90_000] {
        let case = lossy(&[("flush", at)]);
        only_rule_refuses(9, &case);
        assert_eq!(case.consistency(), Consistency::Crash, "{at}");
        assert!(finding(&case).contains("not between FREEZE and FROZEN"), "{at}: {}", finding(&case));
    }
    only_rule_refuses(9, &lossy(&[]));
}

#[test]
fn rule_9_a_barrier_counts_for_its_own_hold_and_for_settings_that_say_so() {
    let mut other = lossy(&[("flush", 4_000)]);
    other.holds.push(HoldEvidence { nonce: "n2".into(), barriers: Vec::new(), ..other.holds[0].clone() });
    only_rule_refuses(9, &other);

    let mut unasked = lossy(&[("flush", 4_000)]);
    unasked.resolved.applications[0].settings[0].or_barrier = false;
    only_rule_refuses(9, &unasked);

    let mut second = lossy(&[("flush", 4_000)]);
    second.holds[0].facts.insert("sync_binlog".into(), "0".into());
    only_rule_refuses(9, &second);
}

#[test]
fn rule_9_who_stops_nobody_has_no_barrier() {
    let mut case = lossy(&[("flush", 4_000)]);
    case.resolved.applications[0].hold = HoldKind::Observer;
    case.resolved.applications[0].position = None;
    assert_eq!(case.consistency(), Consistency::None, "more was acknowledged after it");
}
