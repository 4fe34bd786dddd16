//! Several pods, claims and applications: who is held, what is cut once, and what is refused.

use serde_json::{Value, json};

use super::{World, pod};

/// Pods of a set: each mounts a claim of its own.
fn member_pod(index: usize) -> Value {
    let mut pod = pod(&format!("db-{index}"));
    pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = json!(format!("data-{index}"));
    pod
}

pub(super) fn set_of(pods: usize) -> World {
    let mut world = World::new();
    world.pods = (0..pods).map(member_pod).collect();
    world.policy["spec"]["applications"][0]["pods"] = json!("All");
    world
}

fn with_role(mut world: World, accept: &[&str]) -> World {
    world.recipe["target"] = json!({"pods": "One", "role": {"command": ["role"], "accept": accept}});
    world.policy["spec"]["applications"][0]["pods"] = json!("Auto");
    world
}

/// All pods mount the claim of the first one.
fn sharing(mut world: World) -> World {
    for pod in &mut world.pods {
        pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = json!("data-0");
    }
    world
}

/// A pod that no selector of the policy finds.
fn stranger(claim: &str) -> Value {
    let mut pod = pod("job-1");
    pod["metadata"]["labels"] = json!({"app": "job"});
    pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = json!(claim);
    pod
}

#[test]
fn every_selected_pod_has_a_hold_and_a_nonce_of_its_own_and_its_own_volume() {
    let resolution = set_of(3).decide().unwrap();
    let mut nonces: Vec<&str> = resolution.plan.holds.iter().map(|hold| hold.nonce.as_str()).collect();
    assert_eq!(nonces.len(), 3);
    nonces.dedup();
    assert_eq!(nonces.len(), 3, "a nonce belongs to one hold");
    let members: Vec<(&str, &str)> = resolution
        .plan
        .members
        .iter()
        .map(|member| (member.pod_name.as_str(), member.claim_name.as_str()))
        .collect();
    assert_eq!(members, [("db-0", "data-0"), ("db-1", "data-1"), ("db-2", "data-2")]);
    let mut names: Vec<&str> =
        resolution.plan.members.iter().map(|member| member.volume_snapshot.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 3, "a name belongs to one member");
    assert_eq!(resolution.resolved.applications[0].pods_at_ready.len(), 3);
}

#[test]
fn a_template_may_ask_for_every_pod() {
    let mut world = set_of(2);
    world.policy["spec"]["applications"][0]["pods"] = json!("Auto");
    world.recipe["target"] = json!({"pods": "All"});
    assert_eq!(world.decide().unwrap().holds.len(), 2);
    world.policy["spec"]["applications"][0]["pods"] = json!("One");
    world.refused("SeveralPods", "pods: All");
}

#[test]
fn the_first_accepted_role_is_held_and_the_choice_is_evidence() {
    for (accept, held) in [(["primary", "standby"], "db-1"), (["standby", "primary"], "db-0")] {
        let mut world = with_role(set_of(3), &accept);
        world.roles = [("db-0", "standby"), ("db-1", "primary"), ("db-2", "standby")].into();
        let resolution = world.decide().unwrap();
        assert_eq!(resolution.plan.holds.len(), 1);
        assert_eq!(resolution.plan.holds[0].pod_name, held);
        assert_eq!(resolution.plan.members.len(), 1, "a pod that is not held brings no volume");
        let chosen = &resolution.resolved.applications[0].chosen_at_ready;
        assert_eq!(*chosen, [format!("{held}/uid-{held}={}", accept[0])]);
        assert_eq!(
            resolution.resolved.applications[0].pods_at_ready.len(),
            3,
            "all selected pods are watched"
        );
    }
}

#[test]
fn without_an_accepted_role_nothing_is_held_and_every_role_is_named() {
    let mut world = with_role(set_of(2), &["primary"]);
    world.roles = [("db-0", "standby"), ("db-1", "standby")].into();
    world.refused("RoleNotAccepted", "db-0 is standby, db-1 is standby; the template holds primary");
    assert!(world.decide().unwrap_err().may_pass, "a failover ends by itself");
    // One pod that does not answer may be the one that is meant.
    world.roles = [("db-0", "standby")].into();
    world.refused("RoleUnknown", "pod db-1");
    world.roles = [("db-1", "primary")].into();
    assert!(world.decide().is_ok(), "the preferred one is known");
    // Every one is held: every role has to be accepted.
    world.roles = [("db-0", "primary"), ("db-1", "standby")].into();
    world.policy["spec"]["applications"][0]["pods"] = json!("All");
    world.refused("RoleNotAccepted", "db-1 is standby");
}

