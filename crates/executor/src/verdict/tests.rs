//! Each rule shown necessary: evidence that only that rule refuses, which becomes `Application` without it.

mod barriers;
mod clocks;
mod cuts;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use stillpoint_api::evidence::{
    Consistency, ContainerState, CutKind, CutSignal, GroupKind, HoldAnswer, HoldEvidence, HoldKind,
    MemberEvidence, MemberMount, Offset, Resolved, ResolvedApplication, SettledMember, StorageFact, Window,
};
use stillpoint_api::outcome::Violation;
use stillpoint_api::policy::Continuity;
use stillpoint_api::template::{LocalRule, LocalValue, Setting, SettingCondition};

use super::{Evidence, RuleMask, judge};

/// Evidence of a run, to be bent by a test.
#[derive(Clone)]
struct Case {
    resolved: Resolved,
    holds: Vec<HoldEvidence>,
    members: Vec<MemberEvidence>,
    window: Window,
}

impl Case {
    fn evidence(&self) -> Evidence<'_> {
        Evidence::new(&self.resolved, &self.holds, &self.members, &self.window)
    }

    fn consistency(&self) -> Consistency {
        judge(&self.evidence()).consistency
    }

    fn without(&self, rule: u8) -> Consistency {
        judge(&Evidence { only: RuleMask::without(rule), ..self.evidence() }).consistency
    }

    fn missing(&self) -> Vec<u8> {
        judge(&self.evidence()).verdict.missing.iter().map(|finding| finding.rule).collect()
    }
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn setting(name: &str, allowed: &[&str]) -> Setting {
    Setting {
        name: name.into(),
        allowed: allowed.iter().map(|one| (*one).into()).collect(),
        ..Setting::default()
    }
}

fn answer(at: i64, clock: i64) -> HoldAnswer {
    HoldAnswer {
        at: Offset(at),
        identity: map(&[("conn", "31"), ("uid", "abc"), ("host", "mariadb-0")]),
        role: Some("primary".into()),
        clock: Some(clock),
        lease: Some("10".into()),
        position: map(&[("gtid", "0-1-77")]),
    }
}

const T0_MICROS: i64 = 1_790_000_000_000_000;

/// A locked application on one atomic volume: every rule holds.
fn locked() -> Case {
    let pods = vec!["mariadb-0/u1".to_owned()];
    let container = ContainerState { container_id: "c1".into(), restart_count: 0 };
    Case {
        resolved: Resolved {
            max_hold_millis: 30_000,
            applications: vec![ResolvedApplication {
                name: "db".into(),
                hold: HoldKind::Session,
                crash_safe: "InnoDB".into(),
                settings: vec![
                    setting("innodb_flush_log_at_trx_commit", &["1"]),
                    Setting {
                        when: Some(SettingCondition { name: "log_bin".into(), values: vec!["1".into()] }),
                        ..setting("sync_binlog", &["1"])
                    },
                ],
                position: Some("gtid".into()),
                thaw_proves_lock: "error 4146".into(),
                local: Some(LocalRule { key: "host".into(), equals: LocalValue::PodHostname }),
                data_paths: vec!["datadir".into()],
                pods_at_ready: pods.clone(),
                pods_at_thawed: pods,
                ..ResolvedApplication::default()
            }],
            ..Resolved::default()
        },
        holds: vec![HoldEvidence {
            application: "db".into(),
            pod_name: "mariadb-0".into(),
            pod_uid: "u1".into(),
            container: "mariadb".into(),
            nonce: "n".into(),
            container_at_ready: Some(container.clone()),
            container_at_thawed: Some(container),
            ready: Some(answer(-500_000, T0_MICROS - 500_000)),
            freeze_sent: Some(Offset(0)),
            frozen: Some(answer(5_000, T0_MICROS + 4_000)),
            mount_paths: Vec::new(),
            foreign_mounts: Vec::new(),
            barriers: Vec::new(),
            ended_blockers: Vec::new(),
            order: 0,
            stages: Vec::new(),
            late_beats: 0,
            beats: 0,
            closing_index: Some(3),
            closing_sent: Some(Offset(80_000)),
            closing_written: Some(Offset(80_100)),
            held: Some(answer(82_000, T0_MICROS + 81_000)),
            thaw_sent: Some(Offset(80_000)),
            thawed: Some(Offset(83_000)),
            facts: map(&[
                ("innodb_flush_log_at_trx_commit", "1"),
                ("log_bin", "1"),
                ("sync_binlog", "1"),
                ("datadir", "/data/mysql/"),
            ]),
            lost: None,
        }],
        members: vec![member("data", 78_000)],
        window: Window {
            started_at: Some(MicroTime(jiff::Timestamp::from_microsecond(T0_MICROS).unwrap())),
            locked: Some(Offset(5_000)),
            api_clock: None,
            cut_start: Some(Offset(6_000)),
            cut_end: Some(Offset(78_000)),
            thaw_sent: Some(Offset(80_000)),
            thawed: Some(Offset(83_000)),
            frozen_seconds: Some(0.083),
        },
    }
}

