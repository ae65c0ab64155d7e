"""Sorted lists of the catalogue: every sort, page by page and by jumps, with filters and searches;
and the counts beside them.
"""

from __future__ import annotations

import random

import pytest

from medialib import catalog_files, catalog_propose, catalog_skip
from medialib.catalog import Catalog
from medialib.catalog_facets import FACET_COLUMNS, FacetCounts, rounded
from medialib.catalog_files import SORT_NAMES, FilePages
from medialib.catalog_filter import FilterError
from medialib.catalog_sample import spread_out
from medialib.catalog_skip import FarPlace
from medialib.host_agents import AgentPresence
from medialib.ingest import Ingest

FILES = 420
WORDS = ("golden", "River", "kilo", "\u212ailo", "\u0130stanbul", "holiday", "1080p", "caf\u00e9",
         "100%", "under_score")
KINDS = ((".mkv", "video"), (".jpg", "image"), (".mp3", "audio"), (".tmp", "junk"), (".nfo", "xml"))
CODECS = ("h264", "hevc", None)
FILTERS = (
    {}, {"q": "golden"}, {"q": "river 1080p"}, {"q": "kilo"}, {"q": "istanbul"}, {"q": "100%"},
    {"q": "r_s"}, {"q": "e"}, {"q": "golden/river"}, {"q": "shelf café"}, {"q": "lo \u00e9"},
    {"kind": ["video", "xml"]}, {"agent": "a"}, {"state": ["missing"]},
    {"state": ["offline", "present"]},
    {"size": {"min": 300}}, {"agent": "b", "under": "/b/golden"}, {"video_codec": ["hevc"]},
    {"ext": [".jpg", ".tmp"]}, {"reason": ["name matches *river*"]},
)
SORT_OF_ROW = {
    "kind": lambda row: row["kind"], "ext": lambda row: row["ext"],
    "state": lambda row: row["state"], "agent": lambda row: row["agent"]["name"].lower(),
    "reason": lambda row: row["reason"],
    "video_codec": lambda row: (row["metadata"] or {}).get("video_codec"),
    "container": lambda row: (row["metadata"] or {}).get("container"),
    "audio_codec": lambda row: (row["metadata"] or {}).get("audio_codecs"),
    "size": lambda row: row["size"], "name": lambda row: row["name"].encode().lower(),
}


