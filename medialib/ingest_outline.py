"""The outline of what agents send: who speaks, of which root, how much; all but the records.

Whatever does not fit is refused in whole, with the name of the key.
"""

from __future__ import annotations

import re

from .catalog_schema import LOCAL_AGENT
from .http_json import HttpError
from .ingest_records import is_clean_text
from .settings import is_absolute_text, normal_root_path

BATCH_FILES = 50_000
BATCH_TEXT = 200
REV_MAX = (1 << 63) - 1
AGENT_ID = re.compile(r"[0-9A-Za-z._:@+-]{1,100}")
ADDRESS_AGENT = "addr:"  # agents that do not say who they are
HELLO_ROOTS = 1000


def bad_batch(detail: str) -> HttpError:
    return HttpError(400, "bad request", detail)


class BatchOutline:
    """The checked outline of a batch: everything but its records."""

    def __init__(self, body: dict, peer: str | None):
        if not isinstance(body, dict):
            raise bad_batch("the body must be an object")
        self.agent_id, self.agent_name, self.instance = agent_of(body, peer)
        self.batch_id = short_text(body, "batch_id")
        self.files = listed(body, "files")
        self.removed = listed(body, "removed")
        self.root = root_path_of(body)
        self.volume = short_text(body, "volume", 1000)
        self.volume_told = "volume" in body
        self.volume_path = short_text(body, "volume_path", 5000)
        self.after_rev = whole_number(body, "after_rev")
        self.rev = whole_number(body, "rev")
        if (self.after_rev is None) != (self.rev is None):
            raise bad_batch("after_rev and rev come together")
        self.end = body.get("end_of_root")
        if self.end is not None and (not isinstance(self.end, dict) or self.root is None):
            raise bad_batch("end_of_root must be an object, and needs a root")
        if "files" not in body and not self.removed and self.end is None:
            raise bad_batch("files is missing")


def listed(body: dict, key: str) -> list:
    value = body.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise bad_batch(f"{key} must be a list")
    if len(value) > BATCH_FILES:
        raise HttpError(413, "too much", f"{key} has more than {BATCH_FILES} entries")
    return value


def short_text(body: dict, key: str, length: int = BATCH_TEXT) -> str | None:
    value = body.get(key)
    if value is None:
        return None
    if not is_clean_text(value) or len(value) > length:
        raise bad_batch(f"{key} must be a text of at most {length} characters")
    return value


def whole_number(body: dict, key: str) -> int | None:
    value = body.get(key)
    if value is not None and (type(value) is not int or not 0 <= value <= REV_MAX):
        raise bad_batch(f"{key} must be a whole number")
    return value


def root_path_of(body: dict) -> str | None:
    root = short_text(body, "root", 32_768)
    if root is None:
        return None
    root = normal_root_path(root)
    if not is_absolute_text(root):
        raise bad_batch("root must be an absolute path")
    return root


def agent_of(body: dict, peer: str | None) -> tuple:
    """(id, name, instance). Who says nothing is named after the address; no peer is ourselves."""
    agent = body.get("agent")
    if agent is None:
        if peer is None:
            return LOCAL_AGENT, LOCAL_AGENT, None
        return f"{ADDRESS_AGENT}{peer}", peer, None
    if not isinstance(agent, dict):
        raise bad_batch("agent must be an object")
    agent_id, instance = agent.get("id"), agent.get("instance")
    if not isinstance(agent_id, str) or not AGENT_ID.fullmatch(agent_id):
        raise bad_batch("agent.id must be a text of letters, digits and . _ : @ + -")
    if peer is not None and (agent_id == LOCAL_AGENT or agent_id.startswith(ADDRESS_AGENT)):
        raise bad_batch(f"agent.id {agent_id} is the host's own")
    name = agent.get("name")
    if name is None or name == "":
        name = agent_id
    if not is_clean_text(name) or len(name) > BATCH_TEXT:
        raise bad_batch("agent.name must be a short text")
    if instance is not None and (not is_clean_text(instance) or len(instance) > BATCH_TEXT):
        raise bad_batch("agent.instance must be a short text")
    return agent_id, name, instance


def hello_roots(agent: dict) -> list | None:
    """The roots an agent reports, those that are well-formed; None when it says nothing of them.

    Two at one path are two roots: the disk that is there, and the one whose place it took.
    """
    roots = agent.get("roots")
    if not isinstance(roots, list):
        return None
    found = {}
    for raw in roots[:HELLO_ROOTS]:
        if not isinstance(raw, dict) or not is_clean_text(raw.get("path")):
            continue
        path = normal_root_path(raw["path"])
        if is_absolute_text(path):
            key = (path, str(raw.get("volume")), str(raw.get("volume_path")))
            if key not in found or raw.get("state") != "offline":
                found[key] = {**raw, "path": path}
    return list(found.values())
