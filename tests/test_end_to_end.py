"""Real hosts and agents, as packages and as files copied alone, against the ground truth."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import ground_truth, media, processes, support

SEED = int(os.environ.get("MEDIALIB_SEED", "20240229"))
DONE = (0, 3)  # 3: a garbage video stays without metadata
SETTLE_S = 90
YOUNG_S = 2.2  # a file that was changed less than two seconds before its hash is looked at again
SIZES = {"first": (150, 6), "second": (100, 3), "local": (100, 3)}
LONG_SIZES = {"first": (2500, 15), "second": (1500, 8), "local": (1000, 7)}
CHANGES, LONG_CHANGES = 60, 500
WAYS = [("package", "newest_python"), ("file", "oldest_python")]
MORE_WAYS = [("package", "oldest_python"), ("file", "newest_python")]


@functools.lru_cache(maxsize=None)
def expected_algo(python: str, form: str) -> str:
    """The function that a program started like this can hash with."""
    flags = ["-I", "-S"] if form == "file" else []
    done = subprocess.run([python, *flags, "-c", "import blake3"], capture_output=True, check=False)
    return "blake3" if done.returncode == 0 else "sha256"


@pytest.fixture(params=WAYS, ids="-".join)
def way(request):
    """How both programs are run: options for Machines."""
    form, which = request.param
    return {"form": form, "python": getattr(support, which)()}


def algo_of(way: dict) -> str:
    return expected_algo(way["python"], way["form"])


def tree(tmp_path, name: str, files: int, videos: int, **options) -> media.Tree:
    seed = SEED + sum(name.encode())
    return media.Tree(tmp_path / "media" / name, seed).fill(files, videos, **options)


def scan_once(agent) -> None:
    code = agent.run()
    assert code in DONE, f"exit code {code}:\n{agent.output()[-3000:]}"


def check(host, name: str, roots: list, way: dict, wait_s: float = 0, context: str = "") -> None:
    agent = "local" if name == "local" else host.agent_id(name)
    ground_truth.check_catalogue(host.url, agent, roots, algo=algo_of(way), wait_s=wait_s,
                                 context=f"for {name} {context}")


def changes_after(host, number: int) -> tuple:
    """(every file changed after this number of the catalogue, its newest number)"""
    files, more = [], True
    while more:
        answer = host.post("/api/changes", {"after": number, "limit": 1000})
        files += answer["files"]
        number, more = answer["next"], answer["more"]
    return files, number


# The catalogue equals the truth


def whole_story(tmp_path, machines, way: dict, sizes: dict, changes: int) -> None:
    """Two agents and the host's own disk; then random changes; each time the exact truth."""
    trees = {name: tree(tmp_path, name, *size) for name, size in sizes.items()}
    before = {name: ground_truth.fingerprint(one.root) for name, one in trees.items()}
    host = machines.host(trees["local"].root, **way).start()
    agents = {name: machines.agent(host, trees[name].root, "--once", name=name, **way)
              for name in ("first", "second")}
    for agent in agents.values():
        scan_once(agent)
    for name, one in trees.items():
        check(host, name, [one.root], way, SETTLE_S)
        assert ground_truth.fingerprint(one.root) == before[name], f"{name} was written to"
    done = {name: media.random_changes(one, changes) for name, one in trees.items()}
    host.post("/api/agents/scan_now", {"agent": "local"})
    for agent in agents.values():
        scan_once(agent)
    for name, one in trees.items():
        story = "\n".join(done[name][-40:])
        check(host, name, [one.root], way, SETTLE_S, f"after changes (seed {SEED}):\n{story}\n")
    assert host.stop() == 0


def test_catalogue_is_the_truth(tmp_path, machines, way):
    whole_story(tmp_path, machines, way, SIZES, CHANGES)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("more", WAYS + MORE_WAYS, ids="-".join)
def test_catalogue_is_the_truth_at_full_size(tmp_path, machines, more):
    form, which = more
    way = {"form": form, "python": getattr(support, which)()}
    whole_story(tmp_path, machines, way, LONG_SIZES, LONG_CHANGES)


@pytest.mark.parametrize("more", MORE_WAYS, ids="-".join)
def test_other_ways_to_run(tmp_path, machines, more):
    form, which = more
    way = {"form": form, "python": getattr(support, which)()}
    one = tree(tmp_path, "first", 30, 2)
    host = machines.host(**way).start()
    scan_once(machines.agent(host, one.root, "--once", name="first", **way))
    check(host, "first", [one.root], way)


