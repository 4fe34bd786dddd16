//! A real write freeze: nothing is committed between FROZEN and THAW, in both grades.

use std::time::Duration;

use serde_json::{Value, json};
use stillpoint_api::policy::Continuity;
use stillpoint_e2e::load::{Bounds, Engine};
use stillpoint_e2e::wait::{Look, until};
use stillpoint_e2e::world::{MARIADB, MARIADB_LOG, World};
use stillpoint_e2e::{Outcome, Present as _, ensure, fail, point};

/// A policy that is run by hand only.
pub fn by_hand(extra: &Value) -> Value {
    let mut spec = json!({
        "schedule": {"cron": "0 3 1 1 *"},
        "applications": [{
            "name": "ledger",
            "selector": {"matchLabels": {"app": "mariadb"}},
            "templateRef": {"name": "mariadb"},
        }],
        "freeze": {"maxHold": "10s"},
        "retention": {"last": 2},
    });
    if let (Some(spec), Some(extra)) = (spec.as_object_mut(), extra.as_object()) {
        spec.extend(extra.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    spec
}

pub async fn grade_lock(world: &mut World) -> Outcome {
    held(world, MARIADB, None, Continuity::Lock).await
}

pub async fn grade_position(world: &mut World) -> Outcome {
    held(world, MARIADB_LOG, Some("--log-bin=binlog --sync-binlog=1"), Continuity::Position).await
}

/// A control of the suite itself: a driver that answers a second before it cuts, vouched for by the operator. The
/// product cannot know, the ledger does: had the cases above compared nothing, they would pass here too.
pub async fn late_cut_is_seen(world: &mut World) -> Outcome {
    world.database(MARIADB, Engine::Mariadb, None).await?;
    world.controller().await?;
    world.policy(MARIADB, "late", by_hand(&json!({}))).await?;
    world.accepted(MARIADB, "late").await?;
    world.cluster.misbehave(Some(json!({"okBeforeCut": "1s"})))?;
    let backup = world.run(MARIADB, "late").await?;
    let member = backup.status.as_ref().and_then(|status| status.members.first()).present("the member")?;
    let uid = member.volume_snapshot_uid.as_deref().present("the snapshot's UID")?;
    until("the late cut", Duration::from_secs(10), async || {
        Ok(Look::at(world.cluster.ledger.cut_of(uid).ok(), "not in the ledger"))
    })
    .await?;
    match point::verify(&world.cluster, &backup).await {
        Ok(_) => fail!("a cut after the thaw was taken for one inside the window"),
        Err(problem) => {
            ensure!(problem.0.contains("true cut"), "it failed for another reason: {}", problem.0);
            println!("        as it should: {}", problem.0);
            Ok(())
        }
    }
}

async fn held(world: &mut World, namespace: &str, options: Option<&str>, grade: Continuity) -> Outcome {
    let load = world.database(namespace, Engine::Mariadb, options).await?;
    world.controller().await?;
    world.policy(namespace, "held", by_hand(&json!({"minContinuity": grade}))).await?;
    world.accepted(namespace, "held").await?;
    let backup = world.run(namespace, "held").await?;
    let instants = point::verify(&world.cluster, &backup).await?;
    let status = backup.status.as_ref().present("status")?;
    ensure!(status.continuity == Some(grade), "the grade is {:?}, not {grade:?}", status.continuity);

    let name = backup.metadata.name.as_deref().present("the Backup's name")?;
    let prefix = format!("{name}-");
    let run =
        ["restore", "run", "--backup", name, "--prefix", &prefix, "--wait", "--timeout", "2m", "-o", "json"];
    let printed = world.stillpoint(namespace, &run).await?.good("stillpoint restore run --wait")?;
    let restore: stillpoint_api::Restore = serde_json::from_str(&printed)?;
    let claims = restore.status.present("the Restore's status")?.claims;
    let claim = &claims.first().present("the new claim")?.claim_name;
    // A commit begun after FROZEN would be in the copy, or acknowledged before THAW and not in it.
    let checked = load.check_copy(claim, &Bounds::held(&instants)).await?;
    let window = status.window.as_ref().and_then(|window| window.frozen_seconds).unwrap_or_default();
    println!(
        "        {namespace}: held {:.0} ms, {} commits before THAW all in the copy, none begun after FROZEN",
        window * 1e3,
        checked.expected
    );
    let described =
        world.stillpoint(namespace, &["backup", "describe", name]).await?.good("backup describe")?;
    std::fs::write(world.out.join(format!("describe-{namespace}.txt")), described)?;
    Ok(())
}
