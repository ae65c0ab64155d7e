"""File systems and volumes: every kind of disk, subvolumes, clones, one disk under two names."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time

import pytest

from tests import media, support
from tests.faults import harness
from tests.faults.test_roots import facts, facts_by_id, scan_without_reading

KINDS = ["ext4", "xfs", "btrfs", "bind", "memory", "overlay"]


@pytest.fixture
def disk_of(world):
    """new_disk in the test's folder; whatever it mounted by itself is unmounted at the end."""
    yield lambda kind: harness.new_disk(world.folder, kind)
    for kind in KINDS:
        harness.unmount(world.folder / f"disk of {kind}", "-l")


# One disk that comes and goes


@pytest.mark.parametrize("kind", harness.either(["btrfs"], KINDS))
def test_unmounted_and_mounted_again(world, disk_of, kind):
    place = world.folder / "mnt"
    disk = disk_of(kind)
    host = world.host().start()
    agent = world.once(host, place)
    with disk(place):
        world.tree("x", folder=place)
        media.grow_old(place)
        world.scan(agent)
        world.exact(host, "box", place)
        before = facts(host)
    for _ in range(2):
        assert agent.run() == 3, agent.output()
        assert harness.states(host, "box") == {"offline": len(before)}
        assert facts(host) == before
    with disk(place):
        scan_without_reading(world, agent, place)
        world.exact(host, "box", place)
        assert facts(host) == before
        assert len(host.agents()["box"]["roots"]) == 1


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_torn_out_while_it_is_walked(world, disk_of, kind):
    place = world.folder / "mnt"
    disk = disk_of(kind)
    host = world.host().start()
    agent = world.agent(host, place)
    with contextlib.ExitStack() as mounts:
        mounts.enter_context(disk(place))
        world.tree("x", 300, 1, folder=place)
        world.scan(world.once(host, place))
        before = facts(host)
        agent.start()
        for _ in range(12):
            agent.post("/agent/scan_now")
            time.sleep(world.random.uniform(0.0, 0.2))
            harness.unmount(place, "-l")
            time.sleep(0.4)
            assert harness.states(host, "box").get("missing", 0) == 0
            mounts.enter_context(disk(place))
            time.sleep(0.2)
        agent.post("/agent/scan_now")
        support.wait_until(lambda: harness.states(host, "box") == {"present": len(before)}, 40)
        world.exact(host, "box", place, wait_s=harness.SETTLE_S)
        assert facts(host) == before
        agent.kill()


@pytest.mark.long
@pytest.mark.parametrize(("first", "second"), [
    ("btrfs", "ext4"), ("xfs", "btrfs"), ("ext4", "xfs"), ("ext4", "memory"), ("memory", "xfs"),
    ("overlay", "ext4"), ("btrfs", "overlay"),
])
def test_disks_of_two_kinds_take_turns(world, disk_of, first, second):
    """Each keeps its own rows, whatever is at the mount point just now."""
    place = world.folder / "mnt"
    disks = [disk_of(first), disk_of(second)]
    host = world.host().start()
    agent = world.once(host, place)
    for number, disk in enumerate(disks):
        with disk(place):
            world.tree(f"disk{number}", 20 + 10 * number, 1, folder=place)
            media.grow_old(place)
            world.scan(agent)
            world.exact(host, "box", place)
            assert harness.states(host, "box").get("missing", 0) == 0
    before = facts_by_id(host)
    for disk in disks:
        with disk(place):
            scan_without_reading(world, agent, place)
            world.exact(host, "box", place)
            assert facts_by_id(host) == before
            assert harness.states(host, "box").get("missing", 0) == 0


@pytest.mark.long
def test_two_disks_without_a_name_at_one_place(world, disk_of):
    """Nothing tells the host which is which: the second one is offline while the first is away."""
    place = world.folder / "mnt"
    disks = [disk_of("overlay"), disk_of("memory")]
    host = world.host().start()
    agent = world.once(host, place)
    for turn in range(2):
        with disks[0](place):
            world.tree("first", 20, 1, folder=place) if not turn else None
            media.grow_old(place)
            world.scan(agent)
            world.exact(host, "box", place)
            before = facts(host)
        with disks[1](place):
            world.tree("second", 20, 0, folder=place) if not turn else None
            assert agent.run() == 3, agent.output()
            assert "another disk" in agent.output()
            assert facts(host) == before
            assert harness.states(host, "box") == {"offline": len(before)}


