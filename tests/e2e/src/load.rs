//! The databases' load: the writers' log of acknowledged commits, and the check of a copy against it.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::ledger::TrueCut;
use crate::point::Instants;
use crate::wait::{Look, until};
use crate::{Outcome, Problem};

/// A restored server recovers as after a power failure.
const STARTS_WITHIN: Duration = Duration::from_secs(120);

/// The databases of the fixtures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// PostgreSQL 15.
    Postgres,
    /// MariaDB 10.11.
    Mariadb,
}

impl Engine {
    /// Name of its image, its StatefulSet and its container.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Mariadb => "mariadb",
        }
    }

    /// Its pod.
    pub fn pod(self) -> String {
        format!("{}-0", self.name())
    }
}

/// How strong the load is.
#[derive(Clone, Copy, Debug)]
pub struct Strength {
    /// Writers at once.
    pub writers: u32,
    /// How long each rests after a commit, milliseconds.
    pub pause_ms: u32,
}

impl Default for Strength {
    /// What load.py does when nothing is said.
    fn default() -> Self {
        Self { writers: 4, pause_ms: 8 }
    }
}

impl Strength {
    /// As further entries of the container's environment in the fixtures.
    pub fn variables(self) -> String {
        let Self { writers, pause_ms } = self;
        format!(
            "\n        - {{name: LOAD_WRITERS, value: \"{writers}\"}}\n        - {{name: LOAD_PAUSE_MS, value: \"{pause_ms}\"}}"
        )
    }
}

/// The ConfigMap `load` of the fixtures: the load and what it imports.
///
/// # Errors
/// A program cannot be read.
pub fn programs(cluster: &Cluster) -> Outcome<Value> {
    let load = cluster.read("tests/cluster/fixtures/load.py")?;
    let acks = cluster.read("tests/cluster/fixtures/acks.py")?;
    let data = json!({"load.py": load, "acks.py": acks});
    Ok(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "load"}, "data": data}))
}

/// One acknowledged commit; microseconds since 1970 on this machine's clock.
#[derive(Clone, Copy, Debug)]
pub struct Ack {
    /// When the writer began it.
    pub started: i64,
    /// When its commit was acknowledged.
    pub acked: i64,
}

/// What `load.py check` found.
#[derive(Clone, Debug, Deserialize)]
pub struct Checked {
    /// Everything holds.
    pub ok: bool,
    /// Commits that had to be there.
    #[serde(default)]
    pub expected: u64,
    /// Of these, how many are not.
    #[serde(default)]
    pub missing: u64,
    /// Commits that are there and cannot be.
    #[serde(default)]
    pub impossible: u64,
    /// Rows in the copy.
    #[serde(default)]
    pub rows: u64,
}

/// What a copy must have and cannot have; microseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Every commit acknowledged by then must be there.
    pub acked_before: i64,
    /// None begun after then may be.
    pub started_after: i64,
    /// When the cut began, where commits were held: one begun by `started_after` and acknowledged later than this may be missing. It
    /// was past the lock at FROZEN and waited for its log to be flushed, which MariaDB does after it let the lock go.
    pub cut: Option<i64>,
}

impl Bounds {
    /// Of a copy under a hold: nothing is acknowledged from the cut to THAW but what was past the lock.
    pub fn held(instants: &Instants) -> Self {
        let Instants { cut, frozen, thaw_sent } = instants;
        Self { acked_before: *thaw_sent, started_after: *frozen, cut: Some(cut.from.as_microsecond()) }
    }

    /// Of a copy of a database that nobody held.
    pub fn observed(cut: &TrueCut) -> Self {
        Self { acked_before: cut.from.as_microsecond(), started_after: cut.to.as_microsecond(), cut: None }
    }
}

/// The load of one database.
#[derive(Clone, Debug)]
pub struct Load {
    cluster: Cluster,
    namespace: String,
    engine: Engine,
}

impl Load {
    /// The load beside `engine` in a namespace.
    pub fn of(cluster: &Cluster, namespace: &str, engine: Engine) -> Self {
        Self { cluster: cluster.clone(), namespace: namespace.to_owned(), engine }
    }

