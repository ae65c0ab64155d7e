"""Chromium under a driver: opening pages, finding what they show, and what they did behind it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

from tests import support

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
)
PATIENCE_S = 60
WIDTHS = {360: 740, 1280: 860, 3840: 2160}
LONG_TASKS = """window.longTasks = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) longTasks.push(Math.round(entry.duration));
}).observe({ type: "longtask", buffered: true });"""
AXE = """const done = arguments[1];
axe.run(document, arguments[0]).then((result) => done(result.violations.map(
  (one) => [one.id, ...one.nodes.slice(0, 3).map((node) => node.html.slice(0, 200))])));"""


def start_chromium(folder: Path, downloads: Path):
    """A driver with an empty profile below `folder`."""
    support.need("chromedriver")
    if importlib.util.find_spec("selenium") is None:
        support.lack("selenium not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    program = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if program is None:
        support.lack("chromium not installed")
    options = Options()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


class Browser:
    """One window. Selectors are CSS; `shows` waits, because the page is always still loading."""

    def __init__(self, folder: Path):
        self.downloads = folder / "downloads"
        self.downloads.mkdir(parents=True)
        self.driver = start_chromium(folder, self.downloads)
        self.driver.set_script_timeout(60)
        self.run("Page.addScriptToEvaluateOnNewDocument", source=LONG_TASKS)
        self.resize(1280)

    def run(self, command: str, **arguments):
        return self.driver.execute_cdp_cmd(command, arguments)

    def resize(self, width: int) -> None:
        self.run("Emulation.setDeviceMetricsOverride", width=width, height=WIDTHS[width],
                 deviceScaleFactor=1, mobile=False)

    def scheme(self, name: str) -> None:
        self.run("Emulation.setEmulatedMedia",
                 features=[{"name": "prefers-color-scheme", "value": name}])

    def open(self, url: str, place: str = "") -> None:
        """Load the page anew at that place."""
        self.driver.get("about:blank")
        self.driver.get(f"{url}/{place}")

    def go(self, place: str) -> None:
        """Move within the page, as a link does."""
        self.js("location.hash = arguments[0]", place)

    def js(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    @property
    def place(self) -> str:
        return urlsplit(self.driver.current_url).fragment

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def texts(self, selector: str) -> list:
        """The texts of all that match, read in one step so that nothing goes stale between."""
        return self.js("return [...document.querySelectorAll(arguments[0])]"
                       ".map((node) => node.innerText)", selector)

    def shows(self, selector: str, text: str = "", timeout_s: float = PATIENCE_S):
        """The first visible element that matches and holds the text, as soon as there is one."""
        def look():
            return self.js(
                "return [...document.querySelectorAll(arguments[0])].find((node) =>"
                " node.getClientRects().length &&"
                " (node.innerText ?? node.textContent).includes(arguments[1]))",
                selector, text)
        return support.wait_until(look, timeout_s, f"{selector} with {text!r} at {self.place}")

    def until(self, predicate, what: str, timeout_s: float = PATIENCE_S):
        return support.wait_until(predicate, timeout_s, f"{what} at {self.place}")

    def click(self, selector: str, text: str = "") -> None:
        """Click what is there by then; drawn anew in between, it is looked for again."""
        from selenium.common.exceptions import WebDriverException

        def press():
            with contextlib.suppress(WebDriverException):
                self.shows(selector, text).click()
                return True
            return False
        support.wait_until(press, PATIENCE_S, f"{selector} {text!r} to be clickable")

    def type(self, selector: str, text: str) -> None:
        field = self.shows(selector)
        field.clear()
        field.send_keys(text)

    def press(self, *keys: str) -> None:
        self.driver.switch_to.active_element.send_keys(*keys)

    def reads_over(self) -> list:
        """Elements that make the page wider than the window."""
        return self.js(
            "const main = document.getElementById('main'); return [document.documentElement, main]"
            ".filter((node) => node.scrollWidth > node.clientWidth).map((node) => node.tagName)")

    def complaints(self) -> list:
        """What the console has said since the last call."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]

    def requests(self) -> list:
        """Addresses that pages asked for since the last call."""
        addresses = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                document = message["params"].get("documentURL", "")
                address = message["params"]["request"]["url"]
                if document.startswith("http") and address.startswith(("http", "ws")):
                    addresses.append(address)
        return addresses

    def violations(self, **options) -> list:
        """What axe-core finds wrong with the page as it is now."""
        spec = importlib.util.find_spec("axe_core_python")
        if spec is None:
            support.lack("axe-core-python not installed")
        if not self.js("return Boolean(window.axe)"):
            source = Path(spec.submodule_search_locations[0], "axe.min.js")
            self.js(source.read_text(encoding="utf-8"))
        return self.driver.execute_async_script(AXE, options)

    def close(self) -> None:
        self.driver.quit()
