"""Describe one media file with ffprobe, which may be missing, hang, crash, flood or lie.

Whatever goes wrong is a ProbeFailed with a class. That no ffprobe is installed is a value:
`find_ffprobe` gives None.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import threading
from typing import NamedTuple

from .late import shutil
from .probe_run import ProbeFailed, ProbeRun, clean_probe_text

# Containers that hold their own data. Playlists, manifests, image sequences and scripts are left
# out because they make ffprobe open other files.
PROBE_FORMATS = (
    "mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg",
    "mpegvideo", "flv", "live_flv", "asf", "asf_o", "ogg", "mxf", "rm", "dv", "nut", "wtv", "gxf",
    "nsv", "nuv", "ivf", "h264", "hevc", "m4v", "av1", "obu",
)
PROBE_DEADLINE_S = 60.0
PROBE_OUTPUT_BYTES = 4 << 20
PROBE_VALUES = 100_000  # in one answer: a thousand streams have fewer; each takes some 170 bytes
PROBE_DEPTH = 24
STREAMS_JSON_CHARS = 256 << 10  # one record must not fill a batch
VERSION_DEADLINE_S = 20.0
_PROBE_FOLDERS = (  # where systems without a package manager keep it
    "/usr/local/bin", "/opt/homebrew/bin", "/opt/bin", "/usr/lib/jellyfin-ffmpeg",
    "/var/packages/ffmpeg/target/bin",
)
_PROBE_INTEGER = re.compile(r"[0-9]{1,18}\Z")
_PROBE_SECONDS = re.compile(r"[0-9]{1,10}(\.[0-9]{1,30})?\Z")
_NOT_MEDIA_WORDS = ("invalid data found", "moov atom not found", "end of file", "not found for")
_UNREADABLE_WORDS = ("no such file", "permission denied", "input/output error", "is a directory")


class Ffprobe(NamedTuple):
    """An ffprobe that answers: where it is, and what it calls itself."""

    path: str
    version: str


def find_ffprobe(explicit: str | None = None) -> Ffprobe | None:
    """The given ffprobe, else the one of the PATH or of usual folders; None if none answers."""
    if explicit:
        candidates = [shutil.which(explicit) or explicit]
    else:
        candidates = [shutil.which("ffprobe")]
        candidates += [shutil.which("ffprobe", path=folder) for folder in _PROBE_FOLDERS]
    for path in candidates:
        version = _version_of(os.path.abspath(path)) if path else None
        if version:
            return Ffprobe(os.path.abspath(path), version)
    return None


def _version_of(path: str) -> str | None:
    try:
        run = ProbeRun([path, "-version"], VERSION_DEADLINE_S, 1 << 20, None).finish()
    except ProbeFailed:
        return None
    first = clean_probe_text(run.output.decode("utf-8", "replace").partition("\n")[0]).strip()
    if run.exit_code != 0 or not first:
        return None
    words = first.split()
    return (words[2] if first.startswith("ffprobe version ") and len(words) > 2 else first)[:100]


def probe_command(path: str, native_path: str) -> list:
    """What is run for one file. "file:" and the absolute path keep a name from being an option,
    a protocol or a pattern; the two lists keep a file from naming others.
    """
    return [
        path, "-v", "error", "-print_format", "json", "-show_format", "-show_streams",
        "-protocol_whitelist", "file", "-format_whitelist", ",".join(PROBE_FORMATS),
        "-i", f"file:{os.path.abspath(native_path)}",
    ]


def probe_file(ffprobe: Ffprobe, native_path: str, *, deadline_s: float = PROBE_DEADLINE_S,
               max_output: int = PROBE_OUTPUT_BYTES, stop: threading.Event | None = None,
               follow: bool = False) -> dict:
    """The metadata of one file as DESIGN's record has it; what is unknown is null.

    {duration (s), container, video_codec, audio_codecs [one per audio stream], width, height,
    bitrate (bit/s), streams_json (ffprobe's answer as a string, without the path)}
    A container without video has a null video_codec. Raises ProbeFailed. `stop` ends it early.
    """
    _require_regular(native_path, follow)
    command = probe_command(ffprobe.path, native_path)
    run = ProbeRun(command, deadline_s, max_output, stop).finish()
    if run.exit_code != 0:
        raise _failure_of(run, native_path)
    return metadata_of(parse_probe_output(run.output))


def _require_regular(native_path: str, follow: bool) -> None:
    """ffprobe would wait at a FIFO and follow a link."""
    try:
        mode = (os.stat if follow else os.lstat)(native_path).st_mode
    except (OSError, ValueError) as error:
        raise ProbeFailed("unreadable", clean_probe_text(str(error))) from None
    if not stat.S_ISREG(mode):
        raise ProbeFailed("unreadable", "is not a regular file")


def _failure_of(run: ProbeRun, native_path: str) -> ProbeFailed:
    text = run.messages.decode("utf-8", "replace")
    shown = os.fsencode(os.path.abspath(native_path)).decode("utf-8", "replace")
    text = clean_probe_text(text.replace(f"file:{shown}: ", "").replace(shown, "the file"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    message = lines[-1][:300] if lines else f"ffprobe ended with code {run.exit_code}"
    low = text.lower()
    if run.exit_code < 0 or run.exit_code >= 128:
        return ProbeFailed("crashed", f"ffprobe was ended by signal {abs(run.exit_code) & 127}")
    if "not on whitelist" in low:
        return ProbeFailed("refused format", message)
    if any(word in low for word in _UNREADABLE_WORDS):
        return ProbeFailed("unreadable", message)
    if any(word in low for word in _NOT_MEDIA_WORDS):
        return ProbeFailed("not a video", message)
    return ProbeFailed("crashed", message)


# The answer

def parse_probe_output(output: bytes) -> dict:
    """ffprobe's JSON as {"streams": [dict…], "format": dict}, with valid values only."""
    if sum(map(output.count, (b",", b"[", b"{"))) > PROBE_VALUES:
        raise ProbeFailed("too much output", f"more than {PROBE_VALUES} values")
    try:
        answer = json.loads(
            output.decode("utf-8", "replace"), strict=False, parse_int=_whole_number,
            parse_float=_finite_number, parse_constant=lambda word: None,
        )
        answer = _clean_probe_value(answer, 0)
    except (ValueError, RecursionError) as error:
        raise ProbeFailed("invalid", clean_probe_text(str(error))[:300]) from None
    if not isinstance(answer, dict):
        raise ProbeFailed("invalid", "the answer is not an object")
    streams, about = answer.get("streams"), answer.get("format")
    streams = [one for one in streams if isinstance(one, dict)] if isinstance(streams, list) else []
    about = about if isinstance(about, dict) else {}
    if not streams and not about:
        raise ProbeFailed("not a video", "ffprobe found no streams")
    about.pop("filename", None)
    return {"streams": streams, "format": about}


def _clean_probe_value(value, depth: int):
    if depth > PROBE_DEPTH:
        raise ValueError("the answer is nested too deeply")
    if isinstance(value, str):
        return clean_probe_text(value)
    if isinstance(value, list):
        return [_clean_probe_value(one, depth + 1) for one in value]
    if isinstance(value, dict):
        return {
            clean_probe_text(key): _clean_probe_value(one, depth + 1) for key, one in value.items()
        }
    return value


def _whole_number(digits: str) -> int | None:
    return int(digits) if len(digits) <= 18 else None  # a longer one does not fit a database


def _finite_number(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def metadata_of(answer: dict) -> dict:
    """The record's metadata from a parsed answer."""
    streams, about = answer["streams"], answer["format"]
    video = next((one for one in streams if _is_video(one)), {})
    sounds = [one for one in streams if one.get("codec_type") == "audio"]
    duration = _seconds_of(about.get("duration"))
    return {
        "duration": _seconds_of(video.get("duration")) if duration is None else duration,
        "container": _text_of(about.get("format_name")),
        "video_codec": _text_of(video.get("codec_name")),
        "audio_codecs": [one["codec_name"] for one in sounds if _text_of(one.get("codec_name"))],
        "width": _count_of(video.get("width")),
        "height": _count_of(video.get("height")),
        "bitrate": _count_of(about.get("bit_rate")),
        "streams_json": _streams_json(streams, about),
    }


def _is_video(stream: dict) -> bool:
    """A cover picture is not the video."""
    disposition = stream.get("disposition")
    attached = disposition.get("attached_pic") if isinstance(disposition, dict) else 0
    return stream.get("codec_type") == "video" and not attached


def _text_of(value) -> str | None:
    return value[:200] if isinstance(value, str) and value not in ("", "N/A") else None


def _seconds_of(value) -> float | None:
    """A duration below some three hundred years; everything else is unknown."""
    return float(value) if _PROBE_SECONDS.match(str(value)) else None


def _count_of(value) -> int | None:
    """A positive whole number that fits any column; everything else is unknown."""
    text = str(value) if isinstance(value, (str, int)) else ""
    return int(text) or None if _PROBE_INTEGER.match(text) else None


def _streams_json(streams: list, about: dict) -> str:
    """ffprobe's answer as one string; the tags, then the later streams give way to its bound."""
    packed = _packed_streams(streams, about)
    if len(packed) <= STREAMS_JSON_CHARS:
        return packed
    streams = [_without_details(stream) for stream in streams]
    about = _without_details(about)
    while len(packed) > STREAMS_JSON_CHARS:
        packed = _packed_streams(streams, about)
        streams = streams[:len(streams) // 2]
        if not streams:
            about = {}
    return packed


def _packed_streams(streams: list, about: dict) -> str:
    answer = {"streams": streams, "format": about}
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":"))


def _without_details(part: dict) -> dict:
    """The plain values of a stream or format, bounded."""
    return {
        key[:100]: value[:200] if isinstance(value, str) else value
        for key, value in list(part.items())[:100] if not isinstance(value, (list, dict))
    }
