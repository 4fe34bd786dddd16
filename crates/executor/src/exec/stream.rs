//! The handle of an open stream, and the queue between it and the task on the socket.
//!
//! Guarantees: nothing the holder of a handle does or leaves undone can stop the task. Events are queued
//! without waiting; complete lines beyond the backlog are dropped, newest first and words of the hold protocol
//! last of all, and counted; `Opened`, `Written` and `Ended` are never dropped, and `Ended` comes exactly once and
//! last, also when the task dies.
//! A line is delivered whole or not at all: a cut piece of a long line could pass for a line of the hold
//! protocol.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use stillpoint_api::clock::{Mono, SharedClock};
use tokio::sync::{Notify, mpsc, watch};

use super::output::{Lines, Tail, TooLong, count};
use super::wire::{Outcome, Unknown, bounded};
use crate::hold::begins_with_word;

/// Longest line that is delivered: the longest the protocol needs (a GTID set in FROZEN) with room to spare.
pub const MAX_LINE_BYTES: usize = 16 * 1024;
/// Most lines that wait for the reader. A hold answers a few lines per beat of 2 s.
pub const MAX_BACKLOG_LINES: usize = 1024;
/// Most bytes of lines that wait for the reader. Lines that begin with a word of the hold protocol have as much again,
/// in both measures: no flood of other output may cost a FROZEN or a THAWED.
pub const MAX_BACKLOG_BYTES: usize = 256 * 1024;
/// How much of the end of standard error is kept for diagnosis.
pub const STDERR_TAIL_BYTES: usize = 8 * 1024;
/// Most writes that wait for the socket. A hold has one text outstanding, and a thaw behind it.
const MAX_QUEUED_WRITES: usize = 64;

/// What becomes of standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StdoutMode {
    /// Complete lines become [`ExecEvent::Line`]s.
    Lines,
    /// The first bytes are kept for [`Ending::captured`]; there are no lines.
    Capture {
        /// How many.
        max_bytes: usize,
    },
}

/// What bounds a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecLimits {
    /// The upgrade must come within this time of the request.
    pub open_within: Duration,
    /// The hard deadline; see [`ExecSender::set_close_at`]. It bounds the upgrade as well.
    pub close_at: Option<Mono>,
    /// Time between pings; the stream ends when two in a row had no answer by the next one.
    pub ping_every: Duration,
    /// What becomes of standard output.
    pub stdout: StdoutMode,
}

impl Default for ExecLimits {
    /// 10 s to open, a ping every 15 s (load balancers idle out at 4 to 6 min), no hard deadline yet, lines
    /// (docs/design/freeze.md §8).
    fn default() -> Self {
        Self {
            open_within: Duration::from_secs(10),
            close_at: None,
            ping_every: Duration::from_secs(15),
            stdout: StdoutMode::Lines,
        }
    }
}

/// What happened on a stream, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    /// The stream is open; the command has been asked for.
    Opened {
        /// When the upgrade was complete.
        at: Mono,
        /// Whether [`ExecSender::close_stdin`] leaves the output open (protocol v5).
        half_close: bool,
    },
    /// A complete line of standard output, without its newline; bytes that are not UTF-8 are replaced.
    Line {
        /// When its last byte was received.
        at: Mono,
        /// The line.
        text: String,
    },
    /// All bytes of a write were handed to the socket.
    Written {
        /// The number [`ExecSender::send`] returned.
        seq: u64,
        /// When.
        at: Mono,
    },
    /// The socket is closed and nothing more will come.
    Ended(Ending),
}

/// How a stream ended, and what is left for diagnosis. Output is for debug logs only: clients echo statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// What is known of the command.
    pub outcome: Outcome,
    /// When the socket was closed.
    pub at: Mono,
    /// The transport's words, when it broke.
    pub detail: Option<String>,
    /// The end of standard error, at most [`STDERR_TAIL_BYTES`].
    pub stderr_tail: String,
    /// All bytes of standard error that came.
    pub stderr_bytes: u64,
    /// The beginning of standard output, in [`StdoutMode::Capture`].
    pub captured: Vec<u8>,
    /// All bytes of standard output that came.
    pub stdout_bytes: u64,
    /// Lines that were too long or found the backlog full.
    pub dropped_lines: u64,
    /// Bytes after the last newline. They are no line: the command never finished it.
    pub unterminated: String,
}

