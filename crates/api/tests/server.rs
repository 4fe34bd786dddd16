//! A real API server takes the definitions, keeps every field of every sample and refuses what the CEL rules refuse.
//!
//! Needs `kubectl` and a cluster: `cargo test -p stillpoint-api --test server -- --ignored`. Makes a namespace
//! `api-…`, installs the definitions and deletes the namespace again; the definitions stay.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::{Value, json};
use stillpoint_api::{Backup, BackupPolicy, Restore, crd};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn documents(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(root().join(file)).unwrap();
    serde_yaml::Deserializer::from_str(&text).map(|document| Value::deserialize(document).unwrap()).collect()
}

fn kubectl(arguments: &[&str], input: Option<&Value>) -> Result<Value, String> {
    let mut child = Command::new("kubectl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl in PATH");
    let mut stdin = child.stdin.take().unwrap();
    if let Some(input) = input {
        stdin.write_all(input.to_string().as_bytes()).unwrap();
    }
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
}

/// A namespace that goes with the test.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        let name = format!("api-{name}-{}", std::process::id());
        kubectl(&["create", "namespace", &name, "-o", "json"], None).unwrap();
        Self(name)
    }

    fn place(&self, mut object: Value) -> Value {
        if object["kind"] == "ClusterHookTemplate" {
            object["metadata"]["name"] =
                json!(format!("{}-{}", self.0, object["metadata"]["name"].as_str().unwrap()));
        } else {
            object["metadata"]["namespace"] = json!(self.0);
        }
        object
    }

    fn strict(&self, object: Value) -> Result<Value, String> {
        let object = self.place(object);
        kubectl(&["create", "--dry-run=server", "--validate=strict", "-o", "json", "-f", "-"], Some(&object))
    }

    fn create(&self, object: Value) -> Result<Value, String> {
        kubectl(&["create", "--validate=ignore", "-o", "json", "-f", "-"], Some(&self.place(object)))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = kubectl(&["delete", "namespace", &self.0, "--wait=false", "-o", "name"], None);
    }
}

fn install() {
    for definition in crd::all() {
        let definition = serde_json::to_value(definition).unwrap();
        kubectl(
            &[
                "apply",
                "--server-side",
                "--force-conflicts",
                "--field-manager=api-test",
                "-o",
                "json",
                "-f",
                "-",
            ],
            Some(&definition),
        )
        .unwrap();
        let name = format!("crd/{}", definition["metadata"]["name"].as_str().unwrap());
        kubectl(&["wait", "--for=condition=Established", "--timeout=30s", &name, "-o", "json"], None)
            .unwrap();
        let conditions =
            kubectl(&["get", &name, "-o", "json"], None).unwrap()["status"]["conditions"].clone();
        let refused =
            conditions.as_array().unwrap().iter().any(|condition| condition["type"] == "NonStructuralSchema");
        assert!(!refused, "{name}: {conditions}");
    }
}

fn assert_kept(wrote: &Value, read: &Value, path: &str) {
    match (wrote, read) {
        (Value::Object(wrote), Value::Object(read)) => {
            for (key, value) in wrote {
                let read = read.get(key).unwrap_or_else(|| panic!("{path}.{key} was pruned"));
                assert_kept(value, read, &format!("{path}.{key}"));
            }
        }
        (Value::Array(wrote), Value::Array(read)) => {
            assert_eq!(wrote.len(), read.len(), "{path}");
            for (index, (wrote, read)) in wrote.iter().zip(read).enumerate() {
                assert_kept(wrote, read, &format!("{path}[{index}]"));
            }
        }
        _ => assert_eq!(wrote, read, "{path}"),
    }
}

/// A value with every field of a schema.
fn example(schema: &Value) -> Value {
    if let Some(first) = schema["enum"].as_array().and_then(|values| values.last()) {
        return first.clone();
    }
    match (schema["type"].as_str(), schema["format"].as_str()) {
        (Some("object"), _) => {
            let mut map: serde_json::Map<String, Value> = schema["properties"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, property)| (name.clone(), example(property)))
                .collect();
            if schema.get("additionalProperties").is_some() {
                map.insert("key".into(), example(&schema["additionalProperties"]));
            }
            if let Some(branches) = schema["oneOf"].as_array() {
                let keep = branches[0]["required"][0].as_str().unwrap().to_owned();
                map.retain(|key, _| *key == keep);
            }
            Value::Object(map)
        }
        (Some("array"), _) => json!([example(&schema["items"])]),
        (Some("integer"), _) => json!(7),
        (Some("number"), _) => json!(0.5),
        (Some("boolean"), _) => json!(true),
        (Some("string"), Some("date-time")) => json!("2026-03-29T01:30:00.000001Z"),
        (Some("string"), _) => match schema["pattern"].as_str() {
            Some(pattern) if pattern.contains("ms|s") => json!("10s"),
            Some(pattern) if pattern.contains("d|w") => json!("7d"),
            Some(_) | None => json!("text"),
        },
        other => panic!("no example for {other:?}"),
    }
}

