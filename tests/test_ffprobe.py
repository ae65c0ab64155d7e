"""ffprobe in its cage: real videos described, hostile files and hostile ffprobes contained."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc

import pytest

from medialib import ffprobe
from medialib.ffprobe import (
    PROBE_OUTPUT_BYTES,
    STREAMS_JSON_CHARS,
    Ffprobe,
    find_ffprobe,
    metadata_of,
    parse_probe_output,
    probe_file,
)
from medialib.leash import Leash
from medialib.probe_run import ProbeFailed, ProbeRun
from tests import support
from tests.processes import members

FAKE = r'''#!{python}
import json, os, signal, subprocess, sys, time
if "-version" in sys.argv:
    print("ffprobe version 9.9-fake Copyright")
    sys.exit(0)
name = os.path.basename(sys.argv[-1])
good = {{"streams": [{{"codec_type": "video", "codec_name": "x", "width": 1, "height": 2}}],
        "format": {{"format_name": "f", "filename": sys.argv[-1]}}}}
if "hang" in name:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code])
    with open(os.environ["TMP"] + "/pids", "a") as pids:
        pids.write(f"{{os.getpid()}}\n{{child.pid}}\n")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
if "orphan" in name:
    child = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(os.environ["TMP"] + "/pids", "a") as pids:
        pids.write(f"{{child.pid}}\n")
if "silent" in name:
    os.close(1)
    os.close(2)
    time.sleep(600)
for number, word in ((1, "flood_out"), (2, "flood_err")):
    while word in name:
        os.write(number, b"x" * 65536)
if "chatty" in name:
    os.write(2, b"warning\n" * 100000)
if "crash" in name:
    os.kill(os.getpid(), signal.SIGSEGV)
text = json.dumps(good)
if "half" in name:
    text = text[:40]
if "deep" in name:
    text = "[" * 100000
if "nested" in name:
    text = '{{"format": {{"tags": ' + "[" * 60 + "]" * 60 + "}}}}"
if "empty" in name:
    text = "{{}}"
if "list" in name:
    text = "[1]"
print(text)
print(os.getpriority(os.PRIO_PROCESS, 0), sorted(os.environ), file=sys.stderr)
'''


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A program that picks its behaviour from the file's name."""
    path = tmp_path / "ffprobe"
    path.write_text(FAKE.format(python=sys.executable))
    path.chmod(0o755)
    monkeypatch.setenv("TMP", str(tmp_path))
    found = find_ffprobe(str(path))
    assert found == Ffprobe(str(path), "9.9-fake")
    return found


@pytest.fixture(scope="module")
def real():
    support.need("ffprobe", "ffmpeg")
    return find_ffprobe(None)


def media(tmp_path, name):
    path = os.path.join(str(tmp_path), name)
    with open(path, "wb") as file:
        file.write(b"x")
    return path


