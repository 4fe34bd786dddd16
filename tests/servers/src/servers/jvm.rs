//! Servers from their jars on this machine's own root: Kafka, OpenSearch, Elasticsearch and Neo4j. `clients` has the programs that
//! start them without their distributions, and write to them.

use std::collections::BTreeSet;
use std::path::Path;

use stillpoint_api::template::Recipe;

use super::own::own;
use super::{Engine, Refusal, numbers, overwrite};
use crate::Outcome;
use crate::checks::Checked;
use crate::container::{Container, Server};
use crate::writer::{Commit, Piped};

fn client(name: &str) -> String {
    format!("{}/clients/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn jar_version(container: &Container, directory: &str, jar: &str) -> Outcome<String> {
    let found = container.shell(&format!("cd \"$ROOTS/{directory}/lib\" && ls {jar}-[0-9]*.jar"))?;
    Ok(found.trim().trim_end_matches(".jar").trim_start_matches(jar).trim_start_matches('-').to_owned())
}

/// One server, broker and controller.
pub struct Kafka {
    /// For the template of several servers, which asks for less and is run with one.
    pub cluster: bool,
}

const BOOTSTRAP: &str = "127.0.0.1:29192";

impl Engine for Kafka {
    fn container(&self, roots: &Path) -> Container {
        own(roots, "kafka/bin")
    }

    fn version(&self, container: &Container) -> Outcome<String> {
        Ok(format!("kafka {}", jar_version(container, "kafka", "kafka-clients")?))
    }

    fn start(&self, container: &Container, data: &str) -> Outcome<Server> {
        // Operators give each log a directory below the volume's.
        let logs = if self.cluster { format!("{data}/kafka-log1") } else { data.to_owned() };
        let text = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:29193\n\
             listeners=PLAINTEXT://{BOOTSTRAP},CONTROLLER://127.0.0.1:29193\ncontroller.listener.names=CONTROLLER\n\
             log.dirs={logs}\noffsets.topic.replication.factor=1\ntransaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n"
        );
        let file = format!("{data}.properties");
        std::fs::write(&file, text).map_err(|error| error.to_string())?;
        container.shell(&format!(
            "java -Xmx96m -cp \"$ROOTS/kafka/lib/*\" kafka.tools.StorageTool format -t 5L6g3nShT-eMCtK--X86sw -c '{file}' --ignore-formatted"
        ))?;
        let line = "exec java -Xmx512m -cp \"$ROOTS/kafka/lib/*\" kafka.Kafka \"$0\"";
        let mut server =
            container.serve(&["sh", "-c", line, &file], &container.outside(data).with_extension("log"))?;
        server.until(|| {
            container
                .shell(&format!("kafka-metadata-quorum.sh --bootstrap-server {BOOTSTRAP} describe --status"))
                .map(|_| ())
        })?;
        Ok(server)
    }

    fn parameters(&self, data: &str) -> Vec<(&'static str, String)> {
        vec![("directory", data.to_owned()), ("port", "29192".to_owned())]
    }

    fn commit(&self, container: &Container, _data: &str) -> Outcome<Commit> {
        let line = "exec java -Xmx128m -cp \"$ROOTS/kafka/lib/*\" \"$0\" write \"$1\"";
        let argv = ["sh", "-c", line, &client("KafkaRows.java"), BOOTSTRAP];
        let mut client = Piped::start(container, &argv, "")?;
        Ok(Box::new(move |row| client.commit(&format!("{row}\n"), row)))
    }

    fn rows(&self, container: &Container, _data: &str) -> Outcome<BTreeSet<u64>> {
        let program = client("KafkaRows.java");
        let line = format!("java -Xmx128m -cp \"$ROOTS/kafka/lib/*\" '{program}' read {BOOTSTRAP}");
        Ok(numbers(&container.shell(&line)?))
    }

    fn refusals(&self) -> Vec<Refusal> {
        let mut refusals = vec![Refusal {
            name: "no directory",
            parameters: vec![("directory", "/srv/none")],
            says: "there is no meta.properties in /srv/none",
            ..Refusal::default()
        }];
        if !self.cluster {
            refusals.push(Refusal {
                name: "no server",
                parameters: vec![("port", "29999")],
                says: "the server does not answer on port 29999: ",
                ..Refusal::default()
            });
        }
        refusals
    }

    fn damage(&self, container: &Container, copy: &str) -> Option<Outcome<()>> {
        Some(overwrite(container, &format!("'{copy}' -path '*/rows-0/*' -name '*.log'")))
    }

    fn more(&self, container: &Container, recipe: &Recipe, data: &str) -> Vec<Checked> {
        if self.cluster {
            return Vec::new();
        }
        // A second one joins as a broker; it is counted as long as it is there.
        let joined = (|| {
            let second = format!("{data}.second");
            let text = format!(
                "process.roles=broker\nnode.id=2\ncontroller.quorum.voters=1@127.0.0.1:29193\n\
                 listeners=PLAINTEXT://127.0.0.1:29194\ncontroller.listener.names=CONTROLLER\nlog.dirs={second}\n"
            );
            let file = format!("{second}.properties");
            std::fs::write(&file, text).map_err(|error| error.to_string())?;
            container.shell(&format!(
                "rm -rf '{second}'; java -Xmx96m -cp \"$ROOTS/kafka/lib/*\" kafka.tools.StorageTool format -t 5L6g3nShT-eMCtK--X86sw -c '{file}'"
            ))?;
            let line = "exec java -Xmx256m -cp \"$ROOTS/kafka/lib/*\" kafka.Kafka \"$0\"";
            let mut server = container
                .serve(&["sh", "-c", line, &file], &container.outside(&second).with_extension("log"))?;
            let prepare = recipe.prepare.as_ref().ok_or("no prepare")?;
            let mut said = String::new();
            let asked = std::cell::RefCell::new(&mut said);
            server.until(|| {
                let done = container.run(&prepare.command)?;
                **asked.borrow_mut() = done.stderr.trim().to_owned();
                if done.code == Some(0) { Err("not refused yet".to_owned()) } else { Ok(()) }
            })?;
            drop(server);
            let _ = std::fs::remove_dir_all(&second);
            if said.contains("the cluster has 2 servers") { Ok(said) } else { Err(said) }
        })();
        vec![("a second server".into(), joined)]
    }
}

