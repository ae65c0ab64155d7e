"""What a root lies on: the same folder is named alike through every mount; nothing ever raises."""

from __future__ import annotations

import contextlib
import os
import subprocess

import pytest

from medialib import mounts
from medialib.mounts import describe_root, inodes_stable_on, mount_points, parse_mount_line
from tests import support


@contextlib.contextmanager
def mounted(target, *options):
    support.need_root()
    support.need("mount", "umount")
    done = subprocess.run(["mount", *options, str(target)], stderr=subprocess.PIPE)
    if done.returncode:
        support.lack(f"mount: {done.stderr.decode('utf-8', 'replace').strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(target)], check=True)


def test_a_plain_folder(tmp_path):
    info = describe_root(str(tmp_path))
    seen = os.stat(tmp_path)
    assert (info.device, info.inode, info.path) == (seen.st_dev, seen.st_ino, str(tmp_path))
    assert 0 < info.free_bytes <= info.total_bytes
    assert info.network is False
    assert (info.volume is None) == (info.volume_path is None)


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        describe_root(str(tmp_path / "gone"))


def test_names_become_text(tmp_path):
    native = os.path.join(str(tmp_path), "caf\udce9")
    os.mkdir(native)
    info = describe_root(native)
    assert info.path == f"{tmp_path}/caf\uefe9"
    assert info.volume_path is None or info.volume_path.endswith("/caf\uefe9")


def test_memory_has_no_volume(tmp_path):
    with mounted(tmp_path, "-t", "tmpfs", "tmpfs"):
        info = describe_root(str(tmp_path))
    assert (info.fs, info.volume, info.volume_path) == ("tmpfs", None, None)
    assert info.rotational is False
    assert info.inodes_stable


def test_odd_mount_points_are_listed(tmp_path):
    target = os.path.join(str(tmp_path), "with space\ttab\nline\\back\udce9")
    os.mkdir(target)
    with mounted(os.fsencode(target).decode("utf-8", "surrogateescape"), "-t", "tmpfs", "tmpfs"):
        assert target in mount_points()
        assert describe_root(target).fs == "tmpfs"
    assert target not in mount_points()


@pytest.fixture
def disk(tmp_path):
    """A fresh ext4 on a loop device."""
    support.need_root()
    support.need("mkfs.ext4", "mount")
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-L", "films", str(image)], check=True)
    return image


def test_a_volume_is_the_same_through_every_mount(disk, tmp_path):
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    with mounted(tmp_path / "one", "-o", "loop", str(disk)):
        (tmp_path / "one" / "films" / "new").mkdir(parents=True)
        top, first = describe_root(str(tmp_path / "one")), tmp_path / "one" / "films"
        info = describe_root(str(first / "new"))
        assert top.volume
        assert top.volume_path == "/"
        assert (info.volume, info.volume_path) == (top.volume, "/films/new")
        with mounted(tmp_path / "two", "--bind", str(first)):
            bound = describe_root(str(tmp_path / "two" / "new"))
            assert (bound.volume, bound.volume_path) == (top.volume, "/films/new")
        os.symlink(first / "new", tmp_path / "alias")
        linked = describe_root(str(tmp_path / "alias"))
        assert (linked.volume, linked.volume_path) == (top.volume, "/films/new")
    with mounted(tmp_path / "three", "-o", "loop", str(disk)):
        again = describe_root(str(tmp_path / "three" / "films" / "new"))
        assert (again.volume, again.volume_path) == (top.volume, "/films/new")
        assert again.fs == "ext4"


def test_the_upper_of_two_mounts_is_seen(disk, tmp_path):
    target = tmp_path / "here"
    target.mkdir()
    with mounted(target, "-o", "loop", str(disk)):
        assert describe_root(str(target)).fs == "ext4"
        with mounted(target, "-t", "tmpfs", "tmpfs"):
            assert describe_root(str(target)).fs == "tmpfs"
        assert describe_root(str(target)).fs == "ext4"


def entry(line):
    return parse_mount_line(line)


def test_lines_of_the_mount_table():
    found = entry(rb"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=x")
    assert found == (36, "98:0", "/mnt1", "/mnt 2", "ext3", "/dev/root")
    assert entry(b"36 35 0:4 / /a rw - nfs4 nas:/films rw").source == "nas:/films"
    for bad in (b"", b"garbage", b"1 2 3 - x", b"x 35 98:0 / / rw - ext3 y z"):
        assert entry(bad) is None


@pytest.mark.parametrize(("line", "volume"), [
    (b"1 1 0:4 / /m rw - nfs4 NAS:/films/new rw", "nfs://nas/films/new"),
    (b"1 1 0:4 / /m rw - nfs [fe80::1]:/x rw", "nfs://[fe80::1]/x"),
    (b"1 1 0:4 / /m rw - cifs //NAS/Films rw", "smb://nas/films"),
    (b"1 1 0:4 / /m rw - fuse.sshfs me@box:/srv rw", "sshfs://me@box/srv"),
    (b"1 1 0:4 / /m rw - 9p host0 rw", None), (b"1 1 0:4 / /m rw - overlay overlay rw", None),
    (b"1 1 0:4 / /m rw - fuse.weird x rw", None), (b"1 1 0:4 / /m rw - zfs tank/films rw", None),
])
def test_volumes_of_other_file_systems(tmp_path, monkeypatch, line, volume):
    line = line.replace(b"/m ", os.fsencode(tmp_path) + b" ")
    monkeypatch.setattr(mounts, "_read_mounts", lambda: [parse_mount_line(line)])
    info = describe_root(str(tmp_path))
    assert info.volume == volume
    assert info.volume_path == ("/" if volume else None)
    assert info.network == (b" - overlay" not in line and b"weird" not in line
                            and b"zfs" not in line)
    assert info.rotational is None


def test_inodes():
    for fs in ("vfat", "exfat", "msdos", "fuse.sshfs", "fuseblk", "cifs", "smb3", "9p", "vboxsf"):
        assert not inodes_stable_on(fs), fs
    for fs in ("ext4", "btrfs", "xfs", "ntfs3", "zfs", "nfs4", "tmpfs", None):
        assert inodes_stable_on(fs), fs


def test_a_system_without_any_of_it(tmp_path, monkeypatch):
    """macOS, Windows, a locked-down container."""
    monkeypatch.setattr(mounts, "MOUNT_TABLE", str(tmp_path / "gone"))
    monkeypatch.setattr(mounts, "fcntl", None)
    assert mount_points() is None
    info = describe_root(str(tmp_path))
    assert (info.fs, info.volume, info.label, info.rotational) == (None, None, None, None)
    assert info.inodes_stable
    assert info.total_bytes > 0


def test_disks_that_turn(tmp_path):
    """Partitions belong to their disk, mapped devices to all they are made of."""
    def device(name, rotational=None, slaves=(), partition=False):
        path = tmp_path / name
        (path / "queue").mkdir(parents=True)
        if rotational is not None:
            (path / "queue" / "rotational").write_text(f"{rotational}\n")
        if partition:
            (path / "partition").write_text("1\n")
        for slave in slaves:
            (path / "slaves").mkdir(exist_ok=True)
            os.symlink(tmp_path / slave, path / "slaves" / slave.replace("/", "-"))
        return str(path)

    disk, ssd = device("sda", 1), device("sdb", 0)
    part = device("sda/sda1", None, partition=True)
    assert mounts._device_rotational(disk, 0) is True
    assert mounts._device_rotational(ssd, 0) is False
    assert mounts._device_rotational(part, 0) is True
    assert mounts._device_rotational(device("dm-0", 0, ["sda/sda1"]), 0) is True
    assert mounts._device_rotational(device("dm-1", 1, ["sdb"]), 0) is False
    assert mounts._device_rotational(device("md0", 1, ["sdb", "dm-0"]), 0) is True
    assert mounts._device_rotational(device("odd", None), 0) is None
    assert mounts._device_rotational(device("dm-2", 0, ["dm-2"]), 0) is False  # made of itself
