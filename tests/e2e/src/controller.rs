//! The product's controller as a child process, with a token of its own ServiceAccount and nothing else.

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
use crate::network::Network;
use crate::process::send_signal;
use crate::wait::{Look, until};
use crate::{Outcome, Present as _, Problem};

/// Where the controller's account lives (deploy/base).
const NAMESPACE: &str = "stillpoint-system";
const ACCOUNT: &str = "stillpoint-controller";
/// Longer than the suite takes.
const TOKEN_SECONDS: i64 = 2 * 3600;
/// From start to listed.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// A stopping controller waits 20 s for its runs at most.
const STOP_WITHIN: Duration = Duration::from_secs(30);

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
    /// Where it serves metrics.
    pub address: SocketAddr,
    /// Its log.
    pub log: PathBuf,
    child: Child,
}

impl Controller {
    /// Starts it and waits until it is ready.
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
        let log = out.join(format!("controller-{number}.log"));
        let file = File::create(&log)?;
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
        let child = command.spawn().map_err(|error| Problem(format!("{}: {error}", binary.display())))?;
        let mut controller = Self { start, address, log, child };
        controller.ready().await?;
        Ok(controller)
    }

    async fn ready(&mut self) -> Outcome {
        until("the controller to be ready", READY_WITHIN, async || {
            if let Some(status) = self.child.try_wait()? {
                return Err(Problem(format!("the controller ended at once: {status}")));
            }
            Ok(match get(self.address, "/readyz").await {
                Ok((200, _)) => Look::Done(()),
                Ok((code, body)) => Look::NotYet(format!("{code} {body}")),
                Err(problem) => Look::NotYet(problem.0),
            })
        })
        .await
    }

    /// What it serves at `/metrics`.
    ///
    /// # Errors
    /// It does not answer with 200.
    pub async fn metrics(&self) -> Outcome<String> {
        match get(self.address, "/metrics").await? {
            (200, text) => Ok(text),
            (code, text) => Err(Problem(format!("/metrics answered {code}: {text}"))),
        }
    }

    /// Its memory.
    ///
    /// # Errors
    /// It does not run.
    pub fn memory(&self) -> Outcome<Memory> {
        let pid = self.child.id().present("the controller's pid")?;
        let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).present(name)
        };
        Ok(Memory { resident: field("VmRSS:")?, peak: field("VmHWM:")? })
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it as a crash does. Returns when it is gone.
    ///
    /// # Errors
    /// It had ended before.
    pub async fn crash(mut self) -> Outcome {
        if !self.runs() {
            return Err(Problem("the controller had ended before it was killed".into()));
        }
        self.child.kill().await.map_err(Problem::from)
    }

    /// Sends SIGTERM and does not wait.
    ///
    /// # Errors
    /// It does not run.
    pub async fn terminate(&self) -> Outcome {
        self.signal("TERM").await
    }

    /// Sends a signal and does not wait.
    ///
    /// # Errors
    /// It does not run.
    pub async fn signal(&self, signal: &str) -> Outcome {
        // `ip netns exec` replaces itself by what it runs: the pid is the controller's in either case.
        let pid = self.child.id().present("the controller's pid")?;
        send_signal(pid, signal).await
    }

    /// Waits for it to end.
    ///
    /// # Errors
    /// It does not end in time.
    pub async fn ended(mut self) -> Outcome<ExitStatus> {
        match tokio::time::timeout(STOP_WITHIN, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => Err(Problem(format!("the controller did not end within {STOP_WITHIN:?} of SIGTERM"))),
        }
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
fn free_address() -> Outcome<SocketAddr> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?)
}

/// GET over plain HTTP: status and body.
async fn get(address: SocketAddr, path: &str) -> Outcome<(u16, String)> {
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
