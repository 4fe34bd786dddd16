//! The story: what is done in which order, and what is checked.
//!
//! Guarantee: exit code 0 means that every commit acknowledged before FROZEN was found in the restored copy.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use stillpoint_api::backup::{Backup, BackupStatus, Trigger};
use stillpoint_api::clock::{Clock, SharedClock};
use stillpoint_api::restore::{Restore, RestorePhase, RestoreStatus};
use stillpoint_api::{BackupPolicy, crd};

use super::DemoArgs;
use super::postgres::{self, Places, Programs, sql};
use super::proof::{self, Found, Judged, Log, OPENING};
use super::scrape;
use super::stage::{Stage, asked};
use super::voice::Voice;
use super::writers::{WRITERS, Writers};
use crate::commands::describe::{draw_verdict, draw_window};
use crate::failure::{Exit, Failure};
use crate::output::{precise, seconds, table};

const NAMESPACE: &str = "shop";
const POLICY: &str = "every-minute";
/// The StatefulSet's only pod.
const SERVER: &str = "orders-db-0";
const RESTORED: &str = "orders-db-restored";

const TEMPLATE: &str = include_str!("../../../../config/templates/postgresql.yaml");
const OPT_IN: &str = include_str!("../../../../config/samples/namespace-optin.yaml");
const ROLES: &str = include_str!("../../../../deploy/base/roles.yaml");

/// A server on a busy machine: initdb takes seconds there.
const SERVER_WITHIN: Duration = Duration::from_secs(60);
/// A run of one small volume takes a second or two.
const RUN_WITHIN: Duration = Duration::from_secs(60);
/// The next slot is at most a minute away; a slot that meets a run that is not over is skipped, so two.
const SLOT_WITHIN: Duration = Duration::from_secs(150);
/// So many commits are written before the first backup.
const WARM: usize = 300;

/// Tells it. What is started is put into `stage` before anything can be interrupted.
pub async fn tell(
    voice: &Voice,
    clock: &SharedClock,
    args: DemoArgs,
    stage: &mut Option<Stage>,
) -> Result<Exit, Failure> {
    voice.heading("Stillpoint: application-consistent backups, from the first commit to the proof");
    let programs = Programs::find_or_install(voice)?;
    let stage = stage.insert(Stage::open(args.keep, clock)?);

    voice.step("A cluster");
    stage.start_cluster().await?;
    voice.say(&format!(
        "An embedded Kubernetes API; its pods are processes of this machine, its volumes directories below {}. A \
         snapshot stops every process of the pod, copies the volume and lets them go on: the copy is one instant, but \
         times on this cluster are no figures (tests/cluster is the real one).",
        stage.root()?.display()
    ));
    let places = Places::of(stage.root()?, SERVER);

    voice.step("A database");
    stage.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})).await?;
    stage.create(postgres::stateful_set(&programs, &places)).await?;
    stage.pod_ready(NAMESPACE, SERVER, SERVER_WITHIN).await?;
    voice.say(&format!(
        "{} as StatefulSet orders-db in namespace {NAMESPACE}, on the claim data-{SERVER}; fsync is on.",
        programs.version
    ));

    voice.step("Customers");
    let schema = format!(
        "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL) WITH (fillfactor = 50); \
         INSERT INTO accounts SELECT id, {OPENING} FROM generate_series(0, {}) AS id; \
         CREATE TABLE orders (writer int, n bigint, amount bigint NOT NULL, PRIMARY KEY (writer, n));",
        2 * WRITERS - 1
    );
    sql(&programs, &places, &schema)
        .await
        .map_err(|why| Failure::new("the tables cannot be created", why, ""))?;
    let writers = Writers::start(&programs.program("psql"), &places.sockets, clock);
    commits(stage, &writers, WARM).await?;
    voice.say(&format!(
        "{WRITERS} clients move money from one account to another, one numbered transaction after the other, and note \
         when each commit was acknowledged: {} so far. They will not stop for the backup.",
        writers.commits()
    ));

    voice.step("Stillpoint");
    install(stage).await?;
    voice.say(
        "The CustomResourceDefinitions, the template `postgresql`, and the opt-in of the namespace: a ServiceAccount \
         stillpoint-hooks and its RoleBinding; hooks run as that account and as nobody else. The controller is this \
         program's own `stillpoint controller`, in a process of its own.",
    );
    stage.start_controller().await?;
    voice.good(&format!("the controller is ready: http://{}/readyz", stage.metrics()?));

    voice.step("A policy");
    let policy = policy(&places);
    stage.create_all(&policy).await?;
    voice.block(&policy);
    accepted(stage).await?;
    voice.good("Accepted");

    at_once(stage, voice, clock).await?;
    if !args.no_wait_slot {
        by_schedule(stage, voice, clock).await?;
    }

    voice.step("A restore");
    let before = writers.commits();
    commits(stage, &writers, before + WARM).await?;
    let restored = restore(stage, voice).await?;
    let copy = Places::of(stage.root()?, RESTORED);
    let claim = restored.claims.first().map(|claim| claim.claim_name.clone()).unwrap_or_default();
    stage.create(postgres::restored_pod(&programs, &copy, &claim)).await?;
    stage.pod_ready(NAMESPACE, RESTORED, SERVER_WITHIN).await?;
    voice.good(&format!(
        "a second PostgreSQL runs on {claim}; it recovered by itself, as after a power failure"
    ));

    voice.step("The proof");
    let logs = stop(writers).await?;
    let name = restored.backup.clone().unwrap_or_default();
    let source: Api<Backup> = Api::namespaced(stage.client()?, NAMESPACE);
    let source = source.get(&name).await.map_err(|error| asked(&error))?;
    let frozen = frozen_at(source.status.as_ref()).ok_or_else(|| {
        Failure::new(format!("Backup {name} has no FROZEN in its evidence"), "", "stillpoint backup describe")
    })?;
    prove(voice, &logs, frozen, &read_copy(&programs, &copy).await?)
}

