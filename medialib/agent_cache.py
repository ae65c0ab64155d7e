"""The agent's memory: what it knows of every file, in SQLite, so that nothing is read twice.

Everything is written in whole transactions through `commit`, which gives each changed row the next
`rev`. The rows above the host's acknowledged number are what is still to be sent (`Outbox`).
A cache that is damaged is set aside and rebuilt; without a writable folder a temporary one is used.
"""

from __future__ import annotations

import contextlib
import os
import time

from .base import DamagedStoreError, StoreError, log
from .cache_changes import Failure, KnownContent, KnownFile
from .cache_outbox import Outbox
from .cache_roots import RootBook
from .cache_schema import AGENT_MIGRATIONS
from .index_writer import IndexWriter
from .scan_common import inode_number, version_prefix
from .sqlite_store import StoreConnection, check_sound, migrate

AGENT_CACHE_INTERFACE = 2  # raised when agents could not use an older or newer agent_cache.py
PAGE_CACHE_KIB = 4096  # a scan goes through the index in its order
LOOKUP_CHUNK = 400  # SQLite before 3.32 takes at most 999 values in one statement
KNOWN_FILE_COLUMNS = ", ".join(KnownFile._fields)
KNOWN_CONTENT_COLUMNS = ", ".join(KnownContent._fields)


