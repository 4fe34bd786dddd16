//! What a request means: routes, verbs, dry-run, field validation, impersonation. Answers are those of
//! kube-apiserver for what is implemented; everything else is refused with its code and reason.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderValue, Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::admission;
use crate::error::ApiError;
use crate::exec;
use crate::faults::FaultPlan;
use crate::http::{Body, Call, json as respond, json_text, stream, text};
use crate::kubelet::Kubelet;
use crate::resources::Resource;
use crate::schema::FieldValidation;
use crate::selectors::Selectors;
use crate::store::{Deletion, Half, Held, Scope, Store};
use crate::watch::Watch;

mod writes;

/// The account hooks run as; the only one that may be impersonated (docs/authority.md 2).
pub const HOOKS_ACCOUNT: &str = "stillpoint-hooks";

/// One request as it was answered, for tests that ask who did what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// Plural, with the subresource (`backups/status`).
    pub resource: String,
    /// Namespace, empty for cluster scope.
    pub namespace: String,
    /// Name, empty for collections.
    pub name: String,
    /// The impersonated user, when the request named one.
    pub impersonated: Option<String>,
    /// Whether `dryRun=All` was set.
    pub dry_run: bool,
    /// The HTTP status answered.
    pub code: u16,
}

/// How many audit entries are kept; the oldest go first.
const AUDIT_CAPACITY: usize = 20_000;

/// The API.
pub(crate) struct Api {
    pub store: Arc<Store>,
    pub kubelet: Option<Arc<Kubelet>>,
    pub faults: Arc<FaultPlan>,
    pub token: String,
    pub bookmarks: Duration,
    pub audit: Mutex<VecDeque<AuditEntry>>,
}

/// Where a path leads.
struct Target {
    resource: Arc<Resource>,
    namespace: Option<String>,
    name: Option<String>,
    sub: Option<String>,
}

/// Reviews are answered, not stored.
const REVIEWS: [&str; 3] = ["selfsubjectaccessreviews", "subjectaccessreviews", "localsubjectaccessreviews"];

impl Api {
    /// The verb and the resource of a request, as faults and the audit name them.
    pub(crate) fn name(&self, call: &Call) -> (&'static str, String) {
        let Some(target) = self.target(&call.path) else {
            return (verb(call, true), call.path.last().cloned().unwrap_or_default());
        };
        let resource = match &target.sub {
            Some(sub) => format!("{}/{sub}", target.resource.plural),
            None => target.resource.plural.clone(),
        };
        (verb(call, target.name.is_some()), resource)
    }

    pub(crate) async fn answer(&self, call: Call) -> Result<Response<Body>, ApiError> {
        let target = self.target(&call.path);
        let (verb, resource) = self.name(&call);
        let place = |part: fn(&Target) -> Option<&String>| {
            target.as_ref().and_then(part).cloned().unwrap_or_default()
        };
        let impersonated = Some(call.header("impersonate-user")).filter(|user| !user.is_empty());
        let mut entry = AuditEntry {
            verb: verb.to_owned(),
            resource,
            namespace: place(|target| target.namespace.as_ref()),
            name: place(|target| target.name.as_ref()),
            impersonated: impersonated.map(str::to_owned),
            dry_run: call.param("dryRun") == "All",
            code: 0,
        };
        let answer = match target {
            Some(target) => self.resource_request(target, verb, call).await,
            None => self.other_request(&call),
        };
        entry.code = match &answer {
            Ok(response) => response.status().as_u16(),
            Err(error) => error.code,
        };
        let mut audit = self.audit.lock().unwrap_or_else(PoisonError::into_inner);
        if audit.len() == AUDIT_CAPACITY {
            audit.pop_front();
        }
        audit.push_back(entry);
        answer
    }

