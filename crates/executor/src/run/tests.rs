//! The machine driven by hand: how a freeze goes, and how it ends when something breaks.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use stillpoint_api::clock::Mono;
use stillpoint_api::evidence::{ContainerState, HoldAnswer, MemberEvidence};
use stillpoint_api::template::{LeaseUnit, LocalRule, LocalValue};

use super::*;

mod blockers;
mod leases;

struct World {
    run: Run,
    now: Duration,
    sent: Vec<Effect>,
    timers: Vec<(Mono, Timer)>,
}

fn hold(index: usize, locks: bool) -> HoldPlan {
    HoldPlan {
        application: "db".into(),
        pod_name: format!("db-{index}"),
        pod_uid: format!("u{index}"),
        container: "db".into(),
        container_state: ContainerState::default(),
        nonce: format!("n{index}"),
        locks,
        lease: Duration::from_secs(10),
        lease_unit: Some(LeaseUnit::Seconds),
        order: 0,
        stages: 1,
        canary: false,
        stall_probe: false,
        end_blocker: false,
        recovery_needs: Vec::new(),
        local: Some(LocalRule { key: "host".into(), equals: LocalValue::PodHostname }),
        data_paths: vec!["datadir".into()],
        mount_paths: vec!["/data".into()],
        foreign_mounts: Vec::new(),
    }
}

fn plan(holds: Vec<HoldPlan>, members: usize) -> Plan {
    Plan {
        required: true,
        max_hold: Duration::from_secs(30),
        acquire_timeout: Duration::from_secs(15),
        stack_patience: Duration::from_secs(6),
        prepares: Vec::new(),
        holds,
        members: (0..members)
            .map(|index| MemberEvidence { claim_name: format!("claim-{index}"), ..MemberEvidence::default() })
            .collect(),
        cuts: (0..members).map(|index| CutPlan::single(MemberId(index))).collect(),
        fence: Mono::from_origin(Duration::MAX),
        api_clock: None,
    }
}

fn answer(index: usize) -> HoldAnswer {
    HoldAnswer {
        identity: BTreeMap::from([("host".into(), format!("db-{index}")), ("conn".into(), "7".into())]),
        role: Some("primary".into()),
        lease: Some("10".into()),
        ..HoldAnswer::default()
    }
}

impl World {
    fn new(plan: Plan) -> Self {
        let mut world =
            Self { run: Run::new(plan), now: Duration::from_secs(100), sent: Vec::new(), timers: Vec::new() };
        world.take(Event::Start);
        world
    }

    fn take(&mut self, event: Event) -> Vec<Effect> {
        let now =
            Now { mono: Mono::from_origin(self.now), wall: Timestamp::from_second(1_790_000_000).unwrap() };
        let effects = self.run.step(event, now);
        for effect in &effects {
            if let Effect::Schedule { timer, at } = effect {
                self.timers.push((*at, *timer));
            }
        }
        self.sent.extend(effects.iter().cloned());
        effects
    }

    /// Lets time pass, firing what is due in order.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let due = self
                .timers
                .iter()
                .enumerate()
                .filter(|(_, (at, _))| at.since_origin() <= end)
                .min_by_key(|(_, (at, _))| *at)
                .map(|(index, _)| index);
            let Some(index) = due else { break };
            let (at, timer) = self.timers.remove(index);
            self.now = self.now.max(at.since_origin());
            self.take(Event::Timer(timer));
        }
        self.now = end;
    }

    fn say(&mut self, hold: usize, word: Word) -> Vec<Effect> {
        self.take(Event::HoldSaid { hold: HoldId(hold), word })
    }

    /// To the point where every hold is frozen and the snapshots are asked for.
    fn to_cutting(plan: Plan) -> Self {
        let holds = plan.holds.len();
        let mut world = Self::new(plan);
        for index in 0..holds {
            world.say(index, Word::Ready(answer(index)));
        }
        world.take(Event::Written);
        for index in 0..holds {
            world.say(index, Word::Frozen { stage: 0, answer: answer(index) });
        }
        world
    }

    fn cut(&mut self, member: usize) -> Vec<Effect> {
        let uid = format!("s{member}");
        self.take(Event::Posted { cut: CutId(member), uid: uid.clone() });
        let cut =
            CutSeen { snapshot_uid: uid, handle: "h".into(), content: "c".into(), ..CutSeen::default() };
        self.take(Event::CutSeen { cut: CutId(member), seen: cut })
    }

    fn end(&self) -> Option<&End> {
        self.sent.iter().find_map(|effect| if let Effect::End(end) = effect { Some(end) } else { None })
    }

    fn aborted(&self) -> Option<Reason> {
        self.sent.iter().find_map(|effect| match effect {
            Effect::WriteJournal(Entry::Aborted { why, .. }) => Some(why.reason),
            _ => None,
        })
    }

    fn count(&self, wanted: impl Fn(&Effect) -> bool) -> usize {
        self.sent.iter().filter(|effect| wanted(effect)).count()
    }
}

