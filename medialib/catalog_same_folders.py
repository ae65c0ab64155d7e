"""Folders that hold the same files as another one: a copied tree is one row, not ten thousand.

Only folders whose totals equal another's are looked into. What is compared is an order-free sum
over the contents of all present files below, so that renamed files change nothing.
"""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass

from .catalog import Catalog
from .catalog_duplicates import DuplicateMember
from .catalog_filter import FilterError
from .catalog_roots import read_roots
from .catalog_rows import rel_of_key
from .catalog_search import search_words, text_matches
from .catalog_tokens import decode_token, encode_token, page_limit
from .late import hashlib

SAME_FOLDERS_TIME_S = 20.0
SAME_FOLDERS_FRESH_S = 20.0  # while a scan runs, the answer may be this old
SAME_FOLDERS_KEPT = 1000
SAME_FOLDERS_IN_GROUP = 50
SAME_SUM_MOD = 1 << 64
SAME_TIME_ROWS = 1000  # between two looks at the clock
FOLDERS_BY_SIZE_SQL = (
    "SELECT tree_bytes, tree_files, root, key FROM folder WHERE tree_bytes > 0"
    " ORDER BY tree_bytes DESC, tree_files DESC, root, key"
)
TREE_SOURCE = (
    "FROM folder d CROSS JOIN file f ON f.folder = d.id AND f.state = 0"
    " WHERE d.root = ? AND d.key >= ? AND d.key < ?"
)
CONTENTS_SQL = (
    "SELECT f.id, f.size, f.algo, f.sample_size, f.sample_hash, f.full_hash, f.flags, f.ino, f.dev "
    + TREE_SOURCE
)
# Each stretch of bytes on a disk once, whatever its names.
PLACES_SQL = (
    "SELECT ? AS disk, {dev} AS dev, CASE WHEN f.ino THEN f.ino ELSE -f.id END AS ino,"
    " f.size AS size " + TREE_SOURCE
)


@dataclass(frozen=True)
class FolderContents:
    """Sums over the files of a tree: of full hashes (None if one is unknown), of sample hashes, and
    of where the bytes lie: equal for one tree that is seen twice.
    """

    full: int | None
    sample: int
    place: int


class LookedLongEnough(Exception):
    """The time for one look through the catalogue is over."""


def content_number(*parts) -> int:
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def tree_range(root, key: bytes) -> tuple:
    return root.id, key, key + b"\x01" if key else b"\xff"


def read_contents(db, root, key: bytes, end: float) -> FolderContents | None:
    """None when a file of the tree has no hash yet: nothing can be said of it then. `end` is the
    monotonic time at which LookedLongEnough is raised.
    """
    full, sample, place = 0, 0, 0
    for number, row in enumerate(db.execute(CONTENTS_SQL, tree_range(root, key))):
        if number % SAME_TIME_ROWS == 0 and time.monotonic() > end:
            raise LookedLongEnough
        member = DuplicateMember(*row, root.agent, root.volume)
        place += content_number(*member.copy_key())
        if not member.size:
            sample, full = sample + 1, None if full is None else full + 1
            continue
        if member.sample_hash is None:
            return None
        whole = member.full()
        full = None if full is None or whole is None else (
            full + content_number(member.size, member.algo, whole.hex())) % SAME_SUM_MOD
        sample += content_number(member.size, member.algo, member.sample_size,
                                 member.sample_hash.hex())
    return FolderContents(full, sample % SAME_SUM_MOD, place % SAME_SUM_MOD)


def keys_above(key: bytes):
    """The keys of the folders above this one, the root's own first."""
    if key:
        yield b""
    parts = key.split(b"\0")
    for count in range(1, len(parts)):
        yield b"\0".join(parts[:count])


