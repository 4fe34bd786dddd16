//! The databases that are shot at: each in a namespace of its own, under load, with a policy that is run by hand.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use stillpoint_api::Backup;
use stillpoint_api::backup::{BackupSpec, PolicyRef, RunSpec, Trigger};
use stillpoint_e2e::acks::Acks;
use stillpoint_e2e::cluster::Cluster;
use stillpoint_e2e::load::{Engine, Load, Strength};
use stillpoint_e2e::process::processes_in;
use stillpoint_e2e::wait::{Look, until};
use stillpoint_e2e::world::World;
use stillpoint_e2e::{Outcome, Present as _};
use tokio::process::Child;

/// Every namespace of the campaign.
pub const NAMESPACES: &[&str] = &["faults-maria-0", "faults-maria-1", "faults-maria-log", "faults-postgres"];
/// The promise of every policy here.
pub const MAX_HOLD: Duration = Duration::from_secs(8);
/// The lease of both templates.
pub const LEASE: Duration = Duration::from_secs(10);
/// Four databases share this machine.
const STRENGTH: Strength = Strength { writers: 2, pause_ms: 10 };
const POLICY: &str = "by-hand";

/// One of them.
pub struct Database {
    /// Where.
    pub namespace: &'static str,
    /// What.
    pub engine: Engine,
    /// Its load.
    pub load: Load,
    /// The writers' log on the node's disk.
    pub acks: Acks,
    /// UID of its pod.
    pub pod_uid: String,
    /// UID of its claim.
    pub claim_uid: String,
    /// Handle of its volume, as in the driver's ledger.
    pub volume: String,
    /// Clients that outlived a crash of containerd (see `judge`).
    pub left_behind: Mutex<BTreeSet<u32>>,
    cluster: Cluster,
}

impl Database {
    /// Lets a database start without waiting for it.
    ///
    /// # Errors
    /// An object was refused.
    pub async fn begin(world: &World, namespace: &str) -> Outcome {
        let (engine, options) = kind(namespace);
        world.begin_database_with(namespace, engine, options, STRENGTH).await
    }