def record(number: int, pick: random.Random, agent: str) -> dict:
    ext, kind = pick.choice(KINDS)
    folder = "/".join(pick.choice(WORDS) for _ in range(pick.randrange(3)))
    name = f"{pick.choice(WORDS)} {pick.choice(WORDS)} {number}{ext}"
    made = {"kind": kind, "ext": ext, "size": pick.randrange(600), "mtime": 1.6e9 + number,
            "ctime": 1.6e9, "path": f"/{agent}/{folder}/{name}".replace("//", "/"),
            "inode_key": f"7:{(1600000000 + number) * 10**9}:{number + 5}:1"}
    made["inode_key"] = f"{made['size']}{made['inode_key'][1:]}"
    if kind == "junk":
        made["reason"] = f"name matches *{pick.choice(('river', 'tmp'))}*"
    if kind == "video":
        made["metadata"] = {
            "duration": pick.random(), "container": pick.choice(("matroska", "avi")),
            "video_codec": pick.choice(CODECS), "audio_codecs": pick.choice((["aac"], ["ac3"], [])),
            "width": 640, "height": pick.choice((480, 1080)), "bitrate": number,
            "streams_json": "{}"}
    return made


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    made = Catalog(str(tmp_path_factory.mktemp("lists") / "medialib.db"))
    ingest, pick = Ingest(made, AgentPresence(made.clock)), random.Random(5)
    for agent, name in (("a", "Beta box"), ("b", "alpha box"), ("c", "Shelf")):
        about = {"id": agent, "name": name}
        for state in ("online", "offline" if agent == "c" else "online"):
            ingest.hello({"agent": {**about, "roots": [{"path": f"/{agent}", "state": state}]},
                          "stats": {}}, "127.0.0.1")
            if state == "online":
                records = [record(number, pick, agent) for number in range(FILES // 3)]
                gone = [one["path"] for one in records[:9]] if agent == "a" else []
                for files, removed in ((records, []), ([], gone)):
                    answer = ingest.batch({
                        "batch_id": f"{agent}{len(files)}", "agent": about, "root": f"/{agent}",
                        "files": files, "removed": removed}, "127.0.0.1")
                    assert answer["errors"] == []
    while made.write(made._idle) == 0.0:
        pass
    yield made
    made.close()


@pytest.fixture(params=["candidates", "walked"])
def way(request, monkeypatch):
    """Fetching what can match and sorting it; or walking, whatever is searched."""
    if request.param == "walked":
        for name in ("FEW_FILES", "FEW_OF_ALL", "MANY_FILES"):
            value = 10**9 if name == "FEW_OF_ALL" else -1
            monkeypatch.setattr(catalog_propose, name, value)
        monkeypatch.setattr(catalog_files, "MANY_FILES", -1)
        monkeypatch.setattr(catalog_files, "PAGE_TIME_S", 20)  # the windows are tiny
        monkeypatch.setattr(catalog_files, "WINDOW_FIRST", 7)
        monkeypatch.setattr(catalog_files, "WINDOW_LARGEST", 11)
    return request.param


def ask(catalog, **body) -> dict:
    with catalog.reader() as db:
        return FilePages(catalog, db).page(body)


def whole_list(catalog, limit: int, **body) -> list:
    rows, after = [], None
    while True:
        page = ask(catalog, limit=limit, after=after, **body)
        rows += page["files"]
        after = page["next"]
        if after is None:
            return rows


def is_wanted(row: dict, filter_: dict) -> bool:
    path = row["path"].lower()
    lists = {"kind": row["kind"], "agent": row["agent"]["id"], "state": row["state"],
             "ext": row["ext"], "reason": row["reason"],
             "video_codec": (row["metadata"] or {}).get("video_codec")}
    return all(
        all(word in path for word in value.lower().split()) if key == "q"
        else row["size"] >= value["min"] if key == "size"
        else (row["path"] + "/").startswith(value + "/") if key == "under"
        else lists[key] in value for key, value in filter_.items())


@pytest.fixture(scope="module")
def every(catalog):
    rows = whole_list(catalog, 1000, sort="name", filter={})
    assert len(rows) == FILES
    return rows


@pytest.mark.parametrize("sort", SORT_NAMES)
def test_every_sort_lists_what_is_wanted_once(catalog, every, way, sort):
    for filter_ in FILTERS:
        check_list(catalog, every, sort, filter_)


def check_list(catalog, every, sort, filter_) -> None:
    value = SORT_OF_ROW.get(sort, lambda row: 0)
    has_value = {row["id"] for row in every if value(row) is not None and (
        sort not in ("duration", "height", "bitrate") or row["metadata"])}
    wanted = {row["id"] for row in every if is_wanted(row, filter_)} & has_value
    rows = whole_list(catalog, 50, sort=sort, filter=filter_)
    assert sorted(row["id"] for row in rows) == sorted(wanted), filter_
    values = [value(row) for row in rows]
    assert values == sorted(values)
    back = whole_list(catalog, 1000, sort=sort, filter=filter_, order="desc")
    assert [row["id"] for row in back] == [row["id"] for row in rows][::-1]


@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize("sort", SORT_NAMES)
def test_jumps_land_where_paging_does(catalog, way, sort, near, monkeypatch):
    if not near:
        monkeypatch.setattr(catalog_skip, "SKIP_NEAR", 0)
    for number, filter_ in enumerate(FILTERS):
        check_jumps(catalog, sort, filter_, near, "desc" if number % 3 else "asc")


def check_jumps(catalog, sort, filter_, near, order) -> None:
    rows = [row["id"] for row in whole_list(catalog, 1000, sort=sort, filter=filter_, order=order)]
    for skip in {1, len(rows) // 3, max(1, len(rows) - 1), len(rows) + 3} - {0}:
        answer = ask(catalog, sort=sort, filter=filter_, order=order, skip=skip, limit=4)
        assert near <= ("skipped" in answer)
        if "skipped" in answer and "approximate" not in answer:
            assert [file["id"] for file in answer["files"]] == rows[skip:skip + 4], filter_


@pytest.mark.parametrize("sort", SORT_NAMES)
def test_a_place_that_cannot_be_counted_is_about_right(catalog, way, sort, monkeypatch):
    monkeypatch.setattr(catalog_skip, "SKIP_NEAR", 0)
    monkeypatch.setattr(FarPlace, "_in_index", lambda *_: None)
    for filter_ in ({"q": "e"}, {"size": {"min": 100}}, {"agent": "b", "q": "e"}):
        rows = [row["id"] for row in whole_list(catalog, 1000, sort=sort, filter=filter_)]
        skip = len(rows) // 2
        answer = ask(catalog, sort=sort, filter=filter_, skip=skip, of=len(rows), limit=5)
        assert answer["skipped"] == skip
        found = [file["id"] for file in answer["files"]]
        assert found
        start = rows.index(found[0])
        assert rows[start:start + len(found)] == found
        assert abs(start - skip) <= max(40, len(rows) // 3)


def test_bad_jumps_are_refused(catalog):
    for wrong in ({"skip": -1}, {"skip": "3"}, {"skip": 4, "of": -2}, {"skip": True}):
        with pytest.raises(FilterError):
            ask(catalog, **wrong)


# Counts

def counts(catalog, **body) -> dict:
    with catalog.reader() as db:
        return FacetCounts(catalog, db).answer(body)


@pytest.mark.parametrize("filter_", FILTERS, ids=str)
def test_counts_are_those_of_the_rows(catalog, way, filter_):
    answer = counts(catalog, filter=filter_, keys=list(FACET_COLUMNS), limit=500, patience_s=10)
    rows = whole_list(catalog, 1000, sort="name", filter=filter_)
    assert not answer["approximate"]
    assert answer["total"] == {"files": len(rows), "bytes": sum(row["size"] for row in rows)}
    for key in ("kind", "ext", "state", "video_codec", "reason"):
        others = {name: value for name, value in filter_.items() if name != key}
        told = {item["value"]: (item["files"], item["bytes"]) for item in answer["facets"][key]}
        wanted: dict = {}
        for row in whole_list(catalog, 1000, sort="name", filter=others):
            value = SORT_OF_ROW[key](row)
            if value is not None:
                files, size = wanted.get(value, (0, 0))
                wanted[value] = (files + 1, size + row["size"])
        assert told == wanted


def test_what_was_not_reached_is_estimated(catalog, monkeypatch):
    monkeypatch.setattr("medialib.catalog_sample.SAMPLE_BLOCK", 5)
    answer = counts(catalog, filter={"size": {"min": 300}}, keys=["kind"], patience_s=1e-9)
    rows = whole_list(catalog, 1000, sort="name", filter={"size": {"min": 300}})
    assert answer["approximate"]
    assert 0.3 * len(rows) < answer["total"]["files"] < 2 * len(rows)
    for wrong in (0, -1, 11, True, "1", None):
        with pytest.raises(FilterError):
            counts(catalog, patience_s=wrong)


def test_a_sample_comes_from_all_over():
    for count in (1, 2, 3, 10, 97, 1000):
        order = list(spread_out(count))
        assert sorted(order) == list(range(count))
    assert max(list(spread_out(1000))[:4]) > 500
    assert [rounded(number) for number in (0.2, 7.4, 99.6, 1234, 98_765)] == [
        0, 7, 100, 1200, 99_000]
