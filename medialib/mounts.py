"""What a root lies on: its file system, volume, disk and free space.

Linux tells all of it; elsewhere what is unknown is None. Only a path that cannot be looked at at
all is an error.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from typing import NamedTuple

from .app_folder import fcntl
from .late import shutil, uuid
from .scan_common import to_text

MOUNT_TABLE = "/proc/self/mountinfo"
FS_IOC_GETFSUUID = 0x80111500  # one byte of length, then up to sixteen of UUID
BTRFS_IOC_FS_INFO = 0x8400941F  # two numbers of eight bytes each, then the UUID
NETWORK_FS = frozenset((
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "afs", "ncpfs",
    "coda", "davfs", "vboxsf", "vmhgfs", "prl_fs", "virtiofs", "fuse.sshfs", "fuse.rclone",
    "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.smbnetfs", "fuse.curlftpfs", "fuse.davfs2",
    "fuse.vmhgfs-fuse",
))
# Their inode numbers are made up anew with every mount, or when the kernel needs memory.
UNSTABLE_INODE_FS = frozenset((
    "vfat", "exfat", "msdos", "umsdos", "fuse", "fuseblk", "cifs", "smb3", "smbfs", "9p", "vboxsf",
    "vmhgfs", "prl_fs", "davfs", "ncpfs",
))
MEMORY_FS = frozenset(("tmpfs", "ramfs", "rootfs", "devtmpfs"))
# Their own UUID is the one that udev shows, so that every machine names the volume alike.
_UUID_IOCTL_FS = frozenset(("ext2", "ext3", "ext4", "btrfs", "xfs", "f2fs", "bcachefs"))
_LASTING_FSID_FS = frozenset(("ext2", "ext3", "ext4", "btrfs"))  # made from the UUID
# How the reason begins for which a root is offline until somebody accepts what is there now.
OTHER_DISK = "another disk seems to be mounted here"
CLONE_MARK = "#clone@"  # in the name of a volume whose own name another attached disk has as well
_OCTAL_ESCAPE = re.compile(rb"\\([0-7]{3})")
_HEX_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")


class MountEntry(NamedTuple):
    """One line of the mount table; paths are native."""

    mount_id: int
    device: str  # "major:minor"
    root: str  # which folder of the file system is mounted
    path: str
    fs: str
    source: str


class RootInfo(NamedTuple):
    """What is known about a root; strings are text, sizes are bytes.

    volume and volume_path name the same folder alike through every mount of it, on every machine;
    both are None where the file system has no lasting identity (tmpfs, overlay, unknown).
    fsid is the name of a volume whose UUID is not to be had (older kernels in a container).
    """

    path: str
    volume: str | None
    volume_path: str | None
    label: str | None
    fs: str | None
    rotational: bool | None
    network: bool
    total_bytes: int | None
    free_bytes: int | None
    device: int
    inode: int
    inodes_stable: bool
    fsid: str | None = None


def describe_root(native_path: str) -> RootInfo:
    """Everything about the folder; OSError only if it cannot be looked at."""
    path = os.path.abspath(native_path)
    seen = os.stat(path)
    mount = _mount_of(path)
    fs = mount.fs if mount else None
    fsid = _fsid_of(path, mount)
    volume = _volume_of(path, seen, mount) or fsid
    total, free = _space_of(path)
    return RootInfo(
        path=to_text(path), volume=volume,
        volume_path=_volume_path_of(path, mount) if volume else None,
        label=_label_of(mount), fs=fs, rotational=_is_rotational(mount),
        network=fs in NETWORK_FS, total_bytes=total, free_bytes=free, device=seen.st_dev,
        inode=seen.st_ino, inodes_stable=inodes_stable_on(fs), fsid=fsid,
    )


def inodes_stable_on(fs: str | None) -> bool:
    """False for file system types whose inode numbers do not last."""
    return fs is None or not (fs in UNSTABLE_INODE_FS or fs.startswith("fuse."))


def _space_of(path: str) -> tuple:
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return None, None
    return usage.total, usage.free


# The mount table

def mount_points() -> set | None:
    """The native paths at which something is mounted; None where nobody tells."""
    entries = _read_mounts()
    return None if entries is None else {entry.path for entry in entries}


def _read_mounts() -> list | None:
    try:
        with open(MOUNT_TABLE, "rb") as table:
            lines = table.read().splitlines()
    except OSError:
        return None
    return [entry for entry in map(parse_mount_line, lines) if entry is not None]


def parse_mount_line(line: bytes) -> MountEntry | None:
    """One line of mountinfo: id parent major:minor root path options… - fs source options."""
    before, separator, after = line.partition(b" - ")
    left, right = before.split(b" "), after.split(b" ")
    if not separator or len(left) < 6 or len(right) < 2 or not left[0].isdigit():
        return None
    return MountEntry(
        int(left[0]), left[2].decode("ascii", "replace"), _unescape_mount(left[3]),
        _unescape_mount(left[4]), os.fsdecode(right[0]), _unescape_mount(right[1]),
    )


def _unescape_mount(field: bytes) -> str:
    return os.fsdecode(_OCTAL_ESCAPE.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), field))


def _mount_of(path: str) -> MountEntry | None:
    """The mount that shows this folder: by its number, else the last with the longest path."""
    entries = _read_mounts()
    if not entries:
        return None
    # Only the number tells which of several mounts on one folder is seen.
    mount_id = _mount_id_of(path)
    for entry in entries:
        if entry.mount_id == mount_id:
            return entry
    real = os.path.realpath(path)
    covering = [entry for entry in reversed(entries) if _lies_in(real, entry.path)]
    return max(covering, key=lambda entry: len(entry.path), default=None)


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _mount_id_of(path: str) -> int | None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            with open(f"/proc/self/fdinfo/{descriptor}", "rb") as info:
                for line in info:
                    if line.startswith(b"mnt_id:"):
                        return int(line.split()[1])
        finally:
            os.close(descriptor)
    return None


# The volume

def _volume_of(path: str, seen, mount: MountEntry | None) -> str | None:
    if mount is None:
        # On Windows the device number is the serial number of the volume.
        return f"serial:{seen.st_dev:x}" if os.name == "nt" and seen.st_dev else None
    if mount.fs in NETWORK_FS:
        return _network_volume(mount)
    if mount.fs in _UUID_IOCTL_FS:
        found = _uuid_by_ioctl(path, mount.fs)
        if found:
            return f"uuid:{found}"
    found = _name_by_link("/dev/disk/by-uuid", mount)
    return f"uuid:{found.lower()}" if found else None


def _fsid_of(path: str, mount: MountEntry | None) -> str | None:
    if mount is not None and mount.fs in _LASTING_FSID_FS:
        with contextlib.suppress(OSError, AttributeError):
            fsid = os.statvfs(path).f_fsid
            return f"fsid:{fsid:016x}" if fsid else None
    return None


def _network_volume(mount: MountEntry) -> str | None:
    """Server and share. Shares of a virtual machine's own host name no server: they have none."""
    source = to_text(mount.source)
    if mount.fs in ("nfs", "nfs4"):
        server, separator, export = source.rpartition(":/")
        return f"nfs://{server.lower()}/{export.strip('/')}" if separator and server else None
    if mount.fs in ("cifs", "smb3", "smbfs"):
        share = source.replace("\\", "/").strip("/").lower()
        return f"smb://{share}" if "/" in share else None
    if mount.fs == "fuse.sshfs":
        server, separator, folder = source.partition(":")
        return f"sshfs://{server.lower()}/{folder.strip('/')}" if separator and server else None
    return None


