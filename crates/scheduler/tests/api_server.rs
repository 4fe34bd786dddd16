//! The whole scheduler against the embedded API server: real watches, real schemas, real conflicts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use stillpoint_api::backup::{Backup, Trigger};
use stillpoint_api::clock::{Clock as _, ManualClock, SystemClock};
use stillpoint_api::policy::{BackupPolicy, BackupPolicyStatus};
use stillpoint_scheduler::election::Leadership;
use stillpoint_scheduler::{SchedulerContext, SchedulerError, run};
use stillpoint_simcluster::{SimCluster, SimOptions};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// How long anything may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    cluster: SimCluster,
    clock: Arc<ManualClock>,
    ready: watch::Receiver<bool>,
    stop: oneshot::Sender<()>,
    scheduler: JoinHandle<Result<(), SchedulerError>>,
    policies: Api<BackupPolicy>,
    backups: Api<Backup>,
}

impl World {
    /// A cluster with the definitions, and a scheduler whose clock is ten minutes ahead of the objects' creation.
    async fn start(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("stillpoint-scheduler-{name}-{}", std::process::id()));
        let cluster = SimCluster::start(SimOptions::api_only(root)).await.unwrap();
        let client = cluster.client();
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        for definition in stillpoint_api::crd::all() {
            definitions.create(&PostParams::default(), &definition).await.unwrap();
        }
        let clock = Arc::new(ManualClock::at(SystemClock::new().wall() + SignedDuration::from_mins(10)));
        let (sender, ready) = watch::channel(false);
        let (stop, stopped) = oneshot::channel::<()>();
        let context = SchedulerContext {
            client: client.clone(),
            clock: clock.clone(),
            cluster_uid: "cluster".to_owned(),
            ready: sender,
            leadership: Leadership::alone(clock.clone()),
            progress: watch::Sender::default(),
        };
        let scheduler = tokio::spawn(run(context, async move {
            stopped.await.ok();
        }));
        let (policies, backups) = (namespaced(&client), namespaced(&client));
        Self { cluster, clock, ready, stop, scheduler, policies, backups }
    }

    async fn apply(&self, name: &str, schedule: Value) {
        let policy: BackupPolicy = serde_json::from_value(json!({
            "apiVersion": "stillpoint.dev/v1alpha1",
            "kind": "BackupPolicy",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "schedule": schedule,
                "objectives": {"rpo": "1h"},
                "retention": {"last": 1},
                "applications": [{"name": "db", "selector": {"matchLabels": {"app": "db"}}}],
            },
        }))
        .unwrap();
        self.policies.create(&PostParams::default(), &policy).await.unwrap();
    }

    async fn status(&self, name: &str, wanted: impl Fn(&BackupPolicyStatus) -> bool) -> BackupPolicyStatus {
        eventually(async || self.policies.get(name).await.unwrap().status.unwrap_or_default(), wanted).await
    }

    /// The Backups once there are `count`, oldest slot first.
    async fn backups(&self, count: usize) -> Vec<Backup> {
        let list = async || {
            let mut found = self.backups.list(&ListParams::default()).await.unwrap().items;
            found.sort_by_key(|backup| backup.spec.run.slot.as_ref().map(|slot| slot.0));
            found
        };
        eventually(list, |found| found.len() == count).await
    }

    async fn finish(&self, backup: &Backup) {
        let now = self.clock.wall();
        let status = json!({"status": {
            "phase": "Succeeded",
            "consistency": "Application",
            "cut": now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
            "finishedAt": now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        }});
        let patch = Patch::Merge(status);
        self.backups.patch_status(&backup.name_any(), &PatchParams::default(), &patch).await.unwrap();
    }

    async fn end(self) {
        self.stop.send(()).unwrap();
        self.scheduler.await.unwrap().unwrap();
        let root = self.cluster.root().to_owned();
        self.cluster.shutdown().await.unwrap();
        std::fs::remove_dir_all(root).ok();
    }
}

fn namespaced<K>(client: &Client) -> Api<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    Api::namespaced(client.clone(), "default")
}

