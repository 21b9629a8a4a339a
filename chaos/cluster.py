"""The system under test: servers, a fault proxy in front of each, and the API and worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
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
from chaos.webhooks import Receiver, receiving
from launcher.settings import REPOSITORY

START_S = 60.0
# The heartbeat interval of streams. A reader that receives nothing for twice as long switches to another API.
PING_S = 1.5
HTTP_TIMEOUT = httpx.Timeout(5, connect=2, read=2 * PING_S, pool=None)
SUBMIT_TIMEOUT = httpx.Timeout(15, connect=2, pool=None)


@dataclass(frozen=True, slots=True)
class Death:
    """A stopped worker. `at` is in monotonic seconds; `graceful` means SIGTERM, so it could requeue its jobs."""

    at: float
    pid: int
    graceful: bool = False


@dataclass(slots=True)
class Cluster:
    """The running system: what faults act on, and clients of its API."""

    plan: Plan
    folder: Path
    servers: Servers
    valkey: FaultProxy
    postgres: FaultProxy
    processes: Processes
    clients: list[httpx.AsyncClient]
    # Connects to PostgreSQL directly, bypassing the proxy. Used by the test only, never by Headrace.
    observer: AsyncEngine
    webhooks: Receiver
    deaths: list[Death] = field(default_factory=list)

    async def ready(self) -> bool:
        """Return whether every API process is ready and every process is up."""
        for client in self.clients:
            try:
                if (await client.get("/readyz")).status_code != 200:
                    return False
            except httpx.HTTPError:
                return False
        return all(member.up for member in self.processes.members)

    def logged(self, text: str) -> int:
        """Count the log lines of all workers that contain a text."""
        count = 0
        for log in self.folder.glob("worker-*.log*"):
            with log.open(errors="replace") as lines:
                count += sum(text in line for line in lines)
        return count


def write_models(plan: Plan, file: Path) -> Path:
    """Write a models.yaml with the simulated model, as JSON, which is valid YAML."""
    options = {"ttft_ms": plan.ttft_ms, "itl_ms": plan.itl_ms}
    model = {"name": MODEL, "engine": "simulated", "slots": plan.slots, "options": options}
    file.write_text(json.dumps({"models": [model]}))
    return file


@contextlib.asynccontextmanager
async def running(plan: Plan, folder: Path) -> AsyncIterator[Cluster]:
    """Start everything and wait until it is ready; on exit, stop everything."""
    async with contextlib.AsyncExitStack() as stack:
        servers = Servers(folder)
        stack.push_async_callback(servers.stop)
        await servers.start()
        valkey, postgres = FaultProxy(servers.valkey.port), FaultProxy(servers.postgres_socket)
        for proxy in (valkey, postgres):
            await proxy.start()
            stack.callback(proxy.stop)

        webhooks = await stack.enter_async_context(receiving(random.Random(f"{plan.seed} webhooks")))
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
            "HEADRACE_WEBHOOK_ALLOW_HTTP": "true",
            "HEADRACE_WEBHOOK_ALLOW_PRIVATE": "127.0.0.0/8",
        }
        await _run_module(environment, "migrations", "upgrade")
        await _run_module(environment | {"HEADRACE_API_KEY": key}, "api.keys", "ensure", "chaos")

        processes = Processes(folder, environment)
        stack.push_async_callback(processes.stop)
        ports = _free_ports(plan.apis)
        for number, port in enumerate(ports, 1):
            processes.add("api", number, "api", HEADRACE_PORT=str(port))
        for number in range(1, plan.workers + 1):
            processes.add("worker", number, "workers", MODEL)
        supervisor = asyncio.create_task(processes.supervise())
        stack.push_async_callback(_cancel_and_wait, supervisor)

        clients = [_client(port, key) for port in ports]
        for client in clients:
            stack.push_async_callback(client.aclose)
        observer = create_async_engine(
            servers.postgres.url,
            pool_pre_ping=True,
            connect_args={"timeout": 5, "server_settings": {"application_name": "chaos"}},
        )
        stack.push_async_callback(observer.dispose)
        cluster = Cluster(plan, folder, servers, valkey, postgres, processes, clients, observer, webhooks)
        await _until_ready(cluster)
        await webhooks.subscribe(clients[0])
        yield cluster


async def _until_ready(cluster: Cluster) -> None:
    deadline = time.monotonic() + START_S
    while not await cluster.ready() or not _all_serve(cluster):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not ready within {START_S:.0f} s; see the logs in {cluster.folder}")
        await asyncio.sleep(0.1)


def _all_serve(cluster: Cluster) -> bool:
    return all(member.was_ready for member in cluster.processes.members)


def _client(port: int, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}",
        headers={"Authorization": f"Bearer {key}"},
        timeout=HTTP_TIMEOUT,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        trust_env=False,
    )


async def _run_module(environment: dict[str, str], *arguments: str) -> None:
    """Run `python -m ...` to completion."""
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


async def _cancel_and_wait(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _free_ports(count: int) -> list[int]:
    """Return free ports on 127.0.0.1."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]
