//! A document as `lint` meets it: a JSON value of any kind, compared with our definitions before it is typed, so that
//! every unknown, missing or misshapen field is named with its path (a typed parser stops at the first).

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Finding;
use crate::template::Recipe;
use crate::{Backup, BackupPolicy, ClusterHookTemplate, HookTemplate, ProtectionRule, Restore, crd};

/// Everything that is wrong with a document of our group; nothing for documents of other groups.
///
/// Shape first (`UnknownField`, `MissingField`, `WrongType`, `OutOfBounds`, `UnknownValue`, `ExactlyOne`,
/// `InvalidValue`); the rules of the kind only for a document whose shape is right.
pub fn document(document: &Value) -> Vec<Finding> {
    let api_version = document.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default();
    if api_version.is_empty() || kind.is_empty() {
        return vec![Finding::new(
            "kind",
            "MissingField",
            "this is no Kubernetes object: apiVersion and kind are missing",
        )];
    }
    let Some(version) = api_version.strip_prefix("stillpoint.dev/") else { return Vec::new() };
    let Some(schema) = crd::schema(kind).filter(|_| version == "v1alpha1") else {
        return vec![Finding::new(
            "kind",
            "UnknownKind",
            format!(
                "there is no {kind} in {api_version}: the kinds of stillpoint.dev/v1alpha1 are BackupPolicy, Backup, Restore, HookTemplate, ClusterHookTemplate and ProtectionRule"
            ),
        )];
    };
    let mut found = Vec::new();
    for (key, value) in document.as_object().into_iter().flatten() {
        match key.as_str() {
            "apiVersion" | "kind" | "metadata" => {}
            other => match schema.properties.as_ref().and_then(|properties| properties.get(other)) {
                Some(property) => compare(value, property, other.to_owned(), &mut found),
                None => found.push(unknown(other.to_owned(), &schema)),
            },
        }
    }
    if document.get("spec").is_none() {
        found.push(Finding::new("spec", "MissingField", "the object has no spec"));
    }
    if document.pointer("/metadata/name").is_none() && document.pointer("/metadata/generateName").is_none() {
        found.push(Finding::new("metadata.name", "MissingField", "the object has no name"));
    }
    if !found.is_empty() {
        return found;
    }
    match kind {
        "BackupPolicy" => typed::<BackupPolicy>(document, super::policy),
        "Backup" => typed::<Backup>(document, super::backup),
        "Restore" => typed::<Restore>(document, super::restore),
        "ProtectionRule" => typed::<ProtectionRule>(document, super::rule),
        "HookTemplate" => {
            typed::<HookTemplate>(document, |template| of_recipe(&template.spec.0, kind, document))
        }
        "ClusterHookTemplate" => {
            typed::<ClusterHookTemplate>(document, |template| of_recipe(&template.spec.0, kind, document))
        }
        // `crd::schema` knows no other kind.
        _ => Vec::new(),
    }
}

fn of_recipe(recipe: &Recipe, kind: &str, document: &Value) -> Vec<Finding> {
    let name = document.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    super::recipe(recipe, kind, name)
}

fn typed<T: DeserializeOwned>(document: &Value, rules: impl FnOnce(&T) -> Vec<Finding>) -> Vec<Finding> {
    match serde_json::from_value(document.clone()) {
        Ok(object) => rules(&object),
        Err(refused) => vec![Finding::new("spec", "InvalidValue", refused.to_string())],
    }
}

fn unknown(path: String, schema: &JSONSchemaProps) -> Finding {
    let known: Vec<&str> =
        schema.properties.iter().flat_map(|properties| properties.keys()).map(String::as_str).collect();
    Finding::new(path, "UnknownField", format!("there is no such field; known here: {}", known.join(", ")))
}

fn compare(value: &Value, schema: &JSONSchemaProps, path: String, found: &mut Vec<Finding>) {
    // As the API server: an explicit null is dropped, as if the field were not there.
    if value.is_null() {
        return;
    }
    match (schema.type_.as_deref(), value) {
        (Some("object"), Value::Object(map)) => object(map, schema, &path, found),
        (Some("array"), Value::Array(items)) => {
            if let Some(JSONSchemaPropsOrArray::Schema(of)) = &schema.items {
                for (index, item) in items.iter().enumerate() {
                    compare(item, of, format!("{path}[{index}]"), found);
                }
            }
            bounds(items.len(), schema.min_items, schema.max_items, "entries", &path, found);
        }
        (Some("string"), Value::String(text)) => {
            bounds(text.chars().count(), schema.min_length, schema.max_length, "characters", &path, found);
            let allowed: Vec<&str> =
                schema.enum_.iter().flatten().filter_map(|value| value.0.as_str()).collect();
            if !allowed.is_empty() && !allowed.contains(&text.as_str()) {
                found.push(Finding::new(
                    &path,
                    "UnknownValue",
                    format!("{text:?} is not one of {}", allowed.join(", ")),
                ));
            }
        }
        (Some("integer"), Value::Number(number)) if number.is_i64() || number.is_u64() => {
            range(number.as_f64().unwrap_or_default(), schema, &path, found);
        }
        (Some("number"), Value::Number(number)) => {
            range(number.as_f64().unwrap_or_default(), schema, &path, found)
        }
        (Some("boolean"), Value::Bool(_)) | (None, _) => {}
        (Some(expected), other) => {
            let got = match other {
                Value::Null => "null",
                Value::Bool(_) => "a boolean",
                Value::Number(_) => "a number",
                Value::String(_) => "a string",
                Value::Array(_) => "a list",
                Value::Object(_) => "an object",
            };
            found.push(Finding::new(
                path,
                "WrongType",
                format!("this must be of type {expected} and is {got}"),
            ));
        }
    }
}

