"""Folders with what is in them, from the totals kept with each folder."""

from __future__ import annotations

from .catalog_filter import FilterError
from .catalog_roots import CatalogRoot, find_agent, read_roots
from .catalog_rows import folder_key_bytes, rel_of_key
from .scan_common import name_of, parent_of
from .settings import normal_root_path

FOLDERS_SHOWN = 500
DEEPER_SHOWN = 60


class FolderPages:
    """POST /api/folders for one request."""

    def __init__(self, db):
        self.db = db
        self.agents = {number: {"id": agent_id, "name": name} for number, agent_id, name
                       in db.execute("SELECT id, agent_id, name FROM agent")}

    def answer(self, body: dict) -> dict:
        depth, limit = body.get("depth", 1), body.get("limit", FOLDERS_SHOWN)
        if depth not in (1, 2) or type(limit) is not int or not 1 <= limit <= 5000:
            raise FilterError("depth must be 1 or 2 and limit a whole number from 1 to 5000")
        agent, path = body.get("agent"), body.get("path")
        if agent is None:
            return self._roots(read_roots(self.db), None, depth, limit)
        found = find_agent(self.db, agent) if isinstance(agent, str) else None
        if found is None:
            raise FilterError("agent must be the id of an agent that is known")
        roots = read_roots(self.db, found.id)
        if path is None or path == "":
            return self._roots(roots, self.agents[found.id], depth, limit)
        if not isinstance(path, str):
            raise FilterError("path must be a text")
        return self._below(roots, normal_root_path(path), depth, limit)

    def _roots(self, roots: list, agent: dict | None, depth: int, limit: int) -> dict:
        """The roots themselves as the folders on top."""
        shown = [self._root_item(root, depth) for root in roots if root.files or not root.implicit]
        shown.sort(key=lambda item: (-item["bytes"], item["path"]))
        return {
            "agent": agent, "path": None, "root": None, "parent": None, "state": "online",
            "files": sum(item["files"] for item in shown),
            "bytes": sum(item["bytes"] for item in shown), "own": {"files": 0, "bytes": 0},
            "folders": shown[:limit], "more": max(0, len(shown) - limit),
        }

    def _root_item(self, root: CatalogRoot, depth: int) -> dict:
        item = {"name": root.path, "path": root.path, "agent": self.agents[root.agent],
                "state": root.state, "files": root.files, "bytes": root.bytes}
        if depth == 2:
            top = self._folder(root, "")
            item["folders"] = self._children(root, top[0], 1, DEEPER_SHOWN)[0] if top else []
        return item

    def _folder(self, root: CatalogRoot, rel: str):
        """(id, files, bytes, tree_files, tree_bytes) or None."""
        return self.db.execute(
            "SELECT id, files, bytes, tree_files, tree_bytes FROM folder"
            " WHERE root = ? AND key = ?", (root.id, folder_key_bytes(rel))).fetchone()

    def _below(self, roots: list, path: str, depth: int, limit: int) -> dict:
        root, rel, row = self._locate(roots, path)
        files, more = self._children(root, row[0], depth, limit) if row else ([], 0)
        _, own_files, own_bytes, tree_files, tree_bytes = row or (0, 0, 0, root.files, root.bytes)
        return {
            "agent": self.agents[root.agent], "path": path, "root": root.path,
            "parent": root.path_of(parent_of(rel)) if rel else None, "state": root.state,
            "files": tree_files, "bytes": tree_bytes,
            "own": {"files": own_files, "bytes": own_bytes}, "folders": files, "more": more,
        }

    def _locate(self, roots: list, path: str) -> tuple:
        """(root, relative path, row): a root's own folder has a row once something is in it."""
        holding = [root for root in roots if (path + "/").startswith(root.prefix())
                   or path == root.path]
        holding.sort(key=lambda root: (-len(root.path), root.state == "offline", -root.seq))
        for root in holding:
            rel = path[len(root.prefix()):] if path != root.path else ""
            row = self._folder(root, rel)
            if row is not None or not rel:
                return root, rel, row
        raise FilterError(f"there is no folder {path[:500]} in the catalogue of this agent")

    def _children(self, root: CatalogRoot, folder_id: int, depth: int, limit: int) -> tuple:
        """(items, how many were left off), largest first; folders without files are left out."""
        rows = self.db.execute(
            "SELECT id, key, tree_files, tree_bytes FROM folder WHERE parent = ? AND tree_files > 0"
            " ORDER BY tree_bytes DESC, key LIMIT ?", (folder_id, limit + 1)).fetchall()
        more = 0
        if len(rows) > limit:
            more = self.db.execute("SELECT count(*) FROM folder WHERE parent = ? AND"
                                   " tree_files > 0", (folder_id,)).fetchone()[0] - limit
        items = []
        for child_id, key, files, size in rows[:limit]:
            rel = rel_of_key(key)
            item = {"name": name_of(rel), "path": root.path_of(rel),
                    "agent": self.agents[root.agent], "state": root.state, "files": files,
                    "bytes": size}
            if depth == 2:
                item["folders"] = self._children(root, child_id, 1, DEEPER_SHOWN)[0]
            items.append(item)
        return items, more
