//! Tells of every request to the API server: what it was, how it was answered, and after how long.
//!
//! Guarantees: each request is told once, also one whose answer nobody waited for; what is told names a kind of object and
//! never an object. One layer of the client that every part uses ([`crate::api_client`]), so nothing is left out.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Method, Request, Response};
use stillpoint_api::clock::{Mono, SharedClock};
use tower::{Layer, Service};

/// A request without the names in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiRequest {
    /// As Kubernetes names it: `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `connect`
    /// (exec), or `other`.
    pub verb: &'static str,
    /// Plural name of the kind, with its subresource: `backups/status`; `none` for a path about no objects.
    pub resource: String,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// HTTP status. That of a watch is of its beginning.
    Status(u16),
    /// There was no answer: no connection, or it broke.
    Unreachable,
    /// It was given up before there was an answer: its time was over, or whoever asked ended.
    Abandoned,
}

/// Hears of requests.
pub trait RequestObserver: Send + Sync {
    /// One was answered, or will not be any more, `took` after it was asked.
    fn answered(&self, request: &ApiRequest, answer: Answer, took: Duration);
}

/// The layer that tells.
#[derive(Clone)]
pub struct RequestMeter {
    observer: Arc<dyn RequestObserver>,
    clock: SharedClock,
}

/// A client's service under the layer.
#[derive(Clone)]
pub struct Metered<S> {
    inner: S,
    meter: RequestMeter,
}

/// One request that was sent; told when it is dropped.
struct Asked {
    meter: RequestMeter,
    request: ApiRequest,
    since: Mono,
    answer: Answer,
}

impl ApiRequest {
    /// What `request` is.
    pub fn of<B>(request: &Request<B>) -> Self {
        let parts: Vec<&str> = request.uri().path().split('/').filter(|part| !part.is_empty()).collect();
        // /api/VERSION/…, /apis/GROUP/VERSION/…
        let inside = match parts.as_slice() {
            ["api", _, inside @ ..] | ["apis", _, _, inside @ ..] => inside,
            _ => &[],
        };
        let (kind, name, subresource) = match inside {
            ["namespaces", _, kind, name, subresource, ..] => (*kind, Some(*name), Some(*subresource)),
            ["namespaces", _, kind, name] => (*kind, Some(*name), None),
            ["namespaces", _, kind] => (*kind, None, None),
            [kind, name, subresource, ..] => (*kind, Some(*name), Some(*subresource)),
            [kind, name] => (*kind, Some(*name), None),
            [kind] => (*kind, None, None),
            [] => ("none", None, None),
        };
        let watches = request.uri().query().is_some_and(|query| {
            query.split('&').any(|pair| matches!(pair, "watch" | "watch=true" | "watch=1"))
        });
        let verb = match *request.method() {
            Method::GET if matches!(subresource, Some("exec" | "attach" | "portforward")) => "connect",
            Method::GET if watches => "watch",
            Method::GET if name.is_some() || kind == "none" => "get",
            Method::GET => "list",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if name.is_some() => "delete",
            Method::DELETE => "deletecollection",
            _ => "other",
        };
        let resource = match subresource {
            Some(subresource) => format!("{kind}/{subresource}"),
            None => kind.to_owned(),
        };
        Self { verb, resource }
    }
}

impl RequestMeter {
    /// Tells `observer`, by the monotonic part of `clock`.
    pub fn new(observer: Arc<dyn RequestObserver>, clock: SharedClock) -> Self {
        Self { observer, clock }
    }
}

impl std::fmt::Debug for RequestMeter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestMeter").finish_non_exhaustive()
    }
}

impl<S> Layer<S> for RequestMeter {
    type Service = Metered<S>;

    fn layer(&self, inner: S) -> Metered<S> {
        Metered { inner, meter: self.clone() }
    }
}

