#!/usr/bin/env python3
"""medialib's agent, whole in this one file: copy it to a machine and run `python3 agent.py HOST`.

Made from medialib/ by tools/amalgamate.py: change the modules there, not this file. Each section
is one module's code, verbatim: low level first, the command line last. `line` is where it begins
here, `there` where in the module: that maps a traceback back.

    line  there  section
     126      7  medialib/base.py: What every other module may use: the version, the logger, the ports and the errors.
     176     13  medialib/late.py: Modules of the standard library that are slow to import and that many runs do not need.
     219     13  medialib/launch.py: Running a program that is one large file without the syntax tree of that file.
     250     11  medialib/allocator.py: How memory is kept and given back, for programs that run for a long time.
     298     24  medialib/app_folder.py: The data folder: where it is, who may use it, its lock, its private files and the log.
     584     19  medialib/scan_common.py: What a scan says about one file: its name as text, its kind, its identity, its record.
     943     25  medialib/settings.py: The one table of settings: name, type, default, bounds, unit and help.
    1183     11  medialib/walk_names.py: The names in one huge folder, in less than half of the memory of a list of them.
    1254     17  medialib/walk.py: The walk through a root: one listing per folder, in the order everything else relies on.
    1608     19  medialib/mounts.py: What a root lies on: its file system, volume, disk and free space.
    1924     25  medialib/hashing.py: Hashes of files: blake3 and xxhash64 where they are installed, sha256 everywhere.
    2129     18  medialib/leash.py: A leash for a child process: when we die, however we die, the kernel kills its whole group.
    2165     19  medialib/probe_run.py: One run of a program we do not trust: its own group, a deadline, bounded output, no remains.
    2345     20  medialib/ffprobe.py: Describe one media file with ffprobe, which may be missing, hang, crash, flood or lie.
    2578     22  medialib/sqlite_store.py: SQLite: opening with our pragmas, whole transactions, migrations, checked copies.
    2914     17  medialib/http_body.py: Bodies from strangers: gunzip and JSON with bounds on bytes, memory, depth and number of objects.
    3125     15  medialib/http_gate.py: Who may talk to us (DESIGN §8): peer address, Host, Origin, Sec-Fetch-Site; addresses and TLS.
    3334     15  medialib/http_deadline.py: A connection of http.client on which one deadline bounds everything a call does.
    3475     15  medialib/http_json.py: What handlers of requests see: Request, Reply, StreamReply, HttpError, Router; heads.
    3730     12  medialib/http_answer.py: From a Reply to the bytes of an answer: JSON, headers that keep a page safe, gzip.
    3810     23  medialib/http_listener.py: Accepting connections: how many, from whom, for how long. Knows nothing of HTTP.
    4194     11  medialib/http_shares.py: What all connections share: bytes, the memory of parsed JSON, places for endless answers.
    4284     31  medialib/http_server.py: JSON over HTTP: one conversation per connection, with a bound on everything.
    4625     28  medialib/http_client.py: Asking another medialib: JSON over http.client, with one deadline for the whole call.
    5001     11  medialib/progress.py: What a scan shows a person: one live line on a terminal, a plain line now and then elsewhere.
    5118     10  medialib/cache_schema.py: The agent's own tables: what it knows of each file, what is not delivered yet, how far it came.
    5254     12  medialib/cache_changes.py: What a scan tells the cache and what the cache tells a scan: plain values, no SQL.
    5405     10  medialib/cache_batch.py: One batch for the host, and its records as the JSON texts that go over the wire.
    5496     10  medialib/index_writer.py: Applies changes to the index: rows, their numbers, tombstones, and the sums of each root.
    5802      8  medialib/cache_feed.py: Rows on their way from the scan to the host: just stored, so that nobody need read them again.
    5849     20  medialib/cache_outbox.py: What is not delivered yet, in order, and what the host has acknowledged.
    6207     18  medialib/cache_roots.py: The agent's roots and folders: which disk is which root, and what each root holds in sum.
    6521     23  medialib/agent_cache.py: The agent's memory: what it knows of every file, in SQLite, so that nothing is read twice.
    6873     11  medialib/scan_buffer.py: What a scan found, on its way into the cache, and how failures are put into words.
    6938     11  medialib/scan_plan.py: What a scan is told: its settings in a form that is quick to use, its counters, its brakes.
    7081     24  medialib/hash_window.py: Reading files for their sample hash: chunks in a bounded window, results in the walk's order.
    7404     17  medialib/root_volume.py: One name for one disk: a volume that is named in two ways, and disks that share one name.
    7528     18  medialib/root_check.py: Is the folder at a root's path really the root? Absence is not deletion.
    7636     13  medialib/scan_moves.py: Where the content of a file that is new at its path was known before: a move, or a hard link.
    7717     15  medialib/scan_seal.py: A folder's seal: what its files looked like when all of them were as the index says.
    7765     39  medialib/scan_pipeline.py: Pass 1: walk a root, skip what is unchanged, have the rest read, note what is gone.
    8136     31  medialib/scan_passes.py: Pass 2 (ffprobe for videos) and the full hashes of large files, both driven by the cache.
    8444     17  medialib/scan_run.py: One scan of all roots: pass 1 over each, then ffprobe, then the full hashes of large files.
    8654     13  medialib/host_copy.py: What the host holds of a root, beside what this agent knows of it: comparing and taking over.
    8775     20  medialib/delivery.py: Delivery: what the cache holds goes to the host in order, and is marked only once acknowledged.
    9086     19  medialib/host_link.py: The agent's line to its host: hello, batches and the lists for comparing, over HTTP.
    9280     21  medialib/agent_service.py: The running agent: scans now and then, delivers, says hello, and answers what it is asked.
    9661     10  medialib/stop_signals.py: Being asked to end: SIGINT, SIGTERM and SIGHUP.
    9691     15  medialib/agent_identity.py: Who this agent is: a random id in the data folder, apart from the cache, so that clearing the
    9753     12  medialib/agent_routes.py: The agent's control port: the calls of the original description, as JSON.
    9818     27  medialib/plain_scan.py: The agent on a Python without SQLite: it remembers nothing and goes by what the host remembers.
   10043     46  medialib/agent_cli.py: The agent's command line: python agent.py HOST [ROOT…].
"""
# sha256 of all below this line: 001e7b460b93f35138b895526aef62ef406892cba1d0ea1f11ff1a9b486b724b

from __future__ import annotations

import bisect
import collections
import contextlib
import errno
import fnmatch
import functools
import gc
import heapq
import importlib
import io
import itertools
import json
import logging
import math
import operator
import os
import re
import select
import signal
import stat
import struct
import sys
import threading
import time
import zlib
from collections import deque
from json.encoder import encode_basestring_ascii
from typing import NamedTuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:  # everything else
    msvcrt = None
try:
    import blake3
except ImportError:
    blake3 = None
try:
    import xxhash
except ImportError:
    xxhash = None
try:
    import sqlite3
except ImportError:  # some routers and NAS leave it out of their Python
    sqlite3 = None
try:
    import resource
except ImportError:  # Windows
    resource = None


# =================================================================================================
# medialib/base.py, from its line 7
# What every other module may use: the version, the logger, the ports and the errors.
# =================================================================================================

VERSION = "1.0.0"
PROTOCOL = 1  # raised only when old and new peers could misunderstand each other
HOST_PORT = 8765
AGENT_PORT = 8877

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_LEFT_OVER = 3  # done, but unreadable files or undelivered batches remain
EXIT_BUSY = 4  # another instance holds the data folder
EXIT_INTERRUPTED = 130

log = logging.getLogger("medialib")


class MedialibError(Exception):
    """A failure that is explained to the person in one sentence, without a traceback."""

    exit_code = EXIT_FAILED


class UsageError(MedialibError):
    """A command line or setting that cannot be meant."""

    exit_code = EXIT_USAGE


class FolderBusyError(MedialibError):
    """Another running instance holds this data folder."""

    exit_code = EXIT_BUSY


class StoreError(MedialibError):
    """A database of ours cannot be opened, read or written."""


class DamagedStoreError(StoreError):
    """The database file is there, but is not a sound database."""


class NewerStoreError(StoreError):
    """The database was written by a newer medialib than this one."""


# =================================================================================================
# medialib/late.py, from its line 13
# Modules of the standard library that are slow to import and that many runs do not need.
# =================================================================================================

_ASKED_FOR_EACH_FILE = frozenset(["blake2b", "sha256"])


class LateModule:
    """Stands for a module."""

    def __init__(self, name: str):
        self._late_name = name
        self._late_module = None

    def __getattr__(self, attribute: str):
        if self._late_module is None:
            self._late_module = __import__(self._late_name)
        value = getattr(self._late_module, attribute)
        if attribute in _ASKED_FOR_EACH_FILE:
            setattr(self, attribute, value)  # found without this detour from now on
        return value


argparse = LateModule("argparse")
concurrent = LateModule("concurrent.futures")
ctypes = LateModule("ctypes")
email = LateModule("email.utils")
gzip = LateModule("gzip")
hashlib = LateModule("hashlib")
http = LateModule("http.client")
ipaddress = LateModule("ipaddress")
platform = LateModule("platform")
random = LateModule("random")
selectors = LateModule("selectors")
shutil = LateModule("shutil")
socket = LateModule("socket")
ssl = LateModule("ssl")
subprocess = LateModule("subprocess")
urllib = LateModule("urllib.parse")
uuid = LateModule("uuid")


# =================================================================================================
# medialib/launch.py, from its line 13
# Running a program that is one large file without the syntax tree of that file.
# =================================================================================================

class Launched(Exception):
    """Ends the run of the file; never shown to anybody."""


def launch(main) -> None:
    """Exit with the result of `main()`, called when Python has freed the file's syntax tree.

    That is so when an exception has ended the file, and what Python does with an exception that
    nobody handles is up to sys.excepthook. Below a debugger or profiler main() is called at once.
    """
    if sys._getframe(1).f_back is not None:
        sys.exit(main())
    sys.excepthook = functools.partial(_run, main)
    raise Launched


def _run(main, *_unhandled) -> None:
    sys.excepthook = sys.__excepthook__
    try:
        status = main()
    except (Exception, KeyboardInterrupt) as error:  # or Python would speak of an error in its hook
        sys.__excepthook__(type(error), error, error.__traceback__)
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    sys.exit(status)


# =================================================================================================
# medialib/allocator.py, from its line 11
# How memory is kept and given back, for programs that run for a long time.
# =================================================================================================

M_TRIM_THRESHOLD = -1  # of glibc's <malloc.h>
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
LARGE_BLOCK_BYTES = 4 << 20
# Heaps for all threads together. glibc would give each thread one of its own, and each keeps what
# its thread freed; Python's lock lets few of them allocate at once.
ARENAS = 2
# A batch makes some thousands of objects, which no cycle holds: Python, left to itself, would look
# for cycles after every 700 of them, a twelfth of the host's work and a twentieth of the agent's.
OBJECTS_PER_COLLECTION = 20_000


def give_large_blocks_back() -> None:
    """From now on a large block goes back to the system when it is freed.

    By itself glibc takes the first large block that is freed for the usual size, and keeps that
    much and more in the heap of every thread that handled one: twice the memory under many large
    requests.
    """
    call_c_library("mallopt", M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
    call_c_library("mallopt", M_TRIM_THRESHOLD, 2 * LARGE_BLOCK_BYTES)


def settle_memory() -> None:
    """Call it when the program is loaded, before its threads are many: what was needed for that
    alone goes back to the system, and what is there now stays, so that the garbage collector need
    not look through it again. It looks through what comes later less often than Python has it, and
    later threads share the heaps that there are.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS_PER_COLLECTION)
    call_c_library("mallopt", M_ARENA_MAX, ARENAS)
    call_c_library("malloc_trim", 0)


def call_c_library(name: str, *numbers: int) -> None:
    """Call a function of glibc. Other C libraries do without these, and are left as they are."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(ImportError, OSError, AttributeError):
            getattr(ctypes.CDLL(None), name)(*numbers)


# =================================================================================================
# medialib/app_folder.py, from its line 24
# The data folder: where it is, who may use it, its lock, its private files and the log.
# =================================================================================================

LOG_FILE_BYTES = 5 << 20
LOG_FILE_COPIES = 3
LOCK_PATIENCE_S = 0.6  # whoever only asks who holds the lock has it for a moment
LOCK_BYTE_OFFSET = 1 << 30  # on Windows a locked byte cannot be read: lock one far behind the text
LOCK_TEXT_BYTES = 4096
LOG_ESCAPES = {code: f"\\x{code:02x}" for code in [*range(32), *range(127, 160)] if code != 9}


def data_folder(argument: str | None) -> str:
    """The absolute path of the data folder, made if need be: ours alone (0700) and writable.

    Order: `argument` (--data-dir), the environment's MEDIALIB_HOME, ~/.medialib.
    Raises MedialibError with the reason where the folder cannot serve.
    """
    wish = argument or os.environ.get("MEDIALIB_HOME") or os.path.join("~", ".medialib")
    path = os.path.expanduser(wish)
    if path.startswith("~"):
        raise MedialibError("this user has no home folder: name a data folder with --data-dir")
    path = os.path.abspath(path)
    _make_data_folder(path)
    _own_data_folder(path)
    _try_data_folder(path)
    return path


def _make_data_folder(path: str) -> None:
    if os.path.islink(path) and not os.path.exists(path):
        raise MedialibError(
            f"the data folder {path} is a link to {os.readlink(path)}, which does not exist")
    if os.path.lexists(path) and not os.path.isdir(path):
        raise MedialibError(f"the data folder {path} is not a folder")
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    except OSError as error:
        raise MedialibError(
            f"cannot make the data folder {path}: {error.strerror or error}") from error


def _own_data_folder(path: str) -> None:
    """Refuse what belongs to somebody else or to everybody; close it to other users."""
    try:
        facts = os.stat(path)
    except OSError as error:
        raise MedialibError(
            f"cannot use the data folder {path}: {error.strerror or error}") from error
    if not hasattr(os, "geteuid"):
        return
    if facts.st_uid != os.geteuid():
        raise MedialibError(
            f"the data folder {path} belongs to another user (number {facts.st_uid}): "
            "run as that user, or name another folder with --data-dir")
    shared = facts.st_mode & stat.S_ISVTX or path in ("/", os.path.expanduser("~"))
    if shared:  # closing it to others would break it for them
        raise UsageError(f"{path} cannot be the data folder: name a folder of its own")
    if facts.st_mode & 0o077:
        with contextlib.suppress(OSError):  # file systems without modes
            os.chmod(path, 0o700)


def _try_data_folder(path: str) -> None:
    """os.access() knows neither read-only mounts nor full disks, so a file is really written."""
    probe = os.path.join(path, f".try-{os.getpid()}")
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT, 0o600)
        os.close(descriptor)
        os.remove(probe)
    except OSError as error:
        raise MedialibError(
            f"cannot write in the data folder {path}: {error.strerror or error}") from error


def write_private_file(path: str, text: str) -> None:
    """Replace `path` by `text` (UTF-8) in one step, readable by us alone, power cut or not."""
    part = f"{path}.{os.getpid()}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
    try:
        with open(os.open(part, flags, 0o600), "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(os.path.dirname(os.path.abspath(path)))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise MedialibError(f"cannot write {path}: {error.strerror or error}") from error


def sync_folder(path: str) -> None:
    """The new name is lasting only once its folder is on disk. Not every system can do this."""
    with contextlib.suppress(OSError, AttributeError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class FolderLock:
    """The right to write one kind of data in a folder: one running "agent", one running "host".

    The operating system drops the lock when its process ends, however it ends; the lock file itself
    stays. Its text is a JSON object about the holder, for whoever wants to talk to it.
    """

    def __init__(self, folder: str, name: str):
        self.name = name
        self.path = os.path.join(folder, f"{name}.lock")
        self._descriptor = None

    def acquire(self) -> None:
        """Take the lock, or raise FolderBusyError saying who has it."""
        give_up = time.monotonic() + LOCK_PATIENCE_S
        descriptor = self._open(os.O_RDWR | os.O_CREAT)
        while not _lock_descriptor(descriptor, self.path):
            if time.monotonic() >= give_up:
                holder = _read_lock_text(descriptor) or {}
                os.close(descriptor)
                raise FolderBusyError(self._busy_text(holder))
            time.sleep(0.05)
        self._descriptor = descriptor
        self.write_holder({"pid": os.getpid()})

    def _open(self, flags: int) -> int:
        flags |= getattr(os, "O_NOFOLLOW", 0)
        try:
            return os.open(self.path, flags, 0o600)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise MedialibError(f"cannot open {self.path}: {error.strerror or error}") from error

    def _busy_text(self, holder: dict) -> str:
        known = [f"{word} {holder[key]}" for key, word in (("pid", "process"), ("port", "port"))
                 if key in holder]
        who = f" ({', '.join(known)})" if known else ""
        folder = os.path.dirname(self.path)
        return (f"another {self.name}{who} already runs on the data folder {folder}: "
                "stop it, or use another --data-dir")

    def write_holder(self, holder: dict) -> None:
        """Leave word who holds the lock; "pid" and "port" are what others look for."""
        if self._descriptor is None:
            raise MedialibError(f"{self.path} is not held by this process")
        text = json.dumps({"pid": os.getpid(), **holder}).encode("ascii")
        try:
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, text)
            os.ftruncate(self._descriptor, len(text))
        except OSError as error:  # a full disk: the lock itself holds all the same
            log.warning("cannot write %s: %s", self.path, error.strerror or error)

    def read_holder(self) -> dict | None:
        """What the running holder wrote (perhaps {}), or None when nobody holds the lock."""
        try:
            descriptor = self._open(os.O_RDWR if self._descriptor is None else os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            if self._descriptor is None and _lock_descriptor(descriptor, self.path):
                return None  # closing gives it back
            return _read_lock_text(descriptor) or {}
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def _lock_descriptor(descriptor: int, path: str) -> bool:
    """Take the lock without waiting; False when another open file has it."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            os.lseek(descriptor, LOCK_BYTE_OFFSET, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:  # a file system that knows no locks must not keep us from running
        log.warning("cannot lock %s (%s): do not start a second one", path,
                    error.strerror or error)
    return True


def _read_lock_text(descriptor: int) -> dict | None:
    """The holder's words; None while they are being written or were never written."""
    for _ in range(3):
        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
            holder = json.loads(os.read(descriptor, LOCK_TEXT_BYTES).decode("utf-8"))
            if isinstance(holder, dict):
                return holder
        except (OSError, ValueError):
            pass
        time.sleep(0.02)
    return None


class OneLineFormatter(logging.Formatter):
    """File names go into messages: no control character of theirs reaches terminal or file."""

    def formatMessage(self, record):
        record.message = record.message.translate(LOG_ESCAPES)
        return super().formatMessage(record)


class PrivateLogFile(logging.FileHandler):
    """A file only its owner reads, which never stops the program when the disk is full. A full one
    becomes NAME.1, that one NAME.2 and so on. (The standard library's own takes long to import.)
    """

    def emit(self, record):
        line = len(self.format(record).encode("utf-8", "backslashreplace")) + 1
        with contextlib.suppress(OSError, ValueError):
            if self.stream is None:
                self.stream = self._open()
            if self.stream.tell() + line > LOG_FILE_BYTES:
                self._begin_another()
        if self.stream is not None:
            super().emit(record)

    def _begin_another(self) -> None:
        stream, self.stream = self.stream, None
        stream.close()
        for number in range(LOG_FILE_COPIES, 0, -1):
            older = f"{self.baseFilename}.{number - 1}" if number > 1 else self.baseFilename
            if os.path.exists(older):
                os.replace(older, f"{self.baseFilename}.{number}")
        self.stream = self._open()

    def _open(self):
        return open(self.baseFilename, self.mode, encoding="utf-8", errors="backslashreplace",
                    opener=_open_private_log)

    def handleError(self, record):
        """The console has the line already."""

    def close(self):
        with contextlib.suppress(OSError):
            super().close()


def _open_private_log(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)


def setup_logging(log_path: str | None, verbosity: int) -> None:
    """Send the log to the console and, if it can be opened, to a rotating file.

    verbosity: -1 warnings only, 0 what happens, 1 details (console). The file has at least what
    happens. Called again, it starts afresh.
    """
    level = {-1: logging.WARNING, 0: logging.INFO}.get(max(-1, verbosity), logging.DEBUG)
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.setLevel(min(level, logging.INFO))
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(level)
    console.setFormatter(OneLineFormatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    log.addHandler(console)
    if log_path is None:
        return
    try:
        file = PrivateLogFile(log_path)
    except OSError as error:
        log.warning("no log file: cannot open %s: %s", log_path, error.strerror or error)
        return
    file.setFormatter(
        OneLineFormatter("%(asctime)s %(levelname)s %(threadName)s %(message)s"))
    log.addHandler(file)


# =================================================================================================
# medialib/scan_common.py, from its line 19
# What a scan says about one file: its name as text, its kind, its identity, its record.
# =================================================================================================

KINDS = ("video", "audio", "image", "subtitle", "xml", "other", "unknown", "junk")
IGNORE_MARKER = ".medialib-ignore"  # a folder that holds it is left out with everything below
DIGEST_MODULUS = 1 << 64

DEFAULT_VIDEO_EXTENSIONS = (
    ".3g2", ".3gp", ".amv", ".asf", ".avi", ".divx", ".dv", ".dvr-ms", ".evo", ".f4v", ".flv",
    ".gxf", ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2p", ".m2t", ".m2ts", ".m2v", ".m4v",
    ".mj2", ".mk3d", ".mkv", ".mod", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf",
    ".nsv", ".nut", ".nuv", ".ogm", ".ogv", ".ogx", ".qt", ".rec", ".rm", ".rmvb", ".tod", ".tp",
    ".trp", ".ts", ".vob", ".vro", ".webm", ".wmv", ".wtv", ".xvid",
)
DEFAULT_AUDIO_EXTENSIONS = (
    ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".alac", ".amr", ".ape", ".au", ".caf", ".dff",
    ".dsf", ".dts", ".eac3", ".flac", ".m4a", ".m4b", ".m4r", ".mid", ".midi", ".mka", ".mp2",
    ".mp3", ".mpc", ".oga", ".ogg", ".opus", ".ra", ".snd", ".spx", ".tak", ".thd", ".tta",
    ".voc", ".wav", ".wma", ".wv",
)
DEFAULT_IMAGE_EXTENSIONS = (
    ".apng", ".arw", ".avif", ".bmp", ".cr2", ".cr3", ".dng", ".gif", ".heic", ".heif", ".ico",
    ".jfif", ".jpe", ".jpeg", ".jpg", ".jxl", ".nef", ".orf", ".pef", ".png", ".psd", ".raf",
    ".raw", ".rw2", ".srw", ".svg", ".tga", ".tif", ".tiff", ".webp", ".xcf",
)
DEFAULT_SUBTITLE_EXTENSIONS = (
    ".ass", ".dfxp", ".idx", ".lrc", ".mks", ".mpl", ".pjs", ".sbv", ".smi", ".srt", ".ssa",
    ".stl", ".sub", ".sup", ".ttml", ".usf", ".vtt",
)
DEFAULT_XML_EXTENSIONS = (".nfo", ".opf", ".xml", ".xmp", ".xsd", ".xsl", ".xslt")
DEFAULT_OTHER_EXTENSIONS = (
    ".7z", ".bin", ".bup", ".cbr", ".cbz", ".csv", ".cue", ".doc", ".docx", ".epub", ".gz",
    ".htm", ".html", ".ifo", ".img", ".iso", ".json", ".m3u", ".m3u8", ".md", ".mobi", ".odt",
    ".pdf", ".pls", ".rar", ".rtf", ".tar", ".torrent", ".txt", ".xls", ".xlsx", ".yaml", ".yml",
    ".zip",
)
DEFAULT_JUNK_PATTERNS = (
    "._*", ".ds_store", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini",
    "folder.desktop", ".directory", ".localized", "icon\r", ".nfs*", ".fuse_hidden*", ".#*",
    ".~lock.*#", "~$*", "*~", "*.tmp", "*.temp", "*.bak", "*.swp", "*.swo", "*.part",
    "*.partial", "*.crdownload", "*.download", "*.opdownload", "*.aria2", "*.!qb", "*.!ut",
    "*.!bt", "*.bc!", "*.jc!", "*.nzb", "*.par2", "*.sfv", "*.srr", "*.srs", "*.lnk", "*.url",
    "*.website", "*.webloc", "rarbg*.txt", "rarbg*.exe",
)
DEFAULT_JUNK_EXCLUDE_EXTENSIONS = ()
DEFAULT_IGNORE_DIRS = (
    "@eaDir", "@Recycle", "@Recently-Snapshot", "#recycle", "#snapshot", "$RECYCLE.BIN",
    "RECYCLER", "System Volume Information", ".Trash", ".Trash-*", ".Trashes", ".snapshot",
    ".snapshots", ".zfs", ".btrfs", "lost+found", ".fseventsd", ".Spotlight-V100",
    ".DocumentRevisions-V100", ".TemporaryItems", ".AppleDouble", ".AppleDB", ".AppleDesktop",
    ".@__thumb", ".thumbnails", ".medialib", ".git", ".svn", ".stfolder", ".stversions",
)

CLASSIFIER_VERSION = 1  # raise it when the same configuration gives other kinds than before
_UNKNOWN_ANSWER = ("unknown", None)
_ESCAPED_FIRST, _ESCAPED_LAST = 0xEF80, 0xEFFF
_TO_ESCAPED = {
    **{0xDC00 + byte: chr(0xEF00 + byte) for byte in range(0x80, 0x100)},
    **{code: "".join(chr(0xEF00 + byte) for byte in chr(code).encode("utf-8"))
       for code in range(_ESCAPED_FIRST, _ESCAPED_LAST + 1)},
}
_FROM_ESCAPED = {0xEF00 + byte: 0xDC00 + byte for byte in range(0x80, 0x100)}
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SPLIT_ARCHIVE = re.compile(r"\.r[0-9]{2,}\Z")
_INODE_KEY = re.compile(r"([0-9]{1,20}):(-?[0-9]{1,30}):([0-9]{1,40}):(-?[0-9]{1,20})\Z")
_OLD_INODE_KEY = re.compile(
    r"([0-9]{1,20}):(-?[0-9]{1,20}):-?[0-9]{1,20}:([0-9]{1,40}):(-?[0-9]{1,20})\Z"
)


# Names

def to_text(native: str) -> str:
    """The valid Unicode form of a native name or path; `to_native` gives exactly it back."""
    if os.sep != "/":
        native = native.replace(os.sep, "/")
    if native.isascii():
        return native
    decoded = os.fsencode(native).decode("utf-8", "surrogateescape")
    return decoded.translate(_TO_ESCAPED)


def to_native(text: str) -> str:
    """The native form of a text; ValueError when no name on this platform can have it."""
    if os.sep != "/":
        text = text.replace("/", os.sep)
    if text.isascii():
        return text
    if _SURROGATE.search(text):
        raise ValueError("the path is not valid Unicode")
    return os.fsdecode(text.translate(_FROM_ESCAPED).encode("utf-8", "surrogateescape"))


def join_rel(folder: str, name: str) -> str:
    """The relative path of a name in a relative folder ("" is the root itself)."""
    return f"{folder}/{name}" if folder else name


def name_of(path: str) -> str:
    """The last component of a text path."""
    return path[path.rfind("/") + 1:]


def parent_of(rel: str) -> str:
    """The folder of a relative text path; "" for what lies in the root itself."""
    return rel[:max(rel.rfind("/"), 0)]


def folder_key(rel: str) -> list:
    """Folders sorted by this key come in the order of the walk ("a/b" before "a.b")."""
    return rel.split("/")


def ext_of(name: str) -> str:
    """The extension as `os.path.splitext` gives it, in lower case: ".mkv"; "" if there is none."""
    dot = name.rfind(".")
    if dot <= 0:
        return ""
    if name[0] == ".":  # leading dots do not start an extension
        return os.path.splitext(name)[1].lower()
    return name[dot:].lower()


# Kinds

class NamePatterns:
    """Case-insensitive globs over a whole name, compiled once.

    Most names match nothing, so most are let go after a look at their first two letters: only
    patterns that begin with a wildcard have to be tried on every name.
    """

    def __init__(self, patterns):
        self.patterns = tuple(str(pattern) for pattern in patterns)
        heads, headed, ends, others = set(), [], [], []
        for low in (pattern.lower() for pattern in self.patterns):
            if not _has_wildcard(low[:2]):
                heads.add(low[:2])
                headed.append(_glob_expression(low))
            elif low.startswith("*") and not _has_wildcard(low[1:]):
                ends.append(low[1:])
            else:
                others.append(_glob_expression(low))
        self._heads, self._headed = frozenset(heads), _any_expression(headed)
        self._ends, self._others = tuple(ends), _any_expression(others)
        self._singles = None

    def match(self, name: str) -> bool:
        low = name.lower()
        return (
            (low[:2] in self._heads and self._headed.match(low) is not None)
            or low.endswith(self._ends)
            or (self._others is not None and self._others.match(low) is not None)
        )

    def first(self, name: str) -> str | None:
        """The first pattern that matches, as it was written."""
        if self._singles is None:  # compiling each alone takes a while and is rarely needed
            self._singles = [re.compile(_glob_expression(one.lower())) for one in self.patterns]
        low = name.lower()
        return next(
            (pattern for pattern, single in zip(self.patterns, self._singles) if single.match(low)),
            None,
        )


def _has_wildcard(pattern: str) -> bool:
    return any(letter in pattern for letter in "*?[")


def _any_expression(expressions: list):
    return re.compile("|".join(expressions)) if expressions else None


def _glob_expression(pattern: str) -> str:
    """The glob as a regular expression; one that cannot be compiled means itself literally."""
    expression = fnmatch.translate(pattern)
    try:
        re.compile(expression)
    except re.error:
        return re.escape(pattern) + r"\Z"
    return f"(?:{expression})"


def normal_extension(ext: str) -> str:
    """An extension of a setting in the form of `ext_of`: "MKV" and ".mkv" are the same."""
    low = ext.strip().lower()
    return low if not low or low.startswith(".") else f".{low}"


class Classifier:
    """Tells the kind of a file from its name, by the configuration; keys that lack have defaults.

    `fingerprint` changes exactly when the same names could get other kinds.
    """

    _EXTENSION_KEYS = (  # the first that lists an extension decides
        ("video", "media_extensions", DEFAULT_VIDEO_EXTENSIONS),
        ("audio", "audio_extensions", DEFAULT_AUDIO_EXTENSIONS),
        ("image", "image_extensions", DEFAULT_IMAGE_EXTENSIONS),
        ("subtitle", "subtitle_extensions", DEFAULT_SUBTITLE_EXTENSIONS),
        ("xml", "xml_extensions", DEFAULT_XML_EXTENSIONS),
        ("other", "other_extensions", DEFAULT_OTHER_EXTENSIONS),
    )

    def __init__(self, config: dict):
        self._answers = {}
        for kind, key, default in self._EXTENSION_KEYS:
            for ext in _listed(config, key, default):
                self._answers.setdefault(normal_extension(ext), (kind, None))
        patterns = _listed(config, "junk_patterns", DEFAULT_JUNK_PATTERNS)
        excluded = _listed(config, "junk_exclude_extensions", DEFAULT_JUNK_EXCLUDE_EXTENSIONS)
        self._never_junk = frozenset(normal_extension(ext) for ext in excluded)
        self._ignored = NamePatterns(_listed(config, "ignore_dirs", DEFAULT_IGNORE_DIRS))
        self._junk = NamePatterns(patterns)
        self.fingerprint = self._fingerprint()
        self._other_junk = self._separate_extensions()

    def _fingerprint(self) -> str:
        relevant = [
            CLASSIFIER_VERSION, sorted(self._answers.items()), self._junk.patterns,
            sorted(self._never_junk),
        ]
        packed = json.dumps(relevant).encode("ascii")
        return hashlib.blake2b(packed, digest_size=8).hexdigest()

    def _separate_extensions(self) -> NamePatterns:
        """Answer patterns like "*.tmp" from the table of extensions; the others are returned."""
        others = []
        for pattern in self._junk.patterns:
            ext = pattern[1:].lower()
            plain = ext.rfind(".") == 0 and len(ext) > 1 and not _has_wildcard(ext)
            if pattern[:1] != "*" or not plain:
                others.append(pattern)
            elif ext not in self._never_junk and self._answers.get(ext, "?")[0] != "junk":
                self._answers[ext] = ("junk", f"name matches {pattern}")
        return NamePatterns(others)

    def classify(self, name: str, ext: str) -> tuple:
        """(kind, reason): the reason says why a file is junk and is None for every other kind.

        `ext` is what `ext_of` gives for the name.
        """
        answer = self._answers.get(ext, _UNKNOWN_ANSWER)
        if ext in self._never_junk or answer[1] is not None:
            return answer
        junk = self._other_junk if ext else self._junk  # ".tmp" alone has no extension
        if junk.match(name):
            return ("junk", f"name matches {junk.first(name)}")
        if ext.startswith(".r") and _SPLIT_ARCHIVE.match(ext):
            return ("junk", f"part of a split archive ({ext})")
        return answer

    def ignored_dir(self, name: str) -> bool:
        """True for a folder that is never opened."""
        return self._ignored.match(name)


def _listed(config: dict, key: str, default: tuple):
    value = config.get(key)
    return default if value is None else value


# Identity

def inode_key(stat_result) -> str:
    """The identity "size:mtime_ns:ino:dev"; whole numbers throughout, whatever the date."""
    return (
        f"{stat_result.st_size}:{stat_result.st_mtime_ns}:{stat_result.st_ino}:{stat_result.st_dev}"
    )


def parse_inode_key(key: str) -> tuple:
    """(size, mtime_ns, ino, dev) of an identity, also of the older form in whole seconds
    "size:mtime:ctime:ino:dev"; ValueError for anything else.
    """
    found = _INODE_KEY.match(key)
    if found:
        size, mtime_ns, ino, dev = found.groups()
        return int(size), int(mtime_ns), int(ino), int(dev)
    found = _OLD_INODE_KEY.match(key)
    if not found:
        raise ValueError(f"not an inode key: {key[:80]!r}")
    size, mtime_s, ino, dev = found.groups()
    return int(size), int(mtime_s) * 1_000_000_000, int(ino), int(dev)


def inode_number(key: str) -> int:
    """The inode of an identity of either form, within the numbers SQLite has room for."""
    return int(key.rsplit(":", 2)[1]) & 0x7FFF_FFFF_FFFF_FFFF


def version_prefix(key: str) -> str:
    """"size:mtime_ns:ino:": what all keys of one content version start with."""
    if _INODE_KEY.match(key):
        return key[:key.rfind(":") + 1]
    size, mtime_ns, ino, _ = parse_inode_key(key)
    return f"{size}:{mtime_ns}:{ino}:"


def same_version(a: str, b: str, inodes_stable: bool = True) -> bool:
    """True when both identities mean the same content: size, mtime and inode agree.

    The device number may change with every boot and does not count; nor does the inode where the
    file system makes up new ones. An older key in whole seconds is compared in whole seconds.
    """
    if a == b:
        return True
    try:
        size_a, mtime_a, ino_a, _ = parse_inode_key(a)
        size_b, mtime_b, ino_b, _ = parse_inode_key(b)
    except ValueError:
        return False
    if size_a != size_b or (inodes_stable and ino_a != ino_b):
        return False
    if a.count(":") == b.count(":"):
        return mtime_a == mtime_b
    return _whole_seconds(mtime_a) == _whole_seconds(mtime_b)


def _whole_seconds(mtime_ns: int) -> int:
    """Cut towards zero, as the older agents did."""
    return mtime_ns // 1_000_000_000 if mtime_ns >= 0 else -(-mtime_ns // 1_000_000_000)


# Records

def record_of(*, kind: str, path: str, size: int, mtime: float, ctime: float, inode_key: str,
              ext: str, reason: str | None = None, hashes: dict | None = None,
              metadata: dict | None = None) -> dict:
    """One file as it goes over the wire; what is not known yet is absent, not null."""
    record = {
        "kind": kind, "path": path, "size": size, "mtime": mtime, "ctime": ctime,
        "inode_key": inode_key, "ext": ext,
    }
    if kind == "junk" and reason:
        record["reason"] = reason
    if hashes is not None:
        record["hashes"] = hashes
    if metadata is not None:
        record["metadata"] = metadata
    return record


def row_digest(rel_path: str, inode_key: str, kind: str, algo: str | None,
               sample_hash: str | None, full_hash: str | None, probed) -> int:
    """A 64-bit number for one row. The sum over a root modulo DIGEST_MODULUS does not depend on
    the order, so both sides can compare what they hold without sending it.
    """
    text = (
        f"{rel_path}\0{inode_key[:inode_key.rfind(':')]}\0{kind}\0{algo or ''}\0"
        f"{sample_hash or ''}\0{full_hash or ''}\0{'1' if probed else '0'}"
    )
    packed = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "big")


# =================================================================================================
# medialib/settings.py, from its line 25
# The one table of settings: name, type, default, bounds, unit and help.
# =================================================================================================

SETTING_LIST_LENGTH = 2000
SETTING_TEXT_LENGTH = 4096
OLDER_SETTING_NAMES = {"batch_size": "agent_batch_size"}


class SettingError(UsageError):
    """A setting that does not exist or a value outside its bounds; `name` tells which."""

    def __init__(self, name: str, message: str):
        super().__init__(message)
        self.name = name


class Setting(NamedTuple):
    """One row of the table. `type` is int, bool, choice, names, extensions or paths (the last
    three are lists of text); `minimum` and `maximum` are inclusive and in `unit`.
    """

    name: str
    type: str
    default: object
    help: str
    minimum: int | None = None
    maximum: int | None = None
    choices: tuple = ()
    unit: str = ""
    per_agent: bool = True


SETTINGS = (
    Setting("remote_roots", "paths", (), "The folders to scan, as absolute paths on that machine."),
    Setting("hash_algo", "choice", "blake3",
            "Which hash to compute. A machine without blake3 or xxhash uses sha256 and says so.",
            choices=("blake3", "xxhash64", "sha256")),
    Setting("hash_sample_size", "int", 65536,
            "How much is read at the beginning, middle and end of a large file for its sample "
            "hash. Files of up to three times this size are read whole.",
            4096, 16 << 20, unit="bytes"),
    Setting("do_full_hash", "bool", True,
            "Read large files whole as well: only that confirms duplicates."),
    Setting("agent_batch_size", "int", 500, "How many files go to the host in one message.",
            1, 5000, unit="files"),
    Setting("agent_max_workers", "int", 4,
            "How many files are read or described at the same time, at most. A spinning or network "
            "disk is always read one file at a time.", 1, 64, unit="workers"),
    Setting("agent_gzip", "bool", True, "Compress what is sent to the host."),
    Setting("agent_adaptive", "bool", True,
            "Use fewer workers while more of them do not make the work faster."),
    Setting("agent_offpeak_start", "int", 0,
            "Local hour from which large files may be read whole. The same as the end: always.",
            0, 23, unit="hour"),
    Setting("agent_offpeak_end", "int", 0,
            "Local hour at which reading large files whole stops; 22 to 6 crosses midnight.",
            0, 23, unit="hour"),
    Setting("follow_symlinks", "bool", False,
            "Follow symbolic links to folders, each real folder once."),
    Setting("junk_patterns", "names", DEFAULT_JUNK_PATTERNS,
            "Names of files that are junk; * ? and [ ] stand for other characters."),
    Setting("junk_exclude_extensions", "extensions", DEFAULT_JUNK_EXCLUDE_EXTENSIONS,
            "Extensions that are never junk, whatever the name."),
    Setting("media_extensions", "extensions", DEFAULT_VIDEO_EXTENSIONS, "Extensions of videos."),
    Setting("audio_extensions", "extensions", DEFAULT_AUDIO_EXTENSIONS, "Extensions of audio."),
    Setting("image_extensions", "extensions", DEFAULT_IMAGE_EXTENSIONS, "Extensions of images."),
    Setting("subtitle_extensions", "extensions", DEFAULT_SUBTITLE_EXTENSIONS,
            "Extensions of subtitles."),
    Setting("xml_extensions", "extensions", DEFAULT_XML_EXTENSIONS,
            "Extensions of descriptions kept beside media."),
    Setting("other_extensions", "extensions", DEFAULT_OTHER_EXTENSIONS,
            "Extensions that are known, but are none of the kinds above."),
    Setting("ignore_dirs", "names", DEFAULT_IGNORE_DIRS,
            "Names of folders that are never opened; * ? and [ ] stand for other characters."),
    Setting("rescan_interval_s", "int", 3600,
            "How long after a scan the next one starts; 0 means only when asked.",
            0, 30 * 86400, unit="seconds"),
    Setting("backup_copies", "int", 7,
            "How many daily copies of the catalogue are kept in the data folder; 0 makes none.",
            0, 365, unit="copies", per_agent=False),
)

SETTING_BY_NAME = {setting.name: setting for setting in SETTINGS}


def default_settings() -> dict:
    """A new {name: value} of all settings; lists are lists, as in JSON."""
    return {setting.name: setting_as_json(setting.default) for setting in SETTINGS}


def setting_as_json(value):
    return list(value) if isinstance(value, (tuple, list)) else value


def check_setting(name: str, value):
    """The value in its normal form; SettingError names the setting and its bounds."""
    setting = SETTING_BY_NAME.get(name)
    if setting is None:
        raise SettingError(str(name)[:100], f"there is no setting named {name!r}")
    return _SETTING_CHECKS[setting.type](setting, value)


def describe_bounds(setting: Setting) -> str:
    """What values a setting takes, in words."""
    if setting.type == "int":
        unit = f" ({setting.unit})" if setting.unit else ""
        return f"a whole number from {setting.minimum} to {setting.maximum}{unit}"
    return {
        "bool": "true or false",
        "choice": "one of " + ", ".join(setting.choices),
        "names": f"a list of at most {SETTING_LIST_LENGTH} names",
        "extensions": f"a list of at most {SETTING_LIST_LENGTH} extensions such as .mkv",
        "paths": f"a list of at most {SETTING_LIST_LENGTH} absolute paths",
    }[setting.type]


def _refuse_setting(setting: Setting, value):
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    raise SettingError(
        setting.name, f"{setting.name} must be {describe_bounds(setting)}, not {shown}")


def _check_int_setting(setting: Setting, value):
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse_setting(setting, value)
    if not setting.minimum <= value <= setting.maximum:
        _refuse_setting(setting, value)
    return value


def _check_bool_setting(setting: Setting, value):
    if not isinstance(value, bool):
        _refuse_setting(setting, value)
    return value


def _check_choice_setting(setting: Setting, value):
    if not isinstance(value, str) or value not in setting.choices:
        _refuse_setting(setting, value)
    return value


def _setting_texts(setting: Setting, value) -> list:
    """The list of distinct texts in their order; anything else is refused."""
    if not isinstance(value, (list, tuple)) or len(value) > SETTING_LIST_LENGTH:
        _refuse_setting(setting, value)
    for text in value:
        if not isinstance(text, str) or not text.strip() or len(text) > SETTING_TEXT_LENGTH:
            _refuse_setting(setting, text)
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            _refuse_setting(setting, text)
    return list(dict.fromkeys(value))


def _check_names_setting(setting: Setting, value):
    texts = _setting_texts(setting, value)
    for text in texts:
        if "/" in text:
            _refuse_setting(setting, text)
    return texts


def _check_extensions_setting(setting: Setting, value):
    texts = [normal_extension(text) for text in _setting_texts(setting, value)]
    for text in texts:
        if "/" in text or len(text) < 2:
            _refuse_setting(setting, text)
    return list(dict.fromkeys(texts))


def _check_paths_setting(setting: Setting, value):
    paths = [normal_root_path(text) for text in _setting_texts(setting, value)]
    for path in paths:
        if not is_absolute_text(path):
            _refuse_setting(setting, path)
    return list(dict.fromkeys(paths))


def is_absolute_text(path: str) -> bool:
    """Whether a text path is absolute on the machine it comes from: "/x", "C:/x"."""
    return path.startswith("/") or (len(path) >= 3 and path[0].isalpha() and path[1:3] == ":/")


def normal_root_path(path: str) -> str:
    """A root's text path with "/" between names and none at its end ("/" and "C:/" keep theirs)."""
    if len(path) >= 3 and path[0].isalpha() and path[1:3] == ":\\":
        path = path.replace("\\", "/")
    shorter = path.rstrip("/")
    if not shorter:
        return "/" if path else ""
    return shorter + "/" if len(shorter) == 2 and shorter[1] == ":" else shorter


_SETTING_CHECKS = {
    "int": _check_int_setting,
    "bool": _check_bool_setting,
    "choice": _check_choice_setting,
    "names": _check_names_setting,
    "extensions": _check_extensions_setting,
    "paths": _check_paths_setting,
}


def clean_settings(raw) -> tuple:
    """(settings, complaints) of what somebody sent: a bad value is replaced by the default and
    named in `complaints`; unknown keys are ignored; `batch_size` is read as older hosts mean it.
    """
    settings, complaints = default_settings(), []
    if not isinstance(raw, dict):
        return settings, ["the configuration is not an object"]
    renamed = {new: raw[old] for old, new in OLDER_SETTING_NAMES.items() if old in raw}
    for name, value in {**renamed, **raw}.items():
        if name not in SETTING_BY_NAME:
            continue
        try:
            settings[name] = check_setting(name, value)
        except SettingError as error:
            complaints.append(str(error))
    return settings, complaints


def settings_table() -> list:
    """The table as JSON objects, for the page and for the README."""
    return [
        {
            "name": setting.name, "type": setting.type,
            "default": setting_as_json(setting.default),
            "minimum": setting.minimum, "maximum": setting.maximum,
            "choices": list(setting.choices), "unit": setting.unit, "help": setting.help,
            "bounds": describe_bounds(setting), "per_agent": setting.per_agent,
        }
        for setting in SETTINGS
    ]


# =================================================================================================
# medialib/walk_names.py, from its line 11
# The names in one huge folder, in less than half of the memory of a list of them.
# =================================================================================================

NAMES_BLOCK_BYTES = 1 << 16


class PackedNames:
    """Native names, given in any order, to be gone through in the order of their text.

    They lie one behind the other as UTF-8, whose byte order is that of the text, in blocks. `add`
    lists of them, then `sort` once. Whether a text name is `in` it can be asked then; names close
    to one another are best asked for together.
    """

    def __init__(self):
        self._count = 0
        self._runs = []  # deques of blocks, each run in order for itself
        self._blocks = []  # all in order
        self._first_names = []  # of the blocks
        self._opened = (None, frozenset())  # (number of a block, its names)

    def add(self, names: list) -> None:
        self._count += len(names)
        self._runs.append(collections.deque(
            blocks_of(sorted(to_text(name).encode("utf-8") for name in names))))

    def sort(self) -> None:
        """A block of the runs is let go when the last of its names is in its place."""
        runs, self._runs = self._runs, []
        for block in blocks_of(heapq.merge(*map(names_of_run, runs))):
            self._blocks.append(block)
            self._first_names.append(block[:block.find(b"\0")] if b"\0" in block else block)

    def __len__(self) -> int:
        return self._count

    def __iter__(self):
        for block in self._blocks:
            for name in block.split(b"\0"):
                yield to_native(name.decode("utf-8"))

    def __contains__(self, text: str) -> bool:
        name = text.encode("utf-8")
        number = bisect.bisect_right(self._first_names, name) - 1
        if number < 0:
            return False
        if self._opened[0] != number:
            self._opened = (number, frozenset(self._blocks[number].split(b"\0")))
        return name in self._opened[1]


def blocks_of(names):
    """Yield the names, in their order, joined to blocks: no name holds a NUL."""
    block, size = [], 0
    for name in names:
        block.append(name)
        size += len(name) + 1
        if size >= NAMES_BLOCK_BYTES:
            yield b"\0".join(block)
            block, size = [], 0
    if block:
        yield b"\0".join(block)


def names_of_run(run: collections.deque):
    while run:
        yield from run.popleft().split(b"\0")


# =================================================================================================
# medialib/walk.py, from its line 17
# The walk through a root: one listing per folder, in the order everything else relies on.
# =================================================================================================

LEDGER_KEYS = (
    "files", "folders", "links", "specials", "other_mounts", "ignored", "nested_roots", "loops",
)
_FOLDER_OPEN_FLAGS = (
    os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
)
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_LISTS_DESCRIPTORS = os.scandir in os.supports_fd
_JUNCTION = 0xA0000003  # the reparse tag of a Windows junction, which is a link for us
# So many files of a folder are looked at while it is listed, which is quicker than by their paths.
# On Windows an entry knows neither device nor inode.
_LOOKED_AT_MOST = 2000 if _LISTS_DESCRIPTORS else 0
_NAMES_UNPACKED = 20_000  # of one folder


class FolderListing:
    """What one folder holds.

    rel, native      its relative text path ("" is the root), its absolute native path
    names            native names of the files to look at, sorted by their text: a list, or the
                     PackedNames of a huge folder
    stats            {native name: stat_result} of those that were looked at with the listing: all,
                     but for a huge folder, followed links and names that could not be
    is_ascii         whether all names are, so that they are their own text; False for a huge folder
    subfolders       text names of the subfolders that the walk enters, in order
    held             text names of what is there but is left alone now: other mounts, nested roots,
                     followed links that lead nowhere now. What is catalogued at or below them
                     must not change state.
    counts           every entry of the folder counted once, by LEDGER_KEYS
    error            an OSError when the listing is incomplete: nothing may be inferred from what
                     is not in it. Names and subfolders seen before the error are still given.
    ignored          True when the folder holds the ignore marker: no names, no subfolders
    follow_symlinks  how the walk treats links
    """

    __slots__ = (
        "rel", "native", "names", "stats", "is_ascii", "subfolders", "held", "counts", "error",
        "ignored", "follow_symlinks",
    )

    def __init__(self, rel: str, native: str, follow_symlinks: bool = False):
        self.rel = rel
        self.native = native
        self.names = []
        self.stats = {}
        self.is_ascii = False
        self.subfolders = []
        self.held = []
        self.counts = dict.fromkeys(LEDGER_KEYS, 0)
        self.error = None
        self.ignored = False
        self.follow_symlinks = follow_symlinks


class FoundFile(NamedTuple):
    """A regular file as the walk saw it. `native` is its absolute native path."""

    name: str
    native: str
    size: int
    mtime: float
    ctime: float
    inode_key: str
    nlink: int


class FileProblem(NamedTuple):
    """A name that could not be looked at; ENOENT when it vanished, EINVAL when it changed type."""

    name: str
    native: str
    error: OSError


class WalkFrame:
    """A listed folder whose subfolders are still to be walked."""

    __slots__ = ("rel", "native", "device", "identity", "pending", "other_devices")

    def __init__(self, rel: str, native: str, device: int, identity: tuple):
        self.rel = rel
        self.native = native
        self.device = device
        self.identity = identity
        self.pending = []  # native names, the next one last
        self.other_devices = {}  # native name → st_dev, where it is not that of this folder


class FolderWalk:
    """The state of one walk. `walk_folders` is the way to use it."""

    def __init__(self, root_native: str, *, classifier, root_device: int, other_roots,
                 follow_symlinks: bool, mount_points):
        self.root = os.path.abspath(root_native)
        self.real_root = os.path.realpath(self.root)
        self.classifier = classifier
        self.root_device = root_device
        self.other_roots = frozenset(os.path.normcase(path) for path in other_roots or ())
        self.follow = follow_symlinks
        self.mount_points = mount_points
        self.ancestors = set()  # (st_dev, st_ino) of every folder between the root and here

    def folders(self, after: str | None, until: str | None):
        """The listings with after < folder <= until. Of the others only the ancestors of what
        follows are listed; they are given only if that failed, since then something is left out.
        """
        skip = None if after is None else folder_key(after)
        last = None if until is None else folder_key(until)
        stack = []
        rel, native, device = "", self.root, self.root_device
        while last is None or folder_key(rel) <= last:
            listing, frame = self._enter(rel, native, device)
            if skip is not None and folder_key(rel) > skip:
                skip = None
            if skip is None or listing.error is not None:
                yield listing
            if frame is not None:
                if skip is not None:
                    _drop_passed(frame, skip)
                stack.append(frame)
                self.ancestors.add(frame.identity)
            while stack and not stack[-1].pending:
                self.ancestors.discard(stack.pop().identity)
            if not stack:
                return
            frame = stack[-1]
            name = frame.pending.pop()
            rel, native = join_rel(frame.rel, to_text(name)), os.path.join(frame.native, name)
            device = frame.other_devices.pop(name, frame.device)

    def _enter(self, rel: str, native: str, device: int):
        """List one folder: (listing, frame), where the frame is None if it cannot be entered."""
        listing = FolderListing(rel, native, self.follow)
        descriptor = None
        try:
            if _LISTS_DESCRIPTORS:
                # The root may be given as a link; below it a link is followed only when asked for.
                no_follow = 0 if self.follow or not rel else _NO_FOLLOW
                descriptor = os.open(native, _FOLDER_OPEN_FLAGS | no_follow)
            handle = native if descriptor is None else descriptor
            seen = os.stat(handle)
            if seen.st_dev != device:
                raise OSError(errno.ESTALE, "another file system is mounted here now", native)
            frame = WalkFrame(rel, native, device, (seen.st_dev, seen.st_ino))
            self._list(listing, frame, handle)
            return listing, frame
        except OSError as error:
            listing.error = error
            return listing, None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _list(self, listing: FolderListing, frame: WalkFrame, handle) -> None:
        entered, packed = [], PackedNames()
        with os.scandir(handle) as entries:
            try:
                self._sort_entries(entries, listing, frame, entered, packed)
            except OSError as error:  # in the middle: what was seen stands, the rest is unknown
                listing.error = error
        if packed:
            packed.add(listing.names)
            packed.sort()
            listing.names = packed
        listing.counts["files"] = len(listing.names)
        listing.counts["folders"] = len(entered)
        if listing.ignored:
            _ignore_all(listing)
            return
        listing.held.sort()
        if not packed:
            listing.is_ascii = all(map(str.isascii, listing.names))
            listing.names.sort(key=None if listing.is_ascii else to_text)
        entered.sort(key=to_text)
        listing.subfolders = [to_text(name) for name in entered]
        entered.reverse()
        frame.pending = entered

    def _sort_entries(self, entries, listing, frame, entered, packed) -> None:
        """Put each entry where it belongs; this loop runs once for every file of a root."""
        names, stats = listing.names, listing.stats
        add_name = names.append
        for entry in entries:
            name = entry.name
            if name == IGNORE_MARKER:
                listing.ignored = True
            if entry.is_file(follow_symlinks=False):
                add_name(name)
                if len(stats) < _LOOKED_AT_MOST:
                    try:
                        stats[name] = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue  # find_files looks once more and says what is wrong with it
                elif len(names) >= _NAMES_UNPACKED:
                    packed.add(names)
                    names.clear()
            elif entry.is_dir(follow_symlinks=False):
                self._sort_folder(entry, listing, frame, entered)
            elif entry.is_symlink():
                self._sort_link(entry, listing, frame, entered)
            else:
                listing.counts["specials"] += 1

    def _sort_link(self, entry, listing, frame, entered) -> None:
        if not self.follow:
            listing.counts["links"] += 1
            return
        try:
            if entry.is_file():
                listing.names.append(entry.name)
            elif entry.is_dir():
                self._sort_folder(entry, listing, frame, entered)
            else:
                self._hold(entry.name, "links", listing)
        except OSError:
            self._hold(entry.name, "links", listing)

    def _sort_folder(self, entry, listing, frame, entered) -> None:
        name = entry.name
        if self.classifier.ignored_dir(to_text(name)):
            listing.counts["ignored"] += 1
            return
        try:
            seen = self._stat_entry(entry, frame)
        except OSError:  # entering it will tell what is wrong with it
            entered.append(name)
            return
        if getattr(seen, "st_reparse_tag", 0) == _JUNCTION and not self.follow:
            listing.counts["links"] += 1
        elif (seen.st_dev, seen.st_ino) in self.ancestors or (
                (seen.st_dev, seen.st_ino) == frame.identity):
            listing.counts["loops"] += 1
        elif self._is_nested_root(frame, name):
            self._hold(name, "nested_roots", listing)
        elif seen.st_dev != self.root_device and self._is_mount(frame, name):
            self._hold(name, "other_mounts", listing)
        else:
            if seen.st_dev != frame.device:
                frame.other_devices[name] = seen.st_dev
            entered.append(name)

    def _hold(self, name: str, reason: str, listing: FolderListing) -> None:
        listing.counts[reason] += 1
        listing.held.append(to_text(name))

    def _stat_entry(self, entry, frame):
        if _LISTS_DESCRIPTORS:
            return entry.stat(follow_symlinks=self.follow)
        # On Windows an entry knows neither device nor inode.
        return os.stat(os.path.join(frame.native, entry.name), follow_symlinks=self.follow)

    def _is_nested_root(self, frame: WalkFrame, name: str) -> bool:
        return bool(self.other_roots) and (
            os.path.normcase(self._real_path(frame, name)) in self.other_roots
        )

    def _is_mount(self, frame: WalkFrame, name: str) -> bool:
        """A btrfs subvolume has a device number of its own without being mounted: it is entered."""
        return self.mount_points is None or self._real_path(frame, name) in self.mount_points

    def _real_path(self, frame: WalkFrame, name: str) -> str:
        native = os.path.join(frame.native, name)
        if self.follow:
            return os.path.realpath(native)
        # Below the root no link was followed, so only the root's own path can hold one.
        return os.path.join(self.real_root, native[len(self.root):].lstrip(os.sep))


def _ignore_all(listing: FolderListing) -> None:
    """Count everything in a marked folder as ignored."""
    entries = sum(listing.counts.values())
    listing.counts = dict.fromkeys(LEDGER_KEYS, 0)
    listing.counts["ignored"] = entries
    listing.names, listing.stats, listing.held = [], {}, []


def _drop_passed(frame: WalkFrame, skip: list) -> None:
    """Forget the subfolders of an ancestor of `skip` that come before the one on the way to it."""
    depth = frame.rel.count("/") + 1 if frame.rel else 0
    if depth >= len(skip):
        return
    while frame.pending and to_text(frame.pending[-1]) < skip[depth]:
        frame.pending.pop()


def walk_folders(root_native: str, *, classifier, root_device: int, other_roots=(),
                 follow_symlinks: bool = False, mount_points: set | None = None,
                 after: str | None = None, until: str | None = None):
    """Yield a FolderListing for each folder of a root, in order, in flat memory.

    root_device   st_dev of the root when it was found online; while it differs, the root's listing
                  has an error
    other_roots   native real paths of other roots; one that lies in this root is left to itself
    mount_points  native real paths where something is mounted, None if unknown: then another
                  device number alone means another mount
    after, until  relative text folders: go on behind `after` (its subfolders come next), end with
                  `until`. An ancestor of `after` that cannot be listed any more is given again,
                  with its error, since its later subfolders are left out.
    """
    walk = FolderWalk(
        root_native, classifier=classifier, root_device=root_device, other_roots=other_roots,
        follow_symlinks=follow_symlinks, mount_points=mount_points,
    )
    return walk.folders(after, until)


def find_files(listing: FolderListing, names):
    """Yield a FoundFile for each of the listing's native names, or a FileProblem, lazily."""
    look = os.stat if listing.follow_symlinks else os.lstat
    prefix = os.path.join(listing.native, "")
    new, regular, type_of, stats = tuple.__new__, stat.S_IFREG, stat.S_IFMT, listing.stats
    for native_name in names:
        native = prefix + native_name
        name = to_text(native_name)
        seen = stats.get(native_name)
        if seen is None:
            try:
                seen = look(native)
            except OSError as error:
                yield FileProblem(name, native, error)
                continue
        if type_of(seen.st_mode) != regular:
            error = OSError(errno.EINVAL, "is not a regular file any more", native)
            yield FileProblem(name, native, error)
            continue
        # Made without the named tuple's own __new__, which takes as long as the rest of the loop.
        yield new(FoundFile, (name, native, seen.st_size, seen.st_mtime, seen.st_ctime,
                              inode_key(seen), seen.st_nlink))


def files_at_rest(listing: FolderListing, prefix: str) -> set | None:
    """{(path, version_prefix, ctime, 1)} of all files of the listing: what AgentCache.at_rest gives
    when none of them has changed. None if some of them are still to be looked at.

    prefix  what the path of a file in this folder begins with

    Comparing such sets takes a third of the time of looking at each file by itself.
    """
    stats = listing.stats
    if len(stats) != len(listing.names):
        return None
    names = stats if listing.is_ascii else map(to_text, stats)
    return {
        (prefix + name, f"{seen.st_size}:{seen.st_mtime_ns}:{seen.st_ino}:", seen.st_ctime, 1)
        for name, seen in zip(names, stats.values())
    }


# =================================================================================================
# medialib/mounts.py, from its line 19
# What a root lies on: its file system, volume, disk and free space.
# =================================================================================================

MOUNT_TABLE = "/proc/self/mountinfo"
FS_IOC_GETFSUUID = 0x80111500  # one byte of length, then up to sixteen of UUID
BTRFS_IOC_FS_INFO = 0x8400941F  # two numbers of eight bytes each, then the UUID
NETWORK_FS = frozenset((
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "afs", "ncpfs",
    "coda", "davfs", "vboxsf", "vmhgfs", "prl_fs", "virtiofs", "fuse.sshfs", "fuse.rclone",
    "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.smbnetfs", "fuse.curlftpfs", "fuse.davfs2",
    "fuse.vmhgfs-fuse",
))
# Their inode numbers are made up anew with every mount, or when the kernel needs memory.
UNSTABLE_INODE_FS = frozenset((
    "vfat", "exfat", "msdos", "umsdos", "fuse", "fuseblk", "cifs", "smb3", "smbfs", "9p", "vboxsf",
    "vmhgfs", "prl_fs", "davfs", "ncpfs",
))
MEMORY_FS = frozenset(("tmpfs", "ramfs", "rootfs", "devtmpfs"))
# Their own UUID is the one that udev shows, so that every machine names the volume alike.
_UUID_IOCTL_FS = frozenset(("ext2", "ext3", "ext4", "btrfs", "xfs", "f2fs", "bcachefs"))
_LASTING_FSID_FS = frozenset(("ext2", "ext3", "ext4", "btrfs"))  # made from the UUID
# How the reason begins for which a root is offline until somebody accepts what is there now.
OTHER_DISK = "another disk seems to be mounted here"
CLONE_MARK = "#clone@"  # in the name of a volume whose own name another attached disk has as well
_OCTAL_ESCAPE = re.compile(rb"\\([0-7]{3})")
_HEX_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")


class MountEntry(NamedTuple):
    """One line of the mount table; paths are native."""

    mount_id: int
    device: str  # "major:minor"
    root: str  # which folder of the file system is mounted
    path: str
    fs: str
    source: str


class RootInfo(NamedTuple):
    """What is known about a root; strings are text, sizes are bytes.

    volume and volume_path name the same folder alike through every mount of it, on every machine;
    both are None where the file system has no lasting identity (tmpfs, overlay, unknown).
    fsid is the name of a volume whose UUID is not to be had (older kernels in a container).
    """

    path: str
    volume: str | None
    volume_path: str | None
    label: str | None
    fs: str | None
    rotational: bool | None
    network: bool
    total_bytes: int | None
    free_bytes: int | None
    device: int
    inode: int
    inodes_stable: bool
    fsid: str | None = None


def describe_root(native_path: str) -> RootInfo:
    """Everything about the folder; OSError only if it cannot be looked at."""
    path = os.path.abspath(native_path)
    seen = os.stat(path)
    mount = _mount_of(path)
    fs = mount.fs if mount else None
    fsid = _fsid_of(path, mount)
    volume = _volume_of(path, seen, mount) or fsid
    total, free = _space_of(path)
    return RootInfo(
        path=to_text(path), volume=volume,
        volume_path=_volume_path_of(path, mount) if volume else None,
        label=_label_of(mount), fs=fs, rotational=_is_rotational(mount),
        network=fs in NETWORK_FS, total_bytes=total, free_bytes=free, device=seen.st_dev,
        inode=seen.st_ino, inodes_stable=inodes_stable_on(fs), fsid=fsid,
    )


def inodes_stable_on(fs: str | None) -> bool:
    """False for file system types whose inode numbers do not last."""
    return fs is None or not (fs in UNSTABLE_INODE_FS or fs.startswith("fuse."))


def _space_of(path: str) -> tuple:
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return None, None
    return usage.total, usage.free


# The mount table

def mount_points() -> set | None:
    """The native paths at which something is mounted; None where nobody tells."""
    entries = _read_mounts()
    return None if entries is None else {entry.path for entry in entries}


def _read_mounts() -> list | None:
    try:
        with open(MOUNT_TABLE, "rb") as table:
            lines = table.read().splitlines()
    except OSError:
        return None
    return [entry for entry in map(parse_mount_line, lines) if entry is not None]


def parse_mount_line(line: bytes) -> MountEntry | None:
    """One line of mountinfo: id parent major:minor root path options… - fs source options."""
    before, separator, after = line.partition(b" - ")
    left, right = before.split(b" "), after.split(b" ")
    if not separator or len(left) < 6 or len(right) < 2 or not left[0].isdigit():
        return None
    return MountEntry(
        int(left[0]), left[2].decode("ascii", "replace"), _unescape_mount(left[3]),
        _unescape_mount(left[4]), os.fsdecode(right[0]), _unescape_mount(right[1]),
    )


def _unescape_mount(field: bytes) -> str:
    return os.fsdecode(_OCTAL_ESCAPE.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), field))


def _mount_of(path: str) -> MountEntry | None:
    """The mount that shows this folder: by its number, else the last with the longest path."""
    entries = _read_mounts()
    if not entries:
        return None
    # Only the number tells which of several mounts on one folder is seen.
    mount_id = _mount_id_of(path)
    for entry in entries:
        if entry.mount_id == mount_id:
            return entry
    real = os.path.realpath(path)
    covering = [entry for entry in reversed(entries) if _lies_in(real, entry.path)]
    return max(covering, key=lambda entry: len(entry.path), default=None)


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _mount_id_of(path: str) -> int | None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            with open(f"/proc/self/fdinfo/{descriptor}", "rb") as info:
                for line in info:
                    if line.startswith(b"mnt_id:"):
                        return int(line.split()[1])
        finally:
            os.close(descriptor)
    return None


# The volume

def _volume_of(path: str, seen, mount: MountEntry | None) -> str | None:
    if mount is None:
        # On Windows the device number is the serial number of the volume.
        return f"serial:{seen.st_dev:x}" if os.name == "nt" and seen.st_dev else None
    if mount.fs in NETWORK_FS:
        return _network_volume(mount)
    if mount.fs in _UUID_IOCTL_FS:
        found = _uuid_by_ioctl(path, mount.fs)
        if found:
            return f"uuid:{found}"
    found = _name_by_link("/dev/disk/by-uuid", mount)
    return f"uuid:{found.lower()}" if found else None


def _fsid_of(path: str, mount: MountEntry | None) -> str | None:
    if mount is not None and mount.fs in _LASTING_FSID_FS:
        with contextlib.suppress(OSError, AttributeError):
            fsid = os.statvfs(path).f_fsid
            return f"fsid:{fsid:016x}" if fsid else None
    return None


def _network_volume(mount: MountEntry) -> str | None:
    """Server and share. Shares of a virtual machine's own host name no server: they have none."""
    source = to_text(mount.source)
    if mount.fs in ("nfs", "nfs4"):
        server, separator, export = source.rpartition(":/")
        return f"nfs://{server.lower()}/{export.strip('/')}" if separator and server else None
    if mount.fs in ("cifs", "smb3", "smbfs"):
        share = source.replace("\\", "/").strip("/").lower()
        return f"smb://{share}" if "/" in share else None
    if mount.fs == "fuse.sshfs":
        server, separator, folder = source.partition(":")
        return f"sshfs://{server.lower()}/{folder.strip('/')}" if separator and server else None
    return None


def _volume_path_of(path: str, mount: MountEntry | None) -> str:
    """The folder's path in its file system, from that one's own root: "/" or "/films/new"."""
    real = os.path.realpath(path)
    if mount is None:
        return "/" + to_text(os.path.splitdrive(real)[1]).strip("/")
    inside = real[len(mount.path):] if _lies_in(real, mount.path) else real
    parts = [to_text(part).strip("/") for part in (mount.root, inside)]
    return "/" + "/".join(part for part in parts if part)


def _uuid_by_ioctl(path: str, fs: str) -> str | None:
    """What the file system itself says; udev, which would know too, is not in every container."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        length, raw = struct.unpack("B16s", _ask_file_system(descriptor, FS_IOC_GETFSUUID, 17))
        if not length and fs == "btrfs":
            answer = _ask_file_system(descriptor, BTRFS_IOC_FS_INFO, 1024)
            length, raw = 16 * any(answer), answer[16:32]
    finally:
        os.close(descriptor)
    return str(uuid.UUID(bytes=raw)) if length == 16 and any(raw) else None


def _ask_file_system(descriptor: int, question: int, length: int) -> bytes:
    """The answer of an ioctl; zeros where it is not known."""
    answer = bytearray(length)
    try:
        fcntl.ioctl(descriptor, question, answer)
    except (OSError, ValueError, OverflowError):
        return bytes(length)
    return bytes(answer)


def _device_numbers(mount: MountEntry) -> set:
    """The st_rdev of the block device(s) behind a mount."""
    numbers = set()
    major, _, minor = mount.device.partition(":")
    with contextlib.suppress(ValueError, AttributeError):
        if int(major):  # 0 is a number made up by btrfs, overlay and others
            numbers.add(os.makedev(int(major), int(minor)))
    if mount.source.startswith("/dev/"):
        with contextlib.suppress(OSError):
            numbers.add(os.stat(mount.source).st_rdev)
    return numbers - {0}


def _name_by_link(folder: str, mount: MountEntry) -> str | None:
    """The name of the link in a folder of /dev/disk that leads to the device of a mount."""
    numbers = _device_numbers(mount)
    if not numbers or mount.fs in MEMORY_FS:
        return None
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return None
    for name in names:
        with contextlib.suppress(OSError):
            if os.stat(os.path.join(folder, name)).st_rdev in numbers:
                return to_text(_unescape_udev(name))
    return None


def _unescape_udev(name: str) -> str:
    raw = os.fsencode(name)
    return os.fsdecode(_HEX_ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), raw))


def _label_of(mount: MountEntry | None) -> str | None:
    return _name_by_link("/dev/disk/by-label", mount) if mount else None


# The disk

def _is_rotational(mount: MountEntry | None) -> bool | None:
    """True if any disk behind the mount turns, False if none does, None if that is not known."""
    if mount is None:
        return None
    if mount.fs in MEMORY_FS:
        return False
    answers = [
        _device_rotational(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}", 0)
        for number in _device_numbers(mount)
    ]
    return _any_rotational(answers)


def _any_rotational(answers: list) -> bool | None:
    if True in answers:
        return True
    return False if answers and None not in answers else None


def _device_rotational(device: str, depth: int) -> bool | None:
    """Follow a partition to its disk, and a mapped or joined device to what it is made of."""
    device = os.path.realpath(device)
    if os.path.exists(os.path.join(device, "partition")):
        device = os.path.dirname(device)
    slaves = []
    with contextlib.suppress(OSError):
        slaves = os.listdir(os.path.join(device, "slaves"))
    if slaves and depth < 8:
        return _any_rotational([
            _device_rotational(os.path.join(device, "slaves", slave), depth + 1)
            for slave in slaves
        ])
    try:
        with open(os.path.join(device, "queue", "rotational"), "rb") as answer:
            return answer.read(8).strip() == b"1"
    except OSError:
        return None


# =================================================================================================
# medialib/hashing.py, from its line 25
# Hashes of files: blake3 and xxhash64 where they are installed, sha256 everywhere.
# =================================================================================================

HASH_CHUNK_BYTES = 1 << 20
HASH_DROP_BYTES = 16 << 20  # how much is read before the page cache behind is given back
_HASH_OPEN_FLAGS = (
    os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)
)
_HASH_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_HASH_NO_ATIME = getattr(os, "O_NOATIME", 0)


class FileChanging(Exception):
    """The file is not (or not any more) what the walk saw; its hash would belong to no stat."""


class HashResult(NamedTuple):
    """What reading a file gave: label, sample size, lower-case hex digests, when (epoch s).
    `full_hash` is None where the file is larger than three samples and was not read whole.
    """

    algo: str
    sample_size: int
    sample_hash: str
    full_hash: str | None
    hashed_at: float


# Algorithms

def available_algorithms() -> list:
    """The names of what can run here, the preferred first."""
    names = []
    if blake3 is not None:
        names.append("blake3")
    if xxhash is not None:
        names.append("xxhash64")
    return [*names, "sha256"]


def effective_algorithm(asked: str) -> str:
    """What really runs when `asked` is configured: the label of every digest made here."""
    return asked if asked in available_algorithms() else "sha256"


def new_hasher(algo: str):
    """An object with update(bytes) and hexdigest(), for one of `available_algorithms`."""
    if algo == "blake3" and blake3 is not None:
        return blake3.blake3()
    if algo == "xxhash64" and xxhash is not None:
        return xxhash.xxh64()
    if algo == "sha256":
        return hashlib.sha256()
    raise ValueError(f"the hash algorithm {algo!r} is not available here")


def digest_algorithm(digest_hex: str, label: str) -> str:
    """The function that made a digest. Older agents call their sha256 fall-back "xxhash64"."""
    if label == "xxhash64" and len(digest_hex) == 64:
        return "sha256"
    return label


# Opening

def open_unchanged(native_path: str, expected, *, follow: bool = False,
                   inodes_stable: bool = True) -> tuple:
    """(descriptor, its stat) of a regular file that still is what `expected` says; FileChanging
    otherwise. It never blocks on a FIFO, and leaves the access time alone where it may.
    """
    flags = _HASH_OPEN_FLAGS if follow else _HASH_OPEN_FLAGS | _HASH_NO_FOLLOW
    try:
        descriptor = os.open(native_path, flags | _HASH_NO_ATIME)
    except PermissionError:  # only its owner may read a file without a trace
        descriptor = os.open(native_path, flags)
    try:
        seen = os.fstat(descriptor)
        version = (f"{seen.st_size}:{seen.st_mtime_ns}:{seen.st_ino}:" if inodes_stable
                   else f"{seen.st_size}:{seen.st_mtime_ns}:")
        if not expected.inode_key.startswith(version) or not stat.S_ISREG(seen.st_mode):
            raise FileChanging("the file changed since it was listed")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, seen


def check_unchanged(descriptor: int, before) -> None:
    """Raise FileChanging if the open file was written to since its stat `before`."""
    seen = os.fstat(descriptor)
    if seen.st_mtime_ns != before.st_mtime_ns or seen.st_size != before.st_size:
        raise FileChanging("the file changed while it was read")


def _feed_exactly(hasher, descriptor: int, length: int) -> None:
    """Hash the next `length` bytes; a file that ends earlier is changing."""
    while length > 0:
        data = os.read(descriptor, length if length < HASH_CHUNK_BYTES else HASH_CHUNK_BYTES)
        if not data:
            raise FileChanging("the file became shorter while it was read")
        hasher.update(data)
        length -= len(data)


# Hashes of files

def sample_hash_file(native_path: str, expected, algo: str, sample_size: int, *,
                     follow: bool = False, inodes_stable: bool = True) -> HashResult:
    """Hash the first, the middle and the last `sample_size` bytes, or all of a small file.

    expected       has the `size` and `inode_key` that the walk saw
    algo           one of `available_algorithms`
    inodes_stable  False where the file system makes up inode numbers
    Raises FileChanging, and OSError where the file cannot be opened or read.
    """
    size = expected.size
    whole = size <= 3 * sample_size
    descriptor, before = open_unchanged(
        native_path, expected, follow=follow, inodes_stable=inodes_stable
    )
    try:
        hasher = new_hasher(algo)
        if not whole:
            _feed_samples(hasher, descriptor, size, sample_size)
        elif size:
            data = os.read(descriptor, size)  # most files come whole with one call
            hasher.update(data)
            if len(data) != size:
                _feed_exactly(hasher, descriptor, size - len(data))
        check_unchanged(descriptor, before)
    finally:
        os.close(descriptor)
    digest = hasher.hexdigest()
    return HashResult(algo, sample_size, digest, digest if whole else None, time.time())


def _feed_samples(hasher, descriptor: int, size: int, sample_size: int) -> None:
    if hasattr(os, "posix_fadvise"):
        # Reading ahead would fetch from the disk what nobody asked for.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    for start in (0, size // 2 - sample_size // 2, size - sample_size):
        os.lseek(descriptor, start, os.SEEK_SET)
        _feed_exactly(hasher, descriptor, sample_size)


def full_hash_file(native_path: str, expected, algo: str, *, keep_going, on_bytes=None,
                   chunk: int = HASH_CHUNK_BYTES, follow: bool = False,
                   inodes_stable: bool = True) -> str | None:
    """The hash of the whole file as lower-case hex, or None when `keep_going()` said stop.

    `keep_going` is asked before each chunk; `on_bytes(count)` is told of each chunk read.
    Raises FileChanging and OSError like `sample_hash_file`.
    """
    hasher = new_hasher(algo)
    descriptor, before = open_unchanged(
        native_path, expected, follow=follow, inodes_stable=inodes_stable
    )
    try:
        if not _feed_whole(hasher, descriptor, expected.size, chunk, keep_going, on_bytes):
            return None
        check_unchanged(descriptor, before)
    finally:
        os.close(descriptor)
    return hasher.hexdigest()


def _feed_whole(hasher, descriptor: int, size: int, chunk: int, keep_going, on_bytes) -> bool:
    """Hash the whole open file; False when told to stop."""
    _advise_cache(descriptor, 0, 0, "POSIX_FADV_SEQUENTIAL")
    buffer = memoryview(bytearray(min(chunk, max(size, 1))))
    done = dropped = 0
    while done < size:
        if not keep_going():
            return False
        count = _read_into(descriptor, buffer[:size - done])
        if not count:
            raise FileChanging("the file became shorter while it was read")
        hasher.update(buffer[:count])
        done += count
        if on_bytes is not None:
            on_bytes(count)
        if done - dropped >= HASH_DROP_BYTES:
            # A film read once must not push everything else out of memory.
            _advise_cache(descriptor, dropped, done - dropped, "POSIX_FADV_DONTNEED")
            dropped = done
    return True


def _read_into(descriptor: int, buffer) -> int:
    """Fill a part of the buffer, without a new object per chunk where the platform can."""
    if hasattr(os, "readv"):
        return os.readv(descriptor, [buffer])
    data = os.read(descriptor, len(buffer))
    buffer[:len(data)] = data
    return len(data)


def _advise_cache(descriptor: int, start: int, length: int, advice: str) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, length, getattr(os, advice))


# =================================================================================================
# medialib/leash.py, from its line 18
# A leash for a child process: when we die, however we die, the kernel kills its whole group.
# =================================================================================================

class Leash:
    """Made before the child, which inherits `pass_fds`; `tie` it, and `drop` it in any case."""

    def __init__(self):
        self._ours, self._childs = None, None
        if hasattr(fcntl, "F_SETSIG"):
            self._childs, self._ours = os.pipe()

    @property
    def pass_fds(self) -> tuple:
        return () if self._childs is None else (self._childs,)

    def tie(self, group: int) -> None:
        """From now on the group does not outlive us."""
        if self._childs is None:
            return
        fcntl.fcntl(self._childs, fcntl.F_SETOWN, -group)
        fcntl.fcntl(self._childs, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(self._childs, fcntl.F_GETFL)
        fcntl.fcntl(self._childs, fcntl.F_SETFL, flags | os.O_ASYNC)
        os.close(self._childs)  # the child has its own, with the same owner
        self._childs = None

    def drop(self) -> None:
        """Let go: what is left of a tied group is killed."""
        for descriptor in (self._ours, self._childs):
            if descriptor is not None:
                os.close(descriptor)
        self._ours = self._childs = None


# =================================================================================================
# medialib/probe_run.py, from its line 19
# One run of a program we do not trust: its own group, a deadline, bounded output, no remains.
# =================================================================================================

PROBE_MESSAGES_BYTES = 16 << 10  # as much of stderr as is looked at
PROBE_LOOK_S = 0.25  # how often a running probe asks whether it is to stop
PROBE_NICE = 19
_PROBE_ENVIRONMENT = (  # what programs need to start; no proxies, no settings of ffmpeg
    "PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "SYSTEMDRIVE", "TEMP", "TMP",
)
_PROBE_BAD_TEXT = re.compile(r"[\x00\ud800-\udfff]")


class ProbeFailed(Exception):
    """One file could not be described. `error_class` is one of:

    timeout, crashed, invalid (output), too much output, not a video, refused format, unreadable,
    missing (no ffprobe any more), not started, stopped (by us).
    """

    def __init__(self, error_class: str, message: str):
        super().__init__(f"{error_class}: {message}")
        self.error_class = error_class
        self.message = message


def clean_probe_text(text: str) -> str:
    """Valid Unicode without NUL, whatever a program wrote."""
    return _PROBE_BAD_TEXT.sub("\ufffd", text)


class ProbeRun:
    """One run of a program we do not trust. `finish` gives the run with its output, or raises.

    On return nothing is left of it: no process of its group, no zombie, no descriptor.
    """

    def __init__(self, command: list, deadline_s: float, max_output: int,
                 stop: threading.Event | None):
        self.deadline = time.monotonic() + deadline_s
        self.deadline_s = deadline_s
        self.max_output = max_output
        self.stop = stop
        self.output = bytearray()
        self.messages = bytearray()
        self.seen_messages = 0  # in bytes, also of what was not kept
        self.exit_code = None
        self.process, self.leash = _start_probe(command)

    def finish(self) -> ProbeRun:
        process = self.process
        try:
            if hasattr(os, "killpg"):
                self._read_with_selector()
            else:
                self._read_with_threads()
            self._await_exit()
        finally:
            self._end_group()
            self.leash.drop()
            process.stdout.close()
            process.stderr.close()
            self.exit_code = process.wait()
        return self

    def take(self, data: bytes, is_output: bool) -> None:
        """Keep what was read; raise when it is more than anybody needs."""
        if is_output:
            self.output += data
        else:
            self.seen_messages += len(data)
            self.messages += data[:max(0, PROBE_MESSAGES_BYTES - len(self.messages))]
        if len(self.output) > self.max_output or self.seen_messages > self.max_output:
            raise ProbeFailed("too much output", f"more than {self.max_output} bytes")

    def check_time(self) -> float:
        """Seconds until the next look; raises when the time is over."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise ProbeFailed("timeout", f"no answer within {self.deadline_s:g} s")
        if self.stop is not None and self.stop.is_set():
            raise ProbeFailed("stopped", "the scan is stopping")
        return min(left, PROBE_LOOK_S)

    def _read_with_selector(self) -> None:
        with selectors.DefaultSelector() as selector:
            for pipe in (self.process.stdout, self.process.stderr):
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe.fileno(), selectors.EVENT_READ, pipe is self.process.stdout)
            while selector.get_map():
                for key, _ in selector.select(self.check_time()):
                    try:
                        data = os.read(key.fd, 1 << 16)
                    except BlockingIOError:
                        continue
                    if data:
                        self.take(data, key.data)
                    else:
                        selector.unregister(key.fd)

    def _read_with_threads(self) -> None:
        """For Windows, where pipes cannot be waited for."""
        failures = []

        def drain(pipe, is_output: bool) -> None:
            with contextlib.suppress(OSError, ValueError):
                try:
                    for data in iter(lambda: os.read(pipe.fileno(), 1 << 16), b""):
                        self.take(data, is_output)
                except ProbeFailed as failure:
                    failures.append(failure)

        readers = [
            threading.Thread(target=drain, args=(self.process.stdout, True), daemon=True),
            threading.Thread(target=drain, args=(self.process.stderr, False), daemon=True),
        ]
        for reader in readers:
            reader.start()
        while any(reader.is_alive() for reader in readers) and not failures:
            readers[0].join(min(self.check_time(), 0.02))
            readers[1].join(0.02)
        if failures:
            raise failures[0]

    def _await_exit(self) -> None:
        """Wait for the exit of a process that closed its pipes, without reaping it yet: as long as
        it is there its group number cannot be somebody else's.
        """
        pause = 0.0005
        while not self._has_ended():
            time.sleep(min(pause, self.check_time()))
            pause = min(pause * 2, 0.05)

    def _has_ended(self) -> bool:
        if not hasattr(os, "waitid"):
            return self.process.poll() is not None
        flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
        return os.waitid(os.P_PID, self.process.pid, flags) is not None

    def _end_group(self) -> None:
        """Kill whatever is left of the group, children that ignore SIGTERM included."""
        if self.process.returncode is not None:
            return
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()


def _start_probe(command: list) -> tuple:
    """(process, its leash): it does not outlive us, not even when we are killed."""
    kept = {name: os.environ[name] for name in _PROBE_ENVIRONMENT if name in os.environ}
    windows_flags = (
        getattr(subprocess, "IDLE_PRIORITY_CLASS", 0) | getattr(subprocess, "CREATE_NO_WINDOW", 0)
    )
    leash = None
    try:
        leash = Leash()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            bufsize=0, env={**kept, "LC_ALL": "C", "AV_LOG_FORCE_NOCOLOR": "1"},
            start_new_session=True, creationflags=windows_flags, pass_fds=leash.pass_fds,
        )
    except (OSError, ValueError) as error:
        if leash:
            leash.drop()
        gone = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.EPERM)
        is_missing = getattr(error, "errno", None) in gone
        message = clean_probe_text(f"ffprobe cannot be started: {error}")
        raise ProbeFailed("missing" if is_missing else "not started", message) from None
    with contextlib.suppress(OSError):  # without it, the process would only live on after us
        leash.tie(process.pid)
    if hasattr(os, "setpriority"):
        with contextlib.suppress(OSError):  # it may be over already
            os.setpriority(os.PRIO_PROCESS, process.pid, PROBE_NICE)
    return process, leash


# =================================================================================================
# medialib/ffprobe.py, from its line 20
# Describe one media file with ffprobe, which may be missing, hang, crash, flood or lie.
# =================================================================================================

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


# =================================================================================================
# medialib/sqlite_store.py, from its line 22
# SQLite: opening with our pragmas, whole transactions, migrations, checked copies.
# =================================================================================================

BUSY_TIMEOUT_S = 30.0
WAL_LIMIT_BYTES = 64 << 20
# How long the log gets before it begins anew. A page that changes often is copied back once for all
# changes that the log holds, which a large database gains from; in a small one, on what may be a
# small disk, the log would be most of it.
LOG_PAGES_LEAST, LOG_PAGES_MOST = 8000, 30_000
LOG_SHARE = 16  # of the database's pages, between these two
SQLITE_HEADER = b"SQLite format 3\0"

DAMAGE_WORDS = ("malformed", "not a database", "file is encrypted", "disk image")


def explain_sqlite_error(error: sqlite3.Error, path: str) -> StoreError:
    """The error as one of ours: damaged, or merely not usable now (disk full, locked)."""
    text = str(error)
    # A question that SQLite cannot parse is "malformed" too, but an OperationalError.
    if not isinstance(error, sqlite3.OperationalError) and any(
            word in text for word in DAMAGE_WORDS):
        return DamagedStoreError(f"{path} is damaged: {text}")
    return StoreError(f"{path} cannot be used: {text}")


def keep_private(path: str) -> None:
    """For its owner alone, before SQLite opens it: the log beside it gets the same rights."""
    with contextlib.suppress(OSError):
        if os.path.isfile(path):
            os.chmod(path, 0o600)
            return
        # Only where it is new: closing a file ends the locks that others here hold on it.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


class Checkpoints:
    """Copies the log into the database on a thread of its own. Whoever writes would wait each time
    until the disk has both.

    The writer still does so by itself when the log is `log_pages` long: it finds little to copy,
    and only it can let the log begin anew. It is also the one who reports what is wrong with a
    disk.
    """

    def __init__(self, path: str, synchronous: str):
        self.log_pages = LOG_PAGES_LEAST
        self._path = path
        self._synchronous = synchronous
        self._due = threading.Event()
        self._stopping = False
        self._writers_turn = False
        self._thread: threading.Thread | None = None

    def want(self) -> None:
        """There is enough to copy."""
        if self._writers_turn:
            self._writers_turn = False
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="checkpoints", daemon=True)
            self._thread.start()
        self._due.set()

    def stop(self) -> None:
        self._stopping = True
        self._due.set()
        if self._thread is not None:
            self._thread.join()

    def _loop(self) -> None:
        try:
            with contextlib.closing(sqlite3.connect(
                    self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)) as db:
                db.execute(f"PRAGMA synchronous={self._synchronous}")
                while True:
                    self._due.wait()
                    self._due.clear()
                    if self._stopping:
                        return
                    if not self._writers_turn:  # the writer cannot copy while this thread does
                        done = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                        self._writers_turn = done[1] >= self.log_pages  # those in the log
        except sqlite3.Error as error:
            log.debug("%s: no more checkpoints beside the writer: %s", self._path, error)


class StoreConnection:
    """One writing connection. Use `with store.atomic() as db:`; it may be nested and is re-entrant.

    `lock` guards the connection: whoever holds it may read or write, and holds it shortly.
    `path` "" is a private temporary database that SQLite removes by itself.
    """

    def __init__(self, path: str, *, synchronous: str = "FULL", cache_kib: int = 8192):
        self.path = path
        self.lock = threading.RLock()
        self._depth = 0
        self._checkpoints = Checkpoints(path, synchronous)
        self._copied_changes = 0  # the connection's total_changes at the last checkpoint
        if path:
            keep_private(path)
        try:
            self.db = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False,
                cached_statements=256,
            )
            self._set_pragmas(synchronous, cache_kib)
            self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            raise explain_sqlite_error(error, path) from error

    def _set_pragmas(self, synchronous: str, cache_kib: int) -> None:
        self.db.execute("PRAGMA journal_mode=WAL")
        # WAL with NORMAL loses every commit since the last checkpoint in a power cut.
        self.db.execute(f"PRAGMA synchronous={synchronous}")
        self.db.execute(f"PRAGMA cache_size=-{cache_kib}")
        self.db.execute(f"PRAGMA journal_size_limit={WAL_LIMIT_BYTES}")
        self.db.execute("PRAGMA temp_store=FILE")
        self._limit_log()

    def _limit_log(self) -> None:
        pages = self.db.execute("PRAGMA page_count").fetchone()[0]
        self._checkpoints.log_pages = min(max(LOG_PAGES_LEAST, pages // LOG_SHARE), LOG_PAGES_MOST)
        self.db.execute(f"PRAGMA wal_autocheckpoint={self._checkpoints.log_pages}")

    @contextlib.contextmanager
    def atomic(self):
        """Everything inside is committed together or, on any exception, not at all."""
        with self.lock:
            if self._depth:
                self._depth += 1
                try:
                    yield self.db
                finally:
                    self._depth -= 1
                return
            try:
                self.db.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                raise explain_sqlite_error(error, self.path) from error
            self._depth = 1
            try:
                yield self.db
                self.db.execute("COMMIT")
            except BaseException as error:
                with contextlib.suppress(sqlite3.Error):
                    self.db.execute("ROLLBACK")
                if isinstance(error, sqlite3.DatabaseError):
                    raise explain_sqlite_error(error, self.path) from error
                raise
            finally:
                self._depth = 0
            # A changed row changes a page, or little more.
            changes = self.db.total_changes - self._copied_changes
            if self.path and changes >= self._checkpoints.log_pages // 2:
                self._copied_changes = self.db.total_changes
                with contextlib.suppress(sqlite3.Error):  # the commit itself has succeeded
                    self._limit_log()
                self._checkpoints.want()

    def rows(self, sql: str, values: tuple = ()) -> list:
        """All rows of a short query, read to the end under the lock."""
        with self.lock:
            try:
                return self.db.execute(sql, values).fetchall()
            except sqlite3.DatabaseError as error:
                raise explain_sqlite_error(error, self.path) from error

    def one(self, sql: str, values: tuple = ()):
        """The first row of a short query, or None."""
        rows = self.rows(sql, values)
        return rows[0] if rows else None

    def vacuum(self) -> None:
        """Give back what is not needed; it takes as much room again while it lasts."""
        with self.lock:
            try:
                self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self.db.execute("VACUUM")
                self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.DatabaseError as error:
                raise explain_sqlite_error(error, self.path) from error

    def close(self) -> None:
        self._checkpoints.stop()  # the last connection to be closed tidies up
        with self.lock, contextlib.suppress(sqlite3.Error):
            self.db.close()


def open_reader(path: str, *, cache_kib: int = 4096):
    """A connection that cannot write, for one thread. Read its cursors to the end or close them."""
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None,
                         check_same_thread=False)
    db.execute("PRAGMA query_only=1")
    db.execute(f"PRAGMA cache_size=-{cache_kib}")
    return db


def schema_version(store: StoreConnection) -> int:
    return store.one("PRAGMA user_version")[0]


def migrate(store: StoreConnection, migrations: list, *, before_upgrade=None) -> None:
    """Bring the schema up to `len(migrations)`; each step is a list of statements or a function
    of the connection, and is committed together with its number. `before_upgrade(store)` is called
    once before an existing schema is changed (to keep a copy).
    """
    version = schema_version(store)
    if version > len(migrations):
        raise NewerStoreError(
            f"{store.path} was written by a newer medialib (schema {version}, this one knows "
            f"{len(migrations)}): use that version, or another --data-dir"
        )
    if 0 < version < len(migrations) and before_upgrade is not None:
        before_upgrade(store)
    for number in range(version, len(migrations)):
        step = migrations[number]
        with store.atomic() as db:
            if callable(step):
                step(db)
            else:
                for statement in step:
                    db.execute(statement)
            db.execute(f"PRAGMA user_version={number + 1}")
        log.debug("%s: schema %s", store.path, number + 1)


def check_sound(store: StoreConnection, *, quick: bool = True) -> None:
    """Raise DamagedStoreError when SQLite's own check finds something."""
    with store.lock:
        check_connection(store.db, store.path, quick=quick)


def check_connection(db, path: str, *, quick: bool = True) -> None:
    """The same through any connection; StoreError when the check cannot be made now."""
    try:
        problems = db.execute(
            "PRAGMA quick_check(3)" if quick else "PRAGMA integrity_check(3)").fetchall()
    except sqlite3.Error as error:
        raise explain_sqlite_error(error, path) from error
    if problems != [("ok",)]:
        raise DamagedStoreError(f"{path} is damaged: {problems[0][0]}")


def set_foreign_log_aside(path: str) -> str | None:
    """A log that lies beside a copy of ours belongs to the database that lay here before: SQLite
    would mix both. It is renamed; the new name, or None when there was none.

    A copy of ours is not in WAL mode (bytes 18 and 19 of its header), and a database that is not
    has no such log: it is put into that mode before its first one is written.
    """
    log_path = f"{path}-wal"
    try:
        with open(path, "rb") as file:
            header = file.read(20)
        if header[18:20] != b"\x01\x01" or not os.path.getsize(log_path):
            return None
        aside = f"{log_path}.of-another-{time.strftime('%Y%m%d-%H%M%S')}"
        os.rename(log_path, aside)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{log_path} belongs to another database: {error}") from error
    with contextlib.suppress(OSError):
        os.remove(f"{path}-shm")
    return aside


# Copies

def copy_database(path: str, target: str) -> int:
    """A consistent, checked copy of a database in use, by the backup API; its size in bytes.

    Written beside the target and renamed, so that a half copy never has the target's name. An older
    copy is replaced; anything else that has this name is not.
    """
    target = os.path.realpath(target)
    refuse_to_replace(path, target)
    part = f"{target}.{os.getpid()}-{threading.get_ident()}.part"
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        _copy_pages(path, part)
        os.replace(part, target)
        sync_folder(os.path.dirname(target))
        return os.path.getsize(target)
    except sqlite3.Error as error:
        problem = explain_sqlite_error(error, path)
        if isinstance(problem, DamagedStoreError):
            raise problem from error
        raise StoreError(f"cannot copy {path} to {target}: {error}") from error
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        for rest in (part, f"{part}-journal"):
            with contextlib.suppress(OSError):
                os.remove(rest)


def refuse_to_replace(path: str, target: str) -> None:
    """StoreError unless `target` is free, or a database that nobody uses."""
    if not os.path.lexists(target):
        return
    if os.path.exists(path) and os.path.samefile(path, target):
        raise StoreError(f"{target} is the database itself, and no place for a copy of it")
    if not os.path.isfile(target):
        raise StoreError(f"{target} is there already and is not a file")
    if any(os.path.exists(target + suffix) for suffix in ("-wal", "-shm", "-journal")):
        raise StoreError(f"{target} is a database in use: name another file")
    try:
        with open(target, "rb") as file:
            header = file.read(len(SQLITE_HEADER))
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
    if header != SQLITE_HEADER:  # an empty file may be somebody's lock
        raise StoreError(f"{target} is there already and is not a copy of a catalogue")


def _copy_pages(path: str, part: str) -> None:
    source = open_reader(path)
    try:
        copy = sqlite3.connect(part)
        try:
            # One snapshot for the whole copy: otherwise every commit makes it start again.
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
            source.backup(copy, pages=4096)
            copy.execute("PRAGMA journal_mode=DELETE")
            check_connection(copy, f"the copy of {path}", quick=False)
        finally:
            copy.close()
    finally:
        source.close()


# =================================================================================================
# medialib/http_body.py, from its line 17
# Bodies from strangers: gunzip and JSON with bounds on bytes, memory, depth and number of objects.
# =================================================================================================

JSON_DEPTH = 64
# 64 MiB of "[],[]," would be 22 times as much in Python objects: what costs is the number of
# values, not of bytes. A batch of 500 records has about 20,000 of these tokens.
JSON_TOKENS = 500_000
JSON_TOKEN_BYTES = 116  # in memory at most, on the average: {"": {"": …}} makes a dict of every two
JSON_ESCAPE_BYTES = 8  # older Pythons make a string of every escape
JSON_UNICODE_ESCAPE_BYTES = 76
JSON_LEAST_BYTES = 8 << 10
JSON_DIGITS = 4300  # where Python itself stops; before 3.8.14 it did not, and took hours
GUNZIP_STEP = 1 << 16

# Brackets become "[" and "]", quotes stay, and for counting also commas and colons.
JSON_SHAPE_TABLE = bytes.maketrans(b"{}", b"[]")
JSON_NEST_DROPS = bytes(byte for byte in range(256) if byte not in b'[]{}"')
JSON_SHAPE_DROPS = bytes(byte for byte in range(256) if byte not in b'[]{}",:')
JSON_TOKEN_DROPS = bytes(byte for byte in range(256) if byte not in b"[{,:")
WIDE_DROPS = bytes(range(0xF0))  # leaves the first bytes of letters that are four bytes everywhere
# What Python writes for an undecodable byte of a file name becomes the same byte in path text.
SURROGATE = re.compile("[\ud800-\udfff]")
HARMLESS_SURROGATES = {code: 0xEF00 + (code & 0xFF) if 0xDC80 <= code <= 0xDCFF else 0xFFFD
                       for code in range(0xD800, 0xE000)}


class BodyError(MedialibError):
    """A body that is not taken; `status` is the HTTP status for it."""

    def __init__(self, status: int, error: str, detail: str = ""):
        super().__init__(f"{error}: {detail}" if detail else error)
        self.status = status
        self.error = error
        self.detail = detail


class JsonWeight:
    """About how much memory it will take to parse a JSON text that is told piece by piece: the
    bytes, the text, its strings and the values. No less than it is, whatever the text holds.
    """

    def __init__(self):
        self.size_bytes = 0
        self.tokens = 0
        self.escapes_bytes = 0
        self.text_width = 1  # bytes a letter, as Python keeps texts
        self.string_width = 1

    def add(self, piece: bytes) -> None:
        self.size_bytes += len(piece)
        self.tokens += len(piece.translate(None, JSON_TOKEN_DROPS))
        if self.text_width < 4 and not piece.isascii():
            self.text_width = 4 if piece.translate(None, WIDE_DROPS) else max(2, self.text_width)
        if b"\\" in piece:
            unicode_escapes = piece.count(b"\\u")
            self.escapes_bytes += (piece.count(b"\\") * JSON_ESCAPE_BYTES
                                   + unicode_escapes * JSON_UNICODE_ESCAPE_BYTES)
            if unicode_escapes or piece.endswith(b"\\"):  # an escape may be cut in two here
                self.string_width = 4

    def memory_bytes(self) -> int:
        letters = 1 + self.text_width + max(self.text_width, self.string_width)
        if self.string_width > self.text_width:  # a string is put together from parts, and grows
            letters += self.text_width + self.string_width // 2
        return (JSON_LEAST_BYTES + self.size_bytes * letters + self.escapes_bytes
                + min(self.tokens, JSON_TOKENS) * JSON_TOKEN_BYTES)


def gunzip_bounded(data: bytes, limit: int) -> bytearray:
    """The unpacked bytes, at most `limit` of them, or BodyError 413 without having held them."""
    if limit > GUNZIP_STEP:  # unpacking twice costs time, but a bomb then costs no memory
        for _ in gunzip_pieces(data, limit):
            pass
    return gunzip_whole(data, limit)


def gunzip_whole(data: bytes, limit: int) -> bytearray:
    """The same for what has been looked through before."""
    body = bytearray()
    for piece in gunzip_pieces(data, limit):
        body += piece
    return body


def gunzip_pieces(data: bytes, limit: int):
    """The unpacked pieces, until more than `limit` bytes came out."""
    source = memoryview(data)
    place = total = 0
    unpacker = zlib.decompressobj(wbits=31)
    while place < len(source) or unpacker.unconsumed_tail:
        packed = unpacker.unconsumed_tail
        if not packed:  # in slices: what is not consumed is copied each time
            packed = source[place:place + GUNZIP_STEP]
            place += len(packed)
        try:
            piece = unpacker.decompress(packed, GUNZIP_STEP)
        except zlib.error as error:
            raise BodyError(400, "not gzip", str(error)) from error
        total += len(piece)
        if total > limit:
            raise BodyError(413, "body too large", f"more than {limit} bytes unpacked")
        yield piece
        if unpacker.eof:
            break
    # What is still inside the unpacker is less than a step; a whole member leaves nothing.
    if not unpacker.eof:
        raise BodyError(400, "not gzip", "the compressed body is cut short")
    if place < len(source) or unpacker.unused_data:  # a million tiny members are a bomb as well
        raise BodyError(400, "not gzip", "something follows the compressed body")


def gzip_packed(data: bytes) -> bytes:
    """Packed quickly: on a home network the processor is the scarcer thing."""
    return gzip.compress(data, 1)


def parse_json_bounded(data: bytes, *, tokens: int = JSON_TOKENS, depth: int = JSON_DEPTH):
    """The JSON value in UTF-8 `data`. BodyError 400 for all that is not sound JSON in our bounds.

    NaN and Infinity are refused. A lone surrogate, which no UTF-8 can hold, is made harmless: what
    Python writes for an undecodable byte of a file name (U+DC80 to U+DCFF) becomes the same byte
    in path text (U+EF80 to U+EFFF), any other becomes U+FFFD.
    """
    _check_json_shape(data, tokens, depth)
    try:
        text = data.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse_constant, parse_int=_bounded_int_parser())
        if b"\\" in data and "\\u" in text and ("\\ud" in text or "\\uD" in text):
            value = _harmless(value)
        return value
    except RecursionError as error:
        raise BodyError(400, "JSON too deep", f"at most {depth} levels") from error
    except ValueError as error:
        raise BodyError(400, "not JSON", str(error)[:200]) from error


def parse_json_object(data: bytes, **bounds) -> dict:
    """As parse_json_bounded, but the value must be an object."""
    value = parse_json_bounded(data, **bounds)
    if not isinstance(value, dict):
        raise BodyError(400, "not a JSON object", "the body must be an object {...}")
    return value


def _check_json_shape(data: bytes, tokens: int, depth: int) -> None:
    """Count and nest the brackets without making an object. Looks closely only where it must."""
    if len(data) > tokens and len(data.translate(None, JSON_TOKEN_DROPS)) > tokens:
        shape = _json_shape(data, JSON_SHAPE_DROPS)
        if shape.count(b"[") + shape.count(b",") + shape.count(b":") > tokens:
            raise BodyError(400, "JSON too large", f"more than {tokens} values")
    if data.count(b"[") + data.count(b"{") > depth:
        _check_json_depth(_json_shape(data, JSON_NEST_DROPS), depth)


def _check_json_depth(nest: bytes, depth: int) -> None:
    for _ in range(depth):
        if not nest:
            return
        outer = nest.replace(b"[]", b"")  # the innermost level goes
        if len(outer) == len(nest):
            raise BodyError(400, "not JSON", "brackets do not match, or are too deep")
        nest = outer
    if nest:
        raise BodyError(400, "JSON too deep", f"at most {depth} levels")


def _json_shape(data: bytes, drops: bytes) -> bytes:
    """The brackets (all as [ and ]) and what else is not in `drops`, outside of strings."""
    if b"\\" in data:  # escaped backslashes first: then a remaining \\" is a quote in a string
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    shape = data.translate(JSON_SHAPE_TABLE, drops)
    # Strings that held nothing kept here are now empty. Where one follows another at once this
    # joins the two, which changes nothing outside of them.
    shape = shape.replace(b'""', b"")
    return b"".join(shape.split(b'"')[::2]) if b'"' in shape else shape


def _harmless(value):
    """The same value without lone surrogates in its texts; lists and dicts are mended in place."""
    if isinstance(value, str):
        return _harmless_text(value)
    if isinstance(value, list):
        value[:] = map(_harmless, value)
    elif isinstance(value, dict):
        mended = [(_harmless_text(key), _harmless(inner)) for key, inner in value.items()]
        value.clear()
        value.update(mended)
    return value


def _harmless_text(text: str) -> str:
    return text.translate(HARMLESS_SURROGATES) if SURROGATE.search(text) else text


def _refuse_constant(name: str):
    raise ValueError(f"{name} is not JSON")


def _bounded_int_parser():
    """None where Python bounds the digits of an integer itself (json is faster without a hook)."""
    return None if hasattr(sys, "get_int_max_str_digits") else _parse_bounded_int


def _parse_bounded_int(digits: str) -> int:
    if len(digits) > JSON_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


# =================================================================================================
# medialib/http_gate.py, from its line 15
# Who may talk to us (DESIGN §8): peer address, Host, Origin, Sec-Fetch-Site; addresses and TLS.
# =================================================================================================

# ipaddress.is_private means something else: it knows documentation networks, but not 100.64/10.
HOME_NETWORKS = (
    "127.0.0.0/8", "::1/128",  # loopback
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16",  # RFC 1918
    "169.254.0.0/16", "fe80::/10",  # link-local
    "fc00::/7",  # unique-local
    "100.64.0.0/10",  # carrier-grade NAT, used by private overlay networks
)
# No one can register a name under these, so no foreign page can point one at us.
HOME_DOMAINS = ("local", "lan", "home", "internal", "localdomain", "home.arpa")
NO_TLS = "this Python has no ssl module: https is not possible"
HOST_TEXT = re.compile(r"(\[[0-9a-f:.]+(?:%[0-9a-z._~-]+)?\]|[0-9a-z._-]+)(?::[0-9]{1,5})?")
KNOWN_HOSTS_KEPT = 256
# Connecting a datagram socket sends nothing; it only asks which of our addresses would be used.
ROUTE_PROBES = (
    "192.168.255.254", "10.255.255.254", "172.31.255.254", "100.127.255.254", "fd00::1",
)


def parse_address(text: str):
    """The address as ipaddress has it, without a zone; IPv4 mapped into IPv6 is the IPv4 address.

    Raises ValueError when the text is no address.
    """
    address = ipaddress.ip_address(text.split("%", 1)[0])
    return getattr(address, "ipv4_mapped", None) or address


def parse_networks(texts) -> tuple:
    """CIDR texts (or single addresses) as networks; UsageError names the first that is none."""
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text.strip(), strict=False))
        except ValueError as error:
            raise UsageError(f"{text!r} is not an address or network such as 10.0.0.0/8") from error
    return tuple(networks)


def format_address(host: str, port: int) -> str:
    """`host:port` as it stands in a URL: an IPv6 address gets its brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Gate:
    """Decides by address, Host, Origin and Sec-Fetch-Site whether a request may be answered.

    `networks`: CIDR texts that replace the private default. `host_names`: further names this
    machine is asked under. May be used by many threads; every setting is replaced as a whole.
    """

    def __init__(self, networks=None, host_names=()):
        self.networks = ()
        self.set_networks(HOME_NETWORKS if networks is None else networks)
        self.names = machine_names() | {name.lower().rstrip(".") for name in host_names}
        self._known_hosts = {}

    def set_networks(self, networks) -> None:
        """Replace the list of allowed networks (CIDR texts or addresses) while running."""
        self.networks = parse_networks(networks)

    def allow_peer(self, address) -> bool:
        """Is this peer (an ipaddress object, unwrapped) allowed? Asked before a byte is read."""
        return any(address in network for network in self.networks
                   if network.version == address.version)

    def check_host(self, host: str) -> bool:
        """May we be asked under this Host? Any port will do, a foreign name will not."""
        known = self._known_hosts.get(host)
        if known is None:
            known = self._is_our_name(host.lower())
            if len(self._known_hosts) >= KNOWN_HOSTS_KEPT:
                self._known_hosts = {}
            self._known_hosts[host] = known
        return known

    def _is_our_name(self, host: str) -> bool:
        match = HOST_TEXT.fullmatch(host)
        if match is None:
            return False
        name = match.group(1)
        if name.rstrip(".") in self.names:
            return True
        with contextlib.suppress(ValueError):
            parse_address(name.strip("[]"))
            return True
        return False

    def refusal(self, headers: dict, *, tls: bool) -> tuple | None:
        """(status, error, detail) for a request that came from somewhere else, or None."""
        host = headers.get("host")
        if host is not None and not self.check_host(host):
            return (421, "not a name of this machine",
                    "ask by address, or start with --host-name NAME to allow the name")
        origin = headers.get("origin")
        if origin is not None:
            scheme = "https" if tls else "http"
            if host is None or origin.lower() != f"{scheme}://{host.lower()}":
                return (403, "foreign origin", "pages of other sites may not ask here")
        if headers.get("sec-fetch-site", "none").lower() not in ("none", "same-origin"):
            return (403, "foreign site", "pages of other sites may not ask here")
        return None


def machine_names() -> frozenset:
    """The names this machine is known by at home, lower-case; found without asking any server."""
    full = socket.gethostname().lower().rstrip(".")
    label = full.split(".", 1)[0]
    names = {"localhost"}
    if label:
        names |= {full, label}
        names |= {f"{label}.{domain}" for domain in (*HOME_DOMAINS, *_search_domains())}
    return frozenset(names)


def _search_domains() -> list:
    """The domains in which this machine looks up short names."""
    domains = []
    with contextlib.suppress(OSError), open("/etc/resolv.conf", encoding="latin-1") as lines:
        for line in lines:
            words = line.lower().split()
            if words and words[0] in ("search", "domain"):
                domains += [word.strip(".") for word in words[1:7] if word.strip(".")]
    return domains


def own_addresses() -> list:
    """This machine's addresses as texts, the one to paste first; sends no packet.

    IPv4 comes before IPv6, since people can type it; then what lies in a home network; then what
    is on a route, before what is merely there.
    """
    found = [_route_address(target) for target in ROUTE_PROBES]
    found += _linux_addresses()
    networks = parse_networks(HOME_NETWORKS[2:])
    kept = []
    for text in found:
        with contextlib.suppress(ValueError):
            address = parse_address(text)
            if address.is_loopback or address.is_link_local or address.is_unspecified:
                continue
            kept.append(str(address))
    return sorted(dict.fromkeys(kept), key=lambda text: (":" in text, _is_foreign(text, networks)))


def _is_foreign(text: str, networks: tuple) -> bool:
    address = parse_address(text)
    return not any(address in network for network in networks if network.version == address.version)


def _route_address(target: str) -> str:
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            return probe.getsockname()[0]
    except OSError:
        return ""


def _linux_addresses() -> list:
    found = []
    last = ""
    with contextlib.suppress(OSError), open("/proc/net/fib_trie", encoding="ascii") as lines:
        for line in lines:
            words = line.split()
            if words[:1] == ["|--"]:
                last = words[1]
            elif words[:3] == ["/32", "host", "LOCAL"]:
                found.append(last)
    with contextlib.suppress(OSError), open("/proc/net/if_inet6", encoding="ascii") as lines:
        found += [str(ipaddress.IPv6Address(int(line.split()[0], 16))) for line in lines]
    return found


def tls_server_context(certfile: str, keyfile: str | None):
    """A TLS context for serving, or MedialibError saying which file is wrong."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certfile, keyfile, password=_refuse_password)
    except ImportError as error:  # small Pythons of routers and NAS boxes
        raise MedialibError(NO_TLS) from error
    except (OSError, ValueError) as error:
        raise MedialibError(
            f"cannot use the certificate {certfile} with the key {keyfile or certfile}: {error}"
        ) from error
    return context


def _refuse_password() -> str:
    raise ValueError("the key is protected by a password")


def tls_client_context(cafile: str | None):
    """A TLS context that checks the host's certificate, against `cafile` where it is given."""
    try:
        return ssl.create_default_context(cafile=cafile)
    except ImportError as error:
        raise MedialibError(NO_TLS) from error
    except (OSError, ValueError) as error:
        raise MedialibError(f"cannot use the certificates in {cafile}: {error}") from error


# =================================================================================================
# medialib/http_deadline.py, from its line 15
# A connection of http.client on which one deadline bounds everything a call does.
# =================================================================================================

DEADLINE_STEP = 1 << 16


class DeadlineSocket:
    """A socket for http.client on which all operations of one call share one deadline."""

    def __init__(self, sock):
        self.sock = sock
        self.deadline = 0.0
        self._readers = 0
        self._closed = False

    def arm(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise socket.timeout("no whole answer in time")
        self.sock.settimeout(left)

    def sendall(self, data):
        view = memoryview(data)
        while view:
            self.arm()
            view = view[self.sock.send(view[:DEADLINE_STEP]):]

    def makefile(self, *_args, **_options):
        """What http.client reads one answer from."""
        self._readers += 1
        return io.BufferedReader(DeadlineReader(self), DEADLINE_STEP)

    def drop_reader(self) -> None:
        self._readers -= 1
        if self._closed and not self._readers:
            self.sock.close()

    def close(self):
        """http.client closes before it reads an answer that ends with the connection."""
        self._closed = True
        if not self._readers:
            self.sock.close()

    def is_stale(self) -> bool:
        """Did the peer close, or say something unasked, since the last answer?"""
        try:
            return bool(select.select([self.sock], [], [], 0)[0])
        except (OSError, ValueError):
            return not hasattr(select, "poll") or self._poll_says_stale()

    def is_same_machine(self) -> bool:
        """Whether the peer has the very address this side has."""
        try:
            return self.sock.getpeername()[0] == self.sock.getsockname()[0]
        except (OSError, IndexError):
            return False

    def _poll_says_stale(self) -> bool:
        """select() takes no descriptor above 1023."""
        try:
            poll = select.poll()
            poll.register(self.sock, select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return True


class DeadlineReader(io.RawIOBase):
    """One answer's view of the DeadlineSocket."""

    def __init__(self, owner: DeadlineSocket):
        super().__init__()
        self.owner = owner

    def readable(self):
        return True

    def readinto(self, buffer):
        self.owner.arm()
        return self.owner.sock.recv_into(buffer)

    def close(self):
        if not self.closed:
            self.owner.drop_reader()
        super().close()


class DeadlineConnection:
    """http.client's connection on a DeadlineSocket, with TLS where there is a context."""

    def __init__(self, host: str, port: int, tls):
        self.host = host
        self.port = port
        self.tls = tls
        self.deadline = 0.0
        self._line = http.client.HTTPConnection(host, port)
        self._line.auto_open = 0
        self.request = self._line.request
        self.getresponse = self._line.getresponse
        self.close = self._line.close

    @property
    def sock(self) -> DeadlineSocket | None:
        return self._line.sock

    def connect(self) -> None:
        """Try each address of the name within the deadline."""
        failure = OSError(f"no address for {self.host}")
        for family, kind, protocol, _, address in socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(max(0.001, self.deadline - time.monotonic()))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.tls is not None:
                    sock = self._shake_hands(sock)
            except OSError as error:
                sock.close()
                failure = error
                continue
            self._line.sock = DeadlineSocket(sock)
            self._line.sock.deadline = self.deadline
            return
        raise failure

    def _shake_hands(self, sock):
        """The time-out of a handshake is one for all of its messages."""
        wrapped = self.tls.wrap_socket(
            sock, server_hostname=self.host.partition("%")[0], do_handshake_on_connect=False)
        wrapped.settimeout(max(0.001, self.deadline - time.monotonic()))
        try:
            wrapped.do_handshake()
        except BaseException:
            wrapped.close()
            raise
        return wrapped


# =================================================================================================
# medialib/http_json.py, from its line 15
# What handlers of requests see: Request, Reply, StreamReply, HttpError, Router; heads.
# =================================================================================================

HTTP_MAX_LINE = 8 << 10
HTTP_MAX_HEAD = 32 << 10
HTTP_MAX_HEADERS = 64
HTTP_MAX_QUERY_FIELDS = 32

# Visible ASCII only in the target; no control characters anywhere; nothing before the colon.
REQUEST_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}) ([!-~]+) HTTP/([0-9])\.([0-9])")
HEADER_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*")
# The line break before these characters would continue a line, or hide one.
BAD_HEAD_BYTES = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|(?<!\r)\n|\n[ \t]")
# Two of these that differ mean different things to different readers.
SINGLE_HEADERS = frozenset((
    "host", "content-length", "content-type", "content-encoding", "transfer-encoding", "origin",
    "expect", "sec-fetch-site"))
LENGTH_TEXT = re.compile(r"[0-9]{1,15}")
HEADER_BREAKS = str.maketrans({"\r": " ", "\n": " ", "\0": " "})


class HttpError(MedialibError):
    """Ends a request with this status and {"ok": false, "error", "detail", **extra} as its body."""

    def __init__(self, status: int, error: str, detail: str = "", headers: dict | None = None,
                 extra: dict | None = None):
        super().__init__(f"{error}: {detail}" if detail else error)
        self.status = status
        self.error = error
        self.detail = detail
        self.headers = headers or {}
        self.extra = extra or {}

    def reply(self) -> Reply:
        body = {"ok": False, "error": self.error, "detail": self.detail, **self.extra}
        return Reply(self.status, body, headers=self.headers)


class Reply:
    """An answer that is ready: a body of bytes, str, or something to write as JSON."""

    __slots__ = ("status", "body", "content_type", "headers")

    def __init__(self, status: int = 200, body=b"", content_type: str | None = None,
                 headers: dict | None = None):
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers or {}


class StreamReply:
    """An answer sent as it is made: `pieces` is an iterable of bytes.

    An empty piece sends nothing, but lets the server look whether anybody still listens: what waits
    for events yields one each second. `pieces.close()` is called at the end, however it comes.
    """

    __slots__ = ("pieces", "content_type", "headers", "status")

    def __init__(self, pieces, content_type: str = "application/octet-stream",
                 headers: dict | None = None, status: int = 200):
        self.pieces = pieces
        self.content_type = content_type
        self.headers = headers or {}
        self.status = status

    def close(self) -> None:
        close = getattr(self.pieces, "close", None)
        if close is not None:
            close()


class Request:
    """One request. `headers` has lower-case names; `query` the last value of each name;
    `json` the body's object ({} when there was none); `peer` an ipaddress object.
    """

    __slots__ = ("method", "path", "query", "headers", "json", "peer", "version", "body_size")

    def __init__(self, method: str, path: str, query: dict, headers: dict, version: tuple,
                 peer=None):
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.version = version
        self.peer = peer
        self.json = {}
        self.body_size = 0

    @property
    def peer_text(self) -> str:
        return str(self.peer)

    @property
    def is_loopback(self) -> bool:
        return self.peer.is_loopback

    def header(self, name: str, default: str = "") -> str:
        return self.headers.get(name.lower(), default)


class Router:
    """Paths to handlers. A handler takes the Request and returns a dict or list (JSON, 200), a
    Reply or a StreamReply, or raises; its attribute `open_body`, if it has one, makes `json` of the
    body's bytes in place of parse_json_object. `routes` lists what was added, for the API's
    description.
    """

    def __init__(self):
        self.routes = []
        self._paths = {}

    def add(self, method: str, path: str, handler, *, summary: str = "",
            body: bool = False) -> None:
        """`body` tells the API's description that the call takes a JSON body."""
        self.routes.append({"method": method, "path": path, "summary": summary, "body": body})
        self._paths.setdefault(path, {})[method] = handler

    def find(self, method: str, path: str):
        """The handler, or HttpError 404 or 405. HEAD is answered by what answers GET."""
        methods = self._paths.get(path)
        if methods is None:
            raise HttpError(404, "not found", f"there is no {path[:200]} here")
        handler = methods.get("GET" if method == "HEAD" else method)
        if handler is None:
            allowed = sorted({*methods, *(["HEAD"] if "GET" in methods else [])})
            raise HttpError(405, "method not allowed", f"{path[:200]} takes {' or '.join(allowed)}",
                            {"Allow": ", ".join(allowed)})
        return handler

    def answer(self, handler, request: Request) -> Reply | StreamReply:
        """Call the handler; whatever it raises becomes an answer: an edge of the program."""
        try:
            result = handler(request)
        except Exception as error:
            return failure_reply(error, request)
        return result if isinstance(result, (Reply, StreamReply)) else Reply(body=result)


def failure_reply(error: Exception, request: Request) -> Reply:
    """Ours explain themselves; a failure of the disk or database may pass; the rest is a bug."""
    if isinstance(error, HttpError):
        return error.reply()
    if isinstance(error, BodyError):
        return HttpError(error.status, error.error, error.detail).reply()
    if isinstance(error, UsageError):
        return HttpError(400, "bad request", str(error)).reply()
    if isinstance(error, MedialibError):
        log.warning("%s %s: %s", request.method, request.path, error)
        return HttpError(503, "cannot do this now", str(error), {"Retry-After": "5"}).reply()
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    return HttpError(500, "internal error", "the log of this program says more").reply()


def parse_head(head: bytes) -> Request:
    """The request whose head this is (without the empty line at its end), or HttpError."""
    if BAD_HEAD_BYTES.search(head):
        raise HttpError(400, "malformed request", "stray control character in the head")
    line, *lines = head.decode("latin-1").split("\r\n")
    if len(line) > HTTP_MAX_LINE:
        raise HttpError(414, "address too long", f"at most {HTTP_MAX_LINE} bytes")
    if len(lines) > HTTP_MAX_HEADERS:
        raise HttpError(431, "too many headers", f"at most {HTTP_MAX_HEADERS}")
    match = REQUEST_LINE.fullmatch(line)
    if match is None:
        raise HttpError(400, "malformed request", "the first line is not METHOD PATH HTTP/1.1")
    method, target, major, minor = match.groups()
    if major != "1":
        raise HttpError(505, "HTTP version not supported", "this is HTTP/1.1")
    headers = parse_headers(lines)
    version = (1, min(1, int(minor)))
    if "host" not in headers and version == (1, 1):
        raise HttpError(400, "malformed request", "the Host header is missing")
    if not target.startswith("/"):
        raise HttpError(400, "malformed request", "the address must be a path")
    path, _, query = target.partition("?")
    return Request(method, path, parse_query(query) if query else {}, headers, version)


def parse_headers(lines: list) -> dict:
    headers = {}
    for line in lines:
        match = HEADER_LINE.fullmatch(line)
        if match is None:
            raise HttpError(400, "malformed request", "a header is not Name: value")
        name, value = match.groups()
        name = name.lower()
        if name in headers:
            if name in SINGLE_HEADERS:
                raise HttpError(400, "malformed request", f"two {name} headers")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


def parse_query(query: str) -> dict:
    try:
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, errors="strict",
                                       max_num_fields=HTTP_MAX_QUERY_FIELDS)
    except ValueError as error:
        raise HttpError(400, "malformed request", f"the query: {error}") from error
    return dict(pairs)


def body_length(request: Request, limit: int) -> int:
    """How many bytes of body follow; HttpError for a body we do not take."""
    headers = request.headers
    coding = headers.get("transfer-encoding")
    if coding is not None:
        status = 400 if "content-length" in headers else 411
        raise HttpError(status if coding.lower() == "chunked" else 501, "length required",
                        "send the body with Content-Length, without Transfer-Encoding")
    text = headers.get("content-length", "0")
    if LENGTH_TEXT.fullmatch(text) is None:
        raise HttpError(400, "malformed request", "Content-Length is not a number")
    length = int(text)
    if length and request.method != "POST":
        raise HttpError(400, "unexpected body", f"{request.method} takes no body")
    if length > limit:
        raise HttpError(413, "body too large", f"at most {limit} bytes")
    if length:
        _check_body_type(headers)
    return length


def _check_body_type(headers: dict) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HttpError(415, "unsupported media type", "the body must be application/json")
    if headers.get("content-encoding", "identity").lower() not in ("identity", "gzip", "x-gzip"):
        raise HttpError(415, "unsupported encoding", "the body may be plain or gzip",
                        {"Accept-Encoding": "gzip"})


def wants_gzip(headers: dict) -> bool:
    """Does the asker take gzip? "gzip;q=0" is a no."""
    accepted = headers.get("accept-encoding", "").lower()
    if "gzip" not in accepted:
        return False
    for part in accepted.split(","):
        coding, _, weight = part.strip().partition(";")
        if coding.strip() == "gzip":
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def header_text(value) -> str:
    """A header's value in which no line break starts another header."""
    return str(value).translate(HEADER_BREAKS).encode("latin-1", "replace").decode("latin-1")


# =================================================================================================
# medialib/http_answer.py, from its line 12
# From a Reply to the bytes of an answer: JSON, headers that keep a page safe, gzip.
# =================================================================================================

HTTP_GZIP_FROM = 1 << 10
GZIP_TYPES = ("application/json", "text/", "application/javascript", "image/svg+xml")
JSON_TYPE = "application/json"
SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class AnswerWriter:
    """Writes heads and bodies with what every answer of one server says."""

    def __init__(self, name: str, page_headers: dict | None):
        self.fixed_headers = {"Server": name, "Cache-Control": "no-store", **SAFE_HEADERS,
                              **(page_headers or {})}

    def head(self, reply, content_type: str | None, more: dict) -> bytes:
        """Status line and headers; what the reply says itself outranks what every answer says."""
        headers = dict(self.fixed_headers)
        if content_type:
            headers["Content-Type"] = content_type
        headers.update(more)
        headers.update(reply.headers)
        reason = http.client.responses.get(reply.status, "Status")
        lines = [f"HTTP/1.1 {int(reply.status)} {reason}"]
        lines += [f"{header_text(name)}: {header_text(value)}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def whole(self, reply: Reply, asked: dict, more: dict, *, head_only: bool = False) -> tuple:
        """(head, body) of a reply to a request with headers `asked`; packed if that is taken."""
        try:
            body, content_type = reply_body(reply)
        except (TypeError, ValueError):
            log.exception("an answer is not JSON")
            reply = HttpError(500, "internal error", "the log of this program says more").reply()
            body, content_type = reply_body(reply)
        if (len(body) > HTTP_GZIP_FROM and wants_gzip(asked)
                and content_type.startswith(GZIP_TYPES)
                and "Content-Encoding" not in reply.headers):
            body = gzip_packed(body)
            more = {**more, "Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        bodiless = reply.status in (204, 304)
        if not bodiless:
            more = {**more, "Content-Length": len(body)}
        head = self.head(reply, content_type, more)
        return head, b"" if bodiless or head_only else body


def http_date() -> str:
    """Now, as the Date header has it."""
    return email.utils.formatdate(usegmt=True)


def json_bytes(value) -> bytes:
    """JSON as it goes over the wire: UTF-8 without NaN; a lone surrogate stays an escape."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False,
                          separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def reply_body(reply: Reply) -> tuple:
    """(bytes, content type) of a reply's body."""
    body = reply.body
    if isinstance(body, (bytes, bytearray)):
        return bytes(body), reply.content_type or "application/octet-stream"
    if isinstance(body, str):
        return body.encode("utf-8", "replace"), reply.content_type or "text/plain; charset=utf-8"
    return json_bytes(body), reply.content_type or JSON_TYPE


# =================================================================================================
# medialib/http_listener.py, from its line 23
# Accepting connections: how many, from whom, for how long. Knows nothing of HTTP.
# =================================================================================================

HTTP_CONNECTIONS = 96
HTTP_PER_ADDRESS = 32
HTTP_RESERVED = 16  # only for this machine and for addresses that hold few connections
HTTP_FEW = 2
HTTP_LEAVING = 64  # closed to make room, their threads about to notice
HTTP_BACKLOG = 1024  # where it is full, connecting takes a second more: the next try of the peer
HTTP_LINGERING = 64
HTTP_HEAD_S = 10.0
HTTP_LINGER_S = 1.0
HTTP_TICK_S = 0.25
HTTP_LAST_WORDS_S = 2.0  # to say "too slow" after a deadline
HTTP_ACCEPTS_AT_ONCE = 64
WAITING_SINCE = operator.attrgetter("since")


class HttpSlot:
    """One connection. Its own thread talks; the listener may cut it off from outside.

    `lock` guards the change from waiting to working against being cut off, and the socket against
    being shut down after its number went to another.
    """

    def __init__(self, sock, peer, holder: str):
        self.sock = sock
        self.peer = peer
        self.holder = holder
        self.lock = threading.Lock()
        self.state = "head"
        self.since = time.monotonic()
        self.deadline = self.since + HTTP_HEAD_S
        self.expired = False
        self.cut = False

    def await_peer(self, state: str, seconds: float) -> None:
        """From now on it is the peer's turn, for at most this long in total."""
        now = time.monotonic()
        with self.lock:
            if self.cut:
                raise ConnectionAbortedError("closed from this side")
            self.state = state
            self.since = now
            self.deadline = now + seconds

    def begin_work(self) -> None:
        """It is our turn: nobody cuts this connection off, however long we take."""
        with self.lock:
            if self.cut:
                raise ConnectionAbortedError("closed from this side")
            self.state = "work"
            self.deadline = None

    def expire(self, now: float) -> None:
        """The deadline passed: stop reading first, so that there may still be an answer."""
        with self.lock:
            if self.deadline is None or self.deadline > now:
                return
            if self.expired or self.state == "write":
                self._shut(socket.SHUT_RDWR)
                self.cut = True
            else:
                self._shut(socket.SHUT_RD)
            self.expired = True
            self.deadline = now + HTTP_LAST_WORDS_S

    def cut_off(self) -> bool:
        """Close it from outside if it waits for its peer; False if it is being worked on."""
        with self.lock:
            if self.state == "work" or self.cut:
                return False
            self.cut = True
            self._shut(socket.SHUT_RDWR)
            return True

    def _shut(self, how: int) -> None:
        # Not the method of SSLSocket: that would switch the encryption off under its thread.
        if self.sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.sock, how)

    def replace_socket(self, sock) -> None:
        with self.lock:
            self.sock = sock

    def close(self) -> None:
        with self.lock:
            sock, self.sock, self.cut = self.sock, None, True
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()


class HttpListener:
    """Listens, admits, refuses and reaps. `serve(slot)` runs in a thread per connection;
    `foreign_answer` and `busy_answer` are whole answers for those not admitted (b"" for none).
    """

    def __init__(self, address: str, port: int, allow_peer, serve, *, name: str = "http",
                 foreign_answer: bytes = b"", busy_answer: bytes = b"",
                 connections: int = HTTP_CONNECTIONS):
        self.allow_peer = allow_peer
        self.serve = serve
        self.name = name
        self.foreign_answer = foreign_answer
        self.busy_answer = busy_answer
        self.connections = connections
        self.reserved = min(HTTP_RESERVED, connections // 4)
        self.lock = threading.Lock()  # guards slots
        self.slots = set()
        self.stopping = False
        self._silent = set()  # slots that no thread serves: nothing came yet
        self._lingering = {}
        self._socket = listening_socket(address, port)
        self.port = self._socket.getsockname()[1]
        self._wake_in, self._wake_out = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, name=f"{name}-listener", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, patience_s: float) -> None:
        """Accept no more; close what waits; give what is being answered `patience_s` seconds."""
        if self.stopping:
            return
        self.stopping = True
        with contextlib.suppress(OSError):
            self._wake_out.send(b"x")
        if self._thread.is_alive():
            self._thread.join(patience_s)
        self._socket.close()
        give_up = time.monotonic() + patience_s
        while self._open_slots() and time.monotonic() < give_up:
            for slot in self._open_slots():
                if slot.state not in ("write", "body"):
                    slot.cut_off()
            time.sleep(0.02)
        for slot in self._open_slots():
            slot.cut_off()

    def _open_slots(self) -> list:
        with self.lock:
            return list(self.slots)

    def _run(self) -> None:
        self._socket.setblocking(False)
        self._wake_in.setblocking(False)
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._selector.register(self._wake_in, selectors.EVENT_READ)
        while not self.stopping:
            busy = self.slots or self._lingering
            try:
                self._turn(self._selector.select(HTTP_TICK_S if busy else None))
            except Exception:
                log.exception("the listener of %s stumbled", self.name)
                time.sleep(HTTP_TICK_S)
        self._end()

    def _turn(self, events: list) -> None:
        newcomers = False
        for key, _ in events:  # who has asked already comes before who only connects
            if key.fileobj is self._socket:
                newcomers = True
            elif key.data is None and key.fileobj is not self._wake_in:
                self._drain(key.fileobj)
            elif key.data in self._silent:
                if has_spoken(key.fileobj):
                    self._hand_over(key.data)
                else:
                    self._hang_up(key.data)
        if newcomers:
            self._accept_waiting()
        now = time.monotonic()
        for sock in [sock for sock, end in self._lingering.items() if now >= end]:
            self._drop(sock)
        for slot in self._open_slots():
            if slot.deadline is not None and now >= slot.deadline:
                if slot in self._silent:
                    self._hang_up(slot)
                else:
                    slot.expire(now)

    def _end(self) -> None:
        for slot in list(self._silent):
            self._hang_up(slot)
        for sock in list(self._lingering):
            self._drop(sock)
        self._selector.close()
        self._socket.close()
        self._wake_in.close()
        self._wake_out.close()

    def _accept_waiting(self) -> None:
        for _ in range(HTTP_ACCEPTS_AT_ONCE):
            try:
                sock, address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no more descriptors: somebody has to go
                log.warning("cannot accept a connection: %s", error)
                self._make_room("")
                time.sleep(0.05)
                return
            try:
                self._admit(sock, address)
            except (OSError, ValueError):
                sock.close()

    def _admit(self, sock, address: tuple) -> None:
        peer = parse_address(address[0])
        if not self.allow_peer(peer):
            self._refuse(sock, self.foreign_answer)
            return
        holder = connection_holder(peer)
        if not self._has_room(peer, holder):
            self._refuse(sock, self.busy_answer)
            return
        sock.setblocking(False)
        slot = HttpSlot(sock, peer, holder)
        with self.lock:
            self.slots.add(slot)
        self._silent.add(slot)
        self._selector.register(sock, selectors.EVENT_READ, slot)

    def _hand_over(self, slot: HttpSlot) -> None:
        """The first byte came: from now on a thread serves the connection."""
        self._silent.discard(slot)
        self._selector.unregister(slot.sock)
        slot.sock.setblocking(True)
        try:
            threading.Thread(target=self._serve_slot, args=(slot,),
                             name=f"{self.name}-{slot.peer}", daemon=True).start()
        except RuntimeError:  # no more threads
            self.forget(slot)
            self._refuse(slot.sock, self.busy_answer)

    def _hang_up(self, slot: HttpSlot) -> None:
        """Close a connection that no thread serves."""
        self._silent.discard(slot)
        self._selector.unregister(slot.sock)
        slot.close()
        self.forget(slot)

    def _serve_slot(self, slot: HttpSlot) -> None:
        try:
            self.serve(slot)
        finally:
            slot.close()
            self.forget(slot)

    def forget(self, slot: HttpSlot) -> None:
        with self.lock:
            self.slots.discard(slot)

    def _has_room(self, peer, holder: str) -> bool:
        """Is there a place for one more of this address, if need be after closing an idle one?"""
        held = own = leaving = 0
        for slot in self._open_slots():
            if slot.cut:
                leaving += 1
            else:
                held += 1
                own += slot.holder == holder
        if leaving > HTTP_LEAVING:
            return False
        if own >= HTTP_PER_ADDRESS and not peer.is_loopback:
            return self._make_room(holder)
        free = self.connections - held
        if not peer.is_loopback and own >= HTTP_FEW:
            free -= self.reserved
        return free > 0 or self._make_room("")

    def _make_room(self, holder: str) -> bool:
        """Close the connection that waits longest for its peer: one of `holder`, or else one of
        whoever has the most."""
        waiting = [slot for slot in self._open_slots() if slot.state != "work" and not slot.cut]
        if holder:
            waiting = [slot for slot in waiting if slot.holder == holder]
        counts = collections.Counter([slot.holder for slot in waiting])
        most = max(counts.values(), default=0)
        waiting = [slot for slot in waiting if counts[slot.holder] == most]
        while waiting:  # the first is nearly always the one
            slot = min(waiting, key=WAITING_SINCE)
            if self._part_with(slot):
                return True
            waiting.remove(slot)
        return False

    def _part_with(self, slot: HttpSlot) -> bool:
        """Close this connection, unless it is, or is about to be, worked on."""
        if slot not in self._silent:
            return slot.cut_off()
        if has_spoken(slot.sock):
            self._hand_over(slot)
            return False
        self._hang_up(slot)
        return True

    def cut_stalled(self, state: str, older_s: float) -> bool:
        """Close the connection that is longest in this state, if that is longer than `older_s`."""
        until = time.monotonic() - older_s
        stalled = [slot for slot in self._open_slots() if slot.state == state and not slot.cut
                   and slot.since < until]
        stalled.sort(key=lambda slot: slot.since)
        return any(slot.cut_off() for slot in stalled)

    def _refuse(self, sock, answer: bytes) -> None:
        """Say why, without waiting for anything; read on for a moment, since closing with unread
        data would take the answer away from the peer again."""
        sock.setblocking(False)
        if not answer or len(self._lingering) >= HTTP_LINGERING:
            sock.close()
            return
        with contextlib.suppress(OSError):
            sock.send(answer)
            sock.shutdown(socket.SHUT_WR)
        self._lingering[sock] = time.monotonic() + HTTP_LINGER_S
        self._selector.register(sock, selectors.EVENT_READ)

    def _drain(self, sock) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                if sock.recv(1 << 16):
                    return
            except ConnectionError:
                pass
            self._drop(sock)

    def _drop(self, sock) -> None:
        if self._lingering.pop(sock, None) is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(sock)
            sock.close()


def has_spoken(sock) -> bool:
    """Is there something to read, other than the end?"""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


def connection_holder(peer) -> str:
    """Whose connections are counted together: an IPv4 address, or a whole IPv6 network of 64 bits,
    since whoever has one address of it has them all."""
    if peer.version == 4 or peer.is_loopback or peer.is_link_local:
        return str(peer)
    return str(ipaddress.ip_network((peer, 64), strict=False))


def listening_socket(address: str, port: int):
    """Bound and listening; "" and "::" mean every address of both families where there are both."""
    both = address in ("", "::") and socket.has_dualstack_ipv6()
    try:
        if both:
            return socket.create_server(("::", port), family=socket.AF_INET6,
                                        backlog=HTTP_BACKLOG, dualstack_ipv6=True)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family, backlog=HTTP_BACKLOG)
    except OSError as error:
        if both and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return listening_socket("0.0.0.0", port)  # IPv6 is compiled in, but switched off
        raise MedialibError(_bind_failure(address, port, error)) from error
    except OverflowError as error:
        raise UsageError(f"{port} is not a port number (0 to 65535)") from error


def _bind_failure(address: str, port: int, error: OSError) -> str:
    where = format_address(address, port) if address else f"port {port}"
    if error.errno == errno.EADDRINUSE:
        return (f"cannot listen on {where}: the port {port} is in use by another program "
                "(perhaps another medialib): stop that, or choose another with --port")
    if error.errno == errno.EACCES:
        return f"cannot listen on {where}: port {port} needs more rights, choose one above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"cannot listen on {where}: {address} is not an address of this machine"
    return f"cannot listen on {where}: {error.strerror or error}"


# =================================================================================================
# medialib/http_shares.py, from its line 11
# What all connections share: bytes, the memory of parsed JSON, places for endless answers.
# =================================================================================================

HTTP_LIGHT_BYTES = 4 << 20  # in memory: about two batches of 500 files
HTTP_PARSED_PATIENCE_S = 20.0


class ByteBudget:
    """Bytes that all connections together may hold."""

    def __init__(self, limit: int):
        self.left = limit
        self.lock = threading.Lock()

    def take(self, count: int) -> bool:
        with self.lock:
            if count > self.left:
                return False
            self.left -= count
            return True

    def give(self, count: int) -> None:
        with self.lock:
            self.left += count


class MemoryShare:
    """What the JSON of all requests together may take. Who does not fit waits for others; heavy
    ones leave a reserve, so that light ones need not wait for them.
    """

    def __init__(self, limit: int, reserve: int):
        self.left = limit
        self.heaviest = limit - reserve
        self.reserve = reserve
        self.changed = threading.Condition()

    @contextlib.contextmanager
    def holding(self, count: int):
        """Hold `count` bytes inside the block, or HttpError."""
        if count > self.heaviest:
            raise HttpError(413, "body too large", "it would take too much memory: send less")
        spare = 0 if count <= HTTP_LIGHT_BYTES else self.reserve
        with self.changed:
            if not self.changed.wait_for(lambda: self.left - count >= spare,
                                         HTTP_PARSED_PATIENCE_S):
                raise busy_with_large()
            self.left -= count
        try:
            yield
        finally:
            with self.changed:
                self.left += count
                self.changed.notify_all()


def busy_with_large() -> HttpError:
    return HttpError(503, "busy with other large requests", "try again soon", {"Retry-After": "5"})


class StreamPlaces:
    """Places for exports and event streams. One neighbour cannot take them all; this machine itself
    may, since whoever is on it can do worse.
    """

    def __init__(self, places: int, of_one: int):
        self.left = places
        self.of_one = of_one
        self.lock = threading.Lock()  # guards left and held
        self.held = collections.Counter()  # {who: places}, by HttpSlot.holder

    def take(self, slot) -> bool:
        with self.lock:
            own = self.held[slot.holder]
            if not self.left or (own >= self.of_one and not slot.peer.is_loopback):
                return False
            self.left -= 1
            self.held[slot.holder] += 1
            return True

    def give(self, slot) -> None:
        with self.lock:
            self.left += 1
            self.held[slot.holder] -= 1
            if not self.held[slot.holder]:
                del self.held[slot.holder]


# =================================================================================================
# medialib/http_server.py, from its line 31
# JSON over HTTP: one conversation per connection, with a bound on everything.
# =================================================================================================

HTTP_MAX_BODY = 16 << 20  # as sent
HTTP_MAX_JSON = 16 << 20  # after unpacking
HTTP_UNWEIGHED_BYTES = 16 << 10  # what is smaller costs too little to be counted
HTTP_PARSED_BYTES = 128 << 20  # in memory, for the JSON of all requests together
HTTP_PARSED_RESERVE = 24 << 20  # of these, only for light ones
HTTP_BODIES_BYTES = 48 << 20  # in all connections together, as sent
HTTP_BODY_S = 60.0
HTTP_STALLED_S = 3.0  # a body that takes longer than this may have to go for another
HTTP_IDLE_S = 15.0
HTTP_WRITE_S = 30.0
HTTP_SLOWEST_BYTES_S = 16 << 10  # a reader slower than this for long is taken for stalled
HTTP_DRAIN_S = 10.0
HTTP_STREAMS = 16
HTTP_STREAMS_OF_ONE = 8  # for one address that is not this machine's own
HTTP_STOP_S = 2.0
HTTP_STEP = 1 << 18


class JsonServer:
    """Serves a Router behind a Gate. `port` 0 takes any free one; `.port` is the one taken.

    `address` "" is every address of both families. The socket is bound here, so that a port in use
    is a MedialibError at once; answering begins with start().
    """

    def __init__(self, address: str, port: int, router, gate, *, max_body: int = HTTP_MAX_BODY,
                 max_json: int = HTTP_MAX_JSON, certfile: str | None = None,
                 keyfile: str | None = None, name: str = "medialib/1.0",
                 page_headers: dict | None = None, connections: int = HTTP_CONNECTIONS):
        self.router = router
        self.gate = gate
        self.max_body = max_body
        self.max_json = max_json
        self.writer = AnswerWriter(name, page_headers)
        self.tls = tls_server_context(certfile, keyfile) if certfile else None
        self.streams = StreamPlaces(HTTP_STREAMS, HTTP_STREAMS_OF_ONE)
        self.parsed = MemoryShare(HTTP_PARSED_BYTES, HTTP_PARSED_RESERVE)
        self.bodies = ByteBudget(HTTP_BODIES_BYTES)
        self.listener = HttpListener(
            address, port, self.allow_peer, self._serve, name=name.partition("/")[0],
            foreign_answer=self._canned(HttpError(
                403, "address not allowed", "this address is outside the allowed networks: "
                "start with --allow CIDR to let it in")),
            busy_answer=self._canned(HttpError(
                503, "too many connections", "try again soon", {"Retry-After": "2"})),
            connections=connections)
        self.port = self.listener.port

    def start(self) -> None:
        self.listener.start()

    def stop(self) -> None:
        """Stop accepting, let answers being made go out, return within about two seconds."""
        self.listener.stop(HTTP_STOP_S)

    @property
    def stopping(self) -> bool:
        return self.listener.stopping

    def allow_peer(self, address) -> bool:
        return self.gate.allow_peer(address)

    def _serve(self, slot: HttpSlot) -> None:
        """One connection, from its thread; a peer that goes away is nobody's error."""
        try:
            HttpConversation(slot, self).run()
        except (OSError, ValueError) as error:
            log.debug("connection of %s: %s", slot.peer, error)
        except Exception:
            log.exception("connection of %s failed", slot.peer)

    def _canned(self, error: HttpError) -> bytes:
        """A whole answer for a connection nobody serves; none inside of TLS."""
        if self.tls is not None:
            return b""
        return b"".join(self.writer.whole(error.reply(), {}, {"Connection": "close"}))


class HttpConversation:
    """The requests of one connection, one after the other.

    Reading is ours: one buffer, no time-out of its own; the listener ends what takes too long.
    """

    def __init__(self, slot: HttpSlot, server: JsonServer):
        self.slot = slot
        self.sock = slot.sock
        self.server = server
        self.close_connection = False
        self.pending = b""  # read, but not yet used
        self.held = 0  # bytes of the budget of bodies
        self.unread = False  # does the peer perhaps still send what we shall not use?

    def run(self) -> None:
        """Until either side has enough; the listener closes the socket."""
        self.set_up()
        while not self.close_connection:
            self.answer_next()

    def set_up(self) -> None:
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.server.tls is not None:
            self.sock = self.server.tls.wrap_socket(
                self.sock, server_side=True, do_handshake_on_connect=False)
            self.slot.replace_socket(self.sock)
            self.sock.do_handshake()

    def answer_next(self) -> None:
        self.close_connection = True
        head = self.read_head()
        if head is None:
            return
        request = None
        try:
            request = self.check_head(head)
            handler = self.server.router.find(request.method, request.path)
            reply = self.answer_request(handler, request)
        except HttpError as error:
            reply = error.reply()
        except BodyError as error:
            reply = HttpError(error.status, error.error, error.detail).reply()
        finally:
            self.server.bodies.give(self.held)
            self.held = 0
        self.close_connection = (
            self.unread or request is None or request.version != (1, 1) or self.server.stopping
            or "close" in request.headers.get("connection", "").lower())
        self.send_reply(request, reply)
        if self.unread:
            self.drain()

    # --- reading

    def receive(self) -> bytes:
        data = self.sock.recv(HTTP_STEP)
        if self.slot.expired:
            raise HttpError(408, "too slow", "the request did not arrive in time")
        return data

    def read_head(self) -> bytes | None:
        """The next request's head, or None when the peer is done. Errors are answered here."""
        self.unread = True
        if not self.pending:
            self.slot.await_peer("idle", HTTP_IDLE_S)
            self.pending = self.sock.recv(HTTP_STEP)
            if not self.pending:
                return None
        try:
            return self._rest_of_head()
        except HttpError as error:
            self.send_reply(None, error.reply())
            self.drain()
            return None

    def _rest_of_head(self) -> bytes | None:
        data = self.pending.lstrip(b"\r\n")  # some send an empty line after a body
        searched = 0
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self.slot.await_peer("head", HTTP_HEAD_S)
        while end < 0:
            if len(data) > HTTP_MAX_HEAD:
                raise HttpError(431, "head too large", f"at most {HTTP_MAX_HEAD} bytes")
            if BAD_HEAD_BYTES.search(data.rstrip(b"\r"), searched):
                raise HttpError(400, "malformed request", "stray control character in the head")
            more = self.receive()
            if not more:
                return None
            searched = max(0, len(data) - 3)
            data = (data + more).lstrip(b"\r\n")
            end = data.find(b"\r\n\r\n", searched)
        if end > HTTP_MAX_HEAD:
            raise HttpError(431, "head too large", f"at most {HTTP_MAX_HEAD} bytes")
        self.pending = data[end + 4:]
        return data[:end]

    def check_head(self, head: bytes) -> Request:
        request = parse_head(head)
        request.peer = self.slot.peer
        refused = self.server.gate.refusal(request.headers, tls=self.server.tls is not None)
        if refused:
            raise HttpError(*refused)
        return request

    def answer_request(self, handler, request: Request) -> Reply | StreamReply:
        length = body_length(request, self.server.max_body)
        body = self.read_body(request, length) if length else b""
        self.unread = False
        request.body_size = length
        self.slot.begin_work()
        packed = "gzip" in request.headers.get("content-encoding", "").lower()
        if not body:
            return self.server.router.answer(handler, request)
        with self.server.parsed.holding(self.weigh(body, packed)):
            if packed:
                body = gunzip_whole(body, self.server.max_json)
            request.json = getattr(handler, "open_body", parse_json_object)(body)
            del body
            return self.server.router.answer(handler, request)

    def weigh(self, body: bytes, packed: bool) -> int:
        """About how much memory this body will take, found without unpacking it into memory."""
        if not packed and len(body) <= HTTP_UNWEIGHED_BYTES:
            return 0
        limit = self.server.max_json
        if not packed and len(body) > limit:
            raise HttpError(413, "body too large", f"at most {limit} bytes")
        weight = JsonWeight()
        for piece in gunzip_pieces(body, limit) if packed else [body]:
            weight.add(piece)
        return weight.memory_bytes()

    def read_body(self, request: Request, length: int) -> bytes | bytearray:
        if request.headers.get("expect"):
            self._invite_body(request)
        have = self.pending[:length]
        self.pending = self.pending[length:]
        if len(have) == length:
            return have
        self.slot.await_peer("body", HTTP_BODY_S)
        body = bytearray(have)  # not a list: somebody may send 30 million pieces of a byte each
        while len(body) < length:
            piece = self.sock.recv(min(length - len(body), HTTP_STEP))
            if self.slot.expired:
                raise HttpError(408, "too slow", "the body did not arrive in time")
            if not piece:
                raise ConnectionResetError("the body was cut short")
            self.hold(len(piece))
            body += piece
        return body

    def hold(self, count: int) -> None:
        """Count these bytes; where all bodies together are too large, the stalled ones go first."""
        while not self.server.bodies.take(count):
            if not self.server.listener.cut_stalled("body", HTTP_STALLED_S):
                raise busy_with_large()
            time.sleep(0.05)
        self.held += count

    def _invite_body(self, request: Request) -> None:
        if request.headers["expect"].lower() != "100-continue":
            raise HttpError(417, "expectation failed", "only 100-continue is known")
        if request.version == (1, 1):
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    def drain(self) -> None:
        """Read on for a while, so that a sender sees our answer and not a broken pipe."""
        with contextlib.suppress(OSError):
            self.slot.await_peer("drain", HTTP_DRAIN_S)
            if self.server.tls is None:
                self.sock.shutdown(socket.SHUT_WR)
            while self.sock.recv(HTTP_STEP) and not self.slot.expired:
                pass

    # --- writing

    def send_reply(self, request: Request | None, reply: Reply | StreamReply) -> None:
        if isinstance(reply, StreamReply):
            try:
                self.send_stream(request, reply)
            finally:
                reply.close()
            return
        head, body = self.server.writer.whole(
            reply, request.headers if request else {}, self.common_headers(),
            head_only=request is not None and request.method == "HEAD")
        reply.body = b""  # a slow reader holds the bytes only, not the objects they were made of
        self.write(head + body if len(body) < HTTP_STEP else head)
        if len(body) >= HTTP_STEP:
            self.write(body)

    def common_headers(self) -> dict:
        more = {"Date": http_date()}
        if self.close_connection:
            more["Connection"] = "close"
        return more

    def write(self, data: bytes) -> None:
        """Send all of it; the listener cuts off a peer that reads too slowly."""
        self.slot.await_peer("write", HTTP_WRITE_S + len(data) / HTTP_SLOWEST_BYTES_S)
        self.sock.sendall(data)

    def send_stream(self, request: Request, reply: StreamReply) -> None:
        if not self.server.streams.take(self.slot):
            error = HttpError(503, "too many streams", "close another page or export first",
                              {"Retry-After": "10"})
            self.send_reply(request, error.reply())
            return
        try:
            chunked = request.version == (1, 1)
            self.close_connection = self.close_connection or not chunked
            more = self.common_headers()
            if chunked:
                more["Transfer-Encoding"] = "chunked"
            self.write(self.server.writer.head(reply, reply.content_type, more))
            if request.method != "HEAD":
                self.send_pieces(reply.pieces, chunked)
        finally:
            self.server.streams.give(self.slot)

    def send_pieces(self, pieces, chunked: bool) -> None:
        """A stream that fails half-way is left without its end mark: nobody takes it for whole."""
        self.slot.begin_work()
        close_after = self.close_connection
        self.close_connection = True
        try:
            for piece in pieces:
                if self.server.stopping or (not piece and self.peer_is_gone()):
                    return
                if piece:
                    self.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                    self.slot.begin_work()
        except OSError:
            raise
        except Exception:
            log.exception("a streamed answer failed")
            return
        if chunked:
            self.write(b"0\r\n\r\n")
        self.close_connection = close_after

    def peer_is_gone(self) -> bool:
        """Did the peer close? What it may have sent meanwhile is kept."""
        self.sock.settimeout(0)
        try:
            data = self.sock.recv(1024)
            self.pending += data
            return not data or len(self.pending) > HTTP_MAX_HEAD
        except BlockingIOError:
            return False
        except OSError as error:  # over TLS "nothing yet" is an error of its own
            return self.server.tls is None or not isinstance(error, ssl.SSLWantReadError)
        finally:
            self.sock.settimeout(None)


# =================================================================================================
# medialib/http_client.py, from its line 28
# Asking another medialib: JSON over http.client, with one deadline for the whole call.
# =================================================================================================

ANSWER_BYTES = 32 << 20  # as sent, and after unpacking
ANSWER_MEMORY_BYTES = 96 << 20  # in memory; a page of 5000 whole records weighs 72 MiB
ANSWER_STEP = 1 << 16
RETRY_AFTER_TOP_S = 3600.0
PASSING_STATUSES = (408, 425, 429, 502, 503, 504)  # without our JSON: something before the host
PEER_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?")


class PeerError(MedialibError):
    """A call without a good answer. `retry_after_s`: the wait the peer asked for, or None."""

    retry_after_s = None


class PeerUnreachable(PeerError):
    """No answer, not in time, or cut short: whether the call was carried out is not known."""


class PeerRefused(PeerError):
    """A medialib answered with an error of its own: `status`, `error`, `detail`, whole `answer`."""

    def __init__(self, status: int, error: str, detail: str = "", answer: dict | None = None):
        super().__init__(f"{error} ({status})" + (f": {detail}" if detail else ""))
        self.status = status
        self.error = error
        self.detail = detail
        self.answer = answer or {}


class NotMedialib(PeerError):
    """Something else answers there. `status` and, if it was a JSON object, `answer` tell more."""

    def __init__(self, url: str, status: int, why: str, answer: dict | None = None):
        super().__init__(f"{url} answers, but is not a medialib host: {why}")
        self.status = status
        self.answer = answer


def parse_host(text: str, default_port: int) -> str:
    """The URL (without a slash at its end) that is meant by an address, a name, name:port or a URL.

    Raises UsageError for what cannot be meant.
    """
    text = text.strip()
    scheme, mark, rest = text.partition("://")
    if not mark:
        scheme, rest = "http", text
    scheme = scheme.lower()
    if scheme not in ("http", "https"):
        raise UsageError(f"{text!r}: only http:// and https:// are known")
    if rest.endswith("/") and mark:
        rest = rest[:-1]
    if any(character in rest for character in "/?#@\\"):
        raise UsageError(f"{text!r}: name the host only, as in box, 10.0.0.2:8765 or https://box")
    name, port = _split_host(rest, text)
    number = int(port) if port else default_port
    if not 1 <= number <= 65535:
        raise UsageError(f"{text!r}: {number} is not a port number (1 to 65535)")
    return f"{scheme}://{format_address(name, number)}"


def _split_host(rest: str, text: str) -> tuple:
    """(name or address, port digits or ""), checked."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.IPv6Address(rest.partition("%")[0])) + _zone(rest), ""
    match = re.fullmatch(r"(?:\[([^\]]*)\]|([^:\[\]]*))(?::([0-9]{1,5}))?", rest)
    if match is None:
        raise UsageError(f"{text!r} is not an address, a name or name:port")
    bracketed, name, port = match.groups()
    try:
        if bracketed is not None:
            name = str(ipaddress.IPv6Address(bracketed.partition("%")[0])) + _zone(bracketed)
        elif re.fullmatch(r"[0-9.]+", name):
            name = str(ipaddress.IPv4Address(name))
        elif PEER_NAME.fullmatch(name) is None or len(name) > 253:
            raise ValueError("not a name")
    except ValueError as error:
        raise UsageError(f"{text!r} is not an address, a name or name:port") from error
    return name, port or ""


def _zone(address: str) -> str:
    """The "%eth0" of a link-local address."""
    _, mark, zone = address.partition("%")
    if mark and re.fullmatch(r"[0-9A-Za-z_.-]{1,32}", zone) is None:
        raise ValueError("not a zone")
    return mark + zone


class Backoff:
    """How long to wait after the n-th failure in a row: doubling, between first_s and top_s, each
    shortened by up to a half at random, so that many agents do not come back at one moment."""

    def __init__(self, first_s: float, top_s: float, rng=None):
        self.first_s = first_s
        self.top_s = top_s
        self._random = (rng or random).random
        self._failures = 0

    def next(self, retry_after_s: float | None = None) -> float:
        """Seconds to wait now; never less than the peer asked for."""
        full = min(self.top_s, self.first_s * 2 ** min(self._failures, 60))
        self._failures += 1
        wait_s = full * (0.5 + self._random() / 2)
        if retry_after_s is not None and retry_after_s > wait_s:
            return retry_after_s + wait_s / 4
        return wait_s

    def reset(self) -> None:
        self._failures = 0


class PendingCall:
    """A call that was sent. Either `finish` or `abandon` it; its client takes no other before."""

    def __init__(self, client: JsonClient, request: tuple, need_ok: bool):
        self.client = client
        self.request = request
        self.need_ok = need_ok
        self.may_retry = False
        self.response = None

    def finish(self) -> dict:
        """The answer, or the PeerError that says what is wrong with it."""
        return self.client._finish(self)

    def abandon(self) -> None:
        """Nobody wants the answer; whether the call is carried out is not known."""
        self.client._abandon()


class JsonClient:
    """Calls to one peer over one kept connection. Threads that share it take turns.

    `timeout_s` bounds a whole call: connecting, sending, waiting, reading.
    """

    def __init__(self, url: str, *, timeout_s: float = 30.0, cafile: str | None = None,
                 answer_bytes: int = ANSWER_BYTES):
        scheme, host, port = _url_parts(url)
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self.answer_bytes = answer_bytes
        self._host_header = format_address(host.partition("%")[0], port)
        tls = tls_client_context(cafile) if scheme == "https" else None
        self._connection = DeadlineConnection(host, port, tls)
        self._lock = threading.Lock()

    def get(self, path: str, *, timeout_s: float | None = None, need_ok: bool = True) -> dict:
        """The answer to GET. `need_ok` False takes any JSON object, as older hosts send them."""
        return self._begin("GET", path, None, {}, timeout_s, need_ok).finish()

    def post(self, path: str, body: dict | bytes = b"", *, gzip: bool = False,
             timeout_s: float | None = None, need_ok: bool = True) -> dict:
        """The answer to POST; a dict is written as JSON, bytes are sent as the JSON they are."""
        return self.begin_post(path, body, gzip=gzip, timeout_s=timeout_s,
                               need_ok=need_ok).finish()

    def begin_post(self, path: str, body: dict | bytes = b"", *, gzip: bool = False,
                   timeout_s: float | None = None, need_ok: bool = True) -> PendingCall:
        """The same in two steps: the peer is at work between sending and `finish`."""
        data = body if isinstance(body, (bytes, bytearray)) else _body_bytes(body)
        headers = {"Content-Type": "application/json"}
        if gzip and not self._stays_here():
            data = gzip_packed(data)
            headers["Content-Encoding"] = "gzip"
        return self._begin("POST", path, data, headers, timeout_s, need_ok)

    def _stays_here(self) -> bool:
        """What does not leave this machine need not be packed; a first call does not know yet."""
        sock = self._connection.sock
        return sock is not None and sock.is_same_machine()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def is_busy(self) -> bool:
        """Whether a call is under way."""
        return self._lock.locked()

    def _begin(self, method, path, body, headers, timeout_s, need_ok) -> PendingCall:
        headers = {"Host": self._host_header, "User-Agent": f"medialib/{VERSION}",
                   "Accept": "application/json", "Accept-Encoding": "gzip", **headers}
        self._lock.acquire()
        try:
            self._connection.deadline = time.monotonic() + (
                self.timeout_s if timeout_s is None else timeout_s)
            call = PendingCall(self, (method, path, body, headers), need_ok)
            with self._failures_explained():
                self._send_first(call)
        except BaseException:
            self._lock.release()
            raise
        return call

    def _finish(self, call: PendingCall) -> dict:
        try:
            with self._failures_explained():
                response, data = self._receive(call)
        finally:
            self._lock.release()
        return self._judge(response, data, call.need_ok)

    def _abandon(self) -> None:
        self._connection.close()
        self._lock.release()

    @contextlib.contextmanager
    def _failures_explained(self):
        try:
            yield
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            self._connection.close()
            if isinstance(error, http.client.BadStatusLine) and not isinstance(error, OSError):
                raise NotMedialib(self.url, 0, "it does not speak HTTP") from error
            raise PeerUnreachable(f"{self.url}: {_failure_text(error)}") from error
        except BaseException:  # an interrupted call leaves half an answer behind
            self._connection.close()
            raise

    def _send_first(self, call: PendingCall) -> None:
        """A kept connection that turns out stale is replaced, here or when the answer is due."""
        connection = self._connection
        if connection.sock is not None and connection.sock.is_stale():
            connection.close()
        call.may_retry = connection.sock is not None
        try:
            call.response = self._send(call.request)
        except (ConnectionError, http.client.BadStatusLine) as error:
            self._send_again(call, error)

    def _send_again(self, call: PendingCall, error: Exception) -> None:
        self._connection.close()
        if not call.may_retry:
            raise error
        call.may_retry = False
        call.response = self._send(call.request)

    def _receive(self, call: PendingCall) -> tuple:
        connection = self._connection
        if call.response is None:
            try:
                call.response = connection.getresponse()
            except (ConnectionError, http.client.BadStatusLine) as error:
                self._send_again(call, error)
                call.response = call.response or connection.getresponse()
        response = call.response
        data = self._read(response)
        if response.will_close:
            connection.close()
        return response, data

    def _send(self, request: tuple):
        """None, or the answer of a peer that did not wait for the whole request."""
        connection = self._connection
        method, path, body, headers = request
        if connection.sock is None:
            connection.connect()
        connection.sock.deadline = connection.deadline
        try:
            connection.request(method, path, body=body, headers=headers)
        except (BrokenPipeError, ConnectionResetError):
            # A peer that refuses a large body may have said why before it closed.
            with contextlib.suppress(OSError, http.client.HTTPException):
                return connection.getresponse()
            raise
        return None

    def _read(self, response) -> bytes:
        data = bytearray()
        while True:
            piece = response.read(ANSWER_STEP)
            if not piece:
                break
            data += piece
            if len(data) > self.answer_bytes:
                raise OSError(f"the answer is larger than {self.answer_bytes} bytes")
        # A head that breaks off looks to http.client like one without a length.
        unmeasured = response.length is None and not response.chunked
        if response.length or (unmeasured and not data):
            raise http.client.IncompleteRead(b"", response.length)
        response.close()
        return data

    def _judge(self, response, data: bytes, need_ok: bool) -> dict:
        """The answer as a dict, or the exception that names what is wrong with it."""
        status = response.status
        retry_after_s = parse_retry_after(response.getheader("Retry-After"))
        try:
            answer = self._parsed(response, data)
            why = f"the answer ({status}) is JSON, but has no \"ok\""
        except BodyError as error:
            answer = None
            what = "too large" if error.status == 413 else "not JSON"
            why = f"the answer ({status}) is {what} ({error.detail or error.error})"
        failure = self._failure(response, answer, why, need_ok)
        if failure is None:
            return answer
        failure.retry_after_s = retry_after_s
        raise failure

    def _parsed(self, response, data):
        """The value of the answer's JSON, or BodyError; weighed before it is made."""
        packed = (response.getheader("Content-Encoding") or "").lower() in ("gzip", "x-gzip")
        weight = JsonWeight()
        for piece in gunzip_pieces(data, self.answer_bytes) if packed else [data]:
            weight.add(piece)
        if weight.memory_bytes() + packed * len(data) > ANSWER_MEMORY_BYTES:
            raise BodyError(413, "the answer is too large", "it would take too much memory")
        return parse_json_bounded(gunzip_whole(data, self.answer_bytes) if packed else data)

    def _failure(self, response, answer, why: str, need_ok: bool) -> PeerError | None:
        status = response.status
        if 300 <= status < 400:
            where = (response.getheader("Location") or "elsewhere")[:200]
            return NotMedialib(self.url, status, f"it sends us on to {where}")
        ours = isinstance(answer, dict) and isinstance(answer.get("ok"), bool)
        if ours and (status >= 400 or not answer["ok"]):
            return PeerRefused(status, str(answer.get("error") or "refused"),
                               str(answer.get("detail") or ""), answer)
        if 200 <= status < 300 and isinstance(answer, dict) and (ours or not need_ok):
            return None
        if status == 413:
            return PeerRefused(status, "body too large")
        if status in PASSING_STATUSES:
            return PeerUnreachable(f"{self.url} answers {status} {response.reason}")
        return NotMedialib(self.url, status, why, answer if isinstance(answer, dict) else None)


def _url_parts(url: str) -> tuple:
    """(scheme, host, port) of a URL as parse_host makes them."""
    match = re.fullmatch(r"(https?)://(?:\[([^\]/]+)\]|([^:/\[\]]+))(?::([0-9]{1,5}))?/?", url)
    if match is None:
        raise UsageError(f"{url!r} is not the URL of a host")
    scheme, bracketed, name, port = match.groups()
    return scheme, bracketed or name, int(port or (443 if scheme == "https" else 80))


def _body_bytes(body: dict) -> bytes:
    return json.dumps(body, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


def _failure_text(error: Exception) -> str:
    """One line for people."""
    if isinstance(error, socket.timeout):
        return "no whole answer in time"
    if isinstance(error, http.client.IncompleteRead):
        return "the answer was cut short"
    if isinstance(error, socket.gaierror):
        return f"the name is not known ({error.strerror})"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return f"the answer is not HTTP ({type(error).__name__})"


def parse_retry_after(text: str | None, now: float | None = None) -> float | None:
    """Seconds to wait, from a number of seconds or a date, at most an hour; None without one."""
    if not text:
        return None
    text = text.strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return min(float(text), RETRY_AFTER_TOP_S)
    try:
        when = email.utils.parsedate_to_datetime(text)
        wait_s = when.timestamp() - (time.time() if now is None else now)
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    return min(max(wait_s, 0.0), RETRY_AFTER_TOP_S)


# =================================================================================================
# medialib/progress.py, from its line 11
# What a scan shows a person: one live line on a terminal, a plain line now and then elsewhere.
# =================================================================================================

TERMINAL_INTERVAL_S = 0.5
PLAIN_INTERVAL_S = 30.0


def human_bytes(count: float) -> str:
    """12.3 GB in steps of 1024, three digits at most."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    """45 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def progress_text(answer: dict) -> str:
    """One line about a running scan, from /agent/stats' answer. No percentage while counting."""
    parts = [answer["phase_name"]]
    if answer["phase"] == 2:
        parts.append(f"{answer['seen_videos']} of {answer['total_videos']} videos")
    else:
        parts.append(f"{answer['seen']:,} files")
        parts.append(f"{answer['rate_files_per_s']:,.0f}/s")
    if answer["data_mib"]:
        parts.append(f"{human_bytes(answer['data_mib'] * 2**20)} read")
    if answer["eta_s"] is not None:
        parts.append(f"about {human_seconds(answer['eta_s'])} left")
    if answer["file_errors"]:  # that the host is away is said apart
        parts.append(f"{answer['file_errors']} errors")
    if not answer["host_reachable"]:
        parts.append(f"host away, {answer['outbox']} batches wait")
    if (answer["idle_s"] or 0) > 10:
        parts.append(f"no progress for {human_seconds(answer['idle_s'])}")
    return " · ".join(parts)


def summary_text(answer: dict) -> str:
    """What the scan came to, in a few plain words."""
    parts = [f"{answer['seen']:,} files in {human_seconds(answer['elapsed'])}"]
    changed = answer["seen"] - answer["unchanged"]
    parts.append(f"{changed:,} new or changed" if changed else "nothing changed")
    for name, words in (("moved", "moved"), ("removed", "removed"), ("file_errors", "errors")):
        if answer[name]:
            parts.append(f"{answer[name]:,} {words}")
    if answer["data_mib"]:
        parts.append(f"{human_bytes(answer['data_mib'] * 2**20)} read")
    return ", ".join(parts)


class ProgressLine:
    """Shows `describe()` (the stats answer) on `stream` while a scan is active."""

    def __init__(self, stream, describe, *, quiet: bool = False):
        self.stream = stream
        self.describe = describe
        self.quiet = quiet
        self.on_terminal = stream.isatty()
        self.colour = self.on_terminal and not os.environ.get("NO_COLOR")
        self._stop = threading.Event()
        self._drawn = False
        self._was_active = False
        self._thread = threading.Thread(target=self._loop, name="progress", daemon=True)

    def start(self) -> None:
        if not self.quiet:
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(1.0)
        self._clear()

    def _loop(self) -> None:
        last_plain = time.monotonic()
        while not self._stop.wait(TERMINAL_INTERVAL_S):
            answer = self.describe()
            if self.on_terminal and answer["active"]:
                self._draw(progress_text(answer))
            elif answer["active"] and time.monotonic() - last_plain >= PLAIN_INTERVAL_S:
                last_plain = time.monotonic()
                self._write(progress_text(answer) + "\n")
            elif self._was_active and not answer["active"]:
                self._clear()
            self._was_active = answer["active"]

    def _draw(self, text: str) -> None:
        text = text[:max(20, shutil.get_terminal_size().columns - 1)]
        if self.colour:
            text = f"\x1b[36m{text}\x1b[0m"
        self._write(f"\r{text}\x1b[K")
        self._drawn = True

    def _clear(self) -> None:
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):
            self._stop.set()  # the terminal is gone; the work goes on


# =================================================================================================
# medialib/cache_schema.py, from its line 10
# The agent's own tables: what it knows of each file, what is not delivered yet, how far it came.
# =================================================================================================

AGENT_MIGRATIONS = [
    [
        """CREATE TABLE agent_index (
            path TEXT PRIMARY KEY,
            inode_key TEXT NOT NULL,
            size INTEGER NOT NULL,
            mtime REAL,
            ctime REAL,
            probed INTEGER NOT NULL DEFAULT 0,
            hashed INTEGER NOT NULL DEFAULT 0,
            hash_algo TEXT,
            hash_sample_size INTEGER,
            sample_hash TEXT,
            full_hash TEXT,
            last_seen REAL,
            last_hashed_at REAL,
            root_id INTEGER NOT NULL,
            folder_id INTEGER NOT NULL,
            kind TEXT NOT NULL,
            reason TEXT,
            racy INTEGER NOT NULL DEFAULT 0,
            rev INTEGER NOT NULL,
            digest INTEGER NOT NULL,
            moved_from TEXT,
            rejected TEXT,
            metadata TEXT,
            ino INTEGER NOT NULL
        )""",
        # Folder by folder is how a scan compares; the identity finds moved files and hard links.
        # Files of one folder have inodes close to one another, so that a first scan fills that
        # index from one end, while the identity's text begins with the size: anywhere. The size
        # is there for file systems that give many files one inode.
        "CREATE INDEX agent_index_folder ON agent_index (folder_id)",
        "CREATE INDEX agent_index_identity ON agent_index (ino, size)",
        "CREATE INDEX agent_index_rev ON agent_index (rev)",
        "CREATE INDEX agent_index_unprobed ON agent_index (root_id, path)"
        " WHERE kind = 'video' AND probed = 0",
        "CREATE INDEX agent_index_sampled ON agent_index (root_id, path)"
        " WHERE hashed = 1 AND full_hash IS NULL",
        "CREATE INDEX agent_index_rejected ON agent_index (rev) WHERE rejected IS NOT NULL",
        "CREATE INDEX agent_index_racy ON agent_index (root_id, path) WHERE racy = 1",
        "CREATE INDEX agent_index_described ON agent_index (full_hash)"
        " WHERE probed = 1 AND full_hash IS NOT NULL",
        """CREATE TABLE outbox (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            batch_id TEXT NOT NULL,
            payload_json TEXT NOT NULL,
            created_at REAL NOT NULL,
            after_rev INTEGER NOT NULL DEFAULT -1,
            rev INTEGER NOT NULL DEFAULT -1,
            size_bytes INTEGER NOT NULL DEFAULT 0
        )""",
        """CREATE TABLE scan_progress (
            root TEXT NOT NULL,
            phase INTEGER NOT NULL,
            last_path TEXT NOT NULL,
            updated_at REAL NOT NULL,
            PRIMARY KEY (root, phase)
        )""",
        # One row per file system folder given as a root. A root whose disk is away and whose path
        # is taken by another disk is parked: its files keep their rows under "@root<id>/…".
        """CREATE TABLE agent_root (
            id INTEGER PRIMARY KEY,
            path TEXT NOT NULL,
            parked INTEGER NOT NULL DEFAULT 0,
            volume TEXT,
            volume_path TEXT,
            fs TEXT,
            device INTEGER,
            state TEXT NOT NULL DEFAULT 'online',
            reason TEXT,
            accept_empty INTEGER NOT NULL DEFAULT 0,
            files INTEGER NOT NULL DEFAULT 0,
            bytes INTEGER NOT NULL DEFAULT 0,
            digest TEXT NOT NULL DEFAULT '0',
            end_due INTEGER NOT NULL DEFAULT 0,
            scan_json TEXT,
            last_seen REAL
        )""",
        "CREATE UNIQUE INDEX agent_root_path ON agent_root (path) WHERE parked = 0",
        """CREATE TABLE agent_folder (
            id INTEGER PRIMARY KEY,
            root_id INTEGER NOT NULL,
            parent_id INTEGER,
            rel TEXT NOT NULL,
            UNIQUE (root_id, rel)
        )""",
        "CREATE INDEX agent_folder_parent ON agent_folder (parent_id)",
        # A removed path waits here until the host knows.
        """CREATE TABLE removed (
            path TEXT PRIMARY KEY,
            root_id INTEGER NOT NULL,
            rev INTEGER NOT NULL
        )""",
        "CREATE INDEX removed_rev ON removed (rev)",
        # What was known of files that lost their path in this scan: they may turn up elsewhere.
        """CREATE TABLE former (
            id INTEGER PRIMARY KEY,
            path TEXT NOT NULL,
            inode_key TEXT NOT NULL,
            root_id INTEGER NOT NULL,
            ctime REAL,
            kind TEXT,
            probed INTEGER, hashed INTEGER,
            hash_algo TEXT, hash_sample_size INTEGER, sample_hash TEXT, full_hash TEXT,
            last_hashed_at REAL, racy INTEGER,
            metadata TEXT
        )""",
        "CREATE INDEX former_identity ON former (inode_key)",
        """CREATE TABLE agent_error (
            path TEXT NOT NULL,
            stage TEXT NOT NULL,
            root_id INTEGER NOT NULL,
            inode_key TEXT NOT NULL,
            class TEXT NOT NULL,
            message TEXT NOT NULL,
            attempts INTEGER NOT NULL,
            next_try REAL,
            tool TEXT,
            at REAL NOT NULL,
            PRIMARY KEY (path, stage)
        )""",
        "CREATE INDEX agent_error_root ON agent_error (root_id, stage)",
        "CREATE TABLE library (library_id TEXT PRIMARY KEY, acked INTEGER NOT NULL)",
        "CREATE TABLE agent_meta (key TEXT PRIMARY KEY, value TEXT)",
    ],
    # See scan_seal. Whoever changes a row in a way that a scan should look at removes the seal.
    ["ALTER TABLE agent_folder ADD COLUMN seal BLOB"],
]


# =================================================================================================
# medialib/cache_changes.py, from its line 12
# What a scan tells the cache and what the cache tells a scan: plain values, no SQL.
# =================================================================================================

class PutFile:
    """A file as it is now, carried from the walk to the cache; stored with the facts (a HashResult)
    that reading it gave. Facts and metadata of another identity at this path are dropped.

    found        has size, mtime, ctime and inode_key: a FoundFile of the walk
    known        the KnownContent that a second look should confirm
    fresh        the path cannot be in the index yet
    retold       the host has this very row already, without hashes
    twins        other names of the same inode, which share what reading it gives
    """

    verb = "put"
    facts = None
    racy = False
    moved_from = None
    metadata = None
    probed = False
    known = None
    fresh = False
    retold = False
    twins = ()

    def __init__(self, found, root_id: int, folder_id: int, path: str, rel: str, kind: str,
                 reason: str | None):
        self.found = found
        self.root_id = root_id
        self.folder_id = folder_id
        self.path = path
        self.rel = rel
        self.kind = kind
        self.reason = reason


class PutFolder(NamedTuple):
    """A folder seen for the first time; its number was given by RootBook.new_folder_id."""

    verb = "put_folder"
    id: int
    root_id: int
    parent_id: int | None
    rel: str


class SealFolder(NamedTuple):
    """All files of a folder were found as the index says; `seal` is what they looked like."""

    verb = "seal_folder"
    id: int
    seal: bytes


class GoneFolder(NamedTuple):
    """A folder that is gone; its files are reported by GoneFile of their own."""

    verb = "gone_folder"
    id: int


class GoneFile(NamedTuple):
    """A file that its folder, listed to the end, no longer holds."""

    verb = "gone"
    root_id: int
    path: str


class FullHash(NamedTuple):
    """The full hash of a file that had only a sample hash, if it is still the same version."""

    verb = "full_hash"
    path: str
    inode_key: str
    full_hash: str


class Described(NamedTuple):
    """ffprobe's answer (JSON text) for a file, if it is still the same version."""

    verb = "described"
    path: str
    inode_key: str
    metadata: str


class Failure(NamedTuple):
    """Something that could not be done with one file. `tool` is ffprobe's version for its stage."""

    verb = "failed"
    root_id: int
    path: str
    stage: str
    inode_key: str
    error_class: str
    message: str
    tool: str | None = None
    next_try: float | None = None


class ClearFailure(NamedTuple):
    """What failed at this stage works again, or is gone."""

    verb = "clear_failure"
    path: str
    stage: str


class Confirmed(NamedTuple):
    """A second look found the same content: nothing that the host should hear of."""

    verb = "confirmed"
    path: str
    inode_key: str
    hashed_at: float
    racy: bool


class KnownFile(NamedTuple):
    """What a scan needs of a cached row to compare it with the file."""

    path: str
    inode_key: str
    ctime: float | None
    hashed: int
    hash_algo: str | None
    hash_sample_size: int | None
    racy: int


class KnownContent(NamedTuple):
    """A cached row, or a former one, with the identity that was asked for."""

    path: str
    root_id: int
    kind: str
    probed: int
    hashed: int
    hash_algo: str | None
    hash_sample_size: int | None
    sample_hash: str | None
    full_hash: str | None
    last_hashed_at: float | None
    metadata: str | None
    ctime: float | None
    inode_key: str


# =================================================================================================
# medialib/cache_batch.py, from its line 10
# One batch for the host, and its records as the JSON texts that go over the wire.
# =================================================================================================

PLAIN_RECORD_COLUMNS = (
    "rev, path, inode_key, size, mtime, ctime, probed, hashed, hash_algo, hash_sample_size,"
    " sample_hash, full_hash, root_id, kind"
)
PLAIN_RECORD_WIDTH = 14
RECORD_COLUMNS = f"{PLAIN_RECORD_COLUMNS}, reason, moved_from, metadata"


class Batch:
    """All changes with after_rev < rev <= rev, of one root. `removed` are absolute paths.

    `files` are records as JSON texts: most of them go over a wire and nobody here looks into them.
    A payload left behind by an older agent has no revs: rev is None then.
    """

    def __init__(self, batch_id: str, root: dict, after_rev: int | None, rev: int | None,
                 files=(), removed=(), keys=(), changes: int = 0, described: int = 0,
                 outbox_id: int | None = None):
        self.batch_id = batch_id
        self.root = root
        self.after_rev = after_rev
        self.rev = rev
        self.files = list(files)
        self.removed = list(removed)
        self.keys = list(keys)  # the index paths of `files`, in order
        self.changes = changes  # how many rows and tombstones it tells of
        self.described = described  # how many of `files` have metadata
        self.outbox_id = outbox_id

    def outline(self) -> dict:
        """The message's body apart from its files."""
        body = {"batch_id": self.batch_id, **self.root, "phase": self.phase(),
                "removed": self.removed}
        if self.rev is not None:
            body.update(after_rev=self.after_rev, rev=self.rev)
        return body

    def phase(self) -> int:
        return 2 if self.files and self.described == len(self.files) else 1


def record_text(row: tuple, path: str, more: str) -> str:
    """A row (RECORD_COLUMNS) as the JSON text of `record_of`, under the path the host knows.

    Written out by hand, since this is done for every file: a dict and json.dumps take four times
    as long. `more` are further members. Metadata is JSON text in the cache already.
    """
    (_, _, identity, size, mtime, ctime, probed, hashed, algo, sample_size, sample, full, _, kind,
     reason, _, metadata) = row
    quote = encode_basestring_ascii
    if reason and kind == "junk":
        more = f',"reason":{quote(reason)}{more}'
    if metadata and probed:
        more = f',"metadata":{metadata}{more}'
    if hashed:
        sample = quote(sample)
        full = "null" if not full else sample if full == row[10] else quote(full)
        more = (f',"hashes":{{"algo":{quote(algo)},"sample_size":{sample_size},'
                f'"sample_hash":{sample},"full_hash":{full}}}{more}')
    return (f'{{"kind":{quote(kind)},"path":{quote(path)},"size":{size},'
            f'"mtime":{"null" if mtime is None else mtime},'
            f'"ctime":{"null" if ctime is None else ctime},'
            f'"inode_key":{quote(identity)},"ext":{quote(ext_of(name_of(path)))}{more}}}')


def batch_text(outline: dict, files: list) -> str:
    """The JSON text of a batch from its other members and the texts of its records."""
    head = json.dumps(outline, allow_nan=False, separators=(",", ":"))
    return f'{head[:-1]},"files":[{",".join(files)}]}}'


def records_of_texts(files: list) -> list:
    """The records of a batch as dicts, for those who take no text."""
    return json.loads(f"[{','.join(files)}]")


def root_wire_path(root, path: str) -> str:
    """The absolute path the host knows: that of the index, or of a parked root's last place."""
    if not root.parked:
        return path
    prefix = root.prefix()
    if not path.startswith(prefix):
        return path
    return f"{root.path.rstrip('/')}/{path[len(prefix):]}"


# =================================================================================================
# medialib/index_writer.py, from its line 10
# Applies changes to the index: rows, their numbers, tombstones, and the sums of each root.
# =================================================================================================

# A row that is new in every respect leaves out what it cannot have: SQLite's own default is quicker
# than handing a None to sqlite3, which asks for an adapter of it each time.
FRESH_COLUMNS = (
    f"{PLAIN_RECORD_COLUMNS}, last_seen, last_hashed_at, folder_id, racy, digest, ino"
)
FRESH_WIDTH = 20
INDEX_COLUMNS = f"{FRESH_COLUMNS}, reason, moved_from, metadata"
INDEX_INSERT = f"INSERT OR REPLACE INTO agent_index ({INDEX_COLUMNS}) VALUES ({'?,' * 22}?)"
FRESH_INSERT = f"INSERT OR REPLACE INTO agent_index ({FRESH_COLUMNS}) VALUES ({'?,' * 19}?)"
FORMER_COLUMNS = (
    "inode_key, root_id, ctime, kind, probed, hashed, hash_algo, hash_sample_size, sample_hash,"
    " full_hash, last_hashed_at, racy, metadata"
)
NO_FACTS = (None, None, None, None, None)
# Under the path that the host knows: a move that was not delivered is news only to us.
KEEP_FORMER = (
    f"INSERT INTO former (path, {FORMER_COLUMNS}) SELECT CASE WHEN rev > ? THEN"
    f" coalesce(moved_from, path) ELSE path END, {FORMER_COLUMNS} FROM agent_index"
)


def signed_digest(value: int) -> int:
    """A 64-bit digest as SQLite's signed integer."""
    return value - DIGEST_MODULUS if value >= DIGEST_MODULUS // 2 else value


class IndexWriter:
    """Applies changes inside one transaction and keeps each root's count, bytes and digest.

    `told` is the highest number that the host has, or gets in a batch made before this change.
    `fresh` are the rows that it has put in (values of FRESH_COLUMNS, behind them the reason if
    there is one), which is all that it changed as long as it did `only_fresh` ones.
    """

    def __init__(self, cache, db):
        self.cache = cache
        self.db = db
        self.now = cache.clock()
        self.told = cache.outbox.told
        self.fresh = []
        self.only_fresh = True
        self.unsealed = set()  # folders that have no seal any more

    def apply(self, changes: list) -> None:
        fresh = []
        for change in changes:
            verb = change.verb
            if verb == "put":
                if change.fresh and not change.probed and change.moved_from is None:
                    fresh.append(change)
                else:
                    self.put(change)
                    self.only_fresh = False
                continue
            if verb != "put_folder":
                self.only_fresh = False
                if fresh:  # all others may concern a row before them
                    self.insert_fresh(fresh)
                    fresh = []
            self.apply_other(verb, change)
        self.insert_fresh(fresh)

    def apply_other(self, verb: str, change) -> None:
        if verb == "gone":
            self.gone(change)
        elif verb == "put_folder":
            self.db.execute("INSERT OR REPLACE INTO agent_folder (id, root_id, parent_id, rel)"
                            " VALUES (?, ?, ?, ?)", change)
        elif verb == "seal_folder":
            self.db.execute("UPDATE agent_folder SET seal = ? WHERE id = ?",
                            (change.seal, change.id))
            self.unsealed.discard(change.id)
        elif verb == "gone_folder":
            self.db.execute("DELETE FROM agent_folder WHERE id = ?", change)
        elif verb == "full_hash":
            self.update(change.path, change.inode_key, full_hash=change.full_hash)
            self.forget_failure(change.path, "full")
        elif verb == "described":
            self.update(change.path, change.inode_key, metadata=change.metadata, probed=1)
            self.forget_failure(change.path, "probe")
        elif verb == "failed":
            self.failed(change)
        elif verb == "confirmed":
            self.unseal(self.cache.folder_of(change.path))
            self.db.execute("UPDATE agent_index SET racy = ?, last_hashed_at = ?"
                            " WHERE path = ? AND inode_key = ?",
                            (int(change.racy), change.hashed_at, change.path, change.inode_key))
            self.forget_failure(change.path, "read")
        elif verb == "clear_failure":
            self.forget_failure(change.path, change.stage)
        else:
            raise MedialibError(f"not a change: {change!r}")

    def finish(self) -> None:
        self.cache.roots.store_totals(self.db)

    def unseal(self, folder_id: int | None) -> None:
        """A row of this folder changes: the next scan must compare them one by one."""
        if folder_id not in self.unsealed:
            self.db.execute("UPDATE agent_folder SET seal = NULL WHERE id = ?"
                            " AND seal IS NOT NULL", (folder_id,))
            self.unsealed.add(folder_id)

    def insert_fresh(self, puts: list) -> None:
        """Rows for paths that cannot be in the index yet (the first scan of an empty cache)."""
        # The same path twice in one batch: the later one is right.
        seen = {put.path: put for put in puts}
        rows = self.rows_of(seen.values())
        self.db.executemany(FRESH_INSERT, rows)
        reasons = {path: put.reason for path, put in seen.items() if put.reason is not None}
        if reasons:
            self.db.executemany("UPDATE agent_index SET reason = ? WHERE path = ?",
                                [(reason, path) for path, reason in reasons.items()])
            rows = [(*row, reasons.get(row[1])) for row in rows]
        self.fresh += rows
        for folder_id in {put.folder_id for put in puts}:
            self.unseal(folder_id)
        if self.cache.error_count:
            for put in puts:
                if put.facts is not None:
                    self.forget_failure(put.path, "read")

    def rows_of(self, puts) -> list:
        """[values of FRESH_COLUMNS]; the rows count in their roots' sums from now on."""
        rows, sums, rev, now = [], {}, self.cache.rev, self.now
        for put in puts:
            _, _, size, mtime, ctime, key, _ = put.found
            facts, kind, root_id, probed = put.facts, put.kind, put.root_id, put.probed
            algo, sample_size, sample, full, at = facts or NO_FACTS
            digest = row_digest(put.rel, key, kind, algo, sample, full, probed)
            if root_id not in sums:
                sums[root_id] = [0, 0, 0]
            count = sums[root_id]
            count[0] += 1
            count[1] += size
            count[2] += digest
            rev += 1
            rows.append((
                rev, put.path, key, size, mtime, ctime, 1 if probed else 0,
                0 if facts is None else 1, algo, sample_size, sample, full, root_id, kind, now, at,
                put.folder_id, 1 if put.racy else 0, signed_digest(digest), inode_number(key),
            ))
        self.cache.rev = rev
        for root_id, count in sums.items():
            self.cache.roots.add(root_id, *count)
        return rows

    def put(self, put: PutFile) -> None:
        self.db.execute("DELETE FROM removed WHERE path = ? AND root_id = ?",
                        (put.path, put.root_id))
        self.unseal(put.folder_id)
        old, moved_from = self.old_row(put.path), put.moved_from
        if moved_from == put.path:
            moved_from = None  # from one root to another round it: `replace` sees to it
        elif moved_from is not None:
            moved_from = self.take_from(put)
        if old is not None:
            moved_from = self.replace(old, put, moved_from)
        elif put.moved_from == put.path:
            moved_from = put.path
        row, = self.rows_of([put])
        self.db.execute(INDEX_INSERT, (*row, put.reason, moved_from, put.metadata))
        if put.facts is not None:
            self.forget_failure(put.path, "read")

    def replace(self, old: dict, put: PutFile, moved_from: str | None) -> str | None:
        """Another row takes the place of this one; where the host finds the new one's content."""
        self.drop_row(old)
        undelivered = old["rev"] > self.told
        if version_prefix(old["inode_key"]) == version_prefix(put.found.inode_key):
            if moved_from is None and undelivered:
                return old["moved_from"]  # the host has not heard of that move yet
            if old["root_id"] != put.root_id:
                return put.path
            return moved_from
        self.keep_former(put.path)
        if undelivered and old["moved_from"] != moved_from:
            self.left_behind(old)
        if old["root_id"] != put.root_id:
            self.tombstone(put.path, old["root_id"])
        return moved_from

    def left_behind(self, old: dict) -> None:
        """To the host this file still lies under its first path; nothing may be there now."""
        path = old["moved_from"]
        if path is not None and self.old_row(path) is None:
            self.tombstone(path, old["root_id"])

    def keep_former(self, path: str) -> None:
        self.db.execute(f"{KEEP_FORMER} WHERE path = ?", (self.told, path))

    def take_from(self, put: PutFile) -> str | None:
        """Remove the row that moved to put.path; the old path as the host knows it."""
        if self.cache.error_count:
            self.move_failures(put)
        old = self.old_row(put.moved_from)
        if old is None or version_prefix(old["inode_key"]) != version_prefix(put.found.inode_key):
            return put.moved_from
        self.drop_row(old)
        self.db.execute("DELETE FROM agent_index WHERE path = ?", (put.moved_from,))
        undelivered = old["rev"] > self.told
        if undelivered or old["root_id"] != put.root_id:
            self.tombstone(put.moved_from, old["root_id"])
        if undelivered and old["moved_from"]:
            return old["moved_from"] if old["moved_from"] != put.path else None
        return put.moved_from

    def move_failures(self, put: PutFile) -> None:
        """What ffprobe could not do it cannot do under the new name either."""
        prefix = version_prefix(put.found.inode_key)
        self.db.execute(
            "UPDATE OR REPLACE agent_error SET path = ?, root_id = ?"
            " WHERE path = ? AND inode_key >= ? AND inode_key < ?",
            (put.path, put.root_id, put.moved_from, prefix, prefix[:-1] + ";"))

    def gone(self, change: GoneFile) -> None:
        old = self.old_row(change.path)
        if old is None or old["root_id"] != change.root_id:
            return
        self.keep_former(change.path)
        self.drop_row(old)
        self.db.execute("DELETE FROM agent_index WHERE path = ?", (change.path,))
        if self.cache.error_count:
            # What ffprobe said waits for the file to turn up elsewhere, until forget_former.
            self.cache.error_count -= self.db.execute(
                "DELETE FROM agent_error WHERE path = ? AND stage != 'probe'",
                (change.path,)).rowcount
        self.tombstone(change.path, old["root_id"])
        if old["rev"] > self.told:
            self.left_behind(old)

    def tombstone(self, path: str, root_id: int) -> None:
        self.db.execute("INSERT OR REPLACE INTO removed VALUES (?, ?, ?)",
                        (path, root_id, self.cache.next_rev()))

    def failed(self, failure: Failure) -> None:
        known = self.db.execute(
            "SELECT attempts, inode_key, class, message, tool FROM agent_error"
            " WHERE path = ? AND stage = ?", (failure.path, failure.stage)).fetchone()
        same = known is not None and known[1] == failure.inode_key and known[4] == failure.tool
        # The attempt was counted when it began; its verdict replaces "unfinished".
        begun = same and known[2] == "unfinished" and failure.error_class != "unfinished"
        attempts = (known[0] if same else 0) + (0 if begun else 1)
        self.db.execute(
            "INSERT OR REPLACE INTO agent_error VALUES (?,?,?,?,?,?,?,?,?,?)",
            (failure.path, failure.stage, failure.root_id, failure.inode_key, failure.error_class,
             failure.message[:500], attempts, failure.next_try, failure.tool, self.now))
        self.cache.error_count += known is None
        told = same and (known[2], known[3]) == (failure.error_class, failure.message[:500])
        if failure.error_class != "unfinished" and not told:
            self.db.execute(
                "UPDATE agent_index SET rev = ?, moved_from = CASE WHEN rev > ? THEN moved_from END"
                " WHERE path = ?", (self.cache.next_rev(), self.told, failure.path))

    def forget_failure(self, path: str, stage: str) -> None:
        if self.cache.error_count:
            done = self.db.execute("DELETE FROM agent_error WHERE path = ? AND stage = ?",
                                   (path, stage)).rowcount
            self.cache.error_count -= done

    def old_row(self, path: str) -> dict | None:
        names = ("root_id", "size", "digest", "rev", "inode_key", "moved_from", "rejected",
                 "folder_id")
        row = self.db.execute(f"SELECT {', '.join(names)} FROM agent_index WHERE path = ?",
                              (path,)).fetchone()
        return dict(zip(names, row)) if row else None

    def drop_row(self, old: dict) -> None:
        self.unseal(old["folder_id"])
        self.drop_totals(old)

    def drop_totals(self, old: dict) -> None:
        if old["rejected"] is None:
            self.cache.roots.subtract(old["root_id"], old["size"], old["digest"])

    def update(self, path: str, expected_key: str | None = None, **values) -> bool:
        """Change columns of one row, if it is (still) the version that was meant."""
        names = ("root_id", "size", "digest", "inode_key", "kind", "hash_algo", "sample_hash",
                 "full_hash", "probed", "rejected", "rev", "moved_from")
        row = self.db.execute(f"SELECT {', '.join(names)} FROM agent_index WHERE path = ?",
                              (path,)).fetchone()
        if row is None:
            return False
        old = dict(zip(names, row))
        if expected_key and version_prefix(old["inode_key"]) != version_prefix(expected_key):
            return False
        new = {**old, **values}
        digest = row_digest(self.cache.roots.rel_path(old["root_id"], path), new["inode_key"],
                            new["kind"], new["hash_algo"], new["sample_hash"], new["full_hash"],
                            new["probed"])
        self.drop_totals(old)
        self.cache.roots.add(old["root_id"], 1, old["size"], digest)
        if old["rev"] <= self.told:
            values["moved_from"] = None  # the host has made that move; it must not try again
        values.update(digest=signed_digest(digest), rejected=None, rev=self.cache.next_rev())
        columns = ", ".join(f"{name} = ?" for name in values)
        self.db.execute(f"UPDATE agent_index SET {columns} WHERE path = ?",
                        (*values.values(), path))
        return True


# =================================================================================================
# medialib/cache_feed.py, from its line 8
# Rows on their way from the scan to the host: just stored, so that nobody need read them again.
# =================================================================================================

FEED_ROWS = 2000  # a delivery that is further behind reads the index


class FreshFeed:
    """The newest rows of a first scan, with numbers that follow one another. Guarded by the cache's
    lock.

    Every change of a row takes a new number, so the rows are those of the index as long as the last
    of them has the cache's highest. What changes rows without a number has to `clear` it.
    """

    def __init__(self):
        self._rows = []

    def add(self, rows: list) -> None:
        """What the transaction just committed has put in; see IndexWriter.fresh."""
        if self._rows and self._rows[-1][0] + 1 != rows[0][0]:
            self._rows = []
        self._rows += rows
        if len(self._rows) > FEED_ROWS:
            del self._rows[:-FEED_ROWS]

    def clear(self) -> None:
        self._rows = []

    def take(self, after_rev: int, limit: int, highest_rev: int) -> list:
        """Up to `limit` rows (of cache_batch.RECORD_COLUMNS) that follow on `after_rev`; [] when
        they have to be read from the index.
        """
        rows = self._rows
        if not rows or rows[-1][0] != highest_rev:
            self._rows = []
            return []
        start = after_rev + 1 - rows[0][0]
        if start < 0:
            return []
        taken = [(*row[:PLAIN_RECORD_WIDTH], row[FRESH_WIDTH] if len(row) > FRESH_WIDTH else None,
                  None, None) for row in rows[start:start + limit]]
        del rows[:start + limit]
        return taken


# =================================================================================================
# medialib/cache_outbox.py, from its line 20
# What is not delivered yet, in order, and what the host has acknowledged.
# =================================================================================================

OUTBOX_MAX_ROWS = 2000
OUTBOX_MAX_BYTES = 64 << 20
BATCH_MAX_BYTES = 4 << 20


class Outbox:
    """The delivery side of an AgentCache; one thread delivers."""

    def __init__(self, cache):
        self.cache = cache
        self.store = cache.store
        self.library_id: str | None = None
        self.turn = 0  # counts begins and ends of posting: odd while anything is under way
        # Until the host says otherwise, it knows what the library it last was knew.
        self.acked = self._last_acked()
        # What the host has or gets in a batch that is made already: `acked`, or above it.
        self.told = max(self.acked, self.store.one("SELECT coalesce(max(rev), 0) FROM outbox")[0])
        self._packed_at = self.told  # the cache's rev when no payload told of an old state
        self.feed = FreshFeed()

    def _last_acked(self) -> int:
        row = self.store.one("SELECT value FROM agent_meta WHERE key = 'library_id'")
        if row is None:
            return 0
        self.library_id = row[0]
        row = self.store.one("SELECT acked FROM library WHERE library_id = ?", (row[0],))
        return row[0] if row else 0

    # -- agreement with the host -----------------------------------------------------------------

    def align(self, library_id: str, last_rev: int | None) -> None:
        """Go by what the host says it holds of this agent's numbering.

        Less than was acknowledged, or a new library: everything above is sent again. More: this
        cache was cleared or restored from an old copy; what is undelivered is numbered anew above.
        Only the answers to batches that are kept were lost: they are sent once more, word for word.
        None (a host that keeps no number): what was acknowledged to that library stands.
        """
        before = (self.library_id, self.acked, self.told, self.cache.rev)
        try:
            with self.store.atomic() as db:
                self._align(db, library_id, last_rev)
        except BaseException:
            self.library_id, self.acked, self.told, self.cache.rev = before
            raise

    def _align(self, db, library_id: str, last_rev: int | None) -> None:
        if library_id != self.library_id:
            row = db.execute("SELECT acked FROM library WHERE library_id = ?",
                             (library_id,)).fetchone()
            self._set_library(db, library_id, row[0] if row else 0)
        if last_rev is not None and last_rev < self.acked:
            log.info("the host knows less than before: sending it again from the cache")
            self._set_acked(db, last_rev)
            self.drop_payloads(db)
        elif last_rev is not None and last_rev > self.acked and not self._is_kept(last_rev):
            self._shift_above(db, last_rev)

    def _is_kept(self, rev: int) -> bool:
        """Whether the host can have come so far by the payloads that are kept, as these follow on
        what it has acknowledged.
        """
        first = self.store.one("SELECT after_rev FROM outbox WHERE rev >= 0 ORDER BY id LIMIT 1")
        return first is not None and first[0] == self.acked and self.store.one(
            "SELECT 1 FROM outbox WHERE rev = ?", (rev,)) is not None

    def _set_library(self, db, library_id: str, acked: int) -> None:
        self.library_id = library_id
        db.execute("INSERT OR REPLACE INTO agent_meta VALUES ('library_id', ?)", (library_id,))
        # Another host may lack whatever this one has: every root's end is due to it.
        db.execute("UPDATE agent_root SET end_due = 1 WHERE scan_json IS NOT NULL")
        for root in self.cache.roots.all():
            root.end_due = int(root.scan_json is not None)
        self._set_acked(db, acked)
        self.drop_payloads(db)

    def _set_acked(self, db, acked: int) -> None:
        self.acked = acked
        self.told = max(self.told, acked)
        db.execute("INSERT OR REPLACE INTO library VALUES (?, ?)", (self.library_id, acked))

    def _shift_above(self, db, last_rev: int) -> None:
        shift = last_rev - self.acked
        for table in ("agent_index", "removed"):
            db.execute(f"UPDATE {table} SET rev = rev + ? WHERE rev > ?", (shift, self.acked))
        self.cache.rev = max(self.cache.rev + shift, last_rev)
        self._set_acked(db, last_rev)
        self.drop_payloads(db)

    def drop_payloads(self, db) -> None:
        db.execute("DELETE FROM outbox WHERE rev >= 0")
        self.forget_made()

    def forget_made(self) -> None:
        """Batches that were made and are not kept will not reach the host as they are."""
        self.feed.clear()
        kept = self.store.one("SELECT coalesce(max(rev), 0) FROM outbox")[0]
        self.told = max(self.acked, kept)

    # -- the next batch --------------------------------------------------------------------------

    def next_batch(self, limit: int) -> Batch | None:
        """The oldest undelivered batch: a kept payload, else made from the rows; None when done."""
        with self.store.lock:
            while True:
                kept = self.store.one("SELECT id, batch_id, payload_json, after_rev, rev"
                                      " FROM outbox ORDER BY id LIMIT 1")
                if kept is None:
                    break
                batch = self._kept_batch(*kept)
                if batch is not None:
                    return batch
            return self._told(self._make_batch(self.acked, limit))

    def batch_behind(self, batch: Batch, limit: int) -> Batch | None:
        """What follows on a batch that is under way, if there is a whole one."""
        with self.store.lock:
            if batch.rev != self.told or self.cache.rev - self.told < limit:
                return None
            return self._told(self._make_batch(self.told, limit))

    def _told(self, batch: Batch | None) -> Batch | None:
        if batch is not None:
            self.told = max(self.told, batch.rev)
        return batch

    def _kept_batch(self, outbox_id, batch_id, payload_json, after_rev, rev) -> Batch | None:
        try:
            body = json.loads(payload_json)
            files, removed = body["files"], body.get("removed") or []
            described = sum("metadata" in record for record in files)
        except (ValueError, TypeError, KeyError):
            self.forget_payload(outbox_id)
            return None
        if rev < 0:
            after_rev = rev = None
        elif after_rev != self.acked:
            with self.store.atomic() as db:
                self.drop_payloads(db)
            return None
        root = {key: body.get(key) for key in ("root", "volume", "volume_path") if key in body}
        keys = body.get("keys") or [record.get("path") for record in files]
        return Batch(batch_id, root, after_rev, rev, [json.dumps(record) for record in files],
                     removed, keys, len(files) + len(removed), described, outbox_id)

    def _make_batch(self, after_rev: int, limit: int) -> Batch | None:
        changes = self._changes(after_rev, limit)
        if not changes:
            return None
        root = self.cache.roots.get(changes[0][1])
        batch = Batch(str(uuid.uuid4()), {"root": root.path, "volume": root.volume,
                                          "volume_path": root.volume_path}, after_rev, after_rev)
        for rev, root_id, row, gone in changes:
            if root_id != root.id:
                break
            if row is None:
                batch.removed.append(root_wire_path(root, gone))
            else:
                self._add_record(batch, root, row)
            batch.rev = rev
            batch.changes += 1
        return batch

    def _changes(self, after_rev: int, limit: int) -> list:
        """[(rev, root_id, row or None, removed path or None)] in the order of rev."""
        gone = self.store.rows("SELECT rev, root_id, path FROM removed WHERE rev > ?"
                               " ORDER BY rev LIMIT ?", (after_rev, limit))
        rows, last_rev = self._some_rows(after_rev, limit)
        changes = [(row[0], row[12], row, None) for row in rows]
        if gone:
            changes += [(rev, root_id, None, path) for rev, root_id, path in gone
                        if last_rev is None or rev < last_rev]
            changes.sort(key=change_rev)
        return changes[:limit]

    def _some_rows(self, after_rev: int, limit: int) -> tuple:
        """(rows, None), or (rows, rev of the last one) where descriptions filled the batch."""
        rows, size_bytes = self.feed.take(after_rev, limit, self.cache.rev), 0
        if rows:
            return rows, None
        cursor = self.store.db.execute(
            f"SELECT {RECORD_COLUMNS} FROM agent_index WHERE rev > ? ORDER BY rev LIMIT ?",
            (after_rev, limit))
        try:
            for row in cursor:
                rows.append(row)
                size_bytes += len(row[16] or "") + 400
                if size_bytes > BATCH_MAX_BYTES:
                    return rows, row[0]
        finally:
            cursor.close()
        return rows, None

    def _add_record(self, batch: Batch, root, row: tuple) -> None:
        path, moved_from = row[1], row[15]
        more = ""
        if moved_from:
            more = self._moved_from(batch, row, root)
        if self.cache.error_count:
            more += self._error_of(path)
        batch.described += bool(row[6] and row[16])
        batch.files.append(record_text(row, root_wire_path(root, path), more))
        batch.keys.append(path)

    def _moved_from(self, batch: Batch, row: tuple, root) -> str:
        """The member of a record that says under which path the host knows the file."""
        path, identity, moved_from = row[1], row[2], row[15]
        there = self.store.one("SELECT inode_key, root_id FROM agent_index WHERE path = ?",
                               (moved_from,))
        if there and there[1] == root.id and moved_from != path \
                and version_prefix(there[0]) == version_prefix(identity):
            return ""  # the same file is back under that name too: it keeps its row there
        wire_path = root_wire_path(root, moved_from)
        if there is None and moved_from.startswith(root.prefix()):
            # Nothing lies at the old path now: said here, whatever the host had there.
            batch.removed.append(wire_path)
        return f',"moved_from":{encode_basestring_ascii(wire_path)}'

    def _error_of(self, path: str) -> str:
        """The member of a record that says what could not be done with the file."""
        row = self.store.one("SELECT stage, class, message FROM agent_error WHERE path = ?"
                             " AND class != 'unfinished' LIMIT 1", (path,))
        if row is None:
            return ""
        return ',"error":' + json.dumps({"stage": row[0], "class": row[1], "message": row[2]})

    # -- keeping and acknowledging ---------------------------------------------------------------

    def keep(self, batch: Batch) -> None:
        """Put a batch that could not be delivered into the outbox, to be sent again as it is; not
        one that was made before its root moved, say (see forget_made).
        """
        with self.store.atomic() as db:
            if batch.outbox_id is None and batch.rev is not None and batch.rev <= self.told:
                self._insert_payload(db, batch)

    def _insert_payload(self, db, batch: Batch) -> int:
        text = batch_text({**batch.outline(), "keys": batch.keys}, batch.files)
        batch.outbox_id = db.execute(
            "INSERT INTO outbox (batch_id, payload_json, created_at, after_rev, rev, size_bytes)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (batch.batch_id, text, self.cache.clock(), batch.after_rev, batch.rev,
             len(text))).lastrowid
        self.told = max(self.told, batch.rev)
        return len(text)

    def pack(self, limit: int) -> None:
        """While the host is away: put what is undelivered behind the kept payloads, within bounds.
        What does not fit stays in the rows and is sent from there.
        """
        self._drop_old_states()
        count, size_bytes = self.store.one("SELECT count(*), coalesce(sum(size_bytes), 0)"
                                           " FROM outbox")
        while count < OUTBOX_MAX_ROWS and size_bytes < OUTBOX_MAX_BYTES:
            with self.store.atomic() as db:
                last = db.execute("SELECT max(rev) FROM outbox WHERE rev >= 0").fetchone()[0]
                batch = self._make_batch(self.acked if last is None else last, limit)
                if batch is None:
                    return
                size_bytes += self._insert_payload(db, batch)
                count += 1

    def _drop_old_states(self) -> None:
        """Keep what waits bounded by the number of files, not of changes: payloads tell of files
        that have changed again since. Once there are more changes than rows that wait, all
        payloads but the first, which the host may have executed, are made anew from the rows.
        """
        first = self.store.one("SELECT id, rev FROM outbox WHERE rev >= 0 ORDER BY id LIMIT 1")
        if first is None or 2 * (self.cache.rev - self._packed_at) <= self.undelivered():
            return
        with self.store.atomic() as db:
            db.execute("DELETE FROM outbox WHERE rev >= 0 AND id > ?", (first[0],))
        self.told = max(self.acked, first[1])
        self._packed_at = self.cache.rev

    def acknowledge(self, batch: Batch, errors: list) -> None:
        """The host has committed this batch, apart from the records it names in `errors`."""
        with self.cache.writing() as writer:
            db = writer.db
            if batch.outbox_id is not None:
                db.execute("DELETE FROM outbox WHERE id = ?", (batch.outbox_id,))
            if batch.rev is not None:
                self._readmit(db, batch)
                self._set_acked(db, batch.rev)
                db.execute("DELETE FROM removed WHERE rev <= ?", (batch.rev,))
            for error in errors:
                if isinstance(error, dict):
                    self._quarantine(db, batch, error)

    def _readmit(self, db, batch: Batch) -> None:
        """Rows that were refused before (by another library, say) and are taken now."""
        rows = db.execute(
            "SELECT path, root_id, size, digest FROM agent_index WHERE rejected IS NOT NULL"
            " AND rev > ? AND rev <= ?", (batch.after_rev, batch.rev)).fetchall()
        for path, root_id, size, digest in rows:
            self.cache.roots.add(root_id, 1, size, digest)
            db.execute("UPDATE agent_index SET rejected = NULL WHERE path = ?", (path,))

    def _quarantine(self, db, batch: Batch, error: dict) -> None:
        index = error.get("index")
        if not isinstance(index, int) or not 0 <= index < len(batch.keys):
            return
        path, reason = batch.keys[index], str(error.get("error") or "refused")[:300]
        row = db.execute("SELECT root_id, size, digest, rejected, rev FROM agent_index"
                         " WHERE path = ?", (path,)).fetchone()
        if row is None or (batch.rev is not None and row[4] > batch.rev):
            return  # it has changed since; the new version is judged on its own
        log.warning("the host does not take %s: %s", path, reason)
        if row[3] is None:
            self.cache.roots.subtract(row[0], row[1], row[2])
        db.execute("UPDATE agent_index SET rejected = ? WHERE path = ?", (reason, path))

    def forget_payload(self, outbox_id: int) -> None:
        """Drop one payload; what was made after it no longer follows on anything."""
        with self.store.atomic() as db:
            db.execute("DELETE FROM outbox WHERE id = ?", (outbox_id,))
            self.drop_payloads(db)

    def take_back(self, batch: Batch) -> None:
        """The host does not take this batch: others are made from the rows."""
        if batch.outbox_id is not None:
            self.forget_payload(batch.outbox_id)
        else:
            with self.store.lock:
                self.forget_made()

    def send_again(self, folder_id: int) -> None:
        """Number all rows of a folder anew, so that they are delivered again."""
        with self.store.atomic() as db:
            rows = db.execute("SELECT rowid FROM agent_index WHERE folder_id = ?"
                              " AND rejected IS NULL", (folder_id,)).fetchall()
            db.executemany("UPDATE agent_index SET rev = ?, moved_from = NULL WHERE rowid = ?",
                           [(self.cache.next_rev(), row[0]) for row in rows])

    def remove_path(self, root, path: str) -> None:
        """Tell the host that nothing lies at this path (an index path)."""
        with self.store.atomic() as db:
            db.execute("INSERT OR REPLACE INTO removed VALUES (?, ?, ?)",
                       (path, root.id, self.cache.next_rev()))

    def undelivered(self, at_most: int = 100_000) -> int:
        """How many rows and removals the host has not acknowledged (counted up to `at_most`)."""
        total = 0
        for table in ("agent_index", "removed"):
            total += self.store.one(f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE rev > ?"
                                    " LIMIT ?)", (self.acked, at_most))[0]
        return total + self.store.one("SELECT count(*) FROM outbox WHERE rev < 0")[0]


def change_rev(change: tuple) -> int:
    return change[0]


# =================================================================================================
# medialib/cache_roots.py, from its line 18
# The agent's roots and folders: which disk is which root, and what each root holds in sum.
# =================================================================================================

ROOT_COLUMNS = (
    "id, path, parked, volume, volume_path, fs, device, state, reason, accept_empty, files, bytes,"
    " digest, end_due, scan_json, last_seen"
)


class CachedRoot:
    """One row of agent_root. `digest` is the sum of its files' row digests modulo 2**64."""

    id: int
    path: str
    parked: int
    volume: str | None
    volume_path: str | None
    fs: str | None
    device: int | None
    state: str
    reason: str | None
    accept_empty: int
    files: int
    bytes: int
    digest: int
    end_due: int
    scan_json: str | None
    last_seen: float | None

    def __init__(self, row):
        """`row` holds ROOT_COLUMNS in order."""
        vars(self).update(zip(ROOT_COLUMNS.split(", "), row))

    def prefix(self) -> str:
        """What its files' paths in agent_index begin with, before the relative path."""
        if self.parked:
            return f"@root{self.id}/"
        return self.path if self.path.endswith("/") else self.path + "/"

    def file_path(self, rel: str) -> str:
        return self.prefix() + rel

    def scan(self) -> dict:
        """What was noted of its last finished scan."""
        return json.loads(self.scan_json) if self.scan_json else {}


class KnownFolder(NamedTuple):
    """What a scan wants to know of a folder before it comes to it; see scan_seal."""

    id: int
    rel: str
    seal: bytes | None
    has_children: int


KNOWN_FOLDER_COLUMNS = (
    "id, rel, seal, EXISTS (SELECT 1 FROM agent_folder child WHERE child.parent_id = folder.id)"
    " FROM agent_folder folder"
)


class RootBook:
    """agent_root and agent_folder of one cache. Totals are changed only inside a commit."""

    def __init__(self, cache):
        self.cache = cache
        self.store = cache.store
        self._known: dict = {}
        self._changed: set = set()
        self._last_folder_id: int | None = None

    # -- roots -----------------------------------------------------------------------------------

    def find(self, root_id: int) -> CachedRoot | None:
        """The root, if there (still) is one of this number."""
        if root_id in self._known:
            return self._known[root_id]
        known = self.store.one("SELECT 1 FROM agent_root WHERE id = ?", (root_id,))
        return self.get(root_id) if known else None

    def get(self, root_id: int) -> CachedRoot:
        root = self._known.get(root_id)
        if root is None:
            row = self.store.one(f"SELECT {ROOT_COLUMNS} FROM agent_root WHERE id = ?", (root_id,))
            root = self._known[root_id] = self._from_row(row)
        return root

    def _from_row(self, row: tuple) -> CachedRoot:
        root = CachedRoot(row)
        root.digest = int(root.digest)
        return root

    def all(self) -> list:
        rows = self.store.rows("SELECT id FROM agent_root ORDER BY path")
        return [self.get(row[0]) for row in rows]

    def at_path(self, path: str) -> CachedRoot | None:
        row = self.store.one("SELECT id FROM agent_root WHERE path = ? AND parked = 0", (path,))
        return self.get(row[0]) if row else None

    def of_volume(self, volume: str | None, volume_path: str | None) -> CachedRoot | None:
        if volume is None:
            return None
        row = self.store.one("SELECT id FROM agent_root WHERE volume = ? AND volume_path = ?"
                             " ORDER BY parked LIMIT 1", (volume, volume_path or ""))
        return self.get(row[0]) if row else None

    def parked_at(self, path: str) -> list:
        """The roots that were at this path until another disk took it."""
        rows = self.store.rows("SELECT id FROM agent_root WHERE path = ? AND parked = 1"
                               " ORDER BY id", (path,))
        return [self.get(row[0]) for row in rows]

    def of_info(self, info) -> CachedRoot | None:
        """The root of this volume, under either of its names."""
        return self.of_volume(info.volume, info.volume_path) or self.of_volume(
            info.fsid, info.volume_path)

    def of_volume_or_clone(self, info) -> list:
        """Every root that has the volume's name, or was named after it as a clone."""
        clones = [f"{name}{CLONE_MARK}" for name in (info.volume, info.fsid)]
        rows = self.store.rows(
            "SELECT id FROM agent_root WHERE volume_path = ? AND (volume IN (?, ?)"
            " OR substr(volume, 1, ?) = ? OR substr(volume, 1, ?) = ?) ORDER BY id",
            (info.volume_path or "", info.volume, info.fsid, len(clones[0]), clones[0],
             len(clones[1]), clones[1]))
        return [self.get(row[0]) for row in rows]

    def identify(self, path: str, info) -> CachedRoot:
        """The root that `info` (a RootInfo of the folder now at `path`, not an empty one where
        another disk is expected) is; made if it is new. Moves and parks rows as needed.
        """
        root = self.of_info(info)
        if root is None:
            root = self.at_path(path)
            if root is not None and is_other_disk(root, info) and not is_replaced(root, info):
                self._park(root)
                root = None
        if root is None:
            return self._add(path, info)
        if root.parked or root.path != path:
            self.bring_to(root, path)
        self.save(root, volume=info.volume or root.volume, fs=info.fs, device=info.device,
                  volume_path=(info.volume_path if info.volume else root.volume_path) or "")
        return root

    def _add(self, path: str, info) -> CachedRoot:
        with self.store.atomic() as db:
            root_id = db.execute(
                "INSERT INTO agent_root (path, volume, volume_path, fs, device)"
                " VALUES (?, ?, ?, ?, ?)",
                (path, info.volume, info.volume_path or "", info.fs, info.device)).lastrowid
        return self.get(root_id)

    def _park(self, root: CachedRoot) -> None:
        log.info("%s now holds another disk; what was there is kept as offline", root.path)
        self._rename_rows(root, path=root.path, parked=1)

    def bring_to(self, root: CachedRoot, path: str) -> None:
        """The root's disk is at `path` now; whatever was known there is parked."""
        occupant = self.at_path(path)
        if occupant is not None and occupant.id != root.id:
            self._park(occupant)
        log.info("the disk of %s is now at %s", root.path, path)
        self._rename_rows(root, path=path, parked=0)

    def _rename_rows(self, root: CachedRoot, *, path: str, parked: int) -> None:
        old = root.prefix()
        new = CachedRoot({**vars(root), "path": path, "parked": parked}.values()).prefix()
        with self.store.atomic() as db:
            for table in ("agent_index", "removed", "agent_error"):
                db.execute(f"UPDATE {table} SET path = ? || substr(path, ?) WHERE root_id = ?",
                           (new, len(old) + 1, root.id))
            # A cursor is a path of the old place; without one the next walk starts at the top.
            db.execute("DELETE FROM scan_progress WHERE root IN (?, ?)", (path, root.path))
            db.execute("UPDATE agent_root SET path = ?, parked = ? WHERE id = ?",
                       (path, parked, root.id))
            # Payloads name paths; they are made again from the rows.
            self.cache.outbox.drop_payloads(db)
        root.path, root.parked = path, parked

    def save(self, root: CachedRoot, **values) -> None:
        """Change columns of a root, if anything differs."""
        values = {name: value for name, value in values.items() if getattr(root, name) != value}
        if not values:
            return
        columns = ", ".join(f"{name} = ?" for name in values)
        with self.store.atomic() as db:
            db.execute(f"UPDATE agent_root SET {columns} WHERE id = ?", (*values.values(), root.id))
        for name, value in values.items():
            setattr(root, name, value)

    def finish(self, root: CachedRoot, scan: dict, now: float) -> None:
        """A scan of the root came to its end: the host is to compare what both sides hold."""
        self.save(root, state="online", reason=None, accept_empty=0, end_due=root.end_due + 1,
                  scan_json=json.dumps(scan), last_seen=now)

    def rel_path(self, root_id: int, path: str) -> str:
        return path[len(self.get(root_id).prefix()):]

    def take_apart(self, root: CachedRoot) -> None:
        """A root that is no longer one, inside a root that still is: its files are remembered as
        former ones, so that the scan of the outer root finds them there without reading.
        """
        from_root = (root.id,)
        with self.store.atomic() as db:
            db.execute(f"{KEEP_FORMER} WHERE root_id = ?", (self.cache.outbox.told, root.id))
            db.execute("DELETE FROM scan_progress WHERE root = ?", (root.path,))
            for table in ("agent_index", "removed", "agent_folder", "agent_error"):
                db.execute(f"DELETE FROM {table} WHERE root_id = ?", from_root)
            db.execute("DELETE FROM agent_root WHERE id = ?", from_root)
            self.cache.outbox.drop_payloads(db)
        self._known.pop(root.id, None)

    # -- totals ----------------------------------------------------------------------------------

    def add(self, root_id: int, files: int, size: int, digest: int) -> None:
        """Count `files` more, of `size` bytes together; `digest` is the sum of theirs."""
        root = self.get(root_id)
        root.files += files
        root.bytes += size
        root.digest = (root.digest + digest) % DIGEST_MODULUS
        self._changed.add(root_id)

    def subtract(self, root_id: int, size: int, digest: int) -> None:
        root = self.get(root_id)
        root.files -= 1
        root.bytes -= size
        root.digest = (root.digest - digest) % DIGEST_MODULUS
        self._changed.add(root_id)

    def store_totals(self, db) -> None:
        for root_id in self._changed:
            root = self._known[root_id]
            db.execute("UPDATE agent_root SET files = ?, bytes = ?, digest = ? WHERE id = ?",
                       (root.files, root.bytes, str(root.digest), root_id))
        self._changed.clear()

    def forget_totals(self) -> None:
        """After a rollback: read them again from the table, into the same objects."""
        self._changed.clear()
        for root_id, root in list(self._known.items()):
            row = self.store.one(f"SELECT {ROOT_COLUMNS} FROM agent_root WHERE id = ?", (root_id,))
            if row is None:
                del self._known[root_id]
            else:
                vars(root).update(vars(self._from_row(row)))

    # -- folders ---------------------------------------------------------------------------------

    def folder_id(self, root_id: int, rel: str) -> int | None:
        row = self.store.one("SELECT id FROM agent_folder WHERE root_id = ? AND rel = ?",
                             (root_id, rel))
        return row[0] if row else None

    def new_folder_id(self) -> int:
        """A number for a folder whose row is written with the next commit."""
        with self.store.lock:
            if self._last_folder_id is None:
                self._last_folder_id = self.store.one("SELECT max(id) FROM agent_folder")[0] or 0
            self._last_folder_id += 1
            return self._last_folder_id

    def child_folders(self, folder_id: int) -> list:
        """[KnownFolder] of the known folders directly in this one."""
        rows = self.store.rows(f"SELECT {KNOWN_FOLDER_COLUMNS} WHERE parent_id = ?", (folder_id,))
        return [KnownFolder(*row) for row in rows]

    def known_folder(self, root_id: int, rel: str) -> KnownFolder | None:
        row = self.store.one(f"SELECT {KNOWN_FOLDER_COLUMNS} WHERE root_id = ? AND rel = ?",
                             (root_id, rel))
        return KnownFolder(*row) if row else None

    def folder_digest(self, folder_id: int | None) -> tuple:
        """(files, digest) of what the host should hold of one folder, from its rows."""
        files = digest = last = 0
        while folder_id is not None:
            rows = self.store.rows("SELECT rowid, digest FROM agent_index WHERE folder_id = ?"
                                   " AND rowid > ? AND rejected IS NULL ORDER BY rowid LIMIT 5000",
                                   (folder_id, last))
            if not rows:
                break
            last = rows[-1][0]
            files += len(rows)
            digest += sum(row[1] for row in rows)
        return files, digest % DIGEST_MODULUS

    def folders(self, root_id: int, after: int, limit: int) -> list:
        """[(id, rel)] of a root's folders by number."""
        return self.store.rows("SELECT id, rel FROM agent_folder WHERE root_id = ? AND id > ?"
                               " ORDER BY id LIMIT ?", (root_id, after, limit))


def is_other_disk(root: CachedRoot, info) -> bool:
    """Whether the folder now at the root's path lies on another file system than the root did.

    Both volumes known: they tell. Else the type of the file system tells (a mount point without its
    disk shows the file system below).
    """
    if root.volume and info.volume:
        return (root.volume, root.volume_path or "") != (info.volume, info.volume_path or "")
    return root.fs is not None and root.fs != info.fs


def is_replaced(root: CachedRoot, info) -> bool:
    """Whether the other disk was accepted in the place of the one before. To the host two disks
    without a name are both what is at this path: so they are one root here, too.
    """
    return bool(root.accept_empty) and root.volume is None and info.volume is None


# =================================================================================================
# medialib/agent_cache.py, from its line 23
# The agent's memory: what it knows of every file, in SQLite, so that nothing is read twice.
# =================================================================================================

AGENT_CACHE_INTERFACE = 2  # raised when agents could not use an older or newer agent_cache.py
PAGE_CACHE_KIB = 4096  # a scan goes through the index in its order
LOOKUP_CHUNK = 400  # SQLite before 3.32 takes at most 999 values in one statement
KNOWN_FILE_COLUMNS = ", ".join(KnownFile._fields)
KNOWN_CONTENT_COLUMNS = ", ".join(KnownContent._fields)


class AgentCache:
    """All tables of one agent. Safe for several threads; each call is one short transaction."""

    def __init__(self, path: str, *, clock=time.time):
        self.path = path
        self.clock = clock
        self.generation = 0  # how often it was cleared: what a scan found before is void
        self.set_aside: str | None = None
        self.store = self._open_or_rebuild()
        self._load()

    def _open_or_rebuild(self) -> StoreConnection:
        try:
            return self._open()
        except DamagedStoreError as error:
            if not self.path:
                raise
            self.set_aside = set_database_aside(self.path)
            log.warning("%s; it is kept as %s and a new one is built", error, self.set_aside)
            return self._open()

    def _open(self) -> StoreConnection:
        # NORMAL: after a power cut the host may know more than this cache, which `align` expects.
        store = StoreConnection(self.path, synchronous="NORMAL", cache_kib=PAGE_CACHE_KIB)
        try:
            check_sound(store)
            migrate(store, AGENT_MIGRATIONS)
        except BaseException:
            store.close()
            raise
        return store

    def _load(self) -> None:
        self.roots = RootBook(self)
        self.outbox = Outbox(self)
        highest = [self.store.one(f"SELECT max(rev) FROM {table}")[0] or 0
                   for table in ("agent_index", "removed")]
        acked = self.store.one("SELECT max(acked) FROM library")[0] or 0
        self.rev = max([*highest, acked, int(self.get_meta("rev_floor") or 0)])
        self.error_count = self.store.one("SELECT count(*) FROM agent_error")[0]

    def close(self) -> None:
        self.store.close()

    def next_rev(self) -> int:
        """Call it inside `atomic` only: the number and its row are committed together."""
        self.rev += 1
        return self.rev

    # -- reading ---------------------------------------------------------------------------------

    def folder_files(self, folder_id: int) -> dict:
        """{path: KnownFile} of one folder."""
        rows = self.store.rows(
            f"SELECT {KNOWN_FILE_COLUMNS} FROM agent_index WHERE folder_id = ?", (folder_id,))
        return {row[0]: row for row in rows}

    def at_rest(self, folder_id: int, algo: str, sample_size: int, at_most: int) -> list:
        """(path, version_prefix, ctime, 1) of up to `at_most` files of one folder; the last is
        another value for a file that a scan has to look into even if it has not changed.
        """
        return self.store.rows(
            "SELECT path, rtrim(inode_key, '0123456789'), ctime,"
            " hashed AND hash_algo = ? AND hash_sample_size = ? AND NOT racy"
            " FROM agent_index WHERE folder_id = ? LIMIT ?",
            (algo, sample_size, folder_id, at_most))

    def files_at(self, root_id: int, paths: list) -> dict:
        """{path: KnownFile} for those of the paths that are known as files of this root."""
        found = {}
        for start in range(0, len(paths), LOOKUP_CHUNK):
            part = paths[start:start + LOOKUP_CHUNK]
            marks = ",".join("?" * len(part))
            for row in self.store.rows(
                    f"SELECT {KNOWN_FILE_COLUMNS} FROM agent_index WHERE path IN ({marks})"
                    " AND +root_id = ?", (*part, root_id)):
                found[row[0]] = row
        return found

    def folder_paths(self, folder_id: int, chunk: int = 2000):
        """Yield lists of (path, root_id) of one folder, in chunks, for folders of any size."""
        last = 0
        while True:
            rows = self.store.rows(
                "SELECT rowid, path, root_id FROM agent_index WHERE folder_id = ? AND rowid > ?"
                " ORDER BY rowid LIMIT ?", (folder_id, last, chunk))
            if not rows:
                return
            last = rows[-1][0]
            yield [(row[1], row[2]) for row in rows]

    def same_content(self, inode_key: str) -> list:
        """KnownContent of every live or former row with the same size, mtime and inode."""
        prefix = version_prefix(inode_key)
        bounds = (prefix, prefix[:-1] + ";")  # ';' follows ':' in ASCII
        rows = self.store.rows(
            f"SELECT {KNOWN_CONTENT_COLUMNS} FROM agent_index WHERE ino = ? AND size = ?"
            " AND inode_key >= ? AND inode_key < ? LIMIT 20",
            (inode_number(inode_key), int(prefix.partition(":")[0]), *bounds))
        rows += self.store.rows(
            f"SELECT {KNOWN_CONTENT_COLUMNS} FROM former"
            " WHERE inode_key >= ? AND inode_key < ? LIMIT 20", bounds)
        return [KnownContent(*row) for row in rows]

    def facts_at(self, path: str):
        """KnownContent of one path, or None."""
        row = self.store.one(f"SELECT {KNOWN_CONTENT_COLUMNS} FROM agent_index WHERE path = ?",
                             (path,))
        return KnownContent(*row) if row else None

    def folder_of(self, path: str) -> int | None:
        row = self.store.one("SELECT folder_id FROM agent_index WHERE path = ?", (path,))
        return row[0] if row else None

    def described_copy(self, full_hash: str | None) -> str | None:
        """ffprobe's answer for any file with these very bytes."""
        if full_hash is None:
            return None
        row = self.store.one("SELECT metadata FROM agent_index WHERE full_hash = ? AND probed = 1"
                             " AND metadata IS NOT NULL LIMIT 1", (full_hash,))
        return row[0] if row else None

    def waiting(self, what: str, root_id: int, after: str, limit: int) -> list:
        """(path, inode_key, size, full_hash, sample_hash, algo, sample_size) of the root's rows
        that wait for ffprobe ("probe"), a full hash ("full") or a second look ("racy"), by path.
        """
        condition = {
            "probe": "kind = 'video' AND probed = 0",
            "full": "hashed = 1 AND full_hash IS NULL",
            "racy": "racy = 1",
        }[what]
        return self.store.rows(
            "SELECT path, inode_key, size, full_hash, sample_hash, hash_algo, hash_sample_size"
            f" FROM agent_index WHERE root_id = ? AND path > ? AND {condition}"
            " ORDER BY path LIMIT ?", (root_id, after, limit))

    def waiting_count(self, what: str, root_id: int) -> int:
        condition = {"probe": "kind = 'video' AND probed = 0",
                     "full": "hashed = 1 AND full_hash IS NULL"}[what]
        return self.store.one(
            f"SELECT count(*) FROM agent_index WHERE root_id = ? AND {condition}", (root_id,))[0]

    def failure(self, path: str, stage: str):
        """(inode_key, class, attempts, next_try, tool) of the last failure, or None."""
        if not self.error_count:
            return None
        return self.store.one("SELECT inode_key, class, attempts, next_try, tool FROM agent_error"
                              " WHERE path = ? AND stage = ?", (path, stage))

    def failures(self, limit: int = 50) -> dict:
        """{"summary": [{stage, class, count}], "latest": [{path, stage, …}]}, newest first."""
        summary = self.store.rows("SELECT stage, class, count(*) FROM agent_error"
                                  " GROUP BY stage, class ORDER BY 3 DESC LIMIT 50")
        names = ("path", "stage", "class", "message", "attempts", "next_try", "at")
        latest = self.store.rows(f"SELECT {', '.join(names)} FROM agent_error"
                                 " ORDER BY at DESC LIMIT ?", (limit,))
        return {
            "summary": [{"stage": s, "class": c, "count": n} for s, c, n in summary],
            "latest": [dict(zip(names, row)) for row in latest],
        }

    def left_over(self) -> int:
        """How many files could not be read or were changing, for the exit code."""
        return self.store.one("SELECT count(*) FROM agent_error WHERE stage IN ('read', 'list')")[0]

    def get_meta(self, key: str) -> str | None:
        row = self.store.one("SELECT value FROM agent_meta WHERE key = ?", (key,))
        return row[0] if row else None

    def set_meta(self, key: str, value: str) -> None:
        with self.store.atomic() as db:
            db.execute("INSERT OR REPLACE INTO agent_meta VALUES (?, ?)", (key, value))

    # -- writing ---------------------------------------------------------------------------------

    def commit(self, changes: list, cursor: tuple | None = None,
               generation: int | None = None) -> None:
        """Store changes and, in the same transaction, how far the scan came: (root, phase, path).

        A cursor path of None says that the pass is through and forgets the cursor. Changes of a
        `generation` before the last `clear` are dropped.
        """
        with self.writing() as writer:
            if generation is None or generation == self.generation:
                writer.apply(changes)
                if cursor is not None:
                    self._put_cursor(writer.db, *cursor)

    @contextlib.contextmanager
    def writing(self):
        """An IndexWriter in one transaction; after a failure all counters are as they were."""
        with self.store.lock:
            before = (self.rev, self.error_count)
            try:
                with self.store.atomic() as db:
                    writer = IndexWriter(self, db)
                    yield writer
                    writer.finish()
                if writer.fresh and writer.only_fresh:
                    self.outbox.feed.add(writer.fresh)
            except BaseException:
                self.rev, self.error_count = before
                self.roots.forget_totals()
                raise

    def _put_cursor(self, db, root: str, phase: int, last_path: str | None) -> None:
        if last_path is None:
            db.execute("DELETE FROM scan_progress WHERE root = ? AND phase = ?", (root, phase))
        else:
            db.execute("INSERT OR REPLACE INTO scan_progress VALUES (?, ?, ?, ?)",
                       (root, phase, last_path, self.clock()))

    def cursor(self, root: str, phase: int) -> str | None:
        row = self.store.one("SELECT last_path FROM scan_progress WHERE root = ? AND phase = ?",
                             (root, phase))
        return row[0] if row else None

    def begin_attempt(self, failure: Failure) -> None:
        """Write down what is about to be tried, so that a crash counts as a failed attempt."""
        self.commit([failure._replace(error_class="unfinished")])

    def end_attempts(self, keys: list) -> None:
        """Forget attempts [(path, stage)] that came to no verdict (the agent was asked to stop)."""
        with self.store.atomic() as db:
            db.executemany("DELETE FROM agent_error WHERE path = ? AND stage = ?", keys)
        self.error_count = self.store.one("SELECT count(*) FROM agent_error")[0]

    def forget_unfinished(self) -> None:
        """The scan ended in order: what was not tried to the end did not end the program."""
        if self.error_count:
            with self.store.atomic() as db:
                done = db.execute("DELETE FROM agent_error WHERE class = 'unfinished'"
                                  " AND attempts <= 1").rowcount
            self.error_count -= done

    def forget_lost_failures(self, root_id: int) -> None:
        """Drop what failed with files of a root, listed to the end, that are not there any more."""
        if self.error_count:
            with self.store.atomic() as db:
                done = db.execute(
                    "DELETE FROM agent_error WHERE root_id = ? AND stage != 'list' AND NOT EXISTS"
                    " (SELECT 1 FROM agent_index WHERE agent_index.path = agent_error.path)",
                    (root_id,)).rowcount
            self.error_count -= done

    def reclassify(self, classify) -> int:
        """Give every row the kind that `classify(path) -> (kind, reason)` says; rows changed."""
        changed, last = 0, 0
        while True:
            rows = self.store.rows("SELECT rowid, path, kind, reason FROM agent_index"
                                   " WHERE rowid > ? ORDER BY rowid LIMIT 1000", (last,))
            if not rows:
                return changed
            last = rows[-1][0]
            answers = [(path, (kind, reason), classify(path)) for _, path, kind, reason in rows]
            news = [(path, answer) for path, known, answer in answers if answer != known]
            if news:
                with self.writing() as writer:
                    for path, (kind, reason) in news:
                        writer.update(path, kind=kind, reason=reason)
            changed += len(news)

    def forget_former(self) -> None:
        """At the end of a scan of everything, what did not turn up again is gone."""
        with self.store.atomic() as db:
            db.execute("DELETE FROM former")
            if self.error_count:
                db.execute("DELETE FROM agent_error WHERE stage != 'list' AND NOT EXISTS"
                           " (SELECT 1 FROM agent_index i WHERE i.path = agent_error.path)")
                self.error_count = db.execute("SELECT count(*) FROM agent_error").fetchone()[0]

    def is_empty(self) -> bool:
        """Nothing is known of any path, not even that it is gone."""
        return all(self.store.one(f"SELECT 1 FROM {table} LIMIT 1") is None
                   for table in ("agent_index", "removed"))

    # -- upkeep ----------------------------------------------------------------------------------

    def clear(self) -> bool:
        """Forget what is known of files. What the host has not heard of removals is kept, and the
        numbering goes on above what the host knows. False when there was nothing to forget.
        """
        had = self.store.one("SELECT 1 FROM agent_index LIMIT 1") is not None
        with self.store.atomic() as db:
            self.generation += 1
            for table in ("agent_index", "agent_folder", "scan_progress", "former", "agent_error"):
                db.execute(f"DELETE FROM {table}")
            db.execute("UPDATE agent_root SET files = 0, bytes = 0, digest = '0', end_due = 0")
            db.execute("INSERT OR REPLACE INTO agent_meta VALUES ('rev_floor', ?)", (self.rev,))
            self.outbox.feed.clear()
        self.error_count = 0
        self.roots.forget_totals()
        return had

    def compact(self) -> tuple:
        """(bytes before, bytes after) of a VACUUM."""
        before = self.size_bytes()
        self.store.vacuum()
        return before, self.size_bytes()

    def size_bytes(self) -> int:
        try:
            return os.path.getsize(self.path) if self.path else 0
        except OSError:
            return 0

    def info(self) -> dict:
        """The answer of /agent/cache_info."""
        counts = {table: self.store.one(f"SELECT count(*) FROM {table}")[0]
                  for table in ("agent_index", "outbox", "scan_progress")}
        seen = self.store.one("SELECT max(last_seen) FROM agent_root")[0]
        hashed = self.store.one("SELECT max(last_hashed_at) FROM agent_index")[0]
        progress = self.store.one("SELECT max(updated_at) FROM scan_progress")[0]
        return {
            "ok": True, "db_path": self.path or None,
            "exists": bool(self.path) and os.path.exists(self.path),
            "size_bytes": self.size_bytes(), "rows": counts,
            "last": {"last_seen": seen, "last_hashed_at": hashed, "progress_updated_at": progress},
            "ts": self.clock(),
        }


def set_database_aside(path: str) -> str:
    """Rename a damaged database and its -wal/-shm together; the new name of the main file."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target = f"{path}.damaged-{stamp}"
    number = 1
    while os.path.lexists(target):
        number += 1
        target = f"{path}.damaged-{stamp}-{number}"
    try:
        os.replace(path, target)
    except OSError as error:
        raise StoreError(f"{path} is damaged and cannot be set aside: {error}") from error
    for tail in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.replace(path + tail, target + tail)
    return target


# =================================================================================================
# medialib/scan_buffer.py, from its line 11
# What a scan found, on its way into the cache, and how failures are put into words.
# =================================================================================================

FLUSH_S = 2.0
MOST_ATTEMPTS = 3
RETRY_FIRST_S = 3600.0
RETRY_MOST_S = 7 * 86400.0


class ChangeBuffer:
    """Changes on their way into the cache: stored when there are enough or after 2 s."""

    def __init__(self, cache, batch_size: int, on_stored):
        self.cache = cache
        self.batch_size = batch_size
        self.on_stored = on_stored
        self.generation = cache.generation
        self.changes = []
        self.seals = []  # of folders that were found at rest before any of `changes`
        self.recent = {}  # {inode_key: HashResult} of hard links that are not stored yet
        self.cursor = None
        self.since = time.monotonic()

    def add(self, change) -> None:
        self.changes.append(change)

    def seal(self, seal: SealFolder) -> None:
        """The rows of this folder, in which nothing that waits here may have a part, are as found.
        """
        self.seals.append(seal)

    def flush_if_due(self) -> None:
        waiting = max(len(self.changes), len(self.seals))
        if waiting >= self.batch_size or time.monotonic() - self.since >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        self.since = time.monotonic()
        if not self.changes and not self.seals and self.cursor is None:
            return
        changes, seals, cursor = self.changes, self.seals, self.cursor
        self.changes, self.seals, self.cursor, self.recent = [], [], None, {}
        self.cache.commit(seals + changes, cursor, self.generation)
        if changes:
            self.on_stored()


def retry_time(cache, path: str, stage: str, now: float) -> float:
    """When a failed file is tried again: after an hour, then four times as long, up to a week."""
    known = cache.failure(path, stage)
    attempts = known[2] if known else 0
    return now + min(RETRY_FIRST_S * 4 ** min(attempts, 10), RETRY_MOST_S)


def error_class(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def error_text(error: OSError) -> str:
    """The message without the path, as valid Unicode."""
    return to_text(error.strerror or str(error) or type(error).__name__)


# =================================================================================================
# medialib/scan_plan.py, from its line 11
# What a scan is told: its settings in a form that is quick to use, its counters, its brakes.
# =================================================================================================

ADAPT_INTERVAL_S = 0.5
STAT_WORK = 16384  # the cost of one more file, in bytes of reading


def in_offpeak(config: dict, now: float) -> bool:
    """Whether large files may be read whole at this time (local hours; equal hours: always)."""
    start, end = config["agent_offpeak_start"], config["agent_offpeak_end"]
    hour = time.localtime(now).tm_hour
    if start == end:
        return True
    return start <= hour < end if start < end else hour >= start or hour < end


class ScanPlan:
    """The settings of one scan. `ffprobe` is an Ffprobe, or None where it is not installed."""

    def __init__(self, config: dict, ffprobe=None):
        self.config = config
        self.ffprobe = ffprobe
        self.classifier = Classifier(config)
        self.algo = effective_algorithm(config["hash_algo"])
        self.sample_size = config["hash_sample_size"]
        self.full_hashes = config["do_full_hash"]
        self.batch_size = config["agent_batch_size"]
        self.max_workers = config["agent_max_workers"]
        self.adaptive = config["agent_adaptive"]
        self.follow_symlinks = config["follow_symlinks"]

    def kind_of(self, name: str) -> tuple:
        """(kind, reason) of a file name."""
        return self.classifier.classify(name, ext_of(name))

    def in_window(self, now: float) -> bool:
        """Whether large files may be read whole at this time (local hours)."""
        return in_offpeak(self.config, now)

    def readers(self, info) -> int:
        """How many files of a root may be open at once: one where a head or a wire would seek."""
        return self.max_workers if info.rotational is False and not info.network else 1


class ScanControl:
    """Asks a scan to stop. `stop` is for good; `pause` ends the present scan only."""

    def __init__(self):
        self.stop = threading.Event()
        self.pause = threading.Event()

    def keep_going(self) -> bool:
        return not (self.stop.is_set() or self.pause.is_set())

    def is_set(self) -> bool:
        """What ffprobe's run asks while it waits: the present work is to stop."""
        return not self.keep_going()

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until somebody asks to stop."""
        until = time.monotonic() + seconds
        while self.keep_going() and time.monotonic() < until:
            self.stop.wait(min(0.2, max(0.0, until - time.monotonic())))


class ScanStats:
    """Counters of the present scan, read by other threads without a lock: each is one int or text
    that is replaced as a whole.
    """

    def __init__(self):
        self.reset()
        self.active = False

    def reset(self) -> None:
        self.started = time.monotonic()
        self.ended = None
        self.phase = 0
        self.phase_name = "idle"
        self.root = ""
        self.current_path = ""
        self.seen = self.unchanged = self.removed = self.moved = self.errors = 0
        self.hashed = self.probed = self.fully_hashed = self.opened = 0
        self.data_bytes = 0
        self.seen_videos = 0
        self.total_all = None
        self.total_videos = None
        self.workers = 0
        self.kinds = {}
        self.ledger = {}
        self.last_progress = time.monotonic()

    def phase_is(self, phase: int, name: str) -> None:
        self.phase, self.phase_name = phase, name
        self.last_progress = time.monotonic()

    def elapsed_s(self) -> float:
        return (self.ended or time.monotonic()) - self.started

    def count_kind(self, kind: str) -> None:
        self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def add_ledger(self, counts: dict) -> None:
        ledger = self.ledger
        for key, count in counts.items():
            if count:
                ledger[key] = ledger.get(key, 0) + count


class ReaderPermits:
    """How many readers work at once, between 1 and `most`: one more is tried now and then and kept
    if the measured throughput grows, else taken back.
    """

    def __init__(self, most: int, adaptive: bool, clock=time.monotonic):
        self.most = most
        self.adaptive = adaptive and most > 1
        self.limit = 1 if self.adaptive else most
        self._clock = clock
        self._since = clock()
        self._work = 0.0
        self._rate = 0.0
        self._step = 1

    def note(self, work: float) -> None:
        """Some work was done (bytes plus a share per file); now and then the limit is adjusted."""
        if not self.adaptive:
            return
        self._work += work
        elapsed = self._clock() - self._since
        if elapsed < ADAPT_INTERVAL_S:
            return
        rate = self._work / elapsed
        if rate < self._rate * 1.03:
            self._step = -self._step
        self.limit = max(1, min(self.most, self.limit + self._step))
        if self.limit in (1, self.most):
            self._step = 1 if self.limit == 1 else -1
        self._rate, self._work, self._since = rate, 0.0, self._clock()


# =================================================================================================
# medialib/hash_window.py, from its line 24
# Reading files for their sample hash: chunks in a bounded window, results in the walk's order.
# =================================================================================================

CHUNK_FILES = 48
CHUNK_BYTES = 4 << 20
SEEKING_CHUNK_FILES = 128  # sorted by inode, which is about where they lie; a second or two of work
SEEKING_CHUNK_BYTES = 32 << 20
RACY_S = 2.0
CAREFUL_FILES = 500
LINKS_WAITING = 10_000
SMALL_READ_BYTES = 64 << 10
SLOW_FILE_S = 0.02
COLD_BLOCKS = 2  # a file takes at least eight blocks of 512 bytes: about one in four was not cached


class HashWindow:
    """Reads what RootScan gives it and notes the outcome in the buffer. Use it as a context; call
    `drain` for all that was given so far. `mark` has the cursor follow what is stored.
    """

    def __init__(self, scan, info, *, careful: int):
        self.scan = scan
        self.info = info
        self.cache = scan.cache
        self.plan = scan.plan
        self.stats = scan.stats
        self.control = scan.control
        self.buffer = scan.buffer
        self.careful = careful
        readers = self.plan.readers(info)
        self.permits = ReaderPermits(readers, self.plan.adaptive)
        self.seeks = info.rotational is not False
        self.chunk_most = ((SEEKING_CHUNK_FILES, SEEKING_CHUNK_BYTES) if self.seeks
                           else (CHUNK_FILES, CHUNK_BYTES))
        # With one reader, a file that changed and is read once more must wait for its turn.
        self.turn = threading.Lock() if readers == 1 else contextlib.nullcontext()
        self.pool = concurrent.futures.ThreadPoolExecutor(readers, thread_name_prefix="hash")
        self.window = deque()
        self.chunk = []
        self.chunk_bytes = 0
        self.waits = info.network  # whether the last chunk waited for a disk or a wire
        self.linked = {}  # {inode_key: job} of hard links that are being read

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self._settle()
        finally:
            self.pool.shutdown()

    # -- giving ----------------------------------------------------------------------------------

    def join_twin(self, job) -> bool:
        """One more name of an inode that is being read just now shares the result."""
        if job.found.nlink < 2 or job.moved_from:
            return False
        facts = self.buffer.recent.get(job.found.inode_key)
        if facts is not None:
            self._note(job, facts)
            return True
        first = self.linked.get(job.found.inode_key)
        if first is None:
            if len(self.linked) < LINKS_WAITING:
                self.linked[job.found.inode_key] = job
            return False
        if not first.twins:
            first.twins = []
        first.twins.append(job)
        return True

    def read(self, job) -> None:
        if self.careful and not self._begin_careful(job):
            return
        self.chunk.append(job)
        self.chunk_bytes += min(job.found.size, 3 * self.plan.sample_size)
        most_files, most_bytes = self.chunk_most
        if self.careful or len(self.chunk) >= most_files or self.chunk_bytes >= most_bytes:
            self._submit()

    def _begin_careful(self, job) -> bool:
        """After a crash: write down each file before it is opened; one that killed us three times
        is left alone until it changes.
        """
        self.careful -= 1
        failure = self.cache.failure(job.path, "read")
        if failure is not None and failure[1] in ("unfinished", "crashes") \
                and failure[0] == job.found.inode_key and failure[2] >= MOST_ATTEMPTS:
            self._give_up(job, "crashes", f"reading it ended the program {MOST_ATTEMPTS} times",
                          RETRY_MOST_S)
            return False
        self.cache.begin_attempt(Failure(job.root_id, job.path, "read", job.found.inode_key,
                                         "unfinished", "being read when the program ended"))
        return True

    def _submit(self) -> None:
        if not self.chunk:
            return
        chunk, small = self.chunk, self.chunk_bytes < SMALL_READ_BYTES * len(self.chunk)
        self.chunk, self.chunk_bytes = [], 0
        if self.seeks:
            chunk.sort(key=inode_of_job)
        if small and not self.waits:
            self._read_here(chunk)
            return
        while sum(1 for future, _ in self.window if future is not None) > self.permits.limit:
            self._take_oldest()
        self.stats.workers = self.permits.limit
        self.window.append((self.pool.submit(self._hash_chunk, chunk), None))

    def _read_here(self, chunk: list) -> None:
        """Small files that lie in memory: handing each read from thread to thread, as Python's lock
        does, takes longer than the reading.
        """
        while self.window:
            self._take_oldest()
        self.stats.workers = 1
        self._store_outcomes(self._hash_chunk(chunk))

    def _hash_chunk(self, jobs: list) -> list:
        """[(job, HashResult or exception)]; notes whether there was anything to wait for."""
        done = []
        started, blocks = time.monotonic(), disk_blocks_read()
        with self.turn:
            for job in jobs:
                if not self.control.keep_going():
                    return done
                done.append((job, self._hash_one(job.found)))
        self.waits = (
            self.info.network or blocks is None
            or disk_blocks_read() - blocks > COLD_BLOCKS * len(jobs)
            or time.monotonic() - started > SLOW_FILE_S * len(jobs))
        return done

    def _hash_one(self, found):
        try:
            return sample_hash_file(
                found.native, found, self.plan.algo, self.plan.sample_size,
                follow=self.plan.follow_symlinks, inodes_stable=self.scan.inodes_stable)
        except (OSError, FileChanging) as error:
            return error

    # -- taking ----------------------------------------------------------------------------------

    def mark(self, rel: str) -> None:
        """The cursor moves to this folder once everything submitted so far is stored."""
        if not self.window and not self.chunk:
            self.scan.set_cursor(rel)
            return
        if self.chunk:
            if len(self.chunk) < self.chunk_most[0] // 2 and len(self.window) < 4:
                return  # a small rest: a later folder's mark will cover it
            self._submit()
        if not self.window:
            self.scan.set_cursor(rel)
            return
        if self.window[-1][0] is None:
            self.window[-1] = (None, rel)  # nothing was given since: one mark is enough
        else:
            self.window.append((None, rel))
        while self.window and (self.window[0][0] is None or self.window[0][0].done()):
            self._take_oldest()

    def _take_oldest(self) -> None:
        future, rel = self.window.popleft()
        if future is None:
            self.scan.set_cursor(rel)
            return
        outcomes = future.result()
        most = 3 * self.plan.sample_size
        self.permits.note(sum(min(job.found.size, most) + STAT_WORK for job, _ in outcomes))
        self._store_outcomes(outcomes)

    def drain(self) -> None:
        """Everything given is read and in the cache."""
        while self.chunk or self.window:
            self._submit()
            while self.window:
                self._take_oldest()  # which may give a hard link's next name to be read
        self.buffer.flush()

    def _settle(self) -> None:
        """At the end, or when the scan is cut short: keep what is done."""
        if self.control.keep_going():
            self.drain()
            return
        self.chunk = []
        while self.window:
            self._take_oldest()
        self.buffer.flush()

    def _store_outcomes(self, outcomes: list) -> None:
        for job, outcome in outcomes:
            if job.found.nlink > 1:
                self.linked.pop(job.found.inode_key, None)
            if type(outcome) is HashResult:
                self._hashed(job, outcome)
            else:
                self._not_hashed(job, outcome)
        self.stats.opened += len(outcomes)
        self.stats.last_progress = time.monotonic()
        self.buffer.flush_if_due()

    def _not_hashed(self, job, outcome) -> None:
        if isinstance(outcome, FileChanging):
            self._changing(job)
        elif isinstance(outcome, FileNotFoundError):
            self._vanished(job)
        else:
            wait_s = retry_time(self.cache, job.path, "read", 0.0)
            self._give_up(job, error_class(outcome), error_text(outcome), wait_s)

    def _vanished(self, job) -> None:
        """The next listing will tell; its other names are there and want to be read."""
        self.buffer.add(ClearFailure(job.path, "read"))
        if job.twins:
            first, *others = job.twins
            first.twins = others
            self.read(first)

    def _hashed(self, job, facts) -> None:
        self.stats.hashed += 1
        self.stats.data_bytes += min(job.found.size, 3 * self.plan.sample_size)
        if job.found.nlink > 1:
            self.buffer.recent[job.found.inode_key] = facts
        if job.known is None:
            self.put(job, facts)
        else:
            self._note(job, facts)
        for twin in job.twins:
            self._note(twin, facts)

    def _note(self, job, facts) -> None:
        """The file has these hashes; where it had them before, the rest that is known stands."""
        known, found = job.known, job.found
        if known is None or not known.hashed or known.sample_hash != facts.sample_hash \
                or known.hash_algo != facts.algo \
                or not same_version(known.inode_key, found.inode_key, self.scan.inodes_stable):
            self.put(job, facts)
        elif (known.inode_key, known.ctime) == (found.inode_key, found.ctime):
            racy = abs(facts.hashed_at - found.mtime) < RACY_S
            self.buffer.add(Confirmed(job.path, found.inode_key, facts.hashed_at, racy))
        else:
            self.put(job, facts._replace(full_hash=facts.full_hash or known.full_hash), known)

    def put(self, job, facts, content=None) -> None:
        """Note the file with these facts; `content` gives ffprobe's answer where it is the same."""
        job.facts = facts
        job.racy = facts is not None and abs(facts.hashed_at - job.found.mtime) < RACY_S
        if content is not None and content.probed and job.kind == "video":
            job.metadata, job.probed = content.metadata, True
        self.buffer.changes.append(job)

    def _changing(self, job) -> None:
        """It was written to while it was read: one more try now, then again with the next scan."""
        again = look_at_file(job.found.native, self.plan.follow_symlinks)
        if again is None:
            self._vanished(job)
            return
        job.found = again
        job.known = None
        with self.turn:
            outcome = self._hash_one(again)
        if isinstance(outcome, (FileChanging, OSError)):
            self._give_up(job, "changing", "it was being written to while it was read", 0)
            return
        for twin in job.twins:
            twin.found = again._replace(name=twin.found.name, native=twin.found.native)
            twin.known = None
        self._hashed(job, outcome)

    def _give_up(self, job, failure_class: str, message: str, retry_in_s: float) -> None:
        """Catalogue the file without hashes and note why."""
        self.linked.pop(job.found.inode_key, None)
        self.stats.errors += 1
        for each in (job, *job.twins):
            if not each.retold:
                self.put(each, None)
            self.buffer.add(Failure(each.root_id, each.path, "read", each.found.inode_key,
                                    failure_class, message,
                                    next_try=self.scan.clock() + retry_in_s))


def inode_of_job(job) -> int:
    return int(job.found.inode_key.split(":")[2])


def disk_blocks_read() -> int | None:
    """How many blocks this thread has had read from disks so far; None where nobody counts them."""
    if resource is None or not hasattr(resource, "RUSAGE_THREAD"):
        return None
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock


class SingleFile:
    """The folder of one file, as find_files wants it."""

    __slots__ = ("native", "rel", "follow_symlinks", "stats")

    def __init__(self, native: str, follow_symlinks: bool):
        self.native = os.path.dirname(native)
        self.rel = ""
        self.follow_symlinks = follow_symlinks
        self.stats = {}  # it is looked at now


def look_at_file(native: str, follow_symlinks: bool):
    """The FoundFile at a native path as it is now, or None if no regular file can be seen there."""
    folder = SingleFile(native, follow_symlinks)
    for found in find_files(folder, [os.path.basename(native)]):
        if type(found) is not FileProblem:
            return found
    return None


def facts_of_content(content) -> HashResult:
    return HashResult(content.hash_algo, content.hash_sample_size, content.sample_hash,
                      content.full_hash, content.last_hashed_at or 0.0)


# =================================================================================================
# medialib/root_volume.py, from its line 17
# One name for one disk: a volume that is named in two ways, and disks that share one name.
# =================================================================================================

CLONE_SAMPLE = 64
SURE_SHARE = 0.5  # of the known files must be there for a disk without a name to be the known one


class RootOffline(Exception):
    """The root cannot be scanned now; nothing of it changes state. Its text is the reason."""


def settle_volume(cache, path: str, info, taken=None):
    """`info` with the name by which cache and host know the volume.

    taken: {(volume, volume_path): (device, path)} of roots looked at just before, which may have no
    row yet
    """
    if info.volume is None:
        return settle_nameless(cache, path, info)
    named = under_uuid(cache, info)
    roots = cache.roots.of_volume_or_clone(named)
    if not roots:
        device, first = (taken or {}).get((named.volume, named.volume_path), (info.device, path))
        return named if device == info.device else as_clone(cache, path, named, first)
    if [root.path for root in roots if not root.parked] == [path] and len(roots) == 1:
        return with_name_of(roots[0], named)
    fitting = [root for root in roots if may_be_here(cache, root, path, info)]
    if not fitting:
        return as_clone(cache, path, named, roots[0].path)
    best = max(fitting, key=lambda root: (
        agreement(cache, root, path), root.path == path and not root.parked,
        CLONE_MARK not in root.volume))
    return with_name_of(best, named)


def settle_nameless(cache, path: str, info):
    """The same where the file system tells no name now: what was at the path before decides."""
    here = cache.roots.at_path(path)
    if here is not None and not is_other_disk(here, info):
        if here.volume is None:
            return info
        return info._replace(volume=here.volume, volume_path=here.volume_path)
    parked = [(agreement(cache, root, path, info.inodes_stable), root)
              for root in cache.roots.parked_at(path)
              if root.volume is None and root.fs == info.fs]
    share, root = max(parked, key=lambda pair: pair[0], default=(0.0, None))
    if share >= SURE_SHARE:  # another disk had taken its place and is gone
        cache.roots.bring_to(root, path)
    return info


def under_uuid(cache, info):
    """Where only the fsid is known: the UUID that once was known with it."""
    if info.fsid is None:
        return info
    key = f"volume of {info.fsid}"
    known = cache.get_meta(key)
    if info.volume == info.fsid:
        return info._replace(volume=known) if known else info
    if known != info.volume:
        with contextlib.suppress(StoreError):  # a full disk: it is noted another time
            cache.set_meta(key, info.volume)
    return info


def with_name_of(root, info):
    """A root that is known by its fsid gets the better name."""
    if root.volume in (info.volume, info.fsid):
        return info
    return info._replace(volume=root.volume, fsid=None)


def as_clone(cache, path: str, info, other_path: str):
    """A name of its own for a disk whose name is also that of the one attached at `other_path`."""
    if info.fs in NETWORK_FS:
        raise RootOffline(f"it is the same share as {other_path}")
    name, number = f"{info.volume}{CLONE_MARK}{path}", 1
    while cache.roots.of_volume(name, info.volume_path) is not None:
        number += 1
        name = f"{info.volume}{CLONE_MARK}{path}#{number}"
    log.warning("%s has the UUID of the disk at %s; both are kept apart", path, other_path)
    return info._replace(volume=name, fsid=None)


def may_be_here(cache, root, path: str, info) -> bool:
    """Whether the root can be what is at `path`: it is not when its own disk is attached elsewhere,
    unless the two were exchanged, which its files tell.
    """
    if root.path == path and not root.parked:
        return True
    if root.parked or not attached_apart(root, info):
        return True
    return agreement(cache, root, path) > agreement(cache, root, root.path)


def attached_apart(root, info) -> bool:
    """Whether at the root's own path is a volume of this name on another device."""
    try:
        there = describe_root(to_native(root.path))
    except OSError:
        return False
    return there.device != info.device and (
        (there.volume, there.volume_path) == (info.volume, info.volume_path))


def latest_rows(cache, root) -> list:
    """[(path, inode_key)] of some of the root's files, those that changed last."""
    return cache.store.rows("SELECT path, inode_key FROM agent_index WHERE root_id = ?"
                            " ORDER BY rev DESC LIMIT ?", (root.id, CLONE_SAMPLE))


def agreement(cache, root, path: str, inodes_stable: bool = True) -> float:
    """The share of the root's latest files that are at `path` as they are known."""
    rows = latest_rows(cache, root)
    found = 0
    for file_path, key in rows:
        native = os.path.join(to_native(path), to_native(file_path[len(root.prefix()):]))
        with contextlib.suppress(OSError, ValueError):
            found += same_version(key, inode_key(os.lstat(native)), inodes_stable)
    return found / len(rows) if rows else 0.0


# =================================================================================================
# medialib/root_check.py, from its line 18
# Is the folder at a root's path really the root? Absence is not deletion.
# =================================================================================================

TOP_NAMES = 1000
EMPTY_REASON = "empty: a disk may be missing; accept it as empty if it really is"
RENUMBER_SAMPLE = 64
SURE_ROWS = 8  # fewer files may all have been replaced


def look_at_root(cache, path: str, known_at_host: int = 0, taken=None) -> tuple:
    """(RootInfo, whether the folder is empty). RootOffline if the root is not (all) there.

    known_at_host: how many files the host has of the root at this path, for a cache that lost its
    memory. taken: see settle_volume.
    """
    native = to_native(path)
    try:
        seen = describe_root(native)
        with os.scandir(native) as entries:
            names = [to_text(entry.name) for _, entry in zip(range(TOP_NAMES), entries)]
    except OSError as error:
        raise RootOffline(f"{error_class(error)}: {error_text(error)}") from error
    info = settle_volume(cache, path, seen, taken)
    here = cache.roots.at_path(path)
    expected = cache.roots.of_info(info) or here
    accepted = here is not None and here.accept_empty
    known = max(here.files if here else 0, expected.files if expected else 0, known_at_host)
    if not names and known and not accepted:
        raise RootOffline(EMPTY_REASON)
    if names and expected is not None and expected.files and not expected.accept_empty:
        doubt_other_disk(cache, expected, seen, names, path)
    return info, not names


def doubt_other_disk(cache, expected, info, names: list, here: str) -> None:
    """Another disk without an identity of its own at the same path: nothing known is there."""
    if info.volume is not None or expected.device in (None, info.device):
        return
    if is_other_disk(expected, info):
        if expected.volume is None:  # to the host both would be what is at this path
            raise RootOffline(f"{OTHER_DISK}: {info.fs} instead of {expected.fs}")
        return
    top = cache.roots.folder_id(expected.id, "")
    if top is None or len(names) >= TOP_NAMES:
        return
    known = {folder.rel for folder in cache.roots.child_folders(top)}
    for part in cache.folder_paths(top):
        known.update(path.rpartition("/")[2] for path, _ in part)
    strange = len(latest_rows(cache, expected)) >= SURE_ROWS and not agreement(
        cache, expected, here, info.inodes_stable)
    if known and (strange or not known.intersection(names)):
        raise RootOffline(f"{OTHER_DISK}: nothing known is on it")


def check_still_mounted(native: str, info) -> None:
    """RootOffline unless the root is still the folder of the file system that the scan began with.
    """
    try:
        now = os.stat(native)
    except OSError as error:
        raise RootOffline(f"{error_class(error)}: {error_text(error)}") from error
    if (now.st_dev, now.st_ino) != (info.device, info.inode):
        raise RootOffline("another file system is mounted here now")


def is_renumbered(cache, root) -> bool:
    """Whether all known files that are still there have new inodes: the file system makes them up
    anew, and path, size and time decide. An inode that is known elsewhere was moved instead.
    """
    rows = cache.store.rows("SELECT path, inode_key FROM agent_index WHERE root_id = ? LIMIT ?",
                            (root.id, RENUMBER_SAMPLE))
    changed = 0
    for path, key in rows:
        try:
            new = inode_key(os.lstat(to_native(path)))
        except OSError:
            continue
        if same_version(key, new):
            return False
        if same_version(key, new, inodes_stable=False):
            if cache.same_content(new):
                return False
            changed += 1
    if changed >= 3:
        log.info("%s: all files have new inode numbers; path, size and time decide", root.path)
    return changed >= 3


def device_of(path: str) -> int | None:
    """The device number of what is at a text path now."""
    try:
        return os.stat(to_native(path)).st_dev
    except (OSError, ValueError):
        return None


def device_near(path: str) -> int | None:
    """The device number of the folder a text path is in, or of the nearest above that is there."""
    while path:
        path = path.rpartition("/")[0]
        device = device_of(path) if path else None
        if device is not None:
            return device
    return None


# =================================================================================================
# medialib/scan_moves.py, from its line 13
# Where the content of a file that is new at its path was known before: a move, or a hard link.
# =================================================================================================

class MoveFinder:
    """Recognises files of one RootScan by their identity, so that they need not be read."""

    def __init__(self, scan, window):
        self.cache = scan.cache
        self.root = scan.root
        self.info = scan.info
        self.plan = scan.plan
        self.stats = scan.stats
        self.first = scan.first
        self.inodes_stable = scan.inodes_stable
        self.window = window
        self.left = set()  # folders, with "/", that a row was taken from, or will be with a commit
        self.same_disk = {}  # {root id: whether it is there now, on this file system}

    def find(self, job) -> bool:
        """Whether this content is known under another path; the outcome is noted then."""
        if self.first and job.found.nlink < 2:
            return False
        same = self.cache.same_content(job.found.inode_key) if self.inodes_stable else ()
        for content in same:
            if not self._on_this_disk(content, job):
                continue
            moved = not self._still_there(content.path, job)
            if moved and self._may_move(content, job):
                job.moved_from = content.path
                self.left.add(content.path[:content.path.rfind("/") + 1])
            # Under a name that is still there its row may be out of date as well: ctime tells.
            usable = moved or content.ctime == job.found.ctime
            if usable and content.hashed and content.hash_algo == self.plan.algo \
                    and content.hash_sample_size == self.plan.sample_size:
                self.stats.moved += moved
                self.window.put(job, facts_of_content(content), content)
                return True
        return self.window.join_twin(job)

    def _on_this_disk(self, content, job) -> bool:
        """Inode numbers mean something on one file system only, and in one subvolume of it."""
        if content.inode_key == job.found.inode_key:
            return True
        other = self.cache.roots.find(content.root_id)
        if other is None or (other.id != self.root.id and (
                other.volume is None or other.volume != self.root.volume)):
            return False
        # The file system may have another number today than when the content was seen. A snapshot
        # has the inodes of its original, and their ctime.
        return content.ctime == job.found.ctime or (
            device_near(content.path) == device_in_key(job.found.inode_key))

    def _may_move(self, content, job) -> bool:
        """A row may be taken from this root, or from another one that is there now."""
        if content.root_id == self.root.id:
            return content.path != job.path
        if content.root_id not in self.same_disk:
            other = self.cache.roots.find(content.root_id)
            self.same_disk[content.root_id] = other is None or (
                not other.parked and device_of(other.path) == self.info.device)
        return self.same_disk[content.root_id]

    def _still_there(self, path: str, job) -> bool:
        if path == job.path:
            return False
        try:
            seen = inode_key(os.lstat(to_native(path)))
        except ValueError:
            return False
        except OSError as error:
            unknown = error.errno not in (errno.ENOENT, errno.ENOTDIR)
            return unknown and job.found.nlink > 1
        return same_version(seen, job.found.inode_key)


def device_in_key(key: str) -> int:
    return int(key.rpartition(":")[2])


# =================================================================================================
# medialib/scan_seal.py, from its line 15
# A folder's seal: what its files looked like when all of them were as the index says.
# =================================================================================================

SEAL_BYTES = 16
STAMP = struct.Struct("<QqqQ").pack


class FolderSeals:
    """The seals of one scan; with another hash algorithm or sample size they would be others."""

    def __init__(self, cache, buffer, plan):
        self.cache = cache
        self.buffer = buffer
        self.plan = plan
        self.recipe = f"{plan.algo}:{plan.sample_size}"

    def seal(self, listing: FolderListing) -> bytes | None:
        """A digest of the names, sizes, times and inodes in a listing. None if it is incomplete, or
        has names that are still to be looked at.
        """
        stats, names = listing.stats, listing.names
        if listing.error is not None or len(stats) != len(names):
            return None
        try:
            stamps = [STAMP(seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino)
                      for seen in map(stats.__getitem__, names)]
        except struct.error:  # a time out of all bounds
            return None
        stamps.append("\0".join([self.recipe, *names]).encode("utf-8", "surrogatepass"))
        return hashlib.blake2b(b"".join(stamps), digest_size=SEAL_BYTES).digest()

    def rows_at_rest(self, folder_id: int, at_most: int) -> list:
        """See AgentCache.at_rest and walk.files_at_rest."""
        return self.cache.at_rest(folder_id, self.plan.algo, self.plan.sample_size, at_most)

    def keep(self, folder_id: int, seal: bytes, rows: list) -> None:
        """Have the next scan find this seal, as all `rows` of the folder are like its files. What
        waits to be stored may be about one of them: a file that moved away, say.
        """
        if self.buffer.changes:
            self.buffer.flush()
            if self.rows_at_rest(folder_id, len(rows) + 1) != rows:
                return
        self.buffer.seal(SealFolder(folder_id, seal))


# =================================================================================================
# medialib/scan_pipeline.py, from its line 39
# Pass 1: walk a root, skip what is unchanged, have the rest read, note what is gone.
# =================================================================================================

BIG_FOLDER = 2000
BIG_FOLDER_PART = 1000
CHILDREN_KEPT = 2000


class RootScan:
    """One root in pass 1. `on_stored()` is called after each commit, so that delivery wakes up.

    known_at_host: how many files the host has of this root (see look_at_root)
    """

    def __init__(self, cache, path: str, plan, stats, control, *, other_roots=(), on_stored=None,
                 clock=time.time, known_at_host: int = 0):
        self.cache = cache
        self.path = path
        self.native = to_native(path)
        self.plan = plan
        self.stats = stats
        self.control = control
        self.other_roots = other_roots
        self.clock = clock
        self.known_at_host = known_at_host
        self.buffer = ChangeBuffer(cache, plan.batch_size, on_stored or list)
        self.new_folders = {}
        self.next_folders = {}  # {rel: KnownFolder} of those that the walk comes to soon
        self.ledger = {}
        self.inodes_stable = True
        self.rel_start = 0  # where relative paths begin in those of the index
        self.folder_errors = 0
        self.info = None
        self.root = None
        self.is_empty = False
        self.all_new = False  # no folder of this root is known yet

    # -- the whole root --------------------------------------------------------------------------

    def run(self) -> bool:
        """Scan the root. True if it came to the end; RootOffline if it cannot be scanned."""
        started = self.clock()
        self.info, self.is_empty = look_at_root(self.cache, self.path, self.known_at_host)
        self.root = self.cache.roots.identify(self.path, self.info)
        self.cache.roots.save(self.root, state="scanning", reason=None)
        self.rel_start = len(self.root.prefix())
        self.first = self.cache.is_empty()
        self.inodes_stable = self.info.inodes_stable and (
            self.first or not is_renumbered(self.cache, self.root))
        careful = CAREFUL_FILES if self.cache.get_meta("unclean") == "1" else 0
        self.cache.set_meta("unclean", "1")
        self.seals = FolderSeals(self.cache, self.buffer, self.plan)
        with HashWindow(self, self.info, careful=careful) as self.window:
            self.moves = MoveFinder(self, self.window)
            self._walk_all()
            self._look_again()
        if not self.control.keep_going():
            return False
        check_still_mounted(self.native, self.info)
        self._note_end(started)
        return True

    def _walk_all(self) -> None:
        """From where the last scan was interrupted to the end, then the part before it."""
        cursor = self.cache.cursor(self.path, 1)
        if cursor is not None and cursor.startswith(self.root.prefix()):
            cursor = self.root_rel(cursor)
            self._walk(after=cursor)
            self._walk(until=cursor)
        else:
            self.all_new = self.first and not self.cache.roots.folders(self.root.id, 0, 1)
            self._walk()

    def _walk(self, after: str | None = None, until: str | None = None) -> None:
        walk = walk_folders(
            self.native, classifier=self.plan.classifier, root_device=self.info.device,
            other_roots=self.other_roots, follow_symlinks=self.plan.follow_symlinks,
            mount_points=mount_points(), after=after, until=until)
        for listing in walk:
            if not self.control.keep_going():
                return
            if listing.rel == "" and listing.error is not None:
                raise RootOffline(f"{error_class(listing.error)}: {error_text(listing.error)}")
            self._folder(listing)
            self.buffer.flush_if_due()

    def _note_end(self, started: float) -> None:
        self.buffer.cursor = (self.path, 1, None)
        self.buffer.flush()
        self.cache.forget_lost_failures(self.root.id)
        scan = {"scan_id": str(uuid.uuid4()), "started": started, "ended": self.clock(),
                "ledger": self.ledger, "errors": self.folder_errors,
                "accepted_empty": bool(self.root.accept_empty)}
        self.cache.roots.finish(self.root, scan, self.clock())
        self.cache.set_meta("unclean", "0")

    # -- one folder ------------------------------------------------------------------------------

    def _folder(self, listing) -> None:
        self._account(listing.counts)
        path = self.stats.current_path = self.root.file_path(listing.rel)
        known = self._known_folder(listing.rel)
        if listing.error is not None:
            self._folder_error(listing)
        elif self.cache.failure(path, "list") is not None:
            self.buffer.add(ClearFailure(path, "list"))
        prefix = path + "/" if listing.rel else path
        if known is None:
            self._compare_rows(listing, self._new_folder(listing.rel), True, prefix, None)
        else:
            seal = self.seals.seal(listing)
            if seal is not None and seal == known.seal and prefix not in self.moves.left:
                self._unchanged(len(listing.names))
            else:
                self._compare_rows(listing, known.id, False, prefix, seal)
            if known.has_children and listing.error is None:
                self._gone_folders(listing, known.id)
        self.window.mark(listing.rel)

    def _compare_rows(self, listing, folder_id: int, is_new: bool, prefix: str, seal) -> None:
        rows = [] if is_new else self.seals.rows_at_rest(folder_id, BIG_FOLDER + 1)
        if len(listing.names) > BIG_FOLDER or len(rows) > BIG_FOLDER:
            self._compare_big(listing, folder_id, prefix)
        elif rows and listing.error is None and files_at_rest(listing, prefix) == set(rows):
            self._unchanged(len(rows))
            if seal is not None:
                self.seals.keep(folder_id, seal, rows)
        else:
            self._compare_small(listing, folder_id, prefix, bool(rows))

    def _unchanged(self, files: int) -> None:
        self.stats.seen += files
        self.stats.unchanged += files
        self._account({"unchanged": files})

    def _account(self, counts: dict) -> None:
        """Everything that is met is in the ledger: first what the listings hold, by LEDGER_KEYS,
        then what became of the files: catalogued, unchanged, vanished (since the listing) or
        unreadable (not even to be looked at). `unlisted` are folders whose listing failed.
        """
        self.stats.add_ledger(counts)
        for key, count in counts.items():
            self.ledger[key] = self.ledger.get(key, 0) + count

    def _known_folder(self, rel: str):
        known = self.next_folders.pop(rel, None)
        if known is None and not self.all_new:
            known = self.cache.roots.known_folder(self.root.id, rel)
        return known

    def _new_folder(self, rel: str) -> int:
        """The number of a folder that was not known."""
        roots, parent = self.cache.roots, None
        if rel:
            parent_rel = parent_of(rel)
            parent = self.new_folders.get(parent_rel)
            if parent is None:
                parent = roots.folder_id(self.root.id, parent_rel)
        folder_id = roots.new_folder_id()
        self._remember_new(rel, folder_id)
        self.buffer.add(PutFolder(folder_id, self.root.id, parent, rel))
        return folder_id

    def _remember_new(self, rel: str, folder_id: int) -> None:
        """Only the ancestors of the present folder are needed, and only until they are stored."""
        kept = {}
        ancestor = rel
        while ancestor:
            ancestor = parent_of(ancestor)
            if ancestor in self.new_folders:
                kept[ancestor] = self.new_folders[ancestor]
        kept[rel] = folder_id
        self.new_folders = kept

    def set_cursor(self, rel: str) -> None:
        if self.buffer.changes or time.monotonic() - self.buffer.since > 1.0:
            self.buffer.cursor = (self.path, 1, self.root.file_path(rel))

    def _folder_error(self, listing) -> None:
        check_still_mounted(self.native, self.info)
        self.folder_errors += 1
        self.stats.errors += 1
        self._account({"unlisted": 1})
        self.buffer.add(Failure(self.root.id, self.root.file_path(listing.rel), "list", "",
                                error_class(listing.error), error_text(listing.error)))

    def _compare_small(self, listing, folder_id: int, prefix: str, has_rows: bool) -> None:
        """Something in this folder is not as it was."""
        known = self.cache.folder_files(folder_id) if has_rows else {}
        self._compare(listing, listing.names, folder_id, prefix, known)
        for name in listing.held:  # a followed link that leads nowhere just now
            known.pop(prefix + name, None)
        if known and listing.error is None:
            self._gone_files(list(known))

    def _compare(self, listing, names, folder_id: int, prefix: str, known: dict) -> None:
        """Take each file's row out of `known`; whatever is new or changed is looked into."""
        algo, sample_size, stats = self.plan.algo, self.plan.sample_size, self.stats
        unchanged_before, catalogued = stats.unchanged, 0
        for found in find_files(listing, names):
            if type(found) is FileProblem:
                self._problem(found, folder_id, prefix + found.name, known)
                continue
            path = prefix + found.name
            row = known.pop(path, None)
            stats.seen += 1
            if (row is not None and row[1] == found.inode_key and row[2] == found.ctime and row[3]
                    and row[4] == algo and row[5] == sample_size and not row[6]):
                stats.unchanged += 1
                continue
            unchanged = stats.unchanged
            self._consider(found, folder_id, path, row)
            catalogued += stats.unchanged == unchanged
        self._account({"catalogued": catalogued, "unchanged": stats.unchanged - unchanged_before})

    def _compare_big(self, listing, folder_id: int, prefix: str) -> None:
        """The same for a folder of any size: rows are fetched in chunks of its sorted names."""
        names = iter(listing.names)
        for part in iter(lambda: list(itertools.islice(names, BIG_FOLDER_PART)), []):
            known = self.cache.files_at(self.root.id,
                                        [prefix + to_text(name) for name in part])
            self._compare(listing, part, folder_id, prefix, known)
            self.buffer.flush_if_due()
            if not self.control.keep_going():
                return
        if listing.error is not None:
            return
        self.window.drain()
        present, held = listing.names, set(listing.held)
        if type(present) is list:
            present = frozenset(map(to_text, present))
        for part in self.cache.folder_paths(folder_id):
            gone_names = ((path, path.rpartition("/")[2]) for path, _ in part)
            self._gone_files([path for path, name in gone_names
                              if name not in held and name not in present])

    def _problem(self, problem, folder_id: int, path: str, known: dict) -> None:
        """A name that was listed but could not be looked at: its row stays as it is."""
        known.pop(path, None)
        if problem.error.errno == errno.ENOENT:
            self._account({"vanished": 1})
            return  # the next listing will tell
        self._account({"unreadable": 1})
        self.stats.errors += 1
        self.buffer.add(Failure(self.root.id, path, "read", "", error_class(problem.error),
                                error_text(problem.error)))

    def _consider(self, found, folder_id: int, path: str, row) -> None:
        kind, reason = self.plan.kind_of(found.name)
        job = PutFile(found, self.root.id, folder_id, path, path[self.rel_start:], kind, reason)
        self.stats.count_kind(kind)
        if row is None or not same_version(row[1], found.inode_key, self.inodes_stable):
            job.fresh = row is None and self.first
            if not self.moves.find(job):
                self.window.read(job)
        elif not row[3]:
            self._read_unhashed(job, row)
        elif row[4] != self.plan.algo or row[5] != self.plan.sample_size:
            self._read_again(job)
        elif not same_version(row[1], found.inode_key):
            self._renumber(job)
        elif row[2] != found.ctime or row[6]:
            job.known = self.cache.facts_at(path)
            self._read_again(job)
        else:
            self.stats.unchanged += 1  # only the device number is another: the same file

    def _read_again(self, job) -> None:
        if not self.window.join_twin(job):
            self.window.read(job)

    def root_rel(self, path: str) -> str:
        return path[self.rel_start:]

    def _renumber(self, job) -> None:
        """The same path, size and time where inodes do not last: nothing is read."""
        self.stats.unchanged += 1
        if self.info.inodes_stable:
            known = self.cache.facts_at(job.path)
            if known is not None and known.hashed:
                self.window.put(job, facts_of_content(known), known)

    def _read_unhashed(self, job, row) -> None:
        """A file that could not be read before: again when it changed or its time has come."""
        failure = self.cache.failure(job.path, "read")
        if failure is not None and row[2] == job.found.ctime:
            same = failure[0] == job.found.inode_key
            if same and (failure[3] or 0) > self.clock() and failure[1] != "unfinished":
                self.stats.unchanged += 1
                return
        job.retold = row[1] == job.found.inode_key and row[2] == job.found.ctime
        self._read_again(job)

    # -- what is gone ----------------------------------------------------------------------------

    def _gone_files(self, paths: list) -> None:
        if paths:
            check_still_mounted(self.native, self.info)
        for path in paths:
            self.buffer.add(GoneFile(self.root.id, path))
            self.stats.removed += 1

    def _gone_folders(self, listing, folder_id: int) -> None:
        children = self.cache.roots.child_folders(folder_id)
        if not children:
            return
        present = set(listing.subfolders)
        present.update(name for name in listing.held if not self._is_nested_root(listing, name))
        for child in children:
            if name_of(child.rel) not in present:
                check_still_mounted(self.native, self.info)
                self._gone_tree(child.id, child.rel)
            elif len(children) <= CHILDREN_KEPT:
                self.next_folders[child.rel] = child

    def _is_nested_root(self, listing, name: str) -> bool:
        """Files below a folder that has become a root of its own are catalogued there now."""
        path = os.path.join(listing.native, to_native(name))
        return os.path.realpath(path) in self.other_roots

    def _gone_tree(self, folder_id: int, rel: str) -> None:
        """A folder that its parent, listed to the end, no longer holds: all below it is gone."""
        waiting = [(folder_id, rel)]
        while waiting:
            current, rel = waiting.pop()
            waiting.extend(child[:2] for child in self.cache.roots.child_folders(current))
            self.buffer.add(ClearFailure(self.root.file_path(rel), "list"))
            for part in self.cache.folder_paths(current):
                for path, root_id in part:
                    self.buffer.add(GoneFile(root_id, path))
                self.stats.removed += len(part)
            self.buffer.add(GoneFolder(current))
            if len(self.buffer.changes) > 20 * self.plan.batch_size:
                # A huge tree: what is stored so far is right on its own.
                self.window.drain()

    # -- a second look ---------------------------------------------------------------------------

    def _look_again(self) -> None:
        """Files hashed within 2 s of their last change could have changed unseen: look once more,
        when 2 s have passed (git calls such entries racy).
        """
        self.window.drain()
        after = ""
        waited = False
        while self.control.keep_going():
            rows = self.cache.waiting("racy", self.root.id, after, 500)
            if not rows:
                break
            if not waited:
                self.control.sleep(RACY_S + 0.05)
                waited = True
            after = rows[-1][0]
            for row in rows:
                self._look_again_at(row[0])
            self.window.drain()

    def _look_again_at(self, path: str) -> None:
        found = look_at_file(to_native(path), self.plan.follow_symlinks)
        known, folder_id = self.cache.facts_at(path), self.cache.folder_of(path)
        if found is None or known is None:
            return
        kind, reason = self.plan.kind_of(found.name)
        job = PutFile(found, self.root.id, folder_id, path, self.root_rel(path), kind, reason)
        if same_version(known.inode_key, found.inode_key, self.inodes_stable):
            job.known = known
        self.window.read(job)


# =================================================================================================
# medialib/scan_passes.py, from its line 31
# Pass 2 (ffprobe for videos) and the full hashes of large files, both driven by the cache.
# =================================================================================================

PASS_CHUNK_ROWS = 200
NO_VERDICTS = ("missing", "not started", "stopped")  # of ffprobe: they say nothing about the file
PASSING_FAILURES = ("timeout", "unreadable")  # a slow or ailing disk: tried again some time


class WaitingFile(NamedTuple):
    """A row that waits for this pass; the columns are those of AgentCache.waiting."""

    path: str
    inode_key: str
    size: int
    full_hash: str | None
    sample_hash: str | None
    algo: str | None
    sample_size: int | None


class FileStamp(NamedTuple):
    """A file's size and identity, as hashing wants them."""

    size: int
    inode_key: str


class CachePass:
    """Takes the waiting rows of one root through a bounded pool, in whatever order they finish."""

    stage = ""

    def __init__(self, cache, root, info, plan, stats, control, *, on_stored=None,
                 clock=time.time):
        self.cache = cache
        self.root = root
        self.plan = plan
        self.stats = stats
        self.control = control
        self.clock = clock
        self.inodes_stable = info.inodes_stable
        self.readers = plan.readers(info)
        self.permits = ReaderPermits(self.readers, plan.adaptive)
        self.buffer = ChangeBuffer(cache, plan.batch_size, on_stored or list)
        self.unstored = set()  # contents whose result is in the buffer only

    def keep_going(self) -> bool:
        return self.control.keep_going()

    def run(self) -> None:
        with concurrent.futures.ThreadPoolExecutor(
                self.readers, thread_name_prefix=self.stage) as pool:
            running, suspects = {}, []
            try:
                for row in self.rows():
                    if self.was_under_way(row):
                        suspects.append(row)  # few: those a crash found under way
                    else:
                        self.take(row, pool, running, self.permits.limit)
                self.finish(running)
                # Each of them may have ended the program: last, and alone, so that the three
                # attempts that it gets are its own.
                for row in suspects:
                    self.take(row, pool, running, 1)
                    self.buffer.flush()  # a verdict that waits to be stored counts as none
            finally:
                self.finish(running)

    def take(self, row, pool, running: dict, at_once: int) -> None:
        """Work on one row, unless there is no need; waits until fewer than `at_once` run."""
        if not self.keep_going():
            return
        self.wait_for_twin(row, running)
        if self.is_settled(row):
            return
        self.begin(row)
        running[pool.submit(self.work, row)] = row
        while len(running) >= at_once:
            self.collect(running)

    def finish(self, running: dict) -> None:
        while running:
            self.collect(running)
        self.buffer.flush()

    def was_under_way(self, row) -> bool:
        """Whether the program ended while this row was being worked on."""
        failure = self.cache.failure(row.path, self.stage)
        return (failure is not None and failure[1] == "unfinished"
                and failure[0] == row.inode_key)

    def rows(self):
        after = ""
        while True:
            rows = self.cache.waiting(self.stage, self.root.id, after, PASS_CHUNK_ROWS)
            if not rows:
                return
            for row in rows:
                yield WaitingFile(*row)
            after = rows[-1][0]

    def content_of(self, row) -> str:
        """What rows share that need to be worked on only once."""
        return version_prefix(row.inode_key)

    def wait_for_twin(self, row, running: dict) -> None:
        """Another name of the same content is under way: its result will do, once it is stored."""
        content = self.content_of(row)
        while any(self.content_of(other) == content for other in running.values()):
            self.collect(running)
        if content in self.unstored:
            self.buffer.flush()
            self.unstored.clear()

    def is_settled(self, row) -> bool:
        """Whether this row need not be worked on now."""
        raise NotImplementedError

    def begin(self, row) -> None:
        self.stats.workers = self.permits.limit
        self.stats.current_path = row.path
        self.cache.begin_attempt(
            self.failure(row, "unfinished", "under way when the program ended"))

    def work(self, row):
        """In a worker: the result, or the exception as a value."""
        raise NotImplementedError

    def store(self, row, outcome) -> None:
        raise NotImplementedError

    def collect(self, running: dict) -> None:
        done, _ = concurrent.futures.wait(
            list(running), timeout=1.0, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in done:
            row = running.pop(future)
            self.store(row, future.result())
            self.unstored.add(self.content_of(row))
            self.permits.note(self.work_size(row))
            self.stats.last_progress = time.monotonic()
        self.buffer.flush_if_due()
        if not self.buffer.changes:
            self.unstored.clear()

    def work_size(self, row) -> int:
        return STAT_WORK

    def failure(self, row, failure_class: str, message: str, next_try=None) -> Failure:
        return Failure(self.root.id, row.path, self.stage, row.inode_key, failure_class, message,
                       self.tool(), next_try)

    def tool(self) -> str | None:
        return None

    def gave_up(self, row, failure) -> bool:
        """Trying it ended the program three times: left alone until it changes, and said so."""
        if failure[2] < MOST_ATTEMPTS:
            return False
        self.buffer.add(self.failure(row, "crashes", f"ended the program {failure[2]} times",
                                     self.clock() + RETRY_MOST_S))
        return True

    def forget_attempt(self, row) -> None:
        """Neither done nor failed: the agent was asked to stop, or the file is another one now."""
        self.cache.end_attempts([(row.path, self.stage)])

    def is_same_file(self, row) -> bool:
        try:
            return same_version(inode_key(os.lstat(to_native(row.path))), row.inode_key,
                                self.inodes_stable)
        except (OSError, ValueError):
            return False


class ProbePass(CachePass):
    """Pass 2: ffprobe for each video that was not described yet."""

    stage = "probe"
    tool_lost = False  # ffprobe is not there any more

    def content_of(self, row) -> str:
        return row.full_hash or version_prefix(row.inode_key)

    def tool(self) -> str | None:
        return self.plan.ffprobe.version

    def is_settled(self, row) -> bool:
        known = self.cache.described_copy(row.full_hash) or self._same_inode(row)
        if known is not None:
            self.buffer.add(Described(row.path, row.inode_key, known))
            self.buffer.flush_if_due()
            return True
        failure = self.cache.failure(row.path, self.stage)
        if failure is None or failure[0] != row.inode_key or failure[4] != self.tool():
            return False
        if failure[1] == "unfinished":
            return self.gave_up(row, failure)
        return failure[3] is None or failure[3] > self.clock()

    def keep_going(self) -> bool:
        return self.control.keep_going() and not self.tool_lost

    def _same_inode(self, row) -> str | None:
        """What is known of another name of the same file."""
        for content in self.cache.same_content(row.inode_key):
            if content.probed and content.metadata and content.path != row.path:
                return content.metadata
        return None

    def work(self, row):
        try:
            return probe_file(self.plan.ffprobe, to_native(row.path), stop=self.control,
                              follow=self.plan.follow_symlinks)
        except (ProbeFailed, OSError) as error:
            return error

    def store(self, row, outcome) -> None:
        if isinstance(outcome, Exception):
            self._failed(row, outcome)
            return
        if not self.is_same_file(row):
            self.forget_attempt(row)  # replaced meanwhile: the next scan sees the new one
            return
        self.stats.probed += 1
        self.buffer.add(Described(row.path, row.inode_key, json.dumps(outcome)))

    def _failed(self, row, error) -> None:
        kind = getattr(error, "error_class", None) or error_class(error)
        if kind == "missing" and not self.tool_lost:
            self.tool_lost = True
            log.warning("%s: the other videos wait until ffprobe is there again", error)
        if kind in NO_VERDICTS or not self.keep_going() or not self.is_same_file(row):
            self.forget_attempt(row)
            return
        self.stats.errors += 1
        text = error_text(error) if isinstance(error, OSError) else str(error)
        self.buffer.add(self.failure(row, kind, text, self._next_try(row, error, kind)))

    def _next_try(self, row, error, kind: str) -> float | None:
        """What may pass is tried again some time; what ended ffprobe (the file, or somebody who
        wanted the memory) until its third time; any other answer stands until the file changes.
        """
        may_pass = isinstance(error, OSError) or kind in PASSING_FAILURES
        if kind == "crashed":
            may_pass = self.cache.failure(row.path, self.stage)[2] < MOST_ATTEMPTS
        if not may_pass:
            return None
        return retry_time(self.cache, row.path, self.stage, self.clock())


class FullHashPass(CachePass):
    """The whole content of files that have only a sample hash, while the window is open."""

    stage = "full"

    def keep_going(self) -> bool:
        return self.control.keep_going() and self.plan.in_window(self.clock())

    def is_settled(self, row) -> bool:
        twin = self._same_inode_hash(row)
        if twin is not None:
            self.buffer.add(FullHash(row.path, row.inode_key, twin))
            self.buffer.flush_if_due()
            return True
        failure = self.cache.failure(row.path, self.stage)
        if failure is None or failure[0] != row.inode_key:
            return False
        if failure[1] == "unfinished":
            return self.gave_up(row, failure)
        return (failure[3] or 0) > self.clock()

    def _same_inode_hash(self, row) -> str | None:
        for content in self.cache.same_content(row.inode_key):
            if content.full_hash and content.hash_algo == row.algo and content.path != row.path:
                return content.full_hash
        return None

    def work(self, row):
        try:
            return full_hash_file(to_native(row.path), FileStamp(row.size, row.inode_key), row.algo,
                                  keep_going=self.keep_going, on_bytes=self._read_bytes,
                                  follow=self.plan.follow_symlinks,
                                  inodes_stable=self.inodes_stable)
        except (OSError, FileChanging) as error:
            return error

    def _read_bytes(self, count: int) -> None:
        self.stats.data_bytes += count
        self.stats.last_progress = time.monotonic()

    def work_size(self, row) -> int:
        return row.size + STAT_WORK

    def store(self, row, outcome) -> None:
        if isinstance(outcome, str):
            self.stats.fully_hashed += 1
            self.buffer.add(FullHash(row.path, row.inode_key, outcome))
        elif outcome is None or isinstance(outcome, (FileChanging, FileNotFoundError)):
            self.forget_attempt(row)
        else:
            self.stats.errors += 1
            self.buffer.add(self.failure(
                row, error_class(outcome), error_text(outcome),
                retry_time(self.cache, row.path, self.stage, self.clock())))


# =================================================================================================
# medialib/scan_run.py, from its line 17
# One scan of all roots: pass 1 over each, then ffprobe, then the full hashes of large files.
# =================================================================================================

def absolute_root(path: str) -> str:
    """A root as given, as absolute text with "/" between its parts and none at its end."""
    native = os.path.abspath(os.path.expanduser(to_native(path)))
    text = to_text(native)
    return text.replace("\\", "/") if os.sep == "\\" else text


def merged_roots(*lists) -> list:
    """All roots once, in order; one folder under two paths or two mounts counts once."""
    merged, seen = [], set()
    for path in (absolute_root(path) for paths in lists for path in paths):
        native = to_native(path)
        keys = {os.path.realpath(native)}
        try:
            there = os.stat(native)
            keys.add((there.st_dev, there.st_ino))
        except OSError:
            pass  # it is away: its path alone tells
        if not keys & seen:
            merged.append(path)
        seen |= keys
    return merged


class Scanner:
    """Runs scans one after another into an AgentCache. `on_stored()` is called after each commit;
    `infos` are the RootInfo of the last look at each root, `offline` the reasons of those away.
    """

    def __init__(self, cache, *, on_stored=None, clock=time.time):
        self.cache = cache
        self.on_stored = on_stored or list
        self.clock = clock
        self.stats = ScanStats()
        self.control = ScanControl()
        self.infos: dict = {}
        self.offline: dict = {}
        self.roots: list = []
        self.looked = False
        self.known_at_host: dict = {}  # {path: how many files the host has there}

    def look_at(self, roots: list) -> None:
        """See what each root lies on and whether it is there, before the host is told of it."""
        taken: dict = {}
        for path in roots:
            try:
                info, _ = look_at_root(self.cache, path, taken=taken)
                self.infos[path] = info
                taken.setdefault((info.volume, info.volume_path), (info.device, path))
                self.offline.pop(path, None)
            except RootOffline as reason:
                self.infos.pop(path, None)
                self.offline[path] = str(reason)
        self.roots = roots
        self.looked = True

    def run(self, config: dict, roots: list, ffprobe) -> bool:
        """One whole scan; True if it was not cut short."""
        plan = ScanPlan(config, ffprobe)
        self.control.pause.clear()
        self.roots = roots
        self.stats.reset()
        self.stats.active = True
        try:
            return self._run(plan, roots)
        finally:
            self.stats.ended = time.monotonic()
            self.stats.phase_is(0, "idle")
            self.stats.current_path = ""
            self.stats.active = False
            self.cache.forget_unfinished()
            self.cache.set_meta("unclean", "0")

    def _run(self, plan, roots: list) -> bool:
        self._reclassify(plan)
        self._take_old_roots_apart(roots)
        self.stats.total_all = sum(root.files for root in self._known(roots)) or None
        self.stats.phase_is(1, "hashes")
        scans = []
        for path in roots:
            scan = self._scan_root(plan, path, roots)
            if scan is not None:
                scans.append(scan)
        if self.control.keep_going():
            self.cache.forget_former()
            self._describe(plan, scans)
            self._full_hashes(plan, scans)
        return self.control.keep_going()

    def _known(self, roots: list) -> list:
        return [root for root in map(self.cache.roots.at_path, roots) if root is not None]

    def _reclassify(self, plan) -> None:
        fingerprint = plan.classifier.fingerprint
        if self.cache.get_meta("classifier") != fingerprint:
            changed = self.cache.reclassify(
                lambda path: plan.kind_of(path.rpartition("/")[2]))
            if changed:
                log.info("%d files got another kind from the settings", changed)
                self.on_stored()
            self.cache.set_meta("classifier", fingerprint)

    def _take_old_roots_apart(self, roots: list) -> None:
        """A former root inside a present one: its files belong to the outer root now."""
        for root in self.cache.roots.all():
            inside = any(root.path.startswith(path.rstrip("/") + "/") for path in roots)
            if inside and root.path not in roots and not root.parked:
                self.cache.roots.take_apart(root)

    def _scan_root(self, plan, path: str, roots: list):
        """Pass 1 over one root: its RootScan, or None if it is away or was cut short."""
        if not self.control.keep_going():
            return None
        others = {os.path.realpath(to_native(other)) for other in roots if other != path}
        if self.cache.path:  # our own folder is no media, and changes with every scan
            others.add(os.path.dirname(os.path.realpath(self.cache.path)))
        scan = RootScan(self.cache, path, plan, self.stats, self.control, other_roots=others,
                        on_stored=self.on_stored, clock=self.clock,
                        known_at_host=self.known_at_host.get(path, 0))
        self.stats.root = path
        try:
            ended = scan.run()
        except RootOffline as reason:
            self._note_offline(path, scan, str(reason))
            return None
        self.infos[path] = scan.info
        self.offline.pop(path, None)
        if not ended:
            self.cache.roots.save(scan.root, state="online")
            return None
        self.on_stored()
        return scan

    def _note_offline(self, path: str, scan, reason: str) -> None:
        log.warning("%s is offline (%s); nothing of it changes", path, reason)
        self.offline[path] = reason
        if scan.info is not None:
            self.infos[path] = scan.info
        root = scan.root or self.cache.roots.at_path(path)
        if root is not None:
            self.cache.roots.save(root, state="offline", reason=reason)

    def _describe(self, plan, scans: list) -> None:
        waiting = sum(self.cache.waiting_count("probe", scan.root.id) for scan in scans)
        self.stats.total_videos = waiting
        if not waiting:
            return
        if plan.ffprobe is None:
            log.warning("ffprobe is not installed: %d videos wait for their description", waiting)
            return
        self.stats.phase_is(2, "ffprobe")
        self._pass(ProbePass, plan, scans)

    def _full_hashes(self, plan, scans: list) -> None:
        if not plan.full_hashes or not plan.in_window(self.clock()):
            return
        if any(self.cache.waiting_count("full", scan.root.id) for scan in scans):
            self.stats.phase_is(1, "full hashes")
            self._pass(FullHashPass, plan, scans)

    def _pass(self, kind, plan, scans: list) -> None:
        for scan in scans:
            if not self.control.keep_going():
                return
            self.stats.root = scan.path
            rev = self.cache.rev
            kind(self.cache, scan.root, scan.info, plan, self.stats, self.control,
                 on_stored=self.on_stored, clock=self.clock).run()
            if self.cache.rev != rev:
                self.cache.roots.finish(scan.root, scan.root.scan(), self.clock())
                self.on_stored()

    def waiting_for_hours(self, config: dict) -> bool:
        """Whether large files wait for the off-peak hours to be read whole."""
        return config["do_full_hash"] and any(
            self.cache.waiting_count("full", root.id) for root in self.cache.roots.all())

    def root_states(self) -> list | None:
        """The roots as hello reports them, from what the last scan saw: no disk is touched. None
        before the first look: a list without them would say that they are no roots any more.
        """
        if not self.looked:
            return None
        parked = [{"path": root.path, "state": "offline", "volume": root.volume,
                   "volume_path": root.volume_path, "fs": root.fs,
                   "reason": "another disk is at its place"}
                  for root in self.cache.roots.all() if root.parked]
        return [self._root_state(path) for path in self.roots] + parked

    def _root_state(self, path: str) -> dict:
        info = self.infos.get(path)
        root = self.cache.roots.at_path(path)
        reason = self.offline.get(path)
        scanning = self.stats.active and self.stats.root == path
        if reason is None and not scanning and root is not None and root.state == "offline":
            reason = root.reason
        state = "offline" if reason else "scanning" if scanning else "online"
        names = ("volume", "volume_path", "label", "fs", "rotational", "total_bytes", "free_bytes",
                 "fsid")
        known = {name: getattr(info, name, None) for name in names}
        if root is not None and (reason or info is None):
            known.update(volume=root.volume, volume_path=root.volume_path, fs=root.fs)
        return {"path": path, "state": state, "reason": reason, **known}


# =================================================================================================
# medialib/host_copy.py, from its line 13
# What the host holds of a root, beside what this agent knows of it: comparing and taking over.
# =================================================================================================

LIST_PAGE = 500
NAMES_PAGE = 2000


class HostCopy:
    """Asks over `transport`; `agent()` is how a message names this agent. Raises PeerError."""

    def __init__(self, cache, transport, agent):
        self.cache = cache
        self.transport = transport
        self.agent = agent

    def reconcile(self, root) -> None:
        """Send again the folders that differ and report what only the host has."""
        matching = bytearray((self.cache.store.one("SELECT max(id) FROM agent_folder")[0] or 0) + 1)
        after = 0
        while after is not None:
            page = self.transport.folders({"agent": self.agent(), **root_body(root),
                                           "after": after, "limit": LIST_PAGE})
            for folder in page["folders"]:
                self._compare_folder(root, folder, matching)
            after = page.get("next")
        last = 0
        while True:
            mine = self.cache.roots.folders(root.id, last, 1000)
            if not mine:
                return
            last = mine[-1][0]
            for folder_id, _ in mine:
                if folder_id >= len(matching) or not matching[folder_id]:
                    self.cache.outbox.send_again(folder_id)

    def adopt(self, path: str, info) -> None:
        """Fill the cache with what the host knows of a root that another agent catalogued, so that
        nothing is read again. Rows whose file is another one now are found by the scan.
        """
        root = self.cache.roots.identify(path, info)
        if root.files:
            return
        after, count = 0, 0
        while after is not None:
            page = self.transport.folders({"agent": self.agent(), **root_body(root),
                                           "after": after, "limit": LIST_PAGE})
            for folder in page["folders"]:
                count += self._adopt_folder(root, folder["path"])
            after = page.get("next")
        log.info("%s: took over %d files from the catalogue", root.path, count)

    def _adopt_folder(self, root, rel: str) -> int:
        folder_id, changes = adopted_folders(self.cache, root, rel)
        after, count = "", 0
        while after is not None:
            page = self.transport.names({"agent": self.agent(), **root_body(root), "folder": rel,
                                         "after": after, "limit": LIST_PAGE, "full": True})
            changes += [adopted_file(root, folder_id, rel, file) for file in page["files"]]
            count += len(page["files"])
            self.cache.commit(changes)
            changes = []
            after = page.get("next")
        return count

    def _compare_folder(self, root, folder: dict, matching: bytearray) -> None:
        rel = folder["path"]
        folder_id = self.cache.roots.folder_id(root.id, rel)
        files, digest = self.cache.roots.folder_digest(folder_id)
        if (files, f"{digest:016x}") == (folder["files"], folder["digest"]):
            if folder_id is not None:
                matching[folder_id] = 1
            return
        after = ""
        while after is not None:
            page = self.transport.names({"agent": self.agent(), **root_body(root), "folder": rel,
                                         "after": after, "limit": NAMES_PAGE, "full": False})
            paths = [root.file_path(join_rel(rel, file["name"])) for file in page["files"]]
            known = self.cache.files_at(root.id, paths)
            for path in paths:
                if path not in known:
                    self.cache.outbox.remove_path(root, path)
            after = page.get("next")


def adopted_folders(cache, root, rel: str) -> tuple:
    """(the folder's number, changes that make it and the folders above it)."""
    changes, parent = [], None
    parts = rel.split("/") if rel else []
    for depth in range(len(parts) + 1):
        above = "/".join(parts[:depth])
        folder_id = cache.roots.folder_id(root.id, above)
        if folder_id is None:
            folder_id = cache.roots.new_folder_id()
            changes.append(PutFolder(folder_id, root.id, parent, above))
        parent = folder_id
    return parent, changes


def adopted_file(root, folder_id: int, rel: str, file: dict) -> PutFile:
    """The host's record of a file as a row of the cache."""
    rel_path = join_rel(rel, file["name"])
    found = FoundFile(file["name"], "", file["size"], file["mtime"], file["ctime"],
                      file["inode_key"], 1)
    put = PutFile(found, root.id, folder_id, root.file_path(rel_path), rel_path, file["kind"],
                  file.get("reason"))
    hashes, metadata = file.get("hashes"), file.get("metadata")
    if hashes:
        put.facts = HashResult(hashes["algo"], hashes["sample_size"], hashes["sample_hash"],
                               hashes.get("full_hash"), 0.0)
    if metadata:
        put.metadata, put.probed = json.dumps(metadata), True
    return put


def root_body(root) -> dict:
    """How a message names its root."""
    return {"root": root.path, "volume": root.volume, "volume_path": root.volume_path}


# =================================================================================================
# medialib/delivery.py, from its line 20
# Delivery: what the cache holds goes to the host in order, and is marked only once acknowledged.
# =================================================================================================

IDLE_POLL_S = 30.0
BACKOFF_FIRST_S = 0.5
BACKOFF_TOP_S = 15.0
ALONE_S = 30.0
RECONCILE_ROUNDS = 3


class FailedCall:
    """A batch that could not even be posted; see PendingCall."""

    def __init__(self, error: PeerError):
        self.error = error

    def finish(self) -> dict:
        raise self.error

    def abandon(self) -> None:
        pass


class Delivery:
    """One background thread that brings everything undelivered to the host."""

    def __init__(self, cache, link, transport, identity, instance: str, settings, *,
                 is_scanning=lambda: False):
        self.cache = cache
        self.link = link
        self.transport = transport
        self.identity = identity
        self.instance = instance
        self.settings = settings  # () -> the present configuration
        self.is_scanning = is_scanning
        self.host_copy = HostCopy(cache, transport, self._agent)
        self.uploaded = self.batches = self.errors = self.sent_bytes = 0
        self.waiting = 0  # batches not acknowledged yet, about; counted when something changed
        self.idle = threading.Event()
        self.attempts_failed = 0
        self._asked_to_wait = False  # the host said how long
        self._alone_until = 0.0  # on the monotonic clock: no two batches at once before
        self._asked = 0  # counts the calls of wake: idle is only said of the last one
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._limit: int | None = None
        self._rounds: dict = {}
        self._backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_TOP_S)
        self._thread = threading.Thread(target=self._loop, name="delivery", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def wake(self) -> None:
        """Something new is in the cache, or the host was heard of."""
        self._asked += 1
        self.idle.clear()
        self._wake.set()

    def _loop(self) -> None:
        while not self._stop.is_set():
            wait_s = self._run_once()
            if self.idle.is_set() or not self.attempts_failed:
                self._wake.wait(wait_s)
            else:
                self._rest(wait_s)
            self._wake.clear()

    def _rest(self, wait_s: float) -> None:
        """The pause that a failing host needs: a busy scanner does not end it, only the host does,
        by answering somebody's hello, where it did not name the pause itself.
        """
        until = time.monotonic() + wait_s
        while not self._stop.is_set() and time.monotonic() < until:
            if self.link.greeted and not self._asked_to_wait:
                return
            self._stop.wait(min(0.25, max(0.0, until - time.monotonic())))

    def _count_waiting(self) -> None:
        size = self._limit or self.settings()["agent_batch_size"]
        self.waiting = -(-self.cache.outbox.undelivered() // size)

    def _run_once(self) -> float:
        """Deliver what there is; how long to wait then, in seconds."""
        asked = self._asked
        try:
            self._count_waiting()
            self.deliver_all()
            self.attempts_failed = 0
            self._backoff.reset()
            self.waiting = 0
            if asked == self._asked:
                self.idle.set()
            return IDLE_POLL_S
        except PeerError as error:
            self.link.lost(error)
            self.attempts_failed += 1
            self.errors += 1
            self._keep_what_waits()
            self._asked_to_wait = error.retry_after_s is not None
            return self._backoff.next(error.retry_after_s)
        except StoreError as error:
            if not self._stop.is_set():
                log.error("%s", error)
            self.errors += 1
            return self._backoff.next(None)
        except Exception:
            log.exception("delivery failed")
            self.errors += 1
            return self._backoff.next(None)

    def _keep_what_waits(self) -> None:
        try:
            self.cache.outbox.pack(self.settings()["agent_batch_size"])
            self._count_waiting()
        except StoreError as error:
            log.warning("undelivered batches stay in the index only: %s", error)

    # -- batches ---------------------------------------------------------------------------------

    def deliver_all(self) -> None:
        """Everything, and the ends of roots that are due. Raises PeerError when the host fails."""
        while not self._stop.is_set():
            if not self.link.greeted:
                self.link.hello()
            self.transport.older = self.link.older
            batch = self.cache.outbox.next_batch(self._limit or self.settings()["agent_batch_size"])
            if batch is not None:
                self._send(batch)
            elif not self._send_root_ends():
                return

    def _send(self, batch) -> None:
        """Post a batch and, while the host is at work on it, whole ones that follow on it."""
        outbox, under_way, first = self.cache.outbox, collections.deque(), batch
        outbox.turn += 1
        try:
            self._post(batch, under_way)
            while under_way:
                self._post_more(under_way)
                batch, call = under_way.popleft()
                try:
                    self._settle(batch, call, under_way)
                except PeerError as error:
                    if batch is first:
                        raise
                    log.debug("one batch at a time for a while: %s", error)
                    self._alone_until = time.monotonic() + ALONE_S
                    return  # the host may only have had no room for one more connection
        finally:
            for _, call in under_way:
                call.abandon()
            outbox.turn += 1

    def _post(self, batch, under_way) -> None:
        outline = {**batch.outline(), "agent": self._agent()}
        try:
            call = self.transport.begin_batch(outline, batch.files,
                                              gzip=self.settings()["agent_gzip"])
        except PeerError as error:
            call = FailedCall(error)
        under_way.append((batch, call))

    def _post_more(self, under_way) -> None:
        while len(under_way) < self.transport.batches_at_once and self._limit is None \
                and self.link.greeted and time.monotonic() >= self._alone_until \
                and not self._stop.is_set():
            batch = self.cache.outbox.batch_behind(under_way[-1][0],
                                                   self.settings()["agent_batch_size"])
            if batch is None:
                return
            self._post(batch, under_way)

    def _settle(self, batch, call, behind) -> None:
        """Read the answer to a batch; without a good one, those behind it are not waited for."""
        try:
            answer = call.finish()
            errors = answer.get("errors")
            self.cache.outbox.acknowledge(batch, errors if isinstance(errors, list) else [])
        except PeerRefused as refused:
            self._refused(batch, refused, behind)
            return
        except PeerError:
            self._keep(batch, behind)
            raise
        if self._limit is not None:
            self._limit *= 2
            if self._limit >= self.settings()["agent_batch_size"]:
                self._limit = None
        self.batches += 1
        self.uploaded += len(batch.files)
        self.sent_bytes = self.transport.sent_bytes

    def _keep(self, batch, behind) -> None:
        for each in (batch, *(other for other, _ in behind)):
            self.cache.outbox.keep(each)

    def _agent(self) -> dict:
        return {"id": self.identity.id, "name": self.identity.name, "instance": self.instance}

    def _refused(self, batch, refused: PeerRefused, behind) -> None:
        """A host that answers, but does not take this batch."""
        answer = refused.answer or {}
        if refused.status == 409 and isinstance(answer.get("last_rev"), int):
            self._leave(behind)
            self.cache.outbox.align(self.link.library_id, answer["last_rev"])
            return
        if refused.status in (400, 413, 415, 422):
            self._leave(behind)
            self._halve(batch, refused)
            return
        self._keep(batch, behind)
        if refused.status == 409:
            self.link.greeted = False
        raise refused

    def _leave(self, behind) -> None:
        """Batches that followed on one that is not taken: they are made again from the rows."""
        while behind:
            behind.popleft()[1].abandon()
        self.cache.outbox.forget_made()

    def _halve(self, batch, refused: PeerRefused) -> None:
        """Find the record that the host cannot take, by halves, and set it apart."""
        self.errors += 1
        if batch.rev is None:
            self.cache.outbox.forget_payload(batch.outbox_id)
            log.error("an old undelivered batch is refused and dropped: %s", refused)
        elif batch.changes > 1:
            self.cache.outbox.take_back(batch)
            self._limit = max(1, batch.changes // 2)
        else:
            log.error("the host refuses one record: %s", refused)
            self._pass_over(batch, f"{refused.status} {refused.error}")

    def _pass_over(self, batch, reason: str) -> None:
        """Set one record apart and have the host count on without it."""
        outline = {**batch.outline(), "batch_id": str(uuid.uuid4()), "removed": [],
                   "agent": self._agent()}
        if not self.link.older:
            self.transport.batch(outline, [])
        self.cache.outbox.acknowledge(
            batch, [{"index": 0, "error": reason}] if batch.files else [])

    # -- the end of a root -----------------------------------------------------------------------

    def _send_root_ends(self) -> bool:
        """Compare each finished root with the host. True if there may be something to send now."""
        with self.cache.store.lock:
            due = [root for root in self.cache.roots.all() if root.end_due]
        for root in due:
            if self.link.older:
                self.cache.roots.save(root, end_due=0)
            elif not self._send_root_end(root):
                return True
        return False

    def _send_root_end(self, root) -> bool:
        """True when the host holds exactly what this agent knows of the root."""
        with self.cache.store.lock:
            if self.cache.outbox.undelivered(1):
                return False
            end = {**root.scan(), "files": root.files, "bytes": root.bytes,
                   "digest": f"{root.digest:016x}"}
            marked = root.end_due
        body = {"batch_id": str(uuid.uuid4()), "agent": self._agent(), **root_body(root),
                "phase": 1, "removed": [], "end_of_root": end,
                "after_rev": self.cache.outbox.acked, "rev": self.cache.outbox.acked}
        try:
            answer = self.transport.batch(body, [])
        except PeerRefused as refused:
            if refused.status == 409 and isinstance((refused.answer or {}).get("last_rev"), int):
                self.cache.outbox.align(self.link.library_id, refused.answer["last_rev"])
                return False
            raise
        rounds = self._rounds.pop(root.id, 0)
        if answer.get("in_step", True):
            if root.end_due == marked:
                self.cache.roots.save(root, end_due=0)
            return True
        if not end["files"] and not end.get("accepted_empty") and self._holds_nothing(root):
            # An empty folder and a host that knows files there: a disk may be missing.
            log.warning("%s is empty, but the host knows files there; nothing of it changes",
                        root.path)
            self.cache.roots.save(root, end_due=0, state="offline", reason=EMPTY_REASON)
            return True
        if rounds >= RECONCILE_ROUNDS:
            log.error("%s: the host still holds something else after %d comparisons; the next scan"
                      " tries again", root.path, rounds)
            self.errors += 1
            self.cache.roots.save(root, end_due=0)
            return True
        self._rounds[root.id] = rounds + 1
        log.info("%s: the host holds something else; comparing folder by folder", root.path)
        self.host_copy.reconcile(root)
        return False

    def _holds_nothing(self, root) -> bool:
        """Not even a file that the host refuses."""
        return self.cache.store.one("SELECT 1 FROM agent_index WHERE root_id = ? LIMIT 1",
                                    (root.id,)) is None


# =================================================================================================
# medialib/host_link.py, from its line 19
# The agent's line to its host: hello, batches and the lists for comparing, over HTTP.
# =================================================================================================

OLDER_KINDS = ("video", "image", "subtitle", "xml", "other", "unknown", "junk")
OLDER_KEYS = ("kind", "path", "size", "mtime", "ctime", "inode_key", "ext", "reason", "hashes",
              "metadata")
BATCH_TIMEOUT_S = 120.0
# While the host waits for its disk it can look at the next ones, and commit them together.
BATCHES_AT_ONCE = 4
HELLO_TIMEOUT_S = 8.0


class HttpTransport:
    """The host's calls, for one thread. Raises PeerError and its kinds."""

    def __init__(self, url: str, cafile: str | None = None):
        self.url = url
        self.cafile = cafile
        self.client = JsonClient(url, timeout_s=HELLO_TIMEOUT_S, cafile=cafile)
        self._more_clients = []
        self.older = False
        self.sent_bytes = 0

    def hello(self, body: dict) -> dict:
        try:
            answer = self.client.post("/ingest/hello", body)
        except PeerRefused as refused:
            if refused.status not in (404, 405):
                raise
            return self._older_hello()
        except NotMedialib as error:
            if error.status not in (404, 405):
                raise
            return self._older_hello()
        self.older = False
        return answer

    def _older_hello(self) -> dict:
        """What an older host tells with its configuration, in the shape of hello's answer."""
        try:
            config = self.client.get("/ingest/config", need_ok=False)
        except PeerRefused as refused:
            raise NotMedialib(self.url, refused.status, "it knows no /ingest/config") from refused
        if not any(key in config for key in ("hash_algo", "remote_roots", "batch_size")):
            raise NotMedialib(self.url, 200, "its /ingest/config is no configuration")
        self.older = "medialib" not in config
        return {"ok": True, "library_id": f"older:{self.url}", "config": config, "last_rev": None,
                "commands": []}

    def batch(self, outline: dict, files: list, gzip: bool = False) -> dict:
        """Post a Batch's outline with the JSON texts of its records."""
        return self.begin_batch(outline, files, gzip).finish()

    def begin_batch(self, outline: dict, files: list, gzip: bool = False):
        """The same in two steps, as JsonClient.begin_post; `batches_at_once` may be under way."""
        if self.older:
            outline, gzip = {"batch_id": outline["batch_id"]}, False
            files = [json.dumps(older_record(record)) for record in records_of_texts(files)]
        body = batch_text(outline, files).encode("utf-8")
        call = self._idle_client().begin_post("/ingest/batch", body, gzip=gzip,
                                              timeout_s=BATCH_TIMEOUT_S, need_ok=not self.older)
        self.sent_bytes += len(body)
        return call

    @property
    def batches_at_once(self) -> int:
        return 1 if self.older else BATCHES_AT_ONCE

    def _idle_client(self) -> JsonClient:
        for client in (self.client, *self._more_clients):
            if not client.is_busy():
                return client
        client = JsonClient(self.url, timeout_s=HELLO_TIMEOUT_S, cafile=self.cafile)
        self._more_clients.append(client)
        return client

    def folders(self, body: dict) -> dict:
        return self.client.post("/ingest/folders", body, timeout_s=BATCH_TIMEOUT_S)

    def names(self, body: dict) -> dict:
        return self.client.post("/ingest/names", body, timeout_s=BATCH_TIMEOUT_S)


def older_record(record: dict) -> dict:
    """A record as older hosts know it: no keys and no kinds that came later."""
    old = {key: record[key] for key in OLDER_KEYS if key in record}
    if old["kind"] not in OLDER_KINDS:
        old["kind"] = "other"
    return old


class HostLink:
    """What is known of the host: whether it answers, which library it is, what it wants.

    `lock` guards hello, which several threads call; the plain attributes are replaced as a whole.
    """

    def __init__(self, transport, cache, describe, *, on_new_id=None, on_told=None,
                 clock=time.time):
        self.transport = transport
        self.cache = cache
        self.describe = describe  # () -> the body of hello
        self.on_new_id = on_new_id
        self.on_told = on_told or int  # told how many results of commands the host now has
        self.clock = clock
        self.lock = threading.Lock()
        self.reachable = False
        self.greeted = False
        self.older = False
        self.library_id: str | None = None
        self.problem: str | None = None
        self.transferred: list = []
        self.known_files: dict = {}  # {root path: how many files the host has there}
        self.commands: deque = deque()  # what the host asked for and nobody has done yet
        self.config, _ = clean_settings(self._saved_config())

    def _saved_config(self) -> dict:
        try:
            saved = json.loads(self.cache.get_meta("config") or "null")
        except ValueError:
            saved = None
        return saved if isinstance(saved, dict) else default_settings()

    def hello(self) -> None:
        """Say hello, whoever of the threads does; what the host asks for waits in `commands`.
        Raises PeerError when it is away.
        """
        with self.lock:
            body, turn = self.describe(), self.cache.outbox.turn
            try:
                answer = self.transport.hello(body)
            except PeerRefused as refused:
                self._refused(refused)
                raise
            except PeerError as error:
                self.lost(error)
                raise
            self._greeted(answer, turn)
            self.on_told(len(body["results"]))

    def _refused(self, refused: PeerRefused) -> None:
        self.lost(refused)
        new_id = (refused.answer or {}).get("new_id")
        if refused.status == 409 and new_id and self.on_new_id is not None:
            log.warning("another machine uses this agent's id (a copied home folder?): this one"
                        " goes on under a new id")
            self.on_new_id(new_id)

    def _greeted(self, answer: dict, turn: int) -> None:
        self.older = bool(getattr(self.transport, "older", False))
        self.library_id = str(answer.get("library_id") or f"older:{PROTOCOL}")
        outbox, last_rev = self.cache.outbox, answer.get("last_rev")
        if turn % 2 or turn != outbox.turn:
            last_rev = None  # a batch was under way: the number may be from before or after it
        outbox.align(self.library_id, last_rev if isinstance(last_rev, int) else None)
        self._take_config(answer.get("config") or {})
        roots = [root for root in answer.get("roots") or [] if isinstance(root, dict)]
        self.transferred = [root for root in roots if root.get("transferred")]
        self.known_files = {root["path"]: root["known_files"] for root in roots
                            if isinstance(root.get("path"), str)
                            and isinstance(root.get("known_files"), int)}
        if not self.reachable:
            log.info("connected to the host%s", " (an older one)" if self.older else "")
        self.reachable, self.greeted, self.problem = True, True, None
        self.commands.extend(command for command in answer.get("commands") or []
                             if isinstance(command, dict))

    def _take_config(self, raw: dict) -> None:
        config, complaints = clean_settings(raw)
        for complaint in complaints:
            log.warning("the host's configuration: %s", complaint)
        if config != self.config:
            self.config = config
            self.cache.set_meta("config", json.dumps(config))

    def lost(self, error) -> None:
        """The host did not answer, or not as it should."""
        text = str(error)
        if self.reachable or text != self.problem:
            log.warning("the host cannot be used now: %s", text)
        self.reachable, self.greeted, self.problem = False, False, text


def about_agent(identity, *, port, instance, hash_algos, ffprobe, roots, python, platform) -> dict:
    """The "agent" part of hello."""
    return {
        "id": identity.id, "name": identity.name, "port": port, "version": VERSION,
        "protocol": PROTOCOL, "python": python, "platform": platform, "hash_algos": hash_algos,
        "ffprobe": ffprobe.version if ffprobe else None, "instance": instance, "roots": roots,
    }


# =================================================================================================
# medialib/agent_service.py, from its line 21
# The running agent: scans now and then, delivers, says hello, and answers what it is asked.
# =================================================================================================

HEARTBEAT_SCANNING_S = 5.0
HEARTBEAT_IDLE_S = 30.0
LISTING_MOST = 2000
RESULTS_MOST = 20
CLEAR_WAIT_S = 10.0


class AgentService:
    """Everything of one agent except its command line and its HTTP port.

    `transport` and `heartbeat_transport` reach the host (one per thread); `find_ffprobe()` is asked
    before each scan, so that an ffprobe installed later is found.
    """

    def __init__(self, cache, identity, transport, heartbeat_transport, *, roots=(), port=None,
                 find_ffprobe=lambda: None, clock=time.time):
        self.cache = cache
        self.identity = identity
        self.own_roots = list(roots)
        self.port = port
        self.find_ffprobe = find_ffprobe
        self.clock = clock
        self.instance = str(uuid.uuid4())
        self.ffprobe = None
        self.link = HostLink(heartbeat_transport, cache, self.describe, on_new_id=self._new_id,
                             on_told=self._results_told, clock=clock)
        self.delivery = Delivery(cache, self.link, transport, identity, self.instance,
                                 lambda: self.link.config)
        self.scanner = Scanner(cache, on_stored=self.delivery.wake, clock=clock)
        self.stats = self.scanner.stats
        self.stop_requested = threading.Event()
        self._scan_wanted = threading.Event()
        self._full_hashes_deferred = False
        self._results: list = []
        self._obeying = threading.Lock()  # one command at a time, whichever thread comes first
        self._threads = [threading.Thread(target=self._heartbeat_loop, name="heartbeat",
                                          daemon=True)]

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start delivery and heartbeat; scanning is run by the caller (run_forever, run_once)."""
        self.delivery.start()
        for thread in self._threads:
            thread.start()

    def request_stop(self) -> None:
        """May be called from a signal handler: it only sets flags."""
        self.stop_requested.set()
        self.scanner.control.stop.set()
        self._scan_wanted.set()

    def stop(self) -> None:
        self.request_stop()
        self.delivery.stop()

    def run_forever(self) -> None:
        """Scan now, then whenever the interval has passed or somebody asks, until stopped."""
        while not self.stop_requested.is_set():
            self._scan_wanted.clear()
            self.scan()
            self._wait_for_next_scan()

    def _wait_for_next_scan(self) -> None:
        ended = time.monotonic()
        while not self.stop_requested.is_set() and not self._scan_wanted.is_set():
            interval = self.link.config["rescan_interval_s"]
            rest = ended + interval - time.monotonic() if interval else HEARTBEAT_IDLE_S
            if interval and rest <= 0:
                return
            if self._window_opened():
                return
            self._scan_wanted.wait(min(rest, HEARTBEAT_IDLE_S))

    def _window_opened(self) -> bool:
        """The off-peak hours began since the last scan and large files wait for them."""
        config = self.link.config
        if not in_offpeak(config, self.clock()):
            self._full_hashes_deferred = True
            return False
        return self._full_hashes_deferred and self.scanner.waiting_for_hours(config)

    def run_once(self, patience_s: float = 12.0) -> bool:
        """One scan, then deliver. True when everything was scanned and nothing is left over."""
        complete = self.scan()
        while self._is_asked_for_more():
            complete = self.scan()
        self.wait_delivered(patience_s)
        if self._results:
            self._say_hello()
            self.obey()
        return complete and not self.left_over()

    def _is_asked_for_more(self) -> bool:
        """Whether another scan is wanted, after doing what the host asked for meanwhile: a short
        run may end before the heartbeat has looked.
        """
        self.obey()
        wanted = self._scan_wanted.is_set()
        self._scan_wanted.clear()
        return wanted and not self.stop_requested.is_set()

    def wait_delivered(self, patience_s: float) -> None:
        """Until everything is delivered; gives up when the host stays away for `patience_s`."""
        self.delivery.wake()
        failing_since = None
        while not self.stop_requested.is_set() and not self.delivery.idle.wait(0.05):
            if self.link.reachable or not self.delivery.attempts_failed:
                failing_since = None
            elif failing_since is None:
                failing_since = time.monotonic()
            elif time.monotonic() - failing_since > patience_s:
                return

    def left_over(self) -> list:
        """What the exit code 3 stands for, in words."""
        words = []
        unreadable = self.cache.left_over()
        if unreadable:
            words.append(f"{unreadable} files or folders could not be read")
        waiting = self.cache.outbox.undelivered()
        if waiting:
            words.append(f"{waiting} changes are not delivered yet")
        elif any(root.end_due for root in self.cache.roots.all()) and not self.link.reachable:
            words.append("the host was not reached and may not know all of it: "
                         f"{self.link.problem}")
        words += [f"{path} is offline ({reason})" for path, reason in self.scanner.offline.items()]
        return words

    # -- scanning --------------------------------------------------------------------------------

    def scan(self) -> bool:
        """One whole scan with the host's present configuration, or the last known one."""
        self.ffprobe = self.find_ffprobe()
        roots = self._roots()
        self.scanner.look_at(roots)
        self._say_hello()
        config = self.link.config
        if roots != self._roots():
            roots = self._roots()
            self.scanner.look_at(roots)
            self._say_hello()
            config = self.link.config
        self.scanner.known_at_host = dict(self.link.known_files)
        if not roots:
            log.info("no folders to scan yet: name some on the command line or give this machine"
                     " some on the host's page")
        self._adopt()
        self._full_hashes_deferred = not in_offpeak(config, self.clock())
        try:
            return self.scanner.run(config, roots, self.ffprobe)
        except StoreError as error:
            log.error("the scan stopped: %s", error)
        except Exception:
            log.exception("the scan failed")
        finally:
            self._say_hello()
        return False

    def _roots(self) -> list:
        return merged_roots(self.link.config.get("remote_roots") or (), self.own_roots)

    def _adopt(self) -> None:
        """A disk that another machine catalogued before: take over what the host knows of it."""
        for path in [told.get("path") for told in self.link.transferred]:
            info = self.scanner.infos.get(path)
            if info is None or path in self.scanner.offline:
                continue
            try:
                self.delivery.host_copy.adopt(path, info)
            except (PeerError, KeyError, TypeError) as error:
                log.warning("what the host knows of %s is not to be had now: %s", path, error)

    def _say_hello(self) -> None:
        """Hello now; a silent host must not keep us from stopping."""
        talk = threading.Thread(target=self._hello_quietly, name="hello", daemon=True)
        talk.start()
        while talk.is_alive() and not self.stop_requested.is_set():
            talk.join(0.1)

    def _hello_quietly(self) -> None:
        try:
            self.link.hello()
            self.delivery.wake()
        except PeerError:
            pass  # HostLink has logged it; the scan goes on without the host
        except StoreError as error:
            if not self.stop_requested.is_set():
                log.error("%s", error)

    def scan_now(self) -> tuple:
        """(started, message)."""
        if self.stats.active and self.stats.phase_name != "full hashes":
            return False, "a scan is already running"
        self.scanner.control.pause.set()  # full hashes can wait; they go on after the new scan
        self._scan_wanted.set()
        return True, "a scan starts now"

    def clear_cache(self) -> bool:
        """Forget what is known of the files; undelivered changes are delivered first, or kept."""
        active = self.stats.active
        if active:
            self.scanner.control.pause.set()
        until = time.monotonic() + CLEAR_WAIT_S
        while self.stats.active and time.monotonic() < until:
            time.sleep(0.05)
        self.delivery.wake()
        if self.link.reachable:
            self.delivery.idle.wait(CLEAR_WAIT_S)
        self.cache.outbox.pack(self.link.config["agent_batch_size"])
        cleared = self.cache.clear()
        log.info("the cache is cleared")
        if active:
            self._scan_wanted.set()
        return cleared

    def accept_empty(self, path: str) -> bool:
        """The root at `path` really is empty, or another disk now: the next scan takes it as it
        is.
        """
        root = self.cache.roots.at_path(path)
        if root is None and path in self.scanner.roots:
            info = settle_volume(self.cache, path, describe_root(to_native(path)))
            root = self.cache.roots.identify(path, info)
        if root is None:
            return False
        self.cache.roots.save(root, accept_empty=1)
        self.scan_now()
        return True

    # -- the host's side -------------------------------------------------------------------------

    def _new_id(self, new_id: str) -> None:
        self.identity.become(new_id)

    def describe(self) -> dict:
        """The body of hello."""
        try:
            undelivered_errors = self.cache.failures()
        except StoreError:
            undelivered_errors = {"summary": [], "latest": []}
        return {
            "agent": about_agent(
                self.identity, port=self.port, instance=self.instance,
                hash_algos=available_algorithms(), ffprobe=self.ffprobe,
                roots=self.scanner.root_states(), python=platform.python_version(),
                platform=platform.platform()),
            "stats": self.stats_answer(), "results": self._results[:RESULTS_MOST],
            "errors": undelivered_errors,
        }

    def _results_told(self, count: int) -> None:
        del self._results[:count]

    def _heartbeat_loop(self) -> None:
        due = time.monotonic() + HEARTBEAT_SCANNING_S
        while not self.stop_requested.wait(0.1):
            try:
                self.obey()
                interval = HEARTBEAT_SCANNING_S if self.stats.active else HEARTBEAT_IDLE_S
                due = min(due, time.monotonic() + interval)
                if time.monotonic() >= due or (self._results and self.link.reachable):
                    due = time.monotonic() + interval
                    self._beat()
            except Exception:
                log.exception("heartbeat failed")

    def _beat(self) -> None:
        was_reachable = self.link.reachable
        try:
            self.link.hello()
        except PeerError:
            return
        if not was_reachable:
            self.delivery.wake()

    def obey(self) -> None:
        """Carry out what the host asked for, in order; the answers go with the next hello."""
        with self._obeying:
            while self.link.commands:
                command = self.link.commands.popleft()
                answer = self._carry_out(command)
                if command.get("id") is not None:
                    self._results.append({"id": command["id"], "answer": answer})

    def _carry_out(self, command: dict) -> dict:
        try:
            return self._do_command(command)
        except (OSError, ValueError, MedialibError) as error:
            return {"ok": False, "error": str(getattr(error, "strerror", None) or error)}

    def _do_command(self, command: dict) -> dict:
        do, path = command.get("do"), command.get("path")
        if do == "scan_now":
            started, message = self.scan_now()
            return {"ok": True, "started": started, "message": message}
        if do == "clear_cache":
            return {"ok": True, "cleared": self.clear_cache()}
        if do == "compact_cache":
            before, after = self.cache.compact()
            return {"ok": True, "before_bytes": before, "after_bytes": after}
        if do == "accept_empty" and isinstance(path, str):
            return {"ok": self.accept_empty(path)}
        if do == "ls":
            return list_folder(path if isinstance(path, str) else "")
        return {"ok": False, "error": "unknown command"}

    # -- what it tells ---------------------------------------------------------------------------

    def stats_answer(self) -> dict:
        """The answer of /agent/stats, from counters alone."""
        stats, delivery = self.stats, self.delivery
        elapsed = stats.elapsed_s()
        rate = stats.seen / elapsed if elapsed > 0.05 else 0.0
        return {
            "ok": True, "ts": self.clock(), "active": stats.active, "phase": stats.phase,
            "phase_name": stats.phase_name, "roots": list(self.scanner.roots), "root": stats.root,
            "current_path": stats.current_path, "elapsed": round(elapsed, 3), "seen": stats.seen,
            "uploaded": delivery.uploaded, "batches": delivery.batches,
            "errors": stats.errors + delivery.errors, "file_errors": stats.errors,
            "rate_files_per_s": round(rate, 1),
            "data_mib": round(stats.data_bytes / 2**20, 3), "kinds": dict(stats.kinds),
            "workers": stats.workers, "batch_size": self.link.config["agent_batch_size"],
            "sent_bytes": delivery.sent_bytes, "total_all": stats.total_all,
            "total_videos": stats.total_videos, "seen_videos": stats.probed,
            "outbox": delivery.waiting, "eta_s": self._eta(rate), "unchanged": stats.unchanged,
            "removed": stats.removed, "moved": stats.moved, "hashed": stats.hashed,
            "fully_hashed": stats.fully_hashed, "host_reachable": self.link.reachable,
            "host_problem": self.link.problem, "ledger": dict(stats.ledger),
            "idle_s": round(time.monotonic() - stats.last_progress, 1) if stats.active else None,
        }

    def _eta(self, rate: float) -> float | None:
        stats = self.stats
        if not stats.active or not rate:
            return None
        if stats.phase == 2 and stats.total_videos and stats.probed:
            done = stats.probed / max(stats.elapsed_s(), 0.1)
            return round(max(0, stats.total_videos - stats.probed) / done, 1)
        if stats.phase == 1 and stats.total_all:
            return round(max(0, stats.total_all - stats.seen) / rate, 1)
        return None


def list_folder(path: str) -> dict:
    """The answer of /agent/ls. OSError and ValueError for what cannot be listed."""
    native = os.path.abspath(os.path.expanduser(to_native(path or "/")))
    folders, files, truncated = [], [], False
    with os.scandir(native) as entries:
        for entry in entries:
            if len(folders) + len(files) >= LISTING_MOST:
                truncated = True
                break
            add_listed(entry, folders, files)
    folders.sort(key=listed_name)
    files.sort(key=listed_name)
    parent = os.path.dirname(native)
    return {"ok": True, "path": to_text(native), "dirs": folders, "files": files,
            "parent": to_text(parent) if parent != native else None, "truncated": truncated}


def add_listed(entry, folders: list, files: list) -> None:
    known = {"name": to_text(entry.name), "path": to_text(entry.path)}
    try:
        if entry.is_dir():
            folders.append(known)
        elif entry.is_file():
            files.append({**known, "size": entry.stat().st_size})
    except OSError:
        return


def listed_name(known: dict) -> str:
    return known["name"]


# =================================================================================================
# medialib/stop_signals.py, from its line 10
# Being asked to end: SIGINT, SIGTERM and SIGHUP.
# =================================================================================================

def catch_stop_signals(caught, stop) -> None:
    """At each such signal `caught(number)` runs in the main thread, between any two of its steps,
    and `stop()` in a thread of its own.

    `stop` sets events, and setting one takes its lock: where the main thread was just about to wait
    for that event, it held the lock itself, and the program hung for ever instead of ending.
    """
    reader, writer = os.pipe()  # for as long as the program runs
    if hasattr(os, "set_blocking"):
        os.set_blocking(writer, False)

    def handler(number, _frame) -> None:
        caught(number)

    def watch() -> None:
        while os.read(reader, 1):
            stop()

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handler)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch, name="signals", daemon=True).start()


# =================================================================================================
# medialib/agent_identity.py, from its line 15
# Who this agent is: a random id in the data folder, apart from the cache, so that clearing the
# =================================================================================================

AGENT_ID_FILE = "agent_id"


class AgentIdentity:
    """`id` (UUID text) and `name` (host name, or what --name says)."""

    def __init__(self, folder: str | None, name: str | None = None):
        self.path = os.path.join(folder, AGENT_ID_FILE) if folder else None
        self.name = to_text(name or socket.gethostname() or "agent")[:200]
        self.place = place_fingerprint(folder or "")
        if folder is None:  # nowhere to keep it: the same machine and name give the same id
            self.id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{machine_id()}/{self.name}"))
        else:
            self.id = self._read() or self.become(str(uuid.uuid4()))

    def _read(self) -> str | None:
        try:
            with open(self.path, encoding="utf-8") as file:
                saved = json.loads(file.read(4096))
            saved_id = str(uuid.UUID(saved["id"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if saved.get("place") not in (None, self.place):
            log.warning("this data folder came from another place (a copied home?): this machine"
                        " goes on as an agent of its own")
            return None
        return saved_id

    def become(self, new_id: str) -> str:
        """Take this id from now on, and keep it where the folder can be written."""
        self.id = new_id
        if self.path is None:
            return new_id
        try:
            write_private_file(self.path, json.dumps({"id": new_id, "place": self.place}) + "\n")
        except OSError as error:
            log.warning("the agent's id cannot be kept: %s", error)
        return new_id


def machine_id() -> str:
    """The machine's own id, where it lasts: not that of a container, which its image brings."""
    if any(os.path.exists(sign) for sign in ("/.dockerenv", "/run/.containerenv")):
        return ""
    try:
        with open("/etc/machine-id", encoding="ascii") as file:
            return file.read(64).strip()
    except (OSError, ValueError):
        return ""


def place_fingerprint(folder: str) -> str:
    """The machine's own id and the folder's path, as one short text."""
    place = f"{machine_id()}\0{os.path.realpath(folder)}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(place, digest_size=8).hexdigest()


# =================================================================================================
# medialib/agent_routes.py, from its line 12
# The agent's control port: the calls of the original description, as JSON.
# =================================================================================================

class AgentRoutes:
    """Handlers over one AgentService."""

    def __init__(self, service):
        self.service = service

    def router(self) -> Router:
        router = Router()
        router.add("GET", "/agent/ping", self.ping, summary="Is the agent alive?")
        router.add("GET", "/agent/stats", self.stats, summary="What the scan is doing now")
        router.add("GET", "/agent/ls", self.ls, summary="List a folder, to choose roots")
        router.add("POST", "/agent/scan_now", self.scan_now, summary="Scan all roots now")
        router.add("POST", "/agent/clear_cache", self.clear_cache, summary="Forget all files")
        router.add("GET", "/agent/cache_info", self.cache_info, summary="About the cache")
        router.add("POST", "/agent/compact_cache", self.compact_cache, summary="Shrink the cache")
        return router

    def ping(self, request) -> dict:
        identity = self.service.identity
        return {"ok": True, "id": identity.id, "name": identity.name, "version": VERSION,
                "protocol": PROTOCOL}

    def stats(self, request) -> dict:
        return self.service.stats_answer()

    def ls(self, request) -> dict:
        path = request.query.get("path", "")
        try:
            return list_folder(path)
        except ValueError as error:
            raise HttpError(400, "not a path", str(error)) from error
        except OSError as error:
            raise listing_refusal(error, path) from error

    def scan_now(self, request) -> dict:
        started, message = self.service.scan_now()
        return {"ok": True, "started": started, "message": message}

    def clear_cache(self, request) -> dict:
        return {"ok": True, "cleared": self.service.clear_cache()}

    def cache_info(self, request) -> dict:
        return self.service.cache.info()

    def compact_cache(self, request) -> dict:
        before, after = self.service.cache.compact()
        return {"ok": True, "before_bytes": before, "after_bytes": after}


def listing_refusal(error: OSError, path: str) -> HttpError:
    """404 for what is not there, 403 for what may not be read, 400 for what is no folder."""
    if error.errno == errno.ENOENT:
        return HttpError(404, "no such folder", path[:1000])
    if error.errno in (errno.EACCES, errno.EPERM):
        return HttpError(403, "not allowed to read this folder", path[:1000])
    if error.errno == errno.ENOTDIR:
        return HttpError(400, "not a folder", path[:1000])
    return HttpError(400, "cannot be listed", error.strerror or "")


# =================================================================================================
# medialib/plain_scan.py, from its line 27
# The agent on a Python without SQLite: it remembers nothing and goes by what the host remembers.
# =================================================================================================

PLAIN_PATIENCE_S = 12.0
PLAIN_PAGE = 1000


class PlainScan:
    """Scans straight to the host. `control` is a ScanControl; `transport` an HttpTransport."""

    def __init__(self, transport, identity, control, *, own_roots=(), find_ffprobe=None,
                 once: bool = False):
        self.transport = transport
        self.identity = identity
        self.control = control
        self.own_roots = list(own_roots)
        self.find_ffprobe = find_ffprobe
        self.once = once
        self.instance = str(uuid.uuid4())
        self.left_over: list = []
        self.files = self.read = self.sent = 0

    def run(self) -> list:
        """Scan once, or until stopped; what is left over, in words."""
        while self.control.keep_going():
            self.left_over = []
            self.files = self.read = self.sent = 0
            try:
                interval = self.scan()
            except PeerError as error:
                self.left_over.append(f"the host cannot be used: {error}")
                interval = 60
            if self.once:
                break
            self.control.sleep(interval or 3600)
        return self.left_over

    def scan(self) -> int:
        """Both passes over all roots; the seconds until the next scan."""
        ffprobe = self.find_ffprobe() if self.find_ffprobe else None
        answer = self.call(self.transport.hello, {"agent": about_agent(
            self.identity, port=None, instance=self.instance, hash_algos=available_algorithms(),
            ffprobe=ffprobe, roots=None, python=platform.python_version(),
            platform=platform.platform()), "stats": {}})
        config, _ = clean_settings(answer.get("config") or {})
        plan = ScanPlan(config, ffprobe)
        roots = merged_roots(config.get("remote_roots") or (), self.own_roots)
        for phase in (1, 2) if ffprobe else (1,):
            for path in roots:
                if self.control.keep_going():
                    self.scan_root(path, roots, plan, phase)
        log.info("%d files seen, %d read, %d sent", self.files, self.read, self.sent)
        return config["rescan_interval_s"]

    def call(self, method, body: dict, **more) -> dict:
        """The host's answer; waits while it is away (with --once not for long)."""
        backoff, since = Backoff(0.5, 15.0), time.monotonic()
        while True:
            try:
                return method(body, **more)
            except PeerRefused:
                raise
            except PeerError as error:
                waited = time.monotonic() - since
                if not self.control.keep_going() or (self.once and waited > PLAIN_PATIENCE_S):
                    raise
                log.warning("waiting for the host: %s", error)
                self.control.sleep(backoff.next(error.retry_after_s))

    def scan_root(self, path: str, roots: list, plan, phase: int) -> None:
        try:
            info = describe_root(to_native(path))
            with os.scandir(to_native(path)) as entries:
                empty = next(entries, None) is None
        except OSError as error:
            self.left_over.append(f"{path} is offline ({error.strerror})")
            return
        root = PlainRoot(self, path, info, plan, phase)
        if empty and not root.host_knows_nothing():
            self.left_over.append(f"{path} is offline (empty: a disk may be missing)")
            return
        others = {os.path.realpath(to_native(other)) for other in roots if other != path}
        walk = walk_folders(to_native(path), classifier=plan.classifier, root_device=info.device,
                            other_roots=others, follow_symlinks=plan.follow_symlinks,
                            mount_points=mount_points())
        for listing in walk:
            if not self.control.keep_going():
                return
            root.folder(listing)
        root.flush()
        if phase == 1:
            root.vanished_folders()


class PlainRoot:
    """One root in one pass."""

    def __init__(self, scan: PlainScan, path: str, info, plan, phase: int):
        self.scan = scan
        self.path = path
        self.info = info
        self.plan = plan
        self.phase = phase
        self.files: list = []
        self.removed: list = []
        self.listed: dict = {}  # {folder: whether its listing was complete}
        self.held: set = set()  # folders that are there but are not entered
        self.about = {"agent": {"id": scan.identity.id, "name": scan.identity.name,
                                "instance": scan.instance},
                      "root": path, "volume": info.volume, "volume_path": info.volume_path}

    def file_path(self, rel: str) -> str:
        return f"{self.path.rstrip('/')}/{rel}"

    def pages(self, method, key: str, **more):
        """Everything the host lists, page by page; nothing from an older host."""
        if self.scan.transport.older:
            return
        after = more.pop("after")
        while after is not None:
            page = self.scan.call(method, {**self.about, **more, "after": after,
                                           "limit": PLAIN_PAGE})
            yield from page[key]
            after = page.get("next")

    def known_in(self, rel: str) -> dict:
        transport = self.scan.transport
        return {file["name"]: file for file in self.pages(transport.names, "files", after="",
                                                           folder=rel, full=True)}

    def folders_at_host(self):
        return self.pages(self.scan.transport.folders, "folders", after=0)

    def host_knows_nothing(self) -> bool:
        return next(iter(self.folders_at_host()), None) is None

    def folder(self, listing) -> None:
        self.listed[listing.rel] = listing.error is None
        self.held.update(join_rel(listing.rel, name) for name in listing.held)
        known = self.known_in(listing.rel)
        for found in find_files(listing, listing.names):
            file = known.pop(found.name, None)
            if type(found) is FileProblem:
                continue
            self.scan.files += self.phase == 1
            if self.phase == 1:
                self.hash(found, file, join_rel(listing.rel, found.name))
            else:
                self.describe(found, file, join_rel(listing.rel, found.name))
        if self.phase == 1 and listing.error is None:
            self.removed += [self.file_path(join_rel(listing.rel, name)) for name in known]
        if listing.error is not None:
            self.scan.left_over.append(f"{self.file_path(listing.rel)} could not be read")

    def is_known(self, found, file) -> bool:
        return file is not None and same_version(file["inode_key"], found.inode_key,
                                                 self.info.inodes_stable)

    def hash(self, found, file, rel: str) -> None:
        hashes = (file or {}).get("hashes") or {}
        if (self.is_known(found, file) and file.get("ctime") == found.ctime
                and hashes.get("algo") == self.plan.algo
                and hashes.get("sample_size") == self.plan.sample_size):
            return
        self.scan.read += 1
        try:
            result = sample_hash_file(found.native, found, self.plan.algo, self.plan.sample_size,
                                      follow=self.plan.follow_symlinks,
                                      inodes_stable=self.info.inodes_stable)
            hashes = {"algo": result.algo, "sample_size": result.sample_size,
                      "sample_hash": result.sample_hash, "full_hash": result.full_hash}
        except (OSError, FileChanging) as error:
            self.scan.left_over.append(f"{self.file_path(rel)} could not be read ({error})")
            hashes = None
        self.add(found, rel, hashes=hashes)

    def describe(self, found, file, rel: str) -> None:
        kind, _ = self.plan.kind_of(found.name)
        if kind != "video" or not self.is_known(found, file) or file.get("metadata"):
            return
        try:
            metadata = probe_file(self.plan.ffprobe, found.native, stop=self.scan.control.stop)
        except (ProbeFailed, OSError) as error:
            log.warning("%s: %s", self.file_path(rel), error)
            return
        self.add(found, rel, metadata=metadata)

    def add(self, found, rel: str, **more) -> None:
        kind, reason = self.plan.kind_of(found.name)
        self.files.append(record_of(
            kind=kind, path=self.file_path(rel), size=found.size, mtime=found.mtime,
            ctime=found.ctime, inode_key=found.inode_key, ext=ext_of(found.name), reason=reason,
            **more))
        if len(self.files) >= self.plan.batch_size:
            self.flush()

    def flush(self) -> None:
        if not self.files and not self.removed:
            return
        outline = {**self.about, "batch_id": str(uuid.uuid4()), "phase": self.phase,
                   "removed": self.removed}
        answer = self.scan.call(self.scan.transport.batch, outline,
                                files=[json.dumps(record) for record in self.files])
        self.scan.sent += len(self.files)
        for error in answer.get("errors") or []:
            self.scan.left_over.append(f"the host does not take {error.get('path')}:"
                                       f" {error.get('error')}")
        self.files, self.removed = [], []

    def vanished_folders(self) -> None:
        """Folders the host has and the walk did not meet, below one that was listed to the end."""
        for folder in list(self.folders_at_host()):
            rel = folder["path"]
            if rel in self.listed:
                continue
            child, parent = rel, parent_of(rel)
            while parent not in self.listed and parent:
                child, parent = parent, parent_of(parent)
            if self.listed.get(parent) and child not in self.held:
                self.removed += [self.file_path(join_rel(rel, name)) for name in self.known_in(rel)]
            self.flush()


# =================================================================================================
# medialib/agent_cli.py, from its line 46
# The agent's command line: python agent.py HOST [ROOT…].
# =================================================================================================

AGENT_LOOPBACK = ("127.0.0.0/8", "::1/128")
HOST_LOOKUP_S = 60.0
CONTROL_BODY_BYTES = 64 << 10  # no call of the control port needs a body


def agent_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="agent.py", description="Catalogue this machine's media on a medialib host.",
        epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 done but something is left over, "
               "4 another instance holds the data folder, 130 interrupted.")
    parser.add_argument("host", metavar="HOST", help="the host: address, name, name:port or URL")
    parser.add_argument("roots", metavar="ROOT", nargs="*", default=[],
                        help="folders to scan, besides those the host gives this machine")
    parser.add_argument("--once", action="store_true", help="scan, deliver and exit")
    parser.add_argument("--clear-cache", action="store_true",
                        help="forget what is known of the files first (an agent already running on "
                             "the data folder is asked to)")
    parser.add_argument("--bind", metavar="ADDR", default="",
                        help="address of the control port (default: all)")
    parser.add_argument("--port", type=int, help=f"control port (default {AGENT_PORT})")
    parser.add_argument("--data-dir", metavar="DIR", help="default: ~/.medialib or $MEDIALIB_HOME")
    parser.add_argument("--name", help="what this machine is called in the catalogue")
    parser.add_argument("--allow", metavar="CIDR", action="append", default=[],
                        help="further addresses that may use the control port")
    parser.add_argument("--ffprobe", metavar="PATH", help="the ffprobe to use")
    parser.add_argument("--cafile", metavar="FILE", help="certificates to trust for an https host")
    parser.add_argument("--check", action="store_true",
                        help="say what would be used and whether the host answers, and exit")
    parser.add_argument("--version", action="version", version=f"medialib {VERSION}")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-v", "--verbose", action="store_true", help="more messages")
    loudness.add_argument("-q", "--quiet", action="store_true", help="warnings only")
    return parser


def agent_main(argv=None) -> int:
    """Run the agent; the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words == ["--version"]:  # without argparse, which takes longer to import than all else
        print(f"medialib {VERSION}")
        return EXIT_DONE
    arguments = agent_parser().parse_args(argv)
    try:
        url = parse_host(arguments.host, HOST_PORT)
        if arguments.check:
            return check_agent(arguments, url)
        return AgentProgram(arguments, url).run()
    except MedialibError as error:
        print(f"agent.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


class AgentProgram:
    """One run of the agent: data folder, cache, control port, service, signals."""

    def __init__(self, arguments, url: str):
        self.arguments = arguments
        self.url = url
        self.interrupted = None
        self.folder = self._folder()
        self.roots = [absolute_root(root) for root in self._given_roots()]

    def _folder(self) -> str | None:
        """The data folder, or None where there is none to be had: then nothing is remembered."""
        try:
            return data_folder(self.arguments.data_dir)
        except MedialibError as error:
            print(f"agent.py: {error}; going on without a memory: every start reads all files"
                  " again", file=sys.stderr)
            return None

    def _given_roots(self) -> list:
        for root in self.arguments.roots:
            if not os.path.isdir(os.path.expanduser(root)):
                print(f"agent.py: {to_text(root)} is not there now; it is reported as offline",
                      file=sys.stderr)
        return [to_text(root) for root in self.arguments.roots]

    def run(self) -> int:
        verbosity = self.arguments.verbose - self.arguments.quiet
        lock = FolderLock(self.folder, "agent") if self.folder else None
        try:
            if lock is not None:
                lock.acquire()
        except FolderBusyError:
            if self.arguments.clear_cache:
                return clear_running(lock)
            raise
        try:
            setup_logging(os.path.join(self.folder, "agent.log") if self.folder else None,
                          verbosity)
            return self._run_locked(lock)
        finally:
            if lock is not None:
                lock.release()

    def _run_without_cache(self) -> int:
        """On a Python without SQLite: nothing is remembered here, the host is asked instead."""
        log.warning("this Python has no SQLite: going on without a cache, a control port and full"
                    " hashes of large files")
        control = ScanControl()
        self._catch_signals(control.stop.set)
        scan = PlainScan(HttpTransport(self.url, self.arguments.cafile),
                         AgentIdentity(self.folder, self.arguments.name), control,
                         own_roots=self.roots, once=self.arguments.once,
                         find_ffprobe=lambda: find_ffprobe(self.arguments.ffprobe))
        left_over = scan.run()
        for words in left_over:
            print(f"left over: {words}", file=sys.stderr)
        if self.interrupted is not None:
            return EXIT_INTERRUPTED if self.interrupted == signal.SIGINT else EXIT_DONE
        return EXIT_LEFT_OVER if left_over else EXIT_DONE

    def _run_locked(self, lock) -> int:
        if sqlite3 is None:
            return self._run_without_cache()
        settle_memory()
        cache = self._open_cache()
        try:
            if self.arguments.clear_cache:
                cache.clear()
                log.info("the cache is cleared")
            identity = AgentIdentity(self.folder, self.arguments.name)
            transports = [HttpTransport(self.url, self.arguments.cafile) for _ in range(2)]
            service = AgentService(
                cache, identity, *transports, roots=self.roots,
                find_ffprobe=lambda: find_ffprobe(self.arguments.ffprobe))
            return self._serve(service, lock)
        finally:
            cache.close()

    def _open_cache(self):
        kind = outside_cache() or AgentCache
        if self.folder is not None:
            try:
                return kind(os.path.join(self.folder, "agent_cache.db"))
            except StoreError as error:
                log.warning("%s; going on with a temporary cache", error)
        return kind("")

    def _serve(self, service, lock) -> int:
        gate = Gate([*AGENT_LOOPBACK, *self.arguments.allow])
        server = self._open_port(service, gate)
        service.port = server.port
        if lock is not None:
            lock.write_holder({"port": server.port})
        self._catch_signals(service.request_stop)
        threading.Thread(target=self._admit_host, args=(gate, service), name="lookup",
                         daemon=True).start()
        progress = ProgressLine(sys.stderr, service.stats_answer, quiet=self.arguments.quiet)
        server.start()
        service.start()
        progress.start()
        try:
            if not self.arguments.once:
                service.run_forever()
                return EXIT_INTERRUPTED if self.interrupted == signal.SIGINT else EXIT_DONE
            return self._once(service, progress)
        finally:
            progress.stop()
            service.stop()
            server.stop()

    def _once(self, service, progress) -> int:
        complete = service.run_once()
        progress.stop()
        if self.interrupted is not None:
            return EXIT_INTERRUPTED
        if not self.arguments.quiet:
            print(summary_text(service.stats_answer()))
        left_over = service.left_over()
        for words in left_over:
            print(f"left over: {words}", file=sys.stderr)
        if left_over:
            return EXIT_LEFT_OVER
        return EXIT_DONE if complete else EXIT_FAILED

    def _open_port(self, service, gate) -> JsonServer:
        """The control port asked for; another free one if the usual one is taken."""
        router = AgentRoutes(service).router()
        wanted = self.arguments.port
        try:
            return JsonServer(self.arguments.bind, AGENT_PORT if wanted is None else wanted,
                              router, gate, max_body=CONTROL_BODY_BYTES,
                              max_json=CONTROL_BODY_BYTES)
        except UsageError:
            raise
        except MedialibError as error:
            if wanted is not None:
                raise
            log.warning("%s; taking another port", error)
            return JsonServer(self.arguments.bind, 0, router, gate, max_body=CONTROL_BODY_BYTES,
                              max_json=CONTROL_BODY_BYTES)

    def _catch_signals(self, request_stop) -> None:
        def caught(number) -> None:
            if self.interrupted is not None:
                raise KeyboardInterrupt
            self.interrupted = number

        catch_stop_signals(caught, request_stop)

    def _admit_host(self, gate, service) -> None:
        """Let the host's addresses use the control port; a name may change its address."""
        name = urllib.parse.urlsplit(self.url).hostname
        while not service.stop_requested.is_set():
            try:
                found = {entry[4][0].partition("%")[0]
                         for entry in socket.getaddrinfo(name, None)}
                gate.set_networks([*AGENT_LOOPBACK, *sorted(found), *self.arguments.allow])
            except (OSError, UnicodeError) as error:
                log.debug("the host's name %s: %s", name, error)
            service.stop_requested.wait(HOST_LOOKUP_S)


def outside_cache():
    """AgentCache of an installed medialib or of an agent_cache.py beside this file, if it is there
    and of the same interface version; else None.
    """
    if sys.modules.get("medialib.agent_cache") is not None:
        return None  # this is the package itself
    for name in ("medialib.agent_cache", "agent_cache"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        except Exception as error:
            log.warning("%s cannot be used: %s", name, error)
            continue
        if getattr(module, "AGENT_CACHE_INTERFACE", None) == AGENT_CACHE_INTERFACE:
            return module.AgentCache
        log.warning("%s has another interface; using the built-in cache", name)
    return None


def clear_running(lock) -> int:
    """Ask the agent that holds the data folder to clear its cache."""
    holder = lock.read_holder() or {}
    if "port" not in holder:
        raise FolderBusyError("an agent runs on this data folder but tells no port; stop it first")
    answer = JsonClient(f"http://127.0.0.1:{holder['port']}", timeout_s=60.0).post(
        "/agent/clear_cache")
    print("the running agent has cleared its cache" if answer.get("cleared")
          else "the running agent's cache was empty")
    return EXIT_DONE


def check_agent(arguments, url: str) -> int:
    """Print what an agent started like this would work with; 0 if it could work, else 1."""
    ffprobe = find_ffprobe(arguments.ffprobe)
    print(f"medialib {VERSION} on Python {platform.python_version()}, {platform.platform()}")
    print(f"hashes: {', '.join(available_algorithms())}")
    print(f"ffprobe: {ffprobe.version} ({ffprobe.path})" if ffprobe
          else "ffprobe: not installed; videos are hashed but not described")
    usable = check_roots(arguments.roots)
    try:
        print(f"data folder: {data_folder(arguments.data_dir)}")
    except MedialibError as error:
        print(f"data folder: {error}")
    try:
        HttpTransport(url, arguments.cafile).client.get("/health", need_ok=False)
        print(f"host: {url} answers")
    except PeerError as error:
        print(f"host: {error}")
        usable = False
    return EXIT_DONE if usable else EXIT_FAILED


def check_roots(roots: list) -> bool:
    usable = True
    for root in roots:
        try:
            with os.scandir(os.path.expanduser(root)):
                print(f"root: {to_text(root)} can be read")
        except OSError as error:
            print(f"root: {to_text(root)}: {error.strerror}")
            usable = False
    return usable


if __name__ == "__main__":
    launch(agent_main)
