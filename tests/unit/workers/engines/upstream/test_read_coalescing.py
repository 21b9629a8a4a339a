from __future__ import annotations

import asyncio

import pytest

from workers.engines.upstream.read_coalescing import ReadCoalescer


async def test_all_that_wait_go_on_with_the_first() -> None:
    beat = ReadCoalescer()
    first = asyncio.create_task(beat.wait(0.01))
    others = [asyncio.create_task(beat.wait(60)) for _ in range(3)]
    await asyncio.wait_for(asyncio.gather(first, *others), 20)


async def test_each_beat_is_a_new_one() -> None:
    beat = ReadCoalescer()
    await asyncio.wait_for(beat.wait(0), 20)
    late = asyncio.create_task(beat.wait(60))
    await asyncio.wait((late,), timeout=0.02)
    assert not late.done()
    late.cancel()


async def test_who_is_cancelled_takes_nobody_along() -> None:
    beat = ReadCoalescer()
    first = asyncio.create_task(beat.wait(0.05))
    second = asyncio.create_task(beat.wait(60))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait_for(second, 20)
    with pytest.raises(asyncio.CancelledError):
        await first
