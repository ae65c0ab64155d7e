"""Fixtures of the fault tests."""

from __future__ import annotations

import pytest

from tests.faults import harness


@pytest.fixture
def world(tmp_path, machines):
    """Trees, host and agents; says the seed of everything that is random in it."""
    print(f"MEDIALIB_SEED={harness.SEED}")
    return harness.World(tmp_path, machines)