/// What an administrator installs once.
async fn install(stage: &Stage) -> Result<(), Failure> {
    let unreadable = |error: String| Failure::new("what the demo installs does not parse", error, "");
    for definition in crd::all() {
        stage
            .create(serde_json::to_value(definition).map_err(|error| unreadable(error.to_string()))?)
            .await?;
    }
    for role in ROLES.split("\n---") {
        let role: serde_json::Value =
            serde_yaml::from_str(role).map_err(|error| unreadable(error.to_string()))?;
        if role["metadata"]["name"] == stillpoint_simcluster::HOOKS_ACCOUNT {
            stage.create(role).await?;
        }
    }
    stage.create_all(OPT_IN).await?;
    stage.create_all(TEMPLATE).await
}

fn policy(places: &Places) -> String {
    format!(
        "apiVersion: stillpoint.dev/v1alpha1\nkind: BackupPolicy\nmetadata: {{name: {POLICY}, namespace: {NAMESPACE}}}\n\
         spec:\n  schedule: {{cron: \"* * * * *\"}}\n  objectives: {{rpo: 2m}}\n  applications:\n  - name: orders-db\n    \
         selector: {{matchLabels: {{app: orders-db}}}}\n    parameters:\n      socketDirectory: {}\n  \
         retention: {{last: 3}}\n",
        places.sockets.display()
    )
}

async fn commits(stage: &Stage, writers: &Writers, count: usize) -> Result<(), Failure> {
    stage
        .until(&format!("{count} transactions are committed"), SERVER_WITHIN, async || {
            match writers.failure() {
                Some(why) => Err(a_writer_failed(why)),
                None => Ok((writers.commits() >= count).then_some(())),
            }
        })
        .await
}

async fn stop(writers: Writers) -> Result<Vec<Log>, Failure> {
    let stopped = tokio::time::timeout(SERVER_WITHIN, writers.stop()).await;
    let logs =
        stopped.map_err(|_| a_writer_failed("the server did not answer its last transaction".into()))?;
    match logs.iter().find_map(|log| log.failed.clone()) {
        Some(why) => Err(a_writer_failed(why)),
        None => Ok(logs),
    }
}

fn a_writer_failed(why: String) -> Failure {
    Failure::new("a client of the database could not go on", why, "no backup may do this: see the logs above")
}

