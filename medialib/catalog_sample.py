"""Looking at some files from all over the catalogue, where looking at all would take too long."""

from __future__ import annotations

import itertools
import math

from .catalog_filter import FileFilter
from .catalog_sections import narrowed

SAMPLE_BLOCK = 100  # file numbers; those of one folder lie close together
BLOCKS_AT_ONCE = 20  # by one statement: beside a busy thread each waits for its turn several times


def spread_out(count: int):
    """The numbers below `count`, each once, such that any first part of them lies all over."""
    step = max(1, round(count * 0.618))
    while math.gcd(step, count) != 1:
        step += 1
    for number in range(count):
        yield number * step % count


def sampled_rows(pages, filter_: FileFilter, columns: str, meta: bool):
    """(how many blocks have been looked at, which part of all files that is, the rows of the latest
    that match as `pages.matching` yields them), some blocks at a time, until there is none left.
    """
    last = pages.db.execute("SELECT value FROM counter WHERE name = 'file'").fetchone()[0]
    blocks = -(-last // SAMPLE_BLOCK)
    inside = narrowed(filter_, f"f.id > block.column1 AND f.id <= block.column1 + {SAMPLE_BLOCK}")
    order, seen = spread_out(blocks), 0
    while seen < blocks:
        starts = [number * SAMPLE_BLOCK for number in itertools.islice(order, BLOCKS_AT_ONCE)]
        seen += len(starts)
        # By number, whatever index the filter would have: each would be read through for each block
        source = (f"(VALUES {', '.join(['(?)'] * len(starts))}) block"
                  " CROSS JOIN file f NOT INDEXED CROSS JOIN folder d ON d.id = f.folder")
        yield seen, seen / blocks, pages.matching(inside, [(source, starts)], columns, meta)
