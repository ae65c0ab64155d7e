"""The host's calls over HTTP: paths to handlers."""

from __future__ import annotations

import json
import os
import sys
import threading

from .base import PROTOCOL, VERSION
from .catalog import Catalog
from .catalog_agents import agent_list, rejected_of
from .catalog_changes import changes_page
from .catalog_copies import DuplicatePages
from .catalog_facets import FacetCounts
from .catalog_files import FilePages
from .catalog_folders import FolderPages
from .catalog_reclassify import moved_extensions, reclassify
from .catalog_roots import find_agent
from .catalog_same_folders import SameFolders
from .catalog_schema import LOCAL_AGENT
from .catalog_settings import (
    LIBRARY_SCOPE,
    checked_settings,
    config_for,
    settings_of,
    store_settings,
    stored_settings,
)
from .catalog_summary import catalog_summary, daily_rows, local_day
from .catalog_why import explain_path
from .host_agents import AgentPresence
from .http_answer import JSON_TYPE, json_bytes
from .http_json import HttpError, Reply, Router, StreamReply
from .ingest import Ingest
from .ingest_records import RecordError, check_path
from .ingest_repeats import open_batch
from .server_agents import AgentControl
from .server_events import EventStream, event_counts
from .server_export import Export
from .server_metrics import METRICS_TYPE, metrics_text
from .server_openapi import openapi_description
from .server_turns import ListTurns
from .settings import SettingError, settings_table
from .web_assets import package_file, web_file, web_names

CONTENT_TYPES = {
    "html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8", "svg": "image/svg+xml", "json": "application/json",
    "png": "image/png", "ico": "image/x-icon", "txt": "text/plain; charset=utf-8",
}
AGENT_FILE_MOST = 4 << 20
# What can be a thousand rows.
LISTS = frozenset(("files", "duplicates", "duplicate_folders", "folders", "changes"))


