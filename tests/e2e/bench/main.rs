//! Figures of the freeze on the real cluster (docs/design/freeze.md §9): windows of 1, 3 and 10 volumes and of 5 pods,
//! each run beside the bare storage path of the same claims, with a trace by hop.
//!
//! `make bench-freeze`, or `cargo test -p stillpoint-e2e --test bench [-- WORD…]`: the scenarios with one of these names, or
//! whose names contain one of the words. `RUNS` (50): of each, some only in part. Nothing is asserted about time; a run that is no proven
//! point is told and not counted, and then the exit code is 1.

#![allow(missing_docs, reason = "a test binary has no readers of its API")]

mod bare;
mod measure;
mod report;
mod scenario;

use std::process::ExitCode;
use std::time::Duration;

use kube::api::DeleteParams;
use kube::{Api, ResourceExt as _};
use stillpoint_api::Backup;
use stillpoint_api::backup::Phase;
use stillpoint_api::evidence::Consistency;
use stillpoint_e2e::explain::explain;
use stillpoint_e2e::world::World;
use stillpoint_e2e::{Outcome, Problem, ensure, install, point, program};

use crate::measure::Figures;
use crate::report::Report;
use crate::scenario::{Bench, NAMESPACES, SCENARIOS, Scenario, throttle};

/// The first cuts after a restart of the snapshot components fill their caches.
const WARM_UP: usize = 2;
/// Ten members under the default throttle, with their deletion.
const RUN_WITHIN: Duration = Duration::from_secs(180);

fn main() -> ExitCode {
    program::main("the bench", async |words| bench(words).await)
}

async fn bench(words: &[String]) -> Outcome<bool> {
    let asked = match std::env::var("RUNS") {
        Err(_) => 50,
        Ok(text) => text.parse().map_err(|error| Problem(format!("RUNS={text}: {error}")))?,
    };
    let mut world = World::begin_in(NAMESPACES, "bench").await?;
    install::product(&world.cluster, world.place).await?;
    world.controller().await?;
    let mut reports = Vec::new();
    let mut raised = None;
    let exact = |word: &String| SCENARIOS.iter().any(|one| one.name == word);
    let fits = |one: &Scenario, word: &String| {
        if exact(word) { one.name == word } else { one.name.contains(word.as_str()) }
    };
    let chosen = |one: &&Scenario| words.is_empty() || words.iter().any(|word| fits(one, word));
    for scenario in SCENARIOS.iter().filter(chosen) {
        if raised != Some(scenario.raised) {
            throttle(&world, scenario.raised).await?;
            raised = Some(scenario.raised);
        }
        let report = match measured(&mut world, *scenario, asked).await {
            Ok(report) => report,
            Err(problem) => {
                println!(
                    "FAILED  {}: {}\n{}",
                    scenario.name,
                    problem.0,
                    explain(&world, scenario.name).await
                );
                Report { wrong: vec![problem.0], ..Report::of(*scenario) }
            }
        };
        println!("{}", report.table());
        reports.push(report);
        let all: Vec<_> = reports.iter().map(Report::json).collect();
        let text =
            serde_json::to_string_pretty(&serde_json::json!({"load": load_average(), "scenarios": all}))?;
        std::fs::write(world.out.join("bench.json"), text)?;
        // Its databases must not be in the way of the next one's figures.
        let gone = ["delete", "namespace", scenario.name, "--wait=true", "--timeout=120s"];
        world.cluster.kubectl(&gone, None).await?.good("delete the namespace")?;
    }
    throttle(&world, true).await?;
    let ended = world.end().await;
    throttle(&world, false).await?;
    ended?;
    println!("(every value: {})", world.out.join("bench.json").display());
    Ok(reports.iter().all(|report| report.wrong.is_empty()))
}

/// What else this machine did.
fn load_average() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}

async fn measured(world: &mut World, scenario: Scenario, asked: usize) -> Outcome<Report> {
    let bench = scenario.begin(world).await?;
    let mut report = Report::of(scenario);
    for number in 0..scenario.runs(asked) + WARM_UP {
        let mut figures = Figures::new();
        if !scenario.group {
            quiet(scenario).await;
            figures.insert("bare storage path", bare::cut(world, &bench, number).await?.millis());
        }
        quiet(scenario).await;
        let audit = world.cluster.audit().length();
        let acks: Vec<u64> = bench.acks.iter().map(|log| log.length()).collect();
        let name = world.start_run(scenario.name, scenario.policy_name()).await?.name_any();
        let backup = world.finished(scenario.name, &name, RUN_WITHIN).await?;
        let run = proven(world, &bench, &backup, audit, &acks).await;
        forget(world, scenario.name, &name).await?;
        match run {
            Ok(run) if number >= WARM_UP => {
                figures.extend(run);
                if let (Some(window), Some(bare)) = (figures.get("window"), figures.get("bare storage path"))
                {
                    figures.insert("window - bare storage path", window - bare);
                }
                report.add(figures);
            }
            Ok(_) => {}
            Err(problem) => {
                report.wrong.push(format!("run {number}: {}", problem.0));
                ensure!(report.wrong.len() < 5, "{}", report.wrong.join("; "));
            }
        }
    }
    Ok(report)
}

async fn proven(world: &World, bench: &Bench, backup: &Backup, audit: u64, acks: &[u64]) -> Outcome<Figures> {
    let status = backup.status.clone().unwrap_or_default();
    let good = status.phase == Phase::Succeeded && status.consistency == Some(Consistency::Application);
    ensure!(good, "{:?}, {:?}: {}", status.phase, status.consistency, point::outcome_of(backup));
    if bench.scenario.members() == 1 {
        point::verify(&world.cluster, backup).await?;
    }
    measure::run(world, bench, backup, audit, acks).await
}

/// Deletes a Backup with its data: every run begins in the same state.
async fn forget(world: &World, namespace: &str, name: &str) -> Outcome {
    let backups: Api<Backup> = Api::namespaced(world.cluster.client.clone(), namespace);
    backups.delete(name, &DeleteParams::default()).await?;
    bare::gone(world, namespace).await
}

/// Lets the throttle's bucket fill: no snapshot traffic for so long.
async fn quiet(scenario: Scenario) {
    tokio::time::sleep(scenario.quiet).await;
}