async fn accepted(stage: &Stage) -> Result<(), Failure> {
    let api: Api<BackupPolicy> = Api::namespaced(stage.client()?, NAMESPACE);
    stage
        .until("the policy is accepted", RUN_WITHIN, async || {
            let policy = api.get(POLICY).await.map_err(|error| asked(&error))?;
            let conditions = policy.status.map(|status| status.conditions).unwrap_or_default();
            let found = conditions.into_iter().find(|condition| condition.type_ == "Accepted");
            match found {
                Some(found) if found.status == "False" => {
                    Err(Failure::new("the policy was not accepted", found.message, found.reason))
                }
                Some(found) => Ok((found.status == "True").then_some(())),
                None => Ok(None),
            }
        })
        .await
}

/// A run that somebody asks for, and everything it records.
async fn at_once(stage: &Stage, voice: &Voice, clock: &SharedClock) -> Result<(), Failure> {
    voice.step("A backup at once");
    stage
        .create(json!({
            "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Backup",
            "metadata": {"name": "at-once", "namespace": NAMESPACE},
            "spec": {"run": {"policyRef": {"name": POLICY}}},
        }))
        .await?;
    let backup = finished(stage, voice, clock, "the backup at once has finished", RUN_WITHIN, |backup| {
        backup.name_any() == "at-once"
    })
    .await?;
    proven(&backup)?;
    voice.say("");
    let status = backup.status.clone().unwrap_or_default();
    voice.block(&draw_window(&status));
    voice.say("(The template stops nobody. What stops everybody meanwhile is this cluster's copy: see 1.)");
    voice.say("");
    voice.block(&draw_verdict(&status.verdict.unwrap_or_default()));
    in_the_ledger(stage, voice, &backup)?;
    rpo(stage, voice, clock.as_ref(), &backup).await
}

/// A run that nobody asks for.
async fn by_schedule(stage: &Stage, voice: &Voice, clock: &SharedClock) -> Result<(), Failure> {
    voice.step("A backup by schedule");
    let (now, slot) = (clock.wall(), next_minute(clock.wall()));
    let runs: Api<Backup> = Api::namespaced(stage.client()?, NAMESPACE);
    let runs = runs.list(&ListParams::default()).await.map_err(|error| asked(&error))?;
    if runs.items.iter().any(is_scheduled) {
        voice.say("A slot has come meanwhile.");
    } else {
        let left = seconds(slot.duration_since(now).as_secs_f64());
        voice.say(&format!(
            "The next slot is {}, in {left}. The customers go on.",
            slot.strftime("%H:%M:%S UTC")
        ));
    }
    let what = "a scheduled backup has finished";
    let backup = finished(stage, voice, clock, what, SLOT_WITHIN, is_scheduled).await?;
    proven(&backup)?;
    in_the_ledger(stage, voice, &backup)?;
    rpo(stage, voice, clock.as_ref(), &backup).await
}

fn is_scheduled(backup: &Backup) -> bool {
    match backup.spec.trigger {
        Trigger::Schedule => true,
        Trigger::Manual | Trigger::CatchUp | Trigger::Initial => false,
    }
}

/// Waits for the first finished Backup that is meant, and says what phases it goes through.
async fn finished(
    stage: &Stage,
    voice: &Voice,
    clock: &SharedClock,
    what: &str,
    limit: Duration,
    meant: impl Fn(&Backup) -> bool,
) -> Result<Backup, Failure> {
    let api: Api<Backup> = Api::namespaced(stage.client()?, NAMESPACE);
    let mut last = None;
    stage
        .until(what, limit, async || {
            let listed = api.list(&ListParams::default()).await.map_err(|error| asked(&error))?;
            let Some(backup) = listed.items.into_iter().find(|backup| meant(backup)) else { return Ok(None) };
            let phase = backup.status.as_ref().map(|status| status.phase).unwrap_or_default();
            if last.replace(phase) != Some(phase) {
                voice.say(&format!(
                    "{}  {}  {phase:?}",
                    clock.wall().strftime("%H:%M:%S%.3f"),
                    backup.name_any()
                ));
            }
            Ok(backup.finished().then_some(backup))
        })
        .await
}

fn proven(backup: &Backup) -> Result<(), Failure> {
    if backup.proven() {
        return Ok(());
    }
    let conditions = backup.status.iter().flat_map(|status| &status.conditions);
    let why: Vec<String> =
        conditions.map(|condition| format!("{}: {}", condition.reason, condition.message)).collect();
    Err(Failure::new(
        format!("Backup {} is not proven application-consistent", backup.name_any()),
        why.join("; "),
        "see above what it records",
    ))
}

