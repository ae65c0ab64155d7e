"""A fake ffprobe that behaves as the file's name says: nothing of it stops, fills or orphans us."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from pathlib import Path

import pytest

from tests import media, processes, support
from tests.faults import harness

FAKE = r'''#!{python}
import json, os, signal, subprocess, sys, time
if "-version" in sys.argv:
    print("ffprobe version 7.0-fake Copyright")
    sys.exit(0)
name = os.path.basename(sys.argv[-1])
if "-i" in sys.argv:
    name = os.path.basename(sys.argv[sys.argv.index("-i") + 1])
good = {{"format": {{"format_name": "matroska,webm", "duration": "1.5", "bit_rate": "1000"}},
        "streams": [{{"index": 0, "codec_type": "video", "codec_name": "h264", "width": 64,
                     "height": 48, "disposition": {{"attached_pic": 0}}}}]}}
how = name.split(" ")[0].split(".")[0]
if how == "hang":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
        "medialib-fake-grandchild", os.path.abspath(sys.argv[0])])
    time.sleep(600)
elif how == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
elif how == "exit":
    sys.exit(7)
elif how == "flood":
    while True:
        os.write(1, b"x" * 65536)
elif how == "floodjson":
    os.write(1, b'{{"streams": [')
    while True:
        os.write(1, b'{{"index": 0}},' * 4000)
elif how == "wide":
    os.write(1, b'{{"streams": [')
    for _ in range(8):
        sys.stdout.buffer.write(b"{{}}," * 100000)
    print("{{}}]}}")
elif how == "stderr":
    end = time.time() + 2
    while time.time() < end:
        os.write(2, b"e" * 65536)
    print(json.dumps(good))
elif how == "half":
    print(json.dumps(good)[:40])
elif how == "deep":
    print("[" * 200000 + "]" * 200000)
elif how == "na":
    good["format"].update(duration="N/A", bit_rate="1e400")
    good["streams"][0].update(width="N/A", height=-5)
    print(json.dumps(good))
elif how == "types":
    print(json.dumps({{"format": [1], "streams": {{"a": 1}}}}))
elif how == "numbers":
    good["format"].update(duration="-1e308", bit_rate=str(10 ** 40))
    good["streams"][0].update(width=10 ** 30, height=1e308)
    print(json.dumps(good))
elif how == "bytes":
    os.write(1, b"\xff\xfe\x00garbage")
elif how == "nul":
    good["streams"][0]["codec_name"] = "h\x00264\ud800"
    print(json.dumps(good))
elif how == "empty":
    pass
else:
    print(json.dumps(good))
'''
KINDS = ["crash", "exit", "flood", "floodjson", "wide", "stderr", "half", "deep", "na", "types",
         "numbers", "bytes", "nul", "empty"]


def fake_ffprobe(folder):
    path = folder / "ffprobe"
    path.write_text(FAKE.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def tree_of(world, kinds) -> media.Tree:
    root = world.folder / "media" / "first"
    root.mkdir(parents=True)
    for kind in kinds:
        (root / f"{kind} film.mkv").write_bytes(os.urandom(3000))
    (root / "good film.mkv").write_bytes(b"good")
    return media.Tree(root, harness.SEED)


def peak_of(agent) -> int:
    try:
        with open(f"/proc/{agent.process.pid}/status", encoding="ascii") as status:
            return next((int(line.split()[1]) >> 10 for line in status
                         if line.startswith("VmHWM")), 0)
    except OSError:
        return 0


def test_every_way_ffprobe_can_fail(world):
    one = tree_of(world, KINDS)
    host = world.host().start()
    agent = world.once(host, one.root, "--ffprobe", fake_ffprobe(world.folder))
    agent.start(ready=False)
    peak, started = 0, time.monotonic()
    while agent.running():
        peak = max(peak, peak_of(agent))
        assert time.monotonic() - started < 240, agent.output()
        time.sleep(0.02)
    assert agent.wait() in harness.DONE, agent.output()
    assert "Traceback" not in agent.output(), agent.output()
    assert peak < 160, f"{peak} MiB"
    rows = harness.rows_by_path(host, "box")
    assert len(rows) == len(KINDS) + 1
    assert all(row["hashes"]["full_hash"] for row in rows.values())
    assert rows[str(one.root / "good film.mkv")]["metadata"]["video_codec"] == "h264"
    for kind in ("crash", "exit", "flood", "floodjson", "wide", "half", "deep", "types", "bytes",
                 "empty"):
        assert not rows[str(one.root / f"{kind} film.mkv")]["metadata"], kind
    odd = rows[str(one.root / "na film.mkv")]["metadata"]
    assert odd is None or (odd["duration"] is None and odd["bitrate"] is None), odd
    world.sound(host, agent)


def test_hanging_ffprobe_and_its_grandchild(world):
    """The agent can be asked to end, in five seconds, and leaves no process behind."""
    one = tree_of(world, ["hang"])
    host = world.host().start()
    fake = fake_ffprobe(world.folder)
    agent = world.agent(host, one.root, "--ffprobe", fake).start()
    support.wait_until(lambda: agent.stats()["phase"] == 2 and grandchildren(fake), 60)
    support.assert_prompt(agent.stats, 0.1)

    def ended() -> float:
        if not agent.running():
            agent.start()
            support.wait_until(lambda: grandchildren(fake), 60)
        started = time.monotonic()
        agent.process.terminate()  # only the agent itself
        assert agent.wait(60) == 0
        return time.monotonic() - started

    support.assert_in_time(ended, 5)
    support.wait_until(lambda: not grandchildren(fake), 5, "no orphan of ffprobe")


def running_with(words: bytes) -> list:
    """The processes that have this in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if words in path.read_bytes():
                found.append(path.parent.name)
    return found