impl<S, B, R> Service<Request<B>> for Metered<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let meter = self.meter.clone();
        let since = meter.clock.mono();
        let asked = Asked { request: ApiRequest::of(&request), meter, since, answer: Answer::Abandoned };
        let answer = self.inner.call(request);
        Box::pin(async move {
            // As a whole, so that it is dropped with this future.
            let mut asked = asked;
            let answer = answer.await;
            asked.answer = match &answer {
                Ok(response) => Answer::Status(response.status().as_u16()),
                Err(_) => Answer::Unreachable,
            };
            answer
        })
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let took = self.meter.clock.mono().since(self.since);
        self.meter.observer.answered(&self.request, self.answer, took);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Mutex;

    use stillpoint_api::clock::ManualClock;
    use tower::ServiceExt as _;
    use tower::service_fn;

    use super::*;

    fn of(method: &str, path: &str) -> (&'static str, String) {
        let request = Request::builder().method(method).uri(path).body(()).unwrap();
        let ApiRequest { verb, resource } = ApiRequest::of(&request);
        (verb, resource)
    }

    #[test]
    fn a_request_is_named_by_verb_and_kind_and_never_by_an_object() {
        for (method, path, verb, resource) in [
            ("GET", "/version", "get", "none"),
            ("GET", "/apis/snapshot.storage.k8s.io/v1", "get", "none"),
            ("GET", "/api/v1/pods?labelSelector=watch", "list", "pods"),
            ("GET", "/api/v1/namespaces", "list", "namespaces"),
            ("GET", "/api/v1/namespaces/shop", "get", "namespaces"),
            ("GET", "/api/v1/namespaces/shop/pods?&watch=true&timeoutSeconds=290", "watch", "pods"),
            ("GET", "/api/v1/namespaces/shop/pods/db-0", "get", "pods"),
            ("GET", "/api/v1/namespaces/shop/pods/db-0/exec?stdin=true&command=x", "connect", "pods/exec"),
            ("POST", "/apis/stillpoint.dev/v1alpha1/namespaces/shop/backups?", "create", "backups"),
            (
                "PUT",
                "/apis/stillpoint.dev/v1alpha1/namespaces/shop/backups/a/status",
                "update",
                "backups/status",
            ),
            (
                "PATCH",
                "/apis/stillpoint.dev/v1alpha1/protectionrules/gold/status",
                "patch",
                "protectionrules/status",
            ),
            ("DELETE", "/api/v1/namespaces/shop/configmaps/a", "delete", "configmaps"),
            ("DELETE", "/api/v1/namespaces/shop/configmaps", "deletecollection", "configmaps"),
            ("HEAD", "/healthz", "other", "none"),
        ] {
            assert_eq!(of(method, path), (verb, resource.to_owned()), "{method} {path}");
        }
    }

    #[derive(Default)]
    struct Heard(Mutex<Vec<(String, Answer, Duration)>>);

    impl RequestObserver for Heard {
        fn answered(&self, request: &ApiRequest, answer: Answer, took: Duration) {
            let what = format!("{} {}", request.verb, request.resource);
            self.0.lock().unwrap().push((what, answer, took));
        }
    }

    #[tokio::test]
    async fn every_request_is_told_once_also_one_that_nobody_waited_for() {
        let clock = Arc::new(ManualClock::at("2026-11-21T01:00:00Z".parse().unwrap()));
        let heard = Arc::new(Heard::default());
        let meter = RequestMeter::new(heard.clone(), clock.clone());
        let server = service_fn(move |request: Request<()>| {
            let clock = clock.clone();
            async move {
                if request.uri().path() == "/api/v1/pods" {
                    return std::future::pending().await;
                }
                clock.advance(Duration::from_secs(2));
                Ok::<_, Infallible>(Response::builder().status(409).body(()).unwrap())
            }
        });
        let client = meter.layer(server);
        let get = |path: &str| Request::get(path).body(()).unwrap();
        let answer = client.clone().oneshot(get("/api/v1/namespaces/shop/pods/a")).await.unwrap();
        assert_eq!(answer.status(), 409);
        let silent = client.oneshot(get("/api/v1/pods"));
        assert!(tokio::time::timeout(Duration::ZERO, silent).await.is_err());
        let broken = meter.layer(service_fn(|_: Request<()>| async { Err::<Response<()>, _>("reset") }));
        assert!(broken.oneshot(get("/version")).await.is_err());
        assert_eq!(
            *heard.0.lock().unwrap(),
            [
                ("get pods".to_owned(), Answer::Status(409), Duration::from_secs(2)),
                ("list pods".to_owned(), Answer::Abandoned, Duration::ZERO),
                ("get none".to_owned(), Answer::Unreachable, Duration::ZERO),
            ]
        );
    }
}
