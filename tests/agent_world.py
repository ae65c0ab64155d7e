"""One agent with a toy host on a tree of files: what tests of the agent do, and what must hold.

The truth about the tree is found out with os.walk and hashlib alone.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import stat
import time
import types

from medialib import hash_window, scan_passes
from medialib.agent_cache import AgentCache
from medialib.agent_identity import AgentIdentity
from medialib.agent_service import AgentService
from medialib.http_client import PeerError
from medialib.scan_common import Classifier
from medialib.scan_seal import FolderSeals
from medialib.walk import files_at_rest, walk_folders
from tests.toy_host import ToyHost, ToyTransport, identity_of

SAMPLE = 4096
KINDS = {".mkv": "video", ".jpg": "image", ".txt": "other", ".zzz": "unknown", ".mp3": "audio",
         ".srt": "subtitle"}
CONFIG = {"hash_algo": "sha256", "hash_sample_size": SAMPLE, "agent_batch_size": 3,
          "agent_max_workers": 2, "rescan_interval_s": 0}
_stamps = itertools.count(1)


def age(path) -> None:
    """Give a file a time of its own in the past, so that it is not looked at again."""
    stamp = 1_500_000_000_000_000_000 + next(_stamps) * 1_000_003_000
    os.utime(path, ns=(stamp, stamp), follow_symlinks=False)


def write(path, data: bytes) -> None:
    """A new file, or new content of an old one, with an old time of its own."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    age(path)


def truth_of(path: str) -> dict:
    """What must be known of one file."""
    seen = os.lstat(path)
    with open(path, "rb") as file:
        data = file.read()
    size = len(data)
    full = hashlib.sha256(data).hexdigest()
    if size <= 3 * SAMPLE:
        sample = full
    else:
        middle = size // 2 - SAMPLE // 2
        sample = hashlib.sha256(data[:SAMPLE] + data[middle:middle + SAMPLE]
                                + data[-SAMPLE:]).hexdigest()
    return {"size": size, "mtime": seen.st_mtime, "ctime": seen.st_ctime,
            "identity": (size, seen.st_mtime_ns, seen.st_ino),
            "kind": KINDS.get(os.path.splitext(path)[1].lower(), "unknown"),
            "sample_hash": sample, "full_hash": full}


def truth(roots) -> dict:
    """{path: facts} of all regular files below the roots."""
    found = {}
    for root in roots:
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.join(folder, name)
                if stat.S_ISREG(os.lstat(path).st_mode):
                    found[path] = truth_of(path)
    return found


class OpenCounter:
    """Which files were read while it was on."""

    def __init__(self):
        self.paths = []

    def wrap(self, function):
        def counted(native_path, *args, **named):
            self.paths.append(native_path)
            return function(native_path, *args, **named)
        return counted

    def __enter__(self):
        self.saved = hash_window.sample_hash_file, scan_passes.full_hash_file
        hash_window.sample_hash_file = self.wrap(self.saved[0])
        scan_passes.full_hash_file = self.wrap(self.saved[1])
        return self

    def __exit__(self, *_):
        hash_window.sample_hash_file, scan_passes.full_hash_file = self.saved