@pytest.mark.long
def test_a_disk_below_a_root_is_a_root_of_its_own(world, disk_of):
    """It goes and comes: the outer root is none the wiser, and the inner one is offline."""
    outer = world.tree("outer", 30, 0)
    inner = outer.root / "disk"
    disk = disk_of("ext4")
    host = world.host().start()
    agent = world.once(host, outer.root, inner)
    with disk(inner):
        world.tree("inner", 20, 0, folder=inner)
        world.scan(agent)
        world.exact(host, "box", outer.root, inner)
        before = facts(host)
    inside = [path for path in before if path.startswith(f"{inner}/")]
    for _ in range(2):
        assert agent.run() == 3, agent.output()
        assert harness.states(host, "box") == {"offline": len(inside),
                                               "present": len(before) - len(inside)}
    outer_only = world.once(host, outer.root)
    outer_only.data = agent.data
    outer_only.run()  # not even a root any more: an empty folder of the outer one
    assert harness.states(host, "box").get("missing", 0) == 0
    (inner / "on the system disk.jpg").write_bytes(b"x")
    assert agent.run() in harness.DONE, agent.output()
    assert harness.states(host, "box").get("missing", 0) == 0
    (inner / "on the system disk.jpg").unlink()
    with disk(inner):
        world.scan(agent)
        world.exact(host, "box", outer.root, inner)
        rows = harness.rows_by_path(host, "box")
        assert {path: rows[path]["id"] for path in before} == {
            path: known[0] for path, known in before.items()}


@pytest.mark.long
def test_a_disk_restored_from_a_copy_has_new_inodes(world):
    """The same UUID, names, sizes and times, and every inode another: nothing is read again."""
    place, copy = world.folder / "mnt", world.folder / "copy"
    images = [harness.disk_image(world.folder / f"{name}.img") for name in "ab"]
    host = world.host().start()
    agent = world.once(host, place)
    with harness.loop_mounted(images[0], place):
        world.tree("x", 40, 1, folder=place)
        media.grow_old(place)
        world.scan(agent)
        before = facts(host)
        with harness.loop_mounted(images[1], copy):
            # The first copy takes the inodes that the files had on the first disk.
            subprocess.run(["cp", "-a", f"{place}/.", str(copy / "first")], check=True)
            subprocess.run(["cp", "-a", f"{place}/.", str(copy)], check=True)
            subprocess.run(["rm", "-r", str(copy / "first")], check=True)
    said = subprocess.run(["blkid", "-o", "value", "-s", "UUID", str(images[0])],
                          capture_output=True, text=True, check=True)
    subprocess.run(["e2fsck", "-fy", str(images[1])], capture_output=True, check=False)
    harness.run_tool("tune2fs", "-U", said.stdout.strip(), images[1])
    with harness.loop_mounted(images[1], place):
        scan_without_reading(world, agent, place)
        world.exact(host, "box", place)
        assert facts(host) == before
        scan_without_reading(world, agent, place)


# btrfs


def btrfs(*arguments) -> None:
    support.need("btrfs")
    harness.run_tool("btrfs", "-q", *arguments)


def test_subvolumes_and_snapshots_below_a_root(world, disk_of):
    """They are entered like folders; one that is deleted is a real deletion."""
    place = world.folder / "mnt"
    host = world.host().start()
    agent = world.once(host, place)
    with disk_of("btrfs")(place):
        world.tree("x", 20, 1, folder=place)
        btrfs("subvolume", "create", place / "films")
        world.tree("films", 20, 1, folder=place / "films")
        media.grow_old(place)
        btrfs("subvolume", "snapshot", "-r", place / "films", place / "films before")
        btrfs("subvolume", "create", place / "films" / "deeper")
        (place / "films" / "deeper" / "a.jpg").write_bytes(b"a")
        parts = [place, place / "films", place / "films" / "deeper", place / "films before"]
        media.grow_old(place / "films" / "deeper")
        world.scan(agent)
        world.exact(host, "box", *parts)
        scan_without_reading(world, agent, place)
        changing = media.Tree(place / "films", 5)
        for change in (media.change_new, media.change_content, media.change_append,
                       media.change_remove, media.change_rename) * 3:
            change(changing)
        world.scan(agent)
        world.exact(host, "box", *parts)
        before = harness.states(host, "box")
        gone = len([path for path in harness.rows_by_path(host, "box")
                    if path.startswith(f"{place}/films before/")])
        btrfs("subvolume", "delete", place / "films before")
        world.scan(agent)
        world.exact(host, "box", *parts[:3])
        assert harness.states(host, "box").get("missing", 0) - before.get("missing", 0) == gone
    with harness.loop_mounted(world.folder / "disk of btrfs", place):  # other device numbers
        scan_without_reading(world, agent, place)
        world.exact(host, "box", *parts[:3])