fn member(claim: &str, signal: i64) -> MemberEvidence {
    let creation_time = Some((T0_MICROS + 70_000) * 1_000);
    MemberEvidence {
        application: "db".into(),
        pod_name: "mariadb-0".into(),
        pod_uid: "u1".into(),
        claim_name: claim.into(),
        mount_paths: vec!["/data".into()],
        volume_handle: format!("vol-{claim}"),
        driver: "d".into(),
        storage: StorageFact {
            cut: CutKind::Atomic,
            group: GroupKind::Sequential,
            signal: CutSignal::Handle,
            reason: "operator: tested".into(),
        },
        volume_snapshot: format!("s-{claim}"),
        volume_snapshot_uid: Some("su".into()),
        post_sent: Some(Offset(6_000)),
        posted: Some(Offset(12_000)),
        content: Some("c".into()),
        signal: Some(Offset(signal)),
        handle: Some("h".into()),
        creation_time,
        content_volume_handle: Some(format!("vol-{claim}")),
        settled: Some(SettledMember {
            ready_at: Some(MicroTime(jiff::Timestamp::from_microsecond(T0_MICROS + 200_000).unwrap())),
            handle: Some("h".into()),
            creation_time,
            bound: true,
            restore_size: Some(1 << 30),
        }),
        ..MemberEvidence::default()
    }
}

/// An observer session on one atomic volume: every rule that is needed holds.
fn observed() -> Case {
    let mut case = locked();
    case.resolved.applications[0].hold = HoldKind::Observer;
    case.resolved.applications[0].position = None;
    case.resolved.applications[0].thaw_proves_lock.clear();
    case
}

/// Asserts that exactly this rule stands between the evidence and `Application`.
fn only_rule_refuses(rule: u8, case: &Case) {
    assert_eq!(case.missing(), vec![rule], "rule {rule}");
    assert_ne!(case.consistency(), Consistency::Application, "rule {rule}");
    assert_eq!(case.without(rule), Consistency::Application, "rule {rule} is what refuses it");
}

#[test]
fn complete_evidence_is_application_consistent() {
    let judged = judge(&locked().evidence());
    assert_eq!(judged.consistency, Consistency::Application, "{:?}", judged.verdict.missing);
    assert_eq!(judged.continuity, Some(Continuity::Position));
    assert!(judged.cross_consistent);
    assert_eq!(judged.verdict.proved.len(), 10);
}

#[test]
fn what_one_step_receives_comes_before_what_it_sends() {
    let mut case = locked();
    case.members[0].post_sent = Some(Offset(5_000));
    case.holds[0].thaw_sent = Some(Offset(78_000));
    case.holds[0].closing_sent = Some(Offset(78_000));
    assert_eq!(case.consistency(), Consistency::Application, "{:?}", case.missing());
}

#[test]
fn rule_1_a_post_before_frozen_is_refused() {
    let mut case = locked();
    case.members[0].post_sent = Some(Offset(4_000));
    only_rule_refuses(1, &case);
}

#[test]
fn rule_2_a_thaw_before_the_last_cut_is_refused() {
    let mut case = locked();
    case.holds[0].thaw_sent = Some(Offset(60_000));
    only_rule_refuses(2, &case);
}

