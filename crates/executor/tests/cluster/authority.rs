//! Whether hooks may run at all, and a pod that changes under them.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::DeleteParams;

use crate::stage::{NAMESPACE, POD, Stage, Wish, journal};

#[tokio::test]
async fn a_namespace_that_did_not_opt_in_is_left_alone() {
    let stage = Stage::with("no-account", Wish { account: false, binding: false, ..Wish::default() }).await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "NamespaceNotOptedIn").await;
    assert!(stage.went_through().is_empty());
    assert!(stage.cluster.audit().iter().all(|entry| entry.resource != "pods/exec"), "nothing was tried");
    stage.end().await;
}

#[tokio::test]
async fn an_account_that_may_not_exec_is_named() {
    let stage = Stage::with("no-binding", Wish { binding: false, ..Wish::default() }).await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "ExecForbidden").await;
    assert!(stage.went_through().is_empty());
    let tried = stage.cluster.audit();
    let tried = tried.iter().filter(|entry| entry.resource == "pods/exec").count();
    assert_eq!(tried, 1, "asked once, as the namespace's account");
    stage.end().await;
}

async fn delete_pod(stage: &Stage, grace: u32) {
    let pods: Api<Pod> = Api::namespaced(stage.cluster.client(), NAMESPACE);
    pods.delete(POD, &DeleteParams::default().grace_period(grace)).await.unwrap();
}

/// The session lives on while the pod is being deleted: only the watch on the pod can tell.
#[tokio::test]
async fn a_pod_that_is_being_deleted_ends_the_freeze_at_once() {
    let stage = Stage::faithful("leaving-pod").await;
    stage.slow_cuts(Duration::from_secs(6));
    stage.back_up("b").await;
    stage.until_frozen().await;
    delete_pod(&stage, 20).await;
    stage.until_thawed(Duration::from_secs(2)).await;
    assert_eq!(stage.went_through()[..3], ["opened", "frozen", "thawed"], "it was told to let go");
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "PodChanged").await;
    stage.end().await;
}

#[tokio::test]
async fn a_pod_that_is_killed_while_frozen_leaves_no_point() {
    let stage = Stage::faithful("killed-pod").await;
    stage.slow_cuts(Duration::from_secs(4));
    stage.back_up("b").await;
    stage.until_frozen().await;
    delete_pod(&stage, 0).await;
    stage.until_thawed(Duration::from_secs(3)).await;
    let backup = stage.finished("b").await;
    // Whichever is seen first: the pod's deletion or the end of its session.
    let reason = journal(&backup).pop().unwrap().1;
    assert!(["PodChanged", "HoldLost"].contains(&reason.as_str()), "{reason}");
    stage.failed_cleanly(&backup, &reason).await;
    stage.end().await;
}
