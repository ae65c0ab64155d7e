"""Accepting connections: how many, from whom, for how long. Knows nothing of HTTP.

One thread accepts, waits for the first byte of every connection, watches every deadline and closes
what overstays; from its first byte on, each connection is served by a thread of its own, of which
there is a bounded number. A connection that waits for its peer (silent, slow to send, slow to read)
can be closed to make room for a newcomer; one that is being worked on cannot. So whoever holds many
idle connections loses those, not the page that asks next.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import operator
import threading
import time

from .base import MedialibError, UsageError, log
from .http_gate import format_address, parse_address
from .late import ipaddress, selectors, socket

HTTP_CONNECTIONS = 96
HTTP_PER_ADDRESS = 32
HTTP_RESERVED = 16  # only for this machine and for addresses that hold few connections
HTTP_FEW = 2
HTTP_LEAVING = 64  # closed to make room, their threads about to notice
HTTP_BACKLOG = 1024  # where it is full, connecting takes a second more: the next try of the peer
HTTP_LINGERING = 64
HTTP_HEAD_S = 10.0
HTTP_LINGER_S = 1.0
HTTP_TICK_S = 0.25
HTTP_LAST_WORDS_S = 2.0  # to say "too slow" after a deadline
HTTP_ACCEPTS_AT_ONCE = 64
WAITING_SINCE = operator.attrgetter("since")


class HttpSlot:
    """One connection. Its own thread talks; the listener may cut it off from outside.

    `lock` guards the change from waiting to working against being cut off, and the socket against
    being shut down after its number went to another.
    """

    def __init__(self, sock, peer, holder: str):
        self.sock = sock
        self.peer = peer
        self.holder = holder
        self.lock = threading.Lock()
        self.state = "head"
        self.since = time.monotonic()
        self.deadline = self.since + HTTP_HEAD_S
        self.expired = False
        self.cut = False

    def await_peer(self, state: str, seconds: float) -> None:
        """From now on it is the peer's turn, for at most this long in total."""
        now = time.monotonic()
        with self.lock:
            if self.cut:
                raise ConnectionAbortedError("closed from this side")
            self.state = state
            self.since = now
            self.deadline = now + seconds

    def begin_work(self) -> None:
        """It is our turn: nobody cuts this connection off, however long we take."""
        with self.lock:
            if self.cut:
                raise ConnectionAbortedError("closed from this side")
            self.state = "work"
            self.deadline = None

    def expire(self, now: float) -> None:
        """The deadline passed: stop reading first, so that there may still be an answer."""
        with self.lock:
            if self.deadline is None or self.deadline > now:
                return
            if self.expired or self.state == "write":
                self._shut(socket.SHUT_RDWR)
                self.cut = True
            else:
                self._shut(socket.SHUT_RD)
            self.expired = True
            self.deadline = now + HTTP_LAST_WORDS_S

    def cut_off(self) -> bool:
        """Close it from outside if it waits for its peer; False if it is being worked on."""
        with self.lock:
            if self.state == "work" or self.cut:
                return False
            self.cut = True
            self._shut(socket.SHUT_RDWR)
            return True

    def _shut(self, how: int) -> None:
        # Not the method of SSLSocket: that would switch the encryption off under its thread.
        if self.sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.sock, how)

    def replace_socket(self, sock) -> None:
        with self.lock:
            self.sock = sock

    def close(self) -> None:
        with self.lock:
            sock, self.sock, self.cut = self.sock, None, True
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()


