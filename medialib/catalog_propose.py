"""Which few rows can match a filter at all: by search index, hash, folder, extension or state."""

from __future__ import annotations

from .catalog_filter import FileFilter
from .catalog_schema import HASH_PREFIX_BYTES, STATE_MISSING
from .catalog_search import proposed_ids, rarest_trigrams, usable_parts, worth_asking
from .catalog_word_sql import name_condition, trigrams_of

FEW_FILES = 8000  # fetching and sorting these takes less time than walking past as many
FEW_OF_ALL = 400  # in large catalogues, where one walks further: this part of it
MANY_FILES = 40_000  # fetched for a search where walking has found too little for a while
FEW_FOLDERS = 2500
FEW_ENTRIES = 150_000  # of the search index, read in the time of some thousand rows
LOOKED_AT_PER_FETCH = 10  # names read from an index in the time of one row that is fetched
ID_CHUNK = 500


def few_files(filter_: FileFilter) -> int:
    """How many rows are fetched and sorted rather than walked to in the order of an index."""
    total = sum(root.files + root.missing for root in filter_.roots.values())
    return max(FEW_FILES, total // FEW_OF_ALL)


def proposed_files(db, filter_: FileFilter, searchable: bool, room: int = 0) -> list | None:
    """[(FROM clause, values)] of sources whose rows are all that can match, few of them; None when
    no such source is known, or where words look so common that finding out would take long. With
    `room` about so many are looked for, however long that takes. A row may be in several.
    """
    if filter_.hash is not None:
        return _hash_source(filter_.hash)
    if not filter_.roots:
        return []
    for source in (_missing_source, _ext_source, _under_source, _root_source):
        found = source(db, filter_)
        if found is not None:
            return found
    if not searchable or not filter_.words:
        return None
    return _word_sources(db, filter_, room)


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


# Words

def _word_sources(db, filter_: FileFilter, room: int) -> list | None:
    """What the words can be in, root by root: those in a root's own path say nothing about it."""
    wanted = set()
    for root in filter_.roots.values():
        above = root.path.lower()
        wanted.add(tuple(part for part in usable_parts(filter_.words) if part not in above))
    sources = [_names_not_indexed(db)]
    for parts in sorted(wanted):
        if not parts:
            return None
        search = _PartSearch(db, parts, room or few_files(filter_))
        if not room and search.entries() > FEW_ENTRIES:
            return None
        found = search.sources()
        if found is None:
            return None
        sources += found
    return sources


def _names_not_indexed(db) -> tuple:
    """Files the index has not come to yet."""
    first = db.execute("SELECT value FROM counter WHERE name = 'searchable'").fetchone()[0]
    return "(SELECT * FROM file x WHERE x.id > ?) f JOIN folder d ON d.id = f.folder", (first,)


class _PartSearch:
    """Files with each of these texts in their name or in their folder's path: those with all in the
    name, and of the folders with some, the files with the others in the name. Or, where a text
    names too many folders, everything that holds any other one of them.
    """

    def __init__(self, db, parts: tuple, room: int):
        self.db = db
        self.room = room
        self.trigrams = rarest_trigrams(db, parts)
        self.parts = list(self.trigrams)  # the rarest first
        self._folders: dict = {}

    def entries(self) -> float:
        """About how much of the index of names is read for all parts."""
        names = self.db.execute("SELECT value FROM counter WHERE name = 'searchable'").fetchone()[0]
        return names * sum(share for share, _ in self._asked(self.parts))

    def _asked(self, parts: list) -> list:
        return worth_asking([one for part in parts for one in self.trigrams[part]])

    def sources(self) -> list | None:
        for parts in [self.parts, *([part] for part in self.parts if len(self.parts) > 1)]:
            if all(self.folders_with(part) is not None for part in parts):
                found = self._sources_of(parts)
                if found is not None:
                    return found
        return None

    def folders_with(self, part: str) -> dict | None:
        """{folder: files in it}, None if they are too many."""
        if part not in self._folders:
            self._folders[part] = self._folders_with(part)
        return self._folders[part]

    def _folders_with(self, part: str) -> dict | None:
        ids = proposed_ids(self.db, "folder_search", trigrams_of(part), FEW_FOLDERS + 1)
        if ids is None or len(ids) > FEW_FOLDERS:
            return None
        folders: dict = {}
        for some in id_chunks(ids):
            folders.update(self.db.execute("SELECT id, files FROM folder WHERE id IN"
                                           f" ({','.join('?' * len(some))})", some).fetchall())
        return folders

    def _sources_of(self, parts: list) -> list | None:
        by_rest, left = self._folders_by_rest(parts), self.room
        for rest, folders in by_rest.items():
            files = sum(folders.values())
            left -= files // LOOKED_AT_PER_FETCH if rest else files
        trigrams = [one for _, one in self._asked(parts)]
        names = proposed_ids(self.db, "name_search", trigrams, left + 1) if left >= 0 else None
        if names is None or len(names) > left:
            return None
        sources = files_by_id(names)
        for rest, folders in by_rest.items():
            sources += _files_in(folders, rest)
        return sources

    def _folders_by_rest(self, parts: list) -> dict:
        """{parts that are not in the folder: {folder: files in it}}"""
        held: dict = {}
        for part in parts:
            for folder in self.folders_with(part):
                held.setdefault(folder, []).append(part)
        by_rest: dict = {}
        for folder, some in held.items():
            rest = tuple(part for part in parts if part not in some)
            by_rest.setdefault(rest, {})[folder] = self.folders_with(some[0])[folder]
        return by_rest


def id_chunks(ids):
    ordered = sorted(ids)
    for start in range(0, len(ordered), ID_CHUNK):
        yield tuple(ordered[start:start + ID_CHUNK])


def files_by_id(ids: list) -> list:
    """The sources that are these files."""
    return [(f"(SELECT * FROM file x WHERE x.id IN ({','.join('?' * len(some))})) f"
             " JOIN folder d ON d.id = f.folder", some) for some in id_chunks(ids)]


def _files_in(folders, rest: tuple) -> list:
    """Files of the folders whose names can hold the rest; the index of paths alone tells that."""
    names = [name_condition(part) for part in rest]
    conditions = " AND ".join(["1", *(condition for condition, _ in names)])
    values = tuple(value for _, own in names for value in own)
    return [(f"(SELECT * FROM folder WHERE id IN ({','.join('?' * len(some))})) d CROSS JOIN"
             f" file f INDEXED BY {index} ON f.folder = d.id AND f.state = {state}"
             f" AND {conditions}", (*some, *values))
            for some in id_chunks(folders)
            for index, state in (("file_path", 0), ("file_missing", 1))]
