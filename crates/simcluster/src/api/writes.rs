//! The verbs that change objects: create, update, patch, delete. Each ends in one call of the store.

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{Api, check_type, deletion, outward, parse, present, validation, warn};
use crate::admission;
use crate::error::ApiError;
use crate::http::{Body, Call, json as respond};
use crate::patch;
use crate::resources::Resource;
use crate::schema;
use crate::store::{Deleted, Deletion, Half};

impl Api {
    pub(super) fn create(
        &self,
        resource: &Resource,
        namespace: &str,
        mut object: Value,
        call: &Call,
    ) -> Result<Response<Body>, ApiError> {
        check_type(resource, &object)?;
        if resource.is_event_alias() {
            admission::event_to_core(&mut object);
        }
        let elsewhere = object["metadata"]["namespace"].as_str().unwrap_or_default();
        if !elsewhere.is_empty() && elsewhere != namespace {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        admission::complete(resource, &mut object);
        let pruned = schema::admit(resource, &mut object, validation(call))?;
        let dry_run = call.param("dryRun") == "All";
        let created = self.store.create(resource, namespace, object, dry_run)?;
        if resource.plural == "customresourcedefinitions" && !dry_run {
            self.serve_definition(resource, &created)?;
        }
        Ok(warn(present(resource, call, StatusCode::CREATED, &created), &pruned))
    }

    fn serve_definition(&self, resource: &Resource, crd: &Value) -> Result<(), ApiError> {
        let name = crd["metadata"]["name"].as_str().unwrap_or_default();
        if let Err(error) = self.store.registry.register(crd) {
            let _ = self.store.delete(resource, "", name, &Deletion::default());
            return Err(error);
        }
        let now = self.store.now();
        let condition = |kind: &str, reason: &str| json!({"type": kind, "status": "True", "reason": reason, "message": "", "lastTransitionTime": now});
        self.store.update(resource, ("", name), Half::Both, false, |crd| {
            crd["status"] = json!({
                "conditions": [condition("NamesAccepted", "NoConflicts"), condition("Established", "InitialNamesAccepted")],
                "acceptedNames": crd["spec"]["names"],
                "storedVersions": crd["spec"]["versions"].as_array().into_iter().flatten()
                    .filter(|version| version["storage"] == true).map(|version| version["name"].clone()).collect::<Vec<_>>(),
            });
            Ok(())
        })?;
        Ok(())
    }

    pub(super) fn replace(
        &self,
        resource: &Resource,
        (namespace, name): (&str, &str),
        half: Half,
        call: &Call,
    ) -> Result<Response<Body>, ApiError> {
        let mut object = parse(call)?;
        check_type(resource, &object)?;
        if resource.is_event_alias() {
            admission::event_to_core(&mut object);
        }
        let named = object["metadata"]["name"].as_str().unwrap_or_default();
        if !named.is_empty() && named != name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({named}) does not match the name on the URL ({name})"
            )));
        }
        if resource.custom && object["metadata"]["resourceVersion"].as_str().is_none_or(str::is_empty) {
            let why = "Invalid value: 0x0: must be specified for an update".to_owned();
            return Err(ApiError::invalid(resource, name, &[("metadata.resourceVersion".into(), why)]));
        }
        self.write(resource, (namespace, name), half, call, |stored| {
            *stored = object;
            Ok(())
        })
    }

    pub(super) fn patch(
        &self,
        resource: &Resource,
        (namespace, name): (&str, &str),
        half: Half,
        call: &Call,
    ) -> Result<Response<Body>, ApiError> {
        let kind = call.header("content-type").split(';').next().unwrap_or_default().trim().to_owned();
        let mut body = parse(call)?;
        if resource.is_event_alias() {
            admission::event_to_core(&mut body);
        }
        match kind.as_str() {
            "application/json-patch+json" => {
                self.write(resource, (namespace, name), half, call, |stored| patch::json_patch(stored, &body))
            }
            "application/merge-patch+json" | "application/strategic-merge-patch+json" => {
                self.write(resource, (namespace, name), half, call, |stored| {
                    patch::merge(stored, &body);
                    Ok(())
                })
            }
            "application/apply-patch+yaml" => {
                check_type(resource, &body)?;
                if call.param("fieldManager").is_empty() {
                    return Err(ApiError::bad_request(
                        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
                    ));
                }
                if half == Half::Main && self.store.find(&resource.table(), namespace, name).is_none() {
                    body["metadata"]["name"] = json!(name);
                    return self.create(resource, namespace, body, call);
                }
                self.write(resource, (namespace, name), half, call, |stored| {
                    patch::merge(stored, &body);
                    Ok(())
                })
            }
            other => Err(ApiError::new(
                415,
                "UnsupportedMediaType",
                format!("the body of the request was in an unknown format: {other:?}"),
            )),
        }
    }

    /// The common end of PUT and PATCH: schema, compare-and-swap, store.
    fn write(
        &self,
        resource: &Resource,
        place: (&str, &str),
        half: Half,
        call: &Call,
        change: impl FnOnce(&mut Value) -> Result<(), ApiError>,
    ) -> Result<Response<Body>, ApiError> {
        let mut pruned = Vec::new();
        let dry_run = call.param("dryRun") == "All";
        let stored = self.store.update(resource, place, half, dry_run, |object| {
            change(object)?;
            pruned = schema::admit(resource, object, validation(call))?;
            Ok(())
        })?;
        if resource.plural == "customresourcedefinitions" && !dry_run {
            self.store.registry.register(&stored)?;
        }
        Ok(warn(present(resource, call, StatusCode::OK, &stored), &pruned))
    }

    pub(super) fn delete(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        call: &Call,
    ) -> Result<Response<Body>, ApiError> {
        let how = deletion(call)?;
        let outcome = self.store.delete(resource, namespace, name, &how)?;
        if resource.plural == "customresourcedefinitions" && !how.dry_run {
            self.store.registry.unregister(name);
        }
        match outcome {
            Deleted::Waiting(object) => Ok(present(resource, call, StatusCode::OK, &object)),
            Deleted::Gone(object) => {
                let details = json!({
                    "name": name, "group": resource.group, "kind": resource.plural, "uid": object["metadata"]["uid"],
                });
                let status = json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
                });
                Ok(respond(StatusCode::OK, &status))
            }
        }
    }

    pub(super) fn delete_collection(
        &self,
        resource: &Resource,
        namespace: Option<String>,
        call: &Call,
    ) -> Result<Response<Body>, ApiError> {
        let how = deletion(call)?;
        let scope = Self::scope(resource, namespace, None, call)?;
        let page = self.store.list(&resource.table(), &scope, 0, "")?;
        for object in &page.items {
            let object = object.value();
            let meta = &object["metadata"];
            let place =
                (meta["namespace"].as_str().unwrap_or_default(), meta["name"].as_str().unwrap_or_default());
            let _ = self.store.delete(resource, place.0, place.1, &how);
        }
        let items: Vec<Value> =
            page.items.iter().map(|item| outward(resource, &item.value(), false)).collect();
        let list = json!({
            "apiVersion": resource.api_version(), "kind": format!("{}List", resource.kind),
            "metadata": {"resourceVersion": self.store.version().to_string()}, "items": items,
        });
        Ok(respond(StatusCode::OK, &list))
    }
}
