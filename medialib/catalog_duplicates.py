"""Duplicate groups, kept up to date with the rows they are made of.

Confirmed: equal full hashes by the same function. Candidate: equal sample hashes where at least one
file has not been read whole. What counts is copies: hard links and one file seen under two paths
are one copy, known by (volume or agent, inode). Missing files are no copies; those on a disk that
is merely unplugged are.
"""

from __future__ import annotations

import collections

from .catalog_schema import (
    FLAG_WHOLE,
    GROUP_CANDIDATE,
    GROUP_CONFIRMED,
    HASH_PREFIX_BYTES,
    STATE_PRESENT,
)

DUPLICATE_CHUNK = 256
DUPLICATE_LARGE = 2000  # groups with more files are counted again only when there is time
MEMBER_SQL = (
    "SELECT f.id, f.size, f.algo, f.sample_size, f.sample_hash, f.full_hash, f.flags, f.ino, f.dev,"
    " r.agent, r.volume FROM file f JOIN folder d ON d.id = f.folder JOIN root r ON r.id = d.root"
    " WHERE f.state = 0 AND f.size > 0 AND substr(f.{column}, 1, {prefix}) IN ({marks})"
    " AND f.{column} IS NOT NULL"
)


class DuplicateMember(collections.namedtuple(
        "DuplicateMember", "id size algo sample_size sample_hash full_hash flags ino dev agent"
                           " volume")):
    """A present file with a sample hash, and where its bytes are."""

    __slots__ = ()

    def full(self) -> bytes | None:
        return self.sample_hash if self.flags & FLAG_WHOLE else self.full_hash

    def copy_key(self) -> tuple:
        """Equal for two paths of the same bytes on the same disk."""
        if not self.ino:
            return ("file", self.id)  # no inode is known: each path is taken for a copy
        if self.volume is not None:
            return ("volume", self.volume, self.ino)
        return ("agent", self.agent, self.dev, self.ino)


def update_duplicates(db, joined: set, left: set) -> None:
    """Count the groups again that rows with these keys (see duplicate_key_of) have joined or left.
    """
    _count_again(db, left | _shared_keys(db, joined - left))


def update_duplicates_of_new(db, first: int, records: list) -> None:
    """Count the groups that plain new files have joined; no row before number `first` is new."""
    _count_again(db, _shared_keys_of_new(db, first, records))


def _count_again(db, keys: set) -> None:
    keys = _postpone_large(db, keys) if keys else keys
    if not keys:
        return
    samples = {key[:4] for key in keys}
    fulls = {(key[0], key[1], key[4]) for key in keys if key[4] is not None}
    hashes = sorted({key[3] for key in keys} | {key[2] for key in fulls})
    members = _members_sharing(db, hashes)
    wanted = candidate_groups(members, samples)
    wanted.update(confirmed_groups(members, fulls))
    _store_groups(db, hashes, samples, fulls, wanted)


def _postpone_large(db, keys: set) -> set:
    """Without the keys of very large groups, which are put on the list of what is due."""
    large = set(db.execute("SELECT hash, size, algo FROM duplicate INDEXED BY duplicate_large"
                           f" WHERE files > {DUPLICATE_LARGE} ORDER BY files DESC LIMIT 1000"))
    if not large:
        return keys
    later = set()
    for key in keys:
        groups = [(hash_, key[0], key[1]) for hash_ in {key[3], key[4]} - {None}]
        if not large.isdisjoint(groups):
            later.add(key)
            db.executemany("INSERT OR IGNORE INTO duplicate_due VALUES (?, ?, ?)", groups)
    return keys - later


def _in_chunks(values: list):
    for start in range(0, len(values), DUPLICATE_CHUNK):
        yield values[start:start + DUPLICATE_CHUNK]


