"""What a scan is told: its settings in a form that is quick to use, its counters, its brakes."""

from __future__ import annotations

import threading
import time

from .hashing import effective_algorithm
from .scan_common import Classifier, ext_of

ADAPT_INTERVAL_S = 0.5
STAT_WORK = 16384  # the cost of one more file, in bytes of reading


def in_offpeak(config: dict, now: float) -> bool:
    """Whether large files may be read whole at this time (local hours; equal hours: always)."""
    start, end = config["agent_offpeak_start"], config["agent_offpeak_end"]
    hour = time.localtime(now).tm_hour
    if start == end:
        return True
    return start <= hour < end if start < end else hour >= start or hour < end


class ScanPlan:
    """The settings of one scan. `ffprobe` is an Ffprobe, or None where it is not installed."""

    def __init__(self, config: dict, ffprobe=None):
        self.config = config
        self.ffprobe = ffprobe
        self.classifier = Classifier(config)
        self.algo = effective_algorithm(config["hash_algo"])
        self.sample_size = config["hash_sample_size"]
        self.full_hashes = config["do_full_hash"]
        self.batch_size = config["agent_batch_size"]
        self.max_workers = config["agent_max_workers"]
        self.adaptive = config["agent_adaptive"]
        self.follow_symlinks = config["follow_symlinks"]

    def kind_of(self, name: str) -> tuple:
        """(kind, reason) of a file name."""
        return self.classifier.classify(name, ext_of(name))

    def in_window(self, now: float) -> bool:
        """Whether large files may be read whole at this time (local hours)."""
        return in_offpeak(self.config, now)

    def readers(self, info) -> int:
        """How many files of a root may be open at once: one where a head or a wire would seek."""
        return self.max_workers if info.rotational is False and not info.network else 1


class ScanControl:
    """Asks a scan to stop. `stop` is for good; `pause` ends the present scan only."""

    def __init__(self):
        self.stop = threading.Event()
        self.pause = threading.Event()

    def keep_going(self) -> bool:
        return not (self.stop.is_set() or self.pause.is_set())

    def is_set(self) -> bool:
        """What ffprobe's run asks while it waits: the present work is to stop."""
        return not self.keep_going()

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until somebody asks to stop."""
        until = time.monotonic() + seconds
        while self.keep_going() and time.monotonic() < until:
            self.stop.wait(min(0.2, max(0.0, until - time.monotonic())))


class ScanStats:
    """Counters of the present scan, read by other threads without a lock: each is one int or text
    that is replaced as a whole.
    """

    def __init__(self):
        self.reset()
        self.active = False

    def reset(self) -> None:
        self.started = time.monotonic()
        self.ended = None
        self.phase = 0
        self.phase_name = "idle"
        self.root = ""
        self.current_path = ""
        self.seen = self.unchanged = self.removed = self.moved = self.errors = 0
        self.hashed = self.probed = self.fully_hashed = self.opened = 0
        self.data_bytes = 0
        self.seen_videos = 0
        self.total_all = None
        self.total_videos = None
        self.workers = 0
        self.kinds = {}
        self.ledger = {}
        self.last_progress = time.monotonic()

    def phase_is(self, phase: int, name: str) -> None:
        self.phase, self.phase_name = phase, name
        self.last_progress = time.monotonic()

    def elapsed_s(self) -> float:
        return (self.ended or time.monotonic()) - self.started

    def count_kind(self, kind: str) -> None:
        self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def add_ledger(self, counts: dict) -> None:
        ledger = self.ledger
        for key, count in counts.items():
            if count:
                ledger[key] = ledger.get(key, 0) + count


class ReaderPermits:
    """How many readers work at once, between 1 and `most`: one more is tried now and then and kept
    if the measured throughput grows, else taken back.
    """

    def __init__(self, most: int, adaptive: bool, clock=time.monotonic):
        self.most = most
        self.adaptive = adaptive and most > 1
        self.limit = 1 if self.adaptive else most
        self._clock = clock
        self._since = clock()
        self._work = 0.0
        self._rate = 0.0
        self._step = 1

    def note(self, work: float) -> None:
        """Some work was done (bytes plus a share per file); now and then the limit is adjusted."""
        if not self.adaptive:
            return
        self._work += work
        elapsed = self._clock() - self._since
        if elapsed < ADAPT_INTERVAL_S:
            return
        rate = self._work / elapsed
        if rate < self._rate * 1.03:
            self._step = -self._step
        self.limit = max(1, min(self.most, self.limit + self._step))
        if self.limit in (1, self.most):
            self._step = 1 if self.limit == 1 else -1
        self._rate, self._work, self._since = rate, 0.0, self._clock()
