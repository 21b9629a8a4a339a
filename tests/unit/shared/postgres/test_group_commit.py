"""Group commit: no write waits for a timer, and each gets its own outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from sqlalchemy.exc import DBAPIError

from shared.postgres.group_commit import LIMIT, MAX_WEIGHT, WRITERS, GroupCommit


class Recorder:
    """Records the batches that are written. Writes wait until they are released."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.released = asyncio.Event()
        self.began = asyncio.Event()

    async def write(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.began.set()
        await self.released.wait()
        if 13 in items:
            raise DBAPIError("INSERT", {}, ValueError("13 cannot be written"))
        return [10 * item for item in items]


@pytest.fixture
async def recorder() -> Recorder:
    return Recorder()


async def test_writes_that_arrive_during_a_write_are_grouped(recorder: Recorder) -> None:
    commit = GroupCommit(recorder.write)
    first = asyncio.create_task(commit(0))
    await recorder.began.wait()
    rest = [asyncio.create_task(commit(item)) for item in range(1, 5)]
    await asyncio.sleep(0)
    recorder.released.set()
    assert await asyncio.gather(first, *rest) == [0, 10, 20, 30, 40]
    assert recorder.batches == [[0], [1, 2, 3, 4]]


async def test_a_caller_can_write_again_at_once(recorder: Recorder) -> None:
    """All writers end in the same step of the loop, before the next item arrives: it is not left waiting."""
    commit = GroupCommit(recorder.write)

    async def write_twice() -> list[int]:
        return [await commit(1), await commit(2)]

    twice = asyncio.create_task(write_twice())
    await recorder.began.wait()
    recorder.began.clear()
    once = asyncio.create_task(commit(3))
    await recorder.began.wait()
    assert len(recorder.batches) == WRITERS
    recorder.released.set()
    assert await asyncio.wait_for(twice, 5) == [10, 20]
    assert await once == 30


async def test_an_invalid_write_fails_alone(recorder: Recorder) -> None:
    commit = GroupCommit(recorder.write)
    recorder.released.set()
    tasks = [asyncio.create_task(commit(item)) for item in (1, 13, 2)]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert (outcomes[0], outcomes[2]) == (10, 20)
    assert isinstance(outcomes[1], DBAPIError)


async def test_cancelling_a_caller_does_not_stop_the_others(recorder: Recorder) -> None:
    commit = GroupCommit(recorder.write)
    cancelled, waiting = asyncio.create_task(commit(1)), asyncio.create_task(commit(2))
    await recorder.began.wait()
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    recorder.released.set()
    assert await waiting == 20


async def test_what_waits_for_its_write_is_not_written_for_a_caller_that_is_cancelled(recorder: Recorder) -> None:
    commit = GroupCommit(recorder.write)
    writing = [asyncio.create_task(commit(item)) for item in (1, 2)]
    await recorder.began.wait()
    waiting = [asyncio.create_task(commit(item)) for item in (3, 4, 5)]
    await asyncio.sleep(0)
    for task in (waiting[0], waiting[2]):
        task.cancel()
    await asyncio.gather(waiting[0], waiting[2], return_exceptions=True)
    recorder.released.set()
    assert await asyncio.gather(*writing, waiting[1]) == [10, 20, 40]
    assert [item for batch in recorder.batches for item in batch] == [1, 2, 4]


async def test_the_number_of_writes_in_a_batch_is_limited(recorder: Recorder) -> None:
    commit = GroupCommit(recorder.write)
    recorder.released.set()
    items = list(range(1000, 1000 + 2 * LIMIT + 1))
    assert await asyncio.gather(*(commit(item) for item in items)) == [10 * item for item in items]
    assert [len(batch) for batch in recorder.batches] == [LIMIT, LIMIT, 1]


async def test_the_weight_of_a_batch_is_limited(recorder: Recorder) -> None:
    commit = GroupCommit(recorder.write, weigh=lambda item: item)
    recorder.released.set()
    items = [MAX_WEIGHT // 2, MAX_WEIGHT // 2, 1, 2 * MAX_WEIGHT, 3]
    await asyncio.gather(*(commit(item) for item in items))
    assert recorder.batches == [items[:2], [1], [2 * MAX_WEIGHT], [3]]
