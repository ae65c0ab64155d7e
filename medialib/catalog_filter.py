"""The filter of `POST /api/files` and its like: JSON in, conditions on the tables out."""

from __future__ import annotations

from dataclasses import dataclass, field

from .base import UsageError
from .catalog_roots import CatalogRoot, read_roots
from .catalog_rows import INT64_MAX, clamped_ns, folder_key_bytes
from .catalog_schema import (
    FLAG_ERROR,
    FLAG_PROBED,
    HASH_PREFIX_BYTES,
    KIND_CODES,
    RESOLUTION_CLASSES,
    STATE_MISSING,
    STATE_PRESENT,
)
from .catalog_search import search_words
from .catalog_word_sql import WordFolders, word_conditions
from .ingest_records import HEX_DIGITS, is_clean_text
from .scan_common import normal_extension
from .settings import normal_root_path

FILTER_VALUES = 500
FILE_STATES = ("present", "missing", "offline")
COPIES_SQL = (
    "coalesce((SELECT max(g.copies) FROM duplicate g WHERE g.state = 1 AND g.size = f.size"
    " AND g.algo = f.algo AND g.hash = CASE WHEN f.flags & 1 THEN f.sample_hash"
    " ELSE f.full_hash END), 1)"
)
HASH_SQL = (
    f"((substr(f.sample_hash, 1, {HASH_PREFIX_BYTES}) = ? AND f.sample_hash = ?)"
    f" OR (substr(f.full_hash, 1, {HASH_PREFIX_BYTES}) = ? AND f.full_hash = ?))"
)


_LINES_SQL = "max(m.height, coalesce(m.width, 0) * 9 / 16)"
RESOLUTION_SQL = "CASE " + " ".join(
    f"WHEN {_LINES_SQL} >= {bound} THEN {bound}" for bound, _ in RESOLUTION_CLASSES) + " END"


class FilterError(UsageError):
    """A filter, sort or limit that cannot be meant."""


@dataclass
class FileFilter:
    """Conditions on f (file), d (folder) and m (metadata, if `needs_meta`), all of which must hold,
    and words to be found in the path. `roots` are those a file may be in; `kinds`, `exts`,
    `missing_only`, `hash` and `under` tell how few rows can be in question.
    """

    roots: dict
    conditions: list = field(default_factory=list)
    values: list = field(default_factory=list)
    words: list = field(default_factory=list)
    kinds: list = field(default_factory=lambda: sorted(KIND_CODES.values()))
    exts: list | None = None
    missing_only: bool = False
    states: set | None = None  # of FILE_STATES, where not all are wanted
    numbers: dict = field(default_factory=dict)  # {key: the words' numbers that are wanted}
    hash: bytes | None = None
    under: list | None = None  # [(root id, key from, key to)]
    needs_meta: bool = False
    all_roots: bool = True
    plain: set = field(default_factory=set)  # names of the keys that were given

    def add(self, condition: str, *values) -> None:
        self.conditions.append(condition)
        self.values.extend(values)

    def add_under(self) -> None:
        parts = ["(d.root = ? AND d.key >= ? AND d.key < ?)" for _ in self.under]
        self.add("(" + (" OR ".join(parts) or "0") + ")",
                 *[value for part in self.under for value in part])

    def where(self) -> str:
        return " AND ".join(self.conditions) if self.conditions else "1"


