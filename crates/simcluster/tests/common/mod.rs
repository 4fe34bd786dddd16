//! What the suites of the embedded cluster share: a fresh cluster, waiting with a deadline, a raw exec client.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::PathBuf;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use kube::api::{Api, DynamicObject, GroupVersionKind, PostParams};
use kube::core::ApiResource;
use serde_json::{Value, json};
use stillpoint_simcluster::{SimCluster, SimOptions};
use tokio_tungstenite::tungstenite::Message;

pub const DEADLINE: Duration = Duration::from_secs(20);

pub fn root_of(name: &str, process: u32) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{process}"))
}

pub fn fresh_root(name: &str) -> PathBuf {
    let root = root_of(name, std::process::id());
    let _ = std::fs::remove_dir_all(&root);
    root
}

pub async fn api_only(name: &str) -> SimCluster {
    SimCluster::start(SimOptions::api_only(fresh_root(name))).await.unwrap()
}

pub async fn full(name: &str) -> SimCluster {
    let options = SimOptions { back_off: Duration::from_millis(50), ..SimOptions::new(fresh_root(name)) };
    SimCluster::start(options).await.unwrap()
}

pub async fn end(cluster: SimCluster) {
    let root = cluster.root().to_owned();
    cluster.shutdown().await.unwrap();
    std::fs::remove_dir_all(root).unwrap();
}

/// Asks until the answer is there; the deadline is a failure.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let answer = tokio::time::timeout(DEADLINE, async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    answer.await.unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

pub fn dynamic(cluster: &SimCluster, api: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
    let (group, version) = api.split_once('/').unwrap_or(("", api));
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
    Api::namespaced_with(cluster.client(), "default", &resource)
}

pub async fn create<K>(api: &Api<K>, object: Value) -> K
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
{
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap()
}

pub fn pod(name: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "containers": [{"name": "main", "command": ["sh", "-c", script]}],
        },
    })
}

pub async fn running(cluster: &SimCluster, name: &str) {
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(cluster.client(), "default");
    eventually(&format!("pod {name} ready"), async || {
        let conditions = pods.get(name).await.ok()?.status?.conditions?;
        conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True").then_some(())
    })
    .await;
}

/// What a session wrote and how it ended.
#[derive(Debug, Default)]
pub struct Ended {
    pub stdout: String,
    pub stderr: String,
    pub status: Option<Value>,
}

pub async fn exec(
    cluster: &SimCluster,
    pod: &str,
    argv: &[&str],
    user: Option<&str>,
) -> Result<kube::client::Connection, kube::Error> {
    let mut query = "stdin=true&stdout=true&stderr=true&container=main".to_owned();
    for word in argv {
        let hex: String = word.bytes().map(|byte| format!("%{byte:02X}")).collect();
        query.push_str(&format!("&command={hex}"));
    }
    let mut request = http::Request::get(format!("/api/v1/namespaces/default/pods/{pod}/exec?{query}"));
    if let Some(user) = user {
        request = request.header("Impersonate-User", user);
    }
    cluster.client().connect(request.body(Vec::new()).unwrap()).await
}

/// Sends input, half-closes, and reads to the end.
pub async fn converse(connection: kube::client::Connection, input: &[u8]) -> Ended {
    let mut socket = connection.into_stream();
    if !input.is_empty() {
        let mut frame = vec![0];
        frame.extend_from_slice(input);
        socket.send(Message::Binary(frame.into())).await.unwrap();
    }
    socket.send(Message::Binary(vec![255, 0].into())).await.unwrap();
    let mut ended = Ended::default();
    let read = async {
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Binary(data) = message {
                let text = String::from_utf8_lossy(&data[1..]).into_owned();
                match data[0] {
                    1 => ended.stdout.push_str(&text),
                    2 => ended.stderr.push_str(&text),
                    3 => ended.status = Some(serde_json::from_str(&text).unwrap()),
                    other => panic!("channel {other}"),
                }
            }
        }
    };
    tokio::time::timeout(DEADLINE, read).await.expect("the session ends");
    ended
}
