//! Which claim holds what, and when it is cut.

use serde_json::json;
use stillpoint_api::evidence::MemberEvidence;

use super::{World, pod};

/// A server with data, a tablespace and its log on a volume each, and a template that cuts the log last.
fn staged() -> World {
    let mut world = World::new();
    let mut db = pod("db-0");
    db["spec"]["volumes"] = json!([
        {"name": "data", "persistentVolumeClaim": {"claimName": "data-0"}},
        {"name": "space", "persistentVolumeClaim": {"claimName": "space-0"}},
        {"name": "wal", "persistentVolumeClaim": {"claimName": "wal-0"}},
    ]);
    db["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "data", "mountPath": "/data"},
        {"name": "space", "mountPath": "/space"},
        {"name": "wal", "mountPath": "/data/wal"},
    ]);
    world.pods = vec![db];
    world.recipe["volumeRoles"] = json!({"data": {"command": ["d"]}, "wal": {"command": ["w"]}});
    world.recipe["freeze"]["session"]["locks"] = json!(false);
    world.recipe["freeze"]["session"]["stages"] = json!([
        {"volumes": {"roles": ["data"]}, "then": "SELECT CONCAT('FROZEN {{n}} 1 host=', @@hostname);\n"},
        {"volumes": {"roles": ["wal"]}},
    ]);
    world.paths =
        [(("db-0", "data"), vec!["/data/db", "/space/s1"]), (("db-0", "wal"), vec!["/data/wal/log"])].into();
    world
}

#[test]
fn every_volume_is_cut_in_the_stage_of_its_role() {
    let resolution = staged().decide().unwrap();
    let stage = |member: &MemberEvidence| (member.claim_name.clone(), member.stage);
    let stages: Vec<(String, u32)> = resolution.plan.members.iter().map(stage).collect();
    // The longest mount decides: the log's lies below the data's.
    assert_eq!(stages, [("data-0".to_owned(), 0), ("space-0".to_owned(), 0), ("wal-0".to_owned(), 1)]);
    assert_eq!(resolution.plan.cuts.iter().map(|cut| cut.stage).collect::<Vec<_>>(), [0, 0, 1]);
    assert_eq!((resolution.plan.holds[0].stages, resolution.plan.stages()), (2, 2));
    assert!(resolution.plan.holds[0].essential(), "without it the copy cannot be restored");
    assert_eq!(resolution.resolved.applications[0].stages, 2);
}

#[test]
fn where_all_roles_lie_on_one_claim_it_is_one_cut() {
    let mut world = staged();
    world.paths = [(("db-0", "data"), vec!["/data/db"]), (("db-0", "wal"), vec!["/data/db/wal"])].into();
    world.pods[0]["spec"]["volumes"].as_array_mut().unwrap().truncate(1);
    let resolution = world.decide().unwrap();
    assert_eq!((resolution.plan.holds[0].stages, resolution.plan.cuts.len()), (1, 1));
    assert_eq!(resolution.resolved.applications[0].stages, 0);
}

#[test]
fn a_claim_of_two_stages_or_of_none_is_refused() {
    let mut world = staged();
    world.paths.insert(("db-0", "wal"), vec!["/data/db/wal"]);
    world.refused("StagesShareClaim", "claim data-0 holds data and wal");
    let mut world = staged();
    world.paths.insert(("db-0", "data"), vec!["/data/db"]);
    world.refused("VolumeWithoutRole", "claim space-0");
    world.policy["spec"]["applications"][0]["volumes"] = json!({"exclude": ["space"]});
    assert!(world.decide().is_ok());
}

#[test]
fn what_a_role_says_must_lie_on_a_member_with_or_without_stages() {
    let mut world = staged();
    world.policy["spec"]["applications"][0]["volumes"] = json!({"exclude": ["wal"]});
    world.refused("PathNotCovered", "its wal in /data/wal/log");
    let mut world = staged();
    world.paths.insert(("db-0", "wal"), vec!["/var/log/db"]);
    world.refused("PathNotCovered", "/var/log/db");
    let mut world = World::new();
    world.recipe["volumeRoles"] = json!({"wal": {"command": ["w"]}});
    world.refused("VolumeRoleUnknown", "was not asked");
    world.paths = [(("db-0", "wal"), vec!["/wal"])].into();
    world.refused("PathNotCovered", "/wal");
    world.paths = [(("db-0", "wal"), vec!["/data/wal"])].into();
    assert!(world.decide().is_ok());
}

#[test]
fn roles_on_several_claims_without_stages_are_refused() {
    let mut world = staged();
    world.recipe["freeze"]["session"].as_object_mut().unwrap().remove("stages");
    world.refused("SeveralVolumes", "use a template for several volumes");
}