fn is_post(effect: &Effect) -> bool {
    matches!(effect, Effect::PostSnapshot { .. })
}

fn is_freeze(effect: &Effect) -> bool {
    matches!(effect, Effect::SendFreeze { .. })
}

#[test]
fn nothing_is_frozen_before_the_journal_has_what_the_recovery_needs() {
    let needing = || {
        let mut held = hold(0, true);
        held.recovery_needs = vec!["old_pct".into()];
        World::new(plan(vec![held], 1))
    };
    let told = |value: &str| Word::Evidence { key: "old_pct".into(), value: value.into() };

    let mut world = needing();
    world.say(0, told("90.000000"));
    let effects = world.say(0, Word::Ready(answer(0)));
    assert!(effects.contains(&Effect::WriteJournal(Entry::Freezing)), "{effects:?}");
    let kept = world.run.evidence().holds.remove(0).facts;
    assert_eq!(kept.get("old_pct").map(String::as_str), Some("90.000000"), "the entry has it");

    for words in [None, Some("1; DROP TABLE t"), Some("")] {
        let mut world = needing();
        if let Some(value) = words {
            world.say(0, told(value));
        }
        let effects = world.say(0, Word::Ready(answer(0)));
        assert!(!effects.contains(&Effect::WriteJournal(Entry::Freezing)), "{words:?}: {effects:?}");
        let frozen = world.sent.iter().any(|effect| matches!(effect, Effect::SendFreeze { .. }));
        assert!(!frozen, "{words:?}");
        let why = world.run.evidence().holds.remove(0);
        assert!(why.freeze_sent.is_none());
    }
}

#[test]
fn a_freeze_is_journalled_before_it_is_sent_and_the_cut_follows_every_lock() {
    let mut world = World::new(plan(vec![hold(0, true), hold(1, true)], 2));
    world.say(0, Word::Ready(answer(0)));
    assert_eq!(world.count(|effect| matches!(effect, Effect::WriteJournal(_))), 0);
    world.say(1, Word::Ready(answer(1)));
    assert_eq!(world.sent.last(), Some(&Effect::WriteJournal(Entry::Freezing)));
    assert_eq!(world.count(is_freeze), 0);
    world.take(Event::Written);
    assert_eq!(world.count(is_freeze), 2);
    world.say(0, Word::Frozen { stage: 0, answer: answer(0) });
    assert_eq!(world.count(is_post), 0, "one lock is not all locks");
    world.say(1, Word::Frozen { stage: 0, answer: answer(1) });
    assert_eq!(world.count(is_post), 2);
}

#[test]
fn a_hold_is_released_in_one_write_once_every_cut_was_seen() {
    let mut world = World::to_cutting(plan(vec![hold(0, true)], 2));
    assert!(world.cut(0).is_empty(), "one cut is not all cuts");
    let effects = world.cut(1);
    assert!(matches!(effects[0], Effect::SendClosing { index: 1, .. }), "{effects:?}");
    world.take(Event::ClosingWritten { hold: HoldId(0) });
    world.say(0, Word::Held { index: 1, answer: answer(0) });
    let effects = world.say(0, Word::Thawed);
    assert_eq!(effects, vec![Effect::CloseHold(HoldId(0)), Effect::WriteJournal(Entry::Thawed)]);
    world.take(Event::Written);
    assert_eq!(world.end(), Some(&End::Thawed));
    let record = world.run.evidence();
    assert!(record.holds[0].held.is_some() && record.holds[0].closing_written.is_some());
    assert!(record.window.unwrap().frozen_seconds.is_some());
}

