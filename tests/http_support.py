"""A small server to attack, and raw sockets to do it with."""

from __future__ import annotations

import json
import socket
import threading
import time

from medialib.http_gate import Gate
from medialib.http_json import Reply, Router, StreamReply
from medialib.http_server import JsonServer
from tests import support

HEALTH_S = 1.0  # the best of several calls, whatever else the machine does
AT_ONCE_S = 8.0  # below every deadline of the server: nothing was waited for


class Victim:
    """A JsonServer with a few handlers that remember what reached them."""

    def __init__(self, gate=None, **options):
        self.calls = []
        self.hold = threading.Event()
        self.closed_streams = []
        router = Router()
        router.add("GET", "/health", lambda request: {"ok": True}, summary="alive?")
        router.add("POST", "/echo", self._echo, summary="what came", body=True)
        router.add("GET", "/crash", lambda request: 1 // 0)
        router.add("GET", "/nan", lambda request: {"ok": True, "value": float("nan")})
        router.add("GET", "/headers", lambda request: Reply(
            200, b"x", "text/plain", {"X-Name": "a\r\nSet-Cookie: b=c\nd"}))
        router.add("GET", "/large", lambda request: {"ok": True, "text": "x" * 60_000_000})
        router.add("GET", "/page", lambda request: Reply(200, "<p>" * 1000, "text/html"))
        router.add("GET", "/hold", self._wait)
        router.add("GET", "/events", lambda request: StreamReply(
            self._events(), "text/event-stream"))
        router.add("GET", "/export", lambda request: StreamReply(
            (b"line\n" * 100 for _ in range(100)), "text/csv"))
        router.add("GET", "/endless", lambda request: StreamReply(
            self._endless(), "text/csv"))
        router.add("GET", "/half", lambda request: StreamReply(self._half(), "text/csv"))
        router.add("GET", "/query", lambda request: {
            "ok": True, "query": request.query, "peer": request.peer_text,
            "loopback": request.is_loopback})
        self.server = JsonServer("127.0.0.1", 0, router, gate or Gate(), **options)
        self.port = self.server.port
        self.server.start()

    def _echo(self, request):
        self.calls.append(request.json)
        return {"ok": True, "keys": sorted(request.json), "json": request.json.get("back")}

    def _wait(self, request):
        self.hold.wait(10)
        return {"ok": True}

    def _events(self):
        try:
            yield b"data: hello\n\n"
            while True:
                time.sleep(0.05)
                yield b""
        finally:
            self.closed_streams.append(time.monotonic())

    def _endless(self):
        try:
            while True:
                yield b"line\n" * 10_000
        finally:
            self.closed_streams.append(time.monotonic())

    def _half(self):
        yield b"first"
        raise RuntimeError("the disk is gone")

    def connect(self, timeout_s: float = 8.0):
        return socket.create_connection(("127.0.0.1", self.port), timeout_s)

    def ask(self, data: bytes, timeout_s: float = 8.0) -> bytes:
        """Send, close our half, return all that comes back."""
        with self.connect(timeout_s) as sock:
            sock.sendall(data)
            return read_all(sock)

    def get(self, path: str, *lines: str) -> tuple:
        return split_answer(self.ask(self.head(f"GET {path}", *lines, "Connection: close")))

    def post(self, path: str, body: bytes, *lines: str) -> tuple:
        if not any(line.lower().startswith("content-type") for line in lines):
            lines = (*lines, "Content-Type: application/json")
        head = self.head(f"POST {path}", *lines, f"Content-Length: {len(body)}",
                         "Connection: close")
        return split_answer(self.ask(head + body))

    def head(self, first: str, *lines: str) -> bytes:
        """A head with a Host, unless one is among the lines."""
        if not any(line.lower().startswith("host") for line in lines):
            lines = (f"Host: 127.0.0.1:{self.port}", *lines)
        return "\r\n".join([f"{first} HTTP/1.1", *lines, "", ""]).encode("latin-1")

    def assert_alive(self, within_s: float = HEALTH_S) -> None:
        """/health answers on a new connection, quickly, and each time at once."""
        support.assert_prompt(self._assert_healthy, within_s, AT_ONCE_S)

    def _assert_healthy(self) -> None:
        status, _, body = self.get("/health")
        assert (status, json.loads(body)) == (200, {"ok": True})

    def stop(self):
        self.hold.set()
        self.server.stop()


def read_all(sock) -> bytes:
    data = b""
    while True:
        try:
            piece = sock.recv(1 << 16)
        except ConnectionError:
            return data
        if not piece:
            return data
        data += piece


def read_until(sock, mark: bytes) -> bytes:
    """All that came until `mark` was in it."""
    data = b""
    while mark not in data:
        piece = sock.recv(1 << 16)
        assert piece, f"closed after {data[-200:]!r}"
        data += piece
    return data


def split_answer(data: bytes) -> tuple:
    """(status, headers with lower-case names, body) of one whole answer."""
    head, mark, body = data.partition(b"\r\n\r\n")
    assert mark, f"no whole head in {data[:200]!r}"
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(": ")
        headers[name.lower()] = value
    return int(first.split(" ")[1]), headers, body


def unchunk(body: bytes) -> tuple:
    """(data, did the end mark come?)"""
    data = b""
    while True:
        size, mark, rest = body.partition(b"\r\n")
        if not mark:
            return data, False
        count = int(size, 16)
        if count == 0:
            return data, True
        data += rest[:count]
        body = rest[count + 2:]