/// Asks until `wanted` holds; fails with what was seen last.
async fn eventually<T: Debug>(ask: impl AsyncFn() -> T, wanted: impl Fn(&T) -> bool) -> T {
    let mut last = None;
    let asked = tokio::time::timeout(PATIENCE, async {
        loop {
            let found = ask().await;
            if wanted(&found) {
                return found;
            }
            last = Some(found);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    match asked.await {
        Ok(found) => found,
        Err(_) => panic!("not reached in {PATIENCE:?}; seen last: {last:?}"),
    }
}

fn condition(status: &BackupPolicyStatus, kind: &str) -> (String, String) {
    let found = status.conditions.iter().find(|condition| condition.type_ == kind);
    found.map(|found| (found.status.clone(), found.reason.clone())).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_is_scheduled_run_judged_and_pruned() {
    let mut world = World::start("story").await;
    tokio::time::timeout(PATIENCE, world.ready.wait_for(|ready| *ready)).await.unwrap().unwrap();
    world.apply("often", json!({"cron": "* * * * *"})).await;

    let first = world.backups(1).await.remove(0);
    assert_eq!(first.spec.trigger, Trigger::Schedule);
    let status = world.status("often", |status| status.active.is_some()).await;
    assert_eq!(status.last_slot, first.spec.run.slot);
    assert_eq!(status.next_slots.len(), 5);
    assert!(status.missed["controller_down"] >= 8, "{:?}", status.missed);
    assert_eq!(condition(&status, "Accepted").0, "True");

    world.finish(&first).await;
    let status = world.status("often", |status| condition(status, "Ready").0 == "True").await;
    assert_eq!(status.rpo.as_ref().and_then(|rpo| rpo.state.as_deref()), Some("Compliant"));
    assert_eq!(status.recovery_points.as_ref().map(|points| points.ready), Some(1));

    // The next minute: a second point, and only then the first one goes.
    world.clock.advance(Duration::from_secs(60));
    let note =
        Patch::Merge(json!({"metadata": {"labels": {"wake": "up"}}, "spec": {"minContinuity": "State"}}));
    world.policies.patch("often", &PatchParams::default(), &note).await.unwrap();
    let second = world.backups(2).await.remove(1);
    assert!(second.spec.run.slot > first.spec.run.slot);
    world.finish(&second).await;
    let left = world.backups(1).await;
    assert_eq!(left[0].name_any(), second.name_any());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_schedule_is_told_and_starts_nothing() {
    let world = World::start("refused").await;
    world.apply("typo", json!({"cron": "0 25 * * *"})).await;
    world.apply("mars", json!({"cron": "@hourly", "timeZone": "Mars/Olympus"})).await;
    for (name, reason) in [("typo", "InvalidSchedule"), ("mars", "InvalidTimeZone")] {
        let status = world.status(name, |status| !status.conditions.is_empty()).await;
        let expected = ("False".to_owned(), reason.to_owned());
        assert_eq!(
            (condition(&status, "Accepted"), condition(&status, "Ready")),
            (expected.clone(), expected)
        );
    }
    assert_eq!(world.backups(0).await.len(), 0);
    world.end().await;
}

/// Creates a cluster template with one parameter that has no default.
async fn template_with_parameter(world: &World) {
    let templates: Api<stillpoint_api::ClusterHookTemplate> = Api::all(world.cluster.client());
    let template: stillpoint_api::ClusterHookTemplate = serde_json::from_value(json!({
        "apiVersion": "stillpoint.dev/v1alpha1",
        "kind": "ClusterHookTemplate",
        "metadata": {"name": "needs-socket"},
        "spec": {"freeze": {"none": {}}, "parameters": [{"name": "socket"}]},
    }))
    .unwrap();
    templates.create(&PostParams::default(), &template).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_is_accepted_only_with_the_parameters_of_its_template() {
    let world = World::start("parameters").await;
    template_with_parameter(&world).await;
    for (name, template, parameters) in [
        ("gone", "no-such-template", json!({})),
        ("lacks", "needs-socket", json!({})),
        ("fits", "needs-socket", json!({"socket": "/run/s"})),
    ] {
        let policy: BackupPolicy = serde_json::from_value(json!({
            "apiVersion": "stillpoint.dev/v1alpha1",
            "kind": "BackupPolicy",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "schedule": {"cron": "0 3 1 1 *"},
                "applications": [{
                    "name": "db",
                    "selector": {"matchLabels": {"app": "db"}},
                    "templateRef": {"name": template},
                    "parameters": parameters,
                }],
            },
        }))
        .unwrap();
        world.policies.create(&PostParams::default(), &policy).await.unwrap();
    }
    for (name, accepted, reason) in [
        ("gone", "False", "TemplateNotFound"),
        ("lacks", "False", "MissingParameter"),
        ("fits", "True", "Accepted"),
    ] {
        let status = world.status(name, |status| !status.conditions.is_empty()).await;
        assert_eq!(condition(&status, "Accepted"), (accepted.to_owned(), reason.to_owned()), "{name}");
    }

    // Corrected, it is accepted.
    let corrected = Patch::Merge(json!({"spec": {"applications": [{
        "name": "db",
        "selector": {"matchLabels": {"app": "db"}},
        "templateRef": {"name": "needs-socket"},
        "parameters": {"socket": "/run/s"},
    }]}}));
    world.policies.patch("lacks", &PatchParams::default(), &corrected).await.unwrap();
    world.status("lacks", |status| condition(status, "Accepted").0 == "True").await;
    world.end().await;
}
