//! Real Prometheus and Alertmanager: a missed objective pages, a new proven point ends it, and a day of 25 hours does neither.
//!
//! The page needs four minutes with the rules as they are shipped. It ripens while other cases run: the first case here begins
//! it, the other waits for what is left of it.

use std::fmt::Write as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stillpoint_api::{Backup, BackupPolicy};
use stillpoint_e2e::load::{Engine, Strength};
use stillpoint_e2e::monitoring::{Alert, Monitoring, Tools};
use stillpoint_e2e::wait::{Look, until};
use stillpoint_e2e::world::{ALERTED, World};
use stillpoint_e2e::{Outcome, ensure};
use stillpoint_metrics::collector::Family;
use stillpoint_metrics::{BuildInfo, FactsStore, Metrics};
use stillpoint_scheduler::cron::Schedule;
use tokio::process::Command;

const POLICY: &str = "paged";
const RULES: &str = "dashboards/rules/stillpoint.yaml";
/// The objective of two minutes, `for: 2m` of the rule, and a minute.
const PAGED_WITHIN: Duration = Duration::from_secs(300);
/// The next slot, its run, and what Prometheus and Alertmanager take.
const RESOLVED_WITHIN: Duration = Duration::from_secs(150);

/// Every minute; the objective allows one failure. `app` is what its selector asks for.
fn policy(app: &str) -> Value {
    json!({
        "schedule": {"cron": "* * * * *"},
        "objectives": {"rpo": "2m"},
        "applications": [{"name": "orders", "selector": {"matchLabels": {"app": app}}}],
        "retention": {"last": 2},
    })
}

/// A policy whose selector is misspelt begins to miss its objective, watched by a real Prometheus.
pub async fn begin(world: &mut World) -> Outcome {
    // A trickle of commits: this database is here to be backed up, not to be slow.
    let strength = Strength { writers: 1, pause_ms: 250 };
    world.begin_database_with(ALERTED, Engine::Postgres, None, strength).await?;
    world.controller().await?;
    let monitoring = Monitoring::start(&world.cluster.file(RULES), &world.out).await?;
    world.watched_by(monitoring)?;
    world.policy(ALERTED, POLICY, policy("postgress")).await?;
    world.accepted(ALERTED, POLICY).await
}

/// The page arrives; with the selector mended the next slot's point resolves it.
pub async fn paged_and_resolved(world: &mut World) -> Outcome {
    if world.monitoring.is_none() {
        begin(world).await?;
    }
    let outcome = page(world).await;
    world.cluster.kubectl(&["-n", ALERTED, "delete", "backuppolicies", POLICY], None).await?;
    world.monitoring = None;
    outcome
}

async fn page(world: &mut World) -> Outcome {
    world.controller().await?;
    // Cases before this one may have exchanged the controller: then the alert ended and ripens once more.
    let told = told(world, "StillpointRPOMissed", "firing", PAGED_WITHIN).await?;
    ensure!(told.label("severity") == "critical", "a missed objective must wake somebody: {told:?}");
    // The runs fail as well, and that is told by itself.
    self::told(world, "StillpointBackupFailing", "firing", PAGED_WITHIN).await?;
    let listed = monitoring(world)?.amtool().await?;
    ensure!(listed.contains("StillpointRPOMissed"), "amtool lists {listed}");
    for line in listed.lines() {
        println!("        {line}");
    }
    let before = about(monitoring(world)?, "StillpointRPOMissed").len();
    world.database(ALERTED, Engine::Postgres, None).await?;
    world.policy(ALERTED, POLICY, policy("postgres")).await?;
    self::told(world, "StillpointRPOMissed", "resolved", RESOLVED_WITHIN).await?;
    let pages = about(monitoring(world)?, "StillpointRPOMissed");
    let states: Vec<&str> = pages.iter().map(|page| page.status.as_str()).collect();
    println!("        paged: {}", states.join(", then "));
    ensure!(states[before..] == ["resolved"], "one end of the page and nothing more: {states:?}");
    // Alternating from the first page on: nobody was told the same twice.
    ensure!(
        states.chunks(2).all(|pair| pair == ["firing", "resolved"]),
        "each page and its one end: {states:?}"
    );
    Ok(())
}

fn monitoring(world: &World) -> Outcome<&Monitoring> {
    world.monitoring.as_ref().ok_or_else(|| stillpoint_e2e::Problem("Prometheus does not run".into()))
}

/// What the receiver was told of this alert of the policy, in order.
fn about(monitoring: &Monitoring, name: &str) -> Vec<Alert> {
    let ours = |page: &Alert| {
        page.label("alertname") == name
            && page.label("policy") == POLICY
            && page.label("namespace") == ALERTED
    };
    monitoring.paged().into_iter().filter(ours).collect()
}

/// Waits until the last thing that was told of this alert is that status.
async fn told(world: &mut World, name: &str, status: &str, limit: Duration) -> Outcome<Alert> {
    until(&format!("{name} to be {status}"), limit, async || {
        world.still_runs()?;
        let pages = about(monitoring(world)?, name);
        let found = pages.last().filter(|page| page.status == status).cloned();
        Ok(Look::at(found, format!("{} notifications of it", pages.len())))
    })
    .await
}

// --- a day of 25 hours ---

/// Times between two scrapes.
const STEP: SignedDuration = SignedDuration::from_mins(5);
/// From the slot to the cut, and from the cut to a finished point.
const CUT_AFTER: SignedDuration = SignedDuration::from_secs(40);
const READY_AFTER: SignedDuration = SignedDuration::from_secs(150);

