//! One row on one storage in a namespace of its own: server and load in a pod, policies, runs, and copies that are checked.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use stillpoint_api::Backup;
use stillpoint_e2e::acks::Acks;
use stillpoint_e2e::cluster::Cluster;
use stillpoint_e2e::load::{Bounds, Checked};
use stillpoint_e2e::wait::{Look, until};
use stillpoint_e2e::world::World;
use stillpoint_e2e::{Outcome, Present as _, Problem, ensure};
use tokio::process::{Child, Command};

use crate::manifest;
use crate::row::{Claim, Row, Storage};

/// A Java or Erlang machine of two cores starts and writes its first row within this.
const READY_WITHIN: Duration = Duration::from_secs(240);
/// A restored server recovers as after a power failure.
const STARTS_WITHIN: Duration = Duration::from_secs(150);
/// The kubelet tells that a container has ended within this.
const SAYS_SO_WITHIN: Duration = Duration::from_secs(10);
/// Somebody in the way is there within this.
const TAKEN_WITHIN: Duration = Duration::from_secs(40);

/// Claim of the server's volume, and of its second one.
pub const DATA: &str = "data-server-0";
/// See [`DATA`].
pub const SECOND: &str = "second-server-0";

/// How a copy is.
#[derive(Clone, Debug)]
pub enum Copied {
    /// Everything that must be there is, and nothing else.
    Exact {
        /// What was compared.
        checked: Checked,
        /// What its template had run in it, and how long that took.
        steps: String,
    },
    /// The server runs on it, and this is wrong.
    Wrong {
        /// What was compared; empty where the load could not read it.
        checked: Checked,
        /// What it said.
        words: String,
    },
    /// The server runs on it, and a step or check of its template failed.
    Failed(String),
    /// The server does not run on it.
    Dead(String),
}

/// The place of one row.
pub struct Site {
    /// The row.
    pub row: Row,
    /// Of its volume.
    pub storage: Storage,
    /// Where.
    pub namespace: &'static str,
    /// The writers' log on the node's disk.
    pub acks: Acks,
    /// UID of the pod.
    pub pod_uid: String,
    /// Handle of its volume, as in the driver's ledger.
    pub volume: String,
    /// What the server says it is.
    pub version: String,
    /// What its row's `settings` printed before any run.
    pub settings: String,
    /// Where it all is.
    pub cluster: Cluster,
}

