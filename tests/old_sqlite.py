"""SQLite 3.31 for Python 3.8, out of an old wheel: the oldest that can be installed today.

medialib's floor is 3.24. What came between the two is looked for in the SQL (test_sqlite_floor).
"""

from __future__ import annotations

import platform
import subprocess
import sys
import zipfile
from pathlib import Path

from tests import support

PACKAGE = "pysqlite3-binary==0.4.2"
VERSION = "3.31.1"
SHIM = "from pysqlite3.dbapi2 import *\nfrom pysqlite3 import dbapi2\n"


def import_folder() -> Path:
    """A folder for PYTHONPATH in which `import sqlite3` gives the old one (Python 3.8 only)."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        support.lack("the wheel with the old SQLite is for Linux on x86_64")
    folder = support.cached_folder("old-sqlite")
    if not (folder / "sqlite3.py").exists():
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check",
             "--no-deps", "--only-binary", ":all:", "--python-version", "3.8", "--abi", "cp38",
             "--platform", "manylinux1_x86_64", "-d", str(folder), PACKAGE], check=True)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder)
        (folder / "sqlite3.py").write_text(SHIM)
    return folder
