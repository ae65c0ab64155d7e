"""Where the content of a file that is new at its path was known before: a move, or a hard link."""

from __future__ import annotations

import errno
import os

from .hash_window import facts_of_content
from .root_check import device_near, device_of
from .scan_common import inode_key, same_version, to_native


class MoveFinder:
    """Recognises files of one RootScan by their identity, so that they need not be read."""

    def __init__(self, scan, window):
        self.cache = scan.cache
        self.root = scan.root
        self.info = scan.info
        self.plan = scan.plan
        self.stats = scan.stats
        self.first = scan.first
        self.inodes_stable = scan.inodes_stable
        self.window = window
        self.left = set()  # folders, with "/", that a row was taken from, or will be with a commit
        self.same_disk = {}  # {root id: whether it is there now, on this file system}

    def find(self, job) -> bool:
        """Whether this content is known under another path; the outcome is noted then."""
        if self.first and job.found.nlink < 2:
            return False
        same = self.cache.same_content(job.found.inode_key) if self.inodes_stable else ()
        for content in same:
            if not self._on_this_disk(content, job):
                continue
            moved = not self._still_there(content.path, job)
            if moved and self._may_move(content, job):
                job.moved_from = content.path
                self.left.add(content.path[:content.path.rfind("/") + 1])
            # Under a name that is still there its row may be out of date as well: ctime tells.
            usable = moved or content.ctime == job.found.ctime
            if usable and content.hashed and content.hash_algo == self.plan.algo \
                    and content.hash_sample_size == self.plan.sample_size:
                self.stats.moved += moved
                self.window.put(job, facts_of_content(content), content)
                return True
        return self.window.join_twin(job)

    def _on_this_disk(self, content, job) -> bool:
        """Inode numbers mean something on one file system only, and in one subvolume of it."""
        if content.inode_key == job.found.inode_key:
            return True
        other = self.cache.roots.find(content.root_id)
        if other is None or (other.id != self.root.id and (
                other.volume is None or other.volume != self.root.volume)):
            return False
        # The file system may have another number today than when the content was seen. A snapshot
        # has the inodes of its original, and their ctime.
        return content.ctime == job.found.ctime or (
            device_near(content.path) == device_in_key(job.found.inode_key))

    def _may_move(self, content, job) -> bool:
        """A row may be taken from this root, or from another one that is there now."""
        if content.root_id == self.root.id:
            return content.path != job.path
        if content.root_id not in self.same_disk:
            other = self.cache.roots.find(content.root_id)
            self.same_disk[content.root_id] = other is None or (
                not other.parked and device_of(other.path) == self.info.device)
        return self.same_disk[content.root_id]

    def _still_there(self, path: str, job) -> bool:
        if path == job.path:
            return False
        try:
            seen = inode_key(os.lstat(to_native(path)))
        except ValueError:
            return False
        except OSError as error:
            unknown = error.errno not in (errno.ENOENT, errno.ENOTDIR)
            return unknown and job.found.nlink > 1
        return same_version(seen, job.found.inode_key)


def device_in_key(key: str) -> int:
    return int(key.rpartition(":")[2])