def _shared_keys(db, keys: set) -> set:
    """The keys that another file may have as well. Most hashes are nobody else's: the two indexes
    alone tell, and no row need be fetched.
    """
    prefixes = {hash_[:HASH_PREFIX_BYTES] for key in keys for hash_ in key[3:] if hash_}
    counts: collections.Counter = collections.Counter()
    for part in _in_chunks(list(prefixes)):
        for column in ("sample_hash", "full_hash"):
            prefix = f"substr({column}, 1, {HASH_PREFIX_BYTES})"
            counts.update([row[0] for row in db.execute(
                f"SELECT {prefix} FROM file WHERE {prefix} IN ({','.join('?' * len(part))})"
                f" AND {column} IS NOT NULL", part)])
    shared = {prefix for prefix, count in counts.items() if count > 1}
    return {key for key in keys if shared and not shared.isdisjoint(
        hash_[:HASH_PREFIX_BYTES] for hash_ in key[3:] if hash_)}


def _shared_keys_of_new(db, first: int, records: list) -> set:
    """The keys of new files that another file may have as well: one of them, or one before row
    `first`, of which the indexes mostly say without fetching anything that there is none. (Bytes
    are bound as bytearrays: Python's sqlite3 searches for an adapter for each that it does not.)
    """
    prefixes = [record.sample_hash[:HASH_PREFIX_BYTES] for record in records]
    distinct, shared = set(prefixes), set()
    if len(distinct) < len(prefixes):
        shared = {one for one, count in collections.Counter(prefixes).items() if count > 1}
    for part in _in_chunks(list(distinct)):
        for column in ("sample_hash", "full_hash"):
            prefix = f"substr({column}, 1, {HASH_PREFIX_BYTES})"
            shared.update(row[0] for row in db.execute(
                f"SELECT {prefix} FROM file WHERE {prefix} IN ({','.join('?' * len(part))})"
                f" AND {column} IS NOT NULL AND id < ?", (*map(bytearray, part), first)))
    if not shared:
        return set()
    return {(one.size, one.algo, one.sample_size, one.sample_hash,
             one.sample_hash if one.whole else None)
            for one, prefix in zip(records, prefixes) if prefix in shared}


def _members_sharing(db, hashes: list) -> list:
    """All present files with one of these as sample or full hash (some only share a prefix)."""
    found: dict = {}
    prefixes = sorted({one[:HASH_PREFIX_BYTES] for one in hashes})
    for part in _in_chunks(prefixes):
        for column in ("sample_hash", "full_hash"):
            sql = MEMBER_SQL.format(column=column, prefix=HASH_PREFIX_BYTES,
                                    marks=",".join("?" * len(part)))
            for row in db.execute(sql, part):
                found[row[0]] = DuplicateMember(*row)
    return list(found.values())


def candidate_groups(members: list, samples: set) -> dict:
    """{(hash, state, size, algo, sample_size): (copies, files)} of the sample hashes asked for."""
    by_sample: dict = {}
    for member in members:
        key = (member.size, member.algo, member.sample_size, member.sample_hash)
        if key in samples:
            by_sample.setdefault(key, []).append(member)
    groups = {}
    for (size, algo, sample_size, sample), some in by_sample.items():
        copies = len({member.copy_key() for member in some})
        if copies > 1 and any(member.full() is None for member in some):
            groups[sample, GROUP_CANDIDATE, size, algo, sample_size] = (copies, len(some))
    return groups


def confirmed_groups(members: list, fulls: set) -> dict:
    """The same of the full hashes asked for; their sample size does not matter and is 0."""
    by_full: dict = {}
    for member in members:
        key = (member.size, member.algo, member.full())
        if key in fulls:
            by_full.setdefault(key, []).append(member)
    groups = {}
    for (size, algo, full), some in by_full.items():
        copies = len({member.copy_key() for member in some})
        if copies > 1:
            groups[full, GROUP_CONFIRMED, size, algo, 0] = (copies, len(some))
    return groups


def _store_groups(db, hashes: list, samples: set, fulls: set, wanted: dict) -> None:
    stored = _stored_groups(db, hashes, samples, fulls)
    for key in stored.keys() - wanted.keys():
        _drop_group(db, key, stored[key])
    for key, (copies, files) in wanted.items():
        old = stored.get(key)
        if old is None or old[1:3] != (copies, files):
            _put_group(db, key, copies, files, old)


