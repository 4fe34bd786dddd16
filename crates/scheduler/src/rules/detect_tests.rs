//! Which pods a default policy is for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::{Value, json};

use super::*;

fn catalog() -> Vec<(String, Recipe)> {
    let recipe = |image: &str| {
        serde_json::from_value(json!({"detect": {"images": [image]}, "freeze": {"none": {}}})).unwrap()
    };
    vec![("mariadb".to_owned(), recipe("mariadb")), ("postgresql".to_owned(), recipe("postgres"))]
}

/// A pod of the StatefulSet `owner` with a claim.
fn pod(name: &str, owner: &str, image: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"app": owner, "statefulset.kubernetes.io/pod-name": name, "controller-revision-hash": "x"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": owner, "uid": owner, "controller": true}]},
        "spec": {"containers": [{"name": "main", "image": image}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": format!("data-{name}")}}]},
        "status": {"phase": "Running"}
    })
}

fn of(pods: &[Value]) -> Detected {
    let pods: Vec<Pod> = pods.iter().map(|pod| serde_json::from_value(pod.clone()).unwrap()).collect();
    detect(&pods, &catalog())
}

fn names(detected: &Detected) -> Vec<(&str, &str)> {
    detected.found.iter().map(|found| (found.name.as_str(), found.template.as_str())).collect()
}

#[test]
fn each_workload_with_claims_that_fits_a_template_is_one_application() {
    let mut plain = pod("web-0", "web", "nginx");
    plain["metadata"]["labels"]["app"] = json!("web");
    let detected = of(&[
        pod("a-0", "a", "postgres:17"),
        pod("a-1", "a", "postgres:17"),
        pod("b-0", "b", "mariadb:11"),
        plain,
    ]);
    assert_eq!(names(&detected), [("a", "postgresql"), ("b", "mariadb")]);
    assert_eq!(detected.ambiguous, [""; 0]);
    let expected: Labels = [("app".to_owned(), "a".to_owned())].into();
    assert_eq!(detected.found[0].labels, expected, "labels that differ from pod to pod are no selector");
    assert_eq!(detected.found[0].container, None);
}

#[test]
fn what_keeps_no_data_or_ends_or_is_a_job_s_is_left_alone() {
    let with = |change: fn(&mut Value)| {
        let mut pod = pod("a-0", "a", "postgres:17");
        change(&mut pod);
        of(&[pod])
    };
    let changes: [fn(&mut Value); 5] = [
        |pod| pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]),
        |pod| pod["status"]["phase"] = json!("Succeeded"),
        |pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"),
        |pod| pod["metadata"]["ownerReferences"][0]["kind"] = json!("Job"),
        |pod| pod["metadata"]["labels"]["stillpoint.dev/drill"] = json!("r"),
    ];
    for change in changes {
        assert_eq!(with(change), Detected::default());
    }
}

#[test]
fn what_cannot_be_told_apart_is_named_and_left_alone() {
    // A client with the same labels: holding it would be wrong, and so would leaving it out.
    let mut client = pod("client", "a", "shell");
    client["metadata"]["ownerReferences"] = json!([]);
    client["spec"]["volumes"] = json!([]);
    let detected = of(&[pod("a-0", "a", "postgres:17"), client]);
    assert_eq!(
        (names(&detected), detected.ambiguous.clone()),
        (vec![], vec!["a: pod client has all labels of its pods as well".to_owned()])
    );
    let detected = of(&[pod("a-0", "a", "postgres:17"), pod("a-1", "a", "mariadb:11")]);
    assert_eq!((names(&detected), detected.ambiguous.len()), (vec![], 1), "in the middle of a migration");
    let mut bare = pod("a-0", "a", "postgres:17");
    bare["metadata"]["labels"] = json!({"pod-template-hash": "1"});
    let detected = of(&[bare]);
    assert_eq!(detected.ambiguous, ["a: its pods have no label in common that lasts"]);
}

#[test]
fn a_deployment_s_pods_are_one_workload_through_its_rollouts() {
    let of_revision = |name: &str, hash: &str| {
        let mut pod = pod(name, "db", "postgres:17");
        pod["metadata"]["labels"] = json!({"app": "db", "pod-template-hash": hash});
        pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("orders-{hash}"), "uid": hash, "controller": true}]);
        pod
    };
    let detected = of(&[of_revision("x", "1"), of_revision("y", "2")]);
    assert_eq!(names(&detected), [("orders", "postgresql")]);
}

#[test]
fn the_annotation_goes_before_the_image_and_a_sidecar_makes_the_container_explicit() {
    let mut annotated = pod("a-0", "a", "postgres:17");
    annotated["metadata"]["annotations"] = json!({"stillpoint.dev/template": "mariadb"});
    assert_eq!(names(&of(&[annotated.clone()])), [("a", "mariadb")]);
    annotated["metadata"]["annotations"] = json!({"stillpoint.dev/template": "unknown"});
    assert_eq!(names(&of(&[annotated])), []);
    let mut sidecar = pod("a-0", "a", "postgres:17");
    sidecar["spec"]["containers"] =
        json!([{"name": "proxy", "image": "envoy"}, {"name": "db", "image": "postgres:17"}]);
    assert_eq!(of(&[sidecar]).found[0].container.as_deref(), Some("db"));
}
