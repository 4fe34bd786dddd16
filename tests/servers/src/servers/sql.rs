//! PostgreSQL from npm's packages and MariaDB of this machine, both without a password on their socket.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use stillpoint_api::template::{Language, Recipe};
use stillpoint_executor::client_words::{Said, explain};
use stillpoint_executor::run::Reason;

use super::own::own;
use super::{Engine, OLD_TABLE, Refusal, numbers, old_table, overwrite};
use crate::checks::Checked;
use crate::container::{Container, Server};
use crate::held::Held;
use crate::literals::literals;
use crate::logins::{Login, logins};
use crate::writer::{Commit, Piped};
use crate::{Outcome, library};

/// Without quotes: it goes through a shell here.
const PASSWORD: &str = "s3 cret";

/// One server of a version.
pub struct Postgres {
    /// Its version, as the directory below `pg` is called.
    pub version: &'static str,
}

impl Postgres {
    fn ask(container: &Container, data: &str, statement: &str) -> Outcome<String> {
        container.shell(&format!(
            "psql -X -q -A -t -v ON_ERROR_STOP=1 -h '{data}' -U postgres -d postgres -c \"{statement}\""
        ))
    }
}

impl Engine for Postgres {
    fn container(&self, roots: &Path) -> Container {
        own(roots, &format!("pg/{}/native/bin", self.version))
    }

    fn version(&self, container: &Container) -> Outcome<String> {
        let version =
            container.shell("postgres --version")?.trim().replace("postgres (PostgreSQL)", "PostgreSQL");
        // Another one of this machine may come later in the search path.
        if version.starts_with(&format!("PostgreSQL {}.", self.version)) { Ok(version) } else { Err(version) }
    }

    fn start(&self, container: &Container, data: &str) -> Outcome<Server> {
        let nobody = "setpriv --reuid=nobody --regid=nogroup --clear-groups env HOME=/tmp";
        let new =
            std::fs::read_dir(container.outside(data)).map_err(|error| error.to_string())?.next().is_none();
        if new {
            container.shell(&format!(
                "chown nobody:nogroup '{data}' && chmod 700 '{data}' && {nobody} initdb -D '{data}' -U postgres -A trust --no-sync -E UTF8 --locale=C"
            ))?;
        }
        // One role needs a password; everybody else is let in.
        let rules = container.outside(data).join("pg_hba.conf");
        let trusting = std::fs::read_to_string(&rules).map_err(|error| error.to_string())?;
        if !trusting.starts_with("local all guarded") {
            let guarded = format!("local all guarded scram-sha-256\n{trusting}");
            std::fs::write(&rules, guarded).map_err(|error| error.to_string())?;
        }
        let line =
            format!("exec {nobody} \"$(command -v postgres)\" -D \"$0\" -k \"$0\" -c listen_addresses=");
        let mut server =
            container.serve(&["sh", "-c", &line, data], &container.outside(data).with_extension("log"))?;
        server.until(|| {
            Self::ask(container, data, "CREATE TABLE IF NOT EXISTS t(row bigint PRIMARY KEY)").map(|_| ())
        })?;
        if new {
            let roles = format!(
                "CREATE ROLE plain LOGIN; CREATE ROLE second LOGIN SUPERUSER; CREATE ROLE guarded LOGIN SUPERUSER PASSWORD '{PASSWORD}'"
            );
            Self::ask(container, data, &roles)?;
        }
        Ok(server)
    }

    fn parameters(&self, data: &str) -> Vec<(&'static str, String)> {
        vec![("socketDirectory", data.to_owned())]
    }

    fn commit(&self, container: &Container, data: &str) -> Outcome<Commit> {
        let argv = ["psql", "-X", "-q", "-A", "-t", "-h", data, "-U", "postgres", "-d", "postgres"];
        let mut client = Piped::start(container, &argv, "")?;
        Ok(Box::new(move |row| {
            client.commit(&format!("INSERT INTO t VALUES({row});\nSELECT 'ok {row}';\n"), row)
        }))
    }