#[test]
fn rule_3_every_gap_in_the_closing_proof_is_refused() {
    let bends: [fn(&mut HoldEvidence); 8] = [
        |hold| hold.closing_sent = Some(Offset(77_000)),
        |hold| hold.closing_written = None,
        |hold| hold.held = None,
        |hold| hold.held.as_mut().unwrap().identity = map(&[("conn", "32"), ("host", "mariadb-0")]),
        |hold| hold.held.as_mut().unwrap().role = Some("replica".into()),
        |hold| hold.thawed = Some(Offset(81_000)),
        |hold| hold.closing_sent = None,
        |hold| {
            hold.frozen.as_mut().unwrap().identity = map(&[("conn", "9"), ("host", "mariadb-0")]);
        },
    ];
    for (index, bend) in bends.iter().enumerate() {
        let mut case = locked();
        case.resolved.applications[0].position = None;
        bend(&mut case.holds[0]);
        assert_eq!(case.missing(), vec![3], "bend {index}");
        only_rule_refuses(3, &case);
    }
}

#[test]
fn rule_4_a_hold_that_does_not_cover_the_cut_is_refused() {
    let bends: [fn(&mut Case); 6] = [
        |case| case.members[0].content_volume_handle = Some("another".into()),
        |case| case.resolved.applications[0].pods_at_thawed = vec!["mariadb-0/u2".into()],
        |case| case.holds[0].container_at_thawed.as_mut().unwrap().restart_count = 1,
        |case| {
            let hold = &mut case.holds[0];
            for answer in [&mut hold.frozen, &mut hold.held] {
                answer.as_mut().unwrap().identity.insert("host".into(), "proxy".into());
            }
        },
        |case| {
            case.holds[0].facts.insert("datadir".into(), "/database".into());
        },
        |case| {
            case.holds[0].facts.remove("datadir");
        },
    ];
    for bend in bends {
        let mut case = locked();
        bend(&mut case);
        assert_eq!(case.missing(), vec![4]);
        assert_ne!(case.consistency(), Consistency::Application);
        if case.members[0].content_volume_handle == Some("vol-data".into()) {
            only_rule_refuses(4, &case);
        }
    }
}

#[test]
fn rule_5_a_hold_past_the_promise_is_refused_on_either_clock() {
    let mut ours = locked();
    ours.resolved.max_hold_millis = 82;
    only_rule_refuses(5, &ours);
    let mut servers = locked();
    servers.holds[0].held.as_mut().unwrap().clock = Some(T0_MICROS + 31_000_000);
    only_rule_refuses(5, &servers);
    assert_eq!(servers.consistency(), Consistency::Crash, "only rule 5 misses under a proven hold");
}

#[test]
fn rule_6_a_cut_older_than_its_request_is_a_contradiction() {
    let mut case = locked();
    let old = Some((T0_MICROS - 60_000_000) * 1_000);
    case.members[0].creation_time = old;
    case.members[0].settled.as_mut().unwrap().creation_time = old;
    only_rule_refuses(6, &case);
    assert_eq!(case.consistency(), Consistency::None);
}

#[test]
fn rule_6_a_handle_that_changes_is_a_contradiction() {
    let mut case = locked();
    case.members[0].settled.as_mut().unwrap().handle = Some("other".into());
    only_rule_refuses(6, &case);
}

#[test]
fn rule_6_no_cut_time_or_1970_says_nothing() {
    for time in [None, Some(0), Some(5_000_000)] {
        let mut case = locked();
        case.members[0].creation_time = time;
        case.members[0].settled.as_mut().unwrap().creation_time = time;
        assert_eq!(case.consistency(), Consistency::Application);
    }
}

#[test]
fn rule_6_truncated_seconds_are_within_the_tolerance() {
    let mut case = locked();
    let truncated = Some((T0_MICROS - 2_500_000) * 1_000);
    case.members[0].creation_time = truncated;
    case.members[0].settled.as_mut().unwrap().creation_time = truncated;
    assert_eq!(case.consistency(), Consistency::Application);
}

#[test]
fn rule_6_a_cut_time_after_the_signal_is_a_warning() {
    let mut case = locked();
    let later = Some((T0_MICROS + 4_000_000) * 1_000);
    case.members[0].creation_time = later;
    case.members[0].settled.as_mut().unwrap().creation_time = later;
    let judged = judge(&case.evidence());
    assert_eq!(judged.consistency, Consistency::Application);
    assert!(judged.verdict.warnings.iter().any(|warning| warning.contains("clocks differ")));
}

#[test]
fn rule_7_a_snapshot_that_is_not_usable_is_refused() {
    let bends: [fn(&mut SettledMember); 3] = [
        |settled| settled.bound = false,
        |settled| settled.restore_size = Some(0),
        |settled| settled.ready_at = None,
    ];
    for bend in bends {
        let mut case = locked();
        bend(case.members[0].settled.as_mut().unwrap());
        only_rule_refuses(7, &case);
        assert_eq!(case.consistency(), Consistency::None);
    }
}

