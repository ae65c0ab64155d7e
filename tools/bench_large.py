"""Rows of the benchmark that grow: the agent's memory, the host's, the rate, and the answers."""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import time

from bench_world import NEW_HASH, BenchError, Host, check_exact, make_bodies, size_of

POSTING_BEFORE_S = 10.0  # so that names wait for the search index, as they do in a long scan


def memory(bench) -> None:
    """The agent's memory and time as the tree grows, and with all files in one folder."""
    for files, one in [(10_000, False), (bench.files, False), (bench.rows, False),
                       (bench.rows, True)]:
        tree = bench.tree(files, empty=True, **({"one_folder": True} if one else {}))
        agent_data = bench.new("agent")
        with Host(bench.new("host"), bench.python) as host:
            first = host.scan(tree, agent_data, bench.python)
            again = host.scan(tree, agent_data, bench.python)
            host_mib = host.memory_mib()
            check_exact(host, tree, NEW_HASH)
        bench.note(f"agent on {files} files{' in one folder' if one else ''}",
                   f"{first.memory_mib:.0f} MiB first, {again.memory_mib:.0f} MiB again;"
                   f" {1e6 * first.cpu_s / files:.0f} and {1e6 * again.cpu_s / files:.0f} us of"
                   f" processor a file; host {host_mib:.0f} MiB")


def large(bench) -> None:
    """A catalogue of --rows: rate as it grows, bytes a row, the host's memory, its answers."""
    with Host(bench.new("host"), bench.python) as host:
        step, done, rates = 100_000, 0, []
        while done < bench.rows:
            agents = [make_bodies(n, done // 4, step // 4) for n in range(4)]
            cost = bench.post_all(host, agents)
            done += step
            rates.append((step / cost.wall_s, step / cost.cpu_s))
            print(f"  {done} rows: {rates[-1][0]:.0f} rows/s, {rates[-1][1]:.0f} by processor"
                  f" time, {host.memory_mib():.0f} MiB", flush=True)
        host.wait_until_idle()
        held = host.call("/api/summary", {})["files"]
        if held != done:
            raise BenchError(f"{held} files in the catalogue, {done} were posted")
        size = size_of(host.data / "medialib.db")
        bench.note(f"ingest at {done} rows", f"{rates[-1][0] / rates[0][0]:.2f} of the rate at"
                   f" {step}, by processor time {rates[-1][1] / rates[0][1]:.2f};"
                   f" {size / done:.0f} bytes a row")
        calls = calls_for(host)
        answers(bench, host, calls, f"idle, {done} rows")
        # Not by threads of this process: the answers would wait for them here, not in the host.
        agents = multiprocessing.get_context("fork").Process(
            target=keep_posting, args=(bench, host, done), daemon=True)
        agents.start()
        time.sleep(POSTING_BEFORE_S)
        answers(bench, host, calls, f"while four agents ingest, {done} rows")
        if not agents.is_alive():
            raise BenchError("the agents stopped posting")
        agents.kill()
        agents.join()
        bench.note(f"host at {done} rows", f"{host.memory_mib():.0f} MiB")


def keep_posting(bench, host: Host, done: int) -> None:
    """Four agents that never stop."""
    for start in itertools.count(done // 4, 5000):
        bench.post_all(host, [make_bodies(agent, start, 5000) for agent in range(4)])


def calls_for(host: Host) -> dict:
    """{name: (path, body)} of the calls that must be quick, made for what the host holds."""
    folder = "/srv/media/agent0/shelf 07"
    # A token names a file: where the first page from one end stops, the last of the other is.
    last = host.call("/api/files", {"limit": 100, "sort": "size", "order": "asc"})["next"]
    return {
        "first page": ("/api/files", {"limit": 100}),
        "deepest page": ("/api/files", {"limit": 100, "sort": "size", "order": "desc",
                                     "after": last}),
        "search, rare": ("/api/files", {"limit": 100, "filter": {"q": "00012345"}}),
        "search, common": ("/api/files", {"limit": 100, "filter": {"q": "track"}}),
        "search, two words": ("/api/files", {"limit": 100, "filter": {"q": "0007 flac"}}),
        "summary": ("/api/summary", {}),
        "folder": ("/api/folders", {"agent": "bench-0", "path": folder}),
        "largest duplicates": ("/api/duplicates", {"limit": 50}),
        "facet count": ("/api/facets", {"keys": ["kind"], "filter": {"q": "0007"}}),
    }


def answers(bench, host: Host, calls: dict, when: str) -> None:
    line, shown = host.connect(), []
    for name, (path, body) in calls.items():
        times = []
        for _ in range(40):
            started = time.monotonic()
            host.call(path, body, line)
            times.append(1000 * (time.monotonic() - started))
        shown.append(f"{name} {statistics.quantiles(times, n=20)[18]:.0f}")
    bench.note(f"answers {when}", "p95 in ms: " + ", ".join(shown))
