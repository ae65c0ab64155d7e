"""Counts beside a list of files: how many there are of each kind, codec, machine, age.

Filters on machine, root, kind, extension, junk reason and state are answered from the sums that are
kept with the rows, whatever the number of files. Others count rows, for a bounded time: `total` and
`facets` then say "approximate" and hold what could be counted.
"""

from __future__ import annotations

import collections
import json
import time

from .catalog_files import FilePages
from .catalog_filter import RESOLUTION_SQL, FileFilter, FilterError
from .catalog_propose import proposed_files
from .catalog_schema import (
    FACET_AUDIO_CODEC,
    FACET_CONTAINER,
    FACET_RESOLUTION,
    FACET_VIDEO_CODEC,
    FACET_WEEK,
    KIND_NAMES,
    RESOLUTION_CLASSES,
    STATE_MISSING,
)
from .catalog_tallies import WEEK_NS
from .catalog_tokens import page_limit
from .sqlite_store import sqlite3

FACET_TIME_S = 1.5
WEEK_S = 7 * 86400
FACET_COLUMNS = {
    "kind": "f.kind", "ext": "f.ext", "reason": "f.reason", "state": "d.root * 2 + f.state",
    "agent": "d.root", "root": "d.root", "age": f"f.mtime_ns / {WEEK_NS} - (f.mtime_ns < 0)",
    "video_codec": "m.video_codec", "audio_codec": "m.audio_codecs", "container": "m.container",
    "resolution": f"CASE WHEN m.height IS NOT NULL THEN {RESOLUTION_SQL} END",
}
TALLY_KEYS = {"kind", "ext", "reason", "state", "agent", "root"}
FIELD_KEYS = {"age": FACET_WEEK, "video_codec": FACET_VIDEO_CODEC, "container": FACET_CONTAINER,
              "audio_codec": FACET_AUDIO_CODEC, "resolution": FACET_RESOLUTION}
AGE_CLASSES = (  # weeks up to which it goes, counted from this one
    (1, "this week"), (5, "this month"), (53, "this year"), (105, "1-2 years"),
    (261, "2-5 years"), (522, "5-10 years"), (None, "older"),
)


