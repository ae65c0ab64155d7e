"""Folders with the same files: one row for a copied tree, and never for one that only looks so."""

from __future__ import annotations

import csv
import io
import json

import pytest

from medialib.catalog import Catalog
from medialib.catalog_filter import FilterError
from medialib.catalog_same_folders import SameFolders, keys_above
from medialib.host_agents import AgentPresence
from medialib.ingest import Ingest
from medialib.server_export import Export
from medialib.server_turns import ListTurns


class Shelf:
    """A catalogue that is filled with records as agents send them."""

    def __init__(self, folder):
        self.catalog = Catalog(str(folder / "medialib.db"))
        self.ingest = Ingest(self.catalog, AgentPresence(self.catalog.clock))
        self.same = SameFolders(self.catalog)
        self.count = 0

    def put(self, agent, files, *, root="/m", volume=None):
        """files: {relative path: (content number, size) or (content, size, inode)}; a content of
        "~n" has only a sample hash.
        """
        about = {"id": agent, "name": f"box {agent}"}
        report = {"path": root, "state": "online", "volume": volume, "volume_path": "/"}
        self.ingest.hello({"agent": {**about, "roots": [report]}, "stats": {}}, "127.0.0.1")
        records = [self.record(f"{root}/{rel}", *facts) for rel, facts in files.items()]
        self.count += 1
        answer = self.ingest.batch({
            "batch_id": str(self.count), "agent": about, "root": root, "volume": volume,
            "volume_path": "/", "files": records}, "127.0.0.1")
        assert answer["errors"] == []

    def record(self, path, content, size, ino=None):
        self.count += 1
        text = str(content)
        digest = f"{int(text.lstrip('~')):064x}"
        hashes = {"algo": "blake3", "sample_size": 64, "sample_hash": digest,
                  "full_hash": None if text.startswith("~") else digest}
        return {"kind": "other", "path": path, "size": size, "mtime": 1.6e9, "ctime": 1.6e9,
                "inode_key": f"{size}:{1600000000 * 10**9}:{ino or self.count + 1000}:5",
                "ext": ".bin", "hashes": hashes}

    def groups(self, **body):
        self.same._seq = None
        return self.same.page(body)["groups"]

    def paths(self):
        return [[f"{folder['agent']['id']}:{folder['path']}" for folder in group["folders"]]
                for group in self.groups()]


@pytest.fixture
def shelf(tmp_path):
    made = Shelf(tmp_path)
    yield made
    made.catalog.close()


TREE = {"films/one.mkv": (1, 5000), "films/more/two.mkv": (2, 7000), "films/more/three.mkv": (3, 9)}


def test_a_copied_tree_is_one_row(shelf):
    shelf.put("a", {**TREE, "else.bin": (9, 1)})
    shelf.put("b", {rel.replace("films", "backup/of films"): facts for rel, facts in TREE.items()})
    (group,) = shelf.groups()
    assert shelf.paths() == [["a:/m/films", "b:/m"]]
    assert group["state"] == "confirmed"
    assert (group["files"], group["bytes"], group["copies"]) == (3, 12009, 2)
    assert group["reclaimable"] == group["potential"] == 12009


def test_other_content_of_the_same_size_is_not_the_same(shelf):
    shelf.put("a", TREE)
    shelf.put("b", {**TREE, "films/one.mkv": (77, 5000)})
    assert shelf.paths() == [["a:/m/films/more", "b:/m/films/more"]]


def test_a_file_more_is_not_the_same(shelf):
    shelf.put("a", {"x/one": (1, 5000)})
    shelf.put("b", {"x/one": (1, 5000), "x/two": (2, 1)})
    assert shelf.groups() == []


def test_names_do_not_matter_but_number_does(shelf):
    shelf.put("a", {"x/one": (1, 50), "x/two": (2, 60)})
    shelf.put("b", {"y/2.bin": (2, 60), "y/1.bin": (1, 50)})
    shelf.put("c", {"z/1": (1, 50), "z/1 again": (1, 50), "z/3": (3, 10)})
    assert shelf.paths() == [["a:/m", "b:/m"]]


