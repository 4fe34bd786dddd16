//! The controller as the Deployment of deploy/base: what its pods may do, a drain of the leader's node in mid-freeze, and a
//! killed leader. A policy with a run every minute goes on through the last two: no slot is lost, none runs twice.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{RoundMode, SignedDuration, Timestamp, TimestampRound, Unit};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use stillpoint_api::backup::JournalKind;
use stillpoint_e2e::acks::{Acks, stalls};
use stillpoint_e2e::controller::NAMESPACE;
use stillpoint_e2e::deployed::{PODS, Replica};
use stillpoint_e2e::load::Engine;
use stillpoint_e2e::wait::{Look, now_micros, until};
use stillpoint_e2e::world::{MARIADB, POSTGRES, World};
use stillpoint_e2e::{Outcome, Present as _, ensure, point};

use crate::election::{self, REPLACED_WITHIN, slots};
use crate::interruption::{backup, held, journal, no_leak};

/// The policy that runs every minute.
const POLICY: &str = "placed";
/// maxHold of the held run and its slack (docs/design/freeze.md §3): the promise that holds however a freeze ends; microseconds.
const HELD_AT_MOST: i64 = 15_000_000;
/// What `kubectl drain` chooses by, so that it takes the leader's pod alone.
const DRAINED: &str = "stillpoint-e2e/drained";

/// Nothing writes, nothing is root, there is no shell; the namespace takes nothing else; the files apply as they are.
pub async fn restricted(world: &mut World) -> Outcome {
    world.controller().await?;
    let dry = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-k"];
    for folder in ["deploy/base", "deploy/overlays/kubernetes-1.30", "config/templates"] {
        let apply = [&dry[..], &[folder]].concat();
        let printed = world.cluster.kubectl(&apply, None).await?;
        ensure!(!printed.stderr.contains("Warning"), "{folder}: {}", printed.stderr);
        printed.good(&format!("kubectl apply -k {folder}"))?;
    }
    let replicas = world.controller().await?.deployed()?.replicas();
    let pod = replicas.first().present("a replica")?.name.clone();
    let shell =
        world.cluster.kubectl(&["-n", NAMESPACE, "exec", &pod, "--", "/bin/sh", "-c", "true"], None).await?;
    ensure!(shell.code != Some(0), "there is a shell in the image");
    let root = ["-n", NAMESPACE, "run", "root", "--image=cluster.local/postgres:1", "--dry-run=server"];
    let refused = world.cluster.kubectl(&root, None).await?;
    ensure!(
        refused.stderr.contains("violates PodSecurity \"restricted"),
        "the namespace takes a pod as root: {refused:?}"
    );
    let path = "jsonpath={.items[*].spec.containers[0].securityContext.readOnlyRootFilesystem} \
                {.items[*].spec.securityContext.runAsNonRoot} {.items[*].status.containerStatuses[0].image}";
    let seen = world
        .cluster
        .kubectl(&["-n", NAMESPACE, "get", "pods", "-l", PODS, "-o", path], None)
        .await?
        .good("look")?;
    ensure!(seen.starts_with("true true true true cluster.local/stillpoint:1"), "the pods are {seen}");
    println!(
        "        two replicas of {}, read-only, not root, no shell",
        seen.rsplit(' ').next().unwrap_or_default()
    );
    Ok(())
}

/// Begins the policy with a run every minute, unless it runs, and returns when it has a slot.
async fn begin_slots(world: &mut World) -> Outcome {
    world.database(POSTGRES, Engine::Postgres, None).await?;
    world.controller().await?;
    world.policy(POSTGRES, POLICY, election::policy(false)).await?;
    world.accepted(POSTGRES, POLICY).await
}

/// The slot that is due at this instant, in microseconds since 1970, or was last.
fn slot_before(micros: i64) -> Outcome<Timestamp> {
    let minutes = TimestampRound::new().smallest(Unit::Minute).mode(RoundMode::Floor);
    Ok(Timestamp::from_microsecond(micros)?.round(minutes)?)
}

/// Every minute from the first slot to this one has one Backup.
async fn no_slot_lost(world: &World, newest: Timestamp) -> Outcome {
    let found = until("the slots that were due to have Backups", Duration::from_secs(90), async || {
        let (count, found) = slots(world, POLICY).await?;
        ensure!(count == found.len(), "{count} Backups of {} slots", found.len());
        let last = found.last().copied();
        Ok(Look::at(
            (last >= Some(newest)).then(|| found.clone()),
            format!("{found:?}, and {newest} was due"),
        ))
    })
    .await?;
    let first = *found.first().present("the first slot")?;
    let due: BTreeSet<Timestamp> =
        (0_i32..).map(|n| first + SignedDuration::from_mins(1) * n).take(found.len()).collect();
    ensure!(found == due, "slots {found:?}, and all of {due:?} were due");
    println!("        {} slots in a row, each with one Backup", found.len());
    Ok(())
}

/// Waits until a replica leads, and says which.
async fn leader(world: &mut World, what: &str) -> Outcome<Replica> {
    let deployed = world.controller().await?.deployed()?;
    until(what, Duration::from_secs(30), async || match deployed.leader().await {
        Ok(leader) => Ok(Look::Done(leader)),
        Err(problem) if problem.0.contains("two lead") => Err(problem),
        Err(problem) => Ok(Look::NotYet(problem.0)),
    })
    .await
}

