//! Servers that run on this machine's own root: Cassandra from its jars, and the stand-in for MongoDB on the real WiredTiger.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use stillpoint_api::template::{Language, Recipe};

use super::{Engine, Refusal, numbers};
use crate::Outcome;
use crate::checks::Checked;
use crate::container::{Container, Server};
use crate::held::Held;
use crate::literals::literals;
use crate::writer::{Commit, Piped};

/// One node.
pub struct Cassandra;

const CQL: &str = r#"
import sys
from cassandra.cluster import Cluster
session = Cluster(["127.0.0.1"], port=9042).connect()
session.execute("CREATE KEYSPACE IF NOT EXISTS d WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}")
session.execute("CREATE TABLE IF NOT EXISTS d.t (row bigint PRIMARY KEY)")
if sys.argv[1:] == ["read"]:
    for row in session.execute("SELECT row FROM d.t"):
        print(row.row)
else:
    for line in sys.stdin:
        session.execute("INSERT INTO d.t (row) VALUES (%s)", (int(line),))
        print("ok", line.strip(), flush=True)
"#;

pub(super) fn own(roots: &Path, programs: &str) -> Container {
    let path = std::env::var("PATH").unwrap_or_default();
    Container {
        root: PathBuf::from("/"),
        path: format!("{}:{path}", roots.join(programs).display()),
        env: vec![("ROOTS".into(), roots.display().to_string())],
    }
}

impl Cassandra {
    fn python(container: &Container, arguments: &str) -> Outcome<String> {
        container.shell(&format!(
            "\"$ROOTS/cass/venv/bin/python\" -c '{}' {arguments}",
            CQL.replace('\'', "'\\''")
        ))
    }
}

impl Engine for Cassandra {
    fn container(&self, roots: &Path) -> Container {
        own(roots, "cass/bin")
    }

    fn version(&self, container: &Container) -> Outcome<String> {
        let name = container.shell("cd \"$ROOTS/cass/lib\" && ls cassandra-all-*.jar")?;
        Ok(name.trim().trim_end_matches(".jar").replace("cassandra-all-", "cassandra "))
    }

    fn start(&self, container: &Container, data: &str) -> Outcome<Server> {
        let line = r#"D=$ROOTS/cass; sed "s#@DIR@#$0#" "$D/conf/cassandra.yaml" >"$0.yaml"; sed "s#@DIR@#$0#" "$D/conf/logback.xml" >"$0.xml"
            exec java @"$D/conf/jvm17.opts" -javaagent:"$(ls "$D"/lib/jamm-*.jar)" -Dcassandra.config="file://$0.yaml" \
            -Dcassandra.storagedir="$0" -Dlogback.configurationFile="$0.xml" -Dcassandra.jmx.local.port=7199 \
            -Dcassandra-foreground=yes -cp "$D/conf:$D/lib/*" org.apache.cassandra.service.CassandraDaemon"#;
        let mut server =
            container.serve(&["sh", "-c", line, data], &container.outside(data).with_extension("log"))?;
        server.until(|| Self::python(container, "read").map(|_| ()))?;
        Ok(server)
    }

    fn parameters(&self, _data: &str) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn commit(&self, container: &Container, _data: &str) -> Outcome<Commit> {
        let line = "exec \"$ROOTS/cass/venv/bin/python\" -c \"$0\"";
        let mut client = Piped::start(container, &["sh", "-c", line, CQL], "")?;
        Ok(Box::new(move |row| client.commit(&format!("{row}\n"), row)))
    }

    fn rows(&self, container: &Container, _data: &str) -> Outcome<BTreeSet<u64>> {
        Ok(numbers(&Self::python(container, "read")?))
    }

    fn refusals(&self) -> Vec<Refusal> {
        vec![Refusal {
            name: "no server",
            parameters: vec![("jmxPort", "7299")],
            says: "nodetool failed on JMX port 7299",
            ..Refusal::default()
        }]
    }
}

/// The real client and storage engine; the server's own code around it is a stand-in.
pub struct Mongodb;

const PORT: &str = "27117";