def test_samples_alone_are_candidates(shelf):
    shelf.put("a", {"x/one": ("~1", 5000)})
    shelf.put("b", {"y/one": (1, 5000)})
    (group,) = shelf.groups()
    assert group["state"] == "candidate"
    assert group["reclaimable"] == 0
    assert group["potential"] == 5000


def test_hard_links_and_the_same_disk_twice_free_nothing(shelf):
    shelf.put("a", {"x/one": (1, 5000, 7), "y/link": (1, 5000, 7)}, volume="disk")
    assert shelf.groups() == []
    shelf.put("b", {"seen/one": (1, 5000, 7)}, root="/mnt", volume="disk 2")
    (group,) = shelf.groups()
    assert group["copies"] == 2
    assert group["reclaimable"] == 5000


def test_a_link_inside_a_copied_tree_is_counted_once(shelf):
    shelf.put("a", {"x/one": (1, 5000, 7), "x/link": (1, 5000, 7)})
    shelf.put("b", {"x/one": (1, 5000, 8), "x/link": (1, 5000, 8)})
    (group,) = shelf.groups()
    assert group["reclaimable"] == 5000


def test_folders_in_one_another_are_no_copies(shelf):
    shelf.put("a", {"x/y/z/one": (1, 5000), "x/y/z/two": (2, 10)})
    assert shelf.groups() == []


def test_three_copies_and_filters(shelf):
    for agent in "abc":
        shelf.put(agent, TREE)
    (group,) = shelf.groups()
    assert group["copies"] == 3
    assert group["reclaimable"] == 2 * 12009
    assert len(shelf.groups(filter={"agent": ["b"]})) == 1
    assert shelf.groups(filter={"agent": "nobody"}) == []
    assert shelf.groups(filter={"q": "nowhere"}) == []


def test_pages_and_bad_questions(shelf):
    files = {f"{n}/file": (n, 1000 + n) for n in range(1, 8)}
    shelf.put("a", {**files, "one more": (99, 1)})
    shelf.put("b", {f"copy {n}/file": (n, 1000 + n) for n in range(1, 8)})
    gains = [group["reclaimable"] for group in shelf.groups()]
    assert gains == sorted(gains, reverse=True)
    assert len(gains) == 7
    first = shelf.same.page({"limit": 4})
    second = shelf.same.page({"limit": 4, "after": first["next"]})
    assert [group["reclaimable"] for group in first["groups"] + second["groups"]] == gains
    assert second["next"] is None
    for body in ({"limit": 0}, {"after": "x"}, {"filter": [1]}, {"filter": {"q": 3}}):
        with pytest.raises(FilterError):
            shelf.same.page(body)


def test_the_answer_is_kept_until_the_catalogue_changes(shelf):
    shelf.put("a", TREE)
    assert shelf.same.page({})["groups"] == []
    shelf.put("b", TREE)
    assert shelf.same.page({})["groups"] == []
    shelf.same._looked_at -= 60
    assert len(shelf.same.page({})["groups"]) == 1


def test_keys_above():
    assert list(keys_above(b"a\0b\0c")) == [b"", b"a", b"a\0b"]
    assert list(keys_above(b"a")) == [b""]
    assert list(keys_above(b"")) == []


def exported_folders(shelf, **body) -> str:
    reply = Export(shelf.catalog, shelf.same, ListTurns(), {"what": "folders", **body}).reply()
    assert "identical-folders" in reply.headers["Content-Disposition"]
    return b"".join(reply.pieces).decode("utf-8")


def test_the_export_has_each_folder_of_each_group(shelf):
    for agent in "abc":
        shelf.put(agent, {"=films/one.mkv": (1, 5000), f"{agent}.bin": (ord(agent), 1)})
    rows = list(csv.DictReader(io.StringIO(exported_folders(shelf), newline="")))
    assert [(row["agent"], row["path"]) for row in rows] == [
        (f"box {agent}", "/m/=films") for agent in "abc"]
    assert {(row["group"], row["group_state"], row["copies"], row["files"], row["bytes"],
             row["reclaimable"]) for row in rows} == {
        ("box a:/m/=films", "confirmed", "3", "1", "5000", "10000")}
    (line,) = exported_folders(shelf, format="jsonl").splitlines()
    assert len(json.loads(line)["folders"]) == 3
    assert exported_folders(shelf, filter={"q": "nowhere"}).count("\r\n") == 1