/// The series that the product's own schedule, facts and collector give over the days around the end of summer time, judged by
/// the shipped rules: an objective that allows for the long day (26 h) pages nobody, one that does not (24 h) does.
pub async fn long_day(world: &mut World) -> Outcome {
    let tools = Tools::find()?;
    let series = days("2027-10-29T12:00:00Z", "2027-11-02T12:00:00Z")?;
    let allowed = rules_test(&series, "generous", &[])?;
    let control = rules_test(&series, "tight", &["StillpointRPOMissed"])?;
    let rules = world.cluster.file(RULES);
    for (name, mut case, good) in [("generous", allowed, true), ("control", control, false)] {
        case["rule_files"] = json!([rules]);
        let file = world.out.join(format!("long-day-{name}.yaml"));
        std::fs::write(&file, case.to_string())?;
        let mut command = Command::new(tools.path("promtool"));
        command.args(["test", "rules"]).arg(&file).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await?;
        let text =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success() == good, "promtool of {name}: {text}");
        if !good {
            ensure!(text.contains("StillpointRPOMissed"), "the control must page: {text}");
        }
    }
    println!("        four days at 5 min: 26 h pages nobody, 24 h is missed on the day of 25 hours");
    Ok(())
}

/// Samples of one series, one per step.
type Series = std::collections::BTreeMap<String, Vec<Option<f64>>>;

/// What `/metrics` would show at every step of these days for two policies of one schedule.
fn days(from: &str, to: &str) -> Outcome<Series> {
    let (from, to): (Timestamp, Timestamp) = (from.parse()?, to.parse()?);
    let schedule = Schedule::parse("30 2 * * *", "Europe/Berlin", from)?;
    let build = BuildInfo { version: "1.0.0".into(), revision: "test".into() };
    let facts = FactsStore::new(Arc::new(Metrics::new(&build)?));
    let mut series = Series::new();
    let (mut now, mut steps) = (from, 0);
    while now <= to {
        for (name, rpo) in [("generous", "26h"), ("tight", "24h")] {
            let next: Vec<String> = schedule.slots(now).take(5).map(|slot| slot.to_string()).collect();
            facts.policy_applied(&serde_json::from_value::<BackupPolicy>(json!({
                "apiVersion": "stillpoint.dev/v1alpha1", "kind": "BackupPolicy",
                "metadata": {"name": name, "namespace": "shop", "creationTimestamp": "2027-01-01T00:00:00Z"},
                "spec": {
                    "schedule": {"cron": "30 2 * * *", "timeZone": "Europe/Berlin"},
                    "objectives": {"rpo": rpo},
                    "applications": [{"name": "db", "selector": {"matchLabels": {"app": "db"}}}],
                },
                "status": {"nextSlots": next, "maxIntervalSeconds": 90000, "minIntervalSeconds": 82800},
            }))?);
            for slot in schedule.slots(from - SignedDuration::from_hours(26)).take_while(|slot| *slot <= now)
            {
                let status = if now >= slot + READY_AFTER {
                    let cut = (slot + CUT_AFTER).to_string();
                    json!({"phase": "Succeeded", "consistency": "Application", "cut": cut})
                } else {
                    json!({"phase": "Preparing", "startedAt": slot.to_string()})
                };
                facts.backup_applied(&serde_json::from_value::<Backup>(json!({
                    "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Backup",
                    "metadata": {"name": format!("{name}-{}", slot.as_second()), "namespace": "shop",
                                 "creationTimestamp": slot.to_string()},
                    "spec": {"run": {"policyRef": {"name": name}, "slot": slot.to_string()}, "trigger": "Schedule"},
                    "status": status,
                }))?);
            }
        }
        let text: String = Family::ALL.iter().map(|family| family.render(&facts)).collect();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let value: f64 = value.parse()?;
            // promtool's days begin in 1970: instants move with them, and 0 stays "none".
            let instant = name.contains("_timestamp_seconds") && value != 0.0;
            let value = if instant { value - from.as_second() as f64 } else { value };
            let samples = series.entry(name.to_owned()).or_default();
            samples.resize(steps, None);
            samples.push(Some(value));
        }
        (now, steps) = (now + STEP, steps + 1);
    }
    Ok(series)
}

/// A promtool test of one policy's series: at no step may an alert about its objective and its runs fire, or, for the control,
/// may `only` these.
fn rules_test(series: &Series, policy: &str, only: &[&str]) -> Outcome<Value> {
    let of = format!("policy=\"{policy}\"");
    let mut steps = 0;
    let mut input = vec![json!({"series": "stillpoint_leader{instance=\"a\"}", "values": "1x2000"})];
    for (name, samples) in series.iter().filter(|(name, _)| name.contains(&of)) {
        steps = steps.max(samples.len());
        let mut values = String::new();
        for sample in samples {
            match sample {
                Some(value) => write!(values, "{value} "),
                None => write!(values, "_ "),
            }?;
        }
        input.push(json!({"series": name, "values": values.trim_end()}));
    }
    ensure!(input.len() > 15 && steps > 1000, "{} series of {steps} steps", input.len());
    let alerts: &[&str] = if only.is_empty() {
        &[
            "StillpointRPOMissed",
            "StillpointRPOSeverelyMissed",
            "StillpointRPOAtRisk",
            "StillpointNoRecoveryPoint",
            "StillpointBackupFailed",
            "StillpointMissedRuns",
            "StillpointRunStuck",
        ]
    } else {
        only
    };
    let looks: Vec<Value> = (1..steps)
        .flat_map(|step| {
            let at = format!("{}m", step * 5);
            alerts.iter().map(move |alert| json!({"eval_time": at, "alertname": alert, "exp_alerts": []}))
        })
        .collect();
    Ok(json!({
        "evaluation_interval": "5m",
        "tests": [{"interval": "5m", "input_series": input, "alert_rule_test": looks}],
    }))
}
