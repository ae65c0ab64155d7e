"""Whether a file's path holds all words of a search."""

from __future__ import annotations

from .catalog_rows import rel_of_key

FOLDER_TEXTS = 4096  # kept at a time


class PathWords:
    """The words of one filter. Most are found in the name; what stands above it is put together
    once for each folder.
    """

    def __init__(self, words: list, roots: dict):
        self.words = words
        self.roots = roots
        self._above: dict = {}

    def match(self, name: str, root_id: int, key: bytes) -> bool:
        low = name.lower()
        left = [word for word in self.words if word not in low]
        if not left:
            return True
        path = self._text_above(root_id, key) + low
        return all(word in path for word in left)

    def _text_above(self, root_id: int, key: bytes) -> str:
        text = self._above.get((root_id, key))
        if text is None:
            if len(self._above) >= FOLDER_TEXTS:
                self._above.clear()
            path = self.roots[root_id].path_of(rel_of_key(key)).lower()
            text = path if path.endswith("/") else path + "/"
            self._above[root_id, key] = text
        return text
