"""Exports: everything a filter matches, streamed as CSV or JSON lines, in constant memory."""

from __future__ import annotations

import csv
import io
import json

from .catalog import Catalog
from .catalog_copies import DuplicatePages
from .catalog_files import FilePages
from .catalog_filter import FilterError
from .catalog_same_folders import SameFolders
from .catalog_tokens import PAGE_LIMIT
from .http_json import StreamReply
from .server_turns import ListTurns

EXPORT_COLUMNS = (
    "id", "agent", "root", "path", "name", "kind", "ext", "size", "mtime", "ctime", "inode_key",
    "state", "reason", "algo", "sample_size", "sample_hash", "full_hash", "duration", "container",
    "video_codec", "audio_codecs", "width", "height", "bitrate", "first_seen", "changed",
)
GROUP_COLUMNS = ("group", "group_state", "copies", "names", "reclaimable", "copy")
SAME_FOLDER_COLUMNS = ("group", "group_state", "copies", "files", "bytes", "reclaimable",
                       "potential", "agent", "root", "path", "state")
EXPORT_WHATS = {"files": EXPORT_COLUMNS, "duplicates": (*GROUP_COLUMNS, *EXPORT_COLUMNS),
                "folders": SAME_FOLDER_COLUMNS}
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
EXPORT_PATIENCE_S = 120.0  # a stream that has begun is not given up for other lists
EXPORT_TYPES = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}


def neutral_cell(value):
    """A text that a spreadsheet would take for a formula gets a quote in front; numbers stay."""
    if isinstance(value, str) and value.startswith(FORMULA_STARTS):
        return "'" + value
    return value


def flat_file(file: dict) -> dict:
    """A file as one line of a table."""
    hashes, metadata = file["hashes"] or {}, file["metadata"] or {}
    return {**{name: file.get(name) for name in EXPORT_COLUMNS}, **{
        name: hashes.get(name) for name in ("algo", "sample_size", "sample_hash", "full_hash")},
        **{name: metadata.get(name) for name in
           ("duration", "container", "video_codec", "width", "height", "bitrate")},
        "audio_codecs": " ".join(metadata.get("audio_codecs") or []),
        "agent": file["agent"]["name"]}


class CsvLines:
    """Rows as RFC 4180 lines. `raw` leaves cells as they are, for machines."""

    def __init__(self, columns: tuple, raw: bool):
        self.columns = columns
        self.raw = raw
        self._text = io.StringIO(newline="")
        self._writer = csv.writer(self._text, lineterminator="\r\n")

    def head(self) -> bytes:
        return self._line(self.columns)

    def row(self, values: dict) -> bytes:
        cells = (values.get(name) for name in self.columns)
        return self._line([cell if self.raw else neutral_cell(cell) for cell in cells])

    def _line(self, cells) -> bytes:
        self._text.seek(0)
        self._text.truncate()
        self._writer.writerow(cells)
        return self._text.getvalue().encode("utf-8")


class Export:
    """POST /api/export for one request. Each page is read in a transaction of its own, so that a
    slow reader does not keep the catalogue's log from being folded back, and is text before the
    reader gets it, so that a slow one does not keep the rows.
    """

    def __init__(self, catalog: Catalog, same_folders: SameFolders, turns: ListTurns, body: dict):
        self.catalog = catalog
        self.same_folders = same_folders
        self.turns = turns
        self.body = body
        self.format = body.get("format", "csv")
        if not isinstance(self.format, str) or self.format not in EXPORT_TYPES:
            raise FilterError("format must be csv or jsonl")
        self.what = body.get("what", "files")
        if not isinstance(self.what, str) or self.what not in EXPORT_WHATS:
            raise FilterError("what must be files, duplicates or folders")
        self.lines = CsvLines(EXPORT_WHATS[self.what], bool(body.get("raw")))
        with turns.holding():  # a wrong filter is refused before anything is sent
            self._first = self._piece(None)

    def reply(self) -> StreamReply:
        what = "identical-folders" if self.what == "folders" else self.what
        name = f"medialib-{what}.{self.format}"
        return StreamReply(self._pieces(), EXPORT_TYPES[self.format],
                           {"Content-Disposition": f'attachment; filename="{name}"'})

    def _pieces(self):
        if self.format == "csv":
            yield self.lines.head()
        (piece, after), self._first = self._first, (b"", None)
        while True:
            yield piece
            if after is None:
                return
            with self.turns.holding(EXPORT_PATIENCE_S):
                piece, after = self._piece(after)

    def _piece(self, after) -> tuple:
        """(text of the page after this place, the place after it)"""
        items, after = self._page(after)
        return b"".join(self._lines(items)), after

    def _lines(self, items: list):
        for item in items:
            if self.format == "jsonl":
                yield json.dumps(item, ensure_ascii=False).encode("utf-8") + b"\n"
            elif self.what == "files":
                yield self.lines.row(flat_file(item))
            elif self.what == "folders":
                for folder in item["folders"]:
                    yield self.lines.row(same_folder_cells(item, folder))
            else:
                for file in item["files"]:
                    yield self.lines.row({**flat_file(file), **group_cells(item, file)})

    def _page(self, after) -> tuple:
        if self.what == "folders":
            answer = self.same_folders.page({**self.body, "after": after, "limit": PAGE_LIMIT})
            return answer["groups"], answer["next"]
        with self.catalog.reader() as db:
            pages = FilePages(self.catalog, db, time_s=5.0)
            if self.what == "duplicates":
                groups = DuplicatePages(db, pages.words, pages.reader)
                return groups.page({**self.body, "after": after, "limit": 100}, highest=100)
            answer = pages.page({
                "filter": self.body.get("filter"), "sort": self.body.get("sort") or "path",
                "order": self.body.get("order"), "limit": PAGE_LIMIT, "after": after})
            return answer["files"], answer["next"]


def group_cells(group: dict, file: dict) -> dict:
    return {"group": group["hash"], "group_state": group["state"], "copies": group["copies"],
            "names": group["names"], "reclaimable": group["reclaimable"], "copy": file["copy"]}


def same_folder_cells(group: dict, folder: dict) -> dict:
    """One of several folders with the same files; what they have in common names the group."""
    first = group["folders"][0]
    return {**{name: group[name] for name in ("copies", "files", "bytes", "reclaimable",
                                              "potential")},
            "group": f"{first['agent']['name']}:{first['path']}", "group_state": group["state"],
            "agent": folder["agent"]["name"], "root": folder["root"], "path": folder["path"],
            "state": folder["state"]}