class FilterReader:
    """Turns a JSON filter into a FileFilter; FilterError names the key that is wrong."""

    def __init__(self, db, words: dict, searchable: bool = False):
        self.db = db
        self.folders_with = WordFolders(db, searchable)
        self.word_ids = {text: number for number, text in words.items()}
        self.agents = {row[0]: row[1:] for row in
                       db.execute("SELECT id, agent_id, name FROM agent")}
        self.roots = {root.id: root for root in read_roots(db)}

    def read(self, raw) -> FileFilter:
        if raw is None:
            raw = {}
        if not isinstance(raw, dict):
            raise FilterError("filter must be an object")
        found = FileFilter(dict(self.roots))
        for key, value in raw.items():
            reader = _FILTER_KEYS.get(key)
            if reader is None:
                raise FilterError(f"filter has no key {key!r}; it knows "
                                  + ", ".join(sorted(_FILTER_KEYS)))
            if value is None or value == "" or value == []:
                continue
            found.plain.add(key)
            reader(self, found, key, value)
        self._limit_roots(found)
        for condition, values in word_conditions(found.words, found.roots, self.folders_with):
            found.add(condition, *values)
        return found

    def _limit_roots(self, found: FileFilter) -> None:
        if len(found.roots) < len(self.roots):
            found.all_roots = False
            marks = ",".join("?" * len(found.roots))
            found.add(f"d.root IN ({marks})", *found.roots)

    # -- keys ------------------------------------------------------------------------------------

    def read_words(self, found, key, value) -> None:
        if not is_clean_text(value) or len(value) > 1000:
            raise FilterError("filter.q must be a text of at most 1000 characters")
        found.words = search_words(value)

    def read_agent(self, found, key, value) -> None:
        wanted = set(self._texts(key, value))
        found.roots = {number: root for number, root in found.roots.items()
                       if not wanted.isdisjoint(self.agents[root.agent])}

    def read_root(self, found, key, value) -> None:
        values = value if isinstance(value, list) else [value]
        if not all(type(one) in (int, str) for one in values) or len(values) > FILTER_VALUES:
            raise FilterError("filter.root must be a root's path or number, or a list of them")
        found.roots = {number: root for number, root in found.roots.items()
                       if number in values or root.path in values}

    def read_under(self, found, key, value) -> None:
        path = normal_root_path(self._texts(key, value)[0])
        found.under = []
        for number, root in list(found.roots.items()):
            bounds = keys_under(root, path)
            if bounds is None:
                del found.roots[number]
            else:
                found.under.append((number, *bounds))
        found.add_under()

    def read_folder(self, found, key, value) -> None:
        """Files directly in one folder."""
        path = normal_root_path(self._texts(key, value)[0])
        found.under = []
        for number, root in list(found.roots.items()):
            bounds = keys_under(root, path) if (path + "/").startswith(root.path) else None
            if bounds is None:
                del found.roots[number]
            else:
                found.under.append((number, bounds[0], bounds[0] + b"\0"))
        parts = ["(d.root = ? AND d.key = ?)" for _ in found.under]
        found.add("(" + (" OR ".join(parts) or "0") + ")",
                  *[value for part in found.under for value in part[:2]])

    def read_resolution(self, found, key, value) -> None:
        bounds = {name: bound for bound, name in RESOLUTION_CLASSES}
        names = self._texts(key, value)
        if not set(names) <= set(bounds):
            raise FilterError(f"filter.resolution must be of {', '.join(bounds)}")
        found.needs_meta = True
        wanted = ",".join(str(bounds[name]) for name in names)
        found.add(f"m.height IS NOT NULL AND {RESOLUTION_SQL} IN ({wanted})")

    def read_kind(self, found, key, value) -> None:
        names = self._texts(key, value)
        for name in names:
            if name not in KIND_CODES:
                raise FilterError(f"filter.kind must be of {', '.join(KIND_CODES)}")
        found.kinds = sorted({KIND_CODES[name] for name in names})
        found.add(f"f.kind IN ({','.join('?' * len(found.kinds))})", *found.kinds)

    def read_ext(self, found, key, value) -> None:
        texts = [normal_extension(text) for text in self._texts(key, value, empty=True)]
        found.exts = [self.word_ids[text] for text in texts if text in self.word_ids]
        found.numbers[key] = found.exts
        found.add(f"f.ext IN ({','.join('?' * len(found.exts))})", *found.exts)

    def read_reason(self, found, key, value) -> None:
        self._read_word_column(found, "f.reason", key, value)

    def _read_word_column(self, found, column: str, key: str, value) -> None:
        numbers = [self.word_ids[text] for text in self._texts(key, value)
                   if text in self.word_ids]
        found.numbers[key] = numbers
        found.add(f"{column} IN ({','.join('?' * len(numbers))})", *numbers)

    def read_state(self, found, key, value) -> None:
        states = set(self._texts(key, value))
        if not states <= set(FILE_STATES):
            raise FilterError(f"filter.state must be of {', '.join(FILE_STATES)}")
        if states == set(FILE_STATES):
            return
        offline = [root.id for root in self.roots.values() if root.state == "offline"]
        marks = ",".join("?" * len(offline))
        parts, values = [], []
        for state in sorted(states):
            if state == "missing":
                parts.append(f"f.state = {STATE_MISSING}")
                continue
            inside = "IN" if state == "offline" else "NOT IN"
            parts.append(f"(f.state = {STATE_PRESENT} AND d.root {inside} ({marks}))")
            values += offline
        found.missing_only, found.states = states == {"missing"}, states
        if states == {"offline"}:
            found.roots = {number: root for number, root in found.roots.items()
                           if root.state == "offline"}
        found.add("(" + " OR ".join(parts) + ")", *values)

    def read_range(self, found, key, value) -> None:
        low, high = self._bounds(key, value)
        column = _RANGE_COLUMNS[key]
        if key == "mtime":
            low, high = (None if bound is None else clamped_ns(bound) for bound in (low, high))
        if column.startswith("m."):
            found.needs_meta = True
        if low is not None:
            found.add(f"{column} >= ?", low)
        if high is not None:
            found.add(f"{column} <= ?", high)

    def _bounds(self, key: str, value) -> tuple:
        if type(value) in (int, float):
            value = {"min": value, "max": value}
        if not isinstance(value, dict) or not set(value) <= {"min", "max"}:
            raise FilterError(f"filter.{key} must be {{\"min\", \"max\"}}")
        bounds = (value.get("min"), value.get("max"))
        for bound in bounds:
            if bound is not None and (type(bound) not in (int, float) or bound != bound
                                      or abs(bound) > INT64_MAX):
                raise FilterError(f"filter.{key} must have numbers as min and max")
        return bounds

    def read_video_codec(self, found, key, value) -> None:
        found.needs_meta = True
        self._read_word_column(found, "m.video_codec", key, value)

    def read_container(self, found, key, value) -> None:
        found.needs_meta = True
        self._read_word_column(found, "m.container", key, value)

    def read_audio_codec(self, found, key, value) -> None:
        """Files with one of these among their audio codecs, which are one word as a JSON list."""
        found.needs_meta = True
        quoted = [f'"{text}"' for text in self._texts(key, value)]
        lists = [number for text, number in self.word_ids.items()
                 if text.startswith("[") and any(one in text for one in quoted)]
        found.numbers[key] = lists
        found.add(f"m.audio_codecs IN ({','.join(map(str, lists))})")

    def read_hash(self, found, key, value) -> None:
        if not isinstance(value, str) or len(value) not in (16, 64) or not (
                HEX_DIGITS.issuperset(value)):
            raise FilterError("filter.hash must be 16 or 64 hexadecimal digits")
        found.hash = bytes.fromhex(value)
        prefix = found.hash[:HASH_PREFIX_BYTES]
        found.add(HASH_SQL, prefix, found.hash, prefix, found.hash)

    def read_probed(self, found, key, value) -> None:
        self._read_flag(found, key, value, FLAG_PROBED)

    def read_error(self, found, key, value) -> None:
        self._read_flag(found, key, value, FLAG_ERROR)

    def _read_flag(self, found, key, value, flag: int) -> None:
        if not isinstance(value, bool):
            raise FilterError(f"filter.{key} must be true or false")
        found.add(f"f.flags & {flag} {'<>' if value else '='} 0")

    def _texts(self, key: str, value, *, empty: bool = False) -> list:
        values = value if isinstance(value, list) else [value]
        if len(values) > FILTER_VALUES or not all(
                is_clean_text(text) and (text or empty) for text in values):
            raise FilterError(f"filter.{key} must be a text or a list of texts")
        return values


