"""Why a path is, or is not, in the catalogue: the answer of POST /api/why.

From what the host knows alone; nobody's disk is touched.
"""

from __future__ import annotations

import json

from .catalog_roots import CatalogAgent, locate_path
from .catalog_rows import folder_key_bytes
from .catalog_settings import settings_of
from .scan_common import NamePatterns, name_of, parent_of


def explain_path(db, agent: CatalogAgent, path: str) -> dict:
    """{"answer", "text", "catalogued", "file" (its number or None), "root"}.

    `answer`: present, junk, offline, missing, rejected, error, outside (every root), root offline,
    ignored, not scanned, not seen.
    """
    places = [(root, rel) for root, rel in locate_path(db, agent, path) if rel]
    known = [(root, row) for root, rel in places for row in file_rows(db, root.id, rel)]
    if known:
        return explain_row(*min(known, key=lambda pair: (pair[1][1], pair[0].state == "offline")))
    refused = db.execute("SELECT error, at FROM rejected WHERE agent = ? AND path = ?",
                         (agent.id, path)).fetchone()
    if refused is not None:
        return why_answer("rejected", f"the agent's record was refused: {refused[0]}")
    if not [root for root, _ in places if not root.implicit]:
        return why_answer("outside", "it lies in none of this agent's roots")
    return explain_unknown(db, agent, path, *places[0])


def file_rows(db, root_id: int, rel: str) -> list:
    """(id, state, kind reason, changed) of the rows at a relative path, present ones first."""
    return db.execute(
        "SELECT f.id, f.state, w.text, f.changed FROM folder d JOIN file f ON f.folder = d.id"
        " LEFT JOIN word w ON w.id = f.reason WHERE d.root = ? AND d.key = ? AND f.name = ?"
        " ORDER BY f.state, f.changed DESC",
        (root_id, folder_key_bytes(parent_of(rel)), name_of(rel))).fetchall()


def explain_row(root, row: tuple) -> dict:
    file_id, is_missing, reason, changed = row
    known = {"file": file_id, "root": root.path, "catalogued": True}
    if is_missing:
        return why_answer("missing", "its folder was listed to the end, and it was not there any"
                          " more", since=changed, **known)
    if root.state == "offline":
        return why_answer("offline", offline_text(root), **known)
    if reason:
        return why_answer("junk", f"it is catalogued as junk: {reason}", **known)
    return why_answer("present", "it is in the catalogue", **known)


def explain_unknown(db, agent: CatalogAgent, path: str, root, rel: str) -> dict:
    """Inside a root, but without a row."""
    pattern = ignoring_pattern(settings_of(db, agent.agent_id), rel)
    if pattern is not None:
        return why_answer("ignored", f"a folder above it matches {pattern!r} of ignore_dirs",
                          root=root.path)
    failure = told_failure(db, agent, path, root.path)
    if failure is not None:
        return why_answer("error", f"{failure.get('path')}: {failure.get('message')}",
                          root=root.path)
    if root.state == "offline":
        return why_answer("root offline", offline_text(root), root=root.path)
    scan = json.loads(root.scan_json)
    if not scan.get("ended"):
        return why_answer("not scanned", "no scan of the root has come to its end yet",
                          root=root.path)
    return why_answer("not seen", "the last scan did not see a regular file there: it is newer than"
                      " the scan, a link, a special file, on another file system, below a folder"
                      " with an ignore marker, or does not exist", root=root.path,
                      scanned=scan["ended"], ledger=scan.get("ledger"))


def ignoring_pattern(settings: dict, rel: str) -> str | None:
    """The pattern of ignore_dirs that a folder above the file matches."""
    folders = rel.split("/")[:-1]
    for pattern in settings["ignore_dirs"]:
        matcher = NamePatterns([pattern])
        if any(matcher.match(name) for name in folders):
            return pattern
    return None


def offline_text(root) -> str:
    return f"its root is offline: {root.reason or 'no reason is known'}"


def told_failure(db, agent: CatalogAgent, path: str, root_path: str) -> dict | None:
    """The agent's own word about the path, or about a folder above it that it could not list."""
    row = db.execute("SELECT errors_json FROM agent WHERE id = ?", (agent.id,)).fetchone()
    told = {failure.get("path"): failure for failure in json.loads(row[0]).get("latest") or []
            if isinstance(failure, dict)}
    while len(path) >= len(root_path):
        if path in told:
            return told[path]
        path = parent_of(path)
    return None


def why_answer(answer: str, text: str, *, catalogued: bool = False, file=None, root=None,
               **more) -> dict:
    return {"answer": answer, "text": text, "catalogued": catalogued, "file": file, "root": root,
            **more}
