"""The agent as a process without a host: exit codes, signals, its control port, its data folder."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests import support
from tests.agent_world import World, write


@pytest.fixture
def silent_host():
    """The port of something that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(20)
        yield listener.getsockname()[1]


class Agents:
    """Starts agents on one data folder and one small tree."""

    def __init__(self, folder):
        self.folder = folder
        self.tree = str(folder / "tree")
        write(f"{self.tree}/a/b.txt", b"hello")
        self.running = []

    def start(self, port: int, *arguments):
        command = [sys.executable, "-m", "medialib", "agent", f"127.0.0.1:{port}", self.tree,
                   "--data-dir", str(self.folder / "home"), *arguments]
        process = subprocess.Popen(command, cwd=support.ROOT, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True)
        self.running.append(process)
        return process

    def serving(self, port: int):
        """(process, port) of an agent that answers on its control port."""
        own = support.free_port()
        process = self.start(port, "--port", str(own), "--bind", "127.0.0.1")

        def answers():
            with contextlib.suppress(OSError):
                return support.request(f"http://127.0.0.1:{own}", "/agent/ping")[0] == 200

        support.wait_until(answers, 60, "the agent's control port")
        return process, own


@pytest.fixture
def agents(tmp_path):
    agents = Agents(tmp_path)
    yield agents
    for process in agents.running:
        process.kill()
        process.communicate()


def test_without_a_host_something_is_left_over(agents):
    process = agents.start(support.free_port(), "--once", "--port", "0")
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 3, text
    assert "not delivered" in text


def test_usage_and_check(agents):
    process = agents.start(70000)
    assert process.wait(60) == 2
    process = agents.start(support.free_port(), "--check")
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 1
    assert "can be read" in text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stops_in_time_while_the_host_is_silent(agents, silent_host, number):
    def ended() -> float:
        process, _ = agents.serving(silent_host)
        started = time.monotonic()
        process.send_signal(number)
        assert process.wait(60) == (130 if number == signal.SIGINT else 0)
        return time.monotonic() - started

    support.assert_in_time(ended, 5)


def test_one_agent_per_data_folder_and_clearing_through_it(agents, silent_host):
    _, own = agents.serving(silent_host)
    url = f"http://127.0.0.1:{own}"
    second = agents.start(silent_host, "--port", "0", "--once")
    assert second.wait(60) == 4
    clearing = agents.start(silent_host, "--clear-cache")
    assert clearing.wait(60) == 0
    for _ in range(20):
        support.assert_prompt(lambda: support.get(url, "/agent/stats")["phase_name"], 0.1, 1.0)
    assert support.request(url, "/agent/ls?path=/no/such/folder")[0] == 404
    assert support.get(url, "/agent/cache_info")["exists"]
    assert support.post(url, "/agent/compact_cache")["after_bytes"] > 0


def test_without_a_data_folder_nothing_is_written(agents, silent_host, tmp_path):
    support.need_root()
    support.need("setpriv")
    work = tmp_path / "readonly"
    work.mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:2]:
        parent.chmod(0o755)
    python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env",
               f"HOME={work}", f"PYTHONPATH={support.ROOT}", python, "-m", "medialib",
               "agent", "127.0.0.1:1", agents.tree, "--port", "0", "--once", "-q"]
    trial = [*command[:-7], "agent", "--version"]
    if subprocess.run(trial, capture_output=True, check=False).returncode:
        support.lack("this Python cannot be run by another user")
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=120,
                          check=False)
    assert done.returncode == 3, done.stderr
    assert "without a memory" in done.stderr
    assert os.listdir(work) == []


# Without a process

def test_scan_now_ends_full_hashes_which_go_on_later(tmp_path):
    world = World(tmp_path)
    world.write("big.mkv", os.urandom(50_000))
    service = world.service
    real = service.scanner._full_hashes
    service.scanner._full_hashes = lambda plan, scans: (
        service.scanner.stats.phase_is(1, "full hashes"), service.scan_now())
    assert not service.scan()
    service.scanner._full_hashes = real
    world.sync()
    world.check()
    world.stop()


def test_a_closed_window_keeps_large_files_waiting(tmp_path):
    hour = [12]
    day = time.mktime((2024, 5, 5, 0, 0, 0, 0, 0, -1))
    world = World(tmp_path, config={"agent_offpeak_start": 22, "agent_offpeak_end": 6},
                  clock=lambda: day + hour[0] * 3600)
    path = world.write("big.mkv", os.urandom(50_000))
    world.sync()
    assert world.known()[path]["hashes"]["full_hash"] is None
    assert not world.service._window_opened()
    hour[0] = 23
    assert world.service._window_opened()
    world.sync()
    world.check()
    assert not world.service._window_opened()
    world.stop()
