"""One file's row in the catalogue and its other forms: the record, the digest, the answer."""

from __future__ import annotations

import math
from typing import NamedTuple

from .catalog_schema import (
    ALGO_CODES,
    ALGO_NAMES,
    FLAG_PROBED,
    FLAG_WHOLE,
    KIND_NAMES,
)
from .scan_common import DIGEST_MODULUS, row_digest, same_version

INODE_MASK = (1 << 64) - 1
INT64_MAX = (1 << 63) - 1
NS_PER_S = 1_000_000_000


class FileRow(NamedTuple):
    """All columns of `file`, in the order of the table."""

    id: int
    folder: int
    name: str
    kind: int
    ext: int
    size: int
    mtime_ns: int
    mtime: float | None
    ctime: float | None
    ino: int
    dev: int
    key_text: str | None
    algo: int | None
    sample_size: int | None
    sample_hash: bytes | None
    full_hash: bytes | None
    flags: int
    state: int
    reason: int | None
    first_seen: int
    changed: int
    seq: int


FILE_COLUMNS = ", ".join(FileRow._fields)
FILE_COLUMNS_OF_F = ", ".join(f"f.{name}" for name in FileRow._fields)
FILE_INSERT = (
    f"INSERT INTO file ({FILE_COLUMNS}) VALUES ({', '.join('?' * len(FileRow._fields))})")
# The columns of a new row that is present and of which no others are known; then with its mtime.
PLAIN_INSERT = (
    "INSERT INTO file (id, folder, name, kind, ext, size, mtime_ns, ctime, ino, dev, algo,"
    " sample_size, sample_hash, flags, state, first_seen, changed, seq)"
    " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, 0, ?15, ?15, ?16)")
PLAIN_INSERT_MTIME = PLAIN_INSERT.replace("seq)", "seq, mtime)").replace("?16)", "?16, ?17)")
FILE_REPLACE = (
    f"UPDATE file SET {', '.join(f'{name} = ?' for name in FileRow._fields[1:])} WHERE id = ?")


class FileRecord(NamedTuple):
    """A checked record of a batch. `mtime` is None where `mtime_ns` gives it exactly, `key_text`
    where the numbers give it. `metadata` is None or (duration, container, video_codec,
    audio_codecs as JSON text, width, height, bitrate, streams_json). `folder` and `name` are the
    two parts of `path`; `digest` is only there for a plain record, which has nothing from
    `reason` to `error`, no key_text and no full_hash: the 8 bytes of its new row's `row_digest`.
    """

    index: int
    path: str
    kind: int
    ext: str
    size: int
    mtime_ns: int
    mtime: float | None
    ctime: float | None
    ino: int
    dev: int
    key_text: str | None
    algo: int | None
    sample_size: int | None
    sample_hash: bytes | None
    full_hash: bytes | None
    whole: int
    reason: str | None
    metadata: tuple | None
    moved_from: str | None
    error: tuple | None
    folder: str
    name: str
    digest: bytes | None


def ns_as_float(mtime_ns: int) -> float:
    """The float that Python's `stat` gives beside this number of nanoseconds."""
    seconds, rest = divmod(mtime_ns, NS_PER_S)
    return seconds + 1e-9 * rest


def clamped_ns(mtime: float) -> int:
    """A time for sorting and filtering, as near as 64 bits allow."""
    if not math.isfinite(mtime):
        return 0
    return max(-INT64_MAX, min(INT64_MAX, round(mtime * NS_PER_S)))


def signed_inode(ino: int) -> int:
    """A 64-bit inode number as SQLite's signed integer; larger ones keep their low bits."""
    ino &= INODE_MASK
    return ino - (1 << 64) if ino > INT64_MAX else ino


def signed_sum(digest: int) -> int:
    """A digest modulo 2**64 as SQLite's signed integer."""
    digest %= DIGEST_MODULUS
    return digest - DIGEST_MODULUS if digest > INT64_MAX else digest


def digest_hex(signed: int) -> str:
    """The form of a digest on the wire."""
    return f"{signed % DIGEST_MODULUS:016x}"


def row_inode_key(row) -> str:
    """The identity of a FileRow or FileRecord as it came over the wire."""
    if row.key_text is not None:
        return row.key_text
    return f"{row.size}:{row.mtime_ns}:{row.ino & INODE_MASK}:{row.dev}"


def row_mtime(row) -> float:
    return ns_as_float(row.mtime_ns) if row.mtime is None else row.mtime


def is_same_identity(row, record) -> bool:
    """Whether both are the same content version (see scan_common.same_version)."""
    if row.key_text is None and record.key_text is None:
        return (row.mtime_ns == record.mtime_ns and row.size == record.size
                and row.ino == record.ino)
    return same_version(row_inode_key(row), row_inode_key(record))


def full_hash_of(row) -> bytes | None:
    """The hash of all of the file's bytes, if it is known."""
    return row.sample_hash if row.flags & FLAG_WHOLE else row.full_hash


def digest_of_row(row, rel_folder: str) -> int:
    """scan_common.row_digest of a stored row."""
    sample, full = row.sample_hash, row.full_hash
    sample_hex = sample.hex() if sample else None
    full_hex = sample_hex if row.flags & FLAG_WHOLE else full.hex() if full else None
    return row_digest(
        f"{rel_folder}/{row.name}" if rel_folder else row.name, row_inode_key(row),
        KIND_NAMES[row.kind], ALGO_NAMES.get(row.algo), sample_hex, full_hex,
        row.flags & FLAG_PROBED,
    )


def hashes_as_json(row) -> dict | None:
    """The record's `hashes`, or None while the file has not been read."""
    if row.sample_hash is None:
        return None
    full = full_hash_of(row)
    return {
        "algo": ALGO_NAMES.get(row.algo), "sample_size": row.sample_size,
        "sample_hash": row.sample_hash.hex(), "full_hash": full.hex() if full else None,
    }


def duplicate_key_of(row) -> tuple | None:
    """(size, algo, sample_size, sample_hash, full_hash or None); None for what is never grouped."""
    if row.sample_hash is None or row.size == 0:
        return None
    return row.size, row.algo, row.sample_size, row.sample_hash, full_hash_of(row)


def folder_key_bytes(rel: str) -> bytes:
    """`folder.key` of a relative path: its byte order is the order of the walk."""
    return rel.replace("/", "\0").encode("utf-8")


def rel_of_key(key: bytes) -> str:
    return key.decode("utf-8").replace("\0", "/")


def algo_code(name: str) -> int:
    return ALGO_CODES[name]
