//! The loop against an API server of a few lines: what is written, in which order, and what a conflict does.

#[path = "controller/orphans_tests.rs"]
mod orphans;
#[path = "controller/out_of_band_tests.rs"]
mod out_of_band;
#[path = "controller/planned_tests.rs"]
mod planned;

use std::collections::BTreeMap;
use std::sync::Mutex;

use futures::channel::mpsc;
use http::{Method, Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use stillpoint_api::clock::ManualClock;

use super::*;

/// Objects by path, and the writes that were made.
#[derive(Default)]
struct Server {
    objects: BTreeMap<String, Value>,
    writes: Vec<String>,
    /// Paths of the reads.
    reads: Vec<String>,
    version: u64,
    /// Status writes that somebody else gets ahead of.
    conflicts: u32,
    /// Restores of the namespace.
    restores: Vec<Value>,
    /// Bodies of the deletes.
    deletes: Vec<Value>,
    /// Every delete fails.
    deletes_fail: bool,
    /// No delete is answered.
    deletes_hang: bool,
    /// Reasons of the events that were told.
    events: Vec<String>,
}

impl Server {
    fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    fn answer(&mut self, method: &Method, path: &str, body: &[u8]) -> (u16, Value) {
        let path =
            path.strip_prefix("/apis/stillpoint.dev/v1alpha1/namespaces/shop/").unwrap_or(path).to_owned();
        let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        if path.contains("/events") {
            self.events.push(body["reason"].as_str().unwrap_or_default().to_owned());
            return (201, body);
        }
        if *method != Method::GET {
            self.writes.push(format!("{method} {path}"));
        } else {
            self.reads.push(path.clone());
        }
        match *method {
            Method::GET if path == "restores" => (
                200,
                json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "RestoreList", "metadata": {}, "items": self.restores}),
            ),
            Method::GET if path == "backuppolicies" => self.policies(),
            Method::GET => match self.objects.get(&path) {
                Some(object) => (200, object.clone()),
                None => failure(404, "NotFound"),
            },
            Method::POST => {
                let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap());
                if self.objects.contains_key(&path) {
                    return failure(409, "AlreadyExists");
                }
                (201, self.put(&path, body))
            }
            Method::PUT => {
                let path = path.strip_suffix("/status").unwrap();
                if self.conflicts > 0 {
                    self.conflicts -= 1;
                    let object = self.objects[path].clone();
                    self.put(path, object);
                }
                if self.objects[path]["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] {
                    return failure(409, "Conflict");
                }
                (200, self.put(path, body))
            }
            Method::PATCH => {
                let mut object = self.objects[&path].clone();
                if body["metadata"]["uid"] != object["metadata"]["uid"] {
                    return failure(409, "Conflict");
                }
                for (name, value) in body["metadata"]["annotations"].as_object().unwrap() {
                    let annotations = object["metadata"]["annotations"].take();
                    let mut annotations = annotations.as_object().cloned().unwrap_or_default();
                    match value {
                        Value::Null => annotations.remove(name),
                        value => annotations.insert(name.clone(), value.clone()),
                    };
                    object["metadata"]["annotations"] = Value::Object(annotations);
                }
                (200, self.put(&path, object))
            }
            Method::DELETE if self.deletes_fail => failure(500, "InternalError"),
            Method::DELETE => {
                self.deletes.push(body);
                self.objects.remove(&path);
                (200, json!({"apiVersion": "v1", "kind": "Status", "status": "Success", "code": 200}))
            }
            _ => failure(405, "MethodNotAllowed"),
        }
    }
}

impl Server {
    /// The list of the policies, which only a server that has their definition answers.
    fn policies(&self) -> (u16, Value) {
        if !self.objects.contains_key(orphans::DEFINITION) {
            return failure(404, "NotFound");
        }
        let items = self.objects.iter().filter(|(path, _)| path.starts_with("backuppolicies/"));
        let items: Vec<&Value> = items.map(|(_, policy)| policy).collect();
        (
            200,
            json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "BackupPolicyList", "metadata": {}, "items": items}),
        )
    }
}

fn failure(code: u16, reason: &str) -> (u16, Value) {
    (code, json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason, "code": code}))
}

fn client(server: &Arc<Mutex<Server>>) -> Client {
    let server = server.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let server = server.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap();
            let hangs = parts.method == Method::DELETE && server.lock().unwrap().deletes_hang;
            if hangs {
                std::future::pending::<()>().await;
            }
            let (code, answer) = server.lock().unwrap().answer(&parts.method, parts.uri.path(), &body);
            let body = Body::from(serde_json::to_vec(&answer).unwrap());
            Ok::<_, std::convert::Infallible>(Response::builder().status(code).body(body).unwrap())
        }
    });
    Client::new(service, "shop")
}

