"""What agents say to the host: hello, batches, and the lists by which both compare what they hold.

`Ingest` is called by the HTTP routes and by the host's own scanner alike. A batch is judged record
by record, applied in one transaction, and answered after its commit.
"""

from __future__ import annotations

import functools
import json

from .base import PROTOCOL, log
from .catalog import Catalog
from .catalog_agents import holder_is_alive, save_hello
from .catalog_compare import folder_page, name_page, read_agent_root
from .catalog_roots import (
    CatalogAgent,
    agent_row,
    find_agent,
    holding_root,
    make_implicit_root,
    read_root,
    read_roots,
    resolve_root,
    touch_root,
)
from .catalog_settings import config_for, settings_of
from .host_agents import AgentPresence
from .http_json import HttpError
from .ingest_outline import (
    ADDRESS_AGENT,
    BatchOutline,
    agent_of,
    bad_batch,
    hello_roots,
    root_path_of,
    short_text,
    whole_number,
)
from .ingest_order import BatchOrder
from .ingest_records import RecordChecker, RecordError, check_path, is_clean_text
from .ingest_repeats import BatchRepeats, UnreadBatch, repeat_state
from .scan_common import Classifier

BATCHES_KEPT = 2000
REJECTED_KEPT = 1000


class Ingest:
    """The four calls of agents. `peer` is the caller's address, None for the host's own scanner."""

    def __init__(self, catalog: Catalog, presence: AgentPresence):
        self.catalog = catalog
        self.presence = presence
        self.repeats = BatchRepeats()
        self.order = BatchOrder()
        self.counts = {"batches": 0, "files": 0, "rejected": 0, "repeated": 0}

    # -- hello -----------------------------------------------------------------------------------

    def hello(self, body: dict, peer: str | None = None) -> dict:
        """The agent says what it is and has; the answer is its configuration and its commands."""
        if not isinstance(body, dict) or not isinstance(body.get("agent"), dict):
            raise bad_batch("agent must be an object")
        agent_id, name, instance = agent_of(body, peer)
        self._let_in(agent_id, instance, peer)
        roots = hello_roots(body["agent"])
        stats = body.get("stats") if isinstance(body.get("stats"), dict) else {}
        about = {**body["agent"], "roots": roots, "name": name, "stats_at": self.catalog.clock()}
        errors = body.get("errors") if isinstance(body.get("errors"), dict) else None
        saved = save_hello(self.catalog, self.presence, agent_id, about, errors, peer)
        self.presence.tell(agent_id, about, stats)
        self.presence.put_results(body.get("results"))
        with self.catalog.reader() as db:
            config = config_for(db, agent_id, self.catalog.library_id)
        return {"ok": True, "library_id": self.catalog.library_id, "protocol": PROTOCOL,
                "config": config, "commands": self.presence.take_commands(agent_id), **saved}

    def _let_in(self, agent_id: str, instance: str | None, peer: str | None) -> None:
        verdict = self.presence.contact(agent_id, instance, peer)
        if verdict == "":
            raise HttpError(409, "another instance",
                            "another running process uses this agent's id; try again in a minute")
        if verdict is not None:
            log.warning("agent %s runs on two machines; the one at %s becomes %s", agent_id, peer,
                        verdict)
            raise HttpError(409, "cloned", "another machine uses this agent's id",
                            extra={"new_id": verdict})

    # -- batches ---------------------------------------------------------------------------------

    def batch(self, body: dict | UnreadBatch, peer: str | None = None) -> dict:
        """Apply one batch; the answer comes after its commit."""
        with self.order.under_way(peer):
            return self._batch(body, peer)

    def _batch(self, body: dict | UnreadBatch, peer: str | None) -> dict:
        if not isinstance(body, UnreadBatch):
            return self._read_batch(body, peer)
        answer = self._repeated(body, peer)
        if answer is None:
            read = body.read()
            answer = self._read_batch(read, peer, body)
            self.repeats.remember(body, read, f"{ADDRESS_AGENT}{peer}")
        return answer

    def _repeated(self, unread: UnreadBatch, peer: str) -> dict | None:
        """The answer to a batch that says nothing new, or None where that is not known."""
        agent_id = f"{ADDRESS_AGENT}{peer}"
        known = self.repeats.find(unread, agent_id)
        if known is None:
            return None
        self.presence.contact(agent_id, None, peer)
        state, files = known
        answer = self.catalog.change(
            lambda changes: self._note_repeated(changes, unread, agent_id, peer, state, files))
        if answer is not None:
            self.counts["batches"] += 1
            self.counts["files"] += files
        return answer

    def _note_repeated(self, changes, unread, agent_id, peer, state, files) -> dict | None:
        db = changes.db
        agent = find_agent(db, agent_id)
        if agent is None or agent.name != peer or repeat_state(changes) != state or db.execute(
                "SELECT 1 FROM rejected WHERE agent = ? LIMIT 1", (agent.id,)).fetchone():
            return None
        stored = stored_answer(db, agent, unread.batch_id)
        if stored is not None:
            self.counts["repeated"] += 1
            return stored
        answer = {"ok": True, "batch_id": unread.batch_id, "processed": files, "errors": []}
        remember_answer(db, changes, agent, unread.batch_id, answer)
        return answer

    def _read_batch(self, body: dict, peer: str | None, unread: UnreadBatch | None = None) -> dict:
        outline = BatchOutline(body, peer)
        if not self.presence.is_current(outline.agent_id, outline.instance):
            raise HttpError(409, "another instance", "this agent's id is held by another process")
        self.presence.contact(outline.agent_id, outline.instance, peer)
        records, errors = self._checked(outline)
        removed = self._checked_removals(outline, errors)
        on_queued = None
        if outline.rev is not None:
            self.order.wait_for(outline.agent_id, outline.after_rev,
                                lambda: self._last_rev(outline.agent_id), peer)
            on_queued = functools.partial(self.order.note, outline.agent_id, outline.rev)
        answer = self.catalog.change(
            lambda changes: self._apply(changes, outline, records, removed, errors, peer, unread),
            on_queued)
        self.counts["batches"] += 1
        self.counts["files"] += answer["processed"]
        self.counts["rejected"] += len(errors)
        return answer

    def _last_rev(self, agent_id: str) -> int:
        with self.catalog.reader() as db:
            agent = find_agent(db, agent_id)
            return 0 if agent is None else agent.last_rev

    def _checked(self, outline: BatchOutline) -> tuple:
        prefix = ""
        if outline.root is not None:
            prefix = outline.root if outline.root.endswith("/") else outline.root + "/"
        checker = RecordChecker(prefix, functools.partial(self._classifier, outline.agent_id))
        return checker.check_all(outline.files)

    def _classifier(self, agent_id: str) -> Classifier:
        """Needed for records without a kind of ours only, which come from older agents."""
        with self.catalog.reader() as db:
            return Classifier(settings_of(db, agent_id))

    def _checked_removals(self, outline: BatchOutline, errors: list) -> list:
        if not outline.removed:
            return []
        if outline.root is None:
            raise bad_batch("removed needs a root")
        prefix = outline.root if outline.root.endswith("/") else outline.root + "/"
        paths = []
        for path in outline.removed:
            try:
                if not check_path(path).startswith(prefix):
                    raise RecordError("path is not inside the batch's root")
                paths.append(path)
            except RecordError as error:
                shown = path[:1000] if isinstance(path, str) else None
                errors.append({"index": None, "path": shown, "error": f"removed: {error}"})
        return paths

    def _apply(self, changes, outline, records, removed, errors, peer, unread) -> dict:
        """Inside the transaction: order, repeats, files, removals, end of root."""
        db = changes.db
        agent = agent_row(db, outline.agent_id, outline.agent_name, peer, changes.now)
        stored = stored_answer(db, agent, outline.batch_id)
        if stored is not None:
            self.counts["repeated"] += 1
            return stored
        answer = {"ok": True, "batch_id": outline.batch_id, "processed": len(records),
                  "errors": errors}
        if not self._in_order(agent, outline):
            answer.update(processed=len(outline.files), errors=[])
            return answer
        root = self._apply_files(changes, agent, outline, records, removed)
        if outline.end is not None:
            answer["in_step"] = end_root(changes, root, outline.end)
        if outline.rev is not None:
            db.execute("UPDATE agent SET last_rev = ? WHERE id = ?", (outline.rev, agent.id))
        note_rejected(db, agent, records, errors, changes.now)
        remember_answer(db, changes, agent, outline.batch_id, answer)
        if unread is not None and not errors and not changes.has_taken() and is_steady(records):
            unread.state = repeat_state(changes)
        return answer

    def _in_order(self, agent: CatalogAgent, outline: BatchOutline) -> bool:
        """False for what was applied before; 409 when something before this batch is missing."""
        if outline.rev is None:
            return True
        if agent.last_rev < outline.after_rev:
            raise HttpError(409, "resync", "what came before this batch is not here",
                            extra={"last_rev": agent.last_rev})
        return outline.rev > agent.last_rev or (
            outline.rev == outline.after_rev == agent.last_rev)  # an end of root without changes

    def _apply_files(self, changes, agent, outline, records, removed):
        batch = changes.files_of(agent)
        if outline.root is None:
            for root, some in by_implicit_root(changes, agent, records):
                batch.upsert(root, some)
            return None
        root = resolve_root(changes.db, changes.counters, agent, outline.root, outline.volume,
                            outline.volume_path,
                            is_alive=functools.partial(holder_is_alive, self.presence),
                            told=outline.volume_told)
        batch.upsert(root, records)
        batch.remove(root, removed)
        return batch.roots.get(root.id, root)

    # -- comparing -------------------------------------------------------------------------------

    def folders(self, body: dict, peer: str | None = None) -> dict:
        """A page of the root's folders with what is in each, as one number."""
        root_id, _ = self._asked_root(body, peer)
        limit = min(whole_number(body, "limit") or 500, 5000)
        after = whole_number(body, "after") or 0
        if root_id is None:
            return {"ok": True, "folders": [], "next": None}
        with self.catalog.reader() as db:
            return {"ok": True, **folder_page(db, root_id, after, limit)}

    def names(self, body: dict, peer: str | None = None) -> dict:
        """A page of the files of one folder; with "full" whole records."""
        root_id, _ = self._asked_root(body, peer)
        limit = min(whole_number(body, "limit") or 1000, 5000)
        folder = short_text(body, "folder", 32_768) or ""
        after = short_text(body, "after", 32_768)
        if root_id is None:
            return {"ok": True, "files": [], "next": None}
        with self.catalog.reader() as db:
            words = self.catalog.words(db)
            root = read_root(db, root_id)
            page = name_page(db, words, root, folder, after, limit, bool(body.get("full")))
        return {"ok": True, **page}

    def _asked_root(self, body: dict, peer: str | None) -> tuple:
        """(root number or None, agent number or None) of what the body names."""
        if not isinstance(body, dict):
            raise bad_batch("the body must be an object")
        agent_id, _, _ = agent_of(body, peer)
        path = root_path_of(body)
        if path is None:
            raise bad_batch("root is missing")
        volume = short_text(body, "volume", 1000)
        volume_path = short_text(body, "volume_path", 5000)
        with self.catalog.reader() as db:
            agent = find_agent(db, agent_id)
            if agent is None:
                return None, None
            root = read_agent_root(db, agent, path, volume, volume_path, "volume" in body)
            return (root.id if root else None), agent.id


