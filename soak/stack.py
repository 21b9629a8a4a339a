"""The system under test: `make up` with a simulated model, in a folder of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from launcher.children import Child
from launcher.home import read_environment
from launcher.settings import REPOSITORY
from soak.load import MODEL, TOKENS
from soak.sample import Usage, usages

START_S = 120.0
STOP_S = 60.0
READY = "Headrace is ready."
# Redis keeps the events of ended jobs for this time: short, so that its memory settles during the warm-up.
LOG_TTL_S = 20
# Flower keeps this many tasks, for the same reason.
FLOWER_TASKS = 500
SLOTS = 256
_DATABASE_SIZE = text("SELECT pg_database_size(current_database())")


@dataclass(slots=True)
class Stack:
    """The running system, with a client of its API and a connection to its database."""

    home: Path
    launcher: Child
    client: httpx.AsyncClient
    database: AsyncEngine

    def parts(self) -> dict[str, Usage]:
        """Measure each part."""
        pid = self.launcher.pid
        if pid is None:
            return {}
        started = [int(line.split()[0]) for line in (self.home / "pids").read_text().splitlines()]
        names = dict(zip(started, ("api", "worker", "flower"), strict=True))
        for child in psutil.Process(pid).children():
            if child.pid not in names:
                names[child.pid] = "valkey" if "valkey" in child.name() else "postgres"
        return usages(pid, names)

    async def database_bytes(self) -> int:
        async with self.database.connect() as connection:
            return int((await connection.execute(_DATABASE_SIZE)).scalar_one())

    @property
    def restarts(self) -> list[str]:
        """The launcher's lines about parts that died."""
        return [line for line in self.launcher.log.read_text().splitlines() if " died (" in line]


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Stack]:
    """Start the system and wait until it is ready; on exit, stop it."""
    home, port, flower_port = folder / "home", *_free_ports(2)
    launcher = Child("launcher", [sys.executable, "-m", "launcher"], {}, folder / "launcher.log", REPOSITORY)
    launcher.environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")} | {
        "ENGINE": "simulated",
        "DATABASE_URL": "",
        "REDIS_URL": "",
        "HEADRACE_HOME": str(home),
        "HEADRACE_MODELS": str(_write_models(folder / "models.yaml")),
        "HEADRACE_PORT": str(port),
        "HEADRACE_FLOWER_PORT": str(flower_port),
        "HEADRACE_LOG_TTL_S": str(LOG_TTL_S),
        "FLOWER_MAX_TASKS": str(FLOWER_TASKS),
    }
    launcher.start()
    try:
        await _until_ready(launcher)
        database = create_async_engine(read_environment(home / "env")["DATABASE_URL"], pool_pre_ping=True)
        async with _client(port, (home / "api_key").read_text().strip()) as client:
            yield Stack(home, launcher, client, database)
        await database.dispose()
    finally:
        await _stop(launcher)


async def _until_ready(launcher: Child) -> None:
    deadline = time.monotonic() + START_S
    while READY not in launcher.last_lines(100):
        if launcher.ended() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"`make up` did not become ready:\n{launcher.last_lines(30)}")
        await asyncio.sleep(0.1)


async def _stop(launcher: Child) -> None:
    """Stop it gently: its children are in groups of their own, and end with it in any case."""
    launcher.terminate()
    deadline = time.monotonic() + STOP_S
    while launcher.ended() is None:
        if time.monotonic() > deadline:
            launcher.kill()
        await asyncio.sleep(0.05)


def _write_models(file: Path) -> Path:
    """Write a models.yaml with a simulated model, as JSON, which is valid YAML."""
    options = {"ttft_ms": 20, "itl_ms": 400 // TOKENS}
    file.write_text(
        json.dumps({"models": [{"name": MODEL, "engine": "simulated", "slots": SLOTS, "options": options}]})
    )
    return file


def _client(port: int, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}",
        headers={"Authorization": f"Bearer {key}"},
        timeout=60,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
        trust_env=False,
    )


def _free_ports(count: int) -> list[int]:
    """Return free ports on 127.0.0.1."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]