def failure(probe, path, **options):
    with pytest.raises(ProbeFailed) as caught:
        probe_file(probe, path, **options)
    assert caught.value.message
    caught.value.message.encode("utf-8")
    return caught.value.error_class


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as state:
            return state.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def own_answer(path):
    """What ffprobe says when a person asks it."""
    command = ["ffprobe", "-v", "quiet", "-print_format", "json", "-show_format", "-show_streams"]
    done = subprocess.run([*command, str(path)], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def test_real_videos(real, videos):
    """Every container and codec is let through and described as ffprobe itself does."""
    kinds = set()
    for path in sorted(videos.iterdir()):
        found = probe_file(real, str(path))
        own = own_answer(path)
        del own["format"]["filename"]
        pictures = [one for one in own["streams"] if one["codec_type"] == "video"
                    and not one["disposition"]["attached_pic"]]
        video = pictures[0] if pictures else {}
        assert found["video_codec"] == video.get("codec_name"), path
        assert (found["width"], found["height"]) == (video.get("width"), video.get("height"))
        assert found["audio_codecs"] == [
            one["codec_name"] for one in own["streams"] if one["codec_type"] == "audio"]
        assert found["container"] == own["format"]["format_name"]
        assert found["duration"] == pytest.approx(float(own["format"]["duration"]))
        assert found["bitrate"] == int(own["format"]["bit_rate"])
        assert json.loads(found["streams_json"]) == own
        assert str(videos) not in found["streams_json"]
        kinds.add((found["container"], found["video_codec"]))
    assert len(kinds) >= 10


def test_more_containers(real, tmp_path):
    inputs = ["-f", "lavfi", "-i", "testsrc=d=0.1:s=720x576:r=25"]
    for name, options in {
        "a.mxf": ["-c:v", "mpeg2video"], "a.nut": [], "a.gxf": ["-c:v", "mpeg2video"],
        "a.wtv": ["-c:v", "mpeg2video"], "a.vob": ["-c:v", "mpeg2video"], "a.m2ts": [],
        "a.rm": ["-c:v", "rv10"], "a.asf": [], "a.ivf": ["-c:v", "libvpx"], "a.f4v": [],
        "a.m2v": ["-c:v", "mpeg2video"], "a.h264": [], "a.hevc": [], "a.3g2": ["-c:v", "mpeg4"],
        "a.divx": ["-f", "avi"],
    }.items():
        path = tmp_path / name
        command = ["ffmpeg", "-v", "error", "-nostdin", *inputs, "-pix_fmt", "yuv420p", *options]
        if subprocess.run([*command, str(path)], stderr=subprocess.DEVNULL).returncode == 0:
            assert probe_file(real, str(path))["video_codec"], name


ODD_NAMES = ("-i", "concat:x", "subfile,,start,0,end,9,,:y", "img%03d.png", "new\nline", "a'b\"c",
             "\udce9latin", "pipe:0", "http:x", "n" * 251, "*?[x]", " ")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names(real, videos, tmp_path, name):
    path = os.path.join(str(tmp_path), name + ".mkv" if name != "-i" else name)
    shutil.copyfile(videos / "mjpeg_flac.mkv", path)
    assert probe_file(real, path)["video_codec"] == "mjpeg"
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        assert probe_file(real, os.path.basename(path))["video_codec"] == "mjpeg"
    finally:
        os.chdir(here)


def test_attached_pictures_are_not_the_video():
    streams = [
        {"codec_type": "video", "codec_name": "png", "disposition": {"attached_pic": 1}},
        {"codec_type": "audio", "codec_name": "aac"}, {"codec_type": "audio"},
        {"codec_type": "video", "codec_name": "h264", "width": 7, "height": 8, "duration": "2.5"},
        {"codec_type": "video", "codec_name": "mjpeg", "width": 1, "height": 1},
    ]
    found = metadata_of({"streams": streams, "format": {"duration": "N/A", "bit_rate": "5"}})
    assert (found["video_codec"], found["width"], found["height"]) == ("h264", 7, 8)
    assert found["audio_codecs"] == ["aac"]
    assert (found["duration"], found["bitrate"]) == (2.5, 5)
    found = metadata_of({"streams": streams[:2], "format": {}})
    assert (found["video_codec"], found["width"]) == (None, None)


@pytest.mark.parametrize("value", [
    '"N/A"', "1e400", "NaN", "-Infinity", "-5", '"-5"', "1" * 400, '"' + "1" * 400 + '"', "[]",
    "{}", "null", "true", '"nan"', '"inf"', '"1e400"', '""', '"\\ud800"', '"٣"', '"1_0"',
])
def test_impossible_values_become_null(value):
    text = ('{"format": {"duration": %s, "bit_rate": %s, "format_name": [], "x": %s},'
            ' "streams": [{"codec_type": "video", "width": %s, "height": %s, "codec_name": 5}]}')
    found = metadata_of(parse_probe_output((text % ((value,) * 5)).encode()))
    for key in ("bitrate", "width", "height", "container", "video_codec"):
        assert found[key] is None, key
    assert found["duration"] is None
    found["streams_json"].encode("utf-8")
    json.loads(found["streams_json"], parse_constant=pytest.fail)
    assert "Infinity" not in found["streams_json"]


def test_odd_strings_become_valid():
    answer = parse_probe_output(b'{"format": {"tags": {"a\\ud800": "\\u0000x\xff"}}}')
    assert answer["format"]["tags"] == {"a\ufffd": "\ufffdx\ufffd"}


@pytest.mark.parametrize("streams", [
    [{"codec_type": "audio", "codec_name": "x", "tags": {"t": "y" * 1000}}] * 5000,
    [{"codec_type": "video", "codec_name": "x", "extradata": "y" * 1_000_000}],
    [{"codec_type": "video", **{f"key{number}": "y" * 300 for number in range(5000)}}],
])
def test_streams_json_is_bounded(streams):
    found = metadata_of({"streams": streams, "format": {"tags": {"t": "z" * 900_000}}})
    assert len(found["streams_json"]) <= STREAMS_JSON_CHARS
    assert json.loads(found["streams_json"])["streams"]


@pytest.mark.parametrize("unit", ["{},", "[],", "1000,", '"":1,', "[", '{"a":'])
def test_many_small_values_cost_no_memory(unit):
    """As many as fit into the output that is taken: they would be fifty times their size."""
    start = '{"format": {' if ":1" in unit else '{"streams": ['
    output = start.encode() + unit.encode() * (PROBE_OUTPUT_BYTES // len(unit))
    tracemalloc.start()
    try:
        with pytest.raises(ProbeFailed) as caught:
            parse_probe_output(output)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.error_class == "too much output"


def test_a_thousand_streams_are_understood():
    stream = {"codec_type": "audio", "codec_name": "aac",
              "disposition": dict.fromkeys("abcdefghij", 0),
              "tags": dict.fromkeys("klmnopqrst", "text"), **dict.fromkeys(map(str, range(40)), 1)}
    answer = {"streams": [stream] * 1000, "format": {"format_name": "matroska,webm"}}
    found = metadata_of(parse_probe_output(json.dumps(answer, indent=4).encode()))
    assert found["container"] == "matroska,webm"
    assert len(found["audio_codecs"]) == 1000


@pytest.mark.parametrize(("name", "error_class"), [
    ("crash", "crashed"), ("half", "invalid"), ("deep", "invalid"), ("nested", "invalid"),
    ("list", "invalid"), ("empty", "not a video"), ("flood_out", "too much output"),
    ("flood_err", "too much output"),
])
def test_fakes_that_fail(fake, tmp_path, name, error_class):
    assert failure(fake, media(tmp_path, name), max_output=1 << 20) == error_class


def test_a_chatty_ffprobe_is_still_understood(fake, tmp_path):
    assert probe_file(fake, media(tmp_path, "chatty"))["width"] == 1


@pytest.mark.parametrize("name", ["hang", "silent"])
def test_the_deadline_ends_the_whole_group(fake, tmp_path, name):
    start = time.monotonic()
    assert failure(fake, media(tmp_path, name), deadline_s=1) == "timeout"
    assert time.monotonic() - start < 3
    if name == "hang":
        pids = (tmp_path / "pids").read_text().split()
        assert len(pids) == 2
        support.wait_until(lambda: not any(map(is_alive, pids)), 5, "the group is gone")


def test_a_child_left_behind_by_a_good_probe_is_ended(fake, tmp_path):
    assert probe_file(fake, media(tmp_path, "orphan"))["height"] == 2
    [pid] = (tmp_path / "pids").read_text().split()
    support.wait_until(lambda: not is_alive(pid), 5, "the child is gone")


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 0)])
def test_a_leash_ends_the_group_of_its_own_child_alone(first, second):
    leashes = [Leash(), Leash()]
    children = [subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 600 & wait"],
                                 pass_fds=leash.pass_fds, start_new_session=True)
                for leash in leashes]
    groups = [child.pid for child in children]
    try:
        for leash, group in zip(leashes, groups):
            leash.tie(group)
        leashes[first].drop()
        assert children[first].wait(30) == -signal.SIGKILL
        support.wait_until(lambda: not members(groups[first]), 5, "its group is gone")
        assert children[second].poll() is None
        assert len(members(groups[second])) == 2
    finally:
        for leash, child in zip(leashes, children):
            leash.drop()
            child.wait(30)


