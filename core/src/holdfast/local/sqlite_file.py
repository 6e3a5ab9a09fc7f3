"""The file of state store `sqlite`: its tables, its transactions, and what its errors mean.

One thread owns a `SqliteFile` and waits in it; the event loop is not known here. Other processes have
the same file open. What makes it safe:

- a compare-and-set is one IMMEDIATE transaction, so SQLite's file locks make it linearizable;
- `synchronous=FULL`: a commit has reached the disk before anybody is told of it, so a group record
  survives a power loss, and a killed process leaves nothing half written (write-ahead log);
- leases need no disk, for no lease survives a boot: they go through a second connection with
  `synchronous=NORMAL`, where a renewal costs no fsync and cannot reorder what the first one wrote;
- a file that was removed or replaced under its path is refused in the next transaction, because two
  nodes that believe in two files would promote two primaries.

Sources: sqlite.org/wal.html, sqlite.org/pragma.html#pragma_synchronous, sqlite.org/rescode.html.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

import attrs

from holdfast.errors import StateConflictError, StateError
from holdfast.interfaces.state import Change, Entry
from holdfast.local.host import boot_id, monotonic
from holdfast.local.watching import Row

APPLICATION_ID = 0x48664E54
"""Says whose file it is, so that another program's database is never taken for ours."""
SCHEMA_VERSION = 1
"""Rises when an older node could not read the file any more; kept as `user_version`."""
TOMBSTONES_MAX = 4096
"""Deletions that a slow watch can still learn one by one; behind them it lists anew."""

_SCHEMA = """
CREATE TABLE entry (key TEXT PRIMARY KEY, version INTEGER NOT NULL, value BLOB NOT NULL);
CREATE UNIQUE INDEX entry_by_version ON entry (version, key);
CREATE TABLE gone (key TEXT PRIMARY KEY, version INTEGER NOT NULL);
CREATE UNIQUE INDEX gone_by_version ON gone (version, key);
CREATE TABLE counter (version INTEGER NOT NULL, pruned INTEGER NOT NULL);
INSERT INTO counter VALUES (0, 0);
CREATE TABLE session (
    name TEXT PRIMARY KEY, id TEXT NOT NULL, boot TEXT NOT NULL, ends_at_s REAL NOT NULL);
"""

_PREFIX_END = "\x7f"
"""Sorts behind every character that a key may have."""


@attrs.frozen
class Reading:
    """What changed, or everything there is, as of one instant."""

    version: int
    rows: Sequence[Row] = ()
    """By rising version."""
    listing: Sequence[Entry] | None = None
    """Every entry asked for, when the deletions since then are forgotten; `rows` is empty then."""


