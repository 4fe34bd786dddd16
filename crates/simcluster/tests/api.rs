//! The API as the controllers meet it through the real client.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::time::Duration;

use common::{api_only, create, dynamic, end, eventually};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace};
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, PropagationPolicy,
    WatchEvent, WatchParams,
};
use kube::{Error, ResourceExt};
use serde_json::{Value, json};
use stillpoint_simcluster::{Fault, FaultAction, SimCluster, SimOptions};

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "0"}})
}

fn maps(cluster: &SimCluster) -> Api<ConfigMap> {
    Api::namespaced(cluster.client(), "default")
}

fn refusal(error: Error) -> (u16, String, String) {
    match error {
        Error::Api(status) => (status.code, status.reason.clone(), status.message.clone()),
        other => panic!("not a refusal: {other:?}"),
    }
}

fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.dev"},
        "spec": {
            "group": "example.dev", "scope": "Namespaced",
            "names": {"kind": "Widget", "plural": "widgets", "singular": "widget", "shortNames": ["wd"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {
                    "type": "object", "required": ["spec"],
                    "properties": {
                        "spec": {
                            "type": "object", "required": ["size"],
                            "properties": {
                                "size": {"type": "integer", "minimum": 1},
                                "mode": {"type": "string", "enum": ["A", "B"], "default": "A"},
                                "nested": {"type": "object", "properties": {"x": {"type": "string"}}},
                                "free": {"type": "object", "additionalProperties": {"type": "string"}},
                            },
                        },
                        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    },
                }},
            }],
        },
    })
}

async fn widgets(cluster: &SimCluster) -> Api<DynamicObject> {
    let api = "apiextensions.k8s.io/v1";
    let resource = kube::core::ApiResource::from_gvk_with_plural(
        &kube::api::GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
        "customresourcedefinitions",
    );
    let definitions: Api<DynamicObject> = Api::all_with(cluster.client(), &resource);
    assert_eq!(resource.api_version, api);
    create(&definitions, definition()).await;
    dynamic(cluster, "example.dev/v1", "Widget", "widgets")
}

fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.dev/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

async fn post(cluster: &SimCluster, path: &str, body: &Value) -> Result<Value, Error> {
    let request = http::Request::post(path).header("content-type", "application/json");
    cluster.client().request::<Value>(request.body(body.to_string().into_bytes()).unwrap()).await
}

#[tokio::test]
async fn a_write_on_a_stale_version_is_a_conflict() {
    let cluster = api_only("cas").await;
    let api = maps(&cluster);
    let first = create(&api, config_map("a")).await;
    let mut second = first.clone();
    second.data.as_mut().unwrap().insert("k".into(), "1".into());
    api.replace("a", &PostParams::default(), &second).await.unwrap();
    let (code, reason, message) =
        refusal(api.replace("a", &PostParams::default(), &first).await.unwrap_err());
    assert_eq!((code, reason.as_str()), (409, "Conflict"));
    assert!(message.contains("the object has been modified"), "{message}");
    let stale = json!({"metadata": {"resourceVersion": first.resource_version()}, "data": {"k": "2"}});
    let patched = api.patch("a", &PatchParams::default(), &Patch::Merge(stale)).await;
    assert_eq!(refusal(patched.unwrap_err()).0, 409);
    let again = api.create(&PostParams::default(), &first_without_version(&first)).await;
    assert_eq!(refusal(again.unwrap_err()).1, "AlreadyExists");
    end(cluster).await;
}

fn first_without_version(map: &ConfigMap) -> ConfigMap {
    let mut map = map.clone();
    map.metadata.resource_version = None;
    map
}

#[tokio::test]
async fn an_update_that_changes_nothing_makes_no_version() {
    let cluster = api_only("noop").await;
    let api = maps(&cluster);
    let first = create(&api, config_map("a")).await;
    let same = api.replace("a", &PostParams::default(), &first).await.unwrap();
    assert_eq!(first.resource_version(), same.resource_version());
    end(cluster).await;
}

