//! One cluster with a policy that is due every minute, on a wall clock that the test owns.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use stillpoint_api::backup::{Backup, Phase};
use stillpoint_api::clock::{Clock as _, ManualClock, Mono, SystemClock};
use stillpoint_api::policy::{BackupPolicy, BackupPolicyStatus};
use stillpoint_simcluster::{SimCluster, SimOptions};

use crate::replica::Replica;

/// How long anything may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// True time.
pub fn now() -> Mono {
    static CLOCK: LazyLock<SystemClock> = LazyLock::new(SystemClock::new);
    CLOCK.mono()
}

pub struct World {
    pub cluster: SimCluster,
    /// Wall clock of every replica; the times of the election are on clocks of their own.
    pub clock: Arc<ManualClock>,
    policies: Api<BackupPolicy>,
    backups: Api<Backup>,
    /// Slots that were missed before the first one ran.
    missed_before: OnceLock<u64>,
}

impl World {
    pub async fn start(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("stillpoint-replicas-{name}-{}", std::process::id()));
        let cluster = SimCluster::start(SimOptions::api_only(root)).await.unwrap();
        let client = cluster.client();
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        for definition in stillpoint_api::crd::all() {
            definitions.create(&PostParams::default(), &definition).await.unwrap();
        }
        // Well after the creation of everything: a slot is due at once, and earlier ones are missed once and for all.
        let clock = ManualClock::at(SystemClock::new().wall() + SignedDuration::from_mins(10));
        Self {
            policies: Api::namespaced(client.clone(), "default"),
            backups: Api::namespaced(client, "default"),
            cluster,
            clock: Arc::new(clock),
            missed_before: OnceLock::new(),
        }
    }

    /// A policy that is due every minute and keeps everything.
    pub async fn minutely(&self, name: &str) {
        let policy: BackupPolicy = serde_json::from_value(json!({
            "apiVersion": "stillpoint.dev/v1alpha1",
            "kind": "BackupPolicy",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "schedule": {"cron": "* * * * *"},
                "retention": {"last": 100},
                "applications": [{"name": "db", "selector": {"matchLabels": {"app": "db"}}}],
            },
        }))
        .unwrap();
        self.policies.create(&PostParams::default(), &policy).await.unwrap();
    }

    pub async fn status(&self) -> BackupPolicyStatus {
        let policies = self.policies.list(&ListParams::default()).await.unwrap().items;
        policies.into_iter().next().unwrap().status.unwrap_or_default()
    }

    /// The Backups once there are `count`, oldest slot first.
    pub async fn backups(&self, count: usize) -> Vec<Backup> {
        eventually(&format!("there are {count} Backups"), async || {
            let mut found = self.backups.list(&ListParams::default()).await.unwrap().items;
            found.sort_by_key(slot);
            (found.len() >= count).then_some(found)
        })
        .await
    }

    /// The minute passes, and whoever leads is made to look: the loop sleeps on the true clock.
    pub async fn next_minute(&self) {
        self.clock.advance(Duration::from_secs(60));
        let policies = self.policies.list(&ListParams::default()).await.unwrap().items;
        let policy = policies.into_iter().next().unwrap();
        let next = 100 + policy.metadata.generation.unwrap();
        let patch = Patch::Merge(json!({"spec": {"retention": {"last": next}}}));
        self.policies.patch(&policy.name_any(), &PatchParams::default(), &patch).await.unwrap();
    }

    /// The runs that are under way end.
    async fn finish(&self) {
        let now = self.clock.wall().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let status = json!({"status": {
            "phase": "Succeeded", "consistency": "Application", "cut": now, "finishedAt": now,
        }});
        for backup in self.backups.list(&ListParams::default()).await.unwrap().items {
            if backup.status.as_ref().is_none_or(|status| status.phase == Phase::Pending) {
                let patch = Patch::Merge(status.clone());
                self.backups.patch_status(&backup.name_any(), &PatchParams::default(), &patch).await.unwrap();
            }
        }
    }

    /// The slot of number `slots` becomes due, gets its Backup, and is noted.
    pub async fn slot(&self, slots: usize) {
        if slots > 1 {
            self.next_minute().await;
        }
        self.due_slot(slots).await;
    }

    /// A slot that is due already gets its Backup and is noted; its run ends, and that is noted too: a slot never meets the
    /// run of the one before.
    pub async fn due_slot(&self, slots: usize) {
        let last = self.backups(slots).await.pop();
        let last = last.as_ref().and_then(slot);
        eventually("the slot is noted", async || {
            let status = self.status().await;
            let noted = status.last_slot.as_ref().map(|slot| slot.0) == last;
            noted.then(|| self.missed_before.get_or_init(|| status.missed.values().sum()))
        })
        .await;
        self.finish().await;
        eventually("the end of the run is noted", async || {
            let ready = self.status().await.recovery_points.map(|points| points.ready);
            (ready == slots.try_into().ok()).then_some(())
        })
        .await;
    }

    /// Exactly so many Backups, of consecutive minutes, and nothing was counted as missed.
    pub async fn every_slot_once(&self, count: usize) {
        let backups = self.backups(count).await;
        let slots: BTreeSet<Timestamp> = backups.iter().filter_map(slot).collect();
        assert_eq!((backups.len(), slots.len()), (count, count), "{slots:?}");
        let first = slots.first().copied().unwrap();
        let expected: BTreeSet<Timestamp> =
            (0..count).map(|minute| first + SignedDuration::from_mins(minute.try_into().unwrap())).collect();
        assert_eq!(slots, expected);
        let missed: u64 = self.status().await.missed.values().sum();
        assert_eq!(Some(&missed), self.missed_before.get(), "{:?}", self.status().await.missed);
    }

    /// How often a Backup was asked for.
    pub fn creates(&self) -> usize {
        let asked = self.cluster.audit();
        asked.iter().filter(|one| one.verb == "create" && one.resource == "backups").count()
    }

    pub async fn end(self, replicas: Vec<Replica>) {
        drop(replicas);
        let root = self.cluster.root().to_owned();
        self.cluster.shutdown().await.unwrap();
        std::fs::remove_dir_all(root).ok();
    }
}

fn slot(backup: &Backup) -> Option<Timestamp> {
    backup.spec.run.slot.as_ref().map(|slot| slot.0)
}

/// Asks until there is an answer.
pub async fn eventually<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let asked = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    match asked.await {
        Ok(found) => found,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}
