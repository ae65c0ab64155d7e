"""Lists sorted by what has few values: kind, extension, state, machine, codec, container, reason.

No index has these rows in order. The values are few and known from the sums, so the list is made of
one section for each value, and each section is walked in an order that an index has. A list sorted
by what only some files have holds only these, as one sorted by duration does.
"""

from __future__ import annotations

import dataclasses
import json
from typing import NamedTuple

from .catalog_filter import FileFilter, FilterError
from .catalog_places import SortKey
from .catalog_propose import files_by_id, proposed_files
from .catalog_schema import (
    FACET_AUDIO_CODEC,
    FACET_CONTAINER,
    FACET_VIDEO_CODEC,
    KIND_CODES,
    KIND_NAMES,
    STATE_MISSING,
    STATE_PRESENT,
)
from .catalog_tokens import decode_token, encode_token

SECTION_COLUMNS = {  # the value of a row, by which its section is found
    "kind": "f.kind", "ext": "f.ext", "reason": "f.reason", "state": "d.root * 2 + f.state",
    "agent": "d.root", "video_codec": "m.video_codec", "audio_codec": "m.audio_codecs",
    "container": "m.container",
}
SECTION_FIELDS = {"video_codec": FACET_VIDEO_CODEC, "audio_codec": FACET_AUDIO_CODEC,
                  "container": FACET_CONTAINER}
SECTION_SORTS = tuple(SECTION_COLUMNS)
SECTION_STATES = ("missing", "offline", "present")


class Section(NamedTuple):
    """The rows of one value. `number` stands for it in tokens, `values` are those of the column;
    `sort` is the order within.
    """

    number: int
    label: str
    values: frozenset
    filter: FileFilter
    sort: object


def narrowed(filter_: FileFilter, condition: str, values=(), **changes) -> FileFilter:
    """The filter with one condition more; "1" is none."""
    if condition == "1":
        return dataclasses.replace(filter_, **changes)
    return dataclasses.replace(filter_, conditions=[*filter_.conditions, condition],
                               values=[*filter_.values, *values], **changes)


def within_roots(filter_: FileFilter, numbers, condition: str = "1", **changes) -> FileFilter:
    """The filter limited to some of its roots."""
    roots = {number: filter_.roots[number] for number in numbers}
    if filter_.all_roots and len(roots) == len(filter_.roots):
        return narrowed(filter_, condition, **changes)
    inside = narrowed(filter_, f"d.root IN ({','.join('?' * len(roots))})", roots, roots=roots,
                      all_roots=False)
    return narrowed(inside, condition, **changes)


