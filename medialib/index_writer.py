"""Applies changes to the index: rows, their numbers, tombstones, and the sums of each root."""

from __future__ import annotations

from .base import MedialibError
from .cache_batch import PLAIN_RECORD_COLUMNS
from .cache_changes import Failure, GoneFile, PutFile
from .scan_common import DIGEST_MODULUS, inode_number, row_digest, version_prefix

# A row that is new in every respect leaves out what it cannot have: SQLite's own default is quicker
# than handing a None to sqlite3, which asks for an adapter of it each time.
FRESH_COLUMNS = (
    f"{PLAIN_RECORD_COLUMNS}, last_seen, last_hashed_at, folder_id, racy, digest, ino"
)
FRESH_WIDTH = 20
INDEX_COLUMNS = f"{FRESH_COLUMNS}, reason, moved_from, metadata"
INDEX_INSERT = f"INSERT OR REPLACE INTO agent_index ({INDEX_COLUMNS}) VALUES ({'?,' * 22}?)"
FRESH_INSERT = f"INSERT OR REPLACE INTO agent_index ({FRESH_COLUMNS}) VALUES ({'?,' * 19}?)"
FORMER_COLUMNS = (
    "inode_key, root_id, ctime, kind, probed, hashed, hash_algo, hash_sample_size, sample_hash,"
    " full_hash, last_hashed_at, racy, metadata"
)
NO_FACTS = (None, None, None, None, None)
# Under the path that the host knows: a move that was not delivered is news only to us.
KEEP_FORMER = (
    f"INSERT INTO former (path, {FORMER_COLUMNS}) SELECT CASE WHEN rev > ? THEN"
    f" coalesce(moved_from, path) ELSE path END, {FORMER_COLUMNS} FROM agent_index"
)


def signed_digest(value: int) -> int:
    """A 64-bit digest as SQLite's signed integer."""
    return value - DIGEST_MODULUS if value >= DIGEST_MODULUS // 2 else value