class FacetCounts:
    """POST /api/facets for one request."""

    def __init__(self, catalog, db):
        self.db = db
        self.pages = FilePages(catalog, db)
        self.words = self.pages.words
        self.now_week = int(catalog.clock()) // WEEK_S
        self.end_at = time.monotonic() + FACET_TIME_S
        self.approximate = False

    def answer(self, body: dict) -> dict:
        raw, keys = body.get("filter") or {}, body.get("keys", [])
        if not isinstance(raw, dict):
            raise FilterError("filter must be an object")
        if not isinstance(keys, list) or not all(
                isinstance(key, str) and key in FACET_COLUMNS for key in keys):
            raise FilterError(f"keys must be of {', '.join(FACET_COLUMNS)}")
        limit = page_limit(body, 30)
        total = self._sums(raw, None)
        files, size = total.get(None, (0, 0))
        facets = {}
        for key in dict.fromkeys(keys):
            others = {name: value for name, value in raw.items() if name != key}
            facets[key] = self._shown(key, self._sums(others, key), limit)
        return {"total": {"files": files, "bytes": size}, "facets": facets,
                "approximate": self.approximate}

    # -- counting --------------------------------------------------------------------------------

    def _sums(self, raw: dict, key: str | None) -> dict:
        """{value: (files, bytes)}; with no key {None: …}, the total."""
        filter_ = self.pages.reader.read(raw)
        if filter_.plain <= TALLY_KEYS and (key is None or key in TALLY_KEYS):
            return self._from_sums("tally", filter_, FACET_COLUMNS.get(key, "NULL"), "1")
        if key in FIELD_KEYS and filter_.plain <= {"agent", "root", "state"}:
            return self._from_sums("facet", filter_, "f.value", f"f.field = {FIELD_KEYS[key]}")
        return self._from_rows(filter_, key)

    def _from_sums(self, table: str, filter_: FileFilter, column: str, condition: str) -> dict:
        """The sums' rows have the columns the filter is about; `reason` 0 stands for none."""
        reason = ", nullif(reason, 0) AS reason_or_none" if table == "tally" else ""
        where = filter_.where().replace("d.root", "f.root").replace("f.reason", "f.reason_or_none")
        column = column.replace("d.root", "f.root").replace("f.reason", "f.reason_or_none")
        rows = self.db.execute(
            f"SELECT {column}, sum(f.files), sum(f.bytes) FROM (SELECT *{reason} FROM {table}) f"
            f" WHERE {condition} AND {where} GROUP BY 1", filter_.values)
        return {value: (files, size) for value, files, size in rows if files}

    def _from_rows(self, filter_: FileFilter, key: str | None) -> dict:
        proposed = proposed_files(self.db, filter_, self.pages.searchable)
        column = FACET_COLUMNS.get(key, "NULL")
        meta = filter_.needs_meta or column.startswith(("m.", "CASE"))
        sums: dict = collections.defaultdict(lambda: [0, 0])
        if proposed is not None:
            seen = set()
            for row in self.pages.matching(filter_, proposed, column, meta):
                if row[1] not in seen:
                    seen.add(row[1])
                    self._add(sums, row[0], 1, row[6])
        elif filter_.words:
            self._by_looking(sums, filter_, column, meta)
        else:
            self._by_grouping(sums, filter_, column, meta)
        return {value: tuple(entry) for value, entry in sums.items()}

    def _add(self, sums: dict, value, files: int, size: int) -> None:
        entry = sums[value]
        entry[0] += files
        entry[1] += size

    def _by_looking(self, sums, filter_, column, meta) -> None:
        """Words can only be found by looking at every path."""
        source = [("file f JOIN folder d ON d.id = f.folder", ())]
        for number, row in enumerate(self.pages.matching(filter_, source, column, meta)):
            self._add(sums, row[0], 1, row[6])
            if number % 200 == 0 and time.monotonic() > self.end_at:
                self.approximate = True
                return

    def _by_grouping(self, sums, filter_, column, meta) -> None:
        join = "LEFT JOIN metadata m ON m.file = f.id" if meta else ""
        if filter_.needs_meta:
            source = "metadata m CROSS JOIN file f ON f.id = m.file"
            join = ""
        else:
            source = "file f"
        # SQLite calls this every so often; a true answer ends the statement.
        self.db.set_progress_handler(lambda: time.monotonic() > self.end_at, 20_000)
        try:
            rows = self.db.execute(
                f"SELECT {column}, count(*), sum(f.size) FROM {source} JOIN folder d ON"
                f" d.id = f.folder {join} WHERE {filter_.where()} GROUP BY 1",
                filter_.values).fetchall()
        except sqlite3.OperationalError as error:
            if "interrupted" not in str(error):
                raise
            self.approximate = True
            return
        finally:
            self.db.set_progress_handler(None, 0)
        for value, files, size in rows:
            self._add(sums, value, files, size)

    # -- showing ---------------------------------------------------------------------------------

    def _shown(self, key: str, sums: dict, limit: int) -> list:
        if key == "age":
            return self._ages(sums)
        merged: dict = {}
        for value, (files, size) in sums.items():
            if value is None:
                continue
            for item in self._items(key, value):
                entry = merged.setdefault(json.dumps(item), {**item, "files": 0, "bytes": 0})
                entry["files"] += files
                entry["bytes"] += size
        items = sorted(merged.values(), key=lambda item: (-item["files"], str(item["value"])))
        return items[:limit]

    def _items(self, key: str, value: int) -> list:
        """What a number of a column stands for; a list of audio codecs stands for several."""
        roots, agents = self.pages.reader.roots, self.pages.shower.agents
        if key == "kind":
            return [{"value": KIND_NAMES[value]}]
        if key == "state":
            root = roots[value // 2]
            if value % 2 == STATE_MISSING:
                return [{"value": "missing"}]
            return [{"value": "offline" if root.state == "offline" else "present"}]
        if key == "agent":
            agent = agents[roots[value].agent]
            return [{"value": agent["id"], "label": agent["name"]}]
        if key == "root":
            root, agent = roots[value], agents[roots[value].agent]
            return [{"value": root.path, "label": f"{agent['name']}: {root.path}",
                     "filter": {"agent": agent["id"], "root": root.path}}]
        if key == "resolution":
            return [{"value": dict(RESOLUTION_CLASSES)[value]}]
        if key == "audio_codec":
            return [{"value": codec} for codec in sorted(set(json.loads(self.words[value])))]
        return [{"value": self.words[value]}]

    def _ages(self, sums: dict) -> list:
        """Newest first; the bounds are whole weeks, as the sums are."""
        items, newest = [], None
        for weeks, name in AGE_CLASSES:
            oldest = None if weeks is None else self.now_week - weeks + 1
            inside = [entry for week, entry in sums.items() if week is not None
                      and (oldest is None or week >= oldest)
                      and (newest is None or week < newest)]
            bounds = {}
            if oldest is not None:
                bounds["min"] = oldest * WEEK_S
            if newest is not None:
                bounds["max"] = newest * WEEK_S - 1e-6
            if inside:
                items.append({"value": name, "files": sum(entry[0] for entry in inside),
                              "bytes": sum(entry[1] for entry in inside),
                              "filter": {"mtime": bounds}})
            newest = oldest
        return items
