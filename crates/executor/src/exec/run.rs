//! One command from start to end, for prepare, probes and recovery: bounded output, one deadline, no retry.

use std::time::Duration;

use bytes::Bytes;

use super::stream::{Ending, ExecEvent, ExecHandle, SendError};
use super::{Exec, ExecError, ExecLimits, ExecTarget, Outcome, StdoutMode};

/// How much standard output of a one-shot is kept.
const MAX_STDOUT_BYTES: usize = 64 * 1024;
/// Size of one message of standard input: what `kubectl` sends, and every server takes.
const CHUNK_BYTES: usize = 32 * 1024;

/// What a finished command left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneShot {
    /// How it ended.
    pub outcome: Outcome,
    /// The beginning of its standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Whether there was more. Also an exit code 0 does not prove that all of it came.
    pub stdout_truncated: bool,
    /// The end of its standard error. For debug logs only: clients echo statements.
    pub stderr: String,
    /// From the request to the end of the stream.
    pub elapsed: Duration,
}

impl OneShot {
    /// The refusal, when the runtime could not run the command.
    pub fn refusal(&self) -> Option<ExecError> {
        match &self.outcome {
            Outcome::Failed(failure) => Some(ExecError::from_failure(failure)),
            Outcome::Exited(_) | Outcome::Unknown(_) => None,
        }
    }
}

/// Runs `target` once, writes `stdin` to it, ends its input and waits for its end, at most `timeout` in all.
///
/// At the timeout the socket is closed and the outcome is [`super::Unknown::Deadline`]: the command may still
/// run and must carry its own bound. Under protocol v4 the input cannot be ended alone, so the command has to
/// end by itself.
///
/// # Errors
/// [`ExecError`] when the stream could not be opened. A refusal that came over the open stream is in
/// [`OneShot::refusal`].
pub async fn run_once(
    exec: &dyn Exec,
    target: &ExecTarget,
    stdin: Option<Bytes>,
    timeout: Duration,
) -> Result<OneShot, ExecError> {
    let clock = exec.clock();
    let started = clock.mono();
    let limits = ExecLimits {
        close_at: Some(started + timeout),
        stdout: StdoutMode::Capture { max_bytes: MAX_STDOUT_BYTES },
        ..ExecLimits::default()
    };
    let mut handle = exec.open(target, limits).await?;
    let ending = feed_and_wait(&mut handle, target.stdin, stdin.unwrap_or_default()).await;
    let ending =
        ending.ok_or_else(|| ExecError::Other { detail: "the stream ended without an end".into() })?;
    Ok(OneShot {
        outcome: ending.outcome,
        stdout: String::from_utf8_lossy(&ending.captured).into_owned(),
        stdout_truncated: ending.stdout_bytes > u64::try_from(ending.captured.len()).unwrap_or(u64::MAX),
        stderr: ending.stderr_tail,
        elapsed: ending.at.since(started),
    })
}

async fn feed_and_wait(handle: &mut ExecHandle, connected: bool, mut rest: Bytes) -> Option<Ending> {
    let mut half_close = false;
    while let Some(event) = handle.events.next().await {
        match event {
            ExecEvent::Ended(ending) => return Some(ending),
            ExecEvent::Opened { half_close: supported, .. } => half_close = supported,
            ExecEvent::Written { .. } => {}
            ExecEvent::Line { .. } => continue,
        }
        if connected {
            // A stream that ended meanwhile says so by its last event.
            let _ = feed(handle, &mut rest, half_close);
        }
    }
    None
}

/// Sends the next piece, or ends the input after the last one.
fn feed(handle: &ExecHandle, rest: &mut Bytes, half_close: bool) -> Result<(), SendError> {
    if rest.is_empty() {
        return if half_close { handle.sender.close_stdin() } else { Ok(()) };
    }
    let chunk = rest.split_to(rest.len().min(CHUNK_BYTES));
    handle.sender.send(chunk).map(|_seq| ())
}
