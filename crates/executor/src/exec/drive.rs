//! The task on the socket: one per stream, one loop, nothing in it waits for anyone but the socket.
//!
//! The order of the branches is the order of importance: deadline, close, then pings, writes and reads. A
//! blocked write does not stop reading and reading does not stop the timers.

use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{MissedTickBehavior, Sleep, interval, sleep};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

use super::stream::{Command, StreamSide};
use super::wire::{Frame, Outcome, Unknown, encode_close_stdin, encode_stdin};

/// How long the stream is read after its end is known: output may still be in flight behind a status or a
/// failed write, and a server that said goodbye closes at once.
const DRAIN: Duration = Duration::from_secs(1);
/// Pings in a row without an answer (docs/design/freeze.md §8).
const MISSED_PINGS: u32 = 2;

type Timer = Option<Pin<Box<Sleep>>>;

/// Runs the stream to its end and reports it. The socket is closed before [`super::ExecEvent::Ended`] is out.
pub(super) async fn drive<S>(mut socket: WebSocketStream<S>, half_close: bool, mut side: StreamSide)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (outcome, detail) = run(&mut socket, half_close, &mut side).await;
    say_goodbye(&mut socket).await;
    drop(socket);
    side.end(outcome, detail);
}

type Known = (Outcome, Option<String>);

const fn unknown(why: Unknown) -> Known {
    (Outcome::Unknown(why), None)
}

async fn run<S>(socket: &mut WebSocketStream<S>, half_close: bool, side: &mut StreamSide) -> Known
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut pings = interval(side.limits.ping_every);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings.reset();
    let mut unanswered = 0_u32;
    // The write whose last byte is not yet in the socket, and whether anything at all is to be flushed.
    let mut writing: Option<u64> = None;
    let mut flushing = false;
    // The end as known so far; once it is set nothing more is written.
    let mut known: Option<Known> = None;
    let mut drain: Timer = None;
    let mut deadline = arm(side);
    if side.control.borrow_and_update().close {
        return unknown(Unknown::ClosedHere);
    }
    loop {
        tokio::select! {
            biased;
            () = fired(&mut deadline) => return known.unwrap_or(unknown(Unknown::Deadline)),
            changed = side.control.changed() => {
                if changed.is_err() || side.control.borrow_and_update().close {
                    return known.unwrap_or(unknown(Unknown::ClosedHere));
                }
                deadline = arm(side);
            }
            () = fired(&mut drain) => return known.unwrap_or(unknown(Unknown::Closed)),
            _ = pings.tick(), if known.is_none() => {
                if unanswered >= MISSED_PINGS {
                    return unknown(Unknown::PingsUnanswered);
                }
                unanswered += 1;
                // A failed write shows in the flush that follows.
                let _ = Pin::new(&mut *socket).start_send(Message::Ping(Bytes::new()));
                flushing = true;
            }
            command = side.commands.recv(), if known.is_none() && writing.is_none() => {
                let message = match command {
                    None => return unknown(Unknown::ClosedHere),
                    Some(Command::CloseStdin) if !half_close => return unknown(Unknown::ClosedHere),
                    Some(Command::CloseStdin) => encode_close_stdin(),
                    Some(Command::Write { not_after: Some(not_after), .. }) if side.now() > not_after => {
                        return unknown(Unknown::Fenced);
                    }
                    Some(Command::Write { seq, bytes, .. }) => {
                        writing = Some(seq);
                        encode_stdin(&bytes)
                    }
                };
                match Pin::new(&mut *socket).start_send(Message::Binary(message)) {
                    Ok(()) => flushing = true,
                    Err(error) => fail(&error, &mut known, &mut drain),
                }
            }
            step = step(socket, flushing) => match step {
                Step::Flushed(Ok(())) => {
                    flushing = false;
                    if let Some(seq) = writing.take() {
                        side.written(seq);
                    }
                }
                Step::Flushed(Err(error)) => {
                    flushing = false;
                    fail(&error, &mut known, &mut drain);
                }
                Step::Received(None) => return known.unwrap_or(unknown(Unknown::Closed)),
                Step::Received(Some(Err(error))) => {
                    fail(&error, &mut known, &mut drain);
                    return known.unwrap_or(unknown(Unknown::Reset));
                }
                Step::Received(Some(Ok(message))) => {
                    // Any message shows that the way there and back is alive, not only a pong.
                    unanswered = 0;
                    receive(message, side, &mut known, &mut drain);
                }
            },
        }
    }
}

fn receive(message: Message, side: &mut StreamSide, known: &mut Option<Known>, drain: &mut Timer) {
    match message {
        Message::Binary(bytes) => match Frame::decode(bytes) {
            Frame::Stdout(bytes) => side.stdout(&bytes),
            Frame::Stderr(bytes) => side.stderr(&bytes),
            Frame::Status(json) => {
                // The first status counts, also over a write that failed because the command was done.
                if known.as_ref().is_none_or(|(outcome, _)| matches!(outcome, Outcome::Unknown(_))) {
                    *known = Some((Outcome::from_status(&json), None));
                }
                drain.get_or_insert_with(|| Box::pin(sleep(DRAIN)));
            }
            Frame::HalfClosed(_) | Frame::Ignored => {}
        },
        Message::Close(frame) => {
            known.get_or_insert_with(|| {
                let words = frame.map(|frame| format!("close {}: {}", frame.code, frame.reason));
                (Outcome::Unknown(Unknown::Closed), words)
            });
            drain.get_or_insert_with(|| Box::pin(sleep(DRAIN)));
        }
        Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
    }
}

/// Notes a broken connection and goes on reading for a moment: the status may be in the buffers already.
fn fail(error: &SocketError, known: &mut Option<Known>, drain: &mut Timer) {
    let why = match error {
        SocketError::ConnectionClosed | SocketError::AlreadyClosed => Unknown::Closed,
        // The rest of tungstenite's errors, present and future, is a stream that broke.
        _ => Unknown::Reset,
    };
    known.get_or_insert_with(|| (Outcome::Unknown(why), Some(error.to_string())));
    drain.get_or_insert_with(|| Box::pin(sleep(DRAIN)));
}

enum Step {
    Flushed(Result<(), SocketError>),
    Received(Option<Result<Message, SocketError>>),
}

/// Flushes and reads at once; whichever is ready first. Safe to drop: both keep their place in the socket.
async fn step<S>(socket: &mut WebSocketStream<S>, flushing: bool) -> Step
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    poll_fn(|cx| {
        if flushing && let Poll::Ready(flushed) = Pin::new(&mut *socket).poll_flush(cx) {
            return Poll::Ready(Step::Flushed(flushed));
        }
        Pin::new(&mut *socket).poll_next(cx).map(Step::Received)
    })
    .await
}

/// One attempt at a closing frame; a blocked socket is closed without it.
async fn say_goodbye<S>(socket: &mut WebSocketStream<S>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _ = Pin::new(&mut *socket).start_send(Message::Close(None));
    poll_fn(|cx| {
        let _ = Pin::new(&mut *socket).poll_flush(cx);
        Poll::Ready(())
    })
    .await;
}

/// The timer of the hard deadline in force.
fn arm(side: &StreamSide) -> Timer {
    let close_at = side.control.borrow().close_at?;
    Some(Box::pin(sleep(close_at.since(side.now()))))
}

async fn fired(timer: &mut Timer) {
    match timer {
        Some(timer) => timer.as_mut().await,
        None => pending().await,
    }
}
