//! Pods as processes: exec over a real websocket, restarts, ends, and nothing left behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::process::Stdio;

use common::{converse, create, end, eventually, exec, full, pod, running};
use futures::{SinkExt, StreamExt};
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use stillpoint_simcluster::{SimCluster, SimOptions};
use tokio_tungstenite::tungstenite::Message;

fn pods(cluster: &SimCluster) -> Api<Pod> {
    Api::namespaced(cluster.client(), "default")
}

/// Living processes whose command line contains a mark no other test uses.
fn alive(mark: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(mark) && entry.file_name().to_str() != Some("self")
        })
        .count()
}

#[tokio::test]
async fn exec_carries_input_output_half_close_and_exit_codes() {
    let cluster = full("exec").await;
    let mut object = pod("p", "sleep 1000");
    object["spec"]["containers"][0]["env"] = json!([
        {"name": "GREETING", "value": "hello"},
        {"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ]);
    create(&pods(&cluster), object).await;
    running(&cluster, "p").await;

    let cat = converse(exec(&cluster, "p", &["cat"], None).await.unwrap(), b"line\n").await;
    assert_eq!((cat.stdout.as_str(), cat.stderr.as_str()), ("line\n", ""));
    assert_eq!(cat.status.unwrap(), json!({"metadata": {}, "status": "Success"}));

    let script = "echo $GREETING $ME; echo oops >&2; exit 7";
    let failed = converse(exec(&cluster, "p", &["sh", "-c", script], None).await.unwrap(), b"").await;
    assert_eq!((failed.stdout.as_str(), failed.stderr.as_str()), ("hello p\n", "oops\n"));
    let status = failed.status.unwrap();
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"], json!([{"reason": "ExitCode", "message": "7"}]));

    let missing = converse(exec(&cluster, "p", &["no-such-client"], None).await.unwrap(), b"").await;
    let status = missing.status.unwrap();
    assert_eq!((status["reason"].as_str(), status["code"].as_u64()), (Some("InternalError"), Some(500)));
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("\"no-such-client\": executable file not found in $PATH")
    );

    // Much more than any pipe holds, in one direction, then the status.
    let many =
        converse(exec(&cluster, "p", &["head", "-c", "3000000", "/dev/zero"], None).await.unwrap(), b"")
            .await;
    assert_eq!(many.stdout.len(), 3_000_000);
    assert!(many.status.is_some());
    end(cluster).await;
}

#[tokio::test]
async fn a_client_that_leaves_means_end_of_input_and_not_death() {
    let cluster = full("leave").await;
    create(&pods(&cluster), pod("p", "sleep 1000")).await;
    running(&cluster, "p").await;
    let file = cluster.root().join("after");
    let script = format!("echo ready; cat >/dev/null; echo over >{}", file.display());
    let mut socket = exec(&cluster, "p", &["sh", "-c", &script], None).await.unwrap().into_stream();
    while let Some(Ok(message)) = socket.next().await {
        if matches!(&message, Message::Binary(data) if data.as_ref() == b"\x01ready\n") {
            break;
        }
    }
    socket.send(Message::Binary(b"\x00beat\n".to_vec().into())).await.unwrap();
    assert!(!file.exists(), "the process waits for the end of its input");
    drop(socket);
    eventually("the process ran on after its input ended", async || file.exists().then_some(())).await;
    end(cluster).await;
}

#[tokio::test]
async fn hooks_may_exec_only_where_the_namespace_opted_in() {
    let cluster = full("optin").await;
    create(&pods(&cluster), pod("p", "sleep 1000")).await;
    running(&cluster, "p").await;
    let user = "system:serviceaccount:default:stillpoint-hooks";
    let session = |user: &'static str| exec(&cluster, "p", &["true"], Some(user));
    let code = |error: kube::Error| format!("{error:?}").contains("403");
    assert!(code(session(user).await.err().expect("not opted in")));

    let meta = json!({"name": "stillpoint-hooks"});
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
        Api::namespaced(cluster.client(), "default");
    create(&accounts, json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})).await;
    assert!(code(session(user).await.err().expect("no binding yet")));
    let bindings: Api<k8s_openapi::api::rbac::v1::RoleBinding> = Api::namespaced(cluster.client(), "default");
    let role =
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "stillpoint-hooks"});
    let subject = json!({"kind": "ServiceAccount", "name": "stillpoint-hooks", "namespace": "default"});
    create(
        &bindings,
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": meta,
            "roleRef": role, "subjects": [subject],
        }),
    )
    .await;
    let ended = converse(session(user).await.unwrap(), b"").await;
    assert_eq!(ended.status.unwrap()["status"], "Success");
    assert!(code(session("system:serviceaccount:default:admin").await.err().expect("another account")));
    let recorded = cluster.audit();
    let ours = recorded.iter().filter(|entry| entry.impersonated.as_deref() == Some(user));
    assert_eq!(ours.map(|entry| entry.code).collect::<Vec<_>>(), [403, 403, 101]);
    end(cluster).await;
}

