"""The names in one huge folder, in less than half of the memory of a list of them."""

from __future__ import annotations

import bisect
import collections
import heapq

from .scan_common import to_native, to_text

NAMES_BLOCK_BYTES = 1 << 16


class PackedNames:
    """Native names, given in any order, to be gone through in the order of their text.

    They lie one behind the other as UTF-8, whose byte order is that of the text, in blocks. `add`
    lists of them, then `sort` once. Whether a text name is `in` it can be asked then; names close
    to one another are best asked for together.
    """

    def __init__(self):
        self._count = 0
        self._runs = []  # deques of blocks, each run in order for itself
        self._blocks = []  # all in order
        self._first_names = []  # of the blocks
        self._opened = (None, frozenset())  # (number of a block, its names)

    def add(self, names: list) -> None:
        self._count += len(names)
        self._runs.append(collections.deque(
            blocks_of(sorted(to_text(name).encode("utf-8") for name in names))))

    def sort(self) -> None:
        """A block of the runs is let go when the last of its names is in its place."""
        runs, self._runs = self._runs, []
        for block in blocks_of(heapq.merge(*map(names_of_run, runs))):
            self._blocks.append(block)
            self._first_names.append(block[:block.find(b"\0")] if b"\0" in block else block)

    def __len__(self) -> int:
        return self._count

    def __iter__(self):
        for block in self._blocks:
            for name in block.split(b"\0"):
                yield to_native(name.decode("utf-8"))

    def __contains__(self, text: str) -> bool:
        name = text.encode("utf-8")
        number = bisect.bisect_right(self._first_names, name) - 1
        if number < 0:
            return False
        if self._opened[0] != number:
            self._opened = (number, frozenset(self._blocks[number].split(b"\0")))
        return name in self._opened[1]


def blocks_of(names):
    """Yield the names, in their order, joined to blocks: no name holds a NUL."""
    block, size = [], 0
    for name in names:
        block.append(name)
        size += len(name) + 1
        if size >= NAMES_BLOCK_BYTES:
            yield b"\0".join(block)
            block, size = [], 0
    if block:
        yield b"\0".join(block)


def names_of_run(run: collections.deque):
    while run:
        yield from run.popleft().split(b"\0")
