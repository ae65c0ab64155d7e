"""How the C library keeps freed memory, for a program that strangers send large things to."""

from __future__ import annotations

import contextlib
import sys

try:
    import ctypes
except ImportError:
    ctypes = None

M_TRIM_THRESHOLD = -1  # of glibc's <malloc.h>
M_MMAP_THRESHOLD = -3
LARGE_BLOCK_BYTES = 4 << 20


def give_large_blocks_back() -> None:
    """From now on a large block goes back to the system when it is freed.

    By itself glibc takes the first large block that is freed for the usual size, and keeps that
    much and more in the heap of every thread that handled one: twice the memory under many large
    requests. Other C libraries do without this, and are left as they are.
    """
    if ctypes is None or not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        mallopt(M_TRIM_THRESHOLD, 2 * LARGE_BLOCK_BYTES)
