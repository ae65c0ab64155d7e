"""Every number that is shown moves with its rows: the differences one transaction makes."""

from __future__ import annotations

import collections
import struct
from typing import NamedTuple

from .catalog_roots import CatalogRoot
from .catalog_rows import NS_PER_S, FileRow, digest_of_row, duplicate_key_of, signed_sum
from .catalog_schema import (
    FACET_AUDIO_CODEC,
    FACET_CONTAINER,
    FACET_RESOLUTION,
    FACET_VIDEO_CODEC,
    FACET_WEEK,
    RESOLUTION_CLASSES,
    STATE_PRESENT,
)

WEEK_NS = 7 * 86400 * NS_PER_S


class MetaRow(NamedTuple):
    """One row of `metadata`; texts are numbers of words."""

    file: int
    duration: float | None
    container: int | None
    video_codec: int | None
    audio_codecs: int | None
    width: int | None
    height: int | None
    bitrate: int | None


META_COLUMNS = ", ".join(MetaRow._fields)


def read_meta(db, file_id: int) -> MetaRow | None:
    row = db.execute(f"SELECT {META_COLUMNS} FROM metadata WHERE file = ?", (file_id,)).fetchone()
    return MetaRow(*row) if row else None


def resolution_bound(width: int | None, height: int | None) -> int | None:
    """The lower bound of a video's resolution class; None where its height is not known."""
    if height is None:
        return None
    lines = max(height, (width or 0) * 9 // 16)
    return next(bound for bound, _ in RESOLUTION_CLASSES if lines >= bound)


class TallyChanges:
    """Collects what rows were added and taken away; `save` writes the sums once."""

    def __init__(self, db):
        self.db = db
        self.tally: dict = collections.defaultdict(lambda: [0, 0])
        self.facet: dict = collections.defaultdict(lambda: [0, 0])
        self.folder: dict = collections.defaultdict(lambda: [0, 0])
        self.roots: dict = {}
        # The duplicate keys (see duplicate_key_of) of rows that came and of rows that went.
        self.joined: set = set()
        self.left: set = set()
        self.taken = False  # whether any row that was there has changed or gone
        # Plain new files: the lowest of their row numbers, their records, and sizes to be added.
        self.first_new: int | None = None
        self.new: list = []
        self.sizes: dict = {}

    def add(self, row: FileRow, root: CatalogRoot, rel_folder: str, meta: MetaRow | None) -> None:
        self._count(row, root, rel_folder, meta, 1)

    def add_new(self, root: CatalogRoot, first: int, records: list) -> None:
        """`add` for the plain new files with row numbers from `first` on: root and duplicates.
        Their other sums come by `new_sums`.
        """
        self.roots[root.id] = root
        root.files += len(records)
        root.bytes += sum([record.size for record in records])
        digests = struct.unpack(f">{len(records)}Q", b"".join([one.digest for one in records]))
        root.digest = signed_sum(root.digest + sum(digests))
        self.first_new = min(first, self.first_new or first)
        self.new += [one for one in records if one.size]

    def new_sums(self, root: CatalogRoot) -> dict:
        """Takes the sizes of plain new files: {(folder, kind, ext, week): [size]}."""
        return self.sizes.setdefault(root.id, collections.defaultdict(list))

    def _count_new(self) -> None:
        for root_id, alike in self.sizes.items():
            for (folder, kind, ext, week), sizes in alike.items():
                files, size = len(sizes), sum(sizes)
                for entry in (self.tally[root_id, kind, ext, 0, STATE_PRESENT],
                              self.facet[root_id, STATE_PRESENT, FACET_WEEK, week],
                              self.folder[folder]):
                    entry[0] += files
                    entry[1] += size
        self.sizes.clear()

    def take(self, row: FileRow, root: CatalogRoot, rel_folder: str, meta: MetaRow | None) -> None:
        self.taken = True
        self._count(row, root, rel_folder, meta, -1)

    def _count(self, row, root, rel_folder, meta, sign) -> None:
        # Every row that is written comes through here: the two sums that all have, and the rest.
        state, size = row.state, sign * row.size
        root_id = root.id
        entry = self.tally[root_id, row.kind, row.ext, row.reason or 0, state]
        entry[0] += sign
        entry[1] += size
        entry = self.facet[root_id, state, FACET_WEEK, row.mtime_ns // WEEK_NS]
        entry[0] += sign
        entry[1] += size
        if meta is not None:
            for entry in self._meta_entries(row, root, meta):
                entry[0] += sign
                entry[1] += size
        self.roots[root_id] = root
        if state != STATE_PRESENT:
            root.missing += sign
            root.missing_bytes += size
            return
        entry = self.folder[row.folder]
        entry[0] += sign
        entry[1] += size
        root.files += sign
        root.bytes += size
        root.digest = signed_sum(root.digest + sign * digest_of_row(row, rel_folder))
        key = duplicate_key_of(row)
        if key is not None:
            (self.joined if sign > 0 else self.left).add(key)

    def _meta_entries(self, row, root, meta) -> list:
        values = (
            (FACET_VIDEO_CODEC, meta.video_codec), (FACET_CONTAINER, meta.container),
            (FACET_RESOLUTION, resolution_bound(meta.width, meta.height)),
            (FACET_AUDIO_CODEC, meta.audio_codecs),
        )
        return [self.facet[root.id, row.state, field, value]
                for field, value in values if value is not None]

    def save(self, folders) -> None:
        """Write all sums. `folders` is the FolderBook, for the folders above."""
        self._count_new()
        self._save_sums("tally", "root, kind, ext, reason, state", self.tally)
        self._save_sums("facet", "root, state, field, value", self.facet)
        self._save_folders(folders)
        self.db.executemany(
            "UPDATE root SET files = ?, bytes = ?, missing = ?, missing_bytes = ?, digest = ?"
            " WHERE id = ?",
            [(root.files, root.bytes, root.missing, root.missing_bytes, root.digest, root.id)
             for root in self.roots.values()])

    def _save_sums(self, table: str, keys: str, sums: dict) -> None:
        changed = [(*key, files, size) for key, (files, size) in sums.items() if files or size]
        if not changed:
            return
        marks = ", ".join("?" * len(changed[0]))
        self.db.executemany(
            f"INSERT INTO {table} ({keys}, files, bytes) VALUES ({marks}) ON CONFLICT ({keys})"
            " DO UPDATE SET files = files + excluded.files, bytes = bytes + excluded.bytes",
            changed)
        self._drop_empty(table, keys, changed)

    def _drop_empty(self, table: str, keys: str, changed: list) -> None:
        where = " AND ".join(f"{key} = ?" for key in keys.split(", "))
        self.db.executemany(f"DELETE FROM {table} WHERE {where} AND files = 0",
                            [entry[:-2] for entry in changed if entry[-2] < 0])

    def _save_folders(self, folders) -> None:
        own = {key: value for key, value in self.folder.items() if value[0] or value[1]}
        trees: dict = collections.defaultdict(lambda: [0, 0])
        for folder_id, (files, size) in own.items():
            above = folder_id
            while above is not None:
                entry = trees[above]
                entry[0] += files
                entry[1] += size
                above = folders.parent(self.db, above)
        self.db.executemany(
            "UPDATE folder SET files = files + ?, bytes = bytes + ? WHERE id = ?",
            [(files, size, folder_id) for folder_id, (files, size) in own.items()])
        self.db.executemany(
            "UPDATE folder SET tree_files = tree_files + ?, tree_bytes = tree_bytes + ?"
            " WHERE id = ?",
            [(files, size, folder_id) for folder_id, (files, size) in trees.items()])
