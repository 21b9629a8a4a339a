"""Many writes as few: none waits for a timer, and each gets its own outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from sqlalchemy.exc import DBAPIError

from shared.postgres.group_commit import LIMIT, MAX_WEIGHT, GroupCommit


class Ledger:
    """What was written, batch by batch; a batch waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = asyncio.Event()
        self.began = asyncio.Event()

    async def write(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.began.set()
        await self.go.wait()
        if 13 in items:
            raise DBAPIError("INSERT", {}, ValueError("13 cannot be written"))
        return [10 * item for item in items]


@pytest.fixture
async def ledger() -> Ledger:
    return Ledger()


async def test_what_arrives_meanwhile_goes_together(ledger: Ledger) -> None:
    commit = GroupCommit(ledger.write)
    first = asyncio.create_task(commit(0))
    await ledger.began.wait()
    rest = [asyncio.create_task(commit(item)) for item in range(1, 5)]
    await asyncio.sleep(0)
    ledger.go.set()
    assert await asyncio.gather(first, *rest) == [0, 10, 20, 30, 40]
    assert ledger.batches == [[0], [1, 2, 3, 4]]


async def test_one_that_cannot_be_written_fails_alone(ledger: Ledger) -> None:
    commit = GroupCommit(ledger.write)
    ledger.go.set()
    tasks = [asyncio.create_task(commit(item)) for item in (1, 13, 2)]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert (outcomes[0], outcomes[2]) == (10, 20)
    assert isinstance(outcomes[1], DBAPIError)


async def test_a_caller_that_leaves_does_not_stop_the_others(ledger: Ledger) -> None:
    commit = GroupCommit(ledger.write)
    leaving, staying = asyncio.create_task(commit(1)), asyncio.create_task(commit(2))
    await ledger.began.wait()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    ledger.go.set()
    assert await staying == 20


async def test_a_batch_is_bounded(ledger: Ledger) -> None:
    commit = GroupCommit(ledger.write)
    ledger.go.set()
    items = list(range(1000, 1000 + 2 * LIMIT + 1))
    assert await asyncio.gather(*(commit(item) for item in items)) == [10 * item for item in items]
    assert [len(batch) for batch in ledger.batches] == [LIMIT, LIMIT, 1]


async def test_a_batch_is_bounded_by_its_weight_too(ledger: Ledger) -> None:
    commit = GroupCommit(ledger.write, weigh=lambda item: item)
    ledger.go.set()
    items = [MAX_WEIGHT // 2, MAX_WEIGHT // 2, 1, 2 * MAX_WEIGHT, 3]
    await asyncio.gather(*(commit(item) for item in items))
    assert ledger.batches == [items[:2], [1], [2 * MAX_WEIGHT], [3]]
