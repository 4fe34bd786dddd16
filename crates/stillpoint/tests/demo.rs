//! The demo as people start it: its proof, and that it leaves nothing behind however it is stopped.
#![cfg(feature = "demo")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A demo that runs, and its directory as soon as it has said so.
struct Demo {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
    said: String,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
            .arg("demo")
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out, said: String::new() }
    }

    /// Reads until a line has this in it.
    fn read_until(&mut self, wanted: &str) {
        loop {
            let start = self.said.len();
            let read = self.out.read_line(&mut self.said).unwrap();
            assert_ne!(read, 0, "{wanted:?} was never said:\n{}", self.said);
            if self.said[start..].contains(wanted) {
                return;
            }
        }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// The exit code, everything it said, and what it said to stderr.
    fn end(mut self) -> (Option<i32>, String, String) {
        self.out.read_to_string(&mut self.said).unwrap();
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (self.child.wait().unwrap().code(), self.said, errors)
    }
}

fn directory(said: &str) -> PathBuf {
    let from = said.find("/tmp/stillpoint-demo-").expect("the directory is named");
    let end = said[from..].find(|letter: char| !letter.is_alphanumeric() && !"/-".contains(letter)).unwrap();
    PathBuf::from(&said[from..from + end])
}

/// Processes that have something to do with this directory, by command line, environment or working directory.
fn processes(directory: &std::path::Path) -> Vec<String> {
    let wanted = directory.display().to_string();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|entry| {
            let reads = |name: &str| {
                let content = std::fs::read(entry.path().join(name)).unwrap_or_default();
                String::from_utf8_lossy(&content).contains(&wanted)
            };
            let place = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            reads("cmdline") || reads("environ") || place.starts_with(directory)
        })
        .map(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            format!("{:?} {}", entry.file_name(), String::from_utf8_lossy(&line))
        })
        .collect()
}

fn assert_nothing_left(directory: &std::path::Path) {
    let left = processes(directory);
    assert!(left.is_empty(), "{left:#?}");
    assert!(!directory.exists(), "{} is still there", directory.display());
}

#[test]
#[ignore = "needs PostgreSQL's server programs: apt-get install postgresql"]
fn the_demo_proves_every_commit_and_leaves_nothing() {
    let (code, said, errors) = Demo::start(&["--no-wait-slot"]).end();
    assert_eq!(code, Some(0), "{said}\n{errors}");
    for part in [
        "the first FREEZE is sent",
        "Verdict: 10 proven, 0 missing",
        "RPO now",
        "commits acknowledged before FROZEN are in",
    ] {
        assert!(said.contains(part), "{part:?} is missing in\n{said}");
    }
    let too_wide: Vec<&str> = said.lines().filter(|line| line.chars().count() > 100).collect();
    assert!(too_wide.is_empty() && !said.contains('\u{1b}'), "{too_wide:#?}");
    assert_nothing_left(&directory(&said));
}

#[test]
#[ignore = "needs PostgreSQL's server programs: apt-get install postgresql"]
fn ctrl_c_at_any_step_leaves_nothing() {
    for (signal, moment) in [
        ("-INT", "A cluster"),
        ("-INT", "tests/cluster is the real one"),
        ("-TERM", "fsync is on"),
        ("-INT", "A policy"),
        ("-INT", "at-once  Pending"),
        ("-HUP", "at-once  Freezing"),
        ("-INT", "The next slot"),
    ] {
        let mut demo = Demo::start(&[]);
        demo.read_until(moment);
        demo.signal(signal);
        let (code, said, errors) = demo.end();
        assert_eq!(code, Some(1), "{moment}: {said}\n{errors}");
        assert!(errors.contains("the demo was stopped"), "{moment}: {errors}");
        assert!(said.contains("Cleaned up"), "{moment}: {said}");
        assert_nothing_left(&directory(&said));
    }
}

#[test]
#[ignore = "needs PostgreSQL's server programs: apt-get install postgresql"]
fn killed_it_leaves_files_but_no_process() {
    let mut demo = Demo::start(&[]);
    demo.read_until("The next slot");
    let directory = directory(&demo.said);
    assert!(processes(&directory).len() > 3, "the database and the controller run");
    demo.signal("-KILL");
    let (code, ..) = demo.end();
    assert_eq!(code, None);
    for _ in 0..200 {
        if processes(&directory).is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let left = processes(&directory);
    std::fs::remove_dir_all(&directory).unwrap();
    assert!(left.is_empty(), "{left:#?}");
}
