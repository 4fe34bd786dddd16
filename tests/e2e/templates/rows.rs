//! The table: which template on which server, what it claims there, what must go wrong and how, and what shows that the suite
//! could see a loss. It is data: a new row is a new entry of [`ROWS`].

use stillpoint_api::policy::Continuity;

use crate::servers::{
    CASSANDRA, DB2, ETCD, MARIADB_10, MARIADB_11, MONGODB, MYSQL, MYSQL_APART, POSTGRES_14, POSTGRES_15,
    POSTGRES_17, POSTGRES_18, POSTGRES_STAGED, RABBITMQ, REDIS, SQLITE, Server, VALKEY,
};
use crate::site::{DATA, SECOND};

/// A StorageClass of tests/cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// A cut below the page cache, as of block storage.
    Disk,
    /// A cut that has the page cache.
    Btrfs,
}

impl Storage {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Disk, Self::Btrfs];

    /// Name of the class.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Btrfs => "btrfs",
        }
    }

    /// Whether a group of its volumes is cut at one instant (config/trust/cluster.yaml).
    pub const fn cuts_groups_at_once(self) -> bool {
        matches!(self, Self::Disk)
    }
}

/// What a template claims of a point of this server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Claim {
    /// No commit between FROZEN and THAW; the copy has exactly what was acknowledged before the thaw. So continuous.
    Held(Continuity),
    /// As `Held`, with data and log on two volumes: both in one write-ordered cut; refused where the volumes of a group are cut one
    /// after the other.
    Grouped(Continuity),
    /// Nobody waits; the copy has everything that was acknowledged before the cut.
    Observed,
    /// As `Observed`, with data and log on two volumes that are cut in this order.
    Staged,
    /// Nobody waits; the copy has everything that was acknowledged before prepare began.
    Prepared,
    /// As `Prepared`, and it is worth no more than `Crash`.
    Saved,
    /// A setting of this server voids the claim: the verdict names it.
    Voided(&'static str),
}

impl Claim {
    /// Whether writers wait in the window.
    pub const fn locks(self) -> bool {
        self.grade().is_some()
    }

    /// How continuous a lock is shown to have been.
    pub const fn grade(self) -> Option<Continuity> {
        match self {
            Self::Held(grade) | Self::Grouped(grade) => Some(grade),
            Self::Observed | Self::Staged | Self::Prepared | Self::Saved | Self::Voided(_) => None,
        }
    }
}

/// A copy that must not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// An atomic cut without the hold, judged as one under it: what was committed meanwhile shows. Of a server whose commits are all
    /// on the volume it shows that the comparison sees them; a copy that is taken in passing does not: PostgreSQL 17 and MySQL 9.7
    /// recovered from five of five exactly.
    Unheld,
    /// An atomic cut without the template: what was acknowledged before it and was not durable is lost.
    Undurable,
    /// Data and log cut one after the other while commits are stopped by a lock alone, which this line takes for a while and then prints
    /// `taken`: the server writes its pages between the cuts.
    Apart(&'static str),
    /// Both volumes cut one after the other without the template, with this line run in between: the server must not start on them, and
    /// its log `says` why.
    Disordered {
        /// Claims, in the order of their cuts.
        order: [&'static str; 2],
        /// Run in the server's container between the cuts.
        between: &'static str,
        /// Of the log.
        says: &'static str,
    },
    /// None, for this reason.
    Nothing(&'static str),
}

/// Somebody in the way: a line in the server's container that prints `taken` once it is, or will be when the run has come so far, and
/// ends by itself.
#[derive(Clone, Copy, Debug)]
pub struct Blocker {
    /// For `sh -c`.
    pub line: &'static str,
    /// It stops the load as well: writers are asked for only once it has gone.
    pub stops_writers: bool,
}

/// A run that must fail, leave nothing frozen, and say why.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// Name of the check.
    pub name: &'static str,
    /// Parameters that differ.
    pub parameters: &'static [(&'static str, &'static str)],
    /// The template, where it is another one.
    pub template: Option<&'static str>,
    /// The container, where it is not the server's.
    pub container: Option<&'static str>,
    /// Who is in the way.
    pub blocker: Option<Blocker>,
    /// What reason and message of the Backup must contain.
    pub says: &'static [&'static str],
}

/// One row; each is run on every storage.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Unique; the word that chooses it.
    pub name: &'static str,
    /// Of config/templates.
    pub template: &'static str,
    /// Where.
    pub server: Server,
    /// Options of the server.
    pub options: &'static str,
    /// Parameters of the template.
    pub parameters: &'static [(&'static str, &'static str)],
    /// `maxHold` and `acquireTimeout` of its policies.
    pub freeze: (&'static str, &'static str),
    /// Prints, in the server's container, settings that the template changes: after every run they are as before.
    pub settings: Option<&'static str>,
    /// A line that is run in the server's container once the load writes.
    pub then: Option<&'static str>,
    /// What it claims.
    pub claim: Claim,
    /// What must fail.
    pub failures: &'static [Failure],
    /// Words in the command line of the client in the pod, where its death has to free the writers.
    pub client: &'static [&'static str],
    /// The controls, on `disk` and on `btrfs`.
    pub controls: [Control; 2],
    /// Part of `make e2e` on `disk`.
    pub short: bool,
}