class IndexWriter:
    """Applies changes inside one transaction and keeps each root's count, bytes and digest.

    `told` is the highest number that the host has, or gets in a batch made before this change.
    `fresh` are the rows that it has put in (values of FRESH_COLUMNS, behind them the reason if
    there is one), which is all that it changed as long as it did `only_fresh` ones.
    """

    def __init__(self, cache, db):
        self.cache = cache
        self.db = db
        self.now = cache.clock()
        self.told = cache.outbox.told
        self.fresh = []
        self.only_fresh = True
        self.unsealed = set()  # folders that have no seal any more

    def apply(self, changes: list) -> None:
        fresh = []
        for change in changes:
            verb = change.verb
            if verb == "put":
                if change.fresh and not change.probed and change.moved_from is None:
                    fresh.append(change)
                else:
                    self.put(change)
                    self.only_fresh = False
                continue
            if verb != "put_folder":
                self.only_fresh = False
                if fresh:  # all others may concern a row before them
                    self.insert_fresh(fresh)
                    fresh = []
            self.apply_other(verb, change)
        self.insert_fresh(fresh)

    def apply_other(self, verb: str, change) -> None:
        if verb == "gone":
            self.gone(change)
        elif verb == "put_folder":
            self.db.execute("INSERT OR REPLACE INTO agent_folder (id, root_id, parent_id, rel)"
                            " VALUES (?, ?, ?, ?)", change)
        elif verb == "seal_folder":
            self.db.execute("UPDATE agent_folder SET seal = ? WHERE id = ?",
                            (change.seal, change.id))
            self.unsealed.discard(change.id)
        elif verb == "gone_folder":
            self.db.execute("DELETE FROM agent_folder WHERE id = ?", change)
        elif verb == "full_hash":
            self.update(change.path, change.inode_key, full_hash=change.full_hash)
            self.forget_failure(change.path, "full")
        elif verb == "described":
            self.update(change.path, change.inode_key, metadata=change.metadata, probed=1)
            self.forget_failure(change.path, "probe")
        elif verb == "failed":
            self.failed(change)
        elif verb == "confirmed":
            self.unseal(self.cache.folder_of(change.path))
            self.db.execute("UPDATE agent_index SET racy = ?, last_hashed_at = ?"
                            " WHERE path = ? AND inode_key = ?",
                            (int(change.racy), change.hashed_at, change.path, change.inode_key))
            self.forget_failure(change.path, "read")
        elif verb == "clear_failure":
            self.forget_failure(change.path, change.stage)
        else:
            raise MedialibError(f"not a change: {change!r}")

    def finish(self) -> None:
        self.cache.roots.store_totals(self.db)

    def unseal(self, folder_id: int | None) -> None:
        """A row of this folder changes: the next scan must compare them one by one."""
        if folder_id not in self.unsealed:
            self.db.execute("UPDATE agent_folder SET seal = NULL WHERE id = ?"
                            " AND seal IS NOT NULL", (folder_id,))
            self.unsealed.add(folder_id)

    def insert_fresh(self, puts: list) -> None:
        """Rows for paths that cannot be in the index yet (the first scan of an empty cache)."""
        # The same path twice in one batch: the later one is right.
        seen = {put.path: put for put in puts}
        rows = self.rows_of(seen.values())
        self.db.executemany(FRESH_INSERT, rows)
        reasons = {path: put.reason for path, put in seen.items() if put.reason is not None}
        if reasons:
            self.db.executemany("UPDATE agent_index SET reason = ? WHERE path = ?",
                                [(reason, path) for path, reason in reasons.items()])
            rows = [(*row, reasons.get(row[1])) for row in rows]
        self.fresh += rows
        for folder_id in {put.folder_id for put in puts}:
            self.unseal(folder_id)
        if self.cache.error_count:
            for put in puts:
                if put.facts is not None:
                    self.forget_failure(put.path, "read")

    def rows_of(self, puts) -> list:
        """[values of FRESH_COLUMNS]; the rows count in their roots' sums from now on."""
        rows, sums, rev, now = [], {}, self.cache.rev, self.now
        for put in puts:
            _, _, size, mtime, ctime, key, _ = put.found
            facts, kind, root_id, probed = put.facts, put.kind, put.root_id, put.probed
            algo, sample_size, sample, full, at = facts or NO_FACTS
            digest = row_digest(put.rel, key, kind, algo, sample, full, probed)
            if root_id not in sums:
                sums[root_id] = [0, 0, 0]
            count = sums[root_id]
            count[0] += 1
            count[1] += size
            count[2] += digest
            rev += 1
            rows.append((
                rev, put.path, key, size, mtime, ctime, 1 if probed else 0,
                0 if facts is None else 1, algo, sample_size, sample, full, root_id, kind, now, at,
                put.folder_id, 1 if put.racy else 0, signed_digest(digest), inode_number(key),
            ))
        self.cache.rev = rev
        for root_id, count in sums.items():
            self.cache.roots.add(root_id, *count)
        return rows

    def put(self, put: PutFile) -> None:
        self.db.execute("DELETE FROM removed WHERE path = ? AND root_id = ?",
                        (put.path, put.root_id))
        self.unseal(put.folder_id)
        old, moved_from = self.old_row(put.path), put.moved_from
        if moved_from == put.path:
            moved_from = None  # from one root to another round it: `replace` sees to it
        elif moved_from is not None:
            moved_from = self.take_from(put)
        if old is not None:
            moved_from = self.replace(old, put, moved_from)
        elif put.moved_from == put.path:
            moved_from = put.path
        row, = self.rows_of([put])
        self.db.execute(INDEX_INSERT, (*row, put.reason, moved_from, put.metadata))
        if put.facts is not None:
            self.forget_failure(put.path, "read")

    def replace(self, old: dict, put: PutFile, moved_from: str | None) -> str | None:
        """Another row takes the place of this one; where the host finds the new one's content."""
        self.drop_row(old)
        undelivered = old["rev"] > self.told
        if version_prefix(old["inode_key"]) == version_prefix(put.found.inode_key):
            if moved_from is None and undelivered:
                return old["moved_from"]  # the host has not heard of that move yet
            if old["root_id"] != put.root_id:
                return put.path
            return moved_from
        self.keep_former(put.path)
        if undelivered and old["moved_from"] != moved_from:
            self.left_behind(old)
        if old["root_id"] != put.root_id:
            self.tombstone(put.path, old["root_id"])
        return moved_from

    def left_behind(self, old: dict) -> None:
        """To the host this file still lies under its first path; nothing may be there now."""
        path = old["moved_from"]
        if path is not None and self.old_row(path) is None:
            self.tombstone(path, old["root_id"])

    def keep_former(self, path: str) -> None:
        self.db.execute(f"{KEEP_FORMER} WHERE path = ?", (self.told, path))

    def take_from(self, put: PutFile) -> str | None:
        """Remove the row that moved to put.path; the old path as the host knows it."""
        if self.cache.error_count:
            self.move_failures(put)
        old = self.old_row(put.moved_from)
        if old is None or version_prefix(old["inode_key"]) != version_prefix(put.found.inode_key):
            return put.moved_from
        self.drop_row(old)
        self.db.execute("DELETE FROM agent_index WHERE path = ?", (put.moved_from,))
        undelivered = old["rev"] > self.told
        if undelivered or old["root_id"] != put.root_id:
            self.tombstone(put.moved_from, old["root_id"])
        if undelivered and old["moved_from"]:
            return old["moved_from"] if old["moved_from"] != put.path else None
        return put.moved_from

    def move_failures(self, put: PutFile) -> None:
        """What ffprobe could not do it cannot do under the new name either."""
        prefix = version_prefix(put.found.inode_key)
        self.db.execute(
            "UPDATE OR REPLACE agent_error SET path = ?, root_id = ?"
            " WHERE path = ? AND inode_key >= ? AND inode_key < ?",
            (put.path, put.root_id, put.moved_from, prefix, prefix[:-1] + ";"))

    def gone(self, change: GoneFile) -> None:
        old = self.old_row(change.path)
        if old is None or old["root_id"] != change.root_id:
            return
        self.keep_former(change.path)
        self.drop_row(old)
        self.db.execute("DELETE FROM agent_index WHERE path = ?", (change.path,))
        if self.cache.error_count:
            # What ffprobe said waits for the file to turn up elsewhere, until forget_former.
            self.cache.error_count -= self.db.execute(
                "DELETE FROM agent_error WHERE path = ? AND stage != 'probe'",
                (change.path,)).rowcount
        self.tombstone(change.path, old["root_id"])
        if old["rev"] > self.told:
            self.left_behind(old)

    def tombstone(self, path: str, root_id: int) -> None:
        self.db.execute("INSERT OR REPLACE INTO removed VALUES (?, ?, ?)",
                        (path, root_id, self.cache.next_rev()))

    def failed(self, failure: Failure) -> None:
        known = self.db.execute(
            "SELECT attempts, inode_key, class, message, tool FROM agent_error"
            " WHERE path = ? AND stage = ?", (failure.path, failure.stage)).fetchone()
        same = known is not None and known[1] == failure.inode_key and known[4] == failure.tool
        # The attempt was counted when it began; its verdict replaces "unfinished".
        begun = same and known[2] == "unfinished" and failure.error_class != "unfinished"
        attempts = (known[0] if same else 0) + (0 if begun else 1)
        self.db.execute(
            "INSERT OR REPLACE INTO agent_error VALUES (?,?,?,?,?,?,?,?,?,?)",
            (failure.path, failure.stage, failure.root_id, failure.inode_key, failure.error_class,
             failure.message[:500], attempts, failure.next_try, failure.tool, self.now))
        self.cache.error_count += known is None
        told = same and (known[2], known[3]) == (failure.error_class, failure.message[:500])
        if failure.error_class != "unfinished" and not told:
            self.db.execute(
                "UPDATE agent_index SET rev = ?, moved_from = CASE WHEN rev > ? THEN moved_from END"
                " WHERE path = ?", (self.cache.next_rev(), self.told, failure.path))

    def forget_failure(self, path: str, stage: str) -> None:
        if self.cache.error_count:
            done = self.db.execute("DELETE FROM agent_error WHERE path = ? AND stage = ?",
                                   (path, stage)).rowcount
            self.cache.error_count -= done

    def old_row(self, path: str) -> dict | None:
        names = ("root_id", "size", "digest", "rev", "inode_key", "moved_from", "rejected",
                 "folder_id")
        row = self.db.execute(f"SELECT {', '.join(names)} FROM agent_index WHERE path = ?",
                              (path,)).fetchone()
        return dict(zip(names, row)) if row else None

    def drop_row(self, old: dict) -> None:
        self.unseal(old["folder_id"])
        self.drop_totals(old)

    def drop_totals(self, old: dict) -> None:
        if old["rejected"] is None:
            self.cache.roots.subtract(old["root_id"], old["size"], old["digest"])

    def update(self, path: str, expected_key: str | None = None, **values) -> bool:
        """Change columns of one row, if it is (still) the version that was meant."""
        names = ("root_id", "size", "digest", "inode_key", "kind", "hash_algo", "sample_hash",
                 "full_hash", "probed", "rejected", "rev", "moved_from")
        row = self.db.execute(f"SELECT {', '.join(names)} FROM agent_index WHERE path = ?",
                              (path,)).fetchone()
        if row is None:
            return False
        old = dict(zip(names, row))
        if expected_key and version_prefix(old["inode_key"]) != version_prefix(expected_key):
            return False
        new = {**old, **values}
        digest = row_digest(self.cache.roots.rel_path(old["root_id"], path), new["inode_key"],
                            new["kind"], new["hash_algo"], new["sample_hash"], new["full_hash"],
                            new["probed"])
        self.drop_totals(old)
        self.cache.roots.add(old["root_id"], 1, old["size"], digest)
        if old["rev"] <= self.told:
            values["moved_from"] = None  # the host has made that move; it must not try again
        values.update(digest=signed_digest(digest), rejected=None, rev=self.cache.next_rev())
        columns = ", ".join(f"{name} = ?" for name in values)
        self.db.execute(f"UPDATE agent_index SET {columns} WHERE path = ?",
                        (*values.values(), path))
        return True