    fn target(&self, path: &[String]) -> Option<Target> {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let (group, version, rest) = match path.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", space, rest @ ..]
                if !rest.is_empty() && !matches!(rest, ["status"] | ["finalize"]) =>
            {
                (Some((*space).to_owned()), rest)
            }
            rest => (None, rest),
        };
        let (plural, name, sub) = match rest {
            [plural] => (*plural, None, None),
            [plural, name] => (*plural, Some((*name).to_owned()), None),
            [plural, name, sub] => (*plural, Some((*name).to_owned()), Some((*sub).to_owned())),
            _ => return None,
        };
        let resource = self.store.registry.find(group, version, plural)?;
        if !resource.namespaced && namespace.is_some() {
            return None;
        }
        Some(Target { resource, namespace, name, sub })
    }

    /// Everything that is not an object: versions, discovery, reviews, health.
    fn other_request(&self, call: &Call) -> Result<Response<Body>, ApiError> {
        let path: Vec<&str> = call.path.iter().map(String::as_str).collect();
        let registry = &self.store.registry;
        let found = match path.as_slice() {
            ["version"] => json!({
                "major": "1", "minor": "36", "gitVersion": "v1.36.0+simcluster", "gitCommit": "", "gitTreeState": "clean",
                "buildDate": "2026-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": "linux/amd64",
            }),
            ["healthz" | "readyz" | "livez", ..] => return Ok(text(b"ok".to_vec())),
            ["api"] => json!({"kind": "APIVersions", "apiVersion": "v1", "versions": ["v1"]}),
            ["apis"] => registry.groups(),
            ["api", version] => registry.resource_list("", version).ok_or_else(ApiError::no_such_path)?,
            ["apis", group] => {
                let groups = registry.groups();
                let named = |entry: &&Value| entry["name"] == *group;
                let group = groups["groups"].as_array().into_iter().flatten().find(named);
                let mut group = group.cloned().ok_or_else(ApiError::no_such_path)?;
                group["kind"] = json!("APIGroup");
                group["apiVersion"] = json!("v1");
                group
            }
            ["apis", "authorization.k8s.io", "v1", .., review] if REVIEWS.contains(review) => {
                let mut review = parse(call)?;
                review["status"] =
                    json!({"allowed": true, "reason": "the embedded cluster allows everything"});
                return Ok(respond(StatusCode::CREATED, &review));
            }
            ["apis", group, version] => {
                registry.resource_list(group, version).ok_or_else(ApiError::no_such_path)?
            }
            _ => return Err(ApiError::no_such_path()),
        };
        Ok(respond(StatusCode::OK, &found))
    }

    async fn resource_request(
        &self,
        target: Target,
        verb: &str,
        call: Call,
    ) -> Result<Response<Body>, ApiError> {
        let Target { resource, namespace, name, sub } = target;
        let impersonated = call.header("impersonate-user").to_owned();
        let is_exec = resource.table() == "pods" && sub.as_deref() == Some("exec");
        let own_namespace = namespace.clone().unwrap_or_default();
        if !impersonated.is_empty() {
            let hooks = format!("system:serviceaccount:{own_namespace}:{HOOKS_ACCOUNT}");
            if !is_exec || impersonated != hooks {
                return Err(ApiError::forbidden(format!(
                    "users \"{impersonated}\" is forbidden: User \"simcluster\" cannot impersonate it here: only {hooks} on pods/exec"
                )));
            }
            self.hooks_may_exec(&own_namespace, name.as_deref().unwrap_or_default(), &impersonated)?;
        }
        if resource.namespaced && namespace.is_none() && (name.is_some() || verb == "create") {
            return Err(ApiError::bad_request("an empty namespace may not be set"));
        }
        let space = own_namespace.as_str();
        match (name.as_deref(), sub.as_deref()) {
            (None, None) => match verb {
                "list" => self.list(&resource, namespace, &call),
                "watch" => self.watch(resource, namespace, None, &call),
                "create" => self.create(&resource, space, parse(&call)?, &call),
                "deletecollection" => self.delete_collection(&resource, namespace, &call),
                _ => Err(not_allowed()),
            },
            (Some(name), None | Some("status")) => {
                let half = if sub.is_some() { Half::Status } else { Half::Main };
                if sub.is_some() && !resource.status {
                    return Err(ApiError::no_such_path());
                }
                match verb {
                    "get" => Ok(present(
                        &resource,
                        &call,
                        StatusCode::OK,
                        &*self.store.get(&resource, space, name)?,
                    )),
                    "watch" => self.watch(resource, namespace, Some(name), &call),
                    "update" => self.replace(&resource, (space, name), half, &call),
                    "patch" => self.patch(&resource, (space, name), half, &call),
                    "delete" if sub.is_none() => self.delete(&resource, space, name, &call),
                    _ => Err(not_allowed()),
                }
            }
            (Some(name), Some("exec")) if is_exec => {
                let pod = self.store.get(&resource, space, name)?;
                let kubelet = self.kubelet.clone().ok_or_else(|| {
                    ApiError::internal("this embedded cluster runs no pods (SimOptions.kubelet is off)")
                })?;
                exec::upgrade(kubelet, &pod, call)
            }
            (Some(name), Some("log")) if resource.table() == "pods" => {
                let pod = self.store.get(&resource, space, name)?;
                let kubelet = self.kubelet.as_ref().ok_or_else(ApiError::no_such_path)?;
                Ok(text(kubelet.log(&pod, call.param("container"))))
            }
            _ => Err(ApiError::no_such_path()),
        }
    }

    /// The namespace's opt-in: the account and its binding exist (docs/authority.md 1).
    fn hooks_may_exec(&self, namespace: &str, pod: &str, user: &str) -> Result<(), ApiError> {
        let account = self.store.find("serviceaccounts", namespace, HOOKS_ACCOUNT);
        let bound = self.store.all("rolebindings.rbac.authorization.k8s.io").iter().any(|binding| {
            let role = &binding["roleRef"];
            let mut subjects = binding["subjects"].as_array().into_iter().flatten();
            binding["metadata"]["namespace"] == namespace
                && role["kind"] == "ClusterRole"
                && role["name"] == HOOKS_ACCOUNT
                && subjects
                    .any(|subject| subject["kind"] == "ServiceAccount" && subject["name"] == HOOKS_ACCOUNT)
        });
        if account.is_some() && bound {
            return Ok(());
        }
        Err(ApiError::forbidden(format!(
            "pods \"{pod}\" is forbidden: User \"{user}\" cannot get resource \"pods/exec\" in API group \"\" in the namespace \"{namespace}\""
        )))
    }

    fn scope(
        resource: &Resource,
        namespace: Option<String>,
        name: Option<&str>,
        call: &Call,
    ) -> Result<Scope, ApiError> {
        let mut fields = call.param("fieldSelector").to_owned();
        if let Some(name) = name {
            fields = format!("metadata.name={name},{fields}");
        }
        if resource.is_event_alias() {
            fields = fields.replace("regarding.", "involvedObject.");
        }
        Ok(Scope { namespace, selectors: Selectors::parse(call.param("labelSelector"), &fields)? })
    }

    fn list(
        &self,
        resource: &Resource,
        namespace: Option<String>,
        call: &Call,
    ) -> Result<Response<Body>, ApiError> {
        let scope = Self::scope(resource, namespace, None, call)?;
        let limit = call.param("limit").parse().unwrap_or(0);
        let page = self.store.list(&resource.table(), &scope, limit, call.param("continue"))?;
        let metadata_only = wants_metadata(call);
        let mut meta = json!({"resourceVersion": page.version.to_string()});
        if let Some(next) = page.next {
            meta["continue"] = json!(next);
            meta["remainingItemCount"] = json!(page.remaining);
        }
        let (api_version, kind) = if metadata_only {
            ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadataList".to_owned())
        } else {
            (resource.api_version(), format!("{}List", resource.kind))
        };
        let mut body = json!({"apiVersion": api_version, "kind": kind, "metadata": meta}).to_string();
        // The closing brace comes after the items.
        body.pop();
        body.push_str(",\"items\":[");
        for (number, item) in page.items.iter().enumerate() {
            if number > 0 {
                body.push(',');
            }
            match item {
                Held::Text(loaded) if !metadata_only && !resource.is_event_alias() => {
                    body.push_str(&loaded.text)
                }
                Held::Text(_) | Held::Parsed(_) => {
                    body.push_str(&outward(resource, &item.value(), metadata_only).to_string());
                }
            }
        }
        body.push_str("]}");
        Ok(json_text(body))
    }

    fn watch(
        &self,
        resource: Arc<Resource>,
        namespace: Option<String>,
        name: Option<&str>,
        call: &Call,
    ) -> Result<Response<Body>, ApiError> {
        let scope = Self::scope(&resource, namespace, name, call)?;
        let initial = call.flag("sendInitialEvents");
        let from = match call.param("resourceVersion") {
            "" | "0" => None,
            _ if initial => None,
            version => {
                let unreadable =
                    || ApiError::bad_request(format!("Invalid value: resourceVersion {version:?}"));
                Some(version.parse().map_err(|_| unreadable())?)
            }
        };
        let metadata_only = wants_metadata(call);
        let shown = Arc::clone(&resource);
        let watch = Watch {
            resource,
            scope,
            from,
            announce_initial: initial,
            bookmarks: call.flag("allowWatchBookmarks").then_some(self.bookmarks),
            // Without a wish the server ends a watch after 30 to 60 minutes.
            timeout: Duration::from_secs(call.param("timeoutSeconds").parse().unwrap_or(1800)),
            present: Box::new(move |object| outward(&shown, object, metadata_only)),
        };
        let (lines, receiver) = mpsc::channel(64);
        tokio::spawn(watch.run(Arc::clone(&self.store), lines));
        Ok(stream(receiver))
    }
}

