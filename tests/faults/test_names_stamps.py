"""Names and stamps of every kind, files that change while they are read, and I7 by strace."""

from __future__ import annotations

import os
import re
import socket
import stat
import threading
import time

import pytest

from tests import ground_truth, media, processes, support
from tests.faults import harness

NAMES = [
    b"latin \xe9\xe8.jpg", b"\xff\xfe\xfd", b"line\nbreak.mkv.txt", b"\r.txt", b"\x01\x02\x1b[31m",
    b"'; DROP TABLE agent_index; --", b'"quoted".srt', b"-rf", b"--help", b"<img src=x>.html",
    b"a" * 255, b"\xe2\x80\xae gpj.exe", "nfc \u00e9".encode(), "nfd e\u0301".encode(),
    "\uef80".encode(), "\uefff\uef80 both".encode(), b"\xef\xbe\x80", "\U0010ffff".encode(),
    b"%s%n%d", b"back\\slash", b"trailing.", b"trailing ", b"con", b"a:b", b"*?", b"\x7f",
    b"\xed\xa0\x80 surrogate bytes", b"\xc0\xaf overlong", b"NUL.txt", b"a.b", b"a", b"a-b",
]
STAMPS = {
    "negative": -1_000_000_000, "zero": 0, "one": 1, "before 1901": -2_147_483_649,
    "2038": 2_147_483_648, "2106": 4_294_967_296, "2446": 15_032_385_535,
    "tomorrow": 4_102_444_800,
}


def test_every_name_the_disk_allows(world):
    root = world.folder / "media"
    native = os.fsencode(str(root))
    folders = [os.path.join(native, folder) for folder in (
        b"", b"a", b"a.b", b"a b", b"\xff", b"a/\n", b"z" * 255)]
    for folder in folders:
        os.makedirs(folder)
    for folder in folders:
        for name in NAMES:
            path = os.path.join(folder, name)
            if not os.path.isdir(path):
                with open(path, "wb") as file:
                    file.write(name)
    media.grow_old(root)
    host = world.host().start()
    agent = world.once(host, root)
    with harness.untouched(root):
        world.scan(agent)
        world.exact(host, "box", root)
    for name in NAMES[::3]:  # each of them can be renamed, and gone
        path = os.path.join(native, b"z" * 255, name)
        os.rename(path, os.path.join(native, b"a.b", b"moved" + name[:200]))
        os.unlink(os.path.join(native, b"\xff", name))
    world.scan(agent)
    world.exact(host, "box", root)
    assert quiet_scan(world, agent) == []


def quiet_scan(world, agent) -> list:
    """What a scan of an unchanged tree opened."""
    tracer = processes.Tracer(world.folder / f"trace{time.monotonic_ns()}")
    agent.prefix = tracer.prefix
    world.scan(agent)
    agent.prefix = []
    return tracer.opened(world.folder / "media")


def test_every_stamp_the_disk_allows(world):
    """On a file system that knows them all; one that does not must not stop the scan."""
    host = world.host().start()
    place = world.folder / "media"
    image = harness.disk_image(world.folder / "disk.img", "xfs", 320) if support.LONG else None
    disk = harness.loop_mounted(image, place) if image else harness.tmpfs(place)
    with disk:
        for name, stamp in STAMPS.items():
            for number, rest in enumerate((0, 1, 999_999_999)):
                path = place / f"{name} {number}.jpg"
                path.write_bytes(name.encode())
                os.utime(path, ns=(stamp * 10 ** 9 + rest,) * 2)
        agent = world.once(host, place)
        world.scan(agent)
        world.exact(host, "box", place)


def test_sparse_file_of_terabytes(world):
    """Its samples are read, not its zeros, when full hashes are off."""
    root = world.folder / "media"
    root.mkdir()
    try:
        with (root / "huge.iso").open("wb") as file:
            file.truncate(8 << 40)
    except OSError:
        support.lack("this file system has no files of terabytes")
    host = world.host().start()
    host.settings(do_full_hash=False)
    agent = world.once(host, root)
    started = time.monotonic()
    world.scan(agent)
    assert time.monotonic() - started < 80
    row = harness.rows_by_path(host, "box")[str(root / "huge.iso")]
    assert row["size"] == 8 << 40
    assert row["hashes"]["sample_hash"]
    assert row["hashes"]["full_hash"] is None


def test_rewritten_with_its_old_time(world):
    """Only ctime tells; the sample is read again."""
    one = world.tree("first", 30, 0)
    host = world.host().start()
    agent = world.once(host, one.root)
    media.grow_old(one.root)
    world.scan(agent)
    for path in [path for path in one.files() if path.stat().st_size][:5]:
        seen = path.stat()
        data = bytearray(path.read_bytes())
        data[0] ^= 0xFF
        with path.open("r+b") as file:
            file.write(data)
        os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        assert path.stat().st_mtime_ns == seen.st_mtime_ns
    world.scan(agent)
    world.exact(host, "box", one.root)


