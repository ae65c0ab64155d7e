"""The log of a database is copied back beside the one who writes, and stays bounded."""

from __future__ import annotations

import os
import threading

import pytest

from medialib.sqlite_store import LOG_PAGES_LEAST, LOG_PAGES_MOST, StoreConnection, open_reader
from tests.support import wait_until

PAGE_BYTES = 4096
CHECKPOINT_ROWS = LOG_PAGES_LEAST // 2
ROW_BYTES = 1000


@pytest.fixture
def store(tmp_path):
    store = StoreConnection(str(tmp_path / "some.db"))
    with store.atomic() as db:
        db.execute("CREATE TABLE some (id INTEGER PRIMARY KEY, text TEXT)")
    yield store
    store.close()


def add_rows(store, count: int, at_once: int = 500) -> None:
    for _ in range(0, count, at_once):
        with store.atomic() as db:
            db.executemany("INSERT INTO some (text) VALUES (?)", [("x" * ROW_BYTES,)] * at_once)


def checkpoint_threads() -> set:
    return {one for one in threading.enumerate() if one.name == "checkpoints"}


def test_the_log_is_copied_without_the_writer(store):
    store.db.execute("PRAGMA wal_autocheckpoint=0")  # the writer itself never does it
    add_rows(store, CHECKPOINT_ROWS)
    wait_until(lambda: os.path.getsize(store.path) > CHECKPOINT_ROWS * ROW_BYTES // 2)


def test_few_changes_start_no_thread(store):
    before = checkpoint_threads()
    add_rows(store, CHECKPOINT_ROWS // 2)
    assert checkpoint_threads() <= before


@pytest.mark.parametrize("copied", ["when it is due", "all the time"])
def test_the_log_stays_bounded_through_a_long_burst(store, copied):
    """Only the writer can let the log begin anew, and not while another copies it: as on a slow
    disk, where one copy follows the other.
    """
    rows, most_bytes, ended = 0, 0, threading.Event()

    def want_all_the_time() -> None:
        while not ended.wait(0.0005):
            store._checkpoints.want()

    if copied == "all the time":
        threading.Thread(target=want_all_the_time, daemon=True).start()
    try:
        while rows < 4 * LOG_PAGES_LEAST * PAGE_BYTES // ROW_BYTES:
            add_rows(store, 500)
            rows += 500
            most_bytes = max(most_bytes, os.path.getsize(f"{store.path}-wal"))
    finally:
        ended.set()
    # The part that is written while a copy is under way comes on top.
    assert LOG_PAGES_LEAST * PAGE_BYTES < most_bytes < 2 * LOG_PAGES_LEAST * PAGE_BYTES
    assert store.one("SELECT count(*) FROM some")[0] == rows


def test_a_reader_keeps_its_view_while_the_log_is_copied(store):
    reader = open_reader(store.path)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM some").fetchone() == (0,)
    add_rows(store, 2 * CHECKPOINT_ROWS)
    assert reader.execute("SELECT count(*) FROM some").fetchone() == (0,)
    reader.execute("COMMIT")
    assert reader.execute("SELECT count(*) FROM some").fetchone() == (2 * CHECKPOINT_ROWS,)
    reader.close()


def test_closing_ends_the_thread_and_leaves_no_log(store):
    before = checkpoint_threads()
    add_rows(store, 2 * CHECKPOINT_ROWS)
    own = checkpoint_threads() - before
    assert len(own) == 1
    store.close()
    assert not any(one.is_alive() for one in own)
    assert os.listdir(os.path.dirname(store.path)) == ["some.db"]


def test_closing_in_the_middle_of_a_copy_loses_nothing(store):
    for _ in range(5):
        add_rows(store, CHECKPOINT_ROWS, at_once=CHECKPOINT_ROWS)
    store.close()
    again = StoreConnection(store.path)
    assert again.one("SELECT count(*) FROM some")[0] == 5 * CHECKPOINT_ROWS
    again.close()


def test_a_private_temporary_database_has_no_log_to_copy():
    before = checkpoint_threads()
    store = StoreConnection("")
    with store.atomic() as db:
        db.execute("CREATE TABLE some (id INTEGER PRIMARY KEY, text TEXT)")
    add_rows(store, 2 * CHECKPOINT_ROWS)
    assert checkpoint_threads() <= before
    store.close()


def test_the_log_of_a_large_database_may_be_longer(store, monkeypatch):
    def limit() -> int:
        return store.one("PRAGMA wal_autocheckpoint")[0]

    monkeypatch.setattr("medialib.sqlite_store.LOG_SHARE", 0.5)
    assert limit() == LOG_PAGES_LEAST
    add_rows(store, 6 * CHECKPOINT_ROWS)
    assert LOG_PAGES_LEAST < limit() == store._checkpoints.log_pages < LOG_PAGES_MOST
    monkeypatch.setattr("medialib.sqlite_store.LOG_SHARE", 0.001)
    add_rows(store, 2 * limit())
    assert limit() == LOG_PAGES_MOST
    again = StoreConnection(store.path)
    assert again.one("PRAGMA wal_autocheckpoint")[0] == LOG_PAGES_MOST
    again.close()


def test_many_short_lives_leave_no_long_log(store):
    """As of a program that is killed again and again, before it would have the log copied."""
    lives = []
    try:
        for _ in range(20):
            lives.append(StoreConnection(store.path))
            add_rows(lives[-1], CHECKPOINT_ROWS - 500)
            log_bytes = os.path.getsize(f"{store.path}-wal")
            assert log_bytes < 1.5 * LOG_PAGES_LEAST * PAGE_BYTES
        assert os.path.getsize(store.path) > LOG_PAGES_LEAST * PAGE_BYTES
    finally:
        for life in lives:
            life.close()
