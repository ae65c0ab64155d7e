"""Batches of one agent that are under way together: each is applied behind the one before it."""

from __future__ import annotations

import collections
import contextlib
import threading

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
