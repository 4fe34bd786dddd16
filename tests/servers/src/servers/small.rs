//! SQLite, which has no server, etcd and RabbitMQ.

use std::collections::BTreeSet;
use std::path::Path;

use stillpoint_api::template::Recipe;

use super::{Engine, Refusal, debian, numbers};
use crate::Outcome;
use crate::checks::Checked;
use crate::container::{Container, Server};
use crate::held::Held;
use crate::writer::{Commit, Piped};

/// One database file.
pub struct Sqlite {
    /// Its journal mode.
    pub journal: &'static str,
}

impl Sqlite {
    fn file(data: &str) -> String {
        format!("{data}/the file.db")
    }
}

impl Engine for Sqlite {
    fn container(&self, roots: &Path) -> Container {
        debian(roots, "sid")
    }

    fn version(&self, container: &Container) -> Outcome<String> {
        let line = container.shell("sqlite3 --version")?;
        Ok(format!("sqlite {} ({})", line.split(' ').next().unwrap_or_default(), self.journal))
    }

    fn start(&self, container: &Container, data: &str) -> Outcome<Server> {
        let file = Self::file(data);
        container.shell(&format!(
            "sqlite3 '{file}' 'PRAGMA journal_mode={}; CREATE TABLE IF NOT EXISTS t(row INTEGER PRIMARY KEY)'",
            self.journal
        ))?;
        container.serve(&["sleep", "100000"], &container.outside(data).with_extension("log"))
    }

    fn parameters(&self, data: &str) -> Vec<(&'static str, String)> {
        vec![("path", Self::file(data))]
    }

    fn commit(&self, container: &Container, data: &str) -> Outcome<Commit> {
        let first = "PRAGMA busy_timeout=600000;\nPRAGMA synchronous=OFF;\n";
        let mut client = Piped::start(container, &["sqlite3", "-batch", &Self::file(data)], first)?;
        Ok(Box::new(move |row| {
            client.commit(&format!("INSERT INTO t VALUES({row});\nSELECT 'ok {row}';\n"), row)
        }))
    }

    fn rows(&self, container: &Container, data: &str) -> Outcome<BTreeSet<u64>> {
        let checked = container.shell(&format!("sqlite3 '{}' 'PRAGMA integrity_check'", Self::file(data)))?;
        if checked.trim() != "ok" {
            return Err(format!("PRAGMA integrity_check: {checked}"));
        }
        Ok(numbers(&container.shell(&format!("sqlite3 '{}' 'SELECT row FROM t'", Self::file(data)))?))
    }

    fn refusals(&self) -> Vec<Refusal> {
        vec![Refusal {
            name: "no file",
            parameters: vec![("path", "/srv/none.db")],
            says: "there is no file /srv/none.db",
            ..Refusal::default()
        }]
    }

    fn damage(&self, container: &Container, copy: &str) -> Option<Outcome<()>> {
        // Also of a page whose newest state is in the log yet.
        let file = Self::file(copy);
        let whole = format!("sqlite3 '{file}' 'PRAGMA wal_checkpoint(TRUNCATE)'");
        let page = format!("dd if=/dev/zero of='{file}' bs=4096 seek=2 count=1 conv=notrunc status=none");
        Some(container.shell(&format!("{whole} && {page}")).map(|_| ()))
    }

    fn more(&self, container: &Container, recipe: &Recipe, data: &str) -> Vec<Checked> {
        let stolen = (|| {
            let mut held = Held::open(container, recipe)?;
            let done = container.outside("/srv/none.db").exists();
            if done {
                return Err("the client made a file".to_owned());
            }
            // A thaw without a transaction must print nothing: THAWED is the proof of the lock.
            match held.close() {
                Err(why) if why.contains("no transaction is active") => {
                    Ok("THAWED is not printed without the lock".into())
                }
                Err(why) => Err(why),
                Ok(_) => Err("THAWED was printed without a lock".to_owned()),
            }
        })();
        let _ = data;
        vec![("thaw without a lock".into(), stolen)]
    }
}

/// One member of its own.
pub struct Etcd;

const ETCD: &str = "http://127.0.0.1:22379";

impl Etcd {
    fn ask(container: &Container, command: &str) -> Outcome<String> {
        container.shell(&format!("etcdctl --endpoints={ETCD} {command}"))
    }
}

impl Engine for Etcd {
    fn container(&self, roots: &Path) -> Container {
        debian(roots, "sid")
    }

    fn version(&self, container: &Container) -> Outcome<String> {
        let text = container.shell("etcd --version")?;
        Ok(text.lines().next().unwrap_or_default().replace("etcd Version: ", "etcd "))
    }