fn verb(call: &Call, named: bool) -> &'static str {
    match call.method {
        Method::GET if call.flag("watch") => "watch",
        Method::GET if named => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ => "unknown",
    }
}

fn not_allowed() -> ApiError {
    ApiError::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
}

/// The body: JSON, or YAML for those who apply by hand.
fn parse(call: &Call) -> Result<Value, ApiError> {
    let unreadable = |why: String| ApiError::bad_request(format!("error decoding the body: {why}"));
    if call.header("content-type").contains("yaml") {
        return serde_yaml::from_slice(&call.body).map_err(|error| unreadable(error.to_string()));
    }
    serde_json::from_slice(&call.body).map_err(|error| unreadable(error.to_string()))
}

fn check_type(resource: &Resource, object: &Value) -> Result<(), ApiError> {
    if !object.is_object() {
        return Err(ApiError::bad_request("the body must be a JSON object"));
    }
    let (api, kind) = (&object["apiVersion"], &object["kind"]);
    let wanted = (resource.api_version(), &resource.kind);
    if (!api.is_null() && *api != wanted.0) || (!kind.is_null() && kind != wanted.1) {
        return Err(ApiError::bad_request(format!(
            "the object provided is {api}, Kind={kind}; this path takes {}, Kind={}",
            wanted.0, wanted.1
        )));
    }
    Ok(())
}

