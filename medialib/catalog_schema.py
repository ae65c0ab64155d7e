"""The catalogue's tables. Codes in here are stored on disk: they are added to, never changed.

What must be fast at millions of rows is kept as numbers that move with the rows, in the same
transaction: per root its count and digest, `tally` and `facet` for every count that is shown,
folder totals, duplicate groups and their sums. Nothing that is asked often scans `file`.
"""

from __future__ import annotations


from .late import uuid
from .sqlite_store import sqlite3

KIND_CODES = {
    "audio": 1, "image": 2, "junk": 3, "other": 4, "subtitle": 5, "unknown": 6, "video": 7,
    "xml": 8,
}
KIND_NAMES = {code: kind for kind, code in KIND_CODES.items()}
ALGO_CODES = {"blake3": 1, "xxhash64": 2, "sha256": 3}
ALGO_NAMES = {code: algo for algo, code in ALGO_CODES.items()}

STATE_PRESENT = 0
STATE_MISSING = 1

FLAG_WHOLE = 1  # the file was read whole for its sample hash, which therefore is its full hash
FLAG_PROBED = 2  # it has a row in metadata
FLAG_ERROR = 4  # it has a row in file_error

GROUP_CONFIRMED = 1
GROUP_CANDIDATE = 2

FACET_WEEK = 1  # of the modification time, in whole weeks since the epoch
FACET_VIDEO_CODEC = 2
FACET_CONTAINER = 3
FACET_RESOLUTION = 4  # the lower bound of its class, see RESOLUTION_CLASSES
FACET_AUDIO_CODEC = 5

# A video's class by its lines, or what its width would have in 16:9; a bound is stored on disk.
RESOLUTION_CLASSES = ((4000, "8K"), (1800, "4K"), (1200, "1440p"), (900, "1080p"), (650, "720p"),
                      (0, "SD"))

LOCAL_AGENT = "local"  # the host's own scanner
HASH_PREFIX_BYTES = 6  # enough to find a hash; the rest is compared in the row

