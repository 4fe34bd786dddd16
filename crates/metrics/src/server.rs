//! Answers `/metrics`, `/healthz`, `/readyz` and `/debug/state`.
//!
//! Guarantees: a client that is slow, broken or hostile costs at most one of [`MAX_CONNECTIONS`] places and
//! [`HEADER_TIMEOUT`]; nothing here can end the process; shutdown lets answers under way finish, for
//! [`DRAIN_TIMEOUT`]. Bound to loopback unless told otherwise (docs/metrics.md §6).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::collector::Family;
use crate::facts::Facts;
use crate::process::{self, ProcessFacts};
use crate::registry::Metrics;

/// Where the server listens unless told otherwise.
pub const DEFAULT_ADDRESS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9847));

/// Time a client has for its request line and headers. A scraper on the same network needs milliseconds.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections served at once: two Prometheus servers and the kubelet's probes need about five.
pub const MAX_CONNECTIONS: usize = 64;

/// Time answers under way have after shutdown was asked for; less than Prometheus' own 10 s scrape timeout.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// Pause after a failed accept: no file descriptors are left, and trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address}: {source}; choose another address with --metrics-address, or stop what uses this one"
)]
pub struct BindError {
    /// The address that was asked for.
    pub address: SocketAddr,
    /// The system's reason.
    pub source: std::io::Error,
}

/// What must be there before this replica is ready. Clones share the same parts.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    parts: Arc<Mutex<BTreeMap<&'static str, bool>>>,
}

/// One thing that readiness waits for.
#[derive(Clone, Debug)]
pub struct Part {
    name: &'static str,
    parts: Arc<Mutex<BTreeMap<&'static str, bool>>>,
}

impl Readiness {
    /// Adds a part that is not ready yet. `name` is what `/readyz` says while it is missing.
    pub fn part(&self, name: &'static str) -> Part {
        let part = Part { name, parts: Arc::clone(&self.parts) };
        part.set(false);
        part
    }

    /// Names of the parts that are not ready.
    pub fn missing(&self) -> Vec<&'static str> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().filter(|(_, ready)| !**ready).map(|(name, _)| *name).collect()
    }
}

impl Part {
    /// The part is ready.
    pub fn ready(&self) {
        self.set(true);
    }

    /// The part is not, or no longer, ready.
    pub fn not_ready(&self) {
        self.set(false);
    }

    fn set(&self, ready: bool) {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).insert(self.name, ready);
    }
}

/// What this process is at, asked for at every scrape.
pub trait Process: Send + Sync {
    /// What it is at, for series.
    fn facts(&self) -> ProcessFacts;
    /// One JSON object for people (docs/metrics.md); nothing in it is secret.
    fn state(&self) -> String;
}

/// What the endpoints show.
#[derive(Clone)]
pub struct Endpoints {
    /// Events.
    pub metrics: Arc<Metrics>,
    /// Facts about objects.
    pub facts: Arc<dyn Facts>,
    /// What `/readyz` waits for.
    pub readiness: Readiness,
    /// The process itself.
    pub process: Arc<dyn Process>,
}

impl std::fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoints").field("readiness", &self.readiness).finish_non_exhaustive()
    }
}

/// Listens on `address`.
///
/// # Errors
/// The address is taken or not ours.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// Serves until `shutdown` is done, then lets answers under way finish.
pub async fn serve(listener: TcpListener, endpoints: Endpoints, shutdown: impl Future<Output = ()>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (listener.accept().await, place)
        };
        tokio::select! {
            () = &mut shutdown => break,
            (accepted, place) = accepted => match accepted {
                Ok((stream, _)) => {
                    let connection = converse(stream, endpoints.clone(), stopped.clone());
                    connections.spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!(%error, "metrics server cannot accept a connection; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
    drop(listener);
    drop(stop);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
        debug!("connections of the metrics server did not end in time; closing them");
    }
}

/// Serves one connection until its client leaves or the server stops.
async fn converse(stream: TcpStream, endpoints: Endpoints, mut stopped: watch::Receiver<()>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(&endpoints, request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        // The sender is dropped to stop.
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection to the metrics server broke");
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

fn respond(endpoints: &Endpoints, method: &Method, path: &str) -> Response<Body> {
    let known = matches!(path, "/metrics" | "/healthz" | "/readyz" | "/debug/state");
    if !known {
        return plain(
            StatusCode::NOT_FOUND,
            "not found; there are /metrics, /healthz, /readyz and /debug/state\n".to_owned(),
        );
    }
    if method != Method::GET && method != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/metrics" => scrape(endpoints),
        "/healthz" => plain(StatusCode::OK, "ok\n".to_owned()),
        "/debug/state" => {
            let body = Full::new(Bytes::from(endpoints.process.state())).boxed_unsync();
            with_body(StatusCode::OK, JSON, body)
        }
        _ => {
            let missing = endpoints.readiness.missing();
            if missing.is_empty() {
                plain(StatusCode::OK, "ok\n".to_owned())
            } else {
                plain(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join(", ")))
            }
        }
    }
}

/// One chunk per page of a family: facts first, then events, then the process. A scrape of many policies is a stream.
fn scrape(endpoints: &Endpoints) -> Response<Body> {
    let facts = Arc::clone(&endpoints.facts);
    let about_policies = Family::ALL.iter().flat_map(move |family| family.pages(Arc::clone(&facts)));
    let events = Metrics::render(Arc::clone(&endpoints.metrics));
    let process = Arc::clone(&endpoints.process);
    let process = std::iter::once_with(move || process::render(&process.facts()));
    let chunks = about_policies.chain(events).chain(process).map(Bytes::from);
    let frames = stream::iter(chunks.map(|chunk| Ok(Frame::data(chunk))));
    with_body(StatusCode::OK, TEXT_FORMAT, UnsyncBoxBody::new(StreamBody::new(frames)))
}

fn plain(status: StatusCode, text: String) -> Response<Body> {
    with_body(status, PLAIN, Full::new(Bytes::from(text)).boxed_unsync())
}

fn with_body(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    response
}
