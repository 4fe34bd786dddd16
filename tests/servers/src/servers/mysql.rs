//! MySQL, with a password for root and the binary log on.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use stillpoint_api::template::{Language, Recipe};
use stillpoint_executor::run::Reason;

use super::{Engine, OLD_TABLE, Refusal, debian, numbers, old_table, overwrite};
use crate::checks::Checked;
use crate::container::{Container, Server};
use crate::held::{ACQUIRE, Held};
use crate::literals::literals;
use crate::logins::{Login, logins};
use crate::writer::{Commit, Piped};
use crate::{Outcome, library};

const PASSWORD: &str = "s3 cret'\"";

/// Templates of this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `mysql`: nobody waits.
    Observed,
    /// `mysql-locked`.
    Locked,
    /// `mysql-flushed`: the redo log is in a directory of its own.
    Flushed,
}

/// What `mysql-flushed` changes, as the server has it: the first two are not the default, and none is what it becomes.
const CHANGED: [&str; 4] = ["88.000000", "12.000000", "1", "128"];

/// The server, for one of its templates.
pub struct Mysql {
    /// Which.
    pub template: Kind,
    /// Whether commits have GTIDs.
    pub gtid: bool,
}

impl Mysql {
    fn socket(data: &str) -> String {
        format!("{data}/s.sock")
    }

    fn client(data: &str) -> String {
        format!(
            "MYSQL_PWD=\"$MYSQL_ROOT_PASSWORD\" mysql --no-defaults -S {} -u root -N -B",
            Self::socket(data)
        )
    }

    fn ask(container: &Container, data: &str, statement: &str) -> Outcome<String> {
        container.shell(&format!("{} -e \"{statement}\"", Self::client(data)))
    }

    /// A SELECT that runs for a while in a session of its own.
    fn long_select(container: &Container, data: &str) -> Outcome<Piped> {
        let client = Self::client(data);
        let text = "SELECT t.*, SLEEP(20) FROM d.t AS t LIMIT 1;\n";
        let running = Piped::start(container, &["sh", "-c", &client], text)?;
        // It must be seen as running for 2 s.
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(100));
            let q = "SELECT COUNT(*) FROM performance_schema.processlist WHERE TIME>=2 AND INFO LIKE '%SLEEP(20)%' AND ID<>CONNECTION_ID()";
            if Self::ask(container, data, q)?.trim() == "1" {
                return Ok(running);
            }
        }
        Err("the long statement does not run".into())
    }
}

impl Mysql {
    /// Ways to the server that its images have, and literals.
    fn layouts(&self, container: &Container, data: &str) -> Vec<Checked> {
        let login = Login {
            template: "mysql",
            parameters: vec![("socket", Self::socket(data))],
            variables: &["MYSQL_ROOT_PASSWORD"],
            password: PASSWORD,
        };
        let mut all = logins(container, &login);
        // /var/run is a link to it, which would lead out of the root directory from here.
        let usual = container.outside("/run/mysqld/mysqld.sock");
        let found = (|| {
            let directory = usual.parent().ok_or("no directory")?;
            std::fs::create_dir_all(directory).map_err(|error| error.to_string())?;
            let _ = std::fs::remove_file(&usual);
            std::os::unix::fs::symlink(Self::socket(data), &usual).map_err(|error| error.to_string())?;
            let recipe = library::recipe("mysql", &[])?;
            let role =
                recipe.target.as_ref().and_then(|target| target.role.as_ref()).ok_or("no role rule")?;
            let done = container.run(&role.command)?;
            if done.stdout.trim() == "primary" {
                Ok("by itself".to_owned())
            } else {
                Err(format!("{done:?}"))
            }
        })();
        let _ = std::fs::remove_file(&usual);
        all.push(("socket found".into(), found));
        let client = Self::client(data);
        all.push(literals(
            container,
            &["sh", "-c", &format!("{client} -r --default-character-set=utf8mb4")],
            Language::Mysql,
            &["", "SET SESSION sql_mode='NO_BACKSLASH_ESCAPES';\n", "SET SESSION sql_mode='ANSI_QUOTES';\n"],
        ));
        all
    }
}

