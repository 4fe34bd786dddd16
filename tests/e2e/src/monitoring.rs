//! Prometheus and Alertmanager as users run them: Debian's servers, the shipped rules, and somebody who is paged.
//!
//! `make e2e` unpacks both packages into `prometheus/` of the target folder; nothing is installed and no service is started.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::controller::{free_address, get};
use crate::wait::{Look, until};
use crate::{Outcome, Present as _, Problem, fail};

/// From start to ready, of either server.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// Where Debian's packages were unpacked.
#[derive(Clone, Debug)]
pub struct Tools(PathBuf);

impl Tools {
    /// The tools below the target folder.
    ///
    /// # Errors
    /// They are not there.
    pub fn find() -> Outcome<Self> {
        let own = std::env::current_exe()?;
        // target/debug/deps/e2e-…
        let target = own.ancestors().nth(3).present("the target folder")?;
        let tools = Self(target.join("prometheus/usr/bin"));
        for name in ["prometheus", "promtool", "prometheus-alertmanager", "amtool"] {
            if !tools.path(name).exists() {
                fail!(
                    "there is no {}: run the suite with `make e2e`, which unpacks it",
                    tools.path(name).display()
                );
            }
        }
        Ok(tools)
    }

    /// The path of one.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// One alert in a notification.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Alert {
    /// `firing` or `resolved`.
    pub status: String,
    /// Its labels.
    pub labels: std::collections::BTreeMap<String, String>,
}

impl Alert {
    /// A label's value, empty without one.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

#[derive(Deserialize)]
struct Notification {
    alerts: Vec<Alert>,
}

/// A Prometheus that scrapes the controller, an Alertmanager that it tells, and a receiver that Alertmanager pages.
#[derive(Debug)]
pub struct Monitoring {
    tools: Tools,
    targets: PathBuf,
    scraped: Option<SocketAddr>,
    alertmanager_address: SocketAddr,
    paged: Arc<Mutex<Vec<Alert>>>,
    receiver: JoinHandle<()>,
    _prometheus: Child,
    _alertmanager: Child,
}

impl Drop for Monitoring {
    fn drop(&mut self) {
        self.receiver.abort();
    }
}

impl Monitoring {
    /// Starts both servers with the rules as they are shipped, and the receiver.
    ///
    /// # Errors
    /// One does not start.
    pub async fn start(rules: &Path, out: &Path) -> Outcome<Self> {
        let tools = Tools::find()?;
        let folder = out.join("monitoring");
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(&folder)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let webhook = format!("http://{}/", listener.local_addr()?);
        let paged = Arc::new(Mutex::new(Vec::new()));
        let receiver = tokio::spawn(receive(listener, Arc::clone(&paged)));

        // Every group of alerts is told at once: what Alertmanager waits for is not under test.
        let config = json!({
            "route": {"receiver": "pager", "group_by": ["alertname", "namespace", "policy"],
                      "group_wait": "1s", "group_interval": "1s", "repeat_interval": "1h"},
            "receivers": [{"name": "pager", "webhook_configs": [{"url": webhook, "send_resolved": true}]}],
        });
        std::fs::write(folder.join("alertmanager.yml"), config.to_string())?;
        let alertmanager_address = free_address()?;
        // Debian's Alertmanager opens a template in /usr/share. It gets a view of the file system in which that is the package's.
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", "mount --bind \"$0\" /usr/share && exec \"$@\""])
            .arg(tools.path("../share"))
            .arg(tools.path("prometheus-alertmanager"))
            .arg(format!("--config.file={}", folder.join("alertmanager.yml").display()))
            .arg(format!("--storage.path={}", folder.join("alertmanager").display()))
            .arg(format!("--web.listen-address={alertmanager_address}"))
            .arg("--cluster.listen-address=");
        let alertmanager = begin(command, &folder.join("alertmanager.log"), alertmanager_address).await?;

        let targets = folder.join("targets.json");
        std::fs::write(&targets, "[]")?;
        let config = json!({
            "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
            "rule_files": [rules],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager_address]}]}]},
            "scrape_configs": [{"job_name": "stillpoint", "file_sd_configs": [{"files": [targets]}]}],
        });
        std::fs::write(folder.join("prometheus.yml"), config.to_string())?;
        let address = free_address()?;
        let mut command = Command::new(tools.path("prometheus"));
        command
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("series").display()))
            .arg(format!("--web.listen-address={address}"));
        let prometheus = begin(command, &folder.join("prometheus.log"), address).await?;
        Ok(Self {
            tools,
            targets,
            scraped: None,
            alertmanager_address,
            paged,
            receiver,
            _prometheus: prometheus,
            _alertmanager: alertmanager,
        })
    }

    /// Makes Prometheus scrape this controller.
    ///
    /// # Errors
    /// The file of targets cannot be written.
    pub fn scrape(&mut self, controller: SocketAddr) -> Outcome {
        if self.scraped != Some(controller) {
            // Renamed into place: Prometheus reads it whenever it changes.
            let new = self.targets.with_extension("new");
            std::fs::write(&new, json!([{"targets": [controller]}]).to_string())?;
            std::fs::rename(&new, &self.targets)?;
            self.scraped = Some(controller);
        }
        Ok(())
    }

    /// Every alert the receiver was told of, in order.
    pub fn paged(&self) -> Vec<Alert> {
        self.paged.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What `amtool alert` prints: the alerts that fire now.
    ///
    /// # Errors
    /// It fails.
    pub async fn amtool(&self) -> Outcome<String> {
        let mut command = Command::new(self.tools.path("amtool"));
        command
            .arg("alert")
            .arg(format!("--alertmanager.url=http://{}", self.alertmanager_address))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = command.output().await?;
        if !output.status.success() {
            fail!("amtool alert: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Starts a server and waits until it says that it is ready.
async fn begin(mut command: Command, log: &Path, address: SocketAddr) -> Outcome<Child> {
    let file = std::fs::File::create(log)?;
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .kill_on_drop(true);
    let mut child = command.spawn()?;
    until(&format!("the server of {} to be ready", log.display()), READY_WITHIN, async || {
        if let Some(status) = child.try_wait()? {
            return Err(Problem(format!("it ended at once: {status}; see {}", log.display())));
        }
        Ok(match get(address, "/-/ready").await {
            Ok((200, _)) => Look::Done(()),
            Ok((code, body)) => Look::NotYet(format!("{code} {body}")),
            Err(problem) => Look::NotYet(problem.0),
        })
    })
    .await?;
    Ok(child)
}

/// Serves Alertmanager's webhook for ever.
async fn receive(listener: TcpListener, paged: Arc<Mutex<Vec<Alert>>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        // What is no notification is not counted; the case that waits for it says so.
        if let Ok(Some(alerts)) =
            tokio::time::timeout(Duration::from_secs(10), notification(&mut stream)).await
        {
            paged.lock().unwrap_or_else(PoisonError::into_inner).extend(alerts);
        }
    }
}

async fn notification(stream: &mut TcpStream) -> Option<Vec<Alert>> {
    let mut read = Vec::new();
    let body = loop {
        if let Some(body) = whole_body(&read) {
            break body;
        }
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    };
    let told: Notification = serde_json::from_slice(body).ok()?;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await.ok()?;
    Some(told.alerts)
}

/// The body of a request, once all of it was read.
fn whole_body(read: &[u8]) -> Option<&[u8]> {
    let end = read.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&read[..end]).ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    })?;
    read[end + 4..].get(..length)
}