/// `kubectl drain` takes the pod of the replica that leads and holds MariaDB: it thaws first, the run is tried again by the
/// other, which leads; the budget keeps that one from being drained as well.
pub async fn drained(world: &mut World) -> Outcome {
    begin_slots(world).await?;
    let outcome = drain_in_mid_freeze(world).await;
    // Shown or not: the node must take pods again.
    world.cluster.kubectl(&["uncordon", "node"], None).await?.good("uncordon")?;
    world.cluster.misbehave(None)?;
    outcome?;
    world.controller().await?.deployed()?.ready().await?;
    no_slot_lost(world, slot_before(now_micros())?).await
}

async fn drain_in_mid_freeze(world: &mut World) -> Outcome {
    let leads = leader(world, "a replica to lead").await?;
    let pod =
        Api::<Pod>::namespaced(world.cluster.client.clone(), MARIADB).get(&Engine::Mariadb.pod()).await?;
    let acks = Acks::of(&world.cluster, &pod.uid().present("the pod's UID")?);
    let place = acks.length();
    let deployed = world.controller().await?.deployed()?;
    let other =
        deployed.replicas().into_iter().find(|one| one.uid != leads.uid).present("the other replica")?;
    // Either may take the run. While the other stands still the leader does.
    deployed.signal(&other, "STOP").await?;
    let run = held(world).await;
    world.controller().await?.deployed()?.signal(&other, "CONT").await?;
    let run = run?;
    let owner = backup(world, &run.name).await?.status.and_then(|status| status.executor).unwrap_or_default();
    ensure!(owner.starts_with(&leads.name), "{owner} holds the run, and {} leads", leads.name);

    let label = ["-n", NAMESPACE, "label", "pod", &leads.name, &format!("{DRAINED}=yes")];
    world.cluster.kubectl(&label, None).await?.good("mark the leader's pod")?;
    let chosen = format!("--pod-selector={DRAINED}=yes");
    let began = now_micros();
    let drain = ["drain", "node", &chosen, "--timeout=60s"];
    world.cluster.kubectl(&drain, None).await?.good("drain the node")?;
    println!("        drained within {:.1} s", (now_micros() - began) as f64 / 1e6);
    let resumed = run.load.first_ack_after(began, Duration::from_secs(20)).await?;
    println!("        first commit {:.1} s after the drain began", (resumed.acked - began) as f64 / 1e6);

    let next = leader(world, "the other replica to lead").await?;
    ensure!(next.uid == other.uid, "{} leads, and {} was to", next.name, other.name);
    let took = now_micros() - began;
    println!("        the other replica leads {:.1} s after the drain began", took as f64 / 1e6);
    ensure!(took <= REPLACED_WITHIN, "the other replica led only {took} µs after the drain began");

    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": other.name, "namespace": NAMESPACE}});
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{}/eviction", other.name);
    let evict = ["create", "--raw", &path, "-f", "-"];
    let refused = world.cluster.kubectl(&evict, Some(eviction.to_string().into_bytes())).await?;
    ensure!(refused.stderr.contains("disruption budget"), "the last replica could be evicted: {refused:?}");

    // The cut of the second attempt is not slow.
    world.cluster.misbehave(None)?;
    let done = world.finished(MARIADB, &run.name, Duration::from_secs(120)).await?;
    let shutdown = Some("Shutdown".to_owned());
    let expected = [
        (JournalKind::Freezing, 1, None),
        (JournalKind::Aborted, 1, shutdown),
        (JournalKind::Freezing, 2, None),
        (JournalKind::Thawed, 2, None),
    ];
    ensure!(journal(&done) == expected, "the journal is {:?}: {}", journal(&done), point::outcome_of(&done));
    point::verify(&world.cluster, &done).await?;
    let longest = stalls(&acks.since(place)?, 0).iter().map(|stall| stall.micros()).max().unwrap_or_default();
    println!("        longest time without a commit: {:.1} s", longest as f64 / 1e6);
    ensure!(longest <= HELD_AT_MOST, "no commit for {longest} µs");
    no_leak(world, &run, &done).await
}

/// SIGKILL to the container of the replica that leads, just before a slot: another one leads within the lease and two seconds, and
/// runs it.
pub async fn killed(world: &mut World) -> Outcome {
    begin_slots(world).await?;
    let outcome = kill_leader(world).await;
    let kept = match outcome {
        Ok(slot) => no_slot_lost(world, slot).await,
        Err(problem) => Err(problem),
    };
    // Shown or not: from here on it would only get in the way.
    world.policy(POSTGRES, POLICY, election::policy(true)).await?;
    kept
}

/// Returns the first slot after the kill.
async fn kill_leader(world: &mut World) -> Outcome<Timestamp> {
    until("a slot to be near", Duration::from_secs(60), async || {
        let second = now_micros().div_euclid(1_000_000).rem_euclid(60);
        Ok(Look::at((50..57).contains(&second).then_some(()), format!("second {second} of the minute")))
    })
    .await?;
    let leads = leader(world, "a replica to lead").await?;
    let deployed = world.controller().await?.deployed()?;
    let killed = now_micros();
    deployed.kill(&leads).await?;
    let next = leader(world, "a replica to lead after SIGKILL").await?;
    let took = now_micros() - killed;
    let which = if next.uid == leads.uid { "the same pod's next container" } else { "the other replica" };
    println!("        {which} leads {:.1} s after SIGKILL", took as f64 / 1e6);
    ensure!(took <= REPLACED_WITHIN, "nobody led until {took} µs after SIGKILL");
    world.controller().await?.deployed()?.ready().await?;
    Ok(slot_before(killed)? + SignedDuration::from_mins(1))
}
