//! A driver that misbehaves on demand, against its own ledger; and the doctor's word on a throttled snapshot stack.

use std::time::Duration;

use jiff::SignedDuration;
use serde_json::{Value, json};
use stillpoint_api::Backup;
use stillpoint_api::evidence::Offset;
use stillpoint_e2e::load::Engine;
use stillpoint_e2e::wait::{Look, until};
use stillpoint_e2e::world::{MARIADB, World};
use stillpoint_e2e::{Outcome, Present as _, ensure, point};

use crate::mariadb::by_hand;

/// Past this a slow snapshot stack on a busy machine is no excuse: the faults below take seconds.
const AT_THE_CUT: f64 = 1.5;
/// More than the client throttle lets through at once; ten, as in the figures.
const VOLUMES: usize = 10;
/// Raised, as the doctor advises.
const RAISED: &str = "100";

/// A proven run under a fault, and how long it was frozen.
async fn proven(world: &mut World, policy: &str, spec: Value, knobs: Value) -> Outcome<(Backup, f64)> {
    world.database(MARIADB, Engine::Mariadb, None).await?;
    world.controller().await?;
    world.policy(MARIADB, policy, spec).await?;
    world.accepted(MARIADB, policy).await?;
    world.cluster.misbehave(Some(knobs))?;
    let backup = world.run(MARIADB, policy).await?;
    world.cluster.misbehave(None)?;
    point::verify(&world.cluster, &backup).await?;
    let window = backup.status.as_ref().and_then(|status| status.window.as_ref()).present("the window")?;
    let frozen = window.frozen_seconds.present("window.frozenSeconds")?;
    Ok((backup, frozen))
}

pub async fn ready_late(world: &mut World) -> Outcome {
    let knobs = json!({"readyDelay": "6s"});
    let (backup, frozen) = proven(world, "ready-late", by_hand(&json!({})), knobs).await?;
    ensure!(frozen < AT_THE_CUT, "it was frozen for {frozen:.2} s: held for the upload");
    let member = backup.status.as_ref().and_then(|status| status.members.first()).present("the member")?;
    let ready = member.settled.as_ref().and_then(|settled| settled.ready_at.as_ref()).present("readyAt")?.0;
    let uid = member.volume_snapshot_uid.as_deref().present("the snapshot's UID")?;
    let cut = world.cluster.ledger.cut_of(uid)?;
    let upload = ready.duration_since(cut.to).as_secs_f64();
    ensure!(upload > 5.5, "settled {upload:.1} s after the cut, before it was ready");
    println!("        frozen {:.0} ms, ready {upload:.1} s after the cut", frozen * 1e3);
    Ok(())
}

/// A driver that answers a second before it cuts. `point::verify` compares the hold with the ledger. The sidecar looks
/// after 1, 3, 7 and 15 s whether the snapshot is ready, so the hold may need to last that long on a busy machine.
pub async fn ready_signal(world: &mut World) -> Outcome {
    let spec = by_hand(&json!({"snapshot": {"cutSignal": "Ready"}, "freeze": {"maxHold": "25s"}}));
    let (_, frozen) = proven(world, "ready-signal", spec, json!({"okBeforeCut": "1s"})).await?;
    ensure!(frozen > 1.0, "it was frozen for {frozen:.2} s only, and the cut comes after a second");
    println!("        frozen {frozen:.2} s, and the true cut lies inside");
    Ok(())
}

pub async fn no_cut_time(world: &mut World) -> Outcome {
    let (backup, _) = proven(world, "no-cut-time", by_hand(&json!({})), json!({"noCutTime": true})).await?;
    let status = backup.status.as_ref().present("status")?;
    let member = status.members.first().present("the member")?;
    let posted = instant(&backup, member.post_sent)?;
    let stands_for = status.cut.as_ref().present("status.cut")?.0;
    ensure!(stands_for == posted, "the point stands for {stands_for}, the request was at {posted}");
    println!("        the driver gave {:?}; the point stands for its request", member.creation_time);
    Ok(())
}

fn instant(backup: &Backup, offset: Option<Offset>) -> Outcome<jiff::Timestamp> {
    let window = backup.status.as_ref().and_then(|status| status.window.as_ref()).present("the window")?;
    let begun = window.started_at.as_ref().present("window.startedAt")?.0;
    Ok(begun.checked_add(SignedDuration::from_micros(offset.present("the offset")?.0))?)
}

/// After `Unavailable` the sidecar must find out what became of the cut: it may come seconds after the thaw.
pub async fn unfinal_error(world: &mut World) -> Outcome {
    world.database(MARIADB, Engine::Mariadb, None).await?;
    world.controller().await?;
    world.policy(MARIADB, "unfinal", by_hand(&json!({"run": {"maxAttempts": 1}}))).await?;
    world.accepted(MARIADB, "unfinal").await?;
    let before = world.cluster.ledger.lines()?.len();
    world.cluster.misbehave(Some(json!({"unavailable": 1})))?;
    let backup = world.run(MARIADB, "unfinal").await?;
    let outcome = point::outcome_of(&backup);
    ensure!(outcome.starts_with("SnapshotFailed: ") && outcome.contains("Unavailable"), "{outcome}");
    let status = backup.status.as_ref().present("status")?;
    let frozen = status.window.as_ref().and_then(|window| window.frozen_seconds).unwrap_or_default();
    ensure!(frozen < AT_THE_CUT, "it was frozen for {frozen:.2} s after the error");
    let member = status.members.first().present("the member")?;
    ensure!(member.handle.is_none(), "the late cut was adopted: {:?}", member.handle);
    let uid = member.volume_snapshot_uid.clone().present("the snapshot's UID")?;
    let name = backup.metadata.name.clone().present("the name")?;
    until("nothing of the run to be left", Duration::from_secs(60), async || {
        let snapshots = world.snapshots_of(MARIADB, &name).await?.len();
        let contents = world.contents_of(MARIADB, &name).await?.len();
        let data = world.cluster.ledger.left_since(before, Some(&member.volume_handle))?.len();
        let good = snapshots + contents + data == 0;
        Ok(Look::at(good.then_some(()), format!("{snapshots} snapshots, {contents} contents, {data} copies")))
    })
    .await?;
    let late = world.cluster.ledger.cut_of(&uid).ok();
    if let Some(cut) = late {
        let thawed = instant(&backup, status.holds.first().present("the hold")?.thawed)?;
        ensure!(thawed < cut.from, "it was cut at {} while it was frozen until {thawed}", cut.from);
        println!(
            "        cut {:.1} s after the thaw, and deleted",
            cut.from.duration_since(thawed).as_secs_f64()
        );
    } else {
        println!("        the sidecar did not try again: nothing was cut");
    }
    world.still_runs()
}

