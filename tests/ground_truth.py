"""What the catalogue must say, found out without medialib: own walk, own hashes, own ffprobe.

Nothing here may import medialib. Only the lists of extensions and patterns, which are settings,
are taken from the host's own answer.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import re
import stat
import subprocess
import time
from pathlib import Path

from tests import support

try:
    import blake3
    import xxhash
except ImportError:  # a test that needs them says so
    blake3 = xxhash = None

KIND_SETTINGS = (
    ("video", "media_extensions"), ("audio", "audio_extensions"), ("image", "image_extensions"),
    ("subtitle", "subtitle_extensions"), ("xml", "xml_extensions"), ("other", "other_extensions"),
)
HASHED_FIELDS = ("algo", "sample_size", "sample_hash", "full_hash")
GUESSED_CONTAINERS = ("amrnb", "amrwb")  # raw sound, for which ffprobe takes many a random file
TIME_TOLERANCE_S = 1e-6
SHOWN_DIFFERENCES = 30


def name_as_text(name: bytes) -> str:
    """DESIGN's names: UTF-8 where it is; any other byte 0x80…0xff is U+EF80…U+EFFF, and so are
    the bytes of those characters themselves, so that it can be turned back.
    """
    text = ""
    for letter in name.decode("utf-8", "surrogateescape"):
        code = ord(letter)
        if 0xDC80 <= code <= 0xDCFF:
            text += chr(0xEF00 + code - 0xDC00)
        elif 0xEF80 <= code <= 0xEFFF:
            text += "".join(chr(0xEF00 + byte) for byte in letter.encode("utf-8"))
        else:
            text += letter
    return text


def new_hash(algo: str):
    makers = {
        "sha256": hashlib.sha256,
        "blake3": blake3.blake3 if blake3 else None,
        "xxhash64": xxhash.xxh64 if xxhash else None,
    }
    if makers[algo] is None:
        support.lack(f"{algo} is not installed beside the tests")
    return makers[algo]()


def hashes_of(path: bytes, algo: str, sample_size: int) -> dict:
    """The sample layout of DESIGN §3 and the full hash."""
    size = os.stat(path).st_size
    whole = new_hash(algo)
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            whole.update(chunk)
        full = whole.hexdigest()
        sample = full
        if size > 3 * sample_size:
            parts = new_hash(algo)
            for start in (0, size // 2 - sample_size // 2, size - sample_size):
                file.seek(start)
                parts.update(file.read(sample_size))
            sample = parts.hexdigest()
    return {"algo": algo, "sample_size": sample_size, "sample_hash": sample, "full_hash": full}


def matches(name: str, patterns: list) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)


def kind_of(name: str, ext: str, config: dict) -> str:
    excluded = [other.lower().lstrip(".") for other in config["junk_exclude_extensions"]]
    if ext.lstrip(".") not in excluded and (
            matches(name, config["junk_patterns"]) or re.fullmatch(r"\.r[0-9][0-9]+", ext)):
        return "junk"
    for kind, setting in KIND_SETTINGS:
        if ext and ext.lstrip(".") in [other.lower().lstrip(".") for other in config[setting]]:
            return kind
    return "unknown"


def walk(root: Path, config: dict):
    """(native path, stat) of every regular file that belongs into the catalogue."""
    start = os.fsencode(str(root))
    device = os.lstat(start).st_dev
    waiting = [start]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            found = os.lstat(entry.path)
            if stat.S_ISDIR(found.st_mode):
                if not matches(name_as_text(entry.name), config["ignore_dirs"]) and (
                        found.st_dev == device):
                    waiting.append(entry.path)
            elif stat.S_ISREG(found.st_mode):
                yield entry.path, found


def truth_of(root: Path, config: dict, *, algo: str, hashed: bool = True) -> dict:
    """{path text: what every field of its row must be} for one root."""
    expected = {}
    for path, found in walk(root, config):
        text = name_as_text(path)
        name = text.rsplit("/", 1)[1]
        ext = os.path.splitext(name)[1].lower()
        expected[text] = {
            "name": name, "ext": ext, "kind": kind_of(name, ext, config), "size": found.st_size,
            "mtime": found.st_mtime, "ctime": found.st_ctime, "state": "present",
            "inode_key": f"{found.st_size}:{found.st_mtime_ns}:{found.st_ino}:{found.st_dev}",
        }
        if hashed:
            expected[text]["hashes"] = hashes_of(path, algo, config["hash_sample_size"])
        if expected[text]["kind"] == "video":
            expected[text]["metadata"] = ffprobe_says(path, found)
    return expected


PROBED = {}  # (inode, size, mtime) → answer: a test asks again after every change of its tree


def ffprobe_says(path: bytes, found: os.stat_result):
    key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    if key not in PROBED:
        PROBED[key] = run_ffprobe(path)
    return PROBED[key]


def run_ffprobe(path: bytes):
    """The simplified metadata from a plain call of ffprobe; None for what is no video."""
    command = [b"ffprobe", b"-v", b"error", b"-show_format", b"-show_streams", b"-of", b"json",
               b"file:" + path]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, timeout=60, check=False)
    if done.returncode:
        return None
    answer = json.loads(done.stdout.decode("utf-8", "replace"))
    streams = answer.get("streams", [])
    moving = [stream for stream in streams if stream.get("codec_type") == "video"
              and not stream.get("disposition", {}).get("attached_pic")]
    sounds = [stream for stream in streams if stream.get("codec_type") == "audio"]
    if not streams or answer["format"]["format_name"] in GUESSED_CONTAINERS:
        return None
    first = moving[0] if moving else {}
    return {
        "duration": number(answer["format"].get("duration")),
        "bitrate": number(answer["format"].get("bit_rate")),
        "container": answer["format"]["format_name"],
        "video_codec": first.get("codec_name"), "width": first.get("width"),
        "height": first.get("height"),
        "audio_codecs": [stream.get("codec_name") for stream in sounds],
        "streams": [(stream["index"], stream.get("codec_type"), stream.get("codec_name"))
                    for stream in streams],
    }


def number(text):
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def differences(rows: list, expected: dict) -> list:
    """One readable line for each way in which the catalogue's rows are not the truth."""
    found, seen = [], set()
    for row in rows:
        path = row["path"]
        if path in seen:
            found.append(f"{path!r}: twice in the catalogue")
        seen.add(path)
        if path not in expected:
            found.append(f"{path!r}: in the catalogue, but not on disk ({row['state']})")
            continue
        found += [f"{path!r}: {text}" for text in row_differences(row, expected[path])]
    found += [f"{path!r}: on disk, but not in the catalogue" for path in expected
              if path not in seen]
    return found


