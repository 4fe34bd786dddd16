//! The snapshot types of this crate use only fields that the upstream definitions have, with the same types.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use stillpoint_api::group_snapshot::{
    GroupSelector, VolumeGroupSnapshot, VolumeGroupSnapshotClass, VolumeGroupSnapshotContent,
    VolumeGroupSnapshotContentSource, VolumeGroupSnapshotContentSpec, VolumeGroupSnapshotContentStatus,
    VolumeGroupSnapshotSource, VolumeGroupSnapshotSpec, VolumeGroupSnapshotStatus, VolumeSnapshotInfo,
};
use stillpoint_api::snapshot::{
    SnapshotError, SnapshotRef, VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent,
    VolumeSnapshotContentSource, VolumeSnapshotContentSpec, VolumeSnapshotContentStatus,
    VolumeSnapshotSource, VolumeSnapshotSpec, VolumeSnapshotStatus,
};

fn upstream() -> BTreeMap<String, String> {
    include_str!("../testdata/snapshot-fields.txt")
        .lines()
        .chain(include_str!("../testdata/group-snapshot-fields.txt").lines())
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_once(' ').unwrap())
        .map(|(path, kind)| (path.to_owned(), kind.to_owned()))
        .collect()
}

fn leaves(value: &Value, path: String, out: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| leaves(value, format!("{path}.{key}"), out)),
        Value::String(_) => out.push((path, "string".into())),
        Value::Number(_) => out.push((path, "integer".into())),
        Value::Bool(_) => out.push((path, "boolean".into())),
        Value::Array(items) if items.iter().all(Value::is_object) => {
            items.iter().for_each(|item| leaves(item, format!("{path}.*"), out));
        }
        Value::Array(_) => out.push((path, "array".into())),
        Value::Null => panic!("{path} is null"),
    }
}

fn same_fields(kind: &str, mut object: Value) {
    let top = object.as_object_mut().unwrap();
    ["apiVersion", "kind", "metadata"].iter().for_each(|key| drop(top.remove(*key)));
    let upstream = upstream();
    let mut ours = Vec::new();
    if let Some(labels) = object.pointer_mut("/spec/source/selector/matchLabels") {
        assert_eq!(upstream[&format!("{kind}.spec.source.selector.matchLabels")], "object");
        assert!(labels.take().as_object().is_some_and(|labels| labels.values().all(Value::is_string)));
        object["spec"]["source"].as_object_mut().unwrap().remove("selector");
    }
    leaves(&object, kind.to_owned(), &mut ours);
    assert!(!ours.is_empty());
    for (path, kind) in ours {
        let theirs = upstream.get(&path).unwrap_or_else(|| panic!("upstream has no {path}"));
        let theirs = match theirs.split(':').next().unwrap() {
            "quantity" => "string",
            other => other,
        };
        assert_eq!(kind, theirs, "{path}");
    }
}

fn time() -> Option<Time> {
    Some(Time(Timestamp::UNIX_EPOCH))
}

fn error() -> Option<SnapshotError> {
    Some(SnapshotError { message: Some("m".into()), time: time() })
}

#[test]
fn a_volume_snapshot_has_the_upstream_fields() {
    let mut snapshot = VolumeSnapshot::new(
        "s",
        VolumeSnapshotSpec {
            source: VolumeSnapshotSource {
                persistent_volume_claim_name: Some("c".into()),
                volume_snapshot_content_name: Some("c".into()),
            },
            volume_snapshot_class_name: Some("c".into()),
        },
    );
    snapshot.status = Some(VolumeSnapshotStatus {
        bound_volume_snapshot_content_name: Some("c".into()),
        creation_time: time(),
        ready_to_use: Some(true),
        restore_size: Some("1Gi".into()),
        volume_group_snapshot_name: Some("g".into()),
        error: error(),
    });
    same_fields("VolumeSnapshot", serde_json::to_value(snapshot).unwrap());
}

