//! ProtectionRules: who is refused and back again, and what a rule says of itself.

use k8s_openapi::api::core::v1::{Namespace, Pod};
use stillpoint_api::backup::ORPHANED_SINCE_ANNOTATION;
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
    // Else the policy may be seen first, and its first slot is started.
    of_rule(&world, "gold", |status| status.namespaces == 1).await;
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

/// A database with a claim, as a StatefulSet makes it.
async fn database(world: &World) {
    let templates: Api<stillpoint_api::ClusterHookTemplate> = Api::all(world.cluster.client());
    let template = json!({
        "apiVersion": "stillpoint.dev/v1alpha1", "kind": "ClusterHookTemplate", "metadata": {"name": "postgresql"},
        "spec": {"freeze": {"none": {}}, "detect": {"images": ["postgres"]}},
    });
    templates.create(&PostParams::default(), &serde_json::from_value(template).unwrap()).await.unwrap();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "orders-0", "labels": {"app": "orders"}},
        "spec": {
            "containers": [{"name": "main", "image": "postgres:17"}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data-orders-0"}}],
        },
    });
    let pods: Api<Pod> = namespaced(&world.cluster.client());
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
}

async fn names(world: &World, wanted: &[&str]) {
    let list = async || {
        let found = world.policies.list(&ListParams::default()).await.unwrap().items;
        found.iter().map(kube::ResourceExt::name_any).collect::<Vec<_>>()
    };
    eventually(list, |found| found == wanted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_policy_is_stamped_runs_follows_its_rule_and_steps_back() {
    let world = World::start("default").await;
    database(&world).await;
    label(&world, json!("gold")).await;
    rule(&world, "gold", json!({"default": {"schedule": {"cron": "* * * * *"}}})).await;
    names(&world, &["gold-orders"]).await;
    accepted(&world, "gold-orders", "True", "Accepted").await;
    let counted = of_rule(&world, "gold", |status| status.stamped == 1).await;
    assert!(counted.conditions.iter().any(|one| one.type_ == "Stamped" && one.status == "True"));
    let first = world.backups(1).await.remove(0);
    assert_eq!(first.policy_name(), Some("gold-orders"));
    world.finish(&first).await;

    let cron = async || world.policies.get("gold-orders").await.unwrap().spec.schedule.cron;
    let often = Patch::Merge(json!({"spec": {"schedule": {"cron": "@hourly"}}}));
    // The scheduler may have written a status meanwhile; no other change follows that would bring another look.
    world.cluster.faults().inject(Fault::new("update", "backuppolicies", FaultAction::Status(409)));
    world.policies.patch("gold-orders", &PatchParams::default(), &often).await.unwrap();
    eventually(cron, |cron| cron == "* * * * *").await;
    assert_eq!(world.cluster.faults().hits(), 1);
    world.told("gold-orders", "StampedPolicyRestored", "the edit was put back").await;
    edit(&world, "gold", json!({"default": {"schedule": {"cron": "*/2 * * * *"}}})).await;
    eventually(cron, |cron| cron == "*/2 * * * *").await;

    // An own policy: the stamped one goes, its Backup stays.
    world.apply("nightly", json!({"cron": "0 3 1 1 *"})).await;
    names(&world, &["nightly"]).await;
    assert_eq!(world.backups.get(&first.name_any()).await.unwrap().metadata.deletion_timestamp, None);
    world.policies.delete("nightly", &Default::default()).await.unwrap();
    names(&world, &["gold-orders"]).await;

    // The namespace opts out, and in again; then the rule goes, and what it owns with it.
    let opt = async |value: Value| {
        let spaces: Api<Namespace> = Api::all(world.cluster.client());
        let patch =
            Patch::Merge(json!({"metadata": {"annotations": {"stillpoint.dev/default-policy": value}}}));
        spaces.patch("default", &PatchParams::default(), &patch).await.unwrap();
    };
    opt(json!("none")).await;
    names(&world, &[]).await;
    opt(Value::Null).await;
    names(&world, &["gold-orders"]).await;
    rules(&world).delete("gold", &Default::default()).await.unwrap();
    names(&world, &[]).await;
    assert_eq!(world.backups.get(&first.name_any()).await.unwrap().metadata.deletion_timestamp, None);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_policy_left_is_noted_saved_by_its_successor_and_goes_after_its_time() {
    let mut world = World::start("orphans").await;
    tokio::time::timeout(PATIENCE, world.ready.wait_for(|ready| *ready)).await.unwrap().unwrap();
    label(&world, json!("gold")).await;
    rule(&world, "leavings", json!({"orphans": {"keep": "1d"}})).await;
    // What is not younger than the definition of policies, in whole seconds, is never an orphan.
    let definitions: Api<CustomResourceDefinition> = Api::all(world.cluster.client());
    let defined =
        definitions.get("backuppolicies.stillpoint.dev").await.unwrap().creation_timestamp().unwrap().0;
    let second = async || SystemClock::new().wall().as_second();
    eventually(second, |second| *second > defined.as_second()).await;
    world.apply_keeping("often", json!({"cron": "* * * * *"}), 5).await;
    let older = world.backups(1).await.remove(0);
    world.finish(&older).await;
    world.clock.advance(Duration::from_secs(60));
    world.wake("often").await;
    let newer = world.backups(2).await.remove(1);
    world.finish(&newer).await;

    let noted = async |there: bool| {
        let notes = async || {
            let all = world.backups.list(&ListParams::default()).await.unwrap().items;
            all.iter()
                .map(|one| one.annotations().contains_key(ORPHANED_SINCE_ANNOTATION))
                .collect::<Vec<_>>()
        };
        eventually(notes, |notes| notes.iter().take(2).all(|noted| *noted == there)).await;
    };
    world.policies.delete("often", &Default::default()).await.unwrap();
    noted(true).await;
    world.told(&older.name_any(), "Orphaned", "ProtectionRule leavings").await;
    let told = of_rule(&world, "leavings", |status| {
        status.orphans.as_ref().is_some_and(|orphans| (orphans.backups, orphans.expiring) == (2, 1))
    })
    .await;
    assert!(told.orphans.unwrap().next_deletion.is_some());

    world.apply_keeping("often", json!({"cron": "0 3 1 1 *"}), 5).await;
    noted(false).await;
    of_rule(&world, "leavings", |status| status.orphans.as_ref().is_some_and(|orphans| orphans.backups == 0))
        .await;
    world.policies.delete("often", &Default::default()).await.unwrap();
    noted(true).await;

    // A day and an hour later, as far as the notes tell.
    let since = world.clock.wall().checked_sub(SignedDuration::from_hours(25)).unwrap().to_string();
    let back = Patch::Merge(json!({"metadata": {"annotations": {ORPHANED_SINCE_ANNOTATION: since}}}));
    for backup in [&newer, &older] {
        world.backups.patch(&backup.name_any(), &PatchParams::default(), &back).await.unwrap();
    }
    let left = world.backups(1).await;
    assert_eq!(left[0].name_any(), newer.name_any(), "the newest stays");
    world.told(&older.name_any(), "OrphanDeleted", "the policy often is gone").await;
    of_rule(&world, "leavings", |status| {
        status.orphans.as_ref().is_some_and(|orphans| (orphans.backups, orphans.expiring) == (1, 0))
    })
    .await;
    world.end().await;
}
