//! The commands that talk to a cluster, against an API server of a few canned answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

const API: &str = "/apis/stillpoint.dev/v1alpha1/namespaces/shop";

/// One canned answer.
#[derive(Clone)]
enum Answer {
    /// One object or a refusal.
    Object(u16, Value),
    /// States of one object over time: the first is listed, the others come by the watch, which then stays open.
    States(Vec<Value>),
    /// A list.
    List(Vec<Value>),
}

/// `METHOD path` (without the query) → answer. What is not canned is a 404 of the whole resource.
struct Server {
    kubeconfig: std::path::PathBuf,
    posted: Arc<Mutex<Vec<Value>>>,
}

impl Server {
    fn answering(name: &str, answers: Vec<(&str, Answer)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let posted = Arc::new(Mutex::new(Vec::new()));
        let answers: Arc<Vec<(String, Answer)>> =
            Arc::new(answers.into_iter().map(|(key, answer)| (key.replace('~', API), answer)).collect());
        let seen = Arc::clone(&posted);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answers, seen) = (Arc::clone(&answers), Arc::clone(&seen));
                std::thread::spawn(move || answer(stream, &answers, &seen));
            }
        });
        let kubeconfig = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.kubeconfig"));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}],
        });
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        Self { kubeconfig, posted }
    }

    fn stillpoint(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_stillpoint"))
            .args(args)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .output()
            .unwrap()
    }
}

fn answer(mut stream: TcpStream, answers: &[(String, Answer)], posted: &Mutex<Vec<Value>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let key = format!("{method} {}", path.trim_end_matches('?'));
    let found = answers.iter().find(|(canned, _)| *canned == key).map(|(_, answer)| answer.clone());
    if method == "POST" || method == "PATCH" {
        let body: Value = serde_json::from_slice(&body).unwrap();
        posted.lock().unwrap().push(body.clone());
        return match found {
            Some(Answer::Object(code, refusal)) => respond(&mut stream, code, &refusal),
            _ => respond(&mut stream, 201, &body),
        };
    }
    let list = |items: &[Value]| {
        json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "List", "metadata": {"resourceVersion": "1"},
               "items": items})
    };
    match found {
        Some(Answer::Object(code, value)) => respond(&mut stream, code, &value),
        Some(Answer::List(items)) => respond(&mut stream, 200, &list(&items)),
        Some(Answer::States(states)) if query.contains("watch=true") => {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            for state in &states[1..] {
                let _ = stream
                    .write_all(format!("{}\n", json!({"type": "MODIFIED", "object": state})).as_bytes());
            }
            // Open until the client leaves.
            let _ = stream.read(&mut [0; 1]);
        }
        Some(Answer::States(states)) => respond(&mut stream, 200, &list(&states[..1])),
        None => respond(&mut stream, 404, &refusal(404, "the server could not find the requested resource")),
    }
}

fn respond(stream: &mut TcpStream, code: u16, value: &Value) {
    let body = value.to_string();
    let head = format!(
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body.as_bytes());
}

fn refusal(code: u16, message: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "message": message,
           "reason": "X", "metadata": {}})
}

fn policy(name: &str, consistency: &str) -> Value {
    json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "BackupPolicy",
           "metadata": {"name": name, "namespace": "shop"},
           "spec": {"schedule": {"cron": "@daily"}, "consistency": consistency,
                    "applications": [{"name": "db", "selector": {}}]}})
}

fn backup(status: Value) -> Value {
    json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "Backup",
           "metadata": {"name": "b", "namespace": "shop", "resourceVersion": "2",
                        "creationTimestamp": "2026-11-21T02:00:00Z"},
           "spec": {"run": {"policyRef": {"name": "nightly"}}}, "status": status})
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Runs a backup of `nightly` that goes through `states`.
fn run(test: &str, consistency: &str, states: &[Value]) -> (Server, Output) {
    let answers = vec![
        ("GET ~/backuppolicies/nightly", Answer::Object(200, policy("nightly", consistency))),
        ("GET ~/backups", Answer::States(states.iter().cloned().map(backup).collect())),
    ];
    let server = Server::answering(test, answers);
    let args = ["backup", "run", "--policy", "nightly", "--name", "b", "--wait", "--timeout", "20s"];
    let output = server.stillpoint(&args);
    (server, output)
}

