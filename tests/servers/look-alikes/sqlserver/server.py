#!/usr/bin/env python3
"""A look-alike of a SQL Server instance with one user database: see README.md. Not SQL Server."""
import hashlib
import hmac
import json
import os
import re
import socketserver
import sqlite3
import sys
import threading
import time
import zlib

PORT = int(os.environ.get("MSSQL_TCP_PORT", "1433"))
VERSION = os.environ.get("LOOK_ALIKE_VERSION", "16.0.4135.4")
# Sources say both (README.md).
SESSION_END_THAWS = os.environ.get("LOOK_ALIKE_SESSION_END", "thaws") == "thaws"
SUSPENDS = int(VERSION.split(".")[0]) >= 16
SUSPEND = "ALTER SERVER CONFIGURATION SET SUSPEND_FOR_SNAPSHOT_BACKUP = "
TABLES = {"t": ["row"], "ledger": ["writer", "seq", "content"]}
STRING = r"N?'((?:[^']|'')*)'"
# What may be granted here, and what has it besides CONTROL SERVER.
RIGHTS = {
    "CONTROL SERVER": None,
    "ALTER SETTINGS": None,
    "VIEW ANY DEFINITION": None,
    "VIEW SERVER STATE": None,
    "VIEW SERVER PERFORMANCE STATE": "VIEW SERVER STATE",
}
SEEN_WITH = {"sys.dm_server_suspend_status": "VIEW SERVER PERFORMANCE STATE", "sys.fn_hadr_is_primary_replica": "VIEW SERVER STATE"}


class Failed(Exception):
    """An error of a statement: number and text."""


