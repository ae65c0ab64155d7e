"""What every other module may use: the version, the logger, the ports and the errors."""

from __future__ import annotations

import logging

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