def _volume_path_of(path: str, mount: MountEntry | None) -> str:
    """The folder's path in its file system, from that one's own root: "/" or "/films/new"."""
    real = os.path.realpath(path)
    if mount is None:
        return "/" + to_text(os.path.splitdrive(real)[1]).strip("/")
    inside = real[len(mount.path):] if _lies_in(real, mount.path) else real
    parts = [to_text(part).strip("/") for part in (mount.root, inside)]
    return "/" + "/".join(part for part in parts if part)


def _uuid_by_ioctl(path: str, fs: str) -> str | None:
    """What the file system itself says; udev, which would know too, is not in every container."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        length, raw = struct.unpack("B16s", _ask_file_system(descriptor, FS_IOC_GETFSUUID, 17))
        if not length and fs == "btrfs":
            answer = _ask_file_system(descriptor, BTRFS_IOC_FS_INFO, 1024)
            length, raw = 16 * any(answer), answer[16:32]
    finally:
        os.close(descriptor)
    return str(uuid.UUID(bytes=raw)) if length == 16 and any(raw) else None


def _ask_file_system(descriptor: int, question: int, length: int) -> bytes:
    """The answer of an ioctl; zeros where it is not known."""
    answer = bytearray(length)
    try:
        fcntl.ioctl(descriptor, question, answer)
    except (OSError, ValueError, OverflowError):
        return bytes(length)
    return bytes(answer)


def _device_numbers(mount: MountEntry) -> set:
    """The st_rdev of the block device(s) behind a mount."""
    numbers = set()
    major, _, minor = mount.device.partition(":")
    with contextlib.suppress(ValueError, AttributeError):
        if int(major):  # 0 is a number made up by btrfs, overlay and others
            numbers.add(os.makedev(int(major), int(minor)))
    if mount.source.startswith("/dev/"):
        with contextlib.suppress(OSError):
            numbers.add(os.stat(mount.source).st_rdev)
    return numbers - {0}


def _name_by_link(folder: str, mount: MountEntry) -> str | None:
    """The name of the link in a folder of /dev/disk that leads to the device of a mount."""
    numbers = _device_numbers(mount)
    if not numbers or mount.fs in MEMORY_FS:
        return None
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return None
    for name in names:
        with contextlib.suppress(OSError):
            if os.stat(os.path.join(folder, name)).st_rdev in numbers:
                return to_text(_unescape_udev(name))
    return None


def _unescape_udev(name: str) -> str:
    raw = os.fsencode(name)
    return os.fsdecode(_HEX_ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), raw))


def _label_of(mount: MountEntry | None) -> str | None:
    return _name_by_link("/dev/disk/by-label", mount) if mount else None


# The disk

def _is_rotational(mount: MountEntry | None) -> bool | None:
    """True if any disk behind the mount turns, False if none does, None if that is not known."""
    if mount is None:
        return None
    if mount.fs in MEMORY_FS:
        return False
    answers = [
        _device_rotational(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}", 0)
        for number in _device_numbers(mount)
    ]
    return _any_rotational(answers)


def _any_rotational(answers: list) -> bool | None:
    if True in answers:
        return True
    return False if answers and None not in answers else None


def _device_rotational(device: str, depth: int) -> bool | None:
    """Follow a partition to its disk, and a mapped or joined device to what it is made of."""
    device = os.path.realpath(device)
    if os.path.exists(os.path.join(device, "partition")):
        device = os.path.dirname(device)
    slaves = []
    with contextlib.suppress(OSError):
        slaves = os.listdir(os.path.join(device, "slaves"))
    if slaves and depth < 8:
        return _any_rotational([
            _device_rotational(os.path.join(device, "slaves", slave), depth + 1)
            for slave in slaves
        ])
    try:
        with open(os.path.join(device, "queue", "rotational"), "rb") as answer:
            return answer.read(8).strip() == b"1"
    except OSError:
        return None