@pytest.mark.parametrize("algo", ["blake3", "xxhash64", "sha256"])
def test_optional_hashes_are_used_and_named(tmp_path, machines, algo):
    """The tests' own Python has blake3 and xxhash."""
    one = tree(tmp_path, "first", 20, 0)
    host = machines.host().start()
    host.settings(hash_algo=algo)
    scan_once(machines.agent(host, one.root, "--once", name="first"))
    ground_truth.check_catalogue(host.url, host.agent_id("first"), [one.root], algo=algo)


def test_running_agent_keeps_the_catalogue_current(tmp_path, machines, way):
    """One daemon, steered through the host: no restart between the changes."""
    one = tree(tmp_path, "first", 60, 2)
    host = machines.host(**way).start()
    agent = machines.agent(host, one.root, name="first", **way).start()
    support.wait_until(lambda: "first" in host.agents(), what="the agent's first hello")
    check(host, "first", [one.root], way, SETTLE_S)
    support.wait_until(lambda: agent.stats()["phase"] == 0, what="the first scan's end")
    for _ in range(2):
        done = media.random_changes(one, 10)
        agent.post("/agent/scan_now")
        check(host, "first", [one.root], way, SETTLE_S, "\n".join(done))
        support.wait_until(lambda: agent.stats()["phase"] == 0, what="the scan's end")
    assert agent.stop() == 0
    assert host.stop() == 0


# Nothing is read twice


def test_second_scan_opens_and_posts_nothing(tmp_path, machines, way):
    one = tree(tmp_path, "first", 100, 4)
    tracer = processes.Tracer(tmp_path / "trace")
    host = machines.host(**way).start()
    with processes.Recorder(host) as recorder:
        first = machines.agent(recorder, one.root, "--once", name="first", **way)
        media.grow_old(one.root)
        scan_once(first)
        check(host, "first", [one.root], way)
        number = changes_after(host, 0)[1]
        recorder.posted.clear()
        first.prefix = tracer.prefix
        scan_once(first)
        assert tracer.opened(one.root) == []
        assert tracer.probed() == []
        assert recorder.records() == []
        assert [body.get("removed") for path, body in recorder.posted
                if path == "/ingest/batch" and body.get("removed")] == []
    assert changes_after(host, number)[0] == []


def test_tracer_sees_a_first_scan(tmp_path, machines, way):
    """The counter of the tests around it does count."""
    one = tree(tmp_path, "first", 10, 2)
    tracer = processes.Tracer(tmp_path / "trace")
    host = machines.host(**way).start()
    scan_once(machines.agent(host, one.root, "--once", prefix=tracer.prefix, **way))
    assert len(tracer.opened(one.root)) >= 12
    assert len(tracer.probed()) >= 2


def test_renamed_and_moved_files_are_not_read_again(tmp_path, machines, way):
    one = tree(tmp_path, "first", 80, 4)
    tracer = processes.Tracer(tmp_path / "trace")
    host = machines.host(**way).start()
    agent = machines.agent(host, one.root, "--once", name="first", **way)
    media.grow_old(one.root)
    scan_once(agent)
    known = {row["inode_key"]: (row["id"], row["first_seen"]) for row in
             ground_truth.present_rows(host.url, host.agent_id("first"))}
    for change in (media.change_rename, media.change_move, media.change_folder) * 3:
        change(one)
    agent.prefix = tracer.prefix
    scan_once(agent)
    assert tracer.opened(one.root) == []
    assert tracer.probed() == []
    check(host, "first", [one.root], way)
    for row in ground_truth.present_rows(host.url, host.agent_id("first")):
        if row["name"] not in ("second name.txt", "first name.avi.txt"):
            assert (row["id"], row["first_seen"]) == known[row["inode_key"]], row["path"]


# Whatever happened before


def test_host_away_for_the_whole_scan(tmp_path, machines, way):
    one = tree(tmp_path, "first", 80, 3)
    tracer = processes.Tracer(tmp_path / "trace")
    host = machines.host(**way)
    agent = machines.agent(host, one.root, "--once", name="first", **way)
    media.grow_old(one.root)
    assert agent.run() == 3, agent.output()
    assert ", 1 errors," in agent.output()  # that of a damaged video; the host is not a file
    host.start()
    agent.prefix = tracer.prefix
    scan_once(agent)
    check(host, "first", [one.root], way)
    assert tracer.opened(one.root) == []
    assert tracer.probed() == []


