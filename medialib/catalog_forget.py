"""Forgetting on purpose: rows leave the catalogue for good, after their number was said."""

from __future__ import annotations

from .base import UsageError
from .catalog import Catalog
from .catalog_roots import find_agent, read_root, read_roots
from .catalog_rows import FILE_COLUMNS_OF_F, FileRow, rel_of_key
from .catalog_schema import FLAG_PROBED
from .catalog_tallies import read_meta
from .settings import normal_root_path

FORGET_CHUNK = 1000


class ForgetPlan:
    """What a body of POST /api/agents/forget is about: an agent, one of its roots, or only the
    missing files of either.
    """

    def __init__(self, db, agent_id: str, body: dict):
        self.agent = find_agent(db, agent_id)
        if self.agent is None:
            raise UsageError("this agent is not in the catalogue")
        self.missing_only = bool(body.get("missing_only"))
        roots = read_roots(db, self.agent.id)
        path = body.get("root")
        if path is not None:
            if not isinstance(path, str):
                raise UsageError("root must be a root's path")
            roots = [root for root in roots if root.path == normal_root_path(path)]
            if not roots:
                raise UsageError("this agent has no such root in the catalogue")
        self.whole_agent = path is None
        self.roots = roots

    def count(self) -> dict:
        """{"files", "bytes", "missing"} that would go."""
        files = 0 if self.missing_only else sum(root.files for root in self.roots)
        size = 0 if self.missing_only else sum(root.bytes for root in self.roots)
        missing = sum(root.missing for root in self.roots)
        return {"files": files + missing, "missing": missing,
                "bytes": size + sum(root.missing_bytes for root in self.roots)}


def forget_all(catalog: Catalog, plan: ForgetPlan) -> None:
    """Remove the rows, a chunk at a time so that others can write in between, then the roots."""
    for root in plan.roots:
        while catalog.change(lambda changes, root=root: _forget_chunk(changes, plan, root)):
            pass
    if not plan.missing_only:
        catalog.change(lambda changes: _forget_roots(changes, plan))


def _forget_chunk(changes, plan: ForgetPlan, root) -> int:
    """Rows removed; 0 when none are left."""
    db = changes.db
    states = (1,) if plan.missing_only else (1, 0)
    rows = []
    for state in states:
        index = "file_missing" if state else "file_path"
        rows = db.execute(
            f"SELECT {FILE_COLUMNS_OF_F}, d.key FROM folder d CROSS JOIN file f INDEXED BY {index}"
            f" ON f.folder = d.id AND f.state = {state} WHERE d.root = ? LIMIT ?",
            (root.id, FORGET_CHUNK)).fetchall()
        if rows:
            break
    if not rows:
        return 0
    batch = changes.files_of(plan.agent)
    current = read_root(db, root.id)
    for one in rows:
        _forget_row(changes, batch, current, FileRow(*one[:-1]), rel_of_key(one[-1]))
    return len(rows)


def _forget_row(changes, batch, root, row: FileRow, rel: str) -> None:
    db = changes.db
    meta = read_meta(db, row.id) if row.flags & FLAG_PROBED else None
    batch.changes.take(row, root, rel, meta)
    changes.tools.search.forget_file(db, changes.counters, row.id, row.name)
    for table, column in (("file", "id"), ("metadata", "file"), ("streams", "file"),
                          ("file_error", "file")):
        db.execute(f"DELETE FROM {table} WHERE {column} = ?", (row.id,))
    db.execute("INSERT INTO forgotten VALUES (?, ?)", (changes.counters.next("seq"), row.id))


def _forget_roots(changes, plan: ForgetPlan) -> None:
    db = changes.db
    for root in plan.roots:
        for folder_id, key in db.execute("SELECT id, key FROM folder WHERE root = ?",
                                         (root.id,)).fetchall():
            changes.tools.search.drop_folder(db, folder_id, rel_of_key(key))
        for table in ("folder", "tally", "facet"):
            db.execute(f"DELETE FROM {table} WHERE root = ?", (root.id,))
        db.execute("DELETE FROM root WHERE id = ?", (root.id,))
    # What the agent delivered so far is not here any more: it has to send everything again.
    db.execute("UPDATE agent SET last_rev = 0 WHERE id = ?", (plan.agent.id,))
    for table in ("batch", "rejected"):
        db.execute(f"DELETE FROM {table} WHERE agent = ?", (plan.agent.id,))
    if plan.whole_agent:
        db.execute("DELETE FROM setting WHERE scope = ?", (plan.agent.agent_id,))
        db.execute("DELETE FROM agent WHERE id = ?", (plan.agent.id,))
    changes.tools.forget()
