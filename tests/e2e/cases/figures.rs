//! Figures of many runs in a row: freeze windows, own share, memory. Printed and kept; nothing is asserted about time.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use stillpoint_api::Backup;
use stillpoint_api::evidence::Offset;
use stillpoint_e2e::load::Engine;
use stillpoint_e2e::wait::{Look, until};
use stillpoint_e2e::world::{MARIADB, MARIADB_LOG, POSTGRES, World};
use stillpoint_e2e::{Outcome, Present as _, point};

use crate::mariadb::by_hand;

/// A database that is told to stop needs a few seconds.
const ENDED_WITHIN: Duration = Duration::from_secs(60);

/// Enough for a p95 that is one run.
const RUNS: usize = 20;

/// Milliseconds of one run.
#[derive(Default)]
struct Series {
    name: &'static str,
    values: Vec<f64>,
}

impl Series {
    fn at(&self, part: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let index = ((sorted.len() as f64 - 1.0) * part).round();
        // Never negative, never beyond the last: `part` is in [0, 1].
        sorted.get(index as usize).copied().unwrap_or_default()
    }
}

pub async fn freeze_windows(world: &mut World) -> Outcome {
    world.database(MARIADB, Engine::Mariadb, None).await?;
    // One database under load, as whoever compares these figures will have it.
    for other in [POSTGRES, MARIADB_LOG] {
        rest(world, other).await?;
    }
    // A fresh process: what earlier cases needed is not in its peak.
    world.stop_controller().await?;
    let idle = world.controller().await?.memory()?;
    world.policy(MARIADB, "figures", by_hand(&json!({}))).await?;
    world.accepted(MARIADB, "figures").await?;
    let names = ["window", "acquire", "storage path", "thaw", "own share", "true cut"];
    let mut all: Vec<Series> = names.into_iter().map(|name| Series { name, values: Vec::new() }).collect();
    let mut beyond = None;
    for _ in 0..RUNS {
        let backup = world.run(MARIADB, "figures").await?;
        let instants = point::verify(&world.cluster, &backup).await?;
        let cut = instants.cut.to.duration_since(instants.cut.from).as_micros() as f64 / 1e3;
        let measured = measured(&backup)?;
        for (series, value) in all.iter_mut().zip(measured.into_iter().chain([cut])) {
            series.values.push(value);
        }
        beyond = Some(world.controller().await?.memory()?);
    }
    let memory = beyond.present("memory")?;
    println!("        {RUNS} runs of MariaDB under load, ms   p50      p95      max");
    for series in &all {
        println!(
            "        {:<32} {:>8.1} {:>8.1} {:>8.1}",
            series.name,
            series.at(0.5),
            series.at(0.95),
            series.at(1.0)
        );
    }
    let mib = |kib: u64| kib as f64 / 1024.0;
    println!(
        "        controller RSS, MiB: {:.1} at its start, {:.1} after, {:.1} peak",
        mib(idle.resident),
        mib(memory.resident),
        mib(memory.peak)
    );
    let figures: Vec<Value> = all
        .iter()
        .map(|series| json!({"name": series.name, "unit": "ms", "p50": series.at(0.5), "p95": series.at(0.95), "max": series.at(1.0), "values": series.values}))
        .collect();
    let rss = json!({"startKiB": idle.resident, "afterKiB": memory.resident, "peakKiB": memory.peak});
    std::fs::write(
        world.out.join("figures.json"),
        serde_json::to_string_pretty(&json!({"runs": RUNS, "figures": figures, "rss": rss}))?,
    )?;
    Ok(())
}

/// Ends the database of a namespace; its claim stays.
async fn rest(world: &World, namespace: &str) -> Outcome {
    let scale = ["-n", namespace, "scale", "statefulset", "--all", "--replicas=0"];
    // A suite of chosen cases may not have begun it.
    world.cluster.kubectl(&scale, None).await?;
    let pods: Api<Pod> = Api::namespaced(world.cluster.client.clone(), namespace);
    until(&format!("the pods of {namespace} to end"), ENDED_WITHIN, async || {
        let left = pods.list(&ListParams::default()).await?.items.len();
        Ok(Look::at((left == 0).then_some(()), format!("{left} left")))
    })
    .await
}

/// Window, acquire, storage path, thaw, own share (docs/design/freeze.md §9): the signal received to the closing text
/// written, and FROZEN to the POST handed over; what the machine decides in one step has one instant.
fn measured(backup: &Backup) -> Outcome<[f64; 5]> {
    let status = backup.status.as_ref().present("status")?;
    let window = status.window.as_ref().present("window")?;
    let hold = status.holds.first().present("the hold")?;
    let member = status.members.first().present("the member")?;
    let name = backup.name_any();
    let at = |offset: Option<Offset>, what: &str| -> Outcome<f64> {
        Ok(offset.present(&format!("{name}: {what}"))?.seconds() * 1e3)
    };
    let frozen = at(hold.frozen.as_ref().map(|answer| answer.at), "frozen")?;
    let freeze_sent = at(hold.freeze_sent, "freezeSent")?;
    let (posted, signal) = (at(member.post_sent, "postSent")?, at(member.signal, "signal")?);
    let (closing, thawed) = (at(hold.closing_sent, "closingSent")?, at(window.thawed, "thawed")?);
    let written = at(hold.closing_written, "closingWritten")?;
    let frozen_ms = window.frozen_seconds.present("window.frozenSeconds")? * 1e3;
    Ok([
        frozen_ms,
        frozen - freeze_sent,
        signal - posted,
        thawed - closing,
        (posted - frozen) + (written - signal),
    ])
}
