"""Hashes of files: blake3 and xxhash64 where they are installed, sha256 everywhere.

A hash belongs to one stat: the file is opened without following links, compared with what the walk
saw, read, and compared again. Whatever differs in between raises FileChanging and yields no hash.
"""

from __future__ import annotations

import os
import stat
import time
from typing import NamedTuple

try:
    import blake3
except ImportError:
    blake3 = None
try:
    import xxhash
except ImportError:
    xxhash = None

from .late import hashlib

HASH_CHUNK_BYTES = 1 << 20
HASH_DROP_BYTES = 16 << 20  # how much is read before the page cache behind is given back
_HASH_OPEN_FLAGS = (
    os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)
)
_HASH_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_HASH_NO_ATIME = getattr(os, "O_NOATIME", 0)


class FileChanging(Exception):
    """The file is not (or not any more) what the walk saw; its hash would belong to no stat."""


class HashResult(NamedTuple):
    """What reading a file gave: label, sample size, lower-case hex digests, when (epoch s).
    `full_hash` is None where the file is larger than three samples and was not read whole.
    """

    algo: str
    sample_size: int
    sample_hash: str
    full_hash: str | None
    hashed_at: float


# Algorithms

def available_algorithms() -> list:
    """The names of what can run here, the preferred first."""
    names = []
    if blake3 is not None:
        names.append("blake3")
    if xxhash is not None:
        names.append("xxhash64")
    return [*names, "sha256"]


def effective_algorithm(asked: str) -> str:
    """What really runs when `asked` is configured: the label of every digest made here."""
    return asked if asked in available_algorithms() else "sha256"


def new_hasher(algo: str):
    """An object with update(bytes) and hexdigest(), for one of `available_algorithms`."""
    if algo == "blake3" and blake3 is not None:
        return blake3.blake3()
    if algo == "xxhash64" and xxhash is not None:
        return xxhash.xxh64()
    if algo == "sha256":
        return hashlib.sha256()
    raise ValueError(f"the hash algorithm {algo!r} is not available here")


def digest_algorithm(digest_hex: str, label: str) -> str:
    """The function that made a digest. Older agents call their sha256 fall-back "xxhash64"."""
    if label == "xxhash64" and len(digest_hex) == 64:
        return "sha256"
    return label


# Opening

def open_unchanged(native_path: str, expected, *, follow: bool = False,
                   inodes_stable: bool = True) -> tuple:
    """(descriptor, its stat) of a regular file that still is what `expected` says; FileChanging
    otherwise. It never blocks on a FIFO, and leaves the access time alone where it may.
    """
    flags = _HASH_OPEN_FLAGS if follow else _HASH_OPEN_FLAGS | _HASH_NO_FOLLOW
    try:
        descriptor = os.open(native_path, flags | _HASH_NO_ATIME)
    except PermissionError:  # only its owner may read a file without a trace
        descriptor = os.open(native_path, flags)
    try:
        seen = os.fstat(descriptor)
        version = (f"{seen.st_size}:{seen.st_mtime_ns}:{seen.st_ino}:" if inodes_stable
                   else f"{seen.st_size}:{seen.st_mtime_ns}:")
        if not expected.inode_key.startswith(version) or not stat.S_ISREG(seen.st_mode):
            raise FileChanging("the file changed since it was listed")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, seen


def check_unchanged(descriptor: int, before) -> None:
    """Raise FileChanging if the open file was written to since its stat `before`."""
    seen = os.fstat(descriptor)
    if seen.st_mtime_ns != before.st_mtime_ns or seen.st_size != before.st_size:
        raise FileChanging("the file changed while it was read")


def _feed_exactly(hasher, descriptor: int, length: int) -> None:
    """Hash the next `length` bytes; a file that ends earlier is changing."""
    while length > 0:
        data = os.read(descriptor, length if length < HASH_CHUNK_BYTES else HASH_CHUNK_BYTES)
        if not data:
            raise FileChanging("the file became shorter while it was read")
        hasher.update(data)
        length -= len(data)


