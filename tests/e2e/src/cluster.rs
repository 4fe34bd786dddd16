//! The cluster of tests/cluster: a client with all rights, its components, its faults.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use kube::api::{DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, Config};
use serde::Deserialize as _;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::audit::Audit;
use crate::ledger::Ledger;
use crate::{Outcome, Present as _, Problem};

/// Who applies the suite's objects.
const FIELD_MANAGER: &str = "stillpoint-e2e";

/// What a program printed and how it ended.
#[derive(Debug)]
pub struct Printed {
    /// Exit code; `None`: ended by a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Printed {
    /// The standard output of a program that did well.
    ///
    /// # Errors
    /// It did not.
    pub fn good(self, what: &str) -> Outcome<String> {
        match self.code {
            Some(0) => Ok(self.stdout),
            code => {
                Err(Problem(format!("{what}: exit {code:?}\n{}\n{}", self.stdout.trim(), self.stderr.trim())))
            }
        }
    }
}

/// The running cluster.
#[derive(Clone)]
pub struct Cluster {
    /// A client with all rights.
    pub client: Client,
    /// Its kubeconfig.
    pub kubeconfig: PathBuf,
    /// The driver's ledger.
    pub ledger: Ledger,
    root: PathBuf,
    path: OsString,
    state: PathBuf,
}

