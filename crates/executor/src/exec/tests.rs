//! The driver against a websocket server on loopback that misbehaves in every way that was seen, and against an
//! in-memory one where time is paused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use kube::Config;
use stillpoint_api::clock::{Mono, SharedClock, SystemClock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::Role;

use super::drive::drive;
use super::stream::pair;
use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
const NON_ZERO: &str = r#"{"metadata":{},"status":"Failure","message":"command terminated with exit code 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#;
const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;

type ServerSocket = WebSocketStream<TcpStream>;

/// A server on loopback; each connection gets `script` once it is upgraded to `protocol`.
struct Server {
    address: String,
    requests: Arc<AtomicUsize>,
}

impl Server {
    async fn speaking<F, Fut>(protocol: &'static str, script: F) -> Self
    where
        F: Fn(ServerSocket) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send,
    {
        let (listener, server) = Self::listen().await;
        let requests = Arc::clone(&server.requests);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                requests.fetch_add(1, Ordering::SeqCst);
                #[allow(clippy::result_large_err, reason = "the callback's type is tungstenite's")]
                let choose = |request: &Request, mut response: Response| {
                    let offered = request.headers()["sec-websocket-protocol"].to_str().unwrap();
                    assert_eq!(offered, "v5.channel.k8s.io, v4.channel.k8s.io");
                    response.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
                    Ok(response)
                };
                let socket = tokio_tungstenite::accept_hdr_async(socket, choose).await.unwrap();
                script(socket).await;
            }
        });
        server
    }

    async fn v5<F, Fut>(script: F) -> Self
    where
        F: Fn(ServerSocket) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send,
    {
        Self::speaking("v5.channel.k8s.io", script).await
    }

    /// Answers every request with one HTTP response, or never when it is empty.
    async fn answering(response: &'static str) -> Self {
        let (listener, server) = Self::listen().await;
        let requests = Arc::clone(&server.requests);
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let requests = Arc::clone(&requests);
                tokio::spawn(async move {
                    let mut seen = Vec::new();
                    while socket.read_buf(&mut seen).await.is_ok_and(|read| read > 0) {
                        if seen.ends_with(b"\r\n\r\n") {
                            requests.fetch_add(1, Ordering::SeqCst);
                            seen.clear();
                            socket.write_all(response.as_bytes()).await.unwrap();
                        }
                    }
                });
            }
        });
        server
    }

    async fn listen() -> (TcpListener, Self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        (listener, Self { address, requests: Arc::default() })
    }

    fn exec(&self) -> KubeExec {
        KubeExec::from_config(Config::new(self.address.parse().unwrap()), SystemClock::shared()).unwrap()
    }

    async fn open(&self) -> ExecHandle {
        self.exec().open(&target(), ExecLimits::default()).await.unwrap()
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn target() -> ExecTarget {
    ExecTarget {
        namespace: "shop".into(),
        pod: "db-0".into(),
        pod_uid: "4c1d".into(),
        container: "db".into(),
        argv: vec!["psql".into()],
        stdin: true,
        impersonate: None,
    }
}

fn frame(channel: u8, bytes: &[u8]) -> Message {
    Message::Binary([&[channel], bytes].concat().into())
}

async fn next(handle: &mut ExecHandle) -> ExecEvent {
    timeout(PATIENCE, handle.events.next()).await.expect("an event in time").expect("not after the end")
}

async fn ending(handle: &mut ExecHandle) -> Ending {
    loop {
        if let ExecEvent::Ended(ending) = next(handle).await {
            return ending;
        }
    }
}

/// Reads until the client is gone.
async fn until_gone<S>(socket: &mut WebSocketStream<S>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    while let Some(Ok(_)) = socket.next().await {}
}

#[tokio::test]
async fn lines_writes_half_close_and_status_arrive_in_order() {
    let server = Server::v5(|mut socket| async move {
        socket.send(frame(1, b"")).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            let bytes = message.into_data();
            match bytes.first() {
                Some(0) => socket.send(frame(1, &bytes[1..])).await.unwrap(),
                Some(255) => break,
                other => panic!("unexpected {other:?}"),
            }
        }
        socket.send(frame(2, b"a warning")).await.unwrap();
        socket.send(frame(3, SUCCESS.as_bytes())).await.unwrap();
        socket.close(None).await.unwrap();
        until_gone(&mut socket).await;
    })
    .await;
    let mut handle = server.open().await;
    assert!(matches!(next(&mut handle).await, ExecEvent::Opened { half_close: true, .. }));
    assert_eq!(handle.sender.send("one\ntw"), Ok(0));
    assert_eq!(handle.sender.send("o\n"), Ok(1));
    handle.sender.close_stdin().unwrap();
    let (mut lines, mut written) = (Vec::new(), Vec::new());
    let ending = loop {
        match next(&mut handle).await {
            ExecEvent::Line { text, .. } => lines.push(text),
            ExecEvent::Written { seq, .. } => written.push(seq),
            ExecEvent::Ended(ending) => break ending,
            ExecEvent::Opened { .. } => panic!("opened twice"),
        }
    };
    assert_eq!((lines, written), (vec!["one".to_owned(), "two".to_owned()], vec![0, 1]));
    assert_eq!(ending.outcome, Outcome::Exited(0));
    assert_eq!(ending.stderr_tail, "a warning");
    assert_eq!(handle.events.next().await, None);
}

