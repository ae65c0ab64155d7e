"""Asking another medialib: JSON over http.client, with one deadline for the whole call.

No proxies and no redirects: paths of private files go to the host and to nobody else. What answers
may be anything: a captive portal, another program, something that never ends.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time

from .base import VERSION, MedialibError, UsageError
from .http_body import (
    BodyError,
    JsonWeight,
    gunzip_pieces,
    gunzip_whole,
    gzip_packed,
    parse_json_bounded,
)
from .http_deadline import DeadlineConnection
from .http_gate import format_address, tls_client_context
from .late import email, http, ipaddress, random, socket

ANSWER_BYTES = 32 << 20  # as sent, and after unpacking
ANSWER_MEMORY_BYTES = 96 << 20  # in memory; a page of 5000 whole records weighs 72 MiB
ANSWER_STEP = 1 << 16
RETRY_AFTER_TOP_S = 3600.0
PASSING_STATUSES = (408, 425, 429, 502, 503, 504)  # without our JSON: something before the host
PEER_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?")


class PeerError(MedialibError):
    """A call without a good answer. `retry_after_s`: the wait the peer asked for, or None."""

    retry_after_s = None


class PeerUnreachable(PeerError):
    """No answer, not in time, or cut short: whether the call was carried out is not known."""


class PeerRefused(PeerError):
    """A medialib answered with an error of its own: `status`, `error`, `detail`, whole `answer`."""

    def __init__(self, status: int, error: str, detail: str = "", answer: dict | None = None):
        super().__init__(f"{error} ({status})" + (f": {detail}" if detail else ""))
        self.status = status
        self.error = error
        self.detail = detail
        self.answer = answer or {}


class NotMedialib(PeerError):
    """Something else answers there. `status` and, if it was a JSON object, `answer` tell more."""

    def __init__(self, url: str, status: int, why: str, answer: dict | None = None):
        super().__init__(f"{url} answers, but is not a medialib host: {why}")
        self.status = status
        self.answer = answer


def parse_host(text: str, default_port: int) -> str:
    """The URL (without a slash at its end) that is meant by an address, a name, name:port or a URL.

    Raises UsageError for what cannot be meant.
    """
    text = text.strip()
    scheme, mark, rest = text.partition("://")
    if not mark:
        scheme, rest = "http", text
    scheme = scheme.lower()
    if scheme not in ("http", "https"):
        raise UsageError(f"{text!r}: only http:// and https:// are known")
    if rest.endswith("/") and mark:
        rest = rest[:-1]
    if any(character in rest for character in "/?#@\\"):
        raise UsageError(f"{text!r}: name the host only, as in box, 10.0.0.2:8765 or https://box")
    name, port = _split_host(rest, text)
    number = int(port) if port else default_port
    if not 1 <= number <= 65535:
        raise UsageError(f"{text!r}: {number} is not a port number (1 to 65535)")
    return f"{scheme}://{format_address(name, number)}"


def _split_host(rest: str, text: str) -> tuple:
    """(name or address, port digits or ""), checked."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.IPv6Address(rest.partition("%")[0])) + _zone(rest), ""
    match = re.fullmatch(r"(?:\[([^\]]*)\]|([^:\[\]]*))(?::([0-9]{1,5}))?", rest)
    if match is None:
        raise UsageError(f"{text!r} is not an address, a name or name:port")
    bracketed, name, port = match.groups()
    try:
        if bracketed is not None:
            name = str(ipaddress.IPv6Address(bracketed.partition("%")[0])) + _zone(bracketed)
        elif re.fullmatch(r"[0-9.]+", name):
            name = str(ipaddress.IPv4Address(name))
        elif PEER_NAME.fullmatch(name) is None or len(name) > 253:
            raise ValueError("not a name")
    except ValueError as error:
        raise UsageError(f"{text!r} is not an address, a name or name:port") from error
    return name, port or ""


def _zone(address: str) -> str:
    """The "%eth0" of a link-local address."""
    _, mark, zone = address.partition("%")
    if mark and re.fullmatch(r"[0-9A-Za-z_.-]{1,32}", zone) is None:
        raise ValueError("not a zone")
    return mark + zone


class Backoff:
    """How long to wait after the n-th failure in a row: doubling, between first_s and top_s, each
    shortened by up to a half at random, so that many agents do not come back at one moment."""

    def __init__(self, first_s: float, top_s: float, rng=None):
        self.first_s = first_s
        self.top_s = top_s
        self._random = (rng or random).random
        self._failures = 0

    def next(self, retry_after_s: float | None = None) -> float:
        """Seconds to wait now; never less than the peer asked for."""
        full = min(self.top_s, self.first_s * 2 ** min(self._failures, 60))
        self._failures += 1
        wait_s = full * (0.5 + self._random() / 2)
        if retry_after_s is not None and retry_after_s > wait_s:
            return retry_after_s + wait_s / 4
        return wait_s

    def reset(self) -> None:
        self._failures = 0


