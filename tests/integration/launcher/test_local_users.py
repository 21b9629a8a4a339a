"""What another user of the machine can reach of the embedded servers: nothing."""

import asyncio
import os
import pwd
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis
from sqlalchemy.ext.asyncio import create_async_engine

from launcher import database_account, folder_access
from launcher.embedded import EmbeddedServerError, Postgres, Valkey, start_postgres, start_valkey

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a process as another user")

_CONNECT = """
with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
"""


def run_as_nobody(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code as another user.

    The interpreter starts as root, because it may lie in a folder that the other user cannot enter.
    """
    nobody = pwd.getpwnam("nobody")
    become = f"""
import os, socket, sys
os.setgroups([])
os.setgid({nobody.pw_gid})
os.setuid({nobody.pw_uid})
"""
    return subprocess.run(
        [sys.executable, "-c", become + code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={},
    )


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A folder that every user can pass through, as HEADRACE_HOME usually is.

    It is not in pytest's folder, which is closed, and which other tests share.
    """
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.chmod(0o755)
        yield home


@pytest.fixture(scope="module")
def postgres(home: Path) -> Iterator[Postgres]:
    server = start_postgres(home / "postgres")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def valkey(home: Path) -> Iterator[Valkey]:
    server = start_valkey(home / "valkey", private=True)
    yield server
    server.stop()


@pytest.fixture
def sockets(postgres: Postgres, valkey: Valkey) -> list[Path]:
    return [postgres.socket_dir / ".s.PGSQL.5432", valkey.socket]


def test_servers_have_no_tcp_port(postgres: Postgres, valkey: Valkey) -> None:
    for server in (postgres, valkey):
        assert psutil.Process(server.pid).net_connections("inet") == []


def test_sockets_are_in_private_folders(sockets: list[Path]) -> None:
    for path in sockets:
        assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_this_user_can_connect(postgres: Postgres, valkey: Valkey) -> None:
    async def connect() -> None:
        engine = create_async_engine(postgres.url)
        async with engine.connect():
            pass
        await engine.dispose()

    asyncio.run(connect())
    with redis.Redis.from_url(valkey.url) as client:
        assert client.ping()


@as_root
def test_another_user_cannot_connect(sockets: list[Path]) -> None:
    for path in sockets:
        result = run_as_nobody(_CONNECT, str(path))
        assert "PermissionError" in result.stderr


@as_root
def test_postgres_does_not_trust_who_reaches_its_socket(postgres: Postgres) -> None:
    """The folder's mode is not the only guard: the server checks the user of each connection."""
    path = postgres.socket_dir / ".s.PGSQL.5432"
    path.parent.chmod(0o711)
    path.chmod(0o777)
    try:
        startup = b"\x00\x03\x00\x00user\x00postgres\x00database\x00postgres\x00\x00"
        code = f"""
with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
    client.sendall({(len(startup) + 4).to_bytes(4) + startup!r})
    print(client.recv(1000))
"""
        result = run_as_nobody(code, str(path))
    finally:
        path.parent.chmod(0o700)
        path.chmod(0o700)
    assert "Peer authentication failed for user" in result.stdout, result.stderr


@as_root
def test_no_other_process_has_the_user_of_roots_postgres(postgres: Postgres) -> None:
    users = psutil.Process(postgres.pid).uids()
    assert users.real == users.effective == users.saved
    assert users.real not in {entry.pw_uid for entry in pwd.getpwall()}
    assert postgres.folder.stat().st_uid == users.real
    before = psutil.Process(postgres.pid).children(recursive=True)
    assert {child.uids().real for child in before} == {users.real}
    of_user = {process.pid for process in psutil.process_iter() if process.uids().real == users.real}
    # PostgreSQL starts and ends workers of its own meanwhile.
    after = psutil.Process(postgres.pid).children(recursive=True)
    assert postgres.pid in of_user
    assert of_user <= {postgres.pid, *(child.pid for child in (*before, *after))}


@as_root
def test_closed_folders_are_opened_to_postgres_alone_and_closed_again(home: Path) -> None:
    closed = home / "closed"
    closed.mkdir(mode=0o700)
    server = start_postgres(closed / "postgres")
    try:
        assert stat.S_IMODE(closed.stat().st_mode) & stat.S_IXOTH == 0
        assert run_as_nobody("os.stat(sys.argv[1])", str(server.folder)).returncode == 1
    finally:
        server.stop()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert "system.posix_acl_access" not in os.listxattr(closed)


@as_root
def test_closed_folders_without_access_control_lists(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this one is without them: the folders on the way to PostgreSQL's program are shared with other tests."""
    closed, grant = home / "without-lists", folder_access.grant
    monkeypatch.setattr(folder_access, "grant", lambda folder, gid: folder != closed and grant(folder, gid))
    closed.mkdir(mode=0o700)
    killed = start_postgres(closed / "postgres")
    assert stat.S_IMODE(closed.stat().st_mode) == 0o701
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.process is not None
    assert killed.owner is not None
    killed.process.wait()
    killed.owner.reservation.close()  # its launcher was killed too: the folder is open already
    other = start_postgres(closed / "other")
    server = start_postgres(closed / "postgres")
    server.stop()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o701, "the other needs it"
    other.stop()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@as_root
def test_two_launchers_never_choose_the_same_user(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither runs a process as that user yet, or any more."""
    monkeypatch.setattr(database_account, "_IDS", range(61100, 61103))
    accounts = [database_account.database_account(home / name, []) for name in ("a", "b")]
    assert len({account.account.uid for account in accounts if account}) == 2
    for account in accounts:
        assert account
        account.release()
    again = database_account.database_account(home / "a", [])
    assert again
    assert again.account == accounts[0].account  # type: ignore[union-attr]
    again.release()


@as_root
def test_a_start_that_fails_leaves_no_permissions(home: Path) -> None:
    closed = home / "failing"
    closed.mkdir(mode=0o700)
    (closed / "postgres").mkdir()
    (closed / "postgres" / "thesis.tex").touch()
    with pytest.raises(EmbeddedServerError):
        start_postgres(closed / "postgres")
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert "system.posix_acl_access" not in os.listxattr(closed)


@as_root
def test_database_of_an_earlier_release_is_taken_over(home: Path) -> None:
    """Root's PostgreSQL ran as `nobody`, and trusted every local connection."""
    nobody = pwd.getpwnam("nobody")
    data = home / "earlier" / "postgres"
    server = start_postgres(data)
    server.stop()
    for path in (data, *data.rglob("*")):
        os.lchown(path, nobody.pw_uid, nobody.pw_gid)
    (data / "pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 trust\n")
    (data / "pg_ident.conf").write_text("")
    server = start_postgres(data)
    try:
        owner = psutil.Process(server.pid).uids().real
        assert owner != nobody.pw_uid
        assert {path.stat().st_uid for path in (data, *data.rglob("*"))} == {owner}
        assert "trust" not in (data / "pg_hba.conf").read_text()
        assert asyncio.run(_select_one(server)) == 1
    finally:
        server.stop()


async def _select_one(server: Postgres) -> int:
    connection = await asyncpg.connect(host=str(server.socket_dir), user="postgres", database="postgres")
    try:
        value: int = await connection.fetchval("SELECT 1")
        return value
    finally:
        await connection.close()


def test_valkey_moves_from_its_port_to_its_socket(tmp_path: Path) -> None:
    """An earlier release's Valkey listened on a port; its data is kept."""
    server = start_valkey(tmp_path / "valkey")
    with redis.Redis.from_url(server.url) as client:
        client.set("word", "still here")
    server.stop()
    (tmp_path / "valkey").chmod(0o755)
    server = start_valkey(tmp_path / "valkey", private=True)
    try:
        with redis.Redis.from_url(server.url) as client:
            assert client.get("word") == b"still here"
        assert stat.S_IMODE((tmp_path / "valkey").stat().st_mode) == 0o700
    finally:
        server.stop()


def test_socket_under_a_long_path(tmp_path: Path) -> None:
    server = start_valkey(tmp_path / ("long" * 30) / "valkey", private=True, persist=False)
    try:
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
        assert stat.S_IMODE(server.socket_dir.stat().st_mode) == 0o700
    finally:
        server.stop()
    assert not server.socket_dir.exists()


def test_a_process_with_the_pid_of_a_stale_file_does_not_prevent_the_start(tmp_path: Path) -> None:
    """After a reboot, or in a new container, another process may have the pid of the killed PostgreSQL."""
    server = start_postgres(tmp_path / "postgres")
    stale = (tmp_path / "postgres" / "postmaster.pid").read_text().splitlines()
    server.stop()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (tmp_path / "postgres" / "postmaster.pid").write_text("\n".join([str(other.pid), *stale[1:]]) + "\n")
        (tmp_path / "postgres" / ".s.PGSQL.5432.lock").write_text("\n".join([str(other.pid), *stale[1:]]) + "\n")
        server = start_postgres(tmp_path / "postgres")
        server.stop()
        assert other.poll() is None
