"""The load: jobs at a fixed rate, every other one as a stream."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import httpx

MODEL = "sim"
TOKENS = 40
# Jobs that have not ended; beyond this the machine is too slow for the rate.
MAX_OUTSTANDING = 1000
MAX_PROBLEMS = 20


@dataclass(slots=True)
class Load:
    """Submits `rate` jobs a second. `problems` are responses other than a complete result."""

    client: httpx.AsyncClient
    rate: float
    submitted: int = 0
    ended: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, seconds: float) -> None:
        """Submit for `seconds`, then wait for the jobs to end."""
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds:
            due = int(elapsed * self.rate) - self.submitted - self.skipped
            for _ in range(due):
                if len(self._tasks) >= MAX_OUTSTANDING:
                    self.skipped += 1
                    continue
                self.submitted += 1
                task = asyncio.create_task(self._job(self.submitted))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(1 / self.rate)
        await asyncio.gather(*self._tasks)

    async def _job(self, number: int) -> None:
        try:
            problem = await (self._stream(number) if number % 2 else self._wait(number))
        except httpx.HTTPError as error:
            problem = repr(error)
        if problem is None:
            self.ended += 1
        elif len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"job {number}: {problem}")

    async def _stream(self, number: int) -> str | None:
        """Read a chat completion to its end. Returns what was wrong."""
        last = ""
        async with self.client.stream(
            "POST", "/v1/chat/completions", json=_chat(number) | {"stream": True}
        ) as response:
            if response.status_code != 200:
                return f"{response.status_code} {(await response.aread()).decode()}"
            async for line in response.aiter_lines():
                last = line or last
        return None if last == "data: [DONE]" else f"the stream ended with {last}"

    async def _wait(self, number: int) -> str | None:
        response = await self.client.post("/v1/chat/completions", json=_chat(number))
        if response.status_code != 200:
            return f"{response.status_code} {response.text}"
        tokens = response.json()["usage"]["completion_tokens"]
        return None if tokens == TOKENS else f"{tokens} tokens instead of {TOKENS}"


def _chat(number: int) -> dict[str, object]:
    message = {"role": "user", "content": f"Tell me story {number} of the mill."}
    return {"model": MODEL, "messages": [message], "max_tokens": TOKENS}
