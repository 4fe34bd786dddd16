//! Several schedulers on one embedded API server: one leads, and whatever happens to it no slot is lost or doubled.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod replica;
mod world;

use std::time::Duration;

use stillpoint_scheduler::election::Terms;
use stillpoint_simcluster::{Fault, FaultAction};

use replica::Replica;
use world::{PATIENCE, World, eventually};

/// Short enough for a test, with the proportions of the product.
const BRIEF: Terms = Terms {
    lease: Duration::from_secs(2),
    act: Duration::from_millis(1300),
    renew: Duration::from_millis(250),
    look: Duration::from_millis(100),
};

/// What is promised of a leader that is killed, and of one that is cut off: another leads after the lease and two seconds.
const REPLACED_WITHIN: Duration = BRIEF.lease.saturating_add(Duration::from_secs(2));

/// Two replicas; the one that leads first.
async fn leader_and_other(world: &World) -> (Replica, Replica) {
    let first = Replica::start(world, "first", BRIEF).await;
    first.until_it_leads().await;
    let second = Replica::start(world, "second", BRIEF).await;
    eventually("the second sees who leads", async || {
        second.leadership.holder().filter(|holder| *holder == first.identity)
    })
    .await;
    (first, second)
}

/// Waits until `other` leads; at no instant do both.
async fn replaced(leader: &Replica, other: &Replica) -> Duration {
    let began = world::now();
    while !other.leadership.leads() {
        assert!(world::now().since(began) < PATIENCE, "{:?}", other.leadership);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(!leader.leadership.leads(), "two lead: {:?}, {:?}", leader.leadership, other.leadership);
    world::now().since(began)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_replicas_one_schedules_and_both_are_ready() {
    let world = World::start("one-leads").await;
    let (leader, other) = leader_and_other(&world).await;
    world.minutely("often").await;
    for slots in 1..=3 {
        world.slot(slots).await;
    }
    eventually("the leader waits for the next slot", async || {
        (leader.progress.borrow().next.is_some()).then_some(())
    })
    .await;
    assert!(*leader.ready.borrow() && *other.ready.borrow(), "one that waits is ready to lead");
    assert_eq!(*other.progress.borrow(), stillpoint_scheduler::Progress::default(), "it has nothing to do");
    assert!(!other.leadership.leads());
    world.every_slot_once(3).await;
    world.end(vec![leader, other]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_killed_is_replaced_in_time_and_no_slot_is_lost_or_doubled() {
    let world = World::start("killed").await;
    let (leader, other) = leader_and_other(&world).await;
    world.minutely("often").await;
    world.slot(1).await;
    world.slot(2).await;
    let dead = leader.kill();
    // The next slot comes while nobody leads.
    world.next_minute().await;
    let took = replaced(&dead, &other).await;
    assert!(took <= REPLACED_WITHIN, "{took:?}");
    world.due_slot(3).await;
    world.slot(4).await;
    world.every_slot_once(4).await;
    world.end(vec![other]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_ends_cleanly_is_replaced_at_once() {
    let world = World::start("released").await;
    // Nobody could wait for this lease here.
    let long = Terms { look: Duration::from_millis(100), ..Terms::default() };
    let leader = Replica::start(&world, "first", long).await;
    leader.until_it_leads().await;
    let other = Replica::start(&world, "second", long).await;
    world.minutely("often").await;
    world.slot(1).await;
    eventually("the second sees who leads", async || other.leadership.holder()).await;
    let (dead, ended) = (leader.seen_from_outside(), world::now());
    leader.stop().await;
    replaced(&dead, &other).await;
    let took = world::now().since(ended);
    assert!(took < Duration::from_secs(5), "{took:?} of a lease of 15 s");
    world.slot(2).await;
    world.every_slot_once(2).await;
    world.end(vec![other]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_stops_by_itself_before_another_begins() {
    let world = World::start("cut-off").await;
    let (leader, other) = leader_and_other(&world).await;
    world.minutely("often").await;
    world.slot(1).await;
    leader.cut_off(true);
    let cut = world::now();
    while leader.leadership.leads() {
        assert!(!other.leadership.leads());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let took = world::now().since(cut);
    assert!(took <= BRIEF.act + Duration::from_millis(500), "by its own clock alone: {took:?}");
    assert!(!other.leadership.leads(), "nobody leads in between");
    let took = took + replaced(&leader, &other).await;
    assert!(took <= REPLACED_WITHIN, "{took:?}");
    world.slot(2).await;
    // It comes back, and with it what it still had to say.
    leader.cut_off(false);
    eventually("the first sees who leads", async || {
        leader.leadership.holder().filter(|holder| *holder == other.identity)
    })
    .await;
    world.slot(3).await;
    assert!(!leader.leadership.leads() && other.leadership.leads());
    world.every_slot_once(3).await;
    world.end(vec![leader, other]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_deposed_leader_still_had_on_the_wire_changes_nothing() {
    let world = World::start("on-the-wire").await;
    let (leader, other) = leader_and_other(&world).await;
    world.minutely("often").await;
    world.slot(1).await;
    // Its request for the Backup of the next slot arrives when another leads already.
    let late = Duration::from_secs(6);
    world.cluster.faults().inject(Fault::new("create", "backups", FaultAction::Delay(late)));
    let hits = world.cluster.faults().hits();
    world.next_minute().await;
    eventually("the request is under way", async || (world.cluster.faults().hits() > hits).then_some(()))
        .await;
    leader.cut_off(true);
    let sent = world::now();
    replaced(&leader, &other).await;
    world.due_slot(2).await;
    // And so does a status that it would write from what it read then.
    world.cluster.faults().inject(Fault::new("update", "backuppolicies/status", FaultAction::Delay(late)));
    let before = world.status().await;
    world.next_minute().await;
    world.backups(3).await;
    other.cut_off(true);
    leader.cut_off(false);
    replaced(&other, &leader).await;
    world.due_slot(3).await;
    world.slot(4).await;
    other.cut_off(false);
    let both_arrived = sent + late + late + late;
    while world::now() < both_arrived {
        let now = world.status().await;
        assert!(now.last_slot >= before.last_slot, "rolled back: {now:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.every_slot_once(4).await;
    world.end(vec![leader, other]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_stopped_and_goes_on_writes_nothing_any_more() {
    let world = World::start("stopped").await;
    let (leader, other) = leader_and_other(&world).await;
    world.minutely("often").await;
    world.slot(1).await;
    // It has asked for the policy and is stopped before the answer: it goes on with a decision of long ago.
    let answer = Duration::from_millis(500);
    world.cluster.faults().inject(Fault::new("get", "backuppolicies", FaultAction::Delay(answer)));
    let hits = world.cluster.faults().hits();
    world.next_minute().await;
    eventually("the policy is asked for", async || (world.cluster.faults().hits() > hits).then_some(()))
        .await;
    let goes_on = leader.stop_for(BRIEF.lease * 3);
    replaced(&leader, &other).await;
    world.due_slot(2).await;
    goes_on.await.unwrap();
    eventually("it has seen who leads", async || {
        leader.leadership.holder().filter(|holder| *holder == other.identity)
    })
    .await;
    eventually("it has given up what it was at", async || (leader.progress.borrow().busy == 0).then_some(()))
        .await;
    world.slot(3).await;
    world.every_slot_once(3).await;
    assert_eq!(world.creates(), 3, "nobody asked for a Backup twice");
    world.end(vec![leader, other]).await;
}
