"""Rows of the benchmark that count: which files are opened, how often ffprobe runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from bench_world import BenchError, Host, run_process

FILMS = 12
# ffprobe as it is, writing down a line for each file it is asked about.
COUNTING_FFPROBE = """#!/bin/sh
case "$*" in *file:*) echo "$*" >> '{log}';; esac
exec '{ffprobe}' "$@"
"""
OPENING = re.compile(r"^\d+\.\d+ +open\w*\(.*\) = (\d+)<(.*)>$")
CLOSING = re.compile(r"^\d+\.\d+ +close\((\d+)<(.*)>\) += 0$")


def probed_once(bench) -> None:
    """Films under several names, copied and moved: how often ffprobe is asked about each content.

    The copies are confirmed because they are small enough to be hashed whole in pass 1.
    """
    if not shutil.which("ffprobe"):
        raise BenchError("ffmpeg is not installed here: apt-get install ffmpeg")
    tree, log, agent = bench.new("films"), bench.new("asked"), bench.new("agent")
    fake = bench.new("ffprobe")
    fake.write_text(COUNTING_FFPROBE.format(log=log, ffprobe=shutil.which("ffprobe")))
    fake.chmod(0o755)
    for folder in ("films", "links", "copies"):
        (tree / folder).mkdir(parents=True)
    for number, film in enumerate(sorted(bench.videos(FILMS).glob("*.mkv"))):
        target = tree / "films" / film.name
        shutil.copyfile(film, target)
        os.link(target, tree / "links" / f"the same {number}.mkv")
        shutil.copyfile(film, tree / "copies" / f"a copy {number}.mkv")
    with Host(bench.new("host"), bench.python) as host:
        argv = host.agent_command(tree, agent, bench.python, "--ffprobe", str(fake))
        asked = []
        for moved in (None, None, "films"):
            if moved:
                os.rename(tree / moved, tree / "moved")
                os.rename(tree / "copies", tree / moved)
            run_process(argv)
            asked.append(len(log.read_text().splitlines()))
        bench.check_described(host, 3 * FILMS)
    bench.note(f"ffprobe on {FILMS} films, a hard link and a copy of each",
               f"asked {asked[0]} times; {asked[1] - asked[0]} more after a second scan,"
               f" {asked[2] - asked[1]} more after folders were renamed")
    if asked != [FILMS] * 3:
        raise BenchError(f"ffprobe was asked {asked} times about {FILMS} contents")


def one_reader(bench) -> None:
    """A disk that seeks: how many of its files are open at once, and in which order they are read.

    The kernel must call the disk of the working folder rotational; virtual disks mostly are.
    """
    if not shutil.which("strace"):
        raise BenchError("strace is not installed here: apt-get install strace")
    tree, trace = bench.tree(2000), bench.new("trace")
    if not is_rotational(tree):
        raise BenchError(f"{tree} lies on a disk that does not seek: use --work")
    with Host(bench.new("host"), bench.python) as host:
        argv = host.agent_command(tree, bench.new("agent"), bench.python)
        # A file a thread: with all in one, a call that another thread interrupts is cut in two.
        run_process(["strace", "-ff", "-ttt", "-y", "-s", "0", "-e",
                     "trace=open,openat,openat2,close", "-o", str(trace), *argv])
    lines = [line for part in trace.parent.glob(f"{trace.name}.*")
             for line in part.read_text("utf-8", "replace").splitlines()]
    most, order = openings(sorted(lines, key=time_of_line), str(tree))
    if len(set(order)) != 2000:
        raise BenchError(f"{len(set(order))} files were opened, there are 2000")
    inodes = [os.stat(path).st_ino for path in dict.fromkeys(order)]
    steps = sum(after > before for before, after in zip(inodes, inodes[1:]))
    bench.note("2000 files on a seeking disk", f"{most} open at once at most; {steps} of 1999 steps"
               f" lead to a higher inode; {len(order) - 2000} large ones were read whole later")
    if most > 1:
        raise BenchError(f"{most} files of a seeking disk were open at once")


def is_rotational(folder: Path) -> bool:
    answer = subprocess.run(["lsblk", "-ndo", "ROTA", source_of(folder)], capture_output=True,
                            text=True, check=False)
    return answer.stdout.strip().startswith("1")


def source_of(folder: Path) -> str:
    return subprocess.run(["df", "--output=source", str(folder)], capture_output=True, text=True,
                          check=True).stdout.split()[-1]


def time_of_line(line: str) -> float:
    return float(line.partition(" ")[0])


def openings(lines: list, root: str) -> tuple:
    """(most files below the root that were open at once, their paths in the order of opening)."""
    now, most, order = set(), 0, []
    for line in lines:
        opened, closed = OPENING.match(line), CLOSING.match(line)
        if opened and "O_DIRECTORY" not in line and opened[2].startswith(root + "/"):
            now.add(opened.groups())
            order.append(opened[2])
            most = max(most, len(now))
        elif closed:
            now.discard(closed.groups())
    return most, order
