//! Lines of shell that rows have run in the server's container: somebody in the way of a hold, settings, commands of one's own.

/// What the policies' `acquireTimeout` (3 s) and a run take, and some more.
pub const REDIS_PAUSED: &str =
    "REDISCLI_AUTH=\"$SERVER_PASSWORD\" redis-cli --no-auth-warning CLIENT PAUSE 15000 WRITE && echo taken";
pub const VALKEY_PAUSED: &str =
    "REDISCLI_AUTH=\"$SERVER_PASSWORD\" valkey-cli --no-auth-warning CLIENT PAUSE 15000 WRITE && echo taken";
pub const SQLITE_TAKEN: &str = "{ echo 'PRAGMA busy_timeout=60000;'; echo 'BEGIN IMMEDIATE;'; echo \"SELECT 'taken';\"; sleep 20; } | \
                            sqlite3 -batch /data/app.db";
pub const MARIADB_TAKEN: &str = "mariadb --no-defaults -S /run/mysqld/mysqld.sock -u root -n -N -B -e \
                             \"BACKUP STAGE START; SELECT 'taken'; SELECT SLEEP(20); BACKUP STAGE END;\"";
/// Until it has run for so long that prepare must see it.
pub const MYSQL_LONG: &str = r#"export MYSQL_PWD="$MYSQL_ROOT_PASSWORD"
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
pub const MYSQL_LATE_UPDATE: &str = mysql_late!("", "UPDATE late SET v = v + SLEEP(14)", "");
/// A session that once read the table and did not end its transaction is enough for an ALTER TABLE to wait.
pub const MYSQL_LATE_DDL: &str = mysql_late!(
    r#"{ echo "BEGIN; SELECT 'open' FROM late;"; sleep 20; } | m | { read -r open"#,
    "ALTER TABLE late ADD COLUMN w INT",
    "}"
);
/// The trap of the template: writers wait behind the lock that waits for it, and go on doing so after it was given up.
pub const MYSQL_LATE_REPORT: &str = mysql_late!("", "SELECT l.writer, SLEEP(7) FROM ledger AS l LIMIT 1", "");
/// Longer than the run, which waits until the session whose lock was refused can be no more. The table is of an engine for whose
/// writers BACKUP STAGE waits; for those of InnoDB it does not.
pub const MARIADB_UPDATE: &str = r#"m() { mariadb --no-defaults -S /run/mysqld/mysqld.sock -u root -n -N -B bank "$@"; }
m -e 'CREATE TABLE late (v INT) ENGINE=MyISAM; INSERT INTO late VALUES (1)' || exit 1
m -e 'UPDATE late SET v = v + SLEEP(25); DROP TABLE late' &
until [ "$(m -e "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'UPDATE late%' AND STATE='User sleep'")" = 1 ]; do
  sleep 0.2
done
echo taken
wait"#;
/// As `MYSQL_LATE_DDL`; there is no prepare that would see it. It copies the table and locks out its writers: for an ALTER TABLE that
/// waits itself and does less, BACKUP STAGE does not wait (11.8; 10.11 has no copying that lets them in).
pub const MARIADB_DDL: &str = r#"m() { mariadb --no-defaults -S /run/mysqld/mysqld.sock -u root -n -N -B bank "$@"; }
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
pub const MYSQL_OLD_TABLE: &str = "MYSQL_PWD=\"$MYSQL_ROOT_PASSWORD\" mysql --no-defaults -S /run/mysqld/mysqld.sock -u root -e \
                               'CREATE TABLE bank.old (i INT) ENGINE=MyISAM'";
