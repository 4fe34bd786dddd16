//! What a refused or broken exec means, as one of a few bounded categories.
//!
//! Pure: the same words classify the same way whether they came as an HTTP error before the upgrade or as a
//! status on channel 3 after it; with websockets both happen for the same cause.

use kube::core::Status;

use super::wire::{Failure, bounded};

/// Bounded reason for conditions, events and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExecCategory {
    /// The API server refused us.
    Forbidden,
    /// There is no such pod.
    NotFound,
    /// The pod has no such container, or it does not run.
    ContainerNotFound,
    /// The image has no such program.
    ClientMissing,
    /// No answer in time.
    Timeout,
    /// The way to the kubelet is broken.
    Transport,
    /// Anything else.
    Other,
}

impl ExecCategory {
    /// The category as a label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::ContainerNotFound => "ContainerNotFound",
            Self::ClientMissing => "ClientMissing",
            Self::Timeout => "Timeout",
            Self::Transport => "Transport",
            Self::Other => "Other",
        }
    }
}

/// Why a command could not be started, or why it is not known whether it was. `detail` is the peer's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    /// Refused for lack of rights, or credentials not accepted.
    #[error(
        "exec is not allowed: {detail}; grant the verbs get and create on pods/exec in this namespace (and \
         impersonate on the hooks' service account), servers from 1.35 ask for create"
    )]
    Forbidden {
        /// What the API server said.
        detail: String,
    },
    /// The pod is gone.
    #[error("exec found no pod: {detail}; it was deleted or replaced after it was resolved")]
    NotFound {
        /// What the API server said.
        detail: String,
    },
    /// The container is not in the pod or does not run.
    #[error(
        "exec found no running container: {detail}; check the template's container name and the pod's state"
    )]
    ContainerNotFound {
        /// What the API server or the kubelet said.
        detail: String,
    },
    /// The program is not in the image.
    #[error(
        "the container has no such program: {detail}; use an image that contains it or a template that does \
         not need it"
    )]
    ClientMissing {
        /// What the runtime said.
        detail: String,
    },
    /// The upgrade did not come in time.
    #[error("exec was not answered in time: {detail}; the command may have started, nothing is known of it")]
    Timeout {
        /// Which deadline, or what the API server said.
        detail: String,
    },
    /// The connection failed.
    #[error(
        "exec could not reach the container: {detail}; check the API server and the kubelet of this node"
    )]
    Transport {
        /// What broke.
        detail: String,
    },
    /// Not one of the above.
    #[error("exec failed: {detail}")]
    Other {
        /// What was said.
        detail: String,
    },
}

impl ExecError {
    /// The bounded reason.
    pub const fn category(&self) -> ExecCategory {
        match self {
            Self::Forbidden { .. } => ExecCategory::Forbidden,
            Self::NotFound { .. } => ExecCategory::NotFound,
            Self::ContainerNotFound { .. } => ExecCategory::ContainerNotFound,
            Self::ClientMissing { .. } => ExecCategory::ClientMissing,
            Self::Timeout { .. } => ExecCategory::Timeout,
            Self::Transport { .. } => ExecCategory::Transport,
            Self::Other { .. } => ExecCategory::Other,
        }
    }

    /// Whether the command may have been started in spite of the error. `false` only where the refusal itself
    /// proves that nothing ran.
    pub const fn may_have_run(&self) -> bool {
        match self.category() {
            ExecCategory::Forbidden
            | ExecCategory::NotFound
            | ExecCategory::ContainerNotFound
            | ExecCategory::ClientMissing => false,
            ExecCategory::Timeout | ExecCategory::Transport | ExecCategory::Other => true,
        }
    }

    /// What an error of the client, before or during the upgrade, means.
    pub fn from_kube(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::from_api_status(status),
            kube::Error::Auth(_) => Self::Forbidden { detail: bounded(&with_sources(error)) },
            kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::UpgradeConnection(_) => {
                Self::Transport { detail: bounded(&with_sources(error)) }
            }
            // kube::Error is not ours and grows with features: the rest is no refusal we could name.
            other => Self::Other { detail: bounded(&with_sources(other)) },
        }
    }

    /// What an HTTP error answer means.
    pub fn from_api_status(status: &Status) -> Self {
        Self::classify(status.code, &status.reason, &status.message)
    }

    /// What a failure on channel 3 means.
    pub fn from_failure(failure: &Failure) -> Self {
        Self::classify(failure.code, &failure.reason, &failure.message)
    }

    /// The words before the code: kubelet and runtime wrap nearly everything into 500 `InternalError`.
    fn classify(code: u16, reason: &str, message: &str) -> Self {
        let detail = bounded(if message.is_empty() { reason } else { message });
        let words = message.to_lowercase();
        if program_missing(&words) {
            return Self::ClientMissing { detail };
        }
        if words.contains("container not found")
            || (words.contains("container") && words.contains("is not valid for pod"))
        {
            return Self::ContainerNotFound { detail };
        }
        if words.contains("error dialing backend") {
            return Self::Transport { detail };
        }
        match (code, reason) {
            (401 | 403, _) | (_, "Forbidden" | "Unauthorized") => Self::Forbidden { detail },
            (404, _) | (_, "NotFound") => Self::NotFound { detail },
            (408 | 504, _) | (_, "Timeout" | "ServerTimeout") => Self::Timeout { detail },
            (502 | 503, _) | (_, "ServiceUnavailable") => Self::Transport { detail },
            (_, _) if words.contains("pod does not exist") => Self::NotFound { detail },
            (_, _) => Self::Other { detail },
        }
    }
}