CATALOG_TABLES = [
    "CREATE TABLE library (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID",
    # The change counter, the next numbers of files and folders, how far the search index is.
    "CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    """CREATE TABLE agent (
        id INTEGER PRIMARY KEY,
        agent_id TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        address TEXT,
        last_rev INTEGER NOT NULL DEFAULT 0,
        first_seen REAL NOT NULL,
        last_seen REAL NOT NULL,
        facts_json TEXT NOT NULL DEFAULT '{}',
        errors_json TEXT NOT NULL DEFAULT '{}'
    )""",
    """CREATE TABLE root (
        id INTEGER PRIMARY KEY,
        agent INTEGER NOT NULL REFERENCES agent (id),
        path TEXT NOT NULL,
        volume TEXT,
        volume_path TEXT,
        state TEXT NOT NULL DEFAULT 'online',
        reason TEXT,
        implicit INTEGER NOT NULL DEFAULT 0,
        transferred INTEGER NOT NULL DEFAULT 0,
        files INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0,
        missing INTEGER NOT NULL DEFAULT 0,
        missing_bytes INTEGER NOT NULL DEFAULT 0,
        digest INTEGER NOT NULL DEFAULT 0,
        facts_json TEXT NOT NULL DEFAULT '{}',
        scan_json TEXT NOT NULL DEFAULT '{}',
        seq INTEGER NOT NULL
    )""",
    "CREATE INDEX root_agent ON root (agent)",
    "CREATE INDEX root_volume ON root (volume, volume_path) WHERE volume IS NOT NULL",
    "CREATE INDEX root_seq ON root (seq)",
    # `key` is the path relative to the root with NUL between names: its byte order is the order of
    # the walk, and everything below a folder is one range of it.
    """CREATE TABLE folder (
        id INTEGER PRIMARY KEY,
        root INTEGER NOT NULL,
        parent INTEGER,
        key BLOB NOT NULL,
        files INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0,
        tree_files INTEGER NOT NULL DEFAULT 0,
        tree_bytes INTEGER NOT NULL DEFAULT 0
    )""",
    "CREATE UNIQUE INDEX folder_key ON folder (root, key)",
    "CREATE INDEX folder_parent ON folder (parent) WHERE parent IS NOT NULL",
    # Extensions, junk reasons, codecs, containers: the same few words in very many rows.
    "CREATE TABLE word (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE)",
    """CREATE TABLE file (
        id INTEGER PRIMARY KEY,
        folder INTEGER NOT NULL,
        name TEXT NOT NULL,
        kind INTEGER NOT NULL,
        ext INTEGER NOT NULL,
        size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        mtime REAL,
        ctime REAL,
        ino INTEGER NOT NULL,
        dev INTEGER NOT NULL,
        key_text TEXT,
        algo INTEGER,
        sample_size INTEGER,
        sample_hash BLOB,
        full_hash BLOB,
        flags INTEGER NOT NULL,
        state INTEGER NOT NULL,
        reason INTEGER,
        first_seen INTEGER NOT NULL,
        changed INTEGER NOT NULL,
        seq INTEGER NOT NULL
    )""",
    "CREATE UNIQUE INDEX file_path ON file (folder, name) WHERE state = 0",
    "CREATE INDEX file_missing ON file (folder, name) WHERE state = 1",
    "CREATE UNIQUE INDEX file_seq ON file (seq)",
    "CREATE INDEX file_name ON file (kind, name COLLATE NOCASE)",
    "CREATE INDEX file_size ON file (kind, size)",
    "CREATE INDEX file_mtime ON file (kind, mtime_ns)",
    "CREATE INDEX file_ext ON file (ext)",
    f"CREATE INDEX file_sample ON file (substr(sample_hash, 1, {HASH_PREFIX_BYTES}))"
    " WHERE sample_hash IS NOT NULL",
    f"CREATE INDEX file_full ON file (substr(full_hash, 1, {HASH_PREFIX_BYTES}))"
    " WHERE full_hash IS NOT NULL",
    """CREATE TABLE metadata (
        file INTEGER PRIMARY KEY,
        duration REAL,
        container INTEGER,
        video_codec INTEGER,
        audio_codecs INTEGER,
        width INTEGER,
        height INTEGER,
        bitrate INTEGER
    )""",
    "CREATE INDEX metadata_duration ON metadata (duration)",
    "CREATE INDEX metadata_height ON metadata (height)",
    "CREATE INDEX metadata_bitrate ON metadata (bitrate)",
    "CREATE TABLE streams (file INTEGER PRIMARY KEY, packed BLOB NOT NULL)",
    """CREATE TABLE file_error (
        file INTEGER PRIMARY KEY,
        stage TEXT NOT NULL,
        class TEXT NOT NULL,
        message TEXT NOT NULL
    )""",
    """CREATE TABLE tally (
        root INTEGER NOT NULL,
        kind INTEGER NOT NULL,
        ext INTEGER NOT NULL,
        reason INTEGER NOT NULL,
        state INTEGER NOT NULL,
        files INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        PRIMARY KEY (root, kind, ext, reason, state)
    ) WITHOUT ROWID""",
    """CREATE TABLE facet (
        root INTEGER NOT NULL,
        state INTEGER NOT NULL,
        field INTEGER NOT NULL,
        value INTEGER NOT NULL,
        files INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        PRIMARY KEY (root, state, field, value)
    ) WITHOUT ROWID""",
    """CREATE TABLE duplicate (
        id INTEGER PRIMARY KEY,
        hash BLOB NOT NULL,
        state INTEGER NOT NULL,
        size INTEGER NOT NULL,
        algo INTEGER NOT NULL,
        sample_size INTEGER NOT NULL,
        copies INTEGER NOT NULL,
        files INTEGER NOT NULL,
        reclaimable INTEGER NOT NULL,
        potential INTEGER NOT NULL
    )""",
    "CREATE UNIQUE INDEX duplicate_key ON duplicate (hash, state, size, algo, sample_size)",
    "CREATE INDEX duplicate_gain ON duplicate (reclaimable, potential, id)",
    "CREATE INDEX duplicate_large ON duplicate (files) WHERE files > 2000",
    """CREATE TABLE duplicate_total (
        state INTEGER PRIMARY KEY,
        groups INTEGER NOT NULL,
        files INTEGER NOT NULL,
        reclaimable INTEGER NOT NULL,
        potential INTEGER NOT NULL
    )""",
    # Very large groups are counted again when the writer has time, not with every batch.
    """CREATE TABLE duplicate_due (
        hash BLOB NOT NULL, size INTEGER NOT NULL, algo INTEGER NOT NULL,
        PRIMARY KEY (hash, size, algo)
    ) WITHOUT ROWID""",
    """CREATE TABLE batch (
        agent INTEGER NOT NULL,
        batch_id TEXT NOT NULL,
        number INTEGER NOT NULL,
        answer TEXT NOT NULL,
        at INTEGER NOT NULL,
        PRIMARY KEY (agent, batch_id)
    ) WITHOUT ROWID""",
    "CREATE INDEX batch_number ON batch (agent, number)",
    """CREATE TABLE rejected (
        agent INTEGER NOT NULL,
        path TEXT NOT NULL,
        error TEXT NOT NULL,
        at INTEGER NOT NULL,
        PRIMARY KEY (agent, path)
    ) WITHOUT ROWID""",
    "CREATE TABLE forgotten (seq INTEGER PRIMARY KEY, file INTEGER NOT NULL)",
    """CREATE TABLE setting (
        scope TEXT NOT NULL,
        name TEXT NOT NULL,
        value_json TEXT NOT NULL,
        PRIMARY KEY (scope, name)
    ) WITHOUT ROWID""",
    """CREATE TABLE daily (
        day TEXT PRIMARY KEY,
        files INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        missing INTEGER NOT NULL,
        reclaimable INTEGER NOT NULL
    ) WITHOUT ROWID""",
    "INSERT INTO duplicate_total VALUES (1, 0, 0, 0, 0), (2, 0, 0, 0, 0)",
    "INSERT INTO counter VALUES ('seq', 0), ('file', 0), ('folder', 0), ('searchable', 0)",
]

# Each has the letters of a name (or of a folder's path) in lower case; the text itself is not kept
# a second time. `detail=none` makes the index about a third of its size: where in the text three
# letters stand is found out by looking at the row.
SEARCH_TABLES = [
    "CREATE VIRTUAL TABLE name_search USING fts5"
    " (name, content='', detail=none, columnsize=0, tokenize='trigram')",
    "CREATE VIRTUAL TABLE folder_search USING fts5"
    " (path, content='', detail=none, columnsize=0, tokenize='trigram')",
]


def create_catalog(db) -> None:
    """The first migration: all tables, and the library's own identity."""
    for statement in CATALOG_TABLES:
        db.execute(statement)
    db.execute("INSERT INTO library VALUES ('library_id', ?)", (str(uuid.uuid4()),))
    if has_trigram_search(db):
        for statement in SEARCH_TABLES:
            db.execute(statement)
        db.execute("INSERT INTO library VALUES ('search', 'trigram')")


def has_trigram_search(db) -> bool:
    """Whether this SQLite knows FTS5 with trigrams (3.34 and newer, if compiled in)."""
    db.execute("SAVEPOINT try_search")
    try:
        db.execute("CREATE VIRTUAL TABLE try_search USING fts5 (a, tokenize='trigram')")
        return True
    except sqlite3.OperationalError:
        return False
    finally:
        db.execute("ROLLBACK TO try_search")
        db.execute("RELEASE try_search")


CATALOG_MIGRATIONS = [create_catalog]
