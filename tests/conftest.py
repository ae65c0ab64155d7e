"""pytest's settings and the fixtures that every test module may use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import media, processes, support


def pytest_configure(config):
    config.addinivalue_line("markers", "long: only with MEDIALIB_LONG=1 in the environment")
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        compile_package()


def compile_package() -> None:
    """Hosts and agents are started hundreds of times, and write no bytecode of their own: it is
    made once. It counts by the source's content, so that none can be stale.
    """
    for python in {sys.executable, support.newest_python()}:
        subprocess.run([python, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash",
                        "medialib"], cwd=str(support.ROOT), capture_output=True, check=False)


SLOW_FIRST = ("tests/faults/", "tests/test_end_to_end.py", "tests/test_plain_scan.py",
              "tests/test_agent_service.py", "tests/test_build.py")


def pytest_collection_modifyitems(items):
    """Long tests begin early, so that no worker is left alone with one of them at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(SLOW_FIRST))
    for item in items:
        if item.get_closest_marker("long") and not support.LONG:
            item.add_marker(pytest.mark.skip(reason="a long test: set MEDIALIB_LONG=1"))


def pytest_terminal_summary(terminalreporter):
    """Skips are loud: each reason is shown even without -r."""
    for report in terminalreporter.stats.get("skipped", []):
        if isinstance(report.longrepr, tuple):
            terminalreporter.write_line(f"SKIPPED {report.nodeid}: {report.longrepr[2]}")


@pytest.fixture(scope="session")
def videos():
    """Folder of real videos of at least ten kinds, made once and kept between runs."""
    return media.video_folder()


@pytest.fixture
def machines(tmp_path):
    """Starts hosts and agents; whatever still runs at the end of the test is killed."""
    with processes.Machines(tmp_path / "machines") as started:
        yield started


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """(certificate file, key file) for localhost."""
    support.need("openssl")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert,
         "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"], check=True, capture_output=True)
    return cert, key


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failing test may print names that are no text; the runner's own pipe takes only text."""
    outcome = yield
    report = outcome.get_result()
    try:
        report.longreprtext.encode("utf-8")
        "".join(text for _, text in report.sections).encode("utf-8")
    except UnicodeEncodeError:
        report.longrepr = report.longreprtext.encode("utf-8", "backslashreplace").decode("utf-8")
        report.sections = [(title, text.encode("utf-8", "backslashreplace").decode("utf-8"))
                           for title, text in report.sections]
