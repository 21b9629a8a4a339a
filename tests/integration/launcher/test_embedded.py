"""The embedded servers: they start, keep their data, and leave nothing behind."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from launcher.embedded import EmbeddedServerError, Postgres, start_postgres, start_valkey
from launcher.linux import start_time
from tests.support.waiting import eventually_sync

_KILLED_LAUNCHER = """
import os, signal, sys
from pathlib import Path
from launcher.embedded import start_postgres, start_valkey
home = Path(sys.argv[1])
print(start_postgres(home / "postgres").pid, start_valkey(home / "valkey").pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def query(server: Postgres, sql: str) -> object:
    async def run() -> object:
        engine = create_async_engine(server.url)
        try:
            async with engine.begin() as connection:
                answer = await connection.execute(text(sql))
                return answer.scalar() if answer.returns_rows else None
        finally:
            await engine.dispose()

    return asyncio.run(run())


def test_postgres_keeps_its_data_over_a_restart(tmp_path: Path) -> None:
    server = start_postgres(tmp_path / "postgres")
    try:
        assert "PostgreSQL 18" in str(query(server, "SELECT version()"))
        query(server, "CREATE TABLE kept AS SELECT 'still here' AS word")
    finally:
        server.stop()
    assert start_time(server.pid) is None
    server = start_postgres(tmp_path / "postgres")
    try:
        assert query(server, "SELECT word FROM kept") == "still here"
    finally:
        server.stop()
        server.stop()  # twice is harmless


def test_postgres_under_a_long_path(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 30)
    server = start_postgres(home / "postgres")
    try:
        assert query(server, "SELECT 1") == 1
    finally:
        server.stop()
    assert not server.socket_dir.exists()


def test_postgres_leaves_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "thesis.tex").touch()
    with pytest.raises(EmbeddedServerError, match="is not a database and not empty"):
        start_postgres(tmp_path / "postgres")
    assert (tmp_path / "postgres" / "thesis.tex").exists()


def test_valkey_keeps_port_and_data_over_a_restart(tmp_path: Path) -> None:
    first = start_valkey(tmp_path / "valkey")
    with redis.Redis.from_url(first.url) as client:
        client.set("word", "still here")
    first.stop()
    assert start_time(first.pid) is None
    second = start_valkey(tmp_path / "valkey")
    try:
        assert second.port == first.port
        with redis.Redis.from_url(second.url) as client:
            assert client.get("word") == b"still here"
    finally:
        second.stop()


def test_valkey_takes_another_port_when_its_own_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (tmp_path / "port").write_text(str(taken.getsockname()[1]))
        server = start_valkey(tmp_path, persist=False)
        server.stop()
        assert server.port != taken.getsockname()[1]


def test_failed_start_shows_the_servers_words(tmp_path: Path) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, pytest.raises(EmbeddedServerError, match="Address already in use"):
        start_valkey(tmp_path, taken.getsockname()[1])


def test_start_after_a_killed_launcher(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _KILLED_LAUNCHER, str(tmp_path)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=Path.cwd(), env=os.environ, check=False)
    assert answer.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in answer.stdout.split()]
    database, queue = start_postgres(tmp_path / "postgres"), start_valkey(tmp_path / "valkey")
    try:
        eventually_sync(lambda: all(start_time(pid) is None for pid in pids), "the old servers are gone")
        assert query(database, "SELECT 1") == 1
        with redis.Redis.from_url(queue.url) as client:
            assert client.ping()
    finally:
        database.stop()
        queue.stop()
