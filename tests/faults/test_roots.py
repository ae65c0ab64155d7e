"""Roots that come, go, move, empty and fail: absence is not deletion, and nothing is read twice."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time

import pytest

from tests import ground_truth, media, processes, support
from tests.faults import harness


def facts(host, name="box") -> dict:
    """{path: what must outlive an absence} of every row."""
    return {path: (row["id"], row["first_seen"], row["hashes"], row["metadata"])
            for path, row in harness.rows_by_path(host, name).items()}


def scan_without_reading(world, agent, *roots) -> None:
    """A scan that opens no file below these folders and starts no ffprobe."""
    tracer = processes.Tracer(world.folder / f"trace{time.monotonic_ns()}")
    agent.prefix = tracer.prefix
    world.scan(agent)
    agent.prefix = []
    for root in roots:  # ffprobe may look again at what it could not describe
        assert [line for line in tracer.opened(root) if "garbage.mkv" not in line] == []
    assert [line for line in tracer.probed() if "garbage.mkv" not in line] == []


# Unmounted


@pytest.mark.parametrize("kind", harness.either(["ext4"], ["bind", "ext4"]))
def test_unmounted_disk_is_offline_and_comes_back(world, kind):
    """An empty mount point says nothing about the files of the disk that is not there."""
    place = world.folder / "mnt"
    host = world.host().start()
    agent = world.once(host, place)
    if kind == "bind":
        source = world.tree("source").root
        mount = lambda: harness.mounted("--bind", source, place)  # noqa: E731
    else:
        image = harness.disk_image(world.folder / "disk.img")
        mount = lambda: harness.loop_mounted(image, place)  # noqa: E731
        with mount():
            world.tree("x", folder=place)
    with mount():
        media.grow_old(place)
        world.scan(agent)
        world.exact(host, "box", place)
        before = facts(host)
    for _ in range(2):
        assert agent.run() == 3, agent.output()
        assert harness.root_states(host, "box")[str(place)] == "offline"
        assert harness.states(host, "box") == {"offline": len(before)}
        assert facts(host) == before
    (place / "only a note.txt").write_text("the disk is not plugged in")
    assert agent.run() in harness.DONE, agent.output()
    assert set(before) <= set(harness.rows_by_path(host, "box"))
    assert harness.states(host, "box").get("missing", 0) == 0
    (place / "only a note.txt").unlink()
    with mount():
        scan_without_reading(world, agent, place)
        world.exact(host, "box", place)
        assert facts(host).items() >= before.items()


def test_unmounted_in_the_middle_of_a_scan(world):
    """A disk that is torn out while the agent walks it loses no row."""
    place = world.folder / "mnt"
    image = harness.disk_image(world.folder / "disk.img", size_mib=96)
    host = world.host().start()
    agent = world.agent(host, place)
    with harness.loop_mounted(image, place):
        world.tree("x", 300, 2, folder=place)
        world.scan(world.once(host, place))
        before = facts(host)
        agent.start()
        for _ in range(3):
            agent.post("/agent/scan_now")
            time.sleep(world.random.uniform(0.0, 0.15))
            harness.unmount(place, "-l")
            time.sleep(0.5)
            assert harness.states(host, "box").get("missing", 0) == 0
            harness.mount("-o", "loop", image, place)
            time.sleep(0.3)
        agent.post("/agent/scan_now")
        support.wait_until(lambda: harness.states(host, "box") == {"present": len(before)}, 40)
        world.exact(host, "box", place, wait_s=harness.SETTLE_S)
        assert facts(host) == before
        agent.kill()


def test_another_disk_at_the_same_place(world):
    place = world.folder / "mnt"
    images = [harness.disk_image(world.folder / f"{name}.img") for name in "ab"]
    host = world.host().start()
    agent = world.once(host, place)
    kept = []
    for number, image in enumerate(images):
        with harness.loop_mounted(image, place):
            world.tree(f"disk{number}", 20 + 10 * number, 1, folder=place)
            media.grow_old(place)
            world.scan(agent)
            world.exact(host, "box", place)
            kept.append(facts_by_id(host))
    assert kept[0].keys() < kept[1].keys(), "the first disk's rows stay"
    for image in images:
        with harness.loop_mounted(image, place):
            scan_without_reading(world, agent, place)
            world.exact(host, "box", place)
            assert facts_by_id(host) == kept[1]
            assert harness.states(host, "box").get("missing", 0) == 0


def facts_by_id(host) -> dict:
    rows = support.all_rows(host.url, "/api/files", {"filter": {"agent": host.agent_id("box")}},
                            "files")
    return {row["id"]: (row["name"], row["first_seen"], row["hashes"], row["metadata"])
            for row in rows}


def test_disk_is_mounted_elsewhere(world):
    """One root to update: the rows keep their numbers, and nothing is read."""
    image = harness.disk_image(world.folder / "disk.img")
    old, new = world.folder / "old", world.folder / "new"
    host = world.host().start()
    with harness.loop_mounted(image, old):
        world.tree("x", 40, 2, folder=old)
        media.grow_old(old)
        world.scan(world.once(host, old))
        world.exact(host, "box", old)
        before = facts_by_id(host)
    with harness.loop_mounted(image, new):
        scan_without_reading(world, world.once(host, new), new)
        world.exact(host, "box", new)
        assert facts_by_id(host) == before


def test_disk_is_carried_to_another_agent(world):
    image = harness.disk_image(world.folder / "disk.img")
    place, other = world.folder / "here", world.folder / "there"
    host = world.host().start()
    first, second = world.once(host, place), world.once(host, other, name="second")
    with harness.loop_mounted(image, place):
        world.tree("x", 40, 2, folder=place)
        media.grow_old(place)
        world.scan(first)
        before = facts_by_id(host)
    assert first.run() == 3, "the disk is offline there"
    with harness.loop_mounted(image, other):
        scan_without_reading(world, second, other)
        world.exact(host, "second", other)
        rows = harness.rows_by_path(host, "second").values()
        assert {row["id"] for row in rows} == set(before)


def test_disk_mounted_over_a_folder_inside_a_root(world):
    """What it hides is not gone, and what lies on it is another root's affair."""
    one = world.tree("first", 40, 1)
    host = world.host().start()
    agent = world.once(host, one.root)
    world.scan(agent)
    folder = max((path for path in one.folders() if path != one.root),
                 key=lambda path: len(list(path.iterdir())))
    before = harness.states(host, "box")
    with harness.tmpfs(folder):
        (folder / "on the other disk.jpg").write_bytes(b"x")
        world.scan(agent)
        assert harness.states(host, "box") == before
    world.scan(agent)
    world.exact(host, "box", one.root)


