"""Waiters of one `ReadCoalescer` wake up together."""

from __future__ import annotations

import asyncio

import pytest

from workers.engines.upstream.read_coalescing import ReadCoalescer


async def test_all_waiters_wake_with_the_first() -> None:
    reads = ReadCoalescer()
    first = asyncio.create_task(reads.wait(0.01))
    others = [asyncio.create_task(reads.wait(60)) for _ in range(3)]
    await asyncio.wait_for(asyncio.gather(first, *others), 20)


async def test_a_later_waiter_starts_a_new_interval() -> None:
    reads = ReadCoalescer()
    await asyncio.wait_for(reads.wait(0), 20)
    late = asyncio.create_task(reads.wait(60))
    await asyncio.wait((late,), timeout=0.02)
    assert not late.done()
    late.cancel()


async def test_a_cancelled_waiter_does_not_affect_others() -> None:
    reads = ReadCoalescer()
    first = asyncio.create_task(reads.wait(0.05))
    second = asyncio.create_task(reads.wait(60))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait_for(second, 20)
    with pytest.raises(asyncio.CancelledError):
        await first
