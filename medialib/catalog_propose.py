"""Which few rows can match a filter at all: by search index, hash, folder, extension or state."""

from __future__ import annotations

from .catalog_filter import FileFilter
from .catalog_schema import HASH_PREFIX_BYTES, STATE_MISSING
from .catalog_search import proposed_ids

FEW_FILES = 8000  # fetching and sorting these takes less time than walking past as many
FEW_FOLDERS = 2000
ID_CHUNK = 500


def proposed_files(db, filter_: FileFilter, searchable: bool) -> list | None:
    """[(FROM clause, values)] of sources whose rows are all that can match, few of them; None when
    no such source is known.
    """
    if filter_.hash is not None:
        return _hash_source(filter_.hash)
    if not filter_.roots:
        return []
    for source in (_missing_source, _ext_source, _under_source, _root_source):
        found = source(db, filter_)
        if found is not None:
            return found
    return _word_source(db, filter_) if searchable and filter_.words else None


def _hash_source(digest: bytes) -> list:
    prefix = digest[:HASH_PREFIX_BYTES]
    return [(f"(SELECT * FROM file x WHERE substr(x.{column}, 1, {HASH_PREFIX_BYTES}) = ?"
             f" AND x.{column} IS NOT NULL) f JOIN folder d ON d.id = f.folder", (prefix,))
            for column in ("sample_hash", "full_hash")]


def _missing_source(db, filter_: FileFilter) -> list | None:
    if not filter_.missing_only:
        return None
    total = sum(root.missing for root in filter_.roots.values())
    whole = db.execute("SELECT coalesce(sum(missing), 0) FROM root").fetchone()[0]
    if whole > max(FEW_FILES, 4 * total) or total > FEW_FILES:
        return None
    return [(f"file f INDEXED BY file_missing JOIN folder d ON d.id = f.folder"
             f" AND f.state = {STATE_MISSING}", ())]


def _ext_source(db, filter_: FileFilter) -> list | None:
    """Rare extensions, or all extensions of a rare kind or junk reason."""
    exts = filter_.exts
    if exts is None and "kind" in filter_.plain:
        marks = ",".join("?" * len(filter_.kinds))
        exts = [row[0] for row in db.execute(
            f"SELECT DISTINCT ext FROM tally WHERE kind IN ({marks}) LIMIT 500", filter_.kinds)]
    if exts is None or len(exts) >= 500:
        return None
    marks = ",".join("?" * len(exts))
    total = db.execute(f"SELECT coalesce(sum(files), 0) FROM tally WHERE ext IN ({marks})",
                       exts).fetchone()[0]
    if total > FEW_FILES:
        return None
    return [(f"(SELECT * FROM file x INDEXED BY file_ext WHERE x.ext IN ({marks})) f"
             " JOIN folder d ON d.id = f.folder", tuple(exts))]


def _under_source(db, filter_: FileFilter) -> list | None:
    if filter_.under is None:
        return None
    sources, total = [], 0
    for root_id, first, end in filter_.under:
        row = db.execute("SELECT tree_files FROM folder WHERE root = ? AND key = ?",
                         (root_id, first)).fetchone()
        total += (row[0] if row else 0) + filter_.roots[root_id].missing if (
            root_id in filter_.roots) else 0
        sources += _folder_range(root_id, first, end)
    return sources if total <= FEW_FILES else None


def _root_source(db, filter_: FileFilter) -> list | None:
    if filter_.all_roots:
        return None
    if sum(root.files + root.missing for root in filter_.roots.values()) > FEW_FILES:
        return None
    return [source for root_id in filter_.roots
            for source in _folder_range(root_id, b"", b"\xff")]


def _folder_range(root_id: int, first: bytes, end: bytes) -> list:
    """Present and missing rows below a range of folders: their paths are indexed apart."""
    return [("(SELECT * FROM folder WHERE root = ? AND key >= ? AND key < ?) d CROSS JOIN"
             f" file f INDEXED BY {index} ON f.folder = d.id AND f.state = {state}",
             (root_id, first, end))
            for index, state in (("file_path", 0), ("file_missing", 1))]


def _word_source(db, filter_: FileFilter) -> list | None:
    """The files that the rarest word can be in, when they are few."""
    best = None
    for word in filter_.words:
        ids = _ids_with_word(db, filter_, word, FEW_FILES if best is None else len(best))
        if ids is not None and (best is None or len(ids) < len(best)):
            best = ids
    if best is None:
        return None
    ids = sorted(best)
    sources = []
    for start in range(0, len(ids), ID_CHUNK):
        part = ids[start:start + ID_CHUNK]
        sources.append((f"(SELECT * FROM file x WHERE x.id IN"
                        f" ({','.join('?' * len(part))})) f JOIN folder d ON d.id = f.folder",
                        tuple(part)))
    return sources


def _ids_with_word(db, filter_: FileFilter, word: str, at_most: int) -> set | None:
    """Files whose name or folder can hold the word, or None if they are too many or unknown."""
    if "/" in word or any(word in root.path.lower() for root in filter_.roots.values()):
        return None
    names = proposed_ids(db, "name_search", word, at_most + 1)
    if names is None or len(names) > at_most:
        return None
    folders = proposed_ids(db, "folder_search", word, FEW_FOLDERS + 1)
    if folders is None or len(folders) > FEW_FOLDERS:
        return None
    found = set(names)
    found.update(_names_not_indexed(db, word))
    for start in range(0, len(folders), ID_CHUNK):
        part = folders[start:start + ID_CHUNK]
        for index, state in (("file_path", 0), ("file_missing", 1)):
            rows = db.execute(
                f"SELECT id FROM file INDEXED BY {index} WHERE folder IN"
                f" ({','.join('?' * len(part))}) AND state = {state} LIMIT {at_most + 1}", part)
            found.update(row[0] for row in rows.fetchall())
        if len(found) > at_most:
            return None
    return found


def _names_not_indexed(db, word: str):
    """Files the index has not come to yet."""
    first = db.execute("SELECT value FROM counter WHERE name = 'searchable'").fetchone()[0]
    for file_id, name in db.execute("SELECT id, name FROM file WHERE id > ?", (first,)):
        if word in name.lower():
            yield file_id
