"""The agent's line to its host: hello, batches and the lists for comparing, over HTTP.

A host that speaks only the original part of the protocol answers hello with 404; it is then asked
for its configuration and gets plain batches.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque

from .base import PROTOCOL, VERSION, log
from .cache_batch import batch_text, records_of_texts
from .http_client import JsonClient, NotMedialib, PeerError, PeerRefused
from .settings import clean_settings, default_settings

OLDER_KINDS = ("video", "image", "subtitle", "xml", "other", "unknown", "junk")
OLDER_KEYS = ("kind", "path", "size", "mtime", "ctime", "inode_key", "ext", "reason", "hashes",
              "metadata")
BATCH_TIMEOUT_S = 120.0
# While the host waits for its disk it can look at the next ones, and commit them together.
BATCHES_AT_ONCE = 4
HELLO_TIMEOUT_S = 8.0


class HttpTransport:
    """The host's calls, for one thread. Raises PeerError and its kinds."""

    def __init__(self, url: str, cafile: str | None = None):
        self.url = url
        self.cafile = cafile
        self.client = JsonClient(url, timeout_s=HELLO_TIMEOUT_S, cafile=cafile)
        self._more_clients = []
        self.older = False
        self.sent_bytes = 0

    def hello(self, body: dict) -> dict:
        try:
            answer = self.client.post("/ingest/hello", body)
        except PeerRefused as refused:
            if refused.status not in (404, 405):
                raise
            return self._older_hello()
        except NotMedialib as error:
            if error.status not in (404, 405):
                raise
            return self._older_hello()
        self.older = False
        return answer

    def _older_hello(self) -> dict:
        """What an older host tells with its configuration, in the shape of hello's answer."""
        try:
            config = self.client.get("/ingest/config", need_ok=False)
        except PeerRefused as refused:
            raise NotMedialib(self.url, refused.status, "it knows no /ingest/config") from refused
        if not any(key in config for key in ("hash_algo", "remote_roots", "batch_size")):
            raise NotMedialib(self.url, 200, "its /ingest/config is no configuration")
        self.older = "medialib" not in config
        return {"ok": True, "library_id": f"older:{self.url}", "config": config, "last_rev": None,
                "commands": []}

    def batch(self, outline: dict, files: list, gzip: bool = False) -> dict:
        """Post a Batch's outline with the JSON texts of its records."""
        return self.begin_batch(outline, files, gzip).finish()

    def begin_batch(self, outline: dict, files: list, gzip: bool = False):
        """The same in two steps, as JsonClient.begin_post; `batches_at_once` may be under way."""
        if self.older:
            outline, gzip = {"batch_id": outline["batch_id"]}, False
            files = [json.dumps(older_record(record)) for record in records_of_texts(files)]
        body = batch_text(outline, files).encode("utf-8")
        call = self._idle_client().begin_post("/ingest/batch", body, gzip=gzip,
                                              timeout_s=BATCH_TIMEOUT_S, need_ok=not self.older)
        self.sent_bytes += len(body)
        return call

    @property
    def batches_at_once(self) -> int:
        return 1 if self.older else BATCHES_AT_ONCE

    def _idle_client(self) -> JsonClient:
        for client in (self.client, *self._more_clients):
            if not client.is_busy():
                return client
        client = JsonClient(self.url, timeout_s=HELLO_TIMEOUT_S, cafile=self.cafile)
        self._more_clients.append(client)
        return client

    def folders(self, body: dict) -> dict:
        return self.client.post("/ingest/folders", body, timeout_s=BATCH_TIMEOUT_S)

    def names(self, body: dict) -> dict:
        return self.client.post("/ingest/names", body, timeout_s=BATCH_TIMEOUT_S)


def older_record(record: dict) -> dict:
    """A record as older hosts know it: no keys and no kinds that came later."""
    old = {key: record[key] for key in OLDER_KEYS if key in record}
    if old["kind"] not in OLDER_KINDS:
        old["kind"] = "other"
    return old