#[test]
fn a_run_is_followed_to_its_verdict() {
    let done = json!({"phase": "Succeeded", "consistency": "Application", "continuity": "Lock", "attempt": 1,
                      "resolved": {"applications": [{"name": "db", "hold": "Session"}]},
                      "window": {"frozenSeconds": 0.0712}, "cut": "2026-11-21T02:00:01.160000Z"});
    let states = [
        json!({}),
        json!({"phase": "Preparing", "attempt": 1}),
        json!({"phase": "Freezing", "attempt": 1}),
        done,
    ];
    let (server, output) = run("followed", "Required", &states);
    assert_eq!(code(&output), 0, "{output:?}");
    assert_eq!(
        stdout(&output),
        "b: Application (Lock), frozen for 71.2 ms, cut at 2026-11-21T02:00:01.160Z\n"
    );
    for phase in ["Pending", "Preparing", "Freezing", "Succeeded"] {
        assert!(stderr(&output).contains(phase), "{output:?}");
    }
    let posted = server.posted.lock().unwrap();
    assert_eq!(posted[0]["spec"]["run"]["policyRef"]["name"], "nightly");
    assert_eq!(posted[0]["spec"]["trigger"], "Manual");
    assert_eq!(posted[0]["spec"]["run"].as_object().unwrap().len(), 1, "nothing beside the policy");
}

#[test]
fn a_run_is_cancelled_by_one_field_and_a_finished_one_is_not() {
    let running = backup(json!({"phase": "Freezing", "attempt": 1}));
    let server = Server::answering(
        "cancel",
        vec![
            ("GET ~/backups/b", Answer::Object(200, running.clone())),
            ("PATCH ~/backups/b", Answer::Object(200, running)),
        ],
    );
    let output = server.stillpoint(&["backup", "cancel", "b"]);
    assert_eq!(code(&output), 0, "{output:?}");
    assert_eq!(*server.posted.lock().unwrap(), [json!({"spec": {"cancel": true}})]);

    let finished = backup(json!({"phase": "Succeeded", "consistency": "Application"}));
    let server = Server::answering("cancel-late", vec![("GET ~/backups/b", Answer::Object(200, finished))]);
    let output = server.stillpoint(&["backup", "cancel", "b"]);
    assert_eq!(code(&output), 1, "{output:?}");
    assert!(stderr(&output).contains("it is over"), "{output:?}");
    assert!(server.posted.lock().unwrap().is_empty());
}

#[test]
fn each_end_of_a_run_has_its_exit_code() {
    let kept = |consistency: &str| json!({"phase": "Succeeded", "consistency": consistency});
    for (test, requirement, last, expected) in [
        ("crash", "BestEffort", kept("Crash"), 3),
        ("unproven", "BestEffort", kept("None"), 4),
        ("required", "Required", kept("Crash"), 1),
        ("failed", "BestEffort", json!({"phase": "Failed"}), 1),
    ] {
        let (_server, output) = run(test, requirement, &[json!({}), last]);
        assert_eq!(code(&output), expected, "{test}: {output:?}");
    }
}

