"""The server against hostile clients on raw sockets; after each attack /health answers quickly."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import resource
import socket
import ssl
import struct
import threading
import time

import pytest

from medialib import http_listener, http_server, http_shares
from medialib.base import MedialibError
from medialib.http_gate import Gate
from medialib.http_json import HttpError, Router
from medialib.http_server import JsonServer

from .http_support import AT_ONCE_S, Victim, read_all, read_until, split_answer, unchunk


@pytest.fixture
def victim():
    server = Victim()
    yield server
    server.stop()


@pytest.fixture
def hurried(monkeypatch):
    """The deadlines in tenths of seconds, until `hurried.undo()`: an honest call may take longer on
    a busy machine.
    """
    monkeypatch.setattr(http_server, "HTTP_HEAD_S", 0.5)
    monkeypatch.setattr(http_listener, "HTTP_HEAD_S", 0.5)
    monkeypatch.setattr(http_server, "HTTP_IDLE_S", 0.5)
    monkeypatch.setattr(http_server, "HTTP_BODY_S", 0.5)
    monkeypatch.setattr(http_server, "HTTP_WRITE_S", 0.5)
    monkeypatch.setattr(http_server, "HTTP_SLOWEST_BYTES_S", 100e6)
    monkeypatch.setattr(http_listener, "HTTP_TICK_S", 0.05)
    monkeypatch.setattr(http_listener, "HTTP_LAST_WORDS_S", 0.3)
    return monkeypatch


def open_slots(victim) -> int:
    return len(victim.server.listener._open_slots())


def wait_for(condition, within_s: float = AT_ONCE_S) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


# --- ordinary answers

def test_every_answer_carries_the_safe_headers(victim):
    for path in ("/health", "/missing", "/crash", "/page"):
        _, headers, _ = victim.get(path)
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert not [name for name in headers if name.startswith("access-control")]


def test_errors_are_json(victim, caplog):
    status, _, body = victim.get("/missing")
    assert (status, json.loads(body)["ok"]) == (404, False)
    status, headers, body = victim.post("/health", b"{}")
    assert (status, headers["allow"], json.loads(body)["ok"]) == (405, "GET, HEAD", False)
    status, _, body = victim.get("/crash")
    assert (status, json.loads(body)["error"]) == (500, "internal error")
    assert "ZeroDivisionError" in caplog.text
    status, _, body = victim.get("/nan")
    assert (status, json.loads(body)["error"]) == (500, "internal error")
    victim.assert_alive()


def test_head_sends_no_body(victim):
    data = victim.ask(victim.head("HEAD /page", "Connection: close"))
    status, headers, body = split_answer(data)
    assert (status, headers["content-length"], body) == (200, "3000", b"")
    status, _, body = split_answer(victim.ask(victim.head("HEAD /events", "Connection: close")))
    assert (status, body) == (200, b"")
    victim.assert_alive()


def test_keep_alive_and_pipelining(victim):
    one = victim.head("GET /health")
    post = victim.head("POST /echo", "Content-Type: application/json", "Content-Length: 9")
    with victim.connect() as sock:
        sock.sendall(one * 3 + post + b'{"back":1}'[:9] + b"\r\n")
        data = b""
        while data.count(b"HTTP/1.1 ") < 4:
            data += sock.recv(65536)
        assert data.count(b"HTTP/1.1 200") == 3
        assert data.count(b"HTTP/1.1 400") == 1  # the ninth byte ends it too early
        sock.sendall(one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert split_answer(read_all(sock))[0] == 200


def test_gzip_both_ways(victim):
    status, headers, body = victim.get("/page", "Accept-Encoding: gzip, br")
    assert (status, headers["content-encoding"]) == (200, "gzip")
    assert gzip.decompress(body) == b"<p>" * 1000
    body = gzip.compress(b'{"back":[1,2]}')
    status, _, body = victim.post("/echo", body, "Content-Encoding: gzip")
    assert (status, json.loads(body)["json"]) == (200, [1, 2])


def test_no_line_break_gets_into_a_header(victim):
    _, headers, _ = victim.get("/headers")
    assert headers["x-name"] == "a  Set-Cookie: b=c d"
    assert "set-cookie" not in headers


def test_streams(victim):
    status, headers, body = victim.get("/export")
    assert (status, headers["transfer-encoding"]) == (200, "chunked")
    assert unchunk(body) == (b"line\n" * 10000, True)
    old = victim.ask(f"GET /export HTTP/1.0\r\nHost: 127.0.0.1:{victim.port}\r\n\r\n".encode())
    status, headers, body = split_answer(old)
    assert (status, body) == (200, b"line\n" * 10000)
    assert "transfer-encoding" not in headers


def test_a_stream_that_fails_is_not_taken_for_whole(victim):
    _, _, body = victim.get("/half")
    assert unchunk(body) == (b"first", False)
    victim.assert_alive()


def test_a_stream_ends_when_nobody_listens(victim):
    with victim.connect() as sock:
        sock.sendall(victim.head("GET /events"))
        read_until(sock, b"hello")
    wait_for(lambda: victim.closed_streams)
    wait_for(lambda: open_slots(victim) == 0)


def test_streams_are_counted(victim):
    with contextlib.ExitStack() as stack:
        for _ in range(http_server.HTTP_STREAMS):
            sock = stack.enter_context(victim.connect())
            sock.sendall(victim.head("GET /events"))
            sock.recv(100)
        status, headers, body = victim.get("/events")
        assert (status, json.loads(body)["ok"]) == (503, False)
        assert int(headers["retry-after"]) > 0
        victim.assert_alive()
    wait_for(lambda: len(victim.closed_streams) >= http_server.HTTP_STREAMS)


def test_a_neighbour_leaves_streams_for_others():
    places = http_shares.StreamPlaces(4, 2)
    greedy, other, own = (fake_slot(peer, "work", 0.0)
                          for peer in ("10.0.0.9", "10.0.0.8", "127.0.0.1"))
    assert [places.take(greedy) for _ in range(3)] == [True, True, False]
    assert places.take(other)
    places.give(greedy)
    assert [places.take(one) for one in (greedy, own, own)] == [True, True, False]
    for slot in (greedy, greedy, other, own):
        places.give(slot)
    assert [places.take(own) for _ in range(5)] == [True] * 4 + [False]
    assert set(places.held) == {"127.0.0.1"}


def test_query_and_peer(victim):
    _, _, body = victim.get("/query?path=/a%20b&x=", "X-Forwarded-For: 8.8.8.8")
    assert json.loads(body) == {"ok": True, "query": {"path": "/a b", "x": ""},
                                "peer": "127.0.0.1", "loopback": True}


def test_expect_100(victim):
    with victim.connect() as sock:
        sock.sendall(victim.head("POST /echo", "Content-Type: application/json",
                                 "Content-Length: 2", "Expect: 100-continue"))
        assert sock.recv(1000).startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"{}")
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")


# --- malformed

@pytest.mark.parametrize("data", [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\0" * 50, b"GET / HTTP/1.1\nHost: a\n\n",
    b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", b"hello\r\n\r\n", b"\xff\xfe\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", b"GET /\r\n\r\n",
])
def test_rubbish_gets_400_at_once(victim, data):
    start = time.monotonic()
    status, headers, body = split_answer(victim.ask(data))
    assert (status, json.loads(body)["ok"]) == (400, False)
    assert headers["connection"] == "close"
    assert time.monotonic() - start < 3
    victim.assert_alive()


@pytest.mark.parametrize("size", [40_000, 5_000_000])
def test_endless_heads(victim, size):
    with victim.connect() as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * size)
        assert split_answer(read_all(sock))[0] == 431
    victim.assert_alive()


@pytest.mark.parametrize("lines", [
    ["Content-Length: -1"], ["Content-Length: 1_0"], ["Content-Length: 2", "Content-Length: 2"],
    ["Transfer-Encoding: chunked"], ["Content-Length: 5", "Transfer-Encoding: chunked"],
    ["Transfer-Encoding : chunked"], ["Transfer-Encoding: xchunked"],
])
def test_a_body_is_never_taken_for_a_request(victim, lines):
    inner = victim.head("POST /echo", "Content-Type: application/json", "Content-Length: 2") + b"{}"
    with victim.connect() as sock:
        sock.sendall(victim.head("POST /echo", "Content-Type: application/json", *lines) + inner)
        answer = read_all(sock)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert 400 <= split_answer(answer)[0] < 600
    assert victim.calls == []


def test_the_body_of_a_refused_request_is_not_executed(victim):
    inner = victim.head("POST /echo", "Content-Type: application/json", "Content-Length: 2") + b"{}"
    for first, line in (("POST /missing", "Content-Type: application/json"),
                        ("POST /echo", "Content-Type: text/plain"),
                        ("GET /health", "X: y"), ("POST /echo", "Origin: http://evil.example")):
        with victim.connect() as sock:
            sock.sendall(victim.head(first, line, f"Content-Length: {len(inner)}") + inner)
            assert read_all(sock).count(b"HTTP/1.1 ") == 1
    assert victim.calls == []


def test_wrong_bodies(victim):
    for body, status in ((b"[1]", 400), (b"{", 400), (b"\xff", 400), (b"[" * 100000, 400),
                         (b'{"a":' * 5000 + b"1" + b"}" * 5000, 400), (b'{"a":NaN}', 400)):
        assert victim.post("/echo", body)[0] == status
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert victim.post("/echo", b"a=b", f"Content-Type: {kind}")[0] == 415
    assert victim.post("/echo", b"\0", "Content-Encoding: deflate")[0] == 415
    assert victim.post("/echo", b"\0", "Content-Encoding: gzip")[0] == 400
    assert victim.calls == []
    victim.assert_alive()


def test_empty_post_is_an_empty_object(victim):
    assert victim.post("/echo", b"", "Content-Type: application/x-www-form-urlencoded")[0] == 200
    assert split_answer(victim.ask(victim.head("POST /echo", "Connection: close")))[0] == 200
    assert victim.calls == [{}, {}]


def test_a_cut_body_reaches_nobody(victim):
    for _ in range(5):
        with victim.connect() as sock:
            sock.sendall(victim.head("POST /echo", "Content-Type: application/json",
                                     "Content-Length: 100") + b'{"a":1}')
    with victim.connect() as sock:  # reset instead of closed
        sock.sendall(victim.head("POST /echo", "Content-Type: application/json",
                                 "Content-Length: 100") + b'{"a":1}')
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_for(lambda: open_slots(victim) == 0)
    assert victim.calls == []


def test_the_sender_of_a_large_body_sees_413():
    victim = Victim(max_body=1 << 20)
    try:
        for size in (2 << 20, 60 << 20):
            with victim.connect() as sock:
                sock.sendall(victim.head("POST /echo", "Content-Type: application/json",
                                         f"Content-Length: {size}"))
                block = b" " * (1 << 20)
                for _ in range(size >> 20):
                    sock.sendall(block)  # no broken pipe
                assert split_answer(read_all(sock))[0] == 413
        victim.assert_alive()
    finally:
        victim.stop()


def test_plain_and_packed_bodies_have_their_limit():
    victim = Victim(max_body=200_000, max_json=100_000)
    try:
        fits = json.dumps({"a": "x" * 99_000}).encode()
        large = json.dumps({"a": "x" * 101_000}).encode()
        assert victim.post("/echo", fits)[0] == 200
        assert victim.post("/echo", large)[0] == 413
        assert victim.post("/echo", gzip.compress(fits), "Content-Encoding: gzip")[0] == 200
        assert victim.post("/echo", gzip.compress(large), "Content-Encoding: gzip")[0] == 413
    finally:
        victim.stop()


def test_large_requests_are_answered_too(victim):
    large = json.dumps({"back": ["x" * 1000] * 5000}).encode()
    status, _, body = victim.post("/echo", gzip.compress(large, 1), "Content-Encoding: gzip")
    assert (status, len(json.loads(body)["json"])) == (200, 5000)
    assert victim.post("/echo", large)[0] == 200


# --- who asks, and from where

def test_foreign_host_origin_and_site(victim):
    assert victim.get("/health", "Host: evil.example")[0] == 421
    assert victim.get("/health", f"Host: localhost:{victim.port}")[0] == 200
    assert victim.get("/health", "Origin: http://evil.example")[0] == 403
    assert victim.get("/health", "Origin: null")[0] == 403
    assert victim.get("/health", f"Origin: http://127.0.0.1:{victim.port}")[0] == 200
    assert victim.get("/health", "Sec-Fetch-Site: cross-site")[0] == 403
    assert victim.post("/echo", b"{}", "Origin: http://evil.example")[0] == 403
    status, headers, _ = split_answer(victim.ask(victim.head(
        "OPTIONS /echo", "Origin: http://evil.example", "Access-Control-Request-Method: POST",
        "Connection: close")))
    assert status == 403
    assert not [name for name in headers if name.startswith("access-control")]
    assert victim.calls == []


def test_foreign_addresses_are_refused_unread():
    victim = Victim(Gate(["10.0.0.0/8"]))
    try:
        with victim.connect() as sock:
            status, _, body = split_answer(read_all(sock))  # nothing was sent yet
        assert (status, json.loads(body)["error"]) == (403, "address not allowed")
        answer = victim.ask(victim.head("POST /echo", "X-Forwarded-For: 10.0.0.1"))
        assert split_answer(answer)[0] == 403
        victim.server.gate.set_networks(["127.0.0.0/8"])
        victim.assert_alive()
    finally:
        victim.stop()


# --- slow, silent and many

def test_silence_is_ended(victim, hurried):
    with victim.connect() as silent, victim.connect() as kept:
        kept.sendall(victim.head("GET /health"))
        kept.recv(65536)
        start = time.monotonic()
        assert silent.recv(100) == b""
        assert kept.recv(100) == b""
        assert time.monotonic() - start < 3
    hurried.undo()
    victim.assert_alive()


def drip(sock, data: bytes) -> bytes:
    """Send a byte now and then until the other side has enough; what it says."""
    with contextlib.suppress(ConnectionError):
        for byte in data:
            sock.sendall(bytes([byte]))
            time.sleep(0.05)
    with contextlib.suppress(ConnectionError):
        return read_all(sock)
    return b""


def test_slow_heads_and_bodies_are_ended(victim, hurried):
    start = time.monotonic()
    with victim.connect() as sock:
        answer = drip(sock, victim.head("GET /health", "X: " + "y" * 300))
    assert answer == b"" or split_answer(answer)[0] == 408
    with victim.connect() as sock:
        sock.sendall(victim.head("POST /echo", "Content-Type: application/json",
                                 "Content-Length: 400"))
        answer = drip(sock, b" " * 400)
    assert answer == b"" or split_answer(answer)[0] == 408
    assert time.monotonic() - start < 50 * 0.05 * 8
    assert victim.calls == []
    wait_for(lambda: open_slots(victim) == 0)
    hurried.undo()
    victim.assert_alive()


def test_a_reader_that_does_not_read_is_cut_off(victim, hurried):
    with victim.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(victim.head("GET /large"))
        wait_for(lambda: open_slots(victim) == 0, 20)
    hurried.undo()
    victim.assert_alive()


@pytest.mark.parametrize("nibble", [0, 1])
def test_slow_readers_of_streams_are_cut_off(victim, hurried, nibble):
    """Whether they read nothing or a byte now and then."""
    with contextlib.ExitStack() as stack:
        readers = []
        for _ in range(http_server.HTTP_STREAMS):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", victim.port))
            sock.sendall(victim.head("GET /endless"))
            readers.append(sock)
        end = time.monotonic() + 25
        while len(victim.closed_streams) < len(readers):
            assert time.monotonic() < end, "slow readers hold their streams"
            for sock in readers if nibble else ():
                with contextlib.suppress(ConnectionError):
                    sock.recv(nibble)
            victim.assert_alive()
            time.sleep(0.05)
    wait_for(lambda: open_slots(victim) == 0)


def raise_descriptor_limit(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


def test_a_thousand_silent_connections(victim):
    """Who says nothing has no thread."""
    raise_descriptor_limit(4096)
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        for number in range(1000):
            stack.enter_context(victim.connect())
            if number % 200 == 0:
                victim.assert_alive()
        victim.assert_alive()
        assert open_slots(victim) >= http_listener.HTTP_CONNECTIONS - 1
        assert threading.active_count() < before + 5
    wait_for(lambda: open_slots(victim) == 0)


def test_a_request_that_came_is_not_closed_for_silent_connections(victim, monkeypatch):
    """It is older than all of them, but it has spoken."""
    raise_descriptor_limit(4096)
    monkeypatch.setattr(http_listener, "HTTP_ACCEPTS_AT_ONCE", 1000)
    stalled, go_on = threading.Event(), threading.Event()

    def stall(peer):  # the listener asks this of each newcomer
        if not stalled.is_set():
            stalled.set()
            go_on.wait(60)
        return True

    monkeypatch.setattr(victim.server.listener, "allow_peer", stall)
    with contextlib.ExitStack() as stack:
        asking = stack.enter_context(victim.connect())
        asking.sendall(victim.head("GET /health", "Connection: close"))
        assert stalled.wait(60)
        for _ in range(3 * http_listener.HTTP_CONNECTIONS):
            stack.enter_context(victim.connect())
        go_on.set()
        assert split_answer(read_all(asking))[0] == 200


def test_a_silent_connection_is_ended(victim, hurried):
    with victim.connect() as sock:
        wait_for(lambda: open_slots(victim) == 1)
        assert read_all(sock) == b""
    with victim.connect():
        wait_for(lambda: open_slots(victim) == 1)
    wait_for(lambda: open_slots(victim) == 0)  # the peer closed
    with victim.connect() as sock:
        wait_for(lambda: open_slots(victim) == 1)
        start = time.monotonic()
        victim.server.stop()
        assert sock.recv(10) == b""
        assert time.monotonic() - start < 2


def test_many_slow_bodies_and_heads(victim):
    with contextlib.ExitStack() as stack:
        for number in range(200):
            sock = stack.enter_context(victim.connect())
            if number % 2:
                sock.sendall(victim.head("POST /echo", "Content-Type: application/json",
                                         "Content-Length: 1000000") + b'{"a":')
            else:
                sock.sendall(b"GET /health HTTP/1.1\r\nHost:")
        for _ in range(5):
            victim.assert_alive()


def test_when_all_are_at_work_others_hear_503():
    victim = Victim(connections=8)
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                sock = stack.enter_context(victim.connect())
                sock.sendall(victim.head("GET /hold"))
            wait_for(lambda: sum(slot.state == "work" for slot in
                                 victim.server.listener._open_slots()) == 8)
            status, headers, body = victim.get("/health")
            assert (status, json.loads(body)["ok"]) == (503, False)
            assert int(headers["retry-after"]) > 0
            victim.hold.set()
            wait_for(lambda: all(slot.state != "work" for slot in
                                 victim.server.listener._open_slots()))
            victim.assert_alive()
    finally:
        victim.stop()


def test_a_storm_of_connections(victim):
    """While they come, every call is answered, and in time."""
    over, connected = threading.Event(), []

    def storm():
        while not over.is_set():
            with contextlib.suppress(OSError), victim.connect(2) as sock:
                sock.sendall(b"GET")
                connected.append(sock)

    threads = [threading.Thread(target=storm) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            before = len(connected)
            wait_for(lambda before=before: len(connected) > before)
            victim.assert_alive(2.0)
    finally:
        over.set()
        for thread in threads:
            thread.join()


def fake_slot(peer: str, state: str, since: float):
    ours, theirs = socket.socketpair()
    theirs.close()
    address = http_listener.parse_address(peer)
    slot = http_listener.HttpSlot(ours, address, http_listener.connection_holder(address))
    slot.state = state
    slot.since = since
    return slot


def test_one_address_cannot_take_all_places(victim):
    listener = victim.server.listener
    neighbour = http_listener.parse_address("10.0.0.9")
    listener.slots = {fake_slot("10.0.0.9", "idle", 5.0 + n)
                      for n in range(http_listener.HTTP_PER_ADDRESS)}
    oldest = min(listener.slots, key=lambda slot: slot.since)
    assert listener._has_room(neighbour, "10.0.0.9")
    assert [slot for slot in listener.slots if slot.cut] == [oldest]
    for slot in listener.slots:
        slot.state = "work"
    extra = fake_slot("10.0.0.9", "work", 1.0)
    listener.slots.add(extra)
    assert not listener._has_room(neighbour, "10.0.0.9")
    assert listener._has_room(http_listener.parse_address("10.0.0.8"), "10.0.0.8")
    for slot in listener.slots:
        slot.close()
    listener.slots = set()


def test_some_places_are_kept_for_this_machine_and_for_newcomers(victim):
    listener = victim.server.listener
    free_but_reserved = http_listener.HTTP_CONNECTIONS - http_listener.HTTP_RESERVED
    listener.slots = {fake_slot(f"10.0.{n % 40}.1", "work", 1.0) for n in range(free_but_reserved)}
    assert not listener._has_room(http_listener.parse_address("10.0.0.1"), "10.0.0.1")
    assert listener._has_room(http_listener.parse_address("10.9.9.9"), "10.9.9.9")
    assert listener._has_room(http_listener.parse_address("127.0.0.1"), "127.0.0.1")
    for slot in listener.slots:
        slot.close()
    listener.slots = set()


def test_ipv6_neighbours_share_a_count():
    holder = http_listener.connection_holder
    address = http_listener.parse_address
    assert holder(address("fd00:1::1")) == holder(address("fd00:1::ffff:1"))
    assert holder(address("fd00:1::1")) != holder(address("fd00:2::1"))
    assert holder(address("::ffff:10.0.0.1")) == "10.0.0.1"


def test_stalled_bodies_give_way_to_others(monkeypatch):
    monkeypatch.setattr(http_server, "HTTP_STALLED_S", 0.2)
    monkeypatch.setattr(http_server, "HTTP_BODIES_BYTES", 3 << 20)
    victim = Victim()
    try:
        with victim.connect() as stalled:
            stalled.sendall(victim.head("POST /echo", "Content-Type: application/json",
                                        f"Content-Length: {8 << 20}") + b" " * (2 << 20))
            time.sleep(0.5)
            body = json.dumps({"a": "x" * (2 << 20)}).encode()
            assert victim.post("/echo", body)[0] == 200
        assert victim.server.bodies.left == 3 << 20
    finally:
        victim.stop()


# --- bombs

def test_heavy_requests_wait_for_each_other_and_light_ones_do_not(monkeypatch):
    monkeypatch.setattr(http_shares, "HTTP_PARSED_PATIENCE_S", 0.3)
    share = http_shares.MemoryShare(100 << 20, 20 << 20)
    with pytest.raises(HttpError) as caught, share.holding(81 << 20):
        pass
    assert caught.value.status == 413
    with share.holding(80 << 20):
        with pytest.raises(HttpError) as caught, share.holding(5 << 20):
            pass
        assert (caught.value.status, int(caught.value.headers["Retry-After"]) > 0) == (503, True)
        with share.holding(4 << 20):  # light
            pass
    entered = threading.Event()

    def second():
        with share.holding(50 << 20):
            entered.set()

    monkeypatch.setattr(http_shares, "HTTP_PARSED_PATIENCE_S", 10)
    with share.holding(50 << 20):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(30)
    thread.join()
    assert share.left == 100 << 20


def test_a_body_that_would_take_too_much_memory_is_refused(victim):
    """Every letter of it becomes four bytes: that is found before it is done."""
    wide = '{"back":"\U0001f600'.encode() + b"x" * (14 << 20) + b'"}'
    assert peak_during(lambda: victim.post("/echo", wide)) < 60 << 20
    assert victim.post("/echo", wide)[0] == 413
    assert victim.post("/echo", gzip.compress(wide, 1), "Content-Encoding: gzip")[0] == 413
    fits = '{"a":"\U0001f600'.encode() + b"x" * (4 << 20) + b'"}'
    assert victim.post("/echo", fits)[0] == 200
    assert len(victim.calls) == 1
    assert victim.server.parsed.left == http_server.HTTP_PARSED_BYTES


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_during(action) -> int:
    """By how much the resident memory grew at most while `action` ran."""
    start = peak = resident_bytes()
    thread = threading.Thread(target=action)
    thread.start()
    while thread.is_alive():
        peak = max(peak, resident_bytes())
        time.sleep(0.002)
    return peak - start


def test_bombs_cost_little(victim):
    zeros = gzip.compress(b"\0" * (300 << 20), 9)
    lists = gzip.compress(b'{"a":[' + b"[]," * (5 << 20) + b"[]]}", 9)
    spaces = gzip.compress(b" " * (15 << 20), 9)
    statuses = []

    def attack():
        for body in (zeros, lists, spaces):
            statuses.append(victim.post("/echo", body, "Content-Encoding: gzip")[0])
            statuses.append(victim.post("/echo", b"[" * 5_000_000)[0])

    grown = peak_during(attack)
    assert set(statuses) <= {400, 413}
    assert statuses[0] == 413
    assert grown < 160 << 20, f"{grown >> 20} MiB"
    assert victim.calls == []
    victim.assert_alive()


def test_many_bombs_at_once(victim):
    bomb = gzip.compress(b"\0" * (100 << 20), 9)

    def attack():
        def one():
            assert victim.post("/echo", bomb, "Content-Encoding: gzip")[0] in (413, 503)
        threads = [threading.Thread(target=one) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert peak_during(attack) < 250 << 20
    victim.assert_alive()


# --- TLS

def tls_get(victim, certfile: str, path: str) -> tuple:
    context = ssl.create_default_context(cafile=certfile)
    with victim.connect() as plain, context.wrap_socket(plain, server_hostname="localhost") as sock:
        sock.sendall(victim.head(f"GET {path}", f"Origin: https://127.0.0.1:{victim.port}",
                                 "Connection: close"))
        return split_answer(read_all(sock))


def test_tls_and_silent_tls_clients(certificate):
    cert, key = certificate
    victim = Victim(certfile=cert, keyfile=key)
    try:
        with contextlib.ExitStack() as stack:
            for number in range(120):
                sock = stack.enter_context(victim.connect())
                if number % 2:
                    sock.sendall(b"\x16\x03\x01\x02\x00")  # the beginning of a handshake
            start = time.monotonic()
            assert tls_get(victim, cert, "/health")[0] == 200
            assert time.monotonic() - start < 2
            status, _, body = tls_get(victim, cert, "/export")
            assert unchunk(body) == (b"line\n" * 10000, True)
            assert victim.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")[:8] != b"HTTP/1.1"
            assert tls_get(victim, cert, "/health")[0] == 200
    finally:
        victim.stop()


def test_a_tls_stream_ends_when_nobody_listens(certificate):
    cert, key = certificate
    victim = Victim(certfile=cert, keyfile=key)
    try:
        context = ssl.create_default_context(cafile=cert)
        with victim.connect() as plain:
            sock = context.wrap_socket(plain, server_hostname="localhost")
            sock.sendall(victim.head("GET /events"))
            read_until(sock, b"hello")
            time.sleep(0.3)
            assert not victim.closed_streams
            sock.close()
        wait_for(lambda: victim.closed_streams)
    finally:
        victim.stop()


def test_a_wrong_certificate_is_explained(certificate, tmp_path):
    cert, _ = certificate
    for files in ((str(tmp_path / "none.pem"), None), (cert, cert)):
        with pytest.raises(MedialibError, match="cannot use the certificate"):
            JsonServer("127.0.0.1", 0, Router(), Gate(), certfile=files[0], keyfile=files[1])


# --- starting and stopping

def test_a_port_in_use_is_explained(victim):
    with pytest.raises(MedialibError, match=f"port {victim.port} is in use.*--port"):
        JsonServer("127.0.0.1", victim.port, Router(), Gate())
    with pytest.raises(MedialibError, match="not an address of this machine"):
        JsonServer("203.0.113.77", 0, Router(), Gate())
    with pytest.raises(MedialibError, match="not a port"):
        JsonServer("127.0.0.1", 99999, Router(), Gate())


def test_every_address_of_both_families():
    router = Router()
    router.add("GET", "/health", lambda request: {"ok": True, "peer": request.peer_text})
    server = JsonServer("", 0, router, Gate())
    server.start()
    try:
        hosts = ["127.0.0.1"] + (["::1"] if socket.has_dualstack_ipv6() else [])
        for host in hosts:
            with socket.create_connection((host, server.port), 5) as sock:
                sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
                             b"Connection: close\r\n\r\n")
                _, _, body = split_answer(read_all(sock))
                assert json.loads(body)["peer"] == host
    finally:
        server.stop()


def test_stop_lets_answers_out_and_is_quick(victim):
    answers = []
    with victim.connect() as silent, victim.connect() as kept, victim.connect() as events:
        kept.sendall(victim.head("GET /health"))
        kept.recv(65536)
        events.sendall(victim.head("GET /events"))
        thread = threading.Thread(target=lambda: answers.append(victim.get("/hold")))
        thread.start()
        wait_for(lambda: any(slot.state == "work" for slot in
                             victim.server.listener._open_slots()))
        time.sleep(0.1)
        threading.Timer(0.3, victim.hold.set).start()
        start = time.monotonic()
        victim.server.stop()
        assert time.monotonic() - start < 2.5
        thread.join()
        assert silent.recv(10) == b""
    assert answers[0][0] == 200
    with pytest.raises(ConnectionError):
        victim.connect()


def test_stop_does_not_wait_for_ever(victim):
    with victim.connect() as sock:
        sock.sendall(victim.head("GET /hold"))
        time.sleep(0.2)
        start = time.monotonic()
        victim.server.stop()
        assert time.monotonic() - start < 3


def test_a_server_that_never_started_can_stop():
    server = JsonServer("127.0.0.1", 0, Router(), Gate())
    server.stop()
    server.stop()