class Master:
    """The accounts, in a file of the database master: a copy has them. `sa` has the password of the environment."""

    def __init__(self, directory, password):
        self.file = os.path.join(directory, "master")
        self.password = password
        self.lock = threading.Lock()
        self.logins = {}
        if os.path.exists(self.file):
            with open(self.file, encoding="utf-8") as kept:
                self.logins = json.load(kept)
        else:
            self.keep()

    def keep(self):
        """master is not suspended, and what is committed to it is forced as well."""
        with open(self.file + ".new", "w", encoding="utf-8") as new:
            json.dump(self.logins, new)
            new.flush()
            os.fsync(new.fileno())
        os.rename(self.file + ".new", self.file)
        folder = os.open(os.path.dirname(self.file), os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def create(self, name, password):
        with self.lock:
            if name == "sa" or name in self.logins:
                raise Failed(15025, f"The server principal '{name}' already exists.")
            salt = os.urandom(8).hex()
            self.logins[name] = {"salt": salt, "hash": hashed(salt, password), "rights": []}
            self.keep()
        return []

    def grant(self, rights, name):
        with self.lock:
            if name not in self.logins:
                raise Failed(15151, f"Cannot find the login '{name}', because it does not exist or you do not have permission.")
            self.logins[name]["rights"] = sorted({*self.logins[name]["rights"], *rights})
            self.keep()
        return []

    def knows(self, name, password):
        with self.lock:
            login = self.logins.get(name)
        if name == "sa":
            return hmac.compare_digest(password.encode(), self.password.encode())
        return login is not None and hmac.compare_digest(hashed(login["salt"], password), login["hash"])

    def may(self, name, right):
        with self.lock:
            rights = self.logins.get(name, {"rights": []})["rights"]
        return name == "sa" or bool({right, RIGHTS.get(right), "CONTROL SERVER"} & set(rights))


def hashed(salt, password):
    return hashlib.sha512((salt + password).encode()).hexdigest()


class Instance:
    """Rows that are forced at every commit, and who has suspended the writes."""

    def __init__(self, directory, password):
        self.directory = directory
        self.master = Master(directory, password)
        self.rows = open(os.path.join(directory, "rows"), "a+b", buffering=0)
        self.recover()
        self.changed = threading.Condition()
        self.suspended_by = None
        self.since = 0.0
        self.copy_only = False
        self.last_session = 50

    def recover(self):
        """A commit that was being written when everything ended was not acknowledged: it is rolled back."""
        self.rows.seek(0)
        kept = self.rows.read()
        whole = kept.rfind(b"\n") + 1
        if whole < len(kept):
            self.rows.truncate(whole)
            os.fsync(self.rows.fileno())

    def suspend(self, session, copy_only):
        with self.changed:
            if self.suspended_by is not None:
                raise Failed(3081, "Database 'sales' is already suspended for snapshot backup.")
            # No commit is between its write and its answer while this is held.
            self.suspended_by, self.since, self.copy_only = session, time.monotonic(), copy_only
        return [
            f"Database 'sales' acquired suspend locks in session {session}.",
            "I/O is frozen on database sales. No user action is required. However, if I/O is not resumed promptly, you could cancel the backup.",
            f"Database 'sales' successfully suspended for snapshot backup in session {session}.",
        ]

    def resume(self):
        with self.changed:
            if self.suspended_by is None:
                raise Failed(3082, "Database 'sales' is not suspended for snapshot backup.")
            self.suspended_by = None
            self.changed.notify_all()
        return ["I/O was resumed on database sales. No user action is required."]

    def metadata_backup(self, path):
        with self.changed:
            if self.suspended_by is None:
                raise Failed(3013, "BACKUP SERVER is terminating abnormally.")
            with open(path, "wb") as told:
                told.write(b"metadata of sales\n")
        return self.resume() + ["BACKUP SERVER successfully processed 0 pages."]

    def ended(self, session):
        with self.changed:
            if SESSION_END_THAWS and self.suspended_by == session:
                self.suspended_by = None
                self.changed.notify_all()

    def insert(self, table, values):
        text = json.dumps([table, *values]).encode()
        with self.changed:
            while self.suspended_by is not None:
                self.changed.wait()
            self.rows.write(b"%08x %s\n" % (zlib.crc32(text), text))
            os.fsync(self.rows.fileno())
        return []

    def kept(self):
        """Table and values of every row, and None for one that is not as it was written."""
        with open(self.rows.name, "rb") as rows:
            for line in rows.read().splitlines():
                checksum, _, text = line.partition(b" ")
                yield json.loads(text) if checksum == b"%08x" % zlib.crc32(text) else None

    def check(self, database):
        """What CHECKDB finds: rows with another checksum."""
        for at, row in enumerate(self.kept() if database == "sales" else []):
            if row is None:
                raise Failed(8939, f"Table error: Object ID 0, page (1:{at}). Test (IS_OFF (BUF_IOERR, pBUF->bstat)) failed.")

    def of_table(self, table):
        for row in self.kept():
            if row is None:
                raise Failed(824, "SQL Server detected a logical consistency-based I/O error: incorrect checksum.")
            if row[0] == table:
                yield row[1:]


class Session:
    """One connection."""

    def __init__(self, instance, user, address):
        self.instance = instance
        self.user, self.address = user, address
        with instance.changed:
            instance.last_session += 1
            self.number = instance.last_session

    def may(self, right):
        return self.instance.master.may(self.user, right)

    def needs(self, right):
        if not self.may(right):
            raise Failed(15247, "User does not have permission to perform this action.")

    def evaluate(self, text):
        """The rows of a SELECT: names and conditions of T-SQL, reckoned by SQLite."""
        held = self.instance
        for what, right in SEEN_WITH.items():
            if what in text and not self.may(right):
                raise Failed(300, f"{right} permission was denied on object 'server', database 'master'.")
        facts = sqlite3.connect(":memory:")
        facts.execute("ATTACH ':memory:' AS sys")
        facts.execute("CREATE TABLE sys.databases (database_id, name, state, is_read_only, delayed_durability)")
        facts.executemany(
            "INSERT INTO sys.databases VALUES (?, ?, 0, 0, 0)",
            [(1, "master"), (2, "tempdb"), (3, "model"), (4, "msdb"), (5, "sales")],
        )
        facts.execute("CREATE TABLE sys.master_files (database_id, physical_name)")
        if self.may("VIEW ANY DEFINITION"):
            files = [(1, held.master.file), (2, "/tmp/tempdb.mdf"), (5, held.rows.name)]
            facts.executemany("INSERT INTO sys.master_files VALUES (?, ?)", files)
        facts.execute("CREATE TABLE sys.server_principals (name)")
        facts.executemany("INSERT INTO sys.server_principals VALUES (?)", [("sa",), *((name,) for name in list(held.master.logins))])
        if SUSPENDS:
            facts.execute("CREATE TABLE sys.dm_server_suspend_status (db_id, db_name, suspend_session_id, suspend_time_ms, is_diff_map_cleared, is_write_io_frozen)")
        with held.changed:
            suspended, since = held.suspended_by, held.since
            if suspended is not None:
                facts.execute("INSERT INTO sys.dm_server_suspend_status VALUES (5, 'sales', ?, ?, ?, 1)", (suspended, int((time.monotonic() - since) * 1000), int(not held.copy_only)))
        properties = {
            "ProductVersion": VERSION,
            "ProductMajorVersion": VERSION.split(".")[0],
            "IsServerSuspendedForSnapshotBackup": int(suspended is not None),
            "SuspendedDatabaseCount": int(suspended is not None),
        }
        facts.create_function("SERVERPROPERTY", 1, properties.get)
        facts.create_function("CONNECTIONPROPERTY", 1, {"client_net_address": self.address}.get)
        facts.create_function("CONCAT", -1, lambda *parts: "".join("" if part is None else str(part) for part in parts))
        facts.create_function("fn_hadr_is_primary_replica", 1, lambda name: None)
        facts.create_function("HAS_PERMS_BY_NAME", 3, lambda what, kind, right: int(self.may(right)))
        facts.create_function("now_in_microseconds", 0, lambda: time.time_ns() // 1000)
        for table, columns in TABLES.items():
            if re.search(rf"\bFROM {table}\b", text):
                facts.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
                facts.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})", held.of_table(table))
        text = re.sub(r"DATEDIFF_BIG\(MICROSECOND, '1970-01-01', SYSUTCDATETIME\(\)\)", "now_in_microseconds()", text)
        text = text.replace("@@SPID", str(self.number)).replace("sys.fn_", "fn_")
        try:
            return [row[0] for row in facts.execute(text)]
        except sqlite3.Error as wrong:
            raise Failed(102, f"Incorrect syntax: {wrong}") from None
        finally:
            facts.close()

    def run(self, text):
        """The lines that one statement prints."""
        words = text.split()
        verb = words[0].upper()
        if text.upper().startswith(("SET NOCOUNT ", "SET LOCK_TIMEOUT ")):
            return []
        if verb == "IF":
            condition, statement = parted(text)
            [met] = self.evaluate(f"SELECT ({condition})")
            return self.run(statement) if met else []
        if verb == "THROW":
            number, message = re.fullmatch(r"THROW (\d+), '(.*)', 1", text).groups()
            raise Failed(int(number), message)
        if verb == "PRINT":
            return [str(line) for line in self.evaluate("SELECT " + text[5:])]
        if verb == "SELECT":
            return [str(line) for line in self.evaluate(text)]
        if verb == "DBCC":
            database = unquoted(re.fullmatch(rf"DBCC CHECKDB \({STRING}\) WITH NO_INFOMSGS, ALL_ERRORMSGS", text).group(1))
            if self.user != "sa":
                raise Failed(7983, f"User '{self.user}' does not have permission to run DBCC checkdb for database '{database}'.")
            self.instance.check(database)
            return []
        if verb == "INSERT":
            table, values = re.fullmatch(r"INSERT INTO (\w+) VALUES \((.*)\)", text, re.DOTALL).groups()
            found = [int(number) if number else unquoted(string) for number, string in re.findall(rf"(\d+)|{STRING}", values)]
            if len(found) != len(TABLES.get(table, [])):
                raise Failed(213, "Column name or number of supplied values does not match table definition.")
            return self.instance.insert(table, found)
        if text.startswith("CREATE LOGIN "):
            self.needs("CONTROL SERVER")
            name, password = re.fullmatch(rf"CREATE LOGIN (\w+) WITH PASSWORD = {STRING}", text, re.DOTALL).groups()
            return self.instance.master.create(name, unquoted(password))
        if verb == "GRANT":
            self.needs("CONTROL SERVER")
            granted, name = re.fullmatch(r"GRANT (.*) TO (\w+)", text).groups()
            rights = [right.strip() for right in granted.split(",")]
            if not set(rights) <= set(RIGHTS):
                raise Failed(102, f"Incorrect syntax near '{granted}'.")
            return self.instance.master.grant(rights, name)
        if SUSPENDS and text.startswith("BACKUP SERVER "):
            self.needs("CONTROL SERVER")
            return self.instance.metadata_backup(re.fullmatch(r"BACKUP SERVER TO DISK = '(.*)' WITH METADATA_ONLY(, FORMAT)?", text).group(1))
        if SUSPENDS and text.startswith(SUSPEND):
            self.needs("ALTER SETTINGS")
            match text[len(SUSPEND):]:
                case "ON":
                    return self.instance.suspend(self.number, False)
                case "ON (MODE = COPY_ONLY)":
                    return self.instance.suspend(self.number, True)
                case "OFF":
                    return self.instance.resume()
        raise Failed(102, f"Incorrect syntax near '{words[0]}'.")


