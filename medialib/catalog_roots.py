"""The catalogue's agents, roots and folders: who reports what, and which row stands for it.

A root is (agent, volume, folder in the volume) where the file system tells its lasting identity,
else (agent, path). So a disk under another path, or carried to another machine, is one row to
change, and none of its files' rows.
"""

from __future__ import annotations

import collections
import json
from dataclasses import dataclass

from .base import log
from .catalog_rows import folder_key_bytes
from .mounts import CLONE_MARK
from .scan_common import parent_of

ALIVE_S = 75.0  # an agent that was silent for longer is not running
FOLDER_CACHE = 20_000
ROOT_ROW_COLUMNS = (
    "id, agent, path, volume, volume_path, state, reason, implicit, transferred, files, bytes,"
    " missing, missing_bytes, digest, facts_json, scan_json, seq"
)


@dataclass
class CatalogRoot:
    """One row of `root`; `digest` is the signed sum of its present rows' digests."""

    id: int
    agent: int
    path: str
    volume: str | None
    volume_path: str | None
    state: str
    reason: str | None
    implicit: int
    transferred: int
    files: int
    bytes: int
    missing: int
    missing_bytes: int
    digest: int
    facts_json: str
    scan_json: str
    seq: int

    def prefix(self) -> str:
        """What the absolute paths below it begin with."""
        return self.path if self.path.endswith("/") else self.path + "/"

    def path_of(self, rel: str) -> str:
        return self.prefix() + rel if rel else self.path


@dataclass
class CatalogAgent:
    """What the writer needs of one row of `agent`."""

    id: int
    agent_id: str
    name: str
    last_rev: int


def read_root(db, root_id: int) -> CatalogRoot | None:
    row = db.execute(f"SELECT {ROOT_ROW_COLUMNS} FROM root WHERE id = ?", (root_id,)).fetchone()
    return CatalogRoot(*row) if row else None


def read_roots(db, agent: int | None = None) -> list:
    """All roots, or one agent's, by path."""
    where, values = ("WHERE agent = ?", (agent,)) if agent is not None else ("", ())
    rows = db.execute(f"SELECT {ROOT_ROW_COLUMNS} FROM root {where} ORDER BY path, id", values)
    return [CatalogRoot(*row) for row in rows]


class CatalogCounters:
    """The running numbers of one transaction: read at its begin, stored by `save`."""

    def __init__(self, db):
        self.db = db
        self.values = dict(db.execute("SELECT name, value FROM counter"))
        self._before = dict(self.values)

    def next(self, name: str) -> int:
        self.values[name] += 1
        return self.values[name]

    def take(self, name: str, count: int) -> int:
        """The first of `count` numbers that follow one another."""
        first = self.values[name] + 1
        self.values[name] += count
        return first

    def save(self) -> None:
        changed = [(value, name) for name, value in self.values.items()
                   if value != self._before[name]]
        self.db.executemany("UPDATE counter SET value = ? WHERE name = ?", changed)
        self._before = dict(self.values)


class WordBook:
    """Numbers of words for the writing thread. `forget` after a rollback."""

    def __init__(self):
        self._ids: dict = {}

    def id_of(self, db, text: str) -> int:
        number = self._ids.get(text)
        if number is None:
            row = db.execute("SELECT id FROM word WHERE text = ?", (text,)).fetchone()
            if row is None:
                number = db.execute("INSERT INTO word (text) VALUES (?)", (text,)).lastrowid
            else:
                number = row[0]
            if len(self._ids) > 50_000:
                self._ids.clear()
            self._ids[text] = number
        return number

    def forget(self) -> None:
        self._ids.clear()


