"""What SQLite itself can tell of a search: conditions that every match fulfils.

Handing a row to Python costs many times what passing it in SQLite does, and waits for whatever else
runs in Python just then. So rows that cannot match are left out by SQLite; those that come out are
compared for certain by `PathWords`.
"""

from __future__ import annotations

import re

from .catalog_search import proposed_ids

FOLDERS_NAMED = 200  # with more folders than these a part is looked for in each folder's text
FOLDERS_LOOKED_AT = 200_000  # which takes as long as one short page
ASCII_RUN = re.compile(r"[\x01-\x7f]+")
# Two letters beyond ASCII become ASCII ones in lower case; SQLite leaves them as they are.
LATE_LETTERS = (("\u212a", "k"), ("\u0130", "i"))
FOLDER_TEXT = "CAST(d.key AS TEXT)"


def word_conditions(words: list, roots: dict, folders_with) -> list:
    """[(condition on f and d, values)] that hold for all files whose path holds the words. A part
    without "/" lies in one name: the file's, a folder's below the root, or one of the root's path.
    `folders_with(part)` are the numbers of those folders, None where they are many.
    """
    found = []
    for part in dict.fromkeys(part for word in words for part in word.split("/") if part):
        holding = [root.id for root in roots.values() if part in root.path.lower()]
        if len(holding) == len(roots):
            continue
        folders = folders_with(part)
        for run in ASCII_RUN.findall(part):
            ways = [name_condition(run)]
            if folders is None:
                ways.append(folder_condition(run))
            elif folders:
                ways.append((f"+f.folder IN ({','.join(map(str, folders))})", ()))
            if holding:
                ways.append((f"+d.root IN ({','.join(map(str, holding))})", ()))
            found.append(any_of(ways))
    return found


def any_of(ways: list) -> tuple:
    return (f"({' OR '.join(condition for condition, _ in ways)})",
            tuple(value for _, values in ways for value in values))


def folder_condition(run: str) -> tuple:
    """For folders whose path below the root can hold it."""
    late = [(f"instr({FOLDER_TEXT}, '{letter}')", ()) for letter, low in LATE_LETTERS if low in run]
    return any_of([(f"instr(lower({FOLDER_TEXT}), ?)", (run,)), *late])


class WordFolders:
    """Which folders hold a text, asked once for each in a request."""

    def __init__(self, db, searchable: bool):
        self.db = db
        self.searchable = searchable
        self._known: dict = {}

    def __call__(self, part: str) -> list | None:
        if part not in self._known:
            self._known[part] = self._look(part)
        return self._known[part]

    def _look(self, part: str) -> list | None:
        ids = None
        if self.searchable and len(part) >= 3:
            ids = proposed_ids(self.db, "folder_search", trigrams_of(part), FOLDERS_NAMED + 1)
        if ids is None:
            ids = self._looked_through(part)
        return None if ids is None or len(ids) > FOLDERS_NAMED else ids

    def _looked_through(self, part: str) -> list | None:
        """Two letters are in no index. Most are in many folders, which is soon seen."""
        last = self.db.execute("SELECT value FROM counter WHERE name = 'folder'").fetchone()[0]
        if last > FOLDERS_LOOKED_AT:
            return None
        parts = [folder_condition(run) for run in ASCII_RUN.findall(part)] or [("1", ())]
        return [row[0] for row in self.db.execute(
            f"SELECT d.id FROM folder d WHERE {' AND '.join(one for one, _ in parts)} LIMIT ?",
            (*(value for _, values in parts for value in values), FOLDERS_NAMED + 1))]


def trigrams_of(part: str) -> list:
    return [part[start:start + 3] for start in range(len(part) - 2)]


def name_condition(part: str) -> tuple:
    """(SQL for names that can hold the part, its values). SQLite compares the case of ASCII letters
    only.
    """
    if not part.isascii():
        return "? IS NOT NULL", (part,)
    late = "".join(f" OR instr(f.name, '{letter}')" for letter, low in LATE_LETTERS if low in part)
    return f"(f.name LIKE ? ESCAPE '!'{late})", (like_pattern(part),)


def like_pattern(part: str) -> str:
    escaped = part.replace("!", "!!").replace("%", "!%").replace("_", "!_")
    return f"%{escaped}%"