/// One node of OpenSearch, or of Elasticsearch, from which its code comes.
pub struct Search {
    /// Name of the product, and of its packages.
    pub product: &'static str,
}

impl Search {
    fn ask(container: &Container, method: &str, path: &str, body: &str) -> Outcome<String> {
        container.shell(&format!(
            "curl -sS -f -X {method} -H 'Content-Type: application/json' -d '{body}' 'http://127.0.0.1:29200/{path}'"
        ))
    }
}

impl Engine for Search {
    fn container(&self, roots: &Path) -> Container {
        own(roots, self.product)
    }

    fn version(&self, container: &Container) -> Outcome<String> {
        Ok(format!("{} {}", self.product, jar_version(container, self.product, self.product)?))
    }

    fn start(&self, container: &Container, data: &str) -> Outcome<Server> {
        let copy = data.ends_with("-copy");
        // The data directories of a copy are not started.
        let home = if copy { format!("{data}/fresh") } else { format!("{data}/node") };
        let program =
            std::fs::read_to_string(client("SearchNode.java")).map_err(|error| error.to_string())?;
        let program = program.replace("org.opensearch", &format!("org.{}", self.product));
        container.shell(&format!("mkdir -p '{home}' '{data}/backups' '{data}.d'"))?;
        let file = format!("{data}.d/SearchNode.java");
        std::fs::write(&file, program).map_err(|error| error.to_string())?;
        let line = "exec java -Xmx512m -cp \"$ROOTS/$0/lib/*\" \"$1\" \"$2\" \"$3\" 29200";
        let argv = ["sh", "-c", line, self.product, &file, &home, &format!("{data}/backups")];
        let mut server = container.serve(&argv, &container.outside(data).with_extension("log"))?;
        server.until(|| Self::ask(container, "GET", "_cluster/health", "").map(|_| ()))?;
        // Into a copy the template restores.
        if !copy {
            let settings = "{\"settings\":{\"number_of_shards\":1,\"number_of_replicas\":0}}";
            Self::ask(container, "PUT", "rows", settings)?;
        }
        Ok(server)
    }

    fn parameters(&self, data: &str) -> Vec<(&'static str, String)> {
        vec![("url", "http://127.0.0.1:29200".to_owned()), ("directory", format!("{data}/backups"))]
    }

