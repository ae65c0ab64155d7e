"""Everything the catalogue keeps in sums, counted again from the rows: both must agree."""

from __future__ import annotations

import collections
import sqlite3

from medialib.catalog_rows import FILE_COLUMNS, FileRow, digest_of_row, full_hash_of, rel_of_key
from medialib.catalog_schema import FLAG_PROBED
from medialib.catalog_tallies import WEEK_NS
from medialib.scan_common import DIGEST_MODULUS


class Audit:
    """Reads one database; `check` raises AssertionError at the first number that is wrong."""

    def __init__(self, path: str):
        self.db = sqlite3.connect(path)
        self.folders = {row[0]: row[1:] for row in
                        self.db.execute("SELECT id, root, parent, key FROM folder")}
        self.rows = [FileRow(*row) for row in self.db.execute(f"SELECT {FILE_COLUMNS} FROM file")]

    def root_of(self, row: FileRow) -> int:
        return self.folders[row.folder][0]

    def check(self) -> None:
        try:
            assert self.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            self.check_rows()
            self.check_roots()
            self.check_tallies()
            self.check_folders()
            self.check_metadata()
            self.check_duplicates()
            self.check_search()
        finally:
            self.db.close()

    def check_rows(self) -> None:
        present = [(row.folder, row.name) for row in self.rows if row.state == 0]
        assert len(present) == len(set(present))
        seqs = [row.seq for row in self.rows]
        assert len(seqs) == len(set(seqs))
        counters = dict(self.db.execute("SELECT name, value FROM counter"))
        assert counters["seq"] >= max(seqs, default=0)
        assert counters["file"] >= max((row.id for row in self.rows), default=0)

    def check_roots(self) -> None:
        expected = collections.defaultdict(lambda: [0, 0, 0, 0, 0])
        for row in self.rows:
            entry = expected[self.root_of(row)]
            if row.state == 0:
                entry[0] += 1
                entry[1] += row.size
                entry[4] += digest_of_row(row, rel_of_key(self.folders[row.folder][2]))
            else:
                entry[2] += 1
                entry[3] += row.size
        for root, *stored in self.db.execute(
                "SELECT id, files, bytes, missing, missing_bytes, digest FROM root"):
            stored[4] %= DIGEST_MODULUS
            expected[root][4] %= DIGEST_MODULUS
            assert stored == expected[root], f"root {root}"

    def check_tallies(self) -> None:
        tally, weeks = collections.Counter(), collections.Counter()
        for row in self.rows:
            root = self.root_of(row)
            tally[root, row.kind, row.ext, row.reason or 0, row.state] += 1
            weeks[root, row.state, row.mtime_ns // WEEK_NS] += 1
        stored = {row[:5]: row[5] for row in self.db.execute("SELECT * FROM tally")}
        assert stored == dict(tally)
        stored = {row[:3]: row[3] for row in self.db.execute(
            "SELECT root, state, value, files FROM facet WHERE field = 1")}
        assert stored == dict(weeks)

    def check_folders(self) -> None:
        own, tree = collections.Counter(), collections.Counter()
        for row in self.rows:
            if row.state == 0:
                own[row.folder] += 1
                above = row.folder
                while above is not None:
                    tree[above] += 1
                    above = self.folders[above][1]
        for folder, files, tree_files in self.db.execute(
                "SELECT id, files, tree_files FROM folder"):
            assert (files, tree_files) == (own[folder], tree[folder]), f"folder {folder}"

    def check_metadata(self) -> None:
        probed = {row.id for row in self.rows if row.flags & FLAG_PROBED}
        assert {row[0] for row in self.db.execute("SELECT file FROM metadata")} == probed
        assert {row[0] for row in self.db.execute("SELECT file FROM streams")} <= probed

    def check_duplicates(self) -> None:
        roots = {row[0]: row[1:] for row in self.db.execute("SELECT id, agent, volume FROM root")}
        groups = collections.defaultdict(list)
        for row in self.rows:
            if row.state or row.sample_hash is None or not row.size:
                continue
            full = full_hash_of(row)
            groups[row.sample_hash, 2, row.size, row.algo, row.sample_size].append(row)
            if full is not None:
                groups[full, 1, row.size, row.algo, 0].append(row)
        expected = {}
        for key, rows in groups.items():
            copies = len({self.copy_of(row, roots) for row in rows})
            open_ = key[1] == 1 or any(full_hash_of(row) is None for row in rows)
            if copies > 1 and open_:
                expected[key] = (copies, len(rows))
        stored = {row[:5]: row[5:] for row in self.db.execute(
            "SELECT hash, state, size, algo, sample_size, copies, files FROM duplicate")}
        assert stored == expected
        for state, number, gain in self.db.execute(
                "SELECT state, groups, reclaimable FROM duplicate_total"):
            mine = {key: value for key, value in expected.items() if key[1] == state}
            assert number == len(mine)
            assert gain == (sum(key[2] * (value[0] - 1) for key, value in mine.items())
                            if state == 1 else 0)

    def copy_of(self, row: FileRow, roots: dict) -> tuple:
        agent, volume = roots[self.root_of(row)]
        if not row.ino:
            return ("file", row.id)
        return (volume, row.ino) if volume else (agent, row.dev, row.ino)

    def check_search(self) -> None:
        """The index knows each indexed name under its present spelling, and none under an old."""
        upto = self.db.execute("SELECT value FROM counter WHERE name='searchable'").fetchone()[0]
        for row in self.rows[:50]:
            if row.id <= upto and len(row.name) >= 3 and row.name.isalnum():
                found = self.db.execute("SELECT rowid FROM name_search WHERE name_search MATCH ?",
                                        (f'"{row.name[:3]}"',)).fetchall()
                assert (row.id,) in found


def check_catalogue_sums(path: str) -> None:
    Audit(path).check()