impl Row {
    /// The control on a storage.
    pub const fn control(&self, storage: Storage) -> Control {
        match storage {
            Storage::Disk => self.controls[0],
            Storage::Btrfs => self.controls[1],
        }
    }
}

const ROW: Row = Row {
    name: "",
    template: "",
    server: REDIS,
    options: "",
    parameters: &[],
    freeze: ("10s", "3s"),
    settings: None,
    then: None,
    claim: Claim::Observed,
    failures: &[],
    client: &[],
    controls: [Control::Unheld, Control::Unheld],
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

/// What the policies' `acquireTimeout` (3 s) and a run take, and some more.
const REDIS_PAUSED: &str =
    "REDISCLI_AUTH=\"$SERVER_PASSWORD\" redis-cli --no-auth-warning CLIENT PAUSE 15000 WRITE && echo taken";
const VALKEY_PAUSED: &str =
    "REDISCLI_AUTH=\"$SERVER_PASSWORD\" valkey-cli --no-auth-warning CLIENT PAUSE 15000 WRITE && echo taken";
const SQLITE_TAKEN: &str = "{ echo 'PRAGMA busy_timeout=60000;'; echo 'BEGIN IMMEDIATE;'; echo \"SELECT 'taken';\"; sleep 20; } | \
                            sqlite3 -batch /data/app.db";
const MARIADB_TAKEN: &str = "mariadb --no-defaults -S /run/mysqld/mysqld.sock -u root -n -N -B -e \
                             \"BACKUP STAGE START; SELECT 'taken'; SELECT SLEEP(20); BACKUP STAGE END;\"";
/// Until it has run for so long that prepare must see it.
const MYSQL_LONG: &str = r#"export MYSQL_PWD="$MYSQL_ROOT_PASSWORD"
m() { mysql --no-defaults -S /run/mysqld/mysqld.sock -u root -N -B -e "$1"; }
m 'SELECT l.writer, SLEEP(25) FROM bank.ledger AS l LIMIT 1' >/dev/null &
until [ "$(m "SELECT COUNT(*) FROM performance_schema.processlist WHERE TIME>=2 AND INFO LIKE 'SELECT l.writer, SLEEP%'")" = 1 ]; do
  sleep 0.2
done
echo taken
wait"#;
/// Begins once prepare has looked for long statements and seen none, so that the lock itself finds it: a procedure waits until what
/// prepare asks is counted among the server's statements. Called again and again, so that it is no long statement itself.
macro_rules! mysql_late {
    ($before:literal, $statement:literal, $after:literal) => {
        concat!(
            r#"export MYSQL_PWD="$MYSQL_ROOT_PASSWORD"
m() { mysql --no-defaults -S /run/mysqld/mysqld.sock -u root -n -N -B "$@" bank; }
m -e 'DROP PROCEDURE IF EXISTS late; DROP TABLE IF EXISTS late; CREATE TABLE late (v INT); INSERT INTO late VALUES (1)' || exit 1
m --delimiter=// -e "CREATE PROCEDURE late() BEGIN
  DECLARE i INT DEFAULT 0;
  DECLARE asked BIGINT;
  REPEAT
    DO SLEEP(0.01);
    SELECT COALESCE(SUM(COUNT_STAR), 0) INTO asked FROM performance_schema.events_statements_summary_by_digest
      WHERE DIGEST_TEXT LIKE '%processlist%TIME% >= ?%';
    SET @asked = COALESCE(@asked, asked), i = i + 1;
  UNTIL asked > @asked OR i = 40 END REPEAT;
  IF asked > @asked AND @done IS NULL THEN
    SET @done = 1;
    "#,
            $statement,
            r#";
  END IF;
END" || exit 1
"#,
            $before,
            r#"
{ echo "CALL late(); SELECT 'taken';"; for i in $(seq 60); do echo 'CALL late();'; done; echo 'DROP PROCEDURE late; DROP TABLE late;'; } | m
"#,
            $after
        )
    };
}
const MYSQL_LATE_UPDATE: &str = mysql_late!("", "UPDATE late SET v = v + SLEEP(14)", "");
/// A session that once read the table and did not end its transaction is enough for an ALTER TABLE to wait.
const MYSQL_LATE_DDL: &str = mysql_late!(
    r#"{ echo "BEGIN; SELECT 'open' FROM late;"; sleep 20; } | m | { read -r open"#,
    "ALTER TABLE late ADD COLUMN w INT",
    "}"
);
/// The trap of the template: writers wait behind the lock that waits for it, and go on doing so after it was given up.
const MYSQL_LATE_REPORT: &str = mysql_late!("", "SELECT l.writer, SLEEP(7) FROM ledger AS l LIMIT 1", "");
/// Longer than the run, which waits until the session whose lock was refused can be no more. The table is of an engine for whose
/// writers BACKUP STAGE waits; for those of InnoDB it does not.
const MARIADB_UPDATE: &str = r#"m() { mariadb --no-defaults -S /run/mysqld/mysqld.sock -u root -n -N -B bank "$@"; }
m -e 'CREATE TABLE late (v INT) ENGINE=MyISAM; INSERT INTO late VALUES (1)' || exit 1
m -e 'UPDATE late SET v = v + SLEEP(25); DROP TABLE late' &
until [ "$(m -e "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'UPDATE late%' AND STATE='User sleep'")" = 1 ]; do
  sleep 0.2
done
echo taken
wait"#;
/// As `MYSQL_LATE_DDL`; there is no prepare that would see it. It copies the table and locks out its writers: for an ALTER TABLE that
/// waits itself and does less, BACKUP STAGE does not wait (11.8; 10.11 has no copying that lets them in).
const MARIADB_DDL: &str = r#"m() { mariadb --no-defaults -S /run/mysqld/mysqld.sock -u root -n -N -B bank "$@"; }
m -e 'CREATE TABLE late (v INT); INSERT INTO late VALUES (1)' || exit 1
{ echo "BEGIN; SELECT 'open' FROM late;"; sleep 25; } | m | {
  read -r open
  m -e 'ALTER TABLE late ADD COLUMN w INT, ALGORITHM=COPY, LOCK=SHARED; DROP TABLE late' &
  until [ "$(m -e "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'ALTER TABLE late%' AND STATE LIKE 'Waiting for%'")" = 1 ]; do
    sleep 0.2
  done
  echo taken
  wait
}"#;
const MARIADB_FAILURES: &[Failure] = &[
    NO_CLIENT,
    busy(MARIADB_TAKEN, &["LockNotAcquired"]),
    too_late("long update", MARIADB_UPDATE, &["LockNotAcquired", "long statement"]),
    too_late("long DDL", MARIADB_DDL, &["LockNotAcquired", "long statement"]),
];
const MYSQL_OLD_TABLE: &str = "MYSQL_PWD=\"$MYSQL_ROOT_PASSWORD\" mysql --no-defaults -S /run/mysqld/mysqld.sock -u root -e \
                               'CREATE TABLE bank.old (i INT) ENGINE=MyISAM'";
const DB2_SUSPENDED: &str = r#"printf 'CONNECT TO SAMPLE;\nSET WRITE SUSPEND FOR DATABASE;\nTERMINATE;\n' | db2 +p -t -s &&
echo taken && sleep 12
db2 restart database SAMPLE write resume"#;
/// The lock of mysql-locked, held for the two cuts and the time between them. What the server does sooner or later, it does at once after
/// the first of them: it writes its pages and moves its checkpoint.
const MYSQL_LOCKED: &str = "MYSQL_PWD=\"$MYSQL_ROOT_PASSWORD\" mysql --no-defaults -S /run/mysqld/mysqld.sock -u root -n -N -B -e \
                            \"LOCK INSTANCE FOR BACKUP; FLUSH TABLES WITH READ LOCK; SELECT 'taken'; SELECT SLEEP(3); \
                            SET GLOBAL innodb_max_dirty_pages_pct_lwm=0; SET GLOBAL innodb_max_dirty_pages_pct=0; SELECT SLEEP(15); \
                            SET GLOBAL innodb_max_dirty_pages_pct=88; SET GLOBAL innodb_max_dirty_pages_pct_lwm=12\"";
/// What mysql-flushed changes and puts back.
const MYSQL_CHANGED: &str = "MYSQL_PWD=\"$MYSQL_ROOT_PASSWORD\" mysql --no-defaults -S /run/mysqld/mysqld.sock -u root -N -B -e \
                           'SELECT @@GLOBAL.innodb_max_dirty_pages_pct, @@GLOBAL.innodb_max_dirty_pages_pct_lwm, \
                           @@GLOBAL.innodb_stats_auto_recalc, @@GLOBAL.innodb_purge_rseg_truncate_frequency'";
/// What PostgreSQL does by itself every few minutes, and under load sooner: a checkpoint, after which the log of before is not kept. Twice,
/// because the first one after a switch still keeps what the one before needs.
const PG_CHECKPOINTS: &str = "for i in 1 2; do psql -X -q -v ON_ERROR_STOP=1 -h /var/run/postgresql -U postgres \
                              -c 'SELECT pg_switch_wal()' -c CHECKPOINT >/dev/null || exit 1; done";
/// Of both: the checkpoint from which recovery has to begin is in the data alone.
const NO_CHECKPOINT: &str = "could not locate a valid checkpoint record";
/// A shell script of the holder (docs/design/freeze.md §2.2) has this word.
const HOLDER: &[&str] = &["THAWFAILED"];
const SQL_CLIENT: &[&str] = &["--skip-reconnect"];

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
];