def _stored_groups(db, hashes: list, samples: set, fulls: set) -> dict:
    """{key: (id, copies, files, reclaimable, potential)} of the groups asked for."""
    stored = {}
    for part in _in_chunks(hashes):
        rows = db.execute(
            "SELECT hash, state, size, algo, sample_size, id, copies, files, reclaimable, potential"
            f" FROM duplicate WHERE hash IN ({','.join('?' * len(part))})", part)
        for row in rows:
            hash_, state, size, algo, sample_size = row[:5]
            asked = ((size, algo, hash_) in fulls if state == GROUP_CONFIRMED
                     else (size, algo, sample_size, hash_) in samples)
            if asked:
                stored[row[:5]] = row[5:]
    return stored


def _put_group(db, key: tuple, copies: int, files: int, old: tuple | None) -> None:
    hash_, state, size, algo, sample_size = key
    gain = size * (copies - 1)
    reclaimable, potential = (gain, 0) if state == GROUP_CONFIRMED else (0, gain)
    if old is not None:
        _add_total(db, state, -1, -old[2], -old[3], -old[4])
        db.execute("UPDATE duplicate SET copies=?, files=?, reclaimable=?, potential=? WHERE id=?",
                   (copies, files, reclaimable, potential, old[0]))
    else:
        db.execute("INSERT INTO duplicate (hash, state, size, algo, sample_size, copies, files,"
                   " reclaimable, potential) VALUES (?,?,?,?,?,?,?,?,?)",
                   (hash_, state, size, algo, sample_size, copies, files, reclaimable, potential))
    _add_total(db, state, 1, files, reclaimable, potential)


def _drop_group(db, key: tuple, old: tuple) -> None:
    _add_total(db, key[1], -1, -old[2], -old[3], -old[4])
    db.execute("DELETE FROM duplicate WHERE id = ?", (old[0],))


def _add_total(db, state: int, groups: int, files: int, reclaimable: int, potential: int) -> None:
    db.execute("UPDATE duplicate_total SET groups = groups + ?, files = files + ?,"
               " reclaimable = reclaimable + ?, potential = potential + ? WHERE state = ?",
               (groups, files, reclaimable, potential, state))


def settle_due_duplicates(db) -> bool:
    """Count one of the very large groups that changed; whether there was one."""
    row = db.execute("SELECT hash, size, algo FROM duplicate_due LIMIT 1").fetchone()
    if row is None:
        return False
    db.execute("DELETE FROM duplicate_due WHERE hash = ? AND size = ? AND algo = ?", row)
    hash_, size, algo = row
    members = _members_sharing(db, [hash_])
    fulls = {(size, algo, hash_)}
    samples = {(m.size, m.algo, m.sample_size, m.sample_hash) for m in members
               if (m.size, m.algo) == (size, algo)}
    wanted = candidate_groups(members, samples)
    wanted.update(confirmed_groups(members, fulls))
    _store_groups(db, sorted({hash_} | {key[3] for key in samples}), samples, fulls, wanted)
    return True


def recount_root_duplicates(db, root_id: int, after: int, limit: int) -> int | None:
    """The groups of a root's files counted again (its volume has changed, and with it what is one
    copy); the last file looked at, or None at the end.
    """
    rows = db.execute(
        "SELECT f.id, f.size, f.algo, f.sample_size, f.sample_hash, f.full_hash, f.flags"
        " FROM file f JOIN folder d ON d.id = f.folder WHERE f.id > ? AND d.root = ?"
        " AND f.sample_hash IS NOT NULL AND f.size > 0 AND f.state = ? ORDER BY f.id LIMIT ?",
        (after, root_id, STATE_PRESENT, limit)).fetchall()
    update_duplicates(db, set(), {
        (size, algo, sample_size, sample, sample if flags & FLAG_WHOLE else full)
        for _, size, algo, sample_size, sample, full, flags in rows})
    return rows[-1][0] if len(rows) == limit else None
