//! Two controllers on the real API server: one schedules, and when it is killed the other does, without losing a slot or
//! running one twice.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};
use stillpoint_api::Backup;
use stillpoint_api::backup::Trigger;
use stillpoint_e2e::controller::{Controller, Start};
use stillpoint_e2e::load::Engine;
use stillpoint_e2e::wait::{Look, now_micros, until};
use stillpoint_e2e::world::{POSTGRES, World};
use stillpoint_e2e::{Outcome, ensure};

const POLICY: &str = "elected";
/// The lease of 15 s and two seconds; microseconds.
pub const REPLACED_WITHIN: i64 = 17_000_000;

/// A run every minute.
pub fn policy(suspend: bool) -> Value {
    json!({
        "schedule": {"cron": "* * * * *"},
        "suspend": suspend,
        "applications": [{"name": "orders", "selector": {"matchLabels": {"app": "postgres"}}}],
        "retention": {"last": 9},
    })
}

async fn leads(controller: &Controller) -> Outcome<bool> {
    Ok(controller.metrics().await?.lines().any(|line| line == "stillpoint_leader 1"))
}

async fn until_it_leads(controller: &Controller, what: &str) -> Outcome {
    until(what, Duration::from_secs(30), async || {
        Ok(Look::at(leads(controller).await?.then_some(()), "it does not lead"))
    })
    .await
}

/// Backups of a policy's schedule, and the slots that they are of: as many, unless a slot ran twice.
pub async fn slots(world: &World, policy: &str) -> Outcome<(usize, BTreeSet<Timestamp>)> {
    let backups: Api<Backup> = Api::namespaced(world.cluster.client.clone(), POSTGRES);
    let all = backups.list(&ListParams::default()).await?.items;
    let scheduled: Vec<&Backup> = all
        .iter()
        .filter(|one| one.policy_name() == Some(policy) && one.spec.trigger != Trigger::Manual)
        .collect();
    let slots = scheduled.iter().filter_map(|one| one.spec.run.slot.as_ref().map(|slot| slot.0)).collect();
    Ok((scheduled.len(), slots))
}

async fn until_slots(world: &World, count: usize) -> Outcome<BTreeSet<Timestamp>> {
    until(&format!("{count} slots"), Duration::from_secs(100), async || {
        let (backups, slots) = slots(world, POLICY).await?;
        ensure!(backups == slots.len(), "{backups} Backups of {} slots", slots.len());
        Ok(Look::at((backups >= count).then_some(slots), format!("{backups} Backups")))
    })
    .await
}

/// The leader is killed just before a slot: the other replica runs it.
pub async fn killed_leader(world: &mut World) -> Outcome {
    world.database(POSTGRES, Engine::Postgres, None).await?;
    let number = world.next_number();
    until_it_leads(world.controller().await?, "the first controller to lead").await?;
    let start = Start { replica: "other", ..Start::default() };
    let other = Controller::start(&world.cluster, &world.binary, &world.out, number, start).await?;
    ensure!(!leads(&other).await?, "two lead");
    world.policy(POSTGRES, POLICY, policy(false)).await?;
    let outcome = replaced(world, &other).await;
    // Shown or not: from here on it would only get in the way.
    world.policy(POSTGRES, POLICY, policy(true)).await?;
    other.terminate().await?;
    let ended = other.ended().await?;
    outcome?;
    ensure!(ended.success(), "the other controller ended with {ended} after SIGTERM");
    Ok(())
}

async fn replaced(world: &mut World, other: &Controller) -> Outcome {
    let first = until_slots(world, 1).await?;
    until("a slot to be near", Duration::from_secs(60), async || {
        let second = now_micros().div_euclid(1_000_000).rem_euclid(60);
        Ok(Look::at((52..57).contains(&second).then_some(()), format!("second {second} of the minute")))
    })
    .await?;
    let before = slots(world, POLICY).await?.1;
    let killed = now_micros();
    world.take_controller()?.crash().await?;
    until_it_leads(other, "the other controller to lead").await?;
    let took = now_micros() - killed;
    println!("        the other controller led {:.1} s after SIGKILL", took as f64 / 1e6);
    ensure!(took <= REPLACED_WITHIN, "the other controller led only {took} µs after SIGKILL");
    let after = until_slots(world, before.len() + 1).await?;
    let minute = SignedDuration::from_mins(1);
    let expected: BTreeSet<Timestamp> = (0_i32..)
        .map(|n| first.iter().next().copied().unwrap_or_default() + minute * n)
        .take(after.len())
        .collect();
    ensure!(after == expected, "slots {after:?}, and all of {expected:?} were due");
    Ok(())
}
