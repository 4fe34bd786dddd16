//! The controller ends while MariaDB is held: by SIGKILL, and by SIGTERM.

use std::time::Duration;

use kube::{Api, ResourceExt as _};
use serde_json::json;
use stillpoint_api::Backup;
use stillpoint_api::backup::JournalKind;
use stillpoint_e2e::load::{Ack, Engine, Load};
use stillpoint_e2e::wait::{Look, now_micros, until};
use stillpoint_e2e::world::{MARIADB, World};
use stillpoint_e2e::{Outcome, Present as _, ensure, point};

use crate::mariadb::by_hand;

/// The cut takes so long: time to end the controller inside the hold, within maxHold of 10 s.
const SLOW_CUT: &str = "5s";
/// After the hold's end commits go on within this (docs/design/freeze.md §9).
const RESUMES_WITHIN: i64 = 1_000_000;
/// maxHold, its slack and the READY lease: as long the next controller waits (docs/design/freeze.md §5).
const RECOVERY_WAIT: i64 = (10 + 5 + 30) * 1_000_000;

/// A run in its hold.
pub struct Held {
    /// The writers.
    pub load: Load,
    /// The Backup.
    pub name: String,
    /// Lines in the driver's ledger before it.
    ledger: usize,
}

/// Starts a run and returns when the driver has been asked for the cut, so that the application is held.
pub async fn held(world: &mut World) -> Outcome<Held> {
    let load = world.database(MARIADB, Engine::Mariadb, None).await?;
    world.controller().await?;
    world.policy(MARIADB, "broken-off", by_hand(&json!({}))).await?;
    world.accepted(MARIADB, "broken-off").await?;
    world.cluster.misbehave(Some(json!({"preCutDelay": SLOW_CUT})))?;
    let ledger = world.cluster.ledger.lines()?.len();
    let name = world.start_run(MARIADB, "broken-off").await?.name_any();
    until("the driver to be asked for the cut", Duration::from_secs(30), async || {
        world.still_runs()?;
        let lines = world.cluster.ledger.lines()?;
        let asked = lines.iter().skip(ledger).any(|line| line.event == "rpc-start");
        Ok(Look::at(asked.then_some(()), format!("{} lines in the ledger", lines.len() - ledger)))
    })
    .await?;
    // The writers have nothing to show for half a second: that is the hold, seen from outside.
    until("the writers to stand still", Duration::from_secs(3), async || {
        let newest = load.recent().await?.iter().map(|ack| ack.acked).max().unwrap_or_default();
        let still = now_micros() - newest;
        Ok(Look::at((still > 500_000).then_some(()), format!("last commit {still} µs ago")))
    })
    .await?;
    Ok(Held { load, name, ledger })
}

pub async fn backup(world: &World, name: &str) -> Outcome<Backup> {
    let backups: Api<Backup> = Api::namespaced(world.cluster.client.clone(), MARIADB);
    Ok(backups.get(name).await?)
}

pub fn journal(backup: &Backup) -> Vec<(JournalKind, u32, Option<String>)> {
    let entries = backup.status.as_ref().map(|status| status.journal.as_slice()).unwrap_or_default();
    entries.iter().map(|entry| (entry.entry, entry.attempt, entry.reason.clone())).collect()
}

fn resumed(first: Ack, ended: i64, how: &str) -> Outcome {
    let after = first.acked - ended;
    ensure!(after <= RESUMES_WITHIN, "commits went on only {after} µs after {how}");
    println!("        first commit acknowledged {:.0} ms after {how}", after as f64 / 1e3);
    Ok(())
}

/// Commits go on within a second; the next controller waits, journals, cleans up and tries the slot again.
pub async fn killed_while_held(world: &mut World) -> Outcome {
    let run = held(world).await?;
    let controller = world.take_controller()?;
    let killed = now_micros();
    controller.crash().await?;
    resumed(run.load.first_ack_after(killed, Duration::from_secs(15)).await?, killed, "SIGKILL")?;
    let found = backup(world, &run.name).await?;
    ensure!(
        journal(&found) == [(JournalKind::Freezing, 1, None)],
        "the journal at the kill is {:?}",
        journal(&found)
    );

    world.cluster.misbehave(None)?;
    let restarted = now_micros();
    world.controller().await?;
    let done = world.finished(MARIADB, &run.name, Duration::from_secs(150)).await?;
    let interrupted = Some("Interrupted".to_owned());
    let expected = [
        (JournalKind::Freezing, 1, None),
        (JournalKind::Aborted, 1, interrupted),
        (JournalKind::Freezing, 2, None),
        (JournalKind::Thawed, 2, None),
    ];
    ensure!(journal(&done) == expected, "the journal is {:?}: {}", journal(&done), point::outcome_of(&done));
    let entries = &done.status.as_ref().present("status")?.journal;
    let aborted = entries.get(1).present("the second entry")?.at.0.as_microsecond();
    let waited = aborted - restarted;
    ensure!(
        waited >= RECOVERY_WAIT,
        "the next controller waited only {waited} µs before it called the run aborted"
    );
    point::verify(&world.cluster, &done).await?;
    no_leak(world, &run, &done).await
}

/// Of everything that was cut from the volume since, the point alone is left: one snapshot, one content, one handle.
pub async fn no_leak(world: &World, run: &Held, done: &Backup) -> Outcome {
    let member = done.status.as_ref().and_then(|status| status.members.first()).present("the member")?;
    until("only the point to be left", Duration::from_secs(30), async || {
        let snapshots = world.snapshots_of(MARIADB, &run.name).await?;
        let contents = world.contents_of(MARIADB, &run.name).await?;
        let handles: Vec<_> =
            contents.iter().filter_map(|content| content.status.as_ref()?.snapshot_handle.clone()).collect();
        let data = world.cluster.ledger.left_since(run.ledger, Some(&member.volume_handle))?;
        let good = snapshots.len() == 1 && contents.len() == 1 && data == handles;
        Ok(Look::at(
            good.then_some(()),
            format!("snapshots {snapshots:?}, contents of {handles:?}, data {data:?}"),
        ))
    })
    .await
}

/// SIGTERM: thawed first, exit 0, and the next controller tries the slot again without waiting.
pub async fn terminated_while_held(world: &mut World) -> Outcome {
    let run = held(world).await?;
    let controller = world.take_controller()?;
    let told = now_micros();
    controller.terminate().await?;
    let status = controller.ended().await?;
    ensure!(status.success(), "the controller ended with {status} after SIGTERM");
    resumed(run.load.first_ack_after(told, Duration::from_secs(15)).await?, told, "SIGTERM")?;
    let found = journal(&backup(world, &run.name).await?);
    let shutdown = Some("Shutdown".to_owned());
    ensure!(
        found == [(JournalKind::Freezing, 1, None), (JournalKind::Aborted, 1, shutdown)],
        "the journal is {found:?}"
    );

    world.cluster.misbehave(None)?;
    world.controller().await?;
    let done = world.finished(MARIADB, &run.name, Duration::from_secs(120)).await?;
    ensure!(
        done.status.as_ref().is_some_and(|status| status.attempt == 2),
        "attempt {:?}",
        done.status.as_ref().map(|status| status.attempt)
    );
    point::verify(&world.cluster, &done).await?;
    no_leak(world, &run, &done).await
}
