"""Modules of the standard library that are slow to import and that many runs do not need.

`from .late import subprocess` gives what `import subprocess` gives, but the module is imported when
something of it is used for the first time. `agent.py --version`, a mistyped option and a scan that
finds nothing new do not wait for what they never use. A dotted module is named by its first part,
as with the statement: `http` is what `import http.client` makes. A class that inherits from one of
these, or a constant made with one, would import it at once: such a module is imported plainly.
"""

from __future__ import annotations


_ASKED_FOR_EACH_FILE = frozenset(["blake2b", "sha256"])


class LateModule:
    """Stands for a module."""

    def __init__(self, name: str):
        self._late_name = name
        self._late_module = None

    def __getattr__(self, attribute: str):
        if self._late_module is None:
            self._late_module = __import__(self._late_name)
        value = getattr(self._late_module, attribute)
        if attribute in _ASKED_FOR_EACH_FILE:
            setattr(self, attribute, value)  # found without this detour from now on
        return value


argparse = LateModule("argparse")
concurrent = LateModule("concurrent.futures")
ctypes = LateModule("ctypes")
email = LateModule("email.utils")
gzip = LateModule("gzip")
hashlib = LateModule("hashlib")
http = LateModule("http.client")
ipaddress = LateModule("ipaddress")
platform = LateModule("platform")
random = LateModule("random")
selectors = LateModule("selectors")
shutil = LateModule("shutil")
socket = LateModule("socket")
ssl = LateModule("ssl")
subprocess = LateModule("subprocess")
urllib = LateModule("urllib.parse")
uuid = LateModule("uuid")