/// Ten volumes at the default rate: the doctor names the flag. At a raised rate it has nothing to say.
pub async fn doctor_names_the_throttle(world: &mut World) -> Outcome {
    world.open_namespace(MARIADB).await?;
    world.controller().await?;
    many_volumes(world).await?;
    world.policy(MARIADB, "many", many_policy()).await?;
    world.accepted(MARIADB, "many").await?;
    let slow = of_the_path(world).await?;
    ensure!(slow["severity"] == "warning", "no warning after a throttled run: {slow}");
    let said = slow.to_string();
    for word in ["client throttle", "--kube-api-qps", "btrfs.csi.stillpoint.dev"] {
        ensure!(said.contains(word), "it does not say {word:?}: {said}");
    }
    println!("        default rate: {}", slow["what"].as_str().unwrap_or_default());
    let raised = ("STILLPOINT_SNAPSHOT_QPS", RAISED.to_owned());
    let outcome = at_a_raised_rate(world, &raised).await;
    for component in ["snapshot-controller", "csi-snapshotter"] {
        world.cluster.run(&["restart", component]).await?;
    }
    let pod = ["-n", MARIADB, "delete", "pod/many", "--wait=true", "--timeout=60s"];
    world.cluster.kubectl(&pod, None).await?.good("delete the pod")?;
    outcome
}

async fn at_a_raised_rate(world: &mut World, raised: &(&str, String)) -> Outcome {
    for component in ["snapshot-controller", "csi-snapshotter"] {
        world.cluster.run_with(&["restart", component], Some(raised)).await?;
    }
    let quick = of_the_path(world).await?;
    ensure!(quick["severity"] == "ok", "a warning after a run at a raised rate: {quick}");
    println!("        raised rate: {}", quick["what"].as_str().unwrap_or_default());
    Ok(())
}

/// One run over all volumes, and what the doctor then says about the storage path.
async fn of_the_path(world: &mut World) -> Outcome<Value> {
    let backup = world.run(MARIADB, "many").await?;
    let members = backup.status.as_ref().map_or(0, |status| status.members.len());
    ensure!(members == VOLUMES, "{members} members: {}", point::outcome_of(&backup));
    let printed = world.stillpoint(MARIADB, &["doctor", "-o", "json"]).await?;
    ensure!(matches!(printed.code, Some(0 | 1)), "doctor ended with {:?}: {}", printed.code, printed.stderr);
    std::fs::write(world.out.join("doctor.json"), &printed.stdout)?;
    let report: Value = serde_json::from_str(&printed.stdout)?;
    let findings = report["findings"].as_array().present("findings")?;
    let of_driver = |finding: &&Value| {
        let what = finding["what"].as_str().unwrap_or_default();
        finding["check"] == "storage-path" && what.contains("btrfs.csi.stillpoint.dev")
    };
    Ok(findings.iter().find(of_driver).present("the check storage-path")?.clone())
}

/// Nothing is held and nothing proven here: the storage path alone is of interest.
fn many_policy() -> Value {
    by_hand(&json!({
        "applications": [{
            "name": "many",
            "selector": {"matchLabels": {"app": "many"}},
            "templateRef": {"kind": "HookTemplate", "name": "nothing"},
        }],
        "consistency": "BestEffort",
        "freeze": {"maxHold": "30s"},
        "snapshot": {"group": "Never"},
        "run": {"maxAttempts": 1},
    }))
}

async fn many_volumes(world: &World) -> Outcome {
    let template = json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "HookTemplate",
        "metadata": {"name": "nothing"}, "spec": {"description": "holds nothing", "freeze": {"none": {}}}});
    world.cluster.apply(&template.to_string(), MARIADB).await?;
    let names: Vec<String> = (0..VOLUMES).map(|index| format!("many-{index}")).collect();
    for name in &names {
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "btrfs",
            "resources": {"requests": {"storage": "64Mi"}}}});
        world.cluster.apply(&claim.to_string(), MARIADB).await?;
    }
    let mounts: Vec<Value> =
        names.iter().map(|name| json!({"name": name, "mountPath": format!("/{name}")})).collect();
    let volumes: Vec<Value> = names
        .iter()
        .map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}))
        .collect();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "many", "labels": {"app": "many"}}, "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "cluster.local/mariadb:1", "imagePullPolicy": "Never",
            "command": ["sleep", "900"], "volumeMounts": mounts}],
        "volumes": volumes}});
    world.cluster.apply(&pod.to_string(), MARIADB).await?;
    let wait = ["-n", MARIADB, "wait", "--for=condition=Ready", "pod/many", "--timeout=90s"];
    world.cluster.kubectl(&wait, None).await?.good("wait for the pod")?;
    Ok(())
}
