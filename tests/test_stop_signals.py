"""Being asked to end, at the worst moment too."""

from __future__ import annotations

import subprocess
import sys

from tests import support

AT_THE_WORST_MOMENT = """
import os, signal, threading
from medialib.stop_signals import catch_stop_signals
event, seen = threading.Event(), []
catch_stop_signals(seen.append, event.set)
with event._cond:  # as the main thread does on its way into event.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000):
        pass
    assert seen == [signal.SIGTERM]
assert event.wait(60)
print("ended")
"""


def test_asked_to_end_while_it_begins_to_wait():
    for python in (support.oldest_python(), sys.executable, support.newest_python()):
        done = subprocess.run([python, "-c", AT_THE_WORST_MOMENT], cwd=str(support.ROOT),
                              capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout == "ended\n", done.stderr
