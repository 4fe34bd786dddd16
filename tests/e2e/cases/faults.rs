//! Bad input and faults: each with its reason, its cure, an event and the policy's condition; nothing frozen, nothing
//! left behind, and the controller goes on.

use std::time::Duration;

use kube::api::{DeleteParams, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use stillpoint_api::Backup;
use stillpoint_api::backup::JournalKind;
use stillpoint_e2e::cluster::documents;
use stillpoint_e2e::controller::Start;
use stillpoint_e2e::load::Engine;
use stillpoint_e2e::wait::{Look, until};
use stillpoint_e2e::world::{CLOSED, MARIADB, POSTGRES, RUN_WITHIN, World};
use stillpoint_e2e::{Outcome, Present as _, ensure, point};

use crate::mariadb::by_hand;

/// What a person must be told.
struct Told {
    reason: &'static str,
    /// Words of the message: what it is about, and the cure.
    words: &'static [&'static str],
}

/// By hand, one attempt: what does not pass by itself need not be tried twice here.
fn once(extra: &Value) -> Value {
    let mut spec = by_hand(&json!({"run": {"maxAttempts": 1}}));
    if let (Some(spec), Some(extra)) = (spec.as_object_mut(), extra.as_object()) {
        spec.extend(extra.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    spec
}

fn applications(application: Value) -> Value {
    json!({"applications": [application]})
}

fn application(extra: &Value) -> Value {
    let mut application = json!({
        "name": "ledger",
        "selector": {"matchLabels": {"app": "mariadb"}},
        "templateRef": {"name": "mariadb"},
    });
    if let (Some(application), Some(extra)) = (application.as_object_mut(), extra.as_object()) {
        application.extend(extra.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    application
}

/// Runs a policy that must fail before anything is frozen, and checks everything a person and the cluster see of it.
async fn refused(world: &mut World, namespace: &str, policy: &str, spec: Value, told: &Told) -> Outcome {
    world.policy(namespace, policy, spec).await?;
    world.accepted(namespace, policy).await?;
    let cut_before = world.cluster.ledger.lines()?.len();
    let backup = world.run(namespace, policy).await?;
    failed_as(world, namespace, policy, &backup, told).await?;
    let journal = backup.status.as_ref().map(|status| status.journal.as_slice()).unwrap_or_default();
    // An attempt that ended before its freeze may have journalled that, never that it froze.
    let froze = journal.iter().any(|entry| entry.entry == JournalKind::Freezing);
    ensure!(!froze, "it was journalled as frozen: {journal:?}");
    let cut = world.cluster.ledger.lines()?.len() - cut_before;
    ensure!(cut == 0, "{cut} lines were added to the driver's ledger");
    Ok(())
}

async fn failed_as(
    world: &mut World,
    namespace: &str,
    policy: &str,
    backup: &Backup,
    told: &Told,
) -> Outcome {
    let name = backup.name_any();
    let outcome = point::outcome_of(backup);
    let begins = format!("{}: ", told.reason);
    ensure!(outcome.starts_with(&begins), "{name} should say {}, and says {outcome}", told.reason);
    for word in told.words {
        ensure!(outcome.contains(word), "{name} should say {word:?}, and says {outcome}");
    }
    world.event(namespace, &name, told.reason).await?;
    until("the policy to be not Ready for this reason", Duration::from_secs(20), async || {
        let seen = world.condition(namespace, policy, "Ready").await?;
        let good = seen.as_ref().is_some_and(|(status, reason, message)| {
            status == "False" && reason == told.reason && told.words.iter().all(|word| message.contains(word))
        });
        Ok(Look::at(good.then_some(()), format!("{seen:?}")))
    })
    .await?;
    nothing_left(world, namespace, &name).await?;
    println!("        {outcome}");
    world.still_runs()
}

async fn nothing_left(world: &World, namespace: &str, backup: &str) -> Outcome {
    until("nothing of the run to be left", Duration::from_secs(60), async || {
        let snapshots = world.snapshots_of(namespace, backup).await?;
        let contents = world.contents_of(namespace, backup).await?.len();
        let good = snapshots.is_empty() && contents == 0;
        Ok(Look::at(good.then_some(()), format!("snapshots {snapshots:?}, {contents} contents")))
    })
    .await
}

/// A bad expression and a bad zone: not accepted, nothing scheduled, and the field is named.
pub async fn refused_schedules(world: &mut World) -> Outcome {
    world.open_namespace(MARIADB).await?;
    world.controller().await?;
    for (policy, schedule, field) in [
        ("bad-cron", json!({"cron": "61 * * * *"}), "cron"),
        ("bad-zone", json!({"cron": "0 * * * *", "timeZone": "Europe/Berlinn"}), "timeZone"),
    ] {
        world.policy(MARIADB, policy, by_hand(&json!({"schedule": schedule}))).await?;
        not_accepted(world, policy, field).await?;
    }
    Ok(())
}

async fn not_accepted(world: &World, policy: &str, words: &str) -> Outcome {
    let seen = until("the policy to be refused", Duration::from_secs(20), async || {
        let seen = world.condition(MARIADB, policy, "Accepted").await?;
        Ok(match seen {
            Some((status, reason, message)) if status == "False" => Look::Done((reason, message)),
            other => Look::NotYet(format!("{other:?}")),
        })
    })
    .await?;
    ensure!(seen.1.contains(words), "the message does not name {words}: {seen:?}");
    let ready = world.condition(MARIADB, policy, "Ready").await?;
    ensure!(ready.as_ref().is_some_and(|(status, ..)| status == "False"), "Ready is {ready:?}");
    let status = world.policy_now(MARIADB, policy).await?.status.unwrap_or_default();
    ensure!(status.next_slots.is_empty(), "slots are promised: {:?}", status.next_slots);
    println!("        {}: {}", seen.0, seen.1);
    Ok(())
}

/// The shipped template as one of the namespace's own, changed.
async fn own_template(world: &World, name: &str, change: impl FnOnce(&mut Value)) -> Outcome {
    let text = world.cluster.read("config/templates/mariadb.yaml")?;
    let mut template = documents(&text)?.into_iter().next().present("the template")?;
    template["kind"] = json!("HookTemplate");
    template["metadata"] = json!({"name": name});
    change(&mut template);
    world.cluster.apply(&template.to_string(), MARIADB).await?;
    Ok(())
}

fn own(name: &str) -> Value {
    json!({"templateRef": {"kind": "HookTemplate", "name": name}})
}

/// A parameter without a default that the policy does not set.
pub async fn missing_parameter(world: &mut World) -> Outcome {
    world.open_namespace(MARIADB).await?;
    world.controller().await?;
    own_template(world, "needs-user", |template| {
        template["spec"]["parameters"][0] = json!({"name": "user", "description": "Account of the session"});
    })
    .await?;
    world.policy(MARIADB, "no-parameter", by_hand(&applications(application(&own("needs-user"))))).await?;
    not_accepted(world, "no-parameter", "user").await
}

pub async fn no_pods(world: &mut World) -> Outcome {
    world.open_namespace(MARIADB).await?;
    world.controller().await?;
    let nobody = application(&json!({"selector": {"matchLabels": {"app": "nobody"}}}));
    let told = Told { reason: "NoPods", words: &["app", "nobody", "selector"] };
    refused(world, MARIADB, "no-pods", once(&applications(nobody)), &told).await
}

pub async fn missing_class(world: &mut World) -> Outcome {
    world.database(MARIADB, Engine::Mariadb, None).await?;
    world.controller().await?;
    let told = Told { reason: "SnapshotClassMissing", words: &["no-such-class", "btrfs"] };
    let spec = once(&json!({"snapshot": {"volumeSnapshotClassName": "no-such-class"}}));
    refused(world, MARIADB, "no-class", spec, &told).await
}

/// A claim on a volume that no CSI driver made.
pub async fn not_csi(world: &mut World) -> Outcome {
    world.open_namespace(MARIADB).await?;
    world.controller().await?;
    let volume = "e2e-host-path";
    let objects = json!([
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume}, "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/tmp", "type": "Directory"},
            "claimRef": {"namespace": MARIADB, "name": "host-path"}}},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "host-path"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": volume,
            "resources": {"requests": {"storage": "1Gi"}}}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "host-path", "labels": {"app": "host-path"}}, "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "mariadb", "image": "cluster.local/mariadb:1", "imagePullPolicy": "Never",
                "command": ["sleep", "600"], "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": true}]}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "host-path"}}]}},
    ]);
    for object in objects.as_array().present("the objects")? {
        world.cluster.apply(&object.to_string(), MARIADB).await?;
    }
    let wait = ["-n", MARIADB, "wait", "--for=condition=Ready", "pod/host-path", "--timeout=60s"];
    world.cluster.kubectl(&wait, None).await?.good("wait for the pod")?;
    let told = Told { reason: "NotCsi", words: &["host-path", "exclude"] };
    // There is no server in the pod to ask for its role.
    own_template(world, "without-role", |template| {
        if let Some(target) = template["spec"]["target"].as_object_mut() {
            target.remove("role");
        }
    })
    .await?;
    let mut claims = own("without-role");
    claims["selector"] = json!({"matchLabels": {"app": "host-path"}});
    let spec = once(&applications(application(&claims)));
    let outcome = refused(world, MARIADB, "not-csi", spec, &told).await;
    let gone = ["-n", MARIADB, "delete", "pod/host-path", "pvc/host-path", "--wait=true", "--timeout=60s"];
    world.cluster.kubectl(&gone, None).await?.good("delete the pod")?;
    world.cluster.kubectl(&["delete", "pv", volume], None).await?.good("delete the volume")?;
    outcome
}

