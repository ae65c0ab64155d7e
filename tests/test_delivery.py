"""Delivery to a toy host: order, repeats, refusals, poison, older hosts, comparing."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from medialib import cache_batch, cache_outbox
from medialib.http_client import PeerRefused, PeerUnreachable
from medialib.host_link import HttpTransport
from medialib.scan_common import ext_of, record_of
from tests.agent_world import World


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "world")
    yield world
    world.stop()


def fill(world, count: int) -> None:
    for number in range(count):
        world.write(f"f{number % 3}/n{number:02}.txt")


def outbox_rows(world) -> list:
    return world.cache.store.rows("SELECT batch_id, payload_json, after_rev, rev FROM outbox"
                                  " ORDER BY id")


def test_what_waits_is_literal_rows_sent_word_for_word(world):
    world.sync()
    fill(world, 8)
    world.host.hello_fail = [PeerUnreachable("away")] * 9
    world.scan()
    world.host.hello_fail = []
    world.host.fail = ["after"]
    assert not world.deliver()
    world.service.delivery._keep_what_waits()
    kept = outbox_rows(world)
    assert len(kept) == 3
    world.restart()
    world.host.posts.clear()
    assert world.deliver()
    batches = [post for post in world.host.posts if "end_of_root" not in post]
    assert [post["batch_id"] for post in batches] == [row[0] for row in kept]
    for post, row in zip(batches, kept):
        body = json.loads(row[1])
        body.pop("keys")
        assert {key: post[key] for key in body} == body
    assert outbox_rows(world) == []
    world.check()


def test_the_outbox_is_bounded_and_nothing_is_lost(world, monkeypatch):
    monkeypatch.setattr(cache_outbox, "OUTBOX_MAX_ROWS", 2)
    fill(world, 12)
    world.scan()
    world.cache.outbox.pack(3)
    world.cache.outbox.pack(3)
    assert len(outbox_rows(world)) == 2
    assert world.deliver()
    world.check()


def test_a_file_that_changes_every_day_waits_once_or_twice(world):
    """What waits follows the number of files; the batch that may have been executed stays."""
    world.service.delivery.transport.batches_at_once = 1
    world.sync()
    fill(world, 8)
    world.scan()
    world.host.fail = ["after"]
    assert not world.deliver()
    world.service.delivery._keep_what_waits()
    executed = outbox_rows(world)[0]
    for day in range(30):
        for number in range(8):
            world.write(f"f1/n{number:02}.txt", b"day %d" % day)
        world.scan()
        world.service.delivery._keep_what_waits()
        bodies = [json.loads(row[1]) for row in outbox_rows(world)]
        assert sum(len(body["files"]) for body in bodies) <= 8 + 3 * 8
    assert outbox_rows(world)[0] == executed
    world.host.posts.clear()
    assert world.deliver()
    assert world.host.posts[0]["batch_id"] == executed[0]
    assert sum(len(post["files"]) for post in world.host.posts) <= 8 + 3 * 8
    world.check()


def test_the_outbox_is_bounded_in_bytes(world, monkeypatch):
    monkeypatch.setattr(cache_outbox, "OUTBOX_MAX_BYTES", 1000)
    fill(world, 12)
    world.scan()
    world.cache.outbox.pack(3)
    assert len(outbox_rows(world)) == 1


def test_a_batch_too_large_is_halved(world):
    world.host.config["agent_batch_size"] = 100
    world.host.most_records = 3
    fill(world, 20)
    world.sync()
    world.check()


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_poison_record_is_found_by_halves_and_passed_over(world, status):
    world.host.config["agent_batch_size"] = 16
    fill(world, 20)
    bad = world.path("f1", "n07.txt")
    world.host.refuse_batch[bad] = status
    world.sync()
    assert bad not in world.known()
    assert len(world.known()) == 19
    assert world.host.out_of_step == 0
    assert world.cache.outbox.undelivered() == 0
    world.check_quiet()
    world.host.refuse_batch.clear()
    world.write("f1/n07.txt")
    world.sync()
    world.check()


def test_a_moved_poison_record_does_not_halve_for_ever(world):
    old = world.write("a.txt")
    world.sync()
    new = world.path("b.txt")
    os.rename(old, new)
    world.host.refuse_batch[new] = 400
    world.sync()
    assert world.known() == {}


def test_records_named_in_errors_are_set_apart_until_they_change(world):
    fill(world, 5)
    bad = world.path("f1", "n01.txt")
    world.host.poison.add(bad)
    world.sync()
    assert bad not in world.known()
    assert world.host.out_of_step == 0
    world.check_quiet()
    world.host.poison.clear()
    world.write("f1/n01.txt")
    world.sync()
    world.check()


def test_another_library_judges_refused_records_anew(world):
    fill(world, 5)
    world.host.poison.add(world.path("f1", "n01.txt"))
    world.sync()
    world.host.poison.clear()
    world.host.new_library()
    world.sync()
    assert world.host.out_of_step == 0
    world.check()


def test_a_host_restored_from_a_backup_is_filled_again(world):
    fill(world, 5)
    world.sync()
    saved = world.host.backup()
    fill(world, 9)
    os.remove(world.path("f0", "n00.txt"))
    world.sync()
    world.host.restore(saved)
    world.host.posts.clear()
    world.sync()
    world.check()


def test_a_cache_of_an_older_day_starts_above_the_host(world):
    fill(world, 5)
    world.sync()
    world.stop()
    with open(world.cache_path, "rb") as file:
        saved = file.read()
    world.start()
    fill(world, 9)
    world.sync()
    world.stop()
    with open(world.cache_path, "wb") as file:
        file.write(saved)
    world.start()
    world.write("f0/later.txt")
    world.sync()
    world.check()


def test_a_lost_host_is_filled_without_reading(world):
    from tests.agent_world import OpenCounter

    fill(world, 7)
    world.sync()
    world.host.new_library()
    with OpenCounter() as opened:
        world.sync()
    assert opened.paths == []
    world.check()


ODD_TEXTS = ['a"b\\c', "new\nline\ttab\x00\x1f\x7f", "<script>&'/", "\u2028\u00e9\ud7ff\uef80",
             "\U0001f600.\U0001f600", ".hidden", "x.TAR.gz", "dot.", "", "{}[],:%s{0}"]


@pytest.mark.parametrize("odd", ODD_TEXTS)
@pytest.mark.parametrize("probed", [0, 1])
def test_a_record_written_by_hand_is_the_record_json_would_make(odd, probed):
    metadata = {"duration": 1.5, "container": odd, "streams_json": json.dumps({odd: odd})}
    path = f"/media/{odd}/{odd}"
    for kind, hashed, full, mtime in [("junk", 1, odd, 1e22), ("video", 1, None, -0.1),
                                      ("other", 0, odd, None), (odd, 1, odd, 1.6e9 + 1 / 3)]:
        row = (7, "/index" + path, odd, 2 ** 62, mtime, 0.0, probed, hashed, odd, 65536, odd, full,
               1, kind, odd, "/moved", json.dumps(metadata))
        hashes = {"algo": odd, "sample_size": 65536, "sample_hash": odd, "full_hash": full or None}
        expected = record_of(
            kind=kind, path=path, size=2 ** 62, mtime=mtime, ctime=0.0, inode_key=odd,
            ext=ext_of(odd), reason=odd, hashes=hashes if hashed else None,
            metadata=metadata if probed else None)
        text = cache_batch.record_text(row, path, ',"error":{"stage":"x"}')
        assert json.loads(text) == {**expected, "error": {"stage": "x"}}
        outline = {"batch_id": odd, "removed": [odd]}
        assert json.loads(cache_batch.batch_text(outline, [text, text])) == {
            **outline, "files": [json.loads(text)] * 2}


def test_payloads_of_an_older_agent_are_delivered_as_they_are(world):
    path = world.write("a.txt")
    record = {"path": path, "kind": "other", "size": 1, "mtime": 1.0, "ctime": 1.0, "ext": ".txt",
              "inode_key": "1:1:1:1"}
    with world.cache.store.atomic() as db:
        db.execute("INSERT INTO outbox (batch_id, payload_json, created_at) VALUES ('old', ?, 0)",
                   (json.dumps({"batch_id": "old", "files": [record]}),))
        db.execute("INSERT INTO outbox (batch_id, payload_json, created_at) VALUES ('x', '{', 0)")
    world.host.posts.clear()
    world.host._root_of_strangers = world.roots[0]
    posts = []
    real = world.service.delivery.transport.begin_batch

    def begin_batch(outline, files, gzip=False):
        posts.append({**outline, "files": [json.loads(text) for text in files]})
        if "rev" in outline:
            return real(outline, files, gzip)
        return AnsweredCall({"ok": True, "errors": []})

    world.service.delivery.transport.begin_batch = begin_batch
    world.sync()
    assert posts[0]["batch_id"] == "old"
    assert posts[0]["files"] == [record]
    assert outbox_rows(world) == []
    world.check()


def test_a_refused_host_is_waited_for(world):
    fill(world, 4)
    world.scan()
    world.host.fail = [PeerRefused(503, "busy"), PeerRefused(429, "slow"),
                       PeerRefused(409, "another instance")]
    for _ in range(3):
        assert not world.deliver()
    assert world.deliver()
    world.check()


class WatchedCalls:
    """Which batches are under way, and in what order they were posted and answered."""

    def __init__(self, transport):
        self.real = transport.begin_batch
        self.now = self.most = 0
        self.posted, self.answered, self.gone = [], [], 0
        transport.begin_batch = self.begin_batch

    def begin_batch(self, outline, files, gzip=False):
        self.posted.append((outline["after_rev"], outline["rev"]))
        self.now += 1
        self.most = max(self.most, self.now)
        return WatchedCall(self, outline["rev"], self.real(outline, files, gzip))


class WatchedCall:
    def __init__(self, calls, rev, call):
        self.calls = calls
        self.rev = rev
        self.call = call

    def finish(self):
        self.calls.now -= 1
        self.calls.answered.append(self.rev)
        return self.call.finish()

    def abandon(self):
        self.calls.now -= 1
        self.calls.gone += 1
        self.call.abandon()


def test_whole_batches_are_posted_while_the_host_is_at_work_on_others(world):
    fill(world, 20)
    world.scan()
    calls = WatchedCalls(world.service.delivery.transport)
    assert world.deliver()
    assert calls.most == 3
    assert calls.now == calls.gone == 0
    assert calls.answered == [rev for _, rev in calls.posted]
    assert [after for after, _ in calls.posted[1:]] == calls.answered[:-1]
    assert calls.posted[-1][1] == 20
    world.check()


def test_lost_answers_to_several_batches_change_no_numbers(world):
    fill(world, 12)
    world.scan()
    world.host.fail = ["after"] * 3
    assert not world.deliver()
    kept = [row[0] for row in outbox_rows(world)]
    assert len(kept) == 3
    rev = world.cache.rev
    world.restart()
    world.host.posts.clear()
    assert world.deliver()
    assert [post["batch_id"] for post in world.host.posts if post["files"]][:3] == kept
    assert world.cache.rev == rev
    world.check()


@pytest.mark.parametrize("failure", ["before", "after", PeerRefused(503, "busy"),
                                     PeerRefused(413, "large"), PeerRefused(409, "held")])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_no_batch_behind_a_failed_one_is_lost(world, before, failure):
    fill(world, 20)
    world.scan()
    calls = WatchedCalls(world.service.delivery.transport)
    world.host.fail = [None] * before + [failure]
    while not world.deliver():
        assert calls.now == 0
    world.check()
    world.check_quiet()


def test_a_host_without_room_for_more_gets_one_batch_at_a_time(world):
    """That is no failure, and nothing to wait for."""
    fill(world, 20)
    world.scan()
    transport = world.service.delivery.transport
    calls = WatchedCalls(transport)
    watched = transport.begin_batch

    def begin_batch(outline, files, gzip=False):
        if calls.now:
            raise PeerUnreachable("no connection is free")
        return watched(outline, files, gzip)

    transport.begin_batch = begin_batch
    assert world.deliver()
    assert calls.most == 1
    assert outbox_rows(world) == []
    world.check()


def test_the_rows_of_a_first_scan_are_not_read_for_their_batches(world):
    fill(world, 17)
    for number in range(3):
        world.write(f"f{number}/Thumbs.db")
    world.scan()
    statements = []
    world.cache.store.db.set_trace_callback(statements.append)
    assert world.deliver()
    world.cache.store.db.set_trace_callback(None)
    read = [text for text in statements if text.startswith("SELECT rev, path")]
    assert len(read) <= 1  # the one that finds no more
    reasons = [record.get("reason") for post in world.host.posts for record in post["files"]]
    assert len(reasons) == 20
    assert [reason for reason in reasons if reason] == ["name matches thumbs.db"] * 3
    assert world.cache.store.rows("SELECT count(*) FROM agent_index WHERE reason IS NOT NULL") == [
        (3,)]


def test_rows_that_changed_since_they_were_stored_are_read_again(world):
    fill(world, 6)
    world.scan()
    world.write("f1/n01.txt", b"other")
    os.remove(world.path("f2/n02.txt"))
    world.scan()
    world.host.posts.clear()
    assert world.deliver()
    sent = [record["path"] for post in world.host.posts for record in post["files"]]
    assert sorted(sent) == sorted(world.path(f"f{number % 3}/n{number:02}.txt")
                                  for number in range(6) if number != 2)
    world.check()


def test_a_clone_goes_on_under_its_new_id(world):
    fill(world, 4)
    world.sync()
    new_id = "7a4a4fd0-1111-4222-8333-0123456789ab"
    world.host.hello_fail = [PeerRefused(409, "cloned", "", {"ok": False, "error": "cloned",
                                                             "new_id": new_id})]
    world.scan()
    assert world.service.identity.id == new_id
    assert world.deliver()
    assert world.host.last_rev[new_id] > 0
    present = [row for row in world.host.files.values() if row["state"] == "present"]
    assert len(present) == 8  # of two agents now
    world.restart()
    assert world.service.identity.id == new_id


def test_a_heartbeat_beside_a_post_changes_no_numbers(world):
    fill(world, 3)
    world.scan()
    transport, link = world.service.delivery.transport, world.service.link
    real = transport.begin_batch

    def begin_batch(outline, files, gzip=False):
        call = real(outline, files, gzip)
        link.hello()  # it tells the new number before we have the answer
        return call

    transport.begin_batch = begin_batch
    rev = world.cache.rev
    assert world.deliver()
    assert world.cache.rev == rev
    assert len([post for post in world.host.posts if post["files"]]) == 1
    world.check()


def test_commands_come_through_whichever_thread_says_hello(world):
    fill(world, 2)
    world.sync()
    world.service.link.greeted = False
    world.host.commands = [{"id": 5, "do": "ls", "path": world.roots[0]}]
    assert world.deliver()
    world.service.obey()
    world.service.link.hello()
    [result] = world.host.hellos[-1]["results"]
    assert result["id"] == 5
    assert [known["name"] for known in result["answer"]["dirs"]] == ["f0", "f1"]
    world.service.link.hello()
    assert world.host.hellos[-1]["results"] == []


def test_results_are_kept_until_the_host_has_them(world):
    world.service.link.commands.append({"id": 1, "do": "ls", "path": "/nowhere"})
    world.service.obey()
    world.host.hello_fail = [PeerUnreachable("away")]
    with pytest.raises(PeerUnreachable):
        world.service.link.hello()
    world.service.link.hello()
    assert world.host.hellos[-1]["results"][0]["answer"]["ok"] is False


def test_a_short_run_does_what_the_host_asks_for(world):
    """It may be over before the heartbeat has looked once."""
    fill(world, 2)
    world.sync()
    for folder in os.scandir(world.roots[0]):
        shutil.rmtree(folder.path)
    world.scan()
    assert world.host.present()
    world.host.commands = [{"id": 7, "do": "accept_empty", "path": world.roots[0]}]
    world.service.delivery.start()
    assert world.service.run_once()
    assert world.host.present() == {}
    assert {"id": 7, "answer": {"ok": True}} in [
        result for hello in world.host.hellos for result in hello["results"]]
    world.service.stop()


class AnsweredCall:
    """A call that is over when it begins."""

    def __init__(self, answer: dict):
        self.answer = answer

    def finish(self):
        return self.answer


class OlderClient:
    """An HTTP client whose host speaks only the part of seed.md."""

    def __init__(self):
        self.posts = []

    def get(self, path, **_):
        assert path == "/ingest/config"
        return {"hash_algo": "sha256", "hash_sample_size": 4096, "batch_size": 2}

    def post(self, path, body=b"", gzip=False, **_):
        if path == "/ingest/hello":
            raise PeerRefused(404, "not found")
        assert path == "/ingest/batch"
        assert not gzip
        self.posts.append(json.loads(body))
        return {"status": "ok"}

    def begin_post(self, path, body, **options):
        return AnsweredCall(self.post(path, body, **options))

    def is_busy(self):
        return False


def test_an_older_host_gets_plain_batches(world):
    client = OlderClient()
    transport = HttpTransport("http://127.0.0.1:1")
    heartbeat = HttpTransport("http://127.0.0.1:1")
    transport.client = heartbeat.client = client
    world.service.link.transport = heartbeat
    world.service.delivery.transport = transport
    world.write("a.mp3")
    world.write("b.mkv")
    world.write("c.txt")
    world.sync()
    assert [len(post["files"]) for post in client.posts] == [2, 1]
    assert all(set(post) == {"batch_id", "files"} for post in client.posts)
    kinds = {os.path.basename(record["path"]): record["kind"]
             for post in client.posts for record in post["files"]}
    assert kinds == {"a.mp3": "other", "b.mkv": "video", "c.txt": "other"}
    count = len(client.posts)
    world.sync()
    assert len(client.posts) == count


def test_a_new_root_inside_another_with_a_lost_cache(world):
    fill(world, 4)
    world.sync()
    world.stop()
    os.remove(world.cache_path)
    world.start()
    world.set_roots([*world.roots, world.path("f1")])
    world.sync()
    assert len(world.known()) == 4
    world.set_roots(world.roots[:1])
    world.sync()
    world.check()
