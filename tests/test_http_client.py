"""The client against servers that lie, stall, drip, cut and redirect."""

from __future__ import annotations

import contextlib
import email.utils
import gzip
import json
import random
import socket
import threading
import time

import pytest

from medialib.base import MedialibError, UsageError
from medialib.http_client import (
    Backoff,
    JsonClient,
    NotMedialib,
    PeerError,
    PeerRefused,
    PeerUnreachable,
    parse_host,
    parse_retry_after,
)

from .http_support import Victim


@pytest.fixture
def victim():
    server = Victim(max_body=1 << 20)
    yield server
    server.stop()


@pytest.fixture
def client(victim):
    made = JsonClient(f"http://127.0.0.1:{victim.port}", timeout_s=20)
    yield made
    made.close()


class Liar:
    """Accepts connections and lets `talk(sock, number)` do as it likes with each."""

    def __init__(self, talk):
        self.talk = talk
        self.count = 0
        self.requests = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                self.count += 1
                threading.Thread(target=self._one, args=(sock, self.count), daemon=True).start()

    def _one(self, sock, number):
        with contextlib.suppress(OSError), sock:
            self.talk(sock, number)

    def hear(self, sock) -> bytes:
        """One request with its body."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = sock.recv(65536)
            if not piece:
                return b""
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        while len(body) < length:
            body += sock.recv(65536)
        self.requests.append(head)
        return data

    def close(self):
        self.listener.close()


@contextlib.contextmanager
def answering(*answers: bytes, linger_s: float = 0.0):
    """Answers each request of a connection with the next of these bytes, then closes."""
    def talk(sock, _number):
        for answer in answers:
            if not liar.hear(sock):
                return
            sock.sendall(answer)
        time.sleep(linger_s)
    liar = Liar(talk)
    try:
        yield liar
    finally:
        liar.close()


def http_answer(body: bytes, status: str = "200 OK", *lines: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


def failure(liar, timeout_s: float = 20.0, **options) -> PeerError:
    with pytest.raises(PeerError) as caught:
        JsonClient(liar.url, timeout_s=timeout_s, **options).get("/health")
    return caught.value


# --- a good peer

def test_get_and_post(victim, client):
    assert client.get("/health") == {"ok": True}
    assert client.post("/echo", {"back": ["ä", "\U0001f600", 1.5, None]})["json"] == [
        "ä", "\U0001f600", 1.5, None]
    assert client.post("/echo", b'{"back":1}', gzip=True)["json"] == 1
    assert client.post("/echo")["keys"] == []
    large = {"back": "x" * 100_000}
    assert client.post("/echo", large, gzip=True)["json"] == large["back"]
    assert len(victim.server.listener._open_slots()) == 1  # one connection for all


def test_refusals_carry_the_answer(client):
    with pytest.raises(PeerRefused) as caught:
        client.get("/missing")
    assert (caught.value.status, caught.value.error) == (404, "not found")
    assert caught.value.answer["detail"] == caught.value.detail
    with pytest.raises(PeerRefused) as caught:
        client.post("/echo", {"a": "x" * (30 << 20)})  # refused while it is being sent
    assert caught.value.status == 413
    with pytest.raises(PeerRefused):
        client.get("/crash")
    assert client.get("/health") == {"ok": True}
    assert isinstance(caught.value, MedialibError)


def test_threads_may_share_a_client(client):
    answers = []

    def ask(number):
        answers.append(client.post("/echo", {"back": number})["json"] == number)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 20


def test_a_connection_the_host_closed_is_replaced(victim, client):
    assert client.get("/health") == {"ok": True}
    for slot in victim.server.listener._open_slots():
        slot.cut_off()
    assert client.post("/echo", {"back": 1})["json"] == 1
    assert len(victim.calls) == 1


def test_a_kept_connection_that_dies_under_the_request_is_tried_once_more():
    def talk(sock, number):
        liar.hear(sock)
        if number == 2:
            sock.sendall(http_answer(b'{"ok":true,"n":2}'))
            return
        sock.sendall(http_answer(b'{"ok":true,"n":1}'))
        liar.hear(sock)  # and close without a word
    liar = Liar(talk)
    try:
        client = JsonClient(liar.url, timeout_s=20)
        assert client.get("/health")["n"] == 1
        assert client.get("/health")["n"] == 2
        assert liar.count == 2
    finally:
        liar.close()


def test_a_fresh_connection_that_dies_is_not_tried_again():
    with answering(b"") as liar:
        assert isinstance(failure(liar), PeerUnreachable)
        assert liar.count == 1


def test_tls(certificate):
    cert, key = certificate
    victim = Victim(certfile=cert, keyfile=key)
    try:
        client = JsonClient(f"https://localhost:{victim.port}", timeout_s=20, cafile=cert)
        assert client.get("/health") == {"ok": True}
        assert client.post("/echo", {"back": "x" * 500_000})["json"] == "x" * 500_000
        client.close()
        with pytest.raises(PeerUnreachable):  # nobody vouches for it
            JsonClient(f"https://localhost:{victim.port}", timeout_s=20).get("/health")
        with pytest.raises(PeerUnreachable):
            JsonClient(f"http://localhost:{victim.port}", timeout_s=20).get("/health")
        with pytest.raises(MedialibError, match="cannot use the certificates"):
            JsonClient("https://localhost:1", cafile=key + ".none")
    finally:
        victim.stop()


def test_proxies_of_the_environment_are_not_used(victim, monkeypatch):
    with answering(http_answer(b'{"ok":true,"proxy":true}')) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        client = JsonClient(f"http://127.0.0.1:{victim.port}", timeout_s=20)
        assert client.get("/health") == {"ok": True}
        assert proxy.count == 0


# --- others

def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(PeerUnreachable, match="refused") as caught:
        JsonClient(f"http://127.0.0.1:{port}", timeout_s=20).get("/health")
    assert caught.value.retry_after_s is None


def test_an_unknown_name():
    with pytest.raises(PeerUnreachable, match="name"):
        JsonClient("http://no-such-machine.invalid:1", timeout_s=20).get("/health")


def test_redirects_are_not_followed(victim):
    line = f"Location: http://127.0.0.1:{victim.port}/health"
    for status in ("301 Moved", "302 Found", "307 Temporary", "308 Permanent"):
        with answering(http_answer(b"", status, line)) as liar:
            error = failure(liar)
        assert isinstance(error, NotMedialib)
        assert "sends us on to" in str(error)
    assert victim.server.listener.slots == set()


def length_of(value) -> str:
    """The name of a case: gzip writes the time into its data, and workers that begin in another
    second than the others would have another case.
    """
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


@pytest.mark.parametrize(("answer", "status"), [
    (http_answer(b"<html>Please log in</html>", "200 OK", "Content-Type: text/html"), 200),
    (http_answer(b""), 200),
    (http_answer(b'{"a":1}'), 200),
    (http_answer(b'{"ok":"yes"}'), 200),
    (http_answer(b"[]"), 200),
    (http_answer(b"[" * 100_000), 200),
    (http_answer(b'{"ok":true,"a":NaN}'), 200),
    (http_answer(b'{"detail":"Not Found"}', "404 Not Found"), 404),
    (http_answer(b"<h1>404</h1>", "404 Not Found"), 404),
    (http_answer(b"", "204 No Content"), 204),
    (http_answer(b"no gzip", "200 OK", "Content-Encoding: gzip"), 200),
    (http_answer(gzip.compress(b"\0" * (70 << 20)), "200 OK", "Content-Encoding: gzip"), 200),
], ids=length_of)
def test_what_is_not_medialib_is_named_so(answer, status):
    with answering(answer, linger_s=0.2) as liar:
        error = failure(liar, 5)
    assert isinstance(error, NotMedialib), error
    assert error.status == status
    assert "is not a medialib host" in str(error)


def test_the_answer_of_an_older_host_can_be_had():
    body = b'{"remote_roots":["/a"]}'
    with answering(http_answer(body), http_answer(b'{"detail":"x"}', "404 Not Found")) as liar:
        client = JsonClient(liar.url, timeout_s=20)
        assert client.get("/ingest/config", need_ok=False) == {"remote_roots": ["/a"]}
        with pytest.raises(NotMedialib) as caught:
            client.get("/ingest/config", need_ok=False)
        assert caught.value.answer == {"detail": "x"}


@pytest.mark.parametrize("answer", [
    b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 200 OK\r\nX: y\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    http_answer(b"<h1>bad gateway</h1>", "502 Bad Gateway"),
    http_answer(b"<h1>later</h1>", "503 Later"),
], ids=length_of)
def test_cut_and_garbled_answers(answer):
    with answering(answer) as liar:
        error = failure(liar)
    assert isinstance(error, PeerUnreachable), error
    assert "\n" not in str(error)


@pytest.mark.parametrize("answer", [
    b"SSH-2.0-OpenSSH_9.2\r\n", b"\0\1\2\3", b"HTTP/1.1 abc OK\r\n\r\n", b"220 mail ready\r\n",
])
def test_another_program_on_the_port(answer):
    with answering(answer) as liar:
        error = failure(liar)
    assert isinstance(error, NotMedialib)
    assert "does not speak HTTP" in str(error)


def test_a_html_413_still_says_too_large():
    with answering(http_answer(b"<h1>413</h1>", "413 Too Large")) as liar:
        error = failure(liar)
    assert isinstance(error, PeerRefused)
    assert error.status == 413


def test_answers_that_end_with_the_connection():
    with answering(b'HTTP/1.0 200 OK\r\n\r\n{"ok":true,"text":"' + b"x" * 300_000 + b'"}') as liar:
        assert len(JsonClient(liar.url, timeout_s=20).get("/health")["text"]) == 300_000


def test_what_the_peer_asks_us_to_wait():
    body = b'{"ok":false,"error":"busy"}'
    with answering(http_answer(body, "503 Busy", "Retry-After: 7")) as liar:
        error = failure(liar)
    assert isinstance(error, PeerRefused)
    assert (error.status, error.retry_after_s) == (503, 7.0)
    with answering(http_answer(b"<b>", "429 Many", "Retry-After: 9")) as liar:
        error = failure(liar)
    assert isinstance(error, PeerUnreachable)
    assert error.retry_after_s == 9.0


@pytest.mark.parametrize(("text", "seconds"), [
    (None, None), ("", None), ("12", 12.0), (" 0 ", 0.0), ("-5", None), ("1.5", None),
    ("999999", 3600.0), ("9" * 50, None), ("soon", None), ("٣", None),
    (email.utils.formatdate(1_000_060, usegmt=True), 60.0),
    (email.utils.formatdate(900_000, usegmt=True), 0.0),
    ("Fri, 99 Foo 2026 99:99:99 GMT", None),
])
def test_retry_after(text, seconds):
    assert parse_retry_after(text, now=1_000_000.0) == seconds


# --- deadlines and bounds

SILENT_S = 60.0  # of a peer that says nothing
IN_TIME_S = 20.0  # a deadline of less than a second, and what a busy machine may add

def timed_failure(talk, timeout_s: float = 0.6) -> float:
    """Seconds until a call to such a peer fails as unreachable."""
    liar = Liar(talk)
    start = time.monotonic()
    try:
        assert isinstance(failure(liar, timeout_s), PeerUnreachable)
    finally:
        liar.close()
    return time.monotonic() - start


def forever(sock, first: bytes, again: bytes, pause_s: float = 0.05):
    sock.recv(65536)
    sock.sendall(first)
    while True:
        sock.sendall(again)
        time.sleep(pause_s)


@pytest.mark.parametrize("talk", [
    lambda sock, number: time.sleep(SILENT_S),
    lambda sock, number: forever(sock, b"HTTP/1.1 200 OK\r\n", b"X"),
    lambda sock, number: forever(sock, b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    lambda sock, number: forever(sock, b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b" "),
    lambda sock, number: forever(sock, b"HTTP/1.1 200 OK\r\n\r\n", b" "),
    lambda sock, number: forever(
        sock, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    lambda sock, number: forever(
        sock, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
], ids=["silent", "head", "continue", "body", "endless", "chunks", "trailers"])
def test_one_deadline_for_the_whole_call(talk):
    assert 0.4 < timed_failure(talk) < IN_TIME_S


def test_a_peer_that_does_not_read():
    liar = Liar(lambda sock, number: time.sleep(SILENT_S))
    try:
        start = time.monotonic()
        with pytest.raises(PeerUnreachable, match="in time"):
            JsonClient(liar.url, timeout_s=0.6).post("/x", b"x" * (50 << 20))
        assert time.monotonic() - start < IN_TIME_S
    finally:
        liar.close()


def test_a_silent_tls_peer(certificate):
    liar = Liar(lambda sock, number: time.sleep(SILENT_S))
    try:
        start = time.monotonic()
        with pytest.raises(PeerUnreachable):
            JsonClient(liar.url.replace("http", "https"), timeout_s=0.6,
                       cafile=certificate[0]).get("/health")
        assert time.monotonic() - start < IN_TIME_S
    finally:
        liar.close()


def test_a_call_may_have_its_own_deadline():
    liar = Liar(lambda sock, number: time.sleep(SILENT_S))
    try:
        client = JsonClient(liar.url, timeout_s=SILENT_S)
        start = time.monotonic()
        with pytest.raises(PeerUnreachable):
            client.get("/health", timeout_s=0.3)
        assert time.monotonic() - start < IN_TIME_S
    finally:
        liar.close()


def test_the_largest_honest_page_is_taken():
    """Five thousand whole records; a host sends fewer where ffprobe said much of each."""
    record = {"name": "Episode 07.mkv", "kind": "video", "path": "/srv/media/" + "a name/" * 20,
              "size": 1 << 34, "mtime": 1700000000.123, "ctime": 1700000000.125, "ext": ".mkv",
              "inode_key": "17179869184:1700000000123000000:123456:2049",
              "hashes": {"algo": "sha256", "sample_size": 65536, "sample_hash": "ab" * 32,
                         "full_hash": "cd" * 32},
              "metadata": {"duration": 1.5, "container": "matroska", "video_codec": "h264",
                           "audio_codecs": ["aac", "ac3"], "width": 1920, "height": 1080,
                           "bitrate": 1000, "streams_json": json.dumps([{"index": 0}] * 20)}}
    page = {"ok": True, "files": [record] * 5000, "next": None}
    with answering(http_answer(json.dumps(page).encode())) as liar:
        assert JsonClient(liar.url, timeout_s=20).post("/ingest/names", {}) == page


def test_an_answer_without_end_is_cut():
    def talk(sock, number):
        forever(sock, b"HTTP/1.1 200 OK\r\n\r\n", b" " * 1_000_000, 0)
    liar = Liar(talk)
    try:
        error = failure(liar, 20, answer_bytes=5 << 20)
        assert isinstance(error, PeerUnreachable)
        assert "larger than" in str(error)
    finally:
        liar.close()


def test_after_a_failed_call_the_next_starts_afresh():
    def talk(sock, number):
        liar.hear(sock)
        if number == 1:
            time.sleep(0.6)
            sock.sendall(http_answer(b'{"ok":true,"late":true}'))
            return
        sock.sendall(http_answer(b'{"ok":true}'))
    liar = Liar(talk)
    try:
        client = JsonClient(liar.url, timeout_s=0.3)
        with pytest.raises(PeerUnreachable):
            client.get("/health")
        time.sleep(0.5)
        assert client.get("/health", timeout_s=20) == {"ok": True}
    finally:
        liar.close()


# --- names of hosts, waiting

@pytest.mark.parametrize(("text", "url"), [
    ("box", "http://box:8765"), (" box ", "http://box:8765"), ("box.lan.", "http://box.lan.:8765"),
    ("10.0.0.2", "http://10.0.0.2:8765"), ("name:80", "http://name:80"),
    ("http://box", "http://box:8765"), ("HTTPS://box/", "https://box:8765"),
    ("https://box:8443/", "https://box:8443"), ("::1", "http://[::1]:8765"),
    ("[::1]", "http://[::1]:8765"), ("[::1]:80", "http://[::1]:80"),
    ("http://[fd00::5]:1/", "http://[fd00::5]:1"), ("fe80::1%eth0", "http://[fe80::1%eth0]:8765"),
    ("my_nas", "http://my_nas:8765"),
])
def test_hosts_as_people_name_them(text, url):
    assert parse_host(text, 8765) == url
    JsonClient(url)


@pytest.mark.parametrize("text", [
    "", " ", "a b", "user@box", "user:pass@box", "http://user:pass@box", "ftp://box", "file:///x",
    "http://", "http:///x", "box/path", "http://box/path", "http://box//", "http://box?x", "box#x",
    "box:", "box:0", "box:65536", "box:123456", "box:x", "box:-1", ":80", "[::1", "::1]", "[box]",
    "[::1]x", "1.2.3", "1.2.3.4.5", "256.1.1.1", "-box", "box\\x", "b\nox", "fe80::1%", "bö",
    "fe80::1%a/b", "a" * 300, "/some/folder",
])
def test_hosts_that_cannot_be_meant(text):
    with pytest.raises(UsageError):
        parse_host(text, 8765)


def test_clients_need_a_whole_url():
    for url in ("box", "http://user@box:1/x", "ftp://box"):
        with pytest.raises(UsageError):
            JsonClient(url)


def test_backoff_grows_to_its_top_with_jitter():
    backoff = Backoff(1.0, 60.0, random.Random(7))
    waits = [backoff.next() for _ in range(200)]
    for number, wait_s in enumerate(waits):
        full = min(60.0, 2.0 ** number)
        assert full / 2 <= wait_s <= full
    assert len(set(waits)) == 200
    backoff.reset()
    assert backoff.next() <= 1.0
    for _ in range(20):
        assert 90.0 <= backoff.next(90.0) <= 105.0
    assert Backoff(1.0, 60.0).next(0.0) > 0


def test_what_is_sent(client):
    with answering(http_answer(json.dumps({"ok": True}).encode())) as liar:
        JsonClient(liar.url, timeout_s=20).post("/x", {"a": 1}, gzip=True)
        head = liar.requests[0].decode().lower()
    assert f"host: {liar.url[7:]}" in head
    assert "content-type: application/json" in head
    assert "content-encoding: gzip" in head
    assert "transfer-encoding" not in head
