//! YAML to JSON values, strictly: a key that is written twice is refused, not silently the last one.
//!
//! Objects are never typed directly from YAML: the unions of the API are maps with one key, which YAML readers take
//! for something else. JSON is YAML, so both are read.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use stillpoint_api::validate::Finding;

/// What a file holds.
#[derive(Debug, Default)]
pub struct Documents {
    /// The objects, those of a `List` one by one; empty documents are left out.
    pub values: Vec<Value>,
    /// Why the rest could not be read.
    pub faults: Vec<Finding>,
}

/// Reads all documents up to the first one that is no YAML.
pub fn parse(text: &str) -> Documents {
    let mut documents = Documents::default();
    for document in serde_yaml::Deserializer::from_str(text) {
        let duplicates = RefCell::new(Vec::new());
        let read = Strict { path: String::new(), duplicates: &duplicates }.deserialize(document);
        documents.faults.extend(duplicates.into_inner());
        match read {
            Ok(Value::Null) => {}
            Ok(value) => documents.add(value),
            Err(error) => {
                let path = error.location().map(|at| format!("line {}", at.line())).unwrap_or_default();
                documents.faults.push(Finding::new(path, "InvalidYaml", error.to_string()));
                break;
            }
        }
    }
    documents
}

impl Documents {
    fn add(&mut self, value: Value) {
        let is_list = value.get("kind").and_then(Value::as_str) == Some("List");
        match value.get("items").and_then(Value::as_array) {
            Some(items) if is_list => items.iter().cloned().for_each(|item| self.values.push(item)),
            Some(_) | None => self.values.push(value),
        }
    }
}

/// Reads one value and notes keys that are there twice.
struct Strict<'a> {
    path: String,
    duplicates: &'a RefCell<Vec<Finding>>,
}

impl Strict<'_> {
    fn below(&self, key: &str) -> Self
    where
        Self: Sized,
    {
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        Strict { path, duplicates: self.duplicates }
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON has too (no tags such as !name)")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        self.deserialize(from)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let path = format!("{}[{}]", self.path, items.len());
            match from.next_element_seed(Strict { path, duplicates: self.duplicates })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(Key(key)) = from.next_key()? {
            let below = self.below(&key);
            if map.contains_key(&key) {
                let message = "this key is written twice; only one of them would count: remove the other";
                self.duplicates.borrow_mut().push(Finding::new(&below.path, "DuplicateKey", message));
            }
            let value = from.next_value_seed(below)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// A key: text, as JSON has it.
struct Key(String);

impl<'de> serde::Deserialize<'de> for Key {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let key = String::deserialize(from)?;
        if key == "<<" {
            return Err(D::Error::custom(
                "merge keys (<<) are not supported by Kubernetes: write the fields out",
            ));
        }
        Ok(Self(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_are_separate_and_empty_ones_left_out() {
        let read = parse("---\na: 1\n---\n---\n# nothing\n---\nb: [x, 2.5, null, true]\n");
        assert_eq!(read.values, [json!({"a": 1}), json!({"b": ["x", 2.5, null, true]})]);
        assert!(read.faults.is_empty(), "{:?}", read.faults);
    }

    #[test]
    fn a_key_written_twice_is_found_with_its_path() {
        let read = parse("spec:\n  list:\n  - {cron: a, cron: b}\n");
        assert_eq!(read.faults.len(), 1);
        assert_eq!(
            (read.faults[0].path.as_str(), read.faults[0].rule),
            ("spec.list[0].cron", "DuplicateKey")
        );
    }

    #[test]
    fn what_is_no_yaml_is_found_with_its_line() {
        let read = parse("a: 1\n---\nb: [1\nc: 2\n");
        assert_eq!(read.values, [json!({"a": 1})]);
        assert_eq!(read.faults[0].rule, "InvalidYaml");
        assert!(read.faults[0].path.starts_with("line "), "{:?}", read.faults);
    }

    #[test]
    fn tags_and_merge_keys_are_refused() {
        assert_eq!(parse("a: !x {b: 1}\n").faults[0].rule, "InvalidYaml");
        assert_eq!(parse("a: &a {b: 1}\nc: {<<: *a}\n").faults[0].rule, "InvalidYaml");
    }

    #[test]
    fn a_list_is_its_items() {
        let read = parse(r#"{"kind": "List", "apiVersion": "v1", "items": [{"a": 1}, {"b": 2}]}"#);
        assert_eq!(read.values.len(), 2);
    }
}
