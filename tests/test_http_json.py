"""Heads, bodies, the gate and the router, without a socket."""

from __future__ import annotations

import gzip
import ipaddress
import json
import random
import tracemalloc

import pytest

from medialib import http_gate, http_shares
from medialib.base import StoreError, UsageError
from medialib.http_body import (
    JSON_DEPTH,
    JSON_TOKENS,
    BodyError,
    JsonWeight,
    gunzip_bounded,
    parse_json_bounded,
    parse_json_object,
)
from medialib.http_gate import (
    Gate,
    format_address,
    machine_names,
    own_addresses,
    parse_address,
)
from medialib.http_json import (
    HttpError,
    Reply,
    Request,
    Router,
    body_length,
    header_text,
    parse_head,
    wants_gzip,
)
from tests import support


def head_of(*lines: bytes) -> bytes:
    return b"\r\n".join([b"GET /a HTTP/1.1", b"Host: box", *lines])


def test_a_head_is_taken_apart():
    request = parse_head(b"POST /a/b?x=1&y=%C3%A4+b&x=2&z= HTTP/1.1\r\nHOST: box:1\r\n"
                         b"Accept: a\r\naccept:\tb \r\nEmpty:")
    assert (request.method, request.path) == ("POST", "/a/b")
    assert request.query == {"x": "2", "y": "ä b", "z": ""}
    assert request.headers == {"host": "box:1", "accept": "a, b", "empty": ""}
    assert request.header("ACCEPT") == "a, b"
    assert request.version == (1, 1)


