"""One batch for the host, and its records as the JSON texts that go over the wire."""

from __future__ import annotations

import json
from json.encoder import encode_basestring_ascii

from .scan_common import ext_of, name_of

PLAIN_RECORD_COLUMNS = (
    "rev, path, inode_key, size, mtime, ctime, probed, hashed, hash_algo, hash_sample_size,"
    " sample_hash, full_hash, root_id, kind"
)
PLAIN_RECORD_WIDTH = 14
RECORD_COLUMNS = f"{PLAIN_RECORD_COLUMNS}, reason, moved_from, metadata"


class Batch:
    """All changes with after_rev < rev <= rev, of one root. `removed` are absolute paths.

    `files` are records as JSON texts: most of them go over a wire and nobody here looks into them.
    A payload left behind by an older agent has no revs: rev is None then.
    """

    def __init__(self, batch_id: str, root: dict, after_rev: int | None, rev: int | None,
                 files=(), removed=(), keys=(), changes: int = 0, described: int = 0,
                 outbox_id: int | None = None):
        self.batch_id = batch_id
        self.root = root
        self.after_rev = after_rev
        self.rev = rev
        self.files = list(files)
        self.removed = list(removed)
        self.keys = list(keys)  # the index paths of `files`, in order
        self.changes = changes  # how many rows and tombstones it tells of
        self.described = described  # how many of `files` have metadata
        self.outbox_id = outbox_id

    def outline(self) -> dict:
        """The message's body apart from its files."""
        body = {"batch_id": self.batch_id, **self.root, "phase": self.phase(),
                "removed": self.removed}
        if self.rev is not None:
            body.update(after_rev=self.after_rev, rev=self.rev)
        return body

    def phase(self) -> int:
        return 2 if self.files and self.described == len(self.files) else 1


def record_text(row: tuple, path: str, more: str) -> str:
    """A row (RECORD_COLUMNS) as the JSON text of `record_of`, under the path the host knows.

    Written out by hand, since this is done for every file: a dict and json.dumps take four times
    as long. `more` are further members. Metadata is JSON text in the cache already.
    """
    (_, _, identity, size, mtime, ctime, probed, hashed, algo, sample_size, sample, full, _, kind,
     reason, _, metadata) = row
    quote = encode_basestring_ascii
    if reason and kind == "junk":
        more = f',"reason":{quote(reason)}{more}'
    if metadata and probed:
        more = f',"metadata":{metadata}{more}'
    if hashed:
        sample = quote(sample)
        full = "null" if not full else sample if full == row[10] else quote(full)
        more = (f',"hashes":{{"algo":{quote(algo)},"sample_size":{sample_size},'
                f'"sample_hash":{sample},"full_hash":{full}}}{more}')
    return (f'{{"kind":{quote(kind)},"path":{quote(path)},"size":{size},'
            f'"mtime":{"null" if mtime is None else mtime},'
            f'"ctime":{"null" if ctime is None else ctime},'
            f'"inode_key":{quote(identity)},"ext":{quote(ext_of(name_of(path)))}{more}}}')


def batch_text(outline: dict, files: list) -> str:
    """The JSON text of a batch from its other members and the texts of its records."""
    head = json.dumps(outline, allow_nan=False, separators=(",", ":"))
    return f'{head[:-1]},"files":[{",".join(files)}]}}'


def records_of_texts(files: list) -> list:
    """The records of a batch as dicts, for those who take no text."""
    return json.loads(f"[{','.join(files)}]")


def root_wire_path(root, path: str) -> str:
    """The absolute path the host knows: that of the index, or of a parked root's last place."""
    if not root.parked:
        return path
    prefix = root.prefix()
    if not path.startswith(prefix):
        return path
    return f"{root.path.rstrip('/')}/{path[len(prefix):]}"
