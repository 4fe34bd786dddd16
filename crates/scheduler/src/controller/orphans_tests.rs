//! Backups of policies that are gone: what is noted, what goes and when, and what nothing may delete.

use std::sync::atomic::{AtomicUsize, Ordering};

use stillpoint_api::clock::Clock as _;

use super::*;
use crate::rules::book::{Known, Space, View};

pub(super) const DEFINITION: &str =
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/backuppolicies.stillpoint.dev";
const NAMESPACE: &str = "/api/v1/namespaces/shop";
const NOTE: &str = "stillpoint.dev/orphaned-since";
/// Longer ago than the rule's fourteen days.
const LONG_AGO: &str = "2026-10-01T00:00:00Z";
const DAY: Duration = Duration::from_secs(24 * 3600);

fn rule(generation: i64, agreed: Option<&str>, spec: Value) -> Known {
    let annotations = agreed.map_or(json!({}), |number| json!({"stillpoint.dev/deletions-agreed": number}));
    let rule = json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "ProtectionRule",
        "metadata": {"name": "old", "uid": "rule", "generation": generation, "annotations": annotations}, "spec": spec});
    Known::new(serde_json::from_value(rule).unwrap(), "2026-11-14T02:00:00Z".parse().unwrap())
}

fn two_weeks() -> Known {
    rule(1, None, json!({"namespaceSelector": {}, "orphans": {"keep": "14d"}}))
}

fn definition(created: &str) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "backuppolicies.stillpoint.dev", "uid": "crd", "creationTimestamp": created}})
}

impl World {
    /// With the policy `nightly`, the namespace, the definition of policies, and a rule that keeps orphans for two weeks.
    fn ruled() -> Self {
        let world = Self::new();
        let mut server = world.server.lock().unwrap();
        server.put(
            NAMESPACE,
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "uid": "ns"}}),
        );
        server.put(DEFINITION, definition("2026-01-01T00:00:00Z"));
        drop(server);
        let rules = &world.scheduler.context.rules;
        rules.space_applied("shop", Space::default());
        rules.rule_applied(two_weeks());
        world
    }

    /// Shows a Backup as the server has it.
    fn show(&self, name: &str) {
        let object = self.server.lock().unwrap().objects[&format!("backups/{name}")].clone();
        self.backups.unbounded_send(Ok(Event::Apply(Arc::new(guarded(object))))).unwrap();
    }

    /// Until `nightly` was looked at `count` times, and every look that was begun at orphans has ended.
    async fn settled(&mut self, count: usize) {
        self.until(|server| statuses(server) >= count).await;
        while let Some(done) = self.scheduler.orphans.looks.join_next().await {
            let (key, result) = done.unwrap();
            self.scheduler.orphans_looked(key, result);
        }
    }

    /// The rule as its status would tell it.
    fn view(&self) -> View {
        self.scheduler.context.rules.views().remove(0)
    }

    fn note(&self, name: &str) -> Value {
        self.server.lock().unwrap().objects[&format!("backups/{name}")]["metadata"]["annotations"][NOTE]
            .clone()
    }

    /// Writes that concern Backups, without those that the policy `nightly` starts.
    fn touched(&self) -> Vec<String> {
        self.writes().into_iter().filter(|write| write.contains("backups/")).collect()
    }
}

/// A proven point of the policy `gone`, on which it is noted `since` when that is gone.
fn orphan(name: &str, cut: &str, since: Option<&str>) -> Value {
    let mut backup = backup(name, "gone", "Succeeded", cut);
    if let Some(since) = since {
        backup["metadata"]["annotations"] = json!({NOTE: since});
    }
    backup
}

fn two(since: Option<&str>) -> [Value; 2] {
    [orphan("older", "2026-09-12T02:00:00Z", since), orphan("newer", "2026-09-13T02:00:00Z", since)]
}

#[derive(Default)]
struct Counted {
    deleted: AtomicUsize,
    failed: AtomicUsize,
}

impl DeletionObserver for Counted {
    fn asked(&self, policy: &PolicyKey, _deleted: bool) {
        panic!("{policy} has no retention any more");
    }

