"""One batch onto the catalogue: new, changed, moved and removed files, and every sum that moves.

All of it happens inside one transaction of the writing thread. The rules are those of identity: the
same content version keeps what is known of it, a new one starts without (see catalog_facts).
"""

from __future__ import annotations

from .catalog_facts import FactTables, keeps_facts, merged_facts
from .catalog_roots import CatalogCounters, CatalogRoot, locate_path
from .catalog_rows import (
    FILE_COLUMNS,
    FILE_INSERT,
    FILE_REPLACE,
    PLAIN_INSERT,
    PLAIN_INSERT_MTIME,
    FileRecord,
    FileRow,
    is_same_identity,
    rel_of_key,
)
from .catalog_schema import FLAG_ERROR, FLAG_PROBED, STATE_MISSING, STATE_PRESENT
from .catalog_tallies import WEEK_NS, MetaRow, TallyChanges, read_meta

LOOKUP_SIZES = (1, 4, 16, 64, 256)  # few different statements, so that they stay prepared


class FileBatch:
    """Applies checked records and removals of one agent to one root, in one transaction.

    `tools` are the writing thread's books: `.words`, `.folders`, `.search`.
    """

    def __init__(self, db, tools, counters: CatalogCounters, agent, now: float):
        self.db = db
        self.tools = tools
        self.counters = counters
        self.agent = agent
        self.now = int(now)
        self.changes = TallyChanges(db)
        self.facts = FactTables(db, tools.words)
        self.rels: dict = {}  # folder id → relative path
        self.roots: dict = {}  # root id → CatalogRoot, one object per row
        self.folder_roots: dict = {}  # folder id → root id
        self.fresh: set = set()  # folders made for this run of records: nothing can be in them

    # -- records ---------------------------------------------------------------------------------

    def upsert(self, root: CatalogRoot, records: list) -> None:
        """Apply records of one root. A path that comes twice is applied twice, in order."""
        root = self.roots.setdefault(root.id, root)
        if len({record.path for record in records}) == len(records):
            self._apply_run(root, records)
            return
        run, seen = [], set()
        for record in records:
            if record.path in seen:
                self._apply_run(root, run)
                run, seen = [], set()
            seen.add(record.path)
            run.append(record)
        self._apply_run(root, run)

    def _apply_run(self, root: CatalogRoot, records: list) -> None:
        if not records:
            return
        places = self._places(root, records)
        present = self._present_rows(places)
        if any(record.moved_from for record in records):
            pairs = self._assign_with_moves(root, records, places, present)
        elif not present and not root.missing:  # as all through a first scan
            pairs = [(record, place, None) for record, place in zip(records, places)]
        else:
            pairs = [(record, place, present.get(place) or self._missing_row(root, place, record))
                     for record, place in zip(records, places)]
        self._write_pairs(root, pairs)
        self.fresh.clear()

    def _places(self, root: CatalogRoot, records: list) -> list:
        """[(folder id, name)] of the records, making folders that are new."""
        start, places, known = len(root.prefix()), [], {}
        for record in records:
            folder = record.folder
            folder_id = known.get(folder)
            if folder_id is None:
                folder_id = known[folder] = self._folder(root, folder[start:])
            places.append((folder_id, record.name))
        return places

    def _folder(self, root: CatalogRoot, rel: str) -> int:
        folder_id, made = self.tools.folders.make(
            self.db, self.counters, root.id, rel, self._searchable_folder)
        if made:
            self.fresh.add(folder_id)
        self.rels[folder_id] = rel
        self.folder_roots[folder_id] = root.id
        return folder_id

    def _searchable_folder(self, folder_id: int, rel: str) -> None:
        self.tools.search.add_folder(self.db, folder_id, rel)

    def _present_rows(self, places: list) -> dict:
        """{(folder id, name): FileRow} of those that are there."""
        by_folder: dict = {}
        for folder_id, name in places:
            if folder_id not in self.fresh:
                by_folder.setdefault(folder_id, []).append(name)
        found = {}
        for folder_id, names in by_folder.items():
            for row in self._rows_named(folder_id, names):
                found[folder_id, row.name] = row
        return found

    def _rows_named(self, folder_id: int, names: list):
        start = 0
        while start < len(names):
            left = len(names) - start
            count = next((size for size in LOOKUP_SIZES if size >= left), LOOKUP_SIZES[-1])
            part = names[start:start + count]
            start += count
            part += [part[0]] * (count - len(part))
            marks = ",".join("?" * count)
            rows = self.db.execute(
                f"SELECT {FILE_COLUMNS} FROM file INDEXED BY file_path"
                f" WHERE folder = ? AND name IN ({marks}) AND state = 0", (folder_id, *part))
            for row in rows.fetchall():
                yield tuple.__new__(FileRow, row)

    def _missing_row(self, root: CatalogRoot, place: tuple, record: FileRecord,
                     taken=()) -> FileRow | None:
        """The missing row that this record revives: the same version, else the newest."""
        if not root.missing or place[0] in self.fresh:
            return None
        rows = [row for row in self._missing_at(place) if row.id not in taken]
        same = [row for row in rows if is_same_identity(row, record)]
        return (same or rows or [None])[0]

    def _missing_at(self, place: tuple) -> list:
        rows = self.db.execute(
            f"SELECT {FILE_COLUMNS} FROM file INDEXED BY file_missing"
            " WHERE folder = ? AND name = ? AND state = 1 ORDER BY seq DESC LIMIT 100", place)
        return [FileRow(*row) for row in rows.fetchall()]

    # -- moves -----------------------------------------------------------------------------------

    def _assign_with_moves(self, root, records, places, present) -> list:
        """[(record, place, row or None)] where every row is given to one record at most. What a
        move lands on becomes missing, unless it has moved away itself.
        """
        steady = {record.path for record, place in zip(records, places)
                  if place in present and is_same_identity(present[place], record)}
        given: dict = {}
        for record, place in zip(records, places):
            if record.moved_from and record.path not in steady and record.moved_from not in steady:
                row = self._moved_row(record, given)
                if row is not None:
                    given[row.id] = (record, place, row)
        movers = {record.path: (record, place, row) for record, place, row in given.values()}
        taken = set(given)
        pairs = []
        for record, place in zip(records, places):
            own = present.get(place)
            if record.path in movers:
                pairs.append(movers[record.path])
                continue
            if own is None or own.id in given:
                own = self._missing_row(root, place, record, taken)
            if own is not None:
                taken.add(own.id)
            pairs.append((record, place, own))
        self._make_way(movers.values(), present, taken)
        return pairs

    def _moved_row(self, record: FileRecord, given: dict) -> FileRow | None:
        """The row that lay at `moved_from`: the same version, present or missing."""
        for root, rel in locate_path(self.db, self.agent, record.moved_from):
            cut = rel.rfind("/")
            folder_id = self.tools.folders.find(self.db, root.id, rel[:cut] if cut > 0 else "")
            if folder_id is None:
                continue
            place = (folder_id, rel[cut + 1:])
            rows = [*self._rows_named(folder_id, [place[1]]), *self._missing_at(place)]
            for row in rows:
                if row.id not in given and is_same_identity(row, record):
                    return row
        return None

    def _make_way(self, movers, present: dict, taken: set) -> None:
        """Free the places that moves land on and the places they leave."""
        for _, place, row in movers:
            self.db.execute("UPDATE file SET state = 1 WHERE id = ?", (row.id,))
            own = present.get(place)
            if own is not None and own.id not in taken:
                self._set_missing(own)

    # -- writing ---------------------------------------------------------------------------------

    def _write_pairs(self, root: CatalogRoot, pairs: list) -> None:
        plain, inserts = [], []
        for record, place, row in pairs:
            if row is not None:
                self._change_row(root, record, place, row)
            elif record.digest is not None:
                plain.append((record, place))
            else:
                inserts.append(self._new_row(root, record, place))
        self.db.executemany(FILE_INSERT, inserts)
        if plain:
            self._write_plain(root, plain)

    def _write_plain(self, root: CatalogRoot, plain: list) -> None:
        """New files of which nothing is known but kind, stamps and sample hash: most of all rows.
        Neither None nor bytes are bound: Python's sqlite3 searches for an adapter for each of them.
        """
        number = self.counters.take("file", len(plain))
        seq = self.counters.take("seq", len(plain))
        self.changes.add_new(root, number, [record for record, _ in plain])
        exact, inexact, sums = [], [], self.changes.new_sums(root)
        now, ext, ext_number = self.now, None, 0
        for record, (folder, name) in plain:
            if record[3] != ext:
                ext = record[3]
                ext_number = self.tools.words.id_of(self.db, ext)
            kind, size, mtime_ns, mtime = record[2], record[4], record[5], record[6]
            sums[folder, kind, ext_number, mtime_ns // WEEK_NS].append(size)
            row = (number, folder, name, kind, ext_number, size, mtime_ns, record[7], record[8],
                   record[9], record[11], record[12], bytearray(record[13]), record[15], now, seq)
            if mtime is None:
                exact.append(row)
            else:
                inexact.append((*row, mtime))
            number += 1
            seq += 1
        self.db.executemany(PLAIN_INSERT, exact)
        self.db.executemany(PLAIN_INSERT_MTIME, inexact)

    def _new_row(self, root: CatalogRoot, record: FileRecord, place: tuple) -> FileRow:
        words, db, flags = self.tools.words, self.db, record.whole
        if record.metadata:
            flags |= FLAG_PROBED
        if record.error:
            flags |= FLAG_ERROR
        # `record[4:15]` are the columns from size to full_hash, which both have in this order.
        row = tuple.__new__(FileRow, (
            self.counters.next("file"), *place, record.kind, words.id_of(db, record.ext),
            *record[4:15], flags, STATE_PRESENT,
            words.id_of(db, record.reason) if record.reason else None,
            self.now, self.now, self.counters.next("seq")))
        meta = self.facts.put_meta(row.id, record.metadata) if record.metadata else None
        if record.error:
            self.facts.put_error(row.id, record.error)
        self.changes.add(row, root, self.rels[place[0]], meta)
        return row

    def _change_row(self, root, record: FileRecord, place: tuple, row: FileRow) -> None:
        """Write the row as the record says, if that differs from what is there."""
        if self._says_nothing_new(record, place, row):
            return
        words, db = self.tools.words, self.db
        same = keeps_facts(row, record)
        hashes, flags = merged_facts(row, record, same)
        old_meta = read_meta(db, row.id) if row.flags & FLAG_PROBED else None
        new_meta = self.facts.merged_meta(row, record, old_meta, same)
        flags |= FLAG_PROBED if new_meta is not None else 0
        flags |= FLAG_ERROR if record.error else 0
        new = row._replace(
            folder=place[0], name=place[1], kind=record.kind, ext=words.id_of(db, record.ext),
            size=record.size, mtime_ns=record.mtime_ns, mtime=record.mtime, ctime=record.ctime,
            ino=record.ino, dev=record.dev, key_text=record.key_text, algo=hashes[0],
            sample_size=hashes[1], sample_hash=hashes[2], full_hash=hashes[3], flags=flags,
            state=STATE_PRESENT,
            reason=words.id_of(db, record.reason) if record.reason else None)
        told = self.facts.streams_differ(row, record, old_meta, new_meta)
        failed = self.facts.error_differs(row, record)
        if new == row and new_meta == old_meta and not told and not failed:
            return
        new = new._replace(changed=self.now, seq=self.counters.next("seq"))
        self._take_row(row, old_meta)
        if new_meta is None and old_meta is not None:
            self.facts.drop_meta(row.id)
        elif new_meta is not None and (new_meta != old_meta or told):
            new_meta = self.facts.put_meta(row.id, record.metadata)
        self.facts.update_error(row, record)
        self.changes.add(new, root, self.rels[place[0]], new_meta)
        self._update_row(row, new)
        if (new.name, new.folder) != (row.name, row.folder):
            self.tools.search.rename_file(db, self.counters, row.id, row.name, new.name)

    def _says_nothing_new(self, record: FileRecord, place: tuple, row: FileRow) -> bool:
        """Whether the record repeats the row word for word, as older agents do all day. Only plain
        rows are told so; the others are compared in full.
        """
        return (row[5:16] == record[4:15] and row.kind == record.kind and row[1:3] == place
                and row.state == STATE_PRESENT and row.flags & ~FLAG_PROBED == record.whole
                and record.metadata is record.error is record.reason is row.reason is None
                and row.ext == self.tools.words.id_of(self.db, record.ext))

    def _update_row(self, old: FileRow, new: FileRow) -> None:
        """The narrowest statement that does it: each index named costs its entry twice."""
        tail = (new.flags, new.changed, new.seq, new.id)
        if new[:12] == old[:12] and (new.state, new.reason) == (old.state, old.reason):
            if new[12:16] == old[12:16]:
                self.db.execute("UPDATE file SET flags=?, changed=?, seq=? WHERE id=?", tail)
            else:
                self.db.execute(
                    "UPDATE file SET algo=?, sample_size=?, sample_hash=?, full_hash=?, flags=?,"
                    " changed=?, seq=? WHERE id=?", (*new[12:16], *tail))
        else:
            self.db.execute(FILE_REPLACE, (*new[1:], new.id))

    def _take_row(self, row: FileRow, meta: MetaRow | None) -> None:
        self.changes.take(row, self._root_of(row.folder), self._rel(row.folder), meta)

    def _rel(self, folder_id: int) -> str:
        if folder_id not in self.rels:
            root_id, key = self.db.execute("SELECT root, key FROM folder WHERE id = ?",
                                           (folder_id,)).fetchone()
            self.rels[folder_id] = rel_of_key(key)
            self.folder_roots[folder_id] = root_id
        return self.rels[folder_id]

    def _root_of(self, folder_id: int) -> CatalogRoot:
        self._rel(folder_id)
        return self.roots[self.folder_roots[folder_id]] if (
            self.folder_roots[folder_id] in self.roots) else self._load_root(folder_id)

    def _load_root(self, folder_id: int) -> CatalogRoot:
        root_id = self.folder_roots[folder_id]
        root = self.tools.read_root(self.db, root_id)
        self.roots[root_id] = root
        return root

    # -- removals --------------------------------------------------------------------------------

    def remove(self, root: CatalogRoot, paths: list) -> int:
        """The files at these paths are gone: they become missing, their facts stay."""
        root = self.roots.setdefault(root.id, root)
        start, by_folder = len(root.prefix()), {}
        for path in paths:
            folder_rel, _, name = path[start:].rpartition("/")
            by_folder.setdefault(folder_rel, []).append(name)
        count = 0
        for folder_rel, names in by_folder.items():
            folder_id = self.tools.folders.find(self.db, root.id, folder_rel)
            if folder_id is None:
                continue
            self._rel(folder_id)
            for row in list(self._rows_named(folder_id, list(dict.fromkeys(names)))):
                self._set_missing(row)
                count += 1
        return count

    def _set_missing(self, row: FileRow) -> None:
        meta = read_meta(self.db, row.id) if row.flags & FLAG_PROBED else None
        self._take_row(row, meta)
        new = row._replace(state=STATE_MISSING, changed=self.now, seq=self.counters.next("seq"))
        self.changes.add(new, self._root_of(row.folder), self._rel(row.folder), meta)
        self.db.execute("UPDATE file SET state = 1, changed = ?, seq = ? WHERE id = ?",
                        (new.changed, new.seq, new.id))