pub async fn not_opted_in(world: &mut World) -> Outcome {
    world.make_namespace(CLOSED).await?;
    world.controller().await?;
    let told = Told { reason: "NamespaceNotOptedIn", words: &["stillpoint-hooks", "ServiceAccount"] };
    refused(world, CLOSED, "closed", once(&json!({})), &told).await
}

/// The account is there, its binding is not: taken back while the controller runs.
pub async fn exec_forbidden(world: &mut World) -> Outcome {
    world.database(MARIADB, Engine::Mariadb, None).await?;
    world.controller().await?;
    let gone = ["-n", MARIADB, "delete", "rolebinding", "stillpoint-hooks"];
    world.cluster.kubectl(&gone, None).await?.good("take the right back")?;
    may_exec(world, false).await?;
    let told = Told { reason: "ExecForbidden", words: &["stillpoint-hooks", "pods/exec"] };
    let outcome = refused(world, MARIADB, "forbidden", once(&json!({})), &told).await;
    world.open_namespace(MARIADB).await?;
    may_exec(world, true).await?;
    outcome
}

async fn may_exec(world: &World, wanted: bool) -> Outcome {
    let account = format!("--as=system:serviceaccount:{MARIADB}:stillpoint-hooks");
    until("the right to exec to be in force", Duration::from_secs(20), async || {
        let ask = ["-n", MARIADB, "auth", "can-i", "create", "pods", "--subresource=exec", &account];
        let seen = world.cluster.kubectl(&ask, None).await?.stdout;
        Ok(Look::at(((seen.trim() == "yes") == wanted).then_some(()), seen))
    })
    .await
}

