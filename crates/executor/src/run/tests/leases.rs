//! What FREEZE and the texts of stages may ask for, so that no lock outlives the promise (docs/design/freeze.md §3).

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Lease and longest wait of the last text that may wait for a lock.
fn asked(world: &World) -> (u64, u64) {
    let found = world.sent.iter().rev().find_map(|effect| match effect {
        Effect::SendFreeze { lease, acquire, .. } | Effect::SendStage { lease, acquire, .. } => {
            Some((lease.as_secs(), acquire.as_secs()))
        }
        _ => None,
    });
    found.unwrap()
}

/// The FREEZE of a second order, written `elapsed` after t0.
fn later_freeze(max_hold: u64, acquire: u64, elapsed: u64) -> (u64, u64) {
    let mut plan = ordered(&[1, 2]);
    plan.max_hold = SECOND * u32::try_from(max_hold).unwrap();
    plan.acquire_timeout = SECOND * u32::try_from(acquire).unwrap();
    let (mut world, _) = World::ready_and_written(plan);
    assert!(asked(&world).0 + asked(&world).1 <= max_hold + 5);
    world.now += SECOND * u32::try_from(elapsed).unwrap();
    world.freeze(0);
    asked(&world)
}

#[test]
fn a_lock_that_is_granted_at_the_very_end_still_ends_within_the_promise() {
    // maxHold, acquireTimeout, when it is written after t0: lease and wait, in seconds.
    for ((max_hold, acquire, elapsed), expected) in [
        ((30, 15, 0), (10, 15)),
        ((30, 15, 3), (10, 12)),
        ((30, 15, 14), (10, 1)),
        ((30, 26, 0), (9, 26)),
        ((30, 26, 20), (9, 6)),
        ((10, 6, 0), (9, 6)),
        ((10, 6, 5), (9, 1)),
        ((5, 1, 0), (9, 1)),
    ] {
        let (lease, wait) = later_freeze(max_hold, acquire, elapsed);
        assert_eq!((lease, wait), expected, "{max_hold} {acquire} {elapsed}");
        assert!(elapsed + wait + lease <= max_hold + 5, "{max_hold} {acquire} {elapsed}");
    }
}

#[test]
fn a_late_stage_asks_for_less() {
    for (elapsed, expected) in [(0, (10, 15)), (10, (10, 15)), (15, (8, 12)), (20, (8, 7)), (26, (8, 1))] {
        let mut plan = staged();
        plan.stack_patience = Duration::from_secs(60);
        let mut world = World::to_cutting(plan);
        world.now += SECOND * elapsed;
        world.cut(0);
        let (lease, wait) = asked(&world);
        assert_eq!((lease, wait), expected, "{elapsed}");
        assert!(u64::from(elapsed) + wait + lease <= 35, "{elapsed}");
    }
}

#[test]
fn neither_is_ever_less_than_a_second() {
    let (world, _) = World::ready_and_written(plan(vec![hold(0, true)], 1));
    let late = Mono::from_origin(world.now + Duration::from_secs(100));
    let asked = crate::run::timers::asked(&world.run, late, late);
    assert_eq!((asked.lease, asked.acquire), (SECOND, SECOND));
}
