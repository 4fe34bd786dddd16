//! What a plan tells of a run: all that stands in its way at once, and what its point could be worth at best.
//!
//! That the commands of a container are asked for nothing else, and that nothing is changed, is shown on the embedded cluster
//! by the tests of `stillpoint plan`.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use stillpoint_api::evidence::Consistency;
use stillpoint_api::policy::Continuity;

use super::best::{at_best, not_proven};
use super::foresee::{Foreseen, foresee, suppose};
use super::unprotected;
use crate::resolve::tests::{World, pod};
use crate::verdict::Judgement;

fn foreseen(world: &World) -> Foreseen {
    world.with(|given, observed| foresee(given, observed, true))
}

fn best(world: &World) -> Judgement {
    at_best(&foreseen(world).resolutions[0])
}

fn reasons(foreseen: &Foreseen) -> Vec<&'static str> {
    foreseen.missing.iter().map(|refusal| refusal.reason).collect()
}

#[test]
fn the_best_of_a_lock_on_one_atomic_volume_is_what_its_template_can_prove() {
    let mut world = World::new();
    let judged = best(&world);
    assert_eq!((judged.consistency, judged.continuity), (Consistency::Application, Some(Continuity::Lock)));
    assert_eq!(judged.verdict.missing, []);
    let session = &mut world.recipe["freeze"]["session"];
    session["position"] = json!("gtid");
    for text in ["open", "freeze", "beat"] {
        let said = session[text].as_str().unwrap().replace("host='", "gtid=', @@gtid_binlog_pos, ' host='");
        session[text] = json!(said);
    }
    assert_eq!(best(&world).continuity, Some(Continuity::Position));
    let freeze = world.recipe["freeze"]["session"]["freeze"].as_str().unwrap().to_owned();
    let told = "SELECT 'EVIDENCE {{n}} flush=', @@flush, ' sync=', @@sync, ' log_bin=', @@log_bin;\n";
    world.recipe["freeze"]["session"]["freeze"] = json!(format!("{told}{freeze}"));
    world.recipe["evidence"] = json!(["datadir", "flush", "sync", "log_bin"]);
    world.recipe["crashSafe"]["settings"] = json!([
        {"name": "flush", "allowed": ["1"]},
        {"name": "sync", "allowed": ["1"], "when": {"name": "log_bin", "values": ["1"]}},
    ]);
    assert_eq!(best(&world).consistency, Consistency::Application, "{:#?}", best(&world).verdict.missing);
}

#[test]
fn an_observer_and_nothing_held_are_worth_what_the_engine_recovers_from() {
    let mut world = World::new();
    world.recipe["freeze"]["session"]["locks"] = json!(false);
    world.recipe["freeze"]["session"].as_object_mut().unwrap().remove("thawProvesLock");
    assert_eq!((best(&world).consistency, best(&world).continuity), (Consistency::Application, None));
    let mut world = World::new();
    world.recipe = json!({"freeze": {"none": {}}, "crashSafe": {"source": "documented"}});
    assert_eq!(best(&world).consistency, Consistency::Application, "{:#?}", best(&world).verdict.missing);
    world.recipe = json!({"freeze": {"none": {}}});
    assert_ne!(best(&world).consistency, Consistency::Application);
}

#[test]
fn what_no_run_could_prove_is_told_by_the_rule_that_would_miss() {
    let told = |world: &World| {
        let resolution = foreseen(world).resolutions.remove(0);
        not_proven(&resolution, &at_best(&resolution))
    };
    let mut world = World::new();
    world.recipe.as_object_mut().unwrap().remove("crashSafe").unwrap();
    let refusal = told(&world).unwrap();
    assert_eq!(refusal.reason, "NotProven");
    assert!(refusal.message.contains("application db, rule 9: "), "{}", refusal.message);
    let mut world = World::new();
    world.recipe["freeze"]["session"].as_object_mut().unwrap().remove("local").unwrap();
    assert!(told(&world).unwrap().message.contains("rule 4: "), "{:?}", told(&world));
    let mut world = World::new();
    world.policy["spec"]["minContinuity"] = json!("Position");
    let refusal = told(&world).unwrap();
    assert!(
        refusal.message.contains("rule 10: ") && refusal.message.contains("BestEffort"),
        "{}",
        refusal.message
    );
    world.policy["spec"]["consistency"] = json!("BestEffort");
    assert_eq!(told(&world), None, "who demands nothing misses nothing");
}

