//! Several volumes: groups, stages, and commands that hold them.

use stillpoint_api::evidence::{GroupEvidence, StageEvidence};
use stillpoint_api::template::Layout;

use super::*;

fn grouped(kind: GroupKind) -> Case {
    let mut case = locked();
    case.members.push(member("log", 78_000));
    for member in &mut case.members {
        member.storage.group = kind;
        member.handle = None;
        member.group = Some(GroupEvidence {
            volume_group_snapshot: "g-1".into(),
            handle: Some("group".into()),
            exact: Some(true),
            ..GroupEvidence::default()
        });
    }
    case
}

#[test]
fn one_write_ordered_group_is_one_cut() {
    let case = grouped(GroupKind::WriteOrder);
    assert_eq!(case.consistency(), Consistency::Application, "{:?}", case.missing());
}

#[test]
fn rule_8_a_sequential_group_is_several_volumes() {
    only_rule_refuses(8, &grouped(GroupKind::Sequential));
    let mut any = grouped(GroupKind::Sequential);
    any.resolved.applications[0].layout = Layout::AnyUnderLock;
    assert_eq!(any.consistency(), Consistency::Application, "{:?}", any.missing());
}

#[test]
fn rule_8_two_groups_are_not_one_cut() {
    let mut case = grouped(GroupKind::WriteOrder);
    case.members[1].group.as_mut().unwrap().volume_group_snapshot = "g-2".into();
    only_rule_refuses(8, &case);
}

#[test]
fn rule_7_a_group_with_other_members_is_worth_nothing() {
    let mut case = grouped(GroupKind::WriteOrder);
    case.members[1].group.as_mut().unwrap().exact = Some(false);
    only_rule_refuses(7, &case);
    assert_eq!(case.consistency(), Consistency::None);
    case.members[1].group.as_mut().unwrap().exact = None;
    only_rule_refuses(7, &case);
}

#[test]
fn a_write_ordered_group_whose_hold_broke_is_what_a_power_failure_leaves() {
    let mut case = grouped(GroupKind::WriteOrder);
    case.holds[0].held = None;
    case.resolved.applications[0].position = None;
    assert_eq!(case.consistency(), Consistency::Crash);
    let mut case = grouped(GroupKind::Sequential);
    case.holds[0].held = None;
    case.resolved.applications[0].position = None;
    assert_eq!(case.consistency(), Consistency::None);
}

/// An observer with two stages on two volumes: data, then log.
fn staged() -> Case {
    let mut case = observed();
    case.resolved.applications[0].stages = 2;
    let mut log = member("log", 77_500);
    log.stage = 1;
    log.post_sent = Some(Offset(60_000));
    case.members[0].signal = Some(Offset(50_000));
    case.members.push(log);
    let answer = case.holds[0].frozen.clone().unwrap();
    case.holds[0].stages = vec![StageEvidence {
        stage: 1,
        sent: Some(Offset(50_000)),
        frozen: Some(HoldAnswer { at: Offset(60_000), ..answer }),
    }];
    case
}

#[test]
fn stages_in_their_order_need_no_lock_and_no_group() {
    let case = staged();
    assert_eq!(case.consistency(), Consistency::Application, "{:?}", case.missing());
}

#[test]
fn rule_1_every_break_in_the_order_of_stages_is_refused() {
    let bends: [fn(&mut Case); 6] = [
        |case| case.holds[0].stages[0].sent = Some(Offset(49_000)),
        |case| case.holds[0].stages[0].frozen.as_mut().unwrap().at = Offset(61_000),
        |case| case.holds[0].stages[0].frozen = None,
        |case| case.holds[0].stages.clear(),
        |case| case.members[1].post_sent = Some(Offset(55_000)),
        |case| {
            let answer = case.holds[0].stages[0].frozen.as_mut().unwrap();
            answer.identity.insert("conn".into(), "77".into());
        },
    ];
    for (index, bend) in bends.iter().enumerate() {
        let mut case = staged();
        bend(&mut case);
        assert_eq!(case.missing(), vec![1], "bend {index}");
        only_rule_refuses(1, &case);
    }
}

#[test]
fn rule_3_a_staged_observer_must_be_there_at_the_end() {
    let mut case = staged();
    case.holds[0].thawed = None;
    only_rule_refuses(3, &case);
}

fn commands(kind: HoldKind, probed: bool) -> Case {
    let mut case = locked();
    let application = &mut case.resolved.applications[0];
    application.hold = kind;
    application.probed = probed;
    application.position = None;
    application.thaw_proves_lock.clear();
    application.local = None;
    application.data_paths.clear();
    case
}

#[test]
fn commands_are_local_and_their_grade_is_what_their_probe_saw() {
    for (probed, grade) in [(false, Continuity::Declared), (true, Continuity::State)] {
        let case = commands(HoldKind::Commands, probed);
        let judged = judge(&case.evidence());
        assert_eq!(judged.consistency, Consistency::Application, "{:?}", judged.verdict.missing);
        assert_eq!(judged.continuity, Some(grade));
    }
}

#[test]
fn rule_10_two_separate_commands_without_a_probe_are_never_application_consistent() {
    let case = commands(HoldKind::Direct, false);
    only_rule_refuses(10, &case);
    assert_eq!(case.consistency(), Consistency::Crash);
    assert_eq!(commands(HoldKind::Direct, true).consistency(), Consistency::Application);
}
