"""Duplicates as they are shown: groups by gain, their files, and one file's other copies."""

from __future__ import annotations

import time

from .catalog_duplicates import DuplicateMember
from .catalog_filter import FileFilter, FilterError
from .catalog_roots import read_roots
from .catalog_rows import FILE_COLUMNS_OF_F, FileRow, full_hash_of, rel_of_key
from .catalog_schema import (
    ALGO_NAMES,
    FLAG_WHOLE,
    GROUP_CANDIDATE,
    GROUP_CONFIRMED,
    HASH_PREFIX_BYTES,
)
from .catalog_search import text_matches
from .catalog_show import FileShower
from .catalog_tokens import decode_token, encode_token, page_limit
from .scan_common import join_rel

GROUP_FILES = 50  # of one group; "names" says how many there are
GROUPS_LOOKED_AT = 2000  # for one page of a filtered list
COPIES_TIME_S = 2.0
GROUP_STATES = {"confirmed": GROUP_CONFIRMED, "candidate": GROUP_CANDIDATE}
GROUP_FROM = (
    "FROM file f JOIN folder d ON d.id = f.folder"
    f" WHERE substr(f.{{column}}, 1, {HASH_PREFIX_BYTES}) = ? AND f.{{column}} = ?"
    " AND f.size = ? AND f.algo = ? AND f.state = 0 {more}"
)


def group_sources(state: int, hash_: bytes, size: int, algo: int, sample_size: int) -> list:
    """[(FROM … WHERE …, values)] that together are the files of a group, each once."""
    values = [hash_[:HASH_PREFIX_BYTES], hash_, size, algo]
    if state == GROUP_CANDIDATE:
        return [(GROUP_FROM.format(column="sample_hash", more="AND f.sample_size = ?"),
                 (*values, sample_size))]
    return [
        (GROUP_FROM.format(column="sample_hash", more=f"AND f.flags & {FLAG_WHOLE}"), values),
        (GROUP_FROM.format(column="full_hash", more=f"AND NOT f.flags & {FLAG_WHOLE}"), values),
    ]


def group_rows(db, key: tuple, limit: int, condition: str = "1", values=()) -> list:
    """[(*FileRow, root, key)] of a group's files that meet a condition on f and d."""
    rows: list = []
    for source, own in group_sources(*key):
        left = limit - len(rows)
        if left > 0:
            rows += db.execute(f"SELECT {FILE_COLUMNS_OF_F}, d.root, d.key {source} AND"
                               f" ({condition}) ORDER BY f.id LIMIT ?",
                               (*own, *values, left)).fetchall()
    return rows


def file_copies(db, shower: FileShower, row: FileRow) -> list:
    """Other paths of the same bytes, and files whose samples are equal and that may differ
    elsewhere; each with "match": confirmed, candidate, or link (the same bytes on the disk).
    """
    if row.sample_hash is None or not row.size:
        return []
    full = full_hash_of(row)
    same = []
    if full is not None:
        same = group_rows(db, (GROUP_CONFIRMED, full, row.size, row.algo, 0), GROUP_FILES)
    known = {one[0] for one in same} | {row.id}
    sampled = group_rows(
        db, (GROUP_CANDIDATE, row.sample_hash, row.size, row.algo, row.sample_size), GROUP_FILES)
    alike = [one for one in sampled if one[0] not in known
             and (full is None or full_hash_of(FileRow(*one[:-2])) is None)]
    own = next((copy_key_of(shower, one) for one in [*same, *sampled] if one[0] == row.id), None)
    copies = []
    for match, rows in (("confirmed", same), ("candidate", alike)):
        for one in rows:
            if one[0] != row.id:
                linked = copy_key_of(shower, one) == own
                copies.append({**_shown(shower, one), "match": "link" if linked else match})
    return copies


def copy_key_of(shower: FileShower, row: tuple) -> tuple:
    """Equal for two paths of the same bytes, as DuplicateMember has it."""
    file, root = FileRow(*row[:-2]), shower.roots[row[-2]]
    return DuplicateMember(
        file.id, file.size, file.algo, file.sample_size, file.sample_hash, file.full_hash,
        file.flags, file.ino, file.dev, root.agent, root.volume).copy_key()


