//! What is ended when a lock was not acquired, and what never is (docs/design/freeze.md §3).

use super::*;

fn id(text: &str) -> Option<BlockerId> {
    Some(BlockerId::parse(text).unwrap())
}

fn asking(holds: usize, end_blocker: bool) -> Plan {
    let holds = (0..holds).map(|index| HoldPlan { stall_probe: true, end_blocker, ..hold(index, true) });
    plan(holds.collect(), 1)
}

/// The lock was not acquired in time, and the thaw was answered.
fn refused(end_blocker: bool) -> World {
    let (mut world, _) = World::ready_and_written(asking(1, end_blocker));
    world.pass(Duration::from_secs(15));
    world.now += Duration::from_millis(2);
    world.say(0, Word::Thawed);
    world
}

fn answer_probe(world: &mut World, hold: usize, by: &str, id: Option<BlockerId>) -> Vec<Effect> {
    let result = Stall::Blocked { by: by.into(), id };
    world.take(Event::StallProbed { hold: HoldId(hold), result })
}

fn ends(effects: &[Effect]) -> Vec<(usize, &str)> {
    let ended = effects.iter().filter_map(|effect| match effect {
        Effect::EndBlocker { hold, id } => Some((hold.0, id.as_str())),
        _ => None,
    });
    ended.collect()
}

fn last_words(world: &World) -> String {
    let told = world.sent.iter().rev().find_map(|effect| match effect {
        Effect::WriteJournal(Entry::Aborted { why, .. }) => Some(why.message.clone()),
        _ => None,
    });
    told.unwrap()
}

#[test]
fn what_the_probe_names_is_ended_once_and_the_next_look_decides() {
    let mut world = refused(true);
    assert_eq!(ends(&answer_probe(&mut world, 0, "blocker=41", id("41"))), [(0, "41")]);
    assert!(world.aborted().is_none());
    world.pass(Duration::from_millis(1_500));
    assert_eq!(
        world.count(|effect| matches!(effect, Effect::ProbeStall(_))),
        1,
        "what it said would be stale"
    );
    let effects = world.take(Event::BlockerEnded { hold: HoldId(0), result: Ok(()) });
    assert_eq!(effects, [Effect::ProbeStall(HoldId(0))]);
    assert!(ends(&answer_probe(&mut world, 0, "blocker=41", id("41"))).is_empty(), "each once");
    world.pass(Duration::from_secs(1));
    world.take(Event::StallProbed { hold: HoldId(0), result: Stall::Clear });
    assert_eq!(world.aborted(), Some(Reason::LockNotAcquired));
    assert!(last_words(&world).contains("statement 41 on db-0/db was ended"), "{}", last_words(&world));
    let record = world.run.evidence();
    let ended = &record.holds[0].ended_blockers;
    assert_eq!((ended.len(), ended[0].id.as_str(), ended[0].named_by.as_str()), (1, "41", "blocker=41"));
    assert!(ended[0].answered > Some(ended[0].sent) && ended[0].failed.is_none());
    assert!(Some(ended[0].sent) > record.holds[0].thaw_sent, "never before the acquisition had failed");
}

#[test]
fn what_the_probe_named_first_is_kept_when_nobody_is_stuck_any_more() {
    let mut world = refused(false);
    answer_probe(&mut world, 0, "blocker=41 is an ALTER TABLE", id("41"));
    world.pass(Duration::from_secs(1));
    answer_probe(&mut world, 0, "another session holds it", None);
    world.pass(Duration::from_secs(1));
    world.take(Event::StallProbed { hold: HoldId(0), result: Stall::Clear });
    assert_eq!(world.aborted(), Some(Reason::LockNotAcquired));
    let told = last_words(&world);
    assert!(told.contains("the stall probe of db-0/db said: blocker=41 is an ALTER TABLE"), "{told}");
    assert!(told.contains("did not get its lock"), "and why it was given up: {told}");

    // One that could not answer at first has still named somebody first.
    let mut world = refused(false);
    world.take(Event::StallProbed { hold: HoldId(0), result: Stall::Unknown { why: "no shell".into() } });
    world.pass(Duration::from_secs(1));
    answer_probe(&mut world, 0, "session 7", None);
    world.pass(Duration::from_secs(1));
    answer_probe(&mut world, 0, "session 8", None);
    world.pass(Duration::from_secs(15));
    assert_eq!(world.aborted(), Some(Reason::ApplicationLeftQuiesced));
    let told = last_words(&world);
    assert!(told.contains("blocked by session 8; at first: session 7"), "{told}");
}

