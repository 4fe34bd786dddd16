//! Kill tests on the real cluster: components, the controller, the database's client and the network fail at random
//! instants inside and around the freeze window, and after each the writers' log, the driver's ledger and the server
//! say whether what docs/design/freeze.md §3, §4, §5 and §9 promise was kept.
//!
//! `cargo test -p stillpoint-e2e --test faults [-- WORD…]`: the faults whose names contain one of the words, all
//! without; `!WORD` leaves faults out. `KILLS` (104): how many; `SEED`: repeats a campaign (printed); `STOP_SECONDS` (60): how long a controller
//! is stopped. Exit 1 when one run was not as promised.

#![allow(missing_docs, reason = "a test binary has no readers of its API")]

mod copies;
mod database;
mod dice;
mod inflict;
mod instant;
mod judge;
mod plan;
mod table;
mod volley;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use stillpoint_e2e::controller::Start;
use stillpoint_e2e::explain::explain;
use stillpoint_e2e::network::Network;
use stillpoint_e2e::world::World;
use stillpoint_e2e::{Outcome, Problem, install, program};

use crate::database::{Database, NAMESPACES};
use crate::plan::{Fault, Shot, campaign};
use crate::volley::Hit;

/// No fault may hang the campaign; the longest waits for a sweep.
const VOLLEY_WITHIN: Duration = Duration::from_secs(720);
/// Copies are checked after so many faults, and at the end.
const CHECK_EVERY: usize = 25;

fn main() -> ExitCode {
    program::main("the kill tests", async |words| suite(words).await)
}

fn number(name: &str, default: u64) -> Outcome<u64> {
    match std::env::var(name) {
        Err(_) => Ok(default),
        Ok(text) => text.parse().map_err(|error| Problem(format!("{name}={text}: {error}"))),
    }
}

async fn suite(words: &[String]) -> Outcome<bool> {
    let seed = number("SEED", u64::try_from(stillpoint_e2e::wait::now_micros()).unwrap_or(1) % 1_000_000)?;
    let kills = usize::try_from(number("KILLS", 104)?)?;
    let stop_for = Duration::from_secs(number("STOP_SECONDS", 60)?);
    let shots = campaign(seed, kills, stop_for, words);
    println!("{} faults, SEED={seed} KILLS={kills}", shots.len());
    let mut world = World::begin_in(NAMESPACES, "faults").await?;
    install::product(&world.cluster, world.place).await?;
    let network = Network::make().await?;
    let outcome = shoot(&mut world, network, &shots, seed).await;
    let ended = world.end().await;
    network.remove().await;
    match &ended {
        Ok(()) => println!("ok      nothing is left: no object, no snapshot, no data"),
        Err(problem) => println!("FAILED  clean-up: {}\n{}", problem.0, explain(&world, "clean-up").await),
    }
    Ok(outcome? && ended.is_ok())
}

async fn shoot(world: &mut World, network: Network, shots: &[Shot], seed: u64) -> Outcome<bool> {
    for namespace in NAMESPACES {
        Database::begin(world, namespace).await?;
    }
    world.controller_with(Start { network: Some(network), ..Start::default() }).await?;
    let mut databases = Vec::new();
    for namespace in NAMESPACES {
        databases.push(Database::ready(world, namespace).await?);
    }
    let (clients, others): (Vec<Shot>, Vec<Shot>) =
        shots.iter().copied().partition(|shot| shot.fault == Fault::Client);
    let mut hits: Vec<Hit> = Vec::new();
    let (mut copies, mut wrong) = (0, Vec::new());
    let volleys = clients.chunks(databases.len()).chain(others.chunks(1));
    let mut since_check = 0;
    for volley in volleys {
        since_check += volley.len();
        let done = tokio::time::timeout(VOLLEY_WITHIN, fire(world, network, &databases, volley)).await;
        let fresh = done.unwrap_or_else(|_| Err(Problem(format!("not finished within {VOLLEY_WITHIN:?}"))));
        let fresh = match fresh {
            Ok(fresh) => fresh,
            Err(problem) => volley
                .iter()
                .map(|shot| Hit { shot: *shot, namespace: "(all)", findings: Err(problem.clone()) })
                .collect(),
        };
        for hit in &fresh {
            println!("{}", table::line(hit));
            if hit.findings.is_err() {
                println!("{}", explain(world, &format!("shot-{}", hit.shot.number)).await);
            }
        }
        hits.extend(fresh);
        world.heal().await?;
        world.controller_with(Start { network: Some(network), ..Start::default() }).await?;
        std::fs::write(world.out.join("faults.json"), table::json(&hits, seed).to_string())?;
        if since_check >= CHECK_EVERY {
            since_check = 0;
            check_copies(world, &databases, &mut copies, &mut wrong).await;
        }
    }
    check_copies(world, &databases, &mut copies, &mut wrong).await;
    let table = table::table(&hits);
    std::fs::write(world.out.join("faults.md"), &table)?;
    let failed = hits.iter().filter(|hit| hit.findings.is_err()).count() + wrong.len();
    let fired: BTreeSet<usize> = hits.iter().map(|hit| hit.shot.number).collect();
    let held = hits.iter().filter(|hit| hit.findings.as_ref().is_ok_and(|found| found.held)).count();
    println!("\n{table}");
    println!(
        "{} faults hit {} runs, {held} of them while writers stood still; {copies} copies were exact; SEED={seed}",
        fired.len(),
        hits.len()
    );
    println!("faults: {} passed, {failed} failed, 0 skipped", hits.len() + copies - failed.min(hits.len()));
    Ok(failed == 0)
}

async fn fire(
    world: &mut World,
    network: Network,
    databases: &[Database],
    volley: &[Shot],
) -> Outcome<Vec<Hit>> {
    match volley {
        [shot] if shot.fault != Fault::Client => volley::component(world, network, databases, shot).await,
        shots => volley::clients(world, databases, shots).await,
    }
}

async fn check_copies(world: &World, databases: &[Database], good: &mut usize, wrong: &mut Vec<String>) {
    let (exact, bad) = copies::check(world, databases).await;
    *good += exact;
    println!(
        "{}      {exact} copies restored and compared with the writers' log",
        if bad.is_empty() { "ok" } else { "NO" }
    );
    for words in bad {
        println!("FAILED  {words}");
        wrong.push(words);
    }
}
