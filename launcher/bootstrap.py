"""Make `.venv` and run its Python: `bootstrap.py [--dev] [ARGUMENTS]`. Standard library only.

Environments live in the cache, one for each set of locked packages, so that a fresh clone finds one ready; `.venv`
is a link to it. An environment counts as complete by its stamp, which is written last.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import os
import platform
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

REPOSITORY = Path(__file__).resolve().parent.parent
LOCKS = REPOSITORY / "requirements"
LINK = REPOSITORY / ".venv"
STAMP = "headrace-complete"
STARTED = "headrace-environment"

# The PyTorch project's own index, asked only where pip as it is configured does not find the CPU build.
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"

# Engine: what it is, disk space in GB, how long the first install takes.
ENGINES = {
    "cpu": ("vLLM for CPUs", 5, "2 to 6 minutes"),
    "gpu": ("vLLM for NVIDIA GPUs", 16, "5 to 15 minutes"),
    "simulated": ("no engine, simulated models", 1, "about a minute"),
}


class BootstrapError(Exception):
    """The environment cannot be made; the message says why and what to do."""


class WheelMissingError(BootstrapError):
    """pip found no ready-made build of a package."""


def main(arguments: list[str]) -> None:
    """Make the environment complete, then become its Python with `arguments`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    dev = arguments[:1] == ["--dev"]
    try:
        python = environment(os.environ.get("ENGINE") or "cpu", dev)
    except BootstrapError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. What was downloaded is kept: the next start goes on from there.")
    rest = arguments[dev:]
    if rest:
        run(python, rest)


def run(python: Path, arguments: list[str]) -> NoReturn:
    """Become `python`: the same process id, so that signals to `make` reach the program."""
    os.execv(python, [str(python), *arguments])


def environment(engine: str, dev: bool) -> Path:
    """The Python of the complete environment for `engine`, made first when it is not there."""
    if engine not in ENGINES:
        raise BootstrapError(f"ENGINE={engine} is not known; choose one of: {', '.join(ENGINES)}.")
    lock = LOCKS / f"{engine}.txt"
    version = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    key = _digest(lock.read_bytes(), version.encode(), sys.base_prefix.encode())
    wanted = {STAMP: key}
    if dev:
        wanted[f"{STAMP}-dev"] = _digest((LOCKS / "dev.txt").read_bytes())

    folder = _folder(f"{engine}-py{sys.version_info.major}.{sys.version_info.minor}-{key[:12]}")
    if not _is_complete(folder, wanted):
        _check_machine(engine)
        with _only_one(folder):
            if not _is_complete(folder, {STAMP: key}):
                _make(folder, engine, lock)
                (folder / STAMP).write_text(key)
            if not _is_complete(folder, wanted):
                _install(folder, "the development tools", ["-r", str(LOCKS / "dev.txt")], "half a minute")
                (folder / f"{STAMP}-dev").write_text(wanted[f"{STAMP}-dev"])
    if folder != LINK:
        _link(folder)
    return folder / "bin" / "python"


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _folder(name: str) -> Path:
    """Where the environment is kept: the cache; `.venv` itself where the cache cannot be written."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = Path(os.environ.get("HEADRACE_CACHE") or f"{base}/headrace").expanduser().resolve() / "venvs"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        return LINK
    return cache / name if os.access(cache, os.W_OK) else LINK


def _is_complete(folder: Path, stamps: dict[str, str]) -> bool:
    try:
        return all((folder / file).read_text() == text for file, text in stamps.items())
    except OSError:
        return False


def _link(folder: Path) -> None:
    """Point `.venv` at the environment, in one step."""
    if LINK.is_symlink() and LINK.readlink() == folder:
        return
    if LINK.is_dir() and not LINK.is_symlink():
        if not (LINK / STARTED).exists():
            raise BootstrapError(f"{LINK} is there and was not made by `make up`. Move it away, and try again.")
        shutil.rmtree(LINK)
    new = LINK.with_name(f".venv-{os.getpid()}")
    new.symlink_to(folder)
    new.replace(LINK)


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the environment's lock, so that two that start at once do not install into each other."""
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another `make` is installing the same packages; waiting for it.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_machine(engine: str) -> None:
    """Say before the long download what this machine lacks."""
    what, gigabytes, _ = ENGINES[engine]
    system, machine = platform.system(), platform.machine()
    glibc = platform.libc_ver()[0] == "glibc"
    if engine != "simulated" and (system, machine, glibc) != ("Linux", "x86_64", True):
        libc = "" if glibc or system != "Linux" else " without glibc"
        raise BootstrapError(
            f"ENGINE={engine} ({what}) is made for Linux with glibc on x86-64; this is {system}{libc} on {machine}.\n"
            "Without a model of your own, and with your own servers:\n"
            "  ENGINE=simulated DATABASE_URL=postgresql://... REDIS_URL=redis://... make up"
        )
    if engine == "cpu" and not _has_library("libnuma.so.1"):
        raise BootstrapError("vLLM's CPU build needs the system library libnuma:\n  sudo apt install libnuma1")
    if engine == "gpu" and not _has_library("libcuda.so.1"):
        raise BootstrapError(
            "ENGINE=gpu needs NVIDIA's driver, and there is none (no libcuda.so.1).\n"
            "Install the driver, or leave ENGINE unset to run on the CPU."
        )
    try:
        import ensurepip  # noqa: F401 - Debian has it in a package of its own
        import venv  # noqa: F401
    except ImportError:
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        raise BootstrapError(f"This Python cannot make environments yet:\n  sudo apt install {package}") from None
    folder = next(path for path in _folder("x").parents if path.exists())
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise BootstrapError(
            f"ENGINE={engine} takes about {gigabytes} GB of disk space; {folder} has {free:.1f} GB free.\n"
            "Make room, or set HEADRACE_CACHE to a folder on a larger disk."
        )


