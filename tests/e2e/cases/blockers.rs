//! A report of a minute in the way of a lock: writers queue behind the lock that waits, and stay there when the attempt is
//! given up, because the request is still pending on the server. Named by default; ended where the policy asks for it.

use std::time::Duration;

use kube::Api;
use serde_json::{Value, json};
use stillpoint_api::Backup;
use stillpoint_api::backup::JournalKind;
use stillpoint_e2e::cluster::Cluster;
use stillpoint_e2e::load::{Engine, Load};
use stillpoint_e2e::wait::{Look, until};
use stillpoint_e2e::world::{MARIADB, RUN_WITHIN, World};
use stillpoint_e2e::{Outcome, Present as _, ensure, point};

/// Longest freeze of the policies here.
const MAX_HOLD: Duration = Duration::from_secs(10);
const SQL: [&str; 6] = ["mariadb", "--no-defaults", "-S", "/run/mysqld/mysqld.sock", "-u", "root"];
const REPORT: &str = "SELECT SLEEP(60) FROM bank.ledger LIMIT 1";

/// MariaDB held by a table lock, which waits for every statement on the table, longer than an attempt waits for it.
const TEMPLATE: &str = r#"
apiVersion: stillpoint.dev/v1alpha1
kind: HookTemplate
metadata: {name: table-lock}
spec:
  freeze:
    session:
      command: [mariadb, --no-defaults, -S, /run/mysqld/mysqld.sock, -u, root, -N, -B, -r, -n, --skip-reconnect, bank]
      lease: {variable: wait_timeout, unit: s, duration: 10s}
      open: |
        SET SESSION wait_timeout={{lease}}, lock_wait_timeout=120;
        SELECT CONCAT('EVIDENCE {{n}} datadir=', @@datadir);
        SELECT CONCAT('READY {{n}} conn=', CONNECTION_ID(), ' host=', @@hostname, ' lease=', @@SESSION.wait_timeout);
      freeze: |
        SET SESSION wait_timeout={{lease}};
        LOCK TABLES ledger WRITE, accounts WRITE;
        SELECT CONCAT('FROZEN {{n}} 0 conn=', CONNECTION_ID(), ' host=', @@hostname, ' lease=', @@SESSION.wait_timeout);
      beat: |
        SET SESSION wait_timeout={{lease}};
        SELECT CONCAT('HELD {{n}} {{i}} conn=', CONNECTION_ID(), ' host=', @@hostname, ' lease=', @@SESSION.wait_timeout);
      thaw: |
        UNLOCK TABLES;
        SELECT 'THAWED {{n}}';
      local: {key: host, equals: PodHostname}
  stallProbe:
    command:
    - mariadb
    - --no-defaults
    - -S
    - /run/mysqld/mysqld.sock
    - -u
    - root
    - -N
    - -B
    - -r
    - -e
    - >-
      SELECT CONCAT(w.waiting, ' sessions wait, first ', w.first, '; ', IF(COUNT(b.ID)=1, CONCAT('blocker=', MIN(b.QUERY_ID),
      ' is the statement of session ', MIN(b.ID)), 'it is not known for whom')) FROM (SELECT COUNT(*) AS waiting, MIN(ID) AS
      first, MAX(IF(INFO LIKE 'LOCK TABLES%', TIME_MS, NULL)) AS since FROM information_schema.PROCESSLIST WHERE
      STATE='Waiting for table metadata lock') AS w LEFT JOIN information_schema.PROCESSLIST AS b ON b.COMMAND='Query' AND
      IFNULL(b.STATE,'') NOT LIKE 'Waiting for%' AND b.ID<>CONNECTION_ID() AND b.TIME_MS>w.since WHERE w.waiting>0 GROUP BY
      w.waiting, w.first, w.since
    endBlocker: [mariadb, --no-defaults, -S, /run/mysqld/mysqld.sock, -u, root, -e, "KILL QUERY ID {{blocker}}"]
  evidence: [datadir]
  dataPaths: [datadir]
  crashSafe: {source: "InnoDB recovers from an atomic copy; its defaults are durable"}
"#;

fn policy(on_blocked: &str, attempts: u32) -> Value {
    json!({
        "schedule": {"cron": "0 3 1 1 *"},
        "applications": [{
            "name": "bank",
            "selector": {"matchLabels": {"app": "mariadb"}},
            "templateRef": {"kind": "HookTemplate", "name": "table-lock"},
        }],
        "freeze": {"maxHold": "10s", "acquireTimeout": "2s", "onBlocked": on_blocked},
        "run": {"maxAttempts": attempts},
        "retention": {"last": 2},
    })
}

/// Runs one statement in the database's container.
async fn sql(cluster: &Cluster, statement: &str) -> Outcome<String> {
    let pod = Engine::Mariadb.pod();
    let words = ["-n", MARIADB, "exec", &pod, "-c", "mariadb", "--"];
    let arguments = [&words[..], &SQL, &["-N", "-B", "-e", statement]].concat();
    cluster.kubectl(&arguments, None).await?.good(statement)
}

