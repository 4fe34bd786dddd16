//! What every adapter of the executor works with, and the bounds of its requests.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use stillpoint_api::clock::SharedClock;

use crate::contents::ContentWatch;
use crate::exec::Exec;
use crate::hold::Entropy;
use crate::observer::RunObserver;
use crate::ownership::Ownership;
use crate::storage::StorageTable;

/// The account of a namespace that hooks run as; its existence and binding are the namespace's opt-in
/// (docs/authority.md).
pub const HOOKS_ACCOUNT: &str = "stillpoint-hooks";

/// Longest time one request to the API server may take. kube has no read timeout of its own: without one a request
/// that is swallowed by the network hangs for ever.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Shared by all runs of a process.
#[derive(Clone)]
pub struct Context {
    /// A client that never repeats a request by itself ([`crate::exec::exec_client_config`]).
    pub client: Client,
    /// Opens sessions.
    pub exec: Arc<dyn Exec>,
    /// Time.
    pub clock: SharedClock,
    /// Randomness, for nonces.
    pub entropy: Arc<dyn Entropy>,
    /// What is known about drivers.
    pub storage: Arc<StorageTable>,
    /// Where events go.
    pub observer: Arc<dyn RunObserver>,
    /// The one watch on snapshot contents.
    pub contents: ContentWatch,
    /// Who this replica is in claims and journals, its Lease, and what it knows about the others.
    pub ownership: Ownership,
    /// Whether hooks run as the namespace's account; off only where the cluster cannot impersonate.
    pub impersonate: bool,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("ownership", &self.ownership).finish_non_exhaustive()
    }
}

/// Why a request to the API server has no result.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It was answered with an error.
    #[error("the API server refused to {what}: {source}")]
    Api {
        /// What was asked for.
        what: String,
        /// The answer.
        #[source]
        source: kube::Error,
    },
    /// It was not answered.
    #[error("the API server did not answer within {REQUEST_TIMEOUT:?} when asked to {what}")]
    Timeout {
        /// What was asked for.
        what: String,
    },
}

impl RequestError {
    /// HTTP status, where there was an answer.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Api { source: kube::Error::Api(status), .. } => Some(status.code),
            Self::Api { .. } | Self::Timeout { .. } => None,
        }
    }

    /// The object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// The object changed since it was read, or exists already.
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// Not answered, or the API server was not able to: the same request may succeed later.
    pub fn may_pass(&self) -> bool {
        self.code().is_none_or(|code| code == 429 || code >= 500)
    }

    /// The controller may not do this.
    pub fn is_forbidden(&self) -> bool {
        self.code() == Some(403)
    }
}

/// Bounds a request.
///
/// # Errors
/// The answer's error, or that there was none in time.
pub async fn bounded<T>(
    what: impl Into<String>,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, RequestError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(RequestError::Api { what: what.into(), source }),
        Err(_) => Err(RequestError::Timeout { what: what.into() }),
    }
}