@pytest.mark.parametrize(("head", "status"), [
    (b"GET  /a HTTP/1.1\r\nHost: a", 400),
    (b"GET /a\r\nHost: a", 400),
    (b"GET /a HTTP/1.1 \r\nHost: a", 400),
    (b"GET /a b HTTP/1.1\r\nHost: a", 400),
    (b" GET /a HTTP/1.1\r\nHost: a", 400),
    (b"GET /\xc3\xa4 HTTP/1.1\r\nHost: a", 400),
    (b"GET http://a/ HTTP/1.1\r\nHost: a", 400),
    (b"CONNECT a:443 HTTP/1.1\r\nHost: a", 400),
    (b"OPTIONS * HTTP/1.1\r\nHost: a", 400),
    (b"GET /a HTTP/2.0\r\nHost: a", 505),
    (b"GET /a HTTP/11.1\r\nHost: a", 400),
    (b"GET /a http/1.1\r\nHost: a", 400),
    (b"GET /a HTTP/1.1", 400),
    (head_of(b"Name : x"), 400),
    (head_of(b"Name x"), 400),
    (head_of(b": x"), 400),
    (head_of(b" folded: x"), 400),
    (head_of(b"A: x", b" folded"), 400),
    (head_of(b"A: x", b"\tfolded"), 400),
    (head_of(b"A: x\ry"), 400),
    (head_of(b"A: x\ny: z"), 400),
    (head_of(b"A: x\0"), 400),
    (head_of(b"A: \x1b[31m"), 400),
    (head_of(b"Na\xefme: x"), 400),
    (head_of(b"host: other"), 400),
    (head_of(b"Content-Length: 1", b"Content-Length: 1"), 400),
    (head_of(b"Origin: a", b"Origin: a"), 400),
    (head_of(b"Transfer-Encoding: a", b"Transfer-Encoding: b"), 400),
    (b"GET /?" + b"&".join(b"a%d=1" % n for n in range(40)) + b" HTTP/1.1\r\nHost: a", 400),
    (b"GET /?a=%ff HTTP/1.1\r\nHost: a", 400),
    (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a", 414),
    (head_of(*[b"H%d: x" % n for n in range(70)]), 431),
])
def test_heads_that_could_be_read_in_two_ways_are_refused(head, status):
    with pytest.raises(HttpError) as caught:
        parse_head(head)
    assert caught.value.status == status


def test_http_1_0_needs_no_host():
    assert parse_head(b"GET / HTTP/1.0").version == (1, 0)


def length_of(*lines: bytes, method: bytes = b"POST", limit: int = 1000) -> int:
    return body_length(parse_head(b"\r\n".join([method + b" / HTTP/1.1", b"Host: a", *lines])),
                       limit)


@pytest.mark.parametrize(("lines", "status"), [
    ([b"Content-Length: -1"], 400),
    ([b"Content-Length: +5"], 400),
    ([b"Content-Length: 1_0"], 400),
    ([b"Content-Length: \xd9\xa3"], 400),
    ([b"Content-Length: 0x10"], 400),
    ([b"Content-Length: "], 400),
    ([b"Content-Length: 5, 5"], 400),
    ([b"Content-Length: 5 5"], 400),
    ([b"Content-Length: 1e3"], 400),
    ([b"Content-Length: " + b"9" * 400], 400),
    ([b"Content-Length: 1001"], 413),
    ([b"Content-Length: 999999999999"], 413),
    ([b"Transfer-Encoding: chunked"], 411),
    ([b"Transfer-Encoding: chunked", b"Content-Length: 5"], 400),
    ([b"Transfer-Encoding: gzip, chunked"], 501),
    ([b"Transfer-Encoding: "], 501),
    ([b"Transfer-Encoding: identity"], 501),
    ([b"Content-Length: 5"], 415),
    ([b"Content-Length: 5", b"Content-Type: text/plain"], 415),
    ([b"Content-Length: 5", b"Content-Type: application/x-www-form-urlencoded"], 415),
    ([b"Content-Length: 5", b"Content-Type: text/plain; a=application/json"], 415),
    ([b"Content-Length: 5", b"Content-Type: application/jsonx"], 415),
    ([b"Content-Length: 5", b"Content-Type: application/json", b"Content-Encoding: br"], 415),
    ([b"Content-Length: 5", b"Content-Type: application/json", b"Content-Encoding: gzip, gzip"],
     415),
])
def test_bodies_without_a_clear_length_and_type_are_refused(lines, status):
    with pytest.raises(HttpError) as caught:
        length_of(*lines)
    assert caught.value.status == status


def test_lengths_that_are_taken():
    kind = b"Content-Type: application/json; charset=utf-8"
    assert length_of() == 0
    assert length_of(b"Content-Length: 0") == 0
    assert length_of(b"Content-Length: 1000", kind) == 1000
    assert length_of(b"Content-Length: 1", b"content-type:APPLICATION/JSON",
                     b"Content-Encoding: gzip") == 1
    with pytest.raises(HttpError, match="unexpected body"):
        length_of(b"Content-Length: 1", kind, method=b"GET")


# --- JSON

def refusal_of(data: bytes, **bounds) -> BodyError:
    with pytest.raises(BodyError) as caught:
        parse_json_object(data, **bounds)
    return caught.value


@pytest.mark.parametrize("data", [
    b"[" * 100_000, b"[" * 70 + b"]" * 70, b'{"a":' * 100_000, b'{"a":' * 70 + b"1" + b"}" * 70,
    b'["]",' * 1000 + b"1" + b"]" * 1000, b'["\\"]",' * 1000 + b"1" + b"]" * 1000,
    b'["\\\\",' * 1000 + b"1" + b"]" * 1000, b'["\\\\\\"]",' * 1000 + b"1" + b"]" * 1000,
    b'{"]":[' * 100 + b"]}" * 100,
])
def test_deep_json_is_refused_before_it_is_parsed(data):
    assert refusal_of(data).status == 400


def test_json_up_to_the_depth_is_taken():
    nested = {"a": []}
    for _ in range(JSON_DEPTH - 2):
        nested = {"a": nested}
    # More brackets than levels, so that the close look happens, and text that looks like brackets.
    assert len(json.dumps(nested)) > JSON_DEPTH
    many = {"deep": nested["a"], "text": ['[[["{\\', "]]]}", '\\"', "\\\\", '"', '\\'] * 30}
    assert parse_json_object(json.dumps(many).encode()) == many
    assert refusal_of(json.dumps({"a": nested}).encode()).status == 400


def test_many_values_are_refused_without_making_them():
    data = b'{"a":[' + b"[]," * 5_000_000 + b"[]]}"
    tracemalloc.start()
    assert refusal_of(data).status == 400
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * len(data)


def in_pieces(data: bytes, step: int = 4096) -> list:
    return [data[place:place + step] for place in range(0, len(data), step)]


@pytest.mark.parametrize("data", [
    b'{"a":[' + b"[]," * 150_000 + b"[]]}", b'{"a":[' + b"{}," * 150_000 + b"[]]}",
    b'{"a":[' + (b'{"":' * 60 + b"1" + b"}" * 60 + b",") * 3_000 + b"1]}",
    b'{"a":[' + b"1e9," * 400_000 + b"1]}",
    b'{"a":[' + b"123456789012345678901," * 200_000 + b"1]}",
    b'{"a":"' + b"x" * 3_000_000 + b'"}', '{"a":"\xe4'.encode() + b"x" * 3_000_000 + b'"}',
    '{"a":"\u65e5'.encode() + b"x" * 3_000_000 + b'"}',
    '{"a":"\U0001f600'.encode() + b"x" * 3_000_000 + b'"}',
    b'{"a":"\\ud83d\\ude00' + b"x" * 3_000_000 + b'"}',
    b'{"a":"' + b"x" * 4089 + b"\\ud83d\\ude00" + b"x" * 3_000_000 + b'"}',  # cut in two
    b'{"a":"' + b"x" * 3_000_000 + b'\\ud83d\\ude00"}',
    b'{"a":"' + b"\\ud800" * 300_000 + b'"}', b'{"a":"' + b"\\n" * 1_000_000 + b'"}',
    b'{"a":[' + b'"abcdefghij",' * 200_000 + b"1]}",
], ids=lambda data: repr(data[:14]))
def test_the_weight_of_json_is_no_less_than_its_memory(data):
    weight = JsonWeight()
    for piece in in_pieces(data):
        weight.add(piece)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    value = parse_json_object(data)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert "a" in value
    assert peak + len(data) <= weight.memory_bytes()


def test_an_ordinary_batch_weighs_little():
    record = {"kind": "video", "path": "/srv/media/Series/Some name/Episode 07.mkv", "ext": ".mkv",
              "size": 1234567, "mtime": 1700000000.123, "ctime": 1700000000.125,
              "inode_key": "1234567:1700000000123000000:123456:2049", "hashes": {
                  "algo": "blake3", "sample_size": 65536, "sample_hash": "ab" * 32,
                  "full_hash": None}}
    weight = JsonWeight()
    weight.add(json.dumps({"batch_id": "a", "files": [record] * 500}).encode())
    assert weight.memory_bytes() < http_shares.HTTP_LIGHT_BYTES


def test_commas_inside_of_strings_are_not_values():
    text = json.dumps({"streams": "a,b:c[" * 200_000})
    assert text.count(",") + text.count(":") + text.count("[") > JSON_TOKENS
    assert parse_json_object(text.encode()) == json.loads(text)


@pytest.mark.parametrize("data", [
    b"", b"nul", b"{", b"{}x", b"[]", b'"a"', b"1", b"null", b"true", b"\xef\xbb\xbf{}",
    b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":"\xff"}', b'{"a":"\xed\xa0\x80"}',
    b'{"a":"\n"}', b'{"a":01}', b"{'a':1}", '{"a":1}'.encode("utf-16"), b'{"a":1,}',
    b'{"a":' + b"9" * 5000 + b"}",
])
def test_what_is_not_sound_json_is_refused(data):
    assert refusal_of(data).status == 400


def test_a_huge_integer_costs_no_time():
    data = b'{"a":' + b"9" * 1_000_000 + b"}"
    support.assert_prompt(lambda: refusal_of(data), 1)


def test_the_last_of_equal_keys_counts():
    assert parse_json_object(b'{"a":1,"a":2}') == {"a": 2}


@pytest.mark.parametrize(("escape", "text"), [
    (r"caf\udce9.mkv", "caf\uefe9.mkv"),  # as Python writes an undecodable byte of a name
    (r"\ud800", "\ufffd"), (r"\uDFFFx", "\ufffdx"), (r"\udc7f", "\ufffd"),
    (r"\ud83d\ude00", "\U0001f600"), (r"\uD83D\uDE00\ud83d", "\U0001f600\ufffd"),
    (r"\\ud800", r"\ud800"), (r"\\\ud800", "\\\ufffd"), (r"\ud800\ud83d\ude00", "\ufffd\U0001f600"),
])
def test_lone_surrogates_become_harmless(escape, text):
    value = parse_json_object(b'{"a":"' + escape.encode() + b'"}')["a"]
    assert value == text
    value.encode("utf-8")


def test_gunzip_stops_at_its_limit():
    assert gunzip_bounded(gzip.compress(b"a" * 1000), 1000) == b"a" * 1000
    with pytest.raises(BodyError) as caught:
        gunzip_bounded(gzip.compress(b"a" * 1001), 1000)
    assert caught.value.status == 413
    noise = random.Random(1).getrandbits(8 * 3_000_000).to_bytes(3_000_000, "little")
    assert gunzip_bounded(gzip.compress(noise), 3_000_000) == noise
    assert gunzip_bounded(gzip.compress(b""), 10) == b""


@pytest.mark.parametrize("data", [
    b"x", b"\x1f\x8b", b"plain text", gzip.compress(b"a" * 1000)[:-9],
    gzip.compress(b"a" * 100000)[:50], gzip.compress(b"a") + b"rubbish",
    gzip.compress(b"hello")[:-5] + b"12345", gzip.compress(b"a") * 2, b"",
    gzip.compress(bytes(range(256)) * 1000) + b"x",
], ids=range(10))
def test_broken_gzip_is_refused(data):
    with pytest.raises(BodyError) as caught:
        gunzip_bounded(data, 1 << 20)
    assert caught.value.status == 400


def test_a_bomb_costs_little_memory():
    bomb = gzip.compress(b"\0" * (128 << 20), 9)
    tracemalloc.start()
    with pytest.raises(BodyError):
        gunzip_bounded(bomb, 8 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20


def test_bounds_can_be_set():
    with pytest.raises(BodyError):
        parse_json_bounded(b"[1,2,3,4,5]", tokens=3)
    assert parse_json_bounded(b"[1,2]", tokens=3) == [1, 2]


# --- the gate

@pytest.mark.parametrize(("text", "allowed"), [
    ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("10.1.2.3", True),
    ("172.16.0.1", True), ("172.31.255.255", True), ("172.32.0.1", False),
    ("192.168.7.7", True), ("192.169.0.1", False), ("169.254.1.1", True),
    ("fe80::1%eth0", True), ("fd12::1", True), ("fc00::1", True), ("100.64.0.1", True),
    ("100.127.255.255", True), ("100.128.0.1", False), ("100.63.255.255", False),
    ("8.8.8.8", False), ("203.0.113.5", False), ("0.0.0.0", False), ("2001:db8::1", False),
    ("2606:4700::1", False), ("::ffff:10.0.0.1", True), ("::ffff:8.8.8.8", False),
    ("::ffff:127.0.0.1", True), ("::", False), ("::10.0.0.1", False), ("255.255.255.255", False),
    ("224.0.0.1", False), ("64:ff9b::a00:1", False),
])
def test_home_networks(text, allowed):
    assert Gate().allow_peer(parse_address(text)) is allowed


def test_networks_can_be_replaced_while_running():
    gate = Gate(["203.0.113.0/24", "2001:db8::/32"])
    assert gate.allow_peer(ipaddress.ip_address("203.0.113.9"))
    assert not gate.allow_peer(ipaddress.ip_address("10.0.0.1"))
    gate.set_networks(["10.0.0.1", "192.168.1.5/24"])
    assert gate.allow_peer(ipaddress.ip_address("10.0.0.1"))
    assert gate.allow_peer(ipaddress.ip_address("192.168.1.77"))
    assert not gate.allow_peer(ipaddress.ip_address("10.0.0.2"))
    with pytest.raises(UsageError, match="10.0.0.0/8"):
        gate.set_networks(["10.0.0"])


@pytest.mark.parametrize(("host", "known"), [
    ("127.0.0.1", True), ("10.0.0.5:8765", True), ("[::1]:8765", True), ("[fe80::1]", True),
    ("8.8.8.8", True), ("localhost", True), ("LOCALHOST:1", True), ("localhost.", True),
    ("media.example.org", True), ("media.example.org:99", True), ("evil.example", False),
    ("localhost.evil.example", False), ("127.0.0.1.evil.example", False), ("", False),
    ("a b", False), ("user@localhost", False), ("localhost:", False), ("localhost:123456", False),
    ("localhost:x", False), ("[::1", False), ("::1", False), ("[box]", False), ("0x7f.1", False),
    ("2130706433", False), ("localhost/", False), ("xlocalhost", False),
])
def test_hosts(host, known):
    assert Gate(host_names=["Media.Example.org."]).check_host(host) is known


def test_names_of_this_machine(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "Box.fritz.example")
    assert {"box", "box.local", "box.fritz.example", "localhost"} <= machine_names()
    gate = Gate()
    assert gate.check_host("box.local:8765")
    assert not gate.check_host("box.evil.example")


def test_a_flood_of_hosts_fills_nothing():
    gate = Gate()
    for number in range(2000):
        gate.check_host(f"h{number}.example")
    assert len(gate._known_hosts) <= 256


@pytest.mark.parametrize(("headers", "status"), [
    ({"host": "localhost:1"}, None),
    ({"host": "localhost:1", "origin": "http://localhost:1"}, None),
    ({"host": "LocalHost:1", "origin": "HTTP://localhost:1"}, None),
    ({"host": "localhost:1", "origin": "https://localhost:1"}, 403),
    ({"host": "localhost:1", "origin": "http://localhost:2"}, 403),
    ({"host": "localhost:1", "origin": "http://localhost"}, 403),
    ({"host": "localhost:1", "origin": "http://127.0.0.1:1"}, 403),
    ({"host": "localhost:1", "origin": "null"}, 403),
    ({"host": "localhost:1", "origin": ""}, 403),
    ({"host": "localhost:1", "origin": "http://evil.example"}, 403),
    ({"origin": "http://localhost:1"}, 403),
    ({"host": "localhost:1", "sec-fetch-site": "cross-site"}, 403),
    ({"host": "localhost:1", "sec-fetch-site": "same-site"}, 403),
    ({"host": "localhost:1", "sec-fetch-site": "same-origin"}, None),
    ({"host": "localhost:1", "sec-fetch-site": "none"}, None),
    ({"host": "evil.example", "origin": "http://evil.example"}, 421),
    ({}, None),
])
def test_browsers_sent_by_foreign_pages_are_refused(headers, status):
    refused = Gate().refusal(headers, tls=False)
    assert (refused and refused[0]) == status


def test_the_origin_of_a_tls_page():
    headers = {"host": "localhost", "origin": "https://localhost"}
    assert Gate().refusal(headers, tls=True) is None
    assert Gate().refusal(headers, tls=False)[0] == 403


def test_own_addresses_are_addresses():
    for text in own_addresses():
        address = ipaddress.ip_address(text)
        assert not address.is_loopback
        assert not address.is_link_local


def test_addresses_in_urls():
    assert format_address("10.0.0.1", 80) == "10.0.0.1:80"
    assert format_address("::1", 80) == "[::1]:80"


# --- the router

def request_of(method: str, path: str) -> Request:
    return Request(method, path, {}, {}, (1, 1), ipaddress.ip_address("127.0.0.1"))


def test_routes_are_found_and_listed():
    router = Router()
    router.add("GET", "/a", lambda request: {"ok": True}, summary="reads")
    router.add("POST", "/a", lambda request: [1], summary="writes", body=True)
    router.add("POST", "/b", lambda request: Reply(204))
    assert router.routes[1] == {"method": "POST", "path": "/a", "summary": "writes", "body": True}
    assert router.find("HEAD", "/a") is router.find("GET", "/a")
    reply = router.answer(router.find("POST", "/a"), request_of("POST", "/a"))
    assert (reply.status, reply.body) == (200, [1])
    with pytest.raises(HttpError) as caught:
        router.find("PUT", "/a")
    assert (caught.value.status, caught.value.headers) == (405, {"Allow": "GET, HEAD, POST"})
    with pytest.raises(HttpError) as caught:
        router.find("GET", "/b")
    assert caught.value.headers == {"Allow": "POST"}
    with pytest.raises(HttpError) as caught:
        router.find("GET", "/c")
    assert caught.value.status == 404


@pytest.mark.parametrize(("error", "status", "word"), [
    (HttpError(409, "resync", "gap", extra={"last_rev": 7}), 409, "resync"),
    (UsageError("limit must be a number"), 400, "limit must be a number"),
    (StoreError("the disk is full"), 503, "the disk is full"),
    (BodyError(400, "not JSON"), 400, "not JSON"),
    (KeyError("secret of the inside"), 500, "internal error"),
])
def test_what_a_handler_raises_becomes_an_answer(error, status, word):
    def handler(request):
        raise error
    reply = Router().answer(handler, request_of("GET", "/a"))
    assert reply.status == status
    assert reply.body["ok"] is False
    assert word in json.dumps(reply.body)
    assert "secret" not in json.dumps(reply.body)
    if status == 409:
        assert reply.body["last_rev"] == 7
    if status == 503:
        assert "Retry-After" in reply.headers


@pytest.mark.parametrize(("accepted", "wanted"), [
    ("gzip", True), ("br, GZIP;q=0.5", True), ("gzip;q=0", False), ("gzip; q=0.0", False),
    ("br", False), ("", False), ("xgzip", False),
])
def test_who_takes_gzip(accepted, wanted):
    assert wants_gzip({"accept-encoding": accepted}) is wanted


def test_headers_hold_no_line_breaks():
    assert header_text("a\r\nb: c\0") == "a  b: c "
    header_text("ä€😀").encode("latin-1")


@pytest.mark.parametrize(("routed", "others", "expected"), [
    (["fd00::2"], ["192.0.2.2"], ["192.0.2.2", "fd00::2"]),
    (["192.168.1.5", "fd00::2"], ["10.0.3.1", "2001:db8::1"],
     ["192.168.1.5", "10.0.3.1", "fd00::2", "2001:db8::1"]),
    (["203.0.113.9"], ["172.17.0.1"], ["172.17.0.1", "203.0.113.9"]),
    (["127.0.0.1", "fe80::1", "", "10.0.0.7"], ["169.254.1.1", "10.0.0.7", "nonsense"],
     ["10.0.0.7"]),
])
def test_the_address_to_paste_comes_first(monkeypatch, routed, others, expected):
    answers = iter(routed)
    monkeypatch.setattr(http_gate, "_route_address", lambda target: next(answers, ""))
    monkeypatch.setattr(http_gate, "_linux_addresses", lambda: others)
    assert own_addresses() == expected
