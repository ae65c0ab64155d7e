"""Every call of the host over real HTTP: the shape of its answer, and the shape of its refusal."""

from __future__ import annotations

import csv
import http.client
import io
import json
import uuid

import pytest

from medialib.catalog import Catalog
from medialib.catalog_files import SORT_NAMES
from medialib.catalog_tokens import encode_token
from medialib.http_gate import Gate
from medialib.http_server import JsonServer
from medialib.server_routes import HostRoutes
from tests import support

ODD_NAMES = ["=cmd|x.mkv", 'quo"te.mkv', "line\nbreak.mkv", "<script>.mkv", "Ünïcode É.mkv",
             "\uef80raw.mkv", "-dash.mkv", "+plus.jpg"]


class Served:
    """A host on a free port with forty files of two agents."""

    def __init__(self, folder):
        self.catalog = Catalog(str(folder / "medialib.db"))
        self.routes = HostRoutes(self.catalog, agent_file=lambda: None)
        self.router = self.routes.router()
        self.server = JsonServer("127.0.0.1", 0, self.router, Gate())
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.port}"
        self.fill()

    def fill(self):
        for agent, names in (("a-1", [f"f{n:03}.mkv" for n in range(20)] + ODD_NAMES),
                             ("b-2", [f"f{n:03}.mkv" for n in range(12)])):
            self.post("/ingest/hello", {"agent": {"id": agent, "name": f"box {agent}", "roots": [
                {"path": "/m", "state": "online"}]}, "stats": {"active": False}})
            self.post("/ingest/batch", {
                "batch_id": str(uuid.uuid4()), "agent": {"id": agent, "name": f"box {agent}"},
                "root": "/m", "files": [self.record(name, n) for n, name in enumerate(names)]})

    def record(self, name, number):
        record = {"kind": "video" if name.endswith("mkv") else "junk", "path": f"/m/sub/{name}",
                  "size": 1000 + number, "mtime": 1.6e9 + number, "ctime": 1.6e9,
                  "inode_key": f"{1000 + number}:{(1600000000 + number) * 10**9}:{number + 1}:1",
                  "hashes": {"algo": "blake3", "sample_size": 65536,
                             "sample_hash": f"{number:064x}", "full_hash": f"{number:064x}"}}
        if record["kind"] == "junk":
            record["reason"] = "name matches +*"
        elif number % 2:
            record["metadata"] = {"duration": 10.0 + number, "container": "matroska",
                                  "video_codec": "h264", "audio_codecs": ["aac", "ac3"],
                                  "width": 1920, "height": 1080, "bitrate": 5,
                                  "streams_json": '{"streams": [{"index": 0}]}'}
        return record

    def post(self, path, body=None):
        return support.post(self.url, path, body)

    def files(self, **body):
        return self.post("/api/files", body)

    def stop(self):
        self.routes.stop()
        self.server.stop()
        self.catalog.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    host = Served(tmp_path_factory.mktemp("served"))
    yield host
    host.stop()


SHAPES = {
    "/api/summary": ({}, {"library_id", "files", "bytes", "missing", "offline", "kinds", "agents",
                          "duplicates", "seq"}),
    "/api/files": ({}, {"files", "next"}),
    "/api/file": ({"id": 1}, {"file"}),
    "/api/facets": ({"keys": ["kind"]}, {"total", "facets"}),
    "/api/duplicates": ({}, {"groups", "next"}),
    "/api/folders": ({}, {"folders", "files", "bytes", "own", "more"}),
    "/api/growth": ({}, {"days"}),
    "/api/changes": ({"after": 0}, {"files", "next"}),
    "/api/agents": ({}, {"agents"}),
    "/api/settings": ({}, {"settings"}),
    "/api/agents/scan_now": ({"agent": "a-1"}, {"started"}),
    "/api/agents/set": ({"agent": "a-1", "settings": {"hash_algo": None}}, {"settings"}),
    "/api/agents/forget": ({"agent": "a-1"}, {"files", "bytes", "forgotten"}),
    "/ingest/folders": ({"agent": {"id": "a-1"}, "root": "/m"}, {"folders", "next"}),
    "/ingest/names": ({"agent": {"id": "a-1"}, "root": "/m", "folder": "sub", "full": True},
                      {"files", "next"}),
    "/ingest/hello": ({"agent": {"id": "a-1", "name": "box a-1"}},
                      {"library_id", "protocol", "config", "commands", "last_rev", "roots"}),
}


