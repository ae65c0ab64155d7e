"""Copies of the catalogue: daily, before an upgrade and by hand; damage found late; restoring."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import threading
import time

import pytest

from medialib import catalog as catalog_module
from medialib import catalog_check
from medialib.base import DamagedStoreError, StoreError
from medialib.catalog import Catalog
from medialib.catalog_schema import CATALOG_MIGRATIONS
from medialib.host_upkeep import HostUpkeep, daily_backups, keep_copy_before_upgrade
from medialib.sqlite_store import copy_database, explain_sqlite_error
from tests import support
from tests.catalog_audit import check_catalogue_sums
from tests.catalog_world import ToyAgent, ToyFile, open_world, stored_files

DAY_S = 86_400.0


@pytest.fixture
def world(tmp_path):
    catalog, ingest = open_world(tmp_path / "medialib.db")
    yield catalog, ingest
    catalog.close()


def filled(ingest, files: int = 60, name: str = "toy") -> ToyAgent:
    agent = ToyAgent(ingest, name)
    for number in range(files):
        agent.disk[f"d{number % 7}/file {number:05}.jpg"] = ToyFile(number, 1000 + number)
    agent.scan()
    agent.deliver(50)
    return agent


def set_copies(catalog, count: int) -> None:
    catalog.write(lambda db: db.execute(
        "INSERT OR REPLACE INTO setting VALUES ('', 'backup_copies', ?)", (str(count),)))


def days_of(folder) -> list:
    """The days of the daily copies, by their names."""
    return [os.path.basename(path)[9:17] for _, path in daily_backups(str(folder))]


def integrity(path) -> str:
    with contextlib.closing(sqlite3.connect(str(path))) as db:
        return db.execute("PRAGMA integrity_check").fetchone()[0]


# Daily copies


@pytest.fixture
def berlin(monkeypatch):
    """Local time with a summer time."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_rotation_over_months_keeps_the_newest(world, tmp_path, berlin):
    catalog, ingest = world
    filled(ingest, 3)
    upkeep = HostUpkeep(catalog, str(tmp_path))
    days = 300 if support.LONG else 30
    begin = time.mktime((2026, 3, 10, 3, 0, 0, 0, 0, -1))  # summer time begins on the 29th
    for hour in range(0, 24 * days, 5):
        upkeep.tick(begin + hour * 3600)
    last = begin + 24 * days * 3600
    days = days_of(tmp_path)
    assert len(days) == 7
    wanted = [time.strftime("%Y%m%d", time.localtime(last - back * DAY_S)) for back in range(9)]
    assert set(days) <= set(wanted), "the newest seven, none left out by more than a day"
    assert len(set(days)) == 7
    # The host was off for weeks: what there is stays until there is something newer.
    upkeep.tick(last + 30 * DAY_S)
    assert days_of(tmp_path)[:6] == days[1:]
    assert all(integrity(path) == "ok" for _, path in daily_backups(str(tmp_path)))
    modes = {os.stat(path).st_mode & 0o777 for _, path in daily_backups(str(tmp_path))}
    assert modes == {0o600}


def test_ticks_within_a_day_make_one_copy(world, tmp_path):
    catalog, _ = world
    upkeep = HostUpkeep(catalog, str(tmp_path))
    now = time.time()
    for minutes in range(0, 24 * 60 - 1, 15):
        upkeep.tick(now + minutes * 60)
    assert len(daily_backups(str(tmp_path))) == 1


def test_a_copy_from_the_future_keeps_nobody_from_making_more(world, tmp_path):
    """The clock was wrong for a while: neither no copies until then, nor one at every look."""
    catalog, _ = world
    set_copies(catalog, 3)
    upkeep = HostUpkeep(catalog, str(tmp_path))
    now = time.time()
    upkeep.tick(now + 3000 * DAY_S)
    for hours in range(0, 24 * 6, 4):
        upkeep.tick(now + hours * 3600)
    days = days_of(tmp_path)
    assert len(days) == 3
    assert days[-1][:4] > time.strftime("%Y", time.localtime(now))
    assert days[:2] == [time.strftime("%Y%m%d", time.localtime(now + day * DAY_S))
                        for day in (4, 5)]


