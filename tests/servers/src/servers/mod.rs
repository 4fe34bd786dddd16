//! The servers: how each is started, written to and read, and what its template must refuse.

mod columns;
mod db2;
mod jvm;
mod minio;
mod mysql;
mod own;
mod redis;
mod small;
mod sql;
mod sqlserver;
mod suspension;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use stillpoint_api::template::Recipe;
use stillpoint_executor::run::Reason;

use crate::Outcome;
use crate::checks::Checked;
use crate::container::{Container, Server};
use crate::held::ACQUIRE;
use crate::writer::Commit;

/// One template on one server.
pub struct Row {
    /// The template.
    pub template: &'static str,
    /// Name of the row, and of its directories.
    pub name: &'static str,
    /// The server.
    pub engine: Box<dyn Engine>,
}

/// A prepare that must fail.
#[derive(Clone, Debug, Default)]
pub struct Refusal {
    /// Name of the check.
    pub name: &'static str,
    /// Parameters that differ.
    pub parameters: Vec<(&'static str, &'static str)>,
    /// Variables that differ.
    pub env: Vec<(&'static str, &'static str)>,
    /// What its message must contain.
    pub says: &'static str,
    /// Its reason, where one is expected.
    pub reason: Option<Reason>,
}

/// A kind of server.
pub trait Engine {
    /// Where it runs.
    fn container(&self, roots: &Path) -> Container;
    /// Its version.
    fn version(&self, container: &Container) -> Outcome<String>;
    /// Starts it on a directory, which is new or has its data, and waits until it answers.
    fn start(&self, container: &Container, data: &str) -> Outcome<Server>;
    /// Directories that a copy needs, cut one after the other; the first is the one that it is started on.
    fn volumes(&self, data: &str) -> Vec<String> {
        vec![data.to_owned()]
    }
    /// Parameters of the template.
    fn parameters(&self, data: &str) -> Vec<(&'static str, String)>;
    /// A way to commit rows.
    fn commit(&self, container: &Container, data: &str) -> Outcome<Commit>;
    /// The rows that are there.
    fn rows(&self, container: &Container, data: &str) -> Outcome<BTreeSet<u64>>;
    /// What must be refused.
    fn refusals(&self) -> Vec<Refusal> {
        Vec::new()
    }
    /// Whether a lock survives when everything is killed at once, so that `recover` has to undo it.
    fn outlives_its_client(&self) -> bool {
        false
    }
    /// `acquireTimeout`: longer where the freeze text waits for more than a lock.
    fn acquire(&self) -> Duration {
        ACQUIRE
    }
    /// Damages what the server of a copy runs on, so that the template's checks must not pass any more.
    fn damage(&self, _container: &Container, _copy: &str) -> Option<Outcome<()>> {
        None
    }
    /// Checks of its own.
    fn more(&self, _container: &Container, _recipe: &Recipe, _data: &str) -> Vec<Checked> {
        Vec::new()
    }
}

/// Every row.
pub fn all() -> Vec<Row> {
    let row = |template, name, engine| Row { template, name, engine };
    vec![
        row("redis", "redis", Box::new(redis::Redis::append_only("redis"))),
        row("valkey", "valkey", Box::new(redis::Redis::append_only("valkey"))),
        row("redis-rdb", "redis-rdb", Box::new(redis::Redis::snapshot_file("redis"))),
        row("redis-rdb", "valkey-rdb", Box::new(redis::Redis::snapshot_file("valkey"))),
        row("sqlite", "sqlite-wal", Box::new(small::Sqlite { journal: "wal" })),
        row("sqlite", "sqlite-delete", Box::new(small::Sqlite { journal: "delete" })),
        row("mysql", "mysql", Box::new(mysql::Mysql { template: mysql::Kind::Observed, gtid: true })),
        row(
            "mysql-locked",
            "mysql-locked",
            Box::new(mysql::Mysql { template: mysql::Kind::Locked, gtid: true }),
        ),
        row(
            "mysql-locked",
            "mysql-locked-file",
            Box::new(mysql::Mysql { template: mysql::Kind::Locked, gtid: false }),
        ),
        row(
            "mysql-flushed",
            "mysql-flushed",
            Box::new(mysql::Mysql { template: mysql::Kind::Flushed, gtid: true }),
        ),
        row("mariadb", "mariadb", Box::new(sql::Mariadb)),
        row("postgresql", "postgresql-14", Box::new(sql::Postgres { version: "14" })),
        row("postgresql", "postgresql-17", Box::new(sql::Postgres { version: "17" })),
        row("postgresql", "postgresql-18", Box::new(sql::Postgres { version: "18" })),
        row("etcd", "etcd", Box::new(small::Etcd)),
        row("cassandra", "cassandra", Box::new(own::Cassandra)),
        row("rabbitmq", "rabbitmq", Box::new(small::Rabbitmq)),
        row("mongodb", "mongodb", Box::new(own::Mongodb)),
        row("mongodb-locked", "mongodb-locked", Box::new(own::Mongodb)),
        row("db2", "db2", Box::new(db2::Db2)),
        row("sqlserver", "sqlserver", Box::new(sqlserver::SqlServer { stays: false })),
        row("sqlserver", "sqlserver-stays", Box::new(sqlserver::SqlServer { stays: true })),
        row("clickhouse", "clickhouse", Box::new(columns::Clickhouse)),
        row("influxdb", "influxdb", Box::new(columns::Influxdb)),
        row("kafka", "kafka", Box::new(jvm::Kafka { cluster: false })),
        row("kafka-cluster", "kafka-cluster", Box::new(jvm::Kafka { cluster: true })),
        row("opensearch", "opensearch", Box::new(jvm::Search { product: "opensearch" })),
        row("elasticsearch", "elasticsearch", Box::new(jvm::Search { product: "elasticsearch" })),
        row("neo4j", "neo4j", Box::new(jvm::Neo4j)),
        row("minio", "minio", Box::new(minio::Minio)),
    ]
}

/// A Debian root directory of `tests/servers`.
fn debian(roots: &Path, name: &str) -> Container {
    Container {
        root: roots.join(name),
        path: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
        env: Vec::new(),
    }
}

/// A table for MySQL and MariaDB whose rows lie in a file that the server reads again: pages of InnoDB that it has are not read.
const OLD_TABLE: &str = "CREATE TABLE d.old (v BIGINT PRIMARY KEY) ENGINE=MyISAM; INSERT INTO d.old SELECT * FROM d.t; FLUSH TABLES d.old";

/// Its rows, for `overwrite`.
fn old_table(data: &str) -> String {
    format!("'{data}/d' -name old.MYD")
}

/// Overwrites the middle of each file that `find` prints with these arguments; one at least.
fn overwrite(container: &Container, find: &str) -> Outcome<()> {
    let line = format!(
        "find {find} > /tmp/stillpoint-damaged; [ -s /tmp/stillpoint-damaged ] || exit 3; while IFS= read -r file; do \
         size=$(stat -c %s \"$file\"); printf '\\377\\000\\252\\125\\377\\000\\252\\125' | \
         dd of=\"$file\" bs=1 seek=$((size / 2)) conv=notrunc status=none || exit 3; done < /tmp/stillpoint-damaged; \
         rm /tmp/stillpoint-damaged"
    );
    container.shell(&line).map(|_| ())
}

fn numbers(text: &str) -> BTreeSet<u64> {
    text.split_whitespace().filter_map(|word| word.trim_matches('"').parse().ok()).collect()
}