/// An open stream. Dropping the sender closes the socket, which is end of input for the command.
#[derive(Debug)]
pub struct ExecHandle {
    /// Where writes and deadlines go.
    pub sender: ExecSender,
    /// Where events come from.
    pub events: ExecEvents,
}

/// The writing half of a handle; the stream lives while a clone of it does.
#[derive(Clone, Debug)]
pub struct ExecSender {
    shared: Arc<SenderShared>,
}

#[derive(Debug)]
struct SenderShared {
    control: watch::Sender<Control>,
    commands: Mutex<Commands>,
}

#[derive(Debug)]
struct Commands {
    queue: mpsc::Sender<Command>,
    next_seq: u64,
}

/// What the holder of the handle wants regardless of the order of writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// The hard deadline.
    pub close_at: Option<Mono>,
    /// Close now.
    pub close: bool,
}

/// What the task does for the holder of the handle, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Write these bytes as one message.
    Write {
        /// Number of the write, from 0.
        seq: u64,
        /// The bytes.
        bytes: Bytes,
        /// Close the stream instead when it is later than this.
        not_after: Option<Mono>,
    },
    /// End standard input.
    CloseStdin,
}

/// Why a write was not even queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The stream has ended; [`ExecEvent::Ended`] says how.
    #[error("the exec stream has ended, nothing was written")]
    Ended,
    /// The command does not read and too many writes wait.
    #[error(
        "{MAX_QUEUED_WRITES} writes wait for the exec stream, this one was refused; the command does not read"
    )]
    Full,
}

impl ExecSender {
    /// Queues `bytes` as one message behind earlier writes, without waiting. [`ExecEvent::Written`] with the
    /// returned number says that all of it was handed to the socket.
    ///
    /// # Errors
    /// [`SendError`]; nothing of it will be written then.
    pub fn send(&self, bytes: impl Into<Bytes>) -> Result<u64, SendError> {
        self.write(bytes.into(), None)
    }

    /// [`Self::send`] with a fence: if the write's turn comes later than `not_after`, nothing is written and
    /// the stream closes with [`Unknown::Fenced`] (docs/design/freeze.md §5: `SendFreeze`).
    ///
    /// # Errors
    /// [`SendError`]; nothing of it will be written then.
    pub fn send_before(&self, bytes: impl Into<Bytes>, not_after: Mono) -> Result<u64, SendError> {
        self.write(bytes.into(), Some(not_after))
    }

    /// Ends standard input behind earlier writes. Under protocol v4 that closes the whole stream, and the
    /// outcome is [`Unknown::ClosedHere`]: end the command by a line of its own protocol there.
    ///
    /// # Errors
    /// [`SendError`] when it could not be queued.
    pub fn close_stdin(&self) -> Result<(), SendError> {
        let commands = self.commands();
        commands.queue.try_send(Command::CloseStdin).map_err(refused)
    }

    /// Closes the socket now, ahead of queued writes. The command gets end of input; it is not killed.
    pub fn close(&self) {
        self.shared.control.send_modify(|control| control.close = true);
    }

    /// Sets the instant at which the task closes the socket by its own timer, whatever anyone says later
    /// (docs/design/freeze.md §3). A deadline once set can only be brought forward; the one in force is
    /// returned.
    pub fn set_close_at(&self, at: Mono) -> Mono {
        let mut in_force = at;
        self.shared.control.send_modify(|control| {
            in_force = control.close_at.map_or(at, |set| set.min(at));
            control.close_at = Some(in_force);
        });
        in_force
    }

    fn write(&self, bytes: Bytes, not_after: Option<Mono>) -> Result<u64, SendError> {
        let mut commands = self.commands();
        let seq = commands.next_seq;
        commands.queue.try_send(Command::Write { seq, bytes, not_after }).map_err(refused)?;
        commands.next_seq = seq.saturating_add(1);
        Ok(seq)
    }

    fn commands(&self) -> MutexGuard<'_, Commands> {
        self.shared.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(error: mpsc::error::TrySendError<Command>) -> SendError {
    match error {
        mpsc::error::TrySendError::Full(_) => SendError::Full,
        mpsc::error::TrySendError::Closed(_) => SendError::Ended,
    }
}

/// The reading half of a handle.
#[derive(Debug)]
pub struct ExecEvents {
    inbox: Arc<Inbox>,
}

impl ExecEvents {
    /// The next event; `None` after [`ExecEvent::Ended`]. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<ExecEvent> {
        loop {
            let woken = self.inbox.wake.notified();
            {
                let mut state = self.inbox.state();
                if let Some(event) = state.queue.pop_front() {
                    if let ExecEvent::Line { text, .. } = &event {
                        state.lines = state.lines.saturating_sub(1);
                        state.line_bytes = state.line_bytes.saturating_sub(text.len());
                    }
                    return Some(event);
                }
                if state.ended {
                    return None;
                }
            }
            woken.await;
        }
    }