@pytest.mark.parametrize("path", sorted(SHAPES))
def test_answer_has_its_shape(served, path):
    body, keys = SHAPES[path]
    answer = served.post(path, body)
    assert answer["ok"] is True
    assert keys <= set(answer)


def test_configuration_tells_who_we_are(served):
    config = support.get(served.url, "/ingest/config")
    assert config["batch_size"] == config["agent_batch_size"] == 500
    assert set(config["medialib"]) == {"version", "protocol", "library_id"}
    assert support.get(served.url, "/health")["ok"] is True


REFUSED = [
    ("/api/files", {"limit": 0}), ("/api/files", {"limit": 1001}), ("/api/files", {"limit": "5"}),
    ("/api/files", {"sort": "colour"}), ("/api/files", {"order": "up"}),
    ("/api/files", {"after": "x"}), ("/api/files", {"after": 5}), ("/api/files", {"filter": []}),
    ("/api/files", {"filter": {"colour": 1}}), ("/api/files", {"filter": {"kind": "film"}}),
    ("/api/files", {"filter": {"size": {"min": "x"}}}), ("/api/files", {"filter": {"q": 5}}),
    ("/api/files", {"filter": {"hash": "zz"}}), ("/api/files", {"filter": {"state": "gone"}}),
    ("/api/file", {"id": "1"}), ("/api/file", {"id": 10**30}), ("/api/facets", {"keys": ["x"]}),
    ("/api/facets", {"keys": "kind"}), ("/api/duplicates", {"after": [1]}),
    ("/api/duplicates", {"state": "x"}), ("/api/folders", {"agent": "nobody"}),
    ("/api/folders", {"depth": 9}), ("/api/changes", {"after": -1}),
    ("/api/settings", {"set": {"hash_sample_size": 1}}), ("/api/settings", {"set": {"nope": 1}}),
    ("/api/settings", {"set": 5}), ("/api/agents/set", {"agent": "a-1", "roots": ["x"]}),
    ("/api/agents/scan_now", {}), ("/api/agents/forget", {"agent": "a-1", "root": "/none"}),
    ("/api/export", {"format": "xls"}), ("/api/export", {"filter": {"x": 1}}),
    ("/ingest/batch", {}), ("/ingest/hello", {}), ("/ingest/folders", {"agent": {"id": "a-1"}}),
    ("/api/growth", {"days": 0}),
]


@pytest.mark.parametrize(("path", "body"), REFUSED)
def test_refusal_has_its_shape(served, path, body):
    status, answer = support.request(served.url, path, body)
    assert status == 400
    assert answer["ok"] is False
    assert isinstance(answer["error"], str)
    assert answer["detail"]


ODD_PARTS = [10**30, -10**30, float("inf"), float("nan"), 1.5, "x", "\ud800", "\0", None, True,
             [], {}]


@pytest.mark.parametrize("sort", [*SORT_NAMES, "duplicates", "duplicate_folders"])
def test_a_token_that_was_changed_is_a_bad_request(served, sort):
    """Whoever asks keeps the token, and may send anything in its place."""
    refused = 0
    for part in ODD_PARTS:
        for parts in ((part,), (part, 1), (1, part), ("a", part), (part, 1, 1), (1, 1, part),
                      (1, "61", part, 1), (1, "61", "a", part)):
            after = encode_token(*parts)
            if sort in SORT_NAMES:
                path, body = "/api/files", {"sort": sort, "after": after, "filter": {"q": "f"}}
            else:
                path, body = f"/api/{sort}", {"after": after}
            status, answer = support.request(served.url, path, body)
            assert status in (200, 400), (parts, answer)
            refused += status == 400
    assert refused > 60


def test_what_is_not_there_is_404(served):
    for path, body in (("/api/file", {"id": 99999}), ("/api/agents/scan_now", {"agent": "no"}),
                       ("/api/nothing", {})):
        assert support.request(served.url, path, body)[0] == 404
    status, answer = support.request(served.url, "/agent.py")
    assert status == 404
    assert "beside server.py" in answer["detail"]


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("sort", ["name", "size", "mtime", "changed", "first_seen", "path"])
@pytest.mark.parametrize("filter_", [{}, {"agent": "a-1"}, {"kind": "video"}, {"q": "f0"}])
def test_pages_are_the_whole_in_order(served, sort, order, filter_):
    body = {"sort": sort, "order": order, "filter": filter_}
    whole = served.files(**body, limit=1000)["files"]
    paged, after = [], None
    while True:
        answer = served.files(**body, limit=7, after=after)
        paged += answer["files"]
        after = answer["next"]
        if after is None:
            break
    assert [row["id"] for row in paged] == [row["id"] for row in whole]
    assert len({row["id"] for row in whole}) == len(whole)
    key = {"changed": "seq", "first_seen": "id"}.get(sort, sort)
    if sort not in ("name", "path"):
        values = [row[key] for row in whole]
        assert values == sorted(values, reverse=order == "desc")