fn object(
    map: &serde_json::Map<String, Value>,
    schema: &JSONSchemaProps,
    path: &str,
    found: &mut Vec<Finding>,
) {
    let below = |key: &str| format!("{path}.{key}");
    for (key, value) in map {
        let property = schema.properties.as_ref().and_then(|properties| properties.get(key));
        match (property, &schema.additional_properties) {
            (Some(property), _) => compare(value, property, below(key), found),
            (None, Some(JSONSchemaPropsOrBool::Schema(of))) => compare(value, of, below(key), found),
            (None, Some(JSONSchemaPropsOrBool::Bool(true))) => {}
            (None, Some(JSONSchemaPropsOrBool::Bool(false)) | None) => {
                found.push(unknown(below(key), schema))
            }
        }
    }
    for key in schema.required.iter().flatten().filter(|key| map.get(*key).is_none_or(Value::is_null)) {
        found.push(Finding::new(below(key), "MissingField", "this field is required"));
    }
    if let Some(branches) = &schema.one_of {
        let chosen =
            |branch: &&JSONSchemaProps| branch.required.iter().flatten().all(|key| map.contains_key(key));
        if branches.iter().filter(chosen).count() != 1 {
            let names: Vec<&str> = branches
                .iter()
                .flat_map(|branch| branch.required.iter().flatten())
                .map(String::as_str)
                .collect();
            found.push(Finding::new(
                path,
                "ExactlyOne",
                format!("write exactly one of {}", names.join(", ")),
            ));
        }
    } else {
        bounds(map.len(), schema.min_properties, schema.max_properties, "entries", path, found);
    }
}

fn bounds(
    size: usize,
    least: Option<i64>,
    most: Option<i64>,
    of: &str,
    path: &str,
    found: &mut Vec<Finding>,
) {
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    if least.is_some_and(|least| size < least) || most.is_some_and(|most| size > most) {
        let (least, most) = (least.unwrap_or(0), most.unwrap_or(i64::MAX));
        found.push(Finding::new(path, "OutOfBounds", format!("{size} {of}; allowed are {least} to {most}")));
    }
}

fn range(number: f64, schema: &JSONSchemaProps, path: &str, found: &mut Vec<Finding>) {
    if schema.minimum.is_some_and(|least| number < least) || schema.maximum.is_some_and(|most| number > most)
    {
        let bound = |bound: Option<f64>| bound.map_or("any".to_owned(), |bound| bound.to_string());
        found.push(Finding::new(
            path,
            "OutOfBounds",
            format!("{number} is not between {} and {}", bound(schema.minimum), bound(schema.maximum)),
        ));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(spec: Value) -> Vec<(String, &'static str)> {
        let object = json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "BackupPolicy", "metadata": {"name": "p"}, "spec": spec});
        document(&object).into_iter().map(|finding| (finding.path, finding.rule)).collect()
    }

    fn application() -> Value {
        json!({"name": "db", "selector": {"matchLabels": {"app": "db"}}})
    }

    #[test]
    fn every_misshapen_field_is_named_with_its_path() {
        let found = of(json!({
            "shedule": {},
            "suspend": "yes",
            "minContinuity": "Sure",
            "applications": [{"name": "db", "selector": {"matchLabels": {"app": "db"}}, "pod": "One", "order": 1.5}],
            "run": {"maxAttempts": 9}
        }));
        for expected in [
            ("spec.shedule", "UnknownField"),
            ("spec.schedule", "MissingField"),
            ("spec.suspend", "WrongType"),
            ("spec.minContinuity", "UnknownValue"),
            ("spec.applications[0].pod", "UnknownField"),
            ("spec.applications[0].order", "WrongType"),
            ("spec.run.maxAttempts", "OutOfBounds"),
        ] {
            assert!(found.contains(&(expected.0.to_owned(), expected.1)), "{expected:?} in {found:?}");
        }
        assert_eq!(found.len(), 7, "{found:?}");
    }

    #[test]
    fn a_value_that_only_a_type_can_judge_is_refused_too() {
        let found =
            of(json!({"schedule": {"cron": "* * * * *", "jitter": "1d"}, "applications": [application()]}));
        assert_eq!(found, [("spec".to_owned(), "InvalidValue")]);
    }

    #[test]
    fn the_rules_of_the_kind_follow_a_right_shape() {
        let found = of(
            json!({"schedule": {"cron": "* * * * *"}, "ruleRef": {"name": "r"}, "applications": [application()]}),
        );
        assert_eq!(found, [("spec.ruleRef".to_owned(), "RuleRefOfRule")]);
    }

    #[test]
    fn a_union_takes_exactly_one() {
        let restore = |source: Value| {
            let object = json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "Restore", "metadata": {"name": "r"},
                "spec": {"source": source, "target": {"clone": {}}}});
            document(&object).into_iter().map(|finding| finding.rule).collect::<Vec<_>>()
        };
        assert_eq!(restore(json!({"backupRef": {"name": "b"}})), Vec::<&str>::new());
        assert_eq!(restore(json!({})), ["ExactlyOne"]);
        assert_eq!(
            restore(json!({"backupRef": {"name": "b"}, "latest": {"policyRef": {"name": "p"}}})),
            ["ExactlyOne"]
        );
    }

    #[test]
    fn kinds_of_others_are_left_alone_and_unknown_ones_of_ours_are_not() {
        assert_eq!(document(&json!({"apiVersion": "v1", "kind": "Secret"})), []);
        let found = document(&json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "Policy"}));
        assert_eq!(found[0].rule, "UnknownKind");
        assert_eq!(document(&json!({"a": 1}))[0].rule, "MissingField");
    }
}
