#!/usr/bin/env python3
"""medialib's server, whole in this one file: run `python3 server.py FOLDER` and open the page it names.

Made from medialib/ by tools/amalgamate.py: change the modules there, not this file. Each section
is one module's code, verbatim: low level first, the command line last. `line` is where it begins
here, `there` where in the module: that maps a traceback back.

    line  there  section
     182      7  medialib/base.py: What every other module may use: the version, the logger, the ports and the errors.
     232     13  medialib/late.py: Modules of the standard library that are slow to import and that many runs do not need.
     275     13  medialib/launch.py: Running a program that is one large file without the syntax tree of that file.
     306     11  medialib/allocator.py: How memory is kept and given back, for programs that run for a long time.
     354     24  medialib/app_folder.py: The data folder: where it is, who may use it, its lock, its private files and the log.
     640     19  medialib/scan_common.py: What a scan says about one file: its name as text, its kind, its identity, its record.
     999     25  medialib/settings.py: The one table of settings: name, type, default, bounds, unit and help.
    1239     11  medialib/walk_names.py: The names in one huge folder, in less than half of the memory of a list of them.
    1310     17  medialib/walk.py: The walk through a root: one listing per folder, in the order everything else relies on.
    1664     19  medialib/mounts.py: What a root lies on: its file system, volume, disk and free space.
    1980     25  medialib/hashing.py: Hashes of files: blake3 and xxhash64 where they are installed, sha256 everywhere.
    2185     18  medialib/leash.py: A leash for a child process: when we die, however we die, the kernel kills its whole group.
    2221     19  medialib/probe_run.py: One run of a program we do not trust: its own group, a deadline, bounded output, no remains.
    2401     20  medialib/ffprobe.py: Describe one media file with ffprobe, which may be missing, hang, crash, flood or lie.
    2634     22  medialib/sqlite_store.py: SQLite: opening with our pragmas, whole transactions, migrations, checked copies.
    2970     17  medialib/http_body.py: Bodies from strangers: gunzip and JSON with bounds on bytes, memory, depth and number of objects.
    3181     15  medialib/http_gate.py: Who may talk to us (DESIGN §8): peer address, Host, Origin, Sec-Fetch-Site; addresses and TLS.
    3390     15  medialib/http_deadline.py: A connection of http.client on which one deadline bounds everything a call does.
    3531     15  medialib/http_json.py: What handlers of requests see: Request, Reply, StreamReply, HttpError, Router; heads.
    3786     12  medialib/http_answer.py: From a Reply to the bytes of an answer: JSON, headers that keep a page safe, gzip.
    3866     23  medialib/http_listener.py: Accepting connections: how many, from whom, for how long. Knows nothing of HTTP.
    4250     11  medialib/http_shares.py: What all connections share: bytes, the memory of parsed JSON, places for endless answers.
    4340     31  medialib/http_server.py: JSON over HTTP: one conversation per connection, with a bound on everything.
    4681     28  medialib/http_client.py: Asking another medialib: JSON over http.client, with one deadline for the whole call.
    5057     11  medialib/progress.py: What a scan shows a person: one live line on a terminal, a plain line now and then elsewhere.
    5174     10  medialib/cache_schema.py: The agent's own tables: what it knows of each file, what is not delivered yet, how far it came.
    5310     12  medialib/cache_changes.py: What a scan tells the cache and what the cache tells a scan: plain values, no SQL.
    5461     10  medialib/cache_batch.py: One batch for the host, and its records as the JSON texts that go over the wire.
    5552     10  medialib/index_writer.py: Applies changes to the index: rows, their numbers, tombstones, and the sums of each root.
    5858      8  medialib/cache_feed.py: Rows on their way from the scan to the host: just stored, so that nobody need read them again.
    5905     20  medialib/cache_outbox.py: What is not delivered yet, in order, and what the host has acknowledged.
    6263     18  medialib/cache_roots.py: The agent's roots and folders: which disk is which root, and what each root holds in sum.
    6577     23  medialib/agent_cache.py: The agent's memory: what it knows of every file, in SQLite, so that nothing is read twice.
    6929     11  medialib/scan_buffer.py: What a scan found, on its way into the cache, and how failures are put into words.
    6994     11  medialib/scan_plan.py: What a scan is told: its settings in a form that is quick to use, its counters, its brakes.
    7137     24  medialib/hash_window.py: Reading files for their sample hash: chunks in a bounded window, results in the walk's order.
    7460     17  medialib/root_volume.py: One name for one disk: a volume that is named in two ways, and disks that share one name.
    7584     18  medialib/root_check.py: Is the folder at a root's path really the root? Absence is not deletion.
    7692     13  medialib/scan_moves.py: Where the content of a file that is new at its path was known before: a move, or a hard link.
    7773     15  medialib/scan_seal.py: A folder's seal: what its files looked like when all of them were as the index says.
    7821     39  medialib/scan_pipeline.py: Pass 1: walk a root, skip what is unchanged, have the rest read, note what is gone.
    8192     31  medialib/scan_passes.py: Pass 2 (ffprobe for videos) and the full hashes of large files, both driven by the cache.
    8500     17  medialib/scan_run.py: One scan of all roots: pass 1 over each, then ffprobe, then the full hashes of large files.
    8710     13  medialib/host_copy.py: What the host holds of a root, beside what this agent knows of it: comparing and taking over.
    8831     20  medialib/delivery.py: Delivery: what the cache holds goes to the host in order, and is marked only once acknowledged.
    9142     19  medialib/host_link.py: The agent's line to its host: hello, batches and the lists for comparing, over HTTP.
    9336     21  medialib/agent_service.py: The running agent: scans now and then, delivers, says hello, and answers what it is asked.
    9717     10  medialib/stop_signals.py: Being asked to end: SIGINT, SIGTERM and SIGHUP.
    9747     14  medialib/catalog_schema.py: The catalogue's tables. Codes in here are stored on disk: they are added to, never changed.
   10009     17  medialib/catalog_rows.py: One file's row in the catalogue and its other forms: the record, the digest, the answer.
   10190     19  medialib/catalog_roots.py: The catalogue's agents, roots and folders: who reports what, and which row stands for it.
   10519     21  medialib/catalog_tallies.py: Every number that is shown moves with its rows: the differences one transaction makes.
   10693     14  medialib/catalog_facts.py: What is known of a file beside its stamps: hashes, ffprobe's answer, what could not be done; and
   10793     25  medialib/catalog_apply.py: One batch onto the catalogue: new, changed, moved and removed files, and every sum that moves.
   11135     21  medialib/catalog_duplicates.py: Duplicate groups, kept up to date with the rows they are made of.
   11379     16  medialib/catalog_search.py: The search index over names and folder paths: letters in threes (FTS5), where SQLite has it.
   11518     14  medialib/catalog_word_sql.py: What SQLite itself can tell of a search: conditions that every match fulfils.
   11616     16  medialib/catalog_settings.py: Settings in the catalogue: for the whole library, and what single agents have instead.
   11670     16  medialib/catalog_why.py: Why a path is, or is not, in the catalogue: the answer of POST /api/why.
   11770     24  medialib/catalog_compare.py: What the host holds of a root, page by page, for an agent that compares and repairs.
   11882     11  medialib/catalog_show.py: Files as the API shows them.
   11929     19  medialib/catalog_writer.py: The one thread that writes the catalogue: it commits what waits together, and then answers.
   12174     14  medialib/catalog_check.py: Is the catalogue's file sound? Small ones are read to the end before they are used, large ones
   12242     16  medialib/catalog_summary.py: The catalogue in numbers, from the sums that are kept with the rows; `file` is not looked at.
   12341     34  medialib/catalog.py: The catalogue: one database file, one thread that writes it, readers beside it.
   12606     15  medialib/host_agents.py: The agents as the host hears them now: who is alive, what they do, what they are to do.
   12759     22  medialib/catalog_agents.py: Agents in the catalogue: what their hello says is kept, and how they are shown.
   12954     17  medialib/host_upkeep.py: What the host does by itself: daily copies of the catalogue and the daily row of totals.
   13083     27  medialib/ingest_records.py: Checking one record of a batch: what is wrong with it in words, or its clean form.
   13443     17  medialib/ingest_repeats.py: Batches that older agents post again and again, word for word: known by their bytes, they need
   13512     25  medialib/catalog_filter.py: The filter of `POST /api/files` and its like: JSON in, conditions on the tables out.
   13808     11  medialib/catalog_folders.py: Folders with what is in them, from the totals kept with each folder.
   13911     13  medialib/catalog_tokens.py: Where a page ended, as a text for the one who asks for the next; and how long a page may be.
   13953     23  medialib/catalog_copies.py: Duplicates as they are shown: groups by gain, their files, and one file's other copies.
   14110     10  medialib/catalog_propose.py: Which few rows can match a filter at all: by search index, hash, folder, extension or state.
   14338      7  medialib/catalog_words.py: Whether a file's path holds all words of a search.
   14375     10  medialib/catalog_places.py: Places in sorted lists: what is compared, which index leads there, and the rows at them.
   14489     14  medialib/catalog_by_path.py: Files in the order of the walk: root by root, folder by folder.
   14613     28  medialib/catalog_sections.py: Lists sorted by what has few values: kind, extension, state, machine, codec, container, reason.
   14788     11  medialib/catalog_sample.py: Looking at some files from all over the catalogue, where looking at all would take too long.
   14823     22  medialib/catalog_skip.py: Far places of a sorted list: the row behind so many others.
   15081     28  medialib/catalog_files.py: Pages of files: filtered, sorted, the deepest as fast as the first.
   15324     13  medialib/catalog_changes.py: The feed of changes: everything after a number, in the order in which it happened.
   15365     31  medialib/catalog_facets.py: Counts beside a list of files: how many there are of each kind, codec, machine, age.
   15582     23  medialib/catalog_same_folders.py: Folders that hold the same files as another one: a copied tree is one row, not ten thousand.
   15813     15  medialib/ingest_outline.py: The outline of what agents send: who speaks, of which root, how much; all but the records.
   15936      9  medialib/ingest_order.py: Batches of one agent that are under way together: each is applied behind the one before it.
   15995     45  medialib/ingest.py: What agents say to the host: hello, batches, and the lists by which both compare what they hold.
   16312     19  medialib/local_scan.py: The host's own disks: the agent's machinery in this process, without HTTP in between.
   16443      9  medialib/web_assets.py: The files of the web page: embedded in the one-file build, beside the package otherwise.
   16484      1  medialib/web/: The files of the web UI.
   20761     13  medialib/catalog_forget.py: Forgetting on purpose: rows leave the catalogue for good, after their number was said.
   20860     13  medialib/catalog_reclassify.py: Giving rows the kind that new settings say, without waiting for the next scan of their disk.
   20931     24  medialib/server_agents.py: Steering agents from the host: scan, list, clear, compact, set, forget.
   21105     14  medialib/server_turns.py: Lists of the catalogue are made a few at a time, however many ask at once.
   21131     11  medialib/server_events.py: Server-sent events: counts, progress and news of agents, for pages that are open.
   21219     18  medialib/server_export.py: Exports: everything a filter matches, streamed as CSV or JSON lines, in constant memory.
   21366      9  medialib/server_metrics.py: /metrics in Prometheus' text form, from numbers that are kept anyway; no paths as labels.
   21447      7  medialib/server_openapi.py: /openapi.json: the API's description, made from the route table itself.
   21490     47  medialib/server_routes.py: The host's calls over HTTP: paths to handlers.
   21801     40  medialib/server_cli.py: The host's command line: python server.py [ROOT…].
"""
# sha256 of all below this line: e5f31c2017159717960b345928d46e8db00444bebd7fcfe939b1fb29e0fda5f0

from __future__ import annotations

import base64
import bisect
import collections
import contextlib
import csv
import dataclasses
import datetime
import errno
import fnmatch
import functools
import gc
import heapq
import io
import itertools
import json
import logging
import math
import operator
import os
import pkgutil
import queue
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
from concurrent.futures import Future
from dataclasses import dataclass, field
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
# medialib/catalog_schema.py, from its line 14
# The catalogue's tables. Codes in here are stored on disk: they are added to, never changed.
# =================================================================================================

KIND_CODES = {
    "audio": 1, "image": 2, "junk": 3, "other": 4, "subtitle": 5, "unknown": 6, "video": 7,
    "xml": 8,
}
KIND_NAMES = {code: kind for kind, code in KIND_CODES.items()}
ALGO_CODES = {"blake3": 1, "xxhash64": 2, "sha256": 3}
ALGO_NAMES = {code: algo for algo, code in ALGO_CODES.items()}

STATE_PRESENT = 0
STATE_MISSING = 1

FLAG_WHOLE = 1  # the file was read whole for its sample hash, which therefore is its full hash
FLAG_PROBED = 2  # it has a row in metadata
FLAG_ERROR = 4  # it has a row in file_error

GROUP_CONFIRMED = 1
GROUP_CANDIDATE = 2

FACET_WEEK = 1  # of the modification time, in whole weeks since the epoch
FACET_VIDEO_CODEC = 2
FACET_CONTAINER = 3
FACET_RESOLUTION = 4  # the lower bound of its class, see RESOLUTION_CLASSES
FACET_AUDIO_CODEC = 5

# A video's class by its lines, or what its width would have in 16:9; a bound is stored on disk.
RESOLUTION_CLASSES = ((4000, "8K"), (1800, "4K"), (1200, "1440p"), (900, "1080p"), (650, "720p"),
                      (0, "SD"))

LOCAL_AGENT = "local"  # the host's own scanner
HASH_PREFIX_BYTES = 6  # enough to find a hash; the rest is compared in the row

CATALOG_TABLES = [
    "CREATE TABLE library (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID",
    # The change counter, the next numbers of files and folders, how far the search index is.
    "CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    """CREATE TABLE agent (
        id INTEGER PRIMARY KEY,
        agent_id TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        address TEXT,
        last_rev INTEGER NOT NULL DEFAULT 0,
        first_seen REAL NOT NULL,
        last_seen REAL NOT NULL,
        facts_json TEXT NOT NULL DEFAULT '{}',
        errors_json TEXT NOT NULL DEFAULT '{}'
    )""",
    """CREATE TABLE root (
        id INTEGER PRIMARY KEY,
        agent INTEGER NOT NULL REFERENCES agent (id),
        path TEXT NOT NULL,
        volume TEXT,
        volume_path TEXT,
        state TEXT NOT NULL DEFAULT 'online',
        reason TEXT,
        implicit INTEGER NOT NULL DEFAULT 0,
        transferred INTEGER NOT NULL DEFAULT 0,
        files INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0,
        missing INTEGER NOT NULL DEFAULT 0,
        missing_bytes INTEGER NOT NULL DEFAULT 0,
        digest INTEGER NOT NULL DEFAULT 0,
        facts_json TEXT NOT NULL DEFAULT '{}',
        scan_json TEXT NOT NULL DEFAULT '{}',
        seq INTEGER NOT NULL
    )""",
    "CREATE INDEX root_agent ON root (agent)",
    "CREATE INDEX root_volume ON root (volume, volume_path) WHERE volume IS NOT NULL",
    "CREATE INDEX root_seq ON root (seq)",
    # `key` is the path relative to the root with NUL between names: its byte order is the order of
    # the walk, and everything below a folder is one range of it.
    """CREATE TABLE folder (
        id INTEGER PRIMARY KEY,
        root INTEGER NOT NULL,
        parent INTEGER,
        key BLOB NOT NULL,
        files INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0,
        tree_files INTEGER NOT NULL DEFAULT 0,
        tree_bytes INTEGER NOT NULL DEFAULT 0
    )""",
    "CREATE UNIQUE INDEX folder_key ON folder (root, key)",
    "CREATE INDEX folder_parent ON folder (parent) WHERE parent IS NOT NULL",
    # Extensions, junk reasons, codecs, containers: the same few words in very many rows.
    "CREATE TABLE word (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE)",
    """CREATE TABLE file (
        id INTEGER PRIMARY KEY,
        folder INTEGER NOT NULL,
        name TEXT NOT NULL,
        kind INTEGER NOT NULL,
        ext INTEGER NOT NULL,
        size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        mtime REAL,
        ctime REAL,
        ino INTEGER NOT NULL,
        dev INTEGER NOT NULL,
        key_text TEXT,
        algo INTEGER,
        sample_size INTEGER,
        sample_hash BLOB,
        full_hash BLOB,
        flags INTEGER NOT NULL,
        state INTEGER NOT NULL,
        reason INTEGER,
        first_seen INTEGER NOT NULL,
        changed INTEGER NOT NULL,
        seq INTEGER NOT NULL
    )""",
    "CREATE UNIQUE INDEX file_path ON file (folder, name) WHERE state = 0",
    "CREATE INDEX file_missing ON file (folder, name) WHERE state = 1",
    "CREATE UNIQUE INDEX file_seq ON file (seq)",
    "CREATE INDEX file_name ON file (kind, name COLLATE NOCASE)",
    "CREATE INDEX file_size ON file (kind, size)",
    "CREATE INDEX file_mtime ON file (kind, mtime_ns)",
    "CREATE INDEX file_ext ON file (ext)",
    f"CREATE INDEX file_sample ON file (substr(sample_hash, 1, {HASH_PREFIX_BYTES}))"
    " WHERE sample_hash IS NOT NULL",
    f"CREATE INDEX file_full ON file (substr(full_hash, 1, {HASH_PREFIX_BYTES}))"
    " WHERE full_hash IS NOT NULL",
    """CREATE TABLE metadata (
        file INTEGER PRIMARY KEY,
        duration REAL,
        container INTEGER,
        video_codec INTEGER,
        audio_codecs INTEGER,
        width INTEGER,
        height INTEGER,
        bitrate INTEGER
    )""",
    "CREATE INDEX metadata_duration ON metadata (duration)",
    "CREATE INDEX metadata_height ON metadata (height)",
    "CREATE INDEX metadata_bitrate ON metadata (bitrate)",
    "CREATE TABLE streams (file INTEGER PRIMARY KEY, packed BLOB NOT NULL)",
    """CREATE TABLE file_error (
        file INTEGER PRIMARY KEY,
        stage TEXT NOT NULL,
        class TEXT NOT NULL,
        message TEXT NOT NULL
    )""",
    """CREATE TABLE tally (
        root INTEGER NOT NULL,
        kind INTEGER NOT NULL,
        ext INTEGER NOT NULL,
        reason INTEGER NOT NULL,
        state INTEGER NOT NULL,
        files INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        PRIMARY KEY (root, kind, ext, reason, state)
    ) WITHOUT ROWID""",
    """CREATE TABLE facet (
        root INTEGER NOT NULL,
        state INTEGER NOT NULL,
        field INTEGER NOT NULL,
        value INTEGER NOT NULL,
        files INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        PRIMARY KEY (root, state, field, value)
    ) WITHOUT ROWID""",
    """CREATE TABLE duplicate (
        id INTEGER PRIMARY KEY,
        hash BLOB NOT NULL,
        state INTEGER NOT NULL,
        size INTEGER NOT NULL,
        algo INTEGER NOT NULL,
        sample_size INTEGER NOT NULL,
        copies INTEGER NOT NULL,
        files INTEGER NOT NULL,
        reclaimable INTEGER NOT NULL,
        potential INTEGER NOT NULL
    )""",
    "CREATE UNIQUE INDEX duplicate_key ON duplicate (hash, state, size, algo, sample_size)",
    "CREATE INDEX duplicate_gain ON duplicate (reclaimable, potential, id)",
    "CREATE INDEX duplicate_large ON duplicate (files) WHERE files > 2000",
    """CREATE TABLE duplicate_total (
        state INTEGER PRIMARY KEY,
        groups INTEGER NOT NULL,
        files INTEGER NOT NULL,
        reclaimable INTEGER NOT NULL,
        potential INTEGER NOT NULL
    )""",
    # Very large groups are counted again when the writer has time, not with every batch.
    """CREATE TABLE duplicate_due (
        hash BLOB NOT NULL, size INTEGER NOT NULL, algo INTEGER NOT NULL,
        PRIMARY KEY (hash, size, algo)
    ) WITHOUT ROWID""",
    """CREATE TABLE batch (
        agent INTEGER NOT NULL,
        batch_id TEXT NOT NULL,
        number INTEGER NOT NULL,
        answer TEXT NOT NULL,
        at INTEGER NOT NULL,
        PRIMARY KEY (agent, batch_id)
    ) WITHOUT ROWID""",
    "CREATE INDEX batch_number ON batch (agent, number)",
    """CREATE TABLE rejected (
        agent INTEGER NOT NULL,
        path TEXT NOT NULL,
        error TEXT NOT NULL,
        at INTEGER NOT NULL,
        PRIMARY KEY (agent, path)
    ) WITHOUT ROWID""",
    "CREATE TABLE forgotten (seq INTEGER PRIMARY KEY, file INTEGER NOT NULL)",
    """CREATE TABLE setting (
        scope TEXT NOT NULL,
        name TEXT NOT NULL,
        value_json TEXT NOT NULL,
        PRIMARY KEY (scope, name)
    ) WITHOUT ROWID""",
    """CREATE TABLE daily (
        day TEXT PRIMARY KEY,
        files INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        missing INTEGER NOT NULL,
        reclaimable INTEGER NOT NULL
    ) WITHOUT ROWID""",
    "INSERT INTO duplicate_total VALUES (1, 0, 0, 0, 0), (2, 0, 0, 0, 0)",
    "INSERT INTO counter VALUES ('seq', 0), ('file', 0), ('folder', 0), ('searchable', 0)",
]

# Each has the letters of a name (or of a folder's path) in lower case; the text itself is not kept
# a second time. `detail=none` makes the index about a third of its size: where in the text three
# letters stand is found out by looking at the row.
SEARCH_TABLES = [
    "CREATE VIRTUAL TABLE name_search USING fts5"
    " (name, content='', detail=none, columnsize=0, tokenize='trigram')",
    "CREATE VIRTUAL TABLE folder_search USING fts5"
    " (path, content='', detail=none, columnsize=0, tokenize='trigram')",
]


def create_catalog(db) -> None:
    """The first migration: all tables, and the library's own identity."""
    for statement in CATALOG_TABLES:
        db.execute(statement)
    db.execute("INSERT INTO library VALUES ('library_id', ?)", (str(uuid.uuid4()),))
    if has_trigram_search(db):
        for statement in SEARCH_TABLES:
            db.execute(statement)
        db.execute("INSERT INTO library VALUES ('search', 'trigram')")


def has_trigram_search(db) -> bool:
    """Whether this SQLite knows FTS5 with trigrams (3.34 and newer, if compiled in)."""
    db.execute("SAVEPOINT try_search")
    try:
        db.execute("CREATE VIRTUAL TABLE try_search USING fts5 (a, tokenize='trigram')")
        return True
    except sqlite3.OperationalError:
        return False
    finally:
        db.execute("ROLLBACK TO try_search")
        db.execute("RELEASE try_search")


CATALOG_MIGRATIONS = [create_catalog]


# =================================================================================================
# medialib/catalog_rows.py, from its line 17
# One file's row in the catalogue and its other forms: the record, the digest, the answer.
# =================================================================================================

INODE_MASK = (1 << 64) - 1
INT64_MAX = (1 << 63) - 1
NS_PER_S = 1_000_000_000


class FileRow(NamedTuple):
    """All columns of `file`, in the order of the table."""

    id: int
    folder: int
    name: str
    kind: int
    ext: int
    size: int
    mtime_ns: int
    mtime: float | None
    ctime: float | None
    ino: int
    dev: int
    key_text: str | None
    algo: int | None
    sample_size: int | None
    sample_hash: bytes | None
    full_hash: bytes | None
    flags: int
    state: int
    reason: int | None
    first_seen: int
    changed: int
    seq: int


FILE_COLUMNS = ", ".join(FileRow._fields)
FILE_COLUMNS_OF_F = ", ".join(f"f.{name}" for name in FileRow._fields)
FILE_INSERT = (
    f"INSERT INTO file ({FILE_COLUMNS}) VALUES ({', '.join('?' * len(FileRow._fields))})")
# The columns of a new row that is present and of which no others are known; then with its mtime.
PLAIN_INSERT = (
    "INSERT INTO file (id, folder, name, kind, ext, size, mtime_ns, ctime, ino, dev, algo,"
    " sample_size, sample_hash, flags, state, first_seen, changed, seq)"
    " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, 0, ?15, ?15, ?16)")
PLAIN_INSERT_MTIME = PLAIN_INSERT.replace("seq)", "seq, mtime)").replace("?16)", "?16, ?17)")
FILE_REPLACE = (
    f"UPDATE file SET {', '.join(f'{name} = ?' for name in FileRow._fields[1:])} WHERE id = ?")


class FileRecord(NamedTuple):
    """A checked record of a batch. `mtime` is None where `mtime_ns` gives it exactly, `key_text`
    where the numbers give it. `metadata` is None or (duration, container, video_codec,
    audio_codecs as JSON text, width, height, bitrate, streams_json). `folder` and `name` are the
    two parts of `path`; `digest` is only there for a plain record, which has nothing from
    `reason` to `error`, no key_text and no full_hash: the 8 bytes of its new row's `row_digest`.
    """

    index: int
    path: str
    kind: int
    ext: str
    size: int
    mtime_ns: int
    mtime: float | None
    ctime: float | None
    ino: int
    dev: int
    key_text: str | None
    algo: int | None
    sample_size: int | None
    sample_hash: bytes | None
    full_hash: bytes | None
    whole: int
    reason: str | None
    metadata: tuple | None
    moved_from: str | None
    error: tuple | None
    folder: str
    name: str
    digest: bytes | None


def ns_as_float(mtime_ns: int) -> float:
    """The float that Python's `stat` gives beside this number of nanoseconds."""
    seconds, rest = divmod(mtime_ns, NS_PER_S)
    return seconds + 1e-9 * rest


def clamped_ns(mtime: float) -> int:
    """A time for sorting and filtering, as near as 64 bits allow."""
    if not math.isfinite(mtime):
        return 0
    return max(-INT64_MAX, min(INT64_MAX, round(mtime * NS_PER_S)))


def signed_inode(ino: int) -> int:
    """A 64-bit inode number as SQLite's signed integer; larger ones keep their low bits."""
    ino &= INODE_MASK
    return ino - (1 << 64) if ino > INT64_MAX else ino


def signed_sum(digest: int) -> int:
    """A digest modulo 2**64 as SQLite's signed integer."""
    digest %= DIGEST_MODULUS
    return digest - DIGEST_MODULUS if digest > INT64_MAX else digest


def digest_hex(signed: int) -> str:
    """The form of a digest on the wire."""
    return f"{signed % DIGEST_MODULUS:016x}"


def row_inode_key(row) -> str:
    """The identity of a FileRow or FileRecord as it came over the wire."""
    if row.key_text is not None:
        return row.key_text
    return f"{row.size}:{row.mtime_ns}:{row.ino & INODE_MASK}:{row.dev}"


def row_mtime(row) -> float:
    return ns_as_float(row.mtime_ns) if row.mtime is None else row.mtime


def is_same_identity(row, record) -> bool:
    """Whether both are the same content version (see scan_common.same_version)."""
    if row.key_text is None and record.key_text is None:
        return (row.mtime_ns == record.mtime_ns and row.size == record.size
                and row.ino == record.ino)
    return same_version(row_inode_key(row), row_inode_key(record))


def full_hash_of(row) -> bytes | None:
    """The hash of all of the file's bytes, if it is known."""
    return row.sample_hash if row.flags & FLAG_WHOLE else row.full_hash


def digest_of_row(row, rel_folder: str) -> int:
    """scan_common.row_digest of a stored row."""
    sample, full = row.sample_hash, row.full_hash
    sample_hex = sample.hex() if sample else None
    full_hex = sample_hex if row.flags & FLAG_WHOLE else full.hex() if full else None
    return row_digest(
        f"{rel_folder}/{row.name}" if rel_folder else row.name, row_inode_key(row),
        KIND_NAMES[row.kind], ALGO_NAMES.get(row.algo), sample_hex, full_hex,
        row.flags & FLAG_PROBED,
    )


def hashes_as_json(row) -> dict | None:
    """The record's `hashes`, or None while the file has not been read."""
    if row.sample_hash is None:
        return None
    full = full_hash_of(row)
    return {
        "algo": ALGO_NAMES.get(row.algo), "sample_size": row.sample_size,
        "sample_hash": row.sample_hash.hex(), "full_hash": full.hex() if full else None,
    }


def duplicate_key_of(row) -> tuple | None:
    """(size, algo, sample_size, sample_hash, full_hash or None); None for what is never grouped."""
    if row.sample_hash is None or row.size == 0:
        return None
    return row.size, row.algo, row.sample_size, row.sample_hash, full_hash_of(row)


def folder_key_bytes(rel: str) -> bytes:
    """`folder.key` of a relative path: its byte order is the order of the walk."""
    return rel.replace("/", "\0").encode("utf-8")


def rel_of_key(key: bytes) -> str:
    return key.decode("utf-8").replace("\0", "/")


def algo_code(name: str) -> int:
    return ALGO_CODES[name]


# =================================================================================================
# medialib/catalog_roots.py, from its line 19
# The catalogue's agents, roots and folders: who reports what, and which row stands for it.
# =================================================================================================

ALIVE_S = 75.0  # an agent that was silent for longer is not running
FOLDER_CACHE = 20_000
ROOT_ROW_COLUMNS = (
    "id, agent, path, volume, volume_path, state, reason, implicit, transferred, files, bytes,"
    " missing, missing_bytes, digest, facts_json, scan_json, seq"
)


@dataclass
class CatalogRoot:
    """One row of `root`; `digest` is the signed sum of its present rows' digests."""

    id: int
    agent: int
    path: str
    volume: str | None
    volume_path: str | None
    state: str
    reason: str | None
    implicit: int
    transferred: int
    files: int
    bytes: int
    missing: int
    missing_bytes: int
    digest: int
    facts_json: str
    scan_json: str
    seq: int

    def prefix(self) -> str:
        """What the absolute paths below it begin with."""
        return self.path if self.path.endswith("/") else self.path + "/"

    def path_of(self, rel: str) -> str:
        return self.prefix() + rel if rel else self.path


@dataclass
class CatalogAgent:
    """What the writer needs of one row of `agent`."""

    id: int
    agent_id: str
    name: str
    last_rev: int


def read_root(db, root_id: int) -> CatalogRoot | None:
    row = db.execute(f"SELECT {ROOT_ROW_COLUMNS} FROM root WHERE id = ?", (root_id,)).fetchone()
    return CatalogRoot(*row) if row else None


def read_roots(db, agent: int | None = None) -> list:
    """All roots, or one agent's, by path."""
    where, values = ("WHERE agent = ?", (agent,)) if agent is not None else ("", ())
    rows = db.execute(f"SELECT {ROOT_ROW_COLUMNS} FROM root {where} ORDER BY path, id", values)
    return [CatalogRoot(*row) for row in rows]


class CatalogCounters:
    """The running numbers of one transaction: read at its begin, stored by `save`."""

    def __init__(self, db):
        self.db = db
        self.values = dict(db.execute("SELECT name, value FROM counter"))
        self._before = dict(self.values)

    def next(self, name: str) -> int:
        self.values[name] += 1
        return self.values[name]

    def take(self, name: str, count: int) -> int:
        """The first of `count` numbers that follow one another."""
        first = self.values[name] + 1
        self.values[name] += count
        return first

    def save(self) -> None:
        changed = [(value, name) for name, value in self.values.items()
                   if value != self._before[name]]
        self.db.executemany("UPDATE counter SET value = ? WHERE name = ?", changed)
        self._before = dict(self.values)


class WordBook:
    """Numbers of words for the writing thread. `forget` after a rollback."""

    def __init__(self):
        self._ids: dict = {}

    def id_of(self, db, text: str) -> int:
        number = self._ids.get(text)
        if number is None:
            row = db.execute("SELECT id FROM word WHERE text = ?", (text,)).fetchone()
            if row is None:
                number = db.execute("INSERT INTO word (text) VALUES (?)", (text,)).lastrowid
            else:
                number = row[0]
            if len(self._ids) > 50_000:
                self._ids.clear()
            self._ids[text] = number
        return number

    def forget(self) -> None:
        self._ids.clear()


class FolderBook:
    """Numbers of folders for the writing thread, making those that are new. It remembers the ones
    used lately; `forget` after a rollback.
    """

    def __init__(self):
        self._ids: collections.OrderedDict = collections.OrderedDict()
        self._parents: collections.OrderedDict = collections.OrderedDict()

    def forget(self) -> None:
        self._ids.clear()
        self._parents.clear()

    def find(self, db, root_id: int, rel: str) -> int | None:
        found = self._ids.get((root_id, rel))
        if found is None:
            row = db.execute("SELECT id FROM folder WHERE root = ? AND key = ?",
                             (root_id, folder_key_bytes(rel))).fetchone()
            if row is None:
                return None
            found = row[0]
            self._remember(root_id, rel, found)
        return found

    def _remember(self, root_id: int, rel: str, folder_id: int) -> None:
        if len(self._ids) >= FOLDER_CACHE:
            self._ids.popitem(last=False)
        self._ids[root_id, rel] = folder_id

    def make(self, db, counters: CatalogCounters, root_id: int, rel: str, searchable) -> tuple:
        """(id, made): the folder and those above it, made where they are not there yet."""
        found = self.find(db, root_id, rel)
        if found is not None:
            return found, False
        missing = [rel]
        parent_id = None
        while missing[-1]:
            parent = parent_of(missing[-1])
            parent_id = self.find(db, root_id, parent)
            if parent_id is not None:
                break
            missing.append(parent)
        for one in reversed(missing):
            folder_id = counters.next("folder")
            db.execute("INSERT INTO folder (id, root, parent, key) VALUES (?, ?, ?, ?)",
                       (folder_id, root_id, parent_id, folder_key_bytes(one)))
            searchable(folder_id, one)
            self._remember(root_id, one, folder_id)
            self._keep_parent(folder_id, parent_id)
            parent_id = folder_id
        return parent_id, True

    def _keep_parent(self, folder_id: int, parent_id: int | None) -> None:
        if len(self._parents) >= FOLDER_CACHE:
            self._parents.popitem(last=False)
        self._parents[folder_id] = parent_id

    def parent(self, db, folder_id: int) -> int | None:
        if folder_id in self._parents:
            return self._parents[folder_id]
        row = db.execute("SELECT parent FROM folder WHERE id = ?", (folder_id,)).fetchone()
        parent_id = row[0] if row else None
        self._keep_parent(folder_id, parent_id)
        return parent_id


# Agents

def find_agent(db, agent_id: str) -> CatalogAgent | None:
    row = db.execute("SELECT id, agent_id, name, last_rev FROM agent WHERE agent_id = ?",
                     (agent_id,)).fetchone()
    return CatalogAgent(*row) if row else None


def agent_row(db, agent_id: str, name: str, address: str | None, now: float) -> CatalogAgent:
    """The agent's row, made or brought up to date."""
    agent = find_agent(db, agent_id)
    if agent is None:
        number = db.execute(
            "INSERT INTO agent (agent_id, name, address, first_seen, last_seen)"
            " VALUES (?, ?, ?, ?, ?)", (agent_id, name, address, now, now)).lastrowid
        return CatalogAgent(number, agent_id, name, 0)
    if agent.name != name:
        db.execute("UPDATE agent SET name = ? WHERE id = ?", (name, agent.id))
        agent.name = name
    return agent


# Roots

def touch_root(db, counters: CatalogCounters, root: CatalogRoot, **values) -> bool:
    """Change columns of a root, if anything differs; the root then takes the next number."""
    values = {name: value for name, value in values.items() if getattr(root, name) != value}
    if not values:
        return False
    values["seq"] = counters.next("seq")
    columns = ", ".join(f"{name} = ?" for name in values)
    db.execute(f"UPDATE root SET {columns} WHERE id = ?", (*values.values(), root.id))
    for name, value in values.items():
        setattr(root, name, value)
    return True


def resolve_root(db, counters: CatalogCounters, agent: CatalogAgent, path: str,
                 volume: str | None, volume_path: str | None, *, is_alive,
                 held=None, told: bool = False, fsid: str | None = None,
                 fs: str | None = None) -> CatalogRoot:
    """The root row for what the agent says it has at `path`; made, renamed or moved as needed.

    `told` with a volume of None: the agent looked, and what is there has no lasting identity. It is
    not the volume that was there (a mount point without its disk shows what lies below).

    `is_alive(db, agent number, root) -> bool` tells whether another agent still holds that root.
    `held` is given for a root that is away: the numbers of the roots that are there. One of them
    may well be at the same path, and is neither taken for the one that is away nor displaced by it.
    `fsid` is how the volume was called where its UUID was not to be had, `fs` the type of the file
    system: with another type it is another disk than the one without a name that was there.
    """
    roots = read_roots(db, agent.id)
    if volume is None:
        same = [root for root in roots if root.path == path and root.id not in (held or ())]
        if told:
            same = [root for root in same if root.volume is None]
        # Where nothing is said about the volume, it is what was there last.
        same.sort(key=lambda root: (root.implicit, root.state == "offline", -root.seq))
        found = same[0] if same else _make_root(db, counters, agent, path, None, None)
        if told:
            _take_path(db, counters, roots, found, path, away=False)
        return found
    volume_path = volume_path or ""
    for name in (volume, fsid) if fsid else (volume,):
        for root in roots:
            if root.volume == name and (root.volume_path or "") == volume_path:
                touch_root(db, counters, root, volume=volume)
                if held is None or root.id not in held:
                    _take_path(db, counters, roots, root, path, away=held is not None)
                return root
    for root in roots:
        if (root.path == path and root.volume is None and not root.implicit
                and root.id not in (held or ())
                and (fs is None or root_facts(root).get("fs", fs) == fs)):
            touch_root(db, counters, root, volume=volume, volume_path=volume_path)
            return root
    found = None
    if held is None:
        found = _carried_root(db, counters, agent, volume, volume_path, fsid, is_alive)
    if found is None:
        found = _make_root(db, counters, agent, path, volume, volume_path)
    _take_path(db, counters, roots, found, path, away=held is not None)
    return found


def _make_root(db, counters, agent, path, volume, volume_path, implicit=0) -> CatalogRoot:
    number = db.execute(
        "INSERT INTO root (agent, path, volume, volume_path, implicit, seq) VALUES (?,?,?,?,?,?)",
        (agent.id, path, volume, volume_path, implicit, counters.next("seq"))).lastrowid
    return read_root(db, number)


def _take_path(db, counters, roots: list, root: CatalogRoot, path: str, *, away: bool) -> None:
    """`root` is at `path` now: whatever else was there has been unplugged, unless `root` itself is
    `away`.
    """
    if root.path != path:
        log.info("the disk of %s is now at %s", root.path, path)
        touch_root(db, counters, root, path=path)
    for other in [] if away else roots:
        if other.id != root.id and other.path == path and not other.implicit:
            touch_root(db, counters, other, state="offline",
                       reason="another disk is mounted in its place")


def _carried_root(db, counters, agent, volume, volume_path, fsid, is_alive) -> CatalogRoot | None:
    """The root of this volume that belonged to an agent which no longer holds it."""
    if CLONE_MARK in volume:  # a name that means something to one agent only
        return None
    rows = db.execute(f"SELECT {ROOT_ROW_COLUMNS} FROM root WHERE volume IN (?, ?) AND"
                      " coalesce(volume_path, '') = ? AND agent <> ? ORDER BY seq DESC",
                      (volume, fsid or volume, volume_path, agent.id)).fetchall()
    for root in (CatalogRoot(*row) for row in rows):
        if not is_alive(db, root.agent, root):
            log.info("the disk of %s was carried to %s", root.path, agent.name)
            touch_root(db, counters, root, agent=agent.id, transferred=1, state="online",
                       reason=None, volume=volume)
            return root
    return None


def holding_root(roots: list, path: str) -> CatalogRoot | None:
    """The longest of the roots that holds the path, online ones first."""
    holding = [root for root in roots if path.startswith(root.prefix())]
    return max(holding, default=None,
               key=lambda root: (len(root.path), root.state != "offline", root.seq))


def make_implicit_root(db, counters: CatalogCounters, agent: CatalogAgent,
                       path: str) -> CatalogRoot:
    """The root for records that name none and lie in no root of their agent: the whole machine,
    "/" or the drive.
    """
    whole = "/" if path.startswith("/") else path[:3]
    return _make_root(db, counters, agent, whole, None, None, implicit=1)


def locate_path(db, agent: CatalogAgent, path: str) -> list:
    """[(root, relative path)] of the agent's roots that hold an absolute path, best first."""
    roots = [root for root in read_roots(db, agent.id) if path.startswith(root.prefix())]
    roots.sort(key=lambda root: (-len(root.path), root.state == "offline", -root.seq))
    return [(root, path[len(root.prefix()):]) for root in roots]


def root_facts(root: CatalogRoot) -> dict:
    """What the agent last said of the root: label, fs, rotational, total_bytes, free_bytes."""
    return json.loads(root.facts_json)


# =================================================================================================
# medialib/catalog_tallies.py, from its line 21
# Every number that is shown moves with its rows: the differences one transaction makes.
# =================================================================================================

WEEK_NS = 7 * 86400 * NS_PER_S


class MetaRow(NamedTuple):
    """One row of `metadata`; texts are numbers of words."""

    file: int
    duration: float | None
    container: int | None
    video_codec: int | None
    audio_codecs: int | None
    width: int | None
    height: int | None
    bitrate: int | None


META_COLUMNS = ", ".join(MetaRow._fields)


def read_meta(db, file_id: int) -> MetaRow | None:
    row = db.execute(f"SELECT {META_COLUMNS} FROM metadata WHERE file = ?", (file_id,)).fetchone()
    return MetaRow(*row) if row else None


def resolution_bound(width: int | None, height: int | None) -> int | None:
    """The lower bound of a video's resolution class; None where its height is not known."""
    if height is None:
        return None
    lines = max(height, (width or 0) * 9 // 16)
    return next(bound for bound, _ in RESOLUTION_CLASSES if lines >= bound)


class TallyChanges:
    """Collects what rows were added and taken away; `save` writes the sums once."""

    def __init__(self, db):
        self.db = db
        self.tally: dict = collections.defaultdict(lambda: [0, 0])
        self.facet: dict = collections.defaultdict(lambda: [0, 0])
        self.folder: dict = collections.defaultdict(lambda: [0, 0])
        self.roots: dict = {}
        # The duplicate keys (see duplicate_key_of) of rows that came and of rows that went.
        self.joined: set = set()
        self.left: set = set()
        self.taken = False  # whether any row that was there has changed or gone
        # Plain new files: the lowest of their row numbers, their records, and sizes to be added.
        self.first_new: int | None = None
        self.new: list = []
        self.sizes: dict = {}

    def add(self, row: FileRow, root: CatalogRoot, rel_folder: str, meta: MetaRow | None) -> None:
        self._count(row, root, rel_folder, meta, 1)

    def add_new(self, root: CatalogRoot, first: int, records: list) -> None:
        """`add` for the plain new files with row numbers from `first` on: root and duplicates.
        Their other sums come by `new_sums`.
        """
        self.roots[root.id] = root
        root.files += len(records)
        root.bytes += sum([record.size for record in records])
        digests = struct.unpack(f">{len(records)}Q", b"".join([one.digest for one in records]))
        root.digest = signed_sum(root.digest + sum(digests))
        self.first_new = min(first, self.first_new or first)
        self.new += [one for one in records if one.size]

    def new_sums(self, root: CatalogRoot) -> dict:
        """Takes the sizes of plain new files: {(folder, kind, ext, week): [size]}."""
        return self.sizes.setdefault(root.id, collections.defaultdict(list))

    def _count_new(self) -> None:
        for root_id, alike in self.sizes.items():
            for (folder, kind, ext, week), sizes in alike.items():
                files, size = len(sizes), sum(sizes)
                for entry in (self.tally[root_id, kind, ext, 0, STATE_PRESENT],
                              self.facet[root_id, STATE_PRESENT, FACET_WEEK, week],
                              self.folder[folder]):
                    entry[0] += files
                    entry[1] += size
        self.sizes.clear()

    def take(self, row: FileRow, root: CatalogRoot, rel_folder: str, meta: MetaRow | None) -> None:
        self.taken = True
        self._count(row, root, rel_folder, meta, -1)

    def _count(self, row, root, rel_folder, meta, sign) -> None:
        # Every row that is written comes through here: the two sums that all have, and the rest.
        state, size = row.state, sign * row.size
        root_id = root.id
        entry = self.tally[root_id, row.kind, row.ext, row.reason or 0, state]
        entry[0] += sign
        entry[1] += size
        entry = self.facet[root_id, state, FACET_WEEK, row.mtime_ns // WEEK_NS]
        entry[0] += sign
        entry[1] += size
        if meta is not None:
            for entry in self._meta_entries(row, root, meta):
                entry[0] += sign
                entry[1] += size
        self.roots[root_id] = root
        if state != STATE_PRESENT:
            root.missing += sign
            root.missing_bytes += size
            return
        entry = self.folder[row.folder]
        entry[0] += sign
        entry[1] += size
        root.files += sign
        root.bytes += size
        root.digest = signed_sum(root.digest + sign * digest_of_row(row, rel_folder))
        key = duplicate_key_of(row)
        if key is not None:
            (self.joined if sign > 0 else self.left).add(key)

    def _meta_entries(self, row, root, meta) -> list:
        values = (
            (FACET_VIDEO_CODEC, meta.video_codec), (FACET_CONTAINER, meta.container),
            (FACET_RESOLUTION, resolution_bound(meta.width, meta.height)),
            (FACET_AUDIO_CODEC, meta.audio_codecs),
        )
        return [self.facet[root.id, row.state, field, value]
                for field, value in values if value is not None]

    def save(self, folders) -> None:
        """Write all sums. `folders` is the FolderBook, for the folders above."""
        self._count_new()
        self._save_sums("tally", "root, kind, ext, reason, state", self.tally)
        self._save_sums("facet", "root, state, field, value", self.facet)
        self._save_folders(folders)
        self.db.executemany(
            "UPDATE root SET files = ?, bytes = ?, missing = ?, missing_bytes = ?, digest = ?"
            " WHERE id = ?",
            [(root.files, root.bytes, root.missing, root.missing_bytes, root.digest, root.id)
             for root in self.roots.values()])

    def _save_sums(self, table: str, keys: str, sums: dict) -> None:
        changed = [(*key, files, size) for key, (files, size) in sums.items() if files or size]
        if not changed:
            return
        marks = ", ".join("?" * len(changed[0]))
        self.db.executemany(
            f"INSERT INTO {table} ({keys}, files, bytes) VALUES ({marks}) ON CONFLICT ({keys})"
            " DO UPDATE SET files = files + excluded.files, bytes = bytes + excluded.bytes",
            changed)
        self._drop_empty(table, keys, changed)

    def _drop_empty(self, table: str, keys: str, changed: list) -> None:
        where = " AND ".join(f"{key} = ?" for key in keys.split(", "))
        self.db.executemany(f"DELETE FROM {table} WHERE {where} AND files = 0",
                            [entry[:-2] for entry in changed if entry[-2] < 0])

    def _save_folders(self, folders) -> None:
        own = {key: value for key, value in self.folder.items() if value[0] or value[1]}
        trees: dict = collections.defaultdict(lambda: [0, 0])
        for folder_id, (files, size) in own.items():
            above = folder_id
            while above is not None:
                entry = trees[above]
                entry[0] += files
                entry[1] += size
                above = folders.parent(self.db, above)
        self.db.executemany(
            "UPDATE folder SET files = files + ?, bytes = bytes + ? WHERE id = ?",
            [(files, size, folder_id) for folder_id, (files, size) in own.items()])
        self.db.executemany(
            "UPDATE folder SET tree_files = tree_files + ?, tree_bytes = tree_bytes + ?"
            " WHERE id = ?",
            [(files, size, folder_id) for folder_id, (files, size) in trees.items()])


# =================================================================================================
# medialib/catalog_facts.py, from its line 14
# What is known of a file beside its stamps: hashes, ffprobe's answer, what could not be done; and
# =================================================================================================

class FactTables:
    """The tables `metadata`, `streams` and `file_error` of one transaction."""

    def __init__(self, db, words):
        self.db = db
        self.words = words

    # -- ffprobe's answer ------------------------------------------------------------------------

    def merged_meta(self, row: FileRow, record: FileRecord, old: MetaRow | None,
                    same: bool) -> MetaRow | None:
        """What the row has once the record is applied; `same`: it is the same content version."""
        if record.metadata is not None:
            return self._meta_of(row.id, record.metadata)
        return old if same else None

    def _meta_of(self, file_id: int, metadata: tuple) -> MetaRow:
        duration, container, video_codec, audio_codecs, width, height, bitrate, _ = metadata
        return MetaRow(file_id, duration, self._word_or_none(container),
                       self._word_or_none(video_codec), self._word_or_none(audio_codecs),
                       width, height, bitrate)

    def _word_or_none(self, text: str | None) -> int | None:
        return None if text is None else self.words.id_of(self.db, text)

    def put_meta(self, file_id: int, metadata: tuple) -> MetaRow:
        meta = self._meta_of(file_id, metadata)
        self.db.execute("INSERT OR REPLACE INTO metadata VALUES (?,?,?,?,?,?,?,?)", meta)
        if metadata[7] is None:
            self.db.execute("DELETE FROM streams WHERE file = ?", (file_id,))
        else:
            self.db.execute("INSERT OR REPLACE INTO streams VALUES (?, ?)",
                            (file_id, zlib.compress(metadata[7].encode("utf-8"), 6)))
        return meta

    def drop_meta(self, file_id: int) -> None:
        self.db.execute("DELETE FROM metadata WHERE file = ?", (file_id,))
        self.db.execute("DELETE FROM streams WHERE file = ?", (file_id,))

    def streams_differ(self, row: FileRow, record: FileRecord, old: MetaRow | None,
                       new: MetaRow | None) -> bool:
        """Whether only the streams, which MetaRow does not hold, are other ones."""
        if record.metadata is None or old is None or new != old:
            return False
        packed = self.db.execute("SELECT packed FROM streams WHERE file = ?", (row.id,)).fetchone()
        stored = zlib.decompress(packed[0]).decode("utf-8") if packed else None
        return stored != record.metadata[7]

    # -- what could not be done ------------------------------------------------------------------

    def error_differs(self, row: FileRow, record: FileRecord) -> bool:
        if not row.flags & FLAG_ERROR:
            return record.error is not None
        stored = self.db.execute("SELECT stage, class, message FROM file_error WHERE file = ?",
                                 (row.id,)).fetchone()
        return stored != record.error

    def put_error(self, file_id: int, error: tuple) -> None:
        self.db.execute("INSERT OR REPLACE INTO file_error VALUES (?,?,?,?)", (file_id, *error))

    def update_error(self, row: FileRow, record: FileRecord) -> None:
        if record.error:
            self.put_error(row.id, record.error)
        elif row.flags & FLAG_ERROR:
            self.db.execute("DELETE FROM file_error WHERE file = ?", (row.id,))


def keeps_facts(row: FileRow, record: FileRecord) -> bool:
    """Whether what is known of the row is still true of the record's file. An equal identity with
    another hash by the same recipe is other content: its stamp was put back after an edit.
    """
    if not is_same_identity(row, record):
        return False
    if record.sample_hash is None or row.sample_hash is None or row.algo != record.algo:
        return True
    if row.sample_size == record.sample_size and row.sample_hash != record.sample_hash:
        return False
    return not (row.full_hash and record.full_hash and row.full_hash != record.full_hash)


def merged_facts(row: FileRow, record: FileRecord, same: bool) -> tuple:
    """((algo, sample_size, sample_hash, full_hash), flags) after the record was applied. A record
    that merely lacks a hash erases nothing of the same version.
    """
    brought = (record.algo, record.sample_size, record.sample_hash, record.full_hash)
    if not same:
        return brought, record.whole
    if record.sample_hash is None:
        return row[12:16], row.flags & FLAG_WHOLE
    alike = (row.algo, row.sample_size, row.sample_hash) == brought[:3]
    if alike and record.full_hash is None and not record.whole:
        return row[12:16], row.flags & FLAG_WHOLE
    return brought, record.whole


# =================================================================================================
# medialib/catalog_apply.py, from its line 25
# One batch onto the catalogue: new, changed, moved and removed files, and every sum that moves.
# =================================================================================================

LOOKUP_SIZES = (1, 4, 16, 64, 256)  # few different statements, so that they stay prepared


class FileBatch:
    """Applies checked records and removals of one agent to one root, in one transaction.

    `tools` are the writing thread's books: `.words`, `.folders`, `.search`.
    """

    def __init__(self, db, tools, counters: CatalogCounters, agent, now: float):
        self.db = db
        self.tools = tools
        self.counters = counters
        self.agent = agent
        self.now = int(now)
        self.changes = TallyChanges(db)
        self.facts = FactTables(db, tools.words)
        self.rels: dict = {}  # folder id → relative path
        self.roots: dict = {}  # root id → CatalogRoot, one object per row
        self.folder_roots: dict = {}  # folder id → root id
        self.fresh: set = set()  # folders made for this run of records: nothing can be in them

    # -- records ---------------------------------------------------------------------------------

    def upsert(self, root: CatalogRoot, records: list) -> None:
        """Apply records of one root. A path that comes twice is applied twice, in order."""
        root = self.roots.setdefault(root.id, root)
        if len({record.path for record in records}) == len(records):
            self._apply_run(root, records)
            return
        run, seen = [], set()
        for record in records:
            if record.path in seen:
                self._apply_run(root, run)
                run, seen = [], set()
            seen.add(record.path)
            run.append(record)
        self._apply_run(root, run)

    def _apply_run(self, root: CatalogRoot, records: list) -> None:
        if not records:
            return
        places = self._places(root, records)
        present = self._present_rows(places)
        if any(record.moved_from for record in records):
            pairs = self._assign_with_moves(root, records, places, present)
        elif not present and not root.missing:  # as all through a first scan
            pairs = [(record, place, None) for record, place in zip(records, places)]
        else:
            pairs = [(record, place, present.get(place) or self._missing_row(root, place, record))
                     for record, place in zip(records, places)]
        self._write_pairs(root, pairs)
        self.fresh.clear()

    def _places(self, root: CatalogRoot, records: list) -> list:
        """[(folder id, name)] of the records, making folders that are new."""
        start, places, known = len(root.prefix()), [], {}
        for record in records:
            folder = record.folder
            folder_id = known.get(folder)
            if folder_id is None:
                folder_id = known[folder] = self._folder(root, folder[start:])
            places.append((folder_id, record.name))
        return places

    def _folder(self, root: CatalogRoot, rel: str) -> int:
        folder_id, made = self.tools.folders.make(
            self.db, self.counters, root.id, rel, self._searchable_folder)
        if made:
            self.fresh.add(folder_id)
        self.rels[folder_id] = rel
        self.folder_roots[folder_id] = root.id
        return folder_id

    def _searchable_folder(self, folder_id: int, rel: str) -> None:
        self.tools.search.add_folder(self.db, folder_id, rel)

    def _present_rows(self, places: list) -> dict:
        """{(folder id, name): FileRow} of those that are there."""
        by_folder: dict = {}
        for folder_id, name in places:
            if folder_id not in self.fresh:
                by_folder.setdefault(folder_id, []).append(name)
        found = {}
        for folder_id, names in by_folder.items():
            for row in self._rows_named(folder_id, names):
                found[folder_id, row.name] = row
        return found

    def _rows_named(self, folder_id: int, names: list):
        start = 0
        while start < len(names):
            left = len(names) - start
            count = next((size for size in LOOKUP_SIZES if size >= left), LOOKUP_SIZES[-1])
            part = names[start:start + count]
            start += count
            part += [part[0]] * (count - len(part))
            marks = ",".join("?" * count)
            rows = self.db.execute(
                f"SELECT {FILE_COLUMNS} FROM file INDEXED BY file_path"
                f" WHERE folder = ? AND name IN ({marks}) AND state = 0", (folder_id, *part))
            for row in rows.fetchall():
                yield tuple.__new__(FileRow, row)

    def _missing_row(self, root: CatalogRoot, place: tuple, record: FileRecord,
                     taken=()) -> FileRow | None:
        """The missing row that this record revives: the same version, else the newest."""
        if not root.missing or place[0] in self.fresh:
            return None
        rows = [row for row in self._missing_at(place) if row.id not in taken]
        same = [row for row in rows if is_same_identity(row, record)]
        return (same or rows or [None])[0]

    def _missing_at(self, place: tuple) -> list:
        rows = self.db.execute(
            f"SELECT {FILE_COLUMNS} FROM file INDEXED BY file_missing"
            " WHERE folder = ? AND name = ? AND state = 1 ORDER BY seq DESC LIMIT 100", place)
        return [FileRow(*row) for row in rows.fetchall()]

    # -- moves -----------------------------------------------------------------------------------

    def _assign_with_moves(self, root, records, places, present) -> list:
        """[(record, place, row or None)] where every row is given to one record at most. What a
        move lands on becomes missing, unless it has moved away itself.
        """
        steady = {record.path for record, place in zip(records, places)
                  if place in present and is_same_identity(present[place], record)}
        given: dict = {}
        for record, place in zip(records, places):
            if record.moved_from and record.path not in steady and record.moved_from not in steady:
                row = self._moved_row(record, given)
                if row is not None:
                    given[row.id] = (record, place, row)
        movers = {record.path: (record, place, row) for record, place, row in given.values()}
        taken = set(given)
        pairs = []
        for record, place in zip(records, places):
            own = present.get(place)
            if record.path in movers:
                pairs.append(movers[record.path])
                continue
            if own is None or own.id in given:
                own = self._missing_row(root, place, record, taken)
            if own is not None:
                taken.add(own.id)
            pairs.append((record, place, own))
        self._make_way(movers.values(), present, taken)
        return pairs

    def _moved_row(self, record: FileRecord, given: dict) -> FileRow | None:
        """The row that lay at `moved_from`: the same version, present or missing."""
        for root, rel in locate_path(self.db, self.agent, record.moved_from):
            cut = rel.rfind("/")
            folder_id = self.tools.folders.find(self.db, root.id, rel[:cut] if cut > 0 else "")
            if folder_id is None:
                continue
            place = (folder_id, rel[cut + 1:])
            rows = [*self._rows_named(folder_id, [place[1]]), *self._missing_at(place)]
            for row in rows:
                if row.id not in given and is_same_identity(row, record):
                    return row
        return None

    def _make_way(self, movers, present: dict, taken: set) -> None:
        """Free the places that moves land on and the places they leave."""
        for _, place, row in movers:
            self.db.execute("UPDATE file SET state = 1 WHERE id = ?", (row.id,))
            own = present.get(place)
            if own is not None and own.id not in taken:
                self._set_missing(own)

    # -- writing ---------------------------------------------------------------------------------

    def _write_pairs(self, root: CatalogRoot, pairs: list) -> None:
        plain, inserts = [], []
        for record, place, row in pairs:
            if row is not None:
                self._change_row(root, record, place, row)
            elif record.digest is not None:
                plain.append((record, place))
            else:
                inserts.append(self._new_row(root, record, place))
        self.db.executemany(FILE_INSERT, inserts)
        if plain:
            self._write_plain(root, plain)

    def _write_plain(self, root: CatalogRoot, plain: list) -> None:
        """New files of which nothing is known but kind, stamps and sample hash: most of all rows.
        Neither None nor bytes are bound: Python's sqlite3 searches for an adapter for each of them.
        """
        number = self.counters.take("file", len(plain))
        seq = self.counters.take("seq", len(plain))
        self.changes.add_new(root, number, [record for record, _ in plain])
        exact, inexact, sums = [], [], self.changes.new_sums(root)
        now, ext, ext_number = self.now, None, 0
        for record, (folder, name) in plain:
            if record[3] != ext:
                ext = record[3]
                ext_number = self.tools.words.id_of(self.db, ext)
            kind, size, mtime_ns, mtime = record[2], record[4], record[5], record[6]
            sums[folder, kind, ext_number, mtime_ns // WEEK_NS].append(size)
            row = (number, folder, name, kind, ext_number, size, mtime_ns, record[7], record[8],
                   record[9], record[11], record[12], bytearray(record[13]), record[15], now, seq)
            if mtime is None:
                exact.append(row)
            else:
                inexact.append((*row, mtime))
            number += 1
            seq += 1
        self.db.executemany(PLAIN_INSERT, exact)
        self.db.executemany(PLAIN_INSERT_MTIME, inexact)

    def _new_row(self, root: CatalogRoot, record: FileRecord, place: tuple) -> FileRow:
        words, db, flags = self.tools.words, self.db, record.whole
        if record.metadata:
            flags |= FLAG_PROBED
        if record.error:
            flags |= FLAG_ERROR
        # `record[4:15]` are the columns from size to full_hash, which both have in this order.
        row = tuple.__new__(FileRow, (
            self.counters.next("file"), *place, record.kind, words.id_of(db, record.ext),
            *record[4:15], flags, STATE_PRESENT,
            words.id_of(db, record.reason) if record.reason else None,
            self.now, self.now, self.counters.next("seq")))
        meta = self.facts.put_meta(row.id, record.metadata) if record.metadata else None
        if record.error:
            self.facts.put_error(row.id, record.error)
        self.changes.add(row, root, self.rels[place[0]], meta)
        return row

    def _change_row(self, root, record: FileRecord, place: tuple, row: FileRow) -> None:
        """Write the row as the record says, if that differs from what is there."""
        if self._says_nothing_new(record, place, row):
            return
        words, db = self.tools.words, self.db
        same = keeps_facts(row, record)
        hashes, flags = merged_facts(row, record, same)
        old_meta = read_meta(db, row.id) if row.flags & FLAG_PROBED else None
        new_meta = self.facts.merged_meta(row, record, old_meta, same)
        flags |= FLAG_PROBED if new_meta is not None else 0
        flags |= FLAG_ERROR if record.error else 0
        new = row._replace(
            folder=place[0], name=place[1], kind=record.kind, ext=words.id_of(db, record.ext),
            size=record.size, mtime_ns=record.mtime_ns, mtime=record.mtime, ctime=record.ctime,
            ino=record.ino, dev=record.dev, key_text=record.key_text, algo=hashes[0],
            sample_size=hashes[1], sample_hash=hashes[2], full_hash=hashes[3], flags=flags,
            state=STATE_PRESENT,
            reason=words.id_of(db, record.reason) if record.reason else None)
        told = self.facts.streams_differ(row, record, old_meta, new_meta)
        failed = self.facts.error_differs(row, record)
        if new == row and new_meta == old_meta and not told and not failed:
            return
        new = new._replace(changed=self.now, seq=self.counters.next("seq"))
        self._take_row(row, old_meta)
        if new_meta is None and old_meta is not None:
            self.facts.drop_meta(row.id)
        elif new_meta is not None and (new_meta != old_meta or told):
            new_meta = self.facts.put_meta(row.id, record.metadata)
        self.facts.update_error(row, record)
        self.changes.add(new, root, self.rels[place[0]], new_meta)
        self._update_row(row, new)
        if (new.name, new.folder) != (row.name, row.folder):
            self.tools.search.rename_file(db, self.counters, row.id, row.name, new.name)

    def _says_nothing_new(self, record: FileRecord, place: tuple, row: FileRow) -> bool:
        """Whether the record repeats the row word for word, as older agents do all day. Only plain
        rows are told so; the others are compared in full.
        """
        return (row[5:16] == record[4:15] and row.kind == record.kind and row[1:3] == place
                and row.state == STATE_PRESENT and row.flags & ~FLAG_PROBED == record.whole
                and record.metadata is record.error is record.reason is row.reason is None
                and row.ext == self.tools.words.id_of(self.db, record.ext))

    def _update_row(self, old: FileRow, new: FileRow) -> None:
        """The narrowest statement that does it: each index named costs its entry twice."""
        tail = (new.flags, new.changed, new.seq, new.id)
        if new[:12] == old[:12] and (new.state, new.reason) == (old.state, old.reason):
            if new[12:16] == old[12:16]:
                self.db.execute("UPDATE file SET flags=?, changed=?, seq=? WHERE id=?", tail)
            else:
                self.db.execute(
                    "UPDATE file SET algo=?, sample_size=?, sample_hash=?, full_hash=?, flags=?,"
                    " changed=?, seq=? WHERE id=?", (*new[12:16], *tail))
        else:
            self.db.execute(FILE_REPLACE, (*new[1:], new.id))

    def _take_row(self, row: FileRow, meta: MetaRow | None) -> None:
        self.changes.take(row, self._root_of(row.folder), self._rel(row.folder), meta)

    def _rel(self, folder_id: int) -> str:
        if folder_id not in self.rels:
            root_id, key = self.db.execute("SELECT root, key FROM folder WHERE id = ?",
                                           (folder_id,)).fetchone()
            self.rels[folder_id] = rel_of_key(key)
            self.folder_roots[folder_id] = root_id
        return self.rels[folder_id]

    def _root_of(self, folder_id: int) -> CatalogRoot:
        self._rel(folder_id)
        return self.roots[self.folder_roots[folder_id]] if (
            self.folder_roots[folder_id] in self.roots) else self._load_root(folder_id)

    def _load_root(self, folder_id: int) -> CatalogRoot:
        root_id = self.folder_roots[folder_id]
        root = self.tools.read_root(self.db, root_id)
        self.roots[root_id] = root
        return root

    # -- removals --------------------------------------------------------------------------------

    def remove(self, root: CatalogRoot, paths: list) -> int:
        """The files at these paths are gone: they become missing, their facts stay."""
        root = self.roots.setdefault(root.id, root)
        start, by_folder = len(root.prefix()), {}
        for path in paths:
            folder_rel, _, name = path[start:].rpartition("/")
            by_folder.setdefault(folder_rel, []).append(name)
        count = 0
        for folder_rel, names in by_folder.items():
            folder_id = self.tools.folders.find(self.db, root.id, folder_rel)
            if folder_id is None:
                continue
            self._rel(folder_id)
            for row in list(self._rows_named(folder_id, list(dict.fromkeys(names)))):
                self._set_missing(row)
                count += 1
        return count

    def _set_missing(self, row: FileRow) -> None:
        meta = read_meta(self.db, row.id) if row.flags & FLAG_PROBED else None
        self._take_row(row, meta)
        new = row._replace(state=STATE_MISSING, changed=self.now, seq=self.counters.next("seq"))
        self.changes.add(new, self._root_of(row.folder), self._rel(row.folder), meta)
        self.db.execute("UPDATE file SET state = 1, changed = ?, seq = ? WHERE id = ?",
                        (new.changed, new.seq, new.id))


# =================================================================================================
# medialib/catalog_duplicates.py, from its line 21
# Duplicate groups, kept up to date with the rows they are made of.
# =================================================================================================

DUPLICATE_CHUNK = 256
DUPLICATE_LARGE = 2000  # groups with more files are counted again only when there is time
MEMBER_SQL = (
    "SELECT f.id, f.size, f.algo, f.sample_size, f.sample_hash, f.full_hash, f.flags, f.ino, f.dev,"
    " r.agent, r.volume FROM file f JOIN folder d ON d.id = f.folder JOIN root r ON r.id = d.root"
    " WHERE f.state = 0 AND f.size > 0 AND substr(f.{column}, 1, {prefix}) IN ({marks})"
    " AND f.{column} IS NOT NULL"
)


class DuplicateMember(collections.namedtuple(
        "DuplicateMember", "id size algo sample_size sample_hash full_hash flags ino dev agent"
                           " volume")):
    """A present file with a sample hash, and where its bytes are."""

    __slots__ = ()

    def full(self) -> bytes | None:
        return self.sample_hash if self.flags & FLAG_WHOLE else self.full_hash

    def copy_key(self) -> tuple:
        """Equal for two paths of the same bytes on the same disk."""
        if not self.ino:
            return ("file", self.id)  # no inode is known: each path is taken for a copy
        if self.volume is not None:
            return ("volume", self.volume, self.ino)
        return ("agent", self.agent, self.dev, self.ino)


def update_duplicates(db, joined: set, left: set) -> None:
    """Count the groups again that rows with these keys (see duplicate_key_of) have joined or left.
    """
    _count_again(db, left | _shared_keys(db, joined - left))


def update_duplicates_of_new(db, first: int, records: list) -> None:
    """Count the groups that plain new files have joined; no row before number `first` is new."""
    _count_again(db, _shared_keys_of_new(db, first, records))


def _count_again(db, keys: set) -> None:
    keys = _postpone_large(db, keys) if keys else keys
    if not keys:
        return
    samples = {key[:4] for key in keys}
    fulls = {(key[0], key[1], key[4]) for key in keys if key[4] is not None}
    hashes = sorted({key[3] for key in keys} | {key[2] for key in fulls})
    members = _members_sharing(db, hashes)
    wanted = candidate_groups(members, samples)
    wanted.update(confirmed_groups(members, fulls))
    _store_groups(db, hashes, samples, fulls, wanted)


def _postpone_large(db, keys: set) -> set:
    """Without the keys of very large groups, which are put on the list of what is due."""
    large = set(db.execute("SELECT hash, size, algo FROM duplicate INDEXED BY duplicate_large"
                           f" WHERE files > {DUPLICATE_LARGE} ORDER BY files DESC LIMIT 1000"))
    if not large:
        return keys
    later = set()
    for key in keys:
        groups = [(hash_, key[0], key[1]) for hash_ in {key[3], key[4]} - {None}]
        if not large.isdisjoint(groups):
            later.add(key)
            db.executemany("INSERT OR IGNORE INTO duplicate_due VALUES (?, ?, ?)", groups)
    return keys - later


def _in_chunks(values: list):
    for start in range(0, len(values), DUPLICATE_CHUNK):
        yield values[start:start + DUPLICATE_CHUNK]


def _shared_keys(db, keys: set) -> set:
    """The keys that another file may have as well. Most hashes are nobody else's: the two indexes
    alone tell, and no row need be fetched.
    """
    prefixes = {hash_[:HASH_PREFIX_BYTES] for key in keys for hash_ in key[3:] if hash_}
    counts: collections.Counter = collections.Counter()
    for part in _in_chunks(list(prefixes)):
        for column in ("sample_hash", "full_hash"):
            prefix = f"substr({column}, 1, {HASH_PREFIX_BYTES})"
            counts.update([row[0] for row in db.execute(
                f"SELECT {prefix} FROM file WHERE {prefix} IN ({','.join('?' * len(part))})"
                f" AND {column} IS NOT NULL", part)])
    shared = {prefix for prefix, count in counts.items() if count > 1}
    return {key for key in keys if shared and not shared.isdisjoint(
        hash_[:HASH_PREFIX_BYTES] for hash_ in key[3:] if hash_)}


def _shared_keys_of_new(db, first: int, records: list) -> set:
    """The keys of new files that another file may have as well: one of them, or one before row
    `first`, of which the indexes mostly say without fetching anything that there is none. (Bytes
    are bound as bytearrays: Python's sqlite3 searches for an adapter for each that it does not.)
    """
    prefixes = [record.sample_hash[:HASH_PREFIX_BYTES] for record in records]
    distinct, shared = set(prefixes), set()
    if len(distinct) < len(prefixes):
        shared = {one for one, count in collections.Counter(prefixes).items() if count > 1}
    for part in _in_chunks(list(distinct)):
        for column in ("sample_hash", "full_hash"):
            prefix = f"substr({column}, 1, {HASH_PREFIX_BYTES})"
            shared.update(row[0] for row in db.execute(
                f"SELECT {prefix} FROM file WHERE {prefix} IN ({','.join('?' * len(part))})"
                f" AND {column} IS NOT NULL AND id < ?", (*map(bytearray, part), first)))
    if not shared:
        return set()
    return {(one.size, one.algo, one.sample_size, one.sample_hash,
             one.sample_hash if one.whole else None)
            for one, prefix in zip(records, prefixes) if prefix in shared}


def _members_sharing(db, hashes: list) -> list:
    """All present files with one of these as sample or full hash (some only share a prefix)."""
    found: dict = {}
    prefixes = sorted({one[:HASH_PREFIX_BYTES] for one in hashes})
    for part in _in_chunks(prefixes):
        for column in ("sample_hash", "full_hash"):
            sql = MEMBER_SQL.format(column=column, prefix=HASH_PREFIX_BYTES,
                                    marks=",".join("?" * len(part)))
            for row in db.execute(sql, part):
                found[row[0]] = DuplicateMember(*row)
    return list(found.values())


def candidate_groups(members: list, samples: set) -> dict:
    """{(hash, state, size, algo, sample_size): (copies, files)} of the sample hashes asked for."""
    by_sample: dict = {}
    for member in members:
        key = (member.size, member.algo, member.sample_size, member.sample_hash)
        if key in samples:
            by_sample.setdefault(key, []).append(member)
    groups = {}
    for (size, algo, sample_size, sample), some in by_sample.items():
        copies = len({member.copy_key() for member in some})
        if copies > 1 and any(member.full() is None for member in some):
            groups[sample, GROUP_CANDIDATE, size, algo, sample_size] = (copies, len(some))
    return groups


def confirmed_groups(members: list, fulls: set) -> dict:
    """The same of the full hashes asked for; their sample size does not matter and is 0."""
    by_full: dict = {}
    for member in members:
        key = (member.size, member.algo, member.full())
        if key in fulls:
            by_full.setdefault(key, []).append(member)
    groups = {}
    for (size, algo, full), some in by_full.items():
        copies = len({member.copy_key() for member in some})
        if copies > 1:
            groups[full, GROUP_CONFIRMED, size, algo, 0] = (copies, len(some))
    return groups


def _store_groups(db, hashes: list, samples: set, fulls: set, wanted: dict) -> None:
    stored = _stored_groups(db, hashes, samples, fulls)
    for key in stored.keys() - wanted.keys():
        _drop_group(db, key, stored[key])
    for key, (copies, files) in wanted.items():
        old = stored.get(key)
        if old is None or old[1:3] != (copies, files):
            _put_group(db, key, copies, files, old)


def _stored_groups(db, hashes: list, samples: set, fulls: set) -> dict:
    """{key: (id, copies, files, reclaimable, potential)} of the groups asked for."""
    stored = {}
    for part in _in_chunks(hashes):
        rows = db.execute(
            "SELECT hash, state, size, algo, sample_size, id, copies, files, reclaimable, potential"
            f" FROM duplicate WHERE hash IN ({','.join('?' * len(part))})", part)
        for row in rows:
            hash_, state, size, algo, sample_size = row[:5]
            asked = ((size, algo, hash_) in fulls if state == GROUP_CONFIRMED
                     else (size, algo, sample_size, hash_) in samples)
            if asked:
                stored[row[:5]] = row[5:]
    return stored


def _put_group(db, key: tuple, copies: int, files: int, old: tuple | None) -> None:
    hash_, state, size, algo, sample_size = key
    gain = size * (copies - 1)
    reclaimable, potential = (gain, 0) if state == GROUP_CONFIRMED else (0, gain)
    if old is not None:
        _add_total(db, state, -1, -old[2], -old[3], -old[4])
        db.execute("UPDATE duplicate SET copies=?, files=?, reclaimable=?, potential=? WHERE id=?",
                   (copies, files, reclaimable, potential, old[0]))
    else:
        db.execute("INSERT INTO duplicate (hash, state, size, algo, sample_size, copies, files,"
                   " reclaimable, potential) VALUES (?,?,?,?,?,?,?,?,?)",
                   (hash_, state, size, algo, sample_size, copies, files, reclaimable, potential))
    _add_total(db, state, 1, files, reclaimable, potential)


def _drop_group(db, key: tuple, old: tuple) -> None:
    _add_total(db, key[1], -1, -old[2], -old[3], -old[4])
    db.execute("DELETE FROM duplicate WHERE id = ?", (old[0],))


def _add_total(db, state: int, groups: int, files: int, reclaimable: int, potential: int) -> None:
    db.execute("UPDATE duplicate_total SET groups = groups + ?, files = files + ?,"
               " reclaimable = reclaimable + ?, potential = potential + ? WHERE state = ?",
               (groups, files, reclaimable, potential, state))


def settle_due_duplicates(db) -> bool:
    """Count one of the very large groups that changed; whether there was one."""
    row = db.execute("SELECT hash, size, algo FROM duplicate_due LIMIT 1").fetchone()
    if row is None:
        return False
    db.execute("DELETE FROM duplicate_due WHERE hash = ? AND size = ? AND algo = ?", row)
    hash_, size, algo = row
    members = _members_sharing(db, [hash_])
    fulls = {(size, algo, hash_)}
    samples = {(m.size, m.algo, m.sample_size, m.sample_hash) for m in members
               if (m.size, m.algo) == (size, algo)}
    wanted = candidate_groups(members, samples)
    wanted.update(confirmed_groups(members, fulls))
    _store_groups(db, sorted({hash_} | {key[3] for key in samples}), samples, fulls, wanted)
    return True


def recount_root_duplicates(db, root_id: int, after: int, limit: int) -> int | None:
    """The groups of a root's files counted again (its volume has changed, and with it what is one
    copy); the last file looked at, or None at the end.
    """
    rows = db.execute(
        "SELECT f.id, f.size, f.algo, f.sample_size, f.sample_hash, f.full_hash, f.flags"
        " FROM file f JOIN folder d ON d.id = f.folder WHERE f.id > ? AND d.root = ?"
        " AND f.sample_hash IS NOT NULL AND f.size > 0 AND f.state = ? ORDER BY f.id LIMIT ?",
        (after, root_id, STATE_PRESENT, limit)).fetchall()
    update_duplicates(db, set(), {
        (size, algo, sample_size, sample, sample if flags & FLAG_WHOLE else full)
        for _, size, algo, sample_size, sample, full, flags in rows})
    return rows[-1][0] if len(rows) == limit else None


# =================================================================================================
# medialib/catalog_search.py, from its line 16
# The search index over names and folder paths: letters in threes (FTS5), where SQLite has it.
# =================================================================================================

SEARCH_CHUNK = 4000  # larger ones save little and make the next batch wait
SEARCH_BEHIND = 80_000  # with more names than this not indexed yet, jobs wait for some of them
SEARCH_WORDS = 16
TRIGRAMS_ASKED = 2  # of one word
TRIGRAM_RATIO = 8
TRIGRAM_SAMPLE = 200


def search_words(text: str) -> list:
    """The words of a query in the form they are compared in."""
    return list(dict.fromkeys(text.lower().split()))[:SEARCH_WORDS]


def text_matches(words: list, *texts: str) -> bool:
    """Whether each word is in one of the texts, whatever its case."""
    low = [text.lower() for text in texts]
    return all(any(word in text for text in low) for word in words)


def usable_parts(words: list) -> list:
    """The texts the index can be asked for, each of which every match holds in its name or in its
    folder's path: at least three letters, and no "/", which lies between the two.
    """
    parts = [part for word in words for part in word.split("/") if len(part) >= 3]
    return list(dict.fromkeys(parts))


def trigram_query(trigrams: list) -> str:
    """The FTS5 expression for rows that hold all of these."""
    return " AND ".join('"' + part.replace('"', '""') + '"' for part in dict.fromkeys(trigrams))


class SearchIndex:
    """Keeps the index in step with the rows. All but `usable` belongs to the writing thread."""

    def __init__(self, db):
        self.usable = has_trigram_search(db)
        row = db.execute("SELECT value FROM library WHERE key = 'search'").fetchone()
        stored = row[0] if row else None
        if self.usable and stored != "trigram":
            self._build_anew(db, stored)
        elif not self.usable and stored == "trigram":
            # From here on names change without the index.
            db.execute("UPDATE library SET value = 'stale' WHERE key = 'search'")

    def _build_anew(self, db, stored: str | None) -> None:
        if stored is not None:
            db.execute("DROP TABLE name_search")
            db.execute("DROP TABLE folder_search")
        for statement in SEARCH_TABLES:
            db.execute(statement)
        db.execute("UPDATE counter SET value = 0 WHERE name = 'searchable'")
        db.execute("INSERT OR REPLACE INTO library VALUES ('search', 'trigram')")
        for folder_id, key in db.execute("SELECT id, key FROM folder"):
            self.add_folder(db, folder_id, rel_of_key(key))

    def add_folder(self, db, folder_id: int, rel: str) -> None:
        if self.usable:
            db.execute("INSERT INTO folder_search (rowid, path) VALUES (?, ?)",
                       (folder_id, rel.lower()))

    def drop_folder(self, db, folder_id: int, rel: str) -> None:
        if self.usable:
            db.execute("INSERT INTO folder_search (folder_search, rowid, path)"
                       " VALUES ('delete', ?, ?)", (folder_id, rel.lower()))

    def rename_file(self, db, counters: CatalogCounters, file_id: int, old: str, new: str) -> None:
        if self.usable and old != new and file_id <= counters.values["searchable"]:
            self._drop_name(db, file_id, old)
            db.execute("INSERT INTO name_search (rowid, name) VALUES (?, ?)",
                       (file_id, new.lower()))

    def forget_file(self, db, counters: CatalogCounters, file_id: int, name: str) -> None:
        if self.usable and file_id <= counters.values["searchable"]:
            self._drop_name(db, file_id, name)

    def _drop_name(self, db, file_id: int, name: str) -> None:
        db.execute("INSERT INTO name_search (name_search, rowid, name) VALUES ('delete', ?, ?)",
                   (file_id, name.lower()))

    def behind(self, counters: CatalogCounters) -> int:
        if not self.usable:
            return 0
        return counters.values["file"] - counters.values["searchable"]

    def index_more(self, db, counters: CatalogCounters) -> bool:
        """Index the next names; whether more are left."""
        if not self.behind(counters):
            return False
        first = counters.values["searchable"]
        rows = db.execute("SELECT id, name FROM file WHERE id > ? ORDER BY id LIMIT ?",
                          (first, SEARCH_CHUNK)).fetchall()
        db.executemany("INSERT INTO name_search (rowid, name) VALUES (?, ?)",
                       [(file_id, name.lower()) for file_id, name in rows])
        last = rows[-1][0] if len(rows) == SEARCH_CHUNK else counters.values["file"]
        counters.values["searchable"] = last
        return last < counters.values["file"]


def proposed_ids(db, table: str, trigrams: list, limit: int) -> list | None:
    """Up to `limit` numbers of rows that hold all the trigrams, or None when the index cannot tell.
    """
    try:
        rows = db.execute(f"SELECT rowid FROM {table} WHERE {table} MATCH ? LIMIT ?",
                          (trigram_query(trigrams), limit)).fetchall()
    except sqlite3.OperationalError:
        return None
    return [row[0] for row in rows]


def rarest_trigrams(db, parts: tuple) -> dict:
    """{part: [(share, trigram)] of its rarest among names}, the part with the rarest first."""
    shares = {part: sorted((_share_of(db, one), one) for one in {
        part[start:start + 3] for start in range(len(part) - 2)}) for part in parts}
    return {part: some[:TRIGRAMS_ASKED]
            for part, some in sorted(shares.items(), key=lambda item: item[1])}


def worth_asking(shares: list) -> list:
    """Of [(share, trigram)] those to ask the index for together. It reads through all rows of each:
    one that is much more common than the rarest costs much and excludes little.
    """
    most = TRIGRAM_RATIO * min(shares)[0]
    return [(share, one) for share, one in shares if share <= most]


def _share_of(db, trigram: str) -> float:
    """About which part of the first names hold it: a guess that costs some microseconds."""
    ids = proposed_ids(db, "name_search", [trigram], TRIGRAM_SAMPLE)
    if not ids:
        return 0.0
    return len(ids) / ids[-1] if len(ids) == TRIGRAM_SAMPLE else len(ids) / 1e12


# =================================================================================================
# medialib/catalog_word_sql.py, from its line 14
# What SQLite itself can tell of a search: conditions that every match fulfils.
# =================================================================================================

FOLDERS_NAMED = 200  # with more folders than these a part is looked for in each folder's text
FOLDERS_LOOKED_AT = 200_000  # which takes as long as one short page
ASCII_RUN = re.compile(r"[\x01-\x7f]+")
# Two letters beyond ASCII become ASCII ones in lower case; SQLite leaves them as they are.
LATE_LETTERS = (("\u212a", "k"), ("\u0130", "i"))
FOLDER_TEXT = "CAST(d.key AS TEXT)"


def word_conditions(words: list, roots: dict, folders_with) -> list:
    """[(condition on f and d, values)] that hold for all files whose path holds the words. A part
    without "/" lies in one name: the file's, a folder's below the root, or one of the root's path.
    `folders_with(part)` are the numbers of those folders, None where they are many.
    """
    found = []
    for part in dict.fromkeys(part for word in words for part in word.split("/") if part):
        holding = [root.id for root in roots.values() if part in root.path.lower()]
        if len(holding) == len(roots):
            continue
        folders = folders_with(part)
        for run in ASCII_RUN.findall(part):
            ways = [name_condition(run)]
            if folders is None:
                ways.append(folder_condition(run))
            elif folders:
                ways.append((f"+f.folder IN ({','.join(map(str, folders))})", ()))
            if holding:
                ways.append((f"+d.root IN ({','.join(map(str, holding))})", ()))
            found.append(any_of(ways))
    return found


def any_of(ways: list) -> tuple:
    return (f"({' OR '.join(condition for condition, _ in ways)})",
            tuple(value for _, values in ways for value in values))


def folder_condition(run: str) -> tuple:
    """For folders whose path below the root can hold it."""
    late = [(f"instr({FOLDER_TEXT}, '{letter}')", ()) for letter, low in LATE_LETTERS if low in run]
    return any_of([(f"instr(lower({FOLDER_TEXT}), ?)", (run,)), *late])


class WordFolders:
    """Which folders hold a text, asked once for each in a request."""

    def __init__(self, db, searchable: bool):
        self.db = db
        self.searchable = searchable
        self._known: dict = {}

    def __call__(self, part: str) -> list | None:
        if part not in self._known:
            self._known[part] = self._look(part)
        return self._known[part]

    def _look(self, part: str) -> list | None:
        ids = None
        if self.searchable and len(part) >= 3:
            ids = proposed_ids(self.db, "folder_search", trigrams_of(part), FOLDERS_NAMED + 1)
        if ids is None:
            ids = self._looked_through(part)
        return None if ids is None or len(ids) > FOLDERS_NAMED else ids

    def _looked_through(self, part: str) -> list | None:
        """Two letters are in no index. Most are in many folders, which is soon seen."""
        last = self.db.execute("SELECT value FROM counter WHERE name = 'folder'").fetchone()[0]
        if last > FOLDERS_LOOKED_AT:
            return None
        parts = [folder_condition(run) for run in ASCII_RUN.findall(part)] or [("1", ())]
        return [row[0] for row in self.db.execute(
            f"SELECT d.id FROM folder d WHERE {' AND '.join(one for one, _ in parts)} LIMIT ?",
            (*(value for _, values in parts for value in values), FOLDERS_NAMED + 1))]


def trigrams_of(part: str) -> list:
    return [part[start:start + 3] for start in range(len(part) - 2)]


def name_condition(part: str) -> tuple:
    """(SQL for names that can hold the part, its values). SQLite compares the case of ASCII letters
    only.
    """
    if not part.isascii():
        return "? IS NOT NULL", (part,)
    late = "".join(f" OR instr(f.name, '{letter}')" for letter, low in LATE_LETTERS if low in part)
    return f"(f.name LIKE ? ESCAPE '!'{late})", (like_pattern(part),)


def like_pattern(part: str) -> str:
    escaped = part.replace("!", "!!").replace("%", "!%").replace("_", "!_")
    return f"%{escaped}%"


# =================================================================================================
# medialib/catalog_settings.py, from its line 16
# Settings in the catalogue: for the whole library, and what single agents have instead.
# =================================================================================================

LIBRARY_SCOPE = ""


def stored_settings(db, scope: str) -> dict:
    """What was set for the library ("") or for one agent; names this version lacks are left out."""
    rows = db.execute("SELECT name, value_json FROM setting WHERE scope = ?", (scope,)).fetchall()
    return {name: json.loads(value) for name, value in rows if name in SETTING_BY_NAME}


def settings_of(db, agent_id: str | None = None) -> dict:
    """All settings as they apply to the agent, or to the library."""
    settings = {**default_settings(), **stored_settings(db, LIBRARY_SCOPE)}
    if agent_id is not None:
        settings.update(stored_settings(db, agent_id))
    return settings


def config_for(db, agent_id: str | None, library_id: str) -> dict:
    """What goes to an agent: the settings, also under the names older ones know, and who we are."""
    settings = settings_of(db, agent_id)
    older = {old: settings[new] for old, new in OLDER_SETTING_NAMES.items()}
    about = {"version": VERSION, "protocol": PROTOCOL, "library_id": library_id}
    return {**settings, **older, "medialib": about}


def checked_settings(values, scope: str) -> dict:
    """Values somebody wants to set, in normal form; null means: no longer set here."""
    if not isinstance(values, dict):
        raise SettingError("settings", "settings must be an object of names and values")
    checked = {}
    for name, value in values.items():
        if value is None and name in SETTING_BY_NAME:
            checked[name] = None
            continue
        checked[name] = check_setting(name, value)
        if scope != LIBRARY_SCOPE and not SETTING_BY_NAME[name].per_agent:
            raise SettingError(name, f"{name} is the library's and cannot be set for one agent")
    return checked


def store_settings(db, scope: str, checked: dict) -> None:
    for name, value in checked.items():
        if value is None:
            db.execute("DELETE FROM setting WHERE scope = ? AND name = ?", (scope, name))
        else:
            db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?, ?)",
                       (scope, name, json.dumps(value, ensure_ascii=False)))


# =================================================================================================
# medialib/catalog_why.py, from its line 16
# Why a path is, or is not, in the catalogue: the answer of POST /api/why.
# =================================================================================================

def explain_path(db, agent: CatalogAgent, path: str) -> dict:
    """{"answer", "text", "catalogued", "file" (its number or None), "root"}.

    `answer`: present, junk, offline, missing, rejected, error, outside (every root), root offline,
    ignored, not scanned, not seen.
    """
    places = [(root, rel) for root, rel in locate_path(db, agent, path) if rel]
    known = [(root, row) for root, rel in places for row in file_rows(db, root.id, rel)]
    if known:
        return explain_row(*min(known, key=lambda pair: (pair[1][1], pair[0].state == "offline")))
    refused = db.execute("SELECT error, at FROM rejected WHERE agent = ? AND path = ?",
                         (agent.id, path)).fetchone()
    if refused is not None:
        return why_answer("rejected", f"the agent's record was refused: {refused[0]}")
    if not [root for root, _ in places if not root.implicit]:
        return why_answer("outside", "it lies in none of this agent's roots")
    return explain_unknown(db, agent, path, *places[0])


def file_rows(db, root_id: int, rel: str) -> list:
    """(id, state, kind reason, changed) of the rows at a relative path, present ones first."""
    return db.execute(
        "SELECT f.id, f.state, w.text, f.changed FROM folder d JOIN file f ON f.folder = d.id"
        " LEFT JOIN word w ON w.id = f.reason WHERE d.root = ? AND d.key = ? AND f.name = ?"
        " ORDER BY f.state, f.changed DESC",
        (root_id, folder_key_bytes(parent_of(rel)), name_of(rel))).fetchall()


def explain_row(root, row: tuple) -> dict:
    file_id, is_missing, reason, changed = row
    known = {"file": file_id, "root": root.path, "catalogued": True}
    if is_missing:
        return why_answer("missing", "its folder was listed to the end, and it was not there any"
                          " more", since=changed, **known)
    if root.state == "offline":
        return why_answer("offline", offline_text(root), **known)
    if reason:
        return why_answer("junk", f"it is catalogued as junk: {reason}", **known)
    return why_answer("present", "it is in the catalogue", **known)


def explain_unknown(db, agent: CatalogAgent, path: str, root, rel: str) -> dict:
    """Inside a root, but without a row."""
    pattern = ignoring_pattern(settings_of(db, agent.agent_id), rel)
    if pattern is not None:
        return why_answer("ignored", f"a folder above it matches {pattern!r} of ignore_dirs",
                          root=root.path)
    failure = told_failure(db, agent, path, root.path)
    if failure is not None:
        return why_answer("error", f"{failure.get('path')}: {failure.get('message')}",
                          root=root.path)
    if root.state == "offline":
        return why_answer("root offline", offline_text(root), root=root.path)
    scan = json.loads(root.scan_json)
    if not scan.get("ended"):
        return why_answer("not scanned", "no scan of the root has come to its end yet",
                          root=root.path)
    return why_answer("not seen", "the last scan did not see a regular file there: it is newer than"
                      " the scan, a link, a special file, on another file system, below a folder"
                      " with an ignore marker, or does not exist", root=root.path,
                      scanned=scan["ended"], ledger=scan.get("ledger"))


def ignoring_pattern(settings: dict, rel: str) -> str | None:
    """The pattern of ignore_dirs that a folder above the file matches."""
    folders = rel.split("/")[:-1]
    for pattern in settings["ignore_dirs"]:
        matcher = NamePatterns([pattern])
        if any(matcher.match(name) for name in folders):
            return pattern
    return None


def offline_text(root) -> str:
    return f"its root is offline: {root.reason or 'no reason is known'}"


def told_failure(db, agent: CatalogAgent, path: str, root_path: str) -> dict | None:
    """The agent's own word about the path, or about a folder above it that it could not list."""
    row = db.execute("SELECT errors_json FROM agent WHERE id = ?", (agent.id,)).fetchone()
    told = {failure.get("path"): failure for failure in json.loads(row[0]).get("latest") or []
            if isinstance(failure, dict)}
    while len(path) >= len(root_path):
        if path in told:
            return told[path]
        path = parent_of(path)
    return None


def why_answer(answer: str, text: str, *, catalogued: bool = False, file=None, root=None,
               **more) -> dict:
    return {"answer": answer, "text": text, "catalogued": catalogued, "file": file, "root": root,
            **more}


# =================================================================================================
# medialib/catalog_compare.py, from its line 24
# What the host holds of a root, page by page, for an agent that compares and repairs.
# =================================================================================================

COMPARE_FILES = 50_000  # a page of folders ends once it has looked at this many files
PAGE_STREAMS_CHARS = 4 << 20  # a page of whole records ends after this much of what ffprobe said


def read_agent_root(db, agent: CatalogAgent, path: str, volume: str | None,
                    volume_path: str | None, told: bool = False) -> CatalogRoot | None:
    """The root row an agent means, as resolve_root would find it, without making one."""
    roots = read_roots(db, agent.id)
    if volume is not None:
        for root in roots:
            if root.volume == volume and (root.volume_path or "") == (volume_path or ""):
                return root
    same = [root for root in roots if root.path == path and (
        not root.volume or (volume is None and not told))]
    same.sort(key=lambda root: (root.implicit, root.state == "offline", -root.seq))
    return same[0] if same else None


def folder_page(db, root_id: int, after: int, limit: int) -> dict:
    """{"folders": [{"id", "path", "files", "digest"}], "next"}: folders with present files."""
    rows = db.execute("SELECT id, key, files FROM folder NOT INDEXED WHERE root = ? AND id > ?"
                      " AND files > 0 ORDER BY id LIMIT ?", (root_id, after, limit)).fetchall()
    folders, looked_at = [], 0
    for folder_id, key, files in rows:
        rel = rel_of_key(key)
        folders.append({"id": folder_id, "path": rel, "files": files,
                        "digest": folder_digest(db, folder_id, rel)})
        looked_at += files
        if looked_at >= COMPARE_FILES:
            break
    done = len(folders) == len(rows) < limit
    return {"folders": folders, "next": None if done or not folders else folders[-1]["id"]}


def folder_digest(db, folder_id: int, rel: str) -> str:
    """The sum of its present rows' digests, computed from the rows."""
    rows = db.execute(f"SELECT {FILE_COLUMNS} FROM file INDEXED BY file_path"
                      " WHERE folder = ? AND state = 0", (folder_id,))
    return digest_hex(sum(digest_of_row(FileRow(*row), rel) for row in rows))


def name_page(db, words: dict, root: CatalogRoot, folder: str, after: str | None, limit: int,
              full: bool) -> dict:
    """{"files": [{"name"}, or whole records], "next"} of one folder's present files by name."""
    row = db.execute("SELECT id FROM folder WHERE root = ? AND key = ?",
                     (root.id, folder_key_bytes(folder))).fetchone()
    if row is None:
        return {"files": [], "next": None}
    rows = db.execute(
        f"SELECT {FILE_COLUMNS if full else 'name'} FROM file INDEXED BY file_path"
        " WHERE folder = ? AND state = 0 AND name > ? ORDER BY name LIMIT ?",
        (row[0], after or "", limit)).fetchall()
    if full:
        files = whole_records(db, words, root, folder, rows)
    else:
        files = [{"name": one[0]} for one in rows]
    more = len(rows) == limit or len(files) < len(rows)
    return {"files": files, "next": files[-1]["name"] if more else None}


def whole_records(db, words: dict, root: CatalogRoot, folder: str, rows: list) -> list:
    """Records of the rows, or of the first of them: a page stays small whatever ffprobe said."""
    records, streams_chars = [], 0
    for one in rows:
        record = whole_record(db, words, root, folder, FileRow(*one))
        records.append(record)
        streams_chars += len((record.get("metadata") or {}).get("streams_json") or "")
        if streams_chars > PAGE_STREAMS_CHARS:
            break
    return records


def whole_record(db, words: dict, root: CatalogRoot, folder: str, row: FileRow) -> dict:
    """A row as the record it came from, with "name"."""
    record = {
        "name": row.name, "kind": KIND_NAMES[row.kind],
        "path": root.path_of(join_rel(folder, row.name)), "size": row.size,
        "mtime": row_mtime(row), "ctime": row.ctime, "inode_key": row_inode_key(row),
        "ext": words[row.ext],
    }
    if row.reason:
        record["reason"] = words[row.reason]
    hashes = hashes_as_json(row)
    if hashes:
        record["hashes"] = hashes
    if row.flags & FLAG_PROBED:
        record["metadata"] = metadata_as_json(db, words, row.id, streams=True)
    return record


def metadata_as_json(db, words: dict, file_id: int, *, streams: bool = False) -> dict | None:
    """The simplified metadata, with streams_json (ffprobe's text) where it is asked for."""
    meta = read_meta(db, file_id)
    if meta is None:
        return None
    metadata = {
        "duration": meta.duration, "container": words.get(meta.container),
        "video_codec": words.get(meta.video_codec),
        "audio_codecs": json.loads(words[meta.audio_codecs]) if meta.audio_codecs else None,
        "width": meta.width, "height": meta.height, "bitrate": meta.bitrate,
    }
    if streams:
        packed = db.execute("SELECT packed FROM streams WHERE file = ?", (file_id,)).fetchone()
        metadata["streams_json"] = zlib.decompress(packed[0]).decode("utf-8") if packed else None
    return metadata


# =================================================================================================
# medialib/catalog_show.py, from its line 11
# Files as the API shows them.
# =================================================================================================

class FileShower:
    """Turns rows into JSON for one request. `roots` is {number: CatalogRoot}."""

    def __init__(self, db, words: dict, roots: dict):
        self.db = db
        self.words = words
        self.roots = roots
        self.agents = {number: {"id": agent_id, "name": name} for number, agent_id, name
                       in db.execute("SELECT id, agent_id, name FROM agent")}

    def show_all(self, found: list) -> list:
        return [self.show(one.row, one.root, one.key) for one in found]

    def show(self, row: FileRow, root_id: int, key: bytes, *, streams: bool = False) -> dict:
        root = self.roots[root_id]
        shown = {
            "id": row.id, "agent": self.agents[root.agent], "root": root.path, "root_id": root_id,
            "path": root.path_of(join_rel(rel_of_key(key), row.name)), "name": row.name,
            "kind": KIND_NAMES[row.kind], "ext": self.words[row.ext], "size": row.size,
            "mtime": row_mtime(row), "ctime": row.ctime, "inode_key": row_inode_key(row),
            "state": self.state_of(row, root),
            "reason": self.words[row.reason] if row.reason else None,
            "hashes": hashes_as_json(row),
            "metadata": (metadata_as_json(self.db, self.words, row.id, streams=streams)
                         if row.flags & FLAG_PROBED else None),
            "first_seen": row.first_seen, "changed": row.changed, "seq": row.seq,
        }
        if row.flags & FLAG_ERROR:
            shown["error"] = self.error_of(row.id)
        return shown

    def state_of(self, row: FileRow, root) -> str:
        if row.state == STATE_MISSING:
            return "missing"
        return "offline" if root.state == "offline" else "present"

    def error_of(self, file_id: int) -> dict | None:
        found = self.db.execute("SELECT stage, class, message FROM file_error WHERE file = ?",
                                (file_id,)).fetchone()
        return dict(zip(("stage", "class", "message"), found)) if found else None


# =================================================================================================
# medialib/catalog_writer.py, from its line 19
# The one thread that writes the catalogue: it commits what waits together, and then answers.
# =================================================================================================

GROUP_JOBS = 64  # more would let the first one wait too long
GROUP_TIME_S = 0.25
IDLE_REST_S = 0.1
IDLE_PATIENCE_S = 2.0
WRITE_TIMEOUT_S = 120.0


class WriteJob:
    """`work(db)` and the future that gets its answer after the commit."""

    def __init__(self, work):
        self.work = work
        self.future: Future = Future()


class CatalogWriter:
    """Runs jobs one after the other on one connection. Call `start`, and `stop` at the end.

    `idle_work(db)` is called when nothing waits; it returns in how many seconds it wants to be
    called again, or None when there is nothing to do before the next job.
    `on_failure()` is called after every rollback: numbers that were not committed are forgotten.
    `on_damage(error)` is called when the file turns out not to be sound.
    """

    def __init__(self, store: StoreConnection, *, idle_work=None, on_failure=None, on_damage=None):
        self.store = store
        self.idle_work = idle_work
        self.on_failure = on_failure or (lambda: None)
        self.on_damage = on_damage or (lambda error: None)
        self.last_error: str | None = None  # of the last commit, None when it succeeded
        self.commits = 0
        self.committed_at = float("-inf")  # of the last commit, on the monotonic clock
        self._waiting: collections.deque = collections.deque()
        self._ready = threading.Condition()  # guards _waiting, _stopping and the two times
        self._stopping = False
        self._idle_at: float | None = 0.0  # when idle work is wanted, on the monotonic clock
        self._quiet_at = 0.0  # until then the last writer may have more to write
        self._thread = threading.Thread(target=self._loop, name="catalogue writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish what waits and end. Later writes are refused."""
        with self._ready:
            self._stopping = True
            self._ready.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def submit(self, work) -> Future:
        """Queue `work(db)`; the future's result is what it returns, after the commit."""
        job = WriteJob(work)
        with self._ready:
            if self._stopping:
                raise StoreError("the catalogue is being closed")
            self._waiting.append(job)
            self._ready.notify_all()
        return job.future

    def run(self, work, on_queued=None, timeout_s: float = WRITE_TIMEOUT_S):
        """`submit`, call `on_queued()` if it is given, and wait for the answer."""
        future = self.submit(work)
        if on_queued is not None:
            on_queued()
        return future.result(timeout_s)

    # -- the thread ------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            jobs = self._take()
            if jobs is None:
                return
            try:
                if jobs:
                    self._commit_group(jobs)
                else:
                    self._work_idly()
            except Exception:  # the worker loop's edge: the next jobs go on
                log.exception("the catalogue's writer failed")
                for job in jobs:
                    if not job.future.done():
                        job.future.set_exception(StoreError("the catalogue could not be written"))

    def _take(self) -> list | None:
        """The waiting jobs; [] when there is time for idle work; None at the end."""
        with self._ready:
            while not self._waiting and not self._stopping:
                wait_s = self._idle_wait_s()
                if wait_s is not None and wait_s <= 0:
                    return []
                self._ready.wait(wait_s)
            if not self._waiting:
                return None
            self._quiet_at = time.monotonic() + IDLE_REST_S
            if self._idle_at is None:
                self._idle_at = self._quiet_at
            count = min(len(self._waiting), GROUP_JOBS)
            return [self._waiting.popleft() for _ in range(count)]

    def _idle_wait_s(self) -> float | None:
        """How long to wait for idle work; None if there is none. Between two batches of a busy
        agent is no idle time, as the next one would wait for a commit more; but some of it passes.
        """
        if self._idle_at is None:
            return None
        at = max(self._idle_at, min(self._quiet_at, self._idle_at + IDLE_PATIENCE_S))
        return at - time.monotonic()

    def _work_idly(self) -> None:
        again_s = None
        if self.idle_work is not None:
            try:
                with self.store.atomic() as db:
                    again_s = self.idle_work(db)
            except (StoreError, sqlite3.Error) as error:
                log.warning("%s", self._explained(error))
                self.on_failure()
        with self._ready:
            self._idle_at = None if again_s is None else time.monotonic() + again_s

    def _commit_group(self, jobs: list) -> None:
        """One transaction. When it is lost as a whole, each job is tried once in one of its own."""
        if len(jobs) == 1:
            self._commit_alone(jobs[0])
        elif not self._commit_trusting(jobs):
            self._commit_apart(jobs)

    def _commit_trusting(self, jobs: list) -> bool:
        """Without savepoints, for which SQLite copies every page. False when a job had an error of
        its own: nothing is stored then, and none is answered.
        """
        results: list = []
        try:
            with self.store.atomic() as db:
                started = time.monotonic()
                for job in jobs:
                    results.append((job.work(db), None))
                    if time.monotonic() - started > GROUP_TIME_S:
                        break
        except (StoreError, sqlite3.Error) as error:
            self.on_failure()
            self._retry_alone(jobs, error)
            return True
        except Exception:  # told to the one who gave that job, by _commit_apart
            self.on_failure()
            return False
        self._note_commit()
        self._answer(jobs, results)
        self._put_back(jobs[len(results):])
        return True

    def _commit_apart(self, jobs: list) -> None:
        """Each in a savepoint: one that fails takes only its own changes back."""
        outcomes: list = []
        try:
            with self.store.atomic() as db:
                started = time.monotonic()
                for job in jobs:
                    outcomes.append(self._run_in_savepoint(db, job))
                    if time.monotonic() - started > GROUP_TIME_S:
                        break
        except (StoreError, sqlite3.Error) as error:
            self.on_failure()
            self._retry_alone(jobs, error)
            return
        self._note_commit()
        self._answer(jobs, outcomes)
        self._put_back(jobs[len(outcomes):])

    def _run_in_savepoint(self, db, job: WriteJob) -> tuple:
        """(result, None) or (None, exception). Raises when the whole transaction is gone."""
        db.execute("SAVEPOINT job")
        try:
            result = job.work(db)
        except Exception as error:
            self.on_failure()
            if not db.in_transaction:  # a full disk or an I/O error ends all of it
                raise self._explained(error) if isinstance(
                    error, sqlite3.Error) else StoreError(str(error)) from error
            db.execute("ROLLBACK TO job")
            db.execute("RELEASE job")
            return None, self._explained(error)
        db.execute("RELEASE job")
        return result, None

    def _commit_alone(self, job: WriteJob) -> None:
        """A transaction of its own needs no savepoint, for which SQLite copies every page."""
        try:
            with self.store.atomic() as db:
                result = job.work(db)
        except (StoreError, sqlite3.Error) as error:
            self.on_failure()
            self._fail(job, error)
        except Exception as error:  # the job's own refusal: nothing is wrong with the catalogue
            self.on_failure()
            self._answer([job], [(None, error)])
        else:
            self._note_commit()
            self._answer([job], [(result, None)])

    def _note_commit(self) -> None:
        self.commits += 1
        self.last_error = None
        self.committed_at = time.monotonic()

    def _retry_alone(self, jobs: list, error: Exception) -> None:
        if len(jobs) == 1:
            self._fail(jobs[0], error)
            return
        for job in jobs:
            self._commit_alone(job)

    def _fail(self, job: WriteJob, error: Exception) -> None:
        error = self._explained(error)
        self.last_error = str(error)
        job.future.set_exception(error)

    def _explained(self, error: Exception) -> Exception:
        """SQLite's errors as ours; damage is told on."""
        if isinstance(error, sqlite3.DatabaseError):
            error = explain_sqlite_error(error, self.store.path)
        if isinstance(error, DamagedStoreError):
            self.on_damage(error)
        return error

    def _answer(self, jobs: list, outcomes: list) -> None:
        for job, (result, error) in zip(jobs, outcomes):
            with contextlib.suppress(Exception):  # whoever waited may have given up
                if error is None:
                    job.future.set_result(result)
                else:
                    job.future.set_exception(error)

    def _put_back(self, jobs: list) -> None:
        with self._ready:
            self._waiting.extendleft(reversed(jobs))


# =================================================================================================
# medialib/catalog_check.py, from its line 14
# Is the catalogue's file sound? Small ones are read to the end before they are used, large ones
# =================================================================================================

CHECKED_FIRST_PAGES = 20_000  # 80 MB: what a slow disk reads in about a second
STOP_S = 3.0


def check_database_head(store: StoreConnection) -> bool:
    """Raise DamagedStoreError for a file that cannot be read. Small ones are checked to the end;
    whether this one was.
    """
    if store.one("PRAGMA page_count")[0] >= CHECKED_FIRST_PAGES:
        return False
    check_sound(store)
    return True


class BackgroundCheck:
    """Reads the whole file on a connection of its own; `on_damage(error)` if it is not sound.

    While it runs, the database's log can only grow: its snapshot needs what is in there.
    """

    def __init__(self, path: str, on_damage):
        self.path = path
        self.on_damage = on_damage
        self._stopping = False
        self._db = open_reader(path)
        self._thread = threading.Thread(target=self._run, name="catalogue check", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        end = time.monotonic() + STOP_S
        while self._thread.is_alive() and time.monotonic() < end:
            self._db.interrupt()  # in vain just before the check begins
            self._thread.join(0.05)
        if not self._thread.is_alive():
            self._db.close()

    def _run(self) -> None:
        started = time.monotonic()
        try:
            check_connection(self._db, self.path)
            log.info("the catalogue was checked in %.1f s and is sound",
                     time.monotonic() - started)
        except DamagedStoreError as error:
            self.on_damage(error)
        except StoreError as error:
            if not self._stopping:
                log.warning("the catalogue could not be checked: %s", error)


def damage_advice(path: str, error: Exception) -> str:
    """What is wrong, and how to restore or rebuild."""
    folder = os.path.dirname(path)
    return (
        f"{error}. The file is kept as it is. To restore: stop medialib, move {path} and its -wal"
        f" and -shm files away, copy the newest file of {os.path.join(folder, 'backups')} to"
        f" {path}, start again. To rebuild: move the same files away and start again; the agents"
        " then send everything anew without reading a file twice."
    )


# =================================================================================================
# medialib/catalog_summary.py, from its line 16
# The catalogue in numbers, from the sums that are kept with the rows; `file` is not looked at.
# =================================================================================================

SUMMARY_TOP = 100


def catalog_summary(db, words: dict, library_id: str) -> dict:
    """The answer of POST /api/summary, without the agents."""
    roots = read_roots(db)
    offline = [root for root in roots if root.state == "offline"]
    return {
        "library_id": library_id,
        "files": sum(root.files for root in roots), "bytes": sum(root.bytes for root in roots),
        "missing": sum(root.missing for root in roots),
        "missing_bytes": sum(root.missing_bytes for root in roots),
        "offline": sum(root.files for root in offline),
        "offline_bytes": sum(root.bytes for root in offline),
        "seq": db.execute("SELECT value FROM counter WHERE name = 'seq'").fetchone()[0],
        "kinds": kind_counts(db), **extension_counts(db, words), "duplicates": duplicate_counts(db),
    }


def counted(files: int, size: int) -> dict:
    return {"files": files, "bytes": size}


def kind_counts(db) -> dict:
    """{kind: {"files", "bytes"}} of present files (unplugged disks included)."""
    rows = db.execute("SELECT kind, sum(files), sum(bytes) FROM tally WHERE state = ?"
                      " GROUP BY kind", (STATE_PRESENT,)).fetchall()
    return {KIND_NAMES[kind]: counted(files, size) for kind, files, size in rows}


def extension_counts(db, words: dict) -> dict:
    """The largest of each: extensions with their kind, junk reasons, types that are not known."""
    rows = db.execute("SELECT ext, kind, sum(files), sum(bytes) FROM tally WHERE state = ?"
                      " GROUP BY ext, kind ORDER BY 4 DESC, 3 DESC", (STATE_PRESENT,)).fetchall()
    extensions = [{"ext": words[ext], "kind": KIND_NAMES[kind], **counted(files, size)}
                  for ext, kind, files, size in rows]
    junk = db.execute("SELECT reason, sum(files), sum(bytes) FROM tally WHERE state = ? AND"
                      " reason > 0 GROUP BY reason ORDER BY 3 DESC LIMIT ?",
                      (STATE_PRESENT, SUMMARY_TOP)).fetchall()
    return {
        "extensions": extensions[:SUMMARY_TOP],
        "unknown_extensions": [one for one in extensions if one["kind"] == "unknown"][:SUMMARY_TOP],
        "junk_reasons": [{"reason": words[reason], **counted(files, size)}
                         for reason, files, size in junk],
    }


def duplicate_counts(db) -> dict:
    totals = {row[0]: row[1:] for row in db.execute(
        "SELECT state, groups, files, reclaimable, potential FROM duplicate_total")}
    confirmed, candidate = totals[GROUP_CONFIRMED], totals[GROUP_CANDIDATE]
    return {
        "confirmed_groups": confirmed[0], "confirmed_files": confirmed[1],
        "reclaimable_bytes": confirmed[2], "candidate_groups": candidate[0],
        "candidate_files": candidate[1], "candidate_bytes": candidate[3],
        "counting": db.execute("SELECT 1 FROM duplicate_due LIMIT 1").fetchone() is not None,
    }


def daily_rows(db, limit: int = 400) -> list:
    """The growth of the catalogue, one row for each day it was looked at, oldest first."""
    names = ("day", "files", "bytes", "missing", "reclaimable")
    rows = db.execute(f"SELECT {', '.join(names)} FROM daily ORDER BY day DESC LIMIT ?",
                      (limit,)).fetchall()
    return [dict(zip(names, row)) for row in reversed(rows)]


def local_day(now: float) -> str:
    return datetime.datetime.fromtimestamp(now).strftime("%Y-%m-%d")


def note_daily_totals(db, now: float) -> None:
    """Write today's row of the growth chart."""
    day = local_day(now)
    files, size, missing = db.execute(
        "SELECT coalesce(sum(files), 0), coalesce(sum(bytes), 0), coalesce(sum(missing), 0)"
        " FROM root").fetchone()
    reclaimable = db.execute("SELECT reclaimable FROM duplicate_total WHERE state = ?",
                             (GROUP_CONFIRMED,)).fetchone()[0]
    db.execute("INSERT OR REPLACE INTO daily VALUES (?, ?, ?, ?, ?)",
               (day, files, size, missing, reclaimable))


def root_kind_counts(db, root_id: int) -> dict:
    """{state: {kind: {"files", "bytes"}}} of one root."""
    found: dict = {"present": {}, "missing": {}}
    for state, kind, files, size in db.execute(
            "SELECT state, kind, sum(files), sum(bytes) FROM tally WHERE root = ?"
            " GROUP BY state, kind", (root_id,)):
        name = "missing" if state == STATE_MISSING else "present"
        found[name][KIND_NAMES[kind]] = counted(files, size)
    return found


# =================================================================================================
# medialib/catalog.py, from its line 34
# The catalogue: one database file, one thread that writes it, readers beside it.
# =================================================================================================

CATALOG_FILE = "medialib.db"
LEAST_FREE_BYTES = 2 << 20
PROOF_S = 5.0  # /health asks for no write of its own, behind large batches, after a commit so young
IDLE_READERS = 8
DUE_REST = 10  # very large groups are counted in at most a tenth of the time


class CatalogTools:
    """What the writing thread remembers between jobs. `forget` after any rollback."""

    def __init__(self, search: SearchIndex):
        self.words = WordBook()
        self.folders = FolderBook()
        self.search = search
        self.read_root = read_root
        self.rows_taken = 0  # counts transactions that changed rows which were there

    def forget(self) -> None:
        self.words.forget()
        self.folders.forget()


class Catalog:
    """Open it with the path of its file. `problem` is None, or the sentence that says why it
    cannot be used: then everything raises StoreError with that sentence.

    A damaged file is kept as it is, whenever the damage is found: a large file is checked while it
    is in use already. A newer schema raises NewerStoreError at once.
    """

    def __init__(self, path: str, *, clock=time.time, keep_copy=None):
        self.path = path
        self.clock = clock
        self.problem: str | None = None
        self.library_id: str | None = None
        self.writer: CatalogWriter | None = None
        self.check: BackgroundCheck | None = None
        self.agents_changed = 0  # counts, for those who show agents and settings
        self.seq = 0  # the highest committed number, for those who wait for changes
        self._seq_lock = threading.Lock()  # guards seq
        self._readers: queue.LifoQueue = queue.LifoQueue()
        self._words: dict = {}  # committed words by number; only ever added to
        self._words_lock = threading.Lock()  # guards _words
        self._due_again = 0.0
        try:
            self._open(keep_copy)
        except DamagedStoreError as error:
            self.note_damage(error)

    def note_damage(self, error: Exception) -> None:
        """The file is not sound: from now on nothing is read from it or written to it."""
        if self.problem is None:
            self.problem = damage_advice(self.path, error)
            log.error("%s", self.problem)

    def _open(self, keep_copy) -> None:
        if os.path.exists(self.path) and not os.path.getsize(self.path):
            log.warning("%s is empty and is set up anew", self.path)
        aside = set_foreign_log_aside(self.path)
        if aside is not None:
            log.warning("%s is a copy, and the log beside it belongs to what was there before: it"
                        " is kept as %s", self.path, aside)
        store = StoreConnection(self.path, cache_kib=24576)
        try:
            checked = check_database_head(store)
            migrate(store, CATALOG_MIGRATIONS, before_upgrade=keep_copy)
            with store.atomic() as db:
                self.tools = CatalogTools(SearchIndex(db))
                self.library_id = db.execute(
                    "SELECT value FROM library WHERE key = 'library_id'").fetchone()[0]
                self.seq = CatalogCounters(db).values["seq"]
        except sqlite3.DatabaseError as error:
            store.close()
            raise explain_sqlite_error(error, self.path) from error
        except BaseException:
            store.close()
            raise
        self.store = store
        self.writer = CatalogWriter(store, idle_work=self._idle, on_failure=self.tools.forget,
                                    on_damage=self.note_damage)
        self.writer.start()
        if not checked:
            self.check = BackgroundCheck(self.path, self.note_damage)
            self.check.start()

    # -- writing ---------------------------------------------------------------------------------

    def write(self, work, on_queued=None):
        """Run `work(db)` on the writing thread; its result, once it is committed. `on_queued()` is
        called when its place among the others is certain.
        """
        self._check_usable()
        return self.writer.run(work, on_queued)

    def change(self, work, on_queued=None):
        """`write`, with a ChangeSet: `work(changes)` may apply files and take numbers."""
        result, seq = self.write(lambda db: self._run_change(db, work), on_queued)
        # Only now: whoever sees a new number must find its changes when he reads.
        with self._seq_lock:
            self.seq = max(self.seq, seq)
        return result

    def _run_change(self, db, work) -> tuple:
        """(result, number of its last change)"""
        changes = ChangeSet(db, self.tools, self.clock())
        result = work(changes)
        changes.finish()
        return result, changes.counters.values["seq"]

    def _idle(self, db) -> float | None:
        """Index names and count large groups, a little at a time."""
        if self.problem is not None:
            return None
        counters = CatalogCounters(db)
        more = self.tools.search.index_more(db, counters)
        counters.save()
        if more:
            return 0.0
        wait_s = self._due_again - time.monotonic()
        if wait_s > 0:
            return wait_s
        started = time.monotonic()
        if not settle_due_duplicates(db):
            return None
        spent_s = time.monotonic() - started
        self._due_again = time.monotonic() + spent_s * DUE_REST
        return spent_s * DUE_REST

    def _check_usable(self) -> None:
        if self.problem is not None:
            raise StoreError(self.problem)

    # -- reading ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reader(self):
        """A connection to read from, in one transaction. Errors come out as StoreError."""
        self._check_usable()
        try:
            db = self._readers.get_nowait()
        except queue.Empty:
            db = open_reader(self.path)
        try:
            db.execute("BEGIN")
            yield db
            db.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                db.close()
            if isinstance(error, sqlite3.Error):
                problem = explain_sqlite_error(error, self.path)
                if isinstance(problem, DamagedStoreError):
                    self.note_damage(problem)
                raise problem from error
            raise
        if self._readers.qsize() < IDLE_READERS:
            self._readers.put(db)
        else:
            db.close()

    def words(self, db) -> dict:
        """{number: text} of all words that are committed. Read only; it grows by itself."""
        with self._words_lock:
            highest = max(self._words, default=0)
            rows = db.execute("SELECT id, text FROM word WHERE id > ?", (highest,)).fetchall()
            if rows:
                self._words = {**self._words, **dict(rows)}
            return self._words

    # -- upkeep ----------------------------------------------------------------------------------

    def writable(self) -> str | None:
        """None when a write goes through now, else the sentence that says why not."""
        if self.problem is not None:
            return self.problem
        age_s = time.monotonic() - self.writer.committed_at
        if age_s > PROOF_S or self.writer.last_error is not None:  # else a commit proves it already
            try:
                self.writer.submit(_touch_health).result(5.0)
            except MedialibError as error:
                return str(error)
            except Exception:  # concurrent.futures.TimeoutError is no TimeoutError before 3.11
                return f"{self.path} could not be written within 5 seconds"
        return self._short_of_room()

    def _short_of_room(self) -> str | None:
        """One small write may still fit where a batch does not."""
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(os.path.dirname(os.path.abspath(self.path))).free
            if free < LEAST_FREE_BYTES:
                return f"the disk of {self.path} is full: {free >> 10} KiB are free"
        return None

    def backup(self, target: str) -> int:
        """A checked copy of the database in `target`; its size in bytes."""
        self._check_usable()
        try:
            return copy_database(self.path, target)
        except DamagedStoreError as error:
            self.note_damage(error)
            raise

    def close(self) -> None:
        if self.check is not None:
            self.check.stop()
        if self.writer is not None:
            self.writer.stop()
        while True:
            try:
                self._readers.get_nowait().close()
            except queue.Empty:
                break
        if self.writer is not None:
            self.store.close()


class ChangeSet:
    """One transaction's changes to files and roots, with their numbers and sums."""

    def __init__(self, db, tools: CatalogTools, now: float):
        self.db = db
        self.tools = tools
        self.now = now
        self.counters = CatalogCounters(db)
        self._batches: list = []

    def files_of(self, agent) -> FileBatch:
        """A FileBatch of this transaction; `finish` stores its sums."""
        batch = FileBatch(self.db, self.tools, self.counters, agent, self.now)
        self._batches.append(batch)
        return batch

    def has_taken(self) -> bool:
        """Whether any row that was there has changed or gone."""
        return any(batch.changes.taken for batch in self._batches)

    def finish(self) -> None:
        if self.has_taken():
            self.tools.rows_taken += 1
        for batch in self._batches:
            batch.changes.save(self.tools.folders)
            update_duplicates(self.db, batch.changes.joined, batch.changes.left)
        added = [batch.changes for batch in self._batches if batch.changes.new]
        if added:
            update_duplicates_of_new(self.db, min(one.first_new for one in added),
                                     [record for one in added for record in one.new])
        if self.tools.search.behind(self.counters) > SEARCH_BEHIND:
            self.tools.search.index_more(self.db, self.counters)
        self.counters.save()


def _touch_health(db) -> None:
    """A write that changes nothing for anybody, but needs the disk."""
    db.execute("INSERT OR REPLACE INTO library VALUES ('health', ?)", (str(time.time()),))


def is_local_agent(agent_id: str) -> bool:
    return agent_id == LOCAL_AGENT


# =================================================================================================
# medialib/host_agents.py, from its line 15
# The agents as the host hears them now: who is alive, what they do, what they are to do.
# =================================================================================================

COMMANDS_KEPT = 50
RESULTS_KEPT = 200
COMMAND_LIFE_S = 3600.0


@dataclass
class LiveAgent:
    """What one agent said last. Times are epoch seconds."""

    agent_id: str
    instance: str | None = None
    peer: str | None = None
    last_seen: float = 0.0
    stats: dict = field(default_factory=dict)
    about: dict = field(default_factory=dict)
    signature: object = None  # of what was last written to the catalogue
    written_at: float = 0.0
    commands: list = field(default_factory=list)
    contenders: dict = field(default_factory=dict)  # instance → (first heard, its new id)

    def is_alive(self, now: float) -> bool:
        return now - self.last_seen < ALIVE_S


class AgentPresence:
    """All live agents. Thread-safe; `changed` counts, for those who wait for news."""

    def __init__(self, clock=time.time):
        self.clock = clock
        self.changed = 0
        self.own_stats: dict = {}  # agent id → callable, for the scanner in this process
        self._agents: dict = {}
        self._results: dict = {}
        self._lock = threading.Condition()  # guards everything here

    def get(self, agent_id: str) -> LiveAgent | None:
        with self._lock:
            return self._agents.get(agent_id)

    def all(self) -> dict:
        with self._lock:
            return dict(self._agents)

    def stats_of(self, live: LiveAgent) -> dict:
        """The agent's figures: what it told last, or right now where that can be asked."""
        ask = self.own_stats.get(live.agent_id)
        return ask() if ask is not None else live.stats

    def is_alive(self, agent_id: str) -> bool:
        with self._lock:
            live = self._agents.get(agent_id)
            return live is not None and live.is_alive(self.clock())

    def contact(self, agent_id: str, instance: str | None, peer: str | None) -> str | None:
        """Note that this process of the agent made contact. None: it is the agent. "" : another
        process holds the id and this one must wait. Else: it is a copy and gets this new id.
        """
        now = self.clock()
        with self._lock:
            live = self._agents.setdefault(agent_id, LiveAgent(agent_id))
            held = (live.instance is not None and instance is not None
                    and live.instance != instance and live.peer != peer and live.is_alive(now))
            if held:
                return self._contend(live, instance, now)
            live.contenders.pop(instance, None)
            live.instance = instance if instance is not None else live.instance
            live.peer, live.last_seen = peer, now
            self.changed += 1
            return None

    def _contend(self, live: LiveAgent, instance: str, now: float) -> str:
        """The id's holder has been heard since the newcomer first came: both live, so it is a copy.
        Otherwise the holder may just have moved to another address or be dead.
        """
        if instance not in live.contenders:
            live.contenders[instance] = (now, str(uuid.uuid4()))
            return ""
        first, new_id = live.contenders[instance]
        return new_id if live.last_seen > first else ""

    def is_current(self, agent_id: str, instance: str | None) -> bool:
        """Whether a batch of this process may be applied."""
        with self._lock:
            live = self._agents.get(agent_id)
            return (live is None or instance is None or live.instance in (None, instance)
                    or not live.is_alive(self.clock()))

    def tell(self, agent_id: str, about: dict, stats: dict) -> None:
        with self._lock:
            live = self._agents.setdefault(agent_id, LiveAgent(agent_id))
            live.about, live.stats = about, stats
            self.changed += 1
            self._lock.notify_all()

    def forget(self, agent_id: str) -> None:
        with self._lock:
            self._agents.pop(agent_id, None)
            self.changed += 1

    # -- commands --------------------------------------------------------------------------------

    def command(self, agent_id: str, do: str, **more) -> str:
        """Queue a command for the agent's next heartbeat; its number."""
        with self._lock:
            live = self._agents.setdefault(agent_id, LiveAgent(agent_id))
            same = {"do": do, **more}
            for waiting in live.commands:  # a button pressed twice is one command
                if {key: waiting[key] for key in waiting if key not in ("id", "at")} == same:
                    return waiting["id"]
            command = {"id": str(uuid.uuid4()), **same, "at": self.clock()}
            live.commands = [*live.commands, command][-COMMANDS_KEPT:]
            return command["id"]

    def take_commands(self, agent_id: str) -> list:
        """The commands for this heartbeat's answer."""
        with self._lock:
            live = self._agents.get(agent_id)
            if live is None or not live.commands:
                return []
            young = self.clock() - COMMAND_LIFE_S
            commands, live.commands = live.commands, []
            return [{key: value for key, value in command.items() if key != "at"}
                    for command in commands if command["at"] > young]

    def put_results(self, results) -> None:
        """Answers to commands, from a heartbeat."""
        if not isinstance(results, list):
            return
        with self._lock:
            for result in results[:COMMANDS_KEPT]:
                if isinstance(result, dict) and isinstance(result.get("id"), str):
                    self._results[result["id"]] = result.get("answer")
            while len(self._results) > RESULTS_KEPT:
                del self._results[next(iter(self._results))]
            self._lock.notify_all()

    def wait_result(self, command_id: str, timeout_s: float):
        """The answer to a command, or None when it did not come in time."""
        end = time.monotonic() + timeout_s
        with self._lock:
            while command_id not in self._results:
                left = end - time.monotonic()
                if left <= 0:
                    return None
                self._lock.wait(left)
            return self._results.pop(command_id)


# =================================================================================================
# medialib/catalog_agents.py, from its line 22
# Agents in the catalogue: what their hello says is kept, and how they are shown.
# =================================================================================================

HELLO_WRITTEN_S = 300.0  # nothing new: the catalogue hears of an agent only this often
AGENT_FACTS = ("port", "version", "protocol", "python", "platform", "hash_algos", "ffprobe")
ROOT_FACTS = ("label", "fs", "rotational", "total_bytes", "free_bytes", "source")
LASTING_ROOT_FACTS = ("path", "state", "reason", "volume", "volume_path", "label", "fs")
ROOT_STATES = ("online", "offline", "scanning")


def save_hello(catalog: Catalog, presence: AgentPresence, agent_id: str, about: dict,
               errors: dict | None, peer: str | None) -> dict:
    """{"last_rev", "roots"} for hello's answer. Written only when something lasting is new."""
    live = presence.get(agent_id)
    signature = hello_signature(about, errors, peer)
    now = catalog.clock()
    if live.signature == signature and now - live.written_at < HELLO_WRITTEN_S:
        with catalog.reader() as db:
            known = find_agent(db, agent_id)
            if known is not None:
                return {"last_rev": known.last_rev, "roots": known_roots(db, known.id)}
    saved = catalog.change(lambda changes: _write_hello(changes, presence, agent_id, about, errors,
                                                        peer))
    live.signature, live.written_at = signature, now
    catalog.agents_changed += 1
    return saved


def hello_signature(about: dict, errors: dict | None, peer: str | None) -> str:
    """Everything of a hello that is worth a write when it differs."""
    roots = [[root.get(name) for name in LASTING_ROOT_FACTS]
             for root in about["roots"] or []]
    facts = [about.get(name) for name in AGENT_FACTS]
    return json.dumps([about["name"], peer, facts, roots, errors], sort_keys=True, default=str)


def known_roots(db, agent_number: int) -> list:
    return [{"path": root.path, "volume": root.volume, "volume_path": root.volume_path,
             "known_files": root.files, "transferred": bool(root.transferred)}
            for root in read_roots(db, agent_number) if not root.implicit]


def _write_hello(changes, presence, agent_id, about, errors, peer) -> dict:
    db, now = changes.db, changes.now
    agent = agent_row(db, agent_id, about["name"], peer, now)
    facts = {name: about.get(name) for name in AGENT_FACTS}
    db.execute("UPDATE agent SET address = ?, last_seen = ?, facts_json = ? WHERE id = ?",
               (peer, now, json.dumps(facts), agent.id))
    if errors is not None:
        db.execute("UPDATE agent SET errors_json = ? WHERE id = ?", (json.dumps(errors), agent.id))
    if about["roots"] is not None:
        _write_roots(changes, presence, agent, about["roots"])
    return {"last_rev": agent.last_rev, "roots": known_roots(db, agent.id)}


def _write_roots(changes, presence, agent, roots: list) -> None:
    """The rows of the reported roots; those that are not reported any more are offline."""
    db = changes.db
    there = [root for root in roots if root.get("state") != "offline"]
    away = [root for root in roots if root.get("state") == "offline"]
    held = {_reported_root(changes, presence, agent, root) for root in there}
    known = held | {_reported_root(changes, presence, agent, root, held) for root in away}
    for root in read_roots(db, agent.id):
        if root.id not in known and not root.implicit:
            touch_root(db, changes.counters, root, state="offline",
                       reason=root.reason or "no longer a root of this machine")
    _free_paths(changes, agent, held)


def _reported_root(changes, presence, agent, reported: dict, held=None) -> int:
    """The root's number, after its row says what the agent does. `held`: see `resolve_root`."""
    db = changes.db
    volume = reported.get("volume") if isinstance(reported.get("volume"), str) else None
    volume_path = reported.get("volume_path")
    volume_path = volume_path if isinstance(volume_path, str) else None
    fsid, fs = (reported.get(name) if isinstance(reported.get(name), str) else None
                for name in ("fsid", "fs"))
    state = reported.get("state") if reported.get("state") in ROOT_STATES else "online"
    reason = reported.get("reason")
    root = resolve_root(db, changes.counters, agent, reported["path"], volume, volume_path,
                        is_alive=functools.partial(holder_is_alive, presence), held=held,
                        told="volume" in reported and held is None, fsid=fsid,
                        fs=fs)
    if root.id in (held or ()):
        return root.id
    facts = {name: reported.get(name) for name in ROOT_FACTS if reported.get(name) is not None}
    # The sizes change all the time and are no news; they are kept with the next real change.
    values = {"state": state, "reason": str(reason)[:500] if reason else None}
    if {**root_facts(root), **facts} != root_facts(root):
        db.execute("UPDATE root SET facts_json = ? WHERE id = ?", (json.dumps(facts), root.id))
    touch_root(db, changes.counters, root, **values)
    return root.id


def _free_paths(changes, agent, held: set) -> None:
    """Two roots of an agent at one path: the one that is not held now is the unplugged one."""
    by_path: dict = {}
    for root in read_roots(changes.db, agent.id):
        by_path.setdefault(root.path, []).append(root)
    for roots in by_path.values():
        if any(root.id in held for root in roots):
            for root in roots:
                if root.id not in held and not root.implicit:
                    touch_root(changes.db, changes.counters, root, state="offline")


def holder_is_alive(presence: AgentPresence, db, agent_number: int, root: CatalogRoot) -> bool:
    """Whether the agent that has this root is running and says the disk is there."""
    if root.state == "offline":
        return False
    row = db.execute("SELECT agent_id FROM agent WHERE id = ?", (agent_number,)).fetchone()
    return row is not None and presence.is_alive(row[0])


# Showing

def agent_list(db, presence: AgentPresence, now: float) -> list:
    """Every agent as `POST /api/agents` shows it, the host's own first, then by name."""
    rows = db.execute("SELECT id, agent_id, name, address, last_rev, first_seen, last_seen,"
                      " facts_json, errors_json FROM agent").fetchall()
    roots: dict = {}
    for root in read_roots(db):
        roots.setdefault(root.agent, []).append(root)
    rejected = dict(db.execute("SELECT agent, count(*) FROM rejected GROUP BY agent").fetchall())
    shown = [_shown_agent(db, presence, row, roots.get(row[0], []), rejected.get(row[0], 0), now)
             for row in rows]
    shown.sort(key=lambda agent: (agent["id"] != "local", agent["name"].lower(), agent["id"]))
    return shown


def _shown_agent(db, presence: AgentPresence, row: tuple, roots: list, rejected: int,
                 now: float) -> dict:
    number, agent_id, name, address, last_rev, first_seen, last_seen, facts, errors = row
    live = presence.get(agent_id)
    alive = live is not None and live.is_alive(now)
    last_seen = max(last_seen, live.last_seen if live else 0.0)
    stats = presence.stats_of(live) if live else {}
    settings = settings_of(db, agent_id)
    configured = settings["remote_roots"]
    facts = json.loads(facts)
    told = (live.about.get("roots") if live else None) or []
    reported = {root["path"]: root for root in told}
    scanning = alive and bool(stats.get("active"))
    return {
        "id": agent_id, "name": name, "address": address, **facts,
        "hash_algo": hash_that_runs(settings["hash_algo"], facts.get("hash_algos")),
        "state": ("scanning" if scanning else "online") if alive else "away",
        "first_seen": first_seen, "last_seen": last_seen, "last_rev": last_rev,
        "stats": stats, "stats_at": live.about.get("stats_at") if live else None,
        "cloned": len(live.contenders) if live else 0,
        "errors": json.loads(errors), "rejected": rejected,
        "files": sum(root.files for root in roots), "bytes": sum(root.bytes for root in roots),
        "missing": sum(root.missing for root in roots),
        "roots": [_shown_root(root, reported.get(root.path), alive, configured)
                  for root in roots],
        "settings": stored_settings(db, agent_id), "remote_roots": configured,
        "commands_waiting": len(live.commands) if live else 0,
    }


def hash_that_runs(asked: str, available) -> str | None:
    """The function a machine really hashes with; None where it has not told what it can."""
    if not isinstance(available, list) or not available:
        return None
    return asked if asked in available else "sha256"


def _shown_root(root: CatalogRoot, reported: dict | None, alive: bool,
                configured: list) -> dict:
    facts = root_facts(root)
    if reported is not None and root.state != "offline":
        facts.update({name: reported[name] for name in ROOT_FACTS
                      if reported.get(name) is not None})
    return {
        "id": root.id, "path": root.path, "state": root.state, "reason": root.reason,
        "volume": root.volume, "volume_path": root.volume_path, **facts,
        "implicit": bool(root.implicit), "transferred": bool(root.transferred),
        "reachable": alive and root.state != "offline",
        "configured": root.path in configured,
        "accept_empty": root.state == "offline" and "empty" in (root.reason or ""),
        "accept_disk": root.state == "offline" and (root.reason or "").startswith(OTHER_DISK),
        "files": root.files, "bytes": root.bytes, "missing": root.missing,
        "missing_bytes": root.missing_bytes, "scan": json.loads(root.scan_json),
    }


def rejected_of(db, agent_number: int, limit: int = 200) -> list:
    """The records that were refused lately, with the reason."""
    rows = db.execute("SELECT path, error, at FROM rejected WHERE agent = ? ORDER BY at DESC"
                      " LIMIT ?", (agent_number, limit)).fetchall()
    return [{"path": path, "error": error, "at": at} for path, error, at in rows]


# =================================================================================================
# medialib/host_upkeep.py, from its line 17
# What the host does by itself: daily copies of the catalogue and the daily row of totals.
# =================================================================================================

BACKUP_FOLDER = "backups"
BACKUP_PREFIX = "medialib-"
BACKUP_STAMP = "%Y%m%d-%H%M%S"
UPKEEP_EVERY_S = 900.0
BACKUP_EVERY_S = 86_400.0
BACKUP_FIRST_S = 60.0  # a host that is started and stopped all the time makes no copies


def backup_folder(folder: str) -> str:
    path = os.path.join(folder, BACKUP_FOLDER)
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


def keep_copy_before_upgrade(folder: str):
    """What `migrate` calls before it changes an existing schema: keeps a copy as it was, one for
    each schema, since a step that fails is tried with every start.
    """
    def keep_copy(store) -> None:
        target = os.path.join(backup_folder(folder),
                              f"before-upgrade-from-{schema_version(store)}.db")
        copy_database(store.path, target)
        log.info("a copy of the catalogue before the upgrade is %s", target)

    return keep_copy


def daily_backups(folder: str) -> list:
    """[(when it was made, path)] of the automatic copies, the oldest first. Their names tell: the
    times of a file are changed by whoever copies it.
    """
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(os.path.join(folder, BACKUP_FOLDER)):
            if name.startswith(BACKUP_PREFIX) and name.endswith(".db"):
                with contextlib.suppress(ValueError, OverflowError):
                    stamp = time.strptime(name[len(BACKUP_PREFIX):-len(".db")], BACKUP_STAMP)
                    found.append((time.mktime(stamp), os.path.join(folder, BACKUP_FOLDER, name)))
    return sorted(found)


def remove_half_copies(folder: str) -> None:
    """What a copy leaves behind when the program is killed in the middle of it."""
    with contextlib.suppress(OSError):
        place = os.path.join(folder, BACKUP_FOLDER)
        for name in os.listdir(place):
            if name.startswith(BACKUP_PREFIX) and name.endswith((".part", ".part-journal")):
                os.remove(os.path.join(place, name))


class HostUpkeep:
    """A thread that looks every quarter of an hour; `tick(now)` is one look."""

    def __init__(self, catalog: Catalog, folder: str):
        self.catalog = catalog
        self.folder = folder
        self._stop = threading.Event()
        self._noted_seq: int | None = None
        self._noted_day = ""
        self._thread = threading.Thread(target=self._loop, name="upkeep", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(2.0)
        with contextlib.suppress(MedialibError):
            self.note_totals(self.catalog.clock())

    def _loop(self) -> None:
        wait_s = BACKUP_FIRST_S
        while not self._stop.wait(wait_s):
            wait_s = UPKEEP_EVERY_S
            try:
                self.tick(self.catalog.clock())
            except (MedialibError, OSError) as error:
                log.warning("upkeep: %s", error)
            except Exception:  # the loop's edge
                log.exception("upkeep failed")

    def tick(self, now: float) -> None:
        if self.catalog.problem is not None:
            return
        self.note_totals(now)
        self.backup_if_due(now)

    def note_totals(self, now: float) -> None:
        """Today's row of the growth chart, when there is something new to write."""
        day = time.strftime("%Y-%m-%d", time.localtime(now))
        if self.catalog.problem is None and (self._noted_seq, self._noted_day) != (
                self.catalog.seq, day):
            self.catalog.write(lambda db: note_daily_totals(db, now))
            self._noted_seq, self._noted_day = self.catalog.seq, day

    def backup_if_due(self, now: float) -> None:
        """A copy when none is younger than a day; the oldest beyond `backup_copies` go."""
        with self.catalog.reader() as db:
            copies = settings_of(db)["backup_copies"]
        if not copies:
            return
        # One from the future, of a clock that was wrong, must not keep us from making more.
        fresh = [path for at, path in daily_backups(self.folder) if 0 <= now - at < BACKUP_EVERY_S]
        if not fresh and self._has_room():
            self._backup(now)
        for _, path in daily_backups(self.folder)[:-copies]:
            with contextlib.suppress(OSError):
                os.remove(path)

    def _backup(self, now: float) -> None:
        stamp = time.strftime(BACKUP_STAMP, time.localtime(now))
        target = os.path.join(backup_folder(self.folder), f"{BACKUP_PREFIX}{stamp}.db")
        remove_half_copies(self.folder)
        self.catalog.backup(target)
        log.info("the catalogue was copied to %s", target)

    def _has_room(self) -> bool:
        size = os.path.getsize(self.catalog.path)
        if shutil.disk_usage(self.folder).free > 2 * size:
            return True
        log.warning("no daily copy of the catalogue: the disk of %s is nearly full", self.folder)
        return False


# =================================================================================================
# medialib/ingest_records.py, from its line 27
# Checking one record of a batch: what is wrong with it in words, or its clean form.
# =================================================================================================

PATH_LENGTH = 32_768
NAME_LENGTH = 4_096
TEXT_LENGTH = 500
STREAMS_LENGTH = 4 << 20
DIGEST_LENGTHS = {"blake3": 64, "sha256": 64, "xxhash64": 16}
HEX_DIGITS = frozenset("0123456789abcdefABCDEF")
MEDIA_NUMBER_MAX = 1 << 53
# An identity as our own agents write it, in numbers that fit our columns but for the time.
PLAIN_KEY = re.compile(
    r"(0|[1-9][0-9]{0,17}):(0|[1-9][0-9]{0,18}):(0|[1-9][0-9]{0,17}):(0|[1-9][0-9]{0,17})")


class RecordError(ValueError):
    """What is wrong with one record, for the one who sent it."""


def is_clean_text(text) -> bool:
    """A string that can be stored and sent as UTF-8: no NUL, no lone surrogate."""
    if not isinstance(text, str):
        return False
    if text.isascii():
        return "\0" not in text
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def check_path(path, what: str = "path") -> str:
    """An absolute text path without empty, "." or ".." parts."""
    if not isinstance(path, str) or not path:
        raise RecordError(f"{what} must be a non-empty text")
    if len(path) > PATH_LENGTH:
        raise RecordError(f"{what} is longer than {PATH_LENGTH} characters")
    if not is_clean_text(path):
        raise RecordError(f"{what} is not valid Unicode or holds a NUL")
    if not is_absolute_text(path):
        raise RecordError(f"{what} must be absolute")
    if path[-1] == "/":
        raise RecordError(f"{what} must not end with /")
    if ("//" in path or "/." in path) and any(
            part in ("", ".", "..") for part in path.split("/")[1:]):
        raise RecordError(f"{what} must not hold empty, . or .. parts")
    return path


class RecordChecker:
    """Checks the records of one batch. `prefix` is what their paths must begin with ("" if the
    batch names no root); `make_classifier()` is called when a record, as of an older agent, says
    only "media" or no kind at all.
    """

    def __init__(self, prefix: str = "", make_classifier=lambda: Classifier({})):
        self.prefix = prefix
        self._make_classifier = make_classifier
        self._classifier: Classifier | None = None
        self._folder: str | None = None  # the last folder found right, for the next file in it
        self._recipe = (None, None, 0)  # the last (algo, sample_size, digits) found right
        self._digest = hashlib.blake2b(digest_size=8)  # copying one costs half of making one

    def check_all(self, raws: list) -> tuple:
        """([FileRecord], [what the answer's "errors" says of the others])."""
        records, errors, index = [], [], 0
        while True:
            index = self._check_plain(raws, index, records)
            if index == len(raws):
                return records, errors
            raw = raws[index]
            try:
                records.append(self.check(index, raw))
            except RecordError as error:
                path = raw.get("path") if isinstance(raw, dict) else None
                shown = path[:1000] if isinstance(path, str) else None
                errors.append({"index": index, "path": shown, "error": str(error)})
            index += 1

    def _check_plain(self, raws: list, start: int, records: list) -> int:
        """Take records from `start` on while they look exactly as our own agents write a file that
        has just been hashed; the number of the first that does not. `check` says the same of each
        of them and takes three times as long: whatever is odd in any way is left to it.
        """
        algo, sample_size, digits = self._recipe
        algo_number, folder, cut = ALGO_CODES.get(algo), self._folder, len(self.prefix)
        parts_of_key, unpacked, index = PLAIN_KEY.fullmatch, bytes.fromhex, start
        try:
            for index in range(start, len(raws)):
                raw = raws[index]
                path, hashes, mtime, ctime = raw["path"], raw["hashes"], raw["mtime"], raw["ctime"]
                size, kind, sample = raw["size"], raw["kind"], hashes["sample_hash"]
                above, _, name = path.rpartition("/")
                if above != folder:
                    self._name(path)
                    folder = self._folder
                size_text, ns_text, ino_text, dev_text = parts_of_key(raw["inode_key"]).groups()
                mtime_ns, packed, full = int(ns_text), unpacked(sample), hashes["full_hash"]
                if (
                    len(raw) != 8 or "ext" not in raw or len(hashes) != 4
                    or name[0] == "." or not name.isprintable()
                    or len(path) > PATH_LENGTH or len(name) > NAME_LENGTH
                    or type(size) is not int or str(size) != size_text or mtime_ns > INT64_MAX
                    or type(mtime) is not float or type(ctime) is not float
                    or not -INT64_MAX < mtime < INT64_MAX or not -INT64_MAX < ctime < INT64_MAX
                    or hashes["algo"] != algo or hashes["sample_size"] != sample_size
                    or type(hashes["sample_size"]) is not int
                    or len(sample) != digits or packed.hex() != sample
                    or not (full is None or (full == sample and size <= 3 * sample_size))
                ):
                    break
                dot = name.rfind(".")
                if mtime_ns // NS_PER_S + 1e-9 * (mtime_ns % NS_PER_S) == mtime:
                    mtime = None  # see ns_as_float
                records.append(tuple.__new__(FileRecord, (
                    index, path, KIND_CODES[kind], name[dot:].lower() if dot > 0 else "", size,
                    mtime_ns, mtime, ctime, int(ino_text), int(dev_text), None, algo_number,
                    sample_size, packed, None, FLAG_WHOLE if full else 0, None, None, None, None,
                    folder, name, self._digest_of(
                        f"{path[cut:]}\0{size_text}:{ns_text}:{ino_text}\0{kind}\0{algo}\0"
                        f"{sample}\0{full or ''}\0{0}") if cut else None)))
            else:
                return len(raws)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            pass  # `check` says what is wrong with it, if anything is
        return index

    def _digest_of(self, text: str) -> bytes:
        digest = self._digest.copy()
        digest.update(text.encode("utf-8"))
        return digest.digest()

    def check(self, index: int, raw) -> FileRecord:
        """One record of any form."""
        if not isinstance(raw, dict):
            raise RecordError("a record must be an object")
        path = raw.get("path")
        name = self._name(path)
        ext = ext_of(name)
        kind, reason = self._kind(raw, name, ext)
        size = raw.get("size")
        if type(size) is not int or not 0 <= size <= INT64_MAX:
            raise RecordError("size must be a whole number from 0 to 2^63-1")
        mtime = check_time(raw.get("mtime"), "mtime")
        ctime = raw.get("ctime")
        if ctime is not None:
            ctime = check_time(ctime, "ctime")
        hashes = raw.get("hashes")
        metadata = raw.get("metadata")
        moved_from = raw.get("moved_from")
        error = raw.get("error")
        # Made without the named tuple's own __new__: this runs for every record of a batch.
        return tuple.__new__(FileRecord, (
            index, path, kind, ext, size, *check_identity(raw.get("inode_key"), size, mtime, ctime),
            *(NO_HASHES if hashes is None else self._hashes(hashes, size)), reason,
            None if metadata is None else check_metadata(metadata),
            None if moved_from is None else check_path(moved_from, "moved_from"),
            None if error is None else check_error(error), self._folder, name, None,
        ))

    def _hashes(self, hashes, size: int) -> tuple:
        checked = check_hashes(hashes, size)
        if checked[0] is not None:
            self._recipe = (ALGO_NAMES[checked[0]], checked[1], 2 * len(checked[2]))
        return checked

    def _name(self, path) -> str:
        """The name at the end of a record's path, when the path is right; the folder is looked at
        once for all of its files that follow one another.
        """
        cut = path.rfind("/") if isinstance(path, str) else -1
        if cut > 0 and path[:cut] == self._folder and len(path) <= PATH_LENGTH:
            name = path[cut + 1:]
            if name.isascii() and "\0" not in name and name not in ("", ".", "..") \
                    and len(name) <= NAME_LENGTH:
                return name
        check_path(path)
        if not path.startswith(self.prefix):
            raise RecordError("path is not inside the batch's root")
        name = path[cut + 1:]
        if not name or len(name) > NAME_LENGTH:
            raise RecordError(f"the name must have 1 to {NAME_LENGTH} characters")
        self._folder = path[:cut]
        return name

    def _kind(self, raw: dict, name: str, ext: str) -> tuple:
        """(code, reason); the reason is kept for junk only."""
        kind, reason = raw.get("kind"), raw.get("reason")
        if kind is None or kind == "media":
            kind, reason = self._classify(name, ext)
        code = KIND_CODES.get(kind) if isinstance(kind, str) else None
        if code is None:
            raise RecordError(f"kind must be one of {', '.join(sorted(KIND_CODES))}")
        if reason is None or kind != "junk":
            return code, None
        if not is_clean_text(reason):
            raise RecordError("reason must be a text")
        return code, reason[:TEXT_LENGTH] or None

    def _classify(self, name: str, ext: str) -> tuple:
        if self._classifier is None:
            self._classifier = self._make_classifier()
        return self._classifier.classify(name, ext)


def check_time(value, what: str) -> float:
    if type(value) is not float and type(value) is not int:
        raise RecordError(f"{what} must be a number of seconds")
    if not abs(value) <= INT64_MAX:  # NaN as well
        raise RecordError(f"{what} must be a number of seconds that a disk can hold")
    return float(value)


def check_identity(key, size: int, mtime: float, ctime: float | None) -> tuple:
    """(mtime_ns, mtime, ctime, ino, dev, key_text), with None where the others tell it exactly."""
    if key is None:
        mtime_ns = clamped_ns(mtime)
        key_text = None if mtime_ns == mtime * NS_PER_S or abs(mtime_ns) < INT64_MAX else (
            f"{size}:{int(mtime * NS_PER_S)}:0:0")
        return mtime_ns, _exact_or_none(mtime, mtime_ns), ctime, 0, 0, key_text
    if not isinstance(key, str) or len(key) > 200:
        raise RecordError("inode_key must be a text such as size:mtime_ns:ino:dev")
    try:
        _, mtime_ns, ino, dev = key.split(":")
        mtime_ns, ino, dev = int(mtime_ns), int(ino), int(dev)
    except ValueError:
        return _unusual_identity(key, size, mtime, ctime)
    # Only the form that we write ourselves comes out as it went in.
    if key == f"{size}:{mtime_ns}:{ino}:{dev}" and 0 <= ino <= INT64_MAX and _fits(mtime_ns, dev):
        return mtime_ns, _exact_or_none(mtime, mtime_ns), ctime, ino, dev, None
    return _unusual_identity(key, size, mtime, ctime)


def _unusual_identity(key: str, size: int, mtime: float, ctime: float | None) -> tuple:
    """The same of an older agent's key, or of numbers that do not fit our columns."""
    try:
        key_size, mtime_ns, ino, dev = parse_inode_key(key)
    except ValueError:
        raise RecordError("inode_key must look like size:mtime_ns:ino:dev") from None
    if key_size != size:
        raise RecordError("inode_key tells another size than size")
    stored_ino = signed_inode(ino)
    key_text = None
    if key != f"{size}:{mtime_ns}:{stored_ino & INODE_MASK}:{dev}" or not _fits(mtime_ns, dev):
        key_text = key
        mtime_ns = clamped_ns(mtime)
        dev = dev if abs(dev) <= INT64_MAX else 0
    return mtime_ns, _exact_or_none(mtime, mtime_ns), ctime, stored_ino, dev, key_text


def _fits(mtime_ns: int, dev: int) -> bool:
    return -INT64_MAX <= mtime_ns <= INT64_MAX and -INT64_MAX <= dev <= INT64_MAX


def _exact_or_none(mtime: float, mtime_ns: int) -> float | None:
    return None if ns_as_float(mtime_ns) == mtime else mtime


NO_HASHES = (None, None, None, None, 0)


def check_hashes(hashes, size: int) -> tuple:
    """(algo, sample_size, sample_hash, full_hash, FLAG_WHOLE or 0)."""
    if not isinstance(hashes, dict):
        raise RecordError("hashes must be an object")
    algo, sample_size = hashes.get("algo"), hashes.get("sample_size")
    sample, full = hashes.get("sample_hash"), hashes.get("full_hash")
    if sample is None and full is None:
        return NO_HASHES
    if not isinstance(algo, str) or algo not in ALGO_CODES:
        raise RecordError(f"hashes.algo must be one of {', '.join(ALGO_CODES)}")
    if type(sample_size) is not int or not 0 < sample_size <= INT64_MAX:
        raise RecordError("hashes.sample_size must be a positive whole number")
    if algo == "xxhash64" and isinstance(sample or full, str) and len(sample or full) == 64:
        algo = "sha256"  # older agents without xxhash kept its label
    if sample is None:
        raise RecordError("hashes.sample_hash is missing")
    same, sample = full == sample, check_digest(sample, algo, "sample_hash")
    if full is not None:
        full = sample if same else check_digest(full, algo, "full_hash")
        if full == sample and size <= 3 * sample_size:
            return algo_code(algo), sample_size, sample, None, FLAG_WHOLE
    return algo_code(algo), sample_size, sample, full, 0


def check_digest(digest, algo: str, what: str) -> bytes:
    wanted = DIGEST_LENGTHS[algo]
    if isinstance(digest, str) and len(digest) == wanted:
        try:
            packed = bytes.fromhex(digest)  # it passes over blanks, which leave it too short
        except ValueError:
            packed = b""
        if 2 * len(packed) == wanted:
            return packed
    raise RecordError(f"hashes.{what} must be {wanted} hexadecimal digits for {algo}")


def check_metadata(metadata) -> tuple:
    """(duration, container, video_codec, audio_codecs as JSON text, width, height, bitrate,
    streams_json); what ffprobe did not tell ("N/A") is None.
    """
    if not isinstance(metadata, dict):
        raise RecordError("metadata must be an object")
    streams = metadata.get("streams_json")
    if streams is not None and (not is_clean_text(streams) or len(streams) > STREAMS_LENGTH):
        raise RecordError(f"metadata.streams_json must be a text of at most {STREAMS_LENGTH} bytes")
    return (
        _media_number(metadata, "duration", float),
        _media_text(metadata, "container"), _media_text(metadata, "video_codec"),
        _audio_codecs(metadata.get("audio_codecs")),
        _media_number(metadata, "width", int), _media_number(metadata, "height", int),
        _media_number(metadata, "bitrate", int), streams,
    )


def _media_number(metadata: dict, key: str, number_type):
    value = metadata.get(key)
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None  # "N/A"
    if not isinstance(value, (int, float)):
        raise RecordError(f"metadata.{key} must be a number or null")
    if not 0 <= value <= MEDIA_NUMBER_MAX:  # nor NaN
        return None
    return number_type(value)


def _media_text(metadata: dict, key: str) -> str | None:
    value = metadata.get(key)
    if value is None:
        return None
    if not is_clean_text(value) or len(value) > TEXT_LENGTH:
        raise RecordError(f"metadata.{key} must be a short text or null")
    return value


def _audio_codecs(value) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list) or len(value) > 1000 or not all(
            is_clean_text(codec) and len(codec) <= TEXT_LENGTH for codec in value):
        raise RecordError("metadata.audio_codecs must be a list of short texts or null")
    return json.dumps(value, ensure_ascii=False)


def check_error(error) -> tuple:
    """(stage, class, message) of what the agent could not do with the file."""
    if not isinstance(error, dict):
        raise RecordError("error must be an object")
    texts = [error.get(key, "") for key in ("stage", "class", "message")]
    if not all(is_clean_text(text) for text in texts):
        raise RecordError("error must hold the texts stage, class and message")
    return tuple(text[:TEXT_LENGTH] for text in texts)


# =================================================================================================
# medialib/ingest_repeats.py, from its line 17
# Batches that older agents post again and again, word for word: known by their bytes, they need
# =================================================================================================

REPEATS_KEPT = 20_000
# The part of such a body that is new each time, as it comes without any escape.
OLDER_HEAD = re.compile(rb'\{"batch_id": ?"([0-9A-Za-z._:@+-]{1,200})", ?(?="files": ?\[)')


class UnreadBatch:
    """The body of an older agent's batch. `state` is set by the writer (see `repeat_state`) when it
    has found that the batch, now applied, would say nothing new a second time.
    """

    def __init__(self, batch_id: str, digest: bytes, body):
        self.batch_id = batch_id
        self.digest = digest  # of everything behind the batch_id
        self.state: tuple | None = None
        self._body = body

    def read(self) -> dict:
        """The body's object, once."""
        body, self._body = self._body, None
        return parse_json_object(body)


def open_batch(body) -> dict | UnreadBatch:
    """The object in a body, unread where it may be a repeated batch."""
    head = OLDER_HEAD.match(body)
    if head is None:
        return parse_json_object(body)
    digest = hashlib.blake2b(memoryview(body)[head.end():], digest_size=16).digest()
    return UnreadBatch(head.group(1).decode("ascii"), digest, body)


def repeat_state(changes) -> tuple:
    """Equal at two times when nothing happened between them that could make a batch that said
    nothing new say something.
    """
    db = changes.db
    return (changes.tools.rows_taken,
            *db.execute("SELECT max(seq), count(*) FROM root").fetchone(),
            hash(tuple(db.execute("SELECT scope, name, value_json FROM setting"))))


class BatchRepeats:
    """Remembers the latest batches of older agents that would say nothing new."""

    def __init__(self):
        self._lock = threading.Lock()  # guards _known
        self._known: collections.OrderedDict = collections.OrderedDict()

    def remember(self, unread: UnreadBatch, body: dict, agent_id: str) -> None:
        """Note a batch that was applied and committed, if it may be known again."""
        if unread.state is None or set(body) != {"batch_id", "files"} or (
                body["batch_id"] != unread.batch_id):
            return
        with self._lock:
            self._known[agent_id, unread.digest] = (unread.state, len(body["files"]))
            while len(self._known) > REPEATS_KEPT:
                self._known.popitem(last=False)

    def find(self, unread: UnreadBatch, agent_id: str) -> tuple | None:
        """(state, number of files) of the same batch, if it is known."""
        with self._lock:
            return self._known.get((agent_id, unread.digest))


# =================================================================================================
# medialib/catalog_filter.py, from its line 25
# The filter of `POST /api/files` and its like: JSON in, conditions on the tables out.
# =================================================================================================

FILTER_VALUES = 500
FILE_STATES = ("present", "missing", "offline")
COPIES_SQL = (
    "coalesce((SELECT max(g.copies) FROM duplicate g WHERE g.state = 1 AND g.size = f.size"
    " AND g.algo = f.algo AND g.hash = CASE WHEN f.flags & 1 THEN f.sample_hash"
    " ELSE f.full_hash END), 1)"
)
HASH_SQL = (
    f"((substr(f.sample_hash, 1, {HASH_PREFIX_BYTES}) = ? AND f.sample_hash = ?)"
    f" OR (substr(f.full_hash, 1, {HASH_PREFIX_BYTES}) = ? AND f.full_hash = ?))"
)


_LINES_SQL = "max(m.height, coalesce(m.width, 0) * 9 / 16)"
RESOLUTION_SQL = "CASE " + " ".join(
    f"WHEN {_LINES_SQL} >= {bound} THEN {bound}" for bound, _ in RESOLUTION_CLASSES) + " END"


class FilterError(UsageError):
    """A filter, sort or limit that cannot be meant."""


@dataclass
class FileFilter:
    """Conditions on f (file), d (folder) and m (metadata, if `needs_meta`), all of which must hold,
    and words to be found in the path. `roots` are those a file may be in; `kinds`, `exts`,
    `missing_only`, `hash` and `under` tell how few rows can be in question.
    """

    roots: dict
    conditions: list = field(default_factory=list)
    values: list = field(default_factory=list)
    words: list = field(default_factory=list)
    kinds: list = field(default_factory=lambda: sorted(KIND_CODES.values()))
    exts: list | None = None
    missing_only: bool = False
    states: set | None = None  # of FILE_STATES, where not all are wanted
    numbers: dict = field(default_factory=dict)  # {key: the words' numbers that are wanted}
    hash: bytes | None = None
    under: list | None = None  # [(root id, key from, key to)]
    needs_meta: bool = False
    all_roots: bool = True
    plain: set = field(default_factory=set)  # names of the keys that were given

    def add(self, condition: str, *values) -> None:
        self.conditions.append(condition)
        self.values.extend(values)

    def add_under(self) -> None:
        parts = ["(d.root = ? AND d.key >= ? AND d.key < ?)" for _ in self.under]
        self.add("(" + (" OR ".join(parts) or "0") + ")",
                 *[value for part in self.under for value in part])

    def where(self) -> str:
        return " AND ".join(self.conditions) if self.conditions else "1"


class FilterReader:
    """Turns a JSON filter into a FileFilter; FilterError names the key that is wrong."""

    def __init__(self, db, words: dict, searchable: bool = False):
        self.db = db
        self.folders_with = WordFolders(db, searchable)
        self.word_ids = {text: number for number, text in words.items()}
        self.agents = {row[0]: row[1:] for row in
                       db.execute("SELECT id, agent_id, name FROM agent")}
        self.roots = {root.id: root for root in read_roots(db)}

    def read(self, raw) -> FileFilter:
        if raw is None:
            raw = {}
        if not isinstance(raw, dict):
            raise FilterError("filter must be an object")
        found = FileFilter(dict(self.roots))
        for key, value in raw.items():
            reader = _FILTER_KEYS.get(key)
            if reader is None:
                raise FilterError(f"filter has no key {key!r}; it knows "
                                  + ", ".join(sorted(_FILTER_KEYS)))
            if value is None or value == "" or value == []:
                continue
            found.plain.add(key)
            reader(self, found, key, value)
        self._limit_roots(found)
        for condition, values in word_conditions(found.words, found.roots, self.folders_with):
            found.add(condition, *values)
        return found

    def _limit_roots(self, found: FileFilter) -> None:
        if len(found.roots) < len(self.roots):
            found.all_roots = False
            marks = ",".join("?" * len(found.roots))
            found.add(f"d.root IN ({marks})", *found.roots)

    # -- keys ------------------------------------------------------------------------------------

    def read_words(self, found, key, value) -> None:
        if not is_clean_text(value) or len(value) > 1000:
            raise FilterError("filter.q must be a text of at most 1000 characters")
        found.words = search_words(value)

    def read_agent(self, found, key, value) -> None:
        wanted = set(self._texts(key, value))
        found.roots = {number: root for number, root in found.roots.items()
                       if not wanted.isdisjoint(self.agents[root.agent])}

    def read_root(self, found, key, value) -> None:
        values = value if isinstance(value, list) else [value]
        if not all(type(one) in (int, str) for one in values) or len(values) > FILTER_VALUES:
            raise FilterError("filter.root must be a root's path or number, or a list of them")
        found.roots = {number: root for number, root in found.roots.items()
                       if number in values or root.path in values}

    def read_under(self, found, key, value) -> None:
        path = normal_root_path(self._texts(key, value)[0])
        found.under = []
        for number, root in list(found.roots.items()):
            bounds = keys_under(root, path)
            if bounds is None:
                del found.roots[number]
            else:
                found.under.append((number, *bounds))
        found.add_under()

    def read_folder(self, found, key, value) -> None:
        """Files directly in one folder."""
        path = normal_root_path(self._texts(key, value)[0])
        found.under = []
        for number, root in list(found.roots.items()):
            bounds = keys_under(root, path) if (path + "/").startswith(root.path) else None
            if bounds is None:
                del found.roots[number]
            else:
                found.under.append((number, bounds[0], bounds[0] + b"\0"))
        parts = ["(d.root = ? AND d.key = ?)" for _ in found.under]
        found.add("(" + (" OR ".join(parts) or "0") + ")",
                  *[value for part in found.under for value in part[:2]])

    def read_resolution(self, found, key, value) -> None:
        bounds = {name: bound for bound, name in RESOLUTION_CLASSES}
        names = self._texts(key, value)
        if not set(names) <= set(bounds):
            raise FilterError(f"filter.resolution must be of {', '.join(bounds)}")
        found.needs_meta = True
        wanted = ",".join(str(bounds[name]) for name in names)
        found.add(f"m.height IS NOT NULL AND {RESOLUTION_SQL} IN ({wanted})")

    def read_kind(self, found, key, value) -> None:
        names = self._texts(key, value)
        for name in names:
            if name not in KIND_CODES:
                raise FilterError(f"filter.kind must be of {', '.join(KIND_CODES)}")
        found.kinds = sorted({KIND_CODES[name] for name in names})
        found.add(f"f.kind IN ({','.join('?' * len(found.kinds))})", *found.kinds)

    def read_ext(self, found, key, value) -> None:
        texts = [normal_extension(text) for text in self._texts(key, value, empty=True)]
        found.exts = [self.word_ids[text] for text in texts if text in self.word_ids]
        found.numbers[key] = found.exts
        found.add(f"f.ext IN ({','.join('?' * len(found.exts))})", *found.exts)

    def read_reason(self, found, key, value) -> None:
        self._read_word_column(found, "f.reason", key, value)

    def _read_word_column(self, found, column: str, key: str, value) -> None:
        numbers = [self.word_ids[text] for text in self._texts(key, value)
                   if text in self.word_ids]
        found.numbers[key] = numbers
        found.add(f"{column} IN ({','.join('?' * len(numbers))})", *numbers)

    def read_state(self, found, key, value) -> None:
        states = set(self._texts(key, value))
        if not states <= set(FILE_STATES):
            raise FilterError(f"filter.state must be of {', '.join(FILE_STATES)}")
        if states == set(FILE_STATES):
            return
        offline = [root.id for root in self.roots.values() if root.state == "offline"]
        marks = ",".join("?" * len(offline))
        parts, values = [], []
        for state in sorted(states):
            if state == "missing":
                parts.append(f"f.state = {STATE_MISSING}")
                continue
            inside = "IN" if state == "offline" else "NOT IN"
            parts.append(f"(f.state = {STATE_PRESENT} AND d.root {inside} ({marks}))")
            values += offline
        found.missing_only, found.states = states == {"missing"}, states
        if states == {"offline"}:
            found.roots = {number: root for number, root in found.roots.items()
                           if root.state == "offline"}
        found.add("(" + " OR ".join(parts) + ")", *values)

    def read_range(self, found, key, value) -> None:
        low, high = self._bounds(key, value)
        column = _RANGE_COLUMNS[key]
        if key == "mtime":
            low, high = (None if bound is None else clamped_ns(bound) for bound in (low, high))
        if column.startswith("m."):
            found.needs_meta = True
        if low is not None:
            found.add(f"{column} >= ?", low)
        if high is not None:
            found.add(f"{column} <= ?", high)

    def _bounds(self, key: str, value) -> tuple:
        if type(value) in (int, float):
            value = {"min": value, "max": value}
        if not isinstance(value, dict) or not set(value) <= {"min", "max"}:
            raise FilterError(f"filter.{key} must be {{\"min\", \"max\"}}")
        bounds = (value.get("min"), value.get("max"))
        for bound in bounds:
            if bound is not None and (type(bound) not in (int, float) or bound != bound
                                      or abs(bound) > INT64_MAX):
                raise FilterError(f"filter.{key} must have numbers as min and max")
        return bounds

    def read_video_codec(self, found, key, value) -> None:
        found.needs_meta = True
        self._read_word_column(found, "m.video_codec", key, value)

    def read_container(self, found, key, value) -> None:
        found.needs_meta = True
        self._read_word_column(found, "m.container", key, value)

    def read_audio_codec(self, found, key, value) -> None:
        """Files with one of these among their audio codecs, which are one word as a JSON list."""
        found.needs_meta = True
        quoted = [f'"{text}"' for text in self._texts(key, value)]
        lists = [number for text, number in self.word_ids.items()
                 if text.startswith("[") and any(one in text for one in quoted)]
        found.numbers[key] = lists
        found.add(f"m.audio_codecs IN ({','.join(map(str, lists))})")

    def read_hash(self, found, key, value) -> None:
        if not isinstance(value, str) or len(value) not in (16, 64) or not (
                HEX_DIGITS.issuperset(value)):
            raise FilterError("filter.hash must be 16 or 64 hexadecimal digits")
        found.hash = bytes.fromhex(value)
        prefix = found.hash[:HASH_PREFIX_BYTES]
        found.add(HASH_SQL, prefix, found.hash, prefix, found.hash)

    def read_probed(self, found, key, value) -> None:
        self._read_flag(found, key, value, FLAG_PROBED)

    def read_error(self, found, key, value) -> None:
        self._read_flag(found, key, value, FLAG_ERROR)

    def _read_flag(self, found, key, value, flag: int) -> None:
        if not isinstance(value, bool):
            raise FilterError(f"filter.{key} must be true or false")
        found.add(f"f.flags & {flag} {'<>' if value else '='} 0")

    def _texts(self, key: str, value, *, empty: bool = False) -> list:
        values = value if isinstance(value, list) else [value]
        if len(values) > FILTER_VALUES or not all(
                is_clean_text(text) and (text or empty) for text in values):
            raise FilterError(f"filter.{key} must be a text or a list of texts")
        return values


_RANGE_COLUMNS = {
    "size": "f.size", "mtime": "f.mtime_ns", "duration": "m.duration", "height": "m.height",
    "bitrate": "m.bitrate", "copies": COPIES_SQL, "first_seen": "f.first_seen",
    "changed": "f.changed",
}
_FILTER_KEYS = {
    "q": FilterReader.read_words, "agent": FilterReader.read_agent,
    "root": FilterReader.read_root, "under": FilterReader.read_under,
    "folder": FilterReader.read_folder, "resolution": FilterReader.read_resolution,
    "kind": FilterReader.read_kind, "ext": FilterReader.read_ext,
    "reason": FilterReader.read_reason, "state": FilterReader.read_state,
    "video_codec": FilterReader.read_video_codec, "audio_codec": FilterReader.read_audio_codec,
    "container": FilterReader.read_container, "hash": FilterReader.read_hash,
    "probed": FilterReader.read_probed, "error": FilterReader.read_error,
    **dict.fromkeys(_RANGE_COLUMNS, FilterReader.read_range),
}


def keys_under(root: CatalogRoot, path: str) -> tuple | None:
    """[from, to) of the keys of a root's folders at or below an absolute path, or None if none can
    be: the folder's own key, and those that go on with NUL.
    """
    above = path if path.endswith("/") else path + "/"
    if root.prefix().startswith(above):
        return b"", b"\xff"
    if not path.startswith(root.prefix()):
        return None
    key = folder_key_bytes(path[len(root.prefix()):])
    return key, key + b"\x01"


# =================================================================================================
# medialib/catalog_folders.py, from its line 11
# Folders with what is in them, from the totals kept with each folder.
# =================================================================================================

FOLDERS_SHOWN = 500
DEEPER_SHOWN = 60


class FolderPages:
    """POST /api/folders for one request."""

    def __init__(self, db):
        self.db = db
        self.agents = {number: {"id": agent_id, "name": name} for number, agent_id, name
                       in db.execute("SELECT id, agent_id, name FROM agent")}

    def answer(self, body: dict) -> dict:
        depth, limit = body.get("depth", 1), body.get("limit", FOLDERS_SHOWN)
        if depth not in (1, 2) or type(limit) is not int or not 1 <= limit <= 5000:
            raise FilterError("depth must be 1 or 2 and limit a whole number from 1 to 5000")
        agent, path = body.get("agent"), body.get("path")
        if agent is None:
            return self._roots(read_roots(self.db), None, depth, limit)
        found = find_agent(self.db, agent) if isinstance(agent, str) else None
        if found is None:
            raise FilterError("agent must be the id of an agent that is known")
        roots = read_roots(self.db, found.id)
        if path is None or path == "":
            return self._roots(roots, self.agents[found.id], depth, limit)
        if not isinstance(path, str):
            raise FilterError("path must be a text")
        return self._below(roots, normal_root_path(path), depth, limit)

    def _roots(self, roots: list, agent: dict | None, depth: int, limit: int) -> dict:
        """The roots themselves as the folders on top."""
        shown = [self._root_item(root, depth) for root in roots if root.files or not root.implicit]
        shown.sort(key=lambda item: (-item["bytes"], item["path"]))
        return {
            "agent": agent, "path": None, "root": None, "parent": None, "state": "online",
            "files": sum(item["files"] for item in shown),
            "bytes": sum(item["bytes"] for item in shown), "own": {"files": 0, "bytes": 0},
            "folders": shown[:limit], "more": max(0, len(shown) - limit),
        }

    def _root_item(self, root: CatalogRoot, depth: int) -> dict:
        item = {"name": root.path, "path": root.path, "agent": self.agents[root.agent],
                "state": root.state, "files": root.files, "bytes": root.bytes}
        if depth == 2:
            top = self._folder(root, "")
            item["folders"] = self._children(root, top[0], 1, DEEPER_SHOWN)[0] if top else []
        return item

    def _folder(self, root: CatalogRoot, rel: str):
        """(id, files, bytes, tree_files, tree_bytes) or None."""
        return self.db.execute(
            "SELECT id, files, bytes, tree_files, tree_bytes FROM folder"
            " WHERE root = ? AND key = ?", (root.id, folder_key_bytes(rel))).fetchone()

    def _below(self, roots: list, path: str, depth: int, limit: int) -> dict:
        root, rel, row = self._locate(roots, path)
        files, more = self._children(root, row[0], depth, limit) if row else ([], 0)
        _, own_files, own_bytes, tree_files, tree_bytes = row or (0, 0, 0, root.files, root.bytes)
        return {
            "agent": self.agents[root.agent], "path": path, "root": root.path,
            "parent": root.path_of(parent_of(rel)) if rel else None, "state": root.state,
            "files": tree_files, "bytes": tree_bytes,
            "own": {"files": own_files, "bytes": own_bytes}, "folders": files, "more": more,
        }

    def _locate(self, roots: list, path: str) -> tuple:
        """(root, relative path, row): a root's own folder has a row once something is in it."""
        holding = [root for root in roots if (path + "/").startswith(root.prefix())
                   or path == root.path]
        holding.sort(key=lambda root: (-len(root.path), root.state == "offline", -root.seq))
        for root in holding:
            rel = path[len(root.prefix()):] if path != root.path else ""
            row = self._folder(root, rel)
            if row is not None or not rel:
                return root, rel, row
        raise FilterError(f"there is no folder {path[:500]} in the catalogue of this agent")

    def _children(self, root: CatalogRoot, folder_id: int, depth: int, limit: int) -> tuple:
        """(items, how many were left off), largest first; folders without files are left out."""
        rows = self.db.execute(
            "SELECT id, key, tree_files, tree_bytes FROM folder WHERE parent = ? AND tree_files > 0"
            " ORDER BY tree_bytes DESC, key LIMIT ?", (folder_id, limit + 1)).fetchall()
        more = 0
        if len(rows) > limit:
            more = self.db.execute("SELECT count(*) FROM folder WHERE parent = ? AND"
                                   " tree_files > 0", (folder_id,)).fetchone()[0] - limit
        items = []
        for child_id, key, files, size in rows[:limit]:
            rel = rel_of_key(key)
            item = {"name": name_of(rel), "path": root.path_of(rel),
                    "agent": self.agents[root.agent], "state": root.state, "files": files,
                    "bytes": size}
            if depth == 2:
                item["folders"] = self._children(root, child_id, 1, DEEPER_SHOWN)[0]
            items.append(item)
        return items, more


# =================================================================================================
# medialib/catalog_tokens.py, from its line 13
# Where a page ended, as a text for the one who asks for the next; and how long a page may be.
# =================================================================================================

PAGE_LIMIT = 1000
PAGE_DEFAULT = 100


def encode_token(*parts) -> str:
    packed = json.dumps(parts, separators=(",", ":")).encode("utf-8")
    return base64.urlsafe_b64encode(packed).decode("ascii").rstrip("=")


def decode_token(token, length: int) -> list:
    """The parts of a `next` of ours; FilterError for anything else."""
    try:
        packed = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        parts = json.loads(packed)
    except (TypeError, ValueError):
        parts = None
    if not isinstance(parts, list) or len(parts) != length or not all(map(is_bindable, parts)):
        raise FilterError("after must be the next of an earlier answer to the same question")
    return parts


def is_bindable(part) -> bool:
    """Whether SQLite can be asked for it; tokens are kept by whoever asks, and may come changed."""
    if type(part) is int:
        return -INT64_MAX <= part <= INT64_MAX
    if type(part) is float:
        return math.isfinite(part)
    return is_clean_text(part)


def page_limit(body: dict, default: int = PAGE_DEFAULT, highest: int = PAGE_LIMIT) -> int:
    limit = body.get("limit", default)
    if type(limit) is not int or not 1 <= limit <= highest:
        raise FilterError(f"limit must be a whole number from 1 to {highest}")
    return limit


# =================================================================================================
# medialib/catalog_copies.py, from its line 23
# Duplicates as they are shown: groups by gain, their files, and one file's other copies.
# =================================================================================================

GROUP_FILES = 50  # of one group; "names" says how many there are
GROUPS_LOOKED_AT = 2000  # for one page of a filtered list
COPIES_TIME_S = 2.0
GROUP_STATES = {"confirmed": GROUP_CONFIRMED, "candidate": GROUP_CANDIDATE}
GROUP_FROM = (
    "FROM file f JOIN folder d ON d.id = f.folder"
    f" WHERE substr(f.{{column}}, 1, {HASH_PREFIX_BYTES}) = ? AND f.{{column}} = ?"
    " AND f.size = ? AND f.algo = ? AND f.state = 0 {more}"
)


def group_sources(state: int, hash_: bytes, size: int, algo: int, sample_size: int) -> list:
    """[(FROM … WHERE …, values)] that together are the files of a group, each once."""
    values = [hash_[:HASH_PREFIX_BYTES], hash_, size, algo]
    if state == GROUP_CANDIDATE:
        return [(GROUP_FROM.format(column="sample_hash", more="AND f.sample_size = ?"),
                 (*values, sample_size))]
    return [
        (GROUP_FROM.format(column="sample_hash", more=f"AND f.flags & {FLAG_WHOLE}"), values),
        (GROUP_FROM.format(column="full_hash", more=f"AND NOT f.flags & {FLAG_WHOLE}"), values),
    ]


def group_rows(db, key: tuple, limit: int, condition: str = "1", values=()) -> list:
    """[(*FileRow, root, key)] of a group's files that meet a condition on f and d."""
    rows: list = []
    for source, own in group_sources(*key):
        left = limit - len(rows)
        if left > 0:
            rows += db.execute(f"SELECT {FILE_COLUMNS_OF_F}, d.root, d.key {source} AND"
                               f" ({condition}) ORDER BY f.id LIMIT ?",
                               (*own, *values, left)).fetchall()
    return rows


def file_copies(db, shower: FileShower, row: FileRow) -> list:
    """Other paths of the same bytes, and files whose samples are equal and that may differ
    elsewhere; each with "match": confirmed, candidate, or link (the same bytes on the disk).
    """
    if row.sample_hash is None or not row.size:
        return []
    full = full_hash_of(row)
    same = []
    if full is not None:
        same = group_rows(db, (GROUP_CONFIRMED, full, row.size, row.algo, 0), GROUP_FILES)
    known = {one[0] for one in same} | {row.id}
    sampled = group_rows(
        db, (GROUP_CANDIDATE, row.sample_hash, row.size, row.algo, row.sample_size), GROUP_FILES)
    alike = [one for one in sampled if one[0] not in known
             and (full is None or full_hash_of(FileRow(*one[:-2])) is None)]
    own = next((copy_key_of(shower, one) for one in [*same, *sampled] if one[0] == row.id), None)
    copies = []
    for match, rows in (("confirmed", same), ("candidate", alike)):
        for one in rows:
            if one[0] != row.id:
                linked = copy_key_of(shower, one) == own
                copies.append({**_shown(shower, one), "match": "link" if linked else match})
    return copies


def copy_key_of(shower: FileShower, row: tuple) -> tuple:
    """Equal for two paths of the same bytes, as DuplicateMember has it."""
    file, root = FileRow(*row[:-2]), shower.roots[row[-2]]
    return DuplicateMember(
        file.id, file.size, file.algo, file.sample_size, file.sample_hash, file.full_hash,
        file.flags, file.ino, file.dev, root.agent, root.volume).copy_key()


def _shown(shower: FileShower, row: tuple) -> dict:
    return shower.show(FileRow(*row[:-2]), row[-2], row[-1])


class DuplicatePages:
    """POST /api/duplicates for one request: groups by gain, confirmed ones first."""

    def __init__(self, db, words: dict, reader):
        self.db = db
        self.reader = reader
        self.shower = FileShower(db, words, {root.id: root for root in read_roots(db)})
        self.end_at = time.monotonic() + COPIES_TIME_S

    def page(self, body: dict, highest: int = 200) -> tuple:
        """([group], next token or None). A group is shown when one of its files meets the filter;
        all its files are shown.
        """
        raw_filter = body.get("filter") or {}
        if not isinstance(raw_filter, dict):
            raise FilterError("filter must be an object")
        limit, after = page_limit(body, 50, highest), body.get("after")
        state = body.get("state")
        if state is not None and not (isinstance(state, str) and state in GROUP_STATES):
            raise FilterError("state must be confirmed or candidate")
        filter_ = self.reader.read(raw_filter)
        groups, looked_at, last = [], 0, None
        for row in self._groups(GROUP_STATES.get(state), after and decode_token(after, 3)):
            last, looked_at = row, looked_at + 1
            if not filter_.plain or self._meets(filter_, row):
                groups.append(self._show(row))
            full = len(groups) == limit or looked_at >= GROUPS_LOOKED_AT
            if full or time.monotonic() > self.end_at:
                return groups, encode_token(*last[:3])
        return groups, None

    def _groups(self, state: int | None, after: list | None):
        """Rows of `duplicate`, largest gain first, from behind a position."""
        condition, values = "1", []
        if after is not None:
            condition = "(reclaimable, potential, id) < (?, ?, ?)"
            values = list(after)
        if state is not None:
            condition += " AND state = ?"
            values.append(state)
            if state == GROUP_CANDIDATE:
                condition += " AND reclaimable = 0"
        return self.db.execute(
            "SELECT reclaimable, potential, id, state, hash, size, algo, sample_size, copies, files"
            f" FROM duplicate INDEXED BY duplicate_gain WHERE {condition}"
            " ORDER BY reclaimable DESC, potential DESC, id DESC", values)

    def _meets(self, filter_: FileFilter, row: tuple) -> bool:
        """Whether any file of the group meets the filter."""
        join = "f.id IN (SELECT m.file FROM metadata m WHERE m.file = f.id AND {})"
        condition = join.format(filter_.where()) if filter_.needs_meta else filter_.where()
        limit = GROUP_FILES if filter_.words else 1
        for one in group_rows(self.db, self._key(row), limit, condition, filter_.values):
            if not filter_.words:
                return True
            path = self.shower.roots[one[-2]].path_of(
                join_rel(rel_of_key(one[-1]), FileRow(*one[:-2]).name))
            if text_matches(filter_.words, path):
                return True
        return False

    def _key(self, row: tuple) -> tuple:
        _, _, _, state, hash_, size, algo, sample_size, _, _ = row
        return state, hash_, size, algo, sample_size

    def _show(self, row: tuple) -> dict:
        reclaimable, potential, number, state, hash_, size, algo, sample_size, copies, files = row
        rows = group_rows(self.db, self._key(row), GROUP_FILES)
        shown, numbers = [_shown(self.shower, one) for one in rows], {}
        for file, one in zip(shown, rows):
            file["copy"] = numbers.setdefault(copy_key_of(self.shower, one), len(numbers))
        return {
            "id": number, "size": size, "algo": ALGO_NAMES.get(algo), "hash": hash_.hex(),
            "state": "confirmed" if state == GROUP_CONFIRMED else "candidate",
            "copies": copies, "names": files, "reclaimable": reclaimable, "potential": potential,
            "files": shown,
            "truncated": files > len(rows),
        }


# =================================================================================================
# medialib/catalog_propose.py, from its line 10
# Which few rows can match a filter at all: by search index, hash, folder, extension or state.
# =================================================================================================

FEW_FILES = 8000  # fetching and sorting these takes less time than walking past as many
FEW_OF_ALL = 400  # in large catalogues, where one walks further: this part of it
MANY_FILES = 40_000  # fetched for a search where walking has found too little for a while
FEW_FOLDERS = 2500
FEW_ENTRIES = 150_000  # of the search index, read in the time of some thousand rows
LOOKED_AT_PER_FETCH = 10  # names read from an index in the time of one row that is fetched
ID_CHUNK = 500


def few_files(filter_: FileFilter) -> int:
    """How many rows are fetched and sorted rather than walked to in the order of an index."""
    total = sum(root.files + root.missing for root in filter_.roots.values())
    return max(FEW_FILES, total // FEW_OF_ALL)


def proposed_files(db, filter_: FileFilter, searchable: bool, room: int = 0) -> list | None:
    """[(FROM clause, values)] of sources whose rows are all that can match, few of them; None when
    no such source is known, or where words look so common that finding out would take long. With
    `room` about so many are looked for, however long that takes. A row may be in several.
    """
    if filter_.hash is not None:
        return _hash_source(filter_.hash)
    if not filter_.roots:
        return []
    for source in (_missing_source, _ext_source, _under_source, _root_source):
        found = source(db, filter_)
        if found is not None:
            return found
    if not searchable or not filter_.words:
        return None
    return _word_sources(db, filter_, room)


def _hash_source(digest: bytes) -> list:
    prefix = digest[:HASH_PREFIX_BYTES]
    return [(f"(SELECT * FROM file x WHERE substr(x.{column}, 1, {HASH_PREFIX_BYTES}) = ?"
             f" AND x.{column} IS NOT NULL) f JOIN folder d ON d.id = f.folder", (prefix,))
            for column in ("sample_hash", "full_hash")]


def _missing_source(db, filter_: FileFilter) -> list | None:
    if not filter_.missing_only:
        return None
    total = sum(root.missing for root in filter_.roots.values())
    whole = db.execute("SELECT coalesce(sum(missing), 0) FROM root").fetchone()[0]
    if whole > max(FEW_FILES, 4 * total) or total > FEW_FILES:
        return None
    return [(f"file f INDEXED BY file_missing JOIN folder d ON d.id = f.folder"
             f" AND f.state = {STATE_MISSING}", ())]


def _ext_source(db, filter_: FileFilter) -> list | None:
    """Rare extensions, or all extensions of a rare kind or junk reason."""
    exts = filter_.exts
    if exts is None and "kind" in filter_.plain:
        marks = ",".join("?" * len(filter_.kinds))
        exts = [row[0] for row in db.execute(
            f"SELECT DISTINCT ext FROM tally WHERE kind IN ({marks}) LIMIT 500", filter_.kinds)]
    if exts is None or len(exts) >= 500:
        return None
    marks = ",".join("?" * len(exts))
    total = db.execute(f"SELECT coalesce(sum(files), 0) FROM tally WHERE ext IN ({marks})",
                       exts).fetchone()[0]
    if total > FEW_FILES:
        return None
    return [(f"(SELECT * FROM file x INDEXED BY file_ext WHERE x.ext IN ({marks})) f"
             " JOIN folder d ON d.id = f.folder", tuple(exts))]


def _under_source(db, filter_: FileFilter) -> list | None:
    if filter_.under is None:
        return None
    sources, total = [], 0
    for root_id, first, end in filter_.under:
        row = db.execute("SELECT tree_files FROM folder WHERE root = ? AND key = ?",
                         (root_id, first)).fetchone()
        total += (row[0] if row else 0) + filter_.roots[root_id].missing if (
            root_id in filter_.roots) else 0
        sources += _folder_range(root_id, first, end)
    return sources if total <= FEW_FILES else None


def _root_source(db, filter_: FileFilter) -> list | None:
    if filter_.all_roots:
        return None
    if sum(root.files + root.missing for root in filter_.roots.values()) > FEW_FILES:
        return None
    return [source for root_id in filter_.roots
            for source in _folder_range(root_id, b"", b"\xff")]


def _folder_range(root_id: int, first: bytes, end: bytes) -> list:
    """Present and missing rows below a range of folders: their paths are indexed apart."""
    return [("(SELECT * FROM folder WHERE root = ? AND key >= ? AND key < ?) d CROSS JOIN"
             f" file f INDEXED BY {index} ON f.folder = d.id AND f.state = {state}",
             (root_id, first, end))
            for index, state in (("file_path", 0), ("file_missing", 1))]


# Words

def _word_sources(db, filter_: FileFilter, room: int) -> list | None:
    """What the words can be in, root by root: those in a root's own path say nothing about it."""
    wanted = set()
    for root in filter_.roots.values():
        above = root.path.lower()
        wanted.add(tuple(part for part in usable_parts(filter_.words) if part not in above))
    sources = [_names_not_indexed(db)]
    for parts in sorted(wanted):
        if not parts:
            return None
        search = _PartSearch(db, parts, room or few_files(filter_))
        if not room and search.entries() > FEW_ENTRIES:
            return None
        found = search.sources()
        if found is None:
            return None
        sources += found
    return sources


def _names_not_indexed(db) -> tuple:
    """Files the index has not come to yet."""
    first = db.execute("SELECT value FROM counter WHERE name = 'searchable'").fetchone()[0]
    return "(SELECT * FROM file x WHERE x.id > ?) f JOIN folder d ON d.id = f.folder", (first,)


class _PartSearch:
    """Files with each of these texts in their name or in their folder's path: those with all in the
    name, and of the folders with some, the files with the others in the name. Or, where a text
    names too many folders, everything that holds any other one of them.
    """

    def __init__(self, db, parts: tuple, room: int):
        self.db = db
        self.room = room
        self.trigrams = rarest_trigrams(db, parts)
        self.parts = list(self.trigrams)  # the rarest first
        self._folders: dict = {}

    def entries(self) -> float:
        """About how much of the index of names is read for all parts."""
        names = self.db.execute("SELECT value FROM counter WHERE name = 'searchable'").fetchone()[0]
        return names * sum(share for share, _ in self._asked(self.parts))

    def _asked(self, parts: list) -> list:
        return worth_asking([one for part in parts for one in self.trigrams[part]])

    def sources(self) -> list | None:
        for parts in [self.parts, *([part] for part in self.parts if len(self.parts) > 1)]:
            if all(self.folders_with(part) is not None for part in parts):
                found = self._sources_of(parts)
                if found is not None:
                    return found
        return None

    def folders_with(self, part: str) -> dict | None:
        """{folder: files in it}, None if they are too many."""
        if part not in self._folders:
            self._folders[part] = self._folders_with(part)
        return self._folders[part]

    def _folders_with(self, part: str) -> dict | None:
        ids = proposed_ids(self.db, "folder_search", trigrams_of(part), FEW_FOLDERS + 1)
        if ids is None or len(ids) > FEW_FOLDERS:
            return None
        folders: dict = {}
        for some in id_chunks(ids):
            folders.update(self.db.execute("SELECT id, files FROM folder WHERE id IN"
                                           f" ({','.join('?' * len(some))})", some).fetchall())
        return folders

    def _sources_of(self, parts: list) -> list | None:
        by_rest, left = self._folders_by_rest(parts), self.room
        for rest, folders in by_rest.items():
            files = sum(folders.values())
            left -= files // LOOKED_AT_PER_FETCH if rest else files
        trigrams = [one for _, one in self._asked(parts)]
        names = proposed_ids(self.db, "name_search", trigrams, left + 1) if left >= 0 else None
        if names is None or len(names) > left:
            return None
        sources = files_by_id(names)
        for rest, folders in by_rest.items():
            sources += _files_in(folders, rest)
        return sources

    def _folders_by_rest(self, parts: list) -> dict:
        """{parts that are not in the folder: {folder: files in it}}"""
        held: dict = {}
        for part in parts:
            for folder in self.folders_with(part):
                held.setdefault(folder, []).append(part)
        by_rest: dict = {}
        for folder, some in held.items():
            rest = tuple(part for part in parts if part not in some)
            by_rest.setdefault(rest, {})[folder] = self.folders_with(some[0])[folder]
        return by_rest


def id_chunks(ids):
    ordered = sorted(ids)
    for start in range(0, len(ordered), ID_CHUNK):
        yield tuple(ordered[start:start + ID_CHUNK])


def files_by_id(ids: list) -> list:
    """The sources that are these files."""
    return [(f"(SELECT * FROM file x WHERE x.id IN ({','.join('?' * len(some))})) f"
             " JOIN folder d ON d.id = f.folder", some) for some in id_chunks(ids)]


def _files_in(folders, rest: tuple) -> list:
    """Files of the folders whose names can hold the rest; the index of paths alone tells that."""
    names = [name_condition(part) for part in rest]
    conditions = " AND ".join(["1", *(condition for condition, _ in names)])
    values = tuple(value for _, own in names for value in own)
    return [(f"(SELECT * FROM folder WHERE id IN ({','.join('?' * len(some))})) d CROSS JOIN"
             f" file f INDEXED BY {index} ON f.folder = d.id AND f.state = {state}"
             f" AND {conditions}", (*some, *values))
            for some in id_chunks(folders)
            for index, state in (("file_path", 0), ("file_missing", 1))]


# =================================================================================================
# medialib/catalog_words.py, from its line 7
# Whether a file's path holds all words of a search.
# =================================================================================================

FOLDER_TEXTS = 4096  # kept at a time


class PathWords:
    """The words of one filter. Most are found in the name; what stands above it is put together
    once for each folder.
    """

    def __init__(self, words: list, roots: dict):
        self.words = words
        self.roots = roots
        self._above: dict = {}

    def match(self, name: str, root_id: int, key: bytes) -> bool:
        low = name.lower()
        left = [word for word in self.words if word not in low]
        if not left:
            return True
        path = self._text_above(root_id, key) + low
        return all(word in path for word in left)

    def _text_above(self, root_id: int, key: bytes) -> str:
        text = self._above.get((root_id, key))
        if text is None:
            if len(self._above) >= FOLDER_TEXTS:
                self._above.clear()
            path = self.roots[root_id].path_of(rel_of_key(key)).lower()
            text = path if path.endswith("/") else path + "/"
            self._above[root_id, key] = text
        return text


# =================================================================================================
# medialib/catalog_places.py, from its line 10
# Places in sorted lists: what is compared, which index leads there, and the rows at them.
# =================================================================================================

PLACE_CHUNK = 500


@dataclass(frozen=True)
class SortKey:
    """One way to sort. `column` is what is compared; rows of one value of it go by their number.
    `index` leads with f.kind when `by_kind`, and with what `pin` (condition, values) holds fixed.
    """

    name: str
    column: str
    index: str = ""
    by_kind: bool = False
    collate: str = ""
    meta: bool = False
    pin: tuple = ()

    def key_of(self, value):
        """A Python value that compares as SQLite compares the column."""
        if self.collate:
            return value.encode("utf-8", "surrogatepass").lower()
        return value

    def checked(self, after: list) -> list:
        """The [value, number] of a token; FilterError where they are no place in this list."""
        value, number = after
        fits = isinstance(value, str) if self.collate else type(value) in (int, float)
        if not fits or type(number) is not int:
            raise FilterError("after does not belong to this sort")
        return after

    def pins(self, filter_) -> list:
        """[(condition, values)]: in each of these the index has the order of the list."""
        if self.by_kind:
            return [("f.kind = ?", (kind,)) for kind in filter_.kinds]
        if self.pin:
            return [self.pin]
        return [(f"{self.column} IS NOT NULL" if self.meta else "1", ())]

    def parts_behind(self, order: str, pin: tuple, after) -> list:
        """[(condition, values)] that together are what comes after `after`, in this order."""
        base, values = pin
        if after is None:
            return [(base, values)]
        than = "<" if order == "desc" else ">"
        row_id = "m.file" if self.meta else "f.id"
        if self.column == row_id:
            return [(f"{base} AND {row_id} {than} ?", (*values, after[1]))]
        return [
            (f"{base} AND {self.column} = ?{self.collate} AND {row_id} {than} ?",
             (*values, after[0], after[1])),
            (f"{base} AND {self.column} {than} ?{self.collate}", (*values, after[0])),
        ]

    def source(self, *, bare: bool) -> tuple:
        """(FROM …, the row's number) where the sort's index comes first."""
        index = f"INDEXED BY {self.index}" if self.index else "NOT INDEXED"
        if self.meta:
            joined = " CROSS JOIN file f ON f.id = m.file CROSS JOIN folder d ON d.id = f.folder"
            return f"metadata m {index}{'' if bare else joined}", "m.file"
        return f"file f {index}{'' if bare else ' CROSS JOIN folder d ON d.id = f.folder'}", "f.id"


SORT_KEYS = {
    key.name: key for key in (
        SortKey("name", "f.name", "file_name", by_kind=True, collate=" COLLATE NOCASE"),
        SortKey("size", "f.size", "file_size", by_kind=True),
        SortKey("mtime", "f.mtime_ns", "file_mtime", by_kind=True),
        SortKey("changed", "f.seq", "file_seq"),
        SortKey("first_seen", "f.id"),
        SortKey("duration", "m.duration", "metadata_duration", meta=True),
        SortKey("height", "m.height", "metadata_height", meta=True),
        SortKey("bitrate", "m.bitrate", "metadata_bitrate", meta=True),
    )
}


@dataclass
class FoundRow:
    """A row's place: `at` is its sort value. `root` 0 marks how far a walk came. `row` is None
    until `whole_rows` has fetched it.
    """

    at: object
    id: int
    name: str = ""
    root: int = 0
    key: bytes = b""
    row: FileRow | None = None


def found_place(row: tuple) -> FoundRow:
    """Of (sort value, id, name, root, key)."""
    return FoundRow(*row)


def whole_rows(db, places: list) -> list:
    """The same places with their rows."""
    rows = {}
    for start in range(0, len(places), PLACE_CHUNK):
        ids = [one.id for one in places[start:start + PLACE_CHUNK]]
        for row in db.execute(f"SELECT {FILE_COLUMNS_OF_F} FROM file f WHERE f.id IN"
                              f" ({','.join('?' * len(ids))})", ids):
            rows[row[0]] = FileRow(*row)
    for one in places:
        one.row = rows[one.id]
    return places


# =================================================================================================
# medialib/catalog_by_path.py, from its line 14
# Files in the order of the walk: root by root, folder by folder.
# =================================================================================================

LAST_NAME = "\U0010ffff"


def name_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


class PathWalk:
    """The files of one filter by path; `pages` is the request's FilePages."""

    def __init__(self, pages, filter_, order: str):
        self.pages = pages
        self.db = pages.db
        self.filter = filter_
        self.reverse = order == "desc"
        self.words = PathWords(filter_.words, pages.reader.roots)
        self.roots = sorted(filter_.roots.values(), reverse=self.reverse,
                            key=lambda root: (root.path.split("/"), root.id))

    def find(self, proposed, after, limit: int) -> tuple:
        """([FoundRow], next token or None)."""
        position = self.position_of(after)
        if proposed is not None:
            return self._candidates(proposed, position, limit)
        return self._walked(position, limit)

    def position_of(self, after) -> tuple | None:
        """(root, key, name, id) of a token, and `roots` without those before it."""
        if after is None:
            return None
        root_id, key_text, name, file_id = decode_token(after, 4)
        numbers = [root.id for root in self.roots]
        try:
            self.roots = self.roots[numbers.index(root_id):]
            return root_id, bytes.fromhex(key_text), name, file_id
        except (TypeError, ValueError):
            raise FilterError("after does not belong to this question") from None

    def _candidates(self, proposed, position, limit) -> tuple:
        rank = {root.id: number for number, root in enumerate(self.roots)}
        if self.reverse:
            rank = {root: -number for root, number in rank.items()}
        rows = [row for row in self.pages.matching(self.filter, proposed, "0",
                                                   self.filter.needs_meta) if row[-2] in rank]

        def place(row):
            return rank[row[-2]], row[-1], name_bytes(row[-3]), row[-4]

        if position is not None:
            last = (rank[position[0]], position[1], name_bytes(position[2]), position[3])
            rows = [row for row in rows
                    if (place(row) < last if self.reverse else place(row) > last)]
        pick = heapq.nlargest if self.reverse else heapq.nsmallest
        ordered = pick(limit + 1, rows, key=place)
        files = [found_place(row) for row in ordered[:limit]]
        return files, path_token(files[-1]) if len(ordered) > limit else None

    def _walked(self, position, limit) -> tuple:
        files = []
        for root, folder_id, key, after in self._folders(position):
            for found in self._files_in(root, folder_id, key, after):
                files.append(found)
                if len(files) == limit:
                    return files, path_token(found)
            if time.monotonic() > self.pages.end_at:
                return files, folder_end_token(root.id, key, self.reverse)
        return files, None

    def _folders(self, position):
        """(root, folder id, key, (name, id) to go on behind or None)."""
        for root in self.roots:
            behind = position[1] if position is not None and position[0] == root.id else None
            for folder_id, key, _ in self.folders_of(root, behind):
                here = behind is not None and key == behind
                yield root, folder_id, key, position[2:] if here else None

    def folders_of(self, root: CatalogRoot, behind: bytes | None = None):
        """(id, key, present files in it) of the folders in question, from one of them on."""
        than, direction = ("<", "DESC") if self.reverse else (">", "ASC")
        first, end = next((part[1:] for part in self.filter.under or () if part[0] == root.id),
                          (b"", b"\xff"))
        condition, values = "", ()
        if behind is not None:
            condition, values = f" AND key {than}= ?", (behind,)
        return self.db.execute(
            f"SELECT id, key, files FROM folder WHERE root = ? AND key >= ? AND key < ?{condition}"
            f" ORDER BY key {direction}", (root.id, first, end, *values))

    def _files_in(self, root: CatalogRoot, folder_id, key, after):
        """Present and missing files of one folder, by name, that match."""
        than, direction = ("<", "DESC") if self.reverse else (">", "ASC")
        condition, values = "", ()
        if after is not None:
            condition = f" AND f.name {than}= ? AND (f.name {than} ? OR f.id {than} ?)"
            values = (after[0], after[0], after[1])
        join = " JOIN metadata m ON m.file = f.id" if self.filter.needs_meta else ""
        parts = [self.db.execute(
            f"SELECT 0, f.id, f.name, d.root, d.key FROM file f INDEXED BY {index}"
            f" CROSS JOIN folder d ON d.id = f.folder{join}"
            f" WHERE f.folder = ? AND f.state = {state}{condition} AND {self.filter.where()}"
            f" ORDER BY f.name {direction}, f.id {direction}",
            (folder_id, *values, *self.filter.values))
            for index, state in (("file_path", 0), ("file_missing", 1))
            if not state or root.missing]
        for row in heapq.merge(*parts, key=lambda one: (name_bytes(one[2]), one[1]),
                               reverse=self.reverse):
            if self.words.match(*row[-3:]):
                yield found_place(row)


def path_token(found: FoundRow) -> str:
    return encode_token(found.root, found.key.hex(), found.name, found.id)


def folder_end_token(root_id: int, key: bytes, reverse: bool) -> str:
    """Where a folder ends in the list."""
    return encode_token(root_id, key.hex(), "" if reverse else LAST_NAME, 0)


# =================================================================================================
# medialib/catalog_sections.py, from its line 28
# Lists sorted by what has few values: kind, extension, state, machine, codec, container, reason.
# =================================================================================================

SECTION_COLUMNS = {  # the value of a row, by which its section is found
    "kind": "f.kind", "ext": "f.ext", "reason": "f.reason", "state": "d.root * 2 + f.state",
    "agent": "d.root", "video_codec": "m.video_codec", "audio_codec": "m.audio_codecs",
    "container": "m.container",
}
SECTION_FIELDS = {"video_codec": FACET_VIDEO_CODEC, "audio_codec": FACET_AUDIO_CODEC,
                  "container": FACET_CONTAINER}
SECTION_SORTS = tuple(SECTION_COLUMNS)
SECTION_STATES = ("missing", "offline", "present")


class Section(NamedTuple):
    """The rows of one value. `number` stands for it in tokens, `values` are those of the column;
    `sort` is the order within.
    """

    number: int
    label: str
    values: frozenset
    filter: FileFilter
    sort: object


def narrowed(filter_: FileFilter, condition: str, values=(), **changes) -> FileFilter:
    """The filter with one condition more; "1" is none."""
    if condition == "1":
        return dataclasses.replace(filter_, **changes)
    return dataclasses.replace(filter_, conditions=[*filter_.conditions, condition],
                               values=[*filter_.values, *values], **changes)


def within_roots(filter_: FileFilter, numbers, condition: str = "1", **changes) -> FileFilter:
    """The filter limited to some of its roots."""
    roots = {number: filter_.roots[number] for number in numbers}
    if filter_.all_roots and len(roots) == len(filter_.roots):
        return narrowed(filter_, condition, **changes)
    inside = narrowed(filter_, f"d.root IN ({','.join('?' * len(roots))})", roots, roots=roots,
                      all_roots=False)
    return narrowed(inside, condition, **changes)


class SectionWalk:
    """The files of one filter in such an order; `pages` is the request's FilePages."""

    def __init__(self, pages, filter_: FileFilter, sort: str, order: str):
        self.pages = pages
        self.db = pages.db
        self.filter = filter_
        self.sort = sort
        self.order = order
        maker = {"kind": self._kinds, "state": self._states, "agent": self._agents}
        sections = maker.get(sort, self._words)()
        self.sections = sorted(sections, key=lambda one: (one.label, one.number),
                               reverse=order == "desc")

    # -- sections --------------------------------------------------------------------------------

    def _kinds(self):
        for kind in self.filter.kinds:
            yield Section(kind, KIND_NAMES[kind], frozenset([kind]), narrowed(
                self.filter, "f.kind = ?", [kind], kinds=[kind],
                plain=self.filter.plain | {"kind"}), "name")

    def _states(self):
        offline = {root.id for root in self.filter.roots.values() if root.state == "offline"}
        online = set(self.filter.roots) - offline
        missing = {root.id for root in self.filter.roots.values() if root.missing}
        present = f"f.state = {STATE_PRESENT}" if missing else "1"
        parts = (
            (missing, STATE_MISSING, f"f.state = {STATE_MISSING}", {"missing_only": True}),
            (offline, STATE_PRESENT, present, {}), (online, STATE_PRESENT, present, {}))
        for number, (label, (roots, code, condition, changes)) in enumerate(
                zip(SECTION_STATES, parts)):
            if roots and (self.filter.states is None or label in self.filter.states):
                yield Section(number, label, frozenset(root * 2 + code for root in roots),
                              within_roots(self.filter, roots, condition, **changes), "name")

    def _agents(self):
        agents: dict = {}
        for root in self.filter.roots.values():
            agents.setdefault(root.agent, []).append(root.id)
        for number, roots in agents.items():
            name = self.pages.shower.agents[number]["name"].lower()
            yield Section(number, name, frozenset(roots), within_roots(self.filter, roots), "path")

    def _words(self):
        """Sections of what is kept as a number of a word."""
        column, words = SECTION_COLUMNS[self.sort], self.pages.words
        for number in self._word_numbers():
            changes: dict = {}
            sort: object = "name"
            if self.sort == "ext":
                changes = {"exts": [number], "plain": self.filter.plain | {"ext"}}
                sort = SortKey("ext", "f.id", "file_ext", pin=("f.ext = ?", (number,)))
            elif self.sort == "reason":
                changes = {"kinds": [KIND_CODES["junk"]], "plain": self.filter.plain | {"kind"}}
            else:
                changes = {"needs_meta": True}
                sort = SortKey(self.sort, "m.file", meta=True, pin=(f"{column} = ?", (number,)))
            label = words[number]
            if self.sort == "audio_codec":  # several, as a JSON list
                label = " ".join(json.loads(label))
            yield Section(number, label, frozenset([number]),
                          narrowed(self.filter, f"{column} = ?", [number], **changes), sort)

    def _word_numbers(self) -> list:
        roots = self.filter.roots
        marks = ",".join("?" * len(roots))
        if self.sort in SECTION_FIELDS:
            rows = self.db.execute(
                f"SELECT DISTINCT value FROM facet WHERE field = ? AND root IN ({marks})",
                (SECTION_FIELDS[self.sort], *roots))
        else:
            rows = self.db.execute(
                f"SELECT DISTINCT {self.sort} FROM tally WHERE root IN ({marks})", tuple(roots))
        numbers = [row[0] for row in rows.fetchall() if row[0] or self.sort != "reason"]
        wanted = self.filter.numbers.get(self.sort)
        return numbers if wanted is None else [one for one in numbers if one in wanted]

    # -- pages -----------------------------------------------------------------------------------

    def find(self, after, limit: int) -> tuple:
        """([FoundRow], next token or None)."""
        sections, inner = self._from(after)
        candidates = self._candidates()
        files: list = []
        for section in sections:
            proposed = None
            if candidates is not None:
                proposed = files_by_id(self._ids_of(candidates, section))
                if not proposed:
                    inner = None
                    continue
            found, inner = self.pages.find_sorted(section.filter, section.sort, self.order, inner,
                                                  limit - len(files), proposed=proposed)
            files += found
            if inner is not None:
                return files, encode_token(section.number, inner)
            if len(files) == limit and section is not sections[-1]:
                return files, encode_token(section.number, "end")
        return files, None

    def _from(self, after) -> tuple:
        """(the sections from that place on, the place in the first of them)."""
        if after is None:
            return self.sections, None
        number, inner = decode_token(after, 2)
        for position, section in enumerate(self.sections):
            if section.number == number:
                if inner == "end":
                    return self.sections[position + 1:], None
                return self.sections[position:], inner
        raise FilterError("after does not belong to this question")

    def _candidates(self) -> dict | None:
        """{value: [file numbers]} where few can match at all."""
        proposed = proposed_files(self.db, self.filter, self.pages.searchable)
        if proposed is None:
            return None
        column = SECTION_COLUMNS[self.sort]
        found: dict = {}
        for row in self.pages.matching(self.filter, proposed, column,
                                       self.filter.needs_meta or column.startswith("m.")):
            found.setdefault(row[0], []).append(row[1])
        return found

    def _ids_of(self, candidates: dict, section: Section) -> list:
        return [one for value in section.values for one in candidates.get(value, ())]


# =================================================================================================
# medialib/catalog_sample.py, from its line 11
# Looking at some files from all over the catalogue, where looking at all would take too long.
# =================================================================================================

SAMPLE_BLOCK = 100  # file numbers; those of one folder lie close together
BLOCKS_AT_ONCE = 20  # by one statement: beside a busy thread each waits for its turn several times


def spread_out(count: int):
    """The numbers below `count`, each once, such that any first part of them lies all over."""
    step = max(1, round(count * 0.618))
    while math.gcd(step, count) != 1:
        step += 1
    for number in range(count):
        yield number * step % count


def sampled_rows(pages, filter_: FileFilter, columns: str, meta: bool):
    """(how many blocks have been looked at, which part of all files that is, the rows of the latest
    that match as `pages.matching` yields them), some blocks at a time, until there is none left.
    """
    last = pages.db.execute("SELECT value FROM counter WHERE name = 'file'").fetchone()[0]
    blocks = -(-last // SAMPLE_BLOCK)
    inside = narrowed(filter_, f"f.id > block.column1 AND f.id <= block.column1 + {SAMPLE_BLOCK}")
    order, seen = spread_out(blocks), 0
    while seen < blocks:
        starts = [number * SAMPLE_BLOCK for number in itertools.islice(order, BLOCKS_AT_ONCE)]
        seen += len(starts)
        # By number, whatever index the filter would have: each would be read through for each block
        source = (f"(VALUES {', '.join(['(?)'] * len(starts))}) block"
                  " CROSS JOIN file f NOT INDEXED CROSS JOIN folder d ON d.id = f.folder")
        yield seen, seen / blocks, pages.matching(inside, [(source, starts)], columns, meta)


# =================================================================================================
# medialib/catalog_skip.py, from its line 22
# Far places of a sorted list: the row behind so many others.
# =================================================================================================

SKIP_MOST = 1 << 40
SKIP_NEAR = 5000
SKIP_TIME_S = 0.5
SKIP_WALK_S = 2.0
SAMPLE_BLOCKS = 80
SAMPLE_LEAST = 40
SKIP_STEPS = 20_000  # SQLite asks after so many steps whether it is to stop


def skip_count(body: dict, name: str = "skip") -> int:
    skip = body.get(name) or 0
    if type(skip) is not int or not 0 <= skip <= SKIP_MOST:
        raise FilterError(f"{name} must be a whole number that is not negative")
    return skip


class FarPlace:
    """The place behind `skip` rows of the list that starts at body's `after`; `of` in the body is
    about how many rows the whole list has.
    """

    def __init__(self, pages, filter_: FileFilter, sort, order: str, body: dict, skip: int):
        self.pages = pages
        self.db = pages.db
        self.filter = filter_
        self.sort = sort
        self.order = order
        self.after = body.get("after")
        self.skip = skip
        self.of = skip_count(body, "of")

    def found(self) -> tuple:
        """(token of that place, or None where the list ends before it; what the answer says of
        it: {} where it cannot be found).
        """
        if self.skip <= SKIP_NEAR or self._candidates() is not None:
            token, rough = self._walked()
        else:
            place = self._counted(SKIP_TIME_S)
            if place is None and self.after is None and self.of:
                place = self._shared()
            if place is None:
                return None, {}
            token, rough = place
        return token, {"skipped": self.skip, **({"approximate": True} if rough else {})}

    def _candidates(self):
        return proposed_files(self.db, self.filter, self.pages.searchable)

    def _walked(self) -> tuple:
        """A page may end early; near places are worth the time of several."""
        token, left, end_at = self.after, self.skip, time.monotonic() + SKIP_WALK_S
        while True:
            files, token = self.pages.find_sorted(self.filter, self.sort, self.order, token, left)
            left -= len(files)
            if token is None or not left or time.monotonic() > end_at:
                return token, token is not None and left > 0

    def _counted(self, time_s: float) -> tuple | None:
        """(token or None, whether it is only about right), or None where it cannot be counted, or
        not in time.
        """
        if self.sort in SECTION_SORTS:
            return self._in_sections() if self.after is None else None
        if self.sort == "path":
            return self._in_folders() if self.after is None else None
        if self.filter.words:  # they are compared outside of SQL
            return None
        return self._in_index(time_s)

    def _shared(self) -> tuple | None:
        """The place at the same share of a list that can be counted."""
        share = min(1.0, self.skip / self.of)
        if self.sort != "path" and self.sort not in SECTION_SORTS:
            return self._sampled(share)
        every = bare_filter(self.filter, self.sort)
        place = FarPlace(self.pages, every, self.sort, self.order, {}, 0)
        total = place._rows()
        place.skip = int(share * total)
        if not 0 < place.skip < total:
            return None
        found = place._counted(SKIP_TIME_S)
        return None if found is None or found[0] is None else (found[0], True)

    def _sampled(self, share: float) -> tuple | None:
        """The place at that share of some rows that match; of any rows, where few of them do."""
        key = SORT_KEYS.get(self.sort, self.sort)
        for filter_ in (self.filter, FileFilter(dict(self.pages.reader.roots))):
            found: list = []
            meta = filter_.needs_meta or key.meta
            for blocks, _, rows in sampled_rows(self.pages, filter_, key.column, meta):
                found += [(key.key_of(row[0]), row[1], row[0]) for row in rows
                          if row[0] is not None]
                if blocks >= SAMPLE_BLOCKS:
                    break
            if len(found) >= SAMPLE_LEAST:
                found.sort(reverse=self.order == "desc")
                _, number, value = found[min(len(found) - 1, int(share * len(found)))]
                return encode_token(value, number), True
        return None

    def _rows(self) -> int:
        """How long the list of a bare filter is."""
        if self.sort in SECTION_SORTS:
            return sum(size for _, size in self._sections())
        if self.filter.under is not None:
            return sum(self.db.execute(
                "SELECT coalesce(sum(files), 0) FROM folder WHERE root = ? AND key >= ?"
                " AND key < ?", part).fetchone()[0] for part in self.filter.under)
        return sum(root.files + root.missing for root in self.filter.roots.values())

    # -- an index --------------------------------------------------------------------------------

    def _in_index(self, time_s: float) -> tuple | None:
        key = SORT_KEYS.get(self.sort, self.sort)
        after = decode_token(self.after, 2) if self.after is not None else None
        direction = "DESC" if self.order == "desc" else "ASC"
        parts, values = [], []
        for pin in key.pins(self.filter):
            for condition, own in key.parts_behind(self.order, pin, after):
                statement, bound = self._index_part(key, condition)
                parts.append(statement)
                values += [*own, *bound]
        # SQLite merges the parts as their indexes yield them; nothing is sorted or kept.
        statement = (" UNION ALL ".join(parts) + f" ORDER BY v{key.collate} {direction},"
                     f" i {direction} LIMIT 1 OFFSET ?")
        done, row = self._within_time(time_s, statement, (*values, self.skip - 1))
        return (encode_token(*row) if row is not None else None, False) if done else None

    def _index_part(self, key, condition: str) -> tuple:
        """(SELECT of one range of the index, the filter's values). What the range itself holds
        fixed need not be asked of its rows.
        """
        fixed = ("f.kind ",) if key.by_kind else key.pin[:1] or (" ",)
        bare = all(one.startswith(fixed) for one in self.filter.conditions)
        source, row_id = key.source(bare=bare)
        columns = f"SELECT {key.column} AS v, {row_id} AS i FROM {source}"
        if bare:
            return f"{columns} WHERE {condition}", ()
        needs_join = self.filter.needs_meta and not key.meta
        join = " JOIN metadata m ON m.file = f.id" if needs_join else ""
        return f"{columns}{join} WHERE {condition} AND {self.filter.where()}", self.filter.values

    def _within_time(self, time_s: float, statement: str, values) -> tuple:
        end = time.monotonic() + time_s
        self.db.set_progress_handler(lambda: time.monotonic() > end, SKIP_STEPS)
        try:
            row = self.db.execute(statement, values).fetchone()
        except sqlite3.OperationalError as error:
            if "interrupted" not in str(error):
                raise
            return False, None
        finally:
            self.db.set_progress_handler(None, 0)
        return True, row

    # -- folders ---------------------------------------------------------------------------------

    def _in_folders(self) -> tuple | None:
        if not self.filter.plain <= {"agent", "root", "under"}:
            return None
        walk = PathWalk(self.pages, self.filter, self.order)
        left, roots = self.skip, walk.roots
        for root in roots:
            if self.filter.under is None and root.files + root.missing < left:
                left -= root.files + root.missing
                continue
            token, left = self._in_root(walk, root, left)
            if token is not None:
                return token, False
        return None, False

    def _in_root(self, walk: PathWalk, root, left: int) -> tuple:
        """(the place behind so many rows of a root, by the totals of its folders; how many are
        left to pass where the root has fewer).
        """
        missing = {}
        if root.missing:
            missing = dict(self.db.execute(
                "SELECT f.folder, count(*) FROM file f INDEXED BY file_missing JOIN folder d"
                " ON d.id = f.folder AND d.root = ? WHERE f.state = 1 GROUP BY 1", (root.id,)))
        before = None
        for folder_id, key, files in walk.folders_of(root):
            held = files + missing.get(folder_id, 0)
            if held >= left:
                after = None if before is None else folder_end_token(root.id, before, walk.reverse)
                return self._in_folder(walk, root, after, left), left
            left -= held
            before = key
        return None, left

    def _in_folder(self, walk: PathWalk, root, after, left: int) -> str | None:
        """The place behind the first files of the folder that comes after `after`."""
        start = walk.roots.index(root)
        walk.roots = walk.roots[start:]
        places, _ = walk.find(None, after, left)
        return path_token(places[-1]) if len(places) == left else None

    # -- sections --------------------------------------------------------------------------------

    def _sections(self) -> list:
        """[(section, its rows)] in the order of the list."""
        sizes = self._section_sizes()
        return [(section, sum(sizes.get(value, 0) for value in section.values))
                for section in SectionWalk(self.pages, self.filter, self.sort, self.order).sections]

    def _in_sections(self) -> tuple | None:
        if not self.filter.plain <= {"agent", "root"}:
            return None
        left = self.skip
        for section, size in self._sections():
            if size < left:
                left -= size
                continue
            inner = FarPlace(self.pages, section.filter, section.sort, self.order, {"of": size},
                             left)
            token, told = inner.found()
            if not told:
                return None
            return encode_token(section.number, "end" if token is None else token), (
                "approximate" in told)
        return None, False

    def _section_sizes(self) -> dict:
        """{value: rows}, whatever their state, in the roots of the filter."""
        roots = tuple(self.filter.roots)
        marks = ",".join("?" * len(roots))
        if self.sort in SECTION_FIELDS:
            rows = self.db.execute(f"SELECT value, sum(files) FROM facet WHERE field = ? AND root"
                                   f" IN ({marks}) GROUP BY 1",
                                   (SECTION_FIELDS[self.sort], *roots))
        else:
            column = {"state": "root * 2 + state", "agent": "root"}.get(self.sort, self.sort)
            rows = self.db.execute(f"SELECT {column}, sum(files) FROM tally WHERE root IN"
                                   f" ({marks}) GROUP BY 1", roots)
        return dict(rows.fetchall())


def bare_filter(filter_: FileFilter, sort: str) -> FileFilter:
    """The same without what is asked of single rows. What the list is ordered by stays limited."""
    every = FileFilter(dict(filter_.roots), all_roots=filter_.all_roots)
    if not every.all_roots:
        every.add(f"d.root IN ({','.join('?' * len(every.roots))})", *every.roots)
    if sort == "kind":
        every.kinds = filter_.kinds
    elif sort == "path" and "under" in filter_.plain:
        every.under, every.plain = filter_.under, {"under"}
        every.add_under()
    else:
        every.states, every.numbers = filter_.states, filter_.numbers
    return every


# =================================================================================================
# medialib/catalog_files.py, from its line 28
# Pages of files: filtered, sorted, the deepest as fast as the first.
# =================================================================================================

WINDOW_FIRST = 2000
WINDOW_LARGEST = 10_000
WALK_FIRST_WINDOWS = 6  # some ten thousand rows
PAGE_TIME_S = 0.25
SORT_NAMES = (*SORT_KEYS, *SECTION_SORTS, "path")


class FilePages:
    """Answers for one request on one reader's connection."""

    def __init__(self, catalog, db, *, time_s: float | None = None):
        self.db = db
        self.words = catalog.words(db)
        self.searchable = catalog.tools.search.usable
        self.reader = FilterReader(db, self.words, self.searchable)
        self.shower = FileShower(db, self.words, self.reader.roots)
        self.time_s = PAGE_TIME_S if time_s is None else time_s
        self.end_at = time.monotonic() + self.time_s

    def page(self, body: dict) -> dict:
        """{"files", "next"} for the body of POST /api/files; with "skip" from behind so many rows,
        where "skipped" says so, and "approximate" that the place is about right.
        """
        limit, skip, far = page_limit(body), skip_count(body), {}
        if skip:
            filter_ = self.reader.read(body.get("filter"))
            token, far = FarPlace(self, filter_, *sort_of(body), body, skip).found()
            if far and token is None:
                return {"files": [], "next": None, **far}
            body = {**body, "after": token} if far else body
            self.end_at = time.monotonic() + self.time_s
        places, token = self.find(body, limit)
        files = self.shower.show_all(whole_rows(self.db, places))
        return {"files": files, "next": token, **far}

    def one(self, file_id: int) -> dict | None:
        """One file with "streams" of ffprobe and its "copies", or None."""
        row = self.db.execute(
            f"SELECT {FILE_COLUMNS_OF_F}, d.root, d.key FROM file f"
            " JOIN folder d ON d.id = f.folder WHERE f.id = ?", (file_id,)).fetchone()
        if row is None:
            return None
        found = FileRow(*row[:-2])
        shown = self.shower.show(found, row[-2], row[-1], streams=True)
        text = (shown["metadata"] or {}).get("streams_json")
        return {**shown, "streams": parsed_streams(text),
                "copies": file_copies(self.db, self.shower, found)}

    def find(self, body: dict, limit: int) -> tuple:
        """([FoundRow], next token or None)."""
        filter_ = self.reader.read(body.get("filter"))
        sort, order = sort_of(body)
        return self.find_sorted(filter_, sort, order, body.get("after"), limit)

    def find_sorted(self, filter_: FileFilter, sort, order: str, after, limit: int,
                    proposed=None) -> tuple:
        """The same for a filter that is read. `sort` is a name of SORT_NAMES or a SortKey;
        `proposed` are the sources of all that can match, where they are known already.
        """
        if sort in SECTION_SORTS:
            return SectionWalk(self, filter_, sort, order).find(after, limit)
        if proposed is None:
            proposed = proposed_files(self.db, filter_, self.searchable)
        if sort == "path":
            return PathWalk(self, filter_, order).find(proposed, after, limit)
        key = sort if isinstance(sort, SortKey) else SORT_KEYS[sort]
        after = key.checked(decode_token(after, 2)) if after is not None else None
        if proposed is not None:
            return self.sorted_candidates(key, filter_, proposed, order, after, limit)
        if not filter_.words:
            return self._walked(key, filter_, order, after, limit)
        return self._searched(key, filter_, order, after, limit)

    def _searched(self, key, filter_, order, after, limit) -> tuple:
        """What many files match is soon met with, in most orders. Where it is not, a search for
        more of them than are few takes less time than walking on.
        """
        files, token = self._walked(key, filter_, order, after, limit, WALK_FIRST_WINDOWS)
        if token is None or len(files) == limit:
            return files, token
        after, left = decode_token(token, 2), limit - len(files)
        proposed = proposed_files(self.db, filter_, self.searchable, MANY_FILES)
        if proposed is None:
            more, token = self._walked(key, filter_, order, after, left)
        else:
            more, token = self.sorted_candidates(key, filter_, proposed, order, after, left)
        return files + more, token

    # -- few candidates --------------------------------------------------------------------------

    def matching(self, filter_: FileFilter, proposed, columns: str, meta: bool):
        """(*columns, id, name, root, key) of the candidates that match, each once."""
        words, seen = PathWords(filter_.words, self.reader.roots), set()
        several = len(proposed) > 1
        join = "LEFT JOIN metadata m ON m.file = f.id" if meta else ""
        for source, values in proposed:
            for row in self.db.execute(
                    f"SELECT {columns}, f.id, f.name, d.root, d.key FROM {source} {join}"
                    f" WHERE {filter_.where()}", (*values, *filter_.values)):
                if row[-4] not in seen and words.match(*row[-3:]):
                    if several:
                        seen.add(row[-4])
                    yield row

    def sorted_candidates(self, key, filter_, proposed, order, after, limit) -> tuple:
        """The next of the candidates that match: each source sorts its own, and only as many rows
        as the page holds leave SQLite.
        """
        cursors = [self._sorted_source(key, filter_, source, order, after) for source in proposed]
        words, files, last = PathWords(filter_.words, self.reader.roots), [], None
        merged = heapq.merge(*cursors, key=lambda row: (key.key_of(row[0]), row[1]),
                             reverse=order == "desc")
        try:
            for row in merged:
                if row[1] == last or not words.match(*row[2:]):
                    continue
                if len(files) == limit:
                    return files, encode_token(files[-1].at, files[-1].id)
                last = row[1]
                files.append(found_place(row))
        finally:
            for cursor in cursors:
                cursor.close()
        return files, None

    def _sorted_source(self, key, filter_, source: tuple, order: str, after):
        """(sort value, id, name, root, key) of what can match, in order."""
        direction, than = ("DESC", "<") if order == "desc" else ("ASC", ">")
        place = f"{key.column}{key.collate}"
        join = " LEFT JOIN metadata m ON m.file = f.id" if filter_.needs_meta or key.meta else ""
        behind, values = "", ()
        if after is not None:
            behind = f" AND ({place} {than} ? OR ({place} = ? AND f.id {than} ?))"
            values = (after[0], after[0], after[1])
        return self.db.execute(
            f"SELECT {key.column}, f.id, f.name, d.root, d.key FROM {source[0]}{join}"
            f" WHERE {filter_.where()} AND {key.column} IS NOT NULL{behind}"
            f" ORDER BY {place} {direction}, f.id {direction}",
            (*source[1], *filter_.values, *values))

    # -- walking an index ------------------------------------------------------------------------

    def _walked(self, key: SortKey, filter_, order, after, limit, windows: int = 0) -> tuple:
        """Up to the page's end in time, or after so many windows beside the first of each kind."""
        words = PathWords(filter_.words, self.reader.roots)
        walks = [self._walk(key, filter_, words, order, pin, after)
                 for pin in key.pins(filter_)]
        merged = heapq.merge(*walks, key=lambda one: (key.key_of(one.at), one.id),
                             reverse=order == "desc")
        files, last, left = [], None, windows + len(walks)
        try:
            for one in merged:
                last = one
                if one.root:
                    files.append(one)
                    if len(files) == limit:
                        break
                    continue
                left -= 1
                if time.monotonic() > self.end_at or (windows and not left):
                    break
            else:
                return files, None
        finally:
            for walk in walks:
                walk.close()
        return files, encode_token(last.at, last.id)

    def _walk(self, key: SortKey, filter_, words, order, pin, after):
        """FoundRow of everything that matches, in order, with a mark at the end of each window.

        What has the same value as the last one goes by its number, so that a million files of one
        size are no obstacle.
        """
        window = WINDOW_FIRST
        while True:
            position, passed = None, 0
            for condition, values in key.parts_behind(order, pin, after):
                edge = self._edge(key, condition, values, order, window - passed)
                for row in self._window(key, filter_, condition, values, order, edge):
                    if words.match(*row[-3:]):
                        yield found_place(row)
                passed += edge[0]
                if edge[1] is not None:
                    position = edge[1]
                    break
            if position is None:
                return
            yield FoundRow(*position)
            after, window = position, min(window * 2, WINDOW_LARGEST)

    def _edge(self, key, condition, values, order, count: int) -> tuple:
        """(rows in the window, (value, id) of its last one if there are more behind it)."""
        source, row_id = key.source(bare=True)
        direction = "DESC" if order == "desc" else "ASC"
        row = self.db.execute(
            f"SELECT {key.column}, {row_id} FROM {source} WHERE {condition}"
            f" ORDER BY {key.column}{key.collate} {direction}, {row_id} {direction}"
            " LIMIT 1 OFFSET ?", (*values, max(count, 1) - 1)).fetchone()
        return (count, row) if row is not None else (0, None)

    def _window(self, key, filter_, condition, values, order, edge):
        """(sort value, id, name, root, key) of one part up to its edge."""
        source, row_id = key.source(bare=False)
        direction, than = ("DESC", ">") if order == "desc" else ("ASC", "<")
        bound, bound_values = "", ()
        if edge[1] is not None:
            bound = (f" AND {key.column} {than}= ?{key.collate} AND ({key.column} {than}"
                     f" ?{key.collate} OR {row_id} {than}= ?)")
            bound_values = (edge[1][0], edge[1][0], edge[1][1])
        join = " JOIN metadata m ON m.file = f.id" if filter_.needs_meta and not key.meta else ""
        return self.db.execute(
            f"SELECT {key.column}, f.id, f.name, d.root, d.key FROM {source}{join}"
            f" WHERE {condition}{bound} AND {filter_.where()}"
            f" ORDER BY {key.column}{key.collate} {direction}, {row_id} {direction}",
            (*values, *bound_values, *filter_.values))


def sort_of(body: dict) -> tuple:
    """(sort, order) of a body; FilterError where they cannot be meant."""
    sort, order = body.get("sort") or "name", body.get("order") or "asc"
    if sort not in SORT_NAMES:
        raise FilterError(f"sort must be one of {', '.join(SORT_NAMES)}")
    if order not in ("asc", "desc"):
        raise FilterError("order must be asc or desc")
    return sort, order


def parsed_streams(text: str | None) -> list:
    """ffprobe's stream objects from its stored answer; [] where it is no such JSON."""
    try:
        told = json.loads(text) if text else []
    except (ValueError, RecursionError):
        return []
    streams = told.get("streams", []) if isinstance(told, dict) else told
    return [one for one in streams if isinstance(one, dict)] if isinstance(streams, list) else []


# =================================================================================================
# medialib/catalog_changes.py, from its line 13
# The feed of changes: everything after a number, in the order in which it happened.
# =================================================================================================

def changes_page(db, words: dict, body: dict) -> dict:
    """{"files", "roots", "forgotten", "next", "more"} after number `after`; go on with `next`.

    A row is listed once, at its last change. A root's change of state stands for that of its files.
    """
    limit = page_limit(body)
    after = body.get("after", 0)
    if type(after) is not int or not 0 <= after < 1 << 63:
        raise FilterError("after must be a whole number from 0 on")
    roots = {root.id: root for root in read_roots(db)}
    rows = db.execute(
        f"SELECT {FILE_COLUMNS_OF_F}, d.root, d.key FROM file f INDEXED BY file_seq"
        " CROSS JOIN folder d ON d.id = f.folder WHERE f.seq > ? ORDER BY f.seq LIMIT ?",
        (after, limit + 1)).fetchall()
    more = len(rows) > limit
    highest = db.execute("SELECT value FROM counter WHERE name = 'seq'").fetchone()[0]
    end = FileRow(*rows[limit - 1][:-2]).seq if more else max(highest, after)
    forgotten = db.execute("SELECT seq, file FROM forgotten WHERE seq > ? AND seq <= ?"
                           " ORDER BY seq LIMIT ?", (after, end, limit + 1)).fetchall()
    if len(forgotten) > limit:
        more, forgotten = True, forgotten[:limit]
        end = forgotten[-1][0]
    shower = FileShower(db, words, roots)
    found = [FoundRow(0, row[0], "", *row[-2:], FileRow(*row[:-2])) for row in rows[:limit]]
    agents = shower.agents
    return {
        "files": shower.show_all([one for one in found if one.row.seq <= end]),
        "roots": [{"id": root.id, "agent": agents[root.agent], "path": root.path,
                   "state": root.state, "reason": root.reason, "seq": root.seq}
                  for root in sorted(roots.values(), key=lambda root: root.seq)
                  if after < root.seq <= end],
        "forgotten": [{"seq": seq, "id": file_id} for seq, file_id in forgotten],
        "next": end, "more": more,
    }


# =================================================================================================
# medialib/catalog_facets.py, from its line 31
# Counts beside a list of files: how many there are of each kind, codec, machine, age.
# =================================================================================================

FACET_TIME_S = 0.03  # how long rows are counted before what is left is estimated
FACET_TIME_MOST_S = 10.0
LEAST_BLOCKS = 60  # however slow the machine is
SAMPLE_DIGITS = 2  # of an estimate
WEEK_S = 7 * 86400
FACET_COLUMNS = {
    "kind": "f.kind", "ext": "f.ext", "reason": "f.reason", "state": "d.root * 2 + f.state",
    "agent": "d.root", "root": "d.root", "age": f"f.mtime_ns / {WEEK_NS} - (f.mtime_ns < 0)",
    "video_codec": "m.video_codec", "audio_codec": "m.audio_codecs", "container": "m.container",
    "resolution": f"CASE WHEN m.height IS NOT NULL THEN {RESOLUTION_SQL} END",
}
TALLY_KEYS = {"kind", "ext", "reason", "state", "agent", "root"}
FIELD_KEYS = {"age": FACET_WEEK, "video_codec": FACET_VIDEO_CODEC, "container": FACET_CONTAINER,
              "audio_codec": FACET_AUDIO_CODEC, "resolution": FACET_RESOLUTION}
AGE_CLASSES = (  # weeks up to which it goes, counted from this one
    (1, "this week"), (5, "this month"), (53, "this year"), (105, "1-2 years"),
    (261, "2-5 years"), (522, "5-10 years"), (None, "older"),
)


class FacetSums:
    """Files and bytes by value, of several columns at once."""

    def __init__(self, columns: int):
        self.sums: list = [{} for _ in range(columns)]

    def add(self, row: tuple) -> None:
        """A row of these columns and the size."""
        size = row[len(self.sums)]
        for value, sums in zip(row, self.sums):
            entry = sums.get(value)
            if entry is None:
                sums[value] = [1, size]
            else:
                entry[0] += 1
                entry[1] += size

    def told(self, keys: list, factor: float) -> dict:
        """{key: {value: (files, bytes)}}; a factor other than 1 makes them round numbers."""
        def scaled(number: int) -> int:
            return number if factor == 1.0 else rounded(number * factor)

        return {key: {value: (scaled(files), scaled(size)) for value, (files, size) in sums.items()}
                for key, sums in zip(keys, self.sums)}


def rounded(number: float) -> int:
    """An estimate with as many digits as it is worth."""
    if number < 1:
        return 0
    unit = 10 ** max(0, math.floor(math.log10(number)) + 1 - SAMPLE_DIGITS)
    return round(number / unit) * unit


def patience_of(body: dict) -> float:
    """How long may be counted before it is estimated, as the one who asks wants it."""
    patience_s = body.get("patience_s", FACET_TIME_S)
    if type(patience_s) not in (int, float) or not 0 < patience_s <= FACET_TIME_MOST_S:
        raise FilterError(f"patience_s must be a number above 0, at most {FACET_TIME_MOST_S:g}")
    return patience_s


def keys_by_filter(raw: dict, keys: list):
    """(filter, the keys it counts). A key is counted without what is asked of it, so that the
    alternatives stay in sight; None, the total, with everything.
    """
    own = [key for key in dict.fromkeys(keys) if key in raw or (key == "age" and "mtime" in raw)]
    yield raw, [None, *(key for key in dict.fromkeys(keys) if key not in own)]
    for key in own:
        name = "mtime" if key == "age" else key
        yield {other: value for other, value in raw.items() if other != name}, [key]


class FacetCounts:
    """POST /api/facets for one request."""

    def __init__(self, catalog, db):
        self.db = db
        self.pages = FilePages(catalog, db)
        self.words = self.pages.words
        self.now_week = int(catalog.clock()) // WEEK_S
        self.patience_s = FACET_TIME_S
        self.approximate = False

    def answer(self, body: dict) -> dict:
        raw, keys = body.get("filter") or {}, body.get("keys", [])
        if not isinstance(raw, dict):
            raise FilterError("filter must be an object")
        if not isinstance(keys, list) or not all(
                isinstance(key, str) and key in FACET_COLUMNS for key in keys):
            raise FilterError(f"keys must be of {', '.join(FACET_COLUMNS)}")
        limit = page_limit(body, 30)
        self.patience_s = patience_of(body)
        sums: dict = {}
        for others, some in keys_by_filter(raw, keys):
            sums.update(self._sums(self.pages.reader.read(others), some))
        files, size = sums[None].get(None, (0, 0))
        return {"total": {"files": files, "bytes": size}, "approximate": self.approximate,
                "facets": {key: self._shown(key, sums[key], limit) for key in dict.fromkeys(keys)}}

    # -- counting --------------------------------------------------------------------------------

    def _sums(self, filter_: FileFilter, keys: list) -> dict:
        """{key: {value: (files, bytes)}}; of the key None {None: …}, the total."""
        sums, left = {}, []
        for key in keys:
            if filter_.plain <= TALLY_KEYS and (key is None or key in TALLY_KEYS):
                sums[key] = self._from_sums("tally", filter_, FACET_COLUMNS.get(key, "NULL"), "1")
            elif key in FIELD_KEYS and filter_.plain <= {"agent", "root", "state"}:
                sums[key] = self._from_sums("facet", filter_, "f.value",
                                            f"f.field = {FIELD_KEYS[key]}")
            else:
                left.append(key)
        return {**sums, **(self._from_rows(filter_, left) if left else {})}

    def _from_sums(self, table: str, filter_: FileFilter, column: str, condition: str) -> dict:
        """The sums' rows have the columns the filter is about; `reason` 0 stands for none."""
        reason = ", nullif(reason, 0) AS reason_or_none" if table == "tally" else ""
        where = filter_.where().replace("d.root", "f.root").replace("f.reason", "f.reason_or_none")
        column = column.replace("d.root", "f.root").replace("f.reason", "f.reason_or_none")
        rows = self.db.execute(
            f"SELECT {column}, sum(f.files), sum(f.bytes) FROM (SELECT *{reason} FROM {table}) f"
            f" WHERE {condition} AND {where} GROUP BY 1", filter_.values)
        return {value: (files, size) for value, files, size in rows if files}

    def _from_rows(self, filter_: FileFilter, keys: list) -> dict:
        """All keys in one look at the rows: all that can match where they are few, else as many as
        there is time for, from all over the catalogue.
        """
        columns = [FACET_COLUMNS.get(key, "NULL") for key in keys]
        meta = filter_.needs_meta or any(one.startswith(("m.", "CASE")) for one in columns)
        told = ", ".join([*columns, "f.size"])
        room = MANY_FILES if self.patience_s > FACET_TIME_S else 0
        proposed = proposed_files(self.db, filter_, self.pages.searchable, room)
        counts = FacetSums(len(keys))
        if proposed is not None:
            for row in self.pages.matching(filter_, proposed, told, meta):
                counts.add(row)
            return counts.told(keys, 1.0)
        return counts.told(keys, self._look_around(filter_, told, meta, counts))

    def _look_around(self, filter_: FileFilter, told: str, meta: bool, counts: FacetSums) -> float:
        """How many times as many files the catalogue has as were looked at."""
        end_at = time.monotonic() + self.patience_s
        for blocks, part, rows in sampled_rows(self.pages, filter_, told, meta):
            for row in rows:
                counts.add(row)
            if part < 1 and blocks >= LEAST_BLOCKS and time.monotonic() > end_at:
                self.approximate = True
                return 1 / part
        return 1.0

    # -- showing ---------------------------------------------------------------------------------

    def _shown(self, key: str, sums: dict, limit: int) -> list:
        if key == "age":
            return self._ages(sums)
        merged: dict = {}
        for value, (files, size) in sums.items():
            if value is None:
                continue
            for item in self._items(key, value):
                entry = merged.setdefault(json.dumps(item), {**item, "files": 0, "bytes": 0})
                entry["files"] += files
                entry["bytes"] += size
        items = sorted(merged.values(), key=lambda item: (-item["files"], str(item["value"])))
        return items[:limit]

    def _items(self, key: str, value: int) -> list:
        """What a number of a column stands for; a list of audio codecs stands for several."""
        roots, agents = self.pages.reader.roots, self.pages.shower.agents
        if key == "kind":
            return [{"value": KIND_NAMES[value]}]
        if key == "state":
            root = roots[value // 2]
            if value % 2 == STATE_MISSING:
                return [{"value": "missing"}]
            return [{"value": "offline" if root.state == "offline" else "present"}]
        if key == "agent":
            agent = agents[roots[value].agent]
            return [{"value": agent["id"], "label": agent["name"]}]
        if key == "root":
            root, agent = roots[value], agents[roots[value].agent]
            return [{"value": root.path, "label": f"{agent['name']}: {root.path}",
                     "filter": {"agent": agent["id"], "root": root.path}}]
        if key == "resolution":
            return [{"value": dict(RESOLUTION_CLASSES)[value]}]
        if key == "audio_codec":
            return [{"value": codec} for codec in sorted(set(json.loads(self.words[value])))]
        return [{"value": self.words[value]}]

    def _ages(self, sums: dict) -> list:
        """Newest first; the bounds are whole weeks, as the sums are."""
        items, newest = [], None
        for weeks, name in AGE_CLASSES:
            oldest = None if weeks is None else self.now_week - weeks + 1
            inside = [entry for week, entry in sums.items() if week is not None
                      and (oldest is None or week >= oldest)
                      and (newest is None or week < newest)]
            bounds = {}
            if oldest is not None:
                bounds["min"] = oldest * WEEK_S
            if newest is not None:
                bounds["max"] = newest * WEEK_S - 1e-6
            if inside:
                items.append({"value": name, "files": sum(entry[0] for entry in inside),
                              "bytes": sum(entry[1] for entry in inside),
                              "filter": {"mtime": bounds}})
            newest = oldest
        return items


# =================================================================================================
# medialib/catalog_same_folders.py, from its line 23
# Folders that hold the same files as another one: a copied tree is one row, not ten thousand.
# =================================================================================================

SAME_FOLDERS_TIME_S = 20.0
SAME_FOLDERS_FRESH_S = 20.0  # while a scan runs, the answer may be this old
SAME_FOLDERS_KEPT = 1000
SAME_FOLDERS_IN_GROUP = 50
SAME_SUM_MOD = 1 << 64
SAME_TIME_ROWS = 1000  # between two looks at the clock
FOLDERS_BY_SIZE_SQL = (
    "SELECT tree_bytes, tree_files, root, key FROM folder WHERE tree_bytes > 0"
    " ORDER BY tree_bytes DESC, tree_files DESC, root, key"
)
TREE_SOURCE = (
    "FROM folder d CROSS JOIN file f ON f.folder = d.id AND f.state = 0"
    " WHERE d.root = ? AND d.key >= ? AND d.key < ?"
)
CONTENTS_SQL = (
    "SELECT f.id, f.size, f.algo, f.sample_size, f.sample_hash, f.full_hash, f.flags, f.ino, f.dev "
    + TREE_SOURCE
)
# Each stretch of bytes on a disk once, whatever its names.
PLACES_SQL = (
    "SELECT ? AS disk, {dev} AS dev, CASE WHEN f.ino THEN f.ino ELSE -f.id END AS ino,"
    " f.size AS size " + TREE_SOURCE
)


@dataclass(frozen=True)
class FolderContents:
    """Sums over the files of a tree: of full hashes (None if one is unknown), of sample hashes, and
    of where the bytes lie: equal for one tree that is seen twice.
    """

    full: int | None
    sample: int
    place: int


class LookedLongEnough(Exception):
    """The time for one look through the catalogue is over."""


def content_number(*parts) -> int:
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def tree_range(root, key: bytes) -> tuple:
    return root.id, key, key + b"\x01" if key else b"\xff"


def read_contents(db, root, key: bytes, end: float) -> FolderContents | None:
    """None when a file of the tree has no hash yet: nothing can be said of it then. `end` is the
    monotonic time at which LookedLongEnough is raised.
    """
    full, sample, place = 0, 0, 0
    for number, row in enumerate(db.execute(CONTENTS_SQL, tree_range(root, key))):
        if number % SAME_TIME_ROWS == 0 and time.monotonic() > end:
            raise LookedLongEnough
        member = DuplicateMember(*row, root.agent, root.volume)
        place += content_number(*member.copy_key())
        if not member.size:
            sample, full = sample + 1, None if full is None else full + 1
            continue
        if member.sample_hash is None:
            return None
        whole = member.full()
        full = None if full is None or whole is None else (
            full + content_number(member.size, member.algo, whole.hex())) % SAME_SUM_MOD
        sample += content_number(member.size, member.algo, member.sample_size,
                                 member.sample_hash.hex())
    return FolderContents(full, sample % SAME_SUM_MOD, place % SAME_SUM_MOD)


def keys_above(key: bytes):
    """The keys of the folders above this one, the root's own first."""
    if key:
        yield b""
    parts = key.split(b"\0")
    for count in range(1, len(parts)):
        yield b"\0".join(parts[:count])


class SameFoldersSearch:
    """One look through the catalogue; `groups` is complete unless `approximate`."""

    def __init__(self, db):
        self.db = db
        self.roots = {root.id: root for root in read_roots(db)}
        self.agents = {number: {"id": agent_id, "name": name} for number, agent_id, name
                       in db.execute("SELECT id, agent_id, name FROM agent")}
        self.found: set = set()  # (root, key) of all folders that are in a group
        self.groups: list = []
        self.approximate = False
        self.end = time.monotonic() + SAME_FOLDERS_TIME_S

    def run(self) -> list:
        rows = self.db.execute(FOLDERS_BY_SIZE_SQL)
        try:
            for (size, files), equal in itertools.groupby(rows, key=lambda row: row[:2]):
                self._look_into(size, files, self._topmost(equal))
        except LookedLongEnough:
            self.approximate = True
        self.groups.sort(key=lambda group: (-group["reclaimable"], -group["potential"]))
        return self.groups

    def _topmost(self, equal) -> list:
        """(root, key) without folders whose only content is another one of the list."""
        kept: list = []
        seen: set = set()
        for _, _, root_id, key in equal:
            if not any((root_id, above) in seen for above in keys_above(key)):
                kept.append((root_id, key))
            seen.add((root_id, key))
        return kept[:SAME_FOLDERS_IN_GROUP]

    def _look_into(self, size: int, files: int, folders: list) -> None:
        """Groups among folders of equal totals; those below groups that are known say nothing."""
        if len(folders) < 2 or all(self._is_below_found(*folder) for folder in folders):
            return
        by_sample: dict = {}
        for root_id, key in folders:
            contents = read_contents(self.db, self.roots[root_id], key, self.end)
            if contents is not None:
                by_sample.setdefault(contents.sample, []).append((root_id, key, contents))
        for alike in by_sample.values():
            by_full: dict = {}
            for folder in alike:
                by_full.setdefault(folder[2].full, []).append(folder)
            unproven = by_full.pop(None, [])
            proven = [equal for equal in by_full.values() if len(equal) > 1]
            for equal in proven:
                self._add(size, files, equal, "confirmed")
            if unproven and not proven:
                self._add(size, files, alike, "candidate")

    def _is_below_found(self, root_id: int, key: bytes) -> bool:
        return any((root_id, above) in self.found for above in keys_above(key))

    def _add(self, size: int, files: int, alike: list, state: str) -> None:
        places = {contents.place for _, _, contents in alike}
        if len(alike) < 2 or len(places) < 2:
            return
        if len(self.groups) == SAME_FOLDERS_KEPT:
            raise LookedLongEnough
        gain = self._gain(alike)
        self.found.update((root_id, key) for root_id, key, _ in alike)
        self.groups.append({
            "files": files, "bytes": size, "state": state, "copies": len(places),
            "reclaimable": gain if state == "confirmed" else 0, "potential": gain,
            "folders": [self._shown(root_id, key) for root_id, key, _ in alike],
        })

    def _gain(self, alike: list) -> int:
        """Bytes on the disks that go when only the smallest of the trees stays."""
        parts = [self._places(root_id, key) for root_id, key, _ in alike]
        together = " UNION ".join(statement for statement, _ in parts)
        values = [value for _, own in parts for value in own]
        taken = self.db.execute(f"SELECT coalesce(sum(size), 0) FROM ({together})",
                                values).fetchone()[0]
        kept = min(self.db.execute(
            f"SELECT coalesce(sum(size), 0) FROM (SELECT DISTINCT * FROM ({statement}))",
            own).fetchone()[0] for statement, own in parts)
        return taken - kept

    def _places(self, root_id: int, key: bytes) -> tuple:
        root = self.roots[root_id]
        disk = f"agent {root.agent}" if root.volume is None else f"volume {root.volume}"
        statement = PLACES_SQL.format(dev="f.dev" if root.volume is None else "0")
        return statement, (disk, *tree_range(root, key))

    def _shown(self, root_id: int, key: bytes) -> dict:
        root = self.roots[root_id]
        return {"agent": self.agents[root.agent], "root": root.path,
                "path": root.path_of(rel_of_key(key)),
                "state": "offline" if root.state == "offline" else "present"}


class SameFolders:
    """POST /api/duplicate_folders. The last look is kept until the catalogue has changed."""

    def __init__(self, catalog: Catalog):
        self.catalog = catalog
        self._lock = threading.Lock()  # guards the last look, and lets one look at a time run
        self._seq: int | None = None
        self._looked_at = 0.0
        self._last: list = []
        self._approximate = False

    def page(self, body: dict) -> dict:
        limit, after = page_limit(body, 50), body.get("after")
        first = decode_token(after, 1)[0] if after is not None else 0
        if type(first) is not int or first < 0:
            raise FilterError("after must be the next of an earlier answer to the same question")
        wanted = self._wanted(body.get("filter") or {})
        groups = [group for group in self._groups() if wanted(group)]
        more = len(groups) > first + limit
        return {"groups": groups[first:first + limit], "approximate": self._approximate,
                "next": encode_token(first + limit) if more else None}

    def _groups(self) -> list:
        with self._lock:
            age = time.monotonic() - self._looked_at
            seq = self.catalog.seq
            if self._seq is None or (seq != self._seq and age > SAME_FOLDERS_FRESH_S):
                with self.catalog.reader() as db:
                    search = SameFoldersSearch(db)
                    self._last, self._approximate = search.run(), search.approximate
                self._seq, self._looked_at = seq, time.monotonic()
            return self._last

    def _wanted(self, filter_):
        """The test of a group for a filter on `agent` and `q`; others do not fit folders."""
        if not isinstance(filter_, dict):
            raise FilterError("filter must be an object")
        agents, text = filter_.get("agent") or [], filter_.get("q") or ""
        agents = [agents] if isinstance(agents, str) else agents
        if not isinstance(agents, list) or not isinstance(text, str):
            raise FilterError("filter.agent must be an id or a list of ids and filter.q a text")
        words = search_words(text)

        def test(group: dict) -> bool:
            folders = group["folders"]
            return (not agents or any(folder["agent"]["id"] in agents for folder in folders)) and (
                any(text_matches(words, folder["path"]) for folder in folders))
        return test


# =================================================================================================
# medialib/ingest_outline.py, from its line 15
# The outline of what agents send: who speaks, of which root, how much; all but the records.
# =================================================================================================

BATCH_FILES = 50_000
BATCH_TEXT = 200
REV_MAX = (1 << 63) - 1
AGENT_ID = re.compile(r"[0-9A-Za-z._:@+-]{1,100}")
ADDRESS_AGENT = "addr:"  # agents that do not say who they are
HELLO_ROOTS = 1000


def bad_batch(detail: str) -> HttpError:
    return HttpError(400, "bad request", detail)


class BatchOutline:
    """The checked outline of a batch: everything but its records."""

    def __init__(self, body: dict, peer: str | None):
        if not isinstance(body, dict):
            raise bad_batch("the body must be an object")
        self.agent_id, self.agent_name, self.instance = agent_of(body, peer)
        self.batch_id = short_text(body, "batch_id")
        self.files = listed(body, "files")
        self.removed = listed(body, "removed")
        self.root = root_path_of(body)
        self.volume = short_text(body, "volume", 1000)
        self.volume_told = "volume" in body
        self.volume_path = short_text(body, "volume_path", 5000)
        self.after_rev = whole_number(body, "after_rev")
        self.rev = whole_number(body, "rev")
        if (self.after_rev is None) != (self.rev is None):
            raise bad_batch("after_rev and rev come together")
        self.end = body.get("end_of_root")
        if self.end is not None and (not isinstance(self.end, dict) or self.root is None):
            raise bad_batch("end_of_root must be an object, and needs a root")
        if "files" not in body and not self.removed and self.end is None:
            raise bad_batch("files is missing")


def listed(body: dict, key: str) -> list:
    value = body.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise bad_batch(f"{key} must be a list")
    if len(value) > BATCH_FILES:
        raise HttpError(413, "too much", f"{key} has more than {BATCH_FILES} entries")
    return value


def short_text(body: dict, key: str, length: int = BATCH_TEXT) -> str | None:
    value = body.get(key)
    if value is None:
        return None
    if not is_clean_text(value) or len(value) > length:
        raise bad_batch(f"{key} must be a text of at most {length} characters")
    return value


def whole_number(body: dict, key: str) -> int | None:
    value = body.get(key)
    if value is not None and (type(value) is not int or not 0 <= value <= REV_MAX):
        raise bad_batch(f"{key} must be a whole number")
    return value


def root_path_of(body: dict) -> str | None:
    root = short_text(body, "root", 32_768)
    if root is None:
        return None
    root = normal_root_path(root)
    if not is_absolute_text(root):
        raise bad_batch("root must be an absolute path")
    return root


def agent_of(body: dict, peer: str | None) -> tuple:
    """(id, name, instance). Who says nothing is named after the address; no peer is ourselves."""
    agent = body.get("agent")
    if agent is None:
        if peer is None:
            return LOCAL_AGENT, LOCAL_AGENT, None
        return f"{ADDRESS_AGENT}{peer}", peer, None
    if not isinstance(agent, dict):
        raise bad_batch("agent must be an object")
    agent_id, instance = agent.get("id"), agent.get("instance")
    if not isinstance(agent_id, str) or not AGENT_ID.fullmatch(agent_id):
        raise bad_batch("agent.id must be a text of letters, digits and . _ : @ + -")
    if peer is not None and (agent_id == LOCAL_AGENT or agent_id.startswith(ADDRESS_AGENT)):
        raise bad_batch(f"agent.id {agent_id} is the host's own")
    name = agent.get("name")
    if name is None or name == "":
        name = agent_id
    if not is_clean_text(name) or len(name) > BATCH_TEXT:
        raise bad_batch("agent.name must be a short text")
    if instance is not None and (not is_clean_text(instance) or len(instance) > BATCH_TEXT):
        raise bad_batch("agent.instance must be a short text")
    return agent_id, name, instance


def hello_roots(agent: dict) -> list | None:
    """The roots an agent reports, those that are well-formed; None when it says nothing of them.

    Two at one path are two roots: the disk that is there, and the one whose place it took.
    """
    roots = agent.get("roots")
    if not isinstance(roots, list):
        return None
    found = {}
    for raw in roots[:HELLO_ROOTS]:
        if not isinstance(raw, dict) or not is_clean_text(raw.get("path")):
            continue
        path = normal_root_path(raw["path"])
        if is_absolute_text(path):
            key = (path, str(raw.get("volume")), str(raw.get("volume_path")))
            if key not in found or raw.get("state") != "offline":
                found[key] = {**raw, "path": path}
    return list(found.values())


# =================================================================================================
# medialib/ingest_order.py, from its line 9
# Batches of one agent that are under way together: each is applied behind the one before it.
# =================================================================================================

ORDER_PATIENCE_S = 1.0  # then what is missing is asked for
ORDER_GRACE_S = 0.1  # for one that was sent before this one, and whose thread has not begun yet
ORDER_AGENTS = 1000


class BatchOrder:
    """An agent posts its next batches while one is being committed, each over a connection of its
    own, and the threads that read them may overtake one another on their way to the writer.
    """

    def __init__(self):
        self._changed = threading.Condition()  # guards what follows
        self._under_way: collections.Counter = collections.Counter()  # {peer: batches}
        self._queued: dict = {}  # {agent id: the last number of what the writer was given}

    @contextlib.contextmanager
    def under_way(self, peer: str | None):
        """Around the whole of a batch from this address."""
        with self._changed:
            self._under_way[peer] += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way[peer] -= 1
                if not self._under_way[peer]:
                    del self._under_way[peer]
                self._changed.notify_all()

    def wait_for(self, agent_id: str, after_rev: int, last_rev, peer: str | None) -> None:
        """Return when everything up to `after_rev` is with the writer, or will hardly come: no
        other batch of this peer is under way nor was just sent, or one took too long.

        last_rev() is how far the catalogue is with this agent.
        """
        def is_queued() -> bool:
            return self._queued.get(agent_id, 0) >= after_rev

        if is_queued() or last_rev() >= after_rev:
            return
        with self._changed:
            if not self._changed.wait_for(is_queued, ORDER_GRACE_S):
                self._changed.wait_for(lambda: is_queued() or self._under_way[peer] <= 1,
                                       ORDER_PATIENCE_S)

    def note(self, agent_id: str, rev: int) -> None:
        """The writer has been given a batch that ends with this number."""
        with self._changed:
            if len(self._queued) >= ORDER_AGENTS:
                self._queued.clear()
            self._queued[agent_id] = rev
            self._changed.notify_all()


# =================================================================================================
# medialib/ingest.py, from its line 45
# What agents say to the host: hello, batches, and the lists by which both compare what they hold.
# =================================================================================================

BATCHES_KEPT = 2000
REJECTED_KEPT = 1000


class Ingest:
    """The four calls of agents. `peer` is the caller's address, None for the host's own scanner."""

    def __init__(self, catalog: Catalog, presence: AgentPresence):
        self.catalog = catalog
        self.presence = presence
        self.repeats = BatchRepeats()
        self.order = BatchOrder()
        self.counts = {"batches": 0, "files": 0, "rejected": 0, "repeated": 0}

    # -- hello -----------------------------------------------------------------------------------

    def hello(self, body: dict, peer: str | None = None) -> dict:
        """The agent says what it is and has; the answer is its configuration and its commands."""
        if not isinstance(body, dict) or not isinstance(body.get("agent"), dict):
            raise bad_batch("agent must be an object")
        agent_id, name, instance = agent_of(body, peer)
        self._let_in(agent_id, instance, peer)
        roots = hello_roots(body["agent"])
        stats = body.get("stats") if isinstance(body.get("stats"), dict) else {}
        about = {**body["agent"], "roots": roots, "name": name, "stats_at": self.catalog.clock()}
        errors = body.get("errors") if isinstance(body.get("errors"), dict) else None
        saved = save_hello(self.catalog, self.presence, agent_id, about, errors, peer)
        self.presence.tell(agent_id, about, stats)
        self.presence.put_results(body.get("results"))
        with self.catalog.reader() as db:
            config = config_for(db, agent_id, self.catalog.library_id)
        return {"ok": True, "library_id": self.catalog.library_id, "protocol": PROTOCOL,
                "config": config, "commands": self.presence.take_commands(agent_id), **saved}

    def _let_in(self, agent_id: str, instance: str | None, peer: str | None) -> None:
        verdict = self.presence.contact(agent_id, instance, peer)
        if verdict == "":
            raise HttpError(409, "another instance",
                            "another running process uses this agent's id; try again in a minute")
        if verdict is not None:
            log.warning("agent %s runs on two machines; the one at %s becomes %s", agent_id, peer,
                        verdict)
            raise HttpError(409, "cloned", "another machine uses this agent's id",
                            extra={"new_id": verdict})

    # -- batches ---------------------------------------------------------------------------------

    def batch(self, body: dict | UnreadBatch, peer: str | None = None) -> dict:
        """Apply one batch; the answer comes after its commit."""
        with self.order.under_way(peer):
            return self._batch(body, peer)

    def _batch(self, body: dict | UnreadBatch, peer: str | None) -> dict:
        if not isinstance(body, UnreadBatch):
            return self._read_batch(body, peer)
        answer = self._repeated(body, peer)
        if answer is None:
            read = body.read()
            answer = self._read_batch(read, peer, body)
            self.repeats.remember(body, read, f"{ADDRESS_AGENT}{peer}")
        return answer

    def _repeated(self, unread: UnreadBatch, peer: str) -> dict | None:
        """The answer to a batch that says nothing new, or None where that is not known."""
        agent_id = f"{ADDRESS_AGENT}{peer}"
        known = self.repeats.find(unread, agent_id)
        if known is None:
            return None
        self.presence.contact(agent_id, None, peer)
        state, files = known
        answer = self.catalog.change(
            lambda changes: self._note_repeated(changes, unread, agent_id, peer, state, files))
        if answer is not None:
            self.counts["batches"] += 1
            self.counts["files"] += files
        return answer

    def _note_repeated(self, changes, unread, agent_id, peer, state, files) -> dict | None:
        db = changes.db
        agent = find_agent(db, agent_id)
        if agent is None or agent.name != peer or repeat_state(changes) != state or db.execute(
                "SELECT 1 FROM rejected WHERE agent = ? LIMIT 1", (agent.id,)).fetchone():
            return None
        stored = stored_answer(db, agent, unread.batch_id)
        if stored is not None:
            self.counts["repeated"] += 1
            return stored
        answer = {"ok": True, "batch_id": unread.batch_id, "processed": files, "errors": []}
        remember_answer(db, changes, agent, unread.batch_id, answer)
        return answer

    def _read_batch(self, body: dict, peer: str | None, unread: UnreadBatch | None = None) -> dict:
        outline = BatchOutline(body, peer)
        if not self.presence.is_current(outline.agent_id, outline.instance):
            raise HttpError(409, "another instance", "this agent's id is held by another process")
        self.presence.contact(outline.agent_id, outline.instance, peer)
        records, errors = self._checked(outline)
        removed = self._checked_removals(outline, errors)
        on_queued = None
        if outline.rev is not None:
            self.order.wait_for(outline.agent_id, outline.after_rev,
                                lambda: self._last_rev(outline.agent_id), peer)
            on_queued = functools.partial(self.order.note, outline.agent_id, outline.rev)
        answer = self.catalog.change(
            lambda changes: self._apply(changes, outline, records, removed, errors, peer, unread),
            on_queued)
        self.counts["batches"] += 1
        self.counts["files"] += answer["processed"]
        self.counts["rejected"] += len(errors)
        return answer

    def _last_rev(self, agent_id: str) -> int:
        with self.catalog.reader() as db:
            agent = find_agent(db, agent_id)
            return 0 if agent is None else agent.last_rev

    def _checked(self, outline: BatchOutline) -> tuple:
        prefix = ""
        if outline.root is not None:
            prefix = outline.root if outline.root.endswith("/") else outline.root + "/"
        checker = RecordChecker(prefix, functools.partial(self._classifier, outline.agent_id))
        return checker.check_all(outline.files)

    def _classifier(self, agent_id: str) -> Classifier:
        """Needed for records without a kind of ours only, which come from older agents."""
        with self.catalog.reader() as db:
            return Classifier(settings_of(db, agent_id))

    def _checked_removals(self, outline: BatchOutline, errors: list) -> list:
        if not outline.removed:
            return []
        if outline.root is None:
            raise bad_batch("removed needs a root")
        prefix = outline.root if outline.root.endswith("/") else outline.root + "/"
        paths = []
        for path in outline.removed:
            try:
                if not check_path(path).startswith(prefix):
                    raise RecordError("path is not inside the batch's root")
                paths.append(path)
            except RecordError as error:
                shown = path[:1000] if isinstance(path, str) else None
                errors.append({"index": None, "path": shown, "error": f"removed: {error}"})
        return paths

    def _apply(self, changes, outline, records, removed, errors, peer, unread) -> dict:
        """Inside the transaction: order, repeats, files, removals, end of root."""
        db = changes.db
        agent = agent_row(db, outline.agent_id, outline.agent_name, peer, changes.now)
        stored = stored_answer(db, agent, outline.batch_id)
        if stored is not None:
            self.counts["repeated"] += 1
            return stored
        answer = {"ok": True, "batch_id": outline.batch_id, "processed": len(records),
                  "errors": errors}
        if not self._in_order(agent, outline):
            answer.update(processed=len(outline.files), errors=[])
            return answer
        root = self._apply_files(changes, agent, outline, records, removed)
        if outline.end is not None:
            answer["in_step"] = end_root(changes, root, outline.end)
        if outline.rev is not None:
            db.execute("UPDATE agent SET last_rev = ? WHERE id = ?", (outline.rev, agent.id))
        note_rejected(db, agent, records, errors, changes.now)
        remember_answer(db, changes, agent, outline.batch_id, answer)
        if unread is not None and not errors and not changes.has_taken() and is_steady(records):
            unread.state = repeat_state(changes)
        return answer

    def _in_order(self, agent: CatalogAgent, outline: BatchOutline) -> bool:
        """False for what was applied before; 409 when something before this batch is missing."""
        if outline.rev is None:
            return True
        if agent.last_rev < outline.after_rev:
            raise HttpError(409, "resync", "what came before this batch is not here",
                            extra={"last_rev": agent.last_rev})
        return outline.rev > agent.last_rev or (
            outline.rev == outline.after_rev == agent.last_rev)  # an end of root without changes

    def _apply_files(self, changes, agent, outline, records, removed):
        batch = changes.files_of(agent)
        if outline.root is None:
            for root, some in by_implicit_root(changes, agent, records):
                batch.upsert(root, some)
            return None
        root = resolve_root(changes.db, changes.counters, agent, outline.root, outline.volume,
                            outline.volume_path,
                            is_alive=functools.partial(holder_is_alive, self.presence),
                            told=outline.volume_told)
        batch.upsert(root, records)
        batch.remove(root, removed)
        return batch.roots.get(root.id, root)

    # -- comparing -------------------------------------------------------------------------------

    def folders(self, body: dict, peer: str | None = None) -> dict:
        """A page of the root's folders with what is in each, as one number."""
        root_id, _ = self._asked_root(body, peer)
        limit = min(whole_number(body, "limit") or 500, 5000)
        after = whole_number(body, "after") or 0
        if root_id is None:
            return {"ok": True, "folders": [], "next": None}
        with self.catalog.reader() as db:
            return {"ok": True, **folder_page(db, root_id, after, limit)}

    def names(self, body: dict, peer: str | None = None) -> dict:
        """A page of the files of one folder; with "full" whole records."""
        root_id, _ = self._asked_root(body, peer)
        limit = min(whole_number(body, "limit") or 1000, 5000)
        folder = short_text(body, "folder", 32_768) or ""
        after = short_text(body, "after", 32_768)
        if root_id is None:
            return {"ok": True, "files": [], "next": None}
        with self.catalog.reader() as db:
            words = self.catalog.words(db)
            root = read_root(db, root_id)
            page = name_page(db, words, root, folder, after, limit, bool(body.get("full")))
        return {"ok": True, **page}

    def _asked_root(self, body: dict, peer: str | None) -> tuple:
        """(root number or None, agent number or None) of what the body names."""
        if not isinstance(body, dict):
            raise bad_batch("the body must be an object")
        agent_id, _, _ = agent_of(body, peer)
        path = root_path_of(body)
        if path is None:
            raise bad_batch("root is missing")
        volume = short_text(body, "volume", 1000)
        volume_path = short_text(body, "volume_path", 5000)
        with self.catalog.reader() as db:
            agent = find_agent(db, agent_id)
            if agent is None:
                return None, None
            root = read_agent_root(db, agent, path, volume, volume_path, "volume" in body)
            return (root.id if root else None), agent.id


def by_implicit_root(changes, agent, records: list):
    """(root, records) for records of a batch that names no root, in their order."""
    roots = read_roots(changes.db, agent.id)
    run, root, folder, found = [], None, None, None
    for record in records:
        above = record.path[:record.path.rfind("/")]
        if above != folder:  # files of one folder are in one root
            folder, found = above, holding_root(roots, record.path)
        if found is None:
            found = make_implicit_root(changes.db, changes.counters, agent, record.path)
            roots.append(found)
        if root is not None and found.id != root.id:
            yield root, run
            run = []
        root = found
        run.append(record)
    if run:
        yield root, run


def end_root(changes, root, end: dict) -> bool:
    """Note a finished scan; whether the agent's sum of the root is ours."""
    if root.files != end.get("files") or not isinstance(end.get("digest"), str):
        in_step = False
    else:
        in_step = end["digest"].lower() == f"{root.digest % (1 << 64):016x}"
    scan = {key: value for key, value in end.items() if key != "digest"}
    scan["at"] = changes.now
    scan["in_step"] = in_step
    values = {"scan_json": json.dumps(scan), "state": "online", "reason": None}
    if in_step:
        values["transferred"] = 0
    touch_root(changes.db, changes.counters, root, **values)
    return in_step


def is_steady(records: list) -> bool:
    """Whether the same records, applied again at once, could not change anything."""
    return not any(record.moved_from for record in records) and (
        len({record.path for record in records}) == len(records))


def stored_answer(db, agent: CatalogAgent, batch_id: str | None) -> dict | None:
    if batch_id is None:
        return None
    row = db.execute("SELECT answer FROM batch WHERE agent = ? AND batch_id = ?",
                     (agent.id, batch_id)).fetchone()
    return json.loads(row[0]) if row else None


def remember_answer(db, changes, agent: CatalogAgent, batch_id: str | None, answer: dict) -> None:
    """Keep the answer for a repeated batch; the oldest ones are forgotten."""
    if batch_id is None:
        return
    last = db.execute("SELECT max(number) FROM batch WHERE agent = ?", (agent.id,)).fetchone()[0]
    number = (last or 0) + 1
    db.execute("INSERT INTO batch VALUES (?, ?, ?, ?, ?)",
               (agent.id, batch_id, number, json.dumps(answer), int(changes.now)))
    db.execute("DELETE FROM batch WHERE agent = ? AND number <= ?",
               (agent.id, number - BATCHES_KEPT))


def note_rejected(db, agent: CatalogAgent, records: list, errors: list, now: float) -> None:
    """Keep what was refused and why, until the path is accepted."""
    known = db.execute("SELECT count(*) FROM rejected WHERE agent = ?", (agent.id,)).fetchone()[0]
    if known:
        db.executemany("DELETE FROM rejected WHERE agent = ? AND path = ?",
                       [(agent.id, record.path) for record in records])
    for error in errors[:max(0, REJECTED_KEPT - known)]:
        path = error["path"] or ""
        if is_clean_text(path):
            db.execute("INSERT OR REPLACE INTO rejected VALUES (?, ?, ?, ?)",
                       (agent.id, path, error["error"], int(now)))


# =================================================================================================
# medialib/local_scan.py, from its line 19
# The host's own disks: the agent's machinery in this process, without HTTP in between.
# =================================================================================================

LOCAL_CACHE_FILE = "local_cache.db"


class DirectCall:
    """A batch that is carried out when its answer is asked for; see PendingCall."""

    def __init__(self, transport: LocalTransport, outline: dict, files: list):
        self.transport = transport
        self.outline = outline
        self.files = files

    def finish(self) -> dict:
        return self.transport.batch(self.outline, self.files)

    def abandon(self) -> None:
        pass


class LocalTransport:
    """The host's calls without HTTP; what a host would answer comes as the same exceptions."""

    older = False
    batches_at_once = 1

    def __init__(self, ingest: Ingest):
        self.ingest = ingest
        self.url = "this host"
        self.sent_bytes = 0

    def hello(self, body: dict) -> dict:
        return self._call(self.ingest.hello, body)

    def begin_batch(self, outline: dict, files: list, gzip: bool = False):
        return DirectCall(self, outline, files)

    def batch(self, outline: dict, files: list, gzip: bool = False) -> dict:
        return self._call(self.ingest.batch, {**outline, "files": records_of_texts(files)})

    def folders(self, body: dict) -> dict:
        return self._call(self.ingest.folders, body)

    def names(self, body: dict) -> dict:
        return self._call(self.ingest.names, body)

    def _call(self, method, body: dict) -> dict:
        try:
            return method(body, None)
        except HttpError as error:
            raise PeerRefused(error.status, error.error, error.detail,
                              error.reply().body) from error
        except MedialibError as error:
            raise PeerUnreachable(str(error)) from error


class LocalIdentity:
    """The host's own scanner in the catalogue."""

    def __init__(self, name: str):
        self.id = LOCAL_AGENT
        self.name = name

    def become(self, new_id: str) -> str:
        return self.id


class LocalScan:
    """The scanner of the host's own roots. `start` scans and goes on; `run_once` scans once."""

    def __init__(self, ingest: Ingest, folder: str, name: str):
        self.cache = AgentCache(os.path.join(folder, LOCAL_CACHE_FILE))
        self.service = AgentService(
            self.cache, LocalIdentity(name), LocalTransport(ingest), LocalTransport(ingest),
            find_ffprobe=lambda: find_ffprobe(None))
        self._thread = threading.Thread(target=self._run, name="local scan", daemon=True)

    def start(self) -> None:
        self.service.start()
        self._thread.start()

    def _run(self) -> None:
        try:
            self.service.run_forever()
        except Exception:  # the thread's edge: the host goes on without its own scans
            log.exception("the host's own scanner failed")

    def run_once(self) -> list:
        """Scan all roots and hand everything over; what is left over, in words."""
        self.service.start()
        self.service.run_once()
        return self.service.left_over()

    def obey(self, do: str, path: str = "") -> dict:
        """A command of the host's page, with the answers of an agent's control port."""
        if do == "scan_now":
            started, message = self.service.scan_now()
            return {"ok": True, "started": started, "message": message}
        if do == "clear_cache":
            return {"ok": True, "cleared": self.service.clear_cache()}
        if do == "compact_cache":
            before, after = self.cache.compact()
            return {"ok": True, "before_bytes": before, "after_bytes": after}
        if do == "ls":
            return list_local_folder(path)
        if do == "accept_empty":
            return {"ok": self.service.accept_empty(path)}
        raise HttpError(400, "bad request", f"there is no command {do[:100]}")

    def stop(self) -> None:
        self.service.request_stop()
        self.service.stop()
        if self._thread.is_alive():
            self._thread.join(4.0)
        self.cache.close()


def list_local_folder(path: str) -> dict:
    """A folder of the host's own disks, with the refusals of an agent's port."""
    try:
        return list_folder(path)
    except ValueError as error:
        raise HttpError(400, "not a path", str(error)) from error
    except OSError as error:
        status = {errno.ENOENT: 404, errno.EACCES: 403, errno.EPERM: 403}.get(error.errno, 400)
        raise HttpError(status, "cannot be listed", error.strerror or "") from error


# =================================================================================================
# medialib/web_assets.py, from its line 9
# The files of the web page: embedded in the one-file build, beside the package otherwise.
# =================================================================================================

WEB_FILES: dict = {}  # the one-file build puts {name: text} here


def web_file(name: str) -> bytes | None:
    """A file of the page by its name, or None."""
    if not name or any(part in ("", ".", "..") or "\\" in part for part in name.split("/")):
        return None
    embedded = WEB_FILES.get(name)
    if embedded is not None:
        return embedded if isinstance(embedded, bytes) else embedded.encode("utf-8")
    return package_file("web/" + name)


def package_file(name: str) -> bytes | None:
    """A file that belongs to the package, or None; the one-file build has no package."""
    if sys.modules.get("medialib") is None:
        return None
    try:
        return pkgutil.get_data("medialib", name)
    except (OSError, ValueError, ImportError):
        return None


def web_names() -> list:
    """The names of all files of the page."""
    if WEB_FILES:
        return sorted(WEB_FILES)
    names = []
    for folder in getattr(sys.modules.get("medialib"), "__path__", ()):
        top = os.path.join(folder, "web")
        for place, _, files in os.walk(top):
            inside = os.path.relpath(place, top).replace(os.sep, "/")
            names += [file if inside == "." else f"{inside}/{file}" for file in files]
    return sorted(set(names))


# =================================================================================================
# medialib/web/, from its line 1
# The files of the web UI.
# =================================================================================================

WEB_FILES.update({
    "api.js": r'''// Calls of the host: JSON bodies both ways. A failure is an ApiError with the host's own words.

class ApiError extends Error {
  constructor(status, answer) {
    super(answer.error || `the host answered ${status}`);
    this.status = status;
    this.detail = answer.detail || "";
    this.answer = answer;
  }
}

async function read(response) {
  let answer = {};
  try { answer = await response.json(); } catch (error) { if (error.name === "AbortError") throw error; }
  if (!response.ok || answer.ok === false) throw new ApiError(response.status, answer);
  return answer;
}

async function send(path, body, signal) {
  try {
    return await fetch(path, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body || {}),
        signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { error: "The host cannot be reached" });
  }
}

export async function call(name, body, signal) {
  return read(await send(`/api/${name}`, body, signal));
}

// The answer as a file that the browser keeps on disk, not in this page's memory.
export async function download(name, body, filename) {
  const response = await send(`/api/${name}`, body);
  if (!response.ok) await read(response);
  const url = URL.createObjectURL(await response.blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = filename;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

export function isAbort(error) {
  return error.name === "AbortError";
}

// Only the newest of overlapping requests counts: starting one ends the one before.
export class Latest {
  constructor() { this.controller = null; }

  next() {
    this.stop();
    this.controller = new AbortController();
    return this.controller.signal;
  }

  stop() {
    if (this.controller) this.controller.abort();
    this.controller = null;
  }
}
''',
    "browse.js": r'''// Choosing a folder of a machine by walking through it: straight, or by the heartbeat, which takes longer.

import { Latest, call } from "./api.js";
import { openDialog } from "./dialog.js";
import { busyButton, button, el, name, put } from "./dom.js";
import { loading } from "./empty.js";
import { bytes } from "./format.js";
import { toastError } from "./toast.js";

const ASK_AGAIN_MS = 1000;
const PATIENCE_MS = 90000;
const NOT_YET = 504;

export class FolderBrowser {
  // `onpick(path)` adds the root; it may fail, which is told here.
  constructor(agent, onpick) {
    this.agent = agent;
    this.onpick = onpick;
    this.calls = new Latest();
    this.path = el("input", { type: "text", "aria-label": "Folder", autocomplete: "off", spellcheck: "false",
      placeholder: "/path/of/a/folder" });
    this.note = el("div", { role: "status" });
    this.list = el("ul", { class: "browse", "aria-label": "Folders" });
    this.form = el("form", { class: "row nowrap",
      on: { submit: (event) => { event.preventDefault(); this.open(this.path.value); } } },
      this.path, el("button", { type: "submit" }, "Open"));
    this.add = busyButton("Add this folder", () => this.pick(), { class: "primary", disabled: true });
    const shown = openDialog(`Add a folder of ${agent.name}`,
      [this.form, this.note, this.list, el("div", { class: "row end" }, this.add)], [], true);
    this.close = shown.close;
    this.path.focus();
    shown.closed.then(() => this.calls.stop());
    this.open(null);
  }

  async open(path) {
    const signal = this.calls.next();
    put(this.note, loading("Asking the machine; behind a firewall it answers at its next heartbeat"));
    this.add.disabled = true;
    try {
      const answer = await this.ask(path, signal);
      this.here = answer.path;
      this.path.value = answer.path;
      this.draw(answer);
    } catch (error) {
      if (error.name === "AbortError") return;
      put(this.note, el("p", { class: "notice bad" },
        [error.message, error.detail].filter(Boolean).join(": ")));
      put(this.list, this.here && this.here !== path ? this.entry(`Back to ${this.here}`, this.here) : null);
    }
  }

  async ask(path, signal) {
    const until = Date.now() + PATIENCE_MS;
    for (;;) {
      try {
        return await call("agents/ls", { agent: this.agent.id, path: path || "" }, signal);
      } catch (error) {
        if (error.status !== NOT_YET || Date.now() > until) throw error;
      }
      await new Promise((done) => setTimeout(done, ASK_AGAIN_MS));
      if (signal.aborted) throw new DOMException("left", "AbortError");
    }
  }

  entry(label, path) {
    return el("li", null, button(label, () => this.open(path), { class: "entry" }));
  }

  draw(answer) {
    put(this.note, el("p", { class: "muted" },
      `${answer.dirs.length} folders, ${answer.files.length} files here${answer.truncated ? " (the list is cut)" : ""}`));
    put(this.list, answer.parent !== null && answer.parent !== undefined && answer.parent !== answer.path
      ? this.entry("\u2191 up", answer.parent) : null,
      answer.dirs.map((dir) => this.entry([el("span", { class: "folder-icon", "aria-hidden": "true" }),
        name(dir.name)], dir.path)),
      answer.files.slice(0, 30).map((file) => el("li", { class: "muted entry" }, name(file.name), " ",
        bytes(file.size))));
    this.add.disabled = !answer.path;
    this.list.scrollTop = 0;
  }

  async pick() {
    try {
      await this.onpick(this.path.value || this.here);
      this.close();
    } catch (error) { toastError(error); }
  }
}
''',
    "charts.js": r'''// Charts as SVG drawn at the size they have on the page, with their numbers written on them.

import { el, plainName, put, svg } from "./dom.js";
import { bytes, count, percent } from "./format.js";

const ROW = 1.85;

let ruler = null;
function textWidth(text, font) {
  ruler = ruler || document.createElement("canvas").getContext("2d");
  ruler.font = font;
  return ruler.measureText(text).width;
}

export function shorten(text, font, width) {
  if (textWidth(text, font) <= width) return text;
  let end = text.length;
  while (end > 1 && textWidth(`${text.slice(0, end)}\u2026`, font) > width) end -= 1;
  return `${text.slice(0, end)}\u2026`;
}

// A block that draws itself again whenever its width changes.
function responsive(className, draw) {
  const node = el("div", { class: `chart ${className}` });
  let width = 0;
  const observer = new ResizeObserver(() => {
    if (!node.isConnected) { observer.disconnect(); return; }
    const now = Math.floor(node.clientWidth);
    if (!now || now === width) return;
    width = now;
    const style = getComputedStyle(node);
    put(node, draw(now, parseFloat(style.fontSize), `${style.fontSize} ${style.fontFamily}`));
  });
  observer.observe(node);
  return node;
}

// items: [{label, files, bytes, href, color}]; `by` is "files" or "bytes".
export function barChart(title, items, by) {
  const shown = items.filter((item) => item.files > 0);
  if (!shown.length) return el("p", { class: "muted" }, "Nothing to show yet.");
  return responsive("bars", (width, em, font) => {
    const row = Math.round(em * ROW);
    const most = Math.max(...shown.map((item) => item[by]), 1);
    const all = shown.reduce((sum, item) => sum + item[by], 0);
    const say = (item) => (by === "files" ? count(item.files) : bytes(item.bytes));
    const labelRoom = Math.min(width * 0.36, Math.max(...shown.map((item) =>
      textWidth(plainName(item.label), font))) + em);
    const numberRoom = Math.max(...shown.map((item) => textWidth(say(item), font))) + em * 0.6;
    const shareRoom = em * 3.3;
    const barRoom = Math.max(em * 2, width - labelRoom - numberRoom - shareRoom);
    return svg("svg", { width, height: row * shown.length, role: "group", "aria-label": title },
      shown.map((item, i) => barRow(item, { y: i * row, row, em, font, labelRoom, barRoom, numberRoom, width,
        share: item[by] / most, number: say(item), part: percent(item[by], all) })));
  });
}

function barRow(item, at) {
  const middle = at.y + at.row / 2;
  const height = at.row * 0.5;
  const bar = Math.max(2, at.barRoom * at.share);
  const label = plainName(item.label);
  const text = (x, anchor, className, words) =>
    svg("text", { x, y: middle, "text-anchor": anchor, "dominant-baseline": "central", class: className },
    words);
  const parts = [
    svg("title", null, `${label}: ${count(item.files)} files, ${bytes(item.bytes)}`),
    svg("rect", { class: "hit", x: 0, y: at.y, width: at.width, height: at.row }),
    text(0, "start", "label", shorten(label, at.font, at.labelRoom - at.em * 0.7)),
    svg("rect", { class: "track", x: at.labelRoom, y: middle - height / 2, width: at.barRoom, height,
      rx: 2 }),
    svg("rect", { class: `bar ${item.color || ""}`, x: at.labelRoom, y: middle - height / 2, width: bar,
      height, rx: 2 }),
    text(at.labelRoom + at.barRoom + at.numberRoom, "end", "number", at.number),
    text(at.width, "end", "share", at.part),
  ];
  return item.href ? svg("a", { href: item.href,
    "aria-label": `${label}: ${count(item.files)} files, ${bytes(item.bytes)}` }, parts)
    : svg("g", null, parts);
}

function niceTop(value, base) {
  let step = 1;
  while (step * base < value) step *= base;
  for (const factor of [1, 2, 5, 10, 20, 50, 100, 200, 500]) if (step * factor >= value) return step * factor;
  return value;
}

const DAY_MS = 86400000;
const dayNumber = (text) => Math.round(Date.parse(`${text}T00:00:00Z`) / DAY_MS);
const dayText = (number) => new Date(number * DAY_MS).toISOString().slice(0, 10);

export function daysBetween(first, last) {
  return dayNumber(last) - dayNumber(first);
}

// Days to name below a chart: the first, the last, and firsts of months (or steps of days) between.
function dayTicks(first, last, room) {
  const span = last - first;
  const most = Math.max(2, Math.floor(room));
  if (span < most) return Array.from({ length: span + 1 }, (_, i) => first + i);
  if (span < 62) {
    const step = Math.ceil(span / (most - 1));
    return Array.from({ length: Math.floor(span / step) + 1 }, (_, i) => first + i * step);
  }
  const step = [1, 2, 3, 4, 6, 12, 24, 60].find((months) => span / 30.4 / months <= most) || 120;
  const ticks = [];
  const [year, month] = dayText(first).split("-").map(Number);
  for (let next = Math.ceil(month / step) * step; ; next += step) {
    const number = Math.round(Date.UTC(year, next, 1) / DAY_MS);
    if (number > last) return ticks;
    ticks.push(number);
  }
}

// Growth: a value for each day the host ran, placed by its date. Where days are missing the line is
// dashed: nobody looked. The last value stands at its point, the scale at the left.
export function growthChart(days, by) {
  const values = days.map((day) => day[by]);
  const dates = days.map((day) => dayNumber(day.day));
  const say = by === "files" ? count : bytes;
  const sayRound = (value) => say(value).replace(/\.0+(?=\D)/, "");
  return responsive("growth", (width, em) => {
    const height = Math.round(em * 13);
    const unit = by === "bytes" ? 1024 ** Math.floor(Math.log(Math.max(1, ...values)) / Math.log(1024)) : 1;
    const top = niceTop(Math.max(1, ...values) / unit, 10) * unit;
    const box = { left: em * 5.6, right: width - em * 0.6, top: em * 1.5, bottom: height - em * 1.9 };
    const end = values.length - 1;
    const span = dates[end] - dates[0];
    const x = (date) => box.left + ((box.right - box.left) * (date - dates[0])) / span;
    const y = (value) => box.bottom - ((box.bottom - box.top) * value) / top;
    const at = (i) => `${x(dates[i]).toFixed(1)} ${y(values[i]).toFixed(1)}`;
    const whole = `M${values.map((_, i) => at(i)).join("L")}`;
    let seen = "";
    let unseen = "";
    for (let i = 1; i <= end; i += 1) {
      if (dates[i] - dates[i - 1] > 1) unseen += `M${at(i - 1)}L${at(i)}`;
      else seen += `${i === 1 || dates[i - 1] - dates[i - 2] > 1 ? `M${at(i - 1)}` : ""}L${at(i)}`;
    }
    const label = `From ${say(values[0])} on ${days[0].day} to ${say(values[end])} on ${days[end].day}`;
    const half = ((box.right - box.left) / Math.max(1, span)) / 2;
    return svg("svg", { width, height, role: "img", "aria-label": label },
      [0, 0.5, 1].map((part) => [
        svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y(top * part), y2: y(top * part) }),
        svg("text", { class: "share", x: box.left - em * 0.6, y: y(top * part), "text-anchor": "end",
          "dominant-baseline": "central" }, sayRound(top * part)),
      ]),
      dayTicks(dates[0], dates[end], (box.right - box.left) / (em * 4.4)).map((date) =>
        dayMark(date, { x: x(date), box, height, em, span })),
      svg("path", { class: "area", d: `${whole}L${x(dates[end])} ${box.bottom}L${box.left} ${box.bottom}Z` }),
      svg("path", { class: "line unseen", d: unseen }), svg("path", { class: "line", d: seen }),
      svg("circle", { class: "point", cx: x(dates[end]), cy: y(values[end]), r: em * 0.28 }),
      svg("text", { class: "number", x: x(dates[end]), y: Math.max(em * 0.8, y(values[end]) - em * 0.9),
        "text-anchor": "end" }, say(values[end])),
      days.map((day, i) => svg("rect", { class: "hit", x: x(dates[i]) - half, y: box.top,
        width: Math.max(1, half * 2), height: box.bottom - box.top },
      svg("title", null, `${day.day}: ${count(day.files)} files, ${bytes(day.bytes)}`))));
  });
}

// A tick with its date; months are named without the day. At the edges the text turns inwards.
function dayMark(date, { x, box, height, em, span }) {
  const text = span < 62 ? dayText(date).slice(5) : dayText(date).slice(0, 7);
  const anchor = x - box.left < em * 1.5 ? "start" : box.right - x < em * 1.5 ? "end" : "middle";
  return [svg("line", { class: "grid", x1: x, x2: x, y1: box.bottom, y2: box.bottom + em * 0.35 }),
    svg("text", { class: "share", x, y: height - em * 0.4, "text-anchor": anchor }, text)];
}

// A share as a small bar; the number always stands beside it as text.
export function meter(part, all) {
  const width = `${all ? Math.max(0, Math.min(100, (part / all) * 100)) : 0}%`;
  return el("span", { class: "meter", "aria-hidden": "true" }, el("span", { style: { width } }));
}

// One bar that shows the whole, cut into its parts; the legend beside it carries the numbers.
export function splitBar(title, items, by) {
  const all = items.reduce((sum, item) => sum + item[by], 0) || 1;
  return responsive("split", (width, em) => {
    let x = 0;
    return svg("svg", { width, height: em * 1.1, role: "img",
      "aria-label": `${title}: ${items.map((item) => `${item.label} ${percent(item[by], all)}`).join(", ")}` },
      items.filter((item) => item[by] > 0).map((item) => {
        const part = (width * item[by]) / all;
        const rect = svg("rect", { class: `bar ${item.color}`, x, y: 0, width: Math.max(1, part - 1.5),
          height: em * 1.1, rx: 2 }, svg("title", null, `${item.label}: ${percent(item[by], all)}`));
        x += part;
        return rect;
      }));
  });
}
''',
    "clipboard.js": r'''// Copying text, also over plain http on the LAN, where browsers give pages no clipboard object.

import { button, el } from "./dom.js";
import { toast } from "./toast.js";

const BYTES = /[\uEF80-\uEFFF]/;

// A name with undecodable bytes is no text; the shell's own quoting says it exactly.
function shellQuoted(path) {
  let quoted = "";
  for (const char of path) {
    const code = char.codePointAt(0);
    if (code >= 0xef80 && code <= 0xefff) quoted += `\\x${(code - 0xef00).toString(16)}`;
    else if (char === "'" || char === "\\") quoted += `\\${char}`;
    else quoted += char === "\n" ? "\\n" : char;
  }
  return `$'${quoted}'`;
}

function copyOldWay(text) {
  const area = el("textarea", { class: "hidden", "aria-hidden": "true" });
  area.value = text;
  const dialog = document.querySelector("dialog[open]") || document.body;
  const before = document.activeElement;
  dialog.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (before) before.focus();
  return done;
}

export async function copyText(text, what = "Copied") {
  let done = false;
  try {
    await navigator.clipboard.writeText(text);
    done = true;
  } catch { done = copyOldWay(text); }
  toast(done ? what : "The browser did not allow copying", done ? "good" : "bad");
}

export function copyPath(path) {
  if (BYTES.test(path)) return copyText(shellQuoted(path),
    "Path copied, quoted for the shell: its name is not valid UTF-8");
  return copyText(path, "Path copied");
}

export function copyButton(text, label = "Copy") {
  return button(label, () => copyText(text), { class: "small" });
}
''',
    "columns.js": r'''// The columns of the file table: what each shows, how wide it is, which key it sorts by.

import { el, name } from "./dom.js";
import { ago, bitrate, bytes, clock, count, day, machine, moment, shortContainer } from "./format.js";

const meta = (row, key) => (row.metadata ? row.metadata[key] : null);
const folderOf = (row) => row.path.slice(0, Math.max(0, row.path.length - row.name.length - 1));

export const KINDS = ["video", "audio", "image", "subtitle", "xml", "other", "unknown", "junk"];

export function kindMark(kind) {
  return el("span", { class: `kind k-${KINDS.includes(kind) ? kind : "unknown"}` }, kind);
}

export function stateMark(state) {
  return el("span", { class: `state s-${state}` }, state);
}

// How much is known about the content, in the word that the duplicate rules use.
function hashWord(row) {
  if (!row.hashes || !row.hashes.sample_hash) return "";
  return row.hashes.full_hash ? "full" : "sample";
}

export const COLUMNS = [
  { key: "name", label: "Name", width: 300, fixed: true, node: (row) => name(row.name) },
  { key: "size", label: "Size", width: 92, number: true, first: "desc", text: (row) => bytes(row.size) },
  { key: "mtime", label: "Modified", width: 104, number: true, first: "desc", text: (row) => day(row.mtime) },
  { key: "kind", label: "Kind", width: 102, node: (row) => kindMark(row.kind) },
  { key: "duration", label: "Duration", width: 88, number: true, first: "desc",
    text: (row) => clock(meta(row, "duration")) },
  { key: "height", label: "Resolution", width: 104, number: true, first: "desc",
    text: (row) => (meta(row, "height") ? `${meta(row, "width")}\u00D7${meta(row, "height")}` : "") },
  { key: "video_codec", label: "Video", width: 106, text: (row) => meta(row, "video_codec")
    || "" },
  { key: "agent", label: "Machine", width: 110, text: (row) => machine(row.agent) },
  { key: "path", label: "Folder", width: 300, node: (row) => name(folderOf(row)) },
  { key: "audio_codec", label: "Audio", width: 88,
    text: (row) => (meta(row, "audio_codecs") || []).join(", ") },
  { key: "bitrate", label: "Bitrate", width: 96, number: true, first: "desc",
    text: (row) => bitrate(meta(row, "bitrate")) },
  { key: "state", label: "State", width: 92, node: (row) => stateMark(row.state) },
  { key: "container", label: "Container", width: 104,
    text: (row) => shortContainer(meta(row, "container")), off: true },
  { key: "ext", label: "Ext.", width: 70, text: (row) => row.ext, off: true },
  { key: "hashes", label: "Hashed", width: 82, unsorted: true, text: hashWord, off: true },
  { key: "reason", label: "Reason", width: 130, text: (row) => row.reason || "", off: true },
  { key: "first_seen", label: "First seen", width: 112, number: true, first: "desc",
    text: (row) => day(row.first_seen), off: true },
  { key: "changed", label: "Changed", width: 112, number: true, first: "desc",
    text: (row) => ago(row.changed), off: true },
  { key: "ctime", label: "Status change", width: 190, number: true, unsorted: true,
    text: (row) => moment(row.ctime), off: true },
  { key: "id", label: "Id", width: 84, number: true, unsorted: true, text: (row) => count(row.id),
    off: true },
];

const STORE = "medialib.columns";

export function chosenColumns() {
  let stored = null;
  try { stored = JSON.parse(localStorage.getItem(STORE)); } catch { /* no storage: the usual columns */ }
  const chosen = Array.isArray(stored) ? COLUMNS.filter((c) => c.fixed || stored.includes(c.key)) : null;
  return chosen || COLUMNS.filter((column) => !column.off);
}

export function chooseColumns(keys) {
  try { localStorage.setItem(STORE, JSON.stringify(keys)); } catch { /* kept for this page only */ }
}
''',
    "dialog.js": r'''// Modal dialogs on the browser's own <dialog>: focus is kept inside and given back, Esc closes.

import { add, button, el, freshId } from "./dom.js";
import { toastError } from "./toast.js";

// `actions`: [{label, kind, run}]; run may return false to stay open. Resolves when it is closed.
export function openDialog(title, body, actions = [], wide = false) {
  const id = freshId("dialog");
  const dialog = el("dialog", { class: wide ? "wide" : null, "aria-labelledby": id });
  const close = () => dialog.close();
  const buttons = actions.map(({ label, kind, run }) => button(label, async (event) => {
    const pressed = event.currentTarget;
    pressed.disabled = true;
    try { if ((await run()) !== false) close(); } catch (error) { toastError(error); }
    pressed.disabled = false;
  }, { class: kind }));
  add(dialog, [
    el("header", null, el("h2", { id }, title), button("\u00D7", close,
      { class: "quiet", "aria-label": "Close" })),
    el("div", { class: "dialog-body" }, body),
    el("footer", null, button(actions.length ? "Cancel" : "Close", close, { autofocus: true }), buttons),
  ]);
  dialog.addEventListener("click", (event) => { if (event.target === dialog) close(); });
  document.body.append(dialog);
  dialog.showModal();
  return { dialog, close, closed: new Promise((done) =>
    dialog.addEventListener("close", () => { dialog.remove(); done(); })) };
}

export const dialogIsOpen = () => Boolean(document.querySelector("dialog[open]"));
''',
    "dom.js": r'''// Elements made by hand: text is always text, names from disk always marked where they are not plain.

const SVG = "http://www.w3.org/2000/svg";

// What must be seen in a name: undecodable bytes (U+EF80..U+EFFF stand for 0x80..0xFF), control
// characters, and invisible or direction-changing characters that make one name look like another.
const ODD = /[\uEF80-\uEFFF\u0000-\u001F\u007F-\u009F\u200B-\u200F\u2028-\u202E\u2060-\u2069\uFEFF]/;

function fill(node, attrs, children) {
  for (const [key, value] of Object.entries(attrs || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "on") for (const [type, fn] of Object.entries(value)) node.addEventListener(type, fn);
    else if (key === "style") for (const [name, v] of Object.entries(value)) node.style.setProperty(name, v);
    else if (key === "value" || key === "checked" || key === "disabled"
      || key === "selected") node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  add(node, children);
  return node;
}

export function add(node, children) {
  for (const child of [children].flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : String(child));
  }
  return node;
}

export function el(tag, attrs, ...children) {
  return fill(document.createElement(tag), attrs, children);
}

export function svg(tag, attrs, ...children) {
  return fill(document.createElementNS(SVG, tag), attrs, children);
}

export function put(node, ...children) {
  node.replaceChildren();
  return add(node, children);
}

function mark(char) {
  const code = char.codePointAt(0);
  const hex = code.toString(16).toUpperCase();
  if (code >= 0xef80 && code <= 0xefff) {
    const byte = (code - 0xef00).toString(16).toUpperCase();
    return el("span", { class: "byte", title: `byte 0x${byte}, which is not valid UTF-8` }, `\\x${byte}`);
  }
  const shown = code < 32 ? String.fromCodePoint(0x2400 + code) : `U+${hex.padStart(4, "0")}`;
  return el("span", { class: "byte", title: `invisible character U+${hex.padStart(4, "0")}` }, shown);
}

// The name as nodes; a plain name (nearly all) is one text node.
function nameNodes(text) {
  if (!ODD.test(text)) return [document.createTextNode(text)];
  const nodes = [];
  let plain = "";
  for (const char of text) {
    if (!ODD.test(char)) { plain += char; continue; }
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
    nodes.push(mark(char));
  }
  if (plain) nodes.push(document.createTextNode(plain));
  return nodes;
}

export function name(text, attrs) {
  return el("bdi", { class: "name", ...attrs }, nameNodes(text));
}

// A path may be broken behind its separators, before it is broken within a name.
export function pathName(text, attrs) {
  return el("bdi", { class: "name", ...attrs }, text.match(/[^/\\]*[/\\]?/g).map((part) =>
    [nameNodes(part), el("wbr")]));
}

// The same as a string, for titles and labels where no element can stand.
export function plainName(text) {
  return ODD.test(text) ? nameNodes(text).map((node) => node.textContent).join("") : text;
}

// Drawing anew must not take the keyboard's place away: the same link gets the focus back.
export function keepingFocus(root, draw) {
  const held = root.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  draw();
  if (!held || root.contains(document.activeElement)) return;
  const again = [...root.querySelectorAll("a")].find((link) => link.getAttribute("href") === held);
  if (again) again.focus({ preventScroll: true });
}

let ids = 0;
export function freshId(prefix) {
  ids += 1;
  return `${prefix}-${ids}`;
}

export function button(label, onclick, attrs) {
  return el("button", { type: "button", on: { click: onclick }, ...attrs }, label);
}

// A button must not be pressed twice while its work runs.
export function busyButton(label, work, attrs) {
  const node = button(label, async () => {
    node.disabled = true;
    try { await work(); } finally { node.disabled = false; }
  }, attrs);
  return node;
}
''',
    "drawer.js": r'''// Everything known of one file: facts, hashes, streams, its other copies.

import { Latest, call } from "./api.js";
import { copyPath, copyText } from "./clipboard.js";
import { kindMark, stateMark } from "./columns.js";
import { add, button, el, name, put } from "./dom.js";
import { failed, loading } from "./empty.js";
import { ago, bitrate, bytes, clock, count, machine, moment, plural } from "./format.js";
import { href } from "./router.js";

const MATCH_WORDS = {
  confirmed: "confirmed: the whole content is equal",
    candidate: "candidate: the samples are equal, not yet proven", link: "hard link: the same copy",
};

function facts(pairs) {
  return el("dl", { class: "facts" }, pairs.filter(([, value]) => value !== null && value !== undefined
    && value !== "")
    .map(([key, value]) => [el("dt", null, key), el("dd", null, value)]));
}

function folderOf(file) {
  return file.path.slice(0, Math.max(0, file.path.length - file.name.length - 1));
}

function hashFacts(hashes) {
  if (!hashes || !hashes.sample_hash) return el("p", { class: "muted" }, "Not hashed yet.");
  const code = (text) => el("code", { class: "hash" }, text);
  return facts([
    ["Function", hashes.algo],
    ["Sample hash", code(hashes.sample_hash)],
    ["Full hash", hashes.full_hash ? code(hashes.full_hash) : "not computed yet"],
  ]);
}

function streamText(stream) {
  const parts = [stream.codec_name, stream.profile];
  if (stream.codec_type === "video") parts.push(stream.width ? `${stream.width}\u00D7${stream.height}` : null,
    stream.pix_fmt, frameRate(stream));
  if (stream.codec_type === "audio") parts.push(stream.channel_layout
    || (stream.channels ? `${stream.channels} ch` : null), stream.sample_rate ? `${stream.sample_rate} Hz`
    : null);
  parts.push(bitrate(Number(stream.bit_rate) || 0));
  return parts.filter(Boolean).join(" \u00B7 ");
}

function frameRate(stream) {
  const [top, bottom] = String(stream.avg_frame_rate || stream.r_frame_rate || "").split("/").map(Number);
  return top && bottom ? `${(top / bottom).toFixed(2).replace(/\.?0+$/, "")} fps` : null;
}

function language({ tags }) {
  return tags && tags.language && tags.language !== "und" ? String(tags.language) : "";
}

function streamTable(streams) {
  return el("table", { class: "plain" },
    el("thead", null, el("tr", null, ["#", "Type", "Stream",
      "Language"].map((label) => el("th", { scope: "col" }, label)))),
    el("tbody", null, streams.map((stream) => el("tr", null,
      el("td", null, stream.index), el("td", null, stream.codec_type || ""),
      el("td", null, streamText(stream), stream.tags && stream.tags.title
        ? el("div", { class: "muted" }, String(stream.tags.title)) : null),
      el("td", null, language(stream))))));
}

function copyList(copies) {
  return el("ul", { class: "copies" }, copies.map((copy) => el("li", { class: `is-${copy.state}` },
    el("a", { href: href("library", { open: copy.id }) }, name(copy.path)),
    el("div", { class: "muted" },
      `${machine(copy.agent)} \u00B7 ${copy.state} \u00B7 ${MATCH_WORDS[copy.match] || copy.match}`))));
}

function section(title, ...content) {
  return el("section", null, el("h3", null, title), content);
}

function parsedStreams(file) {
  if (Array.isArray(file.streams)) return file.streams;
  try { return JSON.parse(file.metadata.streams_json).streams || []; } catch { return []; }
}

export class FileDrawer {
  constructor(onclose) {
    this.onclose = onclose;
    this.calls = new Latest();
    this.id = null;
    this.node = el("aside", { class: "drawer", "aria-label": "File", hidden: true });
  }

  stop() { this.calls.stop(); }

  get path() { return this.file ? this.file.path : null; }

  copy() { return copyPath(this.file.path); }

  async show(id) {
    if (id === this.id) return;
    this.id = id;
    this.file = null;
    this.node.hidden = id === null;
    if (id === null) { this.calls.stop(); put(this.node); return; }
    if (!this.node.firstChild) put(this.node, loading());
    try {
      const { file } = await call("file", { id: Number(id) }, this.calls.next());
      if (this.id !== id) return;
      this.file = file;
      this.draw(file);
    } catch (error) {
      if (error.name !== "AbortError") put(this.node, this.closeRow(), failed(error));
    }
  }

  closeRow() {
    return el("div", { class: "drawer-bar" }, button("\u00D7", this.onclose,
      { class: "quiet", "aria-label": "Close (Esc)", title: "Close (Esc)" }));
  }

  draw(file) {
    const bar = this.closeRow();
    bar.prepend(el("div", { class: "row" }, kindMark(file.kind), stateMark(file.state)));
    put(this.node, bar, el("h2", { class: "wrap" }, name(file.name)),
      el("p", { class: "wrap path" }, name(file.path)),
      el("div", { class: "row" },
        button("Copy path", () => this.copy(), { class: "small", title: "Copy path (c)" }),
        el("a", { class: "button small", href: href("folders",
          { agent: file.agent.id, path: folderOf(file) }) }, "Show folder"),
        el("a", { class: "button small", href: href("library",
          { agent: file.agent.id, folder: folderOf(file) }) }, "Files beside it")),
      file.error ? el("p", { class: "notice bad" },
        `${file.error.stage}: ${file.error.class}. ${file.error.message || ""}`) : null,
      this.mainFacts(file), this.media(file), section("Hashes", hashFacts(file.hashes)), this.others(file));
    this.node.scrollTop = 0;
  }

  mainFacts(file) {
    return facts([
      ["Size", `${bytes(file.size)} (${count(file.size)} bytes)`], ["Machine", file.agent.id === "local" ? `${file.agent.name} (this host)` : file.agent.name],
        ["Root", name(file.root || "")],
      ["Modified", moment(file.mtime)], ["Status change", moment(file.ctime)],
        ["First seen", `${moment(file.first_seen)} (${ago(file.first_seen)})`],
      ["Last change", ago(file.changed)], ["Reason", file.reason],
        ["Identity", el("code", null, file.inode_key || "")],
    ]);
  }

  media(file) {
    const meta = file.metadata;
    if (!meta) return file.kind === "video" ? section("Video",
      el("p", { class: "muted" }, "Not described yet: ffprobe has not read this file.")) : null;
    const streams = parsedStreams(file);
    return section("Video", facts([
      ["Duration", clock(meta.duration)], ["Resolution", meta.height ? `${meta.width}\u00D7${meta.height}`
        : null], ["Video", meta.video_codec],
      ["Audio", (meta.audio_codecs || []).join(", ")], ["Container", meta.container],
        ["Bitrate", bitrate(meta.bitrate)],
    ]), streams.length ? streamTable(streams) : null, meta.streams_json ? this.raw(meta.streams_json) : null);
  }

  raw(json) {
    return el("details", null, el("summary", null, "What ffprobe said"),
      button("Copy", () => copyText(json), { class: "small" }), el("pre", { tabindex: "0" }, json));
  }

  others(file) {
    const copies = file.copies || [];
    const whole = file.hashes && (file.hashes.full_hash || file.hashes.sample_hash);
    const part = section(`Other copies${copies.length ? ` (${copies.length})` : ""}`);
    if (copies.length) return add(part, copyList(copies));
    return add(part, el("p", { class: "muted" }, whole
      ? `${plural(0, "other copy", "other copies").replace("0", "No")} in the catalogue.`
      : "Unknown until it is hashed."));
  }
}
''',
    "duplicates.js": r'''// Duplicates: proven ones, candidates and identical folders, each apart, largest gain first.

import { Latest, call, download } from "./api.js";
import { copyPath } from "./clipboard.js";
import { KINDS, stateMark } from "./columns.js";
import { openDialog } from "./dialog.js";
import { add, button, busyButton, el, name, put } from "./dom.js";
import { emptyState, failed, loading } from "./empty.js";
import { filterOf } from "./filter.js";
import { bytes, count, day, machine, plural } from "./format.js";
import { hashMixNotice } from "./hash_mix.js";
import { onLive } from "./live.js";
import { go, href } from "./router.js";
import { told } from "./toast.js";

const PAGE = 40;
const SHOWN_FILES = 8;

const TABS = [
  ["confirmed", "Confirmed",
    "The whole content is equal, byte for byte by its full hash. Hard links count as one copy."],
  ["candidate", "Candidates",
    "Size and samples are equal; the rest has not been compared yet. Nothing here counts as space to free until full hashes prove it."],
  ["folders", "Identical folders",
    "Folders whose files are all duplicates of one other folder\u2019s, as one row."],
];

export class DuplicatesView {
  constructor(root) {
    this.root = root;
    this.calls = new Latest();
    this.stops = [onLive("again", () => this.load())];
    this.list = el("div", { class: "groups" });
    this.watch = el("div", { class: "more-mark" });
    this.observer = new IntersectionObserver((seen) => { if (seen.some((one) =>
      one.isIntersecting)) this.more(); }, { rootMargin: "600px" });
    this.observer.observe(this.watch);
    this.head = el("div");
    put(root, el("h1", { class: "hidden" }, "Duplicates"), this.head, this.list, this.watch);
  }

  update(params) {
    this.params = params;
    this.tab = TABS.find(([key]) => key === params.get("state")) || TABS[0];
    this.filter = filterOf(params);
    delete this.filter.state;
    const want = JSON.stringify([this.tab[0], this.filter]);
    this.drawHead();
    if (want === this.shown) return;
    this.shown = want;
    this.load();
  }

  drawHead() {
    const tabs = TABS.map(([key, label]) => el("a",
      { href: href("duplicates", this.with("state", key)), "aria-current": key === this.tab[0] ? "true"
      : null }, label, this.badge(key)));
    const pick = (key, label, options) => el("label", { class: "pick" }, el("span", null, label),
      el("select", { on: { change: (event) => go("duplicates", this.with(key, event.target.value)) } },
        el("option", { value: "" }, "any"), options.map(([value, text]) =>
          el("option", { value, selected: this.params.get(key) === value }, text))));
    put(this.head, el("nav", { class: "tabs", "aria-label": "Which duplicates" }, tabs),
      el("p", { class: "muted lead" }, this.tab[2]), hashMixNotice(this.agents),
      el("div", { class: "bar" }, this.total(), el("div", { class: "tools" },
        this.tab[0] === "folders" ? null : pick("kind", "Kind", KINDS.map((kind) => [kind, kind])),
        pick("agent", "Machine", (this.agents || []).map((agent) => [agent.id, machine(agent)])),
        this.params.get("q") ? button([`\u201C${this.params.get("q")}\u201D `, "\u00D7"],
          () => go("duplicates", this.with("q", "")), { class: "chip on", "aria-label": "Remove the search" })
          : null,
        button("Export", () => this.pickExport(), { class: "small" }))));
  }

  with(key, value) {
    const next = new URLSearchParams(this.params);
    if (value) next.set(key, value);
    else next.delete(key);
    return next;
  }

  badge(key) {
    const d = this.totals;
    if (!d || key === "folders") return null;
    return el("span", { class: "badge" }, count(key === "confirmed" ? d.confirmed_groups
      : d.candidate_groups));
  }

  total() {
    const d = this.totals;
    if (!d || this.tab[0] === "folders") return el("p", { class: "total" });
    if (this.tab[0] === "candidate") return el("p", { class: "total" },
      el("strong", null, count(d.candidate_groups)), " groups to prove", d.candidate_bytes
      ? ` \u00B7 at most ${bytes(d.candidate_bytes)}` : "");
    return el("p", { class: "total" }, el("strong", { class: "good-text" }, bytes(d.reclaimable_bytes || 0)),
      ` can be freed \u00B7 ${plural(d.confirmed_groups, "group")}`);
  }

  async load() {
    const signal = this.calls.next();
    this.next = null;
    this.count = 0;
    put(this.list, loading());
    call("summary", {}, signal).then((summary) => {
      this.totals = summary.duplicates;
      this.agents = summary.agents;
      this.drawHead();
    }).catch(() => {});
    await this.page(signal);
  }

  async page(signal) {
    this.busy = true;
    const path = this.tab[0] === "folders" ? "duplicate_folders" : "duplicates";
    try {
      const answer = await call(path, { filter: this.filter, state: this.tab[0] === "folders" ? undefined
        : this.tab[0], limit: PAGE, after: this.next ?? undefined }, signal);
      if (!this.count) put(this.list);
      this.count += answer.groups.length;
      this.next = answer.next;
      add(this.list, answer.groups.map((group) => (path === "duplicates" ? this.group(group)
        : this.folderGroup(group))));
      if (!this.count && !this.next) put(this.list, this.nothing());
      else if (answer.approximate && !this.next) this.list.append(el("p", { class: "muted" },
        "There was no time to compare all folders: there may be more."));
    } catch (error) {
      if (error.name !== "AbortError") put(this.list, failed(error, () => this.load()));
    }
    this.busy = false;
    // Asked anew whether the end of the list is in sight: a page may bring little or nothing.
    this.observer.unobserve(this.watch);
    this.observer.observe(this.watch);
  }

  more() {
    if (!this.busy && this.next) this.page(this.calls.controller ? this.calls.controller.signal
      : this.calls.next());
  }

  nothing() {
    const filtered = Object.keys(this.filter).length > 0;
    if (filtered) return emptyState("No group fits", "Nothing of this kind matches the filter.",
      button("Clear the filter", () => go("duplicates", { state: this.tab[0] })));
    if (this.tab[0] === "candidate") return emptyState("No candidates",
      "Every match has been proven or ruled out, or nothing is hashed yet.");
    if (this.tab[0] === "folders") return emptyState("No identical folders",
      "Whole folders that exist twice show up here once their files are hashed.");
    return emptyState("No confirmed duplicates",
      "They appear when full hashes are there: see do_full_hash and the off-peak hours in the settings.",
      el("a", { class: "button", href: href("settings") }, "Settings"));
  }

  group(group) {
    const [first] = group.files;
    const links = group.names - group.copies;
    const head = el("div", { class: "group-head" },
      el("h2", null, name(first.name)),
      el("span", { class: `pill ${group.state === "confirmed" ? "good" : "warn"}` }, group.state),
      el("span", { class: "muted" },
        `${plural(group.copies, "copy", "copies")} of ${bytes(group.size)}${links > 0 ? `, ${plural(links, "hard link")}` : ""}`),
      el("strong", { class: "gain" }, group.state === "confirmed" ? `${bytes(group.reclaimable)} to free`
        : `${bytes(group.potential)} if proven`));
    const body = el("tbody");
    const fill = (files) => add(body, files.map((file, i) => this.fileRow(file, group, files, i)));
    fill(group.files.slice(0, SHOWN_FILES));
    const rest = group.files.slice(SHOWN_FILES);
    const foot = rest.length ? button(`${count(group.names - SHOWN_FILES)} more`,
      (event) => { fill(rest); event.target.remove(); }, { class: "link" }) : null;
    return el("article", { class: "group" }, head,
      el("table", { class: "plain" }, el("thead", { class: "hidden" },
        el("tr", null, ["Copy", "Machine", "Path", "Modified", "State",
        ""].map((label) => el("th", { scope: "col" }, label || "Action")))), body),
      foot, group.names > group.files.length ? el("a", { href: href("library", { hash: group.hash }) },
        `All ${count(group.names)} in the Library`) : null);
  }

  fileRow(file, group, files, i) {
    const link = files.findIndex((other) => other.copy !== undefined && other.copy === file.copy) < i
      && file.copy !== undefined;
    return el("tr", { class: `is-${file.state}` },
      el("td", { class: "copy-no muted" }, `${link ? "= " : ""}#${(file.copy ?? i) + 1}`),
        el("td", { class: "who" }, machine(file.agent)),
      el("td", { class: "grow" }, el("a", { href: href("library", { open: file.id, hash: group.hash }) },
        name(file.path))),
      el("td", { class: "num muted low" }, day(file.mtime)),
        el("td", null, file.state === "present" ? null : stateMark(file.state)),
      el("td", null, button("Copy path", () => copyPath(file.path), { class: "link" })));
  }

  folderGroup(group) {
    return el("article", { class: "group" },
      el("div", { class: "group-head" }, el("h2", null, plural(group.files, "file")),
        el("span", { class: `pill ${group.state === "confirmed" ? "good" : "warn"}` }, group.state),
        el("span", { class: "muted" }, `${bytes(group.bytes)} in each folder`),
          el("strong", { class: "gain" },
          group.state === "confirmed" ? `${bytes(group.reclaimable)} to free`
            : `${bytes(group.potential)} if proven`)),
      el("table", { class: "plain" }, el("thead", { class: "hidden" },
        el("tr", null, ["Machine", "Folder", "State",
        "Action"].map((label) => el("th", { scope: "col" }, label)))),
        el("tbody", null, group.folders.map((folder) =>
          el("tr", { class: folder.state === "offline" ? "is-offline" : null },
          el("td", { class: "who" }, machine(folder.agent)),
          el("td", { class: "grow" }, el("a", { href: href("folders",
            { agent: folder.agent.id, path: folder.path }) }, name(folder.path))),
          el("td", null, folder.state === "offline" ? stateMark("offline") : null),
            el("td", null, button("Copy path", () => copyPath(folder.path), { class: "link" })))))));
  }

  pickExport() {
    const folders = this.tab[0] === "folders";
    const body = folders ? { what: "folders", filter: this.filter }
      : { what: "duplicates", filter: this.filter, state: this.tab[0] };
    const file = folders ? "medialib-identical-folders" : `medialib-${this.tab[0]}-duplicates`;
    const save = (format) => told(() => download("export", { ...body, format }, `${file}.${format}`));
    const row = folders ? "one folder a row" : "one file a row";
    openDialog(folders ? "Export the identical folders" : `Export the ${this.tab[1].toLowerCase()}`,
      el("div", { class: "choices" },
        busyButton([el("strong", null, "CSV"), el("span", null, `For spreadsheets: ${row}`)], save("csv"),
          { class: "choice" }),
        busyButton([el("strong", null, "JSON lines"), el("span", null, "For scripts: one group a line")],
          save("jsonl"), { class: "choice" })));
  }

  key(event) {
    const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
    const links = [...this.list.querySelectorAll("td.grow > a")];
    if (!step || !links.length) return false;
    links[Math.min(links.length - 1, Math.max(0, links.indexOf(document.activeElement) + step))].focus();
    return true;
  }

  focusList() { this.key({ key: "j" }); }

  destroy() {
    this.stops.forEach((stop) => stop());
    this.observer.disconnect();
    this.calls.stop();
  }
}
''',
    "empty.js": r'''// What stands where nothing is yet: what this place will show, and what to do next.

import { el } from "./dom.js";

export function emptyState(title, text, ...actions) {
  return el("div", { class: "empty" }, el("h2", null, title), el("p", null, text),
    el("div", { class: "row" }, actions));
}

export function loading(text = "Loading") {
  return el("p", { class: "loading", role: "status" }, `${text}\u2026`);
}

export function failed(error, again) {
  return el("div", { class: "empty bad" }, el("h2", null, "This could not be loaded"),
    el("p", null, `${error.message}${error.detail ? `: ${error.detail}` : ""}`),
    again ? el("button", { type: "button", on: { click: again } }, "Try again") : null);
}
''',
    "filter.js": r'''// The one filter of files: as the URL says it, as the host's JSON wants it, as chips tell it.

import { bitrate, bytes, clock, day, parseBitrate, parseBytes, parseCount, parseSpan,
  shortContainer } from "./format.js";

export const LISTS = {
  kind: "Kind", state: "State", agent: "Machine", root: "Root", resolution: "Resolution",
    video_codec: "Video codec",
  audio_codec: "Audio codec", container: "Container", ext: "Extension", reason: "Reason",
};
const TEXTS = { q: "Search", under: "Under", folder: "In folder", hash: "Hash" };
const FLAGS = { probed: "Described", error: "With errors" };

const plainCount = { show: String, parse: parseCount };
const dateEnd = {
  show: day,
  parse: (text) => (Number.isNaN(Date.parse(text)) ? null
    : Math.round(Date.parse(`${text}T00:00:00`) / 1000)),
};

export const RANGES = {
  size: { label: "Size", show: bytes, parse: parseBytes, hint: "700M, 1.5G" },
  mtime: { label: "Modified", type: "date", ...dateEnd },
  duration: { label: "Duration", show: clock, parse: parseSpan, hint: "1:30:00, 45m" },
  height: { label: "Height", ...plainCount, hint: "720" },
  bitrate: { label: "Bitrate", show: bitrate, parse: parseBitrate, hint: "800k, 5M" },
  copies: { label: "Copies", ...plainCount, hint: "1" },
  first_seen: { label: "First seen", type: "date", ...dateEnd },
  changed: { label: "Changed", type: "date", ...dateEnd },
};

const number = (text) => (text === "" || Number.isNaN(Number(text)) ? null : Number(text));

export function filterOf(params) {
  const filter = {};
  for (const key of Object.keys(LISTS)) if (params.has(key)) filter[key] = params.getAll(key);
  for (const key of Object.keys(TEXTS)) if ((params.get(key) || "").trim()) filter[key] = params.get(key);
  for (const key of Object.keys(FLAGS)) if (params.has(key)) filter[key] = params.get(key) !== "false";
  for (const key of Object.keys(RANGES)) {
    if (!params.has(key)) continue;
    const [min, max] = params.get(key).split("..");
    const range = {};
    if (number(min || "") !== null) range.min = number(min);
    if (number(max || "") !== null) range.max = number(max);
    if (Object.keys(range).length) filter[key] = range;
  }
  return filter;
}

export function rangeText(range) {
  return `${range.min ?? ""}..${range.max ?? ""}`;
}

function tellRange(key, { min, max }) {
  const { show } = RANGES[key];
  if (min === max) return show(min);
  if (min === undefined) return `at most ${show(max)}`;
  return max === undefined ? `at least ${show(min)}` : `${show(min)} \u2013 ${show(max)}`;
}

// [{key, label, text, value}]: one chip for every part of the filter that can be taken away by itself.
export function chipsOf(filter, names = {}) {
  const chips = [];
  for (const [key, value] of Object.entries(filter)) {
    if (LISTS[key]) {
      for (const one of value) chips.push({ key, value: one, label: LISTS[key], text: (names[key] || {})[one]
        || (key === "container" ? shortContainer(one) : one) || "(none)" });
    } else if (RANGES[key]) chips.push({ key, label: RANGES[key].label, text: tellRange(key, value) });
    else if (FLAGS[key]) chips.push({ key, label: FLAGS[key], text: value ? "yes" : "no" });
    else if (key !== "q") chips.push({ key, label: TEXTS[key], text: value });
  }
  return chips;
}

export function withoutChip(params, chip) {
  const next = new URLSearchParams(params);
  const rest = chip.value === undefined ? [] : next.getAll(chip.key).filter((value) => value !== chip.value);
  next.delete(chip.key);
  for (const value of rest) next.append(chip.key, value);
  next.delete("open");
  return next;
}

export function withoutFilter(params) {
  const next = new URLSearchParams();
  for (const key of ["sort", "order"]) if (params.has(key)) next.set(key, params.get(key));
  return next;
}
''',
    "filter_panel.js": r'''// The Library's filter: facets with counts, ranges, and a few questions people really ask.

import { button, el, freshId, plainName, put } from "./dom.js";
import { bytes, count, day, machine, shortContainer, shortCount } from "./format.js";
import { LISTS, RANGES, rangeText } from "./filter.js";

const SHOWN = 6;
const FACETS = ["kind", "state", "agent", "resolution", "video_codec", "audio_codec", "container", "ext",
  "root", "age", "reason"];
const OPEN = new Set(["kind", "state", "agent", "resolution", "video_codec"]);
export const FACET_KEYS = FACETS;

const QUESTIONS = [
  ["In one place only", { copies: "1..1", state: "present" }],
  ["Has copies", { copies: "2.." }],
  ["Videos not described", { kind: "video", probed: "false" }],
  ["With errors", { error: "true" }],
  ["Missing", { state: "missing" }],
];

export class FilterPanel {
  // onchange(nextParams): the filter that the person now wants
  constructor(onchange) {
    this.onchange = onchange;
    this.more = new Set();
    this.open = new Set(OPEN);
    this.questions = el("div", { class: "questions" });
    this.ranges = el("div");
    this.facets = el("div");
    this.node = el("div", { class: "filter-panel" },
      el("h2", { class: "panel-title" }, "Filter"), this.questions, this.facets, this.ranges);
    this.drawn = "";
  }

  update(params, filter) {
    this.params = params;
    this.filter = filter;
    this.drawQuestions();
    if (!this.ranges.contains(document.activeElement)) this.drawRanges();
  }

  change(edit) {
    const next = new URLSearchParams(this.params);
    edit(next);
    next.delete("open");
    this.onchange(next);
  }

  drawQuestions() {
    put(this.questions, QUESTIONS.map(([label, wish]) => {
      const pairs = Object.entries(wish);
      const on = pairs.every(([key, value]) => this.params.getAll(key).join() === value);
      return button(label, () => this.change((next) => {
        for (const [key, value] of pairs) { next.delete(key); if (!on) next.set(key, value); }
      }), { class: "chip", "aria-pressed": String(on) });
    }));
  }

  showFacets(facets) {
    this.last = facets;
    const now = JSON.stringify([facets, this.filter, [...this.more]]);
    if (now === this.drawn) return;
    this.drawn = now;
    put(this.facets, FACETS.map((key) => this.facet(key, facets[key] || [])));
  }

  facet(key, items) {
    const chosen = this.filter[key] || [];
    if (!items.some((item) => item.files) && !chosen.length) return null;
    const lost = key === "age" ? [] : chosen.filter((value) => !items.some((item) => item.value === value));
    const all = [...items, ...lost.map((value) => ({ value, files: 0, bytes: 0 }))];
    const cut = this.more.has(key) ? all : all.filter((item, i) => i < SHOWN || this.isOn(key, item));
    const details = el("details", { class: "facet", open: this.open.has(key) || chosen.length > 0 },
      el("summary", null, key === "age" ? "Age" : LISTS[key], chosen.length
        ? el("span", { class: "badge" }, chosen.length) : null),
      el("ul", { "aria-label": key === "age" ? "Age" : LISTS[key] }, cut.map((item) => this.item(key, item))),
      all.length > cut.length
        ? button(`${all.length - cut.length} more`, () => { this.more.add(key); this.showFacets(this.last); },
          { class: "link" }) : null);
    details.addEventListener("toggle", () => this.open[details.open ? "add" : "delete"](key));
    return details;
  }

  isOn(key, item) {
    if (item.filter && key === "age") return JSON.stringify(this.filter.mtime) === JSON.stringify(item.filter.mtime);
    return (this.filter[key] || []).includes(item.value);
  }

  item(key, item) {
    const on = this.isOn(key, item);
    const box = el("input", { type: "checkbox", checked: on,
      on: { change: () => this.choose(key, item, !on) } });
    const label = plainName(String((key === "agent" && item.label && machine({ id: item.value, name: item.label }))
      || item.label || (key === "container" ? shortContainer(item.value)
      : item.value) || "(none)"));
    return el("li", null, el("label", { title: `${label}: ${count(item.files)} files, ${bytes(item.bytes)}` },
      box, el("span", { class: "what" }, label), el("span", { class: "n" }, shortCount(item.files))));
  }

  choose(key, item, on) {
    this.change((next) => {
      if (key === "age") {
        next.delete("mtime");
        if (on) next.set("mtime", rangeText(item.filter.mtime));
        return;
      }
      const values = next.getAll(key).filter((value) => value !== item.value);
      next.delete(key);
      for (const value of on ? [...values, item.value] : values) next.append(key, value);
    });
  }

  drawRanges() {
    const keys = Object.keys(RANGES);
    if (!this.rangeFields) {
      this.rangeFields = new Map(keys.map((key) => [key, this.rangeField(key)]));
      put(this.ranges, el("details", { class: "facet", open: true }, el("summary", null, "Ranges"),
        [...this.rangeFields.values()].map((field) => field.node)));
    }
    for (const key of keys) this.rangeFields.get(key).show(this.filter[key] || {});
  }

  rangeField(key) {
    const { label, hint, type } = RANGES[key];
    const [min, max] = ["min", "max"].map((end) => el("input", {
      id: freshId("range"), type: type || "text", placeholder: end === "min" ? hint : null,
        autocomplete: "off",
      "aria-label": `${label}, ${end === "min" ? "at least" : "at most"}`,
        on: { change: () => this.rangeChanged(key, min, max) },
    }));
    const show = (range) => { min.value = this.endText(key, range.min);
      max.value = this.endText(key, range.max); };
    return { node: el("div", { class: type ? "range dates" : "range" },
      el("span", { class: "range-label" }, label), min, el("span", { "aria-hidden": "true" }, "\u2013"), max),
      show };
  }

  endText(key, value) {
    if (value === undefined) return "";
    if (RANGES[key].type !== "date") return RANGES[key].show(value).replace("\u00A0", " ").replace("/s", "");
    return day(value);
  }

  rangeChanged(key, min, max) {
    const range = {};
    for (const [end, input] of [["min", min], ["max", max]]) {
      const value = input.value.trim() ? RANGES[key].parse(input.value) : undefined;
      input.setAttribute("aria-invalid", String(value === null));
      if (value === null) return;
      if (value !== undefined) range[end] = value + (end === "max" && RANGES[key].type === "date" ? 86399
        : 0);
    }
    this.change((next) => {
      if (Object.keys(range).length) next.set(key, rangeText(range));
      else next.delete(key);
    });
  }
}
''',
    "folders.js": r'''// Folders: where the space is. A tree with sizes beside a treemap of the folder one is in.

import { Latest, call } from "./api.js";
import { meter } from "./charts.js";
import { copyPath } from "./clipboard.js";
import { stateMark } from "./columns.js";
import { add, button, el, name, pathName, plainName, put } from "./dom.js";
import { emptyState, failed, loading } from "./empty.js";
import { bytes, count, machine, percent, plural } from "./format.js";
import { onLive } from "./live.js";
import { go, href } from "./router.js";
import { toastError } from "./toast.js";
import { Treemap } from "./treemap.js";

const SHOWN = 200;
const place = (folder) => href("folders", { agent: folder.agent.id, path: folder.path });

export class FoldersView {
  constructor(root) {
    this.root = root;
    this.calls = new Latest();
    this.treemap = new Treemap((item) => item.href || place(item));
    this.stops = [onLive("again", () => this.load()), onLive("agents", () => this.load())];
  }

  update(params) {
    this.agent = params.get("agent");
    this.path = params.get("path");
    this.load();
  }

  async load() {
    const key = `${this.agent}\n${this.path}`;
    if (key !== this.shown) put(this.root, el("h1", { class: "hidden" }, "Folders"), loading());
    const ask = this.agent ? { agent: this.agent, path: this.path, depth: 2 } : { depth: 2 };
    try {
      const answer = await call("folders", ask, this.calls.next());
      this.shown = key;
      this.draw(answer);
    } catch (error) {
      if (error.name !== "AbortError") put(this.root, this.crumbs({}), failed(error, () => this.load()));
    }
  }

  draw(answer) {
    if (!this.agent && !answer.folders.length) {
      put(this.root, el("h1", { class: "hidden" }, "Folders"),
        emptyState("No folders yet", "Folders and their sizes appear as soon as a root is scanned.",
        el("a", { class: "button primary", href: href("machines", { add: "local" }) },
          "Add a folder of this machine")));
      return;
    }
    this.answer = answer;
    const body = el("tbody");
    this.fillRows(body, answer, 0);
    put(this.root, el("h1", { class: "hidden" }, "Folders"), this.crumbs(answer),
      el("div", { class: "folder-split" },
        el("div", { class: "tree-scroll", tabindex: "-1" }, el("table", { class: "plain tree" },
          el("thead", null, el("tr", null, el("th", { scope: "col" }, "Folder"),
            el("th", { scope: "col" }, "Share"), el("th", { scope: "col", class: "num" }, "Size"),
            el("th", { scope: "col", class: "num low" }, "Files"))), body)),
        this.treemap.node));
    this.treemap.show(this.mapItems(answer));
  }

  mapItems(answer) {
    const items = answer.folders.map((folder) => (this.agent ? folder
      : { ...folder, name: `${machine(folder.agent)}: ${folder.name}` }));
    if (answer.own && answer.own.bytes) items.push({ name: "files here", own: true, ...answer.own,
      href: this.filesHere(answer) });
    return items.sort((a, b) => b.bytes - a.bytes);
  }

  filesHere(answer) {
    return href("library", { agent: answer.agent.id, folder: answer.path, sort: "size", order: "desc" });
  }

  crumbs(answer) {
    const parts = [el("a", { href: href("folders") }, "All machines")];
    if (answer.agent) {
      const root = this.rootOf(answer);
      const rest = answer.path.slice(root.length).split("/").filter(Boolean);
      let path = root;
      parts.push(el("span", { class: "muted" }, machine(answer.agent)),
        el("a", { href: href("folders", { agent: answer.agent.id, path }) }, name(root)));
      for (const piece of rest) {
        path = `${path.replace(/\/$/, "")}/${piece}`;
        parts.push(el("a", { href: href("folders", { agent: answer.agent.id, path }) }, name(piece)));
      }
    }
    const tools = answer.agent ? el("div", { class: "tools" },
      el("a", { class: "button small", href: href("library",
      { agent: answer.agent.id, under: answer.path }) }, "Files under it"),
      button("Copy path", () => copyPath(answer.path), { class: "small" })) : null;
    return el("div", { class: "page-head" }, el("nav", { class: "crumbs", "aria-label": "Folder" },
      parts.map((part, i) => (i ? [el("span", { class: "sep", "aria-hidden": "true" }, "\u203A"), part]
      : part))),
      answer.bytes === undefined ? null : el("p", { class: "total" }, el("strong", null, bytes(answer.bytes)),
        ` in ${plural(answer.files, "file")} `, answer.state === "offline" ? stateMark("offline") : null),
        tools);
  }

  // The root is where going up ends; the host tells it, else it is remembered from the way down.
  rootOf(answer) {
    if (answer.root) return answer.root;
    if (!answer.parent) this.knownRoot = answer.path;
    return this.knownRoot && answer.path.startsWith(this.knownRoot) ? this.knownRoot : answer.path;
  }

  fillRows(body, answer, level, before = null) {
    const most = Math.max(1, ...answer.folders.map((folder) => folder.bytes), answer.own ? answer.own.bytes
      : 0);
    const rows = answer.folders.slice(0, SHOWN).map((folder) => this.row(folder, level, most, answer.bytes));
    if (answer.own && answer.own.files) rows.push(this.ownRow(answer, level, most));
    const left = answer.folders.length - SHOWN + (answer.more || 0);
    if (left > 0) rows.push(el("tr", { class: "muted" },
      el("td", { colspan: 4 }, `and ${plural(left, "smaller folder")}`)));
    if (before) before.after(...rows);
    else add(body, rows);
    return rows;
  }

  bar(part, most, all) {
    return el("td", { class: "share-cell" }, meter(part, most),
      el("span", { class: "muted" }, percent(part, all)));
  }

  row(folder, level, most, all) {
    const several = !this.agent && level === 0;
    const toggle = button("\u25B8", () => this.toggle(row, toggle, folder, level),
      { class: "twist", "aria-expanded": "false",
      "aria-label": `Show what is in ${plainName(folder.name)}` });
    const row = el("tr", { class: folder.state === "offline" ? "is-offline" : null },
      el("td", { class: "grow" }, el("div", { class: "tree-name",
        style: { "padding-left": `${level * 1.2}em` } }, toggle,
        el("a", { href: place(folder) }, several ? el("span", { class: "muted above" }, machine(folder.agent))
          : null, pathName(folder.name)), folder.state === "offline" ? stateMark("offline") : null)),
      this.bar(folder.bytes, most, all), el("td", { class: "num" }, bytes(folder.bytes)),
        el("td", { class: "num low" }, count(folder.files)));
    return row;
  }

  ownRow(answer, level, most) {
    return el("tr", null, el("td", { class: "grow" },
      el("div", { class: "tree-name leaf", style: { "padding-left": `${level * 1.2}em` } },
      el("a", { class: "muted", href: this.filesHere(answer) }, "files here"))),
      this.bar(answer.own.bytes, most, answer.bytes), el("td", { class: "num" }, bytes(answer.own.bytes)),
        el("td", { class: "num low" }, count(answer.own.files)));
  }

  async toggle(row, toggle, folder, level) {
    if (row.below) {
      const shut = (rows) => rows.forEach((one) => { if (one.below) shut(one.below); one.remove(); });
      shut(row.below);
      row.below = null;
      toggle.setAttribute("aria-expanded", "false");
      return;
    }
    try {
      const answer = await call("folders", { agent: folder.agent.id, path: folder.path, depth: 1,
        limit: SHOWN });
      row.below = this.fillRows(null, answer, level + 1, row);
      toggle.setAttribute("aria-expanded", "true");
    } catch (error) { toastError(error); }
  }

  key(event) {
    const links = [...this.root.querySelectorAll(".tree-name > a")];
    if (event.key === "Backspace" && this.agent) {
      const { parent } = this.answer || {};
      go("folders", parent ? { agent: this.agent, path: parent } : {});
      return true;
    }
    const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
    if (step && links.length) {
      links[Math.min(links.length - 1, Math.max(0, links.indexOf(document.activeElement) + step))].focus();
      return true;
    }
    const row = document.activeElement && document.activeElement.closest(".tree tr");
    const twist = row && row.querySelector(".twist");
    if (twist && ((event.key === "ArrowRight" && !row.below)
      || (event.key === "ArrowLeft" && row.below))) { twist.click(); return true; }
    return false;
  }

  destroy() {
    this.stops.forEach((stop) => stop());
    this.calls.stop();
    this.treemap.destroy();
  }
}
''',
    "format.js": r'''// Numbers, dates and spans as people read them, and back from what they type.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const whole = new Intl.NumberFormat("en");
const two = (n) => String(n).padStart(2, "0");

export function count(n) {
  return n === null || n === undefined ? "" : whole.format(n);
}

// A machine as it calls itself; the one that keeps the catalogue is marked.
export function machine(agent) {
  return agent.id === "local" ? `${agent.name} \u2302` : agent.name;
}

export function plural(n, one, many) {
  return `${count(n)} ${n === 1 ? one : many || `${one}s`}`;
}

export function shortCount(n) {
  if (n < 10000) return count(n);
  return n < 999500 ? `${Math.round(n / 1000)}k` : `${(n / 1e6).toFixed(n < 9.95e6 ? 2 : 1)}M`;
}

export function bytes(n) {
  if (n === null || n === undefined) return "";
  let value = Math.abs(n);
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) { value /= 1024; unit += 1; }
  const text = unit === 0 ? String(Math.round(value)) : value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0);
  return `${n < 0 ? "-" : ""}${text}\u00A0${UNITS[unit]}`;
}

export function percent(part, all) {
  if (!all) return "";
  const p = (part / all) * 100;
  return p > 0 && p < 0.1 ? "<0.1%" : `${p.toFixed(p < 9.95 ? 1 : 0)}%`;
}

// Local time, written so that it sorts and aligns. Stamps on disk may be negative or in the year 2446;
// what no calendar holds is shown as a number.
export function day(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const date = new Date(seconds * 1000);
  if (Number.isNaN(date.getTime())) return `${seconds} s`;
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
}

export function moment(seconds) {
  const date = new Date((seconds || 0) * 1000);
  const text = day(seconds);
  return text.includes("-")
    ? `${text} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}` : text;
}

export function ago(seconds, now = Date.now() / 1000) {
  if (!seconds) return "never";
  const s = Math.max(0, now - seconds);
  if (s < 5) return "just now";
  if (s < 90) return `${Math.round(s)} s ago`;
  if (s < 5400) return `${Math.round(s / 60)} min ago`;
  if (s < 129600) return `${Math.round(s / 3600)} h ago`;
  if (s < 86400 * 60) return `${Math.round(s / 86400)} days ago`;
  return s < 86400 * 700 ? `${Math.round(s / 2629800)} months ago` : `${Math.round(s / 31557600)} years ago`;
}

export function clock(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const s = Math.round(seconds);
  const h = Math.floor(s / 3600);
  return h ? `${h}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}` : `${Math.floor(s / 60)}:${two(s % 60)}`;
}

export function span(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const s = Math.round(seconds);
  if (s < 90) return `${s} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${Math.floor(s / 3600)} h ${Math.round((s % 3600) / 60)} min`
    : `${Math.round(s / 86400)} days`;
}

export function bitrate(bits) {
  if (!bits) return "";
  return bits >= 999500 ? `${(bits / 1e6).toFixed(bits < 9.95e6 ? 1 : 0)} Mb/s`
    : `${Math.round(bits / 1000)} kb/s`;
}

// ffprobe names a container by all its relatives; people know it by one.
export function shortContainer(name) {
  const [first, second] = (name || "").split(",");
  return first === "mov" && second === "mp4" ? "mp4/mov" : first;
}

const FACTORS = { "": 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40, p: 2 ** 50 };

// "1.5 GB", "700m", "12" → bytes; null where it cannot be meant.
export function parseBytes(text) {
  const found = /^\s*([\d.]+)\s*([kmgtp]?)i?b?\s*$/i.exec(text);
  const value = found ? Number(found[1]) * FACTORS[found[2].toLowerCase()] : NaN;
  return Number.isFinite(value) ? Math.round(value) : null;
}

// "1:30:00", "90m", "2h", "45" (minutes) → seconds.
export function parseSpan(text) {
  const clockLike = /^\s*(?:(\d+):)?(\d+):(\d+)\s*$/.exec(text);
  if (clockLike) return Number(clockLike[1] || 0) * 3600 + Number(clockLike[2]) * 60 + Number(clockLike[3]);
  const found = /^\s*([\d.]+)\s*(s|m|min|h)?\s*$/i.exec(text);
  if (!found) return null;
  const factor = { s: 1, m: 60, min: 60, h: 3600 }[(found[2] || "m").toLowerCase()];
  const value = Number(found[1]) * factor;
  return Number.isFinite(value) ? Math.round(value) : null;
}

// "5 Mb", "800k", "2000000" → bits per second.
export function parseBitrate(text) {
  const found = /^\s*([\d.]+)\s*([kmg]?)(?:b(?:it)?(?:\/s|ps)?)?\s*$/i.exec(text);
  const value = found ? Number(found[1]) * { "": 1, k: 1e3, m: 1e6, g: 1e9 }[found[2].toLowerCase()] : NaN;
  return Number.isFinite(value) ? Math.round(value) : null;
}

export function parseCount(text) {
  const value = Number(text.trim());
  return text.trim() && Number.isFinite(value) ? Math.round(value) : null;
}
''',
    "hash_mix.js": r'''// Machines that hash with different functions cannot be compared with each other: said where it matters.

import { call } from "./api.js";
import { openDialog } from "./dialog.js";
import { button, el } from "./dom.js";
import { plural } from "./format.js";
import { toast } from "./toast.js";

const BEST_FIRST = ["blake3", "sha256"];

// Map of function → machines with files, where there is more than one function; else null.
function hashMix(agents) {
  const mix = new Map();
  for (const agent of agents) {
    if (!agent.hash_algo || !(agent.files || agent.missing)) continue;
    mix.set(agent.hash_algo, [...(mix.get(agent.hash_algo) || []), agent]);
  }
  return mix.size > 1 ? mix : null;
}

function commonFunction(agents) {
  return BEST_FIRST.find((algo) => agents.every((agent) => (agent.hash_algos || []).includes(algo)));
}

async function useEverywhere(algo, agents) {
  await call("settings", { set: { hash_algo: algo } });
  for (const agent of agents.filter((one) => (one.settings || {}).hash_algo)) {
    await call("agents/set", { agent: agent.id, settings: { hash_algo: null } });
  }
  toast(`From the next scan on, every machine uses ${algo}`, "good");
}

function askToUse(algo, agents) {
  const others = agents.filter((agent) => agent.hash_algo !== algo);
  openDialog(`Use ${algo} on every machine?`, [
    el("p", null, `${others.map((agent) => agent.name).join(", ")}: ${plural(others.length, "machine reads its", "machines read their")} files once more at the next scan.`),
    el("p", { class: "muted" }, "The other machines go on as they are. Nothing leaves the catalogue.")], [{
    label: `Use ${algo}`, kind: "primary", run: () => useEverywhere(algo, agents),
  }]);
}

// A notice for the top of a page, or null where all is well.
export function hashMixNotice(agents) {
  const mix = hashMix(agents || []);
  if (!mix) return null;
  const told = [...mix].map(([algo, some]) => `${algo} on ${some.map((agent) => agent.name).join(", ")}`);
  const involved = [...mix.values()].flat();
  const algo = commonFunction(involved);
  const lacking = involved.filter((agent) => !(agent.hash_algos || []).includes("blake3"));
  return el("div", { class: "notice warn", role: "note" },
    el("p", null, el("strong", null, "Copies between some machines cannot be found. "),
      `They hash with different functions: ${told.join("; ")}.`),
    el("p", { class: "row" }, lacking.length ? `Install blake3 on ${lacking.map((agent) => agent.name).join(", ")} (pip install blake3)${algo ? ", or" : "."}` : null,
      algo ? button(`use ${algo} everywhere`, () => askToUse(algo, involved), { class: "small" }) : null));
}
''',
    "icon.svg": r'''<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><rect x="1" y="1" width="22" height="22" rx="6" fill="#2f62d0"/><rect x="5.5" y="6" width="3" height="12" rx="1" fill="#fff"/><rect x="10" y="6" width="3" height="12" rx="1" fill="#fff" opacity=".75"/><path d="m14.6 7.3 2.7-.8 2.9 10.9-2.8.8z" fill="#fff" opacity=".9"/></svg>
''',
    "index.html": r'''<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="description" content="One catalogue of the media files on all your machines">
<title>medialib</title>
<link rel="icon" href="web/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="web/style.css">
<script type="module" src="web/main.js"></script>
</head>
<body>
<a class="skip" href="#main" id="skip">Skip to the content</a>
<header class="top">
  <a class="brand" href="#overview"><img src="web/icon.svg" alt="" width="22" height="22">medialib</a>
  <form class="search" role="search" id="search-form">
    <label class="hidden" for="search">Search files</label>
    <input id="search" type="search" placeholder="Search names and folders" autocomplete="off" spellcheck="false" autocapitalize="off">
    <kbd aria-hidden="true">/</kbd>
  </form>
  <div class="live" id="live" role="status" aria-live="polite"></div>
  <button class="quiet" id="keys" type="button" aria-label="Keyboard shortcuts" title="Keyboard shortcuts (?)">?</button>
</header>
<nav class="side" id="nav" aria-label="Views"></nav>
<main id="main" tabindex="-1"></main>
<div class="lost" id="lost" role="alert" hidden></div>
<div class="toasts" id="toasts" role="status" aria-live="polite"></div>
<noscript>This page needs JavaScript. Everything it shows is also answered as JSON: see /openapi.json.</noscript>
</body>
</html>
''',
    "junk.js": r'''// Junk by reason and extension; unknown types by extension, each of which can be given a kind from here.

import { Latest, call } from "./api.js";
import { busyButton, el, put } from "./dom.js";
import { emptyState, failed, loading } from "./empty.js";
import { bytes, count, percent, plural } from "./format.js";
import { onLive } from "./live.js";
import { href } from "./router.js";
import { toast, told } from "./toast.js";

const KIND_LISTS = {
  video: "media_extensions", audio: "audio_extensions", image: "image_extensions",
    subtitle: "subtitle_extensions", xml: "xml_extensions", other: "other_extensions",
};

function table(label, first, items, link, extra) {
  const all = items.reduce((sum, item) => sum + item.bytes, 0);
  const largest = [...items].sort((a, b) => b.bytes - a.bytes || b.files - a.files);
  return el("table", { class: "plain", "aria-label": label },
    el("thead", null, el("tr", null, el("th", { scope: "col" }, first),
      el("th", { scope: "col", class: "num" }, "Files"), el("th", { scope: "col", class: "num" }, "Size"),
      el("th", { scope: "col", class: "num low" }, "Share"), extra
        ? el("th", { scope: "col" }, "Give it a kind") : null)),
    el("tbody", null, largest.map((item) => el("tr", null,
      el("td", { class: "grow" }, el("a", { href: link(item) }, item.label || item.value
      || "(no extension)")),
      el("td", { class: "num" }, count(item.files)), el("td", { class: "num" }, bytes(item.bytes)),
        el("td", { class: "num muted low" }, percent(item.bytes, all)), extra ? el("td", null, extra(item))
        : null))));
}

const total = (answer) => `${plural(answer.total.files, "file")}, ${bytes(answer.total.bytes)}`;

function card(title, lead, content) {
  return el("section", { class: "card" }, el("h2", null, title), el("p", { class: "muted" }, lead), content);
}

export class JunkView {
  constructor(root) {
    this.root = root;
    this.calls = new Latest();
    put(root, el("h1", { class: "hidden" }, "Junk and unknown types"), loading());
    this.stops = [onLive("again", () => this.load())];
  }

  update() { this.load(); }

  async load() {
    const signal = this.calls.next();
    try {
      const [junk, unknown] = await Promise.all([
        call("facets", { filter: { kind: ["junk"] }, keys: ["reason", "ext"], limit: 100 }, signal),
        call("facets", { filter: { kind: ["unknown"] }, keys: ["ext"], limit: 300 }, signal)]);
      this.draw(junk, unknown);
    } catch (error) {
      if (error.name !== "AbortError") put(this.root, failed(error, () => this.load()));
    }
  }

  draw(junk, unknown) {
    put(this.root, el("div", { class: "page-head" }, el("h1", null, "Junk and unknown types")),
      el("div", { class: "cards two" }, el("div", { class: "stack" }, this.junkCards(junk)),
        this.unknownCard(unknown)));
  }

  junkCards(junk) {
    if (!junk.total.files) return card("Junk", "Temporary files, thumbnails and other leftovers.",
      emptyState("No junk found", "What counts as junk is set by junk_patterns.",
        el("a", { class: "button", href: href("settings") }, "See the patterns")));
    const all = href("library", { kind: "junk", sort: "size", order: "desc" });
    return [card("Junk by reason", `${total(junk)} match the junk patterns. Nothing is ever deleted from here.`,
      [table("Junk by reason", "Reason", junk.facets.reason || [],
        (item) => href("library", { kind: "junk", reason: item.value, sort: "size", order: "desc" })),
      el("p", null, el("a", { href: all }, "All junk in the Library"), " \u00B7 ",
        el("a", { href: href("settings") }, "Edit the patterns"))]),
    card("Junk by extension", "The same files by their extension.",
      table("Junk by extension", "Extension", junk.facets.ext || [],
        (item) => href("library", { kind: "junk", ext: item.value })))];
  }

  unknownCard(unknown) {
    if (!unknown.total.files) return card("Unknown types", "Extensions that are in no list.",
      emptyState("Every extension has a kind", "New ones show up here by themselves."));
    return card("Unknown types",
      `${total(unknown)} have an extension that is in no list. Give an extension a kind and the catalogue is classified again at once.`,
      table("Unknown types", "Extension", unknown.facets.ext || [],
        (item) => href("library", { kind: "unknown", ext: item.value }), (item) => this.kindPicker(item)));
  }

  kindPicker(item) {
    if (!item.value) return el("span", { class: "muted" }, "\u2013");
    const select = el("select", { "aria-label": `Kind of ${item.value}` },
      Object.keys(KIND_LISTS).map((kind) => el("option", { value: kind, selected: kind === "other" }, kind)));
    return el("div", { class: "row nowrap" }, select,
      busyButton("Set", told(() => this.give(item.value, select.value)),
      { class: "small", "aria-label": `Set the kind of ${item.value}` }));
  }

  async give(ext, kind) {
    const { settings } = await call("settings");
    const set = {};
    for (const [one, list] of Object.entries(KIND_LISTS)) {
      const setting = settings.find(({ name }) => name === list);
      if (!setting) continue;
      const without = setting.value.filter((value) => value !== ext);
      if (one === kind) set[list] = [...without, ext];
      else if (without.length !== setting.value.length) set[list] = without;
    }
    const answer = await call("settings", { set });
    toast(`${ext} is now ${kind}${answer.reclassified === undefined ? "" : `: ${plural(answer.reclassified, "file")} reclassified`}`, "good");
    await this.load();
  }

  destroy() {
    this.stops.forEach((stop) => stop());
    this.calls.stop();
  }
}
''',
    "keys.js": r'''// The keyboard: what each key does, and the list of them that '?' shows.

import { dialogIsOpen, openDialog } from "./dialog.js";
import { el } from "./dom.js";
import { go } from "./router.js";

const GO = { o: "overview", l: "library", f: "folders", d: "duplicates", u: "junk", m: "machines",
  s: "settings" };

const HELP = [
  ["/", "Search"], ["j k \u2193 \u2191", "Move in a list"], ["Enter", "Open"],
    ["Esc", "Close, or leave the search"],
  ["c", "Copy the path of the open file"], ["PgUp PgDn Home End", "Move far"],
    ["Backspace", "In Folders: one up"],
  ["g then o l f d u m s", "Go to Overview, Library, Folders, Duplicates, Junk, Machines, Settings"],
    ["?", "This list"],
];

export function showKeys() {
  openDialog("Keyboard", el("dl", { class: "keys" }, HELP.map(([keys, what]) => [
    el("dt", null, keys.split(" ").map((key) => (key === "then" ? " then " : el("kbd", null, key)))),
      el("dd", null, what)])));
}

const typing = (node) => node.matches("input:not([type=checkbox]), textarea, select");

// `view()` is the view on screen; it may take a key first.
export function startKeys(view, search) {
  let pendingGo = 0;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || dialogIsOpen()) return;
    if (typing(event.target)) {
      if (event.key === "Escape") event.target.blur();
      if (event.target === search && event.key === "ArrowDown"
        && view().focusList) { view().focusList(); event.preventDefault(); }
      return;
    }
    const went = pendingGo > Date.now() && GO[event.key];
    pendingGo = event.key === "g" ? Date.now() + 1500 : 0;
    if (went) go(went);
    else if (event.key === "/") { search.focus(); search.select(); } else if (event.key === "?") showKeys();
    else if (!(view().key && view().key(event))) return;
    event.preventDefault();
  });
}
''',
    "library.js": r'''// Library: every file. The URL holds filter, sort and the open row; the table holds a million rows.

import { Latest, call, download } from "./api.js";
import { COLUMNS, chooseColumns, chosenColumns } from "./columns.js";
import { openDialog } from "./dialog.js";
import { add, button, busyButton, el, plainName, put } from "./dom.js";
import { FileDrawer } from "./drawer.js";
import { emptyState } from "./empty.js";
import { FACET_KEYS, FilterPanel } from "./filter_panel.js";
import { chipsOf, filterOf, withoutChip, withoutFilter } from "./filter.js";
import { bytes, count, machine, plural } from "./format.js";
import { onLive } from "./live.js";
import { PagedRows } from "./paged_rows.js";
import { go, href } from "./router.js";
import { toastError, told } from "./toast.js";
import { VirtualList } from "./virtual_list.js";

const FACETS_WAIT_MS = 250;
const FRESH_MS = 4000;
const LONG_COUNT_S = 3;
const NARROW = matchMedia("(max-width: 700px)");

export class LibraryView {
  constructor(root) {
    this.root = root;
    this.names = { agent: {} };
    this.totals = new Latest();
    this.facetCalls = new Latest();
    this.seq = null;
    this.build();
    this.stops = [onLive("counts", (counts) => this.changed(counts)),
      onLive("again", () => this.reload(true))];
    // A phone that is turned, a window that is made narrow: other columns.
    const turned = () => {
      if (!this.pages) return;
      this.makeList();
      this.showSort();
      this.arrived();
    };
    NARROW.addEventListener("change", turned);
    this.stops.push(() => NARROW.removeEventListener("change", turned));
  }

  build() {
    this.panel = new FilterPanel((next) => go("library", next));
    this.total = el("p", { class: "total", role: "status" });
    this.chips = el("div", { class: "chips" });
    this.stale = button("The catalogue changed: show", () => this.reload(true),
      { class: "small stale", hidden: true });
    this.tools = el("div", { class: "tools" },
      button("Filter", () => this.root.classList.toggle("show-filter"),
        { class: "small narrow-only", "aria-label": "Show the filter" }),
      this.stale,
      button("Columns", () => this.pickColumns(), { class: "small wide-only" }),
      button("Export", () => this.pickExport(), { class: "small" }));
    this.none = el("div", { class: "none" });
    this.place = el("div", { class: "list-place" });
    this.drawer = new FileDrawer(() => this.openRow(null));
    this.makeList();
    put(this.root,
      el("h1", { class: "hidden" }, "Library"),
      el("aside", { class: "filters", "aria-label": "Filter" }, this.panel.node),
      el("section", { class: "results", "aria-label": "Files" },
        el("div", { class: "bar" }, this.total, this.chips, this.tools), this.none, this.place),
      this.drawer.node);
    this.root.classList.add("library");
  }

  makeList() {
    if (this.list) this.list.destroy();
    const narrow = NARROW.matches;
    this.narrow = narrow;
    this.columns = narrow ? COLUMNS.filter((c) => c.key === "name" || c.key === "size") : chosenColumns();
    this.heads = el("tr", null, this.columns.map((column) => this.headCell(column)));
    this.list = new VirtualList({
      label: "Files", head: el("thead", null, this.heads),
      cols: el("colgroup", null, this.columns.map((c) =>
        el("col", { style: { width: narrow ? (c.number ? "6.5em" : "auto") : `${c.width / 14}em` } }))),
      draw: (tr, index, isCursor) => this.drawRow(tr, index, isCursor),
      onsight: (first, last) => { if (this.pages) this.pages.want(first, last); },
      onopen: (index) => this.openRow(this.pages.get(index)),
      oncursor: (index) => this.cursorMoved(index),
    });
    put(this.place, this.list.node);
  }

  headCell(column) {
    const label = column.unsorted ? column.label
      : el("button", { type: "button", on: { click: () => this.sortBy(column) } }, column.label,
        el("span", { class: "arrow", "aria-hidden": "true" }));
    return el("th", { scope: "col", class: column.number ? "num" : null, "data-key": column.key }, label);
  }

  sortBy(column) {
    const params = new URLSearchParams(this.params);
    const same = this.sort === column.key;
    const order = same ? (this.order === "asc" ? "desc" : "asc") : column.first || "asc";
    params.set("sort", column.key);
    params.set("order", order);
    params.delete("open");
    go("library", params, true);
  }

  update(params) {
    this.params = params;
    this.filter = filterOf(params);
    this.sort = params.get("sort") || "name";
    this.order = params.get("order") || "asc";
    this.showSort();
    this.panel.update(params, this.filter);
    this.showChips();
    const want = JSON.stringify([this.filter, this.sort, this.order]);
    if (want !== this.shown) {
      this.shown = want;
      this.reload();
    } else if (this.lastFacets) this.panel.showFacets(this.lastFacets);
    this.drawer.show(params.get("open"));
    this.root.classList.toggle("drawer-open", params.has("open"));
  }

  showSort() {
    for (const cell of this.heads.children) {
      const on = cell.dataset.key === this.sort;
      if (on) cell.setAttribute("aria-sort", this.order === "asc" ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
    }
  }

  showChips() {
    const chips = chipsOf(this.filter, this.names);
    put(this.chips, chips.map((chip) => button([`${chip.label}: ${plainName(chip.text)} `,
      el("span", { "aria-hidden": "true" }, "\u00D7")],
      () => go("library", withoutChip(this.params, chip)),
        { class: "chip on", "aria-label": `Remove ${chip.label}: ${plainName(chip.text)}` })),
    Object.keys(this.filter).length > 1 ? button("Clear all", () => go("library", withoutFilter(this.params)),
      { class: "link" }) : null);
  }

  // `keep`: the same view again with newer rows; the place in the list stays.
  reload(keep = false) {
    if (this.pages) this.pages.close();
    this.stale.hidden = true;
    this.reloaded = Date.now();
    const { filter, sort, order } = this;
    const pages = new PagedRows((page, signal) => call("files", { filter, sort, order, ...page }, signal),
      () => this.totalFiles, () => { if (this.pages === pages) this.arrived(); }, toastError);
    this.pages = pages;
    if (!keep) { this.list.cursor = -1; this.list.top = 0; this.list.moveTo(0); }
    this.place.classList.add("waiting");
    pages.want(this.list.first, this.list.first + 60);
    this.countTotal(filter);
    this.countFacets(filter);
  }

  arrived() {
    this.place.classList.remove("waiting");
    const known = this.pages.total ?? Math.max(this.totalFiles ?? 0, this.pages.length);
    if (this.unsure) this.showUnsure();
    this.list.setCount(known);
    this.list.paint(true);
    this.showEmpty(known === 0 && this.pages.total === 0);
  }

  async countTotal(filter) {
    const signal = this.totals.next();
    const pages = this.pages;
    this.totalFiles = null;
    this.unsure = false;
    this.total.classList.add("waiting");
    try {
      const counted = this.counted(filter);
      for (const patience of [undefined, LONG_COUNT_S]) {
        const answer = await call("facets", { filter: counted, keys: [], patience_s: patience }, signal);
        if (pages !== this.pages) return;
        this.showTotal(answer);
        if (!answer.approximate) return;
      }
    } catch (error) { toastError(error); }
  }

  // An estimate comes at once; where more time makes a count of it, that follows.
  showTotal({ total, approximate }) {
    this.totalFiles = total.files;
    this.total.classList.remove("waiting");
    // A sample in which nothing matched says little: the list itself goes on looking.
    this.unsure = approximate && !total.files;
    if (this.unsure) this.showUnsure();
    else put(this.total, approximate ? "about " : "", el("strong", null, count(total.files)),
      ` ${total.files === 1 ? "file" : "files"} \u00B7 `, bytes(total.bytes));
    if (this.pages.pages.size) this.arrived();
  }

  // What the list found is told; all of it, once it came to its end.
  showUnsure() {
    const { total, length } = this.pages;
    if (total === null) put(this.total, length ? `${plural(length, "file")} so far, still looking\u2026`
      : "Nothing found yet, still looking\u2026");
    else put(this.total, el("strong", null, count(total)), total === 1 ? " file" : " files");
  }

  // Sorted by what only some files have, the list holds only these.
  counted(filter) {
    const { sort } = this;
    if (sort === "reason" && !filter.kind) return { ...filter, kind: ["junk"] };
    if (["video_codec", "audio_codec", "container"].includes(sort)) return { ...filter, probed: true };
    return ["duration", "height", "bitrate"].includes(sort) && !filter[sort]
      ? { ...filter, [sort]: { min: 0 } } : filter;
  }

  countFacets(filter) {
    clearTimeout(this.facetTimer);
    this.panel.node.classList.add("waiting");
    // While somebody types, only the rows hurry; the counts follow when the hand rests.
    this.facetTimer = setTimeout(async () => {
      try {
        const { facets } = await call("facets", { filter, keys: FACET_KEYS, limit: 30 },
          this.facetCalls.next());
        for (const item of facets.agent || []) this.names.agent[item.value] = item.label;
        this.lastFacets = facets;
        this.panel.showFacets(facets);
        this.panel.node.classList.remove("waiting");
        this.showChips();
      } catch (error) { toastError(error); }
    }, this.lastFacets ? FACETS_WAIT_MS : 0);
  }

  showEmpty(empty) {
    this.root.classList.toggle("is-empty", empty);
    if (!empty) { put(this.none); this.root.classList.remove("no-files"); return; }
    const filtered = Object.keys(this.filter).length > 0;
    this.root.classList.toggle("no-files", !filtered);
    put(this.none, filtered
      ? emptyState("Nothing matches", "No file fits this search and filter.",
        button("Clear the filter", () => go("library", {})))
      : emptyState("No files yet", "Add a folder of this machine, or start an agent on another one.",
        el("a", { class: "button", href: href("machines") }, "Add a folder or machine")));
  }

  drawRow(tr, index, isCursor) {
    const row = this.pages ? this.pages.get(index) : null;
    const classes = [];
    if (isCursor) classes.push("cursor");
    if (row && row.state !== "present") classes.push(`is-${row.state}`);
    if (row && this.params && String(row.id) === this.params.get("open")) classes.push("opened");
    tr.className = classes.join(" ");
    tr.setAttribute("aria-selected", String(isCursor));
    if (!row) {
      if (tr.children.length !== this.columns.length || tr.filled) put(tr,
        this.columns.map(() => el("td", null, el("span", { class: "ghost" }))));
      tr.shown = null;
      return false;
    }
    if (tr.shown === row && tr.columns === this.columns) return true;
    tr.id = `file-${row.id}`;
    put(tr, this.columns.map((column) => this.cell(column, row)));
    Object.assign(tr, { shown: row, columns: this.columns });
    return true;
  }

  cell(column, row) {
    const cell = el("td", column.number ? { class: "num" } : null);
    if (column.text) cell.textContent = column.text(row);
    else cell.append(column.node(row));
    if (column.key === "name") {
      cell.title = plainName(row.path);
      if (this.narrow) add(cell, el("span", { class: "under" },
        `${row.kind} \u00B7 ${machine(row.agent)} \u00B7 ${plainName(row.path.slice(0, -row.name.length - 1))}`));
    }
    return cell;
  }

  openRow(row) {
    const params = new URLSearchParams(this.params);
    const was = params.get("open");
    if (row && String(row.id) !== was) params.set("open", row.id);
    else params.delete("open");
    go("library", params, Boolean(row && was));
    this.list.paint(true);
    if (!row || String(row.id) === was) this.list.table.focus({ preventScroll: true });
  }

  cursorMoved(index) {
    const row = this.pages.get(index);
    if (!row || !this.params.has("open")) return;
    clearTimeout(this.followTimer);
    this.followTimer = setTimeout(() => {
      const params = new URLSearchParams(this.params);
      params.set("open", row.id);
      go("library", params, true);
      this.list.paint(true);
    }, 120);
  }

  changed({ seq }) {
    const changed = this.seq !== null && seq !== this.seq;
    this.seq = seq;
    if (!changed) return;
    // At the top of a list nobody is reading row 5,000: follow the scan. Elsewhere rows must not jump.
    const calm = this.list.top === 0 && this.list.cursor < 0 && !this.params.has("open");
    if (!calm) { this.stale.hidden = false; return; }
    clearTimeout(this.freshTimer);
    this.freshTimer = setTimeout(() => this.reload(true), Math.max(0, this.reloaded + FRESH_MS - Date.now()));
  }

  pickColumns() {
    const chosen = new Set(chosenColumns().map((column) => column.key));
    const boxes = COLUMNS.map((column) => el("label", { class: "check" },
      el("input", { type: "checkbox", checked: chosen.has(column.key), disabled: Boolean(column.fixed),
        value: column.key }), column.label));
    openDialog("Columns", el("div", { class: "check-grid" }, boxes), [{
      label: "Show these", kind: "primary", run: () => {
        chooseColumns(boxes.map((box) => box.firstChild).filter((input) => input.checked).map((input) =>
          input.value));
        this.makeList();
        this.showSort();
        this.arrived();
      },
    }]);
  }

  pickExport() {
    const { filter, sort, order } = this;
    const body = { filter, sort, order, what: "files" };
    const save = (format) => told(() => download("export", { ...body, format }, `medialib.${format}`));
    openDialog("Export this view", [
      el("p", null, this.totalFiles === null || this.totalFiles === undefined
        ? "Every file of this search and filter, in this order."
        : `${plural(this.totalFiles, "file")} of this search and filter, in this order, with everything known of each.`),
      el("div", { class: "choices" },
        busyButton([el("strong", null, "CSV"), el("span", null, "For spreadsheets")], save("csv"),
          { class: "choice" }),
        busyButton([el("strong", null, "JSON lines"), el("span", null, "For scripts: one file a line")],
          save("jsonl"), { class: "choice" }))]);
  }

  focusList() {
    this.list.table.focus();
    if (this.list.cursor < 0) this.list.setCursor(0);
  }

  key(event) {
    if (event.key === "Escape"
      && this.root.classList.contains("show-filter")) { this.root.classList.remove("show-filter");
      return true; }
    if (event.key === "Escape" && this.params.has("open")) { this.openRow(null); return true; }
    if (event.key === "c" && this.drawer.path) { this.drawer.copy(); return true; }
    if (["ArrowDown", "ArrowUp", "j", "k"].includes(event.key)) { this.list.table.focus();
      this.list.key(event); return true; }
    return false;
  }

  destroy() {
    this.stops.forEach((stop) => stop());
    this.totals.stop();
    this.facetCalls.stop();
    this.drawer.stop();
    for (const timer of [this.facetTimer, this.freshTimer, this.followTimer]) clearTimeout(timer);
    if (this.pages) this.pages.close();
    this.list.destroy();
  }
}
''',
    "live.js": r'''// Server-sent events: progress, counts, agents. A lost connection is told, and mended by itself.

const SILENCE_MS = 30000;
const RETRY_MS = 3000;

const listeners = { counts: new Set(), progress: new Set(), agents: new Set(), state: new Set(),
  again: new Set() };
let source = null;
let state = "connecting";
let heard = 0;
let pings = false;
let everOpen = false;

export function onLive(type, listener) {
  listeners[type].add(listener);
  return () => listeners[type].delete(listener);
}

export const liveState = () => state;

function emit(type, data) {
  for (const listener of [...listeners[type]]) listener(data);
}

function setState(next) {
  if (next === state) return;
  state = next;
  emit("state", next);
}

function opened() {
  heard = Date.now();
  setState("online");
  if (everOpen) emit("again");
  everOpen = true;
}

function parse(event) {
  heard = Date.now();
  try { return JSON.parse(event.data); } catch { return {}; }
}

function connect() {
  if (source) source.close();
  const mine = new EventSource("/events");
  source = mine;
  mine.addEventListener("open", opened);
  mine.addEventListener("ping", (event) => { pings = true; parse(event); });
  mine.addEventListener("counts", (event) => emit("counts", parse(event)));
  mine.addEventListener("agents", (event) => emit("agents", parse(event)));
  mine.addEventListener("progress", (event) => emit("progress", parse(event)));
  mine.addEventListener("error", () => {
    setState("lost");
    if (mine.readyState === EventSource.CLOSED && source === mine) setTimeout(connect, RETRY_MS);
  });
}

// A connection that hangs without an error (a sleeping laptop, a pulled cable) is seen by its silence.
function watch() {
  if (pings && state === "online" && Date.now() - heard > SILENCE_MS) {
    setState("lost");
    connect();
  }
}

export function startLive() {
  connect();
  setInterval(watch, 5000);
}
''',
    "machine_card.js": r'''// One machine on the Machines page: state, abilities, live progress, roots, errors, handles.

import { meter } from "./charts.js";
import { stateMark } from "./columns.js";
import { add, busyButton, button, el, name, pathName, plainName, put } from "./dom.js";
import { ago, bytes, count, plural } from "./format.js";
import { ProgressLine } from "./progress_line.js";
import { href } from "./router.js";

const STATE_WORDS = { online: "online", scanning: "scanning", away: "not connected" };
const BEST_HASH = "blake3";

function fact(label, value, tone) {
  return value ? [el("dt", null, label), el("dd", { class: tone || null }, value)] : null;
}

export class MachineCard {
  constructor(view) {
    this.view = view;
    this.line = null;
    this.live = el("div");
    this.head = el("div", { class: "machine-head" });
    this.body = el("div");
    this.node = el("article", { class: "card machine" }, this.head, this.live, this.body);
    this.drawn = "";
  }

  update(agent) {
    this.agent = agent;
    this.progress(agent.stats || {}, false);
    const { stats, last_seen: seen, ...rest } = agent;
    this.drawHead(agent);
    // What did not change is not drawn again: an open list of errors stays open, focus stays put.
    const now = JSON.stringify([rest, (stats || {}).outbox]);
    if (now === this.drawn) return;
    this.drawn = now;
    put(this.body, this.facts(agent), this.roots(agent), this.errors(agent));
  }

  drawHead(agent) {
    if (!this.actions) this.actions = this.handles();
    const word = STATE_WORDS[agent.state] || agent.state;
    if (!this.titleBox) {
      this.titleBox = el("div");
      put(this.head, this.titleBox, this.actions);
    }
    put(this.titleBox, el("h2", null, el("span", { class: `dot d-${agent.state}` }), plainName(agent.name),
      agent.id === "local" ? el("span", { class: "pill" }, "this host") : null),
      el("p", { class: "muted" },
        `${word}${agent.state === "away" ? `, last seen ${ago(agent.last_seen)}` : ""} \u00B7 ${plural(agent.files || 0, "file")} \u00B7 ${bytes(agent.bytes || 0)}${agent.missing ? ` \u00B7 ${count(agent.missing)} missing` : ""}`));
  }

  handles() {
    const { view } = this;
    const more = el("details", { class: "menu" }, el("summary", { class: "button small" }, "More"));
    const item = (label, run, kind) => button(label, () => { more.open = false; run(); }, { class: kind });
    add(more, el("div", { class: "menu-items" },
      item("Settings of this machine", () => view.ownSettings(this.agent)),
      item("Compact its cache", () => view.compact(this.agent)),
      item("Clear its cache", () => view.clear(this.agent)),
      item("Forget this machine", () => view.forget(this.agent), "danger")));
    more.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && more.open) { more.open = false; more.firstChild.focus();
        event.stopPropagation(); }
    });
    more.addEventListener("focusout", (event) => { if (event.relatedTarget
      && !more.contains(event.relatedTarget)) more.open = false; });
    return el("div", { class: "row" }, busyButton("Scan now", () => view.scan(this.agent),
      { class: "small" }), button("Add a folder", () => view.addRoot(this.agent), { class: "small" }), more);
  }

  progress(stats, changed = true) {
    if (!stats.active) { this.line = null; put(this.live); return; }
    if (!this.line) {
      this.line = new ProgressLine(this.agent ? plainName(this.agent.name) : "", false);
      put(this.live, this.line.node);
    }
    this.line.update(stats);
    if (changed && this.agent) this.agent.stats = stats;
  }

  facts(agent) {
    const hashes = agent.hash_algos || [];
    const outbox = (agent.stats || {}).outbox;
    return el("dl", { class: "facts across" },
      fact("Version", agent.version ? `${agent.version} (protocol ${agent.protocol})` : ""),
        fact("Python", agent.python), fact("System", agent.platform),
      fact("Address", agent.address ? `${agent.address}${agent.port ? `:${agent.port}` : ""}` : ""),
      agent.version ? fact("ffprobe", agent.ffprobe || "missing: videos are not described", agent.ffprobe ? ""
        : "warn-text") : null,
      fact("Hashes", hashes.join(", ") + (hashes.length && !hashes.includes(BEST_HASH)
        ? " (blake3 is not installed: slower)" : "")),
      outbox ? fact("Outbox", `${plural(outbox, "batch", "batches")} waiting to be delivered`, "warn-text")
        : null,
      agent.commands_waiting ? fact("Waiting",
        `${plural(agent.commands_waiting, "command")} for its next heartbeat`) : null,
      agent.rejected ? fact("Refused", plural(agent.rejected, "record"), "warn-text") : null,
      fact("Own settings",
        Object.keys(agent.settings || {}).filter((one) => one !== "remote_roots").join(", ")));
  }

  roots(agent) {
    if (!agent.roots.length) return el("p", { class: "notice" }, "No folder is scanned here yet. ",
      button("Add a folder", () => this.view.addRoot(agent), { class: "link" }));
    return el("table", { class: "plain roots", "aria-label": `Folders of ${plainName(agent.name)}` },
      el("thead", null, el("tr", null, ["Folder", "State", "Files", "Size", "Disk",
        ""].map((label, i) => el("th", { scope: "col", class: ["", "", "num", "num low", "low", ""][i]
        || null }, label || el("span", { class: "hidden" }, "Actions"))))),
      el("tbody", null, agent.roots.map((root) => this.rootRow(agent, root))));
  }

  rootRow(agent, root) {
    const used = root.total_bytes ? root.total_bytes - (root.free_bytes || 0) : 0;
    const disk = root.total_bytes ? el("div", { class: "disk" }, meter(used, root.total_bytes),
      el("span", { class: "muted" }, `${bytes(root.free_bytes)} free of ${bytes(root.total_bytes)}`)) : null;
    const tags = [root.label, root.fs, root.rotational === true || root.rotational === 1 ? "spinning"
      : null].filter(Boolean).join(" \u00B7 ");
    return el("tr", { class: root.state === "offline" ? "is-offline" : null },
      el("td", { class: "grow" }, el("a", { href: href("folders", { agent: agent.id, path: root.path }) },
        pathName(root.path)),
        el("div", { class: "muted" }, [tags, root.scan && root.scan.ended ? `scanned ${ago(root.scan.ended)}`
          : "not scanned yet"].filter(Boolean).join(" \u00B7 ")),
        root.reason ? el("div", { class: "warn-text" }, root.reason) : null,
        root.accept_empty ? button("It really was emptied\u2026", () => this.view.acceptEmpty(agent, root),
          { class: "small" }) : null,
        root.accept_disk ? button("The disk was replaced\u2026", () => this.view.acceptDisk(agent, root),
          { class: "small" }) : null),
      el("td", null, stateMark(root.state)), el("td", { class: "num files-cell" },
        el("span", { class: "how-many" }, count(root.files)), root.missing
        ? el("span", { class: "muted" }, ` (${count(root.missing)} missing)`) : null),
        el("td", { class: "num low" }, bytes(root.bytes)),
      el("td", { class: "low" }, disk),
      el("td", { class: "num" }, !(agent.remote_roots || []).includes(root.path) ? null
        : button("Remove", () => this.view.removeRoot(agent, root),
        { class: "link", "aria-label": `Stop scanning ${plainName(root.path)}` }),
        root.state === "offline" ? button("Forget", () => this.view.forget(agent, root),
          { class: "link", "aria-label": `Forget ${plainName(root.path)}` }) : null));
  }

  errors(agent) {
    const { summary = [], latest = [] } = agent.errors || {};
    if (!summary.length && !latest.length) return null;
    const all = summary.reduce((sum, one) => sum + one.count, 0);
    return el("details", { class: "errors" },
      el("summary", null, el("span", { class: "warn-text" }, plural(all || latest.length, "error")), " ",
        el("span", { class: "muted" }, summary.map((one) =>
        `${one.stage}: ${one.class} (${count(one.count)})`).join(", "))),
      el("div", { class: "scroll-x", tabindex: "0" }, el("table", { class: "plain" },
        el("thead", null, el("tr", null, ["File", "What", "Tries",
          "Next try"].map((label) => el("th", { scope: "col" }, label)))),
        el("tbody", null, latest.map((one) => el("tr", null,
          el("td", { class: "grow" }, name(one.path || "")),
          el("td", null, `${one.stage}: ${one.class}`, el("div", { class: "muted" }, one.message || "")),
          el("td", { class: "num" }, one.attempts ?? ""),
            el("td", { class: "muted" }, this.nextTry(one.next_try))))))));
  }

  nextTry(when) {
    if (!when) return "when it changes";
    const wait = when - Date.now() / 1000;
    return wait <= 0 ? "next scan"
      : `in ${wait < 5400 ? `${Math.ceil(wait / 60)} min` : `${Math.round(wait / 3600)} h`}`;
  }
}
''',
    "machines.js": r'''// Machines: every agent and the host's own scanner, what they do, and the handles to steer them.

import { Latest, call } from "./api.js";
import { FolderBrowser } from "./browse.js";
import { copyButton } from "./clipboard.js";
import { openDialog } from "./dialog.js";
import { el, put } from "./dom.js";
import { failed, loading } from "./empty.js";
import { bytes, count, plural } from "./format.js";
import { hashMixNotice } from "./hash_mix.js";
import { onLive } from "./live.js";
import { MachineCard } from "./machine_card.js";
import { go } from "./router.js";
import { SettingField, groupsOf, refusedField } from "./setting_form.js";
import { toast, told } from "./toast.js";

const REFRESH_MS = 15000;
const HOST_PORT = "8765";
const CLEAR_WARNING = "The agent forgets what it knows and reads every file again at its next scan. The catalogue here keeps everything.";

export class MachinesView {
  constructor(root) {
    this.root = root;
    this.calls = new Latest();
    this.cards = new Map();
    put(root, el("h1", { class: "hidden" }, "Machines"), loading());
    this.stops = [
      onLive("agents", () => this.load()), onLive("again", () => this.load()),
      onLive("progress", ({ agent, stats }) => { const card = this.cards.get(agent);
        if (card) card.progress(stats); else this.load(); }),
    ];
    this.timer = setInterval(() => { if (!document.hidden) this.load(); }, REFRESH_MS);
  }

  update(params) {
    this.params = params;
    if (this.agents) this.fromUrl();
    else this.load();
  }

  // Links from other pages may ask for a dialog: adding a root, adding a machine, a machine's settings.
  fromUrl() {
    const find = (key) => this.agents.find((agent) => agent.id === this.params.get(key));
    const wish = ["add", "new", "settings"].find((key) => this.params.has(key));
    if (!wish) return;
    const [add, settings, fresh] = [find("add"), find("settings"), this.params.has("new")];
    go("machines", {}, true);
    if (add) this.addRoot(add);
    else if (settings) this.ownSettings(settings);
    else if (fresh) this.how.scrollIntoView({ block: "center" });
  }

  async load() {
    const signal = this.calls.next();
    try {
      const [{ agents }, summary] = await Promise.all([call("agents", {}, signal), this.host ? null
        : call("summary", {}, signal)]);
      if (summary) this.host = summary.host || {};
      this.agents = agents;
      this.draw();
      this.fromUrl();
    } catch (error) {
      if (error.name !== "AbortError" && !this.agents) put(this.root, failed(error, () => this.load()));
    }
  }

  draw() {
    if (!this.grid) {
      this.grid = el("div", { class: "machines" });
      this.title = el("p", { class: "total" });
      this.how = this.howTo();
      this.mixed = el("div");
      put(this.root, el("div", { class: "page-head" }, el("h1", null, "Machines"), this.title), this.mixed,
        this.grid, this.how);
    }
    this.drawMixed();
    const away = this.agents.filter((agent) => agent.state === "away").length;
    put(this.title, `${plural(this.agents.length, "machine")}${away ? `, ${away} not connected` : ""}`);
    for (const [id, card] of this.cards) if (!this.agents.some((agent) =>
      agent.id === id)) { card.node.remove(); this.cards.delete(id); }
    for (const agent of this.agents) {
      if (!this.cards.has(agent.id)) {
        this.cards.set(agent.id, new MachineCard(this));
        this.grid.append(this.cards.get(agent.id).node);
      }
      this.cards.get(agent.id).update(agent);
    }
  }

  // Drawn anew only when it changes, so that its button keeps the focus.
  drawMixed() {
    const key = JSON.stringify(this.agents.map(({ id, name, files, missing, hash_algo, hash_algos }) =>
      [id, name, Boolean(files || missing), hash_algo, hash_algos]));
    if (key === this.mixedKey) return;
    this.mixedKey = key;
    put(this.mixed, hashMixNotice(this.agents));
  }

  // A page opened as localhost, perhaps through a tunnel, must not send people's other machines to
  // themselves: then the host's own address, port and scheme are told.
  hostAddress() {
    const here = /^(localhost|127\.|\[::1\])/.test(location.hostname);
    const { addresses = [], port, scheme } = this.host;
    const [first] = addresses;
    const secure = here && scheme ? scheme === "https" : location.protocol === "https:";
    const at = {
      name: here && first ? first : location.hostname, secure,
      port: String((here && port) || location.port || (secure ? 443 : 80)),
      others: addresses.filter((one) => one !== (here ? first : location.hostname)),
    };
    const bracketed = at.name.includes(":") && !at.name.startsWith("[") ? `[${at.name}]` : at.name;
    return { ...at, name: bracketed, alone: here && /^(localhost|127\.|::1$)/.test(first || "") };
  }

  howTo() {
    const { name, port, secure, others, alone } = this.hostAddress();
    const at = `${secure ? "https" : "http"}://${name}:${port}`;
    const host = secure ? at : port === HOST_PORT ? name : `${name}:${port}`;
    const line = (label, text) => el("div", { class: "paste" }, el("span", { class: "muted" }, label),
      el("code", null, text), copyButton(text));
    return el("section", { class: "card how", id: "add-machine" }, el("h2", null, "Add a machine"),
      alone ? el("p", { class: "notice warn" },
        "This host listens on this machine only. Start it without --bind 127.0.0.1, and other machines can reach it.") : null,
      el("p", { class: "muted" },
        "Paste one line there. It needs Python 3.8 or newer and nothing else; it shows up here within seconds."),
      line("Linux, macOS, NAS", `curl -O ${at}/agent.py && python3 agent.py ${host}`),
      line("Windows PowerShell",
        `Invoke-WebRequest ${at}/agent.py -OutFile agent.py; python agent.py ${host}`),
      others.length && !alone ? el("p", { class: "muted" },
        `From another network, put the address there that it reaches: ${others.join(", ")}.`) : null,
      secure ? el("p", { class: "muted" },
        "With a certificate of your own making, add --cafile FILE to the agent and --cacert FILE to curl.") : null,
      el("p", { class: "muted" },
        "Then add its folders with \u201CAdd a folder\u201D, or name them at the end of the line. Videos are described where ffprobe is installed."),
      el("p", null, el("a", { href: "/agent.py", download: "agent.py" }, "Download agent.py")));
  }

  async command(agent, what, done) {
    const answer = await call(`agents/${what}`, { agent: agent.id });
    toast(answer.message || (answer.queued ? `${done}: ${agent.name} hears it at its next heartbeat` : done),
      "good");
    await this.load();
  }

  scan(agent) { return told(() => this.command(agent, "scan_now", "Scan started"))(); }

  compact(agent) { return told(() => this.command(agent, "compact_cache", "Cache compacted"))(); }

  clear(agent) {
    openDialog(`Clear the cache of ${agent.name}?`, el("p", null, CLEAR_WARNING),
      [{ label: "Clear the cache", kind: "danger",
      run: () => this.command(agent, "clear_cache", "Cache cleared") }]);
  }

  addRoot(agent) {
    return new FolderBrowser(agent, async (path) => {
      const roots = agent.remote_roots || [];
      if (agent.roots.some((root) => root.path === path
        && root.state !== "offline")) throw new Error("This folder is there already");
      await call("agents/set", { agent: agent.id, roots: [...roots.filter((root) => root !== path), path] });
      toast("Folder added; it is scanned now", "good");
      await this.load();
    });
  }

  removeRoot(agent, root) {
    openDialog("Stop scanning this folder?", el("p", null,
      `${root.path} of ${agent.name} is scanned no more. Its ${plural(root.files || 0, "file")} stay in the catalogue as offline until you forget them.`), [{
      label: "Stop scanning", kind: "danger", run: async () => {
        await call("agents/set", { agent: agent.id, roots: agent.remote_roots.filter((path) =>
          path !== root.path) });
        await this.load();
      },
    }]);
  }

  acceptEmpty(agent, root) {
    openDialog("Accept that it is empty?", el("p", null,
      `${root.path} of ${agent.name} lists nothing although ${plural(root.files || 0, "file")} were known there. If it really was emptied, they become missing. If a disk is not mounted, connect it instead.`), [{
      label: "It really is empty", kind: "danger",
        run: async () => { await call("agents/accept_empty", { agent: agent.id, path: root.path });
        await this.load(); },
    }]);
  }

  acceptDisk(agent, root) {
    openDialog("Take what is there now?", el("p", null,
      `Nothing of the ${plural(root.files || 0, "known file")} is found at ${root.path} of ${agent.name}: another disk is there, and it has no name of its own to tell it by. If it took the place of the old one, what is on it is catalogued, and the known files become missing; they keep what is known of them. If the old disk is only unplugged, connect it instead.`), [{
      label: "Take what is there now", kind: "danger",
        run: async () => { await call("agents/accept_empty", { agent: agent.id, path: root.path });
        await this.load(); },
    }]);
  }

  // The count comes first; the host refuses when it is no longer true at the moment of the answer.
  forget(agent, root = null) {
    return told(async () => {
      const body = root ? { agent: agent.id, root: root.path } : { agent: agent.id };
      const plan = await call("agents/forget", body);
      const what = root ? `${root.path} of ${agent.name}` : agent.name;
      openDialog(`Forget ${what}?`, [el("p", null, el("strong", null, plural(plan.files, "file")),
        ` (${bytes(plan.bytes || 0)}) leave the catalogue, with their hashes and first-seen dates. Nothing on the disk is touched.`),
        el("p", { class: "muted" }, "If it is connected and scanned again, they come back as new files.")], [{
        label: `Forget ${count(plan.files)} ${plan.files === 1 ? "file" : "files"}`, kind: "danger",
          run: async () => {
          await call("agents/forget", { ...body, confirm: plan.files });
          toast("Forgotten", "good");
          await this.load();
        },
      }]);
    })();
  }

  ownSettings(agent) {
    return told(async () => {
      const { settings } = await call("settings");
      const fields = settings.filter((setting) => setting.per_agent !== false
        && setting.name !== "remote_roots").map((setting) => new SettingField(setting, {
        value: (agent.settings || {})[setting.name], base: setting.value, baseName: "general value",
          onchange: () => {},
      }));
      const byName = new Map(fields.map((field) => [field.setting.name, field]));
      openDialog(`Settings of ${agent.name}`, groupsOf(fields.map((field) =>
        field.setting)).map(([group, members]) => el("section", null, el("h3", null, group),
        members.map((setting) => byName.get(setting.name).node))), [{
        label: "Save", kind: "primary", run: () => this.saveOwn(agent, fields),
      }], true);
    })();
  }

  async saveOwn(agent, fields) {
    const settings = {};
    for (const field of fields.filter((one) => one.dirty)) settings[field.setting.name] = field.wish;
    try {
      if (Object.keys(settings).length) await call("agents/set", { agent: agent.id, settings });
    } catch (error) {
      const field = refusedField(fields, error);
      if (!field) throw error;
      field.refuse([error.message, error.detail].filter(Boolean).join(": "));
      return false;
    }
    toast("Saved", "good");
    await this.load();
    return true;
  }

  destroy() {
    this.stops.forEach((stop) => stop());
    clearInterval(this.timer);
    this.calls.stop();
  }
}
''',
    "main.js": r'''// The frame: navigation, search, the view that the URL names, and the state of the live connection.

import { call } from "./api.js";
import { el, put, svg } from "./dom.js";
import { DuplicatesView } from "./duplicates.js";
import { FoldersView } from "./folders.js";
import { count, shortCount } from "./format.js";
import { JunkView } from "./junk.js";
import { showKeys, startKeys } from "./keys.js";
import { LibraryView } from "./library.js";
import { liveState, onLive, startLive } from "./live.js";
import { MachinesView } from "./machines.js";
import { OverviewView } from "./overview.js";
import { go, here, href, onPlace } from "./router.js";
import { SettingsView } from "./settings.js";

const SEARCH_WAIT_MS = 110;

const VIEWS = [
  ["overview", "Overview", OverviewView, "M3 3h8v8H3zM13 3h8v5h-8zM13 10h8v11h-8zM3 13h8v8H3z"],
  ["library", "Library", LibraryView, "M3 5h18v2.4H3zM3 10.8h18v2.4H3zM3 16.6h18V19H3z"],
  ["folders", "Folders", FoldersView, "M3 5h7l2 2.5h9V19H3z"],
  ["duplicates", "Duplicates", DuplicatesView, "M3 3h12v12H3zM17 8h4v13H8v-4h9z"],
  ["junk", "Junk", JunkView, "M9 3h6l1 2h5v2.4H3V5h5zM5 9h14l-1 12H6z"],
  ["machines", "Machines", MachinesView, "M3 4h18v6H3zM3 13h18v6H3zM6 6h2v2H6zM6 15h2v2H6z"],
  ["settings", "Settings", SettingsView,
    "M3 6h9v2.4H3zM16 6h5v2.4h-5zM12.5 4h3v6.4h-3zM3 15.6h4V18H3zM11 15.6h10V18H11zM7.5 13.6h3V20h-3z"],
];

const main = document.getElementById("main");
const search = document.getElementById("search");
const badges = new Map();
let current = { view: null, shown: null };
let searchTimer = 0;

function buildNav() {
  put(document.getElementById("nav"), el("ul", null, VIEWS.map(([view, label, , path]) => {
    const badge = el("span", { class: "badge" });
    badges.set(view, badge);
    return el("li", null, el("a", { href: href(view), "data-view": view },
      svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: path })),
        el("span", { class: "label" }, label), badge));
  })));
}

function show({ view, params }) {
  const found = VIEWS.find(([key]) => key === view) || VIEWS[0];
  if (found[0] !== current.view) {
    if (current.shown) current.shown.destroy();
    const root = el("div", { class: `view view-${found[0]}` });
    put(main, root);
    scrollTo(0, 0);
    current = { view: found[0], shown: new found[2](root) };
    document.title = `${found[1]} \u00B7 medialib`;
    for (const link of document.querySelectorAll("#nav a")) {
      if (link.dataset.view === found[0]) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }
  if (document.activeElement !== search) search.value = found[0] === "library" || found[0] === "duplicates"
    ? params.get("q") || "" : "";
  current.shown.update(params);
}

// Searching filters the duplicates where one looks at them, and the library from everywhere else.
function searched() {
  const { view, params } = here();
  const target = view === "duplicates" ? view : "library";
  const next = view === target ? new URLSearchParams(params) : new URLSearchParams();
  next.delete("open");
  if (search.value.trim()) next.set("q", search.value);
  else next.delete("q");
  const typingOn = view === target && params.has("q");
  go(target, next, typingOn);
}

function startSearch() {
  search.addEventListener("input", () => {
    clearTimeout(searchTimer);
    searchTimer = setTimeout(searched, SEARCH_WAIT_MS);
  });
  document.getElementById("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(searchTimer);
    searched();
    if (current.shown.focusList) current.shown.focusList();
  });
}

function showLive() {
  const state = liveState();
  const words = { online: "Live", lost: "Connection lost", connecting: "Connecting" };
  put(document.getElementById("live"), el("span", { class: `dot d-${state}` }),
    el("span", { class: "label" }, words[state]));
  const lost = document.getElementById("lost");
  lost.hidden = state !== "lost";
  lost.textContent = state === "lost"
    ? "The connection to the host is lost. What you see may be old; trying again by itself." : "";
}

function showCounts({ files }) {
  badges.get("library").textContent = shortCount(files);
  badges.get("library").title = `${count(files)} files`;
}

async function readCounts() {
  try {
    const summary = await call("summary");
    showCounts(summary);
    badges.get("duplicates").textContent = shortCount(summary.duplicates.confirmed_groups) || "";
    const online = summary.agents.filter((agent) => agent.state !== "away").length;
    badges.get("machines").textContent = `${online}/${summary.agents.length}`;
    badges.get("machines").title = `${online} of ${summary.agents.length} online`;
  } catch { /* the live state tells of a lost host */ }
}

document.getElementById("skip").addEventListener("click",
  (event) => { event.preventDefault(); main.focus(); });
document.getElementById("keys").addEventListener("click", showKeys);
buildNav();
startSearch();
startKeys(() => current.shown, search);
onPlace(show);
show(here());
showLive();
onLive("state", showLive);
onLive("counts", showCounts);
onLive("agents", readCounts);
onLive("again", readCounts);
startLive();
readCounts();
''',
    "overview.js": r'''// Overview: what there is, what is wrong, what could go, what happened lately.

import { Latest, call } from "./api.js";
import { barChart, daysBetween, growthChart, splitBar } from "./charts.js";
import { KINDS, stateMark } from "./columns.js";
import { button, el, keepingFocus, name, plainName, put } from "./dom.js";
import { emptyState, failed, loading } from "./empty.js";
import { ago, bytes, count, machine, plural, shortContainer } from "./format.js";
import { onLive } from "./live.js";
import { ProgressLine } from "./progress_line.js";
import { rangeText } from "./filter.js";
import { go, href } from "./router.js";

const FACETS = ["video_codec", "resolution", "container", "ext", "age"];
const TITLES = { video_codec: "Video codec", resolution: "Resolution", container: "Container",
  ext: "Extension", age: "Age (last modified)" };
const REFRESH_MS = 5000;

function tile(label, value, note, link, tone) {
  return el("a", { class: `tile ${tone || ""}`, href: link }, el("span", { class: "tile-label" }, label),
    el("strong", null, value), el("span", { class: "muted" }, note));
}

function card(title, className, ...content) {
  return el("section", { class: `card ${className}` }, el("h2", null, title), content);
}

export class OverviewView {
  constructor(root) {
    this.root = root;
    this.calls = new Latest();
    this.lines = new Map();
    put(root, el("h1", { class: "hidden" }, "Overview"), loading());
    this.stops = [
      onLive("counts", () => this.later()), onLive("agents", () => this.later()),
        onLive("again", () => this.load()),
      onLive("progress", (data) => this.progress(data)),
    ];
  }

  update(params) {
    this.by = params.get("by") === "files" ? "files" : "bytes";
    if (this.summary) this.draw();
    else this.load();
  }

  later() {
    if (this.timer) return;
    this.timer = setTimeout(() => { this.timer = null; this.load(); },
      Math.max(300, (this.loaded || 0) + REFRESH_MS - Date.now()));
  }

  // The figures first; each slower part fills its place when it arrives.
  async load() {
    const signal = this.calls.next();
    this.loaded = Date.now();
    try {
      this.summary = await call("summary", {}, signal);
      keepingFocus(this.root, () => this.draw());
      const parts = [
        ["facets", { filter: {}, keys: FACETS, limit: 10 }, "charts"], ["growth", { days: 400 }, "growth"],
        ["files", { filter: {}, sort: "changed", order: "desc", limit: 8 }, "recent"],
        ["agents", {}, "agents"],
      ];
      await Promise.all(parts.map(async ([path, body, part]) => {
        try {
          this[part] = await call(path, body, signal);
        } catch (error) {
          if (error.name === "AbortError") return;
          this[part] = { error };
        }
        keepingFocus(this.root, () => this.drawPart(part));
      }));
    } catch (error) {
      if (error.name !== "AbortError" && !this.summary) put(this.root, failed(error, () => this.load()));
    }
  }

  draw() {
    const { summary } = this;
    if (!summary.files && !summary.missing && !summary.offline) { this.drawEmpty(); return; }
    this.places = {
      ...Object.fromEntries(FACETS.map((key) => [key, el("div")])), growth: el("div"), recent: el("div"),
      agents: el("div", { class: "activity" }),
    };
    put(this.root, el("div", { class: "page-head" }, el("h1", null, "Overview"), this.byToggle()),
      this.places.agents, this.tiles(summary),
      el("div", { class: "cards top-cards" }, card("Kinds", "wide-card", this.kinds(summary.kinds)),
        card("Machines", "", this.machines(summary.agents)), card("Growth", "", this.places.growth)),
      el("div", { class: "cards" }, FACETS.map((key) => card(TITLES[key], "", this.places[key])),
        card("Changed lately", "", this.places.recent)));
    for (const part of ["charts", "growth", "recent", "agents"]) this.drawPart(part);
  }

  byToggle() {
    return el("div", { class: "segmented", role: "group", "aria-label": "Measure by" },
      [["bytes", "Size"], ["files", "Files"]].map(([by, label]) =>
      button(label, () => go("overview", by === "bytes" ? {} : { by }, true),
        { "aria-pressed": String(this.by === by) })));
  }

  tiles(s) {
    const d = s.duplicates;
    return el("div", { class: "tiles" },
      tile("Files", count(s.files), "in the catalogue", href("library")),
      tile("Size", bytes(s.bytes), "of all these", href("folders")),
      tile("Can be freed", bytes(d.reclaimable_bytes || 0),
        `${plural(d.confirmed_groups, "confirmed group")}`, href("duplicates"), d.reclaimable_bytes ? "good"
        : ""),
      tile("Candidates", count(d.candidate_groups), d.candidate_bytes
        ? `up to ${bytes(d.candidate_bytes)}, not proven` : "not proven yet",
        href("duplicates", { state: "candidate" })),
      tile("Missing", count(s.missing), "gone from their folder", href("library", { state: "missing" }),
        s.missing ? "warn" : ""),
      tile("Offline", count(s.offline), "on disks not connected", href("library", { state: "offline" }), ""));
  }

  kinds(kinds) {
    const items = KINDS.filter((kind) => kinds[kind]).map((kind) => ({
      label: kind, color: `k-${kind}`, files: kinds[kind].files, bytes: kinds[kind].bytes,
      href: kind === "junk" || kind === "unknown" ? href("junk") : href("library", { kind }),
    })).sort((a, b) => b[this.by] - a[this.by]);
    return [splitBar("Kinds", items, this.by), barChart("Kinds", items, this.by)];
  }

  machines(agents) {
    const items = this.ordered("agent", agents).map((agent) =>
      ({ label: machine(agent), files: agent.files, bytes: agent.bytes,
      href: href("library", { agent: agent.id }), color: agent.state === "away" ? "dim" : "" }));
    const away = agents.filter((agent) => agent.state === "away");
    return [barChart("Machines", items, this.by), away.length
      ? el("p", { class: "muted" }, `Not connected: ${away.map((agent) => agent.name).join(", ")}`) : null,
      el("p", null, el("a", { href: href("machines") }, "All machines"))];
  }

  drawPart(part) {
    const data = this[part];
    if (!this.places) return;
    const places = part === "charts" ? FACETS.map((key) => this.places[key]) : [this.places[part]];
    const say = (text) => places.forEach((place) => put(place, text()));
    if (!data) say(() => (part === "agents" ? null : loading()));
    else if (data.error instanceof Error) say(() =>
      el("p", { class: "muted" }, `Not available: ${data.error.message}`));
    else if (part === "charts") this.drawCharts(data);
    else this[`${part}Part`](places[0], data);
  }

  drawCharts({ facets }) {
    for (const key of FACETS) {
      const items = this.ordered(key, facets[key] || []).map((item) => ({
        label: item.label || (key === "container" ? shortContainer(item.value) : item.value) || "(none)",
        files: item.files, bytes: item.bytes,
        href: href("library", item.filter && item.filter.mtime ? { mtime: rangeText(item.filter.mtime) }
          : { [key]: item.value }),
      }));
      put(this.places[key], barChart(TITLES[key], items, this.by));
    }
  }

  ordered(key, items) {
    return key === "age" ? items : [...items].sort((a, b) => b[this.by] - a[this.by]);
  }

  growthPart(place, { days }) {
    if (days.length < 2) {
      put(place, el("p", { class: "muted" }, "One point a day is kept: the curve starts on the second day."));
      return;
    }
    const [first, end] = [days[0][this.by], days[days.length - 1][this.by]];
    const gain = `${end < first ? "\u2212" : "+"}${this.by === "files" ? count(Math.abs(end - first)) : bytes(Math.abs(end - first))}`;
    put(place, growthChart(days, this.by), el("p", { class: "muted" },
      `${gain} in ${plural(daysBetween(days[0].day, days[days.length - 1].day), "day")}, since ${days[0].day}`));
  }

  recentPart(place, { files }) {
    const word = (file) => {
      if (file.state !== "present") return stateMark(file.state);
      return el("span", { class: "muted" }, file.first_seen >= file.changed - 1 ? "new" : "changed");
    };
    put(place, el("ul", { class: "recent" }, files.map((file) => el("li", null, word(file),
      el("a", { href: href("library", { sort: "changed", order: "desc", open: file.id }),
        title: plainName(file.path) },
        name(file.name)),
      el("span", { class: "muted" }, ago(file.changed))))));
  }

  agentsPart(place, { agents }) {
    this.lines = new Map();
    put(place, agents.filter((agent) => agent.stats && agent.stats.active).map((agent) =>
      this.line(agent.id, agent.name, agent.stats)));
    this.named = new Map(agents.map((agent) => [agent.id, agent.name]));
  }

  line(id, agentName, stats) {
    const line = new ProgressLine(agentName);
    line.update(stats);
    this.lines.set(id, line);
    return line.node;
  }

  progress({ agent, stats }) {
    const line = this.lines.get(agent);
    if (line && stats.active) line.update(stats);
    else if (line) { line.node.remove(); this.lines.delete(agent); this.later(); } else if (stats.active
      && this.places && this.named) this.places.agents.append(this.line(agent, this.named.get(agent) || agent,
      stats));
    else if (stats.active) this.later();
  }

  drawEmpty() {
    this.places = null;
    put(this.root, el("h1", { class: "hidden" }, "Overview"), emptyState("Nothing is catalogued yet",
      "Add a folder of this machine, or run the agent on another one. Files appear here while they are read; nothing on the disks is ever changed.",
      el("a", { class: "button primary", href: href("machines", { add: "local" }) },
        "Add a folder of this machine"),
      el("a", { class: "button", href: href("machines", { new: 1 }) }, "Add another machine")));
  }

  destroy() {
    this.stops.forEach((stop) => stop());
    clearTimeout(this.timer);
    this.calls.stop();
  }
}
''',
    "paged_rows.js": r'''// A long list behind keyset pages: only pages near the eye are kept; tokens of pages once seen are remembered.

import { isAbort } from "./api.js";

const PAGE = 200;
const KEPT_PAGES = 40;
const NEAR_PAGES = 20;

export class PagedRows {
  // fetchPage({after, skip, of, limit}, signal) → {files, next, skipped}; about() → rows of the list
  constructor(fetchPage, about, onchange, onerror) {
    this.about = about;
    this.fetchPage = fetchPage;
    this.onchange = onchange;
    this.onerror = onerror;
    this.pages = new Map();
    this.tokens = new Map([[0, null]]);
    this.total = null;
    this.wanted = [];
    this.busy = null;
    this.inOrder = false; // the host finds no far places: from page to page then
    this.closed = false;
  }

  get(index) {
    const page = this.pages.get(Math.floor(index / PAGE));
    return page ? page[index % PAGE] : undefined;
  }

  // How many rows the list has, as far as that is known by now.
  get length() {
    if (this.total !== null) return this.total;
    const known = [...this.pages.keys()];
    return known.length ? Math.max(...known.map((p) => p * PAGE + this.pages.get(p).length)) : 0;
  }

  want(first, last) {
    const from = Math.floor(Math.max(0, first) / PAGE);
    const to = Math.floor(Math.max(0, last) / PAGE);
    this.wanted = [];
    for (let page = from; page <= to; page += 1) this.wanted.push(page);
    if (last % PAGE > PAGE / 2) this.wanted.push(to + 1);
    if (this.busy && !this.wanted.includes(this.busy.page)) this.busy.controller.abort();
    this.pump();
  }

  missing() {
    const limit = this.total === null ? Infinity : Math.ceil(this.total / PAGE);
    return this.wanted.find((page) => !this.pages.has(page) && page < limit);
  }

  async pump() {
    const page = this.missing();
    if (this.busy || this.closed || page === undefined) return;
    const start = this.tokens.has(page) ? page : Math.max(...[...this.tokens.keys()].filter((p) => p < page));
    const controller = new AbortController();
    this.busy = { page, controller };
    const ask = this.askFor(start, page);
    let failed = false;
    try {
      const answer = await this.whole(ask, controller.signal, page);
      // A host that cannot skip answered the page whose place was told: go on from there.
      const skipped = !ask.skip || answer.skipped !== undefined;
      if (!skipped && !ask.after) this.inOrder = true;
      this.store(skipped ? page : ask.after ? start : 0, answer);
    } catch (error) {
      this.pages.delete(page); // what came of it is not all of it
      failed = !isAbort(error);
      if (failed && !this.closed) this.onerror(error);
    }
    this.busy = null;
    if (!failed) this.pump();
  }

  // Near pages are reached from one that is known; far ones are counted from the start of the list.
  askFor(start, page) {
    if (page - start > NEAR_PAGES && !this.inOrder) return { skip: page * PAGE, of: this.about() || undefined,
      limit: PAGE };
    const ask = { after: this.tokens.get(start) ?? undefined, limit: PAGE };
    return start < page ? { ...ask, skip: (page - start) * PAGE } : ask;
  }

  // The host may end an answer early to stay quick; a page is whole when it is full or the last. What
  // came so far is shown meanwhile, where it is known which page it is.
  async whole(ask, signal, page) {
    const answer = await this.fetchPage(ask, signal);
    while (answer.files.length < PAGE && answer.next) {
      if (!ask.skip && !this.closed) {
        this.pages.set(page, answer.files);
        this.onchange();
      }
      const more = await this.fetchPage({ after: answer.next, limit: PAGE - answer.files.length }, signal);
      answer.files = [...answer.files, ...more.files];
      answer.next = more.next;
    }
    return answer;
  }

  store(page, { files, next }) {
    if (this.closed) return;
    this.pages.set(page, files);
    if (next) this.tokens.set(page + 1, next);
    else if (files.length || page === 0) this.total = page * PAGE + files.length;
    else this.total = Math.min(this.total ?? Infinity, page * PAGE); // it ends somewhere before
    this.forgetFar(page);
    this.onchange();
  }

  forgetFar(near) {
    if (this.pages.size <= KEPT_PAGES) return;
    const far = [...this.pages.keys()].sort((a, b) => Math.abs(b - near) - Math.abs(a - near));
    for (const page of far.slice(0, this.pages.size - KEPT_PAGES)) this.pages.delete(page);
  }

  close() {
    this.closed = true;
    if (this.busy) this.busy.controller.abort();
  }
}
''',
    "progress_line.js": r'''// One machine's scan while it runs: phase, how far, how fast, what it reads, whether it is alive.

import { el, name, put } from "./dom.js";
import { count, span } from "./format.js";

const STALE_S = 30;
const PHASES = { hashes: "Listing and hashing (1 of 2)", ffprobe: "Describing videos (2 of 2)",
  "full hashes": "Hashing large files whole" };

export class ProgressLine {
  constructor(title, titled = true) {
    this.bar = el("progress", { max: 1, "aria-label": `Scan of ${title}` });
    this.phase = el("span");
    this.numbers = el("span", { class: "muted numbers" });
    this.current = el("span", { class: "muted current" });
    this.node = el("div", { class: "progress-line" },
      el("div", { class: "progress-head" }, titled ? el("strong", null, title) : null, this.phase,
        this.numbers), this.bar, this.current);
  }

  update(stats) {
    put(this.phase, PHASES[stats.phase_name] || stats.phase_name || "working");
    const [done, all] = this.howFar(stats);
    // While it still counts there is no honest percentage: the bar moves without one.
    if (all && done <= all) this.bar.value = done / all;
    else this.bar.removeAttribute("value");
    put(this.numbers, this.words(stats, done, all).filter(Boolean).join(" \u00B7 "));
    put(this.current, stats.current_path ? name(stats.current_path) : "");
  }

  howFar(stats) {
    if (stats.phase_name === "full hashes") return [stats.fully_hashed || 0, null];
    return stats.phase === 2 ? [stats.seen_videos, stats.total_videos] : [stats.seen, stats.total_all];
  }

  words(stats, done, all) {
    const quiet = stats.idle_s || 0;
    const fileErrors = stats.file_errors ?? stats.errors; // an older agent tells only all of them
    return [
      all && done <= all ? `${count(done)} of ${count(all)} files` : `${count(done)} files so far`,
      stats.data_mib ? `${stats.data_mib < 1024 ? `${Math.round(stats.data_mib)} MiB` : `${(stats.data_mib / 1024).toFixed(1)} GiB`} read` : null,
      stats.rate_files_per_s ? `${count(Math.round(stats.rate_files_per_s))} files/s` : null,
      stats.eta_s ? `${span(stats.eta_s)} left` : null,
      fileErrors ? `${count(fileErrors)} errors` : null,
      quiet > STALE_S ? `no progress for ${span(quiet)}` : null,
    ];
  }
}
''',
    "router.js": r'''// Where we are lives behind the '#': "#library?kind=video&sort=size". Back and copied links just work.

const listeners = new Set();

export function here() {
  const text = location.hash.slice(1);
  const cut = text.indexOf("?");
  const view = cut < 0 ? text : text.slice(0, cut);
  return { view: view || "overview", params: new URLSearchParams(cut < 0 ? "" : text.slice(cut + 1)) };
}

export function href(view, params) {
  const query = params instanceof URLSearchParams ? params : new URLSearchParams();
  if (query !== params) {
    for (const [key, value] of Object.entries(params || {})) {
      for (const one of [value].flat()) {
        if (one !== null && one !== undefined && one !== "") query.append(key, one);
      }
    }
  }
  const text = query.toString();
  return `#${view}${text ? `?${text}` : ""}`;
}

function tell() {
  const place = here();
  for (const listener of [...listeners]) listener(place);
}

export function go(view, params, replace = false) {
  const target = href(view, params);
  if (target === (location.hash || "#overview")) return;
  history[replace ? "replaceState" : "pushState"](null, "", target);
  tell();
}

export function onPlace(listener) {
  listeners.add(listener);
}

addEventListener("hashchange", tell);
''',
    "setting_form.js": r'''// Fields made from the host's settings table: type, bounds, help, default; used for the host and per machine.

import { button, el, freshId, put } from "./dom.js";
import { bytes, count } from "./format.js";

const LABELS = {
  xml: "XML", s: "(seconds)", algo: "function", do: "Compute", dirs: "folders",
};

export function settingLabel(setting) {
  if (setting.label) return setting.label;
  const words = setting.name.replace(/^agent_/, "").split("_").map((word) => LABELS[word] || word).join(" ");
  return words[0].toUpperCase() + words.slice(1);
}

export function tellValue(setting, value) {
  if (value === null || value === undefined) return "unset";
  if (Array.isArray(value)) return value.length > 8
    ? `${value.slice(0, 8).join(" ")} and ${value.length - 8} more` : value.join(" ") || "none";
  if (typeof value === "boolean") return value ? "on" : "off";
  if (setting.unit === "bytes") return `${count(value)} (${bytes(value)})`;
  return `${value}${setting.unit ? ` ${setting.unit}` : ""}`;
}

const isList = (setting) => ["names", "extensions", "paths"].includes(setting.type);
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

function inputFor(setting, id, value, describe) {
  const common = { id, "aria-describedby": describe, autocomplete: "off", spellcheck: "false" };
  if (setting.type === "bool") return el("input",
    { ...common, type: "checkbox", class: "switch", checked: Boolean(value) });
  if (setting.type === "choice") return el("select", common,
    setting.choices.map((choice) => el("option", { value: choice, selected: choice === value }, choice)));
  if (isList(setting)) return el("textarea", { ...common,
    rows: Math.min(8, Math.max(2, Math.ceil((value || []).join(" ").length / 60))),
    value: (value || []).join(listGlue(setting)) });
  if (setting.type === "int") return el("input",
    { ...common, type: "number", min: setting.minimum, max: setting.maximum, step: 1, value: value ?? "" });
  return el("input", { ...common, type: "text", value: value ?? "" });
}

// Patterns and folder names may hold spaces: one a line. Extensions may not: beside each other.
function listGlue(setting) {
  return setting.type === "extensions" ? " " : "\n";
}

function readInput(setting, input) {
  if (setting.type === "bool") return input.checked;
  if (isList(setting)) return input.value.split(listGlue(setting) === " " ? /[\s,]+/ : /\n/).map((one) =>
    one.trim()).filter(Boolean);
  if (setting.type === "int") return input.value === "" ? setting.default : Number(input.value);
  return input.value;
}

export class SettingField {
  // `value` undefined: not overridden here; `base` is what then holds. onchange() after every edit.
  constructor(setting, { value, base, baseName, onchange }) {
    Object.assign(this, { setting, base, baseName, onchange });
    this.stored = value;
    this.pending = value;
    const id = freshId("setting");
    this.help = freshId("help");
    this.input = inputFor(setting, id, value === undefined ? base : value, this.help);
    this.input.addEventListener("input", () => { this.pending = readInput(setting, this.input);
      this.changed(); });
    this.status = el("div", { class: "field-status" });
    this.problem = el("p", { class: "field-problem", role: "alert" });
    this.node = el("div", { class: `field type-${setting.type}` },
      el("div", { class: "field-text" }, el("label", { for: id }, settingLabel(setting)),
        el("p", { class: "muted", id: this.help }, setting.help || "", this.bounds()),
        el("code", { class: "muted" }, setting.name)),
      el("div", { class: "field-input" }, this.input, this.status, this.problem));
    this.show();
  }

  bounds() {
    const { minimum, maximum, unit } = this.setting;
    return maximum === null ? "" : ` (${count(minimum)} to ${count(maximum)}${unit ? ` ${unit}` : ""})`;
  }

  get dirty() { return !same(this.pending, this.stored); }

  get isBase() { return this.pending === undefined || same(this.pending, this.base); }

  // What to send: null goes back to the default or the general value.
  get wish() { return this.pending === undefined
    || (this.baseName === "default" && same(this.pending, this.base)) ? null : this.pending; }

  reset() {
    this.pending = undefined;
    if (this.setting.type === "bool") this.input.checked = Boolean(this.base);
    else this.input.value = isList(this.setting) ? (this.base || []).join(listGlue(this.setting)) : this.base
      ?? "";
    this.changed();
  }

  changed() {
    this.problem.textContent = "";
    this.show();
    this.onchange();
  }

  show() {
    const held = this.baseName === "default" ? !this.isBase : this.pending !== undefined;
    this.node.classList.toggle("held", held);
    this.node.classList.toggle("dirty", this.dirty);
    put(this.status, held ? [el("span", { class: "pill accent" }, this.baseName === "default" ? "changed"
      : "only here"),
      el("span", { class: "muted" }, ` ${this.baseName}: ${tellValue(this.setting, this.base)} `),
        button("Reset", () => this.reset(), { class: "link",
        "aria-label": `Reset ${settingLabel(this.setting)}` })]
      : el("span", { class: "muted" }, this.baseName));
  }

  refuse(text) {
    this.problem.textContent = text;
    this.input.setAttribute("aria-invalid", "true");
    this.input.focus();
  }
}

// The table has no groups of its own; its names tell what belongs together.
const GROUPS = [
  ["Scanning", /^(follow_|ignore_|rescan_|junk_patterns|junk_exclude)/], ["Types of files", /_extensions$/],
  ["Hashes", /^(hash_|do_full_hash|agent_offpeak)/], ["Agents", /^agent_/], ["Host", /./],
];

export function groupsOf(settings) {
  const groups = new Map(["Hashes", "Scanning", "Agents", "Host",
    "Types of files"].map((group) => [group, []]));
  for (const setting of settings) groups.get(GROUPS.find(([, names]) =>
    names.test(setting.name))[0]).push(setting);
  return [...groups].filter(([, members]) => members.length);
}

// The field that the host's refusal is about: it names the setting first.
export function refusedField(fields, error) {
  const words = `${(error.answer || {}).setting || ""} ${error.message} ${error.detail || ""}`.split(/[\s:]+/);
  return fields.find((field) => words.includes(field.setting.name));
}
''',
    "settings.js": r'''// Settings: one form made from the host's table; what differs from its default is marked.

import { Latest, call } from "./api.js";
import { busyButton, button, el, put } from "./dom.js";
import { failed, loading } from "./empty.js";
import { plural } from "./format.js";
import { href } from "./router.js";
import { SettingField, groupsOf, refusedField, settingLabel, tellValue } from "./setting_form.js";
import { toast, toastError } from "./toast.js";

export class SettingsView {
  constructor(root) {
    this.root = root;
    this.calls = new Latest();
    put(root, el("h1", { class: "hidden" }, "Settings"), loading());
  }

  update() {
    if (!this.fields) this.load();
  }

  async load() {
    try {
      const signal = this.calls.next();
      const [answer, { agents }] = await Promise.all([call("settings", {}, signal),
        call("agents", {}, signal)]);
      this.names = new Map(agents.map((agent) => [agent.id, agent.name]));
      this.draw(answer);
    } catch (error) {
      if (error.name !== "AbortError") put(this.root, failed(error, () => this.load()));
    }
  }

  draw(answer) {
    const settings = answer.settings.filter((setting) => setting.name !== "remote_roots");
    this.own = answer.agents || {};
    this.fields = settings.map((setting) => new SettingField(setting,
      { value: setting.value, base: setting.default, baseName: "default", onchange: () => this.showBar() }));
    this.bar = el("div", { class: "save-bar", hidden: true });
    const byName = new Map(this.fields.map((field) => [field.setting.name, field]));
    put(this.root, el("div", { class: "page-head" }, el("h1", null, "Settings"),
      el("p", { class: "muted" }, "For every machine, unless a machine has its own value.")),
      groupsOf(settings).map(([group, members]) =>
        el("section", { class: "card" }, el("h2", null, group),
        members.map((setting) => [byName.get(setting.name).node, this.overrides(setting)]))),
      this.bar);
    this.showBar();
  }

  overrides(setting) {
    const entries = Object.entries(this.own).filter(([, own]) => setting.name in own).map(([agent, own]) =>
      [agent, own[setting.name]]);
    if (!entries.length) return null;
    return el("ul", { class: "overrides", "aria-label": `${settingLabel(setting)} on machines of their own` },
      entries.map(([agent, value]) => el("li", null, "On ",
      el("a", { href: href("machines", { settings: agent }) }, this.names.get(agent) || agent),
        `: ${tellValue(setting, value)}`)));
  }

  showBar() {
    const dirty = this.fields.filter((field) => field.dirty);
    this.bar.hidden = !dirty.length;
    put(this.bar, el("span", null, plural(dirty.length, "unsaved change")),
      button("Discard", () => { this.fields = null; this.load(); }),
      busyButton("Save", () => this.save(), { class: "primary" }));
  }

  async save() {
    const set = {};
    for (const field of this.fields.filter((one) => one.dirty)) set[field.setting.name] = field.wish;
    try {
      const answer = await call("settings", { set });
      toast(answer.reclassified ? `Saved: ${plural(answer.reclassified, "file")} reclassified` : "Saved",
        "good");
      this.draw(answer);
    } catch (error) {
      const field = refusedField(this.fields, error);
      if (field) field.refuse([error.message, error.detail].filter(Boolean).join(": "));
      else toastError(error);
    }
  }

  destroy() { this.calls.stop(); }
}
''',
    "style.css": r'''/* One look for every view. Sizes are in rem, so that 4k screens get larger type and the same lines. */

:root {
  color-scheme: light dark;
  --bg: #f5f6f8; --surface: #fff; --raised: #fff; --sunken: #eceef2; --line: #dfe2e8; --strong-line: #8a93a1;
  --text: #191c21; --muted: #59616d; --accent: #2457c5; --accent-soft: #e6edfb; --on-accent: #fff;
  --good: #176b3c; --good-soft: #e0f3e7; --warn: #855300; --warn-soft: #fbf0d9; --bad: #b02a20; --bad-soft: #fce8e6;
  --bar: #4a7be0; --track: #eceef2; --dim: #a9b2bf; --shadow: 0 8px 30px rgb(20 25 40 / .18);
  --video: #3f74dc; --audio: #8c5fd0; --image: #1f9a80; --subtitle: #c98a1b; --xml: #6f8196; --other: #4a9bc0; --unknown: #a3714f; --junk: #c25566;
  --row: 30px; --font: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif; --mono: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --bg: #111316; --surface: #191c20; --raised: #22262c; --sunken: #0c0e10; --line: #2b3037; --strong-line: #6b7582;
    --text: #e6e9ed; --muted: #9ba5b1; --accent: #86aeff; --accent-soft: #1e2b46; --on-accent: #0c1220;
    --good: #66cf92; --good-soft: #143022; --warn: #eab65a; --warn-soft: #33270f; --bad: #ff8f85; --bad-soft: #3c1a18;
    --bar: #5b8cf0; --track: #25292f; --dim: #5a636f; --shadow: 0 8px 30px rgb(0 0 0 / .6);
    --video: #6495f5; --audio: #a885e6; --image: #3fb89c; --subtitle: #dba544; --xml: #8c9db1; --other: #66b3d6; --unknown: #c2926f; --junk: #dd7484;
  }
}
* { box-sizing: border-box; }
html { font-size: 14px; }
@media (min-width: 2400px) { html { font-size: 16px; } :root { --row: 34px; } }
@media (min-width: 3400px) { html { font-size: 20px; } :root { --row: 42px; } }
body { margin: 0; font: 1rem/1.45 var(--font); color: var(--text); background: var(--bg); display: grid; grid-template: 3.4rem 1fr / 12.5rem minmax(0, 1fr); height: 100dvh; overflow: hidden; font-variant-numeric: tabular-nums; }
h1, h2, h3, p, dl, dd, ul { margin: 0; padding: 0; }
h1 { font-size: 1.4rem; font-weight: 650; letter-spacing: -.01em; }
h2 { font-size: 1.05rem; font-weight: 620; }
h3 { font-size: .95rem; font-weight: 620; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; border-radius: 4px; }
main:focus { outline: none; }
code, pre, .hash { font-family: var(--mono); font-size: .9em; }
[hidden] { display: none !important; }
.hidden { position: absolute !important; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
thead.hidden { display: block; }
.skip { position: absolute; left: -99rem; z-index: 30; background: var(--raised); padding: .5rem 1rem; }
.skip:focus { left: .5rem; top: .5rem; }
.muted { color: var(--muted); }
.good-text { color: var(--good); }
.warn-text { color: var(--warn); }
.row { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; }
.row.nowrap { flex-wrap: nowrap; }
.row.end { justify-content: flex-end; margin-top: .75rem; }
.wrap { overflow-wrap: anywhere; }
.num { text-align: right; white-space: nowrap; }
.name { white-space: pre; unicode-bidi: isolate; }
.wrap .name, .copies .name, .grow .name, dd .name, .entry .name, .current .name { white-space: pre-wrap; overflow-wrap: anywhere; }
.byte { font: .82em var(--mono); background: var(--warn-soft); color: var(--warn); border-radius: 3px; padding: 0 .2em; margin: 0 .05em; }

/* Buttons and fields */
button, .button, select, input, textarea { font: inherit; color: inherit; }
button, .button { display: inline-flex; align-items: center; gap: .35rem; min-height: 2.2rem; padding: .3rem .85rem; border: 1px solid var(--line); border-radius: 7px; background: var(--raised); cursor: pointer; white-space: nowrap; }
button:hover, .button:hover { border-color: var(--strong-line); text-decoration: none; }
button:disabled { opacity: .5; cursor: default; }
.button { color: var(--text); }
.small { min-height: 1.9rem; padding: .15rem .65rem; font-size: .93rem; }
.primary { background: var(--accent); border-color: var(--accent); color: var(--on-accent); font-weight: 600; }
.danger { color: var(--bad); }
footer .danger { background: var(--bad); color: var(--surface); border-color: var(--bad); font-weight: 600; }
.quiet { border-color: transparent; background: none; padding: 0; width: 2rem; min-height: 2rem; justify-content: center; font-size: 1.1rem; color: var(--muted); }
.link { border: 0; background: none; padding: .1rem .2rem; min-height: 1.6rem; color: var(--accent); }
.link:hover { text-decoration: underline; }
.chip { min-height: 1.75rem; padding: .05rem .65rem; border-radius: 99px; font-size: .9rem; }
.chip[aria-pressed=true], .chip.on { background: var(--accent-soft); border-color: var(--accent); color: var(--accent); }
.chip.on { max-width: 22rem; overflow: hidden; text-overflow: ellipsis; }
.segmented { display: inline-flex; border: 1px solid var(--line); border-radius: 7px; overflow: hidden; background: var(--raised); }
.segmented button { border: 0; border-radius: 0; min-height: 1.9rem; background: none; }
.segmented button[aria-pressed=true] { background: var(--accent-soft); color: var(--accent); font-weight: 600; }
input, select, textarea { border: 1px solid var(--strong-line); border-radius: 6px; background: var(--surface); padding: .25rem .5rem; min-height: 2.1rem; min-width: 0; }
input[type=checkbox] { min-height: 0; width: 1.05rem; height: 1.05rem; accent-color: var(--accent); margin: 0; flex: none; }
input[aria-invalid=true] { border-color: var(--bad); background: var(--bad-soft); }
::placeholder { color: var(--muted); opacity: 1; }
.meter { display: block; height: .5rem; border-radius: 3px; overflow: hidden; background: var(--track); }
.meter span { display: block; height: 100%; background: var(--bar); border-radius: 3px; }
progress { -webkit-appearance: none; appearance: none; width: 100%; height: .45rem; border: 0; border-radius: 4px; overflow: hidden; background: var(--track); display: block; }
progress::-webkit-progress-bar { background: var(--track); }
progress::-webkit-progress-value { background: var(--bar); transition: width .6s linear; }
progress::-moz-progress-bar { background: var(--bar); }
progress:indeterminate { background: linear-gradient(90deg, var(--track) 25%, var(--bar) 50%, var(--track) 75%) 0 0 / 200% 100%; animation: slide 1.8s linear infinite; }
progress:indeterminate::-webkit-progress-bar { background: none; }
@keyframes slide { to { background-position: -200% 0; } }
@media (prefers-reduced-motion: reduce) { *, ::before, ::after { animation: none !important; transition: none !important; } }
kbd { font: .85em var(--mono); border: 1px solid var(--line); border-bottom-width: 2px; border-radius: 4px; padding: 0 .35em; background: var(--raised); color: var(--muted); }

/* Frame */
.top { grid-column: 1 / -1; display: flex; align-items: center; gap: 1rem; padding: 0 1rem; border-bottom: 1px solid var(--line); background: var(--surface); }
.brand { display: flex; align-items: center; gap: .55rem; font-weight: 680; font-size: 1.1rem; letter-spacing: -.01em; color: var(--text); width: 11.4rem; flex: none; }
.brand img { width: 1.6rem; height: 1.6rem; }
.search { position: relative; flex: 1; max-width: 46rem; }
.search input { width: 100%; border-color: var(--line); background: var(--bg); padding-left: .8rem; min-height: 2.3rem; border-radius: 8px; }
.search kbd { position: absolute; right: .6rem; top: 50%; transform: translateY(-50%); pointer-events: none; }
.search:focus-within kbd { display: none; }
.live { display: flex; align-items: center; gap: .45rem; margin-left: auto; color: var(--muted); font-size: .93rem; white-space: nowrap; }
.dot { width: .6rem; height: .6rem; border-radius: 50%; background: var(--dim); display: inline-block; flex: none; }
.d-online { background: #2fa866; }
.d-scanning { background: var(--bar); animation: pulse 1.6s ease-in-out infinite; }
.d-lost { background: #d9443a; }
@keyframes pulse { 50% { opacity: .35; } }
.lost { position: fixed; z-index: 20; top: 3.4rem; left: 0; right: 0; padding: .4rem 1rem; text-align: center; background: var(--bad); color: var(--surface); font-weight: 600; }
body:has(.lost:not([hidden])) :is(.side, main) { margin-top: 2.1rem; }
.side { border-right: 1px solid var(--line); background: var(--surface); padding: .75rem .6rem; overflow-y: auto; }
.side ul { list-style: none; display: grid; grid-template-columns: minmax(0, 1fr); gap: .15rem; }
.side a { display: flex; align-items: center; gap: .6rem; padding: .5rem .6rem; border-radius: 8px; color: var(--text); }
.side a:hover { background: var(--bg); text-decoration: none; }
.side a[aria-current] { background: var(--accent-soft); color: var(--accent); font-weight: 600; }
.side svg { width: 1.25rem; height: 1.25rem; fill: currentColor; opacity: .8; flex: none; }
.badge { margin-left: auto; font-size: .85rem; color: var(--muted); font-weight: 400; }
main { overflow: auto; min-width: 0; }
.view { padding: 1.1rem 1.4rem 3rem; }
.page-head { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem 1.2rem; margin-bottom: 1rem; }
.page-head .segmented, .page-head .tools { margin-left: auto; }
.tools { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; }
.total { color: var(--muted); white-space: nowrap; }
.total strong { color: var(--text); font-size: 1.1rem; font-weight: 650; }
.total strong.good-text { color: var(--good); }
.loading { color: var(--muted); padding: 1rem 0; }
.empty { text-align: center; max-width: 34rem; margin: 3.5rem auto; padding: 0 1rem; display: grid; gap: .8rem; justify-items: center; }
.empty p { color: var(--muted); }
.empty .row { justify-content: center; }
.card .empty { margin: 1.2rem auto; }
.notice { padding: .55rem .8rem; border-radius: 7px; background: var(--sunken); margin: .6rem 0; }
.notice.warn { background: var(--warn-soft); margin: 0 0 1rem; overflow-wrap: anywhere; }
.notice.warn .row { margin-top: .35rem; }
.notice.bad { background: var(--bad-soft); color: var(--bad); overflow-wrap: anywhere; }
.toasts { position: fixed; right: 1rem; bottom: 1rem; z-index: 40; display: grid; gap: .5rem; max-width: min(28rem, calc(100vw - 2rem)); }
.toast { padding: .6rem 1rem; border-radius: 8px; background: var(--text); color: var(--surface); box-shadow: var(--shadow); overflow-wrap: anywhere; }
.toast.bad { background: var(--bad); }

/* Words with a colour */
.kind { display: inline-flex; align-items: center; gap: .45rem; }
.kind::before { content: ""; width: .6rem; height: .6rem; border-radius: 2px; background: var(--c, var(--dim)); }
.k-video { --c: var(--video); } .k-audio { --c: var(--audio); } .k-image { --c: var(--image); } .k-subtitle { --c: var(--subtitle); }
.k-xml { --c: var(--xml); } .k-other { --c: var(--other); } .k-unknown { --c: var(--unknown); } .k-junk { --c: var(--junk); }
.state, .pill { display: inline-block; font-size: .86rem; padding: 0 .5rem; border-radius: 99px; background: var(--sunken); color: var(--muted); white-space: nowrap; }
.s-missing, .pill.warn { background: var(--warn-soft); color: var(--warn); }
.s-online, .s-present, .pill.good { background: var(--good-soft); color: var(--good); }
.s-scanning, .pill.accent { background: var(--accent-soft); color: var(--accent); }
.s-offline { background: var(--sunken); color: var(--muted); }
td .s-present { background: none; padding: 0; color: var(--muted); }
.is-offline .name, .is-missing .name { color: var(--muted); }
.is-missing .name { text-decoration: line-through; text-decoration-color: var(--strong-line); }

/* Cards, tiles, charts */
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 23rem), 1fr)); margin-bottom: 1rem; }
.cards .stack { display: grid; gap: 1rem; align-content: start; min-width: 0; }
.cards.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); align-items: start; }
.card { background: var(--surface); border: 1px solid var(--line); border-radius: 10px; padding: .95rem 1.1rem; min-width: 0; }
.card > h2 { margin-bottom: .6rem; }
.card > p + table { margin-top: .5rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 1rem; margin-bottom: 1rem; }
.tile { background: var(--surface); border: 1px solid var(--line); border-radius: 10px; padding: .75rem 1.1rem .8rem; display: grid; gap: .05rem; align-content: start; color: var(--text); }
.tile:hover { border-color: var(--strong-line); text-decoration: none; }
.tile strong { font-size: 1.65rem; font-weight: 640; letter-spacing: -.02em; line-height: 1.25; white-space: nowrap; }
.tile .muted { font-size: .9rem; }
.tile.good strong { color: var(--good); } .tile.warn strong { color: var(--warn); }
.chart { min-width: 0; overflow: hidden; }
.chart svg { display: block; overflow: visible; }
.chart.split { margin-bottom: .7rem; }
.chart text { fill: var(--text); font: inherit; font-size: 1em; }
.chart text.share { fill: var(--muted); font-size: .9em; }
.chart a:hover text { text-decoration: none; }
.chart a:hover .hit { fill: var(--sunken); }
.chart .hit { fill: transparent; }
.chart .track { fill: var(--track); }
.chart .bar { fill: var(--c, var(--bar)); }
.chart .bar.dim { fill: var(--dim); }
.growth .grid { stroke: var(--line); }
.growth .line { fill: none; stroke: var(--bar); stroke-width: 2; stroke-linejoin: round; }
.growth .line.unseen { stroke-dasharray: 3 4; opacity: .75; }
.growth .area { fill: var(--bar); opacity: .14; }
.growth .point { fill: var(--bar); }
.growth .number { font-weight: 600; }
.recent { list-style: none; }
.recent li { display: grid; grid-template-columns: 4.4rem minmax(0, 1fr) auto; gap: .6rem; padding: .2rem 0; white-space: nowrap; }
.recent a { overflow: hidden; text-overflow: ellipsis; }
.activity:not(:empty) { margin-bottom: 1rem; display: grid; gap: .5rem; }
.activity .progress-line { background: var(--surface); border: 1px solid var(--line); border-radius: 10px; padding: .7rem 1.1rem; }
.progress-line { display: grid; gap: .35rem; margin: .3rem 0; }
.progress-head { display: flex; flex-wrap: wrap; gap: .2rem .9rem; align-items: baseline; }
.progress-head .numbers { margin-left: auto; }
.current { font-size: .9rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; min-height: 1.3em; }
.current .name { white-space: pre !important; }
table.plain { border-collapse: collapse; width: 100%; }
.plain th { text-align: left; font-weight: 500; color: var(--muted); font-size: .9rem; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
.plain th.num { text-align: right; }
.plain td { padding: .32rem .6rem .32rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.plain tr:last-child td { border-bottom: 0; }
.plain td:last-child, .plain th:last-child { padding-right: 0; }
.plain .grow { width: 100%; min-width: 5.5rem; overflow-wrap: anywhere; }
.plain .link { min-height: 0; padding: 0 .2rem; }
.plain .who { white-space: nowrap; min-width: 7rem; }
.scroll-x { overflow-x: auto; }

/* Library */
.view.library { padding: 0; height: 100%; display: grid; grid-template-columns: 15.5rem minmax(0, 1fr); position: relative; }
.view.library.drawer-open { grid-template-columns: 15.5rem minmax(0, 1fr) minmax(24rem, 28rem); }
.view.library.no-files { grid-template-columns: minmax(0, 1fr); }
.filters { overflow-y: auto; border-right: 1px solid var(--line); padding: .9rem .9rem 2rem; background: var(--surface); }
.panel-title { font-size: .95rem; margin-bottom: .5rem; }
.waiting { opacity: .55; }
.filter-panel, .list-place { transition: opacity .15s; }
.questions { display: flex; flex-wrap: wrap; gap: .3rem; margin-bottom: .6rem; }
.facet { border-top: 1px solid var(--line); padding: .35rem 0; }
.facet summary { cursor: pointer; font-weight: 600; font-size: .95rem; padding: .25rem 0; display: flex; gap: .5rem; align-items: center; list-style: none; }
.facet summary::-webkit-details-marker { display: none; }
.facet summary::after { content: "\203A"; margin-left: auto; color: var(--muted); transform: rotate(90deg); }
.facet:not([open]) summary::after { transform: none; }
.facet summary .badge { margin: 0; background: var(--accent); color: var(--on-accent); border-radius: 99px; padding: 0 .45rem; }
.facet ul { list-style: none; }
.facet li label { display: flex; gap: .55rem; align-items: center; padding: .16rem 0; cursor: pointer; }
.facet .what { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.facet .n { margin-left: auto; color: var(--muted); font-size: .9rem; }
.range { display: grid; grid-template-columns: 1fr auto 1fr; gap: .1rem .35rem; align-items: center; padding: .2rem 0; }
.range-label { grid-column: 1 / -1; color: var(--muted); font-size: .9rem; }
.range input { width: 100%; min-height: 1.9rem; font-size: .92rem; padding: .1rem .4rem; border-color: var(--line); }
.range.dates { grid-template-columns: minmax(0, 1fr); }
.range.dates > [aria-hidden] { display: none; }
.results { display: flex; flex-direction: column; min-width: 0; min-height: 0; }
.bar { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem 1rem; }
.results > .bar { padding: .55rem 1rem; min-height: 3.1rem; border-bottom: 1px solid var(--line); }
.bar .tools { margin-left: auto; }
.chips { display: flex; flex-wrap: wrap; gap: .3rem; }
.stale { background: var(--accent-soft); color: var(--accent); border-color: var(--accent); }
.narrow-only { display: none; }
.list-place { flex: 1; min-height: 0; }
.is-empty .list-place, .no-files > .filters { display: none; }
.vl { height: 100%; overflow: auto; background: var(--surface); overflow-anchor: none; contain: content; }
.vl-space { position: relative; min-width: max-content; }
.vl-window { position: sticky; top: 0; overflow-y: clip; }
table.files { border-collapse: separate; border-spacing: 0; table-layout: fixed; width: 1px; min-width: 100%; }
table.files:focus { outline: none; }
table.files:focus-visible thead { box-shadow: inset 0 2px var(--accent); }
.files thead { position: relative; z-index: 2; }
.files th { height: var(--row); padding: 0 .7rem; text-align: left; font-weight: 500; font-size: .92rem; color: var(--muted); background: var(--surface); border-bottom: 1px solid var(--line); white-space: nowrap; }
.files th button { border: 0; background: none; padding: 0; min-height: 0; height: 100%; width: 100%; color: inherit; font-weight: inherit; }
.files th button { gap: 0; }
.files th.num button { justify-content: flex-end; }
.arrow::after { padding-left: .3em; }
.files th[aria-sort] { color: var(--text); font-weight: 650; }
th[aria-sort=ascending] .arrow::after { content: "\2191"; } th[aria-sort=descending] .arrow::after { content: "\2193"; }
.files td { height: var(--row); padding: 0 .7rem; border-bottom: 1px solid var(--line); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.files tbody tr { cursor: default; }
.files tbody tr:hover { background: var(--bg); }
.files tr.cursor, .files tr.opened, .files tr.cursor:hover { background: var(--accent-soft); }
.files td .kind { vertical-align: top; }
.files td + td .name { color: var(--muted); }
.ghost { display: inline-block; width: 60%; height: .6em; border-radius: 4px; background: var(--track); }
.drawer { border-left: 1px solid var(--line); background: var(--surface); overflow-y: auto; padding: .8rem 1.1rem 2rem; min-width: 0; }
.drawer-bar { display: flex; align-items: center; justify-content: space-between; margin-bottom: .3rem; }
.drawer h2 { font-size: 1.1rem; line-height: 1.3; }
.drawer .path { color: var(--muted); margin: .25rem 0 .7rem; }
.drawer section { margin-top: 1.1rem; }
.drawer h3 { padding-bottom: .25rem; border-bottom: 1px solid var(--line); margin-bottom: .4rem; }
.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem 1rem; margin-top: .8rem; }
.drawer section .facts { margin-top: 0; }
.facts dt { color: var(--muted); }
.facts dd, .hash { overflow-wrap: anywhere; }
.copies { list-style: none; display: grid; grid-template-columns: minmax(0, 1fr); gap: .5rem; overflow-wrap: anywhere; }
.drawer pre { max-height: 24rem; overflow: auto; background: var(--sunken); padding: .7rem; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere; }
.drawer details { margin-top: .6rem; }
.under { display: none; }

/* Folders */
.view-folders { height: 100%; display: flex; flex-direction: column; padding-bottom: 1.1rem; }
.crumbs { display: flex; flex-wrap: wrap; align-items: center; gap: .15rem .45rem; font-size: 1.05rem; overflow-wrap: anywhere; }
.crumbs .sep { color: var(--muted); }
.folder-split { flex: 1; min-height: 0; display: grid; grid-template-columns: minmax(24rem, 38%) minmax(0, 1fr); gap: 1.1rem; }
.tree-scroll { overflow: auto; background: var(--surface); border: 1px solid var(--line); border-radius: 10px; padding: .3rem .9rem .6rem; }
.tree thead th { position: sticky; top: -.3rem; background: var(--surface); z-index: 1; padding-top: .5rem; }
.tree-name { display: flex; align-items: baseline; gap: .3rem; }
.tree-name .above { display: block; font-size: .9em; }
.tree-name.leaf { padding-left: 1.5rem; }
.twist { border: 0; background: none; padding: 0; min-height: 0; width: 1.2rem; height: 1.2rem; justify-content: center; color: var(--muted); flex: none; }
.twist[aria-expanded=true] { transform: rotate(90deg); }
.share-cell { min-width: 6.5rem; white-space: nowrap; }
.share-cell .meter { display: inline-block; width: 3.4rem; margin-right: .4rem; vertical-align: middle; }
.share-cell span { font-size: .88rem; }
.treemap { min-height: 16rem; overflow: hidden; border-radius: 8px; }
.treemap svg { display: block; }
.treemap .cell { fill: var(--cell); stroke: var(--edge); }
.treemap .cell.off { fill: var(--sunken); stroke: var(--line); }
.t0 { --cell: #d9e5fb; --edge: #a9c3f3; } .t1 { --cell: #dcefe4; --edge: #a7d5ba; } .t2 { --cell: #fbe9cf; --edge: #e9c68c; } .t3 { --cell: #ebe0f7; --edge: #c9b0e6; }
.t4 { --cell: #d5eef0; --edge: #9acfd4; } .t5 { --cell: #fadfe2; --edge: #edb0b8; } .t6 { --cell: #e9ecd2; --edge: #c7cd92; } .t7 { --cell: #e2e6ec; --edge: #b9c2cf; }
.cell.own { --cell: var(--sunken); --edge: var(--line); }
.inner { fill: #fff; fill-opacity: .42; pointer-events: none; }
.inner.files { fill-opacity: .16; }
@media (prefers-color-scheme: dark) {
  .t0 { --cell: #223457; --edge: #3d5a92; } .t1 { --cell: #1d3a2b; --edge: #356a4e; } .t2 { --cell: #44341a; --edge: #7a5f30; } .t3 { --cell: #352a4a; --edge: #5d4a84; }
  .t4 { --cell: #1a393d; --edge: #316a71; } .t5 { --cell: #472a2f; --edge: #804b54; } .t6 { --cell: #353a1e; --edge: #636b38; } .t7 { --cell: #2c333c; --edge: #505b69; }
  .inner { fill-opacity: .07; } .inner.files { fill-opacity: .02; }
}
.treemap text { fill: var(--text); pointer-events: none; }
.treemap .cell-label { font-weight: 620; }
.treemap .cell-size { font-size: .9em; }
.treemap .inner-label { font-size: .85em; }
.treemap a:hover .cell { stroke: var(--accent); stroke-width: 2; }
.treemap a:focus-visible { outline: none; }
.treemap a:focus-visible .cell { stroke: var(--accent); stroke-width: 3; }

/* Duplicates */
.tabs { display: flex; gap: .3rem; border-bottom: 1px solid var(--line); margin-bottom: .8rem; overflow-x: auto; overflow-y: hidden; }
.tabs a { padding: .5rem .9rem; color: var(--muted); border-bottom: 2px solid transparent; white-space: nowrap; display: flex; gap: .5rem; align-items: baseline; }
.tabs a:hover { color: var(--text); text-decoration: none; }
.tabs a[aria-current] { color: var(--text); font-weight: 620; border-color: var(--accent); }
.lead { max-width: 60rem; margin-bottom: .8rem; }
.pick { display: inline-flex; align-items: center; gap: .4rem; color: var(--muted); }
.pick select { color: var(--text); min-height: 1.9rem; }
.groups { display: grid; gap: .7rem; margin-top: .9rem; }
.group { background: var(--surface); border: 1px solid var(--line); border-radius: 10px; padding: .7rem 1.1rem; content-visibility: auto; contain-intrinsic-size: auto 9rem; min-width: 0; }
.group-head { display: flex; flex-wrap: wrap; gap: .2rem .8rem; align-items: baseline; margin-bottom: .25rem; }
.group-head h2 { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; max-width: 46rem; min-width: 0; }
.gain { margin-left: auto; white-space: nowrap; }
.pill.good ~ .gain { color: var(--good); }
.copy-no { white-space: nowrap; min-width: 2.4rem; }

/* Machines and settings */
.machines { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 42rem), 1fr)); margin-bottom: 1rem; align-items: start; }
.machine-head { display: flex; flex-wrap: wrap; gap: .5rem 1rem; justify-content: space-between; align-items: flex-start; }
.machine-head h2 { display: flex; align-items: center; gap: .55rem; font-size: 1.15rem; }
.facts.across { grid-template-columns: max-content minmax(0, 1fr) max-content minmax(0, 1fr); margin: .7rem 0; font-size: .95rem; }
.disk { width: 11rem; font-size: .88rem; }
.roots .muted { overflow-wrap: anywhere; }
.disk .meter { margin: .35rem 0 .2rem; }
.roots .small { margin-top: .3rem; }
.errors { margin-top: .7rem; }
.errors summary { cursor: pointer; }
.menu { position: relative; }
.menu summary { list-style: none; }
.menu summary::-webkit-details-marker { display: none; }
.menu-items { position: absolute; right: 0; top: calc(100% + .3rem); z-index: 5; background: var(--raised); border: 1px solid var(--line); border-radius: 9px; box-shadow: var(--shadow); padding: .35rem; display: grid; min-width: 14rem; }
.menu-items button { border: 0; background: none; }
.menu-items button:hover { background: var(--bg); }
.how { display: grid; gap: .6rem; }
.paste { display: grid; grid-template-columns: 11rem minmax(0, 1fr) auto; gap: .8rem; align-items: center; }
.paste code { background: var(--sunken); border-radius: 6px; padding: .45rem .7rem; overflow-wrap: anywhere; }
.field { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 26rem); gap: .4rem 2rem; padding: .8rem 0; border-top: 1px solid var(--line); }
.card > h2 + .field, section > h3 + .field { border-top: 0; }
.field label { font-weight: 600; }
.field { position: relative; }
.field.held::before { content: ""; position: absolute; left: -1.1rem; top: .8rem; bottom: .8rem; width: 3px; background: var(--accent); border-radius: 0 2px 2px 0; }
.field.dirty label::after { content: " \2022"; color: var(--accent); }
.field code { font-size: .82rem; }
.field-input input:not([type=checkbox]), .field-input select, .field-input textarea { width: 100%; }
.field-input textarea { font-family: var(--mono); font-size: .9rem; resize: vertical; display: block; }
.field-status { font-size: .9rem; margin-top: .25rem; overflow-wrap: anywhere; }
.field-problem { color: var(--bad); }
.switch { appearance: none; width: 2.4rem !important; height: 1.35rem !important; border-radius: 99px; background: var(--strong-line); border: 0; padding: 0; position: relative; cursor: pointer; }
.switch::after { content: ""; position: absolute; inset: .18rem auto .18rem .2rem; width: 1rem; border-radius: 50%; background: #fff; transition: left .12s; }
.switch:checked { background: var(--accent); }
.switch:checked::after { left: 1.2rem; }
.overrides { list-style: none; color: var(--muted); font-size: .93rem; padding-bottom: .6rem; }
.view-settings { max-width: 72rem; }
.view-settings .card { margin-bottom: 1rem; }
.save-bar { position: sticky; bottom: 1rem; display: flex; gap: .7rem; align-items: center; justify-content: flex-end; background: var(--raised); border: 1px solid var(--line); border-radius: 10px; padding: .6rem 1rem; box-shadow: var(--shadow); }
dialog { border: 1px solid var(--line); border-radius: 12px; background: var(--surface); color: var(--text); padding: 0; width: min(34rem, calc(100vw - 1.5rem)); max-height: min(46rem, calc(100dvh - 2rem)); box-shadow: var(--shadow); overflow: hidden; flex-direction: column; }
dialog[open] { display: flex; }
dialog.wide { width: min(54rem, calc(100vw - 1.5rem)); }
dialog::backdrop { background: rgb(10 14 22 / .45); }
dialog header, dialog footer { display: flex; align-items: center; gap: .6rem; padding: .8rem 1.2rem; flex: none; }
dialog header { justify-content: space-between; border-bottom: 1px solid var(--line); }
dialog footer { justify-content: flex-end; border-top: 1px solid var(--line); }
.dialog-body { padding: 1rem 1.2rem; overflow: auto; display: grid; gap: .7rem; align-content: start; overflow-wrap: anywhere; }
.check-grid { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; }
.check { display: flex; gap: .5rem; align-items: center; }
.choices { display: grid; grid-template-columns: 1fr 1fr; gap: .7rem; }
.choice { flex-direction: column; padding: .9rem; color: var(--text); }
.choice span { color: var(--muted); font-size: .92rem; }
.keys { display: grid; grid-template-columns: max-content 1fr; gap: .45rem 1.2rem; }
.keys dt { display: flex; gap: .25rem; flex-wrap: wrap; max-width: 14rem; }
.browse { list-style: none; max-height: 22rem; overflow: auto; border: 1px solid var(--line); border-radius: 8px; padding: .3rem; }
.entry { width: 100%; border: 0; background: none; justify-content: flex-start; min-height: 1.9rem; padding: .15rem .6rem; text-align: left; }
button.entry:hover { background: var(--bg); }
.folder-icon { width: 1rem; height: .75rem; border-radius: 2px; background: var(--subtitle); flex: none; }
dialog input[type=text] { flex: 1; }

/* Narrower */
@media (max-width: 1250px) {
  .view.library.drawer-open { grid-template-columns: 15.5rem minmax(0, 1fr); }
  .drawer { position: absolute; z-index: 6; right: 0; top: 0; bottom: 0; width: min(28rem, 100%); box-shadow: var(--shadow); }
}
@media (max-width: 1000px) {
  body { grid-template-columns: 3.6rem minmax(0, 1fr); }
  .side { padding: .6rem .4rem; }
  .side a { justify-content: center; padding: .6rem; }
  .side .label, .side .badge { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .brand { width: auto; }
  .view.library, .view.library.drawer-open { grid-template-columns: minmax(0, 1fr); }
  .filters { display: none; }
  .show-filter .filters { display: block; position: absolute; z-index: 6; left: 0; top: 3.1rem; bottom: 0; width: min(19rem, 100%); box-shadow: var(--shadow); }
  .narrow-only { display: inline-flex; }
  .folder-split { grid-template-columns: minmax(0, 1fr); grid-template-rows: minmax(14rem, 45%) minmax(0, 1fr); }
  .folder-split .treemap { order: -1; }
  .field { grid-template-columns: minmax(0, 1fr); }
}
@media (max-width: 700px) {
  :root { --row: 46px; }
  body { grid-template: 3.2rem minmax(0, 1fr) 3.5rem / minmax(0, 1fr); }
  .top { padding: 0 .7rem; gap: .6rem; }
  .brand { font-size: 0; gap: 0; }
  .search kbd, .live .label, #keys { display: none; }
  .lost { top: 3.2rem; font-size: .9rem; line-height: 1.3; }
  body:has(.lost:not([hidden])) main { margin-top: 4.3rem; }
  body:has(.lost:not([hidden])) .side { margin-top: 0; }
  .side { grid-row: 3; border: 0; border-top: 1px solid var(--line); padding: 0; overflow: visible; }
  .side ul { grid-template-columns: repeat(7, 1fr); gap: 0; height: 100%; }
  .side li { min-width: 0; }
  .side a { flex-direction: column; gap: .1rem; padding: .45rem 0; border-radius: 0; height: 100%; background: none; }
  .side a[aria-current] { box-shadow: inset 0 2px var(--accent); background: none; }
  .side .label { position: static; width: auto; height: auto; clip-path: none; font-size: .68rem; max-width: 100%; overflow: hidden; text-overflow: ellipsis; font-weight: 500; }
  .view { padding: .9rem .8rem 2rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .6rem; }
  .tile { padding: .6rem .8rem; }
  .tile strong { font-size: 1.35rem; }
  .card { padding: .8rem .85rem; }
  .low { display: none; }
  .results > .bar { padding: .45rem .7rem; }
  .files thead th { height: 2.1rem; }
  .files td { padding: 0 .7rem; line-height: 1.3; }
  .files .under { display: block; font-size: .85rem; color: var(--muted); overflow: hidden; text-overflow: ellipsis; }
  .vl-space { min-width: 0; }
  .files { width: 100% !important; }
  .view-folders { height: auto; }
  .wide-only { display: none; }
  .folder-split { display: flex; flex-direction: column; }
  .treemap { height: 15rem; flex: none; }
  .tree-scroll { overflow: visible; padding: .2rem .7rem; }
  .share-cell { min-width: 0; }
  .share-cell .meter { display: none; }
  .group-head h2 { white-space: normal; overflow-wrap: anywhere; }
  .group td:last-child, .copy-no { display: none; }
  .group tr { display: grid; grid-template-columns: minmax(0, 1fr) auto; padding: .3rem 0; border-bottom: 1px solid var(--line); }
  .group tr:last-child { border-bottom: 0; }
  .group td { border: 0; padding: 0; }
  .group td.grow { grid-row: 2; grid-column: 1 / -1; }
  .group .who { color: var(--muted); }
  .roots thead { display: none; }
  .roots tr { display: grid; grid-template-columns: minmax(0, 1fr) auto; padding: .4rem 0; border-bottom: 1px solid var(--line); }
  .roots td, .roots td:last-child { border: 0; padding: 0; }
  .roots td.files-cell { text-align: left; color: var(--muted); }
  .how-many::after { content: " files"; }
  .facts.across { grid-template-columns: max-content minmax(0, 1fr); }
  .paste { grid-template-columns: minmax(0, 1fr) auto; }
  .paste > :first-child { grid-column: 1 / -1; margin-bottom: -.5rem; }
  .machine-head .row { width: 100%; }
  .progress-head .numbers { margin-left: 0; width: 100%; }
  .toasts { bottom: 4.2rem; }
  .save-bar { bottom: 0; }
}
''',
    "toast.js": r'''// Short messages at the edge of the page, read out by screen readers.

import { el } from "./dom.js";

export function toast(text, kind = "info") {
  const node = el("div", { class: `toast ${kind}` }, text);
  const toasts = document.getElementById("toasts");
  for (const other of toasts.querySelectorAll(".toast")) if (other.textContent === text) other.remove();
  toasts.append(node);
  setTimeout(() => node.remove(), kind === "bad" ? 9000 : 4000);
}

export function toastError(error) {
  if (error.name === "AbortError") return;
  toast(error.detail ? `${error.message}: ${error.detail}` : error.message, "bad");
}

// Wraps an action of a button: what fails is told, never thrown away.
export function told(work) {
  return async (...args) => {
    try { return await work(...args); } catch (error) { toastError(error); return undefined; }
  };
}
''',
    "treemap.js": r'''// A squarified treemap in SVG: area is size. Two levels, so that one sees into the large folders.

import { shorten } from "./charts.js";
import { el, plainName, put, svg } from "./dom.js";
import { bytes, count } from "./format.js";

const LEAST_AREA = 14;

// Bruls, Huizing, van Wijk: rows are filled along the shorter side while their shapes get squarer.
function squarify(items, box) {
  const placed = [];
  const all = items.reduce((sum, item) => sum + item.bytes, 0);
  if (!all || box.width <= 0 || box.height <= 0) return placed;
  const scale = (box.width * box.height) / all;
  let { x, y, width, height } = box;
  let rest = items.filter((item) => item.bytes > 0).map((item) => ({ item, area: item.bytes * scale }));
  while (rest.length) {
    const side = Math.min(width, height);
    let taken = 1;
    let sum = rest[0].area;
    let worst = Math.max((side * side) / sum, sum / (side * side));
    while (taken < rest.length) {
      const next = sum + rest[taken].area;
      const bad = Math.max((side * side * rest[0].area) / (next * next),
        (next * next) / (side * side * rest[taken].area));
      if (bad > worst) break;
      worst = bad;
      sum = next;
      taken += 1;
    }
    const depth = sum / side;
    let along = 0;
    for (const { item, area } of rest.slice(0, taken)) {
      const part = area / depth;
      placed.push(width >= height ? { item, x, y: y + along, width: depth, height: part }
        : { item, x: x + along, y, width: part, height: depth });
      along += part;
    }
    if (width >= height) { x += depth; width -= depth; } else { y += depth; height -= depth; }
    rest = rest.slice(taken);
    if (width < 0.5 || height < 0.5) break;
  }
  return placed;
}

export class Treemap {
  // `link(item)` → address of a folder
  constructor(link) {
    this.link = link;
    this.items = [];
    this.node = el("div", { class: "treemap" });
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.node);
  }

  destroy() { this.observer.disconnect(); }

  show(items) {
    this.items = items;
    this.drawn = "";
    this.draw();
  }

  draw() {
    const width = this.node.clientWidth;
    const height = this.node.clientHeight;
    const key = `${width}x${height}`;
    if (!width || !height || key === this.drawn) return;
    this.drawn = key;
    const style = getComputedStyle(this.node);
    const em = parseFloat(style.fontSize);
    this.family = style.fontFamily;
    const cells = squarify(this.items, { x: 0, y: 0, width, height });
    put(this.node, svg("svg", { width, height, role: "group",
      "aria-label": "Treemap of the folders by size" },
      cells.filter((cell) => cell.width * cell.height >= LEAST_AREA).map((cell, i) =>
        this.cell(cell, i, em))));
  }

  cell(cell, i, em) {
    const { item } = cell;
    const words = `${plainName(item.name)}: ${bytes(item.bytes)}, ${count(item.files)} files${item.state === "offline" ? ", offline" : ""}`;
    const head = cell.width > em * 3.5 && cell.height > em * 1.7;
    const tone = item.own ? "own" : `t${i % 8}`;
    const parts = [svg("title", null, words), svg("rect",
      { class: `cell ${tone} ${item.state === "offline" ? "off" : ""}`, x: cell.x + 0.75, y: cell.y + 0.75,
      width: Math.max(0.5, cell.width - 1.5), height: Math.max(0.5, cell.height - 1.5), rx: 3 })];
    if (head && item.folders && item.folders.length && cell.height > em * 4) parts.push(this.inner(cell, em));
    if (head) parts.push(this.label(cell, em));
    return svg("a", { href: this.link(item), "aria-label": words }, parts);
  }

  inner(cell, em) {
    const box = { x: cell.x + 4, y: cell.y + em * 3.1, width: cell.width - 8,
      height: cell.height - em * 3.1 - 4 };
    const rest = cell.item.bytes - cell.item.folders.reduce((sum, folder) => sum + folder.bytes, 0);
    const parts = rest > 0 ? [...cell.item.folders,
      { name: "", bytes: rest }].sort((a, b) => b.bytes - a.bytes) : cell.item.folders;
    return squarify(parts, box).filter((one) => one.width * one.height >= LEAST_AREA * 3).map((one) => [
      svg("rect", { class: one.item.name ? "inner" : "inner files", x: one.x + 0.5, y: one.y + 0.5,
        width: Math.max(0.5, one.width - 1), height: Math.max(0.5, one.height - 1), rx: 2 }),
      one.item.name && one.width > em * 4 && one.height > em * 1.5
        ? this.text(one.x + em * 0.35, one.y + em * 1.05, one.width - em * 0.7, em * 0.85,
        plainName(one.item.name), "inner-label") : null,
    ]);
  }

  label(cell, em) {
    const room = cell.width - em;
    const two = cell.height > em * 2.9;
    return [this.text(cell.x + em * 0.5, cell.y + em * 1.3, room, em, plainName(cell.item.name),
      "cell-label"),
      two ? this.text(cell.x + em * 0.5, cell.y + em * 2.5, room, em * 0.9,
        `${bytes(cell.item.bytes)} \u00B7 ${count(cell.item.files)}`, "cell-size") : null];
  }

  text(x, y, room, em, words, className) {
    const font = `${className === "cell-label" ? "bold " : ""}${em}px ${this.family}`;
    return svg("text", { x, y, class: className }, shorten(words, font, room));
  }
}
''',
    "virtual_list.js": r'''// A table of any length in which only the rows in sight exist. Browsers end elements at some millions of
// pixels, so the scroll height is capped: small steps scroll by pixels, dragging the bar moves by share.

import { el } from "./dom.js";

const MAX_HEIGHT = 6e6;
const SETTLE_MS = 160;

export class VirtualList {
  // options: label, head (thead node), width, draw(tr, index, isCursor), onsight(first, last), onopen(index), oncursor(index)
  constructor(options) {
    Object.assign(this, options);
    this.count = 0;
    this.top = 0;
    this.lastScroll = 0;
    this.cursor = -1;
    this.first = 0;
    Object.assign(this, { view: 0, height: 0, headHeight: 0, rowHeight: 30, rows: [] });
    this.body = el("tbody");
    this.table = el("table", { class: "files", role: "grid", "aria-label": this.label, tabindex: "0" },
      this.cols, this.head, this.body);
    this.frame = el("div", { class: "vl-window" }, this.table);
    this.space = el("div", { class: "vl-space" }, this.frame);
    this.node = el("div", { class: "vl" }, this.space);
    this.node.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.table.addEventListener("keydown", (event) => this.key(event));
    this.body.addEventListener("click", (event) => this.clicked(event));
    this.observer = new ResizeObserver(() => this.measure());
    this.observer.observe(this.node);
  }

  destroy() {
    this.observer.disconnect();
    clearTimeout(this.settling);
  }

  measure() {
    this.view = this.node.clientHeight;
    this.rowHeight = parseFloat(getComputedStyle(this.node).getPropertyValue("--row")) || 30;
    this.headHeight = this.head.getBoundingClientRect().height || this.rowHeight;
    this.setCount(this.count);
  }

  get seen() { return Math.max(0, this.view - this.headHeight); }

  get maxTop() { return Math.max(0, this.count * this.rowHeight - this.seen); }

  get maxScroll() { return Math.max(0, this.height - this.view); }

  setCount(count) {
    this.count = count;
    if (!this.view) return;
    this.height = Math.min(MAX_HEIGHT, count * this.rowHeight + this.headHeight);
    this.space.style.height = `${Math.max(this.height, this.view - 1)}px`;
    this.frame.style.height = `${this.view}px`;
    this.table.setAttribute("aria-rowcount", count + 1);
    this.fit();
    this.moveTo(Math.min(this.top, this.maxTop));
  }

  // As many row elements as fit, drawn again when the window moves.
  fit() {
    const need = Math.min(this.count, Math.ceil(this.seen / this.rowHeight) + 1);
    while (this.rows.length < need) {
      const row = el("tr");
      row.index = -1;
      this.rows.push(row);
      this.body.append(row);
    }
    while (this.rows.length > need) this.rows.pop().remove();
  }

  get scaled() { return this.count * this.rowHeight + this.headHeight > MAX_HEIGHT; }

  scrolled() {
    const scroll = this.node.scrollTop;
    const step = scroll - this.lastScroll;
    this.lastScroll = scroll;
    if (!this.scaled) this.top = scroll;
    else if (scroll <= 0) this.top = 0;
    else if (scroll >= this.maxScroll - 1) this.top = this.maxTop;
    else if (Math.abs(step) < this.view * 2) this.top = Math.min(this.maxTop, Math.max(0, this.top + step));
    else this.top = (scroll / this.maxScroll) * this.maxTop;
    this.paint();
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this.settle(), SETTLE_MS);
  }

  // After scrolling by pixels, the bar is put where the rows in sight really are.
  settle() {
    if (!this.scaled) return;
    const scroll = Math.round((this.top / this.maxTop) * this.maxScroll);
    const edge = this.top > 0 && this.top < this.maxTop;
    this.lastScroll = edge ? Math.min(this.maxScroll - 2, Math.max(1, scroll)) : scroll;
    this.node.scrollTop = this.lastScroll;
  }

  moveTo(top) {
    this.top = Math.min(this.maxTop, Math.max(0, top));
    const scroll = this.scaled ? Math.round((this.top / this.maxTop) * this.maxScroll) : Math.round(this.top);
    // Writing it makes the browser lay out everything at once, and once more after the rows are drawn.
    if (scroll !== this.lastScroll) this.node.scrollTop = scroll;
    this.lastScroll = scroll;
    this.paint();
  }

  paint(all = false) {
    if (!this.view || !this.rows.length) { this.onsight(0, 0); return; }
    const first = Math.min(Math.floor(this.top / this.rowHeight), Math.max(0, this.count - this.rows.length));
    this.turn(first - this.first);
    this.first = first;
    this.rows.forEach((row, i) => {
      const index = first + i;
      if (!all && row.index === index && row.filled) return;
      row.index = index;
      row.setAttribute("aria-rowindex", index + 2);
      row.filled = this.draw(row, index, index === this.cursor);
    });
    this.body.style.transform = `translateY(${first * this.rowHeight - this.top}px)`;
    this.onsight(first, first + this.rows.length - 1);
  }

  // A short move keeps the rows that stay in sight and turns over only the others.
  turn(step) {
    if (Math.abs(step) >= this.rows.length) return;
    for (; step > 0; step -= 1) { const row = this.rows.shift(); this.rows.push(row); this.body.append(row); }
    for (; step < 0; step += 1) { const row = this.rows.pop(); this.rows.unshift(row); this.body.prepend(row);
      }
  }

  setCursor(index, tell = true) {
    if (!this.count) return;
    this.cursor = Math.min(this.count - 1, Math.max(0, index));
    const at = this.cursor * this.rowHeight;
    if (at < this.top) this.moveTo(at);
    else if (at + this.rowHeight > this.top + this.seen) this.moveTo(at + this.rowHeight - this.seen);
    this.paint(true);
    const row = this.rows.find((one) => one.index === this.cursor);
    if (row && row.id) this.table.setAttribute("aria-activedescendant", row.id);
    if (tell) this.oncursor(this.cursor);
  }

  clicked(event) {
    const row = event.target.closest("tr");
    if (!row || !row.filled) return;
    this.setCursor(row.index, false);
    this.onopen(row.index);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("button")) return;
    const page = Math.max(1, Math.floor(this.seen / this.rowHeight) - 1);
    const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page };
    if (event.key in steps) this.setCursor(this.cursor + steps[event.key]);
    else if (event.key === "Home") this.setCursor(0);
    else if (event.key === "End") this.setCursor(this.count - 1);
    else if (event.key === "Enter" && this.cursor >= 0) this.onopen(this.cursor);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}
''',
})


# =================================================================================================
# medialib/catalog_forget.py, from its line 13
# Forgetting on purpose: rows leave the catalogue for good, after their number was said.
# =================================================================================================

FORGET_CHUNK = 1000


class ForgetPlan:
    """What a body of POST /api/agents/forget is about: an agent, one of its roots, or only the
    missing files of either.
    """

    def __init__(self, db, agent_id: str, body: dict):
        self.agent = find_agent(db, agent_id)
        if self.agent is None:
            raise UsageError("this agent is not in the catalogue")
        self.missing_only = bool(body.get("missing_only"))
        roots = read_roots(db, self.agent.id)
        path = body.get("root")
        if path is not None:
            if not isinstance(path, str):
                raise UsageError("root must be a root's path")
            roots = [root for root in roots if root.path == normal_root_path(path)]
            if not roots:
                raise UsageError("this agent has no such root in the catalogue")
        self.whole_agent = path is None
        self.roots = roots

    def count(self) -> dict:
        """{"files", "bytes", "missing"} that would go."""
        files = 0 if self.missing_only else sum(root.files for root in self.roots)
        size = 0 if self.missing_only else sum(root.bytes for root in self.roots)
        missing = sum(root.missing for root in self.roots)
        return {"files": files + missing, "missing": missing,
                "bytes": size + sum(root.missing_bytes for root in self.roots)}


def forget_all(catalog: Catalog, plan: ForgetPlan) -> None:
    """Remove the rows, a chunk at a time so that others can write in between, then the roots."""
    for root in plan.roots:
        while catalog.change(lambda changes, root=root: _forget_chunk(changes, plan, root)):
            pass
    if not plan.missing_only:
        catalog.change(lambda changes: _forget_roots(changes, plan))


def _forget_chunk(changes, plan: ForgetPlan, root) -> int:
    """Rows removed; 0 when none are left."""
    db = changes.db
    states = (1,) if plan.missing_only else (1, 0)
    rows = []
    for state in states:
        index = "file_missing" if state else "file_path"
        rows = db.execute(
            f"SELECT {FILE_COLUMNS_OF_F}, d.key FROM folder d CROSS JOIN file f INDEXED BY {index}"
            f" ON f.folder = d.id AND f.state = {state} WHERE d.root = ? LIMIT ?",
            (root.id, FORGET_CHUNK)).fetchall()
        if rows:
            break
    if not rows:
        return 0
    batch = changes.files_of(plan.agent)
    current = read_root(db, root.id)
    for one in rows:
        _forget_row(changes, batch, current, FileRow(*one[:-1]), rel_of_key(one[-1]))
    return len(rows)


def _forget_row(changes, batch, root, row: FileRow, rel: str) -> None:
    db = changes.db
    meta = read_meta(db, row.id) if row.flags & FLAG_PROBED else None
    batch.changes.take(row, root, rel, meta)
    changes.tools.search.forget_file(db, changes.counters, row.id, row.name)
    for table, column in (("file", "id"), ("metadata", "file"), ("streams", "file"),
                          ("file_error", "file")):
        db.execute(f"DELETE FROM {table} WHERE {column} = ?", (row.id,))
    db.execute("INSERT INTO forgotten VALUES (?, ?)", (changes.counters.next("seq"), row.id))


def _forget_roots(changes, plan: ForgetPlan) -> None:
    db = changes.db
    for root in plan.roots:
        for folder_id, key in db.execute("SELECT id, key FROM folder WHERE root = ?",
                                         (root.id,)).fetchall():
            changes.tools.search.drop_folder(db, folder_id, rel_of_key(key))
        for table in ("folder", "tally", "facet"):
            db.execute(f"DELETE FROM {table} WHERE root = ?", (root.id,))
        db.execute("DELETE FROM root WHERE id = ?", (root.id,))
    # What the agent delivered so far is not here any more: it has to send everything again.
    db.execute("UPDATE agent SET last_rev = 0 WHERE id = ?", (plan.agent.id,))
    for table in ("batch", "rejected"):
        db.execute(f"DELETE FROM {table} WHERE agent = ?", (plan.agent.id,))
    if plan.whole_agent:
        db.execute("DELETE FROM setting WHERE scope = ?", (plan.agent.agent_id,))
        db.execute("DELETE FROM agent WHERE id = ?", (plan.agent.id,))
    changes.tools.forget()


# =================================================================================================
# medialib/catalog_reclassify.py, from its line 13
# Giving rows the kind that new settings say, without waiting for the next scan of their disk.
# =================================================================================================

RECLASSIFY_CHUNK = 1000
EXTENSION_SETTINGS = ("media_extensions", "audio_extensions", "image_extensions",
                      "subtitle_extensions", "xml_extensions", "other_extensions",
                      "junk_exclude_extensions")


def moved_extensions(before: dict, after: dict) -> set:
    """The extensions whose kind may differ between two sets of settings."""
    moved: set = set()
    for name in EXTENSION_SETTINGS:
        moved |= set(before[name]) ^ set(after[name])
    return moved


def reclassify(catalog: Catalog, extensions: set) -> int:
    """Give every row with one of these extensions the kind its agent's settings say; rows changed.
    Each chunk is a transaction of its own, so that agents can deliver in between.
    """
    with catalog.reader() as db:
        words = {text: number for number, text in catalog.words(db).items()}
        agents = {row[0]: row[1] for row in db.execute("SELECT id, agent_id FROM agent")}
        classifiers = {number: Classifier(settings_of(db, agent_id))
                       for number, agent_id in agents.items()}
    changed = 0
    for text in sorted(extensions):
        number, after = words.get(text), 0
        while number is not None and after is not None:
            count, after = catalog.change(
                lambda changes, number=number, text=text, after=after: _reclassify_chunk(
                    changes, classifiers, agents, number, text, after))
            changed += count
    return changed


def _reclassify_chunk(changes, classifiers, agents, ext: int, text: str, after: int) -> tuple:
    """(rows changed, the last row looked at or None at the end)."""
    db = changes.db
    rows = db.execute(
        f"SELECT {FILE_COLUMNS_OF_F}, d.root, d.key FROM file f INDEXED BY file_ext"
        " JOIN folder d ON d.id = f.folder WHERE f.ext = ? AND f.id > ? ORDER BY f.id LIMIT ?",
        (ext, after, RECLASSIFY_CHUNK)).fetchall()
    roots = {root.id: root for root in read_roots(db)}
    batches, changed = {}, 0
    for one in rows:
        row, root = FileRow(*one[:-2]), roots[one[-2]]
        kind, reason = classifiers[root.agent].classify(row.name, text)
        reason_id = changes.tools.words.id_of(db, reason) if reason else None
        if (KIND_CODES[kind], reason_id) == (row.kind, row.reason):
            continue
        if root.agent not in batches:
            batches[root.agent] = changes.files_of(find_agent(db, agents[root.agent]))
        new = row._replace(kind=KIND_CODES[kind], reason=reason_id, changed=int(changes.now),
                           seq=changes.counters.next("seq"))
        _swap_rows(db, batches[root.agent].changes, root, rel_of_key(one[-1]), row, new)
        changed += 1
    return changed, rows[-1][0] if len(rows) == RECLASSIFY_CHUNK else None


def _swap_rows(db, sums, root, rel: str, old: FileRow, new: FileRow) -> None:
    meta = read_meta(db, old.id) if old.flags & FLAG_PROBED else None
    sums.take(old, root, rel, meta)
    sums.add(new, root, rel, meta)
    db.execute("UPDATE file SET kind = ?, reason = ?, changed = ?, seq = ? WHERE id = ?",
               (new.kind, new.reason, new.changed, new.seq, new.id))


# =================================================================================================
# medialib/server_agents.py, from its line 24
# Steering agents from the host: scan, list, clear, compact, set, forget.
# =================================================================================================

DIRECT_TIMEOUT_S = 3.0
LS_DIRECT_TIMEOUT_S = 10.0
HEARTBEAT_WAIT_S = 36.0
AGENT_CALLS = {
    "scan_now": ("POST", "/agent/scan_now"), "clear_cache": ("POST", "/agent/clear_cache"),
    "compact_cache": ("POST", "/agent/compact_cache"), "ls": ("GET", "/agent/ls"),
}


class AgentControl:
    """The calls of /api/agents/…; `local` is the host's own scanner, None while there is none."""

    def __init__(self, catalog: Catalog, presence: AgentPresence):
        self.catalog = catalog
        self.presence = presence
        self.local = None

    def agent_id(self, body: dict) -> str:
        """The agent a body names by its id, or by its name where that is unique; HttpError 404."""
        wanted = body.get("agent")
        if not isinstance(wanted, str) or not wanted:
            raise HttpError(400, "bad request", "agent must be an agent's id")
        if wanted == LOCAL_AGENT:
            return wanted
        with self.catalog.reader() as db:
            if find_agent(db, wanted) is not None:
                return wanted
            rows = db.execute("SELECT agent_id FROM agent WHERE name = ? LIMIT 2",
                              (wanted,)).fetchall()
        if len(rows) == 1:
            return rows[0][0]
        raise HttpError(404, "no such agent", wanted[:200])

    def scan_now(self, body: dict) -> dict:
        return self._steer(self.agent_id(body), "scan_now", wait=False)

    def clear_cache(self, body: dict) -> dict:
        return self._steer(self.agent_id(body), "clear_cache", wait=True)

    def compact_cache(self, body: dict) -> dict:
        return self._steer(self.agent_id(body), "compact_cache", wait=True)

    def ls(self, body: dict) -> dict:
        path = body.get("path") or ""
        if not isinstance(path, str):
            raise HttpError(400, "bad request", "path must be a text")
        return self._steer(self.agent_id(body), "ls", wait=True, path=path)

    def accept_empty(self, body: dict) -> dict:
        """A root that really was emptied, or whose disk was replaced by another that has no name of
        its own, is taken as it is with its next scan.
        """
        path = self._root_path(body)
        return self._steer(self.agent_id(body), "accept_empty", wait=False, path=path)

    def forget(self, body: dict) -> dict:
        """Without "confirm" only the count; with the count as "confirm" the rows go."""
        agent_id = self.agent_id(body)
        with self.catalog.reader() as db:
            plan = ForgetPlan(db, agent_id, body)
            count = plan.count()
        confirm = body.get("confirm")
        if confirm is None or confirm is False:
            return {"ok": True, **count, "forgotten": False}
        if confirm is not True and confirm != count["files"]:
            raise HttpError(409, "the count has changed",
                            f"it is {count['files']} files now; ask again", extra=count)
        forget_all(self.catalog, plan)
        if plan.whole_agent and not plan.missing_only:
            self.presence.forget(agent_id)
        self.catalog.agents_changed += 1
        return {"ok": True, **count, "forgotten": True}

    def _root_path(self, body: dict) -> str:
        path = body.get("path") or body.get("root")
        if not isinstance(path, str) or not is_absolute_text(normal_root_path(path)):
            raise HttpError(400, "bad request", "path must be the root's absolute path")
        return normal_root_path(path)

    def _steer(self, agent_id: str, do: str, *, wait: bool, **more) -> dict:
        if agent_id == LOCAL_AGENT:
            if self.local is None:
                raise HttpError(404, "no such agent", "this host scans no folders of its own")
            return self.local.obey(do, **more)
        answer = self._ask_directly(agent_id, do, more)
        if answer is not None:
            return answer
        command_id = self.presence.command(agent_id, do, **more)
        if not wait or not self.presence.is_alive(agent_id):
            return self._queued(agent_id, do, wait)
        answer = self.presence.wait_result(command_id, HEARTBEAT_WAIT_S)
        if answer is None:
            return self._queued(agent_id, do, wait)
        if isinstance(answer, dict) and answer.get("ok") is False:
            status = answer.get("status")
            raise HttpError(status if status in (400, 403, 404) else 502,
                            str(answer.get("error", "failed"))[:500],
                            str(answer.get("detail", ""))[:500])
        return answer if isinstance(answer, dict) else {"ok": True, "answer": answer}

    def _queued(self, agent_id: str, do: str, wait: bool) -> dict:
        if do == "ls" or (wait and self.presence.is_alive(agent_id)):
            raise HttpError(504, "the agent has not answered",
                            "it gets the command with its next heartbeat")
        return {"ok": True, "queued": True, "started": False,
                "message": "the agent gets it with its next heartbeat"}

    def _ask_directly(self, agent_id: str, do: str, more: dict) -> dict | None:
        """The answer of the agent's own port, None where it cannot be reached."""
        live = self.presence.get(agent_id)
        if do not in AGENT_CALLS or live is None or live.peer is None:
            return None
        if not self.presence.is_alive(agent_id):
            return None
        port = live.about.get("port") or AGENT_PORT
        if not isinstance(port, int) or not 0 < port < 65536:
            return None
        method, path = AGENT_CALLS[do]
        client = JsonClient("http://" + format_address(live.peer, port),
                            timeout_s=LS_DIRECT_TIMEOUT_S if do == "ls" else DIRECT_TIMEOUT_S)
        try:
            # The port may belong to another agent, or to none, behind the same address.
            if client.get("/agent/ping").get("id") != agent_id:
                return None
            if method == "GET":
                return client.get(f"{path}?{urllib.parse.urlencode({'path': more['path']})}")
            return client.post(path, {}, timeout_s=60.0)
        except PeerRefused as refused:
            if do == "ls" and refused.status in (400, 403, 404):
                raise HttpError(refused.status, refused.error, refused.detail) from refused
            return None
        except (PeerError, NotMedialib) as error:
            log.debug("agent %s is not to be reached directly: %s", agent_id, error)
            return None
        finally:
            client.close()

    # -- settings --------------------------------------------------------------------------------

    def set(self, body: dict) -> dict:
        """{"agent", "roots": [path…], "settings": {name: value or null}}."""
        agent_id = self.agent_id(body)
        values = body.get("settings") or {}
        if not isinstance(values, dict):
            raise HttpError(400, "bad request", "settings must be an object")
        values = dict(values)
        if "roots" in body:
            values["remote_roots"] = body["roots"]
        checked = checked_settings(values, agent_id)
        with self.catalog.reader() as db:
            before = settings_of(db, agent_id)
        self.catalog.write(lambda db: store_settings(db, agent_id, checked))
        self.catalog.agents_changed += 1
        if checked:
            self._take_effect(agent_id)
        with self.catalog.reader() as db:
            after, stored = settings_of(db, agent_id), stored_settings(db, agent_id)
        changed = reclassify(self.catalog, moved_extensions(before, after))
        return {"ok": True, "settings": stored, "reclassified": changed}

    def _take_effect(self, agent_id: str) -> None:
        """New settings matter with a scan; an agent that is away sees them when it comes back."""
        if agent_id == LOCAL_AGENT:
            if self.local is not None:
                self.local.obey("scan_now")
        else:
            self.presence.command(agent_id, "scan_now")


# =================================================================================================
# medialib/server_turns.py, from its line 14
# Lists of the catalogue are made a few at a time, however many ask at once.
# =================================================================================================

LISTS_AT_ONCE = 4
LIST_PATIENCE_S = 20.0


class ListTurns:
    """Who makes a list holds one of a few turns meanwhile."""

    def __init__(self, count: int = LISTS_AT_ONCE):
        self._turns = threading.BoundedSemaphore(count)

    @contextlib.contextmanager
    def holding(self, patience_s: float = LIST_PATIENCE_S):
        """Hold a turn inside the block, or HttpError 503."""
        if not self._turns.acquire(timeout=patience_s):
            raise HttpError(503, "busy with other lists", "try again soon", {"Retry-After": "5"})
        try:
            yield
        finally:
            self._turns.release()


# =================================================================================================
# medialib/server_events.py, from its line 11
# Server-sent events: counts, progress and news of agents, for pages that are open.
# =================================================================================================

EVENT_STEP_S = 1.0
PING_EVERY_S = 10.0


def event_bytes(name: str, data) -> bytes:
    text = json.dumps(data, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n".encode()


def event_counts(db) -> dict:
    """The numbers a page shows all the time; a few rows are read."""
    roots = read_roots(db)
    return {
        "files": sum(root.files for root in roots), "bytes": sum(root.bytes for root in roots),
        "missing": sum(root.missing for root in roots),
        "offline": sum(root.files for root in roots if root.state == "offline"),
        "seq": db.execute("SELECT value FROM counter WHERE name = 'seq'").fetchone()[0],
    }


class EventStream:
    """The pieces of one listener's stream. Empty pieces let the server see that he is gone."""

    def __init__(self, catalog, presence, stopping):
        self.catalog = catalog
        self.presence = presence
        self.stopping = stopping
        self._seq: int | None = None
        self._agents = None
        self._active: set = set()
        self._told: dict = {}

    def __iter__(self):
        yield b"retry: 3000\n\n"
        ping_at = time.monotonic() + PING_EVERY_S
        while not self.stopping.is_set():
            pieces, now = b"".join(self._news()), time.monotonic()
            if not pieces and now >= ping_at:
                pieces = event_bytes("ping", {})
            if pieces:
                ping_at = now + PING_EVERY_S
            yield pieces
            if self.stopping.wait(EVENT_STEP_S):
                return

    def _news(self):
        yield from self._counts()
        yield from self._agent_news()
        yield from self._progress()

    def _counts(self):
        if self.catalog.seq == self._seq:
            return
        self._seq = self.catalog.seq
        try:
            with self.catalog.reader() as db:
                counts = event_counts(db)
        except MedialibError:
            return
        yield event_bytes("counts", counts)

    def _agent_news(self):
        """Something lasting about agents, their roots or their settings is new."""
        now = self.catalog.clock()
        state = (self.catalog.agents_changed,
                 tuple(sorted((live.agent_id, live.is_alive(now), str(live.signature))
                              for live in self.presence.all().values())))
        if self._agents is not None and state != self._agents:
            yield event_bytes("agents", {})
        self._agents = state

    def _progress(self):
        """Each agent's live figures while it scans, and once when it ends."""
        for live in self.presence.all().values():
            stats = self.presence.stats_of(live)
            active, stamp = bool(stats.get("active")), stats.get("ts")
            if (active or live.agent_id in self._active) and self._told.get(
                    live.agent_id) != stamp:
                self._told[live.agent_id] = stamp
                yield event_bytes("progress", {"agent": live.agent_id, "stats": stats})
            (self._active.add if active else self._active.discard)(live.agent_id)


# =================================================================================================
# medialib/server_export.py, from its line 18
# Exports: everything a filter matches, streamed as CSV or JSON lines, in constant memory.
# =================================================================================================

EXPORT_COLUMNS = (
    "id", "agent", "root", "path", "name", "kind", "ext", "size", "mtime", "ctime", "inode_key",
    "state", "reason", "algo", "sample_size", "sample_hash", "full_hash", "duration", "container",
    "video_codec", "audio_codecs", "width", "height", "bitrate", "first_seen", "changed",
)
GROUP_COLUMNS = ("group", "group_state", "copies", "names", "reclaimable", "copy")
SAME_FOLDER_COLUMNS = ("group", "group_state", "copies", "files", "bytes", "reclaimable",
                       "potential", "agent", "root", "path", "state")
EXPORT_WHATS = {"files": EXPORT_COLUMNS, "duplicates": (*GROUP_COLUMNS, *EXPORT_COLUMNS),
                "folders": SAME_FOLDER_COLUMNS}
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
EXPORT_PATIENCE_S = 120.0  # a stream that has begun is not given up for other lists
EXPORT_TYPES = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}


def neutral_cell(value):
    """A text that a spreadsheet would take for a formula gets a quote in front; numbers stay."""
    if isinstance(value, str) and value.startswith(FORMULA_STARTS):
        return "'" + value
    return value


def flat_file(file: dict) -> dict:
    """A file as one line of a table."""
    hashes, metadata = file["hashes"] or {}, file["metadata"] or {}
    return {**{name: file.get(name) for name in EXPORT_COLUMNS}, **{
        name: hashes.get(name) for name in ("algo", "sample_size", "sample_hash", "full_hash")},
        **{name: metadata.get(name) for name in
           ("duration", "container", "video_codec", "width", "height", "bitrate")},
        "audio_codecs": " ".join(metadata.get("audio_codecs") or []),
        "agent": file["agent"]["name"]}


class CsvLines:
    """Rows as RFC 4180 lines. `raw` leaves cells as they are, for machines."""

    def __init__(self, columns: tuple, raw: bool):
        self.columns = columns
        self.raw = raw
        self._text = io.StringIO(newline="")
        self._writer = csv.writer(self._text, lineterminator="\r\n")

    def head(self) -> bytes:
        return self._line(self.columns)

    def row(self, values: dict) -> bytes:
        cells = (values.get(name) for name in self.columns)
        return self._line([cell if self.raw else neutral_cell(cell) for cell in cells])

    def _line(self, cells) -> bytes:
        self._text.seek(0)
        self._text.truncate()
        self._writer.writerow(cells)
        return self._text.getvalue().encode("utf-8")


class Export:
    """POST /api/export for one request. Each page is read in a transaction of its own, so that a
    slow reader does not keep the catalogue's log from being folded back, and is text before the
    reader gets it, so that a slow one does not keep the rows.
    """

    def __init__(self, catalog: Catalog, same_folders: SameFolders, turns: ListTurns, body: dict):
        self.catalog = catalog
        self.same_folders = same_folders
        self.turns = turns
        self.body = body
        self.format = body.get("format", "csv")
        if not isinstance(self.format, str) or self.format not in EXPORT_TYPES:
            raise FilterError("format must be csv or jsonl")
        self.what = body.get("what", "files")
        if not isinstance(self.what, str) or self.what not in EXPORT_WHATS:
            raise FilterError("what must be files, duplicates or folders")
        self.lines = CsvLines(EXPORT_WHATS[self.what], bool(body.get("raw")))
        with turns.holding():  # a wrong filter is refused before anything is sent
            self._first = self._piece(None)

    def reply(self) -> StreamReply:
        what = "identical-folders" if self.what == "folders" else self.what
        name = f"medialib-{what}.{self.format}"
        return StreamReply(self._pieces(), EXPORT_TYPES[self.format],
                           {"Content-Disposition": f'attachment; filename="{name}"'})

    def _pieces(self):
        if self.format == "csv":
            yield self.lines.head()
        (piece, after), self._first = self._first, (b"", None)
        while True:
            yield piece
            if after is None:
                return
            with self.turns.holding(EXPORT_PATIENCE_S):
                piece, after = self._piece(after)

    def _piece(self, after) -> tuple:
        """(text of the page after this place, the place after it)"""
        items, after = self._page(after)
        return b"".join(self._lines(items)), after

    def _lines(self, items: list):
        for item in items:
            if self.format == "jsonl":
                yield json.dumps(item, ensure_ascii=False).encode("utf-8") + b"\n"
            elif self.what == "files":
                yield self.lines.row(flat_file(item))
            elif self.what == "folders":
                for folder in item["folders"]:
                    yield self.lines.row(same_folder_cells(item, folder))
            else:
                for file in item["files"]:
                    yield self.lines.row({**flat_file(file), **group_cells(item, file)})

    def _page(self, after) -> tuple:
        if self.what == "folders":
            answer = self.same_folders.page({**self.body, "after": after, "limit": PAGE_LIMIT})
            return answer["groups"], answer["next"]
        with self.catalog.reader() as db:
            pages = FilePages(self.catalog, db, time_s=5.0)
            if self.what == "duplicates":
                groups = DuplicatePages(db, pages.words, pages.reader)
                return groups.page({**self.body, "after": after, "limit": 100}, highest=100)
            answer = pages.page({
                "filter": self.body.get("filter"), "sort": self.body.get("sort") or "path",
                "order": self.body.get("order"), "limit": PAGE_LIMIT, "after": after})
            return answer["files"], answer["next"]


def group_cells(group: dict, file: dict) -> dict:
    return {"group": group["hash"], "group_state": group["state"], "copies": group["copies"],
            "names": group["names"], "reclaimable": group["reclaimable"], "copy": file["copy"]}


def same_folder_cells(group: dict, folder: dict) -> dict:
    """One of several folders with the same files; what they have in common names the group."""
    first = group["folders"][0]
    return {**{name: group[name] for name in ("copies", "files", "bytes", "reclaimable",
                                              "potential")},
            "group": f"{first['agent']['name']}:{first['path']}", "group_state": group["state"],
            "agent": folder["agent"]["name"], "root": folder["root"], "path": folder["path"],
            "state": folder["state"]}


# =================================================================================================
# medialib/server_metrics.py, from its line 9
# /metrics in Prometheus' text form, from numbers that are kept anyway; no paths as labels.
# =================================================================================================

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def label_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class MetricsText:
    """Collects families; each has HELP and TYPE once."""

    def __init__(self):
        self.lines: list = []

    def family(self, name: str, kind: str, text: str, samples) -> None:
        """`samples`: (labels, value) pairs."""
        self.lines += [f"# HELP medialib_{name} {text}", f"# TYPE medialib_{name} {kind}"]
        for labels, value in samples:
            shown = ",".join(f'{key}="{label_text(str(one))}"' for key, one in labels.items())
            self.lines.append(f"medialib_{name}{{{shown}}} {value}" if shown
                              else f"medialib_{name} {value}")

    def one(self, name: str, kind: str, text: str, value) -> None:
        self.family(name, kind, text, [({}, value)])


def metrics_text(db, ingest, presence, writer, now: float) -> str:
    """The whole page."""
    out, roots, kinds = MetricsText(), read_roots(db), kind_counts(db)
    out.family("build_info", "gauge", "Version of the host.", [({"version": VERSION}, 1)])
    out.family("files", "gauge", "Present files by kind.",
               [({"kind": kind}, count["files"]) for kind, count in sorted(kinds.items())])
    out.family("file_bytes", "gauge", "Bytes of present files by kind.",
               [({"kind": kind}, count["bytes"]) for kind, count in sorted(kinds.items())])
    out.one("missing_files", "gauge", "Files that are gone from their folder.",
            sum(root.missing for root in roots))
    out.one("offline_files", "gauge", "Files on disks that are not connected.",
            sum(root.files for root in roots if root.state == "offline"))
    _root_metrics(out, db, roots)
    _duplicate_metrics(out, duplicate_counts(db))
    _agent_metrics(out, presence, now)
    for name, text in (("batches", "Batches applied."), ("files", "Records accepted."),
                       ("rejected", "Records refused."), ("repeated", "Batches sent again.")):
        out.one(f"ingest_{name}_total", "counter", text, ingest.counts[name])
    out.one("commits_total", "counter", "Transactions committed.", writer.commits)
    return "\n".join(out.lines) + "\n"


def _root_metrics(out: MetricsText, db, roots: list) -> None:
    names = dict(db.execute("SELECT id, name FROM agent").fetchall())
    states: dict = {}
    for root in roots:
        key = (names[root.agent], root.state)
        states[key] = states.get(key, 0) + 1
    out.family("roots", "gauge", "Roots by agent and state.",
               [({"agent": agent, "state": state}, count)
                for (agent, state), count in sorted(states.items())])


def _duplicate_metrics(out: MetricsText, counts: dict) -> None:
    out.family("duplicate_groups", "gauge", "Groups of duplicates.",
               [({"state": "confirmed"}, counts["confirmed_groups"]),
                ({"state": "candidate"}, counts["candidate_groups"])])
    out.one("reclaimable_bytes", "gauge", "Bytes of confirmed copies beyond the first.",
            counts["reclaimable_bytes"])


def _agent_metrics(out: MetricsText, presence, now: float) -> None:
    live = sorted(presence.all().values(), key=lambda agent: agent.agent_id)
    out.family("agent_up", "gauge", "Whether the agent was heard of lately.",
               [({"agent": agent.about.get("name", agent.agent_id), "id": agent.agent_id},
                 int(agent.is_alive(now))) for agent in live])
    out.family("agent_last_seen_timestamp_seconds", "gauge", "When the agent was heard of last.",
               [({"agent": agent.about.get("name", agent.agent_id), "id": agent.agent_id},
                 round(agent.last_seen, 3)) for agent in live])


# =================================================================================================
# medialib/server_openapi.py, from its line 7
# /openapi.json: the API's description, made from the route table itself.
# =================================================================================================

ERROR_SCHEMA = {
    "type": "object", "required": ["ok", "error", "detail"],
    "properties": {"ok": {"const": False}, "error": {"type": "string"},
                   "detail": {"type": "string"}},
}


def openapi_description(routes: list) -> dict:
    """An OpenAPI 3.1 object with every route of the list."""
    paths: dict = {}
    for route in routes:
        paths.setdefault(route["path"], {})[route["method"].lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "medialib host", "version": VERSION,
                 "description": "Queries are JSON bodies. There are no tokens: who may call is "
                                "decided by address, Host and Origin."},
        "paths": paths,
        "components": {"schemas": {"Error": ERROR_SCHEMA}},
    }


def _operation(route: dict) -> dict:
    operation = {
        "summary": route["summary"] or route["path"],
        "operationId": f"{route['method'].lower()}{route['path'].replace('/', '_')}",
        "responses": {
            "200": {"description": "done"},
            "default": {"description": "failed", "content": {"application/json": {
                "schema": {"$ref": "#/components/schemas/Error"}}}},
        },
    }
    if route["body"]:
        operation["requestBody"] = {"content": {"application/json": {
            "schema": {"type": "object", "additionalProperties": True}}}}
    return operation


# =================================================================================================
# medialib/server_routes.py, from its line 47
# The host's calls over HTTP: paths to handlers.
# =================================================================================================

CONTENT_TYPES = {
    "html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8", "svg": "image/svg+xml", "json": "application/json",
    "png": "image/png", "ico": "image/x-icon", "txt": "text/plain; charset=utf-8",
}
AGENT_FILE_MOST = 4 << 20
# What can be a thousand rows.
LISTS = frozenset(("files", "duplicates", "duplicate_folders", "folders", "changes"))


class HostRoutes:
    """Handlers over one catalogue. `control.local` is set by whoever starts the local scanner."""

    def __init__(self, catalog: Catalog, *, agent_file=None, metrics: bool = True):
        self.catalog = catalog
        self.metrics = metrics
        self.stopping = threading.Event()
        self._description: bytes | None = None
        self.presence = AgentPresence(catalog.clock)
        self.ingest = Ingest(catalog, self.presence)
        self.control = AgentControl(catalog, self.presence)
        self.same_folders = SameFolders(catalog)
        self.turns = ListTurns()
        self.host: dict = {}  # how this host is reached: name, addresses, port, scheme
        self.agent_file = agent_file or find_agent_file

    def stop(self) -> None:
        """End what streams to browsers."""
        self.stopping.set()

    def router(self) -> Router:
        router = Router()
        self._add_pages(router)
        self._add_ingest(router)
        self._add_queries(router)
        self._add_agents(router)
        return router

    def _add_pages(self, router: Router) -> None:
        router.add("GET", "/", self.page, summary="The web page")
        router.add("GET", "/agent.py", self.agent_py, summary="The agent that matches this host")
        router.add("GET", "/events", self.events, summary=self.events.__doc__)
        if self.metrics:
            router.add("GET", "/metrics", self.metrics_page, summary=self.metrics_page.__doc__)
        router.add("GET", "/openapi.json", lambda request: self.description(router),
                   summary="This description")
        router.add("GET", "/health", self.health, summary="Can the catalogue be written?")
        for name in web_names():
            router.add("GET", f"/web/{name}", self.page_file, summary="A file of the web page")

    def _add_ingest(self, router: Router) -> None:
        router.add("GET", "/ingest/config", self.config, summary="An agent's configuration")
        for name, method in (("hello", self.ingest.hello), ("batch", self.ingest.batch),
                             ("folders", self.ingest.folders), ("names", self.ingest.names)):
            router.add("POST", f"/ingest/{name}", self._from_agent(method), body=True,
                       summary=(method.__doc__ or "").split("\n")[0])

    def _from_agent(self, method):
        def handle(request) -> dict:
            return method(request.json, request.peer_text)

        if method == self.ingest.batch:
            handle.open_body = open_batch
        return handle

    def _add_queries(self, router: Router) -> None:
        for name, method in (
                ("summary", self.summary), ("files", self.files), ("file", self.file),
                ("facets", self.facets), ("duplicates", self.duplicates),
                ("duplicate_folders", self.duplicate_folders),
                ("folders", self.folders), ("growth", self.growth), ("changes", self.changes),
                ("export", self.export), ("settings", self.settings), ("why", self.why)):
            made = self._in_turn(method) if name in LISTS else method
            router.add("POST", f"/api/{name}", made, body=True,
                       summary=(method.__doc__ or "").split("\n")[0])

    def _in_turn(self, method):
        """Make the list, to its bytes, in one of a few turns."""
        def handle(request) -> Reply:
            with self.turns.holding():
                return Reply(200, json_bytes(method(request)), JSON_TYPE)

        return handle

    def _add_agents(self, router: Router) -> None:
        router.add("POST", "/api/agents", self.agents, body=True, summary="All agents")
        for name in ("scan_now", "ls", "clear_cache", "compact_cache", "set", "accept_empty",
                     "forget"):
            method = getattr(self.control, name)
            router.add("POST", f"/api/agents/{name}", self._with_body(method), body=True,
                       summary=f"Tell an agent: {name.replace('_', ' ')}")

    def _with_body(self, method):
        return lambda request: method(request.json)

    # -- pages -----------------------------------------------------------------------------------

    def page(self, request) -> Reply:
        if self.catalog.problem is not None:
            return Reply(503, f"medialib: the catalogue cannot be used\n\n{self.catalog.problem}\n")
        return served_file("index.html")

    def description(self, router: Router) -> Reply:
        """Made once: it is always the same, and whoever asks for it without end costs no time."""
        if self._description is None:
            self._description = json.dumps(openapi_description(router.routes)).encode("ascii")
        return Reply(200, self._description, CONTENT_TYPES["json"])

    def page_file(self, request) -> Reply:
        return served_file(request.path[len("/web/"):])

    def agent_py(self, request) -> Reply:
        text = self.agent_file()
        if text is None:
            raise HttpError(404, "agent.py is not here", "copy the agent.py of medialib "
                            f"{VERSION} beside server.py, then this address serves it")
        return Reply(200, text, "text/x-python; charset=utf-8",
                     {"Content-Disposition": 'attachment; filename="agent.py"'})

    def health(self, request) -> dict:
        problem = self.catalog.writable()
        if problem is not None:
            raise HttpError(503, "the catalogue cannot be written", problem)
        return {"ok": True, "version": VERSION, "protocol": PROTOCOL,
                "library_id": self.catalog.library_id}

    # -- agents' calls ---------------------------------------------------------------------------

    def config(self, request) -> dict:
        """The configuration for whoever asks: the agent heard last from that address."""
        with self.catalog.reader() as db:
            agent_id = self._agent_at(db, request.peer_text)
            return config_for(db, agent_id, self.catalog.library_id)

    def _agent_at(self, db, peer: str) -> str | None:
        live = [agent for agent in self.presence.all().values() if agent.peer == peer]
        if live:
            return max(live, key=lambda agent: agent.last_seen).agent_id
        row = db.execute("SELECT agent_id FROM agent WHERE address = ? AND agent_id <> ?"
                         " ORDER BY last_seen DESC LIMIT 1", (peer, LOCAL_AGENT)).fetchone()
        return row[0] if row else None

    # -- queries ---------------------------------------------------------------------------------

    def summary(self, request) -> dict:
        """Counts of everything, and all agents"""
        with self.catalog.reader() as db:
            summary = catalog_summary(db, self.catalog.words(db), self.catalog.library_id)
            agents = agent_list(db, self.presence, self.catalog.clock())
        return {"ok": True, "version": VERSION, **summary, "agents": agents, "host": self.host}

    def files(self, request) -> dict:
        """A page of files: filter, sort, order, limit, after"""
        with self.catalog.reader() as db:
            return {"ok": True, **FilePages(self.catalog, db).page(request.json)}

    def facets(self, request) -> dict:
        """How many files match, by kind, codec, machine and so on"""
        with self.catalog.reader() as db:
            return {"ok": True, **FacetCounts(self.catalog, db).answer(request.json)}

    def duplicates(self, request) -> dict:
        """Groups of equal files, largest gain first"""
        with self.catalog.reader() as db:
            pages = FilePages(self.catalog, db)
            groups, token = DuplicatePages(db, pages.words, pages.reader).page(request.json)
        return {"ok": True, "groups": groups, "next": token}

    def duplicate_folders(self, request) -> dict:
        """Folders with the same files, largest gain first"""
        return {"ok": True, **self.same_folders.page(request.json)}

    def folders(self, request) -> dict:
        """A folder's children with files and bytes of everything below them"""
        with self.catalog.reader() as db:
            return {"ok": True, **FolderPages(db).answer(request.json)}

    def growth(self, request) -> dict:
        """The catalogue's size day by day"""
        days = request.json.get("days", 400)
        if type(days) is not int or not 1 <= days <= 10_000:
            raise HttpError(400, "bad request", "days must be a whole number from 1 to 10000")
        with self.catalog.reader() as db:
            rows = daily_rows(db, days)
            today = {"day": local_day(self.catalog.clock()), **event_counts(db)}
        today = {key: today[key] for key in ("day", "files", "bytes", "missing")}
        return {"ok": True, "days": [row for row in rows if row["day"] != today["day"]] + [today]}

    def export(self, request):
        """All files, duplicates or identical folders that match, as CSV or JSON lines"""
        return Export(self.catalog, self.same_folders, self.turns, request.json).reply()

    def events(self, request) -> StreamReply:
        """Server-sent events: counts, progress, agents"""
        return StreamReply(iter(EventStream(self.catalog, self.presence, self.stopping)),
                           "text/event-stream", {"Cache-Control": "no-cache"})

    def metrics_page(self, request) -> Reply:
        """Prometheus text"""
        with self.catalog.reader() as db:
            text = metrics_text(db, self.ingest, self.presence, self.catalog.writer,
                                self.catalog.clock())
        return Reply(200, text, METRICS_TYPE)

    def file(self, request) -> dict:
        """One file with its streams and its other copies"""
        file_id = request.json.get("id")
        if type(file_id) is not int or not 0 <= file_id < 1 << 63:
            raise HttpError(400, "bad request", "id must be a file's number")
        with self.catalog.reader() as db:
            found = FilePages(self.catalog, db).one(file_id)
        if found is None:
            raise HttpError(404, "no such file", str(file_id))
        return {"ok": True, "file": found}

    def why(self, request) -> dict:
        """Why a path of an agent is, or is not, in the catalogue"""
        agent_id, path = request.json.get("agent"), request.json.get("path")
        if not isinstance(agent_id, str) or not isinstance(path, str):
            raise HttpError(400, "bad request", "agent and path must be texts")
        try:
            path = check_path(path)
        except RecordError as error:
            raise HttpError(400, "bad request", str(error)) from None
        with self.catalog.reader() as db:
            agent = find_agent(db, agent_id)
            if agent is None:
                raise HttpError(404, "no such agent", agent_id[:200])
            return {"ok": True, **explain_path(db, agent, path)}

    def changes(self, request) -> dict:
        """Everything that changed after a number, in order"""
        with self.catalog.reader() as db:
            return {"ok": True, **changes_page(db, self.catalog.words(db), request.json)}

    def agents(self, request) -> dict:
        """All agents, or one with what was refused from it"""
        with self.catalog.reader() as db:
            agents = agent_list(db, self.presence, self.catalog.clock())
            wanted = request.json.get("agent")
            if wanted is not None:
                agents = [agent for agent in agents if agent["id"] == wanted]
                found = find_agent(db, wanted) if isinstance(wanted, str) else None
                for agent in agents:
                    agent["rejected_records"] = rejected_of(db, found.id)
        return {"ok": True, "agents": agents}

    def settings(self, request) -> dict:
        """Settings with type, bounds and help; {"set": {name: value}} changes them"""
        values = request.json.get("set")
        changed = 0
        if values is not None:
            changed = self._set_settings(values)
        with self.catalog.reader() as db:
            stored = stored_settings(db, LIBRARY_SCOPE)
            current = settings_of(db)
            agents = {row[0]: stored_settings(db, row[0])
                      for row in db.execute("SELECT agent_id FROM agent").fetchall()}
        table = [{**row, "value": current[row["name"]], "changed": row["name"] in stored}
                 for row in settings_table()]
        return {"ok": True, "settings": table, "values": current, "reclassified": changed,
                "agents": {agent: own for agent, own in agents.items() if own}}

    def _set_settings(self, values) -> int:
        """Store them; how many rows got another kind by that."""
        try:
            checked = checked_settings(values, LIBRARY_SCOPE)
        except SettingError as error:
            raise HttpError(400, "bad setting", str(error),
                            extra={"setting": error.name}) from error
        with self.catalog.reader() as db:
            before = settings_of(db)
        self.catalog.write(lambda db: store_settings(db, LIBRARY_SCOPE, checked))
        self.catalog.agents_changed += 1
        with self.catalog.reader() as db:
            after = settings_of(db)
        return reclassify(self.catalog, moved_extensions(before, after))


def served_file(name: str) -> Reply:
    data = web_file(name)
    if data is None:
        raise HttpError(404, "not found", f"there is no {name[:200]} here")
    return Reply(200, data, CONTENT_TYPES.get(name.rpartition(".")[2], "application/octet-stream"))


def find_agent_file() -> bytes | None:
    """The agent.py of this medialib: from the clone, the installed package, or beside server.py."""
    folders = [os.path.dirname(os.path.abspath(folder))
               for folder in getattr(sys.modules.get("medialib"), "__path__", ())]
    folders.append(os.path.dirname(os.path.abspath(sys.argv[0])))
    found = [package_file("agent_file.txt")]
    for folder in folders:
        try:
            with open(os.path.join(folder, "agent.py"), "rb") as file:
                found.append(file.read(AGENT_FILE_MOST))
        except OSError:
            continue
    return next((text for text in found if text and is_our_agent(text)), None)


def is_our_agent(text: bytes) -> bool:
    """Whether this is medialib's agent of this version, and not some other agent.py."""
    return b"medialib" in text[:2000] and f'VERSION = "{VERSION}"'.encode() in text


# =================================================================================================
# medialib/server_cli.py, from its line 40
# The host's command line: python server.py [ROOT…].
# =================================================================================================

SCAN_POLL_S = 0.5
SCAN_START_S = 30.0
EVERY_ADDRESS = ("", "0.0.0.0", "::")


def server_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="server.py", description="Keep the catalogue of all machines' media and show it.",
        epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 done but something is left over, "
               "4 another instance holds the data folder, 130 interrupted.")
    parser.add_argument("roots", metavar="ROOT", nargs="*",
                        help="folders of this machine to catalogue as well")
    parser.add_argument("--bind", metavar="ADDR", default="",
                        help="address to listen on (default: all)")
    parser.add_argument("--port", type=int, default=HOST_PORT,
                        help=f"port to listen on (default {HOST_PORT})")
    parser.add_argument("--data-dir", metavar="DIR", help="default: ~/.medialib or $MEDIALIB_HOME")
    parser.add_argument("--allow", metavar="CIDR", action="append", default=[],
                        help="answer only these addresses (default: private networks); repeatable")
    parser.add_argument("--host-name", metavar="NAME", action="append", default=[],
                        help="a further name under which browsers reach this host; repeatable")
    parser.add_argument("--certfile", metavar="FILE", help="serve https with this certificate")
    parser.add_argument("--keyfile", metavar="FILE", help="the certificate's key")
    parser.add_argument("--scan", metavar="ROOT", nargs="+",
                        help="scan these folders now, through the running server if there is one, "
                             "and exit")
    parser.add_argument("--backup", metavar="FILE",
                        help="write a checked copy of the catalogue and exit")
    parser.add_argument("--no-metrics", action="store_true", help="do not serve /metrics")
    parser.add_argument("--version", action="version", version=f"medialib {VERSION}")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-v", "--verbose", action="store_true", help="more messages")
    loudness.add_argument("-q", "--quiet", action="store_true", help="warnings only")
    return parser


def server_main(argv=None) -> int:
    """Run the host; the exit code."""
    arguments = server_parser().parse_args(argv)
    try:
        if arguments.keyfile and not arguments.certfile:
            raise UsageError("--keyfile needs --certfile")
        return ServerProgram(arguments).run()
    except MedialibError as error:
        print(f"server.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


class ServerProgram:
    """One run of the host: data folder, lock, catalogue, port, local scanner, signals."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.folder = data_folder(arguments.data_dir)
        self.catalog_path = os.path.join(self.folder, CATALOG_FILE)
        self.stop_requested = threading.Event()
        self.interrupted = None

    def run(self) -> int:
        if self.arguments.backup:
            return backup_catalogue(self.catalog_path, self.arguments.backup)
        verbosity = self.arguments.verbose - self.arguments.quiet
        lock = FolderLock(self.folder, "host")
        try:
            lock.acquire()
        except FolderBusyError:
            if self.arguments.scan:
                return scan_through_server(lock, self.given_roots(self.arguments.scan),
                                           quiet=self.arguments.quiet)
            raise
        try:
            setup_logging(os.path.join(self.folder, "server.log"), verbosity)
            return self._run_locked(lock)
        finally:
            lock.release()

    def given_roots(self, roots: list) -> list:
        """Roots of the command line as absolute text paths; what is not there is said."""
        for root in roots:
            if not os.path.isdir(os.path.expanduser(root)):
                print(f"server.py: {to_text(root)} is not there now; it is kept as offline",
                      file=sys.stderr)
        return [absolute_root(to_text(root)) for root in roots]

    def _run_locked(self, lock: FolderLock) -> int:
        catalog = Catalog(self.catalog_path, keep_copy=keep_copy_before_upgrade(self.folder))
        try:
            routes = HostRoutes(catalog, metrics=not self.arguments.no_metrics)
            roots = self.given_roots(self.arguments.scan or self.arguments.roots)
            local = self._local_scan(catalog, routes, roots)
            if self.arguments.scan:
                return self._scan_and_exit(catalog, local)
            return self._serve(catalog, routes, local, lock)
        finally:
            catalog.close()

    def _local_scan(self, catalog: Catalog, routes: HostRoutes, roots: list) -> LocalScan | None:
        """The scanner of this machine's own folders; those of the command line are remembered."""
        if catalog.problem is not None:
            return None
        if roots:
            add_local_roots(catalog, roots)
        local = LocalScan(routes.ingest, self.folder, host_name())
        routes.control.local = local
        routes.presence.own_stats[LOCAL_AGENT] = local.service.stats_answer
        return local

    def _scan_and_exit(self, catalog: Catalog, local: LocalScan | None) -> int:
        if local is None:
            raise MedialibError(catalog.problem)
        self._catch_signals(local.service.request_stop)
        progress = ProgressLine(sys.stderr, local.service.stats_answer,
                                quiet=self.arguments.quiet)
        progress.start()
        try:
            left_over = local.run_once()
        finally:
            progress.stop()
            local.stop()
        if self.interrupted is not None:
            return EXIT_INTERRUPTED
        if not self.arguments.quiet:
            print(summary_text(local.service.stats_answer()))
        for words in left_over:
            print(f"left over: {words}", file=sys.stderr)
        return EXIT_LEFT_OVER if left_over else EXIT_DONE

    def _serve(self, catalog, routes, local, lock) -> int:
        arguments = self.arguments
        gate = Gate(arguments.allow or None, arguments.host_name)
        server = JsonServer(arguments.bind, arguments.port, routes.router(), gate,
                            certfile=arguments.certfile, keyfile=arguments.keyfile)
        lock.write_holder({"port": server.port, "address": arguments.bind,
                           "tls": bool(arguments.certfile)})
        routes.host = {"name": host_name(),
                       "addresses": reached_at(arguments.bind)[:8],
                       "port": server.port, "scheme": "https" if arguments.certfile else "http"}
        self._catch_signals(self.stop_requested.set)
        give_large_blocks_back()
        settle_memory()
        upkeep = HostUpkeep(catalog, self.folder)
        server.start()
        upkeep.start()
        if local is not None:
            local.start()
        try:
            if not arguments.quiet:
                print(welcome_text(arguments, server.port, catalog), flush=True)
            while not self.stop_requested.wait(3600):
                pass
        finally:
            self._stop_all(server, upkeep, local, routes)
        return EXIT_INTERRUPTED if self.interrupted == signal.SIGINT else EXIT_DONE

    def _stop_all(self, server, upkeep, local, routes) -> None:
        """All at once: whoever stopped us waits at most some seconds."""
        routes.stop()
        steps = [threading.Thread(target=step, daemon=True) for step in (
            server.stop, upkeep.stop, *([local.stop] if local is not None else []))]
        for step in steps:
            step.start()
        end = time.monotonic() + 4.0
        for step in steps:
            step.join(max(0.0, end - time.monotonic()))
        log.info("stopped")

    def _catch_signals(self, stop) -> None:
        def caught(number) -> None:
            if self.interrupted is not None:
                raise KeyboardInterrupt
            self.interrupted = number

        catch_stop_signals(caught, stop)


def host_name() -> str:
    """What this machine calls itself."""
    return to_text(platform.node() or LOCAL_AGENT)[:200]


def add_local_roots(catalog: Catalog, roots: list) -> None:
    """Put roots among those of the host's own scanner, where the page shows them."""
    def add(db) -> None:
        known = stored_settings(db, LOCAL_AGENT).get("remote_roots", [])
        store_settings(db, LOCAL_AGENT, {"remote_roots": merged_roots(known, roots)})

    catalog.write(add)


def backup_catalogue(path: str, target: str) -> int:
    """--backup: a checked copy, also while a host is running."""
    if not os.path.exists(path):
        raise MedialibError(f"there is no catalogue {path}")
    size = copy_database(path, os.path.abspath(os.path.expanduser(target)))
    print(f"{target}: {size:,} bytes, checked")
    return EXIT_DONE


def server_url(holder: dict) -> str:
    """Where the running host that holds the lock can be asked, from this machine."""
    if "port" not in holder:
        raise FolderBusyError("another host is just starting or stopping on this data folder")
    address = holder.get("address") or ""
    if address in EVERY_ADDRESS:
        address = "127.0.0.1"
    scheme = "https" if holder.get("tls") else "http"
    return f"{scheme}://{format_address(address, holder['port'])}"


def scan_through_server(lock: FolderLock, roots: list, *, quiet: bool) -> int:
    """--scan while a host runs: it scans, we wait for the end of it."""
    client = JsonClient(server_url(lock.read_holder() or {}), timeout_s=60.0)
    try:
        local = local_state(client)
        known = local.get("remote_roots", [])
        before = scans_of(local, roots)
        client.post("/api/agents/set", {"agent": LOCAL_AGENT,
                                        "roots": merged_roots(known, roots)})
        local = wait_for_scan(client, roots, before)
    except PeerError as error:
        raise MedialibError(f"the running host did not do it: {error}") from error
    finally:
        client.close()
    states = {root["path"]: root for root in local.get("roots", [])}
    code = EXIT_DONE
    for path in roots:
        root = states.get(path, {})
        if root.get("state") == "offline":
            print(f"left over: {path} is offline ({root.get('reason')})", file=sys.stderr)
            code = EXIT_LEFT_OVER
        elif not quiet:
            print(f"{path}: {root.get('files', 0):,} files")
    return code


def local_state(client: JsonClient) -> dict:
    agents = client.post("/api/agents", {}).get("agents", [])
    return next((agent for agent in agents if agent["id"] == LOCAL_AGENT), {})


def scans_of(local: dict, roots: list) -> dict:
    return {root["path"]: root["scan"].get("at") for root in local.get("roots", [])
            if root["path"] in roots}


def wait_for_scan(client: JsonClient, roots: list, before: dict) -> dict:
    """Until each root has ended a scan that began after we asked, or is offline and idle."""
    started = time.monotonic()
    while True:
        time.sleep(SCAN_POLL_S)
        local = local_state(client)
        after = scans_of(local, roots)
        states = {root["path"]: root["state"] for root in local.get("roots", [])}
        active = local.get("stats", {}).get("active")
        waiting = [path for path in roots if states.get(path) != "offline"
                   and (after.get(path) is None or after.get(path) == before.get(path))]
        if not waiting and not active:
            return local
        if waiting and not active and time.monotonic() - started > SCAN_START_S:
            raise MedialibError("the running host does not scan: " + ", ".join(waiting))


def reached_at(bind: str) -> list:
    """The addresses under which this host answers, the ones to show people first."""
    return own_addresses() if bind in EVERY_ADDRESS else [bind]


def welcome_text(arguments, port: int, catalog: Catalog) -> str:
    """What to open, and what to paste on other machines."""
    scheme = "https" if arguments.certfile else "http"
    addresses = reached_at(arguments.bind)
    best = addresses[0] if addresses else "127.0.0.1"
    urls = [f"{scheme}://{format_address(address, port)}" for address in addresses[:4]]
    if arguments.bind in EVERY_ADDRESS:
        urls.append(f"{scheme}://localhost:{port}")
    shown = format_address(best, port) if port != HOST_PORT else best
    host = f"{scheme}://{format_address(best, port)}" if scheme == "https" else shown
    lines = [f"medialib {VERSION}, catalogue {catalog.path}"]
    if catalog.problem is not None:
        lines.append(f"THE CATALOGUE CANNOT BE USED: {catalog.problem}")
    lines += ["Open " + "  or  ".join(f"{url}/" for url in urls),
              "On another machine paste:",
              f"  curl -O {scheme}://{format_address(best, port)}/agent.py"
              f" && python3 agent.py {host}",
              "or copy it there:",
              f"  scp agent.py BOX: && ssh BOX python3 agent.py {host}"]
    return "\n".join(lines)


if __name__ == "__main__":
    launch(server_main)
