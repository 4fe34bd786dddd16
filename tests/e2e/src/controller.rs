//! The product's controller: as a child process, with a token of its own ServiceAccount and nothing else; or as the Deployment
//! of deploy/base ([`Deployed`]).

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;
use kube::config::Kubeconfig;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use crate::cluster::Cluster;
use crate::deployed::Deployed;
use crate::network::Network;
use crate::process::send_signal;
use crate::wait::{Look, until};
use crate::{Outcome, Present as _, Problem};

/// Where the controller's account lives (deploy/base).
pub const NAMESPACE: &str = "stillpoint-system";
const ACCOUNT: &str = "stillpoint-controller";
/// Longer than the suite takes.
const TOKEN_SECONDS: i64 = 2 * 3600;
/// From start to listed.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// A stopping controller waits 20 s for its runs at most.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// Where the controller of the suite runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// As a child of the suite: cases may start it as they like.
    Process,
    /// As deploy/base has it, from the image `cluster.local/stillpoint:1`.
    InCluster,
}

impl Place {
    /// What the environment asks for: `CONTROLLER=process` (the default) or `CONTROLLER=in-cluster`.
    ///
    /// # Errors
    /// It asks for something else.
    pub fn asked() -> Outcome<Self> {
        match std::env::var("CONTROLLER").as_deref() {
            Err(_) | Ok("" | "process") => Ok(Self::Process),
            Ok("in-cluster") => Ok(Self::InCluster),
            Ok(other) => Err(Problem(format!("CONTROLLER={other}: it is process or in-cluster"))),
        }
    }
}

/// How the next controller is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Whether it is given config/trust/cluster.yaml.
    pub trust: bool,
    /// Its name among replicas.
    pub replica: &'static str,
    /// Where it runs; in a network of its own its packets can be dropped.
    pub network: Option<Network>,
}

impl Default for Start {
    fn default() -> Self {
        Self { trust: true, replica: "e2e", network: None }
    }
}

/// Memory of a process.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Resident now, KiB.
    pub resident: u64,
    /// Resident at most so far, KiB.
    pub peak: u64,
}

/// A running controller.
#[derive(Debug)]
pub struct Controller {
    /// How it was started.
    pub start: Start,
    body: Body,
}

/// What runs.
#[derive(Debug)]
enum Body {
    /// A child of the suite, which serves metrics at this address.
    Child { child: Child, address: SocketAddr },
    /// The pods of the Deployment.
    Deployed(Deployed),
}

impl Controller {
    /// Starts it as a child process and waits until it is ready.
    ///
    /// # Errors
    /// It cannot start or does not become ready.
    pub async fn start(
        cluster: &Cluster,
        binary: &Path,
        out: &Path,
        number: u32,
        start: Start,
    ) -> Outcome<Self> {
        let kubeconfig = out.join(format!("controller-{}.kubeconfig", start.replica));
        let account = write_kubeconfig(cluster, &kubeconfig, start.network.as_ref());
        account.await.map_err(|problem| Problem(format!("a token for the controller: {}", problem.0)))?;
        let address = match &start.network {
            None => free_address()?,
            Some(network) => network.listen(),
        };
        let file = File::create(log_file(out, number))?;
        let mut command = match &start.network {
            None => Command::new(binary),
            Some(network) => network.command(binary),
        };
        command.arg("controller").args(["--metrics-address", &address.to_string()]);
        command.args([
            "--replica",
            start.replica,
            "--log-format",
            "json",
            "--log",
            "info,stillpoint_executor=debug",
        ]);
        if start.trust {
            command.arg("--storage-trust").arg(cluster.file("config/trust/cluster.yaml"));
        }
        command.env_clear().env("KUBECONFIG", &kubeconfig).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| Problem(format!("{}: {error}", binary.display())))?;
        ready(&mut child, address).await?;
        Ok(Self { start, body: Body::Child { child, address } })
    }

    /// Starts the replicas of the installed Deployment and waits until they are ready.
    ///
    /// # Errors
    /// They do not become ready, or are to be started as only a process can be.
    pub async fn deploy(cluster: &Cluster, out: &Path, number: u32, start: Start) -> Outcome<Self> {
        if start != Start::default() {
            return Err(Problem(format!("in the cluster there is no {start:?}: the case is for a process")));
        }
        let deployed = Deployed::start(cluster, &log_file(out, number)).await?;
        Ok(Self { start, body: Body::Deployed(deployed) })
    }

    /// The pods of the Deployment.
    ///
    /// # Errors
    /// It is a process.
    pub fn deployed(&mut self) -> Outcome<&mut Deployed> {
        match &mut self.body {
            Body::Deployed(deployed) => Ok(deployed),
            Body::Child { .. } => {
                Err(Problem("the controller is a process: the case is for the cluster".into()))
            }
        }
    }

    /// Where it serves metrics on this machine; none in the cluster.
    pub const fn address(&self) -> Option<SocketAddr> {
        match &self.body {
            Body::Child { address, .. } => Some(*address),
            Body::Deployed(_) => None,
        }
    }

    /// What it serves at `/metrics`; of several replicas as a query would put it together: counters added up, of facts the
    /// largest.
    ///
    /// # Errors
    /// It does not answer with 200.
    pub async fn metrics(&self) -> Outcome<String> {
        match &self.body {
            Body::Child { address, .. } => metrics_at(*address).await,
            Body::Deployed(deployed) => deployed.metrics().await,
        }
    }

    /// Its memory.
    ///
    /// # Errors
    /// It does not run, or is no process.
    pub fn memory(&self) -> Outcome<Memory> {
        let pid = self.pid()?;
        let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).present(name)
        };
        Ok(Memory { resident: field("VmRSS:")?, peak: field("VmHWM:")? })
    }

    fn pid(&self) -> Outcome<u32> {
        match &self.body {
            Body::Child { child, .. } => child.id().present("the controller's pid"),
            Body::Deployed(_) => {
                Err(Problem("several pods have no one pid: the case is for a process".into()))
            }
        }
    }

    /// Whether it still runs; of pods: whether no container ended by itself.
    pub fn runs(&mut self) -> bool {
        match &mut self.body {
            Body::Child { child, .. } => matches!(child.try_wait(), Ok(None)),
            Body::Deployed(deployed) => deployed.restarted().is_none(),
        }
    }

    /// Whether there is nothing to stop any more.
    pub fn is_over(&mut self) -> bool {
        match self.body {
            Body::Child { .. } => !self.runs(),
            Body::Deployed(_) => false,
        }
    }

    /// Ends it as a crash does, all replicas at once. Returns when it is gone.
    ///
    /// # Errors
    /// It had ended before.
    pub async fn crash(mut self) -> Outcome {
        if !self.runs() {
            return Err(Problem("the controller had ended before it was killed".into()));
        }
        match self.body {
            Body::Child { mut child, .. } => child.kill().await.map_err(Problem::from),
            Body::Deployed(deployed) => deployed.crash().await,
        }
    }

    /// Has SIGTERM sent and does not wait.
    ///
    /// # Errors
    /// It does not run.
    pub async fn terminate(&self) -> Outcome {
        match &self.body {
            Body::Child { .. } => self.signal("TERM").await,
            Body::Deployed(deployed) => deployed.terminate().await,
        }
    }

    /// Sends a signal to the process and does not wait.
    ///
    /// # Errors
    /// It does not run, or is no process.
    pub async fn signal(&self, signal: &str) -> Outcome {
        // `ip netns exec` replaces itself by what it runs: the pid is the controller's in either case.
        send_signal(self.pid()?, signal).await
    }

    /// Waits for it to end.
    ///
    /// # Errors
    /// It does not end in time.
    pub async fn ended(self) -> Outcome<ExitStatus> {
        let mut child = match self.body {
            Body::Child { child, .. } => child,
            Body::Deployed(deployed) => return deployed.ended().await,
        };
        match tokio::time::timeout(STOP_WITHIN, child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => Err(Problem(format!("the controller did not end within {STOP_WITHIN:?} of SIGTERM"))),
        }
    }
}

