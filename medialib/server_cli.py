"""The host's command line: python server.py [ROOT…]."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from .app_folder import FolderLock, data_folder, setup_logging
from .allocator import give_large_blocks_back, settle_memory
from .base import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_LEFT_OVER,
    HOST_PORT,
    VERSION,
    FolderBusyError,
    MedialibError,
    UsageError,
    log,
)
from .catalog import CATALOG_FILE, Catalog
from .catalog_schema import LOCAL_AGENT
from .catalog_settings import store_settings, stored_settings
from .host_upkeep import HostUpkeep, keep_copy_before_upgrade
from .http_client import JsonClient, PeerError
from .http_gate import Gate, format_address, own_addresses
from .http_server import JsonServer
from .late import argparse, platform
from .local_scan import LocalScan
from .progress import ProgressLine, summary_text
from .scan_common import to_text
from .scan_run import absolute_root, merged_roots
from .server_routes import HostRoutes
from .sqlite_store import copy_database
from .stop_signals import catch_stop_signals

SCAN_POLL_S = 0.5
SCAN_START_S = 30.0
EVERY_ADDRESS = ("", "0.0.0.0", "::")


def server_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="server.py", description="Keep the catalogue of all machines' media and show it.",
        epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 done but something is left over, "
               "4 another instance holds the data folder, 130 interrupted.")
    parser.add_argument("roots", metavar="ROOT", nargs="*",
                        help="folders of this machine to catalogue as well")
    parser.add_argument("--bind", metavar="ADDR", default="",
                        help="address to listen on (default: all)")
    parser.add_argument("--port", type=int, default=HOST_PORT,
                        help=f"port to listen on (default {HOST_PORT})")
    parser.add_argument("--data-dir", metavar="DIR", help="default: ~/.medialib or $MEDIALIB_HOME")
    parser.add_argument("--allow", metavar="CIDR", action="append", default=[],
                        help="answer only these addresses (default: private networks); repeatable")
    parser.add_argument("--host-name", metavar="NAME", action="append", default=[],
                        help="a further name under which browsers reach this host; repeatable")
    parser.add_argument("--certfile", metavar="FILE", help="serve https with this certificate")
    parser.add_argument("--keyfile", metavar="FILE", help="the certificate's key")
    parser.add_argument("--scan", metavar="ROOT", nargs="+",
                        help="scan these folders now, through the running server if there is one, "
                             "and exit")
    parser.add_argument("--backup", metavar="FILE",
                        help="write a checked copy of the catalogue and exit")
    parser.add_argument("--no-metrics", action="store_true", help="do not serve /metrics")
    parser.add_argument("--version", action="version", version=f"medialib {VERSION}")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-v", "--verbose", action="store_true", help="more messages")
    loudness.add_argument("-q", "--quiet", action="store_true", help="warnings only")
    return parser


def server_main(argv=None) -> int:
    """Run the host; the exit code."""
    arguments = server_parser().parse_args(argv)
    try:
        if arguments.keyfile and not arguments.certfile:
            raise UsageError("--keyfile needs --certfile")
        return ServerProgram(arguments).run()
    except MedialibError as error:
        print(f"server.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


class ServerProgram:
    """One run of the host: data folder, lock, catalogue, port, local scanner, signals."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.folder = data_folder(arguments.data_dir)
        self.catalog_path = os.path.join(self.folder, CATALOG_FILE)
        self.stop_requested = threading.Event()
        self.interrupted = None

    def run(self) -> int:
        if self.arguments.backup:
            return backup_catalogue(self.catalog_path, self.arguments.backup)
        verbosity = self.arguments.verbose - self.arguments.quiet
        lock = FolderLock(self.folder, "host")
        try:
            lock.acquire()
        except FolderBusyError:
            if self.arguments.scan:
                return scan_through_server(lock, self.given_roots(self.arguments.scan),
                                           quiet=self.arguments.quiet)
            raise
        try:
            setup_logging(os.path.join(self.folder, "server.log"), verbosity)
            return self._run_locked(lock)
        finally:
            lock.release()

    def given_roots(self, roots: list) -> list:
        """Roots of the command line as absolute text paths; what is not there is said."""
        for root in roots:
            if not os.path.isdir(os.path.expanduser(root)):
                print(f"server.py: {to_text(root)} is not there now; it is kept as offline",
                      file=sys.stderr)
        return [absolute_root(to_text(root)) for root in roots]

    def _run_locked(self, lock: FolderLock) -> int:
        catalog = Catalog(self.catalog_path, keep_copy=keep_copy_before_upgrade(self.folder))
        try:
            routes = HostRoutes(catalog, metrics=not self.arguments.no_metrics)
            roots = self.given_roots(self.arguments.scan or self.arguments.roots)
            local = self._local_scan(catalog, routes, roots)
            if self.arguments.scan:
                return self._scan_and_exit(catalog, local)
            return self._serve(catalog, routes, local, lock)
        finally:
            catalog.close()

    def _local_scan(self, catalog: Catalog, routes: HostRoutes, roots: list) -> LocalScan | None:
        """The scanner of this machine's own folders; those of the command line are remembered."""
        if catalog.problem is not None:
            return None
        if roots:
            add_local_roots(catalog, roots)
        local = LocalScan(routes.ingest, self.folder, host_name())
        routes.control.local = local
        routes.presence.own_stats[LOCAL_AGENT] = local.service.stats_answer
        return local

    def _scan_and_exit(self, catalog: Catalog, local: LocalScan | None) -> int:
        if local is None:
            raise MedialibError(catalog.problem)
        self._catch_signals(local.service.request_stop)
        progress = ProgressLine(sys.stderr, local.service.stats_answer,
                                quiet=self.arguments.quiet)
        progress.start()
        try:
            left_over = local.run_once()
        finally:
            progress.stop()
            local.stop()
        if self.interrupted is not None:
            return EXIT_INTERRUPTED
        if not self.arguments.quiet:
            print(summary_text(local.service.stats_answer()))
        for words in left_over:
            print(f"left over: {words}", file=sys.stderr)
        return EXIT_LEFT_OVER if left_over else EXIT_DONE

    def _serve(self, catalog, routes, local, lock) -> int:
        arguments = self.arguments
        gate = Gate(arguments.allow or None, arguments.host_name)
        server = JsonServer(arguments.bind, arguments.port, routes.router(), gate,
                            certfile=arguments.certfile, keyfile=arguments.keyfile)
        lock.write_holder({"port": server.port, "address": arguments.bind,
                           "tls": bool(arguments.certfile)})
        routes.host = {"name": host_name(),
                       "addresses": reached_at(arguments.bind)[:8],
                       "port": server.port, "scheme": "https" if arguments.certfile else "http"}
        self._catch_signals(self.stop_requested.set)
        give_large_blocks_back()
        settle_memory()
        upkeep = HostUpkeep(catalog, self.folder)
        server.start()
        upkeep.start()
        if local is not None:
            local.start()
        try:
            if not arguments.quiet:
                print(welcome_text(arguments, server.port, catalog), flush=True)
            while not self.stop_requested.wait(3600):
                pass
        finally:
            self._stop_all(server, upkeep, local, routes)
        return EXIT_INTERRUPTED if self.interrupted == signal.SIGINT else EXIT_DONE

    def _stop_all(self, server, upkeep, local, routes) -> None:
        """All at once: whoever stopped us waits at most some seconds."""
        routes.stop()
        steps = [threading.Thread(target=step, daemon=True) for step in (
            server.stop, upkeep.stop, *([local.stop] if local is not None else []))]
        for step in steps:
            step.start()
        end = time.monotonic() + 4.0
        for step in steps:
            step.join(max(0.0, end - time.monotonic()))
        log.info("stopped")

    def _catch_signals(self, stop) -> None:
        def caught(number) -> None:
            if self.interrupted is not None:
                raise KeyboardInterrupt
            self.interrupted = number

        catch_stop_signals(caught, stop)