#[tokio::test]
async fn a_container_is_restarted_and_a_deleted_pod_leaves_no_process() {
    let cluster = full("restart").await;
    let api = pods(&cluster);
    let mark = "31536001";
    let flag = cluster.root().join("crashed");
    // Crashes once; then leaves a child in a session of its own behind and waits.
    let script = format!(
        "[ -e {0} ] || {{ touch {0}; exit 3; }}; setsid sleep {mark} & trap 'exit 0' TERM; while :; do sleep 0.05; done",
        flag.display()
    );
    create(&api, pod("p", &script)).await;
    let status = eventually("restarted once", async || {
        let status = api.get("p").await.unwrap().status?.container_statuses?.pop()?;
        (status.restart_count == 1 && status.ready).then_some(status)
    })
    .await;
    assert_eq!(status.last_state.unwrap().terminated.unwrap().exit_code, 3);
    let phase = api.get("p").await.unwrap().status.unwrap().phase;
    assert_eq!(phase.as_deref(), Some("Running"));
    let running = exec(&cluster, "p", &["sleep", mark], None).await.unwrap();
    eventually("both sleepers run", async || (alive(mark) >= 2).then_some(())).await;
    api.delete("p", &DeleteParams::default()).await.unwrap();
    eventually("the pod is gone", async || api.get_opt("p").await.unwrap().is_none().then_some(())).await;
    assert_eq!(alive(mark), 0);
    drop(running);
    end(cluster).await;
}

#[tokio::test]
async fn a_pod_that_ignores_sigterm_is_killed_after_its_grace() {
    let cluster = full("grace").await;
    let api = pods(&cluster);
    let mark = "31536002";
    create(&api, pod("p", &format!("trap '' TERM; sleep {mark}; sleep {mark}"))).await;
    running(&cluster, "p").await;
    eventually("the sleeper runs", async || (alive(mark) > 0).then_some(())).await;
    api.delete("p", &DeleteParams { grace_period_seconds: Some(1), ..DeleteParams::default() })
        .await
        .unwrap();
    eventually("the pod is gone", async || api.get_opt("p").await.unwrap().is_none().then_some(())).await;
    assert_eq!(alive(mark), 0);
    end(cluster).await;
}