# Unreadable


def test_unreadable_folder_as_nobody(world):
    one = world.tree("first", 60, 1)
    host = world.host().start()
    agent = world.once(host, one.root, prefix=harness.run_as_nobody())
    host.settings(hash_algo="sha256")  # nobody may not even read the package of another hash
    open_to_all(world, one, agent)
    world.scan(agent)
    world.exact(host, "box", one.root, algo="sha256")
    before = facts(host)
    folder = max((path for path in one.folders() if path != one.root),
                 key=lambda path: len(list(path.rglob("*"))))
    inside = [path for path in one.files() if folder in path.parents]
    for mode in (0o000, 0o444, 0o311):
        folder.chmod(mode)
        code = agent.run()
        assert code in harness.DONE, agent.output()
        assert harness.states(host, "box") == {"present": len(before)}, oct(mode)
        assert facts(host) == before, oct(mode)
        assert code == 3, "an unreadable folder is left over"
    gone = inside[0]
    gone.unlink()
    assert agent.run() == 3
    assert harness.states(host, "box") == {"present": len(before)}
    folder.chmod(0o755)
    world.scan(agent)
    world.exact(host, "box", one.root, algo="sha256")
    assert harness.rows_by_path(host, "box")[str(gone)]["state"] == "missing"
    secret = one.files()[0]
    secret.chmod(0)
    assert agent.run() in harness.DONE, agent.output()
    assert harness.rows_by_path(host, "box")[str(secret)]["state"] == "present"


def open_to_all(world, one, agent) -> None:
    """Let nobody reach the tree and own the data folder."""
    for path in (world.folder, *world.folder.parents):
        if path.stat().st_mode & 0o005 != 0o005:
            path.chmod(path.stat().st_mode | 0o055)
    for path in (agent.folder, agent.home):
        path.chmod(0o777)
    agent.data.mkdir(mode=0o700)
    os.chown(agent.data, 65534, 65534)


@pytest.mark.parametrize(("call", "error"), harness.either([("getdents64", "EIO")], [
    ("getdents64", "EIO"), ("getdents64", "ESTALE"), ("openat", "EIO"), ("openat", "ENOENT"),
]))
def test_error_in_the_listing_of_a_folder(world, call, error):
    """EIO in the N-th folder: what is in it stays, the rest of the tree goes on."""
    one = world.tree("first", 60, 0)
    host = world.host().start()
    agent = world.once(host, one.root)
    world.scan(agent)
    before = facts(host)
    folders = [path for path in one.folders() if path != one.root and list(path.iterdir())]
    for folder in world.random.sample(folders, 1) + [one.root]:
        agent.prefix = harness.strace(call, path=folder, error=error)
        assert agent.run() in (3, 0), agent.output()
        assert harness.states(host, "box").get("missing", 0) == 0, (folder, agent.output())
        assert facts(host) == before
        media.change_append(one)
        agent.prefix = []
        world.scan(agent)
        world.exact(host, "box", one.root, context=f"after {error} in {folder}")
        before = facts(host)


