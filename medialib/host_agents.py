"""The agents as the host hears them now: who is alive, what they do, what they are to do.

This is memory, not catalogue: heartbeats come every few seconds and must not wake the disk.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from .catalog_roots import ALIVE_S
from .late import uuid

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
