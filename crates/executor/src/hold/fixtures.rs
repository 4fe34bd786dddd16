//! Session texts as they were run against real servers, and lines of the shape those printed.
//!
//! PostgreSQL 15.18 and MariaDB 10.11.19, unix socket, client as argv, pipes as stdin and stdout. Each block is
//! one write. The texts are kept to the letter, with `{{…}}` where the trial had a value.

/// PostgreSQL, observer: `open`.
pub const POSTGRESQL_OPEN: &str = r"SET idle_in_transaction_session_timeout = {{lease}};
SET lock_timeout = 5000; SET statement_timeout = 15000;
BEGIN READ ONLY;
SELECT 'READY {{n}}' || ' pid=' || pg_backend_pid() || ' start=' || (extract(epoch FROM pg_postmaster_start_time())*1000000)::bigint || ' sysid=' || (SELECT system_identifier FROM pg_control_system()) || ' role=' || CASE WHEN pg_is_in_recovery() THEN 'standby' ELSE 'primary' END || ' local=' || (inet_server_addr() IS NULL) || ' clock=' || (extract(epoch FROM clock_timestamp())*1000000)::bigint || ' lease=' || (SELECT setting FROM pg_settings WHERE name='idle_in_transaction_session_timeout');
";

/// PostgreSQL, observer: the evidence part of `freeze`.
pub const POSTGRESQL_EVIDENCE: &str = r"SET LOCAL idle_in_transaction_session_timeout = {{lease}};
SELECT 'EVIDENCE {{n}} ' || name || '=' || replace(setting,' ','%20') FROM pg_settings WHERE name IN ('fsync','full_page_writes','synchronous_commit','data_directory','server_version_num','data_checksums','wal_level');
SELECT 'EVIDENCE {{n}} lsn=' || CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END || E'\nEVIDENCE {{n}} timeline=' || timeline_id FROM pg_control_checkpoint();
";

/// PostgreSQL, observer: `thaw`.
pub const POSTGRESQL_THAW: &str = "COMMIT;\nSELECT 'THAWED {{n}}';\n";

/// What PostgreSQL prints to the texts above, in order: READY, evidence, FROZEN, the closing HELD, THAWED.
pub const POSTGRESQL_PRINTED: &str = "\
READY {{n}} pid=71 start=1795254300123456 sysid=7574201188377169934 role=primary local=true clock=1795254368000123 lease=10000
EVIDENCE {{n}} data_checksums=off
EVIDENCE {{n}} data_directory=/var/lib/postgresql/my%20data
EVIDENCE {{n}} fsync=on
EVIDENCE {{n}} full_page_writes=on
EVIDENCE {{n}} server_version_num=150018
EVIDENCE {{n}} synchronous_commit=on
EVIDENCE {{n}} wal_level=replica
EVIDENCE {{n}} lsn=0/3A2F1C8
EVIDENCE {{n}} timeline=1
FROZEN {{n}} 0 pid=71 start=1795254300123456 sysid=7574201188377169934 role=primary local=true clock=1795254368100123 lease=10000
HELD {{n}} 3 pid=71 start=1795254300123456 sysid=7574201188377169934 role=primary local=true clock=1795254368190123 lease=10000
THAWED {{n}}
";

/// MariaDB, `BACKUP STAGE`: `open`.
pub const MARIADB_OPEN: &str = r"SET SESSION wait_timeout={{lease}}, lock_wait_timeout={{acquireSeconds}}, max_statement_time=15;
SELECT CONCAT('READY {{n}}', ' conn=', CONNECTION_ID(), ' uid=', @@server_uid, ' host=', @@hostname, ' role=', IF(@@read_only,'replica','primary'), ' clock=', CAST(UNIX_TIMESTAMP(SYSDATE(6))*1000000 AS UNSIGNED), ' lease=', @@SESSION.wait_timeout, ' gtid=', IF(@@log_bin, IF(@@gtid_binlog_pos='','-',@@gtid_binlog_pos), 'off'));
";

/// MariaDB, `BACKUP STAGE`: `thaw`.
pub const MARIADB_THAW: &str = "BACKUP STAGE END;\nSELECT 'THAWED {{n}}';\n";

/// What MariaDB prints: READY, evidence, FROZEN, the closing HELD, THAWED.
pub const MARIADB_PRINTED: &str = "\
READY {{n}} conn=31 uid=bmCTHV9jsI5ClWgXaNPIq6Xn3Ew= host=db-0 role=primary clock=1795254368000123 lease=10 gtid=0-1-5120
EVIDENCE {{n}} innodb_flush_log_at_trx_commit=1
EVIDENCE {{n}} innodb_doublewrite=1
EVIDENCE {{n}} log_bin=1
EVIDENCE {{n}} sync_binlog=1
EVIDENCE {{n}} datadir=/var/lib/mysql/
FROZEN {{n}} 0 conn=31 uid=bmCTHV9jsI5ClWgXaNPIq6Xn3Ew= host=db-0 role=primary clock=1795254368100123 lease=10 gtid=0-1-5144
HELD {{n}} 3 conn=31 uid=bmCTHV9jsI5ClWgXaNPIq6Xn3Ew= host=db-0 role=primary clock=1795254368190123 lease=10 gtid=0-1-5144
THAWED {{n}}
";

/// What clients print that must never count: a NULL row, errors, echoed statements, a result cut at its end.
pub const FOREIGN: &[&str] = &[
    "NULL",
    "FATAL:  terminating connection due to idle-in-transaction timeout",
    "ERROR 2006 (HY000) at line 9: Server has gone away",
    "--------------",
    "SELECT 'THAWED {{n}}'",
    "SELECT CONCAT('READY {{n}}', ' conn=', CONNECTION_ID())",
    "'THAWED {{n}}'",
    " THAWED {{n}}",
    "THAWED {{n}} ",
    "THAWED  {{n}}",
    "THAWED {{n}};",
    "THAWED",
    "thawed {{n}}",
    "THAWED {{n",
    "FROZEN {{n}}",
    "FROZEN {{n}} pid=71",
    "",
];
