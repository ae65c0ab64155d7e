"""Being asked to end: SIGINT, SIGTERM and SIGHUP."""

from __future__ import annotations

import os
import signal
import threading


def catch_stop_signals(caught, stop) -> None:
    """At each such signal `caught(number)` runs in the main thread, between any two of its steps,
    and `stop()` in a thread of its own.

    `stop` sets events, and setting one takes its lock: where the main thread was just about to wait
    for that event, it held the lock itself, and the program hung for ever instead of ending.
    """
    reader, writer = os.pipe()  # for as long as the program runs
    if hasattr(os, "set_blocking"):
        os.set_blocking(writer, False)

    def handler(number, _frame) -> None:
        caught(number)

    def watch() -> None:
        while os.read(reader, 1):
            stop()

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handler)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch, name="signals", daemon=True).start()
