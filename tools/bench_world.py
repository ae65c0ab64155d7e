"""What the benchmarks stand on: trees and batches from a seed, processes and what they cost.

Absolute times say little on a shared machine. Contenders run in turn on the same tree, and what is
shown are ratios: of elapsed time, and of processor time (user and system, of all processes).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import json
import os
import random
import resource
import shutil
import socket
import sqlite3
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

try:
    import blake3
except ImportError:
    blake3 = None

ROOT = Path(__file__).resolve().parent.parent
EXTENSIONS = (".jpg", ".mp3", ".srt", ".png", ".xml", ".txt", ".flac", ".nfo")
FILES_PER_FOLDER = 50
NEW_HASH = blake3.blake3 if blake3 else hashlib.sha256  # what medialib takes here
TICKS = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A run that went wrong, or whose catalogue is not exact: its numbers are worth nothing."""


class Cost(NamedTuple):
    """Elapsed and processor seconds of one run, and its largest resident memory in MiB."""

    wall_s: float
    cpu_s: float
    memory_mib: float = 0.0

    def plus(self, cpu_s: float) -> Cost:
        return self._replace(cpu_s=self.cpu_s + cpu_s)


# Trees and batches

def make_tree(root: Path, files: int, *, seed: int = 1, one_folder: bool = False,
              empty: bool = False) -> Path:
    """Files of log-normal sizes around 16 KB, 50 to a folder; none of them is a video. Made once:
    a tree that is there already is used again.
    """
    done = root / ".complete"
    if done.exists():
        return root
    pick, blob = random.Random(seed), random.Random(seed + 1).randbytes(1 << 22)
    folder = root
    for number in range(files):
        if number % FILES_PER_FOLDER == 0 and not one_folder:
            album = number // FILES_PER_FOLDER
            folder = root / f"shelf {album % 40:02d}" / f"artist {album % 200:03d}" / f"{album:06d}"
        if number == 0 or not one_folder:
            folder.mkdir(parents=True, exist_ok=True)
        size = 0 if empty else min(int(pick.lognormvariate(9.0, 1.2)), len(blob))
        start = pick.randrange(len(blob) - size + 1)
        path = folder / f"track {number:07d} of a rather long name{pick.choice(EXTENSIONS)}"
        path.write_bytes(blob[start:start + size])
        stamp = int(1.6e18 + pick.random() * 1e17)
        os.utime(path, ns=(stamp, stamp))
    done.mkdir()
    return root


def make_records(agent: int, first: int, count: int) -> list:
    """Records of files that need not exist: paths of about 100 characters, blake3-like hashes."""
    records = []
    for number in range(first, first + count):
        digest = hashlib.sha256(b"%d:%d" % (agent, number)).hexdigest()
        ext = EXTENSIONS[number % len(EXTENSIONS)]
        album = number // FILES_PER_FOLDER
        size, stamp = 20_000 + number % 90_000, 1_600_000_000_000_000_000 + number * 977_123_456
        records.append({
            "kind": "other", "size": size, "mtime": stamp / 1e9, "ctime": stamp / 1e9, "ext": ext,
            "path": f"/srv/media/agent{agent}/shelf {album % 40:02d}/artist {album % 2000:04d}/"
                    f"an album with a long title {album:07d}/track {number:08d}{ext}",
            "inode_key": f"{size}:{stamp}:{number + 11}:{2049 + agent}",
            "hashes": {"algo": "blake3", "sample_size": 65536, "sample_hash": digest,
                       "full_hash": digest},
        })
    return records


def make_bodies(agent: int, first: int, rows: int, batch: int = 500, *, older=False) -> list:
    """Encoded batches as our agent posts them, or as one that knows neither roots nor revs."""
    bodies = []
    for start in range(first, first + rows, batch):
        body = {"batch_id": f"{agent}-{start}-{time.monotonic_ns()}",
                "files": make_records(agent, start, min(batch, first + rows - start))}
        if not older:
            body.update(agent={"id": f"bench-{agent}", "name": f"bench {agent}"}, phase=1,
                        root=f"/srv/media/agent{agent}", removed=[], after_rev=start,
                        rev=start + len(body["files"]))
        bodies.append(json.dumps(body).encode("ascii"))
    return bodies


# Processes

