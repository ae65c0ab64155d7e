"""The agent's roots and folders: which disk is which root, and what each root holds in sum.

A root is a folder of a file system, known by (volume, volume_path) where the file system tells its
lasting identity and by its path otherwise. A disk that comes back under another path keeps its
rows; a disk whose path is taken by another one is parked until it comes back.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from .base import log
from .index_writer import KEEP_FORMER
from .mounts import CLONE_MARK
from .scan_common import DIGEST_MODULUS

ROOT_COLUMNS = (
    "id, path, parked, volume, volume_path, fs, device, state, reason, accept_empty, files, bytes,"
    " digest, end_due, scan_json, last_seen"
)


class CachedRoot:
    """One row of agent_root. `digest` is the sum of its files' row digests modulo 2**64."""

    id: int
    path: str
    parked: int
    volume: str | None
    volume_path: str | None
    fs: str | None
    device: int | None
    state: str
    reason: str | None
    accept_empty: int
    files: int
    bytes: int
    digest: int
    end_due: int
    scan_json: str | None
    last_seen: float | None

    def __init__(self, row):
        """`row` holds ROOT_COLUMNS in order."""
        vars(self).update(zip(ROOT_COLUMNS.split(", "), row))

    def prefix(self) -> str:
        """What its files' paths in agent_index begin with, before the relative path."""
        if self.parked:
            return f"@root{self.id}/"
        return self.path if self.path.endswith("/") else self.path + "/"

    def file_path(self, rel: str) -> str:
        return self.prefix() + rel

    def scan(self) -> dict:
        """What was noted of its last finished scan."""
        return json.loads(self.scan_json) if self.scan_json else {}


class KnownFolder(NamedTuple):
    """What a scan wants to know of a folder before it comes to it; see scan_seal."""

    id: int
    rel: str
    seal: bytes | None
    has_children: int


KNOWN_FOLDER_COLUMNS = (
    "id, rel, seal, EXISTS (SELECT 1 FROM agent_folder child WHERE child.parent_id = folder.id)"
    " FROM agent_folder folder"
)