def _has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _make(folder: Path, engine: str, lock: Path) -> None:
    """Install from nothing; what an interrupted install left is thrown away."""
    what, _, duration = ENGINES[engine]
    print(f"Installing Headrace with {what}: {duration}, once.\n  into {folder}", flush=True)
    if folder == LINK and LINK.is_symlink():
        LINK.unlink()
    if folder.is_dir():
        if folder == LINK and not (folder / STARTED).exists():
            raise BootstrapError(f"{LINK} is there and was not made by `make up`. Move it away, and try again.")
        shutil.rmtree(folder)
    os.umask(0o022)  # an embedded server that root starts under another user must be able to read it
    folder.mkdir(parents=True)
    (folder / STARTED).touch()
    log = folder / "install.log"
    with log.open("wb") as output:
        # The plain interpreter, in case this one runs inside an environment.
        base = getattr(sys, "_base_executable", sys.executable)
        command = [base, "-I", "-m", "venv", str(folder)]
        made = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    if made.returncode != 0:
        raise BootstrapError(f"Making the environment failed:\n{_tail(log)}")
    if engine == "cpu":
        _install_cpu_torch(folder, lock)
    _install(folder, f"the packages of {lock.name}", ["-r", str(lock)], duration)


def _install_cpu_torch(folder: Path, lock: Path) -> None:
    pin = re.search(r"^torch==\S+\+cpu", lock.read_text(), re.MULTILINE)
    if pin is None:
        return
    try:
        _install(folder, "PyTorch for CPUs (200 MB)", [pin[0]], "a minute")
    except WheelMissingError:
        print("  pip as configured has no CPU build of PyTorch; asking the PyTorch project's index.", flush=True)
        arguments = ["--extra-index-url", CPU_TORCH_INDEX, pin[0]]
        _install(folder, "PyTorch for CPUs (200 MB)", arguments, "a minute")


def _install(folder: Path, what: str, arguments: list[str], duration: str) -> None:
    """Run pip with its output in a log, and show how far it is."""
    log = folder / "install.log"
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    command = [str(folder / "bin" / "python"), "-I", "-m", "pip", "install", *options, *arguments]
    begin, last, collected = time.monotonic(), "", 0
    if not sys.stdout.isatty():
        print(f"  installing {what} ({duration})", flush=True)
    pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert pip.stdout is not None
        with log.open("ab") as output, selectors.DefaultSelector() as selector:
            output.write(f"\n$ {' '.join(command)}\n".encode())
            selector.register(pip.stdout, selectors.EVENT_READ)
            while True:
                if selector.select(timeout=1):
                    text = os.read(pip.stdout.fileno(), 65536)
                    if not text:
                        break
                    output.write(text)
                    output.flush()
                    for line in text.decode(errors="replace").splitlines():
                        collected += line.startswith("Collecting ")
                        last = _step(line) or last
                _show(f"  installing {what}: {collected} packages, {time.monotonic() - begin:.0f} s  {last}")
        code = pip.wait()
    finally:
        if pip.poll() is None:
            pip.terminate()
            pip.wait()
    if code != 0:
        raise _explained(what, log)
    _show(f"  installed {what} in {time.monotonic() - begin:.0f} s", final=True)


def _step(line: str) -> str:
    """What a line of pip's output says is going on, or nothing."""
    if found := re.match(r"\s*Downloading (\S+?)-\d\S* (\(.*\))", line):
        return f"downloading {found[1].rpartition('/')[2]} {found[2]}"
    return "unpacking" if line.startswith("Installing collected") else ""


def _explained(what: str, log: Path) -> BootstrapError:
    text = f"Installing {what} failed. The end of {log}:\n{_tail(log)}"
    if missing := re.search(r"No matching distribution found for (\S+)", _tail(log)):
        return WheelMissingError(
            f"{text}\n\nThere is no ready-made build (wheel) of {missing[1]} for Python {platform.python_version()} on "
            f"{platform.system()} {platform.machine()}, or no package index can be reached.\n"
            "  Another Python:       PYTHON=python3.12 make up\n"
            "  Without an engine:    ENGINE=simulated make up"
        )
    return BootstrapError(text)


def _tail(log: Path) -> str:
    return "\n".join(f"  | {line}" for line in log.read_text(errors="replace").splitlines()[-12:])


def _show(line: str, *, final: bool = False) -> None:
    """One line that is written over again; without a terminal, only the final one."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\033[K{line[:width]}", end="\n" if final else "", flush=True)
    elif final:
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
