"""A connection of http.client on which one deadline bounds everything a call does.

Time-outs of sockets are per operation: a peer that sends a byte now and then would hold its caller
for ever.
"""

from __future__ import annotations

import io
import select
import time

from .late import http, socket

DEADLINE_STEP = 1 << 16


class DeadlineSocket:
    """A socket for http.client on which all operations of one call share one deadline."""

    def __init__(self, sock):
        self.sock = sock
        self.deadline = 0.0
        self._readers = 0
        self._closed = False

    def arm(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise socket.timeout("no whole answer in time")
        self.sock.settimeout(left)

    def sendall(self, data):
        view = memoryview(data)
        while view:
            self.arm()
            view = view[self.sock.send(view[:DEADLINE_STEP]):]

    def makefile(self, *_args, **_options):
        """What http.client reads one answer from."""
        self._readers += 1
        return io.BufferedReader(DeadlineReader(self), DEADLINE_STEP)

    def drop_reader(self) -> None:
        self._readers -= 1
        if self._closed and not self._readers:
            self.sock.close()

    def close(self):
        """http.client closes before it reads an answer that ends with the connection."""
        self._closed = True
        if not self._readers:
            self.sock.close()

    def is_stale(self) -> bool:
        """Did the peer close, or say something unasked, since the last answer?"""
        try:
            return bool(select.select([self.sock], [], [], 0)[0])
        except (OSError, ValueError):
            return not hasattr(select, "poll") or self._poll_says_stale()

    def is_same_machine(self) -> bool:
        """Whether the peer has the very address this side has."""
        try:
            return self.sock.getpeername()[0] == self.sock.getsockname()[0]
        except (OSError, IndexError):
            return False

    def _poll_says_stale(self) -> bool:
        """select() takes no descriptor above 1023."""
        try:
            poll = select.poll()
            poll.register(self.sock, select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return True


class DeadlineReader(io.RawIOBase):
    """One answer's view of the DeadlineSocket."""

    def __init__(self, owner: DeadlineSocket):
        super().__init__()
        self.owner = owner

    def readable(self):
        return True

    def readinto(self, buffer):
        self.owner.arm()
        return self.owner.sock.recv_into(buffer)

    def close(self):
        if not self.closed:
            self.owner.drop_reader()
        super().close()


class DeadlineConnection:
    """http.client's connection on a DeadlineSocket, with TLS where there is a context."""

    def __init__(self, host: str, port: int, tls):
        self.host = host
        self.port = port
        self.tls = tls
        self.deadline = 0.0
        self._line = http.client.HTTPConnection(host, port)
        self._line.auto_open = 0
        self.request = self._line.request
        self.getresponse = self._line.getresponse
        self.close = self._line.close

    @property
    def sock(self) -> DeadlineSocket | None:
        return self._line.sock

    def connect(self) -> None:
        """Try each address of the name within the deadline."""
        failure = OSError(f"no address for {self.host}")
        for family, kind, protocol, _, address in socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(max(0.001, self.deadline - time.monotonic()))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.tls is not None:
                    sock = self._shake_hands(sock)
            except OSError as error:
                sock.close()
                failure = error
                continue
            self._line.sock = DeadlineSocket(sock)
            self._line.sock.deadline = self.deadline
            return
        raise failure

    def _shake_hands(self, sock):
        """The time-out of a handshake is one for all of its messages."""
        wrapped = self.tls.wrap_socket(
            sock, server_hostname=self.host.partition("%")[0], do_handshake_on_connect=False)
        wrapped.settimeout(max(0.001, self.deadline - time.monotonic()))
        try:
            wrapped.do_handshake()
        except BaseException:
            wrapped.close()
            raise
        return wrapped
