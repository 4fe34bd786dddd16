//! One fault and the runs it hits: one that is aimed at, and others that are wherever they are at that instant.

use std::time::Duration;

use futures::future::join_all;
use kube::api::DeleteParams;
use stillpoint_api::Backup;
use stillpoint_e2e::controller::Controller;
use stillpoint_e2e::load::Engine;
use stillpoint_e2e::network::Network;
use stillpoint_e2e::wait::{Look, until};
use stillpoint_e2e::world::World;
use stillpoint_e2e::{Outcome, Present as _, Problem};

use crate::database::Database;
use crate::dice::Dice;
use crate::inflict::{Inflicted, client, inflict, second_controller};
use crate::instant::{LOCK_TAKEN_FOR, Places, knobs, reached};
use crate::judge::{Case, Findings};
use crate::plan::{Aim, Fault, Shot};

/// A run that was found frozen waits maxHold + 35 s, and is then tried again.
const FINISHED_WITHIN: Duration = Duration::from_secs(180);
/// The others begin at most so much later than the aimed run, or earlier.
const APART: Duration = Duration::from_millis(1200);

/// What became of one run that a fault hit.
pub struct Hit {
    /// The fault.
    pub shot: Shot,
    /// Where.
    pub namespace: &'static str,
    /// What was found, or what is not as promised.
    pub findings: Outcome<Findings>,
}

/// A run of a volley.
struct Run<'a> {
    database: &'a Database,
    name: String,
    places: Places,
}

/// Clients are killed one per database, all at once: they do not disturb each other.
pub async fn clients(world: &World, databases: &[Database], shots: &[Shot]) -> Outcome<Vec<Hit>> {
    world.cluster.misbehave(Some(knobs(Aim::Storage)))?;
    let all = shots.iter().zip(databases.iter().cycle().skip(shots.first().map_or(0, |shot| shot.number)));
    let hits = join_all(all.map(async |(shot, database)| {
        let aim = if database.engine == Engine::Postgres && shot.aim == Aim::Freezing {
            Aim::Storage
        } else {
            shot.aim
        };
        let shot = Shot { aim, ..*shot };
        let findings = one_client(world, database, &shot).await;
        Hit { shot, namespace: database.namespace, findings }
    }))
    .await;
    world.cluster.misbehave(None)?;
    Ok(hits)
}

async fn one_client(world: &World, database: &Database, shot: &Shot) -> Outcome<Findings> {
    let lock = blocker(database, shot.aim).await?;
    let run = begin(world, database, shot).await?;
    reached(world, database, &run.name, shot.aim, run.places).await?;
    tokio::time::sleep(shot.delay).await;
    let inflicted = client(database).await?;
    let findings = judged(world, &run, shot, inflicted).await;
    drop(lock);
    findings
}

/// A component is shot while several runs are under way.
pub async fn component(
    world: &mut World,
    network: Network,
    databases: &[Database],
    shot: &Shot,
) -> Outcome<Vec<Hit>> {
    let mut dice = Dice::of(shot.chance);
    let lockable = databases.iter().filter(|one| one.locks()).count();
    let aimed = dice.below(if shot.aim == Aim::Freezing { lockable } else { databases.len() });
    let company = match shot.fault {
        Fault::Controller => databases.len() - 1,
        Fault::Stopped | Fault::Client => 0,
        _ => 1,
    };
    let mut chosen: Vec<&Database> = Vec::new();
    chosen.extend(databases.iter().cycle().skip(aimed).take(1 + company));
    let first = *chosen.first().present("a database")?;
    let second = second_controller(world, shot.fault).await?;
    world.cluster.misbehave(Some(knobs(shot.aim)))?;
    let lock = blocker(first, shot.aim).await?;
    let lags: Vec<Duration> = chosen.iter().map(|_| dice.time(APART)).collect();
    let begun = join_all(chosen.iter().zip(lags).map(async |(database, lag)| {
        tokio::time::sleep(lag).await;
        begin(world, database, shot).await
    }))
    .await;
    let runs = begun.into_iter().collect::<Outcome<Vec<_>>>()?;
    let aimed = runs.first().present("the aimed run")?;
    reached(world, first, &aimed.name, shot.aim, aimed.places).await?;
    tokio::time::sleep(shot.delay).await;
    let inflicted = inflict(world, network, second.as_ref(), first, &aimed.name, shot).await?;
    let world = &*world;
    let hits = join_all(runs.iter().map(async |run| {
        let findings = judged(world, run, shot, inflicted).await;
        Hit { shot: *shot, namespace: run.database.namespace, findings }
    }))
    .await;
    drop(lock);
    world.cluster.misbehave(None)?;
    end_second(second).await?;
    Ok(hits)
}

async fn end_second(second: Option<Controller>) -> Outcome {
    if let Some(second) = second {
        second.terminate().await?;
        let status = second.ended().await?;
        if !status.success() {
            return Err(Problem(format!("the second controller ended with {status} after SIGTERM")));
        }
    }
    Ok(())
}

async fn blocker(database: &Database, aim: Aim) -> Outcome<Option<tokio::process::Child>> {
    if aim == Aim::Freezing && database.locks() {
        return Ok(Some(database.keep_lock_waiting(LOCK_TAKEN_FOR).await?));
    }
    Ok(None)
}

async fn begin<'a>(world: &World, database: &'a Database, shot: &Shot) -> Outcome<Run<'a>> {
    let places = Places::now(world, database)?;
    let name = format!("shot-{}", shot.number);
    database.run(&name).await?;
    Ok(Run { database, name, places })
}

async fn judged(world: &World, run: &Run<'_>, shot: &Shot, inflicted: Inflicted) -> Outcome<Findings> {
    let backup = match finished(run).await {
        Ok(backup) => backup,
        Err(problem) => {
            // It must not be in the way of the next one.
            let _ = run.database.backups().delete(&run.name, &DeleteParams::default()).await;
            return Err(problem);
        }
    };
    let case = Case {
        world,
        database: run.database,
        backup: &backup,
        fault: shot.fault,
        inflicted,
        places: run.places,
    };
    case.judge().await
}

async fn finished(run: &Run<'_>) -> Outcome<Backup> {
    until(&format!("{}/{} to finish", run.database.namespace, run.name), FINISHED_WITHIN, async || {
        Ok(match run.database.backups().get(&run.name).await {
            Ok(backup) if backup.finished() => Look::Done(backup),
            Ok(backup) => {
                let status = backup.status.unwrap_or_default();
                Look::NotYet(format!("{:?}, attempt {}, {:?}", status.phase, status.attempt, status.journal))
            }
            Err(error) => Look::NotYet(error.to_string()),
        })
    })
    .await
}