def unquoted(string):
    return string.replace("''", "'")


def parted(text):
    """Condition and statement of an IF: the first verb outside parentheses begins the statement."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and re.match(r" (THROW|PRINT|ALTER|CREATE) ", text[at:]):
            return text[3:at], text[at + 1:]
    raise Failed(102, "Incorrect syntax near 'IF'.")


def statements(batch):
    """Those of a batch, without the semicolons that end them; one inside quotes ends none."""
    found, quoted = [""], False
    for letter in batch:
        quoted ^= letter == "'"
        if letter == ";" and not quoted:
            found.append("")
        else:
            found[-1] += letter
    return [" ".join(one.split()) if "'" not in one else one.strip() for one in found if one.strip()]


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        asked = json.loads(self.rfile.readline())
        if not self.server.instance.master.knows(asked["user"], asked["password"]):
            self.say({"refused": f"Login failed for user '{asked['user']}'."})
            return
        session = Session(self.server.instance, asked["user"], self.client_address[0])
        self.say({"session": session.number})
        # A session whose client is gone ends, also while a statement of it waits.
        try:
            for line in self.rfile:
                lines, error = [], None
                try:
                    for one in statements(json.loads(line)):
                        lines += session.run(one)
                except Failed as failed:
                    error = failed.args
                self.say({"lines": lines, "error": error})
        except OSError:
            pass
        finally:
            self.server.instance.ended(session.number)

    def say(self, what):
        self.wfile.write(json.dumps(what).encode() + b"\n")


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    # A server that follows another one at once.
    allow_reuse_address = True
    request_queue_size = 64


def main():
    password = os.environ.get("MSSQL_SA_PASSWORD")
    if not password:
        sys.exit("MSSQL_SA_PASSWORD is not set")
    with Server(("127.0.0.1", PORT), Handler, bind_and_activate=False) as server:
        # Two servers never have the same files, and nobody is answered until they are recovered.
        server.server_bind()
        server.instance = Instance(sys.argv[1], password)
        server.server_activate()
        server.serve_forever()


main()
