//! A real kube-apiserver with its own etcd, for the bench alone: nothing else uses them, and nothing of them is left.
//!
//! `kube-apiserver` and `etcd` are those of tests/cluster, from PATH. etcd writes to the disk as in production. There are no
//! definitions of snapshots, so that nobody misses the points' snapshots, and no controllers of Kubernetes. What the server sets itself,
//! UIDs and times of creation, is its own; everything else is the population of the embedded API server.

use std::collections::HashSet;
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, TryStreamExt as _};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{NamespaceResourceScope, PartialObjectMeta, Resource};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stillpoint_api::clock::SharedClock;
use stillpoint_api::{Backup, BackupPolicy};
use stillpoint_executor::api_client::api_client;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::failure::{Outcome, Present as _, Problem};
use crate::population::{Class, Member, members, namespaces};
use crate::stand_in::RAW;
use crate::target::Created;

/// Requests at once, while the population is made or edited.
const AT_ONCE: usize = 32;
/// How long the server may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(200);
/// Objects of a page of a list.
const PAGE: u32 = 500;

/// A running API server.
pub struct Real {
    etcd: Child,
    server: Child,
    directory: PathBuf,
    /// How to reach it, with all rights.
    pub kubeconfig: PathBuf,
    client: Client,
    made: Vec<Member>,
    watched: Arc<Mutex<Watched>>,
    watching: JoinHandle<()>,
}

/// What the bench's own watch showed.
#[derive(Default)]
struct Watched {
    /// UIDs of every Backup so far.
    known: HashSet<String>,
    created: Vec<Created>,
}

