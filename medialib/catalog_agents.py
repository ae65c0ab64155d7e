"""Agents in the catalogue: what their hello says is kept, and how they are shown."""

from __future__ import annotations

import functools
import json

from .catalog import Catalog
from .catalog_roots import (
    CatalogRoot,
    agent_row,
    find_agent,
    read_roots,
    resolve_root,
    root_facts,
    touch_root,
)
from .catalog_settings import settings_of, stored_settings
from .host_agents import AgentPresence
from .mounts import OTHER_DISK

HELLO_WRITTEN_S = 300.0  # nothing new: the catalogue hears of an agent only this often
AGENT_FACTS = ("port", "version", "protocol", "python", "platform", "hash_algos", "ffprobe")
ROOT_FACTS = ("label", "fs", "rotational", "total_bytes", "free_bytes", "source")
LASTING_ROOT_FACTS = ("path", "state", "reason", "volume", "volume_path", "label", "fs")
ROOT_STATES = ("online", "offline", "scanning")


def save_hello(catalog: Catalog, presence: AgentPresence, agent_id: str, about: dict,
               errors: dict | None, peer: str | None) -> dict:
    """{"last_rev", "roots"} for hello's answer. Written only when something lasting is new."""
    live = presence.get(agent_id)
    signature = hello_signature(about, errors, peer)
    now = catalog.clock()
    if live.signature == signature and now - live.written_at < HELLO_WRITTEN_S:
        with catalog.reader() as db:
            known = find_agent(db, agent_id)
            if known is not None:
                return {"last_rev": known.last_rev, "roots": known_roots(db, known.id)}
    saved = catalog.change(lambda changes: _write_hello(changes, presence, agent_id, about, errors,
                                                        peer))
    live.signature, live.written_at = signature, now
    catalog.agents_changed += 1
    return saved


def hello_signature(about: dict, errors: dict | None, peer: str | None) -> str:
    """Everything of a hello that is worth a write when it differs."""
    roots = [[root.get(name) for name in LASTING_ROOT_FACTS]
             for root in about["roots"] or []]
    facts = [about.get(name) for name in AGENT_FACTS]
    return json.dumps([about["name"], peer, facts, roots, errors], sort_keys=True, default=str)


def known_roots(db, agent_number: int) -> list:
    return [{"path": root.path, "volume": root.volume, "volume_path": root.volume_path,
             "known_files": root.files, "transferred": bool(root.transferred)}
            for root in read_roots(db, agent_number) if not root.implicit]


def _write_hello(changes, presence, agent_id, about, errors, peer) -> dict:
    db, now = changes.db, changes.now
    agent = agent_row(db, agent_id, about["name"], peer, now)
    facts = {name: about.get(name) for name in AGENT_FACTS}
    db.execute("UPDATE agent SET address = ?, last_seen = ?, facts_json = ? WHERE id = ?",
               (peer, now, json.dumps(facts), agent.id))
    if errors is not None:
        db.execute("UPDATE agent SET errors_json = ? WHERE id = ?", (json.dumps(errors), agent.id))
    if about["roots"] is not None:
        _write_roots(changes, presence, agent, about["roots"])
    return {"last_rev": agent.last_rev, "roots": known_roots(db, agent.id)}


def _write_roots(changes, presence, agent, roots: list) -> None:
    """The rows of the reported roots; those that are not reported any more are offline."""
    db = changes.db
    there = [root for root in roots if root.get("state") != "offline"]
    away = [root for root in roots if root.get("state") == "offline"]
    held = {_reported_root(changes, presence, agent, root) for root in there}
    known = held | {_reported_root(changes, presence, agent, root, held) for root in away}
    for root in read_roots(db, agent.id):
        if root.id not in known and not root.implicit:
            touch_root(db, changes.counters, root, state="offline",
                       reason=root.reason or "no longer a root of this machine")
    _free_paths(changes, agent, held)


def _reported_root(changes, presence, agent, reported: dict, held=None) -> int:
    """The root's number, after its row says what the agent does. `held`: see `resolve_root`."""
    db = changes.db
    volume = reported.get("volume") if isinstance(reported.get("volume"), str) else None
    volume_path = reported.get("volume_path")
    volume_path = volume_path if isinstance(volume_path, str) else None
    fsid, fs = (reported.get(name) if isinstance(reported.get(name), str) else None
                for name in ("fsid", "fs"))
    state = reported.get("state") if reported.get("state") in ROOT_STATES else "online"
    reason = reported.get("reason")
    root = resolve_root(db, changes.counters, agent, reported["path"], volume, volume_path,
                        is_alive=functools.partial(holder_is_alive, presence), held=held,
                        told="volume" in reported and held is None, fsid=fsid,
                        fs=fs)
    if root.id in (held or ()):
        return root.id
    facts = {name: reported.get(name) for name in ROOT_FACTS if reported.get(name) is not None}
    # The sizes change all the time and are no news; they are kept with the next real change.
    values = {"state": state, "reason": str(reason)[:500] if reason else None}
    if {**root_facts(root), **facts} != root_facts(root):
        db.execute("UPDATE root SET facts_json = ? WHERE id = ?", (json.dumps(facts), root.id))
    touch_root(db, changes.counters, root, **values)
    return root.id


