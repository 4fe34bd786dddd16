//! The servers of the table: which image, how each is started on its volume and on a copy, and which load writes to it.

/// Which program of tests/cluster/fixtures writes, and compares a copy with the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Transfers between accounts, in SQL.
    Load,
    /// Rows and totals.
    Rows,
}

impl Program {
    /// Its path in every pod.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Load => "/fixtures/load.py",
            Self::Rows => "/fixtures/rows.py",
        }
    }
}

/// One server. All lines are for `sh -c` in the container `server`; the volume is at /data, and `$OPTIONS` are the row's.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    /// Image `cluster.local/…:1` of the Makefile.
    pub image: &'static str,
    /// Prints its version.
    pub version: &'static str,
    /// The load.
    pub program: Program,
    /// `ENGINE` of the load.
    pub engine: &'static str,
    /// Variables of both containers.
    pub env: &'static [(&'static str, &'static str)],
    /// Starts the server, on a new volume or one that has its data.
    pub start: &'static str,
    /// More options on a copy.
    pub copy_options: &'static str,
    /// Ends with 0 once it answers.
    pub ready: &'static str,
    /// A directory that server and load share for a socket.
    pub socket: Option<&'static str>,
    /// The load opens the files of the volume itself.
    pub shares_data: bool,
    /// Where a second volume of the server is mounted, whose claim is `second-server-0`.
    pub second: Option<&'static str>,
    /// Nothing but the volumes can be written, by the hooks neither: `/tmp` is none of them. Otherwise as images are run by default.
    pub read_only_root: bool,
    /// Writers at once, and how long each rests after a commit in milliseconds.
    pub writers: (u32, u32),
}

/// What most have.
const PLAIN: Server = Server {
    image: "",
    version: "",
    program: Program::Rows,
    engine: "",
    env: &[],
    start: "",
    copy_options: "",
    ready: "",
    socket: None,
    shares_data: false,
    second: None,
    read_only_root: false,
    writers: (3, 10),
};

/// A password that has to be quoted in every language.
const PASSWORD: &str = "s3 cret'\"";

/// Redis of Debian 13.
pub const REDIS: Server = Server {
    image: "redis",
    version: "redis-server --version | sed 's/.* v=\\([^ ]*\\).*/Redis \\1/'",
    engine: "redis",
    env: &[("REDIS_PASSWORD", PASSWORD), ("SERVER_PASSWORD", PASSWORD), ("PRODUCT", "redis")],
    start: "exec redis-server --port 6379 --bind 127.0.0.1 --dir /data --save '' --requirepass \"$SERVER_PASSWORD\" $OPTIONS",
    ready: "REDISCLI_AUTH=\"$SERVER_PASSWORD\" redis-cli --no-auth-warning PING | grep -q PONG",
    read_only_root: true,
    ..PLAIN
};

/// The same without a double quote: Valkey 8.1 reads its own command line as a line of configuration, and does not start with one.
const PASSWORD_WITHOUT_QUOTE: &str = "s3 cret'";

/// Valkey of Debian 13.
pub const VALKEY: Server = Server {
    image: "valkey",
    version: "valkey-server --version | sed 's/.* v=\\([^ ]*\\).*/Valkey \\1/'",
    engine: "redis",
    env: &[
        ("VALKEY_PASSWORD", PASSWORD_WITHOUT_QUOTE),
        ("SERVER_PASSWORD", PASSWORD_WITHOUT_QUOTE),
        ("PRODUCT", "valkey"),
    ],
    start: "exec valkey-server --port 6379 --bind 127.0.0.1 --dir /data --save '' --requirepass \"$SERVER_PASSWORD\" $OPTIONS",
    ready: "REDISCLI_AUTH=\"$SERVER_PASSWORD\" valkey-cli --no-auth-warning PING | grep -q PONG",
    read_only_root: true,
    ..PLAIN
};

/// SQLite of Debian 12: no server, so that its container only has the program. Two writers: there is no queue for the lock.
pub const SQLITE: Server = Server {
    image: "sqlite",
    version: "sqlite3 --version | sed 's/ .*//; s/^/SQLite /'",
    engine: "sqlite",
    start: "exec sleep infinity",
    ready: "true",
    shares_data: true,
    writers: (2, 30),
    read_only_root: true,
    ..PLAIN
};