#[test]
fn a_cut_of_somebody_elses_snapshot_does_not_count() {
    let mut world = World::to_cutting(plan(vec![hold(0, true)], 1));
    world.take(Event::Posted { cut: CutId(0), uid: "ours".into() });
    let foreign = CutSeen { snapshot_uid: "theirs".into(), handle: "h".into(), ..CutSeen::default() };
    assert!(world.take(Event::CutSeen { cut: CutId(0), seen: foreign }).is_empty());
    assert!(world.run.frozen());
}

#[test]
fn a_cut_that_overtakes_its_201_counts_from_when_it_was_seen() {
    let mut world = World::to_cutting(plan(vec![hold(0, true)], 1));
    let cut = CutSeen { snapshot_uid: "ours".into(), handle: "h".into(), ..CutSeen::default() };
    assert!(world.take(Event::CutSeen { cut: CutId(0), seen: cut }).is_empty());
    world.now += Duration::from_millis(5);
    let effects = world.take(Event::Posted { cut: CutId(0), uid: "ours".into() });
    assert!(matches!(effects[0], Effect::SendClosing { .. }));
    let member = &world.run.evidence().members[0];
    assert!(member.signal < member.posted);
}

#[test]
fn beats_renew_the_lease_while_ready_and_while_frozen_but_not_while_acquiring() {
    let beats = |world: &World| world.count(|effect| matches!(effect, Effect::SendBeat { .. }));
    let mut world = World::new(plan(vec![hold(0, true)], 1));
    world.say(0, Word::Ready(answer(0)));
    world.pass(Duration::from_secs(2));
    assert_eq!(beats(&world), 1);
    world.say(0, Word::Held { index: 1, answer: answer(0) });
    world.take(Event::Written);
    world.pass(Duration::from_secs(5));
    assert_eq!(beats(&world), 1, "none between FREEZE and FROZEN");
    world.say(0, Word::Frozen { stage: 0, answer: answer(0) });
    world.pass(Duration::from_secs(2));
    assert_eq!(beats(&world), 2);
}

#[test]
fn an_unanswered_beat_is_a_lost_hold_before_the_lease_ends() {
    let mut world = World::to_cutting(plan(vec![hold(0, true)], 1));
    world.take(Event::ContentSeen { cut: CutId(0) });
    world.pass(Duration::from_secs(2));
    world.pass(Duration::from_millis(6_900));
    assert!(world.aborted().is_none());
    assert_eq!(world.count(|effect| matches!(effect, Effect::SendBeat { .. })), 1, "none queued behind it");
    world.pass(Duration::from_millis(200));
    assert_eq!(world.aborted(), Some(Reason::HoldLost));
}

#[test]
fn a_server_that_changes_under_the_lock_is_a_lost_hold() {
    let mut world = World::to_cutting(plan(vec![hold(0, true)], 1));
    world.take(Event::ContentSeen { cut: CutId(0) });
    world.pass(Duration::from_secs(2));
    let mut other = answer(0);
    other.identity.insert("conn".into(), "8".into());
    world.say(0, Word::Held { index: 1, answer: other });
    assert_eq!(world.aborted(), Some(Reason::HoldLost));
}

#[test]
fn when_one_hold_dies_the_others_are_thawed_at_once() {
    let mut world = World::to_cutting(plan(vec![hold(0, true), hold(1, true)], 1));
    let why = Abort::new(Reason::HoldLost, "the client was killed");
    let effects = world.take(Event::HoldEnded { hold: HoldId(0), why });
    assert!(effects.contains(&Effect::SendThaw(HoldId(1))), "{effects:?}");
    assert!(world.aborted().is_none(), "not over before it is thawed");
    world.say(1, Word::Thawed);
    assert_eq!(world.aborted(), Some(Reason::HoldLost));
}