#[tokio::test]
async fn a_status_with_a_code_is_that_code_also_when_output_follows_it() {
    let server = Server::v5(|mut socket| async move {
        socket.send(frame(3, NON_ZERO.as_bytes())).await.unwrap();
        socket.send(frame(1, b"late\n")).await.unwrap();
        socket.close(None).await.unwrap();
        until_gone(&mut socket).await;
    })
    .await;
    let mut handle = server.open().await;
    next(&mut handle).await;
    assert!(matches!(next(&mut handle).await, ExecEvent::Line { text, .. } if text == "late"));
    assert_eq!(ending(&mut handle).await.outcome, Outcome::Exited(3));
}

#[tokio::test]
async fn a_status_counts_although_the_server_never_closes() {
    let server = Server::v5(|mut socket| async move {
        socket.send(frame(3, SUCCESS.as_bytes())).await.unwrap();
        until_gone(&mut socket).await;
    })
    .await;
    assert_eq!(ending(&mut server.open().await).await.outcome, Outcome::Exited(0));
}

#[tokio::test]
async fn a_clean_close_without_status_is_unknown_not_success() {
    let server = Server::v5(|mut socket| async move {
        socket.send(frame(1, b"THAWED half")).await.unwrap();
        socket.close(None).await.unwrap();
        until_gone(&mut socket).await;
    })
    .await;
    let ending = ending(&mut server.open().await).await;
    assert_eq!(ending.outcome, Outcome::Unknown(Unknown::Closed));
    assert_eq!(ending.unterminated, "THAWED half");
}

#[tokio::test]
async fn a_connection_that_breaks_is_a_reset_and_the_reader_learns_it() {
    let server = Server::v5(|socket| async move {
        // Closed without a closing frame, with unread bytes on the way: the kernel sends a reset.
        drop(socket.into_inner());
    })
    .await;
    let mut handle = server.open().await;
    let _ = handle.sender.send("freeze\n");
    let ending = ending(&mut handle).await;
    assert_eq!(ending.outcome, Outcome::Unknown(Unknown::Reset));
    assert!(ending.detail.is_some());
}

