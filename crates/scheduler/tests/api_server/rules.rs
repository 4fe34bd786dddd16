//! ProtectionRules: who is refused and back again, and what a rule says of itself.

use k8s_openapi::api::core::v1::Namespace;
use stillpoint_api::rule::{ProtectionRule, ProtectionRuleStatus};

use super::*;

fn rules(world: &World) -> Api<ProtectionRule> {
    Api::all(world.cluster.client())
}

/// A rule for namespaces with the label `tier: gold`.
async fn rule(world: &World, name: &str, spec: Value) {
    let mut rule = json!({
        "apiVersion": "stillpoint.dev/v1alpha1", "kind": "ProtectionRule", "metadata": {"name": name}, "spec": spec,
    });
    rule["spec"]["namespaceSelector"] = json!({"matchLabels": {"tier": "gold"}});
    rules(world).create(&PostParams::default(), &serde_json::from_value(rule).unwrap()).await.unwrap();
}

async fn edit(world: &World, name: &str, spec: Value) {
    let patch = Patch::Merge(json!({"spec": spec}));
    rules(world).patch(name, &PatchParams::default(), &patch).await.unwrap();
}

async fn label(world: &World, tier: Value) {
    let spaces: Api<Namespace> = Api::all(world.cluster.client());
    let patch = Patch::Merge(json!({"metadata": {"labels": {"tier": tier}}}));
    spaces.patch("default", &PatchParams::default(), &patch).await.unwrap();
}

async fn of_rule(
    world: &World,
    name: &str,
    wanted: impl Fn(&ProtectionRuleStatus) -> bool,
) -> ProtectionRuleStatus {
    eventually(async || rules(world).get(name).await.unwrap().status.unwrap_or_default(), wanted).await
}

async fn accepted(world: &World, name: &str, value: &str, reason: &str) -> BackupPolicyStatus {
    let expected = (value.to_owned(), reason.to_owned());
    world.status(name, |status| condition(status, "Accepted") == expected).await
}

/// By an edit of the rule, of the policy and of the namespace's labels: nobody has to touch anything else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_outside_a_rule_is_refused_and_back_at_once() {
    let world = World::start("rule").await;
    label(&world, json!("gold")).await;
    rule(&world, "gold", json!({"require": {"rpo": "30m"}})).await;
    // Its objective is one hour.
    world.apply("often", json!({"cron": "* * * * *"})).await;
    let status = accepted(&world, "often", "False", "RuleViolation").await;
    let words = "spec.objectives.rpo is 1h; ProtectionRule gold asks for at most 30m (require.rpo)";
    assert_eq!(status.conditions.iter().find(|one| one.type_ == "Accepted").unwrap().message, words);
    world.told("often", "RuleViolation", words).await;
    let counted = of_rule(&world, "gold", |status| status.violations == 1).await;
    assert_eq!(
        (counted.namespaces, counted.policies, counted.violating),
        (1, 1, vec!["default/often".to_owned()])
    );
    assert_eq!(world.backups(0).await.len(), 0, "nothing was started");

    edit(&world, "gold", json!({"require": {"rpo": "1h"}})).await;
    accepted(&world, "often", "True", "Accepted").await;
    of_rule(&world, "gold", |status| status.violations == 0 && status.violating.is_empty()).await;
    edit(&world, "gold", json!({"require": {"rpo": "30m"}})).await;
    accepted(&world, "often", "False", "RuleViolation").await;
    label(&world, Value::Null).await;
    accepted(&world, "often", "True", "Accepted").await;
    label(&world, json!("gold")).await;
    accepted(&world, "often", "False", "RuleViolation").await;
    let patch = Patch::Merge(json!({"spec": {"objectives": {"rpo": "20m"}}}));
    world.policies.patch("often", &PatchParams::default(), &patch).await.unwrap();
    accepted(&world, "often", "True", "Accepted").await;
    rules(&world).delete("gold", &Default::default()).await.unwrap();
    world.end().await;
}

/// One point more than its retention keeps: it goes when the policy is accepted, and not before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn points_of_a_policy_that_is_refused_are_not_pruned() {
    let world = World::start("rule-points").await;
    world.apply("often", json!({"cron": "* * * * *"})).await;
    let first = world.backups(1).await.remove(0);
    world.finish(&first).await;
    label(&world, json!("gold")).await;
    world.clock.advance(Duration::from_secs(60));
    world.wake("often").await;
    let second = world.backups(2).await.remove(1);
    rule(&world, "gold", json!({"require": {"rpo": "30m"}})).await;
    accepted(&world, "often", "False", "RuleViolation").await;
    world.finish(&second).await;
    let seen =
        |status: &BackupPolicyStatus| status.recovery_points.as_ref().is_some_and(|points| points.ready == 2);
    world.status("often", seen).await;
    assert!(world.backups(2).await.iter().all(|backup| backup.metadata.deletion_timestamp.is_none()));
    rules(&world).delete("gold", &Default::default()).await.unwrap();
    assert_eq!(world.backups(1).await[0].name_any(), second.name_any());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_s_blackout_drops_slots_and_the_event_says_whose_it_is() {
    let world = World::start("rule-blackout").await;
    label(&world, json!("gold")).await;
    let hour = (world.clock.wall() - SignedDuration::from_hours(1)).to_zoned(jiff::tz::TimeZone::UTC).hour();
    rule(&world, "office", json!({"blackouts": [{"start": format!("0 {hour} * * *"), "duration": "3h"}]}))
        .await;
    of_rule(&world, "office", |status| status.namespaces == 1).await;
    world.apply("dark", json!({"cron": "* * * * *"})).await;
    let status = world.status("dark", |status| status.missed.contains_key("rule_blackout")).await;
    assert_eq!(status.missed.keys().collect::<Vec<_>>(), ["rule_blackout"]);
    world.told("dark", "MissedSlots", "inside a blackout of ProtectionRule office").await;
    assert_eq!(world.backups(0).await.len(), 0);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_cannot_be_obeyed_says_so_and_decides_nothing() {
    let world = World::start("rule-refused").await;
    label(&world, json!("gold")).await;
    let never_ends = json!([{"start": "0 8 * * *", "duration": "24h"}]);
    rule(&world, "broken", json!({"require": {"rpo": "1m"}, "blackouts": never_ends})).await;
    let said = |status: &ProtectionRuleStatus| {
        status.conditions.iter().any(|one| one.status == "False" && one.reason == "BlackoutNeverEnds")
    };
    of_rule(&world, "broken", said).await;
    world.apply("often", json!({"cron": "* * * * *"})).await;
    accepted(&world, "often", "True", "Accepted").await;
    world.end().await;
}
