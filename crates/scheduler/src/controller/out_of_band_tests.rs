//! Snapshots that somebody else deletes: what is written and told, and what is not mistaken for it.

use kube::api::ObjectMeta;
use stillpoint_api::backup::{BACKUP_UID_LABEL, NAMESPACE_LABEL, POLICY_LABEL};

use super::*;
use crate::controller::out_of_band::News;
use crate::snapshots::Kind;

const SNAPSHOTS: &str = "/apis/snapshot.storage.k8s.io/v1/namespaces/shop/volumesnapshots";
const CONTENTS: &str = "/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents";

fn meta(kind: Kind, name: &str) -> ObjectMeta {
    let labels = [
        (BACKUP_UID_LABEL, format!("uid-{name}")),
        (POLICY_LABEL, "nightly".to_owned()),
        (NAMESPACE_LABEL, "shop".to_owned()),
    ];
    let (prefix, namespace) = match kind {
        Kind::Snapshot => ("snap", Some("shop".to_owned())),
        Kind::Content => ("content", None),
    };
    ObjectMeta {
        name: Some(format!("{prefix}-{name}")),
        namespace,
        uid: Some(format!("uid-{prefix}-{name}")),
        labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
        ..ObjectMeta::default()
    }
}

/// A proven point with one member, whose snapshot and content are on the server.
fn kept(world: &World, name: &str, cut: &str) -> Value {
    let mut point = point(name, cut);
    point["status"]["members"] = json!([{
        "application": "db", "podName": "db-0", "podUID": "p", "claimName": "data", "volumeSnapshot": format!("snap-{name}"),
        "volumeSnapshotUID": format!("uid-snap-{name}"), "content": format!("content-{name}"), "handle": "h",
        "settled": {"readyAt": cut.replace('Z', ".000000Z"), "handle": "h", "bound": true},
    }]);
    let mut server = world.server.lock().unwrap();
    for (kind, folder, of) in
        [("VolumeSnapshot", SNAPSHOTS, Kind::Snapshot), ("VolumeSnapshotContent", CONTENTS, Kind::Content)]
    {
        let metadata = meta(of, name);
        let path = format!("{folder}/{}", metadata.name.clone().unwrap());
        server.put(
            &path,
            json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": kind, "metadata": metadata}),
        );
    }
    point
}

/// A world with the points `old` and `new`, whose snapshots are listed, and the way to tell news about them.
async fn two_points() -> (World, mpsc::UnboundedSender<News>) {
    let mut world = World::new();
    {
        let mut server = world.server.lock().unwrap();
        let mut keeps_all = policy();
        keeps_all["spec"]["retention"] = json!({"last": 5});
        server.put("backuppolicies/nightly", keeps_all);
        server.put(
            "/api/v1/namespaces/shop",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}),
        );
    }
    let old = kept(&world, "old", "2026-11-12T02:00:00Z");
    let new = kept(&world, "new", "2026-11-13T02:00:00Z");
    world.list_policies();
    world.list_backups(&[old, new]);
    let (news, stream) = mpsc::unbounded();
    world.scheduler.out_of_band.news = stream.boxed();
    (world, news)
}

fn list(news: &mpsc::UnboundedSender<News>, kind: Kind, names: &[&str]) {
    news.unbounded_send(News::Listing(kind)).unwrap();
    for name in names {
        news.unbounded_send(News::There(kind, meta(kind, name))).unwrap();
    }
    news.unbounded_send(News::Listed(kind)).unwrap();
}

/// Somebody deletes the snapshot, or the content, of a point.
fn delete(world: &World, news: &mpsc::UnboundedSender<News>, kind: Kind, name: &str) {
    let metadata = meta(kind, name);
    let folder = match kind {
        Kind::Snapshot => SNAPSHOTS,
        Kind::Content => CONTENTS,
    };
    let path = format!("{folder}/{}", metadata.name.clone().unwrap());
    world.server.lock().unwrap().objects.remove(&path).unwrap();
    news.unbounded_send(News::Gone(kind, metadata)).unwrap();
}

/// Shows the Backup as the server has it.
fn show(world: &World, name: &str) {
    let object = world.server.lock().unwrap().objects[&format!("backups/{name}")].clone();
    world.backups.unbounded_send(Ok(Event::Apply(Arc::new(guarded(object))))).unwrap();
}

fn reference(server: &Server) -> Value {
    server.objects["backuppolicies/nightly"]["status"]["rpo"]["reference"].clone()
}

/// Lets every look that was begun come to its end.
async fn looks_end(world: &mut World) {
    while let Some(done) = world.scheduler.out_of_band.looks.join_next().await {
        world.scheduler.looked(done.unwrap());
    }
}

fn marks(world: &World) -> usize {
    world.writes().iter().filter(|write| write.starts_with("PUT backups/")).count()
}