class FolderBook:
    """Numbers of folders for the writing thread, making those that are new. It remembers the ones
    used lately; `forget` after a rollback.
    """

    def __init__(self):
        self._ids: collections.OrderedDict = collections.OrderedDict()
        self._parents: collections.OrderedDict = collections.OrderedDict()

    def forget(self) -> None:
        self._ids.clear()
        self._parents.clear()

    def find(self, db, root_id: int, rel: str) -> int | None:
        found = self._ids.get((root_id, rel))
        if found is None:
            row = db.execute("SELECT id FROM folder WHERE root = ? AND key = ?",
                             (root_id, folder_key_bytes(rel))).fetchone()
            if row is None:
                return None
            found = row[0]
            self._remember(root_id, rel, found)
        return found

    def _remember(self, root_id: int, rel: str, folder_id: int) -> None:
        if len(self._ids) >= FOLDER_CACHE:
            self._ids.popitem(last=False)
        self._ids[root_id, rel] = folder_id

    def make(self, db, counters: CatalogCounters, root_id: int, rel: str, searchable) -> tuple:
        """(id, made): the folder and those above it, made where they are not there yet."""
        found = self.find(db, root_id, rel)
        if found is not None:
            return found, False
        missing = [rel]
        parent_id = None
        while missing[-1]:
            parent = parent_of(missing[-1])
            parent_id = self.find(db, root_id, parent)
            if parent_id is not None:
                break
            missing.append(parent)
        for one in reversed(missing):
            folder_id = counters.next("folder")
            db.execute("INSERT INTO folder (id, root, parent, key) VALUES (?, ?, ?, ?)",
                       (folder_id, root_id, parent_id, folder_key_bytes(one)))
            searchable(folder_id, one)
            self._remember(root_id, one, folder_id)
            self._keep_parent(folder_id, parent_id)
            parent_id = folder_id
        return parent_id, True

    def _keep_parent(self, folder_id: int, parent_id: int | None) -> None:
        if len(self._parents) >= FOLDER_CACHE:
            self._parents.popitem(last=False)
        self._parents[folder_id] = parent_id

    def parent(self, db, folder_id: int) -> int | None:
        if folder_id in self._parents:
            return self._parents[folder_id]
        row = db.execute("SELECT parent FROM folder WHERE id = ?", (folder_id,)).fetchone()
        parent_id = row[0] if row else None
        self._keep_parent(folder_id, parent_id)
        return parent_id


# Agents

def find_agent(db, agent_id: str) -> CatalogAgent | None:
    row = db.execute("SELECT id, agent_id, name, last_rev FROM agent WHERE agent_id = ?",
                     (agent_id,)).fetchone()
    return CatalogAgent(*row) if row else None


def agent_row(db, agent_id: str, name: str, address: str | None, now: float) -> CatalogAgent:
    """The agent's row, made or brought up to date."""
    agent = find_agent(db, agent_id)
    if agent is None:
        number = db.execute(
            "INSERT INTO agent (agent_id, name, address, first_seen, last_seen)"
            " VALUES (?, ?, ?, ?, ?)", (agent_id, name, address, now, now)).lastrowid
        return CatalogAgent(number, agent_id, name, 0)
    if agent.name != name:
        db.execute("UPDATE agent SET name = ? WHERE id = ?", (name, agent.id))
        agent.name = name
    return agent


# Roots

def touch_root(db, counters: CatalogCounters, root: CatalogRoot, **values) -> bool:
    """Change columns of a root, if anything differs; the root then takes the next number."""
    values = {name: value for name, value in values.items() if getattr(root, name) != value}
    if not values:
        return False
    values["seq"] = counters.next("seq")
    columns = ", ".join(f"{name} = ?" for name in values)
    db.execute(f"UPDATE root SET {columns} WHERE id = ?", (*values.values(), root.id))
    for name, value in values.items():
        setattr(root, name, value)
    return True


