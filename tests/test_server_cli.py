"""The host's command line: exit codes, --scan alone and beside a host, --backup, restoring."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import threading
import time

import pytest

from medialib.server_cli import server_main, server_url
from medialib.base import FolderBusyError
from tests import support
from tests.agent_world import write


@pytest.fixture
def tree(tmp_path):
    for number in range(12):
        write(str(tmp_path / "media" / f"d{number % 3}" / f"{number}.jpg"), b"%d" % number)
    return tmp_path / "media"


@pytest.fixture
def home(tmp_path):
    return tmp_path / "data"


def run_here(home, *arguments) -> int:
    """server_main in this process, as its exit code."""
    before = {number: signal.getsignal(number) for number in (
        signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        return server_main([*map(str, arguments), "--data-dir", str(home), "-q"])
    except SystemExit as stop:
        return stop.code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def paths_in(database) -> list:
    with contextlib.closing(sqlite3.connect(str(database))) as db:
        return sorted(row[0] for row in db.execute("SELECT name FROM file WHERE state = 0"))


# Exit codes


@pytest.mark.parametrize(("arguments", "code"), [
    (["--no-such-flag"], 2), (["--port", "many"], 2), (["--keyfile", "k.pem"], 2),
    (["--version"], 0), (["--port", "70000"], 2), (["--allow", "everybody"], 2),
    (["--bind", "203.0.113.77"], 1), (["--certfile", "/none.pem"], 1),
])
def test_what_cannot_be_meant(home, capsys, arguments, code):
    assert run_here(home, *arguments) == code
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert said.out + said.err


def test_scan_and_exit(tree, home, capsys):
    assert run_here(home, "--scan", tree) == 0
    names = [f"{number}.jpg" for number in range(12)]
    assert paths_in(home / "medialib.db") == sorted(names)
    (tree / "d0" / "0.jpg").unlink()
    assert run_here(home, "--scan", tree) == 0
    assert paths_in(home / "medialib.db") == sorted(names[1:])
    tree.rename(tree.with_name("away"))
    assert run_here(home, "--scan", tree) == 3
    assert "offline" in capsys.readouterr().err
    assert paths_in(home / "medialib.db") == sorted(names[1:])


def test_scan_names_what_it_could_not_read(tree, home, capsys, monkeypatch):
    real = os.open

    def failing(path, *args, **named):
        if str(path).endswith("5.jpg"):
            raise OSError(5, "Input/output error")
        return real(path, *args, **named)

    monkeypatch.setattr(os, "open", failing)
    assert run_here(home, "--scan", tree) == 3
    assert "1 files or folders could not be read" in capsys.readouterr().err


def test_scan_with_a_damaged_catalogue(tree, home, capsys):
    home.mkdir(mode=0o700)
    (home / "medialib.db").write_bytes(b"no database" * 1000)
    assert run_here(home, "--scan", tree) == 1
    assert "To restore" in capsys.readouterr().err
    assert (home / "medialib.db").read_bytes() == b"no database" * 1000


def test_where_a_running_host_is_asked():
    assert server_url({"port": 7, "address": ""}) == "http://127.0.0.1:7"
    assert server_url({"port": 7, "address": "::"}) == "http://127.0.0.1:7"
    assert server_url({"port": 7, "address": "fd00::1", "tls": True}) == "https://[fd00::1]:7"
    with pytest.raises(FolderBusyError):
        server_url({"pid": 3})


# Beside a running host


@pytest.fixture
def host(machines, home):
    host = machines.host("--no-metrics")
    host.data = home
    return host


def test_beside_a_running_host(tree, home, host, capsys, tmp_path):
    """--scan goes through it, a second host is refused, --backup copies what it has."""
    host.start()
    assert run_here(home, "--scan", tree) == 0
    assert host.post("/api/summary")["files"] == 12
    assert run_here(home, "--scan", tree, tmp_path / "none") == 3
    assert "none is offline" in capsys.readouterr().err
    assert run_here(home, "--port", support.free_port()) == 4
    assert f"port {host.port}" in capsys.readouterr().err
    assert run_here(home, "--backup", tmp_path / "copy.db") == 0
    assert len(paths_in(tmp_path / "copy.db")) == 12
    assert host.stop() == 0


def test_backups_while_a_host_takes_in_batches(home, host, tmp_path, capsys):
    """Each copy holds every batch that was acknowledged before it began."""
    host.start()
    acknowledged, stop = [], threading.Event()

    def post() -> None:
        number = 0
        while not stop.is_set():
            files = [{"kind": "image", "path": f"/m/{number}/{index}.jpg", "size": 1, "mtime": 1.5,
                      "ctime": 1.5, "ext": ".jpg", "inode_key": f"1:1500000000:{number}{index}:1"}
                     for index in range(30)]
            host.post("/ingest/batch", {"batch_id": f"b{number}", "files": files,
                                        "agent": {"id": "script", "name": "script"}})
            acknowledged.append(number)
            number += 1

    poster = threading.Thread(target=post)
    poster.start()
    try:
        for number in range(support.LONG and 30 or 3):
            before = len(acknowledged)
            target = tmp_path / f"{number % 2}.db"  # each name is used again
            assert run_here(home, "--backup", target) == 0, capsys.readouterr().err
            assert "checked" in capsys.readouterr().out
            assert len(paths_in(target)) >= 30 * before
    finally:
        stop.set()
        poster.join()
    assert host.stop() == 0


@pytest.mark.parametrize("target", ["medialib.db", ".", "host.lock", "none/copy.db"])
def test_backup_to_a_place_that_cannot_be_meant(home, tree, capsys, target):
    assert run_here(home, "--scan", tree) == 0
    before = {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()}
    capsys.readouterr()
    assert run_here(home, "--backup", home / target) == 1
    assert "server.py: " in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()} == before


def test_backup_of_nothing(home, tmp_path, capsys):
    assert run_here(home, "--backup", tmp_path / "copy.db") == 1
    assert "there is no catalogue" in capsys.readouterr().err
    assert not (tmp_path / "copy.db").exists()


def test_backup_of_a_damaged_catalogue(home, tree, tmp_path, capsys):
    """No copy takes the place of a good one."""
    assert run_here(home, "--scan", tree) == 0
    assert run_here(home, "--backup", tmp_path / "copy.db") == 0
    good = (tmp_path / "copy.db").read_bytes()
    with (home / "medialib.db").open("r+b") as file:
        file.seek(4096 * 9)
        file.write(bytes(4096 * 3))
    assert run_here(home, "--backup", tmp_path / "copy.db") == 1
    assert "damaged" in capsys.readouterr().err
    assert (tmp_path / "copy.db").read_bytes() == good
    assert sorted(path.name for path in tmp_path.glob("copy*")) == ["copy.db"]


# What the README says of restoring, word for word


def readme_command() -> str:
    text = (support.ROOT / "README.md").read_text(encoding="utf-8")
    found = [line.strip() for line in text.splitlines() if "backups/NAME.db medialib.db" in line]
    assert len(found) == 1, found
    return found[0]


def test_restore_as_the_readme_says(home, tree, host, machines, capsys):
    """The host is killed, a daily copy is put in place; the agent sends again what it lacks."""
    host.start()
    agent = machines.agent(host, tree, "--once")
    assert agent.run() == 0, agent.output()
    assert run_here(home, "--backup", home / "copy.db") == 0
    (home / "backups").mkdir(exist_ok=True)
    os.rename(home / "copy.db", home / "backups" / "NAME.db")
    for number in range(12, 20):
        write(str(tree / "new" / f"{number}.jpg"), b"%d" % number)
    (tree / "d1" / "1.jpg").unlink()
    assert agent.run() == 0, agent.output()
    host.kill()
    assert (home / "medialib.db-wal").stat().st_size
    command = readme_command().replace("~/.medialib", str(home))
    assert os.system(command) == 0
    host.start()
    assert host.post("/api/summary")["files"] == 12
    trace = home.parent / "trace"
    if shutil.which("strace"):
        agent.prefix = ["strace", "-f", "-qqq", "-e", "trace=openat", "-o", str(trace)]
    assert agent.run() == 0, agent.output()
    rows = support.all_rows(host.url, "/api/files", {"filter": {"state": "present"}}, "files")
    there = sorted(str(path) for path in tree.rglob("*.jpg"))
    assert sorted(row["path"] for row in rows) == there
    assert all(row["hashes"]["full_hash"] for row in rows)
    if trace.exists():
        opened = trace.read_text("utf-8", "replace")
        assert '.jpg"' not in opened, "nothing is read a second time"
    assert host.stop() == 0


def test_term_ends_a_host_that_is_scanning(host, tmp_path):
    for number in range(400):
        write(str(tmp_path / "many" / f"{number}.bin"), os.urandom(20_000))
    host.arguments.append(tmp_path / "many")
    host.start()
    began = time.monotonic()
    assert host.stop() == 0
    assert time.monotonic() - began < 8
    assert "Traceback" not in host.output()
