"""A leash for a child process: when we die, however we die, the kernel kills its whole group.

The child holds the reading end of a pipe on which nothing is ever written, and we its only writing
end. When that is closed, by our end too, Linux signals the owner of the reading end, which is the
child's group, with the signal that was chosen for it: SIGKILL. No helper process, nothing that runs
between fork and exec, and no number that could meanwhile be somebody else's: the kernel remembers
the group itself. Systems other than Linux have no such choice; there a leash does nothing.
"""

from __future__ import annotations

import os
import signal

from .app_folder import fcntl


class Leash:
    """Made before the child, which inherits `pass_fds`; `tie` it, and `drop` it in any case."""

    def __init__(self):
        self._ours, self._childs = None, None
        if hasattr(fcntl, "F_SETSIG"):
            self._childs, self._ours = os.pipe()

    @property
    def pass_fds(self) -> tuple:
        return () if self._childs is None else (self._childs,)

    def tie(self, group: int) -> None:
        """From now on the group does not outlive us."""
        if self._childs is None:
            return
        fcntl.fcntl(self._childs, fcntl.F_SETOWN, -group)
        fcntl.fcntl(self._childs, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(self._childs, fcntl.F_GETFL)
        fcntl.fcntl(self._childs, fcntl.F_SETFL, flags | os.O_ASYNC)
        os.close(self._childs)  # the child has its own, with the same owner
        self._childs = None

    def drop(self) -> None:
        """Let go: what is left of a tied group is killed."""
        for descriptor in (self._ours, self._childs):
            if descriptor is not None:
                os.close(descriptor)
        self._ours = self._childs = None
