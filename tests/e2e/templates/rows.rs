//! The table: which template on which server, what it claims there, what must go wrong and how, and what shows that the suite
//! could see a loss. It is data: a new row is a new entry of [`ROWS`].

use stillpoint_api::policy::Continuity;

use crate::lines::{
    CLICKHOUSE_LOG, DB2_SUSPENDED, MARIADB_DDL, MARIADB_TAKEN, MARIADB_UPDATE, MYSQL_CHANGED, MYSQL_LATE_DDL,
    MYSQL_LATE_REPORT, MYSQL_LATE_UPDATE, MYSQL_LOCKED, MYSQL_LONG, MYSQL_OLD_TABLE, NO_CHECKPOINT,
    OWN_FREEZE, OWN_PROBE, OWN_THAW, PG_CHECKPOINTS, REDIS_PAUSED, SQLITE_TAKEN, SQLSERVER_2019,
    SQLSERVER_LOGINS, SQLSERVER_SUSPENDED, VALKEY_PAUSED,
};
use crate::row::{Blocker, Claim, Control, Failure, Row};
use crate::servers::{
    CASSANDRA, CLICKHOUSE, DB2, ETCD, FILES, INFLUXDB, MARIADB_10, MARIADB_11, MONGODB, MYSQL, MYSQL_APART,
    POSTGRES_14, POSTGRES_15, POSTGRES_17, POSTGRES_18, POSTGRES_STAGED, RABBITMQ, REDIS, SQLITE, SQLSERVER,
    SQLSERVER_STAYS, VALKEY,
};
use crate::site::{DATA, SECOND};

const ROW: Row = Row {
    name: "",
    template: "",
    server: REDIS,
    options: "",
    remark: "",
    parameters: &[],
    freeze: ("10s", "3s"),
    settings: None,
    then: None,
    claim: Claim::Observed,
    failures: &[],
    client: &[],
    at_once: false,
    controls: [Control::Unheld, Control::Unheld],
    unchecked: false,
    short: false,
};

/// Hooks in a container that has no program at all.
const NO_CLIENT: Failure = Failure {
    name: "missing client",
    parameters: &[],
    template: None,
    container: Some("bare"),
    blocker: None,
    says: &["bare"],
};

/// /fixtures/wrong has a password that is not the server's.
const fn wrong_password(says: &'static [&'static str]) -> Failure {
    Failure {
        name: "wrong password",
        parameters: &[("passwordFile", "/fixtures/wrong")],
        template: None,
        container: None,
        blocker: None,
        says,
    }
}

const fn parameter(
    name: &'static str,
    parameters: &'static [(&'static str, &'static str)],
    says: &'static [&'static str],
) -> Failure {
    Failure { name, parameters, template: None, container: None, blocker: None, says }
}

const fn busy(line: &'static str, says: &'static [&'static str]) -> Failure {
    Failure {
        name: "busy server",
        parameters: &[],
        template: None,
        container: None,
        blocker: Some(Blocker { line, stops_writers: true }),
        says,
    }
}

/// The lock comes too late: nobody refuses before, and while what is in the way goes on the writers do as well.
const fn too_late(name: &'static str, line: &'static str, says: &'static [&'static str]) -> Failure {
    let blocker = Some(Blocker { line, stops_writers: false });
    Failure { name, parameters: &[], template: None, container: None, blocker, says }
}

const MARIADB_FAILURES: &[Failure] = &[
    NO_CLIENT,
    busy(MARIADB_TAKEN, &["LockNotAcquired"]),
    too_late("long update", MARIADB_UPDATE, &["LockNotAcquired", "long statement"]),
    too_late("long DDL", MARIADB_DDL, &["LockNotAcquired", "long statement"]),
];
/// A shell script of the holder (docs/design/freeze.md §2.2) has this word.
const HOLDER: &[&str] = &["THAWFAILED"];
const SQL_CLIENT: &[&str] = &["--skip-reconnect"];
/// The session's sqlcmd and the shells around it; no other command has this width.
const SQLCMD: &[&str] = &["-W -w 4000"];

