"""The catalogue against a trivially simple model: any history, then everything is compared."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from medialib.base import NewerStoreError, StoreError
from medialib.catalog import Catalog
from medialib.catalog_forget import ForgetPlan, forget_all
from tests import support
from tests.catalog_audit import check_catalogue_sums
from tests.catalog_world import ROOT_PATH, ToyAgent, ToyFile, open_world, stored_files

NAMES = [f"{folder}{name}" for folder in ("", "a/", "a/b/", "a.b/", "c/")
         for name in ("one.mkv", "two.mkv", "three.jpg", "x.nfo", "abcdef")]


@pytest.fixture
def world(tmp_path):
    catalog, ingest = open_world(tmp_path / "medialib.db")
    yield catalog, ingest
    catalog.close()


def check_same(catalog, agent):
    """The present rows are the disk's files, each with its own facts and nobody else's."""
    rows = stored_files(catalog)
    assert sorted(rows) == sorted(f"{agent.root}/{path}" for path in agent.disk)
    for path, file in agent.disk.items():
        row = rows[f"{agent.root}/{path}"]
        assert (row["size"], row["inode_key"]) == (file.size, file.key)
        assert row["mtime"] == file.mtime_ns / 1e9
        assert row["hashes"]["sample_hash"] == file.sample()
        known = file.key in agent.full_known
        assert row["hashes"]["full_hash"] == (file.full() if known else None)
        assert (row["metadata"] is not None) == (file.key in agent.probed)
        if row["metadata"]:
            assert row["metadata"]["bitrate"] == file.content


class Chaos:
    """Random operations on the toy disk and the wire. `ids` follows each content's row."""

    def __init__(self, agent, seed: int, *, whole: bool = False):
        self.agent = agent
        self.whole = whole  # each delivery is one batch
        self.random = random.Random(seed)
        self.ids: dict = {}

    def path(self):
        return self.random.choice(sorted(self.agent.disk)) if self.agent.disk else None

    def create(self):
        self.agent.disk[self.random.choice(NAMES)] = ToyFile(
            self.random.randrange(8), self.random.choice((0, 10, 500_000)))

    def rewrite(self):
        if self.path():
            self.agent.disk[self.path()].rewrite(self.random.randrange(8), 500_000)

    def rename(self):
        if self.path():
            file = self.agent.disk.pop(self.path())
            self.agent.disk[self.random.choice(NAMES)] = file

    def swap(self):
        disk = self.agent.disk
        if len(disk) > 2:
            chosen = self.random.sample(sorted(disk), self.random.choice((2, 3)))
            files = [disk[path] for path in chosen]
            for path, file in zip(chosen, [*files[1:], files[0]]):
                disk[path] = file

    def remove(self):
        if self.path():
            del self.agent.disk[self.path()]

    def know_more(self):
        if self.path():
            file = self.agent.disk[self.path()]
            self.agent.full_known.add(file.key)
            if self.random.random() < 0.5:
                self.agent.probed.add(file.key)

    def repeat_old(self):
        if self.agent.sent:
            before = self.agent.acked
            self.agent.send(self.random.choice(self.agent.sent))
            assert self.agent.acked == before

    def deliver_some(self):
        self.agent.scan()
        batches = self.agent.batches(1000 if self.whole else self.random.randrange(1, 9))
        for batch in batches[:self.random.randrange(len(batches) + 1)]:
            if not self.agent.send(batch)["ok"]:
                return

    def check_ids(self, rows: dict):
        """A content keeps its row, and its first-seen date, wherever its file goes."""
        now = {row["inode_key"]: (row["id"], row["first_seen"]) for row in rows.values()}
        for key, known in self.ids.items():
            assert now.get(key, known) == known, key
        self.ids = now

    def step(self):
        self.random.choice((
            self.create, self.create, self.create, self.rewrite, self.rename, self.rename,
            self.swap, self.remove, self.know_more, self.know_more, self.repeat_old,
            self.deliver_some))()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(40 if support.LONG else 8))
def test_any_history_ends_in_the_same_catalogue(world, seed, whole):
    """Rows follow their contents where a move and what took its place come in one batch."""
    catalog, ingest = world
    agent = ToyAgent(ingest)
    chaos = Chaos(agent, seed, whole=whole)
    for _ in range(15):
        for _ in range(chaos.random.randrange(12)):
            chaos.step()
        agent.scan()
        agent.deliver(1000 if whole else chaos.random.randrange(1, 12))
        check_same(catalog, agent)
        if whole:
            chaos.check_ids(stored_files(catalog))
        if agent.rows:
            assert agent.end()["in_step"] is True
    check_catalogue_sums(catalog.path)


