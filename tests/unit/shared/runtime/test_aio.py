"""Waiting for events and cancelling tasks does not lose cancellations."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from shared.runtime import aio
from shared.runtime.aio import cancel_and_wait, map_limited, timeout_of_others, wait_for_event

WITHIN_S = 20


class IgnoresFirstCancel:
    """Ignores its first cancellation, as a task in `asyncio.wait_for` may."""

    cancels = 0

    async def run(self) -> None:
        while self.cancels < 2:
            try:
                await asyncio.sleep(WITHIN_S)
            except asyncio.CancelledError:
                self.cancels += 1


async def test_waiting_returns_whether_the_event_is_set() -> None:
    event = asyncio.Event()
    assert not await wait_for_event(event, 0.001)
    waiting = asyncio.create_task(wait_for_event(event, WITHIN_S))
    await asyncio.sleep(0)
    event.set()
    assert await waiting
    assert await wait_for_event(event, 0)


async def test_a_cancellation_in_the_same_iteration_as_the_event_is_not_lost() -> None:
    event = asyncio.Event()
    waiting = asyncio.create_task(wait_for_event(event, WITHIN_S))
    await asyncio.sleep(0)
    event.set()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_task_that_ignores_its_first_cancellation_is_cancelled_again() -> None:
    task_body = IgnoresFirstCancel()
    task = asyncio.create_task(task_body.run())
    await asyncio.sleep(0)
    await cancel_and_wait(task, again_s=0.01)
    assert task.done()
    assert task_body.cancels == 2


async def test_results_and_exceptions_of_cancelled_tasks_are_discarded() -> None:
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


async def test_a_cancelled_caller_still_waits_for_the_tasks() -> None:
    cancelled = asyncio.Event()

    async def ends_slowly() -> None:
        try:
            await asyncio.sleep(WITHIN_S)
        finally:
            cancelled.set()
            await leave.wait()

    leave = asyncio.Event()
    task = asyncio.create_task(ends_slowly())
    await asyncio.sleep(0)
    ending = asyncio.create_task(cancel_and_wait(task))
    await cancelled.wait()
    for _ in range(3):
        ending.cancel()
        await asyncio.wait((ending,), timeout=0.01)
    assert not ending.done()
    assert not task.done(), "its clean-up is not interrupted"
    leave.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(ending, WITHIN_S)
    assert task.cancelled()


async def test_a_cancelled_task_can_cancel_and_wait_for_others() -> None:
    async def holds() -> None:
        try:
            await asyncio.sleep(WITHIN_S)
        finally:
            await cancel_and_wait(inner, again_s=0.05)

    inner = asyncio.create_task(IgnoresFirstCancel().run())
    outer = asyncio.create_task(holds())
    await asyncio.sleep(0)
    await cancel_and_wait(outer, again_s=0.02)
    assert inner.done()


async def test_a_function_is_applied_to_a_limited_number_of_items_at_a_time() -> None:
    running, most = 0, 0

    async def double(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return 2 * item

    assert await map_limited(double, range(100), 8) == [2 * item for item in range(100)]
    assert most == 8


async def test_a_failed_call_cancels_the_others() -> None:
    cancelled = []

    async def wait_or_fail(item: int) -> None:
        if item == 2:
            raise ValueError(item)
        try:
            await asyncio.sleep(WITHIN_S)
        except asyncio.CancelledError:
            cancelled.append(item)
            raise

    with pytest.raises(ValueError, match="2"):
        await map_limited(wait_or_fail, range(5), 5)
    assert cancelled == [0, 1, 3, 4]


async def test_what_arrives_while_the_loop_is_blocked_is_not_too_late() -> None:
    ours, other = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    try:
        asyncio.get_running_loop().call_soon(_stall_and_send, other)
        async with timeout_of_others(0.01):
            assert await reader.readexactly(2) == b"ok"
    finally:
        writer.close()
        other.close()


def _stall_and_send(other: socket.socket) -> None:
    other.send(b"ok")
    time.sleep(0.05)


async def test_a_timeout_ends_a_wait_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "LATE_S", 0.001)
    with pytest.raises(TimeoutError):
        async with timeout_of_others(0.001):
            await asyncio.Event().wait()
    async with timeout_of_others(0.001):
        pass
    await asyncio.sleep(0.01)  # nothing is cancelled later
