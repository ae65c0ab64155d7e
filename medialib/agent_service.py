"""The running agent: scans now and then, delivers, says hello, and answers what it is asked."""

from __future__ import annotations

import os
import threading
import time

from .base import MedialibError, StoreError, log
from .delivery import Delivery
from .hashing import available_algorithms
from .host_link import HostLink, about_agent
from .http_client import PeerError
from .late import platform, uuid
from .mounts import describe_root
from .root_volume import settle_volume
from .scan_common import to_native, to_text
from .scan_plan import in_offpeak
from .scan_run import Scanner, merged_roots

HEARTBEAT_SCANNING_S = 5.0
HEARTBEAT_IDLE_S = 30.0
LISTING_MOST = 2000
RESULTS_MOST = 20
CLEAR_WAIT_S = 10.0


class AgentService:
    """Everything of one agent except its command line and its HTTP port.

    `transport` and `heartbeat_transport` reach the host (one per thread); `find_ffprobe()` is asked
    before each scan, so that an ffprobe installed later is found.
    """

    def __init__(self, cache, identity, transport, heartbeat_transport, *, roots=(), port=None,
                 find_ffprobe=lambda: None, clock=time.time):
        self.cache = cache
        self.identity = identity
        self.own_roots = list(roots)
        self.port = port
        self.find_ffprobe = find_ffprobe
        self.clock = clock
        self.instance = str(uuid.uuid4())
        self.ffprobe = None
        self.link = HostLink(heartbeat_transport, cache, self.describe, on_new_id=self._new_id,
                             on_told=self._results_told, clock=clock)
        self.delivery = Delivery(cache, self.link, transport, identity, self.instance,
                                 lambda: self.link.config)
        self.scanner = Scanner(cache, on_stored=self.delivery.wake, clock=clock)
        self.stats = self.scanner.stats
        self.stop_requested = threading.Event()
        self._scan_wanted = threading.Event()
        self._full_hashes_deferred = False
        self._results: list = []
        self._obeying = threading.Lock()  # one command at a time, whichever thread comes first
        self._threads = [threading.Thread(target=self._heartbeat_loop, name="heartbeat",
                                          daemon=True)]

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start delivery and heartbeat; scanning is run by the caller (run_forever, run_once)."""
        self.delivery.start()
        for thread in self._threads:
            thread.start()

    def request_stop(self) -> None:
        """May be called from a signal handler: it only sets flags."""
        self.stop_requested.set()
        self.scanner.control.stop.set()
        self._scan_wanted.set()

    def stop(self) -> None:
        self.request_stop()
        self.delivery.stop()

    def run_forever(self) -> None:
        """Scan now, then whenever the interval has passed or somebody asks, until stopped."""
        while not self.stop_requested.is_set():
            self._scan_wanted.clear()
            self.scan()
            self._wait_for_next_scan()

    def _wait_for_next_scan(self) -> None:
        ended = time.monotonic()
        while not self.stop_requested.is_set() and not self._scan_wanted.is_set():
            interval = self.link.config["rescan_interval_s"]
            rest = ended + interval - time.monotonic() if interval else HEARTBEAT_IDLE_S
            if interval and rest <= 0:
                return
            if self._window_opened():
                return
            self._scan_wanted.wait(min(rest, HEARTBEAT_IDLE_S))

    def _window_opened(self) -> bool:
        """The off-peak hours began since the last scan and large files wait for them."""
        config = self.link.config
        if not in_offpeak(config, self.clock()):
            self._full_hashes_deferred = True
            return False
        return self._full_hashes_deferred and self.scanner.waiting_for_hours(config)

    def run_once(self, patience_s: float = 12.0) -> bool:
        """One scan, then deliver. True when everything was scanned and nothing is left over."""
        complete = self.scan()
        while self._is_asked_for_more():
            complete = self.scan()
        self.wait_delivered(patience_s)
        if self._results:
            self._say_hello()
            self.obey()
        return complete and not self.left_over()

    def _is_asked_for_more(self) -> bool:
        """Whether another scan is wanted, after doing what the host asked for meanwhile: a short
        run may end before the heartbeat has looked.
        """
        self.obey()
        wanted = self._scan_wanted.is_set()
        self._scan_wanted.clear()
        return wanted and not self.stop_requested.is_set()

    def wait_delivered(self, patience_s: float) -> None:
        """Until everything is delivered; gives up when the host stays away for `patience_s`."""
        self.delivery.wake()
        failing_since = None
        while not self.stop_requested.is_set() and not self.delivery.idle.wait(0.05):
            if self.link.reachable or not self.delivery.attempts_failed:
                failing_since = None
            elif failing_since is None:
                failing_since = time.monotonic()
            elif time.monotonic() - failing_since > patience_s:
                return

    def left_over(self) -> list:
        """What the exit code 3 stands for, in words."""
        words = []
        unreadable = self.cache.left_over()
        if unreadable:
            words.append(f"{unreadable} files or folders could not be read")
        waiting = self.cache.outbox.undelivered()
        if waiting:
            words.append(f"{waiting} changes are not delivered yet")
        elif any(root.end_due for root in self.cache.roots.all()) and not self.link.reachable:
            words.append("the host was not reached and may not know all of it: "
                         f"{self.link.problem}")
        words += [f"{path} is offline ({reason})" for path, reason in self.scanner.offline.items()]
        return words

    # -- scanning --------------------------------------------------------------------------------

    def scan(self) -> bool:
        """One whole scan with the host's present configuration, or the last known one."""
        self.ffprobe = self.find_ffprobe()
        roots = self._roots()
        self.scanner.look_at(roots)
        self._say_hello()
        config = self.link.config
        if roots != self._roots():
            roots = self._roots()
            self.scanner.look_at(roots)
            self._say_hello()
            config = self.link.config
        self.scanner.known_at_host = dict(self.link.known_files)
        if not roots:
            log.info("no folders to scan yet: name some on the command line or give this machine"
                     " some on the host's page")
        self._adopt()
        self._full_hashes_deferred = not in_offpeak(config, self.clock())
        try:
            return self.scanner.run(config, roots, self.ffprobe)
        except StoreError as error:
            log.error("the scan stopped: %s", error)
        except Exception:
            log.exception("the scan failed")
        finally:
            self._say_hello()
        return False

    def _roots(self) -> list:
        return merged_roots(self.link.config.get("remote_roots") or (), self.own_roots)

    def _adopt(self) -> None:
        """A disk that another machine catalogued before: take over what the host knows of it."""
        for path in [told.get("path") for told in self.link.transferred]:
            info = self.scanner.infos.get(path)
            if info is None or path in self.scanner.offline:
                continue
            try:
                self.delivery.host_copy.adopt(path, info)
            except (PeerError, KeyError, TypeError) as error:
                log.warning("what the host knows of %s is not to be had now: %s", path, error)

    def _say_hello(self) -> None:
        """Hello now; a silent host must not keep us from stopping."""
        talk = threading.Thread(target=self._hello_quietly, name="hello", daemon=True)
        talk.start()
        while talk.is_alive() and not self.stop_requested.is_set():
            talk.join(0.1)

    def _hello_quietly(self) -> None:
        try:
            self.link.hello()
            self.delivery.wake()
        except PeerError:
            pass  # HostLink has logged it; the scan goes on without the host
        except StoreError as error:
            if not self.stop_requested.is_set():
                log.error("%s", error)

    def scan_now(self) -> tuple:
        """(started, message)."""
        if self.stats.active and self.stats.phase_name != "full hashes":
            return False, "a scan is already running"
        self.scanner.control.pause.set()  # full hashes can wait; they go on after the new scan
        self._scan_wanted.set()
        return True, "a scan starts now"

    def clear_cache(self) -> bool:
        """Forget what is known of the files; undelivered changes are delivered first, or kept."""
        active = self.stats.active
        if active:
            self.scanner.control.pause.set()
        until = time.monotonic() + CLEAR_WAIT_S
        while self.stats.active and time.monotonic() < until:
            time.sleep(0.05)
        self.delivery.wake()
        if self.link.reachable:
            self.delivery.idle.wait(CLEAR_WAIT_S)
        self.cache.outbox.pack(self.link.config["agent_batch_size"])
        cleared = self.cache.clear()
        log.info("the cache is cleared")
        if active:
            self._scan_wanted.set()
        return cleared

    def accept_empty(self, path: str) -> bool:
        """The root at `path` really is empty, or another disk now: the next scan takes it as it
        is.
        """
        root = self.cache.roots.at_path(path)
        if root is None and path in self.scanner.roots:
            info = settle_volume(self.cache, path, describe_root(to_native(path)))
            root = self.cache.roots.identify(path, info)
        if root is None:
            return False
        self.cache.roots.save(root, accept_empty=1)
        self.scan_now()
        return True

    # -- the host's side -------------------------------------------------------------------------

    def _new_id(self, new_id: str) -> None:
        self.identity.become(new_id)

    def describe(self) -> dict:
        """The body of hello."""
        try:
            undelivered_errors = self.cache.failures()
        except StoreError:
            undelivered_errors = {"summary": [], "latest": []}
        return {
            "agent": about_agent(
                self.identity, port=self.port, instance=self.instance,
                hash_algos=available_algorithms(), ffprobe=self.ffprobe,
                roots=self.scanner.root_states(), python=platform.python_version(),
                platform=platform.platform()),
            "stats": self.stats_answer(), "results": self._results[:RESULTS_MOST],
            "errors": undelivered_errors,
        }

    def _results_told(self, count: int) -> None:
        del self._results[:count]

    def _heartbeat_loop(self) -> None:
        due = time.monotonic() + HEARTBEAT_SCANNING_S
        while not self.stop_requested.wait(0.1):
            try:
                self.obey()
                interval = HEARTBEAT_SCANNING_S if self.stats.active else HEARTBEAT_IDLE_S
                due = min(due, time.monotonic() + interval)
                if time.monotonic() >= due or (self._results and self.link.reachable):
                    due = time.monotonic() + interval
                    self._beat()
            except Exception:
                log.exception("heartbeat failed")

    def _beat(self) -> None:
        was_reachable = self.link.reachable
        try:
            self.link.hello()
        except PeerError:
            return
        if not was_reachable:
            self.delivery.wake()

    def obey(self) -> None:
        """Carry out what the host asked for, in order; the answers go with the next hello."""
        with self._obeying:
            while self.link.commands:
                command = self.link.commands.popleft()
                answer = self._carry_out(command)
                if command.get("id") is not None:
                    self._results.append({"id": command["id"], "answer": answer})

    def _carry_out(self, command: dict) -> dict:
        try:
            return self._do_command(command)
        except (OSError, ValueError, MedialibError) as error:
            return {"ok": False, "error": str(getattr(error, "strerror", None) or error)}

    def _do_command(self, command: dict) -> dict:
        do, path = command.get("do"), command.get("path")
        if do == "scan_now":
            started, message = self.scan_now()
            return {"ok": True, "started": started, "message": message}
        if do == "clear_cache":
            return {"ok": True, "cleared": self.clear_cache()}
        if do == "compact_cache":
            before, after = self.cache.compact()
            return {"ok": True, "before_bytes": before, "after_bytes": after}
        if do == "accept_empty" and isinstance(path, str):
            return {"ok": self.accept_empty(path)}
        if do == "ls":
            return list_folder(path if isinstance(path, str) else "")
        return {"ok": False, "error": "unknown command"}

    # -- what it tells ---------------------------------------------------------------------------

    def stats_answer(self) -> dict:
        """The answer of /agent/stats, from counters alone."""
        stats, delivery = self.stats, self.delivery
        elapsed = stats.elapsed_s()
        rate = stats.seen / elapsed if elapsed > 0.05 else 0.0
        return {
            "ok": True, "ts": self.clock(), "active": stats.active, "phase": stats.phase,
            "phase_name": stats.phase_name, "roots": list(self.scanner.roots), "root": stats.root,
            "current_path": stats.current_path, "elapsed": round(elapsed, 3), "seen": stats.seen,
            "uploaded": delivery.uploaded, "batches": delivery.batches,
            "errors": stats.errors + delivery.errors, "file_errors": stats.errors,
            "rate_files_per_s": round(rate, 1),
            "data_mib": round(stats.data_bytes / 2**20, 3), "kinds": dict(stats.kinds),
            "workers": stats.workers, "batch_size": self.link.config["agent_batch_size"],
            "sent_bytes": delivery.sent_bytes, "total_all": stats.total_all,
            "total_videos": stats.total_videos, "seen_videos": stats.probed,
            "outbox": delivery.waiting, "eta_s": self._eta(rate), "unchanged": stats.unchanged,
            "removed": stats.removed, "moved": stats.moved, "hashed": stats.hashed,
            "fully_hashed": stats.fully_hashed, "host_reachable": self.link.reachable,
            "host_problem": self.link.problem, "ledger": dict(stats.ledger),
            "idle_s": round(time.monotonic() - stats.last_progress, 1) if stats.active else None,
        }

    def _eta(self, rate: float) -> float | None:
        stats = self.stats
        if not stats.active or not rate:
            return None
        if stats.phase == 2 and stats.total_videos and stats.probed:
            done = stats.probed / max(stats.elapsed_s(), 0.1)
            return round(max(0, stats.total_videos - stats.probed) / done, 1)
        if stats.phase == 1 and stats.total_all:
            return round(max(0, stats.total_all - stats.seen) / rate, 1)
        return None


def list_folder(path: str) -> dict:
    """The answer of /agent/ls. OSError and ValueError for what cannot be listed."""
    native = os.path.abspath(os.path.expanduser(to_native(path or "/")))
    folders, files, truncated = [], [], False
    with os.scandir(native) as entries:
        for entry in entries:
            if len(folders) + len(files) >= LISTING_MOST:
                truncated = True
                break
            add_listed(entry, folders, files)
    folders.sort(key=listed_name)
    files.sort(key=listed_name)
    parent = os.path.dirname(native)
    return {"ok": True, "path": to_text(native), "dirs": folders, "files": files,
            "parent": to_text(parent) if parent != native else None, "truncated": truncated}


def add_listed(entry, folders: list, files: list) -> None:
    known = {"name": to_text(entry.name), "path": to_text(entry.path)}
    try:
        if entry.is_dir():
            folders.append(known)
        elif entry.is_file():
            files.append({**known, "size": entry.stat().st_size})
    except OSError:
        return


def listed_name(known: dict) -> str:
    return known["name"]