impl Site {
    /// Makes the database, and waits until its load writes.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn begin(world: &World, row: Row, storage: Storage, namespace: &'static str) -> Outcome<Self> {
        let cluster = world.cluster.clone();
        world.open_namespace(namespace).await?;
        cluster.apply(&manifest::fixtures(&cluster)?.to_string(), namespace).await?;
        cluster.apply(&manifest::source(&row, storage).to_string(), namespace).await?;
        until("the server under load to be ready", READY_WITHIN, async || {
            let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status} {.status.containerStatuses[*].state}";
            let seen = cluster.kubectl(&["-n", namespace, "get", "pod", "server-0", "-o", path], None).await?;
            Ok(Look::at(
                seen.stdout.starts_with("True").then_some(()),
                format!("{}{}", seen.stdout, seen.stderr),
            ))
        })
        .await?;
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
        let pod_uid = pods.get("server-0").await?.uid().present("the pod's UID")?;
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), namespace);
        let claim = claims.get("data-server-0").await?;
        let volume = claim.spec.and_then(|spec| spec.volume_name).present("the claim's volume")?;
        let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
        let volume = volumes.get(&volume).await?.spec.and_then(|spec| spec.csi).present("the CSI volume")?;
        let mut site = Self {
            row,
            storage,
            namespace,
            acks: Acks::of(&cluster, &pod_uid),
            pod_uid,
            volume: volume.volume_handle,
            version: String::new(),
            settings: String::new(),
            cluster,
        };
        site.version = site.inside(row.server.version).await?.trim().to_owned();
        if let Some(line) = row.then {
            site.inside(line).await?;
        }
        site.settings = site.settings_now().await?;
        Ok(site)
    }

    /// What a line of shell says in the server's container.
    ///
    /// # Errors
    /// It fails.
    pub async fn inside(&self, line: &str) -> Outcome<String> {
        let words = ["-n", self.namespace, "exec", "server-0", "-c", "server", "--", "sh", "-c", line];
        self.cluster.kubectl(&words, None).await?.good(line)
    }

    /// What the row's `settings` print now; nothing where it has none.
    ///
    /// # Errors
    /// They cannot be read.
    pub async fn settings_now(&self) -> Outcome<String> {
        match self.row.settings {
            Some(line) => self.inside(line).await,
            None => Ok(String::new()),
        }
    }

    /// Waits until the settings that the template changes are as before the first run.
    ///
    /// # Errors
    /// They are not in time.
    pub async fn settings_put_back(&self, limit: Duration) -> Outcome {
        until("the settings to be as before", limit, async || {
            let now = self.settings_now().await?;
            Ok(Look::at((now == self.settings).then_some(()), format!("{now:?}, not {:?}", self.settings)))
        })
        .await
    }

    /// Puts a policy that is run by hand, and waits until it is accepted.
    ///
    /// # Errors
    /// It is refused.
    pub async fn policy(
        &self,
        world: &World,
        name: &str,
        parameters: &[(&str, &str)],
        container: &str,
        consistency: &str,
    ) -> Outcome {
        self.policy_of(world, name, self.row.template, parameters, container, consistency).await
    }

    /// The same with a template that is not the row's.
    ///
    /// # Errors
    /// It is refused.
    pub async fn policy_of(
        &self,
        world: &World,
        name: &str,
        template: &str,
        parameters: &[(&str, &str)],
        container: &str,
        consistency: &str,
    ) -> Outcome {
        let all: BTreeMap<&str, &str> =
            self.row.parameters.iter().copied().chain(parameters.iter().copied()).collect();
        // A group is how the product would rather cut several volumes.
        let alone = self.row.server.second.is_some() && !matches!(self.row.claim, Claim::Grouped(_));
        let spec = json!({
            "schedule": {"cron": "0 3 1 1 *"},
            "applications": [{
                "name": "server",
                "selector": {"matchLabels": {"app": "server"}},
                "templateRef": {"name": template},
                "parameters": all,
                "container": container,
            }],
            "consistency": consistency,
            "snapshot": {"group": if alone { "Never" } else { "Auto" }},
            "freeze": {"maxHold": self.row.freeze.0, "acquireTimeout": self.row.freeze.1},
            // A second attempt would hide the first one's words.
            "run": {"maxAttempts": 1},
            "retention": {"last": 2},
        });
        world.policy(self.namespace, name, spec).await?;
        world.accepted(self.namespace, name).await
    }

    /// Has somebody get in the way; returns once it is.
    ///
    /// # Errors
    /// It does not get there.
    pub async fn block(&self, line: &str) -> Outcome<Child> {
        let mut command = Command::new("kubectl");
        command.args(["-n", self.namespace, "exec", "server-0", "-c", "server", "--", "sh", "-c", line]);
        command.env("KUBECONFIG", &self.cluster.kubeconfig).env("PATH", self.cluster.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let mut out = tokio::io::BufReader::new(child.stdout.take().present("its output")?);
        let taken = tokio::time::timeout(TAKEN_WITHIN, async {
            let mut line = String::new();
            while tokio::io::AsyncBufReadExt::read_line(&mut out, &mut line).await? > 0 {
                if line.trim() == "taken" {
                    return Ok::<bool, std::io::Error>(true);
                }
                line.clear();
            }
            Ok(false)
        })
        .await??;
        if !taken {
            return Err(Problem(format!("it ended without being in the way: {line}")));
        }
        // Read on, or it ends when it prints.
        tokio::spawn(async move { tokio::io::copy(&mut out, &mut tokio::io::sink()).await });
        Ok(child)
    }

    /// Waits for a commit that was acknowledged after `instant`; when it was.
    ///
    /// # Errors
    /// There is none in time.
    pub async fn commits_after(&self, instant: i64, limit: Duration) -> Outcome<i64> {
        until("the writers to commit again", limit, async || {
            let acks = self.acks.since(0)?;
            let first = acks.iter().map(|ack| ack.acked).find(|acked| *acked > instant);
            Ok(Look::at(first, format!("{} commits, none after {instant}", acks.len())))
        })
        .await
    }

    /// Restores a point, and starts the server on the copy.
    ///
    /// # Errors
    /// It cannot be restored, or not be looked at.
    pub async fn restored(&self, world: &World, backup: &Backup, bounds: &Bounds) -> Outcome<Copied> {
        let name = backup.name_any();
        let prefix = format!("{name}-");
        let run = [
            "restore",
            "run",
            "--backup",
            &name,
            "--prefix",
            &prefix,
            "--wait",
            "--timeout",
            "3m",
            "-o",
            "json",
        ];
        let printed = world.stillpoint(self.namespace, &run).await?.good("stillpoint restore run --wait")?;
        let restore: stillpoint_api::Restore = serde_json::from_str(&printed)?;
        let claims = restore.status.present("the Restore's status")?.claims;
        let of = |name: &str| {
            let source = format!("{name}-server-0");
            claims.iter().find(|claim| claim.source_claim == source).map(|claim| claim.claim_name.clone())
        };
        let claims: Vec<String> = of("data").into_iter().chain(of("second")).collect();
        let holds = backup.status.iter().flat_map(|status| &status.holds);
        let label = holds.filter_map(|hold| hold.facts.get("backup_label")).next();
        self.looked_at(&claims, label.map_or("", String::as_str), bounds, Some(world)).await
    }

    /// Starts the server on claims, the data's first, compares it with the writers' log, and removes all.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub async fn checked(&self, claims: &[String], label: &str, bounds: &Bounds) -> Outcome<Copied> {
        self.looked_at(claims, label, bounds, None).await
    }

    /// The same; what the product restored is checked by the product first, as the template says.
    async fn looked_at(
        &self,
        claims: &[String],
        label: &str,
        bounds: &Bounds,
        by_template: Option<&World>,
    ) -> Outcome<Copied> {
        let pod = format!("on-{}", claims.first().present("a claim")?);
        let n = self.namespace;
        self.cluster.apply(&manifest::copy(&self.row, &pod, claims, label).to_string(), n).await?;
        let copied = match self.started(&pod).await {
            Ok(()) => match self.passes(&pod, by_template).await? {
                Ok(steps) => match self.compared(&pod, bounds, steps).await {
                    // A damaged page is found when it is read: the server ends then, and the check with it.
                    Err(Problem(words)) if self.ended(&pod).await => self.dead(&pod, &words).await,
                    compared => compared,
                },
                Err(words) => Ok(Copied::Failed(words)),
            },
            Err(Problem(words)) => self.dead(&pod, &words).await,
        };
        let claims = claims.iter().map(|claim| ("pvc", claim.as_str()));
        for (kind, name) in std::iter::once(("pod", pod.as_str())).chain(claims) {
            let gone = ["-n", n, "delete", kind, name, "--wait=true", "--timeout=90s"];
            self.cluster.kubectl(&gone, None).await?.good("delete what was restored")?;
        }
        copied
    }

    /// A server that does not run, with the last lines of its log.
    async fn dead(&self, pod: &str, words: &str) -> Outcome<Copied> {
        let log = self.cluster.kubectl(&["-n", self.namespace, "logs", pod, "--tail=15"], None).await?.stdout;
        Ok(Copied::Dead(format!("{words}\n{log}")))
    }

    /// Whether the server on a copy has ended: nobody tells it to, and it is not started again. The pod says so some time after a command
    /// in it was broken off.
    async fn ended(&self, pod: &str) -> bool {
        until("the server on the copy to end", SAYS_SO_WITHIN, async || {
            let path = "jsonpath={.status.phase}";
            let seen =
                self.cluster.kubectl(&["-n", self.namespace, "get", "pod", pod, "-o", path], None).await?;
            let phase = seen.good("get pod")?;
            Ok(Look::at((phase == "Failed" || phase == "Succeeded").then_some(()), phase))
        })
        .await
        .is_ok()
    }

    async fn started(&self, pod: &str) -> Outcome {
        until("the server on the copy to be ready", STARTS_WITHIN, async || {
            let path = "jsonpath={.status.phase} {.status.containerStatuses[0].ready} {.status.containerStatuses[0].state}";
            let seen =
                self.cluster.kubectl(&["-n", self.namespace, "get", "pod", pod, "-o", path], None).await?;
            let seen = seen.good("get pod")?;
            if seen.starts_with("Failed") || seen.starts_with("Succeeded") {
                return Err(Problem(format!("the server on the copy ended: {seen}")));
            }
            Ok(if seen.starts_with("Running true") { Look::Done(()) } else { Look::NotYet(seen) })
        })
        .await
    }

    /// Runs the template's steps and checks in a copy; what was run, or what failed.
    async fn passes(&self, pod: &str, by_template: Option<&World>) -> Outcome<Result<String, String>> {
        let Some(world) = by_template else { return Ok(Ok(String::new())) };
        let printed = world.stillpoint(self.namespace, &["restore", "check", pod, "-o", "json"]).await?;
        if self.row.unchecked {
            let said = &printed.stderr;
            ensure!(
                said.contains("there is nothing to check"),
                "restore check said {said:?} of a template without checks"
            );
            return Ok(Ok("none".to_owned()));
        }
        let report: serde_json::Value = serde_json::from_str(&printed.stdout).map_err(|error| {
            Problem(format!("restore check said {:?} {:?}: {error}", printed.stdout, printed.stderr))
        })?;
        std::fs::write(world.out.join(format!("checks-{}.json", self.namespace)), &printed.stdout)?;
        let steps: Vec<String> = report["steps"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|step| {
                let name = step["name"].as_str().unwrap_or_default();
                format!("{name} {:.2} s", step["seconds"].as_f64().unwrap_or_default())
            })
            .collect();
        let passed = report["passed"] == true && printed.code == Some(0) && !steps.is_empty();
        Ok(if passed {
            Ok(steps.join(", "))
        } else {
            Err(format!("the template's checks: {}", printed.stdout))
        })
    }

    async fn compared(&self, pod: &str, bounds: &Bounds, steps: String) -> Outcome<Copied> {
        let n = self.namespace;
        let read = ["-n", n, "exec", "server-0", "-c", "load", "--", "cat", "/load/acks"];
        let log = self.cluster.kubectl(&read, None).await?.good("read the writers' log")?;
        let (before, after) = (bounds.acked_before.to_string(), bounds.started_after.to_string());
        let cut = bounds.cut.map(|cut| cut.to_string());
        let mut check =
            vec!["-n", n, "exec", "-i", pod, "--", "python3", self.row.server.program.path(), "check"];
        check.extend(["--acks", "-", "--acked-before", &before, "--started-after", &after]);
        if let Some(cut) = &cut {
            check.extend(["--cut", cut]);
        }
        let printed = self.cluster.kubectl(&check, Some(log.into_bytes())).await?;
        let line = printed.stdout.lines().last().unwrap_or_default();
        // 2: the load could not read it, and says so; anything that is no JSON is a fault of the suite.
        let checked: Checked = serde_json::from_str(line).map_err(|error| {
            Problem(format!("the check said {:?} {:?}: {error}", printed.stdout, printed.stderr))
        })?;
        Ok(if checked.ok && printed.code == Some(0) {
            Copied::Exact { checked, steps }
        } else {
            Copied::Wrong { checked, words: line.chars().take(700).collect() }
        })
    }

    /// Cuts a claim without the product, and makes a claim of it; when it was asked for and when it was seen to be ready.
    ///
    /// # Errors
    /// There is no cut.
    pub async fn bare_cut(&self, name: &str, claim: &str) -> Outcome<(String, i64, i64)> {
        let n = self.namespace;
        let asked = stillpoint_e2e::wait::now_micros();
        let answers = self.cluster.apply(&manifest::snapshot(name, claim).to_string(), n).await?;
        let wait = "--for=jsonpath={.status.readyToUse}=true";
        let ready = ["-n", n, "wait", wait, &format!("volumesnapshot/{name}"), "--timeout=60s"];
        self.cluster.kubectl(&ready, None).await?.good("wait for the snapshot")?;
        let seen = stillpoint_e2e::wait::now_micros();
        self.cluster.apply(&manifest::clone(name, self.storage).to_string(), n).await?;
        Ok((answers.first().and_then(|object| object.uid()).present("the snapshot's UID")?, asked, seen))
    }

    /// Removes a cut of `bare_cut`.
    ///
    /// # Errors
    /// It stays.
    pub async fn remove_cut(&self, name: &str) -> Outcome {
        let gone = ["-n", self.namespace, "delete", "volumesnapshot", name, "--wait=true", "--timeout=150s"];
        self.cluster.kubectl(&gone, None).await?.good("delete the snapshot").map(|_| ())
    }
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Site").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}
