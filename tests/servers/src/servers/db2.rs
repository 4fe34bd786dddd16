//! The look-alike of Db2 (`look-alikes/db2`): it behaves as the documentation says, and is not Db2.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use stillpoint_api::template::Recipe;

use super::own::own;
use super::suspension::Suspension;
use super::{Engine, Refusal, numbers};
use crate::Outcome;
use crate::checks::Checked;
use crate::container::{Container, Server};
use crate::writer::{Commit, Piped};

/// One database, SAMPLE.
pub struct Db2;

const SUSPEND: &str = "CONNECT TO SAMPLE;\nSET WRITE SUSPEND FOR DATABASE;\nTERMINATE;\n";
const RESTART: &str = "db2 restart database SAMPLE write resume";

impl Db2 {
    /// Statements through one processor, which ends at the first error.
    fn ask(container: &Container, statements: &str) -> Outcome<String> {
        container.shell(&format!("printf '%s' '{statements}' | db2 +p -t -s -x"))
    }
}

impl Engine for Db2 {
    fn container(&self, roots: &Path) -> Container {
        let programs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("look-alikes/db2");
        let mut container = own(roots, "none");
        container.path = format!("{}:{}", programs.display(), container.path);
        container
    }

    fn version(&self, _container: &Container) -> Outcome<String> {
        Ok("look-alike of Db2 11.5".to_owned())
    }

    fn start(&self, container: &Container, data: &str) -> Outcome<Server> {
        let mut server =
            container.serve(&["server.py", data], &container.outside(data).with_extension("log"))?;
        server.until(|| container.shell("db2pd -db SAMPLE -dbcfg").map(|_| ()))?;
        // As after a restore: a copy that was cut while suspended stays so until it is told what it is.
        container
            .shell("db2pd -db SAMPLE -dbcfg | grep -q 'SUSPEND_IO.*NO' || db2inidb SAMPLE as snapshot")?;
        Ok(server)
    }

    fn parameters(&self, _data: &str) -> Vec<(&'static str, String)> {
        vec![("instance", "root".to_owned()), ("database", "SAMPLE".to_owned())]
    }

    fn commit(&self, container: &Container, _data: &str) -> Outcome<Commit> {
        let mut client = Piped::start(container, &["db2", "+p", "-t", "-s"], "CONNECT TO SAMPLE;\n")?;
        Ok(Box::new(move |row| {
            client.commit(&format!("INSERT INTO t VALUES({row});\nECHO ok {row};\n"), row)
        }))
    }

    fn rows(&self, container: &Container, _data: &str) -> Outcome<BTreeSet<u64>> {
        Ok(numbers(&Self::ask(container, "CONNECT TO SAMPLE;\nSELECT row FROM t;\n")?))
    }

    fn outlives_its_client(&self) -> bool {
        true
    }

    fn refusals(&self) -> Vec<Refusal> {
        vec![
            Refusal {
                name: "no database",
                parameters: vec![("database", "OTHER")],
                says: "SQL1013N",
                ..Refusal::default()
            },
            Refusal {
                name: "no authority",
                env: vec![("LOOK_ALIKE_AUTHORITY", "none")],
                says: "SQL1092N",
                ..Refusal::default()
            },
            Refusal {
                name: "no server",
                env: vec![("LOOK_ALIKE_SOCKET", "/nonexistent")],
                says: "SQL1032N",
                ..Refusal::default()
            },
        ]
    }

    fn more(&self, container: &Container, recipe: &Recipe, data: &str) -> Vec<Checked> {
        let mut checks = Suspension {
            container,
            recipe,
            begin: &|| Self::ask(container, SUSPEND),
            end: &|| container.shell(RESTART).map(|_| ()),
            not_suspended: "SQL1551N",
        }
        .checks();
        let paths = (|| {
            let role = recipe.volume_roles.get("files").ok_or("no volume role")?;
            let done = container.run(&role.command)?;
            let said: Vec<&str> = done.stdout.lines().map(str::trim).collect();
            if done.code == Some(0)
                && said.iter().all(|path| path.trim_end_matches('/') == data)
                && !said.is_empty()
            {
                return Ok(format!("{} path, on the volume", said.len()));
            }
            Err(format!("{done:?}"))
        })();
        checks.push(("paths".into(), paths));
        checks
    }
}
