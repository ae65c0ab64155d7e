"""The agent on a Python without SQLite: it remembers nothing and goes by what the host remembers.

Folder by folder it asks the host what is known there, reads only what differs, and reports what is
gone. While the host is away it waits. Large files get no full hash and there is no control port.
"""

from __future__ import annotations

import json
import os
import time

from .base import log
from .ffprobe import probe_file
from .hashing import FileChanging, available_algorithms, sample_hash_file
from .host_link import about_agent
from .http_client import Backoff, PeerError, PeerRefused
from .late import platform, uuid
from .mounts import describe_root, mount_points
from .probe_run import ProbeFailed
from .scan_common import ext_of, join_rel, parent_of, record_of, same_version, to_native
from .scan_plan import ScanPlan
from .scan_run import merged_roots
from .settings import clean_settings
from .walk import FileProblem, find_files, walk_folders

PLAIN_PATIENCE_S = 12.0
PLAIN_PAGE = 1000


class PlainScan:
    """Scans straight to the host. `control` is a ScanControl; `transport` an HttpTransport."""

    def __init__(self, transport, identity, control, *, own_roots=(), find_ffprobe=None,
                 once: bool = False):
        self.transport = transport
        self.identity = identity
        self.control = control
        self.own_roots = list(own_roots)
        self.find_ffprobe = find_ffprobe
        self.once = once
        self.instance = str(uuid.uuid4())
        self.left_over: list = []
        self.files = self.read = self.sent = 0

    def run(self) -> list:
        """Scan once, or until stopped; what is left over, in words."""
        while self.control.keep_going():
            self.left_over = []
            self.files = self.read = self.sent = 0
            try:
                interval = self.scan()
            except PeerError as error:
                self.left_over.append(f"the host cannot be used: {error}")
                interval = 60
            if self.once:
                break
            self.control.sleep(interval or 3600)
        return self.left_over

    def scan(self) -> int:
        """Both passes over all roots; the seconds until the next scan."""
        ffprobe = self.find_ffprobe() if self.find_ffprobe else None
        answer = self.call(self.transport.hello, {"agent": about_agent(
            self.identity, port=None, instance=self.instance, hash_algos=available_algorithms(),
            ffprobe=ffprobe, roots=None, python=platform.python_version(),
            platform=platform.platform()), "stats": {}})
        config, _ = clean_settings(answer.get("config") or {})
        plan = ScanPlan(config, ffprobe)
        roots = merged_roots(config.get("remote_roots") or (), self.own_roots)
        for phase in (1, 2) if ffprobe else (1,):
            for path in roots:
                if self.control.keep_going():
                    self.scan_root(path, roots, plan, phase)
        log.info("%d files seen, %d read, %d sent", self.files, self.read, self.sent)
        return config["rescan_interval_s"]

    def call(self, method, body: dict, **more) -> dict:
        """The host's answer; waits while it is away (with --once not for long)."""
        backoff, since = Backoff(0.5, 15.0), time.monotonic()
        while True:
            try:
                return method(body, **more)
            except PeerRefused:
                raise
            except PeerError as error:
                waited = time.monotonic() - since
                if not self.control.keep_going() or (self.once and waited > PLAIN_PATIENCE_S):
                    raise
                log.warning("waiting for the host: %s", error)
                self.control.sleep(backoff.next(error.retry_after_s))

    def scan_root(self, path: str, roots: list, plan, phase: int) -> None:
        try:
            info = describe_root(to_native(path))
            with os.scandir(to_native(path)) as entries:
                empty = next(entries, None) is None
        except OSError as error:
            self.left_over.append(f"{path} is offline ({error.strerror})")
            return
        root = PlainRoot(self, path, info, plan, phase)
        if empty and not root.host_knows_nothing():
            self.left_over.append(f"{path} is offline (empty: a disk may be missing)")
            return
        others = {os.path.realpath(to_native(other)) for other in roots if other != path}
        walk = walk_folders(to_native(path), classifier=plan.classifier, root_device=info.device,
                            other_roots=others, follow_symlinks=plan.follow_symlinks,
                            mount_points=mount_points())
        for listing in walk:
            if not self.control.keep_going():
                return
            root.folder(listing)
        root.flush()
        if phase == 1:
            root.vanished_folders()


