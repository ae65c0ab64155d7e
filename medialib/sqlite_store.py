"""SQLite: opening with our pragmas, whole transactions, migrations, checked copies.

Every database of ours has one writing connection. `StoreConnection` is that connection with its
lock; `open_reader` gives read-only connections beside it (WAL lets them run while it writes).
"""

from __future__ import annotations

import contextlib
import os
import threading

try:
    import sqlite3
except ImportError:  # some routers and NAS leave it out of their Python
    sqlite3 = None

from .base import DamagedStoreError, NewerStoreError, StoreError, log

BUSY_TIMEOUT_S = 30.0
WAL_LIMIT_BYTES = 64 << 20

DAMAGE_WORDS = ("malformed", "not a database", "file is encrypted", "disk image")


def explain_sqlite_error(error: sqlite3.Error, path: str) -> StoreError:
    """The error as one of ours: damaged, or merely not usable now (disk full, locked)."""
    text = str(error)
    if any(word in text for word in DAMAGE_WORDS):
        return DamagedStoreError(f"{path} is damaged: {text}")
    return StoreError(f"{path} cannot be used: {text}")


class StoreConnection:
    """One writing connection. Use `with store.atomic() as db:`; it may be nested and is re-entrant.

    `lock` guards the connection: whoever holds it may read or write, and holds it shortly.
    `path` "" is a private temporary database that SQLite removes by itself.
    """

    def __init__(self, path: str, *, synchronous: str = "FULL", cache_kib: int = 8192):
        self.path = path
        self.lock = threading.RLock()
        self._depth = 0
        try:
            self.db = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False,
                cached_statements=256,
            )
            self._set_pragmas(synchronous, cache_kib)
            self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            raise explain_sqlite_error(error, path) from error
        if path:
            with contextlib.suppress(OSError):
                os.chmod(path, 0o600)

    def _set_pragmas(self, synchronous: str, cache_kib: int) -> None:
        self.db.execute("PRAGMA journal_mode=WAL")
        # WAL with NORMAL loses every commit since the last checkpoint in a power cut.
        self.db.execute(f"PRAGMA synchronous={synchronous}")
        self.db.execute(f"PRAGMA cache_size=-{cache_kib}")
        self.db.execute(f"PRAGMA journal_size_limit={WAL_LIMIT_BYTES}")
        self.db.execute("PRAGMA temp_store=FILE")

    @contextlib.contextmanager
    def atomic(self):
        """Everything inside is committed together or, on any exception, not at all."""
        with self.lock:
            if self._depth:
                self._depth += 1
                try:
                    yield self.db
                finally:
                    self._depth -= 1
                return
            try:
                self.db.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                raise explain_sqlite_error(error, self.path) from error
            self._depth = 1
            try:
                yield self.db
                self.db.execute("COMMIT")
            except BaseException as error:
                with contextlib.suppress(sqlite3.Error):
                    self.db.execute("ROLLBACK")
                if isinstance(error, sqlite3.DatabaseError):
                    raise explain_sqlite_error(error, self.path) from error
                raise
            finally:
                self._depth = 0

    def rows(self, sql: str, values: tuple = ()) -> list:
        """All rows of a short query, read to the end under the lock."""
        with self.lock:
            try:
                return self.db.execute(sql, values).fetchall()
            except sqlite3.DatabaseError as error:
                raise explain_sqlite_error(error, self.path) from error

    def one(self, sql: str, values: tuple = ()):
        """The first row of a short query, or None."""
        rows = self.rows(sql, values)
        return rows[0] if rows else None

    def vacuum(self) -> None:
        with self.lock:
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self.db.execute("VACUUM")
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        with self.lock, contextlib.suppress(sqlite3.Error):
            self.db.close()


def open_reader(path: str, *, cache_kib: int = 4096):
    """A connection that cannot write, for one thread. Read its cursors to the end or close them."""
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None,
                         check_same_thread=False)
    db.execute("PRAGMA query_only=1")
    db.execute(f"PRAGMA cache_size=-{cache_kib}")
    return db


def schema_version(store: StoreConnection) -> int:
    return store.one("PRAGMA user_version")[0]


def migrate(store: StoreConnection, migrations: list, *, before_upgrade=None) -> None:
    """Bring the schema up to `len(migrations)`; each step is a list of statements or a function
    of the connection, and is committed together with its number. `before_upgrade(store)` is called
    once before an existing schema is changed (to keep a copy).
    """
    version = schema_version(store)
    if version > len(migrations):
        raise NewerStoreError(
            f"{store.path} was written by a newer medialib (schema {version}, this one knows "
            f"{len(migrations)}): use that version, or another --data-dir"
        )
    if 0 < version < len(migrations) and before_upgrade is not None:
        before_upgrade(store)
    for number in range(version, len(migrations)):
        step = migrations[number]
        with store.atomic() as db:
            if callable(step):
                step(db)
            else:
                for statement in step:
                    db.execute(statement)
            db.execute(f"PRAGMA user_version={number + 1}")
        log.debug("%s: schema %s", store.path, number + 1)


def check_sound(store: StoreConnection, *, quick: bool = True) -> None:
    """Raise DamagedStoreError when SQLite's own check finds something."""
    try:
        problems = store.rows("PRAGMA quick_check(3)" if quick else "PRAGMA integrity_check(3)")
    except StoreError as error:
        raise DamagedStoreError(str(error)) from error
    if problems != [("ok",)]:
        raise DamagedStoreError(f"{store.path} is damaged: {problems[0][0]}")


def copy_database(path: str, target: str) -> int:
    """A consistent, checked copy of a database in use, by the backup API; its size in bytes.

    Written beside the target and renamed, so that a half copy never has the target's name.
    """
    part = f"{target}.part"
    with contextlib.suppress(FileNotFoundError):
        os.remove(part)
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.close(descriptor)
        source = open_reader(path)
        copy = sqlite3.connect(part)
        try:
            source.backup(copy, pages=4096)
            copy.execute("PRAGMA journal_mode=DELETE")
            verdict = copy.execute("PRAGMA integrity_check(1)").fetchone()[0]
        finally:
            copy.close()
            source.close()
        if verdict != "ok":
            raise DamagedStoreError(f"the copy of {path} is damaged: {verdict}")
        os.replace(part, target)
    except sqlite3.Error as error:
        raise explain_sqlite_error(error, path) from error
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error}") from error
    return os.path.getsize(target)