    /// Waits for it, and gives it a policy.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn ready(world: &World, namespace: &'static str) -> Outcome<Self> {
        let cluster = world.cluster.clone();
        let (engine, _) = kind(namespace);
        let pod = format!("pod/{}", engine.pod());
        until("the database under load to be ready", Duration::from_secs(120), async || {
            let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
            let seen = cluster.kubectl(&["-n", namespace, "get", &pod, "-o", path], None).await?;
            Ok(Look::at(seen.stdout.starts_with("True").then_some(()), seen.stdout + &seen.stderr))
        })
        .await?;
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
        let pod_uid = pods.get(&engine.pod()).await?.uid().present("the pod's UID")?;
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), namespace);
        let claim = claims.get(&format!("data-{}", engine.pod())).await?;
        let claim_uid = claim.uid().present("the claim's UID")?;
        let volume = claim.spec.and_then(|spec| spec.volume_name).present("the claim's volume")?;
        let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
        let volume = volumes.get(&volume).await?.spec.and_then(|spec| spec.csi).present("the CSI volume")?;
        world.policy(namespace, POLICY, policy(engine)).await?;
        world.accepted(namespace, POLICY).await?;
        Ok(Self {
            namespace,
            engine,
            load: Load::of(&cluster, namespace, engine),
            acks: Acks::of(&cluster, &pod_uid),
            pod_uid,
            claim_uid,
            volume: volume.volume_handle,
            left_behind: Mutex::default(),
            cluster,
        })
    }

    /// Processes of this run's client in the pod, without those that were left behind before.
    ///
    /// # Errors
    /// The process table cannot be read.
    pub fn clients(&self) -> Outcome<Vec<u32>> {
        let words: &[&str] = match self.engine {
            Engine::Mariadb => &["--skip-reconnect"],
            Engine::Postgres => &["psql", "VERBOSITY=terse", "-F"],
        };
        let known = self.left_behind.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = processes_in(&self.pod_uid, words)?;
        found.retain(|pid| !known.contains(pid));
        Ok(found)
    }

    /// Takes note of clients that stay.
    pub fn leave_behind(&self, pids: &[u32]) {
        self.left_behind.lock().unwrap_or_else(PoisonError::into_inner).extend(pids);
    }

    /// Whether writers wait while it is held.
    pub fn locks(&self) -> bool {
        self.engine == Engine::Mariadb
    }

    /// Creates a run.
    ///
    /// # Errors
    /// It was refused.
    pub async fn run(&self, name: &str) -> Outcome {
        let reference = PolicyRef { name: POLICY.to_owned(), uid: None };
        let run = RunSpec { policy_ref: Some(reference), ..RunSpec::default() };
        let mut backup =
            Backup::new(name, BackupSpec { run, trigger: Trigger::Manual, cancel: false, hold: None });
        backup.metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        self.backups().create(&PostParams::default(), &backup).await?;
        Ok(())
    }

    /// Its Backups.
    pub fn backups(&self) -> Api<Backup> {
        Api::namespaced(self.cluster.client.clone(), self.namespace)
    }

    /// Keeps BACKUP STAGE taken for so long: whoever wants to freeze waits meanwhile. Returns once it is taken.
    ///
    /// # Errors
    /// It cannot be taken.
    pub async fn keep_lock_waiting(&self, time: Duration) -> Outcome<Child> {
        let seconds = time.as_secs_f64();
        let text = format!("BACKUP STAGE START; SELECT 'taken'; SELECT SLEEP({seconds}); BACKUP STAGE END;");
        let mut command = tokio::process::Command::new("kubectl");
        command.args(["-n", self.namespace, "exec", &self.engine.pod(), "-c", "mariadb", "--", "mariadb"]);
        command.args([
            "--no-defaults",
            "--socket=/run/mysqld/mysqld.sock",
            "-u",
            "root",
            "-n",
            "-N",
            "-B",
            "-e",
            &text,
        ]);
        command.env("KUBECONFIG", &self.cluster.kubeconfig).env("PATH", self.cluster.path());
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped()).kill_on_drop(true);
        command.stderr(std::process::Stdio::null());
        let mut child = command.spawn()?;
        let mut out = child.stdout.take().present("the client's output")?;
        let mut word = [0; 5];
        tokio::time::timeout(
            Duration::from_secs(20),
            tokio::io::AsyncReadExt::read_exact(&mut out, &mut word),
        )
        .await??;
        // Read on, or the client ends when it prints.
        tokio::spawn(async move { tokio::io::copy(&mut out, &mut tokio::io::sink()).await });
        Ok(child)
    }

    /// Sessions of the server that are neither the load's nor the asker's.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn foreign_sessions(&self) -> Outcome<String> {
        let client: &[&str] = match self.engine {
            Engine::Mariadb => &[
                "mariadb",
                "--no-defaults",
                "--socket=/run/mysqld/mysqld.sock",
                "-u",
                "root",
                "-N",
                "-B",
                "-e",
                "SELECT ID, COMMAND, TIME, IFNULL(STATE,''), IFNULL(LEFT(INFO,80),'') FROM information_schema.PROCESSLIST \
                 WHERE DB IS NULL AND COMMAND <> 'Daemon' AND USER <> 'system user' AND ID <> CONNECTION_ID()",
            ],
            Engine::Postgres => &[
                "psql",
                "-X",
                "-q",
                "-A",
                "-t",
                "-h",
                "/var/run/postgresql",
                "-U",
                "postgres",
                "-d",
                "postgres",
                "-c",
                "SELECT pid, state, left(query,80) FROM pg_stat_activity WHERE backend_type = 'client backend' \
                 AND datname = 'postgres' AND pid <> pg_backend_pid()",
            ],
        };
        let pod = self.engine.pod();
        let exec = ["-n", self.namespace, "exec", &pod, "-c", self.engine.name(), "--"];
        let printed = self.cluster.kubectl(&[&exec[..], client].concat(), None).await?;
        Ok(printed.good("list the server's sessions")?.trim().to_owned())
    }
}

/// Engine and options of a namespace's database.
fn kind(namespace: &str) -> (Engine, Option<&'static str>) {
    match namespace {
        "faults-postgres" => (Engine::Postgres, None),
        "faults-maria-log" => (Engine::Mariadb, Some("--log-bin=binlog --sync-binlog=1")),
        _ => (Engine::Mariadb, None),
    }
}

fn policy(engine: Engine) -> Value {
    json!({
        "schedule": {"cron": "0 3 1 1 *"},
        "applications": [{
            "name": "ledger",
            "selector": {"matchLabels": {"app": engine.name()}},
            "templateRef": {"name": match engine { Engine::Mariadb => "mariadb", Engine::Postgres => "postgresql" }},
        }],
        "freeze": {"maxHold": format!("{}s", MAX_HOLD.as_secs()), "acquireTimeout": "3s"},
        "retention": {"last": 1},
    })
}
