"""Lists of the catalogue are made a few at a time, however many ask at once.

Each is a thousand rows as Python objects. Fifty at once would take their memory fifty times, and
whoever asks for something small would wait for the interpreter behind fifty threads.
"""

from __future__ import annotations

import contextlib
import threading

from .http_json import HttpError

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