fn policy() -> Value {
    json!({
        "apiVersion": "stillpoint.dev/v1alpha1",
        "kind": "BackupPolicy",
        "metadata": {
            "name": "nightly", "namespace": "shop", "uid": "policy-uid", "generation": 1,
            "creationTimestamp": "2026-11-13T09:00:00Z",
        },
        "spec": {
            "schedule": {"cron": "0 2 * * *"},
            "retention": {"last": 1},
            "applications": [{"name": "db", "selector": {"matchLabels": {"app": "db"}}}],
        },
    })
}

fn backup(name: &str, policy: &str, phase: &str, cut: &str) -> Value {
    json!({
        "apiVersion": "stillpoint.dev/v1alpha1",
        "kind": "Backup",
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "creationTimestamp": cut},
        "spec": {"run": {"policyRef": {"name": policy}}},
        "status": {"phase": phase, "consistency": "Application", "cut": cut.replace('Z', ".000000Z")},
    })
}

type Streams = (mpsc::UnboundedReceiver<Guarded<BackupPolicy>>, mpsc::UnboundedReceiver<BackupEvent>);

/// A scheduler at 2026-11-14T02:00:01Z, its server and its two watches.
struct World {
    server: Arc<Mutex<Server>>,
    scheduler: Scheduler,
    clock: Arc<ManualClock>,
    ready: watch::Receiver<bool>,
    policies: mpsc::UnboundedSender<Guarded<BackupPolicy>>,
    backups: mpsc::UnboundedSender<BackupEvent>,
    streams: Option<Streams>,
}

impl World {
    fn new() -> Self {
        let server = Arc::new(Mutex::new(Server::default()));
        server.lock().unwrap().put("backuppolicies/nightly", policy());
        let (ready, watched) = watch::channel(false);
        let clock = Arc::new(ManualClock::at("2026-11-14T02:00:01Z".parse().unwrap()));
        let (_, server_ahead) = watch::channel(None);
        let context = SchedulerContext {
            client: client(&server),
            leadership: Leadership::alone(clock.clone()),
            clock: clock.clone(),
            cluster_uid: "cluster".to_owned(),
            ready,
            progress: watch::Sender::default(),
            deletions: Arc::new(()),
            work: Arc::new(()),
            rules: Arc::default(),
        };
        let scheduler = Scheduler::new(context, server_ahead);
        let (policies, policy_stream) = mpsc::unbounded();
        let (backups, backup_stream) = mpsc::unbounded();
        Self {
            server,
            scheduler,
            clock,
            ready: watched,
            policies,
            backups,
            streams: Some((policy_stream, backup_stream)),
        }
    }

    fn list_policies(&self) {
        let policy = self.server.lock().unwrap().objects["backuppolicies/nightly"].clone();
        for event in [Event::Init, Event::InitApply(guarded(policy)), Event::InitDone] {
            self.policies.unbounded_send(Ok(event)).unwrap();
        }
    }

    fn list_backups(&self, backups: &[Value]) {
        self.backups.unbounded_send(Ok(Event::Init)).unwrap();
        for backup in backups {
            let path = format!("backups/{}", backup["metadata"]["name"].as_str().unwrap());
            self.server.lock().unwrap().put(&path, backup.clone());
            self.backups.unbounded_send(Ok(Event::InitApply(Arc::new(guarded(backup.clone()))))).unwrap();
        }
        self.backups.unbounded_send(Ok(Event::InitDone)).unwrap();
    }

    /// Runs the loop until `done` holds; fails after five seconds.
    async fn until(&mut self, done: impl Fn(&Server) -> bool) {
        let server = self.server.clone();
        let shutdown = async move {
            let deadline = tokio::time::sleep(Duration::from_secs(5));
            let mut deadline = pin!(deadline);
            loop {
                if done(&server.lock().unwrap()) {
                    return;
                }
                tokio::select! {
                    () = &mut deadline => panic!("not reached; writes so far: {:?}", server.lock().unwrap().writes),
                    () = tokio::time::sleep(Duration::from_millis(1)) => {}
                }
            }
        };
        let (mut policies, mut backups) = self.streams.take().unwrap();
        self.scheduler.run(&mut policies, &mut backups, shutdown).await.unwrap();
        self.streams = Some((policies, backups));
    }

    fn writes(&self) -> Vec<String> {
        self.server.lock().unwrap().writes.clone()
    }
}

fn guarded<K: serde::de::DeserializeOwned>(object: Value) -> DeserializeGuard<K> {
    DeserializeGuard(Ok(serde_json::from_value(object).unwrap()))
}

fn slot_name() -> String {
    crate::slots::backup_name("nightly", "policy-uid", "2026-11-14T02:00:00Z".parse().unwrap())
}

fn statuses(server: &Server) -> usize {
    server.writes.iter().filter(|write| *write == "PUT backuppolicies/nightly/status").count()
}

