"""Server-sent events: counts, progress and news of agents, for pages that are open."""

from __future__ import annotations

import json
import time

from .base import MedialibError
from .catalog_roots import read_roots

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
