"""Far places of a sorted list: the row behind so many others.

The page's scroll bar needs this; everything else goes from page to page by `next`. Near places are
walked to; far ones are counted in the sort's own index, or in the folders' own totals. Where what
is filtered cannot be counted in time, the place is found at the same share of a sample, or of the
list without the filter: rows are then about where they should be, and still in order.
"""

from __future__ import annotations

import time

from .catalog_by_path import PathWalk, folder_end_token, path_token
from .catalog_filter import FileFilter, FilterError
from .catalog_places import SORT_KEYS
from .catalog_propose import proposed_files
from .catalog_sample import sampled_rows
from .catalog_sections import SECTION_FIELDS, SECTION_SORTS, SectionWalk
from .catalog_tokens import decode_token, encode_token
from .sqlite_store import sqlite3

SKIP_MOST = 1 << 40
SKIP_NEAR = 5000
SKIP_TIME_S = 0.5
SKIP_WALK_S = 2.0
SAMPLE_BLOCKS = 80
SAMPLE_LEAST = 40
SKIP_STEPS = 20_000  # SQLite asks after so many steps whether it is to stop


def skip_count(body: dict, name: str = "skip") -> int:
    skip = body.get(name) or 0
    if type(skip) is not int or not 0 <= skip <= SKIP_MOST:
        raise FilterError(f"{name} must be a whole number that is not negative")
    return skip


