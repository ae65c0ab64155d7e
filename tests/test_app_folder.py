"""The data folder: whose it is, its lock between processes, private files, the log."""

from __future__ import annotations

import io
import json
import logging
import os
import stat
import subprocess
import sys
import threading
import time

import pytest

from medialib.app_folder import (
    LOG_FILE_COPIES,
    FolderLock,
    data_folder,
    setup_logging,
    write_private_file,
)
from medialib.base import EXIT_BUSY, EXIT_USAGE, FolderBusyError, MedialibError, log

from .support import ROOT, need_root


def mode_of(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture(autouse=True)
def _no_home_of_ours(tmp_path, monkeypatch):
    monkeypatch.delenv("MEDIALIB_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.setLevel(logging.NOTSET)


def test_the_folder_is_named_by_flag_environment_or_home(tmp_path, monkeypatch):
    assert data_folder(None) == str(tmp_path / "home" / ".medialib")
    monkeypatch.setenv("MEDIALIB_HOME", str(tmp_path / "by environment"))
    assert data_folder(None) == str(tmp_path / "by environment")
    assert data_folder(str(tmp_path / "by" / "flag")) == str(tmp_path / "by" / "flag")
    assert data_folder("~/x") == str(tmp_path / "home" / "x")
    monkeypatch.chdir(tmp_path)
    assert data_folder("relative") == str(tmp_path / "relative")


def test_it_is_ours_alone_whatever_the_umask(tmp_path):
    old = os.umask(0)
    try:
        path = data_folder(str(tmp_path / "a"))
    finally:
        os.umask(old)
    assert mode_of(path) == 0o700
    os.chmod(path, 0o755)
    data_folder(path)
    assert mode_of(path) == 0o700
    assert os.listdir(path) == []


def test_what_cannot_be_a_data_folder_is_explained(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path, words in ((file, "is not a folder"), (file / "below", "cannot make"),
                        (dangling, "does not exist"), (loop, "does not exist")):
        with pytest.raises(MedialibError, match=words) as caught:
            data_folder(str(path))
        assert str(path) in str(caught.value)
    assert not (tmp_path / "nowhere").exists()


def test_a_shared_folder_is_left_as_it_is(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chmod(shared, 0o1777)
    with pytest.raises(MedialibError, match="folder of its own") as caught:
        data_folder(str(shared))
    assert caught.value.exit_code == EXIT_USAGE
    assert mode_of(shared) == 0o1777
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    with pytest.raises(MedialibError, match="folder of its own"):
        data_folder("~")
    assert mode_of(home) == 0o755


def test_the_folder_of_another_user_is_refused(tmp_path):
    need_root()
    other = tmp_path / "other"
    other.mkdir()
    os.chown(other, 65534, 65534)
    with pytest.raises(MedialibError, match="another user"):
        data_folder(str(other))


def test_a_read_only_folder_is_refused(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    script = ("from medialib.app_folder import data_folder\n"
              "from medialib.base import MedialibError\n"
              "import os, sys\n"
              "if os.geteuid() == 0:\n"
              "    os.chown(sys.argv[1], 65534, 65534)\n"
              "    os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
              "try:\n"
              "    data_folder(sys.argv[1])\n"
              "except MedialibError as error:\n"
              "    print(error)\n")
    for path in [locked, *list(locked.parents)[:-1]]:  # not "/" itself
        os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | 0o055)
    os.chmod(locked, 0o500)
    done = subprocess.run([sys.executable, "-c", script, str(locked)], cwd=ROOT,
                          capture_output=True, text=True, timeout=60)
    if "Permission denied" in done.stderr and "getcwd" in done.stderr:
        pytest.skip("the checkout is not readable by others")
    assert "cannot write in the data folder" in done.stdout, done.stderr


def test_private_files_are_replaced_whole(tmp_path):
    path = tmp_path / "id"
    old = os.umask(0)
    try:
        write_private_file(str(path), "one\n")
    finally:
        os.umask(old)
    assert mode_of(path) == 0o600
    os.chmod(path, 0o644)
    write_private_file(str(path), "zwei ä\n")
    assert path.read_bytes() == "zwei ä\n".encode()
    assert mode_of(path) == 0o600
    assert os.listdir(tmp_path) == ["id"]
    with pytest.raises(MedialibError, match="cannot write"):
        write_private_file(str(tmp_path / "no" / "id"), "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(MedialibError, match="cannot write"):
        write_private_file(str(tmp_path / "folder"), "x")
    assert sorted(os.listdir(tmp_path)) == ["folder", "id"]


def holding_process(folder, name: str = "agent", port: int = 8877):
    script = ("import sys\n"
              "from medialib.app_folder import FolderLock\n"
              "lock = FolderLock(sys.argv[1], sys.argv[2])\n"
              "lock.acquire()\n"
              "lock.write_holder({'port': int(sys.argv[3])})\n"
              "print('held', flush=True)\n"
              "sys.stdin.readline()\n")
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder), name, str(port)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_hears_who_holds_the_lock(tmp_path):
    process = holding_process(tmp_path)
    try:
        mine = FolderLock(str(tmp_path), "agent")
        with pytest.raises(FolderBusyError) as caught:
            mine.acquire()
        assert caught.value.exit_code == EXIT_BUSY
        for part in (f"process {process.pid}", "port 8877", str(tmp_path), "--data-dir"):
            assert part in str(caught.value)
        assert mine.read_holder() == {"pid": process.pid, "port": 8877}
        other = FolderLock(str(tmp_path), "host")  # each kind has its own
        other.acquire()
        other.release()
        process.kill()  # however it ends
        process.wait()
        assert mine.read_holder() is None
        mine.acquire()
        assert mine.read_holder() == {"pid": os.getpid()}
        mine.release()
        assert mine.read_holder() is None
    finally:
        process.kill()
        process.communicate()


def test_nobody_holds_a_lock_that_was_never_taken(tmp_path):
    lock = FolderLock(str(tmp_path), "agent")
    assert lock.read_holder() is None
    assert os.listdir(tmp_path) == []
    lock.release()
    with pytest.raises(MedialibError, match="not held"):
        lock.write_holder({"port": 1})


def test_asking_who_holds_it_never_keeps_anybody_from_taking_it(tmp_path):
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            FolderLock(str(tmp_path), "agent").read_holder()

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            lock = FolderLock(str(tmp_path), "agent")
            lock.acquire()
            lock.write_holder({"port": 7})
            time.sleep(0.005)
            lock.release()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_child_does_not_inherit_the_lock(tmp_path):
    lock = FolderLock(str(tmp_path), "agent")
    lock.acquire()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"],
                             close_fds=False)
    try:
        lock.release()
        again = FolderLock(str(tmp_path), "agent")
        again.acquire()
        again.release()
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"[1]", b"{", b"{}" * 9000])
def test_strange_lock_files_do_no_harm(tmp_path, text):
    (tmp_path / "agent.lock").write_bytes(text)
    lock = FolderLock(str(tmp_path), "agent")
    assert lock.read_holder() is None
    lock.acquire()
    assert json.loads((tmp_path / "agent.lock").read_text()) == {"pid": os.getpid()}
    assert mode_of(tmp_path / "agent.lock") & 0o022 == 0
    lock.release()


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "agent.lock").symlink_to(tmp_path / "target")
    with pytest.raises(MedialibError, match="cannot open"):
        FolderLock(str(tmp_path), "agent").acquire()
    assert (tmp_path / "target").read_text() == "precious"