@functools.lru_cache(None)
def programs() -> tempfile.TemporaryDirectory:
    """agent.py and server.py alone in a folder, as a user has them: in the checkout they would load
    the package beside them.
    """
    folder = tempfile.TemporaryDirectory(prefix="medialib-bench-")
    for name in ("agent.py", "server.py"):
        shutil.copy(ROOT / name, folder.name)
    return folder


def program(name: str) -> str:
    return os.path.join(programs().name, name)


def cpu_of(pid: int) -> float:
    """Processor seconds of a running process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / TICKS


def memory_of(pid: int) -> float:
    """The largest resident memory of a running process so far, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


class MemoryWatch:
    """Looks at a process's largest memory until it ends. What `wait4` tells begins with the memory
    of the process that started it.
    """

    def __init__(self, pid: int):
        self.pid = pid
        self.most = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(0.05):
            with contextlib.suppress(OSError):
                self.most = max(self.most, memory_of(self.pid))

    def end(self) -> float:
        self._ended.set()
        self._thread.join()
        return self.most


def run_process(argv: list, *, may_fail: bool = False, env: dict | None = None) -> Cost:
    """Run to the end; BenchError with the last lines of its output when it fails."""
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                   cwd=ROOT, env={**os.environ, **(env or {})})
        watch = MemoryWatch(process.pid)
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - started
        memory_mib = watch.end()
        process.returncode = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
        if status and not may_fail:
            output.seek(0)
            raise BenchError(f"{argv[:4]} failed: ...{output.read()[-1500:].decode()}")
    return Cost(wall_s, used.ru_utime + used.ru_stime, memory_mib)


class Host:
    """A medialib host of its own, with an empty catalogue unless `data` holds one."""

    def __init__(self, data: Path, python: list):
        self.data = data
        data.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = open(data / "bench.out", "wb")  # noqa: SIM115 (closed in __exit__)
        self.process = subprocess.Popen(
            [*python, program("server.py"), "--bind", "127.0.0.1", "--port", str(self.port),
             "--data-dir", str(data), "-q"], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=self.log,
            stderr=self.log)

    def __enter__(self) -> Host:
        for _ in range(200):
            try:
                if self.call("/health", None)["ok"]:
                    return self
            except OSError:
                time.sleep(0.05)
        raise BenchError(f"the host does not answer, see {self.log.name}")

    def __exit__(self, *_) -> None:
        self.process.terminate()
        self.process.wait()
        self.log.close()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)

    def call(self, path: str, body: dict | None, line=None) -> dict:
        packed = None if body is None else json.dumps(body).encode("utf-8")
        return json.loads(self.post(path, packed, line))

    def post(self, path: str, packed: bytes | None, line=None) -> bytes:
        """One call over `line`, or over a connection of its own."""
        own = line or self.connect()
        self.ask(path, packed, own)
        content = self.answer(own)
        if line is None:
            own.close()
        return content

    def ask(self, path: str, packed: bytes | None, line) -> None:
        headers = {"Content-Type": "application/json"} if packed is not None else {}
        line.request("GET" if packed is None else "POST", path, packed, headers)

    def answer(self, line) -> bytes:
        answer = line.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise BenchError(f"{answer.status} {content[:300].decode()}")
        return content

    def cpu_s(self) -> float:
        return cpu_of(self.process.pid)

    def memory_mib(self) -> float:
        return memory_of(self.process.pid)

    def wait_until_idle(self) -> None:
        """Until it spends no processor time any more: the search index is made up to the end."""
        before = -1.0
        while self.cpu_s() - before > 0.03:
            before = self.cpu_s()
            time.sleep(0.7)

    def scan(self, tree: Path, agent_data: Path, python: list) -> Cost:
        """A whole `agent --once`; the processor time is that of agent and host."""
        before = self.cpu_s()
        cost = run_process(self.agent_command(tree, agent_data, python))
        return cost.plus(self.cpu_s() - before)

    def agent_command(self, tree: Path, agent_data: Path, python: list, *options: str) -> list:
        return [*python, program("agent.py"), f"127.0.0.1:{self.port}", str(tree), "--once",
                "--port", "0", "--data-dir", str(agent_data), "-q", *options]


