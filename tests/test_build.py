"""The one-file builds: in step with their sources, rules that stop, and what pip installs."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import statistics
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests import support

sys.path.insert(0, str(support.ROOT / "tools"))

import amalgamate  # noqa: E402
import bundle_rules  # noqa: E402

OUTPUTS = ["agent.py", "server.py"]
SOURCES = sorted((support.ROOT / "medialib").glob("*.py"))
LONGEST_FUNCTION = 60
HEAD = '"""One."""\n\nfrom __future__ import annotations\n'


def run(*command, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True,
                          check=False, **options)


# The outputs


def test_outputs_are_what_the_sources_make():
    done = run(sys.executable, support.ROOT / "tools/amalgamate.py", "--check")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("which", [support.oldest_python, support.newest_python])
def test_every_python_makes_the_same_bytes(which):
    done = run(which(), "-B", support.ROOT / "tools/amalgamate.py", "--check")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", OUTPUTS)
def test_output_states_its_own_digest(name):
    text = (support.ROOT / name).read_text(encoding="utf-8")
    line = re.search(r"^# sha256 of all below this line: ([0-9a-f]{64})\n", text, re.M)
    assert hashlib.sha256(text[line.end():].encode()).hexdigest() == line.group(1)


@pytest.mark.parametrize("name", OUTPUTS)
def test_table_of_sections_maps_every_line_back(name):
    text = (support.ROOT / name).read_text(encoding="utf-8")
    rows = re.findall(r"^ +(\d+) +(\d+)  (medialib/\w+\.py):", text, re.M)
    assert [Path(path).stem for _, _, path in rows] == amalgamate.BUNDLES[name[:-3]][0]
    lines = text.split("\n")
    for here, there, path in rows:
        source = (support.ROOT / path).read_text(encoding="utf-8").rstrip("\n").split("\n")
        body = source[int(there) - 1:]
        assert lines[int(here) - 1:int(here) - 1 + len(body)] == body


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("which", [support.oldest_python, support.newest_python])
def test_file_alone_starts_isolated_and_without_site(name, which, tmp_path):
    (tmp_path / name).write_bytes((support.ROOT / name).read_bytes())
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = run(which(), "-I", "-S", name, "--version", cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\d+\.\d+", done.stdout)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_importing_the_file_does_nothing(tmp_path):
    for name in OUTPUTS:
        (tmp_path / name).write_bytes((support.ROOT / name).read_bytes())
    program = "import threading, agent, server; assert threading.active_count() == 1"
    done = run(sys.executable, "-B", "-c", program, cwd=tmp_path, env={"HOME": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == OUTPUTS


# The sources


def test_pyflakes_is_clean_on_package_and_outputs():
    done = run(sys.executable, "-m", "pyflakes", "medialib", "tools", "tests", "setup.py", *OUTPUTS,
               cwd=support.ROOT)
    assert (done.returncode, done.stdout) == (0, "")


def test_ruff_is_clean():
    done = run(sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", ".",
               cwd=support.ROOT)
    assert done.returncode == 0, done.stdout


def test_sources_are_python_3_8():
    for path in SOURCES + sorted(support.ROOT.glob("*/*.py")):
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 8))


def test_functions_are_short():
    lengths = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                start = node.decorator_list[0].lineno if node.decorator_list else node.lineno
                lengths[f"{path.name}:{node.lineno}"] = node.end_lineno - start + 1
    assert [place for place, lines in lengths.items() if lines > LONGEST_FUNCTION] == []
    assert statistics.median(lengths.values()) <= 10


def test_every_module_is_in_a_bundle():
    bundled = {name for names, _ in amalgamate.BUNDLES.values() for name in names}
    assert {path.stem for path in SOURCES} - {"__init__", "__main__"} == bundled


def test_ci_runs_the_one_command():
    script = support.ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("exec python3 -m tests")


# Each rule stops the build

BROKEN = {
    # name: (source of the module `bad`, line, words of the message)
    "no docstring": ("from __future__ import annotations\n", 1, "docstring"),
    "no future import": ('"""One."""\n\nimport os\n', 1, "docstring"),
    "another future import": (
        '"""One."""\nfrom __future__ import annotations, division\n', 1, "docstring"),
    "import below code": (HEAD + "\nA = 1\nimport os\n", 6, "import below"),
    "import in a function": (HEAD + "\ndef a():\n    import os\n", 6, "import below"),
    "import with code": (HEAD + "import os; A = 1\n", 4, "line of an import"),
    "conditional import": (HEAD + "if True:\n    import os\n", 5, "import below"),
    "sibling with alias": (HEAD + "from .good import good_name as other\n", 4, "alias"),
    "sibling star": (HEAD + "from .good import *\n", 4, "star"),
    "sibling module": (HEAD + "from . import good\n", 4, "not a module earlier"),
    "sibling later in the list": (HEAD + "from .later import later_name\n", 4, "not a module"),
    "sibling from above": (HEAD + "from ..good import good_name\n", 4, "not a module earlier"),
    "name the sibling lacks": (HEAD + "from .good import absent\n", 4, "does not make"),
    "name the sibling only imports": (HEAD + "from .good import time\n", 4, "does not make"),
    "own package by its name": (HEAD + "import medialib.good\n", 4, "may not be imported"),
    "library with alias": (HEAD + "import json as j\n", 4, "alias"),
    "library star": (HEAD + "from os.path import *\n", 4, "star"),
    "two origins": (HEAD + "from time import time\n", 4, "already comes from time"),
    "third party": (HEAD + "import xxhash\n", 4, "not in the standard library"),
    "optional without None": (
        HEAD + "try:\n    import xxhash\nexcept ImportError:\n    pass\n", 5, "import below"),
    "optional in two modules": (
        HEAD + "try:\n    import blake3\nexcept ImportError:\n    blake3 = None\n", 5,
        "already comes from medialib/good.py"),
    "name of another module": (HEAD + "def good_name():\n    pass\n", 4, "already comes from"),
    "private name of another": (HEAD + "_good_private = 2\n", 4, "already comes from"),
    "name of an import": (HEAD + "time = 1\n", 4, "already comes from time"),
    "name of a builtin": (HEAD + "class open:\n    pass\n", 4, "already comes from Python"),
    "name in a tuple": (HEAD + "A, (B, good_name) = 1, (2, 3)\n", 4, "already comes from"),
    "__file__": (HEAD + "def a():\n    return __file__\n", 5, "__file__"),
    "__name__": (HEAD + 'if __name__ == "__main__":\n    pass\n', 4, "not allowed"),
    "__all__": (HEAD + "__all__ = []\n", 4, "__all__"),
    "__doc__": (HEAD + "A = __doc__\n", 4, "__doc__"),
    "global": (HEAD + "def a():\n    global B\n    B = 1\n", 5, "global"),
    "TYPE_CHECKING": (HEAD + "from typing import TYPE_CHECKING\n", 4, "may not be imported"),
    "pickling": (HEAD + "import pickle\n", 4, "pickle may not"),
    "process pool": (
        HEAD + "import concurrent.futures\nA = concurrent.futures.ProcessPoolExecutor\n", 5,
        "ProcessPoolExecutor"),
    "effect: call": (HEAD + "import os\nos.umask(0)\n", 5, "top level"),
    "effect: loop": (HEAD + "for a in ():\n    pass\n", 4, "top level"),
    "effect: value": (HEAD + "import os\nA = os.getcwd()\n", 5, "calls os"),
    "effect: open": (HEAD + 'A = open("x")\n', 4, "calls open"),
    "effect: default": (HEAD + "def a(b=input()):\n    pass\n", 4, "calls input"),
    "effect: in a class": (HEAD + "import uuid\nclass A:\n    b = uuid.uuid4()\n", 6, "calls uuid"),
    "effect: environment": (HEAD + 'import os\nA = os.environ["HOME"]\n', 5, "environ"),
    "second logger": (HEAD + 'import logging\nA = logging.getLogger("medialib")\n', 5, "logger"),
    "not UTF-8": (b'"""\xff"""\n', 1, "UTF-8"),
    "carriage returns": (b'"""One."""\r\n', 1, "'\\r'"),
    "no last newline": (HEAD + "A = 1", 4, "newline"),
    "newer than 3.8": (HEAD + "with (A() as b, A() as c): pass\n", 4, ""),
    "no Python": (HEAD + "def\n", 4, "3.8"),
}
GOOD = HEAD + '''
import logging
import time

try:
    import blake3
except ImportError:
    blake3 = None

good_name = frozenset(["a"])
_good_private = logging.getLogger("medialib")
'''


def broken_package(folder: Path, source) -> Path:
    (folder / "medialib").mkdir()
    (folder / "medialib/good.py").write_text(GOOD)
    (folder / "medialib/later.py").write_text(HEAD + "later_name = 1\n")
    source = source if isinstance(source, bytes) else source.encode()
    (folder / "medialib/bad.py").write_bytes(source)
    return folder


@pytest.mark.parametrize("case", BROKEN)
def test_rule_stops_with_path_and_line(case, tmp_path):
    source, line, words = BROKEN[case]
    if case == "third party" and not hasattr(sys, "stdlib_module_names"):
        pytest.skip("this Python has no list of its standard library")
    root = broken_package(tmp_path, source)
    with pytest.raises(bundle_rules.RuleError) as caught:
        bundle_rules.load_modules(root, ["good", "bad", "later"])
    assert str(caught.value).startswith(f"medialib/bad.py:{line}: ")
    assert words in str(caught.value)


def test_missing_module_is_named(tmp_path):
    with pytest.raises(bundle_rules.RuleError, match=r"medialib/absent\.py:1: "):
        bundle_rules.load_modules(tmp_path, ["absent"])


def test_rules_let_the_ordinary_through(tmp_path):
    source = HEAD + '''
import json
import urllib.error
import urllib.request
from time import monotonic

from .good import (
    blake3,
    good_name,
)

# A comment above the first name belongs to the body.
BAD_TABLE: dict = {name.upper(): getattr(name, "x", None) for name in good_name}
BAD_TABLE.update({"b": len("b")})
BAD_WORDS = "a b".split()


class Bad(Exception):
    """Its name."""

    def name(self, at=None) -> json.JSONEncoder:
        return type(self).__name__ + str(blake3) + str(at or monotonic()) + urllib.error.__doc__
'''
    modules = bundle_rules.load_modules(broken_package(tmp_path, source), ["good", "bad"])
    assert modules[1].body.startswith("# A comment above")
    assert source.endswith(modules[1].body)
    assert source.split("\n")[modules[1].first - 1].startswith("# A comment above")


# Web files and the command

WEB_ASSETS = HEAD + "\nWEB_FILES: dict = {}\n"


def small_clone(folder: Path, monkeypatch, web: dict) -> Path:
    (folder / "medialib/web/sub").mkdir(parents=True)
    (folder / "medialib/web_assets.py").write_text(WEB_ASSETS)
    entry = "\ndef agent_main():\n    return 7\n"
    (folder / "medialib/agent_cli.py").write_text(HEAD + entry)
    for name, text in web.items():
        (folder / "medialib/web" / name).write_bytes(text.encode())
    launch = (support.ROOT / "medialib/launch.py").read_text(encoding="utf-8")
    (folder / "medialib/launch.py").write_text(launch)
    monkeypatch.setattr(amalgamate, "BUNDLES",
                        {"agent": (["launch", "web_assets", "agent_cli"], "run it")})
    return folder


def test_web_files_come_out_exactly(tmp_path, monkeypatch):
    web = {
        "a.js": "const a = 'x\\n' + \"\"\"y\"\"\" + `\\u0041${b}`;\n\\\n",
        "sub/b.css": "a::before { content: '\u2013'; }\n'''\n",
        "c.html": "\n<p title='\"'>\u00e4</p>\t\n\n",
    }
    root = small_clone(tmp_path, monkeypatch, web)
    names = {}
    exec(compile(amalgamate.build(root, "agent"), "agent.py", "exec"), names)
    assert names["WEB_FILES"] == web


def test_web_file_that_cannot_be_embedded_stops(tmp_path, monkeypatch):
    root = small_clone(tmp_path, monkeypatch, {"a.js": "'''\n\"\"\"\n"})
    with pytest.raises(bundle_rules.RuleError, match=r"medialib/web/a\.js:1: .*triple"):
        amalgamate.build(root, "agent")


def test_command_writes_then_finds_nothing_to_do(tmp_path, monkeypatch, capsys):
    root = small_clone(tmp_path, monkeypatch, {"a.js": "a\n"})
    assert amalgamate.main(["--check"], root) == 1
    assert "agent.py:1: " in capsys.readouterr().err
    assert not (root / "agent.py").exists()
    assert amalgamate.main([], root) == 0
    assert amalgamate.main(["--check"], root) == 0
    assert run(sys.executable, root / "agent.py").returncode == 7
    (root / "agent.py").write_text((root / "agent.py").read_text() + "\n")
    assert amalgamate.main(["--check"], root) == 1


# What pip installs


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The Python of a virtual environment into which this clone's wheel was installed."""
    folder = tmp_path_factory.mktemp("installed")
    clone = folder / "clone"
    names = run("git", "ls-files", "-co", "--exclude-standard", cwd=support.ROOT).stdout.split("\n")
    for name in names or []:
        source = support.ROOT / name
        if name and source.is_file() and not name.startswith("tests/"):
            target = clone / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    done = run(python, "-m", "pip", "install", "-q", clone)
    assert done.returncode == 0, done.stdout + done.stderr
    return python