#[tokio::test]
async fn a_deleted_snapshot_is_written_into_its_backup_told_once_and_moves_the_reference_back_at_once() {
    let (mut world, news) = two_points().await;
    for kind in [Kind::Snapshot, Kind::Content] {
        list(&news, kind, &["old", "new"]);
    }
    world.until(|server| reference(server) == "2026-11-13T02:00:00Z").await;
    assert_eq!(marks(&world), 0);

    delete(&world, &news, Kind::Snapshot, "new");
    world.until(|server| server.events.contains(&"SnapshotDeleted".to_owned())).await;
    let backup = world.server.lock().unwrap().objects["backups/new"].clone();
    let condition = &backup["status"]["conditions"][0];
    assert_eq!((&condition["type"], &condition["status"]), (&json!("Ready"), &json!("False")));
    assert_eq!(condition["reason"], "SnapshotDeleted");
    let message = condition["message"].as_str().unwrap();
    assert!(message.contains("VolumeSnapshot snap-new of claim data"), "{message}");
    assert!(message.contains("keeps the data"), "{message}");

    // No slot, no timer: what the watch shows of the Backup is enough.
    show(&world, "new");
    world.until(|server| reference(server) == "2026-11-12T02:00:00Z").await;
    delete(&world, &news, Kind::Content, "new");
    world.until(|server| statuses(server) >= 1).await;
    looks_end(&mut world).await;
    let server = world.server.lock().unwrap();
    let status = &server.objects["backuppolicies/nightly"]["status"];
    assert_eq!(
        (&status["recoveryPoints"]["ready"], &status["recoveryPoints"]["snapshotDeleted"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(server.events.iter().filter(|reason| *reason == "SnapshotDeleted").count(), 1);
    drop(server);
    assert_eq!(marks(&world), 1);
}

#[tokio::test]
async fn a_deleted_content_is_noticed_like_a_deleted_snapshot() {
    let (mut world, news) = two_points().await;
    for kind in [Kind::Snapshot, Kind::Content] {
        list(&news, kind, &["old", "new"]);
    }
    delete(&world, &news, Kind::Content, "old");
    world.until(|server| server.events.contains(&"SnapshotDeleted".to_owned())).await;
    assert!(world.writes().contains(&"PUT backups/old/status".to_owned()));
}

#[tokio::test]
async fn a_snapshot_that_was_deleted_while_no_replica_watched_is_noticed_by_the_first_list() {
    let (mut world, news) = two_points().await;
    world.server.lock().unwrap().objects.remove(&format!("{SNAPSHOTS}/snap-new")).unwrap();
    list(&news, Kind::Snapshot, &["old"]);
    world.until(|server| reference(server) == "2026-11-13T02:00:00Z").await;
    assert_eq!(marks(&world), 0, "the watches may lag");
    let clock = ManualClock::at("2026-11-14T02:00:07Z".parse().unwrap());
    Arc::get_mut(&mut world.scheduler.context).unwrap().clock = Arc::new(clock);
    news.unbounded_send(News::Listing(Kind::Content)).unwrap();
    world.until(|server| server.events.contains(&"SnapshotDeleted".to_owned())).await;
    assert_eq!(marks(&world), 1);
}

/// `change` is made to the server's objects; the watch tells that a snapshot is gone, and it is no news.
async fn no_news(change: impl Fn(&mut Server)) {
    let (mut world, news) = two_points().await;
    for kind in [Kind::Snapshot, Kind::Content] {
        list(&news, kind, &["old", "new"]);
    }
    world.until(|server| reference(server) == "2026-11-13T02:00:00Z").await;
    change(&mut world.server.lock().unwrap());
    world.server.lock().unwrap().reads.clear();
    news.unbounded_send(News::Gone(Kind::Snapshot, meta(Kind::Snapshot, "new"))).unwrap();
    world.until(|server| server.reads.contains(&"backups/new".to_owned())).await;
    looks_end(&mut world).await;
    assert_eq!(marks(&world), 0);
    assert!(!world.server.lock().unwrap().events.contains(&"SnapshotDeleted".to_owned()));
}

fn deleted(server: &mut Server, path: &str) {
    server.objects.get_mut(path).unwrap()["metadata"]["deletionTimestamp"] = json!("2026-11-14T02:00:00Z");
}

#[tokio::test]
async fn a_snapshot_that_goes_with_its_backup_is_no_news_even_where_the_watch_of_backups_lags() {
    no_news(|server| {
        deleted(server, "backups/new");
        server.objects.remove(&format!("{SNAPSHOTS}/snap-new"));
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_that_goes_with_its_namespace_is_no_news() {
    no_news(|server| {
        deleted(server, "/api/v1/namespaces/shop");
        server.objects.remove(&format!("{SNAPSHOTS}/snap-new"));
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_that_only_lost_its_label_is_no_news() {
    no_news(|_| {}).await;
}

#[tokio::test]
async fn a_status_that_changed_meanwhile_is_looked_at_again() {
    let (mut world, news) = two_points().await;
    for kind in [Kind::Snapshot, Kind::Content] {
        list(&news, kind, &["old", "new"]);
    }
    world.until(|server| reference(server) == "2026-11-13T02:00:00Z").await;
    world.server.lock().unwrap().conflicts = 1;
    delete(&world, &news, Kind::Snapshot, "new");
    world.until(|server| server.writes.contains(&"PUT backups/new/status".to_owned())).await;
    looks_end(&mut world).await;
    assert!(world.server.lock().unwrap().objects["backups/new"]["status"]["conditions"].is_null());
    let clock = ManualClock::at("2026-11-14T02:00:12Z".parse().unwrap());
    Arc::get_mut(&mut world.scheduler.context).unwrap().clock = Arc::new(clock);
    world.until(|server| server.events.contains(&"SnapshotDeleted".to_owned())).await;
}