class World:
    """An agent (cache, service) and its host. Nothing runs in the background."""

    def __init__(self, folder, roots=("media",), config=None, host=None, clock=time.time):
        self.folder = str(folder)
        self.home = os.path.join(self.folder, "home")
        os.makedirs(self.home, exist_ok=True)
        self.roots = [os.path.join(self.folder, root) for root in roots]
        for root in self.roots:
            os.makedirs(root, exist_ok=True)
        self.clock = clock
        self.ffprobe = None
        self.host = host or ToyHost({**CONFIG, **(config or {})})
        self.service = None
        self.start()

    @property
    def cache_path(self) -> str:
        return os.path.join(self.home, "agent_cache.db")

    def start(self) -> None:
        self.cache = AgentCache(self.cache_path, clock=self.clock)
        transports = [ToyTransport(self.host), ToyTransport(self.host)]
        self.service = AgentService(
            self.cache, AgentIdentity(self.home), *transports, roots=self.roots, port=1,
            find_ffprobe=lambda: self.ffprobe, clock=self.clock)

    def stop(self) -> None:
        self.cache.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    def path(self, *parts, root=0) -> str:
        return os.path.join(self.roots[root], *parts)

    def write(self, rel: str, data: bytes = b"", root=0) -> str:
        path = self.path(rel, root=root)
        write(path, data or os.urandom(40))
        return path

    def set_roots(self, roots) -> None:
        self.roots = list(roots)
        self.service.own_roots = list(roots)

    def scan(self) -> bool:
        return self.service.scan()

    def deliver(self) -> bool:
        """One try to deliver all; False when the host failed."""
        try:
            self.service.delivery.deliver_all()
        except PeerError as error:
            self.service.link.lost(error)
            return False
        return True

    def sync(self) -> None:
        """A whole scan and all delivered."""
        assert self.scan()
        for _ in range(20):
            if self.deliver():
                return
        raise AssertionError("not delivered")

    def known(self) -> dict:
        """{path: row} of what the host shows as present now."""
        return {path: row for path, row in self.host.present().items()
                if self.host.root_state(row) != "offline"}

    def check(self, *, roots=None) -> None:
        """The host's present files are exactly those on disk (I1)."""
        expected = truth(self.roots if roots is None else roots)
        known = self.known()
        assert sorted(known) == sorted(expected)
        for path, facts in expected.items():
            row = known[path]
            for name in ("size", "mtime", "ctime", "kind", "identity"):
                assert row[name] == facts[name], (path, name, row, facts)
            hashes = row["hashes"]
            if hashes is None:
                raise AssertionError(f"{path} has no hashes: {row}")
            assert hashes["algo"] == "sha256"
            assert hashes["sample_hash"] == facts["sample_hash"], (path, row)
            assert hashes["full_hash"] == facts["full_hash"], (path, row)
        self.check_cache()

    def check_cache(self) -> None:
        """The cache's own sums agree with its rows."""
        rows = self.cache.store.rows("SELECT root_id, size, digest FROM agent_index"
                                     " WHERE rejected IS NULL")
        for root in self.cache.roots.all():
            mine = [row for row in rows if row[0] == root.id]
            assert root.files == len(mine)
            assert root.bytes == sum(row[1] for row in mine)
            assert root.digest == sum(row[2] for row in mine) % (1 << 64)
        assert self.cache.outbox.undelivered() == 0
        self.check_seals()

    def check_seals(self) -> None:
        """A folder whose seal a scan would find again has exactly the rows of its files."""
        plan = types.SimpleNamespace(algo="sha256", sample_size=SAMPLE)
        seals = FolderSeals(self.cache, None, plan)
        for root in self.cache.roots.all():
            if root.parked or not os.path.isdir(root.path):
                continue
            for listing in walk_folders(root.path, classifier=Classifier({}),
                                        root_device=os.stat(root.path).st_dev):
                known = self.cache.roots.known_folder(root.id, listing.rel)
                if known is not None and known.seal and known.seal == seals.seal(listing):
                    prefix = root.file_path(listing.rel + "/" if listing.rel else "")
                    assert set(seals.rows_at_rest(known.id, 10_000)) == files_at_rest(
                        listing, prefix)

    def check_quiet(self) -> None:
        """A second scan opens nothing and posts nothing but the ends of the roots (I4)."""
        self.host.posts.clear()
        with OpenCounter() as opened:
            self.sync()
        assert opened.paths == []
        assert self.host.records() == 0
        assert len(self.host.posts) <= len(self.roots)

    def ids(self) -> dict:
        """{identity: {ids}} of the present files."""
        found = {}
        for row in self.known().values():
            found.setdefault(row["identity"], set()).add(row["id"])
        return found

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def identity_at(path: str) -> tuple:
    seen = os.lstat(path)
    return identity_of(f"{seen.st_size}:{seen.st_mtime_ns}:{seen.st_ino}:0")
