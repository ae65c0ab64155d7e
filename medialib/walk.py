"""The walk through a root: one listing per folder, in the order everything else relies on.

A folder's own files come first, sorted by their text names, then its subfolders in name order,
each with everything below it. Nothing here opens a file.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from .scan_common import IGNORE_MARKER, folder_key, inode_key, join_rel, to_text
from .walk_names import PackedNames

LEDGER_KEYS = (
    "files", "folders", "links", "specials", "other_mounts", "ignored", "nested_roots", "loops",
)
_FOLDER_OPEN_FLAGS = (
    os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
)
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_LISTS_DESCRIPTORS = os.scandir in os.supports_fd
_JUNCTION = 0xA0000003  # the reparse tag of a Windows junction, which is a link for us
# So many files of a folder are looked at while it is listed, which is quicker than by their paths.
# On Windows an entry knows neither device nor inode.
_LOOKED_AT_MOST = 2000 if _LISTS_DESCRIPTORS else 0
_NAMES_UNPACKED = 20_000  # of one folder


class FolderListing:
    """What one folder holds.

    rel, native      its relative text path ("" is the root), its absolute native path
    names            native names of the files to look at, sorted by their text: a list, or the
                     PackedNames of a huge folder
    stats            {native name: stat_result} of those that were looked at with the listing: all,
                     but for a huge folder, followed links and names that could not be
    is_ascii         whether all names are, so that they are their own text; False for a huge folder
    subfolders       text names of the subfolders that the walk enters, in order
    held             text names of what is there but is left alone now: other mounts, nested roots,
                     followed links that lead nowhere now. What is catalogued at or below them
                     must not change state.
    counts           every entry of the folder counted once, by LEDGER_KEYS
    error            an OSError when the listing is incomplete: nothing may be inferred from what
                     is not in it. Names and subfolders seen before the error are still given.
    ignored          True when the folder holds the ignore marker: no names, no subfolders
    follow_symlinks  how the walk treats links
    """

    __slots__ = (
        "rel", "native", "names", "stats", "is_ascii", "subfolders", "held", "counts", "error",
        "ignored", "follow_symlinks",
    )

    def __init__(self, rel: str, native: str, follow_symlinks: bool = False):
        self.rel = rel
        self.native = native
        self.names = []
        self.stats = {}
        self.is_ascii = False
        self.subfolders = []
        self.held = []
        self.counts = dict.fromkeys(LEDGER_KEYS, 0)
        self.error = None
        self.ignored = False
        self.follow_symlinks = follow_symlinks


class FoundFile(NamedTuple):
    """A regular file as the walk saw it. `native` is its absolute native path."""

    name: str
    native: str
    size: int
    mtime: float
    ctime: float
    inode_key: str
    nlink: int


class FileProblem(NamedTuple):
    """A name that could not be looked at; ENOENT when it vanished, EINVAL when it changed type."""

    name: str
    native: str
    error: OSError


class WalkFrame:
    """A listed folder whose subfolders are still to be walked."""

    __slots__ = ("rel", "native", "device", "identity", "pending", "other_devices")

    def __init__(self, rel: str, native: str, device: int, identity: tuple):
        self.rel = rel
        self.native = native
        self.device = device
        self.identity = identity
        self.pending = []  # native names, the next one last
        self.other_devices = {}  # native name → st_dev, where it is not that of this folder


class FolderWalk:
    """The state of one walk. `walk_folders` is the way to use it."""

    def __init__(self, root_native: str, *, classifier, root_device: int, other_roots,
                 follow_symlinks: bool, mount_points):
        self.root = os.path.abspath(root_native)
        self.real_root = os.path.realpath(self.root)
        self.classifier = classifier
        self.root_device = root_device
        self.other_roots = frozenset(os.path.normcase(path) for path in other_roots or ())
        self.follow = follow_symlinks
        self.mount_points = mount_points
        self.ancestors = set()  # (st_dev, st_ino) of every folder between the root and here

    def folders(self, after: str | None, until: str | None):
        """The listings with after < folder <= until. Of the others only the ancestors of what
        follows are listed; they are given only if that failed, since then something is left out.
        """
        skip = None if after is None else folder_key(after)
        last = None if until is None else folder_key(until)
        stack = []
        rel, native, device = "", self.root, self.root_device
        while last is None or folder_key(rel) <= last:
            listing, frame = self._enter(rel, native, device)
            if skip is not None and folder_key(rel) > skip:
                skip = None
            if skip is None or listing.error is not None:
                yield listing
            if frame is not None:
                if skip is not None:
                    _drop_passed(frame, skip)
                stack.append(frame)
                self.ancestors.add(frame.identity)
            while stack and not stack[-1].pending:
                self.ancestors.discard(stack.pop().identity)
            if not stack:
                return
            frame = stack[-1]
            name = frame.pending.pop()
            rel, native = join_rel(frame.rel, to_text(name)), os.path.join(frame.native, name)
            device = frame.other_devices.pop(name, frame.device)

    def _enter(self, rel: str, native: str, device: int):
        """List one folder: (listing, frame), where the frame is None if it cannot be entered."""
        listing = FolderListing(rel, native, self.follow)
        descriptor = None
        try:
            if _LISTS_DESCRIPTORS:
                # The root may be given as a link; below it a link is followed only when asked for.
                no_follow = 0 if self.follow or not rel else _NO_FOLLOW
                descriptor = os.open(native, _FOLDER_OPEN_FLAGS | no_follow)
            handle = native if descriptor is None else descriptor
            seen = os.stat(handle)
            if seen.st_dev != device:
                raise OSError(errno.ESTALE, "another file system is mounted here now", native)
            frame = WalkFrame(rel, native, device, (seen.st_dev, seen.st_ino))
            self._list(listing, frame, handle)
            return listing, frame
        except OSError as error:
            listing.error = error
            return listing, None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _list(self, listing: FolderListing, frame: WalkFrame, handle) -> None:
        entered, packed = [], PackedNames()
        with os.scandir(handle) as entries:
            try:
                self._sort_entries(entries, listing, frame, entered, packed)
            except OSError as error:  # in the middle: what was seen stands, the rest is unknown
                listing.error = error
        if packed:
            packed.add(listing.names)
            packed.sort()
            listing.names = packed
        listing.counts["files"] = len(listing.names)
        listing.counts["folders"] = len(entered)
        if listing.ignored:
            _ignore_all(listing)
            return
        listing.held.sort()
        if not packed:
            listing.is_ascii = all(map(str.isascii, listing.names))
            listing.names.sort(key=None if listing.is_ascii else to_text)
        entered.sort(key=to_text)
        listing.subfolders = [to_text(name) for name in entered]
        entered.reverse()
        frame.pending = entered

    def _sort_entries(self, entries, listing, frame, entered, packed) -> None:
        """Put each entry where it belongs; this loop runs once for every file of a root."""
        names, stats = listing.names, listing.stats
        add_name = names.append
        for entry in entries:
            name = entry.name
            if name == IGNORE_MARKER:
                listing.ignored = True
            if entry.is_file(follow_symlinks=False):
                add_name(name)
                if len(stats) < _LOOKED_AT_MOST:
                    try:
                        stats[name] = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue  # find_files looks once more and says what is wrong with it
                elif len(names) >= _NAMES_UNPACKED:
                    packed.add(names)
                    names.clear()
            elif entry.is_dir(follow_symlinks=False):
                self._sort_folder(entry, listing, frame, entered)
            elif entry.is_symlink():
                self._sort_link(entry, listing, frame, entered)
            else:
                listing.counts["specials"] += 1

    def _sort_link(self, entry, listing, frame, entered) -> None:
        if not self.follow:
            listing.counts["links"] += 1
            return
        try:
            if entry.is_file():
                listing.names.append(entry.name)
            elif entry.is_dir():
                self._sort_folder(entry, listing, frame, entered)
            else:
                self._hold(entry.name, "links", listing)
        except OSError:
            self._hold(entry.name, "links", listing)

    def _sort_folder(self, entry, listing, frame, entered) -> None:
        name = entry.name
        if self.classifier.ignored_dir(to_text(name)):
            listing.counts["ignored"] += 1
            return
        try:
            seen = self._stat_entry(entry, frame)
        except OSError:  # entering it will tell what is wrong with it
            entered.append(name)
            return
        if getattr(seen, "st_reparse_tag", 0) == _JUNCTION and not self.follow:
            listing.counts["links"] += 1
        elif (seen.st_dev, seen.st_ino) in self.ancestors or (
                (seen.st_dev, seen.st_ino) == frame.identity):
            listing.counts["loops"] += 1
        elif self._is_nested_root(frame, name):
            self._hold(name, "nested_roots", listing)
        elif seen.st_dev != self.root_device and self._is_mount(frame, name):
            self._hold(name, "other_mounts", listing)
        else:
            if seen.st_dev != frame.device:
                frame.other_devices[name] = seen.st_dev
            entered.append(name)

    def _hold(self, name: str, reason: str, listing: FolderListing) -> None:
        listing.counts[reason] += 1
        listing.held.append(to_text(name))

    def _stat_entry(self, entry, frame):
        if _LISTS_DESCRIPTORS:
            return entry.stat(follow_symlinks=self.follow)
        # On Windows an entry knows neither device nor inode.
        return os.stat(os.path.join(frame.native, entry.name), follow_symlinks=self.follow)

    def _is_nested_root(self, frame: WalkFrame, name: str) -> bool:
        return bool(self.other_roots) and (
            os.path.normcase(self._real_path(frame, name)) in self.other_roots
        )

    def _is_mount(self, frame: WalkFrame, name: str) -> bool:
        """A btrfs subvolume has a device number of its own without being mounted: it is entered."""
        return self.mount_points is None or self._real_path(frame, name) in self.mount_points

    def _real_path(self, frame: WalkFrame, name: str) -> str:
        native = os.path.join(frame.native, name)
        if self.follow:
            return os.path.realpath(native)
        # Below the root no link was followed, so only the root's own path can hold one.
        return os.path.join(self.real_root, native[len(self.root):].lstrip(os.sep))


def _ignore_all(listing: FolderListing) -> None:
    """Count everything in a marked folder as ignored."""
    entries = sum(listing.counts.values())
    listing.counts = dict.fromkeys(LEDGER_KEYS, 0)
    listing.counts["ignored"] = entries
    listing.names, listing.stats, listing.held = [], {}, []


def _drop_passed(frame: WalkFrame, skip: list) -> None:
    """Forget the subfolders of an ancestor of `skip` that come before the one on the way to it."""
    depth = frame.rel.count("/") + 1 if frame.rel else 0
    if depth >= len(skip):
        return
    while frame.pending and to_text(frame.pending[-1]) < skip[depth]:
        frame.pending.pop()


def walk_folders(root_native: str, *, classifier, root_device: int, other_roots=(),
                 follow_symlinks: bool = False, mount_points: set | None = None,
                 after: str | None = None, until: str | None = None):
    """Yield a FolderListing for each folder of a root, in order, in flat memory.

    root_device   st_dev of the root when it was found online; while it differs, the root's listing
                  has an error
    other_roots   native real paths of other roots; one that lies in this root is left to itself
    mount_points  native real paths where something is mounted, None if unknown: then another
                  device number alone means another mount
    after, until  relative text folders: go on behind `after` (its subfolders come next), end with
                  `until`. An ancestor of `after` that cannot be listed any more is given again,
                  with its error, since its later subfolders are left out.
    """
    walk = FolderWalk(
        root_native, classifier=classifier, root_device=root_device, other_roots=other_roots,
        follow_symlinks=follow_symlinks, mount_points=mount_points,
    )
    return walk.folders(after, until)


def find_files(listing: FolderListing, names):
    """Yield a FoundFile for each of the listing's native names, or a FileProblem, lazily."""
    look = os.stat if listing.follow_symlinks else os.lstat
    prefix = os.path.join(listing.native, "")
    new, regular, type_of, stats = tuple.__new__, stat.S_IFREG, stat.S_IFMT, listing.stats
    for native_name in names:
        native = prefix + native_name
        name = to_text(native_name)
        seen = stats.get(native_name)
        if seen is None:
            try:
                seen = look(native)
            except OSError as error:
                yield FileProblem(name, native, error)
                continue
        if type_of(seen.st_mode) != regular:
            error = OSError(errno.EINVAL, "is not a regular file any more", native)
            yield FileProblem(name, native, error)
            continue
        # Made without the named tuple's own __new__, which takes as long as the rest of the loop.
        yield new(FoundFile, (name, native, seen.st_size, seen.st_mtime, seen.st_ctime,
                              inode_key(seen), seen.st_nlink))


def files_at_rest(listing: FolderListing, prefix: str) -> set | None:
    """{(path, version_prefix, ctime, 1)} of all files of the listing: what AgentCache.at_rest gives
    when none of them has changed. None if some of them are still to be looked at.

    prefix  what the path of a file in this folder begins with

    Comparing such sets takes a third of the time of looking at each file by itself.
    """
    stats = listing.stats
    if len(stats) != len(listing.names):
        return None
    names = stats if listing.is_ascii else map(to_text, stats)
    return {
        (prefix + name, f"{seen.st_size}:{seen.st_mtime_ns}:{seen.st_ino}:", seen.st_ctime, 1)
        for name, seen in zip(names, stats.values())
    }
