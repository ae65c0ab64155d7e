"""The catalogue: one database file, one thread that writes it, readers beside it."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time

from .base import DamagedStoreError, MedialibError, StoreError, log
from .catalog_apply import FileBatch
from .catalog_check import BackgroundCheck, check_database_head, damage_advice
from .catalog_duplicates import (
    settle_due_duplicates,
    update_duplicates,
    update_duplicates_of_new,
)
from .catalog_roots import CatalogCounters, FolderBook, WordBook, read_root
from .catalog_schema import CATALOG_MIGRATIONS, LOCAL_AGENT
from .catalog_search import SEARCH_BEHIND, SearchIndex
from .catalog_writer import CatalogWriter
from .late import shutil
from .sqlite_store import (
    StoreConnection,
    copy_database,
    explain_sqlite_error,
    migrate,
    open_reader,
    set_foreign_log_aside,
    sqlite3,
)

CATALOG_FILE = "medialib.db"
LEAST_FREE_BYTES = 2 << 20
PROOF_S = 5.0  # /health asks for no write of its own, behind large batches, after a commit so young
IDLE_READERS = 8
DUE_REST = 10  # very large groups are counted in at most a tenth of the time


class CatalogTools:
    """What the writing thread remembers between jobs. `forget` after any rollback."""

    def __init__(self, search: SearchIndex):
        self.words = WordBook()
        self.folders = FolderBook()
        self.search = search
        self.read_root = read_root
        self.rows_taken = 0  # counts transactions that changed rows which were there

    def forget(self) -> None:
        self.words.forget()
        self.folders.forget()


class Catalog:
    """Open it with the path of its file. `problem` is None, or the sentence that says why it
    cannot be used: then everything raises StoreError with that sentence.

    A damaged file is kept as it is, whenever the damage is found: a large file is checked while it
    is in use already. A newer schema raises NewerStoreError at once.
    """

    def __init__(self, path: str, *, clock=time.time, keep_copy=None):
        self.path = path
        self.clock = clock
        self.problem: str | None = None
        self.library_id: str | None = None
        self.writer: CatalogWriter | None = None
        self.check: BackgroundCheck | None = None
        self.agents_changed = 0  # counts, for those who show agents and settings
        self.seq = 0  # the highest committed number, for those who wait for changes
        self._seq_lock = threading.Lock()  # guards seq
        self._readers: queue.LifoQueue = queue.LifoQueue()
        self._words: dict = {}  # committed words by number; only ever added to
        self._words_lock = threading.Lock()  # guards _words
        self._due_again = 0.0
        try:
            self._open(keep_copy)
        except DamagedStoreError as error:
            self.note_damage(error)

    def note_damage(self, error: Exception) -> None:
        """The file is not sound: from now on nothing is read from it or written to it."""
        if self.problem is None:
            self.problem = damage_advice(self.path, error)
            log.error("%s", self.problem)

    def _open(self, keep_copy) -> None:
        if os.path.exists(self.path) and not os.path.getsize(self.path):
            log.warning("%s is empty and is set up anew", self.path)
        aside = set_foreign_log_aside(self.path)
        if aside is not None:
            log.warning("%s is a copy, and the log beside it belongs to what was there before: it"
                        " is kept as %s", self.path, aside)
        store = StoreConnection(self.path, cache_kib=24576)
        try:
            checked = check_database_head(store)
            migrate(store, CATALOG_MIGRATIONS, before_upgrade=keep_copy)
            with store.atomic() as db:
                self.tools = CatalogTools(SearchIndex(db))
                self.library_id = db.execute(
                    "SELECT value FROM library WHERE key = 'library_id'").fetchone()[0]
                self.seq = CatalogCounters(db).values["seq"]
        except sqlite3.DatabaseError as error:
            store.close()
            raise explain_sqlite_error(error, self.path) from error
        except BaseException:
            store.close()
            raise
        self.store = store
        self.writer = CatalogWriter(store, idle_work=self._idle, on_failure=self.tools.forget,
                                    on_damage=self.note_damage)
        self.writer.start()
        if not checked:
            self.check = BackgroundCheck(self.path, self.note_damage)
            self.check.start()

    # -- writing ---------------------------------------------------------------------------------

    def write(self, work, on_queued=None):
        """Run `work(db)` on the writing thread; its result, once it is committed. `on_queued()` is
        called when its place among the others is certain.
        """
        self._check_usable()
        return self.writer.run(work, on_queued)

    def change(self, work, on_queued=None):
        """`write`, with a ChangeSet: `work(changes)` may apply files and take numbers."""
        result, seq = self.write(lambda db: self._run_change(db, work), on_queued)
        # Only now: whoever sees a new number must find its changes when he reads.
        with self._seq_lock:
            self.seq = max(self.seq, seq)
        return result

    def _run_change(self, db, work) -> tuple:
        """(result, number of its last change)"""
        changes = ChangeSet(db, self.tools, self.clock())
        result = work(changes)
        changes.finish()
        return result, changes.counters.values["seq"]

    def _idle(self, db) -> float | None:
        """Index names and count large groups, a little at a time."""
        if self.problem is not None:
            return None
        counters = CatalogCounters(db)
        more = self.tools.search.index_more(db, counters)
        counters.save()
        if more:
            return 0.0
        wait_s = self._due_again - time.monotonic()
        if wait_s > 0:
            return wait_s
        started = time.monotonic()
        if not settle_due_duplicates(db):
            return None
        spent_s = time.monotonic() - started
        self._due_again = time.monotonic() + spent_s * DUE_REST
        return spent_s * DUE_REST

    def _check_usable(self) -> None:
        if self.problem is not None:
            raise StoreError(self.problem)

    # -- reading ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reader(self):
        """A connection to read from, in one transaction. Errors come out as StoreError."""
        self._check_usable()
        try:
            db = self._readers.get_nowait()
        except queue.Empty:
            db = open_reader(self.path)
        try:
            db.execute("BEGIN")
            yield db
            db.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                db.close()
            if isinstance(error, sqlite3.Error):
                problem = explain_sqlite_error(error, self.path)
                if isinstance(problem, DamagedStoreError):
                    self.note_damage(problem)
                raise problem from error
            raise
        if self._readers.qsize() < IDLE_READERS:
            self._readers.put(db)
        else:
            db.close()

    def words(self, db) -> dict:
        """{number: text} of all words that are committed. Read only; it grows by itself."""
        with self._words_lock:
            highest = max(self._words, default=0)
            rows = db.execute("SELECT id, text FROM word WHERE id > ?", (highest,)).fetchall()
            if rows:
                self._words = {**self._words, **dict(rows)}
            return self._words

    # -- upkeep ----------------------------------------------------------------------------------

    def writable(self) -> str | None:
        """None when a write goes through now, else the sentence that says why not."""
        if self.problem is not None:
            return self.problem
        age_s = time.monotonic() - self.writer.committed_at
        if age_s > PROOF_S or self.writer.last_error is not None:  # else a commit proves it already
            try:
                self.writer.submit(_touch_health).result(5.0)
            except MedialibError as error:
                return str(error)
            except Exception:  # concurrent.futures.TimeoutError is no TimeoutError before 3.11
                return f"{self.path} could not be written within 5 seconds"
        return self._short_of_room()

    def _short_of_room(self) -> str | None:
        """One small write may still fit where a batch does not."""
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(os.path.dirname(os.path.abspath(self.path))).free
            if free < LEAST_FREE_BYTES:
                return f"the disk of {self.path} is full: {free >> 10} KiB are free"
        return None

    def backup(self, target: str) -> int:
        """A checked copy of the database in `target`; its size in bytes."""
        self._check_usable()
        try:
            return copy_database(self.path, target)
        except DamagedStoreError as error:
            self.note_damage(error)
            raise

    def close(self) -> None:
        if self.check is not None:
            self.check.stop()
        if self.writer is not None:
            self.writer.stop()
        while True:
            try:
                self._readers.get_nowait().close()
            except queue.Empty:
                break
        if self.writer is not None:
            self.store.close()


class ChangeSet:
    """One transaction's changes to files and roots, with their numbers and sums."""

    def __init__(self, db, tools: CatalogTools, now: float):
        self.db = db
        self.tools = tools
        self.now = now
        self.counters = CatalogCounters(db)
        self._batches: list = []

    def files_of(self, agent) -> FileBatch:
        """A FileBatch of this transaction; `finish` stores its sums."""
        batch = FileBatch(self.db, self.tools, self.counters, agent, self.now)
        self._batches.append(batch)
        return batch

    def has_taken(self) -> bool:
        """Whether any row that was there has changed or gone."""
        return any(batch.changes.taken for batch in self._batches)

    def finish(self) -> None:
        if self.has_taken():
            self.tools.rows_taken += 1
        for batch in self._batches:
            batch.changes.save(self.tools.folders)
            update_duplicates(self.db, batch.changes.joined, batch.changes.left)
        added = [batch.changes for batch in self._batches if batch.changes.new]
        if added:
            update_duplicates_of_new(self.db, min(one.first_new for one in added),
                                     [record for one in added for record in one.new])
        if self.tools.search.behind(self.counters) > SEARCH_BEHIND:
            self.tools.search.index_more(self.db, self.counters)
        self.counters.save()


def _touch_health(db) -> None:
    """A write that changes nothing for anybody, but needs the disk."""
    db.execute("INSERT OR REPLACE INTO library VALUES ('health', ?)", (str(time.time()),))


def is_local_agent(agent_id: str) -> bool:
    return agent_id == LOCAL_AGENT