class HostLink:
    """What is known of the host: whether it answers, which library it is, what it wants.

    `lock` guards hello, which several threads call; the plain attributes are replaced as a whole.
    """

    def __init__(self, transport, cache, describe, *, on_new_id=None, on_told=None,
                 clock=time.time):
        self.transport = transport
        self.cache = cache
        self.describe = describe  # () -> the body of hello
        self.on_new_id = on_new_id
        self.on_told = on_told or int  # told how many results of commands the host now has
        self.clock = clock
        self.lock = threading.Lock()
        self.reachable = False
        self.greeted = False
        self.older = False
        self.library_id: str | None = None
        self.problem: str | None = None
        self.transferred: list = []
        self.known_files: dict = {}  # {root path: how many files the host has there}
        self.commands: deque = deque()  # what the host asked for and nobody has done yet
        self.config, _ = clean_settings(self._saved_config())

    def _saved_config(self) -> dict:
        try:
            saved = json.loads(self.cache.get_meta("config") or "null")
        except ValueError:
            saved = None
        return saved if isinstance(saved, dict) else default_settings()

    def hello(self) -> None:
        """Say hello, whoever of the threads does; what the host asks for waits in `commands`.
        Raises PeerError when it is away.
        """
        with self.lock:
            body, turn = self.describe(), self.cache.outbox.turn
            try:
                answer = self.transport.hello(body)
            except PeerRefused as refused:
                self._refused(refused)
                raise
            except PeerError as error:
                self.lost(error)
                raise
            self._greeted(answer, turn)
            self.on_told(len(body["results"]))

    def _refused(self, refused: PeerRefused) -> None:
        self.lost(refused)
        new_id = (refused.answer or {}).get("new_id")
        if refused.status == 409 and new_id and self.on_new_id is not None:
            log.warning("another machine uses this agent's id (a copied home folder?): this one"
                        " goes on under a new id")
            self.on_new_id(new_id)

    def _greeted(self, answer: dict, turn: int) -> None:
        self.older = bool(getattr(self.transport, "older", False))
        self.library_id = str(answer.get("library_id") or f"older:{PROTOCOL}")
        outbox, last_rev = self.cache.outbox, answer.get("last_rev")
        if turn % 2 or turn != outbox.turn:
            last_rev = None  # a batch was under way: the number may be from before or after it
        outbox.align(self.library_id, last_rev if isinstance(last_rev, int) else None)
        self._take_config(answer.get("config") or {})
        roots = [root for root in answer.get("roots") or [] if isinstance(root, dict)]
        self.transferred = [root for root in roots if root.get("transferred")]
        self.known_files = {root["path"]: root["known_files"] for root in roots
                            if isinstance(root.get("path"), str)
                            and isinstance(root.get("known_files"), int)}
        if not self.reachable:
            log.info("connected to the host%s", " (an older one)" if self.older else "")
        self.reachable, self.greeted, self.problem = True, True, None
        self.commands.extend(command for command in answer.get("commands") or []
                             if isinstance(command, dict))

    def _take_config(self, raw: dict) -> None:
        config, complaints = clean_settings(raw)
        for complaint in complaints:
            log.warning("the host's configuration: %s", complaint)
        if config != self.config:
            self.config = config
            self.cache.set_meta("config", json.dumps(config))

    def lost(self, error) -> None:
        """The host did not answer, or not as it should."""
        text = str(error)
        if self.reachable or text != self.problem:
            log.warning("the host cannot be used now: %s", text)
        self.reachable, self.greeted, self.problem = False, False, text


def about_agent(identity, *, port, instance, hash_algos, ffprobe, roots, python, platform) -> dict:
    """The "agent" part of hello."""
    return {
        "id": identity.id, "name": identity.name, "port": port, "version": VERSION,
        "protocol": PROTOCOL, "python": python, "platform": platform, "hash_algos": hash_algos,
        "ffprobe": ffprobe.version if ffprobe else None, "instance": instance, "roots": roots,
    }
