//! What is measured: so many pods with so many volumes, under which throttle, in single snapshots or one group.

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use stillpoint_e2e::acks::Acks;
use stillpoint_e2e::install;
use stillpoint_e2e::load::{Strength, programs};
use stillpoint_e2e::wait::{Look, until};
use stillpoint_e2e::world::World;
use stillpoint_e2e::{Outcome, ensure};

/// A client rate of snapshot-controller and csi-snapshotter that does not throttle ten volumes.
pub const RAISED: u32 = 100;
/// Template of the scenarios with several volumes.
const STORAGE_TEMPLATE: &str = "bench-mariadb-storage";
const POLICY: &str = "bench";

/// One.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name, and its namespace's.
    pub name: &'static str,
    /// Pods of the application, each a MariaDB under load.
    pub pods: usize,
    /// Volumes of each; the database is on the first.
    pub volumes: usize,
    /// Whether the snapshot components' client rate is raised.
    pub raised: bool,
    /// Whether one VolumeGroupSnapshot cuts them.
    pub group: bool,
    /// How long no snapshot traffic precedes a measured one: with the default throttle its bucket is full again.
    pub quiet: Duration,
    /// Part of RUNS, per cent: deletions under the default throttle take minutes.
    pub share: usize,
}

const fn scenario(name: &'static str, pods: usize, volumes: usize, raised: bool, share: usize) -> Scenario {
    let quiet = if raised { Duration::from_millis(300) } else { Duration::from_secs(3) };
    Scenario { name, pods, volumes, raised, group: false, quiet, share }
}

/// Every scenario; the throttle changes once.
pub const SCENARIOS: &[Scenario] = &[
    scenario("bench-1-default", 1, 1, false, 100),
    scenario("bench-3-default", 1, 3, false, 30),
    scenario("bench-10-default", 1, 10, false, 10),
    Scenario { group: true, ..scenario("bench-10-group-default", 1, 10, false, 20) },
    scenario("bench-1", 1, 1, true, 100),
    scenario("bench-3", 1, 3, true, 100),
    scenario("bench-10", 1, 10, true, 100),
    scenario("bench-5-pods", 5, 1, true, 100),
    Scenario { group: true, ..scenario("bench-10-group", 1, 10, true, 100) },
];

/// The namespaces of all.
pub const NAMESPACES: &[&str] = &[
    "bench-1-default",
    "bench-3-default",
    "bench-10-default",
    "bench-10-group-default",
    "bench-1",
    "bench-3",
    "bench-10",
    "bench-5-pods",
    "bench-10-group",
];

/// A scenario whose databases are under load.
pub struct Bench {
    /// Which.
    pub scenario: Scenario,
    /// Its claims.
    pub claims: Vec<String>,
    /// The writers' logs, one per pod.
    pub acks: Vec<Acks>,
}

