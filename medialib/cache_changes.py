"""What a scan tells the cache and what the cache tells a scan: plain values, no SQL.

`AgentCache.commit` takes lists of the first kind, in order; each is one small change. They are told
apart by their `verb`, so that a cache from another copy of this program understands them too.
"""

from __future__ import annotations

from typing import NamedTuple


class PutFile:
    """A file as it is now, carried from the walk to the cache; stored with the facts (a HashResult)
    that reading it gave. Facts and metadata of another identity at this path are dropped.

    found        has size, mtime, ctime and inode_key: a FoundFile of the walk
    known        the KnownContent that a second look should confirm
    fresh        the path cannot be in the index yet
    retold       the host has this very row already, without hashes
    twins        other names of the same inode, which share what reading it gives
    """

    verb = "put"
    facts = None
    racy = False
    moved_from = None
    metadata = None
    probed = False
    known = None
    fresh = False
    retold = False
    twins = ()

    def __init__(self, found, root_id: int, folder_id: int, path: str, rel: str, kind: str,
                 reason: str | None):
        self.found = found
        self.root_id = root_id
        self.folder_id = folder_id
        self.path = path
        self.rel = rel
        self.kind = kind
        self.reason = reason


class PutFolder(NamedTuple):
    """A folder seen for the first time; its number was given by RootBook.new_folder_id."""

    verb = "put_folder"
    id: int
    root_id: int
    parent_id: int | None
    rel: str


class SealFolder(NamedTuple):
    """All files of a folder were found as the index says; `seal` is what they looked like."""

    verb = "seal_folder"
    id: int
    seal: bytes


class GoneFolder(NamedTuple):
    """A folder that is gone; its files are reported by GoneFile of their own."""

    verb = "gone_folder"
    id: int


class GoneFile(NamedTuple):
    """A file that its folder, listed to the end, no longer holds."""

    verb = "gone"
    root_id: int
    path: str


class FullHash(NamedTuple):
    """The full hash of a file that had only a sample hash, if it is still the same version."""

    verb = "full_hash"
    path: str
    inode_key: str
    full_hash: str


class Described(NamedTuple):
    """ffprobe's answer (JSON text) for a file, if it is still the same version."""

    verb = "described"
    path: str
    inode_key: str
    metadata: str


class Failure(NamedTuple):
    """Something that could not be done with one file. `tool` is ffprobe's version for its stage."""

    verb = "failed"
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

    verb = "clear_failure"
    path: str
    stage: str


class Confirmed(NamedTuple):
    """A second look found the same content: nothing that the host should hear of."""

    verb = "confirmed"
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
