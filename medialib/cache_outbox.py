"""What is not delivered yet, in order, and what the host has acknowledged.

The rows themselves are the queue: whatever has a `rev` above the acknowledged one must be sent, and
a file that changed ten times is sent once. A batch that could not be delivered is kept as a payload
in `outbox` and sent again first, word for word. Payloads may be dropped at any time: they can be
made again from the rows.
"""

from __future__ import annotations

import json
from json.encoder import encode_basestring_ascii

from .base import log
from .cache_batch import RECORD_COLUMNS, Batch, batch_text, record_text, root_wire_path
from .cache_feed import FreshFeed
from .late import uuid
from .scan_common import version_prefix

OUTBOX_MAX_ROWS = 2000
OUTBOX_MAX_BYTES = 64 << 20
BATCH_MAX_BYTES = 4 << 20


class Outbox:
    """The delivery side of an AgentCache; one thread delivers."""

    def __init__(self, cache):
        self.cache = cache
        self.store = cache.store
        self.library_id: str | None = None
        self.turn = 0  # counts begins and ends of posting: odd while anything is under way
        # Until the host says otherwise, it knows what the library it last was knew.
        self.acked = self._last_acked()
        # What the host has or gets in a batch that is made already: `acked`, or above it.
        self.told = max(self.acked, self.store.one("SELECT coalesce(max(rev), 0) FROM outbox")[0])
        self._packed_at = self.told  # the cache's rev when no payload told of an old state
        self.feed = FreshFeed()

    def _last_acked(self) -> int:
        row = self.store.one("SELECT value FROM agent_meta WHERE key = 'library_id'")
        if row is None:
            return 0
        self.library_id = row[0]
        row = self.store.one("SELECT acked FROM library WHERE library_id = ?", (row[0],))
        return row[0] if row else 0

    # -- agreement with the host -----------------------------------------------------------------

    def align(self, library_id: str, last_rev: int | None) -> None:
        """Go by what the host says it holds of this agent's numbering.

        Less than was acknowledged, or a new library: everything above is sent again. More: this
        cache was cleared or restored from an old copy; what is undelivered is numbered anew above.
        Only the answers to batches that are kept were lost: they are sent once more, word for word.
        None (a host that keeps no number): what was acknowledged to that library stands.
        """
        before = (self.library_id, self.acked, self.told, self.cache.rev)
        try:
            with self.store.atomic() as db:
                self._align(db, library_id, last_rev)
        except BaseException:
            self.library_id, self.acked, self.told, self.cache.rev = before
            raise

    def _align(self, db, library_id: str, last_rev: int | None) -> None:
        if library_id != self.library_id:
            row = db.execute("SELECT acked FROM library WHERE library_id = ?",
                             (library_id,)).fetchone()
            self._set_library(db, library_id, row[0] if row else 0)
        if last_rev is not None and last_rev < self.acked:
            log.info("the host knows less than before: sending it again from the cache")
            self._set_acked(db, last_rev)
            self.drop_payloads(db)
        elif last_rev is not None and last_rev > self.acked and not self._is_kept(last_rev):
            self._shift_above(db, last_rev)

    def _is_kept(self, rev: int) -> bool:
        """Whether the host can have come so far by the payloads that are kept, as these follow on
        what it has acknowledged.
        """
        first = self.store.one("SELECT after_rev FROM outbox WHERE rev >= 0 ORDER BY id LIMIT 1")
        return first is not None and first[0] == self.acked and self.store.one(
            "SELECT 1 FROM outbox WHERE rev = ?", (rev,)) is not None

    def _set_library(self, db, library_id: str, acked: int) -> None:
        self.library_id = library_id
        db.execute("INSERT OR REPLACE INTO agent_meta VALUES ('library_id', ?)", (library_id,))
        # Another host may lack whatever this one has: every root's end is due to it.
        db.execute("UPDATE agent_root SET end_due = 1 WHERE scan_json IS NOT NULL")
        for root in self.cache.roots.all():
            root.end_due = int(root.scan_json is not None)
        self._set_acked(db, acked)
        self.drop_payloads(db)

    def _set_acked(self, db, acked: int) -> None:
        self.acked = acked
        self.told = max(self.told, acked)
        db.execute("INSERT OR REPLACE INTO library VALUES (?, ?)", (self.library_id, acked))

    def _shift_above(self, db, last_rev: int) -> None:
        shift = last_rev - self.acked
        for table in ("agent_index", "removed"):
            db.execute(f"UPDATE {table} SET rev = rev + ? WHERE rev > ?", (shift, self.acked))
        self.cache.rev = max(self.cache.rev + shift, last_rev)
        self._set_acked(db, last_rev)
        self.drop_payloads(db)

    def drop_payloads(self, db) -> None:
        db.execute("DELETE FROM outbox WHERE rev >= 0")
        self.forget_made()

    def forget_made(self) -> None:
        """Batches that were made and are not kept will not reach the host as they are."""
        self.feed.clear()
        kept = self.store.one("SELECT coalesce(max(rev), 0) FROM outbox")[0]
        self.told = max(self.acked, kept)

    # -- the next batch --------------------------------------------------------------------------

    def next_batch(self, limit: int) -> Batch | None:
        """The oldest undelivered batch: a kept payload, else made from the rows; None when done."""
        with self.store.lock:
            while True:
                kept = self.store.one("SELECT id, batch_id, payload_json, after_rev, rev"
                                      " FROM outbox ORDER BY id LIMIT 1")
                if kept is None:
                    break
                batch = self._kept_batch(*kept)
                if batch is not None:
                    return batch
            return self._told(self._make_batch(self.acked, limit))

    def batch_behind(self, batch: Batch, limit: int) -> Batch | None:
        """What follows on a batch that is under way, if there is a whole one."""
        with self.store.lock:
            if batch.rev != self.told or self.cache.rev - self.told < limit:
                return None
            return self._told(self._make_batch(self.told, limit))

    def _told(self, batch: Batch | None) -> Batch | None:
        if batch is not None:
            self.told = max(self.told, batch.rev)
        return batch

    def _kept_batch(self, outbox_id, batch_id, payload_json, after_rev, rev) -> Batch | None:
        try:
            body = json.loads(payload_json)
            files, removed = body["files"], body.get("removed") or []
            described = sum("metadata" in record for record in files)
        except (ValueError, TypeError, KeyError):
            self.forget_payload(outbox_id)
            return None
        if rev < 0:
            after_rev = rev = None
        elif after_rev != self.acked:
            with self.store.atomic() as db:
                self.drop_payloads(db)
            return None
        root = {key: body.get(key) for key in ("root", "volume", "volume_path") if key in body}
        keys = body.get("keys") or [record.get("path") for record in files]
        return Batch(batch_id, root, after_rev, rev, [json.dumps(record) for record in files],
                     removed, keys, len(files) + len(removed), described, outbox_id)

    def _make_batch(self, after_rev: int, limit: int) -> Batch | None:
        changes = self._changes(after_rev, limit)
        if not changes:
            return None
        root = self.cache.roots.get(changes[0][1])
        batch = Batch(str(uuid.uuid4()), {"root": root.path, "volume": root.volume,
                                          "volume_path": root.volume_path}, after_rev, after_rev)
        for rev, root_id, row, gone in changes:
            if root_id != root.id:
                break
            if row is None:
                batch.removed.append(root_wire_path(root, gone))
            else:
                self._add_record(batch, root, row)
            batch.rev = rev
            batch.changes += 1
        return batch

    def _changes(self, after_rev: int, limit: int) -> list:
        """[(rev, root_id, row or None, removed path or None)] in the order of rev."""
        gone = self.store.rows("SELECT rev, root_id, path FROM removed WHERE rev > ?"
                               " ORDER BY rev LIMIT ?", (after_rev, limit))
        rows, last_rev = self._some_rows(after_rev, limit)
        changes = [(row[0], row[12], row, None) for row in rows]
        if gone:
            changes += [(rev, root_id, None, path) for rev, root_id, path in gone
                        if last_rev is None or rev < last_rev]
            changes.sort(key=change_rev)
        return changes[:limit]

    def _some_rows(self, after_rev: int, limit: int) -> tuple:
        """(rows, None), or (rows, rev of the last one) where descriptions filled the batch."""
        rows, size_bytes = self.feed.take(after_rev, limit, self.cache.rev), 0
        if rows:
            return rows, None
        cursor = self.store.db.execute(
            f"SELECT {RECORD_COLUMNS} FROM agent_index WHERE rev > ? ORDER BY rev LIMIT ?",
            (after_rev, limit))
        try:
            for row in cursor:
                rows.append(row)
                size_bytes += len(row[16] or "") + 400
                if size_bytes > BATCH_MAX_BYTES:
                    return rows, row[0]
        finally:
            cursor.close()
        return rows, None

    def _add_record(self, batch: Batch, root, row: tuple) -> None:
        path, moved_from = row[1], row[15]
        more = ""
        if moved_from:
            more = self._moved_from(batch, row, root)
        if self.cache.error_count:
            more += self._error_of(path)
        batch.described += bool(row[6] and row[16])
        batch.files.append(record_text(row, root_wire_path(root, path), more))
        batch.keys.append(path)

    def _moved_from(self, batch: Batch, row: tuple, root) -> str:
        """The member of a record that says under which path the host knows the file."""
        path, identity, moved_from = row[1], row[2], row[15]
        there = self.store.one("SELECT inode_key, root_id FROM agent_index WHERE path = ?",
                               (moved_from,))
        if there and there[1] == root.id and moved_from != path \
                and version_prefix(there[0]) == version_prefix(identity):
            return ""  # the same file is back under that name too: it keeps its row there
        wire_path = root_wire_path(root, moved_from)
        if there is None and moved_from.startswith(root.prefix()):
            # Nothing lies at the old path now: said here, whatever the host had there.
            batch.removed.append(wire_path)
        return f',"moved_from":{encode_basestring_ascii(wire_path)}'

    def _error_of(self, path: str) -> str:
        """The member of a record that says what could not be done with the file."""
        row = self.store.one("SELECT stage, class, message FROM agent_error WHERE path = ?"
                             " AND class != 'unfinished' LIMIT 1", (path,))
        if row is None:
            return ""
        return ',"error":' + json.dumps({"stage": row[0], "class": row[1], "message": row[2]})

    # -- keeping and acknowledging ---------------------------------------------------------------

    def keep(self, batch: Batch) -> None:
        """Put a batch that could not be delivered into the outbox, to be sent again as it is; not
        one that was made before its root moved, say (see forget_made).
        """
        with self.store.atomic() as db:
            if batch.outbox_id is None and batch.rev is not None and batch.rev <= self.told:
                self._insert_payload(db, batch)

    def _insert_payload(self, db, batch: Batch) -> int:
        text = batch_text({**batch.outline(), "keys": batch.keys}, batch.files)
        batch.outbox_id = db.execute(
            "INSERT INTO outbox (batch_id, payload_json, created_at, after_rev, rev, size_bytes)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (batch.batch_id, text, self.cache.clock(), batch.after_rev, batch.rev,
             len(text))).lastrowid
        self.told = max(self.told, batch.rev)
        return len(text)

    def pack(self, limit: int) -> None:
        """While the host is away: put what is undelivered behind the kept payloads, within bounds.
        What does not fit stays in the rows and is sent from there.
        """
        self._drop_old_states()
        count, size_bytes = self.store.one("SELECT count(*), coalesce(sum(size_bytes), 0)"
                                           " FROM outbox")
        while count < OUTBOX_MAX_ROWS and size_bytes < OUTBOX_MAX_BYTES:
            with self.store.atomic() as db:
                last = db.execute("SELECT max(rev) FROM outbox WHERE rev >= 0").fetchone()[0]
                batch = self._make_batch(self.acked if last is None else last, limit)
                if batch is None:
                    return
                size_bytes += self._insert_payload(db, batch)
                count += 1

    def _drop_old_states(self) -> None:
        """Keep what waits bounded by the number of files, not of changes: payloads tell of files
        that have changed again since. Once there are more changes than rows that wait, all
        payloads but the first, which the host may have executed, are made anew from the rows.
        """
        first = self.store.one("SELECT id, rev FROM outbox WHERE rev >= 0 ORDER BY id LIMIT 1")
        if first is None or 2 * (self.cache.rev - self._packed_at) <= self.undelivered():
            return
        with self.store.atomic() as db:
            db.execute("DELETE FROM outbox WHERE rev >= 0 AND id > ?", (first[0],))
        self.told = max(self.acked, first[1])
        self._packed_at = self.cache.rev

    def acknowledge(self, batch: Batch, errors: list) -> None:
        """The host has committed this batch, apart from the records it names in `errors`."""
        with self.cache.writing() as writer:
            db = writer.db
            if batch.outbox_id is not None:
                db.execute("DELETE FROM outbox WHERE id = ?", (batch.outbox_id,))
            if batch.rev is not None:
                self._readmit(db, batch)
                self._set_acked(db, batch.rev)
                db.execute("DELETE FROM removed WHERE rev <= ?", (batch.rev,))
            for error in errors:
                if isinstance(error, dict):
                    self._quarantine(db, batch, error)

    def _readmit(self, db, batch: Batch) -> None:
        """Rows that were refused before (by another library, say) and are taken now."""
        rows = db.execute(
            "SELECT path, root_id, size, digest FROM agent_index WHERE rejected IS NOT NULL"
            " AND rev > ? AND rev <= ?", (batch.after_rev, batch.rev)).fetchall()
        for path, root_id, size, digest in rows:
            self.cache.roots.add(root_id, 1, size, digest)
            db.execute("UPDATE agent_index SET rejected = NULL WHERE path = ?", (path,))

    def _quarantine(self, db, batch: Batch, error: dict) -> None:
        index = error.get("index")
        if not isinstance(index, int) or not 0 <= index < len(batch.keys):
            return
        path, reason = batch.keys[index], str(error.get("error") or "refused")[:300]
        row = db.execute("SELECT root_id, size, digest, rejected, rev FROM agent_index"
                         " WHERE path = ?", (path,)).fetchone()
        if row is None or (batch.rev is not None and row[4] > batch.rev):
            return  # it has changed since; the new version is judged on its own
        log.warning("the host does not take %s: %s", path, reason)
        if row[3] is None:
            self.cache.roots.subtract(row[0], row[1], row[2])
        db.execute("UPDATE agent_index SET rejected = ? WHERE path = ?", (reason, path))

    def forget_payload(self, outbox_id: int) -> None:
        """Drop one payload; what was made after it no longer follows on anything."""
        with self.store.atomic() as db:
            db.execute("DELETE FROM outbox WHERE id = ?", (outbox_id,))
            self.drop_payloads(db)

    def take_back(self, batch: Batch) -> None:
        """The host does not take this batch: others are made from the rows."""
        if batch.outbox_id is not None:
            self.forget_payload(batch.outbox_id)
        else:
            with self.store.lock:
                self.forget_made()

    def send_again(self, folder_id: int) -> None:
        """Number all rows of a folder anew, so that they are delivered again."""
        with self.store.atomic() as db:
            rows = db.execute("SELECT rowid FROM agent_index WHERE folder_id = ?"
                              " AND rejected IS NULL", (folder_id,)).fetchall()
            db.executemany("UPDATE agent_index SET rev = ?, moved_from = NULL WHERE rowid = ?",
                           [(self.cache.next_rev(), row[0]) for row in rows])

    def remove_path(self, root, path: str) -> None:
        """Tell the host that nothing lies at this path (an index path)."""
        with self.store.atomic() as db:
            db.execute("INSERT OR REPLACE INTO removed VALUES (?, ?, ?)",
                       (path, root.id, self.cache.next_rev()))

    def undelivered(self, at_most: int = 100_000) -> int:
        """How many rows and removals the host has not acknowledged (counted up to `at_most`)."""
        total = 0
        for table in ("agent_index", "removed"):
            total += self.store.one(f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE rev > ?"
                                    " LIMIT ?)", (self.acked, at_most))[0]
        return total + self.store.one("SELECT count(*) FROM outbox WHERE rev < 0")[0]


def change_rev(change: tuple) -> int:
    return change[0]