/// Query ids of the report, while it runs.
async fn running(cluster: &Cluster) -> Outcome<Vec<String>> {
    let asked = "SELECT QUERY_ID FROM information_schema.PROCESSLIST WHERE INFO LIKE 'SELECT SLEEP%'";
    Ok(sql(cluster, asked).await?.lines().map(str::to_owned).collect())
}

/// Starts the report, and waits until it is in the way.
async fn report(world: &World) -> Outcome<()> {
    let cluster = world.cluster.clone();
    // It ends with an error when it is ended: nobody asks how.
    tokio::spawn(async move { sql(&cluster, REPORT).await.map(drop) });
    until("the report to run", Duration::from_secs(20), async || {
        let found = running(&world.cluster).await?;
        Ok(Look::at((found.len() == 1).then_some(()), format!("{found:?}")))
    })
    .await
}

async fn stage(world: &mut World, on_blocked: &str, attempts: u32) -> Outcome<Load> {
    let load = world.database(MARIADB, Engine::Mariadb, None).await?;
    world.controller().await?;
    world.cluster.apply(TEMPLATE, MARIADB).await?;
    world.policy(MARIADB, "blocked", policy(on_blocked, attempts)).await?;
    world.accepted(MARIADB, "blocked").await?;
    report(world).await?;
    Ok(load)
}

pub async fn reported(world: &mut World) -> Outcome {
    let load = stage(world, "Report", 1).await?;
    let backup = world.start_run(MARIADB, "blocked").await?;
    let name = backup.metadata.name.as_deref().present("the Backup's name")?.to_owned();
    let backups: Api<Backup> = Api::namespaced(world.cluster.client.clone(), MARIADB);
    let message = until("the promise to end", RUN_WITHIN, async || {
        let status = backups.get(&name).await?.status.unwrap_or_default();
        let last = status.journal.into_iter().find(|entry| entry.entry == JournalKind::Aborted);
        Ok(match last {
            Some(entry) if entry.reason.as_deref() == Some("ApplicationLeftQuiesced") => {
                Look::Done(entry.message.unwrap_or_default())
            }
            other => Look::NotYet(format!("{other:?}")),
        })
    })
    .await?;
    let left = running(&world.cluster).await?;
    ensure!(left.len() == 1, "the report was ended by somebody: {message}");
    let named = format!("blocker={} ", left.join(" "));
    ensure!(message.contains(&named), "the failure does not say {named}: {message}");
    sql(&world.cluster, &format!("KILL QUERY ID {}", left.join(" "))).await?;
    let backup = world.finished(MARIADB, &name, RUN_WITHIN).await?;
    ensure!(point::outcome_of(&backup).contains("ApplicationLeftQuiesced"), "{}", point::outcome_of(&backup));
    let began = backup.status.and_then(|status| status.started_at).present("its start")?.0.as_microsecond();
    println!("        reported: {message}");
    println!("        longest stall of the writers {:.1} s", stall(&load, began).await?.as_secs_f64());
    Ok(())
}

pub async fn ended(world: &mut World) -> Outcome {
    let load = stage(world, "KillBlocker", 2).await?;
    let before = running(&world.cluster).await?.join(" ");
    let backup = world.run(MARIADB, "blocked").await?;
    ensure!(running(&world.cluster).await?.is_empty(), "the report still runs");
    let name = backup.metadata.name.as_deref().present("the Backup's name")?;
    let status = backup.status.as_ref().present("status")?;
    let first =
        status.journal.iter().find(|entry| entry.entry == JournalKind::Aborted).present("the refusal")?;
    ensure!(first.reason.as_deref() == Some("LockNotAcquired"), "it ended as {first:?}");
    let told = first.message.as_deref().unwrap_or_default();
    ensure!(told.contains(&format!("statement {before} on mariadb-0/mariadb was ended")), "{told}");
    world.event(MARIADB, name, "BlockerEnded").await?;
    // With nothing in the way the second attempt is proven.
    point::verify(&world.cluster, &backup).await?;
    let stall = stall(&load, status.started_at.as_ref().present("its start")?.0.as_microsecond()).await?;
    println!("        ended: {told}");
    println!("        longest stall of the writers {:.1} s of {MAX_HOLD:?}", stall.as_secs_f64());
    ensure!(stall <= MAX_HOLD, "writers stood still for {stall:?}, longer than {MAX_HOLD:?}");
    Ok(())
}

/// The longest time without an acknowledged commit since `began`, in microseconds since 1970.
async fn stall(load: &Load, began: i64) -> Outcome<Duration> {
    let text = load.log().await?;
    let mut acked: Vec<i64> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(3)?.parse().ok())
        .filter(|at| *at > began)
        .collect();
    acked.sort_unstable();
    let longest = acked.windows(2).map(|pair| pair[1] - pair[0]).max().present("commits after the start")?;
    Ok(Duration::from_micros(u64::try_from(longest).unwrap_or(0)))
}