def check_exact(host: Host, tree: Path, new_hash) -> int:
    """How many files the host has of the tree; BenchError unless each is there once, with its size,
    times, identity and (of every 97th) the hash of its bytes.
    """
    wanted = {str(path): path.stat() for path in tree.rglob("*") if path.is_file()}
    seen = set()
    for line in host.post("/api/export", b'{"format": "jsonl"}').decode("utf-8").splitlines():
        row = json.loads(line)
        path, stat = row["path"], wanted.get(row["path"])
        if stat is None or path in seen or row["state"] != "present":
            raise BenchError(f"the catalogue should not hold {path}")
        seen.add(path)
        key = f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}:{stat.st_dev}"
        if (row["size"], row["mtime"], row["inode_key"]) != (stat.st_size, stat.st_mtime, key):
            raise BenchError(f"the catalogue is wrong about {path}")
        if len(seen) % 97 == 0 and row["hashes"]["full_hash"] is not None \
                and row["hashes"]["full_hash"] != new_hash(Path(path).read_bytes()).hexdigest():
            raise BenchError(f"the hash of {path} is wrong")
    if len(seen) != len(wanted):
        raise BenchError(f"{len(wanted)} files in the tree, {len(seen)} in the catalogue")
    return len(seen)


def size_of(catalog: Path) -> int:
    """The bytes of a database in use, also of what is still beside it."""
    with contextlib.closing(sqlite3.connect(catalog)) as db:
        return db.execute("PRAGMA page_count").fetchone()[0] * db.execute(
            "PRAGMA page_size").fetchone()[0]


def size_of_rows(catalog: Path) -> int:
    """The bytes of all tables but the latest 2000 answers of each agent, which every batch adds to,
    and not of free pages: in these a little growth would not show.
    """
    with contextlib.closing(sqlite3.connect(catalog)) as db:
        return db.execute("SELECT sum(pgsize) FROM dbstat WHERE name NOT IN"
                          " (SELECT name FROM sqlite_master WHERE tbl_name = 'batch')"
                          ).fetchone()[0]


def check_posted(host: Host, agents: list, rows: int) -> None:
    """BenchError unless the host holds exactly the records of these agents, each once, both under
    their own names and under that of older agents at our address.
    """
    def said(agent: str, row: dict) -> tuple:
        return (agent, *(row[key] for key in ("kind", "path", "size", "mtime", "ctime", "inode_key",
                                              "ext")), tuple(sorted(row["hashes"].items())))

    wanted = {said(name, record) for number in agents for record in make_records(number, 0, rows)
              for name in (f"bench-{number}", "addr:127.0.0.1")}
    for line in host.post("/api/export", b'{"format": "jsonl"}').decode("utf-8").splitlines():
        row = json.loads(line)
        if row["state"] != "present" or said(row["agent"]["id"], row) not in wanted:
            raise BenchError(f"the catalogue should not hold {row['path']} as it does")
        wanted.remove(said(row["agent"]["id"], row))
    if wanted:
        raise BenchError(f"{len(wanted)} rows were posted and are not in the catalogue")


# Ratios

def show_ratios(title: str, costs: dict, base: str) -> dict:
    """Print each contender's cost and its ratio to `base`, pair by pair; {name: median of wall}."""
    print(f"\n{title}: {len(costs[base])} rounds, ratios to {base} as min/median/max")
    medians = {}
    for name, runs in costs.items():
        wall = [run.wall_s / ref.wall_s for run, ref in zip(runs, costs[base])]
        cpu = [run.cpu_s / max(ref.cpu_s, 0.001) for run, ref in zip(runs, costs[base])]
        medians[name] = statistics.median(wall)
        print(f"  {name:28} {statistics.median(run.wall_s for run in runs):8.2f} s"
              f" {statistics.median(run.cpu_s for run in runs):8.2f} s cpu"
              f" {max(run.memory_mib for run in runs):7.0f} MiB"
              f"   time {spread(wall)}   cpu {spread(cpu)}", flush=True)
    return medians


def spread(values: list) -> str:
    return f"{min(values):.2f}/{statistics.median(values):.2f}/{max(values):.2f}"


def in_turn(contenders: dict, rounds: int) -> dict:
    """{name: [Cost of each round]}: all contenders in every round, the order turning."""
    costs: dict = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            costs[name].append(contenders[name]())
    return costs


def own_cost(work) -> Cost:
    """The cost of calling `work()` in this process."""
    before, started = time.process_time(), time.monotonic()
    work()
    return Cost(time.monotonic() - started, time.process_time() - before,
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def is_importable(python: list, module: str) -> bool:
    return subprocess.run([*python, "-c", f"import {module}"], capture_output=True,
                          check=False).returncode == 0

