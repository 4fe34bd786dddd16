//! What operations decide (docs/rules.md): a policy refused and back, freezes one at a time, what a policy left behind, a policy stamped where
//! none is.

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use stillpoint_api::backup::ORPHANED_SINCE_ANNOTATION;
use stillpoint_api::clock::{Clock as _, SystemClock};
use stillpoint_api::{Backup, BackupPolicy, ProtectionRule};
use stillpoint_e2e::load::Engine;
use stillpoint_e2e::wait::{Look, until};
use stillpoint_e2e::world::{MARIADB, MARIADB_LOG, RUN_WITHIN, World};
use stillpoint_e2e::{Outcome, Present as _, ensure, point};

use crate::mariadb::by_hand;

const RULE: &str = "e2e";
/// The controller watches rules and labels: what changes is there in moments.
const SOON: Duration = Duration::from_secs(20);

async fn rule(world: &World, spec: Value) -> Outcome {
    let mut rule = json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "ProtectionRule", "metadata": {"name": RULE}, "spec": spec});
    rule["spec"]["namespaceSelector"] = json!({"matchLabels": {"e2e-rule": "yes"}});
    world.cluster.apply(&rule.to_string(), "").await?;
    Ok(())
}

async fn select(world: &World, namespace: &str) -> Outcome {
    let spaces: Api<Namespace> = Api::all(world.cluster.client.clone());
    let label = Patch::Merge(json!({"metadata": {"labels": {"e2e-rule": "yes"}}}));
    spaces.patch(namespace, &PatchParams::default(), &label).await?;
    Ok(())
}

/// The case; its rule goes whatever becomes of it, because it would stamp policies into what comes after.
pub async fn decide(world: &mut World) -> Outcome {
    let outcome = story(world).await;
    world.cluster.misbehave(None)?;
    let rules: Api<ProtectionRule> = Api::all(world.cluster.client.clone());
    rules.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    outcome
}

async fn story(world: &mut World) -> Outcome {
    world.database(MARIADB, Engine::Mariadb, None).await?;
    world.database(MARIADB_LOG, Engine::Mariadb, Some("--log-bin=binlog --sync-binlog=1")).await?;
    world.controller().await?;
    select(world, MARIADB).await?;
    select(world, MARIADB_LOG).await?;
    rule(world, json!({"allow": {"maxHold": "5s"}})).await?;
    world.policy(MARIADB, "ruled", by_hand(&json!({}))).await?;
    let refused = until("the policy to be refused", SOON, async || {
        let seen = world.condition(MARIADB, "ruled", "Accepted").await?;
        let found = seen.clone().filter(|(status, ..)| status == "False");
        Ok(Look::at(found, format!("{seen:?}")))
    })
    .await?;
    ensure!(refused.1 == "RuleViolation", "{refused:?}");
    ensure!(refused.2.contains("ProtectionRule e2e asks for at most 5s (allow.maxHold)"), "{refused:?}");
    let outside = world.run(MARIADB, "ruled").await?;
    let why = point::outcome_of(&outside);
    ensure!(why.starts_with("RuleViolation"), "a run by hand went past the rule: {why}");

    // Allowed again, and one freeze at a time in both namespaces together.
    rule(world, json!({"allow": {"maxHold": "10s"}, "limits": {"cluster": 1}})).await?;
    world.accepted(MARIADB, "ruled").await?;
    world.policy(MARIADB_LOG, "ruled", by_hand(&json!({}))).await?;
    world.accepted(MARIADB_LOG, "ruled").await?;
    paced(world).await?;
    orphaned(world).await?;
    stamped(world).await
}