def test_other_files_in_the_folder_are_left_alone(world, tmp_path):
    catalog, _ = world
    set_copies(catalog, 2)
    folder = tmp_path / "backups"
    folder.mkdir()
    others = ["mine.db", "before-upgrade-from-1.db", "medialib-keep this one.db", "other.part"]
    for name in others:
        (folder / name).write_text(name)
    (folder / "medialib-20260101-000000.db.77-1.part").write_text("left by a kill")
    upkeep = HostUpkeep(catalog, str(tmp_path))
    for day in range(5):
        upkeep.tick(time.time() + day * DAY_S)
    assert len(daily_backups(str(tmp_path))) == 2
    names = {path.name for path in folder.iterdir()}
    assert names >= set(others)
    assert len(names) == len(others) + 2


def test_no_copies_wanted_removes_none(world, tmp_path):
    catalog, _ = world
    upkeep = HostUpkeep(catalog, str(tmp_path))
    upkeep.tick(time.time())
    set_copies(catalog, 0)
    for day in range(3):
        upkeep.tick(time.time() + day * DAY_S)
    assert len(daily_backups(str(tmp_path))) == 1


def test_old_copies_stay_while_none_can_be_made(world, tmp_path, monkeypatch):
    catalog, _ = world
    set_copies(catalog, 2)
    upkeep = HostUpkeep(catalog, str(tmp_path))
    now = time.time()
    for day in range(3):
        upkeep.tick(now + day * DAY_S)
    before = daily_backups(str(tmp_path))

    def full(target):
        raise StoreError("no room")

    monkeypatch.setattr(catalog, "backup", full)
    for day in range(3, 9):
        with pytest.raises(StoreError):
            upkeep.tick(now + day * DAY_S)
    monkeypatch.undo()
    monkeypatch.setattr(upkeep, "_has_room", lambda: False)
    for day in range(9, 12):
        upkeep.tick(now + day * DAY_S)
    assert daily_backups(str(tmp_path)) == before


# Copies by hand, and in general


def test_copies_while_batches_flow_in(world, tmp_path):
    """Each copy is one sound state of the catalogue, and none waits for the end of the traffic."""
    catalog, ingest = world
    filled(ingest, 400)
    stop = threading.Event()

    def flow(name: str) -> None:
        agent = ToyAgent(ingest, name, root=f"/{name}")
        number = 0
        while not stop.is_set():
            for _ in range(40):
                number += 1
                agent.disk[f"f{number % 900}.jpg"] = ToyFile(number, number)
            agent.scan()
            agent.deliver(40)

    threads = [threading.Thread(target=flow, args=(f"a{number}",)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(support.LONG and 40 or 6):
            target = tmp_path / f"copy {number}.db"
            before = catalog.writer.commits
            catalog.backup(str(target))
            assert catalog.writer.commits >= before
            check_catalogue_sums(str(target))
            assert integrity(target) == "ok"
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not list(tmp_path.glob("*.part*"))


def test_a_commit_between_two_steps_does_not_begin_the_copy_anew(world, tmp_path, monkeypatch):
    catalog, ingest = world
    filled(ingest, 200)
    steps = []
    real = sqlite3.Connection

    class Watched(sqlite3.Connection):
        def backup(self, target, *, pages, **_):
            def step(status, remaining, total):
                steps.append(remaining)
                assert len(steps) < 5000, "it begins again and again"
                catalog.write(lambda db: db.execute(
                    "INSERT OR REPLACE INTO library VALUES ('test', ?)", (str(len(steps)),)))
            real.backup(self, target, pages=2, progress=step)

    connect = sqlite3.connect
    monkeypatch.setattr("medialib.sqlite_store.sqlite3.connect",
                        lambda *args, **named: connect(*args, **{**named, "factory": Watched}))
    copy_database(catalog.path, str(tmp_path / "copy.db"))
    assert len(steps) > 10
    assert steps == sorted(steps, reverse=True)
    assert integrity(tmp_path / "copy.db") == "ok"


def test_two_copies_to_one_name_at_once(world, tmp_path):
    catalog, ingest = world
    filled(ingest, 300)
    target = tmp_path / "copy.db"
    threads = [threading.Thread(target=copy_database, args=(catalog.path, str(target)))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert integrity(target) == "ok"
    check_catalogue_sums(str(target))
    assert sorted(path.name for path in tmp_path.glob("copy*")) == ["copy.db"]


def test_an_older_copy_is_replaced(world, tmp_path):
    catalog, ingest = world
    target = tmp_path / "copy.db"
    catalog.backup(str(target))
    link = tmp_path / "link.db"
    link.symlink_to(target)
    filled(ingest, 10)
    catalog.backup(str(link))
    assert link.is_symlink()
    with contextlib.closing(sqlite3.connect(str(target))) as db:
        assert db.execute("SELECT count(*) FROM file").fetchone() == (10,)


@pytest.mark.parametrize("what", [
    "itself", "a link to itself", "its log", "a folder", "a picture", "an empty file",
    "another database in use", "below nothing", "a pipe"])
def test_what_a_copy_never_replaces(world, tmp_path, what):
    catalog, ingest = world
    filled(ingest, 10)
    target = tmp_path / "target"
    used = None
    if what == "itself":
        target = tmp_path / "medialib.db"
    elif what == "a link to itself":
        target.symlink_to("medialib.db")
    elif what == "its log":
        target = tmp_path / "medialib.db-wal"
    elif what == "a folder":
        target.mkdir()
    elif what == "an empty file":
        target.touch()
    elif what == "a picture":
        target.write_bytes(b"\xff\xd8\xff" * 99)
    elif what == "another database in use":
        used = sqlite3.connect(str(target))
        used.execute("PRAGMA journal_mode=WAL")
        used.execute("CREATE TABLE a (b)")
    elif what == "below nothing":
        target = tmp_path / "none" / "target"
    else:
        os.mkfifo(target)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(StoreError, match="target|medialib.db"):
        catalog.backup(str(target))
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()} == before
    assert catalog.problem is None
    filled(ingest, 12, "more")
    assert len(stored_files(catalog)) == 12
    if used is not None:
        used.close()


def test_a_full_disk_leaves_nothing_behind(world, tmp_path):
    support.need_root()
    support.need("mount", "umount")
    catalog, ingest = world
    filled(ingest, 2000)
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)], check=True)
    try:
        with pytest.raises(StoreError, match="small"):
            catalog.backup(str(place / "copy.db"))
        assert list(place.iterdir()) == []
        assert catalog.problem is None, "a full disk is no damage"
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


