//! Which pod is a copy, of what, and in which container its server runs.

use serde_json::{Value, json};
use stillpoint_api::backup::BackupStatus;
use stillpoint_api::evidence::{HoldEvidence, MemberEvidence, Resolved};

use super::*;

fn pod(claims: &[&str], containers: &[&str]) -> Pod {
    let volumes: Vec<Value> = claims
        .iter()
        .map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}}))
        .chain([json!({"name": "scratch", "emptyDir": {}})])
        .collect();
    let containers: Vec<Value> = containers.iter().map(|name| json!({"name": name})).collect();
    serde_json::from_value(json!({
        "metadata": {"name": "copy"},
        "spec": {"containers": containers, "volumes": volumes},
    }))
    .unwrap()
}

fn claim(name: &str, restore: Option<&str>) -> PersistentVolumeClaim {
    let annotations = restore.map(|restore| json!({RESTORE_LABEL: restore}));
    serde_json::from_value(json!({"metadata": {"name": name, "annotations": annotations}})).unwrap()
}

fn status() -> BackupStatus {
    let application =
        |name: &str| ResolvedApplication { name: name.to_owned(), ..ResolvedApplication::default() };
    let member = MemberEvidence {
        application: "db".to_owned(),
        claim_name: "data-db-0".to_owned(),
        ..MemberEvidence::default()
    };
    let hold = HoldEvidence {
        application: "db".to_owned(),
        container: "postgres".to_owned(),
        ..HoldEvidence::default()
    };
    BackupStatus {
        resolved: Some(Resolved {
            applications: vec![application("db"), application("queue")],
            ..Resolved::default()
        }),
        members: vec![member],
        holds: vec![hold],
        ..BackupStatus::default()
    }
}

fn why<T: std::fmt::Debug>(result: Result<T, Refusal>) -> &'static str {
    result.unwrap_err().reason
}

#[test]
fn only_a_pod_on_claims_of_one_restore_is_a_copy() {
    let pod = pod(&["r-data"], &["db"]);
    assert_eq!(restore_of(&pod, &[claim("r-data", Some("r")), claim("cache", None)]).unwrap(), "r");
    assert_eq!(why(restore_of(&pod, &[claim("cache", None)])), "NotACopy");
    assert_eq!(why(restore_of(&pod, &[])), "NotACopy");
    assert_eq!(why(restore_of(&pod, &[claim("a", Some("r")), claim("b", Some("s"))])), "SeveralRestores");
}

#[test]
fn a_pod_that_has_the_original_s_claim_too_is_no_copy() {
    assert_eq!(not_the_original(&pod(&["r-data"], &["db"]), &status()), Ok(()));
    let both = not_the_original(&pod(&["r-data", "data-db-0"], &["db"]), &status());
    assert!(both.as_ref().unwrap_err().message.contains("data-db-0"));
    assert_eq!(why(both), "NotACopy");
}

#[test]
fn an_application_is_named_where_there_are_several() {
    let several = status();
    assert_eq!(application(&several, Some("queue")).unwrap().name, "queue");
    assert_eq!(why(application(&several, None)), "ApplicationNotSaid");
    assert_eq!(why(application(&several, Some("cache"))), "ApplicationUnknown");
    assert_eq!(why(application(&BackupStatus::default(), None)), "ApplicationNotSaid");
    let mut one = several;
    one.resolved.as_mut().unwrap().applications.pop();
    assert_eq!(application(&one, None).unwrap().name, "db");
}

#[test]
fn the_container_is_the_one_asked_for_the_only_one_or_the_original_s() {
    let (status, claims) = (status(), ["r-data"]);
    let chosen = |names: &[&str], wished| container(&pod(&claims, names), &status, "db", wished);
    assert_eq!(chosen(&["a"], None).unwrap(), "a");
    assert_eq!(chosen(&["a", "postgres"], None).unwrap(), "postgres");
    assert_eq!(chosen(&["a", "postgres"], Some("a")).unwrap(), "a");
    assert_eq!(why(chosen(&["a", "b"], None)), "ContainerNotSaid");
    assert_eq!(why(chosen(&["a"], Some("c"))), "ContainerNotSaid");
}
