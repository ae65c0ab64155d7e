"""Pass 1: walk a root, skip what is unchanged, hash the rest in a bounded window, note it.

The same loop serves the agent and the host's own disks; both write to an AgentCache. Results are
taken in the order of the walk, so that the cursor is always a place up to which all is stored.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import os
import time
import uuid
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from .agent_cache import (
    ClearFailure,
    Confirmed,
    Facts,
    Failure,
    GoneFile,
    GoneFolder,
    PutFile,
    PutFolder,
)
from .base import log
from .hashing import FileChanging, sample_hash_file
from .mounts import describe_root, mount_points
from .scan_common import inode_key, parent_of, same_version, to_native, to_text
from .scan_plan import STAT_WORK, ReaderPermits
from .walk import FileProblem, find_files, walk_folders

FLUSH_S = 2.0
CHUNK_FILES = 48
CHUNK_BYTES = 4 << 20
BIG_FOLDER = 10_000
RACY_S = 2.0
CAREFUL_FILES = 500
MOST_ATTEMPTS = 3
RETRY_FIRST_S = 3600.0
RETRY_MOST_S = 7 * 86400.0


class RootOffline(Exception):
    """The root cannot be scanned now; nothing of it changes state. Its text is the reason."""


class HashJob:
    """One file to be read. `known` are the facts that a second look should confirm."""

    __slots__ = ("found", "folder_id", "path", "rel", "kind", "reason", "moved_from", "known",
                 "fresh", "retold", "twins")

    def __init__(self, found, folder_id, path, rel, kind, reason):
        self.found = found
        self.folder_id = folder_id
        self.path = path
        self.rel = rel
        self.kind = kind
        self.reason = reason
        self.moved_from = None
        self.known = None
        self.fresh = False
        self.retold = False  # the host has this very row already, without hashes
        self.twins = []


class ChangeBuffer:
    """Changes on their way into the cache: stored when there are enough or after 2 s."""

    def __init__(self, cache, batch_size: int, on_stored):
        self.cache = cache
        self.batch_size = batch_size
        self.on_stored = on_stored
        self.changes = []
        self.recent = {}  # {inode_key: Facts} of hard links that are not stored yet
        self.cursor = None
        self.since = time.monotonic()

    def add(self, change) -> None:
        self.changes.append(change)

    def flush_if_due(self) -> None:
        if len(self.changes) >= self.batch_size or time.monotonic() - self.since >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        self.since = time.monotonic()
        if not self.changes and self.cursor is None:
            return
        changes, cursor = self.changes, self.cursor
        self.changes, self.cursor, self.recent = [], None, {}
        self.cache.commit(changes, cursor)
        if changes:
            self.on_stored()


def retry_time(cache, path: str, stage: str, now: float) -> float:
    """When a failed file is tried again: after an hour, then four times as long, up to a week."""
    known = cache.failure(path, stage)
    attempts = known[2] if known else 0
    return now + min(RETRY_FIRST_S * 4 ** min(attempts, 10), RETRY_MOST_S)


def error_class(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def error_text(error: OSError) -> str:
    """The message without the path, as valid Unicode."""
    return to_text(error.strerror or str(error) or type(error).__name__)


class RootScan:
    """One root in pass 1. `on_stored()` is called after each commit, so that delivery wakes up."""

    def __init__(self, cache, path: str, plan, stats, control, *, other_roots=(), on_stored=None,
                 clock=time.time):
        self.cache = cache
        self.path = path
        self.native = to_native(path)
        self.plan = plan
        self.stats = stats
        self.control = control
        self.other_roots = other_roots
        self.clock = clock
        self.buffer = ChangeBuffer(cache, plan.batch_size, on_stored or list)
        self.window = deque()
        self.chunk = []
        self.chunk_bytes = 0
        self.linked = {}
        self.new_folders = {}
        self.careful = 0
        self.inodes_stable = True
        self.folder_errors = 0
        self.info = None
        self.root = None

    # -- the whole root --------------------------------------------------------------------------

    def run(self) -> bool:
        """Scan the root. True if it came to the end; RootOffline if it cannot be scanned."""
        started = self.clock()
        self._identify()
        self._look_around()
        readers = self.plan.readers(self.info)
        self.permits = ReaderPermits(readers, self.plan.adaptive)
        with ThreadPoolExecutor(max_workers=readers, thread_name_prefix="hash") as self.pool:
            try:
                self._walk_all()
                self._look_again()
            finally:
                self._settle()
        if not self.control.keep_going():
            return False
        self._note_end(started)
        return True

    def _identify(self) -> None:
        """Find out which root this is, or raise RootOffline."""
        try:
            self.info = describe_root(self.native)
            with os.scandir(self.native) as entries:
                names = [to_text(entry.name) for _, entry in zip(range(1000), entries)]
        except OSError as error:
            raise RootOffline(f"{error_class(error)}: {error_text(error)}") from error
        here = self.cache.roots.at_path(self.path)
        expected = self.cache.roots.of_volume(self.info.volume, self.info.volume_path) or here
        if not names and here is not None and here.files and not here.accept_empty:
            raise RootOffline("empty: a disk may be missing; accept it as empty if it really is")
        if expected is not None and expected.files and not expected.accept_empty:
            self._doubt(expected, names)
        self.root = self.cache.roots.identify(self.path, self.info)
        self.cache.roots.save(self.root, state="scanning", reason=None)

    def _doubt(self, expected, names: list) -> None:
        """Another disk without an identity of its own at the same path: nothing known is there."""
        if not names:
            raise RootOffline("empty: a disk may be missing; accept it as empty if it really is")
        if self.info.volume is not None or expected.device in (None, self.info.device):
            return
        top = self.cache.roots.folder_id(expected.id, "")
        if top is None or len(names) >= 1000:
            return
        known = {rel for _, rel in self.cache.roots.child_folders(top)}
        for part in self.cache.folder_paths(top):
            known.update(path.rpartition("/")[2] for path, _ in part)
        if known and not known.intersection(names):
            raise RootOffline("another disk seems to be mounted here: nothing known is on it")

    def _look_around(self) -> None:
        self.first = self.cache.is_empty()
        self.inodes_stable = self.info.inodes_stable and not self._renumbered()
        if self.cache.get_meta("unclean") == "1":
            self.careful = CAREFUL_FILES
        self.cache.set_meta("unclean", "1")

    def _renumbered(self) -> bool:
        """Whether all known files that are still there have new inodes: the file system makes them
        up anew, and path, size and time decide. An inode that is known elsewhere was moved instead.
        """
        if self.first:
            return False
        rows = self.cache.store.rows("SELECT path, inode_key FROM agent_index WHERE root_id = ?"
                                     " LIMIT 64", (self.root.id,))
        changed = 0
        for path, key in rows:
            try:
                new = inode_key(os.lstat(to_native(path)))
            except OSError:
                continue
            if same_version(key, new):
                return False
            if same_version(key, new, inodes_stable=False):
                if self.cache.same_content(new):
                    return False
                changed += 1
        return changed >= 3

    def _walk_all(self) -> None:
        """From where the last scan was interrupted to the end, then the part before it."""
        cursor = self.cache.cursor(self.path, 1)
        if cursor is not None:
            cursor = cursor[len(self.root.prefix()):]
            self._walk(after=cursor)
            self._walk(until=cursor)
        else:
            self._walk()

    def _walk(self, after: str | None = None, until: str | None = None) -> None:
        walk = walk_folders(
            self.native, classifier=self.plan.classifier, root_device=self.info.device,
            other_roots=self.other_roots, follow_symlinks=self.plan.follow_symlinks,
            mount_points=mount_points(), after=after, until=until)
        for listing in walk:
            if not self.control.keep_going():
                return
            if listing.rel == "" and listing.error is not None:
                raise RootOffline(f"{error_class(listing.error)}: {error_text(listing.error)}")
            self._folder(listing)
            self.buffer.flush_if_due()

    def _note_end(self, started: float) -> None:
        self.buffer.cursor = (self.path, 1, None)
        self.buffer.flush()
        scan = {"scan_id": str(uuid.uuid4()), "started": started, "ended": self.clock(),
                "ledger": dict(self.stats.ledger), "errors": self.folder_errors}
        self.cache.roots.finish(self.root, scan, self.clock())
        self.cache.set_meta("unclean", "0")

    # -- one folder ------------------------------------------------------------------------------

    def _folder(self, listing) -> None:
        self.stats.add_ledger(listing.counts)
        self.stats.current_path = self.root.file_path(listing.rel)
        folder_id, is_new = self._folder_id(listing)
        if listing.error is not None:
            self._folder_error(listing)
        elif self.cache.error_count:
            self.buffer.add(ClearFailure(self.root.file_path(listing.rel), "list"))
        prefix = self.root.file_path(listing.rel + "/" if listing.rel else "")
        if len(listing.names) > BIG_FOLDER or (
                not is_new and self.cache.folder_count(folder_id, BIG_FOLDER + 1) > BIG_FOLDER):
            self._compare_big(listing, folder_id, prefix)
        else:
            known = {} if is_new else self.cache.folder_files(folder_id)
            self._compare(listing, listing.names, folder_id, prefix, known)
            if known and listing.error is None:
                self._gone_files(listing, list(known))
        if not is_new and listing.error is None:
            self._gone_folders(listing, folder_id)
        self._mark_done(listing.rel)

    def _folder_id(self, listing) -> tuple:
        """(number, whether the folder is new)."""
        roots = self.cache.roots
        folder_id = roots.folder_id(self.root.id, listing.rel)
        if folder_id is not None:
            return folder_id, False
        parent = None
        if listing.rel:
            parent_rel = parent_of(listing.rel)
            parent = roots.folder_id(self.root.id, parent_rel)
            if parent is None:
                parent = self.new_folders.get(parent_rel)
        folder_id = roots.new_folder_id()
        self._remember_new(listing.rel, folder_id)
        self.buffer.add(PutFolder(folder_id, self.root.id, parent, listing.rel))
        return folder_id, True

    def _remember_new(self, rel: str, folder_id: int) -> None:
        """Only the ancestors of the present folder are needed, and only until they are stored."""
        kept = {}
        ancestor = rel
        while ancestor:
            ancestor = parent_of(ancestor)
            if ancestor in self.new_folders:
                kept[ancestor] = self.new_folders[ancestor]
        kept[rel] = folder_id
        self.new_folders = kept

    def _folder_error(self, listing) -> None:
        self.folder_errors += 1
        self.stats.errors += 1
        self.buffer.add(Failure(self.root.id, self.root.file_path(listing.rel), "list", "",
                                error_class(listing.error), error_text(listing.error)))

    def _compare(self, listing, names, folder_id: int, prefix: str, known: dict) -> None:
        """Take each file's row out of `known`; whatever is new or changed is looked into."""
        algo, sample_size, stats = self.plan.algo, self.plan.sample_size, self.stats
        for found in find_files(listing, names):
            if type(found) is FileProblem:
                self._problem(found, folder_id, prefix + found.name, known)
                continue
            path = prefix + found.name
            row = known.pop(path, None)
            stats.seen += 1
            if (row is not None and row[1] == found.inode_key and row[2] == found.ctime and row[3]
                    and row[4] == algo and row[5] == sample_size and not row[6]):
                stats.unchanged += 1
                continue
            self._consider(found, folder_id, path, row)

    def _compare_big(self, listing, folder_id: int, prefix: str) -> None:
        """The same for a folder of any size: rows are fetched in chunks of its sorted names."""
        names = listing.names
        for start in range(0, len(names), 1000):
            part = names[start:start + 1000]
            known = self.cache.files_at([prefix + to_text(name) for name in part])
            self._compare(listing, part, folder_id, prefix, known)
            self.buffer.flush_if_due()
            if not self.control.keep_going():
                return
        if listing.error is not None:
            return
        self._drain()
        self.buffer.flush()
        text_names = NamesAsText(names)
        for part in self.cache.folder_paths(folder_id):
            gone = [path for path, _ in part
                    if not text_names.has(path.rpartition("/")[2])]
            self._gone_files(listing, gone)

    def _problem(self, problem, folder_id: int, path: str, known: dict) -> None:
        """A name that was listed but could not be looked at: its row stays as it is."""
        known.pop(path, None)
        if problem.error.errno == errno.ENOENT:
            return  # it vanished meanwhile; the next listing will tell
        self.stats.errors += 1
        self.buffer.add(Failure(self.root.id, path, "read", "", error_class(problem.error),
                                error_text(problem.error)))

    def _consider(self, found, folder_id: int, path: str, row) -> None:
        kind, reason = self.plan.kind_of(found.name)
        job = HashJob(found, folder_id, path, self.root_rel(path), kind, reason)
        self.stats.count_kind(kind)
        if row is None or not same_version(row[1], found.inode_key, self.inodes_stable):
            job.fresh = row is None and self.first
            if self._known_elsewhere(job):
                return
            self._read(job)
        elif row[1] != found.inode_key and not same_version(row[1], found.inode_key):
            self._renumber(job)
        elif not row[3]:
            self._read_unhashed(job, row)
        elif row[4] != self.plan.algo or row[5] != self.plan.sample_size:
            self._read(job)
        elif row[2] != found.ctime or row[6]:
            job.known = self.cache.facts_at(path)
            self._read(job)
        else:
            self.stats.unchanged += 1  # only the device number is another: the same file

    def root_rel(self, path: str) -> str:
        return path[len(self.root.prefix()):]

    def _known_elsewhere(self, job) -> bool:
        """Whether this content is known under another path: a move, or one more hard link."""
        if self.first and job.found.nlink < 2:
            return False
        same = self.cache.same_content(job.found.inode_key)
        for content in same:
            moved = not self._still_there(content.path, job)
            if moved and content.path != job.path:
                job.moved_from = content.path
            if content.hashed and content.hash_algo == self.plan.algo \
                    and content.hash_sample_size == self.plan.sample_size:
                self.stats.moved += moved
                self._put(job, facts_of_content(content), content)
                return True
        return self._join_twin(job)

    def _join_twin(self, job) -> bool:
        """One more name of an inode that is being read just now shares the result."""
        if job.found.nlink < 2 or job.moved_from:
            return False
        facts = self.buffer.recent.get(job.found.inode_key)
        if facts is not None:
            self._put(job, facts)
            return True
        first = self.linked.get(job.found.inode_key)
        if first is None:
            if len(self.linked) < 10_000:
                self.linked[job.found.inode_key] = job
            return False
        first.twins.append(job)
        return True

    def _still_there(self, path: str, job) -> bool:
        if path == job.path:
            return False
        try:
            seen = inode_key(os.lstat(to_native(path)))
        except (OSError, ValueError):
            return False
        return same_version(seen, job.found.inode_key)

    def _renumber(self, job) -> None:
        """The same path, size and time where inodes do not last: nothing is read."""
        self.stats.unchanged += 1
        if self.info.inodes_stable:
            known = self.cache.facts_at(job.path)
            if known is not None and known.hashed:
                self._put(job, facts_of_content(known), known)

    def _read_unhashed(self, job, row) -> None:
        """A file that could not be read before: again when it changed or its time has come."""
        failure = self.cache.failure(job.path, "read")
        if failure is not None and row[2] == job.found.ctime:
            same = failure[0] == job.found.inode_key
            if same and (failure[3] or 0) > self.clock() and failure[1] != "unfinished":
                self.stats.unchanged += 1
                return
        job.retold = row[1] == job.found.inode_key and row[2] == job.found.ctime
        self._read(job)

    # -- what is gone ----------------------------------------------------------------------------

    def _gone_files(self, listing, paths: list) -> None:
        if not paths or not self._still_mounted():
            return
        for path in paths:
            self.buffer.add(GoneFile(self.root.id, path))
            self.stats.removed += 1

    def _gone_folders(self, listing, folder_id: int) -> None:
        children = self.cache.roots.child_folders(folder_id)
        if not children:
            return
        present = set(listing.subfolders)
        present.update(name for name in listing.held if not self._is_nested_root(listing, name))
        for child_id, rel in children:
            if rel.rpartition("/")[2] not in present and self._still_mounted():
                self._gone_tree(child_id, rel)

    def _is_nested_root(self, listing, name: str) -> bool:
        """Files below a folder that has become a root of its own are catalogued there now."""
        path = os.path.join(listing.native, to_native(name))
        return os.path.realpath(path) in self.other_roots

    def _gone_tree(self, folder_id: int, rel: str) -> None:
        """A folder that its parent, listed to the end, no longer holds: all below it is gone."""
        waiting = [(folder_id, rel)]
        while waiting:
            current, rel = waiting.pop()
            waiting.extend(self.cache.roots.child_folders(current))
            self.buffer.add(ClearFailure(self.root.file_path(rel), "list"))
            for part in self.cache.folder_paths(current):
                for path, root_id in part:
                    self.buffer.add(GoneFile(root_id, path))
                self.stats.removed += len(part)
            self.buffer.add(GoneFolder(current))
            if len(self.buffer.changes) > 20 * self.plan.batch_size:
                # A huge tree: what is stored so far is right on its own.
                self._drain()
                self.buffer.flush()

    def _still_mounted(self) -> bool:
        """The root is still the folder of the file system that the scan began with."""
        try:
            now = os.stat(self.native)
        except OSError as error:
            raise RootOffline(f"{error_class(error)}: {error_text(error)}") from error
        if (now.st_dev, now.st_ino) != (self.info.device, self.info.inode):
            raise RootOffline("another file system is mounted here now")
        return True

    # -- reading ---------------------------------------------------------------------------------

    def _read(self, job) -> None:
        if self.careful and not self._begin_careful(job):
            return
        self.chunk.append(job)
        self.chunk_bytes += min(job.found.size, 3 * self.plan.sample_size)
        if self.careful or len(self.chunk) >= CHUNK_FILES or self.chunk_bytes >= CHUNK_BYTES:
            self._submit()

    def _begin_careful(self, job) -> bool:
        """After a crash: write down each file before it is opened; one that killed us three times
        is left alone until it changes.
        """
        self.careful -= 1
        failure = self.cache.failure(job.path, "read")
        if failure is not None and failure[1] == "unfinished" \
                and failure[0] == job.found.inode_key and failure[2] >= MOST_ATTEMPTS:
            self._give_up(job, "crashes", f"reading it ended the program {failure[2]} times",
                          RETRY_MOST_S)
            return False
        self.cache.begin_attempt(Failure(self.root.id, job.path, "read", job.found.inode_key,
                                         "unfinished", "being read when the program ended"))
        return True

    def _submit(self) -> None:
        if not self.chunk:
            return
        while sum(1 for future, _ in self.window if future is not None) > self.permits.limit:
            self._take_oldest()
        self.stats.workers = self.permits.limit
        chunk, self.chunk, self.chunk_bytes = self.chunk, [], 0
        self.window.append((self.pool.submit(self._hash_chunk, chunk), None))

    def _hash_chunk(self, jobs: list) -> list:
        """In a worker: [(job, HashResult or exception)]."""
        done = []
        for job in jobs:
            if not self.control.keep_going():
                return done
            done.append((job, self._hash_one(job.found)))
        return done

    def _hash_one(self, found):
        try:
            return sample_hash_file(found.native, found, self.plan.algo, self.plan.sample_size,
                                    follow=self.plan.follow_symlinks)
        except (OSError, FileChanging) as error:
            return error

    def _mark_done(self, rel: str) -> None:
        """The cursor moves here once everything submitted so far is stored."""
        if not self.window and not self.chunk:
            self._set_cursor(rel)
            return
        if self.chunk:
            if len(self.chunk) < CHUNK_FILES // 2 and len(self.window) < 4:
                return  # a small rest: a later folder's mark will cover it
            self._submit()
        self.window.append((None, rel))
        while self.window and (self.window[0][0] is None or self.window[0][0].done()):
            self._take_oldest()

    def _set_cursor(self, rel: str) -> None:
        if self.buffer.changes or time.monotonic() - self.buffer.since > 1.0:
            self.buffer.cursor = (self.path, 1, self.root.file_path(rel))

    def _take_oldest(self) -> None:
        future, rel = self.window.popleft()
        if future is None:
            self._set_cursor(rel)
            return
        work = 0
        for job, outcome in future.result():
            self._store_outcome(job, outcome)
            work += min(job.found.size, 3 * self.plan.sample_size) + STAT_WORK
        self.permits.note(work)
        self.buffer.flush_if_due()

    def _drain(self) -> None:
        """Everything submitted is taken into the buffer."""
        self._submit()
        while self.window:
            self._take_oldest()

    def _settle(self) -> None:
        """At the end, or when the scan is cut short: keep what is done."""
        if self.control.keep_going():
            self._drain()
        else:
            self.chunk = []
            while self.window:
                self._take_oldest()
        self.buffer.flush()

    def _store_outcome(self, job, outcome) -> None:
        self.linked.pop(job.found.inode_key, None)
        self.stats.opened += 1
        self.stats.last_progress = time.monotonic()
        if isinstance(outcome, FileChanging):
            self._changing(job)
        elif isinstance(outcome, FileNotFoundError):
            return
        elif isinstance(outcome, OSError):
            wait = retry_time(self.cache, job.path, "read", self.clock()) - self.clock()
            self._give_up(job, error_class(outcome), error_text(outcome), wait)
        else:
            self._hashed(job, outcome)

    def _hashed(self, job, result) -> None:
        self.stats.hashed += 1
        self.stats.data_bytes += min(job.found.size, 3 * self.plan.sample_size)
        facts = Facts(result.algo, result.sample_size, result.sample_hash, result.full_hash,
                      result.hashed_at)
        known = job.known
        same = known is not None and known.sample_hash == facts.sample_hash
        if same and (known.inode_key, known.ctime) == (job.found.inode_key, job.found.ctime):
            racy = abs(facts.hashed_at - job.found.mtime) < RACY_S
            self.buffer.add(Confirmed(job.path, job.found.inode_key, facts.hashed_at, racy))
        elif same:
            self._put(job, facts._replace(full_hash=facts.full_hash or known.full_hash), known)
        else:
            self._put(job, facts)
        if job.found.nlink > 1:
            self.buffer.recent[job.found.inode_key] = facts
        for twin in job.twins:
            self._put(twin, facts)

    def _put(self, job, facts, content=None) -> None:
        """Note the file with these facts; `content` gives ffprobe's answer where it is the same."""
        found = job.found
        racy = facts is not None and abs(facts.hashed_at - found.mtime) < RACY_S
        probed = bool(content is not None and content.probed and job.kind == "video")
        self.buffer.add(PutFile(
            self.root.id, job.folder_id, job.path, job.rel, found.size, found.mtime, found.ctime,
            found.inode_key, job.kind, job.reason, facts, racy, job.moved_from,
            content.metadata if probed else None, probed, job.fresh))

    def _changing(self, job) -> None:
        """It was written to while it was read: one more try now, then again with the next scan."""
        try:
            again = next(iter(find_files(SingleFile(job.found.native,
                                                    self.plan.follow_symlinks),
                                         [os.path.basename(job.found.native)])), None)
        except OSError:
            again = None
        if again is None or type(again) is FileProblem:
            return
        job.found = again
        job.known = None
        outcome = self._hash_one(again)
        if isinstance(outcome, (FileChanging, OSError)):
            self._give_up(job, "changing", "it was being written to while it was read", 0)
        else:
            self._hashed(job, outcome)

    def _give_up(self, job, failure_class: str, message: str, retry_in_s: float) -> None:
        """Catalogue the file without hashes and note why."""
        self.stats.errors += 1
        for each in [job, *job.twins]:
            if not each.retold:
                self._put(each, None)
            self.buffer.add(Failure(self.root.id, each.path, "read", each.found.inode_key,
                                    failure_class, message,
                                    next_try=self.clock() + retry_in_s))

    def _look_again(self) -> None:
        """Files hashed within 2 s of their last change could have changed unseen: look once more,
        when 2 s have passed (git calls such entries racy).
        """
        self._drain()
        self.buffer.flush()
        after = ""
        waited = False
        while self.control.keep_going():
            rows = self.cache.waiting("racy", self.root.id, after, 500)
            if not rows:
                break
            if not waited:
                self.control.sleep(RACY_S + 0.05)
                waited = True
            after = rows[-1][0]
            for row in rows:
                self._look_again_at(row[0])
            self._drain()
            self.buffer.flush()

    def _look_again_at(self, path: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            native = to_native(path)
            folder, name = os.path.split(native)
            for found in find_files(SingleFile(native, self.plan.follow_symlinks), [name]):
                known = self.cache.facts_at(path)
                if type(found) is FileProblem or known is None:
                    return
                folder_id = self.cache.folder_of(path)
                kind, reason = self.plan.kind_of(found.name)
                job = HashJob(found, folder_id, path, self.root_rel(path), kind, reason)
                if same_version(known.inode_key, found.inode_key):
                    job.known = known
                self._read(job)


class SingleFile:
    """The folder of one file, as find_files wants it."""

    __slots__ = ("native", "rel", "follow_symlinks")

    def __init__(self, native: str, follow_symlinks: bool):
        self.native = os.path.dirname(native)
        self.rel = ""
        self.follow_symlinks = follow_symlinks


class NamesAsText:
    """Whether a text name is among native names sorted by their text."""

    def __init__(self, names: list):
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> str:
        return to_text(self.names[index])

    def has(self, name: str) -> bool:
        at = bisect.bisect_left(self, name)
        return at < len(self.names) and self[at] == name


def facts_of_content(content) -> Facts:
    return Facts(content.hash_algo, content.hash_sample_size, content.sample_hash,
                 content.full_hash, content.last_hashed_at or 0.0)