    /// Lines dropped so far.
    pub fn dropped_lines(&self) -> u64 {
        self.inbox.state().dropped_lines
    }
}

#[derive(Debug, Default)]
struct Inbox {
    state: Mutex<InboxState>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct InboxState {
    queue: VecDeque<ExecEvent>,
    lines: usize,
    line_bytes: usize,
    dropped_lines: u64,
    ended: bool,
}

impl Inbox {
    fn state(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: ExecEvent) {
        let mut state = self.state();
        if let ExecEvent::Line { text, .. } = &event {
            let room = if begins_with_word(text) { 2 } else { 1 };
            if state.lines >= room * MAX_BACKLOG_LINES
                || state.line_bytes + text.len() > room * MAX_BACKLOG_BYTES
            {
                state.dropped_lines = state.dropped_lines.saturating_add(1);
                return;
            }
            state.lines += 1;
            state.line_bytes += text.len();
        }
        // Together with the event: a reader that saw the end must not wait for more.
        state.ended = matches!(event, ExecEvent::Ended(_));
        state.queue.push_back(event);
        drop(state);
        self.wake.notify_one();
    }
}

/// The task's side of a stream: takes commands, gives events. Public so that tests and the simulation can
/// play a container without a socket.
pub struct StreamSide {
    /// Writes, in order. `None` once every sender is gone.
    pub commands: mpsc::Receiver<Command>,
    /// Deadline and close request; its sender is gone with the last [`ExecSender`].
    pub control: watch::Receiver<Control>,
    /// The limits the stream was opened with.
    pub limits: ExecLimits,
    clock: SharedClock,
    inbox: Arc<Inbox>,
    lines: Lines,
    captured: Vec<u8>,
    stdout_bytes: u64,
    stderr: Tail,
    ended: bool,
}

/// A handle and the task's side of it; [`ExecEvent::Opened`] is already queued.
pub fn pair(limits: ExecLimits, clock: SharedClock, half_close: bool) -> (ExecHandle, StreamSide) {
    let (queue, commands) = mpsc::channel(MAX_QUEUED_WRITES);
    let (control_sender, control) = watch::channel(Control { close_at: limits.close_at, close: false });
    let inbox = Arc::new(Inbox::default());
    inbox.push(ExecEvent::Opened { at: clock.mono(), half_close });
    let sender = ExecSender {
        shared: Arc::new(SenderShared {
            control: control_sender,
            commands: Mutex::new(Commands { queue, next_seq: 0 }),
        }),
    };
    let handle = ExecHandle { sender, events: ExecEvents { inbox: Arc::clone(&inbox) } };
    let side = StreamSide {
        commands,
        control,
        limits,
        clock,
        inbox,
        lines: Lines::default(),
        captured: Vec::new(),
        stdout_bytes: 0,
        stderr: Tail::default(),
        ended: false,
    };
    (handle, side)
}

impl StreamSide {
    /// The stream's monotonic time.
    pub fn now(&self) -> Mono {
        self.clock.mono()
    }

    /// Reports a write as complete.
    pub fn written(&self, seq: u64) {
        self.inbox.push(ExecEvent::Written { seq, at: self.now() });
    }

    /// Takes bytes of standard output.
    pub fn stdout(&mut self, bytes: &[u8]) {
        self.stdout_bytes = self.stdout_bytes.saturating_add(count(bytes));
        match self.limits.stdout {
            StdoutMode::Capture { max_bytes } => {
                let room = max_bytes.saturating_sub(self.captured.len()).min(bytes.len());
                self.captured.extend_from_slice(&bytes[..room]);
            }
            StdoutMode::Lines => {
                let at = self.now();
                let (inbox, lines) = (&self.inbox, &mut self.lines);
                lines.push(bytes, |line| match line {
                    Ok(text) => inbox.push(ExecEvent::Line { at, text }),
                    Err(TooLong) => {
                        let mut state = inbox.state();
                        state.dropped_lines = state.dropped_lines.saturating_add(1);
                    }
                });
            }
        }
    }

    /// Takes bytes of standard error.
    pub fn stderr(&mut self, bytes: &[u8]) {
        self.stderr.push(bytes);
    }

