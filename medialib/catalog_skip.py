"""Far places of a sorted list: the row behind so many others, found in the sort's own index.

The page's scroll bar needs this; everything else goes from page to page by `next`.
"""

from __future__ import annotations

import time

from .catalog_filter import FilterError
from .sqlite_store import sqlite3

SKIP_MOST = 1 << 40
SKIP_TIME_S = 3.0
SKIP_STEPS = 20_000  # SQLite asks after so many steps whether it is to stop


def skip_count(body: dict) -> int:
    skip = body.get("skip") or 0
    if type(skip) is not int or not 0 <= skip <= SKIP_MOST:
        raise FilterError("skip must be a whole number that is not negative")
    return skip


def can_skip(filter_) -> bool:
    """Words are compared outside of SQL: only a list of candidates can be counted through then."""
    return not filter_.words


def skipped_place(pages, key, filter_, order: str, after, skip: int) -> tuple:
    """(whether it was found in time, [sort value, row number] of the last row that is skipped, or
    None where the list ends before it).
    """
    direction = "DESC" if order == "desc" else "ASC"
    parts, values = [], []
    for kind in (filter_.kinds if key.by_kind else [None]):
        for condition, own in pages.window_parts(key, order, kind, after):
            statement, bound = _skip_part(pages, key, filter_, condition)
            parts.append(statement)
            values += [*own, *bound]
    # SQLite merges the parts as their indexes yield them; nothing is sorted or kept.
    statement = (" UNION ALL ".join(parts) + f" ORDER BY v{key.collate} {direction}, i {direction}"
                 " LIMIT 1 OFFSET ?")
    return _within_time(pages.db, statement, (*values, skip - 1))


def _skip_part(pages, key, filter_, condition: str) -> tuple:
    """(SELECT of one range of the index, the filter's values)."""
    bare = filter_.plain <= {"kind"} and filter_.all_roots
    source, row_id = pages.source_of(key, bare=bare)
    columns = f"SELECT {key.column} AS v, {row_id} AS i FROM {source}"
    if bare:
        return f"{columns} WHERE {condition}", ()
    join = " JOIN metadata m ON m.file = f.id" if filter_.needs_meta and not key.meta else ""
    return f"{columns}{join} WHERE {condition} AND {filter_.where()}", filter_.values


def _within_time(db, statement: str, values) -> tuple:
    end = time.monotonic() + SKIP_TIME_S
    db.set_progress_handler(lambda: time.monotonic() > end, SKIP_STEPS)
    try:
        row = db.execute(statement, values).fetchone()
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        return False, None
    finally:
        db.set_progress_handler(None, 0)
    return True, row