class PendingCall:
    """A call that was sent. Either `finish` or `abandon` it; its client takes no other before."""

    def __init__(self, client: JsonClient, request: tuple, need_ok: bool):
        self.client = client
        self.request = request
        self.need_ok = need_ok
        self.may_retry = False
        self.response = None

    def finish(self) -> dict:
        """The answer, or the PeerError that says what is wrong with it."""
        return self.client._finish(self)

    def abandon(self) -> None:
        """Nobody wants the answer; whether the call is carried out is not known."""
        self.client._abandon()


class JsonClient:
    """Calls to one peer over one kept connection. Threads that share it take turns.

    `timeout_s` bounds a whole call: connecting, sending, waiting, reading.
    """

    def __init__(self, url: str, *, timeout_s: float = 30.0, cafile: str | None = None,
                 answer_bytes: int = ANSWER_BYTES):
        scheme, host, port = _url_parts(url)
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self.answer_bytes = answer_bytes
        self._host_header = format_address(host.partition("%")[0], port)
        tls = tls_client_context(cafile) if scheme == "https" else None
        self._connection = DeadlineConnection(host, port, tls)
        self._lock = threading.Lock()

    def get(self, path: str, *, timeout_s: float | None = None, need_ok: bool = True) -> dict:
        """The answer to GET. `need_ok` False takes any JSON object, as older hosts send them."""
        return self._begin("GET", path, None, {}, timeout_s, need_ok).finish()

    def post(self, path: str, body: dict | bytes = b"", *, gzip: bool = False,
             timeout_s: float | None = None, need_ok: bool = True) -> dict:
        """The answer to POST; a dict is written as JSON, bytes are sent as the JSON they are."""
        return self.begin_post(path, body, gzip=gzip, timeout_s=timeout_s,
                               need_ok=need_ok).finish()

    def begin_post(self, path: str, body: dict | bytes = b"", *, gzip: bool = False,
                   timeout_s: float | None = None, need_ok: bool = True) -> PendingCall:
        """The same in two steps: the peer is at work between sending and `finish`."""
        data = body if isinstance(body, (bytes, bytearray)) else _body_bytes(body)
        headers = {"Content-Type": "application/json"}
        if gzip and not self._stays_here():
            data = gzip_packed(data)
            headers["Content-Encoding"] = "gzip"
        return self._begin("POST", path, data, headers, timeout_s, need_ok)

    def _stays_here(self) -> bool:
        """What does not leave this machine need not be packed; a first call does not know yet."""
        sock = self._connection.sock
        return sock is not None and sock.is_same_machine()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def is_busy(self) -> bool:
        """Whether a call is under way."""
        return self._lock.locked()

    def _begin(self, method, path, body, headers, timeout_s, need_ok) -> PendingCall:
        headers = {"Host": self._host_header, "User-Agent": f"medialib/{VERSION}",
                   "Accept": "application/json", "Accept-Encoding": "gzip", **headers}
        self._lock.acquire()
        try:
            self._connection.deadline = time.monotonic() + (
                self.timeout_s if timeout_s is None else timeout_s)
            call = PendingCall(self, (method, path, body, headers), need_ok)
            with self._failures_explained():
                self._send_first(call)
        except BaseException:
            self._lock.release()
            raise
        return call

    def _finish(self, call: PendingCall) -> dict:
        try:
            with self._failures_explained():
                response, data = self._receive(call)
        finally:
            self._lock.release()
        return self._judge(response, data, call.need_ok)

    def _abandon(self) -> None:
        self._connection.close()
        self._lock.release()

    @contextlib.contextmanager
    def _failures_explained(self):
        try:
            yield
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            self._connection.close()
            if isinstance(error, http.client.BadStatusLine) and not isinstance(error, OSError):
                raise NotMedialib(self.url, 0, "it does not speak HTTP") from error
            raise PeerUnreachable(f"{self.url}: {_failure_text(error)}") from error
        except BaseException:  # an interrupted call leaves half an answer behind
            self._connection.close()
            raise

    def _send_first(self, call: PendingCall) -> None:
        """A kept connection that turns out stale is replaced, here or when the answer is due."""
        connection = self._connection
        if connection.sock is not None and connection.sock.is_stale():
            connection.close()
        call.may_retry = connection.sock is not None
        try:
            call.response = self._send(call.request)
        except (ConnectionError, http.client.BadStatusLine) as error:
            self._send_again(call, error)

    def _send_again(self, call: PendingCall, error: Exception) -> None:
        self._connection.close()
        if not call.may_retry:
            raise error
        call.may_retry = False
        call.response = self._send(call.request)

    def _receive(self, call: PendingCall) -> tuple:
        connection = self._connection
        if call.response is None:
            try:
                call.response = connection.getresponse()
            except (ConnectionError, http.client.BadStatusLine) as error:
                self._send_again(call, error)
                call.response = call.response or connection.getresponse()
        response = call.response
        data = self._read(response)
        if response.will_close:
            connection.close()
        return response, data

    def _send(self, request: tuple):
        """None, or the answer of a peer that did not wait for the whole request."""
        connection = self._connection
        method, path, body, headers = request
        if connection.sock is None:
            connection.connect()
        connection.sock.deadline = connection.deadline
        try:
            connection.request(method, path, body=body, headers=headers)
        except (BrokenPipeError, ConnectionResetError):
            # A peer that refuses a large body may have said why before it closed.
            with contextlib.suppress(OSError, http.client.HTTPException):
                return connection.getresponse()
            raise
        return None

    def _read(self, response) -> bytes:
        data = bytearray()
        while True:
            piece = response.read(ANSWER_STEP)
            if not piece:
                break
            data += piece
            if len(data) > self.answer_bytes:
                raise OSError(f"the answer is larger than {self.answer_bytes} bytes")
        # A head that breaks off looks to http.client like one without a length.
        unmeasured = response.length is None and not response.chunked
        if response.length or (unmeasured and not data):
            raise http.client.IncompleteRead(b"", response.length)
        response.close()
        return data

    def _judge(self, response, data: bytes, need_ok: bool) -> dict:
        """The answer as a dict, or the exception that names what is wrong with it."""
        status = response.status
        retry_after_s = parse_retry_after(response.getheader("Retry-After"))
        try:
            answer = self._parsed(response, data)
            why = f"the answer ({status}) is JSON, but has no \"ok\""
        except BodyError as error:
            answer = None
            what = "too large" if error.status == 413 else "not JSON"
            why = f"the answer ({status}) is {what} ({error.detail or error.error})"
        failure = self._failure(response, answer, why, need_ok)
        if failure is None:
            return answer
        failure.retry_after_s = retry_after_s
        raise failure

    def _parsed(self, response, data):
        """The value of the answer's JSON, or BodyError; weighed before it is made."""
        packed = (response.getheader("Content-Encoding") or "").lower() in ("gzip", "x-gzip")
        weight = JsonWeight()
        for piece in gunzip_pieces(data, self.answer_bytes) if packed else [data]:
            weight.add(piece)
        if weight.memory_bytes() + packed * len(data) > ANSWER_MEMORY_BYTES:
            raise BodyError(413, "the answer is too large", "it would take too much memory")
        return parse_json_bounded(gunzip_whole(data, self.answer_bytes) if packed else data)

    def _failure(self, response, answer, why: str, need_ok: bool) -> PeerError | None:
        status = response.status
        if 300 <= status < 400:
            where = (response.getheader("Location") or "elsewhere")[:200]
            return NotMedialib(self.url, status, f"it sends us on to {where}")
        ours = isinstance(answer, dict) and isinstance(answer.get("ok"), bool)
        if ours and (status >= 400 or not answer["ok"]):
            return PeerRefused(status, str(answer.get("error") or "refused"),
                               str(answer.get("detail") or ""), answer)
        if 200 <= status < 300 and isinstance(answer, dict) and (ours or not need_ok):
            return None
        if status == 413:
            return PeerRefused(status, "body too large")
        if status in PASSING_STATUSES:
            return PeerUnreachable(f"{self.url} answers {status} {response.reason}")
        return NotMedialib(self.url, status, why, answer if isinstance(answer, dict) else None)