#[test]
fn a_content_has_the_upstream_fields() {
    let mut content = VolumeSnapshotContent::new(
        "c",
        VolumeSnapshotContentSpec {
            deletion_policy: "Retain".into(),
            driver: "d".into(),
            source: VolumeSnapshotContentSource {
                volume_handle: Some("v".into()),
                snapshot_handle: Some("s".into()),
            },
            source_volume_mode: Some("Filesystem".into()),
            volume_snapshot_class_name: Some("c".into()),
            volume_snapshot_ref: SnapshotRef {
                namespace: Some("n".into()),
                name: Some("s".into()),
                uid: Some("u".into()),
            },
        },
    );
    content.status = Some(VolumeSnapshotContentStatus {
        snapshot_handle: Some("h".into()),
        creation_time: Some(1),
        ready_to_use: Some(true),
        restore_size: Some(1),
        volume_group_snapshot_handle: Some("g".into()),
        error: error(),
    });
    same_fields("VolumeSnapshotContent", serde_json::to_value(content).unwrap());
}

#[test]
fn a_class_has_the_upstream_fields() {
    let class = VolumeSnapshotClass {
        metadata: ObjectMeta::default(),
        driver: "d".into(),
        deletion_policy: "Delete".into(),
        parameters: BTreeMap::from([("any".into(), "text".into())]),
    };
    let mut class = serde_json::to_value(class).unwrap();
    // Its keys are the driver's.
    assert_eq!(upstream()["VolumeSnapshotClass.parameters"], "object");
    assert!(class.as_object_mut().unwrap().remove("parameters").is_some_and(|all| all["any"].is_string()));
    same_fields("VolumeSnapshotClass", class);
}

#[test]
fn a_group_snapshot_has_the_upstream_fields() {
    let mut group = VolumeGroupSnapshot::new(
        "g",
        VolumeGroupSnapshotSpec {
            source: VolumeGroupSnapshotSource {
                selector: Some(GroupSelector { match_labels: BTreeMap::from([("k".into(), "v".into())]) }),
                volume_group_snapshot_content_name: Some("c".into()),
            },
            volume_group_snapshot_class_name: Some("c".into()),
        },
    );
    group.status = Some(VolumeGroupSnapshotStatus {
        bound_volume_group_snapshot_content_name: Some("c".into()),
        creation_time: time(),
        ready_to_use: Some(true),
        error: error(),
    });
    same_fields("VolumeGroupSnapshot", serde_json::to_value(group).unwrap());
}

#[test]
fn a_group_content_has_the_upstream_fields() {
    let mut content = VolumeGroupSnapshotContent::new(
        "c",
        VolumeGroupSnapshotContentSpec {
            deletion_policy: "Retain".into(),
            driver: "d".into(),
            source: VolumeGroupSnapshotContentSource { volume_handles: vec!["v".into()] },
            volume_group_snapshot_class_name: Some("c".into()),
            volume_group_snapshot_ref: SnapshotRef {
                namespace: Some("n".into()),
                name: Some("s".into()),
                uid: Some("u".into()),
            },
        },
    );
    content.status = Some(VolumeGroupSnapshotContentStatus {
        volume_group_snapshot_handle: Some("h".into()),
        creation_time: time(),
        ready_to_use: Some(true),
        volume_snapshot_info_list: vec![VolumeSnapshotInfo {
            volume_handle: "v".into(),
            snapshot_handle: "s".into(),
            creation_time: Some(1),
            ready_to_use: Some(true),
            restore_size: Some(1),
        }],
        error: error(),
    });
    same_fields("VolumeGroupSnapshotContent", serde_json::to_value(content).unwrap());
}

#[test]
fn a_group_class_has_the_upstream_fields() {
    let class = VolumeGroupSnapshotClass {
        metadata: ObjectMeta::default(),
        driver: "d".into(),
        deletion_policy: "Delete".into(),
    };
    same_fields("VolumeGroupSnapshotClass", serde_json::to_value(class).unwrap());
}