# Before an upgrade


def failing_step(db) -> None:
    db.execute("CREATE TABLE half (a)")
    raise StoreError("the step fails")


def test_a_copy_before_an_upgrade(tmp_path, monkeypatch):
    catalog, ingest = open_world(tmp_path / "medialib.db")
    filled(ingest, 20)
    catalog.close()
    keep_copy = keep_copy_before_upgrade(str(tmp_path))
    Catalog(str(tmp_path / "medialib.db"), keep_copy=keep_copy).close()
    assert not (tmp_path / "backups").exists(), "nothing to upgrade"
    monkeypatch.setattr(catalog_module, "CATALOG_MIGRATIONS",
                        [*CATALOG_MIGRATIONS, ["CREATE TABLE later (a)"], failing_step])
    for _ in range(3):
        with pytest.raises(StoreError, match="the step fails"):
            Catalog(str(tmp_path / "medialib.db"), keep_copy=keep_copy)
    copies = sorted((tmp_path / "backups").iterdir())
    assert [path.name for path in copies] == ["before-upgrade-from-1.db",
                                              "before-upgrade-from-2.db"]
    with contextlib.closing(sqlite3.connect(str(copies[0]))) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("SELECT count(*) FROM file").fetchone() == (20,)
        assert not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'later'").fetchall()
    with contextlib.closing(sqlite3.connect(str(tmp_path / "medialib.db"))) as db:
        assert not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'half'").fetchall()


def test_no_upgrade_without_its_copy(tmp_path, monkeypatch):
    catalog, _ = open_world(tmp_path / "medialib.db")
    catalog.close()
    (tmp_path / "backups").mkdir()
    (tmp_path / "backups" / "before-upgrade-from-1.db").mkdir()
    monkeypatch.setattr(catalog_module, "CATALOG_MIGRATIONS",
                        [*CATALOG_MIGRATIONS, ["CREATE TABLE later (a)"]])
    with pytest.raises(StoreError, match="before-upgrade"):
        Catalog(str(tmp_path / "medialib.db"),
                keep_copy=keep_copy_before_upgrade(str(tmp_path)))
    with contextlib.closing(sqlite3.connect(str(tmp_path / "medialib.db"))) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)


# Restoring


