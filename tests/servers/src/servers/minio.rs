//! MinIO on one drive, built from its Go module.

use std::collections::BTreeSet;
use std::path::Path;

use super::own::own;
use super::{Engine, Refusal};
use crate::Outcome;
use crate::container::{Container, Server};
use crate::writer::Commit;

/// One server with one drive.
pub struct Minio;

const URL: &str = "http://127.0.0.1:29000";

impl Minio {
    fn ask(container: &Container, options: &str, path: &str) -> Outcome<String> {
        container.shell(&format!(
            "curl -sS -f --aws-sigv4 aws:amz:us-east-1:s3 --user stillpoint:stillpoint {options} '{URL}/{path}'"
        ))
    }
}

impl Engine for Minio {
    fn container(&self, roots: &Path) -> Container {
        let mut container = own(roots, "minio");
        container.env.push(("MINIO_ROOT_USER".into(), "stillpoint".into()));
        container.env.push(("MINIO_ROOT_PASSWORD".into(), "stillpoint".into()));
        container
    }

    fn version(&self, container: &Container) -> Outcome<String> {
        let text = container.shell("go version -m \"$ROOTS/minio/minio\"")?;
        let module = text.lines().find_map(|line| line.trim().strip_prefix("mod\t"));
        let version = module.and_then(|module| module.split('\t').nth(1)).ok_or("no module version")?;
        Ok(format!("minio {version}"))
    }

    fn start(&self, container: &Container, data: &str) -> Outcome<Server> {
        let argv =
            ["minio", "server", "--address", "127.0.0.1:29000", "--console-address", "127.0.0.1:29001", data];
        let mut server = container.serve(&argv, &container.outside(data).with_extension("log"))?;
        server.until(|| {
            Self::ask(container, "-I", "rows")
                .map(|_| ())
                .or_else(|_| Self::ask(container, "-X PUT", "rows").map(|_| ()))
        })?;
        Ok(server)
    }

    fn parameters(&self, data: &str) -> Vec<(&'static str, String)> {
        vec![("directories", data.to_owned()), ("url", URL.to_owned())]
    }

    fn commit(&self, container: &Container, _data: &str) -> Outcome<Commit> {
        let container = container.clone();
        Ok(Box::new(move |row| {
            // curl of Debian 12 signs no body.
            let options = format!("-X PUT -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' --data-binary {row}");
            Self::ask(&container, &options, &format!("rows/{row}")).map(|_| ())
        }))
    }

    fn rows(&self, container: &Container, _data: &str) -> Outcome<BTreeSet<u64>> {
        let text = Self::ask(container, "", "rows?list-type=2&max-keys=1000")?;
        if text.contains("<IsTruncated>true<") {
            return Err("more objects than one listing has".to_owned());
        }
        let keys: BTreeSet<u64> =
            text.split("<Key>").skip(1).filter_map(|rest| rest.split('<').next()?.parse().ok()).collect();
        // Listed and whole.
        for key in &keys {
            let body = Self::ask(container, "", &format!("rows/{key}"))?;
            if body != key.to_string() {
                return Err(format!("object {key} has {body:?}"));
            }
        }
        Ok(keys)
    }

    fn refusals(&self) -> Vec<Refusal> {
        vec![Refusal {
            name: "no drive",
            parameters: vec![("directories", "/srv")],
            says: "/srv is no drive of MinIO",
            ..Refusal::default()
        }]
    }
}
