"""What the host does by itself: daily copies of the catalogue and the daily row of totals."""

from __future__ import annotations

import contextlib
import os
import threading
import time

from .base import MedialibError, log
from .catalog import Catalog
from .catalog_settings import settings_of
from .catalog_summary import note_daily_totals
from .late import shutil
from .sqlite_store import copy_database, schema_version

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