@pytest.mark.parametrize("log", ["removed", "left there"])
def test_restored_beside_the_log_of_a_killed_host(tmp_path, log):
    """A copy put in place while the killed host's log still lies there: nothing is mixed, and the
    agent sends again what the copy lacks.
    """
    path = tmp_path / "medialib.db"
    catalog, ingest = open_world(path)
    agent = filled(ingest, 50)
    catalog.backup(str(tmp_path / "copy.db"))
    for number in range(30):
        agent.disk[f"new/{number}.mkv"] = ToyFile(9000 + number, 77 + number)
    del agent.disk["d0/file 00000.jpg"]
    agent.scan()
    agent.deliver(10)
    for suffix in ("", "-wal"):  # as a kill leaves them
        shutil.copy(f"{path}{suffix}", tmp_path / f"killed{suffix}")
    assert os.path.getsize(tmp_path / "killed-wal")
    catalog.close()
    shutil.copy(tmp_path / "copy.db", path)
    if log == "left there":
        shutil.copy(tmp_path / "killed-wal", f"{path}-wal")
    catalog, ingest = open_world(path)
    try:
        assert catalog.problem is None
        assert len(stored_files(catalog)) == 50
        agent.host = ingest
        agent.acked = 0  # what hello tells it
        agent.deliver(10)
        assert agent.end()["in_step"]
        assert sorted(stored_files(catalog)) == sorted(f"/media/{rel}" for rel in agent.disk)
    finally:
        catalog.close()
    check_catalogue_sums(str(path))
    kept = list(tmp_path.glob("medialib.db-wal.of-another-*"))
    assert len(kept) == (log == "left there")
    if kept:
        assert kept[0].read_bytes() == (tmp_path / "killed-wal").read_bytes()


def test_the_log_of_a_killed_host_is_its_own(tmp_path):
    """Without a restored copy the log is the newest part of the catalogue."""
    path = tmp_path / "medialib.db"
    catalog, ingest = open_world(path)
    filled(ingest, 50)
    other = tmp_path / "killed.db"
    shutil.copy(path, other)
    shutil.copy(f"{path}-wal", f"{other}-wal")
    catalog.close()
    catalog, _ = open_world(other)
    assert len(stored_files(catalog)) == 50
    catalog.close()
    assert not list(tmp_path.glob("*of-another*"))


# Damage that is found late


