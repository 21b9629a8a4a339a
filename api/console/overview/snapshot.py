"""The numbers of the overview, read once for all who look at it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Generic, Literal, TypeVar

from api.console.data.histogram import Percentiles
from api.console.data.overview import Charts, Live
from api.console.data.overview_store import OverviewStore
from api.console.overview.store import ModelTimesStore
from shared.config.models.loader import Registry

# What waits and runs changes at once; a chart whose narrowest part is a minute does not.
LIVE_S, CHARTS_S = 1.5, 10.0
RangeName = Literal["1h", "6h", "24h"]
RANGES: Mapping[RangeName, timedelta] = {"1h": timedelta(hours=1), "6h": timedelta(hours=6), "24h": timedelta(days=1)}
DEFAULT_RANGE: RangeName = "1h"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the overview shows: the time range, its charts, the first tokens of each model in it, and the present."""

    range: RangeName
    charts: Charts
    first_tokens: Mapping[str, Percentiles]
    live: Live


class _Cached(Generic[T]):
    """A value that is read again when it is older than `ttl_s`, once for all who ask at the same time: they share the
    attempt, and its failure too, so that a database that hangs costs each of them one timeout."""

    def __init__(self, read: Callable[[], Awaitable[T]], ttl_s: float) -> None:
        self._read = read
        self._ttl_s = ttl_s
        self._value: T | None = None
        self._read_at = float("-inf")
        self._reading: asyncio.Task[T] | None = None

    async def get(self) -> T:
        if self._value is not None and time.monotonic() - self._read_at < self._ttl_s:
            return self._value
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_now(), name="console-overview-read")
            self._reading.add_done_callback(_retrieve_error)
        return await asyncio.shield(self._reading)  # a reader that leaves must not end the attempt of the others

    async def _read_now(self) -> T:
        try:
            self._value = value = await self._read()
            self._read_at = time.monotonic()
            return value
        finally:
            self._reading = None


def _retrieve_error(reading: asyncio.Task[Any]) -> None:
    """Mark the error of an attempt as handled, though all who waited for it may have left."""
    if not reading.cancelled():
        reading.exception()


class Snapshots:
    """Reads snapshots, at most one of each range and time at once."""

    def __init__(self, store: OverviewStore, times: ModelTimesStore, registry: Registry) -> None:
        self._store = store
        self._times = times
        self._registry = registry
        self._live = {name: _Cached(partial(self._read_live, span), LIVE_S) for name, span in RANGES.items()}
        self._charts = {name: _Cached(partial(self._read_charts, span), CHARTS_S) for name, span in RANGES.items()}

    async def get(self, range_name: RangeName) -> Snapshot:
        """A snapshot of one of `RANGES`.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database is unavailable.
        """
        charts, first_tokens = await self._charts[range_name].get()
        return Snapshot(range_name, charts, first_tokens, await self._live[range_name].get())

    async def _read_live(self, span: timedelta) -> Live:
        return await self._store.live(list(self._registry.models), datetime.now(UTC) - span)

    async def _read_charts(self, span: timedelta) -> tuple[Charts, Mapping[str, Percentiles]]:
        end = datetime.now(UTC)
        return await self._store.charts(end - span, end), await self._times.first_tokens(end - span, end)