const SAMPLES: [&str; 6] = [
    "config/samples/first-policy.yaml",
    "config/samples/full-policy.yaml",
    "config/samples/restore.yaml",
    "config/samples/backup-manual.yaml",
    "config/templates/postgresql.yaml",
    "config/templates/mariadb.yaml",
];

#[test]
#[ignore = "needs cluster: cargo test -p stillpoint-api --test server -- --ignored"]
fn every_sample_is_taken_and_nothing_is_pruned() {
    install();
    let namespace = Namespace::new("samples");
    for sample in SAMPLES.iter().flat_map(|file| documents(file)) {
        let kind = sample["kind"].as_str().unwrap().to_owned();
        let dry = namespace.strict(sample.clone()).unwrap_or_else(|refused| panic!("{kind}: {refused}"));
        assert_kept(&sample["spec"], &dry["spec"], &kind);
        let kept = namespace.create(sample.clone()).unwrap();
        assert_kept(&sample["spec"], &kept["spec"], &kind);
        if kind == "ClusterHookTemplate" {
            let name =
                format!("clusterhooktemplates.stillpoint.dev/{}", kept["metadata"]["name"].as_str().unwrap());
            kubectl(&["delete", &name, "-o", "name"], None).unwrap();
        }
    }
}

#[test]
#[ignore = "needs cluster: cargo test -p stillpoint-api --test server -- --ignored"]
fn every_field_of_a_status_is_kept() {
    install();
    let namespace = Namespace::new("status");
    for (kind, sample) in [("BackupPolicy", SAMPLES[0]), ("Restore", SAMPLES[2]), ("Backup", SAMPLES[3])] {
        let schema = serde_json::to_value(crd::schema(kind).unwrap()).unwrap();
        let status = example(&schema["properties"]["status"]);
        let mut object = namespace.create(documents(sample)[0].clone()).unwrap();
        object["status"] = status.clone();
        object["status"]["conditions"][0]["reason"] = json!("Text");
        let stored = kubectl(
            &["replace", "--subresource=status", "--validate=ignore", "-o", "json", "-f", "-"],
            Some(&object),
        )
        .unwrap_or_else(|refused| panic!("{kind}: {refused}"));
        assert_kept(&object["status"], &stored["status"], &format!("{kind}.status"));
        // And the types read it, and write the same again.
        let again = match kind {
            "BackupPolicy" => {
                serde_json::to_value(serde_json::from_value::<BackupPolicy>(stored.clone()).unwrap())
            }
            "Restore" => serde_json::to_value(serde_json::from_value::<Restore>(stored.clone()).unwrap()),
            _ => serde_json::to_value(serde_json::from_value::<Backup>(stored.clone()).unwrap()),
        };
        assert_kept(&stored["spec"], &again.as_ref().unwrap()["spec"], &format!("{kind}.spec"));
        assert_eq!(
            again.unwrap()["status"].as_object().unwrap().len(),
            stored["status"].as_object().unwrap().len(),
            "{kind}"
        );
    }
}

fn changed(sample: &str, pointer: &str, value: Value) -> Value {
    let mut object = documents(sample)[0].clone();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = object.pointer_mut(parent).unwrap();
    match key.parse::<usize>() {
        Ok(index) => parent[index] = value,
        Err(_) => parent[key] = value,
    }
    object
}

