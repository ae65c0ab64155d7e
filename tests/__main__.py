"""python3 -m tests [pytest's arguments]: set up what the tests need, then run all of them.

Python packages go into a virtual environment in the user's cache folder, one for each Python and
each state of tests/requirements.txt. System tools (ffmpeg, strace …) are installed with apt-get
where that is allowed; elsewhere the command says which are missing. With CI set in the
environment a missing tool is a failure; without, the tests that need it are skipped.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "tests" / "requirements.txt"
CLIPS = ROOT / "tests" / "requirements-clips.txt"
SYSTEM_FOLDERS = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
TOOLS = {  # command → Debian's package
    "ffmpeg": "ffmpeg", "ffprobe": "ffmpeg", "strace": "strace", "chromium": "chromium",
    "chromedriver": "chromium-driver", "ip": "iproute2", "tc": "iproute2",
    "mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs", "mkfs.btrfs": "btrfs-progs",
    "mkfs.vfat": "dosfstools", "setpriv": "util-linux", "losetup": "mount",
}
WORKERS = 3  # for two cores: tests of programs wait more than they compute


def say(text: str) -> None:
    print(f"tests: {text}", flush=True)


def complete_path() -> None:
    """System tools live in sbin folders that a plain user's or an empty PATH lacks."""
    folders = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    folders += [folder for folder in SYSTEM_FOLDERS if folder not in folders]
    os.environ["PATH"] = os.pathsep.join(folders)


def missing_tools() -> list:
    return [tool for tool in TOOLS if not shutil.which(tool)]


def apt_command() -> list:
    """How apt-get may be called here without being asked for a password, or []."""
    if not shutil.which("apt-get"):
        return []
    if os.geteuid() == 0:
        return ["apt-get"]
    sudo = shutil.which("sudo")
    asked = [sudo, "-n", "apt-get", "--version"]
    if sudo and subprocess.run(asked, capture_output=True, check=False).returncode == 0:
        return [sudo, "-n", "apt-get"]
    return []


def apt_install(packages: list) -> None:
    command = apt_command()
    if not command:
        return
    say(f"installing with apt-get: {' '.join(packages)}")
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    for arguments in (["update", "-q"], ["install", "-qy", "--no-install-recommends", *packages]):
        done = subprocess.run(command + arguments, env=environment, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            print(done.stdout.decode("utf-8", "replace")[-3000:])
            say(f"apt-get {arguments[0]} failed with exit code {done.returncode}")


def provide_tools() -> None:
    missing = missing_tools()
    if missing:
        apt_install(sorted({TOOLS[tool] for tool in missing}))
        missing = missing_tools()
    if missing:
        packages = " ".join(sorted({TOOLS[tool] for tool in missing}))
        say(f"not found: {' '.join(missing)}. Tests that need them are "
            f"{'FAILED' if os.environ.get('CI') else 'skipped'}. On Debian: "
            f"apt-get install {packages}")


def writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=str(folder)):
            return True
    except OSError:
        return False


def cache_folder() -> Path:
    """Where the virtual environments are kept; a throw-away folder if nothing else is writable."""
    wanted = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):
        wanted = wanted or str(Path.home() / ".cache")
    for folder in ([Path(wanted, "medialib-tests")] if wanted else []) + [ROOT / ".venv"]:
        if writable(folder):
            return folder
    return Path(tempfile.mkdtemp(prefix="medialib-tests-"))


@contextlib.contextmanager
def locked(path: Path):
    """Two runs at once must not both fill one environment."""
    with path.open("a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run_or_explain(command: list, advice: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        print(done.stdout.decode("utf-8", "replace")[-5000:])
        sys.exit(f"tests: {' '.join(map(str, command))} failed. {advice}")


def make_environment(folder: Path) -> None:
    """A virtual environment with the required packages; `ready` is written last."""
    say(f"making {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    create = [sys.executable, "-m", "venv", str(folder)]
    tried = subprocess.run(create, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if tried.returncode:
        # Debian keeps venv's half in a package of its own.
        apt_install([f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"])
        shutil.rmtree(folder, ignore_errors=True)
        run_or_explain(create, "Is python3-venv installed?")
    install = [str(environment_python(folder)), "-m", "pip", "install", "-q",
               "--disable-pip-version-check"]
    for arguments in (["-r", str(REQUIREMENTS)], ["--no-deps", "-r", str(CLIPS)]):
        run_or_explain(install + arguments, "Can this machine reach the Python package index?")
    (folder / "ready").write_text("")


def environment_python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def provide_environment() -> Path:
    """The Python of an environment that fits this Python and these requirements."""
    identity = f"{sys.executable}\n{sys.version}\n{platform.machine()}\n".encode()
    key = hashlib.sha256(identity + REQUIREMENTS.read_bytes() + CLIPS.read_bytes()).hexdigest()[:12]
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    cache = cache_folder()
    folder = cache / f"py{version}-{key}"
    with locked(cache / "lock"):
        if not ((folder / "ready").exists() and environment_python(folder).exists()):
            make_environment(folder)
    return environment_python(folder)


def pytest_command(python: Path, arguments: list) -> list:
    command = [str(python), "-m", "pytest"]
    if not any(argument.startswith(("-n", "-s", "--pdb", "--co")) for argument in arguments):
        command += ["-n", str(WORKERS), "--dist", "loadgroup"]
    if not os.access(str(ROOT), os.W_OK):
        command += ["-p", "no:cacheprovider"]
    return command + arguments


def main(arguments: list) -> int:
    started = time.monotonic()
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ.pop("PYTHONPATH", None)
    complete_path()
    provide_tools()
    python = provide_environment()
    os.chdir(str(ROOT))
    code = subprocess.run(pytest_command(python, arguments), check=False).returncode
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    verdict = "all is well" if code == 0 else f"FAILED, exit code {code},"
    say(f"{verdict} after {minutes} min {seconds} s")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