_RANGE_COLUMNS = {
    "size": "f.size", "mtime": "f.mtime_ns", "duration": "m.duration", "height": "m.height",
    "bitrate": "m.bitrate", "copies": COPIES_SQL, "first_seen": "f.first_seen",
    "changed": "f.changed",
}
_FILTER_KEYS = {
    "q": FilterReader.read_words, "agent": FilterReader.read_agent,
    "root": FilterReader.read_root, "under": FilterReader.read_under,
    "folder": FilterReader.read_folder, "resolution": FilterReader.read_resolution,
    "kind": FilterReader.read_kind, "ext": FilterReader.read_ext,
    "reason": FilterReader.read_reason, "state": FilterReader.read_state,
    "video_codec": FilterReader.read_video_codec, "audio_codec": FilterReader.read_audio_codec,
    "container": FilterReader.read_container, "hash": FilterReader.read_hash,
    "probed": FilterReader.read_probed, "error": FilterReader.read_error,
    **dict.fromkeys(_RANGE_COLUMNS, FilterReader.read_range),
}


def keys_under(root: CatalogRoot, path: str) -> tuple | None:
    """[from, to) of the keys of a root's folders at or below an absolute path, or None if none can
    be: the folder's own key, and those that go on with NUL.
    """
    above = path if path.endswith("/") else path + "/"
    if root.prefix().startswith(above):
        return b"", b"\xff"
    if not path.startswith(root.prefix()):
        return None
    key = folder_key_bytes(path[len(root.prefix()):])
    return key, key + b"\x01"