/// The driver has its own record of when it cut; the evidence must contain it.
fn in_the_ledger(stage: &Stage, voice: &Voice, backup: &Backup) -> Result<(), Failure> {
    let status = backup.status.clone().unwrap_or_default();
    let ledger = stage.cluster()?.ledger();
    let thaw = status.window.as_ref().and_then(|window| at(&status, window.thaw_sent?));
    for member in &status.members {
        let name = format!("snapshot-{}", member.volume_snapshot_uid.as_deref().unwrap_or_default());
        let cut = ledger.iter().find(|entry| entry.event == "cut" && entry.name == name);
        let inside = match (frozen_at(Some(&status)), cut, thaw) {
            (Some(frozen), Some(cut), Some(thaw)) => {
                cut.cut_start.is_some_and(|start| frozen < start) && cut.at < thaw
            }
            _ => false,
        };
        if !inside {
            return Err(Failure::new(
                format!("the cut of {} is not between FROZEN and THAW", member.claim_name),
                format!("the driver's ledger says {cut:?}"),
                "this is a defect of Stillpoint: please report it with all of this",
            ));
        }
    }
    voice.good(&format!(
        "{}: application-consistent ({:?}); by the driver's own ledger it was cut between FROZEN and THAW",
        backup.name_any(),
        status.continuity.unwrap_or_default()
    ));
    Ok(())
}

/// The RPO as a monitoring system computes it.
async fn rpo(stage: &Stage, voice: &Voice, clock: &dyn Clock, backup: &Backup) -> Result<(), Failure> {
    const REFERENCE: &str = "stillpoint_policy_rpo_reference_timestamp_seconds";
    const TARGET: &str = "stillpoint_policy_rpo_target_seconds";
    let labels = [("namespace", NAMESPACE), ("policy", POLICY)];
    let cut = backup.status.as_ref().and_then(|status| status.cut.as_ref()).map(|cut| cut.0);
    let cut = cut.ok_or_else(|| Failure::new("the backup does not say when it was cut", "", ""))?;
    let address = stage.metrics()?;
    let (line, reference, target) = stage
        .until("/metrics shows the new recovery point", RUN_WITHIN, async || {
            let Ok((200, text)) = scrape::get(address, "/metrics").await else { return Ok(None) };
            let Some((line, reference)) = scrape::sample(&text, REFERENCE, &labels) else { return Ok(None) };
            let Some((_, target)) = scrape::sample(&text, TARGET, &labels) else { return Ok(None) };
            // To the second: the metric may be rounded.
            Ok((reference >= cut.as_second() as f64).then(|| (line.to_owned(), reference, target)))
        })
        .await?;
    let now = clock.wall().as_millisecond() as f64 / 1e3;
    voice.good(&format!(
        "RPO now, from http://{address}/metrics: {} of {}",
        seconds(now - reference),
        seconds(target)
    ));
    voice.block(&format!("  {line}"));
    Ok(())
}

async fn restore(stage: &Stage, voice: &Voice) -> Result<RestoreStatus, Failure> {
    stage
        .create(json!({
            "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Restore",
            "metadata": {"name": "after-the-accident", "namespace": NAMESPACE},
            "spec": {"source": {"latest": {"policyRef": {"name": POLICY}}}, "target": {"clone": {"prefix": "restored-"}}},
        }))
        .await?;
    let api: Api<Restore> = Api::namespaced(stage.client()?, NAMESPACE);
    let status = stage
        .until("the restore has finished", RUN_WITHIN, async || {
            let restore = api.get("after-the-accident").await.map_err(|error| asked(&error))?;
            let status = restore.status.unwrap_or_default();
            match status.phase {
                RestorePhase::Pending | RestorePhase::Restoring => Ok(None),
                RestorePhase::Succeeded => Ok(Some(status)),
                RestorePhase::Failed => {
                    let why: Vec<_> =
                        status.conditions.into_iter().map(|condition| condition.message).collect();
                    Err(Failure::new("the restore failed", why.join("; "), "see above"))
                }
            }
        })
        .await?;
    voice.good(&format!(
        "the newest proven point, {}, is back as {}; data of {}",
        status.backup.as_deref().unwrap_or("?"),
        status.claims.iter().map(|claim| claim.claim_name.as_str()).collect::<Vec<_>>().join(", "),
        status.data_time.as_ref().map(|at| precise(at.0)).unwrap_or_default(),
    ));
    Ok(status)
}