#[tokio::test]
async fn a_watch_sees_every_change_in_order_and_leaving_the_selection_is_a_deletion() {
    let cluster = api_only("watch").await;
    let api = maps(&cluster);
    let version = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let params = WatchParams::default().labels("app=x").timeout(60);
    let mut events = api.watch(&params, &version).await.unwrap().boxed();
    let mut map = config_map("a");
    create(&api, config_map("other")).await;
    map["metadata"]["labels"] = json!({"app": "x"});
    create(&api, map).await;
    for patch in [json!({"data": {"k": "1"}}), json!({"metadata": {"labels": {"app": "y"}}})] {
        api.patch("a", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let event =
            tokio::time::timeout(common::DEADLINE, events.try_next()).await.unwrap().unwrap().unwrap();
        match event {
            WatchEvent::Added(map) => seen.push(("added", map.name_any())),
            WatchEvent::Modified(map) => seen.push(("modified", map.name_any())),
            WatchEvent::Deleted(map) => seen.push(("deleted", map.name_any())),
            WatchEvent::Bookmark(_) | WatchEvent::Error(_) => {}
        }
    }
    assert_eq!(seen, [("added", "a".into()), ("modified", "a".into()), ("deleted", "a".into())]);
    end(cluster).await;
}

#[tokio::test]
async fn a_watch_from_a_forgotten_version_is_expired() {
    let cluster = api_only("gone").await;
    let api = maps(&cluster);
    let first = create(&api, config_map("a")).await;
    create(&api, config_map("b")).await;
    cluster.forget_history();
    let mut events =
        api.watch(&WatchParams::default(), &first.resource_version().unwrap()).await.unwrap().boxed();
    match events.try_next().await {
        Ok(Some(WatchEvent::Error(status))) => {
            assert_eq!((status.code, status.reason.as_str()), (410, "Expired"))
        }
        other => panic!("{other:?}"),
    }
    end(cluster).await;
}

#[tokio::test]
async fn a_quiet_watch_gets_bookmarks_and_a_streaming_list_an_end_mark() {
    let root = common::fresh_root("bookmarks");
    let options = SimOptions { bookmarks: Duration::from_millis(50), ..SimOptions::api_only(root) };
    let cluster = SimCluster::start(options).await.unwrap();
    let api = maps(&cluster);
    create(&api, config_map("a")).await;
    let params = WatchParams::default().initial_events().timeout(60);
    let mut events = api.watch(&params, "0").await.unwrap().boxed();
    let mut marks = 0;
    let mut added = 0;
    while marks < 2 {
        match tokio::time::timeout(common::DEADLINE, events.try_next()).await.unwrap().unwrap().unwrap() {
            WatchEvent::Added(_) => added += 1,
            WatchEvent::Bookmark(mark) if marks == 0 => {
                assert_eq!(mark.metadata.annotations["k8s.io/initial-events-end"], "true");
                assert_eq!(added, 1, "the mark follows the objects");
                marks += 1;
            }
            WatchEvent::Bookmark(mark) => {
                assert!(!mark.metadata.resource_version.is_empty());
                marks += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    end(cluster).await;
}

#[tokio::test]
async fn the_reflector_of_kube_survives_a_compaction() {
    use kube::runtime::{WatchStreamExt, reflector, watcher};
    let cluster = api_only("reflector").await;
    let api = maps(&cluster);
    let (store, writer) = reflector::store();
    let stream = watcher(api.clone(), watcher::Config::default().timeout(1)).default_backoff();
    let follow = tokio::spawn(reflector(writer, stream).for_each(|_| futures::future::ready(())));
    store.wait_until_ready().await.unwrap();
    for round in 0..3 {
        create(&api, config_map(&format!("m{round}"))).await;
        cluster.forget_history();
        eventually("the reflector follows", async || (store.state().len() == round + 1).then_some(())).await;
    }
    follow.abort();
    end(cluster).await;
}

#[tokio::test]
async fn pages_of_a_list_cover_everything_once() {
    let cluster = api_only("pages").await;
    let api = maps(&cluster);
    for at in 0..7 {
        create(&api, config_map(&format!("m{at}"))).await;
    }
    let (mut names, mut token) = (Vec::new(), None);
    loop {
        let mut params = ListParams::default().limit(3);
        params.continue_token = token;
        let page = api.list(&params).await.unwrap();
        names.extend(page.items.iter().map(ResourceExt::name_any));
        token = page.metadata.continue_.filter(|token| !token.is_empty());
        if token.is_none() {
            break;
        }
    }
    assert_eq!(names, (0..7).map(|at| format!("m{at}")).collect::<Vec<_>>());
    end(cluster).await;
}

#[tokio::test]
async fn status_is_written_by_its_own_path_only_and_only_spec_makes_a_generation() {
    let cluster = api_only("status").await;
    let api = widgets(&cluster).await;
    let mut object = widget("a", json!({"size": 1}));
    object["status"] = json!({"phase": "Forged"});
    let made = create(&api, object).await;
    assert!(made.data.get("status").is_none(), "status of a new object is dropped");
    assert_eq!(made.data["spec"]["mode"], "A", "defaults are filled in");
    assert_eq!(made.metadata.generation, Some(1));
    let patch = Patch::Merge(json!({"status": {"phase": "Ready"}, "spec": {"size": 9}}));
    let written = api.patch_status("a", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(
        (&written.data["status"]["phase"], &written.data["spec"]["size"]),
        (&json!("Ready"), &json!(1))
    );
    assert_eq!(written.metadata.generation, Some(1));
    let patch = Patch::Merge(json!({"status": {"phase": "Lost"}, "spec": {"size": 2}}));
    let written = api.patch("a", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(
        (&written.data["status"]["phase"], &written.data["spec"]["size"]),
        (&json!("Ready"), &json!(2))
    );
    assert_eq!(written.metadata.generation, Some(2));
    end(cluster).await;
}

#[tokio::test]
async fn unknown_fields_are_refused_when_strict_and_pruned_otherwise() {
    let cluster = api_only("strict").await;
    let api = widgets(&cluster).await;
    let path = "/apis/example.dev/v1/namespaces/default/widgets";
    let typo = widget("a", json!({"size": 1, "sizee": 2, "nested": {"y": "1"}, "free": {"any": "x"}}));
    let refused = post(&cluster, &format!("{path}?fieldValidation=Strict"), &typo).await.unwrap_err();
    let (code, reason, message) = refusal(refused);
    assert_eq!((code, reason.as_str()), (400, "BadRequest"));
    assert_eq!(
        message,
        "Widget in version \"v1\" cannot be handled as a Widget: strict decoding error: unknown field \"spec.nested.y\", unknown field \"spec.sizee\""
    );
    let made = create(&api, typo).await;
    assert_eq!(made.data["spec"], json!({"size": 1, "mode": "A", "nested": {}, "free": {"any": "x"}}));
    for (spec, said) in [
        (json!({}), "spec.size: Required value"),
        (json!({"size": 0}), "outside minimum"),
        (json!({"size": "1"}), "must be of type integer"),
        (json!({"size": 1, "mode": "C"}), "Unsupported value"),
    ] {
        let (code, reason, message) = refusal(post(&cluster, path, &widget("b", spec)).await.unwrap_err());
        assert_eq!((code, reason.as_str()), (422, "Invalid"));
        assert!(message.contains(said), "{message}");
    }
    end(cluster).await;
}

#[tokio::test]
async fn a_dry_run_validates_and_stores_nothing() {
    let cluster = api_only("dryrun").await;
    let api = maps(&cluster);
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let answer = api.create(&dry, &serde_json::from_value(config_map("a")).unwrap()).await.unwrap();
    assert!(answer.uid().is_some());
    assert!(api.get_opt("a").await.unwrap().is_none());
    create(&api, config_map("a")).await;
    let again = api.create(&dry, &serde_json::from_value(config_map("a")).unwrap()).await.unwrap_err();
    assert_eq!(refusal(again).1, "AlreadyExists");
    end(cluster).await;
}

#[tokio::test]
async fn an_apply_makes_what_is_missing_and_merges_what_is_there() {
    let cluster = api_only("apply").await;
    let api = maps(&cluster);
    let params = PatchParams::apply("tests").force();
    let made = api.patch("a", &params, &Patch::Apply(config_map("a"))).await.unwrap();
    let mut more = config_map("a");
    more["data"] = json!({"l": "1"});
    let merged = api.patch("a", &params, &Patch::Apply(more)).await.unwrap();
    assert_eq!(made.uid(), merged.uid());
    assert_eq!(merged.data.unwrap().len(), 2);
    end(cluster).await;
}

#[tokio::test]
async fn an_object_with_finalizers_stays_until_the_last_one_is_taken_away() {
    let cluster = api_only("finalizers").await;
    let api = maps(&cluster);
    let mut map = config_map("a");
    map["metadata"]["finalizers"] = json!(["example.dev/hold"]);
    create(&api, map).await;
    api.delete("a", &DeleteParams::default()).await.unwrap();
    let waiting = api.get("a").await.unwrap();
    assert!(waiting.metadata.deletion_timestamp.is_some());
    let more = Patch::Merge(json!({"metadata": {"finalizers": ["example.dev/hold", "example.dev/more"]}}));
    assert_eq!(refusal(api.patch("a", &PatchParams::default(), &more).await.unwrap_err()).0, 422);
    let none = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    api.patch("a", &PatchParams::default(), &none).await.unwrap();
    assert!(api.get_opt("a").await.unwrap().is_none());
    end(cluster).await;
}

#[tokio::test]
async fn dependents_go_with_their_last_owner_and_stay_when_orphaned() {
    let cluster = api_only("owners").await;
    let api = maps(&cluster);
    let owner = |map: &ConfigMap| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": map.name_any(), "uid": map.uid().unwrap()});
    let (a, b) = (create(&api, config_map("a")).await, create(&api, config_map("b")).await);
    for (name, owners) in [("of-a", vec![owner(&a)]), ("of-both", vec![owner(&a), owner(&b)])] {
        let mut map = config_map(name);
        map["metadata"]["ownerReferences"] = json!(owners);
        create(&api, map).await;
    }
    api.delete("a", &DeleteParams::default()).await.unwrap();
    eventually("the dependent is collected", async || {
        api.get_opt("of-a").await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(api.get_opt("of-both").await.unwrap().is_some(), "one owner is left");
    let orphan =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
    api.delete("b", &orphan).await.unwrap();
    let mut late = config_map("late");
    late["metadata"]["ownerReferences"] = json!([owner(&a)]);
    create(&api, late).await;
    eventually("an object whose owner is gone is collected", async || {
        api.get_opt("late").await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(api.get_opt("of-both").await.unwrap().is_some(), "orphaned on request");
    end(cluster).await;
}

#[tokio::test]
async fn a_namespace_takes_its_content_with_it() {
    let cluster = api_only("namespace").await;
    let spaces: Api<Namespace> = Api::all(cluster.client());
    create(&spaces, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})).await;
    let api: Api<ConfigMap> = Api::namespaced(cluster.client(), "shop");
    create(&api, config_map("a")).await;
    spaces.delete("shop", &DeleteParams::default()).await.unwrap();
    eventually("the namespace goes", async || spaces.get_opt("shop").await.unwrap().is_none().then_some(()))
        .await;
    assert!(api.get_opt("a").await.unwrap().is_none());
    let refused = api.create(&PostParams::default(), &serde_json::from_value(config_map("b")).unwrap()).await;
    assert_eq!(refusal(refused.unwrap_err()).0, 404);
    end(cluster).await;
}

#[tokio::test]
async fn both_event_apis_show_the_same_events() {
    let cluster = api_only("events").await;
    let about = json!({"kind": "ConfigMap", "name": "a", "namespace": "default"});
    let event = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "regarding": about,
        "note": "said", "reason": "R", "type": "Normal", "action": "A", "reportingController": "c",
        "reportingInstance": "i", "eventTime": "2026-01-01T00:00:00.000000Z",
    });
    post(&cluster, "/apis/events.k8s.io/v1/namespaces/default/events", &event).await.unwrap();
    let events: Api<Event> = Api::namespaced(cluster.client(), "default");
    let listed = events.list(&ListParams::default().fields("involvedObject.name=a")).await.unwrap();
    assert_eq!(listed.items[0].message.as_deref(), Some("said"));
    end(cluster).await;
}

#[tokio::test]
async fn faults_hit_before_after_or_instead_of_the_request() {
    let cluster = api_only("faults").await;
    let api = maps(&cluster);
    let make = async |name: &str| {
        api.create(&PostParams::default(), &serde_json::from_value(config_map(name)).unwrap()).await
    };
    cluster.faults().inject(Fault::new("create", "configmaps", FaultAction::Status(429)));
    assert_eq!(refusal(make("a").await.unwrap_err()).0, 429);
    assert!(api.get_opt("a").await.unwrap().is_none());
    cluster.faults().inject(Fault::new("create", "configmaps", FaultAction::LoseResponse));
    assert!(!matches!(make("b").await.unwrap_err(), Error::Api(_)), "no answer came");
    assert!(api.get_opt("b").await.unwrap().is_some(), "and yet it was carried out");
    cluster.faults().inject(Fault::new("*", "configmaps", FaultAction::Close));
    assert!(make("c").await.is_err());
    assert!(api.get_opt("c").await.unwrap().is_none());
    assert_eq!(cluster.faults().hits(), 3);
    make("d").await.unwrap();
    end(cluster).await;
}

#[tokio::test]
async fn discovery_and_review_answer_and_a_wrong_token_does_not() {
    let cluster = api_only("discovery").await;
    widgets(&cluster).await;
    let discovery = kube::discovery::Discovery::new(cluster.client()).run().await.unwrap();
    assert!(discovery.groups().any(|group| group.name() == "example.dev"));
    let review =
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(post(&cluster, path, &review).await.unwrap()["status"]["allowed"], true);
    let file = kube::config::Kubeconfig::from_yaml(&cluster.kubeconfig_yaml()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await.unwrap();
    let other: Api<ConfigMap> = Api::default_namespaced(kube::Client::try_from(config).unwrap());
    assert!(other.list(&ListParams::default()).await.is_ok());
    let mut config = cluster.kube_config();
    config.auth_info.token = Some("wrong".to_owned().into());
    let stranger: Api<ConfigMap> = Api::namespaced(kube::Client::try_from(config).unwrap(), "default");
    assert_eq!(refusal(stranger.list(&ListParams::default()).await.unwrap_err()).0, 401);
    let metadata = maps(&cluster).list_metadata(&ListParams::default()).await.unwrap();
    assert!(metadata.items.is_empty());
    end(cluster).await;
}

#[tokio::test]
async fn thousands_of_objects_are_made_listed_and_watched() {
    const COUNT: usize = 2_000;
    let cluster = api_only("scale").await;
    let api = maps(&cluster);
    let version = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let events = api.watch(&WatchParams::default().timeout(60), &version).await.unwrap().boxed();
    let make = async |at: usize| create(&api, config_map(&format!("m{at}"))).await;
    futures::stream::iter(0..COUNT).map(make).buffer_unordered(32).count().await;
    assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), COUNT);
    let seen = tokio::time::timeout(common::DEADLINE, events.take(COUNT).count()).await.unwrap();
    assert_eq!(seen, COUNT);
    end(cluster).await;
}
