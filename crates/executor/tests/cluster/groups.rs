//! Several volumes cut by one group snapshot, with a stack that has the habits of the real one.

use std::fs;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Resource as _, ResourceExt};
use serde_json::json;
use stillpoint_api::backup::{
    ATTEMPT_LABEL, BACKUP_LABEL, CONSISTENCY_ANNOTATION, GROUP_LABEL, NAMESPACE_LABEL, Phase,
};
use stillpoint_api::evidence::{Consistency, MemberEvidence};
use stillpoint_api::group_snapshot::{
    VolumeGroupSnapshot, VolumeGroupSnapshotContent, VolumeGroupSnapshotContentStatus,
};
use stillpoint_api::restore::RestorePhase;
use stillpoint_api::snapshot::SnapshotRef;
use stillpoint_api::{Backup, Restore};
use stillpoint_simcluster::{CLASS, DRIVER, Knobs};

use crate::controller::Controller;
use crate::stage::{
    NAMESPACE, ORDERED, SOON, Stage, Wish, application, claim, claims, create, eventually, why,
};

/// A database on two volumes that can be cut as one.
fn two() -> Wish {
    Wish { class: ORDERED, more: &[("redo", ORDERED)], ..Wish::default() }
}

fn groups(stage: &Stage) -> Api<VolumeGroupSnapshot> {
    Api::namespaced(stage.cluster.client(), NAMESPACE)
}

fn group_contents(stage: &Stage) -> Api<VolumeGroupSnapshotContent> {
    Api::all(stage.cluster.client())
}

async fn stage(name: &str, wish: Wish) -> Stage {
    let stage = Stage::with(name, wish).await;
    group_class(&stage).await;
    stage
}

async fn group_class(stage: &Stage) {
    let class = json!({
        "apiVersion": "groupsnapshot.storage.k8s.io/v1", "kind": "VolumeGroupSnapshotClass",
        "metadata": {"name": "sim"}, "driver": DRIVER, "deletionPolicy": "Delete",
    });
    create(&stage.cluster, class).await;
}

async fn run(stage: &Stage, group: &str, consistency: &str, attempts: u32) -> Backup {
    start(stage, group, consistency, attempts).await;
    stage.finished("b").await
}

async fn start(stage: &Stage, group: &str, consistency: &str, attempts: u32) {
    let run = json!({
        "applications": [application()], "snapshot": {"group": group}, "consistency": consistency,
        "freeze": {"maxHold": "12s", "acquireTimeout": "2s"}, "run": {"maxAttempts": attempts},
    });
    stage.back_up_as("b", run).await;
}

fn members(backup: &Backup) -> Vec<MemberEvidence> {
    backup.status.as_ref().unwrap().members.clone()
}

fn verdict(backup: &Backup) -> Consistency {
    let status = backup.status.as_ref().unwrap();
    status.consistency.unwrap_or_else(|| panic!("{:#?}", status.conditions))
}

fn proven(backup: &Backup) {
    let status = backup.status.as_ref().unwrap();
    assert_eq!(verdict(backup), Consistency::Application, "{:#?} {:#?}", status.verdict, status.conditions);
    assert_eq!(status.phase, Phase::Succeeded);
}

/// Requests of this kind that were really carried out.
fn asked(stage: &Stage, verb: &str, resource: &str) -> usize {
    let audit = stage.cluster.audit();
    audit.iter().filter(|one| one.verb == verb && one.resource == resource && !one.dry_run).count()
}

async fn labelled(stage: &Stage) -> Vec<String> {
    let carriers = ListParams::default().labels(GROUP_LABEL);
    claims(stage).list(&carriers).await.unwrap().items.iter().map(|claim| claim.name_any()).collect()
}

