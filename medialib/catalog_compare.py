"""What the host holds of a root, page by page, for an agent that compares and repairs."""

from __future__ import annotations

import json
import zlib

from .catalog_roots import CatalogAgent, CatalogRoot, read_roots
from .catalog_rows import (
    FILE_COLUMNS,
    FileRow,
    digest_hex,
    digest_of_row,
    folder_key_bytes,
    hashes_as_json,
    rel_of_key,
    row_inode_key,
    row_mtime,
)
from .catalog_schema import FLAG_PROBED, KIND_NAMES
from .catalog_tallies import read_meta
from .scan_common import join_rel

COMPARE_FILES = 50_000  # a page of folders ends once it has looked at this many files
PAGE_STREAMS_CHARS = 4 << 20  # a page of whole records ends after this much of what ffprobe said


def read_agent_root(db, agent: CatalogAgent, path: str, volume: str | None,
                    volume_path: str | None, told: bool = False) -> CatalogRoot | None:
    """The root row an agent means, as resolve_root would find it, without making one."""
    roots = read_roots(db, agent.id)
    if volume is not None:
        for root in roots:
            if root.volume == volume and (root.volume_path or "") == (volume_path or ""):
                return root
    same = [root for root in roots if root.path == path and (
        not root.volume or (volume is None and not told))]
    same.sort(key=lambda root: (root.implicit, root.state == "offline", -root.seq))
    return same[0] if same else None


def folder_page(db, root_id: int, after: int, limit: int) -> dict:
    """{"folders": [{"id", "path", "files", "digest"}], "next"}: folders with present files."""
    rows = db.execute("SELECT id, key, files FROM folder NOT INDEXED WHERE root = ? AND id > ?"
                      " AND files > 0 ORDER BY id LIMIT ?", (root_id, after, limit)).fetchall()
    folders, looked_at = [], 0
    for folder_id, key, files in rows:
        rel = rel_of_key(key)
        folders.append({"id": folder_id, "path": rel, "files": files,
                        "digest": folder_digest(db, folder_id, rel)})
        looked_at += files
        if looked_at >= COMPARE_FILES:
            break
    done = len(folders) == len(rows) < limit
    return {"folders": folders, "next": None if done or not folders else folders[-1]["id"]}


def folder_digest(db, folder_id: int, rel: str) -> str:
    """The sum of its present rows' digests, computed from the rows."""
    rows = db.execute(f"SELECT {FILE_COLUMNS} FROM file INDEXED BY file_path"
                      " WHERE folder = ? AND state = 0", (folder_id,))
    return digest_hex(sum(digest_of_row(FileRow(*row), rel) for row in rows))


def name_page(db, words: dict, root: CatalogRoot, folder: str, after: str | None, limit: int,
              full: bool) -> dict:
    """{"files": [{"name"}, or whole records], "next"} of one folder's present files by name."""
    row = db.execute("SELECT id FROM folder WHERE root = ? AND key = ?",
                     (root.id, folder_key_bytes(folder))).fetchone()
    if row is None:
        return {"files": [], "next": None}
    rows = db.execute(
        f"SELECT {FILE_COLUMNS if full else 'name'} FROM file INDEXED BY file_path"
        " WHERE folder = ? AND state = 0 AND name > ? ORDER BY name LIMIT ?",
        (row[0], after or "", limit)).fetchall()
    if full:
        files = whole_records(db, words, root, folder, rows)
    else:
        files = [{"name": one[0]} for one in rows]
    more = len(rows) == limit or len(files) < len(rows)
    return {"files": files, "next": files[-1]["name"] if more else None}


def whole_records(db, words: dict, root: CatalogRoot, folder: str, rows: list) -> list:
    """Records of the rows, or of the first of them: a page stays small whatever ffprobe said."""
    records, streams_chars = [], 0
    for one in rows:
        record = whole_record(db, words, root, folder, FileRow(*one))
        records.append(record)
        streams_chars += len((record.get("metadata") or {}).get("streams_json") or "")
        if streams_chars > PAGE_STREAMS_CHARS:
            break
    return records


def whole_record(db, words: dict, root: CatalogRoot, folder: str, row: FileRow) -> dict:
    """A row as the record it came from, with "name"."""
    record = {
        "name": row.name, "kind": KIND_NAMES[row.kind],
        "path": root.path_of(join_rel(folder, row.name)), "size": row.size,
        "mtime": row_mtime(row), "ctime": row.ctime, "inode_key": row_inode_key(row),
        "ext": words[row.ext],
    }
    if row.reason:
        record["reason"] = words[row.reason]
    hashes = hashes_as_json(row)
    if hashes:
        record["hashes"] = hashes
    if row.flags & FLAG_PROBED:
        record["metadata"] = metadata_as_json(db, words, row.id, streams=True)
    return record


def metadata_as_json(db, words: dict, file_id: int, *, streams: bool = False) -> dict | None:
    """The simplified metadata, with streams_json (ffprobe's text) where it is asked for."""
    meta = read_meta(db, file_id)
    if meta is None:
        return None
    metadata = {
        "duration": meta.duration, "container": words.get(meta.container),
        "video_codec": words.get(meta.video_codec),
        "audio_codecs": json.loads(words[meta.audio_codecs]) if meta.audio_codecs else None,
        "width": meta.width, "height": meta.height, "bitrate": meta.bitrate,
    }
    if streams:
        packed = db.execute("SELECT packed FROM streams WHERE file = ?", (file_id,)).fetchone()
        metadata["streams_json"] = zlib.decompress(packed[0]).decode("utf-8") if packed else None
    return metadata
