"""Pass 2 (ffprobe for videos) and the full hashes of large files, both driven by the cache.

Neither walks the tree: the rows say what is waiting, so that a second run finds nothing to do.
What is about to be tried is written down first: a file that ends the program counts as tried.
"""

from __future__ import annotations

import json
import os
import time
from typing import NamedTuple

from .base import log
from .cache_changes import Described, Failure, FullHash
from .ffprobe import probe_file
from .hashing import FileChanging, full_hash_file
from .late import concurrent
from .probe_run import ProbeFailed
from .scan_buffer import (
    MOST_ATTEMPTS,
    RETRY_MOST_S,
    ChangeBuffer,
    error_class,
    error_text,
    retry_time,
)
from .scan_common import inode_key, same_version, to_native, version_prefix
from .scan_plan import STAT_WORK, ReaderPermits

PASS_CHUNK_ROWS = 200
NO_VERDICTS = ("missing", "not started", "stopped")  # of ffprobe: they say nothing about the file
PASSING_FAILURES = ("timeout", "unreadable")  # a slow or ailing disk: tried again some time


class WaitingFile(NamedTuple):
    """A row that waits for this pass; the columns are those of AgentCache.waiting."""

    path: str
    inode_key: str
    size: int
    full_hash: str | None
    sample_hash: str | None
    algo: str | None
    sample_size: int | None


class FileStamp(NamedTuple):
    """A file's size and identity, as hashing wants them."""

    size: int
    inode_key: str


