//! The main story: PostgreSQL under load, a proven point, its copy, the schedule and the RPO.

use std::time::Duration;

use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use stillpoint_api::Backup;
use stillpoint_api::backup::Trigger;
use stillpoint_e2e::load::{Bounds, Engine};
use stillpoint_e2e::wait::{Look, until};
use stillpoint_e2e::world::{POSTGRES, World};
use stillpoint_e2e::{Outcome, Present as _, ensure, fail, point};

const POLICY: &str = "minutely";
/// Facts an auditor asks for first.
const FACTS: [&str; 6] =
    ["lsn", "timeline", "fsync", "full_page_writes", "synchronous_commit", "data_directory"];

/// A policy in eight lines: the template follows from the image.
fn policy(suspend: bool) -> Value {
    json!({
        "schedule": {"cron": "* * * * *"},
        "suspend": suspend,
        "objectives": {"rpo": "5m"},
        "applications": [{"name": "orders", "selector": {"matchLabels": {"app": "postgres"}}}],
        "retention": {"last": 3},
    })
}

/// `backup run --wait` under load exits 0, and the point agrees with the driver's ledger.
pub async fn proven_under_load(world: &mut World) -> Outcome {
    world.database(POSTGRES, Engine::Postgres, None).await?;
    world.controller().await?;
    world.policy(POSTGRES, POLICY, policy(false)).await?;
    world.accepted(POSTGRES, POLICY).await?;
    let run =
        ["backup", "run", "--policy", POLICY, "--name", "by-hand", "--wait", "--timeout", "2m", "-o", "json"];
    let printed = world.stillpoint(POSTGRES, &run).await?.good("stillpoint backup run --wait")?;
    let backup: Backup = serde_json::from_str(&printed)?;
    point::verify(&world.cluster, &backup).await?;

    let status = backup.status.as_ref().present("status")?;
    let hold = status.holds.first().present("the hold")?;
    for fact in FACTS {
        ensure!(hold.facts.contains_key(fact), "the evidence has no {fact}: {:?}", hold.facts);
    }
    let described =
        world.stillpoint(POSTGRES, &["backup", "describe", "by-hand"]).await?.good("backup describe")?;
    std::fs::write(world.out.join("describe-postgres.txt"), described)?;
    let again = world.stillpoint(POSTGRES, &["backup", "verify-evidence", "by-hand"]).await?;
    again.good("the verdict recomputed from the evidence")?;
    world.event(POSTGRES, "by-hand", "Completed").await
}

/// The newest point as a clone: every row that was acknowledged before the cut, none begun after it.
pub async fn restored_copy_is_exact(world: &mut World) -> Outcome {
    let load = world.database(POSTGRES, Engine::Postgres, None).await?;
    world.controller().await?;
    let run = [
        "restore",
        "run",
        "--policy",
        POLICY,
        "--prefix",
        "copy-",
        "--wait",
        "--timeout",
        "2m",
        "-o",
        "json",
    ];
    let printed = world.stillpoint(POSTGRES, &run).await?.good("stillpoint restore run --wait")?;
    let restore: stillpoint_api::Restore = serde_json::from_str(&printed)?;
    let status = restore.status.present("the Restore's status")?;
    ensure!(
        status.rto_seconds.is_some() && status.data_time.is_some(),
        "the Restore reports no times: {status:?}"
    );
    let backups: Api<Backup> = Api::namespaced(world.cluster.client.clone(), POSTGRES);
    let backup = backups.get(&status.backup.present("status.backup")?).await?;
    let instants = point::verify(&world.cluster, &backup).await?;
    let claim = status.claims.first().present("the new claim")?;
    let checked = load.check_copy(&claim.claim_name, &Bounds::observed(&instants.cut)).await?;
    println!(
        "        postgres: {} of {} acknowledged commits in the copy, {} rows",
        checked.expected, checked.expected, checked.rows
    );
    Ok(())
}

/// The schedule runs by itself, and `/metrics` names the newest proven cut as the RPO's reference.
pub async fn every_minute(world: &mut World) -> Outcome {
    let outcome = scheduled(world).await;
    // Shown or not: from here on it would only get in the way.
    world.policy(POSTGRES, POLICY, policy(true)).await?;
    until("the suspended policy to say so, with no run active", Duration::from_secs(60), async || {
        let seen = world.condition(POSTGRES, POLICY, "Ready").await?;
        let active = world.policy_now(POSTGRES, POLICY).await?.status.and_then(|status| status.active);
        let good = active.is_none() && seen.as_ref().is_some_and(|(_, reason, _)| reason == "Suspended");
        Ok(Look::at(good.then_some(()), format!("{seen:?}, active {active:?}")))
    })
    .await?;
    outcome
}

