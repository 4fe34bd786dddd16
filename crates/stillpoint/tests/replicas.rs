//! Two controllers as real processes on one embedded API server: who leads, what they say about it, and what signals do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::PostParams;
use serde_json::Value;
use stillpoint_api::clock::{Clock as _, SystemClock};
use stillpoint_simcluster::{SimCluster, SimOptions};

/// How long anything but a failover may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(30);
/// The lease of 15 s and two seconds.
const REPLACED_WITHIN: Duration = Duration::from_secs(17);

struct Controller {
    child: Child,
    address: SocketAddr,
}

impl Controller {
    fn start(kubeconfig: &Path, replica: &str) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        // A log that cannot be written, as on a full disk, costs its lines and nothing else.
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
            .args(["controller", "--replica", replica, "--lease-namespace", "default"])
            .args(["--metrics-address", &address.to_string()])
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .stderr(full)
            .spawn()
            .unwrap();
        Self { child, address }
    }

    /// The body of an endpoint that answers 200.
    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.0 200").then(|| body.to_owned())
    }

    fn ready(&self) -> bool {
        self.get("/readyz").is_some()
    }

    fn leads(&self) -> bool {
        let metrics = self.get("/metrics").unwrap_or_default();
        assert!(metrics.is_empty() || metrics.contains("\nstillpoint_leader "), "{metrics}");
        metrics.contains("\nstillpoint_leader 1\n")
    }

    fn state(&self) -> Value {
        serde_json::from_str(&self.get("/debug/state").unwrap()).unwrap()
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn terminate(mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.child.wait().unwrap()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `done`; how long that took.
async fn until(what: &str, done: impl Fn() -> bool) -> Duration {
    let clock = SystemClock::new();
    while !done() {
        assert!(clock.mono().since_origin() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    clock.mono().since_origin()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_controllers_leads_and_the_other_follows_after_sigkill_and_after_sigterm() {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("replicas-{}", std::process::id()));
    let cluster = SimCluster::start(SimOptions::api_only(&root)).await.unwrap();
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client());
    for definition in stillpoint_api::crd::all() {
        definitions.create(&PostParams::default(), &definition).await.unwrap();
    }
    let kubeconfig = root.join("kubeconfig");
    std::fs::write(&kubeconfig, cluster.kubeconfig_yaml()).unwrap();

    let first = Controller::start(&kubeconfig, "first");
    until("the first leads", || first.leads()).await;
    let second = Controller::start(&kubeconfig, "second");
    until("both are ready", || first.ready() && second.ready()).await;
    assert!(first.leads() && !second.leads());
    until("the second sees who leads", || second.state()["leader"] == first.state()["replica"]).await;
    let (one, other) = (first.state(), second.state());
    assert_eq!((&one["leads"], &other["leads"]), (&Value::Bool(true), &Value::Bool(false)));
    assert!(one["replica"].as_str().unwrap().starts_with("first_"), "{one}");

    first.kill();
    let took = until("the second leads", || second.leads()).await;
    assert!(took <= REPLACED_WITHIN, "{took:?}");
    assert!(second.ready());

    let third = Controller::start(&kubeconfig, "third");
    until("the third is ready", || third.ready()).await;
    assert!(!third.leads());
    assert!(second.terminate().success());
    let took = until("the third leads", || third.leads()).await;
    assert!(took < Duration::from_secs(5), "the Lease was let go, and yet it took {took:?}");
    assert!(third.terminate().success());
    cluster.shutdown().await.unwrap();
    std::fs::remove_dir_all(root).ok();
}
