"""Installing medialib with pip: the commands medialib-agent and medialib-server."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithAgentFile(build_py):
    """Puts the one-file agent into the installed package: `GET /agent.py` hands it out."""

    def run(self):
        super().run()
        if not getattr(self, "editable_mode", False):  # there the clone itself has agent.py
            target = Path(self.build_lib, "medialib", "agent_file.txt")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / "agent.py", target)


def read_version() -> str:
    text = (ROOT / "medialib" / "base.py").read_text(encoding="utf-8")
    return re.search(r'^VERSION = "([^"]+)"$', text, re.M).group(1)


setup(
    name="medialib",
    version=read_version(),
    description="One catalogue of the media files on all of a person's machines",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=["medialib"],
    package_data={"medialib": ["web/*", "web/*/*"]},
    python_requires=">=3.8",
    install_requires=[],
    extras_require={"hashes": ["blake3", "xxhash"]},
    entry_points={
        "console_scripts": [
            "medialib-agent = medialib.agent_cli:agent_main",
            "medialib-server = medialib.server_cli:server_main",
        ]
    },
    cmdclass={"build_py": BuildWithAgentFile},
)