async fn scheduled(world: &mut World) -> Outcome {
    world.database(POSTGRES, Engine::Postgres, None).await?;
    world.controller().await?;
    world.policy(POSTGRES, POLICY, policy(false)).await?;
    let backups: Api<Backup> = Api::namespaced(world.cluster.client.clone(), POSTGRES);
    let scheduled = until("a scheduled Backup to succeed", Duration::from_secs(110), async || {
        let all = backups.list(&ListParams::default()).await?.items;
        let found = all.iter().find(|one| one.spec.trigger == Trigger::Schedule && one.finished());
        Ok(Look::at(found.cloned(), format!("{} Backups", all.len())))
    })
    .await?;
    point::verify(&world.cluster, &scheduled).await?;
    ensure!(scheduled.spec.run.slot.is_some(), "{} names no slot", scheduled.name_any());

    let newest = async || -> Outcome<f64> {
        let all = backups.list(&ListParams::default()).await?.items;
        let cuts = all
            .iter()
            .filter(|one| one.proven())
            .filter_map(|one| Some(one.status.as_ref()?.cut.as_ref()?.0));
        Ok(cuts.max().present("a proven cut")?.as_microsecond() as f64 / 1e6)
    };
    let families = format!("{{namespace=\"{POSTGRES}\",policy=\"{POLICY}\"");
    let reference =
        until("the RPO reference on /metrics to be the newest cut", Duration::from_secs(20), async || {
            let text = world.controller().await?.metrics().await?;
            let seen = sample(&text, "stillpoint_policy_rpo_reference_timestamp_seconds", &families);
            let wanted = newest().await?;
            // Microseconds in, microseconds out.
            Ok(Look::at(
                seen.filter(|seen| (seen - wanted).abs() < 1e-5),
                format!("{seen:?}, wanted {wanted}"),
            ))
        })
        .await?;
    let text = world.controller().await?.metrics().await?;
    std::fs::write(world.out.join("metrics.txt"), &text)?;
    ensure!(reference > 0.0, "the reference is {reference}");
    let scheduled_runs = format!(
        "{{namespace=\"{POSTGRES}\",policy=\"{POLICY}\",trigger=\"schedule\",consistency=\"application\",result=\"succeeded\""
    );
    for (family, labels, least) in [
        ("stillpoint_policy_rpo_target_seconds", &families, 300.0),
        ("stillpoint_schedule_next_timestamp_seconds", &families, reference),
        ("stillpoint_recovery_point_timestamp_seconds", &families, 1.0),
        ("stillpoint_backups_total", &scheduled_runs, 1.0),
    ] {
        match sample(&text, family, labels) {
            Some(value) => ensure!(value >= least, "{family} is {value}, less than {least}"),
            None => fail!("/metrics has no {family} of the policy"),
        }
    }
    // Nobody was stopped: an observer's window is no freeze.
    let freezes = sample(&text, "stillpoint_freeze_duration_seconds_count", &families);
    ensure!(freezes.is_none(), "freezes are {freezes:?}, and an observer stops nobody");

    until("the policy's status to be complete", Duration::from_secs(20), async || {
        let status = world.policy_now(POSTGRES, POLICY).await?.status.unwrap_or_default();
        let good = status.next_slots.len() == 5
            && status.last_slot.is_some()
            && status.min_interval_seconds == Some(60)
            && status
                .rpo
                .as_ref()
                .is_some_and(|rpo| rpo.state.as_deref() == Some("Compliant") && rpo.attainable == Some(true))
            && status
                .recovery_points
                .as_ref()
                .is_some_and(|points| points.ready >= 1 && points.newest.is_some())
            && status.conditions.iter().filter(|one| one.status == "True").count() >= 2;
        Ok(Look::at(good.then_some(()), serde_json::to_string(&status)?))
    })
    .await
}

/// The first sample of a family whose labels begin so.
pub fn sample(text: &str, family: &str, labels: &str) -> Option<f64> {
    let begins = format!("{family}{labels}");
    text.lines().find(|line| line.starts_with(&begins))?.rsplit(' ').next()?.parse().ok()
}