# Hashes of files

def sample_hash_file(native_path: str, expected, algo: str, sample_size: int, *,
                     follow: bool = False, inodes_stable: bool = True) -> HashResult:
    """Hash the first, the middle and the last `sample_size` bytes, or all of a small file.

    expected       has the `size` and `inode_key` that the walk saw
    algo           one of `available_algorithms`
    inodes_stable  False where the file system makes up inode numbers
    Raises FileChanging, and OSError where the file cannot be opened or read.
    """
    size = expected.size
    whole = size <= 3 * sample_size
    descriptor, before = open_unchanged(
        native_path, expected, follow=follow, inodes_stable=inodes_stable
    )
    try:
        hasher = new_hasher(algo)
        if not whole:
            _feed_samples(hasher, descriptor, size, sample_size)
        elif size:
            data = os.read(descriptor, size)  # most files come whole with one call
            hasher.update(data)
            if len(data) != size:
                _feed_exactly(hasher, descriptor, size - len(data))
        check_unchanged(descriptor, before)
    finally:
        os.close(descriptor)
    digest = hasher.hexdigest()
    return HashResult(algo, sample_size, digest, digest if whole else None, time.time())


def _feed_samples(hasher, descriptor: int, size: int, sample_size: int) -> None:
    if hasattr(os, "posix_fadvise"):
        # Reading ahead would fetch from the disk what nobody asked for.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    for start in (0, size // 2 - sample_size // 2, size - sample_size):
        os.lseek(descriptor, start, os.SEEK_SET)
        _feed_exactly(hasher, descriptor, sample_size)


def full_hash_file(native_path: str, expected, algo: str, *, keep_going, on_bytes=None,
                   chunk: int = HASH_CHUNK_BYTES, follow: bool = False,
                   inodes_stable: bool = True) -> str | None:
    """The hash of the whole file as lower-case hex, or None when `keep_going()` said stop.

    `keep_going` is asked before each chunk; `on_bytes(count)` is told of each chunk read.
    Raises FileChanging and OSError like `sample_hash_file`.
    """
    hasher = new_hasher(algo)
    descriptor, before = open_unchanged(
        native_path, expected, follow=follow, inodes_stable=inodes_stable
    )
    try:
        if not _feed_whole(hasher, descriptor, expected.size, chunk, keep_going, on_bytes):
            return None
        check_unchanged(descriptor, before)
    finally:
        os.close(descriptor)
    return hasher.hexdigest()


def _feed_whole(hasher, descriptor: int, size: int, chunk: int, keep_going, on_bytes) -> bool:
    """Hash the whole open file; False when told to stop."""
    _advise_cache(descriptor, 0, 0, "POSIX_FADV_SEQUENTIAL")
    buffer = memoryview(bytearray(min(chunk, max(size, 1))))
    done = dropped = 0
    while done < size:
        if not keep_going():
            return False
        count = _read_into(descriptor, buffer[:size - done])
        if not count:
            raise FileChanging("the file became shorter while it was read")
        hasher.update(buffer[:count])
        done += count
        if on_bytes is not None:
            on_bytes(count)
        if done - dropped >= HASH_DROP_BYTES:
            # A film read once must not push everything else out of memory.
            _advise_cache(descriptor, dropped, done - dropped, "POSIX_FADV_DONTNEED")
            dropped = done
    return True


def _read_into(descriptor: int, buffer) -> int:
    """Fill a part of the buffer, without a new object per chunk where the platform can."""
    if hasattr(os, "readv"):
        return os.readv(descriptor, [buffer])
    data = os.read(descriptor, len(buffer))
    buffer[:len(data)] = data
    return len(data)


def _advise_cache(descriptor: int, start: int, length: int, advice: str) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, length, getattr(os, advice))
