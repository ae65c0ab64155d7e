"""What a scan shows a person: one live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import os
import threading
import time

from .late import shutil

TERMINAL_INTERVAL_S = 0.5
PLAIN_INTERVAL_S = 30.0


def human_bytes(count: float) -> str:
    """12.3 GB in steps of 1024, three digits at most."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    """45 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def progress_text(answer: dict) -> str:
    """One line about a running scan, from /agent/stats' answer. No percentage while counting."""
    parts = [answer["phase_name"]]
    if answer["phase"] == 2:
        parts.append(f"{answer['seen_videos']} of {answer['total_videos']} videos")
    else:
        parts.append(f"{answer['seen']:,} files")
        parts.append(f"{answer['rate_files_per_s']:,.0f}/s")
    if answer["data_mib"]:
        parts.append(f"{human_bytes(answer['data_mib'] * 2**20)} read")
    if answer["eta_s"] is not None:
        parts.append(f"about {human_seconds(answer['eta_s'])} left")
    if answer["file_errors"]:  # that the host is away is said apart
        parts.append(f"{answer['file_errors']} errors")
    if not answer["host_reachable"]:
        parts.append(f"host away, {answer['outbox']} batches wait")
    if (answer["idle_s"] or 0) > 10:
        parts.append(f"no progress for {human_seconds(answer['idle_s'])}")
    return " · ".join(parts)


def summary_text(answer: dict) -> str:
    """What the scan came to, in a few plain words."""
    parts = [f"{answer['seen']:,} files in {human_seconds(answer['elapsed'])}"]
    changed = answer["seen"] - answer["unchanged"]
    parts.append(f"{changed:,} new or changed" if changed else "nothing changed")
    for name, words in (("moved", "moved"), ("removed", "removed"), ("file_errors", "errors")):
        if answer[name]:
            parts.append(f"{answer[name]:,} {words}")
    if answer["data_mib"]:
        parts.append(f"{human_bytes(answer['data_mib'] * 2**20)} read")
    return ", ".join(parts)


class ProgressLine:
    """Shows `describe()` (the stats answer) on `stream` while a scan is active."""

    def __init__(self, stream, describe, *, quiet: bool = False):
        self.stream = stream
        self.describe = describe
        self.quiet = quiet
        self.on_terminal = stream.isatty()
        self.colour = self.on_terminal and not os.environ.get("NO_COLOR")
        self._stop = threading.Event()
        self._drawn = False
        self._was_active = False
        self._thread = threading.Thread(target=self._loop, name="progress", daemon=True)

    def start(self) -> None:
        if not self.quiet:
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(1.0)
        self._clear()

    def _loop(self) -> None:
        last_plain = time.monotonic()
        while not self._stop.wait(TERMINAL_INTERVAL_S):
            answer = self.describe()
            if self.on_terminal and answer["active"]:
                self._draw(progress_text(answer))
            elif answer["active"] and time.monotonic() - last_plain >= PLAIN_INTERVAL_S:
                last_plain = time.monotonic()
                self._write(progress_text(answer) + "\n")
            elif self._was_active and not answer["active"]:
                self._clear()
            self._was_active = answer["active"]

    def _draw(self, text: str) -> None:
        text = text[:max(20, shutil.get_terminal_size().columns - 1)]
        if self.colour:
            text = f"\x1b[36m{text}\x1b[0m"
        self._write(f"\r{text}\x1b[K")
        self._drawn = True

    def _clear(self) -> None:
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):
            self._stop.set()  # the terminal is gone; the work goes on