impl Cluster {
    /// Connects to the cluster that `tests/cluster/cluster up` started.
    ///
    /// # Errors
    /// None is up.
    pub async fn connect() -> Outcome<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
        let script = "eval \"$(tests/cluster/cluster env)\"; \
                      printf '%s\\n%s\\n%s\\n' \"$KUBECONFIG\" \"$PATH\" \"$STILLPOINT_CLUSTER_STATE\"";
        let printed = Command::new("bash").arg("-c").arg(script).current_dir(&root).output().await?;
        let text = String::from_utf8_lossy(&printed.stdout).into_owned();
        let mut lines = text.lines();
        let mut next = || lines.next().present("the output of `tests/cluster/cluster env`");
        let (kubeconfig, path, state) =
            (PathBuf::from(next()?), OsString::from(next()?), PathBuf::from(next()?));
        if !kubeconfig.exists() {
            return Err(Problem("no cluster is up: run `tests/cluster/cluster up` first".into()));
        }
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(Kubeconfig::read_from(&kubeconfig)?, &options).await?;
        let client = Client::try_from(config)?;
        let ledger = Ledger::at(state.join("log/cuts.jsonl"));
        Ok(Self { client, kubeconfig, ledger, root, path, state })
    }

    /// A file of the repository.
    pub fn file(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The text of a file of the repository.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, path: &str) -> Outcome<String> {
        std::fs::read_to_string(self.file(path)).map_err(|error| Problem(format!("{path}: {error}")))
    }

    /// PATH with the cluster's own kubectl first.
    pub fn path(&self) -> &std::ffi::OsStr {
        &self.path
    }

    /// A path in the state of the cluster.
    pub fn state(&self, path: &str) -> PathBuf {
        self.state.join(path)
    }

    /// The audit log.
    pub fn audit(&self) -> Audit {
        Audit::at(self.state("log/audit.jsonl"))
    }

    /// The process of a component, by the cluster's own record.
    ///
    /// # Errors
    /// It was not started.
    pub fn component(&self, name: &str) -> Outcome<u32> {
        let text = std::fs::read_to_string(self.state.join("pid").join(name))
            .map_err(|error| Problem(format!("the pid of {name}: {error}")))?;
        text.split(' ').next().and_then(|pid| pid.parse().ok()).present(&format!("the pid of {name}"))
    }

    /// Runs `tests/cluster/cluster` with these arguments.
    ///
    /// # Errors
    /// It failed.
    pub async fn run(&self, arguments: &[&str]) -> Outcome {
        self.run_with(arguments, None).await
    }

    /// The same with a variable of its environment.
    ///
    /// # Errors
    /// It failed.
    pub async fn run_with(&self, arguments: &[&str], variable: Option<&(&str, String)>) -> Outcome {
        let mut command = Command::new(self.file("tests/cluster/cluster"));
        // A component that it starts must not hold our pipes open.
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.envs(variable.map(|(name, value)| (*name, value)));
        let status = command.status().await?;
        if status.success() {
            Ok(())
        } else {
            Err(Problem(format!("cluster {}: {status}", arguments.join(" "))))
        }
    }

    /// Sets the driver's faults (tests/cluster/README.md); `None`: it behaves.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn misbehave(&self, knobs: Option<Value>) -> Outcome {
        let file = self.state.join("knobs.json");
        match knobs {
            Some(knobs) => {
                // Renamed into place: the driver never reads half of it.
                let fresh = self.state.join("knobs.json.new");
                std::fs::write(&fresh, knobs.to_string())?;
                std::fs::rename(fresh, file)?;
            }
            None => match std::fs::remove_file(file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                Ok(()) | Err(_) => {}
            },
        }
        Ok(())
    }

    /// Runs kubectl with all rights.
    ///
    /// # Errors
    /// It could not be run; how it ended is in the result.
    pub async fn kubectl(&self, arguments: &[&str], input: Option<Vec<u8>>) -> Outcome<Printed> {
        let mut command = Command::new("kubectl");
        command.args(arguments);
        self.program(command, input).await
    }

    /// Runs a program against this cluster.
    ///
    /// # Errors
    /// It could not be run.
    pub async fn program(&self, mut command: Command, input: Option<Vec<u8>>) -> Outcome<Printed> {
        command.env("KUBECONFIG", &self.kubeconfig).env("PATH", &self.path).current_dir(&self.root);
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
            // Apart from reading, else both wait for each other on full pipes.
            tokio::spawn(async move {
                // A program that ends early says why itself.
                let _ = stdin.write_all(&input).await;
            });
        }
        let output = child.wait_with_output().await?;
        Ok(Printed {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Applies every object of a YAML text, server-side and strictly; objects without a namespace that need one get
    /// `namespace`. Returns what the server stored.
    ///
    /// # Errors
    /// An object was refused.
    pub async fn apply(&self, text: &str, namespace: &str) -> Outcome<Vec<DynamicObject>> {
        self.send(text, namespace, PatchParams::apply(FIELD_MANAGER).force().validation_strict()).await
    }

    /// The same as a dry run: nothing is stored.
    ///
    /// # Errors
    /// An object was refused.
    pub async fn rehearse(&self, text: &str, namespace: &str) -> Outcome<Vec<DynamicObject>> {
        let strict = PatchParams::apply(FIELD_MANAGER).force().validation_strict();
        self.send(text, namespace, PatchParams { dry_run: true, ..strict }).await
    }

    async fn send(&self, text: &str, namespace: &str, how: PatchParams) -> Outcome<Vec<DynamicObject>> {
        let mut answers = Vec::new();
        for document in documents(text)? {
            let object: DynamicObject = serde_json::from_value(document.clone())?;
            let types = object.types.clone().present("apiVersion and kind")?;
            let kind = GroupVersionKind::try_from(&types)?;
            let resource = ApiResource::from_gvk(&kind);
            let api: Api<DynamicObject> = if cluster_scoped(&kind.kind) {
                Api::all_with(self.client.clone(), &resource)
            } else {
                let namespace = object.metadata.namespace.as_deref().unwrap_or(namespace);
                Api::namespaced_with(self.client.clone(), namespace, &resource)
            };
            let name = object.metadata.name.clone().present("metadata.name")?;
            let answer = api.patch(&name, &how, &Patch::Apply(&document)).await;
            answers.push(answer.map_err(|error| Problem(format!("{} {name}: {error}", kind.kind)))?);
        }
        Ok(answers)
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("state", &self.state).finish_non_exhaustive()
    }
}

/// The documents of a YAML text, without empty ones.
///
/// # Errors
/// It does not parse.
pub fn documents(text: &str) -> Outcome<Vec<Value>> {
    let mut found = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let value = Value::deserialize(document)?;
        if !value.is_null() {
            found.push(value);
        }
    }
    Ok(found)
}

/// Kinds the suite applies that have no namespace.
fn cluster_scoped(kind: &str) -> bool {
    matches!(
        kind,
        "Namespace"
            | "ClusterRole"
            | "ClusterRoleBinding"
            | "CustomResourceDefinition"
            | "ClusterHookTemplate"
            | "PersistentVolume"
            | "ProtectionRule"
            | "ValidatingAdmissionPolicy"
            | "ValidatingAdmissionPolicyBinding"
            | "VolumeSnapshotContent"
    )
}