class AgentCache:
    """All tables of one agent. Safe for several threads; each call is one short transaction."""

    def __init__(self, path: str, *, clock=time.time):
        self.path = path
        self.clock = clock
        self.generation = 0  # how often it was cleared: what a scan found before is void
        self.set_aside: str | None = None
        self.store = self._open_or_rebuild()
        self._load()

    def _open_or_rebuild(self) -> StoreConnection:
        try:
            return self._open()
        except DamagedStoreError as error:
            if not self.path:
                raise
            self.set_aside = set_database_aside(self.path)
            log.warning("%s; it is kept as %s and a new one is built", error, self.set_aside)
            return self._open()

    def _open(self) -> StoreConnection:
        # NORMAL: after a power cut the host may know more than this cache, which `align` expects.
        store = StoreConnection(self.path, synchronous="NORMAL", cache_kib=PAGE_CACHE_KIB)
        try:
            check_sound(store)
            migrate(store, AGENT_MIGRATIONS)
        except BaseException:
            store.close()
            raise
        return store

    def _load(self) -> None:
        self.roots = RootBook(self)
        self.outbox = Outbox(self)
        highest = [self.store.one(f"SELECT max(rev) FROM {table}")[0] or 0
                   for table in ("agent_index", "removed")]
        acked = self.store.one("SELECT max(acked) FROM library")[0] or 0
        self.rev = max([*highest, acked, int(self.get_meta("rev_floor") or 0)])
        self.error_count = self.store.one("SELECT count(*) FROM agent_error")[0]

    def close(self) -> None:
        self.store.close()

    def next_rev(self) -> int:
        """Call it inside `atomic` only: the number and its row are committed together."""
        self.rev += 1
        return self.rev

    # -- reading ---------------------------------------------------------------------------------

    def folder_files(self, folder_id: int) -> dict:
        """{path: KnownFile} of one folder."""
        rows = self.store.rows(
            f"SELECT {KNOWN_FILE_COLUMNS} FROM agent_index WHERE folder_id = ?", (folder_id,))
        return {row[0]: row for row in rows}

    def at_rest(self, folder_id: int, algo: str, sample_size: int, at_most: int) -> list:
        """(path, version_prefix, ctime, 1) of up to `at_most` files of one folder; the last is
        another value for a file that a scan has to look into even if it has not changed.
        """
        return self.store.rows(
            "SELECT path, rtrim(inode_key, '0123456789'), ctime,"
            " hashed AND hash_algo = ? AND hash_sample_size = ? AND NOT racy"
            " FROM agent_index WHERE folder_id = ? LIMIT ?",
            (algo, sample_size, folder_id, at_most))

    def files_at(self, root_id: int, paths: list) -> dict:
        """{path: KnownFile} for those of the paths that are known as files of this root."""
        found = {}
        for start in range(0, len(paths), LOOKUP_CHUNK):
            part = paths[start:start + LOOKUP_CHUNK]
            marks = ",".join("?" * len(part))
            for row in self.store.rows(
                    f"SELECT {KNOWN_FILE_COLUMNS} FROM agent_index WHERE path IN ({marks})"
                    " AND +root_id = ?", (*part, root_id)):
                found[row[0]] = row
        return found

    def folder_paths(self, folder_id: int, chunk: int = 2000):
        """Yield lists of (path, root_id) of one folder, in chunks, for folders of any size."""
        last = 0
        while True:
            rows = self.store.rows(
                "SELECT rowid, path, root_id FROM agent_index WHERE folder_id = ? AND rowid > ?"
                " ORDER BY rowid LIMIT ?", (folder_id, last, chunk))
            if not rows:
                return
            last = rows[-1][0]
            yield [(row[1], row[2]) for row in rows]

    def same_content(self, inode_key: str) -> list:
        """KnownContent of every live or former row with the same size, mtime and inode."""
        prefix = version_prefix(inode_key)
        bounds = (prefix, prefix[:-1] + ";")  # ';' follows ':' in ASCII
        rows = self.store.rows(
            f"SELECT {KNOWN_CONTENT_COLUMNS} FROM agent_index WHERE ino = ? AND size = ?"
            " AND inode_key >= ? AND inode_key < ? LIMIT 20",
            (inode_number(inode_key), int(prefix.partition(":")[0]), *bounds))
        rows += self.store.rows(
            f"SELECT {KNOWN_CONTENT_COLUMNS} FROM former"
            " WHERE inode_key >= ? AND inode_key < ? LIMIT 20", bounds)
        return [KnownContent(*row) for row in rows]

    def facts_at(self, path: str):
        """KnownContent of one path, or None."""
        row = self.store.one(f"SELECT {KNOWN_CONTENT_COLUMNS} FROM agent_index WHERE path = ?",
                             (path,))
        return KnownContent(*row) if row else None

    def folder_of(self, path: str) -> int | None:
        row = self.store.one("SELECT folder_id FROM agent_index WHERE path = ?", (path,))
        return row[0] if row else None

    def described_copy(self, full_hash: str | None) -> str | None:
        """ffprobe's answer for any file with these very bytes."""
        if full_hash is None:
            return None
        row = self.store.one("SELECT metadata FROM agent_index WHERE full_hash = ? AND probed = 1"
                             " AND metadata IS NOT NULL LIMIT 1", (full_hash,))
        return row[0] if row else None

    def waiting(self, what: str, root_id: int, after: str, limit: int) -> list:
        """(path, inode_key, size, full_hash, sample_hash, algo, sample_size) of the root's rows
        that wait for ffprobe ("probe"), a full hash ("full") or a second look ("racy"), by path.
        """
        condition = {
            "probe": "kind = 'video' AND probed = 0",
            "full": "hashed = 1 AND full_hash IS NULL",
            "racy": "racy = 1",
        }[what]
        return self.store.rows(
            "SELECT path, inode_key, size, full_hash, sample_hash, hash_algo, hash_sample_size"
            f" FROM agent_index WHERE root_id = ? AND path > ? AND {condition}"
            " ORDER BY path LIMIT ?", (root_id, after, limit))

    def waiting_count(self, what: str, root_id: int) -> int:
        condition = {"probe": "kind = 'video' AND probed = 0",
                     "full": "hashed = 1 AND full_hash IS NULL"}[what]
        return self.store.one(
            f"SELECT count(*) FROM agent_index WHERE root_id = ? AND {condition}", (root_id,))[0]

    def failure(self, path: str, stage: str):
        """(inode_key, class, attempts, next_try, tool) of the last failure, or None."""
        if not self.error_count:
            return None
        return self.store.one("SELECT inode_key, class, attempts, next_try, tool FROM agent_error"
                              " WHERE path = ? AND stage = ?", (path, stage))

    def failures(self, limit: int = 50) -> dict:
        """{"summary": [{stage, class, count}], "latest": [{path, stage, …}]}, newest first."""
        summary = self.store.rows("SELECT stage, class, count(*) FROM agent_error"
                                  " GROUP BY stage, class ORDER BY 3 DESC LIMIT 50")
        names = ("path", "stage", "class", "message", "attempts", "next_try", "at")
        latest = self.store.rows(f"SELECT {', '.join(names)} FROM agent_error"
                                 " ORDER BY at DESC LIMIT ?", (limit,))
        return {
            "summary": [{"stage": s, "class": c, "count": n} for s, c, n in summary],
            "latest": [dict(zip(names, row)) for row in latest],
        }

    def left_over(self) -> int:
        """How many files could not be read or were changing, for the exit code."""
        return self.store.one("SELECT count(*) FROM agent_error WHERE stage IN ('read', 'list')")[0]

    def get_meta(self, key: str) -> str | None:
        row = self.store.one("SELECT value FROM agent_meta WHERE key = ?", (key,))
        return row[0] if row else None

    def set_meta(self, key: str, value: str) -> None:
        with self.store.atomic() as db:
            db.execute("INSERT OR REPLACE INTO agent_meta VALUES (?, ?)", (key, value))

    # -- writing ---------------------------------------------------------------------------------

    def commit(self, changes: list, cursor: tuple | None = None,
               generation: int | None = None) -> None:
        """Store changes and, in the same transaction, how far the scan came: (root, phase, path).

        A cursor path of None says that the pass is through and forgets the cursor. Changes of a
        `generation` before the last `clear` are dropped.
        """
        with self.writing() as writer:
            if generation is None or generation == self.generation:
                writer.apply(changes)
                if cursor is not None:
                    self._put_cursor(writer.db, *cursor)

    @contextlib.contextmanager
    def writing(self):
        """An IndexWriter in one transaction; after a failure all counters are as they were."""
        with self.store.lock:
            before = (self.rev, self.error_count)
            try:
                with self.store.atomic() as db:
                    writer = IndexWriter(self, db)
                    yield writer
                    writer.finish()
                if writer.fresh and writer.only_fresh:
                    self.outbox.feed.add(writer.fresh)
            except BaseException:
                self.rev, self.error_count = before
                self.roots.forget_totals()
                raise

    def _put_cursor(self, db, root: str, phase: int, last_path: str | None) -> None:
        if last_path is None:
            db.execute("DELETE FROM scan_progress WHERE root = ? AND phase = ?", (root, phase))
        else:
            db.execute("INSERT OR REPLACE INTO scan_progress VALUES (?, ?, ?, ?)",
                       (root, phase, last_path, self.clock()))

    def cursor(self, root: str, phase: int) -> str | None:
        row = self.store.one("SELECT last_path FROM scan_progress WHERE root = ? AND phase = ?",
                             (root, phase))
        return row[0] if row else None

    def begin_attempt(self, failure: Failure) -> None:
        """Write down what is about to be tried, so that a crash counts as a failed attempt."""
        self.commit([failure._replace(error_class="unfinished")])

    def end_attempts(self, keys: list) -> None:
        """Forget attempts [(path, stage)] that came to no verdict (the agent was asked to stop)."""
        with self.store.atomic() as db:
            db.executemany("DELETE FROM agent_error WHERE path = ? AND stage = ?", keys)
        self.error_count = self.store.one("SELECT count(*) FROM agent_error")[0]

    def forget_unfinished(self) -> None:
        """The scan ended in order: what was not tried to the end did not end the program."""
        if self.error_count:
            with self.store.atomic() as db:
                done = db.execute("DELETE FROM agent_error WHERE class = 'unfinished'"
                                  " AND attempts <= 1").rowcount
            self.error_count -= done

    def forget_lost_failures(self, root_id: int) -> None:
        """Drop what failed with files of a root, listed to the end, that are not there any more."""
        if self.error_count:
            with self.store.atomic() as db:
                done = db.execute(
                    "DELETE FROM agent_error WHERE root_id = ? AND stage != 'list' AND NOT EXISTS"
                    " (SELECT 1 FROM agent_index WHERE agent_index.path = agent_error.path)",
                    (root_id,)).rowcount
            self.error_count -= done

    def reclassify(self, classify) -> int:
        """Give every row the kind that `classify(path) -> (kind, reason)` says; rows changed."""
        changed, last = 0, 0
        while True:
            rows = self.store.rows("SELECT rowid, path, kind, reason FROM agent_index"
                                   " WHERE rowid > ? ORDER BY rowid LIMIT 1000", (last,))
            if not rows:
                return changed
            last = rows[-1][0]
            answers = [(path, (kind, reason), classify(path)) for _, path, kind, reason in rows]
            news = [(path, answer) for path, known, answer in answers if answer != known]
            if news:
                with self.writing() as writer:
                    for path, (kind, reason) in news:
                        writer.update(path, kind=kind, reason=reason)
            changed += len(news)

    def forget_former(self) -> None:
        """At the end of a scan of everything, what did not turn up again is gone."""
        with self.store.atomic() as db:
            db.execute("DELETE FROM former")
            if self.error_count:
                db.execute("DELETE FROM agent_error WHERE stage != 'list' AND NOT EXISTS"
                           " (SELECT 1 FROM agent_index i WHERE i.path = agent_error.path)")
                self.error_count = db.execute("SELECT count(*) FROM agent_error").fetchone()[0]

    def is_empty(self) -> bool:
        """Nothing is known of any path, not even that it is gone."""
        return all(self.store.one(f"SELECT 1 FROM {table} LIMIT 1") is None
                   for table in ("agent_index", "removed"))

    # -- upkeep ----------------------------------------------------------------------------------

    def clear(self) -> bool:
        """Forget what is known of files. What the host has not heard of removals is kept, and the
        numbering goes on above what the host knows. False when there was nothing to forget.
        """
        had = self.store.one("SELECT 1 FROM agent_index LIMIT 1") is not None
        with self.store.atomic() as db:
            self.generation += 1
            for table in ("agent_index", "agent_folder", "scan_progress", "former", "agent_error"):
                db.execute(f"DELETE FROM {table}")
            db.execute("UPDATE agent_root SET files = 0, bytes = 0, digest = '0', end_due = 0")
            db.execute("INSERT OR REPLACE INTO agent_meta VALUES ('rev_floor', ?)", (self.rev,))
            self.outbox.feed.clear()
        self.error_count = 0
        self.roots.forget_totals()
        return had

    def compact(self) -> tuple:
        """(bytes before, bytes after) of a VACUUM."""
        before = self.size_bytes()
        self.store.vacuum()
        return before, self.size_bytes()

    def size_bytes(self) -> int:
        try:
            return os.path.getsize(self.path) if self.path else 0
        except OSError:
            return 0

    def info(self) -> dict:
        """The answer of /agent/cache_info."""
        counts = {table: self.store.one(f"SELECT count(*) FROM {table}")[0]
                  for table in ("agent_index", "outbox", "scan_progress")}
        seen = self.store.one("SELECT max(last_seen) FROM agent_root")[0]
        hashed = self.store.one("SELECT max(last_hashed_at) FROM agent_index")[0]
        progress = self.store.one("SELECT max(updated_at) FROM scan_progress")[0]
        return {
            "ok": True, "db_path": self.path or None,
            "exists": bool(self.path) and os.path.exists(self.path),
            "size_bytes": self.size_bytes(), "rows": counts,
            "last": {"last_seen": seen, "last_hashed_at": hashed, "progress_updated_at": progress},
            "ts": self.clock(),
        }


def set_database_aside(path: str) -> str:
    """Rename a damaged database and its -wal/-shm together; the new name of the main file."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target = f"{path}.damaged-{stamp}"
    number = 1
    while os.path.lexists(target):
        number += 1
        target = f"{path}.damaged-{stamp}-{number}"
    try:
        os.replace(path, target)
    except OSError as error:
        raise StoreError(f"{path} is damaged and cannot be set aside: {error}") from error
    for tail in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.replace(path + tail, target + tail)
    return target
