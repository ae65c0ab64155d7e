"""The agent's own tables: what it knows of each file, what is not delivered yet, how far it came.

`agent_index`, `outbox` and `scan_progress` have the columns of the original description first and
ours behind them. Every changed row takes the next `rev`; what the host has acknowledged is one
number, so that whatever is above it is exactly what must still be sent.
"""

from __future__ import annotations

AGENT_MIGRATIONS = [
    [
        """CREATE TABLE agent_index (
            path TEXT PRIMARY KEY,
            inode_key TEXT NOT NULL,
            size INTEGER NOT NULL,
            mtime REAL,
            ctime REAL,
            probed INTEGER NOT NULL DEFAULT 0,
            hashed INTEGER NOT NULL DEFAULT 0,
            hash_algo TEXT,
            hash_sample_size INTEGER,
            sample_hash TEXT,
            full_hash TEXT,
            last_seen REAL,
            last_hashed_at REAL,
            root_id INTEGER NOT NULL,
            folder_id INTEGER NOT NULL,
            kind TEXT NOT NULL,
            reason TEXT,
            racy INTEGER NOT NULL DEFAULT 0,
            rev INTEGER NOT NULL,
            digest INTEGER NOT NULL,
            moved_from TEXT,
            rejected TEXT,
            metadata TEXT,
            ino INTEGER NOT NULL
        )""",
        # Folder by folder is how a scan compares; the identity finds moved files and hard links.
        # Files of one folder have inodes close to one another, so that a first scan fills that
        # index from one end, while the identity's text begins with the size: anywhere. The size
        # is there for file systems that give many files one inode.
        "CREATE INDEX agent_index_folder ON agent_index (folder_id)",
        "CREATE INDEX agent_index_identity ON agent_index (ino, size)",
        "CREATE INDEX agent_index_rev ON agent_index (rev)",
        "CREATE INDEX agent_index_unprobed ON agent_index (root_id, path)"
        " WHERE kind = 'video' AND probed = 0",
        "CREATE INDEX agent_index_sampled ON agent_index (root_id, path)"
        " WHERE hashed = 1 AND full_hash IS NULL",
        "CREATE INDEX agent_index_rejected ON agent_index (rev) WHERE rejected IS NOT NULL",
        "CREATE INDEX agent_index_racy ON agent_index (root_id, path) WHERE racy = 1",
        "CREATE INDEX agent_index_described ON agent_index (full_hash)"
        " WHERE probed = 1 AND full_hash IS NOT NULL",
        """CREATE TABLE outbox (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            batch_id TEXT NOT NULL,
            payload_json TEXT NOT NULL,
            created_at REAL NOT NULL,
            after_rev INTEGER NOT NULL DEFAULT -1,
            rev INTEGER NOT NULL DEFAULT -1,
            size_bytes INTEGER NOT NULL DEFAULT 0
        )""",
        """CREATE TABLE scan_progress (
            root TEXT NOT NULL,
            phase INTEGER NOT NULL,
            last_path TEXT NOT NULL,
            updated_at REAL NOT NULL,
            PRIMARY KEY (root, phase)
        )""",
        # One row per file system folder given as a root. A root whose disk is away and whose path
        # is taken by another disk is parked: its files keep their rows under "@root<id>/…".
        """CREATE TABLE agent_root (
            id INTEGER PRIMARY KEY,
            path TEXT NOT NULL,
            parked INTEGER NOT NULL DEFAULT 0,
            volume TEXT,
            volume_path TEXT,
            fs TEXT,
            device INTEGER,
            state TEXT NOT NULL DEFAULT 'online',
            reason TEXT,
            accept_empty INTEGER NOT NULL DEFAULT 0,
            files INTEGER NOT NULL DEFAULT 0,
            bytes INTEGER NOT NULL DEFAULT 0,
            digest TEXT NOT NULL DEFAULT '0',
            end_due INTEGER NOT NULL DEFAULT 0,
            scan_json TEXT,
            last_seen REAL
        )""",
        "CREATE UNIQUE INDEX agent_root_path ON agent_root (path) WHERE parked = 0",
        """CREATE TABLE agent_folder (
            id INTEGER PRIMARY KEY,
            root_id INTEGER NOT NULL,
            parent_id INTEGER,
            rel TEXT NOT NULL,
            UNIQUE (root_id, rel)
        )""",
        "CREATE INDEX agent_folder_parent ON agent_folder (parent_id)",
        # A removed path waits here until the host knows.
        """CREATE TABLE removed (
            path TEXT PRIMARY KEY,
            root_id INTEGER NOT NULL,
            rev INTEGER NOT NULL
        )""",
        "CREATE INDEX removed_rev ON removed (rev)",
        # What was known of files that lost their path in this scan: they may turn up elsewhere.
        """CREATE TABLE former (
            id INTEGER PRIMARY KEY,
            path TEXT NOT NULL,
            inode_key TEXT NOT NULL,
            root_id INTEGER NOT NULL,
            ctime REAL,
            kind TEXT,
            probed INTEGER, hashed INTEGER,
            hash_algo TEXT, hash_sample_size INTEGER, sample_hash TEXT, full_hash TEXT,
            last_hashed_at REAL, racy INTEGER,
            metadata TEXT
        )""",
        "CREATE INDEX former_identity ON former (inode_key)",
        """CREATE TABLE agent_error (
            path TEXT NOT NULL,
            stage TEXT NOT NULL,
            root_id INTEGER NOT NULL,
            inode_key TEXT NOT NULL,
            class TEXT NOT NULL,
            message TEXT NOT NULL,
            attempts INTEGER NOT NULL,
            next_try REAL,
            tool TEXT,
            at REAL NOT NULL,
            PRIMARY KEY (path, stage)
        )""",
        "CREATE INDEX agent_error_root ON agent_error (root_id, stage)",
        "CREATE TABLE library (library_id TEXT PRIMARY KEY, acked INTEGER NOT NULL)",
        "CREATE TABLE agent_meta (key TEXT PRIMARY KEY, value TEXT)",
    ],
    # See scan_seal. Whoever changes a row in a way that a scan should look at removes the seal.
    ["ALTER TABLE agent_folder ADD COLUMN seal BLOB"],
]