@pytest.mark.xdist_group("installed")
def test_installed_package_holds_agent_and_web_files(installed):
    program = ("import pkgutil, sys\n"
               "sys.stdout.buffer.write(pkgutil.get_data('medialib', sys.argv[1]))")
    expected = {"agent_file.txt": support.ROOT / "agent.py"}
    folder = support.ROOT / "medialib/web"
    for path in folder.rglob("*"):
        if path.is_file():
            expected[f"web/{path.relative_to(folder).as_posix()}"] = path
    for name, source in expected.items():
        done = subprocess.run([str(installed), "-I", "-c", program, name], capture_output=True,
                              check=False)
        assert done.stdout == source.read_bytes(), name


@pytest.mark.xdist_group("installed")
@pytest.mark.parametrize("command", ["medialib-agent", "medialib-server"])
def test_installed_command_runs(installed, command):
    done = run(installed.with_name(command), "--version")
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_medialib_explains_itself():
    done = run(sys.executable, "-m", "medialib", cwd=support.ROOT)
    assert done.returncode == 2
    assert "agent|server" in done.stderr


LAUNCHED = """
import sys
sys.path.insert(0, {root!r})
from medialib.launch import launch

def main():
    print("main runs")
    {body}

if __name__ == "__main__":
    launch(main)
    print("never reached")
"""


