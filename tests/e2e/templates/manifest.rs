//! The objects of a row: its server under load, a server on a copy, a cut without the product.

use serde_json::{Map, Value, json};
use stillpoint_e2e::cluster::Cluster;
use stillpoint_e2e::{Outcome, Present as _};

use crate::row::{Row, Storage};

/// The load's programs, and a file with a password that is not the server's.
///
/// # Errors
/// A program cannot be read.
pub fn fixtures(cluster: &Cluster) -> Outcome<Value> {
    let mut data = Map::new();
    data.insert("wrong".to_owned(), json!("wrong"));
    for name in ["load.py", "acks.py"] {
        data.insert(name.to_owned(), json!(cluster.read(&format!("tests/cluster/fixtures/{name}"))?));
    }
    for entry in std::fs::read_dir(cluster.file("tests/cluster/fixtures/rows"))? {
        let name = entry?.file_name().into_string().ok().present("a file name of letters")?;
        if name.ends_with(".py") {
            let text = cluster.read(&format!("tests/cluster/fixtures/rows/{name}"))?;
            data.insert(name, json!(text));
        }
    }
    Ok(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "fixtures"}, "data": data}))
}

/// Server and load on one volume, and beside them a container that has no program at all.
pub fn source(row: &Row, storage: Storage) -> Value {
    let server = &row.server;
    let load = json!({
        "name": "load",
        "image": image(row),
        "imagePullPolicy": "Never",
        "command": ["python3", server.program.path(), "run"],
        "env": env(row, ""),
        // The first commit was acknowledged.
        "readinessProbe": {"exec": {"command": ["test", "-s", "/load/acks"]}, "periodSeconds": 1},
        "volumeMounts": mounts(row, &[("acks", "/load")], server.shares_data),
    });
    let claims: Vec<Value> = std::iter::once("data")
        .chain(server.second.map(|_| "second"))
        .map(|name| {
            json!({
                "metadata": {"name": name},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "storageClassName": storage.name(),
                    "resources": {"requests": {"storage": "2Gi"}},
                },
            })
        })
        .collect();
    let bare = json!({"name": "bare", "image": "cluster.local/pause:1", "imagePullPolicy": "Never"});
    json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "server"},
        "spec": {
            "serviceName": "server",
            "replicas": 1,
            "selector": {"matchLabels": {"app": "server"}},
            "template": {
                "metadata": {"labels": {"app": "server"}},
                "spec": {
                    "dnsPolicy": "None",
                    "dnsConfig": no_names(),
                    "terminationGracePeriodSeconds": 1,
                    "containers": [running(row, row.options, ""), load, bare],
                    "volumes": volumes(row, &[json!({"name": "acks", "emptyDir": {}})]),
                },
            },
            "volumeClaimTemplates": claims,
        },
    })
}

/// The server on its claims as they were cut, the data first, with the label that its template says is to be put there. No load runs.
pub fn copy(row: &Row, pod: &str, claims: &[String], label: &str) -> Value {
    let options = format!("{} {}", row.options, row.server.copy_options);
    let data: Vec<Value> = ["data", "second"]
        .iter()
        .zip(claims)
        .map(|(name, claim)| json!({"name": name, "persistentVolumeClaim": {"claimName": claim}}))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod, "labels": {"restored": "server"}},
        "spec": {
            "dnsPolicy": "None",
            "dnsConfig": no_names(),
            "terminationGracePeriodSeconds": 1,
            "restartPolicy": "Never",
            "containers": [running(row, &options, label)],
            "volumes": volumes(row, &data),
        },
    })
}

/// A cut without the product.
pub fn snapshot(name: &str, claim: &str) -> Value {
    json!({
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": name},
        "spec": {"volumeSnapshotClassName": "btrfs", "source": {"persistentVolumeClaimName": claim}},
    })
}

/// A claim with the content of that cut, under its name.
pub fn clone(name: &str, storage: Storage) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": storage.name(),
            "dataSource": {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": name},
            "resources": {"requests": {"storage": "2Gi"}},
        },
    })
}

/// This cluster has no name server, and the address of the usual one never answers: mongosh, which looks for news in the network, would
/// end 10 s after its last statement. Nothing listens here, so that it is told at once.
fn no_names() -> Value {
    json!({"nameservers": ["127.0.0.1"]})
}

fn running(row: &Row, options: &str, label: &str) -> Value {
    let mut env = env(row, options);
    env.push(json!({"name": "BACKUP_LABEL", "value": label}));
    json!({
        "name": "server",
        "image": image(row),
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", row.server.start],
        "env": env,
        "securityContext": {"readOnlyRootFilesystem": row.server.read_only_root},
        "readinessProbe": {"exec": {"command": ["sh", "-c", row.server.ready]}, "periodSeconds": 1, "timeoutSeconds": 10},
        "volumeMounts": mounts(row, &[], true),
    })
}

fn image(row: &Row) -> String {
    format!("cluster.local/{}:1", row.server.image)
}

fn env(row: &Row, options: &str) -> Vec<Value> {
    let (writers, pause) = row.server.writers;
    let own = [
        ("ENGINE", row.server.engine.to_owned()),
        ("OPTIONS", options.to_owned()),
        ("LOAD_WRITERS", writers.to_string()),
        ("LOAD_PAUSE_MS", pause.to_string()),
    ];
    let fixed = row.server.env.iter().map(|(name, value)| json!({"name": name, "value": value}));
    fixed.chain(own.iter().map(|(name, value)| json!({"name": name, "value": value}))).collect()
}

fn mounts(row: &Row, more: &[(&str, &str)], data: bool) -> Vec<Value> {
    let socket = row.server.socket.map(|path| ("socket", path));
    let data = data.then_some(("data", "/data"));
    let second = row.server.second.filter(|_| data.is_some()).map(|path| ("second", path));
    let all = more.iter().copied().chain([("fixtures", "/fixtures")]).chain(socket).chain(data).chain(second);
    all.map(|(name, path)| json!({"name": name, "mountPath": path})).collect()
}

fn volumes(row: &Row, more: &[Value]) -> Vec<Value> {
    let fixtures = json!({"name": "fixtures", "configMap": {"name": "fixtures"}});
    let socket = row.server.socket.map(|_| json!({"name": "socket", "emptyDir": {}}));
    more.iter().cloned().chain([fixtures]).chain(socket).collect()
}
