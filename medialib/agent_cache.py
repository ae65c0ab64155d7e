"""The agent's memory: what it knows of every file, in SQLite, so that nothing is read twice.

Everything is written in whole transactions through `commit`, which gives each changed row the next
`rev`. The rows above the host's acknowledged number are what is still to be sent (`Outbox`).
A cache that is damaged is set aside and rebuilt; without a writable folder a temporary one is used.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import NamedTuple

from .base import DamagedStoreError, MedialibError, StoreError, log
from .cache_outbox import Outbox
from .cache_roots import RootBook
from .cache_schema import AGENT_MIGRATIONS
from .scan_common import DIGEST_MODULUS, row_digest, version_prefix
from .sqlite_store import StoreConnection, check_sound, migrate

AGENT_CACHE_INTERFACE = 1  # raised when agents could not use an older or newer agent_cache.py
LOOKUP_CHUNK = 400  # SQLite before 3.32 takes at most 999 values in one statement


class Facts(NamedTuple):
    """What reading a file gave: label, sample size, hashes (lower-case hex), when (epoch s)."""

    hash_algo: str
    sample_size: int
    sample_hash: str
    full_hash: str | None
    hashed_at: float


class PutFile(NamedTuple):
    """A file as it is now. Facts and metadata of another identity at this path are dropped."""

    root_id: int
    folder_id: int
    path: str
    rel: str
    size: int
    mtime: float
    ctime: float
    inode_key: str
    kind: str
    reason: str | None
    facts: Facts | None
    racy: bool = False
    moved_from: str | None = None
    metadata: str | None = None
    probed: bool = False
    fresh: bool = False  # the path cannot be in the index yet


class PutFolder(NamedTuple):
    """A folder seen for the first time; its number was given by RootBook.new_folder_id."""

    id: int
    root_id: int
    parent_id: int | None
    rel: str


class GoneFolder(NamedTuple):
    """A folder that is gone; its files are reported by GoneFile of their own."""

    id: int


class GoneFile(NamedTuple):
    """A file that its folder, listed to the end, no longer holds."""

    root_id: int
    path: str


class FullHash(NamedTuple):
    """The full hash of a file that had only a sample hash, if it is still the same version."""

    path: str
    inode_key: str
    full_hash: str


class Described(NamedTuple):
    """ffprobe's answer (JSON text) for a file, if it is still the same version."""

    path: str
    inode_key: str
    metadata: str


class Failure(NamedTuple):
    """Something that could not be done with one file. `tool` is ffprobe's version for its stage."""

    root_id: int
    path: str
    stage: str
    inode_key: str
    error_class: str
    message: str
    tool: str | None = None
    next_try: float | None = None


class ClearFailure(NamedTuple):
    """What failed at this stage works again, or is gone."""

    path: str
    stage: str


class Confirmed(NamedTuple):
    """A second look found the same content: nothing that the host should hear of."""

    path: str
    inode_key: str
    hashed_at: float
    racy: bool


class KnownFile(NamedTuple):
    """What a scan needs of a cached row to compare it with the file."""

    path: str
    inode_key: str
    ctime: float | None
    hashed: int
    hash_algo: str | None
    hash_sample_size: int | None
    racy: int


class KnownContent(NamedTuple):
    """A cached row, or a former one, with the identity that was asked for."""

    path: str
    root_id: int
    kind: str
    probed: int
    hashed: int
    hash_algo: str | None
    hash_sample_size: int | None
    sample_hash: str | None
    full_hash: str | None
    last_hashed_at: float | None
    metadata: str | None
    ctime: float | None
    inode_key: str


KNOWN_FILE_COLUMNS = ", ".join(KnownFile._fields)
KNOWN_CONTENT_COLUMNS = ", ".join(KnownContent._fields)
INDEX_COLUMNS = (
    "path, inode_key, size, mtime, ctime, probed, hashed, hash_algo, hash_sample_size, sample_hash,"
    " full_hash, last_seen, last_hashed_at, root_id, folder_id, kind, reason, racy, rev, digest,"
    " moved_from, metadata"
)
INDEX_INSERT = f"INSERT OR REPLACE INTO agent_index ({INDEX_COLUMNS}) VALUES ({'?,' * 21}?)"
KEEP_FORMER = """INSERT INTO former (path, inode_key, root_id, ctime, kind, probed, hashed, hash_algo,
    hash_sample_size, sample_hash, full_hash, last_hashed_at, racy, metadata)
    SELECT path, inode_key, root_id, ctime, kind, probed, hashed, hash_algo, hash_sample_size,
    sample_hash, full_hash, last_hashed_at, racy, metadata
    FROM agent_index WHERE path = ? AND hashed = 1 AND racy = 0"""