@pytest.mark.parametrize(("body", "status", "said"), [
    ("return 3", 3, ""), ("return None", 0, ""), ("sys.exit(4)", 4, ""),
    ("sys.exit('no host')", 1, "no host\n"),
    ("raise ValueError('wrong')", 1, "ValueError: wrong\n"),
    ("raise KeyboardInterrupt", 130, "KeyboardInterrupt\n"),
])
@pytest.mark.parametrize("which", [support.oldest_python, support.newest_python])
def test_a_launched_program_ends_as_its_main_says(tmp_path, which, body, status, said):
    program = tmp_path / "program.py"
    program.write_text(LAUNCHED.format(root=str(support.ROOT), body=body))
    for command in ([str(program)], ["-c", f"import runpy; runpy.run_path({str(program)!r}, None,"
                                           " '__main__')"]):
        if "KeyboardInterrupt" in body and command[0] == "-c":
            continue  # Python's own affair
        ended = run(which(), *command)
        assert ended.returncode == status
        assert ended.stdout.startswith("main runs")
        assert "never" not in ended.stdout
        assert ended.stderr.endswith(said)
        assert "Launched" not in ended.stderr
        assert "excepthook" not in ended.stderr
        if not said:
            assert ended.stderr == ""


MEASURED = """
def main():
    settle_memory()
    with open("/proc/self/status") as status:
        print(*[line.split()[1] for line in status if line.startswith("VmRSS:")])

if __name__ == "__main__":
    {start}
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_a_launched_program_does_not_keep_its_syntax_tree(tmp_path):
    """If Python ever frees it by itself, launch.py has no work left."""
    used_kib = {}
    for start in ("main()", "launch(main)"):
        program = tmp_path / "program.py"
        program.write_text(
            f"import sys\nsys.path.insert(0, {str(support.ROOT)!r})\n"
            "from medialib.allocator import settle_memory\n"
            "from medialib.launch import launch\n" + "x = [1, (2, 3), {4: 5}]\n" * 20_000
            + MEASURED.format(start=start))
        done = run(sys.executable, program)
        used_kib[start] = int(done.stdout)
    assert used_kib["launch(main)"] < used_kib["main()"] - 8000
