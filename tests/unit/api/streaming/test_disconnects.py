"""A reader whose client disconnects is removed, although cancellation strikes again at each await of the cleanup."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from api.streaming.hub import StreamHub
from shared.redis.event_log import LogPage
from tests.support.metrics import api_metrics


class _Logs:
    """Logs without events, whose subscriptions end slowly."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()

    async def follow(self, job_id: str, subscriber: str, after: int, new: bool = False) -> LogPage:
        return LogPage([], False)

    async def mark_shown(self, job_id: str) -> None:
        self.reached.set()

    async def unfollow(self, job_id: str, subscriber: str) -> None:
        await asyncio.sleep(0)


class _Store:
    def __init__(self, leader: str | None) -> None:
        self._leader = leader

    async def archive_page_or_leader(self, job_id: str, *, after: int = 0, start: int = 0) -> str | None:
        return self._leader

    async def has_ended(self, job_id: str) -> tuple[bool, None]:
        return False, None


@pytest.mark.parametrize("leader", [None, "job_leader"], ids=["a job of its own", "a job that follows another one"])
async def test_no_reader_remains_after_a_disconnect(leader: str | None) -> None:
    logs: Any = _Logs()
    store: Any = _Store(leader)
    unused: Any = None
    hub = StreamHub(unused, logs, store, api_metrics(), resync_s=1)

    async def read() -> None:
        async for _ in hub.follow("job_1"):
            pass

    async with anyio.create_task_group() as group:  # as sse-starlette reads a stream
        group.start_soon(read)
        await logs.reached.wait()
        group.cancel_scope.cancel()
    assert hub._readers == {}