impl Scenario {
    /// Starts its databases and gives them a policy.
    ///
    /// # Errors
    /// They do not become ready, or the policy is not accepted.
    pub async fn begin(self, world: &World) -> Outcome<Bench> {
        let (cluster, namespace) = (&world.cluster, self.name);
        let template = cluster.read("config/templates/mariadb.yaml")?;
        // Several volumes, all but one without data: what the lock covers does not change, only what the storage does.
        let storage = template
            .replace("\n  name: mariadb\n", &format!("\n  name: {STORAGE_TEMPLATE}\n"))
            .replace("layout: OneVolume", "layout: AnyUnderLock")
            .replace(
                "images: [mariadb, \"mariadb-*\", \"*/linuxserver/mariadb\"]",
                "images: [none-by-itself]",
            )
            .replace("    pods: One", if self.pods > 1 { "    pods: All" } else { "    pods: One" });
        ensure!(storage.contains(STORAGE_TEMPLATE), "the template of MariaDB has another form than expected");
        install::template(cluster, &storage).await?;
        world.open_namespace(namespace).await?;
        cluster.apply(&programs(cluster)?.to_string(), namespace).await?;
        cluster
            .apply(&self.fixture(&cluster.read("tests/cluster/fixtures/mariadb.yaml")?), namespace)
            .await?;
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
        let ready = until("the databases to be ready", Duration::from_secs(240), async || {
            let found = pods.list(&ListParams::default()).await?.items;
            let good = found.iter().filter(|pod| is_ready(pod)).count();
            let enough = found.len() == self.pods && good == self.pods;
            Ok(Look::at(enough.then_some(found), format!("{good} of {} pods are ready", self.pods)))
        })
        .await?;
        let acks = ready.iter().filter_map(|pod| Some(Acks::of(cluster, &pod.uid()?))).collect();
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), namespace);
        let claims: Vec<String> =
            claims.list(&ListParams::default()).await?.items.iter().map(|claim| claim.name_any()).collect();
        ensure!(claims.len() == self.pods * self.volumes, "{namespace} has the claims {claims:?}");
        world.policy(namespace, POLICY, self.policy()).await?;
        world.accepted(namespace, POLICY).await?;
        Ok(Bench { scenario: self, claims, acks })
    }

    /// MariaDB's fixture with so many pods and volumes.
    fn fixture(self, text: &str) -> String {
        let strength = if self.pods > 1 { Strength { writers: 2, pause_ms: 8 } } else { Strength::default() };
        let engine = "- {name: ENGINE, value: mariadb}";
        let mut text = text
            .replace(engine, &format!("{engine}{}", strength.variables()))
            .replace("  replicas: 1", &format!("  replicas: {}\n  podManagementPolicy: Parallel", self.pods));
        let mut mounts = String::from("- {name: data, mountPath: /data}");
        for index in 1..self.volumes {
            mounts += &format!("\n        - {{name: extra-{index}, mountPath: /extra-{index}}}");
            text += &format!(
                "\n  - metadata: {{name: extra-{index}}}\n    spec: {{accessModes: [ReadWriteOnce], storageClassName: disk, \
                 resources: {{requests: {{storage: 64Mi}}}}}}"
            );
        }
        text.replace("- {name: data, mountPath: /data}", &mounts)
    }

    fn policy(self) -> Value {
        let template = if self.pods * self.volumes > 1 { STORAGE_TEMPLATE } else { "mariadb" };
        let mut spec = json!({
            "schedule": {"cron": "0 3 1 1 *"},
            "applications": [{
                "name": "bench",
                "selector": {"matchLabels": {"app": "mariadb"}},
                "templateRef": {"name": template},
                "pods": if self.pods > 1 { "All" } else { "Auto" },
            }],
            "freeze": {"maxHold": "30s"},
            "run": {"maxAttempts": 1},
            "snapshot": {"group": if self.group { "Required" } else { "Never" }},
            "retention": {"last": 5},
        });
        if self.pods == 1
            && let Some(application) = spec.pointer_mut("/applications/0").and_then(Value::as_object_mut)
        {
            application.remove("pods");
        }
        spec
    }

    /// The policy that a run follows.
    pub const fn policy_name(self) -> &'static str {
        POLICY
    }

    /// How many runs, of so many asked for.
    pub fn runs(self, asked: usize) -> usize {
        (asked * self.share).div_ceil(100).max(1)
    }

    /// Members of a run.
    pub const fn members(self) -> usize {
        self.pods * self.volumes
    }
}

/// Gives the snapshot components their throttle; they are started anew.
///
/// # Errors
/// They do not start.
pub async fn throttle(world: &World, raised: bool) -> Outcome {
    let qps = raised.then(|| ("STILLPOINT_SNAPSHOT_QPS", RAISED.to_string()));
    for component in ["snapshot-controller", "csi-snapshotter"] {
        world.cluster.run_with(&["restart", component], qps.as_ref()).await?;
    }
    Ok(())
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True")
}
