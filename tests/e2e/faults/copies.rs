//! The newest point of every database as a copy: every commit that must be there is, none that must not.

use std::time::Duration;

use futures::future::join_all;
use kube::ResourceExt as _;
use stillpoint_api::backup::Phase;
use stillpoint_api::evidence::Consistency;
use stillpoint_e2e::load::Bounds;
use stillpoint_e2e::world::World;
use stillpoint_e2e::{Outcome, Present as _, Problem, point};

use crate::database::Database;

/// A restored server recovers first.
const WITHIN: Duration = Duration::from_secs(240);

/// Restores and checks one point of each database; answers how many, and what is wrong.
pub async fn check(world: &World, databases: &[Database]) -> (usize, Vec<String>) {
    let checks = databases.iter().map(async |database| {
        let checked = tokio::time::timeout(WITHIN, newest(world, database)).await;
        match checked {
            Ok(outcome) => outcome.map_err(|problem| format!("{}: {}", database.namespace, problem.0)),
            Err(_) => Err(format!("{}: the copy was not checked within {WITHIN:?}", database.namespace)),
        }
    });
    let (mut good, mut wrong) = (0, Vec::new());
    for outcome in join_all(checks).await {
        match outcome {
            Ok(true) => good += 1,
            Ok(false) => {}
            Err(words) => wrong.push(words),
        }
    }
    (good, wrong)
}

async fn newest(world: &World, database: &Database) -> Outcome<bool> {
    let mut points = database.backups().list(&Default::default()).await?.items;
    points.retain(|backup| {
        backup.status.as_ref().is_some_and(|status| {
            status.phase == Phase::Succeeded && status.consistency == Some(Consistency::Application)
        })
    });
    points.sort_by_key(|backup| backup.metadata.creation_timestamp.clone().map(|time| time.0));
    let Some(backup) = points.last() else { return Ok(false) };
    let bounds = if database.locks() {
        let instants = point::verify(&world.cluster, backup).await?;
        Bounds::held(&instants)
    } else {
        let member =
            backup.status.as_ref().and_then(|status| status.members.first()).present("the member")?;
        let uid = member.volume_snapshot_uid.as_deref().present("members[0].volumeSnapshotUID")?;
        Bounds::observed(&world.cluster.ledger.cut_of(uid)?)
    };
    let name = backup.name_any();
    let prefix = format!("{name}-");
    let run =
        ["restore", "run", "--backup", &name, "--prefix", &prefix, "--wait", "--timeout", "3m", "-o", "json"];
    let printed = world.stillpoint(database.namespace, &run).await?.good("stillpoint restore run --wait")?;
    let restore: stillpoint_api::Restore =
        serde_json::from_str(&printed).map_err(|error| Problem(format!("{error}: {printed}")))?;
    let claims = restore.status.present("the Restore's status")?.claims;
    let claim = &claims.first().present("the new claim")?.claim_name;
    database.load.check_copy(claim, &bounds).await?;
    Ok(true)
}