#[test]
fn a_lock_that_is_not_acquired_in_time_cuts_nothing() {
    let mut hasty = plan(vec![hold(0, true), hold(1, true)], 1);
    hasty.acquire_timeout = Duration::from_secs(4);
    let mut world = World::new(hasty);
    world.say(0, Word::Ready(answer(0)));
    world.say(1, Word::Ready(answer(1)));
    world.take(Event::Written);
    world.say(0, Word::Frozen { stage: 0, answer: answer(0) });
    world.pass(Duration::from_secs(4));
    assert_eq!(world.count(is_post), 0);
    assert_eq!(world.count(|effect| matches!(effect, Effect::SendThaw(_))), 2);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.aborted(), Some(Reason::LockNotAcquired));
}

#[test]
fn no_cut_by_the_deadline_means_thaw() {
    let mut world = World::to_cutting(plan(vec![hold(0, true)], 1));
    world.take(Event::Posted { cut: CutId(0), uid: "s".into() });
    world.take(Event::ContentSeen { cut: CutId(0) });
    for index in 1..=14 {
        world.pass(Duration::from_secs(2));
        world.say(0, Word::Held { index, answer: answer(0) });
    }
    assert_eq!(world.count(|effect| matches!(effect, Effect::SendThaw(_))), 1);
    world.say(0, Word::Thawed);
    assert_eq!(world.aborted(), Some(Reason::CutTimeout));
}

#[test]
fn a_silent_snapshot_stack_ends_the_freeze_early() {
    let mut world = World::to_cutting(plan(vec![hold(0, true)], 1));
    world.take(Event::Posted { cut: CutId(0), uid: "s".into() });
    world.pass(Duration::from_secs(6));
    world.say(0, Word::Thawed);
    assert_eq!(world.aborted(), Some(Reason::SnapshotStackSilent));
}

#[test]
fn a_refused_snapshot_ends_the_freeze_at_once_when_proof_is_required() {
    let mut world = World::to_cutting(plan(vec![hold(0, true)], 2));
    world.cut(0);
    let effects = world.take(Event::SnapshotFailed { cut: CutId(1), message: "quota".into() });
    assert!(effects.contains(&Effect::SendThaw(HoldId(0))));
}

#[test]
fn a_refused_snapshot_does_not_cost_the_others_when_proof_is_not_required() {
    let mut relaxed = plan(vec![hold(0, true)], 2);
    relaxed.required = false;
    let mut world = World::to_cutting(relaxed);
    world.take(Event::SnapshotFailed { cut: CutId(1), message: "quota".into() });
    assert!(world.run.frozen());
    let effects = world.cut(0);
    assert!(matches!(effects[0], Effect::SendClosing { .. }));
}

#[test]
fn losing_an_observer_after_frozen_costs_no_cut() {
    let mut world = World::to_cutting(plan(vec![hold(0, false)], 1));
    world.take(Event::HoldEnded { hold: HoldId(0), why: Abort::new(Reason::HoldLost, "gone") });
    assert!(world.aborted().is_none());
    world.cut(0);
    assert!(world.sent.contains(&Effect::WriteJournal(Entry::Thawed)));
}

#[test]
fn a_lease_that_the_server_did_not_take_freezes_nothing() {
    for lease in [None, Some("0"), Some("11"), Some("many")] {
        let mut world = World::new(plan(vec![hold(0, true)], 1));
        let mut said = answer(0);
        said.lease = lease.map(Into::into);
        world.say(0, Word::Ready(said));
        assert_eq!(world.aborted(), Some(Reason::LeaseNotSet), "{lease:?}");
        assert_eq!(world.count(is_freeze), 0);
    }
}

#[test]
fn a_server_elsewhere_freezes_nothing() {
    let mut world = World::new(plan(vec![hold(0, true)], 1));
    let mut said = answer(0);
    said.identity.insert("host".into(), "proxy".into());
    world.say(0, Word::Ready(said));
    assert_eq!(world.aborted(), Some(Reason::HoldNotLocal));
}

#[test]
fn data_outside_the_members_freezes_nothing_where_the_opening_text_tells() {
    let mut world = World::new(plan(vec![hold(0, true)], 1));
    world.say(0, Word::Evidence { key: "datadir".into(), value: "/database".into() });
    world.say(0, Word::Ready(answer(0)));
    assert_eq!(world.aborted(), Some(Reason::PathNotCovered));
}

