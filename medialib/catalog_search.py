"""The search index over names and folder paths: letters in threes (FTS5), where SQLite has it.

It only proposes rows; what matches is decided by `text_matches` on the text itself, so the answers
are the same with the index, without it, and while it is still behind. Names are indexed by the
writing thread when it has time.
"""

from __future__ import annotations


from .catalog_roots import CatalogCounters
from .catalog_rows import rel_of_key
from .catalog_schema import SEARCH_TABLES, has_trigram_search
from .sqlite_store import sqlite3

SEARCH_CHUNK = 4000  # larger ones save little and make the next batch wait
SEARCH_BEHIND = 20_000  # with more names than this not indexed yet, jobs wait for some of them
SEARCH_WORDS = 16


def search_words(text: str) -> list:
    """The words of a query in the form they are compared in."""
    return list(dict.fromkeys(text.lower().split()))[:SEARCH_WORDS]


def text_matches(words: list, *texts: str) -> bool:
    """Whether each word is in one of the texts, whatever its case."""
    low = [text.lower() for text in texts]
    return all(any(word in text for text in low) for word in words)


def trigram_query(word: str) -> str | None:
    """The FTS5 expression for rows that can hold this word; None for words that are too short."""
    if len(word) < 3:
        return None
    parts = dict.fromkeys(word[start:start + 3] for start in range(len(word) - 2))
    return " AND ".join('"' + part.replace('"', '""') + '"' for part in parts)


class SearchIndex:
    """Keeps the index in step with the rows. All but `usable` belongs to the writing thread."""

    def __init__(self, db):
        self.usable = has_trigram_search(db)
        row = db.execute("SELECT value FROM library WHERE key = 'search'").fetchone()
        stored = row[0] if row else None
        if self.usable and stored != "trigram":
            self._build_anew(db, stored)
        elif not self.usable and stored == "trigram":
            # From here on names change without the index.
            db.execute("UPDATE library SET value = 'stale' WHERE key = 'search'")

    def _build_anew(self, db, stored: str | None) -> None:
        if stored is not None:
            db.execute("DROP TABLE name_search")
            db.execute("DROP TABLE folder_search")
        for statement in SEARCH_TABLES:
            db.execute(statement)
        db.execute("UPDATE counter SET value = 0 WHERE name = 'searchable'")
        db.execute("INSERT OR REPLACE INTO library VALUES ('search', 'trigram')")
        for folder_id, key in db.execute("SELECT id, key FROM folder"):
            self.add_folder(db, folder_id, rel_of_key(key))

    def add_folder(self, db, folder_id: int, rel: str) -> None:
        if self.usable:
            db.execute("INSERT INTO folder_search (rowid, path) VALUES (?, ?)",
                       (folder_id, rel.lower()))

    def drop_folder(self, db, folder_id: int, rel: str) -> None:
        if self.usable:
            db.execute("INSERT INTO folder_search (folder_search, rowid, path)"
                       " VALUES ('delete', ?, ?)", (folder_id, rel.lower()))

    def rename_file(self, db, counters: CatalogCounters, file_id: int, old: str, new: str) -> None:
        if self.usable and old != new and file_id <= counters.values["searchable"]:
            self._drop_name(db, file_id, old)
            db.execute("INSERT INTO name_search (rowid, name) VALUES (?, ?)",
                       (file_id, new.lower()))

    def forget_file(self, db, counters: CatalogCounters, file_id: int, name: str) -> None:
        if self.usable and file_id <= counters.values["searchable"]:
            self._drop_name(db, file_id, name)

    def _drop_name(self, db, file_id: int, name: str) -> None:
        db.execute("INSERT INTO name_search (name_search, rowid, name) VALUES ('delete', ?, ?)",
                   (file_id, name.lower()))

    def behind(self, counters: CatalogCounters) -> int:
        if not self.usable:
            return 0
        return counters.values["file"] - counters.values["searchable"]

    def index_more(self, db, counters: CatalogCounters) -> bool:
        """Index the next names; whether more are left."""
        if not self.behind(counters):
            return False
        first = counters.values["searchable"]
        rows = db.execute("SELECT id, name FROM file WHERE id > ? ORDER BY id LIMIT ?",
                          (first, SEARCH_CHUNK)).fetchall()
        db.executemany("INSERT INTO name_search (rowid, name) VALUES (?, ?)",
                       [(file_id, name.lower()) for file_id, name in rows])
        last = rows[-1][0] if len(rows) == SEARCH_CHUNK else counters.values["file"]
        counters.values["searchable"] = last
        return last < counters.values["file"]


def proposed_ids(db, table: str, word: str, limit: int) -> list | None:
    """Up to `limit` row numbers that can hold the word, or None when the index cannot tell."""
    query = trigram_query(word)
    if query is None:
        return None
    try:
        rows = db.execute(f"SELECT rowid FROM {table} WHERE {table} MATCH ? LIMIT ?",
                          (query, limit)).fetchall()
    except sqlite3.OperationalError:
        return None
    return [row[0] for row in rows]