    fn rows(&self, container: &Container, data: &str) -> Outcome<BTreeSet<u64>> {
        Self::ask(
            container,
            data,
            "CREATE EXTENSION IF NOT EXISTS amcheck; SELECT bt_index_check('t_pkey', true)",
        )?;
        Ok(numbers(&Self::ask(container, data, "SELECT row FROM t")?))
    }

    fn refusals(&self) -> Vec<Refusal> {
        vec![
            Refusal {
                name: "no role",
                parameters: vec![("user", "nobody-such")],
                says: "does not exist",
                reason: Some(Reason::AuthenticationFailed),
                ..Refusal::default()
            },
            Refusal {
                name: "missing privilege",
                parameters: vec![("user", "plain")],
                says: "see the grants",
                reason: Some(Reason::PrivilegeMissing),
                ..Refusal::default()
            },
            Refusal {
                name: "no server",
                parameters: vec![("socketDirectory", "/srv/none")],
                says: "/srv/none",
                reason: Some(Reason::HoldNotReady),
                ..Refusal::default()
            },
        ]
    }

    fn damage(&self, container: &Container, copy: &str) -> Option<Outcome<()>> {
        // A row that the index has not: no start and no scan of the table sees that.
        let ready = |ready: bool| {
            let text = format!("UPDATE pg_index SET indisready={ready} WHERE indexrelid='t_pkey'::regclass");
            Self::ask(container, copy, &text)
        };
        let inserted = ready(false).and_then(|_| Self::ask(container, copy, "INSERT INTO t VALUES(-1)"));
        Some(inserted.and_then(|_| ready(true)).map(|_| ()))
    }

    fn more(&self, container: &Container, _recipe: &Recipe, data: &str) -> Vec<Checked> {
        let login = Login {
            template: "postgresql",
            parameters: vec![("socketDirectory", data.to_owned()), ("user", "guarded".into())],
            variables: &[
                "POSTGRES_PASSWORD",
                "POSTGRESQL_PASSWORD",
                "POSTGRESQL_POSTGRES_PASSWORD",
                "PGPASSWORD_SUPERUSER",
            ],
            password: PASSWORD,
        };
        let mut all = logins(container, &login);
        let found = (|| {
            let recipe = library::recipe("postgresql", &[])?;
            let role =
                recipe.target.as_ref().and_then(|target| target.role.as_ref()).ok_or("no role rule")?;
            let mut container = container.clone();
            let env = [("PGHOST", data), ("POSTGRES_USER", "second")];
            container.env.extend(env.map(|(name, value)| (name.to_owned(), value.to_owned())));
            let done = container.run(&role.command)?;
            if done.stdout.trim() == "primary" {
                Ok("by PGHOST and POSTGRES_USER".to_owned())
            } else {
                Err(format!("{done:?}"))
            }
        })();
        all.push(("socket and superuser found".into(), found));
        let client = [
            "psql",
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            data,
            "-U",
            "postgres",
            "-d",
            "postgres",
        ];
        let before = [
            "",
            "SET standard_conforming_strings=off; SET escape_string_warning=off;\n",
            "SET backslash_quote=on;\n",
        ];
        all.push(literals(container, &client, Language::Postgresql, &before));
        all
    }
}

/// The server of this machine.
pub struct Mariadb;

impl Mariadb {
    fn socket(data: &str) -> String {
        format!("{data}/s.sock")
    }

    fn ask(container: &Container, data: &str, statement: &str) -> Outcome<String> {
        let socket = Self::socket(data);
        container.shell(&format!("mariadb --no-defaults -S '{socket}' -u root -N -B -e \"{statement}\""))
    }
}

impl Engine for Mariadb {
    fn container(&self, roots: &Path) -> Container {
        own(roots, ".")
    }

    fn version(&self, container: &Container) -> Outcome<String> {
        let text = container.shell("mariadbd --version")?;
        Ok(text.split_whitespace().nth(2).unwrap_or("mariadb").to_owned())
    }