    /// The whole log, as text.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn log(&self) -> Outcome<String> {
        self.read(&["cat", "/load/acks"]).await
    }

    /// The last commits of the log: some ten seconds.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn recent(&self) -> Outcome<Vec<Ack>> {
        let text = self.read(&["tail", "-n", "6000", "/load/acks"]).await?;
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut acks = Vec::new();
        for line in complete.lines() {
            let mut fields = line.split(' ').skip(2).map(str::parse::<i64>);
            match (fields.next(), fields.next()) {
                (Some(Ok(started)), Some(Ok(acked))) => acks.push(Ack { started, acked }),
                _ => return Err(Problem(format!("a line of the writers' log is not understood: {line:?}"))),
            }
        }
        Ok(acks)
    }

    async fn read(&self, command: &[&str]) -> Outcome<String> {
        let pod = self.engine.pod();
        let arguments = [&["-n", &self.namespace, "exec", &pod, "-c", "load", "--"], command].concat();
        self.cluster.kubectl(&arguments, None).await?.good("read the writers' log")
    }

    /// Waits for a commit that was acknowledged after `instant`, and returns the first one.
    ///
    /// # Errors
    /// There is none in time.
    pub async fn first_ack_after(&self, instant: i64, limit: Duration) -> Outcome<Ack> {
        until("the writers to commit again", limit, async || {
            let acks = self.recent().await?;
            let first = acks.iter().filter(|ack| ack.acked > instant).min_by_key(|ack| ack.acked).copied();
            Ok(Look::at(first, format!("{} commits, none after {instant}", acks.len())))
        })
        .await
    }

    /// Starts the engine on a copied claim, compares every row with the writers' log, and removes pod and claim.
    ///
    /// # Errors
    /// The copy does not start, or it is not exact.
    pub async fn check_copy(&self, claim: &str, bounds: &Bounds) -> Outcome<Checked> {
        let pod = format!("restored-{claim}");
        let fixture = format!("tests/cluster/fixtures/restored-{}.yaml", self.engine.name());
        let text = self.cluster.read(&fixture)?.replace("${NAME}", &pod).replace("${CLAIM}", claim);
        let checked = self.check_server(&pod, &text, bounds).await?;
        let gone = ["-n", &self.namespace, "delete", "pvc", claim, "--wait=true", "--timeout=60s"];
        self.cluster.kubectl(&gone, None).await?.good("delete the restored claim")?;
        Ok(checked)
    }

    /// The same for a server that a manifest starts as `pod`, on whichever claims; these stay.
    ///
    /// # Errors
    /// The server does not start, or its data is not exact.
    pub async fn check_server(&self, pod: &str, manifest: &str, bounds: &Bounds) -> Outcome<Checked> {
        self.cluster.apply(manifest, &self.namespace).await?;
        let n = self.namespace.as_str();
        until("the restored server to be ready", STARTS_WITHIN, async || {
            let path = "jsonpath={.status.phase} {.status.containerStatuses[0].ready} {.status.containerStatuses[0].state}";
            let seen = self.cluster.kubectl(&["-n", n, "get", "pod", pod, "-o", path], None).await?.good("get pod")?;
            if seen.starts_with("Failed") {
                let log = self.cluster.kubectl(&["-n", n, "logs", pod, "--tail=40"], None).await?;
                return Err(Problem(format!("the restored server ended: {seen}\n{}", log.stdout)));
            }
            Ok(if seen.starts_with("Running true") { Look::Done(()) } else { Look::NotYet(seen) })
        })
        .await?;
        let (before, after) = (bounds.acked_before.to_string(), bounds.started_after.to_string());
        let cut = bounds.cut.map(|cut| cut.to_string());
        let mut check = vec![
            "python3",
            "/fixtures/load.py",
            "check",
            "--acks",
            "-",
            "--acked-before",
            &before,
            "--started-after",
            &after,
        ];
        if let Some(cut) = &cut {
            check.extend(["--cut", cut]);
        }
        let arguments = [&["-n", n, "exec", "-i", pod, "--"][..], &check[..]].concat();
        let printed = self.cluster.kubectl(&arguments, Some(self.log().await?.into_bytes())).await?;
        let line = printed.stdout.lines().last().unwrap_or_default();
        let checked: Checked = serde_json::from_str(line).map_err(|error| {
            Problem(format!("load.py check said {:?} {:?}: {error}", printed.stdout, printed.stderr))
        })?;
        if !checked.ok || printed.code != Some(0) {
            return Err(Problem(format!("the copy is not exact: {line}")));
        }
        let gone = ["-n", n, "delete", "pod", pod, "--wait=true", "--timeout=60s"];
        self.cluster.kubectl(&gone, None).await?.good("delete the restored pod")?;
        Ok(checked)
    }
}
