"""What every test may use: required tools, interpreters, waiting, plain HTTP."""

from __future__ import annotations

import contextlib
import functools
import glob
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

try:
    import pwd
except ImportError:
    pwd = None

ROOT = Path(__file__).resolve().parent.parent
LONG = os.environ.get("MEDIALIB_LONG", "") not in ("", "0")
ON_CI = os.environ.get("CI", "") not in ("", "0", "false")
USER_HOME = pwd.getpwuid(os.getuid()).pw_dir if pwd else os.path.expanduser("~")
PYTHON_PLACES = (
    "{home}/.pyenv/versions/*/bin", "{home}/.local/share/uv/python/*/bin", "{home}/*conda*/bin",
    "{home}/*conda*/envs/*/bin", "/opt/*conda*/bin", "/opt/python/*/bin", "/usr/local/bin",
    "/usr/bin",
)


def lack(what: str) -> None:
    """This test cannot run here: skipped at home, a failure on CI."""
    if ON_CI:
        pytest.fail(f"{what}: on CI nothing may be missing")
    pytest.skip(what)


def need(*tools: str) -> None:
    """Go on only if these commands exist."""
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        lack(f"{', '.join(missing)} not installed")


def need_root() -> None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        lack("needs to run as root")


@functools.lru_cache(maxsize=None)
def interpreters() -> dict:
    """{(3, minor): path} of every usable Python 3.8 or newer on this machine."""
    homes = {os.path.expanduser("~"), USER_HOME}
    folders = [folder for place in PYTHON_PLACES for home in sorted(homes)
               for folder in sorted(glob.glob(place.format(home=home)))]
    found = {sys.version_info[:2]: getattr(sys, "_base_executable", sys.executable)}
    for folder in os.environ.get("PATH", "").split(os.pathsep) + folders:
        for path in sorted(glob.glob(os.path.join(folder, "python3.*"))):
            match = re.fullmatch(r"python3\.(\d+)", os.path.basename(path))
            version = (3, int(match.group(1))) if match else (0, 0)
            if version >= (3, 8) and version not in found and is_usable(path, version):
                found[version] = path
    return dict(sorted(found.items()))


def is_usable(path: str, version: tuple) -> bool:
    program = f"import sqlite3, ssl, zlib, sys; print(sys.version_info[:2] == {version})"
    try:
        done = subprocess.run([path, "-I", "-S", "-c", program], capture_output=True, timeout=20,
                              check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.stdout.strip() == b"True"


def oldest_python() -> str:
    """A Python 3.8, the oldest that medialib promises to run on."""
    if (3, 8) not in interpreters():
        lack("no Python 3.8 on this machine")
    return interpreters()[(3, 8)]


def newest_python() -> str:
    return list(interpreters().values())[-1]


def wait_until(predicate, timeout_s: float = 60, what: str = "", pause_s: float = 0.05):
    """The predicate's first true value; fails when none comes in time."""
    end = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s} s: {what or predicate}")
        time.sleep(pause_s)


SLACK_S = 10  # what a busy machine may add to any bound; what waits for a fault takes longer


def assert_prompt(action, within_s: float, worst_s: float = SLACK_S, tries: int = 20) -> list:
    """What `action` needs is below `within_s`, in seconds of each try; no try takes `worst_s`.

    A machine with other work may hold up one try or another, but not all of them. Whoever waits
    for something, be it but once, needs more than the worst.
    """
    times = []
    while not times or (min(times) >= within_s and len(times) < tries):
        started = time.monotonic()
        action()
        times.append(time.monotonic() - started)
        assert times[-1] < worst_s, f"{times[-1]:.2f} s"
    assert min(times) < within_s, f"{min(times):.3f} s at best in {tries} tries"
    return times


def assert_in_time(measure, within_s: float, tries: int = 3) -> None:
    """`measure` gives the seconds that something took: a busy machine may hold it up, but not
    every time; what waits where it must not does so each time.
    """
    times = []
    while not times or times[-1] >= within_s:
        assert len(times) < tries, f"took {times} s, not {within_s} s"
        times.append(measure())


def free_port() -> int:
    """One of those that no system hands out by itself, to a client of another test for instance,
    before our own program takes it.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port


def request(url: str, path: str, body=None, *, method: str = "", headers=(), timeout_s=30) -> tuple:
    """(status, JSON answer or text) of one request, with errors as answers and without proxies."""
    data = None if body is None else json.dumps(body).encode("ascii")
    sent = urllib.request.Request(url + path, data=data, method=method or None)
    if data is not None:
        sent.add_header("Content-Type", "application/json")
    for name, value in dict(headers).items():
        sent.add_header(name, value)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(sent, timeout=timeout_s) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            status, text = error.code, error.read()
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text.decode("utf-8", "replace")


def post(url: str, path: str, body=None, **options) -> dict:
    """The answer to a POST that must succeed."""
    status, answer = request(url, path, {} if body is None else body, **options)
    assert status == 200, f"POST {path}: {status} {answer}"
    return answer


def get(url: str, path: str, **options):
    """The answer to a GET that must succeed."""
    status, answer = request(url, path, **options)
    assert status == 200, f"GET {path}: {status} {answer}"
    return answer


def all_rows(url: str, path: str, body: dict, key: str) -> list:
    """Every row of a paged call."""
    rows, after = [], None
    while True:
        answer = post(url, path, dict(body, limit=500, after=after))
        rows += answer[key]
        after = answer.get("next")
        if after is None:
            return rows


def cached_folder(name: str) -> Path:
    """A folder kept between runs, for what takes long to make."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base, "medialib-tests", name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir(), f"medialib-tests-{os.getuid()}", name)
        folder.mkdir(parents=True, exist_ok=True)
    return folder