def host_name() -> str:
    """What this machine calls itself."""
    return to_text(platform.node() or LOCAL_AGENT)[:200]


def add_local_roots(catalog: Catalog, roots: list) -> None:
    """Put roots among those of the host's own scanner, where the page shows them."""
    def add(db) -> None:
        known = stored_settings(db, LOCAL_AGENT).get("remote_roots", [])
        store_settings(db, LOCAL_AGENT, {"remote_roots": merged_roots(known, roots)})

    catalog.write(add)


def backup_catalogue(path: str, target: str) -> int:
    """--backup: a checked copy, also while a host is running."""
    if not os.path.exists(path):
        raise MedialibError(f"there is no catalogue {path}")
    size = copy_database(path, os.path.abspath(os.path.expanduser(target)))
    print(f"{target}: {size:,} bytes, checked")
    return EXIT_DONE


def server_url(holder: dict) -> str:
    """Where the running host that holds the lock can be asked, from this machine."""
    if "port" not in holder:
        raise FolderBusyError("another host is just starting or stopping on this data folder")
    address = holder.get("address") or ""
    if address in EVERY_ADDRESS:
        address = "127.0.0.1"
    scheme = "https" if holder.get("tls") else "http"
    return f"{scheme}://{format_address(address, holder['port'])}"