def grandchildren(fake: Path) -> list:
    """Processes that this fake ffprobe, and none of another test or run, left behind."""
    return running_with(b"medialib-fake-grandchild\0" + os.fsencode(fake))


def hanging(fake: Path, root: Path) -> bool:
    """Whether ffprobe and what it started are at work on the file that makes it hang."""
    return bool(running_with(os.fsencode(root) + b"/hang") and grandchildren(fake))


@pytest.mark.parametrize("side", ["agent", "host"])
def test_killed_while_ffprobe_hangs(world, side):
    """kill -9 of the one that scans, and of nothing else: no process of ffprobe lives on; a second
    start describes everything, as if nothing had been.
    """
    one = tree_of(world, ["hang"])
    fake = fake_ffprobe(world.folder)
    host = world.host(environment={"PATH": f"{fake.parent}:{os.environ['PATH']}"}).start()
    program = host
    if side == "host":
        host.post("/api/agents/set", {"agent": "local", "roots": [str(one.root)]})
    if side == "agent":
        program = world.agent(host, one.root, "--ffprobe", fake).start()
    support.wait_until(lambda: hanging(fake, one.root), 60, "an ffprobe that hangs")
    program.process.kill()
    program.process.wait(60)
    support.wait_until(lambda: not grandchildren(fake) and not running_with(
        os.fsencode(one.root) + b"/hang"), 3, "no orphan of ffprobe")
    fake.write_text(FAKE.format(python=sys.executable).replace('"hang"', '"no more"'))
    program.start()
    name = "local" if side == "host" else host.agent_id("box")
    support.wait_until(lambda: described(host, name) == 2, 60, "all described", 0.3)


def described(host, agent: str) -> int:
    rows = support.all_rows(host.url, "/api/files", {"filter": {"agent": agent}}, "files")
    return sum(bool(row["metadata"]) for row in rows)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_hanging_ffprobe_is_ended_by_its_deadline(world):
    one = tree_of(world, ["hang"])
    host = world.host().start()
    fake = fake_ffprobe(world.folder)
    agent = world.once(host, one.root, "--ffprobe", fake)
    agent.start(ready=False)
    assert agent.wait(600) in harness.DONE
    assert grandchildren(fake) == []
    assert len(harness.rows_by_path(host, "box")) == 2


GARBAGE = """#!/bin/sh
case "$*" in *-version*) echo "ffprobe version 7.0-sh Copyright"; exit 0;; esac
echo "Invalid data found when processing input" >&2
exit 1
"""


