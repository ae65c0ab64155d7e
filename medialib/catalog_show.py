"""Files as the API shows them."""

from __future__ import annotations

from .catalog_compare import metadata_as_json
from .catalog_rows import FileRow, hashes_as_json, rel_of_key, row_inode_key, row_mtime
from .catalog_schema import FLAG_ERROR, FLAG_PROBED, KIND_NAMES, STATE_MISSING
from .scan_common import join_rel


class FileShower:
    """Turns rows into JSON for one request. `roots` is {number: CatalogRoot}."""

    def __init__(self, db, words: dict, roots: dict):
        self.db = db
        self.words = words
        self.roots = roots
        self.agents = {number: {"id": agent_id, "name": name} for number, agent_id, name
                       in db.execute("SELECT id, agent_id, name FROM agent")}

    def show_all(self, found: list) -> list:
        return [self.show(one.row, one.root, one.key) for one in found]

    def show(self, row: FileRow, root_id: int, key: bytes, *, streams: bool = False) -> dict:
        root = self.roots[root_id]
        shown = {
            "id": row.id, "agent": self.agents[root.agent], "root": root.path, "root_id": root_id,
            "path": root.path_of(join_rel(rel_of_key(key), row.name)), "name": row.name,
            "kind": KIND_NAMES[row.kind], "ext": self.words[row.ext], "size": row.size,
            "mtime": row_mtime(row), "ctime": row.ctime, "inode_key": row_inode_key(row),
            "state": self.state_of(row, root),
            "reason": self.words[row.reason] if row.reason else None,
            "hashes": hashes_as_json(row),
            "metadata": (metadata_as_json(self.db, self.words, row.id, streams=streams)
                         if row.flags & FLAG_PROBED else None),
            "first_seen": row.first_seen, "changed": row.changed, "seq": row.seq,
        }
        if row.flags & FLAG_ERROR:
            shown["error"] = self.error_of(row.id)
        return shown

    def state_of(self, row: FileRow, root) -> str:
        if row.state == STATE_MISSING:
            return "missing"
        return "offline" if root.state == "offline" else "present"

    def error_of(self, file_id: int) -> dict | None:
        found = self.db.execute("SELECT stage, class, message FROM file_error WHERE file = ?",
                                (file_id,)).fetchone()
        return dict(zip(("stage", "class", "message"), found)) if found else None
