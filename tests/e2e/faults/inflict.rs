//! Inflicts a fault, and repairs what it broke.

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use stillpoint_e2e::controller::{Controller, Start};
use stillpoint_e2e::network::Network;
use stillpoint_e2e::process::send_signal;
use stillpoint_e2e::wait::{Look, now_micros, until};
use stillpoint_e2e::world::World;
use stillpoint_e2e::{Outcome, Present as _, ensure};

use crate::database::Database;
use crate::plan::{Fault, Shot};

/// A control plane that was killed is back within this.
const BACK_WITHIN: Duration = Duration::from_secs(60);

/// Name of the second of two controllers.
const SECOND: &str = "e2e-second";

/// When a fault began; microseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Inflicted {
    /// The kill.
    pub at: i64,
}

/// The second controller of shots that stop one of two.
pub async fn second_controller(world: &mut World, fault: Fault) -> Outcome<Option<Controller>> {
    if fault != Fault::Stopped {
        return Ok(None);
    }
    let number = world.next_number();
    let start = Start { replica: SECOND, ..Start::default() };
    Ok(Some(Controller::start(&world.cluster, &world.binary, &world.out, number, start).await?))
}

/// Inflicts the fault, waits, and repairs.
///
/// # Errors
/// There is nothing to kill, or it does not come back.
pub async fn inflict(
    world: &mut World,
    network: Network,
    second: Option<&Controller>,
    database: &Database,
    run: &str,
    shot: &Shot,
) -> Outcome<Inflicted> {
    let at = match shot.fault {
        Fault::Controller => {
            let controller = world.take_controller()?;
            let at = now_micros();
            controller.crash().await?;
            tokio::time::sleep(shot.down).await;
            at
        }
        Fault::Partition => {
            let at = now_micros();
            network.drop_packets().await?;
            tokio::time::sleep(shot.down).await;
            network.heal().await?;
            at
        }
        Fault::Stopped => {
            let second = second.present("the second controller")?;
            let owner = database.backups().get(run).await?.status.and_then(|status| status.executor);
            // A replica's identity begins with its name.
            let stopped = match owner.is_some_and(|owner| owner.starts_with(SECOND)) {
                true => second,
                false => world.controller_now().present("the first controller")?,
            };
            let at = now_micros();
            stopped.signal("STOP").await?;
            tokio::time::sleep(shot.down).await;
            stopped.signal("CONT").await?;
            at
        }
        Fault::Client => return client(database).await,
        Fault::Kubelet
        | Fault::ApiServer
        | Fault::Containerd
        | Fault::SnapshotController
        | Fault::Sidecar
        | Fault::Driver => {
            let component = shot.fault.component().present("the component")?;
            let pid = world.cluster.component(component)?;
            let at = now_micros();
            send_signal(pid, "KILL").await?;
            tokio::time::sleep(shot.down).await;
            at
        }
    };
    // The driver stays slow until the runs are over.
    world.heal_components().await?;
    serves(world).await?;
    world.controller_with(Start { network: Some(network), ..Start::default() }).await?;
    Ok(Inflicted { at })
}

/// Kills the client process of the hold in one database's pod.
///
/// # Errors
/// There is none.
pub async fn client(database: &Database) -> Outcome<Inflicted> {
    let clients = database.clients()?;
    ensure!(!clients.is_empty(), "{}: there is no client to kill", database.namespace);
    let at = now_micros();
    for pid in clients {
        // One that ended meanwhile was thawed just before: that instant is one of those meant.
        let _ = send_signal(pid, "KILL").await;
    }
    Ok(Inflicted { at })
}

/// Waits until the API server answers and the node takes execs again.
async fn serves(world: &World) -> Outcome {
    let spaces: Api<Namespace> = Api::all(world.cluster.client.clone());
    until("the API server to answer", BACK_WITHIN, async || {
        Ok(match spaces.get_opt("default").await {
            Ok(_) => Look::Done(()),
            Err(error) => Look::NotYet(error.to_string()),
        })
    })
    .await?;
    until("every component to run", BACK_WITHIN, async || {
        match world.cluster.run(&["status"]).await {
            Ok(()) => Ok(Look::Done(())),
            Err(problem) => {
                // A sidecar that lost its driver ends a little later than the driver.
                world.heal_components().await?;
                Ok(Look::NotYet(problem.0))
            }
        }
    })
    .await
}