fn validation(call: &Call) -> FieldValidation {
    match call.param("fieldValidation") {
        "Strict" => FieldValidation::Strict,
        "Ignore" => FieldValidation::Ignore,
        _ => FieldValidation::Warn,
    }
}

fn deletion(call: &Call) -> Result<Deletion, ApiError> {
    let options = if call.body.is_empty() { json!({}) } else { parse(call)? };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let policy = options["propagationPolicy"].as_str().unwrap_or_else(|| call.param("propagationPolicy"));
    Ok(Deletion {
        grace: options["gracePeriodSeconds"]
            .as_i64()
            .or_else(|| call.param("gracePeriodSeconds").parse().ok()),
        orphan: policy == "Orphan",
        uid: text(&options["preconditions"]["uid"]),
        version: text(&options["preconditions"]["resourceVersion"]),
        dry_run: call.param("dryRun") == "All"
            || options["dryRun"].as_array().is_some_and(|all| !all.is_empty()),
    })
}

fn wants_metadata(call: &Call) -> bool {
    call.header("accept").contains("as=PartialObjectMetadata")
}

/// An object as this resource shows it.
fn outward(resource: &Resource, object: &Value, metadata_only: bool) -> Value {
    if metadata_only {
        return json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"],
        });
    }
    let mut object = object.clone();
    if resource.is_event_alias() {
        admission::event_from_core(&mut object);
    }
    object["apiVersion"] = json!(resource.api_version());
    object["kind"] = json!(resource.kind);
    object
}

fn present(resource: &Resource, call: &Call, code: StatusCode, object: &Value) -> Response<Body> {
    respond(code, &outward(resource, object, wants_metadata(call)))
}

/// Names pruned fields as the server does, in a `Warning` header.
fn warn(mut response: Response<Body>, pruned: &[String]) -> Response<Body> {
    for path in pruned {
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"unknown field \\\"{path}\\\"\"")) {
            response.headers_mut().append("warning", value);
        }
    }
    response
}
