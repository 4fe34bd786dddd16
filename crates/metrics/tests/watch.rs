//! The watches against an API server of canned answers: readiness, adoption of what was listed, later events.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use stillpoint_metrics::collector::Family;
use stillpoint_metrics::{BuildInfo, FactsStore, Metrics, Readiness, watch};
use tokio::sync::mpsc;

fn policy() -> Value {
    json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "BackupPolicy",
           "metadata": {"name": "nightly", "namespace": "shop", "resourceVersion": "1",
                        "creationTimestamp": "2026-11-01T00:00:00Z"},
           "spec": {"schedule": {"cron": "@daily"}, "applications": [{"name": "db", "selector": {}}]}})
}

type Answer = UnsyncBoxBody<Bytes, Infallible>;

fn list(items: &[Value]) -> Answer {
    let list =
        json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
    Full::new(Bytes::from(list.to_string())).boxed_unsync()
}

/// A watch that sends what the test sends, and stays open.
fn open(events: mpsc::UnboundedReceiver<Value>) -> Answer {
    let lines = futures::stream::unfold(events, |mut events| async {
        let event = events.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{event}\n")))), events))
    });
    StreamBody::new(lines.boxed()).boxed_unsync()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn what_is_listed_makes_ready_and_what_is_deleted_goes() {
    let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Answer>>();
    let build = BuildInfo { version: String::new(), revision: String::new() };
    let store = Arc::new(FactsStore::new(Arc::new(Metrics::new(&build).unwrap())));
    let readiness = Readiness::default();
    let (feeding, ready) = (Arc::clone(&store), readiness.clone());
    let feed = tokio::spawn(async move {
        watch::feed(Client::new(service, "default"), None, feeding, &ready).await;
    });
    let (policy_events, mut policy_watch) = mpsc::unbounded_channel();
    let (_backup_events, mut backup_watch) = mpsc::unbounded_channel();
    let server = tokio::spawn(async move {
        while let Some((request, send)) = handle.next_request().await {
            let uri = request.uri().to_string();
            let policies = uri.contains("/backuppolicies");
            let body = match (uri.contains("watch=true"), policies) {
                (false, true) => list(&[policy()]),
                (false, false) => list(&[]),
                (true, true) => open(std::mem::replace(&mut policy_watch, mpsc::unbounded_channel().1)),
                (true, false) => open(std::mem::replace(&mut backup_watch, mpsc::unbounded_channel().1)),
            };
            send.send_response(Response::new(body));
        }
    });
    let text = || Family::ALL.iter().map(|family| family.render(&*store)).collect::<String>();
    until("both lists were seen", || readiness.missing().is_empty() && !text().is_empty()).await;
    assert!(text().contains(r#"{namespace="shop",policy="nightly"}"#), "{}", text());
    policy_events.send(json!({"type": "DELETED", "object": policy()})).unwrap();
    until("the deleted policy is gone", || text().is_empty()).await;
    feed.abort();
    server.abort();
}