    fn commit(&self, container: &Container, _data: &str) -> Outcome<Commit> {
        let container = container.clone();
        Ok(Box::new(move |row| Self::ask(&container, "PUT", &format!("rows/_doc/{row}"), "{}").map(|_| ())))
    }

    fn rows(&self, container: &Container, _data: &str) -> Outcome<BTreeSet<u64>> {
        Self::ask(container, "POST", "rows/_refresh", "")?;
        let path = "rows/_search?size=10000&_source=false&filter_path=hits.hits._id";
        let text = Self::ask(container, "GET", path, "")?;
        let value: serde_json::Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let hits = value["hits"]["hits"].as_array().cloned().unwrap_or_default();
        Ok(hits.iter().filter_map(|hit| hit["_id"].as_str()?.parse().ok()).collect())
    }

    fn refusals(&self) -> Vec<Refusal> {
        vec![
            Refusal {
                name: "no server",
                parameters: vec![("url", "http://127.0.0.1:29999")],
                says: "no answer at http://127.0.0.1:29999: ",
                ..Refusal::default()
            },
            Refusal {
                name: "no directory",
                parameters: vec![("directory", "/srv/none")],
                says: "there is no directory /srv/none",
                ..Refusal::default()
            },
            Refusal {
                name: "another directory",
                parameters: vec![("directory", "/srv"), ("repository", "other")],
                says: "path.repo must name it",
                ..Refusal::default()
            },
        ]
    }

    fn damage(&self, container: &Container, copy: &str) -> Option<Outcome<()>> {
        // What would have been restored from damaged files.
        Some((|| {
            Self::ask(container, "DELETE", "rows", "")?;
            overwrite(container, &format!("'{copy}/backups/indices' -type f -name '__*'"))?;
            let names = Self::ask(container, "GET", "_cat/snapshots/stillpoint?h=id", "")?;
            let name = names.split_whitespace().next().ok_or("the repository has no snapshot")?;
            let path = format!("_snapshot/stillpoint/{name}/_restore?wait_for_completion=true");
            Self::ask(container, "POST", &path, "{\"indices\":\"rows\"}").map(|_| ())
        })())
    }

    fn more(&self, container: &Container, recipe: &Recipe, data: &str) -> Vec<Checked> {
        let kept = (|| {
            Self::ask(container, "PUT", "_snapshot/stillpoint/foreign?wait_for_completion=true", "{}")?;
            let prepare = recipe.prepare.as_ref().ok_or("no prepare")?;
            let done = container.run(&prepare.command)?;
            let names = Self::ask(container, "GET", "_cat/snapshots/stillpoint?h=id", "")?;
            let names: Vec<&str> = names.split_whitespace().collect();
            let ours = names.iter().filter(|name| name.starts_with("stillpoint-")).count();
            if done.code == Some(0) && ours == 1 && names.contains(&"foreign") {
                return Ok("the newest of ours, and what is not ours".to_owned());
            }
            Err(format!("{names:?} {done:?}"))
        })();
        let moved = (|| {
            let repository =
                format!("{{\"type\":\"fs\",\"settings\":{{\"location\":\"{data}/backups/below\"}}}}");
            Self::ask(container, "PUT", "_snapshot/below", &repository)?;
            let prepare = recipe.prepare.as_ref().ok_or("no prepare")?;
            let argv: Vec<String> = prepare
                .command
                .iter()
                .map(|word| if word == "stillpoint" { "below".to_owned() } else { word.clone() })
                .collect();
            let done = container.run(&argv)?;
            if done.code != Some(0) && done.stderr.contains("lies in") {
                return Ok(done.stderr.trim().to_owned());
            }
            Err(format!("{done:?}"))
        })();
        vec![("what is kept".into(), kept), ("repository elsewhere".into(), moved)]
    }
}

/// The kernel of the Community edition, with Bolt.
pub struct Neo4j;

impl Neo4j {
    const ADDRESS: &'static str = "bolt://127.0.0.1:27687";
    const PASSWORD: &'static str = "s3/cret'\"";

