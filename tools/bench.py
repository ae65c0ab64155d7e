#!/usr/bin/env python3
"""Measure medialib beside other tools, on trees and batches made from a seed.

    python3 tools/bench.py first                the whole first scan, agent and host
    python3 tools/bench.py table --out FILE     every row, written as a table
    python3 tools/bench.py first --files 10000 --rounds 3
    python3 tools/bench.py large --rows 5000000
    python3 tools/bench.py memory --rows 3000000

Contenders run in turn on the same tree and ratios are shown: absolute times say little. It uses
what is installed and installs nothing; `pip install copyparty blake3 xxhash` into the Python it
runs with and `apt-get install restic borgbackup ffmpeg` give it everybody to compare with. The rows
that scan a tree compare the catalogue with it file by file when they are done, `probe` compares it
with ffprobe's own answers; `ingest` and `large` count what they posted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench_large import large, memory
from bench_reads import one_reader, probed_once
from bench_world import (
    NEW_HASH,
    ROOT,
    BenchError,
    Cost,
    Host,
    check_exact,
    check_posted,
    in_turn,
    is_importable,
    make_bodies,
    make_tree,
    own_cost,
    program,
    run_process,
    show_ratios,
    size_of,
    size_of_rows,
    spread,
)

sys.path.insert(0, str(ROOT))
from medialib.host_link import BATCHES_AT_ONCE  # noqa: E402 (the package beside this folder)
from medialib.mounts import describe_root  # noqa: E402 (the package beside this folder)

try:
    import blake3
except ImportError:
    blake3 = None

WALK = """
import os, sys
def walk(folder):
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                walk(entry.path)
            else:
                os.lstat(entry.path)
