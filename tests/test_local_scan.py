"""The host's own disks: the agent's machinery in the host's process, without HTTP in between."""

from __future__ import annotations

import os
import threading
import time

import pytest

from medialib import root_check
from medialib.base import StoreError
from medialib.catalog import Catalog
from medialib.catalog_agents import agent_list
from medialib.catalog_schema import LOCAL_AGENT
from medialib.host_agents import AgentPresence
from medialib.http_json import HttpError
from medialib.ingest import Ingest
from medialib.local_scan import LocalScan, list_local_folder
from medialib.server_cli import add_local_roots
from tests import support
from tests.agent_world import OpenCounter, truth, write
from tests.catalog_audit import check_catalogue_sums
from tests.catalog_world import stored_files


class LocalWorld:
    """A host's catalogue and its own scanner on one tree, in this process."""

    def __init__(self, folder):
        self.folder = str(folder)
        self.root = os.path.join(self.folder, "media")
        os.makedirs(self.root)
        self.home = os.path.join(self.folder, "home")
        os.makedirs(self.home)
        self.start()
        add_local_roots(self.catalog, [self.root])

    def start(self) -> None:
        self.catalog = Catalog(os.path.join(self.home, "medialib.db"))
        self.ingest = Ingest(self.catalog, AgentPresence())
        self.local = LocalScan(self.ingest, self.home, "host")

    def stop(self) -> None:
        self.local.stop()
        self.catalog.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    def write(self, rel: str, data: bytes = b"") -> str:
        path = os.path.join(self.root, rel)
        write(path, data or os.urandom(40))
        return path

    def rescan(self) -> list:
        """As a host that was started again: one whole scan; what is left over."""
        self.restart()
        return self.local.run_once()

    def check(self) -> None:
        rows = stored_files(self.catalog)
        wanted = truth([self.root])
        assert sorted(rows) == sorted(wanted)
        for path, facts in wanted.items():
            assert rows[path]["agent"]["id"] == LOCAL_AGENT
            assert rows[path]["size"] == facts["size"]
            assert rows[path]["hashes"]["full_hash"], path
        check_catalogue_sums(self.catalog.path)


@pytest.fixture
def world(tmp_path):
    world = LocalWorld(tmp_path)
    yield world
    world.stop()


def test_scans_and_rescans(world):
    for number in range(30):
        world.write(f"d{number % 4}/{number}.jpg")
    assert world.local.run_once() == []
    world.check()
    before = {path: (row["id"], row["changed"])
              for path, row in stored_files(world.catalog).items()}
    with OpenCounter() as opened:
        assert world.rescan() == []
    assert opened.paths == []
    assert {path: (row["id"], row["changed"])
            for path, row in stored_files(world.catalog).items()} == before
    os.rename(os.path.join(world.root, "d1"), os.path.join(world.root, "moved"))
    world.write("d0/new.jpg")
    os.remove(os.path.join(world.root, "d0", "0.jpg"))
    with OpenCounter() as opened:
        assert world.rescan() == []
    assert len(opened.paths) == 1
    world.check()
    rows = stored_files(world.catalog)
    assert {row["id"] for path, row in rows.items() if "/moved/" in path} == {
        number for path, (number, _) in before.items() if "/d1/" in path}


def test_a_lost_catalogue_is_filled_from_the_local_cache(world):
    for number in range(20):
        world.write(f"{number}.jpg")
    world.local.run_once()
    library = world.catalog.library_id
    world.stop()
    for name in os.listdir(world.home):
        if name.startswith("medialib.db"):
            os.remove(os.path.join(world.home, name))
    world.start()
    add_local_roots(world.catalog, [world.root])
    with OpenCounter() as opened:
        assert world.local.run_once() == []
    assert opened.paths == []
    assert world.catalog.library_id != library
    world.check()


def test_a_lost_local_cache_is_built_anew(world):
    for number in range(20):
        world.write(f"{number}.jpg")
    world.local.run_once()
    before = {path: row["id"] for path, row in stored_files(world.catalog).items()}
    world.stop()
    for name in os.listdir(world.home):
        if name.startswith("local_cache.db"):
            os.remove(os.path.join(world.home, name))
    world.start()
    assert world.local.run_once() == []
    world.check()
    assert {path: row["id"] for path, row in stored_files(world.catalog).items()} == before


def test_an_empty_root_is_offline_until_it_is_accepted(world):
    path = world.write("a.jpg")
    world.local.run_once()
    os.remove(path)
    left = world.rescan()
    assert len(left) == 1
    assert "offline" in left[0]
    assert len(stored_files(world.catalog, 1)) == 0
    world.restart()
    world.local.service.scanner.look_at([world.root])
    assert world.local.obey("accept_empty", world.root) == {"ok": True}
    assert world.local.run_once() == []
    assert len(stored_files(world.catalog, 1)) == 1