class CachePass:
    """Takes the waiting rows of one root through a bounded pool, in whatever order they finish."""

    stage = ""

    def __init__(self, cache, root, info, plan, stats, control, *, on_stored=None,
                 clock=time.time):
        self.cache = cache
        self.root = root
        self.plan = plan
        self.stats = stats
        self.control = control
        self.clock = clock
        self.inodes_stable = info.inodes_stable
        self.readers = plan.readers(info)
        self.permits = ReaderPermits(self.readers, plan.adaptive)
        self.buffer = ChangeBuffer(cache, plan.batch_size, on_stored or list)
        self.unstored = set()  # contents whose result is in the buffer only

    def keep_going(self) -> bool:
        return self.control.keep_going()

    def run(self) -> None:
        with concurrent.futures.ThreadPoolExecutor(
                self.readers, thread_name_prefix=self.stage) as pool:
            running, suspects = {}, []
            try:
                for row in self.rows():
                    if self.was_under_way(row):
                        suspects.append(row)  # few: those a crash found under way
                    else:
                        self.take(row, pool, running, self.permits.limit)
                self.finish(running)
                # Each of them may have ended the program: last, and alone, so that the three
                # attempts that it gets are its own.
                for row in suspects:
                    self.take(row, pool, running, 1)
                    self.buffer.flush()  # a verdict that waits to be stored counts as none
            finally:
                self.finish(running)

    def take(self, row, pool, running: dict, at_once: int) -> None:
        """Work on one row, unless there is no need; waits until fewer than `at_once` run."""
        if not self.keep_going():
            return
        self.wait_for_twin(row, running)
        if self.is_settled(row):
            return
        self.begin(row)
        running[pool.submit(self.work, row)] = row
        while len(running) >= at_once:
            self.collect(running)

    def finish(self, running: dict) -> None:
        while running:
            self.collect(running)
        self.buffer.flush()

    def was_under_way(self, row) -> bool:
        """Whether the program ended while this row was being worked on."""
        failure = self.cache.failure(row.path, self.stage)
        return (failure is not None and failure[1] == "unfinished"
                and failure[0] == row.inode_key)

    def rows(self):
        after = ""
        while True:
            rows = self.cache.waiting(self.stage, self.root.id, after, PASS_CHUNK_ROWS)
            if not rows:
                return
            for row in rows:
                yield WaitingFile(*row)
            after = rows[-1][0]

    def content_of(self, row) -> str:
        """What rows share that need to be worked on only once."""
        return version_prefix(row.inode_key)

    def wait_for_twin(self, row, running: dict) -> None:
        """Another name of the same content is under way: its result will do, once it is stored."""
        content = self.content_of(row)
        while any(self.content_of(other) == content for other in running.values()):
            self.collect(running)
        if content in self.unstored:
            self.buffer.flush()
            self.unstored.clear()

    def is_settled(self, row) -> bool:
        """Whether this row need not be worked on now."""
        raise NotImplementedError

    def begin(self, row) -> None:
        self.stats.workers = self.permits.limit
        self.stats.current_path = row.path
        self.cache.begin_attempt(
            self.failure(row, "unfinished", "under way when the program ended"))

    def work(self, row):
        """In a worker: the result, or the exception as a value."""
        raise NotImplementedError

    def store(self, row, outcome) -> None:
        raise NotImplementedError

    def collect(self, running: dict) -> None:
        done, _ = concurrent.futures.wait(
            list(running), timeout=1.0, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in done:
            row = running.pop(future)
            self.store(row, future.result())
            self.unstored.add(self.content_of(row))
            self.permits.note(self.work_size(row))
            self.stats.last_progress = time.monotonic()
        self.buffer.flush_if_due()
        if not self.buffer.changes:
            self.unstored.clear()

    def work_size(self, row) -> int:
        return STAT_WORK

    def failure(self, row, failure_class: str, message: str, next_try=None) -> Failure:
        return Failure(self.root.id, row.path, self.stage, row.inode_key, failure_class, message,
                       self.tool(), next_try)

    def tool(self) -> str | None:
        return None

    def gave_up(self, row, failure) -> bool:
        """Trying it ended the program three times: left alone until it changes, and said so."""
        if failure[2] < MOST_ATTEMPTS:
            return False
        self.buffer.add(self.failure(row, "crashes", f"ended the program {failure[2]} times",
                                     self.clock() + RETRY_MOST_S))
        return True

    def forget_attempt(self, row) -> None:
        """Neither done nor failed: the agent was asked to stop, or the file is another one now."""
        self.cache.end_attempts([(row.path, self.stage)])

    def is_same_file(self, row) -> bool:
        try:
            return same_version(inode_key(os.lstat(to_native(row.path))), row.inode_key,
                                self.inodes_stable)
        except (OSError, ValueError):
            return False


class ProbePass(CachePass):
    """Pass 2: ffprobe for each video that was not described yet."""

    stage = "probe"
    tool_lost = False  # ffprobe is not there any more

    def content_of(self, row) -> str:
        return row.full_hash or version_prefix(row.inode_key)

    def tool(self) -> str | None:
        return self.plan.ffprobe.version

    def is_settled(self, row) -> bool:
        known = self.cache.described_copy(row.full_hash) or self._same_inode(row)
        if known is not None:
            self.buffer.add(Described(row.path, row.inode_key, known))
            self.buffer.flush_if_due()
            return True
        failure = self.cache.failure(row.path, self.stage)
        if failure is None or failure[0] != row.inode_key or failure[4] != self.tool():
            return False
        if failure[1] == "unfinished":
            return self.gave_up(row, failure)
        return failure[3] is None or failure[3] > self.clock()

    def keep_going(self) -> bool:
        return self.control.keep_going() and not self.tool_lost

    def _same_inode(self, row) -> str | None:
        """What is known of another name of the same file."""
        for content in self.cache.same_content(row.inode_key):
            if content.probed and content.metadata and content.path != row.path:
                return content.metadata
        return None

    def work(self, row):
        try:
            return probe_file(self.plan.ffprobe, to_native(row.path), stop=self.control,
                              follow=self.plan.follow_symlinks)
        except (ProbeFailed, OSError) as error:
            return error

    def store(self, row, outcome) -> None:
        if isinstance(outcome, Exception):
            self._failed(row, outcome)
            return
        if not self.is_same_file(row):
            self.forget_attempt(row)  # replaced meanwhile: the next scan sees the new one
            return
        self.stats.probed += 1
        self.buffer.add(Described(row.path, row.inode_key, json.dumps(outcome)))

    def _failed(self, row, error) -> None:
        kind = getattr(error, "error_class", None) or error_class(error)
        if kind == "missing" and not self.tool_lost:
            self.tool_lost = True
            log.warning("%s: the other videos wait until ffprobe is there again", error)
        if kind in NO_VERDICTS or not self.keep_going() or not self.is_same_file(row):
            self.forget_attempt(row)
            return
        self.stats.errors += 1
        text = error_text(error) if isinstance(error, OSError) else str(error)
        self.buffer.add(self.failure(row, kind, text, self._next_try(row, error, kind)))

    def _next_try(self, row, error, kind: str) -> float | None:
        """What may pass is tried again some time; what ended ffprobe (the file, or somebody who
        wanted the memory) until its third time; any other answer stands until the file changes.
        """
        may_pass = isinstance(error, OSError) or kind in PASSING_FAILURES
        if kind == "crashed":
            may_pass = self.cache.failure(row.path, self.stage)[2] < MOST_ATTEMPTS
        if not may_pass:
            return None
        return retry_time(self.cache, row.path, self.stage, self.clock())


class FullHashPass(CachePass):
    """The whole content of files that have only a sample hash, while the window is open."""

    stage = "full"

    def keep_going(self) -> bool:
        return self.control.keep_going() and self.plan.in_window(self.clock())

    def is_settled(self, row) -> bool:
        twin = self._same_inode_hash(row)
        if twin is not None:
            self.buffer.add(FullHash(row.path, row.inode_key, twin))
            self.buffer.flush_if_due()
            return True
        failure = self.cache.failure(row.path, self.stage)
        if failure is None or failure[0] != row.inode_key:
            return False
        if failure[1] == "unfinished":
            return self.gave_up(row, failure)
        return (failure[3] or 0) > self.clock()

    def _same_inode_hash(self, row) -> str | None:
        for content in self.cache.same_content(row.inode_key):
            if content.full_hash and content.hash_algo == row.algo and content.path != row.path:
                return content.full_hash
        return None

    def work(self, row):
        try:
            return full_hash_file(to_native(row.path), FileStamp(row.size, row.inode_key), row.algo,
                                  keep_going=self.keep_going, on_bytes=self._read_bytes,
                                  follow=self.plan.follow_symlinks,
                                  inodes_stable=self.inodes_stable)
        except (OSError, FileChanging) as error:
            return error

    def _read_bytes(self, count: int) -> None:
        self.stats.data_bytes += count
        self.stats.last_progress = time.monotonic()

    def work_size(self, row) -> int:
        return row.size + STAT_WORK

    def store(self, row, outcome) -> None:
        if isinstance(outcome, str):
            self.stats.fully_hashed += 1
            self.buffer.add(FullHash(row.path, row.inode_key, outcome))
        elif outcome is None or isinstance(outcome, (FileChanging, FileNotFoundError)):
            self.forget_attempt(row)
        else:
            self.stats.errors += 1
            self.buffer.add(self.failure(
                row, error_class(outcome), error_text(outcome),
                retry_time(self.cache, row.path, self.stage, self.clock())))