def test_error_after_half_of_a_folder(world):
    """The second getdents64 of one folder fails: the names read so far are no full list."""
    root = world.folder / "media"
    root.mkdir()
    for number in range(2500):
        (root / f"{number:05} {'x' * 60}.jpg").write_bytes(b"x")
    host = world.host().start()
    agent = world.once(host, root)
    world.scan(agent)
    assert harness.states(host, "box") == {"present": 2500}
    # Some of them are in the look at the root, some in the walk.
    for number in harness.either([9], [4, 8, 9, 10, 13]):
        agent.prefix = harness.strace("getdents64", path=root, error="EIO", when=number)
        assert agent.run() == 3, agent.output()
        counts = harness.states(host, "box")
        assert counts.get("missing", 0) == 0, (number, counts)
    agent.prefix = []
    world.scan(agent)
    world.exact(host, "box", root)


def test_error_in_reading_a_file(world):
    """The file is catalogued without hashes, named, and tried again."""
    one = world.tree("first", 20, 0)
    host = world.host().start()
    victim = max(one.files(), key=lambda path: path.stat().st_size)
    for call in ("read", "openat"):
        agent = world.once(host, one.root, name=call,
                           prefix=harness.strace(call, path=victim, error="EIO"))
        shutil.rmtree(agent.data, ignore_errors=True)
        code = agent.run()
        assert code == 3, agent.output()
        row = harness.rows_by_path(host, call)[str(victim)]
        assert row["state"] == "present"
        assert not (row["hashes"] or {}).get("full_hash")
        agent.prefix = []
        wait_for_retry(world, agent, host, call, one)


def wait_for_retry(world, agent, host, name, one) -> None:
    """A file that could not be read is tried again, at once or when its turn comes."""
    for path in one.files():
        os.utime(path)
    media.grow_old(one.root)
    world.scan(agent)
    world.exact(host, name, one.root)


# Real deletions


def test_real_deletions(world):
    one = world.tree("first", 50, 1)
    host = world.host().start()
    agent = world.once(host, one.root)
    world.scan(agent)
    everything = len(facts(host))
    media.change_remove(one)
    world.scan(agent)
    world.exact(host, "box", one.root)
    assert harness.states(host, "box")["missing"] == 1
    folder = next(path for path in one.folders() if path != one.root and any(path.iterdir()))
    shutil.rmtree(folder)
    world.scan(agent)
    world.exact(host, "box", one.root)
    *most, last = one.files()
    for path in most:
        path.unlink()
    world.scan(agent)
    world.exact(host, "box", one.root)
    counts = harness.states(host, "box")
    assert counts["present"] + counts["missing"] == everything
    emptied(world, host, agent, one, last, everything)


def emptied(world, host, agent, one, last, everything) -> None:
    """A root without any file is only believed by hand."""
    last.unlink()
    before = harness.states(host, "box")
    for path in one.root.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    agent.run()
    counts = harness.states(host, "box")
    assert counts.get("missing") == before["missing"], counts
    host.post("/api/agents/accept_empty", {"agent": host.agent_id("box"), "root": str(one.root),
                                           "path": str(one.root)})
    for _ in range(2):
        agent.run()
    assert harness.states(host, "box") == {"missing": everything}
    media.Tree(one.root, harness.SEED).new_file(one.root)
    world.scan(agent)
    world.exact(host, "box", one.root)


def test_a_file_that_comes_back_revives_its_row(world):
    one = world.tree("first", 20, 2)
    host = world.host().start()
    agent = world.once(host, one.root)
    media.grow_old(one.root)
    world.scan(agent)
    before = facts(host)
    elsewhere = world.folder / "elsewhere"
    elsewhere.mkdir()
    victims = one.files()[::3]
    for number, path in enumerate(victims):
        path.rename(elsewhere / str(number))
    world.scan(agent)
    assert harness.states(host, "box")["missing"] == len(victims)
    assert facts(host) == before, "a missing row keeps its facts"
    for number, path in enumerate(victims):
        (elsewhere / str(number)).rename(path)
    world.scan(agent)
    world.exact(host, "box", one.root)
    assert facts(host) == before


# Odd shapes


def test_roots_inside_one_another(world):
    one = world.tree("first", 60, 1)
    inner = max((path for path in one.folders() if path != one.root),
                key=lambda path: len(list(path.rglob("*"))))
    host = world.host().start()
    orders = [[one.root, inner], [one.root], [inner, one.root], [inner], [one.root]]
    for roots in harness.either(orders[:3], orders):
        world.scan(world.once(host, *roots))
        rows = ground_truth.present_rows(host.url, host.agent_id("box"))
        paths = [row["path"] for row in rows]
        assert len(paths) == len(set(paths)), "a file under two roots is one file"
        if one.root in roots:
            world.exact(host, "box", one.root)
        media.random_changes(one, 3)


