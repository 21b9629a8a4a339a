"""Create `.venv` and run its Python: `bootstrap.py [--dev] [ARGUMENTS]`. Standard library only.

Environments are cached, one per set of locked packages, so a fresh clone can reuse an existing one; `.venv` is a
symlink to it. `.venv/bin/headrace` is the command line. The stamp file is written last: an environment without it is
incomplete.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import os
import platform
import re
import selectors
import shlex
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

# The PyTorch project's own index, used only if the configured pip does not find the CPU build.
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"

# Engine: description, disk space in GB, duration of the first install.
ENGINES = {
    "cpu": ("vLLM for CPUs", 5, "2 to 6 minutes"),
    "gpu": ("vLLM for NVIDIA GPUs", 16, "5 to 15 minutes"),
    "simulated": ("no engine, simulated models", 1, "about a minute"),
}


class BootstrapError(Exception):
    """The environment cannot be created; the message gives the reason and the fix."""


class WheelMissingError(BootstrapError):
    """pip found no wheel for a package."""


def main(arguments: list[str]) -> None:
    """Complete the environment, then replace this process with its Python, run with `arguments`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    dev = arguments[:1] == ["--dev"]
    try:
        python = environment(os.environ.get("ENGINE") or "cpu", dev)
    except BootstrapError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. Downloaded packages are kept; the next start reuses them.")
    rest = arguments[dev:]
    if rest:
        run(python, rest)


def run(python: Path, arguments: list[str]) -> NoReturn:
    """Exec `python`, keeping the process id so that signals to `make` reach the program."""
    os.execv(python, [str(python), *arguments])


def environment(engine: str, dev: bool) -> Path:
    """Return the Python of the environment for `engine`, creating the environment if needed."""
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
        with _install_lock(folder):
            if not _is_complete(folder, {STAMP: key}):
                _make(folder, engine, lock)
                (folder / STAMP).write_text(key)
            if not _is_complete(folder, wanted):
                _install(folder, "the development tools", ["-r", str(LOCKS / "dev.txt")], "half a minute")
                (folder / f"{STAMP}-dev").write_text(wanted[f"{STAMP}-dev"])
    if folder != LINK:
        _link(folder)
    _write_command(folder)
    return folder / "bin" / "python"


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _folder(name: str) -> Path:
    """Return the environment's folder: in the cache, or `.venv` itself if the cache is not writable."""
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
    """Point `.venv` at the environment atomically."""
    if LINK.is_symlink() and LINK.readlink() == folder:
        return
    if LINK.is_dir() and not LINK.is_symlink():
        if not (LINK / STARTED).exists():
            raise BootstrapError(f"{LINK} exists but was not made by `make up`. Move it away and try again.")
        shutil.rmtree(LINK)
    new = LINK.with_name(f".venv-{os.getpid()}")
    new.symlink_to(folder)
    new.replace(LINK)


# The command line: it runs `cli` of the clone whose .venv this is. Clones with the same packages share an environment,
# so the clone is found by the path that was called; or, if that is in the environment itself (it was activated), by the
# working folder, or else it is the clone whose `make` ran last. The first lines start the environment's Python, whose
# path may be too long for a #! line, or have spaces.
COMMAND = """\
#!/bin/sh
'''exec' {python} -I "$0" "$@"
' '''
import os
import sys
from pathlib import Path


def clones():
    path = Path(os.path.abspath(sys.argv[0]))
    while True:
        yield path.parents[2] if len(path.parents) > 2 else path.parent
        if not path.is_symlink():
            break
        path = Path(os.path.normpath(path.parent / path.readlink()))
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / ".venv").resolve() == Path(sys.prefix).resolve():
            yield folder
    yield Path({repository!r})


clone = next((folder for folder in clones() if (folder / "cli" / "__main__.py").exists()), None)
if clone is None:
    sys.exit("The clone of Headrace that this command belongs to was moved or deleted. Run `make up` in its new place.")
sys.path.insert(0, str(clone))

from cli.app import main

main()
"""


def _write_command(folder: Path) -> None:
    """Write `bin/headrace`, atomically."""
    text = COMMAND.format(python=shlex.quote(str(folder / "bin" / "python")), repository=str(REPOSITORY))
    command = folder / "bin" / "headrace"
    with contextlib.suppress(OSError):
        if command.read_text() == text:
            return
    command.parent.mkdir(exist_ok=True)
    new = command.with_name(f".headrace-{os.getpid()}")
    new.write_text(text)
    new.chmod(0o755)
    new.replace(command)