def test_files_that_change_while_they_are_read(world):
    """Appended to, replaced, truncated and removed all the time; at rest everything is exact."""
    one = world.tree("first", 10, 0)
    victims = []
    for number in range(8):
        path = one.root / f"busy {number}.bin"
        path.write_bytes(os.urandom(3 << 20))
        victims.append(path)
    host = world.host().start()
    agent = world.agent(host, one.root).start()
    stop = threading.Event()

    def disturb() -> None:
        number = 0
        while not stop.wait(0.004):
            number += 1
            path = victims[number % len(victims)]
            act = number % 5
            if act == 0 and path.exists():
                path.unlink()
            elif act == 1:
                path.write_bytes(os.urandom(2 << 20))
            elif act == 2 and path.exists():
                os.truncate(path, 1 << 20)
            elif act == 3:
                part = path.with_name("part")
                part.write_bytes(os.urandom(1 << 20))
                os.replace(part, path)
            else:
                with path.open("ab") as file:
                    file.write(b"more")

    thread = threading.Thread(target=disturb)
    thread.start()
    for _ in range(8):
        agent.post("/agent/scan_now")
        time.sleep(0.5)
    stop.set()
    thread.join()
    time.sleep(harness.YOUNG_S)
    support.wait_until(lambda: agent.stats()["phase"] == 0, 30)
    for _ in range(3):
        agent.post("/agent/scan_now")
        time.sleep(1)
    world.exact(host, "box", one.root, wait_s=harness.SETTLE_S)
    assert agent.stop() == 0


def test_special_files_are_never_opened(world):
    """FIFO, socket, devices and links: seen, counted, left alone."""
    support.need_root()
    one = world.tree("first", 5, 0)
    os.mkfifo(one.root / "pipe.mkv")
    os.mknod(one.root / "zero.mkv", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    os.mknod(one.root / "disk.iso", 0o666 | stat.S_IFBLK, os.makedev(7, 99))
    listener = socket.socket(socket.AF_UNIX)
    os.chdir(one.root)
    listener.bind("sock.mkv")
    os.chdir("/")
    (one.root / "up").symlink_to("..")
    (one.root / "self").symlink_to("self")
    (one.root / "passwd.txt").symlink_to("/etc/passwd")
    host = world.host().start()
    agent = world.once(host, one.root)
    output = world.folder / "trace"
    agent.prefix = ["strace", "-f", "-qqq", "-e", "trace=open,openat,openat2", "-o", str(output)]
    world.scan(agent)
    opened = output.read_text("utf-8", "replace")
    for name in ("pipe.mkv", "zero.mkv", "disk.iso", "sock.mkv", "passwd.txt", "fifo.mp4"):
        assert f'{name}"' not in opened, name
    world.exact(host, "box", one.root)
    listener.close()


WRITING = re.compile(
    r"\b(?:open|openat|openat2|creat)\(.*(?:O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND)")
CHANGING = ("unlink,unlinkat,rename,renameat,renameat2,mkdir,mkdirat,rmdir,link,linkat,symlink,"
            "symlinkat,mknod,mknodat,truncate,chmod,fchmodat,chown,lchown,fchownat,utimensat,"
            "setxattr,lsetxattr,removexattr,creat")


@pytest.mark.parametrize("program", ["agent", "host"])
def test_nothing_below_a_root_is_ever_written(world, program):
    """I7 by the system calls themselves, over first scan, changes and removal."""
    support.need("strace")
    one = world.tree("first", 60, 4)
    output = world.folder / "trace"
    prefix = ["strace", "-f", "-qqq", "-y", "-s", "4096", "-o", str(output),
              "-e", f"trace=open,openat,openat2,{CHANGING}"]
    if program == "host":
        host = world.host("--scan", one.root, prefix=prefix)
        assert host.run() in harness.DONE, host.output()
    else:
        host = world.host().start()
        with harness.untouched(one.root):
            agent = world.once(host, one.root, prefix=prefix)
            world.scan(agent)
    lines = [line for line in output.read_text("utf-8", "replace").splitlines()
             if str(one.root) in line]
    assert len([line for line in lines if "O_RDONLY" in line]) > 50, "the trace sees the scan"
    bad = [line for line in lines if WRITING.search(line) or re.search(
        rf"\b(?:{CHANGING.replace(',', '|')})\(", line)]
    assert bad == []


def test_a_read_only_root_is_scanned_like_any_other(world):
    one = world.tree("first", 30, 2)
    host = world.host().start()
    with harness.mounted("--bind", one.root, one.root):
        harness.mount("-o", "remount,ro,bind", one.root)
        world.scan(world.once(host, one.root))
        world.exact(host, "box", one.root)
    assert len(ground_truth.present_rows(host.url, host.agent_id("box"))) > 30
