//! The CustomResourceDefinitions, rendered from the types and finished so that a real API server takes them.
//!
//! The files under `config/crd` are exactly what [`yaml`] renders; a test compares them. Three things are done on top
//! of what the derive gives: every string, list and map is bounded (an unbounded one makes CEL rules too expensive
//! to be installed), unsigned formats that the API server does not know become minimums, and `nullable` goes: an
//! explicit `null` is then dropped before it is stored, so nothing downstream ever meets one.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use crate::{Backup, BackupPolicy, ClusterHookTemplate, HookTemplate, ProtectionRule, Restore};

/// Bound of strings of Kubernetes' own types, where those have none (a condition's message is the longest).
const EMBEDDED_MAX_LENGTH: i64 = 32_768;
/// Bound of keys, operators and values of Kubernetes' own types: a qualified label key is 253 + 1 + 63.
const EMBEDDED_SHORT_LENGTH: i64 = 317;
/// Bound of lists of Kubernetes' own types (expressions and values of a selector).
const EMBEDDED_MAX_ITEMS: i64 = 32;
/// Bound of maps of Kubernetes' own types (labels of a selector).
const EMBEDDED_MAX_PROPERTIES: i64 = 32;

/// All definitions, in the order of docs/api.md.
pub fn all() -> Vec<CustomResourceDefinition> {
    [
        BackupPolicy::crd(),
        Backup::crd(),
        Restore::crd(),
        HookTemplate::crd(),
        ClusterHookTemplate::crd(),
        ProtectionRule::crd(),
    ]
    .into_iter()
    .map(finished)
    .collect()
}

/// Name of the file of a definition under `config/crd`: the plural of its kind.
pub fn file_name(crd: &CustomResourceDefinition) -> String {
    format!("{}.yaml", crd.spec.names.plural)
}

/// A definition as YAML, with a header that says where it comes from.
///
/// # Errors
/// When the definition cannot be serialised; the types of this crate always can.
pub fn yaml(crd: &CustomResourceDefinition) -> Result<String, serde_yaml::Error> {
    Ok(format!(
        "# {}: rendered from the types in crates/api by `stillpoint crd`. Change the types, then run\n\
         # `UPDATE=1 cargo test -p stillpoint-api --test config`; a test compares this file with them.\n{}",
        crd.spec.names.kind,
        serde_yaml::to_string(crd)?
    ))
}

/// The schema of a kind's newest version, if it is one of ours.
pub fn schema(kind: &str) -> Option<JSONSchemaProps> {
    let crd = all().into_iter().find(|crd| crd.spec.names.kind == kind)?;
    crd.spec.versions.into_iter().next()?.schema?.open_api_v3_schema
}

fn finished(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    crd.metadata.labels =
        Some([("app.kubernetes.io/part-of".to_owned(), "stillpoint".to_owned())].into_iter().collect());
    for version in &mut crd.spec.versions {
        let Some(root) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) else {
            continue;
        };
        if let Some(spec) = root.properties.as_ref().and_then(|properties| properties.get("spec")) {
            root.description = spec.description.clone();
        }
        root.title = None;
        finish(root);
    }
    crd
}

fn finish(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    // A link of the API documentation means nothing in `kubectl explain`.
    if let Some(description) = schema.description.as_mut() {
        *description = description.replace("[`", "`").replace("`]", "`");
    }
    // `null` in an enum is how an optional enum comes out of the derive.
    if let Some(values) = schema.enum_.as_mut() {
        values.retain(|value| !value.0.is_null());
    }
    if schema.format.as_deref().is_some_and(|format| format.starts_with("uint")) {
        schema.format = Some("int64".to_owned());
        schema.minimum = Some(schema.minimum.unwrap_or(0.0).max(0.0));
    }
    match schema.type_.as_deref() {
        Some("string") if schema.enum_.is_none() && schema.format.is_none() => {
            let embedded = if schema.pattern.is_none() && schema.description.is_some() {
                EMBEDDED_MAX_LENGTH
            } else {
                EMBEDDED_SHORT_LENGTH
            };
            schema.max_length.get_or_insert(embedded);
        }
        Some("array") => {
            schema.max_items.get_or_insert(EMBEDDED_MAX_ITEMS);
        }
        Some("object") if schema.additional_properties.is_some() => {
            schema.max_properties.get_or_insert(EMBEDDED_MAX_PROPERTIES);
        }
        _ => {}
    }
    // A union: exactly one of its members (the derive's oneOf), said in a way that `kubectl explain` shows too.
    if schema.one_of.as_ref().is_some_and(|branches| branches.iter().all(|branch| branch.required.is_some()))
    {
        schema.min_properties = Some(1);
        schema.max_properties = Some(1);
    }
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        finish(property);
    }
    match schema.items.as_mut() {
        Some(JSONSchemaPropsOrArray::Schema(items)) => finish(items),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(finish),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = schema.additional_properties.as_mut() {
        finish(values);
    }
}
