//! Errors of the embedded cluster: [`ApiError`] is what a client gets as a `metav1.Status`, with the code and the
//! reason kube-apiserver uses; [`SimError`] is what keeps the cluster itself from starting.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::resources::Resource;

/// A refusal of the API, in the shape of `metav1.Status`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// Machine readable reason, as kube-apiserver spells it (`Conflict`, `AlreadyExists`…).
    pub reason: &'static str,
    /// What failed and why.
    pub message: String,
    /// `status.details`, when the reason has any.
    pub details: Option<Value>,
}

impl ApiError {
    /// An error without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    pub(crate) fn not_found(resource: &Resource, name: &str) -> Self {
        let what = resource.qualified();
        Self::new(404, "NotFound", format!("{what} \"{name}\" not found")).about(resource, name)
    }

    pub(crate) fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    pub(crate) fn already_exists(resource: &Resource, name: &str) -> Self {
        let what = resource.qualified();
        Self::new(409, "AlreadyExists", format!("{what} \"{name}\" already exists")).about(resource, name)
    }

    pub(crate) fn conflict(resource: &Resource, name: &str) -> Self {
        let what = resource.qualified();
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::new(409, "Conflict", format!("Operation cannot be fulfilled on {what} \"{name}\": {why}"))
            .about(resource, name)
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(403, "Forbidden", message)
    }

    pub(crate) fn expired(asked: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {}", message.into()))
    }

    pub(crate) fn invalid(resource: &Resource, name: &str, causes: &[(String, String)]) -> Self {
        let list: Vec<String> = causes.iter().map(|(field, why)| format!("{field}: {why}")).collect();
        let text = if list.len() == 1 { list.concat() } else { format!("[{}]", list.join(", ")) };
        let kind = match resource.group.as_str() {
            "" => resource.kind.clone(),
            group => format!("{}.{group}", resource.kind),
        };
        let mut error =
            Self::new(422, "Invalid", format!("{kind} \"{name}\" is invalid: {text}")).about(resource, name);
        let causes: Vec<Value> = causes
            .iter()
            .map(|(field, why)| json!({"reason": "FieldValueInvalid", "message": why, "field": field}))
            .collect();
        if let Some(details) = error.details.as_mut() {
            details["causes"] = Value::Array(causes);
        }
        error
    }

    fn about(mut self, resource: &Resource, name: &str) -> Self {
        self.details = Some(json!({"name": name, "group": resource.group, "kind": resource.plural}));
        self
    }

    /// The `metav1.Status` a client receives.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }
}

/// Why the embedded cluster could not start or stop.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// A file or directory of the cluster could not be used.
    #[error("cannot {what} {path}: {source}; the root must be a writable directory on a local filesystem")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// No port on the loopback interface.
    #[error("cannot listen on 127.0.0.1: {0}; loopback must be up")]
    Listen(std::io::Error),
    /// The process which ends the pods when their owner dies could not be started.
    #[error("cannot start the watchdog /bin/sh: {0}; a POSIX shell must be installed")]
    Watchdog(std::io::Error),
    /// The client could not be built.
    #[error("cannot build a client for the embedded API: {0}")]
    Client(#[from] kube::Error),
    /// The objects every cluster has could not be stored.
    #[error("cannot store the initial objects: {0}")]
    Api(#[from] ApiError),
    /// Processes of the pods outlived SIGKILL.
    #[error("processes {0:?} survived SIGKILL; they hang in the kernel (look for a dead network filesystem)")]
    Survivors(Vec<i32>),
}
