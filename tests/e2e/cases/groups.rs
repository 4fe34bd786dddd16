//! A database on two volumes: its redo log has one of its own. InnoDB writes pages while commits are stopped, so two cuts
//! one after the other prove nothing, and one write-ordered cut of both proves as much as one volume.

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use stillpoint_api::Backup;
use stillpoint_api::backup::{GROUP_LABEL, Phase};
use stillpoint_api::evidence::{Consistency, GroupEvidence, Offset};
use stillpoint_api::group_snapshot::{VolumeGroupSnapshot, VolumeGroupSnapshotContent};
use stillpoint_e2e::ledger::Line;
use stillpoint_e2e::load::{self, Bounds, Engine, Load};
use stillpoint_e2e::wait::{Look, until};
use stillpoint_e2e::world::{GROUPED, RUN_WITHIN, SEQUENTIAL, World};
use stillpoint_e2e::{Outcome, Present as _, ensure, point};

use crate::mariadb::by_hand;

/// Where the redo log is, for the server, its installation and its copy.
const REDO: &str = "--innodb-log-group-home-dir=/redo";

/// The fixture with a second claim for the redo log, on volumes of `class`.
async fn database_on_two_volumes(world: &World, namespace: &str, class: &str) -> Outcome<Load> {
    world.open_namespace(namespace).await?;
    world.cluster.apply(&load::programs(&world.cluster)?.to_string(), namespace).await?;
    let data = json!({"options": REDO});
    let options =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mariadb"}, "data": data});
    world.cluster.apply(&options.to_string(), namespace).await?;
    let fixture = world.cluster.read("tests/cluster/fixtures/mariadb.yaml")?;
    let redo = "  - metadata: {name: redo}\n    spec:\n      accessModes: [ReadWriteOnce]\n      storageClassName: disk\n      \
                resources: {requests: {storage: 1Gi}}\n";
    let changed = [
        ("rm -rf /data/mysql.new", "rm -rf /data/mysql.new /redo/ib_logfile0"),
        ("method=normal >/dev/null", &format!("method=normal {REDO} >/dev/null")),
        (
            "        - {name: data, mountPath: /data}\n",
            "        - {name: data, mountPath: /data}\n        - {name: redo, mountPath: /redo}\n",
        ),
        ("  volumeClaimTemplates:\n", &format!("  volumeClaimTemplates:\n{redo}")),
    ];
    let mut manifest = fixture;
    for (from, to) in changed {
        ensure!(manifest.contains(from), "the fixture has no {from:?} any more");
        manifest = manifest.replacen(from, to, 1);
    }
    let manifest = manifest.replace("storageClassName: disk", &format!("storageClassName: {class}"));
    world.cluster.apply(&manifest, namespace).await?;
    let ready = ["-n", namespace, "wait", "--for=condition=Ready", "pod/mariadb-0", "--timeout=110s"];
    until("the database on two volumes to be ready", RUN_WITHIN, async || {
        let seen = world.cluster.kubectl(&ready, None).await?;
        Ok(Look::at((seen.code == Some(0)).then_some(()), format!("{}{}", seen.stdout, seen.stderr)))
    })
    .await?;
    Ok(Load::of(&world.cluster, namespace, Engine::Mariadb))
}

/// The group of a Backup, whose members are all in it, and what the driver's ledger says about its cuts.
fn group_of(world: &World, backup: &Backup) -> Outcome<(GroupEvidence, Vec<Line>)> {
    let status = backup.status.as_ref().present("the status")?;
    ensure!(status.members.len() == 2, "it has {} members, not two", status.members.len());
    let group = status.members.first().and_then(|member| member.group.clone()).present("the group")?;
    let same = status.members.iter().all(|member| member.group.as_ref() == Some(&group));
    ensure!(same && group.exact == Some(true), "the members' groups are {:?}", status.members);
    let cuts = world.cluster.ledger.cuts_of_group(group.uid.as_deref().present("the group's UID")?)?;
    ensure!(cuts.len() == 2, "the ledger has {} cuts of the group", cuts.len());
    for member in &status.members {
        let cut = cuts
            .iter()
            .any(|cut| cut.volume == member.volume_handle && Some(&cut.snapshot) == member.handle.as_ref());
        ensure!(cut, "the ledger has no cut of {} into {:?}", member.volume_handle, member.handle);
    }
    Ok((group, cuts))
}

