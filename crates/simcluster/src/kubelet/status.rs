//! The status of a pod: phase, conditions and container statuses as kubectl and our controllers read them.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{ContainerState, Kubelet, PodState, Run, Termination};
use crate::error::ApiError;
use crate::podspec::{PodPlan, Restart};
use crate::store::Half;

impl Kubelet {
    /// Writes what is known of the containers as the pod's status.
    pub(super) fn publish(&self, state: &PodState, pod: &PodPlan) {
        let containers = state.containers().clone();
        let statuses = |init: bool| -> Vec<Value> {
            let order = if init { &pod.init } else { &pod.main };
            let found = order.iter().filter_map(|plan| containers.get(&plan.name));
            found.map(|container| container_status(&state.uid, container)).collect()
        };
        let main: Vec<&ContainerState> = containers.values().filter(|container| !container.init).collect();
        let ended = |container: &&ContainerState| matches!(container.run, Run::Terminated(_));
        let failed =
            |container: &ContainerState| matches!(&container.run, Run::Terminated(end) if end.code != 0);
        let begun = |container: &&ContainerState| {
            matches!(container.run, Run::Running { .. } | Run::Terminated(_)) || container.last.is_some()
        };
        let init_failed =
            pod.restart == Restart::Never && containers.values().any(|one| one.init && failed(one));
        let phase = if init_failed {
            "Failed"
        } else if pod.restart != Restart::Always && main.iter().all(ended) {
            if main.iter().any(|one| failed(one)) { "Failed" } else { "Succeeded" }
        } else if main.iter().all(begun) {
            "Running"
        } else {
            "Pending"
        };
        let ready = phase == "Running" && main.iter().all(|container| container.ready);
        let initialized = containers.values().filter(|one| one.init).all(|one| ended(&one) && !failed(one));
        let why = if ready { "" } else { "ContainersNotReady" };
        self.write_status(state, |status| {
            status["phase"] = json!(phase);
            status["podIP"] = json!("127.0.0.1");
            status["podIPs"] = json!([{"ip": "127.0.0.1"}]);
            let before = status["conditions"].take();
            status["conditions"] = json!([
                condition("PodScheduled", true, "", ""),
                condition("Initialized", initialized, "", ""),
                condition("ContainersReady", ready, why, ""),
                condition("Ready", ready, why, ""),
            ]);
            stamp(&before, &mut status["conditions"], &self.store.now());
            status["initContainerStatuses"] = json!(statuses(true));
            status["containerStatuses"] = json!(statuses(false));
        });
    }

    pub(super) fn write_status(&self, state: &PodState, change: impl FnOnce(&mut Value)) {
        let Some(pods) = self.store.registry.by_table("pods") else { return };
        let place = (state.namespace.as_str(), state.name.as_str());
        let written = self.store.update(&pods, place, Half::Both, false, |pod| {
            if pod["metadata"]["uid"] != state.uid {
                return Err(ApiError::conflict(&pods, &state.name));
            }
            change(&mut pod["status"]);
            Ok(())
        });
        if let Err(error) = written {
            tracing::debug!(pod = state.name, %error, "pod status not written");
        }
    }
}

fn container_status(pod: &str, container: &ContainerState) -> Value {
    let identity = |restarts: u32| {
        let digest = Sha256::digest(format!("{pod} {} {restarts}", container.plan.name).as_bytes());
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sim://{hex}")
    };
    let ended = |end: &Termination, restarts: u32| {
        let reason = if end.code == 0 { "Completed" } else { "Error" };
        json!({"terminated": {
            "exitCode": end.code, "reason": reason, "finishedAt": end.at, "containerID": identity(restarts),
        }})
    };
    let mut status = json!({
        "name": container.plan.name, "image": "", "imageID": "", "restartCount": container.restarts,
        "ready": container.ready || (container.init && matches!(&container.run, Run::Terminated(end) if end.code == 0)),
        "started": matches!(container.run, Run::Running { .. }),
        "lastState": container.last.as_ref().map_or(json!({}), |end| ended(end, container.restarts.saturating_sub(1))),
    });
    status["state"] = match &container.run {
        Run::Waiting { reason, message } => json!({"waiting": {"reason": reason, "message": message}}),
        Run::Running { since } => {
            status["containerID"] = json!(identity(container.restarts));
            json!({"running": {"startedAt": since}})
        }
        Run::Terminated(end) => ended(end, container.restarts),
    };
    status
}

/// A condition without its transition time.
pub(super) fn condition(kind: &str, status: bool, reason: &str, message: &str) -> Value {
    let status = if status { "True" } else { "False" };
    json!({"type": kind, "status": status, "reason": reason, "message": message})
}

/// Keeps the transition time of conditions whose status stays.
fn stamp(before: &Value, after: &mut Value, now: &str) {
    for condition in after.as_array_mut().into_iter().flatten() {
        let same = |old: &&Value| old["type"] == condition["type"] && old["status"] == condition["status"];
        let old = before.as_array().into_iter().flatten().find(same);
        let time = old.map_or(Value::Null, |old| old["lastTransitionTime"].clone());
        condition["lastTransitionTime"] = if time.is_null() { json!(now) } else { time };
    }
}
