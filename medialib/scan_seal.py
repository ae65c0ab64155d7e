"""A folder's seal: what its files looked like when all of them were as the index says.

A scan that finds the same seal again need not read the folder's rows, which takes as long as the
walk itself. Every change of such a row breaks the seal, see IndexWriter.
"""

from __future__ import annotations

import struct

from .cache_changes import SealFolder
from .late import hashlib
from .walk import FolderListing

SEAL_BYTES = 16
STAMP = struct.Struct("<QqqQ").pack


class FolderSeals:
    """The seals of one scan; with another hash algorithm or sample size they would be others."""

    def __init__(self, cache, buffer, plan):
        self.cache = cache
        self.buffer = buffer
        self.plan = plan
        self.recipe = f"{plan.algo}:{plan.sample_size}"

    def seal(self, listing: FolderListing) -> bytes | None:
        """A digest of the names, sizes, times and inodes in a listing. None if it is incomplete, or
        has names that are still to be looked at.
        """
        stats, names = listing.stats, listing.names
        if listing.error is not None or len(stats) != len(names):
            return None
        try:
            stamps = [STAMP(seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino)
                      for seen in map(stats.__getitem__, names)]
        except struct.error:  # a time out of all bounds
            return None
        stamps.append("\0".join([self.recipe, *names]).encode("utf-8", "surrogatepass"))
        return hashlib.blake2b(b"".join(stamps), digest_size=SEAL_BYTES).digest()

    def rows_at_rest(self, folder_id: int, at_most: int) -> list:
        """See AgentCache.at_rest and walk.files_at_rest."""
        return self.cache.at_rest(folder_id, self.plan.algo, self.plan.sample_size, at_most)

    def keep(self, folder_id: int, seal: bytes, rows: list) -> None:
        """Have the next scan find this seal, as all `rows` of the folder are like its files. What
        waits to be stored may be about one of them: a file that moved away, say.
        """
        if self.buffer.changes:
            self.buffer.flush()
            if self.rows_at_rest(folder_id, len(rows) + 1) != rows:
                return
        self.buffer.seal(SealFolder(folder_id, seal))
