"""Places in sorted lists: what is compared, which index leads there, and the rows at them."""

from __future__ import annotations

from dataclasses import dataclass

from .catalog_filter import FilterError
from .catalog_rows import FILE_COLUMNS_OF_F, FileRow

PLACE_CHUNK = 500


@dataclass(frozen=True)
class SortKey:
    """One way to sort. `column` is what is compared; rows of one value of it go by their number.
    `index` leads with f.kind when `by_kind`, and with what `pin` (condition, values) holds fixed.
    """

    name: str
    column: str
    index: str = ""
    by_kind: bool = False
    collate: str = ""
    meta: bool = False
    pin: tuple = ()

    def key_of(self, value):
        """A Python value that compares as SQLite compares the column."""
        if self.collate:
            return value.encode("utf-8", "surrogatepass").lower()
        return value

    def checked(self, after: list) -> list:
        """The [value, number] of a token; FilterError where they are no place in this list."""
        value, number = after
        fits = isinstance(value, str) if self.collate else type(value) in (int, float)
        if not fits or type(number) is not int:
            raise FilterError("after does not belong to this sort")
        return after

    def pins(self, filter_) -> list:
        """[(condition, values)]: in each of these the index has the order of the list."""
        if self.by_kind:
            return [("f.kind = ?", (kind,)) for kind in filter_.kinds]
        if self.pin:
            return [self.pin]
        return [(f"{self.column} IS NOT NULL" if self.meta else "1", ())]

    def parts_behind(self, order: str, pin: tuple, after) -> list:
        """[(condition, values)] that together are what comes after `after`, in this order."""
        base, values = pin
        if after is None:
            return [(base, values)]
        than = "<" if order == "desc" else ">"
        row_id = "m.file" if self.meta else "f.id"
        if self.column == row_id:
            return [(f"{base} AND {row_id} {than} ?", (*values, after[1]))]
        return [
            (f"{base} AND {self.column} = ?{self.collate} AND {row_id} {than} ?",
             (*values, after[0], after[1])),
            (f"{base} AND {self.column} {than} ?{self.collate}", (*values, after[0])),
        ]

    def source(self, *, bare: bool) -> tuple:
        """(FROM …, the row's number) where the sort's index comes first."""
        index = f"INDEXED BY {self.index}" if self.index else "NOT INDEXED"
        if self.meta:
            joined = " CROSS JOIN file f ON f.id = m.file CROSS JOIN folder d ON d.id = f.folder"
            return f"metadata m {index}{'' if bare else joined}", "m.file"
        return f"file f {index}{'' if bare else ' CROSS JOIN folder d ON d.id = f.folder'}", "f.id"


SORT_KEYS = {
    key.name: key for key in (
        SortKey("name", "f.name", "file_name", by_kind=True, collate=" COLLATE NOCASE"),
        SortKey("size", "f.size", "file_size", by_kind=True),
        SortKey("mtime", "f.mtime_ns", "file_mtime", by_kind=True),
        SortKey("changed", "f.seq", "file_seq"),
        SortKey("first_seen", "f.id"),
        SortKey("duration", "m.duration", "metadata_duration", meta=True),
        SortKey("height", "m.height", "metadata_height", meta=True),
        SortKey("bitrate", "m.bitrate", "metadata_bitrate", meta=True),
    )
}


@dataclass
class FoundRow:
    """A row's place: `at` is its sort value. `root` 0 marks how far a walk came. `row` is None
    until `whole_rows` has fetched it.
    """

    at: object
    id: int
    name: str = ""
    root: int = 0
    key: bytes = b""
    row: FileRow | None = None


def found_place(row: tuple) -> FoundRow:
    """Of (sort value, id, name, root, key)."""
    return FoundRow(*row)


def whole_rows(db, places: list) -> list:
    """The same places with their rows."""
    rows = {}
    for start in range(0, len(places), PLACE_CHUNK):
        ids = [one.id for one in places[start:start + PLACE_CHUNK]]
        for row in db.execute(f"SELECT {FILE_COLUMNS_OF_F} FROM file f WHERE f.id IN"
                              f" ({','.join('?' * len(ids))})", ids):
            rows[row[0]] = FileRow(*row)
    for one in places:
        one.row = rows[one.id]
    return places