@pytest.mark.parametrize("seed", range(4))
def test_a_restored_older_copy_catches_up(tmp_path, seed):
    path = tmp_path / "medialib.db"
    catalog, ingest = open_world(path)
    agent = ToyAgent(ingest)
    chaos = Chaos(agent, 1000 + seed)
    for round_ in range(6):
        for _ in range(10):
            chaos.step()
        agent.scan()
        agent.deliver(5)
        if round_ == 2:
            catalog.backup(str(tmp_path / "copy.db"))
    catalog.close()
    for end in ("", "-wal", "-shm"):
        if os.path.exists(f"{path}{end}"):
            os.remove(f"{path}{end}")
    shutil.copy(tmp_path / "copy.db", path)
    catalog, agent.host = open_world(path)
    chaos.create()
    agent.scan()
    agent.deliver(5)
    check_same(catalog, agent)
    assert agent.end()["in_step"] is True
    catalog.close()
    check_catalogue_sums(str(path))


def rows_by_inode(catalog, state=0):
    return {row["inode_key"].split(":")[2]: row for row in stored_files(catalog, state).values()}


@pytest.mark.parametrize("size", [1, 2, 100])
def test_swapped_and_cycled_names_keep_their_rows(world, size):
    catalog, ingest = world
    agent = ToyAgent(ingest)
    for number, name in enumerate(("a.mkv", "b.mkv", "c.mkv")):
        agent.disk[name] = ToyFile(number, 500_000)
        agent.full_known.add(agent.disk[name].key)
        agent.probed.add(agent.disk[name].key)
    agent.scan()
    agent.deliver(100)
    before = rows_by_inode(catalog)
    disk = agent.disk
    disk["a.mkv"], disk["b.mkv"], disk["c.mkv"] = disk["c.mkv"], disk["a.mkv"], disk["b.mkv"]
    agent.scan()
    agent.deliver(size)
    after = rows_by_inode(catalog)
    assert {ino: row["id"] for ino, row in before.items()} == {
        ino: row["id"] for ino, row in after.items()}
    assert [after[str(disk[name].ino)]["name"] for name in sorted(disk)] == sorted(disk)
    assert stored_files(catalog, 1) == {}
    check_catalogue_sums(catalog.path)


def test_missing_row_keeps_its_facts_and_revives(world):
    catalog, ingest = world
    agent = ToyAgent(ingest)
    file = agent.disk["a/one.mkv"] = ToyFile(1, 500_000)
    agent.full_known.add(file.key)
    agent.probed.add(file.key)
    agent.scan()
    agent.deliver()
    known = stored_files(catalog)[f"{ROOT_PATH}/a/one.mkv"]
    del agent.disk["a/one.mkv"]
    agent.scan()
    agent.deliver()
    gone = stored_files(catalog, 1)[f"{ROOT_PATH}/a/one.mkv"]
    for name in ("id", "hashes", "metadata", "first_seen"):
        assert gone[name] == known[name]
    agent.disk["a/one.mkv"] = file
    agent.full_known.clear()
    agent.probed.clear()
    agent.scan()
    agent.deliver()
    back = stored_files(catalog)[f"{ROOT_PATH}/a/one.mkv"]
    for name in ("id", "hashes", "metadata", "first_seen", "state"):
        assert back[name] == known[name]


def test_candidates_split_after_full_hashing(world):
    """Contents 2 and 3 have equal samples and differ elsewhere; 2 is there twice."""
    catalog, ingest = world
    agent = ToyAgent(ingest)
    for name, content in (("a.mkv", 2), ("b.mkv", 2), ("c.mkv", 3)):
        agent.disk[name] = ToyFile(content, 500_000)
    agent.scan()
    agent.deliver()
    assert totals(catalog) == {1: (0, 0), 2: (1, 0)}
    for file in agent.disk.values():
        agent.full_known.add(file.key)
    agent.scan()
    agent.deliver()
    assert totals(catalog) == {1: (1, 500_000), 2: (0, 0)}
    check_catalogue_sums(catalog.path)


def totals(catalog):
    with catalog.reader() as db:
        return {row[0]: row[1:] for row in
                db.execute("SELECT state, groups, reclaimable FROM duplicate_total")}


def test_hard_links_and_empty_files_are_no_duplicates(world):
    catalog, ingest = world
    agent = ToyAgent(ingest)
    file = ToyFile(2, 500_000)
    agent.full_known.add(file.key)
    agent.disk = {f"name{number}.mkv": file for number in range(50)}
    agent.disk.update({f"empty{number}.mkv": ToyFile(9, 0) for number in range(5)})
    agent.scan()
    for batch in agent.batches(100):
        for record in batch["files"]:
            record.pop("moved_from", None)
        agent.host.batch(batch, "10.0.0.9")
    assert totals(catalog) == {1: (0, 0), 2: (0, 0)}
    check_catalogue_sums(catalog.path)


