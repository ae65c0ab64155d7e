"""Killed at any instant: afterwards the catalogue is exact and nothing acknowledged is lost."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests import media, support
from tests.faults import harness
from tests.faults.harness import KILLED, strace

CALLS = ("sendto", "fdatasync", "pwrite64")
AGENT_CALLS = (*CALLS, "recvfrom", "getdents64", "unlink", "waitid")
SMALL_BATCHES = 5  # more messages, more places to die between them
REWRITTEN = 45  # files, before each run that is to die, so that each has as much to do
POINTS, LONG_POINTS = 3, 24


def new_work(world, tree: media.Tree, changes: int = 6) -> list:
    """Much for the next run to deliver, about as much each time; the random changes among it."""
    files = tree.files()
    for path in world.random.sample(files, min(REWRITTEN, len(files))):
        path.write_bytes(tree.content() + path.name.encode("utf-8", "surrogateescape"))
    return media.random_changes(tree, changes) if changes else []


def nearly_all(died: int, points: list) -> None:
    """Each point was one where the program really died; one may be missed, for runs differ."""
    assert died >= max(1, len(points) - 1), f"only {died} deaths at {points}"


def killed_at_every(world, call: str, count: int, *, fresh: bool) -> None:
    """An agent that dies at its N-th such call, for each N; a whole run and a comparison between.

    `fresh`: each time with an empty memory. How far N can go is counted in a run that ends well.
    """
    one = world.tree("first", 40, 3)
    host = world.host().start()
    host.settings(agent_batch_size=SMALL_BATCHES)
    killed = world.once(host, one.root, prefix=harness.counting(world.folder / "calls", call))
    whole = world.once(host, one.root)
    if not fresh:
        world.scan(whole)
        new_work(world, one, 0)
    world.scan(killed)
    points = harness.points_up_to(harness.most_calls(world.folder / "calls", call), count)
    died = 0
    for number in points:
        done = new_work(world, one)
        if fresh:
            for path in killed.data.glob("agent_cache.db*"):
                path.unlink()
        killed.prefix = strace(call, signal="KILL", when=number)
        died += killed.run() in KILLED
        killed.kill()
        done += media.random_changes(one, 4)
        with harness.untouched(one.root):
            world.scan(whole)
        world.exact(host, "box", one.root, context=f"after {call} number {number}: {done}")
        world.sound(whole)
    harness.figures(call=call, fresh=fresh, agent_kills=died, points=points)
    nearly_all(died, points)


@pytest.mark.parametrize("call", harness.either(["sendto", "pwrite64"], CALLS))
def test_agent_killed_at_the_nth_call(world, call):
    killed_at_every(world, call, POINTS, fresh=True)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("call", AGENT_CALLS)
@pytest.mark.parametrize("fresh", [True, False])
def test_agent_killed_at_many_calls(world, call, fresh):
    killed_at_every(world, call, LONG_POINTS, fresh=fresh)


def host_killed_at_every(world, call: str, count: int) -> None:
    """The same for the host, while an agent delivers to it and then finds it started anew."""
    one = world.tree("first", 40, 3)
    host = world.host(prefix=harness.counting(world.folder / "calls", call))
    plain = world.host(port=host.port)
    agent = world.once(host, one.root)
    plain.start()
    plain.settings(agent_batch_size=SMALL_BATCHES)
    world.scan(agent)
    assert plain.stop() == 0
    new_work(world, one, 0)
    host.start()
    world.scan(agent)
    assert host.stop() == 0
    points = harness.points_up_to(harness.most_calls(world.folder / "calls", call), count)
    died = 0
    for number in points:
        new_work(world, one)
        host.prefix = strace(call, signal="KILL", when=number)
        host.start(ready=False)
        agent.start(ready=False)
        end = time.monotonic() + 90
        while host.running() and agent.running() and time.monotonic() < end:
            time.sleep(0.02)
        died += host.process.poll() in KILLED
        host.kill()
        plain.start()
        assert agent.wait() in harness.DONE, agent.output()
        world.scan(agent)
        world.exact(plain, "box", one.root, context=f"after {call} number {number}")
        assert plain.stop() == 0
        world.sound(plain)
    harness.figures(call=call, host_kills=died, points=points)
    nearly_all(died, points)


@pytest.mark.parametrize("call", harness.either(["sendto", "fdatasync"], CALLS))
def test_host_killed_at_the_nth_call(world, call):
    host_killed_at_every(world, call, POINTS)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("call", [*CALLS, "recvfrom"])
def test_host_killed_at_many_calls(world, call):
    host_killed_at_every(world, call, LONG_POINTS)


def both_killed(world, rounds: int) -> None:
    """Three agents and their host, which scans its own disk too, killed at random, alone and
    together; then all is exact.
    """
    trees = [world.tree(name, 60, 2) for name in ("first", "second", "third")]
    local = world.tree("local", 60, 2)
    host = world.host(local.root).start()
    agents = [world.agent(host, one.root, name=one.root.name).start() for one in trees]
    host_kills = agent_kills = both = 0
    for _ in range(rounds):
        time.sleep(world.random.uniform(0.05, 1.2))
        victims = [one for one in (host, *agents) if world.random.random() < 0.45]
        for victim in victims:
            victim.kill()
        host_kills += host in victims
        agent_kills += len(victims) - (host in victims)
        both += host in victims and len(victims) > 1
        for one in (*trees, local):
            media.random_changes(one, 2)
        for victim in victims:
            victim.start(ready=victim is host)
    for agent in agents:
        agent.kill()
        agent.arguments.append("--once")
        world.scan(agent)
    for one in trees:
        world.exact(host, one.root.name, one.root)
    host.post("/api/agents/scan_now", {"agent": "local"})
    world.exact(host, "local", local.root, wait_s=harness.SETTLE_S)
    world.sound(*agents)
    harness.figures(rounds=rounds, host_kills=host_kills, agent_kills=agent_kills,
                    rounds_with_both=both)


def test_all_killed_at_random(world):
    both_killed(world, 5)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_all_killed_at_random_for_long(world):
    both_killed(world, 80)


def nothing_acknowledged_lost(world, kills: int) -> int:
    """Clients that post all the time, a host that is killed: every 200 is in the catalogue."""
    host = world.host().start()
    posters = [harness.Poster(host, f"poster{number}") for number in range(3)]
    for poster in posters:
        poster.start()
    for _ in range(kills):
        time.sleep(world.random.uniform(0.05, 0.6))
        host.kill()
        host.start()
    for poster in posters:
        poster.stop()
    lost = [path for poster in posters for path in poster.lost()]
    acknowledged = sum(len(poster.acknowledged) for poster in posters)
    harness.figures(host_kills=kills, batches_acknowledged=acknowledged, records_lost=len(lost))
    assert lost == [], f"{len(lost)} acknowledged records lost (seed {harness.SEED})"
    assert host.stop() == 0
    world.sound(host)
    return acknowledged


def test_nothing_acknowledged_is_lost_in_kills(world):
    assert nothing_acknowledged_lost(world, 6) > 30


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_nothing_acknowledged_is_lost_in_many_kills(world):
    assert nothing_acknowledged_lost(world, 200) > 1000


def seconds_to_end(program, number: int) -> float:
    """From the signal to the exit of the program, which is started if it does not run."""
    if not program.running():
        program.start()
        time.sleep(0.3)
    started = time.monotonic()
    program.signal_all(number)
    expected = {signal.SIGTERM: 0, signal.SIGINT: 130}
    assert program.wait(60) == expected[number], program.output()[-2000:]
    seconds = time.monotonic() - started
    assert "Traceback" not in program.output()
    return seconds


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_ends_in_five_seconds(world, number):
    one = world.tree("first", 300, 8)
    host = world.host(world.tree("local", 200, 4).root).start()
    agent = world.agent(host, one.root).start()
    time.sleep(0.3)
    for program in (agent, host):
        support.assert_in_time(lambda program=program: seconds_to_end(program, number), 5)
    host.start()
    agent.arguments.append("--once")
    world.scan(agent)
    world.exact(host, "box", one.root)


@pytest.mark.parametrize("number", harness.either([4, 30], [1, 2, 4, 8, 12, 20, 30]))
def test_killed_during_the_very_first_start(world, number):
    """Half a data folder is no reason not to start again."""
    one = world.tree("first", 10, 0)
    host = world.host(prefix=strace("pwrite64", signal="KILL", when=number))
    host.start(ready=False)
    assert host.wait(60) in KILLED
    host.prefix = []
    host.start()
    agent = world.once(host, one.root, prefix=strace("pwrite64", signal="KILL", when=number))
    assert agent.run() in KILLED
    agent.prefix = []
    world.scan(agent)
    world.exact(host, "box", one.root)


def test_killed_while_the_cache_is_compacted(world):
    """In VACUUM itself: the idle agent writes nothing else."""
    one = world.tree("first", 60, 0)
    host = world.host().start()
    agent = world.agent(host, one.root)
    points, died = harness.either([1, 9, 25], [*range(1, 12), 15, 20, 25, 30, 40]), 0
    for number in points:
        agent.start()
        support.wait_until(lambda: is_idle(agent), 40, "an idle agent")
        world.exact(host, "box", one.root, wait_s=harness.SETTLE_S)
        with harness.attached(agent, "pwrite64", signal="KILL", when=number):
            died += not answers(agent, "/agent/compact_cache")
            support.wait_until(lambda: not agent.running(), 60, "its death")
        agent.kill()
        world.sound(agent)
        media.random_changes(one, 5)
    harness.figures(kills_during_vacuum=died, points=points)
    nearly_all(died, points)
    agent = world.once(host, one.root)
    world.scan(agent)
    world.exact(host, "box", one.root)
    world.sound(agent)


def is_idle(agent) -> bool:
    stats = agent.stats()
    return stats["phase"] == 0 and stats["seen"] > 0 and stats["outbox"] == 0


def killed_in_phase(world, phase: str, kills: int) -> None:
    """An agent killed at random moments of one phase, which has all files to do each time."""
    one = world.tree("first", 60, 6)
    for number in range(8):
        (one.root / f"large {number}.bin").write_bytes(os.urandom(4 << 20))
    host = world.host().start()
    agent = world.agent(host, one.root)
    died, end = 0, time.monotonic() + 60 + 20 * kills
    while died < kills:
        assert time.monotonic() < end, f"{phase} was met only {died} times"
        for path in one.files():
            with path.open("ab") as file:
                file.write(b"more")
        agent.start()
        died += died_in(agent, phase, world.random.uniform(0, 0.1))
    media.random_changes(one, 10)
    agent.arguments.append("--once")
    world.scan(agent)
    world.exact(host, "box", one.root)
    world.sound(agent)
    harness.figures(phase=phase, agent_kills=died)


def died_in(agent, phase: str, after_s: float) -> bool:
    """Kill the agent some time after it said that it is in this phase; False when it never was."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        stats = agent.stats()
        if stats["active"] and stats["phase_name"] == phase:
            time.sleep(after_s)
            agent.kill()
            return True
        if not stats["active"] and stats["seen"]:
            break
    agent.kill()
    return False


@pytest.mark.parametrize("phase", harness.either(
    ["ffprobe"], ["hashes", "ffprobe", "full hashes"]))
@pytest.mark.timeout(900)
def test_agent_killed_at_random_in_each_phase(world, phase):
    killed_in_phase(world, phase, 20 if support.LONG else 2)


def answers(agent, path: str = "/agent/ping") -> bool:
    try:
        body = None if path == "/agent/ping" else {}
        return support.request(agent.url, path, body, timeout_s=5)[0] == 200
    except OSError:
        return False
