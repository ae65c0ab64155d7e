"""One scan of all roots: pass 1 over each, then ffprobe, then the full hashes of large files."""

from __future__ import annotations

import os
import time

from .base import log
from .root_check import look_at_root
from .root_volume import RootOffline
from .scan_common import to_native, to_text
from .scan_passes import FullHashPass, ProbePass
from .scan_pipeline import RootScan
from .scan_plan import ScanControl, ScanPlan, ScanStats


def absolute_root(path: str) -> str:
    """A root as given, as absolute text with "/" between its parts and none at its end."""
    native = os.path.abspath(os.path.expanduser(to_native(path)))
    text = to_text(native)
    return text.replace("\\", "/") if os.sep == "\\" else text


def merged_roots(*lists) -> list:
    """All roots once, in order; one folder under two paths or two mounts counts once."""
    merged, seen = [], set()
    for path in (absolute_root(path) for paths in lists for path in paths):
        native = to_native(path)
        keys = {os.path.realpath(native)}
        try:
            there = os.stat(native)
            keys.add((there.st_dev, there.st_ino))
        except OSError:
            pass  # it is away: its path alone tells
        if not keys & seen:
            merged.append(path)
        seen |= keys
    return merged


class Scanner:
    """Runs scans one after another into an AgentCache. `on_stored()` is called after each commit;
    `infos` are the RootInfo of the last look at each root, `offline` the reasons of those away.
    """

    def __init__(self, cache, *, on_stored=None, clock=time.time):
        self.cache = cache
        self.on_stored = on_stored or list
        self.clock = clock
        self.stats = ScanStats()
        self.control = ScanControl()
        self.infos: dict = {}
        self.offline: dict = {}
        self.roots: list = []
        self.looked = False
        self.known_at_host: dict = {}  # {path: how many files the host has there}

    def look_at(self, roots: list) -> None:
        """See what each root lies on and whether it is there, before the host is told of it."""
        taken: dict = {}
        for path in roots:
            try:
                info, _ = look_at_root(self.cache, path, taken=taken)
                self.infos[path] = info
                taken.setdefault((info.volume, info.volume_path), (info.device, path))
                self.offline.pop(path, None)
            except RootOffline as reason:
                self.infos.pop(path, None)
                self.offline[path] = str(reason)
        self.roots = roots
        self.looked = True

    def run(self, config: dict, roots: list, ffprobe) -> bool:
        """One whole scan; True if it was not cut short."""
        plan = ScanPlan(config, ffprobe)
        self.control.pause.clear()
        self.roots = roots
        self.stats.reset()
        self.stats.active = True
        try:
            return self._run(plan, roots)
        finally:
            self.stats.ended = time.monotonic()
            self.stats.phase_is(0, "idle")
            self.stats.current_path = ""
            self.stats.active = False
            self.cache.forget_unfinished()
            self.cache.set_meta("unclean", "0")

    def _run(self, plan, roots: list) -> bool:
        self._reclassify(plan)
        self._take_old_roots_apart(roots)
        self.stats.total_all = sum(root.files for root in self._known(roots)) or None
        self.stats.phase_is(1, "hashes")
        scans = []
        for path in roots:
            scan = self._scan_root(plan, path, roots)
            if scan is not None:
                scans.append(scan)
        if self.control.keep_going():
            self.cache.forget_former()
            self._describe(plan, scans)
            self._full_hashes(plan, scans)
        return self.control.keep_going()

    def _known(self, roots: list) -> list:
        return [root for root in map(self.cache.roots.at_path, roots) if root is not None]

    def _reclassify(self, plan) -> None:
        fingerprint = plan.classifier.fingerprint
        if self.cache.get_meta("classifier") != fingerprint:
            changed = self.cache.reclassify(
                lambda path: plan.kind_of(path.rpartition("/")[2]))
            if changed:
                log.info("%d files got another kind from the settings", changed)
                self.on_stored()
            self.cache.set_meta("classifier", fingerprint)

    def _take_old_roots_apart(self, roots: list) -> None:
        """A former root inside a present one: its files belong to the outer root now."""
        for root in self.cache.roots.all():
            inside = any(root.path.startswith(path.rstrip("/") + "/") for path in roots)
            if inside and root.path not in roots and not root.parked:
                self.cache.roots.take_apart(root)

    def _scan_root(self, plan, path: str, roots: list):
        """Pass 1 over one root: its RootScan, or None if it is away or was cut short."""
        if not self.control.keep_going():
            return None
        others = {os.path.realpath(to_native(other)) for other in roots if other != path}
        if self.cache.path:  # our own folder is no media, and changes with every scan
            others.add(os.path.dirname(os.path.realpath(self.cache.path)))
        scan = RootScan(self.cache, path, plan, self.stats, self.control, other_roots=others,
                        on_stored=self.on_stored, clock=self.clock,
                        known_at_host=self.known_at_host.get(path, 0))
        self.stats.root = path
        try:
            ended = scan.run()
        except RootOffline as reason:
            self._note_offline(path, scan, str(reason))
            return None
        self.infos[path] = scan.info
        self.offline.pop(path, None)
        if not ended:
            self.cache.roots.save(scan.root, state="online")
            return None
        self.on_stored()
        return scan

    def _note_offline(self, path: str, scan, reason: str) -> None:
        log.warning("%s is offline (%s); nothing of it changes", path, reason)
        self.offline[path] = reason
        if scan.info is not None:
            self.infos[path] = scan.info
        root = scan.root or self.cache.roots.at_path(path)
        if root is not None:
            self.cache.roots.save(root, state="offline", reason=reason)

    def _describe(self, plan, scans: list) -> None:
        waiting = sum(self.cache.waiting_count("probe", scan.root.id) for scan in scans)
        self.stats.total_videos = waiting
        if not waiting:
            return
        if plan.ffprobe is None:
            log.warning("ffprobe is not installed: %d videos wait for their description", waiting)
            return
        self.stats.phase_is(2, "ffprobe")
        self._pass(ProbePass, plan, scans)

    def _full_hashes(self, plan, scans: list) -> None:
        if not plan.full_hashes or not plan.in_window(self.clock()):
            return
        if any(self.cache.waiting_count("full", scan.root.id) for scan in scans):
            self.stats.phase_is(1, "full hashes")
            self._pass(FullHashPass, plan, scans)

    def _pass(self, kind, plan, scans: list) -> None:
        for scan in scans:
            if not self.control.keep_going():
                return
            self.stats.root = scan.path
            rev = self.cache.rev
            kind(self.cache, scan.root, scan.info, plan, self.stats, self.control,
                 on_stored=self.on_stored, clock=self.clock).run()
            if self.cache.rev != rev:
                self.cache.roots.finish(scan.root, scan.root.scan(), self.clock())
                self.on_stored()

    def waiting_for_hours(self, config: dict) -> bool:
        """Whether large files wait for the off-peak hours to be read whole."""
        return config["do_full_hash"] and any(
            self.cache.waiting_count("full", root.id) for root in self.cache.roots.all())

    def root_states(self) -> list | None:
        """The roots as hello reports them, from what the last scan saw: no disk is touched. None
        before the first look: a list without them would say that they are no roots any more.
        """
        if not self.looked:
            return None
        parked = [{"path": root.path, "state": "offline", "volume": root.volume,
                   "volume_path": root.volume_path, "fs": root.fs,
                   "reason": "another disk is at its place"}
                  for root in self.cache.roots.all() if root.parked]
        return [self._root_state(path) for path in self.roots] + parked

    def _root_state(self, path: str) -> dict:
        info = self.infos.get(path)
        root = self.cache.roots.at_path(path)
        reason = self.offline.get(path)
        scanning = self.stats.active and self.stats.root == path
        if reason is None and not scanning and root is not None and root.state == "offline":
            reason = root.reason
        state = "offline" if reason else "scanning" if scanning else "online"
        names = ("volume", "volume_path", "label", "fs", "rotational", "total_bytes", "free_bytes",
                 "fsid")
        known = {name: getattr(info, name, None) for name in names}
        if root is not None and (reason or info is None):
            known.update(volume=root.volume, volume_path=root.volume_path, fs=root.fs)
        return {"path": path, "state": state, "reason": reason, **known}