def test_data_folder_inside_a_root(world):
    """Its own database is no media, and writing it must not keep the scan busy for ever."""
    one = world.tree("first", 20, 0)
    host = world.host().start()
    agent = world.once(host, one.root)
    agent.data = one.root / "medialib data"
    for _ in range(3):
        world.scan(agent)
    rows = ground_truth.present_rows(host.url, host.agent_id("box"))
    assert [row["path"] for row in rows if "medialib data" in row["path"]] == []


def test_deep_tree(world):
    root = world.folder / "deep"
    folder = root
    root.mkdir()
    descriptor = os.open(str(root), os.O_RDONLY)
    for depth in range(60):  # longer than PATH_MAX in all
        name = f"{depth:02}" + "d" * 100
        os.mkdir(name, dir_fd=descriptor)
        inner = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
        with os.fdopen(os.open("a.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor), "wb") as file:
            file.write(b"%d" % depth)
        folder = folder / name
    os.close(descriptor)
    (root / "top.jpg").write_bytes(b"top")
    host = world.host().start()
    agent = world.once(host, root)
    for _ in range(2):
        assert agent.run() in harness.DONE, agent.output()
        assert "Traceback" not in agent.output()
        rows = ground_truth.present_rows(host.url, host.agent_id("box"))
        assert len(rows) >= 30
        assert str(root / "top.jpg") in {row["path"] for row in rows}


def cursor_of(agent) -> str | None:
    """Up to where an interrupted pass 1 came."""
    with contextlib.closing(sqlite3.connect(str(agent.data / "agent_cache.db"))) as db:
        row = db.execute("SELECT last_path FROM scan_progress WHERE phase = 1").fetchone()
    return row[0] if row else None


@pytest.mark.timeout(600)
def test_files_added_and_removed_around_the_cursor(world):
    """An interrupted scan goes on at its cursor; what changed before and behind it is found."""
    one = world.tree("first", 150, 0)
    host = world.host().start()
    host.settings(agent_batch_size=3)
    agent = world.once(host, one.root)
    world.scan(agent)
    cursors = []
    for _ in range(harness.either([2], [12])[0]):
        media.random_changes(one, 20)
        folders = walk_order(one)
        killer = world.random.choice(folders[len(folders) // 3:])
        agent.prefix = harness.strace("getdents64", path=killer, signal="KILL", when=1)
        assert agent.run() in harness.KILLED, agent.output()
        agent.prefix = []
        cursor = cursor_of(agent)
        if cursor is not None:
            cursors.append(cursor)
            around_cursor(one, os.path.join(str(one.root), cursor))
        world.scan(agent)
        world.exact(host, "box", one.root, context=f"killed in {killer} at {cursor}")
        assert cursor_of(agent) is None
    assert cursors, "no scan was interrupted behind its first folder"


def walk_order(one) -> list:
    """The folders of a tree as the walk comes to them."""
    return sorted(one.folders(), key=lambda path: str(path).split("/"))


def around_cursor(one, cursor: str) -> None:
    """Add and remove files in the folder of the cursor, in one before it and in one behind it."""
    folders = walk_order(one)
    before = [path for path in folders if str(path).split("/") < cursor.split("/")]
    behind = [path for path in folders if str(path).split("/") > cursor.split("/")]
    for folder in (*before[-1:], *before[:1], *behind[:1], *behind[-1:]):
        one.new_file(folder)
        for path in [path for path in folder.iterdir() if path.is_file()][:2]:
            path.unlink()


def test_churn_for_a_while(world):
    """Files come and go all around the cursor for some seconds; then everything is exact."""
    one = world.tree("first", 120, 2)
    host = world.host().start()
    agent = world.agent(host, one.root).start()
    end = time.monotonic() + (60 if support.LONG else 6)
    while time.monotonic() < end:
        media.random_changes(one, 5)
        agent.post("/agent/scan_now")
        time.sleep(0.05)
    support.wait_until(lambda: agent.stats()["phase"] == 0, 40)
    agent.post("/agent/scan_now")
    world.exact(host, "box", one.root, wait_s=harness.SETTLE_S)
    assert agent.stop() == 0


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_million_files_in_one_folder(world):
    root = world.folder / "media"
    root.mkdir()
    descriptor = os.open(str(root), os.O_RDONLY)
    for number in range(1_000_000):
        os.close(os.open(f"{number:07}.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)
    host = world.host().start()
    agent = world.once(host, root)
    agent.start(ready=False)
    assert agent.wait(2400) == 0, agent.output()
    assert host.post("/api/summary")["files"] == 1_000_000
