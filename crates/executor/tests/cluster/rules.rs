//! What operations do not allow is not done, whoever asks for it.

use serde_json::{Value, json};

use crate::stage::{NAMESPACE, Stage, create};

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