def row_differences(row: dict, wanted: dict):
    for field, value in wanted.items():
        if field == "metadata":
            yield from metadata_differences(row.get("metadata"), value)
        elif field == "hashes":
            hashes = row.get("hashes") or {}
            for part in HASHED_FIELDS:
                if hashes.get(part) != value[part]:
                    yield f"hashes.{part} is {hashes.get(part)!r}, must be {value[part]!r}"
        elif field in ("mtime", "ctime"):
            if abs(row[field] - value) > TIME_TOLERANCE_S:
                yield f"{field} is {row[field]!r}, must be {value!r}"
        elif row[field] != value:
            yield f"{field} is {row[field]!r}, must be {value!r}"


def metadata_differences(said, wanted):
    if wanted is None or said is None:
        if (wanted is None) != (said is None):
            yield f"metadata is {said!r}, must be {wanted!r}"
        return
    for field, value in wanted.items():
        if field == "streams":
            with contextlib.suppress(KeyError, TypeError, ValueError):
                streams = json.loads(said["streams_json"])
                streams = streams["streams"] if isinstance(streams, dict) else streams
                told = [(stream["index"], stream.get("codec_type"), stream.get("codec_name"))
                        for stream in streams]
                if told == value:
                    continue
            yield f"metadata.streams_json is {said.get('streams_json')!r}, must hold {value!r}"
        elif isinstance(value, float) and said[field] is not None:
            if abs(said[field] - value) > 0.001:
                yield f"metadata.{field} is {said[field]!r}, must be {value!r}"
        elif said[field] != value:
            yield f"metadata.{field} is {said[field]!r}, must be {value!r}"


def present_rows(url: str, agent: str) -> list:
    """The rows of one agent that the catalogue calls present, with ffprobe's streams."""
    rows = support.all_rows(url, "/api/files", {"filter": {"agent": agent, "state": "present"}},
                            "files")
    for row in rows:
        if row.get("metadata"):  # a list of files has no room for the streams of each
            answer = support.post(url, "/api/file", {"id": row["id"]})
            row["metadata"] = answer["file"]["metadata"]
    return rows


def check_catalogue(url: str, agent: str, roots: list, *, algo: str, wait_s: float = 0,
                    context: str = "") -> dict:
    """Fail unless the agent's present rows are exactly what lies under these roots.

    `wait_s`: how long the catalogue may take to get there.
    """
    config = support.get(url, "/ingest/config")
    expected = {}
    for root in roots:
        expected.update(truth_of(root, config, algo=algo))
    end = time.monotonic() + wait_s
    found = differences(present_rows(url, agent), expected)
    while found and time.monotonic() < end:
        time.sleep(0.3)
        found = differences(present_rows(url, agent), expected)
    more = len(found) - SHOWN_DIFFERENCES
    text = "\n  ".join(found[:SHOWN_DIFFERENCES] + ([f"… and {more} more"] if more > 0 else []))
    assert not found, f"{len(found)} differences {context}:\n  {text}"
    return expected


def fingerprint(root: Path) -> str:
    """A digest of names, contents, times, modes and link counts: proof that nothing was changed.

    Access times are left out: reading a file may change them.
    """
    digest = hashlib.sha256()
    for folder, names, leaves in os.walk(os.fsencode(str(root))):
        names.sort()
        for name in sorted(names + leaves) + [b"."]:
            path = os.path.join(folder, name)
            found = os.lstat(path)
            facts = [path, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns,
                     found.st_ino, found.st_nlink, found.st_uid, found.st_gid]
            digest.update(repr(facts).encode())
            if stat.S_ISLNK(found.st_mode):
                digest.update(os.readlink(path))
            elif stat.S_ISREG(found.st_mode):
                with open(path, "rb") as file:
                    for chunk in iter(lambda file=file: file.read(1 << 20), b""):
                        digest.update(chunk)
    return digest.hexdigest()