    fn start(&self, container: &Container, data: &str) -> Outcome<Server> {
        let new =
            std::fs::read_dir(container.outside(data)).map_err(|error| error.to_string())?.next().is_none();
        if new {
            container.shell(&format!(
                "mariadb-install-db --no-defaults --datadir='{data}' --auth-root-authentication-method=normal --user=root --skip-test-db"
            ))?;
        }
        let (datadir, socket) = (format!("--datadir={data}"), format!("--socket={}", Self::socket(data)));
        let argv = [
            "mariadbd",
            "--no-defaults",
            &datadir,
            "--user=root",
            &socket,
            "--skip-networking",
            "--log-bin=bl",
            "--server-id=1",
            "--sync-binlog=1",
        ];
        let mut server = container.serve(&argv, &container.outside(data).with_extension("log"))?;
        let table = "CREATE DATABASE IF NOT EXISTS d; CREATE TABLE IF NOT EXISTS d.t(id BIGINT PRIMARY KEY)";
        server.until(|| Self::ask(container, data, table).map(|_| ()))?;
        if new {
            let accounts = format!(
                "CREATE USER guarded@localhost IDENTIFIED BY '{PASSWORD}'; GRANT SELECT ON *.* TO guarded@localhost"
            );
            Self::ask(container, data, &accounts)?;
        }
        Ok(server)
    }

    fn parameters(&self, data: &str) -> Vec<(&'static str, String)> {
        vec![("socket", Self::socket(data))]
    }

    fn commit(&self, container: &Container, data: &str) -> Outcome<Commit> {
        let socket = Self::socket(data);
        let argv = ["mariadb", "--no-defaults", "-S", &socket, "-u", "root", "-N", "-B", "-n"];
        let mut client = Piped::start(container, &argv, "")?;
        Ok(Box::new(move |row| {
            client.commit(&format!("INSERT INTO d.t VALUES({row});\nSELECT 'ok {row}';\n"), row)
        }))
    }

    fn rows(&self, container: &Container, data: &str) -> Outcome<BTreeSet<u64>> {
        let checked = Self::ask(container, data, "CHECK TABLE d.t EXTENDED")?;
        if !checked.trim().ends_with("OK") {
            return Err(checked);
        }
        Ok(numbers(&Self::ask(container, data, "SELECT id FROM d.t")?))
    }

    fn damage(&self, container: &Container, copy: &str) -> Option<Outcome<()>> {
        Some(Self::ask(container, copy, OLD_TABLE).and_then(|_| overwrite(container, &old_table(copy))))
    }

    fn more(&self, container: &Container, _recipe: &Recipe, data: &str) -> Vec<Checked> {
        let parameters = vec![("socket", Self::socket(data)), ("user", "guarded".to_owned())];
        let login = Login {
            template: "mariadb",
            parameters: parameters.clone(),
            variables: &["MARIADB_ROOT_PASSWORD", "MYSQL_ROOT_PASSWORD"],
            password: PASSWORD,
        };
        let mut all = logins(container, &login);
        // It may log in and not lock.
        let privilege = (|| {
            let recipe = library::recipe("mariadb", &parameters)?;
            let mut container = container.clone();
            container.env.push(("MARIADB_ROOT_PASSWORD".into(), PASSWORD.into()));
            let mut held = Held::open(&container, &recipe)?;
            let Err(why) = held.freeze(Duration::from_secs(20)) else { return Err("it locked".to_owned()) };
            let said = Said { code: Some(1), stderr: &why, messages: &recipe.messages };
            let why = explain("pod/container", "it failed", said);
            if why.reason == Reason::PrivilegeMissing { Ok(why.to_string()) } else { Err(why.to_string()) }
        })();
        all.push(("missing privilege".into(), privilege));
        let socket = Self::socket(data);
        let client = [
            "mariadb",
            "--no-defaults",
            "-S",
            &socket,
            "-u",
            "root",
            "-N",
            "-B",
            "-r",
            "--default-character-set=utf8mb4",
        ];
        let before =
            ["", "SET SESSION sql_mode='NO_BACKSLASH_ESCAPES';\n", "SET SESSION sql_mode='ANSI_QUOTES';\n"];
        all.push(literals(container, &client, Language::Mysql, &before));
        all
    }
}
