"""Who this agent is: a random id in the data folder, apart from the cache, so that clearing the
cache keeps it. It is bound to its place: a copied home folder becomes another agent.
"""

from __future__ import annotations

import json
import os

from .app_folder import write_private_file
from .base import log
from .late import hashlib, socket, uuid
from .scan_common import to_text

AGENT_ID_FILE = "agent_id"


class AgentIdentity:
    """`id` (UUID text) and `name` (host name, or what --name says)."""

    def __init__(self, folder: str | None, name: str | None = None):
        self.path = os.path.join(folder, AGENT_ID_FILE) if folder else None
        self.name = to_text(name or socket.gethostname() or "agent")[:200]
        self.place = place_fingerprint(folder or "")
        if folder is None:  # nowhere to keep it: the same machine and name give the same id
            self.id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{machine_id()}/{self.name}"))
        else:
            self.id = self._read() or self.become(str(uuid.uuid4()))

    def _read(self) -> str | None:
        try:
            with open(self.path, encoding="utf-8") as file:
                saved = json.loads(file.read(4096))
            saved_id = str(uuid.UUID(saved["id"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if saved.get("place") not in (None, self.place):
            log.warning("this data folder came from another place (a copied home?): this machine"
                        " goes on as an agent of its own")
            return None
        return saved_id

    def become(self, new_id: str) -> str:
        """Take this id from now on, and keep it where the folder can be written."""
        self.id = new_id
        if self.path is None:
            return new_id
        try:
            write_private_file(self.path, json.dumps({"id": new_id, "place": self.place}) + "\n")
        except OSError as error:
            log.warning("the agent's id cannot be kept: %s", error)
        return new_id


def machine_id() -> str:
    """The machine's own id, where it lasts: not that of a container, which its image brings."""
    if any(os.path.exists(sign) for sign in ("/.dockerenv", "/run/.containerenv")):
        return ""
    try:
        with open("/etc/machine-id", encoding="ascii") as file:
            return file.read(64).strip()
    except (OSError, ValueError):
        return ""


def place_fingerprint(folder: str) -> str:
    """The machine's own id and the folder's path, as one short text."""
    place = f"{machine_id()}\0{os.path.realpath(folder)}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(place, digest_size=8).hexdigest()
