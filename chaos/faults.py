"""The faults by name, and the order in which they are injected."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from chaos.cluster import Cluster, Death
from chaos.processes import Member, send
from chaos.proxy import FaultProxy

Fault = Callable[[Cluster, random.Random], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Happened:
    """An injected fault. Times are monotonic seconds; `what` describes its target."""

    began: float
    ended: float
    name: str
    what: str


def _victim(cluster: Cluster, role: str, rng: random.Random) -> Member | None:
    """Return a random running process of the role, or None if it is the only one: one must keep serving."""
    running = cluster.processes.of(role)
    return rng.choice(running) if len(running) > 1 else None


def _kill(role: str) -> Fault:
    async def fault(cluster: Cluster, rng: random.Random) -> str:
        member = _victim(cluster, role, rng)
        if member is None:
            return "skipped: only one is running"
        member.exit_expected, member.down_s = True, rng.uniform(0.2, 2)
        pid = send(member, signal.SIGKILL)
        if pid is not None and role == "worker":
            cluster.deaths.append(Death(time.monotonic(), pid))
        return f"{member.name} (pid {pid})"

    return fault


def _freeze(role: str) -> Fault:
    async def fault(cluster: Cluster, rng: random.Random) -> str:
        member = _victim(cluster, role, rng)
        if member is None:
            return "skipped: only one is running"
        member.frozen = True
        pid = send(member, signal.SIGSTOP)
        if pid is not None and role == "worker":
            cluster.deaths.append(Death(time.monotonic(), pid))
        try:
            await asyncio.sleep(cluster.plan.freeze_s)
        finally:
            send(member, signal.SIGCONT)
            member.frozen = False
        return f"{member.name} (pid {pid}) for {cluster.plan.freeze_s:.1f} s"

    return fault


def _restart(role: str) -> Fault:
    async def fault(cluster: Cluster, rng: random.Random) -> str:
        member = _victim(cluster, role, rng)
        if member is None:
            return "skipped: only one is running"
        member.exit_expected, member.down_s = True, 0.2
        pid = send(member, signal.SIGTERM)
        if pid is not None and role == "worker":
            cluster.deaths.append(Death(time.monotonic(), pid, graceful=True))
        return f"{member.name} (pid {pid})"

    return fault


async def _flush_valkey(cluster: Cluster, rng: random.Random) -> str:
    async with Redis.from_url(cluster.servers.valkey.url) as redis:
        keys = await redis.dbsize()
        await redis.flushall()
    return f"{keys} keys"


async def _kill_valkey(cluster: Cluster, rng: random.Random) -> str:
    down_s = rng.uniform(0.2, cluster.plan.outage_s[0])
    await cluster.servers.kill_valkey(down_s)
    return f"down for {down_s:.1f} s"


async def _restart_postgres(cluster: Cluster, rng: random.Random) -> str:
    await cluster.servers.restart_postgres()
    return ""


async def _crash_postgres(cluster: Cluster, rng: random.Random) -> str:
    return f"backend {cluster.servers.crash_postgres()} (SIGKILL)"


async def _end_backends(cluster: Cluster, rng: random.Random) -> str:
    statement = text(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'headrace'"
    )
    try:
        async with cluster.observer.connect() as connection:
            return f"{(await connection.execute(statement)).scalar_one()} sessions"
    except (SQLAlchemyError, OSError) as error:
        return f"PostgreSQL is unavailable: {error}"


def _proxy(cluster: Cluster, server: str) -> FaultProxy:
    return cluster.valkey if server == "valkey" else cluster.postgres


def _cut(server: str) -> Fault:
    async def fault(cluster: Cluster, rng: random.Random) -> str:
        return f"{_proxy(cluster, server).cut() // 2} connections"

    return fault


def _refuse(server: str) -> Fault:
    return _outage(server, FaultProxy.refuse)


def _stall(server: str) -> Fault:
    return _outage(server, FaultProxy.stall)


def _outage(server: str, switch: Callable[[FaultProxy, bool], None]) -> Fault:
    """`switch` begins and ends it."""

    async def fault(cluster: Cluster, rng: random.Random) -> str:
        seconds = rng.uniform(*cluster.plan.outage_s)
        proxy = _proxy(cluster, server)
        switch(proxy, True)
        try:
            await asyncio.sleep(seconds)
        finally:
            switch(proxy, False)
        return f"for {seconds:.1f} s"

    return fault


async def _demote_valkey(cluster: Cluster, rng: random.Random) -> str:
    """Make Valkey a replica, which refuses writes, as after a failover to another server."""
    return await _degrade_valkey(cluster, rng, ("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"))


async def _fill_valkey(cluster: Cluster, rng: random.Random) -> str:
    """Leave Valkey no memory for writes, which it refuses then as if its disk were full."""
    return await _degrade_valkey(cluster, rng, ("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"))


async def _degrade_valkey(cluster: Cluster, rng: random.Random, begin: tuple[str, ...], end: tuple[str, ...]) -> str:
    seconds = rng.uniform(*cluster.plan.outage_s)
    client: Any = Redis.from_url(cluster.servers.valkey.url)  # its method has no types
    async with client as redis:
        try:
            await redis.execute_command(*begin)
            await asyncio.sleep(seconds)
            await redis.execute_command(*end)
        except (RedisError, OSError) as error:  # killed meanwhile: a new server starts without the setting
            return f"Valkey is unavailable: {error}"
    return f"for {seconds:.1f} s"


async def _make_postgres_read_only(cluster: Cluster, rng: random.Random) -> str:
    """Make PostgreSQL refuse writes, as a standby does."""
    seconds = rng.uniform(*cluster.plan.outage_s)
    await _configure_postgres(cluster, "SET default_transaction_read_only = on")
    await asyncio.sleep(seconds)
    await _configure_postgres(cluster, "RESET default_transaction_read_only")
    return f"for {seconds:.1f} s"


async def _configure_postgres(cluster: Cluster, change: str) -> None:
    """Change a setting of the server, which survives its restarts; wait until the server can do it."""
    engine = cluster.observer.execution_options(isolation_level="AUTOCOMMIT")
    while True:
        try:
            async with engine.connect() as connection:
                await connection.execute(text(f"ALTER SYSTEM {change}"))
                await connection.execute(text("SELECT pg_reload_conf()"))
        except (SQLAlchemyError, OSError):
            await asyncio.sleep(0.1)
        else:
            return


# The order of a run with `--once`: the roles alternate.
FAULTS: dict[str, Fault] = {
    "worker-kill": _kill("worker"),
    "valkey-flush": _flush_valkey,
    "api-kill": _kill("api"),
    "postgres-restart": _restart_postgres,
    "worker-freeze": _freeze("worker"),
    "valkey-cut": _cut("valkey"),
    "postgres-cut": _cut("postgres"),
    "api-freeze": _freeze("api"),
    "valkey-kill": _kill_valkey,
    "worker-restart": _restart("worker"),
    "postgres-away": _refuse("postgres"),
    "valkey-stall": _stall("valkey"),
    "api-restart": _restart("api"),
    "postgres-backends": _end_backends,
    "valkey-away": _refuse("valkey"),
    "postgres-crash": _crash_postgres,
    "postgres-stall": _stall("postgres"),
    "valkey-replica": _demote_valkey,
    "postgres-read-only": _make_postgres_read_only,
    "valkey-full": _fill_valkey,
}


def endless(names: tuple[str, ...], rng: random.Random) -> Iterator[str]:
    """Yield faults forever, in rounds of all of them, each round shuffled."""
    while True:
        yield from rng.sample(names, len(names))


async def strike(cluster: Cluster, name: str, rng: random.Random) -> Happened:
    """Inject a fault and wait until it is over."""
    began = time.monotonic()
    what = await FAULTS[name](cluster, rng)
    return Happened(began, time.monotonic(), name, what)
