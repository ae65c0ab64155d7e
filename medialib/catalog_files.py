"""Pages of files: filtered, sorted, the deepest as fast as the first.

Where few rows can match (a search, a folder, a rare extension) they are fetched and sorted.
Otherwise the index of the sort key is walked from where the last page ended, in windows, so that a
page costs what it holds and what it had to pass. A walk that finds too little for too long ends its
page early: `next` goes on from there. What is passed is only looked at as far as its place and its
words need it; whole rows are fetched for what is shown.
"""

from __future__ import annotations

import heapq
import json
import time

from .catalog_by_path import PathWalk
from .catalog_copies import file_copies
from .catalog_filter import FileFilter, FilterError, FilterReader
from .catalog_places import SORT_KEYS, FoundRow, SortKey, found_place, whole_rows
from .catalog_propose import MANY_FILES, proposed_files
from .catalog_rows import FILE_COLUMNS_OF_F, FileRow
from .catalog_sections import SECTION_SORTS, SectionWalk
from .catalog_show import FileShower
from .catalog_skip import FarPlace, skip_count
from .catalog_tokens import decode_token, encode_token, page_limit
from .catalog_words import PathWords

WINDOW_FIRST = 2000
WINDOW_LARGEST = 10_000
WALK_FIRST_WINDOWS = 6  # some ten thousand rows
PAGE_TIME_S = 0.25
SORT_NAMES = (*SORT_KEYS, *SECTION_SORTS, "path")


