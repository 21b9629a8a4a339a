"""The whole thing: servers, proxies in front of them, API and worker processes behind those."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from chaos.plan import MODEL, Plan
from chaos.processes import Processes
from chaos.proxy import FaultProxy
from chaos.servers import Servers
from launcher.settings import REPOSITORY

START_S = 60.0
# A reader hears from a live API at least this often; one that hears nothing for twice as long tries another.
PING_S = 1.5
HTTP_TIMEOUT = httpx.Timeout(5, connect=2, read=2 * PING_S, pool=None)
SUBMIT_TIMEOUT = httpx.Timeout(15, connect=2, pool=None)


@dataclass(frozen=True, slots=True)
class Death:
    """A worker that was stopped: when (monotonic seconds), which process, and whether it could hand over."""

    at: float
    pid: int
    announced: bool = False


@dataclass(slots=True)
class Cluster:
    """What a fault can meet, and what a client sees."""

    plan: Plan
    folder: Path
    servers: Servers
    valkey: FaultProxy
    postgres: FaultProxy
    processes: Processes
    clients: list[httpx.AsyncClient]
    # Straight to PostgreSQL, past the proxy: for looking, never for the product.
    observer: AsyncEngine
    deaths: list[Death] = field(default_factory=list)

    async def ready(self) -> bool:
        """Whether each API process answers that all it needs is there."""
        for client in self.clients:
            try:
                if (await client.get("/readyz")).status_code != 200:
                    return False
            except httpx.HTTPError:
                return False
        return all(member.up for member in self.processes.members)


def write_models(plan: Plan, file: Path) -> Path:
    """A models.yaml with the simulated model; JSON is YAML."""
    options = {"ttft_ms": plan.ttft_ms, "itl_ms": plan.itl_ms}
    model = {"name": MODEL, "engine": "simulated", "slots": plan.slots, "options": options}
    file.write_text(json.dumps({"models": [model]}))
    return file


@contextlib.asynccontextmanager
async def running(plan: Plan, folder: Path) -> AsyncIterator[Cluster]:
    """Start everything, wait until it serves, and end everything."""
    async with contextlib.AsyncExitStack() as stack:
        servers = Servers(folder)
        stack.push_async_callback(servers.stop)
        await servers.start()
        valkey, postgres = FaultProxy(servers.valkey.port), FaultProxy(servers.postgres_socket)
        for proxy in (valkey, postgres):
            await proxy.start()
            stack.callback(proxy.stop)

        key = f"hr_chaos_{secrets.token_hex(16)}"
        environment = {
            "DATABASE_URL": f"postgresql://postgres@127.0.0.1:{postgres.port}/postgres?ssl=disable",
            "REDIS_URL": f"redis://127.0.0.1:{valkey.port}/0",
            "HEADRACE_MODELS": str(write_models(plan, folder / "models.yaml")),
            "HEADRACE_LEASE_S": str(plan.lease_s),
            "HEADRACE_HEARTBEAT_S": str(plan.heartbeat_s),
            "HEADRACE_MAX_ATTEMPTS": str(plan.max_attempts),
            "HEADRACE_PING_S": str(PING_S),
            "HEADRACE_DRAIN_S": "1",
            "HEADRACE_STOP_GRACE_S": "1",
        }
        await _command(environment, "migrations", "upgrade")
        await _command(environment | {"HEADRACE_API_KEY": key}, "api.keys", "ensure", "chaos")

        processes = Processes(folder, environment)
        stack.push_async_callback(processes.stop)
        ports = _free_ports(plan.apis)
        for number, port in enumerate(ports, 1):
            processes.add("api", number, "api", HEADRACE_PORT=str(port))
        for number in range(1, plan.workers + 1):
            processes.add("worker", number, "workers", MODEL)
        supervisor = asyncio.create_task(processes.supervise())
        stack.push_async_callback(_cancelled, supervisor)

        clients = [_client(port, key) for port in ports]
        for client in clients:
            stack.push_async_callback(client.aclose)
        observer = create_async_engine(
            servers.postgres.url,
            pool_pre_ping=True,
            connect_args={"timeout": 5, "server_settings": {"application_name": "chaos"}},
        )
        stack.push_async_callback(observer.dispose)
        cluster = Cluster(plan, folder, servers, valkey, postgres, processes, clients, observer)
        await _until_ready(cluster)
        yield cluster


async def _until_ready(cluster: Cluster) -> None:
    deadline = time.monotonic() + START_S
    while not await cluster.ready() or not _all_serve(cluster):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not ready within {START_S:.0f} s; see the logs in {cluster.folder}")
        await asyncio.sleep(0.1)


def _all_serve(cluster: Cluster) -> bool:
    return all(member.served for member in cluster.processes.members)


def _client(port: int, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}",
        headers={"Authorization": f"Bearer {key}"},
        timeout=HTTP_TIMEOUT,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        trust_env=False,
    )


async def _command(environment: dict[str, str], *arguments: str) -> None:
    """Run `python -m ...` to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *arguments,
        env={**os.environ, **environment},
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"python -m {' '.join(arguments)} failed:\n{output.decode()}")


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]