def test_agent_killed_at_random_moments(tmp_path, machines, way):
    one = tree(tmp_path, "first", 120, 6)
    chance = random.Random(SEED)
    host = machines.host(**way).start()
    agent = machines.agent(host, one.root, "--once", name="first", **way)
    for _ in range(6):
        agent.start(ready=False)
        time.sleep(chance.uniform(0.1, 2.0))
        agent.kill()
    scan_once(agent)
    check(host, "first", [one.root], way)
    done = media.random_changes(one, 30)
    for _ in range(4):
        agent.start(ready=False)
        time.sleep(chance.uniform(0.1, 2.0))
        agent.kill()
    scan_once(agent)
    check(host, "first", [one.root], way, 0, f"(seed {SEED}) {done}")
    time.sleep(YOUNG_S)
    scan_once(agent)
    assert "could not be read" not in agent.output(), "a file read after a kill is not unreadable"


def test_host_killed_at_random_moments(tmp_path, machines, way):
    trees = [tree(tmp_path, name, 100, 4) for name in ("first", "second")]
    chance = random.Random(SEED)
    host = machines.host(**way).start()
    agents = [machines.agent(host, one.root, name=one.root.name, **way).start() for one in trees]
    for _ in range(5):
        time.sleep(chance.uniform(0.05, 1.0))
        host.kill()
        time.sleep(0.2)
        host.start()
    for agent in agents:
        agent.kill()
        agent.arguments.append("--once")
        scan_once(agent)
    for one in trees:
        check(host, one.root.name, [one.root], way, 0, f"(seed {SEED})")


def test_host_database_deleted(tmp_path, machines, way):
    one = tree(tmp_path, "first", 80, 4)
    tracer = processes.Tracer(tmp_path / "trace")
    host = machines.host(**way).start()
    agent = machines.agent(host, one.root, "--once", name="first", **way)
    media.grow_old(one.root)
    scan_once(agent)
    library = host.post("/api/summary")["library_id"]
    assert host.stop() == 0
    for path in host.data.glob("medialib.db*"):
        path.unlink()
    host.start()
    assert host.post("/api/summary")["library_id"] != library
    agent.prefix = tracer.prefix
    scan_once(agent)
    check(host, "first", [one.root], way)
    assert tracer.opened(one.root) == []
    assert tracer.probed() == []


def test_cache_cleared(tmp_path, machines, way):
    one = tree(tmp_path, "first", 60, 3)
    host = machines.host(**way).start()
    agent = machines.agent(host, one.root, "--once", name="first", **way)
    scan_once(agent)
    first_seen = {row["path"]: (row["id"], row["first_seen"]) for row in
                  ground_truth.present_rows(host.url, host.agent_id("first"))}
    agent.arguments.append("--clear-cache")
    scan_once(agent)
    check(host, "first", [one.root], way)
    assert len(host.agents()) == 2, "the host's own scanner and one agent"
    for row in ground_truth.present_rows(host.url, host.agent_id("first")):
        assert (row["id"], row["first_seen"]) == first_seen[row["path"]]


def test_vanished_root_loses_nothing(tmp_path, machines, way):
    one = tree(tmp_path, "first", 40, 2)
    host = machines.host(**way).start()
    agent = machines.agent(host, one.root, "--once", name="first", **way)
    scan_once(agent)
    files = host.post("/api/summary")["files"]
    hidden = one.root.with_name("hidden")
    for make_absent in (lambda: None, lambda: one.root.mkdir()):
        one.root.rename(hidden)
        make_absent()
        assert agent.run() in DONE, agent.output()
        summary = host.post("/api/summary")
        assert (summary["files"], summary["missing"]) == (files, 0)
        if one.root.exists():
            one.root.rmdir()
        hidden.rename(one.root)
    scan_once(agent)
    check(host, "first", [one.root], way)


# Other machines