class RootBook:
    """agent_root and agent_folder of one cache. Totals are changed only inside a commit."""

    def __init__(self, cache):
        self.cache = cache
        self.store = cache.store
        self._known: dict = {}
        self._changed: set = set()
        self._last_folder_id: int | None = None

    # -- roots -----------------------------------------------------------------------------------

    def find(self, root_id: int) -> CachedRoot | None:
        """The root, if there (still) is one of this number."""
        if root_id in self._known:
            return self._known[root_id]
        known = self.store.one("SELECT 1 FROM agent_root WHERE id = ?", (root_id,))
        return self.get(root_id) if known else None

    def get(self, root_id: int) -> CachedRoot:
        root = self._known.get(root_id)
        if root is None:
            row = self.store.one(f"SELECT {ROOT_COLUMNS} FROM agent_root WHERE id = ?", (root_id,))
            root = self._known[root_id] = self._from_row(row)
        return root

    def _from_row(self, row: tuple) -> CachedRoot:
        root = CachedRoot(row)
        root.digest = int(root.digest)
        return root

    def all(self) -> list:
        rows = self.store.rows("SELECT id FROM agent_root ORDER BY path")
        return [self.get(row[0]) for row in rows]

    def at_path(self, path: str) -> CachedRoot | None:
        row = self.store.one("SELECT id FROM agent_root WHERE path = ? AND parked = 0", (path,))
        return self.get(row[0]) if row else None

    def of_volume(self, volume: str | None, volume_path: str | None) -> CachedRoot | None:
        if volume is None:
            return None
        row = self.store.one("SELECT id FROM agent_root WHERE volume = ? AND volume_path = ?"
                             " ORDER BY parked LIMIT 1", (volume, volume_path or ""))
        return self.get(row[0]) if row else None

    def parked_at(self, path: str) -> list:
        """The roots that were at this path until another disk took it."""
        rows = self.store.rows("SELECT id FROM agent_root WHERE path = ? AND parked = 1"
                               " ORDER BY id", (path,))
        return [self.get(row[0]) for row in rows]

    def of_info(self, info) -> CachedRoot | None:
        """The root of this volume, under either of its names."""
        return self.of_volume(info.volume, info.volume_path) or self.of_volume(
            info.fsid, info.volume_path)

    def of_volume_or_clone(self, info) -> list:
        """Every root that has the volume's name, or was named after it as a clone."""
        clones = [f"{name}{CLONE_MARK}" for name in (info.volume, info.fsid)]
        rows = self.store.rows(
            "SELECT id FROM agent_root WHERE volume_path = ? AND (volume IN (?, ?)"
            " OR substr(volume, 1, ?) = ? OR substr(volume, 1, ?) = ?) ORDER BY id",
            (info.volume_path or "", info.volume, info.fsid, len(clones[0]), clones[0],
             len(clones[1]), clones[1]))
        return [self.get(row[0]) for row in rows]

    def identify(self, path: str, info) -> CachedRoot:
        """The root that `info` (a RootInfo of the folder now at `path`, not an empty one where
        another disk is expected) is; made if it is new. Moves and parks rows as needed.
        """
        root = self.of_info(info)
        if root is None:
            root = self.at_path(path)
            if root is not None and is_other_disk(root, info) and not is_replaced(root, info):
                self._park(root)
                root = None
        if root is None:
            return self._add(path, info)
        if root.parked or root.path != path:
            self.bring_to(root, path)
        self.save(root, volume=info.volume or root.volume, fs=info.fs, device=info.device,
                  volume_path=(info.volume_path if info.volume else root.volume_path) or "")
        return root

    def _add(self, path: str, info) -> CachedRoot:
        with self.store.atomic() as db:
            root_id = db.execute(
                "INSERT INTO agent_root (path, volume, volume_path, fs, device)"
                " VALUES (?, ?, ?, ?, ?)",
                (path, info.volume, info.volume_path or "", info.fs, info.device)).lastrowid
        return self.get(root_id)

    def _park(self, root: CachedRoot) -> None:
        log.info("%s now holds another disk; what was there is kept as offline", root.path)
        self._rename_rows(root, path=root.path, parked=1)

    def bring_to(self, root: CachedRoot, path: str) -> None:
        """The root's disk is at `path` now; whatever was known there is parked."""
        occupant = self.at_path(path)
        if occupant is not None and occupant.id != root.id:
            self._park(occupant)
        log.info("the disk of %s is now at %s", root.path, path)
        self._rename_rows(root, path=path, parked=0)

    def _rename_rows(self, root: CachedRoot, *, path: str, parked: int) -> None:
        old = root.prefix()
        new = CachedRoot({**vars(root), "path": path, "parked": parked}.values()).prefix()
        with self.store.atomic() as db:
            for table in ("agent_index", "removed", "agent_error"):
                db.execute(f"UPDATE {table} SET path = ? || substr(path, ?) WHERE root_id = ?",
                           (new, len(old) + 1, root.id))
            # A cursor is a path of the old place; without one the next walk starts at the top.
            db.execute("DELETE FROM scan_progress WHERE root IN (?, ?)", (path, root.path))
            db.execute("UPDATE agent_root SET path = ?, parked = ? WHERE id = ?",
                       (path, parked, root.id))
            # Payloads name paths; they are made again from the rows.
            self.cache.outbox.drop_payloads(db)
        root.path, root.parked = path, parked

    def save(self, root: CachedRoot, **values) -> None:
        """Change columns of a root, if anything differs."""
        values = {name: value for name, value in values.items() if getattr(root, name) != value}
        if not values:
            return
        columns = ", ".join(f"{name} = ?" for name in values)
        with self.store.atomic() as db:
            db.execute(f"UPDATE agent_root SET {columns} WHERE id = ?", (*values.values(), root.id))
        for name, value in values.items():
            setattr(root, name, value)

    def finish(self, root: CachedRoot, scan: dict, now: float) -> None:
        """A scan of the root came to its end: the host is to compare what both sides hold."""
        self.save(root, state="online", reason=None, accept_empty=0, end_due=root.end_due + 1,
                  scan_json=json.dumps(scan), last_seen=now)

    def rel_path(self, root_id: int, path: str) -> str:
        return path[len(self.get(root_id).prefix()):]

    def take_apart(self, root: CachedRoot) -> None:
        """A root that is no longer one, inside a root that still is: its files are remembered as
        former ones, so that the scan of the outer root finds them there without reading.
        """
        from_root = (root.id,)
        with self.store.atomic() as db:
            db.execute(f"{KEEP_FORMER} WHERE root_id = ?", (self.cache.outbox.told, root.id))
            db.execute("DELETE FROM scan_progress WHERE root = ?", (root.path,))
            for table in ("agent_index", "removed", "agent_folder", "agent_error"):
                db.execute(f"DELETE FROM {table} WHERE root_id = ?", from_root)
            db.execute("DELETE FROM agent_root WHERE id = ?", from_root)
            self.cache.outbox.drop_payloads(db)
        self._known.pop(root.id, None)

    # -- totals ----------------------------------------------------------------------------------

    def add(self, root_id: int, files: int, size: int, digest: int) -> None:
        """Count `files` more, of `size` bytes together; `digest` is the sum of theirs."""
        root = self.get(root_id)
        root.files += files
        root.bytes += size
        root.digest = (root.digest + digest) % DIGEST_MODULUS
        self._changed.add(root_id)

    def subtract(self, root_id: int, size: int, digest: int) -> None:
        root = self.get(root_id)
        root.files -= 1
        root.bytes -= size
        root.digest = (root.digest - digest) % DIGEST_MODULUS
        self._changed.add(root_id)

    def store_totals(self, db) -> None:
        for root_id in self._changed:
            root = self._known[root_id]
            db.execute("UPDATE agent_root SET files = ?, bytes = ?, digest = ? WHERE id = ?",
                       (root.files, root.bytes, str(root.digest), root_id))
        self._changed.clear()

    def forget_totals(self) -> None:
        """After a rollback: read them again from the table, into the same objects."""
        self._changed.clear()
        for root_id, root in list(self._known.items()):
            row = self.store.one(f"SELECT {ROOT_COLUMNS} FROM agent_root WHERE id = ?", (root_id,))
            if row is None:
                del self._known[root_id]
            else:
                vars(root).update(vars(self._from_row(row)))

    # -- folders ---------------------------------------------------------------------------------

    def folder_id(self, root_id: int, rel: str) -> int | None:
        row = self.store.one("SELECT id FROM agent_folder WHERE root_id = ? AND rel = ?",
                             (root_id, rel))
        return row[0] if row else None

    def new_folder_id(self) -> int:
        """A number for a folder whose row is written with the next commit."""
        with self.store.lock:
            if self._last_folder_id is None:
                self._last_folder_id = self.store.one("SELECT max(id) FROM agent_folder")[0] or 0
            self._last_folder_id += 1
            return self._last_folder_id

    def child_folders(self, folder_id: int) -> list:
        """[KnownFolder] of the known folders directly in this one."""
        rows = self.store.rows(f"SELECT {KNOWN_FOLDER_COLUMNS} WHERE parent_id = ?", (folder_id,))
        return [KnownFolder(*row) for row in rows]

    def known_folder(self, root_id: int, rel: str) -> KnownFolder | None:
        row = self.store.one(f"SELECT {KNOWN_FOLDER_COLUMNS} WHERE root_id = ? AND rel = ?",
                             (root_id, rel))
        return KnownFolder(*row) if row else None

    def folder_digest(self, folder_id: int | None) -> tuple:
        """(files, digest) of what the host should hold of one folder, from its rows."""
        files = digest = last = 0
        while folder_id is not None:
            rows = self.store.rows("SELECT rowid, digest FROM agent_index WHERE folder_id = ?"
                                   " AND rowid > ? AND rejected IS NULL ORDER BY rowid LIMIT 5000",
                                   (folder_id, last))
            if not rows:
                break
            last = rows[-1][0]
            files += len(rows)
            digest += sum(row[1] for row in rows)
        return files, digest % DIGEST_MODULUS

    def folders(self, root_id: int, after: int, limit: int) -> list:
        """[(id, rel)] of a root's folders by number."""
        return self.store.rows("SELECT id, rel FROM agent_folder WHERE root_id = ? AND id > ?"
                               " ORDER BY id LIMIT ?", (root_id, after, limit))


def is_other_disk(root: CachedRoot, info) -> bool:
    """Whether the folder now at the root's path lies on another file system than the root did.

    Both volumes known: they tell. Else the type of the file system tells (a mount point without its
    disk shows the file system below).
    """
    if root.volume and info.volume:
        return (root.volume, root.volume_path or "") != (info.volume, info.volume_path or "")
    return root.fs is not None and root.fs != info.fs


def is_replaced(root: CachedRoot, info) -> bool:
    """Whether the other disk was accepted in the place of the one before. To the host two disks
    without a name are both what is at this path: so they are one root here, too.
    """
    return bool(root.accept_empty) and root.volume is None and info.volume is None
