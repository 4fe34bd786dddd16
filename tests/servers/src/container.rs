//! A root directory that stands for a container: what is run in it, and the server that runs there.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;

/// Where commands run.
#[derive(Clone, Debug)]
pub struct Container {
    /// The root directory; `/` is this machine's own.
    pub root: PathBuf,
    /// Its search path for programs.
    pub path: String,
    /// Further variables, as its specification has them.
    pub env: Vec<(String, String)>,
}

/// What a command did.
#[derive(Debug)]
pub struct Done {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Container {
    /// A command in it, as the leader of a process group of its own.
    pub fn command(&self, argv: &[String]) -> Command {
        let mut command = if self.root == Path::new("/") {
            let mut command = Command::new("env");
            command.arg("-i");
            command
        } else {
            let mut command = Command::new("chroot");
            command.arg(&self.root).args(["/usr/bin/env", "-i"]);
            command
        };
        command.arg(format!("PATH={}", self.path)).arg("HOME=/root");
        command.args(self.env.iter().map(|(name, value)| format!("{name}={value}")));
        command.args(argv).process_group(0).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, argv: &[String]) -> Outcome<Done> {
        let output = self.command(argv).output().map_err(|error| format!("{argv:?}: {error}"))?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Done { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) })
    }

    /// Runs a command to its end, or kills it and what it started when that takes too long.
    pub fn run_within(&self, argv: &[String], limit: Duration) -> Outcome<Done> {
        let mut limited: Vec<String> =
            ["timeout", "-s", "KILL", &limit.as_secs().to_string()].map(str::to_owned).to_vec();
        limited.extend_from_slice(argv);
        self.run(&limited)
    }

    /// Runs a line of shell that must succeed; what it printed.
    pub fn shell(&self, line: &str) -> Outcome<String> {
        let done = self.run(&["sh".into(), "-c".into(), line.into()])?;
        if done.code == Some(0) {
            return Ok(done.stdout);
        }
        Err(format!("{line:?} ended with {:?}: {} {}", done.code, done.stdout.trim(), done.stderr.trim()))
    }

    /// A path of it, as this machine sees it.
    pub fn outside(&self, inside: &str) -> PathBuf {
        self.root.join(inside.trim_start_matches('/'))
    }

    /// Starts a server, its output in `log`.
    pub fn serve(&self, argv: &[&str], log: &Path) -> Outcome<Server> {
        let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
        let output = std::fs::File::create(log).map_err(|error| format!("{}: {error}", log.display()))?;
        let errors = output.try_clone().map_err(|error| error.to_string())?;
        let child = self
            .command(&argv)
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|error| format!("{argv:?}: {error}"))?;
        Ok(Server { child, log: log.to_owned() })
    }
}

/// A running server; it ends with this value.
#[derive(Debug)]
pub struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Stops or continues all of it, as if the machine stood still: every process, some of which lead groups of their own.
    pub fn signal(&self, signal: &str) {
        let all: Vec<String> = descendants(self.child.id()).iter().map(u32::to_string).collect();
        let _ = Command::new("kill").args(["-s", signal]).args(all).stderr(Stdio::null()).status();
        signal_group(self.child.id(), signal);
    }

    /// Waits until `ready` succeeds.
    pub fn until(&mut self, ready: impl Fn() -> Outcome<()>) -> Outcome<()> {
        let started = Instant::now();
        loop {
            let why = match ready() {
                Ok(()) => return Ok(()),
                Err(why) => why,
            };
            let ended = self.child.try_wait().ok().flatten();
            if ended.is_some() || started.elapsed() > Duration::from_secs(150) {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                return Err(format!("the server is not ready (ended: {ended:?}): {why}; its log: {tail:?}"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal("CONT");
        self.signal("KILL");
        let _ = self.child.wait();
    }
}

/// A process and everything that it started, as the kernel has it now.
fn descendants(first: u32) -> Vec<u32> {
    let parent = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(") ").next()?.split(' ').nth(1)?.parse::<u32>().ok()
    };
    let entries = std::fs::read_dir("/proc").map(Iterator::flatten).into_iter().flatten();
    let pids: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect();
    let mut all = vec![first];
    let mut at = 0;
    while at < all.len() {
        let of = all[at];
        all.extend(pids.iter().copied().filter(|pid| parent(*pid) == Some(of)));
        at += 1;
    }
    all
}

/// Sends a signal to a process group that was started here.
pub fn signal_group(leader: u32, signal: &str) {
    let group = format!("-{leader}");
    let _ = Command::new("kill").args(["-s", signal, "--", &group]).stderr(Stdio::null()).status();
}
