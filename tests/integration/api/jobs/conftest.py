from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conftest import TEST_REDIS_DB, Servers
from tests.integration.api.jobs.test_coalescing import Coalescing
from tests.integration.shared.postgres.test_state_machine import open_world


@pytest.fixture
async def world(servers: Servers, database_url: str) -> AsyncIterator[Coalescing]:
    world = await open_world(database_url, servers.redis(TEST_REDIS_DB), Coalescing)
    world.prepare()
    yield world
    await world.close()
