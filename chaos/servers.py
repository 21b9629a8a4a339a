"""The run's own PostgreSQL and Valkey, restartable on the same data and address."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from launcher.embedded import Postgres, Valkey, start_postgres, start_valkey

T = TypeVar("T")


class Servers:
    """Starts both servers from one long-lived thread, because they end when their parent thread does."""

    postgres: Postgres
    valkey: Valkey

    def __init__(self, folder: Path) -> None:
        self._postgres_folder = folder / "postgres"
        self._valkey_folder = folder / "valkey"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="servers")

    async def start(self) -> None:
        await self._start_postgres()
        await self._start_valkey()

    async def stop(self) -> None:
        for server in (getattr(self, "postgres", None), getattr(self, "valkey", None)):
            if server is not None:
                server.send(signal.SIGCONT)
                await self._call(server.stop)
        self._thread.shutdown()

    @property
    def postgres_socket(self) -> Path:
        return self.postgres.socket_dir / ".s.PGSQL.5432"

    async def restart_postgres(self) -> None:
        """Restart PostgreSQL with a fast shutdown, which ends all sessions."""
        await self._call(self.postgres.stop)
        await self._start_postgres()

    def crash_postgres(self) -> int | None:
        """SIGKILL one backend, so that PostgreSQL ends all sessions and recovers from its WAL. Returns the pid."""
        children = Path(f"/proc/{self.postgres.pid}/task/{self.postgres.pid}/children").read_text().split()
        backends = [pid for pid in map(int, children) if b"postgres: postgres" in _command(pid)]
        if not backends:
            return None
        os.kill(backends[0], signal.SIGKILL)
        return backends[0]

    async def kill_valkey(self, down_s: float) -> None:
        """SIGKILL Valkey and restart it from its append-only file, which may lack the last second."""
        self.valkey.send(signal.SIGKILL)
        await self._call(self.valkey.stop)
        await asyncio.sleep(down_s)
        await self._start_valkey()

    async def _start_postgres(self) -> None:
        self.postgres = await self._call(lambda: start_postgres(self._postgres_folder))

    async def _start_valkey(self) -> None:
        self.valkey = await self._call(lambda: start_valkey(self._valkey_folder))

    async def _call(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