class HttpListener:
    """Listens, admits, refuses and reaps. `serve(slot)` runs in a thread per connection;
    `foreign_answer` and `busy_answer` are whole answers for those not admitted (b"" for none).
    """

    def __init__(self, address: str, port: int, allow_peer, serve, *, name: str = "http",
                 foreign_answer: bytes = b"", busy_answer: bytes = b"",
                 connections: int = HTTP_CONNECTIONS):
        self.allow_peer = allow_peer
        self.serve = serve
        self.name = name
        self.foreign_answer = foreign_answer
        self.busy_answer = busy_answer
        self.connections = connections
        self.reserved = min(HTTP_RESERVED, connections // 4)
        self.lock = threading.Lock()  # guards slots
        self.slots = set()
        self.stopping = False
        self._silent = set()  # slots that no thread serves: nothing came yet
        self._lingering = {}
        self._socket = listening_socket(address, port)
        self.port = self._socket.getsockname()[1]
        self._wake_in, self._wake_out = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, name=f"{name}-listener", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, patience_s: float) -> None:
        """Accept no more; close what waits; give what is being answered `patience_s` seconds."""
        if self.stopping:
            return
        self.stopping = True
        with contextlib.suppress(OSError):
            self._wake_out.send(b"x")
        if self._thread.is_alive():
            self._thread.join(patience_s)
        self._socket.close()
        give_up = time.monotonic() + patience_s
        while self._open_slots() and time.monotonic() < give_up:
            for slot in self._open_slots():
                if slot.state not in ("write", "body"):
                    slot.cut_off()
            time.sleep(0.02)
        for slot in self._open_slots():
            slot.cut_off()

    def _open_slots(self) -> list:
        with self.lock:
            return list(self.slots)

    def _run(self) -> None:
        self._socket.setblocking(False)
        self._wake_in.setblocking(False)
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._selector.register(self._wake_in, selectors.EVENT_READ)
        while not self.stopping:
            busy = self.slots or self._lingering
            try:
                self._turn(self._selector.select(HTTP_TICK_S if busy else None))
            except Exception:
                log.exception("the listener of %s stumbled", self.name)
                time.sleep(HTTP_TICK_S)
        self._end()

    def _turn(self, events: list) -> None:
        newcomers = False
        for key, _ in events:  # who has asked already comes before who only connects
            if key.fileobj is self._socket:
                newcomers = True
            elif key.data is None and key.fileobj is not self._wake_in:
                self._drain(key.fileobj)
            elif key.data in self._silent:
                if has_spoken(key.fileobj):
                    self._hand_over(key.data)
                else:
                    self._hang_up(key.data)
        if newcomers:
            self._accept_waiting()
        now = time.monotonic()
        for sock in [sock for sock, end in self._lingering.items() if now >= end]:
            self._drop(sock)
        for slot in self._open_slots():
            if slot.deadline is not None and now >= slot.deadline:
                if slot in self._silent:
                    self._hang_up(slot)
                else:
                    slot.expire(now)

    def _end(self) -> None:
        for slot in list(self._silent):
            self._hang_up(slot)
        for sock in list(self._lingering):
            self._drop(sock)
        self._selector.close()
        self._socket.close()
        self._wake_in.close()
        self._wake_out.close()

    def _accept_waiting(self) -> None:
        for _ in range(HTTP_ACCEPTS_AT_ONCE):
            try:
                sock, address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no more descriptors: somebody has to go
                log.warning("cannot accept a connection: %s", error)
                self._make_room("")
                time.sleep(0.05)
                return
            try:
                self._admit(sock, address)
            except (OSError, ValueError):
                sock.close()

    def _admit(self, sock, address: tuple) -> None:
        peer = parse_address(address[0])
        if not self.allow_peer(peer):
            self._refuse(sock, self.foreign_answer)
            return
        holder = connection_holder(peer)
        if not self._has_room(peer, holder):
            self._refuse(sock, self.busy_answer)
            return
        sock.setblocking(False)
        slot = HttpSlot(sock, peer, holder)
        with self.lock:
            self.slots.add(slot)
        self._silent.add(slot)
        self._selector.register(sock, selectors.EVENT_READ, slot)

    def _hand_over(self, slot: HttpSlot) -> None:
        """The first byte came: from now on a thread serves the connection."""
        self._silent.discard(slot)
        self._selector.unregister(slot.sock)
        slot.sock.setblocking(True)
        try:
            threading.Thread(target=self._serve_slot, args=(slot,),
                             name=f"{self.name}-{slot.peer}", daemon=True).start()
        except RuntimeError:  # no more threads
            self.forget(slot)
            self._refuse(slot.sock, self.busy_answer)

    def _hang_up(self, slot: HttpSlot) -> None:
        """Close a connection that no thread serves."""
        self._silent.discard(slot)
        self._selector.unregister(slot.sock)
        slot.close()
        self.forget(slot)

    def _serve_slot(self, slot: HttpSlot) -> None:
        try:
            self.serve(slot)
        finally:
            slot.close()
            self.forget(slot)

    def forget(self, slot: HttpSlot) -> None:
        with self.lock:
            self.slots.discard(slot)

    def _has_room(self, peer, holder: str) -> bool:
        """Is there a place for one more of this address, if need be after closing an idle one?"""
        held = own = leaving = 0
        for slot in self._open_slots():
            if slot.cut:
                leaving += 1
            else:
                held += 1
                own += slot.holder == holder
        if leaving > HTTP_LEAVING:
            return False
        if own >= HTTP_PER_ADDRESS and not peer.is_loopback:
            return self._make_room(holder)
        free = self.connections - held
        if not peer.is_loopback and own >= HTTP_FEW:
            free -= self.reserved
        return free > 0 or self._make_room("")

    def _make_room(self, holder: str) -> bool:
        """Close the connection that waits longest for its peer: one of `holder`, or else one of
        whoever has the most."""
        waiting = [slot for slot in self._open_slots() if slot.state != "work" and not slot.cut]
        if holder:
            waiting = [slot for slot in waiting if slot.holder == holder]
        counts = collections.Counter([slot.holder for slot in waiting])
        most = max(counts.values(), default=0)
        waiting = [slot for slot in waiting if counts[slot.holder] == most]
        while waiting:  # the first is nearly always the one
            slot = min(waiting, key=WAITING_SINCE)
            if self._part_with(slot):
                return True
            waiting.remove(slot)
        return False

    def _part_with(self, slot: HttpSlot) -> bool:
        """Close this connection, unless it is, or is about to be, worked on."""
        if slot not in self._silent:
            return slot.cut_off()
        if has_spoken(slot.sock):
            self._hand_over(slot)
            return False
        self._hang_up(slot)
        return True

    def cut_stalled(self, state: str, older_s: float) -> bool:
        """Close the connection that is longest in this state, if that is longer than `older_s`."""
        until = time.monotonic() - older_s
        stalled = [slot for slot in self._open_slots() if slot.state == state and not slot.cut
                   and slot.since < until]
        stalled.sort(key=lambda slot: slot.since)
        return any(slot.cut_off() for slot in stalled)

    def _refuse(self, sock, answer: bytes) -> None:
        """Say why, without waiting for anything; read on for a moment, since closing with unread
        data would take the answer away from the peer again."""
        sock.setblocking(False)
        if not answer or len(self._lingering) >= HTTP_LINGERING:
            sock.close()
            return
        with contextlib.suppress(OSError):
            sock.send(answer)
            sock.shutdown(socket.SHUT_WR)
        self._lingering[sock] = time.monotonic() + HTTP_LINGER_S
        self._selector.register(sock, selectors.EVENT_READ)

    def _drain(self, sock) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                if sock.recv(1 << 16):
                    return
            except ConnectionError:
                pass
            self._drop(sock)

    def _drop(self, sock) -> None:
        if self._lingering.pop(sock, None) is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(sock)
            sock.close()


