"""Whole stacks over TLS, with Sentinel, and over a Unix socket: API, worker and Flower."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from sqlalchemy.engine import make_url

from tests.conftest import Servers
from tests.e2e.test_jobs import submit, wait_for_end
from tests.e2e.test_outages import assert_unbroken, long_job, reading
from tests.support.database import create_database, drop_database, switch_database
from tests.support.ports import free_port
from tests.support.stack import Stack, stack_template, write_models
from tests.support.tls import Authority, tls_front
from tests.support.valkey import ValkeyServer
from tests.support.waiting import eventually, eventually_sync

pytestmark = pytest.mark.timeout(120)

DATABASE = "tls"
MODELS: list[dict[str, object]] = [
    {"name": "sim", "engine": "simulated", "slots": 8, "options": {"ttft_ms": 5, "itl_ms": 10}},
]


@contextlib.contextmanager
def running(servers: Servers, folder: Path, database_url: str, redis_url: str, **settings: object) -> Iterator[Stack]:
    """An API process and a worker."""
    stack = Stack(database_url, redis_url, write_models(folder / "models.yaml", MODELS), folder, **settings)
    try:
        stack.start_api()
        stack.start_worker("sim")
        yield stack
    finally:
        stack.stop()


@pytest.fixture
def own_database(servers: Servers) -> Iterator[str]:
    create_database(servers.postgres_url, DATABASE, template=stack_template(servers.postgres_url))
    yield switch_database(servers.postgres_url, DATABASE)
    drop_database(servers.postgres_url, DATABASE)


@contextlib.contextmanager
def flower(stack: Stack, **settings: str) -> Iterator[str]:
    port = free_port()
    arguments = ("workers.flower", f"--port={port}", "--address=127.0.0.1")
    process = stack.start("flower", *arguments, FLOWER_UNAUTHENTICATED_API="true", **settings)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        del stack.processes["flower"]
        process.kill()
        process.wait()


async def assert_shown(url: str, stack: Stack) -> None:
    """Flower shows the worker and the lengths of its queue."""

    async def shown() -> bool:
        async with httpx.AsyncClient(timeout=10) as client:
            try:
                workers: dict[str, Any] = (await client.get(f"{url}/api/workers", params={"refresh": 1})).json()
                if "active_queues" not in (await client.get(f"{url}/api/queues/length")).json():
                    return False
            except (httpx.TransportError, ValueError):
                return False
        return any(name.startswith("sim-") for name in workers)

    await eventually(shown, f"Flower shows the worker; see {stack.folder}/flower.log", within_s=30)


async def assert_runs(stack: Stack) -> None:
    async with stack.client() as client:
        job = await long_job(client, 30)
        async with reading(client, job) as reader:
            await assert_unbroken(client, reader, 30)


async def test_tls_with_client_certificates(servers: Servers, own_database: str, tmp_path: Path) -> None:
    """Both servers demand a client's certificate; the names in theirs are verified."""
    authority = Authority(tmp_path)
    certificate, key = authority.sign("client")
    socket = Path(str(make_url(own_database).query["host"])) / ".s.PGSQL.5432"
    redis_port = int(str(make_url(servers.redis_url).port))
    server = authority.sign("server")
    with (
        tls_front(socket, server, client_ca=authority.ca, postgres=True) as postgres,
        tls_front(redis_port, server, client_ca=authority.ca) as valkey,
    ):
        database_url = (
            f"postgresql://postgres@localhost:{postgres}/{DATABASE}"
            f"?sslmode=verify-full&sslrootcert={authority.ca}&sslcert={certificate}&sslkey={key}"
        )
        db = make_url(servers.empty_redis()).database
        redis_url = (
            f"rediss://localhost:{valkey}/{db}?ssl_ca_certs={authority.ca}&ssl_certfile={certificate}&ssl_keyfile={key}"
        )
        with running(servers, tmp_path, database_url, redis_url) as stack:
            assert stack.command("migrations", "current").returncode == 0
            await assert_runs(stack)
            with flower(stack) as url:
                await assert_shown(url, stack)


async def test_redis_with_a_certificate_of_another_authority(
    servers: Servers, own_database: str, tmp_path: Path
) -> None:
    """Nothing is sent to such a server."""
    (tmp_path / "other").mkdir()
    authority, other = Authority(tmp_path), Authority(tmp_path / "other")
    redis_port = int(str(make_url(servers.redis_url).port))
    with tls_front(redis_port, authority.sign("server")) as valkey:
        url = f"rediss://localhost:{valkey}/0?ssl_ca_certs={other.ca}"
        stack = Stack(own_database, url, write_models(tmp_path / "models.yaml", MODELS), tmp_path)
        try:
            stack.start_api()
            async with stack.client() as client:
                assert (await client.get("/readyz")).json()["checks"]["redis"] == "unavailable"
            assert "CERTIFICATE_VERIFY_FAILED" in (stack.folder / "api.log").read_text()
        finally:
            stack.stop()


async def test_unix_sockets(servers: Servers, own_database: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("unix")
    path = folder / "v.sock"
    server = ValkeyServer(folder / "valkey", unixsocket=str(path))
    try:
        with running(servers, folder, own_database, f"unix://{path}?db=1") as stack:
            await assert_runs(stack)
            assert server.admin.info("keyspace").keys() == {"db1"}
            with flower(stack) as url:
                await assert_shown(url, stack)
    finally:
        server.stop()


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[tuple[list[ValkeyServer], ValkeyServer]]:
    """A primary, a replica, and a sentinel that watches them."""
    first = ValkeyServer(tmp_path / "first", repl_diskless_sync_delay="0")
    second = ValkeyServer(tmp_path / "second", repl_diskless_sync_delay="0")
    second.follow(first)
    port = free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\n"
        f"sentinel monitor mymaster 127.0.0.1 {first.port} 1\n"
        "sentinel down-after-milliseconds mymaster 500\n"
        "sentinel failover-timeout mymaster 2000\n"
    )
    watcher = ValkeyServer.sentinel(tmp_path / "sentinel", config, port)
    eventually_sync(lambda: len(watcher.admin.sentinel_slaves("mymaster")) == 1, "the sentinel knows the replica")
    yield [first, second], watcher
    for server in (watcher, first, second):
        server.stop()


async def test_failover_by_sentinel(
    servers: Servers, own_database: str, tmp_path: Path, sentinel: tuple[list[ValkeyServer], ValkeyServer]
) -> None:
    """The primary is killed during a stream; all processes continue on the replica that the sentinel promotes."""
    (primary, replica), watcher = sentinel
    url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{watcher.port}/0?service_name=mymaster"
    with running(servers, tmp_path, own_database, url, HEADRACE_RESYNC_S=1) as stack:
        async with stack.client() as client:
            job = await long_job(client, 500)
            async with reading(client, job) as reader:
                await reader.wait_for_events("job.delta", 5)
                primary.process.kill()
                await assert_unbroken(client, reader, 500)
            assert (await wait_for_end(client, (await submit(client, max_tokens=3))["id"]))["status"] == "incomplete"
            assert (await client.get("/readyz")).json()["checks"]["redis"] == "ok"
            assert all(process.poll() is None for process in stack.processes.values())
        assert replica.admin.info("replication")["role"] == "master"
        living = f"redis+sentinel://127.0.0.1:{watcher.port}/0?service_name=mymaster"  # Flower asks the first one only
        with flower(stack, REDIS_URL=living) as shown_at:
            await assert_shown(shown_at, stack)
    with contextlib.suppress(redis.exceptions.ConnectionError):
        primary.admin.close()