impl Mongodb {
    fn ask(container: &Container, script: &str) -> Outcome<String> {
        let argv = [
            "mongosh",
            "--quiet",
            "--norc",
            &format!("mongodb://127.0.0.1:{PORT}/d?directConnection=true"),
            "--eval",
            script,
        ];
        let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
        let done = container.run(&argv)?;
        if done.code == Some(0) { Ok(done.stdout) } else { Err(format!("{done:?}")) }
    }
}

impl Engine for Mongodb {
    fn container(&self, roots: &Path) -> Container {
        own(roots, "mongo/shell/node_modules/.bin")
    }

    fn version(&self, container: &Container) -> Outcome<String> {
        let shell = container.shell("mongosh --version")?;
        Ok(format!("mongosh {}, WiredTiger (stand-in server)", shell.trim()))
    }

    fn start(&self, container: &Container, data: &str) -> Outcome<Server> {
        let line = "exec \"$ROOTS/mongo/server/bin/python\" \"$ROOTS/mongo/mongod.py\" --port \"$1\" --storage-path \"$0\" --sync-on-commit";
        let mut server = container
            .serve(&["sh", "-c", line, data, PORT], &container.outside(data).with_extension("log"))?;
        server.until(|| Self::ask(container, "db.runCommand({ ping: 1 })").map(|_| ()))?;
        Ok(server)
    }

    fn parameters(&self, _data: &str) -> Vec<(&'static str, String)> {
        vec![("port", PORT.to_owned())]
    }

    fn commit(&self, container: &Container, _data: &str) -> Outcome<Commit> {
        let url = format!("mongodb://127.0.0.1:{PORT}/d?directConnection=true");
        let mut client = Piped::start(container, &["mongosh", "--quiet", "--norc", &url], "")?;
        Ok(Box::new(move |row| {
            let text = format!(
                "db.t.insertOne({{_id: {row}}}, {{writeConcern: {{j: true}}}}); print(\"\\nok {row}\");\n"
            );
            client.commit(&text, row)
        }))
    }

    fn rows(&self, container: &Container, _data: &str) -> Outcome<BTreeSet<u64>> {
        Ok(numbers(&Self::ask(container, "db.t.find().forEach(one => print(Number(one._id)))")?))
    }

    fn outlives_its_client(&self) -> bool {
        true
    }

    fn refusals(&self) -> Vec<Refusal> {
        vec![Refusal {
            name: "no server",
            parameters: vec![("port", "27999")],
            says: "ECONNREFUSED",
            ..Refusal::default()
        }]
    }

    fn more(&self, container: &Container, recipe: &Recipe, _data: &str) -> Vec<Checked> {
        let Some(recover) = &recipe.recover else {
            let url = format!("mongodb://127.0.0.1:{PORT}/d?directConnection=true");
            return vec![literals(
                container,
                &["mongosh", "--quiet", "--norc", &url],
                Language::Javascript,
                &[""],
            )];
        };
        let lock = "db.getSiblingDB(\"admin\").runCommand({ fsync: 1, lock: true })";
        let unlock = "db.getSiblingDB(\"admin\").runCommand({ fsyncUnlock: 1 })";
        let foreign = (|| {
            Self::ask(container, lock)?;
            let opened = Held::open(container, recipe).map(|_| ());
            let frozen = container.run(&recover.probe)?.code == Some(0);
            Self::ask(container, unlock)?;
            match opened {
                Err(why) if why.contains("foreign_freeze") && frozen => {
                    Ok("left alone, and left locked".to_owned())
                }
                other => Err(format!("{other:?}, still locked: {frozen}")),
            }
        })();
        let recovered = (|| {
            Self::ask(container, lock)?;
            let undone = container.run(&recover.command)?;
            let after = container.run(&recover.probe)?;
            let again = container.run(&recover.command)?;
            if undone.code == Some(0) && after.code == Some(1) && again.code == Some(0) {
                return Ok("unlocked; a second time does no harm".to_owned());
            }
            Err(format!("{undone:?} {after:?} {again:?}"))
        })();
        vec![("foreign lock".into(), foreign), ("recover".into(), recovered)]
    }
}