def test_agent_in_another_network(tmp_path, machines, way):
    one = tree(tmp_path, "first", 30, 2)
    with processes.two_networks() as ((here, address), (there, _)):
        host = machines.host(address=address, prefix=processes.inside_network(here), **way)
        agent = machines.agent(host, one.root, "--once", name="first",
                               prefix=processes.inside_network(there), **way)
        host.start(ready=False)
        support.wait_until(
            lambda: processes.request_inside(here, host.url, "/health")[0] == 200, what="the host")
        scan_once(agent)
        body = {"filter": {"state": "present"}, "limit": 1000}
        status, answer = processes.request_inside(there, host.url, "/api/files", body)
        assert status == 200
        config = processes.request_inside(here, host.url, "/ingest/config")[1]
        expected = ground_truth.truth_of(one.root, config, algo=algo_of(way))
        for row in answer["files"]:
            if row["metadata"]:
                said = processes.request_inside(there, host.url, "/api/file", {"id": row["id"]})[1]
                row["metadata"] = said["file"]["metadata"]
        assert ground_truth.differences(answer["files"], expected) == []
        host.kill()


def test_host_hands_out_the_agent_that_fits(tmp_path, machines, way):
    host = machines.host(**way)
    if way["form"] == "file":
        status, answer = support.request(host.start().url, "/agent.py")
        assert (status, answer["ok"]) == (404, False)
        host.stop()
        (host.folder / "alone/agent.py").write_bytes((support.ROOT / "agent.py").read_bytes())
    status, text = support.request(host.start().url, "/agent.py")
    assert (status, text) == (200, (support.ROOT / "agent.py").read_text(encoding="utf-8"))


# Bad input: a clear error, and nothing lost


def command_of(way: dict, name: str, tmp_path) -> tuple:
    program = {"agent": processes.Agent, "server": processes.Host}[name](tmp_path / name, [], **way)
    return program.command()[:-6], {"cwd": str(program.working_folder()),
                                    "env": program.environment()}


@pytest.mark.parametrize("name", ["agent", "server"])
def test_unknown_flag(tmp_path, way, name):
    command, options = command_of(way, name, tmp_path)
    given = ["somewhere"] if name == "agent" else []
    done = subprocess.run([*command, *given, "--no-such-flag"], capture_output=True, text=True,
                          timeout=90, check=False, **options)
    assert done.returncode == 2
    assert "--no-such-flag" in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_and_bad_settings(machines, way):
    host = machines.host(**way).start()
    before = host.post("/api/settings")
    for name, value, words in (("no_such_setting", 1, "no_such_setting"),
                               ("agent_batch_size", 0, "agent_batch_size"),
                               ("agent_batch_size", "many", "agent_batch_size"),
                               ("hash_algo", "md5", "sha256"),
                               ("agent_offpeak_start", 24, "23")):
        status, answer = support.request(host.url, "/api/settings", {"set": {name: value}})
        assert (status, answer["ok"]) == (400, False), answer
        assert words in answer["error"] + str(answer.get("detail")), answer
    assert host.post("/api/settings") == before


def test_missing_root_is_reported_and_others_are_scanned(tmp_path, machines, way):
    one = tree(tmp_path, "first", 20, 1)
    absent = tmp_path / "media" / "absent"
    host = machines.host(**way).start()
    agent = machines.agent(host, absent, one.root, "--once", name="first", **way)
    assert agent.run() == 3, agent.output()
    assert str(absent) in agent.output()
    check(host, "first", [one.root], way)
    roots = {root["path"]: root for root in host.agents()["first"]["roots"]}
    assert roots[str(absent)]["state"] == "offline"


