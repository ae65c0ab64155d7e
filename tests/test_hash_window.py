"""Reading for sample hashes: one file at a time where a disk seeks, in the order it lies there."""

from __future__ import annotations

import os
import threading
import types

import pytest

from medialib import hash_window
from medialib.cache_changes import PutFile
from medialib.hash_window import SEEKING_CHUNK_FILES, HashWindow, look_at_file
from medialib.hashing import FileChanging, sample_hash_file
from medialib.scan_plan import ScanControl, ScanPlan, ScanStats
from medialib.settings import default_settings


class Buffer:
    """What HashWindow wants of a ChangeBuffer."""

    def __init__(self):
        self.changes, self.recent = [], {}

    def add(self, change):
        self.changes.append(change)

    def flush_if_due(self):
        pass

    flush = flush_if_due


class Readers:
    """Counts how many files are being read, and remembers which, in order."""

    def __init__(self, fail_once=()):
        self.now = self.most = 0
        self.inodes = []
        self.fail_once = set(fail_once)
        self.lock = threading.Lock()

    def __call__(self, native, found, *args, **how):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.inodes.append(os.stat(native).st_ino)
        try:
            threading.Event().wait(0.001)  # long enough for others to come in
            if native in self.fail_once:
                self.fail_once.discard(native)
                raise FileChanging("it changed")
            return sample_hash_file(native, found, *args, **how)
        finally:
            with self.lock:
                self.now -= 1


def info(**values):
    return types.SimpleNamespace(**{"rotational": False, "network": False, **values})


def scan_of():
    plan = ScanPlan({**default_settings(), "agent_adaptive": False, "agent_max_workers": 4})
    return types.SimpleNamespace(
        cache=types.SimpleNamespace(error_count=0, failure=lambda *_: None), plan=plan,
        stats=ScanStats(), control=ScanControl(), buffer=Buffer(), inodes_stable=True,
        set_cursor=lambda rel: None)


def read_all(monkeypatch, folder, disk, count=300, readers=None, waits=True):
    """The Readers and changes of reading `count` files; the pool reads, unless waits is False."""
    readers = readers or Readers()
    monkeypatch.setattr(hash_window, "sample_hash_file", readers)
    scan = scan_of()
    names = [f"{(number * 37) % 1000:04d}" for number in range(count)]
    for name in names:
        (folder / name).write_bytes(name.encode() * 5)
    with HashWindow(scan, disk, careful=0) as window:
        for name in sorted(names):
            window.waits = waits
            found = look_at_file(str(folder / name), False)
            window.read(PutFile(found, 1, 1, found.native, name, "other", None))
        window.drain()
    return readers, scan.buffer.changes


@pytest.mark.parametrize("disk", [{"rotational": True}, {"rotational": None}, {"network": True}])
@pytest.mark.parametrize("waits", [True, False])
def test_one_open_file_where_a_head_or_a_wire_would_seek(monkeypatch, tmp_path, disk, waits):
    changing = [str(tmp_path / "0037"), str(tmp_path / "0074")]
    readers, changes = read_all(monkeypatch, tmp_path, info(**disk), readers=Readers(changing),
                                waits=waits)
    assert readers.most == 1
    assert sum(type(change) is PutFile and change.facts is not None for change in changes) == 300


def test_several_open_files_elsewhere(monkeypatch, tmp_path):
    readers, changes = read_all(monkeypatch, tmp_path, info())
    assert 2 <= readers.most <= 4
    assert len(changes) == 300


def test_files_of_a_seeking_disk_are_read_in_the_order_of_inodes(monkeypatch, tmp_path):
    readers, _ = read_all(monkeypatch, tmp_path, info(rotational=True), count=SEEKING_CHUNK_FILES)
    assert readers.inodes == sorted(readers.inodes)


def test_what_lies_in_memory_is_read_without_the_pool(monkeypatch, tmp_path):
    threads = set()

    def here(native, found, *args, **how):
        threads.add(threading.current_thread())
        return sample_hash_file(native, found, *args, **how)

    _, changes = read_all(monkeypatch, tmp_path, info(), readers=here, waits=False)
    assert threads == {threading.current_thread()}
    assert len(changes) == 300
