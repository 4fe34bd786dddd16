//! What the cases share: the cluster, one controller, the databases, and a way back to health between cases.

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Namespace};
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use stillpoint_api::backup::{BACKUP_LABEL, NAMESPACE_LABEL, PolicyRef, RunSpec};
use stillpoint_api::snapshot::{VolumeSnapshot, VolumeSnapshotContent};
use stillpoint_api::{Backup, BackupPolicy, ProtectionRule};
use tokio::process::Command;

use crate::cluster::{Cluster, Printed};
use crate::controller::{self, Controller, Place, Start};
use crate::load::{self, Engine, Load, Strength};
use crate::monitoring::Monitoring;
use crate::wait::{Look, until};
use crate::{Outcome, Present as _, Problem, fail};

/// PostgreSQL under load.
pub const POSTGRES: &str = "e2e-postgres";
/// MariaDB with its default settings: no binary log, so no position.
pub const MARIADB: &str = "e2e-mariadb";
/// MariaDB with a binary log that is synced at every commit.
pub const MARIADB_LOG: &str = "e2e-mariadb-log";
/// A namespace that did not opt in.
pub const CLOSED: &str = "e2e-closed";
/// MariaDB with its redo log on a volume of its own, both on disks that a group cuts at one instant.
pub const GROUPED: &str = "e2e-grouped";
/// The same on volumes that a group cuts one after the other.
pub const SEQUENTIAL: &str = "e2e-sequential";
/// PostgreSQL whose policy misses its objective.
pub const ALERTED: &str = "e2e-alerted";
/// Every namespace the suite makes.
const NAMESPACES: &[&str] = &[POSTGRES, MARIADB, MARIADB_LOG, CLOSED, GROUPED, SEQUENTIAL, ALERTED];
/// Components that a case may have stopped or killed, in the order in which they need each other.
const STOPPABLE: [&str; 6] =
    ["apiserver", "containerd", "kubelet", "csi", "snapshot-controller", "csi-snapshotter"];
/// A run under no fault, with its clean-up.
pub const RUN_WITHIN: Duration = Duration::from_secs(120);

/// Everything a case needs.
pub struct World {
    /// The cluster.
    pub cluster: Cluster,
    /// Where reports go.
    pub out: PathBuf,
    /// The product.
    pub binary: PathBuf,
    /// Where its controller runs.
    pub place: Place,
    /// Prometheus and Alertmanager, while a case has them watch the controller.
    pub monitoring: Option<Monitoring>,
    namespaces: &'static [&'static str],
    controller: Option<Controller>,
    started: u32,
    runs: u32,
    ledger_at_start: usize,
}

impl World {
    /// Connects, and removes what an earlier run of the suite left.
    ///
    /// # Errors
    /// No cluster, or no binary.
    pub async fn begin() -> Outcome<Self> {
        let place = Place::asked()?;
        let mut world = Self::begin_in(NAMESPACES, "e2e").await?;
        world.place = place;
        Ok(world)
    }

