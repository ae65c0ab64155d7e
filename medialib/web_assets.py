"""The files of the web page: embedded in the one-file build, beside the package otherwise."""

from __future__ import annotations

import os
import pkgutil
import sys

WEB_FILES: dict = {}  # the one-file build puts {name: text} here


def web_file(name: str) -> bytes | None:
    """A file of the page by its name, or None."""
    if not name or any(part in ("", ".", "..") or "\\" in part for part in name.split("/")):
        return None
    embedded = WEB_FILES.get(name)
    if embedded is not None:
        return embedded if isinstance(embedded, bytes) else embedded.encode("utf-8")
    return package_file("web/" + name)


def package_file(name: str) -> bytes | None:
    """A file that belongs to the package, or None; the one-file build has no package."""
    if sys.modules.get("medialib") is None:
        return None
    try:
        return pkgutil.get_data("medialib", name)
    except (OSError, ValueError, ImportError):
        return None


def web_names() -> list:
    """The names of all files of the page."""
    if WEB_FILES:
        return sorted(WEB_FILES)
    names = []
    for folder in getattr(sys.modules.get("medialib"), "__path__", ()):
        top = os.path.join(folder, "web")
        for place, _, files in os.walk(top):
            inside = os.path.relpath(place, top).replace(os.sep, "/")
            names += [file if inside == "." else f"{inside}/{file}" for file in files]
    return sorted(set(names))
