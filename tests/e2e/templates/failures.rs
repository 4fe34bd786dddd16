//! What goes wrong: each run ends with a message that names the cause, and writers go on.

use std::time::Duration;

use kube::ResourceExt as _;
use stillpoint_api::backup::Phase;
use stillpoint_e2e::process::{processes_in, send_signal, send_signals};
use stillpoint_e2e::wait::{Look, now_micros, until};
use stillpoint_e2e::world::{RUN_WITHIN, World};
use stillpoint_e2e::{Outcome, Present as _, ensure, point};

use crate::proof::GOES_ON_WITHIN;
use crate::row::Failure;
use crate::site::Site;

/// A hold whose every process was killed ends by itself: a session with its connection, a state that lasts for a lease when that
/// is over. What a busy machine adds is included.
const FREED_WITHIN: Duration = Duration::from_secs(12);
/// What a hold changed is put back when it ends, or by `recover`, which is tried once the lease of a killed session has passed.
const PUT_BACK_WITHIN: Duration = Duration::from_secs(90);
/// The same when the controller was killed too: its claim on the run has to run out, then maxHold (60 s at most), 5 s and the READY lease (30 s)
/// are waited for (docs/design/freeze.md §5).
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(180);
/// The driver waits for so long before it cuts, so that the kill comes inside.
const HELD: &str = "4s";

/// Writers after everything that held them was killed.
#[derive(Clone, Debug)]
pub struct Freed {
    /// Until one committed again.
    pub seconds: f64,
    /// What came of the run.
    pub words: String,
}

/// A run that must fail; what it said.
///
/// # Errors
/// It did not, or something stays frozen.
pub async fn fails(world: &mut World, site: &Site, failure: &Failure) -> Outcome<String> {
    let name = format!("fails-{}", failure.name.replace(' ', "-").to_lowercase());
    let template = failure.template.unwrap_or(site.row.template);
    let container = failure.container.unwrap_or("server");
    site.policy_of(world, &name, template, failure.parameters, container, "Required").await?;
    let blocker = match failure.blocker {
        None => None,
        Some(blocker) => Some((blocker, site.block(blocker.line).await?)),
    };
    let backup = world.run(site.namespace, &name).await?;
    let status = backup.status.as_ref().present("the status")?;
    let said = point::outcome_of(&backup);
    ensure!(status.phase != Phase::Succeeded, "it succeeded all the same: {said}");
    for word in failure.says {
        ensure!(said.contains(word), "the message has no {word:?}: {said}");
    }
    ensure!(!said.contains("s3 cret"), "a password is in the message");
    let left = world.snapshots_of(site.namespace, &backup.name_any()).await?;
    ensure!(left.is_empty(), "it left the snapshots {left:?}");
    if let Some((blocker, mut line)) = blocker {
        if !blocker.stops_writers {
            site.commits_after(now_micros(), GOES_ON_WITHIN).await?;
            ensure!(line.try_wait()?.is_none(), "what was in the way had gone before the writers were seen");
        }
        // It goes by itself, and is not to be counted as our freeze.
        tokio::time::timeout(GOES_ON_WITHIN, line.wait()).await??;
    }
    site.commits_after(now_micros(), GOES_ON_WITHIN).await?;
    site.settings_put_back(PUT_BACK_WITHIN).await?;
    Ok(said)
}

/// Every process of the client is killed in the hold; how soon a writer commits again.
///
/// # Errors
/// It stays held, or the run claims a point.
pub async fn client_killed(world: &mut World, site: &Site) -> Outcome<Freed> {
    world.cluster.misbehave(Some(serde_json::json!({"preCutDelay": HELD})))?;
    let found = killed_in_the_hold(world, site).await;
    world.cluster.misbehave(None)?;
    found
}

async fn killed_in_the_hold(world: &mut World, site: &Site) -> Outcome<Freed> {
    let name = asked_for_the_cut(world, site).await?;
    let at = now_micros();
    let clients = signal_clients(site, "KILL").await?.len();
    let freed = site.commits_after(at, FREED_WITHIN).await?;
    let backup = world.finished(site.namespace, &name, RUN_WITHIN).await?;
    let status = backup.status.as_ref().present("the status")?;
    ensure!(status.phase != Phase::Succeeded, "a point was proven although its client was killed");
    site.settings_put_back(PUT_BACK_WITHIN).await?;
    let seconds = (freed - at) as f64 / 1e6;
    let said = point::outcome_of(&backup);
    Ok(Freed { seconds, words: format!("{clients} processes; a commit {seconds:.2} s later; {said}") })
}

/// The controller and every process of the client are killed in the hold: nobody is left who knows what was changed but the journal,
/// and the next controller puts it back.
///
/// # Errors
/// It stays changed, or the run claims a point.
pub async fn all_killed(world: &mut World, site: &Site) -> Outcome<String> {
    world.cluster.misbehave(Some(serde_json::json!({"preCutDelay": HELD})))?;
    let found = all_killed_in_the_hold(world, site).await;
    world.cluster.misbehave(None)?;
    world.controller().await?;
    found
}

async fn all_killed_in_the_hold(world: &mut World, site: &Site) -> Outcome<String> {
    let name = asked_for_the_cut(world, site).await?;
    // The client ends when the controller's stream does, and the shell would put everything back before it is killed.
    let clients = signal_clients(site, "STOP").await?;
    world.take_controller()?.crash().await?;
    let at = now_micros();
    for client in &clients {
        let _ = send_signal(*client, "KILL").await;
    }
    let freed = site.commits_after(at, FREED_WITHIN).await?;
    let changed = site.settings_now().await?;
    ensure!(changed != site.settings, "the settings are as before without anybody who put them back");
    world.controller().await?;
    site.settings_put_back(TAKEN_OVER_WITHIN).await?;
    let back = (now_micros() - at) as f64 / 1e6;
    let backup = world.finished(site.namespace, &name, RUN_WITHIN).await?;
    let status = backup.status.as_ref().present("the status")?;
    ensure!(status.phase != Phase::Succeeded, "a point was proven although everything was killed");
    Ok(format!(
        "{} processes and the controller; a commit {:.2} s later; the settings were {}, and as before {back:.0} s later; {}",
        clients.len(),
        (freed - at) as f64 / 1e6,
        changed.trim().replace('\t', " "),
        point::outcome_of(&backup)
    ))
}

/// Starts a run, and returns its name once the driver was asked for the cut.
async fn asked_for_the_cut(world: &mut World, site: &Site) -> Outcome<String> {
    let place = world.cluster.ledger.lines()?.len();
    let name = world.start_run(site.namespace, "proof").await?.name_any();
    until("the driver to be asked for the cut", Duration::from_secs(60), async || {
        let lines = world.cluster.ledger.lines()?;
        let asked =
            lines.iter().skip(place).find(|line| line.event == "rpc-start" && line.volume == site.volume);
        Ok(Look::at(asked.map(|_| ()), format!("{} lines", lines.len())))
    })
    .await?;
    Ok(name)
}

/// Sends a signal to every process of the client; which they were.
async fn signal_clients(site: &Site, signal: &str) -> Outcome<Vec<u32>> {
    let clients = processes_in(&site.pod_uid, site.row.client)?;
    ensure!(!clients.is_empty(), "no process in the pod has {:?} in its command line", site.row.client);
    if site.row.at_once {
        send_signals(&clients, signal).await?;
        return Ok(clients);
    }
    for client in &clients {
        // One may end because another did.
        let _ = send_signal(*client, signal).await;
    }
    Ok(clients)
}
