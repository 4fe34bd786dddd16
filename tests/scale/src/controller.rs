//! The product's controller as a child process: when it is ready, what it takes, what it says.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use stillpoint_api::clock::SharedClock;

use crate::failure::{Outcome, Present as _, Problem};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// Longest wait for anything, at the largest size.
const PATIENCE: Duration = Duration::from_secs(1800);
/// The scheduler has nothing left to do when that many looks in a row say so.
const CALM_LOOKS: u32 = 25;
/// CPU ticks in a second: fixed for programs on Linux, whatever the kernel uses.
const TICKS_PER_SECOND: f64 = 100.0;

/// How a controller is started.
#[derive(Clone, Debug)]
pub struct Options {
    binary: PathBuf,
    kubeconfig: PathBuf,
    log: PathBuf,
    replica: String,
}

impl Options {
    /// The controller of `binary`, named `replica`, with its log in `work`.
    pub fn new(binary: &Path, kubeconfig: PathBuf, work: &Path, replica: &str) -> Self {
        let log = work.join(format!("{replica}.log"));
        Self { binary: binary.to_owned(), kubeconfig, log, replica: replica.to_owned() }
    }
}

/// Memory in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// In RAM now.
    pub resident: u64,
    /// In RAM at most so far.
    pub peak: u64,
}

/// One scrape.
#[derive(Clone, Copy, Debug)]
pub struct Scrape {
    /// From the request to the first byte of the answer.
    pub first_byte: Duration,
    /// From the request to the last byte.
    pub whole: Duration,
    /// Bytes.
    pub size: usize,
    /// Series.
    pub series: usize,
}

/// A running controller. It is killed when this is dropped.
pub struct Controller {
    child: Child,
    address: SocketAddr,
    clock: SharedClock,
}

impl Controller {
    /// Starts one.
    ///
    /// # Errors
    /// The binary cannot be started.
    pub fn start(options: Options, clock: &SharedClock) -> Outcome<Self> {
        let probe = TcpListener::bind("127.0.0.1:0").present("find a free port")?;
        let address = probe.local_addr().present("find a free port")?;
        drop(probe);
        let log = File::options().create(true).append(true).open(&options.log).present("open the log")?;
        let child = Command::new(&options.binary)
            .args(["controller", "--lease-namespace", "default", "--replica", &options.replica])
            .args(["--metrics-address", &address.to_string()])
            .arg("--kubeconfig")
            .arg(&options.kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .present("start the controller")?;
        Ok(Self { child, address, clock: clock.clone() })
    }

    /// Status and body of an endpoint, if it answers, with the times of a scrape.
    fn get(&self, path: &str) -> Option<(bool, Vec<u8>, Duration, Duration)> {
        let begun = self.clock.mono();
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(120))).ok()?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").as_bytes()).ok()?;
        let mut answer = vec![0];
        stream.read_exact(&mut answer).ok()?;
        let first = self.clock.mono().since(begun);
        stream.read_to_end(&mut answer).ok()?;
        let whole = self.clock.mono().since(begun);
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
        let good = answer.starts_with(b"HTTP/1.0 200");
        Some((good, answer.split_off(end + 4), first, whole))
    }

    fn alive(&self) -> bool {
        std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))
            .is_ok_and(|stat| !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
    }

    /// Waits until `done`; how long that took.
    ///
    /// # Errors
    /// The controller ended, or it took too long.
    pub async fn until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) -> Outcome<Duration> {
        let begun = self.clock.mono();
        loop {
            if done(self) {
                return Ok(self.clock.mono().since(begun));
            }
            if !self.alive() {
                return Err(Problem(format!("the controller ended before this: {what}")));
            }
            if self.clock.mono().since(begun) > PATIENCE {
                return Err(Problem(format!("not within {PATIENCE:?}: {what}")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until `/readyz` says yes.
    ///
    /// # Errors
    /// As [`Controller::until`].
    pub async fn until_ready(&self) -> Outcome<Duration> {
        self.until("/readyz", |one| one.get("/readyz").is_some_and(|answer| answer.0)).await
    }

    /// `/debug/state`.
    pub fn state(&self) -> Value {
        let answer = self.get("/debug/state").filter(|answer| answer.0);
        answer.and_then(|answer| serde_json::from_slice(&answer.1).ok()).unwrap_or_default()
    }

    /// Whether it schedules.
    pub fn leads(&self) -> bool {
        self.state()["leads"] == true
    }

    /// Waits until it is ready and has looked at all of its policies. Since the call.
    ///
    /// # Errors
    /// As [`Controller::until`].
    pub async fn until_settled(&self, policies: usize) -> Outcome<Duration> {
        self.until_ready_and_calm(policies, false).await
    }

    /// The same, and no run is worked on.
    ///
    /// # Errors
    /// As [`Controller::until`].
    pub async fn until_idle(&self, policies: usize) -> Outcome<Duration> {
        self.until_ready_and_calm(policies, true).await
    }

    async fn until_ready_and_calm(&self, policies: usize, no_runs: bool) -> Outcome<Duration> {
        let begun = self.clock.mono();
        self.until_ready().await?;
        let (mut calm, mut since) = (0, begun);
        self.until("nothing left to do", |one| {
            let state = one.state();
            let schedule = &state["schedule"];
            let count = |field: &str| schedule[field].as_u64();
            let works = state["works"].as_array().map_or(0, Vec::len);
            // A suspended policy waits for its objective to change, every other one for its slot as well.
            let all = count("waiting").is_some_and(|waiting| waiting >= policies as u64);
            let quiet =
                state["leads"] == true && count("queued") == Some(0) && count("busy") == Some(0) && all;
            if quiet && (!no_runs || works == 0) {
                if calm == 0 {
                    since = one.clock.mono();
                }
                calm += 1;
            } else {
                calm = 0;
            }
            calm >= CALM_LOOKS
        })
        .await?;
        Ok(since.since(begun))
    }

    /// Its memory.
    ///
    /// # Errors
    /// It ended.
    pub fn memory(&self) -> Outcome<Memory> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .present("read the controller's memory")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim().trim_end_matches(" kB").parse::<u64>().map(|kib| kib * 1024)
        };
        Ok(Memory {
            resident: field("VmRSS:").present("read the controller's memory")?,
            peak: field("VmHWM:").present("read the controller's memory")?,
        })
    }

    /// CPU that it took so far, in seconds.
    ///
    /// # Errors
    /// It ended.
    pub fn cpu(&self) -> Outcome<f64> {
        cpu_of(self.child.id())
    }

    /// One scrape.
    ///
    /// # Errors
    /// It does not answer.
    pub fn scrape(&self) -> Outcome<Scrape> {
        let (good, body, first_byte, whole) = self.get("/metrics").present("scrape")?;
        if !good {
            return Err(Problem("/metrics does not answer 200".to_owned()));
        }
        let lines = body.split(|byte| *byte == b'\n');
        let series = lines.filter(|line| !line.is_empty() && !line.starts_with(b"#")).count();
        Ok(Scrape { first_byte, whole, size: body.len(), series })
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.end();
    }
}

/// CPU that a process took so far, in seconds.
///
/// # Errors
/// It ended.
pub fn cpu_of(process: u32) -> Outcome<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).present("read the CPU time")?;
    // The name, in brackets, may hold anything; user and system time are the 14th and 15th field, the 12th and 13th after it.
    let rest = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
    let ticks = rest.split(' ').skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>();
    Ok(ticks / TICKS_PER_SECOND)
}