async fn ready(child: &mut Child, address: SocketAddr) -> Outcome {
    until("the controller to be ready", READY_WITHIN, async || {
        if let Some(status) = child.try_wait()? {
            return Err(Problem(format!("the controller ended at once: {status}")));
        }
        Ok(match get(address, "/readyz").await {
            Ok((200, _)) => Look::Done(()),
            Ok((code, body)) => Look::NotYet(format!("{code} {body}")),
            Err(problem) => Look::NotYet(problem.0),
        })
    })
    .await
}

/// The log of the `number`th controller of the suite.
pub fn log_file(out: &Path, number: u32) -> PathBuf {
    out.join(format!("controller-{number}.log"))
}

/// What is served at `/metrics` of this address.
///
/// # Errors
/// It does not answer with 200.
pub async fn metrics_at(address: SocketAddr) -> Outcome<String> {
    match get(address, "/metrics").await? {
        (200, text) => Ok(text),
        (code, text) => Err(Problem(format!("/metrics answered {code}: {text}"))),
    }
}

/// A kubeconfig with a token of the controller's account: what deploy/base allows is all it can do.
async fn write_kubeconfig(cluster: &Cluster, file: &Path, network: Option<&Network>) -> Outcome {
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let spec = TokenRequestSpec { expiration_seconds: Some(TOKEN_SECONDS), ..TokenRequestSpec::default() };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let answer = accounts.create_token_request(ACCOUNT, &PostParams::default(), &request).await?;
    let token = answer.status.present("the token")?.token;
    let admin = Kubeconfig::read_from(&cluster.kubeconfig)?;
    let mut server = admin.clusters.first().present("a cluster in the kubeconfig")?.clone();
    if let (Some(network), Some(cluster)) = (network, &mut server.cluster) {
        cluster.server = Some(network.server().to_owned());
    }
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "controller",
        "contexts": [{"name": "controller", "context": {"cluster": server.name, "user": "controller", "namespace": NAMESPACE}}],
        "clusters": [server],
        "users": [{"name": "controller", "user": {"token": token}}],
    });
    let mut options = OpenOptions::new();
    let mut opened = options.write(true).create(true).truncate(true).mode(0o600).open(file)?;
    std::io::Write::write_all(&mut opened, config.to_string().as_bytes())?;
    Ok(())
}

/// A port that is free now.
pub(crate) fn free_address() -> Outcome<SocketAddr> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?)
}

/// GET over plain HTTP: status and body.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Outcome<(u16, String)> {
    let exchange = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), exchange).await??;
    let (head, body) = answer.split_once("\r\n\r\n").present("the end of the HTTP head")?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).present("the HTTP status")?;
    Ok((code, body.to_owned()))
}