walk(sys.argv[1])
"""


class Bench:
    """What all rows share: where to work, how much, with which Python."""

    def __init__(self, options):
        self.files, self.rows, self.rounds = options.files, options.rows, options.rounds
        self.work = Path(options.work or tempfile.mkdtemp(prefix="medialib-bench-"))
        self.work.mkdir(parents=True, exist_ok=True)
        self.python = [sys.executable]
        self.lines: list = []  # (what, result) of the table
        self._count = 0

    def new(self, name: str) -> Path:
        """A path in the working folder that nothing has used yet."""
        self._count += 1
        return self.work / f"{name}-{os.getpid()}-{self._count}"

    def tree(self, files: int, **how) -> Path:
        return make_tree(self.work / "-".join(["tree", str(files), *how]), files, **how)

    def note(self, what: str, result: str) -> None:
        self.lines.append((what, result))
        print(f"{what}: {result}", flush=True)

    # -- scans -----------------------------------------------------------------------------------

    def first_scan(self, tree: Path, python: list, new_hash) -> Cost:
        host_data, agent_data = self.new("host"), self.new("agent")
        with Host(host_data, python) as host:
            cost = host.scan(tree, agent_data, python)
            check_exact(host, tree, new_hash)
        shutil.rmtree(host_data)
        shutil.rmtree(agent_data)
        return cost

    def copyparty(self, tree: Path, history: Path) -> Cost:
        return run_process([*self.python, "-m", "copyparty", "-q", "-i", "127.0.0.1", "-p", "3923",
                            "-v", f"{tree}::r", "--hist", str(history), "-e2dsa", "--exit", "idx"])

    def fresh_copyparty(self, tree: Path) -> Cost:
        history = self.new("copyparty")
        try:
            return self.copyparty(tree, history)
        finally:
            shutil.rmtree(history, ignore_errors=True)

    def walk(self, tree: Path) -> Cost:
        return run_process([*self.python, "-I", "-S", "-c", WALK, str(tree)])

    def backup_tools(self, tree: Path, places: dict, again: bool) -> dict:
        """restic and borg where they are installed; `places` are the stores of a first run."""
        secret = {"RESTIC_PASSWORD": "bench", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
                  "HOME": str(self.work)}

        def run(tool: str) -> Cost:
            place = places[tool] if again else self.new(tool)
            make = {"restic": ["restic", "-q", "-r", str(place), "init"],
                    "borg": ["borg", "init", "-e", "none", str(place)]}[tool]
            save = {"restic": ["restic", "-q", "-r", str(place), "backup", str(tree)],
                    "borg": ["borg", "create", f"{place}::{time.monotonic_ns()}", str(tree)]}[tool]
            if not place.exists():
                run_process(make, env=secret)
                if again:
                    run_process(save, env=secret)
            try:
                return run_process(save, env=secret)
            finally:
                if not again:
                    shutil.rmtree(place)

        return {tool: (lambda tool=tool: run(tool)) for tool in places if shutil.which(tool)}

    def peers(self) -> bool:
        if is_importable(self.python, "copyparty"):
            return True
        print("copyparty is not installed here: pip install copyparty", file=sys.stderr)
        return False

    def first(self) -> None:
        """The first scan, agent and host on one machine."""
        if blake3 is None:
            raise BenchError("blake3 is not installed here: pip install blake3")
        self._first("first scan, blake3", self.python, blake3.blake3)

    def sha256(self) -> None:
        """The first scan with the standard library only."""
        self._first("first scan, sha256 only", [*self.python, "-S"], hashlib.sha256)

    def _first(self, title: str, python: list, new_hash) -> None:
        tree = self.tree(self.files)
        contenders = {"medialib": lambda: self.first_scan(tree, python, new_hash),
                      "walk + stat": lambda: self.walk(tree)}
        if self.peers():
            contenders["copyparty"] = lambda: self.fresh_copyparty(tree)
        contenders.update(self.backup_tools(tree, dict.fromkeys(("restic", "borg")), again=False))
        self._compare(title, contenders, "copyparty")

    def _compare(self, title: str, contenders: dict, base: str) -> None:
        for work in contenders.values():
            work()  # once for the page cache
        costs = in_turn(contenders, self.rounds)
        for ref in (base, "walk + stat"):
            if ref in costs:
                show_ratios(title, costs, ref)
                wall = [a.wall_s / b.wall_s for a, b in zip(costs["medialib"], costs[ref])]
                cpu = [a.cpu_s / b.cpu_s for a, b in zip(costs["medialib"], costs[ref])]
                self.note(f"{title}, {self.files} files",
                          f"time {spread(wall)}, processor {spread(cpu)} of {ref}")

    def unchanged(self) -> None:
        """A scan that finds nothing new: the whole `agent --once` and what the host does."""
        tree, agent_data, history = self.tree(self.files), self.new("agent"), self.new("copyparty")
        with Host(self.new("host"), self.python) as host:
            host.scan(tree, agent_data, self.python)
            contenders = {"medialib": lambda: host.scan(tree, agent_data, self.python),
                          "walk + stat": lambda: self.walk(tree)}
            if self.peers():
                contenders["copyparty"] = lambda: self.copyparty(tree, history)
            if shutil.which("find"):
                contenders["find -printf"] = lambda: run_process(
                    ["find", str(tree), "-printf", "%p %s %T@ %C@ %i\\n"])
            stores = {tool: self.new(tool) for tool in ("restic", "borg")}
            contenders.update(self.backup_tools(tree, stores, again=True))
            self._compare("unchanged scan", contenders, "copyparty")
            check_exact(host, tree, NEW_HASH)

    # -- ingest ----------------------------------------------------------------------------------

    def post(self, host: Host, bodies: list, at_once: int = BATCHES_AT_ONCE) -> None:
        """As many at once, each over a line of its own, as the agents do that are told of."""
        lines = [host.connect() for _ in range(at_once)]
        for number, body in enumerate(bodies):
            line = lines[number % at_once]
            if number >= at_once:
                host.answer(line)
            host.ask("/ingest/batch", body, line)
        for number in range(max(0, len(bodies) - at_once), len(bodies)):
            host.answer(lines[number % at_once])
        for line in lines:
            line.close()

    def post_all(self, host: Host, agents: list, at_once: int = BATCHES_AT_ONCE) -> Cost:
        """The host's cost of the bodies of several agents at once."""
        before, started = host.cpu_s(), time.monotonic()
        with ThreadPoolExecutor(len(agents)) as pool:
            list(pool.map(lambda bodies: self.post(host, bodies, at_once), agents))
        return Cost(time.monotonic() - started, host.cpu_s() - before, host.memory_mib())

    def raw(self, catalog: Path) -> Cost:
        """The rows of a catalogue by executemany into a table with the same columns and indexes."""
        with sqlite3.connect(catalog) as source:
            schema = [row[0] for row in source.execute(
                "SELECT sql FROM sqlite_master WHERE tbl_name = 'file' AND sql IS NOT NULL")]
            rows = source.execute("SELECT * FROM file").fetchall()
        copy = sqlite3.connect(self.new("raw.db"), isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "cache_size=-24576"):
            copy.execute(f"PRAGMA {pragma}")
        for statement in schema:
            copy.execute(statement)
        marks = ",".join("?" * len(rows[0]))

        def insert() -> None:
            copy.execute("BEGIN")
            copy.executemany(f"INSERT INTO file VALUES ({marks})", rows)
            copy.execute("COMMIT")

        cost = own_cost(insert)
        copy.close()
        return cost

    def ingest(self) -> None:
        """Batches of 500 over HTTP, acknowledged after a FULL commit, beside raw executemany."""
        for agents in (1, 4):
            self._ingest(agents)

    def _ingest(self, agents: int) -> None:
        ratios, first, again = [], [], []
        for _ in range(self.rounds):
            each = self.rows // agents
            with Host(self.new("host"), self.python) as host:
                cost = self.post_all(host, [make_bodies(n, 0, each) for n in range(agents)])
                host.wait_until_idle()
                catalog = host.data / "medialib.db"
                raw = self.raw(catalog)
                size = size_of(catalog)
                older = [make_bodies(n, 0, each, older=True) for n in range(agents)]
                self.post_all(host, older, 1)  # who says no name is another agent: its own rows
                host.wait_until_idle()
                grown = size_of_rows(catalog)
                older = [make_bodies(n, 0, each, older=True) for n in range(agents)]
                repost = self.post_all(host, older, 1)
                if size_of_rows(catalog) > grown:
                    raise BenchError("the database grew with rows that it had already")
                summary = host.call("/api/summary", {})
                if summary["files"] != 2 * each * agents:
                    raise BenchError(f"{summary['files']} files, {2 * each * agents} were posted")
                check_posted(host, list(range(agents)), each)
            ratios.append((raw.wall_s / cost.wall_s, raw.cpu_s / cost.cpu_s))
            first.append(each * agents / cost.wall_s)
            again.append((cost.wall_s / repost.wall_s, cost.cpu_s / repost.cpu_s))
        self.note(f"ingest of {self.rows} rows, {agents} agents",
                  f"{spread([r[0] for r in ratios])} of raw executemany's rate, by processor time"
                  f" {spread([r[1] for r in ratios])}; {statistics.median(first):.0f} rows/s;"
                  f" {size / (each * agents):.0f} bytes a row")
        self.note(f"re-post by older agents ({agents})",
                  f"{spread([r[0] for r in again])} × the first ingest's rate, by processor time"
                  f" {spread([r[1] for r in again])}")

    # -- ffprobe ---------------------------------------------------------------------------------

    def probe(self) -> None:
        """Pass 2 beside xargs over the same videos, with as many workers as their disk allows."""
        if not shutil.which("ffprobe") or not shutil.which("ffmpeg"):
            raise BenchError("ffmpeg is not installed here: apt-get install ffmpeg")
        tree = self.videos(120)
        # On a disk that seeks, or may, the agent runs one ffprobe at a time whatever it is told.
        workers = 2 if describe_root(str(tree)).rotational is False else 1
        argv = ["sh", "-c", f"find '{tree}' -name '*.mkv' -print0 | xargs -0 -n1 -P{workers}"
                            " ffprobe -v error -show_format -show_streams -of json >/dev/null"]
        contenders = {
            "medialib": lambda: self._probing_scan(tree, workers, 120),
            "medialib without videos": lambda: self._probing_scan(self.tree(120), workers, 0),
            "xargs": lambda: run_process(argv),
        }
        costs = in_turn(contenders, self.rounds)
        show_ratios("pass 2 on 120 videos, all of both scans", costs, "xargs")
        wall = [(a.wall_s - b.wall_s) / c.wall_s for a, b, c in zip(
            costs["medialib"], costs["medialib without videos"], costs["xargs"])]
        self.note(f"pass 2, 120 videos, {workers} workers",
                  f"{spread(wall)} of xargs (the same scan without videos taken off)")

    def _probing_scan(self, tree: Path, workers: int, videos: int) -> Cost:
        """Each with a host of its own: to one, a disk that another agent has would be carried."""
        with Host(self.new("host"), self.python) as host:
            host.call("/api/settings", {"set": {"agent_max_workers": workers,
                                                "agent_adaptive": False}})
            cost = host.scan(tree, self.new("agent"), self.python)
            self.check_described(host, videos)
        return cost

    def check_described(self, host: Host, wanted: int) -> None:
        """Every video is described; of some, ffprobe is asked the codec again."""
        rows = [json.loads(line) for line in
                host.post("/api/export", b'{"format": "jsonl"}').decode("utf-8").splitlines()]
        described = [row for row in rows if row["kind"] == "video" and row["metadata"]]
        if len(described) != wanted:
            raise BenchError(f"{len(described)} videos are described, {wanted} should be")
        for row in described[:5]:
            argv = ["ffprobe", "-v", "error", "-select_streams", "v", "-of", "csv=p=0",
                    "-show_entries", "stream=codec_name", row["path"]]
            answer = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
            if row["metadata"]["video_codec"] != answer.strip():
                raise BenchError(f"the catalogue is wrong about {row['path']}")

    def videos(self, count: int) -> Path:
        """Videos of two seconds whose bytes differ, so that none is a copy of another."""
        folder = self.work / f"videos-{count}"
        if not folder.exists():
            folder.mkdir()
            subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=duration=2",
                            "-f", "lavfi", "-i", "sine=duration=2", str(folder / "film 000.mkv")],
                           check=True)
            film = (folder / "film 000.mkv").read_bytes()
            for number in range(1, count):
                tail = random.Random(number).randbytes(64)
                (folder / f"film {number:03d}.mkv").write_bytes(film + b"\xec\xc0" + tail)
        return folder

    # -- quickness ---------------------------------------------------------------------------------

    def stats(self) -> None:
        """How long /agent/stats takes while the agent scans."""
        tree = self.tree(self.files)
        with Host(self.new("host"), self.python) as host:
            agent = Host.__new__(Host)
            agent.port = host.port + 1
            process = subprocess.Popen(
                [*self.python, program("agent.py"), f"127.0.0.1:{host.port}", str(tree),
                 "--once", "--port", str(agent.port), "--data-dir", str(self.new("agent")), "-q"],
                cwd=ROOT)
            times = []
            while process.poll() is None:
                started = time.monotonic()
                try:
                    agent.call("/agent/stats", None)
                    times.append(1000 * (time.monotonic() - started))
                except OSError:
                    pass  # not listening yet, or not any more
                time.sleep(0.01)
            check_exact(host, tree, NEW_HASH)
        if len(times) < 20:
            raise BenchError("the scan was over before enough calls were made: use more --files")
        self.note(f"/agent/stats during a scan, {len(times)} calls",
                  f"p50 {statistics.median(times):.1f} ms, p99"
                  f" {statistics.quantiles(times, n=100)[98]:.1f} ms, most {max(times):.1f} ms")

    def version(self) -> None:
        """`agent.py --version`, beside a Python that does nothing."""
        costs = in_turn({
            "agent.py --version": lambda: run_process([*self.python, program("agent.py"),
                                                       "--version"]),
            "python -c pass": lambda: run_process([*self.python, "-c", "pass"]),
        }, max(5, self.rounds))
        show_ratios("start", costs, "python -c pass")
        best = min(cost.wall_s for cost in costs["agent.py --version"])
        self.note("agent.py --version", f"{best:.2f} s at best")