def by_implicit_root(changes, agent, records: list):
    """(root, records) for records of a batch that names no root, in their order."""
    roots = read_roots(changes.db, agent.id)
    run, root, folder, found = [], None, None, None
    for record in records:
        above = record.path[:record.path.rfind("/")]
        if above != folder:  # files of one folder are in one root
            folder, found = above, holding_root(roots, record.path)
        if found is None:
            found = make_implicit_root(changes.db, changes.counters, agent, record.path)
            roots.append(found)
        if root is not None and found.id != root.id:
            yield root, run
            run = []
        root = found
        run.append(record)
    if run:
        yield root, run


def end_root(changes, root, end: dict) -> bool:
    """Note a finished scan; whether the agent's sum of the root is ours."""
    if root.files != end.get("files") or not isinstance(end.get("digest"), str):
        in_step = False
    else:
        in_step = end["digest"].lower() == f"{root.digest % (1 << 64):016x}"
    scan = {key: value for key, value in end.items() if key != "digest"}
    scan["at"] = changes.now
    scan["in_step"] = in_step
    values = {"scan_json": json.dumps(scan), "state": "online", "reason": None}
    if in_step:
        values["transferred"] = 0
    touch_root(changes.db, changes.counters, root, **values)
    return in_step


def is_steady(records: list) -> bool:
    """Whether the same records, applied again at once, could not change anything."""
    return not any(record.moved_from for record in records) and (
        len({record.path for record in records}) == len(records))