FILTERS = [
    ({"q": "F01 SUB"}, lambda row: "f01" in row["name"]),
    ({"q": "ünï"}, lambda row: row["name"].startswith("Ü")),
    ({"q": "<sc"}, lambda row: row["name"] == "<script>.mkv"),
    ({"q": "ub/f00"}, lambda row: row["name"].startswith("f00")),
    ({"ext": [".jpg"]}, lambda row: row["ext"] == ".jpg"),
    ({"kind": "junk"}, lambda row: row["kind"] == "junk"),
    ({"reason": "name matches +*"}, lambda row: row["kind"] == "junk"),
    ({"size": {"min": 1003, "max": 1005}}, lambda row: 1003 <= row["size"] <= 1005),
    ({"mtime": {"min": 1.6e9 + 10}}, lambda row: row["mtime"] >= 1.6e9 + 10),
    ({"probed": True}, lambda row: row["metadata"] is not None),
    ({"height": {"min": 1000}}, lambda row: row["metadata"] is not None),
    ({"resolution": "1080p"}, lambda row: row["metadata"] is not None),
    ({"audio_codec": "ac3"}, lambda row: row["metadata"] is not None),
    ({"video_codec": "vp9"}, lambda row: False),
    ({"hash": f"{5:064x}"}, lambda row: row["size"] == 1005),
    ({"copies": {"min": 2}}, lambda row: row["size"] < 1012),
    ({"copies": {"max": 1}}, lambda row: row["size"] >= 1012),
    ({"agent": "b-2"}, lambda row: row["agent"]["id"] == "b-2"),
    ({"under": "/m/sub"}, lambda row: True), ({"under": "/m/su"}, lambda row: False),
    ({"folder": "/m"}, lambda row: False), ({"folder": "/m/sub"}, lambda row: True),
    ({"state": "missing"}, lambda row: False),
    ({"state": ["present", "offline"]}, lambda row: True),
]


@pytest.mark.parametrize(("filter_", "wanted"), FILTERS,
                         ids=lambda one: "wanted" if callable(one) else str(one)[:40])
def test_filters_are_exact(served, filter_, wanted):
    """The answer is what a look at every row gives, and the counts agree with it."""
    every = served.files(limit=1000)["files"]
    expected = {row["id"] for row in every if wanted(row)}
    assert {row["id"] for row in served.files(filter=filter_, limit=1000)["files"]} == expected
    total = served.post("/api/facets", {"filter": filter_})["total"]
    assert total["files"] == len(expected)


def test_search_is_the_same_without_the_index(served):
    queries = ["f01", "f0 mkv", "ünï", "sub", "m/s", "xyz", "É", "-", "0 1"]
    with_index = [served.files(filter={"q": query}, limit=1000)["files"] for query in queries]
    served.catalog.tools.search.usable = False
    try:
        without = [served.files(filter={"q": query}, limit=1000)["files"] for query in queries]
    finally:
        served.catalog.tools.search.usable = True
    assert with_index == without


def test_names_come_back_exactly(served):
    names = {row["name"] for row in served.files(limit=1000)["files"]}
    assert set(ODD_NAMES) <= names


def test_file_shows_streams_and_copies(served):
    row = next(row for row in served.files(limit=1000)["files"] if row["name"] == "f001.mkv")
    file = served.post("/api/file", {"id": row["id"]})["file"]
    assert file["streams"] == [{"index": 0}]
    assert [(copy["name"], copy["match"]) for copy in file["copies"]] == [
        ("f001.mkv", "confirmed")]


def test_duplicates_come_by_gain(served):
    groups = served.post("/api/duplicates", {"limit": 200})["groups"]
    gains = [group["reclaimable"] for group in groups]
    assert gains == sorted(gains, reverse=True)
    assert len(groups) == 12
    assert sum(gains) == served.post("/api/summary")["duplicates"]["reclaimable_bytes"]
    assert all(group["copies"] == group["names"] == len(group["files"]) == 2 for group in groups)


def test_folders_add_up(served):
    top = served.post("/api/folders", {"depth": 2})
    assert top["files"] == sum(folder["files"] for folder in top["folders"]) == 40
    one = served.post("/api/folders", {"agent": "a-1", "path": "/m"})
    assert [(folder["name"], folder["files"]) for folder in one["folders"]] == [("sub", 28)]