ROWS = {"first": Bench.first, "sha256": Bench.sha256, "unchanged": Bench.unchanged,
        "ingest": Bench.ingest, "probe": Bench.probe, "once": probed_once, "seeking": one_reader,
        "memory": memory, "large": large, "stats": Bench.stats, "version": Bench.version}


def write_table(bench: Bench, out: str | None) -> None:
    for work in ROWS.values():
        try:
            work(bench)
        except BenchError as error:
            bench.note(work.__name__, f"not measured: {error}")
    table = "\n".join(["| what | measured (min/median/max) |", "| --- | --- |",
                       *(f"| {what} | {result} |" for what, result in bench.lines)]) + "\n"
    if out:
        Path(out).write_text(table, "utf-8")
    print(f"\n{table}")


def bench_main(argv: list | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("row", choices=[*ROWS, "table"])
    parser.add_argument("--files", type=int, default=100_000, help="files of a tree")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of a catalogue")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two rounds of 10,000 files and rows")
    parser.add_argument("--work", help="a folder for trees and catalogues; trees are used again")
    parser.add_argument("--out", help="the file for the table")
    options = parser.parse_args(argv)
    if options.quick:
        options.files, options.rows, options.rounds = 10_000, 20_000, 2
    bench = Bench(options)
    try:
        if options.row == "table":
            write_table(bench, options.out)
        else:
            ROWS[options.row](bench)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        if not options.work:
            shutil.rmtree(bench.work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(bench_main())