#[test]
fn rule_8_a_copying_driver_is_refused() {
    let mut case = locked();
    case.members[0].storage = StorageFact::default();
    only_rule_refuses(8, &case);
    assert_eq!(case.consistency(), Consistency::None, "a torn copy is not what a power failure leaves");
}

#[test]
fn rule_8_several_volumes_need_a_template_that_is_proven_for_them() {
    let mut case = locked();
    case.members.push(member("redo", 79_000));
    only_rule_refuses(8, &case);
    assert_eq!(case.consistency(), Consistency::None);
}

#[test]
fn rule_9_a_setting_that_loses_commits_is_refused() {
    let mut case = locked();
    case.holds[0].facts.insert("innodb_flush_log_at_trx_commit".into(), "2".into());
    only_rule_refuses(9, &case);
    assert_eq!(case.consistency(), Consistency::Crash, "under a lock it is what a power failure leaves");

    let mut unheld = observed();
    unheld.holds[0].facts.insert("innodb_flush_log_at_trx_commit".into(), "2".into());
    assert_eq!(unheld.consistency(), Consistency::None, "without a lock the claim that it recovers is void");
}

#[test]
fn rule_9_a_setting_that_was_not_read_is_refused() {
    let mut case = locked();
    case.holds[0].facts.remove("log_bin");
    only_rule_refuses(9, &case);
}

#[test]
fn rule_9_a_setting_is_asked_only_while_it_matters() {
    let mut case = locked();
    case.holds[0].facts.insert("log_bin".into(), "0".into());
    case.holds[0].facts.insert("sync_binlog".into(), "0".into());
    assert_eq!(case.consistency(), Consistency::Application);
}

#[test]
fn rule_10_a_commit_under_the_lock_is_a_contradiction() {
    let mut case = locked();
    case.holds[0].held.as_mut().unwrap().position = map(&[("gtid", "0-1-78")]);
    only_rule_refuses(10, &case);
    assert_eq!(case.consistency(), Consistency::None);
}

#[test]
fn rule_10_grades_what_is_proven_and_refuses_less_than_asked() {
    let mut case = locked();
    let hold = &mut case.holds[0];
    for answer in [&mut hold.frozen, &mut hold.held] {
        answer.as_mut().unwrap().position = map(&[("gtid", "off")]);
    }
    assert_eq!(judge(&case.evidence()).continuity, Some(Continuity::Lock));
    case.resolved.min_continuity = Continuity::Position;
    only_rule_refuses(10, &case);
    case.resolved.applications[0].thaw_proves_lock.clear();
    case.resolved.min_continuity = Continuity::Declared;
    assert_eq!(judge(&case.evidence()).continuity, Some(Continuity::Declared));
}

#[test]
fn an_observer_needs_no_lock_and_its_loss_costs_no_verdict() {
    let mut case = observed();
    assert_eq!(judge(&case.evidence()).continuity, None);
    assert_eq!(case.consistency(), Consistency::Application);
    let hold = &mut case.holds[0];
    (hold.held, hold.thawed, hold.closing_sent, hold.lost) = (None, None, None, Some("gone".into()));
    assert_eq!(case.consistency(), Consistency::Application);
    case.resolved.min_continuity = Continuity::Position;
    assert_eq!(case.consistency(), Consistency::Application, "continuity is not needed");
}

#[test]
fn an_observer_without_a_recovery_claim_proves_nothing() {
    let mut case = observed();
    case.resolved.applications[0].crash_safe.clear();
    assert_eq!(case.missing(), vec![8, 9]);
}

#[test]
fn a_lock_that_was_lost_leaves_a_crash_consistent_volume() {
    let mut case = locked();
    case.holds[0].thawed = None;
    assert_eq!(case.consistency(), Consistency::Crash, "one atomic volume is what a power failure leaves");
    case.members.push(member("redo", 79_000));
    assert_eq!(case.consistency(), Consistency::None, "two volumes at two instants are not");
}

#[test]
fn the_weakest_application_gives_the_label() {
    let mut case = locked();
    let mut other = case.resolved.applications[0].clone();
    other.name = "web".into();
    case.resolved.applications.push(other);
    assert_eq!(case.consistency(), Consistency::None, "an application without members is no copy");
}