    /// The same with namespaces and an output folder of one's own, and with a process as controller.
    ///
    /// # Errors
    /// No cluster, or no binary.
    pub async fn begin_in(namespaces: &'static [&'static str], out: &str) -> Outcome<Self> {
        let cluster = Cluster::connect().await?;
        let binary = binary()?;
        let out = binary.parent().and_then(Path::parent).present("the target folder")?.join(out);
        std::fs::create_dir_all(&out)?;
        let mut world = Self {
            cluster,
            out,
            binary,
            place: Place::Process,
            monitoring: None,
            namespaces,
            controller: None,
            started: 0,
            runs: 0,
            ledger_at_start: 0,
        };
        world.cluster.misbehave(None)?;
        world.start_components().await?;
        crate::deployed::remove(&world.cluster).await?;
        world.remove_namespaces().await?;
        world.ledger_at_start = world.cluster.ledger.lines()?.len();
        Ok(world)
    }

    /// The namespaces of the suite.
    pub fn namespaces(&self) -> &'static [&'static str] {
        self.namespaces
    }

    // --- the controller ---

    /// A running controller that trusts the test storage, started if there is none.
    ///
    /// # Errors
    /// It does not start.
    pub async fn controller(&mut self) -> Outcome<&mut Controller> {
        self.controller_with(Start::default()).await
    }

    /// A number for a controller that the caller starts beside this one; it names its log.
    pub fn next_number(&mut self) -> u32 {
        self.started += 1;
        self.started
    }

    /// A running controller that was started like this; another one is stopped first.
    ///
    /// # Errors
    /// It does not start.
    pub async fn controller_with(&mut self, start: Start) -> Outcome<&mut Controller> {
        let fits = self.controller.as_mut().is_some_and(|running| running.start == start && running.runs());
        if !fits {
            self.stop_controller().await?;
            self.started += 1;
            let started = match self.place {
                Place::Process => {
                    Controller::start(&self.cluster, &self.binary, &self.out, self.started, start).await?
                }
                Place::InCluster => Controller::deploy(&self.cluster, &self.out, self.started, start).await?,
            };
            self.controller = Some(started);
            self.show_to_prometheus()?;
        }
        self.controller.as_mut().present("the controller")
    }

    /// Has Prometheus scrape the controller, and each that replaces it.
    ///
    /// # Errors
    /// It cannot be told where the controller is.
    pub fn watched_by(&mut self, monitoring: Monitoring) -> Outcome {
        self.monitoring = Some(monitoring);
        self.show_to_prometheus()
    }

    fn show_to_prometheus(&mut self) -> Outcome {
        let address = self.controller.as_ref().and_then(Controller::address);
        match (&mut self.monitoring, address) {
            (Some(monitoring), Some(address)) => monitoring.scrape(address),
            _ => Ok(()),
        }
    }

    /// The running controller, if there is one.
    pub const fn controller_now(&self) -> Option<&Controller> {
        self.controller.as_ref()
    }

    /// The running controller, to be ended by the case.
    ///
    /// # Errors
    /// None runs.
    pub fn take_controller(&mut self) -> Outcome<Controller> {
        self.controller.take().present("a running controller")
    }

    /// Stops the controller with SIGTERM, if one runs.
    ///
    /// # Errors
    /// It does not end well.
    pub async fn stop_controller(&mut self) -> Outcome {
        let Some(mut running) = self.controller.take() else { return Ok(()) };
        if running.is_over() {
            return Ok(());
        }
        running.terminate().await?;
        let status = running.ended().await?;
        if status.success() {
            Ok(())
        } else {
            Err(Problem(format!("the controller ended with {status} after SIGTERM")))
        }
    }

    /// The log of the newest controller.
    pub fn controller_log(&self) -> String {
        std::fs::read_to_string(controller::log_file(&self.out, self.started)).unwrap_or_default()
    }

    /// Fails when the controller ended by itself: no fault may do that.
    ///
    /// # Errors
    /// It ended.
    pub fn still_runs(&mut self) -> Outcome {
        if self.controller.as_mut().is_some_and(|controller| !controller.runs()) {
            fail!("the controller ended by itself");
        }
        Ok(())
    }

    // --- health ---

    /// Undoes every fault a case may have left.
    ///
    /// # Errors
    /// It cannot be undone.
    pub async fn heal(&mut self) -> Outcome {
        self.cluster.misbehave(None)?;
        self.start_components().await
    }

    /// Starts what was killed, and leaves the driver's faults as they are.
    ///
    /// # Errors
    /// A component does not start.
    pub async fn heal_components(&self) -> Outcome {
        self.start_components().await
    }

    async fn start_components(&self) -> Outcome {
        for component in STOPPABLE {
            self.cluster.run(&["start", component]).await?;
        }
        Ok(())
    }

    /// Deletes everything the suite made, and says what could not be deleted.
    ///
    /// # Errors
    /// Something is left.
    pub async fn end(&mut self) -> Outcome {
        self.heal().await?;
        self.controller().await?;
        // Rules before policies, or they stamp new ones.
        let rules: Api<ProtectionRule> = Api::all(self.cluster.client.clone());
        rules.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        // Policies first, or they start new runs; then points, while there is a controller to remove their data.
        for namespace in self.namespaces {
            let policies: Api<BackupPolicy> = Api::namespaced(self.cluster.client.clone(), namespace);
            policies.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
            let backups: Api<Backup> = Api::namespaced(self.cluster.client.clone(), namespace);
            backups.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        }
        for namespace in self.namespaces {
            let backups: Api<Backup> = Api::namespaced(self.cluster.client.clone(), namespace);
            until("deleted Backups to be gone", RUN_WITHIN, async || {
                let left = backups.list(&ListParams::default()).await?.items;
                let names: Vec<String> = left.iter().map(|backup| backup.name_any()).collect();
                Ok(Look::at(names.is_empty().then_some(()), format!("{namespace}: {}", names.join(", "))))
            })
            .await?;
        }
        self.stop_controller().await?;
        self.remove_namespaces().await?;
        let ledger = self.cluster.ledger.clone();
        let since = self.ledger_at_start;
        until("the data of every snapshot to be deleted", RUN_WITHIN, async || {
            let left = ledger.left_since(since, None)?;
            Ok(Look::at(left.is_empty().then_some(()), left.join(", ")))
        })
        .await
    }

    async fn remove_namespaces(&self) -> Outcome {
        let namespaces: Api<Namespace> = Api::all(self.cluster.client.clone());
        for name in self.namespaces {
            let backups: Api<Backup> = Api::namespaced(self.cluster.client.clone(), name);
            // Of a run that was broken off: no controller is there to let them go. A held one would keep its namespace.
            let release = Patch::Merge(json!({"metadata": {"finalizers": null}, "spec": {"hold": null}}));
            for backup in
                backups.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default()
            {
                backups.patch(&backup.name_any(), &PatchParams::default(), &release).await?;
            }
            if namespaces.get_opt(name).await?.is_some() {
                namespaces.delete(name, &DeleteParams::default()).await?;
            }
        }
        until("the suite's namespaces to be gone", RUN_WITHIN, async || {
            let left = namespaces.list(&ListParams::default()).await?.items;
            let names: Vec<String> = left
                .iter()
                .map(|one| one.name_any())
                .filter(|name| self.namespaces.contains(&name.as_str()))
                .collect();
            Ok(Look::at(names.is_empty().then_some(()), names.join(", ")))
        })
        .await?;
        let contents: Api<VolumeSnapshotContent> = Api::all(self.cluster.client.clone());
        for name in self.namespaces {
            for content in contents
                .list(&ListParams::default().labels(&format!("{NAMESPACE_LABEL}={name}")))
                .await?
                .items
            {
                self.delete_content(&content.name_any()).await?;
            }
        }
        Ok(())
    }

    /// Deletes a content with its data.
    ///
    /// # Errors
    /// It cannot be deleted.
    pub async fn delete_content(&self, name: &str) -> Outcome {
        let contents: Api<VolumeSnapshotContent> = Api::all(self.cluster.client.clone());
        // Where its snapshot is gone the sidecar deletes nothing unless somebody says so.
        let delete = Patch::Merge(json!({
            "metadata": {"annotations": {"snapshot.storage.kubernetes.io/volumesnapshot-being-deleted": "yes"}},
            "spec": {"deletionPolicy": "Delete"},
        }));
        contents.patch(name, &PatchParams::default(), &delete).await?;
        contents.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    // --- databases ---

    /// The database of a namespace under load; made at first use. `options` are MariaDB's.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn database(&self, namespace: &str, engine: Engine, options: Option<&str>) -> Outcome<Load> {
        self.begin_database(namespace, engine, options).await?;
        let ready = format!("pod/{}", engine.pod());
        until("the database under load to be ready", RUN_WITHIN, async || {
            let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status} {.status.phase}";
            let seen = self.cluster.kubectl(&["-n", namespace, "get", &ready, "-o", path], None).await?;
            Ok(Look::at(
                seen.stdout.starts_with("True").then_some(()),
                format!("{}{}", seen.stdout, seen.stderr),
            ))
        })
        .await?;
        Ok(Load::of(&self.cluster, namespace, engine))
    }

    /// The same without waiting: several can start at once.
    ///
    /// # Errors
    /// An object was refused.
    pub async fn begin_database(&self, namespace: &str, engine: Engine, options: Option<&str>) -> Outcome {
        self.begin_database_with(namespace, engine, options, Strength::default()).await
    }

    /// The same with so strong a load.
    ///
    /// # Errors
    /// An object was refused.
    pub async fn begin_database_with(
        &self,
        namespace: &str,
        engine: Engine,
        options: Option<&str>,
        strength: Strength,
    ) -> Outcome {
        self.open_namespace(namespace).await?;
        self.cluster.apply(&load::programs(&self.cluster)?.to_string(), namespace).await?;
        if let Some(options) = options {
            let data = json!({"options": options});
            let options = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mariadb"}, "data": data});
            self.cluster.apply(&options.to_string(), namespace).await?;
        }
        let fixture = self.cluster.read(&format!("tests/cluster/fixtures/{}.yaml", engine.name()))?;
        let engine = format!("- {{name: ENGINE, value: {}}}", engine.name());
        let fixture = fixture.replace(&engine, &format!("{engine}{}", strength.variables()));
        self.cluster.apply(&fixture, namespace).await?;
        Ok(())
    }

    /// Makes a namespace and opts it in, as config/samples/namespace-optin.yaml does.
    ///
    /// # Errors
    /// An object was refused.
    pub async fn open_namespace(&self, namespace: &str) -> Outcome {
        self.make_namespace(namespace).await?;
        let opt_in = self.cluster.read("config/samples/namespace-optin.yaml")?;
        let opt_in = opt_in.replace("namespace: shop", &format!("namespace: {namespace}"));
        self.cluster.apply(&opt_in, namespace).await?;
        Ok(())
    }

    /// Makes a namespace that is not opted in.
    ///
    /// # Errors
    /// It was refused.
    pub async fn make_namespace(&self, namespace: &str) -> Outcome {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        self.cluster.apply(&object.to_string(), namespace).await?;
        Ok(())
    }

    // --- the product's objects ---

    /// Applies a policy.
    ///
    /// # Errors
    /// It was refused.
    pub async fn policy(&self, namespace: &str, name: &str, spec: Value) -> Outcome {
        let kind = json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "BackupPolicy", "metadata": {"name": name}, "spec": spec});
        self.cluster.apply(&kind.to_string(), namespace).await?;
        Ok(())
    }

    /// A policy as it is now.
    ///
    /// # Errors
    /// It is not there.
    pub async fn policy_now(&self, namespace: &str, name: &str) -> Outcome<BackupPolicy> {
        let policies: Api<BackupPolicy> = Api::namespaced(self.cluster.client.clone(), namespace);
        Ok(policies.get(name).await?)
    }

    /// Status, reason and message of a policy's condition, if it is about the present spec.
    ///
    /// # Errors
    /// The policy is not there.
    pub async fn condition(
        &self,
        namespace: &str,
        policy: &str,
        type_: &str,
    ) -> Outcome<Option<(String, String, String)>> {
        let policy = self.policy_now(namespace, policy).await?;
        let generation = policy.metadata.generation;
        let conditions = policy.status.map(|status| status.conditions).unwrap_or_default();
        let found =
            conditions.into_iter().find(|one| one.type_ == type_ && one.observed_generation == generation);
        Ok(found.map(|one| (one.status, one.reason, one.message)))
    }

    /// Waits until a policy is accepted, so that what follows is about this spec.
    ///
    /// # Errors
    /// It is not in time.
    pub async fn accepted(&self, namespace: &str, policy: &str) -> Outcome {
        // A controller that was killed leaves the Lease of the scheduler to its successor after 16 s.
        until("the policy to be accepted", Duration::from_secs(40), async || {
            let seen = self.condition(namespace, policy, "Accepted").await?;
            let good = seen.as_ref().is_some_and(|(status, ..)| status == "True");
            Ok(Look::at(good.then_some(()), format!("{seen:?}")))
        })
        .await
    }

    /// Creates a run of a policy.
    ///
    /// # Errors
    /// It was refused.
    pub async fn start_run(&mut self, namespace: &str, policy: &str) -> Outcome<Backup> {
        self.runs += 1;
        let name = format!("{policy}-{}", self.runs);
        let reference = PolicyRef { name: policy.to_owned(), uid: None };
        let mut backup = Backup::new(
            &name,
            stillpoint_api::backup::BackupSpec {
                run: RunSpec { policy_ref: Some(reference), ..RunSpec::default() },
                trigger: stillpoint_api::backup::Trigger::Manual,
                cancel: false,
                hold: None,
            },
        );
        backup.metadata = ObjectMeta { name: Some(name), ..ObjectMeta::default() };
        let backups: Api<Backup> = Api::namespaced(self.cluster.client.clone(), namespace);
        Ok(backups.create(&PostParams::default(), &backup).await?)
    }

    /// Waits until a Backup is finished.
    ///
    /// # Errors
    /// It is not in time, or the controller ended.
    pub async fn finished(&mut self, namespace: &str, name: &str, limit: Duration) -> Outcome<Backup> {
        let backups: Api<Backup> = Api::namespaced(self.cluster.client.clone(), namespace);
        until(&format!("Backup {name} to finish"), limit, async || {
            self.still_runs()?;
            let backup = backups.get(name).await?;
            let phase = backup.status.as_ref().map(|status| status.phase);
            Ok(if backup.finished() { Look::Done(backup) } else { Look::NotYet(format!("{phase:?}")) })
        })
        .await
    }

    /// Runs a policy now and waits for the end.
    ///
    /// # Errors
    /// It does not end in time.
    pub async fn run(&mut self, namespace: &str, policy: &str) -> Outcome<Backup> {
        let name = self.start_run(namespace, policy).await?.name_any();
        self.finished(namespace, &name, RUN_WITHIN).await
    }

    /// The product's command line, with all rights, in a namespace.
    ///
    /// # Errors
    /// It could not be run; how it ended is in the result.
    pub async fn stillpoint(&self, namespace: &str, arguments: &[&str]) -> Outcome<Printed> {
        let mut command = Command::new(&self.binary);
        command.args(["-n", namespace]).args(arguments);
        self.cluster.program(command, None).await
    }

    /// Whether an event with this reason was told about a Backup.
    ///
    /// # Errors
    /// None came in time.
    pub async fn event(&self, namespace: &str, backup: &str, reason: &str) -> Outcome {
        let events: Api<Event> = Api::namespaced(self.cluster.client.clone(), namespace);
        let about = ListParams::default().fields(&format!("involvedObject.name={backup}"));
        until(&format!("an event {reason} about {backup}"), Duration::from_secs(10), async || {
            let found: Vec<String> =
                events.list(&about).await?.items.into_iter().filter_map(|event| event.reason).collect();
            Ok(Look::at(found.iter().any(|one| one == reason).then_some(()), found.join(", ")))
        })
        .await
    }

    /// Names of the VolumeSnapshots of a Backup that exist.
    ///
    /// # Errors
    /// They cannot be listed.
    pub async fn snapshots_of(&self, namespace: &str, backup: &str) -> Outcome<Vec<String>> {
        let snapshots: Api<VolumeSnapshot> = Api::namespaced(self.cluster.client.clone(), namespace);
        let of = ListParams::default().labels(&format!("{BACKUP_LABEL}={backup}"));
        Ok(snapshots.list(&of).await?.items.iter().map(|snapshot| snapshot.name_any()).collect())
    }

    /// Contents that exist for VolumeSnapshots of a Backup, found by the names in their references.
    ///
    /// # Errors
    /// They cannot be listed.
    pub async fn contents_of(&self, namespace: &str, backup: &str) -> Outcome<Vec<VolumeSnapshotContent>> {
        let contents: Api<VolumeSnapshotContent> = Api::all(self.cluster.client.clone());
        let prefix = format!("{backup}-");
        let mut found = contents.list(&ListParams::default()).await?.items;
        found.retain(|content| {
            let reference = &content.spec.volume_snapshot_ref;
            reference.namespace.as_deref() == Some(namespace)
                && reference.name.as_deref().is_some_and(|name| name.starts_with(&prefix))
        });
        Ok(found)
    }
}

/// The product's binary: `STILLPOINT_BIN`, else beside this test's own folder.
fn binary() -> Outcome<PathBuf> {
    let binary = match std::env::var_os("STILLPOINT_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            let own = std::env::current_exe()?;
            own.parent().and_then(Path::parent).present("the target folder")?.join("stillpoint")
        }
    };
    if !binary.exists() {
        fail!("there is no {}: run `cargo build -p stillpoint` first", binary.display());
    }
    Ok(binary)
}