#[test]
fn nobody_in_the_way_is_named_where_nobody_was_or_where_the_lock_was_not_refused() {
    let mut nobody = refused(false);
    nobody.take(Event::StallProbed { hold: HoldId(0), result: Stall::Clear });
    assert!(!last_words(&nobody).contains("stall probe"), "{}", last_words(&nobody));
    let (mut stopped, _) = World::ready_and_written(asking(1, false));
    stopped.take(Event::Stop { why: Abort::new(Reason::Shutdown, "told to") });
    stopped.say(0, Word::Thawed);
    answer_probe(&mut stopped, 0, "session 7", None);
    stopped.pass(Duration::from_secs(1));
    stopped.take(Event::StallProbed { hold: HoldId(0), result: Stall::Clear });
    assert_eq!(stopped.aborted(), Some(Reason::Shutdown));
    assert!(!last_words(&stopped).contains("session 7"), "{}", last_words(&stopped));
}

#[test]
fn a_command_that_fails_is_told_and_what_it_was_to_end_is_left_quiesced() {
    let mut world = refused(true);
    answer_probe(&mut world, 0, "blocker=41", id("41"));
    world.take(Event::BlockerEnded { hold: HoldId(0), result: Err("not the owner".into()) });
    answer_probe(&mut world, 0, "blocker=41", id("41"));
    world.pass(Duration::from_secs(15));
    assert_eq!(world.aborted(), Some(Reason::ApplicationLeftQuiesced));
    assert!(last_words(&world).contains("could not be ended (not the owner)"), "{}", last_words(&world));
}

#[test]
fn nothing_is_ended_unasked_unnamed_or_without_end() {
    let mut report = refused(false);
    assert!(ends(&answer_probe(&mut report, 0, "blocker=41", id("41"))).is_empty(), "onBlocked: Report");
    let mut unnamed = refused(true);
    assert!(ends(&answer_probe(&mut unnamed, 0, "two statements", None)).is_empty());
    let mut world = refused(true);
    let mut ended = 0;
    for number in 0..10 {
        ended += ends(&answer_probe(&mut world, 0, "another", id(&number.to_string()))).len();
        world.take(Event::BlockerEnded { hold: HoldId(0), result: Ok(()) });
    }
    assert_eq!(ended, 3, "what is blocked again and again is not cured by ending more");
    let mut late = refused(true);
    late.now += Duration::from_secs(15);
    assert!(ends(&answer_probe(&mut late, 0, "blocker=41", id("41"))).is_empty(), "the promise has ended");
}

#[test]
fn an_attempt_that_ends_for_another_reason_ends_nobodys_statement() {
    let stop = |why: Reason| Event::Stop { why: Abort::new(why, "told to") };
    for event in [stop(Reason::Shutdown), stop(Reason::Cancelled), Event::ClaimLost { why: "silent".into() }]
    {
        let (mut world, _) = World::ready_and_written(asking(1, true));
        world.take(event);
        world.say(0, Word::Thawed);
        assert_eq!(
            world.count(|effect| matches!(effect, Effect::ProbeStall(_))),
            1,
            "it is asked all the same"
        );
        assert!(ends(&answer_probe(&mut world, 0, "blocker=41", id("41"))).is_empty());
    }
}

#[test]
fn only_the_hold_whose_own_lock_was_refused_ends_a_statement() {
    let (mut world, _) = World::ready_and_written(asking(2, true));
    // The first is refused by its server at once; the second was given up while it still waited.
    let why = Abort::new(Reason::LockNotAcquired, "lock wait timeout");
    world.take(Event::HoldEnded { hold: HoldId(0), why });
    world.say(1, Word::Thawed);
    assert_eq!(ends(&answer_probe(&mut world, 1, "blocker=7", id("7"))), []);
    assert_eq!(ends(&answer_probe(&mut world, 0, "blocker=41", id("41"))), [(0, "41")]);
}
