"""Real servers for every test: one PostgreSQL and one Valkey a process, a fresh database and an empty Redis a test.

They come out of the wheels, or are given by DATABASE_URL (whose user may create databases) and REDIS_URL
(whose databases 0 to 15 are flushed). Without either, these tests fail: they never skip.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import pytest_asyncio
import redis as sync_redis
from redis.asyncio import Redis
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from launcher.embedded import start_postgres, start_valkey
from shared.api_keys import ApiKeyStore
from shared.db import connect
from shared.job_store import JobStore
from shared.rescue_store import RescueStore
from shared.stream import JobLogs
from shared.worker_store import WorkerStore
from tests.support.database import TEMPLATE, create_database, drop_database, migrate, run_sql, switch_database
from tests.support.real_engine import SMOLLM2
from tests.support.scheduling import Parallel, write_list

Workers = Callable[[str], WorkerStore]

TEST_REDIS_DB = 15
SIM_REDIS_DB = 14
VLLM_REDIS_DB = 13
# Whoever needs one of these needs all cores.
VLLM_FIXTURES = {"vllm_stack", "real_engine"}
_others = itertools.cycle(range(VLLM_REDIS_DB))

# `make test` draws the same examples each time, `make test-long` many others.
hypothesis.settings.register_profile("ci", max_examples=100, derandomize=True, database=None, deadline=None)
hypothesis.settings.register_profile("long", max_examples=3000, database=None, deadline=None, print_blob=True)
hypothesis.settings.load_profile("ci")


def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.hasplugin("xdist") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Parallel())


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests with vLLM come last and, in a parallel run, alone."""
    for item in items:
        if VLLM_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("vllm")
        if operation := getattr(item, "operation_label", None):  # schemathesis calls all operations' tests the same
            item._id = item.id.with_params(operation)
    if twice := [name for name, count in Counter(item.nodeid for item in items).items() if count > 1]:
        raise pytest.UsageError(f"pytest-xdist would run only one of the tests called {twice}")
    items.sort(key=_with_vllm)
    write_list(config, [item.nodeid for item in items if _with_vllm(item)])


def _with_vllm(item: pytest.Item) -> bool:
    return item.get_closest_marker("vllm") is not None


def pytest_xdist_auto_num_workers() -> int:
    """Processes of `make test`: two, or none beside pytest's own if both would use the same given servers."""
    return 0 if {"DATABASE_URL", "REDIS_URL"} & os.environ.keys() else 2


@dataclass(frozen=True)
class Servers:
    """Addresses of the run's PostgreSQL and Valkey. Each database is made from a migrated template."""

    postgres_url: str
    redis_url: str

    def redis(self, database: int) -> str:
        return make_url(self.redis_url).set(database=str(database)).render_as_string(hide_password=False)

    def empty_redis(self, database: int | None = None) -> str:
        """The address of an emptied database; unless named, of the next in turn, of which few are in use at once."""
        url = self.redis(next(_others) if database is None else database)
        with sync_redis.Redis.from_url(url) as client:
            client.flushdb()
        return url


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    stops = []
    postgres_url, redis_url = os.environ.get("DATABASE_URL"), os.environ.get("REDIS_URL")
    if postgres_url is None:
        # Not under pytest's own folder: another run of root's closes that to all others, PostgreSQL's user too.
        folder = tempfile.TemporaryDirectory(prefix="headrace-tests-")
        postgres = start_postgres(Path(folder.name) / "data")
        stops += [postgres.stop, folder.cleanup]
        postgres_url = postgres.url
        # Tests kill processes, never the machine: what the kernel has is not lost.
        run_sql(postgres_url, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
    if redis_url is None:
        valkey = start_valkey(tmp_path_factory.mktemp("valkey"), persist=False)
        stops.append(valkey.stop)
        redis_url = valkey.url
    create_database(postgres_url, TEMPLATE)
    migrate(switch_database(postgres_url, TEMPLATE))
    yield Servers(postgres_url, redis_url)
    for stop in stops:
        stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def real_engine() -> AsyncIterator[Any]:
    """A vLLM engine in this process, for tests whose loop is the session's."""
    from workers.engines.vllm.engine import VllmEngine

    engine = VllmEngine(SMOLLM2)
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
def database_url(servers: Servers) -> Iterator[str]:
    """A fresh, migrated database."""
    name = f"test_{uuid.uuid4().hex}"
    create_database(servers.postgres_url, name, template=TEMPLATE)
    yield switch_database(servers.postgres_url, name)
    drop_database(servers.postgres_url, name)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = connect(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
def store(database: AsyncEngine) -> JobStore:
    return JobStore(database)


@pytest.fixture
def workers(database: AsyncEngine) -> Workers:
    """A worker's store, by the worker's name."""
    return lambda name: WorkerStore(database, name)


@pytest.fixture
def rescues(database: AsyncEngine) -> RescueStore:
    return RescueStore(database)


@pytest.fixture
async def key_id(database: AsyncEngine) -> int:
    """An API key's id."""
    keys = ApiKeyStore(database)
    await keys.create("test", "hr_test_" + "k" * 43)
    found = await keys.find("hr_test_" + "k" * 43)
    assert found is not None
    return found


@pytest.fixture
async def redis(servers: Servers) -> AsyncIterator[Redis]:
    """An empty Redis database."""
    client = Redis.from_url(servers.redis(TEST_REDIS_DB))
    await client.flushdb()
    yield client
    await client.aclose()


@pytest.fixture
def logs(redis: Redis) -> JobLogs:
    return JobLogs(redis)
