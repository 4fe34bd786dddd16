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

/// Starts a run and returns when the driver has been asked for the cut, so that the application is held.
async fn held(world: &mut World) -> Outcome<(Load, String)> {
    let load = world.database(MARIADB, Engine::Mariadb, None).await?;
    world.controller().await?;
    world.policy(MARIADB, "broken-off", by_hand(&json!({}))).await?;
    world.accepted(MARIADB, "broken-off").await?;
    world.cluster.misbehave(Some(json!({"preCutDelay": SLOW_CUT})))?;
    let before = world.cluster.ledger.lines()?.len();
    let name = world.start_run(MARIADB, "broken-off").await?.name_any();
    until("the driver to be asked for the cut", Duration::from_secs(30), async || {
        world.still_runs()?;
        let lines = world.cluster.ledger.lines()?;
        let asked = lines.iter().skip(before).any(|line| line.event == "rpc-start");
        Ok(Look::at(asked.then_some(()), format!("{} lines in the ledger", lines.len() - before)))
    })
    .await?;
    // The writers have nothing to show for half a second: that is the hold, seen from outside.
    until("the writers to stand still", Duration::from_secs(3), async || {
        let newest = load.recent().await?.iter().map(|ack| ack.acked).max().unwrap_or_default();
        let still = now_micros() - newest;
        Ok(Look::at((still > 500_000).then_some(()), format!("last commit {still} µs ago")))
    })
    .await?;
    Ok((load, name))
}

async fn backup(world: &World, name: &str) -> Outcome<Backup> {
    let backups: Api<Backup> = Api::namespaced(world.cluster.client.clone(), MARIADB);
    Ok(backups.get(name).await?)
}

fn journal(backup: &Backup) -> Vec<(JournalKind, u32, Option<String>)> {
    let entries = backup.status.as_ref().map(|status| status.journal.as_slice()).unwrap_or_default();
    entries.iter().map(|entry| (entry.entry, entry.attempt, entry.reason.clone())).collect()
}

fn resumed(load_again: Ack, ended: i64, how: &str) -> Outcome {
    let after = load_again.acked - ended;
    ensure!(after <= RESUMES_WITHIN, "commits went on only {after} µs after {how}");
    println!("        first commit acknowledged {:.0} ms after {how}", after as f64 / 1e3);
    Ok(())
}

/// Commits go on within a second; the next controller waits, journals, cleans up and tries the slot again.
pub async fn killed_while_held(world: &mut World) -> Outcome {
    let (load, name) = held(world).await?;
    let controller = world.take_controller()?;
    let killed = now_micros();
    controller.crash().await?;
    resumed(load.first_ack_after(killed, Duration::from_secs(15)).await?, killed, "SIGKILL")?;
    let found = backup(world, &name).await?;
    ensure!(
        journal(&found) == [(JournalKind::Freezing, 1, None)],
        "the journal at the kill is {:?}",
        journal(&found)
    );

    world.cluster.misbehave(None)?;
    let restarted = now_micros();
    world.controller().await?;
    let done = world.finished(MARIADB, &name, Duration::from_secs(150)).await?;
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
    no_leak(world, &name).await
}

/// One snapshot and one content of the run exist; whatever the first attempt cut was deleted.
async fn no_leak(world: &World, name: &str) -> Outcome {
    until("the broken attempt's snapshot to be gone with its data", Duration::from_secs(30), async || {
        let snapshots = world.snapshots_of(MARIADB, name).await?;
        let contents = world.contents_of(MARIADB, name).await?;
        let lines = world.cluster.ledger.lines()?;
        // The handles that the objects know; what else was cut in this case must have been deleted.
        let seen =
            format!("snapshots {snapshots:?}, {} contents, {} ledger lines", contents.len(), lines.len());
        Ok(Look::at((snapshots.len() == 1 && contents.len() == 1).then_some(()), seen))
    })
    .await?;
    let kept = world.contents_of(MARIADB, name).await?;
    let handle = kept
        .first()
        .and_then(|content| content.status.as_ref()?.snapshot_handle.clone())
        .present("the handle")?;
    let lines = world.cluster.ledger.lines()?;
    let cut_after: Vec<_> =
        lines.iter().rev().take_while(|line| line.snapshot != handle || line.event != "cut").collect();
    let broken = lines.iter().rev().skip(cut_after.len() + 1).find(|line| line.event == "cut");
    let broken = &broken.present("the first attempt's cut in the ledger")?.snapshot;
    ensure!(world.cluster.ledger.deleted(broken)?, "the data {broken} of the broken attempt was not deleted");
    Ok(())
}

/// SIGTERM: thawed first, exit 0, and the next controller tries the slot again without waiting.
pub async fn terminated_while_held(world: &mut World) -> Outcome {
    let (load, name) = held(world).await?;
    let controller = world.take_controller()?;
    let told = now_micros();
    controller.terminate().await?;
    let status = controller.ended().await?;
    ensure!(status.success(), "the controller ended with {status} after SIGTERM");
    resumed(load.first_ack_after(told, Duration::from_secs(15)).await?, told, "SIGTERM")?;
    let found = journal(&backup(world, &name).await?);
    let shutdown = Some("Shutdown".to_owned());
    ensure!(
        found == [(JournalKind::Freezing, 1, None), (JournalKind::Aborted, 1, shutdown)],
        "the journal is {found:?}"
    );

    world.cluster.misbehave(None)?;
    world.controller().await?;
    let done = world.finished(MARIADB, &name, Duration::from_secs(120)).await?;
    ensure!(
        done.status.as_ref().is_some_and(|status| status.attempt == 2),
        "attempt {:?}",
        done.status.as_ref().map(|status| status.attempt)
    );
    point::verify(&world.cluster, &done).await?;
    no_leak(world, &name).await
}
