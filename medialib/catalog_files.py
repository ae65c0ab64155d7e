"""Pages of files: filtered, sorted, the deepest as fast as the first.

Where few rows can match (a search, a folder, a rare extension) they are fetched and sorted.
Otherwise the index of the sort key is walked from where the last page ended, in windows, so that a
page costs what it holds and what it had to pass. A walk that finds too little for too long ends its
page early: `next` goes on from there.
"""

from __future__ import annotations

import heapq
import json
import time
from dataclasses import dataclass

from .catalog_copies import file_copies
from .catalog_filter import FileFilter, FilterError, FilterReader
from .catalog_propose import proposed_files
from .catalog_roots import CatalogRoot
from .catalog_rows import FILE_COLUMNS_OF_F, FileRow, rel_of_key
from .catalog_search import text_matches
from .catalog_show import FileShower
from .catalog_skip import can_skip, skip_count, skipped_place
from .catalog_tokens import decode_token, encode_token, page_limit
from .scan_common import join_rel

WINDOW_FIRST = 2000
WINDOW_LARGEST = 20_000
PAGE_TIME_S = 2.0


@dataclass(frozen=True)
class SortKey:
    """One way to sort. `index` leads with f.kind when `by_kind`; `column` is what is compared."""

    name: str
    column: str
    index: str = ""
    by_kind: bool = False
    collate: str = ""
    meta: bool = False

    def key_of(self, value):
        """A Python value that compares as SQLite compares the column."""
        if self.collate:
            return value.encode("utf-8", "surrogatepass").lower()
        return value


SORT_KEYS = {
    key.name: key for key in (
        SortKey("name", "f.name", "file_name", by_kind=True, collate=" COLLATE NOCASE"),
        SortKey("size", "f.size", "file_size", by_kind=True),
        SortKey("mtime", "f.mtime_ns", "file_mtime", by_kind=True),
        SortKey("changed", "f.seq", "file_seq"),
        SortKey("first_seen", "f.id"),
        SortKey("duration", "m.duration", "metadata_duration", meta=True),
        SortKey("height", "m.height", "metadata_height", meta=True),
        SortKey("bitrate", "m.bitrate", "metadata_bitrate", meta=True),
    )
}
SORT_NAMES = (*SORT_KEYS, "path")


@dataclass
class FoundRow:
    """A row with its place. `at` is the sort value; `row` None marks how far a walk came."""

    at: object
    id: int
    row: FileRow | None = None
    root: int = 0
    key: bytes = b""


