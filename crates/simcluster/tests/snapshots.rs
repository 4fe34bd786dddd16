//! Claims, cuts, copies and their end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::time::Duration;

use common::{create, dynamic, end, eventually, full, pod, running};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, DynamicObject};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use stillpoint_simcluster::{CLASS, Knobs, SimCluster};

fn claims(cluster: &SimCluster) -> Api<PersistentVolumeClaim> {
    Api::namespaced(cluster.client(), "default")
}

fn snapshots(cluster: &SimCluster) -> Api<DynamicObject> {
    dynamic(cluster, "snapshot.storage.k8s.io/v1", "VolumeSnapshot", "volumesnapshots")
}

fn contents(cluster: &SimCluster) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", "VolumeSnapshotContent");
    Api::all_with(cluster.client(), &ApiResource::from_gvk_with_plural(&kind, "volumesnapshotcontents"))
}

fn claim(name: &str, source: Option<&str>) -> Value {
    let mut claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": CLASS,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    });
    if let Some(source) = source {
        claim["spec"]["dataSource"] =
            json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": source});
    }
    claim
}

fn snapshot(name: &str, claim: &str) -> Value {
    json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name},
        "spec": {"volumeSnapshotClassName": CLASS, "source": {"persistentVolumeClaimName": claim}},
    })
}

async fn bound(cluster: &SimCluster, name: &str) -> std::path::PathBuf {
    let volumes: Api<k8s_openapi::api::core::v1::PersistentVolume> = Api::all(cluster.client());
    let volume = eventually(&format!("claim {name} bound"), async || {
        let claim = claims(cluster).get(name).await.unwrap();
        (claim.status?.phase? == "Bound").then_some(claim.spec?.volume_name?)
    })
    .await;
    let source = volumes.get(&volume).await.unwrap().spec.unwrap().csi.unwrap();
    cluster.root().join("volumes").join(source.volume_handle)
}

async fn ready(cluster: &SimCluster, name: &str) -> DynamicObject {
    eventually(&format!("snapshot {name} ready"), async || {
        let found = snapshots(cluster).get(name).await.unwrap();
        (found.data["status"]["readyToUse"] == true).then_some(found)
    })
    .await
}

/// How many files each writer writes in turn.
const FILES: u64 = 40;

