"""What handlers of requests see: Request, Reply, StreamReply, HttpError, Router; heads.

The grammar of a head is narrower than the standard allows: where two programs could read one head
in two ways, it is refused.
"""

from __future__ import annotations

import re

from .base import MedialibError, UsageError, log
from .http_body import BodyError
from .late import urllib

HTTP_MAX_LINE = 8 << 10
HTTP_MAX_HEAD = 32 << 10
HTTP_MAX_HEADERS = 64
HTTP_MAX_QUERY_FIELDS = 32

# Visible ASCII only in the target; no control characters anywhere; nothing before the colon.
REQUEST_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}) ([!-~]+) HTTP/([0-9])\.([0-9])")
HEADER_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*")
# The line break before these characters would continue a line, or hide one.
BAD_HEAD_BYTES = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|(?<!\r)\n|\n[ \t]")
# Two of these that differ mean different things to different readers.
SINGLE_HEADERS = frozenset((
    "host", "content-length", "content-type", "content-encoding", "transfer-encoding", "origin",
    "expect", "sec-fetch-site"))
LENGTH_TEXT = re.compile(r"[0-9]{1,15}")
HEADER_BREAKS = str.maketrans({"\r": " ", "\n": " ", "\0": " "})


class HttpError(MedialibError):
    """Ends a request with this status and {"ok": false, "error", "detail", **extra} as its body."""

    def __init__(self, status: int, error: str, detail: str = "", headers: dict | None = None,
                 extra: dict | None = None):
        super().__init__(f"{error}: {detail}" if detail else error)
        self.status = status
        self.error = error
        self.detail = detail
        self.headers = headers or {}
        self.extra = extra or {}

    def reply(self) -> Reply:
        body = {"ok": False, "error": self.error, "detail": self.detail, **self.extra}
        return Reply(self.status, body, headers=self.headers)


class Reply:
    """An answer that is ready: a body of bytes, str, or something to write as JSON."""

    __slots__ = ("status", "body", "content_type", "headers")

    def __init__(self, status: int = 200, body=b"", content_type: str | None = None,
                 headers: dict | None = None):
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers or {}


class StreamReply:
    """An answer sent as it is made: `pieces` is an iterable of bytes.

    An empty piece sends nothing, but lets the server look whether anybody still listens: what waits
    for events yields one each second. `pieces.close()` is called at the end, however it comes.
    """

    __slots__ = ("pieces", "content_type", "headers", "status")

    def __init__(self, pieces, content_type: str = "application/octet-stream",
                 headers: dict | None = None, status: int = 200):
        self.pieces = pieces
        self.content_type = content_type
        self.headers = headers or {}
        self.status = status

    def close(self) -> None:
        close = getattr(self.pieces, "close", None)
        if close is not None:
            close()


class Request:
    """One request. `headers` has lower-case names; `query` the last value of each name;
    `json` the body's object ({} when there was none); `peer` an ipaddress object.
    """

    __slots__ = ("method", "path", "query", "headers", "json", "peer", "version", "body_size")

    def __init__(self, method: str, path: str, query: dict, headers: dict, version: tuple,
                 peer=None):
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.version = version
        self.peer = peer
        self.json = {}
        self.body_size = 0

    @property
    def peer_text(self) -> str:
        return str(self.peer)

    @property
    def is_loopback(self) -> bool:
        return self.peer.is_loopback

    def header(self, name: str, default: str = "") -> str:
        return self.headers.get(name.lower(), default)


class Router:
    """Paths to handlers. A handler takes the Request and returns a dict or list (JSON, 200), a
    Reply or a StreamReply, or raises; its attribute `open_body`, if it has one, makes `json` of the
    body's bytes in place of parse_json_object. `routes` lists what was added, for the API's
    description.
    """

    def __init__(self):
        self.routes = []
        self._paths = {}

    def add(self, method: str, path: str, handler, *, summary: str = "",
            body: bool = False) -> None:
        """`body` tells the API's description that the call takes a JSON body."""
        self.routes.append({"method": method, "path": path, "summary": summary, "body": body})
        self._paths.setdefault(path, {})[method] = handler

    def find(self, method: str, path: str):
        """The handler, or HttpError 404 or 405. HEAD is answered by what answers GET."""
        methods = self._paths.get(path)
        if methods is None:
            raise HttpError(404, "not found", f"there is no {path[:200]} here")
        handler = methods.get("GET" if method == "HEAD" else method)
        if handler is None:
            allowed = sorted({*methods, *(["HEAD"] if "GET" in methods else [])})
            raise HttpError(405, "method not allowed", f"{path[:200]} takes {' or '.join(allowed)}",
                            {"Allow": ", ".join(allowed)})
        return handler

    def answer(self, handler, request: Request) -> Reply | StreamReply:
        """Call the handler; whatever it raises becomes an answer: an edge of the program."""
        try:
            result = handler(request)
        except Exception as error:
            return failure_reply(error, request)
        return result if isinstance(result, (Reply, StreamReply)) else Reply(body=result)


