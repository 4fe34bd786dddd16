//! Group snapshots with the character of the real ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use common::{create, dynamic, end, eventually, full};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use stillpoint_simcluster::{CLASS, DRIVER, SimCluster};

const GROUP: &str = "groupsnapshot.storage.k8s.io";

fn groups(cluster: &SimCluster) -> Api<DynamicObject> {
    dynamic(cluster, "groupsnapshot.storage.k8s.io/v1", "VolumeGroupSnapshot", "volumegroupsnapshots")
}

fn members(cluster: &SimCluster) -> Api<DynamicObject> {
    dynamic(cluster, "snapshot.storage.k8s.io/v1", "VolumeSnapshot", "volumesnapshots")
}

fn cluster_wide(client: Client, group: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk(group, "v1", kind);
    Api::all_with(client, &ApiResource::from_gvk_with_plural(&kind, plural))
}

fn contents(cluster: &SimCluster) -> Api<DynamicObject> {
    cluster_wide(cluster.client(), GROUP, "VolumeGroupSnapshotContent", "volumegroupsnapshotcontents")
}

/// Three claims; the first two carry the label.
async fn three_claims(name: &str) -> SimCluster {
    let cluster = full(name).await;
    let class = json!({
        "apiVersion": "groupsnapshot.storage.k8s.io/v1", "kind": "VolumeGroupSnapshotClass",
        "metadata": {"name": "sim"}, "driver": DRIVER, "deletionPolicy": "Delete",
    });
    let classes =
        cluster_wide(cluster.client(), GROUP, "VolumeGroupSnapshotClass", "volumegroupsnapshotclasses");
    create(&classes, class).await;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client(), "default");
    for (claim, labels) in [("a", json!({"g": "1"})), ("b", json!({"g": "1"})), ("c", json!({}))] {
        let object = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim, "labels": labels},
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": CLASS,
                "resources": {"requests": {"storage": "1Gi"}},
            },
        });
        create(&claims, object).await;
        eventually("the claim is bound", async || {
            (claims.get(claim).await.unwrap().status?.phase? == "Bound").then_some(())
        })
        .await;
    }
    cluster
}

async fn grouped(cluster: &SimCluster, name: &str, selector: Value) -> Vec<DynamicObject> {
    let group = json!({
        "apiVersion": "groupsnapshot.storage.k8s.io/v1", "kind": "VolumeGroupSnapshot", "metadata": {"name": name},
        "spec": {"volumeGroupSnapshotClassName": "sim", "source": {"selector": selector}},
    });
    create(&groups(cluster), group).await;
    eventually("the group is ready with its members", async || {
        let found = groups(cluster).get(name).await.unwrap();
        let content = found.data["status"]["boundVolumeGroupSnapshotContentName"].as_str()?.to_owned();
        let content = contents(cluster).get(&content).await.unwrap();
        let wanted = content.data["spec"]["source"]["volumeHandles"].as_array()?.len();
        let uid = found.uid()?;
        let all = members(cluster).list(&ListParams::default()).await.unwrap().items;
        let mine = |member: &DynamicObject| member.owner_references().iter().any(|owner| owner.uid == uid);
        let mine: Vec<DynamicObject> = all.into_iter().filter(mine).collect();
        let ready = found.data["status"]["readyToUse"] == true
            && mine.iter().all(|member| {
                member.data["status"]["readyToUse"] == true
                    && member.data["status"]["volumeGroupSnapshotName"] == name
            });
        (ready && mine.len() == wanted).then_some(mine)
    })
    .await
}

#[tokio::test]
async fn a_group_takes_what_its_match_labels_say_and_ignores_expressions() {
    let cluster = three_claims("group-labels").await;
    let labelled = grouped(&cluster, "labelled", json!({"matchLabels": {"g": "1"}})).await;
    let mut claims: Vec<String> = labelled
        .iter()
        .map(|member| member.data["spec"]["source"]["persistentVolumeClaimName"].as_str().unwrap().to_owned())
        .collect();
    claims.sort_unstable();
    assert_eq!(claims, ["a", "b"]);
    assert!(labelled.iter().all(|member| member.labels().is_empty() && member.name_any().len() == 9 + 64));
    let cuts = cluster.ledger();
    assert_eq!(cuts.iter().filter(|cut| cut.event == "cut").count(), 2);
    assert_eq!(cuts[0].cut_start, cuts[1].cut_start, "one instant");

    let expressions = json!({"matchExpressions": [{"key": "g", "operator": "In", "values": ["1"]}]});
    assert_eq!(grouped(&cluster, "trap", expressions).await.len(), 3, "empty matchLabels: every claim");
    end(cluster).await;
}

#[tokio::test]
async fn members_go_with_their_group_and_never_alone() {
    let cluster = three_claims("group-end").await;
    let made = grouped(&cluster, "g", json!({"matchLabels": {"g": "1"}})).await;
    members(&cluster).delete(&made[0].name_any(), &DeleteParams::default()).await.unwrap();
    let kept = members(&cluster).get(&made[0].name_any()).await.unwrap();
    assert!(kept.metadata.deletion_timestamp.is_some());
    assert!(cluster.ledger().iter().all(|entry| entry.event == "cut"), "its data stays");

    groups(&cluster).delete("g", &DeleteParams::default()).await.unwrap();
    eventually("everything of the group is gone", async || {
        let all = ListParams::default();
        let left = members(&cluster).list(&all).await.unwrap().items.len()
            + contents(&cluster).list(&all).await.unwrap().items.len()
            + groups(&cluster).list(&all).await.unwrap().items.len();
        (left == 0).then_some(())
    })
    .await;
    assert_eq!(cluster.ledger().iter().filter(|entry| entry.event == "delete").count(), 2);
    end(cluster).await;
}
