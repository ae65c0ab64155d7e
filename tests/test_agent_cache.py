"""What the cache and the scan keep: absence is not deletion, errors are remembered, disks move."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
import types

import pytest

from medialib import hash_window, root_check, root_volume, scan_passes, scan_pipeline, walk
from medialib.agent_cache import AgentCache
from medialib.cache_changes import GoneFile
from medialib.ffprobe import Ffprobe
from medialib.hashing import FileChanging
from medialib.http_client import PeerUnreachable
from medialib.probe_run import ProbeFailed
from medialib.scan_buffer import ChangeBuffer
from medialib.scan_seal import FolderSeals
from tests import support
from tests.agent_world import OpenCounter, World, age


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "world")
    yield world
    world.stop()


@pytest.fixture
def mounts():
    """mount(args…) for tests that may mount; everything is unmounted at the end."""
    support.need_root()
    support.need("mount", "umount", "mkfs.ext4")
    done = []

    def mount(*arguments):
        os.makedirs(arguments[-1], exist_ok=True)
        subprocess.run(["mount", *map(str, arguments)], check=True)
        done.append(str(arguments[-1]))

    yield mount
    for place in reversed(done):
        subprocess.run(["umount", "-l", place], check=False, stderr=subprocess.DEVNULL)


def unmount(place) -> None:
    subprocess.run(["umount", str(place)], check=True)


def image(path) -> str:
    with open(path, "wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(path)], check=True)
    return str(path)


def fill(world, names=("a.txt", "f/b.mkv", "f/g/c.jpg")) -> None:
    for name in names:
        world.write(name)


def check_untouched(world, before: dict) -> None:
    """Whatever the scan saw, no row changed its state (I3)."""
    world.scan()
    assert world.deliver()
    assert world.host.states() == before


# Roots that are away

def test_a_missing_root_changes_nothing(world):
    fill(world)
    world.sync()
    before = world.host.states()
    os.rename(world.roots[0], world.roots[0] + ".away")
    check_untouched(world, before)
    assert world.host.roots[0]["state"] == "offline"
    os.rename(world.roots[0] + ".away", world.roots[0])
    world.check_quiet()
    world.check()
    assert world.host.roots[0]["state"] == "online"


def test_an_empty_root_changes_nothing_until_it_is_accepted(world):
    fill(world)
    world.sync()
    before = world.host.states()
    shutil.rmtree(world.roots[0])
    os.mkdir(world.roots[0])
    check_untouched(world, before)
    assert world.service.accept_empty(world.roots[0])
    world.sync()
    assert world.known() == {}
    assert set(world.host.states().values()) == {"missing"}


@pytest.mark.parametrize("lost", ["cleared", "deleted"])
def test_a_cache_without_memory_takes_no_empty_root_for_deletions(world, lost):
    fill(world)
    world.sync()
    before = world.host.states()
    if lost == "cleared":
        world.cache.clear()
    else:
        world.stop()
        os.remove(world.cache_path)
        world.start()
    os.rename(world.roots[0], world.roots[0] + ".away")
    os.mkdir(world.roots[0])
    check_untouched(world, before)


def test_a_cache_without_memory_and_host_takes_no_empty_root_for_deletions(world):
    fill(world)
    world.sync()
    before = world.host.states()
    world.stop()
    os.remove(world.cache_path)
    world.start()
    os.rename(world.roots[0], world.roots[0] + ".away")
    os.mkdir(world.roots[0])
    world.host.hello_fail = [PeerUnreachable("away")] * 3
    world.scan()
    world.host.hello_fail = []
    assert world.deliver()
    assert world.host.states() == before


def test_everything_but_one_deleted_is_a_deletion(world):
    fill(world)
    world.sync()
    shutil.rmtree(world.path("f"))
    world.sync()
    world.check()


def test_an_unreadable_folder_hides_nothing(world):
    fill(world)
    world.sync()
    before = world.host.states()
    real = os.scandir

    def scandir(handle):
        path = os.readlink(f"/proc/self/fd/{handle}") if isinstance(handle, int) else handle
        if str(path).endswith("/f"):
            raise OSError(5, "Input/output error")
        return real(handle)

    os.scandir = scandir
    try:
        check_untouched(world, before)
        assert world.service.left_over()
    finally:
        os.scandir = real
    world.check_quiet()
    assert world.service.left_over() == []


def test_an_unmounted_root_is_offline_and_comes_back_unread(world, mounts, tmp_path):
    place = world.roots[0]
    mounts("-o", "loop", image(tmp_path / "disk"), place)
    fill(world)
    world.sync()
    before = world.host.states()
    unmount(place)
    check_untouched(world, before)
    elsewhere = str(tmp_path / "elsewhere")
    mounts("-o", "loop", str(tmp_path / "disk"), elsewhere)
    world.set_roots([elsewhere])
    with OpenCounter() as opened:
        world.sync()
    assert opened.paths == []
    assert world.host.states() == before
    shutil.rmtree(os.path.join(elsewhere, "lost+found"))
    world.check()


def test_another_disk_at_the_path_leaves_the_first_alone(world, mounts, tmp_path):
    place = world.roots[0]
    mounts("-o", "loop", image(tmp_path / "one"), place)
    fill(world)
    world.sync()
    before = world.host.states()
    unmount(place)
    mounts("-o", "loop", image(tmp_path / "two"), place)
    world.write("other.txt")
    world.sync()
    assert {number: world.host.states()[number] for number in before} == before
    unmount(place)
    mounts("-o", "loop", str(tmp_path / "one"), place)
    with OpenCounter() as opened:
        world.sync()
    assert opened.paths == []
    world.check()


def test_another_disk_without_a_name_and_with_the_same_names_is_no_deletion(world, mounts):
    """Only what the files are tells two memory disks, or two sticks in a container, apart."""
    place = world.roots[0]
    mounts("-t", "tmpfs", "none", place)
    fill(world, [f"{number}.jpg" for number in range(12)])
    world.sync()
    before = world.host.states()
    mounts("-t", "tmpfs", "none", place)
    fill(world, [f"{number}.jpg" for number in range(10)])
    check_untouched(world, before)
    assert "another disk" in world.host.roots[0]["reason"]
    unmount(place)
    world.check_quiet()
    world.check()


def test_one_disk_at_two_places_is_one_root(world, mounts, tmp_path):
    mounts("-o", "loop", image(tmp_path / "disk"), world.roots[0])
    twin = str(tmp_path / "twin")
    mounts("--bind", world.roots[0], twin)
    fill(world)
    world.set_roots([*world.roots, twin])
    world.sync()
    assert len(world.known()) == 3
    world.set_roots(world.roots[:1])
    world.check_quiet()


def test_one_share_at_two_places_is_scanned_once(world, monkeypatch, tmp_path):
    """Each mount of sshfs has a device number of its own; it is one share all the same."""
    real = root_check.describe_root

    def describe(native):
        devices = {world.roots[0]: 1, str(tmp_path / "twin"): 2}
        return real(native)._replace(fs="fuse.sshfs", volume="sshfs://nas/films", volume_path="/",
                                     fsid=None, device=devices.get(native, 3))

    for module in (root_check, root_volume):
        monkeypatch.setattr(module, "describe_root", describe)
    fill(world)
    shutil.copytree(world.roots[0], tmp_path / "twin")
    world.set_roots([world.roots[0], str(tmp_path / "twin")])
    world.service.scanner.look_at(world.roots)
    told = {root["path"]: root for root in world.service.scanner.root_states()}
    assert told[world.roots[0]]["state"] == "online"
    assert "the same share" in told[world.roots[1]]["reason"]


def test_unmounted_in_the_middle_of_a_scan(world, mounts):
    place = world.roots[0]
    mounts("-t", "tmpfs", "none", place)
    fill(world, [f"d{number}/x.txt" for number in range(9)])
    world.sync()
    before = world.host.states()
    control = world.service.scanner.control
    left, real = [6], control.keep_going

    def keep_going():
        left[0] -= 1
        if left[0] == 0:
            subprocess.run(["umount", "-l", place], check=True)
        return real()

    control.keep_going = keep_going
    check_untouched(world, before)
    assert world.host.roots[0]["state"] == "offline"


# Files that resist

def test_unreadable_files_are_catalogued_and_tried_again_when_they_change(world, monkeypatch):
    fill(world)
    bad = world.path("f/b.mkv")
    real = hash_window.sample_hash_file
    denied = {bad}

    def hash_file(native, *args, **named):
        if native in denied:
            raise PermissionError(13, "Permission denied")
        return real(native, *args, **named)

    monkeypatch.setattr(hash_window, "sample_hash_file", hash_file)
    world.sync()
    assert world.known()[bad]["hashes"] is None
    assert world.known()[bad]["error"]["class"] == "EACCES"
    world.check_quiet()  # its time has not come
    denied.clear()
    os.chmod(bad, 0o600)
    world.sync()
    world.check()
    assert world.known()[bad]["error"] is None
    assert world.service.left_over() == []


def test_a_file_that_changes_while_it_is_read_has_no_hash(world, monkeypatch):
    fill(world)
    bad = world.path("a.txt")
    real = hash_window.sample_hash_file

    def hash_file(native, *args, **named):
        if native == bad:
            raise FileChanging("written to")
        return real(native, *args, **named)

    with monkeypatch.context() as patched:
        patched.setattr(hash_window, "sample_hash_file", hash_file)
        world.sync()
    assert world.known()[bad]["hashes"] is None
    world.sync()
    world.check()


def test_hard_links_are_read_once(world):
    path = world.write("a.txt", b"x" * 20000)
    for number in range(9):
        os.link(path, world.path(f"link{number}"))
    with OpenCounter() as opened:
        world.sync()
    assert len(opened.paths) == 2  # the samples of one name, then all of one
    world.check()
    os.link(path, world.path("one.more"))
    with OpenCounter() as opened:
        world.sync()
    assert len(opened.paths) == 1
    world.check()
    world.check_quiet()


def test_another_algorithm_reads_once_more(world):
    fill(world)
    world.sync()
    world.host.config["hash_sample_size"] = 8192
    with OpenCounter() as opened:
        world.sync()
    assert len(opened.paths) == 3
    world.check_quiet()


def test_another_kind_is_told_without_reading(world):
    fill(world)
    world.sync()
    world.host.config["other_extensions"] = []
    with OpenCounter() as opened:
        world.sync()
    assert opened.paths == []
    assert world.known()[world.path("a.txt")]["kind"] == "unknown"
    world.check_quiet()


def test_a_fresh_stamp_is_looked_at_twice(world):
    path = world.path("a.txt")
    with open(path, "wb") as file:
        file.write(b"one")
    stamp = os.stat(path).st_mtime_ns
    with OpenCounter() as opened:
        world.sync()
    assert opened.paths == [path, path]
    assert os.stat(path).st_mtime_ns == stamp
    world.check_quiet()


# Probes

class Crash(BaseException):
    """The end of the program, as far as the cache is concerned."""


def probing(monkeypatch, outcome):
    asked = []

    def probe(ffprobe, native, **_):
        asked.append(os.path.basename(native))
        return outcome(native)

    monkeypatch.setattr(scan_passes, "probe_file", probe)
    return asked


def test_a_video_that_ends_the_program_is_left_alone_the_third_time(world, monkeypatch):
    world.ffprobe = Ffprobe("/usr/bin/ffprobe", "1")
    world.host.config["agent_max_workers"] = 1
    fill(world, ("a.mkv", "b.mkv", "c.mkv"))

    def outcome(native):
        if native.endswith("b.mkv"):
            raise Crash
        return {"duration": 1.0}

    asked = probing(monkeypatch, outcome)
    # What a killed program leaves behind: the row, without the verdict.
    monkeypatch.setattr(AgentCache, "forget_unfinished", lambda cache: None)
    for _ in range(3):
        with contextlib.suppress(Crash):
            world.scan()
        world.restart()
    assert asked.count("b.mkv") == 3
    asked.clear()
    world.sync()
    assert "b.mkv" not in asked
    described = {os.path.basename(path) for path, row in world.known().items() if row["metadata"]}
    assert described == {"a.mkv", "c.mkv"}
    assert world.known()[world.path("b.mkv")]["error"]["class"] == "crashes"


def test_a_video_that_ends_ffprobe_is_tried_three_times(tmp_path, monkeypatch):
    """It may have been the file, or whoever wanted the memory; what is no video is asked once."""
    days = [0]
    world = World(tmp_path / "world", clock=lambda: time.time() + days[0] * 86400)
    world.ffprobe = Ffprobe("/usr/bin/ffprobe", "1")
    fill(world, ("a.mkv", "b.mkv", "c.mkv"))
    outcomes = {"a.mkv": [], "b.mkv": ["crashed"] * 9, "c.mkv": ["crashed"]}

    def outcome(native):
        waiting = outcomes[os.path.basename(native)]
        if native.endswith("a.mkv"):
            raise ProbeFailed("not a video", "no streams")
        if waiting:
            raise ProbeFailed(waiting.pop(), "ffprobe was ended by signal 9")
        return {"duration": 1.0}

    asked = probing(monkeypatch, outcome)
    for _ in range(6):
        world.sync()
        world.sync()
        days[0] += 1
    assert sorted(asked) == ["a.mkv"] + ["b.mkv"] * 3 + ["c.mkv"] * 2
    assert world.known()[world.path("c.mkv")]["metadata"]
    world.write("b.mkv", b"another")
    outcomes["b.mkv"].clear()
    world.sync()
    assert world.known()[world.path("b.mkv")]["metadata"]
    world.stop()


# The cache itself

def test_a_damaged_cache_is_set_aside(world):
    fill(world)
    world.sync()
    world.stop()
    with open(world.cache_path, "r+b") as file:
        file.write(b"garbage" * 999)
    world.start()
    assert os.path.exists(world.cache.set_aside)
    world.sync()
    world.check()


def test_the_tables_have_the_columns_of_the_original_description(tmp_path):
    cache = AgentCache(str(tmp_path / "agent_cache.db"))
    columns = {table: [row[1] for row in cache.store.rows(f"PRAGMA table_info({table})")]
               for table in ("agent_index", "outbox", "scan_progress")}
    assert columns["agent_index"][:13] == [
        "path", "inode_key", "size", "mtime", "ctime", "probed", "hashed", "hash_algo",
        "hash_sample_size", "sample_hash", "full_hash", "last_seen", "last_hashed_at"]
    assert columns["outbox"][:4] == ["id", "batch_id", "payload_json", "created_at"]
    assert columns["scan_progress"] == ["root", "phase", "last_path", "updated_at"]
    assert cache.info()["rows"] == {"agent_index": 0, "outbox": 0, "scan_progress": 0}
    cache.close()


def test_clearing_in_the_middle_of_a_scan(world):
    fill(world, [f"d{number}/x.txt" for number in range(9)])
    control = world.service.scanner.control
    left, real = [6], control.keep_going

    def keep_going():
        left[0] -= 1
        if left[0] == 0:
            world.cache.clear()
        return real()

    control.keep_going = keep_going
    world.scan()
    del control.keep_going
    world.sync()
    world.check()
    age(world.write("d1/x.txt"))
    world.sync()
    world.check()
    world.check_quiet()


# Huge folders

@pytest.mark.parametrize("unpacked", [12, 1000])
def test_a_huge_folder_is_compared_part_by_part(world, monkeypatch, unpacked):
    monkeypatch.setattr(scan_pipeline, "BIG_FOLDER", 10)
    monkeypatch.setattr(scan_pipeline, "BIG_FOLDER_PART", 7)
    monkeypatch.setattr(walk, "_LOOKED_AT_MOST", 5)
    monkeypatch.setattr(walk, "_NAMES_UNPACKED", unpacked)
    names = [f"f/{number * 37 % 60:02d}é.txt" for number in range(60)]
    fill(world, names)
    world.sync()
    world.check()
    world.check_quiet()
    for name in names[3:30:9]:
        os.remove(world.path(name))
    os.rename(world.path(names[1]), world.path("f", "0.txt"))
    os.rename(world.path(names[2]), world.path("f", "zz.txt"))
    world.write(names[4], b"other")
    world.write("f/new.txt")
    world.sync()
    world.check()
    world.check_quiet()
    for name in names[:55]:
        if os.path.exists(world.path(name)):
            os.remove(world.path(name))
    world.sync()
    world.check()


# Seals

def sealed(world) -> set:
    """Relative paths of the folders that have a seal."""
    return {rel for rel, seal in world.cache.store.rows("SELECT rel, seal FROM agent_folder")
            if seal is not None}


def sealed_world(world) -> None:
    fill(world, ("a.txt", "f/b.mkv", "f/c.jpg", "g/d.txt"))
    world.sync()
    world.check_quiet()
    assert sealed(world) == {"", "f", "g"}


def test_a_sealed_folder_is_compared_without_its_rows(world):
    sealed_world(world)
    statements = []
    world.cache.store.db.set_trace_callback(statements.append)
    world.check_quiet()
    world.cache.store.db.set_trace_callback(None)
    assert not [text for text in statements if "FROM agent_index WHERE folder_id" in text]
    assert world.service.stats.unchanged == 4


def rewrite_with_its_time(path) -> None:
    seen = os.stat(path)
    with open(path, "r+b") as file:
        file.write(b"!")
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def replace_with_its_time(path) -> None:
    seen = os.stat(path)
    with open(path + ".new", "wb") as file:
        file.write(b"?" * seen.st_size)
    os.utime(path + ".new", ns=(seen.st_atime_ns, seen.st_mtime_ns))
    os.replace(path + ".new", path)


def swap_names(path) -> None:
    other = os.path.join(os.path.dirname(path), "c.jpg")
    os.rename(path, path + ".tmp")
    os.rename(other, path)
    os.rename(path + ".tmp", other)


@pytest.mark.parametrize("change", [
    rewrite_with_its_time, replace_with_its_time, swap_names, os.remove,
    lambda path: os.rename(path, path + ".mkv"),
    lambda path: os.rename(path, os.path.join(os.path.dirname(path), "..", "g", "b.mkv")),
    lambda path: shutil.copy(path, path + ".copy"),
    lambda path: os.link(path, os.path.join(os.path.dirname(path), "..", "b2.mkv")),
], ids=["content", "replaced", "swapped", "removed", "renamed", "moved", "copied", "linked"])
def test_a_seal_hides_no_change(world, change):
    sealed_world(world)
    change(world.path("f", "b.mkv"))
    world.sync()
    world.check()
    assert "f" not in sealed(world)
    world.check_quiet()
    world.check_quiet()
    assert "f" in sealed(world)
    world.check()


def test_a_folder_that_looks_again_as_it_was_is_compared_by_its_rows(world):
    """A file system that was set back shows what the seal was made of, but the index moved on."""
    sealed_world(world)
    path = world.path("f", "b.mkv")
    [seal] = world.cache.store.one("SELECT seal FROM agent_folder WHERE rel = 'f'")
    os.rename(path, world.path("g", "b.mkv"))
    world.sync()
    assert world.cache.store.one("SELECT seal FROM agent_folder WHERE rel = 'f'") == (None,)
    assert seal is not None
    world.check()


def test_other_hashes_are_asked_for_in_sealed_folders(world):
    sealed_world(world)
    world.host.config["hash_sample_size"] = 2 * 4096
    with OpenCounter() as opened:
        world.sync()
    assert len(opened.paths) == 4


def test_a_folder_with_a_file_that_could_not_be_read_gets_no_seal(world, monkeypatch):
    fill(world, ("a.txt", "f/b.mkv"))
    real = hash_window.sample_hash_file

    def unreadable(path, *arguments, **named):
        if path.endswith("b.mkv"):
            raise OSError(5, "Input/output error")
        return real(path, *arguments, **named)

    monkeypatch.setattr(hash_window, "sample_hash_file", unreadable)
    for _ in range(3):
        world.scan()
        world.deliver()
    assert sealed(world) == {""}
    monkeypatch.undo()


def test_what_waits_to_be_stored_breaks_the_seal_of_its_folder(world):
    """The other root's file takes over the row of one that is there again when its folder comes."""
    sealed_world(world)
    cache = world.cache
    [folder_id] = cache.store.one("SELECT id FROM agent_folder WHERE rel = 'f'")
    plan = types.SimpleNamespace(algo="sha256", sample_size=4096, batch_size=100)
    buffer = ChangeBuffer(cache, 100, list)
    seals = FolderSeals(cache, buffer, plan)
    rows = seals.rows_at_rest(folder_id, 100)
    assert len(rows) == 2
    buffer.add(GoneFile(1, world.path("f", "b.mkv")))
    seals.keep(folder_id, b"seal", rows)
    buffer.flush()
    assert "f" not in sealed(world)
    rows = seals.rows_at_rest(folder_id, 100)
    seals.keep(folder_id, b"seal", rows)
    buffer.add(GoneFile(1, world.path("f", "c.jpg")))
    buffer.flush()
    assert "f" not in sealed(world)
