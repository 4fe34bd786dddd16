//! How an object lies in a table: parsed, or as the text it was loaded as.
//!
//! A parsed object takes about five times its text. Scale runs hold a million objects that are listed often and read one by
//! one hardly ever: those stay text, and a list of them is a copy.

use std::sync::Arc;

use serde_json::Value;

/// An object of a table.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    /// Written through the API.
    Parsed(Arc<Value>),
    /// Loaded, and not written since: valid JSON with `apiVersion`, `kind` and the metadata a server gives.
    Text(Arc<str>),
}

impl Held {
    /// The object.
    pub(crate) fn value(&self) -> Arc<Value> {
        match self {
            Self::Parsed(value) => Arc::clone(value),
            // Made by `Value::to_string` in `load`.
            Self::Text(text) => Arc::new(serde_json::from_str(text).unwrap_or_default()),
        }
    }
}