#[test]
fn a_run_that_takes_too_long_is_left_running() {
    let answers = vec![
        ("GET ~/backuppolicies/nightly", Answer::Object(200, policy("nightly", "Required"))),
        ("GET ~/backups", Answer::States(vec![backup(json!({}))])),
    ];
    let server = Server::answering("slow", answers);
    let args = ["backup", "run", "--policy", "nightly", "--wait", "--timeout", "500ms"];
    let output = server.stillpoint(&args);
    assert_eq!(code(&output), 75, "{output:?}");
    assert!(stderr(&output).contains("is the controller running?"), "{output:?}");
    let name = server.posted.lock().unwrap()[0]["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(name.starts_with("nightly-manual-"), "{name}");
}

#[test]
fn a_create_that_was_refused_is_not_sent_again() {
    for (test, code_, message) in [("busy", 503, "the server is busy"), ("taken", 409, "b already exists")] {
        let answers = vec![
            ("GET ~/backuppolicies/nightly", Answer::Object(200, policy("nightly", "Required"))),
            ("POST ~/backups", Answer::Object(code_, refusal(code_, message))),
        ];
        let server = Server::answering(test, answers);
        let output = server.stillpoint(&["backup", "run", "--policy", "nightly", "--name", "b", "--wait"]);
        assert_eq!(code(&output), 1, "{output:?}");
        assert!(stderr(&output).contains(message), "{output:?}");
        assert_eq!(server.posted.lock().unwrap().len(), 1, "{test}");
    }
}

#[test]
fn a_mistyped_policy_is_told_its_neighbours() {
    let not_found = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": 404,
                           "message": "not found", "reason": "NotFound", "details": {"name": "nigthly"}});
    let answers = vec![
        ("GET ~/backuppolicies/nigthly", Answer::Object(404, not_found)),
        (
            "GET ~/backuppolicies",
            Answer::List(vec![policy("nightly", "Required"), policy("weekly", "Required")]),
        ),
    ];
    let server = Server::answering("mistyped", answers);
    let output = server.stillpoint(&["backup", "run", "--policy", "nigthly"]);
    assert_eq!(code(&output), 1, "{output:?}");
    assert!(stderr(&output).contains("did you mean nightly?"), "{output:?}");
    assert!(server.posted.lock().unwrap().is_empty());
}

#[test]
fn a_cluster_without_the_kinds_is_told_how_to_get_them() {
    let server = Server::answering("bare", vec![]);
    for args in [&["backup", "list"][..], &["backup", "run", "--policy", "p"], &["backup", "describe", "b"]] {
        let output = server.stillpoint(args);
        assert_eq!(code(&output), 1, "{output:?}");
        assert!(stderr(&output).contains("stillpoint crd | kubectl apply --server-side -f -"), "{output:?}");
    }
}

#[test]
fn who_may_not_is_told_what_he_may() {
    let message = "backups.stillpoint.dev is forbidden: User \"u\" cannot list resource";
    let answers = vec![("GET ~/backups", Answer::Object(403, refusal(403, message)))];
    let output = Server::answering("forbidden", answers).stillpoint(&["backup", "list"]);
    assert_eq!(code(&output), 1, "{output:?}");
    assert!(stderr(&output).contains("kubectl auth can-i --list -n shop"), "{output:?}");
}

