//! The API server's audit log: when it was asked to exec and to create snapshots, and when contents were written.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Deserialize;

use crate::{Outcome, Problem};

/// One entry (tests/cluster/README.md says what is logged).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// `ResponseStarted` (a stream was opened), `ResponseComplete`, `Panic`.
    pub stage: String,
    /// create, update, patch, get.
    pub verb: String,
    /// About what.
    pub object_ref: Option<ObjectRef>,
    /// HTTP status.
    pub response_status: Option<ResponseStatus>,
    /// Path and query of the request.
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    /// When the request came in.
    pub request_received_timestamp: Timestamp,
    /// When this stage was reached.
    pub stage_timestamp: Timestamp,
}

/// What a request is about.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectRef {
    /// Plural of the kind.
    pub resource: String,
    /// `exec`, `status`.
    pub subresource: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// How a request was answered.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ResponseStatus {
    /// HTTP status code.
    pub code: u16,
}

impl Entry {
    /// Whether it is about this kind and subresource.
    pub fn about(&self, resource: &str, subresource: &str) -> bool {
        self.object_ref.as_ref().is_some_and(|of| of.resource == resource && of.subresource == subresource)
    }

    /// Whether nothing was to be stored.
    pub fn is_dry_run(&self) -> bool {
        self.request_uri.contains("dryRun=")
    }

    /// Name of what it is about.
    pub fn name(&self) -> &str {
        self.object_ref.as_ref().map_or("", |of| of.name.as_str())
    }

    /// Namespace of what it is about.
    pub fn namespace(&self) -> &str {
        self.object_ref.as_ref().map_or("", |of| of.namespace.as_str())
    }
}

/// The audit log of the running cluster.
#[derive(Clone, Debug)]
pub struct Audit {
    file: PathBuf,
}

impl Audit {
    /// The log at `file`.
    pub const fn at(file: PathBuf) -> Self {
        Self { file }
    }

    /// How long it is now, in bytes: a place to read from later.
    pub fn length(&self) -> u64 {
        std::fs::metadata(&self.file).map_or(0, |file| file.len())
    }

    /// The complete entries from a place on.
    ///
    /// # Errors
    /// It cannot be read, or an entry is not understood.
    pub fn since(&self, place: u64) -> Outcome<Vec<Entry>> {
        let bytes = crate::acks::read_from(&self.file, place)?;
        let text = String::from_utf8_lossy(&bytes);
        let complete = text.rfind('\n').map_or("", |end| text.get(..end).unwrap_or_default());
        let parse = |line: &str| {
            serde_json::from_str(line).map_err(|error| Problem(format!("audit log: {error}: {line}")))
        };
        // A server that was killed while it wrote leaves a piece of a line, which the next one goes on from.
        Ok(complete.lines().map(parse).filter_map(Result::ok).collect())
    }
}
