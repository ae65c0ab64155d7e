"""Is the catalogue's file sound? Small ones are read to the end before they are used, large ones
beside all else; and what is said of one that is damaged.
"""

from __future__ import annotations

import os
import threading
import time

from .base import DamagedStoreError, StoreError, log
from .sqlite_store import StoreConnection, check_connection, check_sound, open_reader

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
