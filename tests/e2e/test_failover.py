"""Errors that servers return during a failover only pause a stream: no process ends and no job is lost.

The servers stay reachable, but refuse commands: Redis has become a replica, cannot save, has no room, no replicas or
another password; PostgreSQL is read-only, refuses the login, or has no connections left.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager

import httpx
import pytest

from tests.conftest import Servers
from tests.e2e.test_jobs import submit, wait_for_end
from tests.e2e.test_outages import RECOVERY_S, assert_unbroken, long_job, readiness, reading
from tests.support.database import create_database, drop_database, run_sql, switch_database
from tests.support.stack import Stack, stack_template, write_models
from tests.support.valkey import ValkeyServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(90)

DATABASE = "failover"
MODELS: list[dict[str, object]] = [
    {"name": "sim", "engine": "simulated", "slots": 8, "options": {"ttft_ms": 5, "itl_ms": 10}},
]
# The stream is longer than any fault here.
TOKENS = 250


@pytest.fixture(scope="module")
def valkeys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ValkeyServer, ValkeyServer]]:
    """The server that the stack uses, and another one."""
    folder = tmp_path_factory.mktemp("valkeys")
    pair = (
        ValkeyServer(folder / "first", enable_debug_command="yes", repl_diskless_sync_delay="0"),
        ValkeyServer(folder / "second", repl_diskless_sync_delay="0"),
    )
    yield pair
    for server in pair:
        server.stop()


@pytest.fixture(scope="module")
def stack(
    servers: Servers, valkeys: tuple[ValkeyServer, ValkeyServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """An API process and a worker, whose database role is not a superuser."""
    create_database(servers.postgres_url, DATABASE, template=stack_template(servers.postgres_url))
    run_sql(
        servers.postgres_url,
        "DROP ROLE IF EXISTS failover",
        "CREATE ROLE failover LOGIN PASSWORD 'x' IN ROLE pg_read_all_data, pg_write_all_data",
    )
    folder = tmp_path_factory.mktemp("stack")
    url = switch_database(servers.postgres_url, DATABASE).replace("//postgres", "//failover:x", 1)
    stack = Stack(
        url,
        valkeys[0].url,
        write_models(folder / "models.yaml", MODELS),
        folder,
        HEADRACE_LEASE_S=3,
        HEADRACE_HEARTBEAT_S=0.5,
        HEADRACE_RESYNC_S=1,
    )
    try:
        stack.start_api()
        stack.start_worker("sim")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, DATABASE)
        run_sql(servers.postgres_url, "DROP ROLE failover")


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client() as client:
        yield client


async def wait_for_log(stack: Stack, name: str, text: str, after: int) -> None:
    """Wait until a process has logged a text, after that many characters of its log."""

    async def found() -> bool:
        return text in (stack.folder / f"{name}.log").read_text()[after:]

    await eventually(found, f"{name} logs {text!r}", within_s=RECOVERY_S)


def length(stack: Stack, name: str) -> int:
    return len((stack.folder / f"{name}.log").read_text())


async def assert_survives(
    stack: Stack, client: httpx.AsyncClient, fault: AbstractContextManager[None], evidence: str
) -> None:
    """A stream continues after a fault of Redis, and jobs submitted meanwhile run. `evidence` is logged meanwhile."""
    running = await long_job(client, TOKENS)
    async with reading(client, running) as reader:
        await reader.wait_for_events("job.delta", 5)
        logged = length(stack, "worker-1")
        with fault:
            await wait_for_log(stack, "worker-1", evidence, logged)
            jobs = [await submit(client, max_tokens=3) for _ in range(3)]
            status, checks = await readiness(client)
            assert (status, checks["redis"], checks["database"]) == (503, "unavailable", "ok")
        await assert_unbroken(client, reader, TOKENS)
    for job in jobs:
        assert (await wait_for_end(client, job["id"]))["status"] == "incomplete"
    assert_no_faults(stack)


def assert_no_faults(stack: Stack) -> None:
    """No process has ended or met an unexpected error."""
    assert all(process.poll() is None for process in stack.processes.values())
    for name in stack.processes:
        assert "Traceback" not in (stack.folder / f"{name}.log").read_text()


@contextlib.contextmanager
def failed_over(first: ValkeyServer, second: ValkeyServer) -> Iterator[None]:
    """The second server has become the primary and the first its replica; then the reverse."""
    second.follow(first)
    second.promote()
    first.follow(second)
    try:
        yield
    finally:
        first.promote()


@contextlib.contextmanager
def configured(server: ValkeyServer, faulty: dict[str, object], normal: dict[str, object]) -> Iterator[None]:
    server.config(**faulty)
    try:
        yield
    finally:
        server.config(**normal)


REDIS_FAULTS: dict[str, tuple[Callable[[ValkeyServer, ValkeyServer], AbstractContextManager[None]], str]] = {
    "becomes-a-replica": (failed_over, "ReadOnlyError"),
    "cannot-save": (lambda first, _: first.failing_to_save(), "MISCONF"),
    "has-another-password": (lambda first, _: first.with_another_password(), "Cannot connect"),
    "is-full": (
        lambda first, _: configured(first, {"maxmemory": 1}, {"maxmemory": 0}),
        "cannot write 1 logs, retrying",
    ),
    "lacks-replicas": (
        lambda first, _: configured(first, {"min_replicas_to_write": 1}, {"min_replicas_to_write": 0}),
        "NOREPLICAS",
    ),
    "runs-a-long-script": (lambda first, _: first.running_a_script(), "BUSY"),
}
IN_MAKE_TEST = ("becomes-a-replica", "cannot-save", "has-another-password")


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=() if name in IN_MAKE_TEST else pytest.mark.long) for name in REDIS_FAULTS]
)
async def test_redis(
    stack: Stack, client: httpx.AsyncClient, valkeys: tuple[ValkeyServer, ValkeyServer], fault: str
) -> None:
    make, evidence = REDIS_FAULTS[fault]
    await assert_survives(stack, client, make(*valkeys), evidence)


TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'failover'"
DATABASE_FAULTS: dict[str, tuple[str, str]] = {
    "is-read-only": (
        f"ALTER DATABASE {DATABASE} SET default_transaction_read_only = on",
        f"ALTER DATABASE {DATABASE} RESET default_transaction_read_only",
    ),
    "refuses-the-login": ("ALTER ROLE failover NOLOGIN", "ALTER ROLE failover LOGIN"),
    "has-no-connections": (
        "ALTER ROLE failover CONNECTION LIMIT 0",
        "ALTER ROLE failover CONNECTION LIMIT -1",
    ),
    "is-missing": (f"ALTER DATABASE {DATABASE} RENAME TO moved", f"ALTER DATABASE moved RENAME TO {DATABASE}"),
}


@pytest.mark.parametrize(
    "fault",
    [pytest.param(name, marks=() if name == "is-read-only" else pytest.mark.long) for name in DATABASE_FAULTS],
)
async def test_database(servers: Servers, stack: Stack, client: httpx.AsyncClient, fault: str) -> None:
    """Submits are rejected meanwhile, and a running stream continues."""
    begin, end = DATABASE_FAULTS[fault]
    running = await long_job(client, TOKENS)
    async with reading(client, running) as reader:
        await reader.wait_for_events("job.delta", 5)
        logged = length(stack, "worker-1")
        await _run_sql(servers, TERMINATE, begin, TERMINATE)
        try:
            await wait_for_log(stack, "worker-1", "lease renewal failed, retrying", logged)
            response = await client.post("/v1/jobs", json={"model": "sim", "prompt": "x"})
            assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable"), response.text
            status, checks = await readiness(client)
            assert (status, checks["redis"]) == (503, "ok")
            assert checks["database"] != "ok"
        finally:
            await _run_sql(servers, end, TERMINATE)
        await assert_unbroken(client, reader, TOKENS)
    assert (await wait_for_end(client, (await submit(client, max_tokens=3))["id"]))["status"] == "incomplete"
    assert_no_faults(stack)


async def _run_sql(servers: Servers, *statements: str) -> None:
    await asyncio.to_thread(run_sql, servers.postgres_url, *statements)