#[tokio::test]
async fn undrained_output_holds_up_neither_the_status_nor_the_end() {
    let server = Server::v5(|mut socket| async move {
        for _ in 0..320 {
            socket.send(frame(1, &[b'x'; 16 * 1024])).await.unwrap();
            socket.send(frame(1, b"\nline\n")).await.unwrap();
        }
        socket.send(frame(2, &[b'e'; 10_000])).await.unwrap();
        socket.send(frame(3, SUCCESS.as_bytes())).await.unwrap();
        socket.close(None).await.unwrap();
        until_gone(&mut socket).await;
    })
    .await;
    let handle = server.open().await;
    // Nobody reads events until the stream is over: sending fails only once it has ended.
    timeout(PATIENCE, async {
        while handle.sender.send("x").is_ok() || handle.sender.send("x") == Err(SendError::Full) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the stream ends although nobody reads");
    let mut handle = handle;
    let ending = ending(&mut handle).await;
    assert_eq!(ending.stdout_bytes, 320 * (16 * 1024 + 6));
    assert!(ending.dropped_lines > 0);
    assert_eq!((ending.stderr_bytes, ending.stderr_tail.len()), (10_000, 8 * 1024));
    assert_eq!(ending.outcome, Outcome::Exited(0));
}

#[tokio::test]
async fn a_one_shot_reads_megabytes_keeps_the_beginning_and_the_code() {
    let server = Server::v5(|mut socket| async move {
        let mut input = Vec::new();
        while let Some(Ok(message)) = socket.next().await {
            let bytes = message.into_data();
            match bytes.first() {
                Some(0) => input.extend_from_slice(&bytes[1..]),
                _ => break,
            }
        }
        for _ in 0..128 {
            socket.send(frame(1, &[b'o'; 32 * 1024])).await.unwrap();
            socket.send(frame(2, &[b'e'; 1024])).await.unwrap();
        }
        assert_eq!(input.len(), 100_000);
        socket.send(frame(3, NON_ZERO.as_bytes())).await.unwrap();
        socket.close(None).await.unwrap();
        until_gone(&mut socket).await;
    })
    .await;
    let stdin = Some(Bytes::from(vec![b'i'; 100_000]));
    let shot = run_once(&server.exec(), &target(), stdin, PATIENCE).await.unwrap();
    assert_eq!(shot.outcome, Outcome::Exited(3));
    assert_eq!((shot.stdout.len(), shot.stdout_truncated, shot.stderr.len()), (65_536, true, 8192));
    assert_eq!(shot.refusal(), None);
}

#[tokio::test]
async fn a_one_shot_over_a_command_that_never_ends_is_unknown_at_its_timeout() {
    let server = Server::v5(|mut socket| async move { until_gone(&mut socket).await }).await;
    let shot = run_once(&server.exec(), &target(), None, Duration::from_millis(100)).await.unwrap();
    assert_eq!(shot.outcome, Outcome::Unknown(Unknown::Deadline));
    assert!(shot.elapsed >= Duration::from_millis(100));
}

#[tokio::test]
async fn a_missing_program_is_the_same_refusal_on_the_stream_and_before_it() {
    const STATUS: &str = r#"{"metadata":{},"status":"Failure","message":"Internal error occurred: error executing command in container: failed to exec in container: failed to start exec \"0b1c\": OCI runtime exec failed: exec failed: unable to start container process: exec: \"psql\": executable file not found in $PATH: unknown","reason":"InternalError","code":500}"#;
    let on_stream = Server::v5(|mut socket| async move {
        socket.send(frame(3, STATUS.as_bytes())).await.unwrap();
        socket.close(None).await.unwrap();
        until_gone(&mut socket).await;
    })
    .await;
    let shot = run_once(&on_stream.exec(), &target(), None, PATIENCE).await.unwrap();
    assert_eq!(shot.refusal().unwrap().category(), ExecCategory::ClientMissing);

    let response = format!(
        "HTTP/1.1 500 Internal Server Error\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{STATUS}",
        STATUS.len()
    );
    let before = Server::answering(response.leak()).await;
    let error = before.exec().open(&target(), ExecLimits::default()).await.unwrap_err();
    assert_eq!(error.category(), ExecCategory::ClientMissing);
}

#[tokio::test]
async fn every_refused_upgrade_is_sent_once() {
    for (response, category) in [
        ("HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n", ExecCategory::Other),
        ("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n", ExecCategory::Other),
        ("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n", ExecCategory::Transport),
        ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", ExecCategory::Transport),
        ("HTTP/1.1 504 Gateway Timeout\r\ncontent-length: 0\r\n\r\n", ExecCategory::Timeout),
        ("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", ExecCategory::Forbidden),
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", ExecCategory::Transport),
    ] {
        let server = Server::answering(response).await;
        let error = server.exec().open(&target(), ExecLimits::default()).await.unwrap_err();
        assert_eq!((error.category(), server.requests()), (category, 1), "{response}: {error}");
    }
}

#[tokio::test]
async fn the_default_client_would_send_again() {
    let server = Server::answering("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
    let client = kube::Client::try_from(Config::new(server.address.parse().unwrap())).unwrap();
    let exec = KubeExec::with_client(client, SystemClock::shared());
    let target = target();
    let mut open = exec.open(&target, ExecLimits::default());
    timeout(PATIENCE, async {
        while server.requests() < 2 {
            tokio::select! {
                _ = &mut open => break,
                () = tokio::task::yield_now() => {}
            }
        }
    })
    .await
    .unwrap();
    assert!(server.requests() >= 2, "the control: without exec_client_config a hook runs twice");
}

#[tokio::test]
async fn an_upgrade_that_is_never_answered_ends_at_the_deadline_to_open() {
    let server = Server::answering("").await;
    let limits = ExecLimits { open_within: Duration::from_millis(100), ..ExecLimits::default() };
    let error = server.exec().open(&target(), limits).await.unwrap_err();
    assert_eq!(error.category(), ExecCategory::Timeout);
    assert!(error.may_have_run());
    assert!(server.requests() <= 1);
}

#[tokio::test]
async fn under_v4_the_end_of_input_closes_the_stream() {
    let server = Server::speaking("v4.channel.k8s.io", |mut socket| async move {
        while let Some(Ok(message)) = socket.next().await {
            let data = message.into_data();
            assert_ne!(data.first(), Some(&255), "v4 servers do not know a half-close");
        }
    })
    .await;
    let mut handle = server.open().await;
    assert!(matches!(next(&mut handle).await, ExecEvent::Opened { half_close: false, .. }));
    handle.sender.send("thaw\n").unwrap();
    handle.sender.close_stdin().unwrap();
    assert!(matches!(next(&mut handle).await, ExecEvent::Written { seq: 0, .. }));
    assert_eq!(ending(&mut handle).await.outcome, Outcome::Unknown(Unknown::ClosedHere));
}

// From here on in memory, with paused time: the only clock that moves is the runtime's.

struct Memory {
    handle: ExecHandle,
    peer: WebSocketStream<tokio::io::DuplexStream>,
    clock: SharedClock,
}

/// A driver over a pipe of `capacity` bytes. The stream's clock stands still at its origin, so a deadline at
/// `Mono` *t* fires after *t* of runtime time.
async fn memory(limits: ExecLimits, capacity: usize) -> Memory {
    let clock: SharedClock =
        Arc::new(stillpoint_api::clock::ManualClock::at("2026-11-21T10:00:00Z".parse().unwrap()));
    let (ours, theirs) = tokio::io::duplex(capacity);
    let socket = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
    let peer = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
    let (handle, side) = pair(limits, clock.clone(), true);
    tokio::spawn(drive(socket, true, side));
    Memory { handle, peer, clock }
}

const HOUR: Duration = Duration::from_secs(3600);

async fn paused_ending(handle: &mut ExecHandle) -> Ending {
    timeout(HOUR, async {
        loop {
            if let Some(ExecEvent::Ended(ending)) = handle.events.next().await {
                return ending;
            }
        }
    })
    .await
    .expect("the stream ends")
}

#[tokio::test(start_paused = true)]
async fn pings_that_nobody_answers_end_the_stream() {
    // The peer is kept but never polled: it answers nothing and closes nothing.
    let mut memory = memory(ExecLimits::default(), 1 << 16).await;
    let ended = timeout(Duration::from_secs(46), paused_ending(&mut memory.handle)).await;
    assert_eq!(ended.expect("after two missed").outcome, Outcome::Unknown(Unknown::PingsUnanswered));
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_that_answers_pings_keeps_the_stream() {
    let mut memory = memory(ExecLimits::default(), 1 << 16).await;
    let mut peer = memory.peer;
    tokio::spawn(async move { until_gone(&mut peer).await });
    assert!(matches!(memory.handle.events.next().await, Some(ExecEvent::Opened { .. })));
    assert!(timeout(HOUR, memory.handle.events.next()).await.is_err(), "nothing happens for an hour");
}

#[tokio::test(start_paused = true)]
async fn at_its_hard_deadline_the_stream_closes_whatever_happens() {
    let mut memory = memory(ExecLimits::default(), 256).await;
    memory.handle.sender.set_close_at(Mono::from_origin(Duration::from_secs(30)));
    // Later deadlines are not taken, writes that block (nobody reads the pipe) do not matter, and the peer
    // floods the other direction for ever.
    memory.handle.sender.set_close_at(Mono::from_origin(HOUR));
    memory.handle.sender.send(vec![b'x'; 1 << 20]).unwrap();
    let (mut sink, mut stream) = memory.peer.split();
    tokio::spawn(async move {
        while sink.send(frame(1, b"noise\n")).await.is_ok() {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let ended = timeout(Duration::from_secs(31), paused_ending(&mut memory.handle)).await;
    let ended = ended.expect("at 30 s");
    assert_eq!(ended.outcome, Outcome::Unknown(Unknown::Deadline));
    // The socket is closed: what was in the pipe is all the peer ever gets.
    let gone = timeout(HOUR, async { while let Some(Ok(_)) = stream.next().await {} }).await;
    assert!(gone.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_deadline_is_not_early() {
    let limits =
        ExecLimits { close_at: Some(Mono::from_origin(Duration::from_secs(10))), ..ExecLimits::default() };
    let mut memory = memory(limits, 1 << 16).await;
    memory.handle.events.next().await;
    assert!(timeout(Duration::from_millis(9_990), memory.handle.events.next()).await.is_err());
    assert_eq!(paused_ending(&mut memory.handle).await.outcome, Outcome::Unknown(Unknown::Deadline));
}

#[tokio::test(start_paused = true)]
async fn a_write_is_reported_only_when_all_of_it_is_out() {
    let mut memory = memory(ExecLimits::default(), 1024).await;
    memory.handle.events.next().await;
    memory.handle.sender.send(vec![b'x'; 10_000]).unwrap();
    let early = timeout(Duration::from_secs(10), memory.handle.events.next()).await;
    assert!(early.is_err(), "the pipe holds a tenth of it: {early:?}");
    let mut peer = memory.peer;
    let reading = tokio::spawn(async move { peer.next().await.unwrap().unwrap().into_data().len() });
    let written = timeout(HOUR, memory.handle.events.next()).await.unwrap();
    assert!(matches!(written, Some(ExecEvent::Written { seq: 0, .. })));
    assert_eq!(reading.await.unwrap(), 10_001);
}

#[tokio::test(start_paused = true)]
async fn reading_goes_on_while_a_write_is_blocked() {
    let mut memory = memory(ExecLimits::default(), 1024).await;
    memory.handle.events.next().await;
    memory.handle.sender.send(vec![b'x'; 10_000]).unwrap();
    memory.peer.send(frame(1, b"FROZEN\n")).await.unwrap();
    let line = timeout(Duration::from_secs(10), memory.handle.events.next()).await.unwrap();
    assert!(matches!(line, Some(ExecEvent::Line { text, .. }) if text == "FROZEN"));
}

#[tokio::test(start_paused = true)]
async fn a_write_after_its_fence_closes_the_stream_and_sends_nothing() {
    let mut memory = memory(ExecLimits::default(), 1 << 16).await;
    assert_eq!(memory.clock.mono(), Mono::default());
    memory.handle.sender.send_before("in time\n", Mono::default()).unwrap();
    assert_eq!(memory.peer.next().await.unwrap().unwrap().into_data().as_ref(), b"\x00in time\n");
    // The clock is shared with nobody else, so the fence is put into the past by moving it.
    let late = Memory::advanced().await;
    let (mut handle, mut peer) = (late.handle, late.peer);
    handle.sender.send_before("freeze\n", Mono::default()).unwrap();
    assert_eq!(paused_ending(&mut handle).await.outcome, Outcome::Unknown(Unknown::Fenced));
    while let Some(Ok(message)) = peer.next().await {
        assert!(message.is_close(), "{message:?} was sent");
    }
}

impl Memory {
    /// A driver whose clock has already moved past its origin.
    async fn advanced() -> Self {
        let clock = stillpoint_api::clock::ManualClock::at("2026-11-21T10:00:00Z".parse().unwrap());
        clock.advance(Duration::from_millis(1));
        let clock: SharedClock = Arc::new(clock);
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let socket = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
        let peer = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
        let (handle, side) = pair(ExecLimits::default(), clock.clone(), true);
        tokio::spawn(drive(socket, true, side));
        Self { handle, peer, clock }
    }
}

#[tokio::test(start_paused = true)]
async fn closing_and_dropping_the_handle_close_the_socket() {
    let mut closed = memory(ExecLimits::default(), 1 << 16).await;
    closed.handle.sender.close();
    assert_eq!(paused_ending(&mut closed.handle).await.outcome, Outcome::Unknown(Unknown::ClosedHere));
    let dropped = memory(ExecLimits::default(), 1 << 16).await;
    let mut peer = dropped.peer;
    drop(dropped.handle);
    timeout(HOUR, until_gone(&mut peer)).await.expect("the peer sees the end");
}

#[tokio::test(start_paused = true)]
async fn a_status_behind_a_failed_write_is_still_read() {
    let mut memory = memory(ExecLimits::default(), 1 << 16).await;
    memory.peer.send(frame(3, NON_ZERO.as_bytes())).await.unwrap();
    drop(memory.peer);
    let _ = memory.handle.sender.send("too late\n");
    assert_eq!(paused_ending(&mut memory.handle).await.outcome, Outcome::Exited(3));
}
