//! A real PostgreSQL as a pod: many processes, each a session leader of its own, under load while it is cut.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use common::{converse, create, end, eventually, exec, full, running};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams};
use serde_json::{Value, json};
use stillpoint_simcluster::{CLASS, SimCluster};

/// The uid of `nobody` on every common distribution: the server refuses to run as root.
const NOBODY: u32 = 65534;

fn programs() -> String {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL's server programs").flatten();
    let mut found: Vec<String> =
        versions.map(|entry| entry.path().join("bin").display().to_string()).collect();
    found.sort();
    found.pop().expect("a version of PostgreSQL")
}

fn server(cluster: &SimCluster, claim: &str) -> Value {
    let mount = cluster.root().join("mnt").join(claim);
    // Sockets apart from the data: their lock files name a process that lives, and would be copied with it.
    let sockets = cluster.root().join("mnt").join(format!("{claim}-run"));
    let script = "cd \"$DATA\" || exit 1
        [ -e pg/PG_VERSION ] || initdb -D pg -U postgres -A trust -E UTF8 >/dev/null || exit 1
        rm -f pg/postmaster.pid
        exec postgres -D pg -k \"$PGHOST\" -c listen_addresses= -c fsync=off";
    let path = format!("{}:/usr/bin:/bin", programs());
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": claim},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "securityContext": {"runAsUser": NOBODY},
            "containers": [{
                "name": "main", "command": ["sh", "-c", script],
                "env": [{"name": "PATH", "value": path}, {"name": "DATA", "value": mount}, {"name": "PGHOST", "value": sockets}],
                "volumeMounts": [{"name": "data", "mountPath": mount}, {"name": "run", "mountPath": sockets}],
                "readinessProbe": {"exec": {"command": ["pg_isready", "-q", "-U", "postgres"]}, "periodSeconds": 1},
            }],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}, {"name": "run", "emptyDir": {}}],
        },
    })
}

async fn sql(cluster: &SimCluster, pod: &str, text: &str) -> String {
    let argv = ["psql", "-U", "postgres", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres"];
    let ended = converse(exec(cluster, pod, &argv, None).await.unwrap(), text.as_bytes()).await;
    assert_eq!(ended.status.unwrap()["status"], "Success", "{}", ended.stderr);
    ended.stdout.trim().to_owned()
}

fn claim(name: &str, source: Option<&str>) -> Value {
    let mut claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"storageClassName": CLASS, "resources": {"requests": {"storage": "1Gi"}}},
    });
    if let Some(source) = source {
        claim["spec"]["dataSource"] = json!({"kind": "VolumeSnapshot", "name": source});
    }
    claim
}

#[tokio::test]
#[ignore = "needs PostgreSQL's server programs in /usr/lib/postgresql, setpriv and root"]
async fn a_server_started_on_a_copy_has_every_commit_acknowledged_before_the_cut() {
    let cluster = full("postgres").await;
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "default");
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client(), "default");
    let snapshots =
        common::dynamic(&cluster, "snapshot.storage.k8s.io/v1", "VolumeSnapshot", "volumesnapshots");
    create(&claims, claim("live", None)).await;
    create(&pods, server(&cluster, "live")).await;
    running(&cluster, "live").await;
    sql(&cluster, "live", "create table w (who int, n int, primary key (who, n));").await;
    // Four writers; each statement commits by itself, and what psql echoes was acknowledged.
    let acknowledged = |who: usize| cluster.root().join(format!("acknowledged-{who}"));
    let mut writers = Vec::new();
    for who in 0..4 {
        let _ = std::fs::write(acknowledged(who), "");
        std::os::unix::fs::chown(acknowledged(who), Some(NOBODY), None).unwrap();
        let script = format!(
            "n=0; while :; do n=$((n+1)); echo \"insert into w values ({who}, $n) returning n;\"; done | psql -U postgres -XAtq -d postgres >{}",
            acknowledged(who).display()
        );
        writers.push(exec(&cluster, "live", &["sh", "-c", &script], None).await.unwrap());
    }
    let count = |who: usize| {
        let text = std::fs::read_to_string(acknowledged(who)).unwrap();
        text.lines().filter_map(|line| line.parse::<u64>().ok()).max().unwrap_or(0)
    };
    for round in 0..3 {
        let already: Vec<u64> = (0..4).map(count).collect();
        eventually("all writers go on", async || {
            (0..4).all(|who| count(who) > already[who] + 50).then_some(())
        })
        .await;
        let name = format!("cut{round}");
        let before: Vec<u64> = (0..4).map(count).collect();
        create(
            &snapshots,
            json!({
                "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name},
                "spec": {"volumeSnapshotClassName": CLASS, "source": {"persistentVolumeClaimName": "live"}},
            }),
        )
        .await;
        eventually("cut", async || {
            (snapshots.get(&name).await.unwrap().data["status"]["readyToUse"] == true).then_some(())
        })
        .await;
        create(&claims, claim(&name, Some(&name))).await;
        create(&pods, server(&cluster, &name)).await;
        running(&cluster, &name).await;
        let rows = sql(&cluster, &name, "select max(n), count(n) from w group by who order by who;").await;
        for (line, least) in rows.lines().zip(&before) {
            let (max, count) = line.split_once('|').unwrap();
            assert_eq!(max, count, "no gaps");
            assert!(max.parse::<u64>().unwrap() >= *least, "{max} of at least {least}");
        }
        assert_eq!(rows.lines().count(), 4);
        pods.delete(&name, &DeleteParams::default()).await.unwrap();
    }
    drop(writers);
    end(cluster).await;
    let left = std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("listen_addresses=\0-c\0fsync=off")
    });
    assert_eq!(left.count(), 0);
}
