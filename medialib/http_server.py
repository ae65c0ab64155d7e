"""JSON over HTTP: one conversation per connection, with a bound on everything.

The order of the checks is the order of their cost: the peer's address before a byte is read
(http_listener), then the head's grammar and size, the gate, the route, the body's length and type,
its bytes, its JSON, and only then the handler.
"""

from __future__ import annotations

import contextlib
import time

from .base import log
from .http_answer import AnswerWriter, http_date
from .http_body import BodyError, JsonWeight, gunzip_pieces, gunzip_whole, parse_json_object
from .http_gate import tls_server_context
from .http_json import (
    BAD_HEAD_BYTES,
    HTTP_MAX_HEAD,
    HttpError,
    Reply,
    Request,
    StreamReply,
    body_length,
    parse_head,
)
from .http_listener import HTTP_CONNECTIONS, HTTP_HEAD_S, HttpListener, HttpSlot
from .http_shares import ByteBudget, MemoryShare, StreamPlaces, busy_with_large
from .late import socket, ssl

HTTP_MAX_BODY = 16 << 20  # as sent
HTTP_MAX_JSON = 16 << 20  # after unpacking
HTTP_UNWEIGHED_BYTES = 16 << 10  # what is smaller costs too little to be counted
HTTP_PARSED_BYTES = 128 << 20  # in memory, for the JSON of all requests together
HTTP_PARSED_RESERVE = 24 << 20  # of these, only for light ones
HTTP_BODIES_BYTES = 48 << 20  # in all connections together, as sent
HTTP_BODY_S = 60.0
HTTP_STALLED_S = 3.0  # a body that takes longer than this may have to go for another
HTTP_IDLE_S = 15.0
HTTP_WRITE_S = 30.0
HTTP_SLOWEST_BYTES_S = 16 << 10  # a reader slower than this for long is taken for stalled
HTTP_DRAIN_S = 10.0
HTTP_STREAMS = 16
HTTP_STREAMS_OF_ONE = 8  # for one address that is not this machine's own
HTTP_STOP_S = 2.0
HTTP_STEP = 1 << 18


class JsonServer:
    """Serves a Router behind a Gate. `port` 0 takes any free one; `.port` is the one taken.

    `address` "" is every address of both families. The socket is bound here, so that a port in use
    is a MedialibError at once; answering begins with start().
    """

    def __init__(self, address: str, port: int, router, gate, *, max_body: int = HTTP_MAX_BODY,
                 max_json: int = HTTP_MAX_JSON, certfile: str | None = None,
                 keyfile: str | None = None, name: str = "medialib/1.0",
                 page_headers: dict | None = None, connections: int = HTTP_CONNECTIONS):
        self.router = router
        self.gate = gate
        self.max_body = max_body
        self.max_json = max_json
        self.writer = AnswerWriter(name, page_headers)
        self.tls = tls_server_context(certfile, keyfile) if certfile else None
        self.streams = StreamPlaces(HTTP_STREAMS, HTTP_STREAMS_OF_ONE)
        self.parsed = MemoryShare(HTTP_PARSED_BYTES, HTTP_PARSED_RESERVE)
        self.bodies = ByteBudget(HTTP_BODIES_BYTES)
        self.listener = HttpListener(
            address, port, self.allow_peer, self._serve, name=name.partition("/")[0],
            foreign_answer=self._canned(HttpError(
                403, "address not allowed", "this address is outside the allowed networks: "
                "start with --allow CIDR to let it in")),
            busy_answer=self._canned(HttpError(
                503, "too many connections", "try again soon", {"Retry-After": "2"})),
            connections=connections)
        self.port = self.listener.port

    def start(self) -> None:
        self.listener.start()

    def stop(self) -> None:
        """Stop accepting, let answers being made go out, return within about two seconds."""
        self.listener.stop(HTTP_STOP_S)

    @property
    def stopping(self) -> bool:
        return self.listener.stopping

    def allow_peer(self, address) -> bool:
        return self.gate.allow_peer(address)

    def _serve(self, slot: HttpSlot) -> None:
        """One connection, from its thread; a peer that goes away is nobody's error."""
        try:
            HttpConversation(slot, self).run()
        except (OSError, ValueError) as error:
            log.debug("connection of %s: %s", slot.peer, error)
        except Exception:
            log.exception("connection of %s failed", slot.peer)

    def _canned(self, error: HttpError) -> bytes:
        """A whole answer for a connection nobody serves; none inside of TLS."""
        if self.tls is not None:
            return b""
        return b"".join(self.writer.whole(error.reply(), {}, {"Connection": "close"}))


