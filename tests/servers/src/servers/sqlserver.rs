//! The look-alike of SQL Server (`look-alikes/sqlserver`): it behaves as the documentation says, and is not SQL Server.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stillpoint_api::template::Recipe;

use super::own::own;
use super::suspension::Suspension;
use super::{Engine, Refusal, numbers};
use crate::checks::Checked;
use crate::container::{Container, Server};
use crate::held::Held;
use crate::writer::{Commit, Piped};
use crate::{Outcome, library};

/// One instance with one user database.
pub struct SqlServer {
    /// Whether a suspension outlives the session that made it: sources say both.
    pub stays: bool,
}

const ON: &str = "ALTER SERVER CONFIGURATION SET SUSPEND_FOR_SNAPSHOT_BACKUP = ON;";
const OFF: &str = "ALTER SERVER CONFIGURATION SET SUSPEND_FOR_SNAPSHOT_BACKUP = OFF;";
/// What a login that may look and not suspend is given.
const READER: &str = "IF NOT EXISTS (SELECT 1 FROM sys.server_principals WHERE name = 'reader') \
                      CREATE LOGIN reader WITH PASSWORD = 'look-alike'; \
                      GRANT VIEW SERVER STATE, VIEW ANY DEFINITION TO reader;";
/// The account of the template's comment.
const OWN: &str = "IF NOT EXISTS (SELECT 1 FROM sys.server_principals WHERE name = 'stillpoint') \
                   CREATE LOGIN stillpoint WITH PASSWORD = 'look-alike'; GRANT CONTROL SERVER TO stillpoint;";
const CLIENT: [&str; 9] = ["sqlcmd", "-C", "-b", "-S", "tcp:127.0.0.1,1433", "-U", "sa", "-h", "-1"];

impl SqlServer {
    fn ask(container: &Container, text: &str) -> Outcome<String> {
        let argv: Vec<String> = CLIENT.iter().copied().chain(["-W", "-Q", text]).map(str::to_owned).collect();
        let done = container.run(&argv)?;
        if done.code == Some(0) { Ok(done.stdout) } else { Err(format!("{done:?}")) }
    }

    /// A session of somebody else that has suspended, and keeps it as long as the value lives.
    fn foreign(container: &Container) -> Outcome<Piped> {
        let mut session = Piped::start(container, &CLIENT, "")?;
        session.commit(&format!("{ON}\nGO\nPRINT 'ok 0';\nGO\n"), 0)?;
        Ok(session)
    }
}

impl Engine for SqlServer {
    fn container(&self, roots: &Path) -> Container {
        let programs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("look-alikes/sqlserver");
        let mut container = own(roots, "none");
        container.path = format!("{}:{}", programs.display(), container.path);
        container.env.push(("MSSQL_SA_PASSWORD".into(), "look-alike".into()));
        // For the writers of this test; the template reads the other.
        container.env.push(("SQLCMDPASSWORD".into(), "look-alike".into()));
        let end = if self.stays { "stays" } else { "thaws" };
        container.env.push(("LOOK_ALIKE_SESSION_END".into(), end.into()));
        container
    }

    fn version(&self, _container: &Container) -> Outcome<String> {
        let end = if self.stays { "stays suspended" } else { "thaws" };
        Ok(format!("look-alike of SQL Server 2022, end of session {end}"))
    }

    fn start(&self, container: &Container, data: &str) -> Outcome<Server> {
        let mut server =
            container.serve(&["server.py", data], &container.outside(data).with_extension("log"))?;
        server.until(|| Self::ask(container, "PRINT 'here';").map(|_| ()))?;
        Self::ask(container, READER)?;
        Self::ask(container, OWN)?;
        Ok(server)
    }

    fn parameters(&self, _data: &str) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn commit(&self, container: &Container, _data: &str) -> Outcome<Commit> {
        let mut client = Piped::start(container, &CLIENT, "")?;
        Ok(Box::new(move |row| {
            client.commit(&format!("INSERT INTO t VALUES ({row});\nGO\nPRINT 'ok {row}';\nGO\n"), row)
        }))
    }

    fn rows(&self, container: &Container, _data: &str) -> Outcome<BTreeSet<u64>> {
        Ok(numbers(&Self::ask(container, "SELECT row FROM t;")?))
    }

    fn outlives_its_client(&self) -> bool {
        self.stays
    }

    fn refusals(&self) -> Vec<Refusal> {
        vec![
            Refusal {
                name: "wrong password",
                env: vec![("MSSQL_SA_PASSWORD", "another")],
                says: "authentication of sa failed",
                ..Refusal::default()
            },
            Refusal {
                name: "no server",
                parameters: vec![("port", "1499")],
                says: "the server on port 1499: ",
                ..Refusal::default()
            },
            Refusal {
                name: "no authority",
                parameters: vec![("user", "reader")],
                says: "reader lacks the permission ALTER SETTINGS",
                ..Refusal::default()
            },
        ]
    }

    fn damage(&self, container: &Container, copy: &str) -> Option<Outcome<()>> {
        Some(container.shell(&format!("echo torn >> '{copy}/rows'")).map(|_| ()))
    }

    fn more(&self, container: &Container, recipe: &Recipe, data: &str) -> Vec<Checked> {
        let mut checks = Suspension {
            container,
            recipe,
            begin: &|| Self::foreign(container),
            end: &|| Self::ask(container, OFF).map(|_| ()),
            not_suspended: "this session has suspended no database",
        }
        .checks();
        // The way that the documentation shows to end a suspension.
        let backed_up = (|| {
            let mut held = Held::open(container, recipe)?;
            held.freeze(Duration::from_secs(60))?;
            let file = format!("{data}/metadata.bkm");
            Self::ask(container, &format!("BACKUP SERVER TO DISK = '{file}' WITH METADATA_ONLY, FORMAT;"))?;
            let unanswered = held.beat_unanswered(Duration::from_secs(5))?;
            let again =
                Self::ask(container, &format!("BACKUP SERVER TO DISK = '{file}' WITH METADATA_ONLY;"));
            if unanswered && again.is_err() {
                return Ok("no HELD once somebody else's metadata backup has resumed".to_owned());
            }
            Err(format!("unanswered {unanswered}, a backup of what is not suspended: {again:?}"))
        })();
        let own_account = (|| {
            let recipe = library::recipe("sqlserver", &[("user", "stillpoint".to_owned())])?;
            let mut held = Held::open(container, &recipe)?;
            held.freeze(Duration::from_secs(60))?;
            held.thaw_alone()?;
            Ok("suspends and resumes with CONTROL SERVER".to_owned())
        })();
        let paths = (|| {
            let role = recipe.volume_roles.get("files").ok_or("no volume role")?;
            let done = container.run(&role.command)?;
            let said: Vec<&str> = done.stdout.lines().map(str::trim).collect();
            if done.code == Some(0) && !said.is_empty() && said.iter().all(|path| path.starts_with(data)) {
                return Ok(format!("{} files, on the volume; tempdb is not asked for", said.len()));
            }
            Err(format!("{done:?}"))
        })();
        checks.push(("metadata backup by somebody else".into(), backed_up));
        checks.push(("own account".into(), own_account));
        checks.push(("paths".into(), paths));
        checks
    }
}
