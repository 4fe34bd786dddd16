//! A writer that commits one row after the other and writes down when each was acknowledged.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::container::{Container, signal_group};

/// One acknowledged commit.
#[derive(Clone, Copy, Debug)]
pub struct Ack {
    /// Its number.
    pub row: u64,
    /// When it was begun.
    pub begun: Instant,
    /// When it was acknowledged.
    pub acked: Instant,
}

/// Commits a row; `false` or an error: it was refused.
pub type Commit = Box<dyn FnMut(u64) -> Outcome<()> + Send>;

/// A running writer.
pub struct Writer {
    stop: Arc<AtomicBool>,
    acks: Arc<Mutex<Vec<Ack>>>,
    refused: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts, and waits for the first commit.
    pub fn start(mut commit: Commit, first: u64) -> Outcome<Self> {
        let (stop, acks) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let refused = Arc::new(Mutex::new(Vec::new()));
        let (stopping, kept, errors) = (Arc::clone(&stop), Arc::clone(&acks), Arc::clone(&refused));
        let thread = std::thread::spawn(move || {
            let mut row = first;
            while !stopping.load(Ordering::Relaxed) {
                let begun = Instant::now();
                match commit(row) {
                    Ok(()) => {
                        let ack = Ack { row, begun, acked: Instant::now() };
                        kept.lock().unwrap_or_else(PoisonError::into_inner).push(ack);
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    Err(why) => {
                        errors.lock().unwrap_or_else(PoisonError::into_inner).push(why);
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
                // A refused row may have been committed all the same, so that its number is not used again.
                row += 1;
            }
        });
        let writer = Self { stop, acks, refused, thread: Some(thread) };
        writer.first_after(Instant::now(), Duration::from_secs(60))?;
        Ok(writer)
    }

    /// Everything acknowledged so far.
    pub fn acks(&self) -> Vec<Ack> {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How long after `instant` the first commit that was acknowledged then came.
    pub fn first_after(&self, instant: Instant, limit: Duration) -> Outcome<Duration> {
        let until = Instant::now() + limit;
        loop {
            if let Some(ack) = self.acks().iter().find(|ack| ack.acked > instant) {
                return Ok(ack.acked - instant);
            }
            if Instant::now() > until {
                let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
                return Err(format!("no commit within {limit:?}; refused: {:?}", refused.last()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A client that reads statements from a pipe and answers each with a line `ok ROW`.
pub struct Piped {
    child: Child,
    stdin: ChildStdin,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Piped {
    /// Starts the client.
    pub fn start(container: &Container, argv: &[&str], first: &str) -> Outcome<Self> {
        let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
        let mut child = container
            .command(&argv)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("{argv:?}: {error}"))?;
        let mut stdin = child.stdin.take().ok_or("no stdin")?;
        let lines = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines();
        stdin.write_all(first.as_bytes()).map_err(|error| error.to_string())?;
        Ok(Self { child, stdin, lines })
    }

    /// Sends a text and waits for the line `ok ROW`.
    pub fn commit(&mut self, text: &str, row: u64) -> Outcome<()> {
        self.stdin.write_all(text.as_bytes()).map_err(|error| error.to_string())?;
        let wanted = format!("ok {row}");
        for line in self.lines.by_ref() {
            // Shells print a prompt before their answer.
            if line.map_err(|error| error.to_string())?.ends_with(&wanted) {
                return Ok(());
            }
        }
        Err("the writer's client ended".into())
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        signal_group(self.child.id(), "KILL");
        let _ = self.child.wait();
    }
}