@attrs.define(eq=False)
class SqliteFile:
    """An open file; every method belongs to the one thread that opened it.

    Every method may raise `StateError`; nothing is written then, except that a failed commit leaves
    open whether it was.
    """

    path: Path
    lock_timeout_s: float
    tombstones_max: int
    _inode: tuple[int, int]
    _durable: sqlite3.Connection
    _light: sqlite3.Connection
    """For leases: commits without an fsync."""

    @classmethod
    def open(cls, path: Path, lock_timeout_s: float, tombstones_max: int = TOMBSTONES_MAX) -> Self:
        """Open the file, made with mode 0600 and a schema if it is missing.

        Args:
            path: Absolute; missing directories above it are made with mode 0700.
            lock_timeout_s: How long another process's transaction is waited for.
            tombstones_max: How many deletions are remembered.

        Raises:
            StateError: With a hint, when it cannot be used.
        """
        with _translated(path, lock_timeout_s):
            _create(path)
            inode = _inode_of(path)
            durable = _connect(path, lock_timeout_s, "FULL")
            try:
                _prepare(durable, path, lock_timeout_s)
                light = _connect(path, lock_timeout_s, "NORMAL")
            except BaseException:
                durable.close()
                raise
        return cls(path, lock_timeout_s, tombstones_max, inode, durable, light)

    def close(self) -> None:
        """Close both connections; the last process to do so folds the log into the file."""
        with _translated(self.path, self.lock_timeout_s):
            self._light.close()
            self._durable.close()

    # --- values ---------------------------------------------------------------------------------

    def get(self, key: str) -> Entry | None:
        """Return the entry under `key` after every commit so far."""
        with self._reading() as db:
            row = db.execute("SELECT value, version FROM entry WHERE key = ?", (key,)).fetchone()
        return None if row is None else Entry(key, *row)

    def list(self, prefix: str) -> Reading:
        """Return every entry of `prefix` as the `listing`, by key."""
        with self._reading() as db:
            version, _ = db.execute("SELECT version, pruned FROM counter").fetchone()
            return Reading(version, listing=_listed(db, prefix))

    def compare_and_set(self, key: str, value: bytes | None, expected: int | None) -> Entry | None:
        """Write or delete in one transaction; see `StateStore.compare_and_set`."""
        with self._writing(self._durable) as db:
            row = db.execute("SELECT version FROM entry WHERE key = ?", (key,)).fetchone()
            present = None if row is None else row[0]
            if present != expected:
                raise StateConflictError(f"{key} was written by somebody else.")
            if value is None and present is None:
                return None
            db.execute("UPDATE counter SET version = version + 1")
            (version,) = db.execute("SELECT version FROM counter").fetchone()
            if value is None:
                db.execute("DELETE FROM entry WHERE key = ?", (key,))
                db.execute("INSERT INTO gone VALUES (?, ?)", (key, version))
                self._prune(db)
                return None
            db.execute("INSERT OR REPLACE INTO entry VALUES (?, ?, ?)", (key, version, value))
            db.execute("DELETE FROM gone WHERE key = ?", (key,))
        return Entry(key, bytes(value), version)

    def changes(self, since: int, prefixes: tuple[str, ...]) -> Reading:
        """Return what happened after version `since` to keys that begin with one of `prefixes`.

        Values are read for these keys only, so a watch of one record costs one small row, whatever
        else is written.
        """
        with self._reading() as db:
            version, pruned = db.execute("SELECT version, pruned FROM counter").fetchone()
            if version == since:
                return Reading(version)
            if since < pruned:
                entries = {entry.key: entry for p in prefixes for entry in _listed(db, p)}
                return Reading(version, listing=tuple(entries.values()))
            found = db.execute(
                "SELECT version, key, 1 FROM entry WHERE version > ?1 "
                "UNION ALL SELECT version, key, 0 FROM gone WHERE version > ?1 ORDER BY version",
                (since,),
            )
            rows = []
            for at, key, is_present in found.fetchall():
                if key.startswith(prefixes):
                    entry = None
                    if is_present:
                        query = "SELECT value FROM entry WHERE key = ?"
                        (value,) = db.execute(query, (key,)).fetchone()
                        entry = Entry(key, value, at)
                    rows.append(Row(at, Change(key, entry)))
            return Reading(version, rows=rows)

    def _prune(self, db: sqlite3.Connection) -> None:
        """Forget the older half of the deletions once there are too many."""
        (count,) = db.execute("SELECT COUNT(*) FROM gone").fetchone()
        if count <= self.tombstones_max:
            return
        (limit,) = db.execute(
            "SELECT version FROM gone ORDER BY version DESC LIMIT 1 OFFSET ?",
            (self.tombstones_max // 2,),
        ).fetchone()
        db.execute("DELETE FROM gone WHERE version <= ?", (limit,))
        db.execute("UPDATE counter SET pruned = ?", (limit,))

    # --- leases ---------------------------------------------------------------------------------

    def begin_session(self, name: str, ttl_s: float) -> str:
        """Put a new lease of `name` in force and return its id; sessions of other boots go."""
        session = uuid.uuid4().hex
        with self._writing(self._light) as db:
            db.execute("DELETE FROM session WHERE boot <> ?", (boot_id(),))
            db.execute(
                "INSERT OR REPLACE INTO session VALUES (?, ?, ?, ?)",
                (name, session, boot_id(), monotonic() + ttl_s),
            )
        return session

    def renew_session(self, session: str, ttl_s: float) -> bool:
        """Let the lease live for another `ttl_s`; False when it is over."""
        with self._writing(self._light) as db:
            now_s = monotonic()  # Read with the lock in hand: the wait for it counts.
            renewed = db.execute(
                "UPDATE session SET ends_at_s = ? WHERE id = ? AND boot = ? AND ends_at_s > ?",
                (now_s + ttl_s, session, boot_id(), now_s),
            )
            return renewed.rowcount == 1

    def end_session(self, session: str) -> None:
        """End the lease; nothing happens when it is over."""
        with self._writing(self._light) as db:
            db.execute("DELETE FROM session WHERE id = ?", (session,))

    def living_session(self, name: str) -> str | None:
        """Return the id of the lease of `name` if it is in force."""
        with self._reading() as db:
            row = db.execute(
                "SELECT id FROM session WHERE name = ? AND boot = ? AND ends_at_s > ?",
                (name, boot_id(), monotonic()),
            ).fetchone()
        return None if row is None else str(row[0])

    # --- transactions ---------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Give one instant of the file."""
        with _translated(self.path, self.lock_timeout_s):
            self._durable.execute("BEGIN")
            try:
                self._check_same_file()
                yield self._durable
            finally:
                _roll_back(self._durable)

    @contextmanager
    def _writing(self, connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
        """Give the file to us alone, and commit."""
        with _translated(self.path, self.lock_timeout_s):
            connection.execute("BEGIN IMMEDIATE")
            try:
                self._check_same_file()
                yield connection
                connection.execute("COMMIT")
            finally:
                _roll_back(connection)

    def _check_same_file(self) -> None:
        if _inode_of(self.path) != self._inode:
            raise StateError(
                f"The state file {self.path} was replaced while it was in use.",
                hint="Restart this node, so that it uses the file that stands there now.",
            )


def _roll_back(connection: sqlite3.Connection) -> None:
    """End whatever transaction is still open; the error that left it open is the one to tell."""
    with suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _listed(db: sqlite3.Connection, prefix: str) -> tuple[Entry, ...]:
    rows = db.execute(
        "SELECT key, value, version FROM entry WHERE key >= ? AND key < ? ORDER BY key",
        (prefix, prefix + _PREFIX_END),
    )
    return tuple(Entry(*row) for row in rows)


# --- opening --------------------------------------------------------------------------------------


def _inode_of(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _create(path: Path) -> None:
    """Make an empty file of mode 0600 where none is, durably.

    It is made under another name and linked, because opening and closing an existing database file
    would drop the locks that SQLite holds on it elsewhere in this process
    (sqlite.org/howtocorrupt.html, section 2.2).
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists():
        return
    fresh = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with suppress(FileExistsError):  # Another process was faster, with the same result.
            os.link(fresh, path)
    finally:
        fresh.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _connect(path: Path, lock_timeout_s: float, synchronous: str) -> sqlite3.Connection:
    # mode=rw: a missing file is an error here, not a new file with other permissions.
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw", uri=True, timeout=lock_timeout_s, isolation_level=None
    )
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    return connection


def _prepare(db: sqlite3.Connection, path: Path, lock_timeout_s: float) -> None:
    """Check whose file it is, turn the write-ahead log on, and make the tables if it is new."""
    db.execute("BEGIN")  # One instant: another process may be making the tables just now.
    try:
        is_new = _check_owner(db, path)
    finally:
        _roll_back(db)
    deadline_s = time.monotonic() + lock_timeout_s
    while True:
        try:
            # Several nodes may start on a new file at once; SQLite answers "busy" to this statement
            # without waiting, so the waiting is ours.
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > deadline_s:
                raise
            time.sleep(0.005)
    if mode != "wal":
        raise StateError(
            f"The file system of {path} cannot share a state file between processes.",
            hint="Put [state.sqlite] path on a local file system, not on a network one.",
        )
    if is_new:
        db.execute("BEGIN IMMEDIATE")
        try:
            if _check_owner(db, path):
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            db.execute("COMMIT")
        finally:
            _roll_back(db)


def _check_owner(db: sqlite3.Connection, path: Path) -> bool:
    """Return whether the file is empty; refuse another program's, and a newer format."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (schema,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if (application, schema, tables) == (0, 0, 0):
        return True
    if application != APPLICATION_ID:
        raise StateError(
            f"{path} is a database of another program.",
            hint="Name another file under [state.sqlite] path.",
        )
    if schema != SCHEMA_VERSION:
        raise StateError(
            f"The state file {path} has format {schema}; this version knows {SCHEMA_VERSION}.",
            hint="Upgrade Holdfast on this machine; an older one cannot read it.",
        )
    return False


# --- errors ---------------------------------------------------------------------------------------

_HINTS = {
    sqlite3.SQLITE_FULL: (
        "has no room left on its file system",
        "Free some space; nothing was written and nothing is lost.",
    ),
    sqlite3.SQLITE_NOTADB: (
        "is not a state file",
        "Name another file under [state.sqlite] path, or move this one away.",
    ),
    sqlite3.SQLITE_CORRUPT: (
        "is damaged",
        "Stop the nodes, keep a copy of the file, and try `sqlite3 FILE .recover`.",
    ),
    sqlite3.SQLITE_READONLY: (
        "cannot be written",
        "Give this user write access to the file and its directory.",
    ),
    sqlite3.SQLITE_PERM: ("cannot be opened", "Give this user access to the file."),
    sqlite3.SQLITE_CANTOPEN: (
        "cannot be opened",
        "Check that its directory exists and that this user may write there.",
    ),
    sqlite3.SQLITE_IOERR: (
        "cannot be read or written: its disk answers with errors",
        "Look at the kernel's log for this disk.",
    ),
}


def _is_busy(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


@contextmanager
def _translated(path: Path, lock_timeout_s: float) -> Iterator[None]:
    """Turn what SQLite and the kernel raise into `StateError`, in this one place."""
    try:
        yield
    except sqlite3.Error as error:
        if _is_busy(error):
            raise StateError(
                f"The state file {path} was locked by another process for {lock_timeout_s:g} s.",
                hint=f"See who holds it with `fuser {path}`; a backup tool or a stopped node may.",
            ) from error
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        what, hint = _HINTS.get(code, (f"cannot be used: {error}", ""))
        raise StateError(f"The state file {path} {what}.", hint=hint) from error
    except OSError as error:
        raise StateError(
            f"The state file {path} cannot be used: {error.strerror}.",
            hint="Check that its directory exists and that this user may write there.",
        ) from error
