"""One name for one disk: a volume that is named in two ways, and disks that share one name.

A UUID is not always to be had, and a copied disk has the UUID of its original. Nothing here reads a
file.
"""

from __future__ import annotations

import contextlib
import os

from .base import StoreError, log
from .cache_roots import is_other_disk
from .mounts import CLONE_MARK, NETWORK_FS, describe_root
from .scan_common import inode_key, same_version, to_native

CLONE_SAMPLE = 64
SURE_SHARE = 0.5  # of the known files must be there for a disk without a name to be the known one


class RootOffline(Exception):
    """The root cannot be scanned now; nothing of it changes state. Its text is the reason."""


def settle_volume(cache, path: str, info, taken=None):
    """`info` with the name by which cache and host know the volume.

    taken: {(volume, volume_path): (device, path)} of roots looked at just before, which may have no
    row yet
    """
    if info.volume is None:
        return settle_nameless(cache, path, info)
    named = under_uuid(cache, info)
    roots = cache.roots.of_volume_or_clone(named)
    if not roots:
        device, first = (taken or {}).get((named.volume, named.volume_path), (info.device, path))
        return named if device == info.device else as_clone(cache, path, named, first)
    if [root.path for root in roots if not root.parked] == [path] and len(roots) == 1:
        return with_name_of(roots[0], named)
    fitting = [root for root in roots if may_be_here(cache, root, path, info)]
    if not fitting:
        return as_clone(cache, path, named, roots[0].path)
    best = max(fitting, key=lambda root: (
        agreement(cache, root, path), root.path == path and not root.parked,
        CLONE_MARK not in root.volume))
    return with_name_of(best, named)


def settle_nameless(cache, path: str, info):
    """The same where the file system tells no name now: what was at the path before decides."""
    here = cache.roots.at_path(path)
    if here is not None and not is_other_disk(here, info):
        if here.volume is None:
            return info
        return info._replace(volume=here.volume, volume_path=here.volume_path)
    parked = [(agreement(cache, root, path, info.inodes_stable), root)
              for root in cache.roots.parked_at(path)
              if root.volume is None and root.fs == info.fs]
    share, root = max(parked, key=lambda pair: pair[0], default=(0.0, None))
    if share >= SURE_SHARE:  # another disk had taken its place and is gone
        cache.roots.bring_to(root, path)
    return info


def under_uuid(cache, info):
    """Where only the fsid is known: the UUID that once was known with it."""
    if info.fsid is None:
        return info
    key = f"volume of {info.fsid}"
    known = cache.get_meta(key)
    if info.volume == info.fsid:
        return info._replace(volume=known) if known else info
    if known != info.volume:
        with contextlib.suppress(StoreError):  # a full disk: it is noted another time
            cache.set_meta(key, info.volume)
    return info


def with_name_of(root, info):
    """A root that is known by its fsid gets the better name."""
    if root.volume in (info.volume, info.fsid):
        return info
    return info._replace(volume=root.volume, fsid=None)


def as_clone(cache, path: str, info, other_path: str):
    """A name of its own for a disk whose name is also that of the one attached at `other_path`."""
    if info.fs in NETWORK_FS:
        raise RootOffline(f"it is the same share as {other_path}")
    name, number = f"{info.volume}{CLONE_MARK}{path}", 1
    while cache.roots.of_volume(name, info.volume_path) is not None:
        number += 1
        name = f"{info.volume}{CLONE_MARK}{path}#{number}"
    log.warning("%s has the UUID of the disk at %s; both are kept apart", path, other_path)
    return info._replace(volume=name, fsid=None)


def may_be_here(cache, root, path: str, info) -> bool:
    """Whether the root can be what is at `path`: it is not when its own disk is attached elsewhere,
    unless the two were exchanged, which its files tell.
    """
    if root.path == path and not root.parked:
        return True
    if root.parked or not attached_apart(root, info):
        return True
    return agreement(cache, root, path) > agreement(cache, root, root.path)


def attached_apart(root, info) -> bool:
    """Whether at the root's own path is a volume of this name on another device."""
    try:
        there = describe_root(to_native(root.path))
    except OSError:
        return False
    return there.device != info.device and (
        (there.volume, there.volume_path) == (info.volume, info.volume_path))


def latest_rows(cache, root) -> list:
    """[(path, inode_key)] of some of the root's files, those that changed last."""
    return cache.store.rows("SELECT path, inode_key FROM agent_index WHERE root_id = ?"
                            " ORDER BY rev DESC LIMIT ?", (root.id, CLONE_SAMPLE))


def agreement(cache, root, path: str, inodes_stable: bool = True) -> float:
    """The share of the root's latest files that are at `path` as they are known."""
    rows = latest_rows(cache, root)
    found = 0
    for file_path, key in rows:
        native = os.path.join(to_native(path), to_native(file_path[len(root.prefix()):]))
        with contextlib.suppress(OSError, ValueError):
            found += same_version(key, inode_key(os.lstat(native)), inodes_stable)
    return found / len(rows) if rows else 0.0