def test_the_log_goes_to_console_and_file(tmp_path, monkeypatch):
    console = io.StringIO()
    monkeypatch.setattr(sys, "stderr", console)
    path = tmp_path / "agent.log"
    setup_logging(str(path), 0)
    log.debug("a detail")
    log.info("found %s", "na\x1b[31mme\nsecond \udce9 \x9b")
    log.warning("careful")
    assert mode_of(path) == 0o600
    for text in (console.getvalue(), path.read_text(encoding="utf-8")):
        assert "a detail" not in text
        assert "found na\\x1b[31mme\\x0asecond" in text
        assert "\\x9b" in text
        assert text.count("\n") == 2


@pytest.mark.parametrize(("verbosity", "words"), [
    (-1, ["careful"]), (0, ["news", "careful"]), (1, ["detail", "news", "careful"]),
    (5, ["detail", "news", "careful"]), (-5, ["careful"]),
])
def test_how_much_the_console_says(tmp_path, monkeypatch, verbosity, words):
    console = io.StringIO()
    monkeypatch.setattr(sys, "stderr", console)
    setup_logging(str(tmp_path / "log"), verbosity)
    setup_logging(str(tmp_path / "log"), verbosity)  # does not say everything twice
    log.debug("detail")
    log.info("news")
    log.warning("careful")
    assert [line.split()[-1] for line in console.getvalue().splitlines()] == words
    assert "news" in (tmp_path / "log").read_text()


def test_a_traceback_keeps_its_lines(tmp_path):
    setup_logging(str(tmp_path / "log"), -1)
    try:
        raise ValueError("inside")
    except ValueError:
        log.exception("failed")
    assert len((tmp_path / "log").read_text().splitlines()) >= 4


def test_a_log_that_cannot_be_opened_is_only_a_warning(tmp_path, monkeypatch):
    console = io.StringIO()
    monkeypatch.setattr(sys, "stderr", console)
    setup_logging(str(tmp_path / "no" / "log"), 0)
    log.info("going on")
    assert "no log file" in console.getvalue()
    assert "going on" in console.getvalue()
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    setup_logging(str(tmp_path / "link"), 0)
    log.info("not there")
    assert (tmp_path / "target").read_text() == "precious"


def test_a_full_disk_does_not_stop_the_program():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    setup_logging("/dev/full", 0)
    for _ in range(3):
        log.info("written nowhere")


def test_the_log_rotates(tmp_path, monkeypatch):
    monkeypatch.setattr("medialib.app_folder.LOG_FILE_BYTES", 2000)
    setup_logging(str(tmp_path / "log"), -1)
    for number in range(400):
        log.info("line %s of many", number)
    files = sorted(os.listdir(tmp_path))
    assert files == ["log"] + [f"log.{n}" for n in range(1, LOG_FILE_COPIES + 1)]
    for name in files:
        assert mode_of(tmp_path / name) == 0o600
        assert os.path.getsize(tmp_path / name) <= 2000