def zero_page(path, table: str) -> None:
    """Overwrite a page in the middle of a table or index with zeros, as a dying disk does it."""
    with contextlib.closing(sqlite3.connect(str(path))) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = db.execute("PRAGMA page_size").fetchone()[0]
        root = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    with open(path, "r+b") as file:
        page = root[0]
        while True:  # down to a leaf, by the middle child
            file.seek((page - 1) * size)
            data = file.read(size)
            if data[0] not in (2, 5):
                break
            cells = int.from_bytes(data[3:5], "big")
            at = 12 + 2 * (cells // 2)
            cell = int.from_bytes(data[at:at + 2], "big")
            page = int.from_bytes(data[cell:cell + 4], "big")
        file.seek((page - 1) * size)
        file.write(bytes(size))


def is_idle(catalog) -> bool:
    """Nothing is left that the writing thread would read of its own accord."""
    with catalog.reader() as db:
        values = dict(db.execute("SELECT name, value FROM counter"))
    return values["searchable"] == values["file"]


@pytest.fixture
def damaged(tmp_path, monkeypatch):
    """damaged(table) -> (Catalog, ToyAgent) of a file that counts as large, one page zeroed;
    background=False leaves out its check.
    """
    opened = []

    def make(table: str, *, background: bool = True):
        path = tmp_path / "medialib.db"
        catalog, ingest = open_world(path)
        agent = filled(ingest, 3000)
        support.wait_until(lambda: is_idle(catalog), 60, "all names to be indexed")
        catalog.close()
        zero_page(path, table)
        monkeypatch.setattr(catalog_check, "CHECKED_FIRST_PAGES", 10)
        if not background:
            monkeypatch.setattr(catalog_module.BackgroundCheck, "start", lambda self: None)
            monkeypatch.setattr(catalog_module.BackgroundCheck, "stop", lambda self: None)
        catalog, agent.host = open_world(path)
        opened.append(catalog)
        return catalog, agent

    yield make
    for catalog in opened:
        catalog.close()


@pytest.mark.parametrize("table", ["file", "file_path", "streams", "name_search_data"])
def test_a_large_file_is_checked_beside_all_else(damaged, table):
    catalog, _ = damaged(table)
    support.wait_until(lambda: catalog.problem, 60, "the check to find it")
    assert "To restore" in catalog.problem
    assert "rebuild" in catalog.problem
    assert catalog.writable() == catalog.problem
    with pytest.raises(StoreError, match="damaged"):
        catalog.write(lambda db: None)
    with pytest.raises(StoreError, match="damaged"), catalog.reader():
        pass


def test_damage_met_while_reading_stops_the_catalogue(damaged):
    catalog, _ = damaged("file", background=False)
    assert catalog.problem is None
    with pytest.raises(DamagedStoreError), catalog.reader() as db:
        db.execute("SELECT sum(length(name)) FROM file NOT INDEXED").fetchone()
    assert "To restore" in catalog.problem


def test_damage_met_while_writing_stops_the_catalogue(damaged):
    """The batch is not acknowledged: the agent keeps it."""
    catalog, agent = damaged("file_path", background=False)
    for number, file in enumerate(agent.disk.values()):
        file.rewrite(number, 5000 + number)
    agent.scan()
    with pytest.raises(StoreError, match="damaged"):
        agent.deliver(500)
    assert "To restore" in catalog.problem
    assert agent.acked < agent.rev
    with pytest.raises(StoreError, match="damaged"):
        agent.deliver(500)


def test_a_daily_copy_of_a_damaged_catalogue_replaces_no_good_one(damaged, tmp_path):
    catalog, _ = damaged("streams", background=False)
    (tmp_path / "backups").mkdir()
    good = tmp_path / "backups" / "medialib-20260101-000000.db"
    good.write_bytes(b"good")
    upkeep = HostUpkeep(catalog, str(tmp_path))
    with pytest.raises(DamagedStoreError):
        upkeep.tick(time.time())
    assert "To restore" in catalog.problem
    upkeep.tick(time.time() + DAY_S)
    assert [path.name for path in (tmp_path / "backups").iterdir()] == [good.name]


def test_a_sound_large_file_is_in_use_while_it_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog_check, "CHECKED_FIRST_PAGES", 10)
    catalog, ingest = open_world(tmp_path / "medialib.db")
    filled(ingest, 500)
    catalog.close()
    started = threading.Event()
    go_on = threading.Event()

    def slow(db, path):
        started.set()
        assert go_on.wait(60)

    monkeypatch.setattr(catalog_check, "check_connection", slow)
    catalog, ingest = open_world(tmp_path / "medialib.db")
    assert started.wait(60)
    filled(ingest, 10, "second")
    assert len(stored_files(catalog)) == 510 - 10
    go_on.set()
    catalog.close()
    assert catalog.problem is None


def test_a_question_that_sqlite_cannot_parse_is_no_damage(world):
    catalog, _ = world
    with pytest.raises(StoreError), catalog.reader() as db:
        db.execute("SELECT json('{')").fetchone()
    with pytest.raises(StoreError), catalog.reader() as db:
        db.execute("SELECT * FROM name_search WHERE name_search MATCH '\"'").fetchall()
    assert catalog.problem is None
    error = explain_sqlite_error(sqlite3.OperationalError("malformed JSON"), "x")
    assert not isinstance(error, DamagedStoreError)
    error = explain_sqlite_error(sqlite3.DatabaseError("database disk image is malformed"), "x")
    assert isinstance(error, DamagedStoreError)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_really_large_file_with_one_zeroed_page(tmp_path):
    """It is open at once, and soon says what is wrong with it."""
    path = tmp_path / "medialib.db"
    catalog, ingest = open_world(path)
    agent = ToyAgent(ingest)
    for number in range(400_000):
        agent.disk[f"d{number % 997}/file {number:07}.jpg"] = ToyFile(number, 1000 + number)
    agent.scan()
    agent.deliver(5000)
    catalog.close()
    size = path.stat().st_size
    assert size > catalog_check.CHECKED_FIRST_PAGES * 4096, size
    for damaged in (False, True):
        if damaged:
            zero_page(path, "file")
        began = time.monotonic()
        catalog, ingest = open_world(path)
        opened_s = time.monotonic() - began
        catalog.check._thread.join(300)
        checked_s = time.monotonic() - began
        print(f"{size:,} bytes: open after {opened_s:.2f} s, checked after {checked_s:.2f} s")
        assert bool(catalog.problem) == damaged
        assert opened_s < 5
        catalog.close()
