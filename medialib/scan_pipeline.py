"""Pass 1: walk a root, skip what is unchanged, have the rest read, note what is gone.

The same loop serves the agent and the host's own disks; both write to an AgentCache. Results are
taken in the order of the walk, so that the cursor is always a place up to which all is stored.
"""

from __future__ import annotations

import errno
import itertools
import os
import time

from .cache_changes import (
    ClearFailure,
    Failure,
    GoneFile,
    GoneFolder,
    PutFile,
    PutFolder,
)
from .hash_window import (
    CAREFUL_FILES,
    RACY_S,
    HashWindow,
    facts_of_content,
    look_at_file,
)
from .late import uuid
from .mounts import mount_points
from .root_check import check_still_mounted, is_renumbered, look_at_root
from .root_volume import RootOffline
from .scan_buffer import ChangeBuffer, error_class, error_text
from .scan_common import name_of, parent_of, same_version, to_native, to_text
from .scan_moves import MoveFinder
from .scan_seal import FolderSeals
from .walk import FileProblem, files_at_rest, find_files, walk_folders

BIG_FOLDER = 2000
BIG_FOLDER_PART = 1000
CHILDREN_KEPT = 2000


class RootScan:
    """One root in pass 1. `on_stored()` is called after each commit, so that delivery wakes up.

    known_at_host: how many files the host has of this root (see look_at_root)
    """

    def __init__(self, cache, path: str, plan, stats, control, *, other_roots=(), on_stored=None,
                 clock=time.time, known_at_host: int = 0):
        self.cache = cache
        self.path = path
        self.native = to_native(path)
        self.plan = plan
        self.stats = stats
        self.control = control
        self.other_roots = other_roots
        self.clock = clock
        self.known_at_host = known_at_host
        self.buffer = ChangeBuffer(cache, plan.batch_size, on_stored or list)
        self.new_folders = {}
        self.next_folders = {}  # {rel: KnownFolder} of those that the walk comes to soon
        self.ledger = {}
        self.inodes_stable = True
        self.rel_start = 0  # where relative paths begin in those of the index
        self.folder_errors = 0
        self.info = None
        self.root = None
        self.is_empty = False
        self.all_new = False  # no folder of this root is known yet

    # -- the whole root --------------------------------------------------------------------------

    def run(self) -> bool:
        """Scan the root. True if it came to the end; RootOffline if it cannot be scanned."""
        started = self.clock()
        self.info, self.is_empty = look_at_root(self.cache, self.path, self.known_at_host)
        self.root = self.cache.roots.identify(self.path, self.info)
        self.cache.roots.save(self.root, state="scanning", reason=None)
        self.rel_start = len(self.root.prefix())
        self.first = self.cache.is_empty()
        self.inodes_stable = self.info.inodes_stable and (
            self.first or not is_renumbered(self.cache, self.root))
        careful = CAREFUL_FILES if self.cache.get_meta("unclean") == "1" else 0
        self.cache.set_meta("unclean", "1")
        self.seals = FolderSeals(self.cache, self.buffer, self.plan)
        with HashWindow(self, self.info, careful=careful) as self.window:
            self.moves = MoveFinder(self, self.window)
            self._walk_all()
            self._look_again()
        if not self.control.keep_going():
            return False
        check_still_mounted(self.native, self.info)
        self._note_end(started)
        return True

    def _walk_all(self) -> None:
        """From where the last scan was interrupted to the end, then the part before it."""
        cursor = self.cache.cursor(self.path, 1)
        if cursor is not None and cursor.startswith(self.root.prefix()):
            cursor = self.root_rel(cursor)
            self._walk(after=cursor)
            self._walk(until=cursor)
        else:
            self.all_new = self.first and not self.cache.roots.folders(self.root.id, 0, 1)
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
        self.cache.forget_lost_failures(self.root.id)
        scan = {"scan_id": str(uuid.uuid4()), "started": started, "ended": self.clock(),
                "ledger": self.ledger, "errors": self.folder_errors,
                "accepted_empty": bool(self.root.accept_empty)}
        self.cache.roots.finish(self.root, scan, self.clock())
        self.cache.set_meta("unclean", "0")

    # -- one folder ------------------------------------------------------------------------------

    def _folder(self, listing) -> None:
        self._account(listing.counts)
        path = self.stats.current_path = self.root.file_path(listing.rel)
        known = self._known_folder(listing.rel)
        if listing.error is not None:
            self._folder_error(listing)
        elif self.cache.failure(path, "list") is not None:
            self.buffer.add(ClearFailure(path, "list"))
        prefix = path + "/" if listing.rel else path
        if known is None:
            self._compare_rows(listing, self._new_folder(listing.rel), True, prefix, None)
        else:
            seal = self.seals.seal(listing)
            if seal is not None and seal == known.seal and prefix not in self.moves.left:
                self._unchanged(len(listing.names))
            else:
                self._compare_rows(listing, known.id, False, prefix, seal)
            if known.has_children and listing.error is None:
                self._gone_folders(listing, known.id)
        self.window.mark(listing.rel)

    def _compare_rows(self, listing, folder_id: int, is_new: bool, prefix: str, seal) -> None:
        rows = [] if is_new else self.seals.rows_at_rest(folder_id, BIG_FOLDER + 1)
        if len(listing.names) > BIG_FOLDER or len(rows) > BIG_FOLDER:
            self._compare_big(listing, folder_id, prefix)
        elif rows and listing.error is None and files_at_rest(listing, prefix) == set(rows):
            self._unchanged(len(rows))
            if seal is not None:
                self.seals.keep(folder_id, seal, rows)
        else:
            self._compare_small(listing, folder_id, prefix, bool(rows))

    def _unchanged(self, files: int) -> None:
        self.stats.seen += files
        self.stats.unchanged += files
        self._account({"unchanged": files})

    def _account(self, counts: dict) -> None:
        """Everything that is met is in the ledger: first what the listings hold, by LEDGER_KEYS,
        then what became of the files: catalogued, unchanged, vanished (since the listing) or
        unreadable (not even to be looked at). `unlisted` are folders whose listing failed.
        """
        self.stats.add_ledger(counts)
        for key, count in counts.items():
            self.ledger[key] = self.ledger.get(key, 0) + count

    def _known_folder(self, rel: str):
        known = self.next_folders.pop(rel, None)
        if known is None and not self.all_new:
            known = self.cache.roots.known_folder(self.root.id, rel)
        return known

    def _new_folder(self, rel: str) -> int:
        """The number of a folder that was not known."""
        roots, parent = self.cache.roots, None
        if rel:
            parent_rel = parent_of(rel)
            parent = self.new_folders.get(parent_rel)
            if parent is None:
                parent = roots.folder_id(self.root.id, parent_rel)
        folder_id = roots.new_folder_id()
        self._remember_new(rel, folder_id)
        self.buffer.add(PutFolder(folder_id, self.root.id, parent, rel))
        return folder_id

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

    def set_cursor(self, rel: str) -> None:
        if self.buffer.changes or time.monotonic() - self.buffer.since > 1.0:
            self.buffer.cursor = (self.path, 1, self.root.file_path(rel))

    def _folder_error(self, listing) -> None:
        check_still_mounted(self.native, self.info)
        self.folder_errors += 1
        self.stats.errors += 1
        self._account({"unlisted": 1})
        self.buffer.add(Failure(self.root.id, self.root.file_path(listing.rel), "list", "",
                                error_class(listing.error), error_text(listing.error)))

    def _compare_small(self, listing, folder_id: int, prefix: str, has_rows: bool) -> None:
        """Something in this folder is not as it was."""
        known = self.cache.folder_files(folder_id) if has_rows else {}
        self._compare(listing, listing.names, folder_id, prefix, known)
        for name in listing.held:  # a followed link that leads nowhere just now
            known.pop(prefix + name, None)
        if known and listing.error is None:
            self._gone_files(list(known))

    def _compare(self, listing, names, folder_id: int, prefix: str, known: dict) -> None:
        """Take each file's row out of `known`; whatever is new or changed is looked into."""
        algo, sample_size, stats = self.plan.algo, self.plan.sample_size, self.stats
        unchanged_before, catalogued = stats.unchanged, 0
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
            unchanged = stats.unchanged
            self._consider(found, folder_id, path, row)
            catalogued += stats.unchanged == unchanged
        self._account({"catalogued": catalogued, "unchanged": stats.unchanged - unchanged_before})

    def _compare_big(self, listing, folder_id: int, prefix: str) -> None:
        """The same for a folder of any size: rows are fetched in chunks of its sorted names."""
        names = iter(listing.names)
        for part in iter(lambda: list(itertools.islice(names, BIG_FOLDER_PART)), []):
            known = self.cache.files_at(self.root.id,
                                        [prefix + to_text(name) for name in part])
            self._compare(listing, part, folder_id, prefix, known)
            self.buffer.flush_if_due()
            if not self.control.keep_going():
                return
        if listing.error is not None:
            return
        self.window.drain()
        present, held = listing.names, set(listing.held)
        if type(present) is list:
            present = frozenset(map(to_text, present))
        for part in self.cache.folder_paths(folder_id):
            gone_names = ((path, path.rpartition("/")[2]) for path, _ in part)
            self._gone_files([path for path, name in gone_names
                              if name not in held and name not in present])

    def _problem(self, problem, folder_id: int, path: str, known: dict) -> None:
        """A name that was listed but could not be looked at: its row stays as it is."""
        known.pop(path, None)
        if problem.error.errno == errno.ENOENT:
            self._account({"vanished": 1})
            return  # the next listing will tell
        self._account({"unreadable": 1})
        self.stats.errors += 1
        self.buffer.add(Failure(self.root.id, path, "read", "", error_class(problem.error),
                                error_text(problem.error)))

    def _consider(self, found, folder_id: int, path: str, row) -> None:
        kind, reason = self.plan.kind_of(found.name)
        job = PutFile(found, self.root.id, folder_id, path, path[self.rel_start:], kind, reason)
        self.stats.count_kind(kind)
        if row is None or not same_version(row[1], found.inode_key, self.inodes_stable):
            job.fresh = row is None and self.first
            if not self.moves.find(job):
                self.window.read(job)
        elif not row[3]:
            self._read_unhashed(job, row)
        elif row[4] != self.plan.algo or row[5] != self.plan.sample_size:
            self._read_again(job)
        elif not same_version(row[1], found.inode_key):
            self._renumber(job)
        elif row[2] != found.ctime or row[6]:
            job.known = self.cache.facts_at(path)
            self._read_again(job)
        else:
            self.stats.unchanged += 1  # only the device number is another: the same file

    def _read_again(self, job) -> None:
        if not self.window.join_twin(job):
            self.window.read(job)

    def root_rel(self, path: str) -> str:
        return path[self.rel_start:]

    def _renumber(self, job) -> None:
        """The same path, size and time where inodes do not last: nothing is read."""
        self.stats.unchanged += 1
        if self.info.inodes_stable:
            known = self.cache.facts_at(job.path)
            if known is not None and known.hashed:
                self.window.put(job, facts_of_content(known), known)

    def _read_unhashed(self, job, row) -> None:
        """A file that could not be read before: again when it changed or its time has come."""
        failure = self.cache.failure(job.path, "read")
        if failure is not None and row[2] == job.found.ctime:
            same = failure[0] == job.found.inode_key
            if same and (failure[3] or 0) > self.clock() and failure[1] != "unfinished":
                self.stats.unchanged += 1
                return
        job.retold = row[1] == job.found.inode_key and row[2] == job.found.ctime
        self._read_again(job)

    # -- what is gone ----------------------------------------------------------------------------

    def _gone_files(self, paths: list) -> None:
        if paths:
            check_still_mounted(self.native, self.info)
        for path in paths:
            self.buffer.add(GoneFile(self.root.id, path))
            self.stats.removed += 1

    def _gone_folders(self, listing, folder_id: int) -> None:
        children = self.cache.roots.child_folders(folder_id)
        if not children:
            return
        present = set(listing.subfolders)
        present.update(name for name in listing.held if not self._is_nested_root(listing, name))
        for child in children:
            if name_of(child.rel) not in present:
                check_still_mounted(self.native, self.info)
                self._gone_tree(child.id, child.rel)
            elif len(children) <= CHILDREN_KEPT:
                self.next_folders[child.rel] = child

    def _is_nested_root(self, listing, name: str) -> bool:
        """Files below a folder that has become a root of its own are catalogued there now."""
        path = os.path.join(listing.native, to_native(name))
        return os.path.realpath(path) in self.other_roots

    def _gone_tree(self, folder_id: int, rel: str) -> None:
        """A folder that its parent, listed to the end, no longer holds: all below it is gone."""
        waiting = [(folder_id, rel)]
        while waiting:
            current, rel = waiting.pop()
            waiting.extend(child[:2] for child in self.cache.roots.child_folders(current))
            self.buffer.add(ClearFailure(self.root.file_path(rel), "list"))
            for part in self.cache.folder_paths(current):
                for path, root_id in part:
                    self.buffer.add(GoneFile(root_id, path))
                self.stats.removed += len(part)
            self.buffer.add(GoneFolder(current))
            if len(self.buffer.changes) > 20 * self.plan.batch_size:
                # A huge tree: what is stored so far is right on its own.
                self.window.drain()

    # -- a second look ---------------------------------------------------------------------------

    def _look_again(self) -> None:
        """Files hashed within 2 s of their last change could have changed unseen: look once more,
        when 2 s have passed (git calls such entries racy).
        """
        self.window.drain()
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
            self.window.drain()

    def _look_again_at(self, path: str) -> None:
        found = look_at_file(to_native(path), self.plan.follow_symlinks)
        known, folder_id = self.cache.facts_at(path), self.cache.folder_of(path)
        if found is None or known is None:
            return
        kind, reason = self.plan.kind_of(found.name)
        job = PutFile(found, self.root.id, folder_id, path, self.root_rel(path), kind, reason)
        if same_version(known.inode_key, found.inode_key, self.inodes_stable):
            job.known = known
        self.window.read(job)
