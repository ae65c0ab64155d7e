"""An agent on a Python without SQLite: nothing is remembered, and the catalogue is right all the
same. The import is blocked in a process of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tests import ground_truth, media, support

WITHOUT_SQLITE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in ("sqlite3", "_sqlite3"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
from medialib.agent_cli import agent_main
sys.exit(agent_main(sys.argv[1:]))
"""


def scan(host, home, root, *more) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_SQLITE, host.url, str(root), "--once", "--name", "plain",
         "--data-dir", str(home), *more],
        cwd=support.ROOT, env={**os.environ, "HOME": str(home)}, text=True, timeout=180,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)


def check(host, root) -> None:
    """The truth, but for the full hashes of large files, which this way of scanning leaves out."""
    expected = ground_truth.truth_of(root, support.get(host.url, "/ingest/config"), algo="blake3")
    for row in expected.values():
        if row["size"] > 3 * media.SAMPLE:
            row["hashes"]["full_hash"] = None
    rows = ground_truth.present_rows(host.url, host.agent_id("plain"))
    assert ground_truth.differences(rows, expected) == []


def test_agent_without_sqlite_keeps_the_catalogue_right(tmp_path, machines):
    host = machines.host().start()
    root = tmp_path / "media"
    tree = media.Tree(root, 7).fill(40, 2)
    first = scan(host, tmp_path / "home", root)
    assert first.returncode == 0, first.stdout
    assert "no SQLite" in first.stdout
    check(host, root)
    again = scan(host, tmp_path / "home", root)
    assert " 0 read, 0 sent" in again.stdout, "what the host knows is not read again"
    shutil.rmtree(tree.folders()[1])
    media.random_changes(tree, 10)
    scan(host, tmp_path / "home", root)
    check(host, root)


def test_agent_without_sqlite_says_when_the_host_is_away(tmp_path, machines):
    host = machines.host().start()
    host.kill()
    (tmp_path / "media").mkdir()
    ended = scan(host, tmp_path / "home", tmp_path / "media")
    assert ended.returncode == 3
    assert "the host cannot be used" in ended.stdout