class SameFoldersSearch:
    """One look through the catalogue; `groups` is complete unless `approximate`."""

    def __init__(self, db):
        self.db = db
        self.roots = {root.id: root for root in read_roots(db)}
        self.agents = {number: {"id": agent_id, "name": name} for number, agent_id, name
                       in db.execute("SELECT id, agent_id, name FROM agent")}
        self.found: set = set()  # (root, key) of all folders that are in a group
        self.groups: list = []
        self.approximate = False
        self.end = time.monotonic() + SAME_FOLDERS_TIME_S

    def run(self) -> list:
        rows = self.db.execute(FOLDERS_BY_SIZE_SQL)
        try:
            for (size, files), equal in itertools.groupby(rows, key=lambda row: row[:2]):
                self._look_into(size, files, self._topmost(equal))
        except LookedLongEnough:
            self.approximate = True
        self.groups.sort(key=lambda group: (-group["reclaimable"], -group["potential"]))
        return self.groups

    def _topmost(self, equal) -> list:
        """(root, key) without folders whose only content is another one of the list."""
        kept: list = []
        seen: set = set()
        for _, _, root_id, key in equal:
            if not any((root_id, above) in seen for above in keys_above(key)):
                kept.append((root_id, key))
            seen.add((root_id, key))
        return kept[:SAME_FOLDERS_IN_GROUP]

    def _look_into(self, size: int, files: int, folders: list) -> None:
        """Groups among folders of equal totals; those below groups that are known say nothing."""
        if len(folders) < 2 or all(self._is_below_found(*folder) for folder in folders):
            return
        by_sample: dict = {}
        for root_id, key in folders:
            contents = read_contents(self.db, self.roots[root_id], key, self.end)
            if contents is not None:
                by_sample.setdefault(contents.sample, []).append((root_id, key, contents))
        for alike in by_sample.values():
            by_full: dict = {}
            for folder in alike:
                by_full.setdefault(folder[2].full, []).append(folder)
            unproven = by_full.pop(None, [])
            proven = [equal for equal in by_full.values() if len(equal) > 1]
            for equal in proven:
                self._add(size, files, equal, "confirmed")
            if unproven and not proven:
                self._add(size, files, alike, "candidate")

    def _is_below_found(self, root_id: int, key: bytes) -> bool:
        return any((root_id, above) in self.found for above in keys_above(key))

    def _add(self, size: int, files: int, alike: list, state: str) -> None:
        places = {contents.place for _, _, contents in alike}
        if len(alike) < 2 or len(places) < 2:
            return
        if len(self.groups) == SAME_FOLDERS_KEPT:
            raise LookedLongEnough
        gain = self._gain(alike)
        self.found.update((root_id, key) for root_id, key, _ in alike)
        self.groups.append({
            "files": files, "bytes": size, "state": state, "copies": len(places),
            "reclaimable": gain if state == "confirmed" else 0, "potential": gain,
            "folders": [self._shown(root_id, key) for root_id, key, _ in alike],
        })

    def _gain(self, alike: list) -> int:
        """Bytes on the disks that go when only the smallest of the trees stays."""
        parts = [self._places(root_id, key) for root_id, key, _ in alike]
        together = " UNION ".join(statement for statement, _ in parts)
        values = [value for _, own in parts for value in own]
        taken = self.db.execute(f"SELECT coalesce(sum(size), 0) FROM ({together})",
                                values).fetchone()[0]
        kept = min(self.db.execute(
            f"SELECT coalesce(sum(size), 0) FROM (SELECT DISTINCT * FROM ({statement}))",
            own).fetchone()[0] for statement, own in parts)
        return taken - kept

    def _places(self, root_id: int, key: bytes) -> tuple:
        root = self.roots[root_id]
        disk = f"agent {root.agent}" if root.volume is None else f"volume {root.volume}"
        statement = PLACES_SQL.format(dev="f.dev" if root.volume is None else "0")
        return statement, (disk, *tree_range(root, key))

    def _shown(self, root_id: int, key: bytes) -> dict:
        root = self.roots[root_id]
        return {"agent": self.agents[root.agent], "root": root.path,
                "path": root.path_of(rel_of_key(key)),
                "state": "offline" if root.state == "offline" else "present"}


class SameFolders:
    """POST /api/duplicate_folders. The last look is kept until the catalogue has changed."""

    def __init__(self, catalog: Catalog):
        self.catalog = catalog
        self._lock = threading.Lock()  # guards the last look, and lets one look at a time run
        self._seq: int | None = None
        self._looked_at = 0.0
        self._last: list = []
        self._approximate = False

    def page(self, body: dict) -> dict:
        limit, after = page_limit(body, 50), body.get("after")
        first = decode_token(after, 1)[0] if after is not None else 0
        if type(first) is not int or first < 0:
            raise FilterError("after must be the next of an earlier answer to the same question")
        wanted = self._wanted(body.get("filter") or {})
        groups = [group for group in self._groups() if wanted(group)]
        more = len(groups) > first + limit
        return {"groups": groups[first:first + limit], "approximate": self._approximate,
                "next": encode_token(first + limit) if more else None}

    def _groups(self) -> list:
        with self._lock:
            age = time.monotonic() - self._looked_at
            seq = self.catalog.seq
            if self._seq is None or (seq != self._seq and age > SAME_FOLDERS_FRESH_S):
                with self.catalog.reader() as db:
                    search = SameFoldersSearch(db)
                    self._last, self._approximate = search.run(), search.approximate
                self._seq, self._looked_at = seq, time.monotonic()
            return self._last

    def _wanted(self, filter_):
        """The test of a group for a filter on `agent` and `q`; others do not fit folders."""
        if not isinstance(filter_, dict):
            raise FilterError("filter must be an object")
        agents, text = filter_.get("agent") or [], filter_.get("q") or ""
        agents = [agents] if isinstance(agents, str) else agents
        if not isinstance(agents, list) or not isinstance(text, str):
            raise FilterError("filter.agent must be an id or a list of ids and filter.q a text")
        words = search_words(text)

        def test(group: dict) -> bool:
            folders = group["folders"]
            return (not agents or any(folder["agent"]["id"] in agents for folder in folders)) and (
                any(text_matches(words, folder["path"]) for folder in folders))
        return test
