//! One holder under one shell, and what can be seen of it: its lines, what its commands did, its processes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use stillpoint_api::template::{Commands, Renew};
use stillpoint_executor::hold::{Nonce, holder};

/// For what takes moments; a busy machine may take its time.
pub const SOON: Duration = Duration::from_secs(20);
pub const NONCE: &str = "k3v9k3v9k3v9k3v9";
/// Freezes and thaws: a word in the log.
pub const FREEZE: &str = "echo frozen >&9";
pub const THAW: &str = "echo thawed >&9";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shell {
    Dash,
    Ash,
    Bash,
    BashAsSh,
}

impl Shell {
    /// The program, its first words, and under which name.
    fn command(self) -> (&'static str, &'static [&'static str], &'static str) {
        match self {
            Self::Dash => ("dash", &[], "sh"),
            Self::Ash => ("busybox", &["sh"], "busybox"),
            Self::Bash => ("bash", &[], "bash"),
            Self::BashAsSh => ("bash", &[], "sh"),
        }
    }
}

/// Declares each case once per shell.
#[macro_export]
macro_rules! in_every_shell {
    ($($name:ident)+) => {
        mod dash { $(#[test] fn $name() { super::$name($crate::rig::Shell::Dash); })+ }
        mod ash { $(#[test] fn $name() { super::$name($crate::rig::Shell::Ash); })+ }
        mod bash { $(#[test] fn $name() { super::$name($crate::rig::Shell::Bash); })+ }
        mod bash_as_sh { $(#[test] fn $name() { super::$name($crate::rig::Shell::BashAsSh); })+ }
    };
}

/// What is different from two commands that work, as shell text.
pub struct Wish<'a> {
    pub freeze: &'a str,
    pub thaw: &'a str,
    pub probe: Option<&'a str>,
    pub barrier: Option<&'a str>,
    /// What renews the frozen state, and after how long that ends by itself.
    pub renew: Option<(&'a str, &'a str)>,
    /// Runs as nobody in a mount namespace in which everything is read-only.
    pub read_only: bool,
    /// The only directory with programs.
    pub path: Option<PathBuf>,
}

impl Default for Wish<'_> {
    fn default() -> Self {
        Self {
            freeze: FREEZE,
            thaw: THAW,
            probe: None,
            barrier: None,
            renew: None,
            read_only: false,
            path: None,
        }
    }
}

/// A running holder.
pub struct Rig {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    directory: PathBuf,
    mark: String,
    exit: Option<i32>,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Rig {
    pub fn with(shell: Shell, wish: &Wish<'_>) -> Self {
        let mark = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("holder-{mark}"));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("log"), "").unwrap();
        let text = |text: &str| vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()];
        let commands = Commands {
            freeze: text(wish.freeze),
            thaw: text(wish.thaw),
            probe: wish.probe.map(text).unwrap_or_default(),
            barrier: wish.barrier.map(text).unwrap_or_default(),
            renew: wish
                .renew
                .map(|(command, lease)| Renew { command: text(command), lease: lease.parse().unwrap() }),
            ..Commands::default()
        };
        let argv = holder::argv(&Nonce::try_from(NONCE.to_owned()).unwrap(), &commands);
        assert_eq!(argv[0], "sh");
        let (program, first, name) = shell.command();
        let present = Command::new(program).arg0(name).args(first).args(["-c", ":"]).status();
        assert!(
            present.is_ok_and(|status| status.success()),
            "the holder is tested in {program}: install it (`make setup` does: apt-get install {})",
            if program == "busybox" { "busybox-static" } else { program }
        );
        // Descriptor 9 is the log; it is opened before anything is made read-only.
        let into = if wish.read_only {
            let root = Command::new("id").arg("-u").output().unwrap();
            assert_eq!(
                String::from_utf8_lossy(&root.stdout).trim(),
                "0",
                "a read-only root needs a mount namespace: run this test as root"
            );
            // Every mount read-only, then a user that owns nothing.
            "unshare -m sh -c 'mount --make-rprivate / && while read -r _ at _; do mount -o remount,bind,ro \"$at\" \
             2>/dev/null; done </proc/mounts; exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"' ro"
        } else {
            ""
        };
        // Only bash can start a program under another name.
        let named = if wish.read_only || wish.path.is_some() { String::new() } else { format!("-a {name}") };
        let script = format!("exec 9>>\"$1\"; shift; exec {named} {into} \"$@\"");
        let mut command = Command::new("bash");
        command.args(["-c", &script, "rig"]).arg(directory.join("log"));
        if let Some(path) = &wish.path {
            command.args(["env", &format!("PATH={}", path.display()), found(program).to_str().unwrap()]);
        } else {
            command.arg(program);
        }
        command.args(first).args(&argv[1..]).env("HOLDER_TEST", &mark).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let errors = directory.join("stderr");
        let stderr = child.stderr.take().unwrap();
        std::thread::spawn(move || {
            let mut kept = fs::File::create(errors).unwrap();
            let mut stderr = stderr;
            let _ = std::io::copy(&mut stderr, &mut kept);
        });
        Self { child, stdin, lines, directory, mark, exit: None }
    }

    /// Two commands that work, and READY.
    pub fn ready(shell: Shell, wish: &Wish<'_>) -> Self {
        let mut rig = Self::with(shell, wish);
        assert!(rig.line().starts_with(&format!("READY {NONCE} pid=")));
        rig
    }

    /// READY, and then FROZEN for `seconds`.
    pub fn frozen(shell: Shell, wish: &Wish<'_>, seconds: u32) -> Self {
        let mut rig = Self::ready(shell, wish);
        rig.tell(&format!("freeze {NONCE} {seconds}\n"));
        let line = rig.line();
        assert!(line.starts_with(&format!("FROZEN {NONCE} 0 pid=")), "{line}");
        assert_eq!(rig.log().last().map(String::as_str), Some("frozen"));
        rig
    }

    pub fn tell(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    pub fn tell_word(&mut self, word: &str) {
        self.tell(&format!("{word} {NONCE}\n"));
    }

    pub fn end_input(&mut self) {
        self.stdin = None;
    }

    /// The next line.
    pub fn line(&mut self) -> String {
        self.line_within(SOON)
    }

    pub fn line_within(&mut self, limit: Duration) -> String {
        match self.lines.recv_timeout(limit) {
            Ok(line) => line,
            Err(why) => {
                panic!("no line within {limit:?} ({why}); log {:?}; stderr {}", self.log(), self.stderr())
            }
        }
    }

    /// The next line, or `None` when the output ends.
    pub fn line_or_end(&mut self, limit: Duration) -> Option<String> {
        match self.lines.recv_timeout(limit) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("neither a line nor the end within {limit:?}"),
        }
    }

    /// Skips evidence.
    pub fn word(&mut self) -> String {
        loop {
            let line = self.line();
            if !line.starts_with("EVIDENCE ") {
                return line;
            }
        }
    }

    /// Every line until the output ends.
    pub fn rest(&mut self) -> Vec<String> {
        let mut rest = Vec::new();
        loop {
            match self.lines.recv_timeout(SOON) {
                Ok(line) => rest.push(line),
                Err(RecvTimeoutError::Disconnected) => return rest,
                Err(RecvTimeoutError::Timeout) => panic!("the output does not end; so far {rest:?}"),
            }
        }
    }

    /// What the commands did, in order.
    pub fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.directory.join("log")).unwrap();
        log.lines().map(str::to_owned).collect()
    }

    /// Waits until the holder said this on its stderr.
    pub fn said(&self, what: &str) {
        let started = Instant::now();
        while !self.stderr().contains(what) {
            assert!(started.elapsed() < SOON, "not {what:?} but {:?}", self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(self.directory.join("stderr")).unwrap_or_default()
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Waits until the log is this.
    pub fn did(&mut self, words: &[&str]) {
        self.did_within(words, SOON);
    }

    pub fn did_within(&mut self, words: &[&str], limit: Duration) {
        let started = Instant::now();
        while self.log() != words {
            self.reap();
            assert!(started.elapsed() < limit, "not {words:?} within {limit:?} but {:?}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: &str) {
        send(signal, self.child.id());
    }

    fn reap(&mut self) {
        if self.exit.is_none()
            && let Ok(Some(status)) = self.child.try_wait()
        {
            self.exit = Some(status.code().unwrap_or(-1));
        }
    }

    /// Every process of this holder and of its commands.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let mark = format!("HOLDER_TEST={}", self.mark);
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
            if environment.split(|byte| *byte == 0).any(|one| one == mark.as_bytes()) {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ").chars().take(60).collect();
                found.push((pid, line));
            }
        }
        found
    }

    /// Waits for the end of the holder and of every process of it, and that the commands did this and no more.
    pub fn ends_having_done(mut self, words: &[&str]) -> i32 {
        let started = Instant::now();
        loop {
            self.reap();
            let left = self.processes();
            if self.exit.is_some() && left.is_empty() {
                break;
            }
            assert!(
                started.elapsed() < SOON,
                "left behind: {left:?}, exit {:?}; log {:?}; stderr {}",
                self.exit,
                self.log(),
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(self.log(), words, "stderr {}", self.stderr());
        self.exit.unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            send("KILL", pid);
        }
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn found(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).map(|one| one.join(program)).find(|one| one.is_file()).unwrap()
}

pub fn send(signal: &str, pid: u32) {
    let _ =
        Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).stderr(Stdio::null()).status();
}
