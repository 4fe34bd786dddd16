//! What is installed: definitions, rights, templates; and that the server keeps and checks every field.

use serde_json::Value;
use stillpoint_e2e::cluster::documents;
use stillpoint_e2e::install::product;
use stillpoint_e2e::load::Engine;
use stillpoint_e2e::world::{MARIADB, MARIADB_LOG, POSTGRES, World};
use stillpoint_e2e::{Outcome, Present as _, Problem, ensure, fail};

const SAMPLES: [&str; 5] = ["first-policy", "full-policy", "backup-manual", "restore", "namespace-optin"];

/// Installs what every case needs and lets the databases start.
pub async fn prepare(world: &mut World) -> Outcome {
    product(&world.cluster, world.place).await?;
    world.begin_database(POSTGRES, Engine::Postgres, None).await?;
    world.begin_database(MARIADB, Engine::Mariadb, None).await?;
    world.begin_database(MARIADB_LOG, Engine::Mariadb, Some("--log-bin=binlog --sync-binlog=1")).await?;
    world.controller().await?;
    Ok(())
}

/// Every sample passes strict validation and comes back with every field it had.
pub async fn definitions_and_samples(world: &mut World) -> Outcome {
    for name in SAMPLES {
        let text = world.cluster.read(&format!("config/samples/{name}.yaml"))?;
        let text = text.replace("namespace: shop", &format!("namespace: {POSTGRES}"));
        // A dry run passes admission, defaulting and pruning like any write; generateName has no apply.
        let text = text.replace("generateName: nightly-manual-", "name: nightly-manual");
        let sent = documents(&text)?;
        let stored = world
            .cluster
            .rehearse(&text, POSTGRES)
            .await
            .map_err(|problem| Problem(format!("{name}: {}", problem.0)))?;
        for (sent, stored) in sent.iter().zip(stored) {
            kept(sent, &serde_json::to_value(&stored)?, name)?;
        }
    }
    Ok(())
}

/// Every value of `sent` is in `stored`.
fn kept(sent: &Value, stored: &Value, path: &str) -> Outcome {
    match (sent, stored) {
        (Value::Object(sent), Value::Object(stored)) => sent.iter().try_for_each(|(key, value)| {
            let path = format!("{path}.{key}");
            kept(value, stored.get(key).present(&format!("{path}: pruned; it"))?, &path)
        }),
        (Value::Array(sent), Value::Array(stored)) if sent.len() == stored.len() => {
            sent.iter().zip(stored).try_for_each(|(sent, stored)| kept(sent, stored, &format!("{path}[]")))
        }
        (sent, stored) if sent == stored => Ok(()),
        (sent, stored) => fail!("{path}: sent {sent}, stored {stored}"),
    }
}

/// A misspelt field is refused by the server, and named.
pub async fn unknown_field(world: &mut World) -> Outcome {
    let text = world.cluster.read("config/samples/first-policy.yaml")?;
    let text = text.replace("objectives: {rpo: 26h}", "objectivs: {rpo: 26h}");
    match world.cluster.rehearse(&text, POSTGRES).await {
        Ok(_) => fail!("the server took a policy with `objectivs`"),
        Err(problem) => {
            ensure!(problem.0.contains("objectivs"), "the refusal does not name the field: {}", problem.0)
        }
    }
    Ok(())
}
