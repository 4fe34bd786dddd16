//! Clients of the database that never rest, and a log of every commit they were told about.
//!
//! Guarantee: an entry of the log means that the server acknowledged the commit before the entry's time.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stillpoint_api::clock::SharedClock;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::postgres::PSQL;
use super::proof::{Log, amount};

/// How many.
pub const WRITERS: usize = 3;
/// Between two transactions of a writer: busy, but the machine is left to others too.
const PAUSE: Duration = Duration::from_millis(2);

/// Running writers. Dropped, they end at once.
pub struct Writers {
    logs: Vec<Arc<Mutex<Log>>>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Writers {
    /// Starts them.
    pub fn start(psql: &Path, sockets: &Path, clock: &SharedClock) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let logs: Vec<Arc<Mutex<Log>>> = (0..WRITERS).map(|_| Arc::default()).collect();
        for (writer, log) in logs.iter().enumerate() {
            let (log, clock, stopped) = (Arc::clone(log), Arc::clone(clock), stopped.clone());
            let (psql, sockets) = (psql.to_owned(), sockets.to_owned());
            tasks.spawn(async move {
                if let Err(why) = write(writer, (psql, sockets), &log, &clock, stopped).await {
                    lock(&log).failed = Some(why);
                }
            });
        }
        Self { logs, stop, tasks }
    }

    /// What they did so far.
    pub fn logs(&self) -> Vec<Log> {
        self.logs.iter().map(|log| lock(log).clone()).collect()
    }

    /// Commits acknowledged so far.
    pub fn commits(&self) -> usize {
        self.logs.iter().map(|log| lock(log).acknowledged.len()).sum()
    }

    /// Why one of them gave up, if one did.
    pub fn failure(&self) -> Option<String> {
        self.logs.iter().find_map(|log| lock(log).failed.clone())
    }

    /// Ends them after the transaction each is in.
    pub async fn stop(mut self) -> Vec<Log> {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
        self.logs()
    }
}

fn lock(log: &Mutex<Log>) -> std::sync::MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Accounts 2w and 2w+1 belong to writer w: writers do not wait for each other.
fn transaction(writer: usize, n: u64) -> String {
    let (payer, payee, amount) = (2 * writer, 2 * writer + 1, amount(n));
    // The number comes after COMMIT: who reads it knows that the commit was acknowledged.
    format!(
        "BEGIN; UPDATE accounts SET balance = balance - {amount} WHERE id = {payer}; \
         UPDATE accounts SET balance = balance + {amount} WHERE id = {payee}; \
         INSERT INTO orders VALUES ({writer}, {n}, {amount}); COMMIT; SELECT {n};\n"
    )
}

async fn write(
    writer: usize,
    (psql, sockets): (PathBuf, PathBuf),
    log: &Mutex<Log>,
    clock: &SharedClock,
    stopped: watch::Receiver<bool>,
) -> Result<(), String> {
    // When this process dies, however, the client's input ends, and so does the client.
    let mut child = Command::new(&psql)
        .args(PSQL)
        .arg("-h")
        .arg(&sockets)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{} does not start: {error}", psql.display()))?;
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err("psql has no pipes".to_owned());
    };
    let mut answers = BufReader::new(output).lines();
    for n in 1_u64.. {
        if *stopped.borrow() {
            return Ok(());
        }
        lock(log).sent = n;
        let sent = input.write_all(transaction(writer, n).as_bytes()).await;
        let answer = match sent {
            Ok(()) => answers.next_line().await.map_err(|error| error.to_string())?,
            Err(_) => None,
        };
        match answer {
            Some(said) if said == n.to_string() => lock(log).acknowledged.push(clock.wall()),
            Some(said) => return Err(format!("psql said {said:?} instead of {n}")),
            None => {
                let mut why = String::new();
                if let Some(mut errors) = child.stderr.take() {
                    let _ = errors.read_to_string(&mut why).await;
                }
                return Err(format!("psql ended in transaction {n}: {}", why.trim()));
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}