class PlainRoot:
    """One root in one pass."""

    def __init__(self, scan: PlainScan, path: str, info, plan, phase: int):
        self.scan = scan
        self.path = path
        self.info = info
        self.plan = plan
        self.phase = phase
        self.files: list = []
        self.removed: list = []
        self.listed: dict = {}  # {folder: whether its listing was complete}
        self.held: set = set()  # folders that are there but are not entered
        self.about = {"agent": {"id": scan.identity.id, "name": scan.identity.name,
                                "instance": scan.instance},
                      "root": path, "volume": info.volume, "volume_path": info.volume_path}

    def file_path(self, rel: str) -> str:
        return f"{self.path.rstrip('/')}/{rel}"

    def pages(self, method, key: str, **more):
        """Everything the host lists, page by page; nothing from an older host."""
        if self.scan.transport.older:
            return
        after = more.pop("after")
        while after is not None:
            page = self.scan.call(method, {**self.about, **more, "after": after,
                                           "limit": PLAIN_PAGE})
            yield from page[key]
            after = page.get("next")

    def known_in(self, rel: str) -> dict:
        transport = self.scan.transport
        return {file["name"]: file for file in self.pages(transport.names, "files", after="",
                                                           folder=rel, full=True)}

    def folders_at_host(self):
        return self.pages(self.scan.transport.folders, "folders", after=0)

    def host_knows_nothing(self) -> bool:
        return next(iter(self.folders_at_host()), None) is None

    def folder(self, listing) -> None:
        self.listed[listing.rel] = listing.error is None
        self.held.update(join_rel(listing.rel, name) for name in listing.held)
        known = self.known_in(listing.rel)
        for found in find_files(listing, listing.names):
            file = known.pop(found.name, None)
            if type(found) is FileProblem:
                continue
            self.scan.files += self.phase == 1
            if self.phase == 1:
                self.hash(found, file, join_rel(listing.rel, found.name))
            else:
                self.describe(found, file, join_rel(listing.rel, found.name))
        if self.phase == 1 and listing.error is None:
            self.removed += [self.file_path(join_rel(listing.rel, name)) for name in known]
        if listing.error is not None:
            self.scan.left_over.append(f"{self.file_path(listing.rel)} could not be read")

    def is_known(self, found, file) -> bool:
        return file is not None and same_version(file["inode_key"], found.inode_key,
                                                 self.info.inodes_stable)

    def hash(self, found, file, rel: str) -> None:
        hashes = (file or {}).get("hashes") or {}
        if (self.is_known(found, file) and file.get("ctime") == found.ctime
                and hashes.get("algo") == self.plan.algo
                and hashes.get("sample_size") == self.plan.sample_size):
            return
        self.scan.read += 1
        try:
            result = sample_hash_file(found.native, found, self.plan.algo, self.plan.sample_size,
                                      follow=self.plan.follow_symlinks,
                                      inodes_stable=self.info.inodes_stable)
            hashes = {"algo": result.algo, "sample_size": result.sample_size,
                      "sample_hash": result.sample_hash, "full_hash": result.full_hash}
        except (OSError, FileChanging) as error:
            self.scan.left_over.append(f"{self.file_path(rel)} could not be read ({error})")
            hashes = None
        self.add(found, rel, hashes=hashes)

    def describe(self, found, file, rel: str) -> None:
        kind, _ = self.plan.kind_of(found.name)
        if kind != "video" or not self.is_known(found, file) or file.get("metadata"):
            return
        try:
            metadata = probe_file(self.plan.ffprobe, found.native, stop=self.scan.control.stop)
        except (ProbeFailed, OSError) as error:
            log.warning("%s: %s", self.file_path(rel), error)
            return
        self.add(found, rel, metadata=metadata)

    def add(self, found, rel: str, **more) -> None:
        kind, reason = self.plan.kind_of(found.name)
        self.files.append(record_of(
            kind=kind, path=self.file_path(rel), size=found.size, mtime=found.mtime,
            ctime=found.ctime, inode_key=found.inode_key, ext=ext_of(found.name), reason=reason,
            **more))
        if len(self.files) >= self.plan.batch_size:
            self.flush()

    def flush(self) -> None:
        if not self.files and not self.removed:
            return
        outline = {**self.about, "batch_id": str(uuid.uuid4()), "phase": self.phase,
                   "removed": self.removed}
        answer = self.scan.call(self.scan.transport.batch, outline,
                                files=[json.dumps(record) for record in self.files])
        self.scan.sent += len(self.files)
        for error in answer.get("errors") or []:
            self.scan.left_over.append(f"the host does not take {error.get('path')}:"
                                       f" {error.get('error')}")
        self.files, self.removed = [], []

    def vanished_folders(self) -> None:
        """Folders the host has and the walk did not meet, below one that was listed to the end."""
        for folder in list(self.folders_at_host()):
            rel = folder["path"]
            if rel in self.listed:
                continue
            child, parent = rel, parent_of(rel)
            while parent not in self.listed and parent:
                child, parent = parent, parent_of(parent)
            if self.listed.get(parent) and child not in self.held:
                self.removed += [self.file_path(join_rel(rel, name)) for name in self.known_in(rel)]
            self.flush()