#[tokio::test]
async fn a_due_slot_gets_its_backup_first_and_is_noted_after() {
    let mut world = World::new();
    world.list_policies();
    world.list_backups(&[]);
    world.until(|server| statuses(server) == 1).await;
    assert_eq!(world.writes(), ["POST backups", "PUT backuppolicies/nightly/status"]);
    assert!(*world.ready.borrow());
    let server = world.server.lock().unwrap();
    let backup = &server.objects[&format!("backups/{}", slot_name())];
    assert_eq!(backup["spec"]["trigger"], "Schedule");
    assert_eq!(backup["spec"]["run"]["policyRef"], json!({"name": "nightly", "uid": "policy-uid"}));
    assert_eq!(backup["spec"]["run"]["slot"], "2026-11-14T02:00:00Z");
    assert_eq!(server.objects["backuppolicies/nightly"]["status"]["lastSlot"], "2026-11-14T02:00:00Z");
}

#[tokio::test]
async fn nothing_is_decided_before_both_watches_have_listed() {
    let mut world = World::new();
    world.list_policies();
    // The policies' watch ends after its list, and with it the loop: everything that was sent is taken in by then.
    world.policies.close_channel();
    let (mut policies, mut backups) = world.streams.take().unwrap();
    let ended = world.scheduler.run(&mut policies, &mut backups, std::future::pending()).await;
    assert!(ended.is_err());
    assert!(world.scheduler.policies_listed.done_once);
    assert!(world.scheduler.tasks.is_empty());
    assert!(!*world.ready.borrow());
}

#[tokio::test]
async fn a_lost_race_for_the_status_is_decided_again_and_starts_nothing_twice() {
    let mut world = World::new();
    world.server.lock().unwrap().conflicts = 2;
    world.list_policies();
    world.list_backups(&[]);
    world.until(|server| statuses(server) == 3).await;
    let server = world.server.lock().unwrap();
    assert_eq!(server.objects.keys().filter(|path| path.starts_with("backups/")).count(), 1);
    assert_eq!(server.objects["backuppolicies/nightly"]["status"]["lastSlot"], "2026-11-14T02:00:00Z");
}

#[tokio::test]
async fn vector_43_a_foreign_object_under_the_name_does_not_cost_the_slot() {
    let mut world = World::new();
    let foreign = backup(&slot_name(), "nightly", "Failed", "2026-11-14T01:00:00Z");
    world.list_policies();
    world.list_backups(&[foreign]);
    world.until(|server| statuses(server) == 1).await;
    assert!(world.server.lock().unwrap().objects.contains_key(&format!("backups/{}-b", slot_name())));
}

#[tokio::test]
async fn a_backup_of_ours_under_the_name_is_adopted() {
    let mut world = World::new();
    let mut ours = backup(&slot_name(), "nightly", "Pending", "2026-11-14T02:00:00Z");
    ours["spec"] = json!({
        "trigger": "CatchUp",
        "run": {"policyRef": {"name": "nightly", "uid": "policy-uid"}, "slot": "2026-11-14T02:00:00Z"},
    });
    // Created by a process that died: the server has it and the watch does not show it yet.
    world.server.lock().unwrap().put(&format!("backups/{}", slot_name()), ours);
    world.list_policies();
    world.list_backups(&[]);
    world.until(|server| statuses(server) == 1).await;
    let server = world.server.lock().unwrap();
    assert_eq!(server.objects.keys().filter(|path| path.starts_with("backups/")).count(), 1);
}

#[tokio::test]
async fn points_beyond_retention_wait_for_the_end_of_any_freeze_in_the_cluster() {
    let mut world = World::new();
    let old = backup("old", "nightly", "Succeeded", "2026-11-12T02:00:00Z");
    let new = backup("new", "nightly", "Succeeded", "2026-11-13T02:00:00Z");
    let frozen = backup("frozen", "other", "Freezing", "2026-11-14T02:00:00Z");
    world.list_policies();
    world.list_backups(&[old, new, frozen]);
    world.until(|server| statuses(server) == 1).await;
    assert!(world.writes().iter().all(|write| !write.starts_with("DELETE")), "{:?}", world.writes());
    let thawed = backup("frozen", "other", "Settling", "2026-11-14T02:00:00Z");
    world.backups.unbounded_send(Ok(Event::Apply(Arc::new(guarded(thawed))))).unwrap();
    world.until(|server| server.writes.contains(&"DELETE backups/old".to_owned())).await;
    assert!(world.server.lock().unwrap().objects.contains_key("backups/new"));
}

fn point(name: &str, cut: &str) -> Value {
    backup(name, "nightly", "Succeeded", cut)
}

