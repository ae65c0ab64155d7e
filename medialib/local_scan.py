"""The host's own disks: the agent's machinery in this process, without HTTP in between."""

from __future__ import annotations

import errno
import os
import threading

from .agent_cache import AgentCache
from .agent_service import AgentService, list_folder
from .base import MedialibError, log
from .cache_batch import records_of_texts
from .catalog_schema import LOCAL_AGENT
from .ffprobe import find_ffprobe
from .http_client import PeerRefused, PeerUnreachable
from .http_json import HttpError
from .ingest import Ingest

LOCAL_CACHE_FILE = "local_cache.db"


class DirectCall:
    """A batch that is carried out when its answer is asked for; see PendingCall."""

    def __init__(self, transport: LocalTransport, outline: dict, files: list):
        self.transport = transport
        self.outline = outline
        self.files = files

    def finish(self) -> dict:
        return self.transport.batch(self.outline, self.files)

    def abandon(self) -> None:
        pass


class LocalTransport:
    """The host's calls without HTTP; what a host would answer comes as the same exceptions."""

    older = False
    batches_at_once = 1

    def __init__(self, ingest: Ingest):
        self.ingest = ingest
        self.url = "this host"
        self.sent_bytes = 0

    def hello(self, body: dict) -> dict:
        return self._call(self.ingest.hello, body)

    def begin_batch(self, outline: dict, files: list, gzip: bool = False):
        return DirectCall(self, outline, files)

    def batch(self, outline: dict, files: list, gzip: bool = False) -> dict:
        return self._call(self.ingest.batch, {**outline, "files": records_of_texts(files)})

    def folders(self, body: dict) -> dict:
        return self._call(self.ingest.folders, body)

    def names(self, body: dict) -> dict:
        return self._call(self.ingest.names, body)

    def _call(self, method, body: dict) -> dict:
        try:
            return method(body, None)
        except HttpError as error:
            raise PeerRefused(error.status, error.error, error.detail,
                              error.reply().body) from error
        except MedialibError as error:
            raise PeerUnreachable(str(error)) from error


class LocalIdentity:
    """The host's own scanner in the catalogue."""

    def __init__(self, name: str):
        self.id = LOCAL_AGENT
        self.name = name

    def become(self, new_id: str) -> str:
        return self.id


class LocalScan:
    """The scanner of the host's own roots. `start` scans and goes on; `run_once` scans once."""

    def __init__(self, ingest: Ingest, folder: str, name: str):
        self.cache = AgentCache(os.path.join(folder, LOCAL_CACHE_FILE))
        self.service = AgentService(
            self.cache, LocalIdentity(name), LocalTransport(ingest), LocalTransport(ingest),
            find_ffprobe=lambda: find_ffprobe(None))
        self._thread = threading.Thread(target=self._run, name="local scan", daemon=True)

    def start(self) -> None:
        self.service.start()
        self._thread.start()

    def _run(self) -> None:
        try:
            self.service.run_forever()
        except Exception:  # the thread's edge: the host goes on without its own scans
            log.exception("the host's own scanner failed")

    def run_once(self) -> list:
        """Scan all roots and hand everything over; what is left over, in words."""
        self.service.start()
        self.service.run_once()
        return self.service.left_over()

    def obey(self, do: str, path: str = "") -> dict:
        """A command of the host's page, with the answers of an agent's control port."""
        if do == "scan_now":
            started, message = self.service.scan_now()
            return {"ok": True, "started": started, "message": message}
        if do == "clear_cache":
            return {"ok": True, "cleared": self.service.clear_cache()}
        if do == "compact_cache":
            before, after = self.cache.compact()
            return {"ok": True, "before_bytes": before, "after_bytes": after}
        if do == "ls":
            return list_local_folder(path)
        if do == "accept_empty":
            return {"ok": self.service.accept_empty(path)}
        raise HttpError(400, "bad request", f"there is no command {do[:100]}")

    def stop(self) -> None:
        self.service.request_stop()
        self.service.stop()
        if self._thread.is_alive():
            self._thread.join(4.0)
        self.cache.close()


def list_local_folder(path: str) -> dict:
    """A folder of the host's own disks, with the refusals of an agent's port."""
    try:
        return list_folder(path)
    except ValueError as error:
        raise HttpError(400, "not a path", str(error)) from error
    except OSError as error:
        status = {errno.ENOENT: 404, errno.EACCES: 403, errno.EPERM: 403}.get(error.errno, 400)
        raise HttpError(status, "cannot be listed", error.strerror or "") from error
