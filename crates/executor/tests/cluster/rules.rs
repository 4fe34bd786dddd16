//! What operations do not allow is not done, whoever asks for it.

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use stillpoint_executor::ownership::places::place_name;
use stillpoint_executor::pace::{Bound, Scope};

use crate::stage::{NAMESPACE, SOON, Stage, create, eventually};

/// A rule for every namespace.
pub async fn rule(stage: &Stage, name: &str, spec: Value) {
    let mut rule = json!({
        "apiVersion": "stillpoint.dev/v1alpha1", "kind": "ProtectionRule",
        "metadata": {"name": name}, "spec": spec,
    });
    rule["spec"]["namespaceSelector"] = json!({"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}});
    create(&stage.cluster, rule).await;
}

/// The run has its applications inline: no policy was accepted or refused for it.
#[tokio::test]
async fn a_run_without_a_policy_does_not_slip_past_a_rule() {
    let stage = Stage::faithful("rule-templates").await;
    rule(&stage, "gold", json!({"allow": {"templates": [{"name": "postgresql"}]}})).await;
    stage.back_up("b").await;
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "RuleViolation").await;
    assert!(stage.went_through().is_empty());
    assert!(stage.cluster.audit().iter().all(|entry| entry.resource != "pods/exec"), "nothing was tried");
    stage.end().await;
}

fn leases(stage: &Stage) -> Api<Lease> {
    // Where the controller of these tests keeps its Leases.
    Api::namespaced(stage.cluster.client(), "default")
}

/// Another replica's run has the only place: this one says so, stays unfrozen, and goes on when the place is free. Its own
/// place is gone when it has thawed.
#[tokio::test]
async fn a_run_waits_for_its_place_before_its_freeze_and_says_why() {
    let stage = Stage::faithful("rule-limits").await;
    rule(&stage, "pace", json!({"limits": {"namespace": 1}})).await;
    let bound = Bound { rule: "pace".to_owned(), scope: Scope::Namespace(NAMESPACE.to_owned()), limit: 1 };
    let name = place_name(&bound, 0);
    let other = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {
            "name": name,
            "labels": {"stillpoint.dev/lease": "workload", "stillpoint.dev/backup-uid": "other"},
            "annotations": {"stillpoint.dev/backup": "shop/other"},
        },
        "spec": {"holderIdentity": "elsewhere"},
    });
    let leases = leases(&stage);
    leases.create(&PostParams::default(), &serde_json::from_value(other).unwrap()).await.unwrap();
    stage.back_up("b").await;
    let paced = async |status: &str| {
        let backup = stage.backups().get("b").await.ok()?;
        let conditions = backup.status.as_ref()?.conditions.clone();
        conditions.into_iter().find(|one| one.type_ == "Paced" && one.status == status)
    };
    let waits = eventually("the run says that it waits", SOON, async || paced("True").await).await;
    assert_eq!(waits.reason, "FreezeLimit");
    let words = "ProtectionRule pace lets 1 freeze(s) go on at once (limits.namespace, here shop)";
    assert!(waits.message.starts_with(words), "{}", waits.message);
    let ticket =
        format!("stillpoint-ticket-{}", stage.backups().get("b").await.unwrap().metadata.uid.unwrap());
    eventually("it has a ticket", SOON, async || leases.get_opt(&ticket).await.unwrap()).await;
    assert!(stage.went_through().is_empty(), "nothing was opened");

    leases.delete(&name, &Default::default()).await.unwrap();
    let backup = stage.finished("b").await;
    assert!(backup.proven(), "{:?}", backup.status);
    assert!(paced("False").await.is_some());
    for gone in [&name, &ticket] {
        assert!(leases.get_opt(gone).await.unwrap().is_none(), "{gone} was released");
    }
    stage.end().await;
}
