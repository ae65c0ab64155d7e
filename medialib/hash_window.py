"""Reading files for their sample hash: chunks in a bounded window, results in the walk's order."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque

try:
    import resource
except ImportError:  # Windows
    resource = None

from .cache_changes import ClearFailure, Confirmed, Failure
from .hashing import FileChanging, HashResult, sample_hash_file
from .late import concurrent
from .scan_buffer import MOST_ATTEMPTS, RETRY_MOST_S, error_class, error_text, retry_time
from .scan_common import same_version
from .scan_plan import STAT_WORK, ReaderPermits
from .walk import FileProblem, find_files

CHUNK_FILES = 48
CHUNK_BYTES = 4 << 20
SEEKING_CHUNK_FILES = 128  # sorted by inode, which is about where they lie; a second or two of work
SEEKING_CHUNK_BYTES = 32 << 20
RACY_S = 2.0
CAREFUL_FILES = 500
LINKS_WAITING = 10_000
SMALL_READ_BYTES = 64 << 10
SLOW_FILE_S = 0.02
COLD_BLOCKS = 2  # a file takes at least eight blocks of 512 bytes: about one in four was not cached


class HashWindow:
    """Reads what RootScan gives it and notes the outcome in the buffer. Use it as a context; call
    `drain` for all that was given so far. `mark` has the cursor follow what is stored.
    """

    def __init__(self, scan, info, *, careful: int):
        self.scan = scan
        self.info = info
        self.cache = scan.cache
        self.plan = scan.plan
        self.stats = scan.stats
        self.control = scan.control
        self.buffer = scan.buffer
        self.careful = careful
        readers = self.plan.readers(info)
        self.permits = ReaderPermits(readers, self.plan.adaptive)
        self.seeks = info.rotational is not False
        self.chunk_most = ((SEEKING_CHUNK_FILES, SEEKING_CHUNK_BYTES) if self.seeks
                           else (CHUNK_FILES, CHUNK_BYTES))
        # With one reader, a file that changed and is read once more must wait for its turn.
        self.turn = threading.Lock() if readers == 1 else contextlib.nullcontext()
        self.pool = concurrent.futures.ThreadPoolExecutor(readers, thread_name_prefix="hash")
        self.window = deque()
        self.chunk = []
        self.chunk_bytes = 0
        self.waits = info.network  # whether the last chunk waited for a disk or a wire
        self.linked = {}  # {inode_key: job} of hard links that are being read

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self._settle()
        finally:
            self.pool.shutdown()

    # -- giving ----------------------------------------------------------------------------------

    def join_twin(self, job) -> bool:
        """One more name of an inode that is being read just now shares the result."""
        if job.found.nlink < 2 or job.moved_from:
            return False
        facts = self.buffer.recent.get(job.found.inode_key)
        if facts is not None:
            self._note(job, facts)
            return True
        first = self.linked.get(job.found.inode_key)
        if first is None:
            if len(self.linked) < LINKS_WAITING:
                self.linked[job.found.inode_key] = job
            return False
        if not first.twins:
            first.twins = []
        first.twins.append(job)
        return True

    def read(self, job) -> None:
        if self.careful and not self._begin_careful(job):
            return
        self.chunk.append(job)
        self.chunk_bytes += min(job.found.size, 3 * self.plan.sample_size)
        most_files, most_bytes = self.chunk_most
        if self.careful or len(self.chunk) >= most_files or self.chunk_bytes >= most_bytes:
            self._submit()

    def _begin_careful(self, job) -> bool:
        """After a crash: write down each file before it is opened; one that killed us three times
        is left alone until it changes.
        """
        self.careful -= 1
        failure = self.cache.failure(job.path, "read")
        if failure is not None and failure[1] in ("unfinished", "crashes") \
                and failure[0] == job.found.inode_key and failure[2] >= MOST_ATTEMPTS:
            self._give_up(job, "crashes", f"reading it ended the program {MOST_ATTEMPTS} times",
                          RETRY_MOST_S)
            return False
        self.cache.begin_attempt(Failure(job.root_id, job.path, "read", job.found.inode_key,
                                         "unfinished", "being read when the program ended"))
        return True

    def _submit(self) -> None:
        if not self.chunk:
            return
        chunk, small = self.chunk, self.chunk_bytes < SMALL_READ_BYTES * len(self.chunk)
        self.chunk, self.chunk_bytes = [], 0
        if self.seeks:
            chunk.sort(key=inode_of_job)
        if small and not self.waits:
            self._read_here(chunk)
            return
        while sum(1 for future, _ in self.window if future is not None) > self.permits.limit:
            self._take_oldest()
        self.stats.workers = self.permits.limit
        self.window.append((self.pool.submit(self._hash_chunk, chunk), None))

    def _read_here(self, chunk: list) -> None:
        """Small files that lie in memory: handing each read from thread to thread, as Python's lock
        does, takes longer than the reading.
        """
        while self.window:
            self._take_oldest()
        self.stats.workers = 1
        self._store_outcomes(self._hash_chunk(chunk))

    def _hash_chunk(self, jobs: list) -> list:
        """[(job, HashResult or exception)]; notes whether there was anything to wait for."""
        done = []
        started, blocks = time.monotonic(), disk_blocks_read()
        with self.turn:
            for job in jobs:
                if not self.control.keep_going():
                    return done
                done.append((job, self._hash_one(job.found)))
        self.waits = (
            self.info.network or blocks is None
            or disk_blocks_read() - blocks > COLD_BLOCKS * len(jobs)
            or time.monotonic() - started > SLOW_FILE_S * len(jobs))
        return done

    def _hash_one(self, found):
        try:
            return sample_hash_file(
                found.native, found, self.plan.algo, self.plan.sample_size,
                follow=self.plan.follow_symlinks, inodes_stable=self.scan.inodes_stable)
        except (OSError, FileChanging) as error:
            return error

    # -- taking ----------------------------------------------------------------------------------

    def mark(self, rel: str) -> None:
        """The cursor moves to this folder once everything submitted so far is stored."""
        if not self.window and not self.chunk:
            self.scan.set_cursor(rel)
            return
        if self.chunk:
            if len(self.chunk) < self.chunk_most[0] // 2 and len(self.window) < 4:
                return  # a small rest: a later folder's mark will cover it
            self._submit()
        if not self.window:
            self.scan.set_cursor(rel)
            return
        if self.window[-1][0] is None:
            self.window[-1] = (None, rel)  # nothing was given since: one mark is enough
        else:
            self.window.append((None, rel))
        while self.window and (self.window[0][0] is None or self.window[0][0].done()):
            self._take_oldest()

    def _take_oldest(self) -> None:
        future, rel = self.window.popleft()
        if future is None:
            self.scan.set_cursor(rel)
            return
        outcomes = future.result()
        most = 3 * self.plan.sample_size
        self.permits.note(sum(min(job.found.size, most) + STAT_WORK for job, _ in outcomes))
        self._store_outcomes(outcomes)

    def drain(self) -> None:
        """Everything given is read and in the cache."""
        while self.chunk or self.window:
            self._submit()
            while self.window:
                self._take_oldest()  # which may give a hard link's next name to be read
        self.buffer.flush()

    def _settle(self) -> None:
        """At the end, or when the scan is cut short: keep what is done."""
        if self.control.keep_going():
            self.drain()
            return
        self.chunk = []
        while self.window:
            self._take_oldest()
        self.buffer.flush()

    def _store_outcomes(self, outcomes: list) -> None:
        for job, outcome in outcomes:
            if job.found.nlink > 1:
                self.linked.pop(job.found.inode_key, None)
            if type(outcome) is HashResult:
                self._hashed(job, outcome)
            else:
                self._not_hashed(job, outcome)
        self.stats.opened += len(outcomes)
        self.stats.last_progress = time.monotonic()
        self.buffer.flush_if_due()

    def _not_hashed(self, job, outcome) -> None:
        if isinstance(outcome, FileChanging):
            self._changing(job)
        elif isinstance(outcome, FileNotFoundError):
            self._vanished(job)
        else:
            wait_s = retry_time(self.cache, job.path, "read", 0.0)
            self._give_up(job, error_class(outcome), error_text(outcome), wait_s)

    def _vanished(self, job) -> None:
        """The next listing will tell; its other names are there and want to be read."""
        self.buffer.add(ClearFailure(job.path, "read"))
        if job.twins:
            first, *others = job.twins
            first.twins = others
            self.read(first)

    def _hashed(self, job, facts) -> None:
        self.stats.hashed += 1
        self.stats.data_bytes += min(job.found.size, 3 * self.plan.sample_size)
        if job.found.nlink > 1:
            self.buffer.recent[job.found.inode_key] = facts
        if job.known is None:
            self.put(job, facts)
        else:
            self._note(job, facts)
        for twin in job.twins:
            self._note(twin, facts)

    def _note(self, job, facts) -> None:
        """The file has these hashes; where it had them before, the rest that is known stands."""
        known, found = job.known, job.found
        if known is None or not known.hashed or known.sample_hash != facts.sample_hash \
                or known.hash_algo != facts.algo \
                or not same_version(known.inode_key, found.inode_key, self.scan.inodes_stable):
            self.put(job, facts)
        elif (known.inode_key, known.ctime) == (found.inode_key, found.ctime):
            racy = abs(facts.hashed_at - found.mtime) < RACY_S
            self.buffer.add(Confirmed(job.path, found.inode_key, facts.hashed_at, racy))
        else:
            self.put(job, facts._replace(full_hash=facts.full_hash or known.full_hash), known)

    def put(self, job, facts, content=None) -> None:
        """Note the file with these facts; `content` gives ffprobe's answer where it is the same."""
        job.facts = facts
        job.racy = facts is not None and abs(facts.hashed_at - job.found.mtime) < RACY_S
        if content is not None and content.probed and job.kind == "video":
            job.metadata, job.probed = content.metadata, True
        self.buffer.changes.append(job)

    def _changing(self, job) -> None:
        """It was written to while it was read: one more try now, then again with the next scan."""
        again = look_at_file(job.found.native, self.plan.follow_symlinks)
        if again is None:
            self._vanished(job)
            return
        job.found = again
        job.known = None
        with self.turn:
            outcome = self._hash_one(again)
        if isinstance(outcome, (FileChanging, OSError)):
            self._give_up(job, "changing", "it was being written to while it was read", 0)
            return
        for twin in job.twins:
            twin.found = again._replace(name=twin.found.name, native=twin.found.native)
            twin.known = None
        self._hashed(job, outcome)

    def _give_up(self, job, failure_class: str, message: str, retry_in_s: float) -> None:
        """Catalogue the file without hashes and note why."""
        self.linked.pop(job.found.inode_key, None)
        self.stats.errors += 1
        for each in (job, *job.twins):
            if not each.retold:
                self.put(each, None)
            self.buffer.add(Failure(each.root_id, each.path, "read", each.found.inode_key,
                                    failure_class, message,
                                    next_try=self.scan.clock() + retry_in_s))


def inode_of_job(job) -> int:
    return int(job.found.inode_key.split(":")[2])


def disk_blocks_read() -> int | None:
    """How many blocks this thread has had read from disks so far; None where nobody counts them."""
    if resource is None or not hasattr(resource, "RUSAGE_THREAD"):
        return None
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock


class SingleFile:
    """The folder of one file, as find_files wants it."""

    __slots__ = ("native", "rel", "follow_symlinks", "stats")

    def __init__(self, native: str, follow_symlinks: bool):
        self.native = os.path.dirname(native)
        self.rel = ""
        self.follow_symlinks = follow_symlinks
        self.stats = {}  # it is looked at now


def look_at_file(native: str, follow_symlinks: bool):
    """The FoundFile at a native path as it is now, or None if no regular file can be seen there."""
    folder = SingleFile(native, follow_symlinks)
    for found in find_files(folder, [os.path.basename(native)]):
        if type(found) is not FileProblem:
            return found
    return None


def facts_of_content(content) -> HashResult:
    return HashResult(content.hash_algo, content.hash_sample_size, content.sample_hash,
                      content.full_hash, content.last_hashed_at or 0.0)
