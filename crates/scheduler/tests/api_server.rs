//! The whole scheduler against the embedded API server: real watches, real schemas, real conflicts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use stillpoint_api::backup::{Backup, Trigger};
use stillpoint_api::clock::{Clock as _, ManualClock, SystemClock};
use stillpoint_api::policy::{BackupPolicy, BackupPolicyStatus, Continuity};
use stillpoint_scheduler::election::Leadership;
use stillpoint_scheduler::{SchedulerContext, SchedulerError, run};
use stillpoint_simcluster::{Fault, FaultAction, SimCluster, SimOptions};
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
    /// A cluster with the definitions, and a scheduler whose clock is three minutes ahead of the objects' creation:
    /// slots are due at once, and the difference to the API server's clock is still an ordinary one.
    async fn start(name: &str) -> Self {
        Self::start_ahead(name, SignedDuration::from_mins(3)).await
    }

    async fn start_ahead(name: &str, ahead: SignedDuration) -> Self {
        let root = std::env::temp_dir().join(format!("stillpoint-scheduler-{name}-{}", std::process::id()));
        let cluster = SimCluster::start(SimOptions::api_only(root)).await.unwrap();
        let client = cluster.client();
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        for definition in stillpoint_api::crd::all() {
            definitions.create(&PostParams::default(), &definition).await.unwrap();
        }
        let clock = Arc::new(ManualClock::at(SystemClock::new().wall() + ahead));
        let (sender, ready) = watch::channel(false);
        let (stop, stopped) = oneshot::channel::<()>();
        let context = SchedulerContext {
            client: client.clone(),
            clock: clock.clone(),
            cluster_uid: "cluster".to_owned(),
            ready: sender,
            leadership: Leadership::alone(clock.clone()),
            progress: watch::Sender::default(),
            deletions: Arc::new(()),
            work: Arc::new(()),
            rules: Arc::default(),
        };
        let scheduler = tokio::spawn(run(context, async move {
            stopped.await.ok();
        }));
        let (policies, backups) = (namespaced(&client), namespaced(&client));
        Self { cluster, clock, ready, stop, scheduler, policies, backups }
    }

    async fn apply(&self, name: &str, schedule: Value) {
        self.apply_keeping(name, schedule, 1).await;
    }

    /// The same with another number of points to keep, from the first look of the scheduler on.
    async fn apply_keeping(&self, name: &str, schedule: Value, last: u32) {
        let policy: BackupPolicy = serde_json::from_value(json!({
            "apiVersion": "stillpoint.dev/v1alpha1",
            "kind": "BackupPolicy",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "schedule": schedule,
                "objectives": {"rpo": "1h"},
                "retention": {"last": last},
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

    /// Waits until an event of this reason on the policy `name` says `words`.
    async fn told(&self, name: &str, reason: &str, words: &str) {
        let events: Api<Event> = namespaced(&self.cluster.client());
        let list = async || {
            let found = events.list(&ListParams::default()).await.unwrap().items;
            let ours = found.into_iter().filter(|event| {
                event.regarding.as_ref().and_then(|about| about.name.as_deref()) == Some(name)
            });
            ours.map(|event| (event.reason.unwrap_or_default(), event.note.unwrap_or_default()))
                .collect::<Vec<_>>()
        };
        eventually(list, |found| found.iter().any(|(why, note)| why == reason && note.contains(words))).await;
    }

    /// Any change of the spec wakes the scheduler, whose own timer follows the real clock.
    async fn wake(&self, name: &str) {
        let grade = if self.policies.get(name).await.unwrap().spec.min_continuity == Continuity::State {
            "Declared"
        } else {
            "State"
        };
        let patch = Patch::Merge(json!({"spec": {"minContinuity": grade}}));
        self.policies.patch(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Ends a run, and waits until the scheduler counts its point. The watches of Backups and of policies have no order:
    /// a slot that comes due before would meet this run, and be missed.
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
        let counted = |status: &BackupPolicyStatus| {
            let newest = status.recovery_points.as_ref().and_then(|points| points.newest.as_ref());
            newest.is_some_and(|newest| newest.0.as_second() == now.as_second())
        };
        self.status(backup.policy_name().unwrap(), counted).await;
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
    assert!(status.missed["controller_down"] >= 1, "{:?}", status.missed);
    assert_eq!(condition(&status, "Accepted").0, "True");

    world.finish(&first).await;
    let status = world.status("often", |status| condition(status, "Ready").0 == "True").await;
    assert_eq!(status.rpo.as_ref().and_then(|rpo| rpo.state.as_deref()), Some("Compliant"));
    assert_eq!(status.recovery_points.as_ref().map(|points| points.ready), Some(1));

    // The next minute: a second point, and only then the first one goes.
    world.clock.advance(Duration::from_secs(60));
    world.wake("often").await;
    let second = world.backups(2).await.remove(1);
    assert!(second.spec.run.slot > first.spec.run.slot);
    world.finish(&second).await;
    let left = world.backups(1).await;
    assert_eq!(left[0].name_any(), second.name_any());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_policy_runs_at_once_when_it_asks_for_it_and_only_then() {
    let world = World::start("initial").await;
    world.apply("calm", json!({"cron": "0 3 1 1 *"})).await;
    world.status("calm", |status| !status.next_slots.is_empty()).await;
    world.apply("eager", json!({"cron": "0 3 1 1 *", "runOnCreate": true})).await;
    let first = world.backups(1).await.remove(0);
    assert_eq!(first.spec.trigger, Trigger::Initial);
    let eager = world.policies.get("eager").await.unwrap();
    assert_eq!(first.spec.run.slot, eager.metadata.creation_timestamp);
    world.status("eager", |status| status.last_slot == first.spec.run.slot).await;
    world.finish(&first).await;
    world.status("eager", |status| condition(status, "Ready").0 == "True").await;
    world.wake("eager").await;
    let generation = world.policies.get("eager").await.unwrap().metadata.generation;
    world.status("eager", |status| status.observed_generation == generation).await;
    assert_eq!(world.backups(1).await.len(), 1);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replacing_slot_cancels_the_run_in_the_way_and_starts_when_it_has_ended() {
    let world = World::start("replace").await;
    world.apply("often", json!({"cron": "* * * * *", "concurrency": "Replace"})).await;
    let first = world.backups(1).await.remove(0);
    world.status("often", |status| status.last_slot == first.spec.run.slot).await;
    world.clock.advance(Duration::from_secs(60));
    world.wake("often").await;
    let cancelled = async || world.backups.get(&first.name_any()).await.unwrap().spec.cancel;
    eventually(cancelled, |cancelled| *cancelled).await;
    world.told("often", "BackupReplaced", &first.name_any()).await;
    assert_eq!(world.backups(1).await.len(), 1, "nothing starts before it has ended");
    let failed = json!({"status": {
        "phase": "Failed",
        "finishedAt": world.clock.wall().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
    }});
    world
        .backups
        .patch_status(&first.name_any(), &PatchParams::default(), &Patch::Merge(failed))
        .await
        .unwrap();
    let second = world.backups(2).await.remove(1);
    assert!(second.spec.run.slot > first.spec.run.slot);
    assert!(!second.spec.cancel);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_inside_a_blackout_is_counted_and_does_not_start() {
    let world = World::start("blackout").await;
    let now = world.clock.wall();
    // From an hour ago, by the clock of the test, for two hours: whatever the time is.
    let hour = (now - SignedDuration::from_hours(1)).to_zoned(jiff::tz::TimeZone::UTC).hour();
    let blackouts = json!([{"start": format!("0 {hour} * * *"), "duration": "3h"}]);
    world.apply("dark", json!({"cron": "* * * * *", "blackouts": blackouts})).await;
    let status = world.status("dark", |status| status.missed.contains_key("blackout")).await;
    assert_eq!(status.missed.keys().collect::<Vec<_>>(), ["blackout"]);
    let next: jiff::Timestamp = status.next_slots[0].parse().unwrap();
    assert!(next > now + SignedDuration::from_mins(59), "after the window: {next}");
    assert_eq!(world.backups(0).await.len(), 0);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vector_43_a_foreign_backup_under_the_name_costs_no_slot_and_is_told() {
    let world = World::start("foreign").await;
    // Suspended, it gets its UID, and somebody takes the names of its next slots.
    world.apply("often", json!({"cron": "* * * * *"})).await;
    let first = world.backups(1).await.remove(0);
    world.finish(&first).await;
    let policy = world.policies.get("often").await.unwrap();
    let next = first.spec.run.slot.as_ref().unwrap().0 + SignedDuration::from_mins(1);
    let name = stillpoint_scheduler::slots::backup_name("often", &policy.uid().unwrap(), next);
    let foreign: Backup = serde_json::from_value(json!({
        "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Backup",
        "metadata": {"name": name, "namespace": "default", "labels": {"stillpoint.dev/policy": "often"}},
        "spec": {"run": {"applications": [{"name": "db", "selector": {"matchLabels": {"app": "db"}}}]}},
    }))
    .unwrap();
    world.backups.create(&PostParams::default(), &foreign).await.unwrap();
    world.clock.advance(Duration::from_secs(60));
    world.wake("often").await;
    let suffixed = format!("{name}-b");
    let run =
        eventually(async || world.backups.get_opt(&suffixed).await.unwrap(), Option::is_some).await.unwrap();
    assert_eq!(run.spec.run.slot.as_ref().map(|slot| slot.0), Some(next));
    world.told("often", "BackupNameTaken", &name).await;
    let status =
        world.status("often", |status| status.last_slot.as_ref().map(|slot| slot.0) == Some(next)).await;
    assert!(!status.missed.contains_key("concurrency"), "{:?}", status.missed);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_slot_of_the_year_9999_is_put_right_and_told() {
    let world = World::start("corrupt").await;
    world.apply("yearly", json!({"cron": "0 3 1 1 *"})).await;
    world.status("yearly", |status| !status.next_slots.is_empty()).await;
    let corrupt = Patch::Merge(json!({"status": {"lastSlot": "9999-12-31T23:59:59Z"}}));
    world.policies.patch_status("yearly", &PatchParams::default(), &corrupt).await.unwrap();
    world.wake("yearly").await;
    world.told("yearly", "LastSlotReset", "far in the future").await;
    let sane = |status: &BackupPolicyStatus| {
        status.last_slot.as_ref().is_some_and(|slot| slot.0 < world.clock.wall())
    };
    world.status("yearly", sane).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_differs_from_the_api_server_s_deletes_nothing_and_says_so() {
    let world = World::start_ahead("skewed", SignedDuration::from_mins(10)).await;
    world.apply("often", json!({"cron": "* * * * *"})).await;
    let first = world.backups(1).await.remove(0);
    world.finish(&first).await;
    world.status("often", |status| condition(status, "ClockSkew").1 == "ClockDiffers").await;
    world.told("often", "ClockSkew", "behind the controller's").await;
    world.clock.advance(Duration::from_secs(60));
    world.wake("often").await;
    // Backups go on; the older point, one too many, stays.
    let second = world.backups(2).await.remove(1);
    world.finish(&second).await;
    world
        .status("often", |status| status.recovery_points.as_ref().is_some_and(|points| points.ready == 2))
        .await;
    assert!(world.backups(2).await.iter().all(|backup| backup.metadata.deletion_timestamp.is_none()));
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_point_stays_beside_what_the_rules_keep_until_it_is_released() {
    let world = World::start("held").await;
    world.apply("often", json!({"cron": "* * * * *"})).await;
    let held = world.backups(1).await.remove(0).name_any();
    let hold = |reason: Value| Patch::Merge(json!({"spec": {"hold": reason}}));
    let parameters = PatchParams::default();
    world.backups.patch(&held, &parameters, &hold(json!({"reason": "case 4711"}))).await.unwrap();
    for count in 1..=3 {
        let newest = world.backups(count).await.remove(count - 1);
        world.finish(&newest).await;
        if count < 3 {
            world.clock.advance(Duration::from_secs(60));
            world.wake("often").await;
        }
    }
    // Of three points one is held and one is kept: `retention.last` is 1.
    let left = world.backups(2).await;
    assert_eq!(left[0].name_any(), held);
    let why = |status: &BackupPolicyStatus, name: &str| {
        let kept = status.retention.iter().flat_map(|retention| &retention.kept);
        kept.filter(|kept| kept.backup == name)
            .flat_map(|kept| kept.reasons.clone())
            .collect::<Vec<_>>()
            .join(" ")
    };
    let newest = left[1].name_any();
    let told =
        |status: &BackupPolicyStatus| why(status, &held) == "held" && why(status, &newest) == "last-1 newest";
    world.status("often", told).await;

    world.backups.patch(&held, &parameters, &hold(Value::Null)).await.unwrap();
    assert_eq!(world.backups(1).await[0].name_any(), newest);
    world.end().await;
}

#[path = "api_server/rules.rs"]
mod rules;