/// Two writers, one of them in a session of its own: each writes the number of its round into its files in order.
fn writer(cluster: &SimCluster, claim: &str) -> Value {
    let mount = cluster.root().join("mnt").join(claim);
    let turn = format!(
        "n=0; while :; do n=$((n+1)); f=0; while [ $f -lt {FILES} ]; do echo $n >$WHO.$f; f=$((f+1)); done; done"
    );
    let script = format!("(WHO=own; {turn}) & WHO=far setsid sh -c '{turn}' & wait");
    let mut pod = pod(&format!("w-{claim}"), &script);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    pod["spec"]["containers"][0]["workingDir"] = json!(mount);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": mount}]);
    pod["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]);
    pod
}

/// Whether a writer's files are what one instant can show: one round up to some file, the round before from there on,
/// and at most one file that was just emptied.
fn is_one_instant(directory: &std::path::Path, who: &str) -> bool {
    let values: Vec<u64> = (0..FILES).map(|file| number(&directory.join(format!("{who}.{file}")))).collect();
    let newest = values.iter().copied().max().unwrap_or(0);
    let written: Vec<u64> = values.iter().copied().filter(|value| *value > 0).collect();
    newest > 0
        && written.len() + 1 >= values.len()
        && written.is_sorted_by(|earlier, later| earlier >= later)
        && written.iter().all(|value| value + 1 >= newest)
}

fn number(path: &std::path::Path) -> u64 {
    std::fs::read_to_string(path).unwrap_or_default().trim().parse().unwrap_or(0)
}

#[tokio::test]
async fn a_cut_stops_every_process_of_the_pod_and_a_claim_made_from_it_has_its_content() {
    let cluster = full("cut").await;
    create(&claims(&cluster), claim("data", None)).await;
    let live = bound(&cluster, "data").await;
    // Enough content for the copy to take a while: a writer that goes on would be seen.
    for at in 0..400 {
        std::fs::write(live.join(format!("filler{at}")), vec![7_u8; 64 * 1024]).unwrap();
    }
    create(&Api::<Pod>::namespaced(cluster.client(), "default"), writer(&cluster, "data")).await;
    running(&cluster, "w-data").await;
    for round in 0..3 {
        let before = number(&live.join("far.39"));
        eventually("both writers advance", async || {
            (number(&live.join("far.39")) > before && number(&live.join("own.39")) > 0).then_some(())
        })
        .await;
        let name = format!("snap{round}");
        create(&snapshots(&cluster), snapshot(&name, "data")).await;
        let made = ready(&cluster, &name).await;
        let uid = made.metadata.uid.clone().unwrap();
        let content = contents(&cluster).get(&format!("snapcontent-{uid}")).await.unwrap();
        assert_eq!(content.data["spec"]["volumeSnapshotRef"]["uid"], uid.as_str());
        assert_eq!(made.data["status"]["restoreSize"], "1Gi");
        let cut =
            cluster.root().join("snapshots").join(content.data["status"]["snapshotHandle"].as_str().unwrap());
        let entry =
            cluster.ledger().into_iter().find(|entry| entry.name == format!("snapshot-{uid}")).unwrap();
        assert!(entry.cut_start.unwrap() < entry.at && entry.event == "cut");
        for who in ["own", "far"] {
            assert!(is_one_instant(&cut, who), "{who} in round {round}");
        }
        create(&claims(&cluster), claim(&format!("copy{round}"), Some(&name))).await;
        let copy = bound(&cluster, &format!("copy{round}")).await;
        for file in ["own.0", "far.39", "filler399"] {
            assert_eq!(std::fs::read(copy.join(file)).unwrap(), std::fs::read(cut.join(file)).unwrap());
        }
    }
    let after = number(&live.join("far.39"));
    eventually("the writers go on", async || (number(&live.join("far.39")) > after).then_some(())).await;
    end(cluster).await;
}

#[tokio::test]
async fn the_processes_are_stopped_for_as_long_as_the_slowest_of_parallel_cuts_needs() {
    let cluster = full("parallel").await;
    create(&claims(&cluster), claim("a", None)).await;
    create(&claims(&cluster), claim("b", None)).await;
    bound(&cluster, "a").await;
    bound(&cluster, "b").await;
    let api: Api<Pod> = Api::namespaced(cluster.client(), "default");
    let mut object = writer(&cluster, "a");
    let mount = cluster.root().join("mnt-b");
    object["spec"]["containers"][0]["volumeMounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "b", "mountPath": mount}));
    object["spec"]["volumes"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "b", "persistentVolumeClaim": {"claimName": "b"}}));
    create(&api, object).await;
    running(&cluster, "w-a").await;
    for name in ["a", "b"] {
        create(&snapshots(&cluster), snapshot(name, name)).await;
    }
    ready(&cluster, "a").await;
    ready(&cluster, "b").await;
    assert_eq!(cluster.ledger().len(), 2);
    end(cluster).await;
}

#[tokio::test]
async fn the_content_shows_its_handle_before_it_is_ready_and_errors_are_shown_and_retried() {
    let cluster = full("knobs").await;
    create(&claims(&cluster), claim("data", None)).await;
    bound(&cluster, "data").await;
    let knobs = Knobs {
        ready_delay: Duration::from_secs(1),
        fail_next: 1,
        failure: "no space".into(),
        ..Knobs::default()
    };
    cluster.set_knobs(knobs);
    create(&snapshots(&cluster), snapshot("s", "data")).await;
    let error = eventually("the error is shown", async || {
        let found = snapshots(&cluster).get("s").await.unwrap();
        found.data["status"]["error"]["message"].as_str().map(str::to_owned)
    })
    .await;
    assert!(error.contains("no space"), "{error}");
    let content = eventually("the handle comes", async || {
        let mut list = contents(&cluster).list(&kube::api::ListParams::default()).await.unwrap().items;
        list.pop().filter(|content| content.data["status"]["snapshotHandle"].is_string())
    })
    .await;
    assert_eq!(content.data["status"]["readyToUse"], false);
    let made = ready(&cluster, "s").await;
    assert!(made.data["status"].get("error").is_none());
    create(&snapshots(&cluster), snapshot("lost", "no-such-claim")).await;
    eventually("a missing claim is named", async || {
        let found = snapshots(&cluster).get("lost").await.unwrap();
        found.data["status"]["error"]["message"].as_str()?.contains("no-such-claim").then_some(())
    })
    .await;
    end(cluster).await;
}