#[test]
#[ignore = "needs cluster: cargo test -p stillpoint-api --test server -- --ignored"]
fn the_server_refuses_what_the_rules_refuse() {
    install();
    let namespace = Namespace::new("rules");
    let [policy, full, restore, backup, postgresql, _] = SAMPLES;
    let application = json!({"name": "a", "selector": {"matchLabels": {"a": "b"}}});
    let session = "/spec/freeze/session";
    for (sample, pointer, value, why) in [
        (policy, "/spec/shedule", json!({}), "unknown field"),
        (
            policy,
            "/spec/applications/0/templateRef",
            json!({"name": "x", "kind": "Secret"}),
            "Unsupported value",
        ),
        (policy, "/spec/applications", json!([]), "should have at least 1 items"),
        (policy, "/spec/applications", json!([application, application]), "Duplicate value"),
        (policy, "/spec/freeze", json!({"maxHold": "4s"}), "maxHold is 5s to 5m"),
        (policy, "/spec/freeze", json!({"maxHold": "301s"}), "maxHold is 5s to 5m"),
        (policy, "/spec/freeze", json!({"maxHold": "1d"}), "should match"),
        (policy, "/spec/freeze", json!({"maxHold": "10s", "acquireTimeout": "7s"}), "less than maxHold - 3s"),
        (policy, "/spec/freeze", json!({"acquireTimeout": "27s"}), "less than maxHold - 3s"),
        (policy, "/spec/freeze", json!({"acquireTimeout": "1ms"}), "at least 1s"),
        (policy, "/spec/retention", json!({"last": 0}), "greater than or equal to 1"),
        (full, "/spec/consistency", json!("Maybe"), "Unsupported value"),
        (backup, "/spec/run", json!({}), "exactly one of policyRef and applications"),
        (backup, "/spec/run/applications", json!([application]), "exactly one of policyRef and applications"),
        (backup, "/spec/run/freeze", json!({"maxHold": "10s"}), "the policy decides"),
        (backup, "/spec/run/slot", json!("2026-01-01T00:00:00Z"), "belongs to the scheduler"),
        (
            backup,
            "/spec",
            json!({"trigger": "Schedule", "run": {"applications": [application]}}),
            "leave spec.trigger out",
        ),
        (restore, "/spec/source", json!({}), "spec.source"),
        (restore, "/spec/target/drill", json!({}), "spec.target"),
        (restore, "/spec/trigger", json!("Schedule"), "leave spec.trigger out"),
        (
            restore,
            "/spec/target",
            json!({"inPlace": {"workload": {"name": "a"}, "confirm": "b"}}),
            "confirm repeats",
        ),
        (restore, "/spec/target/clone/prefix", json!("-x"), "should match"),
        (
            postgresql,
            "/spec/preHook",
            json!({"command": ["x"]}),
            "either freeze, or both preHook and postHook",
        ),
        (postgresql, "/spec/freeze/none", json!({}), "spec.freeze"),
        (postgresql, &format!("{session}/open"), json!("x"), "prints READY {{n}}"),
        (postgresql, &format!("{session}/freeze"), json!("x"), "prints FROZEN {{n}}"),
        (postgresql, &format!("{session}/beat"), json!("x"), "prints HELD {{n}} {{i}}"),
        (postgresql, &format!("{session}/thaw"), json!("x"), "prints THAWED {{n}}"),
        (postgresql, &format!("{session}/lease/duration"), json!("11s"), "a lease is 2s to 10s"),
        (postgresql, "/spec/parameters/0/name", json!("lease"), "cannot be parameters"),
        (postgresql, "/spec/parameters/0/type", json!("enum"), "lists its values under enum"),
        (
            postgresql,
            "/spec/parameters/0",
            json!({"name": "a", "fromEnv": "A", "fromFile": "/a"}),
            "at most one of",
        ),
    ] {
        match namespace.strict(changed(sample, pointer, value.clone())) {
            Ok(_) => panic!("{pointer} = {value} was taken"),
            Err(refused) => assert!(refused.contains(why), "{pointer} = {value}: {refused}"),
        }
    }
    for (sample, pointer, value) in [
        (policy, "/spec/freeze", json!({"maxHold": "5m", "acquireTimeout": "4m"})),
        (policy, "/spec/freeze", json!({})),
        (policy, "/spec/retention", Value::Null),
        (backup, "/spec", json!({"run": {"applications": [application], "freeze": {"maxHold": "10s"}}})),
        (
            backup,
            "/spec",
            json!({"trigger": "CatchUp", "run": {"policyRef": {"name": "p", "uid": "u"}, "slot": "2026-01-01T00:00:00Z"}}),
        ),
    ] {
        let taken = namespace.strict(changed(sample, pointer, value.clone()));
        assert!(taken.is_ok(), "{pointer} = {value}: {taken:?}");
    }
}

#[test]
#[ignore = "needs cluster: cargo test -p stillpoint-api --test server -- --ignored"]
fn what_never_changes_cannot_be_changed() {
    install();
    let namespace = Namespace::new("transitions");
    let replace = |object: &Value| kubectl(&["replace", "-o", "json", "-f", "-"], Some(object));

    let mut backup = namespace.create(documents(SAMPLES[3])[0].clone()).unwrap();
    backup["spec"]["cancel"] = json!(true);
    let cancelled = replace(&backup).unwrap();
    for (pointer, value, why) in [
        ("/spec/run/policyRef/name", json!("other"), "spec.run never changes"),
        ("/spec/trigger", json!("Schedule"), "spec.trigger never changes"),
        ("/spec/cancel", json!(false), "cannot be taken back"),
    ] {
        let mut object = cancelled.clone();
        *object.pointer_mut(pointer).unwrap() = value;
        let refused = replace(&object).unwrap_err();
        assert!(refused.contains(why), "{pointer}: {refused}");
    }
    let mut object = cancelled;
    object["spec"].as_object_mut().unwrap().remove("cancel");
    assert!(replace(&object).unwrap_err().contains("cannot be taken back"));

    let mut restore = namespace.create(documents(SAMPLES[2])[0].clone()).unwrap();
    restore["spec"]["target"]["clone"]["prefix"] = json!("other-");
    assert!(replace(&restore).unwrap_err().contains("a Restore never changes"));
}