pub async fn client_missing(world: &mut World) -> Outcome {
    world.database(MARIADB, Engine::Mariadb, None).await?;
    world.controller().await?;
    own_template(world, "no-client", |template| {
        // The shell that reads the password comes first; the client is the last argument of that name.
        let command = template["spec"]["freeze"]["session"]["command"].as_array_mut();
        if let Some(client) = command.and_then(|words| words.iter_mut().rfind(|word| **word == "mariadb")) {
            *client = json!("no-such-client");
        }
    })
    .await?;
    let told = Told { reason: "ClientMissing", words: &["no-such-client", "container"] };
    refused(world, MARIADB, "no-client", once(&applications(application(&own("no-client")))), &told).await
}

/// A user who needs a password: there is none to give, and none passes through the product.
pub async fn login_refused_mariadb(world: &mut World) -> Outcome {
    world.database(MARIADB, Engine::Mariadb, None).await?;
    world.controller().await?;
    // An unknown name would do for PostgreSQL; here it may match an anonymous account.
    let statement = "CREATE OR REPLACE USER guarded@localhost IDENTIFIED BY 'secret'";
    let client =
        ["mariadb", "--no-defaults", "--socket=/run/mysqld/mysqld.sock", "-u", "root", "-e", statement];
    let exec = [&["-n", MARIADB, "exec", "mariadb-0", "-c", "mariadb", "--"][..], &client[..]].concat();
    world.cluster.kubectl(&exec, None).await?.good("create the user")?;
    let guarded = application(&json!({"parameters": {"user": "guarded"}}));
    let told = Told { reason: "AuthenticationFailed", words: &["guarded", "user parameter"] };
    refused(world, MARIADB, "guarded", once(&applications(guarded)), &told).await
}