def _url_parts(url: str) -> tuple:
    """(scheme, host, port) of a URL as parse_host makes them."""
    match = re.fullmatch(r"(https?)://(?:\[([^\]/]+)\]|([^:/\[\]]+))(?::([0-9]{1,5}))?/?", url)
    if match is None:
        raise UsageError(f"{url!r} is not the URL of a host")
    scheme, bracketed, name, port = match.groups()
    return scheme, bracketed or name, int(port or (443 if scheme == "https" else 80))


def _body_bytes(body: dict) -> bytes:
    return json.dumps(body, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


def _failure_text(error: Exception) -> str:
    """One line for people."""
    if isinstance(error, socket.timeout):
        return "no whole answer in time"
    if isinstance(error, http.client.IncompleteRead):
        return "the answer was cut short"
    if isinstance(error, socket.gaierror):
        return f"the name is not known ({error.strerror})"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return f"the answer is not HTTP ({type(error).__name__})"


def parse_retry_after(text: str | None, now: float | None = None) -> float | None:
    """Seconds to wait, from a number of seconds or a date, at most an hour; None without one."""
    if not text:
        return None
    text = text.strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return min(float(text), RETRY_AFTER_TOP_S)
    try:
        when = email.utils.parsedate_to_datetime(text)
        wait_s = when.timestamp() - (time.time() if now is None else now)
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    return min(max(wait_s, 0.0), RETRY_AFTER_TOP_S)
