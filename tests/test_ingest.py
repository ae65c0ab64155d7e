"""Batches from good, old and bad agents: what is stored, what is refused and why."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import math
import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medialib import catalog_compare
from medialib.catalog_rows import row_inode_key
from medialib.catalog_schema import ALGO_NAMES, KIND_NAMES
from medialib.catalog_settings import store_settings
from medialib.http_json import HttpError
from medialib.ingest_records import RecordChecker, RecordError
from medialib.ingest_repeats import open_batch
from medialib.scan_common import row_digest
from tests.catalog_audit import check_catalogue_sums
from tests.catalog_world import open_world, stored_files

HASH = "ab" * 32


@pytest.fixture
def world(tmp_path):
    catalog, ingest = open_world(tmp_path / "medialib.db")
    yield catalog, ingest
    catalog.close()


def record(path="/m/a.mkv", **more):
    return {"kind": "video", "path": path, "size": 7, "mtime": 5.25, "ctime": 6.5,
            "inode_key": "7:5250000000:11:64", "ext": ".mkv", **more}


def batch(files, **more):
    return {"batch_id": str(uuid.uuid4()), "agent": {"id": "a-1", "name": "box"}, "root": "/m",
            "files": files, **more}


BAD_RECORDS = [
    ({"path": "relative/x"}, "absolute"), ({"path": "/elsewhere/x"}, "root"),
    ({"path": "/m/../x"}, "parts"), ({"path": "/m/a//b"}, "parts"), ({"path": "/m/a/"}, "end"),
    ({"path": "/m/\ud800"}, "Unicode"), ({"path": "/m/a\0b"}, "NUL"), ({"path": 7}, "text"),
    ({"size": -1}, "size"), ({"size": 1 << 63}, "size"), ({"size": 1.5}, "size"),
    ({"size": True}, "size"), ({"size": None}, "size"), ({"mtime": math.nan}, "mtime"),
    ({"mtime": math.inf}, "mtime"), ({"mtime": "5"}, "mtime"), ({"mtime": [5]}, "mtime"),
    ({"mtime": 1e305, "inode_key": None}, "mtime"), ({"mtime": -(10 ** 400)}, "mtime"),
    ({"ctime": math.inf}, "ctime"), ({"ctime": -1e305}, "ctime"),
    ({"kind": "film"}, "kind"), ({"kind": ["video"]}, "kind"),
    ({"inode_key": "8:5250000000:11:64"}, "another size"), ({"inode_key": "x"}, "inode_key"),
    ({"inode_key": 5}, "inode_key"),
    ({"hashes": []}, "hashes"), ({"hashes": {"algo": "md5", "sample_hash": HASH}}, "algo"),
    ({"hashes": {"algo": "blake3", "sample_size": 4096, "sample_hash": "ab"}}, "64"),
    ({"hashes": {"algo": "blake3", "sample_size": 4096, "sample_hash": "zz" * 32}}, "64"),
    ({"hashes": {"algo": "blake3", "sample_size": 0, "sample_hash": HASH}}, "sample_size"),
    ({"hashes": {"algo": "blake3", "sample_size": 4096, "sample_hash": HASH,
                 "full_hash": 5}}, "full_hash"),
    ({"metadata": 5}, "metadata"), ({"metadata": {"duration": []}}, "duration"),
    ({"metadata": {"streams_json": {}}}, "streams_json"), ({"moved_from": "x"}, "moved_from"),
    ({"error": "bad"}, "error"),
]


HASHES = {"algo": "blake3", "sample_size": 4096, "sample_hash": HASH, "full_hash": None}
ODD_RECORDS = [  # what differs in one thing from the form that our own agents write
    {"path": "/m/.hidden"}, {"path": "/m/no extension"}, {"path": "/m/sub/ä.MKV"},
    {"path": "/m/a\u0301\u200b.mkv"}, {"path": "/m/a\nb"}, {"path": "/m/" + "n" * 4097},
    {"path": "/m/ends with dot."}, {"path": "/m/\uef80.mkv"}, {"path": "/m/.."},
    {"kind": "junk", "reason": "cache"}, {"kind": "junk"}, {"kind": "media"}, {"kind": None},
    {"ext": ".other"}, {"more": 1}, {"size": True}, {"size": 7.0}, {"size": 8}, {"size": "7"},
    {"mtime": 5}, {"mtime": 5.250000001}, {"mtime": True, "inode_key": "7:1000000000:11:64"},
    {"mtime": 1e19}, {"ctime": 6}, {"ctime": None}, {"ctime": 1e19}, {"ctime": False},
    {"inode_key": None}, {"inode_key": "07:5250000000:11:64"}, {"inode_key": "7:5:6:11:64"},
    {"inode_key": "7:-5250000000:11:64", "mtime": -5.25}, {"inode_key": "7:5250000000:11:-64"},
    {"inode_key": "7:9223372036854775808:11:64"}, {"inode_key": "7:5250000000:11:64\n"},
    {"inode_key": "7:5250000000:18446744073709551615:64"}, {"inode_key": "7:٥:11:64"},
    {"size": 0, "inode_key": "0:5250000000:11:64"}, {"hashes": None}, {"moved_from": "/m/old"},
    {"metadata": {"duration": 5}}, {"error": {"stage": "probe", "class": "x", "message": "y"}},
    *({"hashes": {**HASHES, **change}} for change in (
        {"full_hash": HASH}, {"full_hash": "cd" * 32}, {"sample_size": 1}, {"sample_size": True},
        {"sample_size": 1, "full_hash": HASH}, {"sample_hash": HASH.upper()}, {"extra": 1},
        {"sample_hash": "ab " * 21 + "a"}, {"sample_hash": None}, {"algo": "sha256"},
        {"sample_size": 4096.0}, {"algo": "xxhash64", "sample_hash": "ab" * 8},
        {"sample_hash": "ab" * 8}, {"algo": ["blake3"]})),
]


@pytest.mark.parametrize("prefix", ["", "/m/"])
def test_the_quick_way_through_a_batch_says_what_the_long_one_says(prefix):
    plain = record(hashes=HASHES)
    for change in [*ODD_RECORDS, *(change for change, _ in BAD_RECORDS)]:
        raws = [plain, {**plain, **change}, {**plain, "path": "/m/b.mkv"},
                {**plain, "path": "/m/c.mkv"}, {**plain, **change}]
        checker, wanted, refused = RecordChecker(prefix), [], []
        for index, raw in enumerate(raws):
            try:
                wanted.append(checker.check(index, raw))
            except RecordError as error:
                refused.append((index, str(error)))
        records, errors = RecordChecker(prefix).check_all(raws)
        assert [repr(one._replace(digest=None)) for one in records] == [repr(o) for o in wanted]
        assert [(one["index"], one["error"]) for one in errors] == refused
        assert not prefix or any(one.digest for one in records)
        for one in records:
            if one.digest is not None:
                hashes = one.sample_hash.hex()
                assert int.from_bytes(one.digest, "big") == row_digest(
                    one.path[3:], row_inode_key(one), KIND_NAMES[one.kind], ALGO_NAMES[one.algo],
                    hashes, hashes if one.whole else None, 0)
                assert one[10] is one[14] is None
                assert one[16:20] == (None,) * 4


@pytest.mark.parametrize(("change", "word"), BAD_RECORDS)
def test_bad_record_is_named_and_the_others_stored(world, change, word):
    catalog, ingest = world
    answer = ingest.batch(batch([record("/m/1.mkv"), {**record(), **change}, record("/m/2.mkv")]),
                          "10.0.0.1")
    assert answer["processed"] == 2
    assert [error["index"] for error in answer["errors"]] == [1]
    assert word in answer["errors"][0]["error"]
    assert sorted(stored_files(catalog)) == ["/m/1.mkv", "/m/2.mkv"]


@pytest.mark.parametrize("body", [
    {}, {"files": 5}, {"files": [], "agent": 5}, {"files": [], "agent": {}},
    {"files": [], "agent": {"id": "local"}}, {"files": [], "agent": {"id": "addr:1.2.3.4"}},
    {"files": [], "root": "relative"}, {"files": [], "rev": 5}, {"files": [], "batch_id": []},
    {"files": [], "after_rev": -1, "rev": 2}, {"files": [], "removed": ["/m/x"]},
    {"files": [], "end_of_root": {}}, [], "x",
])
def test_bad_outline_is_refused(world, body):
    with pytest.raises(HttpError) as caught:
        world[1].batch(body, "10.0.0.1")
    assert caught.value.status == 400
    assert caught.value.detail


def test_repeated_batch_changes_nothing_and_gets_the_same_answer(world):
    catalog, ingest = world
    body = batch([record(), record("/m/b"), {"path": "x"}])
    first = ingest.batch(body, "10.0.0.1")
    seq = catalog.seq
    for _ in range(5):
        assert ingest.batch(body, "10.0.0.1") == first
    assert catalog.seq == seq


def test_gap_in_the_numbers_is_refused_with_where_to_go_on(world):
    catalog, ingest = world
    ingest.batch(batch([record()], after_rev=0, rev=4), "10.0.0.1")
    with pytest.raises(HttpError) as caught:
        ingest.batch(batch([record("/m/b")], after_rev=5, rev=6), "10.0.0.1")
    assert (caught.value.status, caught.value.extra) == (409, {"last_rev": 4})
    old = ingest.batch(batch([record(size=9)], after_rev=0, rev=3), "10.0.0.1")
    assert (old["processed"], old["errors"]) == (1, [])
    assert stored_files(catalog)["/m/a.mkv"]["size"] == 7


@pytest.mark.parametrize("first_is", ["being read", "not even begun"])
def test_a_batch_that_overtook_the_one_before_it_waits_for_it(world, monkeypatch, first_is):
    catalog, ingest = world
    outline = {"agent": {"id": "4f0f4f40-0000-4000-8000-000000000001", "name": "box"},
               "root": "/m"}
    first = batch([record("/m/a.mkv")], **outline, after_rev=0, rev=1)
    second = batch([record("/m/b.mkv")], **outline, after_rev=1, rev=2)
    with contextlib.ExitStack() as stack:
        if first_is == "being read":
            stack.enter_context(ingest.order.under_way("10.0.0.1"))
        else:
            monkeypatch.setattr("medialib.ingest_order.ORDER_GRACE_S", 20)
        late = stack.enter_context(concurrent.futures.ThreadPoolExecutor()).submit(
            ingest.batch, second, "10.0.0.1")
        with pytest.raises(concurrent.futures.TimeoutError):
            late.result(0.2)
        assert ingest.batch(first, "10.0.0.1")["processed"] == 1
        assert late.result(5)["processed"] == 1
    with catalog.reader() as db:
        assert db.execute("SELECT last_rev FROM agent").fetchone() == (2,)
        assert db.execute("SELECT count(*) FROM file").fetchone() == (2,)


def test_older_agent_reposting_costs_no_write(world):
    """No agent, no root, kind "media", whole seconds, a sha256 digest under a wrong label."""
    catalog, ingest = world
    files = [{"kind": "media", "path": f"/srv/{name}", "size": 7, "mtime": 5.25, "ctime": 6.5,
              "inode_key": f"7:5:6:{number}:64", "ext": "mkv",
              "hashes": {"algo": "xxhash64", "sample_size": 65536, "sample_hash": HASH,
                         "full_hash": None}}
             for number, name in enumerate(("a.mkv", "b.jpg", "sub/c.weird"))]
    ingest.batch({"batch_id": "1", "files": files}, "10.0.0.7")
    seq = catalog.seq
    ingest.batch({"batch_id": "2", "files": files}, "10.0.0.7")
    assert catalog.seq == seq
    rows = stored_files(catalog)
    assert {path: row["kind"] for path, row in rows.items()} == {
        "/srv/a.mkv": "video", "/srv/b.jpg": "image", "/srv/sub/c.weird": "unknown"}
    row = rows["/srv/a.mkv"]
    assert row["hashes"]["algo"] == "sha256"
    assert row["inode_key"] == "7:5:6:0:64"
    assert (row["mtime"], row["agent"]["name"]) == (5.25, "10.0.0.7")


def test_a_path_twice_in_a_batch_is_applied_twice(world):
    catalog, ingest = world
    files = [record("/m/new/a"), record("/m/b"), record("/m/new/a", ctime=7.5), record("/x/c")]
    for more in ({"batch_id": "1"}, {"batch_id": "2", "agent": {"id": "a-1"}, "root": "/m"}):
        sent = files if len(more) == 1 else files[:3]
        assert ingest.batch({"files": sent, **more}, "10.0.0.7")["processed"] == len(sent)
    rows = stored_files(catalog)
    assert {path: row["ctime"] for path, row in rows.items()} == {
        "/m/new/a": 7.5, "/m/b": 6.5, "/x/c": 6.5}
    check_catalogue_sums(catalog.path)


def older_body(number, files):
    return open_batch(json.dumps({"batch_id": f"b{number}", "files": files}).encode("utf-8"))


def is_read(ingest, number, files):
    """Post a batch as an older agent; whether the host had to read it."""
    body = older_body(number, files)
    read, reads = body.read, []
    body.read = lambda: reads.append(1) or read()
    answer = ingest.batch(body, "10.0.0.7")
    assert answer == {"ok": True, "batch_id": f"b{number}", "processed": len(files), "errors": []}
    return bool(reads)


def test_an_older_agents_repeated_batch_is_not_even_read_until_a_row_changes(world):
    catalog, ingest = world
    a = [record(f"/m/{name}", inode_key=f"7:5250000000:{number}:64", hashes=HASHES)
         for number, name in enumerate(("a.mkv", "b.mkv"))]
    b = [record("/m/sub/c", kind="media", metadata={"width": 5}), record("/m/sub/d", kind=None)]
    assert [is_read(ingest, n, files) for n, files in enumerate((a, b, a, b, a[:1]))] == [
        True, True, False, False, True]
    seq = catalog.seq
    assert [is_read(ingest, n, files) for n, files in ((5, a), (5, a), (6, b))] == [False] * 3
    assert catalog.seq == seq

    # A file that changes, and changes back: read until it has said nothing new once.
    before = stored_files(catalog)
    other = [{**a[0], "size": 8, "inode_key": "8:5250000000:0:64"}]
    ingest.batch({"batch_id": "x", "files": other}, "10.0.0.7")
    assert [is_read(ingest, n, files) for n, files in enumerate((a, b, a, b, a), 10)] == [
        True, True, True, False, False]
    after = stored_files(catalog)
    assert {**after, "/m/a.mkv": 0} == {**before, "/m/a.mkv": 0}
    assert (after["/m/a.mkv"]["size"], len(after)) == (7, 4)
    # A file whose kind new settings say; a root of its own for the files; one that is gone.
    assert not is_read(ingest, "y", b)
    catalog.change(lambda changes: store_settings(
        changes.db, "", {"media_extensions": [".mkv"], "other_extensions": [".c"]}))
    assert is_read(ingest, "z", b)
    ingest.batch({"batch_id": "r", "root": "/m/sub", "files": []}, "10.0.0.7")
    assert is_read(ingest, "z2", b)
    assert not is_read(ingest, "z3", b)
    ingest.batch({"batch_id": "g", "root": "/m/sub", "removed": ["/m/sub/c"]}, "10.0.0.7")
    assert is_read(ingest, "z4", b)
    assert "/m/sub/c" in stored_files(catalog)


@pytest.mark.parametrize("change", [
    {"path": "relative"}, {"moved_from": "/m/z"}, {"path": "/m/b.mkv"}])
def test_a_batch_that_may_say_more_the_second_time_is_read_again(world, change):
    _, ingest = world
    files = [record(hashes=HASHES), record("/m/b.mkv"), {**record("/m/c.mkv"), **change}]
    for number in range(3):
        body = older_body(number, files)
        ingest.batch(body, "10.0.0.7")
        assert body._body is None


@pytest.mark.parametrize("head", [
    b'{"batch_id": "a\\u0041", "files": []}', b'{"batch_id": 5, "files": []}',
    b'{"files": [], "batch_id": "a"}', b'{"batch_id": "a", "root": "/m", "files": []}',
    b' {"batch_id": "a", "files": []}'])
def test_other_bodies_are_read_at_once(head):
    assert open_batch(head) == json.loads(head)


def test_a_second_batch_id_behind_the_files_is_heard(world):
    _, ingest = world
    body = b'{"batch_id": "one", "files": [], "batch_id": "two"}'
    assert [ingest.batch(open_batch(body), "10.0.0.7")["batch_id"] for _ in "abc"] == ["two"] * 3


def test_stamps_far_away_come_back_exactly(world):
    catalog, ingest = world
    stamps = [-1.5, 0.0, 15_000_000_000.25, 9e17, 1700000000.1234567]
    files = [record(f"/m/{number}", mtime=mtime, inode_key=f"7:{round(mtime * 10**9)}:{number}:1")
             for number, mtime in enumerate(stamps)]
    assert ingest.batch(batch(files), "10.0.0.1")["errors"] == []
    rows = stored_files(catalog)
    for sent in files:
        row = rows[sent["path"]]
        assert (row["mtime"], row["inode_key"]) == (sent["mtime"], sent["inode_key"])


def test_media_numbers_out_of_all_bounds_are_unknown(world):
    catalog, ingest = world
    numbers = [10 ** 400, -(10 ** 400), 1e305, "1e305", math.nan, -1]
    files = [record(f"/m/{index}.mkv", metadata={"width": number, "duration": number})
             for index, number in enumerate(numbers)]
    assert ingest.batch(batch(files), "10.0.0.1")["errors"] == []
    assert {(row["metadata"]["width"], row["metadata"]["duration"])
            for row in stored_files(catalog).values()} == {(None, None)}


def hello(ingest, agent="a-1", instance="i-1", peer="10.0.0.1", roots=(), **more):
    return ingest.hello({"agent": {"id": agent, "name": "box", "instance": instance,
                                   "roots": list(roots)}, **more}, peer)


def test_unplugged_root_changes_no_row_and_a_carried_disk_moves(world):
    catalog, ingest = world
    clock = [1_700_000_000.0]
    catalog.clock = ingest.presence.clock = lambda: clock[0]
    disk = {"path": "/m", "state": "online", "volume": "U-1", "volume_path": ""}
    hello(ingest, roots=[disk])
    ingest.batch(batch([record()], volume="U-1", volume_path=""), "10.0.0.1")
    first = stored_files(catalog)["/m/a.mkv"]
    hello(ingest, roots=[])
    gone = stored_files(catalog)["/m/a.mkv"]
    assert gone["state"] == "offline"
    assert {**gone, "state": "present"} == first
    answer = hello(ingest, agent="b-2", instance="i-2", peer="10.0.0.2",
                   roots=[{**disk, "path": "/mnt/disk"}])
    assert [(root["path"], root["known_files"], root["transferred"])
            for root in answer["roots"]] == [("/mnt/disk", 1, True)]
    moved = stored_files(catalog)["/mnt/disk/a.mkv"]
    assert (moved["id"], moved["first_seen"], moved["agent"]["id"], moved["state"]) == (
        first["id"], first["first_seen"], "b-2", "present")
    check_catalogue_sums(catalog.path)


def test_another_disk_at_the_same_path_is_another_root(world):
    catalog, ingest = world
    disk = {"path": "/m", "state": "online", "volume": "U-1", "volume_path": ""}
    hello(ingest, roots=[disk])
    ingest.batch(batch([record()], volume="U-1"), "10.0.0.1")
    hello(ingest, roots=[{**disk, "volume": "U-2"}])
    ingest.batch(batch([record("/m/z.mkv")], volume="U-2"), "10.0.0.1")
    assert {path: row["state"] for path, row in stored_files(catalog).items()} == {
        "/m/a.mkv": "offline", "/m/z.mkv": "present"}


def test_cloned_agent_is_noticed_and_restart_is_not(world):
    _, ingest = world
    hello(ingest)
    hello(ingest, instance="i-2")  # same address: a restart
    for error in ("another instance", "another instance"):
        with pytest.raises(HttpError) as caught:
            hello(ingest, instance="i-3", peer="10.0.0.2")
        assert (caught.value.status, caught.value.error) == (409, error)
    hello(ingest, instance="i-2")
    with pytest.raises(HttpError) as caught:
        hello(ingest, instance="i-3", peer="10.0.0.2")
    assert caught.value.error == "cloned"
    uuid.UUID(caught.value.extra["new_id"])


def test_commands_go_out_once_and_results_come_back(world):
    _, ingest = world
    hello(ingest)
    number = ingest.presence.command("a-1", "ls", path="/x")
    assert ingest.presence.command("a-1", "ls", path="/x") == number
    assert hello(ingest)["commands"] == [{"id": number, "do": "ls", "path": "/x"}]
    assert hello(ingest)["commands"] == []
    hello(ingest, results=[{"id": number, "answer": {"ok": True}}])
    assert ingest.presence.wait_result(number, 1) == {"ok": True}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner,
                                                                max_size=3), max_leaves=6)
KEYS = st.sampled_from([*record(), "hashes", "metadata", "moved_from", "error", "reason"])


@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.dictionaries(KEYS, JSON, max_size=3), max_size=4), outline=st.
       dictionaries(st.sampled_from(["batch_id", "root", "agent", "removed", "rev", "after_rev",
                                     "volume", "end_of_root"]), JSON, max_size=1))
def test_whatever_is_posted_is_judged(world, changes, outline):
    """Never anything but an answer or a refusal; what is stored can be shown and adds up."""
    catalog, ingest = world
    files = [{**record(f"/m/{number}"), **change} for number, change in enumerate(changes)]
    try:
        answer = ingest.batch({**batch(files), **outline}, "10.0.0.1")
    except HttpError as error:
        if error.status >= 500:
            raise
    else:
        assert answer["ok"]
    stored_files(catalog)


def test_after_all_that_the_sums_are_right(world):
    catalog, ingest = world
    for change, _ in BAD_RECORDS:
        ingest.batch(batch([{**record(), **change}, record("/m/ok")]), "10.0.0.1")
    check_catalogue_sums(catalog.path)


def test_a_mount_point_without_its_disk_is_another_root(world):
    """What lies below the mount point has no identity of its own and must not displace the disk."""
    catalog, ingest = world
    disk = {"volume": "U-1", "volume_path": ""}
    ingest.batch(batch([record()], **disk), "10.0.0.1")
    below = {"volume": None, "volume_path": None}
    ingest.batch(batch([record("/m/below.txt", inode_key="7:5250000000:12:64")],
                       removed=["/m/a.mkv"], **below), "10.0.0.1")
    assert {path: row["state"] for path, row in stored_files(catalog).items()} == {
        "/m/a.mkv": "offline", "/m/below.txt": "present"}
    asked = {"agent": {"id": "a-1", "name": "box"}, "root": "/m", "folder": ""}
    assert [[file["name"] for file in ingest.names({**asked, **volume}, "10.0.0.1")["files"]]
            for volume in (disk, below)] == [["a.mkv"], ["below.txt"]]


def test_a_page_of_whole_records_ends_where_ffprobe_said_much(world, monkeypatch):
    """A page is never larger than its reader takes, and all of them together are the whole."""
    monkeypatch.setattr(catalog_compare, "PAGE_STREAMS_CHARS", 1000)
    _, ingest = world
    names = [f"{number}.mkv" for number in range(9)]
    said = {"duration": 1.5, "streams_json": json.dumps([{"tags": "x" * 380}])}
    ingest.batch(batch([record(f"/m/{name}", metadata=said) for name in names]), "10.0.0.1")
    asked = {"agent": {"id": "a-1", "name": "box"}, "root": "/m", "folder": "", "full": True}
    found, after = [], ""
    while after is not None:
        page = ingest.names({**asked, "after": after}, "10.0.0.1")
        assert 0 < len(page["files"]) <= 3
        found += [file["name"] for file in page["files"]]
        after = page["next"]
    assert found == names
