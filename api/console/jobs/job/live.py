"""A job's events and the changing parts of its page in one stream: browsers open few connections to a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from shared.runtime.aio import cancel_and_wait

END = b"event: end\ndata: {}\n\n"


async def merged(
    events: AsyncIterator[bytes], parts: AsyncIterator[bytes], last_parts: Callable[[], Awaitable[bytes]]
) -> AsyncIterator[bytes]:
    """Yield frames of both as they come, until the events end; then the parts as they are then, and `END`.

    If the parts end first, they have said why: nothing more is sent.
    """
    sources = {events: _next(events), parts: _next(parts)}
    try:
        while len(sources) == 2:
            await asyncio.wait(sources.values(), return_when=asyncio.FIRST_COMPLETED)
            for source, task in list(sources.items()):
                if not task.done():
                    continue
                try:
                    frame = task.result()
                except StopAsyncIteration:
                    del sources[source]
                    continue
                yield frame
                sources[source] = _next(source)
        if parts in sources:
            yield await last_parts()
            yield END
    finally:
        await cancel_and_wait(*sources.values())
        for source in (events, parts):
            close: Callable[[], Awaitable[None]] | None = getattr(source, "aclose", None)
            if close is not None:
                await close()


def _next(source: AsyncIterator[bytes]) -> asyncio.Task[bytes]:
    async def advance() -> bytes:
        return await anext(source)

    return asyncio.create_task(advance(), name="console-job")
