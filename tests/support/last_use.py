"""Ends what a process of the test run shares as soon as its last test that uses it is over.

A session fixture lives until its process ends. A running stack takes CPU time all along, for its periodic tasks, and an
engine memory, which the tests that follow can use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest


class LastUse:
    """Knows in which order the tests run. One per process."""

    def __init__(self) -> None:
        self._positions: dict[pytest.Item, int] = {}
        self._last: dict[str, int] = {}
        self._ends: dict[str, Callable[[], None]] = {}

    def collected(self, items: Sequence[pytest.Item]) -> None:
        """Take the tests that this process may run, in their order."""
        self._positions = {item: number for number, item in enumerate(items)}
        self._last = {name: number for number, item in enumerate(items) for name in getattr(item, "fixturenames", ())}

    @contextmanager
    def ended_after(self, fixture: str, end: Callable[[], None]) -> Iterator[None]:
        """Call `end` after the last test that uses the fixture, or at the end of the context if that comes first."""
        self._ends[fixture] = end
        try:
            yield
        finally:
            self._end(fixture)

    def before(self, item: pytest.Item) -> None:
        """End what neither this test nor a later one uses. What no test names, a fixture may use."""
        here, never = self._positions[item], len(self._positions)
        for fixture in [name for name in self._ends if self._last.get(name, never) < here]:
            self._end(fixture)

    def _end(self, fixture: str) -> None:
        if end := self._ends.pop(fixture, None):
            end()


LAST_USE = LastUse()
