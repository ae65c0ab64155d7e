"""What all connections share: bytes, the memory of parsed JSON, places for endless answers."""

from __future__ import annotations

import collections
import contextlib
import threading

from .http_json import HttpError

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
