"""The line between agent and host: away, slow, lying, repeating, refusing. Nothing is lost."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import os
import shutil
import signal
import socket
import sqlite3
import threading
import time

import pytest

from tests import media, processes, support
from tests.faults import harness

BATCH = 7


class Meddler(processes.Recorder):
    """Between agent and host. `meddle(path, body)` says what happens to a request: "pass", "drop",
    "drop after" (the host has executed it), "twice", "late" or (status, headers, bytes).
    """

    def __init__(self, host, meddle):
        super().__init__(host)
        meddler = self
        self.meddle = meddle
        self.counts = {}

        class Handler(self.server.RequestHandlerClass):
            def answer(self, body):
                meddler.handle(self, host, body)

        self.server.RequestHandlerClass = Handler

    def handle(self, handler, host, body) -> None:
        what = self.meddle(handler.path, body)
        self.counts[str(what)[:12]] = self.counts.get(str(what)[:12], 0) + 1
        if isinstance(what, tuple):
            self.reply(handler, *what)
            return
        if what == "drop":
            handler.close_connection = True
            return
        if what == "late":
            time.sleep(1.0)
        status, said = self.pass_on(host.url, handler.path, body, handler.headers)
        if what == "twice":
            status, said = self.pass_on(host.url, handler.path, body, handler.headers)
        if what == "drop after":
            handler.close_connection = True
            return
        self.reply(handler, status, {}, said)

    def reply(self, handler, status: int, headers: dict, said: bytes) -> None:
        with contextlib.suppress(OSError):
            handler.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(said)))
            handler.end_headers()
            handler.wfile.write(said)


def refusal(status: int, **headers) -> tuple:
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, json.dumps(
        {"ok": False, "error": "not now", "detail": "made by a test"}).encode()


PORTAL = (200, {"Content-Type": "text/html"}, b"<html>Welcome! Please log in.</html>")
FAULTS = ["drop", "drop after", "twice", "late", refusal(503, Retry_After="1"), refusal(500),
          refusal(429, Retry_After="1"), refusal(502), PORTAL, (200, {}, b'{"ok": true}'),
          (200, {}, b'{"ok": tr'), (200, {}, b"[]"), (200, {}, b"")]


@pytest.mark.long
def test_a_line_that_fails_in_every_way(world):
    one = world.tree("first", 150 if support.LONG else 40, 2)
    host = world.host().start()
    host.settings(agent_batch_size=BATCH)
    broken = [True]

    def meddle(path, body):
        if broken[0] and world.random.random() < 0.3:
            return world.random.choice(FAULTS)
        return "pass"

    with Meddler(host, meddle) as meddler:
        agent = world.once(meddler, one.root)
        for _ in range(2):
            with harness.untouched(one.root):
                agent.run()
            assert "Traceback" not in agent.output(), agent.output()[-3000:]
            media.random_changes(one, 10)
        broken[0] = False
        world.scan(agent)
        world.exact(host, "box", one.root, context=str(meddler.counts))
        world.sound(agent)


@pytest.mark.long
@pytest.mark.parametrize("run", range(20))
def test_a_line_that_fails_for_long(world, run):
    world.random.seed(f"{harness.SEED} {run}")
    test_a_line_that_fails_in_every_way(world)


def test_redirects_are_not_followed(world):
    """Private paths go to the host that was named, and to nobody else."""
    one = world.tree("first", 5, 0)
    elsewhere = world.host().start()
    statuses, sent, strays = [301, 302, 303, 307, 308], [], []
    with Meddler(elsewhere, lambda path, body: strays.append(path) or "pass") as stranger:
        def meddle(path, body):
            sent.append(statuses[len(sent) % len(statuses)])
            return refusal(sent[-1], Location=stranger.url + path)

        with Meddler(elsewhere, meddle) as meddler:
            agent = world.agent(meddler, one.root).start()
            support.wait_until(lambda: set(sent) == set(statuses), 60)
            support.wait_until(lambda: agent.stats()["seen"] >= 5, 30)
            assert agent.stop() == 0
    assert strays == []
    assert "it sends us on to" in agent.output()
    assert "Traceback" not in agent.output()
    assert known_agents(elsewhere) == ["local"]


def known_agents(host) -> list:
    return [agent["id"] for agent in host.post("/api/agents")["agents"]]


def test_proxies_are_not_used(world):
    one = world.tree("first", 8, 0)
    host = world.host().start()
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_one_request(self):
            seen.append(self.rfile.readline())
            self.close_connection = True

    with serving(Handler) as url:
        proxies = dict.fromkeys(["http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY",
                                 "all_proxy"], url)
        world.scan(world.once(host, one.root, environment=proxies))
    world.exact(host, "box", one.root)
    assert seen == []


@contextlib.contextmanager
def serving(handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_host_that_takes_small_batches_only(world):
    """413: halved until it fits."""
    one = world.tree("first", 40, 1)
    host = world.host().start()

    def meddle(path, body):
        if path == "/ingest/batch" and body and len(unpacked(body)["files"]) > 3:
            return refusal(413)
        return "pass"

    with Meddler(host, meddle) as meddler:
        agent = world.once(meddler, one.root)
        world.scan(agent)
        world.exact(host, "box", one.root)


def unpacked(body: bytes) -> dict:
    return json.loads(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)


def test_a_poison_row_is_set_apart(world):
    """A record that the host cannot take blocks nobody; when it changes it is tried again."""
    one = world.tree("first", 30, 0)
    host = world.host().start()
    poison = str(sorted(one.files())[7])
    active = [True]

    def meddle(path, body):
        if path == "/ingest/batch" and active[0] and any(
                record["path"] == poison for record in unpacked(body)["files"]):
            return refusal(400)
        return "pass"

    with Meddler(host, meddle) as meddler:
        agent = world.once(meddler, one.root)
        world.scan(agent)
        rows = harness.rows_by_path(host, "box")
        assert poison not in rows
        assert len(rows) == len(media_paths(one)) - 1
        active[0] = False
        with open(poison, "ab") as file:
            file.write(b"other content now")
        world.scan(agent)
        world.exact(host, "box", one.root)


def media_paths(one) -> list:
    return [path for path in one.files() if "@eaDir" not in str(path)]


@pytest.mark.long
def test_host_away_for_a_week_of_changes(world):
    """What waits is bounded by the number of paths there were, not of changes."""
    one = world.tree("first", 60, 1)
    host = world.host().start()
    world.scan(world.once(host, one.root))
    host.kill()
    agent = world.agent(host, one.root).start()
    paths = set()
    for _ in range(40):
        paths.update(one.files())
        for path in one.files()[:30]:
            with path.open("ab") as file:
                file.write(b"one more day")
        media.random_changes(one, 3)
        agent.post("/agent/scan_now")
        time.sleep(0.3)
        support.wait_until(lambda: agent.stats()["phase"] == 0, 30)
    agent.kill()
    paths.update(one.files())
    waiting = outbox_records(agent)
    assert waiting <= 2 * len(paths), (waiting, len(paths))
    assert (agent.data / "agent_cache.db").stat().st_size < 4 << 20
    host.start()
    with processes.Recorder(host) as recorder:
        world.scan(world.once(recorder, one.root))
        assert len(recorder.records()) <= 3 * len(one.files())
    world.exact(host, "box", one.root)


def outbox_records(agent) -> int:
    db = sqlite3.connect(str(agent.data / "agent_cache.db"))
    payloads = [json.loads(row[0]) for row in db.execute("SELECT payload_json FROM outbox")]
    db.close()
    return sum(len(payload.get("files", [])) + len(payload.get("removed", []))
               for payload in payloads)


def test_the_same_batch_a_hundred_times(world):
    host = world.host().start()
    files = [harness.record(f"/m/{number}.jpg", number + 1) for number in range(20)]
    body = {"batch_id": "one", "agent": {"id": "script"}, "files": files}
    first = host.post("/ingest/batch", body)
    changes = host.post("/api/changes", {"after": 0})
    assert all(host.post("/ingest/batch", body) == first for _ in range(100))
    for number in range(20):  # the same files under another number are no change either
        host.post("/ingest/batch", dict(body, batch_id=f"again {number}"))
    assert host.post("/api/changes", {"after": 0}) == changes


def test_batches_of_older_agents_in_any_order(world):
    """Without an order of their own the last word counts, and repeats change nothing."""
    host = world.host().start()
    batches = [{"batch_id": f"b{number}", "files": [
        harness.record(f"/m/{index}.jpg", number * 10 + index + 1) for index in range(5)]}
        for number in range(10)]
    for batch in batches:
        host.post("/ingest/batch", batch)
    for _ in range(30):
        host.post("/ingest/batch", world.random.choice(batches))
    rows = support.all_rows(host.url, "/api/files", {"filter": {}}, "files")
    assert sorted(row["size"] for row in rows) == [91, 92, 93, 94, 95]


def test_late_execution_of_a_frozen_host(world):
    """The agent gave up, the host wakes and executes: nothing older wins over something newer."""
    one = world.tree("first", 60, 1)
    host = world.host().start()
    host.settings(agent_batch_size=BATCH)
    agent = world.agent(host, one.root).start()
    for _ in range(8 if support.LONG else 2):
        time.sleep(world.random.uniform(0.1, 0.6))
        host.signal_all(signal.SIGSTOP)
        media.random_changes(one, 6)
        agent.kill()
        agent.start(ready=False)
        time.sleep(0.8)
        host.signal_all(signal.SIGCONT)
    agent.kill()
    world.scan(world.once(host, one.root))
    world.exact(host, "box", one.root)


class Endless(http.server.BaseHTTPRequestHandler):
    """Answers, and never comes to the end of it."""

    step = b"          "
    pause_s = 0.3

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(b'{"ok": true, "x": "')
            while True:
                self.wfile.write(self.step)
                time.sleep(self.pause_s)

    do_GET = do_POST

    def log_message(self, *arguments):
        pass


class Flood(Endless):
    """As much as the line takes."""

    step = b"a" * (1 << 20)
    pause_s = 0.0


def peak_mib(agent) -> int:
    with open(f"/proc/{agent.process.pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) >> 10 for line in status if line.startswith("VmHWM"))


class Heavy(Endless):
    """Good answers, with much more in them than anybody asked for."""

    more = b"0"
    packed = False

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = (b'{"ok": true, "library_id": "heavy", "protocol": 1, "config": {}, "commands": [],'
                b' "processed": 20, "errors": [], "folders": [], "next": null, "x": '
                + self.more + b"}")
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        if self.packed:
            body = gzip.compress(body, 1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    do_GET = do_POST


class ManyLists(Heavy):
    more = b"[" + b"[]," * (4 << 20) + b"0]"
    packed = True


class ManyDicts(Heavy):
    more = b"[" + (b'{"":' * 60 + b"1" + b"}" * 60 + b",") * 16_000 + b"0]"


class FewerDicts(Heavy):
    """As many as are taken."""

    more = b"[" + (b'{"":' * 60 + b"1" + b"}" * 60 + b",") * 4000 + b"0]"


class WideText(Heavy):
    """One letter of four bytes makes every other as large."""

    more = b'"\\ud83d\\ude00' + b"x" * (24 << 20) + b'"'


@pytest.mark.parametrize("handler", [ManyLists, ManyDicts, FewerDicts, WideText])
def test_heavy_answers_are_not_made_in_memory(world, handler):
    one = world.tree("first", 20, 0)
    with serving(handler) as url:
        agent = world.agent(url, one.root).start()
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            agent.stats()
            time.sleep(0.1)
        peak = peak_mib(agent)
        print(f"{handler.__name__}: peak {peak} MiB")
        assert peak < 160
        assert "Traceback" not in agent.output()
        assert agent.stop() == 0


@pytest.mark.parametrize("handler", [Flood, Endless])
def test_answer_that_never_ends(world, handler):
    """The control port answers at once all the time, memory stays small, SIGTERM ends it."""
    one = world.tree("first", 20, 0)
    with serving(handler) as url:
        agent = world.agent(url, one.root).start()
        for _ in range(40):
            support.assert_prompt(agent.stats, 0.1, 1.0)
            time.sleep(0.1)
        assert peak_mib(agent) < 200
        support.assert_in_time(lambda: seconds_to_stop(agent), 5)
        assert "Traceback" not in agent.output()


def seconds_to_stop(agent) -> float:
    if not agent.running():
        agent.start()
    started = time.monotonic()
    assert agent.stop() == 0
    return time.monotonic() - started


@contextlib.contextmanager
def slow_link(port: int, bytes_s: int):
    """The URL of a relay to this port that lets so many bytes through in a second each way."""
    def pump(source, target) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(max(1, bytes_s // 20)):
                target.sendall(data)
                time.sleep(len(data) / bytes_s)
            target.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", port))
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def test_a_slow_link_delivers_everything(world):
    """Twenty thousand bytes a second: it takes longer, and that is all."""
    one = world.tree("first", 150, 2)
    host = world.host().start()
    with slow_link(host.port, 20_000) as url:
        world.scan(world.once(url, one.root))
    world.exact(host, "box", one.root)


@pytest.mark.long
@pytest.mark.parametrize("accepts", [True, False])
def test_black_hole(world, accepts):
    """A host that takes the connection (or not even that) and says nothing."""
    one = world.tree("first", 20, 1)
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(64 if accepts else 0)
        port = hole.getsockname()[1]
        fillers = [] if accepts else [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        agent = world.agent(f"http://127.0.0.1:{port}", one.root).start()
        support.wait_until(lambda: agent.stats()["seen"] >= 20 or long_enough(agent), 45)
        support.assert_in_time(lambda: seconds_to_stop(agent), 5)
        for filler in fillers:
            filler.close()


def long_enough(agent) -> bool:
    return agent.stats()["phase"] == 0 and agent.stats()["seen"] > 0


# Identity


def test_two_agents_of_one_name(world):
    """Their ids tell them apart; the same path on both is two files."""
    one = world.tree("first", 15, 0)
    host = world.host().start()
    first = world.once(host, one.root)
    second = world.once(host, one.root)
    second.folder = world.folder / "other machine"
    second.data, second.home = second.folder / "data", second.folder / "home"
    second.home.mkdir(parents=True)
    world.scan(first)
    world.scan(second)
    agents = [agent for agent in host.post("/api/agents")["agents"] if agent["name"] == "box"]
    assert len({agent["id"] for agent in agents}) == 2


@pytest.mark.timeout(240)
def test_cloned_home_on_two_machines(world):
    """One id on two machines is noticed; what the two have is never mixed."""
    trees = [world.tree(name, 20, 0) for name in ("first", "second")]
    with processes.two_networks() as ((here, address), (there, other)):
        host = world.host(address=address, prefix=processes.inside_network(here))
        host.start(ready=False)

        def ask(path, body=None):
            return processes.request_inside(here, host.url, path, body)

        support.wait_until(lambda: ask("/health")[0] == 200, 60)
        agents = [world.agent(host, one.root, name=f"box{number}", address=where,
                              prefix=processes.inside_network(network))
                  for number, (one, network, where) in enumerate(
                      zip(trees, (here, there), (address, other)))]
        agents[0].start(ready=False)
        support.wait_until(lambda: any(agent["name"] == "box0" for agent in ask(
            "/api/agents", {})[1]["agents"]), 30)
        agents[1].data.mkdir()
        shutil.copy(agents[0].data / "agent_id", agents[1].data / "agent_id")
        agents[1].start(ready=False)
        support.wait_until(lambda: len(known_ids(ask)) == 2, 150, "a second id", 1.0)
        for number, one in enumerate(trees):
            expected = {str(os.fsdecode(path)) for path in media_paths(one)}
            support.wait_until(lambda number=number, expected=expected: len(files_of(
                ask, f"box{number}")) >= len(expected), 60, "all files", 1.0)
            assert {os.path.commonpath([path, str(one.root)])
                    for path in files_of(ask, f"box{number}")} == {str(one.root)}
        for program in (*agents, host):
            program.kill()


def known_ids(ask) -> set:
    return {agent["id"] for agent in ask("/api/agents", {})[1]["agents"]
            if agent["name"].startswith("box") and agent["id"] != "local"}


def files_of(ask, name: str) -> list:
    agents = [agent["id"] for agent in ask("/api/agents", {})[1]["agents"]
              if agent["name"] == name]
    if not agents:
        return []
    body = {"filter": {"agent": agents[0], "state": "present"}, "limit": 1000}
    return [row["path"] for row in ask("/api/files", body)[1]["files"]]