class HttpConversation:
    """The requests of one connection, one after the other.

    Reading is ours: one buffer, no time-out of its own; the listener ends what takes too long.
    """

    def __init__(self, slot: HttpSlot, server: JsonServer):
        self.slot = slot
        self.sock = slot.sock
        self.server = server
        self.close_connection = False
        self.pending = b""  # read, but not yet used
        self.held = 0  # bytes of the budget of bodies
        self.unread = False  # does the peer perhaps still send what we shall not use?

    def run(self) -> None:
        """Until either side has enough; the listener closes the socket."""
        self.set_up()
        while not self.close_connection:
            self.answer_next()

    def set_up(self) -> None:
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.server.tls is not None:
            self.sock = self.server.tls.wrap_socket(
                self.sock, server_side=True, do_handshake_on_connect=False)
            self.slot.replace_socket(self.sock)
            self.sock.do_handshake()

    def answer_next(self) -> None:
        self.close_connection = True
        head = self.read_head()
        if head is None:
            return
        request = None
        try:
            request = self.check_head(head)
            handler = self.server.router.find(request.method, request.path)
            reply = self.answer_request(handler, request)
        except HttpError as error:
            reply = error.reply()
        except BodyError as error:
            reply = HttpError(error.status, error.error, error.detail).reply()
        finally:
            self.server.bodies.give(self.held)
            self.held = 0
        self.close_connection = (
            self.unread or request is None or request.version != (1, 1) or self.server.stopping
            or "close" in request.headers.get("connection", "").lower())
        self.send_reply(request, reply)
        if self.unread:
            self.drain()

    # --- reading

    def receive(self) -> bytes:
        data = self.sock.recv(HTTP_STEP)
        if self.slot.expired:
            raise HttpError(408, "too slow", "the request did not arrive in time")
        return data

    def read_head(self) -> bytes | None:
        """The next request's head, or None when the peer is done. Errors are answered here."""
        self.unread = True
        if not self.pending:
            self.slot.await_peer("idle", HTTP_IDLE_S)
            self.pending = self.sock.recv(HTTP_STEP)
            if not self.pending:
                return None
        try:
            return self._rest_of_head()
        except HttpError as error:
            self.send_reply(None, error.reply())
            self.drain()
            return None

    def _rest_of_head(self) -> bytes | None:
        data = self.pending.lstrip(b"\r\n")  # some send an empty line after a body
        searched = 0
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self.slot.await_peer("head", HTTP_HEAD_S)
        while end < 0:
            if len(data) > HTTP_MAX_HEAD:
                raise HttpError(431, "head too large", f"at most {HTTP_MAX_HEAD} bytes")
            if BAD_HEAD_BYTES.search(data.rstrip(b"\r"), searched):
                raise HttpError(400, "malformed request", "stray control character in the head")
            more = self.receive()
            if not more:
                return None
            searched = max(0, len(data) - 3)
            data = (data + more).lstrip(b"\r\n")
            end = data.find(b"\r\n\r\n", searched)
        if end > HTTP_MAX_HEAD:
            raise HttpError(431, "head too large", f"at most {HTTP_MAX_HEAD} bytes")
        self.pending = data[end + 4:]
        return data[:end]

    def check_head(self, head: bytes) -> Request:
        request = parse_head(head)
        request.peer = self.slot.peer
        refused = self.server.gate.refusal(request.headers, tls=self.server.tls is not None)
        if refused:
            raise HttpError(*refused)
        return request

    def answer_request(self, handler, request: Request) -> Reply | StreamReply:
        length = body_length(request, self.server.max_body)
        body = self.read_body(request, length) if length else b""
        self.unread = False
        request.body_size = length
        self.slot.begin_work()
        packed = "gzip" in request.headers.get("content-encoding", "").lower()
        if not body:
            return self.server.router.answer(handler, request)
        with self.server.parsed.holding(self.weigh(body, packed)):
            if packed:
                body = gunzip_whole(body, self.server.max_json)
            request.json = getattr(handler, "open_body", parse_json_object)(body)
            del body
            return self.server.router.answer(handler, request)

    def weigh(self, body: bytes, packed: bool) -> int:
        """About how much memory this body will take, found without unpacking it into memory."""
        if not packed and len(body) <= HTTP_UNWEIGHED_BYTES:
            return 0
        limit = self.server.max_json
        if not packed and len(body) > limit:
            raise HttpError(413, "body too large", f"at most {limit} bytes")
        weight = JsonWeight()
        for piece in gunzip_pieces(body, limit) if packed else [body]:
            weight.add(piece)
        return weight.memory_bytes()

    def read_body(self, request: Request, length: int) -> bytes | bytearray:
        if request.headers.get("expect"):
            self._invite_body(request)
        have = self.pending[:length]
        self.pending = self.pending[length:]
        if len(have) == length:
            return have
        self.slot.await_peer("body", HTTP_BODY_S)
        body = bytearray(have)  # not a list: somebody may send 30 million pieces of a byte each
        while len(body) < length:
            piece = self.sock.recv(min(length - len(body), HTTP_STEP))
            if self.slot.expired:
                raise HttpError(408, "too slow", "the body did not arrive in time")
            if not piece:
                raise ConnectionResetError("the body was cut short")
            self.hold(len(piece))
            body += piece
        return body

    def hold(self, count: int) -> None:
        """Count these bytes; where all bodies together are too large, the stalled ones go first."""
        while not self.server.bodies.take(count):
            if not self.server.listener.cut_stalled("body", HTTP_STALLED_S):
                raise busy_with_large()
            time.sleep(0.05)
        self.held += count

    def _invite_body(self, request: Request) -> None:
        if request.headers["expect"].lower() != "100-continue":
            raise HttpError(417, "expectation failed", "only 100-continue is known")
        if request.version == (1, 1):
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    def drain(self) -> None:
        """Read on for a while, so that a sender sees our answer and not a broken pipe."""
        with contextlib.suppress(OSError):
            self.slot.await_peer("drain", HTTP_DRAIN_S)
            if self.server.tls is None:
                self.sock.shutdown(socket.SHUT_WR)
            while self.sock.recv(HTTP_STEP) and not self.slot.expired:
                pass

    # --- writing

    def send_reply(self, request: Request | None, reply: Reply | StreamReply) -> None:
        if isinstance(reply, StreamReply):
            try:
                self.send_stream(request, reply)
            finally:
                reply.close()
            return
        head, body = self.server.writer.whole(
            reply, request.headers if request else {}, self.common_headers(),
            head_only=request is not None and request.method == "HEAD")
        reply.body = b""  # a slow reader holds the bytes only, not the objects they were made of
        self.write(head + body if len(body) < HTTP_STEP else head)
        if len(body) >= HTTP_STEP:
            self.write(body)

    def common_headers(self) -> dict:
        more = {"Date": http_date()}
        if self.close_connection:
            more["Connection"] = "close"
        return more

    def write(self, data: bytes) -> None:
        """Send all of it; the listener cuts off a peer that reads too slowly."""
        self.slot.await_peer("write", HTTP_WRITE_S + len(data) / HTTP_SLOWEST_BYTES_S)
        self.sock.sendall(data)

    def send_stream(self, request: Request, reply: StreamReply) -> None:
        if not self.server.streams.take(self.slot):
            error = HttpError(503, "too many streams", "close another page or export first",
                              {"Retry-After": "10"})
            self.send_reply(request, error.reply())
            return
        try:
            chunked = request.version == (1, 1)
            self.close_connection = self.close_connection or not chunked
            more = self.common_headers()
            if chunked:
                more["Transfer-Encoding"] = "chunked"
            self.write(self.server.writer.head(reply, reply.content_type, more))
            if request.method != "HEAD":
                self.send_pieces(reply.pieces, chunked)
        finally:
            self.server.streams.give(self.slot)

    def send_pieces(self, pieces, chunked: bool) -> None:
        """A stream that fails half-way is left without its end mark: nobody takes it for whole."""
        self.slot.begin_work()
        close_after = self.close_connection
        self.close_connection = True
        try:
            for piece in pieces:
                if self.server.stopping or (not piece and self.peer_is_gone()):
                    return
                if piece:
                    self.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                    self.slot.begin_work()
        except OSError:
            raise
        except Exception:
            log.exception("a streamed answer failed")
            return
        if chunked:
            self.write(b"0\r\n\r\n")
        self.close_connection = close_after

    def peer_is_gone(self) -> bool:
        """Did the peer close? What it may have sent meanwhile is kept."""
        self.sock.settimeout(0)
        try:
            data = self.sock.recv(1024)
            self.pending += data
            return not data or len(self.pending) > HTTP_MAX_HEAD
        except BlockingIOError:
            return False
        except OSError as error:  # over TLS "nothing yet" is an error of its own
            return self.server.tls is None or not isinstance(error, ssl.SSLWantReadError)
        finally:
            self.sock.settimeout(None)