class FilePages:
    """Answers for one request on one reader's connection."""

    def __init__(self, catalog, db, *, time_s: float | None = None):
        self.db = db
        self.words = catalog.words(db)
        self.searchable = catalog.tools.search.usable
        self.reader = FilterReader(db, self.words, self.searchable)
        self.shower = FileShower(db, self.words, self.reader.roots)
        self.time_s = PAGE_TIME_S if time_s is None else time_s
        self.end_at = time.monotonic() + self.time_s

    def page(self, body: dict) -> dict:
        """{"files", "next"} for the body of POST /api/files; with "skip" from behind so many rows,
        where "skipped" says so, and "approximate" that the place is about right.
        """
        limit, skip, far = page_limit(body), skip_count(body), {}
        if skip:
            filter_ = self.reader.read(body.get("filter"))
            token, far = FarPlace(self, filter_, *sort_of(body), body, skip).found()
            if far and token is None:
                return {"files": [], "next": None, **far}
            body = {**body, "after": token} if far else body
            self.end_at = time.monotonic() + self.time_s
        places, token = self.find(body, limit)
        files = self.shower.show_all(whole_rows(self.db, places))
        return {"files": files, "next": token, **far}

    def one(self, file_id: int) -> dict | None:
        """One file with "streams" of ffprobe and its "copies", or None."""
        row = self.db.execute(
            f"SELECT {FILE_COLUMNS_OF_F}, d.root, d.key FROM file f"
            " JOIN folder d ON d.id = f.folder WHERE f.id = ?", (file_id,)).fetchone()
        if row is None:
            return None
        found = FileRow(*row[:-2])
        shown = self.shower.show(found, row[-2], row[-1], streams=True)
        text = (shown["metadata"] or {}).get("streams_json")
        return {**shown, "streams": parsed_streams(text),
                "copies": file_copies(self.db, self.shower, found)}

    def find(self, body: dict, limit: int) -> tuple:
        """([FoundRow], next token or None)."""
        filter_ = self.reader.read(body.get("filter"))
        sort, order = sort_of(body)
        return self.find_sorted(filter_, sort, order, body.get("after"), limit)

    def find_sorted(self, filter_: FileFilter, sort, order: str, after, limit: int,
                    proposed=None) -> tuple:
        """The same for a filter that is read. `sort` is a name of SORT_NAMES or a SortKey;
        `proposed` are the sources of all that can match, where they are known already.
        """
        if sort in SECTION_SORTS:
            return SectionWalk(self, filter_, sort, order).find(after, limit)
        if proposed is None:
            proposed = proposed_files(self.db, filter_, self.searchable)
        if sort == "path":
            return PathWalk(self, filter_, order).find(proposed, after, limit)
        key = sort if isinstance(sort, SortKey) else SORT_KEYS[sort]
        after = key.checked(decode_token(after, 2)) if after is not None else None
        if proposed is not None:
            return self.sorted_candidates(key, filter_, proposed, order, after, limit)
        if not filter_.words:
            return self._walked(key, filter_, order, after, limit)
        return self._searched(key, filter_, order, after, limit)

    def _searched(self, key, filter_, order, after, limit) -> tuple:
        """What many files match is soon met with, in most orders. Where it is not, a search for
        more of them than are few takes less time than walking on.
        """
        files, token = self._walked(key, filter_, order, after, limit, WALK_FIRST_WINDOWS)
        if token is None or len(files) == limit:
            return files, token
        after, left = decode_token(token, 2), limit - len(files)
        proposed = proposed_files(self.db, filter_, self.searchable, MANY_FILES)
        if proposed is None:
            more, token = self._walked(key, filter_, order, after, left)
        else:
            more, token = self.sorted_candidates(key, filter_, proposed, order, after, left)
        return files + more, token

    # -- few candidates --------------------------------------------------------------------------

    def matching(self, filter_: FileFilter, proposed, columns: str, meta: bool):
        """(*columns, id, name, root, key) of the candidates that match, each once."""
        words, seen = PathWords(filter_.words, self.reader.roots), set()
        several = len(proposed) > 1
        join = "LEFT JOIN metadata m ON m.file = f.id" if meta else ""
        for source, values in proposed:
            for row in self.db.execute(
                    f"SELECT {columns}, f.id, f.name, d.root, d.key FROM {source} {join}"
                    f" WHERE {filter_.where()}", (*values, *filter_.values)):
                if row[-4] not in seen and words.match(*row[-3:]):
                    if several:
                        seen.add(row[-4])
                    yield row

    def sorted_candidates(self, key, filter_, proposed, order, after, limit) -> tuple:
        """The next of the candidates that match: each source sorts its own, and only as many rows
        as the page holds leave SQLite.
        """
        cursors = [self._sorted_source(key, filter_, source, order, after) for source in proposed]
        words, files, last = PathWords(filter_.words, self.reader.roots), [], None
        merged = heapq.merge(*cursors, key=lambda row: (key.key_of(row[0]), row[1]),
                             reverse=order == "desc")
        try:
            for row in merged:
                if row[1] == last or not words.match(*row[2:]):
                    continue
                if len(files) == limit:
                    return files, encode_token(files[-1].at, files[-1].id)
                last = row[1]
                files.append(found_place(row))
        finally:
            for cursor in cursors:
                cursor.close()
        return files, None

    def _sorted_source(self, key, filter_, source: tuple, order: str, after):
        """(sort value, id, name, root, key) of what can match, in order."""
        direction, than = ("DESC", "<") if order == "desc" else ("ASC", ">")
        place = f"{key.column}{key.collate}"
        join = " LEFT JOIN metadata m ON m.file = f.id" if filter_.needs_meta or key.meta else ""
        behind, values = "", ()
        if after is not None:
            behind = f" AND ({place} {than} ? OR ({place} = ? AND f.id {than} ?))"
            values = (after[0], after[0], after[1])
        return self.db.execute(
            f"SELECT {key.column}, f.id, f.name, d.root, d.key FROM {source[0]}{join}"
            f" WHERE {filter_.where()} AND {key.column} IS NOT NULL{behind}"
            f" ORDER BY {place} {direction}, f.id {direction}",
            (*source[1], *filter_.values, *values))

    # -- walking an index ------------------------------------------------------------------------

    def _walked(self, key: SortKey, filter_, order, after, limit, windows: int = 0) -> tuple:
        """Up to the page's end in time, or after so many windows beside the first of each kind."""
        words = PathWords(filter_.words, self.reader.roots)
        walks = [self._walk(key, filter_, words, order, pin, after)
                 for pin in key.pins(filter_)]
        merged = heapq.merge(*walks, key=lambda one: (key.key_of(one.at), one.id),
                             reverse=order == "desc")
        files, last, left = [], None, windows + len(walks)
        try:
            for one in merged:
                last = one
                if one.root:
                    files.append(one)
                    if len(files) == limit:
                        break
                    continue
                left -= 1
                if time.monotonic() > self.end_at or (windows and not left):
                    break
            else:
                return files, None
        finally:
            for walk in walks:
                walk.close()
        return files, encode_token(last.at, last.id)

    def _walk(self, key: SortKey, filter_, words, order, pin, after):
        """FoundRow of everything that matches, in order, with a mark at the end of each window.

        What has the same value as the last one goes by its number, so that a million files of one
        size are no obstacle.
        """
        window = WINDOW_FIRST
        while True:
            position, passed = None, 0
            for condition, values in key.parts_behind(order, pin, after):
                edge = self._edge(key, condition, values, order, window - passed)
                for row in self._window(key, filter_, condition, values, order, edge):
                    if words.match(*row[-3:]):
                        yield found_place(row)
                passed += edge[0]
                if edge[1] is not None:
                    position = edge[1]
                    break
            if position is None:
                return
            yield FoundRow(*position)
            after, window = position, min(window * 2, WINDOW_LARGEST)

    def _edge(self, key, condition, values, order, count: int) -> tuple:
        """(rows in the window, (value, id) of its last one if there are more behind it)."""
        source, row_id = key.source(bare=True)
        direction = "DESC" if order == "desc" else "ASC"
        row = self.db.execute(
            f"SELECT {key.column}, {row_id} FROM {source} WHERE {condition}"
            f" ORDER BY {key.column}{key.collate} {direction}, {row_id} {direction}"
            " LIMIT 1 OFFSET ?", (*values, max(count, 1) - 1)).fetchone()
        return (count, row) if row is not None else (0, None)

    def _window(self, key, filter_, condition, values, order, edge):
        """(sort value, id, name, root, key) of one part up to its edge."""
        source, row_id = key.source(bare=False)
        direction, than = ("DESC", ">") if order == "desc" else ("ASC", "<")
        bound, bound_values = "", ()
        if edge[1] is not None:
            bound = (f" AND {key.column} {than}= ?{key.collate} AND ({key.column} {than}"
                     f" ?{key.collate} OR {row_id} {than}= ?)")
            bound_values = (edge[1][0], edge[1][0], edge[1][1])
        join = " JOIN metadata m ON m.file = f.id" if filter_.needs_meta and not key.meta else ""
        return self.db.execute(
            f"SELECT {key.column}, f.id, f.name, d.root, d.key FROM {source}{join}"
            f" WHERE {condition}{bound} AND {filter_.where()}"
            f" ORDER BY {key.column}{key.collate} {direction}, {row_id} {direction}",
            (*values, *bound_values, *filter_.values))


def sort_of(body: dict) -> tuple:
    """(sort, order) of a body; FilterError where they cannot be meant."""
    sort, order = body.get("sort") or "name", body.get("order") or "asc"
    if sort not in SORT_NAMES:
        raise FilterError(f"sort must be one of {', '.join(SORT_NAMES)}")
    if order not in ("asc", "desc"):
        raise FilterError("order must be asc or desc")
    return sort, order


def parsed_streams(text: str | None) -> list:
    """ffprobe's stream objects from its stored answer; [] where it is no such JSON."""
    try:
        told = json.loads(text) if text else []
    except (ValueError, RecursionError):
        return []
    streams = told.get("streams", []) if isinstance(told, dict) else told
    return [one for one in streams if isinstance(one, dict)] if isinstance(streams, list) else []
