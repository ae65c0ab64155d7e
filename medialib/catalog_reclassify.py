"""Giving rows the kind that new settings say, without waiting for the next scan of their disk."""

from __future__ import annotations

from .catalog import Catalog
from .catalog_roots import find_agent, read_roots
from .catalog_rows import FILE_COLUMNS_OF_F, FileRow, rel_of_key
from .catalog_schema import FLAG_PROBED, KIND_CODES
from .catalog_settings import settings_of
from .catalog_tallies import read_meta
from .scan_common import Classifier

RECLASSIFY_CHUNK = 1000
EXTENSION_SETTINGS = ("media_extensions", "audio_extensions", "image_extensions",
                      "subtitle_extensions", "xml_extensions", "other_extensions",
                      "junk_exclude_extensions")


def moved_extensions(before: dict, after: dict) -> set:
    """The extensions whose kind may differ between two sets of settings."""
    moved: set = set()
    for name in EXTENSION_SETTINGS:
        moved |= set(before[name]) ^ set(after[name])
    return moved


def reclassify(catalog: Catalog, extensions: set) -> int:
    """Give every row with one of these extensions the kind its agent's settings say; rows changed.
    Each chunk is a transaction of its own, so that agents can deliver in between.
    """
    with catalog.reader() as db:
        words = {text: number for number, text in catalog.words(db).items()}
        agents = {row[0]: row[1] for row in db.execute("SELECT id, agent_id FROM agent")}
        classifiers = {number: Classifier(settings_of(db, agent_id))
                       for number, agent_id in agents.items()}
    changed = 0
    for text in sorted(extensions):
        number, after = words.get(text), 0
        while number is not None and after is not None:
            count, after = catalog.change(
                lambda changes, number=number, text=text, after=after: _reclassify_chunk(
                    changes, classifiers, agents, number, text, after))
            changed += count
    return changed


def _reclassify_chunk(changes, classifiers, agents, ext: int, text: str, after: int) -> tuple:
    """(rows changed, the last row looked at or None at the end)."""
    db = changes.db
    rows = db.execute(
        f"SELECT {FILE_COLUMNS_OF_F}, d.root, d.key FROM file f INDEXED BY file_ext"
        " JOIN folder d ON d.id = f.folder WHERE f.ext = ? AND f.id > ? ORDER BY f.id LIMIT ?",
        (ext, after, RECLASSIFY_CHUNK)).fetchall()
    roots = {root.id: root for root in read_roots(db)}
    batches, changed = {}, 0
    for one in rows:
        row, root = FileRow(*one[:-2]), roots[one[-2]]
        kind, reason = classifiers[root.agent].classify(row.name, text)
        reason_id = changes.tools.words.id_of(db, reason) if reason else None
        if (KIND_CODES[kind], reason_id) == (row.kind, row.reason):
            continue
        if root.agent not in batches:
            batches[root.agent] = changes.files_of(find_agent(db, agents[root.agent]))
        new = row._replace(kind=KIND_CODES[kind], reason=reason_id, changed=int(changes.now),
                           seq=changes.counters.next("seq"))
        _swap_rows(db, batches[root.agent].changes, root, rel_of_key(one[-1]), row, new)
        changed += 1
    return changed, rows[-1][0] if len(rows) == RECLASSIFY_CHUNK else None


def _swap_rows(db, sums, root, rel: str, old: FileRow, new: FileRow) -> None:
    meta = read_meta(db, old.id) if old.flags & FLAG_PROBED else None
    sums.take(old, root, rel, meta)
    sums.add(new, root, rel, meta)
    db.execute("UPDATE file SET kind = ?, reason = ?, changed = ?, seq = ? WHERE id = ?",
               (new.kind, new.reason, new.changed, new.seq, new.id))