    /// Ends the stream; only the first call counts. Call it after the socket is closed.
    pub fn end(&mut self, outcome: Outcome, detail: Option<String>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.commands.close();
        let ending = Ending {
            outcome,
            at: self.now(),
            detail: detail.as_deref().map(bounded),
            stderr_tail: self.stderr.text(),
            stderr_bytes: self.stderr.seen,
            captured: std::mem::take(&mut self.captured),
            stdout_bytes: self.stdout_bytes,
            dropped_lines: self.inbox.state().dropped_lines,
            unterminated: String::from_utf8_lossy(&self.lines.partial).into_owned(),
        };
        self.inbox.push(ExecEvent::Ended(ending));
    }
}

impl fmt::Debug for StreamSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamSide")
            .field("limits", &self.limits)
            .field("stdout_bytes", &self.stdout_bytes)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl Drop for StreamSide {
    fn drop(&mut self) {
        self.end(Outcome::Unknown(Unknown::ClosedHere), Some("the task of the stream stopped".into()));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use stillpoint_api::clock::SystemClock;

    use super::*;

    #[tokio::test]
    async fn a_flood_that_nobody_reads_is_dropped_and_counted_and_the_end_still_comes() {
        let (mut handle, mut side) = pair(ExecLimits::default(), SystemClock::shared(), true);
        for _ in 0..10_000 {
            side.stdout(b"0123456789\n");
        }
        side.written(0);
        side.end(Outcome::Exited(0), None);
        let (mut lines, mut rest) = (0, Vec::new());
        while let Some(event) = handle.events.next().await {
            match event {
                ExecEvent::Line { .. } => lines += 1,
                other => rest.push(other),
            }
        }
        assert_eq!(lines, MAX_BACKLOG_LINES);
        assert!(matches!(rest[1], ExecEvent::Written { seq: 0, .. }));
        let ExecEvent::Ended(ending) = &rest[2] else { panic!("{rest:?}") };
        assert_eq!(ending.dropped_lines, 10_000 - MAX_BACKLOG_LINES as u64);
        assert_eq!(ending.stdout_bytes, 110_000);
    }

    #[tokio::test]
    async fn a_word_of_the_protocol_behind_a_flood_is_delivered_and_its_own_flood_is_bounded() {
        let (mut handle, mut side) = pair(ExecLimits::default(), SystemClock::shared(), true);
        for _ in 0..10_000 {
            side.stdout(b"0123456789\n");
        }
        for _ in 0..10_000 {
            side.stdout(b"FROZEN n 0\n");
        }
        side.end(Outcome::Exited(0), None);
        let mut words = 0;
        while let Some(event) = handle.events.next().await {
            words += usize::from(matches!(event, ExecEvent::Line { text, .. } if text.starts_with("FROZEN")));
        }
        assert_eq!(words, MAX_BACKLOG_LINES);
    }

    #[tokio::test]
    async fn a_task_that_dies_is_an_unknown_end() {
        let (mut handle, side) = pair(ExecLimits::default(), SystemClock::shared(), true);
        drop(side);
        assert!(matches!(handle.events.next().await, Some(ExecEvent::Opened { .. })));
        let Some(ExecEvent::Ended(ending)) = handle.events.next().await else { panic!("no end") };
        assert_eq!(ending.outcome, Outcome::Unknown(Unknown::ClosedHere));
        assert_eq!(handle.events.next().await, None);
        assert_eq!(handle.sender.send("x"), Err(SendError::Ended));
    }

    #[test]
    fn a_deadline_can_only_be_brought_forward() {
        let (handle, side) = pair(ExecLimits::default(), SystemClock::shared(), true);
        let at = |secs| Mono::from_origin(Duration::from_secs(secs));
        assert_eq!(handle.sender.set_close_at(at(30)), at(30));
        assert_eq!(handle.sender.set_close_at(at(40)), at(30));
        assert_eq!(handle.sender.set_close_at(at(20)), at(20));
        assert_eq!(side.control.borrow().close_at, Some(at(20)));
    }

    #[test]
    fn writes_are_numbered_and_refused_when_too_many_wait() {
        let (handle, _side) = pair(ExecLimits::default(), SystemClock::shared(), true);
        for seq in 0..64 {
            assert_eq!(handle.sender.send("x"), Ok(seq));
        }
        assert_eq!(handle.sender.send("x"), Err(SendError::Full));
    }
}