#[test]
fn a_stop_while_the_journal_is_written_freezes_nothing() {
    let mut world = World::new(plan(vec![hold(0, true)], 1));
    world.say(0, Word::Ready(answer(0)));
    world.take(Event::Stop { why: Abort::new(Reason::Shutdown, "stopping") });
    world.take(Event::Written);
    assert_eq!(world.count(is_freeze), 0);
    assert_eq!(world.aborted(), Some(Reason::Shutdown));
}

#[test]
fn a_refused_journal_write_freezes_nothing_and_writes_nothing_more() {
    let mut world = World::new(plan(vec![hold(0, true)], 1));
    world.say(0, Word::Ready(answer(0)));
    world.take(Event::WriteRefused { why: "claimed by another".into() });
    assert_eq!(world.count(is_freeze), 0);
    assert!(matches!(world.end(), Some(End::Disowned(_))));
    assert!(world.run.ended());
}

#[test]
fn a_shutdown_while_frozen_thaws_first() {
    let mut world = World::to_cutting(plan(vec![hold(0, true)], 1));
    let effects = world.take(Event::Stop { why: Abort::new(Reason::Shutdown, "stopping") });
    assert_eq!(effects[0], Effect::SendThaw(HoldId(0)));
    world.say(0, Word::Thawed);
    assert_eq!(world.aborted(), Some(Reason::Shutdown));
}

#[test]
fn thawed_without_being_asked_is_not_believed() {
    let mut world = World::to_cutting(plan(vec![hold(0, true)], 1));
    assert!(world.say(0, Word::Thawed).is_empty());
    assert!(world.run.frozen());
}

#[test]
fn a_thaw_that_is_not_answered_closes_the_stream_and_is_not_called_thawed() {
    let mut world = World::to_cutting(plan(vec![hold(0, true)], 1));
    world.cut(0);
    world.pass(THAW_WITHIN);
    assert!(world.sent.contains(&Effect::CloseHold(HoldId(0))));
    let unproven = world.sent.iter().any(|effect| {
        matches!(effect, Effect::WriteJournal(Entry::Aborted { not_proven_thawed, .. }) if *not_proven_thawed == vec![HoldId(0)])
    });
    assert!(unproven, "{:?}", world.sent);
}

#[test]
fn the_last_beat_cannot_outlive_the_promise() {
    let mut short = plan(vec![hold(0, true)], 1);
    short.max_hold = Duration::from_secs(5);
    let mut world = World::to_cutting(short);
    world.take(Event::ContentSeen { cut: CutId(0) });
    world.pass(Duration::from_secs(2));
    let leases: Vec<Duration> = world
        .sent
        .iter()
        .filter_map(|effect| if let Effect::SendBeat { lease, .. } = effect { Some(*lease) } else { None })
        .collect();
    assert!(leases.iter().all(|lease| *lease <= Duration::from_secs(8)), "{leases:?}");
}

#[test]
fn without_holds_the_cut_follows_the_journal() {
    let mut world = World::new(plan(Vec::new(), 1));
    world.take(Event::Written);
    assert_eq!(world.count(is_post), 1);
    world.cut(0);
    assert!(world.sent.contains(&Effect::WriteJournal(Entry::Thawed)));
}

fn ordered(orders: &[i32]) -> Plan {
    let holds = orders
        .iter()
        .enumerate()
        .map(|(index, order)| HoldPlan { order: *order, ..hold(index, true) })
        .collect();
    plan(holds, 1)
}