def resolve_root(db, counters: CatalogCounters, agent: CatalogAgent, path: str,
                 volume: str | None, volume_path: str | None, *, is_alive,
                 held=None, told: bool = False, fsid: str | None = None,
                 fs: str | None = None) -> CatalogRoot:
    """The root row for what the agent says it has at `path`; made, renamed or moved as needed.

    `told` with a volume of None: the agent looked, and what is there has no lasting identity. It is
    not the volume that was there (a mount point without its disk shows what lies below).

    `is_alive(db, agent number, root) -> bool` tells whether another agent still holds that root.
    `held` is given for a root that is away: the numbers of the roots that are there. One of them
    may well be at the same path, and is neither taken for the one that is away nor displaced by it.
    `fsid` is how the volume was called where its UUID was not to be had, `fs` the type of the file
    system: with another type it is another disk than the one without a name that was there.
    """
    roots = read_roots(db, agent.id)
    if volume is None:
        same = [root for root in roots if root.path == path and root.id not in (held or ())]
        if told:
            same = [root for root in same if root.volume is None]
        # Where nothing is said about the volume, it is what was there last.
        same.sort(key=lambda root: (root.implicit, root.state == "offline", -root.seq))
        found = same[0] if same else _make_root(db, counters, agent, path, None, None)
        if told:
            _take_path(db, counters, roots, found, path, away=False)
        return found
    volume_path = volume_path or ""
    for name in (volume, fsid) if fsid else (volume,):
        for root in roots:
            if root.volume == name and (root.volume_path or "") == volume_path:
                touch_root(db, counters, root, volume=volume)
                if held is None or root.id not in held:
                    _take_path(db, counters, roots, root, path, away=held is not None)
                return root
    for root in roots:
        if (root.path == path and root.volume is None and not root.implicit
                and root.id not in (held or ())
                and (fs is None or root_facts(root).get("fs", fs) == fs)):
            touch_root(db, counters, root, volume=volume, volume_path=volume_path)
            return root
    found = None
    if held is None:
        found = _carried_root(db, counters, agent, volume, volume_path, fsid, is_alive)
    if found is None:
        found = _make_root(db, counters, agent, path, volume, volume_path)
    _take_path(db, counters, roots, found, path, away=held is not None)
    return found


def _make_root(db, counters, agent, path, volume, volume_path, implicit=0) -> CatalogRoot:
    number = db.execute(
        "INSERT INTO root (agent, path, volume, volume_path, implicit, seq) VALUES (?,?,?,?,?,?)",
        (agent.id, path, volume, volume_path, implicit, counters.next("seq"))).lastrowid
    return read_root(db, number)


def _take_path(db, counters, roots: list, root: CatalogRoot, path: str, *, away: bool) -> None:
    """`root` is at `path` now: whatever else was there has been unplugged, unless `root` itself is
    `away`.
    """
    if root.path != path:
        log.info("the disk of %s is now at %s", root.path, path)
        touch_root(db, counters, root, path=path)
    for other in [] if away else roots:
        if other.id != root.id and other.path == path and not other.implicit:
            touch_root(db, counters, other, state="offline",
                       reason="another disk is mounted in its place")


def _carried_root(db, counters, agent, volume, volume_path, fsid, is_alive) -> CatalogRoot | None:
    """The root of this volume that belonged to an agent which no longer holds it."""
    if CLONE_MARK in volume:  # a name that means something to one agent only
        return None
    rows = db.execute(f"SELECT {ROOT_ROW_COLUMNS} FROM root WHERE volume IN (?, ?) AND"
                      " coalesce(volume_path, '') = ? AND agent <> ? ORDER BY seq DESC",
                      (volume, fsid or volume, volume_path, agent.id)).fetchall()
    for root in (CatalogRoot(*row) for row in rows):
        if not is_alive(db, root.agent, root):
            log.info("the disk of %s was carried to %s", root.path, agent.name)
            touch_root(db, counters, root, agent=agent.id, transferred=1, state="online",
                       reason=None, volume=volume)
            return root
    return None


def holding_root(roots: list, path: str) -> CatalogRoot | None:
    """The longest of the roots that holds the path, online ones first."""
    holding = [root for root in roots if path.startswith(root.prefix())]
    return max(holding, default=None,
               key=lambda root: (len(root.path), root.state != "offline", root.seq))


def make_implicit_root(db, counters: CatalogCounters, agent: CatalogAgent,
                       path: str) -> CatalogRoot:
    """The root for records that name none and lie in no root of their agent: the whole machine,
    "/" or the drive.
    """
    whole = "/" if path.startswith("/") else path[:3]
    return _make_root(db, counters, agent, whole, None, None, implicit=1)


def locate_path(db, agent: CatalogAgent, path: str) -> list:
    """[(root, relative path)] of the agent's roots that hold an absolute path, best first."""
    roots = [root for root in read_roots(db, agent.id) if path.startswith(root.prefix())]
    roots.sort(key=lambda root: (-len(root.path), root.state == "offline", -root.seq))
    return [(root, path[len(root.prefix()):]) for root in roots]


def root_facts(root: CatalogRoot) -> dict:
    """What the agent last said of the root: label, fs, rotational, total_bytes, free_bytes."""
    return json.loads(root.facts_json)
