//! How an object lies in a table: parsed, or as the text it was loaded as.
//!
//! A parsed object takes about five times its text. Scale runs hold a million objects that are listed often and read one by
//! one hardly ever: those stay text, and a list of them is a copy.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::selectors::Selectors;

/// An object of a table.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    /// Written through the API.
    Parsed(Arc<Value>),
    /// Loaded, and not written since.
    Text(Arc<Loaded>),
}

/// A loaded object.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// Valid JSON with `apiVersion`, `kind` and the metadata a server gives.
    pub text: Box<str>,
    /// An object with nothing but the labels: most lists select by them.
    labels: Value,
}

impl Loaded {
    /// The object as text.
    pub(crate) fn of(object: &Value) -> Self {
        let labels = json!({"metadata": {"labels": object["metadata"]["labels"]}});
        Self { text: object.to_string().into(), labels }
    }
}

impl Held {
    /// The object.
    pub(crate) fn value(&self) -> Arc<Value> {
        match self {
            Self::Parsed(value) => Arc::clone(value),
            // Made by `Value::to_string`.
            Self::Text(loaded) => Arc::new(serde_json::from_str(&loaded.text).unwrap_or_default()),
        }
    }

    /// Whether it is selected.
    pub(crate) fn is_selected(&self, selectors: &Selectors) -> bool {
        match self {
            Self::Parsed(value) => selectors.matches(value),
            Self::Text(loaded) if selectors.only_labels() => selectors.matches(&loaded.labels),
            Self::Text(_) => selectors.matches(&self.value()),
        }
    }
}
