"""A toy agent over a toy disk, for trying what the catalogue makes of any history."""

from __future__ import annotations

import hashlib
import itertools
import uuid

from medialib.catalog import Catalog
from medialib.host_agents import AgentPresence
from medialib.http_json import HttpError
from medialib.ingest import Ingest
from medialib.scan_common import ext_of, row_digest

ROOT_PATH = "/media"
KIND_OF_EXT = {".mkv": "video", ".jpg": "image", ".nfo": "xml"}


class ToyFile:
    """A file of the toy disk; content is a number, and hashes follow from it."""

    numbers = itertools.count(1000)

    def __init__(self, content: int, size: int):
        self.ino = next(self.numbers)
        self.stamp = next(self.numbers)
        self.content = content
        self.size = size

    def rewrite(self, content: int, size: int) -> None:
        self.content, self.size, self.stamp = content, size, next(self.numbers)

    @property
    def mtime_ns(self) -> int:
        return (1_600_000_000 + self.stamp) * 10**9 + 5

    @property
    def key(self) -> str:
        return f"{self.size}:{self.mtime_ns}:{self.ino}:64"

    def sample(self) -> str:
        return hashlib.sha256(b"s%d" % (self.content // 2)).hexdigest()

    def full(self) -> str:
        return hashlib.sha256(b"f%d" % self.content).hexdigest()


class ToyAgent:
    """Knows what it told the host, and says what changed since, as the agent's cache does."""

    def __init__(self, host: Ingest, name: str = "toy", root: str = ROOT_PATH):
        self.host = host
        self.root = root
        self.about = {"id": str(uuid.uuid4()), "name": name, "instance": str(uuid.uuid4())}
        self.disk: dict = {}  # relative path → ToyFile
        self.rows: dict = {}  # relative path → (key, full known, probed, rev)
        self.gone: dict = {}  # relative path → rev
        self.lies: dict = {}  # inode key → path under which the host knows the file
        self.rev = 0
        self.acked = 0
        self.sent: list = []
        self.full_known: set = set()
        self.probed: set = set()

    def scan(self) -> None:
        """Give everything that differs from what was noted the next numbers."""
        for path in [path for path in self.rows if path not in self.disk]:
            del self.rows[path]
            self.rev += 1
            self.gone[path] = self.rev
        for path, file in sorted(self.disk.items()):
            state = (file.key, file.key in self.full_known, file.key in self.probed)
            if path not in self.rows or self.rows[path][:3] != state:
                self.rev += 1
                self.rows[path] = (*state, self.rev)
                self.gone.pop(path, None)

    def record(self, path: str) -> dict:
        file, (key, full, probed, _) = self.disk[path], self.rows[path]
        record = {
            "kind": KIND_OF_EXT.get(ext_of(path), "unknown"), "path": f"{self.root}/{path}",
            "size": file.size, "mtime": file.mtime_ns / 1e9, "ctime": 2.5, "inode_key": key,
            "ext": ext_of(path), "hashes": {
                "algo": "sha256", "sample_size": 65536, "sample_hash": file.sample(),
                "full_hash": file.full() if full else None}}
        if probed:
            record["metadata"] = {
                "duration": 1.5, "container": "matroska", "video_codec": "h264",
                "audio_codecs": ["aac"], "width": 1920, "height": 1080, "bitrate": file.content,
                "streams_json": '{"streams": [{"index": 0}]}'}
        before = self.lies.get(key)
        if before is not None and before != path:
            record["moved_from"] = f"{self.root}/{before}"
        return record

    def batches(self, size: int) -> list:
        """What the host has not acknowledged, in order of the numbers."""
        changes = [(row[3], path, False) for path, row in self.rows.items() if row[3] > self.acked]
        changes += [(rev, path, True) for path, rev in self.gone.items() if rev > self.acked]
        changes.sort()
        after, batches = self.acked, []
        for start in range(0, len(changes), size):
            part = changes[start:start + size]
            batches.append({
                "batch_id": str(uuid.uuid4()), "agent": self.about, "root": self.root, "phase": 1,
                "files": [self.record(path) for _, path, gone in part if not gone],
                "removed": [f"{self.root}/{path}" for _, path, gone in part if gone],
                "after_rev": after, "rev": part[-1][0]})
            after = part[-1][0]
        return batches

    def send(self, batch: dict) -> dict:
        """Post one batch; on "resync" start again from where the host is."""
        try:
            answer = self.host.batch(batch, "10.0.0.9")
        except HttpError as error:
            if error.error != "resync":
                raise
            self.acked = error.extra["last_rev"]
            return error.reply().body
        assert answer["ok"]
        assert not answer["errors"], answer["errors"]
        if batch["rev"] > self.acked:
            self.acked = batch["rev"]
            self.sent.append(batch)
            for record in batch["files"]:
                self.lies[record["inode_key"]] = record["path"][len(self.root) + 1:]
        return answer

    def deliver(self, size: int = 7) -> None:
        for batch in self.batches(size):
            if not self.send(batch)["ok"]:
                self.deliver(size)
                return

    def end(self) -> dict:
        digest = sum(row_digest(path, row[0], KIND_OF_EXT.get(ext_of(path), "unknown"), "sha256",
                                self.disk[path].sample(),
                                self.disk[path].full() if row[1] else None, row[2])
                     for path, row in self.rows.items()) % (1 << 64)
        return self.host.batch({
            "batch_id": str(uuid.uuid4()), "agent": self.about, "root": self.root, "files": [],
            "after_rev": self.acked, "rev": self.acked,
            "end_of_root": {"scan_id": "1", "files": len(self.rows), "digest": f"{digest:016x}"},
        }, "10.0.0.9")


def open_world(path) -> tuple:
    """(Catalog, Ingest) on a new or existing file."""
    catalog = Catalog(str(path))
    return catalog, Ingest(catalog, AgentPresence())


def stored_files(catalog: Catalog, state: int = 0) -> dict:
    """{path: row as dict} of present (or missing) files."""
    from medialib.catalog_files import FilePages

    found, after = {}, None
    while True:
        with catalog.reader() as db:
            page = FilePages(catalog, db).page({
                "sort": "path", "limit": 1000, "after": after,
                "filter": {"state": "missing" if state else ["present", "offline"]}})
        for file in page["files"]:
            found[file["path"]] = file
        after = page["next"]
        if after is None:
            return found