pub async fn write_ordered(world: &mut World) -> Outcome {
    let load = database_on_two_volumes(world, GROUPED, "disk").await?;
    world.controller().await?;
    world.policy(GROUPED, "group", by_hand(&json!({}))).await?;
    world.accepted(GROUPED, "group").await?;
    let ledger_before = world.cluster.ledger.lines()?.len();
    let backup = world.run(GROUPED, "group").await?;
    let status = backup.status.as_ref().present("the status")?;
    ensure!(status.phase == Phase::Succeeded, "it is {:?}: {}", status.phase, point::outcome_of(&backup));
    ensure!(status.consistency == Some(Consistency::Application), "it is {:?}", status.consistency);
    ensure!(status.cross_consistent, "one cut of everything is not cross-consistent");
    let (group, cuts) = group_of(world, &backup)?;

    // The truth: one instant, inside the window.
    let [first, second] = &cuts[..] else { return Ok(()) };
    ensure!(
        !first.cut.is_empty() && first.cut == second.cut && first.cut_start == second.cut_start,
        "the ledger shows two instants: {cuts:?}"
    );
    let window = status.window.as_ref().present("the window")?;
    let begun = window.started_at.as_ref().present("window.startedAt")?.0;
    let at = |offset: Option<Offset>| -> Outcome<jiff::Timestamp> {
        Ok(begun.checked_add(SignedDuration::from_micros(offset.present("an offset")?.0))?)
    };
    let (frozen, thaw_sent) = (at(window.locked)?, at(window.thaw_sent)?);
    let cut = first.cut_start.present("cutStart")?;
    ensure!(frozen <= cut && first.at <= thaw_sent, "the cut {cut} is outside of [{frozen}, {thaw_sent}]");
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(world.cluster.client.clone(), GROUPED);
    let labelled = claims.list(&ListParams::default().labels(GROUP_LABEL)).await?.items.len();
    ensure!(labelled == 0, "{labelled} claims still carry the group's label");

    // Both copies together.
    let name = backup.name_any();
    let run =
        ["restore", "run", "--backup", &name, "--prefix", "copy-", "--wait", "--timeout", "2m", "-o", "json"];
    world.stillpoint(GROUPED, &run).await?.good("stillpoint restore run --wait")?;
    let fixture = world.cluster.read("tests/cluster/fixtures/restored-mariadb.yaml")?;
    let manifest = fixture
        .replace("${NAME}", "restored")
        .replace("${CLAIM}", "copy-data-mariadb-0")
        .replace(
            "    - {name: data, mountPath: /data}\n",
            "    - {name: data, mountPath: /data}\n    - {name: redo, mountPath: /redo}\n",
        )
        .replace(
            "  volumes:\n",
            "  volumes:\n  - {name: redo, persistentVolumeClaim: {claimName: copy-redo-mariadb-0}}\n",
        );
    let bounds = Bounds {
        acked_before: thaw_sent.as_microsecond(),
        started_after: frozen.as_microsecond(),
        cut: Some(cut.as_microsecond()),
    };
    let checked = load.check_server("restored", &manifest, &bounds).await?;
    let storage = Offset(window.cut_end.present("cutEnd")?.0 - window.cut_start.present("cutStart")?.0);
    println!(
        "        window {:.1} ms, of which {:.1} ms from the request to the group's handle; one cut of two disks, {} commits \
         before THAW all in the copy, none begun after FROZEN",
        window.frozen_seconds.unwrap_or_default() * 1e3,
        storage.seconds() * 1e3,
        checked.expected
    );
    let described =
        world.stillpoint(GROUPED, &["backup", "describe", &name]).await?.good("backup describe")?;
    ensure!(described.contains("group"), "describe does not show the group:\n{described}");
    std::fs::write(world.out.join("describe-group.txt"), described)?;
    let verified = world.stillpoint(GROUPED, &["backup", "verify-evidence", &name]).await?;
    verified.good("backup verify-evidence")?;
    for claim in ["copy-data-mariadb-0", "copy-redo-mariadb-0"] {
        claims.delete(claim, &DeleteParams::default()).await?;
    }
    gone_with_its_backup(world, GROUPED, &name, &group, ledger_before).await
}