@contextlib.contextmanager
def another_server(status: int, content_type: str, text: bytes):
    """A web server that answers everything in the same way; its URL."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.do_GET()

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


OTHER_ANSWERS = [
    (200, "text/html", b"<html>Please log in</html>"),
    (404, "text/html", b"<html>not here</html>"),
    (200, "application/json", b'{"hello": "world"}'),
]


@pytest.mark.parametrize("way", WAYS[1:], indirect=True, ids="-".join)
def test_host_that_is_not_medialib(tmp_path, machines, way):
    """All at once: each agent waits some seconds for its host to become another."""
    one = tree(tmp_path, "first", 5, 0, odd_names=False)
    with contextlib.ExitStack() as servers, ThreadPoolExecutor() as pool:
        agents = [machines.agent(servers.enter_context(another_server(*answer)), one.root,
                                 "--once", name=f"agent {number}", **way)
                  for number, answer in enumerate(OTHER_ANSWERS)]
        codes = list(pool.map(lambda agent: agent.run(), agents))
    for answer, agent, code in zip(OTHER_ANSWERS, agents, codes):
        assert code in (1, 3), (answer, agent.output())
        assert "answers, but is not a medialib host" in agent.output(), answer
        assert "Traceback" not in agent.output(), answer


@pytest.mark.parametrize("name", ["agent", "server"])
def test_port_in_use(tmp_path, machines, way, name):
    one = tree(tmp_path, "first", 5, 0, odd_names=False)
    host = machines.host(**way).start()
    second = (machines.host(name="second", port=host.port, **way) if name == "server" else
              machines.agent(host, one.root, "--once", port=host.port, **way))
    assert second.run(timeout_s=30) == 1
    assert "--port" in second.output()
    assert str(host.port) in second.output()
    assert "Traceback" not in second.output()


def test_second_instance_on_a_data_folder(tmp_path, machines, way):
    host = machines.host(**way).start()
    second = machines.host(**way)
    assert second.run(timeout_s=30) == 4, second.output()
    agent = machines.agent(host, tmp_path, name="box", **way).start()
    again = machines.agent(host, tmp_path, name="box", **way)
    assert again.run(timeout_s=30) == 4, again.output()
    assert agent.stats()["phase"] in (0, 1, 2)


def record(path: str, **changes) -> dict:
    return {"kind": "image", "path": path, "size": 3, "mtime": 1.5, "ctime": 1.5, "ext": ".jpg",
            "inode_key": "3:1500000000:7:1", **changes}


def test_malformed_batches_and_records_are_named(machines, way):
    host = machines.host(**way).start()
    for body in ({}, {"batch_id": "a"}, {"batch_id": "a", "files": {}}, [], "text", None, 7):
        status, answer = support.request(host.url, "/ingest/batch", body, method="POST")
        assert 400 <= status < 500, (body, answer)
        assert answer["ok"] is False
    bad = [record("/m/1.jpg", size=-1), record("/m/2.jpg", mtime="x"), record(3), "text",
           record("/m/5.jpg", inode_key="?"), record("/m/6.jpg", size=2 ** 70),
           {"path": "/m/7.jpg"}, record("relative.jpg")]
    files = [record("/m/good1.jpg"), *bad, record("/m/good2.jpg", inode_key="3:1500000000:8:1")]
    answer = host.post("/ingest/batch", {"batch_id": "b", "files": files})
    assert {error["index"] for error in answer["errors"]} == set(range(1, len(bad) + 1)), answer
    rows = support.all_rows(host.url, "/api/files", {"filter": {}}, "files")
    assert sorted(row["path"] for row in rows) == ["/m/good1.jpg", "/m/good2.jpg"]
    again = host.post("/ingest/batch", {"batch_id": "b", "files": files})
    assert again == answer


def test_scan_in_the_foreground(tmp_path, machines, way):
    """server.py --scan ROOT, without and with a running host."""
    one = tree(tmp_path, "local", 30, 2)
    host = machines.host(**way)
    alone = machines.host("--scan", one.root, **way)
    scan_once(alone)
    host.start()
    check(host, "local", [one.root], way)
    media.random_changes(one, 10)
    alone.port = host.port
    scan_once(alone)
    check(host, "local", [one.root], way, SETTLE_S)


@pytest.mark.skipif(sys.platform != "linux", reason="the old SQLite is for Linux")
def test_on_the_oldest_sqlite(tmp_path, machines):
    from tests import old_sqlite

    way = {"form": "package", "python": support.oldest_python(),
           "environment": {"PYTHONPATH": str(old_sqlite.import_folder())}}
    one = tree(tmp_path, "first", 40, 2)
    host = machines.host(one.root, **way).start()
    agent = machines.agent(host, one.root, "--once", name="first", **way)
    scan_once(agent)
    media.random_changes(one, 20)
    scan_once(agent)
    check(host, "first", [one.root], way)
    for path in ("/api/summary", "/api/duplicates", "/api/agents", "/api/settings"):
        host.post(path)
    for values in ({"q": "file"}, {"kind": "video"}, {"hash": "00"}, {"copies": {"min": 2}},
                   {"under": str(one.root)}, {"duration": {"min": 0.1}}):
        status, answer = support.request(host.url, "/api/files", {"filter": values, "limit": 10})
        assert status in (200, 400), (values, answer)
