#!/usr/bin/env python3
"""A look-alike of a SQL Server instance with one user database: see README.md. Not SQL Server."""
import json
import os
import re
import socket
import socketserver
import sqlite3
import sys
import threading
import time

SOCKET = os.environ.get("LOOK_ALIKE_SOCKET", "/tmp/look-alike-sqlserver.sock")
VERSION = os.environ.get("LOOK_ALIKE_VERSION", "16.0.4135.4")
# Sources say both (README.md).
SESSION_END_THAWS = os.environ.get("LOOK_ALIKE_SESSION_END", "thaws") == "thaws"
PASSWORD = "look-alike"
SUSPEND = "ALTER SERVER CONFIGURATION SET SUSPEND_FOR_SNAPSHOT_BACKUP = "


class Failed(Exception):
    """An error of a statement: number and text."""


class Instance:
    """Rows that are forced at every commit, and who has suspended the writes."""

    def __init__(self, directory):
        self.directory = directory
        self.rows = open(os.path.join(directory, "rows"), "a+b", buffering=0)
        self.changed = threading.Condition()
        self.suspended_by = None
        self.since = 0.0
        self.copy_only = False
        self.last_session = 50

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

    def insert(self, row):
        with self.changed:
            while self.suspended_by is not None:
                self.changed.wait()
            self.rows.write(b"%d\n" % row)
            os.fsync(self.rows.fileno())
        return []

    def check(self, database):
        """What CHECKDB finds: rows that are no rows."""
        if database != "sales":
            return
        with open(self.rows.name, "rb") as rows:
            for at, row in enumerate(rows.read().splitlines()):
                if not row.isdigit():
                    raise Failed(8939, f"Table error: Object ID 0, page (1:{at}). Test (IS_OFF (BUF_IOERR, pBUF->bstat)) failed.")

    def all_rows(self):
        with open(self.rows.name, "rb") as rows:
            return [int(row) for row in rows.read().split()]


class Session:
    """One connection."""

    def __init__(self, instance, asked):
        self.instance = instance
        with instance.changed:
            instance.last_session += 1
            self.number = instance.last_session
        self.may = asked["authority"]

    def evaluate(self, text):
        """The rows of a SELECT: names and conditions of T-SQL, reckoned by SQLite."""
        held = self.instance
        facts = sqlite3.connect(":memory:")
        facts.execute("ATTACH ':memory:' AS sys")
        facts.execute("CREATE TABLE sys.databases (database_id, name, state, is_read_only, delayed_durability)")
        facts.executemany(
            "INSERT INTO sys.databases VALUES (?, ?, 0, 0, 0)",
            [(1, "master"), (2, "tempdb"), (3, "model"), (4, "msdb"), (5, "sales")],
        )
        facts.execute("CREATE TABLE sys.master_files (database_id, physical_name)")
        facts.executemany("INSERT INTO sys.master_files VALUES (?, ?)", [(1, os.path.join(held.directory, "rows")), (2, "/tmp/tempdb.mdf"), (5, os.path.join(held.directory, "rows"))])
        facts.execute("CREATE TABLE sys.dm_server_suspend_status (db_id, db_name, suspend_session_id, suspend_time_ms, is_diffmap_cleared, is_write_io_frozen)")
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
        facts.create_function("CONNECTIONPROPERTY", 1, {"client_net_address": "127.0.0.1"}.get)
        facts.create_function("CONCAT", -1, lambda *parts: "".join("" if part is None else str(part) for part in parts))
        facts.create_function("fn_hadr_is_primary_replica", 1, lambda name: None)
        facts.create_function("HAS_PERMS_BY_NAME", 3, lambda what, kind, right: int(self.may))
        facts.create_function("now_in_microseconds", 0, lambda: time.time_ns() // 1000)
        facts.execute("CREATE TABLE t (row)")
        if re.search(r"\bFROM t\b", text):
            facts.executemany("INSERT INTO t VALUES (?)", [(row,) for row in held.all_rows()])
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
            self.instance.check(re.fullmatch(r"DBCC CHECKDB \(N'(.*)'\) WITH NO_INFOMSGS, ALL_ERRORMSGS", text).group(1))
            return []
        if verb == "INSERT":
            return self.instance.insert(int(re.fullmatch(r"INSERT INTO t VALUES \((\d+)\)", text).group(1)))
        if text.startswith(SUSPEND) or text.startswith("BACKUP SERVER "):
            if not self.may:
                raise Failed(15247, "User does not have permission to perform this action.")
            if text.startswith("BACKUP"):
                return self.instance.metadata_backup(re.fullmatch(r"BACKUP SERVER TO DISK = '(.*)' WITH METADATA_ONLY(, FORMAT)?", text).group(1))
            match text[len(SUSPEND):]:
                case "ON":
                    return self.instance.suspend(self.number, False)
                case "ON (MODE = COPY_ONLY)":
                    return self.instance.suspend(self.number, True)
                case "OFF":
                    return self.instance.resume()
        raise Failed(102, f"Incorrect syntax near '{words[0]}'.")


def parted(text):
    """Condition and statement of an IF: the first verb outside parentheses begins the statement."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and re.match(r" (THROW|PRINT|ALTER) ", text[at:]):
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
        if asked["password"] != PASSWORD or asked["user"] != "sa":
            self.say({"refused": f"Login failed for user '{asked['user']}'."})
            return
        session = Session(self.server.instance, asked)
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


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


def main():
    directory = sys.argv[1]
    try:
        # Only what is left of a server that is gone is taken away.
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(SOCKET)
        sys.exit(f"another look-alike serves {SOCKET}")
    except OSError:
        if os.path.exists(SOCKET):
            os.unlink(SOCKET)
    with Server(SOCKET, Handler) as server:
        server.instance = Instance(directory)
        server.serve_forever()


main()
