//! Which command in which container, and the one HTTP request that starts it.
//!
//! Always a named container, `tty=false`, argv and never a shell string. Secrets and SQL never go here: the
//! API server's audit log keeps the whole command; they go by standard input.

use http::{HeaderValue, Request};
use sha2::{Digest, Sha256};

use super::ExecError;

/// A command and the container it runs in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExecTarget {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Uid of the pod that was resolved. The exec request cannot carry it: who compares identities reads it here.
    pub pod_uid: String,
    /// Name of the container; never left to the API server's choice.
    pub container: String,
    /// The command, one element per argument, no shell.
    pub argv: Vec<String>,
    /// Whether standard input is connected. Without it the command does not notice when we go away.
    pub stdin: bool,
    /// The full name of the user to act as, see [`ExecTarget::hooks_user`]; `None` acts as the controller.
    pub impersonate: Option<String>,
}

impl ExecTarget {
    /// The service account whose rights hooks in `namespace` run with (docs/authority.md).
    pub fn hooks_user(namespace: &str) -> String {
        format!("system:serviceaccount:{namespace}:stillpoint-hooks")
    }

    /// The GET request of the exec subresource, path and query relative to the cluster's address.
    ///
    /// # Errors
    /// [`ExecError::Other`] when a field is empty or cannot be written into a request.
    pub fn request(&self) -> Result<Request<Vec<u8>>, ExecError> {
        for (field, value) in
            [("namespace", &self.namespace), ("pod name", &self.pod), ("container name", &self.container)]
        {
            if value.is_empty() || value == "." || value == ".." {
                return Err(invalid(&format!("its {field} is {value:?}; name one")));
            }
        }
        if self.argv.first().is_none_or(String::is_empty) {
            return Err(invalid("its command is empty; name a program"));
        }
        let mut uri = format!(
            "/api/v1/namespaces/{}/pods/{}/exec?container={}",
            percent(&self.namespace),
            percent(&self.pod),
            percent(&self.container)
        );
        for argument in &self.argv {
            uri.push_str("&command=");
            uri.push_str(&percent(argument));
        }
        if self.stdin {
            uri.push_str("&stdin=true");
        }
        uri.push_str("&stdout=true&stderr=true");
        let mut request = Request::get(uri);
        if let Some(user) = &self.impersonate {
            let user = HeaderValue::from_str(user)
                .map_err(|_| invalid(&format!("the user {user:?} cannot be a header")))?;
            request = request.header("Impersonate-User", user);
        }
        request.body(Vec::new()).map_err(|error| invalid(&error.to_string()))
    }

    /// A short digest of argv for logs, which must not show commands.
    pub fn argv_digest(&self) -> String {
        let mut digest = Sha256::new();
        for argument in &self.argv {
            digest.update(argument.as_bytes());
            digest.update([0]);
        }
        digest.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }
}

fn invalid(why: &str) -> ExecError {
    ExecError::Other { detail: format!("the exec request cannot be built: {why}") }
}

/// RFC 3986: everything but unreserved characters is encoded, a space as `%20`, so that path and query agree.
fn percent(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn psql() -> ExecTarget {
        ExecTarget {
            namespace: "shop".into(),
            pod: "db-0".into(),
            pod_uid: "4c1d".into(),
            container: "postgres".into(),
            argv: vec!["psql".into(), "-F".into(), " ".into(), "-v".into(), "ON_ERROR_STOP=1".into()],
            stdin: true,
            impersonate: None,
        }
    }

    #[test]
    fn the_request_names_container_command_and_streams_and_no_tty() {
        let request = psql().request().unwrap();
        assert_eq!(request.method(), http::Method::GET);
        assert_eq!(
            request.uri().to_string(),
            "/api/v1/namespaces/shop/pods/db-0/exec?container=postgres&command=psql&command=-F&command=%20\
             &command=-v&command=ON_ERROR_STOP%3D1&stdin=true&stdout=true&stderr=true"
        );
        assert!(request.headers().get("impersonate-user").is_none());
        let without = ExecTarget { stdin: false, ..psql() }.request().unwrap();
        assert!(!without.uri().to_string().contains("stdin"));
    }

    #[test]
    fn arguments_cannot_break_out_of_the_query() {
        let target = ExecTarget { argv: vec!["sh".into(), "a&tty=true#é+%\n/?".into()], ..psql() };
        let uri = target.request().unwrap().uri().to_string();
        assert!(uri.contains("&command=a%26tty%3Dtrue%23%C3%A9%2B%25%0A%2F%3F&stdin"), "{uri}");
    }

    #[test]
    fn hooks_act_as_the_namespaces_service_account() {
        let target = ExecTarget { impersonate: Some(ExecTarget::hooks_user("shop")), ..psql() };
        assert_eq!(
            target.request().unwrap().headers()["impersonate-user"],
            "system:serviceaccount:shop:stillpoint-hooks"
        );
        let broken = ExecTarget { impersonate: Some("a\nb".into()), ..psql() };
        assert!(broken.request().is_err());
    }

    #[test]
    fn an_incomplete_target_is_refused_before_anything_is_sent() {
        for broken in [
            ExecTarget { namespace: String::new(), ..psql() },
            ExecTarget { pod: "..".into(), ..psql() },
            ExecTarget { container: String::new(), ..psql() },
            ExecTarget { argv: Vec::new(), ..psql() },
            ExecTarget { argv: vec![String::new()], ..psql() },
        ] {
            assert!(broken.request().is_err(), "{broken:?}");
        }
    }

    #[test]
    fn the_digest_tells_arguments_apart_and_shows_none() {
        let joined = ExecTarget { argv: vec!["ab".into()], ..psql() };
        let split = ExecTarget { argv: vec!["a".into(), "b".into()], ..psql() };
        assert_ne!(joined.argv_digest(), split.argv_digest());
        assert_eq!(joined.argv_digest().len(), 12);
    }
}