    fn ask(container: &Container, password: &str, database: &str, statement: &str) -> Outcome<String> {
        let mut container = container.clone();
        container.env.push(("NEO4J_USERNAME".into(), "neo4j".into()));
        container.env.push(("NEO4J_PASSWORD".into(), password.into()));
        let argv = [
            "cypher-shell",
            "--non-interactive",
            "--format",
            "plain",
            "-a",
            Self::ADDRESS,
            "-d",
            database,
            statement,
        ];
        let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
        let done = container.run(&argv)?;
        if done.code == Some(0) { Ok(done.stdout) } else { Err(format!("{done:?}")) }
    }
}

impl Engine for Neo4j {
    fn container(&self, roots: &Path) -> Container {
        let mut container = own(roots, "neo4j/bin");
        container.env.push(("NEO4J_AUTH".into(), format!("neo4j/{}", Self::PASSWORD)));
        container
    }

    fn version(&self, container: &Container) -> Outcome<String> {
        Ok(format!("neo4j {}", jar_version(container, "neo4j", "neo4j-kernel")?))
    }

    fn start(&self, container: &Container, data: &str) -> Outcome<Server> {
        let text = format!(
            "server.directories.data={data}\nserver.bolt.enabled=true\nserver.bolt.listen_address=127.0.0.1:27687\n\
             dbms.security.auth_enabled=true\nserver.memory.pagecache.size=64m\n"
        );
        let file = format!("{data}.conf");
        std::fs::write(&file, text).map_err(|error| error.to_string())?;
        let line = "exec java -Xmx512m --add-opens=java.base/java.nio=ALL-UNNAMED --add-opens=java.base/java.io=ALL-UNNAMED \
            --add-opens=java.base/sun.nio.ch=ALL-UNNAMED -cp \"$ROOTS/neo4j/lib/*\" \"$0\" \"$1.home\" \"$1.conf\"";
        let mut server = container.serve(
            &["sh", "-c", line, &client("NeoServer.java"), data],
            &container.outside(data).with_extension("log"),
        )?;
        let quoted = Self::PASSWORD.replace('\'', "\\'");
        let change = format!("ALTER CURRENT USER SET PASSWORD FROM 'neo4j' TO '{quoted}'");
        server.until(|| {
            // The password of a new server has to be changed first.
            Self::ask(container, Self::PASSWORD, "neo4j", "RETURN 1").map(|_| ()).or_else(|why| {
                Self::ask(container, "neo4j", "system", &change).map(|_| ()).map_err(|_| why)?;
                Err("its password was changed".to_owned())
            })
        })?;
        Ok(server)
    }

    fn parameters(&self, data: &str) -> Vec<(&'static str, String)> {
        vec![("directory", data.to_owned()), ("address", Self::ADDRESS.to_owned())]
    }

    fn commit(&self, container: &Container, _data: &str) -> Outcome<Commit> {
        let mut container = container.clone();
        container.env.push(("NEO4J_USERNAME".into(), "neo4j".into()));
        container.env.push(("NEO4J_PASSWORD".into(), Self::PASSWORD.into()));
        // cypher-shell answers a pipe at its end.
        let line = "exec java -Xmx128m -cp \"$ROOTS/neo4j/lib/*\" \"$0\" \"$1\"";
        let argv = ["sh", "-c", line, &client("NeoRows.java"), Self::ADDRESS];
        let mut client = Piped::start(&container, &argv, "")?;
        Ok(Box::new(move |row| client.commit(&format!("{row}\n"), row)))
    }

    fn rows(&self, container: &Container, _data: &str) -> Outcome<BTreeSet<u64>> {
        Ok(numbers(&Self::ask(container, Self::PASSWORD, "neo4j", "MATCH (r:Row) RETURN r.row")?))
    }

    fn refusals(&self) -> Vec<Refusal> {
        vec![
            Refusal {
                name: "wrong password",
                env: vec![("NEO4J_AUTH", "neo4j/another")],
                says: "authentication failed: set passwordFile",
                ..Refusal::default()
            },
            Refusal {
                name: "no server",
                parameters: vec![("address", "bolt://127.0.0.1:27999")],
                says: "the server does not answer at bolt://127.0.0.1:27999",
                ..Refusal::default()
            },
            Refusal {
                name: "no directory",
                parameters: vec![("directory", "/srv/none")],
                says: "there is no /srv/none/transactions",
                ..Refusal::default()
            },
        ]
    }
}