class FilePages:
    """Answers for one request on one reader's connection."""

    def __init__(self, catalog, db, *, time_s: float = PAGE_TIME_S):
        self.db = db
        self.words = catalog.words(db)
        self.searchable = catalog.tools.search.usable
        self.reader = FilterReader(db, self.words)
        self.shower = FileShower(db, self.words, self.reader.roots)
        self.end_at = time.monotonic() + time_s

    def page(self, body: dict) -> dict:
        """{"files", "next"} for the body of POST /api/files; with "skip", where that is possible,
        from behind so many rows, and "skipped" says so.
        """
        limit, skip = page_limit(body), skip_count(body)
        place, done = self._skipped(body, skip) if skip else (body, False)
        found, token = self.find(place, limit) if place is not None else ([], None)
        answer = {"files": self.shower.show_all(found), "next": token}
        return {**answer, "skipped": skip} if done else answer

    def _skipped(self, body: dict, skip: int) -> tuple:
        """(the body that goes on behind the skipped rows, or None if the list ends before that;
        whether it could be done).
        """
        filter_ = self.reader.read(body.get("filter"))
        key, order = SORT_KEYS.get(body.get("sort") or "name"), body.get("order") or "asc"
        if key is None or order not in ("asc", "desc"):
            return body, False
        after = body.get("after")
        after = decode_token(after, 2) if after is not None else None
        proposed = proposed_files(self.db, filter_, self.searchable)
        if proposed is not None:
            _, token = self._sorted_candidates(key, filter_, proposed, order, after, skip)
        elif can_skip(filter_):
            done, row = skipped_place(self, key, filter_, order, after, skip)
            if not done:
                return body, False
            token = encode_token(*row) if row is not None else None
        else:
            return body, False
        return (None if token is None else {**body, "after": token}), True

    def one(self, file_id: int) -> dict | None:
        """One file with "streams" of ffprobe and its "copies", or None."""
        row = self.db.execute(
            f"SELECT 0, {FILE_COLUMNS_OF_F}, d.root, d.key FROM file f"
            " JOIN folder d ON d.id = f.folder WHERE f.id = ?", (file_id,)).fetchone()
        if row is None:
            return None
        found = found_file(row)
        shown = self.shower.show(found.row, found.root, found.key, streams=True)
        text = (shown["metadata"] or {}).get("streams_json")
        return {**shown, "streams": parsed_streams(text),
                "copies": file_copies(self.db, self.shower, found.row)}

    def find(self, body: dict, limit: int) -> tuple:
        """([FoundRow], next token or None)."""
        filter_ = self.reader.read(body.get("filter"))
        sort, order = body.get("sort") or "name", body.get("order") or "asc"
        if sort not in SORT_NAMES:
            raise FilterError(f"sort must be one of {', '.join(SORT_NAMES)}")
        if order not in ("asc", "desc"):
            raise FilterError("order must be asc or desc")
        after = body.get("after")
        proposed = proposed_files(self.db, filter_, self.searchable)
        if sort == "path":
            return self._by_path(filter_, proposed, order, after, limit)
        if after is not None:
            after = decode_token(after, 2)
        key = SORT_KEYS[sort]
        if proposed is not None:
            return self._sorted_candidates(key, filter_, proposed, order, after, limit)
        return self._walked(key, filter_, order, after, limit)

    # -- few candidates --------------------------------------------------------------------------

    def matching(self, filter_: FileFilter, proposed, columns: str, meta: bool):
        """(sort value, *FileRow, root, key) of the candidates that match."""
        for source, values in proposed:
            rows = self.db.execute(
                f"SELECT {columns}, {FILE_COLUMNS_OF_F}, d.root, d.key FROM {source}"
                f" {'LEFT JOIN metadata m ON m.file = f.id' if meta else ''}"
                f" WHERE {filter_.where()}", (*values, *filter_.values))
            for row in rows:
                if self._words_match(filter_, row[3], row[-2], row[-1]):
                    yield row

    def _words_match(self, filter_: FileFilter, name: str, root_id: int, key: bytes) -> bool:
        if not filter_.words:
            return True
        rel = join_rel(rel_of_key(key), name)
        return text_matches(filter_.words, self.reader.roots[root_id].path_of(rel))

    def _sorted_candidates(self, key, filter_, proposed, order, after, limit) -> tuple:
        meta = filter_.needs_meta or key.meta
        rows = self.matching(filter_, proposed, key.column, meta)
        found = {}
        for row in rows:
            if row[0] is not None:
                found[row[1]] = (key.key_of(row[0]), row[1], row)
        pairs = sorted(found.values(), key=lambda item: item[:2], reverse=order == "desc")
        if after is not None:
            try:
                last = (key.key_of(after[0]), after[1])
                later = (lambda one: one < last) if order == "desc" else (lambda one: one > last)
                pairs = [item for item in pairs if later(item[:2])]
            except (TypeError, AttributeError):
                raise FilterError("after does not belong to this sort") from None
        more = len(pairs) > limit
        files = [found_file(row) for _, _, row in pairs[:limit]]
        return files, encode_token(files[-1].at, files[-1].id) if more else None

    # -- walking an index ------------------------------------------------------------------------

    def _walked(self, key: SortKey, filter_, order, after, limit) -> tuple:
        kinds = filter_.kinds if key.by_kind else [None]
        walks = [self._walk(key, filter_, order, kind, after) for kind in kinds]
        merged = heapq.merge(*walks, key=lambda one: (key.key_of(one.at), one.id),
                             reverse=order == "desc")
        files, last = [], None
        try:
            for one in merged:
                last = one
                if one.row is not None:
                    files.append(one)
                    if len(files) == limit:
                        break
                elif time.monotonic() > self.end_at:
                    break
            else:
                return files, None
        finally:
            for walk in walks:
                walk.close()
        return files, encode_token(last.at, last.id)

    def _walk(self, key: SortKey, filter_, order, kind, after):
        """FoundRow of everything that matches, in order, with a mark at the end of each window.

        What has the same value as the last one goes by its number, so that a million files of one
        size are no obstacle.
        """
        window = WINDOW_FIRST
        while True:
            parts = self.window_parts(key, order, kind, after)
            position, passed = None, 0
            for condition, values in parts:
                edge = self._edge(key, condition, values, order, window - passed)
                yield from self._window(key, filter_, condition, values, order, edge)
                passed += edge[0]
                if edge[1] is not None:
                    position = edge[1]
                    break
            if position is None:
                return
            yield FoundRow(*position)
            after, window = position, min(window * 2, WINDOW_LARGEST)

    def window_parts(self, key: SortKey, order, kind, after) -> list:
        """[(condition, values)] that together are what comes after `after`, in this order."""
        base, values = ("f.kind = ?", [kind]) if key.by_kind else ("1", [])
        if key.meta:
            base = f"{key.column} IS NOT NULL"
        if after is None:
            return [(base, values)]
        than = "<" if order == "desc" else ">"
        row_id = "m.file" if key.meta else "f.id"
        if key.column == "f.id":
            return [(f"{base} AND f.id {than} ?", [*values, after[1]])]
        return [
            (f"{base} AND {key.column} = ?{key.collate} AND {row_id} {than} ?",
             [*values, after[0], after[1]]),
            (f"{base} AND {key.column} {than} ?{key.collate}", [*values, after[0]]),
        ]

    def source_of(self, key: SortKey, *, bare: bool) -> tuple:
        """(FROM …, the row's number) where the sort's index comes first."""
        if key.meta:
            table = f"metadata m INDEXED BY {key.index}"
            joined = " CROSS JOIN file f ON f.id = m.file CROSS JOIN folder d ON d.id = f.folder"
            return (table if bare else table + joined), "m.file"
        table = f"file f INDEXED BY {key.index}" if key.index else "file f NOT INDEXED"
        return (table if bare else f"{table} CROSS JOIN folder d ON d.id = f.folder"), "f.id"

    def _edge(self, key, condition, values, order, count: int) -> tuple:
        """(rows in the window, (value, id) of its last one if there are more behind it)."""
        source, row_id = self.source_of(key, bare=True)
        direction = "DESC" if order == "desc" else "ASC"
        row = self.db.execute(
            f"SELECT {key.column}, {row_id} FROM {source} WHERE {condition}"
            f" ORDER BY {key.column}{key.collate} {direction}, {row_id} {direction}"
            " LIMIT 1 OFFSET ?", (*values, max(count, 1) - 1)).fetchone()
        return (count, row) if row is not None else (0, None)

    def _window(self, key, filter_, condition, values, order, edge):
        """The matching rows of one part up to its edge."""
        source, row_id = self.source_of(key, bare=False)
        direction, than = ("DESC", ">") if order == "desc" else ("ASC", "<")
        bound, bound_values = "", ()
        if edge[1] is not None:
            bound = (f" AND {key.column} {than}= ?{key.collate} AND ({key.column} {than}"
                     f" ?{key.collate} OR {row_id} {than}= ?)")
            bound_values = (edge[1][0], edge[1][0], edge[1][1])
        join = " JOIN metadata m ON m.file = f.id" if filter_.needs_meta and not key.meta else ""
        rows = self.db.execute(
            f"SELECT {key.column}, {FILE_COLUMNS_OF_F}, d.root, d.key FROM {source}{join}"
            f" WHERE {condition}{bound} AND {filter_.where()}"
            f" ORDER BY {key.column}{key.collate} {direction}, {row_id} {direction}",
            (*values, *bound_values, *filter_.values))
        for row in rows:
            if self._words_match(filter_, row[3], row[-2], row[-1]):
                yield found_file(row)

    # -- by path ---------------------------------------------------------------------------------

    def _by_path(self, filter_, proposed, order, after, limit) -> tuple:
        """In the order of the walk: root by root, folder by folder."""
        reverse = order == "desc"
        roots = sorted(filter_.roots.values(), reverse=reverse,
                       key=lambda root: (root.path.split("/"), root.id))
        position = None
        if after is not None:
            root_id, key_text, name, file_id = decode_token(after, 4)
            position = (root_id, bytes.fromhex(key_text), name, file_id)
            numbers = [root.id for root in roots]
            if root_id not in numbers:
                raise FilterError("after does not belong to this question")
            roots = roots[numbers.index(root_id):]
        if proposed is not None:
            return self._path_candidates(filter_, proposed, roots, position, reverse, limit)
        return self._path_walk(filter_, roots, position, reverse, limit)

    def _path_candidates(self, filter_, proposed, roots, position, reverse, limit) -> tuple:
        rank = {root.id: number for number, root in enumerate(roots)}
        if reverse:
            rank = {root: -number for root, number in rank.items()}
        rows = {row[1]: row for row in self.matching(filter_, proposed, "0", filter_.needs_meta)
                if row[-2] in rank}

        def place(row):
            return rank[row[-2]], row[-1], row[3].encode("utf-8", "surrogatepass"), row[1]

        ordered = sorted(rows.values(), key=place, reverse=reverse)
        if position is not None:
            last = (rank[position[0]], position[1], position[2].encode("utf-8"), position[3])
            ordered = [row for row in ordered
                       if (place(row) < last if reverse else place(row) > last)]
        more = len(ordered) > limit
        files = [found_file(row) for row in ordered[:limit]]
        return files, path_token(files[-1]) if more else None

    def _path_walk(self, filter_, roots: list, position, reverse, limit) -> tuple:
        files = []
        for root, folder_id, key, after in self._folders_by_path(roots, position, reverse):
            for found in self._folder_files(filter_, root, folder_id, key, after, reverse):
                files.append(found)
                if len(files) == limit:
                    return files, path_token(found)
            if time.monotonic() > self.end_at:
                mark = "" if reverse else "\U0010ffff"
                return files, encode_token(root.id, key.hex(), mark, 0)
        return files, None

    def _folders_by_path(self, roots: list, position, reverse):
        """(root, folder id, key, (name, id) to go on behind or None)."""
        than, direction = ("<", "DESC") if reverse else (">", "ASC")
        for root in roots:
            condition, values = "", ()
            if position is not None and position[0] == root.id:
                condition, values = f" AND key {than}= ?", (position[1],)
            rows = self.db.execute(f"SELECT id, key FROM folder WHERE root = ?{condition}"
                                   f" ORDER BY key {direction}", (root.id, *values))
            for folder_id, key in rows:
                here = position is not None and position[:2] == (root.id, key)
                yield root, folder_id, key, position[2:] if here else None

    def _folder_files(self, filter_, root: CatalogRoot, folder_id, key, after, reverse):
        """Present and missing files of one folder, by name, that match."""
        than, direction = ("<", "DESC") if reverse else (">", "ASC")
        condition, values = "", ()
        if after is not None:
            condition = f" AND f.name {than}= ? AND (f.name {than} ? OR f.id {than} ?)"
            values = (after[0], after[0], after[1])
        join = " JOIN metadata m ON m.file = f.id" if filter_.needs_meta else ""
        parts = [self.db.execute(
            f"SELECT 0, {FILE_COLUMNS_OF_F}, d.root, d.key FROM file f INDEXED BY {index}"
            f" CROSS JOIN folder d ON d.id = f.folder{join}"
            f" WHERE f.folder = ? AND f.state = {state}{condition} AND {filter_.where()}"
            f" ORDER BY f.name {direction}, f.id {direction}",
            (folder_id, *values, *filter_.values))
            for index, state in (("file_path", 0), ("file_missing", 1))]
        for row in heapq.merge(*parts, key=lambda one: (one[3].encode("utf-8"), one[1]),
                               reverse=reverse):
            if self._words_match(filter_, row[3], row[-2], row[-1]):
                yield found_file(row)


def found_file(row: tuple) -> FoundRow:
    file_row = FileRow(*row[1:-2])
    return FoundRow(row[0], file_row.id, file_row, row[-2], row[-1])


def parsed_streams(text: str | None) -> list:
    """ffprobe's stream objects from its stored answer; [] where it is no such JSON."""
    try:
        told = json.loads(text) if text else []
    except (ValueError, RecursionError):
        return []
    streams = told.get("streams", []) if isinstance(told, dict) else told
    return [one for one in streams if isinstance(one, dict)] if isinstance(streams, list) else []


def path_token(found: FoundRow) -> str:
    return encode_token(found.root, found.key.hex(), found.row.name, found.id)