    fn start(&self, container: &Container, data: &str) -> Outcome<Server> {
        let peer = "http://127.0.0.1:22380";
        let (cluster, listen) = (format!("n={peer}"), format!("--listen-client-urls={ETCD}"));
        let (advertise, peers) =
            (format!("--advertise-client-urls={ETCD}"), format!("--listen-peer-urls={peer}"));
        let (initial, members) =
            (format!("--initial-advertise-peer-urls={peer}"), format!("--initial-cluster={cluster}"));
        let mut argv = vec![
            "etcd",
            "--name",
            "n",
            "--data-dir",
            data,
            &listen,
            &advertise,
            &peers,
            &initial,
            &members,
            "--log-level=warn",
        ];
        if data.ends_with("-copy") {
            argv.push("--force-new-cluster");
        }
        let mut server = container.serve(&argv, &container.outside(data).with_extension("log"))?;
        server.until(|| Self::ask(container, "endpoint health").map(|_| ()))?;
        Ok(server)
    }

    fn parameters(&self, _data: &str) -> Vec<(&'static str, String)> {
        vec![("endpoint", ETCD.to_owned())]
    }

    fn commit(&self, container: &Container, _data: &str) -> Outcome<Commit> {
        let container = container.clone();
        Ok(Box::new(move |row| Self::ask(&container, &format!("put rows/{row} {row}")).map(|_| ())))
    }

    fn rows(&self, container: &Container, _data: &str) -> Outcome<BTreeSet<u64>> {
        Ok(numbers(&Self::ask(container, "get --prefix rows/ --print-value-only")?))
    }

    fn refusals(&self) -> Vec<Refusal> {
        vec![Refusal {
            name: "no server",
            parameters: vec![("endpoint", "http://127.0.0.1:22999")],
            says: "Error: context deadline exceeded",
            ..Refusal::default()
        }]
    }

    fn damage(&self, container: &Container, copy: &str) -> Option<Outcome<()>> {
        // The server has the file in its memory as it lies on the volume.
        let line = format!(
            "dd if=/dev/zero of='{copy}/member/snap/db' bs=4096 seek=2 count=400 conv=notrunc status=none"
        );
        Some(container.shell(&line).map(|_| ()))
    }
}

/// One node; what is written are global parameters, which definitions have.
pub struct Rabbitmq;

impl Rabbitmq {
    const ENVIRONMENT: &'static str = "ERL_EPMD_PORT=24369 RABBITMQ_NODENAME=stillpoint@localhost RABBITMQ_NODE_PORT=25672 RABBITMQ_DIST_PORT=25673";

    fn ask(container: &Container, command: &str) -> Outcome<String> {
        container.shell(&format!("rabbitmqctl --quiet {command}"))
    }
}

impl Engine for Rabbitmq {
    fn container(&self, roots: &Path) -> Container {
        let mut container = debian(roots, "sid");
        container.env = Self::ENVIRONMENT
            .split(' ')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        container
    }

    fn version(&self, container: &Container) -> Outcome<String> {
        let text = container.shell("dpkg-query -W -f '${Version}' rabbitmq-server")?;
        Ok(format!("rabbitmq {text}"))
    }

    fn start(&self, container: &Container, data: &str) -> Outcome<Server> {
        let mut of_data = container.clone();
        for (name, directory) in
            [("RABBITMQ_MNESIA_BASE", data.to_owned()), ("RABBITMQ_LOG_BASE", format!("{data}.logs"))]
        {
            of_data.env.push((name.into(), directory));
        }
        container.shell(&format!(
            "mkdir -p '{data}.logs'; chown -R rabbitmq '{data}' '{data}.logs'; epmd -port 24369 -daemon"
        ))?;
        let mut server =
            of_data.serve(&["rabbitmq-server"], &container.outside(data).with_extension("log"))?;
        server.until(|| Self::ask(container, "await_startup --timeout 5").map(|_| ()))?;
        Ok(server)
    }

    fn parameters(&self, data: &str) -> Vec<(&'static str, String)> {
        vec![("directory", data.to_owned())]
    }

    fn commit(&self, container: &Container, _data: &str) -> Outcome<Commit> {
        let container = container.clone();
        Ok(Box::new(move |row| {
            Self::ask(&container, &format!("set_global_parameter row-{row} 1")).map(|_| ())
        }))
    }

    fn rows(&self, container: &Container, data: &str) -> Outcome<BTreeSet<u64>> {
        // What the file says, and that the node of the copy runs.
        let text = container.shell(&format!("cat '{data}/definitions.stillpoint.json'"))?;
        Self::ask(container, "status")?;
        let value: serde_json::Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let all = value["global_parameters"].as_array().cloned().unwrap_or_default();
        let names = all.iter().filter_map(|one| one["name"].as_str()?.strip_prefix("row-")?.parse().ok());
        Ok(names.collect())
    }

    fn refusals(&self) -> Vec<Refusal> {
        vec![Refusal {
            name: "no directory",
            parameters: vec![("directory", "/srv/none")],
            says: "there is no directory /srv/none",
            ..Refusal::default()
        }]
    }
}
