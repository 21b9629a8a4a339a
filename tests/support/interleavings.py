"""State machines of Hypothesis whose rules are coroutines, in an event loop of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis.stateful import RuleBasedStateMachine

from tests.support.waiting import completed

T = TypeVar("T")
# Longer than the longest step, which waits for several things.
STEP_S = 90.0


class Interleavings(RuleBasedStateMachine):
    """The base class of machines on a PostgreSQL and a Redis. Subclasses add rules, which use `_do`."""

    database_url: str
    redis_url: str

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.Runner()
        self._holds = True

    def teardown(self) -> None:
        """Finish all jobs, unless a rule has failed, and close the world."""
        try:
            if self._holds:
                self._do(self._finish_all())
        finally:
            self._loop.run(self._close())
            self._loop.close()

    async def _finish_all(self) -> None:
        """Check that every job can still end."""
        raise NotImplementedError

    async def _close(self) -> None:
        """Close connections and stop tasks."""
        raise NotImplementedError

    def _do(self, action: Coroutine[Any, Any, T]) -> T:
        try:
            return self._loop.run(completed(action, STEP_S))
        except BaseException:
            self._holds = False
            raise