impl Real {
    /// Starts both in a directory below `work`.
    ///
    /// # Errors
    /// A program is missing or does not come up.
    pub async fn start(work: &Path, clock: &SharedClock) -> Outcome<Self> {
        let directory = work.join("real");
        std::fs::create_dir_all(&directory).present("make a directory for etcd")?;
        let ports = free_ports()?;
        let [client_port, peer_port, port] = ports;
        let (clients, peers) =
            (format!("http://127.0.0.1:{client_port}"), format!("http://127.0.0.1:{peer_port}"));
        let etcd = spawn(&directory, "etcd", |command| {
            command.arg("--data-dir").arg(directory.join("data"));
            command.args(["--log-level", "warn", "--quota-backend-bytes", "4294967296"]);
            command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
            command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
            command.args(["--initial-cluster", &format!("default={peers}")]);
        })?;
        let token = secret()?;
        write_private(&directory.join("tokens.csv"), &format!("{token},bench,bench,system:masters\n"))?;
        let key = directory.join("accounts.key");
        let made = Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048").output().await;
        if !made.as_ref().is_ok_and(|made| made.status.success()) {
            return Err(Problem(format!("cannot make a key with openssl: {made:?}")));
        }
        let server = spawn(&directory, "kube-apiserver", |command| {
            command.args(["--etcd-servers", &clients, "--bind-address", "127.0.0.1"]);
            command.args(["--secure-port", &port.to_string(), "--service-cluster-ip-range", "10.96.0.0/24"]);
            command.args(["--service-account-issuer", "https://kubernetes.default.svc"]);
            command.arg("--service-account-key-file").arg(&key);
            command.arg("--service-account-signing-key-file").arg(&key);
            command.arg("--cert-dir").arg(directory.join("certificates"));
            command.arg("--token-auth-file").arg(directory.join("tokens.csv"));
            command.args(["--authorization-mode", "RBAC", "--endpoint-reconciler-type", "none"]);
        })?;
        let kubeconfig = directory.join("kubeconfig");
        let certificate = directory.join("certificates/apiserver.crt");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "real",
            "clusters": [{"name": "real", "cluster": {
                "server": format!("https://127.0.0.1:{port}"), "certificate-authority": certificate,
            }}],
            "users": [{"name": "bench", "user": {"token": token}}],
            "contexts": [{"name": "real", "context": {"cluster": "real", "user": "bench", "namespace": "default"}}],
        });
        write_private(&kubeconfig, &config.to_string())?;
        let client = connect(&kubeconfig, &certificate, clock).await?;
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        for definition in stillpoint_api::crd::all() {
            definitions
                .create(&PostParams::default(), &definition)
                .await
                .present("create the definitions")?;
        }
        let watched = Arc::new(Mutex::new(Watched::default()));
        let watching = tokio::spawn(note(client.clone(), Arc::clone(&watched), clock.clone()));
        Ok(Self { etcd, server, directory, kubeconfig, client, made: Vec::new(), watched, watching })
    }

    /// Makes the population as it would be at `now`.
    ///
    /// # Errors
    /// The API server's.
    pub async fn load(&mut self, policies: usize, points: usize, now: jiff::Timestamp) -> Outcome<()> {
        let spaces: Api<Namespace> = Api::all(self.client.clone());
        for name in namespaces(policies).into_iter().chain([RAW.to_owned()]) {
            let space = object::<Namespace>(json!({"metadata": {"name": name}}), "v1", "Namespace")?;
            spaces.create(&PostParams::default(), &space).await.present("create a namespace")?;
        }
        let client = &self.client;
        let made = members(policies, now).map(|member| async move {
            let policy: BackupPolicy = create(client, member.policy(), "BackupPolicy").await?;
            let member = member.known_as(policy.metadata.uid.present("read the UID of a policy")?);
            for back in 0..points {
                let _: Backup = create(client, member.point(back), "Backup").await?;
            }
            Ok::<_, Problem>(member)
        });
        self.made = stream::iter(made).buffered(AT_ONCE).try_collect().await?;
        self.settled(policies * points).await
    }

    /// Waits until the watch has shown so many Backups.
    async fn settled(&self, backups: usize) -> Outcome<()> {
        for _ in 0..600 {
            if self.watched().known.len() >= backups {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(Problem("the bench's own watch does not show the Backups that were created".to_owned()))
    }

    /// Changes specs as users would; how many.
    ///
    /// # Errors
    /// The API server's.
    pub async fn edit(&self, change: impl Fn(&Member) -> Option<Value>) -> Outcome<usize> {
        let edits = self.made.iter().filter_map(|member| Some((member, change(member)?)));
        let edits = edits.map(|(member, fields)| async move {
            let api: Api<BackupPolicy> = Api::namespaced(self.client.clone(), &member.namespace);
            let patch = Patch::Merge(json!({"spec": fields}));
            api.patch(&member.name, &PatchParams::default(), &patch).await.present("edit a policy")
        });
        let edited: Vec<BackupPolicy> = stream::iter(edits).buffer_unordered(AT_ONCE).try_collect().await?;
        Ok(edited.len())
    }

    /// Gives every policy that is not a minutely one this schedule.
    ///
    /// # Errors
    /// The API server's.
    pub async fn schedule(&self, cron: &str) -> Outcome<usize> {
        let schedule = json!({"schedule": {"cron": cron, "timeZone": "Etc/UTC"}});
        self.edit(|member| (member.class != Class::Minutely).then(|| schedule.clone())).await
    }

    /// Suspends or resumes the minutely ones.
    ///
    /// # Errors
    /// The API server's.
    pub async fn suspend(&self, suspend: bool) -> Outcome<usize> {
        self.edit(|member| (member.class == Class::Minutely).then(|| json!({"suspend": suspend}))).await
    }

    /// Removes what the raw measurement made.
    ///
    /// # Errors
    /// The API server's.
    pub async fn purge(&self) -> Outcome<()> {
        let raw: Api<Backup> = Api::namespaced(self.client.clone(), RAW);
        raw.delete_collection(&DeleteParams::default(), &ListParams::default())
            .await
            .present("remove the raw Backups")?;
        while !raw.list_metadata(&ListParams::default().limit(1)).await.present("list")?.items.is_empty() {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// How many Backups were created since they were taken.
    pub fn count(&self) -> usize {
        self.watched().created.len()
    }

    /// Takes them.
    pub fn take(&self) -> Vec<Created> {
        std::mem::take(&mut self.watched().created)
    }

    fn watched(&self) -> std::sync::MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The two processes.
    pub fn ids(&self) -> Vec<u32> {
        [self.etcd.id(), self.server.id()].into_iter().flatten().collect()
    }

    /// Ends both and removes what they wrote.
    pub async fn end(mut self) {
        self.watching.abort();
        for child in [&mut self.server, &mut self.etcd] {
            let _ = child.kill().await;
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Notes each Backup when the watch shows it first: a moment after it was created, never before.
async fn note(client: Client, watched: Arc<Mutex<Watched>>, clock: SharedClock) {
    let backups: Api<PartialObjectMeta<Backup>> = Api::all(client);
    let config = watcher::Config::default().page_size(PAGE);
    let mut events = pin!(watcher(backups, config).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(backup) | Event::InitApply(backup)) => {
                let metadata = backup.metadata;
                let (Some(uid), Some(namespace), Some(name)) =
                    (metadata.uid, metadata.namespace, metadata.name)
                else {
                    continue;
                };
                let mut watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
                if watched.known.insert(uid) {
                    watched.created.push(Created { at: clock.wall().as_microsecond(), namespace, name });
                }
            }
            Ok(Event::Init | Event::InitDone | Event::Delete(_)) => {}
            Err(error) => eprintln!("bench-scale: the bench's own watch failed and is retried: {error}"),
        }
    }
}

fn object<K: DeserializeOwned>(mut value: Value, version: &str, kind: &str) -> Outcome<K> {
    value["apiVersion"] = json!(version);
    value["kind"] = json!(kind);
    serde_json::from_value(value).present("make an object")
}

/// Creates an object with its status, as two requests: a server takes no status with the first one.
async fn create<K>(client: &Client, value: Value, kind: &str) -> Outcome<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned + Clone,
    K: Serialize + std::fmt::Debug,
{
    let status = value["status"].clone();
    let wanted: K = object(value, "stillpoint.dev/v1alpha1", kind)?;
    let meta = wanted.meta().clone();
    let (namespace, name) = (meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default());
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    api.create(&PostParams::default(), &wanted).await.present("create an object of the population")?;
    let patch = Patch::Merge(json!({"status": status}));
    api.patch_status(&name, &PatchParams::default(), &patch).await.present("write a status of the population")
}

async fn connect(kubeconfig: &Path, certificate: &Path, clock: &SharedClock) -> Outcome<Client> {
    let begun = clock.mono();
    loop {
        // The server makes its certificate when it starts.
        if certificate.exists() {
            let client = api_client(config(kubeconfig).await?).present("make a client")?;
            let spaces: Api<Namespace> = Api::all(client.clone());
            if spaces.get("kube-system").await.is_ok() {
                return Ok(client);
            }
        }
        if clock.mono().since(begun) > UP_WITHIN {
            return Err(Problem(format!(
                "kube-apiserver did not come up within {UP_WITHIN:?}; see its log beside {}",
                kubeconfig.display()
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A configuration without retries: the bench counts requests.
///
/// # Errors
/// The file cannot be read.
pub async fn config(kubeconfig: &Path) -> Outcome<kube::Config> {
    let file = Kubeconfig::read_from(kubeconfig).present("read the kubeconfig")?;
    let mut config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .present("read the kubeconfig")?;
    config.default_retry = false;
    Ok(config)
}

fn spawn(directory: &Path, program: &str, arguments: impl FnOnce(&mut Command)) -> Outcome<Child> {
    let log = File::create(directory.join(format!("{program}.log"))).present("open a log")?;
    let errors = log.try_clone().present("open a log")?;
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(log).stderr(errors).kill_on_drop(true);
    arguments(&mut command);
    command.spawn().present(&format!("start {program} (tests/cluster/cluster build makes it)"))
}

/// Ports that are free now.
fn free_ports<const N: usize>() -> Outcome<[u16; N]> {
    let mut held = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let probe = TcpListener::bind("127.0.0.1:0").present("find a free port")?;
        *port = probe.local_addr().present("find a free port")?.port();
        held.push(probe);
    }
    Ok(ports)
}

fn secret() -> Outcome<String> {
    use std::io::Read as _;
    let mut bytes = [0; 16];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).present("make a token")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn write_private(path: &Path, text: &str) -> Outcome<()> {
    use std::io::Write as _;
    let file = File::options().create(true).truncate(true).write(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).present("write credentials")
}
