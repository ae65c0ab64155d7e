"""Rows on their way from the scan to the host: just stored, so that nobody need read them again."""

from __future__ import annotations

from .cache_batch import PLAIN_RECORD_WIDTH
from .index_writer import FRESH_WIDTH

FEED_ROWS = 2000  # a delivery that is further behind reads the index


class FreshFeed:
    """The newest rows of a first scan, with numbers that follow one another. Guarded by the cache's
    lock.

    Every change of a row takes a new number, so the rows are those of the index as long as the last
    of them has the cache's highest. What changes rows without a number has to `clear` it.
    """

    def __init__(self):
        self._rows = []

    def add(self, rows: list) -> None:
        """What the transaction just committed has put in; see IndexWriter.fresh."""
        if self._rows and self._rows[-1][0] + 1 != rows[0][0]:
            self._rows = []
        self._rows += rows
        if len(self._rows) > FEED_ROWS:
            del self._rows[:-FEED_ROWS]

    def clear(self) -> None:
        self._rows = []

    def take(self, after_rev: int, limit: int, highest_rev: int) -> list:
        """Up to `limit` rows (of cache_batch.RECORD_COLUMNS) that follow on `after_rev`; [] when
        they have to be read from the index.
        """
        rows = self._rows
        if not rows or rows[-1][0] != highest_rev:
            self._rows = []
            return []
        start = after_rev + 1 - rows[0][0]
        if start < 0:
            return []
        taken = [(*row[:PLAIN_RECORD_WIDTH], row[FRESH_WIDTH] if len(row) > FRESH_WIDTH else None,
                  None, None) for row in rows[start:start + limit]]
        del rows[:start + limit]
        return taken