def scan_through_server(lock: FolderLock, roots: list, *, quiet: bool) -> int:
    """--scan while a host runs: it scans, we wait for the end of it."""
    client = JsonClient(server_url(lock.read_holder() or {}), timeout_s=60.0)
    try:
        local = local_state(client)
        known = local.get("remote_roots", [])
        before = scans_of(local, roots)
        client.post("/api/agents/set", {"agent": LOCAL_AGENT,
                                        "roots": merged_roots(known, roots)})
        local = wait_for_scan(client, roots, before)
    except PeerError as error:
        raise MedialibError(f"the running host did not do it: {error}") from error
    finally:
        client.close()
    states = {root["path"]: root for root in local.get("roots", [])}
    code = EXIT_DONE
    for path in roots:
        root = states.get(path, {})
        if root.get("state") == "offline":
            print(f"left over: {path} is offline ({root.get('reason')})", file=sys.stderr)
            code = EXIT_LEFT_OVER
        elif not quiet:
            print(f"{path}: {root.get('files', 0):,} files")
    return code


def local_state(client: JsonClient) -> dict:
    agents = client.post("/api/agents", {}).get("agents", [])
    return next((agent for agent in agents if agent["id"] == LOCAL_AGENT), {})


def scans_of(local: dict, roots: list) -> dict:
    return {root["path"]: root["scan"].get("at") for root in local.get("roots", [])
            if root["path"] in roots}


def wait_for_scan(client: JsonClient, roots: list, before: dict) -> dict:
    """Until each root has ended a scan that began after we asked, or is offline and idle."""
    started = time.monotonic()
    while True:
        time.sleep(SCAN_POLL_S)
        local = local_state(client)
        after = scans_of(local, roots)
        states = {root["path"]: root["state"] for root in local.get("roots", [])}
        active = local.get("stats", {}).get("active")
        waiting = [path for path in roots if states.get(path) != "offline"
                   and (after.get(path) is None or after.get(path) == before.get(path))]
        if not waiting and not active:
            return local
        if waiting and not active and time.monotonic() - started > SCAN_START_S:
            raise MedialibError("the running host does not scan: " + ", ".join(waiting))


def reached_at(bind: str) -> list:
    """The addresses under which this host answers, the ones to show people first."""
    return own_addresses() if bind in EVERY_ADDRESS else [bind]


def welcome_text(arguments, port: int, catalog: Catalog) -> str:
    """What to open, and what to paste on other machines."""
    scheme = "https" if arguments.certfile else "http"
    addresses = reached_at(arguments.bind)
    best = addresses[0] if addresses else "127.0.0.1"
    urls = [f"{scheme}://{format_address(address, port)}" for address in addresses[:4]]
    if arguments.bind in EVERY_ADDRESS:
        urls.append(f"{scheme}://localhost:{port}")
    shown = format_address(best, port) if port != HOST_PORT else best
    host = f"{scheme}://{format_address(best, port)}" if scheme == "https" else shown
    lines = [f"medialib {VERSION}, catalogue {catalog.path}"]
    if catalog.problem is not None:
        lines.append(f"THE CATALOGUE CANNOT BE USED: {catalog.problem}")
    lines += ["Open " + "  or  ".join(f"{url}/" for url in urls),
              "On another machine paste:",
              f"  curl -O {scheme}://{format_address(best, port)}/agent.py"
              f" && python3 agent.py {host}",
              "or copy it there:",
              f"  scp agent.py BOX: && ssh BOX python3 agent.py {host}"]
    return "\n".join(lines)