pub const DB2_SUSPENDED: &str = r#"printf 'CONNECT TO SAMPLE;\nSET WRITE SUSPEND FOR DATABASE;\nTERMINATE;\n' | db2 +p -t -s &&
echo taken && sleep 12
db2 restart database SAMPLE write resume"#;
macro_rules! sqlserver {
    ($line:literal) => {
        concat!(
            r#"export SQLCMDPASSWORD="$MSSQL_SA_PASSWORD" port=1433
ask() { /opt/mssql-tools18/bin/sqlcmd -C -b -S "tcp:127.0.0.1,$port" -U sa -h -1 -W "$@"; }
"#,
            $line
        )
    };
}
/// Logins with the password of `sa`: one may look and not suspend, one suspend and not look.
pub const SQLSERVER_LOGINS: &str = sqlserver!(
    r#"password=$(printf %s "$MSSQL_SA_PASSWORD" | sed "s/'/''/g")
ask -Q "CREATE LOGIN reader WITH PASSWORD = N'$password'; GRANT VIEW SERVER STATE, VIEW ANY DEFINITION TO reader;
CREATE LOGIN blind WITH PASSWORD = N'$password'; GRANT ALTER SETTINGS, VIEW ANY DEFINITION TO blind;""#
);
pub const SQLSERVER_SUSPENDED: &str = sqlserver!(
    r#"{ printf "ALTER SERVER CONFIGURATION SET SUSPEND_FOR_SNAPSHOT_BACKUP = ON;\nGO\nPRINT 'taken';\nGO\n"
  sleep 12
  printf 'ALTER SERVER CONFIGURATION SET SUSPEND_FOR_SNAPSHOT_BACKUP = OFF;\nGO\n'
} | ask"#
);
/// An instance of 2019 beside the one under load.
pub const SQLSERVER_2019: &str = sqlserver!(
    r#"port=1444 older=/data/older
mkdir -p "$older"
MSSQL_TCP_PORT=$port LOOK_ALIKE_VERSION=15.0.4123.1 timeout 20 sqlserver-look-alike "$older" &
until ask -Q "PRINT 'here';"; do sleep 0.2; done
echo taken
wait"#
);
/// The lock of mysql-locked, held for the two cuts and the time between them. What the server does sooner or later, it does at once after
/// the first of them: it writes its pages and moves its checkpoint.
pub const MYSQL_LOCKED: &str = "MYSQL_PWD=\"$MYSQL_ROOT_PASSWORD\" mysql --no-defaults -S /run/mysqld/mysqld.sock -u root -n -N -B -e \
                            \"LOCK INSTANCE FOR BACKUP; FLUSH TABLES WITH READ LOCK; SELECT 'taken'; SELECT SLEEP(3); \
                            SET GLOBAL innodb_max_dirty_pages_pct_lwm=0; SET GLOBAL innodb_max_dirty_pages_pct=0; SELECT SLEEP(15); \
                            SET GLOBAL innodb_max_dirty_pages_pct=88; SET GLOBAL innodb_max_dirty_pages_pct_lwm=12\"";
/// What mysql-flushed changes and puts back.
pub const MYSQL_CHANGED: &str = "MYSQL_PWD=\"$MYSQL_ROOT_PASSWORD\" mysql --no-defaults -S /run/mysqld/mysqld.sock -u root -N -B -e \
                           'SELECT @@GLOBAL.innodb_max_dirty_pages_pct, @@GLOBAL.innodb_max_dirty_pages_pct_lwm, \
                           @@GLOBAL.innodb_stats_auto_recalc, @@GLOBAL.innodb_purge_rseg_truncate_frequency'";
/// What PostgreSQL does by itself every few minutes, and under load sooner: a checkpoint, after which the log of before is not kept. Twice,
/// because the first one after a switch still keeps what the one before needs.
pub const PG_CHECKPOINTS: &str = "for i in 1 2; do psql -X -q -v ON_ERROR_STOP=1 -h /var/run/postgresql -U postgres \
                              -c 'SELECT pg_switch_wal()' -c CHECKPOINT >/dev/null || exit 1; done";
/// Of both: the checkpoint from which recovery has to begin is in the data alone.
pub const NO_CHECKPOINT: &str = "could not locate a valid checkpoint record";
/// Two commands and a third that sees the difference, as a person would write them for Redis. The pause would last
/// for a minute: where everything in the container is killed, `recover` is what ends it.
pub const OWN_FREEZE: &str = "export REDISCLI_AUTH=\"$SERVER_PASSWORD\"; redis-cli CLIENT PAUSE 60000 WRITE | grep -q OK && sync -f /data";
pub const OWN_THAW: &str = "export REDISCLI_AUTH=\"$SERVER_PASSWORD\"; redis-cli CLIENT UNPAUSE | grep -q OK";
pub const OWN_PROBE: &str = "export REDISCLI_AUTH=\"$SERVER_PASSWORD\"; timeout 0.3 redis-cli PUBLISH paused '' >/dev/null; [ $? = 124 ]";
/// A table whose files a power failure may tear, for as long as a run takes.
pub const CLICKHOUSE_LOG: &str = "c() { clickhouse-client --host 127.0.0.1 --query \"$1\"; }\n\
                              c 'CREATE TABLE d.logged (row UInt64) ENGINE = TinyLog' && echo taken && sleep 15 && c 'DROP TABLE d.logged'";