    fn orphan(&self, _policy: &PolicyKey, deleted: bool) {
        if deleted { &self.deleted } else { &self.failed }.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn what_a_policy_left_behind_is_noted_told_and_goes_after_its_time_but_for_the_newest() {
    let mut world = World::ruled();
    let counted = Arc::new(Counted::default());
    Arc::get_mut(&mut world.scheduler.context).unwrap().deletions = counted.clone();
    world.list_policies();
    world.list_backups(&two(None));
    world.until(|server| server.events.iter().filter(|reason| *reason == "Orphaned").count() == 2).await;
    assert_eq!(
        (world.note("older"), world.note("newer")),
        (json!("2026-11-14T02:00:01Z"), json!("2026-11-14T02:00:01Z"))
    );
    world.show("older");
    world.show("newer");

    // A second before its time nothing goes.
    world.clock.advance(14 * DAY - Duration::from_secs(1));
    world.settled(2).await;
    assert_eq!(world.touched(), ["PATCH backups/newer", "PATCH backups/older"]);
    let orphans = world.view().orphans;
    assert_eq!((orphans.backups, orphans.expiring), (2, 1));
    assert_eq!(orphans.next, Some("2026-11-28T02:00:01Z".parse().unwrap()));

    world.clock.advance(Duration::from_secs(1));
    world.until(|server| server.events.contains(&"OrphanDeleted".to_owned())).await;
    let server = world.server.lock().unwrap();
    assert_eq!(server.deletes.len(), 1);
    assert_eq!(server.deletes[0]["preconditions"]["uid"], "uid-older");
    assert!(server.deletes[0]["preconditions"]["resourceVersion"].is_string());
    assert!(server.objects.contains_key("backups/newer"), "the newest");
    assert_eq!(counted.deleted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_policy_of_the_name_that_comes_back_saves_its_backups() {
    let mut world = World::ruled();
    // Its Backups are due, and the policy is back before anybody looked.
    let mut back = policy();
    back["metadata"]["name"] = json!("gone");
    back["spec"]["retention"] = json!({"last": 5});
    world.server.lock().unwrap().put("backuppolicies/gone", back.clone());
    world.list_policies();
    world.list_backups(&two(Some(LONG_AGO)));
    world.settled(1).await;
    // The watch did not show it yet, and so it is not believed.
    assert_eq!(world.touched(), [""; 0]);
    world.policies.unbounded_send(Ok(Event::Apply(guarded(back)))).unwrap();
    world.until(|server| server.writes.iter().filter(|write| write.starts_with("PATCH")).count() == 2).await;
    assert_eq!((world.note("older"), world.note("newer")), (Value::Null, Value::Null));
    assert!(world.server.lock().unwrap().deletes.is_empty());
    assert_eq!(world.view().orphans.backups, 0);
}

#[tokio::test]
async fn nothing_goes_because_the_definition_of_policies_went() {
    let terminating = {
        let mut terminating = definition("2026-01-01T00:00:00Z");
        terminating["metadata"]["deletionTimestamp"] = json!("2026-11-14T01:00:00Z");
        terminating
    };
    // Installed anew after the Backups were taken, when all policies were gone and some are back.
    let anew = definition("2026-09-14T00:00:00Z");
    for (case, definition) in [
        ("it is being deleted", Some(terminating)),
        ("it is gone", None),
        ("it is installed anew", Some(anew)),
    ] {
        for since in [None, Some(LONG_AGO)] {
            let mut world = World::ruled();
            match &definition {
                Some(definition) => drop(world.server.lock().unwrap().put(DEFINITION, definition.clone())),
                None => drop(world.server.lock().unwrap().objects.remove(DEFINITION)),
            }
            world.list_policies();
            world.list_backups(&two(since));
            world.settled(1).await;
            assert!(world.server.lock().unwrap().reads.contains(&DEFINITION.to_owned()), "{case}: looked at");
            assert_eq!(world.touched(), [""; 0], "{case}, noted {since:?}");
        }
    }
}

#[tokio::test]
async fn nothing_is_done_where_a_namespace_ends_a_request_fails_or_the_clocks_differ() {
    // Told by the watch, or found by the look before it.
    for told in [true, false] {
        let mut world = World::ruled();
        if told {
            world.scheduler.context.rules.space_applied("shop", Space { ends: true, ..Space::default() });
        }
        world.server.lock().unwrap().objects.get_mut(NAMESPACE).unwrap()["metadata"]["deletionTimestamp"] =
            json!("2026-11-14T02:00:00Z");
        world.list_policies();
        world.list_backups(&two(Some(LONG_AGO)));
        world.settled(1).await;
        assert_eq!(world.touched(), [""; 0], "told: {told}");
    }
    let mut world = World::ruled();
    let (ahead, server_ahead) = watch::channel(Some(SignedDuration::from_hours(400 * 24)));
    world.scheduler.server_ahead = server_ahead;
    world.list_policies();
    world.list_backups(&two(Some(LONG_AGO)));
    world.settled(1).await;
    assert_eq!(world.touched(), [""; 0]);
    // When they agree again, it goes on.
    ahead.send_replace(None);
    world.until(|server| server.deletes.len() == 1).await;
}

#[tokio::test]
async fn a_rule_that_is_not_in_force_deletes_nothing_and_the_time_begins_anew() {
    let mut world = World::ruled();
    world.scheduler.context.rules.rule_applied(rule(
        2,
        None,
        json!({"namespaceSelector": {}, "orphans": {"keep": "1h"}}),
    ));
    world.list_policies();
    world.list_backups(&two(Some(LONG_AGO)));
    world.until(|server| server.writes.iter().filter(|write| write.starts_with("PATCH")).count() == 2).await;
    assert_eq!((world.note("older"), world.note("newer")), (Value::Null, Value::Null));
    assert!(world.server.lock().unwrap().deletes.is_empty());
}

#[tokio::test]
async fn a_freeze_a_running_restore_and_a_hold_that_is_not_shown_yet_keep_what_would_go() {
    let mut world = World::ruled();
    let frozen = backup("frozen", "other", "Freezing", "2026-11-14T02:00:00Z");
    let [older, newer] = two(Some(LONG_AGO));
    let held = orphan("held", "2026-09-10T02:00:00Z", Some(LONG_AGO));
    let read = orphan("read", "2026-09-11T02:00:00Z", Some(LONG_AGO));
    world.server.lock().unwrap().restores = vec![json!({
        "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Restore", "metadata": {"name": "r", "namespace": "shop"},
        "spec": {"source": {"backupRef": {"name": "read"}}, "target": {"clone": {}}},
    })];
    world.list_policies();
    world.list_backups(&[older, newer, held, read, frozen]);
    world.settled(1).await;
    assert!(world.server.lock().unwrap().deletes.is_empty(), "during a freeze");
    {
        let mut server = world.server.lock().unwrap();
        let mut held = server.objects["backups/held"].clone();
        held["spec"]["hold"] = json!({"reason": "case 4711"});
        server.put("backups/held", held);
        let thawed = backup("frozen", "other", "Settling", "2026-11-14T02:00:00Z");
        server.put("backups/frozen", thawed);
    }
    world.show("frozen");
    // Nothing tells when a Restore ends: it is tried again after a minute.
    world.clock.advance(Duration::from_secs(61));
    world.until(|server| !server.deletes.is_empty()).await;
    let deletes: Vec<String> =
        world.touched().into_iter().filter(|write| write.starts_with("DELETE")).collect();
    assert_eq!(deletes, ["DELETE backups/older"]);
}

#[tokio::test]
async fn when_most_policies_vanish_none_of_their_backups_goes_until_somebody_agrees() {
    let mut world = World::ruled();
    let mut all = Vec::new();
    for policy in 0..11 {
        for (name, mut point) in ["older", "newer"].into_iter().zip(two(Some(LONG_AGO))) {
            let name = format!("{name}-{policy}");
            point["metadata"]["name"] = json!(name);
            point["metadata"]["uid"] = json!(format!("uid-{name}"));
            point["spec"]["run"]["policyRef"]["name"] = json!(format!("gone-{policy}"));
            all.push(point);
        }
    }
    world.list_policies();
    world.list_backups(&all);
    world.settled(1).await;
    assert_eq!(world.touched(), [""; 0]);
    let paused = world.view().paused.unwrap();
    assert_eq!((paused.gone, paused.left), (11, 1));
    let status = crate::rules::status::status(&world.view(), &[], world.clock.wall());
    let told = status.conditions.iter().find(|known| known.type_ == "OrphansPaused").unwrap();
    assert!(told.message.contains("stillpoint.dev/deletions-agreed=1"), "{}", told.message);
    assert_eq!(status.orphans.as_ref().unwrap().next_deletion, None);

    let spec = json!({"namespaceSelector": {}, "orphans": {"keep": "14d"}});
    world.scheduler.context.rules.rule_applied(rule(1, Some("1"), spec));
    // The server takes each away at once; the watch shows none of it, so that every look has its one.
    world.until(|server| server.deletes.len() == 11).await;
    let server = world.server.lock().unwrap();
    assert!((0..11).all(|policy| server.objects.contains_key(&format!("backups/newer-{policy}"))));
}

#[tokio::test]
async fn a_delete_that_fails_is_counted_told_and_tried_again() {
    let mut world = World::ruled();
    let counted = Arc::new(Counted::default());
    Arc::get_mut(&mut world.scheduler.context).unwrap().deletions = counted.clone();
    world.server.lock().unwrap().deletes_fail = true;
    world.list_policies();
    world.list_backups(&two(Some(LONG_AGO)));
    world.until(|server| server.events.contains(&"DeletionFailed".to_owned())).await;
    assert_eq!(counted.failed.load(Ordering::SeqCst), 1);
    world.settled(1).await;
    world.server.lock().unwrap().deletes_fail = false;
    world.clock.advance(Duration::from_secs(61));
    world.until(|server| server.deletes.len() == 1).await;
    assert_eq!(counted.deleted.load(Ordering::SeqCst), 1);
}
