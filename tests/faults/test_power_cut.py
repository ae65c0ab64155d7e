"""The host's disk loses its power: what was acknowledged is still there after the next mount."""

from __future__ import annotations

import signal
import time

import pytest

from tests import media, support
from tests.faults import harness

CUTS, LONG_CUTS = 2, 60


def host_on_its_own_disk(world):
    """A host that is not started, and the image that holds its data folder once mounted."""
    host = world.host()
    return host, harness.disk_image(world.folder / "host.img", size_mib=96)


def stop_and_cut(program) -> None:
    """A machine without power says nothing more. A program that runs on for a moment would: an
    fdatasync under way while ext4 shuts its journal down may return without an error.
    """
    program.signal_all(signal.SIGSTOP)
    harness.cut_power(program.data)


def cut_while_posting(world, host, image, posters: list, after_s: float) -> None:
    with harness.loop_mounted(image, host.data):
        host.start()
        for poster in posters:
            poster.start()
        time.sleep(after_s)
        stop_and_cut(host)
        time.sleep(0.1)
        host.kill()
        for poster in posters:
            poster.stop()
        harness.unmount(host.data)


def power_cuts(world, cuts: int) -> int:
    """Batches acknowledged in all; not one of them may be lost."""
    host, image = host_on_its_own_disk(world)
    everybody = []
    for cut in range(cuts):
        posters = [harness.Poster(host, f"poster{cut}-{number}") for number in range(2)]
        everybody += posters
        cut_while_posting(world, host, image, posters, world.random.uniform(0.2, 1.5))
    with harness.loop_mounted(image, host.data):
        host.start()
        lost = [path for poster in everybody for path in poster.lost()]
        acknowledged = sum(len(poster.acknowledged) for poster in everybody)
        harness.figures(power_cuts=cuts, batches_acknowledged=acknowledged, records_lost=len(lost))
        assert lost == [], f"{len(lost)} acknowledged records lost (seed {harness.SEED})"
        assert host.stop() == 0
        world.sound(host)
    return acknowledged


def test_nothing_acknowledged_is_lost_in_a_power_cut(world):
    assert power_cuts(world, CUTS) > 10


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_nothing_acknowledged_is_lost_in_many_power_cuts(world):
    assert power_cuts(world, LONG_CUTS) > 1000


def test_power_cut_of_host_and_agent(world):
    """Both lose what was not on disk; afterwards they agree again on the truth."""
    one = world.tree("first", 60, 2)
    host, image = host_on_its_own_disk(world)
    agent = world.agent(host, one.root)
    agent_image = harness.disk_image(world.folder / "agent.img", size_mib=48)
    for _ in range(10 if support.LONG else 1):
        with harness.loop_mounted(image, host.data), harness.loop_mounted(agent_image, agent.data):
            host.start()
            agent.start()
            time.sleep(world.random.uniform(0.3, 2.5))
            stop_and_cut(agent)
            stop_and_cut(host)
            host.kill()
            agent.kill()
            harness.unmount(agent.data)
            harness.unmount(host.data)
        media.random_changes(one, 10)
    agent.arguments.append("--once")
    with harness.loop_mounted(image, host.data), harness.loop_mounted(agent_image, agent.data):
        host.start()
        world.scan(agent)
        world.exact(host, "box", one.root)
        world.sound(agent)
        host.kill()
