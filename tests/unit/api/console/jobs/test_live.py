"""The stream of a job's page: its events and the parts that change, until one of them ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from api.console.jobs.job.live import END, merged


class Source:
    """Frames that a test sends; None ends them."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.closed = False

    async def frames(self) -> AsyncIterator[bytes]:
        try:
            while (frame := await self.queue.get()) is not None:
                yield frame
        finally:
            self.closed = True


async def last_parts() -> bytes:
    return b"last"


async def test_frames_come_in_order_until_the_events_end() -> None:
    events, parts = Source(), Source()
    stream = merged(events.frames(), parts.frames(), last_parts)
    for source, frame in ((events, b"e1"), (parts, b"p1"), (events, b"e2")):
        source.queue.put_nowait(frame)
        assert await anext(stream) == frame
    events.queue.put_nowait(None)
    assert [frame async for frame in stream] == [b"last", END]
    assert events.closed
    assert parts.closed


async def test_nothing_is_sent_after_the_session_has_ended() -> None:
    events, parts = Source(), Source()
    stream = merged(events.frames(), parts.frames(), last_parts)
    parts.queue.put_nowait(None)
    assert [frame async for frame in stream] == []
    assert events.closed


async def test_a_reader_that_leaves_ends_both() -> None:
    events, parts = Source(), Source()
    stream = merged(events.frames(), parts.frames(), last_parts)
    events.queue.put_nowait(b"e1")
    assert await anext(stream) == b"e1"
    await stream.aclose()  # type: ignore[attr-defined]
    assert events.closed
    assert parts.closed
