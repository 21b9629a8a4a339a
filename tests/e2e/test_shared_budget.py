"""A budget that is shared by the clients of several API processes, while Redis loses everything."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
import redis as sync_redis

from shared.postgres.engine import connect
from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_projects import bearer, create_key
from tests.support.budgets import check_books, windows
from tests.support.database import drop_database
from tests.support.stack import Stack
from workers.engines.simulated.engine import WORDS

PROCESSES, SUBMITTERS = 4, 64
LIMIT = Decimal(1)
# Each job could generate 20 tokens of a thousandth of a dollar. Most of them end earlier, at a word.
TOKENS = 20
RESERVED = TOKENS * Decimal("0.001")
# Jobs that have ended when Redis loses everything.
FLUSH_AFTER = 20


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    models: list[dict[str, object]] = [
        {
            "name": "sim",
            "engine": "simulated",
            "slots": SUBMITTERS,
            "options": {"ttft_ms": 1, "itl_ms": 1},
            "price": {"input": 0, "output": 1000},
        }
    ]
    stack = make_stack(servers, tmp_path_factory, "shared_budget", models)
    try:
        stack.start_api()
        stack.start_worker("sim")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_shared_budget")


class Ends:
    """How many jobs have ended, and what they were charged."""

    def __init__(self) -> None:
        self.count = 0
        self.charged = Decimal(0)
        self._condition = asyncio.Condition()

    async def add(self, charge: Decimal) -> None:
        async with self._condition:
            self.count, self.charged = self.count + 1, self.charged + charge
            self._condition.notify_all()

    async def wait_for_more_than(self, count: int) -> None:
        async with self._condition:
            await self._condition.wait_for(lambda: self.count > count)


@contextlib.asynccontextmanager
async def clients_of(stack: Stack, key: str) -> AsyncIterator[list[httpx.AsyncClient]]:
    """A client of each API process; all but the first process are started here."""
    async with contextlib.AsyncExitStack() as exits:
        urls = [stack.url, *(exits.enter_context(stack.second_api()) for _ in range(PROCESSES - 1))]
        yield [
            await exits.enter_async_context(
                httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False)
            )
            for url in urls
        ]


@pytest.mark.timeout(120)
async def test_64_submitters_of_4_processes_share_a_dollar(stack: Stack) -> None:
    """Nothing is spent above the limit, nobody is refused while there is room, and nothing stays reserved."""
    spender, treasurer = create_key(stack, "spender"), create_key(stack, "treasurer", "--scope", "admin")
    ends = Ends()
    async with bearer(stack, treasurer) as admin:
        # Before the other processes start, so that they know it.
        created = await admin.post(
            "/v1/admin/budgets", json={"project": "spender", "period": "total", "limit_usd": float(LIMIT)}
        )
        budget = f"/v1/admin/budgets/{created.json()['id']}"

        async def has_room() -> bool:
            spent = (await admin.get(budget)).json()["spend_usd"]
            return Decimal(str(spent)) + RESERVED <= LIMIT

        async def submit(number: int, client: httpx.AsyncClient) -> None:
            body: dict[str, Any] = {"model": "sim", "prompt": f"mill {number}", "max_tokens": TOKENS}
            body["stop"] = [WORDS[number % len(WORDS)]]
            while True:
                before = ends.count
                response = await client.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"})
                if response.status_code == 429:
                    used = re.search(r"\$([0-9.]+) are spent or reserved", response.json()["error"]["message"])
                    assert used is not None
                    assert Decimal(used[1]) + RESERVED > LIMIT, "it was refused although there was room"
                    if not await has_room():
                        return
                    await ends.wait_for_more_than(before)
                    continue
                assert response.status_code == 200, response.text
                await ends.add(Decimal(response.headers["x-headrace-cost"]))
                if ends.count == FLUSH_AFTER:
                    with sync_redis.Redis.from_url(stack.environment["REDIS_URL"]) as client_of_redis:
                        client_of_redis.flushdb()

        async with clients_of(stack, spender) as clients:
            await asyncio.gather(*(submit(number, clients[number % PROCESSES]) for number in range(SUBMITTERS)))

    assert ends.count > FLUSH_AFTER
    database = connect(stack.environment["DATABASE_URL"])
    try:
        (window,) = await windows(database)
        assert window.reserved == 0
        assert window.spent == ends.charged
        assert Decimal("0.95") * LIMIT <= window.spent <= LIMIT
        await check_books(database)
    finally:
        await database.dispose()
