//! A slot that was decided upon beforehand takes one request when it is due, and nothing is started by a plan that something
//! has overtaken.

use super::*;

const NEXT: &str = "2026-11-15T02:00:00Z";

fn next_name() -> String {
    crate::slots::backup_name("nightly", "policy-uid", NEXT.parse().unwrap())
}

/// A world in which the first slot ran and was noted, a moment after the next one is due.
async fn at_the_next_slot() -> World {
    let mut world = World::new();
    world.list_policies();
    world.list_backups(&[]);
    world.until(|server| statuses(server) == 1).await;
    let mut ran = world.server.lock().unwrap().objects[&format!("backups/{}", slot_name())].clone();
    ran["metadata"]["uid"] = json!("uid-ran");
    ran["metadata"]["creationTimestamp"] = json!("2026-11-14T02:00:01Z");
    ran["status"] = json!({"phase": "Failed"});
    world.backups.unbounded_send(Ok(Event::Apply(Arc::new(guarded(ran))))).unwrap();
    world.until(|server| statuses(server) == 2).await;
    // The last pass ends before anything else is done.
    world.until(|_| true).await;
    while let Some(done) = world.scheduler.tasks.join_next().await {
        let (key, done) = done.unwrap();
        world.scheduler.done(key, done);
    }
    world.clock.advance(Duration::from_secs(24 * 3600));
    let mut server = world.server.lock().unwrap();
    server.writes.clear();
    server.reads.clear();
    drop(server);
    world
}

#[tokio::test]
async fn a_planned_slot_is_started_with_one_request() {
    let mut world = at_the_next_slot().await;
    world.until(|server| !server.writes.is_empty()).await;
    let server = world.server.lock().unwrap();
    assert_eq!(server.writes, ["POST backups"]);
    assert!(server.reads.is_empty(), "{:?}", server.reads);
    let backup = &server.objects[&format!("backups/{}", next_name())];
    assert_eq!(backup["spec"]["trigger"], "Schedule");
    assert_eq!(backup["spec"]["run"]["policyRef"], json!({"name": "nightly", "uid": "policy-uid"}));
    assert_eq!(backup["spec"]["run"]["slot"], NEXT);
}

#[tokio::test]
async fn a_planned_slot_is_noted_when_the_watch_shows_its_backup() {
    let mut world = at_the_next_slot().await;
    world.until(|server| !server.writes.is_empty()).await;
    let mut created = world.server.lock().unwrap().objects[&format!("backups/{}", next_name())].clone();
    created["metadata"]["uid"] = json!("uid-next");
    created["metadata"]["creationTimestamp"] = json!(NEXT);
    world.backups.unbounded_send(Ok(Event::Apply(Arc::new(guarded(created))))).unwrap();
    world.until(|server| statuses(server) == 1).await;
    let server = world.server.lock().unwrap();
    assert_eq!(server.writes, ["POST backups", "PUT backuppolicies/nightly/status"]);
    assert_eq!(server.objects["backuppolicies/nightly"]["status"]["lastSlot"], NEXT);
}

#[tokio::test]
async fn a_policy_that_was_edited_meanwhile_is_decided_anew() {
    let mut world = at_the_next_slot().await;
    let mut edited = world.server.lock().unwrap().objects["backuppolicies/nightly"].clone();
    edited["spec"]["suspend"] = json!(true);
    edited["metadata"]["generation"] = json!(2);
    world.server.lock().unwrap().put("backuppolicies/nightly", edited.clone());
    world.scheduler.policy_event(Event::Apply(guarded(edited)));
    world.until(|server| statuses(server) == 1).await;
    assert_eq!(world.writes(), ["PUT backuppolicies/nightly/status"]);
}

#[tokio::test]
async fn a_slot_that_meets_a_run_is_decided_and_not_started_by_its_plan() {
    let mut world = at_the_next_slot().await;
    let running = backup("by-hand", "nightly", "Preparing", "2026-11-15T01:59:00Z");
    world.scheduler.backup_event(Event::Apply(Arc::new(guarded(running))));
    world.until(|server| statuses(server) == 1).await;
    assert_eq!(world.writes(), ["PUT backuppolicies/nightly/status"]);
    let server = world.server.lock().unwrap();
    assert_eq!(server.objects["backuppolicies/nightly"]["status"]["missed"], json!({"concurrency": 1}));
}

#[tokio::test]
async fn a_name_that_is_taken_has_its_policy_looked_at() {
    let mut world = at_the_next_slot().await;
    let foreign = backup(&next_name(), "nightly", "Failed", "2026-11-14T01:00:00Z");
    world.server.lock().unwrap().put(&format!("backups/{}", next_name()), foreign);
    world.until(|server| statuses(server) == 1).await;
    assert!(world.server.lock().unwrap().objects.contains_key(&format!("backups/{}-b", next_name())));
}
