"""Full disks, read-only folders, damaged and newer databases, two programs on one folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
import time

import pytest

from tests import media, processes, support
from tests.faults import harness

DAMAGES = ["empty", "random", "half", "zeroed page", "text"]


def damage(path, how: str) -> bytes:
    """Spoil a database as disks and people do it; its bytes afterwards."""
    for suffix in ("-wal", "-shm"):
        support_file = path.with_name(path.name + suffix)
        if support_file.exists():
            support_file.unlink()
    data = path.read_bytes()
    page = 4096 * (len(data) // 4096 // 3)
    spoilt = {
        "empty": b"", "random": os.urandom(len(data)), "half": data[:len(data) // 2 + 77],
        "zeroed page": data[:page] + bytes(4096) + data[page + 4096:],
        "text": b"this was a database\n" * 500,
    }[how]
    path.write_bytes(spoilt)
    return spoilt


def whole_database(path) -> None:
    """Put the log into the file, so that damage to the file is damage to the data."""
    db = sqlite3.connect(str(path))
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


# Damage


@pytest.mark.parametrize("how", harness.either(["random", "zeroed page"], DAMAGES))
def test_damaged_cache_is_set_aside_and_rebuilt(world, how):
    one = world.tree("first", 60, 2)
    host = world.host().start()
    agent = world.once(host, one.root)
    world.scan(agent)
    known = {path: (row["id"], row["first_seen"])
             for path, row in harness.rows_by_path(host, "box").items()}
    media.random_changes(one, 6)
    path = agent.data / "agent_cache.db"
    whole_database(path)
    spoilt = damage(path, how)
    world.scan(agent)
    world.exact(host, "box", one.root)
    world.sound(agent)
    if how not in ("empty", "zeroed page"):
        kept = [other for other in agent.data.iterdir()
                if other.name.startswith("agent_cache") and other != path
                and other.is_file() and other.read_bytes() == spoilt]
        assert kept, sorted(other.name for other in agent.data.iterdir())
    for path, row in harness.rows_by_path(host, "box").items():
        if path in known and row["state"] == "present":
            assert row["first_seen"] <= known[path][1] or row["id"] != known[path][0]


@pytest.mark.parametrize("how", harness.either(
    ["zeroed page"], ["random", "half", "zeroed page", "text"]))
def test_damaged_catalogue_is_kept_and_explained(world, how):
    one = world.tree("first", 60, 2)
    host = world.host().start()
    agent = world.once(host, one.root)
    media.grow_old(one.root)
    world.scan(agent)
    assert host.stop() == 0
    path = host.data / "medialib.db"
    whole_database(path)
    spoilt = damage(path, how)
    host.start(ready=False)
    status, answer = wait_for_answer(host)
    assert (status, answer["ok"]) == (503, False), answer
    assert "restore" in answer["detail"].lower()
    assert "rebuild" in answer["detail"].lower()
    assert agent.run() == 3, agent.output()
    status, answer = support.request(host.url, "/api/files", {})
    assert 500 <= status < 600
    assert answer["ok"] is False
    assert host.stop() == 0
    assert path.read_bytes() == spoilt, "the damaged file must be kept as it is"
    rebuild(world, host, agent, one, path)


def wait_for_answer(host) -> tuple:
    def asked():
        try:
            return support.request(host.url, "/health", timeout_s=5)
        except OSError:
            return None

    return support.wait_until(asked, 60, "an answer of /health")


def rebuild(world, host, agent, one, path) -> None:
    """What the message says: move the file away and start again; nothing is read a second time."""
    for suffix in ("", "-wal", "-shm"):
        if path.with_name(path.name + suffix).exists():
            path.with_name(path.name + suffix).rename(path.with_name(f"away{suffix}"))
    host.start()
    tracer = processes.Tracer(world.folder / "trace")
    agent.prefix = tracer.prefix
    world.scan(agent)
    world.exact(host, "box", one.root)
    assert tracer.opened(one.root) == []
    assert tracer.probed() == []


def test_empty_catalogue_is_filled_again(world):
    one = world.tree("first", 30, 1)
    host = world.host().start()
    agent = world.once(host, one.root)
    world.scan(agent)
    assert host.stop() == 0
    damage(host.data / "medialib.db", "empty")
    host.start()
    world.scan(agent)
    world.exact(host, "box", one.root)


def test_restored_from_an_older_backup(world):
    """Both sides may come back from an old copy; whoever knows less is told."""
    one = world.tree("first", 40, 2)
    host = world.host().start()
    agent = world.once(host, one.root)
    world.scan(agent)
    backup = world.folder / "backup.db"
    saver = world.host("--backup", backup)
    assert saver.run() == 0, saver.output()
    old_cache = agent.data / "agent_cache.db"
    whole_database(old_cache)
    shutil.copy(old_cache, world.folder / "cache.db")
    for _ in range(2):
        media.random_changes(one, 25)
        world.scan(agent)
    assert host.stop() == 0
    for path in host.data.glob("medialib.db*"):
        path.unlink()
    shutil.copy(backup, host.data / "medialib.db")
    host.start()
    media.random_changes(one, 5)
    world.scan(agent)
    world.exact(host, "box", one.root, context="after an old catalogue")
    for path in agent.data.glob("agent_cache.db*"):
        path.unlink()
    shutil.copy(world.folder / "cache.db", old_cache)
    media.random_changes(one, 5)
    world.scan(agent)
    world.exact(host, "box", one.root, context="after an old cache")


@pytest.mark.parametrize("side", ["host", "agent"])
def test_newer_schema_is_left_alone(world, side):
    one = world.tree("first", 10, 0)
    host = world.host().start()
    agent = world.once(host, one.root)
    world.scan(agent)
    assert host.stop() == 0
    program, name = {"host": (host, "medialib.db"), "agent": (agent, "agent_cache.db")}[side]
    path = program.data / name
    db = sqlite3.connect(str(path))
    db.execute("PRAGMA user_version=99")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    before = path.read_bytes()
    if side == "host":
        assert host.run(timeout_s=60) == 1
        assert "newer" in host.output()
        assert "Traceback" not in host.output()
    else:
        host.start()
        world.scan(agent)
        assert "newer" in agent.output()
        world.exact(host, "box", one.root)
    assert path.read_bytes() == before


# Full and read-only


def test_full_disk_of_the_host_and_then_more_room(world):
    one = world.tree("first", 60, 2)
    host = world.host()
    with harness.tmpfs(host.data, "6m"):
        host.start()
        poster = harness.Poster(host, "poster", files=400)
        poster.start()
        support.wait_until(lambda: poster.refused, 40, "a full disk")
        status, answer = poster.refused[0]
        assert status in (500, 503, 507), answer
        assert answer["ok"] is False
        assert support.request(host.url, "/health")[0] == 503
        agent = world.once(host, one.root)
        assert agent.run() == 3, agent.output()
        assert "Traceback" not in host.output(), host.output()[-3000:]
        harness.mount("-o", "remount,size=200m", host.data)
        support.wait_until(lambda: support.request(host.url, "/health")[0] == 200, 60, "room")
        poster.stop()
        assert poster.lost() == []
        world.scan(agent)
        world.exact(host, "box", one.root)
        assert host.stop() == 0
        world.sound(host)


def test_full_home_of_the_agent(world):
    """The scan may be left over, but not wrong; with room again it is exact."""
    one = world.tree("first", 400, 2)
    host = world.host().start()
    agent = world.once(host, one.root)
    for size in harness.either(["300k"], ["300k", "400k", "600k"]):
        with harness.tmpfs(agent.data, size), harness.untouched(one.root):
            code = agent.run()
            assert code in (0, 1, 3), agent.output()
            assert "Traceback" not in agent.output(), agent.output()[-3000:]
            harness.mount("-o", "remount,size=64m", agent.data)
            world.scan(agent)
            world.exact(host, "box", one.root, context=f"with a home of {size}")
            world.sound(agent)


def test_home_fills_up_while_the_agent_runs(world):
    one = world.tree("first", 100, 1)
    host = world.host().start()
    agent = world.agent(host, one.root)
    with harness.tmpfs(agent.data, "8m"):
        agent.start()
        support.wait_until(lambda: agent.stats()["phase"] == 0, 30)
        filler = agent.data / "filler"
        fill_disk(filler)
        media.random_changes(one, 40)
        agent.post("/agent/scan_now")
        time.sleep(2)
        assert agent.running(), agent.output()
        filler.unlink()
        agent.post("/agent/scan_now")
        world.exact(host, "box", one.root, wait_s=harness.SETTLE_S)
        agent.kill()


DISK_ERRORS = [("fdatasync", "EIO", 5), ("pwrite64", "ENOSPC", 60), ("pwrite64", "EIO", 60),
               ("pread64", "EIO", 60), ("ftruncate", "ENOSPC", 1)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("call", "error", "step"), harness.either(DISK_ERRORS[:2], DISK_ERRORS))
def test_host_whose_disk_fails_at_times(world, call, error, step):
    """Some calls of a running host fail: what gets a 200 all the same is in the catalogue."""
    host = world.host()
    refused, everybody = 0, []
    for first in harness.either([9], [1, 2, 3, 5, 9, 14]):
        host.start()
        posters = [harness.Poster(host, f"poster{first}-{number}") for number in range(2)]
        everybody += posters
        with harness.attached(host, call, error=error, when=f"{first}+{step}"):
            for poster in posters:
                poster.start()
            time.sleep(4)
            host.kill()
        for poster in posters:
            poster.stop()
            refused += len(poster.refused)
            assert all(status in (500, 503, 507) for status, _ in poster.refused), poster.refused
    host.start()
    lost = [path for poster in everybody for path in poster.lost()]
    acknowledged = sum(len(poster.acknowledged) for poster in everybody)
    harness.figures(call=call, error=error, batches_acknowledged=acknowledged, refused=refused,
                    records_lost=len(lost))
    assert lost == []
    assert host.stop(30) == 0
    world.sound(host)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("call", "error", "step"), harness.either(DISK_ERRORS[:2], DISK_ERRORS))
def test_agent_whose_disk_fails_at_times(world, call, error, step):
    """It may have to leave something over, but says nothing that is not so."""
    one = world.tree("first", 60, 2)
    host = world.host().start()
    agent = world.agent(host, one.root)
    for first in harness.either([4], [1, 2, 4, 9, 20]):
        agent.start()
        support.wait_until(lambda: agent.stats()["seen"] and not agent.stats()["active"], 40)
        media.random_changes(one, 10)
        with harness.attached(agent, call, error=error, when=f"{first}+{step}"), \
                harness.untouched(one.root):
            for _ in range(3):
                agent.post("/agent/scan_now")
                time.sleep(0.7)
        assert agent.running(), agent.output()[-3000:]
        assert "Traceback" not in agent.output(), agent.output()[-3000:]
        agent.post("/agent/scan_now")
        world.exact(host, "box", one.root, wait_s=harness.SETTLE_S,
                    context=f"{call} {error} from {first}")
        world.sound(agent)
        agent.kill()


def test_compacting_on_a_full_disk(world):
    """Refused in words; the cache stays as it was."""
    one = world.tree("first", 100, 1)
    host = world.host().start()
    agent = world.agent(host, one.root)
    with harness.tmpfs(agent.data, "8m"):
        agent.start()
        support.wait_until(lambda: "box" in host.agents() and agent.stats()["seen"], 60)
        world.exact(host, "box", one.root, wait_s=harness.SETTLE_S)
        fill_disk(agent.data / "filler")
        status, answer = support.request(agent.url, "/agent/compact_cache", {})
        assert (status, answer["ok"]) in ((503, False), (507, False)), answer
        command = {"agent": host.agent_id("box")}
        status, answer = support.request(host.url, "/api/agents/compact_cache", command)
        assert answer["ok"] is False
        assert "Traceback" not in agent.output()
        (agent.data / "filler").unlink()
        assert agent.post("/agent/compact_cache")["after_bytes"] > 0
        media.random_changes(one, 10)
        agent.post("/agent/scan_now")
        world.exact(host, "box", one.root, wait_s=harness.SETTLE_S)
        world.sound(agent)
        agent.kill()


def fill_disk(filler) -> None:
    """Write a file until nothing more fits."""
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(65536)):
            pass


def test_read_only_home_of_the_agent(world):
    one = world.tree("first", 30, 1)
    host = world.host().start()
    agent = world.once(host, one.root)
    with harness.tmpfs(agent.data):
        harness.mount("-o", "remount,ro", agent.data)
        for _ in range(2):
            world.scan(agent)
            world.exact(host, "box", one.root)
        assert len(host.agents()) <= 3, "every start of such an agent is a new agent"


def test_host_cannot_write_its_folder(world):
    host = world.host()
    with harness.tmpfs(host.data):
        harness.mount("-o", "remount,ro", host.data)
        assert host.run(timeout_s=60) == 1
        assert "data folder" in host.output()
        assert "Traceback" not in host.output()


@pytest.mark.parametrize("what", ["file", "dangling link", "folder of somebody else"])
@pytest.mark.parametrize("side", ["host", "agent"])
def test_data_folder_that_is_none(world, side, what):
    one = world.tree("first", 5, 0)
    host = world.host()
    program = host if side == "host" else world.once(host, one.root)
    if what == "file":
        program.data.write_text("not a folder")
    elif what == "dangling link":
        program.data.symlink_to("nowhere")
    else:
        support.need_root()
        program.data.mkdir()
        os.chown(program.data, 65534, 65534)
    if side == "host":
        assert host.run(timeout_s=60) == 1
    else:  # the agent goes on without a memory
        host.start()
        world.scan(program)
        world.exact(host, "box", one.root)
    assert "data folder" in program.output()
    assert "Traceback" not in program.output()


# Two on one folder


@pytest.mark.timeout(3600)
def test_cron_clears_the_cache_while_the_agent_scans(world):
    """`--clear-cache` again and again, with undelivered changes: nothing is lost."""
    one = world.tree("first", 80, 2)
    host = world.host().start()
    agent = world.agent(host, one.root).start()
    cron = world.agent(host, one.root, "--clear-cache")
    rounds = 100 if support.LONG else 5
    for round_number in range(rounds):
        media.random_changes(one, 5)
        if round_number % 5 == 2:
            host.kill()
        if round_number % 5 == 4:
            host.start()
        agent.post("/agent/scan_now")
        assert cron.run(timeout_s=60) == 0, cron.output()
    agent.post("/agent/scan_now")
    world.exact(host, "box", one.root, wait_s=harness.SETTLE_S)
    harness.figures(clear_cache_runs=rounds)
    assert agent.stop() == 0


def test_scan_now_a_thousand_times(world):
    one = world.tree("first", 30, 1)
    host = world.host().start()
    agent = world.agent(host, one.root).start()

    def ask() -> None:
        for _ in range(250):
            agent.post("/agent/scan_now")

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    media.random_changes(one, 5)
    agent.post("/agent/scan_now")
    world.exact(host, "box", one.root, wait_s=harness.SETTLE_S)
    assert agent.stop() == 0