def has_spoken(sock) -> bool:
    """Is there something to read, other than the end?"""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


def connection_holder(peer) -> str:
    """Whose connections are counted together: an IPv4 address, or a whole IPv6 network of 64 bits,
    since whoever has one address of it has them all."""
    if peer.version == 4 or peer.is_loopback or peer.is_link_local:
        return str(peer)
    return str(ipaddress.ip_network((peer, 64), strict=False))


def listening_socket(address: str, port: int):
    """Bound and listening; "" and "::" mean every address of both families where there are both."""
    both = address in ("", "::") and socket.has_dualstack_ipv6()
    try:
        if both:
            return socket.create_server(("::", port), family=socket.AF_INET6,
                                        backlog=HTTP_BACKLOG, dualstack_ipv6=True)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family, backlog=HTTP_BACKLOG)
    except OSError as error:
        if both and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return listening_socket("0.0.0.0", port)  # IPv6 is compiled in, but switched off
        raise MedialibError(_bind_failure(address, port, error)) from error
    except OverflowError as error:
        raise UsageError(f"{port} is not a port number (0 to 65535)") from error


def _bind_failure(address: str, port: int, error: OSError) -> str:
    where = format_address(address, port) if address else f"port {port}"
    if error.errno == errno.EADDRINUSE:
        return (f"cannot listen on {where}: the port {port} is in use by another program "
                "(perhaps another medialib): stop that, or choose another with --port")
    if error.errno == errno.EACCES:
        return f"cannot listen on {where}: port {port} needs more rights, choose one above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"cannot listen on {where}: {address} is not an address of this machine"
    return f"cannot listen on {where}: {error.strerror or error}"
