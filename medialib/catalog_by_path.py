"""Files in the order of the walk: root by root, folder by folder."""

from __future__ import annotations

import heapq
import time

from .catalog_filter import FilterError
from .catalog_places import FoundRow, found_place
from .catalog_roots import CatalogRoot
from .catalog_tokens import decode_token, encode_token
from .catalog_words import PathWords

LAST_NAME = "\U0010ffff"


def name_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


class PathWalk:
    """The files of one filter by path; `pages` is the request's FilePages."""

    def __init__(self, pages, filter_, order: str):
        self.pages = pages
        self.db = pages.db
        self.filter = filter_
        self.reverse = order == "desc"
        self.words = PathWords(filter_.words, pages.reader.roots)
        self.roots = sorted(filter_.roots.values(), reverse=self.reverse,
                            key=lambda root: (root.path.split("/"), root.id))

    def find(self, proposed, after, limit: int) -> tuple:
        """([FoundRow], next token or None)."""
        position = self.position_of(after)
        if proposed is not None:
            return self._candidates(proposed, position, limit)
        return self._walked(position, limit)

    def position_of(self, after) -> tuple | None:
        """(root, key, name, id) of a token, and `roots` without those before it."""
        if after is None:
            return None
        root_id, key_text, name, file_id = decode_token(after, 4)
        numbers = [root.id for root in self.roots]
        try:
            self.roots = self.roots[numbers.index(root_id):]
            return root_id, bytes.fromhex(key_text), name, file_id
        except (TypeError, ValueError):
            raise FilterError("after does not belong to this question") from None

    def _candidates(self, proposed, position, limit) -> tuple:
        rank = {root.id: number for number, root in enumerate(self.roots)}
        if self.reverse:
            rank = {root: -number for root, number in rank.items()}
        rows = [row for row in self.pages.matching(self.filter, proposed, "0",
                                                   self.filter.needs_meta) if row[-2] in rank]

        def place(row):
            return rank[row[-2]], row[-1], name_bytes(row[-3]), row[-4]

        if position is not None:
            last = (rank[position[0]], position[1], name_bytes(position[2]), position[3])
            rows = [row for row in rows
                    if (place(row) < last if self.reverse else place(row) > last)]
        pick = heapq.nlargest if self.reverse else heapq.nsmallest
        ordered = pick(limit + 1, rows, key=place)
        files = [found_place(row) for row in ordered[:limit]]
        return files, path_token(files[-1]) if len(ordered) > limit else None

    def _walked(self, position, limit) -> tuple:
        files = []
        for root, folder_id, key, after in self._folders(position):
            for found in self._files_in(root, folder_id, key, after):
                files.append(found)
                if len(files) == limit:
                    return files, path_token(found)
            if time.monotonic() > self.pages.end_at:
                return files, folder_end_token(root.id, key, self.reverse)
        return files, None

    def _folders(self, position):
        """(root, folder id, key, (name, id) to go on behind or None)."""
        for root in self.roots:
            behind = position[1] if position is not None and position[0] == root.id else None
            for folder_id, key, _ in self.folders_of(root, behind):
                here = behind is not None and key == behind
                yield root, folder_id, key, position[2:] if here else None

    def folders_of(self, root: CatalogRoot, behind: bytes | None = None):
        """(id, key, present files in it) of the folders in question, from one of them on."""
        than, direction = ("<", "DESC") if self.reverse else (">", "ASC")
        first, end = next((part[1:] for part in self.filter.under or () if part[0] == root.id),
                          (b"", b"\xff"))
        condition, values = "", ()
        if behind is not None:
            condition, values = f" AND key {than}= ?", (behind,)
        return self.db.execute(
            f"SELECT id, key, files FROM folder WHERE root = ? AND key >= ? AND key < ?{condition}"
            f" ORDER BY key {direction}", (root.id, first, end, *values))

    def _files_in(self, root: CatalogRoot, folder_id, key, after):
        """Present and missing files of one folder, by name, that match."""
        than, direction = ("<", "DESC") if self.reverse else (">", "ASC")
        condition, values = "", ()
        if after is not None:
            condition = f" AND f.name {than}= ? AND (f.name {than} ? OR f.id {than} ?)"
            values = (after[0], after[0], after[1])
        join = " JOIN metadata m ON m.file = f.id" if self.filter.needs_meta else ""
        parts = [self.db.execute(
            f"SELECT 0, f.id, f.name, d.root, d.key FROM file f INDEXED BY {index}"
            f" CROSS JOIN folder d ON d.id = f.folder{join}"
            f" WHERE f.folder = ? AND f.state = {state}{condition} AND {self.filter.where()}"
            f" ORDER BY f.name {direction}, f.id {direction}",
            (folder_id, *values, *self.filter.values))
            for index, state in (("file_path", 0), ("file_missing", 1))
            if not state or root.missing]
        for row in heapq.merge(*parts, key=lambda one: (name_bytes(one[2]), one[1]),
                               reverse=self.reverse):
            if self.words.match(*row[-3:]):
                yield found_place(row)


def path_token(found: FoundRow) -> str:
    return encode_token(found.root, found.key.hex(), found.name, found.id)


def folder_end_token(root_id: int, key: bytes, reverse: bool) -> str:
    """Where a folder ends in the list."""
    return encode_token(root_id, key.hex(), "" if reverse else LAST_NAME, 0)