#[tokio::test]
async fn readiness_follows_the_probe_and_init_containers_come_first() {
    let cluster = full("probe").await;
    let api = pods(&cluster);
    let (file, order) = (cluster.root().join("ready"), cluster.root().join("order"));
    let mut object = pod("p", &format!("echo main >>{}; sleep 1000", order.display()));
    object["spec"]["initContainers"] =
        json!([{"name": "init", "command": ["sh", "-c", format!("echo init >>{}", order.display())]}]);
    object["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["test", "-e", file.to_str().unwrap()]}, "periodSeconds": 1});
    create(&api, object).await;
    eventually("running", async || (api.get("p").await.unwrap().status?.phase? == "Running").then_some(()))
        .await;
    let ready = api.get("p").await.unwrap().status.unwrap().container_statuses.unwrap()[0].ready;
    assert!(!ready);
    std::fs::write(&file, "").unwrap();
    running(&cluster, "p").await;
    assert_eq!(std::fs::read_to_string(order).unwrap(), "init\nmain\n");
    end(cluster).await;
}

#[tokio::test]
async fn a_mount_outside_the_root_is_refused_with_an_event() {
    let cluster = full("mount").await;
    let mut object = pod("p", "sleep 1000");
    object["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    object["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/var/lib/data"}]);
    create(&pods(&cluster), object).await;
    let events: Api<Event> = Api::namespaced(cluster.client(), "default");
    let said = eventually("an event", async || {
        let found = events.list(&ListParams::default().fields("involvedObject.name=p")).await.unwrap();
        found.items.into_iter().find_map(|event| event.message)
    })
    .await;
    assert!(said.contains("must lie below"), "{said}");
    end(cluster).await;
}

fn stateful_set(root: &str, replicas: u64) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
        "spec": {
            "replicas": replicas, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
            "template": {
                "metadata": {"labels": {"app": "db"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "main", "command": ["sh", "-c", "pwd -P; echo $ME >name; exec sleep 1000"],
                        "workingDir": format!("{root}/mnt/$(ME)"),
                        "env": [{"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                        "volumeMounts": [{"name": "data", "mountPath": format!("{root}/mnt/$(ME)")}],
                    }],
                },
            },
            "volumeClaimTemplates": [{
                "metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
            }],
        },
    })
}

#[tokio::test]
async fn a_stateful_set_scales_and_its_claims_outlive_the_pods() {
    let cluster = full("sts").await;
    let root = cluster.root().to_str().unwrap().to_owned();
    let sets: Api<k8s_openapi::api::apps::v1::StatefulSet> = Api::namespaced(cluster.client(), "default");
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client(), "default");
    create(&sets, stateful_set(&root, 2)).await;
    running(&cluster, "db-1").await;
    let name = |at: u64| std::path::PathBuf::from(format!("{root}/mnt/db-{at}/name"));
    eventually("each pod wrote its volume", async || {
        let read = |at| std::fs::read_to_string(name(at)).unwrap_or_default();
        (read(0) == "db-0\n" && read(1) == "db-1\n").then_some(())
    })
    .await;
    let scale = Patch::Merge(json!({"spec": {"replicas": 0}}));
    sets.patch("db", &PatchParams::default(), &scale).await.unwrap();
    eventually("no pods", async || {
        pods(&cluster)
            .list(&ListParams::default().labels("app=db"))
            .await
            .unwrap()
            .items
            .is_empty()
            .then_some(())
    })
    .await;
    let mut left: Vec<String> =
        claims.list(&ListParams::default()).await.unwrap().iter().map(ResourceExt::name_any).collect();
    left.sort();
    assert_eq!(left, ["data-db-0", "data-db-1"]);
    sets.delete("db", &DeleteParams::default()).await.unwrap();
    claims.delete("data-db-0", &DeleteParams::default()).await.unwrap();
    eventually("the directory went with its claim", async || {
        (std::fs::read_dir(cluster.root().join("volumes")).unwrap().count() == 1).then_some(())
    })
    .await;
    end(cluster).await;
}

/// Not a test of its own: the process that the next one kills.
#[tokio::test]
async fn owner_to_be_killed() {
    let Ok(mark) = std::env::var("SIMCLUSTER_TEST_OWNER") else { return };
    let root = common::fresh_root("killed-owner");
    let cluster = SimCluster::start(SimOptions::new(root)).await.unwrap();
    let script = format!("setsid sh -c 'sleep {mark}; true' & trap '' TERM; sleep {mark}; sleep {mark}");
    create(&pods(&cluster), pod("p", &script)).await;
    futures::future::pending::<()>().await;
}

#[tokio::test]
async fn nothing_is_left_when_the_owner_is_killed() {
    let mark = "31536003";
    let mut owner = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["owner_to_be_killed", "--exact"])
        .env("SIMCLUSTER_TEST_OWNER", mark)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the owner's pod runs", async || (alive(&format!("sleep\0{mark}")) >= 2).then_some(())).await;
    let root = common::root_of("killed-owner", owner.id().unwrap());
    owner.kill().await.unwrap();
    eventually("the watchdog ended the pod", async || (alive(mark) == 0).then_some(())).await;
    std::fs::remove_dir_all(root).unwrap();
}
