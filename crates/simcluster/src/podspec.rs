//! What a pod asks for, read once and checked: what the kubelet cannot do is refused with a message that says so,
//! never left out silently. Pure.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

/// One container, ready to run.
#[derive(Clone, Debug)]
pub(crate) struct ContainerPlan {
    pub name: String,
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub directory: Option<PathBuf>,
    pub user: Option<(u32, u32)>,
    pub mounts: Vec<Mount>,
    pub probe: Option<Probe>,
}

/// A volume at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub volume: String,
    pub path: PathBuf,
    pub sub_path: String,
}

/// Where a volume's content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VolumeSource {
    Claim(String),
    Empty,
}

/// An exec readiness probe.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub argv: Vec<String>,
    pub delay: Duration,
    pub period: Duration,
    pub timeout: Duration,
    pub failures: u64,
    pub successes: u64,
}

/// A pod's plan.
#[derive(Clone, Debug)]
pub(crate) struct PodPlan {
    pub init: Vec<ContainerPlan>,
    pub main: Vec<ContainerPlan>,
    pub volumes: BTreeMap<String, VolumeSource>,
    pub group: Option<u32>,
    pub restart: Restart,
}

/// `restartPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restart {
    Always,
    OnFailure,
    Never,
}

/// Reads a pod; `root` is the only directory its volumes may appear in.
pub(crate) fn plan(pod: &Value, root: &Path) -> Result<PodPlan, String> {
    let spec = &pod["spec"];
    let mut volumes = BTreeMap::new();
    for volume in items(&spec["volumes"]) {
        let name = text(&volume["name"]);
        let source = match volume["persistentVolumeClaim"]["claimName"].as_str() {
            Some(claim) => VolumeSource::Claim(claim.to_owned()),
            None if volume["emptyDir"].is_object() => VolumeSource::Empty,
            None => {
                return Err(format!(
                    "volume {name:?}: the embedded cluster mounts persistentVolumeClaim and emptyDir only"
                ));
            }
        };
        volumes.insert(name, source);
    }
    let containers = |field: &str| -> Result<Vec<ContainerPlan>, String> {
        items(&spec[field]).map(|container| container_plan(pod, container, &volumes, root)).collect()
    };
    let restart = match spec["restartPolicy"].as_str() {
        Some("Never") => Restart::Never,
        Some("OnFailure") => Restart::OnFailure,
        Some(_) | None => Restart::Always,
    };
    Ok(PodPlan {
        init: containers("initContainers")?,
        main: containers("containers")?,
        group: number(&spec["securityContext"]["fsGroup"]),
        volumes,
        restart,
    })
}

fn container_plan(
    pod: &Value,
    container: &Value,
    volumes: &BTreeMap<String, VolumeSource>,
    root: &Path,
) -> Result<ContainerPlan, String> {
    let name = text(&container["name"]);
    let env = environment(pod, container).map_err(|why| format!("container {name:?}: {why}"))?;
    let strings = |value: &Value| items(value).map(|one| expand(&text(one), &env)).collect::<Vec<_>>();
    let mut argv = strings(&container["command"]);
    argv.extend(strings(&container["args"]));
    if argv.is_empty() {
        return Err(format!(
            "container {name:?}: command is needed, for the embedded cluster has no images to take one from"
        ));
    }
    let mut mounts = Vec::new();
    for mount in items(&container["volumeMounts"]) {
        let path = PathBuf::from(expand(&text(&mount["mountPath"]), &env));
        let volume = text(&mount["name"]);
        if !path.starts_with(root)
            || path == root
            || path.components().any(|step| step == Component::ParentDir)
        {
            return Err(format!(
                "container {name:?}: mountPath {} must lie below {}: the embedded cluster has no mount namespaces",
                path.display(),
                root.display()
            ));
        }
        if !volumes.contains_key(&volume) {
            return Err(format!("container {name:?}: volumeMount {volume:?} names no volume of the pod"));
        }
        mounts.push(Mount { volume, path, sub_path: text(&mount["subPath"]) });
    }
    let (own, shared) = (&container["securityContext"], &pod["spec"]["securityContext"]);
    let setting = |field: &str| number(&own[field]).or_else(|| number(&shared[field]));
    let user = setting("runAsUser").map(|uid| (uid, setting("runAsGroup").unwrap_or(uid)));
    Ok(ContainerPlan {
        probe: probe(&container["readinessProbe"], &env)
            .map_err(|why| format!("container {name:?}: {why}"))?,
        directory: container["workingDir"].as_str().map(|path| PathBuf::from(expand(path, &env))),
        name,
        argv,
        env,
        user,
        mounts,
    })
}