def stored_answer(db, agent: CatalogAgent, batch_id: str | None) -> dict | None:
    if batch_id is None:
        return None
    row = db.execute("SELECT answer FROM batch WHERE agent = ? AND batch_id = ?",
                     (agent.id, batch_id)).fetchone()
    return json.loads(row[0]) if row else None


def remember_answer(db, changes, agent: CatalogAgent, batch_id: str | None, answer: dict) -> None:
    """Keep the answer for a repeated batch; the oldest ones are forgotten."""
    if batch_id is None:
        return
    last = db.execute("SELECT max(number) FROM batch WHERE agent = ?", (agent.id,)).fetchone()[0]
    number = (last or 0) + 1
    db.execute("INSERT INTO batch VALUES (?, ?, ?, ?, ?)",
               (agent.id, batch_id, number, json.dumps(answer), int(changes.now)))
    db.execute("DELETE FROM batch WHERE agent = ? AND number <= ?",
               (agent.id, number - BATCHES_KEPT))


def note_rejected(db, agent: CatalogAgent, records: list, errors: list, now: float) -> None:
    """Keep what was refused and why, until the path is accepted."""
    known = db.execute("SELECT count(*) FROM rejected WHERE agent = ?", (agent.id,)).fetchone()[0]
    if known:
        db.executemany("DELETE FROM rejected WHERE agent = ? AND path = ?",
                       [(agent.id, record.path) for record in records])
    for error in errors[:max(0, REJECTED_KEPT - known)]:
        path = error["path"] or ""
        if is_clean_text(path):
            db.execute("INSERT OR REPLACE INTO rejected VALUES (?, ?, ?, ?)",
                       (agent.id, path, error["error"], int(now)))
