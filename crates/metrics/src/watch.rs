//! Feeds the store from the API server: one watch of all policies, one of all Backups, one of the metadata of all claims.
//!
//! A watch that ends or fails is begun again with back-off by the runtime; the store keeps the last known facts
//! meanwhile, and `/readyz` says when the first list of policies or Backups is missing.

use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use stillpoint_api::{Backup, BackupPolicy};
use tracing::warn;

use crate::facts::FactsStore;
use crate::server::Readiness;

/// Backups per page of a list: with their evidence they may have hundreds of KiB each, and a page is in memory whole.
const BACKUPS_PER_PAGE: u32 = 50;

/// Keeps `store` in step until dropped. Returns only when the watches ended, which they do not by themselves.
/// `namespace` is the scope; without one, all of them.
pub async fn feed(client: Client, namespace: Option<String>, store: Arc<FactsStore>, readiness: &Readiness) {
    type Claims = Api<PartialObjectMeta<PersistentVolumeClaim>>;
    let (policies, backups, claims): (Api<BackupPolicy>, Api<Backup>, Claims) = match &namespace {
        Some(name) => (
            Api::namespaced(client.clone(), name),
            Api::namespaced(client.clone(), name),
            Api::namespaced(client, name),
        ),
        None => (Api::all(client.clone()), Api::all(client.clone()), Api::all(client)),
    };
    let policies_ready = readiness.part("metrics: policies listed");
    let backups_ready = readiness.part("metrics: backups listed");
    let feed_policies = async {
        let mut events = watcher(policies, watcher::Config::default()).default_backoff().boxed();
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
        let mut events = watcher(backups, watcher::Config::default().page_size(BACKUPS_PER_PAGE))
            .default_backoff()
            .boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => store.backups_listing(),
                Ok(watcher::Event::InitApply(backup) | watcher::Event::Apply(backup)) => {
                    store.backup_applied(&backup);
                }
                Ok(watcher::Event::InitDone) => {
                    store.backups_listed();
                    backups_ready.ready();
                }
                Ok(watcher::Event::Delete(backup)) => store.backup_deleted(&backup),
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