/// The same for PostgreSQL, where the prepare step is the first to log in.
pub async fn login_refused_postgres(world: &mut World) -> Outcome {
    world.database(POSTGRES, Engine::Postgres, None).await?;
    world.controller().await?;
    let stranger = json!({
        "name": "orders", "selector": {"matchLabels": {"app": "postgres"}}, "parameters": {"user": "stranger"},
    });
    let told = Told { reason: "AuthenticationFailed", words: &["stranger", "user parameter"] };
    refused(world, POSTGRES, "stranger", once(&applications(stranger)), &told).await
}

/// A part of the snapshot stack is down: the freeze is short, the reason says what to check, and nothing is left once
/// the part is back.
async fn stack_down(world: &mut World, component: &str, policy: &str) -> Outcome {
    world.database(MARIADB, Engine::Mariadb, None).await?;
    world.controller().await?;
    world.policy(MARIADB, policy, once(&json!({}))).await?;
    world.accepted(MARIADB, policy).await?;
    world.cluster.run(&["stop", component]).await?;
    let name = world.start_run(MARIADB, policy).await?.name_any();
    let backups: Api<Backup> = Api::namespaced(world.cluster.client.clone(), MARIADB);
    let aborted = until("the attempt to be given up", Duration::from_secs(40), async || {
        let backup = backups.get(&name).await?;
        let journal = backup.status.as_ref().map(|status| status.journal.clone()).unwrap_or_default();
        let ended = journal.iter().any(|entry| entry.entry == JournalKind::Aborted) || backup.finished();
        Ok(if ended { Look::Done(backup) } else { Look::NotYet(format!("{journal:?}")) })
    })
    .await?;
    // Back before the clean-up's patience ends.
    world.cluster.run(&["start", component]).await?;
    let frozen = aborted.status.as_ref().and_then(|status| status.window.as_ref()?.frozen_seconds);
    ensure!(frozen.is_none_or(|seconds| seconds <= 10.0), "it was frozen for {frozen:?} s, maxHold is 10 s");
    let done = world.finished(MARIADB, &name, RUN_WITHIN).await?;
    let told = Told { reason: "SnapshotStackSilent", words: &["snapshot controller"] };
    failed_as(world, MARIADB, policy, &done, &told).await?;
    println!("        frozen for {:.1} s", frozen.unwrap_or_default());
    // And it was only the stack: the next run is proven.
    let next = world.run(MARIADB, policy).await?;
    point::verify(&world.cluster, &next).await?;
    Ok(())
}

pub async fn snapshot_controller_down(world: &mut World) -> Outcome {
    stack_down(world, "snapshot-controller", "controller-down").await
}

pub async fn sidecar_down(world: &mut World) -> Outcome {
    stack_down(world, "csi-snapshotter", "sidecar-down").await
}

/// The driver answers every request of the run with an error.
pub async fn storage_refuses(world: &mut World) -> Outcome {
    world.database(MARIADB, Engine::Mariadb, None).await?;
    world.controller().await?;
    world.policy(MARIADB, "storage-refuses", once(&json!({}))).await?;
    world.accepted(MARIADB, "storage-refuses").await?;
    world.cluster.misbehave(Some(json!({"failNext": 1000})))?;
    let name = world.start_run(MARIADB, "storage-refuses").await?.name_any();
    let done = world.finished(MARIADB, &name, RUN_WITHIN).await?;
    world.cluster.misbehave(None)?;
    let told = Told { reason: "SnapshotFailed", words: &["data-mariadb-0", "injected failure"] };
    let frozen = done.status.as_ref().and_then(|status| status.window.as_ref()?.frozen_seconds);
    ensure!(frozen.is_none_or(|seconds| seconds <= 10.0), "it was frozen for {frozen:?} s, maxHold is 10 s");
    failed_as(world, MARIADB, "storage-refuses", &done, &told).await
}

/// A controller whose operator vouches for nothing.
pub async fn storage_not_trusted(world: &mut World) -> Outcome {
    world.database(MARIADB, Engine::Mariadb, None).await?;
    // What the policies of earlier cases still do is theirs: only this one runs under the other controller.
    let policies =
        ApiResource::from_gvk(&GroupVersionKind::gvk("stillpoint.dev", "v1alpha1", "BackupPolicy"));
    let policies: Api<kube::api::DynamicObject> =
        Api::namespaced_with(world.cluster.client.clone(), POSTGRES, &policies);
    policies.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    world.controller_with(Start { trust: false, ..Start::default() }).await?;
    let told = Told { reason: "StorageNotTrusted", words: &["btrfs.csi.stillpoint.dev", "--storage-trust"] };
    refused(world, MARIADB, "not-trusted", once(&json!({})), &told).await
}