impl Mysql {
    fn redo(data: &str) -> String {
        format!("{data}-redo")
    }

    /// What `mysql-flushed` changes is as before, after every way in which a hold ended.
    fn settings(container: &Container, data: &str) -> Outcome<String> {
        let q = "SELECT @@GLOBAL.innodb_max_dirty_pages_pct, @@GLOBAL.innodb_max_dirty_pages_pct_lwm, \
                 @@GLOBAL.innodb_stats_auto_recalc, @@GLOBAL.innodb_purge_rseg_truncate_frequency";
        let until = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            let now = Self::ask(container, data, q)?;
            if now.split_whitespace().eq(CHANGED) {
                return Ok(format!("as before: {}", CHANGED.join(", ")));
            }
            if std::time::Instant::now() > until {
                return Err(format!("they are {now:?}, not {CHANGED:?}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Without a lock THAWED is not printed.
    fn thaw_alone(container: &Container, recipe: &Recipe) -> Outcome<String> {
        let mut held = Held::open(container, recipe)?;
        match held.close() {
            Err(why) if why.contains("1242") => Ok("THAWED is not printed without the lock".to_owned()),
            Err(why) => Err(why),
            Ok(_) => Err("THAWED was printed without a lock".to_owned()),
        }
    }
}

impl Engine for Mysql {
    fn outlives_its_client(&self) -> bool {
        // Not the lock: what it changed of the server.
        self.template == Kind::Flushed
    }

    fn acquire(&self) -> Duration {
        match self.template {
            Kind::Observed | Kind::Locked => ACQUIRE,
            // What its comment asks for.
            Kind::Flushed => Duration::from_secs(45),
        }
    }

    fn volumes(&self, data: &str) -> Vec<String> {
        match self.template {
            Kind::Observed | Kind::Locked => vec![data.to_owned()],
            Kind::Flushed => vec![data.to_owned(), Self::redo(data)],
        }
    }

    fn container(&self, roots: &Path) -> Container {
        let mut container = debian(roots, "sid");
        container.env = vec![("MYSQL_ROOT_PASSWORD".into(), PASSWORD.into())];
        container
    }

    fn version(&self, container: &Container) -> Outcome<String> {
        let line = container.shell("mysqld --version")?;
        Ok(format!("mysql {}", line.split_whitespace().nth(2).unwrap_or("unknown")))
    }

    fn start(&self, container: &Container, data: &str) -> Outcome<Server> {
        let log = container.outside(data).with_extension("log");
        let (datadir, socket) = (format!("--datadir={data}"), format!("--socket={}", Self::socket(data)));
        let mut dirs = vec![datadir.clone()];
        if self.template == Kind::Flushed {
            std::fs::create_dir_all(container.outside(&Self::redo(data)))
                .map_err(|error| error.to_string())?;
            dirs.push(format!("--innodb-log-group-home-dir={}", Self::redo(data)));
        }
        let new =
            std::fs::read_dir(container.outside(data)).map_err(|error| error.to_string())?.next().is_none();
        if new {
            container.shell(&format!(
                "mysqld --no-defaults --initialize-insecure {} --user=root 2>&1",
                dirs.join(" ")
            ))?;
        }
        let mut argv = vec!["mysqld", "--no-defaults"];
        argv.extend(dirs.iter().map(String::as_str));
        argv.extend([
            "--user=root",
            &socket,
            "--port=23306",
            "--bind-address=127.0.0.1",
            "--mysqlx=OFF",
            "--secure-file-priv=",
            "--log-bin=bl",
            "--server-id=1",
            "--innodb-buffer-pool-size=64M",
            if self.gtid { "--gtid-mode=ON" } else { "--gtid-mode=OFF" },
            if self.gtid { "--enforce-gtid-consistency=ON" } else { "--enforce-gtid-consistency=OFF" },
        ]);
        if self.template == Kind::Flushed {
            argv.extend(["--innodb-max-dirty-pages-pct=88", "--innodb-max-dirty-pages-pct-lwm=12"]);
        }
        let mut server = container.serve(&argv, &log)?;
        let first =
            if new { Self::client(data).replace("$MYSQL_ROOT_PASSWORD", "") } else { Self::client(data) };
        server.until(|| container.shell(&format!("{first} -e 'SELECT 1'")).map(|_| ()))?;
        if new {
            let quoted = PASSWORD.replace('\'', "''");
            let sql = format!(
                "ALTER USER root@localhost IDENTIFIED BY '{quoted}'; CREATE DATABASE d; CREATE TABLE d.t(`row` BIGINT PRIMARY KEY);\n"
            );
            let file = container.outside("/srv/stillpoint-first.sql");
            std::fs::write(&file, sql).map_err(|error| error.to_string())?;
            let made = container.shell(&format!("{first} </srv/stillpoint-first.sql"));
            let _ = std::fs::remove_file(&file);
            made?;
        }
        Ok(server)
    }

    fn parameters(&self, data: &str) -> Vec<(&'static str, String)> {
        vec![("socket", Self::socket(data))]
    }

    fn commit(&self, container: &Container, data: &str) -> Outcome<Commit> {
        let client = format!("{} -n", Self::client(data));
        let mut client = Piped::start(container, &["sh", "-c", &client], "")?;
        Ok(Box::new(move |row| {
            client.commit(&format!("INSERT INTO d.t VALUES({row});\nSELECT 'ok {row}';\n"), row)
        }))
    }

    fn rows(&self, container: &Container, data: &str) -> Outcome<BTreeSet<u64>> {
        let checked = Self::ask(container, data, "CHECK TABLE d.t EXTENDED")?;
        if !checked.trim().ends_with("OK") {
            return Err(checked);
        }
        Ok(numbers(&Self::ask(container, data, "SELECT * FROM d.t")?))
    }

    fn refusals(&self) -> Vec<Refusal> {
        vec![
            Refusal {
                name: "wrong password",
                env: vec![("MYSQL_ROOT_PASSWORD", "wrong")],
                says: "ERROR 1045",
                reason: Some(Reason::AuthenticationFailed),
                ..Refusal::default()
            },
            Refusal {
                name: "no server",
                parameters: vec![("socket", "/srv/none.sock")],
                says: "ERROR 2002",
                ..Refusal::default()
            },
        ]
    }

    fn damage(&self, container: &Container, copy: &str) -> Option<Outcome<()>> {
        Some(Self::ask(container, copy, OLD_TABLE).and_then(|_| overwrite(container, &old_table(copy))))
    }

    fn more(&self, container: &Container, recipe: &Recipe, data: &str) -> Vec<Checked> {
        match self.template {
            Kind::Observed => return self.layouts(container, data),
            Kind::Locked => {}
            Kind::Flushed => {
                let alone = Self::thaw_alone(container, recipe);
                return vec![
                    ("thaw without a lock".into(), alone),
                    ("settings".into(), Self::settings(container, data)),
                ];
            }
        }
        let without = Self::thaw_alone(container, recipe);
        let stall = recipe.stall_probe.as_ref().map(|probe| probe.command.clone()).unwrap_or_default();
        let busy = (|| {
            let nobody = container.run(&stall)?;
            if nobody.code != Some(0) || !nobody.stdout.trim().is_empty() {
                return Err(format!("nobody waits: {nobody:?}"));
            }
            let long = Self::long_select(container, data)?;
            let done = container.run(&recipe.prepare.as_ref().ok_or("no prepare")?.command)?;
            let said = done.stderr.trim().to_owned();
            if done.code == Some(0) || !said.contains("statement of session") {
                return Err(format!("prepare did not refuse: {said}"));
            }
            // One that begins after prepare.
            let mut held = Held::open(container, recipe)?;
            let frozen = held.freeze(Duration::from_secs(60));
            let stuck = container.run(&stall)?.stdout;
            drop(long);
            match frozen {
                Err(why) if why.contains("1205") && stuck.contains("sessions wait") => {
                    Ok(format!("{said}; {}", stuck.trim()))
                }
                Err(why) => Err(format!("{why}; the stall probe said {stuck:?}")),
                Ok(_) => Err("the lock was got behind a long SELECT".to_owned()),
            }
        })();
        vec![("thaw without a lock".into(), without), ("long SELECT".into(), busy)]
    }
}
