//! How fast this API server creates Backups for anybody: the scheduler's own kind of client, as many at once as are fastest.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kube::Api;
use kube::api::PostParams;
use serde_json::json;
use stillpoint_api::Backup;
use stillpoint_api::clock::SharedClock;
use stillpoint_executor::api_client::api_client;

use crate::failure::{Outcome, Present as _};
use crate::stand_in::RAW;

/// Requests at once.
pub const AT_ONCE: usize = 32;

/// Creates `count` Backups as the scheduler does; how many a second.
///
/// # Errors
/// One could not be created.
pub async fn rate(config: kube::Config, count: usize, clock: &SharedClock) -> Outcome<f64> {
    let client = api_client(config).present("make a client")?;
    let api: Api<Backup> = Api::namespaced(client, RAW);
    let next = Arc::new(AtomicUsize::new(0));
    let begun = clock.mono();
    let tasks: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let (api, next) = (api.clone(), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return Ok(());
                    }
                    let backup: Backup = serde_json::from_value(json!({
                        "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Backup",
                        "metadata": {
                            "name": format!("orders-{number:06}-nightly-1f2e3d4c-h9sd1"),
                            "labels": {"stillpoint.dev/policy": format!("orders-{number:06}-nightly")},
                        },
                        "spec": {
                            "run": {
                                "policyRef": {
                                    "name": format!("orders-{number:06}-nightly"),
                                    "uid": "5a1e0001-0001-4c0d-9f5b-000000000001",
                                },
                                "slot": "2026-11-21T00:00:00Z",
                            },
                            "trigger": "Schedule",
                        },
                    }))
                    .present("make a Backup")?;
                    api.create(&PostParams::default(), &backup).await.present("create a Backup")?;
                }
            })
        })
        .collect();
    for task in tasks {
        let done: Outcome<()> = task.await.present("create Backups")?;
        done?;
    }
    Ok(count as f64 / clock.mono().since(begun).as_secs_f64())
}
