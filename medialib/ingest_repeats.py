"""Batches that older agents post again and again, word for word: known by their bytes, they need
not even be read.

Such an agent posts its whole disk every few minutes. What it repeats says nothing new as long as
no row that was there has changed since, of whatever agent, and neither roots nor settings have.
"""

from __future__ import annotations

import collections
import re
import threading

from .http_body import parse_json_object
from .late import hashlib

REPEATS_KEPT = 20_000
# The part of such a body that is new each time, as it comes without any escape.
OLDER_HEAD = re.compile(rb'\{"batch_id": ?"([0-9A-Za-z._:@+-]{1,200})", ?(?="files": ?\[)')


class UnreadBatch:
    """The body of an older agent's batch. `state` is set by the writer (see `repeat_state`) when it
    has found that the batch, now applied, would say nothing new a second time.
    """

    def __init__(self, batch_id: str, digest: bytes, body):
        self.batch_id = batch_id
        self.digest = digest  # of everything behind the batch_id
        self.state: tuple | None = None
        self._body = body

    def read(self) -> dict:
        """The body's object, once."""
        body, self._body = self._body, None
        return parse_json_object(body)


def open_batch(body) -> dict | UnreadBatch:
    """The object in a body, unread where it may be a repeated batch."""
    head = OLDER_HEAD.match(body)
    if head is None:
        return parse_json_object(body)
    digest = hashlib.blake2b(memoryview(body)[head.end():], digest_size=16).digest()
    return UnreadBatch(head.group(1).decode("ascii"), digest, body)


def repeat_state(changes) -> tuple:
    """Equal at two times when nothing happened between them that could make a batch that said
    nothing new say something.
    """
    db = changes.db
    return (changes.tools.rows_taken,
            *db.execute("SELECT max(seq), count(*) FROM root").fetchone(),
            hash(tuple(db.execute("SELECT scope, name, value_json FROM setting"))))


class BatchRepeats:
    """Remembers the latest batches of older agents that would say nothing new."""

    def __init__(self):
        self._lock = threading.Lock()  # guards _known
        self._known: collections.OrderedDict = collections.OrderedDict()

    def remember(self, unread: UnreadBatch, body: dict, agent_id: str) -> None:
        """Note a batch that was applied and committed, if it may be known again."""
        if unread.state is None or set(body) != {"batch_id", "files"} or (
                body["batch_id"] != unread.batch_id):
            return
        with self._lock:
            self._known[agent_id, unread.digest] = (unread.state, len(body["files"]))
            while len(self._known) > REPEATS_KEPT:
                self._known.popitem(last=False)

    def find(self, unread: UnreadBatch, agent_id: str) -> tuple | None:
        """(state, number of files) of the same batch, if it is known."""
        with self._lock:
            return self._known.get((agent_id, unread.digest))