def signed_digest(value: int) -> int:
    """A 64-bit digest as SQLite's signed integer."""
    return value - DIGEST_MODULUS if value >= DIGEST_MODULUS // 2 else value


class AgentCache:
    """All tables of one agent. Safe for several threads; each call is one short transaction."""

    def __init__(self, path: str, *, clock=time.time):
        self.path = path
        self.clock = clock
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
        store = StoreConnection(self.path, synchronous="NORMAL")
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

    def folder_count(self, folder_id: int, at_most: int) -> int:
        return self.store.one("SELECT count(*) FROM (SELECT 1 FROM agent_index WHERE folder_id = ?"
                              " LIMIT ?)", (folder_id, at_most))[0]

    def files_at(self, paths: list) -> dict:
        """{path: KnownFile} for those of the paths that are known."""
        found = {}
        for start in range(0, len(paths), LOOKUP_CHUNK):
            part = paths[start:start + LOOKUP_CHUNK]
            marks = ",".join("?" * len(part))
            for row in self.store.rows(f"SELECT {KNOWN_FILE_COLUMNS} FROM agent_index"
                                       f" WHERE path IN ({marks})", tuple(part)):
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
        rows = []
        for table in ("agent_index", "former"):
            rows += self.store.rows(
                f"SELECT {KNOWN_CONTENT_COLUMNS} FROM {table}"
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

    def commit(self, changes: list, cursor: tuple | None = None) -> None:
        """Store changes and, in the same transaction, how far the scan came: (root, phase, path).

        A cursor path of None says that the pass is through and forgets the cursor.
        """
        before = (self.rev, self.error_count)
        try:
            with self.store.atomic() as db:
                IndexWriter(self, db).apply(changes)
                if cursor is not None:
                    self._put_cursor(db, *cursor)
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

    def reclassify(self, classify) -> int:
        """Give every row the kind that `classify(path) -> (kind, reason)` says; rows changed."""
        changed, last = 0, 0
        while True:
            rows = self.store.rows("SELECT rowid, path, kind, reason FROM agent_index"
                                   " WHERE rowid > ? ORDER BY rowid LIMIT 1000", (last,))
            if not rows:
                return changed
            last = rows[-1][0]
            news = [(path, classify(path)) for _, path, kind, reason in rows
                    if classify(path) != (kind, reason)]
            if news:
                with self.store.atomic() as db:
                    writer = IndexWriter(self, db)
                    for path, (kind, reason) in news:
                        writer.update(path, kind=kind, reason=reason)
                    writer.finish()
            changed += len(news)

    def forget_former(self) -> None:
        """At the end of a scan of everything, what did not turn up again is gone."""
        with self.store.atomic() as db:
            db.execute("DELETE FROM former")

    def is_empty(self) -> bool:
        return self.store.one("SELECT 1 FROM agent_index LIMIT 1") is None

    # -- upkeep ----------------------------------------------------------------------------------

    def clear(self) -> bool:
        """Forget what is known of files. What the host has not heard of removals is kept, and the
        numbering goes on above what the host knows. False when there was nothing to forget.
        """
        had = not self.is_empty()
        with self.store.atomic() as db:
            for table in ("agent_index", "agent_folder", "scan_progress", "former", "agent_error"):
                db.execute(f"DELETE FROM {table}")
            db.execute("UPDATE agent_root SET files = 0, bytes = 0, digest = '0', end_due = 0")
            db.execute("INSERT OR REPLACE INTO agent_meta VALUES ('rev_floor', ?)", (self.rev,))
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


class IndexWriter:
    """Applies changes inside one transaction and keeps each root's count, bytes and digest."""

    def __init__(self, cache: AgentCache, db):
        self.cache = cache
        self.db = db
        self.now = cache.clock()

    def apply(self, changes: list) -> None:
        fresh = []
        for change in changes:
            if type(change) is PutFile:
                if change.fresh:
                    fresh.append(change)
                else:
                    self.put(change)
            else:
                if type(change) is not PutFolder:  # all others may concern a row before them
                    self.insert_fresh(fresh)
                    fresh = []
                self.apply_other(change)
        self.insert_fresh(fresh)
        self.finish()

    def apply_other(self, change) -> None:
        if type(change) is GoneFile:
            self.gone(change)
        elif type(change) is PutFolder:
            self.db.execute("INSERT OR REPLACE INTO agent_folder VALUES (?, ?, ?, ?)", change)
        elif type(change) is GoneFolder:
            self.db.execute("DELETE FROM agent_folder WHERE id = ?", change)
        elif type(change) is FullHash:
            self.update(change.path, change.inode_key, full_hash=change.full_hash)
            self.forget_failure(change.path, "full")
        elif type(change) is Described:
            self.update(change.path, change.inode_key, metadata=change.metadata, probed=1)
            self.forget_failure(change.path, "probe")
        elif type(change) is Failure:
            self.failed(change)
        elif type(change) is Confirmed:
            self.db.execute("UPDATE agent_index SET racy = ?, last_hashed_at = ?"
                            " WHERE path = ? AND inode_key = ?",
                            (int(change.racy), change.hashed_at, change.path, change.inode_key))
        elif type(change) is ClearFailure:
            self.forget_failure(change.path, change.stage)
        else:
            raise MedialibError(f"not a change: {change!r}")

    def finish(self) -> None:
        self.cache.roots.store_totals(self.db)

    def insert_fresh(self, puts: list) -> None:
        """Rows for paths that cannot be in the index yet (the first scan of an empty cache)."""
        seen = {}
        for put in puts:
            seen[put.path] = put  # the same path twice in one batch: the later one is right
        self.db.executemany(INDEX_INSERT, [self.index_row(put) for put in seen.values()])
        for put in puts:
            if put.facts is not None:
                self.forget_failure(put.path, "read")

    def index_row(self, put: PutFile, moved_from: str | None = None) -> tuple:
        facts = put.facts
        algo, sample_size, sample, full, at = facts or (None, None, None, None, None)
        digest = row_digest(put.rel, put.inode_key, put.kind, algo, sample, full, put.probed)
        self.cache.roots.add(put.root_id, put.size, digest)
        return (
            put.path, put.inode_key, put.size, put.mtime, put.ctime, int(put.probed),
            int(facts is not None), algo, sample_size, sample, full, self.now, at, put.root_id,
            put.folder_id, put.kind, put.reason, int(put.racy), self.cache.next_rev(),
            signed_digest(digest), moved_from, put.metadata,
        )

    def put(self, put: PutFile) -> None:
        moved_from = put.moved_from
        if moved_from is not None:
            moved_from = self.take_from(put)
        old = self.old_row(put.path)
        if old is not None:
            if version_prefix(old["inode_key"]) != version_prefix(put.inode_key):
                self.db.execute(KEEP_FORMER, (put.path,))
            elif moved_from is None and old["rev"] > self.cache.outbox.acked:
                moved_from = old["moved_from"]  # the host has not heard of that move yet
            self.drop_totals(old)
        self.db.execute("DELETE FROM removed WHERE path = ?", (put.path,))
        self.db.execute(INDEX_INSERT, self.index_row(put, moved_from))
        if put.facts is not None:
            self.forget_failure(put.path, "read")

    def take_from(self, put: PutFile) -> str | None:
        """Remove the row that moved to put.path; the old path as the host knows it."""
        old = self.old_row(put.moved_from)
        if old is None or version_prefix(old["inode_key"]) != version_prefix(put.inode_key):
            return put.moved_from
        self.drop_totals(old)
        self.db.execute("DELETE FROM agent_index WHERE path = ?", (put.moved_from,))
        if self.cache.error_count:  # what ffprobe could not do it cannot do under the new name
            self.db.execute("UPDATE OR REPLACE agent_error SET path = ?, root_id = ?"
                            " WHERE path = ?", (put.path, put.root_id, put.moved_from))
        undelivered = old["rev"] > self.cache.outbox.acked
        if undelivered or old["root_id"] != put.root_id:
            self.tombstone(put.moved_from, old["root_id"])
        if undelivered and old["moved_from"]:
            return old["moved_from"] if old["moved_from"] != put.path else None
        return put.moved_from

    def gone(self, change: GoneFile) -> None:
        old = self.old_row(change.path)
        if old is None:
            return
        self.db.execute(KEEP_FORMER, (change.path,))
        self.drop_totals(old)
        self.db.execute("DELETE FROM agent_index WHERE path = ?", (change.path,))
        self.db.execute("DELETE FROM agent_error WHERE path = ?", (change.path,))
        self.tombstone(change.path, old["root_id"])
        if old["moved_from"] and old["rev"] > self.cache.outbox.acked:
            # The host never heard of the move: to it the file still lies under its first path.
            self.tombstone(old["moved_from"], old["root_id"])

    def tombstone(self, path: str, root_id: int) -> None:
        self.db.execute("INSERT OR REPLACE INTO removed VALUES (?, ?, ?)",
                        (path, root_id, self.cache.next_rev()))

    def failed(self, failure: Failure) -> None:
        known = self.db.execute(
            "SELECT attempts, inode_key, class, message, tool FROM agent_error"
            " WHERE path = ? AND stage = ?", (failure.path, failure.stage)).fetchone()
        same = known is not None and known[1] == failure.inode_key and known[4] == failure.tool
        # The attempt was counted when it began; its verdict replaces "unfinished".
        begun = same and known[2] == "unfinished" and failure.error_class != "unfinished"
        attempts = (known[0] if same else 0) + (0 if begun else 1)
        self.db.execute(
            "INSERT OR REPLACE INTO agent_error VALUES (?,?,?,?,?,?,?,?,?,?)",
            (failure.path, failure.stage, failure.root_id, failure.inode_key, failure.error_class,
             failure.message[:500], attempts, failure.next_try, failure.tool, self.now))
        self.cache.error_count += known is None
        told = same and (known[2], known[3]) == (failure.error_class, failure.message[:500])
        if failure.error_class != "unfinished" and not told:
            self.db.execute("UPDATE agent_index SET rev = ? WHERE path = ?",
                            (self.cache.next_rev(), failure.path))

    def forget_failure(self, path: str, stage: str) -> None:
        if self.cache.error_count:
            done = self.db.execute("DELETE FROM agent_error WHERE path = ? AND stage = ?",
                                   (path, stage)).rowcount
            self.cache.error_count -= done

    def old_row(self, path: str) -> dict | None:
        names = ("root_id", "size", "digest", "rev", "inode_key", "moved_from", "rejected")
        row = self.db.execute(f"SELECT {', '.join(names)} FROM agent_index WHERE path = ?",
                              (path,)).fetchone()
        return dict(zip(names, row)) if row else None

    def drop_totals(self, old: dict) -> None:
        if old["rejected"] is None:
            self.cache.roots.subtract(old["root_id"], old["size"], old["digest"])

    def update(self, path: str, expected_key: str | None = None, **values) -> bool:
        """Change columns of one row, if it is (still) the version that was meant."""
        names = ("root_id", "size", "digest", "inode_key", "kind", "hash_algo", "sample_hash",
                 "full_hash", "probed", "rejected")
        row = self.db.execute(f"SELECT {', '.join(names)} FROM agent_index WHERE path = ?",
                              (path,)).fetchone()
        if row is None:
            return False
        old = dict(zip(names, row))
        if expected_key and version_prefix(old["inode_key"]) != version_prefix(expected_key):
            return False
        new = {**old, **values}
        digest = row_digest(self.cache.roots.rel_path(old["root_id"], path), new["inode_key"],
                            new["kind"], new["hash_algo"], new["sample_hash"], new["full_hash"],
                            new["probed"])
        self.drop_totals(old)
        self.cache.roots.add(old["root_id"], old["size"], digest)
        values.update(digest=signed_digest(digest), rejected=None, rev=self.cache.next_rev())
        columns = ", ".join(f"{name} = ?" for name in values)
        self.db.execute(f"UPDATE agent_index SET {columns} WHERE path = ?",
                        (*values.values(), path))
        return True
