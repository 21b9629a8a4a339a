"""SSE readers that resume from their cursor on another API process whenever the connection breaks."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import httpx

from chaos.sse import Sse, read_events, text_of

TERMINAL = frozenset(f"job.{status}" for status in ("completed", "incomplete", "failed", "cancelled", "expired"))
RETRY_S = 0.2


@dataclass(slots=True)
class Reader:
    """One client of one job's stream. `problems` are events and responses that no client should see."""

    job_id: str
    clients: Sequence[httpx.AsyncClient]
    rng: random.Random
    seen: list[Sse] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    resumes: int = 0
    cursor: int = 0
    terminal: Sse | None = None

    async def run(self) -> None:
        """Read to the terminal event, over as many connections as needed."""
        api = self.rng.randrange(len(self.clients))
        while self.terminal is None and not self.problems:
            try:
                await self._read(self.clients[api])
            except (httpx.HTTPError, OSError):
                await asyncio.sleep(RETRY_S)
            api = (api + 1) % len(self.clients)
            self.resumes += 1

    def text(self) -> str:
        return text_of(self.seen)

    async def _read(self, client: httpx.AsyncClient) -> None:
        """Read one connection to its end. Sends the cursor as a header or a parameter, alternating."""
        params: dict[str, int] = {}
        headers: dict[str, str] = {}
        if self.cursor and self.resumes % 2:
            headers["Last-Event-ID"] = str(self.cursor)
        elif self.cursor:
            params["starting_after"] = self.cursor
        url = f"/v1/jobs/{self.job_id}/stream"
        async with client.stream("GET", url, params=params, headers=headers) as response:
            if response.status_code == 200:
                async with aclosing(read_events(response)) as events:
                    async for event in events:
                        self._record(event)
                return
            await response.aread()
            if response.status_code == 503:
                await asyncio.sleep(RETRY_S)
            else:
                self.problems.append(f"the stream after {self.cursor} returned {response.status_code} {response.text}")

    def _record(self, event: Sse) -> None:
        self.seen.append(event)
        self.times.append(time.monotonic())
        if self.terminal is not None:
            self.problems.append(f"{event.event} {event.id} came after {self.terminal.event} {self.terminal.id}")
        if event.id is not None:
            if event.id <= self.cursor:
                self.problems.append(f"event {event.id} came after event {self.cursor}")
            self.cursor = max(self.cursor, event.id)
        if event.event in TERMINAL:
            self.terminal = event
