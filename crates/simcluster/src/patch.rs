//! JSON merge patch (RFC 7386) and the part of JSON patch (RFC 6902) our clients send: add, replace, remove, test.

use serde_json::{Map, Value};

use crate::error::ApiError;

/// Applies a merge patch in place: null removes, objects merge, everything else replaces.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    if let Value::Object(target) = target {
        for (key, value) in patch {
            if value.is_null() {
                target.remove(key);
            } else {
                merge(target.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }
}

/// Applies a JSON patch; a failing `test` or a path that leads nowhere refuses the whole patch with 422, as
/// kube-apiserver does.
pub(crate) fn json_patch(target: &mut Value, patch: &Value) -> Result<(), ApiError> {
    let refuse =
        |why: String| ApiError::new(422, "Invalid", format!("the server rejected our request: {why}"));
    let steps = patch.as_array().ok_or_else(|| ApiError::bad_request("a JSON patch must be an array"))?;
    for step in steps {
        let operation = step["op"].as_str().unwrap_or_default();
        let path = step["path"].as_str().unwrap_or_default();
        let value = step.get("value").cloned().unwrap_or(Value::Null);
        let (parent, last) = path.rsplit_once('/').ok_or_else(|| refuse(format!("path {path:?}")))?;
        let last = last.replace("~1", "/").replace("~0", "~");
        let nowhere = || refuse(format!("{operation} {path:?}: no such path"));
        match operation {
            "test" => {
                if target.pointer(path).unwrap_or(&Value::Null) != &value {
                    return Err(refuse(format!("test of {path:?} failed")));
                }
            }
            "replace" => *target.pointer_mut(path).ok_or_else(nowhere)? = value,
            "add" => match target.pointer_mut(parent).ok_or_else(nowhere)? {
                Value::Object(object) => {
                    object.insert(last, value);
                }
                Value::Array(array) => {
                    let at = if last == "-" { array.len() } else { last.parse().map_err(|_| nowhere())? };
                    if at > array.len() {
                        return Err(nowhere());
                    }
                    array.insert(at, value);
                }
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return Err(nowhere()),
            },
            "remove" => match target.pointer_mut(parent).ok_or_else(nowhere)? {
                Value::Object(object) => {
                    object.remove(&last).ok_or_else(nowhere)?;
                }
                Value::Array(array) => {
                    let at: usize = last.parse().map_err(|_| nowhere())?;
                    if at >= array.len() {
                        return Err(nowhere());
                    }
                    array.remove(at);
                }
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return Err(nowhere()),
            },
            other => {
                return Err(refuse(format!("operation {other:?} is not one of add, replace, remove, test")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_merge_patch_merges_objects_and_removes_with_null() {
        let mut target = json!({"a": {"b": 1, "c": 2}, "l": [1, 2]});
        merge(&mut target, &json!({"a": {"b": null, "d": 3}, "l": [9]}));
        assert_eq!(target, json!({"a": {"c": 2, "d": 3}, "l": [9]}));
    }

    #[test]
    fn a_json_patch_whose_test_fails_is_refused() {
        let mut target = json!({"metadata": {"labels": {"a/b": "x"}}, "l": [1]});
        let patch = json!([
            {"op": "test", "path": "/metadata/labels/a~1b", "value": "x"},
            {"op": "add", "path": "/l/-", "value": 2},
            {"op": "remove", "path": "/metadata/labels/a~1b"},
        ]);
        json_patch(&mut target, &patch).unwrap();
        assert_eq!(target, json!({"metadata": {"labels": {}}, "l": [1, 2]}));
        let refused = json_patch(&mut target, &json!([{"op": "test", "path": "/l/0", "value": 7}]));
        assert_eq!(refused.unwrap_err().code, 422);
    }
}