/// runc: `exec: "psql": executable file not found in $PATH` and `exec: "/x": stat /x: no such file or
/// directory`; crun: ``executable file `psql` not found in $PATH``. A bare "no such file or directory" is not
/// enough: a missing working directory or a vanished process says it too.
fn program_missing(words: &str) -> bool {
    (words.contains("executable file") && words.contains("not found"))
        || (words.contains("no such file or directory")
            && (words.contains("exec: \"") || words.contains("exec: \\\"") || words.contains("exec /")))
}

/// An error with its causes: the top level of a hyper error says only "client error (Connect)".
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn category(code: u16, reason: &str, message: &str) -> ExecCategory {
        let status = Status::failure(message, reason).with_code(code);
        let by_http = ExecError::from_kube(&kube::Error::Api(status.boxed()));
        let by_stream =
            ExecError::from_failure(&Failure { reason: reason.into(), message: message.into(), code });
        assert_eq!(by_http, by_stream, "the way it came must not matter");
        by_http.category()
    }

    #[test]
    fn the_words_of_kubelet_and_runtimes_are_classified() {
        let literal = [
            (
                500,
                "InternalError",
                r#"Internal error occurred: error executing command in container: failed to exec in container: failed to start exec "5f6c0e": OCI runtime exec failed: exec failed: unable to start container process: exec: "psql": executable file not found in $PATH: unknown"#,
                ExecCategory::ClientMissing,
            ),
            (
                500,
                "InternalError",
                r#"error executing command in container: failed to exec in container: failed to start exec "5f6c0e": OCI runtime exec failed: exec failed: unable to start container process: exec: "/usr/bin/psql": stat /usr/bin/psql: no such file or directory: unknown"#,
                ExecCategory::ClientMissing,
            ),
            (
                500,
                "InternalError",
                "Internal error occurred: error executing command in container: rpc error: code = Unknown desc = command error: executable file `psql` not found in $PATH: No such file or directory, exit code -1",
                ExecCategory::ClientMissing,
            ),
            (
                500,
                "InternalError",
                r#"error executing command in container: failed to exec in container: failed to start exec "5f": OCI runtime exec failed: exec failed: unable to start container process: exec /hooks/freeze.sh: no such file or directory"#,
                ExecCategory::ClientMissing,
            ),
            (
                500,
                "InternalError",
                r#"OCI runtime exec failed: exec failed: unable to start container process: chdir to cwd ("/data") set in config.json failed: no such file or directory: unknown"#,
                ExecCategory::Other,
            ),
            (
                500,
                "InternalError",
                r#"OCI runtime exec failed: exec failed: unable to start container process: exec: "/data": permission denied: unknown"#,
                ExecCategory::Other,
            ),
            (400, "BadRequest", "container nope is not valid for pod db-0", ExecCategory::ContainerNotFound),
            (
                500,
                "InternalError",
                r#"unable to upgrade connection: container not found ("app")"#,
                ExecCategory::ContainerNotFound,
            ),
            (404, "NotFound", r#"pods "db-0" not found"#, ExecCategory::NotFound),
            (500, "", "unable to upgrade connection: pod does not exist", ExecCategory::NotFound),
            (
                403,
                "Forbidden",
                r#"pods "db-0" is forbidden: User "system:serviceaccount:stillpoint:stillpoint" cannot create resource "pods/exec" in API group "" in the namespace "shop""#,
                ExecCategory::Forbidden,
            ),
            (401, "Unauthorized", "Unauthorized", ExecCategory::Forbidden),
            (
                500,
                "InternalError",
                "error dialing backend: dial tcp 10.0.0.5:10250: connect: connection refused",
                ExecCategory::Transport,
            ),
            (
                503,
                "ServiceUnavailable",
                "the server is currently unable to handle the request",
                ExecCategory::Transport,
            ),
            (502, "Failed to parse error data", "bad gateway", ExecCategory::Transport),
            (
                504,
                "Timeout",
                "Timeout: request did not complete within the allotted timeout",
                ExecCategory::Timeout,
            ),
            (429, "TooManyRequests", "too many requests", ExecCategory::Other),
            (500, "InternalError", "Internal error occurred: something new", ExecCategory::Other),
        ];
        for (code, reason, message, expected) in literal {
            assert_eq!(category(code, reason, message), expected, "{message}");
        }
    }

    #[test]
    fn only_a_refusal_that_proves_it_says_that_nothing_ran() {
        let detail = String::new;
        assert!(!ExecError::ClientMissing { detail: detail() }.may_have_run());
        assert!(!ExecError::Forbidden { detail: detail() }.may_have_run());
        assert!(ExecError::Timeout { detail: detail() }.may_have_run());
        assert!(ExecError::Transport { detail: detail() }.may_have_run());
        assert!(ExecError::Other { detail: detail() }.may_have_run());
    }

    #[test]
    fn words_of_the_peer_are_bounded() {
        let long = "x".repeat(100_000);
        let error = ExecError::from_failure(&Failure { reason: String::new(), message: long, code: 500 });
        assert!(error.to_string().len() < 2000);
    }
}
