"""Steering agents from the host: scan, list, clear, compact, set, forget.

An agent whose control port answers is asked directly; otherwise the command waits for its next
heartbeat, and the answer comes back with the one after.
"""

from __future__ import annotations


from .base import AGENT_PORT, log
from .catalog import Catalog
from .catalog_forget import ForgetPlan, forget_all
from .catalog_reclassify import moved_extensions, reclassify
from .catalog_roots import find_agent
from .catalog_schema import LOCAL_AGENT
from .catalog_settings import checked_settings, settings_of, store_settings, stored_settings
from .host_agents import AgentPresence
from .http_client import JsonClient, NotMedialib, PeerError, PeerRefused
from .http_gate import format_address
from .http_json import HttpError
from .late import urllib
from .settings import is_absolute_text, normal_root_path

DIRECT_TIMEOUT_S = 3.0
LS_DIRECT_TIMEOUT_S = 10.0
HEARTBEAT_WAIT_S = 36.0
AGENT_CALLS = {
    "scan_now": ("POST", "/agent/scan_now"), "clear_cache": ("POST", "/agent/clear_cache"),
    "compact_cache": ("POST", "/agent/compact_cache"), "ls": ("GET", "/agent/ls"),
}


class AgentControl:
    """The calls of /api/agents/…; `local` is the host's own scanner, None while there is none."""

    def __init__(self, catalog: Catalog, presence: AgentPresence):
        self.catalog = catalog
        self.presence = presence
        self.local = None

    def agent_id(self, body: dict) -> str:
        """The agent a body names by its id, or by its name where that is unique; HttpError 404."""
        wanted = body.get("agent")
        if not isinstance(wanted, str) or not wanted:
            raise HttpError(400, "bad request", "agent must be an agent's id")
        if wanted == LOCAL_AGENT:
            return wanted
        with self.catalog.reader() as db:
            if find_agent(db, wanted) is not None:
                return wanted
            rows = db.execute("SELECT agent_id FROM agent WHERE name = ? LIMIT 2",
                              (wanted,)).fetchall()
        if len(rows) == 1:
            return rows[0][0]
        raise HttpError(404, "no such agent", wanted[:200])

    def scan_now(self, body: dict) -> dict:
        return self._steer(self.agent_id(body), "scan_now", wait=False)

    def clear_cache(self, body: dict) -> dict:
        return self._steer(self.agent_id(body), "clear_cache", wait=True)

    def compact_cache(self, body: dict) -> dict:
        return self._steer(self.agent_id(body), "compact_cache", wait=True)

    def ls(self, body: dict) -> dict:
        path = body.get("path") or ""
        if not isinstance(path, str):
            raise HttpError(400, "bad request", "path must be a text")
        return self._steer(self.agent_id(body), "ls", wait=True, path=path)

    def accept_empty(self, body: dict) -> dict:
        """A root that really was emptied, or whose disk was replaced by another that has no name of
        its own, is taken as it is with its next scan.
        """
        path = self._root_path(body)
        return self._steer(self.agent_id(body), "accept_empty", wait=False, path=path)

    def forget(self, body: dict) -> dict:
        """Without "confirm" only the count; with the count as "confirm" the rows go."""
        agent_id = self.agent_id(body)
        with self.catalog.reader() as db:
            plan = ForgetPlan(db, agent_id, body)
            count = plan.count()
        confirm = body.get("confirm")
        if confirm is None or confirm is False:
            return {"ok": True, **count, "forgotten": False}
        if confirm is not True and confirm != count["files"]:
            raise HttpError(409, "the count has changed",
                            f"it is {count['files']} files now; ask again", extra=count)
        forget_all(self.catalog, plan)
        if plan.whole_agent and not plan.missing_only:
            self.presence.forget(agent_id)
        self.catalog.agents_changed += 1
        return {"ok": True, **count, "forgotten": True}

    def _root_path(self, body: dict) -> str:
        path = body.get("path") or body.get("root")
        if not isinstance(path, str) or not is_absolute_text(normal_root_path(path)):
            raise HttpError(400, "bad request", "path must be the root's absolute path")
        return normal_root_path(path)

    def _steer(self, agent_id: str, do: str, *, wait: bool, **more) -> dict:
        if agent_id == LOCAL_AGENT:
            if self.local is None:
                raise HttpError(404, "no such agent", "this host scans no folders of its own")
            return self.local.obey(do, **more)
        answer = self._ask_directly(agent_id, do, more)
        if answer is not None:
            return answer
        command_id = self.presence.command(agent_id, do, **more)
        if not wait or not self.presence.is_alive(agent_id):
            return self._queued(agent_id, do, wait)
        answer = self.presence.wait_result(command_id, HEARTBEAT_WAIT_S)
        if answer is None:
            return self._queued(agent_id, do, wait)
        if isinstance(answer, dict) and answer.get("ok") is False:
            status = answer.get("status")
            raise HttpError(status if status in (400, 403, 404) else 502,
                            str(answer.get("error", "failed"))[:500],
                            str(answer.get("detail", ""))[:500])
        return answer if isinstance(answer, dict) else {"ok": True, "answer": answer}

    def _queued(self, agent_id: str, do: str, wait: bool) -> dict:
        if do == "ls" or (wait and self.presence.is_alive(agent_id)):
            raise HttpError(504, "the agent has not answered",
                            "it gets the command with its next heartbeat")
        return {"ok": True, "queued": True, "started": False,
                "message": "the agent gets it with its next heartbeat"}

    def _ask_directly(self, agent_id: str, do: str, more: dict) -> dict | None:
        """The answer of the agent's own port, None where it cannot be reached."""
        live = self.presence.get(agent_id)
        if do not in AGENT_CALLS or live is None or live.peer is None:
            return None
        if not self.presence.is_alive(agent_id):
            return None
        port = live.about.get("port") or AGENT_PORT
        if not isinstance(port, int) or not 0 < port < 65536:
            return None
        method, path = AGENT_CALLS[do]
        client = JsonClient("http://" + format_address(live.peer, port),
                            timeout_s=LS_DIRECT_TIMEOUT_S if do == "ls" else DIRECT_TIMEOUT_S)
        try:
            # The port may belong to another agent, or to none, behind the same address.
            if client.get("/agent/ping").get("id") != agent_id:
                return None
            if method == "GET":
                return client.get(f"{path}?{urllib.parse.urlencode({'path': more['path']})}")
            return client.post(path, {}, timeout_s=60.0)
        except PeerRefused as refused:
            if do == "ls" and refused.status in (400, 403, 404):
                raise HttpError(refused.status, refused.error, refused.detail) from refused
            return None
        except (PeerError, NotMedialib) as error:
            log.debug("agent %s is not to be reached directly: %s", agent_id, error)
            return None
        finally:
            client.close()

    # -- settings --------------------------------------------------------------------------------

    def set(self, body: dict) -> dict:
        """{"agent", "roots": [path…], "settings": {name: value or null}}."""
        agent_id = self.agent_id(body)
        values = body.get("settings") or {}
        if not isinstance(values, dict):
            raise HttpError(400, "bad request", "settings must be an object")
        values = dict(values)
        if "roots" in body:
            values["remote_roots"] = body["roots"]
        checked = checked_settings(values, agent_id)
        with self.catalog.reader() as db:
            before = settings_of(db, agent_id)
        self.catalog.write(lambda db: store_settings(db, agent_id, checked))
        self.catalog.agents_changed += 1
        if checked:
            self._take_effect(agent_id)
        with self.catalog.reader() as db:
            after, stored = settings_of(db, agent_id), stored_settings(db, agent_id)
        changed = reclassify(self.catalog, moved_extensions(before, after))
        return {"ok": True, "settings": stored, "reclassified": changed}

    def _take_effect(self, agent_id: str) -> None:
        """New settings matter with a scan; an agent that is away sees them when it comes back."""
        if agent_id == LOCAL_AGENT:
            if self.local is not None:
                self.local.obey("scan_now")
        else:
            self.presence.command(agent_id, "scan_now")
