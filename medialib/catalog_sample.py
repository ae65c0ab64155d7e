"""Looking at some files from all over the catalogue, where looking at all would take too long."""

from __future__ import annotations

import math

from .catalog_filter import FileFilter
from .catalog_sections import narrowed

SAMPLE_BLOCK = 100  # file numbers; those of one folder lie close together


def spread_out(count: int):
    """The numbers below `count`, each once, such that any first part of them lies all over."""
    step = max(1, round(count * 0.618))
    while math.gcd(step, count) != 1:
        step += 1
    for number in range(count):
        yield number * step % count


def sampled_rows(pages, filter_: FileFilter, columns: str, meta: bool):
    """(which part of all files has been looked at, the rows of it that match as
    `pages.matching` yields them), block by block, until there is none left.
    """
    last = pages.db.execute("SELECT value FROM counter WHERE name = 'file'").fetchone()[0]
    blocks = -(-last // SAMPLE_BLOCK)
    # By number, whatever index the filter would have: each would be read through for every block.
    source = [("file f NOT INDEXED CROSS JOIN folder d ON d.id = f.folder", ())]
    for seen, block in enumerate(spread_out(blocks), 1):
        inside = narrowed(filter_, f"f.id > {block * SAMPLE_BLOCK}"
                                   f" AND f.id <= {(block + 1) * SAMPLE_BLOCK}")
        yield seen / blocks, pages.matching(inside, source, columns, meta)