def _shown(shower: FileShower, row: tuple) -> dict:
    return shower.show(FileRow(*row[:-2]), row[-2], row[-1])


class DuplicatePages:
    """POST /api/duplicates for one request: groups by gain, confirmed ones first."""

    def __init__(self, db, words: dict, reader):
        self.db = db
        self.reader = reader
        self.shower = FileShower(db, words, {root.id: root for root in read_roots(db)})
        self.end_at = time.monotonic() + COPIES_TIME_S

    def page(self, body: dict, highest: int = 200) -> tuple:
        """([group], next token or None). A group is shown when one of its files meets the filter;
        all its files are shown.
        """
        raw_filter = body.get("filter") or {}
        if not isinstance(raw_filter, dict):
            raise FilterError("filter must be an object")
        limit, after = page_limit(body, 50, highest), body.get("after")
        state = body.get("state")
        if state is not None and not (isinstance(state, str) and state in GROUP_STATES):
            raise FilterError("state must be confirmed or candidate")
        filter_ = self.reader.read(raw_filter)
        groups, looked_at, last = [], 0, None
        for row in self._groups(GROUP_STATES.get(state), after and decode_token(after, 3)):
            last, looked_at = row, looked_at + 1
            if not filter_.plain or self._meets(filter_, row):
                groups.append(self._show(row))
            full = len(groups) == limit or looked_at >= GROUPS_LOOKED_AT
            if full or time.monotonic() > self.end_at:
                return groups, encode_token(*last[:3])
        return groups, None

    def _groups(self, state: int | None, after: list | None):
        """Rows of `duplicate`, largest gain first, from behind a position."""
        condition, values = "1", []
        if after is not None:
            condition = "(reclaimable, potential, id) < (?, ?, ?)"
            values = list(after)
        if state is not None:
            condition += " AND state = ?"
            values.append(state)
            if state == GROUP_CANDIDATE:
                condition += " AND reclaimable = 0"
        return self.db.execute(
            "SELECT reclaimable, potential, id, state, hash, size, algo, sample_size, copies, files"
            f" FROM duplicate INDEXED BY duplicate_gain WHERE {condition}"
            " ORDER BY reclaimable DESC, potential DESC, id DESC", values)

    def _meets(self, filter_: FileFilter, row: tuple) -> bool:
        """Whether any file of the group meets the filter."""
        join = "f.id IN (SELECT m.file FROM metadata m WHERE m.file = f.id AND {})"
        condition = join.format(filter_.where()) if filter_.needs_meta else filter_.where()
        limit = GROUP_FILES if filter_.words else 1
        for one in group_rows(self.db, self._key(row), limit, condition, filter_.values):
            if not filter_.words:
                return True
            path = self.shower.roots[one[-2]].path_of(
                join_rel(rel_of_key(one[-1]), FileRow(*one[:-2]).name))
            if text_matches(filter_.words, path):
                return True
        return False

    def _key(self, row: tuple) -> tuple:
        _, _, _, state, hash_, size, algo, sample_size, _, _ = row
        return state, hash_, size, algo, sample_size

    def _show(self, row: tuple) -> dict:
        reclaimable, potential, number, state, hash_, size, algo, sample_size, copies, files = row
        rows = group_rows(self.db, self._key(row), GROUP_FILES)
        shown, numbers = [_shown(self.shower, one) for one in rows], {}
        for file, one in zip(shown, rows):
            file["copy"] = numbers.setdefault(copy_key_of(self.shower, one), len(numbers))
        return {
            "id": number, "size": size, "algo": ALGO_NAMES.get(algo), "hash": hash_.hex(),
            "state": "confirmed" if state == GROUP_CONFIRMED else "candidate",
            "copies": copies, "names": files, "reclaimable": reclaimable, "potential": potential,
            "files": shown,
            "truncated": files > len(rows),
        }
