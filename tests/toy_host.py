"""A host in memory that follows the protocol to the letter, for tests of the agent alone.

It shares no code with medialib's host: identity, digest and moves are written out again here.
"""

from __future__ import annotations

import copy
import hashlib
import json
import uuid

from medialib.http_client import PeerError, PeerRefused, PeerUnreachable

PLAIN_KINDS = ("video", "image", "subtitle", "xml", "other", "unknown", "junk")


def identity_of(inode_key: str) -> tuple:
    """size, mtime_ns and ino: the device is not part of it."""
    size, mtime_ns, ino, _ = inode_key.split(":")
    return int(size), int(mtime_ns), int(ino)


class ToyHost:
    """`fail` is a list of what happens to the next posts: "before", "after", an exception, None."""

    def __init__(self, config=None):
        self.config = dict(config or {})
        self.library_id = str(uuid.uuid4())
        self.last_rev: dict = {}
        self.answers: dict = {}
        self.roots: list = []
        self.files: dict = {}
        self.next_id = 1
        self.commands: list = []
        self.keeps_rev = True
        # Not part of the library:
        self.fail: list = []
        self.hello_fail: list = []
        self.poison: set = set()  # paths whose records are named in `errors`
        self.refuse_batch: dict = {}  # path → status for any batch that holds it
        self.most_records: int | None = None  # 413 above
        self.posts: list = []
        self.hellos: list = []
        self.list_calls = 0
        self.out_of_step = 0

    LIBRARY = ("library_id", "last_rev", "answers", "roots", "files", "next_id")

    def backup(self) -> dict:
        return copy.deepcopy({name: getattr(self, name) for name in self.LIBRARY})

    def restore(self, saved: dict) -> None:
        vars(self).update(copy.deepcopy(saved))

    def new_library(self) -> None:
        fresh = ToyHost()
        self.restore({name: getattr(fresh, name) for name in self.LIBRARY})

    # -- the transport's calls -------------------------------------------------------------------

    def hello(self, body: dict) -> dict:
        body = json.loads(json.dumps(body, allow_nan=False))
        if self.hello_fail:
            failure = self.hello_fail.pop(0)
            if failure is not None:
                raise failure
        self.hellos.append(body)
        agent = body["agent"]["id"]
        if body["agent"]["roots"] is not None:
            self._take_roots(agent, body["agent"]["roots"])
        commands, self.commands = self.commands, []
        told = [{"path": root["path"], "volume": root["volume"], "transferred": False,
                 "known_files": self._totals(root["id"])[0]}
                for root in self.roots if root["agent"] == agent]
        return {"ok": True, "library_id": self.library_id, "protocol": 1,
                "config": dict(self.config), "commands": commands, "roots": told,
                "last_rev": self.last_rev.get(agent, 0)}

    def _take_roots(self, agent: str, reported: list) -> None:
        seen = set()
        for told in sorted(reported, key=lambda root: root["state"] != "offline"):
            root = self._root(agent, told)
            root["state"], root["reason"] = told["state"], told.get("reason")
            seen.add(root["id"])
        for root in self.roots:
            if root["agent"] == agent and root["id"] not in seen:
                root["state"] = "offline"

    def _root(self, agent: str, named: dict) -> dict:
        path = named.get("path", named.get("root"))
        volume, volume_path = named.get("volume"), named.get("volume_path")
        for root in self.roots:
            if root["agent"] != agent:
                continue
            if volume is not None:
                same = (root["volume"], root["volume_path"] or "") == (volume, volume_path or "")
            else:
                same = root["volume"] is None and root["path"] == path
            if same:
                root["path"] = path
                return root
        root = {"id": len(self.roots) + 1, "agent": agent, "path": path, "volume": volume,
                "volume_path": volume_path, "state": "online", "reason": None}
        self.roots.append(root)
        return root

    def batch(self, body: dict, gzip: bool = False) -> dict:
        body = json.loads(json.dumps(body, allow_nan=False))
        failure = self.fail.pop(0) if self.fail else None
        if failure == "before":
            raise PeerUnreachable("the post did not get through")
        if isinstance(failure, Exception):
            raise failure
        self._refuse(body)
        answer = self._batch(body)
        self.posts.append(body)
        if failure == "after":
            raise PeerUnreachable("the answer was lost")
        return answer

    def _refuse(self, body: dict) -> None:
        for record in body["files"]:
            status = self.refuse_batch.get(record["path"])
            if status is not None:
                raise PeerRefused(status, "bad batch")
        if self.most_records is not None and len(body["files"]) > self.most_records:
            raise PeerRefused(413, "too large")

    def _batch(self, body: dict) -> dict:
        agent = body["agent"]["id"]
        known = self.last_rev.get(agent, 0)
        after, rev = body.get("after_rev"), body.get("rev")
        if rev is not None:
            assert after <= rev
            if known < after:
                raise PeerRefused(409, "resync", "", {"ok": False, "error": "resync",
                                                      "last_rev": known})
            if rev <= known and "end_of_root" not in body:
                done = self.answers.get((agent, body["batch_id"]))
                return done or {"ok": True, "batch_id": body["batch_id"], "errors": [],
                                "processed": len(body["files"])}
        root = self._root(agent, body)
        root["state"] = "online"
        errors = []
        for index, record in enumerate(body["files"]):
            if record["path"] in self.poison:
                errors.append({"index": index, "path": record["path"], "error": "poison"})
            else:
                self._upsert(agent, root, record)
        for path in body["removed"]:
            self._remove(root, path)
        answer = {"ok": True, "batch_id": body["batch_id"], "errors": errors,
                  "processed": len(body["files"]) - len(errors)}
        if rev is not None:
            self.last_rev[agent] = max(known, rev)
        if "end_of_root" in body:
            end = body["end_of_root"]
            files, digest = self._totals(root["id"])
            answer["in_step"] = (files, f"{digest:016x}") == (end["files"], end["digest"])
            self.out_of_step += not answer["in_step"]
        else:
            self.answers[agent, body["batch_id"]] = answer
        return answer

    # -- rows ------------------------------------------------------------------------------------

    def rel(self, root: dict, path: str) -> str:
        prefix = root["path"].rstrip("/") + "/"
        assert path.startswith(prefix), f"{path} is not below {prefix}"
        return path[len(prefix):]

    def _at(self, root_id: int, rel: str, state: str) -> list:
        return [row for row in self.files.values()
                if (row["root"], row["rel"], row["state"]) == (root_id, rel, state)]

    def _upsert(self, agent: str, root: dict, record: dict) -> None:
        rel, mine = self.rel(root, record["path"]), identity_of(record["inode_key"])
        here = self._at(root["id"], rel, "present")
        assert len(here) <= 1
        row = here[0] if here else None
        moved = None
        if record.get("moved_from") and not (row and row["identity"] == mine):
            moved = self._moved(agent, record["moved_from"], mine)
        if moved is not None:
            if row is not None and row is not moved:
                row["state"] = "missing"
            row = moved
        elif row is None:
            gone = self._at(root["id"], rel, "missing")
            same = [one for one in gone if one["identity"] == mine]
            row = (same or sorted(gone, key=lambda one: -one["at"]) or [None])[0]
        if row is None:
            row = {"id": self.next_id, "identity": None}
            self.files[self.next_id] = row
            self.next_id += 1
        self._write(row, root, rel, record, mine)

    def _moved(self, agent: str, path: str, mine: tuple):
        for state in ("present", "missing"):
            for root in sorted(self.roots, key=lambda root: -len(root["path"])):
                prefix = root["path"].rstrip("/") + "/"
                if root["agent"] != agent or not path.startswith(prefix):
                    continue
                for row in self._at(root["id"], path[len(prefix):], state):
                    if row["identity"] == mine:
                        return row
        return None

    def _write(self, row: dict, root: dict, rel: str, record: dict, mine: tuple) -> None:
        same = row["identity"] == mine
        old_hashes = row.get("hashes") if same else None
        hashes = record.get("hashes") or old_hashes
        if hashes and old_hashes and hashes["full_hash"] is None and all(
                hashes[name] == old_hashes[name] for name in ("algo", "sample_size",
                                                              "sample_hash")):
            hashes = old_hashes
        metadata = record.get("metadata") or (row.get("metadata") if same else None)
        self.next_id += 1
        row.update(root=root["id"], rel=rel, state="present", identity=mine, hashes=hashes,
                   metadata=metadata, at=self.next_id,
                   **{name: record.get(name) for name in
                      ("path", "kind", "size", "mtime", "ctime", "ext", "reason", "error")})

    def _remove(self, root: dict, path: str) -> None:
        for row in self._at(root["id"], self.rel(root, path), "present"):
            row["state"] = "missing"
            self.next_id += 1
            row["at"] = self.next_id

    def _digest(self, row: dict) -> int:
        hashes = row["hashes"] or {}
        size, mtime_ns, ino = row["identity"]
        parts = [row["rel"], f"{size}:{mtime_ns}:{ino}", row["kind"], hashes.get("algo") or "",
                 hashes.get("sample_hash") or "", hashes.get("full_hash") or "",
                 "1" if row["metadata"] else "0"]
        packed = "\0".join(parts).encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "big")

    def _totals(self, root_id: int, folder: str | None = None) -> tuple:
        rows = [row for row in self.files.values()
                if row["root"] == root_id and row["state"] == "present"
                and (folder is None or row["rel"].rpartition("/")[0] == folder)]
        return len(rows), sum(self._digest(row) for row in rows) % (1 << 64)

    # -- comparing -------------------------------------------------------------------------------

    def folders(self, body: dict) -> dict:
        self.list_calls += 1
        root = self._root(body["agent"]["id"], body)
        names = sorted({row["rel"].rpartition("/")[0] for row in self.files.values()
                        if row["root"] == root["id"] and row["state"] == "present"})
        page = []
        for number, name in list(enumerate(names, 1))[body["after"]:][:min(body["limit"], 2)]:
            files, digest = self._totals(root["id"], name)
            page.append({"id": number, "path": name, "files": files, "digest": f"{digest:016x}"})
        more = bool(page) and page[-1]["id"] < len(names)
        return {"ok": True, "folders": page, "next": page[-1]["id"] if more else None}

    def names(self, body: dict) -> dict:
        self.list_calls += 1
        root = self._root(body["agent"]["id"], body)
        rows = sorted((row for row in self.files.values()
                       if row["root"] == root["id"] and row["state"] == "present"
                       and row["rel"].rpartition("/")[0] == body["folder"]
                       and row["rel"].rpartition("/")[2] > body["after"]),
                      key=lambda row: row["rel"])
        page = rows[:min(body["limit"], 3)]
        more = len(rows) > len(page)
        return {"ok": True, "files": [{"name": row["rel"].rpartition("/")[2]} for row in page],
                "next": page[-1]["rel"].rpartition("/")[2] if more else None}

    # -- what tests ask --------------------------------------------------------------------------

    def present(self) -> dict:
        """{path: row} of the present files of all roots, wherever they are mounted now."""
        paths = {root["id"]: root["path"].rstrip("/") + "/" for root in self.roots}
        found = {}
        for row in self.files.values():
            if row["state"] == "present":
                path = paths[row["root"]] + row["rel"]
                here, there = self.root_state(row), found.get(path)
                assert there is None or "offline" in (here, self.root_state(there)), path
                if there is None or here != "offline":
                    found[path] = row
        return found

    def root_state(self, row: dict) -> str:
        return next(root["state"] for root in self.roots if root["id"] == row["root"])

    def states(self) -> dict:
        """{id: state} of every row there ever was."""
        return {number: row["state"] for number, row in self.files.items()}

    def records(self) -> int:
        return sum(len(post["files"]) + len(post["removed"]) for post in self.posts)


class ToyCall:
    """A batch that the host has carried out, or refused, before anybody asks for its answer."""

    def __init__(self, host: ToyHost, body: dict, gzip: bool):
        self.answer = self.error = None
        try:
            self.answer = host.batch(body, gzip)
        except PeerError as error:
            self.error = error

    def finish(self):
        if self.error is not None:
            raise self.error
        return self.answer

    def abandon(self):
        pass


class ToyTransport:
    """One thread's way to a ToyHost."""

    batches_at_once = 3

    def __init__(self, host: ToyHost):
        self.host = host
        self.older = False
        self.sent_bytes = 0

    def hello(self, body):
        return self.host.hello(body)

    def batch(self, outline, files, gzip=False):
        return self.begin_batch(outline, files, gzip).finish()

    def begin_batch(self, outline, files, gzip=False):
        body = {**outline, "files": [json.loads(text) for text in files]}
        return ToyCall(self.host, body, gzip)

    def folders(self, body):
        return self.host.folders(body)

    def names(self, body):
        return self.host.names(body)