fn environment(pod: &Value, container: &Value) -> Result<BTreeMap<String, String>, String> {
    let mut env = BTreeMap::from([("HOSTNAME".to_owned(), text(&pod["metadata"]["name"]))]);
    for variable in items(&container["env"]) {
        let name = text(&variable["name"]);
        let value =
            match (variable["value"].as_str(), variable["valueFrom"]["fieldRef"]["fieldPath"].as_str()) {
                (Some(value), _) => expand(value, &env),
                (None, Some(path @ ("metadata.name" | "metadata.namespace" | "metadata.uid"))) => {
                    text(path.split('.').fold(pod, |at, step| &at[step]))
                }
                (None, Some("status.podIP")) => "127.0.0.1".to_owned(),
                (None, Some(path)) => return Err(format!("env {name}: fieldRef {path} is not implemented")),
                (None, None) if variable["valueFrom"].is_null() => String::new(),
                (None, None) => return Err(format!("env {name}: only value and fieldRef are implemented")),
            };
        env.insert(name, value);
    }
    if !container["envFrom"].is_null() {
        return Err("envFrom is not implemented".to_owned());
    }
    Ok(env)
}

fn probe(probe: &Value, env: &BTreeMap<String, String>) -> Result<Option<Probe>, String> {
    if probe.is_null() {
        return Ok(None);
    }
    let argv: Vec<String> = items(&probe["exec"]["command"]).map(|one| expand(&text(one), env)).collect();
    if argv.is_empty() {
        return Err("readinessProbe: only exec is implemented".to_owned());
    }
    let count = |field: &str, default: u64| probe[field].as_u64().unwrap_or(default);
    Ok(Some(Probe {
        argv,
        delay: Duration::from_secs(count("initialDelaySeconds", 0)),
        period: Duration::from_secs(count("periodSeconds", 10).max(1)),
        timeout: Duration::from_secs(count("timeoutSeconds", 1).max(1)),
        failures: count("failureThreshold", 3).max(1),
        successes: count("successThreshold", 1).max(1),
    }))
}

/// `$(NAME)` of known variables; everything else stays as it is.
fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    env.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value))
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_kubelet_cannot_do_is_refused_by_name() {
        let root = Path::new("/r");
        let pod = |container: Value, volumes: Value| json!({"metadata": {"name": "p"}, "spec": {"containers": [container], "volumes": volumes}});
        let claim = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
        for (container, volumes, said) in [
            (json!({"name": "c"}), json!([]), "command is needed"),
            (json!({"name": "c", "command": ["a"]}), json!([{"name": "v", "hostPath": {}}]), "emptyDir only"),
            (
                json!({"name": "c", "command": ["a"], "volumeMounts": [{"name": "v", "mountPath": "/data"}]}),
                claim.clone(),
                "must lie below /r",
            ),
            (
                json!({"name": "c", "command": ["a"], "volumeMounts": [{"name": "v", "mountPath": "/r/../data"}]}),
                claim,
                "must lie below /r",
            ),
            (
                json!({"name": "c", "command": ["a"], "readinessProbe": {"httpGet": {}}}),
                json!([]),
                "only exec",
            ),
            (
                json!({"name": "c", "command": ["a"], "env": [{"name": "P", "valueFrom": {"secretKeyRef": {}}}]}),
                json!([]),
                "only value and fieldRef",
            ),
        ] {
            let refused = plan(&pod(container, volumes), root).unwrap_err();
            assert!(refused.contains(said), "{refused}");
        }
    }

    #[test]
    fn variables_expand_in_arguments_and_mount_paths() {
        let pod = json!({
            "metadata": {"name": "pg-0"},
            "spec": {
                "containers": [{
                    "name": "c", "command": ["run", "$(NAME)", "$(OTHER)"],
                    "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                    "volumeMounts": [{"name": "v", "mountPath": "/r/$(NAME)/data"}],
                }],
                "volumes": [{"name": "v", "emptyDir": {}}],
            },
        });
        let plan = plan(&pod, Path::new("/r")).unwrap();
        assert_eq!(plan.main[0].argv, ["run", "pg-0", "$(OTHER)"]);
        assert_eq!(plan.main[0].mounts[0].path, Path::new("/r/pg-0/data"));
    }
}
