"""Counts beside a list of files: how many there are of each kind, codec, machine, age.

Filters on machine, root, kind, extension, junk reason and state are answered from the sums that are
kept with the rows, whatever the number of files. Others look at rows, for a bounded time: what was
not reached by then is estimated from what was, and the answer says "approximate".
"""

from __future__ import annotations

import json
import math
import time

from .catalog_files import FilePages
from .catalog_filter import RESOLUTION_SQL, FileFilter, FilterError
from .catalog_propose import MANY_FILES, proposed_files
from .catalog_sample import sampled_rows
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

FACET_TIME_S = 0.03  # how long rows are counted before what is left is estimated
FACET_TIME_MOST_S = 10.0
LEAST_BLOCKS = 60  # however slow the machine is
SAMPLE_DIGITS = 2  # of an estimate
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


class FacetSums:
    """Files and bytes by value, of several columns at once."""

    def __init__(self, columns: int):
        self.sums: list = [{} for _ in range(columns)]

    def add(self, row: tuple) -> None:
        """A row of these columns and the size."""
        size = row[len(self.sums)]
        for value, sums in zip(row, self.sums):
            entry = sums.get(value)
            if entry is None:
                sums[value] = [1, size]
            else:
                entry[0] += 1
                entry[1] += size

    def told(self, keys: list, factor: float) -> dict:
        """{key: {value: (files, bytes)}}; a factor other than 1 makes them round numbers."""
        def scaled(number: int) -> int:
            return number if factor == 1.0 else rounded(number * factor)

        return {key: {value: (scaled(files), scaled(size)) for value, (files, size) in sums.items()}
                for key, sums in zip(keys, self.sums)}


def rounded(number: float) -> int:
    """An estimate with as many digits as it is worth."""
    if number < 1:
        return 0
    unit = 10 ** max(0, math.floor(math.log10(number)) + 1 - SAMPLE_DIGITS)
    return round(number / unit) * unit


def patience_of(body: dict) -> float:
    """How long may be counted before it is estimated, as the one who asks wants it."""
    patience_s = body.get("patience_s", FACET_TIME_S)
    if type(patience_s) not in (int, float) or not 0 < patience_s <= FACET_TIME_MOST_S:
        raise FilterError(f"patience_s must be a number above 0, at most {FACET_TIME_MOST_S:g}")
    return patience_s


def keys_by_filter(raw: dict, keys: list):
    """(filter, the keys it counts). A key is counted without what is asked of it, so that the
    alternatives stay in sight; None, the total, with everything.
    """
    own = [key for key in dict.fromkeys(keys) if key in raw or (key == "age" and "mtime" in raw)]
    yield raw, [None, *(key for key in dict.fromkeys(keys) if key not in own)]
    for key in own:
        name = "mtime" if key == "age" else key
        yield {other: value for other, value in raw.items() if other != name}, [key]


class FacetCounts:
    """POST /api/facets for one request."""

    def __init__(self, catalog, db):
        self.db = db
        self.pages = FilePages(catalog, db)
        self.words = self.pages.words
        self.now_week = int(catalog.clock()) // WEEK_S
        self.patience_s = FACET_TIME_S
        self.approximate = False

    def answer(self, body: dict) -> dict:
        raw, keys = body.get("filter") or {}, body.get("keys", [])
        if not isinstance(raw, dict):
            raise FilterError("filter must be an object")
        if not isinstance(keys, list) or not all(
                isinstance(key, str) and key in FACET_COLUMNS for key in keys):
            raise FilterError(f"keys must be of {', '.join(FACET_COLUMNS)}")
        limit = page_limit(body, 30)
        self.patience_s = patience_of(body)
        sums: dict = {}
        for others, some in keys_by_filter(raw, keys):
            sums.update(self._sums(self.pages.reader.read(others), some))
        files, size = sums[None].get(None, (0, 0))
        return {"total": {"files": files, "bytes": size}, "approximate": self.approximate,
                "facets": {key: self._shown(key, sums[key], limit) for key in dict.fromkeys(keys)}}

    # -- counting --------------------------------------------------------------------------------

    def _sums(self, filter_: FileFilter, keys: list) -> dict:
        """{key: {value: (files, bytes)}}; of the key None {None: …}, the total."""
        sums, left = {}, []
        for key in keys:
            if filter_.plain <= TALLY_KEYS and (key is None or key in TALLY_KEYS):
                sums[key] = self._from_sums("tally", filter_, FACET_COLUMNS.get(key, "NULL"), "1")
            elif key in FIELD_KEYS and filter_.plain <= {"agent", "root", "state"}:
                sums[key] = self._from_sums("facet", filter_, "f.value",
                                            f"f.field = {FIELD_KEYS[key]}")
            else:
                left.append(key)
        return {**sums, **(self._from_rows(filter_, left) if left else {})}

    def _from_sums(self, table: str, filter_: FileFilter, column: str, condition: str) -> dict:
        """The sums' rows have the columns the filter is about; `reason` 0 stands for none."""
        reason = ", nullif(reason, 0) AS reason_or_none" if table == "tally" else ""
        where = filter_.where().replace("d.root", "f.root").replace("f.reason", "f.reason_or_none")
        column = column.replace("d.root", "f.root").replace("f.reason", "f.reason_or_none")
        rows = self.db.execute(
            f"SELECT {column}, sum(f.files), sum(f.bytes) FROM (SELECT *{reason} FROM {table}) f"
            f" WHERE {condition} AND {where} GROUP BY 1", filter_.values)
        return {value: (files, size) for value, files, size in rows if files}

    def _from_rows(self, filter_: FileFilter, keys: list) -> dict:
        """All keys in one look at the rows: all that can match where they are few, else as many as
        there is time for, from all over the catalogue.
        """
        columns = [FACET_COLUMNS.get(key, "NULL") for key in keys]
        meta = filter_.needs_meta or any(one.startswith(("m.", "CASE")) for one in columns)
        told = ", ".join([*columns, "f.size"])
        room = MANY_FILES if self.patience_s > FACET_TIME_S else 0
        proposed = proposed_files(self.db, filter_, self.pages.searchable, room)
        counts = FacetSums(len(keys))
        if proposed is not None:
            for row in self.pages.matching(filter_, proposed, told, meta):
                counts.add(row)
            return counts.told(keys, 1.0)
        return counts.told(keys, self._look_around(filter_, told, meta, counts))

    def _look_around(self, filter_: FileFilter, told: str, meta: bool, counts: FacetSums) -> float:
        """How many times as many files the catalogue has as were looked at."""
        end_at = time.monotonic() + self.patience_s
        for blocks, part, rows in sampled_rows(self.pages, filter_, told, meta):
            for row in rows:
                counts.add(row)
            if part < 1 and blocks >= LEAST_BLOCKS and time.monotonic() > end_at:
                self.approximate = True
                return 1 / part
        return 1.0

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
