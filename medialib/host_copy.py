"""What the host holds of a root, beside what this agent knows of it: comparing and taking over."""

from __future__ import annotations

import json

from .base import log
from .cache_changes import PutFile, PutFolder
from .hashing import HashResult
from .scan_common import join_rel
from .walk import FoundFile

LIST_PAGE = 500
NAMES_PAGE = 2000


class HostCopy:
    """Asks over `transport`; `agent()` is how a message names this agent. Raises PeerError."""

    def __init__(self, cache, transport, agent):
        self.cache = cache
        self.transport = transport
        self.agent = agent

    def reconcile(self, root) -> None:
        """Send again the folders that differ and report what only the host has."""
        matching = bytearray((self.cache.store.one("SELECT max(id) FROM agent_folder")[0] or 0) + 1)
        after = 0
        while after is not None:
            page = self.transport.folders({"agent": self.agent(), **root_body(root),
                                           "after": after, "limit": LIST_PAGE})
            for folder in page["folders"]:
                self._compare_folder(root, folder, matching)
            after = page.get("next")
        last = 0
        while True:
            mine = self.cache.roots.folders(root.id, last, 1000)
            if not mine:
                return
            last = mine[-1][0]
            for folder_id, _ in mine:
                if folder_id >= len(matching) or not matching[folder_id]:
                    self.cache.outbox.send_again(folder_id)

    def adopt(self, path: str, info) -> None:
        """Fill the cache with what the host knows of a root that another agent catalogued, so that
        nothing is read again. Rows whose file is another one now are found by the scan.
        """
        root = self.cache.roots.identify(path, info)
        if root.files:
            return
        after, count = 0, 0
        while after is not None:
            page = self.transport.folders({"agent": self.agent(), **root_body(root),
                                           "after": after, "limit": LIST_PAGE})
            for folder in page["folders"]:
                count += self._adopt_folder(root, folder["path"])
            after = page.get("next")
        log.info("%s: took over %d files from the catalogue", root.path, count)

    def _adopt_folder(self, root, rel: str) -> int:
        folder_id, changes = adopted_folders(self.cache, root, rel)
        after, count = "", 0
        while after is not None:
            page = self.transport.names({"agent": self.agent(), **root_body(root), "folder": rel,
                                         "after": after, "limit": LIST_PAGE, "full": True})
            changes += [adopted_file(root, folder_id, rel, file) for file in page["files"]]
            count += len(page["files"])
            self.cache.commit(changes)
            changes = []
            after = page.get("next")
        return count

    def _compare_folder(self, root, folder: dict, matching: bytearray) -> None:
        rel = folder["path"]
        folder_id = self.cache.roots.folder_id(root.id, rel)
        files, digest = self.cache.roots.folder_digest(folder_id)
        if (files, f"{digest:016x}") == (folder["files"], folder["digest"]):
            if folder_id is not None:
                matching[folder_id] = 1
            return
        after = ""
        while after is not None:
            page = self.transport.names({"agent": self.agent(), **root_body(root), "folder": rel,
                                         "after": after, "limit": NAMES_PAGE, "full": False})
            paths = [root.file_path(join_rel(rel, file["name"])) for file in page["files"]]
            known = self.cache.files_at(root.id, paths)
            for path in paths:
                if path not in known:
                    self.cache.outbox.remove_path(root, path)
            after = page.get("next")


def adopted_folders(cache, root, rel: str) -> tuple:
    """(the folder's number, changes that make it and the folders above it)."""
    changes, parent = [], None
    parts = rel.split("/") if rel else []
    for depth in range(len(parts) + 1):
        above = "/".join(parts[:depth])
        folder_id = cache.roots.folder_id(root.id, above)
        if folder_id is None:
            folder_id = cache.roots.new_folder_id()
            changes.append(PutFolder(folder_id, root.id, parent, above))
        parent = folder_id
    return parent, changes


def adopted_file(root, folder_id: int, rel: str, file: dict) -> PutFile:
    """The host's record of a file as a row of the cache."""
    rel_path = join_rel(rel, file["name"])
    found = FoundFile(file["name"], "", file["size"], file["mtime"], file["ctime"],
                      file["inode_key"], 1)
    put = PutFile(found, root.id, folder_id, root.file_path(rel_path), rel_path, file["kind"],
                  file.get("reason"))
    hashes, metadata = file.get("hashes"), file.get("metadata")
    if hashes:
        put.facts = HashResult(hashes["algo"], hashes["sample_size"], hashes["sample_hash"],
                               hashes.get("full_hash"), 0.0)
    if metadata:
        put.metadata, put.probed = json.dumps(metadata), True
    return put


def root_body(root) -> dict:
    """How a message names its root."""
    return {"root": root.path, "volume": root.volume, "volume_path": root.volume_path}
