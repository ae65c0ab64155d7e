"""Is the folder at a root's path really the root? Absence is not deletion.

An empty mount point, or another disk in the place of the one that is known, must not look like a
root whose files were deleted. Nothing here reads a file.
"""

from __future__ import annotations

import os

from .base import log
from .cache_roots import is_other_disk
from .mounts import OTHER_DISK, describe_root
from .root_volume import RootOffline, agreement, latest_rows, settle_volume
from .scan_buffer import error_class, error_text
from .scan_common import inode_key, same_version, to_native, to_text

TOP_NAMES = 1000
EMPTY_REASON = "empty: a disk may be missing; accept it as empty if it really is"
RENUMBER_SAMPLE = 64
SURE_ROWS = 8  # fewer files may all have been replaced


def look_at_root(cache, path: str, known_at_host: int = 0, taken=None) -> tuple:
    """(RootInfo, whether the folder is empty). RootOffline if the root is not (all) there.

    known_at_host: how many files the host has of the root at this path, for a cache that lost its
    memory. taken: see settle_volume.
    """
    native = to_native(path)
    try:
        seen = describe_root(native)
        with os.scandir(native) as entries:
            names = [to_text(entry.name) for _, entry in zip(range(TOP_NAMES), entries)]
    except OSError as error:
        raise RootOffline(f"{error_class(error)}: {error_text(error)}") from error
    info = settle_volume(cache, path, seen, taken)
    here = cache.roots.at_path(path)
    expected = cache.roots.of_info(info) or here
    accepted = here is not None and here.accept_empty
    known = max(here.files if here else 0, expected.files if expected else 0, known_at_host)
    if not names and known and not accepted:
        raise RootOffline(EMPTY_REASON)
    if names and expected is not None and expected.files and not expected.accept_empty:
        doubt_other_disk(cache, expected, seen, names, path)
    return info, not names


def doubt_other_disk(cache, expected, info, names: list, here: str) -> None:
    """Another disk without an identity of its own at the same path: nothing known is there."""
    if info.volume is not None or expected.device in (None, info.device):
        return
    if is_other_disk(expected, info):
        if expected.volume is None:  # to the host both would be what is at this path
            raise RootOffline(f"{OTHER_DISK}: {info.fs} instead of {expected.fs}")
        return
    top = cache.roots.folder_id(expected.id, "")
    if top is None or len(names) >= TOP_NAMES:
        return
    known = {folder.rel for folder in cache.roots.child_folders(top)}
    for part in cache.folder_paths(top):
        known.update(path.rpartition("/")[2] for path, _ in part)
    strange = len(latest_rows(cache, expected)) >= SURE_ROWS and not agreement(
        cache, expected, here, info.inodes_stable)
    if known and (strange or not known.intersection(names)):
        raise RootOffline(f"{OTHER_DISK}: nothing known is on it")


def check_still_mounted(native: str, info) -> None:
    """RootOffline unless the root is still the folder of the file system that the scan began with.
    """
    try:
        now = os.stat(native)
    except OSError as error:
        raise RootOffline(f"{error_class(error)}: {error_text(error)}") from error
    if (now.st_dev, now.st_ino) != (info.device, info.inode):
        raise RootOffline("another file system is mounted here now")


def is_renumbered(cache, root) -> bool:
    """Whether all known files that are still there have new inodes: the file system makes them up
    anew, and path, size and time decide. An inode that is known elsewhere was moved instead.
    """
    rows = cache.store.rows("SELECT path, inode_key FROM agent_index WHERE root_id = ? LIMIT ?",
                            (root.id, RENUMBER_SAMPLE))
    changed = 0
    for path, key in rows:
        try:
            new = inode_key(os.lstat(to_native(path)))
        except OSError:
            continue
        if same_version(key, new):
            return False
        if same_version(key, new, inodes_stable=False):
            if cache.same_content(new):
                return False
            changed += 1
    if changed >= 3:
        log.info("%s: all files have new inode numbers; path, size and time decide", root.path)
    return changed >= 3


def device_of(path: str) -> int | None:
    """The device number of what is at a text path now."""
    try:
        return os.stat(to_native(path)).st_dev
    except (OSError, ValueError):
        return None


def device_near(path: str) -> int | None:
    """The device number of the folder a text path is in, or of the nearest above that is there."""
    while path:
        path = path.rpartition("/")[0]
        device = device_of(path) if path else None
        if device is not None:
            return device
    return None