#[test]
fn the_doctor_reads_only_and_tells_programs_what_is_wrong() {
    let version = json!({"major": "1", "minor": "36", "gitVersion": "v1.36.3", "gitCommit": "", "gitTreeState": "",
        "buildDate": "", "goVersion": "", "compiler": "", "platform": ""});
    let group = |name: &str| {
        let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
        json!({"name": name, "versions": [version], "preferredVersion": version})
    };
    let sidecar = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "csi-0", "namespace": "kube-system"},
        "spec": {"containers": [{"name": "snap", "image": "sig/csi-snapshotter:v8.6.0"}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    let answers = vec![
        ("GET /version", Answer::Object(200, version)),
        (
            "GET /apis",
            Answer::Object(
                200,
                json!({"kind": "APIGroupList", "apiVersion": "v1",
            "groups": [group("snapshot.storage.k8s.io")]}),
            ),
        ),
        ("GET /api/v1/pods", Answer::List(vec![sidecar])),
        ("GET /api/v1/persistentvolumes", Answer::List(vec![])),
        (
            "GET /apis/rbac.authorization.k8s.io/v1/clusterroles",
            Answer::Object(403, refusal(403, "not yours")),
        ),
    ];
    let server = Server::answering("doctor", answers);
    let output = server.stillpoint(&["doctor", "-o", "json"]);
    assert_eq!(code(&output), 1, "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = |check: &str| {
        let findings = report["findings"].as_array().unwrap();
        findings
            .iter()
            .find(|finding| finding["check"] == check)
            .unwrap_or_else(|| panic!("{check}: {report:#}"))
            .clone()
    };
    assert_eq!(found("server-version")["severity"], "ok");
    assert_eq!(found("snapshot-api")["severity"], "ok");
    assert!(found("client-throttle")["cure"].as_str().unwrap().contains("--kube-api-qps=100"));
    assert_eq!(found("kinds")["severity"], "error");
    assert!(found("wide-grants")["why"].as_str().unwrap().contains("not yours"), "{report:#}");
    assert_eq!(report["errors"], 1, "{report:#}");
    assert!(server.posted.lock().unwrap().is_empty());
    let text = server.stillpoint(&["doctor"]);
    assert!(
        stdout(&text).contains("\nerror    the kinds of stillpoint.dev/v1alpha1 are not installed — "),
        "{text:?}"
    );
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let server = Server::answering("gone", vec![]);
    let config = std::fs::read_to_string(&server.kubeconfig).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["clusters"][0]["cluster"]["server"] = json!("http://127.0.0.1:1");
    std::fs::write(&server.kubeconfig, config.to_string()).unwrap();
    let output = server.stillpoint(&["backup", "list"]);
    assert_eq!(code(&output), 1, "{output:?}");
    assert!(
        stderr(&output).contains("refused") && stderr(&output).contains("kubectl cluster-info"),
        "{output:?}"
    );
}

#[test]
fn backups_are_listed_and_described_and_verified() {
    let status =
        json!({"phase": "Succeeded", "consistency": "Application", "window": {"frozenSeconds": 0.0712}});
    let answers = vec![
        ("GET ~/backups", Answer::List(vec![backup(status.clone())])),
        ("GET ~/backups/b", Answer::Object(200, backup(status))),
    ];
    let server = Server::answering("listed", answers);
    let output = server.stillpoint(&["backup", "list"]);
    assert_eq!(code(&output), 0, "{output:?}");
    assert!(stdout(&output).starts_with("NAME  POLICY") && stdout(&output).contains("71.2 ms"), "{output:?}");
    let other = server.stillpoint(&["backup", "list", "--policy", "weekly"]);
    assert!(stdout(&other).is_empty() && stderr(&other).contains("no backups of policy weekly"), "{other:?}");
    let output = server.stillpoint(&["backup", "describe", "b", "-o", "json"]);
    let described: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(described["status"]["consistency"], "Application");
    // The stored verdict claims what no evidence carries.
    let output = server.stillpoint(&["backup", "verify-evidence", "b"]);
    assert_eq!(code(&output), 1, "{output:?}");
}

#[test]
fn a_restore_is_followed_to_its_claims() {
    let restore = |status: Value| {
        json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "Restore",
               "metadata": {"name": "r", "namespace": "shop", "resourceVersion": "2"},
               "spec": {"source": {"latest": {"policyRef": {"name": "nightly"}}}, "target": {"clone": {}}},
               "status": status})
    };
    let done = json!({"phase": "Succeeded", "backup": "b", "rtoSeconds": 4.0,
                      "claims": [{"sourceClaim": "data-db-0", "claimName": "copy-data-db-0", "bound": true}]});
    let answers = vec![
        ("GET ~/backuppolicies/nightly", Answer::Object(200, policy("nightly", "Required"))),
        ("GET ~/restores", Answer::States(vec![restore(json!({})), restore(done)])),
    ];
    let server = Server::answering("restored", answers);
    let args = [
        "restore",
        "run",
        "--policy",
        "nightly",
        "--before",
        "2026-11-20T12:00:00Z",
        "--prefix",
        "copy-",
        "--name",
        "r",
        "--wait",
    ];
    let output = server.stillpoint(&args);
    assert_eq!(code(&output), 0, "{output:?}");
    assert_eq!(stdout(&output), "r: restored from b, took 4 s\n  data-db-0 -> copy-data-db-0\n");
    let posted = server.posted.lock().unwrap();
    assert_eq!(posted[0]["spec"]["source"]["latest"]["before"], "2026-11-20T12:00:00.000000Z");
    assert_eq!(posted[0]["spec"]["target"]["clone"]["prefix"], "copy-");
}
