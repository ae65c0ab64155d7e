"""How memory is kept and given back, for programs that run for a long time."""

from __future__ import annotations

import contextlib
import gc
import sys

from .late import ctypes

M_TRIM_THRESHOLD = -1  # of glibc's <malloc.h>
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
LARGE_BLOCK_BYTES = 4 << 20
# Heaps for all threads together. glibc would give each thread one of its own, and each keeps what
# its thread freed; Python's lock lets few of them allocate at once.
ARENAS = 2
# A batch makes some thousands of objects, which no cycle holds: Python, left to itself, would look
# for cycles after every 700 of them, a twelfth of the host's work and a twentieth of the agent's.
OBJECTS_PER_COLLECTION = 20_000


def give_large_blocks_back() -> None:
    """From now on a large block goes back to the system when it is freed.

    By itself glibc takes the first large block that is freed for the usual size, and keeps that
    much and more in the heap of every thread that handled one: twice the memory under many large
    requests.
    """
    call_c_library("mallopt", M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
    call_c_library("mallopt", M_TRIM_THRESHOLD, 2 * LARGE_BLOCK_BYTES)


def settle_memory() -> None:
    """Call it when the program is loaded, before its threads are many: what was needed for that
    alone goes back to the system, and what is there now stays, so that the garbage collector need
    not look through it again. It looks through what comes later less often than Python has it, and
    later threads share the heaps that there are.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS_PER_COLLECTION)
    call_c_library("mallopt", M_ARENA_MAX, ARENAS)
    call_c_library("malloc_trim", 0)


def call_c_library(name: str, *numbers: int) -> None:
    """Call a function of glibc. Other C libraries do without these, and are left as they are."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(ImportError, OSError, AttributeError):
            getattr(ctypes.CDLL(None), name)(*numbers)