@pytest.mark.timeout(1800)
def test_garbage_videos(world):
    """Ten thousand in the long set: each is asked about once, named, and costs no memory."""
    count = 10_000 if support.LONG else 300
    root = world.folder / "media"
    for number in range(count):
        folder = root / str(number // 100)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.mkv").write_bytes(b"garbage %d" % number)
    fake = world.folder / "ffprobe"
    fake.write_text(GARBAGE)
    fake.chmod(0o755)
    host = world.host().start()
    agent = world.once(host, root, "--ffprobe", fake)
    media.grow_old(root)
    agent.start(ready=False)
    peak, started = 0, time.monotonic()
    while agent.running():
        peak = max(peak, peak_of(agent))
        time.sleep(0.02)
    seconds = time.monotonic() - started
    assert agent.wait() == 0, agent.output()  # an answer, if no good one: nothing is left over
    assert "Traceback" not in agent.output()
    errors = host.agents()["box"]["errors"]["summary"]
    assert [(error["class"], error["count"]) for error in errors] == [("not a video", count)]
    rows = harness.rows_by_path(host, "box")
    assert len(rows) == count
    assert all(row["hashes"]["full_hash"] and not row["metadata"] for row in rows.values())
    tracer = processes.Tracer(world.folder / "trace")
    agent.prefix = tracer.prefix
    world.scan(agent)
    assert tracer.probed() == []
    assert tracer.opened(root) == []
    harness.figures(garbage_videos=count, seconds=round(seconds), peak_mib=peak)
    assert peak < 100, f"{peak} MiB"


def test_videos_on_slow_storage(world):
    """Every opening and reading of them takes its time: all are described, the agent answers."""
    support.need("ffprobe")
    one = world.tree("first", 12, 3)
    host = world.host().start()
    calls, delay_us = "openat,read,pread64,lseek", 100_000 if support.LONG else 15_000
    paths = [part for path in one.files() for part in ("-P", str(path))]
    agent = world.agent(host, one.root, prefix=[
        "strace", "-f", "-qqq", "-o", "/dev/null", *paths, "-e", f"trace={calls}",
        "-e", f"inject={calls}:delay_enter={delay_us}"]).start()
    times, described_at = [], time.monotonic() + 150
    while time.monotonic() < described_at:
        asked = time.monotonic()
        stats = agent.stats()
        times.append(time.monotonic() - asked)
        if not stats["active"] and stats["seen"]:
            break
        time.sleep(0.05)
    harness.figures(slow_storage_slowest_stats_s=round(max(times), 2))
    assert max(times) < 2, "strace and a busy machine included"
    assert sorted(times)[len(times) // 2] < 0.5, "strace included"
    world.exact(host, "box", one.root, wait_s=harness.SETTLE_S)
    agent.kill()


def test_no_ffprobe_and_then_one(world):
    one = world.tree("first", 10, 2)
    host = world.host().start()
    missing = world.folder / "no such ffprobe"
    agent = world.once(host, one.root, "--ffprobe", missing)
    assert agent.run() in (0, 1, 2, 3), agent.output()
    assert "Traceback" not in agent.output()
    assert "ffprobe" in agent.output()
    world.scan(world.once(host, one.root))
    world.exact(host, "box", one.root)


def test_ffprobe_removed_half_way(world):
    one = tree_of(world, [f"stderr{number}" for number in range(1)])
    for number in range(25):
        (one.root / f"film {number}.mkv").write_bytes(os.urandom(100))
    host = world.host().start()
    fake = fake_ffprobe(world.folder)
    agent = world.agent(host, one.root, "--ffprobe", fake).start()
    support.wait_until(lambda: agent.stats()["seen_videos"] >= 3, 30)
    fake.unlink()
    support.wait_until(lambda: agent.stats()["phase"] == 0, 60)
    assert agent.running()
    assert "Traceback" not in agent.output()
    fake_ffprobe(world.folder)
    agent.post("/agent/scan_now")

    def described() -> bool:
        rows = harness.rows_by_path(host, "box").values()
        # The fake is a script: those that were just being started may have failed in other ways.
        return sum(bool(row["metadata"]) for row in rows) >= len(rows) - 5

    support.wait_until(described, 60, "all described", 0.5)
    agent.kill()


def test_hostile_media_open_nothing_else(world):
    """Playlists and manifests with a film's name, and names that mean something to ffmpeg."""
    support.need("ffprobe", "strace")
    root = world.folder / "media"
    root.mkdir()
    secret = world.folder / "secret.ts"
    secret.write_bytes(b"G" * 188 * 20)
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    contents = {
        "playlist.mkv": hls, "remote.mp4": hls.replace(f"file://{secret}", "http://127.0.0.1:9/a"),
        "concat.avi": f"ffconcat version 1.0\nfile {secret}\n",
        "dash.mpd.mp4": f'<MPD><Period><BaseURL>{secret}</BaseURL></Period></MPD>',
        "sdp.mkv": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\n"
                   "m=video 5004 RTP/AVP 96",
        "img%03d.png.mkv": "x", "concat:a|b.mkv": "x", "subfile,,start,0,end,9,,:b.mkv": "x",
        "-i.mkv": "x", "pipe:0.mkv": "x", "http:127.0.0.1.mkv": "x", "img001.png.mkv": "y",
        "ref.mov": "\0\0\0\x20ftypqt  " + str(secret),
    }
    for name, content in contents.items():
        (root / name).write_text(content)
    host = world.host().start()
    output = world.folder / "trace"
    agent = world.once(host, root)
    agent.prefix = ["strace", "-f", "-qqq", "-s", "4096", "-e",
                    "trace=open,openat,connect,sendto,execve", "-o", str(output)]
    world.scan(agent)
    lines = output.read_text("utf-8", "replace").splitlines()
    assert len([line for line in lines if "execve" in line and "ffprobe" in line]) >= 5
    assert [line for line in lines if "secret.ts" in line and "execve" not in line] == []
    assert [line for line in lines if "connect(" in line and "htons(9)" in line] == []
    assert len(harness.rows_by_path(host, "box")) == len(contents)