def test_a_number_is_not_told_before_its_transaction_is_committed(world):
    """Whoever waits for changes would read too early, and then wait for the next one."""
    catalog, _ = world
    seen = [catalog.seq]

    def work(db):
        catalog._run_change(db, lambda changes: changes.counters.next("seq"))
        seen.append(catalog.seq)

    catalog.write(work)
    assert seen[0] == seen[1]
    number = catalog.change(lambda changes: changes.counters.next("seq"))
    assert catalog.seq == number == seen[0] + 2


def test_forgetting_removes_rows_and_all_their_sums(world):
    catalog, ingest = world
    agent, other = ToyAgent(ingest), ToyAgent(ingest, "other", "/more")
    for one in (agent, other):
        for number in range(30):
            one.disk[f"d{number % 3}/f{number}.mkv"] = ToyFile(2, 500_000)
        one.full_known = {file.key for file in one.disk.values()}
        one.scan()
        one.deliver(50)
    with catalog.reader() as db:
        plan = ForgetPlan(db, agent.about["id"], {})
    assert plan.count() == {"files": 30, "missing": 0, "bytes": 30 * 500_000}
    forget_all(catalog, plan)
    assert set(stored_files(catalog)) == {f"/more/{path}" for path in other.disk}
    check_catalogue_sums(catalog.path)
    agent.acked = 0
    agent.deliver(50)
    assert len(stored_files(catalog)) == 60
    check_catalogue_sums(catalog.path)


def test_one_job_that_fails_takes_nobody_with_it(world):
    catalog, _ = world

    def fail(db):
        db.execute("INSERT INTO library VALUES ('broken', '1')")
        raise ValueError("no")

    jobs = [catalog.writer.submit(work) for work in (
        lambda db: db.execute("INSERT INTO library VALUES ('one', '1')"), fail,
        lambda db: db.execute("INSERT INTO library VALUES ('two', '2')"))]
    jobs[0].result(5)
    jobs[2].result(5)
    with pytest.raises(ValueError, match="no"):
        jobs[1].result(5)
    with catalog.reader() as db:
        keys = {row[0] for row in db.execute("SELECT key FROM library")}
    assert {"one", "two"} <= keys
    assert "broken" not in keys


def test_newer_schema_is_refused_and_damage_is_kept(tmp_path):
    catalog, _ = open_world(tmp_path / "newer.db")
    catalog.write(lambda db: db.execute("PRAGMA user_version=99"))
    catalog.close()
    with pytest.raises(NewerStoreError, match="newer medialib"):
        Catalog(str(tmp_path / "newer.db"))
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"this is no database at all" * 1000)
    before = damaged.read_bytes()
    catalog = Catalog(str(damaged))
    assert "To restore" in catalog.problem
    with pytest.raises(StoreError, match="damaged"):
        catalog.write(lambda db: None)
    catalog.close()
    assert damaged.read_bytes() == before


def test_killed_during_ingest_loses_nothing_acknowledged(tmp_path):
    """kill -9 while batches flow in: what was answered is there, whole batches only."""
    path = tmp_path / "medialib.db"
    for round_ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED_PROGRAM, str(path), str(round_)], cwd=support.ROOT,
            stdout=subprocess.PIPE, text=True)
        acknowledged = [child.stdout.readline()]
        end = time.monotonic() + 0.3 + 0.2 * round_
        while time.monotonic() < end:
            acknowledged.append(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        acknowledged += child.stdout.read().split("\n")
        child.wait()
        numbers = {int(line) for line in acknowledged if line.strip().isdigit()}
        catalog, _ = open_world(path)
        names = [row["name"] for row in stored_files(catalog).values()
                 if row["root"] == f"/media{round_}"]
        catalog.close()
        batches = {int(name.split("-")[0]) for name in names}
        assert numbers <= batches
        assert len(names) == 50 * len(batches)
        check_catalogue_sums(str(path))


KILLED_PROGRAM = """
import sys
from tests.catalog_world import ToyAgent, ToyFile, open_world
catalog, ingest = open_world(sys.argv[1])
agent = ToyAgent(ingest, "k" + sys.argv[2], "/media" + sys.argv[2])
for number in range(100000):
    for one in range(50):
        agent.disk[f"{number % 7}/{number}-{one}.mkv"] = ToyFile(one, 1000)
    agent.scan()
    agent.deliver(100)
    print(number, flush=True)
"""