@pytest.mark.parametrize("fs", ["tmpfs", "overlay"])
def test_a_disk_that_was_replaced_is_offline_until_it_is_accepted(world, monkeypatch, fs):
    """Neither disk has a name of its own; the second one is of the same type, or of another."""
    disk = {"volume": None, "volume_path": None, "fsid": None, "fs": "tmpfs"}
    real = root_check.describe_root
    monkeypatch.setattr(root_check, "describe_root", lambda path: real(path)._replace(**disk))
    old = [world.write(f"old/{number}.jpg") for number in range(9)]
    world.local.run_once()
    roots = world.local.cache.roots
    roots.save(roots.at_path(world.root), device=1)  # the new disk has another number
    for path in old:
        os.remove(path)
    os.rmdir(os.path.join(world.root, "old"))
    new = world.write("new/1.jpg")
    disk.update(fs=fs)
    left = world.rescan()
    assert len(left) == 1
    assert "offline" in left[0]
    assert shown_root(world)["accept_disk"]
    assert len(stored_files(world.catalog)) == 9
    world.restart()
    world.local.service.scanner.look_at([world.root])
    assert world.local.obey("accept_empty", world.root) == {"ok": True}
    assert world.local.run_once() == []
    assert sorted(stored_files(world.catalog)) == [new]
    assert sorted(stored_files(world.catalog, 1)) == sorted(old)
    root = shown_root(world)
    assert (root["state"], root["accept_disk"], root["files"], root["missing"]) == (
        "online", False, 1, 9)
    assert world.rescan() == []
    world.check()


def shown_root(world) -> dict:
    with world.catalog.reader() as db:
        agents = agent_list(db, world.ingest.presence, world.catalog.clock())
    (root,) = [root for agent in agents for root in agent["roots"]]
    return root


def test_a_catalogue_that_cannot_be_written_for_a_while(world, monkeypatch):
    """What is scanned waits in the local cache and comes when the disk has room again."""
    world.write("first.jpg")
    world.local.run_once()
    world.restart()
    for number in range(10):
        world.write(f"{number}.jpg")
    real = world.catalog.change

    def full(work):
        raise StoreError("the disk is full")

    monkeypatch.setattr(world.catalog, "change", full)
    world.local.service.start()
    world.local.service.run_once(patience_s=0.5)
    assert any("not delivered" in words for words in world.local.service.left_over())
    assert len(stored_files(world.catalog)) == 1
    monkeypatch.setattr(world.catalog, "change", real)
    assert world.rescan() == []
    world.check()


def test_damage_found_in_the_middle_keeps_the_scanner_alive(world):
    world.write("a.jpg")
    world.local.start()
    support.wait_until(lambda: len(stored_files(world.catalog)) == 1, 60)
    world.catalog.note_damage(StoreError("a page is zero"))
    world.write("b.jpg")
    world.local.obey("scan_now")
    support.wait_until(lambda: world.local.cache.outbox.undelivered(), 60, "the change to wait")
    assert world.local._thread.is_alive()
    assert "a page is zero" in world.local.service.link.problem


def test_scans_go_on_while_the_page_asks(world):
    """start() scans by itself; scan_now, clear_cache and compact_cache are safe at any time."""
    for number in range(200):
        world.write(f"d{number % 9}/{number}.jpg")
    world.local.start()
    stop = threading.Event()
    answers = []

    def ask() -> None:
        while not stop.is_set():
            for do in ("scan_now", "clear_cache", "compact_cache"):
                answers.append(world.local.obey(do)["ok"])

    asker = threading.Thread(target=ask)
    asker.start()
    time.sleep(1.5)
    stop.set()
    asker.join(30)
    world.local.obey("scan_now")
    support.wait_until(lambda: len(stored_files(world.catalog)) == 200, 30)
    support.wait_until(world.local.service.delivery.idle.is_set, 30)
    assert answers
    assert all(answers)
    world.check()


def test_stopping_in_the_middle_of_a_scan_is_quick(world):
    for number in range(1500):
        world.write(f"d{number % 9}/{number}.jpg")
    world.local.start()
    support.wait_until(lambda: world.local.service.stats.seen > 20, 60)
    began = time.monotonic()
    world.local.stop()
    assert time.monotonic() - began < 5
    world.catalog.close()
    world.start()
    assert world.local.run_once() == []
    world.check()


def test_folders_of_the_hosts_own_disks(world, tmp_path):
    world.write("a.jpg")
    answer = world.local.obey("ls", world.root)
    assert [file["name"] for file in answer["files"]] == ["a.jpg"]
    for path, status in ((str(tmp_path / "none"), 404), (os.path.join(world.root, "a.jpg"), 400),
                         ("a\0b", 400)):
        with pytest.raises(HttpError) as refused:
            list_local_folder(path)
        assert refused.value.status == status, path
    with pytest.raises(HttpError) as refused:
        world.local.obey("format_disk")
    assert refused.value.status == 400


def test_nobody_else_speaks_for_the_local_scanner(world):
    for agent in ({"id": LOCAL_AGENT}, {"id": LOCAL_AGENT, "name": "x"}):
        with pytest.raises(HttpError) as refused:
            world.ingest.batch({"batch_id": "1", "agent": agent, "files": []}, "10.0.0.7")
        assert refused.value.status == 400