def test_changes_can_be_followed(served):
    seen, after = [], 0
    while True:
        answer = served.post("/api/changes", {"after": after, "limit": 9})
        seen += [row["seq"] for row in answer["files"]]
        if answer["next"] == after:
            break
        after = answer["next"]
    assert seen == sorted(seen)
    assert len(seen) == 40


def exported(served, **body):
    connection = http.client.HTTPConnection("127.0.0.1", served.server.port, timeout=20)
    connection.request("POST", "/api/export", json.dumps(body),
                       {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200
    text = answer.read().decode("utf-8")
    connection.close()
    return text


def test_exports_hold_every_row(served):
    lines = exported(served, format="jsonl").strip("\n").split("\n")
    assert {json.loads(line)["name"] for line in lines} >= set(ODD_NAMES)
    assert len(lines) == 40
    raw = list(csv.DictReader(io.StringIO(exported(served, format="csv", raw=True), newline="")))
    assert {row["name"] for row in raw} >= set(ODD_NAMES)
    safe = list(csv.DictReader(io.StringIO(exported(served, format="csv"), newline="")))
    assert len(safe) == 40
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in safe for cell in row.values()
                   if cell)
    assert exported(served, format="csv", what="duplicates").count("\r\n") == 25


def test_metrics_and_description(served):
    text = support.get(served.url, "/metrics")
    assert 'medialib_files{kind="video"} 39' in text
    assert "/m" not in text
    for line in text.strip().split("\n"):
        assert line.startswith(("# HELP medialib_", "# TYPE medialib_", "medialib_"))
    described = support.get(served.url, "/openapi.json")["paths"]
    routes = {(route["method"].lower(), route["path"]) for route in served.router.routes}
    assert {(method, path) for path, methods in described.items() for method in methods} == routes


def test_events_begin_with_the_counts(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.server.port, timeout=20)
    connection.request("GET", "/events")
    answer = connection.getresponse()
    assert answer.getheader("Content-Type").startswith("text/event-stream")
    lines = [answer.readline() for _ in range(4)]
    assert lines[2] == b"event: counts\n"
    assert json.loads(lines[3][len("data: "):])["files"] == 40
    connection.close()


def test_settings_are_kept_and_an_extension_moves_its_files(tmp_path):
    host = Served(tmp_path)
    try:
        config = support.get(host.url, "/ingest/config")
        lists = {"media_extensions": [ext for ext in config["media_extensions"] if ext != ".mkv"],
                 "other_extensions": [*config["other_extensions"], ".mkv"]}
        assert host.post("/api/settings", {"set": lists})["reclassified"] == 39
        assert host.post("/api/summary")["kinds"]["other"]["files"] == 39
        status, answer = support.request(host.url, "/api/settings", {"set": {"hash_algo": "md5"}})
        assert (status, answer["setting"]) == (400, "hash_algo")
        host.post("/api/agents/set", {"agent": "a-1", "roots": ["/x"],
                                      "settings": {"agent_max_workers": 2}})
        answer = host.post("/ingest/hello", {"agent": {"id": "a-1", "name": "box"}})
        assert answer["config"]["remote_roots"] == ["/x"]
        assert answer["config"]["agent_max_workers"] == 2
        plan = host.post("/api/agents/forget", {"agent": "b-2"})
        assert (plan["files"], plan["forgotten"]) == (12, False)
        wrong = support.request(host.url, "/api/agents/forget", {"agent": "b-2", "confirm": 11})
        assert wrong[0] == 409
        assert host.post("/api/agents/forget", {"agent": "b-2", "confirm": 12})["forgotten"]
        assert host.post("/api/summary")["files"] == 28
    finally:
        host.stop()


def test_a_damaged_catalogue_is_said(tmp_path):
    (tmp_path / "medialib.db").write_bytes(b"no database" * 5000)
    catalog = Catalog(str(tmp_path / "medialib.db"))
    routes = HostRoutes(catalog)
    server = JsonServer("127.0.0.1", 0, routes.router(), Gate())
    server.start()
    try:
        url = f"http://127.0.0.1:{server.port}"
        for path, body in (("/health", None), ("/api/files", {}), ("/ingest/batch", {"files": []})):
            status, answer = support.request(url, path, body)
            assert status == 503
            assert "To restore" in answer["detail"]
        assert "To restore" in support.request(url, "/")[1]
    finally:
        server.stop()