/// No server at all: files of the load, which nobody syncs.
pub const FILES: Server =
    Server { version: "uname -r | sed 's/^/files, Linux /'", engine: "files", writers: (3, 10), ..SQLITE };

/// MySQL of Debian's sid. What it writes to a temporary file goes beside its socket; a client of a hook is not told of that.
pub const MYSQL: Server = Server {
    image: "mysql",
    version: "mysqld --version | sed 's/.*Ver \\([^ ]*\\).*/MySQL \\1/'",
    program: Program::Load,
    engine: "mysql",
    env: &[("MYSQL_ROOT_PASSWORD", PASSWORD)],
    // Installed beside the data directory and renamed: killed half way it starts afresh.
    start: r#"export TMPDIR=/run/mysqld
if [ ! -d /data/mysql ]; then
  rm -rf /data/mysql.new
  printf "ALTER USER root@localhost IDENTIFIED BY '%s';\n" "$(printf %s "$MYSQL_ROOT_PASSWORD" | sed "s/'/''/g")" >/run/mysqld/first.sql
  mysqld --no-defaults --initialize-insecure --user=root --datadir=/data/mysql.new --init-file=/run/mysqld/first.sql &&
    sync && mv /data/mysql.new /data/mysql
fi
exec mysqld --no-defaults --user=root --datadir=/data/mysql --socket=/run/mysqld/mysqld.sock --skip-networking --mysqlx=OFF --secure-file-priv= \
  --innodb-buffer-pool-size=64M --innodb-redo-log-capacity=64M --max-connections=40 --log-bin=binlog --server-id=1 $OPTIONS"#,
    ready: "MYSQL_PWD=\"$MYSQL_ROOT_PASSWORD\" mysql --no-defaults -S /run/mysqld/mysqld.sock -u root -e 'SELECT 1'",
    socket: Some("/run/mysqld"),
    read_only_root: true,
    ..PLAIN
};

/// The same with its redo log and its binary log on a volume of their own.
pub const MYSQL_APART: Server = Server {
    start: r#"export TMPDIR=/run/mysqld
if [ ! -d /data/mysql ]; then
  rm -rf /data/mysql.new /log/redo && mkdir /log/redo
  printf "ALTER USER root@localhost IDENTIFIED BY '%s';\n" "$(printf %s "$MYSQL_ROOT_PASSWORD" | sed "s/'/''/g")" >/run/mysqld/first.sql
  mysqld --no-defaults --initialize-insecure --user=root --datadir=/data/mysql.new --innodb-log-group-home-dir=/log/redo \
    --init-file=/run/mysqld/first.sql && sync && mv /data/mysql.new /data/mysql
fi
exec mysqld --no-defaults --user=root --datadir=/data/mysql --innodb-log-group-home-dir=/log/redo --log-bin=/log/binlog \
  --socket=/run/mysqld/mysqld.sock --skip-networking --mysqlx=OFF --secure-file-priv= \
  --innodb-buffer-pool-size=64M --innodb-redo-log-capacity=64M --max-connections=40 --server-id=1 $OPTIONS"#,
    second: Some("/log"),
    ..MYSQL
};

const MARIADB_START: &str = r#"export TMPDIR=/run/mysqld
if [ ! -d /data/mysql ]; then
  rm -rf /data/mysql.new
  mariadb-install-db --no-defaults --user=root --datadir=/data/mysql.new --auth-root-authentication-method=normal >/dev/null &&
    sync && mv /data/mysql.new /data/mysql
fi
exec mariadbd --no-defaults --user=root --datadir=/data/mysql --socket=/run/mysqld/mysqld.sock --skip-networking \
  --innodb-buffer-pool-size=64M --innodb-log-file-size=48M --key-buffer-size=1M --max-connections=40 $OPTIONS"#;

/// MariaDB of Debian 12.
pub const MARIADB_10: Server = Server {
    image: "mariadb",
    version: "mariadbd --version | sed 's/.*Ver \\([0-9.]*\\).*/MariaDB \\1/'",
    program: Program::Load,
    engine: "mariadb",
    start: MARIADB_START,
    ready: "mariadb --no-defaults --socket=/run/mysqld/mysqld.sock -u root -e 'SELECT 1'",
    socket: Some("/run/mysqld"),
    read_only_root: true,
    ..PLAIN
};

