//! The server over a real socket: what scrapers and probes get, and what broken clients cannot do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use stillpoint_metrics::server::DRAIN_TIMEOUT;
use stillpoint_metrics::{
    BuildInfo, Endpoints, FactsStore, Metrics, Process, ProcessFacts, Readiness, bind, serve,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

struct Server {
    address: SocketAddr,
    readiness: Readiness,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

struct Leader;

impl Process for Leader {
    fn facts(&self) -> ProcessFacts {
        ProcessFacts { leads: true, ..ProcessFacts::default() }
    }

    fn state(&self) -> String {
        r#"{"leads":true}"#.to_owned()
    }
}

async fn server() -> Server {
    let build = BuildInfo { version: "1.2.3".into(), revision: "abc".into() };
    let metrics = Arc::new(Metrics::new(&build).unwrap());
    let readiness = Readiness::default();
    let facts = Arc::new(FactsStore::new(Arc::clone(&metrics)));
    let endpoints = Endpoints { metrics, facts, readiness: readiness.clone(), process: Arc::new(Leader) };
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(serve(listener, endpoints, async {
        let _ = stopped.await;
    }));
    Server { address, readiness, stop, task }
}

async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("answered in time").unwrap();
    answer
}

async fn get(address: SocketAddr, path: &str) -> String {
    exchange(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
}

#[tokio::test]
async fn a_scrape_is_text_with_the_build_and_the_memory() {
    let server = server().await;
    let answer = get(server.address, "/metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    assert!(answer.contains(r#"stillpoint_build_info{revision="abc",version="1.2.3"} 1"#), "{answer}");
    assert!(answer.contains("process_resident_memory_bytes "), "{answer}");
    assert!(answer.contains("# TYPE stillpoint_leader gauge\nstillpoint_leader 1\n"), "{answer}");
}

#[tokio::test]
async fn the_state_of_the_process_is_json_as_the_process_says_it() {
    let server = server().await;
    let answer = get(server.address, "/debug/state").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(r#"{"leads":true}"#), "{answer}");
    assert!(answer.contains("content-type: application/json"), "{answer}");
}

#[tokio::test]
async fn readiness_names_what_is_missing_until_all_is_there() {
    let server = server().await;
    let (watches, heap) = (server.readiness.part("watches listed"), server.readiness.part("heap built"));
    heap.ready();
    let answer = get(server.address, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("watches listed\n"), "{answer}");
    watches.ready();
    assert!(get(server.address, "/readyz").await.starts_with("HTTP/1.1 200"));
    watches.not_ready();
    assert!(get(server.address, "/readyz").await.starts_with("HTTP/1.1 503"));
    assert!(get(server.address, "/healthz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn other_paths_are_not_found_and_other_methods_not_allowed() {
    let server = server().await;
    assert!(get(server.address, "/").await.starts_with("HTTP/1.1 404"));
    let post = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let answer = exchange(server.address, post).await;
    assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("allow: GET, HEAD"), "{answer}");
    let head = "HEAD /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = exchange(server.address, head).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn broken_clients_do_not_stop_others() {
    let server = server().await;
    let garbage = exchange(server.address, "\0\u{1}nonsense\r\n\r\n").await;
    assert!(garbage.is_empty() || garbage.starts_with("HTTP/1.1 400"), "{garbage}");
    let mut half = TcpStream::connect(server.address).await.unwrap();
    half.write_all(b"GET /metrics HTTP/1.1\r\nHo").await.unwrap();
    drop(half);
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(20_000));
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // The server may close before all of it is written.
    let _ = stream.write_all(long.as_bytes()).await;
    assert!(get(server.address, "/healthz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_client_that_never_ends_its_headers_is_closed() {
    let server = server().await;
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(20), slow.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "still open after the header timeout");
}

#[tokio::test]
async fn shutdown_closes_the_port_and_idle_connections() {
    let server = server().await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut buffer = [0; 512];
    assert!(idle.read(&mut buffer).await.unwrap() > 0);
    server.stop.send(()).unwrap();
    // An idle connection is closed at once: less than the time that answers under way would have.
    let at_once = DRAIN_TIMEOUT - Duration::from_secs(1);
    tokio::time::timeout(at_once, server.task).await.expect("ends in time").unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn an_address_that_is_taken_is_told_with_a_cure() {
    let server = server().await;
    let refused = bind(server.address).await.unwrap_err().to_string();
    assert!(
        refused.contains(&server.address.to_string()) && refused.contains("--metrics-address"),
        "{refused}"
    );
}