#[test]
fn nothing_recorded_proves_nothing() {
    let case = Case {
        resolved: Resolved::default(),
        holds: Vec::new(),
        members: Vec::new(),
        window: Window::default(),
    };
    assert_eq!(case.consistency(), Consistency::None);
    let mut case = locked();
    case.holds.clear();
    assert_ne!(case.consistency(), Consistency::Application);
}

/// The same server twice, each on a volume of its own.
fn two_applications() -> Case {
    let mut case = locked();
    let mut other = case.resolved.applications[0].clone();
    other.name = "web".into();
    case.resolved.applications.push(other);
    case.holds.push(HoldEvidence { application: "web".into(), ..case.holds[0].clone() });
    case.members.push(MemberEvidence { application: "web".into(), ..member("web", 78_000) });
    case
}

#[test]
fn applications_are_consistent_together_only_if_all_were_held_over_all_cuts() {
    let case = two_applications();
    assert!(judge(&case.evidence()).cross_consistent);
    // Each held over its own cut, one after the other.
    let mut case = two_applications();
    case.holds[1].frozen.as_mut().unwrap().at = Offset(7_000);
    case.members[1].post_sent = Some(Offset(8_000));
    let judged = judge(&case.evidence());
    assert_eq!((judged.consistency, judged.cross_consistent), (Consistency::Application, false));
    // The first one was let go before the other was cut.
    let mut case = two_applications();
    case.members[0].signal = Some(Offset(20_000));
    case.holds[0].thaw_sent = Some(Offset(30_000));
    let judged = judge(&case.evidence());
    assert_eq!((judged.consistency, judged.cross_consistent), (Consistency::Application, false));
}

#[test]
fn rule_4_another_choice_of_the_role_rule_is_no_proof() {
    let mut case = locked();
    let application = &mut case.resolved.applications[0];
    application.chosen_at_ready = vec!["mariadb-0/u1=primary".into()];
    application.chosen_at_thawed = application.chosen_at_ready.clone();
    assert_eq!(case.consistency(), Consistency::Application);
    case.resolved.applications[0].chosen_at_thawed = vec!["mariadb-1/u2=primary".into()];
    only_rule_refuses(4, &case);
}

#[test]
fn rule_4_a_mount_that_is_no_member_hides_the_member_it_lies_on() {
    let mut case = locked();
    case.holds[0].foreign_mounts = vec!["/data/other".into()];
    assert_eq!(case.consistency(), Consistency::Application);
    case.holds[0].foreign_mounts = vec!["/data/mysql".into()];
    only_rule_refuses(4, &case);
}

#[test]
fn rule_8_counts_the_volumes_of_each_pod() {
    let mut case = locked();
    case.members.push(member("redo", 78_000));
    only_rule_refuses(8, &case);
    // The same volume under another pod is another server's.
    case.members[1].pod_uid = "u2".into();
    assert_eq!(case.consistency(), Consistency::Application);
    // A shared one is a second volume of both.
    case.members[1].also_mounted =
        vec![MemberMount { pod_uid: "u1".into(), pod_name: "mariadb-0".into(), mount_paths: Vec::new() }];
    only_rule_refuses(8, &case);
}

#[test]
fn only_what_must_not_happen_is_a_violation() {
    let found = |case: &Case| judge(&case.evidence()).violations.into_iter().collect::<Vec<_>>();
    assert_eq!(found(&locked()), []);
    // Readiness, length and durability are ordinary reasons for no proof.
    let mut slow = locked();
    slow.resolved.max_hold_millis = 1;
    slow.members[0].settled = None;
    assert_ne!(slow.consistency(), Consistency::Application);
    assert_eq!(found(&slow), []);
    let mut early = locked();
    early.holds[0].thaw_sent = early.members[0].post_sent;
    assert_eq!(found(&early), [Violation::CutOutsideFreeze]);
    let mut open = locked();
    open.holds[0].held = None;
    assert_eq!(found(&open), [Violation::HoldNotClosed]);
    let mut other = locked();
    other.members[0].content_volume_handle = Some("vol-other".into());
    assert_eq!(found(&other), [Violation::Contradiction]);
    // Where nothing is locked nothing is outside a freeze.
    let mut free = early;
    free.resolved.applications[0].hold = HoldKind::Observer;
    assert_eq!(found(&free), []);
}