async fn read_copy(programs: &Programs, places: &Places) -> Result<BTreeMap<usize, Found>, Failure> {
    let unreadable =
        |why: String| Failure::new("the restored copy cannot be read", why, "see the logs above");
    let query = "SELECT o.writer, count(*), max(o.n), sum(o.amount)::bigint, \
                 (SELECT balance FROM accounts WHERE id = 2 * o.writer), \
                 (SELECT balance FROM accounts WHERE id = 2 * o.writer + 1) \
                 FROM orders o GROUP BY o.writer ORDER BY o.writer";
    let answer = sql(programs, places, query).await.map_err(unreadable)?;
    proof::read(&answer).ok_or_else(|| unreadable(format!("psql answered {answer:?}")))
}

fn prove(
    voice: &Voice,
    logs: &[Log],
    frozen: Timestamp,
    copy: &BTreeMap<usize, Found>,
) -> Result<Exit, Failure> {
    let judged = proof::judge(logs, frozen, copy);
    let heading =
        ["CUSTOMER", "COMMITS BEFORE FROZEN", "IN THE COPY", "COMMITS BY NOW", "SEQUENCE AND BALANCES"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for (writer, one) in judged.iter().enumerate() {
        let whole = if one.faults.is_empty() { "no gap, exact" } else { "see below" };
        let mut row = vec![(writer + 1).to_string()];
        row.extend([one.owed, one.found, one.acknowledged].map(|count| count.to_string()));
        row.push(whole.to_owned());
        rows.push(row);
    }
    voice.say(&format!("FROZEN was received at {}.", precise(frozen)));
    voice.say("");
    voice.block(&table(&rows));
    voice.say("");
    for (writer, one) in judged.iter().enumerate() {
        for fault in &one.faults {
            voice.bad(&format!("customer {}: {fault}", writer + 1));
        }
    }
    let total = |of: fn(&Judged) -> u64| judged.iter().map(of).sum::<u64>();
    let (owed, found, by_now) =
        (total(|one| one.owed), total(|one| one.found), total(|one| one.acknowledged));
    if judged.iter().any(|one| !one.faults.is_empty()) {
        return Err(Failure::new(
            "the restored copy is not what was promised",
            format!("{owed} commits were acknowledged before FROZEN; the copy has {found} and faults"),
            "this is a defect of Stillpoint: run it again with --keep and report it with all of this",
        ));
    }
    if owed < WARM as u64 {
        return Err(Failure::new("too few commits to prove anything", format!("{owed} before FROZEN"), ""));
    }
    voice.good(&format!("all {owed} commits acknowledged before FROZEN are in the restored copy"));
    voice.say(&format!(
        "The {} commits after its cut are not: that is what an RPO is about, and why the policy fires again.",
        by_now.saturating_sub(found)
    ));
    Ok(Exit::Success)
}

/// When the last FROZEN of a run was received.
fn frozen_at(status: Option<&BackupStatus>) -> Option<Timestamp> {
    let status = status?;
    let last = status.holds.iter().map(|hold| hold.frozen.as_ref().map(|answer| answer.at));
    // A hold without FROZEN leaves nothing to prove.
    let last = last.collect::<Option<Vec<_>>>()?.into_iter().max()?;
    at(status, last)
}

/// An offset of the evidence as an instant.
fn at(status: &BackupStatus, offset: stillpoint_api::evidence::Offset) -> Option<Timestamp> {
    let started = status.window.as_ref()?.started_at.as_ref()?.0;
    started.checked_add(SignedDuration::from_micros(offset.0)).ok()
}

fn next_minute(now: Timestamp) -> Timestamp {
    Timestamp::from_second((now.as_second() / 60 + 1) * 60).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_policy_of_the_demo_is_a_valid_policy() {
        let places = Places::of(Path::new("/tmp/x"), SERVER);
        let value: serde_json::Value = serde_yaml::from_str(&policy(&places)).unwrap();
        let parsed: BackupPolicy = serde_json::from_value(value).unwrap();
        assert_eq!(parsed.spec.applications[0].parameters["socketDirectory"], "/tmp/x/mnt/orders-db-0/run");
    }

    #[test]
    fn the_next_slot_is_the_next_full_minute() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(next_minute(at(119)), at(120));
        assert_eq!(next_minute(at(120)), at(180));
    }
}