def failure_reply(error: Exception, request: Request) -> Reply:
    """Ours explain themselves; a failure of the disk or database may pass; the rest is a bug."""
    if isinstance(error, HttpError):
        return error.reply()
    if isinstance(error, BodyError):
        return HttpError(error.status, error.error, error.detail).reply()
    if isinstance(error, UsageError):
        return HttpError(400, "bad request", str(error)).reply()
    if isinstance(error, MedialibError):
        log.warning("%s %s: %s", request.method, request.path, error)
        return HttpError(503, "cannot do this now", str(error), {"Retry-After": "5"}).reply()
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    return HttpError(500, "internal error", "the log of this program says more").reply()


def parse_head(head: bytes) -> Request:
    """The request whose head this is (without the empty line at its end), or HttpError."""
    if BAD_HEAD_BYTES.search(head):
        raise HttpError(400, "malformed request", "stray control character in the head")
    line, *lines = head.decode("latin-1").split("\r\n")
    if len(line) > HTTP_MAX_LINE:
        raise HttpError(414, "address too long", f"at most {HTTP_MAX_LINE} bytes")
    if len(lines) > HTTP_MAX_HEADERS:
        raise HttpError(431, "too many headers", f"at most {HTTP_MAX_HEADERS}")
    match = REQUEST_LINE.fullmatch(line)
    if match is None:
        raise HttpError(400, "malformed request", "the first line is not METHOD PATH HTTP/1.1")
    method, target, major, minor = match.groups()
    if major != "1":
        raise HttpError(505, "HTTP version not supported", "this is HTTP/1.1")
    headers = parse_headers(lines)
    version = (1, min(1, int(minor)))
    if "host" not in headers and version == (1, 1):
        raise HttpError(400, "malformed request", "the Host header is missing")
    if not target.startswith("/"):
        raise HttpError(400, "malformed request", "the address must be a path")
    path, _, query = target.partition("?")
    return Request(method, path, parse_query(query) if query else {}, headers, version)


def parse_headers(lines: list) -> dict:
    headers = {}
    for line in lines:
        match = HEADER_LINE.fullmatch(line)
        if match is None:
            raise HttpError(400, "malformed request", "a header is not Name: value")
        name, value = match.groups()
        name = name.lower()
        if name in headers:
            if name in SINGLE_HEADERS:
                raise HttpError(400, "malformed request", f"two {name} headers")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


def parse_query(query: str) -> dict:
    try:
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, errors="strict",
                                       max_num_fields=HTTP_MAX_QUERY_FIELDS)
    except ValueError as error:
        raise HttpError(400, "malformed request", f"the query: {error}") from error
    return dict(pairs)


def body_length(request: Request, limit: int) -> int:
    """How many bytes of body follow; HttpError for a body we do not take."""
    headers = request.headers
    coding = headers.get("transfer-encoding")
    if coding is not None:
        status = 400 if "content-length" in headers else 411
        raise HttpError(status if coding.lower() == "chunked" else 501, "length required",
                        "send the body with Content-Length, without Transfer-Encoding")
    text = headers.get("content-length", "0")
    if LENGTH_TEXT.fullmatch(text) is None:
        raise HttpError(400, "malformed request", "Content-Length is not a number")
    length = int(text)
    if length and request.method != "POST":
        raise HttpError(400, "unexpected body", f"{request.method} takes no body")
    if length > limit:
        raise HttpError(413, "body too large", f"at most {limit} bytes")
    if length:
        _check_body_type(headers)
    return length


def _check_body_type(headers: dict) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HttpError(415, "unsupported media type", "the body must be application/json")
    if headers.get("content-encoding", "identity").lower() not in ("identity", "gzip", "x-gzip"):
        raise HttpError(415, "unsupported encoding", "the body may be plain or gzip",
                        {"Accept-Encoding": "gzip"})


def wants_gzip(headers: dict) -> bool:
    """Does the asker take gzip? "gzip;q=0" is a no."""
    accepted = headers.get("accept-encoding", "").lower()
    if "gzip" not in accepted:
        return False
    for part in accepted.split(","):
        coding, _, weight = part.strip().partition(";")
        if coding.strip() == "gzip":
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def header_text(value) -> str:
    """A header's value in which no line break starts another header."""
    return str(value).translate(HEADER_BREAKS).encode("latin-1", "replace").decode("latin-1")
