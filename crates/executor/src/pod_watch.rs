//! Watches the pods of one attempt, each by its name, and tells when one is no longer what was resolved.
//!
//! Opened before the first session is, so that nothing is asked of the API for it inside the window; the first list is
//! compared as well, so that nothing between resolving and watching is missed. It finds early what rule 4 would find in
//! the end (docs/design/freeze.md §2.7): a watch that does not open costs that, not the proof.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{self, Event as Seen, watcher};
use kube::{Api, Client, ResourceExt};
use stillpoint_api::evidence::ContainerState;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::debug;

use crate::resolve::Resolution;
use crate::resolve::pods::container_state;
use crate::run::Event;

/// Pause before a broken watch is opened again; kube's watcher adds none of its own.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How long an attempt waits for the first list: without it there is still rule 4.
const LISTED_WITHIN: Duration = Duration::from_secs(2);

/// A pod as it was resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Expected {
    name: String,
    uid: String,
    /// State of the containers that are held, by name.
    containers: BTreeMap<String, ContainerState>,
}

/// The watches of an attempt; dropping it ends them.
pub struct PodWatch {
    _tasks: JoinSet<()>,
    /// Ends when every watch has its first list, or an error instead.
    listed: mpsc::Receiver<()>,
}

impl PodWatch {
    /// Opens a watch for every pod of a plan. Each tells one [`Event::PodChanged`] at most.
    pub fn open(client: &Client, resolution: &Resolution, events: &mpsc::UnboundedSender<Event>) -> Self {
        let mut tasks = JoinSet::new();
        let (listing, listed) = mpsc::channel(1);
        for pod in expected(resolution) {
            let api: Api<Pod> = Api::namespaced(client.clone(), &resolution.namespace);
            let (events, listing) = (events.clone(), listing.clone());
            tasks.spawn(async move {
                if let Some(what) = until_changed(api, &pod, listing).await {
                    // A receiver that is gone belongs to an attempt that ended.
                    let _ = events.send(Event::PodChanged { what });
                }
            });
        }
        Self { _tasks: tasks, listed }
    }

    /// Waits until every watch shows the present state, for a moment at most.
    pub async fn listed(&mut self) {
        // Nobody sends: each watch drops its sender when it is listed.
        let _ = tokio::time::timeout(LISTED_WITHIN, self.listed.recv()).await;
    }
}

/// The pods that are held or whose claims are cut.
fn expected(resolution: &Resolution) -> Vec<Expected> {
    let mut pods: BTreeMap<&str, Expected> = BTreeMap::new();
    let plan = &resolution.plan;
    let members = plan.members.iter().map(|member| (&member.pod_name, &member.pod_uid, None));
    let holds = plan
        .holds
        .iter()
        .map(|hold| (&hold.pod_name, &hold.pod_uid, Some((&hold.container, &hold.container_state))));
    for (name, uid, container) in members.chain(holds) {
        let pod = pods.entry(name).or_insert_with(|| Expected {
            name: name.clone(),
            uid: uid.clone(),
            containers: BTreeMap::new(),
        });
        pod.containers.extend(container.map(|(name, state)| (name.clone(), state.clone())));
    }
    pods.into_values().collect()
}

async fn until_changed(api: Api<Pod>, pod: &Expected, listing: mpsc::Sender<()>) -> Option<String> {
    let mut listing = Some(listing);
    let only = watcher::Config::default().fields(&format!("metadata.name={}", pod.name));
    let mut seen = watcher(api, only).boxed();
    let mut listed = false;
    while let Some(event) = seen.next().await {
        let change = match event {
            Ok(Seen::Init) => {
                listed = false;
                None
            }
            Ok(Seen::InitApply(found)) => {
                listed = true;
                change(pod, Some(&found))
            }
            Ok(Seen::InitDone) => {
                listing = None;
                if listed { None } else { change(pod, None) }
            }
            Ok(Seen::Apply(found)) => change(pod, Some(&found)),
            Ok(Seen::Delete(_)) => change(pod, None),
            Err(error) => {
                listing = None;
                debug!(pod = pod.name, %error, "the watch on a pod broke; it is opened again");
                tokio::time::sleep(RETRY_AFTER).await;
                None
            }
        };
        if change.is_some() {
            return change;
        }
    }
    drop(listing);
    None
}

/// What is different about a pod, for people; nothing while it is the one that was resolved.
fn change(pod: &Expected, found: Option<&Pod>) -> Option<String> {
    let Some(found) = found else { return Some(format!("pod {} was deleted", pod.name)) };
    if found.uid().as_deref() != Some(pod.uid.as_str()) {
        return Some(format!("pod {} was replaced", pod.name));
    }
    if found.metadata.deletion_timestamp.is_some() {
        return Some(format!("pod {} was being deleted", pod.name));
    }
    let other = pod.containers.iter().find(|(name, state)| {
        container_state(found, name)
            // The runtime's id is empty while a container starts; a restart shows in the count as well.
            .is_none_or(|now| {
                now.restart_count != state.restart_count
                    || (!state.container_id.is_empty() && now.container_id != state.container_id)
            })
    });
    other.map(|(name, _)| format!("container {name} of pod {} was restarted", pod.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn expected() -> Expected {
        let state = ContainerState { container_id: "sim://1".into(), restart_count: 2 };
        Expected { name: "db-0".into(), uid: "u".into(), containers: [("db".to_owned(), state)].into() }
    }

    fn pod(uid: &str, id: &str, restarts: i32) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "db-0", "uid": uid},
            "status": {"containerStatuses": [
                {"name": "db", "containerID": id, "restartCount": restarts, "image": "", "imageID": "", "ready": true},
                {"name": "log", "containerID": "other", "restartCount": 9, "image": "", "imageID": "", "ready": true},
            ]},
        }))
        .unwrap()
    }

    #[test]
    fn the_pod_that_was_resolved_is_no_change() {
        assert_eq!(change(&expected(), Some(&pod("u", "sim://1", 2))), None);
    }

    #[test]
    fn deletion_replacement_and_restart_are_changes() {
        let said = |found: Option<&Pod>| change(&expected(), found).unwrap_or_default();
        assert!(said(None).contains("deleted"));
        assert!(said(Some(&pod("other", "sim://1", 2))).contains("replaced"));
        assert!(said(Some(&pod("u", "sim://2", 2))).contains("restarted"));
        assert!(said(Some(&pod("u", "sim://1", 3))).contains("restarted"));
        let mut leaving = pod("u", "sim://1", 2);
        leaving.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        assert!(said(Some(&leaving)).contains("being deleted"));
    }
}
