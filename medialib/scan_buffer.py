"""What a scan found, on its way into the cache, and how failures are put into words."""

from __future__ import annotations

import errno
import time

from .cache_changes import SealFolder
from .scan_common import to_text

FLUSH_S = 2.0
MOST_ATTEMPTS = 3
RETRY_FIRST_S = 3600.0
RETRY_MOST_S = 7 * 86400.0


class ChangeBuffer:
    """Changes on their way into the cache: stored when there are enough or after 2 s."""

    def __init__(self, cache, batch_size: int, on_stored):
        self.cache = cache
        self.batch_size = batch_size
        self.on_stored = on_stored
        self.generation = cache.generation
        self.changes = []
        self.seals = []  # of folders that were found at rest before any of `changes`
        self.recent = {}  # {inode_key: HashResult} of hard links that are not stored yet
        self.cursor = None
        self.since = time.monotonic()

    def add(self, change) -> None:
        self.changes.append(change)

    def seal(self, seal: SealFolder) -> None:
        """The rows of this folder, in which nothing that waits here may have a part, are as found.
        """
        self.seals.append(seal)

    def flush_if_due(self) -> None:
        waiting = max(len(self.changes), len(self.seals))
        if waiting >= self.batch_size or time.monotonic() - self.since >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        self.since = time.monotonic()
        if not self.changes and not self.seals and self.cursor is None:
            return
        changes, seals, cursor = self.changes, self.seals, self.cursor
        self.changes, self.seals, self.cursor, self.recent = [], [], None, {}
        self.cache.commit(seals + changes, cursor, self.generation)
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