/// MariaDB of Debian 13.
pub const MARIADB_11: Server = Server { image: "mariadb-trixie", ..MARIADB_10 };

const POSTGRES_START: &str = r#"chown postgres /var/run/postgresql
as_postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
data=/data/pgdata
if [ ! -s "$data/PG_VERSION" ]; then
  rm -rf "$data.new" && install -d -o postgres -g postgres -m 700 "$data.new"
  as_postgres "$PG_BIN/initdb" -A trust -k -D "$data.new" >/dev/null && sync && mv "$data.new" "$data"
fi
exec setpriv --reuid=postgres --regid=postgres --clear-groups "$PG_BIN/postgres" -D "$data" -c listen_addresses= \
  -c unix_socket_directories=/var/run/postgresql -c shared_buffers=32MB -c max_connections=40 -c max_wal_size=128MB $OPTIONS"#;

/// PostgreSQL of Debian 12.
pub const POSTGRES_15: Server = Server {
    image: "postgres",
    version: "\"$PG_BIN/postgres\" --version | sed 's/.*) \\([0-9.]*\\).*/PostgreSQL \\1/'",
    program: Program::Load,
    engine: "postgres",
    env: &[("PG_BIN", "/usr/lib/postgresql/15/bin")],
    start: POSTGRES_START,
    ready: "pg_isready -q -h /var/run/postgresql -U postgres",
    socket: Some("/var/run/postgresql"),
    read_only_root: true,
    ..PLAIN
};

/// The same with its write-ahead log on a volume of its own. A copy gets the label of its Backup, as docs/templates.md says.
pub const POSTGRES_STAGED: Server = Server {
    start: r#"chown postgres /var/run/postgresql
as_postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
data=/data/pgdata
if [ ! -s "$data/PG_VERSION" ]; then
  rm -rf "$data.new" /wal/log && install -d -o postgres -g postgres -m 700 "$data.new" /wal/log
  as_postgres "$PG_BIN/initdb" -A trust -k -X /wal/log -D "$data.new" >/dev/null && sync && mv "$data.new" "$data"
fi
[ -z "$BACKUP_LABEL" ] || (umask 077 && printf '%s' "$BACKUP_LABEL" >"$data/backup_label" && chown postgres "$data/backup_label")
exec setpriv --reuid=postgres --regid=postgres --clear-groups "$PG_BIN/postgres" -D "$data" -c listen_addresses= \
  -c unix_socket_directories=/var/run/postgresql -c shared_buffers=32MB -c max_connections=40 -c max_wal_size=128MB $OPTIONS"#,
    second: Some("/wal"),
    ..POSTGRES_15
};

/// PostgreSQL of Debian 13.
pub const POSTGRES_17: Server =
    Server { image: "postgres-trixie", env: &[("PG_BIN", "/usr/lib/postgresql/17/bin")], ..POSTGRES_15 };

/// PostgreSQL 14 of npm: the oldest that a package registry has.
pub const POSTGRES_14: Server =
    Server { image: "postgres-14", env: &[("PG_BIN", "/opt/postgres/bin")], ..POSTGRES_15 };

/// PostgreSQL 18 of npm: the newest.
pub const POSTGRES_18: Server = Server { image: "postgres-18", ..POSTGRES_14 };

/// etcd of Debian 13, one member.
pub const ETCD: Server = Server {
    image: "etcd",
    version: "etcd --version | sed -n 's/etcd Version: /etcd /p'",
    engine: "etcd",
    start: "exec etcd --name n --data-dir /data/etcd --listen-client-urls=http://127.0.0.1:2379 \
            --advertise-client-urls=http://127.0.0.1:2379 --listen-peer-urls=http://127.0.0.1:2380 \
            --initial-advertise-peer-urls=http://127.0.0.1:2380 --initial-cluster=n=http://127.0.0.1:2380 --log-level=warn $OPTIONS",
    copy_options: "--force-new-cluster",
    ready: "etcdctl endpoint health",
    read_only_root: true,
    ..PLAIN
};

