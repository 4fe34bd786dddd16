//! The HTTP/1.1 front: one listener on loopback, the bearer token, faults, bodies. What a request means is decided in
//! `api`; here is how it arrives and how its answer leaves.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::api::Api;
use crate::error::ApiError;
use crate::faults::FaultAction;

/// A response body: whole, or a stream of watch events.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The connection is closed instead of an answer.
#[derive(Debug, thiserror::Error)]
#[error("the fault plan closed this connection")]
pub(crate) struct ConnectionCut;

/// A request, read.
pub(crate) struct Call {
    pub method: Method,
    pub path: Vec<String>,
    pub query: HashMap<String, Vec<String>>,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub upgrade: Option<hyper::upgrade::OnUpgrade>,
}

impl Call {
    /// A query parameter, empty when absent.
    pub(crate) fn param(&self, name: &str) -> &str {
        self.query.get(name).and_then(|values| values.last()).map_or("", String::as_str)
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.param(name), "true" | "1")
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// Accepts connections until `stop` changes.
pub(crate) async fn serve(listener: TcpListener, api: Arc<Api>, mut stop: watch::Receiver<bool>) {
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => continue,
            },
            _ = stop.changed() => return,
        };
        let _ = stream.set_nodelay(true);
        let (api, mut stop) = (Arc::clone(&api), stop.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&api), request));
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            tokio::select! {
                _ = connection => {}
                _ = stop.changed() => {}
            }
        });
    }
}

async fn answer(api: Arc<Api>, mut request: Request<Incoming>) -> Result<Response<Body>, ConnectionCut> {
    let upgrade = request.headers().contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| ConnectionCut)?.to_bytes();
    let path = head.uri.path().split('/').filter(|step| !step.is_empty()).map(decode).collect();
    let mut query: HashMap<String, Vec<String>> = HashMap::new();
    for pair in head.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        query.entry(decode(key)).or_default().push(decode(value));
    }
    let call = Call { method: head.method, path, query, headers: head.headers, body, upgrade };
    if call.header("authorization") != format!("Bearer {}", api.token) {
        return Ok(refusal(&ApiError::new(401, "Unauthorized", "Unauthorized")));
    }
    let (verb, resource) = api.name(&call);
    let fault = api.faults.decide(verb, &resource);
    match fault {
        Some(FaultAction::Close) => return Err(ConnectionCut),
        Some(FaultAction::Status(code)) => return Ok(refusal(&injected(code))),
        Some(FaultAction::Delay(time)) => tokio::time::sleep(time).await,
        Some(FaultAction::LoseResponse) | None => {}
    }
    let response = api.answer(call).await.unwrap_or_else(|error| refusal(&error));
    match fault {
        Some(FaultAction::LoseResponse) => Err(ConnectionCut),
        Some(FaultAction::Close | FaultAction::Status(_) | FaultAction::Delay(_)) | None => Ok(response),
    }
}

fn injected(code: u16) -> ApiError {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "InternalError",
    };
    ApiError::new(code, reason, format!("fault plan: {code} {reason}"))
}

/// A JSON answer.
pub(crate) fn json(code: StatusCode, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// A JSON answer that is text already.
pub(crate) fn json_text(content: String) -> Response<Body> {
    let mut response = text(content.into_bytes());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// Plain text.
pub(crate) fn text(content: Vec<u8>) -> Response<Body> {
    Response::new(Full::new(Bytes::from(content)).boxed_unsync())
}

/// An error as `metav1.Status`.
pub(crate) fn refusal(error: &ApiError) -> Response<Body> {
    let code = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(code, &error.to_status())
}

/// A stream of watch events.
pub(crate) fn stream(lines: mpsc::Receiver<Bytes>) -> Response<Body> {
    let frames = futures::stream::unfold(lines, |mut lines| async move {
        lines.recv().await.map(|line| (Ok::<_, Infallible>(Frame::data(line)), lines))
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// An empty body, for upgrades.
pub(crate) fn empty() -> Body {
    Full::new(Bytes::new()).boxed_unsync()
}

/// Percent-decoding, with `+` as a space; what is not valid UTF-8 is replaced.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut decoded, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 3;
            }
            (b'+', _) => {
                decoded.push(b' ');
                at += 1;
            }
            (byte, _) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