#[test]
fn one_look_tells_everything_that_stands_in_the_way_and_still_what_would_be_done() {
    let mut world = World::new();
    world.opted_in = false;
    world.in_flight = true;
    world.trusted = false;
    let rule = json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "ProtectionRule", "metadata": {"name": "gold"},
        "spec": {"namespaceSelector": {}, "allow": {"maxHold": "10s"}}});
    world.rules = vec![serde_json::from_value(rule).unwrap()];
    let foreseen = foreseen(&world);
    assert_eq!(
        reasons(&foreseen),
        ["NamespaceNotOptedIn", "RuleViolation", "SnapshotInFlight", "StorageNotTrusted"]
    );
    assert!(foreseen.whole);
    let judged = at_best(&foreseen.resolutions[0]);
    assert_ne!(judged.consistency, Consistency::Application);
    assert!(judged.verdict.missing.iter().any(|finding| finding.rule == 8), "{:#?}", judged.verdict.missing);
}

#[test]
fn what_stands_in_the_way_of_one_application_does_not_hide_another() {
    let mut world = World::new();
    let other = |name: &str| json!({"name": name, "selector": {"matchLabels": {"app": name}}});
    let applications = world.policy["spec"]["applications"].as_array_mut().unwrap();
    applications.insert(0, other("none"));
    applications.push(other("neither"));
    let foreseen = foreseen(&world);
    assert!(!foreseen.whole);
    assert_eq!(reasons(&foreseen), ["NoPods", "NoPods"], "each once");
    assert!(foreseen.missing[0].message.contains("none") && foreseen.missing[1].message.contains("neither"));
    let resolved: Vec<&str> =
        foreseen.resolutions.iter().map(|one| one.resolved.applications[0].name.as_str()).collect();
    assert_eq!(resolved, ["db"], "what could be done alone is told");
}

#[test]
fn a_role_that_nobody_asked_for_is_supposed_and_said_or_else_not_known() {
    let mut world = World::new();
    world.recipe["target"] =
        json!({"pods": "One", "role": {"command": ["role"], "accept": ["primary", "replica"]}});
    let unasked = |world: &World| {
        world.with(|given, observed| {
            let mut observed = observed.clone();
            let supposed = suppose(&mut observed.applications[0]);
            (supposed, foresee(given, &observed, false))
        })
    };
    let (supposed, told) = unasked(&world);
    assert!(told.whole && told.missing.is_empty(), "{told:?}");
    assert!(
        supposed[0].contains("db-0") && supposed[0].contains("must be primary or replica"),
        "{supposed:?}"
    );
    // With two pods there is no guess.
    world.pods.push(pod("db-1"));
    let (supposed, told) = unasked(&world);
    assert_eq!((supposed.len(), told.missing.len(), told.resolutions.len()), (0, 0, 0), "{told:?}");
    assert!(told.unknown[0].contains("role of pod"), "{told:?}");
    // Of a run that asked it is a fault.
    assert_eq!(reasons(&foreseen(&world)), ["RoleUnknown"]);
}

fn workload(name: &str, owner: Option<(&str, &str)>, labels: Value) -> Pod {
    let mut value = pod(name);
    value["metadata"]["labels"] = labels;
    if let Some((kind, name)) = owner {
        value["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "o", "controller": true,
        }]);
    }
    serde_json::from_value(value).unwrap()
}

#[test]
fn workloads_without_a_policy_are_told_once_with_a_selector_that_survives_a_rollout() {
    let hashed = |hash: &str| json!({"app": "files", "pod-template-hash": hash});
    let mut bare = pod("cache-0");
    bare["spec"]["volumes"] = json!([]);
    let pods = [
        workload("files-1-a", Some(("ReplicaSet", "files-77")), hashed("77")),
        workload("files-1-b", Some(("ReplicaSet", "files-78")), hashed("78")),
        workload(
            "db-0",
            Some(("StatefulSet", "db")),
            json!({"app": "db", "apps.kubernetes.io/pod-index": "0"}),
        ),
        workload("mq-0", Some(("StatefulSet", "mq")), json!({"app": "mq"})),
        workload("mq-1", Some(("StatefulSet", "mq")), json!({"app": "mq"})),
        workload("nameless", None, json!({})),
        serde_json::from_value(bare).unwrap(),
    ];
    let protected = BTreeSet::from(["uid-mq-1".to_owned()]);
    let (applications, unlabelled) = unprotected(&pods, &protected);
    let told: Vec<(&str, Vec<(&str, &str)>)> = applications
        .iter()
        .map(|one| {
            let labels = one.selector.match_labels.iter().flatten();
            (one.name.as_str(), labels.map(|(key, value)| (key.as_str(), value.as_str())).collect())
        })
        .collect();
    assert_eq!(told, [("files", vec![("app", "files")]), ("db", vec![("app", "db")])]);
    assert_eq!(unlabelled, ["nameless"]);
}
