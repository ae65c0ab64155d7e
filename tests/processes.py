"""Hosts and agents as real processes, with a home of their own, always killed at the end."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

from tests import support

FORMS = ("package", "file")  # python -m medialib …, or the one file copied alone to an empty folder
LOG_TAIL = 4000


def members(group: int) -> list:
    """The numbers of the living processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_bytes().rpartition(b")")[2].split()
            if int(fields[2]) == group and fields[0] not in (b"Z", b"X"):
                found.append(int(path.parent.name))
    return found


def environment_of(pid: int) -> list:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


class Program:
    """One host or agent. `prefix` is put before its command (strace …, ip netns exec …)."""

    name = ""
    ready_path = ""

    def __init__(self, folder: Path, arguments: list, *, form="package", python=sys.executable,
                 prefix=(), environment=None, port=None, address="127.0.0.1"):
        self.folder = Path(folder)
        self.home, self.data = self.folder / "home", self.folder / "data"
        self.home.mkdir(parents=True, exist_ok=True)
        self.port = port or support.free_port()
        self.url = f"http://{address}:{self.port}"
        self.address, self.arguments, self.form = address, arguments, form
        self.python, self.prefix, self.extra = python, list(prefix), environment or {}
        self.process = None
        self.runs = 0

    def command(self) -> list:
        if self.form == "file":
            start = [self.python, "-I", "-S", f"{self.name}.py"]
        else:
            start = [self.python, "-m", "medialib", self.name]
        return [*self.prefix, *start, *map(str, self.arguments), "--data-dir", str(self.data),
                "--bind", self.address, "--port", str(self.port)]

    def environment(self) -> dict:
        kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "TMPDIR")
                if name in os.environ}
        return {**kept, "HOME": str(self.home), "PYTHONDONTWRITEBYTECODE": "1", **self.extra}

    def working_folder(self) -> Path:
        """The clone, or a folder that holds nothing but the one file."""
        if self.form != "file":
            return support.ROOT
        alone = self.folder / "alone"
        alone.mkdir(exist_ok=True)
        shutil.copy(support.ROOT / f"{self.name}.py", alone)
        return alone

    def start(self, *, ready: bool = True, timeout_s: float = 60):
        self.runs += 1
        self.log = self.folder / f"{self.name}-{self.runs}.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                self.command(), cwd=str(self.working_folder()), env=self.environment(),
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True)
        if ready:
            support.wait_until(self.is_ready, timeout_s, f"{self.name} to answer")
        return self

    def is_ready(self) -> bool:
        code = self.process.poll()
        assert code is None, f"{self.name} ended with {code}:\n{self.output()[-LOG_TAIL:]}"
        with contextlib.suppress(OSError, urllib.error.URLError):
            return support.request(self.url, self.ready_path, timeout_s=5)[0] == 200
        return False

    def run(self, *, timeout_s: float = 180) -> int:
        """Start it and wait for its end; the exit code."""
        self.start(ready=False)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 180) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"{self.name} did not end in {timeout_s} s:\n{self.output()[-LOG_TAIL:]}") from None

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.process else ""

    def signal_all(self, number: int) -> None:
        """To the program and what it started. Once it has ended, its number may be that of another
        test's program: then only to those of its group that have its home.
        """
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)
            return
        for pid in members(self.process.pid):
            with contextlib.suppress(OSError):
                if os.fsencode(f"HOME={self.home}") in environment_of(pid):
                    os.kill(pid, number)

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self, timeout_s: float = 40) -> int:
        """End it as a service manager does; the exit code."""
        self.signal_all(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """kill -9, with everything that it started; returns when it is gone."""
        if self.process is not None:
            self.signal_all(signal.SIGKILL)
            self.process.wait(60)

    def post(self, path: str, body=None, **options) -> dict:
        return support.post(self.url, path, body, **options)

    def get(self, path: str, **options):
        return support.get(self.url, path, **options)


class Host(Program):
    name = "server"
    ready_path = "/health"

    def agents(self) -> dict:
        """{name: what /api/agents says of it}; the host's own scanner is "local" here."""
        return {"local" if agent["id"] == "local" else agent["name"]: agent
                for agent in self.post("/api/agents")["agents"]}

    def agent_id(self, name: str) -> str:
        return self.agents()[name]["id"]

    def settings(self, **values) -> dict:
        return self.post("/api/settings", {"set": values})


class Agent(Program):
    name = "agent"
    ready_path = "/agent/ping"

    def stats(self) -> dict:
        return self.get("/agent/stats")


class Machines:
    """Starts hosts and agents below one folder and kills them all at the end."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.programs = []

    def host(self, *arguments, name: str = "host", **options) -> Host:
        return self.add(Host(self.folder / name, list(arguments), **options))

    def agent(self, host, *arguments, name: str = "box", **options) -> Agent:
        """`host` is a Host, or what the command line says instead."""
        address = getattr(host, "url", host)
        return self.add(Agent(self.folder / name, [address, *arguments, "--name", name], **options))

    def add(self, program: Program) -> Program:
        self.programs.append(program)
        return program

    def __enter__(self):
        return self

    def __exit__(self, *details):
        for program in self.programs:
            program.kill()
            if details[0] is not None and program.process is not None:
                print(f"\n--- {program.log}\n{program.output()[-LOG_TAIL:]}")


class Tracer:
    """strace around a program: which files below a folder it opened, what it executed."""

    CALLS = "open,openat,openat2,execve"

    def __init__(self, folder: Path):
        support.need("strace")
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def prefix(self) -> list:
        return ["strace", "-ff", "-qq", "-y", "-s", "4096", "-e", f"trace={self.CALLS}",
                "-o", str(self.folder / "trace")]

    def clear(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()

    def lines(self):
        for path in sorted(self.folder.iterdir()):
            yield from path.read_text("utf-8", "replace").splitlines()

    def opened(self, root: Path) -> list:
        """Every opening of a file below the root. Listing a folder and asking what the root lies
        on are not that.
        """
        below = re.compile(r'open\w*\(.*(?:"|<)' + re.escape(str(root)))
        others = ("O_DIRECTORY", "O_PATH", " = -1 ")
        return [line for line in self.lines() if below.search(line)
                and not any(word in line for word in others)
                and not line.endswith(f"<{root}>")]

    def probed(self) -> list:
        """Every start of ffprobe on a file; asking for its version is not one."""
        return [line for line in self.lines() if re.search(r'execve\("[^"]*/ffprobe"', line)
                and " = 0" in line and "file:" in line]


class Recorder:
    """Stands between agents and a host, passes everything on, and keeps what was posted."""

    def __init__(self, host: Host):
        recorder = self
        self.posted = []  # (path, JSON body) in order

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.answer(body)

            def do_GET(self):
                self.answer(None)

            def answer(self, body):
                status, said = recorder.pass_on(host.url, self.path, body, self.headers)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def pass_on(self, url: str, path: str, body, headers) -> tuple:
        sent = urllib.request.Request(url + path, data=body)
        for name in ("Content-Type", "Content-Encoding"):
            if headers.get(name):
                sent.add_header(name, headers[name])
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(sent, timeout=30) as answer:
                status, said = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, said = error.code, error.read()
        except OSError:
            return 502, b'{"ok": false, "error": "the host is down"}'
        if body:
            plain = gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else body
            self.posted.append((path, json.loads(plain)))
        return status, said

    def records(self) -> list:
        """Every file record that was posted."""
        return [record for path, body in self.posted if path == "/ingest/batch"
                for record in body.get("files", [])]

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *details):
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def two_networks():
    """Two machines' networks joined by one cable: ((name, address), (name, address)); for root."""
    support.need("ip")
    support.need_root()
    names = [f"ml{os.getpid()}{side}" for side in "ab"]
    links = [f"{name}v" for name in names]
    addresses = ["10.77.0.1", "10.77.0.2"]
    try:
        for name in names:
            ip_command("netns", "add", name)
        ip_command("link", "add", links[0], "netns", names[0], "type", "veth", "peer", "name",
                   links[1], "netns", names[1])
        for name, link, address in zip(names, links, addresses):
            ip_command("-n", name, "addr", "add", f"{address}/24", "dev", link)
            ip_command("-n", name, "link", "set", link, "up")
            ip_command("-n", name, "link", "set", "lo", "up")
        yield tuple(zip(names, addresses))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def ip_command(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        support.lack(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def inside_network(name: str) -> list:
    """The prefix of a command that runs in that network."""
    return ["ip", "netns", "exec", name]


def request_inside(name: str, url: str, path: str, body=None) -> tuple:
    """support.request from within a network: (status, answer); (0, reason) if nothing answers."""
    program = ("import json, sys; from tests import support\n"
               "try: print(json.dumps(support.request(*json.loads(sys.argv[1]))))\n"
               "except OSError as error: print(json.dumps([0, str(error)]))")
    done = subprocess.run(
        [*inside_network(name), sys.executable, "-c", program, json.dumps([url, path, body])],
        cwd=str(support.ROOT), capture_output=True, text=True, timeout=60, check=True)
    status, answer = json.loads(done.stdout)
    return status, answer
