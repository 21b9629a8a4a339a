"""Interrupts a coroutine at a chosen await, as if its process had been killed there."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class _Interruptible(Generic[T]):
    def __init__(self, coroutine: Coroutine[Any, Any, T], at: int) -> None:
        self._coroutine = coroutine
        self._at = at

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._coroutine.__await__()
        resume, argument = steps.send, None
        waits = 0
        while True:
            try:
                awaited = resume(argument)
            except StopIteration as end:
                result: T = end.value
                return result
            waits += 1
            if waits == self._at:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                argument = yield awaited
                resume = steps.send
            except BaseException as error:
                resume, argument = steps.throw, error


async def interrupt_at(coroutine: Coroutine[Any, Any, Any], at: int) -> bool:
    """Run a coroutine, and cancel it at its await number `at`, counted from 1. False: it ended before."""

    async def run() -> None:
        await _Interruptible(coroutine, at)

    task = asyncio.create_task(run())
    await asyncio.wait((task,))
    if task.cancelled():
        return True
    task.result()
    return False
