"""Real servers for tests: one PostgreSQL and one Valkey per process, a fresh database and an empty Redis per test.

The servers come from Python wheels, or from DATABASE_URL (whose user must be able to create databases) and REDIS_URL
(whose databases 0 to 15 are flushed). If neither is available, tests fail; they are not skipped.
"""

from __future__ import annotations

import gc
import itertools
import os
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator, Iterator
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
from shared.domain.owner import Owner
from shared.postgres.claim_store import ClaimStore
from shared.postgres.engine import connect
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from shared.redis.event_log import EventLog
from tests.support.database import (
    TEMPLATE,
    create_database,
    drop_database,
    make_owner,
    migrate,
    run_sql,
    switch_database,
)
from tests.support.last_use import LAST_USE
from tests.support.memory import folder_in_memory
from tests.support.metrics import worker_metrics
from tests.support.real_engine import SMOLLM2
from tests.support.scheduling import Parallel, write_groups
from tests.support.shared_imports import import_in_turn
from tests.support.shared_tls import share_tls_context
from tests.support.vllm_forks import forked_engines

Workers = Callable[[str], ClaimStore]

TEST_REDIS_DB = 15
SIM_REDIS_DB = 14
VLLM_REDIS_DB = 13
UNIT_TESTS = Path(__file__).parent / "unit"
VLLM_STACK, VLLM_ENGINE = "vllm_stack", "real_engine"
# An engine starts in half a minute, or in several on a busy machine.
VLLM_TIMEOUT_S = 600
_unreserved = itertools.cycle(range(VLLM_REDIS_DB))

# `make test` draws the same examples each time, `make test-long` many others.
hypothesis.settings.register_profile("ci", max_examples=60, derandomize=True, database=None, deadline=None)
hypothesis.settings.register_profile("long", max_examples=3000, database=None, deadline=None, print_blob=True)
hypothesis.settings.load_profile("ci")


def pytest_configure(config: pytest.Config) -> None:
    share_tls_context()
    # Other processes use the other cores: threads that share a core would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if config.pluginmanager.hasplugin("xdist") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Parallel())


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Collect without the garbage collector, which would traverse all modules and tests again and again."""
    gc.disable()
    try:
        import_in_turn(session.config, Path(__file__).parent)
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_finish(session: pytest.Session) -> None:
    LAST_USE.collected(session.items)


@pytest.hookimpl(trylast=True)  # after the fixtures of the file, which may use those of the session
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    if nextitem is not None:
        LAST_USE.before(nextitem)


@pytest.hookimpl(tryfirst=True)  # before selection by -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group the tests that use vLLM, and order all tests so that no process is left with long ones at the end.

    The groups come first because they take longest, and the unit tests last, because their files take seconds. Between
    them, the files that use `sim_stack` are last: it runs until the end of a process, and three idle stacks take a
    fifth of a core.
    """
    with_stack: set[Path] = set()
    with_vllm_stack = {item.path for item in items if VLLM_STACK in getattr(item, "fixturenames", ())}
    groups: dict[str, str] = {}
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if {VLLM_STACK, VLLM_ENGINE} & fixtures:
            item.add_marker("vllm")
        if item.get_closest_marker("vllm") is not None:
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(VLLM_TIMEOUT_S))
            groups[item.nodeid] = VLLM_STACK if item.path in with_vllm_stack else VLLM_ENGINE
        if "sim_stack" in fixtures:
            with_stack.add(item.path)
    if twice := [name for name, count in Counter(item.nodeid for item in items).items() if count > 1]:
        raise pytest.UsageError(f"pytest-xdist would run only one of the tests with the same id: {twice}")

    def position(item: pytest.Item) -> tuple[int, bool, bool]:
        group = (VLLM_STACK, VLLM_ENGINE, None).index(groups.get(item.nodeid))
        return group, UNIT_TESTS in item.path.parents, item.path in with_stack

    items.sort(key=position)
    write_groups(config, groups)


def pytest_xdist_auto_num_workers() -> int:
    """The number of processes of `make test`: three, or none besides pytest itself if they would share given servers.

    Two leave two cores idle for a third of the time, because most tests wait for processes, leases and drains.
    """
    return 0 if {"DATABASE_URL", "REDIS_URL"} & os.environ.keys() else 3


@dataclass(frozen=True)
class Servers:
    """The URLs of the run's PostgreSQL and Valkey. Each test database is a copy of a migrated template."""

    postgres_url: str
    redis_url: str

    def redis(self, database: int) -> str:
        return make_url(self.redis_url).set(database=str(database)).render_as_string(hide_password=False)

    def empty_redis(self, database: int | None = None) -> str:
        """Flush a database and return its URL; by default the next unreserved one, in rotation."""
        url = self.redis(next(_unreserved) if database is None else database)
        with sync_redis.Redis.from_url(url) as client:
            client.flushdb()
        return url


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    stops = []
    postgres_url, redis_url = os.environ.get("DATABASE_URL"), os.environ.get("REDIS_URL")
    if postgres_url is None:
        # Not in pytest's folder: if root starts another run, other users, including PostgreSQL's, lose access to it.
        folder = folder_in_memory()
        postgres = start_postgres(Path(folder.name) / "data")
        stops += [postgres.stop, folder.cleanup]
        postgres_url = postgres.url
        # Tests kill processes, never the machine, so data that the kernel has buffered is not lost.
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


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for what torch compiles in `real_engine`. Nothing of other runs is in it."""
    return tmp_path_factory.mktemp("torchinductor")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def real_engine(compiled: Path) -> AsyncIterator[Any]:
    """A vLLM engine in this process, for tests that run in the session's event loop."""
    from workers.engines.vllm.engine import VllmEngine

    engine = VllmEngine(SMOLLM2, worker_metrics(SMOLLM2.name))
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiled))
            with forked_engines():
                await engine.start()
        yield engine
    finally:  # else its process would keep this one from exiting
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
    """Creates the claim store of a worker with a given name."""
    return lambda name: ClaimStore(database, name)


@pytest.fixture
def recovery_store(database: AsyncEngine) -> RecoveryStore:
    return RecoveryStore(database)


@pytest.fixture
async def owner(database: AsyncEngine) -> Owner:
    """A new project with one key."""
    return await make_owner(database, "test")


@pytest.fixture
async def redis(servers: Servers) -> AsyncIterator[Redis]:
    """An empty Redis database."""
    client = Redis.from_url(servers.redis(TEST_REDIS_DB))
    await client.flushdb()
    yield client
    await client.aclose()


@pytest.fixture
def logs(redis: Redis) -> EventLog:
    return EventLog(redis)