class FarPlace:
    """The place behind `skip` rows of the list that starts at body's `after`; `of` in the body is
    about how many rows the whole list has.
    """

    def __init__(self, pages, filter_: FileFilter, sort, order: str, body: dict, skip: int):
        self.pages = pages
        self.db = pages.db
        self.filter = filter_
        self.sort = sort
        self.order = order
        self.after = body.get("after")
        self.skip = skip
        self.of = skip_count(body, "of")

    def found(self) -> tuple:
        """(token of that place, or None where the list ends before it; what the answer says of
        it: {} where it cannot be found).
        """
        if self.skip <= SKIP_NEAR or self._candidates() is not None:
            token, rough = self._walked()
        else:
            place = self._counted(SKIP_TIME_S)
            if place is None and self.after is None and self.of:
                place = self._shared()
            if place is None:
                return None, {}
            token, rough = place
        return token, {"skipped": self.skip, **({"approximate": True} if rough else {})}

    def _candidates(self):
        return proposed_files(self.db, self.filter, self.pages.searchable)

    def _walked(self) -> tuple:
        """A page may end early; near places are worth the time of several."""
        token, left, end_at = self.after, self.skip, time.monotonic() + SKIP_WALK_S
        while True:
            files, token = self.pages.find_sorted(self.filter, self.sort, self.order, token, left)
            left -= len(files)
            if token is None or not left or time.monotonic() > end_at:
                return token, token is not None and left > 0

    def _counted(self, time_s: float) -> tuple | None:
        """(token or None, whether it is only about right), or None where it cannot be counted, or
        not in time.
        """
        if self.sort in SECTION_SORTS:
            return self._in_sections() if self.after is None else None
        if self.sort == "path":
            return self._in_folders() if self.after is None else None
        if self.filter.words:  # they are compared outside of SQL
            return None
        return self._in_index(time_s)

    def _shared(self) -> tuple | None:
        """The place at the same share of a list that can be counted."""
        share = min(1.0, self.skip / self.of)
        if self.sort != "path" and self.sort not in SECTION_SORTS:
            return self._sampled(share)
        every = bare_filter(self.filter, self.sort)
        place = FarPlace(self.pages, every, self.sort, self.order, {}, 0)
        total = place._rows()
        place.skip = int(share * total)
        if not 0 < place.skip < total:
            return None
        found = place._counted(SKIP_TIME_S)
        return None if found is None or found[0] is None else (found[0], True)

    def _sampled(self, share: float) -> tuple | None:
        """The place at that share of some rows that match; of any rows, where few of them do."""
        key = SORT_KEYS.get(self.sort, self.sort)
        for filter_ in (self.filter, FileFilter(dict(self.pages.reader.roots))):
            found: list = []
            meta = filter_.needs_meta or key.meta
            for blocks, _, rows in sampled_rows(self.pages, filter_, key.column, meta):
                found += [(key.key_of(row[0]), row[1], row[0]) for row in rows
                          if row[0] is not None]
                if blocks >= SAMPLE_BLOCKS:
                    break
            if len(found) >= SAMPLE_LEAST:
                found.sort(reverse=self.order == "desc")
                _, number, value = found[min(len(found) - 1, int(share * len(found)))]
                return encode_token(value, number), True
        return None

    def _rows(self) -> int:
        """How long the list of a bare filter is."""
        if self.sort in SECTION_SORTS:
            return sum(size for _, size in self._sections())
        if self.filter.under is not None:
            return sum(self.db.execute(
                "SELECT coalesce(sum(files), 0) FROM folder WHERE root = ? AND key >= ?"
                " AND key < ?", part).fetchone()[0] for part in self.filter.under)
        return sum(root.files + root.missing for root in self.filter.roots.values())

    # -- an index --------------------------------------------------------------------------------

    def _in_index(self, time_s: float) -> tuple | None:
        key = SORT_KEYS.get(self.sort, self.sort)
        after = decode_token(self.after, 2) if self.after is not None else None
        direction = "DESC" if self.order == "desc" else "ASC"
        parts, values = [], []
        for pin in key.pins(self.filter):
            for condition, own in key.parts_behind(self.order, pin, after):
                statement, bound = self._index_part(key, condition)
                parts.append(statement)
                values += [*own, *bound]
        # SQLite merges the parts as their indexes yield them; nothing is sorted or kept.
        statement = (" UNION ALL ".join(parts) + f" ORDER BY v{key.collate} {direction},"
                     f" i {direction} LIMIT 1 OFFSET ?")
        done, row = self._within_time(time_s, statement, (*values, self.skip - 1))
        return (encode_token(*row) if row is not None else None, False) if done else None

    def _index_part(self, key, condition: str) -> tuple:
        """(SELECT of one range of the index, the filter's values). What the range itself holds
        fixed need not be asked of its rows.
        """
        fixed = ("f.kind ",) if key.by_kind else key.pin[:1] or (" ",)
        bare = all(one.startswith(fixed) for one in self.filter.conditions)
        source, row_id = key.source(bare=bare)
        columns = f"SELECT {key.column} AS v, {row_id} AS i FROM {source}"
        if bare:
            return f"{columns} WHERE {condition}", ()
        needs_join = self.filter.needs_meta and not key.meta
        join = " JOIN metadata m ON m.file = f.id" if needs_join else ""
        return f"{columns}{join} WHERE {condition} AND {self.filter.where()}", self.filter.values

    def _within_time(self, time_s: float, statement: str, values) -> tuple:
        end = time.monotonic() + time_s
        self.db.set_progress_handler(lambda: time.monotonic() > end, SKIP_STEPS)
        try:
            row = self.db.execute(statement, values).fetchone()
        except sqlite3.OperationalError as error:
            if "interrupted" not in str(error):
                raise
            return False, None
        finally:
            self.db.set_progress_handler(None, 0)
        return True, row

    # -- folders ---------------------------------------------------------------------------------

    def _in_folders(self) -> tuple | None:
        if not self.filter.plain <= {"agent", "root", "under"}:
            return None
        walk = PathWalk(self.pages, self.filter, self.order)
        left, roots = self.skip, walk.roots
        for root in roots:
            if self.filter.under is None and root.files + root.missing < left:
                left -= root.files + root.missing
                continue
            token, left = self._in_root(walk, root, left)
            if token is not None:
                return token, False
        return None, False

    def _in_root(self, walk: PathWalk, root, left: int) -> tuple:
        """(the place behind so many rows of a root, by the totals of its folders; how many are
        left to pass where the root has fewer).
        """
        missing = {}
        if root.missing:
            missing = dict(self.db.execute(
                "SELECT f.folder, count(*) FROM file f INDEXED BY file_missing JOIN folder d"
                " ON d.id = f.folder AND d.root = ? WHERE f.state = 1 GROUP BY 1", (root.id,)))
        before = None
        for folder_id, key, files in walk.folders_of(root):
            held = files + missing.get(folder_id, 0)
            if held >= left:
                after = None if before is None else folder_end_token(root.id, before, walk.reverse)
                return self._in_folder(walk, root, after, left), left
            left -= held
            before = key
        return None, left

    def _in_folder(self, walk: PathWalk, root, after, left: int) -> str | None:
        """The place behind the first files of the folder that comes after `after`."""
        start = walk.roots.index(root)
        walk.roots = walk.roots[start:]
        places, _ = walk.find(None, after, left)
        return path_token(places[-1]) if len(places) == left else None

    # -- sections --------------------------------------------------------------------------------

    def _sections(self) -> list:
        """[(section, its rows)] in the order of the list."""
        sizes = self._section_sizes()
        return [(section, sum(sizes.get(value, 0) for value in section.values))
                for section in SectionWalk(self.pages, self.filter, self.sort, self.order).sections]

    def _in_sections(self) -> tuple | None:
        if not self.filter.plain <= {"agent", "root"}:
            return None
        left = self.skip
        for section, size in self._sections():
            if size < left:
                left -= size
                continue
            inner = FarPlace(self.pages, section.filter, section.sort, self.order, {"of": size},
                             left)
            token, told = inner.found()
            if not told:
                return None
            return encode_token(section.number, "end" if token is None else token), (
                "approximate" in told)
        return None, False

    def _section_sizes(self) -> dict:
        """{value: rows}, whatever their state, in the roots of the filter."""
        roots = tuple(self.filter.roots)
        marks = ",".join("?" * len(roots))
        if self.sort in SECTION_FIELDS:
            rows = self.db.execute(f"SELECT value, sum(files) FROM facet WHERE field = ? AND root"
                                   f" IN ({marks}) GROUP BY 1",
                                   (SECTION_FIELDS[self.sort], *roots))
        else:
            column = {"state": "root * 2 + state", "agent": "root"}.get(self.sort, self.sort)
            rows = self.db.execute(f"SELECT {column}, sum(files) FROM tally WHERE root IN"
                                   f" ({marks}) GROUP BY 1", roots)
        return dict(rows.fetchall())


def bare_filter(filter_: FileFilter, sort: str) -> FileFilter:
    """The same without what is asked of single rows. What the list is ordered by stays limited."""
    every = FileFilter(dict(filter_.roots), all_roots=filter_.all_roots)
    if not every.all_roots:
        every.add(f"d.root IN ({','.join('?' * len(every.roots))})", *every.roots)
    if sort == "kind":
        every.kinds = filter_.kinds
    elif sort == "path" and "under" in filter_.plain:
        every.under, every.plain = filter_.under, {"under"}
        every.add_under()
    else:
        every.states, every.numbers = filter_.states, filter_.numbers
    return every