class HostRoutes:
    """Handlers over one catalogue. `control.local` is set by whoever starts the local scanner."""

    def __init__(self, catalog: Catalog, *, agent_file=None, metrics: bool = True):
        self.catalog = catalog
        self.metrics = metrics
        self.stopping = threading.Event()
        self._description: bytes | None = None
        self.presence = AgentPresence(catalog.clock)
        self.ingest = Ingest(catalog, self.presence)
        self.control = AgentControl(catalog, self.presence)
        self.same_folders = SameFolders(catalog)
        self.turns = ListTurns()
        self.host: dict = {}  # how this host is reached: name, addresses, port, scheme
        self.agent_file = agent_file or find_agent_file

    def stop(self) -> None:
        """End what streams to browsers."""
        self.stopping.set()

    def router(self) -> Router:
        router = Router()
        self._add_pages(router)
        self._add_ingest(router)
        self._add_queries(router)
        self._add_agents(router)
        return router

    def _add_pages(self, router: Router) -> None:
        router.add("GET", "/", self.page, summary="The web page")
        router.add("GET", "/agent.py", self.agent_py, summary="The agent that matches this host")
        router.add("GET", "/events", self.events, summary=self.events.__doc__)
        if self.metrics:
            router.add("GET", "/metrics", self.metrics_page, summary=self.metrics_page.__doc__)
        router.add("GET", "/openapi.json", lambda request: self.description(router),
                   summary="This description")
        router.add("GET", "/health", self.health, summary="Can the catalogue be written?")
        for name in web_names():
            router.add("GET", f"/web/{name}", self.page_file, summary="A file of the web page")

    def _add_ingest(self, router: Router) -> None:
        router.add("GET", "/ingest/config", self.config, summary="An agent's configuration")
        for name, method in (("hello", self.ingest.hello), ("batch", self.ingest.batch),
                             ("folders", self.ingest.folders), ("names", self.ingest.names)):
            router.add("POST", f"/ingest/{name}", self._from_agent(method), body=True,
                       summary=(method.__doc__ or "").split("\n")[0])

    def _from_agent(self, method):
        def handle(request) -> dict:
            return method(request.json, request.peer_text)

        if method == self.ingest.batch:
            handle.open_body = open_batch
        return handle

    def _add_queries(self, router: Router) -> None:
        for name, method in (
                ("summary", self.summary), ("files", self.files), ("file", self.file),
                ("facets", self.facets), ("duplicates", self.duplicates),
                ("duplicate_folders", self.duplicate_folders),
                ("folders", self.folders), ("growth", self.growth), ("changes", self.changes),
                ("export", self.export), ("settings", self.settings), ("why", self.why)):
            made = self._in_turn(method) if name in LISTS else method
            router.add("POST", f"/api/{name}", made, body=True,
                       summary=(method.__doc__ or "").split("\n")[0])

    def _in_turn(self, method):
        """Make the list, to its bytes, in one of a few turns."""
        def handle(request) -> Reply:
            with self.turns.holding():
                return Reply(200, json_bytes(method(request)), JSON_TYPE)

        return handle

    def _add_agents(self, router: Router) -> None:
        router.add("POST", "/api/agents", self.agents, body=True, summary="All agents")
        for name in ("scan_now", "ls", "clear_cache", "compact_cache", "set", "accept_empty",
                     "forget"):
            method = getattr(self.control, name)
            router.add("POST", f"/api/agents/{name}", self._with_body(method), body=True,
                       summary=f"Tell an agent: {name.replace('_', ' ')}")

    def _with_body(self, method):
        return lambda request: method(request.json)

    # -- pages -----------------------------------------------------------------------------------

    def page(self, request) -> Reply:
        if self.catalog.problem is not None:
            return Reply(503, f"medialib: the catalogue cannot be used\n\n{self.catalog.problem}\n")
        return served_file("index.html")

    def description(self, router: Router) -> Reply:
        """Made once: it is always the same, and whoever asks for it without end costs no time."""
        if self._description is None:
            self._description = json.dumps(openapi_description(router.routes)).encode("ascii")
        return Reply(200, self._description, CONTENT_TYPES["json"])

    def page_file(self, request) -> Reply:
        return served_file(request.path[len("/web/"):])

    def agent_py(self, request) -> Reply:
        text = self.agent_file()
        if text is None:
            raise HttpError(404, "agent.py is not here", "copy the agent.py of medialib "
                            f"{VERSION} beside server.py, then this address serves it")
        return Reply(200, text, "text/x-python; charset=utf-8",
                     {"Content-Disposition": 'attachment; filename="agent.py"'})

    def health(self, request) -> dict:
        problem = self.catalog.writable()
        if problem is not None:
            raise HttpError(503, "the catalogue cannot be written", problem)
        return {"ok": True, "version": VERSION, "protocol": PROTOCOL,
                "library_id": self.catalog.library_id}

    # -- agents' calls ---------------------------------------------------------------------------

    def config(self, request) -> dict:
        """The configuration for whoever asks: the agent heard last from that address."""
        with self.catalog.reader() as db:
            agent_id = self._agent_at(db, request.peer_text)
            return config_for(db, agent_id, self.catalog.library_id)

    def _agent_at(self, db, peer: str) -> str | None:
        live = [agent for agent in self.presence.all().values() if agent.peer == peer]
        if live:
            return max(live, key=lambda agent: agent.last_seen).agent_id
        row = db.execute("SELECT agent_id FROM agent WHERE address = ? AND agent_id <> ?"
                         " ORDER BY last_seen DESC LIMIT 1", (peer, LOCAL_AGENT)).fetchone()
        return row[0] if row else None

    # -- queries ---------------------------------------------------------------------------------

    def summary(self, request) -> dict:
        """Counts of everything, and all agents"""
        with self.catalog.reader() as db:
            summary = catalog_summary(db, self.catalog.words(db), self.catalog.library_id)
            agents = agent_list(db, self.presence, self.catalog.clock())
        return {"ok": True, "version": VERSION, **summary, "agents": agents, "host": self.host}

    def files(self, request) -> dict:
        """A page of files: filter, sort, order, limit, after"""
        with self.catalog.reader() as db:
            return {"ok": True, **FilePages(self.catalog, db).page(request.json)}

    def facets(self, request) -> dict:
        """How many files match, by kind, codec, machine and so on"""
        with self.catalog.reader() as db:
            return {"ok": True, **FacetCounts(self.catalog, db).answer(request.json)}

    def duplicates(self, request) -> dict:
        """Groups of equal files, largest gain first"""
        with self.catalog.reader() as db:
            pages = FilePages(self.catalog, db)
            groups, token = DuplicatePages(db, pages.words, pages.reader).page(request.json)
        return {"ok": True, "groups": groups, "next": token}

    def duplicate_folders(self, request) -> dict:
        """Folders with the same files, largest gain first"""
        return {"ok": True, **self.same_folders.page(request.json)}

    def folders(self, request) -> dict:
        """A folder's children with files and bytes of everything below them"""
        with self.catalog.reader() as db:
            return {"ok": True, **FolderPages(db).answer(request.json)}

    def growth(self, request) -> dict:
        """The catalogue's size day by day"""
        days = request.json.get("days", 400)
        if type(days) is not int or not 1 <= days <= 10_000:
            raise HttpError(400, "bad request", "days must be a whole number from 1 to 10000")
        with self.catalog.reader() as db:
            rows = daily_rows(db, days)
            today = {"day": local_day(self.catalog.clock()), **event_counts(db)}
        today = {key: today[key] for key in ("day", "files", "bytes", "missing")}
        return {"ok": True, "days": [row for row in rows if row["day"] != today["day"]] + [today]}

    def export(self, request):
        """All files, duplicates or identical folders that match, as CSV or JSON lines"""
        return Export(self.catalog, self.same_folders, self.turns, request.json).reply()

    def events(self, request) -> StreamReply:
        """Server-sent events: counts, progress, agents"""
        return StreamReply(iter(EventStream(self.catalog, self.presence, self.stopping)),
                           "text/event-stream", {"Cache-Control": "no-cache"})

    def metrics_page(self, request) -> Reply:
        """Prometheus text"""
        with self.catalog.reader() as db:
            text = metrics_text(db, self.ingest, self.presence, self.catalog.writer,
                                self.catalog.clock())
        return Reply(200, text, METRICS_TYPE)

    def file(self, request) -> dict:
        """One file with its streams and its other copies"""
        file_id = request.json.get("id")
        if type(file_id) is not int or not 0 <= file_id < 1 << 63:
            raise HttpError(400, "bad request", "id must be a file's number")
        with self.catalog.reader() as db:
            found = FilePages(self.catalog, db).one(file_id)
        if found is None:
            raise HttpError(404, "no such file", str(file_id))
        return {"ok": True, "file": found}

    def why(self, request) -> dict:
        """Why a path of an agent is, or is not, in the catalogue"""
        agent_id, path = request.json.get("agent"), request.json.get("path")
        if not isinstance(agent_id, str) or not isinstance(path, str):
            raise HttpError(400, "bad request", "agent and path must be texts")
        try:
            path = check_path(path)
        except RecordError as error:
            raise HttpError(400, "bad request", str(error)) from None
        with self.catalog.reader() as db:
            agent = find_agent(db, agent_id)
            if agent is None:
                raise HttpError(404, "no such agent", agent_id[:200])
            return {"ok": True, **explain_path(db, agent, path)}

    def changes(self, request) -> dict:
        """Everything that changed after a number, in order"""
        with self.catalog.reader() as db:
            return {"ok": True, **changes_page(db, self.catalog.words(db), request.json)}

    def agents(self, request) -> dict:
        """All agents, or one with what was refused from it"""
        with self.catalog.reader() as db:
            agents = agent_list(db, self.presence, self.catalog.clock())
            wanted = request.json.get("agent")
            if wanted is not None:
                agents = [agent for agent in agents if agent["id"] == wanted]
                found = find_agent(db, wanted) if isinstance(wanted, str) else None
                for agent in agents:
                    agent["rejected_records"] = rejected_of(db, found.id)
        return {"ok": True, "agents": agents}

    def settings(self, request) -> dict:
        """Settings with type, bounds and help; {"set": {name: value}} changes them"""
        values = request.json.get("set")
        changed = 0
        if values is not None:
            changed = self._set_settings(values)
        with self.catalog.reader() as db:
            stored = stored_settings(db, LIBRARY_SCOPE)
            current = settings_of(db)
            agents = {row[0]: stored_settings(db, row[0])
                      for row in db.execute("SELECT agent_id FROM agent").fetchall()}
        table = [{**row, "value": current[row["name"]], "changed": row["name"] in stored}
                 for row in settings_table()]
        return {"ok": True, "settings": table, "values": current, "reclassified": changed,
                "agents": {agent: own for agent, own in agents.items() if own}}

    def _set_settings(self, values) -> int:
        """Store them; how many rows got another kind by that."""
        try:
            checked = checked_settings(values, LIBRARY_SCOPE)
        except SettingError as error:
            raise HttpError(400, "bad setting", str(error),
                            extra={"setting": error.name}) from error
        with self.catalog.reader() as db:
            before = settings_of(db)
        self.catalog.write(lambda db: store_settings(db, LIBRARY_SCOPE, checked))
        self.catalog.agents_changed += 1
        with self.catalog.reader() as db:
            after = settings_of(db)
        return reclassify(self.catalog, moved_extensions(before, after))


def served_file(name: str) -> Reply:
    data = web_file(name)
    if data is None:
        raise HttpError(404, "not found", f"there is no {name[:200]} here")
    return Reply(200, data, CONTENT_TYPES.get(name.rpartition(".")[2], "application/octet-stream"))


def find_agent_file() -> bytes | None:
    """The agent.py of this medialib: from the clone, the installed package, or beside server.py."""
    folders = [os.path.dirname(os.path.abspath(folder))
               for folder in getattr(sys.modules.get("medialib"), "__path__", ())]
    folders.append(os.path.dirname(os.path.abspath(sys.argv[0])))
    found = [package_file("agent_file.txt")]
    for folder in folders:
        try:
            with open(os.path.join(folder, "agent.py"), "rb") as file:
                found.append(file.read(AGENT_FILE_MOST))
        except OSError:
            continue
    return next((text for text in found if text and is_our_agent(text)), None)


def is_our_agent(text: bytes) -> bool:
    """Whether this is medialib's agent of this version, and not some other agent.py."""
    return b"medialib" in text[:2000] and f'VERSION = "{VERSION}"'.encode() in text