/// RabbitMQ of Debian 13, one node under a name that does not follow from its host.
pub const RABBITMQ: Server = Server {
    image: "rabbitmq",
    version: "dpkg-query -W -f '${Version}' rabbitmq-server | sed 's/-.*//; s/^/RabbitMQ /'",
    engine: "rabbitmq",
    env: &[
        ("RABBITMQ_NODENAME", "stillpoint@localhost"),
        ("RABBITMQ_MNESIA_BASE", "/data"),
        ("RABBITMQ_LOGS", "-"),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", "/data/enabled_plugins"),
    ],
    // Home of its cookie, which its commands read as well.
    start: "chown rabbitmq:rabbitmq /data /var/lib/rabbitmq && rabbitmq-plugins --offline enable rabbitmq_management && exec rabbitmq-server $OPTIONS",
    ready: "rabbitmq-diagnostics -q check_port_connectivity",
    socket: Some("/var/lib/rabbitmq"),
    read_only_root: true,
    // Each commit is a change of the cluster's metadata.
    writers: (1, 50),
    ..PLAIN
};

/// Cassandra from its Maven jars (tests/cluster/images/cassandra), one node, commit log synced every ten seconds.
pub const CASSANDRA: Server = Server {
    image: "cassandra",
    version: "ls /opt/cassandra/lib | sed -n 's/cassandra-all-\\(.*\\)\\.jar/Cassandra \\1/p'",
    engine: "cassandra",
    // Java unpacks libraries of its own.
    start: "mkdir -p /data/tmp && exec cassandra-server -Djava.io.tmpdir=/data/tmp $OPTIONS",
    ready: "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 9042), 1)'",
    read_only_root: true,
    ..PLAIN
};

/// The stand-in for mongod on the real WiredTiger (tests/cluster/images/mongodb), with the real client.
pub const MONGODB: Server = Server {
    image: "mongodb",
    version: "printf 'mongosh %s on WiredTiger, stand-in server' \"$(mongosh --version)\"",
    engine: "mongodb",
    env: &[("MONGO_INITDB_ROOT_USERNAME", "owner"), ("MONGO_INITDB_ROOT_PASSWORD", PASSWORD)],
    // The accounts are made before logins are asked for, as the official image does; the roles are those of mongodb-locked's comment.
    start: r#"if [ ! -d /data/db ]; then
  rm -rf /data/new
  mongod-stand-in --port 27018 --storage-path /data/new &
  until python3 -c 'import socket; socket.create_connection(("127.0.0.1", 27018), 1)' 2>/dev/null; do sleep 0.2; done
  mongosh --quiet --norc 'mongodb://127.0.0.1:27018/admin?directConnection=true' --eval '
    db.createRole({role: "stillpoint", privileges: [{resource: {cluster: true}, actions: ["fsync", "unlock", "inprog", "serverStatus"]}], roles: []});
    db.createRole({role: "half", privileges: [{resource: {cluster: true}, actions: ["fsync", "inprog", "serverStatus"]}], roles: []});
    for (const [user, ...roles] of [[process.env.MONGO_INITDB_ROOT_USERNAME, "root"], ["stillpoint", "stillpoint", "readAnyDatabase", "dbAdminAnyDatabase"], ["half", "half"], ["reader", "read"]])
      db.createUser({user: user, pwd: process.env.MONGO_INITDB_ROOT_PASSWORD, roles: roles})' || exit 1
  kill $! && wait
  sync && mv /data/new /data/db
fi
exec mongod-stand-in --port 27017 --storage-path /data/db --auth $OPTIONS"#,
    ready: "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 27017), 1)'",
    read_only_root: true,
    ..PLAIN
};

/// The look-alike of SQL Server (tests/servers/look-alikes/sqlserver), which is not SQL Server.
pub const SQLSERVER: Server = Server {
    image: "sqlserver-look-alike",
    version: "echo 'a look-alike of SQL Server 2022, not SQL Server'",
    engine: "sqlserver",
    env: &[("MSSQL_SA_PASSWORD", PASSWORD)],
    start: "mkdir -p /data/mssql && exec sqlserver-look-alike /data/mssql",
    ready: "SQLCMDPASSWORD=\"$MSSQL_SA_PASSWORD\" /opt/mssql-tools18/bin/sqlcmd -C -b -S tcp:127.0.0.1,1433 -U sa -Q \"PRINT 'here';\"",
    read_only_root: true,
    ..PLAIN
};

