"""The ledger of a scan: every entry of a tree that holds everything is in it, once; and its why."""

from __future__ import annotations

import contextlib
import os
import socket
import stat

import pytest

from tests import support
from tests.faults import harness

IGNORED_NAMES = ("@eaDir", "#recycle", ".Trash-1000", "lost+found")
MARKER = ".medialib-ignore"


class Everything:
    """A tree with every kind of entry, twice or more of each."""

    def __init__(self, root):
        self.root = root
        self.nested = root / "a" / "nested root"
        self.mount = root / "a" / "other disk"
        self.failing = root / "b" / "failing"
        self.victim = root / "b" / "victim.jpg"
        for folder in ("a", "a/b/c", "b", "marked/below", "b/failing/below"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for folder in (self.nested, self.mount, *(root / "b" / name for name in IGNORED_NAMES)):
            folder.mkdir()
            (folder / "inside.jpg").write_bytes(b"inside")
        for number in range(40):
            parent = (root, root / "a", root / "a/b", root / "a/b/c", root / "b")[number % 5]
            (parent / f"{number}{('.jpg', '.mp3', '.part', '.zzz')[number % 4]}").write_bytes(
                b"%d" % number)
        self.victim.write_bytes(b"victim")
        (root / "marked" / MARKER).touch()
        (root / "marked" / "one.jpg").write_bytes(b"x")
        (root / "marked" / "below" / "two.jpg").write_bytes(b"x")
        for number in range(6):
            (self.failing / f"{number}.jpg").write_bytes(b"%d" % number)
        (root / "to a file").symlink_to("0.jpg")
        (root / "a" / "to a folder").symlink_to("b")
        (root / "a" / "to nowhere").symlink_to("nowhere")
        (root / "a" / "b" / "up").symlink_to("..")
        os.mkfifo(root / "b" / "pipe.mkv")
        os.mknod(root / "b" / "null.jpg", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        listener = socket.socket(socket.AF_UNIX)
        with contextlib.closing(listener):
            os.chdir(root / "b")
            listener.bind("sock.mkv")
            os.chdir("/")

    def count(self, *, failing: bool) -> dict:
        """What a ledger must say, counted with os.listdir and lstat alone; `failing`: the listing
        of one folder and the look at one file fail.
        """
        found = dict.fromkeys(("files", "folders", "links", "specials", "other_mounts", "ignored",
                               "nested_roots", "loops"), 0)
        device = os.lstat(self.root).st_dev
        waiting = [self.root]
        while waiting:
            folder = waiting.pop()
            if failing and folder == self.failing:
                continue
            names = os.listdir(folder)
            if MARKER in names:
                found["ignored"] += len(names)
                continue
            for name in names:
                path = folder / name
                mode = os.lstat(path).st_mode
                if stat.S_ISLNK(mode):
                    found["links"] += 1
                elif stat.S_ISREG(mode):
                    found["files"] += 1
                elif not stat.S_ISDIR(mode):
                    found["specials"] += 1
                elif name in IGNORED_NAMES:
                    found["ignored"] += 1
                elif path == self.nested:
                    found["nested_roots"] += 1
                elif os.lstat(path).st_dev != device:
                    found["other_mounts"] += 1
                else:
                    found["folders"] += 1
                    waiting.append(path)
        return found


@pytest.mark.parametrize("scanner", harness.either(["agent"], ["agent", "local"]))
def test_everything_that_is_met_is_accounted_for(world, scanner):
    """On the first scan, on an unchanged one, and on one with an unreadable folder and file."""
    support.need_root()
    tree = Everything(world.folder / "media")
    with harness.tmpfs(tree.mount):
        (tree.mount / "there.jpg").write_bytes(b"x")
        if scanner == "agent":
            host = world.host().start()
            runner, name = world.once(host, tree.root, tree.nested), "box"
        else:
            host = world.host("-q")
            runner = world.host("--scan", tree.root, tree.nested)
            name = "local"
        for turn in ("first", "unchanged", "failing"):
            failing = turn == "failing"
            runner.prefix = breaking(tree) if failing else []
            assert runner.run() == (3 if failing else 0), runner.output()
            if scanner == "local":
                host.start()
            ledger = root_of(host, name, tree.root)["scan"]["ledger"]
            check_ledger(ledger, tree.count(failing=failing), turn)
            check_reasons(host, name, tree, failing=failing)
            if scanner == "local":
                assert host.stop() == 0


def breaking(tree) -> list:
    """One folder cannot be listed and one file not even be looked at."""
    calls = "getdents64,lstat,newfstatat"
    support.need("strace")
    return ["strace", "-f", "-qqq", "-o", "/dev/null", "-P", str(tree.failing), "-P",
            str(tree.victim), "-P", tree.victim.name, "-e", f"trace={calls}",
            "-e", f"inject={calls}:error=EIO"]


def root_of(host, name: str, path) -> dict:
    return next(root for root in host.agents()[name]["roots"] if root["path"] == str(path))


def check_ledger(ledger: dict, wanted: dict, turn: str) -> None:
    assert {key: ledger.get(key, 0) for key in wanted} == wanted, turn
    failing = turn == "failing"
    assert ledger.get("unlisted", 0) == failing
    became = {key: ledger.get(key, 0)
              for key in ("catalogued", "unchanged", "vanished", "unreadable")}
    known = wanted["files"] - failing
    assert became == {"catalogued": known if turn == "first" else 0,
                      "unchanged": known if turn != "first" else 0,
                      "vanished": 0, "unreadable": int(failing)}, turn


def check_reasons(host, name: str, tree, *, failing: bool) -> None:
    agent = "local" if name == "local" else host.agent_id(name)
    wanted = {
        "0.jpg": "present", "10.part": "junk", "to a file": "not seen", "a/to nowhere": "not seen",
        "b/pipe.mkv": "not seen", "b/sock.mkv": "not seen", "b/null.jpg": "not seen",
        "a/other disk/there.jpg": "not seen", "b/@eaDir/inside.jpg": "ignored",
        "marked/one.jpg": "not seen", "a/nested root/inside.jpg": "present",
        "b/failing/0.jpg": "present", "b/victim.jpg": "present", "never.jpg": "not seen",
        "b/failing/new.jpg": "error" if failing else "not seen",
    }
    said = {}
    for rel in wanted:
        answer = host.post("/api/why", {"agent": agent, "path": str(tree.root / rel)})
        said[rel] = answer["answer"]
        assert answer["text"]
        if answer["answer"] == "not seen":
            assert answer["ledger"], rel
    assert said == wanted
    outside = host.post("/api/why", {"agent": agent, "path": "/elsewhere/a.jpg"})
    assert outside["answer"] == "outside"
