"""The catalogue in numbers, from the sums that are kept with the rows; `file` is not looked at."""

from __future__ import annotations

import datetime

from .catalog_roots import read_roots
from .catalog_schema import (
    GROUP_CANDIDATE,
    GROUP_CONFIRMED,
    KIND_NAMES,
    STATE_MISSING,
    STATE_PRESENT,
)

SUMMARY_TOP = 100


def catalog_summary(db, words: dict, library_id: str) -> dict:
    """The answer of POST /api/summary, without the agents."""
    roots = read_roots(db)
    offline = [root for root in roots if root.state == "offline"]
    return {
        "library_id": library_id,
        "files": sum(root.files for root in roots), "bytes": sum(root.bytes for root in roots),
        "missing": sum(root.missing for root in roots),
        "missing_bytes": sum(root.missing_bytes for root in roots),
        "offline": sum(root.files for root in offline),
        "offline_bytes": sum(root.bytes for root in offline),
        "seq": db.execute("SELECT value FROM counter WHERE name = 'seq'").fetchone()[0],
        "kinds": kind_counts(db), **extension_counts(db, words), "duplicates": duplicate_counts(db),
    }


def counted(files: int, size: int) -> dict:
    return {"files": files, "bytes": size}


def kind_counts(db) -> dict:
    """{kind: {"files", "bytes"}} of present files (unplugged disks included)."""
    rows = db.execute("SELECT kind, sum(files), sum(bytes) FROM tally WHERE state = ?"
                      " GROUP BY kind", (STATE_PRESENT,)).fetchall()
    return {KIND_NAMES[kind]: counted(files, size) for kind, files, size in rows}


def extension_counts(db, words: dict) -> dict:
    """The largest of each: extensions with their kind, junk reasons, types that are not known."""
    rows = db.execute("SELECT ext, kind, sum(files), sum(bytes) FROM tally WHERE state = ?"
                      " GROUP BY ext, kind ORDER BY 4 DESC, 3 DESC", (STATE_PRESENT,)).fetchall()
    extensions = [{"ext": words[ext], "kind": KIND_NAMES[kind], **counted(files, size)}
                  for ext, kind, files, size in rows]
    junk = db.execute("SELECT reason, sum(files), sum(bytes) FROM tally WHERE state = ? AND"
                      " reason > 0 GROUP BY reason ORDER BY 3 DESC LIMIT ?",
                      (STATE_PRESENT, SUMMARY_TOP)).fetchall()
    return {
        "extensions": extensions[:SUMMARY_TOP],
        "unknown_extensions": [one for one in extensions if one["kind"] == "unknown"][:SUMMARY_TOP],
        "junk_reasons": [{"reason": words[reason], **counted(files, size)}
                         for reason, files, size in junk],
    }


def duplicate_counts(db) -> dict:
    totals = {row[0]: row[1:] for row in db.execute(
        "SELECT state, groups, files, reclaimable, potential FROM duplicate_total")}
    confirmed, candidate = totals[GROUP_CONFIRMED], totals[GROUP_CANDIDATE]
    return {
        "confirmed_groups": confirmed[0], "confirmed_files": confirmed[1],
        "reclaimable_bytes": confirmed[2], "candidate_groups": candidate[0],
        "candidate_files": candidate[1], "candidate_bytes": candidate[3],
        "counting": db.execute("SELECT 1 FROM duplicate_due LIMIT 1").fetchone() is not None,
    }


def daily_rows(db, limit: int = 400) -> list:
    """The growth of the catalogue, one row for each day it was looked at, oldest first."""
    names = ("day", "files", "bytes", "missing", "reclaimable")
    rows = db.execute(f"SELECT {', '.join(names)} FROM daily ORDER BY day DESC LIMIT ?",
                      (limit,)).fetchall()
    return [dict(zip(names, row)) for row in reversed(rows)]


def local_day(now: float) -> str:
    return datetime.datetime.fromtimestamp(now).strftime("%Y-%m-%d")


def note_daily_totals(db, now: float) -> None:
    """Write today's row of the growth chart."""
    day = local_day(now)
    files, size, missing = db.execute(
        "SELECT coalesce(sum(files), 0), coalesce(sum(bytes), 0), coalesce(sum(missing), 0)"
        " FROM root").fetchone()
    reclaimable = db.execute("SELECT reclaimable FROM duplicate_total WHERE state = ?",
                             (GROUP_CONFIRMED,)).fetchone()[0]
    db.execute("INSERT OR REPLACE INTO daily VALUES (?, ?, ?, ?, ?)",
               (day, files, size, missing, reclaimable))


def root_kind_counts(db, root_id: int) -> dict:
    """{state: {kind: {"files", "bytes"}}} of one root."""
    found: dict = {"present": {}, "missing": {}}
    for state, kind, files, size in db.execute(
            "SELECT state, kind, sum(files), sum(bytes) FROM tally WHERE root = ?"
            " GROUP BY state, kind", (root_id,)):
        name = "missing" if state == STATE_MISSING else "present"
        found[name][KIND_NAMES[kind]] = counted(files, size)
    return found