/// The same where nothing but OFF ends a suspension. Sources say both.
pub const SQLSERVER_STAYS: Server = Server {
    version: "echo 'a look-alike of SQL Server 2022, not SQL Server, whose suspension outlives its session'",
    env: &[("MSSQL_SA_PASSWORD", PASSWORD), ("LOOK_ALIKE_SESSION_END", "stays")],
    ..SQLSERVER
};

/// The look-alike of Db2 (tests/servers/look-alikes/db2), which is not Db2. A copy that was cut while it was suspended stays so until
/// it is told what it is, as documented of `db2inidb`: the template's `afterRestore` does.
pub const DB2: Server = Server {
    image: "db2-look-alike",
    version: "echo 'a look-alike of Db2 11.5, not Db2'",
    engine: "db2",
    env: &[("LOOK_ALIKE_SOCKET", "/run/look-alike/db2.sock")],
    start: r#"mkdir -p /data/db2
exec db2-look-alike /data/db2"#,
    ready: "db2pd -db SAMPLE -dbcfg",
    socket: Some("/run/look-alike"),
    read_only_root: true,
    ..PLAIN
};

/// ClickHouse of Debian 12, one server. Each commit is a part of some ten files that stays for eight minutes: the volume has not room for
/// many more.
pub const CLICKHOUSE: Server = Server {
    image: "clickhouse",
    version: "dpkg-query -W -f '${Version}' clickhouse-server | sed 's/+.*//; s/^/ClickHouse /'",
    engine: "clickhouse",
    start: r#"mkdir -p /data/clickhouse
cat >/data/users.xml <<'XML'
<yandex><profiles><default></default></profiles><quotas><default></default></quotas><users><default><password></password>
<networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota></default></users></yandex>
XML
cat >/data/config.xml <<'XML'
<yandex><logger><level>warning</level><console>1</console></logger><http_port>8123</http_port><tcp_port>9000</tcp_port>
<listen_host>127.0.0.1</listen_host><path>/data/clickhouse/</path><tmp_path>/data/clickhouse/tmp/</tmp_path>
<user_files_path>/data/clickhouse/user_files/</user_files_path><mark_cache_size>67108864</mark_cache_size>
<users_config>/data/users.xml</users_config><default_profile>default</default_profile><default_database>default</default_database></yandex>
XML
exec clickhouse-server --config-file=/data/config.xml $OPTIONS"#,
    ready: "clickhouse-client --host 127.0.0.1 --query 'SELECT 1'",
    read_only_root: true,
    writers: (3, 200),
    ..PLAIN
};

/// InfluxDB of Debian 12. It writes files of points while the load runs, as a busy server does: what it keeps in memory is small.
/// It does not watch itself: that makes a database ten seconds after the start, in between prepare and a cut if it comes so, and this version
/// does not start on what a power failure leaves of a new database (config/templates/influxdb.yaml).
pub const INFLUXDB: Server = Server {
    image: "influxdb",
    version: "influxd version | sed 's/^InfluxDB v\\([0-9.]*\\).*/InfluxDB \\1/'",
    engine: "influxdb",
    start: r#"mkdir -p /data/influxdb
cat >/data/influxdb.conf <<'CONF'
reporting-disabled = true
bind-address = "127.0.0.1:8088"
[meta]
dir = "/data/influxdb/meta"
[data]
dir = "/data/influxdb/data"
wal-dir = "/data/influxdb/wal"
cache-snapshot-memory-size = "64k"
query-log-enabled = false
[monitor]
store-enabled = false
[http]
bind-address = "127.0.0.1:8086"
log-enabled = false
CONF
exec influxd -config /data/influxdb.conf $OPTIONS"#,
    ready: "python3 -c 'import urllib.request; urllib.request.urlopen(\"http://127.0.0.1:8086/ping\", timeout=1)'",
    read_only_root: true,
    ..PLAIN
};
