"""An SSE client for the native stream."""

from __future__ import annotations

import httpx

from chaos.sse import Sse, read_events, text_of

__all__ = ["Sse", "follow", "read_events", "text_of"]


async def follow(client: httpx.AsyncClient, job_id: str, after: int | None = None) -> list[Sse]:
    """Read the stream of a job to its end, from a cursor on."""
    params = {} if after is None else {"starting_after": after}
    async with client.stream("GET", f"/v1/jobs/{job_id}/stream", params=params) as response:
        if response.status_code != 200:
            await response.aread()
            raise AssertionError(f"{response.status_code}: {response.text}")
        return [item async for item in read_events(response)]