#[tokio::test]
async fn deleting_a_snapshot_removes_content_and_copy_unless_retained() {
    let cluster = full("delete").await;
    create(&claims(&cluster), claim("data", None)).await;
    bound(&cluster, "data").await;
    let kind = GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", "VolumeSnapshotClass");
    let classes: Api<DynamicObject> =
        Api::all_with(cluster.client(), &ApiResource::from_gvk_with_plural(&kind, "volumesnapshotclasses"));
    create(
        &classes,
        json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass", "metadata": {"name": "keep"},
            "driver": stillpoint_simcluster::DRIVER, "deletionPolicy": "Retain",
        }),
    )
    .await;
    let mut kept = snapshot("kept", "data");
    kept["spec"]["volumeSnapshotClassName"] = json!("keep");
    create(&snapshots(&cluster), kept).await;
    create(&snapshots(&cluster), snapshot("gone", "data")).await;
    ready(&cluster, "kept").await;
    let gone = ready(&cluster, "gone").await;
    let content = gone.data["status"]["boundVolumeSnapshotContentName"].as_str().unwrap();
    contents(&cluster).delete(content, &DeleteParams::default()).await.unwrap();
    assert!(
        contents(&cluster).get_opt(content).await.unwrap().is_some(),
        "a bound content waits for its snapshot"
    );
    for name in ["kept", "gone"] {
        snapshots(&cluster).delete(name, &DeleteParams::default()).await.unwrap();
        eventually(&format!("{name} goes"), async || {
            snapshots(&cluster).get_opt(name).await.unwrap().is_none().then_some(())
        })
        .await;
    }
    eventually("one content is left", async || {
        let left = contents(&cluster).list(&kube::api::ListParams::default()).await.unwrap().items;
        (left.len() == 1).then_some(())
    })
    .await;
    assert_eq!(std::fs::read_dir(cluster.root().join("snapshots")).unwrap().count(), 1);
    assert_eq!(cluster.ledger().iter().filter(|entry| entry.event == "delete").count(), 1);
    end(cluster).await;
}

#[tokio::test]
async fn nothing_is_cut_while_the_sidecar_is_down_and_what_was_given_up_meanwhile_never_is() {
    let cluster = full("sidecar").await;
    create(&claims(&cluster), claim("data", None)).await;
    bound(&cluster, "data").await;
    cluster.set_knobs(Knobs { sidecar_down: true, ..Knobs::default() });
    for name in ["given-up", "patient"] {
        create(&snapshots(&cluster), snapshot(name, "data")).await;
    }
    eventually("contents without handles", async || {
        let made = contents(&cluster).list(&kube::api::ListParams::default()).await.unwrap().items;
        (made.len() == 2 && made.iter().all(|content| content.data["status"].is_null())).then_some(())
    })
    .await;
    snapshots(&cluster).delete("given-up", &DeleteParams::default()).await.unwrap();
    eventually("the given-up one goes", async || {
        snapshots(&cluster).get_opt("given-up").await.unwrap().is_none().then_some(())
    })
    .await;
    cluster.set_knobs(Knobs::default());
    ready(&cluster, "patient").await;
    create(&snapshots(&cluster), snapshot("next", "data")).await;
    ready(&cluster, "next").await;
    assert_eq!(cluster.ledger().len(), 2);
    end(cluster).await;
}

/// The end of a cut and the change of its content both look whether the content can go.
#[tokio::test]
async fn a_copy_of_a_content_that_was_deleted_during_its_cut_is_removed_once() {
    let cluster = full("once").await;
    create(&claims(&cluster), claim("data", None)).await;
    let volume = bound(&cluster, "data").await;
    for directory in 0..200 {
        std::fs::create_dir(volume.join(directory.to_string())).unwrap();
    }
    cluster.set_knobs(Knobs { pre_cut_delay: Duration::from_millis(200), ..Knobs::default() });
    let names: Vec<String> = (0..8).map(|number| format!("midway-{number}")).collect();
    for name in &names {
        create(&snapshots(&cluster), snapshot(name, "data")).await;
    }
    for name in &names {
        eventually("its content is there", async || {
            let now = snapshots(&cluster).get(name).await.unwrap();
            now.data["status"]["boundVolumeSnapshotContentName"].is_string().then_some(())
        })
        .await;
        snapshots(&cluster).delete(name, &DeleteParams::default()).await.unwrap();
    }
    eventually("no content is left", async || {
        let left = contents(&cluster).list(&kube::api::ListParams::default()).await.unwrap().items;
        left.is_empty().then_some(())
    })
    .await;
    let of = |event: &str| cluster.ledger().iter().filter(|entry| entry.event == event).count();
    assert_eq!((of("delete"), of("cut")), (8, 8));
    end(cluster).await;
}