@pytest.mark.parametrize("python", ["oldest", "newest"])
def test_killed_while_it_waits_it_leaves_nothing(fake, tmp_path, python):
    """kill -9 of the prober alone, several probes under way: no process of theirs lives on."""
    program = (
        "import sys, threading; from medialib.ffprobe import Ffprobe, probe_file\n"
        "for path in sys.argv[2:]:\n"
        "    threading.Thread(target=probe_file, args=(Ffprobe(sys.argv[1], '1'), path)).start()")
    paths = [media(tmp_path, f"hang {number}") for number in range(3)]
    interpreter = support.oldest_python() if python == "oldest" else support.newest_python()
    prober = subprocess.Popen([interpreter, "-c", program, fake.path, *paths], cwd=support.ROOT)
    pids = tmp_path / "pids"
    try:
        support.wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 6, 60)
        assert all(map(is_alive, pids.read_text().split()))
    finally:
        prober.kill()
        prober.wait(30)
    support.wait_until(lambda: not any(map(is_alive, pids.read_text().split())), 3, "all gone")


def test_stopping_is_quick(fake, tmp_path):
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    start = time.monotonic()
    assert failure(fake, media(tmp_path, "hang"), stop=stop) == "stopped"
    assert time.monotonic() - start < 2


def test_reading_with_threads(fake, tmp_path, monkeypatch):
    """What Windows uses gives the same answers."""
    monkeypatch.setattr(ProbeRun, "_read_with_selector", ProbeRun._read_with_threads)
    assert probe_file(fake, media(tmp_path, "good"))["width"] == 1
    assert failure(fake, media(tmp_path, "flood_out"), max_output=1 << 20) == "too much output"
    assert failure(fake, media(tmp_path, "hang"), deadline_s=1) == "timeout"