def test_equal_inodes_of_two_subvolumes_are_two_files(world, disk_of):
    """Each subvolume numbers its files from the start; size and time may be equal by chance."""
    place = world.folder / "mnt"
    host = world.host().start()
    agent = world.once(host, place)
    names = [f"{number}.bin" for number in range(6)]
    with disk_of("btrfs")(place):
        for part in ("one", "two"):
            btrfs("subvolume", "create", place / part)
        for name in names:
            (place / "one" / name).write_bytes(os.urandom(100_000))
            os.utime(place / "one" / name, (1e9, 1e9))
        world.scan(agent)
        for number, name in enumerate(names):
            if number % 2:
                (place / "one" / name).unlink()  # as if it had been moved
            (place / "two" / name).write_bytes(os.urandom(100_000))
            os.utime(place / "two" / name, (1e9, 1e9))
        assert (place / "one" / "0.bin").stat().st_ino == (place / "two" / "0.bin").stat().st_ino
        world.scan(agent)
        world.exact(host, "box", place, place / "one", place / "two")


@pytest.mark.long
def test_a_snapshot_mounted_in_its_place_is_another_root(world, disk_of):
    """As some systems do it after an update that failed."""
    place, whole = world.folder / "mnt", world.folder / "whole"
    host = world.host().start()
    agent = world.once(host, place)
    image = harness.disk_image(world.folder / "disk.img", "btrfs", 128)
    with harness.loop_mounted(image, whole):
        btrfs("subvolume", "create", whole / "now")
        one = world.tree("x", 20, 0, folder=whole / "now")
        btrfs("subvolume", "snapshot", whole / "now", whole / "then")
        media.random_changes(one, 10)
        time.sleep(harness.YOUNG_S)
        counts = []
        for part in ("now", "then", "now", "then"):
            with harness.mounted("-o", f"subvol={part}", image, place):
                world.scan(agent)
                world.exact(host, "box", place)
                counts.append(len(harness.rows_by_path(host, "box")))
                assert harness.states(host, "box").get("missing", 0) == 0
        assert len(host.agents()["box"]["roots"]) == 2


# Two disks of one name


class Clones:
    """Disk a, its copy b, and a host with an agent that has both mounted as roots."""

    def __init__(self, world, kind: str = "ext4"):
        self.world, self.kind = world, kind
        self.images = [world.folder / "a.img", world.folder / "b.img"]
        self.places = [world.folder / "a", world.folder / "b"]
        harness.disk_image(self.images[0], kind, harness.DISK_MIB[kind])
        with self.mounted(0, 0) as place:
            world.tree("x", 40, 1, folder=place)
            media.grow_old(place)
        subprocess.run(["cp", "--sparse=always", *map(str, self.images)], check=True)
        self.host = world.host().start()
        self.agent = world.once(self.host, *self.places)

    def mounted(self, image: int, place: int):
        options = "loop,nouuid" if self.kind == "xfs" else "loop"
        return harness.loop_mounted(self.images[image], self.places[place], options)

    def scan(self, *places) -> None:
        """A scan with both there, after which both are exact and nothing is missing."""
        self.world.scan(self.agent)
        self.world.exact(self.host, "box", *self.places)

    def missing(self) -> int:
        return harness.states(self.host, "box").get("missing", 0)


@pytest.mark.parametrize("kind", harness.either(["ext4"], ["ext4", "xfs"]))
@pytest.mark.parametrize("known", harness.either([0], [0, 1]))
def test_a_disk_and_its_clone_are_two_roots(world, kind, known):
    """Both have one UUID: they are kept apart, whichever is known first, and whichever is there."""
    clones = Clones(world, kind)
    place_a, place_b = clones.places
    if known:
        with clones.mounted(0, 0):
            assert clones.agent.run() == 3
    with clones.mounted(0, 0), clones.mounted(1, 1):
        clones.scan()
        before = facts_by_id(clones.host)
        for _ in range(2):
            scan_without_reading(world, clones.agent, place_a, place_b)
            assert facts_by_id(clones.host) == before
        (place_a / "only on a.jpg").write_bytes(b"a")
        (place_b / "only on b.jpg").write_bytes(b"b")
        next(place_a.glob("file*")).unlink()
        clones.scan()
        assert clones.missing() == 1
        rows = facts_by_id(clones.host)
    with clones.mounted(1, 1):
        assert clones.agent.run() == 3, "a is away"
        world.exact(clones.host, "box", place_b)
    with clones.mounted(1, 0):
        assert clones.agent.run() == 3, "the clone alone, in the place of its original"
        world.exact(clones.host, "box", place_a)
        assert clones.missing() == 1
    with clones.mounted(1, 0), clones.mounted(0, 1):
        clones.scan()  # exchanged
        assert clones.missing() == 1
    with clones.mounted(0, 0), clones.mounted(1, 1):
        clones.scan()
        assert clones.missing() == 1
        assert facts_by_id(clones.host) == rows
        roots = clones.host.agents()["box"]["roots"]
        assert len([root for root in roots if root["files"]]) == 2