class SectionWalk:
    """The files of one filter in such an order; `pages` is the request's FilePages."""

    def __init__(self, pages, filter_: FileFilter, sort: str, order: str):
        self.pages = pages
        self.db = pages.db
        self.filter = filter_
        self.sort = sort
        self.order = order
        maker = {"kind": self._kinds, "state": self._states, "agent": self._agents}
        sections = maker.get(sort, self._words)()
        self.sections = sorted(sections, key=lambda one: (one.label, one.number),
                               reverse=order == "desc")

    # -- sections --------------------------------------------------------------------------------

    def _kinds(self):
        for kind in self.filter.kinds:
            yield Section(kind, KIND_NAMES[kind], frozenset([kind]), narrowed(
                self.filter, "f.kind = ?", [kind], kinds=[kind],
                plain=self.filter.plain | {"kind"}), "name")

    def _states(self):
        offline = {root.id for root in self.filter.roots.values() if root.state == "offline"}
        online = set(self.filter.roots) - offline
        missing = {root.id for root in self.filter.roots.values() if root.missing}
        present = f"f.state = {STATE_PRESENT}" if missing else "1"
        parts = (
            (missing, STATE_MISSING, f"f.state = {STATE_MISSING}", {"missing_only": True}),
            (offline, STATE_PRESENT, present, {}), (online, STATE_PRESENT, present, {}))
        for number, (label, (roots, code, condition, changes)) in enumerate(
                zip(SECTION_STATES, parts)):
            if roots and (self.filter.states is None or label in self.filter.states):
                yield Section(number, label, frozenset(root * 2 + code for root in roots),
                              within_roots(self.filter, roots, condition, **changes), "name")

    def _agents(self):
        agents: dict = {}
        for root in self.filter.roots.values():
            agents.setdefault(root.agent, []).append(root.id)
        for number, roots in agents.items():
            name = self.pages.shower.agents[number]["name"].lower()
            yield Section(number, name, frozenset(roots), within_roots(self.filter, roots), "path")

    def _words(self):
        """Sections of what is kept as a number of a word."""
        column, words = SECTION_COLUMNS[self.sort], self.pages.words
        for number in self._word_numbers():
            changes: dict = {}
            sort: object = "name"
            if self.sort == "ext":
                changes = {"exts": [number], "plain": self.filter.plain | {"ext"}}
                sort = SortKey("ext", "f.id", "file_ext", pin=("f.ext = ?", (number,)))
            elif self.sort == "reason":
                changes = {"kinds": [KIND_CODES["junk"]], "plain": self.filter.plain | {"kind"}}
            else:
                changes = {"needs_meta": True}
                sort = SortKey(self.sort, "m.file", meta=True, pin=(f"{column} = ?", (number,)))
            label = words[number]
            if self.sort == "audio_codec":  # several, as a JSON list
                label = " ".join(json.loads(label))
            yield Section(number, label, frozenset([number]),
                          narrowed(self.filter, f"{column} = ?", [number], **changes), sort)

    def _word_numbers(self) -> list:
        roots = self.filter.roots
        marks = ",".join("?" * len(roots))
        if self.sort in SECTION_FIELDS:
            rows = self.db.execute(
                f"SELECT DISTINCT value FROM facet WHERE field = ? AND root IN ({marks})",
                (SECTION_FIELDS[self.sort], *roots))
        else:
            rows = self.db.execute(
                f"SELECT DISTINCT {self.sort} FROM tally WHERE root IN ({marks})", tuple(roots))
        numbers = [row[0] for row in rows.fetchall() if row[0] or self.sort != "reason"]
        wanted = self.filter.numbers.get(self.sort)
        return numbers if wanted is None else [one for one in numbers if one in wanted]

    # -- pages -----------------------------------------------------------------------------------

    def find(self, after, limit: int) -> tuple:
        """([FoundRow], next token or None)."""
        sections, inner = self._from(after)
        candidates = self._candidates()
        files: list = []
        for section in sections:
            proposed = None
            if candidates is not None:
                proposed = files_by_id(self._ids_of(candidates, section))
                if not proposed:
                    inner = None
                    continue
            found, inner = self.pages.find_sorted(section.filter, section.sort, self.order, inner,
                                                  limit - len(files), proposed=proposed)
            files += found
            if inner is not None:
                return files, encode_token(section.number, inner)
            if len(files) == limit and section is not sections[-1]:
                return files, encode_token(section.number, "end")
        return files, None

    def _from(self, after) -> tuple:
        """(the sections from that place on, the place in the first of them)."""
        if after is None:
            return self.sections, None
        number, inner = decode_token(after, 2)
        for position, section in enumerate(self.sections):
            if section.number == number:
                if inner == "end":
                    return self.sections[position + 1:], None
                return self.sections[position:], inner
        raise FilterError("after does not belong to this question")

    def _candidates(self) -> dict | None:
        """{value: [file numbers]} where few can match at all."""
        proposed = proposed_files(self.db, self.filter, self.pages.searchable)
        if proposed is None:
            return None
        column = SECTION_COLUMNS[self.sort]
        found: dict = {}
        for row in self.pages.matching(self.filter, proposed, column,
                                       self.filter.needs_meta or column.startswith("m.")):
            found.setdefault(row[0], []).append(row[1])
        return found

    def _ids_of(self, candidates: dict, section: Section) -> list:
        return [one for value in section.values for one in candidates.get(value, ())]
