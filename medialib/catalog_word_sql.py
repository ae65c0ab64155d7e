"""What SQLite itself can tell of a search: conditions that every match fulfils.

Handing a row to Python costs many times what passing it in SQLite does, and waits for whatever else
runs in Python just then. So rows that cannot match are left out by SQLite; those that come out are
compared for certain by `PathWords`.
"""

from __future__ import annotations

import re

from .catalog_search import proposed_ids

FOLDERS_NAMED = 200  # with more folders than these a part is looked for in each folder's text
ASCII_RUN = re.compile(r"[\x01-\x7f]+")
# Two letters beyond ASCII become ASCII ones in lower case; SQLite leaves them as they are.
LATE_LETTERS = (("\u212a", "k"), ("\u0130", "i"))
FOLDER_TEXT = "CAST(d.key AS TEXT)"


def word_conditions(db, words: list, roots: dict, searchable: bool) -> list:
    """[(condition on f and d, values)] that hold for all files whose path holds the words. A part
    without "/" lies in one name: the file's, a folder's below the root, or one of the root's path.
    """
    found = []
    for part in dict.fromkeys(part for word in words for part in word.split("/") if part):
        holding = [root.id for root in roots.values() if part in root.path.lower()]
        if len(holding) == len(roots):
            continue
        for run in ASCII_RUN.findall(part):
            ways = [name_condition(run), *_folder_ways(db, part, run, searchable)]
            if holding:
                ways.append((f"+d.root IN ({','.join(map(str, holding))})", ()))
            found.append(_any_of(ways))
    return found


def _any_of(ways: list) -> tuple:
    return (f"({' OR '.join(condition for condition, _ in ways)})",
            tuple(value for _, values in ways for value in values))


def _folder_ways(db, part: str, run: str, searchable: bool) -> list:
    """Whether the folder's path holds it: by its number where the search index names few."""
    if searchable and len(part) >= 3:
        ids = proposed_ids(db, "folder_search", trigrams_of(part), FOLDERS_NAMED + 1)
        if ids is not None and len(ids) <= FOLDERS_NAMED:
            return [(f"+f.folder IN ({','.join(map(str, ids))})", ())] if ids else []
    late = [(f"instr({FOLDER_TEXT}, '{letter}')", ()) for letter, low in LATE_LETTERS if low in run]
    return [(f"instr(lower({FOLDER_TEXT}), ?)", (run,)), *late]


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
