"""What every fault test stands on: trees, kills and errors by strace, disks, and one verdict.

The verdict (`World.exact`) is the same everywhere: the catalogue is the independent ground truth,
both databases are sound, and the media tree is bit for bit what it was.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests import ground_truth, media, processes, support

try:
    import fcntl
except ImportError:
    fcntl = None

CHOSEN_SEED = os.environ.get("MEDIALIB_SEED") or ("1" if os.environ.get("CI") else "")
SEED = int(CHOSEN_SEED or random.SystemRandom().randrange(1 << 30))
DONE = (0, 3)  # 3: something is left over, such as a garbage video
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
ALGO = "blake3"  # what the tests' own Python has
EXT4_SHUTDOWN = 0x8004587D  # ioctl EXT4_IOC_SHUTDOWN
EXT4_SHUTDOWN_NOLOGFLUSH = 2
SETTLE_S = 90
YOUNG_S = 2.2  # a file changed less than two seconds before its hash is looked at again


class World:
    """Trees, a host and agents of one test, and the comparison at the end of every story."""

    def __init__(self, folder: Path, machines: processes.Machines):
        self.folder = folder
        self.machines = machines
        self.random = random.Random(SEED)

    def tree(self, name: str, files: int = 40, videos: int = 2, *, folder=None) -> media.Tree:
        """A small tree of every kind of file below `folder` (default: the test's own)."""
        root = Path(folder or self.folder / "media" / name)
        return media.Tree(root, SEED + sum(name.encode())).fill(files, videos)

    def host(self, *arguments, **options) -> processes.Host:
        return self.machines.host(*arguments, **options)

    def agent(self, host, *arguments, name="box", **options) -> processes.Agent:
        return self.machines.agent(host, *arguments, name=name, **options)

    def once(self, host, *roots, name="box", **options) -> processes.Agent:
        """An agent that scans once, delivers and ends; not started."""
        return self.agent(host, *roots, "--once", name=name, **options)

    def scan(self, agent: processes.Agent) -> None:
        code = agent.run()
        assert code in DONE, f"exit code {code}:\n{agent.output()[-4000:]}"
        assert "Traceback" not in agent.output(), agent.output()[-4000:]

    def exact(self, host, name: str, *roots, wait_s: float = 0, context: str = "",
              algo: str = ALGO) -> None:
        """The catalogue of this agent is the truth, and both databases are sound."""
        agent = "local" if name == "local" else host.agent_id(name)
        config = support.get(host.url, "/ingest/config")
        expected = {}
        for root in roots:
            expected.update(without_device(ground_truth.truth_of(root, config, algo=algo)))
        end = time.monotonic() + wait_s
        while True:
            rows = {row["id"]: row for row in ground_truth.present_rows(host.url, agent)}
            without_device(rows)
            found = ground_truth.differences(list(rows.values()), expected)
            if not found or time.monotonic() > end:
                break
            time.sleep(0.3)
        assert not found, differences_text(found, context)
        self.sound(host)

    def sound(self, *programs) -> None:
        """SQLite's own check of every database of these programs."""
        for program in programs:
            for path in program.data.glob("*.db"):
                assert integrity(path) == "ok", f"{path}: {integrity(path)} (seed {SEED})"


def without_device(rows: dict) -> dict:
    """The same rows; the device number says nothing across mounts and is taken off their keys."""
    for row in rows.values():
        row["inode_key"] = row["inode_key"].rpartition(":")[0]
    return rows


def differences_text(found: list, context: str) -> str:
    shown = "\n  ".join(found[:20])
    return f"{len(found)} differences (seed {SEED}) {context}\n  {shown}"


def integrity(path: Path) -> str:
    db = sqlite3.connect(str(path), timeout=30)
    try:
        return db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        return str(error)
    finally:
        db.close()


@contextlib.contextmanager
def untouched(*roots):
    """Nothing below these folders changes: names, contents, times, modes, links."""
    before = [ground_truth.fingerprint(root) for root in roots]
    yield
    after = [ground_truth.fingerprint(root) for root in roots]
    changed = [str(root) for root, old, new in zip(roots, before, after) if old != new]
    assert not changed, f"written to: {changed} (seed {SEED})"


def states(host, name: str) -> dict:
    """{state: number of rows} of one agent."""
    agent = host.agent_id(name)
    counts = {}
    for row in support.all_rows(host.url, "/api/files", {"filter": {"agent": agent}}, "files"):
        counts[row["state"]] = counts.get(row["state"], 0) + 1
    return counts


def rows_by_path(host, name: str) -> dict:
    """{path: row} of every row of one agent, whatever its state."""
    found = support.all_rows(host.url, "/api/files", {"filter": {"agent": host.agent_id(name)}},
                             "files")
    return {row["path"]: row for row in found}


def root_states(host, name: str) -> dict:
    return {root["path"]: root["state"] for root in host.agents()[name]["roots"]}


def figures(**counts) -> None:
    """What a run has tried and found, for whoever reads the report (pytest -rA)."""
    print("figures:", ", ".join(f"{name.replace('_', ' ')} {count}"
                                for name, count in counts.items()), f"(seed {SEED})")


def either(quick: list, whole: list) -> list:
    """The values of a parameter: some of them in every run, all of them in a long one."""
    return whole if support.LONG else quick


# strace


def strace(call: str, *, path=None, trace="", output="/dev/null", **injected) -> list:
    """The prefix that does something to the N-th call: strace(call, signal="KILL", when=3).

    Every thread counts for itself. Not with --seccomp-bpf: strace 6.1 then counts nothing.
    """
    support.need("strace")
    inject = ":".join([call, *(f"{key}={value}" for key, value in injected.items())])
    where = ["-P", str(path)] if path else []
    return ["strace", "-f", "-qqq", "-o", str(output), *where,
            "-e", f"trace={trace or call}", "-e", f"inject={inject}"]


@contextlib.contextmanager
def attached(program, call: str, **injected):
    """strace on a running program, so that only what it does from now on is counted."""
    pid = program.process.pid
    tracer = subprocess.Popen([*strace(call, **injected), "-p", str(pid)],
                              stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        support.wait_until(lambda: is_traced(pid), 60, "strace to be attached")
        yield
    finally:
        tracer.kill()
        tracer.wait()


def is_traced(pid: int) -> bool:
    """All of its threads, which strace takes one after the other."""
    tasks = list(Path(f"/proc/{pid}/task").glob("*/status"))
    return all("\nTracerPid:\t0\n" not in task.read_text() for task in tasks)


def counting(folder: Path, *calls: str) -> list:
    """The prefix that writes each thread's calls of these kinds to a file of its own."""
    support.need("strace")
    folder.mkdir(parents=True)
    return ["strace", "-ff", "-qqq", "-e", f"trace={','.join(calls)}",
            "-o", str(folder / "thread")]


def most_calls(folder: Path, call: str) -> int:
    """How often any one thread made this call: how far an injection's `when` can count."""
    return max(sum(line.startswith(f"{call}(") for line in
                   path.read_text("utf-8", "replace").splitlines()) for path in folder.iterdir())


def points_up_to(most: int, count: int) -> list:
    """Up to `count` numbers of a call at which to strike, the first ones close to each other.

    Commits are shared and threads take turns, so that no two runs make as many calls: the last
    point is well below `most`, and a run that is much like the counted one gets there.
    """
    sure = max(1, most // 2)
    return sorted({1 + round((sure - 1) * (step / max(1, count - 1)) ** 2)
                   for step in range(count)})


def run_as_nobody() -> list:
    """The prefix of a program without any rights of its own."""
    support.need("setpriv")
    support.need_root()
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


# Disks


def run_tool(*command) -> None:
    done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, check=False)
    if done.returncode:
        support.lack(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


def mount(*arguments) -> None:
    support.need("mount", "umount")
    support.need_root()
    run_tool("mount", *arguments)


def unmount(place, *flags) -> None:
    subprocess.run(["umount", *flags, str(place)], capture_output=True, check=False)


@contextlib.contextmanager
def mounted(*arguments):
    """mount(8) with these arguments, the last of which is the place; unmounted at the end."""
    place = Path(arguments[-1])
    place.mkdir(parents=True, exist_ok=True)
    mount(*arguments)
    try:
        yield place
    finally:
        unmount(place, "-l")


def tmpfs(place, size: str = "64m"):
    """A small disk in memory: its mount(8)."""
    return mounted("-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", place)


def disk_image(path: Path, kind: str = "ext4", size_mib: int = 64) -> Path:
    """A file with an empty file system in it, to be mounted with -o loop."""
    support.need(f"mkfs.{kind}")
    with path.open("wb") as file:
        file.truncate(size_mib << 20)
    quiet = ["-q"] if kind in ("ext4", "xfs", "btrfs") else []
    run_tool(f"mkfs.{kind}", *quiet, path)
    return path


def loop_mounted(image: Path, place, options: str = "loop"):
    return mounted("-o", options, image, place)


DISK_MIB = {"ext4": 64, "xfs": 320, "btrfs": 128}  # xfs and btrfs make no smaller ones


def new_disk(folder: Path, kind: str):
    """A disk of a kind as a function: disk(place) is its mount, again and again with the same
    files. "bind" is a folder of the system's own disk, "memory" one in a tmpfs, "overlay" one over
    an empty folder; the others are images of that file system.
    """
    store = folder / f"disk of {kind}"
    if kind in DISK_MIB:
        image = disk_image(store, kind, DISK_MIB[kind])
        return lambda place: loop_mounted(image, place)
    store.mkdir()
    if kind == "overlay":
        for name in ("lower", "upper", "work"):
            (store / name).mkdir()
        layers = ",".join(f"{name}dir={store / name}" for name in ("lower", "upper", "work"))
        return lambda place: mounted("-t", "overlay", "-o", layers, "overlay", place)
    if kind == "memory":
        mount("-t", "tmpfs", "-o", "size=64m,mode=755", "tmpfs", store)
    return lambda place: mounted("--bind", store, place)


def cut_power(place) -> None:
    """The file system stops here and now, with nothing more written: ext4's own shutdown."""
    descriptor = os.open(str(place), os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, EXT4_SHUTDOWN,
                    EXT4_SHUTDOWN_NOLOGFLUSH.to_bytes(4, sys.byteorder))
    finally:
        os.close(descriptor)


# Clients that post by themselves


def record(path: str, number: int = 1, **changes) -> dict:
    """A file record as a script would post it."""
    return {"kind": "image", "path": path, "size": number, "mtime": 1.5, "ctime": 1.5,
            "ext": ".jpg", "inode_key": f"{number}:1500000000:{number}:1", **changes}


class Poster(threading.Thread):
    """Posts numbered batches as one agent until stopped; `acknowledged` are those with a 200."""

    def __init__(self, host, name: str, files: int = 20):
        super().__init__(name=name, daemon=True)
        self.host, self.files = host, files
        self.acknowledged = []
        self.refused = []
        self.stopped = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.stopped.is_set():
            body = {"batch_id": f"{self.name}-{number}", "agent": {"id": self.name},
                    "files": [record(path, number * self.files + index + 1)
                              for index, path in enumerate(self.paths(number))]}
            try:
                status, answer = support.request(self.host.url, "/ingest/batch", body, timeout_s=10)
            except (OSError, ValueError):
                time.sleep(0.02)
                continue
            if status == 200 and isinstance(answer, dict) and answer.get("ok"):
                assert answer["processed"] == self.files
                self.acknowledged.append(number)
                number += 1
            else:
                self.refused.append((status, answer))
                time.sleep(0.02)

    def paths(self, number: int) -> list:
        return [f"/media/{self.name}/{number:05}/{index}.jpg" for index in range(self.files)]

    def stop(self) -> None:
        self.stopped.set()
        self.join(30)

    def lost(self) -> list:
        """Paths that were acknowledged, but are not in the catalogue."""
        rows = support.all_rows(self.host.url, "/api/files",
                                {"filter": {"agent": self.name}}, "files")
        have = {row["path"] for row in rows}
        return [path for number in self.acknowledged for path in self.paths(number)
                if path not in have]
