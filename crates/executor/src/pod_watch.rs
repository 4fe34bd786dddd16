//! Watches the pods of one attempt's namespace, and tells when one is no longer what was resolved, or when another one
//! begins to write to a member.
//!
//! Opened before the first session is, so that nothing is asked of the API for it inside the window; the first list is
//! compared as well, so that nothing between resolving and watching is missed. It finds early what rule 4 would find in
//! the end (docs/design/freeze.md §2.7): a watch that does not open costs that, not the proof.

use std::collections::{BTreeMap, BTreeSet};
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
use crate::resolve::pods::{container_state, has_ended, writes};
use crate::run::Event;

/// Pause before a broken watch is opened again; kube's watcher adds none of its own.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How long an attempt waits for the first list: without it there is still rule 4.
const LISTED_WITHIN: Duration = Duration::from_secs(2);

/// A pod as it was resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ExpectedPod {
    uid: String,
    /// State of the containers that are held, by name.
    containers: BTreeMap<String, ContainerState>,
}

/// What must stay as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Expected {
    /// Pods that are held or whose claims are cut, by name.
    pods: BTreeMap<String, ExpectedPod>,
    /// The members: nobody else may write to them.
    claims: BTreeSet<String>,
}

/// The watch of an attempt; dropping it ends it.
pub struct PodWatch {
    _task: JoinSet<()>,
    /// Ends when the watch has its first list, or an error instead.
    listed: mpsc::Receiver<()>,
}

impl PodWatch {
    /// Opens the watch. It tells one [`Event::PodChanged`] at most.
    pub fn open(client: &Client, resolution: &Resolution, events: &mpsc::UnboundedSender<Event>) -> Self {
        let (listing, listed) = mpsc::channel(1);
        let api: Api<Pod> = Api::namespaced(client.clone(), &resolution.namespace);
        let (expected, events) = (expected(resolution), events.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            if let Some(what) = until_changed(api, &expected, listing).await {
                // A receiver that is gone belongs to an attempt that ended.
                let _ = events.send(Event::PodChanged { what });
            }
        });
        Self { _task: task, listed }
    }

    /// Waits until the watch shows the present state, for a moment at most.
    pub async fn listed(&mut self) {
        // Nobody sends: the watch drops its sender when it is listed.
        let _ = tokio::time::timeout(LISTED_WITHIN, self.listed.recv()).await;
    }
}

/// The pods that are held or whose claims are cut, and these claims.
fn expected(resolution: &Resolution) -> Expected {
    let plan = &resolution.plan;
    let mut expected = Expected::default();
    let mut pod = |name: &String, uid: &String| {
        let fresh = || ExpectedPod { uid: uid.clone(), containers: BTreeMap::new() };
        expected.pods.entry(name.clone()).or_insert_with(fresh);
    };
    for member in &plan.members {
        pod(&member.pod_name, &member.pod_uid);
        for mount in &member.also_mounted {
            pod(&mount.pod_name, &mount.pod_uid);
        }
    }
    for hold in &plan.holds {
        pod(&hold.pod_name, &hold.pod_uid);
    }
    for hold in &plan.holds {
        if let Some(pod) = expected.pods.get_mut(&hold.pod_name) {
            pod.containers.insert(hold.container.clone(), hold.container_state.clone());
        }
    }
    expected.claims = plan.members.iter().map(|member| member.claim_name.clone()).collect();
    expected
}

async fn until_changed(api: Api<Pod>, expected: &Expected, listing: mpsc::Sender<()>) -> Option<String> {
    let mut listing = Some(listing);
    let mut seen = watcher(api, watcher::Config::default()).boxed();
    let mut listed: BTreeSet<String> = BTreeSet::new();
    while let Some(event) = seen.next().await {
        let change = match event {
            Ok(Seen::Init) => {
                listed.clear();
                None
            }
            Ok(Seen::InitApply(found)) => {
                listed.insert(found.name_any());
                change(expected, &found)
            }
            Ok(Seen::InitDone) => {
                listing = None;
                let gone = expected.pods.keys().find(|name| !listed.contains(*name));
                gone.map(|name| deleted(name))
            }
            Ok(Seen::Apply(found)) => change(expected, &found),
            Ok(Seen::Delete(found)) => {
                let name = found.name_any();
                let ours = expected.pods.get(&name).is_some_and(|pod| found.uid().as_ref() == Some(&pod.uid));
                ours.then(|| deleted(&name))
            }
            Err(error) => {
                listing = None;
                debug!(%error, "the watch on pods broke; it is opened again");
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

fn deleted(name: &str) -> String {
    format!("pod {name} was deleted")
}

/// What is different about a pod, for people; nothing while it is the one that was resolved, or writes to no member.
fn change(expected: &Expected, found: &Pod) -> Option<String> {
    let name = found.name_any();
    let Some(pod) = expected.pods.get(&name) else {
        let claim = expected.claims.iter().find(|claim| !has_ended(found) && writes(found, claim))?;
        return Some(format!("pod {name}, which is not held, mounted claim {claim} writable"));
    };
    if found.uid().as_deref() != Some(pod.uid.as_str()) {
        return Some(format!("pod {name} was replaced"));
    }
    if found.metadata.deletion_timestamp.is_some() {
        return Some(format!("pod {name} was being deleted"));
    }
    let other = pod.containers.iter().find(|(name, state)| {
        container_state(found, name)
            // The runtime's id is empty while a container starts; a restart shows in the count as well.
            .is_none_or(|now| {
                now.restart_count != state.restart_count
                    || (!state.container_id.is_empty() && now.container_id != state.container_id)
            })
    });
    other.map(|(container, _)| format!("container {container} of pod {name} was restarted"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn expected() -> Expected {
        let state = ContainerState { container_id: "sim://1".into(), restart_count: 2 };
        let pod = ExpectedPod { uid: "u".into(), containers: [("db".to_owned(), state)].into() };
        Expected { pods: [("db-0".to_owned(), pod)].into(), claims: ["data".to_owned()].into() }
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
        assert_eq!(change(&expected(), &pod("u", "sim://1", 2)), None);
    }

    #[test]
    fn deletion_replacement_and_restart_are_changes() {
        let said = |found: &Pod| change(&expected(), found).unwrap_or_default();
        assert!(said(&pod("other", "sim://1", 2)).contains("replaced"));
        assert!(said(&pod("u", "sim://2", 2)).contains("restarted"));
        assert!(said(&pod("u", "sim://1", 3)).contains("restarted"));
        let mut leaving = pod("u", "sim://1", 2);
        leaving.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        assert!(said(&leaving).contains("being deleted"));
    }

    #[test]
    fn a_pod_that_begins_to_write_to_a_member_is_a_change_and_a_reader_is_none() {
        let other = |read_only: bool, phase: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "job", "uid": "j"},
                "spec": {
                    "containers": [{"name": "job", "volumeMounts": [
                        {"name": "v", "mountPath": "/v", "readOnly": read_only},
                    ]}],
                    "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}],
                },
                "status": {"phase": phase},
            }))
            .unwrap()
        };
        let said = change(&expected(), &other(false, "Pending")).unwrap();
        assert!(said.contains("pod job") && said.contains("claim data"), "{said}");
        assert_eq!(change(&expected(), &other(true, "Running")), None);
        assert_eq!(change(&expected(), &other(false, "Succeeded")), None);
    }
}
