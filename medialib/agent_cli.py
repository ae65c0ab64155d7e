"""The agent's command line: python agent.py HOST [ROOT…]."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading

from .agent_cache import AGENT_CACHE_INTERFACE, AgentCache
from .agent_identity import AgentIdentity
from .agent_routes import AgentRoutes
from .agent_service import AgentService
from .allocator import settle_memory
from .app_folder import FolderLock, data_folder, setup_logging
from .base import (
    AGENT_PORT,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_LEFT_OVER,
    HOST_PORT,
    VERSION,
    FolderBusyError,
    MedialibError,
    StoreError,
    UsageError,
    log,
)
from .ffprobe import find_ffprobe
from .hashing import available_algorithms
from .host_link import HttpTransport
from .http_client import JsonClient, PeerError, parse_host
from .http_gate import Gate
from .http_server import JsonServer
from .late import argparse, platform, socket, urllib
from .plain_scan import PlainScan
from .progress import ProgressLine, summary_text
from .scan_common import to_text
from .scan_plan import ScanControl
from .scan_run import absolute_root
from .sqlite_store import sqlite3
from .stop_signals import catch_stop_signals

AGENT_LOOPBACK = ("127.0.0.0/8", "::1/128")
HOST_LOOKUP_S = 60.0
CONTROL_BODY_BYTES = 64 << 10  # no call of the control port needs a body


def agent_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="agent.py", description="Catalogue this machine's media on a medialib host.",
        epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 done but something is left over, "
               "4 another instance holds the data folder, 130 interrupted.")
    parser.add_argument("host", metavar="HOST", help="the host: address, name, name:port or URL")
    parser.add_argument("roots", metavar="ROOT", nargs="*", default=[],
                        help="folders to scan, besides those the host gives this machine")
    parser.add_argument("--once", action="store_true", help="scan, deliver and exit")
    parser.add_argument("--clear-cache", action="store_true",
                        help="forget what is known of the files first (an agent already running on "
                             "the data folder is asked to)")
    parser.add_argument("--bind", metavar="ADDR", default="",
                        help="address of the control port (default: all)")
    parser.add_argument("--port", type=int, help=f"control port (default {AGENT_PORT})")
    parser.add_argument("--data-dir", metavar="DIR", help="default: ~/.medialib or $MEDIALIB_HOME")
    parser.add_argument("--name", help="what this machine is called in the catalogue")
    parser.add_argument("--allow", metavar="CIDR", action="append", default=[],
                        help="further addresses that may use the control port")
    parser.add_argument("--ffprobe", metavar="PATH", help="the ffprobe to use")
    parser.add_argument("--cafile", metavar="FILE", help="certificates to trust for an https host")
    parser.add_argument("--check", action="store_true",
                        help="say what would be used and whether the host answers, and exit")
    parser.add_argument("--version", action="version", version=f"medialib {VERSION}")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-v", "--verbose", action="store_true", help="more messages")
    loudness.add_argument("-q", "--quiet", action="store_true", help="warnings only")
    return parser


def agent_main(argv=None) -> int:
    """Run the agent; the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words == ["--version"]:  # without argparse, which takes longer to import than all else
        print(f"medialib {VERSION}")
        return EXIT_DONE
    arguments = agent_parser().parse_args(argv)
    try:
        url = parse_host(arguments.host, HOST_PORT)
        if arguments.check:
            return check_agent(arguments, url)
        return AgentProgram(arguments, url).run()
    except MedialibError as error:
        print(f"agent.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


class AgentProgram:
    """One run of the agent: data folder, cache, control port, service, signals."""

    def __init__(self, arguments, url: str):
        self.arguments = arguments
        self.url = url
        self.interrupted = None
        self.folder = self._folder()
        self.roots = [absolute_root(root) for root in self._given_roots()]

    def _folder(self) -> str | None:
        """The data folder, or None where there is none to be had: then nothing is remembered."""
        try:
            return data_folder(self.arguments.data_dir)
        except MedialibError as error:
            print(f"agent.py: {error}; going on without a memory: every start reads all files"
                  " again", file=sys.stderr)
            return None

    def _given_roots(self) -> list:
        for root in self.arguments.roots:
            if not os.path.isdir(os.path.expanduser(root)):
                print(f"agent.py: {to_text(root)} is not there now; it is reported as offline",
                      file=sys.stderr)
        return [to_text(root) for root in self.arguments.roots]

    def run(self) -> int:
        verbosity = self.arguments.verbose - self.arguments.quiet
        lock = FolderLock(self.folder, "agent") if self.folder else None
        try:
            if lock is not None:
                lock.acquire()
        except FolderBusyError:
            if self.arguments.clear_cache:
                return clear_running(lock)
            raise
        try:
            setup_logging(os.path.join(self.folder, "agent.log") if self.folder else None,
                          verbosity)
            return self._run_locked(lock)
        finally:
            if lock is not None:
                lock.release()

    def _run_without_cache(self) -> int:
        """On a Python without SQLite: nothing is remembered here, the host is asked instead."""
        log.warning("this Python has no SQLite: going on without a cache, a control port and full"
                    " hashes of large files")
        control = ScanControl()
        self._catch_signals(control.stop.set)
        scan = PlainScan(HttpTransport(self.url, self.arguments.cafile),
                         AgentIdentity(self.folder, self.arguments.name), control,
                         own_roots=self.roots, once=self.arguments.once,
                         find_ffprobe=lambda: find_ffprobe(self.arguments.ffprobe))
        left_over = scan.run()
        for words in left_over:
            print(f"left over: {words}", file=sys.stderr)
        if self.interrupted is not None:
            return EXIT_INTERRUPTED if self.interrupted == signal.SIGINT else EXIT_DONE
        return EXIT_LEFT_OVER if left_over else EXIT_DONE

    def _run_locked(self, lock) -> int:
        if sqlite3 is None:
            return self._run_without_cache()
        settle_memory()
        cache = self._open_cache()
        try:
            if self.arguments.clear_cache:
                cache.clear()
                log.info("the cache is cleared")
            identity = AgentIdentity(self.folder, self.arguments.name)
            transports = [HttpTransport(self.url, self.arguments.cafile) for _ in range(2)]
            service = AgentService(
                cache, identity, *transports, roots=self.roots,
                find_ffprobe=lambda: find_ffprobe(self.arguments.ffprobe))
            return self._serve(service, lock)
        finally:
            cache.close()

    def _open_cache(self):
        kind = outside_cache() or AgentCache
        if self.folder is not None:
            try:
                return kind(os.path.join(self.folder, "agent_cache.db"))
            except StoreError as error:
                log.warning("%s; going on with a temporary cache", error)
        return kind("")

    def _serve(self, service, lock) -> int:
        gate = Gate([*AGENT_LOOPBACK, *self.arguments.allow])
        server = self._open_port(service, gate)
        service.port = server.port
        if lock is not None:
            lock.write_holder({"port": server.port})
        self._catch_signals(service.request_stop)
        threading.Thread(target=self._admit_host, args=(gate, service), name="lookup",
                         daemon=True).start()
        progress = ProgressLine(sys.stderr, service.stats_answer, quiet=self.arguments.quiet)
        server.start()
        service.start()
        progress.start()
        try:
            if not self.arguments.once:
                service.run_forever()
                return EXIT_INTERRUPTED if self.interrupted == signal.SIGINT else EXIT_DONE
            return self._once(service, progress)
        finally:
            progress.stop()
            service.stop()
            server.stop()

    def _once(self, service, progress) -> int:
        complete = service.run_once()
        progress.stop()
        if self.interrupted is not None:
            return EXIT_INTERRUPTED
        if not self.arguments.quiet:
            print(summary_text(service.stats_answer()))
        left_over = service.left_over()
        for words in left_over:
            print(f"left over: {words}", file=sys.stderr)
        if left_over:
            return EXIT_LEFT_OVER
        return EXIT_DONE if complete else EXIT_FAILED

    def _open_port(self, service, gate) -> JsonServer:
        """The control port asked for; another free one if the usual one is taken."""
        router = AgentRoutes(service).router()
        wanted = self.arguments.port
        try:
            return JsonServer(self.arguments.bind, AGENT_PORT if wanted is None else wanted,
                              router, gate, max_body=CONTROL_BODY_BYTES,
                              max_json=CONTROL_BODY_BYTES)
        except UsageError:
            raise
        except MedialibError as error:
            if wanted is not None:
                raise
            log.warning("%s; taking another port", error)
            return JsonServer(self.arguments.bind, 0, router, gate, max_body=CONTROL_BODY_BYTES,
                              max_json=CONTROL_BODY_BYTES)

    def _catch_signals(self, request_stop) -> None:
        def caught(number) -> None:
            if self.interrupted is not None:
                raise KeyboardInterrupt
            self.interrupted = number

        catch_stop_signals(caught, request_stop)

    def _admit_host(self, gate, service) -> None:
        """Let the host's addresses use the control port; a name may change its address."""
        name = urllib.parse.urlsplit(self.url).hostname
        while not service.stop_requested.is_set():
            try:
                found = {entry[4][0].partition("%")[0]
                         for entry in socket.getaddrinfo(name, None)}
                gate.set_networks([*AGENT_LOOPBACK, *sorted(found), *self.arguments.allow])
            except (OSError, UnicodeError) as error:
                log.debug("the host's name %s: %s", name, error)
            service.stop_requested.wait(HOST_LOOKUP_S)


def outside_cache():
    """AgentCache of an installed medialib or of an agent_cache.py beside this file, if it is there
    and of the same interface version; else None.
    """
    if sys.modules.get("medialib.agent_cache") is not None:
        return None  # this is the package itself
    for name in ("medialib.agent_cache", "agent_cache"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        except Exception as error:
            log.warning("%s cannot be used: %s", name, error)
            continue
        if getattr(module, "AGENT_CACHE_INTERFACE", None) == AGENT_CACHE_INTERFACE:
            return module.AgentCache
        log.warning("%s has another interface; using the built-in cache", name)
    return None


def clear_running(lock) -> int:
    """Ask the agent that holds the data folder to clear its cache."""
    holder = lock.read_holder() or {}
    if "port" not in holder:
        raise FolderBusyError("an agent runs on this data folder but tells no port; stop it first")
    answer = JsonClient(f"http://127.0.0.1:{holder['port']}", timeout_s=60.0).post(
        "/agent/clear_cache")
    print("the running agent has cleared its cache" if answer.get("cleared")
          else "the running agent's cache was empty")
    return EXIT_DONE


def check_agent(arguments, url: str) -> int:
    """Print what an agent started like this would work with; 0 if it could work, else 1."""
    ffprobe = find_ffprobe(arguments.ffprobe)
    print(f"medialib {VERSION} on Python {platform.python_version()}, {platform.platform()}")
    print(f"hashes: {', '.join(available_algorithms())}")
    print(f"ffprobe: {ffprobe.version} ({ffprobe.path})" if ffprobe
          else "ffprobe: not installed; videos are hashed but not described")
    usable = check_roots(arguments.roots)
    try:
        print(f"data folder: {data_folder(arguments.data_dir)}")
    except MedialibError as error:
        print(f"data folder: {error}")
    try:
        HttpTransport(url, arguments.cafile).client.get("/health", need_ok=False)
        print(f"host: {url} answers")
    except PeerError as error:
        print(f"host: {error}")
        usable = False
    return EXIT_DONE if usable else EXIT_FAILED


def check_roots(roots: list) -> bool:
    usable = True
    for root in roots:
        try:
            with os.scandir(os.path.expanduser(root)):
                print(f"root: {to_text(root)} can be read")
        except OSError as error:
            print(f"root: {to_text(root)}: {error.strerror}")
            usable = False
    return usable
