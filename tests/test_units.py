"""The sample units of docs/: their commands are ours, and what the README promises is in them."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from medialib.agent_cli import agent_parser
from medialib.server_cli import server_parser
from tests import support

UNITS = {"medialib-agent": agent_parser, "medialib-host": server_parser}
SANDBOX = {
    "ProtectSystem": "strict", "ProtectHome": "read-only", "ReadOnlyPaths": "-/srv/media",
    "NoNewPrivileges": "yes", "CapabilityBoundingSet": "", "PrivateTmp": "yes", "UMask": "0077",
    "IPAddressDeny": "any", "User": "medialib", "StateDirectory": "medialib",
}
MOST_EXPOSURE = 2.0


def unit(name: str) -> dict:
    """{directive: its last value} of a unit."""
    text = (support.ROOT / "docs" / f"{name}.service").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "=" in line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.parametrize("name", UNITS)
def test_the_command_is_ours_and_the_sandbox_is_on(name):
    said = unit(name)
    _, program, *arguments = said["ExecStart"].split()
    parsed = UNITS[name]().parse_args(arguments)
    assert parsed.data_dir == f"/var/lib/{said['StateDirectory']}"
    assert (support.ROOT / program.rsplit("/", 1)[1]).is_file()
    assert "/srv/media" in parsed.roots
    assert {key: said.get(key) for key in SANDBOX} == SANDBOX


def test_both_have_the_same_sandbox():
    agent, host = unit("medialib-agent"), unit("medialib-host")
    for key in ("ExecStart", "Description"):
        del agent[key], host[key]
    assert agent == host


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze not installed")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_says_so_too(name):
    path = support.ROOT / "docs" / f"{name}.service"
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", str(path)],
                          capture_output=True, text=True, check=False)
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= MOST_EXPOSURE, done.stdout
    assert "rates both 1.7" in (support.ROOT / "README.md").read_text(encoding="utf-8")
