//! Feeds the store from the API server: one watch of all policies, one of all Backups, one of the metadata of all claims. That of
//! Backups may be one that others read as well: each of them is parsed once then.
//!
//! A watch that ends or fails is begun again with back-off by the runtime; the store keeps the last known facts
//! meanwhile, and `/readyz` says when the first list of policies or Backups is missing.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use stillpoint_api::backup_events::{BackupEvent, shared};
use stillpoint_api::{Backup, BackupPolicy};
use tracing::warn;

use crate::facts::FactsStore;
use crate::server::Readiness;

/// Backups per page of a list: with their evidence they may have hundreds of KiB each, and a page is in memory whole.
const BACKUPS_PER_PAGE: u32 = 50;

/// Policies per page of a list: some KiB each on the wire, three times that in memory.
const POLICIES_PER_PAGE: u32 = 100;

/// What a watch of Backups shows; one that cannot be read is shown as such.
pub type BackupEvents = BoxStream<'static, BackupEvent>;

/// Keeps `store` in step until dropped. Returns only when the watches ended, which they do not by themselves.
/// `namespace` is the scope; without one, all of them.
pub async fn feed(client: Client, namespace: Option<String>, store: Arc<FactsStore>, readiness: &Readiness) {
    let backups: Api<DeserializeGuard<Backup>> = match &namespace {
        Some(name) => Api::namespaced(client.clone(), name),
        None => Api::all(client.clone()),
    };
    let config = watcher::Config::default().page_size(BACKUPS_PER_PAGE);
    let events = watcher(backups, config).default_backoff().map(shared);
    feed_with(client, namespace, events.boxed(), store, readiness).await;
}

/// The same with Backups as `backups` shows them, in the same scope.
pub async fn feed_with(
    client: Client,
    namespace: Option<String>,
    mut backups: BackupEvents,
    store: Arc<FactsStore>,
    readiness: &Readiness,
) {
    type Claims = Api<PartialObjectMeta<PersistentVolumeClaim>>;
    let (policies, claims): (Api<BackupPolicy>, Claims) = match &namespace {
        Some(name) => (Api::namespaced(client.clone(), name), Api::namespaced(client, name)),
        None => (Api::all(client.clone()), Api::all(client)),
    };
    let policies_ready = readiness.part("metrics: policies listed");
    let backups_ready = readiness.part("metrics: backups listed");
    let feed_policies = async {
        let mut events = watcher(policies, watcher::Config::default().page_size(POLICIES_PER_PAGE))
            .default_backoff()
            .boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => store.policies_listing(),
                Ok(watcher::Event::InitApply(policy) | watcher::Event::Apply(policy)) => {
                    store.policy_applied(&policy);
                }
                Ok(watcher::Event::InitDone) => {
                    store.policies_listed();
                    policies_ready.ready();
                }
                Ok(watcher::Event::Delete(policy)) => store.policy_deleted(&policy),
                Err(error) => warn!(%error, "watch of BackupPolicies failed; will be retried"),
            }
        }
    };
    let feed_backups = async {
        while let Some(event) = backups.next().await {
            match event {
                Ok(watcher::Event::Init) => store.backups_listing(),
                Ok(watcher::Event::InitApply(backup) | watcher::Event::Apply(backup)) => match &backup.0 {
                    Ok(backup) => store.backup_applied(backup),
                    Err(invalid) => warn!(
                        namespace = invalid.metadata.namespace,
                        backup = invalid.metadata.name,
                        error = invalid.error,
                        "a Backup cannot be read and is in no metric; reinstall the CRDs of this version"
                    ),
                },
                Ok(watcher::Event::InitDone) => {
                    store.backups_listed();
                    backups_ready.ready();
                }
                Ok(watcher::Event::Delete(backup)) => {
                    if let Ok(backup) = &backup.0 {
                        store.backup_deleted(backup);
                    }
                }
                Err(error) => warn!(%error, "watch of Backups failed; will be retried"),
            }
        }
    };
    let feed_claims = async {
        let mut events = watcher(claims, watcher::Config::default()).default_backoff().boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => store.claims_listing(),
                Ok(watcher::Event::InitApply(claim) | watcher::Event::Apply(claim)) => {
                    store.claim_applied(&claim.metadata);
                }
                Ok(watcher::Event::InitDone) => store.claims_listed(),
                Ok(watcher::Event::Delete(claim)) => store.claim_deleted(&claim.metadata),
                Err(error) => warn!(%error, "watch of claims failed; will be retried"),
            }
        }
    };
    futures::future::join3(feed_policies, feed_backups, feed_claims).await;
}
