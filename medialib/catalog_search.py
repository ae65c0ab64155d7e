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
SEARCH_BEHIND = 80_000  # with more names than this not indexed yet, jobs wait for some of them
SEARCH_WORDS = 16
TRIGRAMS_ASKED = 2  # of one word
TRIGRAM_RATIO = 8
TRIGRAM_SAMPLE = 200


def search_words(text: str) -> list:
    """The words of a query in the form they are compared in."""
    return list(dict.fromkeys(text.lower().split()))[:SEARCH_WORDS]


def text_matches(words: list, *texts: str) -> bool:
    """Whether each word is in one of the texts, whatever its case."""
    low = [text.lower() for text in texts]
    return all(any(word in text for text in low) for word in words)


def usable_parts(words: list) -> list:
    """The texts the index can be asked for, each of which every match holds in its name or in its
    folder's path: at least three letters, and no "/", which lies between the two.
    """
    parts = [part for word in words for part in word.split("/") if len(part) >= 3]
    return list(dict.fromkeys(parts))


def trigram_query(trigrams: list) -> str:
    """The FTS5 expression for rows that hold all of these."""
    return " AND ".join('"' + part.replace('"', '""') + '"' for part in dict.fromkeys(trigrams))


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


def proposed_ids(db, table: str, trigrams: list, limit: int) -> list | None:
    """Up to `limit` numbers of rows that hold all the trigrams, or None when the index cannot tell.
    """
    try:
        rows = db.execute(f"SELECT rowid FROM {table} WHERE {table} MATCH ? LIMIT ?",
                          (trigram_query(trigrams), limit)).fetchall()
    except sqlite3.OperationalError:
        return None
    return [row[0] for row in rows]


def rarest_trigrams(db, parts: tuple) -> dict:
    """{part: [(share, trigram)] of its rarest among names}, the part with the rarest first."""
    shares = {part: sorted((_share_of(db, one), one) for one in {
        part[start:start + 3] for start in range(len(part) - 2)}) for part in parts}
    return {part: some[:TRIGRAMS_ASKED]
            for part, some in sorted(shares.items(), key=lambda item: item[1])}


def worth_asking(shares: list) -> list:
    """Of [(share, trigram)] those to ask the index for together. It reads through all rows of each:
    one that is much more common than the rarest costs much and excludes little.
    """
    most = TRIGRAM_RATIO * min(shares)[0]
    return [(share, one) for share, one in shares if share <= most]


def _share_of(db, trigram: str) -> float:
    """About which part of the first names hold it: a guess that costs some microseconds."""
    ids = proposed_ids(db, "name_search", [trigram], TRIGRAM_SAMPLE)
    if not ids:
        return 0.0
    return len(ids) / ids[-1] if len(ids) == TRIGRAM_SAMPLE else len(ids) / 1e12