#[test]
fn a_claim_of_several_held_pods_is_one_member_with_all_its_mounts() {
    let mut world = sharing(set_of(2));
    world.pods[1]["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] = json!("/elsewhere");
    let resolution = world.decide().unwrap();
    assert_eq!(resolution.plan.members.len(), 1, "it is cut once");
    let member = &resolution.plan.members[0];
    assert_eq!(member.mounted_in("uid-db-0"), ["/data"]);
    assert_eq!(member.mounted_in("uid-db-1"), ["/elsewhere"]);
    assert_eq!(resolution.plan.holds[1].mount_paths, ["/elsewhere"]);
}

#[test]
fn whoever_may_write_to_a_member_is_held_or_named() {
    let mut world = World::new();
    world.others = vec![stranger("data-0")];
    world.refused("PodNotHeld", "pod job-1 mounts claim data-0 writable");
    // A claim of somebody else is none of the run's business.
    world.others = vec![stranger("other")];
    assert!(world.decide().is_ok());
    // Readers change nothing, by their mount or by their volume.
    let mut reader = stranger("data-0");
    reader["spec"]["containers"][0]["volumeMounts"][0]["readOnly"] = json!(true);
    world.others = vec![reader];
    assert!(world.decide().is_ok());
    let mut reader = stranger("data-0");
    reader["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] = json!(true);
    world.others = vec![reader];
    assert!(world.decide().is_ok());
    // One mount of several that writes is enough, in an init container as well.
    let mut writer = stranger("data-0");
    writer["spec"]["containers"][0]["volumeMounts"][0]["readOnly"] = json!(true);
    writer["spec"]["initContainers"] =
        json!([{"name": "init", "volumeMounts": [{"name": "data", "mountPath": "/d"}]}]);
    world.others = vec![writer];
    world.refused("PodNotHeld", "job-1");
    // What ended writes no more; what is being deleted still may.
    let mut ended = stranger("data-0");
    ended["status"]["phase"] = json!("Succeeded");
    world.others = vec![ended];
    assert!(world.decide().is_ok());
    let mut leaving = stranger("data-0");
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    world.others = vec![leaving];
    world.refused("PodNotHeld", "being deleted");
    assert!(world.decide().unwrap_err().may_pass);
}

#[test]
fn one_of_several_writers_cannot_be_held_alone() {
    let mut world = sharing(with_role(set_of(2), &["primary"]));
    world.roles = [("db-0", "primary"), ("db-1", "standby")].into();
    world.refused("PodNotHeld", "pod db-1");
}

fn two_applications() -> World {
    let mut world = World::new();
    let mut web = pod("web-0");
    web["metadata"]["labels"] = json!({"app": "web"});
    world.pods.push(web);
    world.policy["spec"]["applications"] = json!([
        {"name": "web", "selector": {"matchLabels": {"app": "web"}}},
        {"name": "db", "selector": {"matchLabels": {"app": "db"}}},
    ]);
    world
}

#[test]
fn what_two_applications_write_to_is_refused_and_what_one_only_reads_is_cut_once() {
    let mut world = two_applications();
    world.refused("ClaimShared", "pods: All");
    // The one that reads comes first in the policy; the member is the writer's.
    world.pods[1]["spec"]["containers"][0]["volumeMounts"][0]["readOnly"] = json!(true);
    let resolution = world.decide().unwrap();
    assert_eq!(resolution.plan.members.len(), 1);
    assert_eq!(resolution.plan.members[0].application, "db");
    assert!(resolution.plan.holds[0].mount_paths.is_empty(), "it covers nothing that the reader writes");
}

#[test]
fn two_applications_are_two_holds_of_one_run() {
    let mut world = two_applications();
    world.pods[1]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = json!("web-data");
    let resolution = world.decide().unwrap();
    let of: Vec<&str> = resolution.plan.holds.iter().map(|hold| hold.application.as_str()).collect();
    assert_eq!(of, ["web", "db"]);
    assert_eq!(resolution.plan.members.len(), 2);
    assert_eq!(resolution.resolved.applications[0].pods_at_ready, ["web-0/uid-web-0"]);
}

#[test]
fn volumes_of_different_pods_are_no_several_volumes_of_one_server() {
    assert!(set_of(3).decide().is_ok());
    let mut world = set_of(2);
    world.pods[1]["spec"]["volumes"][1] =
        json!({"name": "redo", "persistentVolumeClaim": {"claimName": "redo-1"}});
    world.refused("SeveralVolumes", "pod db-1 has 2 volumes (data-1, redo-1)");
    world.refused("SeveralVolumes", "a lock on commits does not stop the server from writing its pages");
}

#[test]
fn a_mount_that_is_no_member_hides_what_it_lies_on() {
    let mut world = World::new();
    world.pods[0]["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "data", "mountPath": "/data"},
        {"name": "run", "mountPath": "/data/wal"},
        {"name": "run", "mountPath": "/database"},
    ]);
    assert_eq!(world.decide().unwrap().plan.holds[0].foreign_mounts, ["/data/wal"]);
}

#[test]
fn a_run_that_no_object_can_record_is_refused_with_what_to_split() {
    let mut world = set_of(129);
    world.refused("TooLarge", "more than 128 pods to hold");
    world = set_of(60);
    assert!(world.decide().is_ok());
    // Each hold may tell a kilobyte for every fact that its template names.
    world.recipe["evidence"] = json!([
        "datadir",
        "wait_timeout",
        "lock_wait_timeout",
        "hostname",
        "EVIDENCE",
        "READY",
        "CONCAT",
        "SELECT",
        "SESSION",
        "SET",
        "FROZEN",
        "BACKUP",
        "STAGE",
        "START",
    ]);
    world.refused("TooLarge", "KiB");
    let mut world = World::new();
    world.policy["spec"]["consistency"] = json!("BestEffort");
    for index in 0..256 {
        let name = format!("v{index}");
        world.pods[0]["spec"]["volumes"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": name, "persistentVolumeClaim": {"claimName": format!("extra-{index}")}}));
    }
    world.refused("TooLarge", "257 volumes");
}