fn frozen_holds(effects: &[Effect]) -> Vec<usize> {
    let of = |effect: &Effect| match effect {
        Effect::SendFreeze { hold, .. } => Some(hold.0),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

fn released_holds(effects: &[Effect]) -> Vec<usize> {
    let of = |effect: &Effect| match effect {
        Effect::SendClosing { hold, .. } => Some(hold.0),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

impl World {
    fn ready_and_written(plan: Plan) -> (Self, Vec<Effect>) {
        let holds = plan.holds.len();
        let mut world = Self::new(plan);
        for index in 0..holds {
            world.say(index, Word::Ready(answer(index)));
        }
        let effects = world.take(Event::Written);
        (world, effects)
    }

    fn freeze(&mut self, hold: usize) -> Vec<Effect> {
        self.say(hold, Word::Frozen { stage: 0, answer: answer(hold) })
    }

    fn release(&mut self, hold: usize) -> Vec<Effect> {
        self.take(Event::ClosingWritten { hold: HoldId(hold) });
        self.say(hold, Word::Thawed)
    }
}

#[test]
fn holds_freeze_in_their_order_and_are_released_in_the_reverse_order() {
    let (mut world, effects) = World::ready_and_written(ordered(&[5, 1, 5]));
    assert_eq!(frozen_holds(&effects), [1]);
    assert_eq!(frozen_holds(&world.freeze(1)), [0, 2], "equal orders go together");
    assert!(!world.freeze(0).iter().any(is_post));
    assert!(world.freeze(2).iter().any(is_post));
    assert_eq!(released_holds(&world.cut(0)), [0, 2], "last frozen, first released");
    assert!(released_holds(&world.release(0)).is_empty(), "the order is not through");
    assert_eq!(released_holds(&world.release(2)), [1]);
    assert!(world.release(1).contains(&Effect::WriteJournal(Entry::Thawed)));
}

#[test]
fn giving_up_thaws_what_was_frozen_and_closes_what_was_not() {
    let (mut world, _) = World::ready_and_written(ordered(&[1, 2]));
    let why = Abort::new(Reason::Shutdown, "stopping");
    let effects = world.take(Event::Stop { why });
    assert!(effects.contains(&Effect::SendThaw(HoldId(0))));
    assert!(
        effects.contains(&Effect::CloseHold(HoldId(1))) && !effects.contains(&Effect::SendThaw(HoldId(1)))
    );
    world.say(0, Word::Thawed);
    assert_eq!(world.aborted(), Some(Reason::Shutdown));
}

#[test]
fn a_hold_lost_while_others_are_being_released_thaws_the_rest_at_once() {
    let (mut world, _) = World::ready_and_written(ordered(&[1, 2, 3]));
    for index in 0..3 {
        world.freeze(index);
    }
    world.cut(0);
    let why = Abort::new(Reason::HoldLost, "killed");
    let effects = world.take(Event::HoldEnded { hold: HoldId(2), why });
    assert!(effects.contains(&Effect::SendThaw(HoldId(0))) && effects.contains(&Effect::SendThaw(HoldId(1))));
    world.say(0, Word::Thawed);
    world.say(1, Word::Thawed);
    assert_eq!(world.aborted(), Some(Reason::HoldLost));
}

#[test]
fn what_waits_for_its_turn_to_be_released_goes_on_beating() {
    let (mut world, _) = World::ready_and_written(ordered(&[1, 2]));
    world.freeze(0);
    world.freeze(1);
    world.cut(0);
    let before = world.count(|effect| matches!(effect, Effect::SendBeat { hold: HoldId(0), .. }));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.count(|effect| matches!(effect, Effect::SendBeat { hold: HoldId(0), .. })), before + 1);
}

fn staged() -> Plan {
    let mut plan = plan(vec![HoldPlan { stages: 2, ..hold(0, false) }, hold(1, true)], 2);
    plan.cuts[1].stage = 1;
    plan
}

#[test]
fn a_stage_begins_when_every_cut_of_the_one_before_was_seen_and_is_cut_when_it_was_answered() {
    let mut world = World::to_cutting(staged());
    assert_eq!(world.count(is_post), 1, "only the first stage");
    let effects = world.cut(0);
    assert!(matches!(effects[0], Effect::SendStage { hold: HoldId(0), stage: 1, .. }), "{effects:?}");
    assert_eq!(world.count(is_post), 1);
    assert!(
        world.say(0, Word::Frozen { stage: 0, answer: answer(0) }).is_empty(),
        "an old stage says nothing"
    );
    world.say(0, Word::Frozen { stage: 1, answer: answer(0) });
    assert_eq!(world.count(is_post), 2);
    assert!(matches!(world.cut(1)[0], Effect::SendClosing { .. }));
    let record = world.run.evidence();
    assert_eq!(record.holds[0].stages.len(), 1);
    assert!(record.holds[0].stages[0].frozen.is_some());
    assert_eq!((record.members[0].stage, record.members[1].stage), (0, 1));
}

#[test]
fn losing_a_staged_observer_ends_the_attempt_and_a_stage_has_a_bound() {
    let mut world = World::to_cutting(staged());
    let why = Abort::new(Reason::HoldLost, "gone");
    world.take(Event::HoldEnded { hold: HoldId(0), why });
    world.say(1, Word::Thawed);
    assert_eq!(world.aborted(), Some(Reason::HoldLost));

    let mut hasty = staged();
    hasty.acquire_timeout = Duration::from_secs(1);
    let mut world = World::to_cutting(hasty);
    world.cut(0);
    world.pass(Duration::from_secs(1));
    world.say(0, Word::Thawed);
    world.say(1, Word::Thawed);
    assert_eq!(world.aborted(), Some(Reason::StageFailed));
}

#[test]
fn a_group_is_one_cut_and_every_member_must_be_in_it() {
    let mut grouped = plan(vec![hold(0, true)], 2);
    for (index, member) in grouped.members.iter_mut().enumerate() {
        member.volume_handle = format!("v{index}");
        member.group = Some(stillpoint_api::evidence::GroupEvidence::default());
    }
    grouped.cuts = vec![CutPlan { members: vec![MemberId(0), MemberId(1)], group: true, stage: 0 }];
    let mut world = World::to_cutting(grouped);
    assert_eq!(world.count(is_post), 1);
    world.take(Event::Posted { cut: CutId(0), uid: "g".into() });
    let seen = CutSeen {
        snapshot_uid: "g".into(),
        handle: "h".into(),
        volume_handles: vec!["v0".into()],
        ..CutSeen::default()
    };
    world.take(Event::CutSeen { cut: CutId(0), seen });
    let members = world.run.evidence().members;
    assert!(members.iter().all(|member| member.signal.is_some()));
    assert_eq!(members[0].content_volume_handle.as_deref(), Some("v0"));
    assert_eq!(members[1].content_volume_handle, None, "the group did not cut it");
    assert_eq!(members[0].group.as_ref().and_then(|group| group.handle.as_deref()), Some("h"));
}

#[test]
fn what_somebody_else_froze_is_neither_frozen_nor_thawed() {
    for after_freeze in [false, true] {
        let mut world = World::new(plan(vec![hold(0, true), hold(1, true)], 1));
        if after_freeze {
            world = World::ready_and_written(plan(vec![hold(0, true), hold(1, true)], 1)).0;
        }
        world.say(0, Word::Evidence { key: "foreign_freeze".into(), value: "1".into() });
        world.say(1, Word::Thawed);
        assert_eq!(world.aborted(), Some(Reason::ForeignFreeze));
        assert_eq!(world.count(|effect| *effect == Effect::SendThaw(HoldId(0))), 0);
        let recovers = |effect: &Effect| matches!(effect, Effect::WriteJournal(Entry::Aborted { not_proven_thawed, .. }) if !not_proven_thawed.is_empty());
        assert_eq!(world.count(recovers), 0, "nothing of ours is undone there");
    }
}

#[test]
fn behind_the_fence_nothing_is_frozen_and_nothing_is_cut() {
    let mut fenced = plan(vec![hold(0, true)], 1);
    fenced.fence = Mono::from_origin(Duration::from_secs(99));
    let (world, _) = World::ready_and_written(fenced);
    assert_eq!((world.count(is_freeze), world.aborted()), (0, Some(Reason::ClaimLost)));

    let mut fenced = plan(vec![hold(0, true)], 1);
    fenced.fence = Mono::from_origin(Duration::from_secs(101));
    let (mut world, _) = World::ready_and_written(fenced);
    world.take(Event::ClaimRenewed { fence: Mono::from_origin(Duration::from_secs(103)) });
    world.now += Duration::from_secs(4);
    world.freeze(0);
    world.say(0, Word::Thawed);
    assert_eq!((world.count(is_post), world.aborted()), (0, Some(Reason::ClaimLost)));
}

#[test]
fn a_claim_lost_inside_the_window_thaws_and_never_cuts() {
    let (mut world, _) = World::ready_and_written(plan(vec![hold(0, true)], 1));
    let effects = world.take(Event::ClaimLost { why: "not renewed".into() });
    assert!(effects.contains(&Effect::SendThaw(HoldId(0))));
    world.say(0, Word::Thawed);
    assert_eq!((world.count(is_post), world.aborted()), (0, Some(Reason::ClaimLost)));
}

#[test]
fn every_freeze_carries_what_is_left_of_the_promise() {
    let (mut world, first) = World::ready_and_written(ordered(&[1, 2]));
    let within = |effects: &[Effect]| {
        effects.iter().find_map(|effect| match effect {
            Effect::SendFreeze { within, .. } => Some(*within),
            _ => None,
        })
    };
    assert_eq!(within(&first), Some(Duration::from_secs(34)));
    world.now += Duration::from_secs(3);
    assert_eq!(within(&world.freeze(0)), Some(Duration::from_secs(31)));
}

fn blocked() -> World {
    let holds = vec![HoldPlan { stall_probe: true, ..hold(0, true) }];
    let (mut world, _) = World::ready_and_written(plan(holds, 1));
    world.pass(Duration::from_secs(15));
    world.say(0, Word::Thawed);
    world
}

#[test]
fn a_lock_that_was_given_up_counts_as_frozen_until_nobody_is_stuck_behind_it() {
    let mut world = blocked();
    assert!(world.aborted().is_none() && world.run.frozen());
    assert_eq!(world.count(|effect| matches!(effect, Effect::ProbeStall(_))), 1);
    world.take(Event::StallProbed { hold: HoldId(0), result: Stall::Blocked { by: "7".into(), id: None } });
    world.pass(Duration::from_secs(1));
    assert_eq!(world.count(|effect| matches!(effect, Effect::ProbeStall(_))), 2);
    world.take(Event::StallProbed { hold: HoldId(0), result: Stall::Clear });
    assert_eq!(world.aborted(), Some(Reason::LockNotAcquired));
    assert!(!world.run.frozen());
}

#[test]
fn writers_that_are_still_stuck_at_the_end_of_the_promise_are_called_left_quiesced() {
    let mut world = blocked();
    world.take(Event::StallProbed {
        hold: HoldId(0),
        result: Stall::Blocked { by: "query 7".into(), id: None },
    });
    world.pass(Duration::from_secs(15));
    let told = world.sent.iter().any(|effect| {
        matches!(effect, Effect::WriteJournal(Entry::Aborted { why, not_proven_thawed })
            if why.reason == Reason::ApplicationLeftQuiesced && why.message.contains("query 7") && !not_proven_thawed.is_empty())
    });
    assert!(told, "{:?}", world.sent.last());
}

#[test]
fn a_client_that_goes_on_after_an_error_is_never_opened() {
    let holds = vec![HoldPlan { canary: true, ..hold(0, true) }];
    let mut world = World::new(plan(holds, 1));
    assert_eq!(world.sent, [Effect::CheckCanary(HoldId(0))]);
    let why = Abort::new(Reason::CanaryPrinted, "it went on");
    world.take(Event::CanaryChecked { hold: HoldId(0), result: Err(why) });
    assert_eq!(world.aborted(), Some(Reason::CanaryPrinted));
    assert_eq!(world.count(|effect| matches!(effect, Effect::OpenHold { .. })), 0);
}

#[test]
fn a_barrier_is_kept_with_its_time_and_only_a_few_of_them() {
    let (mut world, _) = World::ready_and_written(plan(vec![hold(0, true)], 1));
    world.now += Duration::from_millis(3);
    for _ in 0..10 {
        let (key, value) = ("barrier".to_owned(), "x".repeat(100));
        world.say(0, Word::Evidence { key, value });
    }
    let hold = world.run.evidence().holds.remove(0);
    assert_eq!((hold.barriers.len(), hold.barriers[0].at.0, hold.barriers[0].name.len()), (4, 3_000, 64));
    assert!(hold.facts.is_empty());
}

#[test]
fn the_api_servers_clock_is_told_against_ours_at_t0() {
    let mut known = plan(vec![hold(0, true)], 1);
    // 100 s on the machine's clock, at which its wall clock reads 1_790_000_000.
    let (at, said) =
        (Mono::from_origin(Duration::from_secs(90)), Timestamp::from_second(1_789_999_995).unwrap());
    known.api_clock = Some(ApiClockReading { at, least: said, most: said });
    let (world, _) = World::ready_and_written(known);
    let window = world.run.evidence().window.unwrap();
    assert_eq!(window.api_clock.unwrap().least_ahead_micros, 5_000_000);
}
