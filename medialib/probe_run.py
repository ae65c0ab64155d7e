"""One run of a program we do not trust: its own group, a deadline, bounded output, no remains.

Nothing of it is left when the run is over, and nothing when we are killed before that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import threading
import time

from .late import selectors, subprocess
from .leash import Leash

PROBE_MESSAGES_BYTES = 16 << 10  # as much of stderr as is looked at
PROBE_LOOK_S = 0.25  # how often a running probe asks whether it is to stop
PROBE_NICE = 19
_PROBE_ENVIRONMENT = (  # what programs need to start; no proxies, no settings of ffmpeg
    "PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "SYSTEMDRIVE", "TEMP", "TMP",
)
_PROBE_BAD_TEXT = re.compile(r"[\x00\ud800-\udfff]")


class ProbeFailed(Exception):
    """One file could not be described. `error_class` is one of:

    timeout, crashed, invalid (output), too much output, not a video, refused format, unreadable,
    missing (no ffprobe any more), not started, stopped (by us).
    """

    def __init__(self, error_class: str, message: str):
        super().__init__(f"{error_class}: {message}")
        self.error_class = error_class
        self.message = message


def clean_probe_text(text: str) -> str:
    """Valid Unicode without NUL, whatever a program wrote."""
    return _PROBE_BAD_TEXT.sub("\ufffd", text)


class ProbeRun:
    """One run of a program we do not trust. `finish` gives the run with its output, or raises.

    On return nothing is left of it: no process of its group, no zombie, no descriptor.
    """

    def __init__(self, command: list, deadline_s: float, max_output: int,
                 stop: threading.Event | None):
        self.deadline = time.monotonic() + deadline_s
        self.deadline_s = deadline_s
        self.max_output = max_output
        self.stop = stop
        self.output = bytearray()
        self.messages = bytearray()
        self.seen_messages = 0  # in bytes, also of what was not kept
        self.exit_code = None
        self.process, self.leash = _start_probe(command)

    def finish(self) -> ProbeRun:
        process = self.process
        try:
            if hasattr(os, "killpg"):
                self._read_with_selector()
            else:
                self._read_with_threads()
            self._await_exit()
        finally:
            self._end_group()
            self.leash.drop()
            process.stdout.close()
            process.stderr.close()
            self.exit_code = process.wait()
        return self

    def take(self, data: bytes, is_output: bool) -> None:
        """Keep what was read; raise when it is more than anybody needs."""
        if is_output:
            self.output += data
        else:
            self.seen_messages += len(data)
            self.messages += data[:max(0, PROBE_MESSAGES_BYTES - len(self.messages))]
        if len(self.output) > self.max_output or self.seen_messages > self.max_output:
            raise ProbeFailed("too much output", f"more than {self.max_output} bytes")

    def check_time(self) -> float:
        """Seconds until the next look; raises when the time is over."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise ProbeFailed("timeout", f"no answer within {self.deadline_s:g} s")
        if self.stop is not None and self.stop.is_set():
            raise ProbeFailed("stopped", "the scan is stopping")
        return min(left, PROBE_LOOK_S)

    def _read_with_selector(self) -> None:
        with selectors.DefaultSelector() as selector:
            for pipe in (self.process.stdout, self.process.stderr):
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe.fileno(), selectors.EVENT_READ, pipe is self.process.stdout)
            while selector.get_map():
                for key, _ in selector.select(self.check_time()):
                    try:
                        data = os.read(key.fd, 1 << 16)
                    except BlockingIOError:
                        continue
                    if data:
                        self.take(data, key.data)
                    else:
                        selector.unregister(key.fd)

    def _read_with_threads(self) -> None:
        """For Windows, where pipes cannot be waited for."""
        failures = []

        def drain(pipe, is_output: bool) -> None:
            with contextlib.suppress(OSError, ValueError):
                try:
                    for data in iter(lambda: os.read(pipe.fileno(), 1 << 16), b""):
                        self.take(data, is_output)
                except ProbeFailed as failure:
                    failures.append(failure)

        readers = [
            threading.Thread(target=drain, args=(self.process.stdout, True), daemon=True),
            threading.Thread(target=drain, args=(self.process.stderr, False), daemon=True),
        ]
        for reader in readers:
            reader.start()
        while any(reader.is_alive() for reader in readers) and not failures:
            readers[0].join(min(self.check_time(), 0.02))
            readers[1].join(0.02)
        if failures:
            raise failures[0]

    def _await_exit(self) -> None:
        """Wait for the exit of a process that closed its pipes, without reaping it yet: as long as
        it is there its group number cannot be somebody else's.
        """
        pause = 0.0005
        while not self._has_ended():
            time.sleep(min(pause, self.check_time()))
            pause = min(pause * 2, 0.05)

    def _has_ended(self) -> bool:
        if not hasattr(os, "waitid"):
            return self.process.poll() is not None
        flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
        return os.waitid(os.P_PID, self.process.pid, flags) is not None

    def _end_group(self) -> None:
        """Kill whatever is left of the group, children that ignore SIGTERM included."""
        if self.process.returncode is not None:
            return
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()


def _start_probe(command: list) -> tuple:
    """(process, its leash): it does not outlive us, not even when we are killed."""
    kept = {name: os.environ[name] for name in _PROBE_ENVIRONMENT if name in os.environ}
    windows_flags = (
        getattr(subprocess, "IDLE_PRIORITY_CLASS", 0) | getattr(subprocess, "CREATE_NO_WINDOW", 0)
    )
    leash = None
    try:
        leash = Leash()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            bufsize=0, env={**kept, "LC_ALL": "C", "AV_LOG_FORCE_NOCOLOR": "1"},
            start_new_session=True, creationflags=windows_flags, pass_fds=leash.pass_fds,
        )
    except (OSError, ValueError) as error:
        if leash:
            leash.drop()
        gone = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.EPERM)
        is_missing = getattr(error, "errno", None) in gone
        message = clean_probe_text(f"ffprobe cannot be started: {error}")
        raise ProbeFailed("missing" if is_missing else "not started", message) from None
    with contextlib.suppress(OSError):  # without it, the process would only live on after us
        leash.tie(process.pid)
    if hasattr(os, "setpriority"):
        with contextlib.suppress(OSError):  # it may be over already
            os.setpriority(os.PRIO_PROCESS, process.pid, PROBE_NICE)
    return process, leash