/// Every row, the ones whose proof is oldest last.
pub const ROWS: &[Row] = &[
    Row {
        name: "redis",
        template: "redis",
        options: "--appendonly yes --appendfsync everysec",
        claim: Claim::Held(Continuity::State),
        failures: &[
            wrong_password(&["authentication failed"]),
            parameter("missing client", &[("client", "no-such-client")], &["no program no-such-client"]),
            busy(REDIS_PAUSED, &["ForeignFreeze"]),
        ],
        client: HOLDER,
        // Without the template's barrier up to a second of acknowledged commits is in no file of the disk.
        controls: [Control::Undurable, Control::Unheld],
        short: true,
        ..ROW
    },
    Row {
        name: "valkey",
        template: "valkey",
        server: VALKEY,
        options: "--appendonly yes --appendfsync everysec",
        claim: Claim::Held(Continuity::State),
        failures: &[
            wrong_password(&["authentication failed"]),
            parameter("missing client", &[("client", "no-such-client")], &["no program no-such-client"]),
            busy(VALKEY_PAUSED, &["ForeignFreeze"]),
        ],
        client: HOLDER,
        controls: [Control::Undurable, Control::Unheld],
        ..ROW
    },
    Row {
        name: "redis-rdb",
        template: "redis-rdb",
        options: "--appendonly no",
        claim: Claim::Prepared,
        failures: &[parameter("wrong password", &[("passwordFile", "/none")], &["authentication failed"])],
        // There is no file at all until somebody saves.
        controls: [Control::Undurable, Control::Undurable],
        ..ROW
    },
    Row {
        name: "sqlite",
        template: "sqlite",
        server: SQLITE,
        claim: Claim::Held(Continuity::Lock),
        failures: &[
            parameter("no file", &[("path", "/data/none.db")], &["there is no file /data/none.db"]),
            NO_CLIENT,
            busy(SQLITE_TAKEN, &["LockNotAcquired"]),
        ],
        client: &["mode=rw"],
        // The writers run with synchronous=OFF.
        controls: [Control::Undurable, Control::Unheld],
        short: true,
        ..ROW
    },
    Row {
        name: "mysql",
        template: "mysql",
        server: MYSQL,
        claim: Claim::Observed,
        failures: &[wrong_password(&["1045"]), NO_CLIENT],
        ..ROW
    },
    Row {
        name: "mysql-locked",
        template: "mysql-locked",
        server: MYSQL,
        options: "--gtid-mode=ON --enforce-gtid-consistency=ON",
        claim: Claim::Held(Continuity::Position),
        failures: &[
            wrong_password(&["1045"]),
            NO_CLIENT,
            busy(MYSQL_LONG, &["statement of session"]),
            too_late("late update", MYSQL_LATE_UPDATE, &["LockNotAcquired", "long statement"]),
            too_late("late DDL", MYSQL_LATE_DDL, &["LockNotAcquired", "long statement"]),
            Failure {
                name: "late report",
                blocker: Some(Blocker { line: MYSQL_LATE_REPORT, stops_writers: true }),
                ..too_late("", "", &["LockNotAcquired", "longest statement: session"])
            },
        ],
        client: SQL_CLIENT,
        controls: [Control::Unheld, Control::Unheld],
        ..ROW
    },
    Row {
        name: "mysql-flushed",
        template: "mysql-flushed",
        server: MYSQL_APART,
        remark: ", redo log and binary log on a second volume",
        options: "--innodb-max-dirty-pages-pct=88 --innodb-max-dirty-pages-pct-lwm=12",
        // What the comment of the template asks for.
        freeze: ("60s", "45s"),
        settings: Some(MYSQL_CHANGED),
        claim: Claim::Held(Continuity::Position),
        failures: &[
            wrong_password(&["1045"]),
            NO_CLIENT,
            Failure {
                name: "lock alone",
                parameters: &[],
                template: Some("mysql-locked"),
                container: None,
                blocker: None,
                says: &["2 volumes", "snapshot.group", "mysql-flushed"],
            },
        ],
        // The shell around the client has these words as well: both are killed at once, and `recover` is what is left.
        client: SQL_CLIENT,
        controls: [Control::Apart(MYSQL_LOCKED), Control::Apart(MYSQL_LOCKED)],
        ..ROW
    },
    Row {
        name: "mysql-group",
        template: "mysql-locked",
        server: MYSQL_APART,
        remark: ", the same volumes in one group",
        options: "--gtid-mode=ON --enforce-gtid-consistency=ON --innodb-max-dirty-pages-pct=88 --innodb-max-dirty-pages-pct-lwm=12",
        claim: Claim::Grouped(Continuity::Position),
        controls: [Control::Apart(MYSQL_LOCKED), Control::Nothing("there is no point to compare with")],
        ..ROW
    },
    Row {
        name: "mysql-flush-2",
        template: "mysql",
        server: MYSQL,
        options: "--innodb-flush-log-at-trx-commit=2",
        claim: Claim::Voided("innodb_flush_log_at_trx_commit"),
        controls: [Control::Undurable, Control::Nothing("a cut that has the page cache loses nothing")],
        ..ROW
    },
    Row {
        name: "mysql-myisam",
        template: "mysql",
        server: MYSQL,
        remark: ", with a MyISAM table",
        then: Some(MYSQL_OLD_TABLE),
        claim: Claim::Voided("other_engine_tables"),
        controls: [
            Control::Nothing("the load writes no such table"),
            Control::Nothing("the load writes no such table"),
        ],
        ..ROW
    },
    Row {
        name: "mariadb-11",
        template: "mariadb",
        server: MARIADB_11,
        options: "--log-bin=binlog --sync-binlog=1",
        claim: Claim::Held(Continuity::Position),
        failures: MARIADB_FAILURES,
        client: SQL_CLIENT,
        controls: [Control::Unheld, Control::Unheld],
        ..ROW
    },
    Row {
        name: "mariadb-10",
        template: "mariadb",
        server: MARIADB_10,
        claim: Claim::Held(Continuity::Lock),
        failures: MARIADB_FAILURES,
        client: SQL_CLIENT,
        controls: [Control::Unheld, Control::Unheld],
        ..ROW
    },
    Row {
        name: "mariadb-flush-2",
        template: "mariadb",
        server: MARIADB_10,
        options: "--innodb-flush-log-at-trx-commit=2",
        claim: Claim::Voided("innodb_flush_log_at_trx_commit"),
        controls: [Control::Undurable, Control::Nothing("a cut that has the page cache loses nothing")],
        ..ROW
    },
    Row {
        name: "postgresql-17",
        template: "postgresql",
        server: POSTGRES_17,
        failures: &[parameter("wrong database", &[("database", "none")], &["database \"none\""]), NO_CLIENT],
        ..ROW
    },
    Row { name: "postgresql-18", template: "postgresql", server: POSTGRES_18, failures: &[NO_CLIENT], ..ROW },
    Row { name: "postgresql-14", template: "postgresql", server: POSTGRES_14, failures: &[NO_CLIENT], ..ROW },
    Row { name: "postgresql-15", template: "postgresql", server: POSTGRES_15, failures: &[NO_CLIENT], ..ROW },
    Row {
        name: "postgresql-async",
        template: "postgresql",
        server: POSTGRES_15,
        options: "-c synchronous_commit=off",
        claim: Claim::Voided("synchronous_commit"),
        // A writer of the log runs five times a second all the same.
        controls: [
            Control::Undurable,
            Control::Nothing("a cut that has the page cache loses what is in no file yet, or nothing"),
        ],
        ..ROW
    },
    Row {
        name: "postgresql-staged",
        template: "postgresql-staged",
        server: POSTGRES_STAGED,
        remark: ", its log on a second volume",
        claim: Claim::Staged,
        failures: &[NO_CLIENT],
        // In the wrong order; and in the right one without what the stages do between the cuts and with the label.
        controls: [
            Control::Disordered { order: [SECOND, DATA], between: PG_CHECKPOINTS, says: NO_CHECKPOINT },
            Control::Disordered { order: [DATA, SECOND], between: PG_CHECKPOINTS, says: NO_CHECKPOINT },
        ],
        ..ROW
    },
    Row {
        name: "etcd",
        template: "etcd",
        server: ETCD,
        claim: Claim::Prepared,
        failures: &[
            parameter("no server", &[("endpoint", "http://127.0.0.1:22999")], &["context deadline exceeded"]),
            NO_CLIENT,
        ],
        ..ROW
    },
    Row {
        name: "cassandra",
        template: "cassandra",
        server: CASSANDRA,
        claim: Claim::Prepared,
        failures: &[
            parameter("no server", &[("jmxPort", "7299")], &["nodetool failed on JMX port 7299"]),
            NO_CLIENT,
        ],
        // Judged by the cut and not by the flush: what the commit log had not synced is missing.
        controls: [Control::Undurable, Control::Nothing("a cut that has the page cache has the commit log")],
        ..ROW
    },
    Row {
        name: "rabbitmq",
        template: "rabbitmq",
        server: RABBITMQ,
        parameters: &[("directory", "/data")],
        claim: Claim::Saved,
        failures: &[
            parameter("no directory", &[("directory", "/none")], &["there is no directory /none"]),
            NO_CLIENT,
        ],
        controls: [
            Control::Undurable, // Nobody wrote the definitions, or they are of an earlier run.
            Control::Undurable,
        ],
        ..ROW
    },
    Row {
        name: "mongodb",
        template: "mongodb",
        server: MONGODB,
        claim: Claim::Prepared,
        failures: &[
            parameter("no server", &[("port", "27999")], &["ECONNREFUSED"]),
            wrong_password(&["AuthenticationFailed"]),
            parameter("missing privilege", &[("user", "reader")], &["PrivilegeMissing"]),
        ],
        ..ROW
    },
    Row {
        name: "mongodb-locked",
        template: "mongodb-locked",
        server: MONGODB,
        remark: ", with a login of that role alone",
        options: "--sync-on-commit",
        // With no right but those of the role.
        parameters: &[("user", "stillpoint")],
        claim: Claim::Held(Continuity::Lock),
        failures: &[
            parameter("no server", &[("port", "27999")], &["ECONNREFUSED"]),
            wrong_password(&["AuthenticationFailed"]),
            parameter("missing privilege", &[("user", "reader")], &["PrivilegeMissing"]),
            parameter("cannot unlock", &[("user", "half")], &["PrivilegeMissing", "not let go"]),
        ],
        // Of mongosh alone, which calls itself so: the shell around it lives on, and unlocks by another one.
        client: &["mongosh mongodb://"],
        controls: [Control::Unheld, Control::Unheld],
        ..ROW
    },
    Row {
        name: "db2",
        template: "db2",
        server: DB2,
        parameters: &[("instance", "root")],
        claim: Claim::Held(Continuity::Lock),
        failures: &[
            parameter("no database", &[("database", "OTHER")], &["SQL1013N"]),
            NO_CLIENT,
            busy(DB2_SUSPENDED, &["somebody else has suspended the database"]),
        ],
        // The suspension outlives them; `recover` ends it.
        client: &[".foreign "],
        controls: [Control::Unheld, Control::Unheld],
        ..ROW
    },
    Row {
        name: "sqlserver",
        template: "sqlserver",
        server: SQLSERVER,
        then: Some(SQLSERVER_LOGINS),
        claim: Claim::Held(Continuity::Lock),
        failures: &[
            wrong_password(&["AuthenticationFailed", "Login failed"]),
            parameter("no server", &[("port", "1499")], &["Login timeout expired"]),
            NO_CLIENT,
            parameter(
                "missing privilege",
                &[("user", "reader")],
                &["PrivilegeMissing", "reader lacks the permission ALTER SETTINGS"],
            ),
            parameter(
                "cannot look",
                &[("user", "blind")],
                &["PrivilegeMissing", "the account lacks a right"],
            ),
            Failure {
                name: "older version",
                parameters: &[("port", "1444")],
                ..too_late("", SQLSERVER_2019, &["NotSupported", "this is version 15", "or newer is needed"])
            },
            busy(SQLSERVER_SUSPENDED, &["ForeignFreeze"]),
        ],
        client: SQLCMD,
        controls: [Control::Unheld, Control::Unheld],
        ..ROW
    },
    Row {
        name: "sqlserver-stays",
        template: "sqlserver",
        server: SQLSERVER_STAYS,
        claim: Claim::Held(Continuity::Lock),
        failures: &[busy(SQLSERVER_SUSPENDED, &["ForeignFreeze"])],
        // The suspension outlives them all; `recover` ends it.
        client: SQLCMD,
        at_once: true,
        controls: [Control::Unheld, Control::Unheld],
        ..ROW
    },
    Row {
        name: "clickhouse",
        template: "clickhouse",
        server: CLICKHOUSE,
        parameters: &[("directory", "/data/clickhouse")],
        claim: Claim::Prepared,
        failures: &[
            parameter("no server", &[("port", "9999")], &["the server on port 9999"]),
            parameter("no directory", &[("directory", "/none")], &["there is no directory /none"]),
            NO_CLIENT,
            Failure {
                name: "table that may be torn",
                blocker: Some(Blocker { line: CLICKHOUSE_LOG, stops_writers: false }),
                ..parameter("", &[], &["table d.logged (TinyLog) may be torn"])
            },
        ],
        // A part is not forced to the disk when it is acknowledged.
        controls: [Control::Undurable, Control::Unheld],
        ..ROW
    },
    Row {
        name: "influxdb",
        template: "influxdb",
        server: INFLUXDB,
        parameters: &[("directory", "/data/influxdb")],
        claim: Claim::Prepared,
        failures: &[
            parameter("no directory", &[("directory", "/none")], &["there is no directory /none"]),
            parameter("another directory", &[("directory", "/data")], &["/data has neither influxd.bolt"]),
            NO_CLIENT,
        ],
        ..ROW
    },
    Row {
        name: "filesystem",
        template: "filesystem",
        server: FILES,
        claim: Claim::Prepared,
        failures: &[
            parameter("no directory", &[("directory", "/none")], &["directory parameter"]),
            NO_CLIENT,
        ],
        // Nobody syncs but prepare.
        controls: [Control::Undurable, Control::Unheld],
        ..ROW
    },
    Row {
        name: "generic",
        template: "generic",
        options: "--appendonly yes --appendfsync always",
        remark: ", frozen by two lines of its owner",
        parameters: &[("freeze", OWN_FREEZE), ("thaw", OWN_THAW), ("probe", OWN_PROBE)],
        claim: Claim::Held(Continuity::State),
        failures: &[
            parameter(
                "failing freeze",
                &[("freeze", "exit 7")],
                &["the freeze command failed with code 7", "it is thawed"],
            ),
            parameter("missing client", &[("freeze", "no-such-client pause")], &["code 127", "it is thawed"]),
            // What the probe does not see is not claimed.
            parameter("no such state", &[("freeze", "true")], &["NotProven", "the closing beat"]),
            NO_CLIENT,
            busy(REDIS_PAUSED, &["ForeignFreeze"]),
        ],
        client: HOLDER,
        unchecked: true,
        ..ROW
    },
];