@contextlib.contextmanager
def _install_lock(folder: Path) -> Iterator[None]:
    """Hold the environment's lock, so that concurrent starts do not install into the same folder."""
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another `make` is installing the same packages; waiting for it to finish.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_machine(engine: str) -> None:
    """Check requirements before the long download; raises `BootstrapError` with the fix."""
    label, gigabytes, _ = ENGINES[engine]
    system, machine = platform.system(), platform.machine()
    glibc = platform.libc_ver()[0] == "glibc"
    if engine != "simulated" and (system, machine, glibc) != ("Linux", "x86_64", True):
        libc = "" if glibc or system != "Linux" else " without glibc"
        raise BootstrapError(
            f"ENGINE={engine} ({label}) requires Linux with glibc on x86-64; this is {system}{libc} on {machine}.\n"
            "To run simulated models with your own PostgreSQL and Redis:\n"
            "  ENGINE=simulated DATABASE_URL=postgresql://... REDIS_URL=redis://... make up"
        )
    if engine == "cpu" and not _has_library("libnuma.so.1"):
        raise BootstrapError("vLLM's CPU build requires the system library libnuma:\n  sudo apt install libnuma1")
    if engine == "gpu" and not _has_library("libcuda.so.1"):
        raise BootstrapError(
            "ENGINE=gpu requires the NVIDIA driver, which was not found (no libcuda.so.1).\n"
            "Install the driver, or leave ENGINE unset to run on the CPU."
        )
    try:
        import ensurepip  # noqa: F401 - a separate package on Debian
        import venv  # noqa: F401
    except ImportError:
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        raise BootstrapError(f"This Python cannot create virtual environments:\n  sudo apt install {package}") from None
    folder = next(path for path in _folder("x").parents if path.exists())
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise BootstrapError(
            f"ENGINE={engine} requires about {gigabytes} GB of disk space; {folder} has {free:.1f} GB free.\n"
            "Free some space, or set HEADRACE_CACHE to a folder on a larger disk."
        )


def _has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _make(folder: Path, engine: str, lock: Path) -> None:
    """Install from scratch, deleting the remains of an interrupted install."""
    label, _, duration = ENGINES[engine]
    print(f"Installing Headrace with {label}: {duration}, first start only.\n  into {folder}", flush=True)
    if folder == LINK and LINK.is_symlink():
        LINK.unlink()
    if folder.is_dir():
        if folder == LINK and not (folder / STARTED).exists():
            raise BootstrapError(f"{LINK} exists but was not made by `make up`. Move it away and try again.")
        shutil.rmtree(folder)
    os.umask(0o022)  # under root, PostgreSQL runs as another user, which must be able to read the files
    folder.mkdir(parents=True)
    (folder / STARTED).touch()
    log = folder / "install.log"
    with log.open("wb") as output:
        # The base interpreter, in case this one runs inside a virtual environment.
        base = getattr(sys, "_base_executable", sys.executable)
        command = [base, "-I", "-m", "venv", str(folder)]
        created = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    if created.returncode != 0:
        raise BootstrapError(f"Creating the environment failed:\n{_tail(log)}")
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
        print("  The configured pip index has no CPU build of PyTorch; using the PyTorch project's index.", flush=True)
        arguments = ["--extra-index-url", CPU_TORCH_INDEX, pin[0]]
        _install(folder, "PyTorch for CPUs (200 MB)", arguments, "a minute")


def _install(folder: Path, label: str, arguments: list[str], duration: str) -> None:
    """Run pip, logging its output and showing progress."""
    log = folder / "install.log"
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    command = [str(folder / "bin" / "python"), "-I", "-m", "pip", "install", *options, *arguments]
    begin, last, collected = time.monotonic(), "", 0
    if not sys.stdout.isatty():
        print(f"  installing {label} ({duration})", flush=True)
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
                        last = _pip_step(line) or last
                _show(f"  installing {label}: {collected} packages, {time.monotonic() - begin:.0f} s  {last}")
        code = pip.wait()
    finally:
        if pip.poll() is None:
            pip.terminate()
            pip.wait()
    if code != 0:
        raise _install_error(label, log)
    _show(f"  installed {label} in {time.monotonic() - begin:.0f} s", final=True)


def _pip_step(line: str) -> str:
    """Return the step that a line of pip's output reports, or an empty string."""
    if found := re.match(r"\s*Downloading (\S+?)-\d\S* (\(.*\))", line):
        return f"downloading {found[1].rpartition('/')[2]} {found[2]}"
    return "unpacking" if line.startswith("Installing collected") else ""


def _install_error(label: str, log: Path) -> BootstrapError:
    text = f"Installing {label} failed. The end of {log}:\n{_tail(log)}"
    if missing := re.search(r"No matching distribution found for (\S+)", _tail(log)):
        return WheelMissingError(
            f"{text}\n\nThere is no wheel of {missing[1]} for Python {platform.python_version()} on "
            f"{platform.system()} {platform.machine()}, or no package index is reachable.\n"
            "  With another Python:  PYTHON=python3.12 make up\n"
            "  Without an engine:    ENGINE=simulated make up"
        )
    return BootstrapError(text)


def _tail(log: Path) -> str:
    return "\n".join(f"  | {line}" for line in log.read_text(errors="replace").splitlines()[-12:])


def _show(line: str, *, final: bool = False) -> None:
    """Print a status line that the next one overwrites; without a terminal, print only the final one."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\033[K{line[:width]}", end="\n" if final else "", flush=True)
    elif final:
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
