"""SQLite: opening with our pragmas, whole transactions, migrations, checked copies.

Every database of ours has one writing connection. `StoreConnection` is that connection with its
lock; `open_reader` gives read-only connections beside it (WAL lets them run while it writes).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time

try:
    import sqlite3
except ImportError:  # some routers and NAS leave it out of their Python
    sqlite3 = None

from .app_folder import sync_folder
from .base import DamagedStoreError, NewerStoreError, StoreError, log

BUSY_TIMEOUT_S = 30.0
WAL_LIMIT_BYTES = 64 << 20
# How long the log gets before it begins anew. A page that changes often is copied back once for all
# changes that the log holds, which a large database gains from; in a small one, on what may be a
# small disk, the log would be most of it.
LOG_PAGES_LEAST, LOG_PAGES_MOST = 8000, 30_000
LOG_SHARE = 16  # of the database's pages, between these two
SQLITE_HEADER = b"SQLite format 3\0"

DAMAGE_WORDS = ("malformed", "not a database", "file is encrypted", "disk image")


def explain_sqlite_error(error: sqlite3.Error, path: str) -> StoreError:
    """The error as one of ours: damaged, or merely not usable now (disk full, locked)."""
    text = str(error)
    # A question that SQLite cannot parse is "malformed" too, but an OperationalError.
    if not isinstance(error, sqlite3.OperationalError) and any(
            word in text for word in DAMAGE_WORDS):
        return DamagedStoreError(f"{path} is damaged: {text}")
    return StoreError(f"{path} cannot be used: {text}")


def keep_private(path: str) -> None:
    """For its owner alone, before SQLite opens it: the log beside it gets the same rights."""
    with contextlib.suppress(OSError):
        if os.path.isfile(path):
            os.chmod(path, 0o600)
            return
        # Only where it is new: closing a file ends the locks that others here hold on it.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


class Checkpoints:
    """Copies the log into the database on a thread of its own. Whoever writes would wait each time
    until the disk has both.

    The writer still does so by itself when the log is `log_pages` long: it finds little to copy,
    and only it can let the log begin anew. It is also the one who reports what is wrong with a
    disk.
    """

    def __init__(self, path: str, synchronous: str):
        self.log_pages = LOG_PAGES_LEAST
        self._path = path
        self._synchronous = synchronous
        self._due = threading.Event()
        self._stopping = False
        self._writers_turn = False
        self._thread: threading.Thread | None = None

    def want(self) -> None:
        """There is enough to copy."""
        if self._writers_turn:
            self._writers_turn = False
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="checkpoints", daemon=True)
            self._thread.start()
        self._due.set()

    def stop(self) -> None:
        self._stopping = True
        self._due.set()
        if self._thread is not None:
            self._thread.join()

    def _loop(self) -> None:
        try:
            with contextlib.closing(sqlite3.connect(
                    self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)) as db:
                db.execute(f"PRAGMA synchronous={self._synchronous}")
                while True:
                    self._due.wait()
                    self._due.clear()
                    if self._stopping:
                        return
                    if not self._writers_turn:  # the writer cannot copy while this thread does
                        done = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                        self._writers_turn = done[1] >= self.log_pages  # those in the log
        except sqlite3.Error as error:
            log.debug("%s: no more checkpoints beside the writer: %s", self._path, error)


class StoreConnection:
    """One writing connection. Use `with store.atomic() as db:`; it may be nested and is re-entrant.

    `lock` guards the connection: whoever holds it may read or write, and holds it shortly.
    `path` "" is a private temporary database that SQLite removes by itself.
    """

    def __init__(self, path: str, *, synchronous: str = "FULL", cache_kib: int = 8192):
        self.path = path
        self.lock = threading.RLock()
        self._depth = 0
        self._checkpoints = Checkpoints(path, synchronous)
        self._copied_changes = 0  # the connection's total_changes at the last checkpoint
        if path:
            keep_private(path)
        try:
            self.db = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False,
                cached_statements=256,
            )
            self._set_pragmas(synchronous, cache_kib)
            self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            raise explain_sqlite_error(error, path) from error

    def _set_pragmas(self, synchronous: str, cache_kib: int) -> None:
        self.db.execute("PRAGMA journal_mode=WAL")
        # WAL with NORMAL loses every commit since the last checkpoint in a power cut.
        self.db.execute(f"PRAGMA synchronous={synchronous}")
        self.db.execute(f"PRAGMA cache_size=-{cache_kib}")
        self.db.execute(f"PRAGMA journal_size_limit={WAL_LIMIT_BYTES}")
        self.db.execute("PRAGMA temp_store=FILE")
        self._limit_log()

    def _limit_log(self) -> None:
        pages = self.db.execute("PRAGMA page_count").fetchone()[0]
        self._checkpoints.log_pages = min(max(LOG_PAGES_LEAST, pages // LOG_SHARE), LOG_PAGES_MOST)
        self.db.execute(f"PRAGMA wal_autocheckpoint={self._checkpoints.log_pages}")

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
            # A changed row changes a page, or little more.
            changes = self.db.total_changes - self._copied_changes
            if self.path and changes >= self._checkpoints.log_pages // 2:
                self._copied_changes = self.db.total_changes
                with contextlib.suppress(sqlite3.Error):  # the commit itself has succeeded
                    self._limit_log()
                self._checkpoints.want()

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
        """Give back what is not needed; it takes as much room again while it lasts."""
        with self.lock:
            try:
                self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self.db.execute("VACUUM")
                self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.DatabaseError as error:
                raise explain_sqlite_error(error, self.path) from error

    def close(self) -> None:
        self._checkpoints.stop()  # the last connection to be closed tidies up
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
    with store.lock:
        check_connection(store.db, store.path, quick=quick)


def check_connection(db, path: str, *, quick: bool = True) -> None:
    """The same through any connection; StoreError when the check cannot be made now."""
    try:
        problems = db.execute(
            "PRAGMA quick_check(3)" if quick else "PRAGMA integrity_check(3)").fetchall()
    except sqlite3.Error as error:
        raise explain_sqlite_error(error, path) from error
    if problems != [("ok",)]:
        raise DamagedStoreError(f"{path} is damaged: {problems[0][0]}")


def set_foreign_log_aside(path: str) -> str | None:
    """A log that lies beside a copy of ours belongs to the database that lay here before: SQLite
    would mix both. It is renamed; the new name, or None when there was none.

    A copy of ours is not in WAL mode (bytes 18 and 19 of its header), and a database that is not
    has no such log: it is put into that mode before its first one is written.
    """
    log_path = f"{path}-wal"
    try:
        with open(path, "rb") as file:
            header = file.read(20)
        if header[18:20] != b"\x01\x01" or not os.path.getsize(log_path):
            return None
        aside = f"{log_path}.of-another-{time.strftime('%Y%m%d-%H%M%S')}"
        os.rename(log_path, aside)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{log_path} belongs to another database: {error}") from error
    with contextlib.suppress(OSError):
        os.remove(f"{path}-shm")
    return aside


# Copies

def copy_database(path: str, target: str) -> int:
    """A consistent, checked copy of a database in use, by the backup API; its size in bytes.

    Written beside the target and renamed, so that a half copy never has the target's name. An older
    copy is replaced; anything else that has this name is not.
    """
    target = os.path.realpath(target)
    refuse_to_replace(path, target)
    part = f"{target}.{os.getpid()}-{threading.get_ident()}.part"
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        _copy_pages(path, part)
        os.replace(part, target)
        sync_folder(os.path.dirname(target))
        return os.path.getsize(target)
    except sqlite3.Error as error:
        problem = explain_sqlite_error(error, path)
        if isinstance(problem, DamagedStoreError):
            raise problem from error
        raise StoreError(f"cannot copy {path} to {target}: {error}") from error
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        for rest in (part, f"{part}-journal"):
            with contextlib.suppress(OSError):
                os.remove(rest)


def refuse_to_replace(path: str, target: str) -> None:
    """StoreError unless `target` is free, or a database that nobody uses."""
    if not os.path.lexists(target):
        return
    if os.path.exists(path) and os.path.samefile(path, target):
        raise StoreError(f"{target} is the database itself, and no place for a copy of it")
    if not os.path.isfile(target):
        raise StoreError(f"{target} is there already and is not a file")
    if any(os.path.exists(target + suffix) for suffix in ("-wal", "-shm", "-journal")):
        raise StoreError(f"{target} is a database in use: name another file")
    try:
        with open(target, "rb") as file:
            header = file.read(len(SQLITE_HEADER))
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
    if header != SQLITE_HEADER:  # an empty file may be somebody's lock
        raise StoreError(f"{target} is there already and is not a copy of a catalogue")


def _copy_pages(path: str, part: str) -> None:
    source = open_reader(path)
    try:
        copy = sqlite3.connect(part)
        try:
            # One snapshot for the whole copy: otherwise every commit makes it start again.
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
            source.backup(copy, pages=4096)
            copy.execute("PRAGMA journal_mode=DELETE")
            check_connection(copy, f"the copy of {path}", quick=False)
        finally:
            copy.close()
    finally:
        source.close()
