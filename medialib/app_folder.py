"""The data folder: where it is, who may use it, its lock, its private files and the log."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import sys
import time

from .base import FolderBusyError, MedialibError, UsageError, log

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:  # everything else
    msvcrt = None

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
