//! Keeps the book in step with the cluster. Both watches go on for ever; one that breaks is opened again.

use std::collections::BTreeSet;
use std::pin::pin;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use stillpoint_api::clock::SharedClock;
use stillpoint_api::rule::ProtectionRule;

use super::book::{Known, RuleBook, Space};

/// Watches the rules. A cluster that does not serve them has none.
pub(super) async fn rules(client: &Client, clock: &SharedClock, book: &RuleBook) {
    let all = Api::<DeserializeGuard<ProtectionRule>>::all(client.clone());
    let mut events = pin!(watcher(all, watcher::Config::default()).default_backoff());
    let mut listed = BTreeSet::new();
    let read = |guarded: DeserializeGuard<ProtectionRule>| match guarded.0 {
        Ok(rule) => Some(rule),
        Err(invalid) => {
            tracing::error!(
                rule = invalid.metadata.name,
                error = invalid.error,
                "a ProtectionRule cannot be read and is not in force; correct it or reinstall the CRDs of this version"
            );
            None
        }
    };
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(guarded)) => {
                if let Some(rule) = read(guarded) {
                    listed.insert(rule.name_any());
                    book.rule_applied(Known::new(rule, clock.wall()));
                }
            }
            Ok(Event::InitDone) => book.rules_listed(&std::mem::take(&mut listed)),
            Ok(Event::Apply(guarded)) => {
                let name = name_of(&guarded);
                match read(guarded) {
                    Some(rule) => book.rule_applied(Known::new(rule, clock.wall())),
                    None => book.rule_gone(&name),
                }
            }
            Ok(Event::Delete(guarded)) => book.rule_gone(&name_of(&guarded)),
            Err(error) if not_served(&error) => {
                tracing::warn!(
                    "protectionrules.stillpoint.dev is not served: install the CRDs of this version"
                );
                book.rules_listed(&BTreeSet::new());
            }
            Err(error) => tracing::warn!(%error, "the watch of protectionrules failed and is retried"),
        }
    }
}

/// Watches the namespaces' labels.
pub(super) async fn namespaces(client: &Client, book: &RuleBook) {
    let all = Api::<Namespace>::all(client.clone());
    let mut events = pin!(watcher(all, watcher::Config::default()).default_backoff());
    let mut listed = BTreeSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(namespace)) => {
                listed.insert(namespace.name_any());
                book.space_applied(&namespace.name_any(), Space::of(&namespace));
            }
            Ok(Event::InitDone) => book.spaces_listed(&std::mem::take(&mut listed)),
            Ok(Event::Apply(namespace)) => book.space_applied(&namespace.name_any(), Space::of(&namespace)),
            Ok(Event::Delete(namespace)) => book.space_gone(&namespace.name_any()),
            Err(error) => tracing::warn!(%error, "the watch of namespaces failed and is retried"),
        }
    }
}

fn name_of(guarded: &DeserializeGuard<ProtectionRule>) -> String {
    match &guarded.0 {
        Ok(rule) => rule.name_any(),
        Err(invalid) => invalid.metadata.name.clone().unwrap_or_default(),
    }
}

fn not_served(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
}
