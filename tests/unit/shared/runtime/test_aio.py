from __future__ import annotations

import asyncio

import pytest

from shared.runtime.aio import cancel_and_wait, wait_for_event

WITHIN_S = 20


class Deaf:
    """Loses the first cancel that it gets."""

    heard = 0

    async def run(self) -> None:
        while self.heard < 2:
            try:
                await asyncio.sleep(WITHIN_S)
            except asyncio.CancelledError:
                self.heard += 1


async def test_an_event_that_comes_is_told_from_one_that_does_not() -> None:
    event = asyncio.Event()
    assert not await wait_for_event(event, 0.001)
    waiting = asyncio.create_task(wait_for_event(event, WITHIN_S))
    await asyncio.sleep(0)
    event.set()
    assert await waiting
    assert await wait_for_event(event, 0)


async def test_a_cancel_in_the_turn_of_the_event_is_heard() -> None:
    event = asyncio.Event()
    waiting = asyncio.create_task(wait_for_event(event, WITHIN_S))
    await asyncio.sleep(0)
    event.set()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_task_that_loses_its_first_cancel_is_ended_all_the_same() -> None:
    deaf = Deaf()
    task = asyncio.create_task(deaf.run())
    await asyncio.sleep(0)
    await cancel_and_wait(task, again_s=0.01)
    assert task.done()
    assert deaf.heard == 2


async def test_what_ended_tasks_raise_is_not_told() -> None:
    async def fails() -> None:
        try:
            await asyncio.sleep(WITHIN_S)
        finally:
            raise ValueError("on its way out")

    async def returns() -> int:
        return 1

    failing, done, gathered = asyncio.create_task(fails()), asyncio.create_task(returns()), asyncio.gather(fails())
    await asyncio.sleep(0)
    await cancel_and_wait(failing, done, gathered)
    assert isinstance(failing.exception(), ValueError)
    assert done.result() == 1
    await cancel_and_wait()


async def test_who_ends_tasks_leaves_none_behind_when_it_is_cancelled() -> None:
    heard = asyncio.Event()

    async def takes_its_time() -> None:
        try:
            await asyncio.sleep(WITHIN_S)
        finally:
            heard.set()
            await leave.wait()

    leave = asyncio.Event()
    task = asyncio.create_task(takes_its_time())
    await asyncio.sleep(0)
    ending = asyncio.create_task(cancel_and_wait(task))
    await heard.wait()
    for _ in range(3):
        ending.cancel()
        await asyncio.wait((ending,), timeout=0.01)
    assert not ending.done()
    assert not task.done(), "it is not cut short on its way out"
    leave.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(ending, WITHIN_S)
    assert task.cancelled()


async def test_what_ends_tasks_within_what_is_ended_ends_them_too() -> None:
    async def holds() -> None:
        try:
            await asyncio.sleep(WITHIN_S)
        finally:
            await cancel_and_wait(inner, again_s=0.05)

    inner = asyncio.create_task(Deaf().run())
    outer = asyncio.create_task(holds())
    await asyncio.sleep(0)
    await cancel_and_wait(outer, again_s=0.02)
    assert inner.done()
