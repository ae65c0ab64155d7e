"""The feed of changes: everything after a number, in the order in which it happened."""

from __future__ import annotations

from .catalog_filter import FilterError
from .catalog_places import FoundRow
from .catalog_roots import read_roots
from .catalog_rows import FILE_COLUMNS_OF_F, FileRow
from .catalog_show import FileShower
from .catalog_tokens import page_limit


def changes_page(db, words: dict, body: dict) -> dict:
    """{"files", "roots", "forgotten", "next", "more"} after number `after`; go on with `next`.

    A row is listed once, at its last change. A root's change of state stands for that of its files.
    """
    limit = page_limit(body)
    after = body.get("after", 0)
    if type(after) is not int or not 0 <= after < 1 << 63:
        raise FilterError("after must be a whole number from 0 on")
    roots = {root.id: root for root in read_roots(db)}
    rows = db.execute(
        f"SELECT {FILE_COLUMNS_OF_F}, d.root, d.key FROM file f INDEXED BY file_seq"
        " CROSS JOIN folder d ON d.id = f.folder WHERE f.seq > ? ORDER BY f.seq LIMIT ?",
        (after, limit + 1)).fetchall()
    more = len(rows) > limit
    highest = db.execute("SELECT value FROM counter WHERE name = 'seq'").fetchone()[0]
    end = FileRow(*rows[limit - 1][:-2]).seq if more else max(highest, after)
    forgotten = db.execute("SELECT seq, file FROM forgotten WHERE seq > ? AND seq <= ?"
                           " ORDER BY seq LIMIT ?", (after, end, limit + 1)).fetchall()
    if len(forgotten) > limit:
        more, forgotten = True, forgotten[:limit]
        end = forgotten[-1][0]
    shower = FileShower(db, words, roots)
    found = [FoundRow(0, row[0], "", *row[-2:], FileRow(*row[:-2])) for row in rows[:limit]]
    agents = shower.agents
    return {
        "files": shower.show_all([one for one in found if one.row.seq <= end]),
        "roots": [{"id": root.id, "agent": agents[root.agent], "path": root.path,
                   "state": root.state, "reason": root.reason, "seq": root.seq}
                  for root in sorted(roots.values(), key=lambda root: root.seq)
                  if after < root.seq <= end],
        "forgotten": [{"seq": seq, "id": file_id} for seq, file_id in forgotten],
        "next": end, "more": more,
    }
