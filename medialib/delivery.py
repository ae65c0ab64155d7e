"""Delivery: what the cache holds goes to the host in order, and is marked only once acknowledged.

Post first, then mark: a kill in between sends a batch twice, which changes nothing, and never
loses one. At the end of a root both sides compare count and digest; on difference the folders that
differ are sent again and what only the host has is reported as gone.
"""

from __future__ import annotations

import collections
import threading
import time

from .base import StoreError, log
from .host_copy import HostCopy, root_body
from .http_client import Backoff, PeerError, PeerRefused
from .late import uuid
from .root_check import EMPTY_REASON

IDLE_POLL_S = 30.0
BACKOFF_FIRST_S = 0.5
BACKOFF_TOP_S = 15.0
ALONE_S = 30.0
RECONCILE_ROUNDS = 3


class FailedCall:
    """A batch that could not even be posted; see PendingCall."""

    def __init__(self, error: PeerError):
        self.error = error

    def finish(self) -> dict:
        raise self.error

    def abandon(self) -> None:
        pass


class Delivery:
    """One background thread that brings everything undelivered to the host."""

    def __init__(self, cache, link, transport, identity, instance: str, settings, *,
                 is_scanning=lambda: False):
        self.cache = cache
        self.link = link
        self.transport = transport
        self.identity = identity
        self.instance = instance
        self.settings = settings  # () -> the present configuration
        self.is_scanning = is_scanning
        self.host_copy = HostCopy(cache, transport, self._agent)
        self.uploaded = self.batches = self.errors = self.sent_bytes = 0
        self.waiting = 0  # batches not acknowledged yet, about; counted when something changed
        self.idle = threading.Event()
        self.attempts_failed = 0
        self._asked_to_wait = False  # the host said how long
        self._alone_until = 0.0  # on the monotonic clock: no two batches at once before
        self._asked = 0  # counts the calls of wake: idle is only said of the last one
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._limit: int | None = None
        self._rounds: dict = {}
        self._backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_TOP_S)
        self._thread = threading.Thread(target=self._loop, name="delivery", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def wake(self) -> None:
        """Something new is in the cache, or the host was heard of."""
        self._asked += 1
        self.idle.clear()
        self._wake.set()

    def _loop(self) -> None:
        while not self._stop.is_set():
            wait_s = self._run_once()
            if self.idle.is_set() or not self.attempts_failed:
                self._wake.wait(wait_s)
            else:
                self._rest(wait_s)
            self._wake.clear()

    def _rest(self, wait_s: float) -> None:
        """The pause that a failing host needs: a busy scanner does not end it, only the host does,
        by answering somebody's hello, where it did not name the pause itself.
        """
        until = time.monotonic() + wait_s
        while not self._stop.is_set() and time.monotonic() < until:
            if self.link.greeted and not self._asked_to_wait:
                return
            self._stop.wait(min(0.25, max(0.0, until - time.monotonic())))

    def _count_waiting(self) -> None:
        size = self._limit or self.settings()["agent_batch_size"]
        self.waiting = -(-self.cache.outbox.undelivered() // size)

    def _run_once(self) -> float:
        """Deliver what there is; how long to wait then, in seconds."""
        asked = self._asked
        try:
            self._count_waiting()
            self.deliver_all()
            self.attempts_failed = 0
            self._backoff.reset()
            self.waiting = 0
            if asked == self._asked:
                self.idle.set()
            return IDLE_POLL_S
        except PeerError as error:
            self.link.lost(error)
            self.attempts_failed += 1
            self.errors += 1
            self._keep_what_waits()
            self._asked_to_wait = error.retry_after_s is not None
            return self._backoff.next(error.retry_after_s)
        except StoreError as error:
            if not self._stop.is_set():
                log.error("%s", error)
            self.errors += 1
            return self._backoff.next(None)
        except Exception:
            log.exception("delivery failed")
            self.errors += 1
            return self._backoff.next(None)

    def _keep_what_waits(self) -> None:
        try:
            self.cache.outbox.pack(self.settings()["agent_batch_size"])
            self._count_waiting()
        except StoreError as error:
            log.warning("undelivered batches stay in the index only: %s", error)

    # -- batches ---------------------------------------------------------------------------------

    def deliver_all(self) -> None:
        """Everything, and the ends of roots that are due. Raises PeerError when the host fails."""
        while not self._stop.is_set():
            if not self.link.greeted:
                self.link.hello()
            self.transport.older = self.link.older
            batch = self.cache.outbox.next_batch(self._limit or self.settings()["agent_batch_size"])
            if batch is not None:
                self._send(batch)
            elif not self._send_root_ends():
                return

    def _send(self, batch) -> None:
        """Post a batch and, while the host is at work on it, whole ones that follow on it."""
        outbox, under_way, first = self.cache.outbox, collections.deque(), batch
        outbox.turn += 1
        try:
            self._post(batch, under_way)
            while under_way:
                self._post_more(under_way)
                batch, call = under_way.popleft()
                try:
                    self._settle(batch, call, under_way)
                except PeerError as error:
                    if batch is first:
                        raise
                    log.debug("one batch at a time for a while: %s", error)
                    self._alone_until = time.monotonic() + ALONE_S
                    return  # the host may only have had no room for one more connection
        finally:
            for _, call in under_way:
                call.abandon()
            outbox.turn += 1

    def _post(self, batch, under_way) -> None:
        outline = {**batch.outline(), "agent": self._agent()}
        try:
            call = self.transport.begin_batch(outline, batch.files,
                                              gzip=self.settings()["agent_gzip"])
        except PeerError as error:
            call = FailedCall(error)
        under_way.append((batch, call))

    def _post_more(self, under_way) -> None:
        while len(under_way) < self.transport.batches_at_once and self._limit is None \
                and self.link.greeted and time.monotonic() >= self._alone_until \
                and not self._stop.is_set():
            batch = self.cache.outbox.batch_behind(under_way[-1][0],
                                                   self.settings()["agent_batch_size"])
            if batch is None:
                return
            self._post(batch, under_way)

    def _settle(self, batch, call, behind) -> None:
        """Read the answer to a batch; without a good one, those behind it are not waited for."""
        try:
            answer = call.finish()
            errors = answer.get("errors")
            self.cache.outbox.acknowledge(batch, errors if isinstance(errors, list) else [])
        except PeerRefused as refused:
            self._refused(batch, refused, behind)
            return
        except PeerError:
            self._keep(batch, behind)
            raise
        if self._limit is not None:
            self._limit *= 2
            if self._limit >= self.settings()["agent_batch_size"]:
                self._limit = None
        self.batches += 1
        self.uploaded += len(batch.files)
        self.sent_bytes = self.transport.sent_bytes

    def _keep(self, batch, behind) -> None:
        for each in (batch, *(other for other, _ in behind)):
            self.cache.outbox.keep(each)

    def _agent(self) -> dict:
        return {"id": self.identity.id, "name": self.identity.name, "instance": self.instance}

    def _refused(self, batch, refused: PeerRefused, behind) -> None:
        """A host that answers, but does not take this batch."""
        answer = refused.answer or {}
        if refused.status == 409 and isinstance(answer.get("last_rev"), int):
            self._leave(behind)
            self.cache.outbox.align(self.link.library_id, answer["last_rev"])
            return
        if refused.status in (400, 413, 415, 422):
            self._leave(behind)
            self._halve(batch, refused)
            return
        self._keep(batch, behind)
        if refused.status == 409:
            self.link.greeted = False
        raise refused

    def _leave(self, behind) -> None:
        """Batches that followed on one that is not taken: they are made again from the rows."""
        while behind:
            behind.popleft()[1].abandon()
        self.cache.outbox.forget_made()

    def _halve(self, batch, refused: PeerRefused) -> None:
        """Find the record that the host cannot take, by halves, and set it apart."""
        self.errors += 1
        if batch.rev is None:
            self.cache.outbox.forget_payload(batch.outbox_id)
            log.error("an old undelivered batch is refused and dropped: %s", refused)
        elif batch.changes > 1:
            self.cache.outbox.take_back(batch)
            self._limit = max(1, batch.changes // 2)
        else:
            log.error("the host refuses one record: %s", refused)
            self._pass_over(batch, f"{refused.status} {refused.error}")

    def _pass_over(self, batch, reason: str) -> None:
        """Set one record apart and have the host count on without it."""
        outline = {**batch.outline(), "batch_id": str(uuid.uuid4()), "removed": [],
                   "agent": self._agent()}
        if not self.link.older:
            self.transport.batch(outline, [])
        self.cache.outbox.acknowledge(
            batch, [{"index": 0, "error": reason}] if batch.files else [])

    # -- the end of a root -----------------------------------------------------------------------

    def _send_root_ends(self) -> bool:
        """Compare each finished root with the host. True if there may be something to send now."""
        with self.cache.store.lock:
            due = [root for root in self.cache.roots.all() if root.end_due]
        for root in due:
            if self.link.older:
                self.cache.roots.save(root, end_due=0)
            elif not self._send_root_end(root):
                return True
        return False

    def _send_root_end(self, root) -> bool:
        """True when the host holds exactly what this agent knows of the root."""
        with self.cache.store.lock:
            if self.cache.outbox.undelivered(1):
                return False
            end = {**root.scan(), "files": root.files, "bytes": root.bytes,
                   "digest": f"{root.digest:016x}"}
            marked = root.end_due
        body = {"batch_id": str(uuid.uuid4()), "agent": self._agent(), **root_body(root),
                "phase": 1, "removed": [], "end_of_root": end,
                "after_rev": self.cache.outbox.acked, "rev": self.cache.outbox.acked}
        try:
            answer = self.transport.batch(body, [])
        except PeerRefused as refused:
            if refused.status == 409 and isinstance((refused.answer or {}).get("last_rev"), int):
                self.cache.outbox.align(self.link.library_id, refused.answer["last_rev"])
                return False
            raise
        rounds = self._rounds.pop(root.id, 0)
        if answer.get("in_step", True):
            if root.end_due == marked:
                self.cache.roots.save(root, end_due=0)
            return True
        if not end["files"] and not end.get("accepted_empty") and self._holds_nothing(root):
            # An empty folder and a host that knows files there: a disk may be missing.
            log.warning("%s is empty, but the host knows files there; nothing of it changes",
                        root.path)
            self.cache.roots.save(root, end_due=0, state="offline", reason=EMPTY_REASON)
            return True
        if rounds >= RECONCILE_ROUNDS:
            log.error("%s: the host still holds something else after %d comparisons; the next scan"
                      " tries again", root.path, rounds)
            self.errors += 1
            self.cache.roots.save(root, end_due=0)
            return True
        self._rounds[root.id] = rounds + 1
        log.info("%s: the host holds something else; comparing folder by folder", root.path)
        self.host_copy.reconcile(root)
        return False

    def _holds_nothing(self, root) -> bool:
        """Not even a file that the host refuses."""
        return self.cache.store.one("SELECT 1 FROM agent_index WHERE root_id = ? LIMIT 1",
                                    (root.id,)) is None
