"""The agent's control port: the calls of the original description, as JSON."""

from __future__ import annotations

import errno

from .agent_service import list_folder
from .base import PROTOCOL, VERSION
from .http_json import HttpError, Router


class AgentRoutes:
    """Handlers over one AgentService."""

    def __init__(self, service):
        self.service = service

    def router(self) -> Router:
        router = Router()
        router.add("GET", "/agent/ping", self.ping, summary="Is the agent alive?")
        router.add("GET", "/agent/stats", self.stats, summary="What the scan is doing now")
        router.add("GET", "/agent/ls", self.ls, summary="List a folder, to choose roots")
        router.add("POST", "/agent/scan_now", self.scan_now, summary="Scan all roots now")
        router.add("POST", "/agent/clear_cache", self.clear_cache, summary="Forget all files")
        router.add("GET", "/agent/cache_info", self.cache_info, summary="About the cache")
        router.add("POST", "/agent/compact_cache", self.compact_cache, summary="Shrink the cache")
        return router

    def ping(self, request) -> dict:
        identity = self.service.identity
        return {"ok": True, "id": identity.id, "name": identity.name, "version": VERSION,
                "protocol": PROTOCOL}

    def stats(self, request) -> dict:
        return self.service.stats_answer()

    def ls(self, request) -> dict:
        path = request.query.get("path", "")
        try:
            return list_folder(path)
        except ValueError as error:
            raise HttpError(400, "not a path", str(error)) from error
        except OSError as error:
            raise listing_refusal(error, path) from error

    def scan_now(self, request) -> dict:
        started, message = self.service.scan_now()
        return {"ok": True, "started": started, "message": message}

    def clear_cache(self, request) -> dict:
        return {"ok": True, "cleared": self.service.clear_cache()}

    def cache_info(self, request) -> dict:
        return self.service.cache.info()

    def compact_cache(self, request) -> dict:
        before, after = self.service.cache.compact()
        return {"ok": True, "before_bytes": before, "after_bytes": after}


def listing_refusal(error: OSError, path: str) -> HttpError:
    """404 for what is not there, 403 for what may not be read, 400 for what is no folder."""
    if error.errno == errno.ENOENT:
        return HttpError(404, "no such folder", path[:1000])
    if error.errno in (errno.EACCES, errno.EPERM):
        return HttpError(403, "not allowed to read this folder", path[:1000])
    if error.errno == errno.ENOTDIR:
        return HttpError(400, "not a folder", path[:1000])
    return HttpError(400, "cannot be listed", error.strerror or "")