/// A policy that is gone: its successor saves what it left, and when that is gone for longer than the rule keeps it, the older
/// point goes with its data. `keep` is a day at least, so that the note is put back by hand.
async fn orphaned(world: &mut World) -> Outcome {
    rule(world, json!({"allow": {"maxHold": "10s"}, "orphans": {"keep": "1d"}})).await?;
    let newer = world.run(MARIADB, "ruled").await?;
    point::verify(&world.cluster, &newer).await?;
    let backups: Api<Backup> = Api::namespaced(world.cluster.client.clone(), MARIADB);
    let policies: Api<BackupPolicy> = Api::namespaced(world.cluster.client.clone(), MARIADB);
    let left = async || -> Outcome<Vec<Backup>> {
        let mut all = backups.list(&ListParams::default()).await?.items;
        all.retain(|one| one.policy_name() == Some("ruled"));
        Ok(all)
    };
    let noted = async |there: bool| -> Outcome {
        until(&format!("the notes of a policy that is gone to be there: {there}"), SOON, async || {
            let all = left().await?;
            let notes = all.iter().filter(|one| one.annotations().contains_key(ORPHANED_SINCE_ANNOTATION));
            let notes = notes.count();
            let good = if there { notes == all.len() } else { notes == 0 };
            Ok(Look::at(good.then_some(()), format!("{notes} of {}", all.len())))
        })
        .await
    };
    let older = left().await?.into_iter().find(|one| one.proven() && one.name_any() != newer.name_any());
    let older = older.present("an older point of the policy")?;
    let handle = |backup: &Backup| {
        let member = backup.status.as_ref().and_then(|status| status.members.first());
        member.and_then(|member| member.handle.clone()).present("the handle")
    };
    policies.delete("ruled", &DeleteParams::default()).await?;
    noted(true).await?;
    world.policy(MARIADB, "ruled", by_hand(&json!({}))).await?;
    noted(false).await?;
    policies.delete("ruled", &DeleteParams::default()).await?;
    noted(true).await?;
    let since = SystemClock::new().wall().checked_sub(Duration::from_secs(25 * 3600))?.to_string();
    let back = Patch::Merge(json!({"metadata": {"annotations": {ORPHANED_SINCE_ANNOTATION: since}}}));
    for one in left().await? {
        backups.patch(&one.name_any(), &PatchParams::default(), &back).await?;
    }
    until("the newest point alone to be left of the policy", SOON, async || {
        let names: Vec<String> = left().await?.iter().map(kube::ResourceExt::name_any).collect();
        Ok(Look::at((names == [newer.name_any()]).then_some(()), format!("{names:?}")))
    })
    .await?;
    world.event(MARIADB, &older.name_any(), "OrphanDeleted").await?;
    let gone = handle(&older)?;
    until("the driver to have deleted the data", SOON, async || {
        Ok(Look::at(world.cluster.ledger.deleted(&gone)?.then_some(()), &gone))
    })
    .await?;
    ensure!(!world.cluster.ledger.deleted(&handle(&newer)?)?, "the data of the newest point is gone");
    Ok(())
}

/// Two runs at once, each frozen for a second: one waits for the other and says so.
async fn paced(world: &mut World) -> Outcome {
    world.cluster.misbehave(Some(json!({"preCutDelay": "1s"})))?;
    let one = world.start_run(MARIADB, "ruled").await?.name_any();
    let other = world.start_run(MARIADB_LOG, "ruled").await?.name_any();
    let one = world.finished(MARIADB, &one, RUN_WITHIN).await?;
    let other = world.finished(MARIADB_LOG, &other, RUN_WITHIN).await?;
    world.cluster.misbehave(None)?;
    let window = |backup: &Backup| {
        let window = backup.status.as_ref()?.window.as_ref()?;
        let from = window.started_at.as_ref()?.0;
        Some((from, from.checked_add(Duration::from_secs_f64(window.frozen_seconds?)).ok()?))
    };
    let (a, b) = (window(&one).present("a window")?, window(&other).present("a window")?);
    ensure!(a.1 <= b.0 || b.1 <= a.0, "two freezes overlap: {a:?} and {b:?}");
    let waited = [&one, &other].into_iter().filter(|backup| {
        let conditions = backup.status.iter().flat_map(|status| &status.conditions);
        conditions.into_iter().any(|one| one.type_ == "Paced" && one.reason == "Admitted")
    });
    ensure!(waited.count() == 1, "exactly one of two runs waits for its place");
    point::verify(&world.cluster, &one).await?;
    point::verify(&world.cluster, &other).await?;
    Ok(())
}

/// Without a policy of its own the namespace gets the rule's, which runs at once.
async fn stamped(world: &World) -> Outcome {
    let policies: Api<BackupPolicy> = Api::namespaced(world.cluster.client.clone(), MARIADB);
    policies.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    rule(
        world,
        json!({"limits": {"cluster": 1}, "default": {
        "schedule": {"cron": "0 3 1 1 *", "runOnCreate": true}, "freeze": {"maxHold": "10s"}}}),
    )
    .await?;
    let backups: Api<Backup> = Api::namespaced(world.cluster.client.clone(), MARIADB);
    let run = until("the stamped policy to have run", Duration::from_secs(60), async || {
        let all = backups.list(&ListParams::default()).await?.items;
        let ours = all.iter().find(|one| one.policy_name().is_some_and(|name| name.starts_with("e2e-")));
        let found = ours.filter(|one| one.finished()).cloned();
        Ok(Look::at(found, format!("{:?}", ours.map(point::outcome_of))))
    })
    .await?;
    point::verify(&world.cluster, &run).await?;
    Ok(())
}
