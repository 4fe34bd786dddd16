#!/usr/bin/env python3
"""A look-alike of a Db2 instance with one database: see README.md. Not Db2."""
import json
import os
import socket
import socketserver
import sys
import threading

SOCKET = os.environ.get("LOOK_ALIKE_SOCKET", "/tmp/look-alike-db2.sock")
NAME = "SAMPLE"


class Database:
    """Rows that are forced at every commit, and who may write."""

    def __init__(self, directory):
        self.directory = directory
        self.mark = os.path.join(directory, "write-suspended")
        self.rows = open(os.path.join(directory, "rows"), "a+b", buffering=0)
        self.changed = threading.Condition()
        self.suspended = os.path.exists(self.mark)
        self.dirty = False
        self.connected = set()

    def suspend(self):
        with self.changed:
            if self.suspended:
                return error("SQL1550N", "The SET WRITE SUSPEND command failed: the database is suspended already.")
            # No commit is between its write and its answer while this is held.
            force(self.mark, self.directory)
            self.suspended = True
            return done("SET WRITE")

    def resume(self, restart=False):
        with self.changed:
            if not self.suspended and not restart:
                return error("SQL1551N", "The SET WRITE RESUME command failed because the database is not currently in WRITE SUSPEND state.")
            if self.suspended:
                os.unlink(self.mark)
                self.suspended = False
            self.changed.notify_all()
            return done("RESTART DATABASE" if restart else "SET WRITE")

    def initialize(self):
        """A copy that was cut while it was suspended recovers, and is a database of its own."""
        with self.changed:
            if not self.suspended:
                return error("DBT1006N", "The db2inidb tool failed: the database is not in WRITE SUSPEND state.")
            os.unlink(self.mark)
            self.suspended = False
            self.changed.notify_all()
            return ["DBT1000I  The tool completed successfully."]

    def inspect(self):
        """Each row is a line that begins as rows do; what does not was not written by a commit."""
        with open(self.rows.name, "rb") as rows:
            kept = rows.read()
        if kept and not kept.endswith(b"\n") or b"\0" in kept:
            return error("SQL1141N", "The utility has completed with errors. The inspect results file must be formatted.")
        return done("INSPECT")

    def connect(self, who, name):
        if name.upper() != NAME:
            return error("SQL1013N", f"The database alias name or database name \"{name}\" could not be found.")
        with self.changed:
            # It would have to write a page to make room.
            while self.suspended and self.dirty:
                self.changed.wait()
            self.connected.add(who)
        return ["", f"   Database Connection Information", f" Local database alias   = {NAME}", ""]

    def insert(self, row):
        with self.changed:
            while self.suspended:
                self.changed.wait()
            self.rows.write(row.encode() + b"\n")
            os.fsync(self.rows.fileno())
            self.dirty = True
        return done("SQL")

    def flush(self):
        with self.changed:
            while self.suspended:
                self.changed.wait()
            self.dirty = False
        return done("FLUSH BUFFERPOOLS")

    def select(self):
        with open(self.rows.name, "rb") as rows:
            return rows.read().decode().splitlines()


def force(path, directory):
    with open(path, "wb") as mark:
        mark.flush()
        os.fsync(mark.fileno())
    folder = os.open(directory, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def done(what):
    return [f"DB20000I  The {what} command completed successfully."]


def error(code, text):
    return [f"{code}  {text}"]


def answer(database, asked):
    """The lines that the processor prints for one statement."""
    text, who, authority = asked["text"], asked["who"], asked["authority"]
    words = text.split()
    verb = " ".join(words[:2]).upper()
    if words[:1] == ["peek"]:
        return ["YES" if database.suspended else "NO"]
    if verb == "CONNECT TO":
        return database.connect(who, words[2])
    if verb == "INIDB " + NAME and " ".join(words[2:]).upper() == "AS SNAPSHOT":
        return database.initialize()
    if verb == "RESTART DATABASE" and " ".join(words[3:]).upper() == "WRITE RESUME":
        return database.resume(restart=True) if authority else error("SQL1092N", "The requested command or operation failed because the user ID does not have the authority to perform the requested command or operation.")
    if words[0].upper() == "TERMINATE":
        database.connected.discard(who)
        return ["DB20000I  The TERMINATE command completed successfully."]
    if who not in database.connected:
        return error("SQL1024N", "A database connection does not exist.  SQLSTATE=08003")
    whole = text.upper()
    if whole in ("SET WRITE SUSPEND FOR DATABASE", "SET WRITE RESUME FOR DATABASE", "FLUSH BUFFERPOOLS ALL") and not authority:
        return error("SQL1092N", "The requested command or operation failed because the user ID does not have the authority to perform the requested command or operation.")
    if whole == "SET WRITE SUSPEND FOR DATABASE":
        return database.suspend()
    if whole == "SET WRITE RESUME FOR DATABASE":
        return database.resume()
    if whole == "FLUSH BUFFERPOOLS ALL":
        return database.flush()
    if whole.startswith("INSPECT CHECK DATABASE RESULTS "):
        return database.inspect()
    if whole.startswith("SET CURRENT LOCK TIMEOUT "):
        return done("SQL")
    if whole.startswith("INSERT INTO T VALUES("):
        # Kept as it is written: one row is one line.
        return database.insert(text[len("INSERT INTO T VALUES("):].removesuffix(")"))
    if whole == "SELECT ROW FROM T":
        return database.select()
    if whole == "SELECT PATH FROM SYSIBMADM.DBPATHS":
        # Columns are padded.
        return [os.path.join(database.directory, "").ljust(120)]
    if whole.startswith("VALUES RAISE_ERROR("):
        return error("SQL0438N", "Application raised error or warning with diagnostic text: \"canary\".  SQLSTATE=70001")
    return error("SQL0104N", f"An unexpected token \"{words[0]}\" was found.  SQLSTATE=42601")


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            try:
                lines = answer(self.server.database, json.loads(line))
                self.wfile.write(json.dumps(lines).encode() + b"\n")
            except OSError:
                return


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
        server.database = Database(directory)
        server.serve_forever()


main()