@pytest.mark.long
def test_a_forgetful_agent_keeps_clones_apart(world):
    """With an empty cache the host's rows are found again by their names."""
    clones = Clones(world)
    with clones.mounted(0, 0), clones.mounted(1, 1):
        clones.scan()
        (clones.places[0] / "only on a.jpg").write_bytes(b"a")
        clones.scan()
        before = facts_by_id(clones.host)
        for path in clones.agent.data.glob("agent_cache.db*"):
            path.unlink()
        for _ in range(2):
            clones.scan()
        assert facts_by_id(clones.host).keys() == before.keys()
        assert clones.missing() == 0


# One disk of two names


def without_uuid(root) -> list:
    """The prefix of a program on an older kernel without udev: it cannot ask for the UUID."""
    support.need("unshare")
    hidden = "[ -d /dev/disk ] && mount -t tmpfs none /dev/disk; exec \"$@\""
    return ["unshare", "-m", "sh", "-c", hidden, "sh",
            *harness.strace("ioctl", path=root, error="ENOTTY")]


@pytest.mark.parametrize("kind", harness.either(["ext4"], ["ext4", "btrfs", "xfs"]))
def test_a_volume_that_gets_its_uuid_is_the_same_root(world, disk_of, kind):
    """A newer kernel tells the UUID; an older one after that does not lose it again."""
    place = world.folder / "mnt"
    host = world.host().start()
    agent = world.once(host, place)
    volumes = []
    with disk_of(kind)(place):
        (place / "films").mkdir()
        root = place / "films"
        agent.arguments[1] = root
        world.tree("x", 30, 1, folder=root)
        media.grow_old(root)
        for prefix in (without_uuid(root), [], without_uuid(root), []):
            agent.prefix = prefix
            world.scan(agent)
            world.exact(host, "box", root)
            volumes += [root["volume"] for root in host.agents()["box"]["roots"]]
            if len(volumes) == 1:
                before = facts_by_id(host)
                numbers = {row["id"]: row["changed"]
                           for row in harness.rows_by_path(host, "box").values()}
            assert facts_by_id(host) == before
        assert {row["id"]: row["changed"]
                for row in harness.rows_by_path(host, "box").values()} == numbers
        scan_without_reading(world, agent, root)
    assert len(volumes) == 4, volumes
    assert kind == "xfs" or volumes[0].startswith("fsid:")  # of xfs it says nothing lasting
    assert volumes[1].startswith("uuid:")
    assert set(volumes[1:]) == {volumes[1]}


@pytest.mark.long
def test_another_disk_without_uuid_is_another_root(world, disk_of):
    place = world.folder / "mnt"
    host = world.host().start()
    agent = world.once(host, place)
    images = [harness.disk_image(world.folder / f"{name}.img") for name in "ab"]
    prefixes = [without_uuid(place), [], without_uuid(place)]
    for number, prefix in enumerate(prefixes):
        with harness.loop_mounted(images[number % 2], place):
            if number < 2:
                world.tree(f"disk{number}", 20, 0, folder=place)
            agent.prefix = prefix
            world.scan(agent)
            world.exact(host, "box", place)
            assert harness.states(host, "box").get("missing", 0) == 0
    assert len(host.agents()["box"]["roots"]) == 2


@pytest.mark.long
def test_the_disk_is_carried_from_a_machine_that_did_not_know_its_uuid(world, disk_of):
    place, other = world.folder / "here", world.folder / "there"
    disk = disk_of("ext4")
    host = world.host().start()
    first = world.once(host, place, prefix=without_uuid(place))
    second = world.once(host, other, name="second")
    with disk(place):
        world.tree("x", 20, 1, folder=place)
        media.grow_old(place)
        world.scan(first)
        before = facts_by_id(host)
    assert first.run() == 3
    with disk(other):
        scan_without_reading(world, second, other)
        world.exact(host, "second", other)
        assert {row["id"] for row in harness.rows_by_path(host, "second").values()} == set(before)