def test_the_process_is_poor_and_nice(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://secret")
    monkeypatch.setenv("HOME", "/home/me")
    run = ProbeRun([fake.path, media(tmp_path, "good")], 20, 1 << 20, None).finish()
    words = run.messages.decode()
    assert "proxy" not in words
    assert "HOME" not in words
    assert "LC_ALL" in words
    assert words.startswith("19 ")


def test_nothing_leaks(fake, tmp_path):
    def count():
        return len(os.listdir("/proc/self/fd")), len(zombies())

    before = count()
    for name in ("good", "crash", "flood_out", "silent", "half"):
        path = media(tmp_path, name)
        with contextlib.suppress(ProbeFailed):
            probe_file(fake, path, deadline_s=0.5, max_output=1 << 18)
    with pytest.raises(ProbeFailed):
        probe_file(Ffprobe("/nowhere/ffprobe", "1"), path)
    assert count() == before


def zombies():
    """Children of ours that ended and were not waited for."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid() and state == b"Z":
            found.append(pid)
    return found


def test_no_ffprobe_is_a_value(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(ffprobe, "_PROBE_FOLDERS", ())
    assert find_ffprobe(None) is None
    assert find_ffprobe(str(tmp_path / "gone")) is None
    script = tmp_path / "broken"
    script.write_text("not a program")
    script.chmod(0o755)
    assert find_ffprobe(str(script)) is None
    assert failure(Ffprobe(str(script), "1"), media(tmp_path, "f")) == "missing"
    assert failure(Ffprobe(str(tmp_path / "gone"), "1"), media(tmp_path, "f")) == "missing"


def test_only_regular_files_are_probed(fake, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    os.symlink(media(tmp_path, "good"), tmp_path / "link")
    for name in ("fifo", "link", "gone", "."):
        assert failure(fake, str(tmp_path / name)) == "unreadable"
    assert probe_file(fake, str(tmp_path / "link"), follow=True)["width"] == 1


def test_garbage_is_not_a_video(real, tmp_path):
    path = tmp_path / "garbage.mkv"
    path.write_bytes(os.urandom(50_000))
    assert failure(real, str(path)) in ("not a video", "refused format")
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert failure(real, str(tmp_path / "empty.mp4")) == "not a video"


def hostile_files(folder, secret):
    """Files that make an unguarded ffprobe open the secret beside them."""
    yield "hls.mkv", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n"
    yield "hls_file.mp4", f"#EXTM3U\n#EXTINF:1,\nfile:{secret}\n#EXT-X-ENDLIST\n"
    yield "concat.mkv", f"ffconcat version 1.0\nfile {secret.name}\n"
    yield "dash.mp4", (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011">'
        f'<Period><AdaptationSet><Representation id="1" bandwidth="1" mimeType="video/mp4">'
        f"<BaseURL>{secret}</BaseURL></Representation></AdaptationSet></Period></MPD>")
    yield "sdp.avi", "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"
    yield "img%03d.png", "\x89PNG\r\n"
    yield "url.mkv", "[InternetShortcut]\nURL=http://127.0.0.1:9/x\n"


def test_hostile_files_open_nothing_else(real, videos, tmp_path):
    """The proof by strace: of all files below the folder only the named one is opened, and no
    connection is made."""
    support.need("strace")
    secret = tmp_path / "secret.ts"
    shutil.copyfile(videos / "mpeg2_mp2.ts", secret)
    shutil.copyfile(secret, tmp_path / "img001.png")
    log = tmp_path / "trace"
    wrapper = tmp_path / "traced"
    wrapper.write_text(
        f"#!/bin/sh\nexec strace -f -s 300 -o {log} -e trace=%file,%network {real.path} \"$@\"\n")
    wrapper.chmod(0o755)
    tried = 0
    for name, text in hostile_files(tmp_path, secret):
        path = tmp_path / name
        path.write_bytes(text.encode("latin-1"))
        error_class = failure(Ffprobe(str(wrapper), "1"), str(path))
        assert error_class in ("refused format", "not a video"), name
        calls = log.read_text(errors="replace")
        opened = set(re.findall(r'open(?:at)?\([^"]*"([^"]*)"', calls))
        below = {one for one in opened if one.startswith(str(tmp_path))}
        # A pattern's name alone makes ffprobe think of images, which are refused unopened.
        assert below == (set() if "%" in name else {str(path)}), name
        assert "connect(" not in calls
        tried += 1
    assert tried == 7
    # The same file does open the secret where nothing guards it: the case is a real one.
    command = ["strace", "-f", "-s", "300", "-o", str(log), "-e", "trace=%file", "ffprobe",
               "-v", "quiet", "-show_format"]
    subprocess.run([*command, str(tmp_path / "concat.mkv")], stdout=subprocess.DEVNULL)
    assert "secret.ts" in log.read_text()