/// Deletes a Backup; its group, the members and all their data go with it.
async fn gone_with_its_backup(
    world: &World,
    namespace: &str,
    name: &str,
    group: &GroupEvidence,
    ledger_before: usize,
) -> Outcome {
    let client = &world.cluster.client;
    let backups: Api<Backup> = Api::namespaced(client.clone(), namespace);
    // Other namespaces go on cutting meanwhile: only its own volumes count.
    let members = backups.get(name).await?.status.unwrap_or_default().members;
    backups.delete(name, &DeleteParams::default()).await?;
    until("the Backup and its group to be gone", RUN_WITHIN, async || {
        let groups: Api<VolumeGroupSnapshot> = Api::namespaced(client.clone(), namespace);
        let contents: Api<VolumeGroupSnapshotContent> = Api::all(client.clone());
        let mut left = Vec::new();
        if backups.get_opt(name).await?.is_some() {
            left.push("the Backup".to_owned());
        }
        if groups.get_opt(&group.volume_group_snapshot).await?.is_some() {
            left.push("the group".to_owned());
        }
        if contents.get_opt(group.content.as_deref().unwrap_or_default()).await?.is_some() {
            left.push("its content".to_owned());
        }
        left.extend(world.snapshots_of(namespace, name).await?);
        for member in &members {
            left.extend(world.cluster.ledger.left_since(ledger_before, Some(&member.volume_handle))?);
        }
        Ok(Look::at(left.is_empty().then_some(()), left.join(", ")))
    })
    .await
}

pub async fn sequential(world: &mut World) -> Outcome {
    database_on_two_volumes(world, SEQUENTIAL, "btrfs").await?;
    world.controller().await?;
    // What cannot be proven is refused while nothing is frozen.
    world.policy(SEQUENTIAL, "required", by_hand(&json!({"snapshot": {"group": "Required"}}))).await?;
    world.accepted(SEQUENTIAL, "required").await?;
    let backup = world.run(SEQUENTIAL, "required").await?;
    let why = point::outcome_of(&backup);
    ensure!(why.starts_with("SeveralVolumes"), "it ended with {why}");
    ensure!(backup.status.as_ref().is_some_and(|status| status.journal.is_empty()), "something was frozen");

    let kept = json!({"snapshot": {"group": "Required"}, "consistency": "BestEffort"});
    world.policy(SEQUENTIAL, "kept", by_hand(&kept)).await?;
    world.accepted(SEQUENTIAL, "kept").await?;
    let ledger_before = world.cluster.ledger.lines()?.len();
    let backup = world.run(SEQUENTIAL, "kept").await?;
    let (group, cuts) = group_of(world, &backup)?;
    let instants: Vec<&str> = cuts.iter().map(|cut| cut.cut.as_str()).collect();
    ensure!(instants.first() != instants.last(), "the ledger shows one instant: {cuts:?}");
    let status = backup.status.as_ref().present("the status")?;
    ensure!(status.consistency == Some(Consistency::None), "it is {:?}", status.consistency);
    let missing = status.verdict.clone().unwrap_or_default().missing;
    ensure!(missing.iter().all(|finding| finding.rule == 8) && !missing.is_empty(), "it misses {missing:?}");
    println!(
        "        as it should: {}",
        missing.first().map(|finding| finding.finding.as_str()).unwrap_or("")
    );
    gone_with_its_backup(world, SEQUENTIAL, &backup.name_any(), &group, ledger_before).await
}