#[tokio::test]
async fn a_delete_names_the_uid_and_the_version_that_was_read() {
    let mut world = World::new();
    world.list_policies();
    world.list_backups(&[point("old", "2026-11-12T02:00:00Z"), point("new", "2026-11-13T02:00:00Z")]);
    let version = world.server.lock().unwrap().objects["backups/old"]["metadata"]["resourceVersion"].clone();
    world.until(|server| !server.deletes.is_empty()).await;
    let server = world.server.lock().unwrap();
    assert_eq!(server.deletes[0]["preconditions"], json!({"uid": "uid-old", "resourceVersion": version}));
}

#[tokio::test]
async fn a_hold_that_the_watch_does_not_show_yet_keeps_its_point() {
    let mut world = World::new();
    world.list_policies();
    world.list_backups(&[
        point("held", "2026-11-11T02:00:00Z"),
        point("old", "2026-11-12T02:00:00Z"),
        point("new", "2026-11-13T02:00:00Z"),
    ]);
    let mut held = world.server.lock().unwrap().objects["backups/held"].clone();
    held["spec"]["hold"] = json!({"reason": "audit"});
    world.server.lock().unwrap().put("backups/held", held);
    world.until(|server| server.writes.contains(&"DELETE backups/old".to_owned())).await;
    assert!(world.server.lock().unwrap().objects.contains_key("backups/held"));
    assert!(!world.writes().contains(&"DELETE backups/held".to_owned()));
}

#[tokio::test]
async fn what_a_running_restore_reads_or_will_choose_stays() {
    let mut world = World::new();
    let restore = |name: &str, source: Value, status: Value| {
        json!({
            "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Restore",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"source": source, "target": {"clone": {}}}, "status": status,
        })
    };
    let before =
        json!({"latest": {"policyRef": {"name": "nightly"}, "before": "2026-11-12T00:00:00.000000Z"}});
    let done = json!([{"type": "Finished", "status": "True", "reason": "Restored", "message": "",
                       "lastTransitionTime": "2026-11-13T02:00:00Z"}]);
    world.server.lock().unwrap().restores = vec![
        restore("named", json!({"backupRef": {"name": "named"}}), json!({})),
        restore("before", before, json!({})),
        restore("done", json!({"backupRef": {"name": "done"}}), json!({"conditions": done})),
    ];
    world.list_policies();
    world.list_backups(&[
        point("named", "2026-11-09T02:00:00Z"),
        point("done", "2026-11-10T02:00:00Z"),
        point("chosen", "2026-11-11T02:00:00Z"),
        point("old", "2026-11-12T02:00:00Z"),
        point("new", "2026-11-13T02:00:00Z"),
    ]);
    world.until(|server| server.deletes.len() == 2).await;
    let deletes: Vec<String> =
        world.writes().into_iter().filter(|write| write.starts_with("DELETE")).collect();
    assert_eq!(deletes, ["DELETE backups/done", "DELETE backups/old"]);
}

#[tokio::test]
async fn a_delete_that_fails_is_told_and_keeps_no_slot_from_starting() {
    let mut world = World::new();
    world.server.lock().unwrap().deletes_fail = true;
    world.list_policies();
    world.list_backups(&[point("old", "2026-11-12T02:00:00Z"), point("new", "2026-11-13T02:00:00Z")]);
    world.until(|server| server.events.contains(&"DeletionFailed".to_owned())).await;
    assert_eq!(world.writes(), ["POST backups", "PUT backuppolicies/nightly/status", "DELETE backups/old"]);
    while let Some(done) = world.scheduler.tasks.join_next().await {
        let (key, result) = done.unwrap();
        world.scheduler.done(key, result);
    }
    // No failure of the policy, which would put off its slots: only a time to try the delete again.
    assert!(world.scheduler.failures.is_empty());
    let again = "2026-11-14T02:01:01Z".parse().unwrap();
    assert!(world.scheduler.due.next_due().is_some_and(|due| due <= again));
}

#[tokio::test]
async fn a_delete_that_hangs_is_given_up_and_keeps_no_slot_from_starting() {
    let mut world = World::new();
    world.server.lock().unwrap().deletes_hang = true;
    Arc::get_mut(&mut world.scheduler.context).unwrap().deletes_bound = Duration::from_millis(20);
    world.list_policies();
    world.list_backups(&[point("old", "2026-11-12T02:00:00Z"), point("new", "2026-11-13T02:00:00Z")]);
    world.until(|server| server.events.contains(&"DeletionFailed".to_owned())).await;
    assert_eq!(world.writes(), ["POST backups", "PUT backuppolicies/nightly/status"]);
}

#[tokio::test]
async fn a_watch_that_ends_is_an_error() {
    let mut world = World::new();
    let (mut policies, mut backups) = world.streams.take().unwrap();
    policies.close();
    let ended = world.scheduler.run(&mut policies, &mut backups, std::future::pending()).await;
    assert!(matches!(ended, Err(SchedulerError::WatchEnded("backuppolicies"))));
}
