//! Structural schemas of custom resources: defaults, pruning or refusal of unknown fields, and the value checks our
//! CRDs use. CEL rules, `pattern` and `format` are not evaluated (the real cluster's suite covers them).

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::resources::Resource;

/// `fieldValidation` of a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    /// Unknown fields are refused.
    Strict,
    /// Unknown fields are pruned and named in a `Warning` header (the server's default).
    #[default]
    Warn,
    /// Unknown fields are pruned.
    Ignore,
}

/// Makes `object` what the API server would store for `resource`; returns the unknown fields that were pruned.
pub(crate) fn admit(
    resource: &Resource,
    object: &mut Value,
    validation: FieldValidation,
) -> Result<Vec<String>, ApiError> {
    let Some(schema) = &resource.schema else { return Ok(Vec::new()) };
    let mut report = Report::default();
    let Value::Object(fields) = &mut *object else {
        return Err(ApiError::bad_request("the body must be a JSON object"));
    };
    let properties = schema["properties"].as_object();
    let preserve = schema["x-kubernetes-preserve-unknown-fields"] == Value::Bool(true);
    let envelope = ["apiVersion", "kind", "metadata"];
    let mut unknown = Vec::new();
    for (key, value) in fields.iter_mut().filter(|(key, _)| !envelope.contains(&key.as_str())) {
        match properties.and_then(|properties| properties.get(key)) {
            Some(schema) => report.walk(schema, value, key),
            None if !preserve => unknown.push(key.clone()),
            None => {}
        }
    }
    fields.retain(|key, _| !unknown.contains(key));
    for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(required) {
            report.invalid.push((required.to_owned(), "Required value".to_owned()));
        }
    }
    report.unknown.splice(0..0, unknown);
    if validation == FieldValidation::Strict && !report.unknown.is_empty() {
        let list: Vec<String> = report.unknown.iter().map(|path| format!("unknown field {path:?}")).collect();
        let (kind, version) = (&resource.kind, &resource.version);
        return Err(ApiError::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: strict decoding error: {}",
            list.join(", ")
        )));
    }
    if !report.invalid.is_empty() {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        return Err(ApiError::invalid(resource, &name, &report.invalid));
    }
    Ok(report.unknown)
}

#[derive(Default)]
struct Report {
    unknown: Vec<String>,
    invalid: Vec<(String, String)>,
}

impl Report {
    fn refuse(&mut self, path: &str, why: String) {
        self.invalid.push((path.to_owned(), why));
    }

    fn walk(&mut self, schema: &Value, value: &mut Value, path: &str) {
        if value.is_null() && schema["nullable"] == Value::Bool(true) {
            return;
        }
        if !has_type(schema, value) {
            let wanted = schema["type"].as_str().unwrap_or("value");
            let why = format!("Invalid value: {}: {path} in body must be of type {wanted}", type_of(value));
            return self.refuse(path, why);
        }
        self.check_value(schema, value, path);
        match value {
            Value::Object(fields) => self.walk_object(schema, fields, path),
            Value::Array(items) => {
                if let Some(item_schema) = schema.get("items") {
                    for (at, item) in items.iter_mut().enumerate() {
                        self.walk(item_schema, item, &format!("{path}[{at}]"));
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn walk_object(&mut self, schema: &Value, fields: &mut Map<String, Value>, path: &str) {
        let properties = schema["properties"].as_object();
        let preserve = schema["x-kubernetes-preserve-unknown-fields"] == Value::Bool(true);
        let embedded = schema["x-kubernetes-embedded-resource"] == Value::Bool(true);
        let additional = schema.get("additionalProperties");
        if let Some(properties) = properties {
            for (key, property) in properties {
                // A null of a field that is not nullable counts as absent, then the default applies.
                if fields.get(key).is_some_and(Value::is_null) && property["nullable"] != Value::Bool(true) {
                    fields.remove(key);
                }
                if let (false, Some(default)) = (fields.contains_key(key), property.get("default")) {
                    fields.insert(key.clone(), default.clone());
                }
            }
        }
        let mut unknown = Vec::new();
        for (key, value) in fields.iter_mut() {
            let at = format!("{path}.{key}");
            match (properties.and_then(|properties| properties.get(key)), additional) {
                (Some(property), _) => self.walk(property, value, &at),
                (None, Some(schema @ Value::Object(_))) => self.walk(schema, value, &at),
                (None, Some(Value::Bool(true))) => {}
                (None, _) if preserve => {}
                (None, _) if embedded && ["apiVersion", "kind", "metadata"].contains(&key.as_str()) => {}
                (None, _) => unknown.push(key.clone()),
            }
        }
        self.unknown.extend(unknown.iter().map(|key| format!("{path}.{key}")));
        fields.retain(|key, _| !unknown.contains(key));
        for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !fields.contains_key(required) {
                self.refuse(&format!("{path}.{required}"), "Required value".to_owned());
            }
        }
    }

    fn check_value(&mut self, schema: &Value, value: &Value, path: &str) {
        if let Some(allowed) = schema["enum"].as_array()
            && !allowed.contains(value)
        {
            let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
            self.refuse(
                path,
                format!("Unsupported value: {value}: supported values: {}", allowed.join(", ")),
            );
        }
        let size = match value {
            Value::String(text) => Some(("Length", text.chars().count())),
            Value::Array(items) => Some(("Items", items.len())),
            Value::Object(fields) => Some(("Properties", fields.len())),
            Value::Null | Value::Bool(_) | Value::Number(_) => None,
        };
        if let Some((what, size)) = size {
            let size = u64::try_from(size).unwrap_or(u64::MAX);
            if schema[format!("min{what}")].as_u64().is_some_and(|least| size < least)
                || schema[format!("max{what}")].as_u64().is_some_and(|most| size > most)
            {
                self.refuse(path, format!("Invalid value: {value}: its size {size} is outside the bounds"));
            }
        }
        if let Some(number) = value.as_f64()
            && (schema["minimum"].as_f64().is_some_and(|least| number < least)
                || schema["maximum"].as_f64().is_some_and(|most| number > most))
        {
            self.refuse(path, format!("Invalid value: {value}: outside minimum and maximum"));
        }
        if let Some(choices) = schema["oneOf"].as_array() {
            let met = choices.iter().filter(|choice| has_required(choice, value)).count();
            if choices.iter().all(|choice| choice["required"].is_array()) && met != 1 {
                self.refuse(path, "Invalid value: must validate one and only one schema (oneOf)".to_owned());
            }
        }
    }
}

fn has_required(schema: &Value, value: &Value) -> bool {
    schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .all(|key| value.get(key).is_some_and(|field| !field.is_null()))
}

fn has_type(schema: &Value, value: &Value) -> bool {
    if schema["x-kubernetes-int-or-string"] == Value::Bool(true) {
        return value.is_string() || value.is_i64() || value.is_u64();
    }
    match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("number") => value.is_number(),
        Some("integer") => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0)
        }
        Some(_) | None => true,
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
