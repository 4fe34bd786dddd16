//! Processes of this machine: signals to them, and the clients inside pods, which are processes of this machine too.

use tokio::process::Command;

use crate::{Outcome, Problem};

/// Sends a signal (`KILL`, `STOP`, `CONT`, `TERM`) to a process.
///
/// # Errors
/// There is no such process.
pub async fn send_signal(pid: u32, signal: &str) -> Outcome {
    send_signals(&[pid], signal).await
}

/// Sends a signal to several processes at once: none has the time to notice that another has ended.
///
/// # Errors
/// One of them is not there.
pub async fn send_signals(pids: &[u32], signal: &str) -> Outcome {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let status =
        Command::new("kill").arg(format!("-{signal}")).args(&pids).kill_on_drop(true).status().await?;
    if status.success() { Ok(()) } else { Err(Problem(format!("kill -{signal} {pids:?}: {status}"))) }
}

/// Processes in the containers of a pod whose command line has all of these words.
///
/// # Errors
/// The process table cannot be read.
pub fn processes_in(pod_uid: &str, words: &[&str]) -> Outcome<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process may end while it is looked at.
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if !words.iter().all(|word| line.contains(word)) {
            continue;
        }
        let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        // The cgroupfs driver keeps the dashes, systemd's makes them underscores.
        if groups.contains(pod_uid) || groups.contains(&pod_uid.replace('-', "_")) {
            found.push(pid);
        }
    }
    Ok(found)
}