/// No snapshot, group, content, copy or label is left.
async fn everything_is_gone(stage: &Stage) {
    stage.nothing_is_left().await;
    let all = ListParams::default();
    eventually("no group, group content or label is left", SOON, async || {
        let left = groups(stage).list(&all).await.unwrap().items.len()
            + group_contents(stage).list(&all).await.unwrap().items.len()
            + labelled(stage).await.len();
        (left == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn two_write_ordered_volumes_are_one_cut_and_prove_what_one_volume_proves() {
    let stage = stage("group-auto", two()).await;
    let backup = run(&stage, "Auto", "Required", 1).await;
    proven(&backup);
    assert!(!stage.frozen());
    assert_eq!(asked(&stage, "create", "volumegroupsnapshots"), 1);
    assert_eq!(asked(&stage, "create", "volumesnapshots"), 0, "none alone");
    let cuts: Vec<_> = stage.cluster.ledger().into_iter().filter(|entry| entry.event == "cut").collect();
    assert_eq!((cuts.len(), cuts[0].cut_start), (2, cuts[1].cut_start), "one instant");
    for copy in stage.copies() {
        let state = fs::read_to_string(copy.join("state"));
        assert!(state.is_err() || state.unwrap() == "frozen\n", "the cut lies inside the hold");
    }
    let members = members(&backup);
    assert_eq!(members.len(), 2);
    let group = members[0].group.clone().unwrap();
    assert_eq!(members[1].group.as_ref(), Some(&group));
    assert_eq!(group.exact, Some(true));
    let status = backup.status.clone().unwrap();
    assert!(status.cross_consistent);
    assert!(labelled(&stage).await.is_empty(), "the label went with the group's content");

    // The point keeps: group and members are retained, and each says what it is.
    let found = groups(&stage).get(&group.volume_group_snapshot).await.unwrap();
    assert_eq!((found.uid(), found.labels()[BACKUP_LABEL].as_str()), (group.uid.clone(), "b"));
    assert_eq!(found.annotations()[CONSISTENCY_ANNOTATION], "Application");
    let content = group_contents(&stage).get(group.content.as_ref().unwrap()).await.unwrap();
    assert_eq!(content.spec.deletion_policy, "Retain");
    assert_eq!(content.labels()[NAMESPACE_LABEL], NAMESPACE);
    for member in &members {
        let snapshot = stage.snapshots().get(&member.volume_snapshot).await.unwrap();
        assert_eq!(snapshot.uid(), member.volume_snapshot_uid);
        assert_eq!(snapshot.labels()[ATTEMPT_LABEL], status.journal[0].nonce);
        let content = stage.contents().get(member.content.as_ref().unwrap()).await.unwrap();
        assert_eq!(content.spec.deletion_policy, "Retain");
        assert_eq!(content.spec.source.volume_handle.as_ref(), Some(&member.volume_handle));
        let handle = content.status.unwrap().snapshot_handle;
        assert_eq!((handle.as_ref(), handle.is_some()), (member.handle.as_ref(), true));
    }
    stage.end().await;
}

#[tokio::test]
async fn inside_the_window_one_request_is_all_that_is_asked() {
    let stage = stage("group-window", two()).await;
    proven(&run(&stage, "Auto", "Required", 1).await);
    let audit = stage.cluster.audit();
    // Without the tests' own looks, and the replica's Lease, which is renewed whatever else happens.
    let own = audit
        .iter()
        .filter(|one| !(one.verb == "get" && one.resource == "backups") && one.resource != "leases");
    let asked: Vec<(&str, &str)> = own.map(|one| (one.verb.as_str(), one.resource.as_str())).collect();
    let post = asked.iter().rposition(|one| *one == ("create", "volumegroupsnapshots")).unwrap();
    assert_eq!(asked[post - 1], ("update", "backups/status"), "the journal comes right before");
    let thawed = asked[post + 1..].iter().position(|one| one.1 == "backups/status").unwrap();
    let window = &asked[post + 1..post + 1 + thawed];
    assert!(window.iter().all(|one| one.1 == "pods"), "{window:?}");
    stage.end().await;
}

#[tokio::test]
async fn without_a_group_two_volumes_are_refused_before_anything_is_opened() {
    let stage = stage("group-never", two()).await;
    let backup = run(&stage, "Never", "Required", 1).await;
    stage.failed_cleanly(&backup, "SeveralVolumes").await;
    assert!(stage.went_through().is_empty() && labelled(&stage).await.is_empty());
    stage.end().await;
}

#[tokio::test]
async fn a_required_group_without_a_class_is_refused_with_the_reason() {
    let stage = Stage::with("group-no-class", two()).await;
    let backup = run(&stage, "Required", "Required", 1).await;
    stage.failed_cleanly(&backup, "GroupImpossible").await;
    assert!(stage.went_through().is_empty());
    let told = stage.events().await;
    assert!(told.iter().any(|(_, note)| note.contains("no VolumeGroupSnapshotClass")), "{told:?}");
    stage.end().await;
}

#[tokio::test]
async fn a_sequential_group_is_several_volumes_whatever_is_required() {
    let wish = Wish { more: &[("redo", CLASS)], ..Wish::default() };
    let stage = stage("group-sequential", wish).await;
    stage.cluster.set_knobs(Knobs { group_sequential: true, ..Knobs::default() });
    let backup = run(&stage, "Required", "BestEffort", 1).await;
    assert_eq!(asked(&stage, "create", "volumegroupsnapshots"), 1);
    assert_eq!(verdict(&backup), Consistency::None);
    let missing = backup.status.clone().unwrap().verdict.unwrap().missing;
    assert_eq!(missing.iter().map(|one| one.rule).collect::<Vec<_>>(), [8], "{missing:?}");
    let cuts: Vec<_> = stage.cluster.ledger().into_iter().filter_map(|entry| entry.cut_start).collect();
    assert_ne!(cuts[0], cuts[1], "one after the other");
    stage.end().await;
}

#[tokio::test]
async fn under_a_lock_over_all_volumes_a_sequential_group_and_a_single_are_one_point() {
    let wish = Wish {
        class: ORDERED,
        more: &[("a", CLASS), ("b", CLASS), ("c", CLASS)],
        layout: "AnyUnderLock",
        ..Wish::default()
    };
    let stage = stage("group-mixed", wish).await;
    let backup = run(&stage, "Auto", "Required", 1).await;
    proven(&backup);
    assert_eq!(asked(&stage, "create", "volumegroupsnapshots"), 1);
    assert_eq!(asked(&stage, "create", "volumesnapshots"), 1);
    let mut grouped: Vec<String> =
        members(&backup).iter().filter(|one| one.group.is_some()).map(|one| one.claim_name.clone()).collect();
    grouped.sort_unstable();
    assert_eq!(grouped, ["a", "b", "c"]);
    delete_backup(&stage).await;
    everything_is_gone(&stage).await;
    stage.end().await;
}

/// The controller finds the claims of a group by `matchLabels` alone: whoever carries the label is in it.
#[tokio::test]
async fn a_foreign_claim_that_carries_the_label_is_found_before_the_freeze() {
    let mut stage = stage("group-trap", two()).await;
    stage.controller.take().unwrap().kill();
    create(&stage.cluster, claim("foreign", ORDERED)).await;
    start(&stage, "Auto", "Required", 1).await;
    let uid = stage.backups().get("b").await.unwrap().uid().unwrap();
    let label = json!({"metadata": {"labels": {GROUP_LABEL: format!("{uid}-1-0")}}});
    claims(&stage).patch("foreign", &PatchParams::default(), &Patch::Merge(&label)).await.unwrap();
    stage.controller = Some(Controller::start(&stage.cluster, "second"));
    let backup = stage.finished("b").await;
    stage.failed_cleanly(&backup, "GroupLabelMismatch").await;
    assert!(stage.went_through().is_empty(), "no session was opened");
    let told = stage.events().await;
    assert!(told.iter().any(|(_, note)| note.contains("claims foreign carry its label")), "{told:?}");
    assert_eq!(asked(&stage, "create", "volumegroupsnapshots"), 0);
    everything_is_gone(&stage).await;
    stage.end().await;
}

#[tokio::test]
async fn a_group_with_a_volume_too_many_or_too_few_is_worth_nothing_and_is_removed() {
    for (name, reason, knobs) in [
        ("group-foreign", "NotProven", Knobs { group_also: vec!["foreign".into()], ..Knobs::default() }),
        ("group-omitted", "SnapshotLost", Knobs { group_omits: vec!["redo".into()], ..Knobs::default() }),
    ] {
        let stage = stage(name, two()).await;
        create(&stage.cluster, claim("foreign", ORDERED)).await;
        stage.cluster.set_knobs(knobs);
        let backup = run(&stage, "Auto", "Required", 1).await;
        assert_eq!((why(&backup).as_str(), verdict(&backup)), (reason, Consistency::None), "{name}");
        let missing = backup.status.clone().unwrap().verdict.unwrap().missing;
        assert!(missing.iter().any(|one| one.rule == 7), "{name}: {missing:?}");
        let exact = members(&backup)[0].group.as_ref().unwrap().exact;
        assert_eq!(exact, Some(false), "{name}");
        assert_eq!(stage.went_through(), ["opened", "frozen", "thawed", "closed"], "{name}");
        everything_is_gone(&stage).await;
        stage.end().await;
    }
}

/// Somebody's content that names our group, but not its UID, is no cut of ours.
#[tokio::test]
async fn a_content_of_another_uid_is_never_the_cut() {
    let stage = stage("group-forged", two()).await;
    stage.cluster.set_knobs(Knobs { sidecar_down: true, ..Knobs::default() });
    start(&stage, "Auto", "Required", 1).await;
    let group = eventually("the group is asked for", SOON, async || {
        groups(&stage).list(&ListParams::default()).await.unwrap().items.pop()
    })
    .await;
    let mut forged = VolumeGroupSnapshotContent::new("forged", Default::default());
    forged.spec.driver = DRIVER.into();
    forged.spec.deletion_policy = "Retain".into();
    forged.spec.volume_group_snapshot_ref = SnapshotRef {
        namespace: group.namespace(),
        name: Some(group.name_any()),
        uid: Some("6f1b4a3e-0000-4000-8000-000000000000".into()),
    };
    let api = group_contents(&stage);
    let mut made = api.create(&PostParams::default(), &forged).await.unwrap();
    made.status = Some(VolumeGroupSnapshotContentStatus {
        volume_group_snapshot_handle: Some("forged".into()),
        ready_to_use: Some(true),
        ..Default::default()
    });
    api.replace_status("forged", &PostParams::default(), &made).await.unwrap();
    let backup = stage.finished("b").await;
    assert_eq!(why(&backup), "CutTimeout");
    assert!(members(&backup).iter().all(|member| member.signal.is_none()));
    stage.cluster.set_knobs(Knobs::default());
    api.delete("forged", &DeleteParams::default()).await.unwrap();
    everything_is_gone(&stage).await;
    stage.end().await;
}

#[tokio::test]
async fn a_group_that_fails_ends_the_freeze_and_the_next_attempt_gets_its_own() {
    let stage = stage("group-failed", two()).await;
    stage.cluster.set_knobs(Knobs { fail_next: 1, failure: "disk on fire".into(), ..Knobs::default() });
    let backup = run(&stage, "Auto", "Required", 2).await;
    proven(&backup);
    let status = backup.status.as_ref().unwrap();
    assert_eq!((status.attempt, status.journal[1].reason.as_deref()), (2, Some("SnapshotFailed")));
    eventually("one group is left", SOON, async || {
        (groups(&stage).list(&ListParams::default()).await.unwrap().items.len() == 1).then_some(())
    })
    .await;
    stage.end().await;
}

#[tokio::test]
async fn a_controller_that_is_killed_inside_the_window_leaves_no_group_and_no_label() {
    let mut stage = stage("group-killed", two()).await;
    stage.slow_cuts(Duration::from_secs(3));
    start(&stage, "Auto", "Required", 1).await;
    stage.until_frozen().await;
    assert_eq!(labelled(&stage).await, ["data", "redo"]);
    stage.controller.take().unwrap().kill();
    stage.until_thawed(Duration::from_secs(3)).await;
    stage.cluster.set_knobs(Knobs::default());
    stage.controller = Some(Controller::start(&stage.cluster, "second"));
    // maxHold, what is past the promise, and the lease of a session that is READY.
    let backup = stage.finished_within("b", Duration::from_secs(90)).await;
    assert_eq!(backup.status.as_ref().unwrap().phase, Phase::Failed);
    everything_is_gone(&stage).await;
    stage.end().await;
}

async fn delete_backup(stage: &Stage) {
    let api = stage.backups();
    api.delete("b", &DeleteParams::default()).await.unwrap();
    eventually("the Backup is gone", SOON, async || api.get_opt("b").await.unwrap().is_none().then_some(()))
        .await;
}

#[tokio::test]
async fn members_come_back_as_claims_and_go_with_their_backup() {
    let stage = stage("group-restore", two()).await;
    let redo = stage.cluster.root().join("mnt-redo").canonicalize().unwrap();
    fs::write(stage.volume.join("orders"), "before").unwrap();
    fs::write(redo.join("log"), "before").unwrap();
    proven(&run(&stage, "Required", "Required", 1).await);
    fs::write(stage.volume.join("orders"), "after").unwrap();
    fs::write(redo.join("log"), "after").unwrap();

    let restore = json!({
        "apiVersion": Restore::api_version(&()), "kind": "Restore", "metadata": {"name": "r", "namespace": NAMESPACE},
        "spec": {"source": {"backupRef": {"name": "b"}}, "target": {"clone": {}}},
    });
    create(&stage.cluster, restore).await;
    let api: Api<Restore> = Api::namespaced(stage.cluster.client(), NAMESPACE);
    let phase = eventually("the Restore ends", SOON, async || {
        let phase = api.get("r").await.unwrap().status?.phase;
        matches!(phase, RestorePhase::Succeeded | RestorePhase::Failed).then_some(phase)
    })
    .await;
    assert_eq!(phase, RestorePhase::Succeeded);
    assert_eq!(content(&stage, "r-data", "orders").await, "before");
    assert_eq!(content(&stage, "r-redo", "log").await, "before");

    delete_backup(&stage).await;
    everything_is_gone(&stage).await;
    stage.end().await;
}

/// What the volume of a claim says.
async fn content(stage: &Stage, claim: &str, file: &str) -> String {
    let volume = claims(stage).get(claim).await.unwrap().spec.unwrap().volume_name.unwrap();
    let volumes: Api<PersistentVolume> = Api::all(stage.cluster.client());
    let handle = volumes.get(&volume).await.unwrap().spec.unwrap().csi.unwrap().volume_handle;
    fs::read_to_string(stage.cluster.root().join("volumes").join(handle).join(file)).unwrap()
}