def _free_paths(changes, agent, held: set) -> None:
    """Two roots of an agent at one path: the one that is not held now is the unplugged one."""
    by_path: dict = {}
    for root in read_roots(changes.db, agent.id):
        by_path.setdefault(root.path, []).append(root)
    for roots in by_path.values():
        if any(root.id in held for root in roots):
            for root in roots:
                if root.id not in held and not root.implicit:
                    touch_root(changes.db, changes.counters, root, state="offline")


def holder_is_alive(presence: AgentPresence, db, agent_number: int, root: CatalogRoot) -> bool:
    """Whether the agent that has this root is running and says the disk is there."""
    if root.state == "offline":
        return False
    row = db.execute("SELECT agent_id FROM agent WHERE id = ?", (agent_number,)).fetchone()
    return row is not None and presence.is_alive(row[0])


# Showing

def agent_list(db, presence: AgentPresence, now: float) -> list:
    """Every agent as `POST /api/agents` shows it, the host's own first, then by name."""
    rows = db.execute("SELECT id, agent_id, name, address, last_rev, first_seen, last_seen,"
                      " facts_json, errors_json FROM agent").fetchall()
    roots: dict = {}
    for root in read_roots(db):
        roots.setdefault(root.agent, []).append(root)
    rejected = dict(db.execute("SELECT agent, count(*) FROM rejected GROUP BY agent").fetchall())
    shown = [_shown_agent(db, presence, row, roots.get(row[0], []), rejected.get(row[0], 0), now)
             for row in rows]
    shown.sort(key=lambda agent: (agent["id"] != "local", agent["name"].lower(), agent["id"]))
    return shown


def _shown_agent(db, presence: AgentPresence, row: tuple, roots: list, rejected: int,
                 now: float) -> dict:
    number, agent_id, name, address, last_rev, first_seen, last_seen, facts, errors = row
    live = presence.get(agent_id)
    alive = live is not None and live.is_alive(now)
    last_seen = max(last_seen, live.last_seen if live else 0.0)
    stats = presence.stats_of(live) if live else {}
    settings = settings_of(db, agent_id)
    configured = settings["remote_roots"]
    facts = json.loads(facts)
    told = (live.about.get("roots") if live else None) or []
    reported = {root["path"]: root for root in told}
    scanning = alive and bool(stats.get("active"))
    return {
        "id": agent_id, "name": name, "address": address, **facts,
        "hash_algo": hash_that_runs(settings["hash_algo"], facts.get("hash_algos")),
        "state": ("scanning" if scanning else "online") if alive else "away",
        "first_seen": first_seen, "last_seen": last_seen, "last_rev": last_rev,
        "stats": stats, "stats_at": live.about.get("stats_at") if live else None,
        "cloned": len(live.contenders) if live else 0,
        "errors": json.loads(errors), "rejected": rejected,
        "files": sum(root.files for root in roots), "bytes": sum(root.bytes for root in roots),
        "missing": sum(root.missing for root in roots),
        "roots": [_shown_root(root, reported.get(root.path), alive, configured)
                  for root in roots],
        "settings": stored_settings(db, agent_id), "remote_roots": configured,
        "commands_waiting": len(live.commands) if live else 0,
    }


def hash_that_runs(asked: str, available) -> str | None:
    """The function a machine really hashes with; None where it has not told what it can."""
    if not isinstance(available, list) or not available:
        return None
    return asked if asked in available else "sha256"


def _shown_root(root: CatalogRoot, reported: dict | None, alive: bool,
                configured: list) -> dict:
    facts = root_facts(root)
    if reported is not None and root.state != "offline":
        facts.update({name: reported[name] for name in ROOT_FACTS
                      if reported.get(name) is not None})
    return {
        "id": root.id, "path": root.path, "state": root.state, "reason": root.reason,
        "volume": root.volume, "volume_path": root.volume_path, **facts,
        "implicit": bool(root.implicit), "transferred": bool(root.transferred),
        "reachable": alive and root.state != "offline",
        "configured": root.path in configured,
        "accept_empty": root.state == "offline" and "empty" in (root.reason or ""),
        "accept_disk": root.state == "offline" and (root.reason or "").startswith(OTHER_DISK),
        "files": root.files, "bytes": root.bytes, "missing": root.missing,
        "missing_bytes": root.missing_bytes, "scan": json.loads(root.scan_json),
    }


def rejected_of(db, agent_number: int, limit: int = 200) -> list:
    """The records that were refused lately, with the reason."""
    rows = db.execute("SELECT path, error, at FROM rejected WHERE agent = ? ORDER BY at DESC"
                      " LIMIT ?", (agent_number, limit)).fetchall()
    return [{"path": path, "error": error, "at": at} for path, error, at in rows]
