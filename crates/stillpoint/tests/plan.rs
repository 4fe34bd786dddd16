//! `stillpoint plan` on an embedded cluster: what it tells of policies and of workloads without one, and that it changes nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use stillpoint_simcluster::{CLASS, SimCluster, SimOptions};

const NAMESPACE: &str = "shop";
/// For what takes moments; a busy machine may take its time.
const SOON: Duration = Duration::from_secs(30);

/// A namespace with a database that a policy selects, and files that none does.
struct Shop {
    cluster: SimCluster,
    root: PathBuf,
}

impl Shop {
    async fn open(name: &str, opted_in: bool) -> Self {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("plan-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        let cluster = SimCluster::start(SimOptions::new(&root)).await.unwrap();
        std::fs::write(root.join("kubeconfig"), cluster.kubeconfig_yaml()).unwrap();
        std::fs::write(root.join("trust.yaml"), stillpoint_simcluster::STORAGE_TRUST).unwrap();
        let shop = Self { cluster, root };
        for definition in stillpoint_api::crd::all() {
            shop.create(serde_json::to_value(definition).unwrap()).await;
        }
        shop.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})).await;
        if opted_in {
            shop.opt_in().await;
        }
        shop.create(shop.template()).await;
        for name in ["db", "files"] {
            shop.workload(name).await;
        }
        shop.create(json!({
            "apiVersion": "stillpoint.dev/v1alpha1", "kind": "BackupPolicy",
            "metadata": {"name": "nightly", "namespace": NAMESPACE},
            "spec": {"schedule": {"cron": "@daily"},
                     "applications": [{"name": "db", "selector": {"matchLabels": {"app": "db"}}}]},
        }))
        .await;
        shop
    }

    async fn create(&self, object: Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (group, version) = match object["apiVersion"].as_str().unwrap().split_once('/') {
            Some((group, version)) => (group.to_owned(), version.to_owned()),
            None => (String::new(), text(&object["apiVersion"])),
        };
        let resource =
            ApiResource::from_gvk(&GroupVersionKind { group, version, kind: text(&object["kind"]) });
        let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(self.cluster.client(), namespace, &resource),
            None => Api::all_with(self.cluster.client(), &resource),
        };
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        api.create(&PostParams::default(), &object).await.unwrap();
    }

    async fn opt_in(&self) {
        let meta = json!({"name": "stillpoint-hooks", "namespace": NAMESPACE});
        self.create(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})).await;
        let group = "rbac.authorization.k8s.io";
        self.create(json!({
            "apiVersion": format!("{group}/v1"), "kind": "RoleBinding", "metadata": meta,
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "stillpoint-hooks"},
            "subjects": [{"kind": "ServiceAccount", "name": "stillpoint-hooks", "namespace": NAMESPACE}],
        }))
        .await;
    }

    /// Found by its image; its role command leaves a trace, and its freeze would leave another.
    fn template(&self) -> Value {
        let root = self.root.display();
        json!({
            "apiVersion": "stillpoint.dev/v1alpha1", "kind": "ClusterHookTemplate", "metadata": {"name": "ledgerdb"},
            "spec": {
                "description": "a database for tests", "proof": "emulated",
                "detect": {"images": ["ledgerdb"]},
                "target": {"pods": "One", "role": {
                    "command": ["sh", "-c", format!("echo asked >>{root}/asked; echo primary")], "accept": ["primary"],
                }},
                "freeze": {"commands": {
                    "freeze": ["touch", format!("{root}/frozen")], "thaw": ["rm", "-f", format!("{root}/frozen")],
                    "probe": ["test", "-e", format!("{root}/frozen")],
                }},
                "crashSafe": {"source": "its only file"},
            },
        })
    }

    /// A pod with one claim, running.
    async fn workload(&self, name: &str) {
        self.create(json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": format!("data-{name}"), "namespace": NAMESPACE},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": CLASS,
                     "resources": {"requests": {"storage": "1Gi"}}},
        }))
        .await;
        let image = if name == "db" { "docker.io/acme/ledgerdb:7" } else { "docker.io/acme/mystery:1" };
        let pod = format!("{name}-0");
        self.create(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod, "namespace": NAMESPACE, "labels": {"app": name}},
            "spec": {
                "containers": [{"name": name, "image": image, "command": ["sleep", "100000"],
                                "volumeMounts": [{"name": "data", "mountPath": self.root.join(format!("mnt-{name}"))}]}],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": format!("data-{name}")}}],
            },
        }))
        .await;
        let pods: Api<Pod> = Api::namespaced(self.cluster.client(), NAMESPACE);
        let runs = async {
            loop {
                let status = pods.get(&pod).await.unwrap().status.unwrap_or_default();
                let mut all = status.container_statuses.into_iter().flatten();
                if all.any(|one| one.state.is_some_and(|state| state.running.is_some())) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(SOON, runs).await.expect("the pod runs");
    }

    async fn plan(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stillpoint"));
        command.args(["plan", "-n", NAMESPACE, "--kubeconfig"]).arg(self.root.join("kubeconfig")).args(args);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    fn trust(&self) -> String {
        self.root.join("trust.yaml").display().to_string()
    }

    fn asked(&self) -> usize {
        std::fs::read_to_string(self.root.join("asked")).map_or(0, |text| text.lines().count())
    }

    /// Nothing was written but what was only rehearsed, nothing was cut, and nothing was frozen.
    fn nothing_changed_since(&self, before: usize) {
        let reads = ["get", "list", "watch"];
        for entry in &self.cluster.audit()[before..] {
            let changes = !reads.contains(&entry.verb.as_str()) && entry.resource != "pods/exec";
            assert!(!changes || entry.dry_run, "{entry:?}");
        }
        assert_eq!(self.cluster.ledger(), []);
        assert!(!self.root.join("frozen").exists());
    }

    async fn close(self) {
        self.cluster.shutdown().await.unwrap();
        let _ = std::fs::remove_dir_all(&self.root).or_else(|_| std::fs::remove_dir_all(&self.root));
    }
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn reasons(plan: &Value) -> Vec<&str> {
    plan["missing"].as_array().unwrap().iter().map(|one| one["reason"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_tells_what_would_be_frozen_and_cut_and_what_it_is_worth_and_changes_nothing() {
    let shop = Shop::open("whole", true).await;
    let before = shop.cluster.audit().len();
    let output = shop.plan(&["--storage-trust", &shop.trust()]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = stdout(&output);
    for line in [
        "policy nightly: a run could begin\n",
        "  detected   db: template ledgerdb (image docker.io/acme/ledgerdb:7); 1 pod; db-0 is primary\n",
        "  freeze     db: Commands in db-0/db: commits stop; when we fall silent it ends by itself after 10 s; proof emulated\n",
        "  promise    at most 30 s from the first lock to the last thaw: the locks within 15 s, the cuts within 27 s\n",
        "  cut        data-db: alone; driver sim.stillpoint.dev, class ",
        "each cut is one instant (operator: ",
        "  at best    Application, continuity State\n",
        "NO POLICY for files-0 (app=files): a run would NOT give a point\n",
        "  missing    NoTemplate: application files-0: no template fits the images docker.io/acme/mystery:1",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    assert_eq!(shop.asked(), 1, "the role command ran once, as before a backup");
    shop.nothing_changed_since(before);
    let rehearsed = shop.cluster.audit()[before..].iter().filter(|entry| entry.dry_run).count();
    assert_eq!(rehearsed, 1, "the one snapshot request was rehearsed");

    let output = shop.plan(&["--policy", "nightly", "--ask-nothing", "-o", "json"]).await;
    // Without the operator's file the driver is a stranger.
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report = json_of(&output);
    let plan = &report["plans"][0];
    assert_eq!(report["plans"].as_array().unwrap().len(), 1);
    assert_eq!(plan["subject"], json!({"kind": "policy", "name": "nightly"}));
    assert_eq!(reasons(plan), ["StorageNotTrusted"]);
    assert_ne!(plan["parts"][0]["best"]["consistency"], "Application");
    let unknown = plan["unknown"].to_string();
    assert!(unknown.contains("role of pod db-0 was not asked; it is taken to be primary"), "{unknown}");
    assert_eq!(shop.asked(), 1, "--ask-nothing ran nothing");
    shop.nothing_changed_since(before);
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_did_not_opt_in_is_told_everything_and_none_of_its_containers_is_entered() {
    let shop = Shop::open("stranger", false).await;
    let before = shop.cluster.audit().len();
    let output = shop.plan(&["-o", "json"]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report = json_of(&output);
    let nightly = &report["plans"][0];
    assert_eq!(reasons(nightly), ["NamespaceNotOptedIn", "StorageNotTrusted"], "both, not only the first");
    assert_eq!(nightly["couldRun"], false);
    assert_eq!(nightly["parts"][0]["applications"][0]["hold"], "Commands", "and still what would be held");
    assert!(shop.cluster.audit()[before..].iter().all(|entry| entry.resource != "pods/exec"));
    assert_eq!(shop.asked(), 0);
    shop.nothing_changed_since(before);

    let output = shop.plan(&["--policy", "nigthly"]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("did you mean nightly?"), "{output:?}");
    let output = shop.plan(&["--as-me", "--ask-nothing"]).await;
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_is_bound_to_nothing_is_missing_its_binding() {
    let shop = Shop::open("unbound", false).await;
    let meta = json!({"name": "stillpoint-hooks", "namespace": NAMESPACE});
    shop.create(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})).await;
    let trust = shop.trust();
    let output =
        shop.plan(&["--policy", "nightly", "--ask-nothing", "--storage-trust", &trust, "-o", "json"]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(reasons(&json_of(&output)["plans"][0]), ["ExecForbidden"]);
    shop.close().await;
}
